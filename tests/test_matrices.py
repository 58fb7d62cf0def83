"""Matrices and norms: values and derivatives as NumPy's and as difference quotients say, and what happens at the edges."""

import itertools

import numpy as np
import pytest

from minigrad.checking import gradcheck
from minigrad.linalg import MANY_ROWS
from minigrad.tensor import Tensor, grad
from tests.test_derived import check, draw, far_from_singular, leaf


def gradient(f, x):
    """The gradient of a scalar function at x, of the shape of x."""
    t = leaf(x)
    return grad(f(t), t)[0]


def hessian(f, x):
    """The second derivatives of a scalar function at x, entry by entry: (x.size, x.size)."""
    t = leaf(x)
    (slope,) = grad(f(t), t, create_graph=True)
    units = np.eye(t.size).reshape(t.size, *t.shape)
    return np.array([grad(slope, t, unit)[0].ravel() for unit in units])


# ------------------------------------------------------------------------------------------------------------- lengths
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "length",
    [
        np.linalg.norm,
        lambda x: np.linalg.norm(x, 2),
        lambda x: np.linalg.norm(x, axis=0),
        lambda x: np.linalg.norm(x[None], "fro"),
        lambda x: np.linalg.norm(x, 1),
        lambda x: np.linalg.norm(x, 3),
        lambda x: np.linalg.norm(x, np.inf),
        lambda x: np.linalg.norm(x[None], "nuc"),
        lambda x: np.sum(np.absolute(x)),
        lambda x: np.std(np.concatenate([x, -x])),
    ],
)
def test_no_second_derivative_at_a_kink_is_a_wrong_number(length):
    """The square of most is |x|^2, of second derivative 2 where it has one; the slopes of the lengths are 0, or NaN."""
    wrong = hessian(lambda x: length(x) ** 2, np.zeros(2))
    assert np.all(np.isnan(wrong) | (wrong == 2.0 * np.eye(2)))
    slope = gradient(length, np.zeros(2))
    assert np.all(np.isnan(slope) | (slope == 0.0))


def test_the_slope_of_a_length_at_0_is_0_and_others_are_not_disturbed():
    assert gradient(np.linalg.norm, np.zeros(2)).tolist() == [0.0, 0.0]
    assert gradient(np.std, np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    rows = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert gradient(lambda x: np.sum(np.linalg.norm(x, axis=1)), rows).tolist() == [
        [0, 0],
        [0.6, 0.8],
    ]
    with np.errstate(all="ignore"):
        second = hessian(lambda x: np.sum(np.linalg.norm(x, axis=1) ** 2), rows)
    np.testing.assert_allclose(second[2:, 2:], 2.0 * np.eye(2), atol=1e-15)
    assert np.isnan(second[:2, :2]).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_length_that_rounds_to_0_has_no_slope_of_0():
    assert not np.isfinite(gradient(np.linalg.norm, [1e-200, 0.0])[0])


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("ord", [None, 1, 2, 3, 4, 2.5, 0.5, -1, -2, np.inf, -np.inf, 0])
def test_norms_of_vectors(ord, keepdims):
    x = draw(3, 4)
    check(lambda x: np.linalg.norm(x, ord, axis=1, keepdims=keepdims), x)
    check(lambda x: np.linalg.norm(x, ord, 0, keepdims), x, order=1)
    check(lambda x: np.linalg.norm(x[0], ord), x)
    if ord is not None:
        check(lambda x: np.linalg.vector_norm(x, ord=ord, keepdims=keepdims), x)
        check(lambda x: np.linalg.vector_norm(x, ord=ord, axis=(0, -1)), draw(2, 3, 2), order=1)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("ord", [None, "fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf])
def test_norms_of_matrices(ord, keepdims):
    check(lambda x: np.linalg.norm(x, ord, keepdims=keepdims), draw(3, 4))
    check(lambda x: np.linalg.norm(x, ord, axis=(2, 0), keepdims=keepdims), draw(3, 2, 4))
    if ord is not None:
        check(lambda x: np.linalg.matrix_norm(x, ord=ord, keepdims=keepdims), draw(2, 4, 3))


def test_the_slope_of_the_nuclear_norm():
    """U V^T of the singular vectors, those of 0 left out, as |x| has slope 0 at 0."""
    np.testing.assert_allclose(
        gradient(lambda x: np.linalg.norm(x, "nuc"), np.eye(3)), np.eye(3), atol=1e-15
    )
    rank_one = np.outer([1.0, 2.0], [2.0, 0.0, 1.0])
    found = gradient(lambda x: np.linalg.norm(x, "nuc"), rank_one)
    np.testing.assert_allclose(found, rank_one / 5.0, atol=1e-15)


# -------------------------------------------------------------------------------------------------------- determinants
def cofactors(x):
    """By definition: the determinant without row i and column j, as a sum over permutations."""
    n = len(x)
    found = np.zeros((n, n))
    for i, j in itertools.product(range(n), repeat=2):
        rest = np.delete(np.delete(x, i, 0), j, 1)
        for order in itertools.permutations(range(n - 1)):
            inversions = sum(a > b for k, a in enumerate(order) for b in order[k:])
            product = np.prod([rest[k, c] for k, c in enumerate(order)])
            found[i, j] += (-1) ** (i + j + inversions) * product
    return found


SINGULAR = {
    "rank 1 of 2": np.array([[1.0, 2.0], [2.0, 4.0]]),
    "rank 2 of 3": np.arange(1.0, 10.0).reshape(3, 3),
    "rank 1 of 3": np.outer([1.0, 2.0, -1.0], [3.0, 0.5, 1.0]),
    "nothing": np.zeros((3, 3)),
    "rank 3 of 4": np.vstack([draw(3, 4), np.ones((1, 3)) @ draw(3, 4)]),
    "a row of 0": np.array([[1.0, 2.0], [0.0, 0.0]]),
    "one entry": np.zeros((1, 1)),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_det_of_a_singular_matrix_has_its_cofactors_as_gradient(name):
    x = SINGULAR[name]
    np.testing.assert_allclose(gradient(np.linalg.det, x), cofactors(x), rtol=1e-10, atol=1e-12)
    gradcheck(np.linalg.det, x)  # of second order too


def test_det_of_a_stack_in_which_some_are_singular():
    x = np.stack([np.eye(3), SINGULAR["rank 2 of 3"], far_from_singular(3, 3)])
    found = gradient(lambda x: np.sum(np.linalg.det(x)), x)
    np.testing.assert_allclose(found, [cofactors(m) for m in x], rtol=1e-9, atol=1e-12)


def test_a_large_singular_matrix_is_an_error_that_names_det():
    x = leaf(np.zeros((MANY_ROWS + 1, MANY_ROWS + 1)))
    with pytest.raises(np.linalg.LinAlgError, match="gradient of det: .* singular"):
        np.linalg.det(x).backward()


@pytest.mark.parametrize(
    "f, name",
    [
        (lambda x: np.linalg.slogdet(x)[1], "slogdet"),
        (lambda x: np.sum(np.linalg.qr(x)[1]), "qr"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_gradient_of_a_singular_matrix_names_the_operation(f, name):
    with pytest.raises(np.linalg.LinAlgError, match=f"gradient of {name}: .*singular"):
        gradient(f, np.zeros((2, 2)))


# ------------------------------------------------------------------------------------------------------- factorisations
def symmetric(x):
    return 0.5 * (x + np.swapaxes(x, -1, -2))


WEIGHTS = np.cos(np.arange(16.0)).reshape(4, 4)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.linalg.eigh(symmetric(x))[0],
        lambda x: np.linalg.eigh(symmetric(x)).eigenvectors ** 2,
        lambda x: np.linalg.eigh(symmetric(x), UPLO="U").eigenvalues,
        lambda x: np.linalg.eigvalsh(symmetric(x)),
        lambda x: np.linalg.eigvalsh(symmetric(x), "U"),
        lambda x: np.linalg.eig(x @ np.swapaxes(x, -1, -2)).eigenvalues ** 0.5,
        lambda x: np.linalg.eig(x @ np.swapaxes(x, -1, -2)).eigenvectors ** 2,
        lambda x: np.sum(np.linalg.eigvals(x @ np.swapaxes(x, -1, -2)) ** 3),
        lambda x: np.linalg.pinv(x),
        lambda x: np.linalg.cholesky(x @ np.swapaxes(x, -1, -2), upper=True),
        lambda x: np.linalg.matrix_power(x, 3),
        lambda x: np.linalg.matrix_power(x, 5),
        lambda x: np.linalg.matrix_power(x, 1),
        lambda x: np.linalg.matrix_power(x, -2),
        lambda x: x + np.linalg.matrix_power(x, 0),
        lambda x: np.linalg.trace(x),
        lambda x: np.linalg.trace(x, offset=1) + np.sum(x),
        lambda x: np.linalg.diagonal(x),
        lambda x: np.linalg.matrix_transpose(x),
        *[lambda x, p=p: np.linalg.cond(x, p) for p in (None, 2, -2, 1, np.inf, "fro")],
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 3, 3)])
def test_square(f, shape):
    check(f, far_from_singular(*shape))


SHAPES = [(4, 3), (3, 4), (3, 3), (2, 4, 2), (2, 2, 4), (1, 3), (3, 1)]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.linalg.svd(x, full_matrices=False).S,
        lambda x: np.linalg.svd(x, full_matrices=False).U ** 2,
        lambda x: np.linalg.svd(x, full_matrices=False).Vh ** 2,
        lambda x: np.linalg.svd(x, compute_uv=False),
        np.linalg.svdvals,
        lambda x: np.linalg.qr(x).Q ** 2,
        lambda x: np.linalg.qr(x).R ** 2,
        lambda x: np.linalg.qr(x, mode="r") ** 2,
        np.linalg.pinv,
        lambda x: np.linalg.pinv(x, 1e-10),
        lambda x: np.linalg.pinv(x, rtol=1e-10),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_rectangular(f, shape):
    check(f, draw(*shape))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 3, 3)])
def test_factors_multiply_to_the_matrix_and_so_have_its_gradient(shape):
    """What is put together again is x: its gradient is the weights, through all parts of each rule."""
    x, weights = draw(*shape), draw(*shape, seed=1)

    def of_svd(x):
        u, s, vh = np.linalg.svd(x, full_matrices=False)
        return np.sum(weights * ((u * s[..., None, :]) @ vh))

    def of_qr(x):
        q, r = np.linalg.qr(x)
        return np.sum(weights * (q @ r))

    def of_pinv(x):
        return np.sum(weights * (x @ np.linalg.pinv(x) @ x))

    for f in (of_svd, of_qr, of_pinv):
        np.testing.assert_allclose(gradient(f, x), weights, atol=1e-12)


def test_full_matrices_of_a_square_matrix():
    check(lambda x: np.linalg.svd(x).U ** 2, draw(3, 3))
    check(lambda x: np.linalg.qr(x, mode="complete").Q ** 2, draw(2, 3))


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 3, 3)])
@pytest.mark.parametrize(
    "name", ["eigvalsh", "eigvals", "inv", "det", "cholesky", "pinv", "svdvals"]
)
def test_nothing(name, shape):
    x = leaf(np.zeros(shape))
    expected = getattr(np.linalg, name)(x.data)
    y = getattr(np.linalg, name)(x)
    assert y.shape == expected.shape and y.data.tolist() == expected.tolist()
    assert grad(np.sum(y), x)[0].shape == shape


# ----------------------------------------------------------------------------------------------------- equal eigenvalues
ROTATION = np.linalg.qr(draw(4, 4))[0]
TWICE = symmetric(ROTATION @ np.diag([1.0, 1.0, 2.0, 2.0]) @ ROTATION.T)  # equal but for rounding


@pytest.mark.parametrize(
    "x", [np.eye(4), TWICE, np.zeros((4, 4))], ids=["identity", "twice", "zero"]
)
def test_what_treats_equal_eigenvalues_alike_has_the_right_gradient(x):
    for values in (np.linalg.eigvalsh, lambda x: np.linalg.eigh(x)[0]):
        np.testing.assert_allclose(gradient(lambda x: np.sum(values(x)), x), np.eye(4), atol=1e-13)
        found = gradient(lambda x: np.sum(values(x) ** 3), x)
        np.testing.assert_allclose(found, 3.0 * x @ x, atol=1e-13)
    found = gradient(lambda x: np.sum(np.linalg.svdvals(x) ** 4), x)
    np.testing.assert_allclose(found, 4.0 * x @ x @ x, atol=1e-12)
    if (
        x is not TWICE
    ):  # LAPACK's values of a matrix that is not known to be symmetric may be complex
        found = gradient(lambda x: np.sum(np.linalg.eigvals(x) ** 2), x)
        np.testing.assert_allclose(found, 2.0 * x.T, atol=1e-13)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.linalg.eigvalsh(x)[0],
        lambda x: np.sum(np.linalg.eigh(x)[1] ** 3),
        lambda x: np.sum(np.linalg.eigh(x)[1][:, 0] ** 4),
        lambda x: np.linalg.eigvals(x + 0.0)[0],
        lambda x: np.sum(np.linalg.svd(x)[0] ** 3),
        lambda x: np.sum(np.linalg.svd(x)[2] ** 3),
        lambda x: np.linalg.svdvals(x)[0],
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("x", [np.eye(4), 2.0 * np.eye(4)], ids=["identity", "twice it"])
def test_what_does_not_is_not_differentiable_and_says_so(f, x):
    assert np.isnan(gradient(f, x)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_rounding_is_mistaken_for_a_gap():
    assert np.isnan(gradient(lambda x: np.sum(np.linalg.eigh(x)[1] ** 4), TWICE)).all()
    assert np.isnan(gradient(lambda x: np.sum(np.linalg.svd(x)[0] ** 4), TWICE)).all()
    second = hessian(lambda x: np.sum(np.linalg.eigvalsh(x) ** 2), TWICE)
    assert np.all(np.isnan(second) | (np.abs(second - np.rint(second)) < 1e-12))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_square_root_of_the_identity_by_eigenvalues():
    """Its derivative is half of the matrix's; the rule cannot know, and must not say 0 off the diagonal."""

    def root(x):
        values, vectors = np.linalg.eigh(x)
        return np.sum(WEIGHTS * ((vectors * np.sqrt(values)) @ vectors.T))

    found = gradient(root, np.eye(4))
    assert np.all(np.isnan(found) | (np.abs(found - 0.5 * symmetric(WEIGHTS)) < 1e-12))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_few_of_many_eigenvalues():
    """A matrix of rank 3 with 40 rows: the vectors of the largest value have a gradient, those of 0 have none."""
    b = draw(40, 3)
    x = b @ b.T
    gradcheck(lambda b: np.linalg.eigh(b @ b.T)[1][:, -1] ** 2, b, order=1)
    np.testing.assert_allclose(
        gradient(lambda x: np.sum(np.linalg.eigvalsh(x) ** 2), x), 2.0 * x, atol=1e-11
    )
    assert np.isnan(gradient(lambda x: np.sum(np.linalg.eigh(x)[1][:, 0] ** 4), x)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_matrix_with_too_few_eigenvectors():
    """The gradient of the sum of w^2 is 2 x^T = [[2, 0], [2, 2]]: out of reach, as x has one eigenvector."""
    found = gradient(lambda x: np.sum(np.linalg.eigvals(x) ** 2), [[1.0, 1.0], [0.0, 1.0]])
    assert np.isnan(found).all()


# --------------------------------------------------------------------------------------------- products, solving, errors
@pytest.mark.parametrize(
    "f, shapes",
    [
        (np.vecdot, [(2, 3), (3,)]),
        (np.linalg.vecdot, [(2, 3), (2, 3)]),
        (lambda a, b: np.linalg.vecdot(a, b, axis=0), [(2, 3), (2, 3)]),
        (np.matvec, [(2, 3), (3,)]),
        (np.matvec, [(4, 2, 3), (4, 3)]),
        (np.vecmat, [(2,), (2, 3)]),
        (np.vecmat, [(4, 2), (4, 2, 3)]),
        (np.linalg.matmul, [(2, 3), (3, 2)]),
        (np.linalg.outer, [(2,), (3,)]),
        (lambda a, b: np.linalg.tensordot(a, b, axes=1), [(2, 3), (3, 2)]),
        (lambda a, b: np.tensordot(a, b, ((2, 0), (0, 1))), [(2, 3, 4), (4, 2, 3)]),
        (lambda a, b: np.tensordot(a, b, ((0, 2), (1, 0))), [(2, 3, 4), (4, 2, 3)]),
        (np.inner, [(2, 3, 4), (5, 4)]),
        (np.dot, [(2, 3, 4), (2, 4, 5)]),
        (lambda a, b: np.linalg.tensorsolve(np.reshape(a, (2, 3, 6)), b), [(6, 6), (2, 3)]),
        (lambda a, b: np.linalg.tensorsolve(np.reshape(a, (6, 2, 3)), b, (0,)), [(6, 6), (2, 3)]),
        (lambda a: np.linalg.tensorinv(np.reshape(a, (2, 3, 6))), [(6, 6)]),
        (lambda a: np.linalg.tensorinv(np.reshape(a, (6, 3, 2)), 1), [(6, 6)]),
        (lambda a, b: np.linalg.lstsq(a, b)[0], [(4, 2), (4,)]),
        (lambda a, b: np.linalg.lstsq(a, b)[0], [(2, 4), (2, 3)]),
        (lambda a, b: np.linalg.lstsq(a, b)[1], [(4, 2), (4, 3)]),
    ],
)
def test_products_and_solving(f, shapes):
    check(f, *[draw(*shape, seed=i) for i, shape in enumerate(shapes)])


def test_lstsq_gives_all_that_numpy_gives():
    for shape in ((4, 2), (2, 4)):
        a, b = draw(*shape), draw(shape[0])
        expected, found = np.linalg.lstsq(a, b), np.linalg.lstsq(leaf(a), b)
        assert found[1].shape == expected[1].shape and found[2] == expected[2]
        np.testing.assert_allclose(found[3], expected[3])


def test_the_rank_is_plain():
    assert np.linalg.matrix_rank(leaf(np.ones((2, 3)))) == 1


@pytest.mark.parametrize(
    "f, error, message",
    [
        (lambda x: np.linalg.svd(x), ValueError, "use full_matrices=False"),
        (
            lambda x: np.linalg.svd(x[:2], hermitian=True),
            ValueError,
            "hermitian=True is not offered",
        ),
        (lambda x: np.linalg.qr(x, mode="complete"), ValueError, "use mode='reduced'"),
        (
            lambda x: np.linalg.qr(x, mode="raw"),
            ValueError,
            "'reduced', 'complete' or 'r', not 'raw'",
        ),
        (
            lambda x: np.linalg.eigvals(x[:2] - np.array([[0.0, 0.0], [9.0, 0.0]])),
            TypeError,
            "complex eigen",
        ),
        (lambda x: np.linalg.eigh(x), np.linalg.LinAlgError, r"eigh\(float64\[3, 2\]\)"),
        (lambda x: np.linalg.norm(x[None], 1), ValueError, "norms are of vectors, along one axis"),
        (lambda x: np.linalg.norm(x, axis=(0, 0)), ValueError, "norms are of vectors"),
        (lambda x: np.linalg.norm(x, 3), ValueError, "matrices have no norm of order 3"),
        (
            lambda x: np.linalg.norm(x, "nuc", axis=0),
            ValueError,
            "vectors have no norm of order 'nuc'",
        ),
    ],
)
def test_errors(f, error, message):
    with pytest.raises(error, match=message):
        f(leaf([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]]))


# ---------------------------------------------------------------------------------------------------- einsum with lists
@pytest.mark.parametrize(
    "labels, shapes",
    [
        ([[0, 1], [1, 2]], [(2, 3), (3, 4)]),
        ([[0, 1], [1, 2], [2, 0]], [(2, 3), (3, 4)]),
        ([[5, 3], [3, 1]], [(2, 3), (3, 4)]),  # the output is in the order of the labels: [1, 5]
        ([[30, 7], [7, 2]], [(2, 3), (3, 4)]),
        ([[Ellipsis, 1], [1, 0]], [(2, 5, 3), (3, 4)]),
        ([[Ellipsis, 1], [1, 0], [0, Ellipsis]], [(2, 5, 3), (3, 4)]),
        ([[0, 0]], [(3, 3)]),
        ([[0, 0], [0]], [(3, 3)]),
        ([(0, 1), (1,), (0,)], [(2, 3), (3,)]),
        ([[0, 1], [1, 2], [2, 3], [3, 0]], [(2, 3), (3, 4), (4, 2)]),
    ],
)
def test_einsum_with_lists_of_labels(labels, shapes):
    def f(*arrays):
        pairs = [part for pair in zip(arrays, labels) for part in pair]
        return np.einsum(*pairs, *labels[len(arrays) :])

    check(f, *[draw(*shape, seed=i) for i, shape in enumerate(shapes)])


def test_einsum_of_30_labels_keeps_their_order():
    x = draw(*[1] * 28, 2, 3)
    labels = [*range(28), 29, 28]
    np.testing.assert_array_equal(np.einsum(leaf(x), labels).data, np.einsum(x, labels))


@pytest.mark.parametrize(
    "f",
    [lambda x: np.einsum(x, x), lambda x: np.einsum(x, [0, 1], x), lambda x: np.einsum(x, "ij")],
)
def test_einsum_without_labels_says_what_it_takes(f):
    with pytest.raises(TypeError, match="a list of labels after each operand"):
        f(Tensor(draw(2, 2)))


# ------------------------------------------------------------------------------------------------- beside HIPS autograd
BESIDE = {
    "inv": (lambda L, x: L.inv(x), far_from_singular(2, 3, 3)),
    "det": (lambda L, x: L.det(x), far_from_singular(3, 3)),
    "slogdet": (lambda L, x: L.slogdet(x)[1], far_from_singular(2, 3, 3)),
    "cholesky": (lambda L, x: L.cholesky(x @ x.T), far_from_singular(3, 3)),
    "solve": (lambda L, x: L.solve(x, np.ones((3, 2))), far_from_singular(3, 3)),
    "pinv": (lambda L, x: L.pinv(x), draw(4, 3)),
    "eigvalsh": (lambda L, x: L.eigh(0.5 * (x + x.T))[0], draw(4, 4)),
    "eigh": (lambda L, x: L.eigh(0.5 * (x + x.T))[1] ** 2, draw(4, 4)),
    "singular values": (lambda L, x: L.svd(x, compute_uv=False), draw(3, 4)),
    "svd, u": (lambda L, x: L.svd(x, full_matrices=False)[0] ** 2, draw(4, 3)),
    "svd, vh": (lambda L, x: L.svd(x, full_matrices=False)[2] ** 2, draw(4, 3)),
    "norm": (lambda L, x: L.norm(x), draw(3, 4)),
    "norm along": (lambda L, x: L.norm(x, axis=1), draw(3, 4)),
    "nuclear": (lambda L, x: L.norm(x, "nuc"), draw(3, 4)),
    "norm of order 3": (lambda L, x: L.norm(x, 3, axis=0), draw(3, 4)),
}


@pytest.mark.parametrize("name", BESIDE)
def test_gradients_as_those_of_autograd(name):
    autograd = pytest.importorskip("autograd")
    import autograd.numpy as theirs

    f, x = BESIDE[name]
    weights = np.cos(np.arange(np.size(f(np.linalg, x)))).reshape(np.shape(f(np.linalg, x)))
    expected = autograd.grad(lambda x: theirs.sum(weights * f(theirs.linalg, x)))(x)
    found = gradient(lambda x: np.sum(weights * f(np.linalg, x)), x)
    if name in ("eigvalsh", "eigh"):  # of x itself, as both see x + x^T
        found, expected = symmetric(found), symmetric(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)

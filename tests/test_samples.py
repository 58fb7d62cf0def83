"""Quantiles, covariances, interpolation, slopes, integrals and convolutions of Tensors: NumPy's values, and derivatives that are right, at ties and edges too."""

import numpy as np
import pytest

from minigrad.tensor import Tensor, grad
from tests.test_derived import check, draw, gradient, leaf

X, CUBE, V = draw(3, 4), draw(2, 3, 4), draw(7)


# ----------------------------------------------------------------------------------------------------------- quantiles
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 0, 1), ()])
def test_medians_and_quantiles(axis, keepdims):
    for f in (
        lambda x: np.median(x, axis=axis, keepdims=keepdims),
        lambda x: np.quantile(x, 0.3, axis=axis, keepdims=keepdims),
        lambda x: np.quantile(x, [0.0, 0.9, 1.0], axis, keepdims=keepdims),
        lambda x: np.percentile(x, np.array([[12.5], [80.0]]), axis, keepdims=keepdims),
    ):
        check(f, CUBE)


METHODS = """inverted_cdf averaged_inverted_cdf closest_observation interpolated_inverted_cdf hazen weibull linear
    median_unbiased normal_unbiased lower higher midpoint nearest""".split()


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_of_quantile(method):
    for q in (0.0, 0.1, 0.5, 0.77, 1.0):
        check(lambda x: np.quantile(x, q, method=method), V)
        check(lambda x: np.quantile(x, q, axis=1, method=method), X)
        check(lambda x: np.percentile(x, 100.0 * q, axis=0, method=method), X[:1], order=1)


def test_quantiles_have_the_bits_of_numpy():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 101):
        x, q = rng.normal(size=n), rng.random(50)
        assert np.array_equal(np.quantile(leaf(x), q).data, np.quantile(x, q))
        assert np.median(leaf(x)).item() == np.median(x)


def test_ties_of_quantiles():
    """Which of equal entries gets the gradient is open; all together they get that of the value."""
    assert gradient(np.median, [2.0, 1.0, 2.0, 2.0, 5.0])[0] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert gradient(np.median, [3.0, 1.0, 1.0, 3.0])[0] == [0.5, 0.0, 0.5, 0.0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.integers(0, 3, (4, 5)).astype(float)
        for f in (np.median, lambda x, axis: np.quantile(x, 0.3, axis)):
            (g,) = gradient(lambda x: f(x, axis=1), x)
            np.testing.assert_allclose(np.sum(g, axis=1), 1.0, rtol=1e-14)
            assert np.all(np.equal(x, f(x, axis=1)[:, None])[np.array(g) > 0.99])


def test_quantiles_with_nan_and_of_nothing():
    x = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, 4.0]])
    for f in (np.median, lambda x, axis: np.quantile(x, 0.3, axis=axis)):
        np.testing.assert_array_equal(f(leaf(x), axis=1).data, f(x, axis=1))
        np.testing.assert_array_equal(f(leaf(x), axis=None).data, np.nan)
        (g,) = gradient(lambda x: f(x, axis=1), x)
        assert g[0][0] == g[0][2] == 0.0 and sum(g[1]) == pytest.approx(1.0)
    assert np.isnan(np.median(leaf(np.zeros(0))).data)
    assert np.median(leaf(np.zeros((0, 3))), axis=0).shape == (3,)
    with pytest.raises((IndexError, ValueError)):
        np.quantile(leaf(np.zeros(0)), 0.5)


@pytest.mark.parametrize("kth", [0, 2, -1, [1, 4]])
def test_partition(kth):
    for x in (V, np.round(V)):
        y = np.partition(leaf(x), kth).data
        assert np.array_equal(y[kth], np.sort(x)[kth]) and np.array_equal(np.sort(y), np.sort(x))
        (g,) = gradient(lambda x: np.partition(x, kth) * np.arange(1.0, 8.0), x)
        assert sorted(g) == list(range(1, 8))
        assert all(x[i] == y[int(g[i]) - 1] for i in range(7))
    check(lambda x: np.partition(x, 1, axis=0), X)
    check(lambda x: np.partition(x, 5, axis=None), X)


# --------------------------------------------------------------------------------------------------------- covariances
@pytest.mark.parametrize(
    "f",
    [
        np.cov,
        lambda x: np.cov(x, rowvar=False),
        lambda x: np.cov(x, bias=True),
        lambda x: np.cov(x, ddof=2),
        lambda x: np.cov(x[0]),
        lambda x: np.cov(x, x[0] * x[1]),
        lambda x: np.cov(x.T, np.square(x).T, rowvar=False),
        lambda x: np.cov(x[:1].T, x[1], False),
        lambda x: np.cov(x[0], x[1], ddof=0),
        lambda x: np.cov(np.arange(4), y=x),
        np.corrcoef,
        lambda x: np.corrcoef(x, rowvar=False),
        lambda x: np.corrcoef(x[0], x[1]),
        lambda x: np.corrcoef(x[0]),
    ],
)
def test_covariances(f):
    check(f, X)


def test_correlations_stay_between_minus_1_and_1_with_the_slope_of_the_formula():
    x = np.array([[0.1, 0.7, 0.3], [0.2, 1.4, 0.6]])
    for seed in range(30):
        x = np.random.default_rng(seed).normal(size=(1, 5)) * [[1.0], [-3.0]]
        y = np.corrcoef(leaf(x))
        assert np.all(np.abs(y.data) <= 1.0)
        np.testing.assert_allclose(gradient(np.corrcoef, x)[0], 0.0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- sampled curves
@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: np.linspace(a, b),
        lambda a, b: np.linspace(a, b, 5),
        lambda a, b: np.linspace(a, b, 4, endpoint=False),
        lambda a, b: np.linspace(a, b, 3, axis=1),
        lambda a, b: np.linspace(a, b, 1),
        lambda a, b: np.linspace(a, b, 0),
        lambda a, b: np.linspace(a[0, 0], b[1], num=3, axis=-1),
        lambda a, b: np.linspace(a, 2, 3) * b,
        lambda a, b: np.linspace(0.5, b, 4) + a[0],
    ],
)
def test_linspace(f):
    check(f, X, draw(3, 4, seed=1))


def test_linspace_ends_where_it_should():
    for stop in np.random.default_rng(0).normal(size=50):
        got = np.linspace(leaf(0.1), stop, 7).data
        assert np.array_equal(got, np.linspace(0.1, stop, 7)) and got[-1] == stop


POINTS, HEIGHTS = np.array([-1.0, -0.2, 0.3, 1.5]), draw(4, seed=3)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, xp, fp: np.interp(x, xp, fp),
        lambda x, xp, fp: np.interp(x, xp, fp, left=3.0),
        lambda x, xp, fp: np.interp(x, xp, fp, -1.0, np.float64(2.0)),
        lambda x, xp, fp: np.interp(x[0, 0], xp, fp),
        lambda x, xp, fp: np.interp(x, np.arange(4) - 2, fp) * xp,
        lambda x, xp, fp: np.interp(np.array([[-3, 0], [1, 2]]), xp, fp) * x[0, 0],
        lambda x, xp, fp: np.interp(x, xp[:1], fp[:1]) + xp * fp,
        lambda x, xp, fp: np.interp(x[:0], xp, fp) * xp,
        lambda x, xp, fp: np.interp(0.25, xp, fp) + x,
    ],
)
def test_interp(f):
    check(f, 1.5 * X, POINTS, HEIGHTS)


def test_interp_at_its_points_and_beyond():
    xs = np.array([*POINTS, -5.0, 7.0, np.inf, -np.inf])
    np.testing.assert_array_equal(
        np.interp(leaf(xs), POINTS, HEIGHTS).data, np.interp(xs, POINTS, HEIGHTS)
    )
    slopes = np.diff(HEIGHTS) / np.diff(POINTS)
    (g,) = gradient(lambda x: np.interp(x, POINTS, HEIGHTS), xs)
    np.testing.assert_allclose(g, [*slopes, slopes[-1], 0.0, 0.0, 0.0, 0.0], rtol=1e-14)
    (g,) = gradient(lambda fp: np.interp(xs, POINTS, fp), HEIGHTS)
    assert g == [3.0, 1.0, 1.0, 3.0]  # ends count for what lies beyond them
    assert np.isnan(np.interp(leaf([np.nan]), POINTS, HEIGHTS).data).all()
    with pytest.raises(ValueError, match=r"interp: points of shapes \(3,\) and \(4,\)"):
        np.interp(leaf(0.0), POINTS[1:], HEIGHTS)
    with pytest.raises(TypeError, match="interp: period= is not supported"):
        np.interp(leaf(0.0), POINTS, HEIGHTS, period=3.0)


@pytest.mark.parametrize(
    "f",
    [
        np.trapezoid,
        lambda y: np.trapezoid(y, dx=0.5),
        lambda y: np.trapezoid(y, axis=0),
        lambda y: np.trapezoid(y, np.square(np.arange(4)), 1.0, -1),
        lambda y: np.trapezoid(y, np.array([1, 3]), axis=0),
        lambda y: np.trapezoid(y, x=np.cumsum(np.exp(y), axis=1), axis=1),
        lambda y: np.trapezoid(np.arange(4), y[0, 0]),
        lambda y: np.trapezoid(y[:, :, :1]),
        lambda y: np.trapezoid(y[:, :, :0]),
        lambda y: np.trapezoid(y, dx=y[:1, 1:, :1], axis=1),
        lambda y: np.trapezoid(y[0], dx=y[1, 0], axis=0),
        lambda y: np.trapezoid(np.arange(5), dx=y[0]),
    ],
)
def test_trapezoid(f):
    check(f, CUBE)


@pytest.mark.parametrize("f", [np.cov, np.corrcoef, np.gradient])
def test_a_list_beside_a_tensor_is_refused_by_name(f):
    for inputs in ([[1.0, 2.0], leaf([1.0, 3.0])], [leaf([1.0, 3.0]), [1.0, 2.0]]):
        with pytest.raises(TypeError, match="an operand is a list; pass an array"):
            f(*inputs)


@pytest.mark.parametrize("edge_order", [1, 2])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, e: np.gradient(x, edge_order=e)[0],
        lambda x, e: np.gradient(x, edge_order=e)[1],
        lambda x, e: np.gradient(x[0], edge_order=e),
        lambda x, e: np.gradient(x[0], 0.5, edge_order=e),
        lambda x, e: np.gradient(x, 2, axis=1, edge_order=e),
        lambda x, e: np.gradient(x, 0.5, 0.25, edge_order=e)[1],
        lambda x, e: np.gradient(x, np.array([0, 1, 3]), 2.0, edge_order=e)[0],
        lambda x, e: np.gradient(x, np.cumsum(np.exp(x[0])), axis=-1, edge_order=e),
        lambda x, e: np.gradient(np.arange(4) ** 2, np.cumsum(np.exp(x[0])), edge_order=e),
        lambda x, e: (
            np.gradient(x, np.exp(x[0, 0]), axis=(1, 0), edge_order=e)[1]
            if isinstance(x, Tensor)
            else np.gradient(x, float(np.exp(x[0, 0])), axis=(1, 0), edge_order=e)[1]
        ),
        lambda x, e: np.gradient(x[0, : e + 1], edge_order=e),
    ],
)
def test_gradient(f, edge_order):
    check(lambda x: f(x, edge_order), X)


def test_gradient_is_exact_on_parabolas():
    x = np.array([-1.0, 0.0, 0.5, 2.0, 2.25])
    got = np.gradient(leaf(3.0 * x**2 - x), x, edge_order=2)
    np.testing.assert_allclose(got.data, 6.0 * x - 1.0, rtol=1e-14)


@pytest.mark.parametrize(
    "f, error, message",
    [
        (lambda t: np.gradient(t, edge_order=3), ValueError, "gradient: edge_order=3; give 1 or 2"),
        (
            lambda t: np.gradient(t[:1]),
            ValueError,
            "gradient: 1 points along an axis; 2 are needed",
        ),
        (lambda t: np.gradient(t, X[0]), ValueError, r"spacing of shape \(4,\) for 7 points"),
        (lambda t: np.gradient(t, 1.0, 2.0), TypeError, "gradient: 2 spacings for 1 axes"),
        (lambda t: np.quantile(t, 1.5), ValueError, "range"),
        (lambda t: np.quantile(t, 0.5, method="best"), ValueError, "best"),
        (lambda t: np.quantile(t, leaf(0.5)), TypeError, "quantile: q is a Tensor"),
        (lambda t: np.percentile(V, leaf(50.0)), TypeError, "percentile: q is a Tensor"),
        (lambda t: np.median(t, axis=1), IndexError, "median: axis 1 is out of bounds"),
        (
            lambda t: np.cov(leaf(CUBE)),
            ValueError,
            r"cov: shape \(2, 3, 4\); pass a vector or a matrix",
        ),
        (lambda t: np.cov(t, fweights=np.ones(7)), TypeError, "cov: fweights= is not supported"),
        (
            lambda t: np.corrcoef(t, dtype=np.float32),
            TypeError,
            "corrcoef: dtype= is not supported",
        ),
        (
            lambda t: np.linspace(t, 1.0, retstep=True),
            TypeError,
            "linspace: retstep= is not supported",
        ),
        (lambda t: np.convolve(t, leaf(X)), ValueError, r"convolve: shapes \(7,\) and \(3, 4\)"),
        (lambda t: np.convolve(t, t[:0]), ValueError, "pass two vectors, not empty"),
        (lambda t: np.convolve(t, t, "near"), ValueError, "convolve: mode='near'; take 'full'"),
        (lambda t: np.convolve(t, [1.0, 2.0]), TypeError, "convolve: an operand is a list"),
        (lambda t: np.correlate(t, 2.0), ValueError, r"correlate: shapes \(7,\) and \(\)"),
        (lambda t: np.partition(t, 9), ValueError, "out of bounds"),
    ],
)
def test_errors(f, error, message):
    with pytest.raises(error, match=message):
        f(leaf(V))


# -------------------------------------------------------------------------------------------------------- convolutions
@pytest.mark.parametrize("name", ["convolve", "correlate"])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("n, m", [(5, 3), (3, 5), (4, 4), (6, 2), (2, 6), (1, 3), (3, 1), (1, 1)])
def test_convolutions(name, mode, n, m):
    check(lambda a, v: getattr(np, name)(a, v, mode), draw(n), draw(m, seed=1))


def test_convolutions_by_default_and_beside_plain_arrays():
    for f in (np.convolve, np.correlate):
        check(f, draw(5), draw(3, seed=1))
        check(lambda a: f(a, np.array([1, 2, -1])), draw(5))
        check(lambda v: f(np.array([1, 2, -1, 4]), v), draw(3))
    check(lambda v: np.convolve(v, 2.0), draw(3))


# ------------------------------------------------------------------------------------------------------ another engine
Y = draw(3, 4, seed=1)
BY_NAME = {  # functions of arrays alone, and where they are compared
    "arcsin arccos arctanh": [0.9 * np.sin(X)],
    "arcsinh sinc tan deg2rad rad2deg radians degrees fabs exp2 flipud fliplr rot90 real imag conj diff": [
        X
    ],
    "atleast_1d atleast_2d atleast_3d nan_to_num": [X],
    "arccosh": [1.2 + np.abs(X)],
    "log2 log10": [np.exp(X)],
    "diag": [draw(3, 3)],
    "arctan2 hypot logaddexp2 mod remainder fmax fmin kron append": [X, Y],
    "cross": [draw(5, 3), draw(5, 3, seed=1)],
}
COMPARED = {
    name: (lambda module, *xs, name=name: getattr(module, name)(*xs), arrays)
    for names, arrays in BY_NAME.items()
    for name in names.split()
} | {
    "column_stack": (lambda module, x, y: module.column_stack([x, y[:, 0]]), [X, Y]),
    "pad": (lambda module, x: module.pad(x, 1, "constant"), [X]),
    "repeat": (lambda module, x: module.repeat(x, 2, axis=1), [X]),
    "tile": (lambda module, x: module.tile(x, (2, 3)), [X]),
    "partition": (lambda module, x: module.partition(x, 2), [V]),
    "select": (lambda module, x: module.select([x > 0.0], [x * x]), [X]),
    "linspace": (lambda module, x: module.linspace(x[0], x[1], 4), [V]),
    "array_split": (lambda module, x: module.array_split(x, 2)[0], [V]),
    "around": (lambda module, x: module.around(x, 1) * x, [X]),
    "gradient": (lambda module, x: module.gradient(x), [V]),
}


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_are_those_of_hips_autograd(name):
    """An engine with rules of its own (extra `bench`). Of the other functions here it has none."""
    autograd_numpy = pytest.importorskip("autograd.numpy")
    autograd = pytest.importorskip("autograd")
    f, arrays = COMPARED[name]

    def weighed(module, *xs):
        y = f(module, *xs)
        return module.sum(module.ravel(y) * np.cos(np.arange(1.0, y.size + 1.0)))

    at_all = tuple(range(len(arrays)))
    expected = autograd.grad(lambda *xs: weighed(autograd_numpy, *xs), at_all)(*arrays)
    leaves = [leaf(x) for x in arrays]
    for g, same in zip(grad(weighed(np, *leaves), leaves), expected):
        np.testing.assert_allclose(g, same, rtol=1e-11, atol=1e-14)

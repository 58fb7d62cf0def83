"""minigrad/functional.py against scipy.special, formulas in loops, and central differences.

Three independent ways to a gradient are compared: the kernel's hand-written rule (what `grad` runs), its twin, recorded
and differentiated by the tape (what `grad(create_graph=True)` runs), and central differences of the values. Inputs are
read-only arrays, so that a kernel which writes into one fails at once.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, special

from minigrad import Tensor, grad, no_grad
from minigrad import functional as F

few = settings(max_examples=40)
seeds = st.integers(0, 2**32 - 1)
rows, columns = st.integers(2, 9), st.integers(1, 7)
dtypes = st.sampled_from([np.float64, np.float32])


def frozen(*arrays):
    for a in arrays:
        for part in (a.data, a.indices, a.indptr) if sparse.issparse(a) else (a,):
            part.flags.writeable = False
    return arrays


def non_canonical(dense, rng, kind=sparse.csr_matrix):
    """The same matrix as CSR with every entry split in two, stored in any order, and some zeros stored."""
    indptr, indices, data = [0], [], []
    for row in dense:
        entries = [
            (j, part)
            for j in range(len(row))
            if row[j] or rng.random() < 0.2
            for part in (0.25, 0.75)
        ]
        for k in rng.permutation(len(entries)):
            indices.append(entries[k][0])
            data.append(row[entries[k][0]] * entries[k][1])
        indptr.append(len(indices))
    parts = np.array(data, dense.dtype), np.array(indices, np.int32), np.array(indptr, np.int32)
    return kind(parts, shape=dense.shape)


def slope(f, inputs, directions, h=1e-5):
    """Central difference of a scalar f along directions, of fourth order."""

    def at(k):
        return f(*[x + k * h * d for x, d in zip(inputs, directions)])

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)


def leaves(inputs):
    return [Tensor(x, requires_grad=True) for x in inputs]


def agree(f, inputs, rng, dtype=np.float64, value=None, numeric=True):
    """Value, first and second derivatives of f, a function of Tensors or arrays, by all ways there are.

    inputs: float64 arrays. value: what f(*inputs) must be. numeric: whether central differences exist there.
    """
    inputs = [x.astype(dtype) for x in inputs]
    exact = [x.astype(np.float64) for x in inputs]
    frozen(*inputs, *exact)
    tolerance = dict(rtol=1e-10, atol=1e-10) if dtype == np.float64 else dict(rtol=2e-4, atol=2e-5)
    plain, xs = f(*inputs), leaves(inputs)
    y = f(*xs)
    assert isinstance(y, Tensor) and y.dtype == plain.dtype == dtype and y.shape == plain.shape
    np.testing.assert_array_equal(y.data, plain)
    if value is not None:
        np.testing.assert_allclose(y.data, value, **tolerance)
    v = frozen(rng.normal(size=y.shape))[0]

    ours = grad(y, xs, v.astype(dtype))
    es = leaves(exact)
    by_twin = grad(f(*es), es, v, create_graph=True)
    for g, t, x in zip(ours, by_twin, inputs):
        assert type(g) is np.ndarray and g.dtype == dtype and g.shape == x.shape
        np.testing.assert_allclose(g, t.data, **tolerance)
    if not numeric:
        return
    u = [rng.normal(size=x.shape) for x in inputs]
    found = sum(np.sum(t.data * d) for t, d in zip(by_twin, u))
    expected = slope(lambda *xs: np.sum(f(*xs) * v), exact, u)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)

    # second order: the slope of the hand-written first derivative, against the twin differentiated twice
    w = [rng.normal(size=x.shape) for x in inputs]
    total = sum(np.sum(t * d) for t, d in zip(by_twin, w))
    found = sum(np.sum(h * d) for h, d in zip(grad(total, es), u))

    def first(*xs):
        ts = leaves(xs)
        return sum(np.sum(g * d) for g, d in zip(grad(f(*ts), ts, v), w))

    np.testing.assert_allclose(found, slope(first, exact, u), rtol=1e-6, atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- linear
def plain_linear(x, weight, bias):
    return np.array(
        [[sum(a * b for a, b in zip(row, w)) + c for w, c in zip(weight, bias)] for row in x]
    ).reshape(len(x), len(bias))


@few
@given(seeds, st.integers(0, 6), columns, columns, dtypes)
def test_linear_dense(seed, n, n_in, n_out, dtype):
    rng = np.random.default_rng(seed)
    x, weight, bias = (
        rng.normal(size=(n, n_in)),
        rng.normal(size=(n_out, n_in)),
        rng.normal(size=n_out),
    )
    agree(F.linear, [x, weight, bias], rng, dtype, plain_linear(x, weight, bias))


@few
@given(
    seeds,
    rows,
    columns,
    columns,
    dtypes,
    st.sampled_from([sparse.csr_matrix, sparse.csr_array]),
    st.booleans(),
)
def test_linear_csr(seed, n, n_in, n_out, dtype, kind, canonical):
    rng = np.random.default_rng(seed)
    dense = (rng.normal(size=(n, n_in)) * (rng.random((n, n_in)) < 0.4)).astype(dtype)
    x = kind(dense) if canonical else non_canonical(dense, rng, kind)
    frozen(x)
    weight, bias = rng.normal(size=(n_out, n_in)), rng.normal(size=n_out)
    if dtype == np.float64:
        agree(
            lambda w, b: F.linear(x, w, b),
            [weight, bias],
            rng,
            dtype,
            plain_linear(dense, weight, bias),
        )
    else:  # as dense, of which the test above says that it is right
        w, b = leaves([weight.astype(dtype), bias.astype(dtype)])
        y, expected = F.linear(x, w, b), F.linear(dense, w, b)
        v = rng.normal(size=y.shape).astype(dtype)
        assert y.dtype == dtype
        np.testing.assert_allclose(y.data, expected.data, rtol=1e-5, atol=1e-6)
        for g, e in zip(grad(y, [w, b], v), grad(expected, [w, b], v)):
            assert g.dtype == dtype
            np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3), (4, 5, 3), (2, 1, 4, 3)])
def test_linear_of_any_leading_axes(shape):
    """(2, 2, 3) with two outputs is where a kernel for matrices gives a gradient of the right shape, and wrong."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=shape), rng.normal(size=(2, 3)), rng.normal(size=2)
    expected = plain_linear(x.reshape(-1, 3), weight, bias).reshape(*shape[:-1], 2)
    agree(F.linear, [x, weight, bias], rng, value=expected)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.int64, np.uint16])
def test_linear_of_whole_numbers_keeps_the_dtype_of_the_weights(kind, dtype):
    rng = np.random.default_rng(0)
    dense = (rng.integers(0, 3, (4, 5)) > 1).astype(dtype)
    for weights in (np.float32, np.float64):
        w, b = leaves([rng.normal(size=(2, 5)).astype(weights), rng.normal(size=2).astype(weights)])
        y = F.linear(kind(dense), w, b)
        assert y.dtype == weights and grad(np.sum(y), w)[0].dtype == weights
        np.testing.assert_allclose(
            y.data, plain_linear(dense.astype(float), w.data, b.data), rtol=1e-5, atol=1e-6
        )


def test_linear_says_which_shapes_do_not_fit():
    with pytest.raises(ValueError, match=r"linear\(.*\[2, 3\].*\[4, 5\]"):
        F.linear(np.ones((2, 3)), Tensor(np.ones((4, 5)), True), np.ones(4))


def test_gradients_that_are_not_needed_are_left_out():
    w = Tensor(np.ones((2, 3)), requires_grad=True)
    y = F.linear(np.ones((4, 3)), w, np.ones(2))
    np.sum(y).backward()
    np.testing.assert_array_equal(w.grad, np.full((2, 3), 4.0))
    with no_grad():
        assert not F.linear(np.ones((4, 3)), w, np.ones(2)).requires_grad


# --------------------------------------------------------------------------------------------------------- activations
@few
@given(seeds, rows, columns, dtypes)
def test_relu(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, k))
    x += 0.01 * np.sign(x)  # the corner is not where slopes are compared
    agree(F.relu, [x], rng, dtype, [[max(a, 0.0) for a in row] for row in x])


@pytest.mark.parametrize("create_graph", [False, True])
def test_relu_at_zero_and_beyond_all_numbers(create_graph):
    x = Tensor(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-300]), requires_grad=True)
    y = F.relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, np.inf, 0, np.nan, 1e-300])
    np.testing.assert_array_equal(F.relu.twin(x.data), y.data)
    (g,) = grad(y, x, np.ones(6), create_graph=create_graph)
    np.testing.assert_array_equal(g.data if create_graph else g, [0, 0, 1, 0, 1, 1])


@few
@given(seeds, rows, dtypes)
def test_softplus(seed, n, dtype):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) * 5
    agree(F.softplus, [x], rng, dtype, [math.log1p(math.exp(a)) for a in x])
    t = Tensor(x, requires_grad=True)
    np.testing.assert_allclose(
        grad(np.sum(F.softplus(t)), t)[0], [1 / (1 + math.exp(-a)) for a in x], rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_does_not_overflow(dtype):
    x = Tensor(np.array([1e4, -1e4, 0.0, -60.0], dtype), requires_grad=True)
    y = F.softplus(x)
    np.testing.assert_allclose(y.data, [1e4, 0.0, math.log(2), math.exp(-60)], rtol=1e-6)
    np.testing.assert_allclose(grad(np.sum(y), x)[0], [1.0, 0.0, 0.5, math.exp(-60)], rtol=1e-6)


def polygamma_series(n, x, terms=2000):
    """(-1)^(n+1) n! sum 1/(x+k)^(n+1): the definition, the tail by Euler and Maclaurin."""
    end = x + terms
    total = math.fsum((x + k) ** -(n + 1.0) for k in range(terms))
    total += end**-n / n + 0.5 * end ** -(n + 1.0) + (n + 1) / 12 * end ** -(n + 2.0)
    return (-1) ** (n + 1) * math.factorial(n) * total


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_polygamma(n):
    x = np.array([0.05, 0.5, 1.0, 2.7, 10.0, 300.0])
    expected = [polygamma_series(n, a) for a in x]
    np.testing.assert_allclose(F.polygamma(n, x), expected, rtol=1e-11)
    t = Tensor(x, requires_grad=True)
    np.testing.assert_allclose(F.polygamma(n, t).data, expected, rtol=1e-11)
    (found,) = grad(np.sum(F.polygamma(n, t)), t)
    np.testing.assert_allclose(found, [polygamma_series(n + 1, a) for a in x], rtol=1e-11)
    agree(lambda x: F.polygamma(n, x), [np.array([0.5, 1.3, 4.0])], np.random.default_rng(0))
    agree(
        lambda x: F.polygamma(n, x),
        [np.array([0.5, 1.3, 4.0])],
        np.random.default_rng(0),
        np.float32,
    )


def test_polygamma_of_whole_numbers_is_not_cut_to_whole_numbers():
    expected = [polygamma_series(1, 1.0), polygamma_series(1, 2.0)]
    np.testing.assert_allclose(F.polygamma(1, np.array([1, 2])), expected, rtol=1e-11)
    np.testing.assert_allclose(F.polygamma(1, [1.0, 2.0]), expected, rtol=1e-11)
    np.testing.assert_allclose(F.polygamma(1, 2.0), expected[1], rtol=1e-11)


@few
@given(seeds, rows, columns, dtypes)
def test_dropout_multiplies_by_the_mask(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    mask = frozen(((rng.random((n, k)) < 0.5) / 0.5).astype(dtype))[0]
    x = rng.normal(size=(n, k))
    agree(
        lambda x: F.dropout(x, mask),
        [x],
        rng,
        dtype,
        [[a * b for a, b in zip(p, q)] for p, q in zip(x, mask)],
        numeric=dtype == np.float64,
    )
    t = Tensor(x.astype(dtype), requires_grad=True)
    v = rng.normal(size=(n, k)).astype(dtype)
    np.testing.assert_allclose(grad(F.dropout(t, mask), t, v)[0], v * mask)


# ------------------------------------------------------------------------------------------------------------- softmax
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)
ORACLES = {
    "softmax": (F.softmax, special.softmax),
    "log_softmax": (F.log_softmax, special.log_softmax),
}


@pytest.mark.parametrize("name", ORACLES)
@few
@given(data=st.data(), seed=seeds, shape=shapes, dtype=dtypes)
def test_softmax_and_log_softmax_along_any_axis(name, data, seed, shape, dtype):
    ours, scipys = ORACLES[name]
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=shape)
    agree(lambda x: ours(x, axis=axis), [x], rng, dtype, scipys(x, axis=axis))
    np.testing.assert_array_equal(ours(x), ours(x, axis=-1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ORACLES)
@few
@given(seed=seeds)
def test_softmax_of_extreme_logits(name, dtype, seed):
    ours, scipys = ORACLES[name]
    rng = np.random.default_rng(seed)
    x = rng.choice([1e4, -1e4, 1e4 + 1, 0.0, 30.0, -np.inf], (4, 6)).astype(dtype)
    x[:, 0] = rng.choice([1e4, -1e4, 0.0], 4)  # no row of -inf alone
    t = Tensor(frozen(x)[0], requires_grad=True)
    y = ours(t)
    exact = x.astype(np.float64)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(y.data, scipys(exact, axis=-1), rtol=tolerance, atol=tolerance)
    p, v = special.softmax(exact, axis=-1), rng.normal(size=x.shape)
    jacobians = [
        np.diag(row) - np.outer(row, row)
        if name == "softmax"
        else np.eye(6) - np.outer(np.ones(6), row)
        for row in p
    ]
    expected = [g @ j for g, j in zip(v, jacobians)]
    for create_graph in (False, True):
        (g,) = grad(y, t, v.astype(dtype), create_graph=create_graph)
        np.testing.assert_allclose(g.data if create_graph else g, expected, rtol=1e-5, atol=1e-5)


@few
@given(data=st.data(), seed=seeds, shape=shapes, dtype=dtypes, keepdims=st.booleans())
def test_logsumexp(data, seed, shape, dtype, keepdims):
    n = len(shape)
    axis = data.draw(
        st.one_of(
            st.none(),
            st.integers(-n, n - 1),
            st.lists(st.integers(0, n - 1), min_size=1, unique=True).map(tuple),
        )
    )
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=shape)
    agree(
        lambda x: F.logsumexp(x, axis=axis, keepdims=keepdims),
        [x],
        rng,
        dtype,
        special.logsumexp(x, axis=axis, keepdims=keepdims),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logsumexp_of_extremes(dtype):
    inf = np.inf
    x = np.array(
        [[1e4, 1e4, -1e4], [-1e4, -1e4, -inf], [0, -inf, -inf], [-inf, -inf, -inf], [inf, 0, -inf]],
        dtype,
    )
    with np.errstate(all="raise", under="ignore"):  # not even a warning, where a value is right
        found = F.logsumexp(x[:4], axis=1)
    np.testing.assert_allclose(found, [1e4 + math.log(2), -1e4 + math.log(2), 0, -inf], rtol=1e-6)
    assert found.dtype == dtype
    np.testing.assert_array_equal(
        F.logsumexp(x, axis=1), special.logsumexp(x.astype(float), axis=1).astype(dtype)
    )
    assert np.isnan(F.logsumexp(np.array([np.nan, 1.0], dtype)))
    t = Tensor(x[:3], requires_grad=True)
    expected = [[0.5, 0.5, 0], [0.5, 0.5, 0], [1, 0, 0]]
    np.testing.assert_allclose(grad(np.sum(F.logsumexp(t, axis=1)), t)[0], expected, rtol=1e-6)


def test_log_softmax_is_exact_where_softmax_rounds_to_zero():
    x = np.array([0.0, -800.0])
    assert F.softmax(x)[1] == 0 and F.log_softmax(x)[1] == -800


# ------------------------------------------------------------------------------------------------------- normalisation
def plain_batch_norm(x, weight, bias, eps):
    out = np.empty_like(x)
    for j in range(x.shape[1]):
        mean = math.fsum(x[:, j]) / len(x)
        var = math.fsum((a - mean) ** 2 for a in x[:, j]) / len(x)
        out[:, j] = [(a - mean) / math.sqrt(var + eps) * weight[j] + bias[j] for a in x[:, j]]
    return out


@few
@given(seeds, rows, columns, dtypes, st.sampled_from([1e-5, 1e-3]))
def test_batch_norm(seed, n, k, dtype, eps):
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.normal(1.0, 2.0, (n, k)), rng.normal(size=k), rng.normal(size=k)
    x[0] += 1.0  # no column of equal numbers
    x[1] -= 1.0
    agree(
        lambda *xs: F.batch_norm(*xs, eps)[0],
        [x, weight, bias],
        rng,
        dtype,
        plain_batch_norm(x, weight, bias, eps),
        numeric=np.all(x.std(axis=0) > 0.1),
    )
    for inputs in ([x, weight, bias], leaves([x, weight, bias])):
        _, mean, var = F.batch_norm(*inputs, eps)
        assert type(mean) is type(var) is np.ndarray
        np.testing.assert_allclose(mean, [math.fsum(c) / n for c in x.T], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(var, np.var(x, axis=0), rtol=1e-10)


def test_batch_norm_of_a_constant_column_is_its_bias():
    x = Tensor(np.full((3, 2), 7.0), requires_grad=True)
    y, mean, var = F.batch_norm(x, np.ones(2), np.array([1.0, 2.0]))
    np.testing.assert_array_equal(y.data, [[1, 2]] * 3)
    np.testing.assert_array_equal(var, [0, 0])
    assert np.all(np.isfinite(grad(y, x, np.arange(6.0).reshape(3, 2))[0]))


@few
@given(seeds, st.lists(st.integers(1, 4), max_size=2), st.integers(2, 6), dtypes)
def test_layer_norm(seed, lead, k, dtype):
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.normal(1.0, 2.0, (*lead, k)), rng.normal(size=k), rng.normal(size=k)
    x[..., 0] += 2.0
    x[..., 1] -= 2.0
    flat = x.reshape(-1, k)
    expected = (
        np.array([plain_batch_norm(row[:, None], [1.0], [0.0], 1e-5)[:, 0] for row in flat])
        * weight
        + bias
    )
    agree(
        F.layer_norm,
        [x, weight, bias],
        rng,
        dtype,
        expected.reshape(x.shape),
        numeric=np.all(flat.std(axis=1) > 0.5),
    )


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (4, 3, 5), (5,)])
def test_normalisation_refuses_a_width_that_would_broadcast(shape):
    x, weight = np.ones(shape), Tensor(np.ones(5), requires_grad=True)
    with pytest.raises(ValueError, match=r"batch_norm.*shape"):
        F.batch_norm(x, weight, np.zeros(5))
    if shape[-1] != 5:
        with pytest.raises(ValueError, match=r"layer_norm.*shape"):
            F.layer_norm(x, weight, np.zeros(5))


# -------------------------------------------------------------------------------------------------------------- losses
@few
@given(seeds, rows, columns, dtypes)
def test_mse(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, k)), rng.normal(size=(n, k))
    expected = math.fsum((p - q) ** 2 for p, q in zip(a.ravel(), b.ravel())) / (n * k)
    agree(F.mse, [a, b], rng, dtype, expected)
    t = Tensor(a, requires_grad=True)
    np.testing.assert_allclose(grad(F.mse(t, b), t)[0], 2 * (a - b) / (n * k), rtol=1e-12)


def test_mse_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"mse.*\(4, 1\).*\(4,\)"):
        F.mse(Tensor(np.ones((4, 1)), True), np.ones(4))


@few
@given(seeds, rows, st.integers(1, 6), dtypes)
def test_cross_entropy_of_classes(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(n, k)), frozen(rng.integers(0, k, n))[0]
    each = [
        math.log(math.fsum(math.exp(a) for a in row)) - row[c] for row, c in zip(logits, target)
    ]
    agree(lambda x: F.cross_entropy(x, target), [logits], rng, dtype, math.fsum(each) / n)
    t = Tensor(logits, requires_grad=True)
    hot = np.array([[c == j for j in range(k)] for c in target])
    expected = (special.softmax(logits, axis=1) - hot) / n
    np.testing.assert_allclose(
        grad(F.cross_entropy(t, target), t)[0], expected, rtol=1e-10, atol=1e-12
    )


@few
@given(seeds, rows, st.integers(1, 6), dtypes)
def test_cross_entropy_of_weights(seed, n, k, dtype):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(size=(n, k)), frozen(rng.gamma(1.0, size=(n, k)).astype(dtype))[0]
    each = [
        math.fsum(
            w * (math.log(math.fsum(math.exp(a) for a in row)) - b) for w, b in zip(weights, row)
        )
        for row, weights in zip(logits, target.astype(float))
    ]
    if dtype == np.float64:
        agree(lambda x: F.cross_entropy(x, target), [logits], rng, dtype, math.fsum(each) / n)
    t = Tensor(logits.astype(dtype), requires_grad=True)
    loss = F.cross_entropy(t, target)
    assert loss.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(loss.item(), math.fsum(each) / n, rtol=tolerance, atol=tolerance)
    expected = (special.softmax(logits, axis=1) * target.sum(axis=1, keepdims=True) - target) / n
    np.testing.assert_allclose(grad(loss, t)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [[0, 1, 2], [[0.5, 0.5]] * 4, np.zeros((4, 3, 1))])
def test_cross_entropy_refuses_targets_of_another_shape(target):
    with pytest.raises(ValueError, match="cross_entropy"):
        F.cross_entropy(Tensor(np.zeros((4, 3)), True), np.array(target))


@pytest.mark.parametrize("bad", [3, -1])
def test_cross_entropy_refuses_classes_that_do_not_exist(bad):
    with pytest.raises(IndexError):
        F.cross_entropy(Tensor(np.zeros((2, 3)), True), np.array([0, bad]))


# ---------------------------------------------------------------- classes of weight 0, and what lies at the edges of logits
def test_weighted_log_softmax_is_the_sum_over_classes():
    rng = np.random.default_rng(0)
    weights, logits = rng.gamma(1.0, size=(4, 3)), rng.normal(size=(4, 3))
    expected = np.sum(weights * special.log_softmax(logits, axis=1), axis=1)
    for dtype in (np.float64, np.float32):
        agree(F.weighted_log_softmax, [weights, logits], rng, dtype, expected)
    agree(lambda x: F.weighted_log_softmax(weights[0], x), [logits], rng)
    agree(lambda x: F.weighted_log_softmax(weights, x), [logits[0]], rng)
    found = F.weighted_log_softmax(np.eye(3, dtype=int), Tensor(np.zeros((3, 3), np.float32), True))
    assert found.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_with_a_class_that_is_impossible(dtype):
    """0 log 0 = 0: as without that class."""
    logits = np.array([[0.0, -np.inf, 2.0], [1.0, -np.inf, 0.5]], dtype)
    target = np.array([[1.0, 0, 0], [0.25, 0, 0.75]], dtype)
    expected = -np.mean(
        np.sum(target * special.log_softmax(logits[:, ::2], axis=1)[:, [0, 0, 1]], axis=1)
    )
    p = special.softmax(logits.astype(float), axis=1)
    for create_graph in (False, True):
        t = Tensor(logits, requires_grad=True)
        loss = F.cross_entropy(t, target)
        np.testing.assert_allclose(loss.data, expected, rtol=1e-6)
        (g,) = grad(loss, t, create_graph=create_graph)
        np.testing.assert_allclose(
            g.data if create_graph else g, (p - target) / 2, rtol=1e-5, atol=1e-7
        )
    t = Tensor(logits, requires_grad=True)
    classes = F.cross_entropy(t, np.array([0, 2]))
    np.testing.assert_allclose(
        classes.data, -special.log_softmax(logits, axis=1)[[0, 1], [0, 2]].mean(), rtol=1e-6
    )
    assert np.all(np.isfinite(grad(classes, t)[0]))


def test_softmax_of_no_classes_and_of_a_number():
    for name in ("softmax", "log_softmax"):
        assert getattr(F, name)(np.zeros((2, 0))).shape == (2, 0)
        with pytest.raises(ValueError, match=f"{name}.*must have an axis"):
            getattr(F, name)(2.0)
    np.testing.assert_array_equal(F.logsumexp(np.zeros((2, 0)), axis=1), [-np.inf, -np.inf])


# ------------------------------------------------------------------------------------------ kinds of arguments, and errors
SQUARE = np.array([[1.0, 0, 2], [0, 3, 0], [0, 0, -4]], np.float32)
ONES = np.ones(3, np.float32)
OF_DENSE_ARRAYS = {
    "relu": F.relu,
    "softplus": F.softplus,
    "polygamma": lambda x: F.polygamma(1, x),
    "dropout: mask": lambda x: F.dropout(SQUARE, x),
    "logsumexp": F.logsumexp,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "weighted_log_softmax": lambda x: F.weighted_log_softmax(SQUARE, x),
    "batch_norm": lambda x: F.batch_norm(x, ONES, ONES),
    "layer_norm": lambda x: F.layer_norm(x, ONES, ONES),
    "mse: prediction": lambda x: F.mse(x, SQUARE),
    "mse: target": lambda x: F.mse(SQUARE, x),
    "cross_entropy: logits": lambda x: F.cross_entropy(x, np.array([0, 1, 2])),
    "cross_entropy: target": lambda x: F.cross_entropy(SQUARE, x),
}


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.coo_array])
@pytest.mark.parametrize("name", OF_DENSE_ARRAYS)
def test_a_sparse_matrix_is_refused_by_name(name, kind):
    with pytest.raises(TypeError, match=f"{name.split(':')[0]}.*sparse matrix.*toarray"):
        OF_DENSE_ARRAYS[name](kind(SQUARE))


KINDS_OF_SPARSE = [
    sparse.csr_matrix,
    sparse.csr_array,
    sparse.csc_matrix,
    sparse.coo_array,
    sparse.lil_matrix,
]


@pytest.mark.parametrize("kind", KINDS_OF_SPARSE)
def test_dropout_of_a_sparse_matrix_is_elementwise_and_sparse(kind):
    """Square matrices of the older kind were multiplied as matrices; so were other shapes that fit."""
    mask = np.array([[2, 0, 2], [0, 2, 2], [2, 2, 0]], np.float32)
    y = F.dropout(kind(SQUARE), mask)
    assert sparse.issparse(y) and y.format == "csr" and y.dtype == np.float32
    assert isinstance(y, sparse.spmatrix) == issubclass(kind, sparse.spmatrix)
    np.testing.assert_array_equal(y.toarray(), SQUARE * mask)
    twice = non_canonical(SQUARE, np.random.default_rng(0))
    np.testing.assert_allclose(F.dropout(twice, mask).toarray(), SQUARE * mask)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3), (2, 3), ()])
def test_dropout_refuses_a_mask_of_another_shape(kind, shape):
    with pytest.raises(ValueError, match=r"dropout: x has shape \(3, 3\), mask .* the same"):
        F.dropout(kind(SQUARE), np.ones(shape))


def test_lists_and_whole_numbers_are_computed_in_float64():
    """In uint8, 1 - 2 is 255, and 16 squared is 0; in int8, logaddexp would be of halves."""
    a, b = [[0, 1], [2, 16]], [[16, 1], [2, 0]]
    p = special.softmax(np.array(a, float), axis=1)
    cases = [
        (F.softmax, p),
        (F.log_softmax, np.log(p)),
        (F.logsumexp, special.logsumexp(a)),
        (F.softplus, np.log1p(np.exp(np.array(a, float)))),
        (lambda x: F.mse(x, type(x)(b) if isinstance(x, list) else np.array(b, x.dtype)), 128.0),
        (lambda x: F.cross_entropy(x, [1, 0]), -np.log(p[[0, 1], [1, 0]]).mean()),
        (lambda x: F.cross_entropy(x, [[0, 1], [1, 0]]), -np.log(p[[0, 1], [1, 0]]).mean()),
        (lambda x: F.linear(x, [[1.0, 2.0]], [0.5]), [[2.5], [34.5]]),
        (lambda x: F.layer_norm(x, [1.0, 1.0], [0.0, 0.0], 0.0), [[-1, 1], [-1, 1]]),
        (lambda x: F.batch_norm(x, [1.0, 1.0], [0.0, 0.0], 0.0)[0], [[-1, -1], [1, 1]]),
        (lambda x: F.dropout(x, [[0.0, 2.0], [2.0, 0.0]]), [[0, 2], [4, 0]]),
    ]
    for kind in (list, *map(np.dtype, ("uint8", "int8", "int64"))):
        x = a if kind is list else np.array(a, kind)
        for function, expected in cases:
            found = function(x)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_array_equal(F.relu([[-1, 2]]), [[0, 2]])
    t = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    np.testing.assert_allclose(grad(F.mse(t, [0.0, 4.0]), t)[0], [1, -2])


ones = np.ones
WRONG = {
    "linear: bias that would broadcast": (
        lambda: F.linear(ones((2, 3)), Tensor(ones((4, 3)), True), ones(1)),
        r"linear\(float64\[2, 3\], float64\[4, 3\], float64\[1\]\): .*bias \(n_out,\)",
    ),
    "linear: bias of a row each": (
        lambda: F.linear(ones((2, 3)), ones((4, 3)), ones((2, 4))),
        r"linear\(.*bias \(n_out,\)",
    ),
    "linear: a vector of weights": (lambda: F.linear(ones((2, 3)), ones(3), ones(1)), r"linear\(.*weight \(n_out, n_in\)"),
    "linear: a number": (lambda: F.linear(2.0, ones((4, 3)), ones(4)), r"linear\(2.0.*x must have shape \(..., n_in\)"),
    "batch_norm: bias": (
        lambda: F.batch_norm(ones((4, 3)), ones(3), ones((4, 3))),
        r"batch_norm: x has shape \(4, 3\), weight \(3,\) and bias \(4, 3\)",
    ),
    "layer_norm: bias": (lambda: F.layer_norm(ones((4, 3)), ones(3), ones(1)), r"layer_norm: .* and bias \(1,\)"),
    "mse: list": (lambda: F.mse([1.0, 2.0], [1.0]), r"mse: prediction has shape \(2,\), target \(1,\)"),
    "cross_entropy: one row": (lambda: F.cross_entropy(ones(3), 1), r"cross_entropy: logits must be \(n, k\).*not \(3,\).*newaxis"),
    "cross_entropy: three axes": (lambda: F.cross_entropy(ones((2, 3, 4)), [0, 1]), r"cross_entropy: logits must be \(n, k\)"),
    "cross_entropy: too few classes": (lambda: F.cross_entropy(ones((2, 3)), [0]), r"cross_entropy: logits \(2, 3\) need a target of \(2,\)"),
    "polygamma": (lambda: F.polygamma(1.5, ones(2)), "polygamma: n must be a whole number >= 1, not 1.5"),
    "digamma": (lambda: F.polygamma(0, ones(2)), "polygamma: n must .*digamma"),
    "weighted_log_softmax": (lambda: F.weighted_log_softmax(ones((2, 1)), ones((2, 3))), "weighted_log_softmax.*same number of classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit_are_refused_by_name(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("target", [[0.0, 1.0], [True, False], Tensor([0.0, 1.0]), [np.nan, 1.0]])
def test_cross_entropy_refuses_classes_that_are_not_integers(target):
    with pytest.raises(
        TypeError, match=r"cross_entropy: a target of shape \(2,\).*must be integers"
    ):
        F.cross_entropy(Tensor(np.zeros((2, 3)), True), target)


def test_what_is_no_numbers_is_refused():
    for function in (F.softplus, F.logsumexp, F.softmax, lambda x: F.mse(x, x)):
        for wrong in ("text", None, np.ma.array([1.0], mask=[True])):
            with pytest.raises(TypeError):
                function(wrong)


@pytest.mark.parametrize("n, n_in, n_out", [(4, 0, 3), (4, 3, 0), (0, 3, 2), (0, 0, 0)])
def test_linear_of_nothing_goes_backward_too(n, n_in, n_out):
    """An empty sum is 0: y is the bias, whose gradient is a one for each row."""
    ts = [
        Tensor(np.ones(shape), requires_grad=True) for shape in ((n, n_in), (n_out, n_in), (n_out,))
    ]
    y = F.linear(*ts)
    np.testing.assert_array_equal(y.data, np.full((n, n_out), n_in + 1.0))
    found = grad(np.sum(y), ts)
    for g, expected in zip(
        found, (np.full((n, n_in), n_out), np.full((n_out, n_in), n), np.full(n_out, n))
    ):
        np.testing.assert_array_equal(g, expected)


def test_eps_may_be_numpys_number():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weight, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
    for of in (np.array, lambda x: Tensor(x, requires_grad=True)):
        for found, expected in (
            (
                F.batch_norm(of(x), weight, bias, np.float64(1e-3))[0],
                F.batch_norm(of(x), weight, bias, 1e-3)[0],
            ),
            (
                F.layer_norm(of(x), weight, bias, np.float64(1e-3)),
                F.layer_norm(of(x), weight, bias, 1e-3),
            ),
        ):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(
                getattr(found, "data", found), getattr(expected, "data", expected)
            )

"""minigrad/distributions.py against scipy.stats, sums and integrals over the support, and moments of draws."""

import math
import re
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, special, stats

from minigrad import Tensor, grad
from minigrad import distributions as D

few = settings(max_examples=60)
N_DRAWS = 200_000
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)  # Gauss's integral over (-1, 1)


def reals(low, high):
    return st.floats(low, high, allow_subnormal=False)


def tensor(x):
    return Tensor(np.array(x, np.float64), requires_grad=True)


def zinb_logpmf(x, mu, theta, zero):
    nb = stats.nbinom(theta, theta / (theta + mu))
    return np.log(zero * (x == 0) + (1 - zero) * nb.pmf(x))


# One entry a distribution: how to make it from real parameters, their ranges, scipy's log-density, and its support: all
# of it but for 1e-12 of the mass, or None where it is the real line.
def counts_up_to(mean, variance):
    return np.arange(0.0, 60 + mean + 60 * math.sqrt(variance))


CASES = {
    "Normal": (
        lambda a, b: D.Normal(a, np.exp(b)),
        [(-5, 5), (-2, 2)],
        lambda x, a, b: stats.norm(a, np.exp(b)).logpdf(x),
        None,
    ),
    "Bernoulli": (
        D.Bernoulli,
        [(-6, 6)],
        lambda x, a: stats.bernoulli(special.expit(a)).logpmf(x),
        lambda a: np.array([0.0, 1.0]),
    ),
    "Poisson": (
        D.Poisson,
        [(-4, 4)],
        lambda x, a: stats.poisson(np.exp(a)).logpmf(x),
        lambda a: counts_up_to(np.exp(a), np.exp(a)),
    ),
    "NegativeBinomial": (
        D.NegativeBinomial,
        [(-3, 3), (-1, 4)],
        lambda x, a, b: stats.nbinom(np.exp(b), 1 / (1 + np.exp(a - b))).logpmf(x),
        lambda a, b: counts_up_to(np.exp(a), np.exp(a) + np.exp(2 * a - b)),
    ),
    "ZeroInflatedNegativeBinomial": (
        D.ZeroInflatedNegativeBinomial,
        [(-3, 3), (-1, 4), (-4, 4)],
        lambda x, a, b, c: zinb_logpmf(x, np.exp(a), np.exp(b), special.expit(c)),
        lambda a, b, c: counts_up_to(np.exp(a), np.exp(a) + np.exp(2 * a - b)),
    ),
}
POINTS = {
    "Normal": [(0.3, -0.7)],
    "Bernoulli": [(0.4,), (-2.0,)],
    "Poisson": [(1.2,), (-1.0,)],
    "NegativeBinomial": [(1.5, 0.7), (0.0, 3.0)],
    "ZeroInflatedNegativeBinomial": [(1.5, 0.7, -0.5), (0.0, 2.0, 1.0)],
}
WHICH = [(name, point) for name, points in POINTS.items() for point in points]


@pytest.mark.parametrize("name", CASES)
@few
@given(data=st.data())
def test_log_prob_is_scipys(name, data):
    make, ranges, logpmf, support = CASES[name]
    parameters = [data.draw(reals(*r)) for r in ranges]
    x = np.array([-3.0, 0.0, 0.5, 7.0]) if support is None else support(*parameters)[:40]
    expected = logpmf(x, *parameters)
    arrays = [np.array(p) for p in parameters]
    np.testing.assert_allclose(make(*arrays).log_prob(x), expected, rtol=1e-9, atol=1e-9)
    log_p = make(*map(tensor, parameters)).log_prob(x)
    assert isinstance(log_p, Tensor)
    np.testing.assert_allclose(log_p.data, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25)
@given(data=st.data())
def test_gradients_of_log_prob_are_central_differences_of_scipys(name, data):
    make, ranges, logpmf, support = CASES[name]
    parameters = [data.draw(reals(*r)) for r in ranges]
    x = np.array([-3.0, 0.0, 0.5, 7.0]) if support is None else support(*parameters)[:12]
    ts = [tensor(np.full(len(x), p)) for p in parameters]
    v = np.cos(np.arange(len(x)))
    h = 1e-4
    for i, g in enumerate(grad(make(*ts).log_prob(x), ts, v)):
        steps = [
            logpmf(x, *[p + k * h * (i == j) for j, p in enumerate(parameters)])
            for k in (-2, -1, 1, 2)
        ]
        slope = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
        np.testing.assert_allclose(g, v * slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
@few
@given(data=st.data())
def test_probabilities_sum_to_one_and_give_mean_and_variance(name, data):
    make, ranges, _, support = CASES[name]
    parameters = [np.array(data.draw(reals(*r))) for r in ranges]
    distribution = make(*parameters)
    if support is None:
        x, weight = (
            distribution.loc + 12 * distribution.scale * NODES,
            12 * distribution.scale * WEIGHTS,
        )
    else:
        x, weight = support(*parameters), 1.0
    p = weight * np.exp(distribution.log_prob(x))
    mean = np.sum(p * x)
    variance = np.sum(p * (x - mean) ** 2)
    np.testing.assert_allclose(
        [np.sum(p), mean, variance],
        [1, distribution.mean, distribution.variance],
        rtol=1e-7,
        atol=1e-12,
    )
    of_tensors = make(*map(tensor, parameters))
    assert isinstance(of_tensors.mean, Tensor) and isinstance(of_tensors.variance, Tensor)
    found = [of_tensors.mean.item(), of_tensors.variance.item()]
    np.testing.assert_allclose(found, [mean, variance], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name, point", WHICH)
def test_draws_have_the_right_mean_spread_and_probabilities(name, point):
    """Five standard errors, which must be less than 3 % of sigma: a sigma that is 3 % off would be noticed."""
    make, _, logpmf, support = CASES[name]
    distribution = make(*[np.full(N_DRAWS, p) for p in point])
    draws = distribution.sample(np.random.default_rng(0))
    assert type(draws) is np.ndarray and draws.shape == (N_DRAWS,)
    if support is None:
        mean, variance, fourth = point[0], np.exp(2 * point[1]), 3 * np.exp(4 * point[1])
        assert stats.kstest((draws - mean) / np.sqrt(variance), "norm").pvalue > 1e-4
    else:
        x = support(*point)
        p = np.exp(logpmf(x, *point))
        mean = np.sum(p * x)
        variance, fourth = np.sum(p * (x - mean) ** 2), np.sum(p * (x - mean) ** 4)
        assert np.all(np.isin(draws, x))
        for k in x[:4]:
            p = np.exp(logpmf(k, *point))
            assert abs(np.mean(draws == k) - p) < 5 * np.sqrt(p * (1 - p) / N_DRAWS) + 1e-12
    error_of_mean = np.sqrt(variance / N_DRAWS)
    error_of_sigma = np.sqrt((fourth - variance**2) / N_DRAWS) / (2 * np.sqrt(variance))
    assert 5 * error_of_mean < 0.03 * np.sqrt(variance) and 5 * error_of_sigma < 0.03 * np.sqrt(
        variance
    )
    assert abs(draws.mean() - mean) < 5 * error_of_mean
    assert abs(draws.std() - np.sqrt(variance)) < 5 * error_of_sigma + 1e-12


@pytest.mark.parametrize("name, point", WHICH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_shapes_and_generators(name, point, dtype):
    make, _, logpmf, support = CASES[name]
    arrays = [np.full((3, 1) if i == 0 else (4,), p, dtype) for i, p in enumerate(point)]
    shape = np.broadcast_shapes(*[a.shape for a in arrays])
    x = np.ones(shape, dtype)
    for a in arrays:
        a.flags.writeable = False
    for parameters in (arrays, [Tensor(a, requires_grad=True) for a in arrays]):
        d = make(*parameters)
        for value in (d.log_prob(x), d.mean, d.variance, d.sample(np.random.default_rng(1))):
            assert value.dtype == dtype and value.shape == shape
        assert type(d.sample(np.random.default_rng(1))) is np.ndarray
        np.testing.assert_array_equal(
            d.sample(np.random.default_rng(1)), d.sample(np.random.default_rng(1))
        )
        assert np.any(
            d.sample(np.random.default_rng(1)) != d.sample(np.random.default_rng(2))
        ) or shape == (3, 1)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(
        make(*arrays).log_prob(x), np.broadcast_to(logpmf(1.0, *point), shape), rtol=tolerance
    )


@pytest.mark.parametrize("name, point", WHICH)
def test_numbers_are_parameters_too(name, point):
    make, *_ = CASES[name]
    for parameters in (point, [np.array(p) for p in point]):
        d = make(*parameters)
        assert np.shape(d.sample(np.random.default_rng(0))) == ()
        assert (
            float(d.sample(np.random.default_rng(0)))
            == make(*[np.full(1, p) for p in point]).sample(np.random.default_rng(0)).item()
        )


def test_a_number_takes_on_the_dtype_of_what_it_meets():
    f = np.ones(3, np.float32)
    standard = D.Normal(0.0, 1.0)
    for found in (
        standard.log_prob(f),
        D.Normal(f, 1.0).log_prob(f),
        D.Normal(0.0, f).log_prob(f),
        D.Normal(f, 2.0).mean,
        D.Normal(f, 2.0).variance,
        D.Normal(f, 2.0).sample(np.random.default_rng(0)),
        D.Normal(0.0, f).sample(np.random.default_rng(0)),
        D.kl_divergence(D.Normal(f, f), standard),
        D.kl_divergence(standard, D.Normal(f, f)),
        D.NegativeBinomial(f, 0.5).log_prob(f),
        D.NegativeBinomial(f, 0.5).sample(np.random.default_rng(0)),
        D.ZeroInflatedNegativeBinomial(f, 0.5, 0.5).sample(np.random.default_rng(0)),
    ):
        assert found.dtype == np.float32


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.bool_])
@pytest.mark.parametrize("of", [np.asarray, lambda a: Tensor(a, requires_grad=True)])
def test_what_log_prob_is_asked_about_does_not_change_the_dtype(kind, of):
    """float32 parameters give float32, whatever the dtype of x; the values are scipy's."""
    x = np.array([[0, 1, 0], [1, 0, 0]]).astype(kind)
    a = np.array([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], np.float32)
    log_p = special.log_softmax(a.astype(np.float64), axis=1)
    cases = [
        (D.Normal(of(a), 2.0), stats.norm(a, 2.0).logpdf(x)),
        (D.Normal(0.0, of(np.exp(a))), stats.norm(0.0, np.exp(a)).logpdf(x)),
        (D.Bernoulli(of(a)), stats.bernoulli(special.expit(a)).logpmf(x)),
        (D.Categorical(of(a)), np.sum(x * log_p, axis=1)),
        (D.Poisson(of(a)), stats.poisson(np.exp(a)).logpmf(x)),
    ]
    for distribution, expected in cases:
        found = distribution.log_prob(x)
        assert found.dtype == np.float32
        found = found.data if isinstance(found, Tensor) else found
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert D.Normal(of(a), 2.0).log_prob(np.float64(1.0)).dtype == np.float32


def test_a_draw_in_another_dtype_passes_its_gradient():
    """d log p / dx = -(x - loc) / scale^2, in the dtype of x."""
    x = Tensor(np.array([0.5, 3.0]), requires_grad=True)
    log_p = D.Normal(np.ones(2, np.float32), 2.0).log_prob(x)
    assert log_p.dtype == np.float32
    (slope,) = grad(log_p, x, np.ones(2, np.float32))
    np.testing.assert_allclose(slope, [0.125, -0.5])


# -------------------------------------------------------------------------------------------------------------- Normal
def test_normal_far_out_and_very_narrow():
    np.testing.assert_allclose(
        D.Normal(0.0, 1.0).log_prob(np.array([1e3])), -0.5e6 - 0.5 * math.log(2 * math.pi)
    )
    narrow = D.Normal(np.array(0.0), np.array(1e-100))
    np.testing.assert_allclose(
        narrow.log_prob(np.array(0.0)), 100 * math.log(10) - 0.5 * math.log(2 * math.pi)
    )


@few
@given(reals(-3, 3), reals(0.1, 3), reals(-3, 3))
def test_rsample_and_its_gradient(loc, scale, eps):
    t_loc, t_scale, noise = tensor([loc]), tensor([scale]), np.array([eps])
    z = D.Normal(t_loc, t_scale).rsample(eps=noise)
    np.testing.assert_allclose(z.data, [loc + scale * eps])
    g_loc, g_scale = grad(np.sum(z**3), [t_loc, t_scale])
    np.testing.assert_allclose([g_loc, g_scale], [3 * z.data**2, 3 * z.data**2 * eps], rtol=1e-12)


def test_gradient_of_an_expectation_through_rsample():
    """d E[z^2] / d(loc, scale) = (2 loc, 2 scale)."""
    loc, scale = tensor(np.full(N_DRAWS, 0.7)), tensor(np.full(N_DRAWS, 1.3))
    z = D.Normal(loc, scale).rsample(rng=np.random.default_rng(0))
    assert isinstance(z, Tensor)
    g_loc, g_scale = grad(np.sum(z * z), [loc, scale])
    np.testing.assert_allclose([g_loc.mean(), g_scale.mean()], [1.4, 2.6], rtol=0.03)


def test_rsample_wants_either_noise_or_a_generator():
    d, rng = D.Normal(np.zeros(2), np.ones(2)), np.random.default_rng(0)
    for wrong in ({}, dict(eps=np.zeros(2), rng=rng)):
        with pytest.raises(TypeError, match="rsample"):
            d.rsample(**wrong)


def test_whole_numbers_as_location():
    d = D.Normal(np.array([0, 100]), np.array([1, 2]))
    assert d.sample(np.random.default_rng(0)).dtype == np.float64
    np.testing.assert_allclose(
        d.log_prob(np.array([0.5, 99.0])), stats.norm([0, 100], [1, 2]).logpdf([0.5, 99.0])
    )


# ------------------------------------------------------------------------------------------- Bernoulli and Categorical
@few
@given(reals(-1e4, 1e4), reals(0, 1))
def test_bernoulli_of_any_logits_and_fractions(logits, x):
    stable = [min(s * logits, 0.0) - math.log1p(math.exp(-abs(logits))) for s in (1, -1)]
    expected = (x * stable[0] if x else 0.0) + ((1 - x) * stable[1] if x < 1 else 0.0)
    found = D.Bernoulli(np.array([logits])).log_prob(np.array([x]))
    np.testing.assert_allclose(found, [expected], rtol=1e-9, atol=1e-9)


@few
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_categorical(k, seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(4, k))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for one in range(k):
        x = np.zeros((4, k))
        x[:, one] = 1.0
        expected = [
            stats.multinomial(1, row / row.sum()).logpmf(h.astype(int)) for row, h in zip(p, x)
        ]
        np.testing.assert_allclose(
            D.Categorical(logits).log_prob(x), expected, rtol=1e-8, atol=1e-8
        )
    np.testing.assert_allclose(D.Categorical(logits).mean, p, rtol=1e-12)
    np.testing.assert_allclose(D.Categorical(logits).variance, p * (1 - p), rtol=1e-9, atol=1e-15)
    weights = rng.gamma(1.0, size=(4, k))
    expected = [math.fsum(w * math.log(q) for w, q in zip(a, b)) for a, b in zip(weights, p)]
    np.testing.assert_allclose(
        D.Categorical(tensor(logits)).log_prob(weights).data, expected, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_of_a_categorical_are_one_hot_and_as_frequent_as_they_should_be(dtype):
    p = np.array([0.05, 0.6, 0.0, 0.1, 0.25])
    with np.errstate(divide="ignore"):
        logits = np.broadcast_to(np.log(p).astype(dtype), (N_DRAWS, 5))
    draws = D.Categorical(logits).sample(np.random.default_rng(0))
    assert draws.dtype == dtype and draws.shape == (N_DRAWS, 5) and np.all(draws.sum(axis=1) == 1)
    assert set(np.unique(draws)) == {0.0, 1.0}
    assert np.all(np.abs(draws.mean(axis=0) - p) <= 5 * np.sqrt(p * (1 - p) / N_DRAWS))
    np.testing.assert_array_equal(
        D.Categorical(Tensor(logits)).sample(np.random.default_rng(0)), draws
    )


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_a_class_of_probability_zero_is_never_drawn(u):
    class Fixed:
        def random(self, shape, dtype):
            return np.full(shape, u, dtype)

    logits = np.full((1, 3002), 0.0, np.float32)  # in float32 these probabilities sum to 1 - 3e-5
    logits[:, [0, -1]] = -np.inf
    chosen = np.argmax(D.Categorical(logits).sample(Fixed()))
    assert chosen == (1 if u == 0 else 3000)


# ---------------------------------------------------------------------------------------------------------- divergence
@few
@given(reals(-2, 2), reals(0.2, 3), reals(-2, 2), reals(0.2, 3))
def test_divergence_of_normals_is_the_integral(a, s, b, t):
    q, p = stats.norm(a, s), stats.norm(b, t)
    x, weight = a + 12 * s * NODES, 12 * s * WEIGHTS
    expected = np.sum(weight * q.pdf(x) * (q.logpdf(x) - p.logpdf(x)))
    parameters = [tensor(v) for v in (a, s, b, t)]
    found = D.kl_divergence(D.Normal(*parameters[:2]), D.Normal(*parameters[2:]))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-8, atol=1e-9)
    by_hand = [
        (a - b) / t**2,
        s / t**2 - 1 / s,
        (b - a) / t**2,
        1 / t - (s**2 + (a - b) ** 2) / t**3,
    ]
    np.testing.assert_allclose(np.ravel(grad(found, parameters)), by_hand, rtol=1e-9, atol=1e-12)


def test_divergence_of_normals_against_draws():
    q, p = D.Normal(np.full(N_DRAWS, 0.5), np.full(N_DRAWS, 0.8)), D.Normal(0.0, 1.0)
    z = q.sample(np.random.default_rng(0))
    each = q.log_prob(z) - p.log_prob(z)
    assert abs(each.mean() - D.kl_divergence(q, p)[0]) < 5 * each.std() / np.sqrt(N_DRAWS)


@few
@given(reals(-8, 8), reals(-8, 8))
def test_divergence_of_bernoullis_is_the_sum(a, b):
    q, p = [(1 / (1 + math.exp(v)), 1 / (1 + math.exp(-v))) for v in (a, b)]
    expected = math.fsum(x * (math.log(x) - math.log(y)) for x, y in zip(q, p))
    ts = [tensor(a), tensor(b)]
    found = D.kl_divergence(*map(D.Bernoulli, ts))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-7, atol=1e-11)
    by_hand = [q[0] * q[1] * (a - b), p[1] - q[1]]
    np.testing.assert_allclose(np.ravel(grad(found, ts)), by_hand, rtol=1e-7, atol=1e-11)


@few
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_divergence_of_categoricals_is_the_sum(k, seed):
    rng = np.random.default_rng(seed)
    a, b = 2 * rng.normal(size=(2, 3, k))
    q, p = [np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (a, b)]
    expected = [math.fsum(x * math.log(x / y) for x, y in zip(r, t)) for r, t in zip(q, p)]
    found = D.kl_divergence(D.Categorical(tensor(a)), D.Categorical(tensor(b)))
    np.testing.assert_allclose(found.data, expected, rtol=1e-8, atol=1e-12)
    t = tensor(b)
    (found,) = grad(np.sum(D.kl_divergence(D.Categorical(a), D.Categorical(t))), t)
    np.testing.assert_allclose(found, p - q, atol=1e-12)


@pytest.mark.parametrize("make", [lambda a: D.Normal(a, np.exp(a)), D.Bernoulli, D.Categorical])
def test_divergence_from_itself_is_zero_and_dtypes_stay(make):
    for dtype in (np.float32, np.float64):
        a = np.array([[0.3, -1.0, 2.0]], dtype)
        found = D.kl_divergence(make(a), make(a))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, np.zeros_like(found), atol=1e-6)
        assert D.kl_divergence(make(Tensor(a, True)), make(a)).dtype == dtype


def test_pairs_without_a_closed_form_are_refused():
    a = np.zeros((2, 3))
    all_of_them = [
        D.Normal(a, a + 1),
        D.Bernoulli(a),
        D.Categorical(a),
        D.Poisson(a),
        D.NegativeBinomial(a, a),
        D.ZeroInflatedNegativeBinomial(a, a, a),
    ]
    closed = {D.Normal, D.Bernoulli, D.Categorical}
    for q in all_of_them:
        for p in all_of_them:
            if type(q) is not type(p) or type(q) not in closed:
                with pytest.raises(
                    TypeError, match=f"{type(q).__name__} against {type(p).__name__}"
                ):
                    D.kl_divergence(q, p)


def test_python_numbers_are_computed_in_float64():
    got = D.NegativeBinomial(1.0, 2.0).log_prob(1)
    theta, mu = np.exp(2.0), np.exp(1.0)
    assert np.asarray(got).dtype == np.float64
    assert got == pytest.approx(stats.nbinom.logpmf(1, theta, theta / (theta + mu)), rel=1e-12)


# ------------------------------------------------------------------------------------------- the edges, in fifty digits
# Closed forms in decimal arithmetic, of the very numbers that the arrays hold.
inf, nan = np.inf, np.nan
FIFTY = Context(prec=50, Emax=10**9, Emin=-(10**9))
FLOATS = [np.float32, np.float64]


@pytest.fixture(autouse=True)
def with_fifty_digits():
    with localcontext(FIFTY):
        yield


def fifty(x):
    return Decimal(float(x))


def exp(x):
    return FIFTY.exp(x)


def ln(x):
    return FIFTY.ln(x)


def within(found, expected, tolerance):
    """Each entry within `tolerance`, relative to the larger of it and the smallest normal number."""
    found = np.ravel(found)
    tiny = float(np.finfo(found.dtype).tiny)
    for a, b in zip(found, expected, strict=True):
        error = abs(fifty(a) - b)
        assert error <= fifty(tolerance) * abs(b) + fifty(tiny), (a, float(b))


@pytest.mark.parametrize("dtype", FLOATS)
def test_bernoulli_log_prob_has_all_digits_at_any_logit(dtype):
    """log_prob(1) was 0 in float32 from a logit of 14.6 up; and its slope too, which is 1 - p."""
    logits = np.array([-80, -14.6, -1, -1e-9, 0, 1e-9, 1, 14.6, 20, 36, 40, 80], dtype)
    tolerance = 20 * np.finfo(dtype).eps
    for x in (0, 1, 0.25):
        t = Tensor(logits, requires_grad=True)
        log_p = D.Bernoulli(t).log_prob(x)
        expected, slope = [], []
        for a in map(fifty, logits):
            yes, no = (-ln(1 + exp(-s * a)) for s in (1, -1))
            expected.append(fifty(x) * yes + fifty(1 - x) * no)
            slope.append(fifty(x) - exp(yes) if x < 1 else exp(no))
        within(log_p.data, expected, tolerance)
        (g,) = grad(np.sum(log_p), t)
        (of_twin,) = grad(np.sum(D.bernoulli_log_prob.twin(np.full(12, x, dtype), t)), t)
        if x in (0, 1):
            within(g, slope, tolerance)
        np.testing.assert_allclose(g, np.array(slope, float), rtol=1e-6, atol=tolerance)
        np.testing.assert_allclose(of_twin, g, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("call", [D.bernoulli_log_prob, D.bernoulli_log_prob.twin])
def test_a_certain_bernoulli(call, dtype):
    """scipy.stats with p = 0 and p = 1; where log p is finite, so are the slopes."""
    logits = np.array([inf, -inf, inf, -inf, nan], dtype)
    x = np.array([1, 0, 0, 1, 1], dtype)
    t = Tensor(logits, requires_grad=True)
    log_p = call(x, t)
    expected = [*stats.bernoulli([1, 0, 1, 0]).logpmf([1, 0, 0, 1]), nan]
    np.testing.assert_array_equal(log_p.data, expected)
    (g,) = grad(log_p, t, np.ones(5, dtype))
    np.testing.assert_array_equal(g[:2], [0, 0])
    np.testing.assert_array_equal(D.Bernoulli(logits).mean, [1, 0, 1, 0, nan])
    np.testing.assert_array_equal(D.Bernoulli(logits).variance, [0, 0, 0, 0, nan])
    draws = D.Bernoulli(logits).sample(np.random.default_rng(0))
    np.testing.assert_array_equal(draws, [1, 0, 1, 0, nan])


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_class_that_is_impossible(dtype):
    """0 log 0 = 0: the classes that x does not have say nothing, and the slopes are those without the class."""
    logits = np.array([[0.0, -inf, 1.0]] * 4, dtype)
    x = np.array([[1, 0, 0], [0, 0, 1], [0.5, 0, 0.5], [0, 1, 0]], dtype)
    log_p = special.log_softmax([0.0, 1.0])
    expected = [log_p[0], log_p[1], 0.5 * log_p.sum(), -inf]
    p = np.exp(log_p)
    slopes = [[1 - p[0], 0, -p[1]], [-p[0], 0, 1 - p[1]], [0.5 - p[0], 0, 0.5 - p[1]]]
    for create_graph in (False, True):
        t = Tensor(logits, requires_grad=True)
        found = D.Categorical(t).log_prob(x)
        np.testing.assert_allclose(found.data, expected, rtol=1e-6)
        (g,) = grad(found, t, np.array([1, 1, 1, 0], dtype), create_graph=create_graph)
        g = g.data if create_graph else g
        np.testing.assert_allclose(g[:3], slopes, rtol=1e-6, atol=1e-7)
    assert np.all(np.isnan(D.Categorical(np.array([0, nan, -inf], dtype)).log_prob(x[0])))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", [[0, nan, 1], [nan] * 3, [inf, 0, 0], [-inf] * 3])
def test_logits_that_give_no_probabilities_give_no_class(row, dtype):
    logits = np.array([[0.0, 1.0, 2.0], row], dtype)
    with np.errstate(invalid="ignore"):
        draws = D.Categorical(logits).sample(np.random.default_rng(0))
    assert draws.dtype == dtype and draws[0].sum() == 1 and np.all(np.isnan(draws[1]))


NAN_DRAWS = {
    "Normal loc": lambda a, one: D.Normal(a, one),
    "Normal scale": lambda a, one: D.Normal(one, a),
    "Bernoulli": lambda a, one: D.Bernoulli(a),
    "Poisson": lambda a, one: D.Poisson(a),
    "NB log_mu": lambda a, one: D.NegativeBinomial(a, one),
    "NB log_theta": lambda a, one: D.NegativeBinomial(one, a),
    "ZINB log_mu": lambda a, one: D.ZeroInflatedNegativeBinomial(a, one, -one),
    "ZINB log_theta": lambda a, one: D.ZeroInflatedNegativeBinomial(one, a, -one),
    "ZINB zi_logits": lambda a, one: D.ZeroInflatedNegativeBinomial(one, one, a),
}


@pytest.mark.parametrize(
    "name", [k for k in NAN_DRAWS if k != "ZINB log_mu" and k != "ZINB log_theta"]
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_draw_with_a_parameter_that_is_nan_is_nan(name, dtype):
    a, one = np.array([0.5, nan, 0.5], dtype), np.ones(3, dtype)
    draws = NAN_DRAWS[name](a, one).sample(np.random.default_rng(0))
    assert draws.dtype == dtype
    np.testing.assert_array_equal(np.isnan(draws), [False, True, False])
    log_p = NAN_DRAWS[name](a, one).log_prob(np.zeros(3, dtype))
    np.testing.assert_array_equal(np.isnan(log_p), [False, True, False])


@pytest.mark.parametrize("name", ["ZINB log_mu", "ZINB log_theta"])
def test_a_zinb_with_a_nan_draws_zeros_and_nan_and_no_counts(name):
    draws = NAN_DRAWS[name](np.full(200, nan), np.ones(200)).sample(np.random.default_rng(0))
    assert np.any(np.isnan(draws)) and np.all(np.isnan(draws) | (draws == 0))


def decimal_kl_of_normals(a, s, b, t):
    a, s, b, t = map(fifty, (a, s, b, t))
    return ln(t / s) + ((s / t) ** 2 - 1) / 2 + ((a - b) / t) ** 2 / 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("call", [D.normal_kl, D.normal_kl.twin])
def test_divergence_of_normals_of_any_scale(call, dtype):
    """It was NaN in float32 at scales of 1e-23 and of 1e20, whose squares leave the range of numbers."""
    scales = [1e-30, 1e-23, 1e-20, 1e-3, 0.5, 1, 2, 1e3, 1e17, 1e20, 1e30]
    loc = np.array([0.0, 1.5], dtype)
    points = np.array(
        [(a, s, b, t) for a in loc for b in loc for s in scales for t in scales], dtype
    )
    expected = [decimal_kl_of_normals(*point) for point in points]
    top = fifty(0.99 * np.finfo(dtype).max)
    ts = [Tensor(column, requires_grad=True) for column in points.T]
    with np.errstate(over="ignore"):
        found = call(*ts)
        slopes = grad(found, ts, np.ones(len(points), dtype))
    fits = np.array([e < top for e in expected])
    assert np.all(found.data[~fits] == inf) and fits.sum() > 200
    within(found.data[fits], [e for e in expected if e < top], 40 * np.finfo(dtype).eps)
    exact = []
    for a, s, b, t in [map(fifty, point) for point in points]:
        u = (a - b) / t
        r2_1 = (s - t) * (s + t) / t**2
        exact.append([u / t, r2_1 / s, -u / t, -(r2_1 + u * u) / t])
    if call is D.normal_kl:
        for i, slope in enumerate(slopes):
            keep = [abs(e[i]) < top and f for e, f in zip(exact, fits)]
            within(slope[keep], [e[i] for e, k in zip(exact, keep) if k], 60 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("call", [D.normal_kl, D.normal_kl.twin])
def test_divergence_of_nearly_equal_normals_is_not_below_zero(call, dtype):
    """Scales that differ by 1 to 4000 of the smallest steps: t^2, and right to 3 eps t, which no difference would be."""
    for scale in (1.0, 0.7, 1e-3, 3e5):
        start = np.array(scale, dtype)
        steps = np.arange(-4000, 4001).astype(dtype) * np.spacing(start)
        q_scale = start + steps
        zero = np.zeros_like(q_scale)
        found = call(zero, q_scale, zero, np.full_like(q_scale, start))
        assert found.dtype == dtype and np.all(found >= 0) and found[4000] == 0
        t = (q_scale.astype(np.float64) - scale_of(start)) / scale_of(start)
        np.testing.assert_array_less(
            np.abs(found - (t**2 - t**3 / 3)), 3 * np.finfo(dtype).eps * np.abs(t) + 1e-300
        )


def scale_of(x):
    return np.float64(x)


def decimal_kl_of_classes(q, p):
    return sum(a * (ln(a) - ln(b)) for a, b in zip(q, p) if a)


@pytest.mark.parametrize("dtype", FLOATS)
def test_divergence_of_bernoullis_and_categoricals_at_extremes(dtype):
    values = np.array([-90, -30, -14.6, -1, 0, 1e-3, 14.6, 30, 90], dtype)
    a, b = [v.ravel() for v in np.meshgrid(values, values)]
    expected = []
    for x, y in zip(map(fifty, a), map(fifty, b)):
        q, p = [(1 / (1 + exp(v)), 1 / (1 + exp(-v))) for v in (x, y)]
        expected.append(float(decimal_kl_of_classes(q, p)))
    tolerance = dict(rtol=1e-6, atol=1e-12) if dtype == np.float32 else dict(rtol=1e-14, atol=1e-19)
    found = D.kl_divergence(D.Bernoulli(a), D.Bernoulli(b))
    assert found.dtype == dtype and np.all(found >= 0)
    np.testing.assert_allclose(found, expected, **tolerance)
    rows = [np.stack([v, np.zeros_like(v)], axis=1) for v in (a, b)]
    found = D.kl_divergence(*map(D.Categorical, rows))
    assert found.dtype == dtype and np.all(found >= 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=np.finfo(dtype).eps)


def test_divergence_of_nearly_equal_classes_is_not_below_zero():
    """In float32, where sum q (log q - log p) would be within 1e-7 of 0 on either side."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2000, 5)).astype(np.float32)
    b = a + (1e-4 * rng.normal(size=a.shape)).astype(np.float32)
    for make, of in ((D.Bernoulli, a[:, 0] - a[:, 1]), (D.Categorical, a)):
        with_noise = of + (b - a if make is D.Categorical else (b - a)[:, 0])
        found = D.kl_divergence(make(of), make(with_noise))
        exact = D.kl_divergence(make(of.astype(float)), make(with_noise.astype(float)))
        assert np.all(found >= 0)
        np.testing.assert_allclose(found, exact, atol=3e-11)


@pytest.mark.parametrize("dtype", FLOATS)
def test_divergence_where_classes_are_impossible(dtype):
    """0 log 0 = 0 in q; infinite where p excludes what q does not. The slopes are finite where the value is."""
    half = math.log(2)
    a = np.array([[0, -inf, 0], [0, -inf, 0], [0, -inf, -inf], [0, 0, -inf]], dtype)
    b = np.array([[0, 0, 0], [0, -inf, 0], [0, -inf, 0], [0, -inf, 0]], dtype)
    expected = [math.log(1.5), 0, half, inf]
    q, p = [Tensor(v, requires_grad=True) for v in (a, b)]
    found = D.kl_divergence(D.Categorical(q), D.Categorical(p))
    np.testing.assert_allclose(found.data, expected, rtol=1e-6, atol=1e-7)
    with np.errstate(invalid="ignore"):  # of the infinite one
        slopes = grad(found, [q, p], np.array([1, 1, 1, 0], dtype))
    assert np.all(np.isfinite([g[:3] for g in slopes]))
    l, m = [
        np.array(v, dtype) for v in ([inf, -inf, inf, -inf, 0, 0], [inf, -inf, 0, 0, inf, -inf])
    ]
    found = D.kl_divergence(D.Bernoulli(l), D.Bernoulli(m))
    np.testing.assert_allclose(found, [0, 0, half, half, inf, inf], rtol=1e-6)


# ------------------------------------------------------------------------------------------------- counts at the edges
@pytest.mark.parametrize("dtype", FLOATS)
def test_counts_with_parameters_at_infinity(dtype):
    """The limits: a mean of 0 gives only zeros, as theta = 0 does; theta = infinity gives the Poisson."""
    x = np.array([0.0, 1.0, 5.0], dtype)
    only_zeros = [0, -inf, -inf]

    def of(v):
        return np.full(3, v, dtype)

    poisson = stats.poisson(np.exp(0.5)).logpmf(x)
    cases = [
        (D.Poisson(of(-inf)), only_zeros, 0, 0),
        (D.Poisson(of(inf)), [-inf] * 3, inf, inf),
        (D.NegativeBinomial(of(-inf), of(0)), only_zeros, 0, 0),
        (D.NegativeBinomial(of(0.5), of(-inf)), only_zeros, np.exp(0.5), inf),
        (D.NegativeBinomial(of(-inf), of(-inf)), only_zeros, 0, None),
        (D.NegativeBinomial(of(0.5), of(inf)), poisson, np.exp(0.5), np.exp(0.5)),
        (D.NegativeBinomial(of(inf), of(0)), [-inf] * 3, inf, inf),
        (
            D.ZeroInflatedNegativeBinomial(of(0.5), of(inf), of(-inf)),
            poisson,
            np.exp(0.5),
            np.exp(0.5),
        ),
        (D.ZeroInflatedNegativeBinomial(of(0.5), of(inf), of(inf)), only_zeros, 0, 0),
    ]
    for distribution, log_p, mean, variance in cases:
        np.testing.assert_allclose(distribution.log_prob(x), log_p, rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(distribution.mean, of(mean), rtol=1e-6)
        if variance is not None:
            np.testing.assert_allclose(distribution.variance, of(variance), rtol=1e-6)


def test_slopes_of_counts_are_finite_where_theta_is_zero():
    """Towards theta = 0, log NB(x) is log theta plus a constant for x > 0, and 0 for x = 0."""
    x = np.array([0.0, 1.0, 5.0])
    for low in (-2500.0, -1e6, -inf):
        ts = [Tensor(np.full(3, v), requires_grad=True) for v in (0.5, low)]
        log_p = D.NegativeBinomial(*ts).log_prob(x)
        d_log_mu, d_log_theta = grad(log_p, ts, np.ones(3))
        np.testing.assert_allclose(d_log_mu, 0, atol=1e-12)
        np.testing.assert_allclose(d_log_theta, [0, 1, 1], atol=1e-12)
        np.testing.assert_allclose(log_p.data, [0, low, low - math.log(5)], rtol=1e-12)


def test_the_slopes_of_a_zinb_are_nan_where_its_logit_is():
    ts = [Tensor(np.full(2, v), requires_grad=True) for v in (0.5, 0.5, nan)]
    log_p = D.ZeroInflatedNegativeBinomial(*ts).log_prob(np.array([0.0, 3.0]))
    slopes = grad(log_p, ts, np.ones(2))
    assert np.all(np.isnan(log_p.data)) and np.all(np.isnan([g[0] for g in slopes]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_draws_of_a_negative_binomial_of_extreme_theta(dtype):
    """Up to theta = infinity the draws are a Poisson's; towards theta = 0 they are 0."""
    n = 40_000
    log_mu = np.full(n, 1.0, dtype)
    for log_theta in (60, 100, 800, inf):
        nb = D.NegativeBinomial(log_mu, np.full(n, log_theta, dtype))
        draws = nb.sample(np.random.default_rng(0))
        assert draws.dtype == dtype
        assert abs(draws.mean() - math.e) < 5 * math.sqrt(math.e / n)
        assert abs(draws.var() / math.e - 1) < 5 * math.sqrt((2 + 1 / math.e) / n)
    for log_theta in (-100, -800, -inf):
        nb = D.NegativeBinomial(log_mu, np.full(n, log_theta, dtype))
        np.testing.assert_array_equal(nb.sample(np.random.default_rng(0)), np.zeros(n))


@pytest.mark.parametrize("log_mean", [44.0, 100.0, inf])
def test_means_beyond_all_counts_are_refused_by_name(log_mean):
    a = np.array([1.0, log_mean])
    for make, name in (
        (D.Poisson, "Poisson"),
        (lambda a: D.NegativeBinomial(a, 50.0), "NegativeBinomial"),
        (lambda a: D.ZeroInflatedNegativeBinomial(a, 50.0, -50.0), "NegativeBinomial"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.sample: .* 9e18"):
            make(a).sample(np.random.default_rng(0))


# ---------------------------------------------------------------------------------------- kinds of arguments, and errors
KINDS = {
    "list": lambda a: a.tolist(),
    "integers": lambda a: a.astype(np.int32),
    "small integers": lambda a: a.astype(np.int8),
    "booleans": lambda a: a.astype(bool),
    "a column": lambda a: a[:, None],
    "nothing": lambda a: a[:0],
    "halves": lambda a: a.astype(np.float16),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*CASES, "Categorical"])
def test_parameters_and_x_of_any_kind(name, kind):
    """0 and 1 as parameters and as x, in other clothes: the values are those of float64."""
    values = np.array([0.0, 1.0, 1.0, 0.0])
    make, n = (D.Categorical, 1) if name == "Categorical" else (CASES[name][0], len(CASES[name][1]))
    if name == "Normal":
        make, n = (lambda a: D.Normal(a, 2)), 1
    of = KINDS[kind]
    parameters, x = [of(values)] * n, of(values)
    plain = np.array(x, float)
    if name == "Categorical" and kind == "nothing":
        parameters, x, plain = [np.zeros((0, 2))], np.zeros((0, 2)), np.zeros((0, 2))
    distribution, expected = make(*parameters), make(*[np.array(p, float) for p in parameters])
    for found, right in (
        (distribution.log_prob(x), expected.log_prob(plain)),
        (distribution.mean, expected.mean),
        (distribution.variance, expected.variance),
        (distribution.sample(np.random.default_rng(0)), None),
    ):
        assert found.dtype == (np.float32 if kind == "halves" else np.float64)
        if right is not None:
            tolerance = 1e-6 if kind == "halves" else 1e-12
            np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance)
            assert found.shape == right.shape


def test_categorical_needs_classes():
    for logits in (1.0, np.array(1.0), np.zeros((2, 0)), []):
        with pytest.raises(ValueError, match="Categorical: logits have shape .* classes"):
            D.Categorical(logits)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array, sparse.coo_array])
@pytest.mark.parametrize("name", [*CASES, "Categorical"])
def test_a_sparse_x_is_compared_entry_by_entry(name, kind):
    """With as many rows as columns `*` of a spmatrix would be the product of matrices."""
    x = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    a = 0.3 * np.arange(9.0).reshape(3, 3)
    make, n = (D.Categorical, 1) if name == "Categorical" else (CASES[name][0], len(CASES[name][1]))
    for parameter in (a, Tensor(a, requires_grad=True)):
        found = make(*[parameter] * n).log_prob(kind(x))
        expected = make(*[a] * n).log_prob(x)
        assert type(found) is type(parameter)
        np.testing.assert_array_equal(getattr(found, "data", found), expected)


def test_a_numpy_number_beside_an_array_follows_it():
    f = np.ones(3, np.float32)
    for found in (
        D.Normal(f, np.float64(2.0)).log_prob(f),
        D.Normal(Tensor(f, True), np.float64(2.0)).log_prob(f),
        D.Normal(f, np.float64(2.0)).mean,
        D.NegativeBinomial(f, np.log(2.0)).log_prob(f),
        D.NegativeBinomial(0.5, f).mean,
        D.NegativeBinomial(0.5, f).variance,
        D.ZeroInflatedNegativeBinomial(f, 0.5, 0.5).mean,
        D.ZeroInflatedNegativeBinomial(0.5, f, 0.5).variance,
    ):
        assert found.dtype == np.float32


@pytest.mark.parametrize("number", [float, np.float64])
def test_a_divergence_from_numbers_has_the_dtype_of_the_arrays(number):
    f = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    for make, numbers in (
        (lambda *p: D.Normal(*p), (number(0.5), number(1.5))),
        (lambda *p: D.Bernoulli(*p), (number(0.5),)),
    ):
        of_arrays, of_numbers = make(*[f] * len(numbers)), make(*numbers)
        double = make(*[f.astype(float)] * len(numbers))
        for q, p, expected in (
            (of_arrays, of_numbers, D.kl_divergence(double, of_numbers)),
            (of_numbers, of_arrays, D.kl_divergence(of_numbers, double)),
        ):
            found = D.kl_divergence(q, p)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "scale", [-1, -1e-300, np.array([1.0, -3.0]), np.array([2, -3]), [1.0, -1.0]]
)
def test_a_negative_scale_is_refused(scale):
    lowest = re.escape(str(np.min(np.asarray(scale, float))))
    with pytest.raises(ValueError, match=f"Normal: scale must be > 0, and an entry is {lowest}"):
        D.Normal(0, scale)


@pytest.mark.parametrize("scale", [0, 0.0, np.array([1.0, 0.0]), np.float32(0.0)])
def test_a_scale_of_zero_has_draws_and_no_density(scale):
    point = D.Normal(3.0, scale)
    rng = np.random.default_rng(0)
    assert np.ravel(point.sample(rng))[-1] == 3 and np.ravel(point.variance)[-1] == 0
    for call, name in (
        (lambda: point.log_prob(3.0), "Normal.log_prob"),
        (lambda: D.kl_divergence(point, D.Normal(0.0, 1.0)), "kl_divergence"),
        (lambda: D.kl_divergence(D.Normal(0.0, 1.0), point), "kl_divergence"),
    ):
        with pytest.raises(ValueError, match=f"{name}: a scale is 0.*no density"):
            call()


def test_what_a_scale_may_be():
    """NaN stays NaN; of a Tensor only the draws look, and a training sees what is not finite by itself."""
    assert np.isnan(D.Normal(0.0, np.array(nan)).log_prob(1.0))
    assert np.isnan(D.Normal(0.0, nan).sample(np.random.default_rng(0)))
    negative = D.Normal(0.0, Tensor(np.array([-1.0])))
    with np.errstate(invalid="ignore"):
        assert np.isnan(negative.log_prob(1.0).data).all()
    with pytest.raises(ValueError, match="Normal: scale"):
        negative.sample(np.random.default_rng(0))


WRONG = {
    "Normal: loc has shape (3,), scale has shape (4,)": lambda: D.Normal(np.ones(3), np.ones(4)),
    "NegativeBinomial: log_mu has shape (2,), log_theta has shape (3,)": lambda: D.NegativeBinomial(
        [0, 1], [0, 1, 2]
    ),
    "Normal.log_prob: x has shape (3,), and does not broadcast with the parameters' (4,)": (
        lambda: D.Normal(np.ones(4), 1.0).log_prob(np.ones(3))
    ),
    "Poisson.log_prob: x has shape (3,)": lambda: D.Poisson(np.ones(4)).log_prob([1, 2, 3]),
    "Bernoulli.log_prob: x has shape (3, 1, 2)": lambda: D.Bernoulli(
        Tensor(np.ones(4), True)
    ).log_prob(np.ones((3, 1, 2))),
    "same number of classes": lambda: D.Categorical(np.zeros((4, 3))).log_prob(np.ones((4, 1))),
    "numbers of classes, the last axis": lambda: D.kl_divergence(
        D.Categorical(np.zeros((4, 3))), D.Categorical(np.zeros((4, 1)))
    ),
    "Normal.rsample: eps has shape (3,); it must have a number for each entry": lambda: D.Normal(
        np.zeros((2, 3)), 1.0
    ).rsample(np.zeros(3)),
    "normal_kl(float64[3], 1.0, float64[4], 1.0)": lambda: D.kl_divergence(
        D.Normal(np.zeros(3), 1.0), D.Normal(np.zeros(4), 1.0)
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_shapes_that_do_not_fit_are_refused_by_name(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message]()


@pytest.mark.parametrize(
    "wrong", ["text", None, {}, np.array(["a"]), np.array([1j]), np.ma.array([1.0])]
)
def test_what_is_no_numbers_is_refused_by_name(wrong):
    for make in (D.Bernoulli, D.Poisson, D.Categorical, lambda a: D.Normal(0.0, a)):
        with pytest.raises(TypeError):
            make(wrong)
    with pytest.raises(TypeError, match="Bernoulli: logits is a sparse matrix"):
        D.Bernoulli(sparse.csr_array(np.eye(2)))


def test_noise_for_several_draws_and_of_another_dtype():
    q = D.Normal(np.zeros(3, np.float32), np.full(3, 2.0, np.float32))
    z = q.rsample(np.ones((5, 3)))
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, np.full((5, 3), 2.0))

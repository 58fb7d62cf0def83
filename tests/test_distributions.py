"""minigrad/distributions.py against scipy.stats, sums and integrals over the support, and moments of draws."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

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

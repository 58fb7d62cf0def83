"""Kernels of few calls (minigrad/array_kernels.py), which run on a GPU: on NumPy arrays, beside SciPy and the host's kernels.

tests/test_device.py runs them where they belong, on a double of CuPy, beside the host's numbers.
"""

import numpy as np
import pytest
from scipy import special, stats

from minigrad import array_kernels, count_kernels, kernels

RNG = np.random.default_rng(5)
COUNTS = RNG.poisson(RNG.gamma(0.7, 3.0, (6, 9))).astype(float)
COUNTS[2] = 0.0  # a cell without counts
LOGITS = RNG.normal(size=(6, 9))
LOG_LIBRARY = RNG.normal(3.0, 0.5, (6, 1))
LOG_THETA = RNG.normal(size=9)
ZI_LOGITS = RNG.normal(size=(6, 9))
PARAMETERS = {
    "poisson": (LOGITS, LOG_LIBRARY),
    "nb": (LOGITS, LOG_LIBRARY, LOG_THETA),
    "zinb": (LOGITS, LOG_LIBRARY, LOG_THETA, ZI_LOGITS),
}
every_likelihood = pytest.mark.parametrize("name", PARAMETERS)


def ours(name, x, g=None):
    """(log p, gradients of all parameters) of the kernel of few calls."""
    forward = getattr(array_kernels, f"{name}_forward")
    backward = getattr(array_kernels, f"{name}_backward")
    parameters = PARAMETERS[name]
    needs = [False] + [True] * len(parameters)
    y, saved = forward(needs, x, *parameters)
    g = np.ones_like(y) if g is None else g
    _, *gradients = backward(g, y, saved, needs, x, *parameters)
    return y, [summed(a, p) for a, p in zip(gradients, parameters)]


def hosts(name, x, g=None):
    """The same of the host's kernel, whose digits are held against 60-digit truth elsewhere."""
    forward = getattr(count_kernels, f"{name}_cells_from_logits")
    parameters = PARAMETERS[name]
    needs = [False] + [True] * len(parameters)
    y, saved = forward(needs, x, *parameters)
    g = np.ones_like(y) if g is None else g
    _, *gradients = count_kernels.cells_backward(g, y, saved, needs, x, *parameters)
    return y, [summed(a, p) for a, p in zip(gradients, parameters)]


def summed(gradient, parameter):
    """What the sweep makes of a gradient: it sums over the cells for which a parameter was repeated."""
    gradient = gradient(None) if callable(gradient) else gradient
    return gradient if gradient.shape == parameter.shape else gradient.sum(axis=0)


@every_likelihood
def test_values_are_scipys(name):
    mu = special.softmax(LOGITS, axis=1) * np.exp(LOG_LIBRARY)
    theta = np.exp(LOG_THETA)
    of_genes = stats.nbinom.pmf(COUNTS, theta, theta / (theta + mu))
    if name == "poisson":
        of_genes = stats.poisson.pmf(COUNTS, mu)
    elif name == "zinb":
        zero = special.expit(ZI_LOGITS)
        of_genes = (COUNTS == 0) * zero + (1.0 - zero) * of_genes
    expected = np.log(of_genes).sum(axis=1)
    expected[2] = 0.0
    np.testing.assert_allclose(ours(name, COUNTS)[0], expected, rtol=1e-12)


@every_likelihood
def test_gradients_are_those_of_the_hosts_kernels(name):
    g = RNG.normal(size=6)
    for a, b in zip(ours(name, COUNTS, g)[1], hosts(name, COUNTS, g)[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@every_likelihood
@pytest.mark.filterwarnings("error")
def test_what_is_not_a_count(name):
    """As everywhere: -infinity with slope 0, and NaN with NaN, in that cell only; no warnings."""
    x = COUNTS.copy()
    x[0, 0], x[1, 1], x[3, 2], x[4, 3] = 0.5, -2.0, np.inf, np.nan
    y, gradients = ours(name, x)
    expected, of_host = hosts(name, x)
    assert np.array_equal(y[[0, 1, 3]], [-np.inf] * 3) and np.isnan(y[4])
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    for a, b in zip(gradients, of_host, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(ours(name, np.full_like(x, -np.inf))[0], -np.inf)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_is_the_hosts(dtype):
    x = RNG.normal(2.0, 3.0, (12, 4)).astype(dtype)
    weight, bias = RNG.normal(size=(2, 4)).astype(dtype)
    g = RNG.normal(size=x.shape).astype(dtype)
    centred = x - x.mean(axis=0)
    statistics = dict(centred=centred, var=np.mean(centred * centred, axis=0), eps=1e-3)
    results = []
    for module in (array_kernels, kernels):
        y, saved = module.batch_norm_forward((True,) * 3, x, weight, bias, **statistics)
        gradients = module.batch_norm_backward(
            g, y, saved, (True,) * 3, x, weight, bias, **statistics
        )
        # Those of the weight and the bias may be postponed, until it is known where to write them.
        results.append([y, *(d(None) if callable(d) else d for d in gradients)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=2e-5 if dtype == np.float32 else 1e-10, atol=1e-6)


@pytest.mark.parametrize("prior", [(0.0, 1.0), (np.float32(0.0), np.float32(1.0)), (-0.3, 2.0)])
def test_divergence_of_normals_by_integration(prior):
    """Against the integral of q (log q - log p), also where scales are far apart or nearly equal."""
    loc = np.array([0.0, 0.4, -2.0, 1.0])
    scale = np.array([1.0, 1.0 + 1e-9, 0.01, 3.0])
    y, saved = array_kernels.normal_kl_forward((True,) * 4, loc, scale, *prior)
    for i in range(4):
        z = np.linspace(loc[i] - 12 * scale[i], loc[i] + 12 * scale[i], 20001)
        q = stats.norm(loc[i], scale[i])
        p = stats.norm(float(prior[0]), float(prior[1]))
        integral = np.trapezoid(q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), z)
        assert y[i] == pytest.approx(integral, abs=1e-9)
    g = np.array([1.0, -2.0, 0.5, 3.0])
    found = array_kernels.normal_kl_backward(g, y, saved, (True,) * 4, loc, scale, *prior)
    p_loc, p_scale = map(float, prior)
    u = (loc - p_loc) / p_scale
    expected = (
        g * u / p_scale,
        g * (scale / p_scale**2 - 1.0 / scale),
        -g * u / p_scale,
        g * (1.0 - (scale / p_scale) ** 2 - u * u) / p_scale,
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)

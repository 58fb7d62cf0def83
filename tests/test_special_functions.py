"""Derivatives of SciPy's functions far out and at the ends of their domains: mpmath's to 50 digits, or infinite, or NaN.

tests/test_table.py has their values and derivatives at ordinary points.
"""

import warnings

import numpy as np
import pytest
from scipy import special, stats

from minigrad import functional
from minigrad.checking import gradcheck
from minigrad.tensor import Tensor, grad

mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed: pip install mpmath")
mp = mpmath.mp.clone()
mp.dps = 50

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def derivatives(f, x, order, dtype=np.float64):
    """The first derivatives of f at the number x, as many as `order`; f takes a Tensor."""
    t = Tensor(np.asarray(x, dtype), requires_grad=True)
    y = f(t)
    found = []
    for _ in range(order):
        (y,) = grad(y, t, create_graph=True)
        assert y.dtype == dtype
        found.append(y.item())
        if not y.requires_grad:  # a constant, of which all further derivatives are 0
            return found + [0.0] * (order - len(found))
    return found


def truth(f, x, order):
    """The same by mpmath's difference quotients, in steps far shorter than anything near."""
    x = mp.mpf(x)
    step = mp.mpf(10) ** -14 * max(abs(x), mp.mpf("1e-5"))
    return [mp.diff(f, x, n, h=step) for n in range(1, order + 1)]


def log_ndtr(x):
    return mp.log(mp.erfc(-x / mp.sqrt(2)) / 2)


def boxcox(lmbda):
    return (mp.power(3.25, lmbda) - 1) / lmbda


FAR_OUT = {  # name: what it is on Tensors, and in mpmath, the points, the order, the error that is allowed
    "log_ndtr": (special.log_ndtr, log_ndtr, [-300, -40, -5, 0, 1e-8, 5, 20], 2, 1e-13),
    "erfcx": (
        special.erfcx,
        lambda x: mp.exp(x * x) * mp.erfc(x),
        [-5, 0, 1, 9.9, 10.1, 30, 1e6],
        2,
        1e-11,
    ),
    "exprel": (
        special.exprel,
        lambda x: mp.expm1(x) / x,
        [-700, -30, -1e-5, 1e-15, 1e-10, 1, 300],
        2,
        1e-13,
    ),
    "i0e": (
        special.i0e,
        lambda x: mp.exp(-abs(x)) * mp.besseli(0, x),
        [-1e3, 1, 49, 51, 1e6],
        2,
        1e-11,
    ),
    "i1e": (
        special.i1e,
        lambda x: mp.exp(-abs(x)) * mp.besseli(1, x),
        [-1e3, 1, 59, 61, 1e6],
        2,
        1e-11,
    ),
    "k0e": (special.k0e, lambda x: mp.exp(x) * mp.besselk(0, x), [1e-5, 1], 2, 1e-13),
    "kve": (
        lambda x: special.kve(2.5, x),
        lambda x: mp.exp(x) * mp.besselk(2.5, x),
        [1, 112, 113, 300],
        2,
        1e-11,
    ),
    "rgamma": (
        special.rgamma,
        mp.rgamma,
        [0, -1, -2, -1 + 1e-12, 1e-14, -2.5, 0.499, 0.5, 3],
        3,
        1e-13,
    ),
    "betaln": (
        lambda x: special.betaln(x, 1.0),
        lambda x: mp.log(mp.beta(x, 1)),
        [0.5, 19.9, 20.1, 1e8, 1e15],
        2,
        1e-12,
    ),
    "beta": (
        lambda x: special.beta(2.5, x),
        lambda x: mp.beta(2.5, x),
        [0.5, 19.9, 20.1, 1e6],
        2,
        1e-9,  # scipy.special.beta itself
    ),
    "xlog1py": (
        lambda x: special.xlog1py(2.25, x),
        lambda x: 2.25 * mp.log1p(x),
        [-0.999999, 1e-10],
        2,
        1e-13,
    ),
    "boxcox": (lambda x: special.boxcox(3.25, x), boxcox, [-30, -1e-10, 1e-15, 1e-5, 30], 2, 1e-12),
    "pseudo_huber of r": (
        lambda r: special.pseudo_huber(2.25, r),
        lambda r: 2.25 * mp.sqrt(2.25**2 + r * r) - 2.25**2,
        [1e-10, 1, 1e8],
        2,
        1e-6,
    ),
    "pseudo_huber of delta": (
        lambda d: special.pseudo_huber(d, 1.5),
        lambda d: d * mp.sqrt(d * d + 2.25) - d * d,
        [1e-10, 1, 1e4, 1e8],
        2,
        1e-13,
    ),
    "kl_div": (
        lambda x: special.kl_div(x, 2.0),
        lambda x: x * mp.log(x / 2) - x + 2,
        [1e-10, 2 - 1e-9, 5],
        2,
        1e-13,
    ),
    "erfinv": (special.erfinv, mp.erfinv, [-0.99, 0.5, 1 - 1e-6], 2, 1e-12),
    "ndtri": (
        special.ndtri,
        lambda p: mp.sqrt(2) * mp.erfinv(2 * p - 1),
        [1e-10, 0.5, 0.9],
        2,
        1e-12,
    ),
    "ndtri_exp": (  # the inverse of log_ndtr: its slope is 1 over that one's
        special.ndtri_exp,
        lambda y: mp.sqrt(2) * mp.erfinv(2 * mp.exp(y) - 1),
        [-30, -1, -1e-5],
        2,
        1e-9,
    ),
    "j1": (special.j1, lambda x: mp.besselj(1, x), [0, 1e-10, 30], 2, 1e-13),
    "y1": (special.y1, lambda x: mp.bessely(1, x), [1e-5, 3], 2, 1e-13),
    "gammainc": (
        lambda x: special.gammainc(2.5, x),
        lambda x: mp.gammainc(2.5, 0, x, regularized=True),
        [1e-5, 1, 50],
        2,
        1e-12,
    ),
    "gammaincc": (
        lambda x: special.gammaincc(300.0, x),
        lambda x: mp.gammainc(300, x, regularized=True),
        [150, 300, 500],
        2,
        1e-11,
    ),
}


@pytest.mark.parametrize("name", FAR_OUT)
def test_far_out(name):
    f, exact, points, order, tolerance = FAR_OUT[name]
    for x in points:
        for found, expected in zip(derivatives(f, x, order), truth(exact, x, order)):
            # A truth by differences is good to 20 digits of the function's size.
            near = max(abs(expected), mp.mpf("1e-18"))
            assert np.isfinite(found) and abs(found - expected) <= tolerance * near, (x, found)


@pytest.mark.parametrize("a", [1e6, 1e12])
def test_a_gamma_distribution_of_large_shape(a):
    """x^(a-1) e^-x / gamma(a), which is 10^-400000 times what its powers are."""
    for x in (a - 3.0 * a**0.5, a, a + 2.0 * a**0.5):
        exact = mp.exp((a - 1) * mp.log(x) - x - mp.loggamma(a))
        assert abs(derivatives(lambda t: special.gammainc(a, t), x, 1)[0] / exact - 1) < 1e-9
        assert abs(derivatives(lambda t: special.gammaincc(a, t), x, 1)[0] / exact + 1) < 1e-9
        p = float(special.gammainc(a, x))
        found = derivatives(lambda t: special.gammaincinv(a, t), p, 1)[0]
        assert abs(found * exact - 1) < 1e-5  # as far as p tells x


@pytest.mark.parametrize("n", [1e6, 1e12])
def test_a_beta_distribution_of_large_shapes(n):
    a, b = 0.75 * n, 0.25 * n
    for x in (0.75 - 1.0 / n**0.5, 0.75, 0.75 + 0.5 / n**0.5):
        powers = (a - 1) * mp.log(x) + (b - 1) * mp.log(1 - mp.mpf(x))
        exact = mp.exp(powers + mp.loggamma(n) - mp.loggamma(a) - mp.loggamma(b))
        found = derivatives(lambda t: special.betainc(a, b, t), x, 1)[0]
        assert abs(found / exact - 1) < 1e-9


@pytest.mark.parametrize(
    "f, x, first, second",
    [
        (special.entr, 0.0, np.inf, -np.inf),
        (special.entr, -1.0, None, ...),
        (lambda x: special.rel_entr(x, 2.0), 0.0, -np.inf, np.inf),
        (lambda y: special.rel_entr(0.0, y), 2.0, 0.0, 0.0),
        (lambda y: special.rel_entr(1.0, y), 0.0, -np.inf, np.inf),
        (lambda y: special.rel_entr(-1.0, y), 2.0, None, ...),
        (lambda y: special.kl_div(0.0, y), 2.0, 1.0, 0.0),
        (lambda x: special.kl_div(x, 2.0), 0.0, -np.inf, np.inf),
        (lambda x: special.xlog1py(x, -1.0), 0.0, -np.inf, ...),
        (lambda y: special.xlog1py(0.0, y), 3.0, 0.0, 0.0),
        (lambda x: special.gammainc(2.5, x), 0.0, 0.0, None),
        (lambda x: special.gammainc(1.0, x), 0.0, 1.0, -1.0),
        (lambda x: special.gammainc(0.5, x), 0.0, np.inf, None),
        (special.ndtri, 0.0, np.inf, None),
        (special.ndtri, 1.0, np.inf, np.inf),
        (special.erfinv, 1.0, np.inf, np.inf),
        (special.erfinv, -1.0, np.inf, -np.inf),
        (special.erfcinv, 0.0, -np.inf, np.inf),
        (special.log_ndtr, 50.0, 0.0, 0.0),
        (special.log_ndtr, np.inf, 0.0, None),
        (special.k0, 0.0, -np.inf, np.inf),
        (special.y0, 0.0, np.inf, None),
        (lambda x: special.beta(x, 2.0), 0.0, None, None),
        (special.i0e, 0.0, 0.0, None),  # the middle of -1 and 1, as for |x|
        (lambda r: special.huber(2.0, r), 0.0, 0.0, 1.0),
        (lambda r: special.huber(2.0, r), -5.0, -2.0, 0.0),
        (lambda r: special.huber(-2.0, r), 1.0, None, ...),
        (special.exprel, 0.0, 0.5, 1.0 / 3.0),
        (lambda x: special.boxcox(x, 0.0), 2.0, 0.5, -0.25),
        (lambda x: special.boxcox1p(x, 0.0), 1.0, 0.5, -0.25),
        (lambda x: special.inv_boxcox(x, 0.0), 1.0, np.e, np.e),
    ],
)
def test_at_the_ends_of_domains(f, x, first, second):
    """The limits from within, of the second derivative also NaN; None: infinite or NaN; ...: whatever."""
    slope, curvature = derivatives(f, x, 2)
    assert slope == first or (first is None and not np.isfinite(slope))
    if second is None:
        assert not np.isfinite(curvature)
    elif second is not ...:
        assert np.isnan(curvature) or curvature == pytest.approx(second, rel=1e-14)


@pytest.mark.parametrize("x", [-1e3, -30.0, -1.0, 0.0, 3.0, 20.0, 60.0])
def test_log_ndtr_in_float32(x):
    expected = [float(d) for d in truth(log_ndtr, x, 2)] if x < 30 else [0.0, 0.0]
    np.testing.assert_allclose(
        derivatives(special.log_ndtr, x, 2, np.float32), expected, rtol=1e-5, atol=1e-30
    )


ORDERS = ["jv", "yn", "kn", "yv", "iv", "kv", "ive", "kve", "gammainc", "gammaincc", "gammaincinv"]


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_needs_a_gradient_is_an_error(name):
    function = getattr(special, name)
    argument = {"gamma": "a", "yn": "n", "kn": "n"}.get(name[:5], "v")
    order, x = Tensor(2.0, requires_grad=True), Tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=f"{name}: there is no rule .* respect to {argument}; give"):
        function(order, x).backward()
    function(order.detach(), x).backward()
    assert np.isfinite(x.grad) and order.grad is None


@pytest.mark.parametrize("d", [1, 2, 5])
def test_multigammaln(d):
    x = np.array([2.5, 3.0, 7.25])
    np.testing.assert_allclose(
        functional.multigammaln(Tensor(x), d).data, special.multigammaln(x, d), rtol=1e-14
    )
    gradcheck(lambda x: functional.multigammaln(x, d), x)
    single = functional.multigammaln(Tensor(x.astype(np.float32)), d)
    assert single.dtype == np.float32


def test_density_of_a_gamma_distribution_is_the_slope_of_its_distribution_function():
    x = np.linspace(0.1, 60.0, 40)
    for a in (0.3, 1.0, 5.0, 19.9, 20.1, 40.0):
        t = Tensor(x, requires_grad=True)
        (slope,) = grad(special.gammainc(a, t), t, np.ones_like(x))
        np.testing.assert_allclose(slope, stats.gamma.pdf(x, a), rtol=1e-11)
    for a, b in ((0.3, 2.0), (5.0, 1.0)):
        p = np.linspace(0.01, 0.99, 20)
        t = Tensor(p, requires_grad=True)
        (slope,) = grad(special.betainc(a, b, t), t, np.ones_like(p))
        np.testing.assert_allclose(slope, stats.beta.pdf(p, a, b), rtol=1e-11)


# ------------------------------------------------------------------------------------------- beside HIPS autograd
@pytest.mark.parametrize(
    "name, low, high",
    [
        *[(name, 0.2, 4.0) for name in ("gammaln", "gamma", "digamma", "rgamma", "j0", "j1", "y0")],
        *[(name, 0.2, 4.0) for name in ("y1", "i0", "i1", "erf", "erfc", "expit")],
        *[(name, 0.05, 0.95) for name in ("erfinv", "logit")],
        ("erfcinv", 0.1, 1.9),
    ],
)
def test_gradients_as_those_of_autograd(name, low, high):
    autograd = pytest.importorskip("autograd")
    theirs = getattr(pytest.importorskip("autograd.scipy.special"), name)
    x = np.random.default_rng(0).uniform(low, high, 20)
    t = Tensor(x, requires_grad=True)
    (found,) = grad(getattr(special, name)(t), t, np.ones(20))
    np.testing.assert_allclose(found, autograd.elementwise_grad(theirs)(x), rtol=1e-11)


@pytest.mark.parametrize("name", ["beta", "betaln", "gammainc", "gammaincc"])
def test_gradients_of_two_arguments_as_those_of_autograd(name):
    autograd = pytest.importorskip("autograd")
    theirs = getattr(pytest.importorskip("autograd.scipy.special"), name)
    x = np.random.default_rng(0).uniform(0.2, 4.0, 20)
    t = Tensor(x, requires_grad=True)
    (found,) = grad(getattr(special, name)(2.0, t), t, np.ones(20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = autograd.elementwise_grad(theirs, 1)(2.0, x)
    np.testing.assert_allclose(found, expected, rtol=1e-10)

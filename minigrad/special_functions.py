"""The table of calculus for the functions of scipy.special.

This is a reference, to be looked things up in; ops.py says how an entry is read. Numbers in
parentheses, such as (7.10.1), are equations of the NIST Digital Library of Mathematical Functions,
https://dlmf.nist.gov.

A derivative at the end of a domain is infinite or NaN where there is none. Where the textbook's
rule would subtract two numbers that are nearly equal, and leave nothing but rounding, the rule here
is another one, and says so.

Know before reading: ops.py.
Know after: the derivatives of SciPy's functions. Those that are no ufuncs (polygamma, multigammaln,
logsumexp, softmax) do not ask their argument, so they are in functional.py. On a GPU, a function
and those that its rule calls must be in cupyx.scipy.special; else the error says so. CuPy 14 lacks
erfi, ndtri_exp, betaincc, powm1, hyp1f1, and the Bessel functions of any order.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log as natural_log
from math import pi
from math import sqrt as root

import numpy as np
from scipy import special

from minigrad.backend import special_of
from minigrad.ops import slope_of_absolute
from minigrad.table import Primitive, primitive
from minigrad.tensor import IMPLEMENTATIONS


def _none(name: str, argument: str) -> Callable:
    """The rule for an argument whose derivative no formula gives: an error that says so."""

    def rule(*_):
        raise TypeError(
            f"scipy.special.{name}: there is no rule for the derivative with respect to "
            f"{argument}; give {argument} as a plain array or number, or as {argument}.detach()"
        )

    return rule


# -------------------------------------------------------------------------------------------- gamma
gammaln = primitive(special.gammaln, lambda g, y, x: g * special.digamma(x))
loggamma = primitive(special.loggamma, lambda g, y, x: g * special.digamma(x))
gamma = primitive(special.gamma, lambda g, y, x: g * y * special.digamma(x))


def _rgamma_rule(g, y, x):
    """-y digamma(x). Near 0, -1, -2, ..., where y is 0 and digamma has poles, by reflection:

    y = sin(pi x) gamma(1 - x) / pi (5.5.3).
    """
    is_low = x < 0.5
    low = np.where(is_low, x, 0.0)
    high = np.where(is_low, 1.0, x)
    reflected = special.gamma(1.0 - low)
    sine = np.sin(pi * low) * (1.0 / pi)
    slope_low = reflected * (np.cos(pi * low) - sine * special.digamma(1.0 - low))
    return g * np.where(is_low, slope_low, -y * special.digamma(high))


rgamma = primitive(special.rgamma, _rgamma_rule)  # 1 / gamma
# SciPy's digamma calls itself psi: hence the name.
digamma = primitive(special.digamma, lambda g, y, x: g * polygamma(x, 1), name="digamma")


def _polygamma(x, n):  # in SciPy n comes first; here the arrays of an entry do
    orders = np.full_like(x, n, int)
    return special_of(x).polygamma(orders, x).astype(x.dtype)


polygamma: Primitive = primitive(
    _polygamma,
    lambda g, y, x, n: g * polygamma(x, n + 1),
    name="polygamma",
)


def _stirling(a):
    """log gamma(a) without (a - 1/2) log a - a + log(2 pi) / 2, exact from a = 20 on (5.11.1)."""
    r = 1.0 / (a * a)
    return (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / a


def _digamma_step(a, b):
    """digamma(a) - digamma(a + b).

    Where a is large the two are nearly equal: there their expansion (5.11.2) is subtracted term by
    term, the logarithms and the first powers as one fraction each.
    """
    is_large = (a > 20.0) & (b > 0.0)
    small_a = np.where(is_large, 1.0, a)
    large_a = np.where(is_large, a, 20.0)
    step = np.where(is_large, b, 1.0)
    end = large_a + step
    q = 1.0 / (large_a * large_a)
    r = 1.0 / (end * end)
    # The remaining powers 1/a^2, 1/a^4, ... with their Bernoulli numbers; 1/a^2 - 1/end^2 is split
    # off from all of them.
    difference = step * (large_a + end) * q * r
    rest = 1.0 / 12.0 - (q + r) / 120.0 + (q * q + q * r + r * r) / 252.0
    rest = rest - (q + r) * (q * q + r * r) / 240.0
    large = -np.log1p(step / large_a) - 0.5 * step / (large_a * end) - difference * rest
    small = special.digamma(small_a) - special.digamma(small_a + b)
    return np.where(is_large, large, small)


beta = primitive(
    special.beta,
    lambda g, y, a, b: g * y * _digamma_step(a, b),
    lambda g, y, a, b: g * y * _digamma_step(b, a),
)
betaln = primitive(
    special.betaln,
    lambda g, y, a, b: g * _digamma_step(a, b),
    lambda g, y, a, b: g * _digamma_step(b, a),
)


def _gamma_density(a, x):
    """x^(a-1) e^-x / gamma(a), the density of the gamma distribution (8.2.1, 8.2.4).

    Where a is large, its powers and gamma(a) are far larger than their quotient. Stirling's series
    (5.11.1) takes the large part out of both: what is left is small where x is near a.
    """
    a = a + np.zeros_like(x)  # an array where x is, even of a number
    is_large = a > 20.0
    small_a = np.where(is_large, 1.0, a)
    log_small = special.xlogy(small_a - 1.0, x) - x - special.gammaln(small_a)
    large_a = np.where(is_large, a, 21.0)
    ratio = np.log1p((x - large_a) / large_a)
    log_large = (large_a - 1.0) * ratio - (x - large_a) - _stirling(large_a)
    log_large = log_large - 0.5 * np.log(2.0 * pi * large_a)
    return np.exp(np.where(is_large, log_large, log_small))


gammainc = primitive(
    special.gammainc,
    _none("gammainc", "a"),
    lambda g, y, a, x: g * _gamma_density(a, x),
)
gammaincc = primitive(
    special.gammaincc,
    _none("gammaincc", "a"),
    lambda g, y, a, x: -g * _gamma_density(a, x),
)
# Inverses: y is such that gammainc(a, y) = p.
gammaincinv = primitive(
    special.gammaincinv,
    _none("gammaincinv", "a"),
    lambda g, y, a, p: g / _gamma_density(a, y),
)
gammainccinv = primitive(
    special.gammainccinv,
    _none("gammainccinv", "a"),
    lambda g, y, a, p: -g / _gamma_density(a, y),
)


def _beta_density(a, b, x):
    """x^(a-1) (1-x)^(b-1) / beta(a, b), the density of the beta distribution (8.17.1).

    Where a and b are large, Stirling's series takes the large part out, as in _gamma_density: x and
    1 - x are divided by their means, a / (a + b) and b / (a + b).
    """
    is_large = (np.minimum(a, b) + np.zeros_like(x)) > 20.0
    small_a = np.where(is_large, 1.0, a)
    small_b = np.where(is_large, 1.0, b)
    log_small = special.xlogy(small_a - 1.0, x) + special.xlog1py(small_b - 1.0, -x)
    log_small = log_small - special.betaln(small_a, small_b)
    large_a = np.where(is_large, a, 21.0)
    large_b = np.where(is_large, b, 21.0)
    n = large_a + large_b
    deviation = (x - large_a / n) * n
    log_large = (large_a - 1.0) * np.log1p(deviation / large_a)
    log_large = log_large + (large_b - 1.0) * np.log1p(-deviation / large_b)
    log_large = log_large - _stirling(large_a) - _stirling(large_b) + _stirling(n)
    log_large = log_large + 0.5 * np.log(n * n * n / (2.0 * pi * large_a * large_b))
    return np.exp(np.where(is_large, log_large, log_small))


betainc = primitive(
    special.betainc,
    _none("betainc", "a"),
    _none("betainc", "b"),
    lambda g, y, a, b, x: g * _beta_density(a, b, x),
)
betaincc = primitive(
    special.betaincc,
    _none("betaincc", "a"),
    _none("betaincc", "b"),
    lambda g, y, a, b, x: -g * _beta_density(a, b, x),
)


# ----------------------------------------------------------------------- error function, and normal
def _erfcx_rule(g, y, x):
    """2 x y - 2 / sqrt(pi).

    For large x the two are nearly equal: there it is the series of their difference (7.12.1), in
    powers of t = -1 / (2 x^2): t + 3 t^2 + 3 5 t^3 + ..., of which thirteen terms are enough.
    """
    is_far = x > 10.0
    far = np.where(is_far, x, 10.0)
    t = -0.5 / (far * far)
    series = 1.0
    for k in range(12, 0, -1):
        series = 1.0 + (2.0 * k + 1.0) * t * series
    c = 2.0 / root(pi)
    return g * np.where(is_far, c * t * series, 2.0 * x * y - c)


erf = primitive(special.erf, lambda g, y, x: g * np.exp(-x * x) * (2.0 / root(pi)))
erfc = primitive(special.erfc, lambda g, y, x: g * np.exp(-x * x) * (-2.0 / root(pi)))
erfi = primitive(special.erfi, lambda g, y, x: g * np.exp(x * x) * (2.0 / root(pi)))
erfcx = primitive(special.erfcx, _erfcx_rule)  # exp(x^2) erfc(x)
erfinv = primitive(special.erfinv, lambda g, y, x: g * np.exp(y * y) * (0.5 * root(pi)))
erfcinv = primitive(special.erfcinv, lambda g, y, x: g * np.exp(y * y) * (-0.5 * root(pi)))


def _normal_ratio(x, log_cdf):
    """density / distribution function of the standard normal at x, where log_cdf = log_ndtr(x).

    For negative x both underflow; as sqrt(2/pi) / erfcx(-x / sqrt 2) their ratio does not (7.8.1).
    """
    is_above = x > 0.0
    below = np.where(is_above, 0.0, x)
    ratio_below = root(2.0 / pi) / special.erfcx(-below / root(2.0))
    ratio_above = np.exp(-0.5 * x * x - log_cdf) / root(2.0 * pi)
    return np.where(is_above, ratio_above, ratio_below)


ndtr = primitive(special.ndtr, lambda g, y, x: g * np.exp(-0.5 * x * x) * (1.0 / root(2.0 * pi)))
log_ndtr = primitive(special.log_ndtr, lambda g, y, x: g * _normal_ratio(x, y))
ndtri = primitive(special.ndtri, lambda g, y, x: g * np.exp(0.5 * y * y) * root(2.0 * pi))
ndtri_exp = primitive(special.ndtri_exp, lambda g, y, x: g / _normal_ratio(y, x))

# -------------------------------------------------------------------------------- logistic, x log x
# Where y is near 1, 1 - y has few digits: expit(-x) would have all, and takes ten times as long.
expit = primitive(special.expit, lambda g, y, x: g * y * (1.0 - y))
logit = primitive(special.logit, lambda g, y, x: g / (x * (1.0 - x)))
log_expit = primitive(special.log_expit, lambda g, y, x: g * special.expit(-x))
xlogy = primitive(
    special.xlogy,
    lambda g, y, a, b: special.xlogy(g, b),
    lambda g, y, a, b: g * a / b,
)
xlog1py = primitive(
    special.xlog1py,
    lambda g, y, a, b: special.xlog1py(g, b),
    lambda g, y, a, b: g * a / (1.0 + b),
)
entr = primitive(special.entr, lambda g, y, x: -g * (np.log(x) + 1.0))  # -x log x


def _no_negative(x):
    """1, and NaN where x is negative: there these functions are infinite, without a slope."""
    return np.where(x < 0.0, float("nan"), 1.0)


rel_entr = primitive(  # a log(a / b)
    special.rel_entr,
    lambda g, y, a, b: g * (np.log(a / b) + 1.0),
    lambda g, y, a, b: -g * a / b * _no_negative(a) * _no_negative(b),
)
kl_div = primitive(  # a log(a / b) - a + b
    special.kl_div,
    lambda g, y, a, b: g * np.log(a / b),
    lambda g, y, a, b: g * (b - a) / b * _no_negative(a) * _no_negative(b),
)


# ----------------------------------------------------------------------------- exponentials, powers
hyp1f1: Primitive = primitive(  # (13.3.15)
    special.hyp1f1,
    _none("hyp1f1", "a"),
    _none("hyp1f1", "b"),
    lambda g, y, a, b, x: g * a / b * hyp1f1(a + 1.0, b + 1.0, x),
)


def _exprel_slope(x):
    """The derivative of (e^x - 1) / x, as a hypergeometric function: exact at x = 0 (13.3.15)."""
    return 0.5 * hyp1f1(2.0, 3.0, x)


exprel = primitive(special.exprel, lambda g, y, x: g * _exprel_slope(x))
exp10 = primitive(special.exp10, lambda g, y, x: g * y * natural_log(10.0))
powm1 = primitive(  # a^b - 1; the rules are those of np.power
    special.powm1,
    lambda g, y, a, b: g * b * np.power(a, b - 1.0),
    lambda g, y, a, b: g * special.xlogy(y + 1.0, a),
)
sindg = primitive(special.sindg, lambda g, y, x: g * special.cosdg(x) * (pi / 180.0))
cosdg = primitive(special.cosdg, lambda g, y, x: -g * special.sindg(x) * (pi / 180.0))
tandg = primitive(special.tandg, lambda g, y, x: g * (1.0 + y * y) * (pi / 180.0))
cotdg = primitive(special.cotdg, lambda g, y, x: -g * (1.0 + y * y) * (pi / 180.0))
cosm1 = primitive(special.cosm1, lambda g, y, x: -g * np.sin(x))
expi = primitive(special.expi, lambda g, y, x: g * np.exp(x) / x)  # (6.2.5)
exp1 = primitive(special.exp1, lambda g, y, x: -g * np.exp(-x) / x)  # (6.2.1)

# With u = log x, boxcox is (e^(lambda u) - 1) / lambda = u exprel(lambda u). Its inverse has the
# inverse slope in x, and in lambda what keeps boxcox(y, lambda) where it is.
boxcox = primitive(
    special.boxcox,
    lambda g, y, x, lmbda: g * np.power(x, lmbda - 1.0),
    lambda g, y, x, lmbda: g * np.square(np.log(x)) * _exprel_slope(lmbda * np.log(x)),
)
boxcox1p = primitive(
    special.boxcox1p,
    lambda g, y, x, lmbda: g * np.power(1.0 + x, lmbda - 1.0),
    lambda g, y, x, lmbda: g * np.square(np.log1p(x)) * _exprel_slope(lmbda * np.log1p(x)),
)


def _inv_boxcox_slope(u, lmbda):
    """The derivative of e^u with respect to lambda, where u exprel(lambda u) stays the same."""
    return -np.exp((1.0 - lmbda) * u) * u * u * _exprel_slope(lmbda * u)


inv_boxcox = primitive(
    special.inv_boxcox,
    lambda g, y, x, lmbda: g * np.power(y, 1.0 - lmbda),
    lambda g, y, x, lmbda: g * _inv_boxcox_slope(np.log(y), lmbda),
)
inv_boxcox1p = primitive(
    special.inv_boxcox1p,
    lambda g, y, x, lmbda: g * np.power(1.0 + y, 1.0 - lmbda),
    lambda g, y, x, lmbda: g * _inv_boxcox_slope(np.log1p(y), lmbda),
)


# ------------------------------------------------------------------------------------ robust losses
def _pseudo_huber_rule_delta(g, y, delta, r):
    """2 delta (s - 1) - r^2 / (delta s), with s = sqrt(1 + (r / delta)^2), as one fraction."""
    h = np.sqrt(np.square(delta) + np.square(r))
    return g * np.square(np.square(r)) / (h * np.square(delta + h))


huber = primitive(
    special.huber,
    lambda g, y, delta, r: g * np.maximum(np.absolute(r) - delta, 0.0) * _no_negative(delta),
    lambda g, y, delta, r: g * np.minimum(np.maximum(r, -delta), delta) * _no_negative(delta),
)
pseudo_huber = primitive(
    special.pseudo_huber,
    _pseudo_huber_rule_delta,
    # r / sqrt(1 + (r / delta)^2); as a sine its own derivative is no difference.
    lambda g, y, delta, r: g * delta * np.sin(np.arctan(r / delta)),
)

# ------------------------------------------------------------------------------------------- Bessel
# J and Y (10.6.1), I and K (10.29.1); those of a fixed order are 0, 1 (10.6.3, 10.29.3).
j0 = primitive(special.j0, lambda g, y, x: -g * special.j1(x))
j1 = primitive(special.j1, lambda g, y, x: g * 0.5 * (special.j0(x) - jv(2.0, x)))
jv: Primitive = primitive(
    special.jv,
    _none("jv", "v"),
    lambda g, y, v, x: g * 0.5 * (jv(v - 1.0, x) - jv(v + 1.0, x)),
)
y0 = primitive(special.y0, lambda g, y, x: -g * special.y1(x))
y1 = primitive(special.y1, lambda g, y, x: g * 0.5 * (special.y0(x) - yv(2.0, x)))
yv: Primitive = primitive(
    special.yv,
    _none("yv", "v"),
    lambda g, y, v, x: g * 0.5 * (yv(v - 1.0, x) - yv(v + 1.0, x)),
)
yn: Primitive = primitive(  # yv of a whole order; CUDA has no negative ones, so none is asked for
    special.yn,
    _none("yn", "n"),
    lambda g, y, n, x: g * (n / x * y - yn(n + 1.0, x)),
)
i0 = primitive(special.i0, lambda g, y, x: g * special.i1(x))
IMPLEMENTATIONS[np.i0] = i0
i1 = primitive(special.i1, lambda g, y, x: g * 0.5 * (special.i0(x) + iv(2.0, x)))
iv: Primitive = primitive(
    special.iv,
    _none("iv", "v"),
    lambda g, y, v, x: g * 0.5 * (iv(v - 1.0, x) + iv(v + 1.0, x)),
)
k0 = primitive(special.k0, lambda g, y, x: -g * special.k1(x))
k1 = primitive(special.k1, lambda g, y, x: -g * 0.5 * (special.k0(x) + kv(2.0, x)))
kv: Primitive = primitive(
    special.kv,
    _none("kv", "v"),
    lambda g, y, v, x: -g * 0.5 * (kv(v - 1.0, x) + kv(v + 1.0, x)),
)
kn: Primitive = primitive(  # kv of a whole order
    special.kn,
    _none("kn", "n"),
    lambda g, y, n, x: -g * 0.5 * (kn(np.absolute(n - 1.0), x) + kn(n + 1.0, x)),
)


def _scaled_slope(y, v, x, slope, sign):
    """The derivative of ive (sign -1) or kve (sign 1), which are I and K without their e^x, e^-x.

    slope(x): the derivative as the difference of two numbers, which are nearly equal for large x.
    There it is the derivative of Hankel's expansion, x^(-1/2) times a series in 1/x with the terms
    c_k below (10.40.1, 10.40.2).
    """
    is_far = np.absolute(x) > 50.0 + 10.0 * v * v
    near = np.where(is_far, 1.0, x)
    far = np.where(is_far, x, 50.0)
    c = 1.0
    series = 1.0
    by_log_x = 0.5  # minus the derivative of the whole by log x, over x^(-1/2)
    for k in range(1, 14):
        c = c * (4.0 * v * v - (2.0 * k - 1.0) ** 2) * (sign / (8.0 * k)) / np.absolute(far)
        series = series + c
        by_log_x = by_log_x + (k + 0.5) * c
    return np.where(is_far, -y * by_log_x / (series * far), slope(near))


def _ive_slope(y, v, x):
    """That of e^-|x| I(x); at x = 0 the middle of the slopes to either side, as for |x|."""

    def slope(x):
        neighbours = ive(v - 1.0, x) + ive(v + 1.0, x)
        return 0.5 * neighbours - slope_of_absolute(x) * y

    return _scaled_slope(y, v, x, slope, -1.0)


def _kve_slope(y, v, x):
    def slope(x):
        return y - 0.5 * (kve(v - 1.0, x) + kve(v + 1.0, x))

    return _scaled_slope(y, v, x, slope, 1.0)


i0e = primitive(special.i0e, lambda g, y, x: g * _ive_slope(y, 0.0, x))
i1e = primitive(special.i1e, lambda g, y, x: g * _ive_slope(y, 1.0, x))
ive: Primitive = primitive(
    special.ive,
    _none("ive", "v"),
    lambda g, y, v, x: g * _ive_slope(y, v, x),
)
k0e = primitive(special.k0e, lambda g, y, x: g * _kve_slope(y, 0.0, x))
k1e = primitive(special.k1e, lambda g, y, x: g * _kve_slope(y, 1.0, x))
kve: Primitive = primitive(
    special.kve,
    _none("kve", "v"),
    lambda g, y, v, x: g * _kve_slope(y, v, x),
)

"""The table of calculus: NumPy's functions that have rules of their own.

This is a reference, to be looked things up in. How to read an entry:

    multiply = primitive(
        np.multiply,
        lambda g, y, a, b: g * b,    the gradient of a, from that of the output y
        lambda g, y, a, b: g * a,    the gradient of b
    )

Know before reading: table.py. Constants in rules are Python floats, which keep float32 as it is.
Know after: the derivatives of NumPy's functions. Those of SciPy's are in special_functions.py,
those of matrices in linalg.py, and kernels of networks and counts have theirs beside them. All
others (derived.py) follow by the chain rule.
"""

from __future__ import annotations

import operator
from functools import wraps
from math import factorial, pi
from math import log as ln

import numpy as np
from scipy import special

from minigrad.backend import add_at, floating
from minigrad.fused import fuse
from minigrad.table import Primitive, primitive
from minigrad.tensor import IMPLEMENTATIONS

# -------------------------------------------------------------------------------------- arithmetic
add = primitive(
    np.add,
    lambda g, y, a, b: g,
    lambda g, y, a, b: g,
)
subtract = primitive(
    np.subtract,
    lambda g, y, a, b: g,
    lambda g, y, a, b: -g,
)
multiply = primitive(
    np.multiply,
    lambda g, y, a, b: g * b,
    lambda g, y, a, b: g * a,
)
divide = primitive(
    np.divide,
    lambda g, y, a, b: g / b,
    lambda g, y, a, b: -g * y / b,
)


def _quotient(a, b):
    """a / b, and 0 for 0 / 0, where it has no derivative.

    It is the slope of a length, x / |x|, which by convention is 0 at 0.
    """
    both_are_0 = (a == 0) & (b == 0)
    return np.where(both_are_0, 0.0, a / (b + both_are_0))


quotient = primitive(
    _quotient,
    lambda g, y, a, b: g / b,
    lambda g, y, a, b: -g * y / b,
    name="quotient",
)
negative = primitive(np.negative, lambda g, y, x: -g)
reciprocal = primitive(np.reciprocal, lambda g, y, x: -g * y * y)
square = primitive(np.square, lambda g, y, x: 2.0 * g * x)
sqrt = primitive(np.sqrt, lambda g, y, x: 0.5 * g / y)
cbrt = primitive(np.cbrt, lambda g, y, x: g / (3.0 * y * y))


def _power_rule(g, y, a, b):
    """b a^(b - 1). At a = b = 0, where 0 * 0^-1 is NaN, the exponent is 0, and the slope 0."""
    both_are_0 = (a == 0) & (b == 0)
    return g * b * np.power(a, b - 1.0 + both_are_0)


def _exponent_rule(g, y, a, b):
    """a^b log a. At a = 0, where 0 * log 0 is NaN, it is 0 * log 1 = 0."""
    return g * y * np.log(a + (a == 0))


power = primitive(np.power, _power_rule, _exponent_rule)
# What is left over by division: a - b n, where the whole number n is rounded down for remainder
# (the operator %), and towards 0 for fmod.
remainder = primitive(
    np.remainder,
    lambda g, y, a, b: g,
    lambda g, y, a, b: -g * np.floor_divide(a, b),
)
fmod = primitive(
    np.fmod,
    lambda g, y, a, b: g,
    lambda g, y, a, b: -g * np.rint((a - y) / b),
)

# ------------------------------------------------------------------------ exponentials, logarithms
exp = primitive(np.exp, lambda g, y, x: g * y)
expm1 = primitive(np.expm1, lambda g, y, x: g * np.exp(x))
log = primitive(np.log, lambda g, y, x: g / x)
log1p = primitive(np.log1p, lambda g, y, x: g / (1.0 + x))
exp2 = primitive(np.exp2, lambda g, y, x: g * y * ln(2.0))
log2 = primitive(np.log2, lambda g, y, x: g / (x * ln(2.0)))
log10 = primitive(np.log10, lambda g, y, x: g / (x * ln(10.0)))
logaddexp = primitive(
    np.logaddexp,
    lambda g, y, a, b: g * special.expit(a - b),
    lambda g, y, a, b: g * special.expit(b - a),
)
logaddexp2 = primitive(
    np.logaddexp2,
    lambda g, y, a, b: g * special.expit((a - b) * ln(2.0)),
    lambda g, y, a, b: g * special.expit((b - a) * ln(2.0)),
)

# ----------------------------------------------------------------------------------- trigonometric
sin = primitive(np.sin, lambda g, y, x: g * np.cos(x))
cos = primitive(np.cos, lambda g, y, x: -g * np.sin(x))
tan = primitive(np.tan, lambda g, y, x: g * (1.0 + y * y))
arcsin = primitive(np.arcsin, lambda g, y, x: g / np.sqrt((1.0 - x) * (1.0 + x)))
arccos = primitive(np.arccos, lambda g, y, x: -g / np.sqrt((1.0 - x) * (1.0 + x)))
arctan = primitive(np.arctan, lambda g, y, x: g / (1.0 + x * x))
# b / (a² + b²) and -a / (a² + b²), by a length that neither overflows nor vanishes. At the origin,
# where no angle is, they are NaN.
arctan2 = primitive(
    np.arctan2,
    lambda g, y, a, b: g * (b / np.hypot(a, b)) / np.hypot(a, b),
    lambda g, y, a, b: -g * (a / np.hypot(a, b)) / np.hypot(a, b),
)
hypot = primitive(
    np.hypot,
    lambda g, y, a, b: g * quotient(a, y),
    lambda g, y, a, b: g * quotient(b, y),
)
deg2rad = primitive(np.deg2rad, lambda g, y, x: g * (pi / 180.0))
rad2deg = primitive(np.rad2deg, lambda g, y, x: g * (180.0 / pi))
radians = primitive(np.radians, lambda g, y, x: g * (pi / 180.0))
degrees = primitive(np.degrees, lambda g, y, x: g * (180.0 / pi))


def _sinc(x):
    """sin(z) / z with z = pi x, as NumPy has it, and 1 at 0."""
    z = pi * x
    z = np.where(z == 0, 1e-20, z)
    return np.sin(z) / z


def _sinc_slope(x):
    """(cos(z) - sin(z) / z) / z, and its Taylor series where that would cancel; times pi."""
    z = pi * x
    is_far = np.absolute(z) > 1.0
    near = np.where(is_far, 0.0, z)
    far = np.where(is_far, z, 1.0)
    series = 0.0
    for k in range(9, 0, -1):  # the term with k = 10 would be below 1e-18
        series = series * near * near + (-1.0) ** k * 2.0 * k / factorial(2 * k + 1)
    return pi * np.where(is_far, (np.cos(far) - np.sin(far) / far) / far, near * series)


sinc = primitive(_sinc, lambda g, y, x: g * _sinc_slope(x), name="sinc")
IMPLEMENTATIONS[np.sinc] = sinc

# -------------------------------------------------------------------------------------- hyperbolic
sinh = primitive(np.sinh, lambda g, y, x: g * np.cosh(x))
cosh = primitive(np.cosh, lambda g, y, x: g * np.sinh(x))
tanh = primitive(np.tanh, lambda g, y, x: g * (1.0 - y * y))
arcsinh = primitive(np.arcsinh, lambda g, y, x: g / np.hypot(x, 1.0))  # hypot does not overflow
arccosh = primitive(np.arccosh, lambda g, y, x: g / (np.sqrt(x - 1.0) * np.sqrt(x + 1.0)))
arctanh = primitive(np.arctanh, lambda g, y, x: g / ((1.0 - x) * (1.0 + x)))

# -------------------------------------------------------------------------- steps, whose slope is 0
sign = primitive(np.sign, lambda g, y, x: 0.0 * g)
floor = primitive(np.floor, lambda g, y, x: 0.0 * g)
ceil = primitive(np.ceil, lambda g, y, x: 0.0 * g)
trunc = primitive(np.trunc, lambda g, y, x: 0.0 * g)
rint = primitive(np.rint, lambda g, y, x: 0.0 * g)
round_ = primitive(np.round, lambda g, y, x, decimals=0: 0.0 * g)
floor_divide = primitive(
    np.floor_divide,
    lambda g, y, a, b: 0.0 * g,
    lambda g, y, a, b: 0.0 * g,
)
imag = primitive(np.imag, lambda g, y, x: 0.0 * g)  # of real numbers
IMPLEMENTATIONS[np.around] = round_
IMPLEMENTATIONS[np.fix] = trunc

# ------------------------------------------------------------------------------ piecewise, choices
# By convention the slope of |x| at 0 is 0. But there the slope has no derivative, not one of 0: the
# second derivative of |x|^2 is 2. (So it is not np.sign, whose rule above gives 0 everywhere.)
slope_of_absolute = primitive(
    lambda x: np.sign(x),
    lambda g, y, x: np.where(x == 0, float("nan"), 0.0 * g),
    name="slope_of_absolute",
)
absolute = primitive(np.absolute, lambda g, y, x: g * slope_of_absolute(x))
fabs = primitive(np.fabs, lambda g, y, x: g * slope_of_absolute(x))


def _to_the_chosen(g, is_chosen, is_tie):
    """The gradient of the larger (or smaller) of two; where they are equal each gets half."""
    return np.where(is_tie, 0.5 * g, np.where(is_chosen, g, 0.0))


maximum = primitive(
    np.maximum,
    lambda g, y, a, b: _to_the_chosen(g, a > b, a == b),
    lambda g, y, a, b: _to_the_chosen(g, b > a, a == b),
)
minimum = primitive(
    np.minimum,
    lambda g, y, a, b: _to_the_chosen(g, a < b, a == b),
    lambda g, y, a, b: _to_the_chosen(g, b < a, a == b),
)
# Of a number and NaN, these two choose the number.
fmax = primitive(
    np.fmax,
    lambda g, y, a, b: _to_the_chosen(g, (a > b) | np.isnan(b), a == b),
    lambda g, y, a, b: _to_the_chosen(g, (b > a) | np.isnan(a), a == b),
)
fmin = primitive(
    np.fmin,
    lambda g, y, a, b: _to_the_chosen(g, (a < b) | np.isnan(b), a == b),
    lambda g, y, a, b: _to_the_chosen(g, (b < a) | np.isnan(a), a == b),
)
nan_to_num = primitive(
    np.nan_to_num,
    lambda g, y, x, nan=0.0, posinf=None, neginf=None: np.where(np.isfinite(x), g, 0.0),
)
where = primitive(
    lambda condition, a, b: np.where(condition, a, b),
    None,
    lambda g, y, condition, a, b: np.where(condition, g, 0.0),
    lambda g, y, condition, a, b: np.where(condition, 0.0, g),
    name="where",
)
IMPLEMENTATIONS[np.where] = where


def _astype(x, dtype):
    if np.dtype(dtype).kind != "f":
        raise TypeError(
            f"{np.dtype(dtype)} is not floating, as Tensors are; take .data.astype, through which "
            "no derivative flows"
        )
    return x.astype(floating(dtype, "dtype"))


# NumPy's own np.astype has further parameters, and np.where above has others: so the function that
# computes is one of our own, and NumPy's name is registered for it.
astype = primitive(_astype, lambda g, y, x, dtype: g, name="astype")
IMPLEMENTATIONS[np.astype] = astype


# ------------------------------------------------------------------------------------- reductions
def _with_kept_axes(g, x, axis, keepdims):
    """A reduction's result (or its gradient), shaped as if its axes had been kept with length 1."""
    if keepdims:
        return g
    gone = range(x.ndim) if axis is None else [a % x.ndim for a in np.atleast_1d(axis)]
    return np.reshape(g, tuple(1 if i in gone else n for i, n in enumerate(x.shape)))


@wraps(np.sum)
def _sum(x, **keywords):
    if "dtype" in keywords:
        floating(keywords["dtype"] or x.dtype, "dtype")
    return np.sum(x, **keywords)


def _sum_rule(g, y, x, axis=None, dtype=None, keepdims=False, where=True):
    """Every entry was added once: each gets the gradient of its sum; 0 where it was left out."""
    spread = np.broadcast_to(_with_kept_axes(g, x, axis, keepdims), x.shape)
    return spread if where is True else np.where(where, spread, 0.0)


def _norm_rule(g, y, x, axis=None, keepdims=False):
    """x / y: the direction of x. Where all entries are 0 it is 0, and has no derivative."""
    y = _with_kept_axes(y, x, axis, keepdims)
    return _with_kept_axes(g, x, axis, keepdims) * quotient(x, y)


def _extremum_rule(g, y, x, axis=None, keepdims=False):
    """The gradient goes to the entry that was chosen; entries that tie share it.

    As in PyTorch's amax; its max along an axis chooses one of them.
    """
    chosen = x == _with_kept_axes(y, x, axis, keepdims)
    n_chosen = np.sum(chosen, axis=axis, keepdims=True).astype(x.dtype)
    return _with_kept_axes(g, x, axis, keepdims) * chosen / n_chosen


def _cumsum_rule(g, y, x, axis=None):
    """Entry i is part of all sums from the i-th on: it gets the sum of their gradients."""
    backwards = np.cumsum(np.flip(g, axis), axis)
    return np.reshape(np.flip(backwards, axis), x.shape)


def _cumprod_rule(g, y, x, axis=None):
    """Entry j is a factor of all products from the j-th on.

    So it gets P_j S_j, where P_j is the product of all before it, and S_j = g_j + x_(j+1) S_(j+1)
    sums up what follows it. Unlike the sums of g y over x, this is right where entries are 0.
    """
    if axis is None or x.ndim == 0:
        return np.reshape(_cumprod_rule(g, y, np.reshape(x, (-1,)), 0), x.shape)
    g, y, factors = [np.swapaxes(z, 0, axis) if axis else z for z in (g, y, x)]
    what_follows = [g[-1:]]
    for j in range(len(g) - 2, -1, -1):
        what_follows.append(g[j : j + 1] + factors[j + 1 : j + 2] * what_follows[-1])
    rest = np.concatenate(what_follows[::-1], axis=0)
    slopes = np.concatenate([rest[:1], rest[1:] * y[:-1]], axis=0)
    return np.swapaxes(slopes, 0, axis) if axis else slopes


sum_ = primitive(_sum, _sum_rule)
IMPLEMENTATIONS[np.sum] = sum_
norm = primitive(  # the Euclidean length; matrices.py has the other norms
    lambda x, axis=None, keepdims=False: np.sqrt(
        np.sum(np.square(x), axis=axis, keepdims=keepdims)
    ),
    _norm_rule,
    name="norm",
)
max_ = primitive(np.max, _extremum_rule)
min_ = primitive(np.min, _extremum_rule)
cumsum = primitive(np.cumsum, _cumsum_rule)
cumprod = primitive(np.cumprod, _cumprod_rule)
IMPLEMENTATIONS[np.amax] = max_
IMPLEMENTATIONS[np.amin] = min_


# y_k is the sum of a_i v_(k-i) over i; so the gradient of a_i is the sum of g_k v_(k-i) over k.
convolve: Primitive = primitive(
    lambda a, v: np.convolve(a, v),
    lambda g, y, a, v: convolve(g, v[::-1])[len(v) - 1 : len(g)],
    lambda g, y, a, v: convolve(g, a[::-1])[len(a) - 1 : len(g)],
    name="convolve",
)


# ----------------------------------------------------------------------------- shapes and reading
def _transpose_rule(g, y, x, axes=None):
    """The axes go back to where they came from."""
    if axes is None:
        return np.transpose(g)
    back = np.argsort([a % x.ndim for a in axes])
    return np.transpose(g, tuple(back.tolist()))


# NumPy's positive, the operator +x, is a copy as well.
copy = primitive(lambda x: x.copy(), lambda g, y, x: g, name="copy")
IMPLEMENTATIONS[np.copy] = copy
IMPLEMENTATIONS[np.positive] = copy
IMPLEMENTATIONS[np.conjugate] = copy  # of real numbers
reshape = primitive(
    lambda x, shape: x.reshape(shape),
    lambda g, y, x, shape: np.reshape(g, x.shape),
    name="reshape",
)
IMPLEMENTATIONS[np.reshape] = reshape
transpose = primitive(np.transpose, _transpose_rule)
broadcast_to = primitive(np.broadcast_to, lambda g, y, x, shape: g)  # the sweep sums it back


def _scatter(g, index, shape):
    """Zeros of a shape, with g added at an index; entries that the index names twice get both."""
    z = np.zeros_like(g, shape=shape)
    parts = index if isinstance(index, tuple) else (index,)
    if any(hasattr(part, "__len__") for part in parts):  # lists and arrays may name an entry twice
        add_at(z, index, g)
    else:
        z[index] = g
    return z


# Reading and scattering are each other's reverse.
getitem = primitive(
    lambda x, index: x[index],
    lambda g, y, x, index: scatter(g, index, x.shape),
    name="getitem",
)
IMPLEMENTATIONS[operator.getitem] = getitem
scatter: Primitive = primitive(
    _scatter, lambda g_of_z, z, g, index, shape: g_of_z[index], name="scatter"
)


def _concatenate(needs, *arrays, axis=0):
    return np.concatenate(arrays, axis=axis), None


def _concatenate_rule(g, y, saved, needs, *arrays, axis=0):
    """Each input gets back the slice of the gradient where it went."""
    ends = np.cumsum([x.shape[axis] for x in arrays]).tolist()
    other_axes = (slice(None),) * (axis % y.ndim)
    slices = [slice(end - x.shape[axis], end) for x, end in zip(arrays, ends)]
    return [g[(*other_axes, part)] for part in slices]


# It takes any number of arrays, so one rule gives the gradients of all. The rule is plain NumPy,
# and so can be differentiated itself; kernels that are not have a formula beside them (fused.py).
concatenate = fuse(None, _concatenate, _concatenate_rule, "concatenate")

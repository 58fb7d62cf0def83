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
# a / b, and 0 for 0 / 0, where it has no derivative. It is the slope of a length, x / |x|, which by
# convention is 0 at 0.
quotient = primitive(
    lambda a, b: np.where((a == 0) & (b == 0), 0.0, a / (b + ((a == 0) & (b == 0)))),
    lambda g, y, a, b: g / b,
    lambda g, y, a, b: -g * y / b,
    name="quotient",
)
negative = primitive(np.negative, lambda g, y, x: -g)
reciprocal = primitive(np.reciprocal, lambda g, y, x: -g * y * y)
square = primitive(np.square, lambda g, y, x: 2.0 * g * x)
sqrt = primitive(np.sqrt, lambda g, y, x: 0.5 * g / y)
# At a = b = 0 the exponent of the first rule is 0, not -1: the slope is 0. At a = 0, the second
# rule's y log a is y log 1 = 0, not 0 * -infinity.
power = primitive(
    np.power,
    lambda g, y, a, b: g * b * np.power(a, b - 1.0 + ((a == 0) & (b == 0))),
    lambda g, y, a, b: g * y * np.log(a + (a == 0)),
)

# ------------------------------------------------------------------------ exponentials, logarithms
exp = primitive(np.exp, lambda g, y, x: g * y)
expm1 = primitive(np.expm1, lambda g, y, x: g * np.exp(x))
log = primitive(np.log, lambda g, y, x: g / x)
log1p = primitive(np.log1p, lambda g, y, x: g / (1.0 + x))
logaddexp = primitive(
    np.logaddexp,
    lambda g, y, a, b: g * special.expit(a - b),
    lambda g, y, a, b: g * special.expit(b - a),
)

# ----------------------------------------------------------------------- trigonometric, hyperbolic
sin = primitive(np.sin, lambda g, y, x: g * np.cos(x))
cos = primitive(np.cos, lambda g, y, x: -g * np.sin(x))
arctan = primitive(np.arctan, lambda g, y, x: g / (1.0 + x * x))
sinh = primitive(np.sinh, lambda g, y, x: g * np.cosh(x))
cosh = primitive(np.cosh, lambda g, y, x: g * np.sinh(x))
tanh = primitive(np.tanh, lambda g, y, x: g * (1.0 - y * y))

# ------------------------------------------------------------------------------ piecewise, choices
# By convention the slope of |x| at 0 is 0. But there the slope has no derivative, not one of 0: the
# second derivative of |x|^2 is 2.
slope_of_absolute = primitive(
    lambda x: np.sign(x),
    lambda g, y, x: np.where(x == 0, float("nan"), 0.0 * g),
    name="slope_of_absolute",
)
absolute = primitive(np.absolute, lambda g, y, x: g * slope_of_absolute(x))
sign = primitive(np.sign, lambda g, y, x: 0.0 * g)


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


def _sum_rule(g, y, x, axis=None, keepdims=False):
    """Every entry was added once: each gets the gradient of its sum."""
    return np.broadcast_to(_with_kept_axes(g, x, axis, keepdims), x.shape)


def _norm_rule(g, y, x, axis=None, keepdims=False):
    """x / y: the direction of x. Where all entries are 0 it is 0, and has no derivative."""
    y = _with_kept_axes(y, x, axis, keepdims)
    return _with_kept_axes(g, x, axis, keepdims) * quotient(x, y)


def _extremum_rule(g, y, x, axis=None, keepdims=False):
    """The gradient goes to the entry that was chosen; entries that tie share it, as in PyTorch."""
    chosen = x == _with_kept_axes(y, x, axis, keepdims)
    n_chosen = np.sum(chosen, axis=axis, keepdims=True).astype(x.dtype)
    return _with_kept_axes(g, x, axis, keepdims) * chosen / n_chosen


def _cumsum_rule(g, y, x, axis=None):
    """Entry i is part of all sums from the i-th on: it gets the sum of their gradients."""
    backwards = np.cumsum(np.flip(g, axis), axis)
    return np.reshape(np.flip(backwards, axis), x.shape)


sum_ = primitive(np.sum, _sum_rule)
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
IMPLEMENTATIONS[np.amax] = max_
IMPLEMENTATIONS[np.amin] = min_


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
# and needs no twin.
concatenate = fuse(None, _concatenate, _concatenate_rule, "concatenate")

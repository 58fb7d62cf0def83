"""The table of calculus: every function that has a rule of its own, and the operators bound from it.

Know before reading: tensor.py. Constants in rules are Python floats, which keep float32 as it is.
Know after: all derivatives that the engine knows; the others (derived.py) follow from these by the chain rule.
"""

from math import pi, sqrt as root

import numpy as np
from scipy import special

from minigrad.backend import add_at, special_of
from minigrad.tensor import IMPLEMENTATIONS, Tensor, primitive, recorded

# fmt: off
# ------------------------------------------------------------------------------------------------------- elementwise
add = primitive(np.add, lambda g, y, a, b: g, lambda g, y, a, b: g)
subtract = primitive(np.subtract, lambda g, y, a, b: g, lambda g, y, a, b: -g)
multiply = primitive(np.multiply, lambda g, y, a, b: g * b, lambda g, y, a, b: g * a)
divide = primitive(np.divide, lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b)
negative = primitive(np.negative, lambda g, y, x: -g)
reciprocal = primitive(np.reciprocal, lambda g, y, x: -g * y * y)
square = primitive(np.square, lambda g, y, x: 2.0 * g * x)
sqrt = primitive(np.sqrt, lambda g, y, x: 0.5 * g / y)
exp = primitive(np.exp, lambda g, y, x: g * y)
expm1 = primitive(np.expm1, lambda g, y, x: g * np.exp(x))
log = primitive(np.log, lambda g, y, x: g / x)
log1p = primitive(np.log1p, lambda g, y, x: g / (1.0 + x))
sin = primitive(np.sin, lambda g, y, x: g * np.cos(x))
cos = primitive(np.cos, lambda g, y, x: -g * np.sin(x))
sinh = primitive(np.sinh, lambda g, y, x: g * np.cosh(x))
cosh = primitive(np.cosh, lambda g, y, x: g * np.sinh(x))
tanh = primitive(np.tanh, lambda g, y, x: g * (1.0 - y * y))
arctan = primitive(np.arctan, lambda g, y, x: g / (1.0 + x * x))
absolute = primitive(np.absolute, lambda g, y, x: g * np.sign(x))
sign = primitive(np.sign, lambda g, y, x: 0.0 * g)
logaddexp = primitive(np.logaddexp, lambda g, y, a, b: g * special.expit(a - b), lambda g, y, a, b: g * special.expit(b - a))
# Where two are equal each gets half, as in PyTorch.
maximum = primitive(np.maximum, lambda g, y, a, b: np.where(a == b, 0.5 * g, np.where(a > b, g, 0.0)),
                    lambda g, y, a, b: np.where(a == b, 0.5 * g, np.where(b > a, g, 0.0)))
minimum = primitive(np.minimum, lambda g, y, a, b: np.where(a == b, 0.5 * g, np.where(a < b, g, 0.0)),
                    lambda g, y, a, b: np.where(a == b, 0.5 * g, np.where(b < a, g, 0.0)))
where = primitive(lambda c, a, b: np.where(c, a, b), None, lambda g, y, c, a, b: np.where(c, g, 0.0),
                  lambda g, y, c, a, b: np.where(c, 0.0, g), name="where")
# At a = b = 0 the exponent is 0, not -1: the slope is 0. At a = 0, y log a is y log 1 = 0, not 0 * -infinity.
power = primitive(np.power, lambda g, y, a, b: g * b * np.power(a, b - 1.0 + ((a == 0) & (b == 0))),
                  lambda g, y, a, b: g * y * np.log(a + (a == 0)))
astype = primitive(lambda x, dtype: x.astype(dtype), lambda g, y, x, dtype: g, name="astype")

# ----------------------------------------------------------------------------------------------------- scipy.special
gammaln = primitive(special.gammaln, lambda g, y, x: g * special.digamma(x))
gamma = primitive(special.gamma, lambda g, y, x: g * y * special.digamma(x))
digamma = primitive(special.digamma, lambda g, y, x: g * polygamma(x, 1), name="digamma")
polygamma = primitive(lambda x, n: special_of(x).polygamma(np.full_like(x, n, int), x).astype(x.dtype),
                      lambda g, y, x, n: g * polygamma(x, n + 1), name="polygamma")
betaln = primitive(special.betaln, lambda g, y, a, b: g * (special.digamma(a) - special.digamma(a + b)),
                   lambda g, y, a, b: g * (special.digamma(b) - special.digamma(a + b)))
erf = primitive(special.erf, lambda g, y, x: g * np.exp(-x * x) * (2.0 / root(pi)))
erfc = primitive(special.erfc, lambda g, y, x: g * np.exp(-x * x) * (-2.0 / root(pi)))
ndtr = primitive(special.ndtr, lambda g, y, x: g * np.exp(-0.5 * x * x) * (1.0 / root(2.0 * pi)))
expit = primitive(special.expit, lambda g, y, x: g * y * (1.0 - y))
logit = primitive(special.logit, lambda g, y, x: g / (x * (1.0 - x)))
log_expit = primitive(special.log_expit, lambda g, y, x: g * special.expit(-x))
xlogy = primitive(special.xlogy, lambda g, y, a, b: special.xlogy(g, b), lambda g, y, a, b: g * a / b)


# -------------------------------------------------------------------------------------------------------- reductions
def _kept(g, x, axis, keepdims):
    """A reduction's result (or its gradient), shaped as if the axes had been kept with length 1."""
    if keepdims:
        return g
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in np.atleast_1d(axis)]
    return np.reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _to_extremum(g, y, x, axis=None, keepdims=False):
    """max and min: the gradient goes to the entry that was chosen; entries that tie share it, as in PyTorch's amax."""
    chosen = x == _kept(y, x, axis, keepdims)
    return _kept(g, x, axis, keepdims) * chosen / np.sum(chosen, axis=axis, keepdims=True).astype(x.dtype)


sum = primitive(np.sum, lambda g, y, x, axis=None, keepdims=False: np.broadcast_to(_kept(g, x, axis, keepdims), x.shape))
max = primitive(np.max, _to_extremum)
min = primitive(np.min, _to_extremum)
cumsum = primitive(np.cumsum, lambda g, y, x, axis=None: np.reshape(  # entry i is in all sums from i on
    np.flip(np.cumsum(np.flip(g, axis), axis), axis), x.shape))


# ------------------------------------------------------------------------------------------------- shapes and reading
def _scatter(g, index, shape):
    """Zeros of a shape, with g added at an index: the reverse of reading. Entries that were read twice get both."""
    z = np.zeros_like(g, shape=shape)
    if any(hasattr(i, "__len__") for i in (index if isinstance(index, tuple) else (index,))):
        add_at(z, index, g)
    else:
        z[index] = g
    return z


def _split_rule(g, y, saved, needs, *inputs, axis=0):
    """Each input gets back the slice of the gradient where it went."""
    ends = np.cumsum([x.shape[axis] for x in inputs]).tolist()
    before = (slice(None),) * (axis % y.ndim)
    return [g[before + (slice(end - x.shape[axis], end),)] for x, end in zip(inputs, ends)]


reshape = primitive(lambda x, shape: x.reshape(shape), lambda g, y, x, shape: np.reshape(g, x.shape), name="reshape")
IMPLEMENTATIONS.update({np.reshape: reshape, np.where: where})
transpose = primitive(np.transpose, lambda g, y, x, axes=None: np.transpose(
    g, None if axes is None else tuple(np.argsort([a % x.ndim for a in axes]).tolist())))
broadcast_to = primitive(np.broadcast_to, lambda g, y, x, shape: g)
getitem = primitive(lambda x, index: x[index], lambda g, y, x, index: scatter(g, index, x.shape), name="getitem")
scatter = primitive(_scatter, lambda gg, y, g, index, shape: gg[index], name="scatter")
concatenate = recorded(lambda needs, *arrays, axis=0: (np.concatenate(arrays, axis=axis), None), "concatenate", None, ["axis"],
                       joint=_split_rule)


# ---------------------------------------------------------------------------------------------------- linear algebra
def _turned(x):
    return np.swapaxes(x, -1, -2)


def _cholesky_rule(g, y, x):
    """S = L^-T Phi(L^T g) L^-1, made symmetric; Phi keeps the lower triangle and half the diagonal (Murray 2016, eq. 9)."""
    p = _turned(y) @ g
    p = 0.5 * (np.tril(p) + np.tril(p, -1))
    s = np.linalg.solve(_turned(y), _turned(np.linalg.solve(_turned(y), _turned(p))))
    return 0.5 * (s + _turned(s))


def _einsum_rule(i):
    """Two operands, no label twice in one, none in one alone: the gradient of one is again such a sum."""
    def rule(g, y, a, b, subscripts):
        left, right, out = subscripts.replace("->", ",").split(",")
        return np.einsum(f"{out},{right}->{left}", g, b) if i == 0 else np.einsum(f"{out},{left}->{right}", g, a)
    return rule


matmul = primitive(np.matmul, lambda g, y, a, b: g @ _turned(b), lambda g, y, a, b: _turned(a) @ g)  # of matrices
einsum = primitive(lambda a, b, subscripts: np.einsum(subscripts, a, b), _einsum_rule(0), _einsum_rule(1), name="einsum")
inv = primitive(np.linalg.inv, lambda g, y, x: -_turned(y) @ g @ _turned(y))
solve = primitive(np.linalg.solve, lambda g, y, a, b: -np.linalg.solve(_turned(a), g) @ _turned(y),
                  lambda g, y, a, b: np.linalg.solve(_turned(a), g))
det = primitive(np.linalg.det, lambda g, y, x: np.expand_dims(g * y, (-1, -2)) * _turned(np.linalg.inv(x)))
logabsdet = primitive(lambda x: np.linalg.slogdet(x)[1],
                      lambda g, y, x: np.expand_dims(g, (-1, -2)) * _turned(np.linalg.inv(x)), name="logabsdet")
cholesky = primitive(np.linalg.cholesky, _cholesky_rule)

# ---------------------------------------------------------------------------------------------------------- operators
for _name, _op in dict(add=add, sub=subtract, mul=multiply, truediv=divide, pow=power).items():
    setattr(Tensor, f"__{_name}__", _op)
    setattr(Tensor, f"__r{_name}__", lambda a, b, op=_op: op(b, a))
Tensor.__pow__ = lambda a, b: square(a) if type(b) in (int, float) and b == 2 else power(a, b)
Tensor.__neg__, Tensor.__abs__, Tensor.__getitem__ = negative, absolute, getitem

"""NumPy functions that need no rule of their own: each is plain NumPy over functions of the table.

This is a reference. `@implements(np.var)` says that what follows is what `numpy.var` does when it
is given a Tensor. Since it is made of functions with known derivatives, its derivatives of every
order follow.

Know before reading: ops.py, the table.
Know after: why a table of some fifty rules is enough for NumPy.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps

import numpy as np
from scipy import special

from minigrad import backend, ops
from minigrad.backend import Array
from minigrad.ops import concatenate, reshape
from minigrad.tensor import IMPLEMENTATIONS, Tensor


def implements(*functions: Callable) -> Callable:
    """Decorator: this is what NumPy's `functions` do when they are given Tensors."""

    def register(implementation):
        @wraps(implementation)
        def call(*inputs, **keywords):
            try:
                return implementation(*inputs, **keywords)
            except np.exceptions.AxisError as error:
                raise np.exceptions.AxisError(f"{functions[0].__name__}: {error}") from error

        call.keywords = tuple(inspect.signature(implementation).parameters)
        for function in functions:
            IMPLEMENTATIONS[function] = call
        return implementation

    return register


def as_operands(name: str, *operands) -> list:
    """Operands of which one at least is a Tensor, each with a shape; numbers follow its dtype.

    name: the function, for errors. TypeError for lists.
    """
    dtype = next(x.dtype for x in operands if isinstance(x, Tensor))
    found = []
    for x in operands:
        if type(x) is float:
            x = dtype.type(x)  # a NumPy scalar has a shape
        found.append(x if isinstance(x, Tensor) else backend.as_operand(x, dtype, name))
    return found


def positive_axes(axis, ndim: int) -> list[int]:
    """An axis argument (None for all, a number, or a tuple) as a list of axes from 0 on."""
    if axis is None:
        return list(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim)
    return [a % ndim for a in axes]


def _axes_before(x, axis) -> tuple:
    """The part of an index that stands before that of `axis`: x[(*_axes_before(x, 1), 3)]."""
    return (slice(None),) * positive_axes(int(axis), x.ndim)[0]


# ------------------------------------------------------------------------------------- statistics
def _n_reduced(x, axis) -> int:
    """How many entries a reduction over `axis` puts into one."""
    return math.prod(x.shape[a] for a in positive_axes(axis, x.ndim))


def _over(total, n):
    """total / n, and NaN instead of an error where n is 0, as NumPy has it."""
    return total / n if n > 0 else total * float("nan")


@implements(np.mean)
def mean(x: Array, axis=None, *, keepdims: bool = False) -> Array:
    return _over(np.sum(x, axis=axis, keepdims=keepdims), _n_reduced(x, axis))


@implements(np.var)
def var(x: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    deviations = x - mean(x, axis, keepdims=True)
    total = np.sum(np.square(deviations), axis=axis, keepdims=keepdims)
    return _over(total, _n_reduced(x, axis) - ddof)


@implements(np.std)
def std(x: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    """The length of the deviations over sqrt(n - ddof): where all are 0 its slope is 0."""
    deviations = x - mean(x, axis, keepdims=True)
    n = max(_n_reduced(x, axis) - ddof, 0)
    return _over(ops.norm(deviations, axis=axis, keepdims=keepdims), math.sqrt(n))


@implements(np.prod)
def prod(x: Array, axis=None, *, keepdims: bool = False) -> Array:
    """In pairs, then pairs of pairs: unlike y / x as a rule, right where entries are 0."""
    for a in positive_axes(axis, x.ndim):
        x = swapaxes(_product_of_first_axis(swapaxes(x, 0, a)), 0, a)
    return x if keepdims else squeeze(x, tuple(positive_axes(axis, x.ndim)))


def _product_of_first_axis(x):
    """The product over the first axis, which stays with length 1."""
    if len(x) == 0:
        zero = np.sum(x) * 0.0  # depends on x, so that the result stays part of the graph
        return np.ones_like(x.data, shape=(1, *x.shape[1:])) + zero
    while len(x) > 1:
        half = len(x) // 2
        pairs = x[:half] * x[half : 2 * half]
        is_odd = len(x) % 2 == 1
        x = concatenate(pairs, x[2 * half :], axis=0) if is_odd else pairs
    return x


# ------------------------------------------------------------------------------------ elementwise
@implements(np.clip)
def clip(x: Array, a_min=None, a_max=None, *, min=None, max=None) -> Array:
    """As PyTorch's clamp: entries that lie on a bound let the gradient pass."""
    lowest = a_min if min is None else min
    highest = a_max if max is None else max
    if lowest is not None:
        x = np.where(x < lowest, lowest, x)
    if highest is not None:
        x = np.where(x > highest, highest, x)
    return x


@implements(np.exp2)
def exp2(x: Array) -> Array:
    return np.exp(x * math.log(2.0))


@implements(np.log2)
def log2(x: Array) -> Array:
    return np.log(x) * (1.0 / math.log(2.0))


@implements(np.log10)
def log10(x: Array) -> Array:
    return np.log(x) * (1.0 / math.log(10.0))


@implements(np.tan)
def tan(x: Array) -> Array:
    return np.sin(x) / np.cos(x)


# SciPy has these two under its own names as well.
IMPLEMENTATIONS[special.expm1] = ops.expm1
IMPLEMENTATIONS[special.log1p] = ops.log1p


# ------------------------------------------------------------------------------------------- axes
@implements(np.moveaxis)
def moveaxis(x: Array, source, destination) -> Array:
    start = positive_axes(_number_or_tuple(source), x.ndim)
    end = positive_axes(_number_or_tuple(destination), x.ndim)
    if len(start) != len(end):
        raise ValueError(f"moveaxis: {len(start)} axes to move, {len(end)} places to move them to")
    order = [a for a in range(x.ndim) if a not in start]
    for to, a in sorted(zip(end, start)):
        order.insert(to, a)
    return np.transpose(x, tuple(order))


def _number_or_tuple(axis):
    return tuple(axis) if hasattr(axis, "__len__") else axis


@implements(np.swapaxes)
def swapaxes(x: Array, axis1, axis2) -> Array:
    a, b = positive_axes((axis1, axis2), x.ndim)
    order = list(range(x.ndim))
    order[a] = b
    order[b] = a
    return np.transpose(x, tuple(order))


@implements(np.matrix_transpose)
def matrix_transpose(x: Array) -> Array:
    return swapaxes(x, -1, -2)


@implements(np.expand_dims)
def expand_dims(x: Array, axis) -> Array:
    axis = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    new = positive_axes(axis, x.ndim + len(axis))
    if len(set(new)) < len(new):
        raise ValueError(f"expand_dims: an axis is repeated in {axis}")
    old_lengths = iter(x.shape)
    shape = [1 if a in new else next(old_lengths) for a in range(x.ndim + len(new))]
    return reshape(x, tuple(shape))


@implements(np.squeeze)
def squeeze(x: Array, axis=None) -> Array:
    if axis is None:
        gone = [a for a in range(x.ndim) if x.shape[a] == 1]
    else:
        gone = positive_axes(axis, x.ndim)
    for a in gone:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: axis {a} of shape {x.shape} is not of length 1")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in gone))


@implements(np.ravel)
def ravel(x: Array) -> Array:
    return reshape(x, (x.size,))


# ---------------------------------------------------------------------------- joining and cutting
@implements(np.concatenate)
def _concatenate(arrays, axis=0):
    arrays = as_operands("concatenate", *arrays)
    if axis is None:
        return concatenate(*[ravel(x) for x in arrays], axis=0)
    return concatenate(*arrays, axis=axis)


@implements(np.stack)
def stack(arrays, axis=0) -> Array:
    arrays = as_operands("stack", *arrays)
    return concatenate(*[np.expand_dims(x, axis) for x in arrays], axis=axis)


@implements(np.vstack)
def vstack(tup) -> Array:
    arrays = as_operands("vstack", *tup)
    rows = [x if x.ndim > 1 else np.reshape(x, (1, -1)) for x in arrays]
    return concatenate(*rows, axis=0)


@implements(np.hstack)
def hstack(tup) -> Array:
    arrays = as_operands("hstack", *tup)
    arrays = [x if x.ndim else np.reshape(x, (1,)) for x in arrays]
    return concatenate(*arrays, axis=0 if arrays[0].ndim == 1 else 1)


@implements(np.split)
def split(x: Tensor, indices_or_sections, axis=0) -> list[Tensor]:
    """A list of Tensors: in equal sections, or cut before each index."""
    before = _axes_before(x, axis)
    length = x.shape[len(before)]
    cuts = indices_or_sections
    if isinstance(cuts, (int, np.integer)):
        n_sections = cuts
        if length % n_sections:
            raise ValueError(
                f"split: {length} entries along axis {axis} do not make {n_sections} equal sections"
            )
        cuts = [length // n_sections * (i + 1) for i in range(n_sections - 1)]
    return [x[(*before, slice(a, b))] for a, b in zip([0, *cuts], [*cuts, length])]


@implements(np.flip)
def flip(x: Array, axis=None) -> Array:
    axes = positive_axes(axis, x.ndim)
    return x[tuple(slice(None, None, -1 if a in axes else 1) for a in range(x.ndim))]


@implements(np.roll)
def roll(x: Array, shift, axis=None) -> Array:
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), x.shape)
    for by, a in np.broadcast(shift, axis):
        before = _axes_before(x, a)
        length = x.shape[len(before)]
        cut = -int(by) % length if length else 0
        head = x[(*before, slice(None, cut))]
        tail = x[(*before, slice(cut, None))]
        x = concatenate(tail, head, axis=len(before))
    return x


# ---------------------------------------------------------------------------------------- reading
@implements(np.take)
def take(x: Array, indices, axis=None) -> Array:
    indices = list(indices) if isinstance(indices, tuple) else indices
    if axis is None:
        return ravel(x)[indices]
    return x[(*_axes_before(x, axis), indices)]


@implements(np.take_along_axis)
def take_along_axis(x: Tensor, indices, axis=-1) -> Array:
    if axis is None:
        return ravel(x)[indices]
    axis = len(_axes_before(x, axis))
    index = []
    for a, length in enumerate(x.shape):
        along_a = [-1 if a == b else 1 for b in range(x.ndim)]
        every = np.arange(length, like=x.data).reshape(along_a)
        index.append(indices if a == axis else every)
    return x[tuple(index)]


@implements(np.sort)
def sort(x: Array, axis=-1) -> Array:
    """A sorted entry passes its gradient to where it came from; of equal ones the earlier first."""
    if axis is None:
        return sort(ravel(x))
    return take_along_axis(x, np.argsort(x.data, axis=axis, kind="stable"), axis)


@implements(np.diagonal)
def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    down = max(-offset, 0)  # where the diagonal begins
    right = max(offset, 0)
    length = min(x.shape[-2] - down, x.shape[-1] - right)
    i = np.arange(max(length, 0), like=x.data)
    return x[..., i + down, i + right]


@implements(np.trace)
def trace(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    return np.sum(diagonal(x, offset, axis1, axis2), axis=-1)


@implements(np.tril)
def tril(x: Array, k: int = 0) -> Array:
    return np.where(np.tril(np.ones_like(x.data, dtype=bool), k), x, 0.0)


@implements(np.triu)
def triu(x: Array, k: int = 0) -> Array:
    return np.where(np.triu(np.ones_like(x.data, dtype=bool), k), x, 0.0)


@implements(np.diff)
def diff(x: Array, n: int = 1, axis=-1) -> Array:
    before = _axes_before(x, axis)
    for _ in range(n):
        x = x[(*before, slice(1, None))] - x[(*before, slice(None, -1))]
    return x


@implements(np.full_like)
def full_like(a: Array, fill_value, dtype=None, order="K", subok=True, shape=None) -> Array:
    """A plain array of numbers; of a Tensor, a Tensor through which its derivative flows."""
    if not isinstance(fill_value, Tensor):
        return np.full_like(a.data, fill_value, dtype, order, subok, shape)
    shape = a.shape if shape is None else shape
    return np.broadcast_to(fill_value, shape).astype(a.dtype if dtype is None else dtype)


# ------------------------------------------------ what has no derivative gives plain NumPy arrays
# fmt: off
PLAIN: list[Callable] = [
    np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal,
    np.logical_and, np.logical_or, np.logical_not, np.logical_xor,
    np.isnan, np.isinf, np.isfinite, np.signbit, np.isclose, np.allclose, np.array_equal,
    np.floor, np.ceil, np.rint, np.trunc, np.round, np.floor_divide,
    np.argmax, np.argmin, np.argsort, np.searchsorted,
    np.any, np.all, np.count_nonzero, np.nonzero, np.shape, np.ndim, np.size,
    np.zeros_like, np.ones_like, np.empty_like,
]
# fmt: on


def _on_data(function):
    """The function itself, on the arrays inside."""

    def call(*inputs, **keywords):
        return function(*[x.data if isinstance(x, Tensor) else x for x in inputs], **keywords)

    call.keywords = None  # any
    return call


for _function in PLAIN:
    IMPLEMENTATIONS[_function] = _on_data(_function)

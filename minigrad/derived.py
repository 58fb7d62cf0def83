"""NumPy functions that need no rule of their own: each is plain NumPy over functions of the table.

This is a reference. `@implements(np.var)` says that what follows is what `numpy.var` does when it
is given a Tensor. Since it is made of functions with known derivatives, its derivatives of every
order follow.

Know before reading: ops.py, the table.
Know after: why a table of some hundred rules is enough for NumPy.
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
        call.takes_tensors_by_keyword = True  # as in np.average(x, weights=t)
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


@implements(np.average)
def average(a: Array, axis=None, weights: Array | None = None, *, keepdims: bool = False) -> Array:
    """The mean, or the sum of weights * a over the sum of the weights, which may be Tensors too."""
    if weights is None:
        return mean(a, axis, keepdims=keepdims)
    a, weights = as_operands("average", a, weights)
    if weights.shape != a.shape:
        axes = positive_axes(axis, a.ndim)
        if weights.shape != tuple(a.shape[d] for d in axes):
            raise ValueError(
                f"average: weights of shape {weights.shape} beside {a.shape}, axis={axis!r}: give "
                "a weight for each entry, or for each position along the axis"
            )
        weights = np.transpose(weights, tuple(np.argsort(axes).tolist()))
        kept = tuple(n if d in axes else 1 for d, n in enumerate(a.shape))
        weights = np.reshape(weights, kept)
    total = np.sum(weights, axis=axis, keepdims=keepdims)
    if np.any(total == 0):
        raise ZeroDivisionError("average: weights sum to 0; give weights that do not")
    return np.sum(a * weights, axis=axis, keepdims=keepdims) / total


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


@implements(np.ptp)
def ptp(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    highest = np.max(a, axis=axis, keepdims=keepdims)
    return highest - np.min(a, axis=axis, keepdims=keepdims)


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


# Where an entry is NaN, these go on as if it were not there: its slope is 0.
@implements(np.nansum)
def nansum(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    return np.sum(np.where(np.isnan(a), 0.0, a), axis=axis, keepdims=keepdims)


@implements(np.nanmean)
def nanmean(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    n = np.sum(~np.isnan(a), axis=axis, keepdims=keepdims)
    total = nansum(a, axis, keepdims=keepdims)
    return np.where(n > 0, total / np.maximum(n, 1), float("nan"))


def _known_deviations(a, axis, ddof, keepdims):
    """(deviations from the mean, 0 for an entry that is NaN; the number of others less ddof)."""
    is_nan = np.isnan(a)
    n = np.sum(~is_nan, axis=axis, keepdims=keepdims) - ddof
    # 0 before anything is computed of it, and not only after: the slope would be 0 * NaN.
    deviations = np.where(is_nan, 0.0, a) - nanmean(a, axis, keepdims=True)
    return np.where(is_nan, 0.0, deviations), n


@implements(np.nanvar)
def nanvar(a: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    deviations, n = _known_deviations(a, axis, ddof, keepdims)
    total = np.sum(np.square(deviations), axis=axis, keepdims=keepdims)
    return np.where(n > 0, total / np.maximum(n, 1), float("nan"))


@implements(np.nanstd)
def nanstd(a: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    """By the length of the deviations, as std."""
    deviations, n = _known_deviations(a, axis, ddof, keepdims)
    length = ops.norm(deviations, axis=axis, keepdims=keepdims)
    root = np.sqrt(np.maximum(n, 1)).astype(a.dtype)
    return np.where(n > 0, length / root, float("nan"))


@implements(np.nanmax)
def nanmax(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    return -nanmin(-a, axis, keepdims=keepdims)


@implements(np.nanmin)
def nanmin(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    is_nan = np.isnan(a)
    lowest = np.min(np.where(is_nan, float("inf"), a), axis=axis, keepdims=keepdims)
    is_empty = np.all(is_nan, axis=axis, keepdims=keepdims)
    return np.where(is_empty, float("nan"), lowest)


@implements(np.nanprod)
def nanprod(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    return prod(np.where(np.isnan(a), 1.0, a), axis, keepdims=keepdims)


@implements(np.nancumsum)
def nancumsum(a: Array, axis=None) -> Array:
    return np.cumsum(np.where(np.isnan(a), 0.0, a), axis=axis)


@implements(np.nancumprod)
def nancumprod(a: Array, axis=None) -> Array:
    return np.cumprod(np.where(np.isnan(a), 1.0, a), axis=axis)


# ------------------------------------------------------------------------------------ elementwise
@implements(np.clip)
def clip(x: Array, a_min=None, a_max=None, *, min=None, max=None) -> Array:
    """As PyTorch's clamp: entries that lie on a bound let the gradient pass.

    A bound that is NaN differs from itself; what it bounds is NaN.
    """
    lowest = a_min if min is None else min
    highest = a_max if max is None else max
    if lowest is not None:
        x = np.where((x < lowest) | (lowest != lowest), lowest, x)
    if highest is not None:
        x = np.where((x > highest) | (highest != highest), highest, x)
    return x


@implements(np.divmod)
def divmod_(a: Array, b: Array) -> tuple[Array, Array]:
    return np.floor_divide(a, b), np.remainder(a, b)


@implements(np.select)
def select(condlist, choicelist, default: Array = 0.0) -> Array:
    """Of each entry's choices, the first whose condition (a plain boolean array) holds."""
    if len(condlist) != len(choicelist) or not condlist:
        raise ValueError(
            f"select: {len(condlist)} conditions for {len(choicelist)} choices; give one for each"
        )
    *choices, chosen = as_operands("select", *choicelist, default)
    for condition, choice in zip(condlist[::-1], choices[::-1]):
        chosen = np.where(condition, choice, chosen)
    return chosen


# Tensors are real.
@implements(np.real, np.real_if_close)
def real(val: Array) -> Array:
    return val


# SciPy has these under its own names as well.
IMPLEMENTATIONS[special.expm1] = ops.expm1
IMPLEMENTATIONS[special.log1p] = ops.log1p
IMPLEMENTATIONS[special.exp2] = ops.exp2
IMPLEMENTATIONS[special.cbrt] = ops.cbrt


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


@implements(np.rollaxis)
def rollaxis(a: Array, axis: int, start: int = 0) -> Array:
    """The axis to before the one that is `start` now; the number of axes stands for the end."""
    at = positive_axes(int(axis), a.ndim)[0]
    if not -a.ndim <= start <= a.ndim:
        raise np.exceptions.AxisError(start, a.ndim)
    before = start if start >= 0 else start + a.ndim
    return moveaxis(a, at, before - 1 if at < before else before)


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


@implements(np.atleast_1d)
def atleast_1d(*arys: Array) -> Array | tuple:
    return _one_or_all([x if x.ndim else reshape(x, (1,)) for x in _with_shapes(arys)])


@implements(np.atleast_2d)
def atleast_2d(*arys: Array) -> Array | tuple:
    return _one_or_all([x if x.ndim > 1 else reshape(x, (1, x.size)) for x in _with_shapes(arys)])


@implements(np.atleast_3d)
def atleast_3d(*arys: Array) -> Array | tuple:
    """A row of numbers goes to the middle axis, a matrix to the first two."""
    shapes = [(1, x.size, 1) if x.ndim < 2 else (*x.shape, 1) for x in _with_shapes(arys)]
    pairs = zip(_with_shapes(arys), shapes)
    return _one_or_all([x if x.ndim > 2 else reshape(x, shape) for x, shape in pairs])


def _with_shapes(arys):
    """Tensors and arrays as they are; others as arrays."""
    return [x if isinstance(x, Tensor) else backend.as_array(x) for x in arys]


def _one_or_all(found):
    return found[0] if len(found) == 1 else tuple(found)


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


@implements(np.broadcast_arrays)
def broadcast_arrays(*args: Array) -> tuple[Array, ...]:
    arrays = as_operands("broadcast_arrays", *args)
    shape = np.broadcast_shapes(*(x.shape for x in arrays))
    return tuple(np.broadcast_to(x, shape) for x in arrays)


@implements(np.meshgrid)
def meshgrid(*xi: Array, indexing="xy") -> tuple[Array, ...]:
    """Each vector along an axis of its own; by "xy" the first two in the order of a picture."""
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing={indexing!r}; take 'xy' or 'ij'")
    axes = list(range(len(xi)))
    if indexing == "xy" and len(xi) > 1:
        axes[:2] = [1, 0]
    shapes = [tuple(-1 if a == b else 1 for b in range(len(xi))) for a in axes]
    vectors = as_operands("meshgrid", *xi)
    return broadcast_arrays(*(np.reshape(x, shape) for x, shape in zip(vectors, shapes)))


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


@implements(np.dstack)
def dstack(tup) -> Array:
    arrays = [atleast_3d(x) for x in as_operands("dstack", *tup)]
    return concatenate(*arrays, axis=2)


@implements(np.column_stack)
def column_stack(tup) -> Array:
    arrays = as_operands("column_stack", *tup)
    columns = [x if x.ndim > 1 else np.reshape(x, (-1, 1)) for x in arrays]
    return concatenate(*columns, axis=1)


@implements(np.append)
def append(arr: Array, values: Array, axis=None) -> Array:
    return _concatenate(as_operands("append", arr, values), axis=axis)


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


@implements(np.array_split)
def array_split(ary: Tensor, indices_or_sections, axis=0) -> list[Tensor]:
    """As split; sections that cannot be equal are longer by 1 at first."""
    cuts = indices_or_sections
    if isinstance(cuts, (int, np.integer)):
        length = ary.shape[len(_axes_before(ary, axis))]
        if cuts <= 0:
            raise ValueError(f"array_split: {cuts} sections; give a number above 0")
        shorter, n_longer = divmod(length, cuts)
        cuts = [shorter * i + min(i, n_longer) for i in range(1, cuts)]
    return split(ary, cuts, axis)


@implements(np.vsplit)
def vsplit(ary: Tensor, indices_or_sections) -> list[Tensor]:
    return _split_of_axes("vsplit", ary, indices_or_sections, 0, n_axes=2)


@implements(np.hsplit)
def hsplit(ary: Tensor, indices_or_sections) -> list[Tensor]:
    return _split_of_axes("hsplit", ary, indices_or_sections, min(ary.ndim - 1, 1), n_axes=1)


@implements(np.dsplit)
def dsplit(ary: Tensor, indices_or_sections) -> list[Tensor]:
    return _split_of_axes("dsplit", ary, indices_or_sections, 2, n_axes=3)


def _split_of_axes(name, x, cuts, axis, n_axes):
    """split, for arrays of so many axes at least."""
    if x.ndim < n_axes:
        raise ValueError(f"{name}: shape {x.shape}; pass an array of {n_axes} axes or more")
    return split(x, cuts, axis)


@implements(np.unstack)
def unstack(x: Tensor, *, axis=0) -> tuple[Tensor, ...]:
    return tuple(moveaxis(x, axis, 0))


@implements(np.repeat)
def repeat(a: Tensor, repeats, axis=None) -> Tensor:
    """Each entry several times: read from where numpy.repeat has moved the positions."""
    if axis is None:
        return repeat(ravel(a), repeats, 0)
    before = _axes_before(a, axis)
    positions = np.arange(a.shape[len(before)], like=a.data)
    return a[(*before, np.repeat(positions, repeats))]


@implements(np.tile)
def tile(A: Tensor, reps) -> Tensor:
    """Each axis gets one before it, along which all is the same; then the two become one."""
    reps = tuple(reps) if hasattr(reps, "__len__") else (reps,)
    n_axes = max(len(reps), A.ndim)
    reps = (1,) * (n_axes - len(reps)) + reps
    lengths = (1,) * (n_axes - A.ndim) + A.shape
    apart = reshape(A, tuple(k for length in lengths for k in (1, length)))
    pairs = list(zip(reps, lengths))
    repeated = np.broadcast_to(apart, tuple(k for pair in pairs for k in pair))
    return reshape(repeated, tuple(r * length for r, length in pairs))


@implements(np.pad)
def pad(array: Tensor, pad_width, mode="constant", *, constant_values=0) -> Tensor:
    """With constants; or with entries read from where numpy.pad has moved the positions."""
    if mode not in ("constant", "edge", "reflect", "symmetric", "wrap"):
        raise ValueError(
            f"pad: mode={mode!r} is not offered for Tensors; take 'constant', 'edge', 'reflect', "
            "'symmetric' or 'wrap'"
        )
    if mode != "constant" and not (isinstance(constant_values, int) and constant_values == 0):
        raise ValueError(f"pad: constant_values= goes with mode='constant', not with {mode!r}")
    widths = np.broadcast_to(np.asarray(pad_width), (array.ndim, 2))
    if widths.dtype.kind not in "iu" or np.any(widths < 0):
        raise ValueError(f"pad: pad_width={pad_width!r}; give whole numbers from 0 up")
    constants = np.broadcast_to(np.asarray(constant_values), (array.ndim, 2))
    for a in range(array.ndim):
        if mode == "constant":
            blocks = [_block(array, a, *pair) for pair in zip(widths[a].tolist(), constants[a])]
            array = concatenate(blocks[0], array, blocks[1], axis=a)
        else:
            positions = np.pad(np.arange(array.shape[a]), widths[a], mode=mode)
            array = array[(*_axes_before(array, a), positions)]
    return array


def _block(x, axis, length, value):
    """A plain array like x, but so long along this axis, and of one value."""
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    return np.full_like(x.data, value, shape=shape)


@implements(np.delete)
def delete(arr: Tensor, obj, axis=None) -> Tensor:
    if axis is None:
        return delete(ravel(arr), obj, 0)
    before = _axes_before(arr, axis)
    positions = np.delete(np.arange(arr.shape[len(before)]), obj)
    return arr[(*before, positions)]


@implements(np.flip)
def flip(x: Array, axis=None) -> Array:
    axes = positive_axes(_number_or_tuple(axis), x.ndim)
    return x[tuple(slice(None, None, -1 if a in axes else 1) for a in range(x.ndim))]


@implements(np.flipud)
def flipud(m: Array) -> Array:
    return flip(m, 0)


@implements(np.fliplr)
def fliplr(m: Array) -> Array:
    return flip(m, 1)


@implements(np.rot90)
def rot90(m: Array, k: int = 1, axes=(0, 1)) -> Array:
    a, b = positive_axes(tuple(axes), m.ndim)
    if a == b:
        raise ValueError(f"rot90: axes={axes} must be two; one cannot be turned into itself")
    if k % 4 == 0:
        return m
    if k % 4 == 1:
        return swapaxes(flip(m, b), a, b)
    if k % 4 == 2:
        return flip(m, (a, b))
    return flip(swapaxes(m, a, b), b)


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
    """Booleans are the positions 0 and 1, as in NumPy; x[booleans] would select."""
    if isinstance(indices, (list, tuple, bool)):
        indices = np.asarray(indices, dtype=None if np.size(indices) else int)
    if hasattr(indices, "dtype") and indices.dtype.kind == "b":
        indices = indices.astype(int)
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


@implements(np.partition)
def partition(a: Array, kth, axis=-1) -> Array:
    """An entry passes its gradient to where it came from, also of equal ones."""
    if axis is None:
        return partition(ravel(a), kth)
    return take_along_axis(a, np.argpartition(a.data, kth, axis=axis), axis)


@implements(np.compress)
def compress(condition, a: Array, axis=None) -> Array:
    return take(a, np.flatnonzero(condition), axis)


@implements(np.extract)
def extract(condition, arr: Array) -> Array:
    return take(arr, np.flatnonzero(condition))


@implements(np.diag)
def diag(v: Tensor, k: int = 0) -> Array:
    """The matrix with this diagonal; of a matrix its diagonal."""
    if v.ndim == 2:
        return diagonal(v, k)
    if v.ndim != 1:
        raise ValueError(f"diag: a vector or a matrix, not an array of shape {v.shape}")
    n = v.size + abs(k)
    i = np.arange(v.size, like=v.data)
    return ops.scatter(v, index=(i + max(-k, 0), i + max(k, 0)), shape=(n, n))


@implements(np.diagflat)
def diagflat(v: Array, k: int = 0) -> Array:
    return diag(ravel(v), k)


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
        return np.full_like(a.data, fill_value, dtype, order, shape=shape)  # CuPy takes no subok
    shape = a.shape if shape is None else shape
    return np.broadcast_to(fill_value, shape).astype(a.dtype if dtype is None else dtype)


# ------------------------------------------------ what has no derivative gives plain NumPy arrays
# fmt: off
PLAIN: list[Callable] = [
    np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal,
    np.logical_and, np.logical_or, np.logical_not, np.logical_xor,
    np.isnan, np.isinf, np.isfinite, np.signbit, np.isclose, np.allclose, np.array_equal,
    np.argmax, np.argmin, np.argsort, np.argpartition, np.searchsorted,
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

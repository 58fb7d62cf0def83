"""NumPy functions that need no rule of their own: each is a plain line over functions of the table.

Know before reading: ops.py, the table. `implements(np.var)` says that what follows is what `numpy.var` does when it is
given a Tensor; since it is made of functions with known derivatives, its derivatives of every order follow.

Know after: why a table of some fifty rules is enough for NumPy, and what Tensor's methods (`t.mean(axis=0)`) are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import reduce, wraps
from math import log

import numpy as np
from scipy import special

from minigrad import backend, ops
from minigrad.backend import Array
from minigrad.ops import concatenate, einsum, logabsdet, reshape
from minigrad.tensor import IMPLEMENTATIONS, Tensor


def implements(*functions) -> Callable:
    """Decorator: this is what NumPy's `functions` do when given Tensors."""

    def register(implementation):
        @wraps(implementation)
        def call(*inputs, **keywords):
            try:
                return implementation(*inputs, **keywords)
            except np.exceptions.AxisError as error:
                raise np.exceptions.AxisError(f"{functions[0].__name__}: {error}") from error

        call.keywords = tuple(inspect.signature(implementation).parameters)
        IMPLEMENTATIONS.update({function: call for function in functions})
        return implementation

    return register


def _settled(name, *operands) -> list:
    """Operands beside a Tensor as the table takes them: numbers, integer arrays in its dtype. TypeError for lists."""
    dtype = next(x.dtype for x in operands if isinstance(x, Tensor))
    operands = [
        dtype.type(x) if type(x) is float else x for x in operands
    ]  # with a shape, which these functions ask for
    return [x if isinstance(x, Tensor) else backend.settled(x, dtype, name) for x in operands]


def _axes(axis, ndim) -> list[int]:
    """An axis argument (None, number or tuple) as a list of axes counted from the front."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise np.exceptions.AxisError(a, ndim)
    return [a % ndim for a in axes]


def _count(x, axis) -> int:
    """How many entries a reduction over `axis` puts into one."""
    return reduce(lambda n, a: n * x.shape[a], _axes(axis, x.ndim), 1)


def _divided(a, n):
    """a / n, and NaN instead of an error where n is 0, as NumPy has it."""
    return a / n if n > 0 else a * float("nan")


def _root(total):
    """The square root of a sum of squares, with slope 0 rather than infinity at 0, as PyTorch's norm and std."""
    zero = total == 0
    return np.where(zero, 0.0, np.sqrt(total + zero))


# -------------------------------------------------------------------------------------------------------- statistics
@implements(np.mean)
def mean(x: Array, axis=None, *, keepdims: bool = False) -> Array:
    return _divided(np.sum(x, axis=axis, keepdims=keepdims), _count(x, axis))


@implements(np.var)
def var(x: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    centred = x - mean(x, axis, keepdims=True)
    return _divided(
        np.sum(np.square(centred), axis=axis, keepdims=keepdims), _count(x, axis) - ddof
    )


@implements(np.std)
def std(x: Array, axis=None, *, ddof: int = 0, keepdims: bool = False) -> Array:
    return _root(var(x, axis, ddof=ddof, keepdims=keepdims))


@implements(np.prod)
def prod(x: Array, axis=None, *, keepdims: bool = False) -> Array:
    """Multiplied in pairs, then pairs of pairs: unlike y / x as a rule, right where entries are 0, to every order."""
    for a in _axes(axis, x.ndim):
        x = swapaxes(x, 0, a)
        while len(x) > 1:
            half = len(x) // 2
            rest = [x[2 * half :]] if len(x) % 2 else []
            x = concatenate(x[:half] * x[half : 2 * half], *rest, axis=0)
        x = swapaxes(
            x if len(x) else np.ones_like(x.data, shape=(1, *x.shape[1:])) + _zero(x), 0, a
        )
    return x if keepdims else squeeze(x, tuple(_axes(axis, x.ndim)))


def _zero(x):
    """A 0 that depends on x, so that what has no entries stays a Tensor of the graph."""
    return np.sum(x) * 0.0


@implements(np.linalg.norm)
def norm(x: Array, ord=None, axis=None, keepdims: bool = False) -> Array:
    """Euclidean length of all entries or along axis (a number); other norms are not offered. Its slope at 0 is 0."""
    if ord not in (None, 2, "fro") or ord == 2 and x.ndim > 1 and not isinstance(axis, int):
        raise TypeError(
            f"numpy.linalg.norm of a Tensor: only the Euclidean norm is offered, not ord={ord!r}"
        )
    return _root(np.sum(np.square(x), axis=axis, keepdims=keepdims))


# ------------------------------------------------------------------------------------------------------- elementwise
@implements(np.clip)
def clip(x: Array, a_min=None, a_max=None, *, min=None, max=None) -> Array:
    """As PyTorch's clamp: entries that lie on a bound let the gradient pass."""
    a_min, a_max = a_min if min is None else min, a_max if max is None else max
    x = x if a_min is None else np.where(x < a_min, a_min, x)
    return x if a_max is None else np.where(x > a_max, a_max, x)


@implements(np.exp2)
def exp2(x: Array) -> Array:
    return np.exp(x * log(2.0))


@implements(np.log2)
def log2(x: Array) -> Array:
    return np.log(x) * (1.0 / log(2.0))


@implements(np.log10)
def log10(x: Array) -> Array:
    return np.log(x) * (1.0 / log(10.0))


@implements(np.tan)
def tan(x: Array) -> Array:
    return np.sin(x) / np.cos(x)


@implements(np.positive, np.copy)
def positive(x: Array) -> Array:
    return x


# ------------------------------------------------------------------------------------------------------------ shapes
@implements(np.ravel)
def ravel(x: Array) -> Array:
    return reshape(x, (x.size,))


@implements(np.moveaxis)
def moveaxis(x: Array, source, destination) -> Array:
    start, end = [
        _axes(tuple(a) if hasattr(a, "__len__") else a, x.ndim) for a in (source, destination)
    ]
    if len(start) != len(end):
        raise ValueError(f"moveaxis: {len(start)} axes to move, {len(end)} places to move them to")
    order = [a for a in range(x.ndim) if a not in start]
    for to, a in sorted(zip(end, start)):
        order.insert(to, a)
    return np.transpose(x, tuple(order))


@implements(np.swapaxes)
def swapaxes(x: Array, axis1, axis2) -> Array:
    order = list(range(x.ndim))
    (a, b) = _axes((axis1, axis2), x.ndim)
    order[a], order[b] = b, a
    return np.transpose(x, tuple(order))


@implements(np.matrix_transpose)
def matrix_transpose(x: Array) -> Array:
    return swapaxes(x, -1, -2)


@implements(np.expand_dims)
def expand_dims(x: Array, axis) -> Array:
    axis = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    new = _axes(axis, x.ndim + len(axis))
    if len(set(new)) < len(new):
        raise ValueError(f"expand_dims: an axis is repeated in {axis}")
    old = iter(x.shape)
    return reshape(x, tuple(1 if a in new else next(old) for a in range(x.ndim + len(new))))


@implements(np.squeeze)
def squeeze(x: Array, axis=None) -> Array:
    gone = [a for a in range(x.ndim) if x.shape[a] == 1] if axis is None else _axes(axis, x.ndim)
    for a in gone:
        if x.shape[a] != 1:
            raise ValueError(f"squeeze: axis {a} of shape {x.shape} is not of length 1")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in gone))


def _before(x, axis) -> tuple:
    """The part of an index that stands before that of `axis`."""
    return (slice(None),) * _axes(int(axis), x.ndim)[0]


@implements(np.flip)
def flip(x: Array, axis=None) -> Array:
    axes = _axes(axis, x.ndim)
    return x[tuple(slice(None, None, -1 if a in axes else 1) for a in range(x.ndim))]


@implements(np.roll)
def roll(x: Array, shift, axis=None) -> Array:
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), x.shape)
    for by, a in np.broadcast(shift, axis):
        before = _before(x, a)
        n = x.shape[len(before)]
        cut = -int(by) % n if n else 0
        x = concatenate(
            x[(*before, slice(cut, None))], x[(*before, slice(None, cut))], axis=len(before)
        )
    return x


@implements(np.concatenate)
def _concatenate(arrays, axis=0):
    arrays = _settled("concatenate", *arrays)
    if axis is None:
        return concatenate(*[ravel(x) for x in arrays], axis=0)
    return concatenate(*arrays, axis=axis)


@implements(np.stack)
def stack(arrays, axis=0) -> Array:
    return concatenate(*[np.expand_dims(x, axis) for x in _settled("stack", *arrays)], axis=axis)


@implements(np.vstack)
def vstack(tup) -> Array:
    return concatenate(
        *[x if x.ndim > 1 else np.reshape(x, (1, -1)) for x in _settled("vstack", *tup)], axis=0
    )


@implements(np.hstack)
def hstack(tup) -> Array:
    tup = [x if x.ndim else np.reshape(x, (1,)) for x in _settled("hstack", *tup)]
    return concatenate(*tup, axis=0 if tup[0].ndim == 1 else 1)


@implements(np.split)
def split(x: Array, indices_or_sections, axis=0) -> list[Tensor]:
    """A list of Tensors: in equal sections, or cut before each index."""
    ends, before = indices_or_sections, _before(x, axis)
    n = x.shape[len(before)]
    if isinstance(ends, (int, np.integer)):
        if n % ends:
            raise ValueError(
                f"split: {n} entries along axis {axis} do not make {ends} equal sections"
            )
        ends = [n // ends * (i + 1) for i in range(ends - 1)]
    return [x[(*before, slice(a, b))] for a, b in zip([0, *ends], [*ends, n])]


# ----------------------------------------------------------------------------------------------------------- reading
@implements(np.take)
def take(x: Array, indices, axis=None) -> Array:
    indices = list(indices) if isinstance(indices, tuple) else indices
    return ravel(x)[indices] if axis is None else x[(*_before(x, axis), indices)]


@implements(np.take_along_axis)
def take_along_axis(x: Array, indices, axis=-1) -> Array:
    if axis is None:
        return ravel(x)[indices]
    axis = len(_before(x, axis))
    grid = [
        np.arange(n, like=x.data).reshape([-1 if a == b else 1 for b in range(x.ndim)])
        for a, n in enumerate(x.shape)
    ]
    return x[tuple(indices if a == axis else i for a, i in enumerate(grid))]


@implements(np.sort)
def sort(x: Array, axis=-1) -> Array:
    """Each sorted entry passes its gradient to where it came from; among equal ones, to the earlier first."""
    if axis is None:
        return sort(ravel(x))
    return take_along_axis(x, np.argsort(x.data, axis=axis, kind="stable"), axis)


@implements(np.diagonal)
def diagonal(x: Array, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    n = min(x.shape[-2] + min(offset, 0), x.shape[-1] - max(offset, 0))
    i = np.arange(max(n, 0), like=x.data)
    return x[..., i - min(offset, 0), i + max(offset, 0)]


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
    before = _before(x, axis)
    for _ in range(n):
        x = x[(*before, slice(1, None))] - x[(*before, slice(None, -1))]
    return x


# ---------------------------------------------------------------------------------------------------- linear algebra
@implements(np.matmul)
def matmul(a: Array, b: Array) -> Array:
    """The table's matmul knows matrices; a vector is a row on the left and a column on the right, as in NumPy."""
    a, b = _settled("matmul", a, b)
    if a.ndim > 1 and b.ndim > 1 or a.ndim == 0 or b.ndim == 0:
        return ops.matmul(a, b)
    left = np.expand_dims(a, 0) if a.ndim == 1 else a
    y = ops.matmul(left, np.expand_dims(b, 1) if b.ndim == 1 else b)
    lost = (-2,) * (a.ndim == 1) + (-1,) * (b.ndim == 1)
    return np.squeeze(y, lost)


@implements(np.linalg.solve)
def solve(a: Array, b: Array) -> Array:
    """A vector b is a column; stacks of matrices are stretched to one shape here, which CuPy's solve does not do."""
    a, b = _settled("solve", a, b)
    if b.ndim == 1:
        return np.squeeze(solve(a, np.expand_dims(b, 1)), -1)
    try:
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError as error:
        raise backend.explained(error, "solve", (a, b)) from error
    return ops.solve(
        *[
            x if x.shape[:-2] == stack else np.broadcast_to(x, (*stack, *x.shape[-2:]))
            for x in (a, b)
        ]
    )


@implements(np.dot)
def dot(a: Array, b: Array) -> Array:
    a, b = _settled("dot", a, b)
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    return matmul(a, b) if b.ndim <= 2 else tensordot(a, b, ((-1,), (-2,)))


@implements(np.inner)
def inner(a: Array, b: Array) -> Array:
    a, b = _settled("inner", a, b)
    return a * b if a.ndim == 0 or b.ndim == 0 else tensordot(a, b, ((-1,), (-1,)))


@implements(np.vdot)
def vdot(a: Array, b: Array) -> Array:
    a, b = [np.ravel(x) for x in _settled("vdot", a, b)]
    return matmul(a, b)


@implements(np.outer)
def outer(a: Array, b: Array) -> Array:
    a, b = _settled("outer", a, b)
    return np.reshape(a, (-1, 1)) * np.reshape(b, (1, -1))


@implements(np.tensordot)
def tensordot(a: Array, b: Array, axes=2) -> Array:
    a, b = _settled("tensordot", a, b)
    if isinstance(axes, (int, np.integer)):
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    lost_a, lost_b = [
        _axes(tuple(np.atleast_1d(lost).tolist()), x.ndim) for lost, x in zip(axes, (a, b))
    ]
    if len(lost_a) != len(lost_b):
        raise ValueError(
            f"tensordot: {len(lost_a)} axes of the one operand against {len(lost_b)} of the other"
        )
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    of_a = list(letters[: a.ndim])
    of_b = list(letters[a.ndim : a.ndim + b.ndim])
    for i, j in zip(lost_a, lost_b):
        if a.shape[i] != b.shape[j]:
            raise ValueError(
                f"tensordot: axis {i} of shape {a.shape} and axis {j} of shape {b.shape} differ in length"
            )
        of_b[j] = of_a[i]
    kept = [c for i, c in enumerate(of_a) if i not in lost_a] + [
        c for j, c in enumerate(of_b) if j not in lost_b
    ]
    return einsum(a, b, f"{''.join(of_a)},{''.join(of_b)}->{''.join(kept)}")


_Slogdet = type(np.linalg.slogdet(np.ones((1, 1))))  # NumPy's named pair; CuPy gives a plain one


@implements(np.linalg.slogdet)
def slogdet(x: Array) -> tuple[np.ndarray, Tensor]:
    """(sign, log of the absolute determinant); the sign is a plain array, its derivative being 0."""
    return _Slogdet(np.linalg.slogdet(x.data)[0], logabsdet(x))


@implements(np.linalg.multi_dot)
def multi_dot(arrays) -> Array:
    return reduce(matmul, arrays)


@implements(np.einsum)
def _einsum(subscripts, *operands, optimize=False):
    """Any einsum in steps of one or two operands: labels that only one operand has are summed first."""
    if not isinstance(subscripts, str):
        raise TypeError(
            "einsum of Tensors: write the subscripts as a string, as in einsum('ij,j->i', a, b)"
        )
    operands = _settled("einsum", *operands)
    terms, out = _einsum_labels(subscripts, operands)
    terms, operands = _einsum_stretched(terms, operands)
    while True:
        for k, labels in enumerate(terms):
            others = set("".join(terms[:k] + terms[k + 1 :]) + out)
            terms[k], operands[k] = _own_labels_summed(labels, operands[k], others)
        if len(operands) == 1:
            return np.transpose(operands[0], tuple(terms[0].index(c) for c in out))
        (left, right), rest = terms[:2], terms[2:]
        both = "".join(dict.fromkeys(c for c in left + right if c in "".join(rest) + out))
        operands[:2] = [einsum(operands[0], operands[1], f"{left},{right}->{both}")]
        terms[:2] = [both]


def _einsum_stretched(terms, operands):
    """Axes of length 1 that would be stretched against longer ones are dropped: the table's rule knows labels only."""
    size = {}
    for c, n in [pair for labels, x in zip(terms, operands) for pair in zip(labels, x.shape)]:
        if size.setdefault(c, n) != n and 1 not in (n, size[c]):
            raise ValueError(
                f"einsum: label {c!r} is {size[c]} long in one operand and {n} in another"
            )
        size[c] = n if size[c] == 1 else size[c]
    keep = [
        [
            n == size[c]
            or labels.count(c) > 1
            and set(x.shape[i] for i, d in enumerate(labels) if d == c) != {1}
            for c, n in zip(labels, x.shape)
        ]
        for labels, x in zip(terms, operands)
    ]
    return (
        ["".join(c for c, kept in zip(labels, k) if kept) for labels, k in zip(terms, keep)],
        [
            np.squeeze(x, tuple(i for i, kept in enumerate(k) if not kept))
            for x, k in zip(operands, keep)
        ],
    )


def _einsum_labels(subscripts, operands):
    """("ij,jk", ...) as a list of labels an operand and those of the output; `...` becomes capital letters."""
    subscripts = subscripts.replace(" ", "")
    terms, arrow, out = subscripts.partition("->")
    terms = terms.split(",")
    if len(terms) != len(operands):
        raise ValueError(
            f"einsum: {subscripts!r} names {len(terms)} operands, {len(operands)} were given"
        )
    free = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in subscripts]
    n_free = [x.ndim - len(labels.replace("...", "")) for labels, x in zip(terms, operands)]
    longest = "".join(
        free[: max(n for n, labels in zip([0, *n_free], ["...", *terms]) if "..." in labels)]
    )
    terms = [t.replace("...", longest[len(longest) - n :]) for t, n in zip(terms, n_free)]
    for labels, x in zip(terms, operands):
        if len(labels) != x.ndim:
            raise ValueError(
                f"einsum: {subscripts!r} names {len(labels)} axes of an operand of shape {x.shape}"
            )
    if not arrow:
        joined = "".join(terms)
        out = "..." + "".join(sorted(c for c in set(joined) - set(longest) if joined.count(c) == 1))
    out = out.replace("...", longest)
    if len(set(out)) < len(out) or set(out) - set("".join(terms)) or set(longest) - set(out):
        raise ValueError(
            f"einsum: the output of {subscripts!r} must have labels of its operands, each once, and ... "
            "where they have it"
        )
    return terms, out


def _own_labels_summed(labels, x, others):
    """One operand with repeated labels read along the diagonal, and labels found nowhere else summed."""
    for c in dict.fromkeys(labels):
        while labels.count(c) > 1:
            i, j = labels.index(c), labels.rindex(c)
            if x.shape[i] != x.shape[j]:
                raise ValueError(
                    f"einsum: label {c!r} is {x.shape[i]} long in one place and {x.shape[j]} in another"
                )
            x = np.diagonal(x, axis1=i, axis2=j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + c
    lost = tuple(i for i, c in enumerate(labels) if c not in others)
    return "".join(c for c in labels if c in others), np.sum(x, axis=lost) if lost else x


# -------------------------------------------------------------- functions without a derivative give plain NumPy arrays
PLAIN = [
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    np.logical_and,
    np.logical_or,
    np.logical_not,
    np.logical_xor,
    np.isnan,
    np.isinf,
    np.isfinite,
    np.signbit,
    np.floor,
    np.ceil,
    np.rint,
    np.trunc,
    np.round,
    np.argmax,
    np.argmin,
    np.argsort,
    np.any,
    np.all,
    np.count_nonzero,
    np.nonzero,
    np.shape,
    np.ndim,
    np.size,
    np.isclose,
    np.allclose,
    np.array_equal,
    np.searchsorted,
    np.floor_divide,
    np.zeros_like,
    np.ones_like,
    np.full_like,
    np.empty_like,
]


def _plain(function):
    def call(*inputs, **keywords):
        return function(*[x.data if isinstance(x, Tensor) else x for x in inputs], **keywords)

    call.keywords = None
    return call


IMPLEMENTATIONS.update({function: _plain(function) for function in PLAIN})


# ---------------------------------------------------------------------------------------------------- Tensor's methods
def _many(function):
    """t.reshape(2, 3) is t.reshape((2, 3)); so too transpose."""

    def method(t, *sizes):
        return function(
            t, sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes or None
        )

    return method


for _name in (
    "sum",
    "mean",
    "var",
    "std",
    "prod",
    "max",
    "min",
    "cumsum",
    "ravel",
    "swapaxes",
    "squeeze",
    "dot",
    "clip",
    "take",
    "diagonal",
    "trace",
    "argmax",
    "argmin",
    "argsort",
    "any",
    "all",
    "round",
    "nonzero",
):
    setattr(Tensor, _name, IMPLEMENTATIONS[getattr(np, _name)])
for _name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    _dunder = {"equal": "eq", "not_equal": "ne"}.get(
        _name, _name[0] + ("e" if _name.endswith("equal") else "t")
    )
    setattr(Tensor, f"__{_dunder}__", IMPLEMENTATIONS[getattr(np, _name)])


def detach(t) -> Tensor:
    """The same data (any shape; shared, not copied) as a Tensor without history."""
    return Tensor(t.data)


def item(t) -> float:
    """The only entry, as a Python number. ValueError where there are several."""
    return t.data.item()


def to_numpy(t) -> np.ndarray:
    """The data as a host array of the same shape and dtype: shared where it is NumPy's, copied from a GPU."""
    return backend.to_host(t.data)


def _astype(t, dtype):
    if np.dtype(dtype).kind != "f":
        raise TypeError(
            f"astype({np.dtype(dtype)}): Tensors are of floating numbers; take .data.astype, through which no "
            "derivative flows"
        )
    return ops.astype(t, dtype=dtype)


# What a Tensor refuses, and why.
def _refuse_array(t, *_, **__):
    raise backend.not_an_array()


def _refuse_assignment(t, index, value):
    raise TypeError(
        "a Tensor cannot be assigned into: what was recorded would be wrong. Use numpy.where, or .data"
    )


def _refuse_subclass(cls):
    raise TypeError(
        "Tensor has no subclasses: operations know it by its exact type; put a Tensor into your class instead"
    )


def _represent(t):
    how = f", from {t.origin[0].__name__}" if t.origin else ", requires_grad=True" * t.requires_grad
    return f"Tensor({np.array2string(t.numpy(), separator=', ', prefix='Tensor(')}{how})"


Tensor.detach, Tensor.item, Tensor.numpy = detach, item, to_numpy
Tensor.__array__, Tensor.__setitem__, Tensor.__init_subclass__ = (
    _refuse_array,
    _refuse_assignment,
    classmethod(_refuse_subclass),
)
Tensor.__repr__, Tensor.__iter__ = _represent, lambda t: (t[i] for i in range(len(t)))
Tensor.__len__, Tensor.__bool__ = lambda t: len(t.data), lambda t: bool(t.data)
Tensor.__float__ = lambda t: float(t.data)
Tensor.__format__ = lambda t, spec: format(t.item(), spec) if spec else str(t)
Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda a, b: matmul(b, a)
Tensor.astype, Tensor.flatten, Tensor.__pos__ = _astype, ravel, positive
# Other names of the same.
IMPLEMENTATIONS.update(
    {np.amax: ops.max, np.amin: ops.min, special.expm1: ops.expm1, special.log1p: ops.log1p}
)
Tensor.reshape, Tensor.transpose = _many(reshape), _many(IMPLEMENTATIONS[np.transpose])
Tensor.T = property(np.transpose)

"""Tensor: an array that remembers how it was made.

This is a lesson, the first one. A Tensor is a NumPy array with a memory:

    >>> import numpy as np
    >>> from minigrad import Tensor
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> y = np.sum(x ** 3)
    >>> y
    Tensor(9., from sum)
    >>> y.origin.inputs
    (Tensor([1., 8.], from power),)
    >>> y.backward()
    >>> x.grad
    array([ 3., 12.])

Know before reading: NumPy. What follows is how `np.sum(x ** 3)` comes to be remembered.

1. `x ** 3` is `np.power(x, 3)`: each operator below is a NumPy function. (All but `x[i]`, for which
   NumPy has none.)
2. NumPy looks at what `np.power` was given, and finds a type that is not its own. It then calls a
   method of that type to do the work: `Tensor.__array_ufunc__` (the protocol NEP 13), and for
   functions such as `np.sum` it calls `Tensor.__array_function__` (NEP 18).
3. Both look the function up in `IMPLEMENTATIONS`. What they find there is usually an entry of the
   table (table.py): it computes on the arrays inside and makes a new Tensor of the result. Else it
   is a function that is made of such entries, as np.mean is of a sum and a quotient (derived.py).
4. The new Tensor is *recorded*, if a gradient may be asked for: its *origin* says which function
   made it, and from what. A Tensor that nothing made, such as x, is a *leaf*. Origins are the
   graph. They point from outputs to inputs only, so there are no cycles, and dropping the output
   frees it all.
5. `backward()` follows the origins back to the leaves, and adds to the `.grad` of each leaf its
   gradient (backward.py). A *rule* of the table says how to go back through one function. On the
   way the graph is *used up*: dropped, to free the memory. A second backward() of y is an error.
6. Rules are plain NumPy. Given arrays they compute, as in 5. Given Tensors they record, like any
   formula, by 1 to 4; what they record can be differentiated again. Nothing else is needed for
   second derivatives: `grad`, at the end of this file, asks for them by create_graph=True.

The class is long because NumPy's operators and methods are many. Each takes a line, and all go the
same way: at first reading, skip from `arithmetic` to `dispatch`, where step 3 happens.

Know after: what a Tensor is, what it can do, and by which methods NumPy hands its functions over.
"""

from __future__ import annotations

import html
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any, NoReturn

import numpy as np

from minigrad import backend
from minigrad.backend import Array
from minigrad.backward import USED_UP, Origin, add_to_grad, sweep

# NumPy's or SciPy's function -> what runs when it is given a Tensor. table.py fills it with entries
# that have rules, and derived.py with functions that are made of others.
IMPLEMENTATIONS: dict[Callable, Callable] = {}

numbers = count()  # every Tensor gets the next one: inputs have smaller numbers than outputs


class Tensor:
    """An array that remembers how it was computed, and can be differentiated.

    data: any array of float32 or float64 (kept as it is, not copied), or numbers, lists and integer
    arrays, which become float64. requires_grad: whether `backward` is to fill `.grad` (same shape
    and dtype as `.data`). dtype: convert to this first. TypeError for complex numbers or text, and
    for float16 and longdouble without a dtype.

    NumPy's functions and operators take Tensors; comparisons give plain boolean arrays. Do not
    change the data, or an array used as an index, in place before backward: the rules read them
    again. How weights are changed in place between two steps: see no_grad.

        >>> t = Tensor([1.0, 2.0], requires_grad=True)
        >>> t > 1.5
        array([False,  True])
        >>> (2.0 * t)[1]
        Tensor(4., from getitem)
    """

    __slots__ = {  # and what help() says of each
        "data": "The numbers: an array of float32 or float64.",
        "requires_grad": "Whether a gradient may be asked for: of a leaf, or of what it went into.",
        "made_to_train": "Whether requires_grad was given: for frozen weights; skip it at first.",
        "grad": "What backward() has collected: an array of the shape of the data, or None.",
        "grad_storage": "Where an optimiser wants the gradient written, or None: backward.py.",
        "origin": "How it was made; None for a leaf, which nothing made.",
        "number": "Its place in the order in which Tensors were made.",
        "changed": "The number that was next when `w += ...` or an optimiser changed it; else 0.",
        "__weakref__": "What refers to it without keeping it alive.",
    }
    # Libraries with arrays of their own, as CuPy and scipy.sparse, ask this number who is to do
    # `array * t`: the higher one.
    __array_priority__ = 1000

    data: Any
    requires_grad: bool
    made_to_train: bool
    grad: Any
    grad_storage: Any
    origin: Origin | None
    number: int
    changed: int

    def __init__(self, data: Array, requires_grad: bool = False, dtype: Any = None):
        """A leaf: see the class."""
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data): data is a Tensor already; use it as it is, or .detach()")
        data = backend.as_array(data)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Tensor({data.dtype}): data must be real numbers")
        if dtype is None:
            dtype = data.dtype if data.dtype.kind == "f" else np.float64
        dtype = backend.floating(dtype, f"Tensor({data.dtype}, dtype={np.dtype(dtype)})")
        self.data = data if data.dtype == dtype else data.astype(dtype)
        self.requires_grad = requires_grad
        self.made_to_train = requires_grad
        self.grad = None
        self.grad_storage = None
        self.origin = None
        self.number = next(numbers)
        self.changed = 0

    # ---------------------------------------------------------- how NumPy hands its functions over
    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        """NumPy calls this when a Tensor is given to a ufunc such as np.exp or np.add (NEP 13)."""
        if method == "__call__":
            return dispatch(ufunc, inputs, keywords)
        raise TypeError(
            f"numpy.{ufunc.__name__}.{method} does not take Tensors; numpy.sum, cumsum, prod ... do"
        )

    def __array_function__(self, function, types, inputs, keywords):
        """NumPy calls this when a Tensor is given to another function, as np.sum (NEP 18)."""
        return dispatch(function, inputs, keywords)

    # ----------------------------------------------------------------------------- differentiation
    def backward(self, gradient: Array | None = None) -> None:
        """Add to `.grad` of each leaf that this depends on, and drop the graph on the way.

        What is added is d(sum of self * gradient)/d(leaf). gradient: an array or Tensor of this
        shape; it may be left out where this has a single entry, and is then 1. RuntimeError where
        nothing was recorded, or where the graph was used up before.
        """
        if isinstance(gradient, Tensor):
            gradient = gradient.data
        start = initial_gradient(self, gradient, "backward")
        for leaf, g in sweep(self, start, release=True):
            add_to_grad(leaf, g)

    def detach(self) -> Tensor:
        """The same data, shared and not copied, as a Tensor without history."""
        return Tensor(self.data)

    def item(self) -> float:
        """The only entry, as a Python number; no derivative flows. ValueError if there are more."""
        return self.data.item()

    def numpy(self) -> np.ndarray:
        """The data as a host array: shared where it is NumPy's, copied from a GPU."""
        return backend.to_host(self.data)

    # ---------------------------------------------------------------------------------- arithmetic
    def __add__(self, other):
        """self + other, elementwise, broadcast as in NumPy."""
        return np.add(self, other)

    def __radd__(self, other):
        """other + self."""
        return np.add(other, self)

    def __sub__(self, other):
        """self - other, elementwise."""
        return np.subtract(self, other)

    def __rsub__(self, other):
        """other - self."""
        return np.subtract(other, self)

    def __mul__(self, other):
        """self * other, elementwise."""
        return np.multiply(self, other)

    def __rmul__(self, other):
        """other * self."""
        return np.multiply(other, self)

    def __truediv__(self, other):
        """self / other, elementwise."""
        return np.divide(self, other)

    def __rtruediv__(self, other):
        """other / self."""
        return np.divide(other, self)

    def __floordiv__(self, other):
        """self // other, rounded down; its slope is 0."""
        return np.floor_divide(self, other)

    def __rfloordiv__(self, other):
        """other // self."""
        return np.floor_divide(other, self)

    def __mod__(self, other):
        """self % other: what rounding down leaves over, of the sign of other."""
        return np.remainder(self, other)

    def __rmod__(self, other):
        """other % self."""
        return np.remainder(other, self)

    def __divmod__(self, other):
        """(self // other, self % other)."""
        return np.divmod(self, other)

    def __rdivmod__(self, other):
        """(other // self, other % self)."""
        return np.divmod(other, self)

    def __pow__(self, other):
        """self ** other, elementwise. A square is np.square, which is quicker."""
        if type(other) in (int, float) and other == 2:
            return np.square(self)
        return np.power(self, other)

    def __rpow__(self, other):
        """other ** self."""
        return np.power(other, self)

    def __matmul__(self, other):
        """self @ other: the product of matrices, stacks of them, and vectors."""
        return np.matmul(self, other)

    def __rmatmul__(self, other):
        """other @ self."""
        return np.matmul(other, self)

    def __neg__(self):
        """-self."""
        return np.negative(self)

    def __pos__(self):
        """+self."""
        return np.positive(self)

    def __abs__(self):
        """abs(self), elementwise; its slope at 0 is 0."""
        return np.absolute(self)

    # `w += step` is `w = w + step`, but for a leaf that needs a gradient: see _augmented, below.
    def __iadd__(self, other):
        """self += other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "+=", np.add, other)

    def __isub__(self, other):
        """self -= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "-=", np.subtract, other)

    def __imul__(self, other):
        """self *= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "*=", np.multiply, other)

    def __itruediv__(self, other):
        """self /= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "/=", np.divide, other)

    def __ifloordiv__(self, other):
        """self //= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "//=", np.floor_divide, other)

    def __imod__(self, other):
        """self %= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "%=", np.remainder, other)

    def __ipow__(self, other):
        """self **= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "**=", np.power, other)

    def __imatmul__(self, other):
        """self @= other: a weight changes in place, any other Tensor does not; see no_grad."""
        return _augmented(self, "@=", np.matmul, other)

    # ------------------------------------------------------- comparisons give plain boolean arrays
    def __eq__(self, other):  # type: ignore[override]  # an array, as NumPy's
        """self == other, elementwise: a plain boolean array."""
        return np.equal(self, other)

    def __ne__(self, other):  # type: ignore[override]
        """self != other, elementwise: a plain boolean array."""
        return np.not_equal(self, other)

    def __lt__(self, other):
        """self < other, elementwise: a plain boolean array."""
        return np.less(self, other)

    def __le__(self, other):
        """self <= other, elementwise: a plain boolean array."""
        return np.less_equal(self, other)

    def __gt__(self, other):
        """self > other, elementwise: a plain boolean array."""
        return np.greater(self, other)

    def __ge__(self, other):
        """self >= other, elementwise: a plain boolean array."""
        return np.greater_equal(self, other)

    __hash__ = object.__hash__  # by identity: a Tensor can be the key of a dict

    # --------------------------------------------------------------------------- shape and reading
    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of entries."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the data, a floating one."""
        return self.data.dtype

    @property
    def is_parameter(self) -> bool:
        """Whether it is a leaf to be trained: one with requires_grad now, or when it was made."""
        was_made_to_train = getattr(self, "made_to_train", False)  # only leaves have it
        return was_made_to_train or (self.requires_grad and self.origin is None)

    @property
    def T(self) -> Tensor:
        """The transpose: all axes in reverse order."""
        return np.transpose(self)

    def __len__(self) -> int:
        """The length of the first axis."""
        return len(self.data)

    def __getitem__(self, index) -> Tensor:
        """self[index]: an entry, a slice, a mask or a list of positions, as in NumPy."""
        return dispatch(operator.getitem, (self, index), {})  # NumPy has no function for this

    def __iter__(self) -> Iterator[Tensor]:
        """The entries along the first axis."""
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape) -> Tensor:
        """The same entries in another shape: t.reshape(2, 3) or t.reshape((2, 3))."""
        return np.reshape(self, _one_or_many(shape))

    def transpose(self, *axes) -> Tensor:
        """The axes in another order, t.transpose(1, 0) or t.transpose((1, 0)); none: reversed."""
        return np.transpose(self, _one_or_many(axes) if axes else None)

    def ravel(self) -> Tensor:
        """All entries in one axis."""
        return np.ravel(self)

    def flatten(self) -> Tensor:
        """All entries in one axis, copied."""
        return np.copy(np.ravel(self))

    def copy(self) -> Tensor:
        """The same numbers, copied. The gradient passes through."""
        return np.copy(self)

    def squeeze(self, axis=None) -> Tensor:
        """Without the axes of length 1: all of them, or those named."""
        return np.squeeze(self, axis)

    def swapaxes(self, axis1: int, axis2: int) -> Tensor:
        """Two axes exchanged."""
        return np.swapaxes(self, axis1, axis2)

    def take(self, indices, axis=None) -> Tensor:
        """The entries at these positions, along an axis or of all entries in one row."""
        return np.take(self, indices, axis=axis)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The diagonal, along a new last axis."""
        return np.diagonal(self, offset, axis1, axis2)

    def astype(self, dtype) -> Tensor:
        """The same numbers in float32 or float64, copied. TypeError for another dtype."""
        return np.astype(self, dtype)  # type: ignore[call-overload]  # hints know arrays only

    # ---------------------------------------------------------------------------------- reductions
    # Other keywords of NumPy's, such as dtype= of a sum, go on to check_keywords: it takes those
    # that the rules know, and names these where it refuses another one.
    def sum(self, axis=None, keepdims: bool = False, **others) -> Tensor:
        """The sum over an axis, several, or all of them."""
        return np.sum(self, axis=axis, keepdims=keepdims, **others)

    def mean(self, axis=None, keepdims: bool = False, **others) -> Tensor:
        """The mean over an axis, several, or all of them."""
        return np.mean(self, axis=axis, keepdims=keepdims, **others)

    def var(self, axis=None, ddof: int = 0, keepdims: bool = False, **others) -> Tensor:
        """The variance: the sum of squared deviations over n - ddof."""
        return np.var(self, axis=axis, ddof=ddof, keepdims=keepdims, **others)

    def std(self, axis=None, ddof: int = 0, keepdims: bool = False, **others) -> Tensor:
        """The standard deviation: the root of var."""
        return np.std(self, axis=axis, ddof=ddof, keepdims=keepdims, **others)

    def prod(self, axis=None, keepdims: bool = False, **others) -> Tensor:
        """The product over an axis, several, or all of them."""
        return np.prod(self, axis=axis, keepdims=keepdims, **others)

    def max(self, axis=None, keepdims: bool = False, **others) -> Tensor:
        """The largest entry; entries that tie share its gradient."""
        return np.max(self, axis=axis, keepdims=keepdims, **others)

    def min(self, axis=None, keepdims: bool = False, **others) -> Tensor:
        """The smallest entry; entries that tie share its gradient."""
        return np.min(self, axis=axis, keepdims=keepdims, **others)

    def round(self, decimals: int = 0) -> Tensor:
        """The entries rounded to so many decimals; the slope is 0."""
        return np.round(self, decimals)

    def cumsum(self, axis=None) -> Tensor:
        """The sums of all entries up to each, along an axis or of all entries in one row."""
        return np.cumsum(self, axis=axis)

    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
        """The sum of the diagonal."""
        return np.trace(self, offset, axis1, axis2)

    def dot(self, other) -> Tensor:
        """The product of vectors and matrices, as numpy.dot has it."""
        return np.dot(self, other)

    def clip(self, a_min=None, a_max=None) -> Tensor:
        """Entries below a_min become a_min, those above a_max become a_max."""
        return np.clip(self, a_min, a_max)

    # --------------------------------------------- what has no derivative gives plain NumPy arrays
    def argmax(self, axis=None, keepdims: bool = False) -> np.ndarray:
        """Where the largest entry is: a plain array."""
        return np.argmax(self, axis=axis, keepdims=keepdims)

    def argmin(self, axis=None, keepdims: bool = False) -> np.ndarray:
        """Where the smallest entry is: a plain array."""
        return np.argmin(self, axis=axis, keepdims=keepdims)

    def argsort(self, axis=-1) -> np.ndarray:
        """The positions that sort the entries: a plain array."""
        return np.argsort(self, axis=axis)

    def nonzero(self) -> tuple[np.ndarray, ...]:
        """The positions of what is not 0: plain arrays."""
        return np.nonzero(self)

    def any(self, axis=None, keepdims: bool = False) -> np.ndarray:
        """Whether any entry is not 0: a plain boolean array."""
        return np.any(self, axis=axis, keepdims=keepdims)

    def all(self, axis=None, keepdims: bool = False) -> np.ndarray:
        """Whether all entries are not 0: a plain boolean array."""
        return np.all(self, axis=axis, keepdims=keepdims)

    # ------------------------------------------------------------------------------- as one number
    def __bool__(self) -> bool:
        """Whether the only entry is not 0."""
        return bool(self.data)

    def __float__(self) -> float:
        """The only entry of a constant. TypeError if a gradient is needed: .item() is the way."""
        return float(_constant(self))

    def __int__(self) -> int:
        """The only entry of a constant, cut off to a whole number. TypeError as for float()."""
        return int(_constant(self))

    # ----------------------------------------------------------------------------- text and copies
    def __repr__(self) -> str:
        """The data, and how they came to be."""
        text = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        if self.origin is USED_UP:
            return f"Tensor({text}, graph used up)"
        if self.origin is not None:
            return f"Tensor({text}, from {self.origin.primitive.__name__})"
        if self.requires_grad:
            return f"Tensor({text}, requires_grad=True)"
        return f"Tensor({text})"

    def _repr_html_(self) -> str:
        """What notebooks show: the same, below dtype and shape."""
        about = f"{self.dtype.name}, shape {self.shape}"
        return f"<small>{about}</small><pre>{html.escape(repr(self))}</pre>"

    def __format__(self, spec: str) -> str:
        """A format such as .3f is that of the only entry."""
        return format(self.item(), spec) if spec else str(self)

    def __copy__(self) -> Tensor:
        """A Tensor of its own with a copy of the data, without gradient and history."""
        copied = Tensor(np.copy(self.data), self.requires_grad and self.origin is None)
        copied.made_to_train = self.is_parameter
        return copied

    def __reduce__(self):
        """Deep copies have data and gradient of their own, and no history."""
        requires_grad = self.requires_grad and self.origin is None
        others = {"made_to_train": self.is_parameter, "grad": self.grad}
        return Tensor, (self.data, requires_grad), (None, others)

    # -------------------------------------------------------------------- what it refuses, and why
    def __array__(self, *_, **__) -> NoReturn:
        """A Tensor never becomes an array silently: no derivative would flow."""
        raise backend.not_an_array()

    def __setitem__(self, index, value) -> NoReturn:
        """Assignment into a Tensor is an error: the rules look at the data again."""
        raise TypeError(
            "a Tensor cannot be assigned into: what was recorded would be wrong. "
            "Use numpy.where, or .data"
        )

    def __init_subclass__(cls) -> NoReturn:
        """Operations know a Tensor by its exact type, which is quick."""
        raise TypeError(
            "Tensor has no subclasses: operations know it by its exact type; "
            "put a Tensor into your class instead"
        )


# ------------------------------------------------------------------- what several methods do
def _constant(t):
    """The data of a Tensor that may become a number silently, as no gradient is asked for."""
    if t.requires_grad:
        raise TypeError(
            "a Tensor that needs a gradient does not turn into a number silently: no derivative "
            "would flow. Take .item() if that is meant; else numpy.stack or numpy.where to put "
            "Tensors into an array, and NumPy's functions instead of math's"
        )
    return t.data


def _augmented(t, symbol, function, other):
    """What `t += other` makes of t: itself changed in place, or a new Tensor, function(t, other).

    A leaf that needs a gradient, or did before it was frozen, is a weight: modules and optimisers
    hold it, and another Tensor under its name would be trained and saved by nobody. Any other
    Tensor is a value, like a number.
    """
    if not t.is_parameter:
        return function(t, other)
    if recording.enabled:
        raise RuntimeError(
            f"w {symbol} ...: w is a leaf that needs a gradient, or a frozen parameter, and what "
            "was recorded of it would be wrong. Within `with minigrad.no_grad():` it is changed "
            f"in place; for a new Tensor write w = w {symbol[:-1]} ..."
        )
    new = function(t, other)
    new = new.data if isinstance(new, Tensor) else new
    if new.shape != t.shape:
        raise ValueError(
            f"w {symbol} ...: w has shape {t.shape}, which stays in place, and the result has "
            f"{new.shape}; write w = w {symbol[:-1]} ... for a new Tensor"
        )
    try:
        t.data[...] = new  # the array itself: an optimiser has a view of it (arena.py)
    except (TypeError, ValueError) as error:  # read-only, or on another device
        raise backend.explained(error, f"w {symbol} ...", (t.data, new)) from error
    t.changed = next(numbers)
    return t


def _one_or_many(sizes):
    """(2, 3) from t.reshape(2, 3) as from t.reshape((2, 3))."""
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        return sizes[0]
    return sizes


# --------------------------------------------------- what NumPy's functions do when given Tensors
def dispatch(function: Callable, inputs: tuple, keywords: dict) -> Any:
    """What a NumPy function does when one of its arguments is a Tensor.

    TypeError for a function that is not in the table, and for keywords that it does not take.
    """
    implementation: Any = IMPLEMENTATIONS.get(function)
    if implementation is None:
        raise TypeError(
            f"{_full_name(function)} is not in minigrad's table of differentiable functions. "
            "Use functions that are (minigrad.PRIMITIVES, minigrad/derived.py), "
            "add a rule with minigrad.primitive, or pass .data"
        )
    if keywords:
        takes_tensors = hasattr(implementation, "takes_tensors_by_keyword")
        check_keywords(
            keywords, _full_name(function), implementation.keywords, takes_tensors=takes_tensors
        )
    return implementation(*inputs, **keywords)


def _full_name(function):
    return f"{getattr(function, '__module__', None) or 'numpy'}.{function.__name__}"


def check_keywords(
    keywords: dict, name: str, allowed: tuple | None, takes_tensors: bool = False
) -> None:
    """TypeError, naming the function, for a keyword that Tensors do not go with.

    allowed: the keywords that the function takes; None: any. takes_tensors: whether their values
    may be Tensors, as in a function that is a formula of others.
    """
    for key, value in keywords.items():
        if key == "out":
            raise TypeError(
                f"{name}: out= does not take Tensors, nor does array += Tensor; write a = a + t"
            )
        if isinstance(value, Tensor) and not takes_tensors:
            raise TypeError(
                f"{name}: {key}= is a Tensor; Tensors go by position, in the places of arrays; "
                "or pass .data"
            )
        if allowed is not None and key not in allowed:
            raise TypeError(
                f"{name}: {key}= is not supported for Tensors; supported: {list(allowed)}"
            )


# ------------------------------------------------------------------- whether anything is recorded
class _Recording(threading.local):
    """A flag that each thread has for itself, on at first."""

    enabled = True


recording = _Recording()


@contextmanager
def recording_is(enabled: bool) -> Iterator[None]:
    """Within: operations record, or do not, in this thread."""
    before = recording.enabled
    recording.enabled = enabled
    try:
        yield
    finally:
        recording.enabled = before


def no_grad() -> AbstractContextManager:
    """Within `with no_grad():` nothing is recorded, in this thread only.

    It saves memory and time where no gradient is due. It is also where weights may change: there,
    `w -= step` changes the array of a leaf that needs a gradient in place, keeping its shape and
    dtype, so that modules and optimisers see it. Elsewhere this is a RuntimeError; and for any
    other Tensor, everywhere, `a -= b` is `a = a - b`.

        >>> w = Tensor([1.0, 2.0], requires_grad=True)
        >>> np.sum(w * w).backward()
        >>> with no_grad():
        ...     w -= 0.25 * w.grad
        >>> w
        Tensor([0.5, 1. ], requires_grad=True)

    What was computed from w before the change, or before the step of an optimiser that changed it,
    cannot be differentiated any more: backward and grad raise a RuntimeError where they come to w
    by such an operation. They do not see what was written into `w.data` directly, nor that
    `w.detach()` has changed with it.
    """
    return recording_is(False)


# ---------------------------------------------------------------- gradients as values: grad(y, x)
def grad(
    output: Tensor,
    inputs: Tensor | list,
    gradient: Array | Tensor | None = None,
    create_graph: bool = False,
) -> list:
    """d(sum of output * gradient)/d(each input), leaving `.grad` and the graph as they are.

    output: a Tensor. inputs: a list of Tensors (or one) with requires_grad, leaves or not.
    gradient: an array or Tensor of the shape of output; it may be left out where output has a
    single entry. create_graph: return Tensors, which can be differentiated again.

    Returns a list, for each input its gradient, of its shape and dtype: arrays, or Tensors with
    create_graph; zeros for an input without influence. TypeError for arrays, RuntimeError where
    nothing was recorded of the output, as within no_grad().

        >>> x = Tensor([3.0], requires_grad=True)
        >>> grad(x ** 3, x)
        [array([27.])]
        >>> slope, = grad(x ** 3, x, create_graph=True)
        >>> grad(slope, x)
        [array([18.])]
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.requires_grad:
            raise TypeError(f"grad(): input {i} is not a Tensor with requires_grad=True")
    start = initial_gradient(output, gradient, "grad")
    if create_graph and not isinstance(start, Tensor):
        start = Tensor(start)
    if not create_graph and isinstance(start, Tensor):
        start = start.data

    # With create_graph the rules are given Tensors, and so record: number 6 of the opening.
    found = {}
    if inputs:
        wanted = {x.number for x in inputs}  # inputs may be leaves, or Tensors on the way
        with recording_is(create_graph):
            for node, g in sweep(output, start, wanted, record=create_graph):
                if node.number in wanted:  # the sweep also yields leaves that nobody asked for
                    found[node.number] = g

    gradients = []
    for x in inputs:
        g = found.get(x.number)
        if g is None:
            g = np.zeros_like(x.data)
        if not create_graph:
            g = np.copy(g)  # a rule may return what it was given
        elif not isinstance(g, Tensor):
            g = Tensor(g, requires_grad=True)  # a constant: it can be differentiated, to zeros
        elif not g.requires_grad:
            g = Tensor(g.data, requires_grad=True)  # likewise, as the slope of 2 x is
        gradients.append(g)
    return gradients


def initial_gradient(output: Tensor, gradient: Array | None, caller: str) -> Any:
    """The gradient that the sweep starts from, with the shape and dtype of the output.

    gradient: None stands for 1, where the output has a single entry. caller: for the errors.
    RuntimeError for an output of which nothing was recorded.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{caller}(): the output is a {type(output).__name__}, not a Tensor: "
            "no Tensor went into it"
        )
    if not output.requires_grad:
        raise RuntimeError(
            f"{caller}(): nothing to differentiate; no input of the output had requires_grad=True, "
            "or it was computed within no_grad() or from .detach()"
        )
    if gradient is None:
        if output.size != 1:
            raise ValueError(
                f"{caller}(): an output of shape {output.shape} needs gradient= of that shape, "
                "or sum it first"
            )
        return np.ones_like(output.data)
    if not hasattr(gradient, "dtype"):
        gradient = np.asarray(gradient, output.dtype, like=output.data)
    if gradient.dtype.kind not in "fiub":
        raise TypeError(f"{caller}(): gradient is of {gradient.dtype}; it must be real numbers")
    if gradient.shape != output.shape:
        raise ValueError(
            f"{caller}(): gradient has shape {gradient.shape}, the output {output.shape}"
        )
    return gradient if gradient.dtype == output.dtype else gradient.astype(output.dtype)

"""Where arrays live: on the host (NumPy) or on a GPU (CuPy). This is engineering.

Know before reading: NumPy's protocols NEP 13 and NEP 18. A function such as `numpy.exp` looks at
the type of what it is given and hands the work to that type, so nearly all of this project runs on
a GPU without a word about it.

Know after: the few things that no protocol covers. Moving an array, asking where it is, writing
into it, drawing noise where it is needed, and making one call of a formula. This is the only module
that imports CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from scipy import sparse, special

if TYPE_CHECKING:
    from minigrad.tensor import Tensor

DEVICES = ("numpy", "cupy")

# Two words for annotations. An Array is what formulas take. Any stands for numbers, and for CuPy's
# arrays, whose type is not known where CuPy is not installed.
Array: TypeAlias = "np.ndarray | Tensor | Any"
# Rows of data: a dense array or a CSR matrix, NumPy's and SciPy's or CuPy's. No type says so.
Matrix: TypeAlias = Any


def device_of(x: Matrix) -> str:
    """The name of the library whose array `x` is: "numpy", "cupy", or another array type's module.

    x: an array, a sparse matrix, a Tensor or a scalar; Python and NumPy scalars belong to no device
    and count as "numpy".
    """
    if isinstance(x, (np.ndarray, np.generic, int, float)) or sparse.issparse(x):
        return "numpy"
    library = type(x).__module__.split(".")[0]
    if library == "minigrad":
        return device_of(x.data)
    return {"cupyx": "cupy", "builtins": "numpy"}.get(library, library)


def _cupy():
    """The cupy package, or an error that says what is missing."""
    try:
        import cupy

        n_devices = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise ImportError(
            'device "cupy" needs CuPy: pip install "minigrad-scvi[gpu]" for CUDA 12, or '
            '"minigrad-scvi[gpu13]" for CUDA 13, on a machine with an NVIDIA GPU'
        ) from error
    except Exception as error:
        raise RuntimeError(
            f'device "cupy": CuPy is installed but found no usable GPU ({error})'
        ) from error
    if not n_devices:
        raise RuntimeError('device "cupy": CuPy is installed but found no GPU')
    return cupy


def to_device(x: Matrix, device: str) -> Matrix:
    """The same array on a device; `x` itself where it is there already.

    x: a dense array or a CSR matrix, any shape and dtype; device: "numpy" or "cupy".
    Raises ValueError for another name, ImportError or RuntimeError where CuPy or a GPU is missing.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {DEVICES}, not {device!r}")
    if device_of(x) == device:
        return x
    if device == "numpy":
        return to_host(x)
    cupy = _cupy()
    if sparse.issparse(x):
        from cupyx.scipy.sparse import csr_matrix

        return csr_matrix(x.tocsr())
    return cupy.asarray(x)


def rows_on(x: Matrix, device: str) -> Matrix:
    """Rows to compute with, (n, n_features) or (n,), on a device: dense on a GPU, else as they are.

    A minibatch is small, and most of what is computed of it is dense. So on a GPU a sparse one is
    dense from the start: its numbers are sent, and written to their places in an array of zeros.
    (CuPy's CSR matrices, whenever they are made dense, sort their entries, and ask the GPU whether
    they are unique.)
    """
    if not sparse.issparse(x) or device == "numpy":
        return to_device(x, device)
    if not x.has_canonical_format:  # asked on the host; where entries are not unique, they add up
        x = x.copy()
        x.sum_duplicates()
    n_rows, n_columns = x.shape
    row = np.repeat(np.arange(n_rows), np.diff(x.indptr))
    places = to_device(row * n_columns + x.indices, device)
    values = to_device(x.data, device)
    dense = np.zeros_like(values, shape=(n_rows * n_columns,))
    dense[places] = values
    return dense.reshape(n_rows, n_columns)


def to_host(x: Matrix) -> Matrix:
    """The same array as NumPy's, of any shape; `x` itself where it is that already.

    Shape and dtype stay.
    """
    return x if device_of(x) == "numpy" else x.get()


def copies_on_host(arrays: Sequence[Array]) -> list[np.ndarray]:
    """A copy of each array as NumPy's, of any shapes. Those of one dtype leave a GPU together."""
    copies = [np.array(x) if device_of(x) == "numpy" else None for x in arrays]
    for dtype in {x.dtype for x, copy in zip(arrays, copies) if copy is None}:
        places = [i for i, x in enumerate(arrays) if copies[i] is None and x.dtype == dtype]
        flat = to_host(np.concatenate([arrays[i].reshape(-1) for i in places]))
        ends = np.cumsum([arrays[i].size for i in places])
        for i, part in zip(places, np.split(flat, ends[:-1])):
            copies[i] = part.reshape(arrays[i].shape).copy()
    return cast("list[np.ndarray]", copies)


def assign(target: Array, values) -> None:
    """Write host numbers into an array, in place, wherever it is: target[...] = values.

    target: any array; values: a host array or number that broadcasts to its shape; it is cast to
    target's dtype.
    """
    target[...] = to_device(np.asarray(values, target.dtype), device_of(target))


def add_at(target: Array, index, values) -> None:
    """target[index] += values, in place; an entry that the index names twice gets both values.

    target: any shape. numpy.add.at follows the array, but CuPy's array answers to it only where the
    index is one array.
    """
    (np if device_of(target) == "numpy" else _cupy()).add.at(target, index, values)


def at_a_time(x: Array, n: int) -> int:
    """How many entries of x to update at a time.

    n, which is few enough for the processor's cache; on a GPU all, since calls are dear there.
    x: any shape.
    """
    return n if device_of(x) == "numpy" else x.size


def entries_at_once(n: int, device: str) -> int:
    """How many entries of an array to compute at a time, where memory is not for all of them.

    n, which suits a processor's caches; on a GPU more, since calls are dear: as many as fill 1/512
    of its memory in float64, since formulas have a dozen of such arrays. It goes by all of its
    memory and not by what is free, so that a question with the same seed has the same answer.
    """
    if device == "numpy":
        return n
    _, n_bytes = _cupy().cuda.runtime.memGetInfo()
    return max(n, n_bytes // (512 * 8))


class DeviceGenerator:
    """A generator on the GPU: what the engine draws there, by the names of NumPy's generators.

    The numbers come from CuPy's RandomState with Philox (Salmon et al. 2011), a function of a
    64-bit seed and of a counter. CuPy's newer Generator keeps 32 bits of a seed, so that among a
    hundred thousand steps two would draw the same noise; and its state, 16 MB, can be set neither
    to another seed nor to another place of the stream, so that each step would need a new one.
    """

    def __init__(self, key):
        cupy = _cupy()
        philox = cupy.cuda.curand.CURAND_RNG_PSEUDO_PHILOX4_32_10
        self.state = cupy.random.RandomState(0, method=philox)
        self.start(key)

    def start(self, key) -> None:
        """Go to the beginning of the stream of this key: see `generator`."""
        self.state.seed(np.array(key, np.uint64))  # which CuPy hashes to 64 bits

    def random(self, size, dtype: Any = np.float64) -> Array:
        """Uniform numbers in [0, 1), of shape `size`, in float32 or float64."""
        return self.state.random_sample(size, dtype)

    def standard_normal(self, size, dtype: Any = np.float64) -> Array:
        """Standard normal numbers, of shape `size`, in float32 or float64."""
        return self.state.standard_normal(size, dtype)

    def standard_gamma(self, shape: Array, size=None) -> Array:
        """Gamma numbers of these shape parameters and scale 1, of shape `size`, in float64."""
        return self.state.standard_gamma(shape, size)

    def poisson(self, lam: Array, size=None) -> Array:
        """Poisson numbers with these means, of shape `size`, as integers."""
        return self.state.poisson(lam, size)


def generator(key, device: str = "numpy", again: Any = None) -> np.random.Generator:
    """A generator of random numbers on a device, whose stream is a function of `key`.

    key: a sequence of non-negative integers, on a GPU below 2^64. (NumPy fills one of fewer than
    four up with zeros: [1, 2] and [1, 2, 0] are the same key.) A fresh one a step,
    `generator([seed, purpose, epoch, step])`, leaves no state to save: a run that resumes, or is
    split over machines, draws what it would have drawn. The two devices draw different numbers.
    again: a generator that nobody draws from any more, as that of the step before. On a GPU, where
    making one takes time, it is this one that is returned, at the beginning of the new stream.
    """
    if device == "numpy":
        return np.random.default_rng(key)
    if again is None:
        return cast(np.random.Generator, DeviceGenerator(key))
    again.start(key)
    return again


_NUMBER = "number"  # what an argument of an elementwise formula is, if neither array nor NamedTuple


def elementwise(formula: Callable) -> Callable:
    """Decorator: on a GPU, run a formula of single entries as one kernel.

    There each call has a price, of some microseconds, which for arrays of a minibatch is more than
    what the arithmetic takes; so a formula of ten operations is better one call than ten. CuPy
    looks at what the formula does, once for each set of dtypes, with stand-ins for its arguments,
    and makes a kernel of it (`cupy.fuse`), which it keeps. Elsewhere the formula itself runs:

        >>> @elementwise
        ... def smallest_step(x, y):
        ...     return np.where(x == y, 0.0, np.sqrt(np.abs(x - y)))
        >>> smallest_step(np.array([1.0, 5.0]), np.array([1.0, 1.0]))
        array([0., 2.])

    formula: a function with a name, of arguments by position: arrays of any shapes that broadcast,
    the first being one, NamedTuples of arrays, and Python numbers, but not True and False. It
    returns an array or a tuple of them, all of the shape to which the arguments broadcast; or it
    changes arguments of that shape in place, and returns None.

    It is made of operators, ufuncs with one result, and np.where. These take no keywords but out=.
    It asks nothing of its arguments, neither a shape nor `if x > 0`. Each operation has an array
    among its operands, for of numbers alone a GPU may make float16 or float64. Where all of these
    arrays are booleans or integers of 8 or 16 bits, no number stands beside them, for CuPy would
    keep to as few bits. What is otherwise is refused: a formula without a name at once (TypeError),
    all else where a GPU is asked (mostly TypeError).

    Two things are not looked at. An array that is changed shares no memory with another argument:
    the entries are computed at once, in no order. And of the functions of scipy.special some do not
    compile together in CuPy, since both bring their own version of a third; so take one only
    of beta, betaln, betainc, the gamma and gammainc functions, zeta and cosm1.
    """
    name = getattr(formula, "__name__", repr(formula))
    if not (name.isidentifier() and name.isascii()):
        raise TypeError(
            f"elementwise: the kernel has the name of the formula, and {name} is none; define it "
            "by def, with a name of English letters"
        )

    @wraps(formula)
    def call(x, *others):
        first = x[0] if isinstance(x, tuple) else x
        # Not by device_of, which says "cupy" of a Tensor whose array is there: for a Tensor the
        # formula itself runs, so that each of its operations is recorded. (And this is quicker.)
        if type(first) is np.ndarray or not type(first).__module__.startswith("cupy"):
            return formula(x, *others)
        kinds = []
        flat = []
        for argument in (x, *others):
            if isinstance(argument, tuple):
                kinds.append(type(argument))
                flat.extend(argument)
            else:
                kinds.append(_NUMBER if isinstance(argument, (int, float, np.generic)) else None)
                flat.append(argument)
        if bool in map(type, flat):
            # CuPy keeps one kernel for True and for 5: the first that comes is what it is made for.
            raise TypeError(f"{name}: True or False among the arguments; give 1.0 or 0.0")
        return _kernel_of(formula, tuple(kinds))(*flat)

    return call


@cache
def _kernel_of(formula: Callable, kinds: tuple) -> Callable:
    """What CuPy makes of an elementwise formula: a function of arrays on the GPU and numbers.

    kinds: for each argument of the formula the class of NamedTuple that it is, _NUMBER, or None for
    an array. The function takes the fields of the NamedTuples one after the other.
    """

    @wraps(formula)
    def on_stand_ins(*variables):
        left = iter(variables)
        arguments = []
        for kind in kinds:
            if kind is None or kind is _NUMBER:
                arguments.append(_StandIn(next(left), is_array=kind is None))
            else:
                arguments.append(kind(*map(_StandIn, islice(left, len(kind._fields)))))
        results = formula(*arguments)
        if isinstance(results, tuple):
            return tuple(map(_bare, results))
        return _bare(results)

    return _cupy().fuse(on_stand_ins)


class _StandIn(NDArrayOperatorsMixin):
    """Stands for an argument while CuPy looks at a formula: NumPy's functions of it become CuPy's.

    cupy.fuse passes tracing variables, which np.exp refuses; this wraps them. And CuPy's kernels
    may have other numbers than the formula, without a word: what would, is refused here.

    variable: one of these. is_array: whether it stands for an array, and not for a number.
    """

    def __init__(self, variable, is_array=True):
        self.variable = variable
        self.is_array = is_array

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **keywords):
        """CuPy's ufunc of the same name. out: for `x += y`."""
        cupy = _cupy()
        from cupyx.scipy import special as cupy_special

        name = ufunc.__name__
        if method != "__call__" or ufunc.nout != 1 or keywords:
            asked = name if method == "__call__" else f"{name}.{method}"
            with_keywords = "".join(f" with {key}=" for key in keywords)
            raise TypeError(
                f"{asked}{with_keywords} in an elementwise formula: it is made of operators, "
                "ufuncs with one result, and np.where, without keywords but out="
            )
        _refuse_other_numbers(name, inputs)
        function = getattr(cupy, name, None) or getattr(cupy_special, name, None)
        if function is None:
            raise TypeError(f"{name} in an elementwise formula: CuPy has no such function")
        return _StandIn(function(*map(_bare, (*inputs, *out))))

    def __array_function__(self, function, types, inputs, keywords):
        """np.where, the one function of a formula that is no ufunc."""
        if function is not np.where or len(inputs) != 3 or keywords:
            raise TypeError(
                f"{function.__name__} in an elementwise formula: the one function there that is "
                "no ufunc is np.where(condition, x, y)"
            )
        _refuse_other_numbers("where", inputs[1:])
        condition, x, y = map(_bare, inputs)
        if condition.dtype != bool:  # CuPy's takes no other
            condition = _cupy().not_equal(condition, 0)
        return _StandIn(_cupy().where(condition, x, y))

    def __bool__(self):
        raise TypeError(
            "an elementwise formula cannot ask for a value, as `if`, `and`, max and float do: on a "
            "GPU it is looked at once, for all values; np.where and np.maximum choose by entry"
        )

    __int__ = __float__ = __bool__


def _refuse_other_numbers(name, operands) -> None:
    """TypeError where CuPy's function of these operands has another dtype than NumPy's."""
    arrays = [x for x in operands if isinstance(x, _StandIn) and x.is_array]
    if not arrays:
        raise TypeError(
            f"{name} of numbers alone in an elementwise formula: a GPU may compute that in float16 "
            "or in float64; compute it before, and give the formula the result"
        )
    dtypes = [x.variable.dtype for x in arrays]
    if len(arrays) < len(operands) and all(t.kind in "biu" and t.itemsize < 4 for t in dtypes):
        raise TypeError(
            f"{name} of {dtypes[0]} and a number in an elementwise formula: a GPU would compute "
            "that in so few bits; use np.where, or astype before"
        )


def _bare(x):
    """The variable that a stand-in holds; None, and numbers, as they are."""
    return x.variable if isinstance(x, _StandIn) else x


def special_of(x: Array) -> ModuleType:
    """The module of special functions for an array: `scipy.special`, on a GPU
    `cupyx.scipy.special`.

    x: any shape. Needed for the functions of `scipy.special` that are no ufuncs and so do not
    follow the array by themselves.
    """
    if device_of(x) != "cupy":
        return special
    from cupyx.scipy import special as cupy_special

    return cupy_special


def on_host(arrays) -> bool:
    """Whether a kernel written for NumPy takes all of these.

    It takes arrays, numbers, SciPy's matrices and None.
    """
    for x in arrays:
        if type(x) is np.ndarray or isinstance(x, (np.ndarray, np.generic, float, int)):
            continue
        if x is not None and not sparse.issparse(x):
            return False
    return True


def explained(error: Exception, name: str, arrays) -> Exception:
    """The same kind of error, which says what operation failed on what.

    It names dtypes and shapes, and the devices where they differ.
    """

    def describe(x):
        where = "" if device_of(x) == "numpy" else f" on {device_of(x)}"
        return f"{x.dtype}{list(x.shape)}{where}" if hasattr(x, "shape") else repr(x)

    kind = next(
        k
        for k in (np.linalg.LinAlgError, IndexError, ValueError, TypeError)
        if isinstance(error, k)
    )
    with_devices = [x for x in arrays if hasattr(x, "shape") and not isinstance(x, np.generic)]
    devices = sorted(set(map(device_of, with_devices)))
    advice = (
        f"; operands on {' and '.join(devices)}: use backend.to_device first"
        if len(devices) > 1
        else ""
    )
    is_unknown = "NotImplemented" in str(error) or "no implementation found" in str(error)
    if is_unknown and len(devices) == 1 and devices != ["numpy"]:
        return kind(
            f"{name}({', '.join(map(describe, arrays))}): {devices[0]} has no such function; "
            "backend.to_host brings the arrays to where NumPy and SciPy have it"
        )
    return kind(f"{name}({', '.join(map(describe, arrays))}): {error}{advice}")


def is_sparse(x: Matrix) -> bool:
    """Whether x is a sparse matrix or array, SciPy's or CuPy's."""
    return hasattr(x, "tocsr")


def with_entries(x: Any, entries: Array) -> Any:
    """The CSR matrix x, SciPy's or CuPy's, with these entries (n_stored,) in place of its own."""
    return type(x)((entries, x.indices, x.indptr), shape=x.shape)


def floating(dtype: Any, name: str) -> np.dtype:
    """float32 or float64, in the byte order of the machine: what weights may be of.

    name: of what is to have this dtype, for errors. TypeError for other dtypes: numbers of float16
    end at 65,504, where a sum of squares soon is, and SciPy has few functions of longdouble.
    """
    dtype = np.dtype(dtype)
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise TypeError(
            f"{name}: {dtype} is no dtype to compute in; take numpy.float32 or numpy.float64"
        )
    return dtype.newbyteorder("=")


def as_array(x: Array) -> Array:
    """What a Tensor may hold: plain arrays as they are, and what NumPy can read as plain arrays.

    NumPy's subclasses become plain arrays. x: any shape and dtype, both of which stay. TypeError
    for a masked array.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            "a masked array: its mask would be lost; fill it first, or select with numpy.where"
        )
    return np.asarray(x) if isinstance(x, np.ndarray) or not hasattr(x, "__array_function__") else x


def as_operand(x: Array, dtype: np.dtype, name: str, in_kernel: bool = False) -> Array:
    """An operand beside a Tensor, as it is computed with: numbers follow the Tensor's dtype.

    Python and NumPy scalars, and arrays of integers or float16, are cast to `dtype`; arrays of
    float32 and float64 are kept. So float32 stays float32 in `t * np.log(2)`, and in SciPy's
    functions, which do not let a Python number follow the array beside it. name: the operation, for
    errors. in_kernel: sparse matrices and None pass as well. TypeError for any other operand, as
    for an array of longdouble.
    """
    if type(x) is float and dtype.char == "d":
        return x  # the same number, and half the time of an array times a NumPy scalar
    if isinstance(x, (float, int)):
        return dtype.type(x)
    if isinstance(x, np.generic) and x.dtype.kind in "fiub":
        return dtype.type(x)
    if type(x) is np.ndarray and x.dtype.char in "fd":
        return x
    if is_sparse(x) or x is None:
        if in_kernel:
            return x
        found = "None" if x is None else "a sparse matrix"
        raise TypeError(
            f"{name}: an operand is {found}; minigrad.functional.linear(sparse, weight, bias) is "
            "sparse @ Tensor, other operations take arrays"
        )
    if not hasattr(x, "__array_function__"):
        raise TypeError(
            f"{name}: an operand is a {type(x).__name__}; pass an array, a real number or a Tensor"
        )
    x = as_array(x)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{name}: an operand is an array of {x.dtype}; Tensors are of real numbers")
    if x.dtype.char == "g":
        raise TypeError(
            f"{name}: an operand is an array of {x.dtype}; Tensors are of float32 or float64: "
            "convert it with .astype(numpy.float64)"
        )
    return x if x.dtype.char in "fd" else x.astype(dtype)


def not_an_array() -> Exception:
    """The error that says why NumPy or SciPy may not silently turn a Tensor into an array."""
    if not isinstance(special.gammaln, np.ufunc):
        return RuntimeError(  # a TypeError SciPy would catch, and say less
            "scipy.special does not take Tensors while SCIPY_ARRAY_API is set: it wraps its "
            "functions, and they no longer ask their argument. Unset that environment variable "
            "before Python starts"
        )
    return TypeError(
        "a Tensor does not turn into an array silently: take .data (no derivative flows), or use a "
        "NumPy function of the table. A list of Tensors becomes one by numpy.stack; softmax, "
        "log_softmax, logsumexp and polygamma are in minigrad.functional, as is "
        "minigrad.functional.linear(sparse, weight, bias) for sparse @ Tensor"
    )

"""A GPU that is not there: CuPy's array over NumPy's, with CuPy's refusals, so that code for a GPU runs without one.

`installed(monkeypatch)` puts doubles of the packages cupy and cupyx where `import` finds them; then `device="cupy"` means
arrays of the class `ndarray` below. What they imitate was read off the source of CuPy 14.2 (cupy/_core/core.pyx,
_kernel.pyx, _routines_indexing.pyx, cupyx/scipy/sparse, cupy/random/_generator.py):

- Nothing turns into a NumPy array silently, and nothing is mixed with one: numpy.asarray, operators, functions and
  assignment refuse. Only lists and NumPy arrays used as an index are sent to the device, as CuPy does.
- A function of NumPy or SciPy runs only if UFUNCS or FUNCTIONS lists it, and only with the arguments that CuPy's takes.
  tests/test_cupy_names.py holds both lists against the real CuPy, wherever it can be imported.
- Reductions give 0-d arrays of the device; integer indices beyond the end wrap around; numpy.add.at takes no tuple as an
  index; numpy.where no Python bool as a condition; numpy.linalg.solve no stacks of different shapes; slogdet gives a plain
  pair; there are no arrays of objects or text; the RandomState has four methods that draw; sparse matrices are CSR of bool or floats.
- A function that cupy.fuse makes a kernel of sees variables instead of arrays, which only CuPy's own ufuncs take. Its name
  is the kernel's; lambdas have none that CUDA takes. Where CuPy would say nothing, and compute other numbers than NumPy, the
  double refuses: where nothing but numbers meet; True for a number, as CuPy keeps one kernel for True and for 5; an array
  that is changed beside another on the same memory. So it does for functions that do not compile together.
- Every transfer, the waiting ones included (`float(x)`, `if x:`, printing), is counted in `TRANSFERS`.

What they do not imitate: memory, streams and time; the last digits of CUDA's functions; CuPy's order of summation; the
stream of CuPy's random numbers (the double draws what NumPy would, so that whole trainings can be compared); kernels
that fail to compile; dtypes that a ufunc lacks. A method or function that CuPy has and the engine does not use is
missing here, and a few of CuPy's that would send an operand themselves (einsum does) refuse here. So what passes here has
a right to run on a GPU, and tests/gpu asks one whether it does.
"""

import inspect
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
from scipy import sparse, special

MEMORY = 2**30  # bytes of the device that is not there
SCALARS = (bool, int, float, complex, np.generic)
UFUNCS = set(
    """add subtract multiply divide power negative absolute sign square sqrt reciprocal exp expm1 log log1p sin cos
    sinh cosh tanh arctan logaddexp maximum minimum matmul equal not_equal less less_equal greater greater_equal
    isfinite isnan isinf floor ceil rint trunc logical_and logical_or logical_not bitwise_and bitwise_or invert remainder
    floor_divide signbit exp2 log2 log10 logaddexp2 tan arcsin arccos arctan2 hypot arcsinh arccosh arctanh deg2rad
    rad2deg radians degrees cbrt fabs fmod fmax fmin""".split()
)
SPECIAL = set(
    """gammaln loggamma gamma rgamma psi beta betaln gammainc gammaincc gammaincinv gammainccinv betainc zeta
    erf erfc erfcx erfinv erfcinv ndtr log_ndtr ndtri expit logit log_expit xlogy xlog1py entr rel_entr kl_div
    exprel exp10 cosm1 expi exp1 boxcox boxcox1p inv_boxcox inv_boxcox1p huber pseudo_huber
    sindg cosdg tandg cotdg j0 j1 y0 y1 yn i0 i0e i1 i1e k0 k0e k1 k1e""".split()
)
COMPARISONS = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}
# The functions of NumPy that the engine calls, with the arguments that CuPy's functions of the same name take.
FUNCTIONS = """
all(a, axis=None, out=None, keepdims=False)
any(a, axis=None, out=None, keepdims=False)
arange(start, stop=None, step=1, dtype=None)
argmax(a, axis=None, dtype=None, out=None, keepdims=False)
argpartition(a, kth, axis=-1)
argsort(a, axis=-1, kind=None)
broadcast_to(array, shape)
concatenate(tup, axis=0, out=None, *, dtype=None, casting='same_kind')
copy(a, order='K')
copyto(dst, src, casting='same_kind', where=None)
convolve(a, v, mode='full')
cumprod(a, axis=None, dtype=None, out=None)
cumsum(a, axis=None, dtype=None, out=None)
einsum(*operands, **kwargs)
empty_like(prototype, dtype=None, order='K', subok=None, shape=None)
expand_dims(a, axis)
flip(a, axis=None)
full_like(a, fill_value, dtype=None, order='K', subok=None, shape=None)
imag(val)
linalg.cholesky(a)
linalg.det(a)
linalg.eig(a)
linalg.eigh(a, UPLO='L')
linalg.inv(a)
linalg.pinv(a, rcond=1e-15)
linalg.qr(a, mode='reduced')
linalg.slogdet(a)
linalg.solve(a, b)
linalg.svd(a, full_matrices=True, compute_uv=True)
max(a, axis=None, out=None, keepdims=False)
mean(a, axis=None, dtype=None, out=None, keepdims=False)
min(a, axis=None, out=None, keepdims=False)
nan_to_num(x, copy=True, nan=0.0, posinf=None, neginf=None)
ones_like(a, dtype=None, order='K', subok=None, shape=None)
real(val)
repeat(a, repeats, axis=None)
reshape(a, newshape, order='C', *, copy=None)
round(a, decimals=0, out=None)
searchsorted(a, v, side='left', sorter=None)
shape(a)
squeeze(a, axis=None)
sum(a, axis=None, dtype=None, out=None, keepdims=False)
swapaxes(a, axis1, axis2)
tensordot(a, b, axes=2)
tile(A, reps)
transpose(a, axes=None)
tril(m, k=0)
triu(m, k=0)
where(condition, x=None, y=None)
zeros_like(a, dtype=None, order='K', subok=None, shape=None)
"""


class Transfers:
    """What crossed between host and device: a list a direction, of the bytes of each transfer."""

    def __init__(self):
        self.to_device, self.to_host = [], []

    def clear(self):
        self.to_device.clear()
        self.to_host.clear()


TRANSFERS = Transfers()
# The kernels that CuPy would launch since the list was cleared, by name. A call of a ufunc or of a function is one, as is
# a copy, a draw, and a read or write through an index array; views cost none, nor does memory that is not filled. So it
# counts what the program asks for; a few of CuPy's functions launch two for one (a sum of very many numbers does).
LAUNCHES: list[str] = []
FREE = set(
    """broadcast_to empty_like expand_dims imag real reshape shape squeeze swapaxes transpose""".split()
)


def _signatures():
    """name -> inspect.Signature, of FUNCTIONS."""
    found = {}
    for line in FUNCTIONS.split("\n"):
        name, _, arguments = line.partition("(")
        if name:
            found[name] = inspect.signature(eval(f"lambda {arguments[:-1]}: None"))
    return found


SIGNATURES = _signatures()


# ------------------------------------------------------------------------------------------------------------ arrays
class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the device. `_host`: the NumPy array that holds its numbers, which only this module may look at."""

    __array_priority__ = 100
    __slots__ = ("_host",)

    def __init__(self, host):
        host = np.asarray(host)
        if host.dtype.kind not in "biufc":
            raise ValueError(f"Unsupported dtype {host.dtype}")
        self._host = host

    shape, ndim = property(lambda self: self._host.shape), property(lambda self: self._host.ndim)
    size, dtype = property(lambda self: self._host.size), property(lambda self: self._host.dtype)
    nbytes, T = (
        property(lambda self: self._host.nbytes),
        property(lambda self: ndarray(self._host.T)),
    )

    # ---------------------------------------------------------------------------------------- there and back
    def get(self):
        """A copy on the host: a transfer."""
        TRANSFERS.to_host.append(self.nbytes)
        return self._host.copy()

    def item(self):
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __bool__(self):
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy "
            "array explicitly."
        )

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __repr__(self):
        return repr(self.get())

    __str__ = __repr__

    def __format__(self, spec):
        return format(self.get(), spec)

    # ---------------------------------------------------------------------------------------- methods that CuPy's has
    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def reshape(self, *shape):
        return ndarray(self._host.reshape(*shape))

    def transpose(self, *axes):
        return ndarray(self._host.transpose(*axes))

    def ravel(self):
        return ndarray(self._host.ravel())

    def copy(self):
        LAUNCHES.append("copy")
        return ndarray(self._host.copy())

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if copy or self.dtype != dtype:
            LAUNCHES.append("astype")
        return ndarray(self._host.astype(dtype, order=order, copy=copy))

    def fill(self, value):
        if not isinstance(value, SCALARS) and np.shape(_bare(value)) != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        LAUNCHES.append("fill")
        self._host.fill(_bare(value))

    def all(self, axis=None, out=None, keepdims=False):
        return np.all(self, axis=axis, out=out, keepdims=keepdims)

    def any(self, axis=None, out=None, keepdims=False):
        return np.any(self, axis=axis, out=out, keepdims=keepdims)

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return np.sum(self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return np.mean(self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def max(self, axis=None, out=None, keepdims=False):
        return np.max(self, axis=axis, out=out, keepdims=keepdims)

    def min(self, axis=None, out=None, keepdims=False):
        return np.min(self, axis=axis, out=out, keepdims=keepdims)

    # ---------------------------------------------------------------------------------------- reading and writing
    def __getitem__(self, index):
        """A view where NumPy gives one; of a single entry a copy, where CuPy gives a view."""
        index = _wrapped(index, self.shape)
        _wait_for_masks(index)
        if _is_gather(index):
            LAUNCHES.append("getitem")
        return ndarray(self._host[index])

    def __setitem__(self, index, value):
        index = _wrapped(index, self.shape)
        LAUNCHES.append("setitem")
        if not isinstance(value, SCALARS):
            _wait_for_masks(index)
        if isinstance(value, SCALARS):
            self._host[index] = value
        elif isinstance(value, ndarray):
            self._host[index] = value._host
        else:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")

    # ---------------------------------------------------------------------------------------- NumPy's two protocols
    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **keywords):
        name = ufunc.__name__
        known = name in UFUNCS or name in SPECIAL
        if not known or method not in ("__call__", "at"):
            return NotImplemented
        if not all(isinstance(x, (*SCALARS, ndarray, np.ndarray)) for x in (*inputs, *out)):
            return NotImplemented  # a Tensor, which then answers itself; also a tuple as the index of add.at
        if name in COMPARISONS:
            inputs = [x.item() if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs]
        if method == "at":
            return add_at(*inputs)
        if keywords.keys() - {"dtype", "casting"}:
            raise TypeError(f"Wrong arguments {keywords}")
        LAUNCHES.append(name)
        if name == "yn" and np.any(np.less(_bare(inputs[0]), 0)):
            inputs = (np.nan, inputs[1])  # what CUDA says of negative orders
        return _filled(
            out, ufunc(*map(_bare, inputs), out=tuple(map(_bare, out)) or None, **keywords)
        )

    def __array_function__(self, function, types, inputs, keywords):
        module = ".".join(filter(None, function.__module__.split(".")[1:]))
        name = f"{module}.{function.__name__}" if module else function.__name__
        if name not in SIGNATURES or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        # TypeError for what CuPy's function does not take.
        bound = SIGNATURES[name].bind(*inputs, **keywords)
        if bound.arguments.get("subok") is not None:
            raise TypeError("subok is not supported yet")
        if name not in FREE:
            LAUNCHES.append(name)
        if name in PARTICULAR:
            return PARTICULAR[name](*inputs, **keywords)
        out = keywords.get("out")
        y = function(*[_bare(x) for x in inputs], **{key: _bare(x) for key, x in keywords.items()})
        return _filled(() if out is None else (out,), y)


ndarray.__module__ = "cupy"  # by which backend.device_of tells where an array is


def _bare(x):
    """What an array of the device holds; TypeError for an array of the host."""
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {np.ndarray}")
    if isinstance(x, (list, tuple)):
        return type(x)(map(_bare, x))
    return x._host if isinstance(x, ndarray) else x


def _filled(out, y):
    """A result of NumPy as one of the device; where `out` was given, that very array."""
    if out:
        return out[0]
    if isinstance(y, (np.ndarray, np.generic)):
        return ndarray(y)
    if isinstance(y, tuple) and any(isinstance(part, (np.ndarray, np.generic)) for part in y):
        return tuple(_filled((), part) for part in y)  # CuPy gives plain tuples
    return y


def _wrapped(index, shape):
    """An index as NumPy takes it: lists and NumPy arrays are sent first, integers beyond the end are wrapped around."""
    parts, found, axis = (
        [_sent(part) for part in (index if isinstance(index, tuple) else (index,))],
        [],
        0,
    )
    taken = sum(map(_n_axes, parts))
    for part in parts:
        n_axes = len(shape) - taken if part is Ellipsis else _n_axes(part)
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError(
                    f"arrays used as indices must be of integer or boolean type (actual: {part.dtype.type})"
                )
            part = part._host
            part = part if part.dtype.kind == "b" or not shape[axis] else part % shape[axis]
        axis += n_axes
        found.append(part)
    return tuple(found) if isinstance(index, tuple) else found[0]


def _is_gather(index) -> bool:
    """Whether reading at this index copies: an index array is among its parts."""
    return any(
        isinstance(part, np.ndarray) for part in (index if isinstance(index, tuple) else (index,))
    )


def _wait_for_masks(index):
    """How many entries a mask chooses only the device knows: CuPy waits for the number."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, np.ndarray) and part.dtype == np.bool_:
            TRANSFERS.to_host.append(8)


def _sent(part):
    """A part of an index, as an array of the device where it is a list or an array of the host."""
    if isinstance(part, list) and not part:
        return ndarray(np.array([], np.int32))
    return asarray(part) if isinstance(part, (list, np.ndarray)) else part


def _n_axes(part) -> int:
    """How many axes of an array a part of an index speaks for: a mask for as many as it has."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if getattr(part, "dtype", "") == np.bool_ else 1


# ------------------------------------------------------------------------------------ functions with ways of their own
def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    """An array sent to the device; one that is there stays."""
    if isinstance(a, ndarray):
        return a if dtype in (None, a.dtype) else a.astype(dtype)
    sent = ndarray(np.array(a, dtype))
    TRANSFERS.to_device.append(sent.nbytes)
    return sent


def add_at(target, index, values):
    """cupy.add.at: unlike numpy.add.at of a cupy.ndarray, it takes any index."""
    LAUNCHES.append("add.at")
    np.add.at(target._host, _wrapped(index, target.shape), _bare(values))


def where(condition, x=None, y=None):
    """Like CuPy's, it asks the condition for its method: AttributeError for a Python bool."""
    condition = condition.astype("?", copy=False)
    return ndarray(np.where(_bare(condition), _bare(x), _bare(y)))


def solve(a, b):
    """Stacks must have one shape."""
    if not isinstance(a, ndarray) or not isinstance(b, ndarray):
        raise np.linalg.LinAlgError("cupy.linalg only supports cupy.ndarray")
    if b.ndim > 1 and a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            "a must have (..., M, M) shape and b must have (..., M, K) for multidimensional b"
        )
    return ndarray(np.linalg.solve(a._host, b._host))


def concatenate(tup, axis=0, out=None, *, dtype=None, casting="same_kind"):
    """Of arrays of the device only."""
    if not all(isinstance(x, ndarray) for x in tup):
        raise TypeError("Only cupy arrays can be concatenated")
    return ndarray(np.concatenate([x._host for x in tup], axis=axis, dtype=dtype, casting=casting))


def tensordot(a, b, axes=2):
    """Of a 0-d operand it takes 0 or two empty tuples as axes, and no empty list."""
    if not (a.ndim and b.ndim) and axes != 0 and axes != ((), ()):
        raise ValueError("An input is zero-dim while axes has dimensions")
    return ndarray(np.tensordot(_bare(a), _bare(b), axes))


def eig(a):
    """Of a complex dtype, also where all eigenvalues are real."""
    values, vectors = np.linalg.eig(a._host)
    return ndarray(values.astype(complex)), ndarray(vectors.astype(complex))


PARTICULAR = {
    "asarray": asarray,
    "where": where,
    "tensordot": tensordot,
    "linalg.eig": eig,
    "linalg.solve": solve,
    "concatenate": concatenate,
}


# ----------------------------------------------------------------------------------------------------- formulas in one
# Functions of cupyx.scipy.special of which a kernel takes one only: the CUDA code of each defines what that of another does.
CLASHES = [
    set(line.split())
    for line in (
        "beta betainc betaln cosm1 gamma gammainc gammaincc gammaincinv gammainccinv zeta",
        "gamma loggamma rgamma",
        "rgamma k0",
        "rgamma k0e",
        "rgamma k1",
        "rgamma k1e",
        "exp1 expi",
        "sindg cosdg tandg cotdg",
    )
]


class Kernel:
    """What is known of a kernel while it is traced: its arguments, and the functions in it."""

    def __init__(self, variables):
        self.arrays = [x for x in variables if x.is_array]
        self.functions = set()

    def calls(self, name):
        self.functions.add(name)
        for family in CLASHES:
            if len(family & self.functions) > 1:
                raise ValueError(f"does not compile: {sorted(family & self.functions)}")

    def changes(self, out):
        for x in self.arrays:
            if x is not out and np.may_share_memory(x.content, out.content):
                raise ValueError("an array that is changed shares memory with another argument")


TRACED: list[Kernel] = []  # the kernel that is being traced, and none otherwise


class FusionVariable:
    """An argument of a function that is fused. NumPy's functions do not take it; arithmetic by operators is CuPy's alone."""

    __array_ufunc__ = None
    __slots__ = ("content", "is_array")

    def __init__(self, content):
        self.is_array = isinstance(content, ndarray)
        self.content = _bare(content)

    @property
    def dtype(self):
        return self.content.dtype if self.is_array else np.dtype(type(self.content))

    def __bool__(self):
        raise TypeError("Cannot convert to Python scalar in cupy.fuse")


def fuse(function):
    """cupy.fuse: a kernel, and so one launch, of a function that calls CuPy's elementwise functions only."""

    def kernel(*arguments):
        if not all(isinstance(x, (ndarray, *SCALARS)) for x in arguments):
            raise TypeError(f"Invalid argument type for {function.__name__!r}")
        if any(isinstance(x, bool) for x in arguments):
            raise TypeError("one kernel serves True and 5")
        if re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", function.__name__) is None:
            raise ValueError(f'Invalid kernel name: "{function.__name__}"')
        LAUNCHES.append(function.__name__)
        variables = [FusionVariable(x) for x in arguments]
        TRACED.append(Kernel(variables))
        try:
            with np.errstate(all="ignore"):  # a GPU knows no warnings
                results = function(*variables)
        finally:
            TRACED.pop()
        if results is None:
            return None
        shape = np.broadcast_shapes(*[np.shape(_bare(x)) for x in arguments])
        parts = results if isinstance(results, tuple) else (results,)
        made = tuple(ndarray(np.broadcast_to(x.content, shape).copy()) for x in parts)
        return made if isinstance(results, tuple) else made[0]

    return kernel


def in_fusion(function):
    """CuPy's elementwise function of the same name, as far as it takes part in fusion."""

    def call(*inputs):
        operands = inputs[1:] if function is np.where else inputs
        if not any(isinstance(x, FusionVariable) and x.is_array for x in operands):
            raise TypeError(f"{function.__name__}: no array among the operands, or not in fusion")
        if function is np.where and np.asarray(inputs[0].content).dtype != bool:
            raise TypeError("Invalid type cast in 'cupy_where'")
        TRACED[-1].calls(function.__name__)
        contents = [x.content if isinstance(x, FusionVariable) else x for x in inputs]
        n_in = getattr(function, "nin", len(contents))
        if len(contents) > n_in:  # the last one is where the result goes
            return _changed(function, contents[:n_in], inputs[n_in])
        return FusionVariable(ndarray(function(*contents)))

    return call


def _changed(function, contents, out):
    """A variable that was changed in place: of the whole shape, as CuPy asks for it."""
    if np.broadcast_shapes(*map(np.shape, contents)) != out.content.shape:
        raise ValueError("non-broadcastable output operand")
    TRACED[-1].changes(out)
    function(*contents, out=out.content)
    return out


FUSED = {name: in_fusion(getattr(np, name)) for name in UFUNCS - {"matmul"}}
FUSED["where"] = in_fusion(np.where)
FUSED["add"].at = add_at
FUSED_SPECIAL = {name: in_fusion(getattr(special, name)) for name in SPECIAL}


def polygamma(n, x):
    """cupyx.scipy.special.polygamma: a function, no ufunc, that wants the order as an array too."""
    if not isinstance(n, ndarray):
        raise AttributeError("'bool' object has no attribute 'astype'")
    return ndarray(special.polygamma(n._host, _bare(x)))


# ------------------------------------------------------------------------------------------------------------- sparse
class csr_matrix:
    """A CSR matrix on the device, made from one of SciPy's, or from (data, indices, indptr) on the device."""

    __array_priority__ = 101

    def __init__(self, arg1, shape=None, dtype=None, copy=False):
        parts = (
            isinstance(arg1, tuple)
            and len(arg1) == 3
            and all(isinstance(part, ndarray) for part in arg1)
        )
        if not parts and not sparse.issparse(arg1):
            raise TypeError(
                "the double is made from SciPy's matrices, or from three arrays on the device"
            )
        self._host = sparse.csr_matrix(
            tuple(part._host for part in arg1) if parts else arg1, shape, dtype
        )
        if self._host.dtype.char not in "?fdFD":
            raise ValueError("Only bool, float32, float64, complex64 and complex128 are supported")
        if not parts:
            TRANSFERS.to_device.extend(
                part.nbytes for part in (self._host.data, self._host.indices, self._host.indptr)
            )

    @classmethod
    def _of(cls, host):
        """A matrix that was made on the device: no transfer."""
        new = object.__new__(cls)
        new._host = sparse.csr_matrix(host)
        return new

    shape, ndim = property(lambda self: self._host.shape), property(lambda self: 2)
    dtype, nnz = property(lambda self: self._host.dtype), property(lambda self: self._host.nnz)
    data, indices = (
        property(lambda self: ndarray(self._host.data)),
        property(lambda self: ndarray(self._host.indices)),
    )
    indptr, T = (
        property(lambda self: ndarray(self._host.indptr)),
        property(lambda self: csr_matrix._of(self._host.T)),
    )

    def get(self):
        """SciPy's matrix: three transfers."""
        TRANSFERS.to_host.extend(
            part.nbytes for part in (self._host.data, self._host.indices, self._host.indptr)
        )
        return self._host.copy()

    def toarray(self, order=None, out=None):
        """CuPy asks first whether indices are sorted, and then whether they are unique; both wait for the answer."""
        TRANSFERS.to_host.extend((1, 1))
        LAUNCHES.extend(["copy"] * 3 + ["is_sorted", "is_unique", "zeros", "toarray"])
        return ndarray(self._host.toarray(order=order))

    def tocsr(self, copy=False):
        return self

    def sum(self, axis=None, dtype=None, out=None):
        """A 0-d array, or one with the axis kept, as of SciPy's csr_matrix: a product with ones."""
        TRANSFERS.to_host.extend((1, 1))
        LAUNCHES.extend(["ones", "is_sorted", "is_unique", "matmul"])
        return ndarray(np.asarray(self._host.sum(axis=axis, dtype=dtype)))

    def multiply(self, other):
        return csr_matrix._of(self._host.multiply(other._host))

    def __matmul__(self, other):
        if isinstance(other, csr_matrix):
            return csr_matrix._of(self._host @ other._host)
        return ndarray(self._host @ _bare(other))

    def __getitem__(self, rows):
        return csr_matrix._of(self._host[_wrapped(rows, self.shape)])

    def __len__(self):
        raise TypeError("sparse matrix length is ambiguous; use getnnz()")

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


csr_matrix.__module__ = "cupyx.scipy.sparse._csr"


# -------------------------------------------------------------------------------------------------------------- noise
class RandomState:
    """cupy.random.RandomState: the methods that the engine may use. It draws what NumPy would draw of the seed.

    CuPy makes 64 bits of a seed that is a NumPy array, by MD5.
    """

    def __init__(self, seed=None, method=None):
        self.method = method
        self.seed(seed)

    def seed(self, seed=None):
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        elif not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise TypeError("Seed must be an integer between 0 and 2**64 - 1")
        self._rng = np.random.default_rng(seed)

    def random_sample(self, size=None, dtype=float):
        LAUNCHES.extend(["random", "remainder"])  # it draws from (0, 1], and then makes 1 a 0
        return ndarray(self._rng.random(size, np.dtype(dtype)))

    def standard_normal(self, size=None, dtype=float):
        LAUNCHES.append("standard_normal")
        if np.dtype(dtype).char not in "fd":
            raise TypeError("cupy.random only supports float32 and float64")
        return ndarray(self._rng.standard_normal(size, np.dtype(dtype)))

    def standard_gamma(self, shape, size=None, dtype=float):
        LAUNCHES.append("standard_gamma")
        return ndarray(self._rng.standard_gamma(_bare(shape), size))

    def poisson(self, lam=1.0, size=None, dtype="l"):
        LAUNCHES.append("poisson")
        return ndarray(self._rng.poisson(_bare(lam), size))


# ----------------------------------------------------------------------------------------------------------- packages
def module(name, **contents) -> ModuleType:
    """A module made of these names."""
    new = ModuleType(name)
    vars(new).update(contents)
    return new


def installed(monkeypatch, n_devices=1):
    """Within the test, `import cupy` and `import cupyx...` find the doubles. n_devices: a number, or an error to raise."""

    def count():
        if isinstance(n_devices, Exception):
            raise n_devices
        return n_devices

    cupy = module(
        "cupy",
        ndarray=ndarray,
        **FUSED,
        asarray=asarray,
        fuse=fuse,
        random=SimpleNamespace(RandomState=RandomState),
        cuda=SimpleNamespace(
            runtime=SimpleNamespace(getDeviceCount=count, memGetInfo=lambda: (MEMORY // 2, MEMORY)),
            curand=SimpleNamespace(CURAND_RNG_PSEUDO_PHILOX4_32_10=161),
        ),
    )
    found = {
        "cupy": cupy,
        "cupyx": module("cupyx"),
        "cupyx.scipy": module("cupyx.scipy"),
        "cupyx.scipy.sparse": module("cupyx.scipy.sparse", csr_matrix=csr_matrix),
        "cupyx.scipy.special": module(
            "cupyx.scipy.special", **{**FUSED_SPECIAL, "polygamma": polygamma}
        ),
    }
    for name, new in found.items():
        monkeypatch.setitem(sys.modules, name, new)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, new)
    TRANSFERS.clear()
    return cupy

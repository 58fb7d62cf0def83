"""NumPy's functions of vectors and matrices, as plain NumPy over the table of linalg.py.

This is a reference, as derived.py is: `@implements(np.linalg.svd)` says what numpy.linalg.svd does
when it is given a Tensor.

Know before reading: derived.py for `implements`, linalg.py for the rules and for what has no
derivative.
Know after: how vectors, more axes and several results come down to the entries of linalg.py.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from minigrad import backend, linalg, ops
from minigrad.backend import Array
from minigrad.derived import as_operands, implements, positive_axes
from minigrad.tensor import Tensor

# NumPy's named results of several arrays.
_ONE = np.ones((1, 1))
_EighResult = type(np.linalg.eigh(_ONE))
_EigResult = type(np.linalg.eig(_ONE))
_QRResult = type(np.linalg.qr(_ONE))
_SlogdetResult = type(np.linalg.slogdet(_ONE))
_SVDResult = type(np.linalg.svd(_ONE))


# ----------------------------------------------------------------------------------------- products
@implements(np.matmul, np.linalg.matmul)
def matmul(a: Array, b: Array) -> Array:
    """linalg.py's knows matrices; a vector is a row on the left and a column on the right."""
    a, b = as_operands("matmul", a, b)
    row = np.expand_dims(a, 0) if a.ndim == 1 and b.ndim > 0 else a
    column = np.expand_dims(b, 1) if b.ndim == 1 and a.ndim > 0 else b
    y = linalg.matmul(row, column)
    if row is not a and column is not b:
        return np.squeeze(y, (-2, -1))
    if row is not a:
        return np.squeeze(y, -2)
    if column is not b:
        return np.squeeze(y, -1)
    return y


@implements(np.tensordot, np.linalg.tensordot)
def tensordot(a: Array, b: Array, axes=2) -> Array:
    a, b = as_operands("tensordot", a, b)
    if isinstance(axes, (int, np.integer)):
        axes = (range(a.ndim - axes, a.ndim), range(axes))
    summed_a = positive_axes(tuple(np.atleast_1d(axes[0]).tolist()), a.ndim)
    summed_b = positive_axes(tuple(np.atleast_1d(axes[1]).tolist()), b.ndim)
    if len(summed_a) != len(summed_b):
        raise ValueError(
            f"tensordot: {len(summed_a)} axes of the one operand "
            f"against {len(summed_b)} of the other"
        )
    for i, j in zip(summed_a, summed_b):
        if a.shape[i] != b.shape[j]:
            raise ValueError(
                f"tensordot: axis {i} of shape {a.shape} and axis {j} of shape {b.shape} "
                "differ in length"
            )
    return linalg.tensordot(a, b, axes=(tuple(summed_a), tuple(summed_b)))


@implements(np.dot)
def dot(a: Array, b: Array) -> Array:
    a, b = as_operands("dot", a, b)
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    if b.ndim <= 2:
        return matmul(a, b)
    return tensordot(a, b, ((-1,), (-2,)))


@implements(np.inner)
def inner(a: Array, b: Array) -> Array:
    a, b = as_operands("inner", a, b)
    if a.ndim == 0 or b.ndim == 0:
        return a * b
    return tensordot(a, b, ((-1,), (-1,)))


@implements(np.vdot)
def vdot(a: Array, b: Array) -> Array:
    a, b = as_operands("vdot", a, b)
    return matmul(np.ravel(a), np.ravel(b))


@implements(np.vecdot, np.linalg.vecdot)
def vecdot(a: Array, b: Array, *, axis: int = -1) -> Array:
    a, b = as_operands("vecdot", a, b)
    return np.sum(np.moveaxis(a, axis, -1) * np.moveaxis(b, axis, -1), axis=-1)


@implements(np.matvec)
def matvec(a: Array, b: Array) -> Array:
    a, b = as_operands("matvec", a, b)
    return np.squeeze(linalg.matmul(a, np.expand_dims(b, -1)), -1)


@implements(np.vecmat)
def vecmat(a: Array, b: Array) -> Array:
    a, b = as_operands("vecmat", a, b)
    return np.squeeze(linalg.matmul(np.expand_dims(a, -2), b), -2)


@implements(np.outer, np.linalg.outer)
def outer(a: Array, b: Array) -> Array:
    a, b = as_operands("outer", a, b)
    return np.reshape(a, (-1, 1)) * np.reshape(b, (1, -1))


@implements(np.kron)
def kron(a: Array, b: Array) -> Array:
    """Each entry of a, times all of b: axis i has those of a outside and those of b inside."""
    a, b = as_operands("kron", a, b)
    n_axes = max(a.ndim, b.ndim)
    outer_shape = (1,) * (n_axes - a.ndim) + a.shape
    inner_shape = (1,) * (n_axes - b.ndim) + b.shape
    spread = np.reshape(a, tuple(k for length in outer_shape for k in (length, 1)))
    inside = np.reshape(b, tuple(k for length in inner_shape for k in (1, length)))
    shape = tuple(m * n for m, n in zip(outer_shape, inner_shape))
    return np.reshape(spread * inside, shape)


@implements(np.cross)
def cross(a: Array, b: Array, axisa=-1, axisb=-1, axisc=-1, axis=None) -> Array:
    """Of vectors of 3, along these axes."""
    a, b = as_operands("cross", a, b)
    if axis is not None:
        axisa = axisb = axisc = axis
    a = np.moveaxis(a, axisa, -1)
    b = np.moveaxis(b, axisb, -1)
    if a.shape[-1] != 3 or b.shape[-1] != 3:
        raise ValueError(
            f"cross: vectors of {a.shape[-1]} and of {b.shape[-1]} numbers; both must be of 3"
        )
    ax, ay, az = [a[..., i] for i in range(3)]
    bx, by, bz = [b[..., i] for i in range(3)]
    product = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)
    return np.moveaxis(product, -1, axisc)


@implements(np.linalg.cross)
def cross_of_vectors(x1: Array, x2: Array, /, *, axis: int = -1) -> Array:
    return cross(x1, x2, axis=axis)


@implements(np.linalg.trace)
def trace(x: Array, /, *, offset: int = 0) -> Array:
    """Of the last two axes; numpy.trace is of the first two."""
    return np.trace(x, offset, -2, -1)


@implements(np.linalg.diagonal)
def diagonal(x: Array, /, *, offset: int = 0) -> Array:
    return np.diagonal(x, offset, -2, -1)


@implements(np.linalg.matrix_transpose)
def matrix_transpose(x: Array, /) -> Array:
    return np.swapaxes(x, -1, -2)


@implements(np.linalg.multi_dot)
def multi_dot(arrays) -> Array:
    return reduce(matmul, arrays)


@implements(np.linalg.matrix_power)
def matrix_power(a: Array, n: int) -> Array:
    """Negative powers are those of the inverse."""
    if n == 0:  # the identity, whatever a is
        return np.where(_is_diagonal(a), 1.0, 0.0 * a)
    if n < 0:
        return _positive_power(np.linalg.inv(a), -n)
    return _positive_power(1.0 * a, n)


def _positive_power(a, n):
    """By squaring: a^5 = (a^2)^2 a."""
    if n == 1:
        return a
    half = _positive_power(a, n // 2)
    square = half @ half
    return square @ a if n % 2 == 1 else square


def _is_diagonal(x):
    ones = np.ones_like(x.data, dtype=bool)
    return np.tril(ones) & np.triu(ones)


# ------------------------------------------------------------------------------------------ solving
@implements(np.linalg.solve)
def solve(a: Array, b: Array) -> Array:
    """A vector b is a column. Stacks are stretched to one shape, which CuPy's solve does not do."""
    a, b = as_operands("solve", a, b)
    if b.ndim == 1:
        return np.squeeze(solve(a, np.expand_dims(b, 1)), -1)
    try:
        stack_shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError as error:
        raise backend.explained(error, "solve", (a, b)) from error
    return linalg.solve(_stretched(a, stack_shape), _stretched(b, stack_shape))


def _stretched(x, stack_shape):
    """A stack of matrices, broadcast to this shape of stack."""
    if x.shape[:-2] == stack_shape:
        return x
    return np.broadcast_to(x, (*stack_shape, *x.shape[-2:]))


@implements(np.linalg.tensorsolve)
def tensorsolve(a: Array, b: Array, axes=None) -> Array:
    a, b = as_operands("tensorsolve", a, b)
    if axes is not None:
        a = np.moveaxis(a, tuple(axes), tuple(range(a.ndim - len(axes), a.ndim)))
    unknown = a.shape[b.ndim :]
    square: Array = np.reshape(a, (b.size, math.prod(unknown)))
    return np.reshape(solve(square, np.ravel(b)), unknown)


@implements(np.linalg.tensorinv)
def tensorinv(a: Tensor, ind: int = 2) -> Array:
    shape = a.shape[ind:] + a.shape[:ind]
    square: Array = np.reshape(a, (math.prod(a.shape[:ind]), math.prod(a.shape[ind:])))
    return np.reshape(np.linalg.inv(square), shape)


@implements(np.linalg.pinv)
def pinv(a: Tensor, rcond=None, hermitian: bool = False, *, rtol=None) -> Array:
    """Differentiated as if small changes of a left its rank as it is: else there is no slope."""
    given = {"rcond": rcond if rtol is None else rtol, "hermitian": hermitian or None}
    return linalg.pinv(a, **{key: value for key, value in given.items() if value is not None})


@implements(np.linalg.lstsq)
def lstsq(a: Array, b: Array, rcond=None) -> tuple:
    """(solution, sums of squared residuals, rank, singular values); the last two plain."""
    a, b = as_operands("lstsq", a, b)
    plain_a, plain_b = [x.data if isinstance(x, Tensor) else x for x in (a, b)]
    _, squares, rank, singular_values = np.linalg.lstsq(plain_a, plain_b, rcond=rcond)
    if rcond is None:
        rcond = float(np.finfo(a.dtype).eps) * max(a.shape)
    solution = np.matmul(linalg.pinv(a, rcond=rcond), b)
    residuals = np.sum(np.square(b - np.matmul(a, solution)), axis=0)
    residuals = np.reshape(residuals, (-1,))[: len(squares)]  # NumPy gives none below full rank
    return solution, residuals, rank, singular_values


# ------------------------------------------------------------------------ determinants, and factors
@implements(np.linalg.slogdet)
def slogdet(x: Tensor) -> tuple[np.ndarray, Tensor]:
    """(sign, log of the absolute determinant). The sign is a plain array: its derivative is 0."""
    sign = np.linalg.slogdet(x.data)[0]
    return _SlogdetResult(sign, linalg.logabsdet(x))


@implements(np.linalg.cholesky)
def cholesky(a: Tensor, /, *, upper: bool = False) -> Array:
    """The gradient is symmetric, that of a function of symmetric matrices."""
    if upper:  # only the upper triangle of a is read
        return np.matrix_transpose(linalg.cholesky(np.matrix_transpose(a)))
    return linalg.cholesky(a)


@implements(np.linalg.qr)
def qr(a: Tensor, mode: str = "reduced") -> tuple | Array:
    """(q, r). Where a is tall and q is to be square, its last columns are free: ValueError."""
    m, n = a.shape[-2:]
    if mode not in ("reduced", "complete", "r"):
        raise ValueError(f"qr of a Tensor: mode is 'reduced', 'complete' or 'r', not {mode!r}")
    if mode == "complete" and m > n:
        raise ValueError(
            f"qr of a Tensor of shape {a.shape}: with mode='complete' the last columns of q are "
            "not determined, and have no derivative; use mode='reduced'"
        )
    stacked = linalg.qr(a)
    q = stacked[..., :m, :]
    r = np.matrix_transpose(stacked[..., m:, :])
    return r if mode == "r" else _QRResult(q, r)


@implements(np.linalg.eigh)
def eigh(a: Tensor, UPLO: str = "L") -> tuple:
    """(eigenvalues, eigenvectors) of symmetric matrices; so is the gradient. See linalg.py."""
    stacked = linalg.eigh(a, UPLO=UPLO)
    return _EighResult(stacked[..., 0, :], stacked[..., 1:, :])


@implements(np.linalg.eigvalsh)
def eigvalsh(a: Tensor, UPLO: str = "L") -> Tensor:
    return eigh(a, UPLO)[0]


@implements(np.linalg.eig)
def eig(a: Tensor) -> tuple:
    """(eigenvalues, eigenvectors), as long as they are real: TypeError for complex ones."""
    stacked = linalg.eig(a)
    return _EigResult(stacked[..., 0, :], stacked[..., 1:, :])


@implements(np.linalg.eigvals)
def eigvals(a: Tensor) -> Tensor:
    return eig(a)[0]


@implements(np.linalg.svd)
def svd(
    a: Tensor, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False
) -> tuple | Array:
    """(u, s, vh), or s. Where a is not square, full matrices have columns that are free."""
    m, n = a.shape[-2:]
    if hermitian:
        raise ValueError("svd of a Tensor: hermitian=True is not offered; leave it out")
    if full_matrices and compute_uv and m != n:
        raise ValueError(
            f"svd of a Tensor of shape {a.shape}: the last columns of full matrices are not "
            "determined, and have no derivative; use full_matrices=False"
        )
    stacked = linalg.svd(a)
    s = stacked[..., m, :]
    if not compute_uv:
        return s
    return _SVDResult(stacked[..., :m, :], s, np.matrix_transpose(stacked[..., m + 1 :, :]))


@implements(np.linalg.svdvals)
def svdvals(x: Tensor, /) -> Tensor:
    return svd(x, compute_uv=False)


@implements(np.linalg.matrix_rank)
def matrix_rank(A: Tensor, tol=None, hermitian: bool = False, *, rtol=None) -> np.ndarray:
    """A plain array: it has no derivative."""
    return np.linalg.matrix_rank(A.data, tol, hermitian, rtol=rtol)


# -------------------------------------------------------------------------------------------- norms
@implements(np.linalg.norm)
def norm(x: Array, ord=None, axis=None, keepdims: bool = False) -> Array:
    """The Euclidean length of all entries, or the norm of this order, along an axis or two.

    The slope of a length at 0 is 0 by convention, and there it has no second derivative: NaN.
    """
    if axis is None and ord is None:
        return ops.norm(x, keepdims=keepdims)
    axes = positive_axes(_as_axes(axis), x.ndim)
    if len(axes) == 1:
        return _norm_of_vectors(x, ord, axes[0], keepdims)
    if len(axes) == 2 and axes[0] != axes[1]:
        return _norm_of_matrices(x, ord, axes, keepdims)
    raise ValueError(
        f"norm: axis={axis!r} of shape {x.shape}; norms are of vectors, along one axis, or of "
        "matrices, along two"
    )


def _as_axes(axis):
    return tuple(axis) if isinstance(axis, list) else axis


@implements(np.linalg.vector_norm)
def vector_norm(x: Tensor, /, *, axis=None, keepdims: bool = False, ord=2) -> Array:
    axes = positive_axes(axis, x.ndim)
    others = [a for a in range(x.ndim) if a not in axes]
    last: Array = np.reshape(np.transpose(x, (*others, *axes)), (*[x.shape[a] for a in others], -1))
    y = _norm_of_vectors(last, ord, last.ndim - 1, keepdims=False)
    return np.expand_dims(y, tuple(axes)) if keepdims else y


@implements(np.linalg.matrix_norm)
def matrix_norm(x: Tensor, /, *, keepdims: bool = False, ord="fro") -> Array:
    return _norm_of_matrices(x, ord, [x.ndim - 2, x.ndim - 1], keepdims)


@implements(np.linalg.cond)
def cond(x: Array, p=None) -> Array:
    """Of the singular values where p is None, 2 or -2, else by the norms of x and its inverse."""
    if p is None or p in (2, -2):
        values = svdvals(x)
        if p == -2:
            return values[..., -1] / values[..., 0]
        return values[..., 0] / values[..., -1]
    inverse = np.linalg.inv(x)
    return matrix_norm(x, ord=p) * matrix_norm(inverse, ord=p)


def _norm_of_vectors(x, ord, axis, keepdims):
    over = {"axis": axis, "keepdims": keepdims}
    if ord is None or ord == 2:
        return ops.norm(x, **over)
    if isinstance(ord, str):
        raise ValueError(f"norm: vectors have no norm of order {ord!r}")
    if ord == math.inf:
        return np.max(np.absolute(x), **over)
    if ord == -math.inf:
        return np.min(np.absolute(x), **over)
    if ord == 0:  # how many entries are not 0
        return np.sum(np.sign(np.absolute(x)), **over)
    if ord == 1:
        return np.sum(np.absolute(x), **over)
    is_smooth = ord % 2 == 0  # even powers need no |x|, which has a kink
    powers = np.power(x if is_smooth else np.absolute(x), float(ord))
    return np.power(np.sum(powers, **over), 1.0 / ord)


def _norm_of_matrices(x, ord, axes, keepdims):
    if ord in (None, "fro", "f"):
        return ops.norm(x, axis=tuple(axes), keepdims=keepdims)
    matrices = np.moveaxis(x, tuple(axes), (-2, -1))
    if ord in (1, -1, math.inf, -math.inf):
        sums = np.sum(np.absolute(matrices), axis=-2 if abs(ord) == 1 else -1)
    elif ord in (2, -2, "nuc"):
        sums = svdvals(matrices)
    else:
        raise ValueError(f"norm: matrices have no norm of order {ord!r}")
    if ord == "nuc":
        y = np.sum(sums, axis=-1)
    elif ord > 0:
        y = np.max(sums, axis=-1)
    else:
        y = np.min(sums, axis=-1)
    return np.expand_dims(y, tuple(axes)) if keepdims else y

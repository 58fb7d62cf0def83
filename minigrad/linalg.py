"""The table of calculus for matrices: products, solving, determinants, and factors.

This is a reference. All functions take stacks of matrices: the last two axes are the matrix.

A factorisation has several results, and an entry of the table has one. So an entry gives them
stacked, as rows of one matrix, and matrices.py takes them apart. Its rule gets the gradients
stacked in the same way: zeros for a result that was not used.

Eigenvectors and singular vectors have derivatives only where their values are distinct, since two
equal values leave the choice of vectors free. A function of the values that treats equal ones
alike, such as their sum, has the right gradient there; of any other function, and of the gradient
itself, it is NaN. Values count as equal if they differ by no more than rounding.

Know before reading: ops.py, and that for a matrix product y = a b the gradient g of y gives
g bᵀ for a and aᵀ g for b. The other rules follow from it; Giles (2008), "An extended collection of
matrix derivative results", derives most of them.
Know after: the rules for matrices. What NumPy offers besides, for vectors and more axes, is made of
these in matrices.py and einsum.py.
"""

from __future__ import annotations

from math import sqrt as root

import numpy as np

from minigrad.ops import norm, quotient, slope_of_absolute
from minigrad.table import primitive


def _transposed(x):
    """Each matrix transposed."""
    return np.swapaxes(x, -1, -2)


def _as_matrix(g):
    """A number for each matrix, so that it broadcasts against the matrices."""
    return np.expand_dims(g, (-1, -2))


def _is_diagonal(x):
    """Where an entry of x is one of the diagonal: a plain array of booleans."""
    ones = np.ones_like(x, dtype=bool)
    return np.tril(ones) & np.triu(ones)


def _identity_like(x):
    return _is_diagonal(x).astype(x.dtype)


def _solved(name, a, b):
    """a^-1 b within the rule of `name`; LinAlgError, which names it, where a is singular."""
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError as error:
        raise np.linalg.LinAlgError(
            f"gradient of {name}: a matrix of shape {tuple(a.shape)} is singular, and there {name} "
            f"has no derivative ({error})"
        ) from error


# ----------------------------------------------------------------------------------------- products
def _product(a, b):
    """a b; a column times a row is quicker by broadcasting, which gives the same."""
    return a * b if a.shape[-1] == 1 else a @ b


matmul = primitive(
    np.matmul,
    lambda g, y, a, b: _product(g, _transposed(b)),
    lambda g, y, a, b: _product(_transposed(a), g),
)


def _others(ndim, axes):
    return tuple(i for i in range(ndim) if i not in axes)


def _put_back(x, places):
    """Axis i of x becomes axis places[i]."""
    return np.transpose(x, tuple(sorted(range(x.ndim), key=places.__getitem__)))


# axes: two tuples (of a 0-d operand CuPy takes no lists) of as many axes from 0 on, those of a and
# those of b that are summed over in pairs. y has the other axes of a, and then those of b. In the
# gradient of a, the axes that were summed over come last, in the order that they have in b; and
# they come first in that of b.
def _tensordot_rule_left(g, y, a, b, axes):
    kept = _others(a.ndim, axes[0])
    over = tuple(range(len(kept), g.ndim))
    summed = np.tensordot(g, b, (over, _others(b.ndim, axes[1])))
    partner = dict(zip(axes[1], axes[0]))
    return _put_back(summed, [*kept, *(partner[j] for j in sorted(partner))])


def _tensordot_rule_right(g, y, a, b, axes):
    kept = _others(a.ndim, axes[0])
    summed = np.tensordot(a, g, (kept, tuple(range(len(kept)))))
    partner = dict(zip(axes[0], axes[1]))
    places = [*(partner[i] for i in sorted(partner)), *_others(b.ndim, axes[1])]
    return _put_back(summed, places)


tensordot = primitive(np.tensordot, _tensordot_rule_left, _tensordot_rule_right)


def _einsum_rule_left(g, y, a, b, subscripts):
    left, right, out = subscripts.replace("->", ",").split(",")
    return np.einsum(f"{out},{right}->{left}", g, b)


def _einsum_rule_right(g, y, a, b, subscripts):
    left, right, out = subscripts.replace("->", ",").split(",")
    return np.einsum(f"{out},{left}->{right}", g, a)


# Of two operands, no label twice in one of them, and none in one operand alone: then the gradient
# of an operand is such a sum again. einsum.py brings any einsum to this form.
einsum = primitive(
    lambda a, b, subscripts: np.einsum(subscripts, a, b),
    _einsum_rule_left,
    _einsum_rule_right,
    name="einsum",
)

# ----------------------------------------------------------------------------- inverses and solving
inv = primitive(np.linalg.inv, lambda g, y, x: -_transposed(y) @ g @ _transposed(y))
solve = primitive(
    np.linalg.solve,
    lambda g, y, a, b: -_solved("solve", _transposed(a), g) @ _transposed(y),
    lambda g, y, a, b: _solved("solve", _transposed(a), g),
)


def _pinv_rule(g, y, x, rcond=None, hermitian=False):
    """Golub and Pereyra (1973), eq. 4.12, for a rank that does not change nearby.

    y dx = projection on the rows of x, x y = projection on its columns; outside of both, two more
    terms.
    """
    left = _transposed(y)
    from_columns = _transposed(g) - x @ (y @ _transposed(g))
    from_rows = _transposed(g) - (_transposed(g) @ y) @ x
    return -left @ g @ left + from_columns @ y @ left + left @ y @ from_rows


# rcond: singular values below this, times the largest, count as 0; None leaves it to NumPy.
pinv = primitive(
    lambda x, **keywords: np.linalg.pinv(x, **keywords),
    _pinv_rule,
    name="pinv",
)

# ------------------------------------------------------------------------------------- determinants
MANY_ROWS = 32  # a singular matrix with more rows has too many minors: rows^2, of rows^2 entries


def _cofactors(x, y):
    """The gradient of the determinant y of x: det(x) x^-T, as long as x has an inverse.

    Near a singular matrix the inverse is all rounding, or does not exist. There each cofactor is
    what it is by definition, the determinant of the matrix without one row and one column, with a
    sign; and its derivatives of every order are right there as well.
    """
    n = x.shape[-1]
    try:
        inverse = np.linalg.inv(x)
    except np.linalg.LinAlgError as error:
        if n > MANY_ROWS:
            raise np.linalg.LinAlgError(
                f"gradient of det: a matrix of shape {tuple(x.shape)} is singular, and has too "
                "many rows for its cofactors"
            ) from error
        return _minors(x, n)
    is_accurate = _condition(x, inverse) < 1.0 / root(np.finfo(x.dtype).eps)
    if n <= MANY_ROWS and not np.all(is_accurate):
        return _minors(x, n)
    return _as_matrix(y) * _transposed(inverse)


def _condition(x, inverse):
    """The condition number of each matrix, by the norm of all entries."""
    return norm(x, axis=(-2, -1)) * norm(inverse, axis=(-2, -1))


def _minors(x, n):
    """(-1)^(i+j) det(x without row i and column j), for each i and j."""
    left_out = [[k for k in range(n) if k != i] for i in range(n)]
    kept = np.array(left_out, int).reshape(n, n - 1)
    ones = np.ones_like(x, dtype=int)
    is_odd = (np.cumsum(ones, axis=-1) + np.cumsum(ones, axis=-2)) % 2
    minors = np.linalg.det(x[..., kept[:, None, :, None], kept[None, :, None, :]])
    return np.where(is_odd == 1, -minors, minors)


det = primitive(np.linalg.det, lambda g, y, x: _as_matrix(g) * _cofactors(x, y))


def _logabsdet_rule(g, y, x):
    return _as_matrix(g) * _solved("slogdet", _transposed(x), _identity_like(x))


logabsdet = primitive(lambda x: np.linalg.slogdet(x)[1], _logabsdet_rule, name="logabsdet")


# --------------------------------------------------------------------------------- Cholesky, and QR
def _cholesky_rule(g, y, x):
    """L^-T Phi(L^T g) L^-1, made symmetric, where x = L L^T and y = L (Murray 2016, eq. 9).

    Phi keeps the lower triangle, and half of the diagonal.
    """
    upper = _transposed(y)
    product = upper @ g
    phi = 0.5 * (np.tril(product) + np.tril(product, -1))
    left = np.linalg.solve(upper, phi)
    both = np.linalg.solve(upper, _transposed(left))
    return 0.5 * (both + _transposed(both))


cholesky = primitive(np.linalg.cholesky, _cholesky_rule)


def _qr(x):
    q, r = np.linalg.qr(x)
    return np.concatenate([q, _transposed(r)], axis=-2)


def _qr_rule(g, y, x):
    """Of x = q r, with the columns of q orthonormal: Seeger et al. (2017), section 4.3.

    That is for r square. Of a wide x, the columns beyond those are q times the rest of r.
    LinAlgError where the square part of r is singular.
    """
    m = x.shape[-2]
    k = min(x.shape[-2:])
    q = y[..., :m, :]
    dq = g[..., :m, :]
    r = _transposed(y[..., m : m + k, :])
    dr = _transposed(g[..., m : m + k, :])
    dr_rest = _transposed(g[..., m + k :, :])
    dq = dq + x[..., k:] @ _transposed(dr_rest)
    inner = r @ _transposed(dr) - _transposed(dq) @ q
    symmetric = np.tril(inner) + _transposed(np.tril(inner, -1))
    dx = _transposed(_solved("qr", r, _transposed(dq + q @ symmetric)))
    return np.concatenate([dx, q @ dr_rest], axis=-1)


qr = primitive(_qr, _qr_rule, name="qr")  # (..., m + n, k): q, and then the transpose of r


# --------------------------------------------------------------------- eigenvalues, singular values
def _gaps(values, condition=1.0):
    """values_j - values_i in row i, column j, as divisors.

    0 where two are equal but for rounding, 1 on the diagonal. values: (..., n). condition: by how
    much more than symmetric matrices these let rounding move their eigenvalues; a number for each.
    """
    gaps = np.expand_dims(values, -2) - np.expand_dims(values, -1)
    length = np.sqrt(np.sum(np.square(values), axis=-1))
    rounding = 4.0 * float(np.finfo(values.dtype).eps) * length * condition
    gaps = np.where(np.absolute(gaps) <= _as_matrix(rounding), 0.0, gaps)
    return np.where(_is_diagonal(gaps), 1.0, gaps)


def _turned(turn, gaps, slopes, *d_vectors):
    """turn / gaps, where turn is how much the gradient asks the vectors to turn to one another.

    NaN where values are equal and the function does not treat them alike: where it depends on their
    vectors (d_vectors, in columns, are not 0), or where the gradients of the values (slopes) differ
    by more than rounding.
    """
    rounding = root(np.finfo(slopes.dtype).eps) * np.sqrt(np.sum(np.square(slopes), axis=-1))
    differs = np.absolute(np.expand_dims(slopes, -1) - np.expand_dims(slopes, -2))
    is_parted = differs > _as_matrix(rounding)
    for d in d_vectors:
        is_used = np.any(d != 0, axis=-2)
        is_parted |= np.expand_dims(is_used, -1) | np.expand_dims(is_used, -2)
    return np.where((gaps == 0) & is_parted, float("nan"), quotient(turn, gaps))


def _as_columns(values):
    """A number for each column of a matrix."""
    return np.expand_dims(values, -2)


def _eigh(x, UPLO="L"):
    values, vectors = np.linalg.eigh(x, UPLO)
    return np.concatenate([_as_columns(values), vectors], axis=-2)


def _eigh_rule(g, y, x, UPLO="L"):
    """V (diag(dw) + (V^T dV) / (w_j - w_i)) V^T (Giles 2008, section 3.1), made symmetric."""
    values = y[..., 0, :]
    vectors = y[..., 1:, :]
    inner = _transposed(vectors) @ g[..., 1:, :]
    turn = 0.5 * (inner - _transposed(inner))
    slopes = g[..., 0, :]
    turned = _turned(turn, _gaps(values), slopes, g[..., 1:, :])
    return (vectors @ turned + vectors * _as_columns(slopes)) @ _transposed(vectors)


# (..., 1 + n, n): the eigenvalues, and then the eigenvectors in columns. The gradient is symmetric,
# that of a function of symmetric matrices.
eigh = primitive(_eigh, _eigh_rule, name="eigh")


def _eig(x):
    values, vectors = np.linalg.eig(x)
    if np.any(np.imag(values)):
        raise TypeError(
            "a matrix has complex eigenvalues, and Tensors are of real numbers; "
            "of symmetric matrices numpy.linalg.eigh gives real ones"
        )
    # CuPy's are of a complex dtype, also where all are real.
    return np.concatenate([_as_columns(np.real(values)), np.real(vectors)], axis=-2)


DEFECTIVE = 1e6  # from this condition number on, the eigenvectors of equal values count as one


def _eig_rule(g, y, x):
    """V^-T (diag(dw) + (V^T dV - V^T V diag(V^T dV)) / (w_j - w_i)) V^T.

    Giles (2008), section 3.1; the term with diag keeps the length of the eigenvectors at 1.
    """
    values = y[..., 0, :]
    vectors = y[..., 1:, :]
    d_vectors = g[..., 1:, :]
    slopes = g[..., 0, :]
    transposed = _transposed(vectors)
    lengthening = _as_columns(np.sum(vectors * d_vectors, axis=-2))
    turn = transposed @ (d_vectors - vectors * lengthening)
    condition = _condition(vectors, _solved("eig", vectors, _identity_like(vectors)))
    gaps = _gaps(values, condition)
    # Where equal values have but one vector, no slope of theirs follows from it.
    is_defective = _as_matrix(condition > DEFECTIVE) & (gaps == 0)
    turned = np.where(is_defective, float("nan"), _turned(turn, gaps, slopes, d_vectors))
    # diag(dw) V^T scales the rows of V^T.
    inner = turned @ transposed + np.expand_dims(slopes, -1) * transposed
    return _solved("eig", transposed, inner)


eig = primitive(_eig, _eig_rule, name="eig")  # stacked as those of eigh


def _svd(x):
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return np.concatenate([u, _as_columns(s), _transposed(vh)], axis=-2)


def _svd_rule(g, y, x):
    """Of x = U diag(s) V^T: Townsend (2016), "Differentiating the singular value decomposition".

    A singular value of 0 has a kink there, like |x| at 0: its slope is taken as 0, and singular
    vectors have none, so that a gradient of theirs is infinite.
    """
    m = x.shape[-2]
    u = y[..., :m, :]
    s = y[..., m, :]
    v = y[..., m + 1 :, :]
    du = g[..., :m, :]
    dv = g[..., m + 1 :, :]
    rounding = float(np.finfo(s.dtype).eps) * np.sum(s, axis=-1, keepdims=True)
    s = np.where(s <= rounding, 0.0, s)
    ds = g[..., m, :] * slope_of_absolute(s)

    inner_u = _transposed(u) @ du
    inner_v = _transposed(v) @ dv
    columns = _as_columns(s)
    rows = np.expand_dims(s, -1)
    turn = (inner_u - _transposed(inner_u)) * columns + rows * (inner_v - _transposed(inner_v))
    turned = _turned(quotient(turn, columns + rows), _gaps(s), ds, du, dv)
    dx = (u @ turned + u * _as_columns(ds)) @ _transposed(v)
    if u.shape[-2] > u.shape[-1]:
        du = quotient(du, columns)
        dx = dx + (du - u @ (_transposed(u) @ du)) @ _transposed(v)
    if v.shape[-2] > v.shape[-1]:
        dv = quotient(dv, columns)
        dx = dx + u @ _transposed(dv - v @ (_transposed(v) @ dv))
    return dx


svd = primitive(_svd, _svd_rule, name="svd")  # (..., m + 1 + n, k): u, s, and v in columns

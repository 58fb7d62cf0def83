"""The table of calculus for matrices: products, solving, determinants, and the Cholesky factor.

This is a reference. All functions take stacks of matrices: the last two axes are the matrix.

Know before reading: ops.py, and that for a matrix product y = a b the gradient g of y gives
g bᵀ for a and aᵀ g for b. The other rules follow from it; Giles (2008), "An extended collection of
matrix derivative results", derives most of them.
Know after: the rules for matrices. What NumPy offers besides, for vectors and more axes, is made of
these in derived.py and einsum.py.
"""

from __future__ import annotations

import numpy as np

from minigrad.table import primitive


def _transposed(x):
    """Each matrix transposed."""
    return np.swapaxes(x, -1, -2)


def _as_matrix(g):
    """A number for each matrix, so that it broadcasts against the matrices."""
    return np.expand_dims(g, (-1, -2))


matmul = primitive(
    np.matmul,
    lambda g, y, a, b: g @ _transposed(b),
    lambda g, y, a, b: _transposed(a) @ g,
)


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

inv = primitive(np.linalg.inv, lambda g, y, x: -_transposed(y) @ g @ _transposed(y))
solve = primitive(
    np.linalg.solve,
    lambda g, y, a, b: -np.linalg.solve(_transposed(a), g) @ _transposed(y),
    lambda g, y, a, b: np.linalg.solve(_transposed(a), g),
)
det = primitive(
    np.linalg.det,
    lambda g, y, x: _as_matrix(g * y) * _transposed(np.linalg.inv(x)),
)
logabsdet = primitive(
    lambda x: np.linalg.slogdet(x)[1],
    lambda g, y, x: _as_matrix(g) * _transposed(np.linalg.inv(x)),
    name="logabsdet",
)


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

"""Counts that are no whole numbers: which are taken, and how they become whole ones.

This is engineering.

Programs that take ambient RNA away (SoupX, decontX, CellBender), and those that share a read
between the genes it may be from (alevin, kallisto, STARsolo, RSEM), leave counts with fractions:
here these are called corrected. Normalising, taking logarithms and imputing leave fractions too,
but what they leave are no counts, and no likelihood of counts says anything about them. No file
says which of the two it holds, but its numbers do. Most corrected counts lie at a whole number or
just below one, and few just above:

    >>> corrected = np.maximum(np.random.default_rng(0).poisson(0.7, (50, 200)) - 0.1, 0)
    >>> why_no_counts(sparse.csr_array(corrected)), why_doubtful(sparse.csr_array(corrected))
    (None, None)

Normalised values are no nearer to whole numbers than elsewhere, and often they give away how they
were made:

    >>> fractions = corrected / corrected.sum(axis=1, keepdims=True)
    >>> why_no_counts(sparse.csr_array(1e4 * fractions))
    'all cells have the same total, or had before a logarithm was taken'

Corrected counts are rounded at random, so that their mean stays: 0.9 becomes 1 nine times in ten.

    >>> print(round_counts(np.array([[0.9, 0.9, 0.9, 0.9, 2.0]])))
    [[1. 1. 1. 0. 2.]]

Know before reading: counts.py, and that a CSR matrix stores the entries that are not zero, row
after row. Know after: what is taken for counts with fractions, what is not, and what rounding at
random keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from minigrad.backend import Matrix, with_entries
from minigrad.data import pieces
from models.files import BLOCK

# What is so close to a whole number is taken for it: expm1(log1p(3)) is 3.0000002 in float32.
NEAR = 1e-4
LOOKED_AT = 1000  # rows at most, spread over all that have fractions
TRIED = 200  # rows at most of these, and columns at most, where each is looked at by itself
LEAST_ENTRIES = 5  # of a row or a column from which something is concluded
SAME = 1e-3  # relative difference of two totals that are taken for the same
# The share of cells with the same total that is no longer chance. It is not 1, as several batches
# may each have been brought to a total of their own.
WITH_ONE_TOTAL = 0.3

Inverse = tuple[str, Callable[[np.ndarray], np.ndarray], float]
# What undoes a transformation: its name, itself, and the largest value that it is tried on.
INVERSES: tuple[Inverse, ...] = (
    ("np.expm1", np.expm1, 30.0),
    ("2**x - 1", lambda x: np.exp2(x) - 1.0, 30.0),
    ("10**x - 1", lambda x: 10.0**x - 1.0, 9.0),
    ("x**2", np.square, 1e5),
    ("np.sinh", np.sinh, 30.0),
)


# ---------------------------------------------------------------------------------------- rounding
def round_counts(x, first: int = 0) -> Matrix:
    """Counts from which ambient RNA was taken away, (n_cells, n_genes), as whole numbers.

    x: dense, or any SciPy sparse matrix, of which a CSR matrix is made. An entry that is f above a
    whole number is rounded up with probability f, else down: 2.3 becomes 3 with 30 %. So totals
    stay as they are on average, and the variance of an entry grows by f (1 - f). The nearest whole
    numbers would undo the correction, as 0.9 would be the 1 that it was before. (SoupX does the
    same as here with roundToInt=TRUE.) Chance is a function of an entry's position, with rows
    counted from `first`: so the same matrix gives the same counts every time, but some of its
    cells, or all in another order, give others. Negative entries stay as they are.
    """
    if not sparse.issparse(x):
        x = np.asarray(x)
        whole = np.empty(x.shape, np.float32)
        for start, part in pieces(x) if x.size else ():
            rows = first + start + np.arange(len(part))
            whole[start : start + len(part)] = _rounded(part, rows[:, None], np.arange(x.shape[1]))
        return whole
    x = sparse.csr_array(x)
    if not x.has_canonical_format:  # of an entry in two parts the sum is rounded
        x = x.copy()
        x.sum_duplicates()
    values = np.empty(x.nnz, np.float32)
    for start, part in pieces(x):
        rows = first + start + np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        begin = x.indptr[start]
        values[begin : begin + part.nnz] = _rounded(part.data, rows, part.indices)
    return with_entries(x, values)


def _rounded(values, rows, columns) -> np.ndarray:
    """What `round_counts` makes of the entries at these positions."""
    values = values.astype(np.float64)
    nearest = np.rint(values)
    down = np.floor(values)
    with np.errstate(invalid="ignore"):  # infinity, which stays
        up = _uniform(rows, columns) < values - down
        whole = np.where(np.abs(values - nearest) <= NEAR, nearest, down + up)
    return np.where(values < 0, values, whole)


def _uniform(rows, columns) -> np.ndarray:
    """A number from 0 to below 1 for each position, always the same, and without a pattern.

    rows and columns: whole numbers of shapes that broadcast. This is draw row * 2^32 + column of
    the generator SplitMix64 (Steele, Lea & Flood 2014) with seed 0. It can say any draw without
    those before it, which here would be the draws for all entries that are 0.
    """
    z = (rows.astype(np.uint64) << np.uint64(32)) + columns.astype(np.uint64) + np.uint64(1)
    z = z * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def number_of_fractions(values: np.ndarray) -> int:
    """How many of some entries, (n,) of any dtype, are finite and not near a whole number."""
    if values.dtype.kind != "f":
        return 0
    parts = (values[a : a + BLOCK] for a in range(0, len(values), BLOCK))
    return sum(int(np.count_nonzero(_are_fractions(part))) for part in parts)


def _are_fractions(values) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # infinity, which is none
        return np.abs(values - np.rint(values)) > NEAR


# ------------------------------------------------------------------------------------- recognition
def with_fractions(x: Any) -> sparse.csr_array:
    """Cells that have fractions, of a CSR matrix (n_cells, n_genes), in float64 and without zeros:
    LOOKED_AT at most, spread over all of them. `why_no_counts` and `why_doubtful` look at these.
    """
    found = [np.empty(0, np.int64)]
    for start, part in pieces(x):
        before = np.concatenate([[0], np.cumsum(_are_fractions(part.data))])
        found.append(start + np.flatnonzero(np.diff(before[part.indptr])))
    rows = np.concatenate(found)
    some = sparse.csr_array(x[rows[spread(len(rows), LOOKED_AT)]]).astype(np.float64)
    some.sum_duplicates()
    some.eliminate_zeros()
    return some


def why_no_counts(some: sparse.csr_array) -> str | None:
    """What shows that entries are no counts, nor corrected ones, in words; None where nothing does.

    some: (n, n_genes), what `with_fractions` found. Genes of which nearly all entries are fractions
    are looked at for themselves too: others may be of another kind.
    """
    if some.nnz == 0 or not np.isfinite(some.data).all() or some.data.min() < 0:
        return None
    reason = _by_totals(some) or _how_it_was_made(some)
    if reason is not None:
        return reason
    n_entries = np.bincount(some.indices, minlength=some.shape[1])
    n_fractions = np.bincount(some.indices, _are_fractions(some.data), minlength=some.shape[1])
    genes = np.flatnonzero(n_fractions > 0.95 * np.maximum(n_entries, LEAST_ENTRIES))
    if LEAST_ENTRIES <= len(genes) < np.count_nonzero(n_entries):
        reason = _how_it_was_made(sparse.csr_array(some[:, genes]))
    return None if reason is None else f"of {len(genes):,} genes {reason}"


def _undone(x: sparse.csr_array) -> list[tuple[str, sparse.csr_array]]:
    """The matrix with each of INVERSES taken of its entries, and the name of that; those are left
    out for which its entries are too large.
    """
    largest = x.data.max()
    return [
        (name, with_entries(x, undo(x.data))) for name, undo, most in INVERSES if largest < most
    ]


def _by_totals(x: sparse.csr_array) -> str | None:
    """That cells have the same total, or have it where a transformation is undone; None if not."""
    versions = [x, *(values for _, values in _undone(x))]
    if any(_have_one_total(values) for values in versions):
        return "all cells have the same total, or had before a logarithm was taken"
    return None


def _how_it_was_made(x: sparse.csr_array) -> str | None:
    """How entries above 0 were made of counts, in words, where they give it away.

    Three things do. Counts of which a logarithm, a root or an inverse hyperbolic sine was taken are
    whole numbers again where that is undone. Counts that were divided by a size factor of the cell
    are multiples of one number in each cell, which differs between cells: so also where genes were
    left out afterwards, and totals are no longer the same. And counts that were scaled gene by gene
    are multiples of one number in each gene.
    """
    undone = _undone(x)
    versions = [x, *(values for _, values in undone)]
    for name, values in undone:
        small = values.data[values.data < 1000]  # of larger ones float32 does not know the fraction
        is_whole = np.abs(small - np.rint(small)) <= 2e-3
        if len(small) > x.nnz / 2 and np.mean(is_whole) > 0.99:
            return f"all entries are whole numbers again where {name} is taken of them"
    rows = spread(x.shape[0], TRIED)
    units = _units(x[rows])
    if units is not None and _differ(units):
        return "the values of each cell are multiples of one number, its size factor"
    if units is None and any(_units(values[rows]) is not None for values in versions[1:]):
        return (
            "the values of each cell are multiples of one number, its size factor, or were before "
            "a logarithm was taken"
        )
    columns = np.flatnonzero(np.bincount(x.indices, minlength=x.shape[1]) >= LEAST_ENTRIES)
    columns = columns[spread(len(columns), TRIED)]
    for values in versions:
        units = _units(sparse.csr_array(values[:, columns].T))
        if units is not None and _differ(units):
            return (
                "the values of each gene are multiples of one number, by which it was scaled, or "
                "were before a logarithm was taken"
            )
    return None


def why_doubtful(some: sparse.csr_array) -> str | None:
    """What makes it doubtful that entries are counts with fractions, in words; None where they look
    like that.

    some: (n, n_genes), what `with_fractions` found. Counts from which a little was taken away, and
    those that are mostly whole, have many entries from 0.75 to 1, few just above 1, and few from
    0.25 to 0.5; around 2 likewise. Values that know no whole numbers have as many on one side as on
    the other. Cells of which most entries are fractions are looked at apart from the
    rest, for they may be another batch: the larger of the two groups of cells must show this by
    more than chance, and the smaller must not show the opposite.
    """
    fractions = with_entries(some, _are_fractions(some.data).astype(np.float64)).sum(axis=1)
    has_most = fractions >= 0.5 * np.diff(some.indptr)
    groups = [some[np.flatnonzero(rows)].data for rows in (has_most, ~has_most)]
    smaller, larger = sorted(groups, key=len)
    if _lie_at_whole_numbers(larger, 3.0) and _lie_at_whole_numbers(smaller, -3.0):
        return None
    return (
        "its fractions lie just below whole numbers no more often than elsewhere, as those of "
        "corrected counts do"
    )


def _lie_at_whole_numbers(values, n_sigma: float) -> bool:
    """Whether entries (n,) are from 0.75 to 1 more often than above it, and than from 0.25 to 0.5.

    And so with 1 more. n_sigma: by how many standard errors; negative: they may be rarer by these.
    """

    def between(low, high):
        return np.count_nonzero((values > low) & (values <= high))

    for whole in (1.0, 2.0):
        below = between(whole - 0.25, whole + NEAR)
        above = 2 * between(whole + NEAR, whole + 0.25)
        further_below = between(whole - 0.75, whole - 0.5)
        if below == 0 and n_sigma > 0:
            return False
        for others in (above, further_below):
            if below < others + n_sigma * np.sqrt(below + others):
                return False
    return True


def spread(n: int, most: int) -> np.ndarray:
    """`most` of the whole numbers from 0 to below n, evenly spread, or all n if that is fewer.

    (n,) or (most,), int64.
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def _have_one_total(x) -> bool:
    """Whether many rows of a CSR matrix, at least three, have the same sum.

    Rows of few entries do not count. Nor do rows of which one entry is most of the sum, as where
    10**x was taken of what was no logarithm: these are alike where their largest entries are.
    """
    totals = x.sum(axis=1)
    largest = x.max(axis=1).toarray()
    totals = np.sort(totals[(np.diff(x.indptr) >= LEAST_ENTRIES) & (largest < 0.5 * totals)])
    alike = np.searchsorted(totals, totals * (1 + SAME), side="right") - np.arange(len(totals))
    return alike.max(initial=0) >= max(3, WITH_ONE_TOTAL * len(totals))


def _units(x) -> np.ndarray | None:
    """The number of which the entries of a row of a CSR matrix are multiples, for each row that has
    one (`_unit`); None unless nearly all rows have one. Rows of few entries do not count.
    """
    ends = np.stack([x.indptr[:-1], x.indptr[1:]], axis=1)
    ends = ends[np.diff(ends, axis=1)[:, 0] >= LEAST_ENTRIES]
    units = [_unit(x.data[start:stop]) for start, stop in ends]
    found = np.array([unit for unit in units if unit is not None])
    return found if len(found) >= max(3, 0.9 * len(units)) else None


def _differ(units) -> bool:
    """Whether more than half of some numbers are different ones."""
    return len(np.unique(units.round(4))) > len(units) / 2


def _unit(values) -> float | None:
    """The largest number of which some numbers (n,) above 0 are multiples, or None.

    The smallest of them, its half, its third ... and its sixth are tried. So the unit of counts is
    found if their smallest is 1 to 6.
    """
    least = values.min()
    for n in range(1, 7):
        multiples = values * (n / least)
        if np.all(np.abs(multiples - np.rint(multiples)) < 3e-3 + 3e-6 * multiples):
            return least / n
    return None

"""Minibatches of parallel columns: the same rows of several arrays, dense or CSR.

Know before reading: nothing of the engine. A *column* is anything with one row a cell: counts (dense array or CSR
matrix), batch codes, labels. Which rows come in which order is a function of (seed, purpose, epoch), so a run that
resumes meets the same minibatches. A CSR column stays sparse: no more than a minibatch of it is ever made dense.

Know after: how rows become minibatches, and what is held out for validation.
"""
from __future__ import annotations

import numpy as np
from scipy import sparse

from minigrad import backend

SPLIT, ORDER, NOISE, VALIDATION = range(4)  # purposes of random numbers: the second entry of a generator's key


def take_rows(column, rows: np.ndarray):
    """The given rows (integer array, any order, repeats allowed) of a dense array or CSR matrix, as the same kind.

    For CSR this is some three times as fast as SciPy's own indexing at 128 rows, which checks more than needed here.
    """
    if not sparse.issparse(column):
        return column[rows]
    start = column.indptr[rows]
    lengths = column.indptr[rows + 1] - start
    indptr = np.zeros(len(rows) + 1, column.indptr.dtype)
    np.cumsum(lengths, out=indptr[1:])
    at = np.repeat(start - indptr[:-1], lengths)
    at += np.arange(indptr[-1], dtype=at.dtype)
    taken = (column.data.take(at), column.indices.take(at), indptr)
    return type(column)(taken, shape=(len(rows), column.shape[1]))


def split(n_rows: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for validation, both sorted: a random fraction `validation` in [0, 1) is held out."""
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a fraction in [0, 1), not {validation}")
    order = backend.generator([seed, SPLIT]).permutation(n_rows)
    n_held_out = int(round(validation * n_rows))
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


class Minibatches:
    """The rows of parallel columns, in minibatches.

    columns: sequence of arrays or CSR matrices of the same length; rows: those to use (None: all); batch_size: rows a
    minibatch. One or two rows left over for a last minibatch join its neighbour: batch norm could not use them.
    """

    def __init__(self, columns, batch_size: int, rows: np.ndarray | None = None):
        lengths = {column.shape[0] for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"columns must have the same number of rows, not {sorted(lengths)}")
        if any(sparse.issparse(column) and column.format != "csr" for column in columns):
            raise ValueError("sparse columns must be in CSR format, whose rows are together: use .tocsr()")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.columns, self.rows = list(columns), np.arange(lengths.pop()) if rows is None else rows
        n = len(self.rows)
        starts = list(range(0, n, batch_size))
        if len(starts) > 1 and n - starts[-1] <= min(2, batch_size - 1):
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], n]))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self):
        """Minibatches in the order of the rows."""
        return self._in_order(self.rows, 0)

    def shuffled(self, seed: int, epoch: int, first: int = 0):
        """Minibatches of one epoch in its own random order, from minibatch number `first` on."""
        order = backend.generator([seed, ORDER, epoch]).permutation(len(self.rows))
        return self._in_order(self.rows[order], first)

    def _in_order(self, rows, first):
        for start, stop in self.bounds[first:]:
            yield tuple(take_rows(column, rows[start:stop]) for column in self.columns)

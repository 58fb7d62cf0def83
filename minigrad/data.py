"""Minibatches of parallel columns: the same rows of several arrays, dense, CSR, or on the disk.

Know before reading: nothing of the engine. A *column* is anything with one row a cell: counts (dense array, CSR matrix,
or `Blocks` of a file), batch codes, labels. Which rows come in which order is a function of (seed, purpose, epoch), so a
run that resumes meets the same minibatches. A CSR column stays sparse: no more than a minibatch of it is ever made dense.

A column on the disk is read in blocks of neighbouring rows, for a disk is slow at single ones. To shuffle, the file is
thought of as `AT_ONCE` equal parts; a random block of each is read, the rows of these blocks are shuffled together, and
so on until all is read. Minibatches then have rows from all over the file, in the proportions of the whole, also where it
is sorted. A thread reads the next blocks while these are trained on.

Know after: how rows become minibatches, what is held out for validation, and how little of a file need be in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

from minigrad import backend
from minigrad.backend import Array

SPLIT, ORDER, NOISE, VALIDATION = range(
    4
)  # purposes of random numbers: the second entry of a generator's key
ENTRIES = 2**16  # non-zeros a block: half a megabyte, read in about the time it takes to seek
AT_ONCE = 128  # blocks shuffled together: 64 MB, of which four copies exist for a moment


def take_rows(column: Array, rows: np.ndarray) -> Array:
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
    taken = type(column)(
        (column.data.take(at), column.indices.take(at), indptr), shape=(len(rows), column.shape[1])
    )
    taken.has_canonical_format = (
        column.has_canonical_format
    )  # which SciPy would find out for every minibatch anew
    return taken


def split(n_rows: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for validation, both sorted: a random fraction `validation` in [0, 1) is held out.

    Two arrays, (n_rows - n,) and (n,). ValueError for another fraction.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a fraction in [0, 1), not {validation}")
    order = backend.generator([seed, SPLIT]).permutation(n_rows)
    n_held_out = int(round(validation * n_rows))
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


# ------------------------------------------------------------------------------------------------------- on the disk
class Blocks:
    """A column that stays on the disk: CSR rows, read in blocks of neighbours.

    read: called with (start, stop), gives these rows of the file as a CSR matrix. bounds: whole numbers (n_blocks + 1,),
    the row of the file with which each block starts, and the end. n_columns: columns of each row. dtype: of the counts
    that `block` gives. rows: sorted numbers of the file's rows that belong to the column (None: all).
    """

    def __init__(
        self, read, bounds, n_columns: int, dtype=np.float32, rows: np.ndarray | None = None
    ):
        self.read, self.file_bounds, self.dtype = (
            read,
            np.asarray(bounds, dtype=np.int64),
            np.dtype(dtype),
        )
        self.file_rows = np.arange(self.file_bounds[-1]) if rows is None else rows
        self.bounds = np.searchsorted(
            self.file_rows, self.file_bounds
        )  # the same, in rows of the column
        self.shape = len(self.file_rows), int(n_columns)

    ndim = 2

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Blocks({self.shape[0]:,} x {self.shape[1]:,} on the disk, {len(self.bounds) - 1:,} blocks)"

    def __getitem__(self, rows) -> Blocks:
        """The column of some rows only: a mask, a slice, or increasing row numbers. Nothing is read."""
        rows = np.arange(len(self))[rows]
        if rows.ndim != 1 or np.any(np.diff(rows) <= 0):
            raise IndexError(
                "rows of a column on the disk must be in increasing order, each once; read it into memory first"
            )
        return Blocks(self.read, self.file_bounds, self.shape[1], self.dtype, self.file_rows[rows])

    def astype(self, dtype) -> Blocks:
        """The same column, its entries as `dtype`."""
        return Blocks(self.read, self.file_bounds, self.shape[1], dtype, self.file_rows)

    def select_columns(self, columns: np.ndarray) -> Blocks:
        """The same rows, of each only these entries (whole numbers, any order). Nothing is read."""

        def read(start, stop):
            part = self.read(start, stop)[:, columns]
            part.sort_indices()
            return part

        return Blocks(read, self.file_bounds, len(columns), self.dtype, self.file_rows)

    def block(self, i: int) -> sparse.csr_array:
        """Rows bounds[i] to bounds[i + 1], as a CSR matrix in memory."""
        start, stop = self.file_bounds[i : i + 2]
        x, rows = (
            self.read(int(start), int(stop)),
            self.file_rows[self.bounds[i] : self.bounds[i + 1]] - start,
        )
        return (x if len(rows) == stop - start else take_rows(x, rows)).astype(
            self.dtype, copy=False
        )


def block_bounds(indptr: np.ndarray) -> np.ndarray:
    """Where to cut CSR rows with this indptr, shape (n_rows + 1,), into blocks of about ENTRIES entries: `bounds` of Blocks."""
    starts = np.searchsorted(indptr[:-1], np.arange(0, max(indptr[-1], 1), ENTRIES))
    return np.unique(np.append(starts, [0, len(indptr) - 1]))


def pieces(column: Array) -> Iterator[tuple[int, Array]]:
    """Yield (first row, rows as an array or CSR matrix in memory) of a column of any kind, in order, a few MB each."""
    if isinstance(column, Blocks):
        bounds, piece = column.bounds, column.block
    else:
        bounds = (
            block_bounds(column.indptr)
            if sparse.issparse(column)
            else np.arange(
                0, len(column) + 1 + (step := max(1, ENTRIES // column.shape[1])), step
            ).clip(max=len(column))
        )

        def piece(i):
            return column[bounds[i] : bounds[i + 1]]

    yield from (
        (int(bounds[i]), piece(i)) for i in range(len(bounds) - 1) if bounds[i] < bounds[i + 1]
    )


def ahead(items) -> Iterator:
    """The items of an iterator, none of which is None: while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


# ------------------------------------------------------------------------------------------------------- minibatches
class Minibatches:
    """The rows of parallel columns, in minibatches.

    columns: sequence of arrays, CSR matrices or Blocks of the same length, at most the first one of them Blocks; rows:
    those to use (None: all; increasing where there are Blocks); batch_size: rows a minibatch. shard: (i, n), of every
    minibatch only the i-th of n equal parts is given. One or two rows left over for a last minibatch (for each part)
    join its neighbour: batch norm could not use them. ValueError for columns of different length, and a batch_size below 1.
    """

    def __init__(
        self,
        columns,
        batch_size: int,
        rows: np.ndarray | None = None,
        shard: tuple[int, int] = (0, 1),
    ):
        lengths = {column.shape[0] for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"columns must have the same number of rows, not {sorted(lengths)}")
        if any(sparse.issparse(column) and column.format != "csr" for column in columns):
            raise ValueError(
                "sparse columns must be in CSR format, whose rows are together: use .tocsr()"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.columns, self.rows = list(columns), np.arange(lengths.pop()) if rows is None else rows
        self.shard, self.on_disk = shard, isinstance(self.columns[0], Blocks)
        n = len(self.rows)
        starts = list(range(0, n, batch_size))
        if len(starts) > 1 and n - starts[-1] <= min(2 * shard[1], batch_size - 1):
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], n]))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self):
        """Minibatches in the order of the rows."""
        if self.on_disk:
            return self._from_disk([[i] for i in range(len(self.columns[0].bounds) - 1)], None, 0)
        return self._in_order(self.rows, 0)

    def shuffled(self, seed: int, epoch: int, first: int = 0) -> Iterator:
        """Minibatches of one epoch in its own random order, from minibatch number `first` on."""
        key = [seed, ORDER, epoch]
        if self.on_disk:
            return self._from_disk(
                _spread(len(self.columns[0].bounds) - 1, backend.generator(key)), key, first
            )
        return self._in_order(self.rows[backend.generator(key).permutation(len(self.rows))], first)

    def _share(self, start, stop) -> slice:
        """Which of the rows start to stop are those of this shard."""
        (i, n), size = self.shard, stop - start
        return slice(start + size * i // n, start + size * (i + 1) // n)

    def _in_order(self, rows, first):
        for bounds in self.bounds[first:]:
            yield tuple(take_rows(column, rows[self._share(*bounds)]) for column in self.columns)

    def _from_disk(self, groups, key, first):
        """Minibatches from Blocks, the groups (lists of numbers of blocks) one after the other; see `_buffers`."""
        for at, rows, x, whole in ahead(self._buffers(groups, key, first)):
            for bounds in whole:
                part = self._share(bounds[0] - at, bounds[1] - at)
                yield (x[part], *(take_rows(column, rows[part]) for column in self.columns[1:]))

    def _buffers(self, groups, key, first):
        """Yield (at, rows, x, whole): rows and their counts from the epoch's row number `at` on, and the bounds of the
        minibatches that lie in them whole; the rest is carried over into the next buffer.

        key: of the generators that shuffle the rows, one a group; None: they stay as they are.
        """
        column, bounds = self.columns[0], self.bounds[first:]
        if np.any(np.diff(self.rows) <= 0):
            raise ValueError("rows of a column on the disk must be in increasing order, each once")
        starts, seen, at, rows, x = (
            np.searchsorted(self.rows, column.bounds),
            0,
            0,
            self.rows[:0],
            None,
        )
        for number, group in enumerate(groups):
            group = [i for i in group if starts[i] < starts[i + 1]]
            if not group or not bounds:
                continue
            found = np.concatenate([self.rows[starts[i] : starts[i + 1]] for i in group])
            seen += len(found)
            if seen <= bounds[0][0]:  # a run that resumes has trained on all of this group
                at = seen
                continue
            new = _stack(
                [
                    take_rows(
                        column.block(i), self.rows[starts[i] : starts[i + 1]] - column.bounds[i]
                    )
                    for i in group
                ]
            )
            if key is not None:
                order = backend.generator([*key, number]).permutation(len(found))
                found, new = found[order], take_rows(new, order)
            rows, x = np.concatenate([rows, found]), new if x is None else _stack([x, new])
            whole = [b for b in bounds if b[1] <= seen]
            yield at, rows, x, whole
            bounds = bounds[len(whole) :]
            rest = bounds[0][0] - at if bounds else len(rows)
            at, rows, x = at + rest, rows[rest:], x[rest:]


def _spread(n_blocks, rng):
    """All blocks in random groups of AT_ONCE: from each of as many equal parts of the file one."""
    n_groups = -(-n_blocks // AT_ONCE)
    parts = [
        a + rng.permutation(min(n_groups, n_blocks - a))
        for a in range(0, n_blocks, max(n_groups, 1))
    ]
    return [[part[i] for part in parts if i < len(part)] for i in range(n_groups)]


def _stack(matrices):
    """CSR matrices one below the other."""
    return matrices[0] if len(matrices) == 1 else sparse.vstack(matrices, format="csr")

"""Minibatches: the same rows of several arrays, a few at a time. This file is engineering.

A *column* is anything with a row for each cell: counts (a dense array, a CSR matrix, or `Blocks` of
a file on the disk), batch codes, labels. Columns that belong together are cut alike:

    >>> import numpy as np
    >>> from minigrad.data import Minibatches
    >>> x = np.arange(12).reshape(6, 2)
    >>> labels = np.array(["a", "b", "c", "d", "e", "f"])
    >>> minibatches = Minibatches((x, labels), batch_size=2)
    >>> for rows, names in minibatches:
    ...     print(rows[:, 0], names)
    [0 2] ['a' 'b']
    [4 6] ['c' 'd']
    [ 8 10] ['e' 'f']
    >>> for rows, names in minibatches.shuffled(seed=0, epoch=0):
    ...     print(rows[:, 0], names)
    [2 8] ['b' 'e']
    [6 0] ['d' 'a']
    [ 4 10] ['c' 'f']

Which rows come in which order is a function of (seed, purpose, epoch), so a run that resumes meets
the same minibatches. A CSR column stays sparse.

A column on the disk is read in blocks of neighbouring rows, because a disk is slow at reading
single ones. To shuffle, the file is thought of as `AT_ONCE` equal parts; a random block of each is
read, the rows of these blocks are shuffled together, and so on until all is read. Each minibatch
then has rows from all over the file, even where the file is sorted. While some blocks are trained
on, a thread reads the next ones.

Know before reading: nothing of the engine.

Know after: how rows become minibatches, what is held out for validation, and how little of a file
has to be in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad import backend
from minigrad.backend import Matrix

# Purposes of random numbers: the second entry of a generator's key, [seed, purpose, ...].
SPLIT = 0  # which rows are held out
ORDER = 1  # in which order rows are trained on
NOISE = 2  # dropout, draws of latent variables
VALIDATION = 3  # the same, in validation

ENTRIES = 2**16  # non-zeros in a block: half a megabyte, read in about the time it takes to seek
AT_ONCE = 128  # blocks shuffled together: 64 MB, of which four copies exist for a moment


def take_rows(column: Matrix, rows: np.ndarray) -> Matrix:
    """The given rows of a dense array or CSR matrix, (n, n_features) or (n,), as the same kind.

    rows: integers >= 0 in any order, repeats allowed. For CSR this takes a third of the time of
    SciPy's own indexing at 128 rows, which checks more than is needed here.
    """
    if not sparse.issparse(column):
        return column[rows]
    start = column.indptr[rows]
    lengths = column.indptr[rows + 1] - start
    indptr = np.zeros(len(rows) + 1, column.indptr.dtype)
    np.cumsum(lengths, out=indptr[1:])

    # Where each entry that is taken stands in column.data: entry k of the result, which is number
    # k - indptr[i] of its row i, is at start[i] + k - indptr[i].
    places = np.repeat(start - indptr[:-1], lengths)
    places += np.arange(indptr[-1], dtype=places.dtype)
    arrays = (column.data.take(places), column.indices.take(places), indptr)
    taken = type(column)(arrays, shape=(len(rows), column.shape[1]))
    # SciPy would find this out for every minibatch anew.
    taken.has_canonical_format = column.has_canonical_format
    return taken


def computable(rows: Matrix) -> Matrix:
    """The same rows, of any shape, in a dtype that is computed in: float16 is for storing only.

    float16 becomes float32, and longdouble float64; other dtypes stay.
    """
    if rows.dtype.kind != "f" or rows.dtype.itemsize in (4, 8):
        return rows
    return rows.astype(np.float32 if rows.dtype.itemsize < 4 else np.float64)


def split(n_rows: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on, (n_rows - n,), and to hold out for validation, (n,); both sorted.

    validation: the fraction held out, chosen at random. ValueError for one outside of [0, 1).
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a fraction in [0, 1), not {validation}")
    order = backend.generator([seed, SPLIT]).permutation(n_rows)
    n_held_out = round(validation * n_rows)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


# ------------------------------------------------------------------------------------- on the disk
class Blocks:
    """A column that stays on the disk: CSR rows, read in blocks of neighbours.

    read: called with (start, stop), it returns these rows of the file as a CSR matrix. bounds:
    integers (n_blocks + 1,), the row of the file at which each block starts, and the end.
    n_columns: the length of each row. dtype: of the counts that `block` returns. rows: which rows
    of the file belong to the column, sorted; None: all.
    """

    ndim = 2

    def __init__(
        self,
        read: Callable[[int, int], Any],
        bounds: Any,
        n_columns: int,
        dtype: Any = np.float32,
        rows: np.ndarray | None = None,
    ):
        self.read = read
        self.file_bounds = np.asarray(bounds, dtype=np.int64)
        self.dtype = np.dtype(dtype)
        self.file_rows = np.arange(self.file_bounds[-1]) if rows is None else rows
        # The same bounds, counted in rows of the column.
        self.bounds = np.searchsorted(self.file_rows, self.file_bounds)
        self.shape = (len(self.file_rows), int(n_columns))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        n_rows, n_columns = self.shape
        return f"Blocks({n_rows:,} x {n_columns:,} on the disk, {len(self.bounds) - 1:,} blocks)"

    def __getitem__(self, rows: Any) -> Blocks:
        """The column of some rows only: a mask, a slice, or increasing row numbers.

        Nothing is read. IndexError for rows in another order.
        """
        rows = np.arange(len(self))[rows]
        if rows.ndim != 1 or np.any(np.diff(rows) <= 0):
            raise IndexError(
                "rows of a column on the disk must be in increasing order, each once; "
                "read it into memory first"
            )
        return Blocks(self.read, self.file_bounds, self.shape[1], self.dtype, self.file_rows[rows])

    def astype(self, dtype: Any) -> Blocks:
        """The same column, its entries as `dtype`."""
        return Blocks(self.read, self.file_bounds, self.shape[1], dtype, self.file_rows)

    def select_columns(self, columns: np.ndarray) -> Blocks:
        """The same rows, and of each only these entries: integers (n,), in any order.

        Nothing is read.
        """

        def read(start, stop):
            part = self.read(start, stop)[:, columns]
            part.sort_indices()
            return part

        return Blocks(read, self.file_bounds, len(columns), self.dtype, self.file_rows)

    def block(self, i: int) -> sparse.csr_array:
        """Rows bounds[i] to bounds[i + 1] of the column, as a CSR matrix in memory."""
        start, stop = self.file_bounds[i : i + 2]
        x = self.read(int(start), int(stop))
        rows = self.file_rows[self.bounds[i] : self.bounds[i + 1]] - start
        if len(rows) < stop - start:
            x = take_rows(x, rows)
        return x.astype(self.dtype, copy=False)


def block_bounds(indptr: np.ndarray) -> np.ndarray:
    """Where to cut CSR rows into blocks of about ENTRIES entries: the `bounds` of `Blocks`.

    indptr: that of the matrix, (n_rows + 1,).
    """
    starts = np.searchsorted(indptr[:-1], np.arange(0, max(indptr[-1], 1), ENTRIES))
    return np.unique(np.append(starts, [0, len(indptr) - 1]))


def pieces(column: Matrix) -> Iterator[tuple[int, Matrix]]:
    """Yield (first row, rows) of a column of any kind, in order, a few MB at a time.

    The rows are an array or CSR matrix in memory, of shape (n, n_features).
    """
    if isinstance(column, Blocks):
        bounds = column.bounds
    elif sparse.issparse(column):
        bounds = block_bounds(column.indptr)
    else:
        n_rows, n_columns = column.shape
        bounds = np.append(np.arange(0, n_rows, max(1, ENTRIES // n_columns)), n_rows)
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        if start < stop:
            part = column.block(i) if isinstance(column, Blocks) else column[start:stop]
            yield int(start), part


def _read_ahead(items: Iterator) -> Iterator:
    """The items of an iterator, none of them None: while one is used, a thread makes the next."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


# ------------------------------------------------------------------------------------- minibatches
class Minibatches:
    """The rows of several columns, in minibatches.

    columns: arrays, CSR matrices or Blocks of the same length; only the first may be Blocks. rows:
    row numbers (n,), those to use; None: all; increasing where there are Blocks. batch_size: rows
    in a minibatch. shard: (i, n), of every minibatch only the i-th of n equal parts is given. One
    or two rows that are left over for a last minibatch (for each part) join the one before: batch
    norm could not use them. ValueError for columns of different length, sparse ones that are not
    CSR, and a batch_size below 1. Rows of float16 are given as float32.
    """

    def __init__(
        self,
        columns: Sequence[Any],
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
        self.columns = list(columns)
        self.rows = np.arange(lengths.pop()) if rows is None else rows
        self.shard = shard
        self.on_disk = isinstance(self.columns[0], Blocks)

        # The minibatches: (start, stop) among the rows of an epoch, in whatever order these come.
        n_rows = len(self.rows)
        n_shards = shard[1]
        starts = list(range(0, n_rows, batch_size))
        if len(starts) > 1 and n_rows - starts[-1] <= min(2 * n_shards, batch_size - 1):
            starts.pop()
        self.bounds = list(zip(starts, [*starts[1:], n_rows]))

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[tuple]:
        """Minibatches in the order of the rows."""
        if not self.on_disk:
            return self._from_memory(self.rows, first=0)
        n_blocks = len(self.columns[0].bounds) - 1
        return self._from_disk([[i] for i in range(n_blocks)], key=None, first=0)

    def shuffled(self, seed: int, epoch: int, first: int = 0) -> Iterator[tuple]:
        """Minibatches of one epoch in its own random order, from minibatch number `first` on."""
        key = [seed, ORDER, epoch]
        rng = backend.generator(key)
        if not self.on_disk:
            return self._from_memory(self.rows[rng.permutation(len(self.rows))], first)
        n_blocks = len(self.columns[0].bounds) - 1
        return self._from_disk(_spread(n_blocks, rng), key, first)

    def _of_shard(self, start: int, stop: int) -> slice:
        """Which of the rows from start to stop are those of this shard."""
        i, n = self.shard
        size = stop - start
        return slice(start + size * i // n, start + size * (i + 1) // n)

    def _from_memory(self, rows: np.ndarray, first: int) -> Iterator[tuple]:
        """Minibatches of these rows, in this order."""
        for bounds in self.bounds[first:]:
            part = rows[self._of_shard(*bounds)]
            yield tuple(computable(take_rows(column, part)) for column in self.columns)

    # ------------------------------------------------------------------- minibatches from the disk
    def _from_disk(self, groups, key, first) -> Iterator[tuple]:
        """Minibatches of the blocks of all groups (lists of block numbers), one after the other.

        key: of the generators that shuffle the rows of each group; None: they keep their order.
        """
        for buffer in _read_ahead(self._buffers(groups, key, first)):
            for start, stop in buffer.minibatches:
                part = self._of_shard(start - buffer.start, stop - buffer.start)
                rows = buffer.rows[part]
                others = [take_rows(column, rows) for column in self.columns[1:]]
                yield tuple(map(computable, (buffer.x[part], *others)))

    def _buffers(self, groups, key, first) -> Iterator[_Buffer]:
        """Read one group after the other; what does not fill a minibatch waits for the next one."""
        if np.any(np.diff(self.rows) <= 0):
            raise ValueError("rows of a column on the disk must be in increasing order, each once")
        waiting = self.bounds[first:]  # the minibatches that are still to come
        first_of_block = np.searchsorted(self.rows, self.columns[0].bounds)
        n_seen = 0  # rows of this epoch in the groups so far
        start = 0
        rows = self.rows[:0]
        x = None
        for number, group in enumerate(groups):
            # The numbers of our rows in each block of the group that has any.
            blocks = {i: self.rows[slice(*first_of_block[i : i + 2])] for i in group}
            blocks = {i: some for i, some in blocks.items() if len(some)}
            if not blocks or not waiting:
                continue
            n_seen += sum(len(some) for some in blocks.values())
            if n_seen <= waiting[0][0]:  # a run that resumes has trained on all of this group
                start = n_seen
                continue
            new_rows, new_x = self._read(blocks, None if key is None else [*key, number])
            rows = np.concatenate([rows, new_rows])
            x = new_x if x is None else _stacked([x, new_x])
            whole = [bounds for bounds in waiting if bounds[1] <= n_seen]
            yield _Buffer(start, rows, x, whole)

            waiting = waiting[len(whole) :]
            next_start = waiting[0][0] if waiting else n_seen
            rows = rows[next_start - start :]
            x = x[next_start - start :]
            start = next_start

    def _read(self, blocks, key) -> tuple[np.ndarray, Any]:
        """(rows, x) of some blocks, {number: numbers of our rows}; shuffled unless key is None."""
        column = self.columns[0]
        rows = np.concatenate(list(blocks.values()))
        x = _stacked([take_rows(column.block(i), r - column.bounds[i]) for i, r in blocks.items()])
        if key is None:
            return rows, x
        order = backend.generator(key).permutation(len(rows))
        return rows[order], take_rows(x, order)


class _Buffer(NamedTuple):
    """Rows from the disk that are in memory, and the minibatches that they suffice for."""

    start: int  # the place of the first one among the rows of the epoch
    rows: np.ndarray  # their numbers
    x: Any  # the rows themselves: CSR
    minibatches: list  # (start, stop) among the rows of the epoch


def _spread(n_blocks: int, rng: np.random.Generator) -> list[list[int]]:
    """All block numbers in random groups of AT_ONCE, each with one from every part of the file.

    The file is cut into AT_ONCE parts, each as long as there are groups; the last may be shorter.
    """
    n_groups = -(-n_blocks // AT_ONCE)  # rounded up
    parts = []
    for start in range(0, n_blocks, max(n_groups, 1)):
        length = min(n_groups, n_blocks - start)
        parts.append(start + rng.permutation(length))
    return [[part[i] for part in parts if i < len(part)] for i in range(n_groups)]


def _stacked(matrices: list) -> Any:
    """CSR matrices one below the other."""
    return matrices[0] if len(matrices) == 1 else sparse.vstack(matrices, format="csr")

"""minigrad/data.py: rows against SciPy's own indexing, every row met once, nothing made dense."""

import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from minigrad import data
from minigrad.data import Blocks, Minibatches, split, take_rows

few = settings(max_examples=80)
seeds = st.integers(0, 2**32 - 1)


def random_csr(rng, n, k, kind=sparse.csr_matrix, index=np.int32, dtype=np.float32):
    """Some rows empty, some stored out of order, some zeros stored."""
    dense = (
        rng.integers(-3, 4, (n, k)) * (rng.random((n, k)) < 0.4) * (rng.random((n, 1)) < 0.8)
    ).astype(dtype)
    indptr, indices = [0], []
    for row in dense:
        stored = rng.permutation(np.flatnonzero((row != 0) | (rng.random(k) < 0.1)))
        indices.extend(stored.tolist())
        indptr.append(len(indices))
    indices = np.array(indices, dtype=int)
    rows = np.repeat(np.arange(n), np.diff(indptr))
    x = kind((dense[rows, indices], indices.astype(index), np.array(indptr, index)), shape=(n, k))
    x.indptr, x.indices = x.indptr.astype(index), x.indices.astype(index)
    return x, dense


@few
@given(
    seeds,
    st.integers(1, 12),
    st.integers(1, 9),
    st.lists(st.integers(0, 10**6), max_size=20),
    st.sampled_from([sparse.csr_matrix, sparse.csr_array]),
    st.sampled_from([np.int32, np.int64]),
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
)
def test_take_rows_of_csr_equals_scipys_indexing(seed, n, k, rows, kind, index, dtype):
    x, dense = random_csr(np.random.default_rng(seed), n, k, kind, index, dtype)
    assert x.indptr.dtype == index
    rows = np.array([r % n for r in rows], dtype=np.intp)
    for part in (x.data, x.indices, x.indptr, rows):
        part.flags.writeable = False
    taken, scipys = take_rows(x, rows), x[rows]
    assert (
        type(taken) is kind
        and taken.shape == scipys.shape == (len(rows), k)
        and taken.dtype == dtype
    )
    taken.check_format(full_check=True)
    np.testing.assert_array_equal(taken.toarray(), scipys.toarray())
    np.testing.assert_array_equal(taken.toarray(), dense[rows])
    np.testing.assert_array_equal(np.diff(taken.indptr), np.diff(scipys.indptr))


def test_take_rows_of_more_entries_than_a_small_integer_holds():
    x = sparse.csr_matrix(np.arange(1.0, 90_001).reshape(300, 300))
    rows = np.arange(300)[::-1]
    np.testing.assert_array_equal(take_rows(x, rows).toarray(), x.toarray()[::-1])


@few
@given(seeds, st.integers(1, 12), st.lists(st.integers(0, 10**6), max_size=20))
def test_take_rows_of_dense_arrays(seed, n, rows):
    x = np.random.default_rng(seed).normal(size=(n, 3))
    rows = np.array([r % n for r in rows], dtype=np.intp)
    np.testing.assert_array_equal(take_rows(x, rows), [x[r] for r in rows] or np.zeros((0, 3)))
    np.testing.assert_array_equal(take_rows(np.arange(n), rows), rows)


# -------------------------------------------------------------------------------------------- split
@few
@given(st.integers(0, 300), st.floats(0, 0.999), seeds)
def test_split_is_disjoint_complete_and_of_the_size_asked_for(n, fraction, seed):
    train, held_out = split(n, fraction, seed)
    assert sorted([*train, *held_out]) == list(range(n))
    assert abs(len(held_out) - fraction * n) <= 0.5
    assert np.all(np.diff(train) > 0) and np.all(np.diff(held_out) > 0)


def test_split_is_a_function_of_the_seed_and_random():
    a, b, c = [split(1000, 0.3, seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(a, b)
    assert len(np.setdiff1d(a, c)) > 100
    often = sum(np.isin(np.arange(200), split(200, 0.25, seed)[1]) for seed in range(400))
    assert (
        abs(often.mean() - 100) < 1e-9 and 60 < often.min() and often.max() < 140
    )  # 100 +- 9 times each


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_split_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match="validation must be a fraction"):
        split(10, fraction, 0)


# -------------------------------------------------------------------------------------- minibatches
@few
@given(st.integers(0, 100), st.integers(1, 40), seeds, st.booleans())
def test_every_row_once_an_epoch_and_no_scraps(n, batch_size, seed, some):
    rng = np.random.default_rng(seed)
    rows = rng.permutation(200)[:n] if some else None
    ids = np.arange(200 if some else n)
    batches = Minibatches((ids, ids * 2.0), batch_size, rows)
    in_order = list(batches)
    assert len(batches) == len(in_order)
    expected = ids if rows is None else rows
    np.testing.assert_array_equal(np.concatenate([ids[:0], *(a for a, _ in in_order)]), expected)
    for epoch in range(2):
        shuffled = list(batches.shuffled(seed, epoch))
        assert [len(a) for a, _ in shuffled] == [len(a) for a, _ in in_order]
        assert sorted(np.concatenate([ids[:0], *(a for a, _ in shuffled)])) == sorted(expected)
        assert all(np.all(b == 2 * a) for a, b in shuffled)
    sizes = [len(a) for a, _ in in_order]
    if sizes:
        assert set(sizes[:-1]) <= {batch_size} and sizes[-1] <= batch_size + 2
        assert sizes[-1] > min(2, batch_size - 1) or len(sizes) == 1


@pytest.mark.parametrize(
    "n, batch_size, sizes",
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 6]),
        (11, 4, [4, 4, 3]),
        (12, 4, [4, 4, 4]),
        (1, 4, [1]),
        (2, 4, [2]),
        (5, 4, [5]),
        (0, 4, []),
        (4, 2, [2, 2]),
        (5, 2, [2, 3]),
        (3, 1, [1, 1, 1]),
        (7, 3, [3, 4]),
        (3, 100, [3]),
    ],
)
def test_a_last_minibatch_of_one_or_two_rows_joins_its_neighbour(n, batch_size, sizes):
    assert [len(a) for (a,) in Minibatches((np.arange(n),), batch_size)] == sizes


@few
@given(st.integers(1, 60), st.integers(1, 20), seeds, st.integers(0, 5), st.integers(0, 70))
def test_first_skips_exactly(n, batch_size, seed, epoch, first):
    batches = Minibatches((np.arange(n),), batch_size)
    whole, rest = [[a.tolist() for (a,) in batches.shuffled(seed, epoch, f)] for f in (0, first)]
    assert rest == whole[first:]


def test_the_order_is_a_function_of_seed_and_epoch():
    batches = Minibatches((np.arange(500),), 50, np.arange(100, 400))

    def order(seed, epoch):
        return np.concatenate([a for (a,) in batches.shuffled(seed, epoch)]).tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert np.mean(np.array(a) == b) < 0.05
    again = Minibatches((np.arange(500),), 50, np.arange(100, 400))
    assert np.concatenate([a for (a,) in again.shuffled(1, 1)]).tolist() == orders[3]


def test_parallel_columns_stay_parallel():
    rng = np.random.default_rng(0)
    x, dense = random_csr(rng, 50, 7)
    for counts, d, ids in Minibatches((x, dense, np.arange(50)), 8).shuffled(3, 4):
        assert sparse.issparse(counts)
        np.testing.assert_array_equal(counts.toarray(), d)
        np.testing.assert_array_equal(d, dense[ids])


@pytest.mark.parametrize("dtype, expected", [("f2", "f4"), ("g", "f8"), ("f4", "f4"), ("i2", "i2")])
def test_rows_of_halves_come_as_singles(dtype, expected):
    """Stored in half the memory, and never computed with: 300^2 is beyond float16."""
    x = np.full((6, 2), 300, dtype)
    for rows, labels in Minibatches((x, np.arange(6)), 3):
        assert rows.dtype == np.dtype(expected) and labels.dtype == int
        assert np.all(rows == 300)
    assert x.dtype == np.dtype(dtype)


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"same number of rows.*\[3, 4\]"):
        Minibatches((np.ones(3), np.ones(4)), 2)
    with pytest.raises(ValueError, match="batch_size"):
        Minibatches((np.ones(3),), 0)
    for kind in (sparse.csc_matrix, sparse.coo_matrix):
        with pytest.raises(ValueError, match="CSR.*tocsr"):
            Minibatches((kind(np.eye(3)),), 2)


def test_sparse_columns_are_never_made_dense(monkeypatch):
    """100 rows of 10 million columns: one dense minibatch would be 1.3 GB."""
    x = sparse.random(
        100, 10**7, density=1e-5, format="csr", dtype=np.float32, rng=np.random.default_rng(0)
    )
    for name in ("toarray", "todense"):
        monkeypatch.setattr(sparse.csr_matrix, name, None)
        monkeypatch.setattr(sparse.csr_array, name, None, raising=False)
    batches = Minibatches((x,), 32)
    tracemalloc.start()
    try:
        total = sum(b.sum() for (b,) in batches.shuffled(0, 0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(total, x.sum(), rtol=1e-5)
    assert peak < 10 * 32 * 100 * 12 + 200_000, f"{peak} bytes"


# -------------------------------------------------------------------------------------- on the disk
def on_disk(x, n_blocks=5, seed=0):
    """A CSR matrix as Blocks, cut at random places, that notes which rows are read."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, x.shape[0] + 1, n_blocks - 1))
    reads = []

    def read(start, stop):
        reads.append((start, stop, threading.current_thread() is threading.main_thread()))
        return x[start:stop]

    blocks = Blocks(read, np.unique([0, *cuts, x.shape[0]]), x.shape[1])
    blocks.reads = reads
    return blocks


def numbered(n):
    """Row i holds i + 1 in column i mod 3."""
    return sparse.csr_array(
        (np.arange(1.0, n + 1), np.arange(n) % 3, np.arange(n + 1)), shape=(n, 3)
    )


@few
@given(
    st.integers(1, 80),
    st.integers(1, 30),
    seeds,
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 90),
)
def test_blocks_give_every_row_once_and_resume_exactly(
    n, batch_size, seed, n_blocks, at_once, first
):
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(n)[: max(1, n - seed % 7)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "AT_ONCE", at_once)
        batches = Minibatches(
            (on_disk(numbered(n), n_blocks, seed), np.arange(n)), batch_size, rows
        )
        expected = [ids.tolist() for (ids,) in Minibatches((np.arange(n),), batch_size, rows)]
        assert [ids.tolist() for _, ids in batches] == expected
        epochs = [list(batches.shuffled(seed, epoch)) for epoch in (0, 1, 0)]
        for epoch in epochs:
            assert (
                [len(ids) for _, ids in epoch]
                == [len(ids) for ids in expected]
                == [x.shape[0] for x, _ in epoch]
            )
            assert sorted(i for _, ids in epoch for i in ids) == rows.tolist()
            assert all(x.sum(axis=1).tolist() == (ids + 1).tolist() for x, ids in epoch)
        first = first % (len(batches) + 1)
        rest = [ids.tolist() for _, ids in batches.shuffled(seed, 0, first)]
        assert (
            rest
            == [ids.tolist() for _, ids in epochs[0]][first:]
            == [ids.tolist() for _, ids in epochs[2]][first:]
        )


@few
@given(st.integers(2, 80), st.integers(1, 30), seeds, st.integers(1, 5), st.booleans())
def test_shards_put_together_are_the_minibatch(n, batch_size, seed, size, stored):
    columns = (on_disk(numbered(n), 4, seed) if stored else numbered(n), np.arange(n))
    shards = [
        list(Minibatches(columns, batch_size, shard=(i, size)).shuffled(seed, 3))
        for i in range(size)
    ]
    whole = list(Minibatches(columns, batch_size).shuffled(seed, 3))
    together = [np.concatenate([ids for _, ids in parts]) for parts in zip(*shards, strict=True)]
    assert np.array_equal(np.concatenate(together), np.concatenate([ids for _, ids in whole]))
    for parts in zip(*shards):
        assert all(x.sum(axis=1).tolist() == (ids + 1).tolist() for x, ids in parts)
        assert max(len(ids) for _, ids in parts) - min(len(ids) for _, ids in parts) <= 1
        assert min(len(ids) for _, ids in parts) >= min(2, n // size, batch_size // size)


def test_blocks_are_shuffled_far_and_read_ahead_by_a_thread(monkeypatch):
    monkeypatch.setattr(data, "AT_ONCE", 4)
    x = numbered(4000)
    blocks = Blocks(on_disk(x).read, np.arange(0, 4001, 100), 3)
    read = []
    blocks.read = lambda a, b: (
        read.append((a, threading.current_thread() is threading.main_thread())) or x[a:b]
    )
    batches = Minibatches((blocks, np.arange(4000)), 50)
    orders, first_blocks = [], set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        read.clear()
        stream = batches.shuffled(seed, epoch)
        _, ids = next(stream)
        assert len(read) in range(4, 9)  # no more than those in use, and the next
        assert len(np.unique(ids // 100)) == 4 and np.any(np.diff(ids) < 0)
        first_blocks.add(tuple(np.unique(ids // 100)))
        orders.append([*ids, *(i for _, more in stream for i in more)])
        for start in range(
            0, 4000, 400
        ):  # what is shuffled together comes from all quarters of the file alike
            assert (
                np.bincount(np.array(orders[-1][start : start + 400]) // 1000).tolist() == [100] * 4
            )
        assert (
            len(
                {
                    tuple(np.argsort(orders[-1][start : start + 400]))
                    for start in range(0, 4000, 400)
                }
            )
            == 10
        )
        assert sorted(a for a, _ in read) == list(range(0, 4000, 100))  # each block once
        assert not any(in_main for _, in_main in read)
    assert len(set(map(tuple, orders))) == len(first_blocks) == 3
    read.clear()
    list(
        batches.shuffled(0, 0, 60)
    )  # minibatches 0 to 59 are of the first 30 blocks, of which 28 fill whole groups
    assert len(read) == 40 - 28


def test_what_fails_in_the_thread_is_raised_and_a_stream_can_be_left(monkeypatch):
    monkeypatch.setattr(data, "AT_ONCE", 1)
    x, before = numbered(100), threading.active_count()

    def broken(start, stop):
        if start >= 60:
            raise OSError("the disk is gone")
        return x[start:stop]

    batches = Minibatches((Blocks(broken, np.arange(0, 101, 20), 3),), 10)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for (counts,) in batches:
            seen.append(counts.sum())
    assert len(seen) in (4, 5, 6) and threading.active_count() == before
    stream = batches.shuffled(0, 0)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_rows_of_blocks():
    x, _ = random_csr(np.random.default_rng(3), 40, 5, sparse.csr_array)
    blocks = on_disk(x, 6)
    assert blocks.shape == (40, 5) and len(blocks) == 40 and "40 x 5 on the disk" in repr(blocks)
    for rows in (slice(3, 17), np.arange(40) % 3 > 0, np.array([0, 5, 39]), np.array([], int)):
        part = blocks[rows].astype(np.float64)
        found = [part.block(i) for i in range(len(part.bounds) - 1)]
        assert all(b.dtype == np.float64 for b in found)
        np.testing.assert_array_equal(np.vstack([b.toarray() for b in found]), x.toarray()[rows])
        assert sum(b.sum() for _, b in data.pieces(part)) == x.toarray()[rows].sum()
    part = blocks[np.arange(40) % 3 > 0][np.arange(26) % 2 > 0]  # of what was selected before
    np.testing.assert_array_equal(
        np.vstack([part.block(i).toarray() for i in range(len(part.bounds) - 1)]),
        x.toarray()[np.arange(40) % 3 > 0][1::2],
    )
    for rows in ([3, 2], [1, 1], 4):
        with pytest.raises(IndexError, match="increasing order"):
            blocks[rows]
    with pytest.raises(ValueError, match="increasing order"):
        list(Minibatches((blocks,), 4, np.array([3, 2, 1])))


@pytest.mark.parametrize(
    "lengths", [[0, 0, 0], [5], [3, 0, 9, 2, 0], [100], [1] * 20, [0] * 9 + [7]]
)
def test_blocks_hold_about_so_many_entries(lengths, monkeypatch):
    monkeypatch.setattr(data, "ENTRIES", 4)
    indptr = np.append(0, np.cumsum(lengths))
    bounds = data.block_bounds(indptr)
    assert bounds[0] == 0 and bounds[-1] == len(lengths) and np.all(np.diff(bounds) > 0)
    assert all(indptr[b] - indptr[a] < 4 + max(lengths) for a, b in zip(bounds, bounds[1:]))
    if lengths == [1] * 20:
        assert bounds.tolist() == [0, 4, 8, 12, 16, 20]


def test_pieces_of_any_column(monkeypatch):
    monkeypatch.setattr(data, "ENTRIES", 10)
    x, dense = random_csr(np.random.default_rng(4), 33, 4, sparse.csr_array)
    for column in (x, dense, on_disk(x), on_disk(x)[np.arange(33)]):
        starts, parts = zip(*data.pieces(column))
        rows = [p.toarray() if sparse.issparse(p) else p for p in parts]
        np.testing.assert_array_equal(np.vstack(rows), dense)
        assert list(starts) == np.cumsum([0, *map(len, rows)])[:-1].tolist() and len(starts) > 3

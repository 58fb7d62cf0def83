"""Counts that stay on the disk: what of a file is read, what is refused, and that SCVI learns from it what it learns from memory.

Know before reading: models/hdf5.py, and Blocks in minigrad/data.py (whose own tests are in test_data.py).
"""

import signal
import threading

import numpy as np
import pytest
from scipy import sparse

from minigrad import checkpoint, data
from models import SCVI, Autoencoder
from models import counts as C
from models import hdf5 as H
from models.counts import Counts, as_matrix, moments, read

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")

N, G = 160, 12
RNG = np.random.default_rng(0)
X = RNG.poisson(np.exp(1.5 + np.linspace(-1.0, 1.0, N)[:, None] * RNG.normal(0.0, 1.2, G))) * (
    RNG.random((N, G)) < 0.9
)
X[[7, 90]] = 0  # cells without counts
GENES = [f"g{i}" for i in range(G)]
LANES = np.array(["a", "b"])[np.arange(N) * 2 // N]


def write(path, matrix=sparse.csr_matrix, **options):
    a = anndata.AnnData(matrix(X.astype(np.float32)))
    a.var_names, a.obs["lane"] = GENES, LANES
    a.write_h5ad(path, **options)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few cells, shuffled three at a time."""
    monkeypatch.setattr(data, "ENTRIES", 100)
    monkeypatch.setattr(H, "BLOCK", 14 * G)
    monkeypatch.setattr(data, "AT_ONCE", 3)


@pytest.fixture
def path(tmp_path, small_blocks):
    return write(tmp_path / "a.h5ad")


def whole(blocks):
    return sparse.vstack([blocks.block(i) for i in range(len(blocks.bounds) - 1)], format="csr")


# ------------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("form", [sparse.csr_matrix, np.array])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_blocks_of_a_file_are_its_rows(tmp_path, small_blocks, form, compression):
    counts = read(write(tmp_path / "a.h5ad", form, compression=compression), backed=True)
    memory = read(tmp_path / "a.h5ad")
    assert isinstance(counts.X, data.Blocks) and counts.shape == (N, G) and len(counts.X.bounds) > 8
    assert counts.genes.tolist() == GENES and counts.obs["lane"].tolist() == LANES.tolist()
    assert counts.cells.tolist() == memory.cells.tolist()
    for i in range(len(counts.X.bounds) - 1):
        part = counts.X.block(i)
        assert (
            part.has_canonical_format
            and part.dtype == np.float32
            and part.indices.dtype == np.int32
        )
    assert (
        np.array_equal(whole(counts.X).toarray(), X)
        and sum(part.sum() for _, part in data.pieces(counts.X)) == X.sum()
    )
    some = counts[LANES == "b"]
    assert np.array_equal(whole(some.X).toarray(), X[LANES == "b"]) and set(some.obs["lane"]) == {
        "b"
    }


def test_layers_raw_and_anndata_opened_backed(tmp_path, small_blocks):
    a = anndata.AnnData(sparse.csr_matrix(X.astype(np.float32)), layers={"twice": 2 * X})
    a.raw = a
    a = a[:, 2:7].copy()
    a.write_h5ad(tmp_path / "a.h5ad")
    assert np.array_equal(whole(read(tmp_path / "a.h5ad", "raw", backed=True).X).toarray(), X)
    assert np.array_equal(
        whole(read(tmp_path / "a.h5ad", "twice", backed=True).X).toarray(), 2 * X[:, 2:7]
    )
    opened = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert np.array_equal(whole(as_matrix(opened, on_disk=True)).toarray(), X[:, 2:7])
    assert np.array_equal(whole(as_matrix(opened, "twice", on_disk=True)).toarray(), 2 * X[:, 2:7])
    part = as_matrix(opened[5:9], on_disk=True)  # a view is small enough to be read
    assert np.array_equal(part.toarray(), X[5:9, 2:7])
    opened.file.close()


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)


def put(name, at, value):
    return lambda file: file["X"][name].__setitem__(at, value)


def shorten(name):
    def edit(file):
        values = file["X"][name][:-1]
        del file["X"][name]
        file["X"][name] = values

    return edit


REFUSED = {
    "by columns": (lambda path: write(path, sparse.csc_matrix), r"csc, by columns.*tocsr\(\)"),
    "short data": (lambda path: change(path, shorten("data")), "lengths"),
    "short indptr": (lambda path: change(path, shorten("indptr")), "lengths"),
    "falling indptr": (lambda path: change(path, put("indptr", 3, 10**6)), "must rise"),
    "no data": (lambda path: change(path, lambda file: file["X"].__delitem__("data")), "damaged"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_in_blocks_is_refused_when_it_is_opened(path, case):
    spoil, message = REFUSED[case]
    spoil(path)
    with pytest.raises(ValueError, match=message) as error:
        read(path, backed=True)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_other_formats_are_refused(tmp_path):
    np.savez(
        tmp_path / "a.npz", **{"data": [1.0], "indices": [0], "indptr": [0, 1], "shape": [1, 1]}
    )
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"] = X.T
    for name in "a.npz", "a.loom":
        with pytest.raises(ValueError, match=f"{name}: backed=True: only .h5ad"):
            read(tmp_path / name, backed=True)
    anndata.AnnData(np.zeros((0, 3), np.float32)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match="a.h5ad: has shape .*no cells"):
        read(tmp_path / "a.h5ad", backed=True)


_last = np.count_nonzero(X) - 1  # the last entry, of the last cell


@pytest.mark.parametrize(
    "edit, message",
    [
        (put("data", _last, -1.0), f"row {N - 1}, column .* is -1.0, which is negative"),
        (put("data", _last, np.nan), f"row {N - 1}, .* is nan"),
        (put("data", _last, 2.0**25), "above 16,777,216"),
        (put("indices", _last, G), "damaged|broken"),
        (put("indices", _last, -1), "damaged|broken"),
    ],
)
def test_bad_entries_are_found_before_training(path, edit, message):
    change(path, edit)
    counts, model = read(path, backed=True), SCVI(G, n_latent=2, n_hidden=4)
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.fit(counts, epochs=1, progress=False)
    assert not model.trained and all(
        np.array_equal(a, before[k]) for k, a in model.state_dict().items()
    )


def test_rows_that_are_nearly_whole_are_rounded_with_a_note(path):
    def edit(file):
        file["X/data"][...] = file["X/data"][()] * np.float32(1 + 1e-6)

    change(path, edit)
    found = read(path, backed=True).X
    with pytest.warns(UserWarning, match="a.h5ad: .*were rounded"):
        assert np.array_equal(whole(found).toarray(), X)


def test_rows_that_are_not_canonical_are_made_so(path):
    def edit(file):  # the columns of a cell backwards, and a zero stored
        start, stop = file["X/indptr"][1:3]
        for name in ("data", "indices"):
            file["X"][name][start:stop] = file["X"][name][start:stop][::-1]
        file["X/data"][_last] = 0.0

    change(path, edit)
    expected = X.copy()
    expected[-1, np.flatnonzero(X[-1])[-1]] = 0
    found = read(path, backed=True).X
    assert np.array_equal(whole(found).toarray(), expected) and whole(found).data.all()


def test_a_file_that_vanishes_is_named(path):
    counts = read(path, backed=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="a.h5ad"):
        moments(counts.X)


def test_a_relative_path_is_that_of_the_time_of_opening(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    counts = read(path.name, backed=True)
    monkeypatch.chdir("/")
    assert (whole(counts.X) != sparse.csr_matrix(X)).nnz == 0


def test_what_needs_all_in_memory_says_so(path):
    counts = read(path, backed=True)
    for ask in (C.normalize, lambda x: C.pearson_residual_variance(x, 3), as_matrix):
        with pytest.raises(ValueError, match="lies on the disk.*without backed=True"):
            ask(counts)
    with pytest.raises(ValueError, match="lies on the disk, which only SCVI trains from"):
        Autoencoder(G, (4,), 2).fit(counts, epochs=1, progress=False)


@pytest.mark.filterwarnings("ignore:group")
@pytest.mark.parametrize("mode", ["change", "vanilla"])
def test_groups_are_compared_from_the_disk_as_in_memory(path, small_blocks, mode):
    on_disk, in_memory = read(path, backed=True), read(path)
    assert len(on_disk.X.bounds) > 3
    model, _ = fitted(on_disk, epochs=1)
    labels = np.array(["x", "y", "z"])[np.arange(N) % 3]
    asked = dict(groupby=labels, mode=mode, n_samples=2 * N)
    found = model.differential_expression(on_disk, **asked)
    expected = model.differential_expression(in_memory, **asked)
    assert found.groups == expected.groups
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.mark.parametrize("form", [np.array, sparse.csr_array, sparse.csr_matrix])
def test_moments_by_brute_force(form, small_blocks, path):
    for x in form(X.astype(np.float32)), read(path, backed=True).X:
        found = moments(x)
        totals = [sum(X[c]) for c in range(N)]
        assert found.totals.tolist() == totals and found.of_genes.tolist() == [
            sum(X[:, g]) for g in range(G)
        ]
        assert found.squares.tolist() == [sum(int(v) ** 2 for v in X[:, g]) for g in range(G)]
        assert found.with_totals.tolist() == [
            sum(X[c, g] * totals[c] for c in range(N)) for g in range(G)
        ]


def test_genes_are_selected_and_totals_taken_without_reading_all(path):
    counts, memory = read(path, backed=True), read(path)
    best = C.highest_variance(counts, 5)
    assert best.tolist() == C.highest_variance(memory, 5).tolist()
    for genes in best, best[::-1], slice(3, 6), np.arange(G) % 2 > 0:
        part, expected = counts.select_genes(genes), memory.select_genes(genes)
        assert part.shape == expected.shape and part.genes.tolist() == expected.genes.tolist()
        assert (
            np.array_equal(whole(part.X).toarray(), expected.X.toarray())
            and whole(part.X).has_canonical_format
        )
    assert np.array_equal(C.library_size(counts), X.sum(axis=1)) and np.flatnonzero(
        C.empty_cells(counts)
    ).tolist() == [7, 90]


# ------------------------------------------------------------------------------------------------------------ training
OPTIONS = dict(epochs=3, batch_size=16, progress=False)


def fitted(counts, batch=None, n_batches=1, **options):
    model = SCVI(G, n_batches, n_latent=2, n_hidden=8)
    with pytest.warns(UserWarning, match="2 cells without counts"):
        return model, model.fit(counts, batch, **{**OPTIONS, **options})


def same(one, other):
    assert all(
        np.array_equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_a_run_from_the_disk(path):
    counts = read(path, backed=True)
    # One weight of the KL throughout, so that the losses of the epochs compare.
    model, history = fitted(counts, kl_warmup=0.0)
    again, _ = fitted(anndata.read_h5ad(path, backed="r"), kl_warmup=0.0)
    same(model, again)
    assert len(history) == 3 and history["train_loss"][2] < history["train_loss"][0]
    start, memory = SCVI(G, n_latent=2, n_hidden=8), SCVI(G, n_latent=2, n_hidden=8)
    for one, x in ((start, counts), (memory, read(path))):
        with pytest.warns(UserWarning):
            one.fit(x, epochs=1, batch_size=N, learning_rate=1e-30, progress=False)
    np.testing.assert_array_equal(start.log_theta.data, memory.log_theta.data)  # the same moments
    np.testing.assert_array_equal(start.library_log_mean, memory.library_log_mean)


def test_both_ways_learn_the_same(path):
    """The file is sorted along what there is to learn."""

    def elbo(counts, epochs):
        return fitted(counts, epochs=epochs)[0].elbo(read(path), n_samples=50).mean()

    stored, memory = read(path, backed=True), read(path)
    assert elbo(stored, 12) > elbo(stored, 1) + 0.7
    assert abs(elbo(stored, 12) - elbo(memory, 12)) < 0.2


def test_predictions_from_the_disk_are_those_from_memory(path):
    stored, memory = read(path, backed=True), read(path)
    model, _ = fitted(stored, "lane", 2)
    for ask in (
        model.latent,
        model.elbo,
        model.denoise,
        model.expression_fraction,
        model.sample_posterior,
        lambda *a: model.log_likelihood(*a, n_samples=3),
    ):
        np.testing.assert_array_equal(ask(stored, "lane"), ask(memory, "lane"))


def test_wide_models(path):
    stored, model = read(path, backed=True), SCVI(G, n_latent=2, n_hidden=4, dtype=np.float64)
    with pytest.warns(UserWarning):
        model.fit(stored, epochs=1, progress=False)
    assert model.latent(stored).dtype == np.float64
    np.testing.assert_array_equal(
        model.latent(stored), model.latent(Counts(X, GENES, read(path).cells))
    )


@pytest.mark.parametrize("at", [1, 5, 9, 14, 22])
def test_stopped_in_the_middle_of_an_epoch_and_resumed(tmp_path, path, at):
    counts, (expected, history) = read(path, backed=True), fitted(read(path, backed=True))
    model, calls, loss = SCVI(G, n_latent=2, n_hidden=8), [], SCVI.loss

    def pressed(*args, **keywords):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGINT)
        return loss(model, *args, **keywords)

    model.loss = pressed
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.warns(UserWarning):
            model.fit(counts, checkpoint=tmp_path / "run.npz", **OPTIONS)
    finally:
        signal.signal(signal.SIGINT, before)
    position = checkpoint.load(tmp_path / "run.npz")[1]["position"]
    assert position["epoch"] * 9 + position["batch"] == at
    resumed, after = fitted(counts, checkpoint=tmp_path / "run.npz", resume=True)
    same(resumed, expected)
    assert (
        after["train_loss"] == history["train_loss"]
        and after["validation_elbo"] == history["validation_elbo"]
    )
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_a_checkpoint_of_a_run_in_memory_is_of_another_run(tmp_path, path):
    fitted(read(path), checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match="checkpoint of a run with"), pytest.warns(UserWarning):
        SCVI(G, n_latent=2, n_hidden=8).fit(
            read(path, backed=True), checkpoint=tmp_path / "run.npz", resume=True, **OPTIONS
        )


def test_none_of_the_cells_on_the_disk_are_refused_as_none_in_memory():
    x = sparse.csr_array(np.ones((6, 3), np.float32))
    blocks = data.Blocks(lambda a, b: x[a:b], [0, 3, 6], 3)
    model = SCVI(3, n_latent=2, n_hidden=4)
    for matrix in (x, blocks):
        none = Counts(matrix, list("abc"), range(6), {"age": np.arange(6.0)})[np.zeros(6, bool)]
        for ask in (model.fit, model.latent, lambda c: SCVI.for_data(c, continuous=["age"])):
            with pytest.raises(ValueError, match=r"counts: has shape \(0, 3\), that is no cells"):
                ask(none)

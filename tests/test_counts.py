"""Counts: damaged files, everything a user may pass, and each rule against brute force.

Know before reading: models/counts.py. Files that are whole: test_files.py, test_matrix_market.py,
test_hdf5.py. Know after: which inputs are taken, which are refused, and in what words.
"""

import gzip
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from minigrad.data import pieces
from models import counts as C
from models import guarded
from models.counts import Counts, as_matrix, read, round_counts
from tests.example_counts import (
    CELLS,
    GENES,
    TYPES,
    X,
    adata,
    check,
    edit,
    npz,
    write_folder,
    write_loom,
    write_tenx,
)
from tests.limits import each_in_a_child
from tests.test_files import BOMBS, HOSTILE_NPZ, HOSTILE_TEXT
from tests.test_hdf5 import HOSTILE_HDF5

_indices = sparse.csr_matrix(X).indices
_indptr = sparse.csr_matrix(X).indptr

# Damaged files


def damage(content, flips, cut):
    """Bits flipped at these positions (as fractions of the file), and the file cut off."""
    content = bytearray(content)
    for position, bit in flips:
        content[int(position * len(content))] ^= 1 << bit
    return bytes(content[: int(cut * len(content))])


FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4)
CUTS = st.one_of(st.just(1.0), st.floats(0, 1))
FORMATS = {
    "a.npz": lambda folder: npz(folder / "a.npz"),
    "b.npz": lambda folder: np.savez(folder / "b.npz", **np.load(npz(folder / "a.npz"))),
    "a.h5ad": lambda folder: adata(sparse.csr_matrix(X)).write_h5ad(folder / "a.h5ad"),
    "a.h5": lambda folder: write_tenx(folder / "a.h5", 3, 2),
    "a.loom": lambda folder: write_loom(folder / "a.loom"),
    "a.mtx": lambda folder: scipy.io.mmwrite(folder / "a.mtx", sparse.coo_matrix(X)),
    "a.csv.gz": lambda folder: (folder / "a.csv.gz").write_bytes(
        gzip.compress(b"cell,g,h\nc1,1,2\nc2,30,4\n")
    ),
    "a.tsv": lambda folder: (folder / "a.tsv").write_bytes(b"cell\tg\th\nc1\t1\t2\nc2\t30\t4\n"),
}


@pytest.fixture(scope="module", params=FORMATS)
def pristine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pristine")
    FORMATS[request.param](folder)
    return folder / request.param, (folder / request.param).read_bytes()


def read_or_refused(path, **options):
    """Read a file that may be damaged: either way it must end well."""
    try:
        counts = read(path, **options)
        counts.X = (
            as_matrix(counts)
            if not options
            else sparse.vstack([part for _, part in pieces(counts.X)], format="csr")
        )
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error), error
    else:
        assert (
            counts.X.has_canonical_format
            and C._look_at(counts.X.data) == (None, False)
            and min(counts.shape) > 0
        )
        assert len(counts.genes) == counts.shape[1] and all(
            len(v) == len(counts) for v in counts.obs.values()
        )


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(flips=FLIPS, cut=CUTS)
def test_damaged_files_end_in_counts_or_in_one_sentence(pristine, flips, cut):
    path, content = pristine
    if path.suffix in (".h5ad", ".h5", ".loom"):
        flips = []  # some make libhdf5 loop for ever: see models/guarded.py, and below
    path.write_bytes(damage(content, flips, cut))
    read_or_refused(path)


def limited_reads(folder):
    """(In its own process.)"""

    def read_it(path):
        read_or_refused(path)
        if path.suffix == ".h5ad":
            read_or_refused(path, backed=True)

    each_in_a_child(folder, read_it)


def limited(folder):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "limited_reads", str(folder)],
        capture_output=True,
        text=True,
        env=env,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["a.h5ad", "a.h5", "a.loom"])
def test_flipped_bits_of_hdf5_do_no_harm(tmp_path, name):
    """Some make libhdf5 itself loop or crash: within one process nothing helps; test_guarded.py."""
    (tmp_path / "files").mkdir()
    FORMATS[name](tmp_path)
    content, rng = bytearray((tmp_path / name).read_bytes()), np.random.default_rng(1)
    for i in range(25):
        flips = [(rng.random(), int(rng.integers(8))) for _ in range(rng.integers(1, 5))]
        (tmp_path / "files" / f"{i:02}{name}").write_bytes(damage(content, flips, 1.0))
    said = limited(tmp_path / "files")
    assert [line for line in said if "ended by" not in line] == [] and len(said) <= 2, said


def test_hostile_files_of_every_format_within_limits(tmp_path):
    folder, made = tmp_path / "files", []
    folder.mkdir()

    def make(case, name):
        made.append(case)
        return folder / f"{len(made):03}{name}"

    for case, (changes, _) in HOSTILE_NPZ.items():
        npz(make(case, ".npz"), **changes)
    for case, bomb in BOMBS.items():
        bomb(make(case, ".npz"))
    for case, (change, _) in HOSTILE_HDF5.items():
        path = make(case, ".h5ad")
        adata(sparse.csr_matrix(X)).write_h5ad(path)
        edit(path, change)
    for case, (name, content, _) in HOSTILE_TEXT.items():
        make(case, name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = limited(folder)
    assert not said, "\n".join(f"{made[int(line[:3]) - 1]}: {line}" for line in said)


# What a user passes


def noncanonical(dtype=np.int8):
    """The example with each count in two parts, in falling order of columns, and stored zeros."""
    half = X // 2
    data, indices = np.hstack([X - half, half])[:, ::-1], np.tile(np.arange(17), 2)[::-1]
    return sparse.csr_matrix(
        (data.ravel().astype(dtype), np.tile(indices, 23), np.arange(24) * 34), shape=X.shape
    )


def readonly_memmap(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    return np.load(tmp_path / "x.npy", mmap_mode="r")


DENSE = {
    "int64": lambda tmp: X,
    "uint8": lambda tmp: X.astype(np.uint8),
    "float32": lambda tmp: X.astype(np.float32),
    "float64": lambda tmp: X / 1,
    "float16": lambda tmp: X.astype(np.float16),
    "bool": lambda tmp: X > 0,
    "big-endian": lambda tmp: X.astype(">f4"),
    "Fortran order": lambda tmp: np.asfortranarray(X.astype(np.float32)),
    "strided": lambda tmp: np.repeat(X, 2, axis=1).astype(np.float32)[:, ::2],
    "list": lambda tmp: X.tolist(),
    "read-only memory map": readonly_memmap,
    "one cell": lambda tmp: X[:1],
    "one gene": lambda tmp: X[:, :1],
    "no counts": lambda tmp: X * 0,
    "largest": lambda tmp: np.array([[2**24, 2**24 - 1]]),
}
SPARSE = {
    f"{form} {kind}": lambda tmp, form=form, kind=kind: getattr(sparse, f"{form}_{kind}")(
        X.astype(np.float32)
    )
    for form in ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
    for kind in ("matrix", "array")
}
SPARSE |= {
    "int64 values and indices": lambda tmp: sparse.csr_matrix(
        (sparse.csr_matrix(X).data, _indices.astype(np.int64), _indptr.astype(np.int64)),
        shape=X.shape,
    ),
    "bool": lambda tmp: sparse.csr_matrix(X > 0),
    "non-canonical": lambda tmp: noncanonical(),
    "non-canonical columns": lambda tmp: noncanonical().tocsc(),
    "non-canonical triplets": lambda tmp: noncanonical().tocoo(),
    "Counts": lambda tmp: Counts(sparse.csr_array(X), GENES, CELLS),
    "one cell, sparse": lambda tmp: sparse.csr_array(X[:1]),
    "one gene, sparse": lambda tmp: sparse.csc_array(X[:, :1]),
    "AnnData": lambda tmp: adata(sparse.csc_matrix(X)),
    "no counts, sparse": lambda tmp: sparse.csr_array(X.shape),
}


def dense(x):
    x = getattr(x, "X", x)
    return x.toarray() if sparse.issparse(x) else np.array(x)


def stored(x):
    """Everything that a caller could see changed."""
    x = getattr(x, "X", x)
    parts = [
        getattr(x, part)
        for part in ("data", "indices", "indptr", "row", "col", "offsets")
        if hasattr(x, part)
    ]
    return (
        [np.array(part) for part in parts]
        if sparse.issparse(x) and x.format != "dok"
        else [dense(x)]
    )


@pytest.mark.parametrize("case", DENSE)
def test_dense_input(tmp_path, case):
    passed = DENSE[case](tmp_path)
    before = dense(passed)
    result = as_matrix(passed)
    assert type(result) is np.ndarray and result.dtype == np.float32 and result.dtype.isnative
    assert result.flags.c_contiguous
    assert np.array_equal(result, before) and np.array_equal(dense(passed), before)


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_input(tmp_path, case):
    passed = SPARSE[case](tmp_path)
    before, truth = stored(passed), X > 0 if case == "bool" else X
    truth = truth[: 1 if "one cell" in case else 23, : 1 if "one gene" in case else 17] * (
        case != "no counts, sparse"
    )
    names = GENES[: truth.shape[1]], CELLS[: len(truth)]
    check(Counts(as_matrix(passed), *names), *names, truth)
    assert all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for a, b in zip(before, stored(passed), strict=True)
    )


def test_duplicates_do_not_overflow():
    twice = sparse.csr_matrix(([200, 100, True], [1, 1, 0], [0, 3]), shape=(1, 2), dtype=np.uint8)
    for passed in twice, twice.tocsc(), twice.tocoo():
        assert as_matrix(passed).toarray().tolist() == [[1, 300]]


def test_outdated_flags_are_not_believed():
    liar = noncanonical(np.float32)
    liar.has_canonical_format = True
    check(Counts(as_matrix(liar), GENES, CELLS))


def test_no_copy_where_none_is_needed():
    x, s = X.astype(np.float32), sparse.csr_array(X.astype(np.float32))
    assert as_matrix(x) is x and np.shares_memory(as_matrix(s).data, s.data)


def with_entry(value, dtype=np.float64, row=20, column=11):
    x = X.astype(dtype)
    x[row, column] = value
    return x


BAD = {
    "empty": (np.zeros((0, 5)), r"shape \(0, 5\), that is no cells"),
    "no genes": (np.zeros((5, 0)), "no genes"),
    "a vector": (X[0], r"shape \(17,\), must be \(n_cells, n_genes\).*x\[None, :\]"),
    "three dimensions": (X[None], r"shape \(1, 23, 17\)"),
    "a number": (3, r"shape \(\)"),
    "nothing": (None, r"shape \(\)"),
    "ragged": ([[1, 2], [3]], "no matrix of numbers"),
    "text": (np.full((2, 2), "1"), "dtype <U1"),
    "objects": (np.full((2, 2), None), "dtype object"),
    "complex": (X * 1j, "dtype complex128"),
    "dates": (X.astype("datetime64[s]"), "dtype datetime64"),
    "masked": (np.ma.masked_equal(X, 4), "masked array"),
    "NaN": (with_entry(np.nan), r"row 20, column 11 \(from 0\) is nan; counts are finite"),
    "infinite": (with_entry(np.inf, np.float32), "is inf; counts are finite"),
    "negative": (
        with_entry(-3, np.int64),
        r"row 20, column 11 .* is -3(\.0)?, which is negative; counts are whole numbers from 0 up",
    ),
    "fractional": (
        with_entry(0.5),
        r'is 0\.5; .* looks normalised.*adata\.layers\["counts"\].*adata\.raw',
    ),
    "not near enough": (with_entry(3 + 1.1e-4), "is 3.00011; .* looks normalised"),
    "nearly whole before": (with_entry(3 + 1e-9) + with_entry(0.5) - X, "column 11 .* is 3.5"),
    "nearly whole, too large": (with_entry(2.0**24 + 1 - 1e-6), "above 16,777,216"),
    "near to nothing": (X * 1e-7, "e-0[67]; .* looks normalised"),
    "last entry": (with_entry(-1, row=22, column=16), "row 22, column 16"),
    "too large": (
        with_entry(2**24 + 1, np.int64),
        r"is 16777217(\.0)?, above 16,777,216, up to which float32",
    ),
    "too large, unsigned": (with_entry(2**64 - 1, np.uint64), r"is 1\.?84467440737095.*, above"),
    "path": ("nowhere.npz", "nowhere.npz: no such file"),
    "layer": (X, "needs an AnnData object, not "),
}


@pytest.mark.parametrize(
    "form", [np.array, np.asfortranarray, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix]
)
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, form):
    value, message = BAD[case]
    if type(value) is np.ndarray and value.ndim == 2 and value.dtype.kind in "biuf":
        value = form(value)
    elif form is not np.array:
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        as_matrix(value, layer="x" if case == "layer" else None, name="group_a")
    assert case == "path" or str(error.value).startswith("group_a: ")


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("layer", [None, "raw", "counts", "other"])
def test_nobody_is_sent_to_the_layer_that_was_given(tmp_path, layer, backed):
    data = adata(sparse.csr_matrix(X * 0.5), counts=sparse.csr_matrix(X * 0.5), other=X * 0.5)
    data.raw = data.copy()
    data.write_h5ad(tmp_path / "a.h5ad")
    asked = [lambda: as_matrix(data, layer=layer)]
    if backed:
        asked = [lambda: read(tmp_path / "a.h5ad", layer, backed=True).X.block(0)]
    else:
        asked.append(lambda: read(tmp_path / "a.h5ad", layer))
    for ask in asked:
        with pytest.raises(ValueError, match="looks normalised") as error:
            ask()
        _, advice = str(error.value).split("Raw counts are usually ")
        for place in ("counts", "raw"):
            assert (f'layer="{place}"' in advice) == (layer != place)
        assert ("in X" in advice) == (layer is not None)


@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
@pytest.mark.parametrize("off", [1e-9, -1e-9, 9e-5, -9e-5])
def test_what_is_nearly_whole_is_rounded_with_a_note(form, off):
    passed = form(X + off * np.random.default_rng(2).integers(0, 2, X.shape))  # zeros among them
    before = stored(passed)
    with pytest.warns(
        UserWarning, match="^mine: .* less than 0.0001 off a whole number.* were rounded"
    ) as said:
        result = as_matrix(passed, name="mine")
    assert len(said) == 1 and np.array_equal(dense(result), X) and result.dtype == np.float32
    assert not np.signbit(dense(result)).any()
    if sparse.issparse(result):
        check(Counts(result, GENES, CELLS))
    assert all(np.array_equal(a, b) for a, b in zip(before, stored(passed), strict=True))


def test_counts_that_come_back_from_logarithms():
    x = X.astype(np.float32)
    passed = np.expm1(np.log1p(x))
    assert (passed != x).any()
    before = passed.copy()
    with pytest.warns(UserWarning, match="were rounded"):
        assert np.array_equal(as_matrix(passed), x)
    assert np.array_equal(passed, before)


def test_whole_counts_are_taken_without_a_word(recwarn):
    for passed in X / 1, sparse.csr_array(X / 1), np.zeros((3, 2)):
        as_matrix(passed)
    assert not recwarn.list


def test_broken_sparse_matrix_is_refused():
    broken = sparse.csr_matrix(X)
    broken.indices[3] = 99
    with pytest.raises(ValueError, match="counts: a broken sparse matrix"):
        as_matrix(broken)


def test_checks_go_block_by_block(monkeypatch):
    monkeypatch.setattr(C, "BLOCK", 5)
    for x in X, X / 1, sparse.csr_array(X):
        assert np.array_equal(dense(as_matrix(x)), X)
    for x in with_entry(-1), sparse.csr_array(with_entry(-1)):
        with pytest.raises(ValueError, match="row 20, column 11"):
            as_matrix(x)


def test_counts_are_indexed_by_cells_and_by_genes():
    counts = Counts(sparse.csr_array(X.astype(np.float32)), GENES, CELLS, {"type": TYPES})
    assert repr(counts) == "Counts(23 cells x 17 genes; obs: type)"
    for rows in (
        slice(2, 9),
        TYPES == "NK",
        (TYPES == "T").tolist(),
        np.array([7, 2, 2, -1]),
        [3],
        np.arange(0),
    ):
        part = counts[rows]
        assert (
            np.array_equal(part.X.toarray(), X[rows])
            and part.cells.tolist() == CELLS[rows].tolist()
        )
        assert part.obs["type"].tolist() == TYPES[rows].tolist() and len(part) == len(X[rows])
    assert counts[4].shape == (1, 17) and counts[4].cells == [CELLS[4]]
    for genes in slice(2, 9), GENES > GENES[5], np.array([7, 2, 2, -1]):
        part = counts.select_genes(genes)
        assert (
            np.array_equal(part.X.toarray(), X[:, genes])
            and part.genes.tolist() == GENES[genes].tolist()
        )
        assert part.X.has_sorted_indices and part.obs["type"] is counts.obs["type"]
    for rows in np.array([True]), 23, (1, 2):
        with pytest.raises(IndexError):
            counts[rows]
    named = Counts(counts.X, GENES.astype(object), range(23), {"type": list(TYPES)})
    assert (
        named.genes.dtype.kind == "U" and named.cells[1] == "1" and named.obs["type"].shape == (23,)
    )
    with pytest.raises(
        ValueError, match=r"genes has shape \(16,\), needs \(17,\): X is 23 cells x 17 genes"
    ):
        Counts(counts.X, GENES[1:], CELLS)


# Batches

OBS = {"lane": np.array(["b", "a", "b"]), "run": np.array([10, 9, 10])}
BATCHES = [
    (None, None, [0, 0, 0], ["0"]),
    (None, ["x"], [0, 0, 0], ["x"]),
    ("lane", None, [1, 0, 1], ["a", "b"]),
    ([10, 9, 10], None, [1, 0, 1], ["9", "10"]),
    (["10", "9", "10"], None, [0, 1, 0], ["10", "9"]),
    (np.array([2.0, 0.0, 2.0]), None, [1, 0, 1], ["0", "2"]),
    (np.array(["x", 1, "x"], object), None, [1, 0, 1], ["1", "x"]),
    ([0, 2, 0], range(3), [0, 2, 0], ["0", "1", "2"]),
    (["1", "0", "1"], (0, 1), [1, 0, 1], ["0", "1"]),
    ("lane", ["b", "z", "a"], [0, 2, 0], ["b", "z", "a"]),
    ([True, False, True], None, [1, 0, 1], ["False", "True"]),
]


@pytest.mark.parametrize("batch, known, codes, names", BATCHES)
def test_batch_codes(batch, known, codes, names):
    found = C.batch_codes(batch, 3, known=known, obs=OBS)
    assert found[0].tolist() == codes and found[1] == names and found[0].dtype.kind == "i"


def test_batch_codes_from_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"lane": pandas.Categorical(OBS["lane"])})
    with pytest.raises(ValueError, match="no obs column 'lame'; there are: lane"):
        C.batch_codes("lame", 3, obs=frame)
    for batch in "lane", frame["lane"], frame["lane"].astype(object):
        assert C.batch_codes(batch, 3, obs=frame)[1] == ["a", "b"]


BAD_BATCHES = [
    ([1, 2], None, r"has shape \(2,\), must be one label for each of 3 cells"),
    (1, None, r"has shape \(\)"),
    ("lame", None, "no obs column 'lame'; there are: lane, run"),
    (None, ["x", "y"], "the model knows x, y"),
    (["x", "q", "r"], ["x", "y"], "batch: q, r unknown; the model knows x, y"),
    ([1, 2, 3], range(3), "batch: 3 unknown"),
    ([1, None, 2], None, "1 of 3 cells has no label, the first of them cell 1"),
    ([1, 0.5, 2], None, "cell 0 has the label 1.0"),
    (np.array(["a", np.nan, "b"], object), None, "1 of 3 cells has no label, .* cell 1"),
    ([1, np.nan, np.nan], None, "2 of 3 cells have no label, the first of them cell 1"),
    (pandas.array([1, None, 2], dtype="Int64"), None, "1 of 3 cells has no label, .* cell 1"),
    (np.array(["a", (), "b"], object), None, r"cell 1 has the label \(\)"),
]


@pytest.mark.parametrize("batch, known, message", BAD_BATCHES)
def test_bad_batches(batch, known, message):
    with pytest.raises(ValueError, match=message):
        C.batch_codes(batch, 3, known=known, obs=OBS)
    with pytest.raises(ValueError, match="no obs column 'lane'; there are: none"):
        C.batch_codes("lane", 3)


# What is known of genes, names from it, and rounding

SYMBOLS = np.array([f"Sym{g}" for g in range(17)])


def with_genes(path):
    """An .h5ad with Ensembl ids as index and symbols beside, of which two are missing."""
    data = adata(sparse.csr_matrix(X))
    data.var["feature_name"] = np.where(np.arange(17) % 8 == 1, None, SYMBOLS)
    data.var["highly_variable"] = np.arange(17) % 3 == 0
    data.write_h5ad(path)


@pytest.mark.parametrize("reader", [read, guarded.read])
def test_names_of_genes_from_a_column(tmp_path, reader):
    with_genes(tmp_path / "a.h5ad")
    expected = np.where(np.arange(17) % 8 == 1, GENES, SYMBOLS)
    for options in {}, {"backed": True}:
        counts = reader(tmp_path / "a.h5ad", gene_names="feature_name", **options)
        assert counts.genes.tolist() == expected.tolist()
        assert counts.var["highly_variable"].tolist() == [g % 3 == 0 for g in range(17)]
        assert counts.var["feature_name"][1] is None
    with pytest.raises(
        ValueError, match=r"gene_names='symbol': .*; there are: feature_name, highl"
    ):
        reader(tmp_path / "a.h5ad", gene_names="symbol")


@pytest.mark.parametrize("form", ["2", "3", "folder"])
def test_identifiers_of_10x_genomics(tmp_path, form):
    if form == "folder":
        write_folder(tmp_path, 3)
        path = tmp_path
    else:
        path = tmp_path / "a.h5"
        write_tenx(path, int(form), antibodies=2 * (form == "3"))
    ids = [f"ENSG{g}" for g in range(17)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of antibodies left out
        check(read(path, gene_names="gene_ids"), genes=ids)
        assert read(path).var["gene_ids"].tolist() == ids


def test_what_is_known_of_genes_goes_with_them(tmp_path):
    with_genes(tmp_path / "a.h5ad")
    counts = read(tmp_path / "a.h5ad")
    assert counts[3:9].var["highly_variable"].tolist() == [g % 3 == 0 for g in range(17)]
    chosen = counts.select_genes([4, 3])
    assert chosen.var["feature_name"].tolist() == ["Sym4", "Sym3"]
    turned = read(tmp_path / "a.h5ad", transpose=True)
    assert turned.obs["feature_name"][2] == "Sym2" and turned.var["lane"].tolist() == TYPES.tolist()
    with pytest.raises(ValueError, match=r"var\['n'\] has shape \(3,\), needs \(17,\)"):
        Counts(counts.X, GENES, CELLS, var={"n": np.arange(3)})


def test_to_anndata_is_what_scanpy_takes(tmp_path):
    with_genes(tmp_path / "a.h5ad")
    for options in {}, {"backed": True}:
        counts = read(tmp_path / "a.h5ad", **options)
        counts.genes[4] = counts.genes[3]
        counts.obs["type"] = np.where(np.arange(23) == 4, None, TYPES)
        data = counts.to_anndata()
        assert type(data.X) is sparse.csr_matrix and np.array_equal(data.X.toarray(), X)
        assert list(data.obs_names) == CELLS.tolist() and data.var_names[4] == f"{GENES[3]}-1"
        assert data.obs["type"].isna().tolist() == [i == 4 for i in range(23)]
        assert data.obs["donor"].tolist() == [i % 2 for i in range(23)]
        assert data.var["highly_variable"].tolist() == [g % 3 == 0 for g in range(17)]
        data.write_h5ad(tmp_path / "b.h5ad")
        scanpy = pytest.importorskip("scanpy")
        scanpy.pp.normalize_total(data, target_sum=100)
        assert sparse.issparse(data.X)
        totals = np.asarray(data.X.sum(axis=1)).ravel()
        np.testing.assert_allclose(totals, 100.0 * (X.sum(axis=1) > 0), rtol=1e-5)
        scanpy.pp.log1p(data)
        assert type(data.X) is sparse.csr_matrix
        scanpy.pp.pca(data, n_comps=3)
        assert data.obsm["X_pca"].shape == (23, 3)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.array])
@pytest.mark.parametrize("backed", [False, True])
def test_fractions_are_rounded_when_asked_for(tmp_path, form, backed):
    if backed and form is sparse.csc_matrix:
        return
    less = np.maximum(X - 0.3, 0)  # ambient RNA, taken away
    adata(form(less)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"CellBender, can be rounded: read\(\.\.\., rounded=True"):
        pieces_of(read(tmp_path / "a.h5ad", backed=backed, rounded=False))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        counts = read(tmp_path / "a.h5ad", rounded=True, backed=backed)
    found = pieces_of(counts)
    assert np.array_equal(found, round_counts(less))  # wherever it lies, and every time
    assert np.all(np.abs(found - less) < 1) and np.any(found < less) and np.any(found > less)
    if not backed:
        total, n = less.sum(), np.sum(less > 0)
        message = f"{n} of {n} entries went up or down .* from {total:,.1f} to {found.sum():,.0f}"
        assert len(said) == 1 and re.search(message, str(said[0].message))
    adata(form(X - 1.0)).write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match="is -1.0, which is negative") as error:
        pieces_of(read(tmp_path / "b.h5ad", rounded=True, backed=backed))
    assert "can be rounded" not in str(error.value)  # of what is below 0


def with_antibodies(path):
    """The example with two antibodies among its genes, as scanpy's read_10x_h5(gex_only=False) has
    them, in a file of the kind that the path says.
    """
    anndata = pytest.importorskip("anndata")
    columns = [*range(5), 17, *range(5, 17), 18]
    matrix = np.hstack([X, np.full((23, 2), 400)])[:, columns]
    kinds = np.array(["Gene Expression"] * 17 + ["Antibody Capture"] * 2)[columns]
    names = np.array([*GENES, "CD3", "CD4"])[columns]
    var = pandas.DataFrame({"feature_types": pandas.Categorical(kinds)}, index=names)
    obs = pandas.DataFrame({"type": TYPES}, index=CELLS)
    data = anndata.AnnData(sparse.csr_matrix(matrix), obs=obs, var=var)
    if path.suffix == ".loom":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["matrix"] = matrix.T
            file["row_attrs/Gene"], file["col_attrs/CellID"] = names.tolist(), CELLS.tolist()
            file["row_attrs/feature_types"] = kinds.tolist()
            file.create_group("layers")
    elif path.suffix == ".npz":
        npz(path, **vars_of(sparse.csr_matrix(matrix)), genes=names, feature_types=kinds)
    elif path.suffix == ".zarr":
        pytest.importorskip("zarr", minversion="3")
        data.write_zarr(path)
    else:
        data.raw = data
        data.write_h5ad(path)
    return data


def vars_of(matrix):
    """What `npz` calls the parts of a CSR matrix."""
    parts = dict(data=matrix.data, indices=matrix.indices, indptr=matrix.indptr)
    return dict(parts, shape=np.array(matrix.shape), lengths=None)


LEFT_OUT = "of 19 features 17 are 'Gene Expression'; left out, as they are no genes: 2 'Antibody"


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.h5ad", {}),
        ("a.h5ad", {"layer": "raw"}),
        ("a.h5ad", {"backed": True}),
        ("a.zarr", {}),
        ("a.loom", {}),
        ("a.npz", {}),
    ],
)
@pytest.mark.parametrize("read", [read, guarded.read])
def test_antibodies_are_left_out_of_every_format_with_a_word(tmp_path, name, options, read):
    with_antibodies(tmp_path / name)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        counts = read(tmp_path / name, **options)
    assert counts.genes.tolist() == GENES.tolist() and np.array_equal(pieces_of(counts), X)
    assert set(counts.var["feature_types"]) == {"Gene Expression"}
    counts.X = sparse.csr_array(pieces_of(counts))
    check(counts)


def test_features_of_one_kind_are_all_read(tmp_path):
    """Antibodies alone are a file of antibodies, and other columns of genes say other things."""
    data = with_antibodies(tmp_path / "a.h5ad")
    proteins = data[:, ["CD3", "CD4"]].copy()
    proteins.write_h5ad(tmp_path / "b.h5ad")
    data.var["feature_type"] = ["lncRNA"] * 18 + ["Gene Expression"]  # as CELLxGENE has it
    del data.var["feature_types"]
    data.write_h5ad(tmp_path / "c.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "b.h5ad").shape == (23, 2)
        assert read(tmp_path / "c.h5ad").shape == (23, 19)


def pieces_of(counts):
    """The matrix of counts, dense, wherever it lies."""
    return sparse.vstack([sparse.csr_array(part) for _, part in pieces(counts.X)]).toarray()


# Normalising and selecting

FORMS = pytest.mark.parametrize("form", [np.array, sparse.csr_array])


@FORMS
def test_totals(form):
    big = np.array([[2**24, 1, 1], [0, 0, 0]])
    assert (
        C.library_size(form(big)).tolist() == [2**24 + 2, 0]
        and C.library_size(form(big)).dtype == np.float64
    )
    assert C.empty_cells(form(X)).tolist() == [c == 5 for c in range(23)]


@FORMS
@pytest.mark.parametrize("target_sum", [None, 1, 1e4])
def test_normalize(form, target_sum):
    passed = form(X)
    result = C.normalize(passed, target_sum)
    assert sparse.issparse(result) == sparse.issparse(passed) and result.dtype == np.float32
    assert np.array_equal(dense(passed), X)
    total = X.sum(axis=1)
    scale = np.median(total[np.arange(23) != 5]) if target_sum is None else target_sum
    truth = np.array([[scale * X[c, g] / max(total[c], 1) for g in range(17)] for c in range(23)])
    np.testing.assert_allclose(dense(result), truth, rtol=1e-6)
    logged = C.log1p(result)
    assert sparse.issparse(logged) == sparse.issparse(passed) and logged.dtype == np.float32
    np.testing.assert_allclose(dense(logged), np.log1p(truth), rtol=1e-6)


def test_normalize_does_not_share_what_it_returns():
    passed = sparse.csr_array(X.astype(np.float32))
    result = C.normalize(passed)
    for part in "data", "indices", "indptr":
        assert not np.shares_memory(getattr(passed, part), getattr(result, part))


def test_normalize_of_nothing_and_to_nothing():
    assert not C.normalize(np.zeros((3, 2))).any()
    for target_sum in 0, -1, np.inf, np.nan:
        with pytest.raises(ValueError, match="target_sum must be positive and finite"):
            C.normalize(X, target_sum)


def top(score, n):
    return sorted(sorted(range(len(score)), key=lambda g: (-score[g], g))[:n])


@FORMS
def test_highest_variance(form):
    score = [np.mean((X[:, g] - X[:, g].mean()) ** 2) for g in range(17)]
    for n in 1, 5, 17:
        assert C.highest_variance(form(X), n).tolist() == top(score, n)
    ties = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    assert C.highest_variance(form(ties), 2).tolist() == [0, 1]


@FORMS
@pytest.mark.parametrize("theta", [100, 1, np.inf])
def test_pearson_residual_variance(form, theta, monkeypatch):
    x = X.copy()
    x[7, 8], x[9] = 4000, 0  # a residual that is clipped, and a second empty cell
    score = []
    for g in range(17):
        residuals = []
        for c in range(23):
            mu = x[c].sum() * x[:, g].sum() / x.sum()
            residual = (x[c, g] - mu) / (mu + mu**2 / theta) ** 0.5 if mu else 0
            residuals.append(max(-(23**0.5), min(23**0.5, residual)))
        score.append(np.var(residuals))
    for block in 2**20, 10:
        monkeypatch.setattr(C, "BLOCK", block)
        for n in 1, 4, 9, 16:
            assert C.pearson_residual_variance(form(x), n, theta).tolist() == top(score, n)


@FORMS
@pytest.mark.parametrize("select", [C.highest_variance, C.pearson_residual_variance])
def test_genes_are_chosen_within_batches(form, select):
    """Genes 0 to 9 differ between types of cells, 10 to 29 only between batches, and far more."""
    rng = np.random.default_rng(0)
    batch, kind = np.arange(300) % 3, np.arange(300) // 3 % 2
    rates = np.full((300, 60), 4.0)
    rates[:, :10] *= np.where(kind == 1, 3.0, 1.0)[:, None]
    rates[:, 10:30] *= np.array([0.1, 1.0, 3.5])[batch][:, None]
    x = form(rng.poisson(rates))
    assert set(select(x, 10).tolist()) - set(range(10))  # batches get in the way
    assert select(x, 10, batch=batch).tolist() == list(range(10))
    assert select(x, 7, batch=np.zeros(300)).tolist() == select(x, 7).tolist()
    alone = np.where(np.arange(300) == 0, 9, batch)  # a batch of one cell has no say
    assert select(x, 10, batch=alone).tolist() == list(range(10))
    with pytest.raises(ValueError, match="no batch has two cells"):
        select(x, 3, batch=np.arange(300))
    with pytest.raises(ValueError, match=r"batch: has shape \(2,\), must be one of each of 300"):
        select(x, 3, batch=[0, 1])


def test_ranks_within_batches_are_those_of_the_rule():
    """By brute force: most batches in which a gene is among the first n, then the median rank."""
    rng = np.random.default_rng(1)
    x = rng.poisson(rng.gamma(1.0, 3.0, (4, 1, 25)), (4, 30, 25)).reshape(120, 25)
    batch = np.repeat(np.arange(4), 30)
    ranks = []
    for b in range(4):
        variance = x[batch == b].var(axis=0)
        ranks.append([sum(other > v for other in variance) for v in variance])
    ranks = np.array(ranks)
    for n in (1, 5, 12):
        order = sorted(range(25), key=lambda g: (-sum(ranks[:, g] < n), np.median(ranks[:, g])))
        assert C.highest_variance(x, n, batch=batch).tolist() == sorted(order[:n])


@pytest.mark.parametrize("select", [C.highest_variance, C.pearson_residual_variance])
def test_bad_selection(select):
    for n in 0, 18:
        with pytest.raises(
            ValueError, match=f"n must be from 1 to the 17 genes that there are, not {n}"
        ):
            select(X, n)
    with pytest.raises(ValueError, match="theta must be positive"):
        C.pearson_residual_variance(X, 3, theta=0)


# Writing back


def test_annotate_h5ad(tmp_path):
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    before = adata(sparse.csr_matrix(X), counts=X)
    before.obsm["X_pca"], before.uns["note"] = np.ones((23, 2)), "kept"
    before.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    z, mu = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32), X / 7
    C.annotate_h5ad(
        tmp_path / "a.h5ad",
        tmp_path / "b.h5ad",
        obsm={"X_scVI": z},
        obs={"cluster": TYPES, "donor": np.arange(23), "score": list(range(23))},
        layers={"denoised": mu, "counts": sparse.csr_matrix(X)},
    )
    after = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert np.array_equal(after.obsm["X_scVI"], z) and np.array_equal(after.layers["denoised"], mu)
    assert list(after.obs) == ["type", "donor", "lane", "cluster", "score"]
    assert after.obs["cluster"].tolist() == TYPES.tolist()
    assert after.obs["donor"].tolist() == after.obs["score"].tolist() == list(range(23))
    assert after.uns["note"] == "kept" and np.array_equal(after.obsm["X_pca"], np.ones((23, 2)))
    assert np.array_equal(after.X.toarray(), X) and sparse.issparse(after.layers["counts"])
    pandas.testing.assert_frame_equal(
        anndata.read_h5ad(tmp_path / "a.h5ad").obs, before.obs
    )  # the file that was read
    C.annotate_h5ad(
        tmp_path / "b.h5ad", tmp_path / "b.h5ad", obsm={"X_scVI": 2 * z}
    )  # onto itself, replacing
    assert np.array_equal(anndata.read_h5ad(tmp_path / "b.h5ad").obsm["X_scVI"], 2 * z)
    assert check(read(tmp_path / "b.h5ad")).obs["cluster"].tolist() == TYPES.tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"a.h5ad", "b.h5ad"}


@pytest.mark.parametrize(
    "added",
    [
        dict(obsm={"z": np.ones((22, 2))}),
        dict(obs={"z": np.ones(24)}),
        dict(obs={"z": np.ones((23, 2))}),
        dict(layers={"z": X.T}),
        dict(obsm={"a/b": np.ones((23, 2))}),
        dict(obs={"fine": TYPES}, layers={"z": object}),
    ],
)
def test_annotate_h5ad_writes_whole_or_not_at_all(tmp_path, added):
    adata().write_h5ad(tmp_path / "a.h5ad")
    content = (tmp_path / "a.h5ad").read_bytes()
    with pytest.raises(
        ValueError, match=r"\['(z|a/b)'\] has shape .* is \(23, 17\); pass one row per cell"
    ):
        C.annotate_h5ad(tmp_path / "a.h5ad", tmp_path / "a.h5ad", **added)
    assert (tmp_path / "a.h5ad").read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_annotate_needs_an_h5ad_file(tmp_path):
    pytest.importorskip("anndata")
    (tmp_path / "a.h5ad").write_text("x")
    write_loom(tmp_path / "a.loom")
    for name in "a.h5ad", "none.h5ad", "a.loom":
        with pytest.raises(ValueError, match=f"{name}: .*no .h5ad file"):
            C.annotate_h5ad(tmp_path / name, tmp_path / "b.h5ad", obsm={})
    assert len(list(tmp_path.iterdir())) == 2


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])


def test_raw_is_read_where_it_is_asked_for_and_there():
    """A layer that does not exist is an error, with raw counts or without."""
    data = adata(sparse.csr_matrix(X))
    for layer in ("raw", "count"):
        with pytest.raises(ValueError, match=f"counts: no layer '{layer}'; there are the layers"):
            as_matrix(data, layer=layer)
    data.raw = data
    np.testing.assert_array_equal(as_matrix(data, layer="raw").toarray(), X)
    with pytest.raises(ValueError, match="counts: no layer 'count'; there are the layers"):
        as_matrix(data, layer="count")


def test_the_largest_count_beside_one_that_is_nearly_whole():
    near = np.array([[2.0**24, 2.0**24 + 5e-5, 1.00005, -5e-5]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they were rounded
        np.testing.assert_array_equal(as_matrix(near), [[2**24, 2**24, 1, 0]])
    for far in (2.0**24 + 1, 1.0002, -2e-4):
        with pytest.raises(ValueError, match="column 4"):
            as_matrix(np.append(near, far)[None])


@pytest.mark.parametrize(
    "values, kept",
    [
        (np.array([1.0, np.nan, 3.0]), [0, 2]),
        (np.array([1, 2, 3]), [0, 1, 2]),
        (np.array(["T", None, np.nan], object), [0]),
        (np.array(["T", "NA", ""]), [0]),
        (np.array(["none", " nan ", "na"]), [0, 2]),  # "none" may be an answer
        (pandas.array(["T", None, "B"], dtype="string"), [0, 2]),
        (pandas.array([1, 2, None], dtype="Int64"), [0, 1]),
        (pandas.Categorical(["T", "B", None]), [0, 1]),
        (pandas.to_datetime(["2024-01-31", None, "2024-02-01"]), [0, 2]),
    ],
)
def test_cells_that_have_a_value(values, kept):
    counts = C.Counts(sparse.csr_array(X[:3]), GENES, CELLS[:3], {"column": values, "all": [1] * 3})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = counts.annotated(["all", "column"])
    assert found.cells.tolist() == CELLS[kept].tolist()
    assert found.X.toarray().tolist() == X[kept].tolist()
    said = [str(warning.message) for warning in caught]
    assert len(said) == (len(kept) < 3)
    if said:
        assert said[0].startswith(
            f"{3 - len(kept)} of 3 cells {'has' if len(kept) == 2 else 'have'} no value in the column"
        )


def test_of_cells_without_a_value_some_must_be_left():
    obs = {"a": np.array([1.0, np.nan]), "b": np.array(["", "T"])}
    counts = C.Counts(sparse.csr_array(X[:2]), GENES, CELLS[:2], obs)
    with pytest.raises(ValueError, match="columns: no cell has a value in all of a, b"):
        with pytest.warns(UserWarning):
            counts.annotated(["a", "b"])
    with pytest.raises(ValueError, match="columns: no obs column 'c'; there are: a, b"):
        counts.annotated("c")
    counts.obs["type"] = np.array(["NA", ""])
    with pytest.raises(ValueError, match="columns: no cell has a value in all of type$"):
        with pytest.warns(UserWarning):
            counts.annotated("type")


def test_dates_are_labels_and_one_that_is_missing_is_none():
    dates = pandas.to_datetime(["2024-01-31", "2023-12-01", "2024-01-31"])
    for values in (dates, pandas.Series(dates), dates.to_numpy().astype("M8[D]")):
        codes, names = C.batch_codes(values, 3)
        assert codes.tolist() == [1, 0, 1] and names == ["2023-12-01", "2024-01-31"]
    for values in (pandas.to_datetime(["2024-01-31", None]), np.array(["NaT", "2024-01"], "M8[M]")):
        with pytest.raises(ValueError, match="batch: 1 of 2 cells has no label"):
            C.batch_codes(values, 2)


def test_errors_about_labels_name_the_cell():
    for values in ([0.5, 1.0, 2.0], ["a", None, "b"]):
        with pytest.raises(ValueError, match=r"batch: .*cell [01] \('c[01]'\)"):
            C.batch_codes(np.array(values, object), 3, cells=["c0", "c1", "c2"])

"""Fractions in files of counts: which are taken, how they become whole numbers, what is refused."""

import re
import warnings

import numpy as np
import pytest
from scipy import sparse

from minigrad.data import pieces
from models import counts as C
from models import fractions, guarded
from models.counts import as_matrix, read, round_counts

N_CELLS, N_GENES = 240, 120


def simulated(n_cells=N_CELLS, seed=0):
    """Counts as of 10x Genomics: most are 0 to 2, cells differ in depth, genes in how strong they
    are, 12 % of the reads are ambient. (counts, what of them is ambient on average).
    """
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(N_GENES, 0.7))
    library = rng.lognormal(np.log(150), 0.4, (n_cells, 1))
    own = np.array([rng.dirichlet(200 * p + 0.05) for _ in range(4)])[rng.integers(0, 4, n_cells)]
    counts = rng.poisson(library * (0.88 * own + 0.12 * p)).astype(float)
    return counts, 0.12 * library * p


X, AMBIENT = simulated()
TOTAL = X.sum(axis=1, keepdims=True)
CP10K = 1e4 * X / TOTAL
SOME = slice(10, None, 2)  # genes chosen after normalisation
LENGTHS = np.random.default_rng(1).lognormal(7.5, 0.7, N_GENES)
TPM = 1e6 * (X / LENGTHS) / (X / LENGTHS).sum(axis=1, keepdims=True)
SIZE = TOTAL / TOTAL.mean() * np.random.default_rng(2).lognormal(0, 0.2, (N_CELLS, 1))


def fractions_of_reads(share, seed=0):
    """Of some entries the reads are shared with other genes, as EM shares them."""
    rng = np.random.default_rng(seed)
    return X + (X > 0) * (rng.random(X.shape) < share) * rng.uniform(-0.5, 0.5, X.shape)


def of_neighbours():
    """Each cell the mean of the 15 cells that are most like it, as MAGIC and others impute."""
    z = np.sqrt(CP10K)
    distance = ((z[:, None] - z) ** 2).sum(axis=2)
    return z[np.argsort(distance, axis=1)[:, :15]].mean(axis=1)


TAKEN = {
    "SoupX": np.maximum(X - AMBIENT, 0),
    "decontX": X * (X * 0.88) / np.maximum(X * 0.88 + AMBIENT, 1e-9),
    "alevin, kallisto": fractions_of_reads(0.15),
    "RSEM, two decimals": np.round(fractions_of_reads(0.4), 2),
    "STARsolo's unique and multiple": X + (X > 0) * (np.arange(N_GENES) % 9 == 0) / 3,
}
REFUSED = {  # and what of them is sure, so that it is refused whatever the user says
    "per 10,000": (CP10K, "all cells have the same total"),
    "log1p of it": (np.log1p(CP10K), "all cells have the same total"),
    "of some genes": (CP10K[:, SOME], "values of each cell are multiples of one number"),
    "log1p of some genes": (np.log1p(CP10K)[:, SOME], "each cell are multiples of one number"),
    "log10 of some genes": (np.log10(CP10K + 1)[:, SOME], "each cell are multiples"),
    "two decimals": (np.round(np.log1p(CP10K), 2)[:, SOME], None),
    "scran": (np.log2(X / SIZE + 1), "values of each cell are multiples of one number"),
    "log1p of counts": (np.log1p(X), r"whole numbers again where np.expm1 is taken"),
    "log2 of counts": (np.log2(X + 1), r"whole numbers again where 2\*\*x - 1 is taken"),
    "roots": (np.sqrt(X), r"whole numbers again where x\*\*2 is taken"),
    "arcsinh": (np.arcsinh(X), r"whole numbers again where np.sinh is taken"),
    "roots of per 10,000": (np.sqrt(CP10K), "all cells have the same total"),
    "TPM": (TPM, "all cells have the same total"),
    "log2 TPM of some genes": (np.log2(TPM + 1)[:, SOME], None),
    "CLR": (np.log1p(X / np.exp(np.log1p(X).mean(axis=1, keepdims=True))), "each cell are"),
    "CLR by gene": (np.log1p(X / np.exp(np.log1p(X).mean(axis=0))), "each gene are multiples"),
    "scaled, not centred": (X / (X.std(axis=0) + 1e-9), "values of each gene are multiples"),
    "scaled logarithms": (np.log1p(CP10K) / (np.log1p(CP10K).std(axis=0) + 1e-9), None),
    "unit length": (np.log1p(CP10K) / np.linalg.norm(np.log1p(CP10K), axis=1)[:, None], "all cell"),
    "imputed": (of_neighbours(), None),
    "batch effect removed of logarithms": (
        np.maximum(
            np.log1p(CP10K) + np.random.default_rng(3).normal(0, 0.3, (N_CELLS, N_GENES)), 0
        ),
        None,
    ),
    "log1p of what SoupX left": (np.log1p(TAKEN["SoupX"]), None),
    "roots of what SoupX left": (np.sqrt(TAKEN["SoupX"]), None),
    "means of three cells": ((X + np.roll(X, 1, axis=0) + np.roll(X, 2, axis=0)) / 3, None),
    "noise on all": (X + np.random.default_rng(4).gamma(0.5, 0.1, X.shape), None),
    "counts of some cells, logarithms of others": (
        np.where(np.arange(N_CELLS)[:, None] < 200, X, np.log1p(CP10K)),
        "all cells have the same total",
    ),
    "counts of some cells, log2 TPM of few genes of others": (
        np.where(np.arange(N_CELLS)[:, None] < 200, X, np.log2(TPM + 1))[:, SOME],
        None,
    ),
    "counts of some genes, logarithms of others": (
        np.where(np.arange(N_GENES) < 90, X, np.log1p(CP10K)),
        "of .* genes the values of each cell are multiples",
    ),
}
SURE = [name for name, (_, reason) in REFUSED.items() if reason]


def written(path, values):
    """An .npz or .h5ad of some values, as read takes it."""
    names = [f"g{g}" for g in range(values.shape[1])], [f"c{c}" for c in range(values.shape[0])]
    if path.suffix == ".npz":
        x = sparse.csr_array(values.astype(np.float32))
        parts = dict(data=x.data, indices=x.indices, indptr=x.indptr, shape=np.array(x.shape))
        np.savez(path, genes=np.array(names[0]), cells=np.array(names[1]), **parts)
        return path
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    anndata.AnnData(
        sparse.csr_matrix(values.astype(np.float32)),
        obs=pandas.DataFrame(index=names[1]),
        var=pandas.DataFrame(index=names[0]),
    ).write_h5ad(path)
    return path


def whole(counts):
    """The matrix of counts, dense, wherever it lies."""
    return sparse.vstack([sparse.csr_array(part) for _, part in pieces(counts.X)]).toarray()


# ------------------------------------------------------------------------------- which are taken
@pytest.mark.parametrize("name", TAKEN)
def test_corrected_counts_are_taken_and_rounded(tmp_path, name):
    values = TAKEN[name].astype(np.float32)
    path = written(tmp_path / "a.npz", values)
    with pytest.warns(UserWarning) as said:
        counts = read(path)
    found = whole(counts)
    assert np.array_equal(found, np.rint(found)) and np.all(np.abs(found - values) < 1)
    n = np.sum(np.abs(values - np.rint(values)) > 1e-4)
    stored = np.count_nonzero(values)
    (text,) = [str(warning.message) for warning in said]
    assert text.startswith(f"{path}: {n:,} of {stored:,} entries went up or down to whole numbers")
    totals = f"their total from {values.sum(dtype=float):,.1f} to {found.sum(dtype=float):,.1f}"
    assert totals in text and "varies by f (1 - f) more" in text and "rounded=False" in text
    with pytest.warns(UserWarning) as said:
        np.testing.assert_array_equal(whole(read(path, rounded=True)), found)
    (text,) = [str(warning.message) for warning in said]
    assert text.endswith(")") and totals in text and "likelihood" not in text  # in few words
    with pytest.raises(ValueError, match=r"a.npz: row 0, .*can be rounded: read\(\.\.\., rounded="):
        read(path, rounded=False)


@pytest.mark.parametrize("name", REFUSED)
def test_what_comes_of_no_counts_is_refused(tmp_path, name):
    values, reason = REFUSED[name]
    path = written(tmp_path / "a.npz", values)
    expected = reason or "lie just below whole numbers no more often than elsewhere"
    with pytest.raises(ValueError, match=f"a.npz: .*{expected}.*Raw counts are usually in"):
        read(path)
    if reason:
        with pytest.raises(ValueError, match=f"a.npz: .*{expected}.*rounding does not bring back"):
            read(path, rounded=True)
    else:  # the user may know better
        with pytest.raises(ValueError, match=r"say so: read\(\.\.\., rounded=True"):
            read(path)
        with pytest.warns(UserWarning, match="went up or down"):
            found = whole(read(path, rounded=True))
        assert np.array_equal(found, round_counts(values.astype(np.float32)))


def test_values_below_0_are_the_fault_that_is_named(tmp_path):
    """Of z-scores, residuals and what batch effects were removed of: nothing is rounded."""
    logs = np.log1p(CP10K)
    scores = (logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9)
    path = written(tmp_path / "a.npz", scores)
    for rounded in (None, True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match="which|looks normalised or scaled") as error:
                read(path, rounded=rounded)
        assert rounded is False or re.search(r"is -\d", str(error.value))


def test_halves_are_taken_for_counts_where_the_user_says_so(tmp_path):
    path = written(tmp_path / "a.npz", X / 2)
    with pytest.raises(ValueError, match="no more often than elsewhere"):
        read(path)
    with pytest.warns(UserWarning, match="went up or down"):
        assert np.array_equal(whole(read(path, rounded=True)), round_counts(X / 2))


def test_few_cells_with_fractions_among_many_without_are_looked_at(tmp_path):
    """Of 2,000 cells 5 are normalised."""
    counts = np.tile(X, (9, 1))[:2000]
    counts[1500:1505] = np.log1p(CP10K[:5])
    with pytest.raises(ValueError, match="all cells have the same total"):
        read(written(tmp_path / "a.npz", counts))


# ------------------------------------------------------------------------------------- consistency
@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """An .h5ad of 3,000 cells from which ambient RNA was taken away, and its values."""
    counts, ambient = simulated(3000, seed=5)
    values = np.maximum(counts - ambient, 0).astype(np.float32)
    path = tmp_path_factory.mktemp("corrected") / "a.h5ad"
    return written(path, values), values


def test_the_same_counts_in_memory_on_the_disk_and_in_a_process_of_its_own(corrected):
    path, values = corrected
    expected = round_counts(values)
    for reader in read, guarded.read:
        for backed in False, True:
            with pytest.warns(UserWarning, match="went up or down") as said:
                counts = reader(path, backed=backed)
                found = whole(counts)
                again = whole(counts)
            assert len(said) == 1, [str(warning.message) for warning in said]
            assert np.array_equal(found, expected) and np.array_equal(again, expected)
    assert len(counts.X.bounds) > 2  # of several blocks


def test_the_same_counts_whichever_way_round_the_file_has_them_and_of_several(tmp_path):
    values = TAKEN["SoupX"].astype(np.float32)
    expected = round_counts(values)
    written(tmp_path / "a.npz", values)
    written(tmp_path / "turned.npz", np.ascontiguousarray(values.T))
    other = written(tmp_path / "b.npz", TAKEN["decontX"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was rounded
        assert np.array_equal(whole(read(tmp_path / "turned.npz", transpose=True)), expected)
        joined = whole(read([tmp_path / "a.npz", other]))
        assert np.array_equal(joined[:N_CELLS], expected)
        assert np.array_equal(joined[N_CELLS:], whole(read(other)))


def test_fractions_that_are_met_late_on_the_disk_are_a_warning_then(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "AT_FIRST", 1)
    values = np.tile(X, (40, 1))
    for late, expected in ((TAKEN["SoupX"], "went up or down"), (np.log1p(CP10K), None)):
        values[-N_CELLS:] = late
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            counts = read(written(tmp_path / "a.h5ad", values), backed=True)
        assert len(counts.X.bounds) > 3
        if expected is None:
            with pytest.raises(ValueError, match="a.h5ad: all cells have the same total"):
                whole(counts)
        else:
            with pytest.warns(UserWarning, match=expected) as said:
                found = whole(counts)
            assert len(said) == 1
            assert np.array_equal(found, round_counts(values.astype(np.float32)))


def test_whole_counts_on_the_disk_are_read_without_a_word(tmp_path, recwarn):
    path = written(tmp_path / "a.h5ad", X)
    assert np.array_equal(whole(read(path, backed=True)), X) and not recwarn.list


def test_what_is_no_file_is_not_rounded(corrected):
    """Whoever passes an array is told how to round it."""
    path, values = corrected
    anndata = pytest.importorskip("anndata")
    for passed in values, sparse.csr_array(values), anndata.read_h5ad(path):
        with pytest.raises(ValueError, match=r"models.counts.round_counts\(matrix\)"):
            as_matrix(passed)
    opened = anndata.read_h5ad(path, backed="r")
    with pytest.raises(ValueError, match=r"models.counts.round_counts\(matrix\)"):
        for _ in pieces(as_matrix(opened, on_disk=True)):
            pass


# ---------------------------------------------------------------------------------------- rounding
@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix, sparse.csc_array])
def test_rounding_keeps_means_whole_numbers_and_what_is_wrong(form):
    p = np.array([0.05, 0.3, 0.5, 0.9, 2.25, 7.0, 3.0 - 1e-6])
    n = 20000
    found = sparse.csr_array(round_counts(form(np.tile(p, (n, 1))))).toarray()
    assert set(np.unique(found)) == {0.0, 1.0, 2.0, 3.0, 7.0} and found.dtype == np.float32
    assert np.all(found[:, 5] == 7) and np.all(found[:, 6] == 3)
    error = np.sqrt((p % 1) * (1 - p % 1) / n)[:5]  # of a Bernoulli's mean
    assert np.all(np.abs(found.mean(axis=0) - p)[:5] < 4 * error)
    up = found[:, :4]  # neither genes nor neighbouring cells go up together
    for a, b in ((up[:, 1], up[:, 2]), (up[:-1, 2], up[1:, 2]), (up[:-1, 1], up[1:, 2])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)
    assert np.array_equal(round_counts(np.array([[-0.2, np.inf]])), np.float32([[-0.2, np.inf]]))
    x = np.array([[0.4, 1.6], [0.0, 2.5], [0.5, 0.5]])
    assert np.array_equal(round_counts(x[1:], first=1), round_counts(x)[1:])


def test_the_variance_that_rounding_adds_is_that_of_the_fraction():
    """Of fractions f it is f (1 - f) an entry, whatever the whole number below."""
    f = np.repeat([0.1, 0.5, 0.8], 20000)
    values = np.random.default_rng(0).integers(0, 5, f.shape) + f
    added = (round_counts(values[:, None])[:, 0] - values).reshape(3, -1).var(axis=1)
    np.testing.assert_allclose(added, [0.09, 0.25, 0.16], rtol=0.05)


def test_of_an_entry_in_two_parts_the_sum_is_rounded():
    parts = np.array([0.25, 0.75, 0.5, 0.5]), np.array([0, 0, 1, 1]), np.array([0, 4])
    passed = sparse.csr_array(parts, shape=(1, 2))
    assert round_counts(passed).toarray().tolist() == [[1.0, 1.0]] and passed.nnz == 4


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing_is_rounded_to_nothing(shape):
    assert round_counts(np.zeros(shape)).shape == shape
    assert round_counts(sparse.csr_array(shape)).shape == shape


@pytest.mark.parametrize("n, most", [(0, 5), (3, 5), (5, 5), (1000, 7)])
def test_spread(n, most):
    found = fractions.spread(n, most)
    assert len(found) == min(n, most) and np.all(np.diff(found) > 0)
    assert n == 0 or (found[0] == 0 and found[-1] == n - 1)

"""Several files of counts as one: genes that all have, cells of each, columns of any.

Know before reading: models/joining.py. Know after: what is the same as joining them by hand.
"""

import numpy as np
import pytest
from scipy import sparse

from models import SCVI, guarded, runs
from models.__main__ import main
from models.counts import Counts, read
from models.joining import names_of_files
from models.measured import IS_MEASURED

RNG = np.random.default_rng(0)
LEFT = Counts(
    sparse.csr_array(RNG.poisson(3.0, (30, 5)).astype(np.float32)),
    ["a", "b", "c", "d", "e"],
    [f"x{i}" for i in range(30)],
    {"kind": np.array(["T", "B"])[np.arange(30) % 2], "n": np.arange(30), "only": np.arange(30)},
)
RIGHT = Counts(
    sparse.csr_array(RNG.poisson(2.0, (20, 4)).astype(np.float32)),
    ["d", "z", "a", "b"],
    [f"y{i}" for i in range(20)],
    {"kind": np.array(["T", "NK"])[np.arange(20) % 2], "n": np.arange(20) / 2},
)
SHARED = "joined on the 3 genes that all files have, out of 5 of left, 4 of right"


@pytest.fixture
def paths(tmp_path):
    runs.write_counts(tmp_path / "left.npz", LEFT)
    runs.write_h5ad(tmp_path / "right.h5ad", RIGHT)
    return [tmp_path / "left.npz", tmp_path / "right.h5ad"]


@pytest.mark.parametrize("reader", [read, guarded.read])
def test_cells_are_joined_on_the_genes_that_all_files_have(paths, reader):
    with pytest.warns(UserWarning, match=SHARED) as said:
        counts = reader(paths)
    assert len(said) == 1
    expected = np.vstack([LEFT.X.toarray()[:, [0, 1, 3]], RIGHT.X.toarray()[:, [2, 3, 0]]])
    assert counts.genes.tolist() == ["a", "b", "d"]
    np.testing.assert_array_equal(counts.X.toarray(), expected)
    assert counts.X.has_canonical_format and counts.X.dtype == np.float32
    assert counts.cells.tolist() == [*LEFT.cells, *RIGHT.cells]
    assert counts.obs["file"].tolist() == ["left"] * 30 + ["right"] * 20
    assert counts.obs["kind"].tolist() == [*LEFT.obs["kind"], *RIGHT.obs["kind"]]
    np.testing.assert_array_equal(counts.obs["n"], [*range(30), *np.arange(20) / 2])
    np.testing.assert_array_equal(counts.obs["only"], [*range(30), *[np.nan] * 20])


def test_cells_of_one_name_are_told_apart_by_their_file(tmp_path):
    for name in ("left", "right"):
        runs.write_counts(tmp_path / f"{name}.npz", LEFT)
    counts = read([tmp_path / "left.npz", tmp_path / "right.npz"])
    assert counts.cells[[0, 30]].tolist() == ["x0-left", "x0-right"] and counts.shape == (60, 5)


def test_columns_that_a_file_lacks_are_missing(paths, tmp_path):
    left = Counts(LEFT.X, LEFT.genes, LEFT.cells, {"kind": np.arange(30), "note": LEFT.obs["kind"]})
    runs.write_counts(paths[0], left)
    with pytest.warns(UserWarning, match=SHARED):
        obs = read(paths).obs
    assert obs["kind"].tolist() == [*map(str, range(30)), *RIGHT.obs["kind"]]  # numbers and text
    assert obs["note"].tolist() == [*LEFT.obs["kind"], *[None] * 20]


@pytest.mark.parametrize("order", [1, -1])
def test_genes_that_one_file_did_not_measure_stay_unmeasured(order, tmp_path):
    """Its zeros are no counts, and no less so beside cells of a file that has the gene."""
    filled = Counts(RIGHT.X, RIGHT.genes, RIGHT.cells, {}, {IS_MEASURED: RIGHT.genes != "a"})
    runs.write_h5ad(tmp_path / "filled.h5ad", filled)
    runs.write_h5ad(tmp_path / "left.h5ad", LEFT)
    paths = [tmp_path / "left.h5ad", tmp_path / "filled.h5ad"]
    with pytest.warns(UserWarning, match="joined on the 3 genes"):
        counts = read(paths[::order])
    assert dict(zip(counts.genes, counts.var[IS_MEASURED])) == {"a": False, "b": True, "d": True}


NAMES = {
    ("a.h5ad", "b.csv.gz"): ["a", "b"],
    ("s1/outs/m.h5", "s2/outs/m.h5"): ["s1", "s2"],
    ("x/s.1", "x/s.2"): ["s.1", "s.2"],
    ("p/a.h5", "q/a.h5", "q/b.h5"): None,
}


@pytest.mark.parametrize("paths", NAMES)
def test_names_of_files(paths):
    found = names_of_files(paths)
    assert len(set(found)) == len(paths)
    assert NAMES[paths] is None or found == NAMES[paths]


def test_files_that_cannot_be_joined(paths, tmp_path):
    others = Counts(LEFT.X, [f"E{i}" for i in range(5)], LEFT.cells)
    runs.write_counts(tmp_path / "other.npz", others)
    for wrong, options, says in (
        (
            [paths[0], tmp_path / "other.npz"],
            {},
            "shares no gene .* here they are called a, there E0",
        ),
        ([paths[0], paths[0]], {}, "is given twice; give each file once"),
        ([paths[1], paths[1]], {"backed": True}, "several files are joined in memory"),
    ):
        with pytest.raises(ValueError, match=says):
            read(wrong, **options)


def test_columns_that_an_npz_has_no_place_for(tmp_path):
    for name in ("cells", "shape", "format"):
        counts = Counts(LEFT.X, LEFT.genes, LEFT.cells, {name: np.arange(30)})
        with pytest.raises(ValueError, match=f"o.npz: obs has a column '{name}', .* rename it"):
            runs.write_counts(tmp_path / "o.npz", counts)
    assert not (tmp_path / "o.npz").exists()


def test_a_run_of_several_files(paths, tmp_path, capsys):
    words = ["--latent", "2", "--hidden", "4", "--epochs", "2", "--batch-size", "16"]
    files = [str(path) for path in paths]
    run = str(tmp_path / "run")
    assert main(["train", *files, "--out", run, *words]) == 0
    assert "50 cells, 3 genes, 2 batches of" in capsys.readouterr().err
    model = SCVI.load(tmp_path / "run" / "model.npz")
    assert model.batches == ["left", "right"] and model.genes == ["a", "b", "d"]
    with pytest.warns(UserWarning, match=SHARED):
        counts = read(paths)
    for again in ([], files):
        assert main(["embed", run, *again, "--out", str(tmp_path / "z.npz")]) == 0
        with np.load(tmp_path / "z.npz") as file:
            np.testing.assert_array_equal(file["X_scVI"], model.latent(counts, "file"))
    for command in ("embed", "denoise"):
        assert main([command, run, "--out", str(tmp_path / f"{command}.h5ad")]) == 0
        assert main([command, run, "--out", files[1]]) == 2
    assert read(tmp_path / "denoise.h5ad").shape == (50, 3)
    assert main(["generate", run, "--cells", "9", "--out", str(tmp_path / "new.npz")]) == 0
    assert set(read(tmp_path / "new.npz").obs["file"]) == {"left", "right"}
    assert main(["report", run, "--color", "file"]) == 0
    assert "scVI on left.npz, right.h5ad" in (tmp_path / "run" / "index.html").read_text()
    words = ["--key", "file", "--groups", "left", "--samples", "50"]
    assert main(["de", run, *words]) == 0
    paths[0].unlink()
    assert main(["embed", run, "--out", str(tmp_path / "z.npz")]) == 1
    assert "left.npz: the counts of" in capsys.readouterr().err

"""zarr stores of AnnData: what is read, and what is refused before a chunk of it is.

Know before reading: models/zarr_store.py. Know after: that no store runs code or fills the memory.
"""

import json
import os
import shutil

import numpy as np
import pytest
from scipy import sparse

from models import guarded
from models.__main__ import main
from models.counts import read
from tests.example_counts import CELLS, GENES, TYPES, X, adata, check

zarr = pytest.importorskip("zarr", minversion="3")


def write(path, matrix=None, zarr_format=2):
    """The example, as anndata writes it, with a layer and a raw that is wider."""
    data = adata(sparse.csr_matrix(X) if matrix is None else matrix, twice=sparse.csc_matrix(2 * X))
    data.obs["type"] = data.obs["type"].where(np.arange(23) != 4)
    data.var["symbol"] = [f"S{g}" for g in range(17)]
    data.raw = data.copy()
    data = data[:, :9].copy()
    anndata = pytest.importorskip("anndata")
    with anndata.settings.override(zarr_write_format=zarr_format):
        data.write_zarr(path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("zarr") / "a.zarr")


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_matrix, np.array])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_of_anndata(tmp_path, form, zarr_format):
    path = write(tmp_path / "a.zarr", form(X), zarr_format)
    counts = check(read(path), genes=GENES[:9], X=X[:, :9])
    assert counts.obs["type"].tolist() == [*TYPES[:4], None, *TYPES[5:]]
    assert counts.obs["donor"].tolist() == [i % 2 for i in range(23)]
    assert counts.obs["lane"].tolist() == TYPES.tolist() and counts.obs["lane"].dtype.kind == "U"
    assert counts.var["symbol"].tolist() == [f"S{g}" for g in range(9)]


def test_layers_raw_and_the_other_way_round(store):
    check(read(store, "raw"))
    check(read(store, "twice"), genes=GENES[:9], X=2 * X[:, :9])
    check(read(store, transpose=True), genes=CELLS, cells=GENES[:9], X=X[:, :9].T)
    check(read(store, gene_names="symbol"), genes=[f"S{g}" for g in range(9)], X=X[:, :9])
    for options, says in (
        ({"layer": "other"}, "no layer 'other'; there are: twice"),
        ({"backed": True}, "only .h5ad files are read from the disk"),
    ):
        with pytest.raises(ValueError, match=says):
            read(store, **options)


def test_it_is_read_in_a_process_of_its_own(store):
    counts = check(guarded.read(store), genes=GENES[:9], X=X[:, :9])
    assert counts.obs["type"][4] is None
    with pytest.raises(ValueError, match="no layer 'other'"):
        guarded.read(store, "other")


def test_a_model_is_trained_on_it(store, tmp_path):
    words = ["--latent", "2", "--hidden", "4", "--epochs", "1", "--batch-size", "8"]
    assert main(["train", str(store), "--out", str(tmp_path / "r"), *words]) == 0
    assert main(["embed", str(tmp_path / "r"), "--out", str(tmp_path / "z.csv")]) == 0
    assert main(["embed", str(tmp_path / "r"), "--out", str(tmp_path / "z.h5ad")]) == 0


def pipe(path):
    """In place of a file: a pipe with a name."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def describe(**changes):
    def change(path):
        file = path / "X" / "data" / ".zarray"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def lie_in_the_summary(path):
    """The summary says pickle, the description does not: the summary is not believed."""
    file = path / ".zmetadata"
    found = json.loads(file.read_text()) if file.exists() else {"metadata": {}}
    for key, item in found["metadata"].items():
        if key.endswith(".zarray"):
            item["filters"] = [{"id": "pickle", "protocol": 5}]
    file.write_text(json.dumps(found))


def attributes(place, **changes):
    def change(path):
        file = path / place / ".zattrs"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


HOSTILE = {
    "names outside": (attributes("obs", _index="../../secret"), "is invalid"),
    "columns outside": (attributes("obs", **{"column-order": ["../var/_index"]}), "is invalid"),
    "pieces outside": (describe(dimension_separator="/../../"), "damaged"),
    "a pipe for a piece": (lambda path: pipe(path / "X/data/0"), "data/0 is a pipe or a device"),
    "a pipe": (lambda path: pipe(path / "X/more"), "more is a pipe or a device; remove it"),
    "JSON without end": (
        lambda path: (path / "X/data/.zarray").write_text("[" * 10**5),
        "damaged",
    ),
    "a negative shape": (describe(shape=[-5]), "damaged"),
    "a form of its own": (attributes("X", **{"encoding-type": "evil"}), "damaged"),
    "pickle": (
        describe(filters=[{"id": "pickle", "protocol": 5}]),
        "X/data is packed with 'pickle'",
    ),
    "pickle inside": (
        describe(
            codecs=[{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "x"}]}}]
        ),
        "packed with 'x', which is not known to be harmless",
    ),
    "huge": (describe(shape=[10**12]), "declares 8,000,000,000,000 bytes but stores"),
    "huge chunks": (describe(chunks=[10**12]), "declares 8,000,000,000,000 bytes but stores"),
    "a link": (
        lambda path: os.symlink("/etc", path / "X" / "more"),
        "more is a link; write all into one folder",
    ),
    "no obs": (lambda path: shutil.rmtree(path / "obs"), "a zarr store, but not of AnnData"),
    "no data": (lambda path: shutil.rmtree(path / "X" / "data"), "damaged|no X"),
    "no JSON": (lambda path: (path / "X/data/.zarray").write_text("{"), "damaged"),
    "cut off": (lambda path: (path / "X/data/0").write_bytes(b"\x02\x01"), "damaged|looks"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_stores(store, tmp_path, case):
    change, message = HOSTILE[case]
    path = shutil.copytree(store, tmp_path / "b.zarr")
    change(path)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_the_summary_of_a_store_is_not_believed(store, tmp_path):
    path = shutil.copytree(store, tmp_path / "b.zarr")
    lie_in_the_summary(path)
    check(read(path), genes=GENES[:9], X=X[:, :9])

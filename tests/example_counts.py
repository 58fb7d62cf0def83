"""The example that readers of counts are tried on, and files of it as other software writes them.

Know before reading: models/counts.py. Know after: what is in X, GENES, CELLS and TYPES, which many
tests compare with.
"""

import gzip

import numpy as np
import pytest
import scipy.io
from scipy import sparse

X = np.random.default_rng(0).poisson(0.7, (23, 17)) * np.random.default_rng(1).integers(
    0, 30, (23, 17)
)
X[5] = 0  # a cell without counts
X[:, 3] = 0  # a gene that is in no cell
GENES = np.array([f"Gène {g}" for g in range(17)])
CELLS = np.array([f"AAC{c}-1" for c in range(23)])
TYPES = np.array(["T", "B, naive", "NK"])[np.arange(23) % 3]


def check(counts, genes=GENES, cells=CELLS, X=X):
    """This is the example, in the canonical form, whatever it was read from."""
    assert isinstance(counts.X, sparse.csr_array)
    assert counts.X.dtype == np.float32 and counts.X.indices.dtype == np.int32
    assert counts.X.has_canonical_format and counts.X.data.all()
    assert (
        np.array_equal(counts.X.toarray(), X) and counts.shape == X.shape and len(counts) == len(X)
    )
    assert counts.genes.dtype.kind == counts.cells.dtype.kind == "U"
    assert counts.genes.tolist() == list(genes) and counts.cells.tolist() == list(cells)
    return counts


def adata(matrix=X, **layers):
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    obs = pandas.DataFrame(
        {"type": pandas.Categorical(TYPES), "donor": np.arange(23) % 2, "lane": TYPES}, index=CELLS
    )
    return anndata.AnnData(matrix, obs=obs, var=pandas.DataFrame(index=GENES), layers=layers)


def write_tenx(path, version, antibodies=0):
    """Cell Ranger's layout: columns are cells; v3 may hold features of other kinds, here after the
    genes.
    """
    h5py = pytest.importorskip("h5py")
    matrix = sparse.csc_matrix(np.hstack([X, np.full((23, antibodies), 9)]).T)
    names = GENES.tolist() + [f"CD{i}" for i in range(antibodies)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"], group["indices"], group["indptr"] = (
            matrix.data,
            matrix.indices,
            matrix.indptr.astype("i8"),
        )
        group["shape"], group["barcodes"] = np.array(matrix.shape, "i4"), CELLS.astype("S")
        if version == 2:
            group["genes"], group["gene_names"] = [f"ENSG{i}" for i in range(17)], names
        else:
            group["features/name"] = names
            group["features/id"] = [f"ENSG{i}" for i in range(len(names))]
            group["features/feature_type"] = np.array(
                [b"Gene Expression"] * 17 + [b"Antibody Capture"] * antibodies
            )


def write_loom(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "matrix", data=X.T.astype(np.float32), chunks=(8, 8), compression="gzip"
        )
        file.create_dataset("layers/spliced", data=2 * X.T)
        for key, names in {
            "row_attrs/Gene": GENES,
            "col_attrs/CellID": CELLS,
            "col_attrs/type": TYPES,
        }.items():
            file[key] = names.tolist()
        file["col_attrs/pca"] = np.zeros((23, 2))


def zipped(path):
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return path.with_name(path.name + ".gz")


def write_folder(folder, version, prefix="", cells_first=False):
    matrix = sparse.coo_matrix(X if cells_first else X.T)
    scipy.io.mmwrite(folder / f"{prefix}matrix.mtx", matrix)
    kind = ["\tGene Expression"] * 17 if version == 3 else [""] * 17
    features = folder / (prefix + ("features.tsv" if version == 3 else "genes.tsv"))
    features.write_text(
        "".join(f"ENSG{g}\t{GENES[g]}{kind[g]}\n" for g in range(17)), encoding="utf-8"
    )
    (folder / f"{prefix}barcodes.tsv").write_text("".join(f"{cell}\n" for cell in CELLS))
    if version == 3:
        for path in list(folder.iterdir()):
            zipped(path)


def npz(path, **changes):
    """The example as .npz of our own layout, with arrays replaced, added, or left out (None)."""
    matrix = sparse.csr_matrix(X)
    arrays = dict(
        data=matrix.data.astype(np.uint16),
        indices=matrix.indices.astype(np.uint16),
        indptr=matrix.indptr,
        shape=np.array(X.shape),
        genes=GENES,
        cells=CELLS,
        labels=TYPES,
        lengths=np.arange(17.0),
        version=3,
    )
    arrays.update(changes)
    np.savez_compressed(
        path, **{key: values for key, values in arrays.items() if values is not None}
    )
    return path


def edit(path, change):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r+") as file:
        change(file)


def replace(key, values=None, **options):
    def change(file):
        del file[key]
        file.create_dataset(key, data=values, **options)

    return change

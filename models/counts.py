"""Count matrices: read from files, checked once, normalised, and their genes selected.

Know before reading: single-cell RNA-seq counts molecules per cell (row) and gene (column). 70 to 95 % of the entries
are zero, so a matrix is kept as compressed sparse rows (CSR): `data` and `indices` hold the non-zero counts and their
columns, row after row, and row i is `indptr[i]:indptr[i + 1]`. The 10x and loom formats store genes as rows; here cells
always are.

Know after: what `read` takes and what it refuses; the one place, `as_matrix`, where anything a user passes is checked
and brought to one form; what "normalised" means; and two rules by which genes are selected.

Files are not trusted. Nothing is unpickled. What a file declares is held against what it stores before memory is given
to it: deflate can make a gigabyte of a megabyte of zeros, real counts shrink some 50-fold at most. Whatever a damaged
file makes a library raise arrives as a ValueError of one sentence that names the file. Out of reach: on flipped bits
libhdf5 itself can take gigabytes or never return (1 in some 2,000 flips did), which its caller cannot stop.
"""
from __future__ import annotations

import csv
import gzip
import importlib
import io
import itertools
import math
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from scipy import sparse

LARGEST_COUNT = 2**24  # float32 holds every whole number up to here, and not 2**24 + 1
_BLOCK = 2**20         # entries looked at in one go, so that checks and conversions need little memory of their own


class _Refused(ValueError):
    """A sentence of this module's about a file, as against whatever a library raises on a damaged one."""


@dataclass(eq=False)
class Counts:
    """A count matrix with its names.

    X: counts, (n_cells, n_genes), from `read` canonical CSR in float32. genes: (n_genes,) and cells: (n_cells,) names,
    which need not be unique. obs: what is known of each cell, name -> (n_cells,) array.
    Raises ValueError where lengths disagree.
    """
    X: sparse.csr_array
    genes: np.ndarray
    cells: np.ndarray
    obs: dict = field(default_factory=dict)

    def __post_init__(self):
        self.genes, self.cells = np.asarray(self.genes).astype(str), np.asarray(self.cells).astype(str)
        self.obs = {key: np.asarray(values) for key, values in self.obs.items()}
        n_cells, n_genes = self.X.shape
        lengths = {"genes": (self.genes, n_genes), "cells": (self.cells, n_cells)}
        lengths.update({f"obs[{key!r}]": (values, n_cells) for key, values in self.obs.items()})
        for name, (values, n) in lengths.items():
            if values.shape != (n,):
                raise _Refused(f"{name} has shape {values.shape}, needs ({n},): X is {n_cells} cells x {n_genes} genes")

    @property
    def shape(self) -> tuple:
        return self.X.shape

    def __len__(self) -> int:
        return self.X.shape[0]

    def __repr__(self) -> str:
        return f"Counts({len(self):,} cells x {self.shape[1]:,} genes; obs: {', '.join(self.obs) or 'none'})"

    def __getitem__(self, cells) -> Counts:
        """The cells of a slice, a boolean mask, an array of positions or one position, as Counts."""
        rows = np.atleast_1d(np.arange(len(self))[cells])
        return Counts(self.X[rows], self.genes, self.cells[rows], {key: v[rows] for key, v in self.obs.items()})

    def select_genes(self, genes) -> Counts:
        """The genes of a boolean mask, an array of positions or a slice, as Counts."""
        columns = np.atleast_1d(np.arange(self.shape[1])[genes])
        X = self.X[:, columns]
        X.sort_indices()
        return Counts(X, self.genes[columns], self.cells, self.obs)


# Reading

def read(path, layer: str | None = None) -> Counts:
    """Counts from a file or a 10x folder, checked as `as_matrix` does.

    path: .h5ad; .h5 of 10x Genomics (v2, v3; gene expression only); .loom; .mtx; a folder with matrix.mtx,
    barcodes.tsv and genes.tsv or features.tsv; .csv, .tsv; .npz with `data, indices, indptr, shape` and optionally
    `genes`, `cells` and further arrays with one entry per cell, which become `obs`. .mtx, .csv, .tsv may be .gz.
    Tables have CELLS AS ROWS, gene names in the first line and cell names in the first column. So has a lone .mtx; a
    matrix.mtx with its label files beside it is turned the way they say.
    layer: the layer of an .h5ad ("raw": `raw.X`) or .loom file. Default: the main matrix.
    Result: Counts, X float32. Missing names become cell_0, gene_0 and so on.
    Raises FileNotFoundError; ImportError without h5py; else ValueError in one sentence that names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    try:
        reader = _reader(path)
        if layer is None:
            X, genes, cells, obs = reader(path)
        elif reader is _read_hdf5:
            X, genes, cells, obs = reader(path, layer)
        else:
            raise _Refused(f"layer={layer!r}: only .h5ad and .loom files have layers")
        cells = [f"cell_{i}" for i in range(X.shape[0])] if cells is None else cells
        genes = [f"gene_{i}" for i in range(X.shape[1])] if genes is None else genes
        counts = Counts(X, genes, cells, obs)
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # a damaged file can make its library raise anything
        raise ValueError(f"{path}: damaged, truncated, or not of the format that its name says; write or fetch it "
                         f"again ({type(error).__name__}: {' '.join(str(error).split())})") from error
    counts.X = as_matrix(X, name=str(path))
    return counts


def _reader(path: Path):
    """The function that reads this kind of file."""
    if path.is_dir():
        return _read_folder
    binary = {".npz": _read_npz, ".h5ad": _read_hdf5, ".h5": _read_hdf5, ".loom": _read_hdf5}
    text = {".mtx": _read_mtx, ".csv": _read_table, ".tsv": _read_table}
    name = path.name.lower()
    reader = binary.get(Path(name).suffix) or text.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None:
        raise _Refused(f"unknown format; known: a 10x folder, {', '.join([*binary, *text])}, the last three or .gz")
    return reader


def _need(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'this needs {package}: pip install "minigrad-scvi[singlecell]"') from error


def _allow(declared: int, stored: int, what: str, ratio: int = 200):
    """Refuse what declares far more bytes than it stores, before memory is given to it."""
    if declared > ratio * stored + 2**24:
        raise _Refused(f"{what} declares {declared:,} bytes but stores {stored:,}; damaged, or made to fill the memory")


def _compressed(form: str, data, indices, indptr, shape):
    """A sparse matrix from the arrays of a file, each checked against the others. form: "csr" or "csc"."""
    if form not in ("csr", "csc"):
        raise _Refused(f"a sparse matrix in the form {form!r}; write it as csr")
    shape = np.ravel(shape)
    if len(shape) != 2 or any(a.ndim != 1 or a.dtype.kind not in "iu" for a in (shape, indices, indptr)):
        raise _Refused("indices, indptr and shape must be lists of whole numbers, shape of two")
    n_rows, n_columns = (int(n) for n in (shape if form == "csr" else shape[::-1]))
    _check_extent(n_rows, n_columns, len(data))
    if data.shape != indices.shape or len(indptr) != n_rows + 1:
        raise _Refused(f"data, indices, indptr have lengths {len(data)}, {len(indices)}, {len(indptr)}, the shape is "
                       f"{shape.tolist()}; the file is truncated or damaged, write it again")
    if indptr[0] != 0 or indptr[-1] != len(data) or (indptr[1:] < indptr[:-1]).any():
        raise _Refused(f"indptr must rise from 0 to {len(data)}; the file is damaged, write it again")
    if len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
        raise _Refused(f"indices run from {indices.min()} to {indices.max()}, outside 0 to {n_columns - 1}; "
                       "the file is damaged, write it again")
    index = np.int32 if max(len(data), n_columns) < 2**31 else np.int64
    matrix = sparse.csr_array((_plain(data), indices.astype(index), indptr.astype(index)), shape=(n_rows, n_columns))
    return matrix if form == "csr" else matrix.T


def _plain(values):
    """In a dtype that SciPy's matrices take: this machine's byte order, and no half floats."""
    return values.astype(np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="), copy=False)


def _check_extent(n_rows: int, n_columns: int, n_entries: int):
    """Refuse a shape that a few bytes claim and that costs gigabytes; unfiltered 10x output, 7 million rows, passes."""
    if min(n_rows, n_columns) < 0 or max(n_rows, n_columns) > 10**6 + 100 * n_entries:
        raise _Refused(f"declares {n_rows} x {n_columns} for {n_entries} entries; damaged, or made to fill the memory")


def _read_npz(path):
    """Sparse rows as scipy.sparse.save_npz writes them, csr or csc, with names and what else is known of each cell."""
    arrays = _npz_arrays(path)
    missing = [key for key in ("data", "indices", "indptr", "shape") if key not in arrays]
    if missing:
        raise _Refused(f"holds no {', '.join(missing)}; write sparse rows as scipy.sparse.save_npz does")
    form = str(np.ravel(arrays.pop("format", "csr")).astype(str)[0])
    X = _compressed(form, *(arrays.pop(key) for key in ("data", "indices", "indptr", "shape")))
    genes, cells = arrays.pop("genes", None), arrays.pop("cells", None)
    per_gene = [key for key, values in arrays.items() if values.shape == X.shape[1:] != X.shape[:1]]
    obs = {key: values for key, values in arrays.items() if values.ndim == 1 and key not in per_gene}
    return X, genes, cells, obs


def _npz_arrays(path) -> dict:
    """name -> array, for all of an .npz file; never unpickles, and reads no more than the zip's own headers promise."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        _allow(sum(member.file_size for member in members), os.path.getsize(path), "the archive")
        for member in members:
            with archive.open(member) as stream:
                old = npy.read_magic(stream) == (1, 0)
                shape, fortran_order, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(stream)
                if dtype.kind not in "biufUS":
                    raise _Refused(f"{member.filename} holds {dtype}, not numbers or strings; Python objects are not "
                                   "unpickled, for that can run code; write plain arrays")
                content = stream.read()
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
                raise _Refused(f"{member.filename} declares shape {shape} of {dtype} but holds {len(content):,} bytes; "
                               "write it again")
            order = "F" if fortran_order else "C"
            arrays[member.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(shape, order=order)
    return arrays


def _read_hdf5(path, layer=None):
    """An HDF5 file of any of the kinds known, told apart by what is inside."""
    h5py = _need("h5py")
    with h5py.File(path, "r") as file:
        _check_declared(file, os.path.getsize(path))
        if "obs" in file and "var" in file:
            return _h5ad(file, layer)
        if isinstance(file.get("matrix"), h5py.Dataset):
            return _loom(file, layer)
        if layer is not None:
            raise _Refused(f"layer={layer!r}: only .h5ad and .loom files have layers")
        groups = [key for key, item in file.items() if isinstance(item, h5py.Group) and "barcodes" in item]
        if len(groups) != 1:
            raise _Refused(f"neither AnnData nor loom, nor 10x with one genome (groups with barcodes: {groups})")
        return _tenx(file[groups[0]])


def _check_declared(file, size: int):
    """Refuse arrays that declare far more than the file holds, or lie in other files. Matrices are read in blocks."""
    h5py, found, declared = _need("h5py"), [], 0
    file.visititems(lambda name, item: found.append((name, item)))
    file.visititems_links(lambda name, link: found.append((name, link)))
    for name, item in found:
        dataset = isinstance(item, h5py.Dataset) and item.shape is not None  # no shape: anndata's None
        if isinstance(item, h5py.ExternalLink) or dataset and (item.external or item.is_virtual):
            raise _Refused(f"keeps {name} in another file; write all into one")
        if dataset:
            _allow(item.nbytes, item.id.get_storage_size(), name, ratio=1100)  # deflate's limit
            declared += item.nbytes if item.ndim < 2 else 0
    _allow(declared, size, "the file")


def _load(dataset) -> np.ndarray:
    """A whole HDF5 array, strings as str."""
    if _need("h5py").check_string_dtype(dataset.dtype) is None:
        return np.asarray(dataset[()])
    strings = np.ravel(dataset.asstr()[()]).tolist()
    longest = max(map(len, strings), default=0)  # NumPy gives each string the room of the longest
    _allow(4 * longest * len(strings), sum(map(len, strings)), dataset.name, ratio=50)
    return np.array(strings, dtype=str).reshape(dataset.shape)


def _dense(dataset, genes_first: bool = False):
    """A dense HDF5 matrix as CSR with cells as rows, a block of cells at a time."""
    n_cells, n_genes = dataset.shape[::-1] if genes_first else dataset.shape
    blocks, step = [], max(64, 4 * _BLOCK // max(n_genes, 1))
    for a in range(0, n_cells, step):
        block = dataset[:, a:a + step].T if genes_first else dataset[a:a + step]
        blocks.append(sparse.csr_array(_plain(block)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((n_cells, n_genes))


def _pick(group, layer):
    """A layer, or the sentence that says which there are."""
    layers = group.get("layers", {})
    if layer not in layers:
        raise _Refused(f"no layer {layer!r}; there are: {', '.join(layers) or 'none'}")
    return layers[layer]


def _h5ad(file, layer):
    """AnnData's format since 0.7, https://anndata.readthedocs.io/en/latest/fileformat-prose.html."""
    raw = layer == "raw" and "raw" in file and layer not in file.get("layers", {})
    group = file["raw"] if raw else file
    if layer is None and "X" not in file:
        raise _Refused(f"has no X; say which layer to read: {', '.join(file.get('layers', {})) or 'there are none'}")
    item = group["X"] if raw or layer is None else _pick(file, layer)
    if hasattr(item, "keys"):
        form = str(item.attrs["encoding-type"])[:3]
        X = _compressed(form, *(_load(item[key]) for key in ("data", "indices", "indptr")), item.attrs["shape"])
    else:
        X = _dense(item)
    genes, _ = _frame(group["var"], columns=False)
    return X, genes, *_frame(file["obs"])


def _frame(group, columns: bool = True):
    """Names and columns of AnnData's obs or var; a column of categories, or with missing values, is two arrays."""
    if not hasattr(group, "keys"):
        raise _Refused("written by anndata before 0.7; open and write it with a newer one")

    def column(key):
        item = group[key]
        if "categories" in item.attrs:  # anndata 0.7 keeps them apart, and refers to them
            return _coded(_load(item), _load(group.file[item.attrs["categories"]]))
        if not hasattr(item, "keys"):
            return _load(item)
        if "codes" in item:
            return _coded(_load(item["codes"]), _load(item["categories"]))
        values, missing = _load(item["values"]), _load(item["mask"])
        return np.where(missing, None, values) if missing.any() else values
    names = column(str(group.attrs["_index"]))
    return names, {str(key): column(key) for key in group.attrs["column-order"]} if columns else {}


def _coded(codes, categories):
    """The category of each cell; None, in an array of objects, where it has none (code -1)."""
    if len(categories) == 0:
        return np.full(codes.shape, None)
    values = categories[np.maximum(codes, 0)]
    return np.where(codes < 0, None, values) if (codes < 0).any() else values


def _loom(file, layer):
    """loom, https://linnarssonlab.org/loompy/format: dense, genes as rows. Of its attributes, only vectors are kept."""
    X = _dense(file["matrix"] if layer is None else _pick(file, layer), genes_first=True)
    columns = {key: _load(values) for key, values in file["col_attrs"].items() if values.ndim == 1}
    cells = next((columns.pop(key) for key in ("CellID", "obs_names") if key in columns), None)
    genes = next((_load(file["row_attrs"][key]) for key in ("Gene", "var_names") if key in file["row_attrs"]), None)
    return X, genes, cells, columns


def _tenx(group):
    """Cell Ranger's HDF5, v2 or v3. Its sparse columns of genes x cells are sparse rows of cells x genes."""
    *arrays, shape, cells = (_load(group[key]) for key in ("data", "indices", "indptr", "shape", "barcodes"))
    X = _compressed("csr", *arrays, shape[::-1])
    if "features" not in group:
        return X, _load(group["gene_names"]), cells, {}
    return *_expression_only(X, *(_load(group["features"][key]) for key in ("name", "feature_type"))), cells, {}


def _expression_only(X, genes, kinds):
    """Without antibodies and guides, where a 10x file has features of several kinds."""
    keep = np.asarray(kinds) == "Gene Expression"
    return (X[:, keep], np.asarray(genes)[keep]) if keep.any() else (X, genes)


def _pieces(path):
    """The text of a file, gzipped or not, in pieces of whole lines; no more of it than so small a file can hold."""
    total, rest, encoding, zipped = 0, b"", "utf-8-sig", path.name.lower().endswith(".gz")
    if zipped:  # the last four bytes say how long the text is: honest bombs are known here, others below
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            _allow(int.from_bytes(file.read(), "little"), os.path.getsize(path), "the text")
    with (gzip.open if zipped else open)(path, "rb") as file:
        while piece := file.read(4 * _BLOCK):
            total += len(piece)
            _allow(total, os.path.getsize(path), "the text")
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield (lines + newline).decode(encoding)
                encoding = "utf-8"
            elif len(rest) > 16 * _BLOCK:
                raise _Refused("a line of more than 16 MB; write a line for each cell")
    yield rest.decode(encoding)


def _lines(path):
    """The same, line by line."""
    return (line for piece in _pieces(path) for line in io.StringIO(piece))


def _read_folder(path):
    """The one matrix.mtx of a folder, which may have something before its name."""
    found = sorted(p for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith("matrix.mtx"))
    if len(found) != 1:
        raise _Refused(f"a 10x folder holds one matrix.mtx or matrix.mtx.gz, this {len(found)}; pass the file itself")
    return _read_mtx(found[0])


def _read_mtx(path):
    """A Matrix Market file, and the label files beside it if it is one of 10x Genomics."""
    X = _matrix_market(path)
    before, matrix, _ = path.name.partition("matrix.mtx")
    features = _labels_beside(path, [before + "features.tsv", before + "genes.tsv"]) if matrix else None
    barcodes = _labels_beside(path, [before + "barcodes.tsv"]) if matrix else None
    if features is None or barcodes is None:
        return X, None, None, {}
    genes, cells = [row[min(1, len(row) - 1)] for row in features], [row[0] for row in barcodes]
    if X.shape == (len(genes), len(cells)):
        X = X.T
    elif X.shape != (len(cells), len(genes)):
        raise _Refused(f"has shape {X.shape}, but beside it are names of {len(genes)} genes and {len(cells)} cells")
    kinds = [row[2] if len(row) > 2 else "" for row in features]
    return *_expression_only(sparse.csr_array(X), genes, kinds), cells, {}


def _matrix_market(path):
    """A Matrix Market file. Not by scipy.io.mmread (SciPy 1.17), which a damaged file can make crash Python."""
    pieces = _pieces(path)
    lines = io.StringIO(next(pieces))
    banner = next(lines, "").lower().split()
    width = {"coordinate integer": 3, "coordinate real": 3, "coordinate pattern": 2,
             "array integer": 1, "array real": 1}.get(" ".join(banner[2:4]))
    if width is None or banner[4:] != ["general"]:
        raise _Refused(f"starts with {' '.join(banner)[:80]!r}; write it as 'coordinate integer general'")
    sizes = next(line for line in lines if line.strip() and line[0] != "%")
    n_rows, n_columns, *n = map(int, sizes.split())
    n_entries = n[0] if width > 1 else n_rows * n_columns
    _check_extent(n_rows, n_columns, n_entries)
    dtype = np.float64 if banner[3] == "real" else np.int64
    parts = [np.fromstring(piece, dtype, sep=" ") for piece in itertools.chain([lines.read()], pieces) if piece.strip()]
    values = np.concatenate(parts or [np.empty(0, dtype)])
    if len(values) != n_entries * width:
        raise _Refused(f"holds {len(values)} numbers where {n_entries} entries need {n_entries * width}; the file is "
                       "truncated or damaged, write it again")
    if width == 1:
        return sparse.csr_array(values.reshape(n_columns, n_rows).T)
    values = values.reshape(n_entries, width)
    rows, columns = values[:, 0] - 1, values[:, 1] - 1
    if not all((i >= 0).all() and (i < n).all() for i, n in ((rows, n_rows), (columns, n_columns))):
        raise _Refused("row or column numbers lie outside the shape; the file is damaged, write it again")
    data = values[:, 2] if width == 3 else np.ones(n_entries)
    return sparse.coo_array((data, (rows.astype(np.int64), columns.astype(np.int64))), shape=(n_rows, n_columns))


def _labels_beside(path, names):
    """The rows of the first of these label files that lies beside a matrix, None where none does."""
    for name in (name + end for name in names for end in ("", ".gz")):
        if path.with_name(name).exists():
            return [line.rstrip("\r\n").split("\t") for line in _lines(path.with_name(name))]
    return None


def _read_table(path):
    """A table with a line for each cell, after one of gene names."""
    rows = csv.reader(_lines(path), delimiter="\t" if ".tsv" in path.name.lower() else ",")
    header, genes, cells, data, indices, lengths = next(rows, []), None, [], [], [], [0]
    for row in filter(None, rows):
        if genes is None:  # R leaves out the corner
            genes = header if len(header) == len(row) - 1 else header[1:]
        if len(row) != len(genes) + 1:
            raise _Refused(f"line {rows.line_num} has {len(row) - 1} counts for {len(genes)} genes")
        try:
            values = np.array(row[1:], dtype=np.float64)
        except ValueError as error:
            raise _Refused(f"line {rows.line_num}: {error}; gene names belong in the first line, cell names in the "
                           "first column, and counts in the rest") from None
        cells.append(row[0])
        indices.append(np.flatnonzero(values))
        data.append(values[indices[-1]])
        lengths.append(len(data[-1]))
    if not cells:
        raise _Refused("holds no cells: a line of gene names, then a line for each cell")
    X = sparse.csr_array((np.concatenate(data), np.concatenate(indices), np.cumsum(lengths)), (len(cells), len(genes)))
    return X, genes, cells, {}


# Checking

def as_matrix(counts, layer: str | None = None, name: str = "counts"):
    """Whatever holds counts, as one checked matrix: what every model and function here does first.

    counts, (n_cells, n_genes): a dense array, list, frame or memory map; any SciPy sparse matrix or array; an AnnData
    object (its `.X`, or `layer`, where "raw" is `raw.X`); Counts; or a path that `read` takes. Any numeric dtype.
    name: what errors call it.
    Result: float32, `scipy.sparse.csr_array` (int32 indices, sorted, no duplicates, no stored zeros) where sparse was
    given, else a C-contiguous array. What was passed is never changed; the result may share its memory, so do not write
    to it.
    Raises ValueError for what is not two-dimensional, is empty, or has an entry that is not a finite whole number from
    0 to 2**24 = 16,777,216: float32 is exact up to there, and no cell has more molecules of a gene.
    """
    if isinstance(counts, (str, os.PathLike)):
        return read(counts, layer).X
    x = _unwrap(counts, layer, name)
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name}: a masked array; fill the masked entries first, with x.filled(0) if they are zeros")
    if not sparse.issparse(x):
        try:
            x = np.asarray(x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: no matrix of numbers ({error})") from error
    if x.ndim != 2:
        raise ValueError(f"{name}: has shape {x.shape}, must be (n_cells, n_genes); for a single cell pass x[None, :]")
    if 0 in x.shape:
        none = "cells" if x.shape[0] == 0 else "genes"
        raise ValueError(f"{name}: has shape {x.shape}, that is no {none}; pass at least one")
    if x.dtype.kind not in "buif":
        raise ValueError(f"{name}: has dtype {x.dtype}, must be numbers; convert it, or drop the columns that are text")
    return _canonical_rows(x, name) if sparse.issparse(x) else _dense_rows(x, name)


def _unwrap(counts, layer, name):
    """The matrix inside an AnnData object or Counts, or what was passed."""
    annotated = all(hasattr(counts, attribute) for attribute in ("X", "layers", "obs_names"))
    if layer is not None and not annotated:
        raise ValueError(f"{name}: layer={layer!r} needs an AnnData object, not {type(counts).__name__}")
    if layer is None:
        x = counts.X if annotated or isinstance(counts, Counts) else counts
    elif layer in counts.layers:
        x = counts.layers[layer]
    else:
        x = counts.raw.X if layer == "raw" and counts.raw is not None else None
    if x is None and annotated:
        raise ValueError(f"{name}: no {'X' if layer is None else f'layer {layer!r}'}; there are the layers "
                         f"{list(counts.layers) if annotated else []}")
    return x.to_memory() if hasattr(x, "to_memory") else x  # of an AnnData object opened with backed="r"


def _canonical_rows(x, name):
    """A CSR matrix with the same entries, canonical."""
    if x.format in ("csr", "csc"):
        try:  # as a new matrix: what the caller's caches of itself (sorted? canonical?) may be outdated
            kind = sparse.csr_array if x.format == "csr" else sparse.csc_array
            x = kind((x.data, x.indices, x.indptr), shape=x.shape)
            x.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{name}: a broken sparse matrix ({error}); build it again") from error
    else:
        x = x.astype(np.float64)  # so that duplicates of a small dtype do not overflow when added up
    x = sparse.csr_array(x.tocsr())
    if not x.has_canonical_format or not x.data.all():
        x = sparse.csr_array((x.data.astype(np.float64), x.indices.copy(), x.indptr.copy()), shape=x.shape)
        x.sum_duplicates()
        x.eliminate_zeros()
    bad = _first_bad(x.data)
    if bad is not None:
        row = np.searchsorted(x.indptr, bad, side="right") - 1
        raise ValueError(_complaint(name, row, x.indices[bad], x.data[bad]))
    index = np.int32 if max(x.nnz, x.shape[1]) < 2**31 else np.int64
    parts = zip((x.data, x.indices, x.indptr), (np.float32, index, index))
    return sparse.csr_array(tuple(part.astype(dtype, copy=False) for part, dtype in parts), shape=x.shape)


def _dense_rows(x, name):
    """A C-contiguous float32 array with the same entries, looked at and converted block by block."""
    right = x.dtype == np.float32 and x.dtype.isnative and x.flags.c_contiguous and x.flags.aligned
    result = x if right else np.empty(x.shape, np.float32)
    step = max(1, _BLOCK // x.shape[1])
    for a in range(0, len(x), step):
        block = np.ascontiguousarray(x[a:a + step])
        bad = _first_bad(block.ravel())
        if bad is not None:
            row, column = divmod(bad, x.shape[1])
            raise ValueError(_complaint(name, a + row, column, block[row, column]))
        if not right:
            result[a:a + step] = block
    return result


def _first_bad(values):
    """Position of the first entry that is no finite whole number from 0 to LARGEST_COUNT, or None."""
    for a in range(0, len(values), _BLOCK):
        v = values[a:a + _BLOCK].astype(np.float64)
        bad = ~((v >= 0) & (v <= LARGEST_COUNT) & (v == np.floor(v)))
        if bad.any():
            return a + int(bad.argmax())
    return None


def _complaint(name, row, column, value) -> str:
    found = f"{name}: row {row}, column {column} (from 0) is {value!s}"
    if not np.isfinite(value):
        return f"{found}; counts are finite: fill in or drop missing values first"
    if value > LARGEST_COUNT:
        return (f"{found}, above {LARGEST_COUNT:,}, up to which float32 is exact; is it a total, or an identifier? "
                "Leave that column out")
    return (f"{found}; counts are whole numbers from 0 up, and this matrix looks normalised or scaled. Raw counts are "
            'usually in adata.layers["counts"] (layer="counts") or in adata.raw (layer="raw")')


def batch_codes(batch, n_cells: int, known=None, obs=None) -> tuple:
    """Batches as numbers: `(codes, names)`, codes (n_cells,) positions in the list `names` of str.

    batch: a whole number or string per cell; or the name of a column of `obs` (a mapping or frame); or None, all cells
    in one batch. known: the batches that a model was trained with, which then are `names`; labels match by their str.
    Without it names are sorted, numbers as numbers.
    Raises ValueError for another length, missing labels, an unknown column, and batches not in `known`.
    """
    known = None if known is None else [str(label) for label in known]
    if batch is None:
        if known is not None and len(known) > 1:
            raise ValueError(f"batch: say which batch each cell is from; the model knows {', '.join(known)}")
        return np.zeros(n_cells, dtype=np.int64), known or ["0"]
    if isinstance(batch, str):
        columns = [] if obs is None else [str(column) for column in obs]
        if batch not in columns:
            raise ValueError(f"batch: no obs column {batch!r}; there are: {', '.join(columns) or 'none'}")
        batch = obs[batch]
    labels = np.asarray(batch)
    if labels.shape != (n_cells,):
        raise ValueError(f"batch: has shape {labels.shape}, must be one label for each of {n_cells} cells")
    values, codes = np.unique(_plain_labels(labels), return_inverse=True)
    names = [str(value) for value in values]
    unknown = [label for label in names if known is not None and label not in known]
    if unknown:
        raise ValueError(f"batch: {', '.join(unknown)} unknown; the model knows {', '.join(known)}. Leave those cells out, or "
                         "train a model with them")
    return (codes, names) if known is None else (np.array([known.index(label) for label in names])[codes], known)


def _plain_labels(labels):
    """Labels of one comparable dtype: whole numbers, or strings."""
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.floor(labels)).all():
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        for i, label in enumerate(labels.tolist()):
            if not isinstance(label, (int, np.integer, str)):
                raise ValueError(f"batch: cell {i} has the label {label!r}; labels must be whole numbers or strings")
        return labels.astype(str)
    return labels


# Normalising

def library_size(x) -> np.ndarray:
    """Total count of each cell, (n_cells,) float64. x: what `as_matrix` takes, and its errors."""
    return np.asarray(as_matrix(x).sum(axis=1, dtype=np.float64)).ravel()


def empty_cells(x) -> np.ndarray:
    """Which cells have no counts at all, (n_cells,) bool: they carry no information and are left out of training."""
    return library_size(x) == 0


def empty_genes(x) -> np.ndarray:
    """Which genes are counted in no cell, (n_genes,) bool."""
    return np.asarray(as_matrix(x).sum(axis=0)).ravel() == 0


def normalize(x, target_sum: float | None = None):
    """Counts as fractions of each cell's total times `target_sum`: n[c, g] = target_sum * x[c, g] / sum_g x[c, g].

    x: what `as_matrix` takes, (n_cells, n_genes). target_sum: the total of every cell afterwards; default the median
    total of the cells that have counts, so that a typical cell stays as it was. Result: as x, CSR or dense, float32, to
    be followed by `log1p`. A cell without counts stays zero.
    Why not target_sum = 1, the formula of the course chapter (GENEEX autoencoder, inputs): with 10,000 genes a fraction
    is about 1e-4, where log(1 + n) = n - n²/2 + ... is n to four digits. The logarithm does nothing, and inputs of 1e-4
    leave a network that was initialised for inputs of order 1 with next to no signal. Times a few thousand, n is of
    order 1 and log1p brings strong and weak genes closer.
    Raises ValueError for a target_sum that is not positive, and as `as_matrix`.
    """
    x = as_matrix(x)
    total = library_size(x)
    if target_sum is None:
        target_sum = np.median(total[total > 0]) if total.any() else 1.0
    if not 0 < target_sum < np.inf:
        raise ValueError(f"target_sum must be positive and finite, not {target_sum}")
    scale = (target_sum / np.where(total > 0, total, 1)).astype(np.float32)
    if not sparse.issparse(x):
        return x * scale[:, None]
    data = x.data * np.repeat(scale, np.diff(x.indptr))
    return sparse.csr_array((data, x.indices.copy(), x.indptr.copy()), shape=x.shape)


def log1p(x):
    """log(1 + x), sparse where x is: zeros stay zeros. x: any array or SciPy sparse matrix; same shape and dtype."""
    return x.log1p() if sparse.issparse(x) else np.log1p(x)


# Selecting genes

def highest_variance(x, n: int) -> np.ndarray:
    """The n genes whose counts vary most: the rule of the scVI paper (Lopez et al. 2018). Sorted positions, (n,).

    x: what `as_matrix` takes. Raises ValueError for n not in 1 to n_genes. Variances of raw counts favour the genes of
    highest mean; `pearson_residual_variance` corrects for that.
    """
    x = as_matrix(x)
    if sparse.issparse(x):
        total = np.bincount(x.indices, x.data, x.shape[1])
        squares = np.bincount(x.indices, x.data.astype(np.float64)**2, x.shape[1])
    else:
        total, squares = x.sum(axis=0, dtype=np.float64), np.einsum("cg,cg->g", x, x, dtype=np.float64)
    return _top(squares / x.shape[0] - (total / x.shape[0])**2, n)


def pearson_residual_variance(x, n: int, theta: float = 100) -> np.ndarray:
    """The n genes that vary most beyond what sampling explains. Sorted positions, (n,).

    Lause, Berens & Kobak 2021 (Genome Biology 22:258): if a gene were the same fraction of every cell, counts would be
    negative binomial around mu[c, g] = total of cell c * total of gene g / total of all. Residuals are
    (x - mu) / sqrt(mu + mu²/theta), clipped at ± sqrt(n_cells); genes are ranked by their variance over cells.
    x: what `as_matrix` takes. theta: inverse dispersion, one for all genes (np.inf: Poisson). A gene or cell without
    counts has residuals 0. Memory: blocks of genes, each temporary 32 MB. Raises ValueError for theta <= 0, and for n
    not in 1 to n_genes.
    """
    if not theta > 0:
        raise ValueError(f"theta must be positive, not {theta}")
    x = as_matrix(x)
    n_cells, n_genes = x.shape
    cell_total, gene_total = library_size(x), np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
    columns = x.tocsc() if sparse.issparse(x) else x
    variance, step = np.empty(n_genes), max(1, 4 * _BLOCK // n_cells)
    for a in range(0, n_genes, step):
        block = columns[:, a:a + step]
        block = block.toarray() if sparse.issparse(block) else block
        mu = cell_total[:, None] * gene_total[a:a + step] / max(cell_total.sum(), 1)
        deviation = np.sqrt(mu + mu**2 / theta)
        residual = np.divide(block - mu, deviation, out=np.zeros_like(mu), where=mu > 0)
        variance[a:a + step] = residual.clip(-np.sqrt(n_cells), np.sqrt(n_cells)).var(axis=0)
    return _top(variance, n)


def _top(score, n):
    """Positions of the n largest, sorted; of equals the first."""
    if not 1 <= n <= len(score):
        raise ValueError(f"n must be from 1 to the {len(score)} genes that there are, not {n}")
    return np.sort(np.argsort(-score, kind="stable")[:n])


# Writing back

def annotate_h5ad(path_in, path_out, obsm=None, obs=None, layers=None):
    """A copy of an .h5ad file with results added, the rest as it was; written whole or not at all.

    obsm: name -> (n_cells, k), for example {"X_scVI": model.latent(x)}; obs: name -> (n_cells,), for example clusters;
    layers: name -> (n_cells, n_genes), dense or sparse. What has the same name is replaced. The paths may be the same.
    Raises ImportError without anndata; ValueError for a file that is no .h5ad, another length, a slash in a name.
    """
    h5py, write_elem = _need("h5py"), _need("anndata").io.write_elem
    if not h5py.is_hdf5(path_in):
        raise ValueError(f"{path_in}: not there, or no .h5ad file; pass the one that results are to be added to")
    path_out = Path(path_out)
    handle, temporary = tempfile.mkstemp(dir=path_out.parent, prefix=path_out.name, suffix=".part")
    os.close(handle)
    try:
        shutil.copyfile(path_in, temporary)
        with h5py.File(temporary, "r+") as file:
            if "obs" not in file or "var" not in file:
                raise ValueError(f"{path_in}: no .h5ad file, it has no obs and var")
            shape = tuple(len(_frame(file[axis], columns=False)[0]) for axis in ("obs", "var"))
            for place, added, wanted in (("obsm", obsm, shape[:1]), ("obs", obs, shape[:1]), ("layers", layers, shape)):
                for key, values in (added or {}).items():
                    values = values if sparse.issparse(values) else np.asarray(values)
                    if values.shape[:len(wanted)] != wanted or "/" in key or (place == "obs" and values.ndim > 1):
                        raise ValueError(f"{place}[{key!r}] has shape {values.shape}, {path_in} is {shape}; pass one "
                                         "row per cell, and a name without a slash")
                    write_elem(file.require_group(place), key, values)
            columns = [str(key) for key in file["obs"].attrs["column-order"]]
            columns += [key for key in obs or {} if key not in columns]
            file["obs"].attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())
        shutil.copymode(path_in, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path_out)
    except BaseException:
        os.unlink(temporary)
        raise

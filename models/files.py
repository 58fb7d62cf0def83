"""Files of counts: what each format holds, and how a file is kept from doing harm.

Know before reading: what a count matrix is (counts.py). Single-cell counts come as .h5ad (AnnData), .h5 (10x Genomics),
.loom, Matrix Market text, tables and .npz. 10x and loom store genes as rows; here cells always are.

Files are not trusted. Nothing is unpickled. What a file declares is held against what it stores before memory is given
to it: deflate can make a gigabyte of a megabyte of zeros, real counts shrink some 50-fold at most. Whatever a damaged
file makes a library raise arrives (from counts.read) as a ValueError of one sentence that names the file. Out of reach:
on flipped bits libhdf5 itself can take gigabytes or never return (1 in some 2,000 flips did), which its caller cannot
stop.

Know after: what every format holds and where, and which files are refused.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import itertools
import math
import os
import warnings
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.lib import format as npy
from scipy import sparse

from minigrad.data import Blocks, block_bounds

BLOCK = (
    2**20
)  # entries looked at in one go, so that reading and checking need little memory of their own

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # by which a spreadsheet takes a text for a formula
BACKED = "backed=True: only .h5ad files are read from the disk; read it without, or write it as .h5ad with anndata"


class Refused(ValueError):
    """A sentence of this module's about a file, as against whatever a library raises on a damaged one."""


def warn_of_formulas(texts) -> None:
    """Warn where a text of a table would be a formula in a spreadsheet.

    Tables hold names as they are, so that programs find again what they wrote: pandas and R read `=2+3` as a name. A
    spreadsheet would compute it, or fetch what it links to.
    """
    found = sorted({str(text) for text in texts if text.startswith(FORMULAS)})
    if found:
        warnings.warn(
            "the table has names that spreadsheets take for formulas, as they begin with =, +, -, @, a tab or a carriage "
            f"return: {', '.join(map(repr, found[:3]))}{' ...' * (len(found) > 3)} ({len(found)} in all); "
            "when you open it in one, import the columns of names as text",
            stacklevel=3,
        )


def load(path: Path, layer: str | None = None, backed: bool = False) -> tuple:
    """(X, genes, cells, obs) of a file or 10x folder, as counts.read takes it; names None where it has none, X unchecked.

    Raises Refused, or what a library raises on a damaged file.
    """
    reader = _reader(path)
    if reader is _read_hdf5:
        return reader(path, layer, backed)
    if layer is not None:
        raise Refused(f"layer={layer!r}: only .h5ad and .loom files have layers")
    if backed:
        raise Refused(BACKED)
    return reader(path)


def _reader(path: Path):
    """The function that reads this kind of file."""
    if path.is_dir():
        return _read_folder
    binary = {".npz": _read_npz, ".h5ad": _read_hdf5, ".h5": _read_hdf5, ".loom": _read_hdf5}
    text = {".mtx": _read_mtx, ".csv": _read_table, ".tsv": _read_table}
    name = path.name.lower()
    reader = binary.get(Path(name).suffix) or text.get(Path(name.removesuffix(".gz")).suffix)
    if reader is None:
        raise Refused(
            f"unknown format; known: a 10x folder, {', '.join([*binary, *text])}, the last three or .gz"
        )
    return reader


def need(package: str) -> ModuleType:
    """The imported package; ImportError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'this needs {package}: pip install "minigrad-scvi[singlecell]"'
        ) from error


def _allow(declared: int, stored: int, what: str, ratio: int = 200):
    """Refuse what declares far more bytes than it stores, before memory is given to it."""
    if declared > ratio * stored + 2**24:
        raise Refused(
            f"{what} declares {declared:,} bytes but stores {stored:,}; damaged, or made to fill the memory"
        )


def _compressed(form: str, data, indices, indptr, shape):
    """A sparse matrix from the arrays of a file, each checked against the others. form: "csr" or "csc"."""
    if form not in ("csr", "csc"):
        raise Refused(f"a sparse matrix in the form {form!r}; write it as csr")
    shape = np.ravel(shape)
    if len(shape) != 2 or any(
        a.ndim != 1 or a.dtype.kind not in "iu" for a in (shape, indices, indptr)
    ):
        raise Refused("indices, indptr and shape must be lists of whole numbers, shape of two")
    n_rows, n_columns = (int(n) for n in (shape if form == "csr" else shape[::-1]))
    if data.ndim != 1:
        raise Refused(
            f"data has shape {data.shape}, must be a list; the lengths cannot fit, write the file again"
        )
    _check_compressed((n_rows, n_columns), len(data), len(indices), indptr)
    if len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
        raise Refused(
            f"indices run from {indices.min()} to {indices.max()}, outside 0 to {n_columns - 1}; "
            "the file is damaged, write it again"
        )
    index = np.int32 if max(len(data), n_columns) < 2**31 else np.int64
    matrix = sparse.csr_array(
        (_plain(data), indices.astype(index), indptr.astype(index)), shape=(n_rows, n_columns)
    )
    return matrix if form == "csr" else matrix.T


def _check_compressed(shape, n_data: int, n_indices: int, indptr):
    """Refuse lengths of data and indices, and an indptr, that cannot be those of compressed rows of this shape."""
    n_rows, n_columns = shape
    _check_extent(n_rows, n_columns, n_data)
    if n_data != n_indices or len(indptr) != n_rows + 1:
        raise Refused(
            f"data, indices, indptr have lengths {n_data}, {n_indices}, {len(indptr)}, the shape is "
            f"{[n_rows, n_columns]}; the file is truncated or damaged, write it again"
        )
    if indptr[0] != 0 or indptr[-1] != n_data or (indptr[1:] < indptr[:-1]).any():
        raise Refused(f"indptr must rise from 0 to {n_data}; the file is damaged, write it again")


def _plain(values):
    """In a dtype that SciPy's matrices take: this machine's byte order, and no half floats."""
    return values.astype(
        np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="), copy=False
    )


def _check_extent(n_rows: int, n_columns: int, n_entries: int):
    """Refuse a shape that a few bytes claim and that costs gigabytes; unfiltered 10x output, 7 million rows, passes."""
    if min(n_rows, n_columns) < 0 or max(n_rows, n_columns) > 10**6 + 100 * n_entries:
        raise Refused(
            f"declares {n_rows} x {n_columns} for {n_entries} entries; damaged, or made to fill the memory"
        )


def _read_npz(path):
    """Sparse rows as scipy.sparse.save_npz writes them, csr or csc, with names and what else is known of each cell."""
    arrays = _npz_arrays(path)
    missing = [key for key in ("data", "indices", "indptr", "shape") if key not in arrays]
    if missing:
        raise Refused(
            f"holds no {', '.join(missing)}; write sparse rows as scipy.sparse.save_npz does"
        )
    form = str(np.ravel(arrays.pop("format", "csr")).astype(str)[0])
    X = _compressed(form, *(arrays.pop(key) for key in ("data", "indices", "indptr", "shape")))
    genes, cells = arrays.pop("genes", None), arrays.pop("cells", None)
    per_gene = [key for key, values in arrays.items() if values.shape == X.shape[1:] != X.shape[:1]]
    obs = {
        key: values for key, values in arrays.items() if values.ndim == 1 and key not in per_gene
    }
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
                shape, fortran_order, dtype = (
                    npy.read_array_header_1_0 if old else npy.read_array_header_2_0
                )(stream)
                if dtype.kind not in "biufUS":
                    raise Refused(
                        f"{member.filename} holds {dtype}, not numbers or strings; Python objects are not "
                        "unpickled, for that can run code; write plain arrays"
                    )
                content = stream.read()
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
                raise Refused(
                    f"{member.filename} declares shape {shape} of {dtype} but holds {len(content):,} bytes; "
                    "write it again"
                )
            order = "F" if fortran_order else "C"
            arrays[member.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(
                shape, order=order
            )
    return arrays


def _read_hdf5(path, layer=None, backed=False):
    """An HDF5 file of any of the kinds known, told apart by what is inside."""
    h5py = need("h5py")
    with h5py.File(path, "r") as file:
        _check_declared(file, os.path.getsize(path))
        if "obs" in file and "var" in file:
            return _h5ad(file, layer, backed)
        if backed:
            raise Refused(BACKED)
        if isinstance(file.get("matrix"), h5py.Dataset):
            return _loom(file, layer)
        if layer is not None:
            raise Refused(f"layer={layer!r}: only .h5ad and .loom files have layers")
        groups = [
            key for key, item in file.items() if isinstance(item, h5py.Group) and "barcodes" in item
        ]
        if len(groups) != 1:
            raise Refused(
                f"neither AnnData nor loom, nor 10x with one genome (groups with barcodes: {groups})"
            )
        return _tenx(file[groups[0]])


def _check_declared(file, size: int):
    """Refuse arrays that declare far more than the file holds, or lie in other files. Matrices are read in blocks."""
    h5py, found, declared = need("h5py"), [], 0
    file.visititems(lambda name, item: found.append((name, item)))
    file.visititems_links(lambda name, link: found.append((name, link)))
    for name, item in found:
        dataset = (
            isinstance(item, h5py.Dataset) and item.shape is not None
        )  # no shape: anndata's None
        if isinstance(item, h5py.ExternalLink) or dataset and (item.external or item.is_virtual):
            raise Refused(f"keeps {name} in another file; write all into one")
        if dataset:
            _allow(item.nbytes, item.id.get_storage_size(), name, ratio=1100)  # deflate's limit
            declared += item.nbytes if item.ndim < 2 else 0
    _allow(declared, size, "the file")


def _load(dataset) -> np.ndarray:
    """A whole HDF5 array, strings as str."""
    if need("h5py").check_string_dtype(dataset.dtype) is None:
        return np.asarray(dataset[()])
    strings = np.ravel(dataset.asstr()[()]).tolist()
    longest = max(map(len, strings), default=0)  # NumPy gives each string the room of the longest
    _allow(4 * longest * len(strings), sum(map(len, strings)), dataset.name, ratio=50)
    return np.array(strings, dtype=str).reshape(dataset.shape)


def _dense(dataset, genes_first: bool = False):
    """A dense HDF5 matrix as CSR with cells as rows, a block of cells at a time."""
    n_cells, n_genes = dataset.shape[::-1] if genes_first else dataset.shape
    blocks, step = [], max(64, 4 * BLOCK // max(n_genes, 1))
    for a in range(0, n_cells, step):
        block = dataset[:, a : a + step].T if genes_first else dataset[a : a + step]
        blocks.append(sparse.csr_array(_plain(block)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((n_cells, n_genes))


def _pick(group, layer):
    """A layer, or the sentence that says which there are."""
    layers = group.get("layers", {})
    if layer not in layers:
        raise Refused(f"no layer {layer!r}; there are: {', '.join(layers) or 'none'}")
    return layers[layer]


def _h5ad(file, layer, backed):
    """AnnData's format since 0.7, https://anndata.readthedocs.io/en/latest/fileformat-prose.html."""
    raw = layer == "raw" and "raw" in file and layer not in file.get("layers", {})
    group = file["raw"] if raw else file
    if layer is None and "X" not in file:
        raise Refused(
            f"has no X; say which layer to read: {', '.join(file.get('layers', {})) or 'there are none'}"
        )
    item = group["X"] if raw or layer is None else _pick(file, layer)
    if backed:
        X = _on_disk(item)
    elif hasattr(item, "keys"):
        form = str(item.attrs["encoding-type"])[:3]
        X = _compressed(
            form, *(_load(item[key]) for key in ("data", "indices", "indptr")), item.attrs["shape"]
        )
    else:
        X = _dense(item)
    genes, _ = frame(group["var"], columns=False)
    return X, genes, *frame(file["obs"])


def _on_disk(item) -> Blocks:
    """A matrix of an open .h5ad file as a column that stays there. The file is opened anew for each block: this takes a
    millisecond, and leaves nothing open that processes or threads would share."""
    h5py, path, place = need("h5py"), os.path.abspath(item.file.filename), item.name
    if not hasattr(item, "keys"):
        bounds = np.append(
            np.arange(0, item.shape[0], max(1, BLOCK // max(item.shape[1], 1))), item.shape[0]
        )
        return Blocks(lambda *rows: _rows_of_dense(h5py, path, place, *rows), bounds, item.shape[1])
    form, shape = str(item.attrs["encoding-type"])[:3], tuple(int(n) for n in item.attrs["shape"])
    if form != "csr":
        raise Refused(
            f"{place} is stored as {form}, by columns, and rows are to be read: write it once by rows, with "
            "adata.X = adata.X.tocsr() and adata.write_h5ad(...); or read it without backed=True"
        )
    indptr = _load(item["indptr"])
    _check_compressed(shape, len(item["data"]), len(item["indices"]), indptr)

    def rows(start, stop):
        a, b = int(indptr[start]), int(indptr[stop])
        with h5py.File(path, "r") as file:
            data, indices = file[place]["data"][a:b], file[place]["indices"][a:b]
        index = np.int32 if max(b - a, shape[1]) < 2**31 else np.int64
        parts = _plain(data), indices.astype(index), (indptr[start : stop + 1] - a).astype(index)
        return sparse.csr_array(parts, shape=(stop - start, shape[1]))

    return Blocks(rows, block_bounds(indptr), shape[1])


def _rows_of_dense(h5py, path, place, start, stop):
    with h5py.File(path, "r") as file:
        return sparse.csr_array(_plain(file[place][start:stop]))


def frame(group, columns: bool = True) -> tuple[np.ndarray | None, dict]:
    """Names (n,) and columns of AnnData's obs or var; a column of categories, or with missing values, is two arrays.

    Refused, a ValueError, for a layout that is too old.
    """
    if not hasattr(group, "keys"):
        raise Refused("written by anndata before 0.7; open and write it with a newer one")

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
    genes = next(
        (
            _load(file["row_attrs"][key])
            for key in ("Gene", "var_names")
            if key in file["row_attrs"]
        ),
        None,
    )
    return X, genes, cells, columns


def _tenx(group):
    """Cell Ranger's HDF5, v2 or v3. Its sparse columns of genes x cells are sparse rows of cells x genes."""
    *arrays, shape, cells = (
        _load(group[key]) for key in ("data", "indices", "indptr", "shape", "barcodes")
    )
    X = _compressed("csr", *arrays, shape[::-1])
    if "features" not in group:
        return X, _load(group["gene_names"]), cells, {}
    return (
        *_expression_only(X, *(_load(group["features"][key]) for key in ("name", "feature_type"))),
        cells,
        {},
    )


def _expression_only(X, genes, kinds):
    """Without antibodies and guides, where a 10x file has features of several kinds."""
    keep = np.asarray(kinds) == "Gene Expression"
    return (X[:, keep], np.asarray(genes)[keep]) if keep.any() else (X, genes)


def _pieces(path):
    """The text of a file, gzipped or not, in pieces of whole lines; no more of it than so small a file can hold."""
    total, rest, encoding, zipped = 0, b"", "utf-8-sig", path.name.lower().endswith(".gz")
    if (
        zipped
    ):  # the last four bytes say how long the text is: honest bombs are known here, others below
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            _allow(int.from_bytes(file.read(), "little"), os.path.getsize(path), "the text")
    with (gzip.open if zipped else open)(path, "rb") as file:
        while piece := file.read(4 * BLOCK):
            total += len(piece)
            _allow(total, os.path.getsize(path), "the text")
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield (lines + newline).decode(encoding)
                encoding = "utf-8"
            elif len(rest) > 16 * BLOCK:
                raise Refused("a line of more than 16 MB; write a line for each cell")
    yield rest.decode(encoding)


def _lines(path):
    """The same, line by line."""
    return (line for piece in _pieces(path) for line in io.StringIO(piece))


def _read_folder(path):
    """The one matrix.mtx of a folder, which may have something before its name."""
    found = sorted(
        p for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith("matrix.mtx")
    )
    if len(found) != 1:
        raise Refused(
            f"a 10x folder holds one matrix.mtx or matrix.mtx.gz, this {len(found)}; pass the file itself"
        )
    return _read_mtx(found[0])


def _read_mtx(path):
    """A Matrix Market file, and the label files beside it if it is one of 10x Genomics."""
    X = _matrix_market(path)
    before, matrix, _ = path.name.partition("matrix.mtx")
    features = (
        _labels_beside(path, [before + "features.tsv", before + "genes.tsv"]) if matrix else None
    )
    barcodes = _labels_beside(path, [before + "barcodes.tsv"]) if matrix else None
    if features is None or barcodes is None:
        return X, None, None, {}
    genes, cells = [row[min(1, len(row) - 1)] for row in features], [row[0] for row in barcodes]
    if X.shape == (len(genes), len(cells)):
        X = X.T
    elif X.shape != (len(cells), len(genes)):
        raise Refused(
            f"has shape {X.shape}, but beside it are names of {len(genes)} genes and {len(cells)} cells"
        )
    kinds = [row[2] if len(row) > 2 else "" for row in features]
    return *_expression_only(sparse.csr_array(X), genes, kinds), cells, {}


def _matrix_market(path):
    """A Matrix Market file. Not by scipy.io.mmread (SciPy 1.17), which a damaged file can make crash Python."""
    pieces = _pieces(path)
    lines = io.StringIO(next(pieces))
    banner = next(lines, "").lower().split()
    width = {
        "coordinate integer": 3,
        "coordinate real": 3,
        "coordinate pattern": 2,
        "array integer": 1,
        "array real": 1,
    }.get(" ".join(banner[2:4]))
    if width is None or banner[4:] != ["general"]:
        raise Refused(
            f"starts with {' '.join(banner)[:80]!r}; write it as 'coordinate integer general'"
        )
    sizes = next(line for line in lines if line.strip() and line[0] != "%")
    n_rows, n_columns, *n = map(int, sizes.split())
    n_entries = n[0] if width > 1 else n_rows * n_columns
    _check_extent(n_rows, n_columns, n_entries)
    dtype = np.float64 if banner[3] == "real" else np.int64
    parts = [
        np.fromstring(piece, dtype, sep=" ")
        for piece in itertools.chain([lines.read()], pieces)
        if piece.strip()
    ]
    values = np.concatenate(parts or [np.empty(0, dtype)])
    if len(values) != n_entries * width:
        raise Refused(
            f"holds {len(values)} numbers where {n_entries} entries need {n_entries * width}; the file is "
            "truncated or damaged, write it again"
        )
    if width == 1:
        return sparse.csr_array(values.reshape(n_columns, n_rows).T)
    values = values.reshape(n_entries, width)
    rows, columns = values[:, 0] - 1, values[:, 1] - 1
    if not all((i >= 0).all() and (i < n).all() for i, n in ((rows, n_rows), (columns, n_columns))):
        raise Refused(
            "row or column numbers lie outside the shape; the file is damaged, write it again"
        )
    data = values[:, 2] if width == 3 else np.ones(n_entries)
    return sparse.coo_array(
        (data, (rows.astype(np.int64), columns.astype(np.int64))), shape=(n_rows, n_columns)
    )


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
            raise Refused(f"line {rows.line_num} has {len(row) - 1} counts for {len(genes)} genes")
        try:
            values = np.array(row[1:], dtype=np.float64)
        except ValueError as error:
            raise Refused(
                f"line {rows.line_num}: {error}; gene names belong in the first line, cell names in the "
                "first column, and counts in the rest"
            ) from None
        cells.append(row[0])
        indices.append(np.flatnonzero(values))
        data.append(values[indices[-1]])
        lengths.append(len(data[-1]))
    if not cells:
        raise Refused("holds no cells: a line of gene names, then a line for each cell")
    X = sparse.csr_array(
        (np.concatenate(data), np.concatenate(indices), np.cumsum(lengths)),
        (len(cells), len(genes)),
    )
    return X, genes, cells, {}

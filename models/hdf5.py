"""HDF5 files of counts: .h5ad (AnnData), .h5 (10x Genomics), .loom.

This is engineering.

Know before reading: files.py, and how h5py shows a file: groups hold groups and arrays by name, and
both have attributes. All three keep the counts as an array or as the three arrays of a sparse
matrix, beside names and what else is known.

They are written by more programs than those who defined them. Python's h5py stores strings of any
length; Julia's HDF5.jl and R's rhdf5 and hdf5r store them at one fixed length, ended or filled up
by zeros or spaces, and an attribute of one string as a list of one: `_decoded` and `_attribute` are
where these are the same. AnnData 0.6 had one array of records where 0.7 has a group with an array
for each column. What is known of the cells is no reason to give up the counts: a column that cannot
be read is left out, and named in the notes.

Know after: where each format keeps what, and what of a matrix on the disk is read when.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from minigrad.data import Blocks, block_bounds
from models.files import (
    BLOCK,
    Content,
    Refused,
    allow,
    check_compressed,
    compressed,
    need,
    plain,
)

ENDINGS = (".h5ad", ".h5", ".loom")
NO_LAYERS = "only .h5ad and .loom files have layers"
NOT_BACKED = (
    "backed=True: only .h5ad files are read from the disk; read it without, or write it as .h5ad "
    "with anndata"
)

DEEPEST = 50  # groups in groups: those of AnnData are a few deep
# Strings read in one go: as many as have no more than these bytes even if each is as long as the
# file, but not so few that it takes long.
AT_ONCE = 2**28
LEAST_STRINGS = 64

# What files of loom call the names of genes and of cells; the first that is there is taken.
LOOM_GENES = ("Gene", "var_names", "gene_names", "gene", "GeneName", "Symbol", "Accession")
# What is known of genes in files of 10x Genomics: our name, which is AnnData's, and theirs.
TENX = {"gene_ids": "id", "feature_types": "feature_type", "genome": "genome"}
LOOM_CELLS = ("CellID", "obs_names", "cell_names", "cell_id", "CellName", "barcode")


def read_hdf5(
    path: Path, transpose: bool = False, layer: str | None = None, backed: bool = False
) -> Content:
    """An HDF5 file of any of the kinds known, told apart by what is inside; the arguments are those
    of counts.read.

    Raises Refused, and whatever h5py raises on a damaged file.
    """
    h5py = need("h5py")
    with h5py.File(path, "r") as file:
        _check_declared(file, os.path.getsize(path))
        if "obs" in file and "var" in file:
            return _h5ad(file, layer, backed, transpose)
        if backed:
            raise Refused(NOT_BACKED)
        content = _loom(file, layer) if "matrix" in file and _is_array(file["matrix"]) else None
        if content is None and layer is not None:
            raise Refused(f"layer={layer!r}: {NO_LAYERS}")
        content = content or _tenx(_genome(file))
        return content.transposed() if transpose else content


def _is_array(item) -> bool:
    return isinstance(item, need("h5py").Dataset)


def _check_declared(file, size: int) -> None:
    """Refuse arrays that declare far more than the file holds, or lie in other files, and folders
    in folders without end. Matrices are read in blocks.
    """
    h5py = need("h5py")
    found = []
    declared = 0

    def note(name, item):
        if name.count("/") > DEEPEST:
            raise Refused(f"holds groups in groups, more than {DEEPEST} deep; write it again")
        found.append((name, item))

    file.visititems(note)
    file.visititems_links(note)
    for name, item in found:
        has_values = _is_array(item) and item.shape is not None  # no shape: anndata's None
        if isinstance(item, h5py.ExternalLink) or has_values and (item.external or item.is_virtual):
            raise Refused(f"keeps {name} in another file; write all into one")
        if has_values:
            allow(item.nbytes, item.id.get_storage_size(), name, ratio=1100)  # deflate's limit
            if item.chunks is not None:  # each is unpacked whole, however little of it is used
                chunk = math.prod(item.chunks) * item.dtype.itemsize
                allow(chunk, item.nbytes, f"a piece of {name}", ratio=16)
            declared += item.nbytes if item.ndim < 2 else 0
    allow(declared, size, "the file")


# --------------------------------------------------------------------------------------- the values
def _decoded(values, kind, name: str) -> np.ndarray:
    """Strings as str, however they are stored; bytes that are no UTF-8 stay visible, as \\xff.

    values: str or bytes, as h5py gives them, any shape. kind: their type in the file,
    h5py.h5t.TypeStringID.
    """
    values = np.asarray(values)
    strings = []
    for value in values.ravel().tolist():
        stored = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        strings.append(stored.decode("utf-8", "backslashreplace"))
    if kind.get_strpad() == need("h5py").h5t.STR_SPACEPAD:
        strings = [string.rstrip(" ") for string in strings]
    longest = max(map(len, strings), default=0)  # NumPy gives each string the room of the longest
    allow(4 * longest * len(strings), sum(map(len, strings)), name, ratio=50)
    return np.array(strings, dtype=str).reshape(values.shape)


def _attribute(item, *keys) -> list[str] | None:
    """The strings of the first of these attributes that is there, one or many; or None."""
    h5py = need("h5py")
    key = next((key for key in keys if key in item.attrs), None)
    if key is None:
        return None
    value = item.attrs[key]
    kind = item.attrs.get_id(key).get_type()
    if isinstance(value, h5py.Empty) or np.size(value) == 0:
        return []
    if not isinstance(kind, h5py.h5t.TypeStringID):
        raise Refused(f"{item.name} has {key} = {value!r}, which must be text; write it again")
    return np.ravel(_decoded(value, kind, key)).tolist()


def _values(dataset) -> np.ndarray:
    """A whole array of the file, strings as str."""
    kind = dataset.id.get_type()
    is_of_any_length = isinstance(kind, need("h5py").h5t.TypeStringID) and kind.is_variable_str()
    read = _strings if is_of_any_length and dataset.ndim == 1 else lambda dataset: dataset[()]
    return _plain_or_text(read(dataset), kind, dataset.name)


def _strings(dataset) -> np.ndarray:
    """Strings (n,) of any length, a few at a time: a file can hold one long string, and name it in
    every place. Refused where they come to more than the file has bytes.
    """
    size = dataset.file.id.get_filesize()
    step = max(LEAST_STRINGS, AT_ONCE // max(size, 1))
    parts = [np.empty(0, object)]
    n_bytes = 0
    for start in range(0, len(dataset), step):
        part = dataset[start : start + step]
        n_bytes += sum(map(len, part.tolist()))
        allow(n_bytes, size, dataset.name, ratio=1)
        parts.append(part)
    return np.concatenate(parts)


def _field(dataset, key: str) -> np.ndarray:
    """One field of an array of records, strings as str."""
    kind = dataset.id.get_type()
    kind = kind.get_member_type(kind.get_member_index(key.encode()))
    return _plain_or_text(dataset[key], kind, key)


def _plain_or_text(values, kind, name: str) -> np.ndarray:
    """Numbers as they are, strings as str. Refused for records, lists and whatever else HDF5 can
    hold.
    """
    if isinstance(kind, need("h5py").h5t.TypeStringID):
        return _decoded(values, kind, name)
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise Refused(f"its values are {values.dtype}, not numbers or text")
    return values


def _coded(codes, categories) -> np.ndarray:
    """The category of each cell; None, in an array of objects, where it has none (code -1)."""
    if len(categories) == 0:
        return np.full(codes.shape, None)
    return _with_missing(categories[np.maximum(codes, 0)], codes < 0)


def _with_missing(values, missing) -> np.ndarray:
    """The values; if any is missing in an array of objects, with None in its place."""
    if not missing.any():
        return values
    values = values.astype(object)
    values[missing] = None
    return values


def _readable(read, keys, n: int, what: str) -> tuple[dict, tuple]:
    """(name -> values, notes): of these columns those that can be read, and have one number or
    string for each cell.

    read: called with a key, gives values. n: of how many cells. what: what notes call a column.
    """
    columns = {}
    notes = []
    for key in keys:
        try:
            values = read(key)
            if values.shape != (n,):
                raise Refused(f"its shape is {values.shape}, not ({n},)")
        except Exception as error:  # whatever h5py raises: the counts can be read without it
            reason = error if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
            notes.append(f"{what} {key!r} left out: {reason}")
        else:
            columns[str(key)] = values
    return columns, tuple(notes)


# ------------------------------------------------------------------------------------------ AnnData
def _h5ad(file, layer, backed: bool, transpose: bool) -> Content:
    """AnnData's format since 0.7, https://anndata.readthedocs.io/en/latest/fileformat-prose.html,
    and that of 0.6.
    """
    layers = file.get("layers", {})
    item = var = None
    if layer is None:
        item, var = file.get("X"), file["var"]
    elif layer in layers:
        item, var = layers[layer], file["var"]
    elif layer == "raw" and "raw" in file:
        item, var = file["raw"].get("X"), file["raw"]["var"]
    elif layer == "raw" and "raw.X" in file:  # 0.6
        item, var = file["raw.X"], file["raw.var"]
    if item is None and "mod" in file:
        raise Refused(
            f"MuData, with the parts {', '.join(file['mod'])}; write the one with the counts as "
            ".h5ad, such as mdata['rna'].write_h5ad(...)"
        )
    if item is None:
        what = (
            "has no X; say which layer to read"
            if layer is None
            else f"no layer {layer!r}; there are"
        )
        raise Refused(f"{what}: {', '.join(layers) or 'none'}")
    if backed and transpose:
        raise Refused(
            "transpose=True: columns cannot be read from the disk as rows; read it without "
            "backed=True"
        )
    obs = file["obs"]
    if transpose:
        obs, var = var, obs
    X: Any = _on_disk(item) if backed else _matrix(item)
    cells = index_of(obs)
    columns, notes = _readable(
        lambda key: _column(obs, key), column_order(obs), len(cells), "obs column"
    )
    genes = index_of(var)
    of_genes, _ = _readable(lambda key: _column(var, key), column_order(var), len(genes), "")
    return Content(X.T if transpose else X, genes, cells, columns, notes, of_genes)


def _matrix(item):
    """The matrix of an .h5ad file, in memory."""
    if _is_array(item):
        return _dense(item)
    arrays = (_values(item[key]) for key in ("data", "indices", "indptr"))
    return compressed(_form(item), *arrays, _shape(item))


def _form(item) -> str:
    """ "csr" or "csc". 0.6 has it as h5sparse_format."""
    form = _attribute(item, "encoding-type", "h5sparse_format")
    if not form:
        raise Refused(
            f"{item.name} says in no attribute (encoding-type) how it is stored; write it again"
        )
    return form[0].strip()[:3]


def _shape(item) -> np.ndarray:
    shape = item.attrs.get("shape", item.attrs.get("h5sparse_shape"))
    if shape is None:
        raise Refused(f"{item.name} has no attribute shape; write it again")
    return shape


def _dense(dataset, genes_first: bool = False) -> sparse.csr_array:
    """A dense HDF5 matrix as CSR with cells as rows, a block of cells at a time."""
    n_cells, n_genes = dataset.shape[::-1] if genes_first else dataset.shape
    step = max(64, 4 * BLOCK // max(n_genes, 1))
    blocks = []
    for start in range(0, n_cells, step):
        cells = slice(start, start + step)
        block = dataset[:, cells].T if genes_first else dataset[cells]
        blocks.append(sparse.csr_array(plain(block)))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_array((n_cells, n_genes))


def _on_disk(item) -> Blocks:
    """A matrix of an open .h5ad file as a column that stays there. The file is opened anew for each
    block: this takes a millisecond, and leaves nothing open that processes or threads would share.
    """
    h5py = need("h5py")
    path = os.path.abspath(item.file.filename)
    place = item.name
    if _is_array(item):
        n_cells, n_genes = item.shape
        bounds = np.append(np.arange(0, n_cells, max(1, BLOCK // max(n_genes, 1))), n_cells)

        def dense_rows(start, stop):
            with h5py.File(path, "r") as file:
                return sparse.csr_array(plain(file[place][start:stop]))

        return Blocks(dense_rows, bounds, n_genes)
    form = _form(item)
    shape = tuple(int(n) for n in _shape(item))
    if form != "csr":
        raise Refused(
            f"{place} is stored as {form}, by columns, and rows are to be read: write it once by "
            "rows, with adata.X = adata.X.tocsr() and adata.write_h5ad(...); or read it without "
            "backed=True"
        )
    indptr = _values(item["indptr"])
    check_compressed(shape, len(item["data"]), len(item["indices"]), indptr)

    def rows(start, stop):
        a, b = int(indptr[start]), int(indptr[stop])
        with h5py.File(path, "r") as file:
            data, indices = file[place]["data"][a:b], file[place]["indices"][a:b]
        index = np.int32 if max(b - a, shape[1]) < 2**31 else np.int64
        parts = plain(data), indices.astype(index), (indptr[start : stop + 1] - a).astype(index)
        return sparse.csr_array(parts, shape=(stop - start, shape[1]))

    return Blocks(rows, block_bounds(indptr), shape[1])


def index_of(table) -> np.ndarray:
    """The names, (n,) str, in AnnData's obs or var, a group or (0.6) an array of records. Raises
    Refused where there are none.
    """
    if _is_array(table):
        return _field(table, table.dtype.names[0])
    key = (_attribute(table, "_index") or ["_index"])[0]
    if key not in table:
        raise Refused(
            f"{table.name} has no array {key!r}, where its names should be; write it again"
        )
    return _column(table, key)


def column_order(table) -> list[str]:
    """The names of all columns of AnnData's obs or var, but for the index."""
    if _is_array(table):
        return list(table.dtype.names[1:])
    order = _attribute(table, "column-order")
    if order is None:
        index = (_attribute(table, "_index") or ["_index"])[0]
        order = [key for key in table if key not in (index, "__categories")]
    return order


def _column(table, key: str) -> np.ndarray:
    """A column of AnnData's obs or var, categories as what they stand for; None, in an array of
    objects, where it is missing.
    """
    if _is_array(table):
        values = _field(table, key)
        categories = table.file.get(f"uns/{key}_categories")
        if categories is None or values.dtype.kind not in "iu":
            return values
        return _coded(values, np.atleast_1d(_values(categories)))  # one alone is no list
    item = table[key]
    if "categories" in item.attrs:  # anndata 0.7 keeps them apart, and refers to them
        return _coded(_values(item), _values(table.file[item.attrs["categories"]]))
    if _is_array(item):
        return _values(item)
    if "codes" in item and "categories" in item:
        return _coded(_values(item["codes"]), _values(item["categories"]))
    if "values" in item and "mask" in item:
        return _with_missing(_values(item["values"]), _values(item["mask"]))
    raise Refused(f"a form that is not known, a group of {', '.join(item) or 'nothing'}")


# ------------------------------------------------------------------------------------ loom, and 10x
def _loom(file, layer) -> Content:
    """loom, https://linnarssonlab.org/loompy/format: dense, genes as rows. Of its attributes, only
    vectors are kept.
    """
    layers = file.get("layers", {})
    if layer is not None and layer not in layers:
        raise Refused(f"no layer {layer!r}; there are: {', '.join(layers) or 'none'}")
    X = _dense(file["matrix"] if layer is None else layers[layer], genes_first=True)
    of_cells, of_genes = file.get("col_attrs", {}), file.get("row_attrs", {})
    columns, notes = _readable(
        lambda key: _values(of_cells[key]), of_cells, X.shape[0], "column attribute"
    )
    cells = next((columns.pop(key) for key in LOOM_CELLS if key in columns), None)
    key = next((key for key in LOOM_GENES if key in of_genes), None)
    if key is None:
        notes += (
            f"genes are numbered: of the row attributes ({', '.join(of_genes) or 'none'}) none is "
            f"known to hold their names; known: {', '.join(LOOM_GENES)}",
        )
    genes = None if key is None else _values(of_genes[key])
    var, _ = _readable(lambda key: _values(of_genes[key]), of_genes, X.shape[1], "")
    return Content(X, genes, cells, columns, notes, var)


def _genome(file):
    """The one group of a 10x file that holds a matrix."""
    groups = [key for key, item in file.items() if not _is_array(item) and "barcodes" in item]
    if len(groups) != 1:
        raise Refused(
            f"neither AnnData nor loom, nor 10x with one genome (groups with barcodes: {groups})"
        )
    return file[groups[0]]


def _tenx(group) -> Content:
    """Cell Ranger's HDF5, v2 or v3. Its sparse columns of genes x cells are sparse rows of cells x
    genes.
    """
    data, indices, indptr, shape, cells = (
        _values(group[key]) for key in ("data", "indices", "indptr", "shape", "barcodes")
    )
    X = compressed("csr", data, indices, indptr, shape[::-1])
    if "features" not in group:
        var, _ = _readable(lambda _: _values(group["genes"]), ["gene_ids"], X.shape[1], "")
        return Content(X, _values(group["gene_names"]), cells, var=var)
    features = group["features"]
    genes = _values(features["name"])
    var, _ = _readable(lambda key: _values(features[TENX[key]]), TENX, len(genes), "")
    return Content(X, genes, cells, var=var)

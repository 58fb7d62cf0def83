"""Count matrices: read from files, checked once, normalised, and their genes selected.

This is engineering.

Know before reading: single-cell RNA-seq counts molecules per cell (row) and gene (column). 70 to 95
% of the entries are zero, so a matrix is kept as compressed sparse rows (CSR): `data` and `indices`
hold the non-zero counts and their columns, row after row, and row i is `indptr[i]:indptr[i + 1]`.
What lies in files of every format: files.py. A matrix larger than the memory stays on the disk, as
minigrad/data.py's Blocks.

Know after: the one place, `as_matrix`, where anything a user passes is checked and brought to one
form; what "normalised" means; and two rules by which genes are selected.
"""

from __future__ import annotations

import os
import shutil
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from minigrad.backend import Matrix
from minigrad.checkpoint import whole_file
from minigrad.data import Blocks, pieces
from minigrad.notebook import as_html, for_number, number_of
from models import locks
from models.annotation import annotation_of
from models.files import (
    BLOCK,
    Content,
    Refused,
    expression_only,
    need,
    read_npz,
    read_table,
    refuse_pipes,
)
from models.fractions import (
    NEAR,
    number_of_fractions,
    round_counts,
    spread,
    why_doubtful,
    why_no_counts,
    with_fractions,
)
from models.hdf5 import ENDINGS, NO_LAYERS, NOT_BACKED, column_order, index_of, read_hdf5
from models.hdf5_writing import hdf5_file
from models.joining import join, names_of_files
from models.labels import (
    by_cell,
    missing_in,
    name_of_cell,
    refuse_missing,
    unique_names,
    values_of,
)
from models.matrix_market import read_folder, read_mtx
from models.orientation import advice
from models.zarr_store import is_zarr, read_zarr

AT_FIRST = 32  # blocks of a matrix on the disk in which fractions are looked for
LARGEST_COUNT = 2**24  # float32 holds every whole number up to here, and not 2**24 + 1
USUAL = {  # where counts are, by layer
    "counts": 'in adata.layers["counts"] (layer="counts")',
    "raw": 'in adata.raw (layer="raw")',
    None: "in X (without layer)",
}
OF_R = ": R reads it; write the counts there, with Matrix::writeMM, and their names beside"
PACKED = ": unpack it first"
ADVICE = {  # about files of other formats, by their endings
    **dict.fromkeys((".rds", ".rdata", ".rda", ".h5seurat"), OF_R),
    **dict.fromkeys((".zip", ".bz2", ".xz", ".tar", ".tgz", ".7z", ".gz"), PACKED),
    **dict.fromkeys((".xlsx", ".xls"), ": save the sheet as .csv"),
    ".h5mu": ": MuData of several parts; write the one with the counts, as mdata['rna'], as .h5ad",
    **dict.fromkeys((".parquet", ".feather", ".pkl"), ": write the table as .csv, or as .h5ad"),
}
HOW_TO_ROUND = "read(..., rounded=True), or models.counts.round_counts(matrix)"
WHAT_FOLLOWS = (  # where fractions were rounded that nobody asked to round
    "they are fractions, as corrections for ambient RNA leave them, or reads that several genes "
    "share. A likelihood of counts is one of whole numbers: what it says here is of this one "
    "rounding, the same each time the file is read, in which an entry with the fraction f varies "
    "by f (1 - f) more than the corrected count does. To have it otherwise, take the counts as "
    "they were before the correction; rounded=True is this without so many words, and "
    "rounded=False refuses fractions"
)
ROUNDED = (
    f"some entries are less than {NEAR:g} off a whole number, as calculations leave them; they "
    "were "
    "rounded"
)


@dataclass(eq=False)
class Counts:
    """A count matrix with its names.

    X: counts, (n_cells, n_genes), from `read` canonical CSR in float32, in memory or (Blocks) on
    the disk. genes: (n_genes,) and cells: (n_cells,) names, which need not be unique. obs: what is
    known of each cell, name -> (n_cells,) array, or a Series by name of the cell. var: what is
    known of each gene, name -> (n_genes,). Raises ValueError where lengths disagree.

    For scanpy take `to_anndata()`, and not AnnData(counts.X): of the arrays of SciPy, other than of
    its matrices, scanpy's `normalize_total` makes something dense that takes many times the memory
    of a dense matrix, and other functions fail (scanpy 1.11).
    """

    X: sparse.csr_array | Blocks
    genes: np.ndarray
    cells: np.ndarray
    obs: dict = field(default_factory=dict)
    var: dict = field(default_factory=dict)

    def __post_init__(self):
        self.genes, self.cells = (
            np.asarray(self.genes).astype(str),
            np.asarray(self.cells).astype(str),
        )
        self.obs = {
            key: np.asarray(by_cell(values, self.cells, f"obs[{key!r}]"))
            for key, values in self.obs.items()
        }
        self.var = {key: np.asarray(values) for key, values in self.var.items()}
        n_cells, n_genes = self.X.shape
        lengths = {"genes": (self.genes, n_genes), "cells": (self.cells, n_cells)}
        lengths.update({f"obs[{key!r}]": (values, n_cells) for key, values in self.obs.items()})
        lengths.update({f"var[{key!r}]": (values, n_genes) for key, values in self.var.items()})
        for name, (values, n) in lengths.items():
            if values.shape != (n,):
                raise Refused(
                    f"{name} has shape {values.shape}, needs ({n},): X is {n_cells} cells x "
                    f"{n_genes} genes"
                )

    @property
    def shape(self) -> tuple:
        """(n_cells, n_genes)."""
        return self.X.shape

    def __len__(self) -> int:
        return self.X.shape[0]

    def __repr__(self) -> str:
        obs = ", ".join(self.obs) or "none"
        return f"Counts({self._sizes()}; obs: {obs})"

    def _sizes(self) -> str:
        return f"{number_of(len(self), 'cell')} x {number_of(self.shape[1], 'gene')}"

    def _repr_html_(self) -> str:
        rows = [(name, _in_words(values)) for name, values in self.obs.items()]
        return as_html(["obs", "what is there"], rows, f"Counts: {self._sizes()}")

    def __getitem__(self, cells) -> Counts:
        """The cells of a slice, a mask, an array of positions or one position, as Counts."""
        rows = np.atleast_1d(np.arange(len(self))[cells])
        return Counts(
            self.X[rows],
            self.genes,
            self.cells[rows],
            {key: v[rows] for key, v in self.obs.items()},
            self.var,
        )

    def annotated(self, columns) -> Counts:
        """The cells that have a value in all of these columns of obs, as Counts.

        columns: a name, or several. Missing is what is None or NaN, or a text that says so, as "NA"
        does. A warning says how many cells are left out. ValueError where none is left, and for a
        column that is not there.
        """
        names = [columns] if isinstance(columns, str) else list(columns)
        is_known = np.full(len(self), True)
        for name in names:
            if name not in self.obs:
                raise ValueError(
                    f"columns: no obs column {name!r}; there are: {', '.join(self.obs) or 'none'}"
                )
            is_missing_here = missing_in(self.obs[name])
            n = int(np.sum(is_missing_here))
            if n:
                warnings.warn(
                    f"{n:,} of {number_of(len(self), 'cell')} {for_number(n, 'has', 'have')} no "
                    f"value in the column {name!r}, such as "
                    f"{str(self.cells[is_missing_here][0])!r}: left out",
                    stacklevel=2,
                )
            is_known &= ~is_missing_here
        if not is_known.any():
            raise ValueError(f"columns: no cell has a value in all of {', '.join(names)}")
        return self if is_known.all() else self[is_known]

    def select_genes(self, genes) -> Counts:
        """The genes of a boolean mask, an array of positions or a slice, as Counts."""
        columns = np.atleast_1d(np.arange(self.shape[1])[genes])
        X = self.X
        if isinstance(X, Blocks):
            X = X.select_columns(columns)
        else:
            X = X[:, columns]
            X.sort_indices()
        var = {key: values[columns] for key, values in self.var.items()}
        return Counts(X, self.genes[columns], self.cells, self.obs, var)

    def to_anndata(self) -> Any:
        """A new AnnData object: X as a `scipy.sparse.csr_matrix`, obs, var, and names made unique.

        That class of SciPy's is the one that scanpy's functions take. A `csr_array`, such as
        `Counts.X`, they make dense (scanpy 1.11). A matrix on the disk is read into memory.
        ImportError without anndata.
        """
        anndata, pandas = need("anndata"), need("pandas")
        X = self.X
        if isinstance(X, Blocks):
            X = sparse.vstack([part for _, part in pieces(X)], format="csr")

        def frame(columns: dict, names: np.ndarray):
            made = {  # None in a column of objects is no category
                key: pandas.Categorical(v) if v.dtype == object else v for key, v in columns.items()
            }
            return pandas.DataFrame(made, index=unique_names(names))

        return anndata.AnnData(
            X=sparse.csr_matrix(X), obs=frame(self.obs, self.cells), var=frame(self.var, self.genes)
        )


# Reading


def read(
    path,
    layer: str | None = None,
    backed: bool = False,
    *,
    transpose: bool = False,
    obs=None,
    only_annotated: bool = False,
    gene_names: str | None = None,
    rounded: bool | None = None,
) -> Counts:
    """Counts from a file or a 10x folder, checked as `as_matrix` does.

    path, or a list of several, whose cells are joined on the genes that all have, with the name of
    the file as obs["file"] (joining.py): .h5ad; .zarr, a folder of AnnData's; .h5 of 10x Genomics
    (v2, v3; gene expression only); .loom; .mtx, or a folder with one; .csv, .tsv, .txt; .npz with
    `data, indices, indptr, shape` and optionally `genes`, `cells` and further arrays with one entry
    per cell, which become `obs`. .mtx, .csv, .tsv, .txt may be gzipped. Tables have CELLS AS ROWS,
    gene names in the first line and cell names in the first column; what stands between the fields
    is found out; names that seem to be the wrong way round (orientation.py) are a warning. An .mtx
    is turned as the files of names beside it say (barcodes.tsv, and features.tsv or genes.tsv, as
    Cell Ranger, STARsolo, kallisto and alevin write them; also .csv, .txt, .gz, or with a prefix);
    how one without names was read, a warning says. layer: the layer of an .h5ad ("raw": `raw.X`) or
    .loom file. Default: the main matrix. backed: leave the matrix of an .h5ad file (csr or dense)
    on the disk: X is Blocks, which SCVI trains on and predicts from, with memory for a few blocks
    only; each block is checked when it is read. Do not change the file meanwhile. transpose: the
    file has it the other way round than said above: what would be genes are cells. obs: path of a
    table with a line for each cell, joined by the names of cells (annotation.py), or a list of
    several, of which the later counts where columns have one name. only_annotated: leave out cells
    that one of these tables lacks. Of features of several kinds, in var["feature_types"], only
    'Gene Expression' is read. gene_names: the column of `var` to take names of genes from, such as
    "feature_name" of CELLxGENE or "gene_ids" of 10x Genomics. rounded: what becomes of fractions,
    which corrections for ambient RNA leave: None: they are made whole numbers of at random, as
    `round_counts` does, and a warning says what that means; True: the same in few words, also where
    it is doubtful that they are counts; False: they are refused. What is recognised as normalised
    is refused in any case (fractions.py). The same file gives the same counts each time, in memory
    and on the disk, as it stands and transposed, alone and among several; a file of some of its
    cells, or of cells or genes in another order, gives others.
    Result: Counts, X float32. Missing names become cell_0, gene_0 and so on. Nothing is reordered
    or made unique. Warns where something had to be guessed, left out or rounded. HDF5 files are
    read by libhdf5, which a damaged one can make hang or crash: `guarded.read` is the same in a
    process of its own. Raises FileNotFoundError; ImportError without h5py; else ValueError in one
    sentence that names the file.
    """
    if isinstance(path, (list, tuple)):
        options = dict(
            transpose=transpose,
            obs=obs,
            only_annotated=only_annotated,
            gene_names=gene_names,
            rounded=rounded,
        )
        return read_several(path, layer, backed, read, options)
    if only_annotated and not tables_in(obs):
        raise ValueError(
            "only_annotated=True leaves out cells that a table lacks, and there is none: give obs="
        )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    try:
        if not path.is_dir():
            refuse_pipes(path)
        content = expression_only(_content(path, layer, backed, transpose))
        X, genes, cells = content.X, content.genes, content.cells
        cells = [f"cell_{i}" for i in range(X.shape[0])] if cells is None else cells
        genes = [f"gene_{i}" for i in range(X.shape[1])] if genes is None else genes
        if gene_names is not None:
            genes = _names_from(content.var, gene_names, genes)
        counts = Counts(X, np.asarray(genes), np.asarray(cells), content.obs, content.var)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # a damaged file can make its library raise anything
        raise _damaged(path, error) from error
    turn = "leave out transpose=True" if transpose else "pass transpose=True"
    exchanged = advice(counts.cells, counts.genes, turn)
    for note in (*content.notes, *filter(None, [exchanged])):
        warnings.warn(f"{path}: {note}", stacklevel=2)
    kept = np.arange(len(counts))
    of_tables: dict = {}
    for table in tables_in(obs):
        annotation = annotation_of(table, counts.cells[kept], only_annotated)
        kept = kept[annotation.kept]
        of_tables = {key: values[annotation.kept] for key, values in of_tables.items()}
        of_tables |= annotation.obs
        for note in annotation.notes:
            warnings.warn(note, stacklevel=2)
    if backed:
        counts.X = _checked(X, path, layer, rounded)
    else:
        counts.X = _in_memory(_rounded_matrix(X, path, layer, rounded), str(path), layer)
    if len(kept) < len(counts):
        counts = counts[kept]
    counts.obs |= of_tables
    return counts


def tables_in(obs) -> list:
    """The tables of cells in an argument `obs`: None, a path, or several."""
    if obs is None:
        return []
    return list(obs) if isinstance(obs, (list, tuple)) else [obs]


def read_several(paths, layer: str | None, backed: bool, read_one, options: dict) -> Counts:
    """Several files as one, see joining.py; read_one: `read`, or `guarded.read`. ValueError for
    files that cannot be joined, or are to stay on the disk.
    """
    if backed:
        raise ValueError(
            "backed=True: several files are joined in memory; leave it out, or join them once with "
            "anndata.experimental.concat_on_disk"
        )
    parts = [read_one(path, layer, **options) for path in paths]
    try:
        content = join(parts, names_of_files(paths))
    except Refused as error:
        raise ValueError(f"{paths[0]}: {error}") from None
    for note in content.notes:
        warnings.warn(note, stacklevel=3)
    genes, cells = np.asarray(content.genes), np.asarray(content.cells)
    return Counts(as_matrix(content.X), genes, cells, content.obs, content.var)


def _names_from(var: dict, key: str, genes) -> np.ndarray:
    """Names of genes from the column `key` of var, where it has one; where not, as they were."""
    if key not in var:
        raise Refused(
            f"gene_names={key!r}: there is no such column of genes; there are: "
            f"{', '.join(var) or 'none'}"
        )
    names = var[key].astype(object)
    return np.array([old if new in (None, "") else str(new) for new, old in zip(names, genes)])


def _rounded_matrix(x, path, layer: str | None, rounded: bool | None) -> Any:
    """The matrix of a file, fractions as `round_counts` rounds them; a warning says how many, and
    how to have it otherwise. ValueError where they come of no counts.

    rounded: as in `read`. What has other faults is given back with these, for the check to name.
    """
    if rounded is False or number_of_fractions(x.data) == 0:
        return x
    x = sparse.csr_array(x)
    n_fractions = _refuse_no_counts(x, path, layer, rounded)
    whole = round_counts(x)
    if n_fractions:
        totals = (f"{np.sum(matrix.data, dtype=np.float64):,.1f}" for matrix in (x, whole))
        found = f"{n_fractions:,} of {x.nnz:,} entries"
        warn_of_rounding(found, path, rounded, f" (their total from {' to '.join(totals)})")
    return whole


def _refuse_no_counts(x, path, layer: str | None, rounded: bool | None) -> int:
    """How many entries of a CSR matrix are fractions, 0 where they have faults besides; ValueError
    where they seem to come of no counts.

    rounded: True where the user has said that they are counts, which settles a doubt.
    """
    if x.nnz == 0 or not -NEAR <= x.data.min() <= x.data.max() <= LARGEST_COUNT:
        return 0
    some = with_fractions(x)
    reason = why_no_counts(some)
    if reason is not None:
        raise ValueError(
            f"{path}: {reason}; {_looks_normalised(layer)}, and rounding does not bring back what "
            f"was counted. Raw counts are usually {_places_but(layer)}"
        )
    reason = None if rounded else why_doubtful(some)
    if reason is not None:
        raise ValueError(
            f"{path}: {reason}; {_looks_normalised(layer)}, or imputed, and rounding makes no "
            f"counts of that. Raw counts are usually {_places_but(layer)}. If these are counts "
            f"with fractions all the same, say so: {HOW_TO_ROUND}"
        )
    return number_of_fractions(x.data)


def warn_of_rounding(found: str, path, rounded: bool | None, totals: str = "") -> None:
    """Say what was rounded, and where nobody asked for it, what follows, and the other ways.

    found: how many of how many entries, in words; rounded: as in `read`.
    """
    said = (
        f"{path}: {found} went up or down to whole numbers, at random, so that means stay{totals}"
    )
    if not rounded:
        said += f": {WHAT_FOLLOWS}"
    warnings.warn(said, stacklevel=4)


def _content(path: Path, layer, backed: bool, transpose: bool) -> Content:
    """What is in a file of any known format."""
    binary = {".npz": read_npz} | dict.fromkeys(ENDINGS, read_hdf5)
    text = {".mtx": read_mtx} | dict.fromkeys((".csv", ".tsv", ".txt"), read_table)
    name = path.name.lower()
    reader = binary.get(Path(name).suffix) or text.get(Path(name.removesuffix(".gz")).suffix)
    if is_zarr(path):
        if backed:
            raise Refused(NOT_BACKED)
        return read_zarr(path, transpose, layer)
    if path.is_dir():
        reader = read_folder
    if reader is None:
        advice = ADVICE.get(Path(name).suffix, "")
        raise Refused(
            f"unknown format{advice}; known: a 10x folder, a zarr store, "
            f"{', '.join([*binary, *text])}, the last four or .gz"
        )
    if reader is read_hdf5:
        return read_hdf5(path, transpose, layer, backed)
    if layer is not None:
        raise Refused(f"layer={layer!r}: {NO_LAYERS}")
    if backed:
        raise Refused(NOT_BACKED)
    return reader(path, transpose)


def _damaged(path, error) -> ValueError:
    return ValueError(
        f"{path}: damaged, truncated, or not of the format that its name says; write or fetch it "
        f"again ({type(error).__name__}: {' '.join(str(error).split())})"
    )


def _checked(x: Blocks, path, layer, rounded: bool | None) -> Blocks:
    """The same column on the disk, every block made canonical, or refused, when it is read.

    rounded: as in `read`. Fractions are looked for in AT_FIRST blocks at once, and where there are
    none in these, in the first block that has some; all further ones are rounded without a word.
    """
    if 0 in x.shape:
        raise ValueError(
            f"{path}: has shape {x.shape}, that is no {'cells' if x.shape[0] == 0 else 'genes'}"
        )
    has_said = False

    def read_block(start, stop):
        try:
            return x.read(start, stop)
        except (FileNotFoundError, PermissionError):  # it was moved since
            raise
        except Exception as error:  # as above
            raise _damaged(path, error) from error

    def look_at(some) -> None:
        nonlocal has_said
        n_fractions = _refuse_no_counts(some, path, layer, rounded)
        has_said = has_said or n_fractions > 0
        if n_fractions:
            found = f"of {some.nnz:,} entries that were looked at first {n_fractions:,}"
            warn_of_rounding(found, path, rounded)

    def rows(start, stop):
        part = read_block(start, stop)
        if rounded is not False and number_of_fractions(part.data):
            if not has_said:
                look_at(part)
            part = round_counts(part, first=start)
        return _canonical_rows(part, str(path), layer, first=start)

    if rounded is not False:
        bounds = list(zip(x.file_bounds, x.file_bounds[1:]))
        first = [read_block(*map(int, bounds[i])) for i in spread(len(bounds), AT_FIRST)]
        some = sparse.csr_array(sparse.vstack(first, format="csr"))
        if number_of_fractions(some.data):
            look_at(some)
    return Blocks(rows, x.file_bounds, x.shape[1])


# Checking


def as_matrix(
    counts, layer: str | None = None, name: str = "counts", on_disk: bool = False
) -> Matrix:
    """Whatever holds counts, as one checked matrix: what every model and function here does first.

    counts, (n_cells, n_genes): a dense array, list, frame or memory map; any SciPy sparse matrix or
    array; an AnnData object (its `.X`, or `layer`, where "raw" is `raw.X`); Counts; or a path that
    `read` takes. Any numeric dtype. name: what errors call it. on_disk: whether counts may stay on
    the disk (`read` with backed=True, or an AnnData object opened with backed="r"): the result is
    then Blocks, of rows as below. Else the former is refused, the latter read. Result: float32,
    `scipy.sparse.csr_array` (int32 indices, sorted, no duplicates, no stored zeros) where sparse
    was given, else a C-contiguous array. What was passed is never changed; the result may share its
    memory, so do not write to it. Raises ValueError for what is not two-dimensional, is empty, or
    has an entry that is not a finite whole number from 0 to 2**24 = 16,777,216: float32 is exact up
    to there, and no cell has more molecules of a gene.
    """
    if isinstance(counts, (str, os.PathLike)):
        return read(counts, layer).X
    x = _unwrap(counts, layer, name, on_disk)
    if isinstance(x, Blocks):
        if not on_disk:
            raise ValueError(
                f"{name}: lies on the disk, and this needs all of it in memory: read it without "
                "backed=True, "
                "or read fewer cells"
            )
        _refuse_empty(x, name)
        return x
    return _in_memory(x, name, layer)


def _in_memory(x, name: str, layer: str | None) -> np.ndarray | sparse.csr_array:
    """A matrix of any kind as `as_matrix` gives it. layer: where it is from, for errors."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: a masked array; fill the masked entries first, with x.filled(0) if they are "
            "zeros"
        )
    if not sparse.issparse(x):
        try:
            x = np.asarray(values_of(x))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: no matrix of numbers ({error})") from error
    if x.ndim != 2:
        raise ValueError(
            f"{name}: has shape {x.shape}, must be (n_cells, n_genes); for a single cell pass "
            "x[None, :]"
        )
    _refuse_empty(x, name)
    if x.dtype.kind not in "buif":
        raise ValueError(
            f"{name}: has dtype {x.dtype}, must be numbers; convert it, or drop the columns that "
            "are text"
        )
    return _canonical_rows(x, name, layer) if sparse.issparse(x) else _dense_rows(x, name, layer)


def _refuse_empty(x, name: str) -> None:
    """ValueError for a matrix without cells, or without genes."""
    if 0 in x.shape:
        none = "cells" if x.shape[0] == 0 else "genes"
        raise ValueError(f"{name}: has shape {x.shape}, that is no {none}; pass at least one")


def _unwrap(counts, layer, name, on_disk):
    """The matrix inside an AnnData object or Counts, or what was passed."""
    annotated = all(hasattr(counts, attribute) for attribute in ("X", "layers", "obs_names"))
    if layer is not None and not annotated:
        raise ValueError(
            f"{name}: layer={layer!r} needs an AnnData object, not {type(counts).__name__}"
        )
    if annotated and on_disk and getattr(counts, "isbacked", False) and not counts.is_view:
        return read(counts.filename, layer, backed=True, rounded=False).X
    if layer is None:
        x = counts.X if annotated or isinstance(counts, Counts) else counts
    elif layer in counts.layers:
        x = counts.layers[layer]
    else:
        x = counts.raw.X if layer == "raw" and counts.raw is not None else None
    if x is None and annotated:
        raise ValueError(
            f"{name}: no {'X' if layer is None else f'layer {layer!r}'}; there are the layers "
            f"{list(counts.layers) if annotated else []}"
        )
    return (
        x.to_memory() if hasattr(x, "to_memory") else x
    )  # of an AnnData object opened with backed="r"


def _in_words(values: np.ndarray) -> str:
    """What an obs column holds, in a line: its range, or its most frequent values."""
    names, numbers = np.unique(values.astype(str), return_counts=True)
    is_count = values.dtype.kind in "iu" and len(names) > 30  # few numbers may be of clusters
    if is_count or values.dtype.kind == "f" and np.isfinite(values).any():
        return f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g}"
    first = np.argsort(-numbers, kind="stable")[:5]
    said = ", ".join(f"{names[i]} ({numbers[i]:,})" for i in first)
    return said + f" and {number_of(len(names) - 5, 'other')}" * (len(names) > 5)


def _canonical_rows(x, name, layer=None, first=0):
    """A CSR matrix with the same entries, canonical. first: the number that errors give to its
    first row.
    """
    if x.format in ("csr", "csc"):
        # As a new matrix: what the caller's caches of itself (sorted? canonical?) may be outdated.
        try:
            kind = sparse.csr_array if x.format == "csr" else sparse.csc_array
            x = kind((x.data, x.indices, x.indptr), shape=x.shape)
            x.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{name}: a broken sparse matrix ({error}); build it again") from error
    else:
        x = x.astype(
            np.float64
        )  # so that duplicates of a small dtype do not overflow when added up
    x = sparse.csr_array(x.tocsr())
    if not x.has_canonical_format or not x.data.all():
        x = sparse.csr_array(
            (x.data.astype(np.float64), x.indices.copy(), x.indptr.copy()), shape=x.shape
        )
        x.sum_duplicates()
        x.eliminate_zeros()
    bad, is_near = _look_at(x.data)
    if is_near and bad is None:
        rounded = _rounded(x.data)
        bad = None if rounded.any() else 0  # fractions of a cell's total
    if bad is not None:
        row = np.searchsorted(x.indptr, bad, side="right") - 1
        raise ValueError(_complaint(name, first + row, x.indices[bad], x.data[bad], layer))
    if is_near:
        warnings.warn(f"{name}: {ROUNDED}", stacklevel=3)
        x = sparse.csr_array((rounded, x.indices.copy(), x.indptr.copy()), shape=x.shape)
        x.eliminate_zeros()
    index = np.int32 if max(x.nnz, x.shape[1]) < 2**31 else np.int64
    parts = zip((x.data, x.indices, x.indptr), (np.float32, index, index))
    return sparse.csr_array(
        tuple(part.astype(dtype, copy=False) for part, dtype in parts), shape=x.shape
    )


def _dense_rows(x, name, layer=None):
    """A C-contiguous float32 array with the same entries, converted block by block."""
    right = x.dtype == np.float32 and x.dtype.isnative and x.flags.c_contiguous and x.flags.aligned
    result = x if right else np.empty(x.shape, np.float32)
    is_rounded = False
    step = max(1, BLOCK // x.shape[1])
    for a in range(0, len(x), step):
        block = np.ascontiguousarray(x[a : a + step])
        bad, is_near = _look_at(block.ravel())
        if bad is not None:
            row, column = divmod(bad, x.shape[1])
            raise ValueError(_complaint(name, a + row, column, block[row, column], layer))
        if is_near and result is x:
            result = x.copy()
        if result is not x:
            result[a : a + step] = _rounded(block) if is_near else block
        is_rounded |= is_near
    if is_rounded and not result.any():  # fractions of a cell's total
        row, column = divmod(int(np.flatnonzero(x)[0]), x.shape[1])
        raise ValueError(_complaint(name, row, column, x[row, column], layer))
    if is_rounded:
        warnings.warn(f"{name}: {ROUNDED}", stacklevel=3)
    return result


def _look_at(values) -> tuple[int | None, bool]:
    """(position of the first entry that is not near a whole number from 0 to LARGEST_COUNT, or
    None; whether any up to there is not whole).
    """
    is_near = False
    for a in range(0, len(values), BLOCK):
        v = values[a : a + BLOCK].astype(np.float64)
        if ((v >= 0) & (v <= LARGEST_COUNT) & (v == np.floor(v))).all():
            continue
        is_near = True
        with np.errstate(invalid="ignore"):  # infinity, which is bad in any case
            near = np.abs(v - np.rint(v)) <= NEAR
        bad = ~(near & (v >= -NEAR) & (v <= LARGEST_COUNT + NEAR))
        if bad.any():
            return a + int(bad.argmax()), True
    return None, is_near


def _rounded(values) -> np.ndarray:
    """The nearest whole numbers, float32; adding 0 makes 0 of -0."""
    return np.rint(values.astype(np.float32)) + np.float32(0)


def _looks_normalised(layer: str | None) -> str:
    """What is wrong with fractions, in words. layer: that was read."""
    this = "this matrix" if layer is None else f"layer {layer!r}"
    return f"counts are whole numbers from 0 up, and {this} looks normalised or scaled"


def _places_but(layer: str | None) -> str:
    """Where counts usually are, in words, without the layer that was read."""
    others = [words for place, words in USUAL.items() if place != layer]
    return " or ".join(others[:2] if layer is None else others)


def _complaint(name, row, column, value, layer) -> str:
    found = f"{name}: row {row}, column {column} (from 0) is {value!s}"
    if np.isfinite(value) and value < 0 and value == np.rint(value):
        return (
            f"{found}, which is negative; counts are whole numbers from 0 up: look at where it "
            "comes from, and set it to what was counted, or leave the cell out"
        )
    if not np.isfinite(value):
        return f"{found}; counts are finite: fill in or drop missing values first"
    if value > LARGEST_COUNT:
        return (
            f"{found}, above {LARGEST_COUNT:,}, up to which float32 is exact; is it a total, or an "
            "identifier? "
            "Leave that column out"
        )
    said = f"{found}; {_looks_normalised(layer)}. Raw counts are usually {_places_but(layer)}."
    if value < 0:
        return said
    return (
        f"{said} Counts less ambient RNA, as of SoupX, decontX or CellBender, can be rounded: "
        f"{HOW_TO_ROUND}"
    )


def batch_codes(
    batch,
    n_cells: int,
    known=None,
    obs=None,
    name: str = "batch",
    advice: str = ". Leave those cells out, or train a model with them",
    cells=None,
) -> tuple:
    """Batches as numbers: `(codes, names)`, codes (n_cells,) positions in the list `names` of str.

    batch: a whole number or string per cell; or the name of a column of `obs` (a mapping or frame);
    or None, all cells in one batch. known: the batches that a model was trained with, which then
    are `names`; labels match by their str. Without it names are sorted, numbers as numbers. name:
    of the argument, for errors; advice: what to do about an unknown batch; cells: (n_cells,) names,
    or None, for errors too. Raises ValueError for another length, missing labels, an unknown
    column, and batches not in `known`.
    """
    known = None if known is None else [str(label) for label in known]
    if batch is None:
        if known is not None and len(known) > 1:
            raise ValueError(
                f"{name}: say which batch each cell is from; the model knows {', '.join(known)}"
            )
        return np.zeros(n_cells, dtype=np.int64), known or ["0"]
    if isinstance(batch, str):
        columns = [] if obs is None else [str(column) for column in obs]
        if batch not in columns:
            raise ValueError(
                f"{name}: no obs column {batch!r}; there are: {', '.join(columns) or 'none'}"
            )
        batch = obs[batch]
    labels = np.asarray(batch)
    if labels.shape != (n_cells,):
        raise ValueError(
            f"{name}: has shape {labels.shape}, must be one label for each of {n_cells} cells"
        )
    values, codes = np.unique(_plain_labels(labels, name, cells), return_inverse=True)
    names = [str(value) for value in values]
    unknown = [label for label in names if known is not None and label not in known]
    if unknown:
        raise ValueError(
            f"{name}: {', '.join(unknown)} unknown; the model knows {', '.join(known)}{advice}"
        )
    return (
        (codes, names)
        if known is None
        else (np.array([known.index(label) for label in names])[codes], known)
    )


def _plain_labels(labels, name, cells=None):
    """Labels of one comparable dtype: whole numbers, or strings."""
    if (
        labels.dtype.kind == "f"
        and np.isfinite(labels).all()
        and (labels == np.floor(labels)).all()
    ):
        return labels.astype(np.int64)
    if labels.dtype.kind == "M":  # dates, of which tolist() may make whole numbers
        labels = np.where(np.isnat(labels), None, np.datetime_as_string(labels, unit="auto"))
    if labels.dtype.kind not in "biuU":
        refuse_missing(labels, name, cells, "leave those cells out, or give them a label")
        for i, label in enumerate(labels.tolist()):
            if not isinstance(label, (int, np.integer, str)):
                raise ValueError(
                    f"{name}: {name_of_cell(i, cells)} has the label {label!r}; labels must be "
                    "whole numbers or strings"
                )
        return labels.astype(str)
    return labels


# Sums over cells and genes


@dataclass
class Moments:
    """What one pass over counts tells, in float64: x the counts, t the totals of cells.

    totals: sum over genes of x, (n_cells,); and sums over cells, (n_genes,) each: of_genes of x,
    squares of x^2, with_totals of x t.
    """

    totals: np.ndarray
    of_genes: np.ndarray
    squares: np.ndarray
    with_totals: np.ndarray


def moments(x: Matrix) -> Moments:
    """The Moments of a matrix as `as_matrix` gives it, on the disk too, a few MB at a time."""
    n_cells, n_genes = x.shape
    found = Moments(np.zeros(n_cells), *np.zeros((3, n_genes)))
    for start, part in pieces(x):
        part = part if sparse.issparse(part) else sparse.csr_array(part)
        data = part.data.astype(np.float64)
        totals = np.asarray(part.sum(axis=1, dtype=np.float64)).ravel()
        found.totals[start : start + len(totals)] = totals
        for sums, values in (
            (found.of_genes, data),
            (found.squares, data**2),
            (found.with_totals, data * np.repeat(totals, np.diff(part.indptr))),
        ):
            sums += np.bincount(part.indices, values, n_genes)
    return found


# Normalising


def library_size(x: Matrix) -> np.ndarray:
    """Total count of each cell, (n_cells,) float64. x: what `as_matrix` takes, also on the disk,
    and its errors.
    """
    x = as_matrix(x, on_disk=True)
    parts = (part for _, part in pieces(x)) if isinstance(x, Blocks) else [x]
    return np.concatenate(
        [np.asarray(part.sum(axis=1, dtype=np.float64)).ravel() for part in parts]
    )


def empty_cells(x: Matrix) -> np.ndarray:
    """Which cells have no counts at all, (n_cells,) bool: they carry no information and are left
    out of training.
    """
    return library_size(x) == 0


def normalize(x: Matrix, target_sum: float | None = None) -> np.ndarray | sparse.csr_array:
    """Counts as fractions of each cell's total times `target_sum`: n[c, g] = target_sum * x[c, g] /
    sum_g x[c, g].

    x: what `as_matrix` takes, (n_cells, n_genes). target_sum: the total of every cell afterwards;
    default the median total of the cells that have counts, so that a typical cell stays as it was.
    Result: as x, CSR or dense, float32, to be followed by `log1p`. A cell without counts stays
    zero. Why not target_sum = 1, the formula of the course chapter (GENEEX autoencoder, inputs):
    with 10,000 genes a fraction is about 1e-4, where log(1 + n) = n - n²/2 + ... is n to four
    digits. The logarithm does nothing, and inputs of 1e-4 leave a network that was initialised for
    inputs of order 1 with next to no signal. Times a few thousand, n is of order 1 and log1p brings
    strong and weak genes closer. Raises ValueError for a target_sum that is not positive, and as
    `as_matrix`.
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


def log1p(x: Matrix) -> Matrix:
    """log(1 + x), sparse where x is: zeros stay zeros. x: any array or SciPy sparse matrix; same
    shape and dtype.
    """
    return x.log1p() if sparse.issparse(x) else np.log1p(x)


# Selecting genes


def highest_variance(x: Matrix, n: int, batch=None) -> np.ndarray:
    """The n genes whose counts vary most: the rule of the scVI paper (Lopez et al. 2018). Sorted
    positions, (n,).

    x: what `as_matrix` takes, also on the disk. Raises ValueError for n not in 1 to n_genes.
    Variances of raw counts favour the genes of highest mean; `pearson_residual_variance` corrects
    for that. batch: of each cell, (n_cells,), for a choice within batches (`_top_within`).
    """

    def variance(x):
        sums = moments(x)
        return sums.squares / x.shape[0] - (sums.of_genes / x.shape[0]) ** 2

    return _top_within(as_matrix(x, on_disk=True), n, batch, variance)


def pearson_residual_variance(x: Matrix, n: int, theta: float = 100, batch=None) -> np.ndarray:
    """The n genes that vary most beyond what sampling explains. Sorted positions, (n,).

    Lause, Berens & Kobak 2021 (Genome Biology 22:258): if a gene were the same fraction of every
    cell, counts would be negative binomial around mu[c, g] = total of cell c * total of gene g /
    total of all. Residuals are (x - mu) / sqrt(mu + mu²/theta), clipped at ± sqrt(n_cells); genes
    are ranked by their variance over cells. x: what `as_matrix` takes. theta: inverse dispersion,
    one for all genes (np.inf: Poisson). A gene or cell without counts has residuals 0. Memory:
    blocks of genes, each temporary 32 MB. batch: of each cell, (n_cells,), for a choice within
    batches (`_top_within`). Raises ValueError for theta <= 0, and for n not in 1 to n_genes.
    """
    if not theta > 0:
        raise ValueError(f"theta must be positive, not {theta}")
    return _top_within(as_matrix(x), n, batch, lambda x: _residual_variance(x, theta))


def _residual_variance(x: Matrix, theta: float) -> np.ndarray:
    """Variance of the Pearson residuals of each gene, (n_genes,)."""
    n_cells, n_genes = x.shape
    cell_total, gene_total = library_size(x), np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
    columns = x.tocsc() if sparse.issparse(x) else x
    variance, step = np.empty(n_genes), max(1, 4 * BLOCK // n_cells)
    for a in range(0, n_genes, step):
        block = columns[:, a : a + step]
        block = block.toarray() if sparse.issparse(block) else block
        mu = cell_total[:, None] * gene_total[a : a + step] / max(cell_total.sum(), 1)
        deviation = np.sqrt(mu + mu**2 / theta)
        residual = np.divide(block - mu, deviation, out=np.zeros_like(mu), where=mu > 0)
        variance[a : a + step] = residual.clip(-np.sqrt(n_cells), np.sqrt(n_cells)).var(axis=0)
    return variance


def _top_within(x: Matrix, n: int, batch, score) -> np.ndarray:
    """Positions of n genes of high score, sorted; score: from the matrix of some cells, (n_genes,).

    Without batches those of the highest score. With them each batch ranks the genes by the score of
    its own cells, so that what differs between batches counts for nothing: those are taken that are
    among the first n in most batches, of equals the best median rank (Stuart et al. 2019). Batches
    of one cell have no say.
    """
    if batch is None:
        return _top(score(x), n)
    batch = np.asarray(batch)
    if batch.shape != (x.shape[0],):
        raise ValueError(
            f"batch: has shape {batch.shape}, must be one of each of {x.shape[0]} cells"
        )
    cells = [np.flatnonzero(batch == label) for label in np.unique(batch)]
    orders = [np.argsort(-score(x[chosen]), kind="stable") for chosen in cells if len(chosen) > 1]
    if not orders:
        raise ValueError("batch: no batch has two cells, within which genes could vary")
    ranks = np.argsort(orders, axis=1)  # of each gene, by batch
    best = np.sum(ranks < n, axis=0) - np.median(ranks, axis=0) / x.shape[1]
    return _top(best, n)


def _top(score, n):
    """Positions of the n largest, sorted; of equals the first."""
    if not 1 <= n <= len(score):
        raise ValueError(f"n must be from 1 to the {len(score)} genes that there are, not {n}")
    return np.sort(np.argsort(-score, kind="stable")[:n])


# Writing back


def annotate_h5ad(path_in, path_out, obsm=None, obs=None, layers=None, uns=None) -> None:
    """A copy of an .h5ad file with results added, the rest as it was; written whole or not at all.

    obsm: name -> (n_cells, k), for example {"X_scVI": model.latent(x)}; obs: name -> (n_cells,),
    for example clusters (a Series, or a DataFrame in obsm, by name of the cell); layers: name ->
    (n_cells, n_genes), dense or sparse; uns: name -> text, or what else anndata writes. What has
    the same name is replaced. The paths may be the same. Raises ImportError without anndata;
    ValueError for a file that is no .h5ad, another length, a slash in a name.
    """
    h5py, write_elem = need("h5py"), need("anndata").io.write_elem
    if not h5py.is_hdf5(path_in):
        raise ValueError(
            f"{path_in}: not there, or no .h5ad file; pass the one that results are to be added to"
        )
    # Locked while it is read and replaced: of two that add to one file, the second one adds to what
    # the first has written.
    lock = locks.locked(locks.beside(path_out), f"adds to {path_out}", wait=True)
    with lock, whole_file(path_out) as temporary:
        with suppress(OSError):  # nobody may read the copy who may not read what is copied
            readers = os.stat(path_in).st_mode | stat.S_IWUSR
            os.chmod(temporary, stat.S_IMODE(temporary.stat().st_mode & readers))
        shutil.copyfile(path_in, temporary)
        with hdf5_file(temporary, "r+") as file:
            if "obs" not in file or "var" not in file:
                raise ValueError(f"{path_in}: no .h5ad file, it has no obs and var")
            if any(hasattr(file[axis], "dtype") for axis in ("obs", "var")):
                raise ValueError(
                    f"{path_in}: written by anndata before 0.7, and nothing can be added to it; "
                    "open "
                    "and write it with a newer one first"
                )
            cells = index_of(file["obs"])
            shape = len(cells), len(index_of(file["var"]))
            for place, added, wanted in (
                ("obsm", obsm, shape[:1]),
                ("obs", obs, shape[:1]),
                ("layers", layers, shape),
            ):
                for key, values in (added or {}).items():
                    values = by_cell(values, cells, f"{place}[{key!r}]")
                    values = values if sparse.issparse(values) else np.asarray(values)
                    if (
                        values.shape[: len(wanted)] != wanted
                        or "/" in key
                        or (place == "obs" and values.ndim > 1)
                    ):
                        raise ValueError(
                            f"{place}[{key!r}] has shape {values.shape}, {path_in} is {shape}; "
                            "pass one "
                            "row per cell, and a name without a slash"
                        )
                    write_elem(file.require_group(place), key, values)
            for key, values in (uns or {}).items():
                write_elem(file.require_group("uns"), key, values)
            columns = column_order(file["obs"])
            columns += [key for key in obs or {} if key not in columns]
            file["obs"].attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())

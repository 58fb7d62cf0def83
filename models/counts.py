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

import numpy as np
from scipy import sparse

from minigrad.backend import Matrix
from minigrad.checkpoint import whole_file
from minigrad.data import Blocks, pieces
from minigrad.notebook import as_html
from models import locks
from models.files import BLOCK, Content, Refused, need, read_npz, read_table
from models.hdf5 import ENDINGS, NO_LAYERS, NOT_BACKED, column_order, index_of, read_hdf5
from models.hdf5_writing import hdf5_file
from models.matrix_market import read_folder, read_mtx

LARGEST_COUNT = 2**24  # float32 holds every whole number up to here, and not 2**24 + 1
# So close to a whole number a count is taken for it: expm1(log1p(3)) is 3.0000002 in float32.
NEAR = 1e-4
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
    known of each cell, name -> (n_cells,) array. Raises ValueError where lengths disagree.
    """

    X: sparse.csr_array | Blocks
    genes: np.ndarray
    cells: np.ndarray
    obs: dict = field(default_factory=dict)

    def __post_init__(self):
        self.genes, self.cells = (
            np.asarray(self.genes).astype(str),
            np.asarray(self.cells).astype(str),
        )
        self.obs = {key: np.asarray(values) for key, values in self.obs.items()}
        n_cells, n_genes = self.X.shape
        lengths = {"genes": (self.genes, n_genes), "cells": (self.cells, n_cells)}
        lengths.update({f"obs[{key!r}]": (values, n_cells) for key, values in self.obs.items()})
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
        return f"Counts({len(self):,} cells x {self.shape[1]:,} genes; obs: {obs})"

    def _repr_html_(self) -> str:
        rows = [(name, _in_words(values)) for name, values in self.obs.items()]
        caption = f"Counts: {len(self):,} cells x {self.shape[1]:,} genes"
        return as_html(["obs", "what is there"], rows, caption)

    def __getitem__(self, cells) -> Counts:
        """The cells of a slice, a mask, an array of positions or one position, as Counts."""
        rows = np.atleast_1d(np.arange(len(self))[cells])
        return Counts(
            self.X[rows],
            self.genes,
            self.cells[rows],
            {key: v[rows] for key, v in self.obs.items()},
        )

    def select_genes(self, genes) -> Counts:
        """The genes of a boolean mask, an array of positions or a slice, as Counts."""
        columns = np.atleast_1d(np.arange(self.shape[1])[genes])
        if isinstance(self.X, Blocks):
            return Counts(self.X.select_columns(columns), self.genes[columns], self.cells, self.obs)
        X = self.X[:, columns]
        X.sort_indices()
        return Counts(X, self.genes[columns], self.cells, self.obs)


# Reading


def read(
    path, layer: str | None = None, backed: bool = False, *, transpose: bool = False
) -> Counts:
    """Counts from a file or a 10x folder, checked as `as_matrix` does.

    path: .h5ad; .h5 of 10x Genomics (v2, v3; gene expression only); .loom; .mtx, or a folder with
    one; .csv, .tsv; .npz with `data, indices, indptr, shape` and optionally `genes`, `cells` and
    further arrays with one entry per cell, which become `obs`. .mtx, .csv, .tsv may be gzipped.
    Tables have CELLS AS ROWS, gene names in the first line and cell names in the first column. An
    .mtx is turned as the files of names beside it say (barcodes.tsv, and features.tsv or genes.tsv,
    as Cell Ranger, STARsolo, kallisto and alevin write them; also .csv, .txt, .gz, or with a
    prefix); how one without names was read, a warning says. layer: the layer of an .h5ad ("raw":
    `raw.X`) or .loom file. Default: the main matrix. backed: leave the matrix of an .h5ad file (csr
    or dense) on the disk: X is Blocks, which SCVI trains on and predicts from, with memory for a
    few blocks only; each block is checked when it is read. Do not change the file meanwhile.
    transpose: the file has it the other way round than said above: what would be genes are cells.
    Result: Counts, X float32. Missing names become cell_0, gene_0 and so on. Nothing is reordered
    or made unique. Warns where something had to be guessed, left out or rounded. HDF5 files are
    read by libhdf5, which a damaged one can make hang or crash: `guarded.read` is the same in a
    process of its own. Raises FileNotFoundError; ImportError without h5py; else ValueError in one
    sentence that names the file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    try:
        content = _content(path, layer, backed, transpose)
        X, genes, cells = content.X, content.genes, content.cells
        cells = [f"cell_{i}" for i in range(X.shape[0])] if cells is None else cells
        genes = [f"gene_{i}" for i in range(X.shape[1])] if genes is None else genes
        counts = Counts(X, np.asarray(genes), np.asarray(cells), content.obs)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (ImportError, PermissionError):
        raise
    except Exception as error:  # a damaged file can make its library raise anything
        raise _damaged(path, error) from error
    for note in content.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    counts.X = _checked(X, path) if backed else as_matrix(X, name=str(path))
    return counts


def _content(path: Path, layer, backed: bool, transpose: bool) -> Content:
    """What is in a file of any known format."""
    binary = {".npz": read_npz} | dict.fromkeys(ENDINGS, read_hdf5)
    text = {".mtx": read_mtx, ".csv": read_table, ".tsv": read_table}
    name = path.name.lower()
    reader = binary.get(Path(name).suffix) or text.get(Path(name.removesuffix(".gz")).suffix)
    if path.is_dir():
        reader = read_folder
    if reader is None:
        raise Refused(
            f"unknown format; known: a 10x folder, {', '.join([*binary, *text])}, the last three "
            "or .gz"
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


def _checked(x: Blocks, path) -> Blocks:
    """The same column on the disk, every block made canonical, or refused, when it is read."""
    if 0 in x.shape:
        raise ValueError(
            f"{path}: has shape {x.shape}, that is no {'cells' if x.shape[0] == 0 else 'genes'}"
        )

    def rows(start, stop):
        try:
            part = x.read(start, stop)
        except (FileNotFoundError, PermissionError):  # it was moved since
            raise
        except Exception as error:  # as above
            raise _damaged(path, error) from error
        return _canonical_rows(part, str(path), first=start)

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
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: a masked array; fill the masked entries first, with x.filled(0) if they are "
            "zeros"
        )
    if not sparse.issparse(x):
        try:
            x = np.asarray(x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: no matrix of numbers ({error})") from error
    if x.ndim != 2:
        raise ValueError(
            f"{name}: has shape {x.shape}, must be (n_cells, n_genes); for a single cell pass "
            "x[None, :]"
        )
    if 0 in x.shape:
        none = "cells" if x.shape[0] == 0 else "genes"
        raise ValueError(f"{name}: has shape {x.shape}, that is no {none}; pass at least one")
    if x.dtype.kind not in "buif":
        raise ValueError(
            f"{name}: has dtype {x.dtype}, must be numbers; convert it, or drop the columns that "
            "are text"
        )
    return _canonical_rows(x, name) if sparse.issparse(x) else _dense_rows(x, name)


def _unwrap(counts, layer, name, on_disk):
    """The matrix inside an AnnData object or Counts, or what was passed."""
    annotated = all(hasattr(counts, attribute) for attribute in ("X", "layers", "obs_names"))
    if layer is not None and not annotated:
        raise ValueError(
            f"{name}: layer={layer!r} needs an AnnData object, not {type(counts).__name__}"
        )
    if annotated and on_disk and getattr(counts, "isbacked", False) and not counts.is_view:
        return read(counts.filename, layer, backed=True).X
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
    if values.dtype.kind == "f" and np.isfinite(values).any():
        return f"{np.nanmin(values):.4g} to {np.nanmax(values):.4g}"
    names, numbers = np.unique(values.astype(str), return_counts=True)
    first = np.argsort(-numbers, kind="stable")[:5]
    said = ", ".join(f"{names[i]} ({numbers[i]:,})" for i in first)
    return said + f" and {len(names) - 5:,} others" * (len(names) > 5)


def _canonical_rows(x, name, first=0):
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
        raise ValueError(_complaint(name, first + row, x.indices[bad], x.data[bad]))
    if is_near:
        warnings.warn(f"{name}: {ROUNDED}", stacklevel=3)
        x = sparse.csr_array((rounded, x.indices.copy(), x.indptr.copy()), shape=x.shape)
        x.eliminate_zeros()
    index = np.int32 if max(x.nnz, x.shape[1]) < 2**31 else np.int64
    parts = zip((x.data, x.indices, x.indptr), (np.float32, index, index))
    return sparse.csr_array(
        tuple(part.astype(dtype, copy=False) for part, dtype in parts), shape=x.shape
    )


def _dense_rows(x, name):
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
            raise ValueError(_complaint(name, a + row, column, block[row, column]))
        if is_near and result is x:
            result = x.copy()
        if result is not x:
            result[a : a + step] = _rounded(block) if is_near else block
        is_rounded |= is_near
    if is_rounded and not result.any():  # fractions of a cell's total
        row, column = divmod(int(np.flatnonzero(x)[0]), x.shape[1])
        raise ValueError(_complaint(name, row, column, x[row, column]))
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


def _complaint(name, row, column, value) -> str:
    found = f"{name}: row {row}, column {column} (from 0) is {value!s}"
    if not np.isfinite(value):
        return f"{found}; counts are finite: fill in or drop missing values first"
    if value > LARGEST_COUNT:
        return (
            f"{found}, above {LARGEST_COUNT:,}, up to which float32 is exact; is it a total, or an "
            "identifier? "
            "Leave that column out"
        )
    return (
        f"{found}; counts are whole numbers from 0 up, and this matrix looks normalised or scaled. "
        "Raw counts are "
        'usually in adata.layers["counts"] (layer="counts") or in adata.raw (layer="raw")'
    )


def batch_codes(
    batch,
    n_cells: int,
    known=None,
    obs=None,
    name: str = "batch",
    advice: str = ". Leave those cells out, or train a model with them",
) -> tuple:
    """Batches as numbers: `(codes, names)`, codes (n_cells,) positions in the list `names` of str.

    batch: a whole number or string per cell; or the name of a column of `obs` (a mapping or frame);
    or None, all cells in one batch. known: the batches that a model was trained with, which then
    are `names`; labels match by their str. Without it names are sorted, numbers as numbers. name,
    advice: of the argument, and what to do, in the error for an unknown batch. Raises ValueError
    for another length, missing labels, an unknown column, and batches not in `known`.
    """
    known = None if known is None else [str(label) for label in known]
    if batch is None:
        if known is not None and len(known) > 1:
            raise ValueError(
                f"batch: say which batch each cell is from; the model knows {', '.join(known)}"
            )
        return np.zeros(n_cells, dtype=np.int64), known or ["0"]
    if isinstance(batch, str):
        columns = [] if obs is None else [str(column) for column in obs]
        if batch not in columns:
            raise ValueError(
                f"batch: no obs column {batch!r}; there are: {', '.join(columns) or 'none'}"
            )
        batch = obs[batch]
    labels = np.asarray(batch)
    if labels.shape != (n_cells,):
        raise ValueError(
            f"batch: has shape {labels.shape}, must be one label for each of {n_cells} cells"
        )
    values, codes = np.unique(_plain_labels(labels), return_inverse=True)
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


def _plain_labels(labels):
    """Labels of one comparable dtype: whole numbers, or strings."""
    if (
        labels.dtype.kind == "f"
        and np.isfinite(labels).all()
        and (labels == np.floor(labels)).all()
    ):
        return labels.astype(np.int64)
    if labels.dtype.kind not in "biuU":
        for i, label in enumerate(labels.tolist()):
            if not isinstance(label, (int, np.integer, str)):
                raise ValueError(
                    f"batch: cell {i} has the label {label!r}; labels must be whole numbers or "
                    "strings"
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


def empty_genes(x: Matrix) -> np.ndarray:
    """Which genes are counted in no cell, (n_genes,) bool."""
    return np.asarray(as_matrix(x).sum(axis=0)).ravel() == 0


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


def highest_variance(x: Matrix, n: int) -> np.ndarray:
    """The n genes whose counts vary most: the rule of the scVI paper (Lopez et al. 2018). Sorted
    positions, (n,).

    x: what `as_matrix` takes, also on the disk. Raises ValueError for n not in 1 to n_genes.
    Variances of raw counts favour the genes of highest mean; `pearson_residual_variance` corrects
    for that.
    """
    x = as_matrix(x, on_disk=True)
    sums = moments(x)
    return _top(sums.squares / x.shape[0] - (sums.of_genes / x.shape[0]) ** 2, n)


def pearson_residual_variance(x: Matrix, n: int, theta: float = 100) -> np.ndarray:
    """The n genes that vary most beyond what sampling explains. Sorted positions, (n,).

    Lause, Berens & Kobak 2021 (Genome Biology 22:258): if a gene were the same fraction of every
    cell, counts would be negative binomial around mu[c, g] = total of cell c * total of gene g /
    total of all. Residuals are (x - mu) / sqrt(mu + mu²/theta), clipped at ± sqrt(n_cells); genes
    are ranked by their variance over cells. x: what `as_matrix` takes. theta: inverse dispersion,
    one for all genes (np.inf: Poisson). A gene or cell without counts has residuals 0. Memory:
    blocks of genes, each temporary 32 MB. Raises ValueError for theta <= 0, and for n not in 1 to
    n_genes.
    """
    if not theta > 0:
        raise ValueError(f"theta must be positive, not {theta}")
    x = as_matrix(x)
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
    return _top(variance, n)


def _top(score, n):
    """Positions of the n largest, sorted; of equals the first."""
    if not 1 <= n <= len(score):
        raise ValueError(f"n must be from 1 to the {len(score)} genes that there are, not {n}")
    return np.sort(np.argsort(-score, kind="stable")[:n])


# Writing back


def annotate_h5ad(path_in, path_out, obsm=None, obs=None, layers=None) -> None:
    """A copy of an .h5ad file with results added, the rest as it was; written whole or not at all.

    obsm: name -> (n_cells, k), for example {"X_scVI": model.latent(x)}; obs: name -> (n_cells,),
    for example clusters; layers: name -> (n_cells, n_genes), dense or sparse. What has the same
    name is replaced. The paths may be the same. Raises ImportError without anndata; ValueError for
    a file that is no .h5ad, another length, a slash in a name.
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
            shape = tuple(len(index_of(file[axis])) for axis in ("obs", "var"))
            for place, added, wanted in (
                ("obsm", obsm, shape[:1]),
                ("obs", obs, shape[:1]),
                ("layers", layers, shape),
            ):
                for key, values in (added or {}).items():
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
            columns = column_order(file["obs"])
            columns += [key for key in obs or {} if key not in columns]
            file["obs"].attrs["column-order"] = np.array(columns, dtype=h5py.string_dtype())

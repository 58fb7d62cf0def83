"""Matrix Market files (.mtx), and which way round they are.

This is engineering.

Know before reading: files.py. An .mtx file is a matrix without names, and nothing in it says
whether its rows are genes or cells. Cell Ranger and STARsolo write genes as rows, kallisto and
alevin cells; whoever uploads such a folder renames its files, or loses one. So these are asked, in
this order:

1. How many names lie beside it: of a matrix of 17 x 23 with 23 barcodes the columns are the cells.
2. What programs write under such names, where the numbers fit both ways or there are no names:

    rows    files                                                           of
    genes   matrix.mtx  features.tsv (genes.tsv)  barcodes.tsv              Cell Ranger, STARsolo
    genes   UniqueAndMult-EM.mtx beside the same                            STARsolo
    genes   GSM1_matrix.mtx.gz  GSM1_features.tsv.gz  GSM1_barcodes.tsv.gz  the same, in an archive
    cells   cells_x_genes.mtx  cells_x_genes.barcodes.txt  ... .genes.txt   kallisto and bustools
    cells   quants_mat.mtx.gz  quants_mat_rows.txt  quants_mat_cols.txt     alevin

A matrix without any names says which way it was read, and how to turn it.

Know after: how a file of names is found, when it belongs to a matrix, and which files are refused.
"""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from minigrad.notebook import number_of
from models.files import KINDS, Content, Refused, check_extent, fields, text

# What a file of names is called, before .tsv, .txt or .csv. Of several the first is taken.
GENE_FILES = ("features", "genes.names", "genes", "gene_names", "quants_mat_cols")
CELL_FILES = ("barcodes", "barcode", "cells", "cell_names", "quants_mat_rows")
# What is written above a column of names. A first line of other words is a name: one too many.
TITLES = {
    *("x", "v1", "index", "id", "name", "names", "symbol", "barcode", "barcodes", "bc_wells"),
    *("cell", "cells", "cell_id", "cell_ids", "cell_name", "cell_names", "feature", "features"),
    *("feature_id", "feature_name", "gene", "genes", "gene_id", "gene_ids", "gene_name"),
    *("gene_names", "gene_symbol", "gene_symbols"),
}


def read_folder(path: Path, transpose: bool = False) -> Content:
    """The one .mtx or .mtx.gz of a folder; of several the one that is named matrix.mtx, with or
    without a prefix.

    Raises Refused where there is not one.
    """
    found = _matrices(path)
    chosen = found if len(found) == 1 else [p for p in found if _stem(p).endswith("matrix")]
    if len(chosen) != 1:
        names = ", ".join(p.name for p in found[:5]) + ", ..." * (len(found) > 5)
        inside = sorted(item.parent.name for item in path.glob("*/matrix.mtx*"))
        if inside and not found:
            raise Refused(f"holds no counts, but its folders do: {', '.join(inside)}; pass one")
        raise Refused(
            "a folder of counts holds one .mtx or .mtx.gz, or of several one named matrix.mtx; "
            f"here are: {names or 'none'}; pass the path of the file itself"
        )
    return read_mtx(chosen[0], transpose)


def read_mtx(path: Path, transpose: bool = False) -> Content:
    """A Matrix Market file with the names that lie beside it, cells as rows; transpose: the other
    way round.

    Raises Refused where the numbers of names fit neither way, and for a file that is not whole.
    """
    X = _matrix(path)
    gene_labels = _labels_beside(path, GENE_FILES, X.shape)
    cell_labels = _labels_beside(path, CELL_FILES, X.shape)
    usual = _genes_are_usually_rows(path, has_labels=bool(gene_labels or cell_labels))
    if gene_labels is None and cell_labels is None:
        genes_are_rows = usual != transpose
        guessed = () if transpose else (_guessed(X.shape, genes_are_rows),)
        return Content(X.T if genes_are_rows else X, notes=guessed)

    genes, cells = _that_fit(gene_labels, cell_labels, X.shape)
    genes_are_rows = _fit(genes, cells, X.shape)
    if genes_are_rows and _fit(genes, cells, X.shape[::-1]):
        genes_are_rows = usual != transpose
        transpose = False
    X = sparse.csr_array(X.T if genes_are_rows else X)
    names = None
    notes: tuple = ()
    var = {}
    if genes is not None:
        symbols = [row[min(1, len(row) - 1)] for row in genes]  # of identifier and symbol
        names = np.array(symbols)
        if any(len(row) > 1 for row in genes):
            var["gene_ids"] = np.array([row[0] for row in genes])
        if any(len(row) > 2 for row in genes):
            var[KINDS] = np.array([row[2] if len(row) > 2 else "" for row in genes])
    barcodes = None if cells is None else [row[0] for row in cells]
    if genes is None or cells is None:
        notes = (*notes, _one_missing(gene_labels, cell_labels, genes_are_rows))
    content = Content(X, names, barcodes, notes=notes, var=var)
    return content.transposed() if transpose else content


def _guessed(shape, genes_are_rows: bool) -> str:
    rows, columns = ("genes", "cells") if genes_are_rows else ("cells", "genes")
    return (
        f"no file with names lies beside the matrix, so it was guessed that its rows are {rows}: "
        f"read as {shape[0]} {rows} and {shape[1]} {columns}; if that is the wrong way round, pass "
        "transpose=True"
    )


def _one_missing(gene_labels, cell_labels, genes_are_rows: bool) -> str:
    missing = "genes" if gene_labels is None else "cells"
    return (
        f"no file with names of {missing} lies beside the matrix, so they are numbered; by "
        f"{gene_labels or cell_labels} its rows are {'genes' if genes_are_rows else 'cells'}"
    )


# ---------------------------------------------------------------------------------------- the names
class Labels(NamedTuple):
    """A file of names. rows: the fields of each line, without empty lines at the end and # lines at
    the beginning. versions: the rows that may be meant, the likeliest first.
    """

    path: Path
    rows: list
    versions: list

    def __str__(self) -> str:
        return f"{self.path.name} ({number_of(len(self.rows), 'name')})"


def _labels_beside(matrix: Path, names: tuple, shape) -> Labels | None:
    """The file of names, called one of these, that belongs to a matrix; None where there is none.

    It belongs to it if what stands before its own name, such as "GSM1_", begins the name of the
    matrix too; the longest wins. Beside a matrix that is the only one in its folder, any other will
    do if it has the right number of names.
    """
    pattern = re.compile(
        rf"(?:(.*)[._ -])?({'|'.join(map(re.escape, names))})\.(?:tsv|txt|csv)(?:\.gz)?",
        re.IGNORECASE,
    )
    own: list[tuple] = []
    others: list[tuple] = []
    for path in sorted(matrix.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        before = (match[1] or "").lower()
        rank = -len(before), names.index(match[2].lower())
        is_own = not before or re.match(re.escape(before) + r"([._ -]|$)", _stem(matrix))
        (own if is_own else others).append((rank, path))
    if own:
        return _labels(min(own)[1])
    if len(_matrices(matrix.parent)) > 1:
        return None
    for _, path in sorted(others):
        labels = _labels(path)
        if any(len(rows) in shape for rows in labels.versions):
            return labels
    return None


def _labels(path: Path) -> Labels:
    """The file of names at this path."""
    delimiter = "," if ".csv" in path.name.lower() else "\t"
    # No more than four fields of each line: it may be a large table after all.
    lines = [row[:4] or [""] for _, row in fields(path, delimiter)]
    filled = list(lines)
    while filled and not any(field.strip() for field in filled[-1]):
        filled.pop()
    rows = list(itertools.dropwhile(lambda row: row[0].startswith("#"), filled))
    return Labels(path, rows, [filled, rows, _without_title(rows), lines])


def _without_title(rows: list) -> list:
    """The rows below a line of titles, where the first is one; and without the numbers of lines
    that R adds.
    """
    if len(rows) < 2:
        return rows
    first, second = rows[:2]
    numbered = second[0] == "1" and (first[0] == "" or len(first) == len(second) - 1)
    if numbered:
        return [row[1:] for row in rows[1:]]
    has_title = any(field.strip().lower() in TITLES for field in first)
    return rows[1:] if has_title else rows


def _that_fit(gene_labels: Labels | None, cell_labels: Labels | None, shape) -> tuple:
    """(rows of genes, rows of cells), None where there is no file, of which there are as many as
    the matrix needs.
    """
    versions = [
        [None] if labels is None else labels.versions for labels in (gene_labels, cell_labels)
    ]
    for genes, cells in itertools.product(*versions):
        if _fit(genes, cells, shape) or _fit(genes, cells, shape[::-1]):
            return genes, cells
    there = " and ".join(str(labels) for labels in (gene_labels, cell_labels) if labels is not None)
    raise Refused(
        f"the matrix has shape {shape[0]} x {shape[1]}, which {there} beside it do not fit, either "
        "way round; fetch them again, or move away what does not belong to this matrix"
    )


def _fit(genes, cells, shape) -> bool:
    """Whether there are as many genes as rows and as many cells as columns, as far as they are
    known.
    """
    return all(names is None or len(names) == n for names, n in zip((genes, cells), shape))


def _genes_are_usually_rows(matrix: Path, has_labels: bool) -> bool:
    """What programs do that write such names. Without labels: who names no program's file means
    cells as rows.
    """
    stem = _stem(matrix)
    if stem == "quants_mat" or any(
        p.name.lower().startswith((f"{stem}.barcodes.", f"{stem}.genes."))
        for p in matrix.parent.iterdir()
    ):
        return False
    first_lines = itertools.islice(io.StringIO(next(text(matrix))), 5)
    is_of_cell_ranger = any(line.startswith("%metadata_json") for line in first_lines)
    return has_labels or is_of_cell_ranger or stem.endswith("matrix") or "uniqueandmult" in stem


def _matrices(folder: Path) -> list[Path]:
    """The .mtx files of a folder."""
    return [p for p in sorted(folder.iterdir()) if re.search(r"\.mtx(\.gz)?$", p.name.lower())]


def _stem(matrix: Path) -> str:
    """The name of an .mtx file without its ending, in lower case."""
    return matrix.name.lower().removesuffix(".gz").removesuffix(".mtx")


# --------------------------------------------------------------------------------------- the matrix
def _matrix(path: Path):
    """The matrix of the file. Not by scipy.io.mmread (SciPy 1.17), which a damaged file can make
    crash Python.
    """
    pieces = text(path)
    lines = io.StringIO(next(pieces))
    banner = next(lines, "").lower().split()
    width = {
        "coordinate integer": 3,
        "coordinate unsigned-integer": 3,
        "coordinate real": 3,
        "coordinate pattern": 2,
        "array integer": 1,
        "array unsigned-integer": 1,
        "array real": 1,
    }.get(" ".join(banner[2:4]))
    if width is None or banner[4:] != ["general"]:
        raise Refused(
            f"starts with {' '.join(banner)[:80]!r}; write it as 'coordinate integer general'"
        )
    sizes = next(line for line in lines if line.strip() and line[0] != "%")
    n_rows, n_columns, *n = map(int, sizes.split())
    n_entries = n[0] if width > 1 else n_rows * n_columns
    check_extent(n_rows, n_columns, n_entries)
    dtype = np.float64 if banner[3] == "real" else np.int64
    parts = [
        np.fromstring(piece, dtype, sep=" ")
        for piece in itertools.chain([lines.read()], pieces)
        if piece.strip()
    ]
    values = np.concatenate(parts or [np.empty(0, dtype)])
    if len(values) != n_entries * width:
        raise Refused(
            f"holds {len(values)} numbers where {n_entries} entries need {n_entries * width}; the "
            "file is truncated or damaged, write it again"
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

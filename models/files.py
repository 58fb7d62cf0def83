"""Files of counts: what all readers need, tables, and .npz; and how no file does harm.

This is engineering.

Know before reading: what a count matrix is (counts.py). The other formats have a file each:
matrix_market.py, for 10x Genomics' folders and all others with an .mtx in them, and hdf5.py, for
.h5ad (AnnData), .h5 (10x Genomics) and .loom. Several of them store genes as rows; here cells
always are.

Files are not trusted. Nothing is unpickled. What a file declares is held against what it stores
before memory is given to it: deflate can make a gigabyte of a megabyte of zeros, real counts shrink
some 50-fold at most. Whatever a damaged file makes a library raise arrives (from counts.read) as a
ValueError of one sentence that names the file. Python code can promise no more: what a damaged file
does to libhdf5 itself, guarded.py keeps in a process of its own.

Know after: what a reader returns, how text and .npz are read, and which files are refused.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from scipy import sparse

from minigrad.data import Blocks
from minigrad.notebook import number_of

# Entries looked at in one go, so that reading and checking need little memory of their own.
BLOCK = 2**20

HOW_TO_ADD = "read(..., obs=TABLE)"
LINES_TRIED = 10  # of a table, to find out what stands between its fields
LEAST_DIFFERENT = 0.9  # share of different ones among names that are numbers

KINDS, EXPRESSION = "feature_types", "Gene Expression"  # the column of var, and the kind of genes
FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # by which a spreadsheet takes a text for a formula


class Refused(ValueError):
    """A sentence of a reader about a file; libraries raise anything else on a damaged one."""


def warn_of_formulas(texts) -> None:
    """Warn where a text of a table would be a formula in a spreadsheet.

    Tables hold names as they are, so that programs find again what they wrote: pandas and R read
    `=2+3` as a name. A spreadsheet would compute it, or fetch what it links to.
    """
    found = sorted({str(text) for text in texts if text.startswith(FORMULAS)})
    if found:
        shown = ", ".join(map(repr, found[:3])) + " ..." * (len(found) > 3)
        warnings.warn(
            "the table has names that spreadsheets take for formulas, as they begin with =, +, -, "
            f"@, a tab or a carriage return: {shown} ({len(found)} in all); when you open it in "
            "one, import the columns of names as text",
            stacklevel=3,
        )


class Content(NamedTuple):
    """What a reader found in a file. X is not checked yet.

    X: (n_cells, n_genes), a SciPy matrix of any kind, or Blocks. genes: (n_genes,) and cells:
    (n_cells,) names, None where the file has none. obs: what is known of each cell, name ->
    (n_cells,). notes: sentences that the user should read, about what was guessed or left out. var:
    what is known of each gene, name -> (n_genes,).
    """

    X: Any
    genes: Sequence[str] | np.ndarray | None = None
    cells: Sequence[str] | np.ndarray | None = None
    obs: dict = {}
    notes: tuple = ()
    var: dict = {}

    def transposed(self) -> Content:
        """Genes as cells, cells as genes, with what is known of them."""
        return Content(self.X.T, self.cells, self.genes, self.var, self.notes, self.obs)


def need(package: str, extra: str = "singlecell") -> ModuleType:
    """The imported package; ImportError that says how to install it, with which extra of ours."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'this needs {package}: pip install "minigrad-scvi[{extra}]"') from error


# ------------------------------------------------------------------ is it what it says, and no more
def allow(declared: int, stored: int, what: str, ratio: int = 200) -> None:
    """Raises Refused for what declares far more bytes than it stores, before it gets memory."""
    if declared > ratio * stored + 2**24:
        raise Refused(
            f"{what} declares {declared:,} bytes but stores {stored:,}; damaged, or made to fill "
            "the memory"
        )


def refuse_pipes(path: str | Path) -> None:
    """Raises Refused for what is no ordinary file: reading a pipe or a device may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        name = Path(path).name
        raise Refused(f"{name} is a pipe, a device or a folder; pass the path of a file")


def check_extent(n_rows: int, n_columns: int, n_entries: int) -> None:
    """Raises Refused for a shape that a few bytes claim and that costs gigabytes; unfiltered 10x
    output, 7 million rows, passes.
    """
    if min(n_rows, n_columns) < 0 or max(n_rows, n_columns) > 10**6 + 100 * n_entries:
        raise Refused(
            f"declares {n_rows} x {n_columns} for {n_entries} entries; damaged, or made to fill "
            "the memory"
        )


def check_compressed(shape, n_data: int, n_indices: int, indptr) -> None:
    """Raises Refused for lengths of data and indices, and an indptr, that cannot be those of
    compressed rows of this shape.
    """
    n_rows, n_columns = shape
    check_extent(n_rows, n_columns, n_data)
    if n_data != n_indices or len(indptr) != n_rows + 1:
        raise Refused(
            f"data, indices, indptr have lengths {n_data}, {n_indices}, {len(indptr)}, the shape "
            f"is {[n_rows, n_columns]}; the file is truncated or damaged, write it again"
        )
    if indptr[0] != 0 or indptr[-1] != n_data or (indptr[1:] < indptr[:-1]).any():
        raise Refused(f"indptr must rise from 0 to {n_data}; the file is damaged, write it again")


def compressed(form: str, data, indices, indptr, shape) -> sparse.sparray:
    """A sparse matrix from the arrays of a file, each checked against the others. form: "csr" or
    "csc".

    Raises Refused where they do not fit together.
    """
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
            f"data has shape {data.shape}, must be a list; the lengths cannot fit, write the file "
            "again"
        )
    check_compressed((n_rows, n_columns), len(data), len(indices), indptr)
    if len(indices) and (indices.min() < 0 or indices.max() >= n_columns):
        raise Refused(
            f"indices run from {indices.min()} to {indices.max()}, outside 0 to {n_columns - 1}; "
            "the file is damaged, write it again"
        )
    index = np.int32 if max(len(data), n_columns) < 2**31 else np.int64
    matrix = sparse.csr_array(
        (plain(data), indices.astype(index), indptr.astype(index)), shape=(n_rows, n_columns)
    )
    return matrix if form == "csr" else matrix.T


def plain(values: np.ndarray) -> np.ndarray:
    """The same values, shape (n,) or (n_cells, n_genes), in a dtype that SciPy's matrices take:
    this machine's byte order, and no half floats.
    """
    return values.astype(
        np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("="), copy=False
    )


def expression_only(content: Content) -> Content:
    """The content with its genes alone, and a note that says what was left out: where features are
    of several kinds, as 10x Genomics calls them in var["feature_types"], those that are no 'Gene
    Expression', such as antibodies and guides.
    """
    kinds, n = other_kinds(content.var)
    if not kinds:
        return content
    keep = np.flatnonzero(np.asarray(content.var[KINDS]).astype(str) == EXPRESSION)
    note = (
        f"of {n} features {len(keep)} are {EXPRESSION!r}; left out, as they are no genes: {kinds}"
    )
    X = content.X.select_columns(keep) if isinstance(content.X, Blocks) else content.X[:, keep]
    return content._replace(
        X=X,
        genes=None if content.genes is None else np.asarray(content.genes)[keep],
        notes=(note, *content.notes),
        var={key: np.asarray(values)[keep] for key, values in content.var.items()},
    )


def other_kinds(var: Any) -> tuple[str, int]:
    """(features beside genes, in words, "" if there are none; number of all features), as
    var["feature_types"] has them. var: a mapping or frame of columns, (n_features,) each.
    """
    if KINDS not in var:
        return "", 0
    kinds = np.asarray(var[KINDS]).astype(str)
    others, numbers = np.unique(kinds[kinds != EXPRESSION], return_counts=True)
    if EXPRESSION not in kinds:
        return "", len(kinds)
    words = [f"{n} {kind or 'of no kind'!r}" for kind, n in zip(others.tolist(), numbers)]
    return ", ".join(words), len(kinds)


# --------------------------------------------------------------------------------------------- .npz
def read_npz(path: Path, transpose: bool = False) -> Content:
    """Sparse rows as scipy.sparse.save_npz writes them, csr or csc, with names and what else is
    known of each cell.

    Raises Refused for others, and for a file that is not whole.
    """
    arrays = npz_arrays(path)
    missing = [key for key in ("data", "indices", "indptr", "shape") if key not in arrays]
    if missing:
        raise Refused(
            f"holds no {', '.join(missing)}; write sparse rows as scipy.sparse.save_npz does"
        )
    form = str(np.ravel(arrays.pop("format", "csr")).astype(str)[0])
    X = compressed(form, *(arrays.pop(key) for key in ("data", "indices", "indptr", "shape")))
    genes = arrays.pop("genes", None)
    cells = arrays.pop("cells", None)
    vectors = {key: values for key, values in arrays.items() if values.ndim == 1}
    of_genes = {k: v for k, v in vectors.items() if v.shape == X.shape[1:] != X.shape[:1]}
    of_cells = {k: v for k, v in vectors.items() if k not in of_genes}
    content = Content(X, genes, cells, of_cells, var=of_genes)
    return content.transposed() if transpose else content


def npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """name -> array, of any shape, for all of an .npz file; never unpickles, and reads no more than
    the zip's own headers promise. Raises Refused for what is no plain array, or not whole.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        allow(sum(member.file_size for member in members), os.path.getsize(path), "the archive")
        for member in members:
            with archive.open(member) as stream:
                old = npy.read_magic(stream) == (1, 0)
                shape, fortran_order, dtype = (
                    npy.read_array_header_1_0 if old else npy.read_array_header_2_0
                )(stream)
                if dtype.kind not in "biufUS":
                    raise Refused(
                        f"{member.filename} holds {dtype}, not numbers or strings; Python objects "
                        "are not unpickled, for that can run code; write plain arrays"
                    )
                content = stream.read()
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
                raise Refused(
                    f"{member.filename} declares shape {shape} of {dtype} but holds "
                    f"{len(content):,} bytes; write it again"
                )
            if dtype.kind == "U" and not _are_characters(content, not dtype.isnative):
                raise Refused(
                    f"{member.filename} holds numbers that stand for no characters of a text; "
                    "write it again"
                )
            arrays[member.filename.removesuffix(".npy")] = np.frombuffer(content, dtype).reshape(
                shape, order="F" if fortran_order else "C"
            )
    return arrays


def _are_characters(content: bytes, is_swapped: bool) -> bool:
    """Whether NumPy's texts can be written to a file: Unicode up to its end, and none of the
    surrogates, which stand for half a character.
    """
    codes = np.frombuffer(content, np.uint32)
    codes = codes.byteswap() if is_swapped else codes
    return not np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000)))


# --------------------------------------------------------------------------------------------- text
def text(path: Path) -> Iterator[str]:
    """The text of a file in pieces of whole lines; no more of it than so small a file can hold.

    Whether it is gzipped its first two bytes say, not its name: .gz stays when a browser unpacks a
    file. Raises Refused for a text far too long.
    """
    refuse_pipes(path)
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        first = file.read(2)
        is_zipped = first == b"\x1f\x8b"
        if first in (b"\xff\xfe", b"\xfe\xff"):
            raise Refused("is UTF-16, as Excel's 'Unicode text' is; save it as UTF-8")
        if is_zipped:
            # The last four bytes say how long the text is: honest bombs end here, others below.
            file.seek(-4, os.SEEK_END)
            allow(int.from_bytes(file.read(), "little"), size, "the text")
    total = 0
    rest = b""
    encoding = "utf-8-sig"  # drops the mark that Windows puts before UTF-8
    with (gzip.open if is_zipped else open)(path, "rb") as file:
        while piece := file.read(4 * BLOCK):
            total += len(piece)
            allow(total, size, "the text")
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            if newline:
                yield _decoded(lines + newline, encoding)
                encoding = "utf-8"
            elif len(rest) > 16 * BLOCK:
                raise Refused("a line of more than 16 MB; write a line for each cell")
    yield _decoded(rest, encoding)


def _decoded(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise Refused(
            f"holds bytes that are no UTF-8, such as {content[error.start : error.end]!r}; save it "
            "as text in UTF-8"
        ) from None


def named_columns(lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The names of all columns, and the fields of each line, of a table with a line for each cell,
    without the blanks around them.

    lines: the fields of the names of the columns, then those of each cell. R leaves out the name of
    the first column, which is then "". Refused without a cell, and where a line has another number
    of fields.
    """
    if len(lines) < 2:
        raise Refused("holds no cells: a line of names of columns, then a line for each cell")
    header, *rows = [[field.strip() for field in line] for line in lines]
    if len(header) == len(rows[0]) - 1:
        header = ["", *header]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise Refused(
                f"line {i + 2} has {number_of(len(row), 'field')}, and the line of names has "
                f"{len(header)}; write it again"
            )
    return header, rows


def fields(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line from 1, its fields out of their quotes) for each line of a file; of an
    empty line no fields.
    """
    # Lines end in "\n", "\r\n", or as on old Macs in "\r".
    rows = csv.reader(
        (line for piece in text(path) for line in io.StringIO(piece, newline=None)),
        delimiter=delimiter,
    )
    for row in rows:
        yield rows.line_num, row


def read_table(path: Path, transpose: bool = False) -> Content:
    """A table with a line for each cell, after one of gene names.

    What stands between the fields, a comma, tab, semicolon or space, is found out. Lines that begin
    with # before these, and empty ones, are passed over, and so is a delimiter at the end of each
    line. Where the first line holds counts, it is a cell, and the genes are numbered. Raises
    Refused for lines of another length, for what is no number, and where the first column holds
    counts.
    """
    filled = (f for f in fields(path, delimiter_of(path)) if any(field.strip() for field in f[1]))
    header, first = _first_lines(filled)
    if first is None:
        raise Refused("holds no cells: a line of gene names, then a line for each cell")
    lines: Iterator[tuple[int, list[str]]] = itertools.chain([first], filled)
    n_fields = len(first[1])
    ends_with_delimiter = first[1][-1] == "" == header[-1]
    if ends_with_delimiter:
        n_fields -= 1
    if ends_with_delimiter or len(header) == n_fields + 1 and header[-1] == "":
        header = header[:-1]
    genes = header if len(header) == n_fields - 1 else header[1:]  # R leaves out the corner
    notes: tuple = ()
    has_names = not (len(header) == n_fields and _are_counts(genes))
    if not has_names:
        notes = (
            "the first line holds counts and no names of genes: it was read as a cell, and the "
            "genes are numbered",
        )
        lines = itertools.chain([(1, header)], lines)
    cells, data, indices, lengths = [], [], [], [0]
    for number, row in lines:
        if ends_with_delimiter and row[-1] == "":
            row = row[:-1]
        if len(row) != len(genes) + 1:
            n_counts = number_of(len(row) - 1, "count")
            raise Refused(f"line {number} has {n_counts} for {number_of(len(genes), 'gene')}")
        try:
            values = numbers_in(row[1:])
        except ValueError:
            raise Refused(_no_number(number, genes, row[1:])) from None
        cells.append(row[0].strip())
        indices.append(np.flatnonzero(values))
        data.append(values[indices[-1]])
        lengths.append(len(data[-1]))
    X = sparse.csr_array(
        (np.concatenate(data), np.concatenate(indices), np.cumsum(lengths)),
        (len(cells), len(genes)),
    )
    if _are_counts(cells):
        raise Refused(
            "the first column holds counts where names of cells are expected; write the names there"
        )
    if not genes:
        raise Refused(
            "its lines hold one field each, and no counts: no table, or one whose fields stand "
            "apart by something else than commas, tabs, semicolons or spaces"
        )
    notes += _sums_among(X, cells, genes)
    names = [gene.strip() for gene in genes] if has_names else None
    content = Content(X, names, cells, notes=notes)
    return content.transposed() if transpose else content


def _no_number(number: int, genes: Sequence[str], texts: Sequence[str]) -> str:
    """What is wrong with a line of counts that are not all numbers."""
    gene, count = next(pair for pair in zip(genes, texts) if not _are_numbers([pair[1]]))
    return (
        f"line {number}, column {gene!r}: {count!r} is no number; counts are written without "
        "commas, and as 0 where there are none. Gene names belong in the first line, cell names in "
        f"the first column, and what else is known of cells in a table of its own: {HOW_TO_ADD}"
    )


def _sums_among(X, cells: Sequence[str], genes: Sequence[str]) -> tuple:
    """Notes about a last line or column that is the sum of the others, as spreadsheets have it."""
    notes: tuple = ()
    for x, names, what in ((X, cells, "line"), (sparse.csr_array(X.T), genes, "column")):
        sums = x[:-1].sum(axis=0)
        if len(names) > 3 and sums.any() and np.array_equal(x[[-1]].toarray()[0], sums):
            notes += (
                f"the last {what}, {names[-1]!r}, is the sum of the others; if it is none of the "
                "cells or genes, take it out of the file",
            )
    return notes


def delimiter_of(path: Path) -> str:
    """What stands between the fields of a table: what cuts its first lines into most fields, and
    each into as many; if nothing does, what is most frequent in one of them. Between equals the
    line of names decides, for that of decimals is a comma too; and then the file's name, for .csv
    is often written with others.
    """
    marks = [",", "\t", ";"]
    if any(ending in path.name.lower() for ending in (".tsv", ".txt")):
        marks = ["\t", ",", ";"]
    first_lines = itertools.islice(io.StringIO(next(text(path)), newline=None), LINES_TRIED)
    filled = [line for line in first_lines if line.strip() and not line.startswith("#")]
    last = filled[-1] if filled else ""  # not that of names, which may have one field less

    def fields_and_marks(mark: str) -> tuple[int, int, int]:
        lengths = {len(row) for row in csv.reader(filled[1:], delimiter=mark)}
        n_fields = lengths.pop() if len(lengths) == 1 else 1
        return n_fields, last.count(mark), filled[0].count(mark) if filled else 0

    found = max(marks, key=fields_and_marks)
    return " " if found not in last and " " in last.strip() else found


def _are_counts(names) -> bool:
    """Whether what stands where names belong is numbers, many alike: identifiers differ."""
    return len(set(names)) < LEAST_DIFFERENT * len(names) and _are_numbers(names)


def _first_lines(lines) -> tuple[list[str], tuple | None]:
    """The fields of the line of gene names, and the first line of counts with its number, or None.

    Lines before that begin with # are comments, unless the last of them is as long as a line of
    counts that follows it: then it is the line of names, which begins so ("#cell").
    """
    comment = []
    for line in lines:
        row = line[1]
        if not row[0].startswith("#"):
            break
        comment = row
    else:
        return comment, None
    if len(comment) == len(row) > 1 and _are_numbers(row[1:]):
        return comment, line
    return row, next(lines, None)


def _are_numbers(row) -> bool:
    try:
        numbers_in(row)
    except ValueError:
        return False
    return True


def numbers_in(texts: Sequence[str]) -> np.ndarray:
    """The numbers that texts (n,) say, float64. ValueError for a text that is none: to Python 1_0
    is 10, to whoever wrote it a name.
    """
    if "_" in "".join(texts):
        raise ValueError("a name with an underscore is no number")
    return np.array(texts, dtype=np.float64)

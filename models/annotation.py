"""What is known of each cell, from a table of its own. This is engineering.

10x Genomics' files, .mtx and tables of counts hold no annotation. It comes as a table beside them,
a line for each cell, as Seurat writes its meta.data and GEO keeps it:

    cell                 cluster  cell_type  percent_mito
    d1_GTGCAGCCAAGGTTCT  13       Club       0.05
    d1_GGGCATCAGCCAGAAC  8        AT2        NA

Its lines stand in an order of their own, and are of other cells too, so they are joined by name.
Which column has the names is found out: the one in which most of the cells are.

Know before reading: files.py (`fields`, `named_columns`).

Know after: what becomes of cells that a table lacks.
"""

from __future__ import annotations

import csv
import re
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigrad.notebook import number_of
from models.files import Refused, delimiter_of, fields, named_columns, numbers_in
from models.labels import advice_on_barcodes, is_missing_text

NUMBER = re.compile(r"[+-]?\d+(,(?P<digits>\d+)([eE][+-]?\d+)?)?", re.ASCII)  # decimal commas
IS_PADDED = re.compile(r"\s*[+-]?0\d")  # as 007 is: donor 7 may be another


class Annotation(NamedTuple):
    """obs: name -> (n_kept,); notes: sentences that the user should read; kept: positions of the
    cells that these are of, (n_kept,).
    """

    obs: dict
    notes: tuple
    kept: np.ndarray


class Joined(NamedTuple):
    """A table and the cells that were looked for in it.

    columns: name -> texts (n_lines,), beside the column with the names of cells; lines: (n_cells,)
    the line of each cell, -1 where it has none; mark: what stands between the fields.
    """

    columns: dict[str, list[str]]
    lines: np.ndarray
    mark: str


def annotation_of(path, cells: np.ndarray, only_annotated: bool = False) -> Annotation:
    """The columns of a table at this path, of the cells (n_cells,) with these names.

    Numbers become numbers, NaN where one is missing, also those with a decimal comma, as
    spreadsheets write them in many countries; all else str, None where it is missing. Cells that
    the table lacks have nothing, or with only_annotated are left out. FileNotFoundError;
    ValueError for a table that has none of the cells, or one of them twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"obs: {path}: no such file")
    try:
        return _annotation(path, cells, only_annotated)
    except Refused as error:
        raise ValueError(f"obs: {path}: {error}") from None
    except (EOFError, OSError, csv.Error) as error:
        raise ValueError(f"obs: {path}: damaged, or no table ({error}); write it again") from error


def _annotation(path: Path, cells: np.ndarray, only_annotated: bool) -> Annotation:
    table = joined(path, cells)
    columns = table.columns
    if table.mark != ",":
        columns = {name: _with_points(texts) for name, texts in columns.items()}
    with_commas = [name for name, texts in columns.items() if texts != table.columns[name]]
    kept = np.flatnonzero(table.lines >= 0) if only_annotated else np.arange(len(cells))
    obs = {name: _values(texts, table.lines[kept]) for name, texts in columns.items()}
    missing = np.flatnonzero(table.lines < 0)
    notes: tuple = ()
    if with_commas:
        notes = (
            f"{path}: numbers were read with decimal commas, 0,5 as 0.5, in: "
            f"{', '.join(with_commas)}",
        )
    if len(missing):
        so = "left out" if only_annotated else "of these nothing is known"
        notes += (
            f"{path}: has no line for {len(missing):,} of {number_of(len(cells), 'cell')}, such as "
            f"{str(cells[missing[0]])!r}: {so}",
        )
    return Annotation(obs, notes, kept)


def joined(path: Path, cells: np.ndarray) -> Joined:
    """A table, and which of its lines is of which of the cells (n_cells,) with these names.

    Raises Refused for a table that has none of the cells, or one of them twice.
    """
    mark = delimiter_of(path)
    header, rows = _table(path, mark)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    asked = [str(cell).strip() for cell in cells]
    wanted = set(asked)
    found_in = {name: len(wanted.intersection(texts)) for name, texts in columns.items()}
    key = max(found_in, key=lambda name: found_in[name])
    names = columns.pop(key)
    if found_in[key] == 0:
        raise Refused(
            f"has none of the cells by name: they are called {str(cells[0])!r}, in the table "
            f"{names[0]!r}; " + _advice(asked, header, [*names, *chain(*columns.values())])
        )
    position: dict[str, int] = {}
    for i, name in enumerate(names):
        if position.setdefault(name, i) != i and name in wanted:
            raise Refused(f"has the cell {name!r} twice, in its column {key!r}; keep one line")
    return Joined(columns, np.array([position.get(cell, -1) for cell in asked]), mark)


def _advice(cells: list[str], header: list[str], texts: list[str]) -> str:
    """What to do about a table in which no cell is found; texts: all that it holds."""
    if set(cells) & set(header):
        return "its columns are named as the cells: transpose it, so that each cell has a line"
    lower = {text.lower(): text for text in texts}
    alike = next((cell for cell in cells if cell.lower() in lower), None)
    if alike is not None:
        return (
            f"they differ in upper and lower case only ({alike!r} and {lower[alike.lower()]!r}): "
            "write them alike"
        )
    return advice_on_barcodes(cells, texts)


def _table(path: Path, mark: str) -> tuple[list[str], list[list[str]]]:
    """The names of all columns, and the fields of each line, between which a mark stands."""
    lines = [row for _, row in fields(path, mark) if any(f.strip() for f in row)]
    names, rows = named_columns(lines)
    header = [name or f"Unnamed: {i}" for i, name in enumerate(names)]  # as pandas calls them
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise Refused(f"has two columns {twice!r}; rename one")
    return header, rows


def _with_points(texts: list[str]) -> list[str]:
    """The values of a column, 5.16 for 5,16 if all are such numbers.

    Where each comma has three digits behind it, as in 1,024, it may part thousands: all stay.
    """
    if not any("," in text for text in texts):
        return texts
    matches = [NUMBER.fullmatch(text.strip()) for text in texts]
    if any(not match and not is_missing_text(text) for match, text in zip(matches, texts)):
        return texts
    digits = {len(match["digits"]) for match in matches if match and match["digits"]}
    return [text.replace(",", ".") for text in texts] if digits - {3} else texts


def _values(texts: list[str], lines: np.ndarray) -> np.ndarray:
    """The values of a column on these lines, (n_cells,); missing ones where a line is -1."""
    chosen = [texts[line] if line >= 0 else "" for line in lines.tolist()]
    missing = np.array([is_missing_text(text) for text in chosen])
    try:
        values = numbers_in(["nan" if m else text for m, text in zip(missing, chosen)])
        if any(IS_PADDED.match(text) for text in chosen):
            raise ValueError("zeros before a number are part of a name")
    except ValueError:
        found = np.array(chosen, dtype=object if missing.any() else str)
        found[missing] = None
        return found
    if missing.all():
        return np.full(len(chosen), None)
    whole = not missing.any() and all(text.strip().lstrip("+-").isdecimal() for text in chosen)
    return values.astype(np.int64) if whole and np.abs(values).max() < 2**53 else values

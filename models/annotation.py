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

from models.files import Refused, delimiter_of, fields, named_columns, numbers_in
from models.labels import advice_on_barcodes, is_missing_text

DECIMAL = re.compile(r"[+-]?\d+(,\d+)?")  # as tables with semicolons have them, in half of Europe
IS_PADDED = re.compile(r"\s*[+-]?0\d")  # as 007 is: donor 7 may be another


class Annotation(NamedTuple):
    """obs: name -> (n_kept,); notes: sentences that the user should read; kept: positions of the
    cells that these are of, (n_kept,).
    """

    obs: dict
    notes: tuple
    kept: np.ndarray


def annotation_of(path, cells: np.ndarray, only_annotated: bool = False) -> Annotation:
    """The columns of a table at this path, of the cells (n_cells,) with these names.

    Numbers become numbers, NaN where one is missing; all else str, None where it is missing. Cells
    that the table lacks have nothing, or with only_annotated are left out. FileNotFoundError;
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
    mark = delimiter_of(path)
    header, rows = _table(path, mark)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    asked = [cell.strip() for cell in cells.tolist()]
    wanted = set(asked)
    found_in = {name: len(wanted.intersection(values)) for name, values in columns.items()}
    key = max(found_in, key=lambda name: found_in[name])
    names = columns.pop(key)
    if found_in[key] == 0:
        raise Refused(
            f"has none of the cells by name: they are called {str(cells[0])!r}, in the table "
            f"{next(iter([names, *columns.values()]))[0]!r}; "
            + _advice(asked, header, [*names, *chain(*columns.values())])
        )
    position: dict[str, int] = {}
    for i, name in enumerate(names):
        if position.setdefault(name, i) != i and name in wanted:
            raise Refused(f"has the cell {name!r} twice, in its column {key!r}; keep one line")
    lines = np.array([position.get(cell, -1) for cell in asked])
    kept = np.flatnonzero(lines >= 0) if only_annotated else np.arange(len(cells))
    obs = {}
    with_commas = []
    for name, texts in columns.items():
        chosen = [texts[line] if line >= 0 else "" for line in lines[kept].tolist()]
        if mark == ";" and _have_decimal_commas(chosen):
            with_commas.append(name)
            chosen = [text.replace(",", ".") for text in chosen]
        obs[name] = _values(chosen)
    missing = np.flatnonzero(lines < 0)
    notes: tuple = ()
    if with_commas:
        notes = (
            f"{path}: numbers were read with decimal commas, 0,5 as 0.5, in: "
            f"{', '.join(with_commas)}",
        )
    if len(missing):
        so = "they are left out" if only_annotated else "of these nothing is known"
        notes += (
            f"{path}: has no line for {len(missing):,} of {len(cells):,} cells, such as "
            f"{str(cells[missing[0]])!r}: {so}",
        )
    return Annotation(obs, notes, kept)


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


def _have_decimal_commas(texts: list[str]) -> bool:
    """Whether texts (n,) that are not missing are numbers, some with a comma before decimals."""
    given = [text for text in texts if not is_missing_text(text)]
    return any("," in text for text in given) and all(DECIMAL.fullmatch(text) for text in given)


def _values(chosen: list[str]) -> np.ndarray:
    """The values that texts say, (n_cells,); of "" and the like that they are missing."""
    missing = np.array([is_missing_text(text) for text in chosen])
    try:
        if any(IS_PADDED.match(text) for text in chosen):
            raise ValueError("zeros before a number are part of a name")
        values = numbers_in(["nan" if m else text for m, text in zip(missing, chosen)])
    except ValueError:
        found = np.array(chosen, dtype=object if missing.any() else str)
        found[missing] = None
        return found
    if missing.all():
        return np.full(len(chosen), None)
    whole = not missing.any() and all(text.strip().lstrip("+-").isdecimal() for text in chosen)
    return values.astype(np.int64) if whole and np.abs(values).max() < 2**53 else values

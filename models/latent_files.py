"""Latent coordinates and labels of cells, from files. This is engineering.

Know before reading: files.py (`fields`, `named_columns`, `npz_arrays`), and that `embed` writes a
line for each cell: its name, then its coordinates. Labels come as a table with a line of names of
columns, then a line for each cell, its name in the first column:

    cell     cell_type
    AAAC-1   T
    AAAG-1   B

Lines of labels stand in an order of their own, so they are joined to cells by name.

Know after: what becomes of cells without a label.
"""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.files import Refused, delimiter_of, fields, named_columns, npz_arrays
from models.labels import advice_on_barcodes, is_missing_text


class Latent(NamedTuple):
    """Names of cells, (n,) str, and their latent coordinates, (n, d) float64."""

    cells: np.ndarray
    z: np.ndarray


def read_latent(path: Path) -> Latent:
    """What `embed` wrote: a .csv, or an .npz with arrays cells and X_scVI.

    Returns Latent with cells (n,) and z (n, d). Raises FileNotFoundError; ValueError for a file of
    another kind, with another content, or damaged.
    """
    read = {".csv": _latent_of_csv, ".npz": _latent_of_npz}.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: latent coordinates are read from .csv and .npz; embed writes them"
        )
    return _read(read, path)


def read_labels(path: Path, column: str | None, cells: np.ndarray) -> np.ndarray:
    """The labels of cells with these names, (n,) object: str, or None for a cell without one.

    path: a table; what stands between its fields is found out. column: which of its columns; None:
    the only one beside the names of the cells. Raises FileNotFoundError; ValueError for no or
    several such columns, a cell named twice, or none of the cells.
    """
    label = _read(lambda path: _labels_of_table(path, column), path)
    found = np.array([label.get(str(cell)) for cell in cells], dtype=object)
    if not any(value is not None for value in found):
        raise ValueError(
            f"{path}: has a label for none of the cells by name: they are called "
            f"{str(cells[0])!r}, in the table {next(iter(label))!r}; "
            f"{advice_on_barcodes([str(cell) for cell in cells], list(label))}"
        )
    return found


def _read(read, path):
    """What `read` makes of the file, with errors that begin with its path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return read(path)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, csv.Error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged, or of another kind ({error})") from error


def _table(path):
    """(names of the columns, fields of each line) of a table with one line at least."""
    return named_columns([row for _, row in fields(path, delimiter_of(path)) if row])


def _latent_of_csv(path):
    header, rows = _table(path)
    if len(header) < 2:
        raise Refused("has one column only: the name of a cell, then its coordinates")
    try:
        z = np.array([row[1:] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise Refused(f"has coordinates that are no numbers ({error})") from None
    return Latent(np.array([row[0] for row in rows]), z)


def _latent_of_npz(path):
    arrays = npz_arrays(path)
    if "cells" not in arrays or "X_scVI" not in arrays:
        raise Refused(
            f"has arrays {', '.join(arrays) or 'none'}, not cells and X_scVI, as embed writes them"
        )
    cells, z = arrays["cells"], arrays["X_scVI"]
    if z.ndim != 2 or cells.shape != z.shape[:1]:
        raise Refused(f"has cells of shape {cells.shape}, and X_scVI of shape {z.shape}")
    return Latent(cells.astype(str), z.astype(np.float64))


def _labels_of_table(path, column):
    """Name of the cell -> label, of the cells that have one."""
    header, rows = _table(path)
    names = header[1:]
    there = ", ".join(names) or "none"
    if column is None and len(names) != 1:
        raise Refused(f"has {len(names)} columns beside the cells; choose one of: {there}")
    if column is not None and names.count(column) != 1:
        raise Refused(f"has no column {column!r}, or several; there are: {there}")
    place = 1 if column is None else 1 + names.index(column)
    label = {row[0]: row[place] for row in rows}
    if len(label) < len(rows):
        raise Refused("names a cell twice; keep one line for each")
    return {cell: value for cell, value in label.items() if not is_missing_text(value)}

"""Latent coordinates and labels of cells, from files. This is engineering.

Know before reading: files.py (`fields`, `named_columns`, `npz_arrays`), and that `embed` writes a
line for each cell: its name, then its coordinates. Labels come as a table with a line of names of
columns, then a line for each cell, as annotation.py reads it:

    cell     cell_type
    AAAC-1   T
    AAAG-1   B

Its lines stand in an order of their own, so they are joined to cells by name.

Coordinates cannot be compared with those of another model, whose axes mean something else, and
those of a cell without counts say nothing at all. Neither can be seen in the numbers. So `embed`
writes both down: which latent space it is (`space_of`), and which cells have counts. In an .npz
these are two more arrays. In a table they would be in the way of other programs, so they stand in a
file beside it, table.csv.json, with the digest of the table that it is about.

Know after: when two models have the same latent space, and what becomes of cells without a label.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.checkpoint import check_target, whole_file
from minigrad.notebook import number_of
from models.annotation import joined
from models.files import (
    Refused,
    delimiter_of,
    fields,
    named_columns,
    npz_arrays,
    numbers_in,
)
from models.labels import is_missing_text

FORMAT, VERSION = "minigrad latent", 1
DIGITS = 16  # hexadecimal, of a digest: among a million models two are the same with p = 3e-8
LARGEST_BESIDE = 2**26  # bytes of what stands beside a table


class Latent(NamedTuple):
    """Latent coordinates of cells.

    cells: names, (n,) str; z: (n, d) float64; space: the latent space that they are of
    (`space_of`), None where the file does not say; has_counts: (n,) bool, all True where it does
    not say.
    """

    cells: np.ndarray
    z: np.ndarray
    space: str | None
    has_counts: np.ndarray


# ---------------------------------------------------------------------------- which latent space
def space_of(model: Any) -> str:
    """A name for the latent space of a model, an SCVI: 16 hexadecimal digits, the digest of its
    encoder's weights, which decide what q(z | x) is.

    A model that `map_query` made has the space of the model that it was mapped onto, whose weights
    it keeps. Weights that it has learnt for new batches (".new.weight") are left out.
    """
    found = hashlib.sha256()
    for name, weights in sorted(model.z_encoder.state_dict().items()):
        if name.endswith(".new.weight"):
            continue
        found.update(f"{name} {weights.dtype.str} {weights.shape}".encode())
        found.update(np.ascontiguousarray(weights).tobytes())
    return found.hexdigest()[:DIGITS]


def refuse_other_space(reference: Latent, query: Latent) -> None:
    """ValueError for latent coordinates that are known to be of two models."""
    if None not in (reference.space, query.space) and reference.space != query.space:
        raise ValueError(
            "REFERENCE and QUERY are latent coordinates of different models (latent space "
            f"{reference.space} and {query.space}), so that a cell's neighbours are so by chance: "
            "embed both files of counts by one run; or map the new cells onto the run of REFERENCE "
            "(command map), and embed the run that comes of it"
        )


# -------------------------------------------------------------------- what stands beside a table
def beside(table: Path) -> Path:
    """The path of what is known of a table of coordinates."""
    return Path(f"{table}.json")


def check_beside(table: Path) -> None:
    """OSError if `write_beside` could not write, or would replace a file that it did not write.

    The user has not named that path, and so has not said that what is there may be replaced.
    """
    path = beside(table)
    if os.path.lexists(path) and (path.is_symlink() or _read_beside(path) is None):
        raise FileExistsError(
            f"{path} is there, and no file that embed wrote: what is known of {table} is to be "
            "written there; rename it, or write the table elsewhere"
        )
    check_target(path)


def write_beside(table: Path, space: str, has_counts: np.ndarray) -> None:
    """Write beside a table of cells which latent space it is of, and which cells have no counts.

    has_counts: (n_cells,) bool.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "table": _digest_of(table),
        "space": space,
        "rows_without_counts": np.flatnonzero(~has_counts).tolist(),  # from 0
    }
    with whole_file(beside(table)) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_beside(path: Path) -> dict[str, Any] | None:
    """What `write_beside` wrote; None for a file that it did not write."""
    if not path.is_file() or path.stat().st_size > LARGEST_BESIDE:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_ours = content["format"] == FORMAT and content["version"] == VERSION
        is_ours = is_ours and isinstance(content["space"], str)
        is_ours = is_ours and isinstance(content["rows_without_counts"], list)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if is_ours else None


def _digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------- coordinates, labels
def read_latent(path: Path) -> Latent:
    """What `embed` wrote: a .csv, or an .npz with arrays cells and X_scVI.

    What stands beside a .csv counts only if the table has not been changed since. Raises
    FileNotFoundError; ValueError for a file of another kind, with another content, or damaged.
    """
    read = {".csv": _latent_of_csv, ".npz": _latent_of_npz}.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{path}: latent coordinates are read from .csv and .npz; embed writes them"
        )
    return _read(read, path)


def read_labels(path: Path, column: str | None, cells: np.ndarray) -> np.ndarray:
    """The labels of cells with these names, (n,) object: str, or None for a cell without one.

    path: a table as annotation.py reads it, which finds out the column with the names of the cells.
    column: which of the others; None: the only one. Raises FileNotFoundError; ValueError for no or
    several such columns, a cell named twice, or a label for none of the cells.
    """
    return _read(lambda path: _labels_of_table(path, column, cells), path)


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
        z = np.array([numbers_in(row[1:]) for row in rows])
    except ValueError as error:
        raise Refused(f"has coordinates that are no numbers ({error})") from None
    cells = np.array([row[0] for row in rows])
    known = _read_beside(beside(path))
    if known is None or known.get("table") != _digest_of(path):
        return Latent(cells, z, None, np.full(len(cells), True))
    has_counts = ~np.isin(np.arange(len(cells)), known["rows_without_counts"])
    return Latent(cells, z, known["space"], has_counts)


def _latent_of_npz(path):
    arrays = npz_arrays(path)
    if "cells" not in arrays or "X_scVI" not in arrays:
        raise Refused(
            f"has arrays {', '.join(arrays) or 'none'}, not cells and X_scVI, as embed writes them"
        )
    cells, z = arrays["cells"], arrays["X_scVI"]
    if z.ndim != 2 or cells.shape != z.shape[:1]:
        raise Refused(f"has cells of shape {cells.shape}, and X_scVI of shape {z.shape}")
    space = arrays.get("space")
    has_counts = arrays.get("has_counts", np.full(len(cells), True))
    if has_counts.shape != cells.shape or has_counts.dtype != bool:
        raise Refused(
            f"its array has_counts is of {has_counts.dtype} and shape {has_counts.shape}; it must "
            f"say of {number_of(len(cells), 'cell')} whether each has counts, as embed writes it"
        )
    return Latent(
        cells.astype(str),
        z.astype(np.float64),
        None if space is None else "".join(np.ravel(space).astype(str)),
        has_counts,
    )


def _labels_of_table(path, column, cells):
    """The text of each cell in a column of a table, None where there is none."""
    table = joined(path, cells)
    there = ", ".join(table.columns) or "none"
    if column is None and len(table.columns) != 1:
        n_columns = number_of(len(table.columns), "column")
        raise Refused(f"has {n_columns} beside the cells; choose one by --column: {there}")
    if column is not None and column not in table.columns:
        raise Refused(f"has no column {column!r}; there are: {there}")
    name = next(iter(table.columns)) if column is None else column
    texts = table.columns[name]
    found = [texts[line] if line >= 0 else "" for line in table.lines.tolist()]
    labels = np.array([None if is_missing_text(text) else text for text in found], dtype=object)
    if all(label is None for label in labels):
        raise Refused(f"has a label for none of the cells in its column {name!r}: all are missing")
    return labels

"""Several files of counts as one: the genes that all of them have, the cells of each.

This is engineering.

    >>> names_of_files(["a.h5ad", "b.csv"])
    ['a', 'b']
    >>> names_of_files(["s1/outs/matrix.h5", "s2/outs/matrix.h5"])
    ['s1', 's2']

Know before reading: files.py (Content). Know after: what becomes of genes, cells and columns that
only some of the files have.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from minigrad.notebook import number_of
from models.files import Content, Refused
from models.labels import unique_names
from models.measured import IS_MEASURED, measured_in

FILE = "file"  # the column of obs that says which file a cell is from


def names_of_files(paths: Sequence) -> list[str]:
    """A name for each path: its last part that differs from all others', without endings."""
    parts = [Path(os.path.abspath(path)).parts[::-1] for path in paths]
    for at_this_place in zip(*parts):
        if len(set(at_this_place)) == len(paths):
            names = [part.split(".")[0] or part for part in at_this_place]
            return names if len(set(names)) == len(paths) else list(at_this_place)
    return [os.path.abspath(path) for path in paths]


def join(parts: Sequence[Any], names: Sequence[str]) -> Content:
    """The cells of all parts, which are Counts in memory, one after the other, with the genes that
    all have, in the order of the first.

    Genes of one name are numbered, as AnnData does. names: of the parts, for obs["file"], and for
    cells whose names occur twice: "AAACGT-1-s1". Columns of cells that a part lacks are None or NaN
    there; of genes, those stay that say the same in all parts. Measured (measured.py) are the genes
    that all parts have measured. Refused where no gene is shared, and for one file twice.
    """
    if len(set(names)) < len(names):
        raise Refused("is given twice; give each file once")
    genes = [unique_names(part.genes) for part in parts]
    position = [{name: i for i, name in enumerate(of_part.tolist())} for of_part in genes]
    shared = [name for name in genes[0].tolist() if all(name in known for known in position)]
    if not shared:
        raise Refused(
            f"shares no gene with the other files: here they are called {genes[0][0]}, there "
            f"{genes[-1][0]}; read them with gene_names= the column that has the same names"
        )
    columns = [[known[name] for name in shared] for known in position]
    X = sparse.vstack([part.X[:, chosen] for part, chosen in zip(parts, columns)], format="csr")
    n_cells = [len(part.cells) for part in parts]
    cells = np.concatenate([part.cells for part in parts])
    of_file = np.repeat(np.array(names), n_cells)
    if len(set(cells.tolist())) < len(cells):
        cells = np.array([f"{cell}-{name}" for cell, name in zip(cells, of_file)])
    keys = dict.fromkeys(key for part in parts for key in part.obs)
    obs = {key: _column([part.obs.get(key) for part in parts], n_cells) for key in keys}
    notes: tuple = ()
    if any(len(of_part) > len(shared) for of_part in genes):
        found = ", ".join(f"{len(g):,} of {name}" for g, name in zip(genes, names))
        genes_shared = number_of(len(shared), "gene")
        notes = (f"joined on the {genes_shared} that all files have, out of {found}",)
    var = {}
    for key in parts[0].var:
        same = [part.var[key][chosen] for part, chosen in zip(parts, columns) if key in part.var]
        if len(same) == len(parts) and all(same[0].tolist() == other.tolist() for other in same):
            var[key] = same[0]
    masks = [measured_in(part) for part in parts]
    known = [mask[chosen] for mask, chosen in zip(masks, columns) if mask is not None]
    if known:
        var[IS_MEASURED] = np.all(known, axis=0)
    return Content(X, np.array(shared), cells, obs | {FILE: of_file}, notes, var)


def _column(values: Sequence[np.ndarray | None], n_cells: Sequence[int]) -> np.ndarray:
    """A column of obs of all parts; values: of each part, None where it has no such column."""
    kinds = {part.dtype.kind for part in values if part is not None}
    if kinds <= set("iuf"):
        parts = [np.full(n, np.nan) if v is None else v for v, n in zip(values, n_cells)]
        return np.concatenate(parts)
    if len(kinds) == 1 and kinds <= set("bU") and all(part is not None for part in values):
        return np.concatenate([part for part in values if part is not None])
    texts: list = []
    for part, n in zip(values, n_cells):
        known = [None] * n if part is None else part.tolist()
        texts += [None if value is None else str(value) for value in known]
    return np.array(texts, object)

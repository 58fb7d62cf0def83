"""Names of cells and genes in whatever holds counts, and values put in the order of the cells.

This is engineering. A pandas object carries its labels with it: a Series of batches says which cell
each of them is of. To take its values by position would be wrong without a word wherever it stands
in another order, so where both sides have labels, labels decide:

    >>> import pandas
    >>> frame = pandas.DataFrame([[3, 0], [0, 4]], index=["c1", "c2"], columns=["Actb", "Cd3e"])
    >>> genes_of(frame), cells_of(frame)
    (['Actb', 'Cd3e'], ['c1', 'c2'])
    >>> by_cell(pandas.Series(["right", "left"], index=["c2", "c1"]), cells_of(frame), "batch")
    array(['left', 'right'], dtype=object)

pandas itself is not needed, and not imported. Also here: what stands for a label that is not there.

Know before reading: what an index of pandas is. Know after: when values are put in order, when they
are taken as they stand, and when they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.notebook import for_number, number_of

BARCODE = re.compile("[ACGT]{8,}")  # of a droplet
# What programs write where they have no value: R, pandas, Python, SQL and spreadsheets. In no other
# spelling: "none" may be an answer, as of a treatment.
MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN, or what pandas has in their place."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value != value


def refuse_missing(values: np.ndarray, said: str, cells: Any, advice: str, where: str = "") -> None:
    """ValueError where values, (n_cells,) of any dtype, are missing.

    said: what the values are of, which the error begins with. cells: names (n_cells,), or None;
    where: in which column they are, in words; advice: what to do.
    """
    missing = [i for i, value in enumerate(values.tolist()) if is_missing(value)]
    if missing:
        raise ValueError(
            f"{said}: {len(missing):,} of {number_of(len(values), 'cell')} "
            f"{for_number(len(missing), 'has', 'have')} no label{where}, the first of them "
            f"{name_of_cell(missing[0], cells)}; {advice}"
        )


def is_missing_text(text: str) -> bool:
    """Whether a field of a table says that there is no value."""
    return text.strip() in MISSING


def missing_in(values: np.ndarray) -> np.ndarray:
    """Where values (n,) are missing, or are texts that say so: (n,) bool."""
    if values.dtype.kind in "biu":
        return np.full(len(values), False)
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind in "mM":
        return np.isnat(values)
    return np.array(
        [
            is_missing_text(value) if isinstance(value, str) else is_missing(value)
            for value in values.tolist()
        ],
        dtype=bool,
    )


def genes_of(counts: Any) -> list[str] | None:
    """Names of the genes of Counts, AnnData or a DataFrame, (n_genes,); None for what has none.

    AnnData that nobody gave names calls them "0", "1", "2" ...: these are none.
    """
    for attribute in ("genes", "var_names", "columns"):
        names = getattr(counts, attribute, None)
        if names is not None:
            found = None if _only_counts_up(names) else [str(name) for name in names]
            is_unnamed = attribute == "var_names" and _are_numbers_of_rows(found or [])
            return None if is_unnamed else found
    return None


def cells_of(counts: Any) -> list[str] | None:
    """Names of the cells of Counts, AnnData or a DataFrame, (n_cells,); None for what has none.

    Those of a DataFrame that nobody gave names are their numbers: its rows may have been sorted.
    """
    for attribute in ("cells", "obs_names"):
        names = getattr(counts, attribute, None)
        if names is not None:
            return [str(name) for name in names]
    if hasattr(counts, "columns") and hasattr(counts, "index"):
        return [str(name) for name in counts.index]
    return None


def values_of(counts: Any) -> Any:
    """A DataFrame of numbers as an array (n_cells, n_genes); anything else as it is.

    Columns of pandas' own dtypes, such as Int64, would become Python objects, all together. What is
    missing in them becomes NaN.
    """
    if not hasattr(counts, "dtypes") or not hasattr(counts, "to_numpy"):
        return counts
    kinds = [(dtype, getattr(dtype, "kind", "O")) for dtype in counts.dtypes]
    are_numbers = all(kind in "biuf" for _, kind in kinds)
    if not are_numbers or all(isinstance(dtype, np.dtype) for dtype, _ in kinds):
        return counts
    return counts.to_numpy(dtype=np.float64, na_value=np.nan)


def by_cell(values: Any, cells: Sequence[str] | np.ndarray | None, name: str) -> Any:
    """The values of cells with these names, (n_cells,), in their order.

    values: a Series, whose index has the names, in any order, and perhaps of other cells too; a
    Series that nobody gave an index, and anything else, is taken as it stands; so is all where
    cells is None. name: what the error calls them. ValueError for a Series that lacks a cell, or
    names one twice.
    """
    is_series = hasattr(values, "reindex") and hasattr(values, "index")  # an Index has no index
    if cells is None or not is_series:
        return values
    labels = [str(label) for label in values.index]
    values_alone = values.to_numpy()
    if labels == list(cells):
        return values_alone
    position = {label: i for i, label in enumerate(labels)}
    missing = [cell for cell in cells if cell not in position]
    if missing and (_only_counts_up(values.index) or _are_numbers_of_rows(cells)):
        return values_alone
    if missing:
        raise ValueError(
            f"{name}: its index lacks {len(missing)} of the {number_of(len(cells), 'cell')}, "
            f"such as {missing[0]!r}; give it the names of the cells as index, or pass an array in "
            "their order"
        )
    if len(position) < len(labels) or len(set(cells)) < len(cells):
        raise ValueError(
            f"{name}: stands in another order than the cells, and some names of cells occur twice; "
            "pass an array in the order of the cells"
        )
    return values_alone[[position[cell] for cell in cells]]


def name_of_cell(i: int, cells: Sequence[str] | np.ndarray | None) -> str:
    """What an error calls a cell: its number, from 0, and its name; cells: (n,), or None."""
    return f"cell {i}" if cells is None else f"cell {i} ({str(cells[i])!r})"


def advice_on_barcodes(cells: Sequence[str], names: Sequence[str]) -> str:
    """What to do where no cell is found by name, and the barcodes within names may be the same.

    cells, names: of the counts, and of a table, in any order.
    """
    barcodes = {found[0]: name for name in names if (found := BARCODE.search(name))}
    for cell in cells:
        found = BARCODE.search(cell)
        if found and found[0] in barcodes:
            return (
                f"the barcodes are the same, and what stands before or after them is not ({cell!r} "
                f"and {barcodes[found[0]]!r}): add it in the table, or take it away"
            )
    return "bring the names in line"


def refuse_other_names(
    argument: str,
    what: str,
    found: list[str] | None,
    known: list[str] | None,
    advice: str = "select and order them alike",
) -> None:
    """ValueError for columns of other names than the model's, or in another order.

    found and known: the names, (n,); None: there are none, and nothing is compared. Names may occur
    more than once: columns of one name are told apart by their order, and may be numbered, as by
    AnnData, on one side. argument: what the error calls the matrix; what: the columns, and the
    attribute of the model that has the known names; advice: what to do about it.
    """
    if found is None or known is None or found == known:
        return
    numbered, known_numbered = unique_names(found), unique_names(known)
    differs = np.flatnonzero(numbered != known_numbered)
    if not len(differs):
        return
    new, old = found[differs[0]], known[differs[0]]
    raise ValueError(
        f"{argument}: its {what} differ, or stand in another order, from those that the model was "
        f"trained on (model.{what}): the first that differs is {new!r}, in the place of {old!r}; "
        f"{advice}"
    )


def unique_names(names) -> np.ndarray:
    """The names (n,), str: of those that are alike the first stays, the next become NAME-1, NAME-2,
    as AnnData does.
    """
    taken, numbers, found = set(map(str, names)), {}, []
    for name in map(str, names):
        if name not in numbers:
            numbers[name] = 0
            found.append(name)
            continue
        while (new := f"{name}-{numbers[name] + 1}") in taken:
            numbers[name] += 1
        numbers[name] += 1
        taken.add(new)
        found.append(new)
    return np.array(found, dtype=str)


def _only_counts_up(index: Any) -> bool:
    """Whether an index is the one that pandas makes where none is given: 0, 1, 2 ..."""
    return type(index).__name__ == "RangeIndex"


def _are_numbers_of_rows(cells: Sequence[str] | np.ndarray) -> bool:
    return list(cells) == [str(i) for i in range(len(cells))]

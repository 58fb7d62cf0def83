"""What differential abundance found: a table of cells. This is engineering.

Know before reading: abundance.py's docstring. Know after: what each column says, and where it is
uncertain.
"""

from __future__ import annotations

import csv
from typing import Any

import numpy as np

from minigrad.checkpoint import whole_file
from minigrad.notebook import as_frame, as_html, number_of, short
from models.files import warn_of_formulas
from models.groups import REST, Samples, labels_of_cells
from models.labels import by_cell

UNSURE = 0.5  # error from which a log ratio is uncertain: four cells of one condition are near


class DifferentialAbundance:
    """How many times as dense the cells of condition a are as those of b, around each cell.

    `table["log_ratio"]` is a column, an array (n_cells,); `len(table)` the number of cells. The
    columns:
      cell, sample, condition  names; None where a cell has none
      log_ratio   log of the ratio of densities, a over b, in nats: 0 where both have the same share
                  of their cells, log 2 = 0.69 where a has twice the share of b
      error       its standard error, by the number of cells that the densities rest on. From 0.5 on
                  few cells of one condition are near; if there is none, the size of the ratio says
                  nothing, and only its sign does. What samples differ in besides is not in it, nor
                  what a model leaves of batches in the latent space where each has samples of its
                  own
      agreement   in what proportion of pairs of samples, one of each condition, that of a is the
                  denser one; half for ties. 1 or 0: all samples agree

    log_q: log density of each sample at each cell, (n_cells, n_samples); NaN for the cell's own,
    where that is left out. Kernels that are widened are not scaled to integrate to 1, so that only
    differences between the samples at one cell have a meaning. samples: their
    names. a, b: names of the conditions; in_a, in_b: positions of their samples. Cells without
    counts lie nowhere, and have NaN.

    Shares sum to 1: where one kind of cell becomes more, the others have less, though none of them
    was lost. Cells of one sample are no independent witnesses: what counts is how many samples
    agree.
    """

    def __init__(self, columns: dict, log_q: np.ndarray, samples: Samples, a: str, b: str | None):
        self.columns = columns
        self.log_q = log_q
        self.samples = samples.names
        self.in_a = samples.in_a
        self.in_b = samples.in_b
        self.a = a
        self.b = REST if b is None else b

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise KeyError(f"the table has no column {name!r}; it has {list(self.columns)}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["cell"])

    def by(self, labels: Any) -> dict[str, np.ndarray]:
        """For each label of cells: how many cells have it, and the medians of their columns.

        labels: (n_cells,), in the order of the table; of a Series, by the names of cells. Returns
        columns (n_labels,), the highest log
        ratio first, with the tenth and the ninetieth percentile of it. Cells without a label, or
        with NaN, are left out. ValueError for another number of labels.
        """
        labels = by_cell(labels, self["cell"].tolist(), "labels")
        labels = labels_of_cells(None, labels, len(self), "labels")
        is_known = np.isfinite(self["log_ratio"])
        rows = []
        for name in sorted({label for label in labels[is_known] if label is not None}):
            cells = is_known & (labels == name)
            low, middle, high = np.percentile(self["log_ratio"][cells], [10, 50, 90])
            medians = [np.median(self[column][cells]) for column in ("error", "agreement")]
            rows.append((name, np.sum(cells), middle, low, high, *medians))
        names = ("label", "cells", "log_ratio", "10 %", "90 %", "error", "agreement")
        rows.sort(key=lambda row: -row[2])
        return {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}

    def __str__(self) -> str:
        log_ratio = self["log_ratio"][np.isfinite(self["log_ratio"])]
        low, middle, high = np.percentile(log_ratio, [10, 50, 90])
        return (
            f"log ratio of densities, a: {self.a} ({self._in_words(self.in_a)}) over b: {self.b} "
            f"({self._in_words(self.in_b)})\n"
            f"{number_of(len(log_ratio), 'cell')}: median {middle:.2f}, from {low:.2f} (10 %) to "
            f"{high:.2f} (90 %); 0 is the same share of cells, 0.69 twice the share in a\n"
            f"{self._uncertain_in_words()}"
        )

    __repr__ = __str__

    def _uncertain_in_words(self) -> str:
        n_unsure = int(np.sum(self["error"] >= UNSURE))
        if n_unsure == 0:
            return f"no cell is uncertain (error of {UNSURE} and more)"
        if n_unsure == 1:
            who, it = "1 cell is", "it"
        else:
            who, it = f"{n_unsure:,} cells are", "them"
        return (
            f"{who} uncertain (error of {UNSURE} and more): few cells of a or of b are near {it}; "
            "where there are none of one, only the sign of the log ratio says something"
        )

    def _in_words(self, positions) -> str:
        return number_of(len(positions), "sample")

    def _repr_html_(self) -> str:
        names = list(self.columns)
        rows = zip(*[[short(value) for value in self[name][:10]] for name in names])
        return as_html(names, rows, str(self))

    def _all_columns(self) -> dict[str, np.ndarray]:
        """The columns, and after them log_q of each sample."""
        of_samples = {f"log_q {name}": self.log_q[:, i] for i, name in enumerate(self.samples)}
        return {**self.columns, **of_samples}

    def to_frame(self) -> Any:
        """All rows as a pandas DataFrame, and log_q of each sample beside them.

        ImportError where pandas is not installed.
        """
        return as_frame(self._all_columns())

    def to_csv(self, path: Any) -> None:
        """Write the same, with a first line of column names.

        Warns of names that a spreadsheet takes for formulas.
        """
        columns = self._all_columns()
        rows = zip(*[column.tolist() for column in columns.values()])
        with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        texts = {str(value) for name in ("cell", "sample", "condition") for value in self[name]}
        warn_of_formulas(sorted(texts | set(self.samples)))

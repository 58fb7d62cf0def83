"""Genes that were never measured in some cells, though they count as 0 there. This is engineering.

Cells of another laboratory may lack genes of the model: another annotation, a smaller panel, a
filter. The model takes them for 0 (`map_query`, `align_genes`), because its encoder must be given a
number. But 0 counts of a gene that was looked for are an observation, and these are none. So they
are remembered, in two places:

    counts.var["is_measured"]     of each gene, in counts that `align_genes` has filled with zeros
    model.unmeasured              batch -> names of genes, in a model that `map_query` made

The first goes with the counts through `to_anndata` and .h5ad (.npz has no place for it). The second
is also there for cells that somebody else has filled with zeros, and for cells that do not exist
yet (`generate`). All methods that answer for single genes ask here, so that all answer alike:

    >>> from types import SimpleNamespace
    >>> model = SimpleNamespace(genes=["Actb", "Cd3e"], batches=["a", "b"], n_genes=2)
    >>> model.unmeasured = {"b": ["Cd3e"]}
    >>> unmeasured_in(model, counts=None, codes=np.array([0, 1, 1]))
    array([False,  True])
    >>> unmeasured_in(model, counts=None, codes=np.array([0, 0]))
    array([False, False])

Know before reading: query.py's docstring. Know after: which answers about genes are answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from minigrad.notebook import for_number

IS_MEASURED = "is_measured"  # column of var
SHOWN = 5  # names of genes in a message


def measured_in(counts: Any) -> np.ndarray | None:
    """Which genes of Counts or AnnData were measured, (n_genes,) bool; None where nothing says so,
    which means all.
    """
    var = getattr(counts, "var", None)  # an array's is a method: the variance
    if callable(var) or var is None or IS_MEASURED not in var:
        return None
    mask = np.asarray(var[IS_MEASURED])
    return mask if mask.dtype == bool else None


def unmeasured_in(model: Any, counts: Any, codes: Iterable[int]) -> np.ndarray:
    """Which genes of a model were not measured in one or more of these cells: (n_genes,) bool.

    counts: what the model is asked about, (n_cells, n_genes), or None for cells that do not exist.
    codes: of the batches of these cells, each once or more often.
    """
    found = np.zeros(model.n_genes, bool)
    measured = measured_in(counts)
    if measured is not None:
        found |= ~measured
    if model.unmeasured:
        labels = {str(model.batches[code]) for code in np.unique(np.asarray(codes))}
        absent = {gene for label in labels for gene in model.unmeasured.get(label, ())}
        found |= np.array([gene in absent for gene in _names_in(model)])
    return found


def warn_of_unmeasured(
    model: Any,
    counts: Any,
    codes: Iterable[int],
    columns: np.ndarray | None = None,
    stacklevel: int = 4,
) -> None:
    """Warn where values of genes are returned that follow from zeros that nobody counted.

    columns: positions of the genes that are returned, (n,); None: all. The rest as for
    `unmeasured_in`.
    """
    unmeasured = unmeasured_in(model, counts, codes)
    positions = np.flatnonzero(unmeasured) if columns is None else columns[unmeasured[columns]]
    if len(positions):
        warnings.warn(
            f"genes: {in_words(model, positions)} not measured in these cells, or in some: what is "
            "said of them follows from zeros that nobody counted. Leave them out, or see with "
            "transform_batch=, a batch in which they were measured, what to expect of them",
            stacklevel=stacklevel,
        )


def in_words(model: Any, positions: np.ndarray) -> str:
    """How many genes are at these positions, and the first names, with a verb: "2 (a, b) were"."""
    n = len(positions)
    names = _names_in(model)
    examples = ", ".join(names[i] for i in positions[:SHOWN]) + " ..." * (n > SHOWN)
    return f"{n:,} ({examples}) {for_number(n, 'was', 'were')}"


def _names_in(model: Any) -> list[str]:
    """Names of the model's genes, (n_genes,); gene_0, gene_1 ... where it has none."""
    return model.genes or [f"gene_{i}" for i in range(model.n_genes)]

"""What SCVI takes, and what it refuses. This is engineering.

Counts come in many forms, with genes in some order, from cells of batches with labels, some of them
without a single count. Before anything is computed all this is looked at, and what is wrong ends in
a sentence that names the argument, says what was found and what to do:

    >>> check_training(1, None, epochs=10, batch_size=1, learning_rate=1e-3, kl_warmup=0.25)
    Traceback (most recent call last):
    ValueError: batch_size must be at least 2, for batch norm compares the cells of a minibatch, \
not 1

The functions that take a model take an SCVI, of which they use n_genes, n_batches, dtype, and what
it knows of the cells that it was trained on: trained, batches, genes, columns.

Know before reading: counts.py (`as_matrix`, `batch_codes`), and what SCVI.fit is given.

Know after: which cells a model is trained on, and which counts it answers about.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import Array, Matrix
from minigrad.notebook import for_number, number_of
from models.counts import Counts, Moments, as_matrix, batch_codes, moments
from models.covariates import ObsColumns, columns_in
from models.files import other_kinds
from models.inputs import sizes, warn_if_untrained
from models.labels import by_cell, cells_of, genes_of, is_missing_text, refuse_other_names
from models.orientation import advice

HOW_TO_ALIGN = "model.align_genes(counts) finds those of the model by name, in its order"
# More batches than this are none if there are fewer cells than this of each, on average, or if they
# are numbers and more than that.
MOST_BATCHES, LEAST_CELLS, MOST_NUMBERS = 20, 10, 100


class TrainingCells(NamedTuple):
    """Cells to train on: those of the caller that have counts."""

    counts: Matrix  # (n_cells, n_genes), in the dtype of the model
    codes: np.ndarray  # of their batches, (n_cells,)
    batches: list  # the label of each code
    genes: list | None  # names of the genes, (n_genes,), or None where they have none
    sums: Moments  # of their counts
    columns: ObsColumns  # of obs, covariates standardised by these cells
    covariates: np.ndarray  # (n_cells, n_covariates), in the dtype of the model


class KnownOfData(NamedTuple):
    """What `SCVI.for_data` reads off counts."""

    n_genes: int
    genes: list | None  # their names, or None where they have none
    batches: list  # labels
    columns: ObsColumns  # of obs


def known_of_data(
    counts: Any,
    batch: Array | str | None,
    categorical: str | Iterable[str],
    continuous: str | Iterable[str],
    layer: str | None,
) -> KnownOfData:
    """Sizes and names in counts (n_cells, n_genes), for `SCVI.for_data`.

    A batch given by the name of its obs column is remembered by it. ValueError for columns that are
    not there, or lack something.
    """
    n_cells, n_genes = as_matrix(counts, layer=layer, on_disk=True).shape
    obs = _obs(counts)
    batch_column = batch if isinstance(batch, str) else None
    cells = cells_of(counts)
    columns = columns_in(obs, n_cells, batch_column, categorical, continuous, cells)
    _, batches = batch_codes(batch, n_cells, obs=obs, cells=cells)
    return KnownOfData(n_genes, genes_of(counts), batches, columns)


def check_training(
    n_batches: int,
    batch: Array | str | None,
    epochs: int | None,
    batch_size: int,
    learning_rate: float,
    kl_warmup: float,
) -> None:
    """ValueError for arguments of `SCVI.fit` that cannot be. batch: (n_cells,), or a name."""
    if not 0 <= kl_warmup <= 0.5:
        raise ValueError(
            f"kl_warmup must be in [0, 0.5] (a fraction of the training), not {kl_warmup}"
        )
    if n_batches > 1 and batch is None:
        raise ValueError(f"batch is missing: the model was made for n_batches={n_batches}")
    if epochs is None:
        sizes(batch_size=batch_size)
    else:
        sizes(batch_size=batch_size, epochs=epochs)
    if batch_size < 2:
        raise ValueError(
            "batch_size must be at least 2, for batch norm compares the cells of a minibatch, "
            f"not {batch_size}"
        )
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, not {learning_rate!r}")


def training_cells(
    model: Any, counts: Any, batch: Array | str | None, layer: str | None
) -> TrainingCells:
    """Counts (n_cells, n_genes), checked, without the cells that have none; a warning counts those.

    A trained model keeps its genes, and its batches in their order, which its weights belong to:
    ValueError for others. A new model takes those of the counts, of at most n_batches batches.
    """
    x = _matrix(model, counts, layer, on_disk=True)
    _warn_where_names_are_exchanged(counts)
    _warn_of_other_features(counts)
    known_batches = None
    if model.trained or model.knows_data:
        _check_genes(model, counts)
        known_batches = model.batches
    codes, batches = _codes(model, counts, batch, x.shape[0], known_batches)
    if len(batches) > model.n_batches:
        raise ValueError(
            f"batch has {number_of(len(batches), 'different label')}, but the model was made for "
            f"n_batches={model.n_batches}"
        )
    if not model.trained:
        warn_of_labels_that_are_none(batches, codes)
        for name in model.columns.categorical:
            codes_of_labels, labels = model.columns.codes_in(_obs(counts), name, x.shape[0])
            warn_of_labels_that_are_none(labels, codes_of_labels, name)
    sums = moments(x)
    n_cells = x.shape[0]
    cells = np.flatnonzero(sums.totals > 0)
    if len(cells) < 2:
        raise ValueError(
            f"counts: {number_of(len(cells), 'cell')} with counts of {n_cells}; training needs at "
            "least 2"
        )
    if len(cells) < n_cells:
        n_empty = n_cells - len(cells)
        are = for_number(n_empty, "is", "are")
        warnings.warn(
            f"{number_of(n_empty, 'cell')} without counts {are} left out of training", stacklevel=3
        )
        x = x[cells]
        codes = codes[cells]
        sums.totals = sums.totals[cells]  # to the other sums these cells added nothing
    columns = model.columns
    if not model.trained:
        columns = columns.standardised_by(_obs(counts), cells, n_cells)
    covariates = columns.table(_obs(counts), n_cells, model.dtype, cells_of(counts))[cells]
    x = _in_dtype(x, model.dtype)
    return TrainingCells(x, codes, batches, genes_of(counts), sums, columns, covariates)


def cells_to_ask_about(
    model: Any,
    counts: Any,
    batch: Array | str | None,
    layer: str | None,
    on_disk: bool,
    is_batch_needed: bool = True,
) -> tuple[Matrix, np.ndarray, np.ndarray]:
    """Checked counts (n_cells, n_genes), batch codes (n_cells,) and covariates (n_cells,
    n_covariates) of any cells, empty ones too.

    is_batch_needed: whether the answer depends on the batch even if the encoder does not see it;
    where it is not needed, and not given, codes are 0. ValueError for an unknown batch or category,
    and for other genes than the model's.
    """
    is_batch_needed = is_batch_needed or model.config["encode_covariates"]
    x, codes = _counts_and_codes(model, counts, batch, layer, on_disk, is_batch_needed, 5)
    covariates = model.columns.table(_obs(counts), x.shape[0], model.dtype, cells_of(counts))
    return x, codes, covariates


def cells_to_encode(
    model: Any, counts: Any, batch: Array | str | None, layer: str | None
) -> tuple[Matrix, np.ndarray, np.ndarray]:
    """The same as `cells_to_ask_about`, of cells that are only encoded: counts (n_cells, n_genes),
    codes (n_cells,) and covariates.

    An encoder that sees neither batch nor covariates needs neither: codes are then 0, covariates
    (n_cells, 0). A batch that is given is checked even so.
    """
    if model.config["encode_covariates"]:
        return cells_to_ask_about(model, counts, batch, layer, on_disk=True)
    x, codes = _counts_and_codes(model, counts, batch, layer, True, is_batch_needed=False, depth=4)
    return x, codes, np.zeros((x.shape[0], 0), model.dtype)


def _counts_and_codes(
    model, counts, batch, layer, on_disk: bool, is_batch_needed: bool, depth: int
) -> tuple[Matrix, np.ndarray]:
    """Checked counts in the dtype of the model, and batch codes, 0 where the batch is neither
    needed nor given. depth: how many calls above warn_if_untrained's caller the user's lies.
    """
    x = _matrix(model, counts, layer, on_disk)
    _check_genes(model, counts)
    warn_if_untrained(model, stacklevel=depth)
    codes = np.zeros(x.shape[0], np.int64)
    if is_batch_needed or batch is not None:
        codes, _ = _codes(model, counts, batch, x.shape[0], model.batches)
    return _in_dtype(x, model.dtype), codes


def _warn_where_names_are_exchanged(counts) -> None:
    """Warn of a frame, or AnnData, whose rows seem to be genes; of Counts `counts.read` has."""
    cells = cells_of(counts)
    genes = genes_of(counts)
    if isinstance(counts, Counts) or cells is None or genes is None:
        return
    found = advice(cells, genes, "transpose the counts")
    if found is not None:
        warnings.warn(f"counts: {found}", stacklevel=4)


def _warn_of_other_features(counts) -> None:
    """Warn of an AnnData object with antibodies and the like; files are read without them."""
    is_anndata = hasattr(counts, "var_names")  # an array has a var, too: its variance
    kinds, n = other_kinds(counts.var if is_anndata else {})
    if kinds:
        warnings.warn(
            f"counts: of {n} features {kinds} are no genes, and counted in another way; leave them "
            "out, with adata[:, adata.var['feature_types'] == 'Gene Expression']",
            stacklevel=4,
        )


def warn_of_labels_that_are_none(labels, codes, column: str | None = None) -> None:
    """Warn where labels look like a number or a name of each cell, or like that of a missing one.

    labels: (n_labels,); codes: (n_cells,); column: of a categorical covariate, None for batches.
    """
    n_cells = np.bincount(codes, minlength=len(labels))
    what = "batch" if column is None else f"categorical {column!r}"
    kind = "batch" if column is None else "category"
    for name, n in zip(labels, n_cells):
        if is_missing_text(name):
            warnings.warn(
                f"{what}: {number_of(n, 'cell')} {for_number(n, 'has', 'have')} the label {name!r},"
                f" as cells without one do, and {for_number(n, 'is', 'are')} a {kind} of "
                f"{for_number(n, 'its', 'their')} own; leave them out, or give them a label",
                stacklevel=4,
            )
    are_few = len(labels) > MOST_BATCHES and len(codes) < LEAST_CELLS * len(labels)
    if are_few or len(labels) > MOST_NUMBERS and all(name.isdigit() for name in labels):
        instead = "" if column is None else ", or give numbers as continuous"
        warnings.warn(
            f"{what}: {len(labels)} different labels for {len(codes)} cells, such as "
            f"{labels[0]!r} and {labels[-1]!r}; a number or a name of each cell is no {kind}. "
            f"Leave it out, or pass a column of few labels{instead}",
            stacklevel=4,
        )


def _matrix(model, counts, layer, on_disk):
    """Counts as a checked matrix, dense, CSR or Blocks, of as many genes as the model has."""
    x = as_matrix(counts, layer=layer, on_disk=on_disk)
    if x.shape[1] != model.n_genes:
        are_named = genes_of(counts) is not None and model.genes is not None
        raise ValueError(
            f"counts have {number_of(x.shape[1], 'gene')}, the model was made for "
            f"n_genes={model.n_genes}; "
            f"{HOW_TO_ALIGN if are_named else 'select the same genes, in the same order'}"
        )
    return x


def _codes(model, counts, batch, n_cells, known_batches):
    """Batches of the cells as `batch_codes` has them.

    batch may name a column of counts.obs, or be a Series in another order of the cells.
    None stands for the column that the model remembers, if it does, and knows several batches.
    """
    if batch is None and model.n_batches > 1:
        batch = model.columns.batch
    cells = cells_of(counts)
    batch = by_cell(batch, cells, "batch")
    return batch_codes(batch, n_cells, known=known_batches, obs=_obs(counts), cells=cells)


def _obs(counts):
    """The columns of cells of Counts or AnnData; None for a matrix."""
    return getattr(counts, "obs", None)


def _in_dtype(x, dtype):
    return x if x.dtype == dtype else x.astype(dtype)


def _check_genes(model, counts) -> None:
    """ValueError for counts whose genes have other names than the model's, if both have names."""
    refuse_other_names("counts", "genes", genes_of(counts), model.genes, HOW_TO_ALIGN)

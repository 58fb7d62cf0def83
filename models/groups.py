"""Which cells are compared with which: groups of cells, and samples of conditions.

This is engineering. Groups are given as masks, as positions, or as labels of cells. Here they
become one Question, or a sentence that says why they cannot:

    >>> labels = ["B", "T", "B", "T", None]
    >>> question = question_of(None, np.ones(5, bool), None, None, groupby=labels)
    >>> [cells.tolist() for cells in question.cells], question.names
    ([[0, 2], [1, 3], [4]], ['B', 'T', None])
    >>> question.compared, question.other  # B, and then T, each with all cells that are not in it
    ([0, 1], 'rest')

The last part of the file does the same for samples, such as donors, of two conditions: `samples_of`
says which cells are of which sample, and which samples of which condition.

Know before reading: what `SCVI.differential_expression` and `SCVI.differential_abundance` take.
Know after: what groups may be, and why cells of different batches are warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad.data import Blocks, pieces, take_rows
from minigrad.notebook import for_number, number_of
from models.labels import by_cell, cells_of, genes_of, is_missing
from models.measured import in_words, unmeasured_in

LEAST_SHARED = 0.1  # what groups must share of their batches, from 0 to 1; a warning is given below
REST = "rest"  # how a table calls all cells that are not in group a


class Cells(NamedTuple):
    """All cells that are asked about, as the model's `minibatches` have them."""

    counts: Any  # (n_cells, n_genes)
    codes: np.ndarray  # of their batches, (n_cells,)
    covariates: np.ndarray  # (n_cells, n_covariates)

    def latent(self, model: Any, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of q(z | x), (n, n_latent), of the cells at n positions."""
        columns = _rows_in_memory(self.counts, cells), self.codes[cells], self.covariates[cells]
        return model.latent_of(list(columns))


def gene_names(model: Any, counts: Any, genes: Any) -> np.ndarray:
    """Names of the genes, (n_genes,): those given, or the model's, or the counts', or gene_0 ...

    ValueError for another number of names.
    """
    names = genes
    if names is None:
        names = model.genes
    if names is None:
        names = genes_of(counts)
    if names is None:
        names = [f"gene_{i}" for i in range(model.n_genes)]
    names = np.asarray(names).astype(str)
    if names.shape != (model.n_genes,):
        raise ValueError(
            f"genes: has shape {names.shape}, must be the names of the {model.n_genes} genes of "
            "the model"
        )
    return names


def measured_genes(model: Any, counts: Any, told: Cells, question: Question) -> np.ndarray:
    """Which genes were measured in all cells that are compared, (n_genes,) bool; a warning says
    which were not.
    """
    unmeasured = unmeasured_in(model, counts, told.codes[np.concatenate(question.cells)])
    if unmeasured.any():
        warnings.warn(
            f"genes left out of the table: {in_words(model, np.flatnonzero(unmeasured))} not "
            "measured in all of the cells that are compared",
            stacklevel=3,
        )
    return ~unmeasured


class Question(NamedTuple):
    """Which cells are compared with which: each group of `compared` with all others in `cells`."""

    cells: list[np.ndarray]  # of each group: positions of its cells with counts, increasing
    names: list[Any]  # of each group; None for cells that are only in the rest
    compared: list[int]  # numbers of the groups that are compared, each with all others
    other: str  # name of what each is compared with
    called: list[str]  # what warnings call each group; "" for those that are not warned of


def question_of(counts: Any, has_counts: np.ndarray, group_a, group_b, groupby) -> Question:
    """What `differential_expression` was asked; ValueError for what cannot be.

    has_counts: which cells have counts, (n_cells,).
    """
    if groupby is None:
        return _two_given_groups(counts, has_counts, group_a, group_b)
    labels = labels_of_cells(counts, groupby, len(has_counts), "groupby")
    if group_a is not None:
        return _two_labels(has_counts, labels, group_a, group_b, groupby)
    if group_b is not None:
        raise ValueError("group_b needs group_a; leave both out to compare every group")
    return _every_label(has_counts, labels)


def _two_given_groups(counts, has_counts, group_a, group_b) -> Question:
    """Two groups that are masks or positions of cells."""
    if group_a is None:
        raise ValueError(
            "group_a: which cells? Pass a mask, or groupby= with a label for each cell, and "
            "every group is compared with the rest"
        )
    names_of_cells = cells_of(counts)
    group_a = _by_cell_if_mask(group_a, names_of_cells, "group_a")
    group_b = _by_cell_if_mask(group_b, names_of_cells, "group_b")
    cells = _two_groups(has_counts, group_a, group_b)
    other = REST if group_b is None else "b"
    return Question(cells, ["a", other], [0], other, ["group_a", "group_b"])


def _two_labels(has_counts, labels, group_a, group_b, groupby) -> Question:
    """Two groups that are labels, (n_cells,) or the name of their column; group_b may be None."""
    group_a = str(group_a)
    other = REST if group_b is None else str(group_b)
    what = groupby if isinstance(groupby, str) else "the label"
    in_a = cells_with(labels, group_a, what)
    in_b = None if group_b is None else cells_with(labels, other, what)
    cells = _two_groups(has_counts, in_a, in_b)
    called = [f"group {group_a!r}", f"group {other!r}"]
    return Question(cells, [group_a, other], [0], other, called)


def cells_with(labels: np.ndarray, label: str, what: str) -> np.ndarray:
    """The cells with this label, a mask (n_cells,); ValueError, with those there are, for none."""
    found = labels == label
    if not found.any():
        names = sorted({name for name in labels if name is not None})
        there = ", ".join(names[:20]) + " ..." * (len(names) > 20)
        raise ValueError(f"no cell has {what} {label!r}; there are: {there}")
    return found


def _every_label(has_counts, labels) -> Question:
    """Each label, (n_cells,), against all other cells."""
    n_cells = len(labels)
    names = sorted({label for label in labels if label is not None})
    if len(names) < 2 or 2 * len(names) > n_cells:
        raise ValueError(
            f"groupby has {len(names)} different labels for {n_cells} cells; to compare groups "
            "with the rest takes 2 at least, and 2 cells a group: pass a column of groups"
        )
    cells = []
    kept = []
    empty = []
    for name in names:
        positions = np.flatnonzero((labels == name) & has_counts)
        if len(positions):
            cells.append(positions)
            kept.append(name)
        else:
            empty.append(name)
    if empty:
        warnings.warn(
            f"groupby: no cell of {', '.join(empty)} has counts; left out of the table",
            stacklevel=4,
        )
    called = [f"group {name!r}" for name in kept]
    compared = list(range(len(kept)))
    unlabelled = np.flatnonzero(np.array([label is None for label in labels]) & has_counts)
    if len(unlabelled):
        cells.append(unlabelled)
        kept.append(None)
        called.append("")
    if len(kept) < 2:
        raise ValueError("groupby: only one group has counts, and there is nothing to compare with")
    return Question(cells, kept, compared, REST, called)


def labels_of_cells(counts: Any, labels: Any, n_cells: int, argument: str) -> np.ndarray:
    """A label for each cell, (n_cells,) of str and, where there is none, None.

    labels: (n_cells,), by name of the cell where they are a Series, or the name of an obs column.
    argument: what errors call them. ValueError for an unknown column, and for another length.
    """
    if isinstance(labels, str):
        obs = getattr(counts, "obs", {})
        if labels not in obs:
            raise ValueError(
                f"{argument}: no column {labels!r} of cells in the counts; there are: "
                f"{', '.join(map(str, obs)) or 'none'}"
            )
        labels = obs[labels]
    if hasattr(labels, "isna"):  # of pandas, which has more kinds of missing labels
        labels = labels.astype(object).where(labels.notna(), None)
    given = np.asarray(by_cell(labels, cells_of(counts), argument))
    if given.shape != (n_cells,):
        raise ValueError(
            f"{argument} has shape {given.shape}, must be one label for each of {n_cells} cells, "
            "or the name of an obs column"
        )
    found = np.full(n_cells, None)
    for i, value in enumerate(given.tolist()):
        is_whole = isinstance(value, float) and value.is_integer()  # whole numbers beside a NaN
        if not is_missing(value):
            found[i] = str(int(value) if is_whole else value)
    return found


def _two_groups(has_counts, group_a, group_b) -> list:
    """Positions of the cells with counts in each of two groups; ValueError for what is none."""
    n_cells = len(has_counts)
    a = _positions(group_a, n_cells, "group_a")
    b = (
        np.setdiff1d(np.arange(n_cells), a)
        if group_b is None
        else _positions(group_b, n_cells, "group_b")
    )
    both = np.intersect1d(a, b)
    if len(both):
        raise ValueError(
            f"group_a and group_b share {number_of(len(both), 'cell')}, such as {both[0]}; a cell "
            "can be in one only"
        )
    for name, cells in (("group_a", a), ("group_b", b)):
        if not np.any(has_counts[cells]):
            raise ValueError(f"{name} holds no cells" + " with counts" * (len(cells) > 0))
    return [cells[has_counts[cells]] for cells in (a, b)]


def _by_cell_if_mask(group, cells, name: str):
    """A Series of booleans in the order of the cells; positions, and all else, as they are."""
    return by_cell(group, cells, name) if np.asarray(group).dtype.kind == "b" else group


def _positions(group, n_cells: int, name: str) -> np.ndarray:
    """A boolean mask or positions of cells, as sorted positions; ValueError for anything else."""
    group = np.asarray(group)
    if group.dtype == bool and group.shape == (n_cells,):
        return np.flatnonzero(group)
    if group.ndim != 1 or (group.size and group.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be a boolean mask of {n_cells} cells or a list of positions, not "
            f"{group.dtype} of shape {group.shape}; from labels, make a mask: labels == 'B cell'"
        )
    cells, times = np.unique(group.astype(np.int64), return_counts=True)
    if len(cells) and (cells[0] < 0 or cells[-1] >= n_cells):
        raise ValueError(
            f"{name} has positions from {cells[0]} to {cells[-1]}; there are cells 0 to "
            f"{n_cells - 1}"
        )
    if np.any(times > 1):
        twice = cells[np.argmax(times > 1)]
        raise ValueError(
            f"{name} lists cell {twice} more than once; a mask is of booleans, not of 0 and 1"
        )
    return cells


def warn_of_groups_that_are_batches(model: Any, told: Cells, question: Question) -> None:
    """Warn of groups that are of other batches than the cells that they are compared with, or have
    other labels of a categorical covariate.

    What two groups share is the sum over labels of the smaller of their two fractions of cells: 1
    where the fractions are alike, 0 where no label is in both.
    """
    for what, argument, codes, names in _told_labels(model, told):
        n_cells = np.array(  # (n_groups, n_labels)
            [np.bincount(codes[cells], minlength=len(names)) for cells in question.cells], float
        )
        said = []
        for i in question.compared:
            in_rest = np.delete(n_cells, i, axis=0).sum(axis=0)
            of_group = n_cells[i] / n_cells[i].sum()
            of_rest = in_rest / in_rest.sum()
            if np.minimum(of_group, of_rest).sum() < LEAST_SHARED:
                said.append(
                    f"{question.called[i] or 'the group'} ({_in_shares(of_group, names)}) and "
                    f"{_other_called(question)} ({_in_shares(of_rest, names)})"
                )
        if said:
            warnings.warn(
                f"{what}: no cells, or few, are of one {what} in {'; '.join(said[:3])}"
                + f"; and {len(said) - 3} more comparisons" * (len(said) > 3)
                + f". What differs so is taken for an effect of the {what} and removed, whatever "
                f"its cause, so that few genes or none are found; to ask for it, train without "
                f"{argument}",
                stacklevel=3,
            )


def _other_called(question: Question) -> str:
    """What a group is compared with, in a sentence."""
    return "the rest" if question.other == REST else question.called[1]


def _told_labels(model, told: Cells) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """The batch and each categorical covariate that the model is told of cells: its name, the
    argument by which it is told, the code of each cell, (n_cells,), and the label of each code.
    """
    if model.n_batches > 1:
        names = model.batches or range(model.n_batches)
        yield "batch", "batch=", told.codes, [str(name) for name in names]
    start = 0
    for (name, labels), width in zip(model.columns.categorical.items(), model.columns.widths):
        if width:
            codes = np.asarray(told.covariates[:, start : start + width]).argmax(axis=1)
            yield name, f"{name!r} among categorical=", codes, labels
        start += width


def _in_shares(fractions, names) -> str:
    """The labels that most cells have, with their shares: "P01 97%, P02 3%"."""
    largest = np.argsort(-fractions, kind="stable")[:3]
    return ", ".join(f"{names[i]} {fractions[i]:.0%}" for i in largest if fractions[i] > 0)


def _rows_in_memory(x, cells):
    """The rows of these cells, positions in increasing order, read where x lies on the disk."""
    if not isinstance(x, Blocks):
        return take_rows(x, cells)
    return sparse.vstack([part for _, part in pieces(x[cells])], format="csr")


# ---------------------------------------------------------------------------- samples of conditions
class Samples(NamedTuple):
    """Which cells are of which sample, and which samples of which condition."""

    names: list[str]
    codes: np.ndarray  # sample of each cell, (n_cells,); -1: of none
    in_a: np.ndarray  # positions of the samples of condition a
    in_b: np.ndarray


def conditions_of(
    of_cells: np.ndarray, group_a: Any, group_b: Any, condition: Any
) -> tuple[str, str | None]:
    """Names of the two conditions that are compared, None for all others as the second.

    of_cells: the condition of each cell with counts, (n,); condition: as the user gave it.
    ValueError where it is not known which conditions are meant.
    """
    names = sorted({name for name in of_cells if name is not None})
    what = condition if isinstance(condition, str) else "the condition"
    if len(names) < 2:
        raise ValueError(
            f"condition: there {for_number(len(names), 'is', 'are')} {len(names)} "
            f"({', '.join(names) or 'no labels'}), and a ratio is of two; pass labels "
            "of which there are two"
        )
    if group_a is None:
        if len(names) > 2 or group_b is not None:
            raise ValueError(
                f"condition: there are {len(names)} ({', '.join(names[:20])}); say by group_a "
                "which is compared, and by group_b with which, or leave that out for all others"
            )
        return names[0], names[1]
    for name in (group_a, group_b):
        if name is not None:
            cells_with(of_cells, str(name), what)
    if group_b is None and len(names) == 2:
        group_b = names[1 - names.index(str(group_a))]
    if str(group_a) == str(group_b):
        raise ValueError(f"group_a and group_b are both {group_a!r}; give two that differ")
    return str(group_a), None if group_b is None else str(group_b)


def samples_of(
    of_sample: np.ndarray,
    of_condition: np.ndarray,
    has_counts: np.ndarray,
    a: str,
    b: str | None,
    leave_out: str,
) -> Samples:
    """The samples of conditions a and b, and the sample of each cell that is in a density.

    of_sample, of_condition: labels (n_cells,), None where there is none; b: None for all that are
    not a. has_counts: (n_cells,). ValueError for a sample of several conditions, and for one of the
    two without samples, or with one if whole samples are left out ("sample", not "cell"). Warns of
    cells and of samples that are in no density.
    """
    is_known = has_counts & _are_known(of_sample) & _are_known(of_condition)
    n_unknown = int(np.sum(has_counts & ~is_known))
    if n_unknown:
        warnings.warn(
            f"sample, condition: {n_unknown:,} of {number_of(len(is_known), 'cell')} "
            f"{for_number(n_unknown, 'lacks', 'lack')} one of the two: in no density",
            stacklevel=3,
        )
    names: list[str] = []
    are_of_a = []
    codes = np.full(len(is_known), -1)
    too_small = []
    for name in sorted(set(of_sample[is_known])):
        cells = np.flatnonzero(is_known & (of_sample == name))
        conditions = sorted(set(of_condition[cells]))
        if len(conditions) > 1:
            raise ValueError(
                f"sample: {name!r} has cells of several conditions, {', '.join(conditions[:3])}; "
                "where one donor gave several samples, give each a label of its own, as "
                f"'{name} {conditions[0]}'"
            )
        is_of_a = conditions[0] == a
        is_of_b = not is_of_a and (b is None or conditions[0] == b)
        if not is_of_a and not is_of_b:
            continue
        if len(cells) < 2:
            too_small.append(name)
            continue
        codes[cells] = len(names)
        names.append(name)
        are_of_a.append(is_of_a)
    if too_small:
        warnings.warn(
            f"sample: {', '.join(too_small[:5])}{' ...' * (len(too_small) > 5)} of one cell with "
            "counts: in no density",
            stacklevel=3,
        )
    in_a = np.flatnonzero(are_of_a)
    in_b = np.flatnonzero(~np.array(are_of_a, bool))
    for name, positions in ((a, in_a), (REST if b is None else b, in_b)):
        if len(positions) == 0:
            raise ValueError(
                f"condition {name!r} has no sample of two cells with counts; give samples of both "
                "conditions"
            )
        if len(positions) == 1 and leave_out == "sample":
            raise ValueError(
                f"condition {name!r} has one sample, {names[positions[0]]}, and without it there "
                "is nothing to compare its cells with; give more samples, or pass "
                "leave_out='cell': then what two donors differ in is taken for an effect of their "
                "conditions"
            )
    return Samples(names, codes, in_a, in_b)


def _are_known(labels) -> np.ndarray:
    """Where labels, (n,), are not None."""
    return np.array([label is not None for label in labels])

"""What a model is told of each cell beside its counts: batch, categories and numbers.

This is engineering. A covariate is something known of cells that z need not say again: the sex of
the donor (categorical), or the percentage of mitochondrial counts (continuous). They stand in
columns of `obs`, and `SCVI.for_data` remembers which. To the networks each is numbers: a category
one column for each of its labels, 1 where the cell has it and 0 elsewhere; a number a single
column, less its mean over the training cells and divided by their standard deviation:

    >>> obs = {"sex": ["f", "m", "m", "f"], "age": [30.0, 50.0, 40.0, 40.0]}
    >>> columns = columns_in(obs, 4, batch=None, categorical=["sex"], continuous=["age"])
    >>> columns.categorical
    {'sex': ['f', 'm']}
    >>> columns.table(obs, 4, np.float64).round(2)
    array([[ 1.  ,  0.  , -1.41],
           [ 0.  ,  1.  ,  1.41],
           [ 0.  ,  1.  ,  0.  ],
           [ 1.  ,  0.  ,  0.  ]])

New cells are told in the same way, with the labels, mean and standard deviation of the training
cells. What they lack ends in a sentence that names the argument:

    >>> columns.table({"sex": ["f"], "age": [np.nan]}, 1, np.float64)
    Traceback (most recent call last):
    ValueError: continuous: cell 0 has nan in column 'age'; numbers must be finite: fill it in, or \
leave the cell out

Know before reading: counts.py (`batch_codes`), and scvi.py's `conditions`, which takes the table.

Know after: what becomes of a column of obs before a network sees it, and what a saved model knows
of the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from models.counts import batch_codes
from models.labels import name_of_cell, refuse_missing


class ObsColumns(NamedTuple):
    """The columns of obs that a model was made with; by default none."""

    batch: str | None = None  # the column with the batches
    categorical: Mapping[str, list[str]] = {}  # column -> its labels, in the order of their codes
    continuous: Mapping[str, list[float]] = {}  # column -> mean and standard deviation

    @property
    def widths(self) -> list[int]:
        """How many columns of the table each categorical covariate has, in their order.

        One that has a single label says nothing, and has none (as in scvi-tools).
        """
        return [len(labels) if len(labels) > 1 else 0 for labels in self.categorical.values()]

    @property
    def n_covariates(self) -> int:
        """Columns of the table: those of the categorical covariates, then the continuous ones."""
        return sum(self.widths) + len(self.continuous)

    def described(self) -> dict[str, Any] | None:
        """The same as JSON has it, for the configuration of a model; None where there are none."""
        if self == ObsColumns():
            return None
        return {
            "batch": self.batch,
            "categorical": {name: list(labels) for name, labels in self.categorical.items()},
            "continuous": {name: list(moments) for name, moments in self.continuous.items()},
        }

    def table(
        self, obs: Any, n_cells: int, dtype: DTypeLike, cells: Sequence[str] | None = None
    ) -> np.ndarray:
        """The covariates of cells as numbers: (n_cells, n_covariates), of dtype.

        obs: a mapping or frame of columns, (n_cells,) each; cells: names, for errors. ValueError
        for a column that is not there, a label that the model does not know, and what is missing or
        not finite.
        """
        parts = [np.empty((n_cells, 0), dtype)]
        for name, labels in self.categorical.items():
            codes, _ = _codes(obs, name, n_cells, labels, cells)
            if len(labels) > 1:
                parts.append(codes[:, None] == np.arange(len(labels)))
        for name, (mean, std) in self.continuous.items():
            parts.append((_numbers(obs, name, n_cells, cells)[:, None] - mean) / std)
        return np.concatenate([part.astype(dtype) for part in parts], axis=1)

    def values(self, obs: Any, n_cells: int) -> dict[str, np.ndarray]:
        """The covariates of cells as they are, name -> (n_cells,): labels as str, numbers float64.

        obs and ValueError: as for `table`.
        """
        found = {}
        for name, labels in self.categorical.items():
            codes, _ = _codes(obs, name, n_cells, labels)
            found[name] = np.array(labels)[codes]
        for name in self.continuous:
            found[name] = _numbers(obs, name, n_cells)
        return found

    def average(self) -> np.ndarray:
        """The table's mean over cells of which nothing is known: (n_covariates,) float64.

        Labels are equally frequent there, and numbers at their mean.
        """
        fractions = [np.full(width, 1.0 / width) for width in self.widths if width]
        return np.concatenate([*fractions, np.zeros(len(self.continuous))])

    def obs_of_new_cells(
        self,
        given: Mapping[str, Any] | None,
        n: int,
        average: np.ndarray,
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        """The covariates of n cells that are made up: column -> (n,), which `table` takes.

        given: column -> a value for all cells, or one for each. Of the others, labels are drawn
        with the fractions in average (n_covariates,), each covariate by itself, and numbers are at
        their mean. ValueError for a column that is not known.
        """
        given = dict(given or {})
        unknown = [name for name in given if name not in {**self.categorical, **self.continuous}]
        if unknown:
            there = ", ".join([*self.categorical, *self.continuous]) or "none"
            raise ValueError(f"covariates: {unknown[0]!r} unknown; the model has {there}")
        obs: dict[str, np.ndarray] = {}
        start = 0
        for (name, labels), width in zip(self.categorical.items(), self.widths):
            fractions = average[start : start + width].astype(np.float64)
            edges = np.cumsum(fractions)
            where = rng.random(n) * fractions.sum()
            obs[name] = np.array(labels)[np.searchsorted(edges[:-1], where, side="right")]
            start += width
        for name, (mean, _) in self.continuous.items():
            obs[name] = np.full(n, mean)
        for name, values in given.items():
            if np.ndim(values) > 0 and np.shape(values) != (n,):
                raise ValueError(
                    f"covariates: {name!r} has shape {np.shape(values)} for n={n} cells; give one "
                    "value for all, or one for each"
                )
            obs[name] = np.array(np.broadcast_to(values, n))
        return obs

    def with_labels_of(
        self, obs: Any, n_cells: int, cells: Sequence[str] | None = None
    ) -> ObsColumns:
        """The same columns, with the labels that cells have and the model does not know at the end.

        obs, cells and ValueError: as for `table`.
        """
        categorical = {}
        for name, labels in self.categorical.items():
            _, names = _codes(obs, name, n_cells, None, cells)
            categorical[name] = [*labels, *(label for label in names if label not in labels)]
        return self._replace(categorical=categorical)

    def codes_in(self, obs: Any, name: str, n_cells: int) -> tuple[np.ndarray, list[str]]:
        """The code of each cell, (n_cells,), and the labels of a categorical covariate in obs.

        The labels are all that these cells have, known to the model or not. ValueError as for
        `table`.
        """
        return _codes(obs, name, n_cells, None)

    def standardised_by(self, obs: Any, cells: np.ndarray, n_cells: int) -> ObsColumns:
        """The same columns, with mean and standard deviation of the cells at these positions, (n,).

        obs: a mapping or frame of columns, (n_cells,) each; ValueError as for `table`.
        """
        return self._replace(
            continuous={
                name: _moments(_numbers(obs, name, n_cells)[cells]) for name in self.continuous
            }
        )


# -------------------------------------------------------------------------- which columns there are
def columns_in(
    obs: Any,
    n_cells: int,
    batch: str | None,
    categorical: str | Iterable[str],
    continuous: str | Iterable[str],
    cells: Sequence[str] | None = None,
) -> ObsColumns:
    """The columns of obs by these names, with their labels, means and standard deviations.

    obs: a mapping or frame of columns, (n_cells,) each; cells: names, for errors. ValueError where
    one is not there, is named twice, or has something missing.
    """
    names_of_labels = names_of("categorical", categorical)
    names_of_numbers = names_of("continuous", continuous)
    named = [*names_of_labels, *names_of_numbers] + ([] if batch is None else [batch])
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise ValueError(
            f"batch, categorical, continuous: column {twice[0]!r} is named twice; "
            "each can be one of the three, once"
        )
    return ObsColumns(
        batch,
        {name: _codes(obs, name, n_cells, None, cells)[1] for name in names_of_labels},
        {name: _moments(_numbers(obs, name, n_cells, cells)) for name in names_of_numbers},
    )


def columns_from(description: Mapping[str, Any] | None) -> ObsColumns:
    """What `ObsColumns.described` says, or a part of it that a caller has written down.

    A continuous covariate of which only the name is given stays as it is: mean 0, standard
    deviation 1. ValueError for another description.
    """
    if description is None:
        return ObsColumns()
    try:
        unknown = set(description) - set(ObsColumns._fields)
        batch = description.get("batch")
        numbers = description.get("continuous") or {}
        if not isinstance(numbers, Mapping):
            numbers = dict.fromkeys(names_of("continuous", numbers), (0.0, 1.0))
        columns = ObsColumns(
            None if batch is None else str(batch),
            {
                str(name): [str(label) for label in labels]
                for name, labels in (description.get("categorical") or {}).items()
            },
            {str(name): [float(mean), float(std)] for name, (mean, std) in numbers.items()},
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"columns: no description of obs columns ({error})") from error
    if unknown:
        raise ValueError(
            f"columns: {', '.join(map(str, unknown))} unknown; it has batch, categorical and "
            "continuous"
        )
    for name, labels in columns.categorical.items():
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"columns: labels of {name!r} must be at least one, each once")
    for name, (mean, std) in columns.continuous.items():
        if not (np.isfinite(mean) and 0 < std < np.inf):
            raise ValueError(
                f"columns: {name!r} has mean {mean} and standard deviation {std}; both must be "
                "finite, and the latter positive"
            )
    return columns


def names_of(argument: str, names: str | Iterable[str]) -> list[str]:
    """Names of columns as a list of str; one alone may be given without a list.

    argument: what the error calls them. ValueError for what is no name.
    """
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if not isinstance(name, str):
            raise ValueError(f"{argument} must be names of obs columns, not {name!r}")
    return found


# --------------------------------------------------------------------------------------- one column
def _column(obs: Any, name: str, n_cells: int, argument: str) -> np.ndarray:
    """A column of obs, (n_cells,); ValueError where there is none."""
    there = [] if obs is None else [str(column) for column in obs]
    if name not in there:
        raise ValueError(
            f"{argument}: no obs column {name!r}; there are: {', '.join(there) or 'none'}. Give "
            "counts that have it: an AnnData object, or models.counts.Counts with obs"
        )
    values = np.asarray(obs[name])
    if values.shape != (n_cells,):
        raise ValueError(
            f"{argument}: column {name!r} has shape {values.shape}, must be one value for each of "
            f"{n_cells} cells"
        )
    return values


def _codes(
    obs: Any,
    name: str,
    n_cells: int,
    known: list[str] | None,
    cells: Sequence[str] | None = None,
):
    """Codes (n_cells,) and labels of a categorical covariate; known: the labels, if there are."""
    values = _column(obs, name, n_cells, "categorical")
    if values.dtype.kind == "f" or values.dtype == object:
        advice = "fill it in, or leave the cell out"
        refuse_missing(values, "categorical", cells, advice, f" in column {name!r}")
    if values.dtype.kind == "f" and np.any(values != np.floor(values)):
        raise ValueError(
            f"categorical: column {name!r} has numbers that are not whole; give it as continuous"
        )
    return batch_codes(values, n_cells, known=known, name=f"categorical: column {name!r}")


def _numbers(obs: Any, name: str, n_cells: int, cells: Sequence[str] | None = None) -> np.ndarray:
    """A continuous covariate, (n_cells,) float64; ValueError unless finite numbers."""
    values = _column(obs, name, n_cells, "continuous")
    try:
        if values.dtype.kind in "mM":
            raise TypeError("a date is no number")
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        i = next(i for i, value in enumerate(values) if not _is_number(value))
        raise ValueError(
            f"continuous: column {name!r} holds {str(values[i])[:50]!r} "
            f"({name_of_cell(i, cells)}), which is no number; write plain numbers, as 0.5 and "
            "1000, or give it as categorical"
        ) from None
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        is_missing_one = np.isnan(numbers[bad[0]])
        raise ValueError(
            f"continuous: {name_of_cell(bad[0], cells)} has {numbers[bad[0]]} in column {name!r}; "
            "numbers must be finite: "
            + ("fill it in, or leave the cell out" if is_missing_one else "correct it")
        )
    return numbers


def _is_number(value: Any) -> bool:
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return False
    try:
        np.float64(value)
    except (TypeError, ValueError):
        return False
    return True


def _moments(numbers: np.ndarray) -> list[float]:
    """[mean, standard deviation] of numbers (n,); 1 for the latter where all are the same."""
    std = float(numbers.std())
    return [float(numbers.mean()), std if std > 0 else 1.0]

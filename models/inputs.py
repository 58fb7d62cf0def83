"""What autoencoders and VAEs take, and what they refuse. This is engineering.

A model is told numbers (how wide its layers are) and given a matrix (the rows to learn from). Both
come from people, so both are looked at before anything is computed: a wrong one ends in a sentence
that names the argument, says what was found and what to do.

    >>> whole_number("n_latent", 32.0)
    32
    >>> as_features([[1, 2], [3, 4]], n_features=2, dtype=np.float32)
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    >>> as_features([[0.5, 2.0]], 2, np.float32, *UNIT_INTERVAL.of("output='sigmoid'"))
    Traceback (most recent call last):
    ValueError: x: row 0, column 1 (from 0) is 2.0; output='sigmoid' is for features in [0, 1]: \
scale each, for example by (x - min) / (max - min)

Know before reading: NumPy, and SciPy's CSR matrices: rows of which only the entries that are not
zero are stored.

Know after: what `fit(x)` of an autoencoder accepts, and that it never changes x.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import Blocks, take_rows
from models.counts import Counts
from models.labels import values_of

BLOCK = 2**20  # entries checked at a time, so that checks need little memory of their own


class Range(NamedTuple):
    """The entries that a loss is made for, low <= x <= high, and what to do about others."""

    low: float = -np.inf
    high: float = np.inf
    advice: str = ""

    def of(self, argument: str) -> Range:
        """The same range, with advice that begins with the argument that asks for it."""
        return self._replace(advice=f"{argument} {self.advice}")


ANY_NUMBER = Range()
UNIT_INTERVAL = Range(
    0.0, 1.0, "is for features in [0, 1]: scale each, for example by (x - min) / (max - min)"
)
NOT_NEGATIVE = Range(0.0, np.inf, "is for counts or fractions, which are not negative")


# ----------------------------------------------------------------------------- arguments of a model
def one_of(name: str, value: object, allowed: Collection[str | None]) -> None:
    """ValueError unless `value` is one of `allowed`."""
    for choice in allowed:
        if value is choice or (isinstance(value, str) and value == choice):
            return
    raise ValueError(f"{name} must be one of {tuple(allowed)}, not {value!r}")


def whole_number(name: str, n: Any, least: int = 1, most: int | None = None, what: str = "") -> int:
    """n as an int, from least to most, which is the number of `what`.

    ValueError with its name for what is no whole number, or lies outside. 32.0 is one, True is not.
    """
    is_number = isinstance(n, Real) and not isinstance(n, bool)
    if not is_number or n != n // 1 or n < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {n!r}")
    if most is not None and n > most:
        raise ValueError(f"{name} = {n} is more than {what}, {most}; pass fewer, or more cells")
    return int(n)


def sizes(**named: Any) -> list[int]:
    """The values as ints; ValueError with the name of the first that is not a whole number >= 1."""
    return [whole_number(name, n) for name, n in named.items()]


def widths(hidden: Any) -> list[int]:
    """The widths of hidden layers as ints; ValueError unless a sequence of whole numbers >= 1."""
    if isinstance(hidden, str) or not hasattr(hidden, "__len__"):
        raise ValueError(
            "hidden must be a sequence of widths such as (512, 256), or () for none, "
            f"not {hidden!r}"
        )
    return [whole_number(f"hidden[{i}]", n) for i, n in enumerate(hidden)]


def floating(dtype: DTypeLike) -> np.dtype:
    """float32 or float64 as a NumPy dtype; ValueError for another."""
    if dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be numpy.float32 or numpy.float64, not {dtype!r}")
    return np.dtype(dtype)


def warn_if_untrained(model: Any, stacklevel: int) -> None:
    """Warn that a model is asked which was never fitted: its weights are random, and its answers.

    stacklevel: how many calls above this one the user's lies.
    """
    if not model.trained:
        warnings.warn(
            f"this {type(model).__name__} was never fitted, and answers by random weights; call "
            "fit, or load a trained one (if its weights are from elsewhere, set model.trained)",
            stacklevel=stacklevel + 1,
        )


# --------------------------------------------------------------------------------- rows of features
def as_features(
    x: Any,
    n_features: int,
    dtype: DTypeLike,
    low: float = -np.inf,
    high: float = np.inf,
    advice: str = "",
) -> np.ndarray | sparse.csr_array:
    """The rows of x, every entry checked: a C-contiguous array or a canonical CSR matrix.

    x: array or nested list of numbers of any real dtype, SciPy sparse matrix, frame, AnnData (its
    .X) or Counts; entries finite and in [low, high]. It is never changed. The result, of shape (n,
    n_features) and of `dtype`, uses the memory of x where nothing had to be converted. ValueError
    says what was found where, and what to do; `advice` is added for an entry out of range.
    """
    x = _matrix(x)
    _check_shape(x, n_features)
    # Comparing with finite bounds finds NaN and infinity as well.
    dtype = np.dtype(dtype)
    largest = float(np.finfo(dtype).max)
    allowed = Range(max(low, -largest), min(high, largest), advice)
    if sparse.issparse(x):
        return _csr(x, dtype, allowed)
    return _dense(x, dtype, allowed)


def _matrix(x: Any) -> Any:
    """The array or sparse matrix that is in x, whatever x is; its entries are not looked at yet."""
    annotated = all(hasattr(x, attribute) for attribute in ("X", "layers", "obs_names"))
    if annotated or isinstance(x, Counts):
        x = x.X
    if hasattr(x, "to_memory"):  # of an AnnData object opened with backed="r"
        x = x.to_memory()
    if isinstance(x, Blocks):
        raise ValueError(
            "x: lies on the disk, which only SCVI trains from; read it without backed=True"
        )
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError("x: a masked array; fill the masked entries first, with x.filled(value)")
    if sparse.issparse(x):
        return x
    try:
        return np.asarray(values_of(x))
    except (ValueError, TypeError) as error:
        raise ValueError(f"x: no matrix of numbers ({error})") from error


def _check_shape(x: Any, n_features: int) -> None:
    """ValueError unless x is (n, n_features) with at least one row, of real numbers."""
    if x.ndim != 2:
        raise ValueError(
            f"x: has shape {x.shape}, must be (n, {n_features}); for a single row pass x[None, :]"
        )
    if x.shape[1] != n_features:
        raise ValueError(
            f"x: has {x.shape[1]} columns, the model was made for n_features={n_features}; "
            "select the same features, in the same order"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x: has shape {x.shape}, no rows; pass at least one")
    if x.dtype.kind not in "buif":
        raise ValueError(
            f"x: has dtype {x.dtype}, must be real numbers; convert it, or drop the columns that "
            "are text"
        )


def _csr(x: Any, dtype: np.dtype, allowed: Range) -> sparse.csr_array:
    """A canonical CSR matrix of dtype with the entries of a sparse x."""
    try:
        # A new matrix: what the caller's remembers (sorted? canonical?) may be outdated.
        x = x.tocsr()
        x = sparse.csr_array((x.data, x.indices, x.indptr), shape=x.shape)
        x.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"x: a broken sparse matrix ({error}); build it again") from error
    if not x.has_canonical_format:
        # A copy, since sum_duplicates works in place; in float64, so that sums are exact.
        values = x.data.astype(np.float64)
        x = sparse.csr_array((values, x.indices.copy(), x.indptr.copy()), shape=x.shape)
        x.sum_duplicates()
    with np.errstate(over="ignore"):
        result = x.astype(dtype, copy=False)
    for start in range(0, result.nnz, BLOCK):
        bad = _first_bad(result.data[start : start + BLOCK], allowed)
        if bad is not None:
            at = start + bad
            row = int(np.searchsorted(x.indptr, at, side="right")) - 1
            raise ValueError(_complaint(row, x.indices[at], x.data[at], dtype, allowed.advice))
    return result


def _dense(x: np.ndarray, dtype: np.dtype, allowed: Range) -> np.ndarray:
    """A C-contiguous array of dtype with the entries of x, converted and checked by blocks."""
    as_wanted = x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned
    result = x if as_wanted else np.empty(x.shape, dtype)
    n_columns = x.shape[1]
    step = max(1, BLOCK // n_columns)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        if not as_wanted:
            with np.errstate(over="ignore"):
                result[rows] = x[rows]
        bad = _first_bad(result[rows].ravel(), allowed)
        if bad is not None:
            row = start + bad // n_columns
            column = bad % n_columns
            raise ValueError(_complaint(row, column, x[row, column], dtype, allowed.advice))
    return result


def _first_bad(values: np.ndarray, allowed: Range) -> int | None:
    """Position of the first entry that is out of range (NaN is), or None."""
    good = (values >= allowed.low) & (values <= allowed.high)
    if good.all():
        return None
    return int(np.argmin(good))


def _complaint(row: int, column: int, value: Any, dtype: np.dtype, advice: str) -> str:
    """The sentence about an entry that is not finite, too large for dtype, or out of range."""
    found = f"x: row {row}, column {column} (from 0) is {value!s}"
    if not np.isfinite(value):
        return f"{found}; values must be finite: fill in or drop missing ones first"
    if abs(value) > np.finfo(dtype).max:
        advice = "scale x, or make the model with dtype=np.float64"
        return f"{found}, beyond the range of {dtype}; {advice}"
    return f"{found}; {advice}"


# ---------------------------------------------------------------------------- rows that are checked
def means(x: Array) -> np.ndarray:
    """The mean of each feature of x (n, n_features), dense or CSR: (n_features,) float64."""
    return np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / x.shape[0]


def rows_of(x: Array, rows: np.ndarray) -> Array:
    """These rows of x (n, n_features), dense or CSR; x itself, and no copy, where they are all."""
    return x if len(rows) == x.shape[0] else take_rows(x, rows)


def mean_variance(x: Array, mean: np.ndarray) -> float:
    """The variance of a feature, averaged over features: mean(x^2) - mean(mean^2).

    x: (n, n_features), dense or CSR; mean: its `means`, (n_features,).
    """
    values = x.data if sparse.issparse(x) else x.ravel()
    total = 0.0
    for start in range(0, len(values), BLOCK):
        total += float(np.sum(np.square(values[start : start + BLOCK], dtype=np.float64)))
    return total / (x.shape[0] * x.shape[1]) - float(np.mean(mean**2))


def dense(x: Any) -> Array:
    """A minibatch (n, n_features) as a dense array: CSR is converted, an array stays as it is."""
    if backend.is_sparse(x):
        return x.toarray()
    return x

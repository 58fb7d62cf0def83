"""Where in the latent space does one condition have more cells than another? This is a lesson.

Samples are of two conditions: some donors were treated, say, and others were not. Which kinds of
cells do the treated have more of? One can cluster the cells and count. But clusters have edges, and
a change within one goes unseen. A model with a latent space can be asked without clusters. It says
of each cell i where it lies, q(z | x_i), a normal distribution. The mean of these over the n_s
cells of a sample s, its aggregated posterior, is the density of the sample in the latent space,

    q_s(z) = 1/n_s sum_i q(z | x_i),    log ratio(z) = log mean_a q_s(z) - log mean_b q_s(z)

and the ratio of the mean over samples of condition a to that over b says how many times as large a
share of their cells the one has around z.

Here the latent space is a line, and there are two kinds of cells, around -2 and around 2. A sample
of a has three quarters of its cells in the first, one of b a quarter:

    >>> of_a = np.repeat([-2.0, 2.0], [30, 10])[:, None]  # the means of q(z | x)
    >>> of_b = np.repeat([-2.0, 2.0], [10, 30])[:, None]
    >>> std = np.full((40, 1), 0.5)
    >>> at = np.array([[-2.0], [2.0]])
    >>> log_q_a = aggregated_log_posterior(at, of_a, std)
    >>> log_q_b = aggregated_log_posterior(at, of_b, std)
    >>> (log_q_a - log_q_b).round(2)  # three times the share, and a third of it: log 3 = 1.1
    array([ 1.1, -1.1])

That is the idea, and with scvi-tools' `differential_abundance` it ends here: log q_s of each sample
at the mean of each cell. Three things keep it from working on real cells.

1. The cell itself. It is one of the n_s, and where it lies its own q(z | x) is at its highest. So
every cell seems to be in a region of its own condition. It must be left out. So should all other
cells of its sample: donors differ in more than their condition, and a region that is one donor's
alone says nothing about conditions (`leave_out="sample"`).

2. Dimensions. A kernel of the width of q(z | x) is narrow where a cell has many counts, and in
twenty dimensions nothing is near. Then the density at a cell is that of the one cell next to it.
So kernels are widened at each cell n, as much as it takes for `n_neighbors` cells to carry the
density there. Where that many carry it already, they stay. How many cells i carry it is their
effective number, (sum_i w_ni)^2 / sum_i w_ni^2 (Kish 1965): 50 for 50 equal weights w_ni and any
number of zeros. In the place of q(z_n | x_i) comes

    w_ni = q(z_n | x_i) ^ (1 / t_n),    t_n >= 1 such that the effective number is 50

All kernels at a cell are widened alike, so what the model knows is kept: which directions tell
cells apart and which do not. (To multiply all widths by sqrt(t) would be nearly the same.)

3. Chance. A density that 25 cells carry is known to a 1 / sqrt(25) of itself. So if half of 50
cells are of each condition, the log ratio has a standard error of sqrt(1/25 + 1/25) = 0.28. `error`
says it for each cell. It knows of cells, not of samples: what else donors differ in is not in it,
nor what a model leaves of batches in z. Where each donor is a batch of its own, log ratios within a
type may scatter by twice their errors (1,500 simulated cells of six donors; the medians of a type
with twice the share were 0.59 to 0.80). Where each batch has cells of both conditions, they scatter
by their errors. So look at medians of types, and at `agreement`.

Measured on the 3,005 cells of cortex, 20 latent dimensions in use: conditions and donors (three
each) were drawn at random, then two thirds of the oligodendrocytes of b taken out. So the true log
ratios are 0.92 for oligodendrocytes and -0.21 for others. Mean and standard deviation over cells:

| | oligodendrocytes | other cells, of a | other cells, of b |
| --- | --- | --- | --- |
| scvi-tools 1.4.2's formula | 698 ± 1269 | 1091 | -1040 |
| as said above | 30.1 ± 50.4 | 51.1 | -49.9 |
| the cell itself left out | 9.9 ± 19.5 | 1.6 | 2.1 |
| and widened to 50 cells | 0.89 ± 0.31 | -0.18 | -0.16 |
| its whole sample left out | 0.87 ± 0.30 | -0.19 | -0.15 |

The errors are 0.28 in the last two rows, and 1.4 in those without widening. (The formula of
scvi-tools differs from what is said above in that it takes variances of q for standard deviations.)

How the code goes: `log_ratios` takes some cells at a time. It looks at all pairs of these and the
cells of samples (`log_normals`), leaves out what is the cell's own, widens (`temperature`), and
takes means over the cells of each sample; `_ratios` compares the samples of a with those of b.

Know before reading: vae.py, and in posterior.py `log_mean_exp`.

Know after: what a density in a latent space can say of a composition, and what it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from minigrad.backend import Array
from models.abundance_table import DifferentialAbundance
from models.count_inputs import cells_to_encode
from models.counts import library_size
from models.groups import Samples, conditions_of, labels_of_cells, samples_of
from models.inputs import one_of, whole_number
from models.labels import cells_of
from models.posterior import log_mean_exp

ENTRIES = 1 << 21  # pairs of cells in one go: 16 MB for an array of them
FAR = 20  # times n_neighbors: the nearest cells, by which `temperature` finds t
WIDEST = 1e6  # the largest t


# ------------------------------------------------------------------------------------ the densities
def aggregated_log_posterior(z: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """log q_s(z), the density of a sample s: (n,) float64, in nats.

        q_s(z) = 1/n_s sum_i Normal(z; mean_i, std_i)

    z: where, (n, n_latent); mean, std: of q(z | x) of the cells of the sample, (n_s, n_latent). As
    scvi-tools' `get_aggregated_posterior(dof=None).log_prob(z)` where that is given standard
    deviations. Memory does not grow with n times n_s. ValueError for shapes that do not fit, and
    standard deviations that are not above 0.
    """
    z, mean, std = (np.asarray(a, np.float64) for a in (z, mean, std))
    if z.ndim != 2 or mean.shape != std.shape or z.shape[1:] != mean.shape[1:] or not len(mean):
        raise ValueError(
            f"z has shape {z.shape}, mean {mean.shape} and std {std.shape}; they must be "
            "(n, n_latent), and twice (n_cells, n_latent) of at least one cell"
        )
    if not np.all(std > 0.0):
        raise ValueError("std: must be above 0; pass standard deviations, as latent returns them")
    log_q = np.empty(len(z))
    for rows in _chunks(z, mean):
        log_q[rows], _ = log_mean_exp([log_normals(z[rows], mean, std).T])
    return log_q


def log_normals(z: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """log Normal(z_n; mean_i, std_i) of every pair, summed over dimensions: (n, m), in nats.

    z: (n, n_latent); mean, std: (m, n_latent). The square of (z - mean) / std is multiplied out,

        z^2 / std^2 - 2 z mean / std^2 + mean^2 / std^2

    so that the first two terms are products of matrices for all pairs, and the third belongs to i
    alone. The terms are larger than their sum and cancel; least so where z and mean are near 0, so
    the middle of the means is moved there.
    """
    centre = mean.mean(axis=0)
    z = z - centre
    mean = mean - centre
    precision = 1.0 / std**2
    of_pairs = z**2 @ precision.T - 2.0 * (z @ (mean * precision).T)
    of_i = np.sum(mean**2 * precision + 2.0 * np.log(std) + np.log(2.0 * np.pi), axis=1)
    return -0.5 * (of_pairs + of_i)


def _chunks(z, mean) -> list[slice]:
    """All rows of z, so many at a time that they make ENTRIES pairs with the rows of mean."""
    step = max(1, ENTRIES // len(mean))
    return [slice(start, start + step) for start in range(0, len(z), step)]


def temperature(log_w: np.ndarray, n_neighbors: int) -> np.ndarray:
    """The least t >= 1, (n,), with which the effective number of the weights w^(1/t) of a row is
    n_neighbors or more; WIDEST where no t is enough, as there are fewer weights.

    log_w: (n, m), in nats; -inf for what is left out. The effective number, (sum w)^2 / sum w^2,
    grows with t. So log t is found by bisection.
    """
    n_near = min(FAR * n_neighbors, log_w.shape[1])
    near = -np.partition(-log_w, n_near - 1, axis=1)[:, :n_near]
    near -= near.max(axis=1, keepdims=True)

    def are_too_few(log_t):
        w = np.exp(near / np.exp(log_t)[:, None])
        return np.sum(w, axis=1) ** 2 < n_neighbors * np.sum(w**2, axis=1)

    low = np.zeros(len(near))
    high = np.where(are_too_few(low), np.log(WIDEST), 0.0)
    for _ in range(25):
        middle = (low + high) / 2.0
        too_few = are_too_few(middle)
        low = np.where(too_few, middle, low)
        high = np.where(too_few, high, middle)
    return np.exp(high)


# --------------------------------------------------------------------------------------- the ratios
class Ratios(NamedTuple):
    """What DifferentialAbundance says of each cell, (n_cells,)."""

    log_ratio: np.ndarray
    error: np.ndarray
    agreement: np.ndarray
    log_q: np.ndarray  # (n_cells, n_samples)


def log_ratios(
    mean: np.ndarray,
    std: np.ndarray,
    samples: Samples,
    n_neighbors: int | None = 50,
    leave_out: str = "sample",
) -> Ratios:
    """The Ratios of cells, in nats: log mean_a q_s(z) - log mean_b q_s(z), z the mean of each cell.

    mean, std: of q(z | x), (n_cells, n_latent). n_neighbors: None for kernels as they are.
    leave_out: "sample" or "cell".
    """
    mean, std = (np.asarray(a, np.float64) for a in (mean, std))
    order = np.argsort(samples.codes, kind="stable")  # cells of one sample stand together
    counted = order[np.sum(samples.codes < 0) :]  # positions of the cells that are in a density
    n_cells = np.bincount(samples.codes[counted], minlength=len(samples.names))
    ends = np.cumsum(n_cells)
    cells_of_samples = [slice(end - n, end) for n, end in zip(n_cells, ends)]  # among `counted`
    found = []
    for rows in _chunks(mean, counted):
        log_w = log_normals(mean[rows], mean[counted], std[counted])
        own_sample = samples.codes[rows, None]
        if leave_out == "sample":
            log_w[own_sample == samples.codes[counted]] = -np.inf
        else:
            own_cell = np.arange(len(mean))[rows, None]
            log_w[own_cell == counted] = -np.inf
        if n_neighbors is not None:
            log_w /= temperature(log_w, n_neighbors)[:, None]
        log_q = np.empty((len(log_w), len(n_cells)))
        error = np.empty_like(log_q)
        for s, cells in enumerate(cells_of_samples):
            log_q[:, s], error[:, s] = log_mean_exp([log_w[:, cells].T])
        is_own = own_sample == np.arange(len(n_cells))
        if leave_out == "sample":
            log_q[is_own] = np.nan
        else:  # the mean was over n cells, of which one has the weight 0: let it be over n - 1
            log_q += np.where(is_own, np.log(n_cells / (n_cells - 1)), 0.0)
        found.append(_ratios(log_q, error, samples))
    return Ratios(*[np.concatenate(of_all) for of_all in zip(*found)])


def _ratios(log_q, error, samples: Samples) -> Ratios:
    """The Ratios of n cells, from log q of each sample and its standard error, (n, n_samples).

    log_q is NaN where the sample is left out.
    """
    log_mean_a, variance_a = _log_mean_of_samples(log_q[:, samples.in_a], error[:, samples.in_a])
    log_mean_b, variance_b = _log_mean_of_samples(log_q[:, samples.in_b], error[:, samples.in_b])
    a = log_q[:, samples.in_a, None]
    b = log_q[:, None, samples.in_b]
    is_denser = np.where(np.isnan(a) | np.isnan(b), np.nan, (a > b) + 0.5 * (a == b))
    return Ratios(
        log_ratio=log_mean_a - log_mean_b,
        error=np.sqrt(variance_a + variance_b),
        agreement=np.nanmean(is_denser.reshape(len(log_q), -1), axis=1),  # over pairs of samples
        log_q=log_q,
    )


def _log_mean_of_samples(log_q, error) -> tuple[np.ndarray, np.ndarray]:
    """log of the mean of q over samples, and its variance, (n,): those that are NaN do not count.

    A sample that is the share r of the sum, and known to `error` of itself, adds (r error)^2.
    """
    is_there = ~np.isnan(log_q)
    log_sum = special.logsumexp(np.where(is_there, log_q, -np.inf), axis=1)
    share = np.exp(log_q - log_sum[:, None])
    of_samples = np.where(share > 0.0, share * error, 0.0)  # NaN is not above 0
    return log_sum - np.log(np.sum(is_there, axis=1)), np.sum(of_samples**2, axis=1)


# ------------------------------------------------------------------------------------- the question
class ComparesAbundance:
    """What a trained model with a latent space is asked about samples of two conditions.

    SCVI inherits it.
    """

    latent_of: Callable[..., tuple[np.ndarray, np.ndarray]]  # the model's: SCVI.latent_of

    def differential_abundance(
        self,
        counts: Any,
        sample: Array | str,
        condition: Array | str,
        group_a: str | None = None,
        group_b: str | None = None,
        *,
        n_neighbors: int | None = 50,
        leave_out: str = "sample",
        batch: Array | str | None = None,
        layer: str | None = None,
    ) -> DifferentialAbundance:
        """Where in the latent space condition a has more cells than b: a DifferentialAbundance.

            log ratio_n = log mean_{s of a} q_s(z_n) - log mean_{s of b} q_s(z_n)

        with z_n the mean of q(z | x_n), and q_s(z) = 1/n_s sum_i q(z | x_i) the aggregated
        posterior of sample s, without the cell's own sample (Boyeau et al. 2025, differential
        abundance of MrVI; scvi-tools' `differential_abundance` gives log q_s).

        counts: (n_cells, n_genes). sample, condition: a label for each cell, (n_cells,), or the
        name of an obs column; a sample is of one condition. group_a, group_b: the two conditions;
        None: where there are just two, in alphabetical order; group_b=None: all but a. n_neighbors:
        cells that each density rests on at least, to which kernels are widened where they are too
        narrow; None: never. More of them are less noise and a coarser look: kinds of fewer cells
        are blurred with what is next to them. leave_out: "sample", or "cell": the cell alone, where
        a condition has but one sample; then differences between two donors are taken for those of
        their conditions. batch: where the encoder was told it (encode_covariates).

        Cells without a label or without counts, of other conditions, and samples of one cell are in
        no density. ValueError for a condition without samples, a sample of two conditions, unknown
        columns and labels. Time grows with the square of the number of cells, and is about
        half a minute for 20,000; memory does not.
        """
        one_of("leave_out", leave_out, ("sample", "cell"))
        if n_neighbors is not None:
            n_neighbors = whole_number("n_neighbors", n_neighbors)
        told = cells_to_encode(self, counts, batch, layer)
        has_counts = library_size(told[0]) > 0
        n_cells = len(has_counts)
        of_sample = labels_of_cells(counts, sample, n_cells, "sample")
        of_condition = labels_of_cells(counts, condition, n_cells, "condition")
        a, b = conditions_of(of_condition[has_counts], group_a, group_b, condition)
        samples = samples_of(of_sample, of_condition, has_counts, a, b, leave_out)
        mean, std = self.latent_of(told)
        found = log_ratios(mean, std, samples, n_neighbors, leave_out)
        cells = cells_of(counts) or [f"cell_{i}" for i in range(n_cells)]
        columns = {"cell": np.array(cells), "sample": of_sample, "condition": of_condition}
        for name in ("log_ratio", "error", "agreement"):
            columns[name] = np.where(has_counts, getattr(found, name), np.nan)
        log_q = np.where(has_counts[:, None], found.log_q, np.nan)
        return DifferentialAbundance(columns, log_q, samples, a, b)

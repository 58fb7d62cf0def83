"""Which genes do two groups of cells express differently, and what is only chance?

This is a lesson.

Know before reading: scvi.py's docstring, posterior.py's, and Bayes' rule for two hypotheses.

Let rho be the fraction of expression that belongs to one gene. Of the groups a and b there are two
hypotheses about each gene:

    H1: rho is higher in a             H0: it is not

The answer is p, the probability of H1 given the counts, or the same number as log odds, in nats:

    log(p / (1 - p))                   0 where p = 1/2, about 3 where p = 0.95

The table calls these log odds `bayes_factor`, after Lopez et al. (2018). A Bayes factor is what the
data multiply the odds of H1 by. So the log odds are its logarithm only where H1 and H0 were equally
probable before the data, as they are in mode="vanilla" and are not in mode="change".

mode="vanilla" is the answer of the chapter. Draw a cell of each group, draw the z of each cell from
q(z | x), and decode both. Then p is the proportion of such pairs in which rho_a > rho_b.

This misleads. The pairs differ in their cells and in their z, but one decoder turns z into rho in
all of them, and it was fitted once, to these very cells. Take a gene that is equal in truth, and
that was counted 5 % more often in a by chance. A decoder that was fitted closely has learnt these
5 %, the pairs agree on them, and p is close to 1 although the true difference is 0. So p says which
direction is the more probable one, not that there is a difference, and this mode marks no genes.
It errs the other way as well: where a group is too small for the model to learn what is special
about it, rho is nearly the same in both groups. In simulations of which the truth is known, genes
that one would mark by this p, at an expected 5 % of false ones, are false in 27 % of cases (500
cells against 500), and log fold changes come out at 0.3 of their size (20 cells against 980). This
is measured in tests/benchmarks/differential.py; the README there has the table.

mode="change" asks for more than a direction. H1 is that the log2 fold change between the means of
the groups is above delta (or below -delta, if that is the more probable side). Draws of rho alone
cannot answer this, because they do not say how large chance is. The counts do.

The simplest case is one batch and cells of one type. Four numbers are enough: how often the gene
was counted in a and in b, and the totals of all counts there.

    >>> counts = np.array([80.0, 20.0])
    >>> totals = np.array([20_000.0, 10_000.0])
    >>> rho = counts / totals
    >>> rho
    array([0.004, 0.002])
    >>> lfc = np.log2(rho[0] / rho[1])
    >>> float(lfc)
    1.0

How exactly is this known? Were it all counted again, a count would scatter with a variance of about
its own size, as a Poisson does, and its natural logarithm with a variance of about 1 / count. The
logarithm of a ratio has the variance of both together:

    >>> variance = np.sum(1.0 / counts) / np.log(2.0) ** 2  # of the logarithm to base 2
    >>> float(np.sqrt(variance).round(2))
    0.36

So lfc is a draw from Normal(true, 0.36), where `true` is the log2 fold change without chance.
Suppose that before any count was seen, all that was known of it was true ~ Normal(0, 1). Then by
Bayes' rule it is normal given lfc as well. Its mean is lfc, drawn towards 0:

    >>> shrink = 1.0 / (1.0 + variance)
    >>> mean = shrink * lfc
    >>> std = np.sqrt(shrink * variance)
    >>> float(mean.round(2)), float(std.round(2))
    (0.88, 0.34)

With delta = 0.25, H1 is true > 0.25. Its probability and log odds:

    >>> p = special.ndtr((mean - 0.25) / std)
    >>> float(p.round(2)), float(special.logit(p).round(1))
    (0.97, 3.5)

That is the method. Three things make it general.

1. Several batches. Suppose that the gene is detected three times as well in one batch as in
another: the model expects fractions of 0.006 and 0.002 there, in cells of either group. All cells
have 1,000 counts. 10 of a are in the first batch; 10 of a and 10 of b are in the second. Then the
model expects the very 80 and 20 counts from above, of groups that do not differ:

    >>> expected = np.array([10_000 * 0.006 + 10_000 * 0.002, 10_000 * 0.002])
    >>> expected
    array([80., 20.])

The model also says what counts cannot: the fraction to be expected if each group were spread over
the batches as both are together, one third of the cells in the first, and two thirds in the second.

    >>> fraction = 0.006 / 3 + 0.002 * 2 / 3
    >>> exposure = expected / fraction
    >>> exposure
    array([24000.,  6000.])
    >>> (counts / exposure).round(4)
    array([0.0033, 0.0033])

The exposure takes the place of the total, and no difference is left. In general

    exposure = (sum_i l_i rho_i) / (mean_i rho'_i)

over the cells i of the group. l_i is the total of the cell, rho_i the fraction of it that the model
expects of the gene, and rho'_i that fraction with the cell in a batch drawn from those of both
groups. With one batch this is the total again, as far as deep and shallow cells express the gene
alike. If the model has covariates, they are drawn together with the batch, from the same cell.

2. Chance is more than counting. Cells of one group differ, and counts are overdispersed. What this
adds to 1 / count is estimated twice, by the model's variances and by the scatter of the cells. The
larger estimate counts (`Sums.excess`).

3. Normal(0, 1) was an assumption. All genes together say what to put in its place (`_two_kinds`):
the lfc of most genes lie as close to 0 as chance would have it, and some lie far away. This makes
an empirical prior of two normal distributions, a narrow and a wide one.

How the code goes: `differential_expression` asks groups.py which cells are compared, and adds up
the counts and expectations of each group in one pass (`_tally`). From these sums follow a group's
count, exposure and excess for every gene (`_sums`), and from those of two groups the columns of a
table (`_of_means`). Mode "vanilla" stands before it (`_pairs`, `_of_pairs`). The table and its
pictures are differential_table.py's.

Know after: what a Bayes factor of differential expression says and does not say, and how a thousand
uncertain estimates help each other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import pieces, take_rows
from minigrad.fit import evaluating
from minigrad.tensor import Tensor
from models.counts import library_size, moments
from models.differential_table import DifferentialExpression, Groups
from models.groups import (
    Cells,
    gene_names,
    measured_genes,
    question_of,
    warn_of_groups_that_are_batches,
)
from models.inputs import one_of, whole_number
from models.posterior import BUDGET, POSTERIOR, count_distribution

LEAST_DELTA = 0.25  # log2 fold change (19 %): what delta is at least where it follows from the data
KINDS = np.array([0.1, 1.0])  # narrow and wide, of _two_kinds, to begin with: log2 fold changes
MISFIT = 0.15  # nats beyond chance by which the model may miss a group's means without a warning


# ------------------------------------------------------------------------------------- the question
class ComparesGroups:
    """What a trained model with `latent` and `generative` is asked about two groups of cells.

    SCVI inherits it.
    """

    minibatches: Callable[..., Any]  # the model's: SCVI.minibatches
    latent_of: Callable[..., tuple[np.ndarray, np.ndarray]]  # and SCVI.latent_of

    def differential_expression(
        self,
        counts,
        group_a: Any = None,
        group_b: Any = None,
        mode: str = "change",
        n_samples: int = 5000,
        delta: float | None = None,
        fdr: float = 0.05,
        batch: Array | str | None = None,
        genes=None,
        seed: int = 0,
        layer: str | None = None,
        groupby: Array | str | None = None,
    ) -> DifferentialExpression:
        """Which genes groups of cells express differently: a DifferentialExpression.

        group_a, group_b: boolean masks (n_cells,), by name of the cell where they are Series, or
        positions of cells; group_b=None: all other cells. groupby: a label for each cell,
        (n_cells,), or the name of an obs column; then group_a and group_b are labels, and without
        them every group is compared with all cells outside of it, in one table. Cells without a
        label (None, NaN) are in no group, but in the rest. Cells without counts are left out. Both
        groups are decoded in the same batches, drawn in the proportions of the two together: so
        batches are averaged over. So are covariates: the batch and the covariates are those of a
        random cell of either group.

        mode: "change", a log2 fold change of the groups' means beyond delta, to one side, from the
        counts and what the model expects of them, sorted by its probability; or "vanilla", rho_a >
        rho_b in a random pair of cells, sorted by the size of the Bayes factor (course, block 5,
        "Uses: differential gene expression"; Lopez et al. 2018). n_samples: pairs of cells, or for
        "change" draws of z in each group, at least one per cell. delta: None for 0.25 (19 %), or
        the median size of the fold changes where that is larger; then a gene has changed that
        changed more than the typical one. fdr: expected proportion of genes with a false hypothesis
        (or side) among those marked `is_de` (Newton et al. 2004).
        genes: names (n_genes,), by default the model's. Counts may lie on the disk. Genes that were
        not measured in all of the cells, and count as 0 there, are left out of the table, with a
        warning: of them nothing is known (`map_query`, `align_genes`).

        Warns of a group whose means the model has not learnt, and of groups that share no batch, or
        no label of a covariate, that the model was told: it has taken their difference out. Raises
        ValueError for groups that are empty, overlap, or are no masks or positions, and for unknown
        batches and labels. "vanilla" takes memory for n_samples * n_genes numbers.
        """
        one_of("mode", mode, ("change", "vanilla"))
        if delta is not None and not 0 <= delta < np.inf:
            raise ValueError(
                f"delta must be at least 0, or None to follow from the data, not {delta}"
            )
        if not 0 < fdr < 1:
            raise ValueError(f"fdr must be between 0 and 1, not {fdr}")
        n_samples = whole_number("n_samples", n_samples)
        told = Cells(*self.minibatches(counts, batch, layer).columns)
        names = gene_names(self, counts, genes)
        question = question_of(counts, library_size(told.counts) > 0, group_a, group_b, groupby)
        rng = backend.generator([seed, POSTERIOR])
        # Mode "vanilla" needs the sums too: for raw means, and to warn of what was not learnt.
        tallies = _tallies(self, told, question.cells, n_samples, rng)
        measured = measured_genes(self, counts, told, question)
        names = names[measured]
        tallies = [_of_genes(tally, measured) for tally in tallies]
        for called, tally in zip(question.called, tallies):
            if called:
                _warn_of_misfit(called, _sums(tally))
        warn_of_groups_that_are_batches(self, told, question)
        parts = []
        groups = []
        for i in question.compared:
            others = [j for j in range(len(tallies)) if j != i]
            a = tallies[i]
            b = _together([tallies[j] for j in others])
            threshold = None
            if mode == "vanilla":
                rest = np.sort(np.concatenate([question.cells[j] for j in others]))
                lfc, rho = _pairs(self, told, [question.cells[i], rest], n_samples, seed)
                lfc = np.compress(measured, lfc, axis=1)
                rho = np.compress(measured, rho, axis=1)
                found = _of_pairs(lfc, rho)
            else:
                found, threshold = _of_means(_sums(a), _sums(b), delta)
            pair = Groups(question.names[i], question.other, a.n_cells, b.n_cells, threshold)
            groups.append(pair)
            parts.append(_columns(names, pair, found, a, b, mode, fdr))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return DifferentialExpression(
            columns, mode=mode, n_samples=n_samples, fdr=fdr, groups=groups
        )


def _columns(names, groups: Groups, found: dict, a: Tally, b: Tally, mode, fdr) -> dict:
    """The columns of one comparison, (n_genes,) each, the surest gene first.

    found: the columns that `_of_means` or `_of_pairs` made.
    """
    columns = dict(
        group=np.full(len(names), groups.a),
        comparison=np.full(len(names), groups.b),
        gene=names,
        **found,
        raw_mean_a=a.observed / a.n_cells,
        raw_mean_b=b.observed / b.n_cells,
        nonzero_a=a.nonzero / a.n_cells,
        nonzero_b=b.nonzero / b.n_cells,
    )
    evidence = np.abs(found["bayes_factor"])
    if mode == "change":
        evidence = found["bayes_factor"]
        columns["is_de"] = _expected_fdr_set(special.expit(-evidence), fdr)
    z_score = np.abs(found["lfc_mean"]) / np.maximum(found["lfc_std"], 1e-12)
    order = np.lexsort((-z_score, -evidence))
    return {name: column[order] for name, column in columns.items()}


# ------------------------------------------------------------------------------- vanilla: the pairs
def _pairs(model, told: Cells, groups, n_samples, seed):
    """Random pairs of cells: log2 fold changes (n_samples, n_genes), and mean rho (2, n_genes).

    groups: the positions of the cells of a and of b.
    """
    # The same random numbers as those of `_tallies`, which is intended: a table is made of one or
    # of the other, and in this mode it does not depend on whether sums were taken before.
    rng = backend.generator([seed, POSTERIOR])
    picked = np.stack([cells[rng.integers(len(cells), size=n_samples)] for cells in groups])
    drawn = rng.choice(np.concatenate(groups), n_samples)  # whose batch both cells of a pair get
    cells, at = np.unique(picked, return_inverse=True)  # a cell is encoded once for all its pairs
    at = at.reshape(picked.shape)
    mean, std = told.latent(model, cells)
    lfc = np.empty((n_samples, model.n_genes), model.dtype)
    rho = np.zeros((2, model.n_genes))
    step = max(1, backend.entries_at_once(BUDGET, model.device) // (2 * model.n_genes))
    with evaluating(model):
        for start in range(0, n_samples, step):
            pairs = slice(start, start + step)
            i = at[:, pairs]  # (2, pairs), positions among `cells`
            z = mean[i] + std[i] * rng.standard_normal((*i.shape, model.n_latent), model.dtype)
            like = np.tile(drawn[pairs], 2)
            inputs = (z.reshape(i.size, -1), told.codes[like], told.covariates[like])
            log_rho = model.log_rho(*[backend.to_device(a, model.device) for a in inputs])
            log_rho = log_rho.numpy().reshape(*i.shape, -1)
            rho += np.exp(log_rho).sum(axis=1)
            lfc[pairs] = (log_rho[0] - log_rho[1]) / np.log(2.0)
    return lfc, rho / n_samples


def _of_pairs(lfc, rho) -> dict:
    """Columns (n_genes,) from fold changes lfc (n, n_genes) of pairs, and mean rho (2, n_genes)."""
    n, n_genes = lfc.shape
    p, mean, median, std = np.empty((4, n_genes))
    for start in range(0, n_genes, 256):
        genes = slice(start, start + 256)
        part = lfc[:, genes].astype(np.float64)
        n_higher = np.sum(part > 0, axis=0) + 0.5 * np.sum(part == 0, axis=0)
        p[genes] = (n_higher + 0.5) / (n + 1)  # the mean under Jeffreys' prior, never 0 or 1
        mean[genes] = part.mean(axis=0)
        median[genes] = np.median(part, axis=0)
        std[genes] = part.std(axis=0)
    return dict(
        probability=p,
        probability_error=np.sqrt(p * (1.0 - p) / n),
        bayes_factor=special.logit(p),
        lfc_mean=mean,
        lfc_median=median,
        lfc_std=std,
        rho_a=rho[0],
        rho_b=rho[1],
    )


# -------------------------------------------------------------------------------- change: the means
class Sums(NamedTuple):
    """The counts of a group of cells beside what the model expects of them.

    Arrays are (n_genes,), float64.
    """

    observed: np.ndarray  # counts, summed over the cells
    expected: np.ndarray  # the model's means, summed over the cells, each in its own batch
    excess: np.ndarray  # relative variance beyond counting's: of the sum, over its mean squared
    exposure: np.ndarray  # what the fraction is a fraction of: observed / exposure
    n_cells: int


class Tally(NamedTuple):
    """Sums over cells: of their counts x, of totals t of cells, and of what the model expects.

    Those of two groups, added up, are those of both together (`_together`). Arrays are (n_genes,),
    float64.
    """

    n_cells: int
    total: float  # of t
    squared_totals: float  # of t^2
    observed: np.ndarray  # of x
    squares: np.ndarray  # of x^2
    with_totals: np.ndarray  # of x t
    nonzero: np.ndarray  # of 1 where x > 0
    expected: np.ndarray  # of the mean of x that the model expects, each cell in its own batch
    variance: np.ndarray  # of its variance
    fraction: np.ndarray  # of mean / t, each cell in a random batch


def _together(tallies: list[Tally]) -> Tally:
    """The Tally of all cells of several groups that share none."""
    fields: Any = zip(*tallies)
    return Tally(*[sum(field) for field in fields])


def _tallies(model, told: Cells, groups, n_samples, rng) -> list[Tally]:
    """The Tally of each group of cells, in one pass over counts, which may lie on the disk.

    groups: positions of cells, increasing, in no two groups. n_samples: draws of z for each group,
    or more, for each cell has one at least. Batches and covariates for Tally.fraction are those of
    random cells of all groups.
    """
    everyone = np.concatenate(groups)
    group_of = np.full(told.counts.shape[0], -1)
    for i, cells in enumerate(groups):
        group_of[cells] = i
    found: list = [None] * len(groups)
    for start, part in pieces(told.counts):
        here = group_of[start : start + part.shape[0]]
        for i in np.unique(here[here >= 0]):
            rows = np.flatnonzero(here == i)
            n_draws = -(-n_samples // len(groups[i]))  # of each cell, rounded up
            x = take_rows(part, rows)
            new = _tally(model, x, told, start + rows, everyone, n_draws, rng)
            found[i] = new if found[i] is None else _together([found[i], new])
    return found


def _tally(model, x, told: Cells, cells, everyone, n_draws: int, rng) -> Tally:
    """The Tally of cells x (n_cells, n_genes) in memory, with n_draws of z for each.

    cells: their positions among all that are told, (n_cells,). everyone: positions of the cells
    whose batches and covariates are drawn for `fraction`. Counts that ZINB expects include its
    structural zeros.
    """
    mean, std = model.latent_of([x, told.codes[cells], told.covariates[cells]])
    counted = _counted(x)
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    draws = np.repeat(np.arange(len(total)), n_draws)
    step = max(1, backend.entries_at_once(BUDGET, model.device) // model.n_genes)
    of_draws = np.zeros((3, model.n_genes))
    with evaluating(model):
        for start in range(0, len(draws), step):
            i = draws[start : start + step]
            size = total[i][:, None]
            z = mean[i] + std[i] * rng.standard_normal((len(i), model.n_latent), dtype=model.dtype)
            mu, variance = _expected_counts(model, z, size, told, like=cells[i])
            fraction = mu / size
            if model.n_batches > 1 or model.columns.n_covariates > 0:
                drawn = rng.choice(everyone, len(i))
                fraction = _expected_counts(model, z, size, told, like=drawn)[0] / size
            of_draws += [np.sum(of_each, axis=0) for of_each in (mu, variance, fraction)]
    expected, variance, fraction = of_draws / n_draws  # each summed over cells
    return counted._replace(expected=expected, variance=variance, fraction=fraction)


def _counted(x) -> Tally:
    """The Tally of cells x (n_cells, n_genes) as far as counts have it, and 0 for the rest."""
    of_counts = moments(x)
    total = of_counts.totals
    nothing = np.zeros(x.shape[1])
    return Tally(
        n_cells=len(total),
        total=total.sum(),
        squared_totals=np.sum(total**2),
        observed=of_counts.of_genes,
        squares=of_counts.squares,
        with_totals=of_counts.with_totals,
        nonzero=np.asarray((x != 0).sum(axis=0), dtype=np.float64).ravel(),
        expected=nothing,
        variance=nothing,
        fraction=nothing,
    )


def _of_genes(tally: Tally, genes: np.ndarray) -> Tally:
    """The sums of these genes alone, a mask (n_genes,); totals of cells stay those of all genes."""
    fields: Any = tally
    return Tally(*[field[genes] if np.ndim(field) else field for field in fields])


def _sums(tally: Tally) -> Sums:
    """The Sums that follow from a group's Tally."""
    expected, fraction = tally.expected, tally.fraction
    exposure = np.full(len(expected), tally.total)  # of a gene that the model holds impossible
    possible = np.minimum(expected, fraction) > 0.0
    np.divide(expected * tally.n_cells, fraction, out=exposure, where=possible)
    excess_of_model = (tally.variance - expected) / (expected + 0.5) ** 2
    excess = np.maximum(excess_of_model, _observed_excess(tally))
    return Sums(tally.observed, expected, np.maximum(excess, 0.0), exposure, tally.n_cells)


def _observed_excess(tally: Tally) -> np.ndarray:
    """Sums.excess as the cells show it: their counts x scatter around total * fraction.

    The variance of the sum of x over n cells is n / (n - 1) sum (x - total * fraction)^2, where
    fraction = sum x / sum total.
    """
    observed, n = tally.observed, tally.n_cells
    fraction = observed / tally.total
    squares = tally.squares - 2.0 * fraction * tally.with_totals
    variance = (squares + fraction**2 * tally.squared_totals) * n / max(1, n - 1)
    return (variance - observed) / (observed + 0.5) ** 2


def _expected_counts(model, z, size, told: Cells, like):
    """Mean and variance (n, n_genes) of counts of cells with these z and totals (n, 1).

    like: (n,), positions of the cells from which each has its batch and its covariates.
    """
    log_size = np.log(size).astype(model.dtype)
    inputs = [
        backend.to_device(a, model.device)
        for a in (z, log_size, told.codes[like], told.covariates[like])
    ]
    parameters = {
        name: p.data if isinstance(p, Tensor) else p
        for name, p in model.generative(*inputs).items()
    }
    counts = count_distribution(model, parameters)
    return [backend.to_host(a).astype(np.float64) for a in (counts.mean, counts.variance)]


def _log_fraction(sums: Sums, pooled):
    """log of a group's fraction of counts over `pooled`, that of both together, and its variance.

    Two (n_genes,), in nats; pooled (n_genes,). By the delta method counting makes a variance of
    1 / count, and what exceeds it comes on top. Half a count is added to what was counted, and to
    what would have been if the groups were alike: no counts then say little, not minus infinity.
    """
    observed = sums.observed + 0.5
    if_alike = pooled * sums.exposure + 0.5
    return np.log(observed / if_alike), 1.0 / observed + sums.excess


def _of_means(a: Sums, b: Sums, delta):
    """Columns (n_genes,) of mode "change", and its threshold: delta, or what None stands for."""
    pooled = (a.observed + b.observed) / (a.exposure + b.exposure)
    log_a, variance_a = _log_fraction(a, pooled)
    log_b, variance_b = _log_fraction(b, pooled)
    lfc = (log_a - log_b) / np.log(2.0)
    believed = _two_kinds(lfc, (variance_a + variance_b) / np.log(2.0) ** 2)
    weight = np.exp(believed.log_weight)
    mean = np.sum(weight * believed.mean, axis=0)
    square = np.sum(weight * (believed.mean**2 + believed.variance), axis=0)
    threshold = delta
    if delta is None:
        threshold = max(LEAST_DELTA, float(np.median(np.abs(mean))))
    log_odds = np.maximum(
        _log_odds_above(believed, threshold), _log_odds_above(believed.turned(), threshold)
    )
    columns = dict(
        probability=special.expit(log_odds),
        bayes_factor=log_odds,
        lfc_mean=mean,
        lfc_std=np.sqrt(np.maximum(square - mean**2, 0.0)),
        rho_a=pooled * np.exp(log_a),
        rho_b=pooled * np.exp(log_b),
    )
    return columns, threshold


class Mixture(NamedTuple):
    """Every gene's fold change as a mixture of two normals: one if it is alike, one if it changed.

    Arrays are (2, n_genes).
    """

    log_weight: np.ndarray  # log probability of the kind
    mean: np.ndarray
    variance: np.ndarray

    def turned(self) -> Mixture:
        """The mixture of the negative fold changes."""
        return self._replace(mean=-self.mean)


def _two_kinds(lfc, variance) -> Mixture:
    """What is to be believed of true fold changes that lfc (n_genes,) estimates, variances given.

    Some genes are alike in both groups, and others changed:

        alike ~ Normal(0, narrow),    changed ~ Normal(0, wide),    lfc ~ Normal(true, std)

    with std^2 the variance. How many are of which kind, narrow and wide are those that make all lfc
    together most probable (empirical Bayes: Efron 2008, section 2; Stephens 2017), found by
    expectation-maximisation, as if one gene of each kind (KINDS) had been seen before. Then Bayes'
    rule says of each gene how probable either kind is, and what `true` is in each: normal, its mean
    lfc times

        shrink = spread / (spread + variance),    spread = narrow^2 or wide^2

    so the closer to 0, the larger the variance of lfc is beside that of the kind.
    """
    proportion = np.array([0.5, 0.5])  # of genes that are alike, and that changed
    spread = KINDS**2
    for _ in range(500):
        # What every gene is, if the kinds are these ...
        marginal = spread[:, None] + variance
        log_weight = np.log(proportion)[:, None] - 0.5 * (np.log(marginal) + lfc**2 / marginal)
        log_weight = log_weight - special.logsumexp(log_weight, axis=0)
        shrink = spread[:, None] / marginal
        found = Mixture(log_weight, shrink * lfc, shrink * variance)
        # ... and what the kinds are, if the genes are these.
        weight = np.exp(log_weight)
        n = weight.sum(axis=1) + 1.0
        proportion = n / n.sum()
        spread = (np.sum(weight * (found.mean**2 + found.variance), axis=1) + KINDS**2) / n
    return found


def _log_odds_above(believed: Mixture, threshold) -> np.ndarray:
    """log(p / (1 - p)), p the probability of a fold change above the threshold: (n_genes,)."""
    z = (believed.mean - threshold) / np.sqrt(believed.variance)
    above = special.logsumexp(believed.log_weight + special.log_ndtr(z), axis=0)
    below = special.logsumexp(believed.log_weight + special.log_ndtr(-z), axis=0)
    return above - below


def _expected_fdr_set(error, fdr) -> np.ndarray:
    """The largest set of genes, surest first, whose expected proportion of false ones is <= fdr.

    error: the probability that a gene's hypothesis is false (n_genes,). Returns a mask.
    """
    order = np.argsort(error, kind="stable")
    expected_fdr = np.cumsum(error[order]) / np.arange(1, len(order) + 1)
    chosen = np.zeros(len(order), bool)
    chosen[order[: np.searchsorted(expected_fdr, fdr, side="right")]] = True
    return chosen


def _warn_of_misfit(name: str, sums: Sums) -> None:
    """Warn if a group's means are not those that the model expects, by more than chance explains.

    misfit: by how much squared log ratios of observed to expected counts exceed their variances, on
    average over genes, weighted by 1 / variance. By chance alone its mean is 0 and its standard
    deviation sqrt(2 n_genes) / sum of weights; up to four of these are taken for chance.
    """
    # With the expected counts for exposure and 1 for pooled, the fraction is observed / expected.
    log_ratio, variance = _log_fraction(sums._replace(exposure=sums.expected), 1.0)
    precision = 1.0 / variance
    misfit = np.sum(precision * (log_ratio**2 - variance)) / precision.sum()
    if misfit > max(MISFIT**2, 4.0 * np.sqrt(2.0 * len(precision)) / precision.sum()):
        factor = np.exp(np.sqrt(misfit))
        warnings.warn(
            f"{name}: its {sums.n_cells} cells have other means than the model expects of them, "
            f"by a factor of {factor:.2f} beyond chance: the model has not learnt what is special "
            "about them. Mode 'change' corrects the fold changes by the counts; mode 'vanilla', "
            "latent and denoise cannot. Train longer, or with dropout=0 or less weight_decay",
            stacklevel=3,
        )

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
marked by this p at an expected 5 % of false ones are false in 18 % of cases (500 cells against
500), and log fold changes come out at a quarter of their size (20 cells against 980). This is
measured in tests/benchmarks/differential.py; README has the table.

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
alike. If the model has covariates, they are drawn together with
the batch, from the same cell.

2. Chance is more than counting. Cells of one group differ, and counts are overdispersed. What this
adds to 1 / count is estimated from the model and from the cells (`Sums.excess`).

3. Normal(0, 1) was an assumption. All genes together say what to put in its place (`_two_kinds`):
the lfc of most genes lie as close to 0 as chance would have it, and some lie far away. This makes
an empirical prior of two normal distributions, a narrow and a wide one.

Know after: what a Bayes factor of differential expression says and does not say, and how a thousand
uncertain estimates help each other.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import take_rows
from minigrad.fit import evaluating
from minigrad.tensor import Tensor
from models.counts import Moments, moments
from models.files import warn_of_formulas
from models.inputs import one_of, whole_number
from models.labels import by_cell, cells_of, genes_of
from models.posterior import BUDGET, POSTERIOR, count_distribution

LEAST_DELTA = 0.25  # log2 fold change (19 %): what delta is at least where it follows from the data
KINDS = np.array([0.1, 1.0])  # narrow and wide, of _two_kinds, to begin with: log2 fold changes
MISFIT = 0.15  # nats beyond chance by which the model may miss a group's means without a warning
BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"


# ---------------------------------------------------------------------------------------- the table
class DifferentialExpression:
    """Genes compared between two groups of cells a and b, one per row, best first.

    `table["lfc_mean"]` is a column. columns, a dict of arrays (n_genes,):
      gene               name
      probability        p, that H1 is true. "change": that the log2 fold change between the means
                         of the groups lies beyond delta, on its more probable side. "vanilla": that
                         rho_a > rho_b in a random pair of cells; p = (k + 1/2) / (n + 1) where it
                         held in k of n pairs, and a tie counts half
      bayes_factor       log(p / (1 - p)), in nats: log posterior odds. "vanilla": n pairs bound its
                         size by log(2 n + 1). "change": the prior odds are not even, so that it is
                         a Bayes factor by name only
      lfc_mean, lfc_std  of the log2 fold change, a over b. "change": mean and standard deviation of
                         what is believed of it, drawn towards 0 as far as chance may have made it.
                         "vanilla": over pairs, so the spread is that of cells and of their z
      rho_a, rho_b       expression fraction of each group. "vanilla": the model's, mean over pairs;
                         1 for all genes together. "change": counts / exposure, about 1 for all
                         genes together; log2(rho_a / rho_b) is the fold change before it is drawn
                         towards 0
      raw_mean_a, raw_mean_b, nonzero_a, nonzero_b
                         mean count and fraction of cells with a count, in the data as given: with
                         depth and batch in them

    "change" alone has
      is_de              in the largest set of genes of which an expected proportion of at most
                         `fdr` is false

    and "vanilla" alone
      lfc_median         over pairs
      probability_error  Monte Carlo standard error, sqrt(p (1 - p) / n): pairs are independent

    mode, n_samples and fdr are as asked for; delta is the one that "change" used, and None for
    "vanilla".

    A Bayes factor is no p-value, and `fdr` no promise about repeated experiments: both are what
    this model believes, given these cells. Cells of one donor are no independent witnesses of what
    donors have in common.
    """

    def __init__(self, columns, *, mode, n_samples: int, delta, fdr):
        self.columns = columns
        self.mode = mode
        self.n_samples = n_samples
        self.delta = delta
        self.fdr = fdr

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            only = " (mode 'vanilla' marks no genes: use mode 'change')" * (name == "is_de")
            raise KeyError(f"the table has no column {name!r}{only}; it has {list(self.columns)}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["gene"])

    def __str__(self) -> str:
        return self.head(10)

    __repr__ = __str__

    def head(self, n: int) -> str:
        """The first n rows as text."""
        if self.mode == "change":
            about = (
                f"log2 fold change beyond {self.delta:.3g}: {np.sum(self['is_de']):,} of "
                f"{len(self):,} genes at an expected FDR of {self.fdr:g}."
            )
        else:
            about = (
                f"rho_a > rho_b in {self.n_samples:,} pairs of cells. A sure direction need not be "
                "a true difference: mode 'change' marks genes."
            )
        lines = [f"{about} Bayes factors are no p-values."]
        shown = {name: [_short(v) for v in column[:n]] for name, column in self.columns.items()}
        widths = {name: max(len(name), *map(len, values)) for name, values in shown.items()}
        lines.append("  ".join(name.rjust(widths[name]) for name in shown))
        for i in range(min(n, len(self))):
            lines.append("  ".join(shown[name][i].rjust(widths[name]) for name in shown))
        if len(self) > n:
            lines.append(f"... {len(self) - n:,} more")
        return "\n".join(lines)

    def named(self, group: str, comparison: str) -> DifferentialExpression:
        """The same table with two more columns, the names of a and b: `group`, `comparison`."""
        columns = {
            "gene": self.columns["gene"],
            "group": np.full(len(self), group),
            "comparison": np.full(len(self), comparison),
        }
        return DifferentialExpression(
            columns | self.columns,
            mode=self.mode,
            n_samples=self.n_samples,
            delta=self.delta,
            fdr=self.fdr,
        )

    def to_csv(self, path) -> None:
        """Write all rows, with a first line of column names.

        Warns of genes that a spreadsheet takes for formulas.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*[column.tolist() for column in self.columns.values()]))
        warn_of_formulas(map(str, self["gene"]))

    def volcano(self, path, n_labels: int = 16) -> None:
        """Draw Bayes factors against fold changes into a picture file (.png, .pdf, .svg).

        The first genes of either side are named.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.add_subplot()
        x, y = self["lfc_mean"], self["bayes_factor"]
        over = "a over b"
        if "group" in self.columns:
            over = f"{self['group'][0]} over {self['comparison'][0]}"
        if self.mode == "change":
            self._draw_marked(axes, x, y)
            axes.set_xlabel(f"log2 fold change of the groups' means, {over}", parse_math=False)
            axes.set_ylabel("log Bayes factor (nats)")
        else:
            y = np.abs(y)
            axes.scatter(x, y, s=16, color=GREY, alpha=0.7, linewidths=0)
            axes.set_xlabel(f"log2 fold change {over}, mean over pairs", parse_math=False)
            axes.set_ylabel("|log Bayes factor| (nats)")
        reach = 1.35 * max(np.max(np.abs(x)), 1e-3)
        axes.set_xlim(-reach, reach)
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            _name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)
        if self.mode == "change":
            title = f"beyond {self.delta:.2g} (dotted), expected FDR {self.fdr:g}"
            figure.legend(loc="outside lower center", ncols=3, frameon=False, title=title)
        figure.savefig(path, dpi=150)

    def _draw_marked(self, axes, x, y) -> None:
        """The genes of mode "change" in three colours, and delta to either side."""
        is_de = self["is_de"]
        for chosen, color, label in (
            (is_de & (x <= 0), BLUE, "higher in b"),
            (~is_de, GREY, "not marked"),
            (is_de & (x > 0), RED, "higher in a"),
        ):
            label = f"{label} ({np.sum(chosen):,} genes)"
            axes.scatter(
                x[chosen], y[chosen], s=16, color=color, alpha=0.7, linewidths=0, label=label
            )
        for side in (-self.delta, self.delta):
            axes.axvline(side, color=GREY, linewidth=0.8, linestyle=":")


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def _name_genes(axes, names, x, y, edge) -> None:
    """Names in a column at one edge, each with a line to its point, so that few lines cross."""
    bottom, top = axes.get_ylim()
    for i, k in enumerate(np.lexsort((-np.abs(x), -y))):
        axes.annotate(
            names[k],
            (x[k], y[k]),
            parse_math=False,  # a `$` in a name is a `$`
            xytext=(0.98 * edge, top - (i + 1) * 0.06 * (top - bottom)),
            fontsize=8,
            ha="left" if edge < 0 else "right",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#BBBBBB",
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


# ------------------------------------------------------------------------------------- the question
class Cells(NamedTuple):
    """All cells that are asked about, as the model's `minibatches` have them."""

    counts: Any  # (n_cells, n_genes)
    codes: np.ndarray  # of their batches, (n_cells,)
    covariates: np.ndarray  # (n_cells, n_covariates)

    def latent(self, model: Any, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of q(z | x), (n, n_latent), of the cells at n positions."""
        return model.latent_of([take_rows(column, cells) for column in self])


class ComparesGroups:
    """What a trained model with `latent` and `generative` is asked about two groups of cells.

    SCVI inherits it.
    """

    minibatches: Callable[..., Any]  # the model's: SCVI.minibatches
    latent_of: Callable[..., tuple[np.ndarray, np.ndarray]]  # and SCVI.latent_of

    def differential_expression(
        self,
        counts,
        group_a: Array,
        group_b: Array | None = None,
        mode: str = "change",
        n_samples: int = 5000,
        delta: float | None = None,
        fdr: float = 0.05,
        batch: Array | str | None = None,
        genes=None,
        seed: int = 0,
        layer: str | None = None,
    ) -> DifferentialExpression:
        """Which genes two groups of cells express differently: a DifferentialExpression.

        group_a, group_b: boolean masks (n_cells,), by name of the cell where they are Series, or
        positions of cells; group_b=None: all other cells. Cells without counts are left out. Both
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
        genes: names (n_genes,), by default the model's.

        Warns of a group whose means the model has not learnt. Raises ValueError for groups that are
        empty, overlap, or are no masks or positions, and for unknown batches. "vanilla" takes
        memory for n_samples * n_genes numbers.
        """
        one_of("mode", mode, ("change", "vanilla"))
        if delta is not None and not 0 <= delta < np.inf:
            raise ValueError(
                f"delta must be at least 0, or None to follow from the data, not {delta}"
            )
        if not 0 < fdr < 1:
            raise ValueError(f"fdr must be between 0 and 1, not {fdr}")
        n_samples = whole_number("n_samples", n_samples)
        # in memory: draws are of any cells, in any order
        told = Cells(*self.minibatches(counts, batch, layer, on_disk=False).columns)
        x = told.counts
        names = _gene_names(self, counts, genes)
        cells = cells_of(counts)
        groups = _groups(
            x,
            _by_cell_if_mask(group_a, cells, "group_a"),
            _by_cell_if_mask(group_b, cells, "group_b"),
        )
        rng = backend.generator([seed, POSTERIOR])
        both = np.concatenate(groups)
        # Mode "vanilla" needs the sums too, but only to warn of what the model has not learnt.
        sums_a, sums_b = [_sums(self, told, cells, both, n_samples, rng) for cells in groups]
        _warn_of_misfit("group_a", sums_a)
        _warn_of_misfit("group_b", sums_b)
        threshold = None
        if mode == "vanilla":
            found = _of_pairs(*_pairs(self, told, groups, n_samples, seed))
        else:
            found, threshold = _of_means(sums_a, sums_b, delta)
        mean_a, nonzero_a = _raw(take_rows(x, groups[0]))
        mean_b, nonzero_b = _raw(take_rows(x, groups[1]))
        columns = dict(
            gene=names,
            **found,
            raw_mean_a=mean_a,
            raw_mean_b=mean_b,
            nonzero_a=nonzero_a,
            nonzero_b=nonzero_b,
        )
        if mode == "change":
            columns["is_de"] = _expected_fdr_set(special.expit(-found["bayes_factor"]), fdr)
        z_score = np.abs(found["lfc_mean"]) / np.maximum(found["lfc_std"], 1e-12)
        evidence = found["bayes_factor"] if mode == "change" else np.abs(found["bayes_factor"])
        order = np.lexsort((-z_score, -evidence))
        return DifferentialExpression(
            {name: column[order] for name, column in columns.items()},
            mode=mode,
            n_samples=n_samples,
            delta=threshold,
            fdr=fdr,
        )


def _raw(x):
    """Mean count and fraction of cells with a count, of each gene: two (n_genes,)."""
    return (
        np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / x.shape[0],
        np.asarray((x != 0).sum(axis=0)).ravel() / x.shape[0],
    )


# ------------------------------------------------------------------------------- vanilla: the pairs
def _pairs(model, told: Cells, groups, n_samples, seed):
    """Random pairs of cells: log2 fold changes (n_samples, n_genes), and mean rho (2, n_genes).

    groups: the positions of the cells of a and of b.
    """
    # The same random numbers as those of `_sums`, which is intended: a table is made of one or of
    # the other, and in this mode it does not depend on whether sums were taken before.
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
            no_library = np.zeros((i.size, 1), model.dtype)  # rho is the same for any
            like = np.tile(drawn[pairs], 2)
            inputs = (
                z.reshape(i.size, -1),
                no_library,
                told.codes[like],
                told.covariates[like],
            )
            decoded = model.generative(*[backend.to_device(a, model.device) for a in inputs])
            log_rho = decoded["log_rho"].numpy().reshape(*i.shape, -1)
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
        held = np.sum(part > 0, axis=0) + 0.5 * np.sum(part == 0, axis=0)
        p[genes] = (held + 0.5) / (n + 1)  # the mean under Jeffreys' prior, never 0 or 1
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


def _sums(model, told: Cells, cells, both, n_samples, rng) -> Sums:
    """Sums over the cells at these positions, with n_samples draws of z or more in all.

    both: positions of the cells of both groups, whose batches and covariates are drawn for the
    exposure. Counts that ZINB expects include its structural zeros.
    """
    of_counts = moments(take_rows(told.counts, cells))
    total = of_counts.totals
    mean, std = told.latent(model, cells)
    n_draws = -(-n_samples // len(cells))  # of each cell, rounded up
    draws = np.repeat(np.arange(len(cells)), n_draws)
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
                drawn = rng.choice(both, len(i))
                fraction = _expected_counts(model, z, size, told, like=drawn)[0] / size
            of_draws += [np.sum(of_each, axis=0) for of_each in (mu, variance, fraction)]
    expected, variance, fraction = of_draws / n_draws  # each summed over cells
    exposure = np.full(model.n_genes, total.sum())  # of a gene that the model holds impossible
    possible = np.minimum(expected, fraction) > 0.0
    np.divide(expected * len(cells), fraction, out=exposure, where=possible)
    excess_of_model = (variance - expected) / (expected + 0.5) ** 2
    excess = np.maximum(excess_of_model, _observed_excess(of_counts))
    return Sums(of_counts.of_genes, expected, np.maximum(excess, 0.0), exposure, len(cells))


def _observed_excess(of_counts: Moments) -> np.ndarray:
    """Sums.excess as the cells show it: their counts x scatter around total * fraction.

    The variance of the sum of x over n cells is n / (n - 1) sum (x - total * fraction)^2, where
    fraction = sum x / sum total.
    """
    observed, total = of_counts.of_genes, of_counts.totals
    n = len(total)
    fraction = observed / total.sum()
    squares = of_counts.squares - 2.0 * fraction * of_counts.with_totals
    variance = (squares + fraction**2 * np.sum(total**2)) * n / max(1, n - 1)
    return (variance - observed) / (observed + 0.5) ** 2


def _expected_counts(model, z, size, told: Cells, like):
    """Mean and variance (n, n_genes) of counts of cells with these z and totals (n, 1).

    Each in the batch, and with the covariates, of the cell at the position that `like` has for it.

    (That of posterior.py by this name begins with counts, and has means only.)
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
    """Columns (n_genes,) of mode "change", and its threshold: delta, unless that is None."""
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
    average over genes, each weighted by how exactly it is known. 4 standard deviations are chance.
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


# --------------------------------------------------------------------------------- genes and groups
def _gene_names(model, counts, genes) -> np.ndarray:
    """Names of the genes: those given, or the model's, or the counts', or gene_0, gene_1 ..."""
    given = [
        names
        for names in (
            genes,
            model.genes,
            genes_of(counts),
        )
        if names is not None
    ]
    names = (
        np.asarray(given[0]).astype(str)
        if given
        else np.array([f"gene_{i}" for i in range(model.n_genes)])
    )
    if names.shape != (model.n_genes,):
        raise ValueError(
            f"genes: has shape {names.shape}, must be the names of the {model.n_genes} genes of "
            "the model"
        )
    return names


def _groups(x, group_a, group_b) -> list:
    """Positions of the cells with counts in each of two groups; ValueError for what is none."""
    n_cells = x.shape[0]
    a = _positions(group_a, n_cells, "group_a")
    b = (
        np.setdiff1d(np.arange(n_cells), a)
        if group_b is None
        else _positions(group_b, n_cells, "group_b")
    )
    both = np.intersect1d(a, b)
    if len(both):
        raise ValueError(
            f"group_a and group_b share {len(both)} cells, such as {both[0]}; a cell can be in one "
            "only"
        )
    has_counts = np.asarray(x.sum(axis=1)).ravel() > 0
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

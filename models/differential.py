"""Which genes two groups of cells express differently: what a posterior is sure of, and is not.

This is a lesson.

Know before reading: scvi.py's docstring, posterior.py's, and Bayes' rule for two hypotheses.

mode="vanilla" is the question of the chapter. Draw a cell of each group and z from the posterior
of each, and decode both:

    p = share of pairs with rho_a > rho_b,       Bayes factor = log p / (1 - p)

The pairs differ in their cells and in their z. The weights of the decoder are the same in all of
them: fitted once, to these very cells. A gene that is equal in truth, but was counted 5 % more
often in a by chance, is higher in the decoder too, and the pairs agree on it: p is next to 1, of a
difference that is none. How much of this there is depends on how closely the decoder was fitted. Of
the genes that this mode would mark among 500 and 500 simulated cells at an expected 5 % of false
ones, 18 % were false (77 % under an earlier weight decay). So it says which direction is the more
probable one, and marks no genes. It errs the other way as well: of a group that is too small to be
worth a direction of z (20 cells of 1,000), only a quarter of the log fold changes is left.

mode="change" asks for the fold change between the means of the groups, and lets the counts answer.
The model says what counts cannot: how many a gene would get in these batches and libraries if all
expression were its own.

    exposure = counts that the model expects of the group / the share that it expects of the gene
               in batches as both groups have them
    share    = counts / exposure

With one batch, and depths that are alike for all types of cells, the exposure is the number of all
counts; the share that the model expects is a mean over cells, deep and shallow ones alike. What is
left is chance, and its size is known: counting, overdispersion, and cells that differ
(`_log_share`).

    lfc = log2 share_a / share_b  ~  Normal(true fold change, variance by chance)

How much of lfc is to be believed depends on how many genes change at all, and by how much. The
genes say that together (`_two_kinds`): most of them lie as close to 0 as chance would have it, some
lie far away. This is an empirical prior, and Bayes' rule then answers for each gene.

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
from models.counts import moments
from models.files import warn_of_formulas
from models.inputs import one_of, whole_number
from models.posterior import BUDGET, POSTERIOR, count_distribution

LEAST_DELTA = 0.25  # log2 fold change (19 %): what delta is at least where it follows from the data
KINDS = np.array([0.1, 1.0])  # log2 fold changes of the two kinds of genes, to begin with
MISFIT = 0.15  # nats beyond chance by which the model may miss a group's means without a warning
BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"


# ---------------------------------------------------------------------------------------- the table
class DifferentialExpression:
    """Genes compared between two groups of cells a and b, one per row, best first.

    `table["lfc_mean"]` is a column. columns, a dict of arrays (n_genes,):
      gene               name
      probability        of the hypothesis, p. "change": that the log2 fold change between the means
                         of the groups lies beyond delta, on its more probable side. "vanilla": that
                         rho_a > rho_b in a random pair of cells; p = (k + 1/2) / (n + 1) where it
                         held in k of n pairs, and a tie counts half
      bayes_factor       log p / (1 - p), in nats: log posterior odds. "vanilla": n pairs bound its
                         size by log(2 n + 1)
      lfc_mean, lfc_std  of the log2 fold change, a over b. "change": mean and standard deviation of
                         what is believed of it, drawn towards 0 as far as chance may have made it.
                         "vanilla": over pairs, so the spread is that of cells and of their z
      rho_a, rho_b       expression fraction of each group, 1 for all genes together. "vanilla": the
                         model's, mean over pairs. "change": the share of the counts, batches
                         corrected; log2(rho_a / rho_b) is the fold change before it is drawn
                         towards 0
      raw_mean_a, raw_mean_b, nonzero_a, nonzero_b
                         mean count and fraction of cells with a count, in the data as given: with
                         depth and batch in them

    "change" alone has
      is_de              in the largest set of genes of which an expected share of at most `fdr` is
                         false

    and "vanilla" alone
      lfc_median         over pairs
      probability_error  Monte Carlo standard error, sqrt(p (1 - p) / n): pairs are independent

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
        x = self["lfc_mean"]
        if self.mode == "change":
            self._draw_marked(axes, x)
        else:
            axes.scatter(x, np.abs(self["bayes_factor"]), s=16, color=GREY, alpha=0.7, linewidths=0)
        reach = 1.35 * max(np.max(np.abs(x)), 1e-3)
        over = (
            "of the groups' means, a over b"
            if self.mode == "change"
            else "a over b, mean over pairs"
        )
        axes.set(
            xlim=(-reach, reach),
            xlabel=f"log2 fold change {over}",
            ylabel="log Bayes factor (nats)"
            if self.mode == "change"
            else "|log Bayes factor| (nats)",
        )
        y = np.abs(self["bayes_factor"]) if self.mode == "vanilla" else self["bayes_factor"]
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            _name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)
        if self.mode == "change":
            title = f"beyond {self.delta:.2g} (dotted), expected FDR {self.fdr:g}"
            figure.legend(loc="outside lower center", ncols=3, frameon=False, title=title)
        figure.savefig(path, dpi=150)

    def _draw_marked(self, axes, x) -> None:
        """The genes of mode "change" in three colours, and delta to either side."""
        y, is_de = self["bayes_factor"], self["is_de"]
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
class ComparesGroups:
    """What a trained model with `latent` and `generative` is asked about two groups of cells.

    SCVI inherits it.
    """

    minibatches: Callable[..., Any]  # the model's: SCVI.minibatches

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

        group_a, group_b: boolean masks (n_cells,) or positions of cells; group_b=None: all other
        cells. Cells without counts are left out. Both groups are decoded in the same batches, drawn
        in the proportions of the two together: so batches are averaged over.

        mode: "change", a log2 fold change of the groups' means beyond delta, to one side, sorted by
        its probability; or "vanilla", rho_a > rho_b in a random pair of cells, sorted by the size
        of the Bayes factor (course, block 5, "Uses: differential gene expression"; Lopez et al.
        2018). n_samples: pairs of cells, or for "change" draws of z in each group, at least one per
        cell. delta: None for 0.25 (19 %), or the median size of the fold changes where that is
        larger; then a gene has changed that changed more than the typical one. fdr: expected share
        of genes with a false hypothesis (or side) among those marked `is_de` (Newton et al. 2004).
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
        x, codes = self.minibatches(counts, batch, layer, on_disk=False).columns
        names = _gene_names(self, counts, genes)
        cells = _groups(x, group_a, group_b)
        rng = backend.generator([seed, POSTERIOR])
        batches = codes[np.concatenate(cells)]
        groups = [_sums(self, x, codes, part, batches, n_samples, rng) for part in cells]
        for name, group in zip(("group_a", "group_b"), groups):
            _warn_of_misfit(name, group)
        if mode == "vanilla":
            delta = None
            found = _of_pairs(*_pairs(self, x, codes, cells, n_samples, seed))
        else:
            found, delta = _of_means(groups[0], groups[1], delta)
        mean_a, nonzero_a = _raw(take_rows(x, cells[0]))
        mean_b, nonzero_b = _raw(take_rows(x, cells[1]))
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
            delta=delta,
            fdr=fdr,
        )


def _raw(x):
    """Mean count and fraction of cells with a count, of each gene: two (n_genes,)."""
    return (
        np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / x.shape[0],
        np.asarray((x != 0).sum(axis=0)).ravel() / x.shape[0],
    )


# ------------------------------------------------------------------------------- vanilla: the pairs
def _pairs(model, x, codes, groups, n_samples, seed):
    """Random pairs of cells: log2 fold changes (n_samples, n_genes), and mean rho (2, n_genes)."""
    rng = backend.generator([seed, POSTERIOR])
    picked = np.stack([cells[rng.integers(len(cells), size=n_samples)] for cells in groups])
    in_batch = codes[rng.choice(np.concatenate(groups), n_samples)]
    cells, at = np.unique(picked, return_inverse=True)
    at = at.reshape(picked.shape)
    mean, std = model.latent(
        take_rows(x, cells), np.asarray(model.batches)[codes[cells]], return_std=True
    )
    lfc, rho = np.empty((n_samples, model.n_genes), model.dtype), np.zeros((2, model.n_genes))
    step = max(1, BUDGET // (2 * model.n_genes))
    with evaluating(model):
        for start in range(0, n_samples, step):
            of, codes_of = at[:, start : start + step], in_batch[start : start + step]
            z = mean[of] + std[of] * rng.standard_normal(
                (*of.shape, model.n_latent), dtype=model.dtype
            )
            no_library = np.zeros((of.size, 1), model.dtype)  # rho is the same for any
            inputs = z.reshape(of.size, -1), no_library, np.tile(codes_of, 2)
            decoded = model.generative(*[backend.to_device(a, model.device) for a in inputs])
            log_rho = decoded["log_rho"].numpy().reshape(*of.shape, -1)
            rho += np.exp(log_rho).sum(axis=1)
            lfc[start : start + step] = (log_rho[0] - log_rho[1]) / np.log(2.0)
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
    excess: np.ndarray  # variance of the sum beyond that of counting, relative to its mean squared
    exposure: np.ndarray  # expected, over the model's mean share of counts, batches averaged over
    n_cells: int


def _sums(model, x, codes, cells, batches, n_samples, rng) -> Sums:
    """Sums over the cells at these positions of x; each has as many draws of z as make n_samples.

    batches: codes (any number,) from which those are drawn in which shares are expected. What is
    compared is expected counts: of ZINB, with its structural zeros.
    """
    part, own = take_rows(x, cells), codes[cells]
    counted = moments(part)
    total = counted.totals
    mean, std = model.latent(part, np.asarray(model.batches)[own], return_std=True)
    n_draws = -(-n_samples // len(cells))
    draws = np.repeat(np.arange(len(cells)), n_draws)
    step = max(1, BUDGET // model.n_genes)
    sums = np.zeros((3, model.n_genes))
    with evaluating(model):
        for start in range(0, len(draws), step):
            i = draws[start : start + step]
            size = total[i][:, None]
            z = mean[i] + std[i] * rng.standard_normal((len(i), model.n_latent), dtype=model.dtype)
            mu, variance = _expected_counts(model, z, size, own[i])
            share = mu / size
            if model.n_batches > 1:
                share = _expected_counts(model, z, size, rng.choice(batches, len(i)))[0] / size
            sums += [np.sum(a, axis=0) for a in (mu, variance, share)]
    expected, variance, share = sums / n_draws
    exposure = np.full(model.n_genes, total.sum())  # of a gene that the model holds impossible
    np.divide(expected * len(cells), share, out=exposure, where=np.minimum(expected, share) > 0.0)
    excess_of_model = (variance - expected) / (expected + 0.5) ** 2
    excess = np.maximum(excess_of_model, _observed_excess(counted))
    return Sums(counted.of_genes, expected, np.maximum(excess, 0.0), exposure, len(cells))


def _observed_excess(counted) -> np.ndarray:
    """Sums.excess as the cells show it, from their `moments`: they scatter around total * fraction.

    The variance of the sum of x over n cells is n / (n - 1) sum (x - total * fraction)^2, where
    fraction = sum x / sum total.
    """
    n, observed, total = len(counted.totals), counted.of_genes, counted.totals
    fraction = observed / total.sum()
    squares = counted.squares - 2.0 * fraction * counted.with_totals
    variance = (squares + fraction**2 * np.sum(total**2)) * n / max(1, n - 1)
    return (variance - observed) / (observed + 0.5) ** 2


def _expected_counts(model, z, size, codes):
    """Mean and variance (n, n_genes) of counts of cells with these z, totals (n, 1) and batches."""
    log_size = np.log(size).astype(model.dtype)
    inputs = [backend.to_device(a, model.device) for a in (z, log_size, codes)]
    parameters = {
        name: p.data if isinstance(p, Tensor) else p
        for name, p in model.generative(*inputs).items()
    }
    counts = count_distribution(model, parameters)
    return [backend.to_host(a).astype(np.float64) for a in (counts.mean, counts.variance)]


def _log_share(group: Sums, alike):
    """log of a group's share of counts over `alike`, that of both together, and its variance.

    Two (n_genes,), in nats; alike (n_genes,). By the delta method counting makes a variance of
    1 / count, and what exceeds it comes on top. Half a count is added to what was counted, and to
    what would have been if the groups were alike: no counts then say little, not minus infinity.
    """
    counted = group.observed + 0.5
    if_alike = alike * group.exposure + 0.5
    return np.log(counted / if_alike), 1.0 / counted + group.excess


def _of_means(a: Sums, b: Sums, delta):
    """Columns (n_genes,) of mode "change", and its delta."""
    alike = (a.observed + b.observed) / (a.exposure + b.exposure)
    log_a, variance_a = _log_share(a, alike)
    log_b, variance_b = _log_share(b, alike)
    lfc = (log_a - log_b) / np.log(2.0)
    believed = _two_kinds(lfc, (variance_a + variance_b) / np.log(2.0) ** 2)
    weight = np.exp(believed.log_weight)
    mean = np.sum(weight * believed.mean, axis=0)
    square = np.sum(weight * (believed.mean**2 + believed.variance), axis=0)
    if delta is None:
        delta = max(LEAST_DELTA, float(np.median(np.abs(mean))))
    log_odds = np.maximum(
        _log_odds_above(believed, delta), _log_odds_above(believed.turned(), delta)
    )
    columns = dict(
        probability=special.expit(log_odds),
        bayes_factor=log_odds,
        lfc_mean=mean,
        lfc_std=np.sqrt(np.maximum(square - mean**2, 0.0)),
        rho_a=alike * np.exp(log_a),
        rho_b=alike * np.exp(log_b),
    )
    return columns, delta


class Mixture(NamedTuple):
    """Every gene's fold change as a mixture of two normals: if it is alike, and if it changed.

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

        alike ~ Normal(0, narrow),    changed ~ Normal(0, wide),    lfc ~ Normal(true, variance)

    How many are of which kind, narrow and wide are those that make all lfc together most probable
    (empirical Bayes: Efron 2008, section 2; Stephens 2017), found by expectation-maximisation, as
    if one gene of each kind (KINDS) had been seen before. Then Bayes' rule says of each gene how
    probable either kind is, and what it is in each: normal, and the nearer to 0 the more its own
    variance exceeds that of the kind.
    """
    share, spread = np.array([0.5, 0.5]), KINDS**2
    for _ in range(500):
        marginal = spread[:, None] + variance
        log_weight = np.log(share)[:, None] - 0.5 * (np.log(marginal) + lfc**2 / marginal)
        log_weight = log_weight - special.logsumexp(log_weight, axis=0)
        shrink = spread[:, None] / marginal
        found = Mixture(log_weight, shrink * lfc, shrink * variance)
        weight = np.exp(log_weight)
        n = weight.sum(axis=1) + 1.0
        share = n / n.sum()
        spread = (np.sum(weight * (found.mean**2 + found.variance), axis=1) + KINDS**2) / n
    return found


def _log_odds_above(believed: Mixture, delta) -> np.ndarray:
    """log of p / (1 - p), p the probability of a fold change above delta: (n_genes,)."""
    z = (believed.mean - delta) / np.sqrt(believed.variance)
    above = special.logsumexp(believed.log_weight + special.log_ndtr(z), axis=0)
    below = special.logsumexp(believed.log_weight + special.log_ndtr(-z), axis=0)
    return above - below


def _expected_fdr_set(error, fdr) -> np.ndarray:
    """The largest set of genes, surest first, with an expected share of false ones of at most fdr.

    error: the probability that a gene's hypothesis is false (n_genes,). Returns a mask.
    """
    order = np.argsort(error, kind="stable")
    expected = np.cumsum(error[order]) / np.arange(1, len(order) + 1)
    chosen = np.zeros(len(order), bool)
    chosen[order[: np.searchsorted(expected, fdr, side="right")]] = True
    return chosen


def _warn_of_misfit(name: str, group: Sums) -> None:
    """Warn if a group's means are not those that the model expects, by more than chance explains.

    excess: by how much squared log ratios of observed to expected counts exceed their variances, on
    average over genes, each weighted by how exactly it is known. 4 standard deviations are chance.
    """
    log_ratio, variance = _log_share(group._replace(exposure=group.expected), 1.0)
    weight = 1.0 / variance
    excess = np.sum(weight * (log_ratio**2 - variance)) / weight.sum()
    if excess > max(MISFIT**2, 4.0 * np.sqrt(2.0 * len(weight)) / weight.sum()):
        factor = np.exp(np.sqrt(excess))
        warnings.warn(
            f"{name}: its {group.n_cells} cells have other means than the model expects of them, "
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
            getattr(counts, "genes", getattr(counts, "var_names", None)),
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
    counted = np.asarray(x.sum(axis=1)).ravel() > 0
    for name, cells in (("group_a", a), ("group_b", b)):
        if not np.any(counted[cells]):
            raise ValueError(f"{name} holds no cells" + " with counts" * (len(cells) > 0))
    return [cells[counted[cells]] for cells in (a, b)]


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

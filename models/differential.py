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
measured in tests/benchmarks/differential.py; the README there has the table.

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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, special

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import Blocks, pieces, take_rows
from minigrad.fit import evaluating
from minigrad.notebook import as_frame, as_html, as_picture, short
from minigrad.tensor import Tensor
from models.counts import library_size, moments
from models.files import warn_of_formulas
from models.inputs import one_of, whole_number
from models.labels import by_cell, cells_of, genes_of, is_missing
from models.measured import in_words, unmeasured_in
from models.posterior import BUDGET, POSTERIOR, count_distribution

LEAST_DELTA = 0.25  # log2 fold change (19 %): what delta is at least where it follows from the data
KINDS = np.array([0.1, 1.0])  # narrow and wide, of _two_kinds, to begin with: log2 fold changes
LEAST_SHARED = 0.1  # share of the groups' cells in common batches, below which a warning is given
MISFIT = 0.15  # nats beyond chance by which the model may miss a group's means without a warning
BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"
REST = "rest"  # how the table calls all cells that are not in group a


# ---------------------------------------------------------------------------------------- the table
class Groups(NamedTuple):
    """Two groups of cells that were compared."""

    a: str  # its name: a label, or "a" where it was given as a mask
    b: str  # its name; "rest" for all other cells
    n_a: int  # cells with counts
    n_b: int
    delta: float | None  # log2 fold change of mode "change"; None in mode "vanilla"


class DifferentialExpression:
    """Genes compared between two groups of cells a and b, one per row, best first.

    `table["lfc_mean"]` is a column, and `table[table["is_de"]]` or `table[:20]` a table of some
    rows; as in pandas, `for name in table` goes through the names of columns, and `len(table)` is
    the number of rows. Several comparisons stand one below the other. columns, a dict of arrays
    (n_rows,):
      group, comparison  names of a and b: labels, or "a" and "b" for masks; "rest" for all other
                         cells
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
                         `fdr` is false, among those of this comparison

    and "vanilla" alone
      lfc_median         over pairs
      probability_error  Monte Carlo standard error, sqrt(p (1 - p) / n): pairs are independent

    mode, n_samples and fdr are as asked for; groups: a `Groups` for each comparison that has rows
    here, with the delta that "change" used there.

    A Bayes factor is no p-value, and `fdr` no promise about repeated experiments: both are what
    this model believes, given these cells. Cells of one donor are no independent witnesses of what
    donors have in common.
    """

    def __init__(self, columns, *, mode, n_samples: int, fdr: float, groups: list[Groups]):
        self.columns = columns
        self.mode = mode
        self.n_samples = n_samples
        self.fdr = fdr
        self.groups = groups

    def __getitem__(self, name):
        if not isinstance(name, str):
            return self._of_rows(name)
        if name not in self.columns:
            only = " (mode 'vanilla' marks no genes: use mode 'change')" * (name == "is_de")
            raise KeyError(f"the table has no column {name!r}{only}; it has {list(self.columns)}")
        return self.columns[name]

    def _of_rows(self, rows) -> DifferentialExpression:
        """The table of the rows of a slice, a mask, positions or one position."""
        chosen = np.atleast_1d(np.arange(len(self))[rows])
        columns = {name: column[chosen] for name, column in self.columns.items()}
        compared = set(zip(columns["group"].tolist(), columns["comparison"].tolist()))
        there = [groups for groups in self.groups if (groups.a, groups.b) in compared]
        return DifferentialExpression(
            columns,
            mode=self.mode,
            n_samples=self.n_samples,
            fdr=self.fdr,
            groups=there or self.groups,
        )

    def __len__(self) -> int:
        return len(self.columns["gene"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    @property
    def delta(self) -> float | None:
        """That of the first comparison; `groups` has all."""
        return self.groups[0].delta

    def _comparisons(self) -> Iterator[tuple[Groups, DifferentialExpression]]:
        """Each pair of groups that has a row, with its part of the table."""
        for groups in self.groups:
            mine = (self["group"] == groups.a) & (self["comparison"] == groups.b)
            if mine.any():
                yield groups, self[mine]

    def __str__(self) -> str:
        return self.head(10 if len(self.groups) == 1 else 3)

    __repr__ = __str__

    def head(self, n: int) -> str:
        """The first n rows of each comparison as text, below a line that names the groups."""
        parts = []
        for groups, table in self._comparisons():
            lines = [table._about(groups), *_aligned(table._shown(n))]
            if len(table) > n:
                lines.append(f"... {len(table) - n:,} more")
            parts.append("\n".join(lines))
        return "\n\n".join(parts) or "no rows"

    def _shown(self, n: int) -> dict[str, list[str]]:
        """The first n rows of the columns that differ within a comparison, as texts."""
        return {
            name: [short(value) for value in column[:n]]
            for name, column in self.columns.items()
            if name not in ("group", "comparison")
        }

    def _about(self, groups: Groups) -> str:
        """What the rows of one comparison are, in two sentences."""
        if self.mode == "change":
            about = (
                f"log2 fold change beyond {groups.delta:.3g}: {np.sum(self['is_de']):,} of "
                f"{len(self):,} genes at an expected FDR of {self.fdr:g}."
            )
        else:
            about = (
                f"rho_a > rho_b in {self.n_samples:,} pairs of cells. A sure direction need not be "
                "a true difference: mode 'change' marks genes."
            )
        return (
            f"a: {groups.a} ({groups.n_a:,} cells), b: {groups.b} ({groups.n_b:,} cells)\n"
            f"{about} Bayes factors are no p-values."
        )

    def _repr_html_(self) -> str:
        parts = []
        for groups, table in self._comparisons():
            shown = table._shown(10 if len(self.groups) == 1 else 3)
            parts.append(as_html(list(shown), zip(*shown.values()), table._about(groups)))
        return "".join(parts) or "<p>no rows</p>"

    def to_frame(self) -> Any:
        """All rows as a pandas DataFrame. ImportError where pandas is not installed."""
        return as_frame(self.columns)

    def to_csv(self, path) -> None:
        """Write all rows, with a first line of column names.

        Warns of genes that a spreadsheet takes for formulas.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*[column.tolist() for column in self.columns.values()]))
        texts = {name for key in ("group", "comparison", "gene") for name in self[key].tolist()}
        warn_of_formulas(sorted(texts))

    def volcano(self, path=None, n_labels: int = 16) -> Any:
        """Draw Bayes factors against fold changes, one panel for each comparison.

        The first genes of either side are named: n_labels in one panel, half of that in several.
        With a path (.png, .pdf, .svg) the picture is written and the path returned, without one
        the figure is returned. ValueError for a table without rows.
        """
        from matplotlib.figure import Figure

        parts = list(self._comparisons())
        if not parts:
            raise ValueError("volcano: the table has no rows; draw one that has")
        n_columns = min(len(parts), 3)
        n_rows = -(-len(parts) // n_columns)
        size = (8, 5.5) if len(parts) == 1 else (5.0 * n_columns, 4.2 * n_rows)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes in panels[len(parts) :]:
            axes.axis("off")
        for axes, (groups, table) in zip(panels, parts):
            table._draw(axes, groups, n_labels if len(parts) == 1 else n_labels // 2)
            if self.mode == "change" and len(parts) > 1:  # else the legend says it
                table._write_numbers(axes)
        if self.mode == "change":
            _legend(figure, *parts[0], is_only=len(parts) == 1)
        if path is None:
            return as_picture(figure)
        figure.savefig(path, dpi=150)
        return path

    def _draw(self, axes, groups: Groups, n_labels: int) -> None:
        """The panel of one comparison."""
        x, y = self["lfc_mean"], self["bayes_factor"]
        if self.mode == "change":
            self._draw_marked(axes, x, y, groups)
            axes.set_xlabel("log2 fold change of the groups' means, a over b")
            axes.set_ylabel("log Bayes factor (nats)")
        else:
            y = np.abs(y)
            axes.scatter(x, y, s=16, color=GREY, alpha=0.7, linewidths=0)
            axes.set_xlabel("log2 fold change a over b, mean over pairs")
            axes.set_ylabel("|log Bayes factor| (nats)")
        title = f"a: {groups.a} ({groups.n_a:,} cells)\nb: {groups.b} ({groups.n_b:,} cells)"
        axes.set_title(title, fontsize=10, parse_math=False)
        reach = 1.5 * max(np.max(np.abs(x)), 1e-3)
        axes.set_xlim(-reach, reach)
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            _name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)

    def _draw_marked(self, axes, x, y, groups: Groups) -> None:
        """The genes of mode "change" in three colours, and delta to either side."""
        assert groups.delta is not None  # in this mode
        for chosen, color in zip(self._marked(), (BLUE, GREY, RED)):
            axes.scatter(x[chosen], y[chosen], s=16, color=color, alpha=0.7, linewidths=0)
        for side in (-1, 1):
            axes.axvline(side * groups.delta, color=GREY, linewidth=0.8, linestyle=":")

    def _write_numbers(self, axes) -> None:
        """How many genes are marked on either side, above all that is drawn."""
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.1 * (top - bottom))
        n_lower, _, n_higher = [np.sum(chosen) for chosen in self._marked()]
        for across, n, ha in ((0.02, n_lower, "left"), (0.98, n_higher, "right")):
            where = "b" if ha == "left" else "a"
            text = f"{n:,} genes higher in {where}"
            place = {"transform": axes.transAxes, "ha": ha, "va": "top"}
            axes.text(across, 0.98, text, fontsize=8, color="#555555", **place)

    def _marked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the rows: marked and higher in b, not marked, marked and higher in a."""
        is_de, x = self["is_de"], self["lfc_mean"]
        return is_de & (x <= 0), ~is_de, is_de & (x > 0)


def _legend(figure, groups: Groups, table: DifferentialExpression, is_only: bool) -> None:
    """What the colours mean; of one comparison with names of groups and numbers of genes."""
    from matplotlib.lines import Line2D

    delta = f"{groups.delta:.2g}" if is_only else "delta"
    names = ["higher in b", "not marked", "higher in a"]
    if is_only:
        n_lower, n_others, n_higher = [np.sum(chosen) for chosen in table._marked()]
        names = [
            f"higher in {groups.b} ({n_lower:,} genes)",
            f"not marked ({n_others:,} genes)",
            f"higher in {groups.a} ({n_higher:,} genes)",
        ]
    made = figure.legend(
        [Line2D([], [], color=c, marker="o", linestyle="", alpha=0.7) for c in (BLUE, GREY, RED)],
        names,
        loc="outside lower center",
        ncols=3 if sum(map(len, names)) < 90 else 1,
        fontsize=8,
        columnspacing=1.0,
        handletextpad=0.2,
        frameon=False,
        title=f"beyond {delta} (dotted), expected FDR {table.fdr:g}",
    )
    for text in made.get_texts():
        text.set_parse_math(False)  # a `$` in a label is a `$`


def _aligned(shown: dict[str, list[str]]) -> list[str]:
    """Columns of texts as lines, each column to the right."""
    widths = {name: max(len(name), *map(len, texts)) for name, texts in shown.items()}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    for row in zip(*shown.values()):
        lines.append("  ".join(map(str.rjust, row, widths.values())))
    return lines


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
        columns = _rows_in_memory(self.counts, cells), self.codes[cells], self.covariates[cells]
        return model.latent_of(list(columns))


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
        names = _gene_names(self, counts, genes)
        question = _question(counts, library_size(told.counts) > 0, group_a, group_b, groupby)
        rng = backend.generator([seed, POSTERIOR])
        # Mode "vanilla" needs the sums too: for raw means, and to warn of what was not learnt.
        tallies = _tallies(self, told, question.cells, n_samples, rng)
        measured = _measured(self, counts, told, question)
        names = names[measured]
        tallies = [_of_genes(tally, measured) for tally in tallies]
        for called, tally in zip(question.called, tallies):
            if called:
                _warn_of_misfit(called, _sums(tally))
        _warn_of_groups_that_are_batches(self, told, question)
        parts = []
        groups = []
        for i in question.compared:
            others = [j for j in range(len(tallies)) if j != i]
            a, b = tallies[i], _together([tallies[j] for j in others])
            threshold = None
            if mode == "vanilla":
                rest = np.sort(np.concatenate([question.cells[j] for j in others]))
                lfc, rho = _pairs(self, told, [question.cells[i], rest], n_samples, seed)
                found = _of_pairs(lfc[:, measured], rho[:, measured])
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
    """The columns of one comparison, (n_genes,) each, best first. found: those of its mode."""
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


def _rows_in_memory(x, cells):
    """The rows of these cells, positions in increasing order, read where x lies on the disk."""
    if not isinstance(x, Blocks):
        return take_rows(x, cells)
    return sparse.vstack([part for _, part in pieces(x[cells])], format="csr")


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
    or more, for each cell has one at least. Batches and covariates for Tally.fraction
    are those of random cells of all groups.
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
    whose batches and covariates are drawn for `fraction`.
    Counts that ZINB expects include its structural zeros.
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


def _warn_of_groups_that_are_batches(model, told: Cells, question: Question) -> None:
    """Warn of groups of which the cells are of other batches, or labels of a categorical covariate,
    than those that they are compared with.

    What both share is the sum over labels of the smaller of their two fractions of cells: 1 where
    the fractions are alike, 0 where no label is of both.
    """
    for what, argument, codes, names in _told_labels(model, told):
        fractions = np.array(
            [np.bincount(codes[cells], minlength=len(names)) for cells in question.cells], float
        )
        n_cells = fractions.sum(axis=1, keepdims=True)
        said = []
        for i in question.compared:
            rest = np.delete(fractions, i, axis=0).sum(axis=0)
            of_group, of_rest = fractions[i] / n_cells[i], rest / rest.sum()
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
    """What the model is told of cells: what it is, the argument that told it, the code of each
    cell, (n_cells,), and the label of each code.
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


def _measured(model, counts, told: Cells, question: Question) -> np.ndarray:
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

    cells: list[np.ndarray]  # positions of cells with counts, increasing, in no two groups
    names: list[Any]  # of each group; None for cells that are only in the rest
    compared: list[int]  # numbers of the groups that are a group a
    other: str  # name of what each is compared with
    called: list[str]  # what warnings call each group; "" for those that are not warned of


def _question(counts, has_counts, group_a, group_b, groupby) -> Question:
    """What `differential_expression` was asked; ValueError for what cannot be.

    has_counts: which cells have counts, (n_cells,).
    """
    n_cells = len(has_counts)
    if groupby is None:
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
    labels = _labels(counts, groupby, n_cells)
    names = sorted({label for label in labels if label is not None})
    if group_a is not None:
        group_a, group_b = str(group_a), None if group_b is None else str(group_b)
        masks = []
        for label in (group_a, group_b):
            if label is not None and label not in names:
                there = ", ".join(names[:20]) + " ..." * (len(names) > 20)
                column = groupby if isinstance(groupby, str) else "the label"
                raise ValueError(f"no cell has {column} {label!r}; there are: {there}")
            masks.append(None if label is None else labels == label)
        cells = _two_groups(has_counts, *masks)
        other = REST if group_b is None else group_b
        called = [f"group {group_a!r}", f"group {other!r}"]
        return Question(cells, [group_a, other], [0], other, called)
    if group_b is not None:
        raise ValueError("group_b needs group_a; leave both out to compare every group")
    if len(names) < 2 or 2 * len(names) > n_cells:
        raise ValueError(
            f"groupby has {len(names)} different labels for {n_cells} cells; to compare groups "
            "with the rest takes 2 at least, and 2 cells a group: pass a column of groups"
        )
    cells = [np.flatnonzero((labels == name) & has_counts) for name in names]
    unlabelled = np.flatnonzero(np.array([label is None for label in labels]) & has_counts)
    empty = [name for name, positions in zip(names, cells) if not len(positions)]
    if empty:
        warnings.warn(
            f"groupby: no cell of {', '.join(empty)} has counts; left out of the table",
            stacklevel=3,
        )
    kept: list = [(name, positions) for name, positions in zip(names, cells) if len(positions)]
    compared = list(range(len(kept)))
    if len(unlabelled):
        kept.append((None, unlabelled))
    if len(kept) < 2:
        raise ValueError("groupby: only one group has counts, and there is nothing to compare with")
    called = ["" if name is None else f"group {name!r}" for name, _ in kept]
    return Question(
        [positions for _, positions in kept], [name for name, _ in kept], compared, REST, called
    )


def _labels(counts, groupby, n_cells: int) -> np.ndarray:
    """A label for each cell, an array of str and, where there is none, None."""
    if isinstance(groupby, str):
        obs = getattr(counts, "obs", {})
        if groupby not in obs:
            raise ValueError(
                f"groupby: no column {groupby!r} of cells in the counts; there are: "
                f"{', '.join(map(str, obs)) or 'none'}"
            )
        groupby = obs[groupby]
    if hasattr(groupby, "isna"):  # of pandas, which has more kinds of missing labels
        groupby = groupby.astype(object).where(groupby.notna(), None)
    groupby = by_cell(groupby, cells_of(counts), "groupby")
    given = np.asarray(groupby)
    if given.shape != (n_cells,):
        raise ValueError(
            f"groupby has shape {given.shape}, must be one label for each of {n_cells} cells, or "
            "the name of an obs column"
        )
    labels = np.full(n_cells, None)
    for i, value in enumerate(given.tolist()):
        is_whole = isinstance(value, float) and value.is_integer()  # whole numbers beside a NaN
        if not is_missing(value):
            labels[i] = str(int(value) if is_whole else value)
    return labels


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
            f"group_a and group_b share {len(both)} cells, such as {both[0]}; a cell can be in one "
            "only"
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

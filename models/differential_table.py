"""What differential expression found: a table, and volcano plots of it. This is engineering.

Know before reading: what differential.py says of its two modes. Know after: what every column is,
and what may be concluded from it.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minigrad.checkpoint import whole_file, write_figure
from minigrad.notebook import as_frame, as_html, as_picture, number_of, short
from models.files import warn_of_formulas

BLUE, GREY, RED = "#0072B2", "#999999", "#D55E00"


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
            lines = [table._about(groups), *aligned(table._shown(n))]
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
                f"{number_of(len(self), 'gene')} at an expected FDR of {self.fdr:g}."
            )
        else:
            about = (
                f"rho_a > rho_b in {self.n_samples:,} pairs of cells. A sure direction need not be "
                "a true difference: mode 'change' marks genes."
            )
        return (
            f"a: {groups.a} ({number_of(groups.n_a, 'cell')}), b: {groups.b} "
            f"({number_of(groups.n_b, 'cell')})\n"
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
        rows = zip(*[column.tolist() for column in self.columns.values()])
        with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(rows)
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
            table._draw(axes, groups, n_labels if len(parts) == 1 else n_labels // 2, n_columns)
            if self.mode == "change" and len(parts) > 1:  # else the legend says it
                table._write_numbers(axes, groups)
        if self.mode == "change":
            _legend(figure, *parts[0], is_only=len(parts) == 1)
        if path is None:
            return as_picture(figure)
        return write_figure(figure, path, dpi=150)

    def _draw(self, axes, groups: Groups, n_labels: int, n_columns: int) -> None:
        """The panel of one comparison, in a figure with so many columns of them."""
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
        n_letters = round(9 * axes.get_figure().get_figwidth() / n_columns)  # of a line
        title = [
            *_in_lines(groups.a, n_letters, "a: {} " + f"({number_of(groups.n_a, 'cell')})"),
            *_in_lines(groups.b, n_letters, "b: {} " + f"({number_of(groups.n_b, 'cell')})"),
        ]
        axes.set_title("\n".join(title), fontsize=10, parse_math=False)
        reach = 1.5 * max(np.max(np.abs(x)), 1e-3)
        axes.set_xlim(-reach, reach)
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)

    def _draw_marked(self, axes, x, y, groups: Groups) -> None:
        """The genes of mode "change" in three colours, and delta to either side."""
        assert groups.delta is not None  # in this mode
        for chosen, color in zip(self._marked(), (BLUE, GREY, RED)):
            axes.scatter(x[chosen], y[chosen], s=16, color=color, alpha=0.7, linewidths=0)
        for side in (-1, 1):
            axes.axvline(side * groups.delta, color=GREY, linewidth=0.8, linestyle=":")

    def _write_numbers(self, axes, groups: Groups) -> None:
        """How many genes are marked on either side, above all that is drawn.

        Names that have no room there are the letters of the title.
        """
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom, top + 0.1 * (top - bottom))
        n_lower, _, n_higher = [int(np.sum(chosen)) for chosen in self._marked()]
        for across, n, ha in ((0.02, n_lower, "left"), (0.98, n_higher, "right")):
            letter, name = ("b", groups.b) if ha == "left" else ("a", groups.a)
            where = name if len(name) <= 16 else letter
            text = f"{number_of(n, 'gene')} higher in {where}"
            place = {"transform": axes.transAxes, "ha": ha, "va": "top", "parse_math": False}
            axes.text(across, 0.98, text, fontsize=8, color="#555555", **place)

    def _marked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of the rows: marked and higher in b, not marked, marked and higher in a."""
        is_de, x = self["is_de"], self["lfc_mean"]
        return is_de & (x <= 0), ~is_de, is_de & (x > 0)


def _in_lines(name: str, n_letters: int, text: str) -> list[str]:
    """A text about a group, with its name in place of "{}": itself, or lines of n_letters at most.

    A name that is longer than two lines is cut off.
    """
    said = text.format(name)
    if len(said) <= n_letters:
        return [said]
    if len(name) > 2 * n_letters:
        name = name[: 2 * n_letters] + " ..."
    return textwrap.wrap(text.format(name), n_letters)


def _legend(figure, groups: Groups, table: DifferentialExpression, is_only: bool) -> None:
    """What the colours mean; of one comparison with names of groups and numbers of genes."""
    from matplotlib.lines import Line2D

    delta = f"{groups.delta:.2g}" if is_only else "delta"
    names = ["higher in b", "not marked", "higher in a"]
    if is_only:
        n_lower, n_others, n_higher = [np.sum(chosen) for chosen in table._marked()]
        lines = [
            _in_lines(groups.b, 80, "higher in {} " + f"({number_of(n_lower, 'gene')})"),
            [f"not marked ({number_of(n_others, 'gene')})"],
            _in_lines(groups.a, 80, "higher in {} " + f"({number_of(n_higher, 'gene')})"),
        ]
        names = ["\n".join(of_one) for of_one in lines]
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


def aligned(shown: dict[str, list[str]]) -> list[str]:
    """Columns of texts as lines, each column to the right."""
    widths = {name: max(len(name), *map(len, texts)) for name, texts in shown.items()}
    lines = ["  ".join(name.rjust(width) for name, width in widths.items())]
    for row in zip(*shown.values()):
        lines.append("  ".join(map(str.rjust, row, widths.values())))
    return lines


def name_genes(axes, names, x, y, edge) -> None:
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

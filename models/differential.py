"""Which genes two groups of cells express differently, by a trained scVI.

Know before reading: posterior.py and scvi.py's docstrings.

Know after: what a Bayes factor of differential expression says and does not say.
"""

from __future__ import annotations

import csv

import numpy as np
from scipy import special

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import take_rows
from minigrad.fit import evaluating
from models.autoencoder import sizes
from models.posterior import BUDGET, POSTERIOR


class DifferentialExpression:
    """Genes compared between two groups of cells a and b, one a row, best first. `table["lfc_mean"]` is a column.

    columns, a dict of arrays (n_genes,):
      gene               name
      probability        of the hypothesis: p = (k + 1/2) / (n + 1) where it held in k of n pairs (the mean under
                         Jeffreys' prior, never 0 or 1). "vanilla": rho_a > rho_b; a tie counts half. "change": the
                         log2 fold change is beyond delta, to the side where it more often is
      probability_error  Monte Carlo standard error of it, sqrt(p (1 - p) / n): the pairs are independent draws
      bayes_factor       log p / (1 - p), in nats: log posterior odds, the prior ones being even. n pairs bound its size
                         by log(2 n + 1)
      rho_a, rho_b       mean expression fraction in each group (1 for all genes together), over the same pairs
      lfc_mean, lfc_median, lfc_std
                         of log2(rho_a / rho_b) over pairs; the spread is that of cells and of the posterior together
      raw_mean_a, raw_mean_b, nonzero_a, nonzero_b
                         mean count and fraction of cells with a count, in the data as given: depth and batch included
      is_de              in the largest set of genes whose expected share of false ones is at most `fdr`

    A Bayes factor is no p-value, and `fdr` no frequentist promise: both are what this model believes, given these
    cells. More pairs make the Monte Carlo error smaller, not the cells more, nor the donors. With likelihood "zinb" a
    gene that one group lacks may be explained by structural zeros instead of a small rho: compare the raw columns, or
    train with "nb".
    """

    def __init__(self, columns, *, mode, n_samples: int, delta, fdr):
        self.columns, self.mode, self.n_samples, self.delta, self.fdr = (
            columns,
            mode,
            n_samples,
            delta,
            fdr,
        )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise KeyError(f"the table has no column {name!r}; it has {list(self.columns)}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["gene"])

    def __str__(self) -> str:
        return self.head(10)

    __repr__ = __str__

    def head(self, n: int) -> str:
        """The first n rows as text."""
        hypothesis = (
            "rho_a > rho_b" if self.mode == "vanilla" else f"log2 fold change beyond {self.delta:g}"
        )
        lines = [
            f"{hypothesis} in {self.n_samples:,} pairs of cells; {np.sum(self['is_de']):,} of {len(self):,} genes "
            f"at an expected FDR of {self.fdr:g}. Bayes factors are no p-values."
        ]
        shown = {name: [_short(v) for v in column[:n]] for name, column in self.columns.items()}
        widths = {name: max(len(name), *map(len, values)) for name, values in shown.items()}
        lines.append("  ".join(name.rjust(widths[name]) for name in shown))
        lines += [
            "  ".join(shown[name][i].rjust(widths[name]) for name in shown)
            for i in range(min(n, len(self)))
        ]
        return "\n".join(lines + [f"... {len(self) - n:,} more"] * (len(self) > n))

    def to_csv(self, path) -> None:
        """Write all rows, with a first line of column names."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*[column.tolist() for column in self.columns.values()]))

    def volcano(self, path, n_labels: int = 16) -> None:
        """Draw Bayes factors against fold changes into a picture file (.png, .pdf, .svg); the first genes are named."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.add_subplot()
        x, bayes, is_de = self["lfc_median"], self["bayes_factor"], self["is_de"]
        y = np.abs(bayes) if self.mode == "vanilla" else bayes
        for chosen, color, label in (
            (is_de & (x <= 0), "#0072B2", "higher in b"),
            (~is_de, "#999999", "neither"),
            (is_de & (x > 0), "#D55E00", "higher in a"),
        ):
            axes.scatter(
                x[chosen],
                y[chosen],
                s=16,
                color=color,
                alpha=0.7,
                linewidths=0,
                label=f"{label} ({np.sum(chosen):,} genes)",
            )
        reach = 1.35 * max(np.max(np.abs(x)), 1e-3)
        axes.set(
            xlim=(-reach, reach),
            xlabel="log2 fold change of rho, a over b (median over pairs)",
            ylabel=("|log Bayes factor|" if self.mode == "vanilla" else "log Bayes factor")
            + " (nats)",
        )
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            _name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)
        figure.legend(
            loc="outside lower center", ncols=3, frameon=False, title=f"expected FDR {self.fdr:g}"
        )
        figure.savefig(path, dpi=150)


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def _name_genes(axes, names, x, y, edge) -> None:
    """Names in a column at one edge, each with a line to its point; in an order in which few lines cross."""
    bottom, top = axes.get_ylim()
    for i, k in enumerate(np.lexsort((-np.abs(x), -y))):
        axes.annotate(
            names[k],
            (x[k], y[k]),
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


class ComparesGroups:
    """What a trained model that has `generative` and `latent` is asked about two groups of cells: SCVI inherits it."""

    def differential_expression(
        self,
        counts,
        group_a: Array,
        group_b: Array | None = None,
        mode: str = "vanilla",
        n_samples: int = 5000,
        delta: float = 0.25,
        fdr: float = 0.05,
        batch: Array | str | None = None,
        genes=None,
        seed: int = 0,
        layer: str | None = None,
    ) -> DifferentialExpression:
        """Which genes two groups of cells express differently: a DifferentialExpression, which documents its columns.

        group_a, group_b: boolean masks (n_cells,) or positions of cells; group_b=None: all other cells. n_samples pairs are
        drawn, a random cell of each group and z from the posterior of each, and both are decoded in the same batch, drawn
        in the proportions of the two groups together: so batches are averaged over. Each pair gives two rho to compare
        (course, block 5, "Uses: differential gene expression"; Lopez et al. 2018).
        mode: "vanilla", the hypothesis rho_a > rho_b, sorted by |Bayes factor|; or "change", a log2 fold change beyond
        delta, sorted by probability (of equals, first those whose fold change is more standard deviations from 0). The side
        is part of the hypothesis: a gene that varies much within groups differs within many pairs, to either side alike.
        fdr: expected share of genes with a false hypothesis (or sign) among those marked `is_de` (Newton et al. 2004).
        genes: names (n_genes,), by default the model's. Cells without counts are left out. Memory O(n_samples * n_genes).
        Raises ValueError for groups that are empty, overlap, or are no masks or positions, and for unknown batches.
        """
        if mode not in ("vanilla", "change"):
            raise ValueError(f"mode must be 'vanilla' or 'change', not {mode!r}")
        if not 0 <= delta < np.inf or not 0 < fdr < 1:
            raise ValueError(
                f"delta must be at least 0 and fdr between 0 and 1, not {delta} and {fdr}"
            )
        n_samples = sizes(n_samples=n_samples)[0]
        x, codes = self.minibatches(
            counts, batch, layer, on_disk=False
        ).columns  # pairs are of any cells, in any order
        names, groups = _gene_names(self, counts, genes), _groups(x, group_a, group_b)
        lfc, rho = _pairs(self, x, codes, groups, n_samples, seed)
        found, raw = (
            _summary(lfc, delta if mode == "change" else None),
            [_raw(take_rows(x, cells)) for cells in groups],
        )
        p, evidence = (
            found["probability"],
            np.abs(found["bayes_factor"]) if mode == "vanilla" else found["probability"],
        )
        columns = dict(
            gene=names,
            **found,
            rho_a=rho[0],
            rho_b=rho[1],
            raw_mean_a=raw[0][0],
            raw_mean_b=raw[1][0],
            nonzero_a=raw[0][1],
            nonzero_b=raw[1][1],
            is_de=_expected_fdr_set(p if mode == "change" else np.maximum(p, 1.0 - p), fdr),
        )
        order = np.lexsort(
            (-np.abs(found["lfc_mean"]) / np.maximum(found["lfc_std"], 1e-12), -evidence)
        )
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


def _pairs(model, x, codes, groups, n_samples, seed):
    """log2 fold changes (n_samples, n_genes) of random pairs of cells, and the mean rho of either side (2, n_genes)."""
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


def _summary(lfc, delta) -> dict:
    """Columns (n_genes,) from fold changes lfc (n, n_genes). delta: that of mode "change"; None: mode "vanilla"."""
    n, n_genes = lfc.shape
    p, mean, median, std = np.empty((4, n_genes))
    for start in range(0, n_genes, 256):
        part, genes = lfc[:, start : start + 256].astype(np.float64), slice(start, start + 256)
        if delta is None:
            held = np.sum(part > 0, axis=0) + 0.5 * np.sum(part == 0, axis=0)
        else:
            held = np.maximum(np.sum(part > delta, axis=0), np.sum(part < -delta, axis=0))
        p[genes] = (held + 0.5) / (n + 1)
        mean[genes], median[genes], std[genes] = (
            part.mean(axis=0),
            np.median(part, axis=0),
            part.std(axis=0),
        )
    return dict(
        probability=p,
        probability_error=np.sqrt(p * (1.0 - p) / n),
        bayes_factor=special.logit(p),
        lfc_mean=mean,
        lfc_median=median,
        lfc_std=std,
    )


def _expected_fdr_set(probability, fdr) -> np.ndarray:
    """The largest set of genes, most probable first, of which an expected share of at most fdr is false: a mask."""
    order = np.argsort(-probability, kind="stable")
    expected = np.cumsum(1.0 - probability[order]) / np.arange(1, len(order) + 1)
    chosen = np.zeros(len(order), bool)
    chosen[order[: np.searchsorted(expected, fdr, side="right")]] = True
    return chosen


def _gene_names(model, counts, genes) -> np.ndarray:
    """Names of the genes: those given, or the model's, or those of the counts, or gene_0, gene_1 ..."""
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
            f"genes: has shape {names.shape}, must be the names of the {model.n_genes} genes of the model"
        )
    return names


def _groups(x, group_a, group_b) -> list:
    """Positions of the cells with counts in each of two groups; ValueError where they make no sense."""
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
            f"group_a and group_b share {len(both)} cells, such as {both[0]}; a cell can be in one only"
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
            f"{name} must be a boolean mask of {n_cells} cells or a list of positions, not {group.dtype} "
            f"of shape {group.shape}; from labels, make a mask: labels == 'B cell'"
        )
    cells, times = np.unique(group.astype(np.int64), return_counts=True)
    if len(cells) and (cells[0] < 0 or cells[-1] >= n_cells):
        raise ValueError(
            f"{name} has positions from {cells[0]} to {cells[-1]}; there are cells 0 to {n_cells - 1}"
        )
    if np.any(times > 1):
        twice = cells[np.argmax(times > 1)]
        raise ValueError(
            f"{name} lists cell {twice} more than once; a mask is of booleans, not of 0 and 1"
        )
    return cells

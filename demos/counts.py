"""NB against ZINB: equal means, the zeros that each predicts, and which of them real cells ask for.

Figure 15 of the chapter. A negative binomial with small inverse dispersion theta has many zeros of
its own. The zero-inflated one adds structural zeros: with probability pi the count is 0 whatever
the gene's expression. At equal means the two differ in their zeros first. Real data answer which is
needed: theta of each gene is set so that the NB has the variance that was measured, and the zeros
that this NB predicts are compared with the zeros that were counted.
"""

from __future__ import annotations

import numpy as np

from demos import show
from minigrad.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from models.counts import library_size, read

DATASETS = {"cortex": "cortex (STRT-seq)", "brain10k": "brain (10x)", "pbmc68k": "blood (10x)"}


def zeros_by_gene(x):
    """Fraction of zeros of each gene: counted, and predicted by Poisson and by NB.

    (n_genes,) each; the NB is the one of the measured variance. Cells differ in depth: the mean of
    gene g in cell n is l_n rho_g, and a prediction is averaged over cells.
    """
    totals = library_size(x)
    x, totals = x[totals > 0], totals[totals > 0]
    rho = np.asarray(x.sum(axis=0)).ravel() / totals.sum()
    x, rho = x[:, rho > 0], rho[rho > 0]
    mu_squares = rho**2 * np.sum(totals**2)
    spread = np.asarray(x.multiply(x).sum(axis=0)).ravel() - 2 * rho * (x.T @ totals) + mu_squares
    theta = np.clip(mu_squares / np.maximum(spread - rho * totals.sum(), 1e-9), 1e-3, 1e6)
    counted = 1.0 - np.diff(x.tocsc().indptr) / x.shape[0]
    log_mu = np.log(totals)[:, None] + np.log(rho)
    nb = np.exp(NegativeBinomial(log_mu, np.log(theta)).log_prob(np.zeros(1))).mean(axis=0)
    return counted, np.exp(-np.exp(log_mu)).mean(axis=0), nb


def draw_distributions(axes) -> None:
    """Probabilities of small counts under an NB and a ZINB of mean 4."""
    x, pi = np.arange(16.0), 0.3
    nb = NegativeBinomial(np.log(4.0), np.log(2.0))
    zinb = ZeroInflatedNegativeBinomial(np.log(4.0 / (1 - pi)), np.log(2.0), np.log(pi / (1 - pi)))
    for offset, (name, d) in zip(
        (-0.2, 0.2), {"NB": nb, "ZINB, 30 % structural zeros": zinb}.items()
    ):
        p = np.exp(d.log_prob(x))
        mean = float(np.sum(np.arange(400.0) * np.exp(d.log_prob(np.arange(400.0)))))
        print(f"{name:<28} mean {mean:.3f}, P(0) = {p[0]:.3f}")
        axes.bar(
            x + offset,
            p,
            width=0.4,
            label=f"{name}: P(0) = {p[0]:.2f}",
            color=show.COLORS[0 if offset < 0 else 1],
        )
    axes.set(xlabel="count of a gene", ylabel="probability", title="equal means (4), theta = 2")
    axes.legend(frameon=False, fontsize=9)


def run(options) -> None:
    f, axes = show.figure(2, 2, width=4.5)
    draw_distributions(axes[0, 0])
    print(
        f"\n{'':<10}{'zeros counted':>15}{'Poisson':>10}{'NB':>8}   genes with more zeros than the "
        "NB predicts, by over 0.1"
    )
    for ax, (name, title) in zip(axes.flat[1:], DATASETS.items()):
        x = read(show.DATA / f"{name}.npz").X
        counted, poisson, nb = zeros_by_gene(x[:500] if options.quick else x[:3000])
        print(
            f"{name:<10}{counted.mean():>15.3f}{poisson.mean():>10.3f}{nb.mean():>8.3f}   "
            f"{np.mean(counted - nb > 0.1):.1%}"
        )
        ax.plot([0, 1], [0, 1], color="#888888", linewidth=0.8)
        ax.scatter(
            poisson,
            counted,
            s=7,
            color=show.COLORS[1],
            marker="s",
            linewidths=0,
            label="Poisson",
            rasterized=True,
        )
        ax.scatter(
            nb, counted, s=7, color=show.COLORS[0], linewidths=0, label="NB", rasterized=True
        )
        ax.set(xlabel="zeros predicted (fraction of cells)", ylabel="zeros counted", title=title)
        ax.legend(frameon=False, fontsize=9, markerscale=2, loc="lower right")
    show.save(
        f,
        options.out,
        "counts",
        "First panel: NB and ZINB of the same mean differ in their zeros. The others, one point "
        "per gene: an NB of the gene's own variance predicts its zeros in the 10x data (on the "
        "line), a Poisson too few. In cortex many genes have more zeros than their NB: there a "
        "ZINB, or a mean that differs by cell type, has something to explain.",
    )

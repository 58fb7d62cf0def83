"""Differential expression where the truth is known: `python -m tests.benchmarks.differential`.

Two groups of cells and 200 genes, of which 40 differ: 20 pairs of genes trade their expression, the
one higher in group a by as much as the other is lower. All others have exactly the same expected
fraction in both groups. Negative binomial counts, some 300 per cell, 47 % of them zeros. Who finds
the 40, marks how many others beside them, and gets their fold changes right?

    even      500 cells against 500
    few       20 cells against 980
    batches   500 against 500, and 80 % of either group in a batch of its own, whose genes are
              counted with efficiencies of their own

"ours" trains with all defaults; "vanilla" marks no genes, so the rule of the expected FDR is
applied to its probabilities here, to show why. Wilcoxon is the rank sum test of each gene's
log-normalised counts, at 5 % by Benjamini and Hochberg. scvi-tools comes with the extra `bench`.

Know after: what can be believed of a list of genes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from typing import NamedTuple

import numpy as np
from scipy import sparse, stats

from models import SCVI

N_GENES, N_DIFFERENT, FDR = 200, 40, 0.05
CASES = {"even": (500, 500), "few": (20, 980), "batches": (500, 500)}


class Simulated(NamedTuple):
    """Counts of which the truth is known."""

    x: np.ndarray  # counts (n_cells, n_genes), float32
    in_a: np.ndarray  # which cells are in group a
    batch: np.ndarray | None  # of each cell
    lfc: np.ndarray  # true log2 fold changes of rho, a over b; exactly 0 where it is the same


def simulate(n_a, n_b, seed, *, batches=False, total=300.0, lfc=(0.5, 2.0)) -> Simulated:
    """n_a + n_b cells with a median of `total` counts; lfc: least and greatest log2 fold change.

    batches: whether there are two, as described above.
    """
    rng = np.random.default_rng(seed)
    rho = np.tile(rng.lognormal(0.0, 1.0, N_GENES), (2, 1))
    up, down = np.split(np.arange(N_DIFFERENT), 2)
    fold = 2.0 ** rng.uniform(*lfc, len(up))
    rho[:, down] = rho[:, up]
    rho[0, up] *= fold
    rho[1, down] *= fold
    true = np.log2(rho[0] / rho[1])  # before they sum to 1, which they do alike
    group = np.repeat([0, 1], [n_a, n_b])
    batch = np.where(rng.random(len(group)) < 0.8, group, 1 - group) if batches else None
    of_cells = rho[group]
    if batches:
        of_cells = of_cells * rng.lognormal(0.0, 0.5, (2, N_GENES))[batch]
    of_cells /= of_cells.sum(axis=1, keepdims=True)
    mu = rng.lognormal(np.log(total), 0.3, (len(group), 1)) * of_cells
    theta = rng.lognormal(np.log(2.0), 0.5, N_GENES)
    x = rng.poisson(mu * rng.gamma(theta, 1.0 / theta, mu.shape)).astype(np.float32)
    return Simulated(x, group == 0, batch, true)


class Answer(NamedTuple):
    """What a method says of each gene, (n_genes,) each."""

    marked: np.ndarray  # as different
    score: np.ndarray  # the higher, the surer
    lfc: np.ndarray  # estimated log2 fold change


def measures(answer: Answer, truth: np.ndarray) -> tuple[float, float, float, float]:
    """(power, share of false ones among the marked, AUROC, slope of fold changes on true ones)."""
    different = truth != 0
    marked = answer.marked
    pairs = np.sum(different) * np.sum(~different)
    return (
        float(np.mean(marked[different])),
        float(np.sum(marked & ~different) / max(1, np.sum(marked))),
        float(stats.mannwhitneyu(answer.score[different], answer.score[~different])[0] / pairs),
        float(np.polyfit(truth, answer.lfc, 1)[0]),
    )


def at_expected_fdr(p: np.ndarray) -> np.ndarray:
    """The largest set of genes whose mean 1 - p is at most FDR, as a mask."""
    order = np.argsort(-p)
    n = np.sum(np.cumsum(1.0 - p[order]) / np.arange(1, len(p) + 1) <= FDR)
    marked = np.zeros(len(p), bool)
    marked[order[:n]] = True
    return marked


def ours(data: Simulated, seed: int, weight_decay: float | None) -> dict[str, Answer]:
    """Both modes of a model trained here, with NB and all defaults."""
    model = SCVI(N_GENES, 1 if data.batch is None else 2, likelihood="nb", seed=seed)
    model.fit(data.x, data.batch, weight_decay=weight_decay, progress=False)
    found = {}
    for mode in ("change", "vanilla"):
        table = model.differential_expression(
            data.x, data.in_a, mode=mode, batch=data.batch, genes=np.arange(N_GENES)
        )
        order = np.argsort(table["gene"].astype(int))
        bayes, lfc = table["bayes_factor"][order], table["lfc_mean"][order]
        if mode == "change":
            found["ours, change"] = Answer(table["is_de"][order], bayes, lfc)
        else:
            p = table["probability"][order]
            found["ours, vanilla"] = Answer(
                at_expected_fdr(np.maximum(p, 1.0 - p)), np.abs(bayes), lfc
            )
    return found


def wilcoxon(data: Simulated) -> dict[str, Answer]:
    """The rank sum test of each gene. It knows nothing of batches."""
    totals = data.x.sum(axis=1, keepdims=True)
    y = np.log1p(data.x / totals * np.median(totals))
    p = stats.mannwhitneyu(y[data.in_a], y[~data.in_a], axis=0).pvalue
    share = [data.x[cells].sum(axis=0) + 0.5 for cells in (data.in_a, ~data.in_a)]
    lfc = np.log2(share[0] / share[0].sum()) - np.log2(share[1] / share[1].sum())
    return {"Wilcoxon": Answer(stats.false_discovery_control(p) <= FDR, -p, lfc)}


def scvi_tools(data: Simulated, seed: int) -> dict[str, Answer]:
    """Its modes, after training with NB and its defaults. ImportError where it is missing."""
    import anndata
    import scvi

    warnings.simplefilter("ignore")
    scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(sparse.csr_matrix(data.x))
    if data.batch is not None:
        adata.obs["batch"] = data.batch.astype(str)
    scvi.model.SCVI.setup_anndata(adata, batch_key=None if data.batch is None else "batch")
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)
    found = {}
    for name, options in (
        ("change", {"mode": "change"}),
        ("change, delta=None", {"mode": "change", "delta": None}),
        ("vanilla", {"mode": "vanilla"}),
    ):
        table = model.differential_expression(
            idx1=data.in_a,
            idx2=~data.in_a,
            batch_correction=data.batch is not None,
            silent=True,
            **options,
        ).loc[adata.var_names]
        if options["mode"] == "change":
            answer = [table[c] for c in (f"is_de_fdr_{FDR}", "proba_de", "lfc_mean")]
        else:
            p = np.maximum(table["proba_m1"], table["proba_m2"]).to_numpy()
            answer = [at_expected_fdr(p), p, np.log2(table["scale1"] / table["scale2"])]
        found[f"scvi-tools, {name}"] = Answer(*[np.asarray(a) for a in answer])
    return found


def main(arguments=None) -> int:
    """Run the cases asked for and print a table in Markdown: means over seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.differential", description=__doc__.split("\n")[0]
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=3, help="simulations of each (default 3)")
    parser.add_argument("--weight-decay", type=float, help="of ours (default: the model's)")
    parser.add_argument(
        "--without-scvi-tools", action="store_true", help="it takes most of the time"
    )
    chosen = parser.parse_args(arguments)
    if unknown := [case for case in chosen.cases if case not in CASES]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(CASES)}")
    print("| cells | method | power | false among marked | AUROC | slope of fold changes |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for case in chosen.cases or CASES:
        rows = {}
        for seed in range(chosen.seeds):
            data = simulate(*CASES[case], seed, batches=case == "batches")
            answers = {**ours(data, seed, chosen.weight_decay), **wilcoxon(data)}
            if not chosen.without_scvi_tools:
                answers.update(scvi_tools(data, seed))
            for name, answer in answers.items():
                rows.setdefault(name, []).append(measures(answer, data.lfc))
        for name, found in rows.items():
            power, false, auroc, slope = np.mean(found, axis=0)
            marks = f"{power:.2f} | {100 * false:.0f} %"
            print(f"| {case} | {name} | {marks} | {auroc:.3f} | {slope:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Held-out likelihood and clusters beside scvi-tools: `python -m tests.benchmarks.held_out [--seeds N] [DATA-LIKELIHOOD ...]`.

For every seed a random fifth of the cells is held out, and both sides train on the rest with their own defaults: ours in
200 epochs, scvi-tools in 400. The weights of scvi-tools are then loaded here (`SCVI.from_scvi_tools`), so that one and
the same code says of both what p(x) is of the held-out cells, and where k-means puts all cells in the latent space.
scvi-tools comes with the extra `bench`.

Know after: which model generalises better, by how much, and how much of that is chance.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from statistics import mean

import numpy as np
from scipy import sparse

from demos import show
from models import SCVI
from models.clustering import adjusted_rand_index, kmeans, normalized_mutual_information
from models.counts import read
from tests.benchmarks.work import split

JOBS = ("cortex-zinb", "cortex-nb", "pbmc68k-zinb", "pbmc68k-nb")


def ours(x, likelihood, seed) -> SCVI:
    """Trained here, with all defaults."""
    model = SCVI(x.shape[1], likelihood=likelihood, seed=seed)
    model.fit(x, progress=False)
    return model


def scvi_tools(x, likelihood, seed) -> SCVI:
    """Trained by scvi-tools with its defaults, 400 epochs, and loaded here. ImportError where it is missing."""
    import anndata
    import scvi

    warnings.simplefilter("ignore")
    scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(sparse.csr_matrix(x, dtype=np.float32))
    scvi.model.SCVI.setup_anndata(adata)
    theirs = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    theirs.train(max_epochs=400, accelerator="cpu", enable_progress_bar=False)
    state = {name: value.detach().numpy() for name, value in theirs.module.state_dict().items()}
    return SCVI.from_scvi_tools(state, likelihood=likelihood)


def scores(train, counts, likelihood, seed, n_samples) -> tuple[float, float, float]:
    """(mean log p of a held-out fifth, nats a cell; ARI and NMI of k-means in the latent space of all cells)."""
    test, rest = split(len(counts), seed)
    model, labels = train(counts.X[rest], likelihood, seed), counts.obs["labels"]
    clusters = kmeans(model.latent(counts.X), len(set(labels)))
    return (
        float(np.mean(model.log_likelihood(counts.X[test], n_samples=n_samples))),
        adjusted_rand_index(labels, clusters),
        normalized_mutual_information(labels, clusters),
    )


def main(arguments=None) -> int:
    """Run the comparisons asked for and print a table in Markdown: a row a seed, and the mean."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.held_out", description=__doc__.split("\n")[0]
    )
    parser.add_argument("jobs", nargs="*", metavar="DATA-LIKELIHOOD", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each side (default 3)")
    parser.add_argument(
        "--samples",
        type=int,
        default=300,
        help="draws of the importance-weighted likelihood (default 300)",
    )
    chosen = parser.parse_args(arguments)
    if unknown := [job for job in chosen.jobs if job not in JOBS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(JOBS)}")
    print(
        "| data, likelihood | seed | log p ours | scvi-tools | ours is better by | ARI, NMI ours | scvi-tools |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for job in chosen.jobs or JOBS:
        data, likelihood = job.split("-")
        counts, rows = read(show.DATA / f"{data}.npz"), []
        for seed in range(chosen.seeds):
            rows.append(
                [
                    scores(train, counts, likelihood, seed, chosen.samples)
                    for train in (ours, scvi_tools)
                ]
            )
            print(row(job, seed, *rows[-1]), flush=True)
        print(row(job, "mean", *[tuple(map(mean, zip(*side))) for side in zip(*rows)]), flush=True)
    return 0


def row(job, seed, mine, theirs) -> str:
    """A line of the table."""
    return (
        f"| {job.replace('-', ', ')} | {seed} | {mine[0]:.1f} | {theirs[0]:.1f} | {mine[0] - theirs[0]:.1f} | "
        f"{mine[1]:.2f}, {mine[2]:.2f} | {theirs[1]:.2f}, {theirs[2]:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())

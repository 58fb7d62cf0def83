"""Do batches mix, and do types stay apart? `python -m tests.benchmarks.mixing`.

Real cells, a random half of which is "measured again": genes are counted with other efficiencies in
the two halves (counts are thinned binomially, and so stay counts). None of the shipped data has
real batches, so that here it is known what is batch and what is biology.

    genes         efficiencies of the genes that differ by a factor exp(Normal(0, 0.7))
    depth         and half as many counts in the second batch
    composition   and one type is missing there, another is rarer in the first
    ambient       and every cell of the second has 20 % of counts from one common profile beside
    condition     and the largest type has a second state, a programme of an eighth of the genes,
                  which 20 % of its cells have in the first batch and 80 % in the second: biology
                  that goes with the batch and has to stay (the state counts as a type of its own)
    response      in place of those: each type answers the second batch in its own way, by a
                  programme that all share, more or less of it, and by genes of its own

The scores are those of scIB (models/integration.py), where `batch` is the mean of iLISI, kBET,
silhouette of batches, graph connectivity and PCR comparison, `bio` that of cLISI, silhouette of
types, NMI and ARI of k-means, and `total` = 0.4 batch + 0.6 bio (Luecken et al. 2022). log p is
that of a held-out fifth, importance-weighted, nats a cell. Ours trains with NB and all defaults;
scvi-tools (extra `bench`) with NB, 400 epochs, and one or two layers; its weights are loaded here
and scored by the same code. Seconds are those of the processors, in training.

Know after: what can be expected of an integration, and which kinds of batches are hard.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from demos import show
from demos.scvi import principal_components
from models import SCVI, integration
from models.clustering import adjusted_rand_index, kmeans, normalized_mutual_information
from models.counts import read
from tests.benchmarks.work import split

KINDS = ("genes", "depth", "composition", "ambient", "condition", "response")
N_CELLS = {"cortex": 800, "pbmc68k": 700}
FEWEST = 8  # cells of a type: those of rarer ones are left out
BATCH_SCORES = ("ilisi", "kbet", "batch_silhouette", "graph_connectivity", "pcr_comparison")
BIO_SCORES = ("clisi", "label_silhouette", "nmi", "ari")


class Simulated(NamedTuple):
    """Counts of two batches."""

    x: sparse.csr_matrix  # counts (n_cells, n_genes), float32
    types: np.ndarray  # of each cell
    batch: np.ndarray  # of each cell, 0 or 1


def simulate(data: str, kind: str, seed: int) -> Simulated:
    """Cells of the data set, in two batches of a kind that is described above."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    counts = read(show.DATA / f"{data}.npz")
    rows = np.sort(rng.permutation(len(counts))[: N_CELLS[data]])
    x = counts.X[rows].toarray().astype(np.int64)
    types = np.asarray(counts.obs["labels"][rows], dtype=object)
    n_cells, n_genes = x.shape
    batch = rng.permutation(np.arange(n_cells) % 2)
    second = batch == 1
    names, sizes = np.unique(types.astype(str), return_counts=True)
    by_size = names[np.argsort(-sizes)]

    # How much higher log expression is in the second batch: the other one is thinned by it.
    if kind == "response":
        programme = rng.normal(0.0, 1.0, n_genes) * (rng.random(n_genes) < 0.2)
        shift = np.zeros(x.shape)
        for name in names:
            own = rng.normal(0.0, 1.0, n_genes) * (rng.random(n_genes) < 0.08)
            shift[types == name] = rng.uniform(0.3, 1.5) * programme + own
    else:
        shift = np.tile(rng.normal(0.0, 0.7, n_genes), (n_cells, 1))
    log_rate = _thinned_where_lower(shift, second[:, None])
    if kind == "depth":
        log_rate[second] += np.log(0.5)
    if kind == "condition":
        of_type = types == by_size[0]
        has_state = of_type & (rng.random(n_cells) < np.where(second, 0.8, 0.2))
        genes = rng.choice(n_genes, n_genes // 8, replace=False)
        change = np.zeros(n_genes)
        change[genes] = rng.normal(0.0, 1.2, len(genes))
        log_rate[of_type] += _thinned_where_lower(change, has_state[of_type][:, None])
        types[has_state] = f"{by_size[0]}, second state"
    x = rng.binomial(x, np.exp(log_rate))
    if kind == "ambient":
        profile = x[second].sum(axis=0) * rng.lognormal(0.0, 0.5, n_genes)
        profile /= profile.sum()
        x[second] += rng.poisson(0.2 * x[second].sum(axis=1, keepdims=True) * profile)
    keep = x.sum(axis=1) >= 10
    if kind == "composition":
        keep &= ~(second & (types == by_size[2]))
        keep &= second | (types != by_size[1]) | (rng.random(n_cells) < 0.3)
    rare = [
        name for name in np.unique(types.astype(str)) if np.sum(keep & (types == name)) < FEWEST
    ]
    keep &= ~np.isin(types.astype(str), rare)
    return Simulated(
        sparse.csr_matrix(x[keep].astype(np.float32)), types[keep].astype(str), batch[keep]
    )


def _thinned_where_lower(shift: np.ndarray, is_second: np.ndarray) -> np.ndarray:
    """log of the fractions of counts to keep, at most 0, so that log expression differs by shift.

    shift: of the second over the first; is_second: which of the two each cell is, (n_cells, 1).
    """
    return np.minimum(np.where(is_second, shift, -shift), 0.0)


def measures(model: SCVI, data: Simulated, held_out: np.ndarray, seconds: float) -> dict:
    """Every score of a trained model, by name, as floats; held_out: cells that it has not seen."""
    z = model.latent(data.x)
    found = integration.scores(z, data.batch, data.types, principal_components(data.x, 30))
    clusters = kmeans(z, len(set(data.types)))
    found["nmi"] = normalized_mutual_information(data.types, clusters)
    found["ari"] = adjusted_rand_index(data.types, clusters)
    found["batch"] = np.mean([found[name] for name in BATCH_SCORES])
    found["bio"] = np.mean([found[name] for name in BIO_SCORES])
    found["total"] = 0.4 * found["batch"] + 0.6 * found["bio"]
    log_p = model.log_likelihood(data.x[held_out], data.batch[held_out], n_samples=100)
    return {**found, "log p": np.mean(log_p), "seconds": seconds}


def ours(x, batch, seed: int, **config) -> SCVI:
    """Trained here, with NB and all defaults but that configuration of SCVI."""
    model = SCVI(x.shape[1], 2, likelihood="nb", seed=seed, **config)
    model.fit(x, batch, progress=False)
    return model


def scvi_tools(x, batch, seed: int, n_layers: int) -> SCVI:
    """Trained by scvi-tools with NB, 400 epochs, and loaded here. ImportError where it is missing."""
    import anndata
    import scvi

    warnings.simplefilter("ignore")
    scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(x.copy())
    adata.obs["batch"] = batch.astype(str)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    theirs = scvi.model.SCVI(adata, gene_likelihood="nb", n_layers=n_layers)
    theirs.train(max_epochs=400, accelerator="cpu", enable_progress_bar=False)
    state = {name: value.detach().numpy() for name, value in theirs.module.state_dict().items()}
    return SCVI.from_scvi_tools(state, n_batches=2, n_layers=n_layers, likelihood="nb")


METHODS: dict[str, Callable[..., SCVI]] = {
    "ours": ours,
    "ours, 1 layer": lambda *cells: ours(*cells, n_layers=1),
    "scvi-tools, 1 layer": lambda *cells: scvi_tools(*cells, n_layers=1),
    "scvi-tools, 2 layers": lambda *cells: scvi_tools(*cells, n_layers=2),
}
SHOWN = ("ilisi", "kbet", "batch", "bio", "total")


def main(arguments=None) -> int:
    """Run the kinds asked for and print a table in Markdown: means over data sets and seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.mixing", description=__doc__.split("\n")[0]
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--seeds", type=int, default=3, help="simulations of each (default 3)")
    parser.add_argument(
        "--without-scvi-tools", action="store_true", help="it takes most of the time"
    )
    chosen = parser.parse_args(arguments)
    if unknown := [kind for kind in chosen.kinds if kind not in KINDS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    print("| batches | method | iLISI | kBET | batch | bio | total | log p | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for kind in chosen.kinds or KINDS:
        for name, train in METHODS.items():
            if chosen.without_scvi_tools and name.startswith("scvi-tools"):
                continue
            found = [
                judged(train, simulate(data, kind, seed), seed)
                for data in N_CELLS
                for seed in range(chosen.seeds)
            ]
            mean = {score: np.mean([f[score] for f in found]) for score in found[0]}
            scores = " | ".join(f"{mean[score]:.3f}" for score in SHOWN)
            print(
                f"| {kind} | {name} | {scores} | {mean['log p']:.1f} | {mean['seconds']:.0f} |",
                flush=True,
            )
    return 0


def judged(train, data: Simulated, seed: int) -> dict:
    """The scores of a model that `train`, one of METHODS, makes of four fifths of the cells."""
    held_out, rest = split(data.x.shape[0], seed)
    start = time.process_time()
    model = train(data.x[rest], data.batch[rest], seed)
    return measures(model, data, held_out, time.process_time() - start)


if __name__ == "__main__":
    sys.exit(main())

"""Is the truth of a simulation found again? `python -m tests.benchmarks.recovery [NAME ...]`.

Counts are simulated from scVI's own generative process, with a decoder that is linear in z:

    z ~ Normal(0, 1) in two dimensions,  rho = softmax(a + B z),  theta_g and l log-normal,
    x ~ NB(mean l rho, inverse dispersion theta)

and both sides train on them with all of their defaults, ours in 200 epochs, scvi-tools in 400. The
weights of scvi-tools are then loaded here (`SCVI.from_scvi_tools`), so that one and the same code
asks both. scvi-tools comes with the extra `bench`; where it is missing its rows are left out.

Know after: how near theta, rho and library size come to the truth, with the library observed and
with it latent.
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

N_NEW = 500  # cells of every simulation that nobody trains on, of which everything is asked
SIMULATIONS = {
    "small": {"n_cells": 200, "n_genes": 30, "depths": (200.0,)},
    "batches": {"n_cells": 1000, "n_genes": 100, "depths": (200.0, 2000.0)},
    "deep": {"n_cells": 3000, "n_genes": 200, "depths": (5000.0,)},
}


class Simulation(NamedTuple):
    """Counts and what they were drawn from."""

    x: np.ndarray  # counts, (n_cells, n_genes) float32
    batch: np.ndarray  # number of the batch of each cell, (n_cells,)
    rho: np.ndarray  # expected fractions, (n_cells, n_genes); rows sum to 1
    theta: np.ndarray  # inverse dispersion, (n_genes,)
    library: np.ndarray  # l, (n_cells,)

    def cells(self, rows) -> Simulation:
        """The same of some cells only."""
        return Simulation(
            self.x[rows], self.batch[rows], self.rho[rows], self.theta, self.library[rows]
        )


def simulate(n_cells: int, n_genes: int, depths, seed: int = 0) -> Simulation:
    """NB counts of as many batches as there are depths, the medians of their library sizes.

    log l has a standard deviation of 0.4 within a batch.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_cells, 2))
    logits = rng.normal(0.0, 1.0, n_genes) + z @ rng.normal(0.0, 0.5, (2, n_genes))
    rho = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    theta = np.exp(rng.normal(1.0, 1.0, n_genes))
    batch = np.arange(n_cells) % len(depths)
    library = np.asarray(depths)[batch] * np.exp(rng.normal(0.0, 0.4, n_cells))
    mu = library[:, None] * rho
    x = rng.poisson(mu * rng.gamma(theta, 1.0 / theta, mu.shape)).astype(np.float32)
    return Simulation(x, batch, rho, theta, library)


def train_and_new(name: str, seed: int = 0) -> tuple[Simulation, Simulation]:
    """One of SIMULATIONS in two parts: the cells to train on, and N_NEW others."""
    sizes = SIMULATIONS[name]
    n = sizes["n_cells"]
    whole = simulate(n + N_NEW, sizes["n_genes"], sizes["depths"], seed)
    return whole.cells(slice(n)), whole.cells(slice(n, None))


def ours(train: Simulation, library: str, seed: int = 0) -> SCVI:
    """Trained here, with all defaults but the likelihood."""
    n_batches = len(np.unique(train.batch))
    model = SCVI(train.x.shape[1], n_batches, likelihood="nb", library=library, seed=seed)
    model.fit(train.x, train.batch, progress=False)
    return model


def scvi_tools(train: Simulation, library: str, seed: int = 0) -> SCVI:
    """Trained by scvi-tools with its defaults, 400 epochs, and loaded here; or ImportError."""
    import anndata
    import scvi

    warnings.simplefilter("ignore")
    scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    labels = {"batch": train.batch.astype(str)}
    adata = anndata.AnnData(sparse.csr_matrix(train.x), obs=labels)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    theirs = scvi.model.SCVI(
        adata, gene_likelihood="nb", use_observed_lib_size=library == "observed"
    )
    theirs.train(max_epochs=400, accelerator="cpu", enable_progress_bar=False)
    state = {name: value.detach().numpy() for name, value in theirs.module.state_dict().items()}
    n_batches = len(np.unique(train.batch))
    return SCVI.from_scvi_tools(state, n_batches=n_batches, likelihood="nb", library=library)


class Recovery(NamedTuple):
    """How near a model comes to the truth of new cells: what a row of the table says."""

    theta_rank: float  # rank correlation of theta over genes
    theta_error: float  # median |log(theta / truth)|
    rho: float  # correlation of log rho over genes, mean over cells
    totals: float  # sum of denoised counts over sum of counts
    library: float  # median |log(sum of a cell's denoised counts / its l)|
    elbo: float  # nats a cell


def recovery(model: SCVI, new: Simulation) -> Recovery:
    """What the model makes of cells that it was not trained on, held against the truth."""
    theta = np.exp(model.log_theta.numpy())
    log_rho = np.log(model.expression_fraction(new.x, new.batch, n_samples=25))
    sizes = model.denoise(new.x, new.batch, n_samples=25).sum(axis=1)
    of_cells = [np.corrcoef(pair)[0, 1] for pair in zip(log_rho, np.log(new.rho))]
    return Recovery(
        theta_rank=stats.spearmanr(theta, new.theta).statistic,
        theta_error=np.median(np.abs(np.log(theta / new.theta))),
        rho=np.mean(of_cells),
        totals=sizes.sum() / new.x.sum(),
        library=np.median(np.abs(np.log(sizes / new.library))),
        elbo=np.mean(model.elbo(new.x, new.batch, n_samples=25)),
    )


def main(arguments=None) -> int:
    """Run the simulations asked for and print a table in Markdown, means over seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.recovery", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "simulations", nargs="*", metavar="SIMULATION", help=f"of {', '.join(SIMULATIONS)}"
    )
    parser.add_argument("--seeds", type=int, default=3, help="simulations of a kind (default 3)")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.simulations if name not in SIMULATIONS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SIMULATIONS)}")
    print(
        "| simulation | library | who | theta: rank correlation | theta: median log error "
        "| log rho: correlation | denoised / observed totals | library: median log error | ELBO |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        flush=True,
    )
    for name in chosen.simulations or SIMULATIONS:
        for library in ("observed", "latent"):
            for who, trained_by in (("ours", ours), ("scvi-tools", scvi_tools)):
                try:
                    print(row(name, library, who, trained_by, chosen.seeds), flush=True)
                except ImportError as missing:
                    print(f"{who} left out: {missing}", file=sys.stderr)
    return 0


def row(name, library, who, trained_by, n_seeds) -> str:
    """A line of the table."""
    found = []
    for seed in range(n_seeds):
        train, new = train_and_new(name, seed)
        found.append(recovery(trained_by(train, library, seed), new))
    mean = Recovery(*np.mean(found, axis=0))
    return (
        f"| {name} | {library} | {who} | {mean.theta_rank:.3f} | {mean.theta_error:.2f} "
        f"| {mean.rho:.3f} | {mean.totals:.1%} | {mean.library:.3f} | {mean.elbo:.1f} |"
    )


if __name__ == "__main__":
    sys.exit(main())

"""One setting of a comparison: a model is trained on some cells and judged on others.

This is engineering, for comparison.py, which starts this module in processes of their own. It is
told what to do by a line of JSON, and writes what it finds into one file.

Know before reading: what a held-out likelihood is, scvi.py, and `log_likelihood` in posterior.py.
Three things are tried here:

    "scvi"     SCVI with given sizes and likelihood, by ELBO and log p of the held-out cells
    "gene nb"  a negative binomial for each gene, without latent variables: what there is to gain
    "pca"      principal components of log-normalised counts, for the scores of clusters only

All three learn from the same training cells, and see the others when they are judged. Clusters are
those of k-means, with as many groups as there are labels, over all cells.

Know after: how far a log p of scVI can be compared with one that needs no latent variables.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad import checkpoint
from minigrad.count_likelihoods import nb_cell_log_prob
from models.clustering import adjusted_rand_index, kmeans, normalized_mutual_information
from models.counts import Counts, library_size, log1p, normalize
from models.imputation import principal_axes
from models.posterior import BUDGET
from models.scvi import SCVI

ELBO_DRAWS = 30  # of z for each cell: the ELBO's own Monte Carlo error is small
N_COMPONENTS = 10  # of PCA
COVARIATE = "covariate "  # how the names of their arrays begin in the file of the cells
# Where the dispersion of a gene is looked for. At the upper end the NB is a Poisson distribution.
LOG_THETAS = np.linspace(np.log(1e-4), np.log(1e6), 9)


class Cells(NamedTuple):
    """The cells of a comparison, all of which have counts.

    x: counts (n_cells, n_genes), CSR; batch: codes (n_cells,) from 0; is_held_out: (n_cells,) bool;
    labels: codes (n_cells,) from 0 of known groups, or None; covariates: name -> (n_cells,) of the
    columns that SCVI is told, labels as str, numbers as float64.
    """

    x: sparse.csr_array
    batch: np.ndarray
    is_held_out: np.ndarray
    labels: np.ndarray | None
    covariates: dict[str, np.ndarray]

    @property
    def n_batches(self) -> int:
        """The number of batches."""
        return int(self.batch.max()) + 1


class Judged(NamedTuple):
    """What a trial found, in nats, of held-out cells in their order; None: this has no such thing.

    elbo, log_p, log_p_error: (n_held_out,), the last one the Monte Carlo error of log_p; ari, nmi:
    of clusters against labels; seconds: of training.
    """

    elbo: np.ndarray | None = None
    log_p: np.ndarray | None = None
    log_p_error: np.ndarray | None = None
    ari: float | None = None
    nmi: float | None = None
    seconds: float | None = None


# -------------------------------------------------------------------------------------------- files
def write_cells(path, cells: Cells) -> None:
    """Write the cells to an npz file, for the processes that read it."""
    arrays = {
        "data": cells.x.data,
        "indices": cells.x.indices,
        "indptr": cells.x.indptr,
        "shape": np.array(cells.x.shape),
        "batch": cells.batch,
        "is_held_out": cells.is_held_out,
    }
    if cells.labels is not None:
        arrays["labels"] = cells.labels
    for name, values in cells.covariates.items():
        arrays[COVARIATE + name] = values
    with checkpoint.whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_cells(path) -> Cells:
    """The cells that `write_cells` wrote."""
    with np.load(path, allow_pickle=False) as file:
        x = sparse.csr_array(
            (file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"].tolist())
        )
        labels = file["labels"] if "labels" in file else None
        covariates = {
            key.removeprefix(COVARIATE): file[key] for key in file if key.startswith(COVARIATE)
        }
        return Cells(x, file["batch"], file["is_held_out"], labels, covariates)


def write_judged(path, judged: Judged) -> None:
    """Write what a trial found, whole or not at all."""
    arrays = {}
    numbers = {}
    for name, value in judged._asdict().items():
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            numbers[name] = value
    checkpoint.save(path, arrays, {"judged": numbers})


def read_judged(path) -> Judged | None:
    """What a trial found; None where it has not come to its end, or its file is damaged."""
    if not os.path.exists(path):
        return None
    try:
        arrays, meta = checkpoint.load(path)
        return Judged(**{**meta["judged"], **arrays})
    except (ValueError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------------- trials
def judge_scvi(
    cells: Cells, config: dict, fit: dict, n_samples: int, unfinished: str | None = None
) -> Judged:
    """Train SCVI on the training cells, and judge it.

    config, fit: arguments of SCVI and of its `fit`; n_samples: draws of z for log p; unfinished:
    path of the checkpoint, from which a training that was killed goes on. Errors are those of SCVI.
    """
    model = SCVI(cells.x.shape[1], cells.n_batches, **config)
    batch = cells.batch if cells.n_batches > 1 else None

    everything = Counts(
        cells.x,
        np.arange(cells.x.shape[1]),
        np.arange(cells.x.shape[0]),
        cells.covariates,
    )

    def some(is_wanted):
        return everything[is_wanted], None if batch is None else batch[is_wanted]

    history = model.fit(
        *some(~cells.is_held_out),
        checkpoint=unfinished,
        resume=unfinished is not None,
        progress=False,
        **fit,
    )
    if history.interrupted:
        raise KeyboardInterrupt
    model.to("numpy")
    z: Any = model.latent(everything, batch)
    log_p, log_p_error = model.log_likelihood(
        *some(cells.is_held_out), n_samples=n_samples, return_error=True
    )
    return Judged(
        elbo=model.elbo(*some(cells.is_held_out), n_samples=ELBO_DRAWS),
        log_p=log_p,
        log_p_error=log_p_error,
        seconds=float(sum(history["seconds"])),
        **cluster_scores(z, cells.labels),
    )


def judge_gene_nb(cells: Cells) -> Judged:
    """An NB for each gene: mean l_n f_bg, the cell's total times the fraction of the gene in its
    batch, and theta_g, by maximum likelihood.

    It is told a cell's total, as SCVI with an observed library is, and nothing else of the cell: so
    their log p can be compared, and what SCVI has more is what its latent variables are worth, and
    the covariates that it may have been told.
    """
    started = time.perf_counter()
    is_training = ~cells.is_held_out
    log_fraction = np.log(gene_fractions(cells.x[is_training], cells.batch[is_training]))
    log_theta = most_likely_log_theta(cells.x[is_training], cells.batch[is_training], log_fraction)
    seconds = time.perf_counter() - started
    x, batch = cells.x[cells.is_held_out], cells.batch[cells.is_held_out]
    log_total = np.log(library_size(x).astype(np.float64))
    log_p = np.empty(x.shape[0])
    step = max(1, BUDGET // x.shape[1])
    for start in range(0, len(log_p), step):
        part = slice(start, start + step)
        log_mu = log_total[part, None] + log_fraction[batch[part]]
        log_p[part] = nb_cell_log_prob(x[part], log_mu, log_theta)
    return Judged(log_p=log_p, seconds=seconds)


def gene_fractions(x: sparse.csr_array, batch: np.ndarray) -> np.ndarray:
    """The fraction of all counts that each gene has in each batch: (n_batches, n_genes) float64.

    x: counts (n_cells, n_genes); batch: codes (n_cells,). So that no gene has the fraction 0, half
    a count of each is added to all cells together, and one average cell of these to each batch.
    """
    n_cells = x.shape[0]
    everywhere = np.asarray(x.sum(axis=0, dtype=np.float64)) + 0.5
    fraction = everywhere / everywhere.sum()
    one_hot = sparse.csr_array((np.ones(n_cells), (batch, np.arange(n_cells))))
    of_batch = (one_hot @ x.astype(np.float64)).toarray()
    of_batch += fraction * (of_batch.sum() / n_cells)
    return of_batch / of_batch.sum(axis=1, keepdims=True)


def most_likely_log_theta(
    x: sparse.csr_array, batch: np.ndarray, log_fraction: np.ndarray
) -> np.ndarray:
    """log theta of each gene, (n_genes,) float64, under which its counts are most likely.

    x: counts (n_cells, n_genes); batch: codes (n_cells,); log_fraction: log of `gene_fractions`.
    theta lies in the range of LOG_THETAS: a gene that varies less than a Poisson distribution has
    its upper end.
    """
    from scipy.optimize import elementwise  # here, as `import models` would take a quarter longer

    n_cells, n_genes = x.shape
    log_total = np.log(library_size(x).astype(np.float64))
    by_gene = sparse.csr_array(x.T)
    found = np.empty(n_genes)
    step = max(1, BUDGET // n_cells)
    for start in range(0, n_genes, step):
        part = slice(start, min(start + step, n_genes))
        counts = by_gene[part]
        log_mu = log_fraction[:, part].T[:, batch] + log_total

        def minus_log_p(log_theta, gene, counts=counts, log_mu=log_mu):
            # The kernel adds up rows: those of cells elsewhere, and of genes here.
            return -nb_cell_log_prob(counts[gene], log_mu[gene], log_theta[:, None])

        genes = np.arange(counts.shape[0])
        on_grid = [minus_log_p(np.full(len(genes), value), genes) for value in LOG_THETAS]
        lowest = np.argmin(on_grid, axis=0)
        inside = np.clip(lowest, 1, len(LOG_THETAS) - 2)
        bracket = [LOG_THETAS[inside + shift] for shift in (-1, 0, 1)]
        refined = elementwise.find_minimum(
            minus_log_p, bracket, args=(genes,), tolerances={"xatol": 1e-3, "xrtol": 0.0}
        )
        found[part] = np.where(lowest == inside, refined.x, LOG_THETAS[lowest])
    return found


def judge_pca(cells: Cells) -> Judged:
    """Clusters on the first principal components of log1p of normalised counts.

    The components are those of the training cells; on them lie all cells.
    """
    started = time.perf_counter()
    y = log1p(normalize(cells.x)).astype(np.float64)
    training = y[~cells.is_held_out]
    mean = np.asarray(training.mean(axis=0)).ravel()
    axes = principal_axes(training, mean, min(N_COMPONENTS, min(training.shape) - 1))
    seconds = time.perf_counter() - started
    return Judged(seconds=seconds, **cluster_scores(y @ axes - mean @ axes, cells.labels))


def cluster_scores(z: np.ndarray, labels: np.ndarray | None) -> dict:
    """How k-means clusters of z (n_cells, d) agree with labels (n_cells,): ari and nmi.

    None without labels.
    """
    if labels is None:
        return {"ari": None, "nmi": None}
    clusters = kmeans(z, int(labels.max()) + 1)
    return {
        "ari": float(adjusted_rand_index(labels, clusters)),
        "nmi": float(normalized_mutual_information(labels, clusters)),
    }


# ---------------------------------------------------------------------------------------- the child
def judge(request: dict) -> Judged:
    """What a request asks for: kind, and cells, the path of these; for "scvi" what it takes too."""
    cells = read_cells(request["cells"])
    if request["kind"] == "gene nb":
        return judge_gene_nb(cells)
    if request["kind"] == "pca":
        return judge_pca(cells)
    return judge_scvi(
        cells, request["config"], request["fit"], request["n_samples"], request["unfinished"]
    )


def main(text: str) -> None:
    """Do what the JSON text asks for, and write it to its "result". Ends the process with code 1
    after an error, with the sentence as the last line of standard output.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(text)
    try:
        write_judged(request["result"], judge(request))
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        print(json.dumps(kind + " ".join(str(error).split())), flush=True)
        sys.exit(1)
    if request.get("unfinished") is not None:  # and what was killed while it wrote one
        unfinished = Path(request["unfinished"])
        for left in unfinished.parent.glob(f"{unfinished.name}*"):
            left.unlink()


def _end_with_parent() -> None:
    """End this process when the parent does, however it does: then its end of the pipe closes."""
    os.read(0, 1)
    os._exit(1)

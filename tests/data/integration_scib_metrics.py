"""Makes integration_scib_metrics.npz: what scib-metrics says of two simulated embeddings.

    pip install scib-metrics==0.5.10
    JAX_ENABLE_X64=1 python integration_scib_metrics.py

Cells of three types in three batches, and a fourth type of one batch only. In `before` the batches
lie apart within each type; `after` is what an integration might leave: types a little closer, most
of the shift gone. Neighbours are exact, and the same for every score, so that scores are compared
and not searches: scib-metrics is handed them, the cell itself first.
"""

from pathlib import Path

import jax
import numpy as np
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

N_CELLS = 260


def simulated():
    """Points before and after, (N_CELLS, 6) float32; type and batch of each cell, integers."""
    rng = np.random.default_rng(20)
    cell_type = rng.choice(4, N_CELLS, p=[0.45, 0.3, 0.17, 0.08])
    batch = rng.choice(3, N_CELLS, p=[0.5, 0.3, 0.2])
    batch[cell_type == 3] = 1
    noise = rng.standard_normal((N_CELLS, 6))
    types = 2.2 * rng.standard_normal((4, 6))
    shifts = 1.8 * rng.standard_normal((3, 6))
    before = types[cell_type] + shifts[batch] + noise
    after = 0.8 * types[cell_type] + 0.25 * shifts[batch] + noise
    return before.astype(np.float32), after.astype(np.float32), cell_type, batch


def neighbours(z, n_neighbors):
    """The n_neighbors nearest cells, the cell itself first, as scib-metrics takes them."""
    distances = cdist(z, z)
    np.fill_diagonal(distances, -1.0)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :n_neighbors]
    found = np.take_along_axis(distances, indices, axis=1)
    found[:, 0] = 0.0
    return NeighborsResults(indices=indices, distances=found)


def kbet_within_types(z, cell_type, batch):
    """kBET of each type that has two batches, on its own neighbours; scIB's rule for how many."""
    rates = []
    for kind in np.unique(cell_type):
        members = cell_type == kind
        _, sizes = np.unique(batch[members], return_counts=True)
        if members.sum() < 10 or len(sizes) < 2:
            continue
        n_others = min(70, max(10, int(sizes.mean() / 4)))
        found = neighbours(z[members], n_others + 1)
        rates.append(scib_metrics.kbet(found, batch[members])[0])
    return np.mean(rates)


def scores(z, cell_type, batch):
    """Name -> number, all by scib-metrics."""
    acceptance, _, p_values = scib_metrics.kbet(neighbours(z, 50), batch)
    return {
        "lisi_of_batch": scib_metrics.lisi_knn(neighbours(z, 90), batch),
        "lisi_of_type": scib_metrics.lisi_knn(neighbours(z, 90), cell_type),
        "ilisi": scib_metrics.ilisi_knn(neighbours(z, 90), batch),
        "clisi": scib_metrics.clisi_knn(neighbours(z, 90), cell_type),
        "kbet": acceptance,
        "kbet_p_values": p_values,
        "kbet_within_types": kbet_within_types(z, cell_type, batch),
        "graph_connectivity": scib_metrics.graph_connectivity(neighbours(z, 15), cell_type),
        "graph_connectivity_4": scib_metrics.graph_connectivity(neighbours(z, 4), cell_type),
        "batch_silhouette": scib_metrics.silhouette_batch(z, cell_type, batch),
        "label_silhouette": scib_metrics.silhouette_label(z, cell_type),
    }


if __name__ == "__main__":
    if not jax.config.jax_enable_x64:
        raise SystemExit("set JAX_ENABLE_X64=1, or the numbers are of single precision")
    before, after, cell_type, batch = simulated()
    wide = before.astype(np.float64), after.astype(np.float64)
    found = {f"before/{k}": v for k, v in scores(wide[0], cell_type, batch).items()}
    found |= {f"after/{k}": v for k, v in scores(wide[1], cell_type, batch).items()}
    found["pcr_comparison"] = scib_metrics.pcr_comparison(*wide, batch, categorical=True)
    clusters = np.argmin(cdist(wide[1], wide[1][[0, 3, 7, 11, 19]]), axis=1)
    found["clusters"] = clusters
    found["nmi"] = normalized_mutual_info_score(cell_type, clusters)
    found["ari"] = adjusted_rand_score(cell_type, clusters)
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, before=before, after=after, cell_type=cell_type, batch=batch, **found)
    for name, value in found.items():
        if np.ndim(value) == 0:
            print(f"{name:<28}{value:.6f}")

"""What is trained in the benchmarks, whoever trains it: data, sizes, rates.

Know after: nothing about speed, but that every side gets the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy import sparse

BRAIN = Path(__file__).parents[2] / "demos/data/brain10k.npz"
N_LATENT, N_HIDDEN, DROPOUT, BATCH, RATE = 10, 128, 0.1, 128, 1e-3
AE_WIDTHS, VAE_WIDTHS, N_ROWS = (1000, 2048, 1024, 128), (1000, 512, 256, 32), 1280
CHAIN = 4000  # operations on four floats
ON_GPU = os.environ.get("MINIGRAD_DEVICE") == "cupy"  # which `fit` follows, and the peers here
MISSING = 3  # exit status of a worker whose library is not installed


def counts(name: str) -> sparse.csr_array:
    """Counts as CSR float32: "brain" (10,000 cells x 715 genes, 10 % non-zero) or "wide" (2,000 x 20,000, 5 %, made)."""
    if name == "brain":
        with np.load(BRAIN) as file:
            x = sparse.csr_array(
                (file["data"], file["indices"].astype(np.int32), file["indptr"]),
                shape=tuple(file["shape"]),
            )
        return x[np.flatnonzero(x.sum(axis=1))].astype(np.float32)
    rng = np.random.default_rng(0)
    x = sparse.random_array((2_000, 20_000), density=0.05, format="csr", rng=rng, dtype=np.float32)
    x.data[:] = rng.geometric(0.5, x.nnz)
    return x


def rows() -> np.ndarray:
    """Rows for the autoencoders: (1280, 1000) float32."""
    return np.random.default_rng(0).standard_normal((N_ROWS, AE_WIDTHS[0]), dtype=np.float32)


def split(n_cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(held-out, other) cells: positions of a random fifth, and of the rest."""
    order = np.random.default_rng([seed, 1]).permutation(n_cells)
    return np.sort(order[: n_cells // 5]), np.sort(order[n_cells // 5 :])

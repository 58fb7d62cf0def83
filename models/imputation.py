"""How well counts that were hidden are recovered: a score for denoising. This is engineering.

Whether `denoise` is any good cannot be seen from its numbers, for nobody knows the true means. But
counts can be hidden and asked for. Here, by a "model" that answers 1 for every entry:

    >>> counts = np.random.default_rng(0).poisson(2.0, (100, 20))
    >>> found = imputation_error(counts, impute=lambda seen: np.ones(seen.shape))
    >>> sorted(found), found["model"]
    (['gene mean', 'model', 'pca'], 1.0)

Know before reading: counts.py, and what principal components are. No knowledge of the model is
needed: it is a function from counts to imputed counts.

Know after: what "imputation error" means in the paper of scVI, and what it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from minigrad import backend
from models.counts import as_matrix, log1p, normalize
from models.posterior import POSTERIOR


def imputation_error(
    counts: Any,
    impute: Callable[[sparse.csr_array], Any],
    *,
    fraction: float = 0.1,
    n_components: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """How well hidden counts are recovered, by the measure of the scVI paper (Lopez et al. 2018).

    Zeros are put in uniformly: each non-zero entry of counts (n_cells, n_genes) is set to zero with
    probability `fraction`, a draw of its own. impute: a function from the corrupted counts (CSR,
    float32) to imputed ones (n_cells, n_genes), which trains what it needs: `lambda x:
    train(x).denoise(x)`. Returns the median absolute error over the hidden entries, in counts, of
    "model", and beside it of "gene mean" (over cells) and of "pca" (`n_components` of normalised
    log1p counts, mapped back). All see the corrupted counts and their totals only. ValueError for
    another shape than that of counts.
    """
    x = sparse.csr_array(as_matrix(counts))
    hidden = backend.generator([seed, POSTERIOR]).random(x.nnz) < fraction
    if not 0 < fraction < 1 or not hidden.any():
        raise ValueError(
            f"fraction must be in (0, 1) and hide an entry; {fraction} of {x.nnz} "
            "non-zeros does not"
        )
    rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))[hidden]
    columns = x.indices[hidden]
    corrupted = sparse.csr_array(
        (np.where(hidden, 0, x.data), x.indices.copy(), x.indptr.copy()), shape=x.shape
    )
    corrupted.eliminate_zeros()
    imputed = np.asarray(impute(corrupted.copy()))
    if imputed.shape != x.shape:
        raise ValueError(f"impute returned shape {imputed.shape} for counts of shape {x.shape}")
    found = {
        "model": imputed[rows, columns],
        "gene mean": np.asarray(corrupted.mean(axis=0)).ravel()[columns],
        "pca": _pca_imputed(corrupted, rows, columns, n_components),
    }
    truth = x.data[hidden]
    return {name: float(np.median(np.abs(values - truth))) for name, values in found.items()}


def _pca_imputed(x, rows, columns, n_components):
    """Counts at (rows, columns) of a CSR matrix, by its first principal components."""
    y = log1p(normalize(x)).astype(np.float64)
    totals = np.asarray(x.sum(axis=1)).ravel()
    mean = np.asarray(y.mean(axis=0)).ravel()
    axes = principal_axes(y, mean, n_components)
    scores = y @ axes - mean @ axes
    normalized = np.expm1(mean[columns] + np.einsum("ik,ik->i", scores[rows], axes[columns]))
    return np.maximum(normalized, 0.0) * totals[rows] / np.median(totals[totals > 0])


def principal_axes(y, mean, n_components) -> np.ndarray:
    """The first principal axes of y, CSR (n_cells, n_genes), as columns: (n_genes, n_components).

    mean: that of each gene, (n_genes,). The matrix y - mean is not sparse, and genes x genes is
    larger still. Neither is made: Lanczos' method asks only for products with y - mean and with its
    transpose, which are products with y and a correction. Models are compared with these axes, so
    they are exact; those from which scVI's training starts (recipe.py, `principal_components`) need
    not be, and take a quarter of the time.
    """
    if min(y.shape) <= n_components:  # all axes there are, which Lanczos' method cannot give
        return np.linalg.svd(y.toarray() - mean, full_matrices=False)[2].T

    def product(v):
        return y @ v - mean @ v

    def product_of_transpose(u):
        return y.T @ u - np.multiply.outer(mean, np.sum(u, axis=0))

    centred = LinearOperator(y.shape, product, product_of_transpose, dtype=y.dtype)
    start = backend.generator([POSTERIOR]).standard_normal(min(y.shape))
    return svds(centred, n_components, v0=start)[2].T

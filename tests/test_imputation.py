"""The score of imputed counts: what is hidden, what it is compared with, and that a model does better."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from models import SCVI
from models.imputation import imputation_error
from tests.test_posterior import two_types


def test_imputation_error_hides_a_tenth_of_the_nonzeros_and_compares():
    x, _ = two_types(300, 30, seed=3)
    before, seen = x.copy(), []

    def impute(corrupted):
        seen.append(corrupted)
        return x + 0.75

    found = imputation_error(x, impute, seed=1)
    hidden = (x > 0) & (seen[0].toarray() == 0)
    assert np.array_equal(x, before) and np.array_equal(seen[0].toarray()[~hidden], x[~hidden])
    assert seen[0].data.all() and abs(hidden.sum() / (x > 0).sum() - 0.1) < 0.015
    assert found["model"] == 0.75
    corrupted = seen[0].toarray().astype(np.float64)
    error = np.abs(corrupted.mean(axis=0) - x)[hidden]
    assert found["gene mean"] == pytest.approx(np.median(error))

    totals = corrupted.sum(axis=1, keepdims=True)
    y = np.log1p(corrupted / totals * np.median(totals))
    u, s, v = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    mapped = (
        np.maximum(np.expm1((u[:, :10] * s[:10]) @ v[:10] + y.mean(axis=0)), 0)
        * totals
        / np.median(totals)
    )
    assert found["pca"] == pytest.approx(np.median(np.abs(mapped - x)[hidden]), rel=1e-4)
    other = []
    imputation_error(sparse.csc_array(x), lambda c: other.append(c) or x, fraction=0.3, seed=2)
    assert abs(((x > 0) & (other[0].toarray() == 0)).sum() / (x > 0).sum() - 0.3) < 0.02


def error_of_components(corrupted, x, n_components):
    """The error of "pca" with a dense singular value decomposition, over what is hidden."""
    seen = corrupted.toarray().astype(np.float64)
    totals = seen.sum(axis=1, keepdims=True)
    target = np.median(totals[totals > 0])
    y = np.log1p(np.divide(seen, totals, out=np.zeros_like(seen), where=totals > 0) * target)
    u, s, v = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    mapped = (u[:, :n_components] * s[:n_components]) @ v[:n_components] + y.mean(axis=0)
    imputed = np.maximum(np.expm1(mapped), 0) * totals / target
    hidden = (x > 0) & (seen == 0)
    return np.median(np.abs(imputed - x)[hidden])


def test_components_of_many_genes_need_no_table_of_genes_by_genes():
    n_genes = 3000
    x = np.random.default_rng(0).poisson(0.3, (40, n_genes)).astype(np.float32)
    seen = []
    tracemalloc.start()
    try:
        found = imputation_error(x, lambda c: seen.append(c) or x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * n_genes**2 / 4
    assert found["pca"] == pytest.approx(error_of_components(seen[0], x, 10), rel=1e-4)


@pytest.mark.parametrize("n_cells, n_genes", [(60, 6), (8, 30), (60, 10)])
def test_more_components_than_there_can_be(n_cells, n_genes):
    x = np.random.default_rng(1).poisson(1.0, (n_cells, n_genes)).astype(np.float32)
    seen = []
    found = imputation_error(x, lambda c: seen.append(c) or x)
    assert found["pca"] == pytest.approx(error_of_components(seen[0], x, 10), rel=1e-4)


def test_imputation_of_a_trained_model_beats_the_gene_mean():
    x, _ = two_types(400, 30, seed=4)

    def impute(corrupted):
        model = SCVI(30, n_latent=3, n_hidden=16, likelihood="nb")
        model.fit(corrupted, epochs=30, weight_decay=0.0, progress=False)
        return model.denoise(corrupted, n_samples=5)

    found = imputation_error(x, impute)
    assert found["model"] < 0.9 * found["gene mean"]


@pytest.mark.parametrize(
    "fraction, impute, message",
    [
        (0.0, lambda c: c.toarray(), "fraction"),
        (1.0, lambda c: c.toarray(), "fraction"),
        (0.1, lambda c: c.toarray()[:3], r"impute returned shape \(3, 30\)"),
    ],
)
def test_wrong_imputation(fraction, impute, message):
    with pytest.raises(ValueError, match=message):
        imputation_error(two_types(50, 30)[0], impute, fraction=fraction)

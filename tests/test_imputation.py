"""The score of imputed counts: what is hidden, what it is compared with, and that a model does better."""

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

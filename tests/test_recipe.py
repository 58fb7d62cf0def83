"""The choices of scVI's training, each against a formula or distribution that is known."""

import numpy as np
import pytest
from scipy import sparse, stats

from minigrad import nn, optim
from models.recipe import AdamWithPrior, thinned, usual_dropout, usual_epochs


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_thinned_counts_are_binomial(kind):
    """Each value of twice Binomial(x, 1/2) comes as often as scipy.stats says; zeros stay; CSR and dense get the same."""
    x = np.tile(np.array([0, 1, 2, 3, 5, 9, 40], np.float32), (40000, 1))
    found = thinned(kind(x), np.random.default_rng(0))
    assert sparse.issparse(found) == sparse.issparse(kind(x)) and found.dtype == np.float32
    found = found.toarray() if sparse.issparse(found) else found
    np.testing.assert_array_equal(found, thinned(x, np.random.default_rng(0)))
    for column, n in enumerate(x[0].astype(int)):
        share = np.bincount((found[:, column] / 2).astype(int), minlength=n + 1) / len(x)
        expected = stats.binom.pmf(np.arange(n + 1), n, 0.5)
        assert len(share) == n + 1 and np.max(np.abs(share - expected)) < 0.03
        assert abs(found[:, column].mean() - n) < 0.02 * max(n, 1)


@pytest.mark.parametrize(
    "n_cells, n_genes, depth, dropout",
    [(100, 2000, 0.01, 0.3), (2000, 2000, 1.0, 0.3), (2000, 500, 1.0, 0.075)]
    + [(2000, 2000, 3.0, 0.1), (2000, 500, 10.0, 0.0075), (1_000_000, 2000, 0.5, 0.0006)],
)
def test_dropout_follows_cells_genes_and_depth(n_cells, n_genes, depth, dropout):
    n_counts = depth * n_cells * n_genes
    assert usual_dropout(n_cells, n_genes, n_counts) == pytest.approx(dropout)


def test_the_prior_is_a_term_of_the_loss():
    """Two steps are those of Adam on a loss that has the term, written down; other weights feel nothing of it."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=5), rng.normal(size=6)]
    slopes = [rng.normal(size=w.shape) for w in starts]

    def trained(optimizer_of, strength):
        weights = [nn.Parameter(w.copy()) for w in starts]
        optimizer = optimizer_of(weights)
        for _ in range(2):
            optimizer.zero_grad()
            loss = sum(np.sum(slope * w) for slope, w in zip(slopes, weights))
            (loss + 0.5 * strength * np.sum(np.square(weights[0]))).backward()
            optimizer.step()
        return [w.data for w in weights]

    mine = trained(lambda ws: AdamWithPrior(ws, 0.1, 0.7, [ws[0]], ws[2], {}), 0.0)
    expected = trained(lambda ws: optim.Adam(ws, 0.1), 0.7)
    np.testing.assert_allclose(mine[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(mine[1], expected[1], rtol=1e-12)
    np.testing.assert_array_equal(mine[2], starts[2])


@pytest.mark.parametrize(
    "n_cells, epochs",
    [
        (2, 500),
        (100, 500),
        (200, 500),
        (300, 250),
        (500, 200),
        (20_000, 200),
        (25_000, 160),
        (40_000, 100),
    ]
    + [(100_000, 40), (1_300_000, 10)],
)
def test_epochs_by_default(n_cells, epochs):
    n_steps = max(1, round(0.9 * n_cells / 128))
    assert usual_epochs(n_cells, n_steps) == epochs

"""The choices of scVI's training, each against a formula or distribution that is known."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import sparse, stats

from minigrad import nn, optim
from minigrad.data import Blocks
from models import SCVI, recipe
from models.count_inputs import training_cells
from models.counts import Counts
from models.recipe import AdamForCounts, principal_components, thinned, usual_dropout, usual_epochs


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

    mine = trained(lambda ws: AdamForCounts(ws, 0.1, 0.7, [ws[0]], ws[2], {}), 0.0)
    expected = trained(lambda ws: optim.Adam(ws, 0.1), 0.7)
    np.testing.assert_allclose(mine[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(mine[1], expected[1], rtol=1e-12)
    np.testing.assert_array_equal(mine[2], starts[2])


def test_theta_is_trained_at_ten_times_the_rate():
    """Steps are those of two optimisers, of which one has log_theta alone, with its prior and ten times the rate."""
    rng = np.random.default_rng(1)
    starts = [rng.normal(size=(3, 4)), rng.normal(size=5), rng.normal(size=6)]
    slopes = rng.normal(size=(3, 5))

    def trained(strength, *optimizers_of):
        weights = [nn.Parameter(w.copy()) for w in starts]
        optimizers = [optimizer_of(weights) for optimizer_of in optimizers_of]
        for slope in slopes:
            for p in weights:
                p.grad = None
            loss = sum(np.sum(np.square(w - slope[0])) for w in weights)
            (loss + 0.5 * strength * np.sum(np.square(weights[1]))).backward()
            for optimizer in optimizers:
                optimizer.step()
        return [w.data for w in weights]

    mine = trained(
        0.0, lambda ws: AdamForCounts(ws, 0.01, 0.0, [ws[0]], ws[2], {ws[1]: 0.7}, ws[1])
    )
    expected = trained(
        0.7, lambda ws: optim.Adam([ws[0]], 0.01), lambda ws: optim.Adam([ws[1]], 0.1)
    )
    np.testing.assert_allclose(mine[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(mine[1], expected[1], rtol=1e-12)
    np.testing.assert_array_equal(mine[2], starts[2])


@pytest.mark.parametrize("shape", [(40, 15), (15, 40)])
def test_principal_components_are_those_of_what_a_regression_leaves(shape):
    """By NumPy's least squares and singular values; axes and scores up to their common sign."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=shape) * (rng.random(shape) < 0.4)
    known = np.column_stack([rng.normal(size=shape[0]), np.eye(2)[np.arange(shape[0]) % 2]])
    left = y - known @ np.linalg.lstsq(known, y, rcond=None)[0]
    u, lengths, axes = np.linalg.svd(left, full_matrices=False)
    found_axes, found_scores = principal_components(sparse.csr_array(y), known, 4)
    signs = np.sign(np.sum(found_axes * axes[:4].T, axis=0))
    np.testing.assert_allclose(found_axes * signs, axes[:4].T, atol=1e-9)
    np.testing.assert_allclose(found_scores * signs, u[:, :4] * np.sqrt(shape[0]), atol=1e-9)


def test_there_are_no_components_of_nothing():
    """Rows that what is known of them explains have none, and noise of rank 1 has one."""
    known = np.eye(2)[np.arange(12) % 2]
    rows = known @ np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0]])
    assert principal_components(sparse.csr_array(rows), known, 2)[0].shape == (3, 0)
    rows += np.outer([1.0, 1.0, -1.0, -1.0] * 3, [1.0, 1.0, 1.0])
    axes, scores = principal_components(sparse.csr_array(rows), known, 2)
    np.testing.assert_allclose(np.abs(axes), np.full((3, 1), 3**-0.5))
    np.testing.assert_allclose(np.abs(scores), np.ones((12, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_components_that_stand_out_are_found_beside_noise(dtype):
    """Of 300 x 400 of noise and three directions: these by NumPy's SVD; of the noise, nearly as much as can be had."""
    rng = np.random.default_rng(0)
    sizes = np.array([12.0, 6.0, 4.0])
    y = (rng.normal(size=(300, 3)) * sizes) @ np.linalg.qr(rng.normal(size=(400, 3)))[0].T
    y = (y + rng.normal(size=y.shape)) * (rng.random(y.shape) < 0.5)
    known = np.ones((300, 1))
    u, lengths, axes = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    found_axes, scores = principal_components(sparse.csr_array(y.astype(dtype)), known, 10)
    assert found_axes.dtype == scores.dtype == dtype
    np.testing.assert_allclose(found_axes.T @ found_axes, np.eye(10), atol=1e-5)
    np.testing.assert_allclose(scores.T @ scores / 300, np.eye(10), atol=1e-5)
    of_first = np.abs(np.sum(found_axes[:, :3] * axes[:3].T, axis=0))
    np.testing.assert_allclose(of_first, 1.0, atol=1e-3)
    left = np.linalg.norm((y - y.mean(axis=0)) @ found_axes) ** 2
    assert 0.96 < left / np.sum(lengths[:10] ** 2) <= 1.0 + 1e-6


def test_slopes_are_a_step_of_fisher_scoring():
    """The derivative of the log likelihood by SciPy's NB and a difference quotient, over the information and the prior."""
    rng = np.random.default_rng(0)
    genes = recipe.Expression(rng.dirichlet(np.ones(5)), rng.uniform(0.1, 9.0, 5))
    scores = rng.normal(size=(150, 2))
    totals = rng.integers(50, 500, 150)
    counts = rng.poisson(totals[:, None] * genes.rho)
    counts[:, 4] += totals - counts.sum(axis=1) - (totals - counts.sum(axis=1)).min()
    totals = counts.sum(axis=1)

    def log_p(slope, k):  # of each gene, as log rho of a cell is slope * score above its mean
        mu = totals[:, None] * genes.rho * np.exp(slope * scores[:, k : k + 1])
        return stats.nbinom.logpmf(counts, genes.theta, genes.theta / (genes.theta + mu)).sum(
            axis=0
        )

    step = 1e-5
    derivative = np.stack([(log_p(step, k) - log_p(-step, k)) / (2 * step) for k in (0, 1)], axis=1)
    mu = totals[:, None] * genes.rho
    information = np.sum(mu**2 / (mu + mu**2 / genes.theta), axis=0)  # mu^2 / variance
    found = recipe._slopes(sparse.csr_array(counts.astype(float)), scores, genes, 7.0)
    np.testing.assert_allclose(found, derivative / (information[:, None] + 7.0), rtol=1e-6)


DEGENERATE = {
    "two cells": [[3, 0, 1], [1, 4, 0]],
    "one gene": [[1], [2], [0], [7]],
    "equal cells": np.full((9, 4), [3, 0, 1, 200]),
    "multiples of a cell": np.outer(np.arange(1, 9), [3, 0, 1, 2]),
    "all in one gene": np.outer(np.arange(1, 9), [0, 1, 0]),
    "one cell apart": np.vstack([np.ones((20, 5)), [[0, 0, 90, 0, 0]]]),
    "enormous": np.random.default_rng(0).poisson(2.0, (8, 5)) * 1_000_000,
    "a single count": np.vstack([np.zeros((8, 5)), np.eye(5)[:2]]),
    "genes without counts": np.eye(30)[np.arange(40) % 3],
}


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_the_start_of_what_tells_nothing_is_finite(name, dtype):
    """Few cells or genes, or all alike; in memory and on the disk, with a covariate that is constant or one of each cell."""
    x = sparse.csr_array(np.asarray(DEGENERATE[name], np.float32))
    n_cells, n_genes = x.shape
    on_disk = Blocks(lambda a, b: x[a:b], np.unique([*range(0, n_cells, 3), n_cells]), n_genes)
    obs = {"age": np.full(n_cells, 50.0), "cell": np.arange(n_cells).astype(str)}
    starts = []
    for matrix in (x, on_disk):
        counts = Counts(matrix, [f"g{i}" for i in range(n_genes)], range(n_cells), obs)
        known = dict(categorical=["cell"], continuous=["age"]) if n_cells < 10 else {}
        model = SCVI.for_data(counts, **known, n_latent=40, library="latent", dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of empty cells, and of few of a label
            recipe.start(model, training_cells(model, counts, None, None))
        starts.append(model.state_dict())
    for array, same in zip(starts[0].values(), starts[1].values(), strict=True):
        assert array.dtype == dtype and np.all(np.isfinite(array))
        np.testing.assert_array_equal(array, same)


def test_each_cell_a_batch_of_its_own_starts_and_trains():
    x = np.random.default_rng(0).poisson(2.0, (6, 4)) + 1
    model = SCVI(4, 6, n_latent=2, n_hidden=4, library="latent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        history = model.fit(x, np.arange(6), epochs=2, progress=False)
    assert np.all(np.isfinite(history["train_loss"]))
    np.testing.assert_allclose(model.library_log_mean, np.log(x.sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(model.library_log_var, recipe.LIBRARY_FLOOR)


def test_the_start_makes_no_dense_table_of_cells_and_genes():
    n_cells, n_genes = 1500, 6000
    x = sparse.random_array((n_cells, n_genes), density=0.01, rng=np.random.default_rng(0))
    x = sparse.csr_array(x).ceil().astype(np.float32)
    model = SCVI(n_genes, n_latent=4, n_hidden=8)
    cells = training_cells(model, x, None, None)
    tracemalloc.start()
    try:
        recipe.start(model, cells)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n_cells * n_genes * 4 / 2


@pytest.fixture
def untrained(monkeypatch):
    """A function: the model that `fit` would begin its steps with, and the counts, (300, 12), and kinds of its cells.

    Two kinds, which tell apart the first six genes from the others. Totals vary, and the second
    half, which is another batch, has four times as much of gene 11.
    """
    rng = np.random.default_rng(0)
    kind = np.arange(300) % 2
    batch = np.arange(300) // 150
    log_rho = np.where(np.arange(12) < 6, 0.7, -0.7) * (2.0 * kind[:, None] - 1.0)
    log_rho[:, 11] += np.log(4.0) * batch
    rho = np.exp(log_rho) / np.exp(log_rho).sum(axis=1, keepdims=True)
    counts = rng.poisson(rho * rng.lognormal(6.0, 0.5, (300, 1)))
    monkeypatch.setattr("models.scvi.fit", lambda *_, **__: None)

    def started(n_batches=1, **config):
        model = SCVI(12, n_batches, n_latent=3, **config)
        model.fit(counts, batch if n_batches > 1 else None, progress=False)
        return model, counts, kind

    return started


@pytest.mark.parametrize("n_layers", [1, 2])
def test_z_begins_at_the_kinds_of_cells_and_rho_follows(untrained, n_layers):
    model, counts, kind = untrained(n_hidden=16, thinning=False, n_layers=n_layers)
    model.train()  # batch norm by these cells: its running statistics know none so far
    z = model.inference(counts.astype(np.float32))[0].loc.numpy()
    assert abs(np.corrcoef(z[:, 0], kind)[0, 1]) > 0.95
    assert z[:, 0].std() == pytest.approx(1.0, abs=0.01)
    log_rho = model.heads(z, np.zeros(300, int))["logits"].numpy()
    in_kinds = log_rho[kind == 1].mean(axis=0) - log_rho[kind == 0].mean(axis=0)
    # The truth differs by 1.4. One step goes on past it, or stops before it, by the curvature.
    assert np.all(in_kinds[:6] > 0.5) and np.all(in_kinds[6:] < -0.5)
    assert np.all(np.abs(in_kinds) < 2.8)


def test_z_begins_without_what_the_batch_explains(monkeypatch):
    """Kinds differ in six genes, and batches by more in six others: the component is the kind."""
    monkeypatch.setattr("models.scvi.fit", lambda *_, **__: None)
    monkeypatch.setattr(recipe, "N_COMPONENTS", 1)
    rng = np.random.default_rng(0)
    kind, batch = np.arange(300) % 2, np.arange(300) // 150
    log_rho = np.zeros((300, 12))
    log_rho[:, :6] = np.array([0.7, -0.7] * 3) * (2.0 * kind[:, None] - 1.0)
    log_rho[:, 6:] = np.array([1.2, -1.2] * 3) * (2.0 * batch[:, None] - 1.0)
    counts = rng.poisson(30.0 * np.exp(log_rho) * rng.lognormal(0.0, 0.5, (300, 1)))
    model = SCVI(12, 2, n_latent=3, n_hidden=16, thinning=False)
    model.fit(counts, batch, progress=False)
    model.train()
    z = model.inference(counts.astype(np.float32))[0].loc.numpy()[:, 0]
    assert abs(np.corrcoef(z, kind)[0, 1]) > 0.95
    assert abs(np.corrcoef(z, batch)[0, 1]) < 0.1


@pytest.mark.parametrize(
    "config", [{"n_hidden": 1}, {"n_hidden": 16, "n_batches": 2, "n_layers": 1}]
)
def test_z_begins_anywhere_without_room_and_with_one_layer_for_several_batches(untrained, config):
    before = SCVI(12, n_latent=3, **config).state_dict()
    after = untrained(**config)[0].state_dict()
    for name in ("z_encoder.mean.weight", "decoder.rho.weight", "decoder.layers.linears.0.weight"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


def test_the_start_leaves_frozen_weights(untrained, monkeypatch):
    monkeypatch.setattr(recipe, "N_COMPONENTS", 1)
    made = SCVI.__init__

    def frozen(self, *arguments, **config):
        made(self, *arguments, **config)
        self.decoder.rho.weight.requires_grad = False

    monkeypatch.setattr(SCVI, "__init__", frozen)
    model = untrained(n_hidden=8)[0]
    unfrozen = SCVI(12, n_latent=3, n_hidden=8)
    np.testing.assert_array_equal(model.decoder.rho.weight.data, unfrozen.decoder.rho.weight.data)
    assert np.count_nonzero(model.z_encoder.mean.weight.data) == 2


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


def test_what_is_told_of_cells_makes_a_training_of_few_longer():
    assert usual_epochs(2000, 16, n_conditions=2) == 200
    assert usual_epochs(200, 2, n_conditions=1) == 750
    model = SCVI(5, 2, n_latent=2, n_hidden=4)
    history = model.fit(np.ones((256, 5)), np.arange(256) % 2, validation=0, progress=False)
    assert history["epoch"][-1] == 750

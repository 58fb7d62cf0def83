"""models/trial.py: what one trial finds, beside SciPy, NumPy and SCVI called by hand."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout

import numpy as np
import pytest
from scipy import optimize, sparse, stats

from models import SCVI, guarded, trial
from models.clustering import adjusted_rand_index, kmeans, normalized_mutual_information
from models.trial import Cells, Judged

SEEN = 70


def made(n_batches=2, n_genes=12, n_cells=90, theta=1.5):
    """Three groups of cells in batches whose genes are counted with efficiencies of their own."""
    rng = np.random.default_rng(3)
    group = rng.integers(0, 3, n_cells)
    batch = np.arange(n_cells) % n_batches
    fraction = rng.dirichlet(np.ones(n_genes), size=(n_batches, 3))[batch, group]
    mu = rng.integers(80, 400, n_cells)[:, None] * fraction
    x = rng.negative_binomial(theta, theta / (theta + mu)).astype(np.float32)
    x[0] += 1  # every gene is seen, and no cell is empty
    x[:, 0] += 1
    is_held_out = np.zeros(n_cells, bool)
    is_held_out[rng.permutation(n_cells)[SEEN:]] = True
    return Cells(sparse.csr_array(x), batch, is_held_out, group, {})


def log_likelihood(x, mu, log_theta):
    """SciPy's, of counts of one gene."""
    theta = np.exp(log_theta)
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu)).sum()


def test_fractions_of_genes_are_those_of_their_counts():
    cells = made()
    found = trial.gene_fractions(cells.x, cells.batch)
    x = cells.x.toarray().astype(float)
    pooled = (x.sum(axis=0) + 0.5) / (x.sum() + 6.0)
    for b in range(2):
        of_batch = x[cells.batch == b].sum(axis=0) + x.sum() / len(x) * pooled
        np.testing.assert_allclose(found[b], of_batch / of_batch.sum(), rtol=1e-12)
    many = sparse.csr_array(np.tile(x[:10], (1000, 1)))
    of_counts = x[:10].sum(axis=0) / x[:10].sum()
    found = trial.gene_fractions(many, np.zeros(10_000, int))[0]
    np.testing.assert_allclose(found, of_counts, rtol=1e-3)


@pytest.mark.parametrize("budget", [None, 300])
def test_dispersions_are_the_most_likely_ones(monkeypatch, budget):
    if budget is not None:  # a few genes at a time
        monkeypatch.setattr(trial, "BUDGET", budget)
    cells = made()
    x = cells.x.toarray()
    x[:, 3] = 2.0  # varies less than a Poisson distribution
    fraction = trial.gene_fractions(sparse.csr_array(x), cells.batch)
    found = trial.most_likely_log_theta(sparse.csr_array(x), cells.batch, np.log(fraction))
    for g in range(12):
        mu = x.sum(axis=1) * fraction[cells.batch, g]
        oracle = optimize.minimize_scalar(
            lambda t, x=x[:, g], mu=mu: -log_likelihood(x, mu, t),
            bounds=(trial.LOG_THETAS[0], trial.LOG_THETAS[-1]),
            method="bounded",
        )
        assert log_likelihood(x[:, g], mu, found[g]) == pytest.approx(-oracle.fun, abs=2e-3)
    assert found[3] == trial.LOG_THETAS[-1]


def test_the_nb_of_each_gene_is_judged_on_held_out_cells():
    cells = made()
    train, test = ~cells.is_held_out, cells.is_held_out
    fraction = trial.gene_fractions(cells.x[train], cells.batch[train])
    log_theta = trial.most_likely_log_theta(cells.x[train], cells.batch[train], np.log(fraction))
    x = cells.x[test].toarray()
    mu = x.sum(axis=1)[:, None] * fraction[cells.batch[test]]
    theta = np.exp(log_theta)
    expected = stats.nbinom.logpmf(x, theta, theta / (theta + mu)).sum(axis=1)
    judged = trial.judge_gene_nb(cells)
    np.testing.assert_allclose(judged.log_p, expected, rtol=1e-6)
    assert judged.elbo is None and judged.ari is None


def test_the_nb_of_each_gene_finds_what_it_was_simulated_from():
    rng = np.random.default_rng(0)
    fraction, theta = rng.dirichlet(np.full(20, 5.0)), np.exp(rng.uniform(-1, 2, 20))
    total = rng.integers(500, 2000, 3000)
    mu = total[:, None] * fraction
    x = sparse.csr_array(rng.negative_binomial(theta, theta / (theta + mu)).astype(np.float32))
    batch = np.zeros(3000, int)
    found = trial.gene_fractions(x, batch)
    np.testing.assert_allclose(found[0], fraction, rtol=0.15)
    log_theta = trial.most_likely_log_theta(x, batch, np.log(found))
    np.testing.assert_allclose(log_theta, np.log(theta), atol=0.15)


@pytest.mark.parametrize("n_genes", [12, 120])  # fewer and more than training cells
def test_clusters_of_pca_are_those_of_a_dense_svd(n_genes):
    cells = made(n_batches=1, n_genes=n_genes)
    x = cells.x.toarray()
    totals = x.sum(axis=1)
    y = np.log1p(x / totals[:, None] * np.median(totals))
    train = y[~cells.is_held_out]
    axes = np.linalg.svd(train - train.mean(axis=0))[2][:10].T
    clusters = kmeans((y - train.mean(axis=0)) @ axes, 3)
    judged = trial.judge_pca(cells)
    assert judged.ari == pytest.approx(adjusted_rand_index(cells.labels, clusters))
    assert judged.nmi == pytest.approx(normalized_mutual_information(cells.labels, clusters))
    assert judged.log_p is None


def test_pca_of_fewer_cells_than_genes_finds_a_start():
    rng = np.random.default_rng(0)
    x = sparse.csr_array(rng.poisson(1.0, (20, 50)).astype(np.float32))
    is_held_out = np.arange(20) < 4
    judged = trial.judge_pca(trial.Cells(x, np.zeros(20, int), is_held_out, np.arange(20) % 2, {}))
    assert -1.0 <= judged.ari <= 1.0


@pytest.mark.parametrize("n_batches", [1, 2])
def test_scvi_is_trained_on_the_training_cells_and_judged_on_the_others(n_batches, tmp_path):
    cells = made(n_batches)
    config = dict(likelihood="nb", n_latent=3, n_hidden=8, seed=4)
    judged = trial.judge_scvi(cells, config, {"epochs": 4}, 20, str(tmp_path / "unfinished.npz"))
    train, test = ~cells.is_held_out, cells.is_held_out
    batch = cells.batch.astype(str)
    model = SCVI(12, n_batches, **config)
    model.fit(cells.x[train], batch[train], epochs=4, progress=False)
    value, error = model.log_likelihood(cells.x[test], batch[test], n_samples=20, return_error=True)
    np.testing.assert_array_equal(judged.log_p, value)
    np.testing.assert_array_equal(judged.log_p_error, error)
    np.testing.assert_array_equal(judged.elbo, model.elbo(cells.x[test], batch[test], n_samples=30))
    clusters = kmeans(model.latent(cells.x, batch), 3)
    assert judged.ari == pytest.approx(adjusted_rand_index(cells.labels, clusters))


def test_a_training_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    """Stopped in its third epoch of four; the second call does the last two, to the same end."""
    asked = (made(), dict(likelihood="nb", n_latent=3, n_hidden=8), {"epochs": 4}, 20)
    expected, validation, n_looks = trial.judge_scvi(*asked), SCVI.validation, []

    def stopped(self, *minibatch, rng):
        n_looks.append(1)
        if len(n_looks) == 3:
            raise KeyboardInterrupt
        return validation(self, *minibatch, rng=rng)

    monkeypatch.setattr(SCVI, "validation", stopped)
    with pytest.raises(KeyboardInterrupt):
        trial.judge_scvi(*asked, str(tmp_path / "unfinished.npz"))
    judged = trial.judge_scvi(*asked, str(tmp_path / "unfinished.npz"))
    assert len(n_looks) == 3 + 2
    np.testing.assert_array_equal(judged.log_p, expected.log_p)


def test_files_hold_what_they_were_given(tmp_path):
    cells, path = made(), tmp_path / "cells.npz"
    for labels in (cells.labels, None):
        trial.write_cells(path, cells._replace(labels=labels))
        found = trial.read_cells(path)
        np.testing.assert_array_equal(found.x.toarray(), cells.x.toarray())
        np.testing.assert_array_equal(found.batch, cells.batch)
        np.testing.assert_array_equal(found.is_held_out, cells.is_held_out)
        assert (found.labels is None) == (labels is None)
    judged, path = Judged(log_p=np.array([-1.5, -2.5]), seconds=2.0, ari=0.25), tmp_path / "j.npz"
    assert trial.read_judged(path) is None
    trial.write_judged(path, judged)
    found = trial.read_judged(path)
    np.testing.assert_array_equal(found.log_p, judged.log_p)
    assert (found.seconds, found.ari, found.nmi, found.elbo) == (2.0, 0.25, None, None)
    path.write_bytes(path.read_bytes()[:200])
    assert trial.read_judged(path) is None


def request(tmp_path, **changes):
    trial.write_cells(tmp_path / "cells.npz", made())
    asked = {
        "kind": "scvi",
        "cells": str(tmp_path / "cells.npz"),
        "result": str(tmp_path / "result.npz"),
        "unfinished": str(tmp_path / "unfinished.npz"),
        "config": {"likelihood": "nb", "n_latent": 2, "n_hidden": 4},
        "fit": {"epochs": 2},
        "n_samples": 5,
    }
    return {**asked, **changes}


def start(asked):
    program = "import sys; from models import trial; trial.main(sys.argv[1])"
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(asked)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=guarded.environment(),
    )


def test_a_process_writes_its_result_or_a_sentence(tmp_path, monkeypatch):
    """The child's main, here in this process: what it writes, leaves behind, and says."""
    monkeypatch.setattr(trial.signal, "signal", lambda *_: None)
    monkeypatch.setattr(trial.threading, "Thread", lambda **_: NoThread())
    trial.main(json.dumps(request(tmp_path)))
    assert trial.read_judged(tmp_path / "result.npz").log_p.shape == (20,)
    assert sorted(os.listdir(tmp_path)) == ["cells.npz", "result.npz"]
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as ended:
        trial.main(json.dumps(request(tmp_path, fit={"epochs": 2, "batch_size": 1})))
    assert ended.value.code == 1
    assert "batch_size must be at least 2" in json.loads(said.getvalue())


class NoThread:
    def start(self):
        pass


def test_a_process_ends_with_its_parent(tmp_path):
    """Its standard input closes, as it does when the parent is killed: it ends in its training."""
    child = start(request(tmp_path, fit={"epochs": 100_000}))
    while not (tmp_path / "unfinished.npz").exists() and child.poll() is None:
        time.sleep(0.02)
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(timeout=20) == 1
    child.stdout.close()
    assert not (tmp_path / "result.npz").exists()

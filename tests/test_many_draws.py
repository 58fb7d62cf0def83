"""One cell under many draws: the quick sums against the likelihoods themselves, gene by gene."""

import numpy as np
import pytest
from scipy import special

from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from minigrad.fit import evaluating
from models import many_draws, posterior
from tests.test_posterior import LIKELIHOODS, counts_like, untrained


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_cell_under_many_draws_is_the_sum_of_log_probs(likelihood, dtype, tolerance):
    rng = np.random.default_rng(0)
    for _ in range(20):
        n_genes = rng.integers(1, 250)
        x = np.floor(np.exp(rng.uniform(-2.0, 9.0, n_genes))).astype(dtype) * (
            rng.random(n_genes) < rng.random()
        )
        log_mu, zi_logits = (
            rng.uniform(-20.0, 9.0, (30, n_genes)),
            rng.normal(0.0, 40.0, (30, n_genes)),
        )
        log_mu, log_theta, zi_logits = [
            a.astype(dtype) for a in (log_mu, rng.uniform(-8, 12, n_genes), zi_logits)
        ]
        wide = [a.astype(np.float64) for a in (log_mu, log_theta, zi_logits)]
        truth = {
            "poisson": lambda: poisson_log_prob(x, wide[0]),
            "nb": lambda: nb_log_prob(x, *wide[:2]),
            "zinb": lambda: zinb_log_prob(x, *wide),
        }[likelihood]().sum(axis=1)
        found = many_draws.ONE_CELL[likelihood](x, log_theta)(
            log_mu, *([zi_logits] if likelihood == "zinb" else [])
        )
        scale = np.maximum(np.abs(truth), special.gammaln(x + 1.0).sum() + 1.0)
        assert np.max(np.abs(found - truth) / scale) < tolerance


@pytest.mark.parametrize("n", [0, 1, 100, 731])
def test_sums_of_logarithms_of_products_do_not_overflow(n):
    u = np.full((2, n), 2.0, np.float32)
    u[1] = np.random.default_rng(0).uniform(1.0, 2.0, n)
    np.testing.assert_allclose(
        many_draws._sum_log(u), np.log(u.astype(np.float64)).sum(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 1e-4)])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_many_draws_have_the_log_prob_of_copies_of_the_cell(
    likelihood, dispersion, dtype, tolerance
):
    """The quick way and the plain one, of the same draws; cells without counts are seen to elsewhere."""
    model = untrained(n_batches=2, likelihood=likelihood, dispersion=dispersion, dtype=dtype)
    x = counts_like(model, 4) + (np.arange(12) == 5)
    rng = np.random.default_rng(2)
    z = rng.standard_normal((4, 7, 2), dtype=dtype)
    log_library = rng.normal(3.0, 1.0, (4, 7, 1)).astype(dtype)
    with evaluating(model):
        decoded = posterior._decode(model, z, log_library, np.array([0, 1, 1, 0]), np.empty((4, 0)))
        plain = posterior._log_prob_of_copies(model, x.astype(dtype), 7, log_library, decoded)
    found = many_draws.log_prob(likelihood, x.astype(dtype), 7, decoded)
    assert found.shape == (4, 7) and found.dtype == np.float64
    np.testing.assert_allclose(found, plain, rtol=tolerance)

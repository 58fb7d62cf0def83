"""One cell under many draws: the quick sums against the likelihoods themselves, gene by gene."""

import numpy as np
import pytest
from scipy import special

from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from models import many_draws

LIKELIHOODS = ("poisson", "nb", "zinb")


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

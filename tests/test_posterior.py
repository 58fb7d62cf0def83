"""What a trained model is asked, against hand computations, exact integrals, and data of which the truth is known."""

import csv
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import sparse, special, stats

from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from minigrad.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from minigrad.fit import evaluating
from models import SCVI, posterior
from models.counts import Counts, read
from tests.benchmarks import recovery

UP, DOWN = (
    np.arange(0, 5),
    np.arange(5, 10),
)  # genes of the synthetic data that type 1 has more, and less, of
MARKERS = {
    "CD79A": 1,
    "CD79B": 1,
    "MS4A1": 1,
    "HLA-DQA1": 1,
    "LYZ": -1,
    "S100A8": -1,
    "S100A9": -1,
    "FCN1": -1,
}
LIKELIHOODS, LIBRARIES = ("poisson", "nb", "zinb"), ("observed", "latent")


def two_types(n_cells=400, n_genes=40, seed=0):
    """Counts of two cell types, and the type of each cell: 4-fold differences in the genes UP and DOWN, no others."""
    rng = np.random.default_rng(seed)
    types = rng.integers(2, size=n_cells)
    weight = rng.uniform(0.5, 2.0, n_genes) * np.ones((n_cells, 1))
    weight[np.ix_(types == 1, UP)] *= 4.0
    weight[np.ix_(types == 1, DOWN)] /= 4.0
    total = rng.lognormal(5.5, 0.3, (n_cells, 1))
    mu = total * weight / weight.sum(axis=1, keepdims=True)
    return rng.poisson(mu * rng.gamma(8.0, 1 / 8.0, mu.shape)).astype(np.float32), types


@pytest.fixture(scope="module")
def trained():
    """A model of two_types, with the counts and the types."""
    x, types = two_types()
    model = SCVI(x.shape[1], n_latent=4, n_hidden=32, likelihood="nb")
    named = Counts(sparse.csr_array(x), [f"g{i}" for i in range(40)], range(400))
    model.fit(named, epochs=60, weight_decay=0.0, progress=False)
    return model, x, types


def untrained(n_genes=12, n_batches=1, seed=0, scale=2.0, **config):
    """A model with random weights: a decoder to which z and the batch matter, encoders not far from the priors."""
    config = {
        "n_latent": 2,
        "n_hidden": 6,
        "library_log_mean": np.arange(n_batches) + 3.0,
        "library_log_var": 0.1,
        **config,
    }
    model = SCVI(n_genes, n_batches, seed=seed, **config)
    for name, p in model.named_parameters():
        p.data[...] *= 0.3 if "encoder" in name else scale
    if model.library == "latent":
        model.l_encoder.mean.bias.data[...], model.l_encoder.log_var.bias.data[...] = (
            3.0 + 0.5 * (n_batches - 1),
            -1.0,
        )
    return model.eval()


def counts_like(model, n_cells=9, seed=1, mean=2.0):
    return np.random.default_rng(seed).poisson(mean, (n_cells, model.n_genes)).astype(model.dtype)


# ------------------------------------------------------------------------------------------------------ log_mean_exp
def test_log_mean_exp_by_hand():
    log_w = np.array([[0.0, -5000.0], [1.0, -5001.0], [-2.0, -4999.0]])
    value, error = posterior.log_mean_exp([log_w])
    w = np.exp(log_w - [[0.0, -5000.0]])
    np.testing.assert_allclose(value, np.log(w.mean(axis=0)) + [0.0, -5000.0], rtol=1e-15)
    np.testing.assert_allclose(
        error, w.std(axis=0, ddof=1) / w.mean(axis=0) / np.sqrt(3), rtol=1e-12
    )
    assert value.dtype == error.dtype == np.float64


@pytest.mark.parametrize("block", [1, 3, 64, 100])
def test_log_mean_exp_does_not_depend_on_blocks(block):
    log_w = np.random.default_rng(0).normal(
        -700.0, 30.0, (100, 5)
    )  # a first block may be e^-100 of a later one
    value, error = posterior.log_mean_exp(log_w[i : i + block] for i in range(0, 100, block))
    np.testing.assert_allclose(value, special.logsumexp(log_w, axis=0) - np.log(100), rtol=1e-14)
    np.testing.assert_allclose(error, posterior.log_mean_exp([log_w])[1], rtol=1e-10)


def test_log_mean_exp_of_weights_that_are_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, _ = posterior.log_mean_exp(
            [np.array([[-np.inf, -np.inf]]), np.array([[0.0, -np.inf]])]
        )
    np.testing.assert_allclose(value, [np.log(0.5), -np.inf])


def test_one_draw_has_no_error_estimate_and_no_draw_is_an_error():
    value, error = posterior.log_mean_exp([np.array([[3.0]])])
    assert value == 3.0 and np.isnan(error)
    with pytest.raises(ValueError, match="no draws"):
        posterior.log_mean_exp([])


# --------------------------------------------------------------------------------------- the likelihood of many draws
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
        found = posterior._ONE_CELL[likelihood](x, log_theta)(
            log_mu, *([zi_logits] if likelihood == "zinb" else [])
        )
        scale = np.maximum(np.abs(truth), special.gammaln(x + 1.0).sum() + 1.0)
        assert np.max(np.abs(found - truth) / scale) < tolerance


@pytest.mark.parametrize("n", [0, 1, 100, 731])
def test_sums_of_logarithms_of_products_do_not_overflow(n):
    u = np.full((2, n), 2.0, np.float32)
    u[1] = np.random.default_rng(0).uniform(1.0, 2.0, n)
    np.testing.assert_allclose(
        posterior._sum_log(u), np.log(u.astype(np.float64)).sum(axis=1), rtol=1e-5
    )


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_of_several_cells_have_the_log_prob_of_repeated_rows(
    likelihood, dispersion, kind, monkeypatch
):
    monkeypatch.setattr(posterior, "CACHED", 30)
    model = untrained(n_batches=2, likelihood=likelihood, dispersion=dispersion, dtype=np.float64)
    x, codes, rng = counts_like(model, 4), np.array([0, 1, 1, 0]), np.random.default_rng(2)
    z, log_library = rng.standard_normal((4, 7, 2)), rng.normal(3.0, 1.0, (4, 7, 1))
    with evaluating(model):
        found = posterior._log_prob_of_draws(model, kind(x), codes, z, log_library)
        for i in range(7):
            expected = model.log_prob(x, log_library[:, i], **model.heads(z[:, i], codes)).data
            np.testing.assert_allclose(found[:, i], expected, rtol=1e-11)


# ------------------------------------------------------------------------------------------------------- likelihoods
def exact_log_likelihood(model, x, codes):
    """log p(x) of each cell by summing over a grid of the one-dimensional z, and of log l where that is latent."""
    z = np.linspace(-7.0, 7.0, 1401)
    log_w = stats.norm.logpdf(z) + np.log(z[1] - z[0])
    found = []
    with evaluating(model):
        for cell, code in zip(x, codes):
            log_l, log_w_l = model.observed_log_library(cell[None]).ravel(), np.zeros(1)
            if model.library == "latent":
                mean, std = model.library_log_mean[code], np.sqrt(model.library_log_var[code])
                log_l = np.linspace(mean - 7 * std, mean + 7 * std, 61)
                log_w_l = stats.norm.logpdf(log_l, mean, std) + np.log(log_l[1] - log_l[0])
            rows, columns = (
                np.repeat(np.arange(len(z)), len(log_l)),
                np.tile(np.arange(len(log_l)), len(z)),
            )
            log_p = model.log_prob(
                np.tile(cell, (len(rows), 1)),
                log_l[columns, None],
                **model.heads(z[rows, None], np.full(len(rows), code)),
            ).data
            found.append(special.logsumexp(log_p + log_w[rows] + log_w_l[columns]))
    return np.array(found)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_likelihood_is_the_integral(likelihood, library):
    model = untrained(
        3,
        2,
        n_latent=1,
        likelihood=likelihood,
        library=library,
        dispersion="gene-batch",
        dtype=np.float64,
    )
    x, codes = counts_like(model, 6, mean=5.0), np.array([0, 1] * 3)
    exact = exact_log_likelihood(model, x, codes)
    value, error = model.log_likelihood(x, codes, n_samples=20000, return_error=True)
    assert np.all(error < 0.06)
    assert np.all(np.abs(value - exact) < 4 * error + 1e-6)
    assert np.all(model.elbo(x, codes, n_samples=500) < exact)


def test_the_monte_carlo_error_is_the_spread_over_seeds():
    model = untrained(4, scale=1.0, dtype=np.float64)
    x = counts_like(model, 4)
    runs = [
        model.log_likelihood(x, n_samples=300, seed=seed, return_error=True) for seed in range(60)
    ]
    spread, error = np.std([v for v, _ in runs], axis=0), np.mean([e for _, e in runs], axis=0)
    assert np.all(error < 0.3)  # else the estimate itself is not to be trusted
    np.testing.assert_allclose(error, spread, rtol=0.35)


@pytest.mark.parametrize("library", LIBRARIES)
def test_elbo_is_the_mean_of_what_terms_gives(library, monkeypatch):
    model, n = untrained(n_batches=2, library=library, dtype=np.float64), 3000
    x, codes = counts_like(model), np.arange(9) % 2
    with evaluating(model):
        log_p, kl_z, kl_l = model.terms(
            np.repeat(x, n, axis=0), np.repeat(codes, n), np.random.default_rng(0)
        )
    runs = (log_p - kl_z - kl_l).data.reshape(9, n)
    found = model.elbo(x, codes, n_samples=n)
    assert found.dtype == np.float64
    assert np.all(
        np.abs(found - runs.mean(axis=1)) < 5 * np.sqrt(2.0) * runs.std(axis=1) / np.sqrt(n)
    )
    monkeypatch.setattr(
        posterior,
        "_log_prob_of_draws",
        lambda model, x, codes, z, log_library: np.zeros(z.shape[:2]),
    )
    np.testing.assert_allclose(
        model.elbo(x, codes, n_samples=3), -(kl_z + kl_l).data[::n], rtol=1e-10
    )


@pytest.mark.parametrize("n_samples, budget", [(1, 1), (7, 36), (50, 120), (100, 10**6)])
def test_exactly_n_samples_draws(n_samples, budget, monkeypatch):
    model, real = untrained(), posterior.log_mean_exp
    drawn = []

    def counting(blocks):
        blocks = list(blocks)
        drawn.append(sum(len(block) for block in blocks))
        return real(blocks)

    monkeypatch.setattr(posterior, "BUDGET", budget)
    monkeypatch.setattr(posterior, "log_mean_exp", counting)
    model.log_likelihood(counts_like(model), n_samples=n_samples)
    assert set(drawn) == {n_samples}


ASKED = {
    "elbo": lambda m, x, b: m.elbo(x, b, n_samples=5),
    "log_likelihood": lambda m, x, b: m.log_likelihood(x, b, n_samples=5),
    "expression_fraction": lambda m, x, b: m.expression_fraction(x, b, n_samples=5),
    "denoise": lambda m, x, b: m.denoise(x, b, n_samples=5, transform_batch=["0", "1"]),
    "sample_posterior": lambda m, x, b: m.sample_posterior(x, b, n_samples=5).transpose(1, 0, 2),
    "generate": lambda m, x, b: m.generate(len(x), batch="1"),
}


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ASKED)
def test_noise_belongs_to_cells_not_to_chunks(name, library, monkeypatch):
    model = untrained(n_batches=2, library=library, dtype=np.float64)
    x, codes, ask = counts_like(model, 20), np.arange(20) % 2, ASKED[name]
    at_once = ask(model, x, codes)
    assert (
        len(np.unique(at_once.reshape(20, -1), axis=0)) > 15
    )  # cells do not share their noise (samples may be all 0)
    np.testing.assert_allclose(ask(model, x[:7], codes[:7]), at_once[:7], rtol=1e-9)
    for budget in (1, 12 * 3, 12 * 5 * 3):
        monkeypatch.setattr(posterior, "BUDGET", budget)
        np.testing.assert_allclose(ask(model, x, codes), at_once, rtol=1e-9)


def test_memory_does_not_grow_with_the_number_of_samples(monkeypatch):
    model, peaks = untrained(200), []
    monkeypatch.setattr(posterior, "BUDGET", 20000)
    for n_samples in (300, 3000):
        tracemalloc.start()
        model.log_likelihood(counts_like(model, 3), n_samples=n_samples)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize("n_samples", [0, -1, 2.5, True, "3", None, np.nan])
@pytest.mark.parametrize(
    "method", ["elbo", "log_likelihood", "expression_fraction", "denoise", "sample_posterior"]
)
def test_wrong_n_samples(method, n_samples):
    model = untrained()
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1"):
        getattr(model, method)(counts_like(model), n_samples=n_samples)


def test_results_say_their_dtype():
    for dtype in (np.float32, np.float64):
        model = untrained(dtype=dtype)
        x = counts_like(model)
        assert model.elbo(x).dtype == model.log_likelihood(x, n_samples=2).dtype == np.float64
        for result in (
            model.expression_fraction(x),
            model.denoise(x),
            model.denoise(x, library_size=np.full(9, 10.0)),
            model.sample_posterior(x),
            model.generate(4),
        ):
            assert result.dtype == dtype


# -------------------------------------------------------------------------------------------------------- expression
@pytest.mark.parametrize("library", LIBRARIES)
def test_rho_sums_to_one_and_mu_to_the_library_size(library):
    model = untrained(n_batches=2, library=library)
    x, codes = counts_like(model), np.arange(9) % 2
    rho = model.expression_fraction(x, codes, n_samples=3)
    assert rho.shape == x.shape and np.all(rho > 0)
    np.testing.assert_allclose(rho.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        model.denoise(x, codes, library_size=500, n_samples=3), 500 * rho, rtol=1e-5
    )
    sizes = np.arange(1.0, 10.0)
    mu = model.denoise(x, codes, library_size=sizes, n_samples=3)
    np.testing.assert_allclose(mu, sizes[:, None] * rho, rtol=1e-5)
    totals = model.denoise(x, codes).sum(axis=1)
    if library == "observed":
        np.testing.assert_allclose(totals, x.sum(axis=1), rtol=1e-5)
    else:
        with evaluating(model):
            q_l = model.inference(x)[1]
        assert np.all(np.abs(np.log(totals) - q_l.loc.data.ravel()) < 5 * q_l.scale.data.ravel())


def test_several_batches_are_averaged():
    model = untrained(n_batches=3)
    model.batches = ["a", "b", "7"]
    x, codes = counts_like(model), np.array(["a", "b", "7"] * 3)
    alone = {b: model.expression_fraction(x, codes, transform_batch=b) for b in ("a", "b", 7)}
    assert np.max(np.abs(alone["a"] - alone["b"])) > 0.01
    np.testing.assert_allclose(
        model.expression_fraction(x, codes, transform_batch=["a", 7]),
        (alone["a"] + alone[7]) / 2,
        rtol=1e-5,
    )
    own = model.expression_fraction(x, codes)
    for i, b in enumerate(("a", "b", 7)):
        np.testing.assert_allclose(own[i::3], alone[b][i::3], rtol=1e-5)
    for wrong, message in (
        ("c", "c unknown; the model knows a, b, 7"),
        ([], "no batch"),
        (["a", 3], "3 unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            model.denoise(x, codes, transform_batch=wrong)


@pytest.mark.parametrize(
    "library_size", [0, -1.0, np.nan, np.inf, [1.0, -2.0] + [3.0] * 7, np.ones(4)]
)
def test_wrong_library_sizes(library_size):
    model = untrained()
    with pytest.raises(ValueError, match="library_size"):
        model.denoise(counts_like(model), library_size=library_size)


@pytest.mark.parametrize("library", LIBRARIES)
def test_cells_without_counts(library):
    model = untrained(library=library)
    x = counts_like(model)
    x[[2, 8]] = 0
    empty = np.isin(np.arange(9), [2, 8])
    nothing = library == "observed"
    value, error = model.log_likelihood(x, n_samples=20, return_error=True)
    assert np.all((value == 0) == empty & nothing) and np.all((error == 0) == empty & nothing)
    assert np.all(np.isfinite(model.elbo(x))) and np.all(model.elbo(x) < 0)
    np.testing.assert_allclose(model.expression_fraction(x).sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.denoise(x, library_size=10.0).sum(axis=1), 10.0, rtol=1e-5)
    for result in (
        model.denoise(x),
        model.sample_posterior(x, n_samples=200)[:, empty].sum(axis=0),
    ):
        assert np.all(np.isfinite(result))
    assert np.all((model.denoise(x)[empty].sum(axis=1) == 0) == nothing)
    assert np.all(
        (model.sample_posterior(x, n_samples=200)[:, empty].sum(axis=(0, 2)) == 0) == nothing
    )


def log_prob_of_zeros(model, z, log_library):
    """log p(no counts | z, l), (n,), by SciPy. z: (n, n_latent); log_library: (n, 1)."""
    with evaluating(model):
        p = model.generative(z, log_library, np.zeros(len(z), int))
    mu = np.exp(p["log_mu"].data)
    if model.likelihood == "poisson":
        return stats.poisson.logpmf(0, mu).sum(axis=1)
    theta = np.exp(p["log_theta"].data)
    nb = stats.nbinom.pmf(0, theta, theta / (theta + mu))
    pi = special.expit(p["zi_logits"].data) if model.likelihood == "zinb" else 0.0
    return np.log(pi + (1.0 - pi) * nb).sum(axis=1)


@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_cell_without_counts_is_an_observation_where_the_library_is_latent(
    likelihood, dispersion
):
    model = untrained(
        4, n_latent=1, likelihood=likelihood, library="latent", dispersion=dispersion, dtype=float
    )
    z, u = np.linspace(-7.0, 7.0, 141), np.linspace(-7.0, 7.0, 141)
    grid = np.stack(np.meshgrid(z, u), axis=-1).reshape(-1, 2)
    log_l = model.library_log_mean + np.sqrt(model.library_log_var) * grid[:, 1:]
    log_w = stats.norm.logpdf(grid).sum(axis=1) + 2.0 * np.log(z[1] - z[0])
    exact = special.logsumexp(log_prob_of_zeros(model, grid[:, :1], log_l) + log_w)
    x = np.zeros((3, 4))
    x[0] = 2.0
    value, error = model.log_likelihood(x, n_samples=10000, return_error=True)
    for i in (1, 2):
        assert error[i] < 0.15 and abs(value[i] - exact) < 4.0 * error[i] + 1e-6
    assert exact < -1.0 and value[0] < -1.0
    assert np.all(model.elbo(x, n_samples=500)[1:] < exact)


@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_the_elbo_of_a_cell_without_counts_is_its_kl_where_the_library_is_observed(dispersion):
    model = untrained(dispersion=dispersion)
    x = counts_like(model)
    x[4] = 0
    mean, std = model.latent(x[4:5], return_std=True)
    kl = np.sum((mean**2 + std**2 - 1.0) / 2.0 - np.log(std))
    assert model.elbo(x, n_samples=3)[4] == pytest.approx(-kl, rel=1e-5)


def test_an_observed_library_is_told_the_total():
    """Of one gene the count is the total. Poisson's p(x | l = x) do not sum to 1, p(x) does."""
    x = np.arange(201.0)[:, None]
    observed = untrained(1, likelihood="poisson", dtype=float).log_likelihood(x, n_samples=1000)
    np.testing.assert_allclose(observed[1:], stats.poisson.logpmf(x, x)[1:, 0], atol=0.05)
    latent = untrained(1, likelihood="poisson", library="latent", dtype=float)
    value = latent.log_likelihood(x, n_samples=1000)
    assert np.exp(value).sum() == pytest.approx(1.0, abs=0.02)
    assert np.average(observed - value, weights=np.exp(value)) > 0.5


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("n_genes, n_cells", [(1, 5), (12, 1), (1, 1)])
def test_one_gene_and_one_cell(likelihood, n_genes, n_cells):
    model = untrained(n_genes, likelihood=likelihood)
    x = counts_like(model, n_cells) + 1
    for result in (model.elbo(x), model.log_likelihood(x, n_samples=3)):
        assert result.shape == (n_cells,) and np.all(np.isfinite(result))
    for result in (
        model.expression_fraction(x),
        model.denoise(x),
        model.sample_posterior(x),
        model.generate(n_cells),
    ):
        assert result.shape == x.shape and np.all(np.isfinite(result))


# ----------------------------------------------------------------------------------------------------------- samples
def distribution(model, parameters):
    log_mu, log_theta, zi = (
        getattr(parameters[k], "data", None) for k in ("log_mu", "log_theta", "zi_logits")
    )
    return {
        "poisson": lambda: Poisson(log_mu),
        "nb": lambda: NegativeBinomial(log_mu, log_theta),
        "zinb": lambda: ZeroInflatedNegativeBinomial(log_mu, log_theta, zi),
    }[model.likelihood]()


def assert_moments(draws, means, variances):
    """draws (n, n_genes) come from a mixture of distributions with these means and variances, (m, n_genes) each."""
    mean = means.mean(axis=0)
    variance = variances.mean(axis=0) + means.var(axis=0)
    error = np.sqrt(variance / len(draws) + means.var(axis=0) / len(means))
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * error)
    squares = (draws - mean) ** 2
    error = squares.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(squares.mean(axis=0) - variance) < 6 * error + 0.05 * variance)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_sample_posterior_has_the_moments_of_the_posterior_predictive(likelihood, library):
    model = untrained(5, likelihood=likelihood, library=library, scale=1.0, dtype=np.float64)
    x, rng, n = counts_like(model, 2, mean=9.0), np.random.default_rng(0), 8000
    draws = model.sample_posterior(x, n_samples=n)
    assert draws.shape == (n, 2, 5) and np.all(draws == np.floor(draws)) and np.all(draws >= 0)
    with evaluating(model):
        q_z, q_l = model.inference(x)
        for i in range(2):
            z = q_z.loc.data[i] + q_z.scale.data[i] * rng.standard_normal((n, 2))
            log_l = (
                np.full((n, 1), np.log(x[i].sum()))
                if q_l is None
                else q_l.loc.data[i] + q_l.scale.data[i] * rng.standard_normal((n, 1))
            )
            p = distribution(model, model.generative(z, log_l, np.zeros(n, int)))
            assert_moments(draws[:, i], p.mean, p.variance)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_generate_has_the_moments_of_the_prior(likelihood):
    model, rng, n = (
        untrained(5, 2, likelihood=likelihood, library="latent", scale=1.0, dtype=np.float64),
        np.random.default_rng(0),
        20000,
    )
    model.batch_fraction[...] = 0.25, 0.75
    draws = model.generate(n)
    assert draws.shape == (n, 5) and np.all(draws == np.floor(draws)) and np.all(draws >= 0)
    codes = (rng.random(n) < 0.75).astype(int)
    log_l = 3.0 + codes[:, None] + np.sqrt(0.1) * rng.standard_normal((n, 1))
    with evaluating(model):
        p = distribution(model, model.generative(rng.standard_normal((n, 2)), log_l, codes))
    assert_moments(draws, p.mean, p.variance)
    of_one = model.generate(n, batch=1)
    if (
        likelihood != "zinb"
    ):  # rho sums to 1, so that totals have the library's mean, exp(mean + variance / 2)
        for sample, mean in (
            (of_one, np.exp(4.05)),
            (draws, 0.25 * np.exp(3.05) + 0.75 * np.exp(4.05)),
        ):
            totals = sample.sum(axis=1)
            assert abs(totals.mean() - mean) < 5 * totals.std() / np.sqrt(n)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_generated_totals_scatter_as_observed_ones_do(likelihood):
    """Counts scatter around their means, and extra zeros take some away: both are made up for."""
    model = untrained(60, 2, likelihood=likelihood, scale=1.0, dtype=np.float64)
    model.library_log_mean[:], model.library_log_var[:] = [4.0, 7.0], [0.16, 0.3]
    n = 8000
    for b, (mean, variance) in enumerate(zip(model.library_log_mean, model.library_log_var)):
        log_totals = np.log(model.generate(n, batch=b).sum(axis=1))
        assert abs(log_totals.mean() - mean) < 0.012
        assert abs(log_totals.std() - np.sqrt(variance)) < 0.02


def test_extra_zeros_that_depend_on_z_are_made_up_for():
    """They make totals of some states smaller than of others: a part of the spread, too."""
    model = untrained(200, likelihood="zinb", scale=1.0, dtype=np.float64)
    model.decoder.zi.weight.data[...] = 4.0 * np.abs(model.decoder.zi.weight.data)
    model.library_log_mean[:], model.library_log_var[:] = 7.0, 0.3
    log_totals = np.log(model.generate(8000).sum(axis=1))
    assert abs(log_totals.mean() - 7.0) < 0.02
    assert abs(log_totals.std() - np.sqrt(0.3)) < 0.03


def test_generated_totals_scatter_as_those_of_the_training_cells():
    cells = recovery.simulate(400, 60, (300.0,))
    model = SCVI(60, likelihood="nb", n_latent=4, n_hidden=32)
    model.fit(cells.x, epochs=60, progress=False)
    of_data, generated = [np.log(x.sum(axis=1)) for x in (cells.x, model.generate(5000, seed=1))]
    assert abs(generated.mean() - of_data.mean()) < 0.03
    assert abs(generated.std() - of_data.std()) < 0.02


def test_noise_beyond_the_spread_of_totals_leaves_one_library_size():
    model = untrained(60, likelihood="nb", dtype=np.float64)
    model.log_theta.data[...] = -3.0
    model.library_log_var[:] = 1e-4
    totals = model.generate(2000).sum(axis=1)
    assert np.all(np.isfinite(totals)) and np.log(np.maximum(totals, 1.0)).std() > 0.1


def test_generate_refuses_what_it_cannot_make():
    model = untrained(n_batches=2)
    with pytest.raises(ValueError, match="n must be a whole number"):
        model.generate(0)
    with pytest.raises(ValueError, match="5 unknown; the model knows 0, 1"):
        model.generate(3, batch=5)
    np.testing.assert_array_equal(
        model.generate(3, batch=1.0), model.generate(3, batch=1)
    )  # numbers, however written
    with pytest.raises(ValueError, match="2 labels for n=3 cells"):
        model.generate(3, batch=[0, 1])


def test_generate_takes_a_batch_for_each_cell():
    """Libraries of e^0 and e^8 counts: the totals say which batch a cell was made in."""
    batch = np.arange(40) % 2
    model = untrained(n_batches=2, likelihood="poisson")
    model.library_log_mean[:], model.library_log_var[:] = [0.0, 8.0], 1e-4
    totals = model.generate(40, batch=batch).sum(axis=1)
    assert totals[batch == 1].min() > 2000 > 50 > totals[batch == 0].max()


# -------------------------------------------------------------------------------------------- differential expression
def in_order_of_genes(table, name):
    return table[name][np.argsort([int(g[1:]) for g in table["gene"]])]


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_a_known_shift_is_found(trained, mode):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, types == 0, mode=mode, n_samples=2000)
    assert {int(g[1:]) for g in table["gene"][:10]} == {*UP, *DOWN}
    lfc, bayes = in_order_of_genes(table, "lfc_mean"), in_order_of_genes(table, "bayes_factor")
    assert np.all(lfc[UP] > 0.7) and np.all(lfc[DOWN] < -0.7)
    assert np.all(np.abs(lfc[10:]) < 0.6)  # not 0: fractions sum to 1
    assert np.all(bayes[UP] > 2) and np.all((bayes[DOWN] < -2) == (mode == "vanilla"))
    assert np.all(in_order_of_genes(table, "is_de")[:10])
    evidence = np.abs(table["bayes_factor"]) if mode == "vanilla" else table["probability"]
    assert np.all(np.diff(evidence) <= 0)


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_two_halves_of_one_type_differ_in_nothing(trained, mode):
    model, x, types = trained
    for seed in range(4):
        cells = np.random.default_rng(seed).permutation(np.flatnonzero(types == 0))
        table = model.differential_expression(
            x, cells[::2], cells[1::2], mode=mode, n_samples=2000, seed=seed
        )
        assert not np.any(table["is_de"])
        assert np.max(np.abs(table["lfc_mean"])) < 0.3


def test_swapping_the_groups_flips_the_signs(trained):
    model, x, types = trained
    for mode in ("vanilla", "change"):
        one, other = (
            model.differential_expression(x, a, ~a, mode, n_samples=2000)
            for a in (types == 1, types == 0)
        )
        one, other = (
            {name: in_order_of_genes(table, name) for name in table.columns}
            for table in (one, other)
        )
        swapped = 1 - other["probability"] if mode == "vanilla" else other["probability"]
        bound = 6 * np.hypot(one["probability_error"], other["probability_error"]) + 0.01
        assert np.all(np.abs(one["probability"] - swapped) < bound)
        assert np.all(
            np.abs(one["lfc_mean"] + other["lfc_mean"]) < 6 * np.sqrt(2 / 2000) * one["lfc_std"]
        )
        for name in ("rho", "raw_mean", "nonzero"):
            np.testing.assert_allclose(one[f"{name}_a"], other[f"{name}_b"], rtol=0.05)


def test_groups_are_masks_or_positions_and_the_rest_by_default(trained):
    model, x, types = trained
    mask = types == 1
    tables = [
        model.differential_expression(x, a, b, n_samples=200)
        for a, b in (
            (mask, ~mask),
            (np.flatnonzero(mask), np.flatnonzero(~mask)),
            (mask.tolist(), None),
            (np.flatnonzero(mask)[::-1].tolist(), ~mask),
        )
    ]
    for table in tables[1:]:
        for name, column in tables[0].columns.items():
            np.testing.assert_array_equal(table[name], column)
    other = model.differential_expression(x, mask, n_samples=200, seed=1)
    assert np.any(in_order_of_genes(other, "lfc_mean") != in_order_of_genes(tables[0], "lfc_mean"))


def test_columns_say_what_is_in_the_data(trained):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, n_samples=4000)
    assert list(table.columns) == [
        "gene",
        "probability",
        "probability_error",
        "bayes_factor",
        "lfc_mean",
        "lfc_median",
        "lfc_std",
        "rho_a",
        "rho_b",
        "raw_mean_a",
        "raw_mean_b",
        "nonzero_a",
        "nonzero_b",
        "is_de",
    ]
    assert all(name in posterior.DifferentialExpression.__doc__ for name in table.columns)
    for letter, group in (("a", types == 1), ("b", types == 0)):
        part = x[group].astype(np.float64)
        np.testing.assert_allclose(
            in_order_of_genes(table, f"raw_mean_{letter}"), part.mean(axis=0)
        )
        np.testing.assert_allclose(
            in_order_of_genes(table, f"nonzero_{letter}"), (part > 0).mean(axis=0)
        )
        rho = model.expression_fraction(x[group], n_samples=20).mean(axis=0)
        np.testing.assert_allclose(in_order_of_genes(table, f"rho_{letter}"), rho, rtol=0.06)
    p = table["probability"]
    np.testing.assert_allclose(table["bayes_factor"], np.log(p / (1 - p)))
    np.testing.assert_allclose(table["probability_error"], np.sqrt(p * (1 - p) / 4000))
    assert len(table) == 40 and "g7" in table["gene"]
    with pytest.raises(KeyError, match="no column 'p_value'; it has .*'probability'"):
        table["p_value"]


def test_the_error_of_the_probability_is_its_spread_over_seeds(trained):
    model, x, types = trained
    tables = [
        model.differential_expression(x, types == 1, n_samples=200, seed=seed) for seed in range(30)
    ]
    p = np.array([in_order_of_genes(table, "probability") for table in tables])
    error = np.array([in_order_of_genes(table, "probability_error") for table in tables]).mean(
        axis=0
    )
    uncertain = np.abs(p.mean(axis=0) - 0.5) < 0.46
    assert uncertain.sum() > 20
    assert 0.85 < np.mean(p.std(axis=0)[uncertain] / error[uncertain]) < 1.15


def test_probabilities_of_hand_made_fold_changes():
    lfc = np.zeros((8, 300), np.float32)
    lfc[:, 0], lfc[:, 1], lfc[:, 2] = 1.0, -1.0, [1, 1, 1, 1, 1, 1, -1, 0]
    lfc[:, 3], lfc[:, 299] = (
        [0.2, 0.2, 0.3, 0.3, 0.3, -0.3, -0.3, -0.3],
        [-0.3, -0.3, -0.3, -0.3, -0.3, 0.3, 0, 0],
    )
    vanilla, change = posterior._summary(lfc, None), posterior._summary(lfc, 0.25)
    np.testing.assert_allclose(
        vanilla["probability"][[0, 1, 2, 4, 299]], (np.array([8, 0, 6.5, 4, 2]) + 0.5) / 9
    )
    np.testing.assert_allclose(
        change["probability"][[0, 1, 2, 3, 4, 299]], (np.array([8, 8, 6, 3, 0, 5]) + 0.5) / 9
    )
    np.testing.assert_allclose(
        vanilla["bayes_factor"][[0, 1, 4]], [np.log(17), -np.log(17), 0.0], atol=1e-12
    )
    np.testing.assert_allclose(vanilla["probability_error"][0], np.sqrt(8.5 * 0.5) / 9 / np.sqrt(8))
    for name, f in (("lfc_mean", np.mean), ("lfc_median", np.median), ("lfc_std", np.std)):
        np.testing.assert_allclose(change[name], f(lfc.astype(float), axis=0), atol=1e-7)


def test_the_set_at_an_expected_fdr():
    p = np.array([0.5, 0.99, 0.90, 0.95, 0.2])
    assert posterior._expected_fdr_set(p, 0.05).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]  # errors 1, 5, 10 %
    assert posterior._expected_fdr_set(p, 0.0534).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]  # 16 % in 3
    assert posterior._expected_fdr_set(p, 0.0533).tolist() == [False, True, False, True, False]
    assert not posterior._expected_fdr_set(p, 0.005).any()
    assert posterior._expected_fdr_set(p, 0.999).all()


def test_both_of_a_pair_are_decoded_in_one_batch_drawn_like_the_cells():
    model = untrained(n_batches=3, n_layers=1)
    model.decoder.layers.linears[0].weight.data[:, :2] = 0  # nothing depends on z, all on the batch
    codes = np.array([0] * 5 + [1] * 4 + [2] * 3)
    x = counts_like(model, 12) + 1
    a, b = np.arange(0, 4), np.array([4, 5, 6, 7])  # batches 0 0 0 0 and 0 1 1 1
    table = model.differential_expression(x, a, b, batch=codes, n_samples=4000)
    assert np.all(table["lfc_std"] == 0) and np.all(table["bayes_factor"] == 0)
    rho = [model.expression_fraction(x[:1], codes[:1], transform_batch=b)[0] for b in range(2)]
    np.testing.assert_allclose(
        table["rho_a"][np.argsort([int(g[5:]) for g in table["gene"]])],
        0.625 * rho[0] + 0.375 * rho[1],
        rtol=0.05,
    )


def test_two_cells_are_compared_by_the_logarithm_to_base_two():
    model = untrained()
    model.z_encoder.log_var.bias.data[
        ...
    ] = -30.0  # q(z) next to a point, so that all pairs are alike,
    model.z_encoder.mean.weight.data[...] *= 20.0  # and far from that of the other cell
    x = counts_like(model, 2, mean=20.0) + 1
    x[1, :6] += 40
    table = model.differential_expression(
        x, [0], [1], n_samples=100, genes=[f"g{i}" for i in range(12)]
    )
    rho = model.expression_fraction(x, n_samples=100)
    expected = np.log2(rho[0] / rho[1])
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(in_order_of_genes(table, "lfc_mean"), expected, atol=0.02)
    np.testing.assert_allclose(in_order_of_genes(table, "rho_a"), rho[0], rtol=0.02)


def test_one_gene_is_no_evidence():
    model = untrained(1)
    table = model.differential_expression(
        counts_like(model) + 1, [0, 1, 2], mode="vanilla", n_samples=50
    )
    assert table["bayes_factor"] == 0 and table["lfc_std"] == 0 and not table["is_de"]


def test_cells_without_counts_are_left_out_of_groups():
    model = untrained()
    x = counts_like(model, 10) + 1
    x[[0, 1, 9]] = 0
    table = model.differential_expression(
        x, [0, 1, 2, 3], n_samples=50, genes=[f"g{i}" for i in range(12)]
    )
    np.testing.assert_allclose(in_order_of_genes(table, "raw_mean_a"), x[2:4].mean(axis=0))
    np.testing.assert_allclose(in_order_of_genes(table, "raw_mean_b"), x[4:9].mean(axis=0))
    with pytest.raises(ValueError, match="group_a holds no cells with counts"):
        model.differential_expression(x, [0, 1])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(group_a=[]), "group_a holds no cells"),
        (dict(group_a=np.zeros(9, bool)), "group_a holds no cells"),
        (dict(group_a=np.ones(9, bool)), "group_b holds no cells"),
        (dict(group_a=[1, 2], group_b=[2, 3]), "share 1 cells, such as 2"),
        (dict(group_a=[1, 9]), "positions from 1 to 9; there are cells 0 to 8"),
        (dict(group_a=[-1]), "positions from -1"),
        (dict(group_a=[1, 1]), "lists cell 1 more than once"),
        (dict(group_a=[0, 1, 1, 0, 0, 0, 1, 0, 0]), "a mask is of booleans"),
        (
            dict(group_a=np.ones(8, bool)),
            "group_a must be a boolean mask of 9 cells or a list of positions, not bool",
        ),
        (dict(group_a=[0.5]), "group_a must be a boolean mask"),
        (dict(group_a=["B"] * 9), "make a mask: labels =="),
        (dict(group_a=3), "group_a must be a boolean mask"),
        (dict(group_a=[1], mode="changes"), "mode must be"),
        (dict(group_a=[1], n_samples=0), "n_samples must be"),
        (dict(group_a=[1], fdr=0.0), "fdr between 0 and 1"),
        (dict(group_a=[1], mode="change", delta=-1.0), "delta must be at least 0"),
        (dict(group_a=[1], genes=["a"]), "must be the names of the 12 genes"),
        (dict(group_a=[1], batch=["x"] * 9), "x unknown; the model knows 0"),
    ],
)
def test_wrong_questions(wrong, message):
    model = untrained()
    with pytest.raises(ValueError, match=message):
        model.differential_expression(counts_like(model) + 1, **wrong)


def test_names_of_genes_are_those_given_or_the_models_or_the_datas_or_numbers():
    model = untrained()
    x, names = counts_like(model) + 1, np.array([f"n{i}" for i in range(12)])
    data = Counts(sparse.csr_array(x), names, range(9))

    def found(counts, **given):
        return set(model.differential_expression(counts, [0, 1], n_samples=5, **given)["gene"])

    assert found(x) == {f"gene_{i}" for i in range(12)}
    assert found(data) == set(names)
    model.genes = [f"m{i}" for i in range(12)]
    assert found(x) == set(model.genes)
    assert found(x, genes=names) == set(names)
    with pytest.raises(ValueError, match="another order"):
        found(data)


def test_names_of_genes_stand_in_a_column_within_the_picture():
    """From the top down in the order of their points, 6 % of the height from one to the next."""
    axes = Figure().subplots()
    axes.set(xlim=(-10, 10), ylim=(100, 200))
    y = np.linspace(110, 190, 10)
    names = [f"gene{i}" for i in range(10)]
    posterior._name_genes(axes, names, np.full(10, 3.0), y, 10.0)
    assert [text.get_text() for text in axes.texts] == names[::-1]
    places = np.array([text.get_position() for text in axes.texts])
    np.testing.assert_allclose(places[:, 1], 200 - 6.0 * np.arange(1, 11))
    assert np.all((9 < places[:, 0]) & (places[:, 0] < 10))
    assert [text.xy for text in axes.texts] == [(3.0, height) for height in y[::-1]]


def test_the_table_as_text_file_and_picture(trained, tmp_path):
    model, x, types = trained
    names = ['a, "b"', *[f"g{i}" for i in range(1, 40)]]
    for mode in ("vanilla", "change"):
        table = model.differential_expression(x, types == 1, mode=mode, n_samples=500, genes=names)
        text = str(table)
        assert "no p-values" in text and text.splitlines()[2].split()[-1] == str(table["is_de"][0])
        assert all(name in text for name in table["gene"][:10]) and "... 30 more" in text
        assert table.head(40).count("\n") == 41 and "more" not in table.head(40)
        table.to_csv(tmp_path / "table.csv")
        with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["gene"] for row in rows] == table["gene"].tolist()
        for name in list(table.columns)[1:-1]:
            assert [float(row[name]) for row in rows] == table[name].tolist()
        assert [row["is_de"] for row in rows] == [str(v) for v in table["is_de"]]
        table.volcano(tmp_path / "volcano.svg")
        picture = (tmp_path / "volcano.svg").read_text()
        assert all(f"<!-- {name} -->" in picture for name in table["gene"][:4] if "," not in name)
        for words in (
            "log2 fold change",
            "Bayes factor",
            f"neither ({np.sum(~table['is_de'])} genes)",
        ):
            assert words in picture


def test_markers_of_blood_cells_are_on_their_sides():
    """Real cells and a short training: B cells (+1) against monocytes (-1)."""
    counts = read(Path(__file__).parents[1] / "demos" / "data" / "pbmc68k.npz")
    model, types = SCVI(765), counts.obs["labels"]
    model.fit(counts, epochs=30, weight_decay=0.0, progress=False)
    table = model.differential_expression(counts, types == "CD19+ B", types == "CD14+ Monocyte")
    genes = table["gene"].tolist()
    sign = {gene: np.sign(table["bayes_factor"][genes.index(gene)]) for gene in MARKERS}
    assert sign == MARKERS
    assert {"CD79A", "S100A8", "S100A9", "FCN1"} <= set(genes[:100])
    cells = np.random.default_rng(0).permutation(np.flatnonzero(types == "Dendritic"))
    null = model.differential_expression(counts, cells[::2], cells[1::2], mode="change")
    assert np.sum(null["is_de"]) == 0


# ---------------------------------------------------------------------------------------------------------- imputation
def test_imputation_error_hides_a_tenth_of_the_nonzeros_and_compares():
    x, _ = two_types(300, 30, seed=3)
    before, seen = x.copy(), []

    def impute(corrupted):
        seen.append(corrupted)
        return x + 0.75

    found = posterior.imputation_error(x, impute, seed=1)
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
    posterior.imputation_error(
        sparse.csc_array(x), lambda c: other.append(c) or x, fraction=0.3, seed=2
    )
    assert abs(((x > 0) & (other[0].toarray() == 0)).sum() / (x > 0).sum() - 0.3) < 0.02


def test_imputation_of_a_trained_model_beats_the_gene_mean():
    x, _ = two_types(400, 30, seed=4)

    def impute(corrupted):
        model = SCVI(30, n_latent=3, n_hidden=16, likelihood="nb")
        model.fit(corrupted, epochs=30, weight_decay=0.0, progress=False)
        return model.denoise(corrupted, n_samples=5)

    found = posterior.imputation_error(x, impute)
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
        posterior.imputation_error(two_types(50, 30)[0], impute, fraction=fraction)

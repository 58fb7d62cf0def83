"""What a trained model is asked, against hand computations, exact integrals, and data of which the truth is known."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import sparse, special, stats

from minigrad.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from minigrad.fit import evaluating
from models import SCVI, many_draws, posterior
from tests.benchmarks import recovery

UP, DOWN = (
    np.arange(0, 5),
    np.arange(5, 10),
)  # genes of the synthetic data that type 1 has more, and less, of
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
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_of_several_cells_have_the_log_prob_of_repeated_rows(
    likelihood, dispersion, kind, monkeypatch
):
    monkeypatch.setattr(many_draws, "CACHED", 30)
    model = untrained(n_batches=2, likelihood=likelihood, dispersion=dispersion, dtype=np.float64)
    x, codes, rng = counts_like(model, 4), np.array([0, 1, 1, 0]), np.random.default_rng(2)
    z, log_library = rng.standard_normal((4, 7, 2)), rng.normal(3.0, 1.0, (4, 7, 1))
    with evaluating(model):
        group = posterior.Group(
            cells=slice(0, 4),
            counts=kind(x),
            codes=codes,
            covariates=np.empty((4, 0)),
            q_z=None,
            q_l=None,
            draws=iter(()),
        )
        found = posterior._log_prob_of_draws(model, group, posterior.Draws(z, log_library))
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
        n_layers=1,  # of two, with random weights, most draws miss the cells
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
        lambda model, group, draws: np.zeros(draws.z.shape[:2]),
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


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["elbo", "log_likelihood", "expression_fraction", "denoise"])
def test_what_the_other_cells_are_makes_no_difference_to_draws_of_z(name, library):
    """To drawn counts it does: how many random numbers these take depends on the parameters."""
    model = untrained(n_batches=2, library=library, dtype=np.float64)
    x, codes, ask = counts_like(model, 8), np.arange(8) % 2, ASKED[name]
    others = x.copy()
    others[0] += 50.0
    found, beside_others = ask(model, x, codes), ask(model, others, codes)
    np.testing.assert_allclose(beside_others[1:], found[1:], rtol=1e-9)
    assert not np.allclose(beside_others[0], found[0], rtol=1e-3)


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
    for number in (np.float64(500.0), np.array(500.0)):  # as Python's: it widens nothing
        mu = model.denoise(x, codes, library_size=number, n_samples=3)
        assert mu.dtype == np.float32
        np.testing.assert_array_equal(mu, model.denoise(x, codes, library_size=500, n_samples=3))
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
    model.batches = ["left", "right"]
    again, labels = model.generate(n, return_batch=True)
    assert np.array_equal(again, draws)
    assert abs(np.mean(labels == "right") - 0.75) < 0.02 and set(labels) == {"left", "right"}
    if likelihood != "zinb":  # a batch has totals of its own: the labels are those of the counts
        means = [draws[labels == label].sum(axis=1).mean() for label in ("left", "right")]
        np.testing.assert_allclose(means, np.exp([3.05, 4.05]), rtol=0.03)
    model.batches = [0, 1]
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


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_generate_asks_for_library_sizes_where_none_are_known(library):
    """Of a model that never saw cells: it was 0 to 3 counts a cell, without a word."""
    model = SCVI(30, 2, n_latent=2, n_hidden=4, library=library)
    with pytest.raises(ValueError, match="^library_size: how many counts cells have is not known"):
        model.generate(5)
    totals = model.generate(40, library_size=1000.0).sum(axis=1)
    assert 100 < totals.min() and totals.max() < 4000
    for given in (dict(library_log_mean=3.0), dict(library_log_var=0.5)):
        SCVI(30, 2, n_latent=2, n_hidden=4, library=library, **given).generate(5)


def test_generated_cells_have_the_library_sizes_asked_for():
    """Poisson counts of mean l rho: their totals have mean and variance l, whatever z is."""
    model = untrained(n_genes=30, likelihood="poisson")
    n = 600
    sizes = np.repeat([50.0, 3000.0], n // 2)
    for found, size in (
        (model.generate(n, library_size=800.0), np.full(n, 800.0)),
        (model.generate(n, library_size=sizes), sizes),
    ):
        z_scores = (found.sum(axis=1) - size) / np.sqrt(size)
        for half in np.split(z_scores, 2):
            assert abs(half.mean()) < 4 / np.sqrt(len(half)) and 0.8 < half.std() < 1.2
    same_z = model.generate(5, library_size=7.0), model.generate(5, library_size=7.0)
    np.testing.assert_array_equal(*same_z)
    for wrong in (0.0, -1.0, np.inf, np.ones(4), np.ones((5, 1))):
        with pytest.raises(ValueError, match="^library_size (must be|has shape)"):
            model.generate(5, library_size=wrong)


QUESTIONS = {
    "latent": lambda m, x: m.latent(x),
    "elbo": lambda m, x: m.elbo(x),
    "denoise": lambda m, x: m.denoise(x),
    "sample_posterior": lambda m, x: m.sample_posterior(x),
    "differential_expression": lambda m, x: m.differential_expression(x, np.arange(len(x)) < 4),
    "generate": lambda m, x: m.generate(3),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_model_that_was_never_fitted_says_so(question):
    model = untrained()
    x = counts_like(model)
    with pytest.warns(UserWarning, match="this SCVI was never fitted, and answers by random"):
        QUESTIONS[question](model, x)
    model.trained = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        QUESTIONS[question](model, x)
    assert not any("never fitted" in str(warning.message) for warning in said)


@pytest.mark.parametrize("encode_covariates", [False, True])
def test_the_own_batch_is_not_asked_for_where_another_is_decoded(encode_covariates):
    model = untrained(n_batches=3, encode_covariates=encode_covariates)
    x, batch = counts_like(model), np.arange(9) % 3
    if encode_covariates:  # then z depends on it
        with pytest.raises(ValueError, match="batch: say which batch each cell is from"):
            model.denoise(x, transform_batch=1)
        return
    for transform in (1, [0, 2]):
        np.testing.assert_array_equal(
            model.denoise(x, transform_batch=transform),
            model.denoise(x, batch, transform_batch=transform),
        )
        np.testing.assert_array_equal(
            model.expression_fraction(x, transform_batch=transform),
            model.expression_fraction(x, batch, transform_batch=transform),
        )
    with pytest.raises(ValueError, match="batch: say which batch each cell is from"):
        model.denoise(x)
    with pytest.raises(ValueError, match="batch: 7 unknown"):
        model.denoise(x, np.full(9, 7), transform_batch=1)


def test_generate_takes_a_batch_for_each_cell():
    """Libraries of e^0 and e^8 counts: the totals say which batch a cell was made in."""
    batch = np.arange(40) % 2
    model = untrained(n_batches=2, likelihood="poisson")
    model.library_log_mean[:], model.library_log_var[:] = [0.0, 8.0], 1e-4
    totals = model.generate(40, batch=batch).sum(axis=1)
    assert totals[batch == 1].min() > 2000 > 50 > totals[batch == 0].max()


def test_numbers_in_the_place_of_names_of_genes_are_refused():
    with pytest.raises(ValueError, match="genes: 3, 7; the model has no such genes"):
        untrained().denoise(np.ones((2, 12)), genes=[3, 7])


@pytest.mark.parametrize("config", [{}, {"dispersion": "gene-cell"}, {"library": "latent"}])
def test_what_cells_express_is_asked_of_one_head_alone(config, monkeypatch):
    model = untrained(n_batches=2, likelihood="zinb", **config)
    x, batch = counts_like(model), np.arange(9) % 2
    z, codes = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32), batch
    weights = np.exp(model.heads(z, codes)["logits"].numpy().astype(np.float64))
    expected = np.log(weights / weights.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.log_rho(z, codes).data, expected, atol=1e-5)

    def asked(*_):
        raise AssertionError("a head that says nothing of rho")

    monkeypatch.setattr(model.decoder, "zi", asked)
    if config.get("dispersion") == "gene-cell":
        monkeypatch.setattr(model.decoder, "theta", asked)
    assert model.denoise(x, batch).shape == model.expression_fraction(x, batch).shape == x.shape


def test_new_cells_are_made_of_other_noise_than_they_are_asked_with(monkeypatch):
    """By one seed. The state of a generator, and not its key: NumPy pads short keys with zeros."""
    model, keys = untrained(n_batches=2, likelihood="zinb", library="latent"), {}
    made = posterior.backend.generator

    def noted(key, *device):
        keys.setdefault(asked, []).append(tuple(np.random.SeedSequence(key).generate_state(4)))
        return made(key, *device)

    monkeypatch.setattr(posterior.backend, "generator", noted)
    x, batch = counts_like(model), np.arange(9) % 2
    questions = {
        "generate": lambda: model.generate(9),
        "sample_posterior": lambda: model.sample_posterior(x, batch),
        "elbo": lambda: model.elbo(x, batch),
    }
    for name, question in questions.items():
        asked = name
        question()
    for name, states in keys.items():
        assert len(set(states)) == len(states) > 4
        others = [set(found) for other, found in keys.items() if other != name]
        assert set(states).isdisjoint(set.union(*others))


def test_the_noise_of_elbo_says_nothing_about_the_z_that_made_a_cell(monkeypatch):
    model, drawn = untrained(likelihood="nb"), []
    decode = posterior._decode
    monkeypatch.setattr(
        posterior,
        "_decode",
        lambda model, z, *more: drawn.append(z[:, 0]) or decode(model, z, *more),
    )
    x = model.generate(300)
    made_of = drawn[-1]
    x2 = model.sample_posterior(x)
    for cells, before in ((x, made_of), (x2, drawn[-1])):
        drawn.clear()
        model.elbo(cells)
        mean, std = model.latent(cells, return_std=True)
        noise = (np.concatenate(drawn) - mean) / std
        for k in range(2):
            assert abs(np.corrcoef(noise[:, k], before[:, k])[0, 1]) < 5 / np.sqrt(300)

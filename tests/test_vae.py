"""models/vae.py against exact likelihoods (probabilistic PCA), Monte Carlo, scipy.stats, and finite differences."""

import tracemalloc

import numpy as np
import pytest
from scipy import sparse, stats
from scipy.special import expit

from minigrad.distributions import Normal
from models import VAE, Autoencoder
from models.posterior import POSTERIOR
from tests.copies import WAYS, check_copies
from tests.differences import check_gradients

quiet = dict(progress=False, device="numpy")
DECODERS = [("normal", 0.7), ("normal", "learned"), ("bernoulli", 1.0), ("categorical", 1.0)]


def data(kind, n=200, n_features=8, seed=0):
    """Rows in the range of a decoder, with two groups to tell apart."""
    rng = np.random.default_rng(seed)
    level = np.where(rng.random((n, 1)) < 0.5, 1.5, -1.5) * np.where(
        np.arange(n_features) < n_features // 2, 1, -1
    )
    if kind == "normal":
        return level + 0.5 * rng.standard_normal((n, n_features))
    if kind == "bernoulli":
        return (rng.random((n, n_features)) < expit(level)).astype(float)
    return rng.poisson(3 * np.exp(level / 2)).astype(float)


# ------------------------------------------------------------------------------ a model whose log p(x) is known exactly
class PPCA:
    """Probabilistic PCA (Tipping & Bishop 1999): x = W z + mu + sigma * noise, z standard normal; W's columns are
    orthogonal, so that the posterior of z has a diagonal covariance, which the encoder of a VAE can express."""

    def __init__(self, n_features=6, n_latent=3, sigma=0.6):
        rng = np.random.default_rng(3)
        self.w = np.linalg.qr(rng.standard_normal((n_features, n_latent)))[0] * [2.0, 1.0, 0.5]
        self.mu, self.sigma = rng.standard_normal(n_features), sigma
        self.marginal = stats.multivariate_normal(
            self.mu, self.w @ self.w.T + sigma**2 * np.eye(n_features)
        )
        self.precision = (
            np.sum(self.w**2, axis=0) / sigma**2 + 1.0
        )  # of the posterior, the same for every x
        self.gain = self.w / sigma**2 / self.precision  # posterior mean: (x - mu) @ gain
        self.x = self.marginal.rvs(50, random_state=1)

    def vae(self, shift=0.0, widen=1.0, dtype=np.float64, sigma=None):
        """The model as a VAE, its q the posterior, shifted and with standard deviations `widen` times as large."""
        vae = VAE(
            *self.w.shape[:1], (), self.w.shape[1], "normal", sigma or self.sigma, dtype=dtype
        )
        state = {
            "mean.weight": self.gain.T,
            "mean.bias": shift - self.mu @ self.gain,
            "log_var.weight": 0 * self.gain.T,
            "log_var.bias": -np.log(self.precision) + 2 * np.log(widen),
            "decoder.layers.0.weight": self.w,
            "decoder.layers.0.bias": self.mu,
        }
        vae.load_state_dict({**({"log_sigma": np.log([self.sigma])} if sigma else {}), **state})
        return vae.eval()


def exact_elbo(vae, x):
    """The ELBO without Monte Carlo error: log p(x | z) is quadratic in z, and the 2 d points +-sqrt(d) e_j, which have
    the mean and covariance of standard normal noise, give quadratics their exact expectation."""
    d = vae.n_latent
    points = np.sqrt(d) * np.concatenate([np.eye(d), -np.eye(d)])
    terms = [vae.terms(x, eps=np.tile(point, (len(x), 1))) for point in points]
    return np.mean([log_p.data for log_p, _ in terms], axis=0) - terms[0][1].data


def test_elbo_is_log_p_where_q_is_the_posterior():
    model = PPCA()
    for sigma in (None, "learned"):
        elbo = exact_elbo(model.vae(sigma=sigma), model.x)
        np.testing.assert_allclose(elbo, model.marginal.logpdf(model.x), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "shift, widen", [(0.5, 1.0), (0.0, 1.5), (-0.3, 0.4), (np.array([1.0, 0.0, -2.0]), 0.9)]
)
def test_elbo_falls_short_by_the_divergence_from_the_posterior(shift, widen):
    model = PPCA()
    shift, widen = np.broadcast_to(shift, 3), np.broadcast_to(widen, 3)
    gap = np.sum(0.5 * (widen**2 + shift**2 * model.precision - 1) - np.log(widen))
    short = model.marginal.logpdf(model.x) - exact_elbo(model.vae(shift, widen), model.x)
    np.testing.assert_allclose(short, gap, atol=1e-10)


def test_elbo_by_draws_averages_to_the_exact_one():
    model = PPCA()
    vae, n = model.vae(0.3, 0.8), 2000
    rng, exact = np.random.default_rng(0), exact_elbo(vae, model.x)
    one = np.array([vae.validation(model.x, rng=rng)["elbo"] for _ in range(200)])
    error = one.std(axis=0) / np.sqrt(n)
    assert (np.abs(vae.elbo(model.x, n_samples=n) - exact) < 4.5 * error).all()
    assert (
        np.abs(vae.elbo(model.x, n_samples=n) - exact) > 0.1 * error
    ).any()  # but by draws, and by other draws than
    assert not np.array_equal(
        vae.elbo(model.x, n_samples=1), vae.elbo(model.x, n_samples=1, seed=1)
    )
    assert np.array_equal(vae.elbo(model.x, n_samples=3), vae.elbo(model.x, n_samples=3))


def test_importance_weighted_likelihood_of_the_posterior_is_exact():
    model = PPCA()
    value, error = model.vae().log_likelihood(model.x, n_samples=3, return_error=True)
    np.testing.assert_allclose(value, model.marginal.logpdf(model.x), atol=1e-10)
    np.testing.assert_allclose(error, 0, atol=1e-6)
    single = model.vae(dtype=np.float32).log_likelihood(model.x.astype(np.float32), n_samples=3)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, model.marginal.logpdf(model.x), atol=1e-4)


def test_importance_weighted_bound_closes_in():
    model = PPCA()
    vae, exact = model.vae(0.5, 1.3), model.marginal.logpdf(model.x)
    value, error = vae.log_likelihood(model.x, n_samples=20000, return_error=True)
    assert np.max(error) < 0.02
    z_scores = (value - exact) / error
    assert (
        np.abs(z_scores).max() < 4.5 and 0.6 < z_scores.std() < 1.5
    )  # the error is as large as it says
    gaps = [np.mean(exact - vae.log_likelihood(model.x, n_samples=k)) for k in (1, 5, 50, 2000)]
    assert all(a > b for a, b in zip(gaps, gaps[1:])) and abs(gaps[-1]) < 0.06
    assert gaps[0] == pytest.approx(np.mean(exact - exact_elbo(vae, model.x)), abs=0.5)


def test_likelihood_does_not_depend_on_how_many_draws_are_held_at_a_time(monkeypatch):
    model, vae = PPCA(), PPCA().vae(0.5, 1.3)
    expected = vae.log_likelihood(model.x, n_samples=100)
    from models import posterior

    monkeypatch.setattr(posterior, "BUDGET", 50 * 6 * 7)
    np.testing.assert_allclose(vae.log_likelihood(model.x, n_samples=100), expected, rtol=1e-12)


def test_training_finds_the_maximum_likelihood_of_probabilistic_pca():
    """The best W and sigma, and their likelihood, are known (Tipping & Bishop 1999, eq. 7 and 8)."""
    x = PPCA().marginal.rvs(1000, random_state=2)
    variances = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    noise = variances[3:].mean()
    best = -0.5 * (np.log(variances[:3]).sum() + 3 * np.log(noise) + 6 + 6 * np.log(2 * np.pi))
    vae = VAE(6, (), 3, sigma="learned", dtype=np.float64)
    vae.fit(x, epochs=80, learning_rate=2e-2, validation=0, **quiet)
    assert best - 0.05 < vae.log_likelihood(x, n_samples=200).mean() < best + 0.005
    assert vae.elbo(x, n_samples=20).mean() == pytest.approx(best, abs=0.06)
    assert vae.sigma.item() == pytest.approx(np.sqrt(noise), rel=0.03)


# ----------------------------------------------------------------------------------------------- the terms of the bound
def test_kl_is_the_formula_and_agrees_with_monte_carlo():
    vae, x = VAE(8, (16,), 3, dtype=np.float64), data("normal", 5)
    q, rng = vae.encode(x), np.random.default_rng(0)
    mean, std = q.loc.data, q.scale.data
    kl = vae.terms(x, rng)[1].data
    np.testing.assert_allclose(
        kl, -0.5 * np.sum(1 + np.log(std**2) - mean**2 - std**2, axis=1), rtol=1e-12
    )
    z = mean + std * rng.standard_normal((100_000, 5, 3))
    ratio = np.sum(stats.norm.logpdf(z, mean, std) - stats.norm.logpdf(z), axis=-1)
    assert (np.abs(ratio.mean(axis=0) - kl) < 4.5 * ratio.std(axis=0) / np.sqrt(len(z))).all()


@pytest.mark.parametrize("hidden", [(), (7,), (9, 5)])
@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_networks_and_densities_against_plain_numpy_and_scipy(kind, sigma, hidden):
    x, rng = data(kind, 20), np.random.default_rng(1)
    vae = VAE(8, hidden, 2, kind, sigma, dtype=np.float64, seed=4)
    if sigma == "learned":
        vae.log_sigma.data[...] = np.log(0.3)
    state, z = vae.state_dict(), rng.standard_normal((20, 2))

    def network(part, h):
        names = [n for n in state if n.startswith(part) and n.endswith("weight")]
        for name in names:
            h = h @ state[name].T + state[name.replace("weight", "bias")]
            h = np.maximum(h, 0) if name != names[-1] or part == "encoder" else h
        return h

    f = network("decoder", z)
    if kind == "normal":
        expected = stats.norm.logpdf(x, f, 0.7 if sigma == 0.7 else 0.3).sum(axis=1)
    elif kind == "bernoulli":
        expected = stats.bernoulli.logpmf(x.astype(int), expit(f)).sum(axis=1)
    else:
        p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
        coefficient = [
            stats.multinomial.logpmf(row, row.sum(), np.full(8, 1 / 8)) + row.sum() * np.log(8)
            for row in x
        ]
        expected = [stats.multinomial.logpmf(a, a.sum(), b) for a, b in zip(x, p)] - np.array(
            coefficient
        )
        one_hot = np.eye(8)[rng.integers(8, size=20)]
        np.testing.assert_allclose(
            vae.log_prob(one_hot, z).data, np.log(p[one_hot == 1]), rtol=1e-10
        )
    np.testing.assert_allclose(vae.log_prob(x, z).data, expected, rtol=1e-10)
    seen = np.log1p(x * 8 / x.sum(axis=1, keepdims=True)) if kind == "categorical" else x
    h, q = network("encoder", seen), vae.encode(x)
    np.testing.assert_allclose(
        q.loc.data, h @ state["mean.weight"].T + state["mean.bias"], rtol=1e-10
    )
    log_var = h @ state["log_var.weight"].T + state["log_var.bias"]
    np.testing.assert_allclose(q.scale.data, np.exp(log_var / 2), rtol=1e-10)


@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_gradients(kind, sigma):
    x, eps = data(kind, 10), np.random.default_rng(2).standard_normal((10, 3))
    vae = VAE(8, (6, 5), 3, kind, sigma, dtype=np.float64)

    def loss():
        log_p, kl = vae.terms(x, eps=eps)
        return -np.mean(log_p - 0.3 * kl)

    check_gradients(vae, loss, abs=1e-7)


def test_loss_is_the_weighted_bound():
    vae, x = VAE(8, (6,), 3, dtype=np.float64), data("normal", 10)
    log_p, kl = (t.data for t in vae.terms(x, np.random.default_rng(0)))
    for warmup, progress, weight in [
        (0.25, 0.0, 0.0),
        (0.25, 0.1, 0.4),
        (0.25, 0.25, 1.0),
        (0.25, 0.9, 1),
        (0, 0, 1),
    ]:
        vae.kl_warmup = warmup
        loss = vae.loss(sparse.csr_array(x), progress=progress, rng=np.random.default_rng(0))
        assert loss.item() == pytest.approx(-np.mean(log_p - weight * kl), rel=1e-12)
    found = vae.validation(x, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found["elbo"], log_p - kl)
    np.testing.assert_allclose(found["reconstruction"], log_p)
    np.testing.assert_allclose(found["kl"], kl)
    with pytest.raises(ValueError, match=r"kl_warmup must be in \[0, 0.5\]"):
        vae.fit(x, kl_warmup=0.6)


def test_warm_up_is_what_fit_is_told():
    x = data("normal", 100)
    first = [
        VAE(8, (6,), 3).fit(x, kl_warmup=warmup, epochs=4, **quiet)["train_loss"][0]
        for warmup in (0, 0.25, 0.5)
    ]
    assert (
        first[0] > first[1] > 0 and first[1] == first[2]
    )  # one step an epoch: the first has weight 1, or 0
    losses = [
        VAE(8, (6,), 3).fit(x, kl_warmup=warmup, epochs=4, **quiet)["train_loss"][1]
        for warmup in (0.25, 0.5)
    ]
    assert losses[0] > losses[1]  # the second has weight 1, or 1/2


# ----------------------------------------------------------------------------------------------- what a model is asked
def test_moments_of_generated_rows():
    model, n = PPCA(), 40_000
    x = model.vae().generate(n)
    assert x.shape == (n, 6)
    cov = model.marginal.cov
    np.testing.assert_allclose(x.mean(axis=0), model.mu, atol=5 * np.sqrt(cov.max() / n))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=5 * np.sqrt(2 / n) * cov.max())
    means = model.vae().generate(n, mean=True)
    np.testing.assert_allclose(
        np.cov(means.T), model.w @ model.w.T, atol=5 * np.sqrt(2 / n) * cov.max()
    )
    assert np.corrcoef(x[:, 0], means[:, 0])[0, 1] > 0.8  # of the same z
    assert np.array_equal(x, model.vae().generate(n)) and not np.array_equal(
        x[:9], model.vae().generate(9, seed=1)
    )


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_generated_classes(kind):
    vae, n = VAE(5, (8,), 2, kind, seed=1), 40_000
    vae.decoder[-1].weight.data *= 5
    x, p = vae.generate(n), vae.generate(n, mean=True)
    assert x.dtype == p.dtype == np.float32 and set(np.unique(x)) == {0.0, 1.0}
    if kind == "categorical":
        assert (x.sum(axis=1) == 1).all() and np.allclose(p.sum(axis=1), 1, atol=1e-5)
    for high in (p[:, 0] > np.median(p[:, 0]), p[:, 0] <= np.median(p[:, 0])):  # of the same z
        np.testing.assert_allclose(
            x[high].mean(axis=0), p[high].mean(axis=0), atol=5 * 0.5 / np.sqrt(n / 2)
        )
    with pytest.raises(ValueError, match="n must be a whole number"):
        vae.generate(0)


def test_the_bound_of_generated_rows_is_that_of_any_rows():
    """The noise that made the rows is another than that which they are asked with, by one seed."""
    model = PPCA()
    vae = model.vae()
    x = vae.generate(400)
    exact = model.marginal.logpdf(x)  # and the bound, as q is the posterior
    gap = vae.elbo(x) - exact
    assert abs(gap.mean()) < 4 * gap.std() / 20


def test_latent_and_reconstruct_are_means():
    model = PPCA()
    vae, x = model.vae(), model.x
    mean, std = vae.latent(x, return_std=True)
    np.testing.assert_allclose(mean, (x - model.mu) @ model.gain, atol=1e-12)
    np.testing.assert_allclose(std, np.broadcast_to(model.precision**-0.5, mean.shape), atol=1e-12)
    assert np.array_equal(vae.latent(x), mean)
    np.testing.assert_allclose(vae.reconstruct(x), mean @ model.w.T + model.mu, atol=1e-12)
    probabilities = VAE(8, (5,), 2, "bernoulli").reconstruct(data("bernoulli"))
    assert probabilities.dtype == np.float32 and ((probabilities > 0) & (probabilities < 1)).all()
    fractions = VAE(8, (5,), 2, "categorical").reconstruct(data("categorical"))
    np.testing.assert_allclose(fractions.sum(axis=1), 1, rtol=1e-5)


def test_means_and_standard_deviations_come_of_one_look_at_the_rows(monkeypatch):
    vae, seen = VAE(8, (4,), 2), []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda x: seen.append(len(x)) or encode(x), raising=False)
    vae.latent(data("normal", 30), return_std=True)
    assert sum(seen) == 30


@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_training_raises_the_bound_above_a_model_without_z(kind, sigma):
    x = data(kind, 400)
    vae = VAE(8, (16,), 2, kind, sigma)
    history = vae.fit(sparse.csr_array(x), epochs=30, batch_size=32, learning_rate=5e-3, **quiet)
    if kind == "normal":
        alone = stats.norm.logpdf(x, x.mean(axis=0), 0.7 if sigma == 0.7 else x.std())
    elif kind == "bernoulli":
        alone = stats.bernoulli.logpmf(x.astype(int), x.mean(axis=0))
    else:
        alone = x * np.log(x.sum(axis=0) / x.sum())
    assert vae.elbo(x, n_samples=10).mean() > alone.sum(axis=1).mean() + 0.5
    assert vae.log_likelihood(x, n_samples=100).mean() > vae.elbo(x, n_samples=10).mean() - 0.02
    assert history["validation_elbo"][-1] == pytest.approx(
        history["validation_reconstruction"][-1] - history["validation_kl"][-1], rel=1e-4
    )
    assert history["validation_kl"][-1] > 0.2  # z is of use: the two groups


def test_what_never_or_always_happens_starts_one_percent_from_it():
    """A probability of 0 or 1 has no finite logit; of fractions, one percent is spread evenly."""
    x = np.zeros((4, 5))
    x[:, 1] = 1.0
    x[:2, 2] = 1.0
    expected = {
        "bernoulli": [0.01, 0.99, 0.5, 0.01, 0.01],
        "categorical": [0.002, 0.662, 0.332, 0.002, 0.002],
    }
    for kind, start in expected.items():
        vae = VAE(5, (), 1, kind, dtype=np.float64)
        vae._start_from(x, np.arange(len(x)))
        vae.decoder[0].weight.data[...] = 0.0
        np.testing.assert_allclose(vae.reconstruct(x)[0], start, rtol=1e-9)


def test_the_sizes_by_default():
    shapes = {name: p.shape for name, p in VAE(5).named_parameters() if name.endswith("weight")}
    assert sorted(shapes.values()) == sorted(
        [(512, 5), (256, 512), (32, 256), (32, 256), (256, 32), (512, 256), (5, 512)]
    )


def test_the_normal_decoder_has_variance_one_by_default():
    """-log p of a row at its own mean is then log(2 pi) / 2 for each feature."""
    vae, x = VAE(6, (), 2, dtype=np.float64), np.full((3, 6), 2.0)
    vae.decoder[0].weight.data[...] = 0.0
    vae.decoder[0].bias.data[...] = 2.0
    found = vae.terms(x, rng=np.random.default_rng(0))[0]
    np.testing.assert_allclose(found.data, -3 * np.log(2 * np.pi), rtol=1e-12)


def test_no_training_but_the_first_of_a_vae_copies_its_rows():
    x, vae = data("normal", n=20000, n_features=50), VAE(50, (2,), 2, dtype=np.float64)
    memory = []
    for model in (vae, vae, Autoencoder(50, (2,), 2, dtype=np.float64)):
        tracemalloc.start()
        model.fit(x, epochs=1, batch_size=500, **quiet)
        memory.append(tracemalloc.get_traced_memory()[1] / x.nbytes)
        tracemalloc.stop()
    assert memory[0] > 0.9 and max(memory[1:]) < 0.5


def test_first_training_starts_from_the_moments_of_the_data():
    for kind, x in [(kind, data(kind)) for kind in ("normal", "bernoulli", "categorical")]:
        vae = VAE(8, (), 1, kind, "learned", dtype=np.float64)
        vae._start_from(sparse.csr_array(x), np.arange(len(x)))
        vae.decoder[0].weight.data[...] = 0.0
        mean = x.mean(axis=0) / (1 if kind != "categorical" else x.mean(axis=0).sum())
        np.testing.assert_allclose(
            vae.reconstruct(x)[0], mean, atol=0 if kind == "normal" else 0.011, rtol=1e-9
        )
        if kind == "normal":
            assert vae.sigma.item() == pytest.approx(np.sqrt(x.var(axis=0).mean()))
        vae.trained = True
        vae._start_from(np.ones((3, 8)), np.arange(3))
        np.testing.assert_allclose(
            vae.reconstruct(x)[0], mean, atol=0 if kind == "normal" else 0.011, rtol=1e-9
        )


# ----------------------------------------------------------------------------------------------------- files, and input
@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_saving_and_loading_is_exact(kind, sigma, tmp_path):
    vae, x = VAE(8, (5,), 2, kind, sigma), data(kind, 50)
    vae.fit(x, epochs=2, **quiet)
    vae.save(tmp_path / "model.npz")
    again = VAE.load(tmp_path / "model.npz")
    assert again.config == vae.config and again.trained
    assert np.array_equal(again.latent(x), vae.latent(x)) and np.array_equal(
        again.generate(9), vae.generate(9)
    )
    assert np.array_equal(again.elbo(x), vae.elbo(x))


def test_resuming_is_exact(tmp_path, monkeypatch):
    training = dict(
        epochs=6, batch_size=50, validation=0.2, checkpoint=tmp_path / "run.npz", **quiet
    )
    x = data("normal", 300)
    whole, killed, resumed = (VAE(8, (6,), 2, sigma="learned") for _ in range(3))
    expected, calls, loss = whole.fit(x, **{**training, "checkpoint": None}), [], VAE.loss

    def interrupted(self, *minibatch, **keywords):
        calls.append(0)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return loss(self, *minibatch, **keywords)

    monkeypatch.setattr(VAE, "loss", interrupted)
    assert len(killed.fit(x, **training)) == 3
    monkeypatch.setattr(VAE, "loss", loss)
    history = resumed.fit(x, resume=True, **training)
    for name, array in whole.state_dict().items():
        assert np.array_equal(array, resumed.state_dict()[name]), name
    assert (
        history["train_loss"] == expected["train_loss"]
        and history["validation_elbo"] == expected["validation_elbo"]
    )


def test_noise_of_evaluation_is_not_that_of_training():
    """The same seed serves for both: the purpose, in the key of the generator, keeps them apart."""
    from minigrad import data as columns

    assert POSTERIOR not in (columns.SPLIT, columns.ORDER, columns.NOISE, columns.VALIDATION)


COUNTS = data("categorical", 60)
SAME = {
    "list": COUNTS.tolist(),
    "int64": COUNTS.astype(np.int64),
    "float64": COUNTS,
    "Fortran": np.asfortranarray(COUNTS),
    "CSR": sparse.csr_matrix(COUNTS),
    "CSC": sparse.csc_array(COUNTS),
    "CSR of uint16": sparse.csr_array(COUNTS.astype(np.uint16)),
    "DataFrame": None,
}


@pytest.mark.parametrize("kind", SAME)
def test_all_kinds_of_input_give_the_same_numbers(kind):
    x = SAME[kind] if kind != "DataFrame" else pytest.importorskip("pandas").DataFrame(COUNTS)
    expected, vae = (VAE(8, (5,), 2, "categorical") for _ in range(2))
    expected.fit(COUNTS.astype(np.float32), epochs=2, **quiet)
    vae.fit(x, epochs=2, **quiet)
    assert np.array_equal(vae.elbo(x), expected.elbo(COUNTS))
    assert np.array_equal(
        vae.log_likelihood(x, n_samples=5), expected.log_likelihood(COUNTS, n_samples=5)
    )


BAD = [
    (np.zeros((0, 8)), "no rows"),
    (np.zeros(8), r"x\[None, :\]"),
    (np.zeros((5, 7)), "has 7 columns.*n_features=8"),
    (np.full((5, 8), np.nan), "row 0, column 0 .* is nan"),
    (sparse.csr_array(np.full((5, 8), np.inf)), "is inf"),
    (np.full((5, 8), 1e300), "beyond the range"),
    (np.full((5, 8), "a"), "dtype <U1"),
]


@pytest.mark.parametrize("ask", ["fit", "latent", "reconstruct", "elbo", "log_likelihood"])
@pytest.mark.parametrize("x, message", BAD, ids=range(len(BAD)))
def test_bad_input_is_named(ask, x, message):
    with pytest.raises(ValueError, match=f"^x: .*{message}"):
        getattr(VAE(8, (), 2), ask)(x)


@pytest.mark.parametrize("ask", ["fit", "elbo", "log_likelihood"])
def test_ranges_of_decoders(ask):
    for kind, value, message in [
        ("bernoulli", 1.5, r"decoder='bernoulli' is for features in \[0, 1\]: scale"),
        ("categorical", -1, "decoder='categorical' is for counts or fractions"),
    ]:
        x = np.zeros((5, 8))
        x[2, 3] = value
        with pytest.raises(ValueError, match=f"row 2, column 3 .* is {value}.*{message}"):
            getattr(VAE(8, (), 2, kind), ask)(x)


@pytest.mark.parametrize("shape", [(1, 8), (2, 1), (1, 1)])
@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_one_row_one_feature_and_rows_of_zeros(kind, sigma, shape):
    for x in (data(kind, *shape), np.zeros(shape)):
        vae = VAE(shape[1], (4,), 2, kind, sigma)
        vae.fit(x, epochs=2, **quiet)
        assert (
            np.isfinite(vae.elbo(x)).all() and np.isfinite(vae.log_likelihood(x, n_samples=5)).all()
        )
        assert np.isfinite(vae.latent(x)).all() and np.isfinite(vae.generate(3)).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n_features=0), "n_features"),
        (dict(n_latent=1.5), "n_latent"),
        (dict(hidden=(0,)), r"hidden\[0\]"),
        (dict(decoder="poisson"), "decoder must be one of"),
        (dict(sigma=0), "sigma must"),
        (dict(sigma="fixed"), "sigma"),
        (dict(sigma=np.nan), "sigma"),
        (dict(sigma=None), "sigma"),
        (dict(dtype=int), "dtype"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{"n_features": 6, **arguments})
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        VAE(8, (), 2).log_likelihood(np.zeros((2, 8)), n_samples=0)
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        VAE(8, (), 2).elbo(np.zeros((2, 8)), n_samples=0)


def test_distributions_of_the_model_stay_in_its_dtype():
    for dtype in (np.float32, np.float64):
        for kind, sigma in DECODERS:
            vae, x = VAE(8, (5,), 2, kind, sigma, dtype=dtype), data(kind, 4).astype(dtype)
            assert isinstance(vae.encode(x), Normal)
            assert vae.loss(x, rng=np.random.default_rng(0)).dtype == dtype
            assert vae.generate(3).dtype == vae.reconstruct(x).dtype == vae.latent(x).dtype == dtype


# ----------------------------------------------------------- copies, frozen weights, half precision
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind, sigma", DECODERS)
def test_copies_train_alike(way, kind, sigma):
    x = data(kind, n=20)
    model = VAE(8, (6,), 2, decoder=kind, sigma=sigma, dtype=np.float64)
    check_copies(model, lambda m, step: m.loss(x, rng=np.random.default_rng(step)), way)


def test_frozen_weights_stay_are_saved_and_loaded(tmp_path):
    """Also those which `fit` would start at the moments of the data."""
    model = VAE(8, (6,), 2, sigma="learned")
    frozen = [p for name, p in model.named_parameters() if not name.startswith("encoder")]
    for p in frozen:
        p.data += 0.25
        p.requires_grad = False
    before = model.state_dict()
    model.fit(data("normal"), epochs=2, **quiet)
    after = model.state_dict()
    for name, p in model.named_parameters():
        assert np.array_equal(after[name], before[name]) == (not p.requires_grad), name
    model.save(tmp_path / "model.npz")
    loaded = VAE.load(tmp_path / "model.npz")
    for name, weights in after.items():
        np.testing.assert_array_equal(loaded.state_dict()[name], weights, err_msg=name)


def test_rows_of_halves_are_computed_in_the_dtype_of_the_model():
    x = data("normal", n=60).astype(np.float16)
    ends = [VAE(8, (6,), 2) for _ in range(2)]
    for model, dtype in zip(ends, (np.float16, np.float32)):
        model.fit(x.astype(dtype), epochs=2, learning_rate=1e-4, **quiet)
    for name, weights in ends[1].state_dict().items():
        np.testing.assert_array_equal(ends[0].state_dict()[name], weights, err_msg=name)
        assert weights.dtype == np.float32

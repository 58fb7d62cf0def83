"""Variational autoencoders: an autoencoder whose code is a distribution, which makes it a model of how data arise
(chapter, "Variational Autoencoders"; Kingma & Welling 2014; Rezende et al. 2014).

Know before reading: autoencoder.py, and minigrad/distributions.py. A row x of D features is thought to arise in two
steps, and the encoder learns to guess the first from the second:

    p(z) = Normal(0, 1), d numbers     p(x | z) = decode(z): Normal, Bernoulli or Categorical, as the data ask for
    q(z | x) = encode(x) = Normal(mean, std), d numbers each

The likelihood log p(x) = log of the integral of p(x | z) p(z) dz is out of reach, but it has a lower bound that is not,

    ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z)) = log p(x) - KL(q(z | x) || p(z | x)),

so raising it makes the data likelier and the guess better at once (chapter, "Two optimization objectives"). The
expectation is estimated by one draw, z = mean + std * eps, which gradients pass (chapter, "The reparameterization
trick"; Kingma & Welling 2014, section 2.4).

Know after: scVI (scvi.py), but for what is special about counts.
"""

from __future__ import annotations

from numbers import Real

import numpy as np
from scipy import special

from minigrad import backend, functional
from minigrad.backend import Array
from minigrad.distributions import Bernoulli, Categorical, Normal, kl_divergence
from minigrad.fit import History, evaluating
from minigrad.nn import Linear, Parameter
from minigrad.tensor import Tensor
from models import posterior
from models.autoencoder import (
    FRACTION_ADVICE,
    UNIT_ADVICE,
    FeatureModel,
    dense,
    floating,
    layers,
    mean_variance,
    means,
    one_of,
    sizes,
    widths,
)

RANGES = {
    "normal": (-np.inf, np.inf, ""),
    "bernoulli": (0.0, 1.0, UNIT_ADVICE),
    "categorical": (0.0, np.inf, FRACTION_ADVICE),
}  # of x for each decoder, and what to do about others
TINY = 1e-30  # stands for the total of a row of zeros


class VAE(FeatureModel):
    """A variational autoencoder: n_features - hidden - q(z) of n_latent dimensions - reversed hidden - p(x | z).

    hidden: widths of the encoder's hidden layers, each followed by ReLU; () for none, then with a normal decoder the
    model is probabilistic PCA (Tipping & Bishop 1999). n_latent: dimensions of z. decoder: the distribution of x, and
    so log p(x | z), with f = the decoder network of z:
        "normal"       sum_i log Normal(x_i; f_i, sigma): a density. sigma: a number, or "learned", one for all features
        "bernoulli"    sum_i [x_i log p_i + (1 - x_i) log(1 - p_i)], p = sigmoid(f). For x of 0 and 1 a probability; for
                       x between a cross-entropy, which is no density of x
        "categorical"  sum_i x_i log p_i, p = softmax(f). For one-hot rows the probability of the class; for counts that
                       of the molecules in one given order, which is the multinomial's without its coefficient (a
                       constant of x); for fractions a molecule's share of that, no density of fractions, and worth so
                       little against the KL that z goes unused: give counts. Its encoder sees log(1 + D x / sum(x)),
                       of order 1 whatever the total is (chapter, Figure 10)
    dtype: of weights and arithmetic, float32 or float64. seed: of the initial weights. ValueError names an argument
    out of range. See chapter, "The VAE decoder is a generative model" and the sections after; Kingma & Welling 2014, section 3.

        >>> x = np.random.default_rng(0).normal(size=(64, 5))
        >>> model = VAE(5, hidden=(8,), n_latent=2)
        >>> history = model.fit(x, epochs=2, progress=False)
        >>> model.latent(x).shape, model.elbo(x).shape, model.generate(3).shape
        ((64, 2), (64,), (3, 5))
    """

    def __init__(
        self,
        n_features: int,
        hidden=(512, 256),
        n_latent: int = 32,
        decoder: str = "normal",
        sigma: float | str = 1.0,
        dtype=np.float32,
        seed: int = 0,
    ):
        one_of("decoder", decoder, RANGES)
        learned = isinstance(sigma, str) and sigma == "learned"
        if not learned and not (isinstance(sigma, Real) and 0 < sigma < np.inf):
            raise ValueError(
                f'sigma must be a standard deviation above 0, or "learned", not {sigma!r}'
            )
        self.n_features, self.n_latent = sizes(n_features=n_features, n_latent=n_latent)
        self.dtype, self.kind, hidden = floating(dtype), decoder, widths(hidden)
        self.low, self.high, advice = RANGES[decoder]
        self.advice, self.widest = (
            advice.format(f"decoder={decoder!r}"),
            max(self.n_features, self.n_latent, *hidden),
        )
        self.config = dict(
            n_features=self.n_features,
            hidden=hidden,
            n_latent=self.n_latent,
            decoder=decoder,
            sigma=sigma if learned else float(sigma),
            dtype=self.dtype.name,
            seed=int(seed),
        )
        rng, down = np.random.default_rng(seed), [self.n_features, *hidden]
        self.encoder = layers(down, dtype=dtype, rng=rng)
        self.mean = Linear(down[-1], self.n_latent, dtype=dtype, rng=rng)
        self.log_var = Linear(down[-1], self.n_latent, dtype=dtype, rng=rng)
        self.decoder = layers([self.n_latent, *down[::-1]], dtype=dtype, rng=rng)
        if learned and decoder == "normal":
            self.log_sigma = Parameter(np.zeros(1), dtype)

    # ------------------------------------------------------------------------------------------------ the model itself
    @property
    def sigma(self) -> float | Tensor | None:
        """The standard deviation of the normal decoder: a number, or where it is learned a Tensor (1,); else None."""
        if self.kind != "normal":
            return None
        return np.exp(self.log_sigma) if self.config["sigma"] == "learned" else self.config["sigma"]

    def encode(self, x: Array) -> Normal:
        """q(z | x) of a dense minibatch x (n, n_features): Normal with parameters (n, n_latent)."""
        if self.kind == "categorical":
            x = np.log1p(x * (self.n_features / np.maximum(np.sum(x, axis=1, keepdims=True), TINY)))
        h = functional.relu(self.encoder(x)) if self.encoder.layers else x
        return Normal(self.mean(h), np.exp(0.5 * self.log_var(h)))

    def decode(self, z: Array) -> Normal | Bernoulli | Categorical:
        """p(x | z) of z (n, n_latent): the distribution, with parameters (n, n_features)."""
        f = self.decoder(z)
        if self.kind == "normal":
            return Normal(f, self.sigma)
        return Bernoulli(f) if self.kind == "bernoulli" else Categorical(f)

    def log_prob(self, x: Array, z: Array) -> Array:
        """log p(x | z) of rows x (n, n_features) and z (n, n_latent), summed over features: (n,), in nats."""
        log_p = self.decode(z).log_prob(x)
        return log_p if self.kind == "categorical" else np.sum(log_p, axis=1)

    def terms(
        self, x: Array, rng: np.random.Generator | None = None, eps: Array | None = None
    ) -> tuple[Array, Array]:
        """(E_q[log p(x | z)], KL(q(z | x) || p(z))) of each row of a dense minibatch, (n,) each, by one draw from q.

        In nats; their difference estimates the ELBO without bias (chapter, "VAE Pytorch code"; Kingma & Welling 2014, eq. 7
        and 10). The KL is exact, sum_j (mean_j^2 + std_j^2 - 1) / 2 - log std_j. The noise is eps (n, n_latent), or from rng.
        """
        q = self.encode(x)
        kl = np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)
        return self.log_prob(x, q.rsample(eps, None if eps is not None else rng)), kl

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """-ELBO, averaged over the minibatch (dense or CSR): a scalar = -mean(log p - weight kl), in nats.

        weight: rises from 0 to 1 while progress does from 0 to kl_warmup.
        """
        log_p, kl = self.terms(dense(x), rng)
        return -np.mean(
            log_p - (min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0) * kl
        )

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict:
        """The ELBO of each row (KL weight 1) and its two parts, as plain arrays."""
        log_p, kl = self.terms(dense(x), rng)
        return {"elbo": (log_p - kl).data, "reconstruction": log_p.data, "kl": kl.data}

    # -------------------------------------------------------------------------------------------------------- training
    kl_warmup = 0.25

    def fit(self, x: Array, *, kl_warmup: float = 0.25, **training) -> History:
        """Train on x (n, n_features) to raise the ELBO; the arguments but for kl_warmup are those of Autoencoder.fit.

        kl_warmup: fraction of the training, at most 0.5, over which the weight of the KL rises from 0 to 1 (Sonderby et
        al. 2016): else q may give up on z before z has become of use. The History has validation_elbo, _reconstruction
        and _kl, in nats a row. A learned sigma has a best value only where z cannot reproduce x exactly.
        ValueError for kl_warmup out of range.
        """
        if not 0 <= kl_warmup <= 0.5:
            raise ValueError(
                f"kl_warmup must be in [0, 0.5] (a fraction of the training), not {kl_warmup}"
            )
        self.kl_warmup = float(kl_warmup)
        return super().fit(x, **training)

    def _start_from(self, x) -> None:
        """The decoder's last biases, and a learned sigma, from the moments of the training rows; only at first."""
        if self.trained:
            return
        mean, bias = means(x), self.decoder[-1].bias.data
        if self.kind == "normal":
            start = mean
        elif self.kind == "bernoulli":
            start = special.logit(0.98 * mean + 0.01)
        else:
            start = np.log(0.99 * mean / max(mean.sum(), TINY) + 0.01 / self.n_features)
        backend.assign(bias, start)
        if hasattr(self, "log_sigma"):
            self.log_sigma.data[...] = 0.5 * np.log(max(mean_variance(x, mean), 1e-12))

    def _rows(self, x, in_range=False):
        """x, checked: see as_features. The categorical encoder takes logarithms, so that its x must be in range always."""
        return super()._rows(x, in_range or self.kind == "categorical")

    # ------------------------------------------------------------------------------------ what a trained model is asked
    def latent(
        self, x: Array, *, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of q(z | x): (n, n_latent), deterministic. With return_std: (means, standard deviations)."""
        mean = self.predict(x, lambda piece: self.encode(piece).loc)
        return (
            (mean, self.predict(x, lambda piece: self.encode(piece).scale)) if return_std else mean
        )

    def reconstruct(self, x: Array) -> np.ndarray:
        """E[x' | z] at the mean of q(z | x): (n, n_features); of a categorical decoder fractions, rows sum to 1."""
        return self.predict(x, lambda piece: self.decode(self.encode(piece).loc).mean)

    def elbo(self, x: Array, n_samples: int = 1, seed: int = 0) -> np.ndarray:
        """The evidence lower bound of each row of x, KL weight 1, averaged over n_samples draws: (n,) float64, nats.

        E_q[log p(x | z)] - KL(q(z | x) || p(z)) (chapter, "Two optimization objectives"; Kingma & Welling 2014, eq. 3).
        """
        n_samples, found = sizes(n_samples=n_samples)[0], []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, in_range=True)):
                rng, q = (
                    backend.generator([seed, posterior.POSTERIOR, i], self.device),
                    self.encode(piece),
                )
                log_p = sum(
                    self.log_prob(piece, q.sample(rng)).numpy().astype(np.float64)
                    for _ in range(n_samples)
                )
                found.append(
                    log_p / n_samples - np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1).numpy()
                )
        return np.concatenate(found)

    def log_likelihood(
        self, x: Array, n_samples: int = 1000, seed: int = 0, return_error: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """log p(x) of each row, (n,) float64, nats: log of the mean over n_samples z ~ q of p(x | z) p(z) / q(z | x).

        A lower bound in expectation that n_samples tightens (Burda et al. 2016, eq. 8). return_error: also its Monte
        Carlo standard error (delta method), (n,); NaN for one sample. Memory does not grow with n_samples.
        """
        n_samples, values, errors = sizes(n_samples=n_samples)[0], [], []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, size=128, in_range=True)):
                rng, q = (
                    backend.generator([seed, posterior.POSTERIOR, i], self.device),
                    self.encode(piece),
                )
                at_once = max(1, posterior.BUDGET // (len(piece) * self.widest))
                blocks = (
                    backend.to_host(
                        self._log_weights(piece, q, min(at_once, n_samples - start), rng)
                    )
                    for start in range(0, n_samples, at_once)
                )
                value, error = posterior.log_mean_exp(blocks)
                values.append(value)
                errors.append(error)
        return (
            (np.concatenate(values), np.concatenate(errors))
            if return_error
            else np.concatenate(values)
        )

    def _log_weights(self, x, q, n, rng):
        """log of p(x | z) p(z) / q(z) for n draws of z a row: (n, n_rows)."""
        q = Normal(q.loc.data, q.scale.data)
        z = q.loc + q.scale * rng.standard_normal((n, *q.loc.shape), dtype=self.dtype)
        log_p = self.log_prob(np.tile(x, (n, 1)), z.reshape(-1, self.n_latent)).data.reshape(
            n, len(x)
        )
        return log_p.astype(np.float64) + np.sum(
            Normal(0.0, 1.0).log_prob(z) - q.log_prob(z), axis=-1
        )

    def generate(self, n: int, seed: int = 0, mean: bool = False) -> np.ndarray:
        """n new rows, (n, n_features): z from the prior, then a draw from p(x | z), noise of the decoder included.

        A normal decoder gives numbers, a Bernoulli one zeros and ones, a categorical one a single class (one-hot rows).
        mean=True: E[x | z] of the same z instead: means, probabilities, fractions that sum to 1.
        """
        n, rng = sizes(n=n)[0], backend.generator([seed, posterior.POSTERIOR], self.device)
        with evaluating(self):
            p = self.decode(rng.standard_normal((n, self.n_latent), dtype=self.dtype))
            return backend.to_host(p.mean.data if mean else p.sample(rng))

"""Variational autoencoders: an autoencoder whose code is a distribution, and which is thereby a model of where data come
from (chapter, "Variational Autoencoders"; Kingma & Welling 2014; Rezende et al. 2014).

Know before reading: autoencoder.py, and minigrad/distributions.py. A row x of D features is thought to arise in two steps,
and the encoder learns to guess the first from the second:

    p(z) = Normal(0, 1), d numbers     p(x | z) = decode(z): Normal, Bernoulli or Categorical, as the data ask for
    q(z | x) = encode(x) = Normal(mean, std), d numbers each

The likelihood log p(x) = log of the integral of p(x | z) p(z) dz is out of reach, but it has a lower bound that is not,

    ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z)) = log p(x) - KL(q(z | x) || p(z | x)),

so raising it makes the data likelier and the guess better at once (chapter, "Two optimization objectives"). The expectation
is estimated by one draw, z = mean + std * eps, through which gradients pass (chapter, "The reparameterization trick").

Know after: scVI (scvi.py), but for what is special about counts.
"""
from __future__ import annotations

import numpy as np
from scipy import special

from minigrad import backend
from minigrad.distributions import Bernoulli, Categorical, Normal, kl_divergence
from minigrad.fit import History, evaluating
from minigrad.nn import Linear, Parameter, Sequential
from models import posterior
from models.autoencoder import FeatureModel, dense, hidden_layers, one_of, sizes

ADVICE = {"normal": "", "bernoulli": 'decoder="bernoulli" is for features in [0, 1]: scale each, for example by '
                                     "(x - min) / (max - min)",
          "categorical": 'decoder="categorical" is for counts or fractions, which are not negative'}


class VAE(FeatureModel):
    """A variational autoencoder: n_features - hidden - q(z) of n_latent dimensions - reversed hidden - p(x | z).

    hidden: widths of the encoder's hidden layers, each followed by ReLU; () for none, then with a normal decoder the model
    is probabilistic PCA (Tipping & Bishop 1999). n_latent: dimensions of z. decoder, with f = the decoder network of z:
        "normal"       sum_i log Normal(x_i; f_i, sigma): a density. sigma: a number, or "learned", one for all features
        "bernoulli"    sum_i [x_i log p_i + (1 - x_i) log(1 - p_i)], p = sigmoid(f). For x of 0 and 1 a probability; for x
                       between a cross-entropy, which is no density of x
        "categorical"  sum_i x_i log p_i, p = softmax(f). For one-hot rows the probability of the class; for counts that of
                       the molecules in one given order, which is the multinomial's without its coefficient (a constant of
                       x); for fractions its mean per molecule. No density of fractions (chapter, Figure 10)
    dtype: of weights and arithmetic. seed: of the initial weights. ValueError names an argument that is out of range.
    """

    def __init__(self, n_features, hidden=(512, 256), n_latent=32, decoder="normal", sigma=1.0, dtype=np.float32, seed=0):
        one_of("decoder", decoder, ADVICE)
        if sigma != "learned" and not (isinstance(sigma, (int, float, np.number)) and 0 < sigma < np.inf):
            raise ValueError(f'sigma must be a standard deviation above 0, or "learned", not {sigma!r}')
        n_features, n_latent = sizes(n_features=n_features, n_latent=n_latent)
        hidden = sizes(**{f"hidden[{i}]": n for i, n in enumerate(hidden)})
        self.config = dict(n_features=n_features, hidden=hidden, n_latent=n_latent, decoder=decoder,
                           sigma=sigma if sigma == "learned" else float(sigma), dtype=np.dtype(dtype).name, seed=int(seed))
        self.n_features, self.n_latent, self.dtype, self.kind = n_features, n_latent, np.dtype(dtype), decoder
        self.low, self.high = dict(normal=(-np.inf, np.inf), bernoulli=(0.0, 1.0), categorical=(0.0, np.inf))[decoder]
        self.advice, self.widest = ADVICE[decoder], max(n_features, n_latent, *hidden)
        rng, kind = np.random.default_rng(seed), dict(dtype=dtype)
        widths = [n_features, *hidden]
        self.encoder = Sequential(*hidden_layers(widths, 0.0, rng=rng, **kind))
        self.mean = Linear(widths[-1], n_latent, rng=rng, **kind)
        self.log_var = Linear(widths[-1], n_latent, rng=rng, **kind)
        widths = [n_latent, *reversed(hidden)]
        self.decoder = Sequential(*hidden_layers(widths, 0.0, rng=rng, **kind),
                                  Linear(widths[-1], n_features, rng=rng, **kind))
        if decoder == "normal" and sigma == "learned":
            self.log_sigma = Parameter(np.zeros(1), dtype)

    # ------------------------------------------------------------------------------------------------ the model itself
    sigma = property(lambda self: np.exp(self.log_sigma) if hasattr(self, "log_sigma") else self.config["sigma"],
                     doc="The standard deviation of the normal decoder: a number, or where it is learned a Tensor (1,).")

    def encode(self, x) -> Normal:
        """q(z | x) of a minibatch x (n, n_features), array, CSR or Tensor: Normal with parameters (n, n_latent)."""
        h = self.encoder(x)
        return Normal(self.mean(h), np.exp(0.5 * self.log_var(h)))

    def decode(self, z) -> Normal | Bernoulli | Categorical:
        """p(x | z) of z (n, n_latent): the distribution, with parameters (n, n_features)."""
        f = self.decoder(z)
        return Normal(f, self.sigma) if self.kind == "normal" else {"bernoulli": Bernoulli, "categorical": Categorical}[
            self.kind](f)

    def log_prob(self, x, z):
        """log p(x | z) of rows x (n, n_features) and z (n, n_latent), summed over features: (n,), in nats."""
        log_p = self.decode(z).log_prob(x)
        return log_p if self.kind == "categorical" else np.sum(log_p, axis=1)

    def terms(self, x, rng=None, eps=None):
        """(E_q[log p(x | z)], KL(q(z | x) || p(z))) of each row of a dense minibatch, (n,) each, by one draw from q.

        The KL is exact: 1/2 sum_j (mean_j^2 + std_j^2 - 1) - log std_j. The noise is eps (n, n_latent), or drawn from rng.
        """
        q = self.encode(x)
        kl = np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)
        return self.log_prob(x, q.rsample(eps, None if eps is not None else rng)), kl

    def loss(self, x, *, progress=1.0, rng=None):
        """Minus the ELBO, averaged over the minibatch (dense or CSR): a scalar. The KL is weighted by its warm-up."""
        log_p, kl = self.terms(dense(x), rng)
        return -np.mean(log_p - (min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0) * kl)

    def validation(self, x, *, rng=None) -> dict:
        """The ELBO of each row (KL weight 1) and its two parts, as plain arrays."""
        log_p, kl = self.terms(dense(x), rng)
        return {"elbo": (log_p - kl).data, "reconstruction": log_p.data, "kl": kl.data}

    # -------------------------------------------------------------------------------------------------------- training
    kl_warmup = 0.25

    def fit(self, x, *, kl_warmup=0.25, **training) -> History:
        """Train on x (n, n_features) to raise the ELBO. kl_warmup: fraction of the training, at most 0.5, over which the
        weight of the KL rises from 0 to 1 (Sonderby et al. 2016): else q may give up on z before z has become of use.
        Other arguments are those of Autoencoder.fit. The History has validation_elbo, _reconstruction and _kl, in nats a
        row. A learned sigma has a best value only where n_latent dimensions cannot reproduce x exactly.
        """
        if not 0 <= kl_warmup <= 0.5:
            raise ValueError(f"kl_warmup must be in [0, 0.5] (a fraction of the training), not {kl_warmup}")
        self.kl_warmup = float(kl_warmup)
        return super().fit(x, **training)

    def _start_from(self, x) -> None:
        """The decoder's last biases, and a learned sigma, from the moments of the training rows, if none are trained."""
        if self.trained:
            return
        mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel()
        bias, device = self.decoder[-1].bias.data, backend.device_of(self.mean.bias.data)
        if self.kind == "normal":
            start = mean
        elif self.kind == "bernoulli":
            start = special.logit(0.98 * mean + 0.01)
        else:
            start = np.log(0.99 * mean / max(mean.sum(), 1e-300) + 0.01 / self.n_features)
        bias[...] = backend.to_device(start.astype(self.dtype), device)
        if hasattr(self, "log_sigma"):
            squares = x.multiply(x).sum() if hasattr(x, "multiply") else np.einsum("ij,ij->", x, x, dtype=np.float64)
            variance = float(squares) / (x.shape[0] * self.n_features) - float(np.mean(mean ** 2))
            self.log_sigma.data[...] = 0.5 * np.log(max(variance, 1e-12))

    # ------------------------------------------------------------------------------------- what a trained model is asked
    def latent(self, x, *, return_std=False):
        """Mean of q(z | x): (n, n_latent), deterministic. With return_std: (means, standard deviations)."""
        means = self.predict(x, lambda piece: self.encode(piece).loc)
        return (means, self.predict(x, lambda piece: self.encode(piece).scale)) if return_std else means

    def reconstruct(self, x) -> np.ndarray:
        """E[x' | z] at the mean of q(z | x): (n, n_features); for a categorical decoder fractions, whose rows sum to 1."""
        return self.predict(x, lambda piece: self.decode(self.encode(piece).loc).mean)

    def elbo(self, x, n_samples=1, seed=0) -> np.ndarray:
        """The evidence lower bound of each row of x, KL weight 1, averaged over n_samples draws: (n,), in nats."""
        n_samples, found = sizes(n_samples=n_samples)[0], []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, in_range=True)):
                rng = backend.generator([seed, posterior.POSTERIOR, i], backend.device_of(piece))
                draws = (self.validation(piece, rng=rng)["elbo"].astype(np.float64) for _ in range(n_samples))
                found.append(backend.to_host(sum(draws) / n_samples))
        return np.concatenate(found)

    def log_likelihood(self, x, n_samples=1000, seed=0, return_error=False):
        """log p(x) of each row, (n,), in nats: the log of the mean over n_samples z ~ q of p(x | z) p(z) / q(z | x).

        A lower bound in expectation that n_samples tightens (Burda et al. 2016, eq. 8). return_error: also its Monte Carlo
        standard error (delta method), (n,). Memory does not grow with n_samples.
        """
        n_samples, values, errors = sizes(n_samples=n_samples)[0], [], []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, size=128, in_range=True)):
                rng, q = backend.generator([seed, posterior.POSTERIOR, i], backend.device_of(piece)), self.encode(piece)
                at_once = max(1, posterior.BUDGET // (len(piece) * self.widest))
                blocks = (backend.to_host(self._log_weights(piece, q, min(at_once, n_samples - start), rng))
                          for start in range(0, n_samples, at_once))
                value, error = posterior.log_mean_exp(blocks)
                values.append(value)
                errors.append(error)
        return (np.concatenate(values), np.concatenate(errors)) if return_error else np.concatenate(values)

    def _log_weights(self, x, q, n, rng):
        """log of p(x | z) p(z) / q(z) for n draws of z a row: (n, n_rows)."""
        q = Normal(q.loc.data, q.scale.data)
        z = q.loc + q.scale * rng.standard_normal((n, *q.loc.shape), dtype=self.dtype)
        log_p = self.log_prob(np.tile(x, (n, 1)), z.reshape(-1, self.n_latent)).data.reshape(n, len(x))
        return log_p.astype(np.float64) + np.sum(Normal(0.0, 1.0).log_prob(z) - q.log_prob(z), axis=-1)

    def generate(self, n, seed=0, mean=False) -> np.ndarray:
        """n new rows, (n, n_features): z from the prior, then a draw from p(x | z), noise of the decoder included.

        A normal decoder gives numbers, a Bernoulli one zeros and ones, a categorical one a single class (one-hot rows).
        mean=True: E[x | z] of the same z instead: means, probabilities, fractions that sum to 1.
        """
        n, device = sizes(n=n)[0], backend.device_of(self.mean.bias.data)
        rng = backend.generator([seed, posterior.POSTERIOR], device)
        with evaluating(self):
            p = self.decode(rng.standard_normal((n, self.n_latent), dtype=self.dtype))
            return backend.to_host(p.mean.data if mean else p.sample(rng))

"""Variational autoencoders: an autoencoder whose code is a distribution.

This is a lesson (chapter, "Variational Autoencoders"; Kingma & Welling 2014; Rezende et al. 2014).
What each of the two networks returns is no longer a point, but a distribution: the encoder's is one
of codes, the decoder's one of rows. That makes it a model of how rows arise, in two steps, and the
encoder learns to guess the first of them from the second:

    p(z) = Normal(0, 1)         first the code: d numbers
    p(x | z) = decode(z)        then the row: Normal, Bernoulli or Categorical, as the data ask for
    q(z | x) = encode(x)        the guess: Normal(mean, std), d numbers each

Training is to make the rows likely. Their likelihood p(x), the integral of p(x | z) p(z) over all
z, cannot be computed, but its logarithm has a lower bound that can, the evidence lower bound:

    ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))
            = log p(x) - KL(q(z | x) || p(z | x))

E_q is the expectation over z drawn from q(z | x). The first line says how to compute the bound: how
well such codes give x back, less what it costs that q is not the prior. The second says why it is
worth raising: either the rows become more likely, or the guess q comes closer to the true p(z | x),
or both (chapter, "Two optimization objectives").

The smallest VAE has one feature and one code, and the decoder is p(x | z) = Normal(z, 1). Then all
is known: p(x) = Normal(0, sqrt(2)) and p(z | x) = Normal(x / 2, sqrt(1/2)). For the row x = 2:

    >>> x = 2.0
    >>> def elbo(q):
    ...     squared_error = (x - q.loc) ** 2 + q.scale**2  # E_q[(x - z)^2]
    ...     expected = -0.5 * np.log(2 * np.pi) - 0.5 * squared_error
    ...     return expected - kl_divergence(q, Normal(0.0, 1.0))
    >>> log_p = Normal(0.0, np.sqrt(2)).log_prob(x)
    >>> prior = Normal(0.0, 1.0)
    >>> posterior_of_x = Normal(1.0, np.sqrt(0.5))
    >>> [round(float(value), 4) for value in (log_p, elbo(prior), elbo(posterior_of_x))]
    [-2.2655, -3.4189, -2.2655]

The prior, a guess that has not looked at x, gives a bound 1.15 nats below log p(x). The true
p(z | x) reaches it.

With networks in the place of these distributions there is no formula for the expectation. It is
estimated by one draw,

    z = mean + std * eps,   eps ~ Normal(0, 1),

in which the random part does not depend on the weights, so that gradients pass through mean and std
(chapter, "The reparameterization trick"; Kingma & Welling 2014, section 2.4).

Know before reading: autoencoder.py, and minigrad/distributions.py: the mean and the standard
deviation of a Normal are its `loc` and `scale`, and `rsample` draws from it with gradients.

Know after: scVI (scvi.py), but for what is special about counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from scipy import special

from minigrad import backend, functional
from minigrad.backend import Array
from minigrad.distributions import Bernoulli, Categorical, Normal, kl_divergence
from minigrad.fit import History, evaluating
from minigrad.nn import Linear, Parameter, start_at
from minigrad.training import unchanged_if_it_fails
from models import posterior
from models.autoencoder import layers
from models.feature_model import FeatureModel
from models.inputs import (
    ANY_NUMBER,
    NOT_NEGATIVE,
    UNIT_INTERVAL,
    dense,
    floating,
    mean_variance,
    means,
    one_of,
    rows_of,
    sizes,
    warn_if_untrained,
    whole_number,
    widths,
)

# The features that each decoder is a distribution of.
RANGES = {"normal": ANY_NUMBER, "bernoulli": UNIT_INTERVAL, "categorical": NOT_NEGATIVE}
TINY = 1e-30  # stands for the total of a row of zeros

# From posterior.py, a later lesson, come three numbers and one function: POSTERIOR and NEW_CELLS
# keep the random numbers of a trained model's answers, and of the rows that it makes, apart from
# each other and from those of training (as NOISE does in minigrad/data.py); BUDGET is how many
# numbers are computed at once, and log_mean_exp the log of a mean of weights.


class VAE(FeatureModel):
    """A VAE: n_features - hidden - q(z) of n_latent dimensions - reversed hidden - p(x | z).

    hidden: widths of the encoder's hidden layers, each followed by ReLU; () for none, then with a
    normal decoder and sigma="learned" the model is probabilistic PCA (Tipping & Bishop 1999).
    n_latent: dimensions of z. decoder: the distribution of x, and so log p(x | z), with f = the
    decoder network of z:

        "normal"       sum_i log Normal(x_i; f_i, sigma)
        "bernoulli"    sum_i [x_i log p_i + (1 - x_i) log(1 - p_i)],  p = sigmoid(f)
        "categorical"  sum_i x_i log p_i,  p = softmax(f)

    The normal decoder gives a density; sigma: a number, or "learned", one for all features. The
    Bernoulli one gives a probability for x of 0 and 1; for x between it is a cross-entropy, which
    is no density of x. The categorical one gives, for one-hot rows, the probability of the class;
    for counts that of the counted items in one given order, which is the multinomial's without its
    coefficient (a constant of x). Fractions are treated as the counts of a single item, which is no
    density of them and weighs so little against the KL that z goes unused: give counts. The
    categorical encoder sees log(1 + D x / sum(x)), of order 1 whatever the total is (chapter,
    Figure 10).

    dtype: of weights and arithmetic, float32 or float64. seed: of the initial weights and biases,
    uniform within 1/sqrt(n_in); `fit` then sets the last biases of the decoder (see _start_from).
    ValueError names an argument out of range. See chapter, "The VAE decoder is a generative model"
    and the sections after; Kingma & Welling 2014, section 3.

        >>> x = np.random.default_rng(0).normal(size=(64, 5))
        >>> model = VAE(5, hidden=(8,), n_latent=2)
        >>> history = model.fit(x, epochs=2, progress=False)
        >>> model.latent(x).shape, model.elbo(x).shape, model.generate(3).shape
        ((64, 2), (64,), (3, 5))
    """

    kl_warmup = 0.25  # see fit

    def __init__(
        self,
        n_features: int,
        hidden: Sequence[int] = (512, 256),
        n_latent: int = 32,
        decoder: str = "normal",
        sigma: float | str = 1.0,
        dtype: DTypeLike = np.float32,
        seed: int = 0,
    ):
        one_of("decoder", decoder, RANGES)
        learned = isinstance(sigma, str) and sigma == "learned"
        if not learned and not (isinstance(sigma, Real) and 0 < sigma < np.inf):
            raise ValueError(
                f'sigma must be a standard deviation above 0, or "learned", not {sigma!r}'
            )
        self.n_features, self.n_latent = sizes(n_features=n_features, n_latent=n_latent)
        self.dtype = floating(dtype)
        hidden = widths(hidden)
        self.kind = decoder  # its name; self.decoder is the network
        self.accepted = RANGES[decoder].of(f"decoder={decoder!r}")
        # Units of the widest layer: what it takes in memory to decode one z.
        self.widest = max(self.n_features, self.n_latent, *hidden)
        self.config = dict(
            n_features=self.n_features,
            hidden=hidden,
            n_latent=self.n_latent,
            decoder=decoder,
            sigma=sigma if learned else float(sigma),
            dtype=self.dtype.name,
            seed=whole_number("seed", seed, least=0),
        )
        rng = np.random.default_rng(self.config["seed"])
        units = [self.n_features, *hidden]
        self.encoder = layers(units, dtype=self.dtype, rng=rng)
        # Two layers, the last step of the encoder: from the hidden units to the mean and the log
        # variance of q(z | x). Mind the names, which saved files have: `self.mean` is a layer,
        # while `.mean` of a distribution, as in `decode(z).mean`, is its expectation.
        self.mean = Linear(units[-1], self.n_latent, dtype=self.dtype, rng=rng)
        self.log_var = Linear(units[-1], self.n_latent, dtype=self.dtype, rng=rng)
        self.decoder = layers([self.n_latent, *units[::-1]], dtype=self.dtype, rng=rng)
        if learned and decoder == "normal":
            self.log_sigma = Parameter(np.zeros(1), self.dtype)

    # ----------------------------------------------------------------------------- the model itself
    @property
    def sigma(self) -> Array | None:
        """The standard deviation of the normal decoder; None for the other decoders.

        A number, or where it is learned a Tensor of shape (1,).
        """
        if self.kind != "normal":
            return None
        if self.config["sigma"] == "learned":
            return np.exp(self.log_sigma)
        return self.config["sigma"]

    def encode(self, x: Array) -> Normal:
        """q(z | x) of a dense minibatch x (n, n_features): Normal with parameters (n, n_latent)."""
        if self.kind == "categorical":
            total = np.maximum(np.sum(x, axis=1, keepdims=True), TINY)
            x = np.log1p(x * (self.n_features / total))
        h = x
        if self.encoder.layers:  # none where hidden=()
            h = functional.relu(self.encoder(x))
        # A standard deviation must be positive. A layer gives numbers of any sign, and exp makes
        # them positive. In float32 it does so for a log variance between -206 and 177; the KL, in
        # which the variance itself stands, is infinite above 88.
        std = np.exp(0.5 * self.log_var(h))
        loc = self.mean(h)  # the layer of that name
        return Normal(loc, std)

    def decode(self, z: Array) -> Normal | Bernoulli | Categorical:
        """p(x | z) of z (n, n_latent): the distribution, with parameters (n, n_features)."""
        f = self.decoder(z)
        if self.kind == "normal":
            return Normal(f, self.sigma)
        if self.kind == "bernoulli":
            return Bernoulli(f)
        return Categorical(f)

    def log_prob(self, x: Array, z: Array) -> Array:
        """log p(x | z) of rows x (n, n_features) and z (n, n_latent), summed over features: (n,).

        In nats.
        """
        log_p = self.decode(z).log_prob(x)
        if self.kind == "categorical":  # of a whole row already
            return log_p
        return np.sum(log_p, axis=1)

    def terms(
        self, x: Array, rng: np.random.Generator | None = None, eps: Array | None = None
    ) -> tuple[Array, Array]:
        """The two parts of each row's ELBO, E_q[log p(x | z)] and KL(q(z | x) || p(z)): (n,) each.

        x: a dense minibatch (n, n_features). The expectation is estimated by one draw of z, with
        the noise eps (n, n_latent), or noise from rng. The KL is exact,
        sum_j (mean_j^2 + std_j^2 - 1) / 2 - log std_j. In nats; the first minus the second is an
        unbiased estimate of the ELBO (chapter, "VAE Pytorch code"; Kingma & Welling 2014, eq. 7 and
        10).
        """
        q = self.encode(x)
        kl_z = np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)
        z = q.rsample(eps=eps) if eps is not None else q.rsample(rng=rng)
        return self.log_prob(x, z), kl_z

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Array:
        """-ELBO, averaged over the minibatch (dense or CSR): a scalar, in nats.

        mean(weight * KL - log p). progress: the fraction of the training that lies behind, from 0
        to 1. The weight rises from 0 to 1 while `progress` does from 0 to kl_warmup (see fit).
        """
        log_p, kl_z = self.terms(dense(x), rng)
        if progress < self.kl_warmup:
            kl_z = (progress / self.kl_warmup) * kl_z
        return -np.mean(log_p - kl_z)

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict[str, Array]:
        """The ELBO of each row (KL weight 1) and its two parts, as plain arrays."""
        log_p, kl_z = self.terms(dense(x), rng)
        scores = {"elbo": log_p - kl_z, "reconstruction": log_p, "kl": kl_z}
        return {name: functional.data_of(score) for name, score in scores.items()}

    # ------------------------------------------------------------------------------------- training
    def fit(self, x: Array, *, kl_warmup: float = 0.25, **training: Any) -> History:
        """Train on x (n, n_features) to raise the ELBO.

        kl_warmup: fraction of the training, at most 0.5, over which the weight of the KL rises from
        0 to 1 (Sonderby et al. 2016): else q may give up on z before z has become of use. The other
        arguments are those of FeatureModel.fit. The History has validation_elbo,
        validation_reconstruction and validation_kl, in nats a row. A learned sigma has a best value
        only where z cannot reproduce x exactly. ValueError for kl_warmup out of range.
        """
        if not 0 <= kl_warmup <= 0.5:
            raise ValueError(
                f"kl_warmup must be in [0, 0.5] (a fraction of the training), not {kl_warmup}"
            )
        with unchanged_if_it_fails(self):
            self.kl_warmup = float(kl_warmup)
            return super().fit(x, **training)

    def _start_from(self, x: Array, rows: np.ndarray) -> None:
        """The decoder's last biases, and a learned sigma, from the moments of the training rows.

        Only at first: a model that is trained further goes on from where it is.
        """
        if self.trained:
            return
        # So that the decoder starts at the mean of the rows and has to learn how each one differs.
        # Probabilities are kept away from 0 and 1, where their logits would be infinite.
        x = rows_of(x, rows)
        mean_row = means(x)
        if self.kind == "normal":
            start = mean_row
        elif self.kind == "bernoulli":
            start = special.logit(0.98 * mean_row + 0.01)
        else:
            start = np.log(0.99 * mean_row / max(mean_row.sum(), TINY) + 0.01 / self.n_features)
        last = self.decoder[-1]
        assert isinstance(last, Linear)
        start_at(last.bias, start)
        if hasattr(self, "log_sigma"):  # log of the standard deviation: half the log variance
            start_at(self.log_sigma, 0.5 * np.log(max(mean_variance(x, mean_row), 1e-12)))

    def _rows(self, x: Any, in_range: bool = False) -> Any:
        """x, checked: see as_features.

        The categorical encoder takes logarithms, so that its x must be in range always.
        """
        return super()._rows(x, in_range or self.kind == "categorical")

    # ---------------------------------------------------------------- what a trained model is asked
    def latent(
        self, x: Array, *, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The mean of q(z | x) of each row of x (n, n_features): (n, n_latent), deterministic.

        With return_std: (means, standard deviations), each (n, n_latent).
        """
        if not return_std:
            return self.predict(x, lambda piece: self.encode(piece).loc)

        def loc_and_std(piece):
            q = self.encode(piece)
            return np.concatenate([q.loc, q.scale], axis=1)

        both = self.predict(x, loc_and_std)
        return both[:, : self.n_latent], both[:, self.n_latent :]

    def reconstruct(self, x: Array) -> np.ndarray:
        """E[x' | z] at the mean of q(z | x): (n, n_features).

        Of a categorical decoder these are fractions: each row sums to 1.
        """
        return self.predict(x, lambda piece: self.decode(self.encode(piece).loc).mean)

    def elbo(self, x: Array, n_samples: int = 1, seed: int = 0) -> np.ndarray:
        """The evidence lower bound of each row of x (n, n_features): (n,) float64, in nats.

        E_q[log p(x | z)] - KL(q(z | x) || p(z)), the KL with weight 1, the expectation averaged
        over n_samples draws (chapter, "Two optimization objectives"; Kingma & Welling 2014, eq. 3).
        """
        n_samples = whole_number("n_samples", n_samples)
        warn_if_untrained(self, stacklevel=2)
        found = []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, in_range=True)):
                rng = backend.generator([seed, posterior.POSTERIOR, i], self.device)
                q = self.encode(piece)
                log_p = np.zeros(len(piece))
                for _ in range(n_samples):
                    log_p += _on_host(self.log_prob(piece, q.sample(rng)))
                kl_z = _on_host(np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1))
                found.append(log_p / n_samples - kl_z)
        return np.concatenate(found)

    def log_likelihood(
        self, x: Array, n_samples: int = 1000, seed: int = 0, return_error: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """log p(x) of each row of x (n, n_features), by importance weights: (n,) float64, in nats.

        The log of the mean over n_samples z ~ q of p(x | z) p(z) / q(z | x): a lower bound in
        expectation that n_samples tightens (Burda et al. 2016, eq. 8). return_error: also its Monte
        Carlo standard error (delta method), (n,); NaN for one sample. Memory does not grow with
        n_samples.
        """
        n_samples = whole_number("n_samples", n_samples)
        warn_if_untrained(self, stacklevel=2)
        values = []
        errors = []
        with evaluating(self):
            for i, piece in enumerate(self.minibatches(x, size=128, in_range=True)):
                rng = backend.generator([seed, posterior.POSTERIOR, i], self.device)
                weights = self._blocks_of_log_weights(piece, n_samples, rng)
                value, error = posterior.log_mean_exp(weights)
                values.append(value)
                errors.append(error)
        if not return_error:
            return np.concatenate(values)
        return np.concatenate(values), np.concatenate(errors)

    def _blocks_of_log_weights(
        self, x: Array, n_samples: int, rng: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """The log weights of n_samples draws, in blocks (n, n_rows) that do not fill the memory."""
        q = self.encode(x)
        q = Normal(q.loc.data, q.scale.data)  # plain arrays: nothing of this is differentiated
        n_entries = backend.entries_at_once(posterior.BUDGET, self.device)
        at_once = max(1, n_entries // (len(x) * self.widest))
        for start in range(0, n_samples, at_once):
            n = min(at_once, n_samples - start)
            yield backend.to_host(self._log_weights(x, q, n, rng))

    def _log_weights(self, x: Array, q: Normal, n: int, rng: np.random.Generator) -> Array:
        """log of p(x | z) p(z) / q(z) for n draws of z a row: (n, n_rows)."""
        z = q.loc + q.scale * rng.standard_normal((n, *q.loc.shape), dtype=self.dtype)
        log_p = self.log_prob(np.tile(x, (n, 1)), z.reshape(-1, self.n_latent))
        log_p = functional.data_of(log_p).reshape(n, len(x)).astype(np.float64)
        log_ratio = Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
        return log_p + np.sum(log_ratio, axis=-1)

    def generate(self, n: int, seed: int = 0, mean: bool = False) -> np.ndarray:
        """n new rows, (n, n_features): z from the prior, then a draw from p(x | z).

        A normal decoder gives numbers, with its noise; a Bernoulli one zeros and ones; a
        categorical one a single class (one-hot rows). mean=True: E[x | z] of the same z instead:
        means, probabilities, fractions that sum to 1.
        """
        n = whole_number("n", n)
        warn_if_untrained(self, stacklevel=2)
        rng = backend.generator([seed, posterior.NEW_CELLS], self.device)
        with evaluating(self):
            z = rng.standard_normal((n, self.n_latent), dtype=self.dtype)
            p = self.decode(z)
            rows = p.mean if mean else p.sample(rng)
            return _on_host(rows)


def _on_host(x: Array) -> np.ndarray:
    """The numbers of a Tensor or array, of any shape, as a host array."""
    return backend.to_host(functional.data_of(x))

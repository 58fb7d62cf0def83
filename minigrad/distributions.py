"""Probability distributions: log-densities in nats, samples, means, and Kullback-Leibler divergences.

Know before reading: functional.py, and what a density is. Parameters and arguments may be arrays or Tensors of any
shapes that broadcast; `log_prob` and `kl_divergence` are differentiable, elementwise, and stay in the dtype of the
parameters. `sample(rng)` gives plain arrays; `Normal.rsample` is the reparameterised draw that gradients pass.
The count distributions are parametrised by logarithms, which is what networks put out: see count_likelihoods.py.

Know after: the terms of every objective in models/.
"""

from __future__ import annotations

from math import log, pi

import numpy as np
from scipy import special

from minigrad import functional
from minigrad.backend import Array
from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from minigrad.tensor import Tensor


def _plain(x):
    return x.data if isinstance(x, Tensor) else x


def _log(x):
    """log x; of a Python number again one, so that it takes on the dtype of what it meets."""
    return log(x) if isinstance(x, (int, float)) else np.log(x)


def _dtype(*parameters):
    """The floating dtype that the parameters have together: float32 and a Python number make float32."""
    return np.result_type(*[p.dtype if hasattr(p, "dtype") else p for p in parameters], 0.0)


def _joint_shape(*parameters):
    return np.broadcast_shapes(*[np.shape(_plain(p)) for p in parameters])


class Normal:
    """The normal distribution. loc: mean; scale: standard deviation > 0, any shapes that broadcast.

    Prior and posterior of every latent variable here, and the decoder of real numbers (chapter, "VAE Pytorch code"; Kingma &
    Welling 2014, appendix C.2, eq. 12).

        >>> Normal(0.0, np.array([1.0, 2.0])).log_prob(0.0).round(4)
        array([-0.9189, -1.6121])
        >>> Normal(1.0, np.array([2.0])).rsample(eps=np.array([0.5]))
        array([2.])
    """

    def __init__(self, loc: Array, scale: Array):
        self.loc, self.scale = loc, scale

    mean = property(lambda self: self.loc + 0.0 * self.scale)
    variance = property(lambda self: self.scale**2 + 0.0 * self.loc)

    def log_prob(self, x: Array) -> Array:
        """-(x - loc)^2 / (2 scale^2) - log scale - log(2 pi) / 2, elementwise, in nats."""
        return (
            -0.5 * np.square((x - self.loc) / self.scale) - _log(self.scale) - 0.5 * log(2.0 * pi)
        )

    def rsample(self, eps: Array | None = None, rng: np.random.Generator | None = None) -> Array:
        """loc + scale * eps: a draw that gradients pass (chapter, "The reparameterization trick"; Kingma & Welling
        2014, section 2.4).

        eps: standard normal noise of the joint shape; or rng, a generator to draw it from. Returns what loc is. TypeError
        for both or neither.
        """
        if (eps is None) == (rng is None):
            raise TypeError(
                "Normal.rsample: give either eps= (standard normal noise) or rng= (a generator)"
            )
        if eps is None:
            eps = rng.standard_normal(
                _joint_shape(self.loc, self.scale), dtype=_dtype(self.loc, self.scale)
            )
        return self.loc + self.scale * eps

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry, a plain array."""
        return _plain(Normal(_plain(self.loc), _plain(self.scale)).rsample(rng=rng))


class Bernoulli:
    """0 or 1. logits: log odds of 1, any shape. `log_prob` takes any x in [0, 1] (then a cross-entropy).

    A decoder of yes and no (chapter, "The VAE decoder is a generative model"; Kingma & Welling 2014, appendix C.1, eq. 11).

        >>> np.exp(Bernoulli(np.array([0.0, 2.0])).log_prob(1.0)).round(4)
        array([0.5   , 0.8808])
    """

    def __init__(self, logits: Array):
        self.logits = logits

    mean = property(lambda self: special.expit(self.logits))
    variance = property(lambda self: special.expit(self.logits) * special.expit(-self.logits))

    def log_prob(self, x: Array) -> Array:
        """x log p + (1 - x) log(1 - p) = x * logits - log(1 + exp(logits)), elementwise, in nats."""
        return x * self.logits - functional.softplus(self.logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry, a plain array of 0 and 1."""
        p = _plain(self.mean)
        return (rng.random(p.shape, dtype=p.dtype) < p).astype(p.dtype)


class Categorical:
    """One of k classes. logits: (..., k), unnormalised log-probabilities along the last axis.

    x is a one-hot array (..., k), or any non-negative weights of the classes (counts, fractions): then log_prob is
    sum_k x_k log p_k, without the multinomial coefficient (chapter, "The VAE decoder is a generative model" and Figure 10;
    as a decoder Kingma & Welling 2014, section 2.3, eq. 7 leaves its form open).

        >>> np.exp(Categorical(np.log([0.2, 0.8])).log_prob(np.array([0.0, 1.0]))).round(4)
        np.float64(0.8)
    """

    def __init__(self, logits: Array):
        self.logits = logits

    mean = property(lambda self: functional.softmax(self.logits))
    variance = property(lambda self: self.mean * (1.0 - self.mean))

    def log_prob(self, x: Array) -> Array:
        """sum_k x_k log softmax(logits)_k over the last axis: shape (...), in nats."""
        return np.sum(x * functional.log_softmax(self.logits), axis=-1)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each row, one-hot, a plain array (..., k)."""
        p = _plain(self.mean)
        ends = np.cumsum(p, axis=-1)  # the last is 1 but for rounding
        chosen = np.sum(
            rng.random((*p.shape[:-1], 1), dtype=p.dtype) * ends[..., -1:] >= ends[..., :-1],
            axis=-1,
        )
        return (chosen[..., None] == np.arange(p.shape[-1], like=p)).astype(p.dtype)


class Poisson:
    """Counts with equal mean and variance. log_rate: log of the mean, any shape.

    What is left of the negative binomial where cells do not vary: y_ng given w_ng (Lopez et al. 2018, Methods; chapter, "scVI
    architecture").

        >>> np.exp(Poisson(np.log([3.0])).log_prob(2.0)).round(4)
        array([0.224])
    """

    def __init__(self, log_rate: Array):
        self.log_rate = log_rate

    mean = property(lambda self: np.exp(self.log_rate))
    variance = mean

    def log_prob(self, x: Array) -> Array:
        """x log_rate - rate - log x!, elementwise, in nats. x: whole numbers >= 0."""
        return poisson_log_prob(x, self.log_rate)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        rate = np.exp(_plain(self.log_rate))
        return rng.poisson(rate, size=rate.shape).astype(rate.dtype)


class NegativeBinomial:
    """Counts with variance mu + mu^2 / theta: a Poisson whose rate is Gamma with mean mu and shape theta.

    log_mu: log of the mean; log_theta: log of the inverse dispersion; shapes broadcast (chapter, "scVI architecture"; Lopez et
    al. 2018, Methods: w_ng is the Gamma, y_ng the Poisson of the generative process).

        >>> p = NegativeBinomial(np.log([3.0]), np.log([2.0]))
        >>> np.exp(p.log_prob(0.0)).round(4), p.variance.round(4)
        (array([0.16]), array([7.5]))
    """

    def __init__(self, log_mu: Array, log_theta: Array):
        self.log_mu, self.log_theta = log_mu, log_theta

    mean = property(lambda self: np.exp(self.log_mu + 0.0 * self.log_theta))
    variance = property(
        lambda self: np.exp(self.log_mu) + np.exp(2.0 * self.log_mu - self.log_theta)
    )

    def log_prob(self, x: Array) -> Array:
        """log NB(x), elementwise, in nats; count_likelihoods.py has the formula. x: whole numbers >= 0."""
        return nb_log_prob(x, self.log_mu, self.log_theta)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        shape = _joint_shape(self.log_mu, self.log_theta)
        log_mu, log_theta = (
            np.broadcast_to(_plain(self.log_mu), shape),
            np.broadcast_to(_plain(self.log_theta), shape),
        )
        rate = rng.standard_gamma(np.exp(log_theta), size=shape) * np.exp(log_mu - log_theta)
        return rng.poisson(rate, size=shape).astype(_dtype(self.log_mu, self.log_theta))


class ZeroInflatedNegativeBinomial:
    """A negative binomial that is replaced by 0 with probability pi = expit(zi_logits); shapes broadcast.

    log_mu, log_theta: of the negative binomial; zi_logits: log odds of such a zero (chapter, "scVI architecture"; Lopez et al.
    2018, Methods: h_ng of the generative process).

        >>> p = ZeroInflatedNegativeBinomial(np.log([3.0]), np.log([2.0]), np.array([0.0]))
        >>> np.exp(p.log_prob(0.0)).round(4)
        array([0.58])
    """

    def __init__(self, log_mu: Array, log_theta: Array, zi_logits: Array):
        self.log_mu, self.log_theta, self.zi_logits = log_mu, log_theta, zi_logits

    mean = property(
        lambda self: np.exp(self.log_mu + 0.0 * self.log_theta) * special.expit(-self.zi_logits)
    )

    @property
    def variance(self) -> Array:
        """(1 - pi) (NB variance + pi mu^2), elementwise."""
        nb, pi_zero = NegativeBinomial(self.log_mu, self.log_theta), special.expit(self.zi_logits)
        return special.expit(-self.zi_logits) * (nb.variance + pi_zero * np.exp(2.0 * self.log_mu))

    def log_prob(self, x: Array) -> Array:
        """log(pi [x = 0] + (1 - pi) NB(x)), elementwise, in nats. x: whole numbers >= 0."""
        return zinb_log_prob(x, self.log_mu, self.log_theta, self.zi_logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        shape = _joint_shape(self.log_mu, self.log_theta, self.zi_logits)
        x = NegativeBinomial(np.broadcast_to(_plain(self.log_mu), shape), self.log_theta).sample(
            rng
        )
        x = x.astype(_dtype(self.log_mu, self.log_theta, self.zi_logits))
        return np.where(
            rng.random(shape) < special.expit(_plain(self.zi_logits)), np.zeros_like(x), x
        )


def _normal_kl_twin(q_loc, q_scale, p_loc, p_scale):
    """KL(Normal(q_loc, q_scale) || Normal(p_loc, p_scale)), elementwise (Kingma & Welling 2014, appendix B)."""
    return (
        _log(p_scale) - _log(q_scale) - 0.5 + 0.5 * (q_scale**2 + (q_loc - p_loc) ** 2) / p_scale**2
    )


def _normal_kl_forward(needs, *parameters):
    return _normal_kl_twin(*parameters), None


def _normal_kl_backward(g, y, saved, needs, q_loc, q_scale, p_loc, p_scale):
    u, r = (q_loc - p_loc) / p_scale**2, q_scale / p_scale**2
    return (
        g * u if needs[0] else None,
        g * (r - 1.0 / q_scale) if needs[1] else None,
        -g * u if needs[2] else None,
        g * (1.0 - r * q_scale - u * (q_loc - p_loc)) / p_scale if needs[3] else None,
    )


_normal_kl = functional.fused(_normal_kl_twin, _normal_kl_forward, _normal_kl_backward, "normal_kl")


def kl_divergence(q, p) -> Array:
    """KL(q || p) = E_q[log q - log p], in closed form, in nats; differentiable in the parameters of both.

    Elementwise for two Normal (shape of the broadcast parameters) or two Bernoulli, over the last axis for two
    Categorical. TypeError for other pairs. See chapter, "Two optimization objectives" and "VAE Pytorch code"; Kingma & Welling
    2014, appendix B and eq. 10.

        >>> kl_divergence(Normal(np.array([1.0]), 1.0), Normal(0.0, 1.0))
        array([0.5])
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        return _normal_kl(q.loc, q.scale, p.loc, p.scale)
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        log_q, log_p = functional.log_softmax(q.logits), functional.log_softmax(p.logits)
        return np.sum(np.exp(log_q) * (log_q - log_p), axis=-1)
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        return (
            q.mean * (q.logits - p.logits)
            + functional.softplus(p.logits)
            - functional.softplus(q.logits)
        )
    raise TypeError(
        f"kl_divergence: no closed form for {type(q).__name__} against {type(p).__name__}"
    )

"""Probability distributions: log-densities, draws, and divergences.

This is a lesson. A distribution is an object that holds its parameters, and knows four things:

    >>> p = Normal(np.array([0.0, 1.0]), 2.0)
    >>> p.mean, p.variance
    (array([0., 1.]), array([4., 4.]))
    >>> p.log_prob(1.0).round(3)
    array([-1.737, -1.612])
    >>> p.sample(np.random.default_rng(0)).shape
    (2,)

The parameters may be Tensors, and then so are mean, variance and log_prob: a decoder that puts out
parameters is trained by maximising log_prob. What `sample` draws is plain numbers, and no gradient
gets through it. For the normal distribution there is a way around that, on which VAEs rest: a draw
is written as a function of its parameters and of noise that has none.

    >>> from minigrad import Tensor, grad
    >>> mean, std = Tensor(1.0, requires_grad=True), Tensor(2.0, requires_grad=True)
    >>> z = Normal(mean, std).rsample(eps=np.array(0.5))  # 1 + 2 * 0.5
    >>> grad(z, [mean, std])
    [array(1.), array(0.5)]

All log-densities and divergences are in nats, differentiable, and of the dtype of the parameters,
whatever that of x is. (Where all parameters are Python numbers, it is that of x.) Shapes broadcast.
The distributions of counts take logarithms of their parameters, which is what networks put out: see
count_likelihoods.py.

Know before reading: functional.py, and what a density is.

Know after: the terms of every objective in models/.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
from scipy import special

from minigrad import kernels
from minigrad.backend import Array
from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from minigrad.functional import data_of, log_softmax, softmax, softplus
from minigrad.kernels import fused, weak_log

HALF_LOG_2PI = 0.5 * log(2.0 * pi)


class Normal:
    """The normal distribution. loc: mean; scale: standard deviation > 0; any shapes that broadcast.

    Prior and posterior of every latent variable here, and the decoder of real numbers
    (chapter, "VAE Pytorch code"; Kingma & Welling 2014, appendix C.2, eq. 12).

        >>> Normal(0.0, np.array([1.0, 2.0])).log_prob(0.0).round(4)
        array([-0.9189, -1.6121])
        >>> Normal(1.0, np.array([2.0])).rsample(eps=np.array([0.5]))
        array([2.])
    """

    def __init__(self, loc: Array, scale: Array):
        self.loc: Any = loc  # an Array: of the kind that the caller gave
        self.scale: Any = scale

    @property
    def mean(self) -> Array:
        """loc, in the shape that loc and scale broadcast to."""
        return self.loc + 0.0 * self.scale  # + 0.0 * scale only broadcasts

    @property
    def variance(self) -> Array:
        """scale^2, in the shape that loc and scale broadcast to."""
        return self.scale**2 + 0.0 * self.loc

    def log_prob(self, x: Array) -> Array:
        """-(x - loc)^2 / (2 scale^2) - log scale - log(2 pi) / 2, elementwise, in nats."""
        u = (_in_their_dtype(x, self.loc, self.scale) - self.loc) / self.scale
        log_scale = weak_log(self.scale)  # np.log(1.0) would make float32 arrays float64
        return -0.5 * np.square(u) - log_scale - HALF_LOG_2PI

    def rsample(self, eps: Array | None = None, rng: np.random.Generator | None = None) -> Array:
        """loc + scale * eps: a draw that gradients pass, the reparameterisation trick.

        eps: standard normal noise of the shape to which the parameters broadcast; or rng: a
        generator to draw it from. Returns a Tensor where a parameter is one. TypeError for both or
        neither (chapter, "The reparameterization trick"; Kingma & Welling 2014, section 2.4).
        """
        if (eps is None) == (rng is None):
            raise TypeError(
                "Normal.rsample: give either eps= (standard normal noise) or rng= (a generator)"
            )
        if eps is None:
            assert rng is not None  # one of the two was given
            dtype = _common_dtype(self.loc, self.scale)
            eps = rng.standard_normal(_common_shape(self.loc, self.scale), dtype=dtype)
        return self.loc + self.scale * eps

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry, a plain array."""
        return Normal(data_of(self.loc), data_of(self.scale)).rsample(rng=rng)


class Bernoulli:
    """0 or 1. logits: log odds of a 1, any shape.

    `log_prob` takes any x in [0, 1]; between 0 and 1 it is a cross-entropy, and no log-probability.
    A decoder of yes and no (chapter, "The VAE decoder is a generative model"; Kingma & Welling
    2014, appendix C.1, eq. 11).

        >>> np.exp(Bernoulli(np.array([0.0, 2.0])).log_prob(1.0)).round(4)
        array([0.5   , 0.8808])
    """

    def __init__(self, logits: Array):
        self.logits = logits

    @property
    def mean(self) -> Array:
        """p = 1 / (1 + exp(-logits)), the probability of a 1, elementwise."""
        return special.expit(self.logits)

    @property
    def variance(self) -> Array:
        """p (1 - p), elementwise."""
        return special.expit(self.logits) * special.expit(-self.logits)

    def log_prob(self, x: Array) -> Array:
        """x log p + (1 - x) log(1 - p) = x logits - log(1 + exp(logits)), elementwise, in nats."""
        return _in_their_dtype(x, self.logits) * self.logits - softplus(self.logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry, a plain array of 0 and 1."""
        p = data_of(self.mean)
        return (rng.random(p.shape, dtype=p.dtype) < p).astype(p.dtype)


class Categorical:
    """One of k classes. logits: (..., k), unnormalised log-probabilities along the last axis.

    x is one-hot, (..., k). It may also be any non-negative weights of the classes, such as counts
    or fractions: then log_prob leaves out the multinomial coefficient (chapter, "The VAE decoder is
    a generative model" and Figure 10). As a decoder it fits Kingma & Welling 2014, eq. 7,
    section 2.3, which leaves the form of p(x|z) open.

        >>> np.exp(Categorical(np.log([0.2, 0.8])).log_prob(np.array([0.0, 1.0]))).round(4)
        np.float64(0.8)
    """

    def __init__(self, logits: Array):
        self.logits = logits

    @property
    def mean(self) -> Array:
        """p = softmax(logits), the probabilities of the classes: (..., k)."""
        return softmax(self.logits)

    @property
    def variance(self) -> Array:
        """p (1 - p) of each entry of the one-hot x: (..., k)."""
        p = self.mean
        return p * (1.0 - p)

    def log_prob(self, x: Array) -> Array:
        """The sum of x_k log p_k over the last axis: shape (...), in nats."""
        return np.sum(_in_their_dtype(x, self.logits) * log_softmax(self.logits), axis=-1)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each row, one-hot: a plain array (..., k)."""
        p = data_of(self.mean)
        # The classes lie side by side on a line, each as long as its probability. A uniform number
        # is a point on the line, and the class is the number of ends that lie before it.
        ends = np.cumsum(p, axis=-1)
        whole = ends[..., -1:]  # 1 but for rounding
        points = whole * rng.random((*p.shape[:-1], 1), dtype=p.dtype)
        classes = np.sum(points >= ends[..., :-1], axis=-1)
        return (classes[..., None] == np.arange(p.shape[-1], like=p)).astype(p.dtype)


class Poisson:
    """Counts whose mean and variance are equal. log_rate: log of the mean, any shape.

    What is left of the negative binomial where cells do not vary: y given w in the generative
    process of Lopez et al. 2018, Methods, with y = count, w = rate (chapter, "scVI architecture").

        >>> np.exp(Poisson(np.log([3.0])).log_prob(2.0)).round(4)
        array([0.224])
    """

    def __init__(self, log_rate: Array):
        self.log_rate = log_rate

    @property
    def mean(self) -> Array:
        """exp(log_rate), elementwise."""
        return np.exp(self.log_rate)

    @property
    def variance(self) -> Array:
        """exp(log_rate), elementwise."""
        return np.exp(self.log_rate)

    def log_prob(self, x: Array) -> Array:
        """x log_rate - rate - log x!, elementwise, in nats. x: whole numbers >= 0."""
        return poisson_log_prob(x, self.log_rate)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        rate = np.exp(data_of(self.log_rate))
        return rng.poisson(rate, size=rate.shape).astype(rate.dtype)


class NegativeBinomial:
    """Counts with variance mu + mu^2/theta: a Poisson whose rate is Gamma (mean mu, shape theta).

    log_mu: log of the mean; log_theta: log of the inverse dispersion; shapes broadcast
    (chapter, "scVI architecture"; Lopez et al. 2018, Methods: y given w is the Poisson of the
    generative process, and w the Gamma, with y = count, w = rate).

        >>> p = NegativeBinomial(np.log([3.0]), np.log([2.0]))
        >>> np.exp(p.log_prob(0.0)).round(4), p.variance.round(4)
        (array([0.16]), array([7.5]))
    """

    def __init__(self, log_mu: Array, log_theta: Array):
        self.log_mu = log_mu
        self.log_theta = log_theta

    @property
    def mean(self) -> Array:
        """mu, in the shape that the parameters broadcast to."""
        return np.exp(self.log_mu + 0.0 * self.log_theta)

    @property
    def variance(self) -> Array:
        """mu + mu^2 / theta, elementwise."""
        return np.exp(self.log_mu) + np.exp(2.0 * self.log_mu - self.log_theta)

    def log_prob(self, x: Array) -> Array:
        """log NB(x), elementwise, in nats; count_likelihoods.py has the formula.

        x: whole numbers >= 0.
        """
        return nb_log_prob(x, self.log_mu, self.log_theta)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        shape = _common_shape(self.log_mu, self.log_theta)
        log_mu = np.broadcast_to(data_of(self.log_mu), shape)
        log_theta = np.broadcast_to(data_of(self.log_theta), shape)
        rate = rng.standard_gamma(np.exp(log_theta), size=shape) * np.exp(log_mu - log_theta)
        return rng.poisson(rate, size=shape).astype(_common_dtype(self.log_mu, self.log_theta))


class ZeroInflatedNegativeBinomial:
    """A negative binomial that is replaced by 0 with probability pi = expit(zi_logits).

    log_mu, log_theta: of the negative binomial; zi_logits: log odds of being replaced; shapes
    broadcast (chapter, "scVI architecture"; Lopez et al. 2018, Methods: h_ng of the generative
    process).

        >>> p = ZeroInflatedNegativeBinomial(np.log([3.0]), np.log([2.0]), np.array([0.0]))
        >>> np.exp(p.log_prob(0.0)).round(4)
        array([0.58])
    """

    def __init__(self, log_mu: Array, log_theta: Array, zi_logits: Array):
        self.log_mu = log_mu
        self.log_theta = log_theta
        self.zi_logits = zi_logits

    @property
    def mean(self) -> Array:
        """(1 - pi) mu, in the shape that the parameters broadcast to."""
        nb = NegativeBinomial(self.log_mu, self.log_theta)
        return nb.mean * special.expit(-self.zi_logits)

    @property
    def variance(self) -> Array:
        """(1 - pi) (variance of the NB + pi mu^2), elementwise."""
        nb = NegativeBinomial(self.log_mu, self.log_theta)
        pi_zero = special.expit(self.zi_logits)
        mu_squared = np.exp(2.0 * self.log_mu)
        return special.expit(-self.zi_logits) * (nb.variance + pi_zero * mu_squared)

    def log_prob(self, x: Array) -> Array:
        """log(pi [x = 0] + (1 - pi) NB(x)), elementwise, in nats. x: whole numbers >= 0."""
        return zinb_log_prob(x, self.log_mu, self.log_theta, self.zi_logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype."""
        parameters = (self.log_mu, self.log_theta, self.zi_logits)
        shape = _common_shape(*parameters)
        nb = NegativeBinomial(np.broadcast_to(data_of(self.log_mu), shape), self.log_theta)
        x = nb.sample(rng).astype(_common_dtype(*parameters))
        is_replaced = rng.random(shape) < special.expit(data_of(self.zi_logits))
        return np.where(is_replaced, np.zeros_like(x), x)


def _common_shape(*parameters):
    """The shape that the parameters broadcast to."""
    return np.broadcast_shapes(*[np.shape(data_of(p)) for p in parameters])


def _common_dtype(*parameters):
    """The floating dtype of the parameters; a Python number takes the dtype of the others."""
    return np.result_type(*[p.dtype if hasattr(p, "dtype") else p for p in parameters], 0.0)


def _in_their_dtype(x, *parameters):
    """x in the dtype of the parameters; as it is where x, or each of them, is a Python number."""
    if not hasattr(x, "dtype") or not any(hasattr(p, "dtype") for p in parameters):
        return x
    dtype = _common_dtype(*parameters)
    return x if x.dtype == dtype else x.astype(dtype)


# ------------------------------------------------------------------------------------- divergences
@fused(kernels.normal_kl_forward, kernels.normal_kl_backward)
def normal_kl(q_loc: Array, q_scale: Array, p_loc: Array, p_scale: Array) -> Array:
    """KL(Normal(q_loc, q_scale) || Normal(p_loc, p_scale)), elementwise, in nats.

        log(p_scale / q_scale) - 1/2 + (q_scale^2 + (q_loc - p_loc)^2) / (2 p_scale^2)

    Any shapes that broadcast. Kingma & Welling 2014, appendix B.
    """
    squares = q_scale**2 + (q_loc - p_loc) ** 2
    return weak_log(p_scale) - weak_log(q_scale) - 0.5 + 0.5 * squares / p_scale**2


def kl_divergence(q, p) -> Array:
    """KL(q || p) = E_q[log q - log p], in closed form, in nats. Differentiable in both.

    Elementwise for two Normal or two Bernoulli, in the shape to which the parameters broadcast;
    over the last axis for two Categorical. TypeError for other pairs (chapter, "Two optimization
    objectives" and "VAE Pytorch code"; Kingma & Welling 2014, appendix B and eq. 10).

        >>> kl_divergence(Normal(np.array([1.0]), 1.0), Normal(0.0, 1.0))
        array([0.5])
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        return normal_kl(q.loc, q.scale, p.loc, p.scale)
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        log_q = log_softmax(q.logits)
        log_p = log_softmax(p.logits)
        return np.sum(np.exp(log_q) * (log_q - log_p), axis=-1)
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        # E_q[log q - log p]; x enters linearly, so x becomes q.mean
        return q.mean * (q.logits - p.logits) + softplus(p.logits) - softplus(q.logits)
    raise TypeError(
        f"kl_divergence: no closed form for {type(q).__name__} against {type(p).__name__}"
    )

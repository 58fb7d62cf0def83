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
Parameters and x may be lists and whole numbers too, and are then computed with in float64; x may be
a sparse matrix, and is made dense. The distributions of counts take logarithms of their parameters,
which is what networks put out: see count_likelihoods.py.

**At the edges.** A formula from a book holds inside of its range. Three things books do not say;
each of them stands below beside its formula, with the reason:

- A probability of 0 has the logarithm -infinity, which a weight of 0 must silence: 0 log 0 = 0
  (`times_log`).
- 1 - p loses its digits where p is near 1, so the probability of "no" is computed by itself, as
  expit(-logits) (`bernoulli_log_prob`).
- A divergence is never below 0, but the difference of two nearly equal numbers may be, by
  rounding (`normal_kl`, `_kl_of_one`).

NaN stays NaN. A draw from a distribution with a NaN parameter is NaN.

Know before reading: functional.py, and what a density is.

Know after: the terms of every objective in models/.
"""

from __future__ import annotations

from math import log, pi
from typing import Any

import numpy as np
from scipy import special

from minigrad import array_kernels, backend, kernels
from minigrad.backend import Array, Matrix
from minigrad.count_likelihoods import nb_log_prob, poisson_log_prob, zinb_log_prob
from minigrad.functional import data_of, log_softmax, softmax, times_log, weighted_log_softmax
from minigrad.kernels import as_dense, fused, weak_log, weak_numbers
from minigrad.tensor import Tensor

HALF_LOG_2PI = 0.5 * log(2.0 * pi)


# ----------------------------------------------------------------------------------- distributions
# Each class reads the same way. `_parameters` looks at what the user gave, `_observed` at the x
# that log_prob is asked about, and `_spread(a, b)` is `a` in the shape that it has beside b. They
# are at the end of the file, and need not be read.


class Normal:
    """The normal distribution. loc: mean; scale: standard deviation > 0; any shapes that broadcast.

    With a scale of 0 all mass is at loc: there are draws, mean and variance, but no density, and
    log_prob and divergences are a ValueError. So is a negative scale from the start. The scale of a
    Tensor is not looked at: a network's exp may underflow to 0, and then log_prob is NaN or
    infinite, which a training reports by itself.

    Prior and posterior of every latent variable here, and the decoder of real numbers
    (chapter, "VAE Pytorch code"; Kingma & Welling 2014, appendix C.2, eq. 12).

        >>> Normal(0.0, np.array([1.0, 2.0])).log_prob(0.0).round(4)
        array([-0.9189, -1.6121])
        >>> Normal(1.0, np.array([2.0])).rsample(eps=np.array([0.5]))
        array([2.])
    """

    def __init__(self, loc: Array, scale: Array):
        self.loc: Any  # an Array: of the kind that the caller gave
        self.scale: Any
        self.loc, self.scale = _parameters("Normal", loc=loc, scale=scale)
        if _is_any(self.scale, lambda scale: scale < 0):
            raise ValueError(
                f"Normal: scale must be > 0, and an entry is {np.min(self.scale)}; "
                "of a network's output take np.exp"
            )

    def _must_have_density(self, asked):
        if _is_any(self.scale, lambda scale: scale == 0):
            raise ValueError(
                f"{asked}: a scale is 0; a normal distribution of which all mass is at loc has "
                "draws, but no density"
            )

    @property
    def mean(self) -> Array:
        """loc, in the shape that loc and scale broadcast to."""
        return _spread(self.loc, self.scale)

    @property
    def variance(self) -> Array:
        """scale^2, in the shape that loc and scale broadcast to."""
        return _spread(self.scale**2, self.loc)

    def log_prob(self, x: Matrix) -> Array:
        """-(x - loc)^2 / (2 scale^2) - log scale - log(2 pi) / 2, elementwise, in nats."""
        self._must_have_density("Normal.log_prob")
        u = (_observed("Normal", x, self.loc, self.scale) - self.loc) / self.scale
        log_scale = weak_log(self.scale)  # np.log(1.0) would make float32 arrays float64
        return -0.5 * np.square(u) - log_scale - HALF_LOG_2PI

    def rsample(self, eps: Array | None = None, rng: np.random.Generator | None = None) -> Array:
        """loc + scale * eps: a draw that gradients pass, the reparameterisation trick.

        eps: standard normal noise of the shape to which the parameters broadcast, or with further
        axes in front for several draws; or rng: a generator to draw it from. Returns a Tensor where
        a parameter is one. TypeError for both or neither, ValueError for fewer numbers than draws
        (chapter, "The reparameterization trick"; Kingma & Welling 2014, section 2.4).
        """
        if (eps is None) == (rng is None):
            raise TypeError(
                "Normal.rsample: give either eps= (standard normal noise) or rng= (a generator)"
            )
        shape = _common_shape(self.loc, self.scale)
        if eps is None:
            assert rng is not None  # one of the two was given
            eps = rng.standard_normal(shape, dtype=_common_dtype(self.loc, self.scale))
        eps = _observed("Normal", eps, self.loc, self.scale, what="rsample: eps")
        if np.broadcast_shapes(np.shape(eps), shape) != np.shape(eps):
            raise ValueError(
                f"Normal.rsample: eps has shape {np.shape(eps)}; it must have a number for each "
                f"entry of the parameters' {shape}"
            )
        return self.loc + self.scale * eps

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry: a plain array, or a NumPy number where loc and scale are one."""
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
        (self.logits,) = _parameters("Bernoulli", logits=logits)

    @property
    def mean(self) -> Array:
        """p = 1 / (1 + exp(-logits)), the probability of a 1, elementwise."""
        return special.expit(self.logits)

    @property
    def variance(self) -> Array:
        """p (1 - p), elementwise."""
        return special.expit(self.logits) * special.expit(-self.logits)

    def log_prob(self, x: Matrix) -> Array:
        """x log p + (1 - x) log(1 - p), elementwise, in nats; see `bernoulli_log_prob`."""
        return bernoulli_log_prob(_observed("Bernoulli", x, self.logits), self.logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each entry, a plain array of 0 and 1; NaN where p is."""
        p = data_of(self.mean)
        is_one = (rng.random(p.shape, dtype=p.dtype) < p).astype(p.dtype)
        return np.where(np.isnan(p), np.nan, is_one)  # `nan < p` is False, and would be a 0


@fused(kernels.bernoulli_forward, kernels.bernoulli_backward)
def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """x log p + (1 - x) log(1 - p) with p = expit(logits), elementwise, in nats.

    x: in [0, 1]; any shapes that broadcast. Returns the dtype of the logits. As 1 - p is
    expit(-logits), both logarithms are log_expit, to the last digit. On paper it all is
    x logits - log(1 + exp(logits)), but there the digits cancel: in float32 the logarithm of
    p = 1 - 10^-7 would be 0.
    """
    log_yes = special.log_expit(logits)
    log_no = special.log_expit(-logits)
    return times_log(x, log_yes) + times_log(1.0 - x, log_no)


class Categorical:
    """One of k classes. logits: (..., k), unnormalised log-probabilities along the last axis.

    x is one-hot, (..., k). It may also be any non-negative weights of the classes, such as counts
    or fractions: then log_prob leaves out the multinomial coefficient (chapter, "The VAE decoder is
    a generative model" and Figure 10). As a decoder it fits Kingma & Welling 2014, eq. 7,
    section 2.3, which leaves the form of p(x|z) open. A logit of -infinity is a class that is
    impossible. ValueError for logits without classes.

        >>> np.exp(Categorical(np.log([0.2, 0.8])).log_prob(np.array([0.0, 1.0]))).round(4)
        np.float64(0.8)
    """

    def __init__(self, logits: Array):
        (self.logits,) = _parameters("Categorical", logits=logits)
        if np.shape(self.logits)[-1:] in ((), (0,)):
            raise ValueError(
                f"Categorical: logits have shape {np.shape(self.logits)}; their last axis must "
                "hold the classes, at least one"
            )

    @property
    def mean(self) -> Array:
        """p = softmax(logits), the probabilities of the classes: (..., k)."""
        return softmax(self.logits)

    @property
    def variance(self) -> Array:
        """p (1 - p) of each entry of the one-hot x: (..., k)."""
        p = self.mean
        return p * (1.0 - p)

    def log_prob(self, x: Matrix) -> Array:
        """The sum of x_k log p_k over the last axis: shape (...), in nats.

        A class that x does not have says nothing, also where its p is 0. ValueError where x has
        another number of classes.
        """
        return weighted_log_softmax(_observed("Categorical", x, self.logits), self.logits)

    def sample(self, rng: np.random.Generator) -> Array:
        """One draw for each row, one-hot: a plain array (..., k). NaN where the logits give no p.

        That is a row with NaN, with +infinity, or of -infinity alone.
        """
        p = data_of(self.mean)
        # The classes lie side by side on a line, each as long as its probability. A uniform number
        # is a point on the line, and the class is the number of ends that lie before it.
        ends = np.cumsum(p, axis=-1)
        whole = ends[..., -1:]  # 1 but for rounding
        points = whole * rng.random((*p.shape[:-1], 1), dtype=p.dtype)
        classes = np.sum(points >= ends[..., :-1], axis=-1)
        every_class = np.arange(p.shape[-1], like=p)  # like: on the device where p is
        is_chosen = (classes[..., None] == every_class).astype(p.dtype)
        return np.where(np.isnan(whole), np.nan, is_chosen)


class Poisson:
    """Counts whose mean and variance are equal. log_rate: log of the mean, any shape.

    What is left of the negative binomial where cells do not vary: y given w in the generative
    process of Lopez et al. 2018, Methods, with y = count, w = rate (chapter, "scVI architecture").

        >>> np.exp(Poisson(np.log([3.0])).log_prob(2.0)).round(4)
        array([0.224])
    """

    def __init__(self, log_rate: Array):
        (self.log_rate,) = _parameters("Poisson", log_rate=log_rate)

    @property
    def mean(self) -> Array:
        """exp(log_rate), elementwise."""
        return np.exp(self.log_rate)

    @property
    def variance(self) -> Array:
        """exp(log_rate), elementwise."""
        return np.exp(self.log_rate)

    def log_prob(self, x: Matrix) -> Array:
        """x log_rate - rate - log x!, elementwise, in nats. x: whole numbers >= 0."""
        x = _observed("Poisson", x, self.log_rate, keep_dtype=True)
        return poisson_log_prob(x, self.log_rate)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype.

        ValueError for a mean above 9 * 10^18, beyond which there are no 64-bit counts.
        """
        rate = np.exp(data_of(self.log_rate))
        return _poisson("Poisson", rate, rng).astype(rate.dtype)


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
        self.log_mu, self.log_theta = _parameters(
            "NegativeBinomial", log_mu=log_mu, log_theta=log_theta
        )

    @property
    def mean(self) -> Array:
        """mu, in the shape that the parameters broadcast to."""
        return np.exp(_spread(self.log_mu, self.log_theta))

    @property
    def variance(self) -> Array:
        """mu + mu^2 / theta, elementwise."""
        return self.mean + np.exp(2.0 * self.log_mu - self.log_theta)

    def log_prob(self, x: Matrix) -> Array:
        """log NB(x), elementwise, in nats; count_likelihoods.py has the formula.

        x: whole numbers >= 0.
        """
        x = _observed("NegativeBinomial", x, self.log_mu, self.log_theta, keep_dtype=True)
        return nb_log_prob(x, self.log_mu, self.log_theta)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype.

        ValueError: as for Poisson.sample.
        """
        # A rate from the Gamma, then a count from the Poisson with that rate, as the class says.
        # (What such counts are good for is told in count_likelihoods.py, a later lesson.)
        log_mu = _in_float64(_spread(self.log_mu, self.log_theta))
        log_theta = _in_float64(_spread(self.log_theta, self.log_mu))
        # Beyond these bounds theta leaves the range of numbers. Above, the NB is the Poisson to the
        # last digit, and so it is at the bound; below, the counts are all 0, here as there.
        log_theta = np.minimum(np.maximum(log_theta, -600.0), 600.0)
        theta = np.exp(np.where(np.isnan(log_theta), 0.0, log_theta))  # NaN comes back in the rate
        gamma = rng.standard_gamma(theta, size=log_mu.shape)
        with np.errstate(divide="ignore", invalid="ignore"):  # log 0 = -infinity: the rate is 0
            rate = np.exp(np.log(gamma) + (log_mu - log_theta))
        dtype = _common_dtype(self.log_mu, self.log_theta)
        return _poisson("NegativeBinomial", rate, rng).astype(dtype)


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
        self.log_mu, self.log_theta, self.zi_logits = _parameters(
            "ZeroInflatedNegativeBinomial",
            log_mu=log_mu,
            log_theta=log_theta,
            zi_logits=zi_logits,
        )

    @property
    def mean(self) -> Array:
        """(1 - pi) mu, in the shape that the parameters broadcast to."""
        log_mu = _spread(self.log_mu, self.log_theta, self.zi_logits)
        zi_logits = _spread(self.zi_logits, log_mu)
        return special.expit(-zi_logits) * np.exp(log_mu)

    @property
    def variance(self) -> Array:
        """(1 - pi) (variance of the NB + pi mu^2), elementwise."""
        log_mu = _spread(self.log_mu, self.log_theta, self.zi_logits)
        zi_logits = _spread(self.zi_logits, log_mu)
        nb = NegativeBinomial(log_mu, self.log_theta)
        pi_zero = special.expit(zi_logits)
        mu_squared = np.exp(2.0 * log_mu)
        return special.expit(-zi_logits) * (nb.variance + pi_zero * mu_squared)

    def log_prob(self, x: Matrix) -> Array:
        """log(pi [x = 0] + (1 - pi) NB(x)), elementwise, in nats. x: whole numbers >= 0."""
        parameters = (self.log_mu, self.log_theta, self.zi_logits)
        x = _observed("ZeroInflatedNegativeBinomial", x, *parameters, keep_dtype=True)
        return zinb_log_prob(x, *parameters)

    def sample(self, rng: np.random.Generator) -> Array:
        """One count for each entry, a plain array of the parameters' dtype.

        ValueError: as for Poisson.sample.
        """
        nb = NegativeBinomial(_spread(self.log_mu, self.zi_logits), self.log_theta)
        x = nb.sample(rng)
        pi_zero = special.expit(data_of(self.zi_logits))
        is_replaced = rng.random(x.shape) < pi_zero
        x = np.where(is_replaced, 0.0, x)
        return np.where(np.isnan(pi_zero), np.nan, x)


# ------------------------------------------------------------------------------------- divergences
@fused(
    kernels.normal_kl_forward,
    kernels.normal_kl_backward,
    elsewhere=(array_kernels.normal_kl_forward, array_kernels.normal_kl_backward),
)
def normal_kl(q_loc: Array, q_scale: Array, p_loc: Array, p_scale: Array) -> Array:
    """KL(Normal(q_loc, q_scale) || Normal(p_loc, p_scale)), elementwise, in nats.

        log(p_scale / q_scale) - 1/2 + (q_scale^2 + (q_loc - p_loc)^2) / (2 p_scale^2)

    Any shapes that broadcast. Kingma & Welling 2014, appendix B. In float32 the square of a scale
    of 10^20 overflows, and that of 10^-23 underflows, so quotients come first. With

        r = q_scale / p_scale,    t = r - 1,    u = (q_loc - p_loc) / p_scale

    the same is -log r - 1/2 + (r^2 + u^2)/2. The -1/2 goes to r^2/2: it is u^2/2 + (r^2 - 1)/2 -
    log r, and as (r^2 - 1)/2 = t + t^2/2, it is

        u^2/2 + (t - log r) + t^2/2

    No part is below 0, as log(1 + t) <= t; and t, computed as (q_scale - p_scale) / p_scale, has
    all of its digits also where the scales are nearly equal.
    """
    u = (q_loc - p_loc) / p_scale
    t = (q_scale - p_scale) / p_scale
    is_near = np.abs(data_of(t)) < 0.5
    near = np.log1p(np.where(is_near, t, 0.0))
    far = weak_log(q_scale) - weak_log(p_scale)  # where r itself may leave the range of numbers
    log_r = np.where(is_near, near, far)
    return 0.5 * np.square(u) + ((t - log_r) + 0.5 * np.square(t))


def kl_divergence(q, p) -> Array:
    """KL(q || p) = E_q[log q - log p], in closed form, in nats. Differentiable in both.

    Elementwise for two Normal or two Bernoulli, in the shape to which the parameters broadcast;
    over the last axis for two Categorical. Infinite where p excludes what q does not. TypeError for
    other pairs, ValueError for two Categorical of different numbers of classes, and for a Normal
    with a scale of 0 (chapter, "Two optimization objectives" and "VAE Pytorch code"; Kingma &
    Welling 2014, appendix B and eq. 10).

        >>> kl_divergence(Normal(np.array([1.0]), 1.0), Normal(0.0, 1.0))
        array([0.5])
    """
    if isinstance(q, Normal) and isinstance(p, Normal):
        for distribution in (q, p):
            distribution._must_have_density("kl_divergence")
        return normal_kl(q.loc, q.scale, p.loc, p.scale)
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        q_logits, p_logits = weak_numbers([q.logits, p.logits])
        q_logits = _spread(q_logits, p_logits)
        p_logits = _spread(p_logits, q_logits)
        of_yes = _kl_of_one(special.log_expit(q_logits), special.log_expit(p_logits))
        of_no = _kl_of_one(special.log_expit(-q_logits), special.log_expit(-p_logits))
        return of_yes + of_no
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        if np.shape(q.logits)[-1] != np.shape(p.logits)[-1]:
            raise ValueError(
                f"kl_divergence: logits of shapes {np.shape(q.logits)} and {np.shape(p.logits)}; "
                "the numbers of classes, the last axis, must be the same"
            )
        return np.sum(_kl_of_one(log_softmax(q.logits), log_softmax(p.logits)), axis=-1)
    raise TypeError(
        f"kl_divergence: no closed form for {type(q).__name__} against {type(p).__name__}"
    )


def _kl_of_one(log_q, log_p):
    """What one class of several adds to KL(q || p), elementwise:

        q (log q - log p) + p - q  >=  0

    In the sum over the classes p - q is 0, as both sum to 1. It is there for the rounding: with
    s = log q - log p it is p = q e^-s, and so p - q = q (e^-s - 1). Each term is then
    q (s + e^-s - 1), which is never negative. Without it the terms of two nearly equal
    distributions would be of either sign, and cancel.
    """
    q = np.exp(log_q)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # -infinity less -infinity is NaN, and dropped below
        s = log_q - log_p
    is_near = data_of(s) > -1.0  # elsewhere e^-s may overflow, and p - q does not cancel
    p_minus_q = np.where(is_near, q * np.expm1(-np.where(is_near, s, 0.0)), p - q)
    is_impossible = data_of(log_q) == -np.inf
    return q * np.where(is_impossible, 0.0, s) + p_minus_q  # 0 log 0 = 0


# -------------------------------------------------------------------------------------- parameters
# What a user may give, made fit to compute with: no formula is down here.


def _parameters(name, **given):
    """The parameters of the distribution `name`, in order, as it computes with them.

    Tensors, floating arrays and Python numbers as they are; lists and whole numbers in float64. A
    NumPy number beside an array follows the array's dtype, as a Python number does.
    """
    found = {key: _as_parameter(x, f"{name}: {key}") for key, x in given.items()}
    found = dict(zip(found, weak_numbers(found.values())))
    shapes = {key: np.shape(data_of(x)) for key, x in found.items()}
    if len(set(shapes.values())) > 1:
        try:
            np.broadcast_shapes(*shapes.values())
        except ValueError:
            each = ", ".join(f"{key} has shape {shape}" for key, shape in shapes.items())
            raise ValueError(f"{name}: {each}; they must broadcast") from None
    return list(found.values())


def _as_parameter(x, what):
    """One of them; what: its name, for errors. TypeError for what is not numbers."""
    if isinstance(x, (int, float)) and not isinstance(x, np.generic):
        return float(x)
    if not isinstance(x, np.generic):
        x = as_dense(x, what)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"{what} is an array of {x.dtype}, and not of real numbers")
    return x if x.dtype.char in "fd" else x.astype(np.float32 if x.dtype.char == "e" else float)


def _is_any(parameter, is_wrong):
    """Whether an entry is wrong, of a plain array or number on the host.

    Tensors are not looked at, for they change while they are trained; and on a GPU, looking would
    mean to wait.
    """
    is_looked_at = type(parameter) is not Tensor and backend.device_of(parameter) == "numpy"
    return is_looked_at and bool(np.any(is_wrong(parameter)))


def _observed(name, x, *parameters, keep_dtype=False, what="log_prob: x"):
    """x as a dense array in the dtype of the parameters, of a shape that broadcasts with theirs.

    As it is where x, or each of the parameters, is a Python number. keep_dtype: of counts, whose
    likelihoods are computed in float64 inside.
    """
    if not isinstance(x, (int, float)):
        x = x.toarray() if backend.is_sparse(x) else as_dense(x, f"{name}.{what}")
        shape = _common_shape(*parameters)
        if x.shape != shape:
            try:
                np.broadcast_shapes(x.shape, shape)
            except ValueError:
                raise ValueError(
                    f"{name}.{what} has shape {x.shape}, and does not broadcast with the "
                    f"parameters' {shape}"
                ) from None
    if keep_dtype or not hasattr(x, "dtype") or not any(hasattr(p, "dtype") for p in parameters):
        return x
    dtype = _common_dtype(*parameters)
    return x if x.dtype == dtype else x.astype(dtype)


def _spread(x, *others):
    """x in the shape and dtype that it has beside the other parameters, whose values do not matter.

    0.0 * other would do, but for infinities: 0 * infinity is NaN.
    """
    for other in others:
        x = x + (0.0 if isinstance(other, float) else np.zeros_like(data_of(other)))
    return x


def _in_float64(x):
    """The numbers of a parameter as a plain float64 array, or NumPy number, of its shape."""
    return np.float64(x) if isinstance(x, float) else data_of(x).astype(np.float64)


def _common_shape(*parameters):
    """The shape that the parameters broadcast to."""
    return np.broadcast_shapes(*[np.shape(data_of(p)) for p in parameters])


def _common_dtype(*parameters):
    """The floating dtype of the parameters; a Python number takes the dtype of the others."""
    return np.result_type(*[p.dtype if hasattr(p, "dtype") else p for p in parameters], 0.0)


def _poisson(name, rate, rng):
    """A Poisson draw for each rate, a float64 array of its shape; NaN where the rate is NaN."""
    is_nan = np.isnan(rate)
    known = np.where(is_nan, 0.0, rate)
    try:
        counts = rng.poisson(known, size=rate.shape)
    except ValueError as error:
        raise ValueError(
            f"{name}.sample: the largest mean to draw from is {np.max(known):.3g}; "
            "counts have 64 bits, and are drawn for means up to 9e18"
        ) from error
    return np.where(is_nan, np.nan, counts)

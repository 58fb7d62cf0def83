"""Kernels for arrays that are not NumPy's, as on a GPU: few calls, each of a whole array.

This is engineering. On a processor a kernel is quick if it passes over memory seldom, and so those
of kernels.py and count_kernels.py go in small pieces, and gather what is rare. On a GPU each call
has a price, of some microseconds, that for arrays of a minibatch is more than what the arithmetic
takes. So the kernels here make few calls. They are plain NumPy, run on any array, and say nothing
about devices. Beside their twins they save what the tape would compute twice:

    >>> x = np.array([[0.0, 3.0], [1.0, 2.0]])
    >>> logits, log_library, log_theta = np.zeros((2, 2)), np.ones((2, 1)), np.zeros(2)
    >>> log_p, saved = nb_forward((False, True, True, True), x, logits, log_library, log_theta)
    >>> _, d_logits, _, _ = nb_backward(np.ones(2), log_p, saved, (False, True, True, True))
    >>> d_logits.round(3)
    array([[-0.636,  0.636],
           [-0.212,  0.212]])

What each of them computes stands beside its twin, in functional.py, distributions.py and
count_likelihoods.py. The tests hold one against the other. The likelihoods have the digits of the
formulas there, and not those of count_kernels.py.

Know before reading: kernels.py, for what a kernel is, and count_likelihoods.py.

Know after: how few calls a training step can be made of.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import special

from minigrad.backend import is_sparse
from minigrad.kernels import weak_log


# -------------------------------------------------------------------------------------- batch norm
def batch_norm_forward(needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """weight u + bias, with u = centred / sqrt(var + eps). Keeps u and the square root.

    Shapes: as kernels.batch_norm_forward has them.
    """
    std = np.sqrt(var + eps)
    u = centred / std
    return weight * u + bias, (u, std)


def batch_norm_backward(g, y, saved, needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """The gradients of x, weight and bias; shapes as forward.

    With means over the rows, dx = weight / sqrt(var + eps) * (g - mean(g) - u mean(g u)). The other
    two are sums over the rows, and written where the sweep wants them.
    """
    u, std = saved
    n = float(len(g))
    mean_g = np.mean(g, axis=0)
    mean_gu = np.mean(g * u, axis=0)

    def d_weight(out):
        return np.multiply(mean_gu, n, out=out)

    def d_bias(out):
        return np.multiply(mean_g, n, out=out)

    dx = (g - (mean_g + u * mean_gu)) * (weight / std) if needs[0] else None
    return dx, d_weight if needs[1] else None, d_bias if needs[2] else None


# ----------------------------------------------------------------------- divergence of two normals
def normal_kl_forward(needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """(u^2 + t^2)/2 + (t - log(1 + t)), elementwise, in nats; distributions.py has the formula.

    Keeps u = (q_loc - p_loc) / p_scale and t = (q_scale - p_scale) / p_scale.
    """
    u = _divided(_less(q_loc, p_loc), p_scale)
    t = _divided(_less(q_scale, p_scale), p_scale)
    with np.errstate(all="ignore"):  # of what np.where drops
        near = np.log1p(t)
    far = _less(weak_log(q_scale), weak_log(p_scale))  # where t has lost digits of a small q_scale
    t_squared = t * t
    log_r = np.where(t_squared < 0.25, near, far)
    return 0.5 * (u * u + t_squared) + (t - log_r), (u, t)


def normal_kl_backward(g, y, saved, needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """The gradients of all four parameters, elementwise, as in kernels.normal_kl_backward."""
    u, t = saved
    of_loc = g * _divided(u, p_scale)
    return (
        of_loc if needs[0] else None,
        g * (t / q_scale * (2.0 + t)) if needs[1] else None,
        -of_loc if needs[2] else None,
        -(g * _divided(t * (2.0 + t), p_scale) + of_loc * u) if needs[3] else None,
    )


# The prior of latent variables is Normal(0, 1), given as numbers: then there is nothing to compute.
def _less(x, y):
    """x - y, without a call for a number y that is 0."""
    return x if isinstance(y, (float, np.generic)) and y == 0.0 else x - y


def _divided(x, y):
    """x / y, without a call for a number y that is 1."""
    return x if isinstance(y, (float, np.generic)) and y == 1.0 else x / y


# -------------------------------------------------------------------------------------- the counts
class _Counts(NamedTuple):
    """A minibatch of counts, (n_cells, n_genes), and what is wrong with it."""

    x: Any  # the counts; 0 where an entry is not a count
    is_count: Any  # a boolean for each entry
    log_p_elsewhere: Any  # where it is not a count: -infinity, and NaN where x is
    has_counts: Any  # a boolean for each cell, (n_cells,)


def _counts(counts, dtype) -> _Counts:
    x = counts.toarray() if is_sparse(counts) else counts
    x = x.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        is_count = np.floor(np.abs(x)) - x == 0  # infinity less infinity is NaN, and not 0
    x0 = np.where(is_count, x, 0.0)
    return _Counts(x0, is_count, np.minimum(x, -np.inf), np.any(x, axis=1))


def _sum_over_genes(log_p, counts: _Counts):
    """The log p of each cell, (n_cells,), from that of its genes; 0 if it has no counts."""
    log_p = np.where(counts.is_count, log_p, counts.log_p_elsewhere)
    return np.where(counts.has_counts, np.sum(log_p, axis=1), 0.0)


def _gradients_of_genes(g, counts: _Counts):
    """The gradient of the log p of each gene, from those of the cells, g (n_cells,).

    It is 0 in a cell without counts and for what is not a count, and NaN where that is NaN.
    """
    g = np.where(counts.has_counts, g, 0.0)[:, None]
    # log_p_elsewhere is -infinity or NaN, and the exponential of that 0 or NaN.
    return np.where(counts.is_count, g, np.exp(counts.log_p_elsewhere))


class _Means(NamedTuple):
    """The means of a minibatch: log_mu = log_softmax(logits) + log_library."""

    log_mu: Any  # (n_cells, n_genes)
    e: Any  # the exponentials of the logits, less the highest of the cell
    total: Any  # their sum, (n_cells, 1)


def _means(logits, log_library) -> _Means:
    shifted = logits - np.max(logits, axis=1, keepdims=True)
    e = np.exp(shifted)
    total = np.sum(e, axis=1, keepdims=True)
    return _Means(shifted + (log_library - np.log(total)), e, total)


def _gradients_of_logits(d_log_mu, means: _Means) -> list:
    """The gradients of logits and log_library, from those of log_mu (n_cells, n_genes)."""
    d_log_library = np.sum(d_log_mu, axis=1, keepdims=True)
    return [d_log_mu - means.e * (d_log_library / means.total), d_log_library]


# ----------------------------------------------------------------------------------------- Poisson
def poisson_forward(needs, counts, logits, log_library) -> tuple:
    """log p of each cell, (n_cells,): x log_mu - mu - lgamma(x + 1), summed over genes."""
    counts = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    mu = np.exp(means.log_mu)
    log_p = counts.x * means.log_mu - mu - special.gammaln(counts.x + 1.0)
    return _sum_over_genes(log_p, counts), (counts, means, mu)


def poisson_backward(g, y, saved, needs, *_) -> list:
    """d log_mu = x - mu, times g; from that the gradients of logits and log_library."""
    counts, means, mu = saved
    d_log_mu = (counts.x - mu) * _gradients_of_genes(g, counts)
    return [None, *_gradients_of_logits(d_log_mu, means)]


# ------------------------------------------------------------------------------- negative binomial
class _NB(NamedTuple):
    """The negative binomial of each gene, and what its slopes are made of."""

    log_p: Any  # (n_cells, n_genes)
    theta: Any  # of the shape of log_theta
    d: Any  # log_mu - log_theta
    softplus_d: Any
    z: Any  # x + theta


def _nb(x, log_mu, log_theta) -> _NB:
    """As softplus(-d) = softplus(d) - d, and by the beta function B,

    log NB(x) = x d - z softplus(d) - log B(x + 1, theta) - log z,  z = x + theta
    """
    theta = np.exp(log_theta)
    d = log_mu - log_theta
    softplus_d = np.logaddexp(d, 0.0)
    z = x + theta
    log_p = (x * d - z * softplus_d) - (special.betaln(x + 1.0, theta) + np.log(z))
    return _NB(log_p, theta, d, softplus_d, z)


def _gradients_of_nb(g, x, nb: _NB) -> list:
    """The gradients of log_mu and log_theta, from that of log p; all (n_cells, n_genes).

    d log_mu = x - z sigmoid(d)
    d log_theta = theta (digamma(z) - digamma(theta) - softplus(d)) - d log_mu
    """
    d_log_mu = x - nb.z * special.expit(nb.d)
    digammas = special.digamma(nb.z) - special.digamma(nb.theta)
    return [d_log_mu * g, (nb.theta * (digammas - nb.softplus_d) - d_log_mu) * g]


def nb_forward(needs, counts, logits, log_library, log_theta) -> tuple:
    """log p of each cell, (n_cells,)."""
    counts = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    nb = _nb(counts.x, means.log_mu, log_theta)
    return _sum_over_genes(nb.log_p, counts), (counts, means, nb)


def nb_backward(g, y, saved, needs, *_) -> list:
    """The gradients of logits, log_library and log_theta (n_cells, n_genes)."""
    counts, means, nb = saved
    d_log_mu, d_log_theta = _gradients_of_nb(_gradients_of_genes(g, counts), counts.x, nb)
    return [None, *_gradients_of_logits(d_log_mu, means), d_log_theta]


# -------------------------------------------------------------------------------- with extra zeros
def zinb_forward(needs, counts, logits, log_library, log_theta, zi_logits) -> tuple:
    """log p of each cell, (n_cells,). Keeps the share of the NB in each entry's probability."""
    counts = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    nb = _nb(counts.x, means.log_mu, log_theta)
    # Not yet divided by 1 + exp(zi_logits): NB(x), and of a zero also exp(zi_logits).
    mixed = np.where(counts.x == 0, np.logaddexp(nb.log_p, zi_logits), nb.log_p)
    log_p = mixed - np.logaddexp(zi_logits, 0.0)
    return _sum_over_genes(log_p, counts), (counts, means, nb, mixed)


def zinb_backward(g, y, saved, needs, counts, logits, log_library, log_theta, zi_logits) -> list:
    """The gradients of logits, log_library, log_theta and zi_logits.

    The first three are those of the NB, times its share; d zi_logits = 1 - share -
    sigmoid(zi_logits).
    """
    counts, means, nb, mixed = saved
    share = np.exp(nb.log_p - mixed)
    g = _gradients_of_genes(g, counts)
    d_log_mu, d_log_theta = _gradients_of_nb(g * share, counts.x, nb)
    d_zi_logits = g * (special.expit(-zi_logits) - share)
    return [None, *_gradients_of_logits(d_log_mu, means), d_log_theta, d_zi_logits]

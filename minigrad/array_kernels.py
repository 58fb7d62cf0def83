"""Kernels for arrays that are not NumPy's, as on a GPU: few calls, each of a whole array.

This is engineering. On a processor a kernel is quick if it passes over memory seldom, and so those
of kernels.py and count_kernels.py go in small pieces, and gather what is rare. On a GPU each call
has a price, of some microseconds, that for arrays of a minibatch is more than what the arithmetic
takes. So the kernels here make few calls: one for each sum or mean, and one for all that stands
between two of them. The latter is a formula under `@elementwise` (backend.py), which a GPU computes
at once, however long it is; so what is cheap is computed again rather than kept. All are plain
NumPy, run on any array, and say nothing about devices:

    >>> x = np.array([[0.0, 3.0], [1.0, 2.0]])
    >>> inputs = (x, np.zeros((2, 2)), np.ones((2, 1)), np.zeros(2))  # logits, library, log theta
    >>> needs = (False, True, True, True)
    >>> log_p, saved = nb_forward(needs, *inputs)
    >>> _, d_logits, _, _ = nb_backward(np.ones(2), log_p, saved, needs, *inputs)
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

from minigrad.backend import elementwise, is_sparse
from minigrad.kernels import weak_log


# -------------------------------------------------------------------------------------- batch norm
@elementwise
def _normalised(centred, var, weight, bias, eps):
    """(weight u + bias, u), with u = centred / sqrt(var + eps)."""
    u = centred / np.sqrt(var + eps)
    return weight * u + bias, u


def batch_norm_forward(needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """weight u + bias, with u = centred / sqrt(var + eps), which it keeps.

    Shapes: as kernels.batch_norm_forward has them.
    """
    return _normalised(centred, var, weight, bias, eps)


@elementwise
def _through_norm(g, u, mean_g, mean_gu, weight, var, eps):
    return (g - (mean_g + u * mean_gu)) * (weight / np.sqrt(var + eps))


def batch_norm_backward(g, y, u, needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """The gradients of x, weight and bias; shapes as forward.

    With means over the rows, dx = weight / sqrt(var + eps) * (g - mean(g) - u mean(g u)). The other
    two are sums over the rows, and written where the sweep wants them.
    """
    n = float(len(g))
    mean_g = np.mean(g, axis=0)
    mean_gu = np.mean(g * u, axis=0)

    def d_weight(out):
        return np.multiply(mean_gu, n, out=out)

    def d_bias(out):
        return np.multiply(mean_g, n, out=out)

    dx = _through_norm(g, u, mean_g, mean_gu, weight, var, eps) if needs[0] else None
    return dx, d_weight if needs[1] else None, d_bias if needs[2] else None


# ----------------------------------------------------------------------- divergence of two normals
@elementwise
def _kl(q_loc, q_scale, p_loc, p_scale, log_p_scale):
    """(u^2 + t^2)/2 + (t - log(1 + t)): see normal_kl_forward."""
    u = (q_loc - p_loc) / p_scale
    t = (q_scale - p_scale) / p_scale
    with np.errstate(all="ignore"):  # of what np.where drops
        near = np.log1p(t)
    far = np.log(q_scale) - log_p_scale  # where t has lost digits of a small q_scale
    t_squared = t * t
    return 0.5 * (u * u + t_squared) + (t - np.where(t_squared < 0.25, near, far))


@elementwise
def _kl_slopes(q_loc, q_scale, p_loc, p_scale, g):
    """The gradients of q_loc and q_scale.

    kernels.normal_kl_backward has the slope t (2 + t) / q_scale for the latter; here it is a sum.
    """
    u = (q_loc - p_loc) / p_scale
    t = (q_scale - p_scale) / p_scale
    return g * (u / p_scale), g * (t / p_scale + t / q_scale)


@elementwise
def _kl_slopes_of_p(q_loc, q_scale, p_loc, p_scale, g):
    """The gradients of p_loc and p_scale."""
    u = (q_loc - p_loc) / p_scale
    t = (q_scale - p_scale) / p_scale
    return -(g * (u / p_scale)), -(g * ((t * (2.0 + t) + u * u) / p_scale))


def normal_kl_forward(needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """(u^2 + t^2)/2 + (t - log(1 + t)), elementwise, in nats; distributions.py has the formula.

    u = (q_loc - p_loc) / p_scale and t = (q_scale - p_scale) / p_scale.
    """
    inputs = _first_two_as_arrays(q_loc, q_scale, p_loc, p_scale)
    return _kl(*inputs, weak_log(p_scale)), None


def normal_kl_backward(g, y, saved, needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """The gradients of all four parameters, elementwise, as in kernels.normal_kl_backward."""
    inputs = _first_two_as_arrays(q_loc, q_scale, p_loc, p_scale)
    of_q = _kl_slopes(*inputs, g)
    of_p = _kl_slopes_of_p(*inputs, g) if needs[2] or needs[3] else (None, None)
    return *of_q, *of_p


def _first_two_as_arrays(*parameters) -> list:
    """The same, with arrays for numbers in front: in an elementwise formula no two numbers meet."""
    numbers = (int, float, np.generic)
    like = next(x for x in parameters if not isinstance(x, numbers))
    found = list(parameters)
    for i in range(2):
        if isinstance(found[i], numbers):
            found[i] = np.full_like(like, found[i], shape=())
    return found


# -------------------------------------------------------------------------------------- the counts
class _Counts(NamedTuple):
    """A minibatch of counts, (n_cells, n_genes), and what is wrong with it."""

    x: Any  # the counts; 0 where an entry is not a count
    is_count: Any  # a boolean for each entry
    log_p_elsewhere: Any  # where it is not a count: -infinity, and NaN where x is
    has_counts: Any  # a boolean for each cell, (n_cells, 1)


@elementwise
def _checked(x, lowest):
    """The first three fields of _Counts.

    lowest: minus infinity. It is an argument since CuPy would write an infinity that stands in the
    formula as CUDART_INF, and does not include the header that defines this.
    """
    with np.errstate(invalid="ignore"):
        is_count = np.floor(np.abs(x)) - x == 0  # infinity less infinity is NaN, and not 0
    return np.where(is_count, x, 0.0), is_count, np.minimum(x, lowest)


def _counts(counts, dtype) -> _Counts:
    """The record of counts, (n_cells, n_genes), dense or CSR, in the dtype to compute in."""
    dense = counts.toarray() if is_sparse(counts) else counts
    x = dense.astype(dtype, copy=False)
    checked, is_count, log_p_elsewhere = _checked(x, -np.inf)
    return _Counts(checked, is_count, log_p_elsewhere, np.any(x, axis=1, keepdims=True))


def _sum_over_genes(log_p, counts: _Counts):
    """The log p of each cell, (n_cells,), from that of its genes; 0 if it has no counts."""
    return np.where(counts.has_counts[:, 0], np.sum(log_p, axis=1), 0.0)


class _Means(NamedTuple):
    """What the means of a minibatch are made of: log_mu = log_softmax(logits) + log_library."""

    shifted: Any  # the logits, less the highest of the cell, (n_cells, n_genes)
    total: Any  # the sum of their exponentials, (n_cells, 1)
    log_library: Any  # (n_cells, 1)


@elementwise
def _exponentials(logits, highest):
    """(the logits less the highest of the cell, the exponentials of that)."""
    shifted = logits - highest
    return shifted, np.exp(shifted)


def _means(logits, log_library) -> _Means:
    shifted, e = _exponentials(logits, np.max(logits, axis=1, keepdims=True))
    return _Means(shifted, np.sum(e, axis=1, keepdims=True), log_library)


@elementwise
def _through_softmax(d_log_mu, d_log_library, means):
    p = np.exp(means.shifted) / means.total
    return d_log_mu - p * d_log_library


def _gradients_of_logits(d_log_mu, means: _Means) -> list:
    """The gradients of logits and log_library, from those of log_mu (n_cells, n_genes)."""
    d_log_library = np.sum(d_log_mu, axis=1, keepdims=True)
    return [_through_softmax(d_log_mu, d_log_library, means), d_log_library]


def _gradient_of_log_theta(d_log_theta, log_theta):
    """Where there is one theta for each gene: the sum over cells, written where the sweep wants it.

    d_log_theta: (n_cells, n_genes); elsewhere it is returned as it is.
    """
    if log_theta.shape != d_log_theta.shape[1:]:
        return d_log_theta
    return lambda out: np.sum(d_log_theta, axis=0, out=out)


# Two parts of the formulas below.


def _log_mu(means):
    """log_softmax(logits) + log_library."""
    return means.shifted + (means.log_library - np.log(means.total))


def _of_genes(g, counts):
    """The gradient of the log p of each gene, from that of its cell, g (n_cells, 1).

    It is 0 in a cell without counts and for what is not a count, and NaN where that is NaN.
    """
    g = np.where(counts.has_counts, g, 0.0)
    # log_p_elsewhere is -infinity or NaN, and the exponential of that 0 or NaN.
    return np.where(counts.is_count, g, np.exp(counts.log_p_elsewhere))


# ----------------------------------------------------------------------------------------- Poisson
@elementwise
def _poisson(counts, means):
    """log p of each gene: x log_mu - mu - lgamma(x + 1)."""
    log_mu = _log_mu(means)
    log_p = counts.x * log_mu - np.exp(log_mu) - special.gammaln(counts.x + 1.0)
    return np.where(counts.is_count, log_p, counts.log_p_elsewhere)


@elementwise
def _poisson_gradient(g, counts, means):
    """The gradient of log_mu: g (x - mu)."""
    return (counts.x - np.exp(_log_mu(means))) * _of_genes(g, counts)


def poisson_forward(needs, counts, logits, log_library) -> tuple:
    """log p of each cell, (n_cells,)."""
    checked = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    return _sum_over_genes(_poisson(checked, means), checked), (checked, means)


def poisson_backward(g, y, saved, needs, *_) -> list:
    """The gradients of logits and log_library."""
    checked, means = saved
    d_log_mu = _poisson_gradient(g[:, None], checked, means)
    return [None, *_gradients_of_logits(d_log_mu, means)]


# ------------------------------------------------------------------------------- negative binomial
def _log_nb(x, log_mu, log_theta):
    """As softplus(-d) = softplus(d) - d, and by the beta function B,

    log NB(x) = x d - z softplus(d) - log B(x + 1, theta) - log z

    with d = log_mu - log_theta and z = x + theta.
    """
    theta = np.exp(log_theta)
    d = log_mu - log_theta
    z = x + theta
    return (x * d - z * np.logaddexp(d, 0.0)) - (special.betaln(x + 1.0, theta) + np.log(z))


def _slopes_of_log_nb(x, log_mu, log_theta):
    """Those for log_mu and log_theta, with the same d and z:

    of_log_mu = x - z sigmoid(d)
    of_log_theta = theta (digamma(z) - digamma(theta) - softplus(d)) - of_log_mu
    """
    theta = np.exp(log_theta)
    d = log_mu - log_theta
    z = x + theta
    of_log_mu = x - z * special.expit(d)
    digammas = special.digamma(z) - special.digamma(theta)
    return of_log_mu, theta * (digammas - np.logaddexp(d, 0.0)) - of_log_mu


@elementwise
def _nb(counts, means, log_theta):
    """log p of each gene."""
    log_nb = _log_nb(counts.x, _log_mu(means), log_theta)
    return np.where(counts.is_count, log_nb, counts.log_p_elsewhere)


@elementwise
def _nb_gradients(g, counts, means, log_theta):
    """The gradients of log_mu and log_theta."""
    g = _of_genes(g, counts)
    of_log_mu, of_log_theta = _slopes_of_log_nb(counts.x, _log_mu(means), log_theta)
    return of_log_mu * g, of_log_theta * g


def nb_forward(needs, counts, logits, log_library, log_theta) -> tuple:
    """log p of each cell, (n_cells,)."""
    checked = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    return _sum_over_genes(_nb(checked, means, log_theta), checked), (checked, means)


def nb_backward(g, y, saved, needs, counts, logits, log_library, log_theta) -> list:
    """The gradients of logits, log_library and log_theta."""
    checked, means = saved
    d_log_mu, d_log_theta = _nb_gradients(g[:, None], checked, means, log_theta)
    d_log_theta = _gradient_of_log_theta(d_log_theta, log_theta)
    return [None, *_gradients_of_logits(d_log_mu, means), d_log_theta]


# -------------------------------------------------------------------------------- with extra zeros
@elementwise
def _zinb(counts, means, log_theta, zi_logits):
    """(log p of each gene, the share of the NB in its probability)."""
    log_nb = _log_nb(counts.x, _log_mu(means), log_theta)
    # Not yet divided by 1 + exp(zi_logits): NB(x), and of a zero also exp(zi_logits).
    mixed = np.where(counts.x == 0, np.logaddexp(log_nb, zi_logits), log_nb)
    log_p = mixed - np.logaddexp(zi_logits, 0.0)
    return np.where(counts.is_count, log_p, counts.log_p_elsewhere), np.exp(log_nb - mixed)


@elementwise
def _zinb_gradients(g, counts, means, log_theta, zi_logits, share):
    """The gradients of log_mu, log_theta and zi_logits."""
    g = _of_genes(g, counts)
    of_log_mu, of_log_theta = _slopes_of_log_nb(counts.x, _log_mu(means), log_theta)
    g_nb = g * share
    return of_log_mu * g_nb, of_log_theta * g_nb, g * (special.expit(-zi_logits) - share)


def zinb_forward(needs, counts, logits, log_library, log_theta, zi_logits) -> tuple:
    """log p of each cell, (n_cells,). Keeps the share of the NB in each entry's probability."""
    checked = _counts(counts, logits.dtype)
    means = _means(logits, log_library)
    log_p, share = _zinb(checked, means, log_theta, zi_logits)
    return _sum_over_genes(log_p, checked), (checked, means, share)


def zinb_backward(g, y, saved, needs, counts, logits, log_library, log_theta, zi_logits) -> list:
    """The gradients of logits, log_library, log_theta and zi_logits.

    The first three are those of the NB, times its share; d zi_logits = 1 - share -
    sigmoid(zi_logits).
    """
    checked, means, share = saved
    d_log_mu, d_log_theta, d_zi_logits = _zinb_gradients(
        g[:, None], checked, means, log_theta, zi_logits, share
    )
    d_log_theta = _gradient_of_log_theta(d_log_theta, log_theta)
    return [None, *_gradients_of_logits(d_log_mu, means), d_log_theta, d_zi_logits]

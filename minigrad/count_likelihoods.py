"""Log-likelihoods of counts: Poisson, negative binomial (NB) and zero-inflated NB (ZINB).

This is a lesson: first the formulas, then what is hard about them. Take a gene that varies among
the cells: counts with mean mu = 3 and inverse dispersion theta = 2. The probabilities of 0, 1, 2
and 3 counts are

    >>> log_mu, log_theta = np.log(3.0), np.log(2.0)
    >>> np.exp(nb_log_prob(np.arange(4.0), log_mu, log_theta)).round(3)
    array([0.16 , 0.192, 0.173, 0.138])

**The distributions.** Let x be the count and mu its mean. theta is the inverse dispersion: the
variance is mu + mu^2/theta, so the Poisson is what is left for theta -> infinity. A zero-inflated
NB is an NB whose count is replaced by 0 with probability pi (Lopez et al. 2018, "Deep generative
modeling for single-cell transcriptomics", Nature Methods 15:1053, Methods; chapter, "scVI
architecture"):

    NB(x)      = Gamma(x+theta) / (Gamma(theta) x!) (theta/(theta+mu))^theta (mu/(theta+mu))^x
    ZINB(0)    = pi + (1 - pi) NB(0)
    ZINB(x>0)  = (1 - pi) NB(x)

**Logarithms throughout.** The likelihood of a cell is a product over thousands of genes, which
would underflow: so the results are logarithms. The parameters are logarithms as well, log_mu,
log_theta and zi_logits = log(pi / (1 - pi)), because a network puts out any real number, and mu and
theta may lie anywhere between 0 and infinity. Let d = log_mu - log_theta, a = zi_logits and
softplus(t) = log(1 + e^t), which is computed without overflow. Then theta/(theta+mu) = 1/(1 + e^d),
of which the logarithm is -softplus(d); likewise log(mu/(theta+mu)) = -softplus(-d), and the same
three lines are

    log NB(x)      = lgamma(x+theta) - lgamma(theta) - lgamma(x+1)
                     - theta softplus(d) - x softplus(-d)
    log ZINB(0)    = softplus(log NB(0) - a) - softplus(-a)
    log ZINB(x>0)  = log NB(x) - softplus(a)

No quotient is left, and no exponential that could overflow but theta = exp(log_theta): that of
softplus does not. These are the functions below.

**What is hard.** They are right on paper. On a machine, the difference of the first two lgammas
loses its digits where theta is large. lgamma(10^14) is about 3 * 10^15, where the numbers that a
machine knows lie 1/2 apart, so whatever comes out is a multiple of 1/2:

    >>> theta = 1e14
    >>> (special.gammaln(theta + 3.0) - special.gammaln(theta)) % 0.5
    np.float64(0.0)
    >>> np.sum(np.log(theta + np.arange(3.0))).round(4)  # on paper the same difference
    np.float64(96.7086)

The way out is due to Loader (2000, "Fast and accurate computation of binomial probabilities", which
R's dnbinom follows). It takes three steps. The first is Stirling's formula, which has a small error
s(z), near 1/(12 z):

(1) lgamma(z) = (z - 1/2) log(z) - z + log(2 pi)/2 + s(z)

Put (1) in for the three lgammas (lgamma(x+1) is lgamma(x) + log x), and the large terms can be
collected by hand:

(2) log NB(x) = theta log(1+u) + x log(1+w) - log(2 pi x (x+theta)/theta)/2
                + s(x+theta) - s(theta) - s(x)

    where  u = (x-mu)/(theta+mu),        so that  1+u = (x+theta)/(theta+mu)
    and    w = -theta u/x,               so that  1+w = mu (x+theta)/(x (theta+mu))

Near the mean, u and w are small, and theta u + x w = 0: the largest parts of the first two terms of
(2) cancel. So subtract u and w from the logarithms; their sum, with the factors theta and x, is 0.
With L(w) = log(1+w) - w, which is never positive,

(3) log NB(x) = theta L(u) + x L(w) - log(2 pi x (x+theta)/theta)/2
                + s(x+theta) - s(theta) - s(x)

That is the value. The derivatives are those of log NB(x) as it was before (1). That for log_mu
needs no way out:

    d log NB/d log_mu    = (x - mu) theta/(theta+mu)

In that for log_theta, theta has the factor digamma(x+theta) - digamma(theta) - softplus(d) - u.
Like the lgammas, the two digammas are nearly equal where theta is large. But let digamma(z) be
log(z) + phi(z), where phi(z), near -1/(2 z), is small. Then the two logarithms and the softplus
together are log(1+u), and

    d log NB/d log_theta = theta [L(u) + phi(x+theta) - phi(theta)]

What is left cancels only where the result itself is near 0. (At x = 0, s and phi drop out:
log NB(0) = -theta softplus(d).)

**Formula and kernel.** The functions below are the logarithms above, as one would write them. They
run on any array, and can be differentiated to any order. The line `@fused(...)` over each of them
names its kernel, and fused.py (`Fused.__call__`) chooses between the two: for NumPy arrays, the
kernel. (The formula is still there: `nb_log_prob.twin`.) The kernel uses Loader's form where digits
would be lost, and is quick where counts are small, as nearly all are. Against 60-digit truth over a
grid of extremes (x to 10^6, mu from 10^-10, theta from 10^-6 to 10^8) its values and gradients are
within 1e-9 in float64 and within 1e-5 in float32, relative to max(1, |value|):

    >>> exact = 3.0 * np.log(2.0) - 2.0 - np.log(6.0)  # the Poisson, near enough
    >>> abs(nb_log_prob.twin(3.0, np.log(2.0), np.log(theta)) - exact) > 0.1
    np.True_
    >>> abs(nb_log_prob(3.0, np.log(2.0), np.log(theta)) - exact) < 1e-9
    np.True_

**Conventions.** In the functions of cells, a cell (row) without counts says nothing: its log p is
0, and so is its gradient. In all of them, where x is not a count (a fraction, negative, or
infinite) log p = -inf with gradient 0. Where x is NaN, both are NaN. So it is with kernels and with
formulas, which `_of_counts` sees to.

Three things hold for the kernels only. There finite parameters never give NaN, and -inf only where
the value lies below the dtype's range; the formulas of the NB and the ZINB give NaN or infinities
where theta or its lgamma leaves the range (log_theta above 703 or below -709 in float64, above 84
or below -103 in float32), and their digits are gone long before. Elementwise, infinite parameters
give the limits: with a mean of 0, or a theta of 0, all counts are 0, and with an infinite theta
they are a Poisson's. And a matrix of counts of another shape than the means is a ValueError there;
the formulas broadcast it.

Know before reading: what a likelihood is, and functional.py for a formula with a kernel beside it.

Know after: the likelihoods of scVI; and how a formula that is right on paper fails on a machine,
and is mended. How the kernels are made quick is told in count_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
from scipy import special

from minigrad import array_kernels, count_kernels
from minigrad.backend import Array
from minigrad.functional import log_softmax, softplus
from minigrad.kernels import fused


# ------------------------------------------------------------------------------------- elementwise
def _of_counts(formula: Callable) -> Callable:
    """Decorator: the formula where x is a count; elsewhere log p = -inf, and NaN where x is NaN.

    The formula sees a 0 for what is not a count, because there its slopes are finite. np.where
    hands the gradient 0 to what it drops, and 0 times an infinite slope would be NaN.
    """

    @wraps(formula)
    def on_counts(x, *parameters):
        x = _beside(x, parameters[0])
        is_count = (x >= 0) & (x == np.floor(x)) & (x < np.inf)
        is_nan = np.isnan(x)
        log_p = formula(np.where(is_count, x, 0.0), *parameters)
        # Where x is NaN, log_p becomes NaN, by a product and not by np.where: so its gradients do
        # too.
        log_p = log_p * np.where(is_nan, x, 1.0)
        return np.where(is_count | is_nan, log_p, -np.inf)

    return on_counts


def _beside(x, parameter):
    """x as a dense array of the parameter's dtype, on the parameter's device."""
    x = x.toarray() if hasattr(x, "toarray") else x
    if isinstance(x, (int, float, np.generic)):
        # With shape=(), full_like makes one number of the parameter's kind of array.
        x = np.full_like(parameter, x, getattr(parameter, "dtype", np.float64), shape=())
    return x.astype(parameter.dtype, copy=False) if hasattr(parameter, "dtype") else x


@fused(count_kernels.poisson, count_kernels.elementwise_backward)
@_of_counts
def poisson_log_prob(x: Array, log_rate: Array) -> Array:
    """log Poisson(x) = x log_rate - exp(log_rate) - lgamma(x+1), elementwise, in nats.

    x: counts of any dtype, dense or sparse; log_rate: log of the mean; any shapes that broadcast.
    Returns the broadcast shape, in the dtype of log_rate. Differentiable in log_rate.
    """
    return x * log_rate - np.exp(log_rate) - special.gammaln(x + 1.0)


@fused(count_kernels.nb, count_kernels.elementwise_backward)
@_of_counts
def nb_log_prob(x: Array, log_mu: Array, log_theta: Array) -> Array:
    """log NB(x), with mean mu and variance mu + mu^2/theta, elementwise, in nats.

        = lgamma(x+theta) - lgamma(theta) - lgamma(x+1) - theta softplus(d) - x softplus(-d)

    where d = log_mu - log_theta (Lopez et al. 2018).

    x: counts of any dtype; log_mu, log_theta: float32 or float64; any shapes that broadcast.
    Returns the broadcast shape, in the dtype of the parameters. Differentiable in both.
    """
    theta = np.exp(log_theta)
    d = log_mu - log_theta
    # The logarithm of the binomial coefficient (x + theta - 1 over x).
    log_binomial = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1.0)
    return log_binomial - theta * softplus(d) - x * softplus(-d)


@fused(count_kernels.zinb, count_kernels.elementwise_backward)
@_of_counts
def zinb_log_prob(x: Array, log_mu: Array, log_theta: Array, zi_logits: Array) -> Array:
    """log ZINB(x): 0 with probability expit(zi_logits), else NB; elementwise, in nats.

        = softplus(log NB(0) - zi_logits) - softplus(-zi_logits)  where x is 0
        = log NB(x) - softplus(zi_logits)                         elsewhere (Lopez et al. 2018)

    x: counts of any dtype; log_mu, log_theta, zi_logits: float32 or float64; any shapes that
    broadcast. Returns the broadcast shape, in the dtype of the parameters. Differentiable in all
    three.
    """
    log_nb_0 = -np.exp(log_theta) * softplus(log_mu - log_theta)
    log_zinb_0 = softplus(log_nb_0 - zi_logits) - softplus(-zi_logits)
    log_nb_x = nb_log_prob.twin(x, log_mu, log_theta)  # the formula above, and not its kernel
    log_zinb_x = log_nb_x - softplus(zi_logits)
    return np.where(x == 0, log_zinb_0, log_zinb_x)


# --------------------------------------------------------------------------- cells: sums over genes
# The formulas below call the ones above by their `.twin`, so that they run everywhere and to any
# order.


def _sum_over_genes(log_prob: Callable, counts, *parameters):
    """The log p of each cell, (n_cells,): the sum over its genes, or 0 if it has no counts.

    log_prob: the formula for one gene.
    """
    x = counts.toarray() if hasattr(counts, "toarray") else counts
    has_counts = np.any(x != 0, axis=1)
    return np.where(has_counts, np.sum(log_prob(x, *parameters), axis=1), 0.0)


@fused(count_kernels.poisson_cells, count_kernels.cells_backward)
def poisson_cell_log_prob(counts: Array, log_mu: Array) -> Array:
    """log p of the counts of each cell = the sum over genes of log Poisson(x), in nats.

    counts: (n_cells, n_genes), any SciPy sparse matrix or a dense array, of any dtype; log_mu:
    (n_cells, n_genes), float32 or float64. Returns (n_cells,), in the dtype of log_mu; 0 for a cell
    without counts. Differentiable in log_mu. Where the shapes differ, the kernel raises a
    ValueError; the formula broadcasts.
    """
    return _sum_over_genes(poisson_log_prob.twin, counts, log_mu)


@fused(count_kernels.nb_cells, count_kernels.cells_backward)
def nb_cell_log_prob(counts: Array, log_mu: Array, log_theta: Array) -> Array:
    """log p of the counts of each cell = the sum over genes of log NB(x), in nats.

    counts, log_mu, errors and result: as for `poisson_cell_log_prob`. log_theta: (n_genes,), which
    is quickest, or anything that broadcasts to (n_cells, n_genes). Differentiable in both
    parameters.
    """
    return _sum_over_genes(nb_log_prob.twin, counts, log_mu, log_theta)


@fused(count_kernels.zinb_cells, count_kernels.cells_backward)
def zinb_cell_log_prob(counts: Array, log_mu: Array, log_theta: Array, zi_logits: Array) -> Array:
    """log p of the counts of each cell = the sum over genes of log ZINB(x), in nats.

    counts, log_mu, log_theta, errors and result: as for `nb_cell_log_prob`. zi_logits: (n_cells,
    n_genes), log odds of a zero that the NB does not explain. Differentiable in all three
    parameters.
    """
    return _sum_over_genes(zinb_log_prob.twin, counts, log_mu, log_theta, zi_logits)


# ------------------------------------------------------------------- cells: means from the decoder
# In scVI mu is the library size of the cell times the fraction rho of each gene, and rho is the
# softmax of what the decoder puts out: log_mu = log_softmax(logits) + log_library. Together with
# the likelihood this is worth a kernel, for one exp does for both.


@fused(
    count_kernels.poisson_cells_from_logits,
    count_kernels.cells_backward,
    elsewhere=(array_kernels.poisson_forward, array_kernels.poisson_backward),
)
def poisson_cell_log_prob_from_logits(counts: Array, logits: Array, log_library: Array) -> Array:
    """`poisson_cell_log_prob` with log_mu = log_softmax(logits) + log_library, in nats.

    counts, logits: (n_cells, n_genes); log_library: (n_cells, 1), log of what the means of a cell
    sum to. Returns (n_cells,). Differentiable in logits and log_library. Where the shapes differ,
    the kernel raises a ValueError; the formula broadcasts.
    """
    return poisson_cell_log_prob.twin(counts, log_softmax(logits) + log_library)


@fused(
    count_kernels.nb_cells_from_logits,
    count_kernels.cells_backward,
    elsewhere=(array_kernels.nb_forward, array_kernels.nb_backward),
)
def nb_cell_log_prob_from_logits(
    counts: Array, logits: Array, log_library: Array, log_theta: Array
) -> Array:
    """`nb_cell_log_prob` with log_mu = log_softmax(logits) + log_library, in nats.

    counts, logits: (n_cells, n_genes); log_library: (n_cells, 1); log_theta: as for
    `nb_cell_log_prob`. Returns (n_cells,). Differentiable in all parameters. Errors: as for
    `poisson_cell_log_prob_from_logits`.
    """
    return nb_cell_log_prob.twin(counts, log_softmax(logits) + log_library, log_theta)


@fused(
    count_kernels.zinb_cells_from_logits,
    count_kernels.cells_backward,
    elsewhere=(array_kernels.zinb_forward, array_kernels.zinb_backward),
)
def zinb_cell_log_prob_from_logits(
    counts: Array, logits: Array, log_library: Array, log_theta: Array, zi_logits: Array
) -> Array:
    """`zinb_cell_log_prob` with log_mu = log_softmax(logits) + log_library, in nats.

    counts, logits, zi_logits: (n_cells, n_genes); log_library: (n_cells, 1); log_theta: as for
    `nb_cell_log_prob`. Returns (n_cells,). Differentiable in all parameters. Errors: as for
    `poisson_cell_log_prob_from_logits`.
    """
    return zinb_cell_log_prob.twin(counts, log_softmax(logits) + log_library, log_theta, zi_logits)

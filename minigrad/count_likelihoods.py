"""Log-likelihoods of counts: Poisson, negative binomial (NB) and zero-inflated NB, each a fast kernel beside its twin.

Know before reading: what a log-likelihood is, and `functional.fused`. A *twin* is the formula as one would write it on
paper, and runs on any array; a *kernel* is the same function written for speed and for the last digit, on NumPy arrays.

The distributions. x is a count, mu its mean, theta the inverse dispersion: variance = mu + mu^2/theta, so that theta ->
infinity is the Poisson. All three parameters may be anything between 0 and infinity, so the functions take logarithms
(Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15:1053, Methods; chapter,
"scVI architecture"), with d = log_mu - log_theta and a = zi_logits, the log odds of a zero that the NB does not explain:

    log NB(x)      = lgamma(x+theta) - lgamma(theta) - lgamma(x+1) - theta softplus(d) - x softplus(-d)
    log ZINB(0)    = softplus(-a - theta softplus(d)) - softplus(-a)
    log ZINB(x>0)  = log NB(x) - softplus(a)

What is hard. lgamma(x+theta) - lgamma(theta) loses all digits when theta is large, where both are some 10^9 and their
difference is 10. Loader (2000, "Fast and accurate computation of binomial probabilities", as in R's dnbinom) takes the
large parts out by hand. Written with L(w) = log(1+w) - w <= 0 and the Stirling error s (`_stirling`) nothing that is
left can cancel, and this holds for all parameters:

    u = (x-mu)/(theta+mu),  w = -(theta/x) u
    log NB(x)          = theta L(u) + x L(w) - log(2 pi x (x+theta)/theta)/2 + s(x+theta) - s(theta) - s(x)
    d log NB/dlog_mu   = (x - mu) theta/(theta+mu) = -x w
    d log NB/dlog_theta = theta [L(u) + phi(x+theta) - phi(theta)],   phi(z) = digamma(z) - log z

(s and phi of theta and x + theta drop out at x = 0.) Against 60-digit truth over a grid of extremes (x to 10^6, mu from
10^-10, theta 10^-6 to 10^8) this is within 1e-9 in float64 and 1e-5 in float32, relative to max(1, |value|).

What is fast. Nearly all entries of a count matrix are 0 or small: they take one exp and one log, both SIMD, over a block
of rows (`_small_nb`), and for counts above 1 the rest from a table per gene. The few larger ones are gathered and take the
textbook formula in float64 (`_hard_nb`). Entries where neither is accurate enough are found by their parameters
(`_extreme`) and take the formulas above (`_mend`). In float64 these do for all non-zeros.

Conventions. A cell (row) without counts says nothing: its log p is 0, and so is its gradient. What is no count (a
fraction, a negative number, infinity) has log p = -inf and gradient 0; NaN gives NaN. Finite parameters give no NaN;
-inf only where the value lies below the range of the dtype. exp of a parameter saturates at e^700.

Know after: how a formula that is right on paper is made right, and quick, on a machine.
"""

import threading

import numpy as np
from scipy import sparse, special

from minigrad.backend import Array
from minigrad.functional import fused, log_softmax

HALF_LOG_2PI = 0.5 * np.log(2.0 * np.pi)
# Coefficients of 1/z, 1/z^3, ... in the Stirling error s(z), and of the same in z phi(z) + 1/2. Cut off where the next
# term is below 1e-15 at z = 10.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
STIRLING_SLOPE = tuple(-(2 * k + 1) * c for k, c in enumerate(STIRLING))


# ------------------------------------------------------------------------------------------------------------- twins
def _beside(x, like):
    """x as a dense array where the parameter `like` is, in its dtype."""
    x = x.toarray() if hasattr(x, "toarray") else x
    if isinstance(x, (int, float, np.generic)):
        x = np.full_like(like, x, getattr(like, "dtype", np.float64), shape=())
    return x.astype(like.dtype, copy=False) if hasattr(like, "dtype") else x


def _on_support(x, like):
    """The same with 0 for what is no count; and what to add to its log p: 0, -inf, or NaN for NaN."""
    x = _beside(x, like)
    whole = (x >= 0) & (x == np.floor(x)) & (x < np.inf)
    return np.where(whole, x, 0.0), np.where(whole, 0.0, np.where(x != x, x, -np.inf))


def poisson_twin(x: Array, log_rate: Array) -> Array:
    """x log_rate - exp(log_rate) - lgamma(x+1): log Poisson(x), elementwise, in nats; any shapes that broadcast."""
    x, outside = _on_support(x, log_rate)
    return x * log_rate - np.exp(log_rate) - special.gammaln(x + 1.0) + outside


def nb_twin(x: Array, log_mu: Array, log_theta: Array) -> Array:
    """log NB(x) = lgamma(x+theta) - lgamma(theta) - lgamma(x+1) - theta softplus(d) - x softplus(-d), d = log_mu - log_theta.

    Elementwise, in nats; any shapes that broadcast.
    """
    x, outside = _on_support(x, log_mu)
    theta, d = np.exp(log_theta), log_mu - log_theta
    ways = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1.0)
    return ways - theta * np.logaddexp(0.0, d) - x * np.logaddexp(0.0, -d) + outside


def zinb_twin(x: Array, log_mu: Array, log_theta: Array, zi_logits: Array) -> Array:
    """log ZINB(0) = softplus(-a - theta softplus(d)) - softplus(-a), log ZINB(x>0) = log NB(x) - softplus(a), a = zi_logits.

    Elementwise, in nats; any shapes that broadcast; d as in `nb_twin`.
    """
    nb_zero = -np.exp(log_theta) * np.logaddexp(0.0, log_mu - log_theta)
    zero = np.logaddexp(0.0, nb_zero - zi_logits) - np.logaddexp(0.0, -zi_logits)
    return np.where(
        _beside(x, log_mu) == 0, zero, nb_twin(x, log_mu, log_theta) - np.logaddexp(0.0, zi_logits)
    )


def _per_cell(twin):
    """The twin of a sum over genes: 0 for a cell without counts."""

    def cell_twin(counts, *parameters):
        x = counts.toarray() if hasattr(counts, "toarray") else counts
        return np.where(np.any(x != 0, axis=1), np.sum(twin(x, *parameters), axis=1), 0.0)

    return cell_twin


def _of_softmax(cell_twin):
    """The same with means that share out a library: log_mu = log_softmax(logits) + log_library."""

    def softmax_twin(counts, logits, log_library, *parameters):
        return cell_twin(counts, log_softmax(logits) + log_library, *parameters)

    return softmax_twin


# ---------------------------------------------------------------------------------- exact, float64, entry by entry
def _stirling(z, log_z):
    """s(z) = lgamma(z) - [(z-1/2) log z - z + log(2 pi)/2] and z phi(z) = z (digamma(z) - log z), for z >= 0.

    z, log_z: (k,) float64; log_z is asked for because z may underflow where its logarithm does not.
    """
    low = z < 10.0
    r = 1.0 / np.where(low, 10.0, z)
    s, slope = _odd_series(r, STIRLING), _odd_series(r, STIRLING_SLOPE) - 0.5
    if low.any():  # lgamma(1+z) = lgamma(z) + log z, and digamma alike, are finite at 0
        z, log_z = z[low], log_z[low]
        s[low] = special.gammaln(1.0 + z) - (z + 0.5) * log_z + z - HALF_LOG_2PI
        slope[low] = z * special.digamma(1.0 + z) - 1.0 - z * log_z
    return s, slope


def _odd_series(r, coefficients):
    """c0 r + c1 r^3 + c2 r^5 + ..."""
    square, total = r * r, 0.0
    for c in reversed(coefficients):
        total = total * square + c
    return total * r


def _excess(c, w, cw, log_1_w):
    """c L(w) = c [log(1+w) - w] without loss of digits; all (k,) float64.

    cw, log_1_w: c w and log(1+w), used where |w| >= 0.2, so that w itself may overflow there. Where it is smaller, with
    v = w/(2+w): log(1+w) = 2 atanh(v) = 2(v + v^3/3 + v^5/5 ...) and w = 2v + wv.
    """
    near = np.abs(w) < 0.2
    v = np.where(near, w, 0.0)
    v = v / (2.0 + v)
    series = 2.0 * v * v * _odd_series(
        v, [1 / k for k in (3, 5, 7, 9, 11, 13, 15, 17)]
    ) - 2.0 * v * v / (1.0 - v)
    return np.where(near, c * series, c * log_1_w - cw)


def _exact_poisson(x, log_rate):
    """log p and its derivative for log_rate; x, log_rate and results (k,) float64. Loader's form: no cancellation."""
    rate = np.exp(np.minimum(log_rate, 700.0))
    whole = _is_positive_count(x)
    x1 = np.where(whole, x, 1.0)
    log_x = np.log(x1)
    value = _excess(x1, (rate - x1) / x1, rate - x1, log_rate - log_x)
    value = value - HALF_LOG_2PI - 0.5 * log_x - _stirling(x1, log_x)[0]
    return _outside(x, whole, np.where(whole, value, -rate), np.where(whole, x1, 0.0) - rate)


def _exact_nb(x, log_mu, log_theta):
    """log NB and its derivatives for log_mu and log_theta; all (k,) float64. The equations are in the module's head."""
    log_mu, log_theta = np.minimum(log_mu, 700.0), np.minimum(log_theta, 700.0)
    mu, theta, d = np.exp(log_mu), np.exp(log_theta), log_mu - log_theta
    up, r = d > 0.0, np.exp(-np.abs(d))  # r <= 1 is the smaller of mu/theta and theta/mu
    log_1_r = np.log1p(r)
    log_sum = np.maximum(log_mu, log_theta) + log_1_r  # log(theta + mu)
    whole = _is_positive_count(x)
    x0 = np.where(whole, x, 0.0)
    x1 = np.where(whole, x, 1.0)
    d_mu = (x0 * np.where(up, r, 1.0) - np.where(up, theta, mu)) / (1.0 + r)
    log_z, log_x = np.where(whole, np.log(x0 + theta), log_theta), np.log(x1)
    theta_l = _excess(theta, (x0 - mu) / (theta + mu), d_mu, log_z - log_sum)
    x_l = _excess(x1, -d_mu / x1, -d_mu, log_mu - log_x + log_z - log_sum)
    (s_z, slope_z), (s_theta, slope_theta) = (
        _stirling(x1 + theta, log_z),
        _stirling(theta, log_theta),
    )
    value = (
        theta_l
        + x_l
        - 0.5 * (log_z - log_theta + log_x)
        - HALF_LOG_2PI
        + s_z
        - s_theta
        - _stirling(x1, log_x)[0]
    )
    zero = -np.where(up, theta * (d + log_1_r), mu * np.where(r != 0.0, log_1_r / r, 1.0))
    d_theta = theta_l + np.where(whole, slope_z * (theta / (x1 + theta)) - slope_theta, 0.0)
    return _outside(x, whole, np.where(whole, value, zero), d_mu, d_theta)


def _is_positive_count(x):
    return (x >= 1.0) & (x == np.floor(x)) & (x < np.inf)


def _outside(x, positive, value, *gradients):
    """The same where x is 0 or `positive`; else value -inf and gradient 0 (no count), or all NaN (x is NaN)."""
    inside, nan = positive | (x == 0.0), np.where(np.isnan(x), x, 0.0)
    return [np.where(inside, value, nan - np.inf), *(np.where(inside, g, nan) for g in gradients)]


def _softplus(x):
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _exact_zinb(x, log_mu, log_theta, zi_logits):
    """log ZINB and its derivatives for log_mu, log_theta and zi_logits; all (k,) float64."""
    value, d_mu, d_theta = _exact_nb(x, log_mu, log_theta)
    a, zero = zi_logits, x == 0.0
    odds = a - value  # at 0 this is a + theta softplus(d)
    value_0 = np.where(
        odds < 0.0, value + _softplus(odds) - _softplus(a), _softplus(-odds) - _softplus(-a)
    )
    value = np.where(zero, value_0, value - _softplus(a))
    share = np.where(
        zero, special.expit(-odds), 1.0
    )  # of the probability of this x that comes from the NB
    d_zi = np.where(zero, special.expit(-a) - share, -special.expit(a))
    d_mu, d_theta = (np.where(share > 0.0, share * d, 0.0) for d in (d_mu, d_theta))
    return _outside(x, _is_positive_count(x), value, d_mu, d_theta, d_zi)


# -------------------------------------------------------------------------------------------------------- elementwise
def _elementwise(exact, x, parameters, needs):
    """(log p, its gradients) of any broadcastable arrays, in blocks that keep the temporaries of `exact` in cache."""
    dtype = (
        np.result_type(*parameters, np.float16)
        if any(hasattr(p, "dtype") for p in parameters)
        else np.float64
    )
    x, *parameters = np.broadcast_arrays(x, *parameters)
    columns = [np.ravel(a) for a in (x, *parameters)]
    results = [np.empty(x.size, dtype) if need else None for need in (True, *needs[1:])]
    for i in range(0, x.size, 8192):
        rows = slice(i, i + 8192)
        with np.errstate(all="ignore"):  # infinities of branches that np.where drops
            for result, part in zip(results, exact(*(c[rows].astype(np.float64) for c in columns))):
                if result is not None:
                    result[rows] = part
    y, *saved = [r if r is None else r.reshape(x.shape) for r in results]
    return y, saved


def _elementwise_backward(g, y, saved, needs, x, *parameters):
    return [None, *(None if d is None else g * d for d in saved)]


def _poisson(needs, x, log_rate):
    """log Poisson(x), in nats.

    x: counts, any dtype; log_rate: logarithm of the mean; any shapes that broadcast together. Result: the broadcast
    shape, in the dtype of log_rate. Differentiable in log_rate.

        x log_rate - exp(log_rate) - lgamma(x+1), computed by Loader's saddle-point form (2000)
    """
    return _elementwise(_exact_poisson, x, [log_rate], needs)


def _nb(needs, x, log_mu, log_theta):
    """log NB(x) with mean mu and variance mu + mu^2/theta, in nats.

    x: counts, any dtype; log_mu, log_theta: float32 or float64; any shapes that broadcast together. Result: the
    broadcast shape, in the dtype of the parameters. Differentiable in both. Equation: `nb_twin` (Lopez et al. 2018).
    """
    return _elementwise(_exact_nb, x, [log_mu, log_theta], needs)


def _zinb(needs, x, log_mu, log_theta, zi_logits):
    """log ZINB(x): with probability sigmoid(zi_logits) a structural zero, else NB(mu, theta); in nats.

    x: counts, any dtype; log_mu, log_theta, zi_logits: float32 or float64; any shapes that broadcast together. Result:
    the broadcast shape, in the dtype of the parameters. Differentiable in all three (Lopez et al. 2018).
    """
    return _elementwise(_exact_zinb, x, [log_mu, log_theta, zi_logits], needs)


# ------------------------------------------------------------------------------------------- sums over genes, per cell
SMALL = 8  # counts up to here come from a table per gene: 96 % of the non-zeros of brain10k, 61 % of cortex
BLOCK = (
    256 * 1024
)  # entries of a block of rows: bounds the scratch; smaller ones lose more to calls than caches win
BELOW = np.tri(
    SMALL + 1, SMALL - 1, -2, np.float32
)  # row x has a 1 for each k from 1 to x - 1: a product with it sums
LOG_FACTORIAL = special.gammaln(np.arange(1024) + 1.0)
_scratch = threading.local()


def _buffers(name, k, shape, dtype):
    """k scratch arrays, valid until this thread asks again by the same name."""
    need, key = k * shape[0] * shape[1], name + dtype.char
    memory = getattr(_scratch, key, None)
    if memory is None or memory.size < need:
        memory = np.empty(need, dtype)
        setattr(_scratch, key, memory)
    return memory[:need].reshape(k, *shape)


def _canonical(counts, shape):
    """Dense counts as they are, sparse ones as CSR without duplicates or stored zeros; never changes the caller's."""
    if counts.shape != shape:
        raise ValueError(
            f"counts have shape {counts.shape}, log_mu {shape}: both must be (n_cells, n_genes)"
        )
    if not sparse.issparse(counts):
        return counts
    counts = counts.tocsr()
    if not counts.has_canonical_format or not counts.data.all():
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    return counts


def _nonzeros(counts, rows):
    """The non-zeros of a block of rows (a slice), by row: (index, row, gene, count, lengths).

    The first four (k,), index the flat position in the block; lengths: (n,), how many of them each row has.
    """
    n_genes = counts.shape[1]
    if sparse.issparse(counts):
        ends = counts.indptr[rows.start : rows.stop + 1]
        gene, count = (a[ends[0] : ends[-1]] for a in (counts.indices, counts.data))
    else:
        block = counts[rows].ravel()
        index = np.flatnonzero(block != 0)  # of booleans: three times faster than of numbers
        ends, gene, count = (
            np.searchsorted(index, np.arange(0, block.size + 1, n_genes)),
            index % n_genes,
            block[index],
        )
    lengths = ends[1:] - ends[:-1]
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row * n_genes + gene, row, gene.astype(np.intp, copy=False), count, lengths


def _by_row(values, lengths):
    """Sums over each row of values (k,) at all non-zeros: (n,) float64. A tenth of the time of bincount."""
    sums, starts = np.zeros(len(lengths)), np.cumsum(lengths) - lengths
    sums[lengths > 0] = (
        np.add.reduceat(values.astype(np.float64), starts[lengths > 0]) if len(values) else 0.0
    )
    return sums


def _row_sums(x):
    """x.sum(axis=1), by a product with ones: a third of the time."""
    return x @ np.ones(x.shape[1], x.dtype)


def _tables(log_theta):
    """For a small count x and a gene: log[(1+1/theta)...(1+(x-1)/theta)/x!], and minus the sum of k/(theta+k), k < x.

    log_theta: (n_genes,) float32. Returns two arrays (SMALL + 1, n_genes). Neither cancels; both are 0 for x = 1, the usual
    count.
    """
    with np.errstate(over="ignore"):  # 1 / infinity is right
        theta = np.exp(log_theta)
    k = np.arange(1, SMALL, dtype=theta.dtype)[:, None]
    return BELOW @ np.log(k / (k + 1) * (1 / theta) + 1 / (k + 1)), BELOW @ (-k / (theta + k))


def _log_factorial(x):
    """log x! of whole numbers, float64: from a table; the few beyond it by gammaln."""
    found = LOG_FACTORIAL.take(x.astype(np.intp), mode="clip")
    beyond = (x >= len(LOG_FACTORIAL)).nonzero()[0]
    found[beyond] = special.gammaln(x[beyond] + 1.0)
    return found


def _textbook_nb(x, log_mu, log_theta, gammas, gradients):
    """log NB and, if asked, its derivatives, as one writes them: in float64 good to 1e-6 where nothing is extreme.

    gammas: lgamma(theta), digamma(theta). All (k,) float64.
    """
    mu, theta = np.exp(log_mu), np.exp(log_theta)
    total, (gamma_theta, slope_theta) = theta + mu, gammas
    log_total = np.log(total)
    value = theta * (log_theta - log_total) + x * (log_mu - log_total)
    yield value + special.gammaln(x + theta) - gamma_theta - _log_factorial(x)
    if gradients:
        difference = (x - mu) / total
        yield theta * difference
        yield theta * (
            special.digamma(x + theta) - slope_theta + log_theta - log_total - difference
        )


class _LogMu:
    """The means of a block of rows, given by their logarithms (n, n_genes)."""

    def __init__(self, log_mu):
        self.base, self.top, self.shape, self.dtype = (
            log_mu,
            log_mu.max(initial=-np.inf),
            log_mu.shape,
            log_mu.dtype,
        )

    def mu(self, out):
        """The means, written into `out` (n, n_genes)."""
        return np.exp(self.base, out=out)

    def at(self, index, row):
        """log_mu of some entries, (k,)."""
        return self.base.take(index)

    def whole(self):
        """log_mu, (n, n_genes)."""
        return self.base

    def pull(self, d_mu):
        """Turns derivatives for log_mu, in place, into those for what was given; returns those for log_library."""
        return 0.0


class _Shares(_LogMu):
    """The means of a block of rows that share out a library: log_mu = log_softmax(logits) + log_library.

    One exp does for the softmax and for the means, and log_mu itself is made only where it is asked for: together with
    the gradient in place a third less time than log_softmax, addition and the kernel of log_mu. What e^(logits - highest)
    loses below e^-87 could matter only beside a theta of e^-60 and a library above e^13: there log_mu is made.
    """

    def __init__(self, logits, log_library):
        self.shape, self.dtype = logits.shape, logits.dtype
        self.base, self.e = _buffers("shares", 2, self.shape, self.dtype)
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=self.base)
        np.exp(self.base, out=self.e)
        self.total, self.library = _row_sums(self.e)[:, None], np.exp(log_library)
        self.shift = log_library - np.log(self.total)
        self.top, self.is_vast = (
            self.shift.max(initial=-np.inf),
            not log_library.max(initial=0.0) <= 13.0,
        )

    def mu(self, out):
        if self.is_vast:
            return np.exp(self.whole(), out=out)
        return np.multiply(self.e, self.library / self.total, out=out)

    def at(self, index, row):
        return self.base.take(index) + self.shift.reshape(-1).take(row)

    def whole(self):
        return self.base + self.shift

    def pull(self, d_mu):
        """d_logits = d_mu - softmax(logits) * (their sum), and that sum is what log_library has."""
        total = _row_sums(d_mu)[:, None]
        self.e *= total / self.total
        d_mu -= self.e
        return total


def _extreme(entries, mean, log_theta, zi_logits=None):
    """Which entries of a block the quick formulas cannot do to full precision; None, quickly, where there are none.

    theta (sigmoid(d) - softplus(d)) is of the order mu^2/theta when mu < theta, from terms of the order mu: in float32
    that is good enough while mu < 15 or theta < 245: within 8e-6 on 8 million random points (400 misses 1e-5 on a few).
    The bounds on zi_logits are those of `_inflate`. Extreme is also x > 10^6 or no count.
    """
    index, _, _, x, _ = entries
    odd = (np.rint(np.minimum(np.maximum(x, 1.0), 1e6)) != x).nonzero()[0]
    steep, large = (5.5, 2.7) if log_theta.dtype == np.float32 else (np.inf, np.inf)
    low, high, top = log_theta.min(), log_theta.max(), mean.top
    fine = (
        low >= -60.0
        and high <= 14.0
        and top <= 80.0
        and top - low <= 80.0
        and (high <= steep or top <= large)
    )
    if (
        fine
        and not len(odd)
        and (zi_logits is None or (zi_logits.max() <= 40.0 and zi_logits.min() >= -40.0))
    ):
        return None
    log_mu = mean.whole()
    fine = (
        (log_theta >= -60.0) & (log_theta <= 14.0) & (log_mu <= 80.0) & (log_mu - log_theta <= 80.0)
    )
    fine = fine & ((log_theta <= steep) | (log_mu <= large))
    if zi_logits is not None:
        fine &= np.abs(zi_logits) <= 40.0
    fine.reshape(-1)[index[odd]] = False
    return ~fine


def _sigmoid_softplus(r, sigmoid, softplus, u, spare):
    """sigmoid(d) and softplus(d) of a block, from r = e^d = mu/theta, which is used up, as are u and spare.

    With u = 1 + r all digits are right also when r is small, with one logarithm and no log1p (seven times slower): what
    rounding u takes away, r - (u - 1), is exact, and comes back to first order.
    """
    np.add(r, 1.0, out=u)
    np.divide(r, u, out=sigmoid)
    np.log(u, out=softplus)
    r -= np.subtract(u, 1.0, out=spare)
    r /= u
    softplus += r


def _small_nb(index, count, apart, mean, theta, outputs):
    """The derivatives of `_nb_block` but for dW, written into the outputs, of all entries but those `apart` (flat positions).

    Returns theta softplus(d), 0 at those apart; softplus(d); and a block of scratch.
    """
    x, softplus, r, u, *scratch = _buffers("block", 6, mean.shape, mean.dtype)
    d_mu, d_theta, *_ = outputs or scratch
    np.multiply(mean.mu(r), 1.0 / theta, out=r)
    _sigmoid_softplus(r, d_theta, softplus, u, d_mu)
    zero = np.multiply(softplus, theta, out=r)
    zero.reshape(-1)[apart] = 0.0
    if outputs:
        x.fill(0.0)
        x.reshape(-1)[index] = count
        np.add(x, theta, out=d_mu)
        d_mu *= d_theta
        np.subtract(d_mu, zero, out=d_theta)
        np.subtract(x, d_mu, out=d_mu)
    return zero, softplus, u


def _hard_nb(chosen, entries, mean, log_theta, gradients):
    """log NB and its derivatives for some non-zeros, in float64; (k,) each. log_theta: (n_genes,), or (n, n_genes).

    Measured for float32: 100 ns an entry; for float64: 300 ns.
    """
    index, row, gene, x = (a[chosen] for a in entries[:4])
    x, log_mu, of_each = (
        a.astype(np.float64)
        for a in (x, mean.at(index, row), log_theta.take(gene if log_theta.ndim == 1 else index))
    )
    if mean.dtype == np.float64:
        return _exact_nb(x, log_mu, of_each)
    once_a_gene = log_theta.ndim == 1 and len(x) > len(log_theta)
    theta = np.exp(log_theta.astype(np.float64) if once_a_gene else of_each)
    gammas = special.gammaln(theta), special.digamma(theta)
    return _textbook_nb(
        x, log_mu, of_each, [a.take(gene) for a in gammas] if once_a_gene else gammas, gradients
    )


def _inflate(zi_logits, zero, index, extreme, outputs, odds, q):
    """From NB to ZINB: scales the derivatives of a block in place, writes d_zi, returns the sums of what is not log NB.

    zero: -log NB(0), which is used up; 0 at non-zeros (index) and extreme entries. With e = NB(0), o = exp(zi_logits) and
    q = 1 + o: ZINB(0) = (o + e) / q, of which the NB has the share e/(o + e). Sums of logarithms are taken of products of
    two, which cannot underflow within the bounds of `_extreme`: half the logarithms.
    """
    np.exp(np.negative(zero, out=zero), out=zero)
    np.exp(zi_logits, out=odds)
    np.add(odds, 1.0, out=q)
    odds += zero
    odds.reshape(-1)[index] = 1.0  # there the NB has it all, as zero is 1
    if outputs:
        d_mu, d_theta, d_zi = outputs
        np.divide(zero, odds, out=zero)
        np.divide(1.0, q, out=d_zi)
        d_zi -= zero
        d_mu *= zero
        d_theta *= zero
    odds /= q
    if extreme is not None:
        odds[extreme] = 1.0
    half = odds.shape[1] // 2
    rest = odds[:, : odds.shape[1] - half]
    odds[:, :half] *= odds[:, odds.shape[1] - half :]
    return _row_sums(np.log(rest, out=rest))


def _nb_block(entries, mean, parameters, tables, outputs):
    """log p of each cell of a block of rows: (n,). Writes outputs: d_mu, d_theta and for ZINB d_zi, unless it is empty.

    entries: what `_nonzeros` gave; mean: a _LogMu; parameters: log_theta (n, n_genes) or, with tables, (n_genes,), and for
    ZINB zi_logits (n, n_genes). Zeros and small counts, which are nearly all, are done together, with W from the tables:

        log NB(x) = x (log_mu - softplus(d)) - theta softplus(d) + W(x, theta),  d_mu = x - (x+theta) sigmoid(d),
        d_theta = (x+theta) sigmoid(d) - theta softplus(d) + dW
    """
    (index, row, gene, count, lengths), (log_theta, *zi_logits) = entries, parameters
    theta, extreme = np.exp(log_theta), _extreme(entries, mean, *parameters)
    is_small = (count <= (SMALL if tables else 1)) & (mean.dtype == np.float32)
    is_hard = ~is_small
    apart = index[is_hard.nonzero()[0]]
    if extreme is not None:
        is_small, is_hard = (a & ~extreme.take(index) for a in (is_small, is_hard))
        apart = np.append(apart, np.flatnonzero(extreme))
    zero, softplus, spare = _small_nb(index, count, apart, mean, theta, outputs)
    value = np.where(is_small, count * (mean.at(index, row) - softplus.take(index)), 0.0)
    if tables:
        several = (is_small & (count > 1)).nonzero()[0]
        cell = count[several].astype(np.intp) * len(theta) + gene[several]
        value[several] += tables[0].take(cell)
        if outputs:
            outputs[1].reshape(-1)[index[several]] += tables[1].take(cell)
    y = _by_row(value, lengths)
    if zi_logits:
        y -= _by_row(zero.take(index), lengths)
        zero.reshape(-1)[index] = 0.0
        y += _inflate(*zi_logits, zero, index, extreme, outputs, softplus, spare)
    else:
        y -= _row_sums(zero)
    if is_hard.any():
        hard = is_hard.nonzero()[0]
        _put(
            index[hard],
            row[hard],
            _hard_nb(hard, entries, mean, log_theta, bool(outputs)),
            y,
            outputs,
        )
    if extreme is not None:
        _mend(np.flatnonzero(extreme), y, entries, [mean.whole(), *parameters], outputs)
    return y


def _put(index, row, results, y, outputs):
    """Adds values to the sums of their rows, and writes their derivatives into the outputs."""
    value, *slopes = results
    y += np.bincount(row, value, len(y))
    for output, slope in zip(outputs, slopes):
        output.reshape(-1)[index] = slope


def _mend(where, y, entries, parameters, outputs):
    """Adds to y, and writes into the outputs, what the exact formulas give at some (flat) positions of a block."""
    log_mu, log_theta, *zi_logits = parameters
    x = np.zeros(log_mu.size)
    x[entries[0]] = entries[3]
    columns = [x, log_mu, np.broadcast_to(log_theta, log_mu.shape), *zi_logits]
    columns = [c.take(where).astype(np.float64) for c in columns]
    _put(
        where,
        where // log_mu.shape[1],
        (_exact_zinb if zi_logits else _exact_nb)(*columns),
        y,
        outputs,
    )


def _poisson_block(entries, mean, parameters, tables, outputs):
    """log p of each cell of a block of rows: (n,). Writes outputs: d_mu, unless it is empty."""
    index, row, _, x, lengths = entries
    rate = mean.mu(outputs[0] if outputs else _buffers("block", 1, mean.shape, mean.dtype)[0])
    x, at, log_at = x.astype(mean.dtype), rate.take(index), mean.at(index, row)
    value, slope = x * log_at - at, x - at
    if mean.dtype == np.float32:
        value -= LOG_FACTORIAL.take(x.astype(np.intp), mode="clip")
        hard = np.flatnonzero(~((x >= 1.0) & (x <= SMALL) & (x == np.rint(x))))
    else:
        hard = np.arange(len(x))
    value[hard], slope[hard] = _exact_poisson(
        x[hard].astype(np.float64), log_at[hard].astype(np.float64)
    )
    rate.reshape(-1)[index] = 0.0
    y = _by_row(value, lengths) - rate.sum(axis=1)
    if outputs:
        np.negative(rate, out=rate)
        rate.reshape(-1)[index] = slope
    return y


def _prepared(p, shape, dtype, per_gene=False):
    """A parameter as a contiguous array: (n_genes,) where it may, and does, have one value a gene; else of `shape`."""
    p = np.asarray(p, dtype)
    row = per_gene and p.shape in (shape[1:], (1, *shape[1:]))
    if row and p.min(initial=0.0) >= -60.0:  # below, dividing by theta is unsafe
        return p.reshape(-1)
    return np.ascontiguousarray(p if p.shape == shape else np.broadcast_to(p, shape))


def _blocks(n_cells, n_genes):
    """Slices of rows such that a block of them has some BLOCK entries."""
    if not n_genes:
        return []  # the log p of nothing is 0
    step = max(1, BLOCK // n_genes)
    return [slice(i, min(i + step, n_cells)) for i in range(0, n_cells, step)]


def _cells(block, needs, counts, first, *parameters, log_library=None):
    """(log p of each cell, what backward needs): runs a kernel for blocks of rows.

    first: log_mu; or, with log_library (n_cells, 1), the logits that it is shared out by.
    """
    shape, dtype = first.shape, np.result_type(first, *parameters, np.float32)
    counts, first = _canonical(counts, shape), np.ascontiguousarray(first, dtype)
    columns = [_prepared(p, shape, dtype, i == 0) for i, p in enumerate(parameters)]
    tables = (
        _tables(columns[0]) if columns and columns[0].ndim == 1 and dtype == np.float32 else None
    )
    if log_library is not None and log_library.shape != (len(first), 1):
        raise ValueError(f"log_library has shape {log_library.shape}, must be {(len(first), 1)}")
    y, slopes = (
        np.zeros(len(first), dtype),
        [np.empty(shape, dtype) for _ in (first, *parameters)] if any(needs) else [],
    )
    of_library = np.zeros((len(first), 1), dtype)
    for rows in _blocks(*shape):
        entries, outputs = _nonzeros(counts, rows), [d[rows] for d in slopes]
        with np.errstate(all="ignore"):  # of entries that are done again, exactly
            mean = (
                _LogMu(first[rows])
                if log_library is None
                else _Shares(first[rows], log_library[rows].astype(dtype))
            )
            y[rows] = block(
                entries, mean, [c[rows] if c.ndim == 2 else c for c in columns], tables, outputs
            )
            if not entries[-1].all():  # cells without counts
                for z in (y[rows], *outputs):
                    z[entries[-1] == 0] = 0.0
            if outputs:
                of_library[rows] = mean.pull(outputs[0])
    if slopes and log_library is not None:
        slopes.insert(1, of_library)
    return y, [d if need else None for d, need in zip(slopes, needs[1:])]


def _cells_backward(g, y, slopes, needs, counts, *parameters):
    """Gradients from g (n_cells,). Where a parameter has one value a gene, the sum over the cells is a quick product."""

    def pulled(d, p):
        return (
            (g @ d).reshape(p.shape)
            if p.shape in (d.shape[1:], (1, *d.shape[1:]))
            else g[:, None] * d
        )

    return [None, *(None if d is None else pulled(d, p) for d, p in zip(slopes, parameters))]


def _poisson_cells(needs, counts, log_mu):
    """log p of the counts of each cell, summed over genes, in nats; Poisson with means exp(log_mu).

    counts: (n_cells, n_genes), any SciPy sparse matrix or a dense array, of any dtype; log_mu: (n_cells, n_genes),
    float32 or float64. Result: (n_cells,) in the dtype of log_mu; 0 for a cell without counts. Differentiable in
    log_mu. Raises ValueError where the shapes differ. Equation: the module's head, log p = sum over genes of `poisson_twin`.
    """
    return _cells(_poisson_block, needs, counts, log_mu)


def _nb_cells(needs, counts, log_mu, log_theta):
    """log p of the counts of each cell, summed over genes, in nats; NB with mean mu and variance mu + mu^2/theta.

    counts: (n_cells, n_genes), any SciPy sparse matrix or a dense array, of any dtype; log_mu: (n_cells, n_genes),
    float32 or float64; log_theta: (n_genes,), quickest, or anything that broadcasts to (n_cells, n_genes). Result:
    (n_cells,) in the dtype of the parameters; 0 for a cell without counts. Differentiable in log_mu and log_theta.
    Raises ValueError where the shapes differ. Equation: the module's head, log p = sum over genes of `nb_twin`.
    """
    return _cells(_nb_block, needs, counts, log_mu, log_theta)


def _zinb_cells(needs, counts, log_mu, log_theta, zi_logits):
    """log p of the counts of each cell, summed over genes, in nats; ZINB (Lopez et al. 2018).

    counts, log_mu, log_theta and the result: as for `nb_cell_log_prob`; zi_logits: (n_cells, n_genes), log odds of a
    structural zero. Differentiable in all three parameters. Raises ValueError where the shapes differ. Equation: the
    module's head.
    """
    return _cells(_nb_block, needs, counts, log_mu, log_theta, zi_logits)


def _poisson_shares(needs, counts, logits, log_library):
    """poisson_cell_log_prob with log_mu = log_softmax(logits) + log_library: a library shared out over the genes.

    counts, logits: (n_cells, n_genes); log_library: (n_cells, 1), logarithm of each cell's total mean. Result: (n_cells,)
    in nats. Differentiable in logits and log_library.
    """
    return _cells(_poisson_block, needs, counts, logits, log_library=log_library)


def _nb_shares(needs, counts, logits, log_library, log_theta):
    """nb_cell_log_prob with log_mu = log_softmax(logits) + log_library: a library shared out over the genes.

    counts, logits: (n_cells, n_genes); log_library: (n_cells, 1), logarithm of each cell's total mean; log_theta: as for
    `nb_cell_log_prob`. Result: (n_cells,) in nats. Differentiable in all parameters.
    """
    return _cells(_nb_block, needs, counts, logits, log_theta, log_library=log_library)


def _zinb_shares(needs, counts, logits, log_library, log_theta, zi_logits):
    """zinb_cell_log_prob with log_mu = log_softmax(logits) + log_library: a library shared out over the genes.

    counts, logits, zi_logits: (n_cells, n_genes); log_library: (n_cells, 1), logarithm of each cell's total mean;
    log_theta: as for `zinb_cell_log_prob`. Result: (n_cells,) in nats. Differentiable in all parameters.
    """
    return _cells(_nb_block, needs, counts, logits, log_theta, zi_logits, log_library=log_library)


# ---------------------------------------------------------------------------------------------------------- the table
poisson_log_prob = fused(poisson_twin, _poisson, _elementwise_backward, "poisson_log_prob")
nb_log_prob = fused(nb_twin, _nb, _elementwise_backward, "nb_log_prob")
zinb_log_prob = fused(zinb_twin, _zinb, _elementwise_backward, "zinb_log_prob")
poisson_cell_log_prob = fused(
    _per_cell(poisson_twin), _poisson_cells, _cells_backward, "poisson_cell_log_prob"
)
nb_cell_log_prob = fused(_per_cell(nb_twin), _nb_cells, _cells_backward, "nb_cell_log_prob")
zinb_cell_log_prob = fused(_per_cell(zinb_twin), _zinb_cells, _cells_backward, "zinb_cell_log_prob")
poisson_shares_log_prob = fused(
    _of_softmax(_per_cell(poisson_twin)),
    _poisson_shares,
    _cells_backward,
    "poisson_shares_log_prob",
)
nb_shares_log_prob = fused(
    _of_softmax(_per_cell(nb_twin)), _nb_shares, _cells_backward, "nb_shares_log_prob"
)
zinb_shares_log_prob = fused(
    _of_softmax(_per_cell(zinb_twin)), _zinb_shares, _cells_backward, "zinb_shares_log_prob"
)

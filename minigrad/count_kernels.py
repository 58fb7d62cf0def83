"""The likelihoods of count_likelihoods.py, quick and to the last digit: kernels of NumPy arrays.

This file is engineering: nobody has to read it to know what the likelihoods are. Each kernel is a
pair of functions as `kernels.fused` wants them; count_likelihoods.py sets each beside its twin.

There are three ways to the logarithm of one NB, from the slow and exact to the quick:

    exact       Loader's form in float64, right for all parameters; about 300 ns an entry
    textbook    with lgamma, in float64, where nothing is extreme; about 100 ns
    small       for counts up to SMALL, one exp and one log in float32; a few ns

`nb` and `zinb`, which work elementwise, are exact throughout. The sums over the genes of a cell
(`nb_cells` and others) go through a minibatch in blocks of rows. They take the small way for the
zeros and the small counts, which are nearly all entries of a count matrix; the textbook for larger
counts; and the exact way for what neither does well enough, which they find by the parameters. In
float64 every count above 0 takes the exact way.

Throughout, theta is the inverse dispersion and

    d = log_mu - log_theta,    softplus(d) = log(1 + mu/theta),    sigmoid(d) = mu / (theta + mu)

Know before reading: count_likelihoods.py for the formulas, kernels.py for what a kernel is.

Know after: how a formula that is right on paper is made right, and quick, on a machine.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from scipy import sparse, special

HALF_LOG_2PI = 0.5 * np.log(2.0 * np.pi)

# A mean or theta above e^700 (10^304) is taken to be e^700, so that it does not become infinite.
# What grows with log_mu itself takes it whole. And with such a theta the NB is a Poisson, but for a
# part mu^2 / theta: trust the slope for log_theta there up to a mean of 10^145, and all else up to
# 10^290.
EXP_LIMIT = 700.0

# Coefficients of 1/z, 1/z^3, ... in the Stirling error s(z), and of the same powers in
# z phi(z) + 1/2. Both series end where the next term is below 1e-15 at z = 10.
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
STIRLING_SLOPE = tuple(-(2 * k + 1) * c for k, c in enumerate(STIRLING))
ARTANH = tuple(1 / k for k in (3, 5, 7, 9, 11, 13, 15, 17))  # of v^3, v^5, ... in artanh(v) - v


# ---------------------------------------------------------------- exact: float64, entry by entry
def exact_poisson(x: np.ndarray, log_rate: np.ndarray) -> list[np.ndarray]:
    """log Poisson(x) and its derivative for log_rate, by Loader's form, which keeps the digits.

    x, log_rate and both results: float64 of shape (k,).
    """
    rate = np.exp(np.minimum(log_rate, EXP_LIMIT))
    is_positive = _is_positive_count(x)
    x1 = np.where(is_positive, x, 1.0)  # elsewhere something harmless, which is not used
    log_x = np.log(x1)
    deviance = _deviance(x1, (rate - x1) / x1, rate - x1, log_rate - log_x)
    value = -deviance - HALF_LOG_2PI - 0.5 * log_x - _stirling_error(x1, log_x)
    value = np.where(is_positive, value, -rate)
    value = np.where(log_rate == np.inf, -np.inf, value)  # the rate was cut off, but not log_rate
    d_log_rate = np.where(is_positive, x1, 0.0) - rate
    return _on_counts(x, is_positive, value, d_log_rate)


def exact_nb(x: np.ndarray, log_mu: np.ndarray, log_theta: np.ndarray) -> list[np.ndarray]:
    """log NB(x) and its derivatives for log_mu and log_theta, by Loader's form, to the last digits.

    The inputs and the three results: float64 of shape (k,). Equations: count_likelihoods.py.
    """
    theta_is_zero = log_theta == -np.inf  # then all counts are 0
    log_theta = np.minimum(np.maximum(log_theta, -1e300), EXP_LIMIT)  # 0 times it is 0, not NaN
    mu = np.exp(np.minimum(log_mu, EXP_LIMIT))
    theta = np.exp(log_theta)
    d = log_mu - log_theta
    mu_is_larger = d > 0.0
    r = np.exp(-np.abs(d))  # the smaller of mu/theta and theta/mu
    log_1_r = np.log1p(r)
    log_sum = np.maximum(log_mu, log_theta) + log_1_r  # log(theta + mu)
    log_share = np.minimum(d, 0.0) - log_1_r  # log(mu / (theta + mu)), also where log_mu is large

    is_positive = _is_positive_count(x)
    x0 = np.where(is_positive, x, 0.0)
    x1 = np.where(is_positive, x, 1.0)  # elsewhere something harmless, which is not used
    log_x = np.log(x1)
    z = x1 + theta
    log_z = np.where(is_positive, np.log(x0 + theta), log_theta)

    # (x - mu) theta / (theta + mu), with both parts divided by the larger of theta and mu
    d_log_mu = x0 * np.where(mu_is_larger, r, 1.0) - np.where(mu_is_larger, theta, mu)
    d_log_mu /= 1.0 + r

    # theta L(u) and x L(w), where 1 + u = z / (theta + mu) and 1 + w = (mu / x) z / (theta + mu)
    deviance_theta = _deviance(theta, (x0 - mu) / (theta + mu), d_log_mu, log_z - log_sum)
    deviance_x = _deviance(x1, -d_log_mu / x1, -d_log_mu, log_share + log_z - log_x)
    value = (
        -deviance_theta
        - deviance_x
        - 0.5 * (log_z - log_theta + log_x)
        - HALF_LOG_2PI
        + _stirling_error(z, log_z)
        - _stirling_error(theta, log_theta)
        - _stirling_error(x1, log_x)
    )

    # log NB(0) = -theta log(1 + mu/theta). Where r underflows, log(1 + r) / r is 1.
    softplus_over_r = np.where(r != 0.0, log_1_r / r, 1.0)
    value_at_0 = -np.where(mu_is_larger, theta * (d + log_1_r), mu * softplus_over_r)

    # theta (phi(z) - phi(theta)), from z phi(z) and theta phi(theta)
    phi_difference = _z_phi(z, log_z) * (theta / z) - _z_phi(theta, log_theta)
    d_log_theta = -deviance_theta + np.where(is_positive, phi_difference, 0.0)

    value = np.where(is_positive, np.where(theta_is_zero, -np.inf, value), value_at_0)
    return _on_counts(x, is_positive, value, d_log_mu, d_log_theta)


def exact_zinb(
    x: np.ndarray, log_mu: np.ndarray, log_theta: np.ndarray, zi_logits: np.ndarray
) -> list[np.ndarray]:
    """log ZINB(x) and its derivatives for log_mu, log_theta and zi_logits.

    The inputs and the four results: float64 of shape (k,). Equations: count_likelihoods.py.
    """
    log_nb, d_log_mu, d_log_theta = exact_nb(x, log_mu, log_theta)
    is_zero = x == 0.0
    a = zi_logits
    log_odds = a - log_nb  # at x = 0: that the NB does not explain the zero, against that it does

    # softplus(-log_odds) - softplus(-a), in the one of two forms that does not cancel
    by_inflation = _softplus(-log_odds) - _softplus(-a)
    by_nb = log_nb + _softplus(log_odds) - _softplus(a)
    value_at_0 = np.where(log_odds < 0.0, by_nb, by_inflation)
    value = np.where(is_zero, value_at_0, log_nb - _softplus(a))

    from_nb = np.where(is_zero, special.expit(-log_odds), 1.0)  # P(x came from the NB | x)
    d_zi_logits = np.where(is_zero, special.expit(-a) - from_nb, -special.expit(a))
    d_log_mu = np.where(from_nb == 0.0, 0.0, from_nb * d_log_mu)
    d_log_theta = np.where(from_nb == 0.0, 0.0, from_nb * d_log_theta)
    return _on_counts(x, _is_positive_count(x), value, d_log_mu, d_log_theta, d_zi_logits)


def _stirling_error(z, log_z):
    """s(z) = lgamma(z) - [(z - 1/2) log z - z + log(2 pi)/2] for z >= 0; all (k,) float64.

    log_z is asked for because z may underflow where its logarithm does not.
    """
    is_low = z < 10.0
    s = _odd_series(1.0 / np.where(is_low, 10.0, z), STIRLING)
    if is_low.any():
        low = z[is_low]
        # lgamma(1 + z) = lgamma(z) + log z, and is finite at 0
        s[is_low] = special.gammaln(1.0 + low) - (low + 0.5) * log_z[is_low] + low - HALF_LOG_2PI
    return s


def _z_phi(z, log_z):
    """z phi(z) = z (digamma(z) - log z) for z >= 0; all (k,) float64. log_z: as above."""
    is_low = z < 10.0
    z_phi = _odd_series(1.0 / np.where(is_low, 10.0, z), STIRLING_SLOPE) - 0.5
    if is_low.any():
        low = z[is_low]
        # digamma(1 + z) = digamma(z) + 1/z, and is finite at 0
        z_phi[is_low] = low * special.digamma(1.0 + low) - 1.0 - low * log_z[is_low]
    return z_phi


def _deviance(c, w, c_w, log_1_w):
    """-c L(w) = c [w - log(1 + w)] >= 0 without loss of digits; all (k,) float64. Loader's bd0.

    c_w, log_1_w: c w and log(1 + w), used where |w| >= 0.2, so that w itself may overflow there.
    Where it is smaller, take v = w / (2 + w): then log(1 + w) = 2 artanh(v) = 2 (v + v^3/3 + ...),
    and w = 2 v / (1 - v), so that w - log(1 + w) = 2 v^2 / (1 - v) - 2 (v^3/3 + v^5/5 + ...).
    """
    is_near = np.abs(w) < 0.2
    v = np.where(is_near, w, 0.0)
    v = v / (2.0 + v)
    tail = 2.0 * v * v * _odd_series(v, ARTANH)
    near = 2.0 * v * v / (1.0 - v) - tail
    return np.where(is_near, c * near, c_w - c * log_1_w)


def _odd_series(r, coefficients):
    """c0 r + c1 r^3 + c2 r^5 + ..., elementwise."""
    square = r * r
    total = 0.0
    for c in reversed(coefficients):
        total = total * square + c
    return total * r


def _softplus(x):
    """log(1 + e^x)."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _is_positive_count(x):
    """Where x is one of 1, 2, 3, ..."""
    return (x >= 1.0) & (x == np.floor(x)) & (x < np.inf)


def _on_counts(x, is_positive, value, *gradients):
    """[value, *gradients] where x is a count. Elsewhere -inf and 0, and for NaN all are NaN."""
    is_count = is_positive | (x == 0.0)
    nan_or_0 = np.where(np.isnan(x), x, 0.0)
    value = np.where(is_count, value, nan_or_0 - np.inf)
    return [value, *(np.where(is_count, g, nan_or_0) for g in gradients)]


# ------------------------------------------------------------------------------------ elementwise
CHUNK = 8192  # entries at a time: the temporaries of an exact formula stay in the processor's cache


def poisson(needs, x, log_rate) -> tuple:
    """Forward of poisson_log_prob: any shapes that broadcast."""
    return _elementwise(exact_poisson, needs, x, log_rate)


def nb(needs, x, log_mu, log_theta) -> tuple:
    """Forward of nb_log_prob: any shapes that broadcast."""
    return _elementwise(exact_nb, needs, x, log_mu, log_theta)


def zinb(needs, x, log_mu, log_theta, zi_logits) -> tuple:
    """Forward of zinb_log_prob: any shapes that broadcast."""
    return _elementwise(exact_zinb, needs, x, log_mu, log_theta, zi_logits)


def elementwise_backward(g, y, derivatives, needs, x, *parameters) -> list:
    """Backward of the three, which kept the derivatives of y, of its shape, for each parameter."""
    return [None, *(None if d is None else g * d for d in derivatives)]


def _elementwise(exact, needs, x, *parameters):
    """(log p, its derivatives), of the shape to which the inputs broadcast."""
    dtype = np.float64
    if any(hasattr(p, "dtype") for p in parameters):
        dtype = np.result_type(*parameters, np.float16)
    x = x.toarray() if sparse.issparse(x) else x
    x, *parameters = np.broadcast_arrays(x, *parameters)
    columns = [np.ravel(a) for a in (x, *parameters)]
    results = [np.empty(x.size, dtype) if need else None for need in (True, *needs[1:])]
    for start in range(0, x.size, CHUNK):
        part = slice(start, start + CHUNK)
        with np.errstate(all="ignore"):  # of branches that np.where drops
            exact_results = exact(*(column[part].astype(np.float64) for column in columns))
            for result, exact_result in zip(results, exact_results):
                if result is not None:
                    result[part] = exact_result
    y, *derivatives = [None if r is None else r.reshape(x.shape) for r in results]
    return y, derivatives


# ------------------------------------------------------------------------ sums over genes, per cell
SMALL = 8  # counts up to here are small: 96 % of the non-zeros of brain10k, 61 % of cortex
BLOCK = 256 * 1024  # entries of a block of rows. Smaller ones lose more to calls than caches win
LOG_FACTORIAL = special.gammaln(np.arange(1024) + 1.0)
# Row x has a 1 for each k from 1 to x - 1: a product with this matrix sums over these k.
SUMS_BELOW = np.tri(SMALL + 1, SMALL - 1, -2, np.float32)


def poisson_cells(needs, counts, log_mu) -> tuple:
    """Forward of poisson_cell_log_prob; shapes as there."""
    return _cells(_poisson_block, needs, counts, log_mu, None)


def nb_cells(needs, counts, log_mu, log_theta) -> tuple:
    """Forward of nb_cell_log_prob; shapes as there. Quickest where log_theta is (n_genes,)."""
    return _cells(_nb_block, needs, counts, log_mu, None, log_theta)


def zinb_cells(needs, counts, log_mu, log_theta, zi_logits) -> tuple:
    """Forward of zinb_cell_log_prob; shapes as there. Quickest where log_theta is (n_genes,)."""
    return _cells(_nb_block, needs, counts, log_mu, None, log_theta, zi_logits)


def poisson_cells_from_logits(needs, counts, logits, log_library) -> tuple:
    """Forward of poisson_cell_log_prob_from_logits; shapes as there."""
    return _cells(_poisson_block, needs, counts, logits, log_library)


def nb_cells_from_logits(needs, counts, logits, log_library, log_theta) -> tuple:
    """Forward of nb_cell_log_prob_from_logits; shapes as there."""
    return _cells(_nb_block, needs, counts, logits, log_library, log_theta)


def zinb_cells_from_logits(needs, counts, logits, log_library, log_theta, zi_logits) -> tuple:
    """Forward of zinb_cell_log_prob_from_logits; shapes as there."""
    return _cells(_nb_block, needs, counts, logits, log_library, log_theta, zi_logits)


def cells_backward(g, y, derivatives, needs, counts, *parameters) -> list:
    """Backward of all six: the gradients of the parameters from g (n_cells,).

    derivatives: what forward kept, those of a cell's log p for each parameter, (n_cells, n_genes)
    or for log_library (n_cells, 1). Where a parameter has one value per gene, the sum over the
    cells is a quick product.
    """
    gradients = [None]
    for derivative, parameter in zip(derivatives, parameters):
        if derivative is None:
            gradients.append(None)
        elif parameter.shape in (derivative.shape[1:], (1, *derivative.shape[1:])):
            gradients.append((g @ derivative).reshape(parameter.shape))
        else:
            gradients.append(g[:, None] * derivative)
    return gradients


def _cells(kernel, needs, counts, base, log_library, *parameters):
    """(log p of each cell, its derivatives for each input): runs a kernel for each block of rows.

    base (n_cells, n_genes): log_mu where log_library is None; else the logits that divide the
    library among the genes, and log_library is (n_cells, 1). parameters: log_theta, zi_logits.
    """
    shape = base.shape
    n_cells, n_genes = shape
    dtype = np.result_type(base, *parameters, np.float32)
    counts = _canonical(counts, shape)
    base = np.ascontiguousarray(base, dtype)
    if log_library is not None:
        if log_library.shape != (n_cells, 1):
            raise ValueError(f"log_library has shape {log_library.shape}, must be {(n_cells, 1)}")
        log_library = log_library.astype(dtype)
    # The first parameter is log_theta.
    parameters = [_prepared(p, shape, dtype, per_gene=i == 0) for i, p in enumerate(parameters)]
    tables = None
    if parameters and parameters[0].ndim == 1 and dtype == np.float32:
        tables = _small_count_tables(parameters[0])

    y = np.zeros(n_cells, dtype)
    n_derivatives = 1 + len(parameters) if any(needs) else 0
    derivatives = [np.empty(shape, dtype) for _ in range(n_derivatives)]
    d_log_library = np.zeros((n_cells, 1), dtype)
    for rows in _blocks_of_rows(n_cells, n_genes):
        nonzeros = _nonzeros(counts, rows)
        block_parameters = [p[rows] if p.ndim == 2 else p for p in parameters]
        block_derivatives = [d[rows] for d in derivatives]
        with np.errstate(all="ignore"):  # of entries that are computed again, exactly
            if log_library is None:
                means = _Means(base[rows])
            else:
                means = _SoftmaxMeans(base[rows], log_library[rows])
            y[rows] = kernel(nonzeros, means, block_parameters, tables, block_derivatives)
            is_empty = nonzeros.n_in_row == 0
            if is_empty.any():  # a cell without counts says nothing
                for z in (y[rows], *block_derivatives):
                    z[is_empty] = 0.0
            if derivatives:
                d_log_library[rows] = means.pull_back(block_derivatives[0])
    if derivatives and log_library is not None:
        derivatives.insert(1, d_log_library)
    return y, [d if need else None for d, need in zip(derivatives, needs[1:])]


def _canonical(counts, shape):
    """Dense counts as they are; sparse ones as CSR without duplicates or stored zeros.

    Never changes the caller's matrix. ValueError where the counts do not have this shape.
    """
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


def _prepared(parameter, shape, dtype, per_gene):
    """A parameter as a contiguous array: of `shape`, or (n_genes,).

    The latter where it has one value per gene and the kernels can use that (`per_gene`).
    """
    parameter = np.asarray(parameter, dtype)
    is_row = per_gene and parameter.shape in (shape[1:], (1, *shape[1:]))
    if is_row and parameter.min(initial=0.0) >= -60.0:  # below, dividing by theta is unsafe
        return parameter.reshape(-1)
    if parameter.shape != shape:
        parameter = np.broadcast_to(parameter, shape)
    return np.ascontiguousarray(parameter)


def _blocks_of_rows(n_cells, n_genes):
    """Slices of the rows, such that a block has some BLOCK entries; none if there are no genes."""
    if n_genes == 0:
        return []
    step = max(1, BLOCK // n_genes)
    return [slice(i, min(i + step, n_cells)) for i in range(0, n_cells, step)]


class _NonZeros(NamedTuple):
    """The non-zeros of a block of rows, row by row; k of them."""

    # These two names are methods of every tuple, which nobody calls here.
    index: np.ndarray  # type: ignore[assignment]  # (k,): position in the flattened block
    row: np.ndarray  # (k,)
    gene: np.ndarray  # (k,)
    count: np.ndarray  # type: ignore[assignment]  # (k,), of the dtype of the counts
    n_in_row: np.ndarray  # (n_rows,): how many of them each row has


def _nonzeros(counts, rows):
    """The non-zeros of some rows (a slice) of counts, dense or CSR."""
    n_genes = counts.shape[1]
    if sparse.issparse(counts):
        ends = counts.indptr[rows.start : rows.stop + 1]
        gene = counts.indices[ends[0] : ends[-1]]
        count = counts.data[ends[0] : ends[-1]]
    else:
        block = counts[rows].ravel()
        index = np.flatnonzero(block != 0)  # of booleans: three times faster than of numbers
        ends = np.searchsorted(index, np.arange(0, block.size + 1, n_genes))
        gene = index % n_genes
        count = block[index]
    n_in_row = ends[1:] - ends[:-1]
    row = np.repeat(np.arange(len(n_in_row)), n_in_row)
    gene = gene.astype(np.intp, copy=False)
    return _NonZeros(row * n_genes + gene, row, gene, count, n_in_row)


_scratch = threading.local()


def _buffers(name, k, shape, dtype):
    """k arrays to write into, whose contents last until this thread asks for the same name again.

    Memory that is used again is in the processor's cache, and costs the system nothing.
    """
    size = k * shape[0] * shape[1]
    key = name + dtype.char
    memory = getattr(_scratch, key, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, dtype)
        setattr(_scratch, key, memory)
    return memory[:size].reshape(k, *shape)


def _sums_by_row(values, n_in_row):
    """Sums over each row of values (k,) at all its non-zeros: (n_rows,) float64.

    Takes a tenth of the time of bincount.
    """
    sums = np.zeros(len(n_in_row))
    if len(values):
        starts = np.cumsum(n_in_row) - n_in_row
        has_any = n_in_row > 0
        sums[has_any] = np.add.reduceat(values.astype(np.float64), starts[has_any])
    return sums


def _row_sums(x):
    """x.sum(axis=1), as a product with ones: a third of the time."""
    return x @ np.ones(x.shape[1], x.dtype)


# ----------------------------------------------------------------------------- the means of a block
class _Means:
    """The means of a block of rows, given by their logarithms log_mu (n_rows, n_genes)."""

    def __init__(self, log_mu):
        self.shape = log_mu.shape
        self.dtype = log_mu.dtype
        self.base = log_mu
        self.upper_bound = log_mu.max(initial=-np.inf)  # of log_mu

    def mu(self, out):
        """The means, written into `out` (n_rows, n_genes)."""
        return np.exp(self.base, out=out)

    def log_mu_at(self, index, row):
        """log_mu of some entries: (k,)."""
        return self.base.take(index)

    def log_mu(self):
        """log_mu of all entries: (n_rows, n_genes)."""
        return self.base

    def pull_back(self, d_log_mu):
        """Turns derivatives for log_mu, in place, into those for what was given.

        Returns those for log_library: (n_rows, 1), or 0 where there is none.
        """
        return 0.0


class _SoftmaxMeans(_Means):
    """The means of a block of rows: log_mu = log_softmax(logits) + log_library.

    One exp does for the softmax and for the means, and log_mu itself is computed only where it is
    asked for. With the gradient in place, this takes a third less time than log_softmax, an
    addition and the kernel of log_mu. What e^(logits - highest) loses below e^-87 could matter only
    beside a theta of e^-60 and a library above e^13: then mu is computed from log_mu.
    """

    def __init__(self, logits, log_library):
        self.shape = logits.shape
        self.dtype = logits.dtype
        self.base, self.e = _buffers("softmax", 2, self.shape, self.dtype)
        np.subtract(logits, logits.max(axis=1, keepdims=True), out=self.base)
        np.exp(self.base, out=self.e)
        self.total = _row_sums(self.e)[:, None]
        self.library = np.exp(log_library)
        self.shift = log_library - np.log(self.total)  # log_mu = base + shift, and base <= 0
        self.upper_bound = self.shift.max(initial=-np.inf)
        self.library_is_moderate = log_library.max(initial=0.0) <= 13.0  # not so if it is NaN

    def mu(self, out):
        if self.library_is_moderate:
            return np.multiply(self.e, self.library / self.total, out=out)
        return np.exp(self.log_mu(), out=out)

    def log_mu_at(self, index, row):
        return self.base.take(index) + self.shift.reshape(-1).take(row)

    def log_mu(self):
        return self.base + self.shift

    def pull_back(self, d_log_mu):
        """d_logits = d_log_mu - softmax(logits) * (its sum), and that sum is d_log_library."""
        total = _row_sums(d_log_mu)[:, None]
        self.e *= total / self.total
        d_log_mu -= self.e
        return total


# ------------------------------------------------------------------------------------- NB and ZINB
def _nb_block(nonzeros, means, parameters, tables, derivatives):
    """log p of each cell of a block of rows, NB or ZINB: (n_rows,).

    parameters: log_theta (n_rows, n_genes), or (n_genes,) if there are tables; for ZINB zi_logits
    (n_rows, n_genes) too. tables: _SmallCountTables or None. derivatives: arrays (n_rows, n_genes)
    to be filled, for log_mu, log_theta and zi_logits; or none at all.

    Every entry takes one of three ways (see the top of this file). Zeros and small counts are
    computed together, by

        log NB(x)   = x (log_mu - softplus(d)) - theta softplus(d) + log_product(x, theta)
        d_log_mu    = x - (x + theta) sigmoid(d)
        d_log_theta = (x + theta) sigmoid(d) - theta softplus(d) + theta dlog_product/dtheta

    where log_product = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(theta) is 0 for
    x = 0 and x = 1; for other small counts it comes from the tables.
    """
    log_theta, *zi_logits = parameters
    index, row, gene, count, n_in_row = nonzeros
    theta = np.exp(log_theta)

    is_small = (count <= (SMALL if tables else 1)) & (means.dtype == np.float32)
    is_hard = ~is_small  # these take the textbook formula, or in float64 the exact one
    elsewhere = index[np.flatnonzero(is_hard)]  # flat positions of what is not computed here
    extreme = _extreme(nonzeros, means, *parameters)
    if extreme is not None:
        is_extreme = extreme.take(index)
        is_small = is_small & ~is_extreme
        is_hard = is_hard & ~is_extreme
        elsewhere = np.append(elsewhere, np.flatnonzero(extreme))

    small = _small_nb(index, count, elsewhere, means, theta, derivatives)
    softplus_at = small.softplus.take(index)
    value = np.where(is_small, count * (means.log_mu_at(index, row) - softplus_at), 0.0)
    if tables is not None:
        several = np.flatnonzero(is_small & (count > 1))
        cell = count[several].astype(np.intp) * len(theta) + gene[several]
        value[several] += tables.log_product.take(cell)
        if derivatives:
            _flat(derivatives[1])[index[several]] += tables.d_log_theta.take(cell)
    y = _sums_by_row(value, n_in_row)

    if zi_logits:
        y -= _sums_by_row(small.minus_log_nb_0.take(index), n_in_row)
        _flat(small.minus_log_nb_0)[index] = 0.0
        y += _inflate(zi_logits[0], small, index, extreme, derivatives)
    else:
        y -= _row_sums(small.minus_log_nb_0)

    if is_hard.any():
        hard = np.flatnonzero(is_hard)
        results = _hard_nb(hard, nonzeros, means, log_theta, with_derivatives=bool(derivatives))
        _add_results(results, index[hard], row[hard], y, derivatives)
    if extreme is not None:
        where = np.flatnonzero(extreme)
        results = _extreme_nb(where, nonzeros, [means.log_mu(), *parameters])
        _add_results(results, where, where // means.shape[1], y, derivatives)
    return y


def _flat(x):
    """A contiguous array as (x.size,), in the same memory."""
    return x.reshape(-1)


def _add_results(results, index, row, y, derivatives):
    """Add values to the sums of their rows, and write their derivatives at flat positions."""
    value, *slopes = results
    y += np.bincount(row, value, len(y))
    for derivative, slope in zip(derivatives, slopes):
        _flat(derivative)[index] = slope


def _extreme(nonzeros, means, log_theta, zi_logits=None):
    """Where the quick ways miss full precision: (n_rows, n_genes), or None if nowhere.

    None is what is usual, and is found out quickly. theta (sigmoid(d) - softplus(d)) is of the
    order mu^2/theta when mu < theta, and is made of terms of the order mu. In float32 that is good
    enough while mu < 15 or theta < 245: within 8e-6 on 8 million random points (with 400, a few
    miss 1e-5). zi_logits must be such that products of two probabilities do not underflow
    (`_inflate`). Extreme is also a count above 10^6, and what is not a count.
    """
    is_single = log_theta.dtype == np.float32
    log_245 = 5.5 if is_single else np.inf
    log_15 = 2.7 if is_single else np.inf

    count = nonzeros.count
    odd = np.flatnonzero(np.rint(np.minimum(np.maximum(count, 1.0), 1e6)) != count)
    lowest_theta = log_theta.min()
    highest_theta = log_theta.max()
    highest_mu = means.upper_bound
    is_usual = (
        len(odd) == 0
        and lowest_theta >= -60.0
        and highest_theta <= 14.0
        and highest_mu <= 80.0
        and highest_mu - lowest_theta <= 80.0
        and (highest_theta <= log_245 or highest_mu <= log_15)
    )
    if is_usual and zi_logits is not None:
        is_usual = zi_logits.max() <= 40.0 and zi_logits.min() >= -40.0
    if is_usual:
        return None

    log_mu = means.log_mu()
    is_fine = (log_theta >= -60.0) & (log_theta <= 14.0)
    is_fine = is_fine & (log_mu <= 80.0) & (log_mu - log_theta <= 80.0)
    is_fine &= (log_theta <= log_245) | (log_mu <= log_15)
    if zi_logits is not None:
        is_fine &= np.abs(zi_logits) <= 40.0
    _flat(is_fine)[nonzeros.index[odd]] = False
    return ~is_fine


# The small way: zeros and small counts, all entries of a block at once.
class _SmallNB(NamedTuple):
    """What `_small_nb` leaves in its buffers, each (n_rows, n_genes)."""

    minus_log_nb_0: np.ndarray  # theta softplus(d); 0 where another way is taken
    softplus: np.ndarray
    scratch: np.ndarray


def _small_nb(index, count, elsewhere, means, theta, derivatives):
    """Fill the derivatives for log_mu and log_theta of a block, but for the part from the tables.

    elsewhere: the flat positions at which another way is taken. They are written over later.
    """
    x, softplus, r, u, spare_1, spare_2 = _buffers("block", 6, means.shape, means.dtype)
    d_log_mu, d_log_theta, *_ = derivatives or (spare_1, spare_2)
    np.multiply(means.mu(out=r), 1.0 / theta, out=r)
    sigmoid = d_log_theta
    _sigmoid_and_softplus(r, sigmoid, softplus, u, spare=d_log_mu)
    minus_log_nb_0 = np.multiply(softplus, theta, out=r)
    _flat(minus_log_nb_0)[elsewhere] = 0.0
    if derivatives:
        x.fill(0.0)
        _flat(x)[index] = count
        expected = np.add(x, theta, out=d_log_mu)
        expected *= sigmoid
        np.subtract(expected, minus_log_nb_0, out=d_log_theta)
        np.subtract(x, expected, out=d_log_mu)
    return _SmallNB(minus_log_nb_0, softplus, u)


def _sigmoid_and_softplus(r, sigmoid, softplus, u, spare):
    """sigmoid(d) and softplus(d) of a block from r = e^d = mu/theta. Uses up r, u and spare.

    softplus(d) = log(1 + r). With u = 1 + r all digits are right also where r is small, with one
    logarithm and no log1p, which takes seven times longer: what rounding u takes away, r - (u - 1),
    is exact, and is added to first order.
    """
    np.add(r, 1.0, out=u)
    np.divide(r, u, out=sigmoid)
    np.log(u, out=softplus)
    r -= np.subtract(u, 1.0, out=spare)
    r /= u
    softplus += r


class _SmallCountTables(NamedTuple):
    """Of each small count and gene, (SMALL + 1, n_genes) each; see `_small_count_tables`."""

    log_product: np.ndarray
    d_log_theta: np.ndarray


def _small_count_tables(log_theta):
    """log_product of `_nb_block`, and theta times its derivative for theta, free of cancellation:

        log_product = log[(1 + 1/theta) (1 + 2/theta) ... (1 + (x-1)/theta) / x!]
        d_log_theta = -sum of k / (theta + k) over k = 1 ... x-1

    log_theta: (n_genes,) float32.
    """
    with np.errstate(over="ignore"):  # 1 / infinity is right
        theta = np.exp(log_theta)
    k = np.arange(1, SMALL, dtype=theta.dtype)[:, None]
    log_product = SUMS_BELOW @ np.log(k / (k + 1) * (1 / theta) + 1 / (k + 1))
    return _SmallCountTables(log_product, SUMS_BELOW @ (-k / (theta + k)))


def _inflate(zi_logits, small, index, extreme, derivatives):
    """From NB to ZINB: the sum over genes, for each row, of what is added to log NB(x).

    Scales the derivatives of a block in place, and fills those for zi_logits. small: what
    `_small_nb` left, with minus_log_nb_0 = 0 at non-zeros (index) and extreme entries; all of it is
    used up. With e = NB(0), o = exp(zi_logits) and q = 1 + o, ZINB(0) = (o + e) / q, of which the
    NB has the part e / (o + e).
    """
    e, odds, q = small
    np.exp(np.negative(e, out=e), out=e)
    np.exp(zi_logits, out=odds)
    np.add(odds, 1.0, out=q)
    total = np.add(odds, e, out=odds)
    _flat(total)[index] = 1.0  # a non-zero comes from the NB: there e is 1, and 1 is what is left
    if derivatives:
        d_log_mu, d_log_theta, d_zi_logits = derivatives
        from_nb = np.divide(e, total, out=e)
        np.divide(1.0, q, out=d_zi_logits)
        d_zi_logits -= from_nb
        d_log_mu *= from_nb
        d_log_theta *= from_nb
    added = np.divide(total, q, out=total)
    if extreme is not None:
        added[extreme] = 1.0
    # The logarithm of a product of two, which cannot underflow within the bounds of `_extreme`:
    # half the logarithms.
    half = added.shape[1] // 2
    rest = added[:, : added.shape[1] - half]
    added[:, :half] *= added[:, added.shape[1] - half :]
    return _row_sums(np.log(rest, out=rest))


# The other two ways: some entries of a block, gathered, in float64.
def _hard_nb(hard, nonzeros, means, log_theta, with_derivatives):
    """log NB and its derivatives for some non-zeros (hard: which of them), (k,) float64 each."""
    index = nonzeros.index[hard]
    gene = nonzeros.gene[hard]
    x = nonzeros.count[hard].astype(np.float64)
    log_mu = means.log_mu_at(index, nonzeros.row[hard]).astype(np.float64)
    per_gene = log_theta.ndim == 1
    log_theta_at = log_theta.take(gene if per_gene else index).astype(np.float64)
    if means.dtype == np.float64:
        return exact_nb(x, log_mu, log_theta_at)
    if per_gene and len(x) > len(log_theta):  # one lgamma per gene, rather than one per entry
        theta = np.exp(log_theta.astype(np.float64))
        lgamma_theta = special.gammaln(theta).take(gene)
        digamma_theta = special.digamma(theta).take(gene)
    else:
        theta = np.exp(log_theta_at)
        lgamma_theta = special.gammaln(theta)
        digamma_theta = special.digamma(theta)
    return _textbook_nb(x, log_mu, log_theta_at, lgamma_theta, digamma_theta, with_derivatives)


def _textbook_nb(x, log_mu, log_theta, lgamma_theta, digamma_theta, with_derivatives):
    """[log NB, and if asked for its derivatives], as one writes them; all (k,) float64.

    Good to 1e-6 where nothing is extreme.
    """
    mu = np.exp(log_mu)
    theta = np.exp(log_theta)
    total = theta + mu
    log_total = np.log(total)
    powers = theta * (log_theta - log_total) + x * (log_mu - log_total)
    value = powers + special.gammaln(x + theta) - lgamma_theta - _log_factorial(x)
    if not with_derivatives:
        return [value]
    u = (x - mu) / total
    digammas = special.digamma(x + theta) - digamma_theta
    return [value, theta * u, theta * (digammas + log_theta - log_total - u)]


def _log_factorial(x):
    """log x! of whole numbers, (k,) float64: from a table, or by lgamma for the few beyond it."""
    log_factorial = LOG_FACTORIAL.take(x.astype(np.intp), mode="clip")
    beyond = np.flatnonzero(x >= len(LOG_FACTORIAL))
    log_factorial[beyond] = special.gammaln(x[beyond] + 1.0)
    return log_factorial


def _extreme_nb(where, nonzeros, parameters):
    """log p and its derivatives by the exact formulas at flat positions of a block; (k,) each.

    parameters: log_mu (n_rows, n_genes), log_theta, and for ZINB zi_logits.
    """
    shape = parameters[0].shape
    x = np.zeros(shape)
    _flat(x)[nonzeros.index] = nonzeros.count
    columns = [np.broadcast_to(a, shape).take(where) for a in (x, *parameters)]
    columns = [column.astype(np.float64) for column in columns]
    return exact_nb(*columns) if len(parameters) == 2 else exact_zinb(*columns)


# ----------------------------------------------------------------------------------------- Poisson
def _poisson_block(nonzeros, means, parameters, tables, derivatives):
    """log p of each cell of a block of rows, Poisson: (n_rows,).

    derivatives: an array (n_rows, n_genes) to be filled, for log_mu; or none. parameters and
    tables: none; they are here because the NB has them.
    """
    index, row, _, count, n_in_row = nonzeros
    out = derivatives[0] if derivatives else _buffers("block", 1, means.shape, means.dtype)[0]
    rate = means.mu(out=out)
    x = count.astype(means.dtype)
    rate_at = rate.take(index)
    log_rate_at = means.log_mu_at(index, row)
    value = x * log_rate_at - rate_at
    slope = x - rate_at
    if means.dtype == np.float32:
        value -= LOG_FACTORIAL.take(x.astype(np.intp), mode="clip")
        hard = np.flatnonzero(~((x >= 1.0) & (x <= SMALL) & (x == np.rint(x))))
    else:
        hard = np.arange(len(x))
    exact = exact_poisson(x[hard].astype(np.float64), log_rate_at[hard].astype(np.float64))
    value[hard], slope[hard] = exact

    # The zeros have log p = -rate, with the derivative -rate.
    _flat(rate)[index] = 0.0
    y = _sums_by_row(value, n_in_row) - rate.sum(axis=1)
    if derivatives:
        np.negative(rate, out=rate)
        _flat(rate)[index] = slope
    return y

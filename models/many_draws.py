"""The likelihood of one cell under many draws of its latent state, quick. This is engineering.

To estimate log p(x) of a cell, its counts are held against what the decoder says of a thousand
draws of z. The plain way is the model's `log_prob` of a thousand copies of the cell's row:
posterior.py has it (`_log_prob_of_copies`), and tests hold the two against each other. But the
counts are the same in all rows, and so is theta, unless it is one per gene and cell. So whatever
depends on these two alone is computed once, above all the lgammas, and what is left are products of
a matrix and a vector:

    >>> from minigrad.count_likelihoods import nb_log_prob
    >>> log_mu = np.log([[2.0, 1.0, 3.0], [1.0, 1.0, 1.0]])  # of 3 genes, under 2 draws
    >>> one_cell = one_cell_nb(np.array([4.0, 0.0, 1.0]), log_theta=np.zeros(3))
    >>> one_cell(log_mu).round(4)
    array([-5.0876, -5.5452])
    >>> nb_log_prob(np.array([4.0, 0.0, 1.0]), log_mu, np.zeros(3)).sum(axis=1).round(4)
    array([-5.0876, -5.5452])

Know before reading: minigrad/count_likelihoods.py, which has the formulas.

Know after: why a thousand draws of a cell cost a fraction of a thousand cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, special

from minigrad.backend import Matrix

# Entries (draws x genes) of one cell that are computed at a time, few enough for all temporary
# arrays of them to stay in the processor's cache.
CACHED = 1 << 16


def log_prob(likelihood: str, counts: Matrix, n_draws: int, decoded: dict[str, Any]) -> np.ndarray:
    """log p(x | z, l) of each cell under each of its draws: (n_cells, n_draws) float64, in nats.

    = sum over genes of log (ZI)NB or Poisson. counts: (n_cells, n_genes), dense or CSR. decoded:
    log_mu and zi_logits (or None), host arrays (n_cells * n_draws, n_genes), all draws of the first
    cell first; log_theta: (n_genes,), or like log_mu if all draws of a cell have the same, or None.
    A cell without counts is treated as any other: its value is the sum of log p(0).
    """
    if sparse.issparse(counts):
        counts = counts.toarray()
    log_theta = decoded["log_theta"]
    of_draws = [p for p in (decoded["log_mu"], decoded["zi_logits"]) if p is not None]
    at_once = max(1, CACHED // counts.shape[1])
    found = np.empty(len(counts) * n_draws)
    for i, x in enumerate(counts):
        first = i * n_draws
        log_theta_of_cell = log_theta
        if log_theta is not None and log_theta.ndim == 2:
            log_theta_of_cell = log_theta[first]
        one_cell = ONE_CELL[likelihood](x, log_theta_of_cell)
        for start in range(first, first + n_draws, at_once):
            rows = slice(start, min(start + at_once, first + n_draws))
            found[rows] = one_cell(*[p[rows] for p in of_draws])
    return found.reshape(len(counts), n_draws)


def one_cell_poisson(x: np.ndarray, _: Any = None) -> Callable[..., np.ndarray]:
    """The function log_mu (n, n_genes) -> log p of the counts x (n_genes,) of one cell, (n,).

    In nats.
    """
    constant = np.sum(special.gammaln(x.astype(np.float64) + 1.0))

    def of_draws(log_mu: np.ndarray) -> np.ndarray:
        return log_mu @ x - np.sum(np.exp(log_mu), axis=1) - constant

    return of_draws


def one_cell_nb(x: np.ndarray, log_theta: np.ndarray) -> Callable[..., np.ndarray]:
    """The function log_mu (n, n_genes) -> log p of the counts x (n_genes,) of one cell, (n,).

    log_theta: (n_genes,). With d = log_mu - log_theta, and a constant that holds the lgammas,

        log NB(x) = constant - theta softplus(d) - x softplus(-d)
                  = constant + x min(d, 0) - theta max(d, 0) - (x + theta) log(1 + e^-|d|)

    summed over genes: three products of a matrix and a vector, none of whose terms is positive. In
    nats.
    """
    constant = np.sum(_log_binomials(x, log_theta)[x > 0])
    theta = np.exp(log_theta)

    def of_draws(log_mu: np.ndarray) -> np.ndarray:
        above, below, log_1_r = _softplus(log_mu - log_theta)
        return constant + below @ x - above @ theta - log_1_r @ (x + theta)

    return of_draws


def one_cell_zinb(x: np.ndarray, log_theta: np.ndarray) -> Callable[..., np.ndarray]:
    """The function (log_mu, zi_logits) -> log p of the counts x (n_genes,) of one cell, (n,).

    log_theta: (n_genes,); log_mu, zi_logits: (n, n_genes). The genes with counts have the three
    products of `one_cell_nb`. Those without have, with a = zi_logits,

        log ZINB(0) = log(e^a + NB(0)) - softplus(a)

    and all together the sum of softplus(a) = max(a, 0) + log(1 + e^-|a|) is taken away. In nats.
    """
    constant = np.sum(_log_binomials(x, log_theta)[x > 0])
    theta = np.exp(log_theta)
    is_positive = (x > 0).astype(x.dtype)
    zeros = np.flatnonzero(x == 0)

    def of_draws(log_mu: np.ndarray, zi_logits: np.ndarray) -> np.ndarray:
        above, below, log_1_r = _softplus(log_mu - log_theta)
        value = constant + below @ x
        value = value - above @ (theta * is_positive) - log_1_r @ (x + theta * is_positive)

        log_nb_0 = (above.take(zeros, axis=1) + log_1_r.take(zeros, axis=1)) * -theta[zeros]
        a = zi_logits.take(zeros, axis=1)
        larger = np.maximum(a, log_nb_0)
        smaller = np.minimum(a, log_nb_0)
        # log(e^a + NB(0)) - max(a, 0), in two parts
        value += np.sum(larger - np.maximum(a, 0.0), axis=1) + _sum_log(
            1.0 + np.exp(smaller - larger)
        )
        value = value - np.maximum(zi_logits, 0.0) @ is_positive
        return value - _sum_log(1.0 + np.exp(-np.abs(zi_logits)))

    return of_draws


ONE_CELL: dict[str, Callable[..., Callable[..., np.ndarray]]] = {
    "poisson": one_cell_poisson,
    "nb": one_cell_nb,
    "zinb": one_cell_zinb,
}


def _log_binomials(x, log_theta):
    """lgamma(x + theta) - lgamma(theta) - lgamma(x + 1), (n_genes,) float64."""
    x = x.astype(np.float64)
    theta = np.exp(log_theta.astype(np.float64))
    return special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1.0)


class Softplus(NamedTuple):
    """softplus(d) = above + log_1_r, and softplus(-d) = log_1_r - below, of the shape of d."""

    above: np.ndarray  # max(d, 0)
    below: np.ndarray  # min(d, 0)
    log_1_r: np.ndarray  # log(1 + r), r = e^-|d|


def _softplus(d) -> Softplus:
    """The Softplus of d, whose memory is used."""
    above = np.maximum(d, 0.0)
    below = np.minimum(d, 0.0)
    r = np.exp(below - above, out=d)
    u = 1.0 + r
    # The last term is what u = 1 + r rounds away: so this is log1p(r) to all digits, and quicker.
    log_1_r = np.log(u) + (r - (u - 1.0)) / u
    return Softplus(above, below, log_1_r)


def _sum_log(u):
    """The sum over columns of log(u), (n,), for u (n, k) from 1 to 2.

    It takes logarithms of products of 100, which cannot overflow.
    """
    starts = np.arange(0, u.shape[1], 100)
    return np.sum(np.log(np.multiply.reduceat(u, starts, axis=1)), axis=1)

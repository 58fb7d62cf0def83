"""What a trained latent-variable model is asked: bounds and likelihoods, denoised expression, samples, and differences.

Know before reading: scvi.py's docstring. The functions take the model as `self`, and SCVI lists them as its methods
(VAE, which has no batches and no libraries, shares `log_mean_exp`). They ask of a model what SCVI documents:
`minibatches`, `inference`, `generative`, `log_prob`, and the two sources of a library size.

All are Monte Carlo estimates from draws of q(z | x). A cell's noise is a function of the seed and the cell's position:
how many cells or draws are decoded at a time changes memory, not results. Log-probabilities come in float64, expression
and counts in the dtype of the model.

Know after: how an intractable log p(x) is estimated, what "expression" means for a model that has batches, and what a
Bayes factor of differential expression says and does not say.
"""

from __future__ import annotations

import csv
from numbers import Real
from types import SimpleNamespace

import numpy as np
from scipy import sparse, special

from minigrad import backend
from minigrad.backend import Array
from minigrad.data import take_rows
from minigrad.distributions import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    kl_divergence,
)
from minigrad.fit import evaluating
from minigrad.tensor import Tensor
from models.counts import as_matrix, batch_codes, log1p, normalize
from models.files import warn_of_formulas

PRIOR_DRAWS = 256  # of z, by which it is known how totals of new cells scatter
POSTERIOR = 17  # purpose of random numbers, beside those of minigrad/data.py
BUDGET = 1 << 19  # entries (draws of cells x genes) decoded at a time: 2 MB an array in float32
CACHED = (
    1 << 16
)  # entries of them whose likelihood is computed at a time: temporaries that stay in the cache


# -------------------------------------------------------------------------------------------- draws
def _noise(seed, device):
    """Sources of random numbers, a generator each, so that each is used in the order of cells and
    of their draws.
    """
    names = ("standard_normal", "standard_normal", "standard_gamma", "poisson", "random")
    z, library, gamma, poisson, uniform = (
        getattr(backend.generator([seed, POSTERIOR, i], device), name)
        for i, name in enumerate(names)
    )
    return SimpleNamespace(
        z=z,
        library=library,
        counts=SimpleNamespace(standard_gamma=gamma, poisson=poisson, random=uniform),
    )


def _whole(name: str, n) -> int:
    """n as a Python int; ValueError if it is not a whole number of at least 1."""
    if isinstance(n, bool) or not isinstance(n, Real) or n != n // 1 or n < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {n!r}")
    return int(n)  # type: ignore[call-overload]  # every Real can be made an int


def _posteriors(self, data, n_samples: int, noise):
    """Cells in groups of c, in their order, with n_samples draws of each from its posterior.

    data: what the model's `minibatches` gives. Yields (cells, x, codes, q_z, q_l, draws), all
    arrays where the model is: the slice of all cells that this group is; counts (c, n_genes); batch
    codes (c,); q(z | x) and q(log l | x) of plain arrays, the latter None where the library is
    observed; and an iterator over (z (c, n, n_latent), log_library (c, n, 1)) whose n add up to
    n_samples.
    """
    rows, start = max(1, BUDGET // data.columns[0].shape[1]), 0
    for minibatch in data:
        x, codes = [backend.to_device(column, self.device) for column in minibatch]
        q_z, q_l = [
            None if q is None else Normal(q.loc.data, q.scale.data) for q in self.inference(x)
        ]
        for i in range(0, len(codes), max(1, rows // n_samples)):
            at = slice(i, min(i + max(1, rows // n_samples), len(codes)))
            part = take_rows(x, np.arange(at.start, at.stop))
            of_z, of_l = [None if q is None else Normal(q.loc[at], q.scale[at]) for q in (q_z, q_l)]
            draws = _draws(
                of_z,
                self.observed_log_library(part) if of_l is None else of_l,
                n_samples,
                rows,
                noise,
            )
            yield slice(start + at.start, start + at.stop), part, codes[at], of_z, of_l, draws
        start += len(codes)


def _draws(q_z, library, n_samples, rows, noise):
    """The iterator of `_posteriors`. library: q_l, or the observed log library (c, 1); rows:
    decoded at a time.
    """
    c, dtype = len(q_z.loc), q_z.loc.dtype
    for start in range(0, n_samples, max(1, rows // c)):
        n = min(max(1, rows // c), n_samples - start)
        z = q_z.loc[:, None] + q_z.scale[:, None] * noise.z((c, n, q_z.loc.shape[1]), dtype=dtype)
        if isinstance(library, Normal):
            yield (
                z,
                library.loc[:, None]
                + library.scale[:, None] * noise.library((c, n, 1), dtype=dtype),
            )
        else:
            yield z, np.broadcast_to(library[:, None], (c, n, 1))


def _decode(self, z, log_library, codes) -> dict:
    """What `generative` says of z (c, n, n_latent), log_library (c, n, 1), codes (c,): plain arrays
    of c * n rows.
    """
    c, n = z.shape[:2]
    parameters = self.generative(
        z.reshape(c * n, -1), log_library.reshape(c * n, 1), np.repeat(codes, n)
    )
    return {name: p.data if isinstance(p, Tensor) else p for name, p in parameters.items()}


def _has_library(x, q_l):
    """Which cells of x have a library size above 0, (c, 1, 1) bool: those with counts, or all where
    it is latent.
    """
    return backend.as_array(x.sum(axis=1)).reshape(-1, 1, 1) > (0 if q_l is None else -1)


# --------------------------------------------------------------------------- bounds and likelihoods
def elbo(
    self,
    counts,
    batch: Array | str | None = None,
    *,
    n_samples: int = 1,
    seed: int = 0,
    layer: str | None = None,
) -> np.ndarray:
    """The evidence lower bound of each cell, KL weight 1, averaged over n_samples draws.

    (n_cells,) float64, in nats.
    E_q[log p(x | z, l)] - KL(q(z) || p(z)) - KL(q(l) || p(l)) (chapter, "Two optimization
    objectives"; Kingma & Welling 2014, eq. 3). For comparing models on the same cells, faster and
    less exactly than log_likelihood, which is never lower but for Monte Carlo error. Where the
    library is observed this bounds the likelihood given each cell's total (see there), and a cell
    without counts, whose log p is then 0, has minus its KL divergence.
    """
    n_samples, data = _whole("n_samples", n_samples), self.minibatches(counts, batch, layer)
    found = np.empty(len(data.rows))
    with evaluating(self):
        for cells, x, codes, q_z, q_l, draws in _posteriors(
            self, data, n_samples, _noise(seed, self.device)
        ):
            kl = np.sum(kl_divergence(q_z, Normal(0.0, 1.0)), axis=1)
            if q_l is not None:
                kl = kl + np.sum(kl_divergence(q_l, self.library_prior(codes)), axis=1)
            total = sum(np.sum(_log_prob_of_draws(self, x, codes, *draw), axis=1) for draw in draws)
            found[cells] = backend.to_host(total / n_samples - kl)
    return found


def log_likelihood(
    self,
    counts,
    batch: Array | str | None = None,
    *,
    n_samples: int = 1000,
    seed: int = 0,
    return_error: bool = False,
    layer: str | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """log p(x) of each cell, (n_cells,) float64, in nats: the log of the mean over z ~ q of p(x, z)
    / q(z).

    A lower bound in expectation that n_samples tightens (Burda et al. 2016, eq. 8): for comparing
    models on cells that neither has seen. return_error: also its Monte Carlo standard error
    (n_cells,), by the delta method; NaN for one sample. An error above 0.5 says that few draws
    carry the weight: q is not the posterior, and the true value may lie above by more than that.
    Memory does not grow with n_samples.

    Where the library is observed this is log p(x | l = the cell's own total): the model is told
    what it should foresee, and its values lie above log p(x) of the same model with a prior of l,
    by 0.5 to 2 nats a cell where it was measured, and up to (1 + log(1 + v / s)) / 2 in theory,
    with v the variance of log l and s that of log totals given l. So to compare a model with an
    observed and one with a latent library is unfair to the latter: compare within one kind only.
    Cells without counts have 0 where the library is observed, and log p(x) like all others where it
    is latent.
    """
    n_samples, data = _whole("n_samples", n_samples), self.minibatches(counts, batch, layer)
    value, error = np.empty((2, len(data.rows)))
    with evaluating(self):
        for cells, x, codes, q_z, q_l, draws in _posteriors(
            self, data, n_samples, _noise(seed, self.device)
        ):
            weights = (
                backend.to_host(_log_weights(self, x, codes, q_z, q_l, *draw)) for draw in draws
            )
            value[cells], error[cells] = log_mean_exp(weights)
            if q_l is None:
                empty = _cells_without_counts(x)
                value[cells][empty] = error[cells][empty] = 0.0
    return (value, error) if return_error else value


def _log_weights(self, x, codes, q_z, q_l, z, log_library):
    """log of p(x | z, l) p(z) p(l) / (q(z) q(l)) for n draws of z (and l) a cell: (n, n_cells)
    float64.
    """

    def ratio(p, q, draws):
        q = Normal(q.loc[:, None], q.scale[:, None])
        return np.sum(p.log_prob(draws) - q.log_prob(draws), axis=-1)

    log_w = _log_prob_of_draws(self, x, codes, z, log_library) + ratio(Normal(0.0, 1.0), q_z, z)
    if q_l is not None:
        prior = self.library_prior(codes)
        log_w = log_w + ratio(Normal(prior.loc[:, None], prior.scale[:, None]), q_l, log_library)
    return log_w.T


def log_mean_exp(blocks) -> tuple[np.ndarray, np.ndarray]:
    """log of the mean of weights, and its standard error, from blocks of their logarithms: two
    (n_rows,) float64.

    log(1/n sum_i exp(log w_i)), in nats where the log w are. blocks: arrays (n, n_rows), n draws a
    row; ValueError unless there is at least one draw in all. Only running sums are kept.
    """
    highest, total, squares, n = -np.inf, 0.0, 0.0, 0
    for log_w in blocks:
        log_w = log_w.astype(np.float64)
        before, highest = highest, np.maximum(highest, np.max(log_w, axis=0))
        level = np.where(np.isfinite(highest), highest, 0.0)  # where all weights are 0 yet
        shrink, w = np.exp(before - level), np.exp(log_w - level)
        total = total * shrink + np.sum(w, axis=0)
        squares = squares * shrink**2 + np.sum(w * w, axis=0)
        n += len(log_w)
    if not n:
        raise ValueError("log_mean_exp: no draws to average")
    with np.errstate(divide="ignore", invalid="ignore"):
        relative_variance = (
            (n * squares / total**2 - 1.0) / (n - 1) if n > 1 else np.full_like(total, np.nan)
        )
        return level + np.log(total / n), np.sqrt(np.maximum(relative_variance, 0.0))


def _log_prob_of_draws(self, x, codes, z, log_library):
    """log p(x | z, l) of cells x (c, n_genes) under z (c, n, n_latent) and log_library (c, n, 1):
    (c, n) float64.

    The same as self.log_prob of each row of x repeated n times, which is what runs where no
    shortcut is known. A cell's counts being the same in all its draws, there is one: see
    `_one_cell_nb`. A cell without counts has 0 where the library is observed, and is otherwise as
    any other: sum over genes of log p(0).
    """
    (c, n), parameters = z.shape[:2], _decode(self, z, log_library, codes)
    if self.dispersion == "gene-cell" or not backend.on_host(parameters.values()):
        log_p = self.log_prob(
            take_rows(x, np.repeat(np.arange(c), n)),
            log_library.reshape(c * n, 1),
            parameters["log_rho"],
            parameters["log_theta"],
            parameters["zi_logits"],
        )
        found = log_p.reshape(c, n).astype(np.float64)
    else:
        found = _log_prob_cell_by_cell(self, x, n, parameters)
    for i in _cells_without_counts(x):
        found[i] = 0.0 if self.library == "observed" else _log_prob_of_zeros(self, i, n, parameters)
    return found


def _log_prob_cell_by_cell(self, x, n, parameters):
    """log p of cells x (c, n_genes), each under its n rows of the parameters (c * n, n_genes).

    Returns (c, n) float64.
    """
    x = x.toarray() if sparse.issparse(x) else x
    found, rows = np.empty(len(x) * n), max(1, CACHED // x.shape[1])
    log_theta = parameters["log_theta"]
    of_draws = [p for p in (parameters["log_mu"], parameters["zi_logits"]) if p is not None]
    for i, counts in enumerate(x):
        theta_of_cell = log_theta if log_theta is None or log_theta.ndim == 1 else log_theta[i * n]
        cell = _ONE_CELL[self.likelihood](counts, theta_of_cell)
        for start in range(i * n, (i + 1) * n, rows):
            part = slice(start, min(start + rows, (i + 1) * n))
            found[part] = cell(*[p[part] for p in of_draws])
    return found.reshape(len(x), n)


def _log_prob_of_zeros(self, i, n, parameters):
    """log p of no counts at all, (n,), under those n rows of the parameters that are cell i's."""
    own = {
        name: p if p is None or p.ndim == 1 else p[i * n : (i + 1) * n]
        for name, p in parameters.items()
    }
    log_p = _distribution(self, own).log_prob(np.zeros_like(own["log_mu"]))
    return np.sum(log_p.astype(np.float64), axis=1)


def _cells_without_counts(x) -> np.ndarray:
    """Positions of the cells of x (c, n_genes) without counts, on the host."""
    return np.flatnonzero(~backend.to_host(_has_library(x, None)).ravel())


def _one_cell_poisson(x, _):
    """The function log_mu (n, n_genes) -> log p(x) of one cell (n,) with counts x (n_genes,)."""
    constant = np.sum(special.gammaln(x.astype(np.float64) + 1.0))
    return lambda log_mu: log_mu @ x - np.sum(np.exp(log_mu), axis=1) - constant


def _one_cell_nb(x, log_theta):
    """The function log_mu, or (log_mu, zi_logits), (n, n_genes) each -> log p(x) of one cell (n,):
    NB, or ZINB.

    x: its counts (n_genes,); log_theta: (n_genes,). All that depends on these alone is computed
    once, above all the lgammas. With L = log(1 + e^-|d|), softplus(±d) of count_likelihoods.py is
    max(±d, 0) + L, and the sum over genes

        log NB(x) = constant - (x + theta) L - theta max(d, 0) + x min(d, 0)

    with d = log_mu - log_theta is three products of a matrix and a vector, none of whose terms is
    positive. Of ZINB this holds for the non-zeros; for the zeros
    log ZINB(0) = log(e^a + e^nb) - softplus(a) with a = zi_logits, nb = log NB(0).
    """
    wide, theta_wide = x.astype(np.float64), np.exp(log_theta.astype(np.float64))
    ways = (
        special.gammaln(wide + theta_wide)
        - special.gammaln(theta_wide)
        - special.gammaln(wide + 1.0)
    )
    constant, theta, zeros = np.sum(ways[x > 0]), np.exp(log_theta), np.flatnonzero(x == 0)
    nonzero = (x > 0).astype(x.dtype)

    def log_prob(log_mu, zi_logits=None):
        d = log_mu - log_theta
        above, below = np.maximum(d, 0.0), np.minimum(d, 0.0)
        r = np.exp(below - above, out=d)
        u = 1.0 + r
        log_1_r = (
            np.log(u) + (r - (u - 1.0)) / u
        )  # log1p(r) to all digits: the last term is what u = 1 + r rounds away
        if zi_logits is None:
            return constant + below @ x - above @ theta - log_1_r @ (x + theta)
        value = constant + below @ x - above @ (theta * nonzero) - log_1_r @ (x + theta * nonzero)
        nb = (above.take(zeros, axis=1) + log_1_r.take(zeros, axis=1)) * -theta[zeros]
        a = zi_logits.take(zeros, axis=1)
        top = np.maximum(a, nb)
        value += np.sum(top - np.maximum(a, 0.0), axis=1) + _sum_log(
            1.0 + np.exp(np.minimum(a, nb) - top)
        )
        return (
            value
            - np.maximum(zi_logits, 0.0) @ nonzero
            - _sum_log(1.0 + np.exp(-np.abs(zi_logits)))
        )

    return log_prob


def _sum_log(u):
    """The sum over columns of log(u), u (n, k) from 1 to 2: a logarithm of products of 100, which
    cannot overflow.
    """
    return np.sum(np.log(np.multiply.reduceat(u, np.arange(0, u.shape[1], 100), axis=1)), axis=1)


_ONE_CELL = {"poisson": _one_cell_poisson, "nb": _one_cell_nb, "zinb": _one_cell_nb}


# --------------------------------------------------------------------------------------- expression
def expression_fraction(
    self,
    counts,
    batch: Array | str | None = None,
    *,
    transform_batch: str | list | None = None,
    n_samples: int = 1,
    seed: int = 0,
    layer: str | None = None,
) -> np.ndarray:
    """rho: the expected fraction of each gene in a cell's expression, (n_cells, n_genes).

    Rows sum to 1. Averaged over n_samples draws of z. transform_batch: a label (or a list of them,
    which are averaged over): what would be expected had the cell been measured in that batch; None:
    its own. For comparing genes and cells without the noise of counting, the depth of sequencing,
    and the batch. A cell without counts has what the encoder makes of it. ValueError for an unknown
    batch, with those known.
    """
    return _expected(
        self,
        counts,
        batch,
        transform_batch,
        n_samples,
        seed,
        layer,
        lambda rho, library, cells: rho,
    )


def denoise(
    self,
    counts,
    batch: Array | str | None = None,
    *,
    library_size: Array | None = None,
    transform_batch: str | list | None = None,
    n_samples: int = 1,
    seed: int = 0,
    layer: str | None = None,
) -> np.ndarray:
    """mu: expected counts, (n_cells, n_genes), of the negative binomial (without extra zeros): rho,
    times library size.

    library_size: what each cell's expectations shall sum to, a number or (n_cells,); None: its own
    library size, the observed one (0 for a cell without counts), or drawn from q(l). The rest as
    for expression_fraction. For imputing, and for pictures of single genes. ValueError for a
    library_size that is not positive.
    """
    if library_size is not None and not (
        np.all(np.isfinite(library_size)) and np.all(np.asarray(library_size) > 0)
    ):
        raise ValueError(f"library_size must be positive and finite, not {library_size}")

    def mu(rho, library, cells):
        if library_size is None:
            return rho * library
        given = (
            library_size
            if np.ndim(library_size) == 0
            else np.asarray(library_size)[cells, None, None]
        )
        return rho * (given if np.ndim(given) == 0 else backend.to_device(given, self.device))

    n_cells = None if library_size is None or np.ndim(library_size) == 0 else len(library_size)
    return _expected(self, counts, batch, transform_batch, n_samples, seed, layer, mu, n_cells)


def _expected(self, counts, batch, transform_batch, n_samples, seed, layer, finish, n_sizes=None):
    """Mean over draws of z and over batches of finish(rho (c, n, n_genes), library size (c, n, 1),
    which cells).
    """
    n_samples, data = _whole("n_samples", n_samples), self.minibatches(counts, batch, layer)
    if n_sizes not in (None, len(data.rows)):
        raise ValueError(f"library_size has {n_sizes} entries for {len(data.rows)} cells")
    targets = (
        [None] if transform_batch is None else _codes_of(self, transform_batch, "transform_batch")
    )
    found = np.zeros((len(data.rows), self.n_genes), self.dtype)
    with evaluating(self):
        for cells, x, codes, _, q_l, draws in _posteriors(
            self, data, n_samples, _noise(seed, self.device)
        ):
            for z, log_library in draws:
                library = np.exp(log_library) * _has_library(x, q_l)
                for target in targets:
                    decoded = _decode(
                        self,
                        z,
                        log_library,
                        codes if target is None else np.full_like(codes, target),
                    )
                    rho = np.exp(decoded["log_rho"]).reshape(*z.shape[:2], -1)
                    found[cells] += backend.to_host(np.sum(finish(rho, library, cells), axis=1))
    found /= n_samples * len(targets)
    return found


def _codes_of(self, labels, name: str) -> np.ndarray:
    """Codes of one or several batch labels; ValueError with the known ones for another."""
    labels = np.atleast_1d(labels)
    if not len(labels):
        raise ValueError(f"{name}: no batch given")
    return batch_codes(labels, len(labels), known=self.batches, name=name, advice="")[0]


# ------------------------------------------------------------------------------------------ samples
def _distribution(self, parameters: dict):
    """The distribution of counts with these parameters, plain arrays as `_decode` gives them."""
    if self.likelihood == "poisson":
        return Poisson(parameters["log_mu"])
    if self.likelihood == "nb":
        return NegativeBinomial(parameters["log_mu"], parameters["log_theta"])
    return ZeroInflatedNegativeBinomial(
        *[parameters[k] for k in ("log_mu", "log_theta", "zi_logits")]
    )


def sample_posterior(
    self,
    counts,
    batch: Array | str | None = None,
    *,
    n_samples: int = 1,
    seed: int = 0,
    layer: str | None = None,
) -> np.ndarray:
    """New counts for each cell: z from its posterior q(z | x), then counts from p(x | z, l).

    (n_cells, n_genes), or (n_samples, n_cells, n_genes) for more than one; whole numbers, in the
    dtype of the model. For checking the model: do real counts look like a draw from it? A cell
    without counts stays so, unless the library is latent.
    """
    n_samples, data = _whole("n_samples", n_samples), self.minibatches(counts, batch, layer)
    noise = _noise(seed, self.device)
    found = np.empty((n_samples, len(data.rows), self.n_genes), self.dtype)
    with evaluating(self):
        for cells, x, codes, _, q_l, draws in _posteriors(self, data, n_samples, noise):
            start = 0
            for z, log_library in draws:
                of_draws = _distribution(self, _decode(self, z, log_library, codes))
                sample = of_draws.sample(noise.counts).reshape(*z.shape[:2], -1)
                sample = backend.to_host(sample * _has_library(x, q_l))
                found[start : start + z.shape[1], cells] = sample.transpose(1, 0, 2)
                start += z.shape[1]
    return found[0] if n_samples == 1 else found


def generate(self, n: int, *, batch: Array | str | None = None, seed: int = 0) -> np.ndarray:
    """Counts of n new cells, (n, n_genes): z ~ Normal(0, 1), log-normal library sizes.

    batch: a label for all of them, or one for each; None: batches in the proportions of the
    training cells. Whole numbers, in the dtype of the model. For seeing what the model believes
    cells to be, and for data of which the truth is known. ValueError for an unknown batch, or
    another number of labels.

    Where the library is observed, logarithms of the new cells' totals have the mean and variance of
    those of the training cells (`library_log_mean`, `library_log_var`), as long as the counts' own
    noise does not exceed that variance. Where it is latent, these two are the prior of log l, and
    the noise of counts comes on top.
    """
    n, noise, rows = _whole("n", n), _noise(seed, self.device), max(1, BUDGET // self.n_genes)
    if batch is None:
        edges = np.cumsum(backend.to_host(self.batch_fraction), dtype=np.float64)
        codes = np.searchsorted(
            edges[:-1] / edges[-1], backend.generator([seed, POSTERIOR]).random(n), side="right"
        )
    else:
        codes = _codes_of(self, batch, "batch")
        if len(codes) not in (1, n):
            raise ValueError(
                f"batch: {len(codes)} labels for n={n} cells; give one for all, or one for each"
            )
        codes = np.broadcast_to(codes, n)
    found = np.empty((n, self.n_genes), self.dtype)
    with evaluating(self):
        library = _library_of_new_cells(self, np.unique(codes))
        for start in range(0, n, rows):
            of = backend.to_device(codes[start : start + rows], self.device)
            z = noise.z((len(of), 1, self.n_latent), dtype=self.dtype)
            log_library = library.loc[of] + library.scale[of] * noise.library(
                (len(of), 1), dtype=self.dtype
            )
            of_cells = _distribution(self, _decode(self, z, log_library[:, None], of))
            found[start : start + rows] = backend.to_host(of_cells.sample(noise.counts))
    return found


def _library_of_new_cells(self, codes) -> Normal:
    """p(log l) of new cells, parameters (n_batches, 1), right for the batches that codes lists.

    A latent library has its prior. An observed one stands for the total, whose logarithm has mean m
    = library_log_mean and variance v = library_log_var over the training cells. But totals of
    counts that are drawn scatter around l: given z and log l = m they have mean M = sum_g E[x_g],
    below l where there are extra zeros, and variance V = sum_g Var[x_g]; taken as log-normal,

        log total ~ Normal(log M - s/2, s),  s = log(1 + V / M^2)

    What z and counting add to m and v, E_z[log M - s/2] - m and E_z[s] + Var_z[log M - s/2], is
    taken out of the two. A variance has nothing left where they add more than v.
    """
    moments = self.library_log_mean, self.library_log_var
    mean, variance = [backend.to_host(a).astype(np.float64) for a in moments]
    if self.library == "observed":
        for code in codes:
            centre, noise = _totals_of_new_cells(self, code)
            shift = centre.mean() - mean[code]
            mean[code] -= shift
            variance[code] -= noise.mean() + centre.var()
    parameters = [a.astype(self.dtype)[:, None] for a in (mean, np.sqrt(np.maximum(variance, 0.0)))]
    return Normal(*[backend.to_device(a, self.device) for a in parameters])


def _totals_of_new_cells(self, code) -> tuple[np.ndarray, np.ndarray]:
    """log M - s/2 and s of `_library_of_new_cells` for draws of z in one batch.

    Two arrays (PRIOR_DRAWS,) float64.
    """
    normal = backend.generator([POSTERIOR, code], self.device).standard_normal
    means, variances, rows = [], [], max(1, BUDGET // self.n_genes)
    for start in range(0, PRIOR_DRAWS, rows):
        z = normal((min(rows, PRIOR_DRAWS - start), 1, self.n_latent), dtype=self.dtype)
        codes = backend.to_device(np.full(len(z), code), self.device)
        log_library = self.library_prior(codes).loc[:, None]
        counts = _distribution(self, _decode(self, z, log_library, codes))
        means.append(backend.to_host(np.sum(counts.mean, axis=1)))
        variances.append(backend.to_host(np.sum(counts.variance, axis=1)))
    mean, variance = [np.concatenate(parts).astype(np.float64) for parts in (means, variances)]
    noise = np.log1p(variance / mean**2)
    return np.log(mean) - noise / 2.0, noise


# --------------------------------------------------------------------------------------- imputation
def imputation_error(
    counts, impute, *, fraction: float = 0.1, n_components: int = 10, seed: int = 0
) -> dict:
    """How well hidden counts are recovered, by the measure of the scVI paper (Lopez et al. 2018).

    Zeros are put in uniformly: each non-zero entry of counts (n_cells, n_genes) is set to zero with
    probability `fraction`, a draw of its own. impute: a function from the corrupted counts (CSR,
    float32) to imputed ones (n_cells, n_genes), which trains what it needs: `lambda x:
    train(x).denoise(x)`. Returns the median absolute error over the hidden entries, in counts, of
    "model", and beside it of "gene mean" (over cells) and of "pca" (`n_components` of normalised
    log1p counts, mapped back). All see the corrupted counts and their totals only. ValueError for
    another shape than that of counts.
    """
    x = sparse.csr_array(as_matrix(counts))
    hidden = backend.generator([seed, POSTERIOR]).random(x.nnz) < fraction
    if not 0 < fraction < 1 or not hidden.any():
        raise ValueError(
            f"fraction must be in (0, 1) and hide an entry; {fraction} of {x.nnz} "
            "non-zeros does not"
        )
    rows, columns = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))[hidden], x.indices[hidden]
    corrupted = sparse.csr_array(
        (np.where(hidden, 0, x.data), x.indices.copy(), x.indptr.copy()), shape=x.shape
    )
    corrupted.eliminate_zeros()
    imputed = np.asarray(impute(corrupted.copy()))
    if imputed.shape != x.shape:
        raise ValueError(f"impute returned shape {imputed.shape} for counts of shape {x.shape}")
    found = {
        "model": imputed[rows, columns],
        "gene mean": np.asarray(corrupted.mean(axis=0)).ravel()[columns],
        "pca": _pca_imputed(corrupted, rows, columns, n_components),
    }
    return {
        name: float(np.median(np.abs(values - x.data[hidden]))) for name, values in found.items()
    }


def _pca_imputed(x, rows, columns, n_components):
    """Counts at (rows, columns) of a CSR matrix, by its first principal components; memory
    O(n_genes^2).
    """
    y, totals = log1p(normalize(x)).astype(np.float64), np.asarray(x.sum(axis=1)).ravel()
    mean = np.asarray(y.mean(axis=0)).ravel()
    covariance = (y.T @ y).toarray() / y.shape[0] - np.outer(mean, mean)
    axes = np.linalg.eigh(covariance)[1][:, -n_components:]
    scores = y @ axes - mean @ axes
    normalized = np.expm1(mean[columns] + np.einsum("ik,ik->i", scores[rows], axes[columns]))
    return np.maximum(normalized, 0.0) * totals[rows] / np.median(totals[totals > 0])


# -------------------------------------------------------------------------------------------- differential expression
class DifferentialExpression:
    """Genes compared between two groups of cells a and b, one a row, best first. `table["lfc_mean"]` is a column.

    columns, a dict of arrays (n_genes,):
      gene               name
      probability        of the hypothesis: p = (k + 1/2) / (n + 1) where it held in k of n pairs (the mean under
                         Jeffreys' prior, never 0 or 1). "vanilla": rho_a > rho_b; a tie counts half. "change": the
                         log2 fold change is beyond delta, to the side where it more often is
      probability_error  Monte Carlo standard error of it, sqrt(p (1 - p) / n): the pairs are independent draws
      bayes_factor       log p / (1 - p), in nats: log posterior odds, the prior ones being even. n pairs bound its size
                         by log(2 n + 1)
      rho_a, rho_b       mean expression fraction in each group (1 for all genes together), over the same pairs
      lfc_mean, lfc_median, lfc_std
                         of log2(rho_a / rho_b) over pairs; the spread is that of cells and of the posterior together
      raw_mean_a, raw_mean_b, nonzero_a, nonzero_b
                         mean count and fraction of cells with a count, in the data as given: depth and batch included
      is_de              in the largest set of genes whose expected share of false ones is at most `fdr`

    A Bayes factor is no p-value, and `fdr` no frequentist promise: both are what this model believes, given these
    cells. More pairs make the Monte Carlo error smaller, not the cells more, nor the donors. With likelihood "zinb" a
    gene that one group lacks may be explained by structural zeros instead of a small rho: compare the raw columns, or
    train with "nb".
    """

    def __init__(self, columns, *, mode, n_samples: int, delta, fdr):
        self.columns, self.mode, self.n_samples, self.delta, self.fdr = (
            columns,
            mode,
            n_samples,
            delta,
            fdr,
        )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise KeyError(f"the table has no column {name!r}; it has {list(self.columns)}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["gene"])

    def __str__(self) -> str:
        return self.head(10)

    __repr__ = __str__

    def head(self, n: int) -> str:
        """The first n rows as text."""
        hypothesis = (
            "rho_a > rho_b" if self.mode == "vanilla" else f"log2 fold change beyond {self.delta:g}"
        )
        lines = [
            f"{hypothesis} in {self.n_samples:,} pairs of cells; {np.sum(self['is_de']):,} of {len(self):,} genes "
            f"at an expected FDR of {self.fdr:g}. Bayes factors are no p-values."
        ]
        shown = {name: [_short(v) for v in column[:n]] for name, column in self.columns.items()}
        widths = {name: max(len(name), *map(len, values)) for name, values in shown.items()}
        lines.append("  ".join(name.rjust(widths[name]) for name in shown))
        lines += [
            "  ".join(shown[name][i].rjust(widths[name]) for name in shown)
            for i in range(min(n, len(self)))
        ]
        return "\n".join(lines + [f"... {len(self) - n:,} more"] * (len(self) > n))

    def to_csv(self, path) -> None:
        """Write all rows, with a first line of column names. Warns of genes that a spreadsheet takes for formulas."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.columns)
            writer.writerows(zip(*[column.tolist() for column in self.columns.values()]))
        warn_of_formulas(map(str, self["gene"]))

    def volcano(self, path, n_labels: int = 16) -> None:
        """Draw Bayes factors against fold changes into a picture file (.png, .pdf, .svg); the first genes are named."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.add_subplot()
        x, bayes, is_de = self["lfc_median"], self["bayes_factor"], self["is_de"]
        y = np.abs(bayes) if self.mode == "vanilla" else bayes
        for chosen, color, label in (
            (is_de & (x <= 0), "#0072B2", "higher in b"),
            (~is_de, "#999999", "neither"),
            (is_de & (x > 0), "#D55E00", "higher in a"),
        ):
            axes.scatter(
                x[chosen],
                y[chosen],
                s=16,
                color=color,
                alpha=0.7,
                linewidths=0,
                label=f"{label} ({np.sum(chosen):,} genes)",
            )
        reach = 1.35 * max(np.max(np.abs(x)), 1e-3)
        axes.set(
            xlim=(-reach, reach),
            xlabel="log2 fold change of rho, a over b (median over pairs)",
            ylabel=("|log Bayes factor|" if self.mode == "vanilla" else "log Bayes factor")
            + " (nats)",
        )
        for side in (-1, 1):
            chosen = np.flatnonzero(np.where(x > 0, 1, -1) == side)[: n_labels // 2]
            _name_genes(axes, self["gene"][chosen], x[chosen], y[chosen], side * reach)
        figure.legend(
            loc="outside lower center", ncols=3, frameon=False, title=f"expected FDR {self.fdr:g}"
        )
        figure.savefig(path, dpi=150)


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def _name_genes(axes, names, x, y, edge) -> None:
    """Names in a column at one edge, each with a line to its point; in an order in which few lines cross."""
    bottom, top = axes.get_ylim()
    for i, k in enumerate(np.lexsort((-np.abs(x), -y))):
        axes.annotate(
            names[k],
            (x[k], y[k]),
            parse_math=False,  # a `$` in a name is a `$`
            xytext=(0.98 * edge, top - (i + 1) * 0.06 * (top - bottom)),
            fontsize=8,
            ha="left" if edge < 0 else "right",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#BBBBBB",
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def differential_expression(
    self,
    counts,
    group_a: Array,
    group_b: Array | None = None,
    mode: str = "vanilla",
    n_samples: int = 5000,
    delta: float = 0.25,
    fdr: float = 0.05,
    batch: Array | str | None = None,
    genes=None,
    seed: int = 0,
    layer: str | None = None,
) -> DifferentialExpression:
    """Which genes two groups of cells express differently: a DifferentialExpression, which documents its columns.

    group_a, group_b: boolean masks (n_cells,) or positions of cells; group_b=None: all other cells. n_samples pairs are
    drawn, a random cell of each group and z from the posterior of each, and both are decoded in the same batch, drawn
    in the proportions of the two groups together: so batches are averaged over. Each pair gives two rho to compare
    (course, block 5, "Uses: differential gene expression"; Lopez et al. 2018).
    mode: "vanilla", the hypothesis rho_a > rho_b, sorted by |Bayes factor|; or "change", a log2 fold change beyond
    delta, sorted by probability (of equals, first those whose fold change is more standard deviations from 0). The side
    is part of the hypothesis: a gene that varies much within groups differs within many pairs, to either side alike.
    fdr: expected share of genes with a false hypothesis (or sign) among those marked `is_de` (Newton et al. 2004).
    genes: names (n_genes,), by default the model's. Cells without counts are left out. Memory O(n_samples * n_genes).
    Raises ValueError for groups that are empty, overlap, or are no masks or positions, and for unknown batches.
    """
    if mode not in ("vanilla", "change"):
        raise ValueError(f"mode must be 'vanilla' or 'change', not {mode!r}")
    if not 0 <= delta < np.inf or not 0 < fdr < 1:
        raise ValueError(f"delta must be at least 0 and fdr between 0 and 1, not {delta} and {fdr}")
    n_samples = _whole("n_samples", n_samples)
    x, codes = self.minibatches(
        counts, batch, layer, on_disk=False
    ).columns  # pairs are of any cells, in any order
    names, groups = _gene_names(self, counts, genes), _groups(x, group_a, group_b)
    lfc, rho = _pairs(self, x, codes, groups, n_samples, seed)
    found, raw = (
        _summary(lfc, delta if mode == "change" else None),
        [_raw(take_rows(x, cells)) for cells in groups],
    )
    p, evidence = (
        found["probability"],
        np.abs(found["bayes_factor"]) if mode == "vanilla" else found["probability"],
    )
    columns = dict(
        gene=names,
        **found,
        rho_a=rho[0],
        rho_b=rho[1],
        raw_mean_a=raw[0][0],
        raw_mean_b=raw[1][0],
        nonzero_a=raw[0][1],
        nonzero_b=raw[1][1],
        is_de=_expected_fdr_set(p if mode == "change" else np.maximum(p, 1.0 - p), fdr),
    )
    order = np.lexsort(
        (-np.abs(found["lfc_mean"]) / np.maximum(found["lfc_std"], 1e-12), -evidence)
    )
    return DifferentialExpression(
        {name: column[order] for name, column in columns.items()},
        mode=mode,
        n_samples=n_samples,
        delta=delta,
        fdr=fdr,
    )


def _raw(x):
    """Mean count and fraction of cells with a count, of each gene: two (n_genes,)."""
    return (
        np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / x.shape[0],
        np.asarray((x != 0).sum(axis=0)).ravel() / x.shape[0],
    )


def _pairs(self, x, codes, groups, n_samples, seed):
    """log2 fold changes (n_samples, n_genes) of random pairs of cells, and the mean rho of either side (2, n_genes)."""
    rng = backend.generator([seed, POSTERIOR])
    picked = np.stack([cells[rng.integers(len(cells), size=n_samples)] for cells in groups])
    in_batch = codes[rng.choice(np.concatenate(groups), n_samples)]
    cells, at = np.unique(picked, return_inverse=True)
    at = at.reshape(picked.shape)
    mean, std = self.latent(
        take_rows(x, cells), np.asarray(self.batches)[codes[cells]], return_std=True
    )
    lfc, rho = np.empty((n_samples, self.n_genes), self.dtype), np.zeros((2, self.n_genes))
    step = max(1, BUDGET // (2 * self.n_genes))
    with evaluating(self):
        for start in range(0, n_samples, step):
            of, codes_of = at[:, start : start + step], in_batch[start : start + step]
            z = mean[of] + std[of] * rng.standard_normal(
                (*of.shape, self.n_latent), dtype=self.dtype
            )
            no_library = np.zeros((of.size, 1), self.dtype)  # rho is the same for any
            inputs = z.reshape(of.size, -1), no_library, np.tile(codes_of, 2)
            decoded = self.generative(*[backend.to_device(a, self.device) for a in inputs])
            log_rho = decoded["log_rho"].numpy().reshape(*of.shape, -1)
            rho += np.exp(log_rho).sum(axis=1)
            lfc[start : start + step] = (log_rho[0] - log_rho[1]) / np.log(2.0)
    return lfc, rho / n_samples


def _summary(lfc, delta) -> dict:
    """Columns (n_genes,) from fold changes lfc (n, n_genes). delta: that of mode "change"; None: mode "vanilla"."""
    n, n_genes = lfc.shape
    p, mean, median, std = np.empty((4, n_genes))
    for start in range(0, n_genes, 256):
        part, genes = lfc[:, start : start + 256].astype(np.float64), slice(start, start + 256)
        if delta is None:
            held = np.sum(part > 0, axis=0) + 0.5 * np.sum(part == 0, axis=0)
        else:
            held = np.maximum(np.sum(part > delta, axis=0), np.sum(part < -delta, axis=0))
        p[genes] = (held + 0.5) / (n + 1)
        mean[genes], median[genes], std[genes] = (
            part.mean(axis=0),
            np.median(part, axis=0),
            part.std(axis=0),
        )
    return dict(
        probability=p,
        probability_error=np.sqrt(p * (1.0 - p) / n),
        bayes_factor=special.logit(p),
        lfc_mean=mean,
        lfc_median=median,
        lfc_std=std,
    )


def _expected_fdr_set(probability, fdr) -> np.ndarray:
    """The largest set of genes, most probable first, of which an expected share of at most fdr is false: a mask."""
    order = np.argsort(-probability, kind="stable")
    expected = np.cumsum(1.0 - probability[order]) / np.arange(1, len(order) + 1)
    chosen = np.zeros(len(order), bool)
    chosen[order[: np.searchsorted(expected, fdr, side="right")]] = True
    return chosen


def _gene_names(self, counts, genes) -> np.ndarray:
    """Names of the genes: those given, or the model's, or those of the counts, or gene_0, gene_1 ..."""
    given = [
        names
        for names in (
            genes,
            self.genes,
            getattr(counts, "genes", getattr(counts, "var_names", None)),
        )
        if names is not None
    ]
    names = (
        np.asarray(given[0]).astype(str)
        if given
        else np.array([f"gene_{i}" for i in range(self.n_genes)])
    )
    if names.shape != (self.n_genes,):
        raise ValueError(
            f"genes: has shape {names.shape}, must be the names of the {self.n_genes} genes of the model"
        )
    return names


def _groups(x, group_a, group_b) -> list:
    """Positions of the cells with counts in each of two groups; ValueError where they make no sense."""
    n_cells = x.shape[0]
    a = _positions(group_a, n_cells, "group_a")
    b = (
        np.setdiff1d(np.arange(n_cells), a)
        if group_b is None
        else _positions(group_b, n_cells, "group_b")
    )
    both = np.intersect1d(a, b)
    if len(both):
        raise ValueError(
            f"group_a and group_b share {len(both)} cells, such as {both[0]}; a cell can be in one only"
        )
    counted = np.asarray(x.sum(axis=1)).ravel() > 0
    for name, cells in (("group_a", a), ("group_b", b)):
        if not np.any(counted[cells]):
            raise ValueError(f"{name} holds no cells" + " with counts" * (len(cells) > 0))
    return [cells[counted[cells]] for cells in (a, b)]


def _positions(group, n_cells: int, name: str) -> np.ndarray:
    """A boolean mask or positions of cells, as sorted positions; ValueError for anything else."""
    group = np.asarray(group)
    if group.dtype == bool and group.shape == (n_cells,):
        return np.flatnonzero(group)
    if group.ndim != 1 or (group.size and group.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be a boolean mask of {n_cells} cells or a list of positions, not {group.dtype} "
            f"of shape {group.shape}; from labels, make a mask: labels == 'B cell'"
        )
    cells, times = np.unique(group.astype(np.int64), return_counts=True)
    if len(cells) and (cells[0] < 0 or cells[-1] >= n_cells):
        raise ValueError(
            f"{name} has positions from {cells[0]} to {cells[-1]}; there are cells 0 to {n_cells - 1}"
        )
    if np.any(times > 1):
        twice = cells[np.argmax(times > 1)]
        raise ValueError(
            f"{name} lists cell {twice} more than once; a mask is of booleans, not of 0 and 1"
        )
    return cells

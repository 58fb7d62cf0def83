"""What a trained model is asked: bounds and likelihoods, denoised expression, and samples.

This is a lesson.

Know before reading: scvi.py's docstring. The functions take the model as `self`, and SCVI lists
them as its methods; VAE, which has no batches and no libraries, uses `log_mean_exp` of them. They
ask of a model what SCVI documents: `minibatches`, `inference`, `generative`, `log_prob`, and the
two sources of a library size.

All are Monte Carlo estimates from draws of q(z | x), of which a cell's are a function of the seed
and of the cell's position: how many cells or draws are decoded at a time changes memory, not
results.
Log-probabilities come in float64, expression and counts in the dtype of the model.

Know after: how an intractable log p(x) is estimated, and what "expression" means for a model that
has batches.
"""

from __future__ import annotations

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
from models.inputs import whole_number

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
    n_samples, data = whole_number("n_samples", n_samples), self.minibatches(counts, batch, layer)
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
    n_samples, data = whole_number("n_samples", n_samples), self.minibatches(counts, batch, layer)
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
    log_p = count_distribution(self, own).log_prob(np.zeros_like(own["log_mu"]))
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
    n_samples, data = whole_number("n_samples", n_samples), self.minibatches(counts, batch, layer)
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
def count_distribution(
    self, parameters: dict
) -> Poisson | NegativeBinomial | ZeroInflatedNegativeBinomial:
    """The distribution of counts with these parameters, plain arrays of shape (n, n_genes).

    parameters: what `generative` says, by name. (ZI)NB or Poisson, by the model's likelihood.
    """
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
    n_samples, data = whole_number("n_samples", n_samples), self.minibatches(counts, batch, layer)
    noise = _noise(seed, self.device)
    found = np.empty((n_samples, len(data.rows), self.n_genes), self.dtype)
    with evaluating(self):
        for cells, x, codes, _, q_l, draws in _posteriors(self, data, n_samples, noise):
            start = 0
            for z, log_library in draws:
                of_draws = count_distribution(self, _decode(self, z, log_library, codes))
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
    n, noise, rows = whole_number("n", n), _noise(seed, self.device), max(1, BUDGET // self.n_genes)
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
            of_cells = count_distribution(self, _decode(self, z, log_library[:, None], of))
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
        counts = count_distribution(self, _decode(self, z, log_library, codes))
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

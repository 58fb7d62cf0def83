"""Questions to a trained model: how likely are cells, what do they express, how do new ones look?

This is a lesson. A model with a latent state z has no formula for the likelihood of a cell x: p(x)
is an integral over all z. But it can be estimated. Draw z from the encoder's guess q(z | x), and
give each draw a weight that makes up for its being drawn from q, and not from the prior p(z):

    p(x) = integral of p(x | z) p(z) dz = E_q[w],    w = p(x | z) p(z) / q(z | x)

Take a model so small that all is known, z ~ Normal(0, 1) and x ~ Normal(z, 1) (mean and standard
deviation). Then p(x) = Normal(0, sqrt(2)), and for x = 2 the true p(z | x) is Normal(1, 0.71). The
guess q is somewhat off, and ten thousand draws of it say:

    >>> x = 2.0
    >>> q = Normal(np.full((10000, 1), 0.5), 0.8)
    >>> z = q.sample(np.random.default_rng(0))
    >>> log_w = Normal(z, 1.0).log_prob(x) + Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)
    >>> log_p, error = log_mean_exp([log_w])
    >>> [round(float(value), 3) for value in (np.mean(log_w), log_p[0], error[0])]
    [-2.527, -2.261, 0.006]
    >>> round(float(Normal(0.0, np.sqrt(2.0)).log_prob(x)), 3)
    -2.266

The log of the mean of w, the second number, is log p(x) within its error, the third. The mean of
log w, the first, is the ELBO, which lies below by KL(q(z | x) || p(z | x)): 0.27 for this guess.
The one is `log_likelihood`, the other `elbo`.

In scVI it is the same with networks in the place of formulas: `generative` decodes the draws,
`log_prob` says how likely the cell's counts are under each, and the library size l is a second
latent variable, or observed. All other answers are means over such draws, or draws themselves.

**Random numbers.** The noise in the draws of z and l of a cell is a function of the seed, of
n_samples, and of the cell's position among the cells that are asked about: what the other cells are
makes no difference. It is not so with drawn counts. Gamma and Poisson numbers take more random
numbers for some parameters than for others, so that a cell's counts depend on the cells before it,
too. How many cells or draws are decoded at a time (BUDGET) changes memory, and no result but for
rounding.

What makes new cells, or new counts, draws from other streams than what is asked about cells. Were
they the same, the noise that `elbo` adds to the guess of a new cell's z would be that z itself, and
the bound would come out several nats too high. For the same reason, where sampled counts are
sampled from again, give each round a seed of its own.

Log-probabilities come in float64, expression and counts in the dtype of the model.

Know before reading: scvi.py to the end of `validation`.

Know after: how an intractable log p(x) is estimated, and what "expression" means for a model that
has batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minigrad import backend
from minigrad.backend import Array, Matrix
from minigrad.data import take_rows
from minigrad.distributions import (
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    kl_divergence,
)
from minigrad.fit import evaluating
from minigrad.nn import Module
from minigrad.notebook import number_of
from minigrad.tensor import Tensor
from models import many_draws
from models.counts import batch_codes
from models.covariates import ObsColumns
from models.inputs import warn_if_untrained, whole_number
from models.measured import measured_in, warn_of_unmeasured

# Where the mean and variance of log library sizes begin, and stay if they are not read off cells.
LOG_MEAN_OF_NO_CELLS, LOG_VAR_OF_NO_CELLS = 0.0, 1.0
PRIOR_DRAWS = 256  # of z, by which it is known how totals of new cells scatter
COVARIATES = 5  # stream of random numbers, beside those of Noise: of made-up cells' covariates
BATCHES = 6  # and of their batches
# Purposes of random numbers, beside those of minigrad/data.py.
POSTERIOR = 17  # what is asked about cells
NEW_CELLS = 18  # `generate`
NEW_COUNTS = 19  # `sample_posterior`
# Entries (draws of cells x genes) decoded at a time: 2 MB an array in float32. On a GPU they are
# more, see backend.entries_at_once.
BUDGET = 1 << 19


def log_mean_exp(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """log of the mean of weights, and its standard error, from blocks of their logarithms.

    Two arrays (n_rows,) float64: log(1/n sum_i exp(log w_i)), in nats where the log w are; and its
    standard error by the delta method, NaN for a single draw. blocks: arrays (n, n_rows), n draws a
    row. ValueError unless there is at least one draw in all.

    The first is logsumexp(log w) - log(n), but the log w need not be there all at once: sums are
    kept, of weights divided by the largest so far, and so none overflows.
    """
    n = 0
    highest: Any = -np.inf  # the largest log w of each row so far
    total: Any = 0.0  # sum of all w / exp(highest)
    squares: Any = 0.0  # sum of their squares
    for log_w in blocks:
        log_w = log_w.astype(np.float64)
        before = highest
        highest = np.maximum(before, np.max(log_w, axis=0))
        level = np.where(np.isfinite(highest), highest, 0.0)  # if all weights are 0 as yet
        shrink = np.exp(before - level)  # the sums so far are relative to exp(before)
        w = np.exp(log_w - level)
        total = total * shrink + np.sum(w, axis=0)
        squares = squares * shrink**2 + np.sum(w * w, axis=0)
        n += len(log_w)
    if n == 0:
        raise ValueError("log_mean_exp: no draws to average")
    with np.errstate(divide="ignore", invalid="ignore"):
        value = level + np.log(total / n)
        if n == 1:
            return value, np.full_like(total, np.nan)
        relative_variance = (n * squares / total**2 - 1.0) / (n - 1)
        return value, np.sqrt(np.maximum(relative_variance, 0.0))


# ------------------------------------------------------------------------------- cells and draws
class Draws(NamedTuple):
    """n draws of the latent variables of each of c cells."""

    z: Array  # (c, n, n_latent)
    log_library: Array  # (c, n, 1); where the library is observed, the same in all draws of a cell


class Group(NamedTuple):
    """c cells that follow each other, what the encoder says of them, and draws of that.

    As many as memory is for: these are not the groups of cells that differential.py compares.
    The arrays are plain, and where the model is.
    """

    cells: slice  # which of all cells these are
    counts: Matrix  # (c, n_genes), dense or CSR
    codes: Array  # of their batches, (c,)
    covariates: Array  # (c, n_covariates), see covariates.py
    q_z: Normal  # q(z | x), parameters (c, n_latent)
    q_l: Normal | None  # q(log l | x), parameters (c, 1); None where the library is observed
    draws: Iterator[Draws]  # n_samples of each cell in all, as many at a time as memory is for


# --------------------------------------------------------------------------------- the questions
class AnswersByDraws(Module):
    """What a trained model of counts is asked about cells, and answers by draws of z. SCVI is one.

    The two estimates that the answers about likelihoods rest on, w being the weights of draws from
    q (see the beginning of this file):

        elbo = E_q[log w],    log_likelihood = log E_q[w]

    It asks of the model the attributes that are listed here, and these methods, which SCVI
    documents: minibatches (checked counts and batch codes), inference (q of cells), generative
    (parameters of counts, given z and l), log_rho (of these, the one that needs no l), log_prob (of
    counts, given those), and the two sources of library sizes, observed_log_library and
    library_prior.
    """

    n_genes: int
    n_latent: int
    dtype: np.dtype
    likelihood: str  # "zinb", "nb" or "poisson"
    dispersion: str  # "gene", "gene-batch" or "gene-cell"
    library: str  # "observed" or "latent"
    library_log_mean: Array  # of log totals of the training cells: (n_batches,)
    library_log_var: Array
    batch_fraction: Array  # of the training cells: (n_batches,)
    trained: bool  # whether it was ever fitted
    batches: list  # labels of batches; the code of a batch is its position here
    columns: ObsColumns  # the obs columns of covariates
    covariate_mean: Array  # of their table, over the training cells: (n_covariates,)
    genes: list | None  # their names, where they have some
    unmeasured: Mapping[str, list[str]]  # batch -> names of genes that its cells lack: measured.py

    minibatches: Callable[..., Any]
    inference: Callable[..., tuple[Normal, Normal | None]]
    generative: Callable[..., dict]
    log_rho: Callable[..., Any]
    log_prob: Callable[..., Array]
    observed_log_library: Callable[..., Array]
    library_prior: Callable[..., Normal]

    # ----------------------------------------------------------------- how likely are these cells?
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
        objectives"; Kingma & Welling 2014, eq. 3). For comparing models on the same cells, faster
        and less exactly than log_likelihood, which is never lower but for Monte Carlo error. Where
        the library is observed this bounds the likelihood given each cell's total (see there), and
        a cell without counts, whose log p is then 0, has minus its KL divergence.
        """
        n_samples = whole_number("n_samples", n_samples)
        data = self.minibatches(counts, batch, layer)
        found = np.empty(len(data.rows))
        with evaluating(self):
            for group in _groups(self, data, n_samples, Noise(seed, self.device)):
                # log w = log p(x | z, l) - (log q(z) - log p(z)) - (log q(l) - log p(l)). Of the
                # brackets the expectations are known: they are the divergences.
                kl = np.sum(kl_divergence(group.q_z, Normal(0.0, 1.0)), axis=1)
                if group.q_l is not None:
                    prior = self.library_prior(group.codes)
                    kl = kl + np.sum(kl_divergence(group.q_l, prior), axis=1)
                log_p = sum(
                    np.sum(_log_prob_of_draws(self, group, draws), axis=1) for draws in group.draws
                )
                found[group.cells] = backend.to_host(log_p / n_samples - kl)
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
        """log p(x) of each cell, (n_cells,) float64, in nats: log of the mean of p(x, z) / q(z).

        The mean is over draws of z from q. A lower bound in expectation that n_samples tightens
        (Burda et al. 2016, eq. 8): for comparing models on cells that neither has seen.
        return_error: also its Monte Carlo standard error (n_cells,), by the delta method; NaN for
        one sample. An error above 0.5 says that few draws carry the weight: q is not the posterior,
        and the true value may lie above by more than that. Memory does not grow with n_samples.

        Where the library is observed this is log p(x | l = the cell's own total): the model is told
        what it should foresee, and its values lie above log p(x) of the same model with a prior of
        l, by 0.5 to 2 nats a cell where it was measured. In theory it is up to about
        (1 + log(1 + v / s)) / 2 on average over cells, with v the variance of log l and s that of
        log totals given l, and more for a cell with an unusual total. So to compare a model
        with an observed and one with a latent library is unfair to the latter: compare within one
        kind only. Cells without counts have 0 where the library is observed, and log p(x) like all
        others where it is latent.
        """
        n_samples = whole_number("n_samples", n_samples)
        data = self.minibatches(counts, batch, layer)
        value = np.empty(len(data.rows))
        error = np.empty(len(data.rows))
        with evaluating(self):
            for group in _groups(self, data, n_samples, Noise(seed, self.device)):
                log_weights = (
                    backend.to_host(_log_weights(self, group, draws)) for draws in group.draws
                )
                value[group.cells], error[group.cells] = log_mean_exp(log_weights)
                if group.q_l is None:
                    empty = _cells_without_counts(group.counts)
                    value[group.cells][empty] = 0.0
                    error[group.cells][empty] = 0.0
        if not return_error:
            return value
        return value, error

    # ----------------------------------------------------------------- what do these cells express?
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

        Rows sum to 1. Averaged over n_samples draws of z. transform_batch: a label (or a list of
        them, which are averaged over): what would be expected had the cell been measured in that
        batch, and its own need not be known; None: its own. Covariates are held fixed: each cell
        keeps its own. For comparing genes and cells without the noise of counting, the depth of
        sequencing, and the batch. A cell without counts has what the encoder makes of it.
        ValueError for an unknown batch, with those known.
        """
        return _expected_counts(
            self, counts, batch, layer, transform_batch, n_samples, seed, library_size=1.0
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
        genes: list | None = None,
    ) -> np.ndarray:
        """mu: expected counts, (n_cells, n_genes): rho, times library size. Without extra zeros.

        library_size: what each cell's expectations are to sum to, a number or (n_cells,); None: its
        own library size, the observed one (0 for a cell without counts), or drawn from q(l); of
        genes that were not measured (measured.py) the expectations come on top of it.
        genes: names of genes, of which alone the columns are returned, in this order; None: all.
        The rest as for expression_fraction. For imputing, and for pictures of single genes.
        ValueError for a library_size that is not positive, and for unknown genes.
        """
        _check_library_size(library_size)
        columns = None if genes is None else _columns_of(self, genes)
        return _expected_counts(
            self, counts, batch, layer, transform_batch, n_samples, seed, library_size, columns
        )

    # ----------------------------------------------------------------- what would the model count?
    def sample_posterior(
        self,
        counts,
        batch: Array | str | None = None,
        *,
        n_samples: int = 1,
        seed: int = 0,
        layer: str | None = None,
    ) -> np.ndarray:
        """New counts for each cell: z from the guess q(z | x), then counts from p(x | z, l).

        (n_cells, n_genes), or (n_samples, n_cells, n_genes) for more than one; whole numbers, in
        the dtype of the model. For checking the model: do real counts look like a draw from it? A
        cell without counts stays so, unless the library is latent.
        """
        n_samples = whole_number("n_samples", n_samples)
        data = self.minibatches(counts, batch, layer)
        warn_of_unmeasured(self, counts, data.columns[1], stacklevel=3)
        noise = Noise(seed, self.device, NEW_COUNTS)
        found = np.empty((n_samples, len(data.rows), self.n_genes), self.dtype)
        with evaluating(self):
            for group in _groups(self, data, n_samples, noise):
                done = 0
                for z, log_library in group.draws:
                    c, n, _ = z.shape
                    decoded = _decode(self, z, log_library, group.codes, group.covariates)
                    p = count_distribution(self, decoded)
                    sample = p.sample(noise.counts).reshape(c, n, -1)
                    sample = backend.to_host(sample * _has_library(self, group.counts))
                    found[done : done + n, group.cells] = sample.transpose(1, 0, 2)
                    done += n
        return found[0] if n_samples == 1 else found

    def generate(
        self,
        n: int,
        *,
        batch: Array | str | None = None,
        covariates: Mapping[str, Any] | None = None,
        library_size: Array | float | None = None,
        seed: int = 0,
        return_batch: bool = False,
        return_obs: bool = False,
    ) -> Any:
        """Counts of n new cells, (n, n_genes): z ~ Normal(0, 1), log-normal library sizes.

        batch: a label for all of them, or one for each; None: batches in the proportions of the
        training cells. covariates: obs column -> a value for all of them, or one for each; of a
        column that is not named, labels are drawn in the proportions of the training cells, each
        covariate by itself, and numbers are at their mean. library_size: what the expectations of
        each cell sum to, as for denoise, a number or (n,); None: drawn. return_batch: (counts,
        labels of their batches (n,) str) instead; return_obs: (counts, all that each cell was told,
        obs column -> (n,)), with the batch as "batch" where the model knows several, and no column
        of them. Whole numbers, in the dtype of the model. For seeing what the model believes cells
        to be, and for data of which the truth is known.
        ValueError for an unknown batch or covariate, another number of labels, and where no library
        size is given and none is known: weights of scvi-tools with an observed library have none.

        Where the library is observed, logarithms of the new cells' totals have the mean and
        variance of those of the training cells (`library_log_mean`, `library_log_var`), as long as
        the counts' own noise does not exceed that variance. Where it is latent, these two are the
        prior of log l, and the noise of counts comes on top.
        """
        n = whole_number("n", n)
        _check_library_size(library_size, n)
        warn_if_untrained(self, stacklevel=2)
        codes = _batches_of_new_cells(self, n, batch, seed)
        warn_of_unmeasured(self, None, codes, stacklevel=3)
        obs = self.columns.obs_of_new_cells(
            covariates,
            n,
            backend.to_host(self.covariate_mean),
            backend.generator([seed, POSTERIOR, COVARIATES]),
        )
        table = self.columns.table(obs, n, self.dtype)
        noise = Noise(seed, self.device, NEW_CELLS)
        at_once = max(1, backend.entries_at_once(BUDGET, self.device) // self.n_genes)
        found = np.empty((n, self.n_genes), self.dtype)
        with evaluating(self):
            library = _library_of_new_cells(self, codes, table, library_size)
            for start in range(0, n, at_once):
                cells = slice(start, start + at_once)
                of_cells = backend.to_device(codes[cells], self.device)
                told = backend.to_device(table[cells], self.device)
                z = noise.z.standard_normal((len(of_cells), 1, self.n_latent), dtype=self.dtype)
                eps = noise.library.standard_normal((len(of_cells), 1), dtype=self.dtype)
                log_library = library.loc[cells] + library.scale[cells] * eps
                decoded = _decode(self, z, log_library[:, None], of_cells, told)
                p = count_distribution(self, decoded)
                found[cells] = backend.to_host(p.sample(noise.counts))
        labels = np.array([str(label) for label in self.batches])[codes]
        if return_obs:
            key = self.columns.batch or ("batch" if len(self.batches) > 1 else None)
            return found, obs if key is None else {key: labels} | obs
        return (found, labels) if return_batch else found


# ------------------------------------------------------------------------- how draws are made
class CountNoise(NamedTuple):
    """What `sample` of a distribution of counts asks of a generator, each of a stream of its own.

    It takes the place of the generator: `Poisson(log_rate).sample(noise)`. One stream would mix
    what a cell gets with how many cells are sampled at a time: see Noise.
    """

    standard_gamma: Callable[..., Array]
    poisson: Callable[..., Array]
    random: Callable[..., Array]


class Noise:
    """Streams of random numbers for one purpose, such as POSTERIOR, all from one seed.

    Each stream is used in the order of the cells, and of the draws of a cell. So what a cell gets
    does not depend on how many cells are decoded at a time, as it would if the streams were one:
    there all z of a group of cells would come before the first counts of it.
    """

    def __init__(self, seed: int, device: str, purpose: int = POSTERIOR):
        def stream(i):
            return backend.generator([seed, purpose, i], device)

        self.z = stream(0)
        self.library = stream(1)
        self.counts: Any = CountNoise(  # taken for a generator
            standard_gamma=stream(2).standard_gamma,
            poisson=stream(3).poisson,
            random=stream(4).random,
        )


def _groups(model, data, n_samples: int, noise: Noise) -> Iterator[Group]:
    """All cells in groups, in their order, with n_samples draws of each from its posterior.

    data: what the model's `minibatches` gives. The draws of a group are to be used up before the
    next group is asked for: both take their numbers from the same streams of noise, in order.
    """
    draws_at_once = max(1, backend.entries_at_once(BUDGET, model.device) // model.n_genes)
    cells_at_once = max(1, draws_at_once // n_samples)
    first = 0  # cell of the minibatch, among all
    for minibatch in data:
        counts, codes, covariates = [backend.rows_on(a, model.device) for a in minibatch]
        q_z, q_l = model.inference(counts, batch=codes, covariates=covariates)
        n_cells = len(codes)
        for start in range(0, n_cells, cells_at_once):
            stop = min(start + cells_at_once, n_cells)
            part = slice(start, stop)
            counts_of_part = take_rows(counts, np.arange(start, stop))
            q_z_of_part = Normal(q_z.loc.data[part], q_z.scale.data[part])
            if q_l is None:
                q_l_of_part = None
                library = model.observed_log_library(counts_of_part)
            else:
                q_l_of_part = Normal(q_l.loc.data[part], q_l.scale.data[part])
                library = q_l_of_part
            yield Group(
                cells=slice(first + start, first + stop),
                counts=counts_of_part,
                codes=codes[part],
                covariates=covariates[part],
                q_z=q_z_of_part,
                q_l=q_l_of_part,
                draws=_draws(q_z_of_part, library, n_samples, draws_at_once, noise),
            )
        first += n_cells


def _draws(q_z: Normal, library, n_samples: int, draws_at_once: int, noise) -> Iterator[Draws]:
    """n_samples draws of each of c cells, some at a time.

    q_z: parameters (c, n_latent). library: q(log l | x), or the observed log library, (c, 1).
    """
    c, n_latent = q_z.loc.shape
    n_at_once = max(1, draws_at_once // c)
    for done in range(0, n_samples, n_at_once):
        n = min(n_at_once, n_samples - done)
        eps = noise.z.standard_normal((c, n, n_latent), dtype=q_z.loc.dtype)
        z = _for_each_draw(q_z).rsample(eps=eps)
        if isinstance(library, Normal):
            eps = noise.library.standard_normal((c, n, 1), dtype=q_z.loc.dtype)
            log_library = _for_each_draw(library).rsample(eps=eps)
        else:
            log_library = np.broadcast_to(library[:, None], (c, n, 1))
        yield Draws(z, log_library)


def _for_each_draw(p: Normal) -> Normal:
    """The distribution of c cells, parameters (c, d), with those of c cells' draws: (c, 1, d)."""
    return Normal(p.loc[:, None], p.scale[:, None])


def _decode(model, z, log_library, codes, covariates) -> dict:
    """What `generative` says of draws of c cells: log_rho, log_mu, log_theta and zi_logits.

    Plain arrays of c * n rows, all draws of the first cell first; or None. z: (c, n, n_latent);
    log_library: (c, n, 1); codes: of batches, (c,); covariates: (c, n_covariates).
    """
    c, n, _ = z.shape
    z, *told = _by_row(z, codes, covariates)
    parameters = model.generative(z, log_library.reshape(c * n, 1), *told)
    return {name: p.data if isinstance(p, Tensor) else p for name, p in parameters.items()}


def _by_row(z, codes, covariates) -> tuple:
    """z (c, n, n_latent), codes (c,) and covariates (c, n_covariates), with a row for each draw."""
    c, n, _ = z.shape
    return z.reshape(c * n, -1), np.repeat(codes, n), np.repeat(covariates, n, axis=0)


def count_distribution(
    model: AnswersByDraws, parameters: dict
) -> Poisson | NegativeBinomial | ZeroInflatedNegativeBinomial:
    """The distribution of counts with these parameters, plain arrays of shape (n, n_genes).

    parameters: what `generative` says, by name. (ZI)NB or Poisson, by the model's likelihood.
    """
    if model.likelihood == "poisson":
        return Poisson(parameters["log_mu"])
    if model.likelihood == "nb":
        return NegativeBinomial(parameters["log_mu"], parameters["log_theta"])
    return ZeroInflatedNegativeBinomial(
        parameters["log_mu"], parameters["log_theta"], parameters["zi_logits"]
    )


# --------------------------------------------------------------------------- likelihoods of draws
def _log_weights(model, group: Group, draws: Draws):
    """log of p(x | z, l) p(z) p(l) / (q(z) q(l)) of each draw: (n, c) float64."""
    z, log_library = draws
    log_w = _log_prob_of_draws(model, group, draws)
    log_w = log_w + _log_ratio(Normal(0.0, 1.0), _for_each_draw(group.q_z), z)
    if group.q_l is not None:
        prior = _for_each_draw(model.library_prior(group.codes))
        log_w = log_w + _log_ratio(prior, _for_each_draw(group.q_l), log_library)
    return log_w.T


def _log_ratio(p: Normal, q: Normal, draws):
    """log p(draws) - log q(draws), summed over dimensions: (c, n), for draws (c, n, d)."""
    return np.sum(p.log_prob(draws) - q.log_prob(draws), axis=-1)


def _log_prob_of_draws(model, group: Group, draws: Draws):
    """log p(x | z, l) of the c cells of a group, under n draws of each: (c, n) float64.

    A cell without counts has 0 where the library is observed, and is otherwise as any other: the
    sum over genes of log p(0).
    """
    z, log_library = draws
    counts = group.counts
    n = z.shape[1]
    decoded = _decode(model, z, log_library, group.codes, group.covariates)
    theta_differs_by_draw = model.dispersion == "gene-cell"
    if backend.on_host(decoded.values()) and not theta_differs_by_draw:
        log_p = many_draws.log_prob(model.likelihood, counts, n, decoded)  # the same, but quicker
    else:
        log_p = _log_prob_of_copies(model, counts, n, log_library, decoded)
    for i in _cells_without_counts(counts):
        if model.library == "observed":
            log_p[i] = 0.0
        else:
            log_p[i] = _log_prob_of_no_counts(model, n, i, decoded)
    return log_p


def _log_prob_of_copies(model, counts, n: int, log_library, decoded):
    """The model's log_prob of n copies of each cell, each under a draw of its own: (c, n) float64.

    log_prob asks for logits of rho, and is given log_rho. That is right because rho is the softmax
    of its logits, and softmax(log_rho) is exp(log_rho) / sum(exp(log_rho)) = rho / 1.
    """
    c = counts.shape[0]
    log_p = model.log_prob(
        take_rows(counts, np.repeat(np.arange(c), n)),
        log_library.reshape(c * n, 1),
        logits=decoded["log_rho"],
        log_theta=decoded["log_theta"],
        zi_logits=decoded["zi_logits"],
    )
    return log_p.reshape(c, n).astype(np.float64)


def _log_prob_of_no_counts(model, n: int, i: int, decoded):
    """log p of no counts at all, (n,), under the n draws of cell i."""
    rows = slice(i * n, (i + 1) * n)
    own = {}
    for name, p in decoded.items():
        is_same_in_all_rows = p is None or p.ndim == 1
        own[name] = p if is_same_in_all_rows else p[rows]
    log_p = count_distribution(model, own).log_prob(np.zeros_like(own["log_mu"]))
    return np.sum(log_p.astype(np.float64), axis=1)


def _totals(counts):
    """Sum of the counts (c, n_genes) of each cell: (c,), where the counts are."""
    return backend.as_array(counts.sum(axis=1)).reshape(-1)


def _cells_without_counts(counts) -> np.ndarray:
    """Positions of the cells of counts (c, n_genes) that have none, on the host."""
    return np.flatnonzero(backend.to_host(_totals(counts)) == 0)


def _has_library(model, counts):
    """Which cells have a library size above 0, (c, 1, 1) bool: those with counts.

    All, where the library is latent.
    """
    has_counts = _totals(counts)[:, None, None] > 0
    if model.library == "latent":
        return np.ones_like(has_counts)
    return has_counts


# -------------------------------------------------------------------------------------- expression
def _expected_counts(
    model,
    counts,
    batch,
    layer,
    transform_batch,
    n_samples,
    seed,
    library_size,
    columns: np.ndarray | None = None,
) -> np.ndarray:
    """rho times library size, averaged over draws of z and over batches: (n_cells, n_genes).

    library_size: a number, one for each cell, or None for each cell's own. columns: positions of
    the genes wanted, None for all. The rest as for `AnswersByDraws.denoise`.
    """
    n_samples = whole_number("n_samples", n_samples)
    is_own_batch = transform_batch is None
    data = model.minibatches(counts, batch, layer, is_batch_needed=is_own_batch)
    n_cells = len(data.rows)
    if np.ndim(library_size) > 0 and len(library_size) != n_cells:
        raise ValueError(f"library_size has {len(library_size)} entries for {n_cells} cells")
    transforms: Any = [None]  # None: each cell's own batch
    if not is_own_batch:
        transforms = _codes_of(model, transform_batch, "transform_batch")
        warn_of_unmeasured(model, None, transforms, columns)
    else:
        warn_of_unmeasured(model, counts, data.columns[1], columns)
    measured = measured_in(counts)
    if measured is not None:
        measured = backend.to_device(measured.astype(model.dtype), model.device)
    n_columns = model.n_genes if columns is None else len(columns)
    found = np.zeros((n_cells, n_columns), model.dtype)
    with evaluating(model):
        for group in _groups(model, data, n_samples, Noise(seed, model.device)):
            for z, log_library in group.draws:
                sizes = _library_sizes(model, group, log_library, library_size)
                for code in transforms:
                    codes = group.codes if code is None else np.full_like(group.codes, code)
                    log_rho = model.log_rho(*_by_row(z, codes, group.covariates)).data
                    rho = np.exp(log_rho).reshape(*z.shape[:2], -1)
                    if library_size is None and measured is not None:  # of which the totals are
                        rho = rho / np.sum(rho * measured, axis=-1, keepdims=True)
                    mu = backend.to_host(np.sum(rho * sizes, axis=1))
                    found[group.cells] += mu if columns is None else mu[:, columns]
    found /= n_samples * len(transforms)
    return found


def knows_library(model) -> np.ndarray:
    """Of which batches the moments of log library sizes are known: (n_batches,) bool.

    They are where they were taken from cells, or given.
    """
    mean = backend.to_host(model.library_log_mean)
    variance = backend.to_host(model.library_log_var)
    return (mean != LOG_MEAN_OF_NO_CELLS) | (variance != LOG_VAR_OF_NO_CELLS)


def _check_library_size(library_size, n: int | None = None) -> None:
    """ValueError unless library_size is None, a positive number, or one for each cell.

    n: how many cells there are; None: not known yet.
    """
    if library_size is None:
        return
    sizes = np.asarray(library_size)
    if sizes.dtype.kind not in "iuf":
        raise ValueError(
            f"library_size must be a number, or one of each cell, not {library_size!r}"
        )
    if not (np.all(np.isfinite(sizes)) and np.all(sizes > 0)):
        raise ValueError(f"library_size must be positive and finite, not {library_size}")
    if n is not None and sizes.shape not in ((), (n,)):
        raise ValueError(f"library_size has shape {sizes.shape} for n={n} cells; give one, or (n,)")


def _library_sizes(model, group: Group, log_library, library_size):
    """What the expectations of each draw of a group of cells are to sum to.

    A number, or (c, n, 1); or (c, 1, 1), if all draws of a cell have the same. library_size: see
    `_expected_counts`.
    """
    if library_size is None:
        return np.exp(log_library) * _has_library(model, group.counts)
    if np.ndim(library_size) == 0:
        return float(library_size)  # NumPy would compute beside a number of its own in float64
    of_cells = np.asarray(library_size)[group.cells, None, None]
    return backend.to_device(of_cells, model.device)


def _columns_of(model, genes) -> np.ndarray:
    """Positions of genes by name; ValueError for those that the model does not know."""
    if isinstance(genes, str):
        raise ValueError(f"genes must be a list of names, not {genes!r}; pass [{genes!r}]")
    known = model.genes
    if known is None:
        known = [f"gene_{i}" for i in range(model.n_genes)]
    position = {name: i for i, name in enumerate(known)}
    unknown = [name for name in genes if name not in position]
    if unknown or len(genes) == 0:
        raise ValueError(
            f"genes: {', '.join(map(str, unknown)) or 'none given'}; the model has no such genes, "
            f"but {model.n_genes:,} others, such as {', '.join(known[:5])}; pass names of these"
        )
    return np.array([position[name] for name in genes])


def _codes_of(model, labels, name: str) -> np.ndarray:
    """Codes of one or several batch labels; ValueError with the known ones for another."""
    labels = np.atleast_1d(labels)
    if not len(labels):
        raise ValueError(f"{name}: no batch given")
    return batch_codes(labels, len(labels), known=model.batches, name=name, advice="")[0]


# --------------------------------------------------------------------------------------- new cells
def _batches_of_new_cells(model, n: int, batch, seed: int) -> np.ndarray:
    """Codes of the batches of n new cells, (n,): see `AnswersByDraws.generate`."""
    if batch is None:
        edges = np.cumsum(backend.to_host(model.batch_fraction), dtype=np.float64)
        where = backend.generator([seed, NEW_CELLS, BATCHES]).random(n)
        return np.searchsorted(edges[:-1] / edges[-1], where, side="right")
    codes = _codes_of(model, batch, "batch")
    if len(codes) not in (1, n):
        raise ValueError(
            f"batch: {number_of(len(codes), 'label')} for n={n} cells; give one for all, "
            "or one for each"
        )
    return np.broadcast_to(codes, n)


def _library_of_new_cells(model, codes, covariates, library_size) -> Normal:
    """p(log l) of new cells, parameters (n, 1), where the model is.

    codes: of their batches, (n,); covariates: theirs, (n, n_covariates); library_size: a number, or
    (n,), to which l is then fixed; None: unknown.

    A latent library has its prior. An observed one stands for the total, whose logarithm has mean m
    = library_log_mean and variance v = library_log_var over the training cells. But totals of
    counts that are drawn scatter around l: given z and log l = m they have mean M = sum_g E[x_g],
    below l where there are extra zeros, and variance V = sum_g Var[x_g]; taken as log-normal,

        log total ~ Normal(log M - s/2, variance s),  s = log(1 + V / M^2)

    What z and counting add to m and v, E_z[log M - s/2] - m and E_z[s] + Var_z[log M - s/2], is
    taken out of the two. A variance has nothing left where they add more than v. Say that log
    totals have m = 7 and v = 0.25, and that those of new cells with log l = 7 come out at
    log M - s/2 = 6.9 on average over z, with a variance of 0.04 over z, and s = 0.01. Then log l is
    drawn with a mean of 7.1 and a variance of 0.25 - 0.05 = 0.2, and the totals have 7 and 0.25.
    """

    def of_cells(loc, scale) -> Normal:
        columns = [
            np.broadcast_to(a, len(codes)).astype(model.dtype)[:, None] for a in (loc, scale)
        ]
        return Normal(*[backend.to_device(column, model.device) for column in columns])

    if library_size is not None:
        return of_cells(np.log(library_size), 0.0)
    mean = backend.to_host(model.library_log_mean).astype(np.float64)
    variance = backend.to_host(model.library_log_var).astype(np.float64)
    if not np.all(knows_library(model)[codes]):
        raise ValueError(
            "library_size: how many counts cells have is not known to a model that was never "
            "fitted, nor to weights of scvi-tools with an observed library: give library_size= "
            "here, or library_log_mean= and library_log_var= to SCVI or from_scvi_tools"
        )
    if model.library == "observed":
        for code in np.unique(codes):
            centre, spread = _totals_of_new_cells(model, code, covariates[codes == code])
            shift = centre.mean() - mean[code]
            mean[code] -= shift
            variance[code] -= spread.mean() + centre.var()
    return of_cells(mean[codes], np.sqrt(np.maximum(variance, 0.0))[codes])


def _totals_of_new_cells(model, code: int, covariates) -> tuple[np.ndarray, np.ndarray]:
    """log M - s/2 and s of `_library_of_new_cells` for draws of z in one batch.

    Two arrays (PRIOR_DRAWS,) float64. covariates: of the new cells there, (n, n_covariates).
    """
    rng = backend.generator([POSTERIOR, code], model.device)
    at_once = max(1, backend.entries_at_once(BUDGET, model.device) // model.n_genes)
    means = []
    variances = []
    for start in range(0, PRIOR_DRAWS, at_once):
        n = min(at_once, PRIOR_DRAWS - start)
        z = rng.standard_normal((n, 1, model.n_latent), dtype=model.dtype)
        codes = backend.to_device(np.full(n, code), model.device)
        told = covariates[np.arange(start, start + n) % len(covariates)]
        told = backend.to_device(told, model.device)
        log_library = model.library_prior(codes).loc[:, None]
        p = count_distribution(model, _decode(model, z, log_library, codes, told))
        means.append(backend.to_host(np.sum(p.mean, axis=1)))
        variances.append(backend.to_host(np.sum(p.variance, axis=1)))
    mean = np.concatenate(means).astype(np.float64)
    variance = np.concatenate(variances).astype(np.float64)
    s = np.log1p(variance / mean**2)
    return np.log(mean) - s / 2.0, s

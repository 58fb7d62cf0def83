"""What a trained latent-variable model is asked: bounds and likelihoods, denoised expression, samples, and differences.

Know before reading: scvi.py's docstring. The functions take the model as `self`: SCVI lists them as its methods (and VAE
those that make sense for it). All are Monte Carlo estimates from draws of q(z | x), whose noise is a function of `seed`.

Know after: how an intractable log p(x) is estimated, and what "expression" means for a model that has batches.
"""
from __future__ import annotations

import numpy as np

from minigrad import backend
from minigrad.data import take_rows
from minigrad.distributions import NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from minigrad.fit import evaluating

POSTERIOR = 17        # purpose of random numbers, beside those of minigrad/data.py
BUDGET = 2_000_000    # entries of (samples x cells x genes) decoded at a time: some 8 MB an array in float32


# ------------------------------------------------------------------------------------------------ bounds and likelihoods
def elbo(self, counts, batch=None, *, n_samples=1, seed=0, layer=None) -> np.ndarray:
    """The evidence lower bound of each cell, KL weight 1, averaged over n_samples draws: (n_cells,), in nats.

    For comparing models on the same cells, faster and less exactly than log_likelihood.
    """
    found = []
    with evaluating(self):
        for i, (x, codes) in enumerate(self.minibatches(counts, batch, layer)):
            rng = backend.generator([seed, POSTERIOR, i])
            found.append(sum(self.validation(x, codes, rng=rng)["elbo"] for _ in range(n_samples)) / n_samples)
    return np.concatenate(found)


def log_likelihood(self, counts, batch=None, *, n_samples=1000, seed=0, return_error=False, layer=None):
    """log p(x) of each cell, (n_cells,), in nats: importance-weighted, log of the mean over z ~ q of p(x, z) / q(z).

    A lower bound in expectation that n_samples tightens (Burda et al. 2016, eq. 8). return_error: also its Monte Carlo
    standard error (delta method), (n_cells,). Memory does not grow with n_samples. Cells without counts have 0.
    """
    values, errors = [], []
    with evaluating(self):
        for i, (x, codes) in enumerate(self.minibatches(counts, batch, layer, size=128)):
            rng = backend.generator([seed, POSTERIOR, i])
            q_z, q_l = self.inference(x)

            def log_weights(n):
                return _log_weights(self, x, codes, q_z, q_l, n, rng)
            value, error = log_mean_exp(log_weights, n_samples, block=max(1, BUDGET // (x.shape[0] * x.shape[1])))
            empty = np.asarray(x.sum(axis=1)).ravel() == 0
            values.append(np.where(empty, 0.0, value))
            errors.append(np.where(empty, 0.0, error))
    return (np.concatenate(values), np.concatenate(errors)) if return_error else np.concatenate(values)


def _log_weights(self, x, codes, q_z, q_l, n, rng):
    """log of p(x | z, l) p(z) p(l) / (q(z) q(l)) for n draws of z (and l) a cell: (n, n_cells)."""
    z = q_z.loc.data + q_z.scale.data * rng.standard_normal((n, *q_z.loc.shape), dtype=self.dtype)
    rest = np.sum(Normal(0.0, 1.0).log_prob(z) - Normal(q_z.loc.data, q_z.scale.data).log_prob(z), axis=-1)
    log_library, n_cells = self.observed_log_library(x), len(codes)
    if q_l is not None:
        log_library = q_l.loc.data + q_l.scale.data * rng.standard_normal((n, n_cells, 1), dtype=self.dtype)
        q = Normal(q_l.loc.data, q_l.scale.data)
        rest = rest + (self.library_prior(codes).log_prob(log_library) - q.log_prob(log_library))[..., 0]
    log_library = np.broadcast_to(log_library, (n, n_cells, 1)).reshape(-1, 1)
    parameters = self.generative(z.reshape(n * n_cells, -1), log_library, np.tile(codes, n))
    repeated = take_rows(x, np.tile(np.arange(n_cells), n))
    log_p = self.log_prob(repeated, {k: getattr(p, "data", p) for k, p in parameters.items()})
    return log_p.reshape(n, n_cells).astype(np.float64) + rest


def log_mean_exp(log_weights, n_samples: int, block: int):
    """log of the mean of n_samples weights, and its standard error, from blocks that `log_weights(n)` draws.

    log_weights(n): array (n, n_rows) of log-weights, n draws a row. Only running sums are kept. Returns two (n_rows,).
    """
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")
    highest, total, squares = -np.inf, 0.0, 0.0
    for start in range(0, n_samples, block):
        log_w = log_weights(min(block, n_samples - start))
        before, highest = highest, np.maximum(highest, np.max(log_w, axis=0))
        shrink, w = np.exp(before - highest), np.exp(log_w - highest)
        total = total * shrink + np.sum(w, axis=0)
        squares = squares * shrink ** 2 + np.sum(w * w, axis=0)
    relative_variance = np.maximum(n_samples * squares / total ** 2 - 1.0, 0.0)
    return highest + np.log(total / n_samples), np.sqrt(relative_variance / n_samples)


# ------------------------------------------------------------------------------------------------------------ expression
def expression_fraction(self, counts, batch=None, *, transform_batch=None, n_samples=1, seed=0, layer=None) -> np.ndarray:
    """rho: the expected fraction of each gene in a cell's expression, (n_cells, n_genes); rows sum to 1.

    Averaged over n_samples draws of z. transform_batch: a label (or a list of them, which are averaged over): what would
    be expected had the cell been measured in that batch; None: its own. For comparing genes and cells without the noise
    of counting, the depth of sequencing, and the batch.
    """
    return _decoded(self, counts, batch, transform_batch, n_samples, seed, layer, lambda rho, library: rho)


def denoise(self, counts, batch=None, *, library_size=None, transform_batch=None, n_samples=1, seed=0, layer=None):
    """mu: expected counts, (n_cells, n_genes), of the negative binomial (without extra zeros), by draws as above.

    library_size: what each cell's expectations shall sum to; None: its own library size (observed, or drawn from q(l)).
    For imputing, and for drawing pictures of single genes.
    """
    def mu(rho, library):
        return rho * (library if library_size is None else library_size)
    return _decoded(self, counts, batch, transform_batch, n_samples, seed, layer, mu)


def _decoded(self, counts, batch, transform_batch, n_samples, seed, layer, finish):
    """Mean over draws of z and over batches of finish(rho, library size), cell by cell."""
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, not {n_samples}")
    targets = None if transform_batch is None else _codes_of(self, transform_batch)
    found = []
    with evaluating(self):
        for i, (x, codes) in enumerate(self.minibatches(counts, batch, layer)):
            rng, total = backend.generator([seed, POSTERIOR, i]), 0.0
            q_z, q_l = self.inference(x)
            empty = np.asarray(x.sum(axis=1)).reshape(-1, 1) == 0
            for _ in range(n_samples):
                z = q_z.sample(rng)
                log_library = self.observed_log_library(x) if q_l is None else q_l.sample(rng)
                library = np.where(empty & (q_l is None), 0.0, np.exp(log_library))
                for target in [codes] if targets is None else targets:
                    rho = np.exp(self.generative(z, log_library, np.broadcast_to(target, codes.shape))["log_rho"].data)
                    total = total + finish(rho, library)
            found.append(total / (n_samples * (1 if targets is None else len(targets))))
    return np.concatenate(found).astype(self.dtype, copy=False)


def _codes_of(self, labels) -> list[int]:
    """Codes of one or several batch labels; ValueError with the known ones for another."""
    labels = [labels] if isinstance(labels, (str, int, np.integer)) else list(labels)
    known = [str(b) for b in self.batches]
    for label in labels:
        if str(label) not in known:
            raise ValueError(f"batch {label!r} is unknown; the model knows {self.batches}")
    return [known.index(str(label)) for label in labels]


# --------------------------------------------------------------------------------------------------------------- samples
def _draw(self, parameters: dict, rng):
    """Counts, (n, n_genes), from the distribution with these parameters."""
    log_mu, log_theta, zi_logits = [getattr(parameters[k], "data", parameters[k]) for k in ("log_mu", "log_theta", "zi_logits")]
    if self.likelihood == "poisson":
        return Poisson(log_mu).sample(rng)
    if self.likelihood == "nb":
        return NegativeBinomial(log_mu, log_theta).sample(rng)
    return ZeroInflatedNegativeBinomial(log_mu, log_theta, zi_logits).sample(rng)


def sample_posterior(self, counts, batch=None, *, n_samples=1, seed=0, layer=None) -> np.ndarray:
    """New counts for each cell, from the posterior predictive: z ~ q(z | x), then counts ~ p(x | z, l).

    (n_cells, n_genes), or (n_samples, n_cells, n_genes) for more than one. For checking the model: do real counts look
    like a draw from it?
    """
    found = []
    with evaluating(self):
        for i, (x, codes) in enumerate(self.minibatches(counts, batch, layer)):
            rng = backend.generator([seed, POSTERIOR, i])
            q_z, q_l = self.inference(x)
            found.append(np.stack([_draw(self, self.generative(
                q_z.sample(rng), self.observed_log_library(x) if q_l is None else q_l.sample(rng), codes), rng)
                for _ in range(n_samples)]))
    found = np.concatenate(found, axis=1)
    return found[0] if n_samples == 1 else found


def generate(self, n: int, *, batch=None, seed=0) -> np.ndarray:
    """Counts of n new cells, (n, n_genes), from the prior: z ~ Normal(0, 1), library from its log-normal prior.

    batch: a label for all of them; None: batches in the proportions of the training cells.
    """
    rng = backend.generator([seed, POSTERIOR])
    if batch is None:
        edges = np.cumsum(backend.to_host(self.batch_fraction).astype(np.float64))[:-1]
        codes = np.searchsorted(edges, rng.random(n), side="right")
    else:
        codes = np.full(n, _codes_of(self, batch)[0])
    with evaluating(self):
        z = rng.standard_normal((n, self.n_latent), dtype=self.dtype)
        return _draw(self, self.generative(z, self.library_prior(codes).sample(rng), codes), rng)


# ------------------------------------------------------------------------------------------------ differential expression
def differential_expression(self, counts, group_a, group_b=None, **_):
    raise NotImplementedError

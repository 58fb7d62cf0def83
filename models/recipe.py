"""How scVI is trained, and why so: the choices that `SCVI.fit` makes. This is engineering.

scvi.py says what is trained: a model and its ELBO. What is here makes a training quick, and keeps
the networks from learning the training cells by heart. scvi-tools trains with a constant rate of
1e-3, and a warm-up of the KL over 400 epochs; the defaults here differ from that because held-out
likelihood says so.

**Quick.** A learning rate that starts at 4e-3 and falls to 0 on a cosine reaches better weights in
half the epochs. Biases, dispersions and the library encoder start at the moments of the data
(`start_from_moments`). epochs=None: 200, fewer above 20,000 cells, more where that is under 500
steps:

    >>> usual_epochs(n_cells=2000, n_steps=16), usual_epochs(n_cells=100, n_steps=1)
    (200, 500)

**Not by heart.** Three things keep the networks from it:

- The decoder's output weights have a normal prior of mean 0 and variance 1 / n_hidden: before
  anything is seen, log rho differs by about 1 between cells (`AdamWithPrior`). The loss of a cell
  gets weight_decay / 2 * sum(w^2), with weight_decay = n_hidden / number of cells trained on unless
  it is given; 0: no prior. It weighs less the more cells there are, and the deeper they are.
- The encoder sees thinned counts (`thinned`), a noise that costs deep cells little.
- Some of its hidden units are dropped, if cells are few and shallow (`usual_dropout`).

**Batches out of z.** With several batches the KL weight is 1 from the first step on
(`usual_kl_warmup`).

Know before reading: scvi.py; and Adam, in minigrad/optim.py. The functions that take a model take
an SCVI.

Know after: what each default of `SCVI.fit` is for, and how much of it was measured: the following.

Held-out log p of three ways: "all three" is what is said above; "none" goes without any of it; and
"AdamW", an earlier version's, has dropout 0.1 and the decoupled decay of all layers' weights
(optim.py) which by itself would shrink them by exp(-D) over the training, with D = 20,000 /
n_cells, kept within 0.5 to 20. Nats a cell, importance-weighted; ARI of k-means in brackets, where
it was computed; - where nothing was run. Each row is one split, on which the settings were also
chosen. Held-out cells and draws differ from row to row: only numbers in a row compare, and
differences of 2 nats say nothing.

| data | cells x genes | none | AdamW | all three |
| --- | --- | --- | --- | --- |
| cortex | 100 x 558 | -1643 | -1757 | -1619 |
| cortex | 500 x 558 | -1548.5 | -1563.6 | -1549.6 |
| cortex | 2,404 x 558 | - | -1266.6 (.75) | -1268.2 (.68) |
| pbmc68k | 100 x 765 | -725 | -724 | -688 |
| pbmc68k | 560 x 765 | -690.2 | -663.6 | -663.6 (.50) |
| blood, 10x PBMC 3k | 2,111 x 2,000 | - | -1490.4 (.57) | -1474.5 (.61) |
| blood, sorted | 2,800 x 2,000 | - | -1128.7 (.88) | -1111.8 (.89) |

Batches: the KL weight rising over a quarter of the training, and 1 throughout, on cells of which a
half is measured again in other ways. On cortex and pbmc68k these are six, one simulation each
(tests/benchmarks/mixing.py); on 1,200 sorted blood cells x 1,000 genes they are `response` there,
twice. `batch` and `bio` are scIB's means of scores, 1 is best.

| data | warm-up | iLISI | kBET | batch | bio | held-out log p |
| --- | --- | --- | --- | --- | --- | --- |
| cortex, pbmc68k | 0.25 | 0.84 | 0.91 | 0.90 | 0.70 | -875.0 |
| | 0 | 0.86 | 0.91 | 0.90 | 0.72 | -874.7 |
| blood, sorted | 0.25 | 0.80 | 0.68 | 0.87 | 0.90 | -805.7 |
| | 0 | 0.89 | 0.84 | 0.93 | 0.90 | -805.4 |

Tried beside it, on some of these: two layers in both networks mix more (blood: iLISI 0.92, kBET
0.93), but cost cortex 2 to 7 nats and its types; units that a batch scales, a decoder of two
layers, 10 latent dimensions and an encoder that is told the batch gained less or lost types. An
offset of each batch's genes at the decoder's output moved nothing (one run).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad import backend, optim
from minigrad.backend import Array, Matrix
from minigrad.nn import start_at
from minigrad.tensor import Tensor
from models.counts import Moments

LIBRARY_FLOOR = 1e-4  # least variance of log library sizes in a batch: one cell alone has none
OFFSET_PRECISION = 4.0  # of the normal prior of offsets (query.py), whose deviation is so 0.5


# ------------------------------------------------------------------------- how long, and how much
def usual_epochs(n_cells: int, n_steps: int) -> int:
    """Epochs of a training on n_cells, n_steps to the epoch: 200, or what makes 500 steps.

    Fewer above 20,000 cells, as steps are what counts; never under 10.

    100 cells need more than 200 epochs of one step: the running statistics of batch norm alone
    take hundreds.
    """
    at_most_200 = min(200, round(200 * 20000 / n_cells))
    of_500_steps = -(-500 // n_steps)  # rounded up
    return max(10, at_most_200, of_500_steps)


def usual_kl_warmup(n_batches: int) -> float:
    """Fraction of the training over which the KL weight rises to 1: 0.25; 0 for several batches.

    The KL divergence is what keeps the batch out of z: the decoder is told it anyway, so that in z
    it only costs. While the weight is small, z may say whatever it likes; the networks learn to
    use a batch in z, and a training is too short to forget all of that. What it was worth is told
    above; n_batches: of the model.
    """
    return 0.25 if n_batches == 1 else 0.0


def usual_dropout(n_cells: int, n_genes: int, n_counts: float) -> float:
    """Dropout of the encoder: 0.3 * min(1, n_genes / n_cells) * min(1, 1 / depth).

    depth is the mean count, n_counts / (n_cells * n_genes), and n_counts the sum of all counts.

    It keeps the encoder from reading the cells by heart, which it could where it has more genes
    than cells to learn from. Deep counts, whose own noise is small, lose most by it. Held-out log p
    with 0.3 against next to nothing: +2 on blood (2,111 cells x 2,000 genes, 1 count a gene), -11
    on cortex (2,404 x 558, 10 counts a gene).
    """
    depth = float(n_counts) / (n_cells * n_genes)
    return 0.3 * min(1.0, n_genes / n_cells) / max(1.0, depth)


# -------------------------------------------------------------------- the prior of the weights
class AdamWithPrior(optim.Adam):
    """Adam to the most probable weights: their normal prior joins the loss of a cell.

        loss = -ELBO + weight_decay / 2 * sum(w^2)

    The sum is over the weights w in `decayed`, of any shapes. The term is -log p(w) / n_cells of a
    normal prior with precision n_cells * weight_decay. Its gradient is added here: a term of the
    loss would pass over the weights three times. Adam sees it beside the likelihood's, so that it
    yields where many counts speak; the decoupled decay of AdamW takes the same from all, and from
    100 deep cells too much. frozen: a parameter that does not change.
    further: other parameters with such a prior, each with its own weight_decay.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        weight_decay: float,
        decayed: list[Tensor],
        frozen: Tensor,
        further: Mapping[Tensor, float],
    ):
        # The frozen one is the last, so that all others are neighbours in the flat array.
        trained = [p for p in parameters if p is not frozen]
        super().__init__([*trained, frozen], learning_rate)
        self.weight_decay = float(weight_decay)
        self.decayed = decayed
        self.frozen = frozen
        self.further = further

    def step(self) -> None:
        """Adam's step, with the gradient of the priors."""
        self.frozen.grad = None
        for p in self.decayed:
            add_prior(p, self.weight_decay)
        for p, weight_decay in self.further.items():
            add_prior(p, weight_decay)
        super().step()


def add_prior(p: Tensor, weight_decay: float) -> None:
    """Add the gradient of weight_decay / 2 * sum(p^2) to that of a parameter p, of any shape.

    Without a gradient it stays: a likelihood without dispersion leaves that head alone.
    """
    if p.grad is not None:
        _add_prior(p.grad, p.data, weight_decay)


@backend.elementwise
def _add_prior(gradient, weights, weight_decay):
    gradient += weight_decay * weights


def optimizer_of(
    decoder: Any,
    parameters: Iterable[Tensor],
    learning_rate: float,
    weight_decay: float,
    n_cells: int,
) -> AdamWithPrior:
    """The optimiser of a training: a prior on the weights of the decoder's heads, of any shapes.

    n_cells: trained on. Offsets of batches that were mapped (query.py) have the prior that they had
    there, whatever weight_decay is.

    The scales of the batch norm before them stay at 1: they could grow in the weights' place,
    and do (pbmc of 2,000 genes, 200 epochs: -1483 where they are trained, -1479 where not;
    one split, other settings nearly alike).
    """
    heads = [getattr(decoder, name, None) for name in ("rho", "zi", "theta")]
    decayed = [head.weight for head in heads if head is not None]
    further = {}
    if decoder.offsets is not None:
        further[decoder.offsets.weight] = OFFSET_PRECISION / n_cells
    frozen = decoder.layers.norms[-1].weight
    return AdamWithPrior(parameters, learning_rate, weight_decay, decayed, frozen, further)


# ------------------------------------------------------------------------------- thinned counts
def thinned(counts: Matrix, rng: np.random.Generator) -> Matrix:
    """Twice Binomial(x, 1/2) of each count x: what half the sequencing would count, on the old
    scale.

    counts: (n, n_genes), dense or CSR, whole numbers; the result is of the same kind. A normal draw
    of the binomial's mean x / 2 and variance x / 4, rounded and kept within 0 to x, takes its
    place. That is exact for x = 1, puts no probability of the others off by more than 0.021, and
    needs of a GPU's generator only what it has.
    """
    if backend.is_sparse(counts):
        kept = _half(counts.data, rng)
        return type(counts)((kept, counts.indices, counts.indptr), shape=counts.shape)
    if not backend.on_host([counts]):
        # Here too zeros stay zeros. To leave them out, a GPU would have to say how many there are.
        return _half(counts, rng)
    is_seen = counts > 0  # zeros stay, and draw nothing: CSR and dense counts meet the same noise
    kept = np.zeros_like(counts)
    kept[is_seen] = _half(counts[is_seen], rng)
    return kept


def _half(counts: Array, rng: np.random.Generator) -> Array:
    """Twice about Binomial(x, 1/2) of each of counts, of any shape: see `thinned`."""
    return _rounded(counts, rng.standard_normal(counts.shape, dtype=np.float32))


@backend.elementwise
def _rounded(counts, noise):
    """What `_half` makes of standard normal noise."""
    kept = np.rint(0.5 * (counts + np.sqrt(counts) * noise))
    return 2.0 * np.minimum(np.maximum(kept, 0.0), counts)


# ------------------------------------------------------------------------------ starting values
def start_from_moments(model: Any, sums: Moments, codes: np.ndarray) -> None:
    """Set biases, dispersions and the prior of the library by the training cells.

    sums: the moments of their counts; codes: of their batches, (n_cells,). rho starts at mean
    expression, theta at moments, extra zeros at log odds of -2. Parameters that are frozen stay.
    """
    all_counts = sums.of_genes.sum()
    rho = (sums.of_genes + 0.5) / (all_counts + 0.5 * model.n_genes)
    log_rho = np.log(rho)
    start_at(model.decoder.rho.bias, log_rho - log_rho.mean())
    if model.likelihood == "zinb":
        start_at(model.decoder.zi.bias, -2.0)
    if model.likelihood != "poisson":
        _start_theta(model, _log_theta_of_moments(sums, rho))
    start_library_prior(model, sums.totals, codes)
    if model.library == "latent":
        _start_library_encoder(model, sums.totals)


def _log_theta_of_moments(sums: Moments, rho: np.ndarray) -> np.ndarray:
    """log theta of each gene, (n_genes,), from the spread of its counts around total * rho.

    With means mu = total * rho, sum (x - mu)^2 = sum mu + sum mu^2 / theta over cells. theta is
    kept within 0.05 to 100. Of the square, sum x^2 is `sums.squares`, and sum x * total is
    `sums.with_totals`.
    """
    squared_means = rho**2 * np.sum(sums.totals**2)
    spread = sums.squares - 2 * rho * sums.with_totals + squared_means
    beyond_poisson = np.maximum(spread - sums.of_genes, 1e-8)
    return np.log(np.clip(squared_means / beyond_poisson, 0.05, 100))


def _start_theta(model, log_theta: np.ndarray) -> None:
    """Write log theta (n_genes,) to wherever the model has it."""
    if model.dispersion == "gene-cell":
        start_at(model.decoder.theta.bias, log_theta)
    elif model.dispersion == "gene-batch":
        start_at(model.log_theta, log_theta[:, None])
    else:
        start_at(model.log_theta, log_theta)


def start_library_prior(model, totals: np.ndarray, codes: np.ndarray) -> None:
    """Mean and variance of the log totals of each batch, unless given, and its share of cells.

    totals and codes: of the cells, (n_cells,). A batch without cells has those of all cells.
    """
    for b in range(model.n_batches):
        in_batch = codes == b
        log_totals = np.log(totals[in_batch] if np.any(in_batch) else totals)
        if not model.library_log_mean_given:
            model.library_log_mean[b] = log_totals.mean()
        if not model.library_log_var_given:
            model.library_log_var[b] = max(log_totals.var(), LIBRARY_FLOOR)
        model.batch_fraction[b] = np.mean(in_batch)


def _start_library_encoder(model, totals: np.ndarray) -> None:
    """The biases of the library encoder: mean and variance of log l.

    The mean starts at that of the log totals of all cells, whatever their batch, which the encoder
    does not see, and the variance at the prior's. From log l = 0, where it would start else, log l
    must rise by 5 to 10 in steps of a learning rate while the decoder learns from means that are
    wrong by factors of thousands.
    """
    prior_variance = backend.to_host(model.batch_fraction @ model.library_log_var)
    start_at(model.l_encoder.mean.bias, np.log(totals).mean()[None])
    start_at(model.l_encoder.log_var.bias, np.log(prior_variance)[None])

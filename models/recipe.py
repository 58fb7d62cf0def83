"""How scVI is trained, and why so: the choices that `SCVI.fit` makes. This is engineering.

scvi.py says what is trained: a model and its ELBO. What is here makes a training quick, and keeps
the networks from learning the training cells by heart. scvi-tools trains with a constant rate of
1e-3, and a warm-up of the KL over 400 epochs; the defaults here differ from that because held-out
likelihood says so.

**Quick.** A learning rate that starts at 4e-3 and falls to 0 on a cosine reaches better weights in
half the epochs. Three things bring a model close to where it is going before that:

- Biases, dispersions and the library encoder start at the moments of the data
  (`start_from_moments`).
- z starts at the principal components of log counts, less what batch and covariates explain, and
  rho follows them (`start_from_components`).
- theta has ten times the rate of the others (`AdamForCounts`). Adam moves a parameter by no more
  than the rate in a step. A mean has the 128 weights of its gene to move it, theta has itself
  alone, and far to go: before the means tell kinds of cells apart, all of their differences count
  as scatter.

epochs=None: 200, fewer above 20,000 cells, more where that is under 500 steps:

    >>> usual_epochs(n_cells=2000, n_steps=16), usual_epochs(n_cells=100, n_steps=1)
    (200, 500)

With several batches, or covariates, more where that is under 1,500, for z forgets a batch slowly.

**Not by heart.** Four things keep the networks from it:

- The decoder's output weights have a normal prior of mean 0 and variance 1 / n_hidden: before
  anything is seen, log rho differs by about 1 between cells (`AdamForCounts`). The loss of a cell
  gets weight_decay / 2 * sum(w^2), with weight_decay = n_hidden / number of cells trained on unless
  it is given; 0: no prior. It weighs less the more cells there are, and the deeper they are.
- So has log theta, with variance 1 / 4. Where the means follow cells that were learnt by heart,
  nothing seems to be left that scatters, and theta of rare genes would grow without an end.
- The encoder sees thinned counts (`thinned`), a noise that costs deep cells little.
- Some of its hidden units are dropped, if cells are few and shallow (`usual_dropout`).

**Batches out of z.** With several batches, and with covariates, the KL weight is 1 from the first
step on (`usual_kl_warmup`), and the networks have two layers (`usual_layers`), with which a decoder
can tell what a batch does to cells of one kind and of another. What it cannot, it needs z for.
Whoever asks for one layer gets neither components nor a quick theta (`may_hurry`), with which the
likelihood would outweigh the KL divergence so early that z says the batch.

Know before reading: scvi.py; and Adam, in minigrad/optim.py. The functions that take a model take
an SCVI.

Know after: what each default of `SCVI.fit` is for, and how much of it was measured: the following.

How soon, on one split of each set (2,404, 560 and 2,111 cells x 558, 765 and 2,000 genes): held-out
log p after a whole training of so many epochs, first without three of these (theta's rate, the
components, theta's prior), and then with one after the other. scvi-tools comes to -1282, -668 and
-1521 in 400 epochs. Theta's rate alone makes long trainings worse on many genes, which its prior
turns into a gain (precision 1: -1488; 4, as here: -1484).

| data | epochs | without | theta's rate | and components | and theta's prior |
| --- | --- | --- | --- | --- | --- |
| cortex | 20 | -1331.6 | -1301.5 | -1277.1 | -1276.5 |
| cortex | 200 | -1268.8 | -1269.7 | -1267.9 | -1266.8 |
| pbmc68k | 20 | -667.7 | -658.1 | -653.5 | -653.1 |
| pbmc68k | 200 | -646.2 | -642.6 | -643.0 | -642.4 |
| blood, 10x PBMC 3k | 20 | -1543.4 | -1503.0 | -1501.0 | - |
| blood, 10x PBMC 3k | 200 | -1494.3 | -1500.2 | -1500.1 | -1483.8 |

The encoder's first guess is not enough: without the decoder's, 20 epochs of cortex come to -1288.

What keeps from learning by heart, measured before the above: "all three" is the prior of the
weights, thinning and dropout; "none" goes without any of it; and "AdamW", an earlier version's, has
dropout 0.1 and the decoupled decay of all layers' weights (optim.py) which by itself would shrink
them by exp(-D) over the training, with D = 20,000 / n_cells, kept within 0.5 to 20. Nats a cell,
importance-weighted; ARI of k-means in brackets, where it was computed; - where nothing was run.
Each row is one split, on which the settings were also chosen. Held-out cells and draws differ from
row to row: only numbers in a row compare, and differences of 2 nats say nothing.

| data | cells x genes | none | AdamW | all three |
| --- | --- | --- | --- | --- |
| cortex | 100 x 558 | -1643 | -1757 | -1619 |
| cortex | 500 x 558 | -1548.5 | -1563.6 | -1549.6 |
| cortex | 2,404 x 558 | - | -1266.6 (.75) | -1268.2 (.68) |
| pbmc68k | 100 x 765 | -725 | -724 | -688 |
| pbmc68k | 560 x 765 | -690.2 | -663.6 | -663.6 (.50) |
| blood, 10x PBMC 3k | 2,111 x 2,000 | - | -1490.4 (.57) | -1474.5 (.61) |
| blood, sorted | 2,800 x 2,000 | - | -1128.7 (.88) | -1111.8 (.89) |

Many cells: of 25,000 x 715 that a model of mouse brain generated, NB, 160 epochs, "all three" come
to -199.22 in 92 seconds, "none" to -199.36 in 102 (the model itself: -198.82).

Batches: of cells of which a half is measured again in other ways (tests/benchmarks/mixing.py), six
ways on 800 cells of cortex, 700 of pbmc68k and 1,200 x 1,000 of sorted blood, one simulation each.
`batch` and `bio` are scIB's means of scores, 1 is best; log p is that of held-out cells. All with
the KL weight at 1 throughout; while it rises over a quarter of the training, one layer comes to an
iLISI of 0.80 on the blood cells, and to 0.89 so.

| layers | start and theta | iLISI | kBET | batch | bio | held-out log p |
| --- | --- | --- | --- | --- | --- | --- |
| 1 | random, slow | 0.870 | 0.904 | 0.911 | 0.764 | -842.4 |
| 1 | components, slow | 0.865 | 0.890 | 0.906 | 0.758 | -840.9 |
| 1 | components, quick | 0.862 | 0.884 | 0.904 | 0.760 | -838.2 |
| 2 | components, slow | 0.902 | 0.936 | 0.921 | 0.757 | -841.2 |
| 2 | components, quick | 0.901 | 0.937 | 0.920 | 0.757 | -839.4 |

Two layers that start at random mix as well and come to 2 nats less. Two in the encoder alone, or in
the decoder alone, have about half of the gain. Tried beside it, on another simulation of each: a KL
weight that falls from 3 to 1, or stays at 1.5 or 2; an offset of each gene and batch at the
decoder's output, from moments or from 0; an encoder of shares rather than counts; theta by batch;
10 or 20 latent dimensions; a penalty of what batches' mean z differ by; dropout; 256 hidden units;
a third of the prior of the weights. None mixed as well without a loss of types or likelihood, but
for twice the epochs, or twice the learning rate, which gain 4 nats and mix a little more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad import backend, optim
from minigrad.backend import Array, Matrix
from minigrad.data import pieces
from minigrad.nn import start_at
from minigrad.tensor import Tensor
from models.counts import Moments

if TYPE_CHECKING:
    from models.count_inputs import TrainingCells

N_COMPONENTS = 20  # at most, with which z begins
N_BLOCKS = 4  # of products, in which they are looked for
CELLS_OF_COMPONENTS = 2000  # at most, whose components they are
THETA_PRECISION = 4.0  # of the normal prior of log_theta: 1 / its variance
THETA_RATE = 10.0  # learning rate of log_theta beside that of the other parameters
LIBRARY_FLOOR = 1e-4  # least variance of log library sizes in a batch: one cell alone has none
OFFSET_PRECISION = 4.0  # of the normal prior of offsets (query.py), whose deviation is so 0.5


# ------------------------------------------------------------------------- how long, and how much
def usual_epochs(n_cells: int, n_steps: int, n_conditions: int = 0) -> int:
    """Epochs of a training on n_cells with n_steps in an epoch: 200, or more where these are under
    500 steps, and fewer above 20,000 cells, as steps are what counts; never under 10.

    n_conditions: how many numbers the decoder is told of each cell, its one-hot batch and its
    covariates. If it is told any, 1,500 steps take the place of 500.

    100 cells need more than 200 epochs of one step: the running statistics of batch norm alone
    take hundreds. And a batch leaves z late: on 220 stimulated and other blood cells x 400 genes
    iLISI is 0.69 after 500 steps, 0.85 after 1,000 and 0.91 after 1,500.
    """
    at_most_200 = min(200, round(200 * 20000 / n_cells))
    least_steps = 500 if n_conditions == 0 else 1500
    of_least_steps = -(-least_steps // n_steps)  # rounded up
    return max(10, at_most_200, of_least_steps)


def usual_kl_warmup(n_conditions: int) -> float:
    """Fraction of the training over which the KL weight rises to 1: 0.25; 0 where the decoder is
    told something of the cells (n_conditions, as for `usual_epochs`).

    The KL divergence is what keeps the batch, or a covariate, out of z: the decoder is told it
    anyway, so that in z it only costs. While the weight is small, z may say whatever it likes; the
    networks learn to use a batch in z, and a training is too short to forget all of that.
    """
    return 0.25 if n_conditions == 0 else 0.0


def usual_layers(n_conditions: int) -> int:
    """Hidden layers of both networks: 1, and 2 where the decoder is told something of the cells
    (n_conditions, as for `usual_epochs`).

    A decoder of one layer adds the batch, or a covariate, to what its hidden units see of z. With a
    second one a batch can do something else to each kind of cell: the same ambient RNA, say, covers
    up a gene in cells that express little of it, and not in cells that express much.
    """
    return 1 if n_conditions == 0 else 2


def may_hurry(model: Any) -> bool:
    """Whether z may begin at components, and theta be quick: not if the decoder is told something
    of the cells and has one layer.

    Where a batch does something else to each type (test_scvi.py), iLISI with one layer is 0.44 if z
    and theta begin so, and 0.83 if not. With two layers it is 0.91 and 0.93, and the ELBO is higher
    by 10 if they do.
    """
    return model.n_conditions == 0 or model.config["n_layers"] > 1


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


# ------------------------------------------------------------------------------- the optimiser
class AdamForCounts(optim.Adam):
    """Adam to the most probable parameters, with longer steps of log_theta.

    Normal priors join the loss of a cell:

        loss = -ELBO + weight_decay / 2 * sum(w^2)

    The sum is over the weights w in `decayed`, of any shapes. The term is -log p(w) / n_cells of a
    normal prior with precision n_cells * weight_decay. Its gradient is added here: a term of the
    loss would pass over the weights three times. Adam sees it beside the likelihood's, so that it
    yields where many counts speak; the decoupled decay of AdamW takes the same from all, and from
    100 deep cells too much. frozen: a parameter that does not change.
    further: other parameters with such a prior, each with its own weight_decay.
    quick: a parameter, log_theta, with THETA_RATE times the others' rate; None: there is none.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        weight_decay: float,
        decayed: list[Tensor],
        frozen: Tensor,
        further: Mapping[Tensor, float],
        quick: Tensor | None = None,
    ):
        # The frozen one is the last, so that all others are neighbours in the flat array.
        trained = [p for p in parameters if p is not frozen]
        super().__init__([*trained, frozen], learning_rate)
        self.weight_decay = float(weight_decay)
        self.decayed = decayed
        self.frozen = frozen
        self.further = further
        self.quick = quick

    def step(self) -> None:
        """Adam's step, with the gradient of the priors; that of `quick` is made longer."""
        self.frozen.grad = None
        for p in self.decayed:
            add_prior(p, self.weight_decay)
        for p, weight_decay in self.further.items():
            add_prior(p, weight_decay)
        if self.quick is None:
            super().step()
            return
        before = self.quick.data.copy()
        super().step()
        # What Adam remembers does not depend on the rate: with a greater one, a step is longer.
        _lengthen(self.quick.data, before, THETA_RATE - 1.0)


def add_prior(p: Tensor, weight_decay: float) -> None:
    """Add the gradient of weight_decay / 2 * sum(p^2) to that of a parameter p, of any shape.

    A parameter that has none gets none: a head that the likelihood does not use stays as it is.
    """
    if p.grad is not None:
        _add_prior(p.grad, p.data, weight_decay)


@backend.elementwise
def _add_prior(gradient, parameter, decay):
    gradient += decay * parameter


@backend.elementwise
def _lengthen(parameter, before, times):
    parameter += times * (parameter - before)


def optimizer_of(
    model: Any,
    parameters: Iterable[Tensor],
    learning_rate: float,
    weight_decay: float,
    n_cells: int,
) -> AdamForCounts:
    """The optimiser of a training: priors on the weights of the decoder's heads, and on log_theta.

    weight_decay is that of the weights, with precision n_hidden by default; log_theta has
    THETA_PRECISION / n_hidden times as much. theta is quick where the model `may_hurry`.
    parameters: of any shapes. n_cells: trained on. Offsets of batches that were mapped (query.py)
    have the prior that they had there, whatever weight_decay is.

    The scales of the batch norm before the heads stay where they are, at 1 in a new model: they
    could grow in the weights' place, and do (pbmc of 2,000 genes, 200 epochs: -1483 where they are
    trained, -1479 where not; one split, other settings nearly alike).
    """
    decoder = model.decoder
    heads = [getattr(decoder, name, None) for name in ("rho", "zi", "theta")]
    decayed = [head.weight for head in heads if head is not None]
    further = {}
    if decoder.offsets is not None:
        further[decoder.offsets.weight] = OFFSET_PRECISION / n_cells
    frozen = decoder.layers.norms[-1].weight
    log_theta = getattr(model, "log_theta", None)  # per gene-cell theta is a head, of many weights
    if log_theta is not None:
        further[log_theta] = THETA_PRECISION * weight_decay / model.config["n_hidden"]
    quick = log_theta if may_hurry(model) else None
    return AdamForCounts(parameters, learning_rate, weight_decay, decayed, frozen, further, quick)


# ------------------------------------------------------------------------------- thinned counts
def thinned(counts: Matrix, rng: np.random.Generator) -> Matrix:
    """Twice Binomial(x, 1/2) of each count x: what half the sequencing would count, on the old
    scale.

    counts: (n, n_genes), dense or CSR, whole numbers; the result is of the same kind. A normal draw
    of the binomial's mean x / 2 and variance x / 4, rounded and kept within 0 to x, takes its
    place. For x = 1 that is exact, for more no probability is wrong by more than 0.021, and normal
    draws are what the generator of a GPU has.
    """
    if backend.is_sparse(counts):
        return backend.with_entries(counts, _half(counts.data, rng))
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
class Expression(NamedTuple):
    """What the moments of counts say of each gene: two arrays (n_genes,), float64."""

    rho: np.ndarray  # its mean fraction of all counts; never 0
    theta: np.ndarray  # its inverse dispersion


def start(model: Any, cells: TrainingCells) -> None:
    """Starting values of a model that was never trained, from the cells that it is trained on.

    Parameters that are frozen stay.
    """
    genes = expression_of(cells.sums)
    start_from_moments(model, genes, cells.sums.totals, cells.codes)
    if may_hurry(model):
        start_from_components(model, genes, cells)


def expression_of(sums: Moments) -> Expression:
    """rho and theta of each gene, from the spread of its counts around total * rho.

    With means mu = total * rho, sum (x - mu)^2 = sum mu + sum mu^2 / theta over cells. theta is
    kept within 0.05 to 100. Of the square, sum x^2 is `sums.squares`, and sum x * total is
    `sums.with_totals`.
    """
    n_genes = len(sums.of_genes)
    rho = (sums.of_genes + 0.5) / (sums.of_genes.sum() + 0.5 * n_genes)
    squared_means = rho**2 * np.sum(sums.totals**2)
    spread = sums.squares - 2 * rho * sums.with_totals + squared_means
    beyond_poisson = np.maximum(spread - sums.of_genes, 1e-8)
    return Expression(rho, np.clip(squared_means / beyond_poisson, 0.05, 100))


def start_from_moments(
    model: Any, genes: Expression, totals: np.ndarray, codes: np.ndarray
) -> None:
    """Set biases, dispersions and the prior of the library by the training cells.

    totals, codes: of cells and of their batches, (n_cells,). rho starts at mean expression, theta
    at moments, extra zeros at log odds of -2.
    """
    log_rho = np.log(genes.rho)
    start_at(model.decoder.rho.bias, log_rho - log_rho.mean())
    if model.likelihood == "zinb":
        start_at(model.decoder.zi.bias, -2.0)
    if model.likelihood != "poisson":
        _start_theta(model, np.log(genes.theta))
    start_library_prior(model, totals, codes)
    if model.library == "latent":
        _start_library_encoder(model, totals)


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


# ---------------------------------------------------------------------------- the first guess of z
def start_from_components(model: Any, genes: Expression, cells: TrainingCells) -> None:
    """Let z begin as the first principal components of log(1 + counts), and rho follow them.

    How networks carry them: the first two hidden units of each layer are the first component a and
    its opposite, the next two the second, and so on. As relu(a) - relu(-a) = a, the head after the
    layers can read off what went in, scaled by batch norm to variance 1: the encoder's the mean of
    z, the decoder's log rho. The other hidden units keep their random weights; the heads begin
    without them, and learn to use them from the first step on.

    How rho follows: the log rho of a gene changes with each component by a slope. It is one step of
    Fisher scoring from 0 to the most probable slope under NB and the prior of the weights
    (`_slopes`).

    The molecules of each cell are parted into two halves. Components are those of the first half,
    of what depth, batch and covariates do not explain there; slopes are found on the second. So
    where a component is only the noise of these cells, its slopes are about 0.

    Parameters that are frozen stay, and so does a model without room for a component.
    """
    rng = np.random.default_rng(0)
    n_components = min(N_COMPONENTS, model.n_latent, model.config["n_hidden"] // 2)
    n_cells = cells.counts.shape[0]
    chosen = np.sort(rng.permutation(n_cells)[:CELLS_OF_COMPONENTS])
    parts = [sparse.csr_array(part) for _, part in pieces(cells.counts[chosen])]
    counts = sparse.csr_array(sparse.vstack(parts))
    twice_one_half = thinned(counts, rng)
    other_half = backend.with_entries(counts, counts.data - 0.5 * twice_one_half.data)
    # What z need not say: the depth of a cell, its batch, and its covariates.
    log_totals = np.log(cells.sums.totals[chosen])
    batches = cells.codes[chosen, None] == np.arange(model.n_batches)  # one-hot, (n, n_batches)
    known = np.column_stack([log_totals, batches, cells.covariates[chosen]])
    y = twice_one_half.log1p()
    y.eliminate_zeros()
    axes, scores = principal_components(y, known, n_components)
    if axes.shape[1] == 0:
        return
    encoder = model.z_encoder
    _pass_on(encoder.layers, axes.T)
    _read_off(encoder.mean, np.eye(model.n_latent, axes.shape[1]))
    start_at(encoder.mean.bias, 0.0)
    start_at(encoder.log_var.weight, 0.0)
    start_at(encoder.log_var.bias, -1.0)
    _pass_on(model.decoder.layers, np.eye(axes.shape[1], model.n_latent))
    # Two weights carry a slope, one with each sign, and the prior of either has precision n_hidden.
    precision = 2.0 * model.config["n_hidden"]
    _read_off(model.decoder.rho, _slopes(other_half, scores, genes, precision))


def principal_components(
    y: sparse.csr_array, known: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(axes, scores) of at most n principal components of y, without what is known of the rows.

    y: (n_rows, n_columns); known: (n_rows, n_known), and a constant is among what it can make. The
    regression of y on it is taken away, which leaves r. axes: (n_columns, n), of length 1; scores:
    (n_rows, n), of variance 1. Components of next to no variance are left out.

    They are the best ones whose scores are combinations of the columns of r v, r r^T r v, ...,
    N_BLOCKS such blocks, of random directions v (block Krylov iteration, Musco & Musco 2015).
    Components that stand out from the noise are found as they are, and in place of those within it
    others of about the same variance: which is all that a start needs, in a quarter of the time of
    exact ones (those are in imputation.py, `principal_axes`, for others to be compared with).
    """
    n = min(n, min(y.shape) - 1)
    if n < 1:
        return np.zeros((y.shape[1], 0)), np.zeros((y.shape[0], 0))
    of_known, sizes, _ = np.linalg.svd(known, full_matrices=False)
    basis = of_known[:, sizes > 1e-9 * sizes[0]].astype(y.dtype)  # of all that known can make
    explained = (y.T @ basis).T  # coefficients of the regression, (n_basis, n_columns)

    # Products with r = y - basis @ explained, which is not sparse and never made.
    def times_r(v):
        return y @ v - basis @ (explained @ v)

    def times_r_transposed(u):
        return y.T @ u - explained.T @ (basis.T @ u)

    n_directions = max(n, N_COMPONENTS)
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((y.shape[1], n_directions)).astype(y.dtype)
    blocks = []
    for _ in range(N_BLOCKS):
        block, _ = np.linalg.qr(times_r(directions))  # else all columns turn to the first component
        blocks.append(block)
        directions = times_r_transposed(block)
    space, _ = np.linalg.qr(np.concatenate(blocks, axis=1))
    axes, lengths, rotation = np.linalg.svd(times_r_transposed(space), full_matrices=False)
    lengths = lengths[:n]
    # What is left of y where all is explained are errors of rounding.
    kept = (lengths > 1e-3 * lengths[0]) & (lengths > 1e-5 * np.linalg.norm(y.data))
    scores = space @ rotation[:n].T * y.shape[0] ** 0.5
    return axes[:, :n][:, kept], scores[:, kept]


def _pass_on(layers: Any, directions: np.ndarray) -> None:
    """Let hidden units 2 j and 2 j + 1 of all layers be direction j of the input and its opposite.

    directions: (n, n_in). What the layers are told besides, such as covariates, has no part in it.
    """
    both = np.repeat(directions, 2, axis=0)
    both[1::2] *= -1.0
    for linear in layers.linears:
        weight = np.array(backend.to_host(linear.weight.data))
        bias = np.array(backend.to_host(linear.bias.data))
        weight[: len(both)] = 0.0
        weight[: len(both), : both.shape[1]] = both
        bias[: len(both)] = 0.0
        start_at(linear.weight, weight)
        start_at(linear.bias, bias)
        # The input of the next layer is the units of this one: a = relu(a) - relu(-a), and -a.
        both = np.kron(np.eye(len(directions)), [[1.0, -1.0], [-1.0, 1.0]])


def _read_off(linear: Any, slopes: np.ndarray) -> None:
    """Let the outputs of a Linear be slopes (n_out, n) times what `_pass_on` passed on."""
    weight = np.zeros(linear.weight.shape)
    weight[:, 0 : 2 * slopes.shape[1] : 2] = slopes
    weight[:, 1 : 2 * slopes.shape[1] : 2] = -slopes
    start_at(linear.weight, weight)


def _slopes(
    counts: sparse.csr_array, scores: np.ndarray, genes: Expression, precision: float
) -> np.ndarray:
    """How log rho changes with each score, (n_genes, n): a step of Fisher scoring from 0.

    counts: (n_cells, n_genes); scores: of the same cells, (n_cells, n), of variance 1. An NB with
    the mean mu = total * rho, and w = 1 / (1 + mu / theta), has the derivative w (x - mu) by log
    rho, and the Fisher information w mu. So for a slope on a score s

        step = sum_i s_i w_i (x_i - mu_i) / (sum_i w_i mu_i s_i^2 + precision)

    with the precision of its normal prior. s_i^2 is replaced by its mean, 1, so that a gene has one
    denominator. Sums with w mu are rho times those with w total.
    """
    totals = counts.sum(axis=1)
    rho = genes.rho.astype(counts.dtype)
    rho_by_theta = (genes.rho / genes.theta).astype(counts.dtype)

    def weights(totals, rho_by_theta):
        w = 1.0 + totals * rho_by_theta
        return np.reciprocal(w, out=w)

    of_entries = weights(np.repeat(totals, np.diff(counts.indptr)), rho_by_theta[counts.indices])
    observed = backend.with_entries(counts, of_entries * counts.data).T @ scores

    with_totals = np.column_stack([totals[:, None] * scores, totals])
    expected = np.zeros((len(rho), with_totals.shape[1]), counts.dtype)
    for first in range(0, len(totals), 128):  # dense, but a few cells at a time
        piece = slice(first, first + 128)
        expected += weights(totals[piece, None], rho_by_theta).T @ with_totals[piece]
    expected *= rho[:, None]
    information = expected[:, -1:]
    return (observed - expected[:, :-1]) / (information + precision)

"""scVI: a variational autoencoder whose decoder speaks the language of counts (Lopez et al. 2018).

This is a lesson; the chapter has it in Figure 12. "The chapter" is block 5 of the course MCB128:
see README.

Know before reading: vae.py, and minigrad/nn.py, distributions.py and count_likelihoods.py. A cell n
in batch s_n has a latent state z_n and a library size l_n. Its gene g is then counted with a
(zero-inflated) negative binomial:

    z_n     ~ Normal(0, 1)
    log l_n ~ Normal(mean and standard deviation of its batch); or l_n is simply the observed total
    rho_n   = softmax(network(z_n, s_n))        expected fractions of expression, summing to 1
    x_ng    ~ NB(mean l_n rho_ng, inverse dispersion theta_g)
              or zero besides, with probability expit(zi_logits_ng)

The encoder turns log(1 + x_n) into q(z_n | x_n) = Normal(mean, standard deviation). All is trained
together to raise the evidence lower bound

    ELBO = E_q[log p(x | z, l)] - KL(q(z) || p(z)) - KL(q(l) || p(l))

Forty cells of two kinds, which differ in the first two of three genes, are told apart again:

    >>> counts = np.random.default_rng(0).poisson([[30.0, 3.0, 9.0], [3.0, 30.0, 9.0]] * 20)
    >>> model = SCVI(3, n_latent=1, n_hidden=8, likelihood="nb")
    >>> history = model.fit(counts, progress=False)
    >>> rho = model.expression_fraction(counts)
    >>> rho.argmax(axis=1)[:6]
    array([0, 1, 0, 1, 0, 1])

Know after: every network of the chapter's figure (NN1 to NN6) and what it is for.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Self

import numpy as np

from minigrad import backend, functional, optim
from minigrad.backend import Array, Matrix
from minigrad.checkpoint import Saved, refuse_nonfinite
from minigrad.count_likelihoods import (
    nb_cell_log_prob_from_logits,
    poisson_cell_log_prob_from_logits,
    zinb_cell_log_prob_from_logits,
)
from minigrad.data import Minibatches
from minigrad.distributions import Normal, kl_divergence
from minigrad.fit import History, evaluating, fit
from minigrad.functional import data_of
from minigrad.nn import BatchNorm1d, Dropout, Linear, Module, Parameter, start_at
from minigrad.parallel import ranks_of
from minigrad.tensor import Tensor
from models import posterior
from models.counts import as_matrix, batch_codes, moments
from models.differential import ComparesGroups
from models.inputs import floating, one_of, sizes

# Added to the variance of q, as the reference does: keeps KL finite when a dimension is very sure.
VARIANCE_FLOOR = 1e-4
LIBRARY_FLOOR = 1e-4  # least variance of log library sizes in a batch: one cell alone has none
CHUNK = 512  # cells at a time when predicting
LIKELIHOODS = {
    "zinb": zinb_cell_log_prob_from_logits,
    "nb": nb_cell_log_prob_from_logits,
    "poisson": poisson_cell_log_prob_from_logits,
}


class Layers(Module):
    """Linear, batch norm, ReLU and dropout, n_layers times; the one-hot batch joins the input of
    every Linear.

    h = dropout(relu(batch_norm(W [h, one_hot] + b))), from x (n, n_in) to (n, n_hidden). n_batches:
    width of the one-hot code (0: none is taken).
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        n_batches: int = 0,
        dropout: float = 0.0,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        widths = [n_in] + [n_hidden] * (n_layers - 1)
        self.linears = [Linear(n + n_batches, n_hidden, dtype=dtype, rng=rng) for n in widths]
        self.norms = [BatchNorm1d(n_hidden, momentum=0.01, eps=1e-3, dtype=dtype) for _ in widths]
        self.dropout = Dropout(dropout)

    def __call__(self, x, rng=None, one_hot=None):
        for linear, norm in zip(self.linears, self.norms):
            x = linear(x if one_hot is None else np.concatenate([x, one_hot], axis=1))
            x = self.dropout(functional.relu(norm(x)), rng)
        return x


class Encoder(Module):
    """From log(1 + counts) (n, n_genes) to a Normal (n, n_out): NN1 (of z) and NN2 (of the log
    library size) of the chapter.

    h = Layers(x), mean = W h + b, variance = exp(V h + c) + VARIANCE_FLOOR (Lopez et al. 2018,
    Methods).
    """

    def __init__(
        self,
        n_genes: int,
        n_out: int,
        n_hidden: int,
        n_layers: int,
        dropout,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        self.layers = Layers(n_genes, n_hidden, n_layers, dropout=dropout, dtype=dtype, rng=rng)
        self.mean = Linear(n_hidden, n_out, dtype=dtype, rng=rng)
        self.log_var = Linear(n_hidden, n_out, dtype=dtype, rng=rng)

    def __call__(self, log1p_counts, rng=None) -> Normal:
        h = self.layers(log1p_counts, rng)
        return Normal(self.mean(h), np.sqrt(np.exp(self.log_var(h)) + VARIANCE_FLOOR))


class Decoder(Module):
    """From z (n, n_latent) and the batch to the parameters of the counts (n, n_genes): NN3 to NN6
    of the chapter.

    h = Layers(z, batch); its heads are linear in h: rho (softmax of its output), zi (log odds of a
    structural zero; ZINB only), theta (dispersion "gene-cell" only).
    """

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_batches: int,
        likelihood,
        dispersion,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        self.layers = Layers(
            n_latent, n_hidden, n_layers, n_batches if n_batches > 1 else 0, dtype=dtype, rng=rng
        )
        self.rho = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)
        if likelihood == "zinb":
            self.zi = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)
        if dispersion == "gene-cell":
            self.theta = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)


class SCVI(ComparesGroups, Saved, Module):
    """scVI for count matrices of n_genes genes, from n_batches batches.

    n_latent, n_hidden, n_layers: sizes of z and of the networks; dropout: of the encoder's hidden
    units, None: by cells, genes and depth of the counts (`usual_dropout`); thinning: whether the
    encoder is trained on thinned counts (`thinned`); likelihood: "zinb", "nb" or "poisson";
    dispersion: inverse dispersion theta per "gene", "gene-batch" or "gene-cell"; library:
    "observed" (the cell's total) or "latent" (its own encoder, and a log-normal prior);
    library_log_mean, library_log_var: mean and variance of the log totals of cells, one number or
    one per batch, by default those of the training cells. They are the prior of a latent library;
    where it is observed, only `generate` uses them. dtype: of weights and arithmetic; seed: of the
    initial weights.

        z     ~ Normal(0, 1)
        rho_n = softmax(network(z_n, s_n))
        x_ng  ~ (ZI)NB(mean l_n rho_ng, inverse dispersion theta_g)

    trained on ELBO = E_q[log p(x | z, l)] - KL(q(z) || p(z)) - KL(q(l) || p(l)) (chapter, "scVI:
    VAE for single-cell transcriptomics"; Lopez et al. 2018, Methods, "generative process"). Errors
    name the argument.

        >>> counts = np.random.default_rng(0).poisson(2.0, (40, 10))
        >>> model = SCVI(10, n_latent=2, n_hidden=16)
        >>> history = model.fit(counts, epochs=5, progress=False)
        >>> model.latent(counts).shape, model.expression_fraction(counts).sum(axis=1).round(3)[:2]
        ((40, 2), array([1., 1.], dtype=float32))

    Architecture and objective are scvi-tools'. The default number of latent dimensions and those of
    training differ, by measurement on held-out cells (`fit`).
    """

    buffers = ("library_log_mean", "library_log_var", "batch_fraction")
    described = ("batches", "genes", "trained")
    ignored: list[str]  # names of weights that `from_scvi_tools` did not use

    def __init__(
        self,
        n_genes: int,
        n_batches: int = 1,
        *,
        n_latent: int = 30,
        n_hidden: int = 128,
        n_layers: int = 1,
        dropout: float | None = None,
        thinning: bool = True,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        library: str = "observed",
        library_log_mean=None,
        library_log_var=None,
        dtype=np.float32,
        seed: int = 0,
    ):
        one_of("likelihood", likelihood, LIKELIHOODS)
        one_of("dispersion", dispersion, ("gene", "gene-batch", "gene-cell"))
        one_of("library", library, ("observed", "latent"))
        dtype = floating(dtype)
        n_genes, n_batches, n_latent, n_hidden, n_layers = sizes(
            n_genes=n_genes,
            n_batches=n_batches,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
        )
        self.config = dict(
            n_genes=n_genes,
            n_batches=n_batches,
            n_latent=n_latent,
            n_hidden=n_hidden,
            n_layers=n_layers,
            dropout=None if dropout is None else float(dropout),
            thinning=bool(thinning),
            likelihood=likelihood,
            dispersion=dispersion,
            library=library,
            dtype=dtype.name,
            seed=int(seed),
        )
        self.likelihood, self.dispersion, self.library = likelihood, dispersion, library
        self.n_genes, self.n_batches, self.n_latent, self.dtype = (
            n_genes,
            n_batches,
            n_latent,
            dtype,
        )
        rng, kind = np.random.default_rng(seed), dict(dtype=dtype)
        dropout = 0.0 if dropout is None else dropout  # until `fit` knows the depth of the counts
        self.z_encoder = Encoder(n_genes, n_latent, n_hidden, n_layers, dropout, rng=rng, **kind)
        if library == "latent":
            self.l_encoder = Encoder(n_genes, 1, n_hidden, 1, dropout, rng=rng, **kind)
        self.decoder = Decoder(
            n_genes,
            n_latent,
            n_hidden,
            n_layers,
            n_batches,
            likelihood,
            dispersion,
            rng=rng,
            **kind,
        )
        if likelihood != "poisson" and dispersion != "gene-cell":
            shape = (n_genes,) if dispersion == "gene" else (n_genes, n_batches)
            self.log_theta = Parameter(rng.standard_normal(shape), dtype)
        self.library_given = library_log_mean is not None, library_log_var is not None
        self.library_log_mean = _per_batch(library_log_mean, 0.0, n_batches, dtype)
        self.library_log_var = _per_batch(library_log_var, 1.0, n_batches, dtype)
        self.batch_fraction = np.full(n_batches, 1.0 / n_batches, dtype)
        self.batches, self.genes, self.trained = list(range(n_batches)), None, False

    # ----------------------------------------------------------------------------- the model itself
    def inference(
        self, counts, rng: np.random.Generator | None = None
    ) -> tuple[Normal, Normal | None]:
        """q(z | x) and q(log l | x) of a minibatch; the latter None where the library is observed.
        counts: (n, n_genes).

        rng: of the encoder's noise in training, dropout and thinning (`thinned`); without one
        nothing is thinned.
        """
        seen = counts
        if self.config["thinning"] and self.training and rng is not None:
            seen = thinned(counts, rng)
        q_z = self.z_encoder(_log1p(seen), rng)
        return q_z, self.l_encoder(_log1p(counts), rng) if self.library == "latent" else None

    def heads(self, z: Array, batch, rng: np.random.Generator | None = None) -> dict:
        """What the decoder says of z (n, n_latent) and batch codes (n,): logits of rho, log_theta
        and zi_logits.

        Each (n, n_genes); log_theta may be (n_genes,); None where the likelihood has no such
        parameter.
        """
        one_hot = self.one_hot(batch) if self.n_batches > 1 else None
        h, log_theta = self.decoder.layers(z, rng, one_hot), None
        if self.likelihood != "poisson":
            log_theta = (
                self.decoder.theta(h)
                if self.dispersion == "gene-cell"
                else self.log_theta
                if self.dispersion == "gene"
                else self.one_hot(batch) @ np.transpose(self.log_theta)
            )
        zi_logits = self.decoder.zi(h) if self.likelihood == "zinb" else None
        return dict(logits=self.decoder.rho(h), log_theta=log_theta, zi_logits=zi_logits)

    def generative(self, z: Array, log_library: Array, batch) -> dict:
        """Parameters of the counts given z (n, n_latent), log_library (n, 1) and batch codes (n,).

        Returns log_rho, log_mu, log_theta and zi_logits, as `heads` does.
        """
        heads = self.heads(z, batch)
        log_rho = functional.log_softmax(heads.pop("logits"))
        return dict(log_rho=log_rho, log_mu=log_rho + log_library, **heads)

    def log_prob(
        self,
        counts,
        log_library: Array,
        logits: Array,
        log_theta: Array | None = None,
        zi_logits: Array | None = None,
    ) -> Array:
        """log p(x | z, l) = sum over genes of log (ZI)NB or Poisson: (n,), in nats.

        counts: (n, n_genes); log_library: (n, 1); the other parameters are those of `heads`. A cell
        without counts, which training leaves out, has 0; `elbo` and `log_likelihood` give it a
        value of its own where the library is latent.
        """
        parameters = [p for p in (log_theta, zi_logits) if p is not None]
        return LIKELIHOODS[self.likelihood](counts, logits, log_library, *parameters)

    def terms(
        self,
        counts,
        batch,
        rng: np.random.Generator | None = None,
        eps_z: Array | None = None,
        eps_l: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """(E_q[log p(x | z, l)], KL(q(z) || p(z)), KL(q(l) || p(l))) of each cell, (n,) each, by
        one draw from q.

        In nats; ELBO = the first minus the others (chapter, "Two optimization objectives"; Kingma &
        Welling 2014, eq. 7 and 10). The noise is eps_z (n, n_latent) and eps_l (n, 1), or drawn
        from rng.
        """
        q_z, q_l = self.inference(counts, rng)
        z = q_z.rsample(eps_z, None if eps_z is not None else rng)
        kl_z = np.sum(kl_divergence(q_z, Normal(0.0, 1.0)), axis=1)
        if q_l is None:
            log_library, kl_l = self.observed_log_library(counts), np.zeros_like(kl_z.data)
        else:
            log_library = q_l.rsample(eps_l, None if eps_l is not None else rng)
            kl_l = np.sum(kl_divergence(q_l, self.library_prior(batch)), axis=1)
        return self.log_prob(counts, log_library, **self.heads(z, batch, rng)), kl_z, kl_l

    def loss(
        self, counts, batch, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """-ELBO, averaged over the minibatch: a scalar = -mean(log p - weight kl_z - kl_l), in
        nats.

        weight: rises from 0 to 1 while progress does from 0 to kl_warmup.
        """
        log_p, kl_z, kl_l = self.terms(counts, batch, rng)
        weight = min(1.0, progress / self.kl_warmup) if self.kl_warmup else 1.0
        return -np.mean(log_p - weight * kl_z - kl_l)

    def validation(self, counts, batch, *, rng: np.random.Generator | None = None) -> dict:
        """The ELBO of each cell (KL weight 1) and its two parts, as plain arrays."""
        log_p, kl_z, kl_l = map(data_of, self.terms(counts, batch, rng))
        kl = kl_z + kl_l
        return {"elbo": log_p - kl, "reconstruction": log_p, "kl": kl}

    def one_hot(self, batch) -> Array:
        """Batch codes (n,) as (n, n_batches) zeros and ones."""
        codes = np.arange(self.n_batches, like=batch)
        return (batch[:, None] == codes).astype(self.dtype)

    def observed_log_library(self, counts) -> Array:
        """log of each cell's total, (n, 1); 0 for a cell without counts, whose likelihood does not
        depend on it.
        """
        total = backend.as_array(counts.sum(axis=1)).reshape(-1, 1)
        return np.log(np.maximum(total, 1.0)).astype(self.dtype)

    def library_prior(self, batch) -> Normal:
        """p(log l) of each cell's batch, parameters (n, 1)."""
        return Normal(
            self.library_log_mean[batch][:, None], np.sqrt(self.library_log_var[batch])[:, None]
        )

    # ------------------------------------------------------------------------------------- training
    def fit(
        self,
        counts,
        batch: Array | str | None = None,
        *,
        epochs: int | None = None,
        batch_size: int = 128,
        validation: float = 0.1,
        learning_rate: float = 4e-3,
        seed: int | None = None,
        kl_warmup: float = 0.25,
        weight_decay: float | None = None,
        early_stopping: bool | int = False,
        checkpoint=None,
        resume: bool = False,
        progress: bool = True,
        device: str | None = None,
        layer: str | None = None,
        parallel: str | None = None,
    ) -> History:
        """Train on counts (n_cells, n_genes): array, SciPy sparse, AnnData (its .X or `layer`), or
        counts.read's result.

        Counts on the disk (counts.read with backed=True, AnnData with backed="r") stay there,
        whatever their size. batch: an int or string label per cell, or the name of an obs column.
        Cells without counts are left out, with a warning. A trained model is trained on; its genes
        and batches stay what they are, and others are refused, as for predictions. kl_warmup:
        fraction of the training, at most 0.5, over which the KL weight rises from 0 to 1. Other
        arguments are those of minigrad.fit. ValueError names what is wrong with the counts.

        The defaults differ from scvi-tools' (constant rate 1e-3, Adam, KL warm-up over 400 epochs)
        because held-out likelihood says so: a rate that starts at 4e-3 and falls to 0 on a cosine
        reaches better weights in half the epochs; biases, dispersions and the library encoder start
        at the moments of the data; and both networks are kept from learning the training cells by
        heart, in three ways:

        - The decoder's output weights have a normal prior of mean 0 and variance 1 / n_hidden:
          before anything is seen, log rho differs by about 1 between cells (`_optimizer`). The loss
          of a cell gets weight_decay / 2 * sum(w^2), with weight_decay = n_hidden / number of cells
          trained on unless it is given; 0: no prior. It weighs less the more cells there are, and
          the deeper they are.
        - The encoder sees thinned counts (`thinned`), a noise that costs deep cells little.
        - Some of its hidden units are dropped, if cells are few and shallow (`usual_dropout`).

        epochs=None: 200, fewer above 20,000 cells, more where that is under 500 steps
        (`usual_epochs`).

        What that is worth, beside two other ways: none of the three, and AdamW's decay of all
        weights (by 20,000 / n_cells, between 0.5 and 20 over the training) with dropout 0.1. Held-
        out log p, nats a cell (importance-weighted; ARI of k-means in brackets), of one split for
        each row, on which the settings were also chosen. Held-out cells and draws differ from row
        to row: only numbers in a row compare, and differences of 2 nats say nothing.

        | data | cells x genes | none | AdamW | these |
        | --- | --- | --- | --- | --- |
        | cortex | 100 x 558 | -1643 | -1757 | -1619 |
        | cortex | 500 x 558 | -1548.5 | -1563.6 | -1549.6 |
        | cortex | 2,404 x 558 | | -1266.6 (.75) | -1268.2 (.68) |
        | pbmc68k | 100 x 765 | -725 | -724 | -688 |
        | pbmc68k | 560 x 765 | -690.2 | -663.6 | -663.6 (.50) |
        | blood, 10x PBMC 3k | 2,111 x 2,000 | | -1490.4 (.57) | -1474.5 (.61) |
        | blood, sorted | 2,800 x 2,000 | | -1128.7 (.88) | -1111.8 (.89) |
        """
        self._check_training(batch, epochs, batch_size, learning_rate, kl_warmup)
        before = self.trained, self.batches, self.genes
        dropout = self.config["dropout"]
        with ranks_of(parallel).preparing():
            x, codes = self._training_cells(counts, batch, layer)
        n_train = x.shape[0] - round(validation * x.shape[0])
        if epochs is None:
            epochs = usual_epochs(x.shape[0], max(1, round(n_train / batch_size)))
        if weight_decay is None:
            weight_decay = self.config["n_hidden"] / max(1, n_train)
        optimizer = partial(self._optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
        self.kl_warmup, self.trained = kl_warmup, True
        try:
            if n_train < 2 and validation < 1:
                raise ValueError(
                    f"validation={validation} of {x.shape[0]} cells leaves {n_train} to train on; "
                    "training needs at least 2"
                )
            return fit(
                self,
                (x, codes),
                epochs=epochs,
                optimizer=optimizer,
                batch_size=batch_size,
                validation=validation,
                seed=self.config["seed"] if seed is None else seed,
                early_stopping=early_stopping,
                device=device,
                checkpoint=checkpoint,
                resume=resume,
                progress=progress,
                parallel=parallel,
                describe=self.description,
            )
        except (ValueError, OSError, ImportError, RuntimeError):
            self.trained, self.batches, self.genes = before
            self._set_dropout(dropout)
            raise

    def _check_training(self, batch, epochs, batch_size, learning_rate, kl_warmup) -> None:
        """ValueError for arguments of `fit` that cannot be."""
        if not 0 <= kl_warmup <= 0.5:
            raise ValueError(
                f"kl_warmup must be in [0, 0.5] (a fraction of the training), not {kl_warmup}"
            )
        if self.n_batches > 1 and batch is None:
            raise ValueError(f"batch is missing: the model was made for n_batches={self.n_batches}")
        sizes(batch_size=batch_size, **({} if epochs is None else {"epochs": epochs}))
        if batch_size < 2:
            raise ValueError(
                "batch_size must be at least 2, for batch norm compares the cells of a minibatch, "
                f"not {batch_size}"
            )
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, not {learning_rate!r}")

    def _optimizer(self, parameters, learning_rate, weight_decay) -> optim.Adam:
        """Adam on the loss and the normal prior of the decoder's output weights.

        The scales of the batch norm before them stay at 1: they could grow in the weights' place,
        and do (pbmc of 2,000 genes, 200 epochs: -1483 where they are trained, -1479 where not;
        one split, other settings nearly alike).
        """
        heads = [getattr(self.decoder, name, None) for name in ("rho", "zi", "theta")]
        weights = [head.weight for head in heads if head]
        fixed = self.decoder.layers.norms[-1].weight
        return _MostProbable(parameters, learning_rate, weight_decay, weights, fixed)

    def _training_cells(self, counts, batch, layer):
        """Checked counts and batch codes of the cells that have counts; starts a new model at their
        moments.
        """
        x = as_matrix(counts, layer=layer, on_disk=True)
        self._check_width(x)
        if self.trained:
            self._check_genes(counts)
        known = (
            self.batches if self.trained else None
        )  # weights that are trained belong to these batches, in this order
        codes, batches = batch_codes(
            batch, x.shape[0], known=known, obs=getattr(counts, "obs", None)
        )
        if len(batches) > self.n_batches:
            raise ValueError(
                f"batch has {len(batches)} different labels, but the model was made for "
                f"n_batches={self.n_batches}"
            )
        sums = moments(x)
        full = np.flatnonzero(sums.totals > 0)
        if len(full) < 2:
            raise ValueError(
                f"counts: {len(full)} cells with counts of {x.shape[0]}; training needs at least 2"
            )
        if len(full) < x.shape[0]:
            warnings.warn(
                f"{x.shape[0] - len(full)} cells without counts are left out of training",
                stacklevel=3,
            )
            x, codes, sums.totals = x[full], codes[full], sums.totals[full]
        x = x.astype(self.dtype) if x.dtype != self.dtype else x
        if not self.trained:
            self.batches, self.genes = batches, _genes_of(counts)
            self._start_from_moments(sums, codes)
        if self.config["dropout"] is None:
            self._set_dropout(usual_dropout(*x.shape, sums.totals.sum()))
        return x, codes

    def _set_dropout(self, dropout: float | None) -> None:
        """Dropout of the encoders, None: as long as `fit` has not chosen one."""
        self.config["dropout"] = dropout
        for encoder in (self.z_encoder, getattr(self, "l_encoder", None)):
            if encoder:
                encoder.layers.dropout.p = dropout or 0.0

    kl_warmup = 0.25

    def _start_from_moments(self, sums, codes) -> None:
        """Biases and dispersions from the data; those that are frozen stay.

        rho starts at mean expression, theta from moments, extra zeros at log odds of -2.

        The bias of the library encoder's mean starts at the mean of the log totals of all cells,
        whatever their batch, which it does not see, and its variance at the prior's. From log l =
        0, where it would start else, log l must rise by 5 to 10 in steps of a learning rate while
        the decoder learns from means that are wrong by factors of thousands.
        """
        totals, of_gene = sums.totals, sums.of_genes
        rho = (of_gene + 0.5) / (of_gene.sum() + 0.5 * self.n_genes)
        start_at(self.decoder.rho.bias, np.log(rho) - np.log(rho).mean())
        if self.likelihood == "zinb":
            start_at(self.decoder.zi.bias, -2.0)
        if self.likelihood != "poisson":
            spread = sums.squares - 2 * rho * sums.with_totals + rho**2 * np.sum(totals**2)
            log_theta = np.log(
                np.clip(rho**2 * np.sum(totals**2) / np.maximum(spread - of_gene, 1e-8), 0.05, 100)
            )
            if self.dispersion == "gene-cell":
                start_at(self.decoder.theta.bias, log_theta)
            else:
                start_at(
                    self.log_theta, log_theta if self.dispersion == "gene" else log_theta[:, None]
                )
        for b in range(self.n_batches):
            of_batch = np.log(totals[codes == b]) if np.any(codes == b) else np.log(totals)
            if not self.library_given[0]:
                self.library_log_mean[b] = of_batch.mean()
            if not self.library_given[1]:
                self.library_log_var[b] = max(of_batch.var(), LIBRARY_FLOOR)
            self.batch_fraction[b] = np.mean(codes == b)
        if self.library == "latent":
            prior_variance = backend.to_host(self.batch_fraction @ self.library_log_var)
            start_at(self.l_encoder.mean.bias, np.log(totals).mean()[None])
            start_at(self.l_encoder.log_var.bias, np.log(prior_variance)[None])

    # ---------------------------------------------------------------- what a trained model is asked
    def minibatches(
        self,
        counts,
        batch: Array | str | None = None,
        layer: str | None = None,
        size=CHUNK,
        on_disk: bool = True,
    ) -> Minibatches:
        """Checked counts and batch codes, `size` cells at a time in their order: (n, n_genes) and
        (n,).

        ValueError for an unknown batch, and other genes. on_disk: whether counts may stay on the
        disk, see as_matrix.
        """
        x = as_matrix(counts, layer=layer, on_disk=on_disk)
        self._check_width(x)
        self._check_genes(counts)
        codes, _ = batch_codes(
            batch, x.shape[0], known=self.batches, obs=getattr(counts, "obs", None)
        )
        return Minibatches((x.astype(self.dtype) if x.dtype != self.dtype else x, codes), size)

    def latent(
        self,
        counts,
        batch: Array | str | None = None,
        *,
        return_std: bool = False,
        layer: str | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of q(z | x): (n_cells, n_latent), deterministic.

        With return_std: (means, standard deviations).
        """
        means, stds = [], []
        with evaluating(self):
            for x, _ in self.minibatches(counts, batch, layer):
                q_z, _ = self.inference(backend.to_device(x, self.device))
                means.append(q_z.loc.numpy())
                stds.append(q_z.scale.numpy())
        return (
            (np.concatenate(means), np.concatenate(stds)) if return_std else np.concatenate(means)
        )

    elbo = posterior.elbo
    log_likelihood = posterior.log_likelihood
    generate = posterior.generate
    expression_fraction = posterior.expression_fraction
    denoise = posterior.denoise
    sample_posterior = posterior.sample_posterior

    # ---------------------------------------------------------------------------------------- files
    @staticmethod
    def least_size(config) -> tuple[int, int]:
        """(arrays, numbers) that the weights of a model with this configuration are at least: see
        checkpoint.Saved.
        """
        genes, batches, latent, hidden, layers = (
            int(config[name])
            for name in ("n_genes", "n_batches", "n_latent", "n_hidden", "n_layers")
        )
        inputs = (
            genes + latent + (layers - 1) * hidden + (layers * batches if batches > 1 else 0)
        )  # of the hidden units
        return layers, hidden * inputs + batches * (
            genes if config["dispersion"] == "gene-batch" else 1
        )

    @classmethod
    def from_scvi_tools(cls, state, **config) -> Self:
        """A model with weights trained with scvi-tools (1.x): `state` maps its state-dict names to
        arrays.

        config: the arguments of SCVI that the training used (n_batches, n_layers, likelihood,
        dispersion, library ...); n_genes, n_latent and n_hidden are read from the shapes. Heads
        that the configuration does not use are left out and listed in `.ignored`. ValueError for
        weights that are NaN or infinite.
        """
        refuse_nonfinite(state, "state: cannot be used")
        first = np.asarray(state["z_encoder.encoder.fc_layers.Layer 0.0.weight"])
        sizes = dict(
            n_genes=first.shape[1],
            n_hidden=first.shape[0],
            dtype=np.promote_types(first.dtype, np.float32),  # halves are computed in float32
            n_latent=np.asarray(state["z_encoder.mean_encoder.weight"]).shape[0],
        )
        model = cls(**{**sizes, **config})
        new, model.ignored = {}, []
        targets = model.state_dict()
        for name, array in state.items():
            ours = _our_name(name)
            if ours in targets:
                new[ours] = np.asarray(array).reshape(targets[ours].shape)
            else:
                model.ignored.append(name)
        model.load_state_dict({**{k: targets[k] for k in cls.buffers}, **new})
        model.trained = True
        return model.eval()

    def _check_genes(self, counts) -> None:
        """ValueError for counts whose genes have other names than the model's, if both have names.

        Names may occur more than once: genes of one name are told apart by their order.
        """
        genes = _genes_of(counts)
        if self.genes is not None and genes is not None and self.genes != genes:
            raise ValueError(
                "counts: its genes differ, or stand in another order, from those that the model "
                "was trained on (model.genes); select and order them alike"
            )

    def _check_width(self, x) -> None:
        if x.shape[1] != self.n_genes:
            raise ValueError(
                f"counts have {x.shape[1]} genes, the model was made for n_genes={self.n_genes}; "
                "select the same "
                "genes, in the same order"
            )


def _genes_of(counts) -> list | None:
    """Names of the genes of Counts or AnnData, (n_genes,) str; None for a matrix without names."""
    genes = getattr(counts, "genes", getattr(counts, "var_names", None))
    return None if genes is None else [str(name) for name in genes]


class _MostProbable(optim.Adam):
    """Adam to the most probable weights: to the loss comes weight_decay / 2 * sum(w^2) of
    `decayed`.

    That is -log p(w) / n_cells of a normal prior with precision n_cells * weight_decay. Its
    gradient is added here: a term of the loss would pass over the weights three times. Adam sees it
    beside the likelihood's, so that it yields where many counts speak; the decoupled decay of AdamW
    takes the same from all, and from 100 deep cells too much. fixed: a parameter that does not
    change.
    """

    def __init__(self, parameters, learning_rate: float, weight_decay: float, decayed, fixed):
        super().__init__(parameters, learning_rate)
        self.weight_decay, self.decayed, self.fixed = weight_decay, decayed, fixed

    def step(self) -> None:
        self.fixed.grad = None
        for p in self.decayed:
            if p.grad is not None:  # a likelihood without dispersion leaves that head alone
                p.grad += self.weight_decay * p.data
        super().step()


def usual_dropout(n_cells: int, n_genes: int, n_counts: float) -> float:
    """Dropout of the encoder: 0.3 * min(1, genes per cell) * min(1, 1 / counts per gene and cell).

    It keeps the encoder from reading the cells by heart, which it could where it has more genes
    than cells to learn from. Deep counts, whose own noise is small, lose most by it. Held-out log p
    with 0.3 against next to nothing: +2 on blood (2,111 cells x 2,000 genes, 1 count a gene), -11
    on cortex (2,404 x 558, 10 counts a gene). n_counts: the sum over all n_cells and n_genes.
    """
    depth = float(n_counts) / (n_cells * n_genes)
    return 0.3 * min(1.0, n_genes / n_cells) / max(1.0, depth)


def usual_epochs(n_cells: int, n_steps: int) -> int:
    """Epochs of a training on n_cells, n_steps to the epoch: 200, or what makes 500 steps.

    Fewer above 20,000 cells, as steps are what counts; never under 10.

    100 cells need more than 200 epochs of one step: the running statistics of batch norm alone
    take hundreds. Held-out log p of 100 cells of cortex after 200, 500 and 1,000 steps: -1653,
    -1618, -1657; the whole of cortex needs its 200 epochs (100: -1518, 200: -1512). One split, on
    the way to the present settings: batch norm's scales were trained, the -1653 was not thinned.
    """
    return max(10, min(200, round(200 * 20000 / n_cells)), -(-500 // n_steps))


def _log1p(counts):
    """log(1 + counts), dense or CSR.

    NumPy's log1p and SciPy's would take five times as long; 1 + a count is exact.
    """
    if not backend.is_sparse(counts):
        return np.log(counts + 1.0)
    return type(counts)(
        (np.log(counts.data + 1.0), counts.indices, counts.indptr), shape=counts.shape
    )


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
    is_seen = counts > 0  # zeros stay, and draw nothing: CSR and dense counts meet the same noise
    kept = np.zeros_like(counts)
    kept[is_seen] = _half(counts[is_seen], rng)
    return kept


def _half(counts: Array, rng: np.random.Generator) -> Array:
    """Twice about Binomial(x, 1/2) of each of counts (n,): see `thinned`."""
    noise = rng.standard_normal(counts.shape, dtype=np.float32)
    kept = np.rint(0.5 * (counts + np.sqrt(counts) * noise))
    return 2.0 * np.minimum(np.maximum(kept, 0.0), counts)


def _per_batch(values, default, n_batches, dtype):
    """Prior parameters of the library, one a batch."""
    return np.array(
        np.broadcast_to(default if values is None else np.ravel(values), n_batches), dtype
    )


def _our_name(name: str) -> str:
    """The name here of a weight in scvi-tools' state dict."""
    if name == "px_r":
        return "log_theta"
    for theirs, ours in (
        ("encoder.fc_layers.Layer ", "layers."),
        ("px_decoder.fc_layers.Layer ", "layers."),
        ("mean_encoder", "mean"),
        ("var_encoder", "log_var"),
        ("px_scale_decoder.0", "rho"),
        ("px_r_decoder", "theta"),
        ("px_dropout_decoder", "zi"),
        ("library_log_vars", "library_log_var"),
        ("library_log_means", "library_log_mean"),
    ):
        name = name.replace(theirs, ours)
    owner, _, rest = name.partition("layers.")
    if not rest:
        return name
    i, kind, attribute = rest.split(".", 2)
    return f"{owner}layers.{'linears' if kind == '0' else 'norms'}.{i}.{attribute}"

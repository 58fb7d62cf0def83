"""scVI: a variational autoencoder whose decoder speaks the language of counts (Lopez et al. 2018).

This is a lesson. The chapter, which is block 5 of the course MCB128 (see README), has it in Figure
12. The rows x are now cells, and the entries counts of molecules, gene by gene. Three things are
new beside a VAE. Counts scatter in a way of their own, so the decoder's distribution is a negative
binomial (NB), which may be zero-inflated (ZINB). How many molecules were counted in a cell at all,
its library size l, says more about the experiment than about the cell, so it is kept apart from z.
And cells come from batches s, such as donors or days of an experiment (not the minibatches of a
training), which the decoder is told, so that z need not say it:

    z_n     ~ Normal(0, 1)                      latent state of cell n
    log l_n ~ Normal(mean, standard deviation)  those of its batch; or l_n is the observed total
    rho_n   = softmax(network(z_n, s_n))        expected fractions of expression, summing to 1
    x_ng    ~ NB(mean l_n rho_ng, inverse dispersion theta_g)
              or 0 instead, with probability expit(zi_logits_ng)

(Normal is given by mean and standard deviation, as everywhere here.) The encoder turns log(1 + x_n)
into q(z_n | x_n), which is Normal as well; where l is latent, a second one does the same for log l.
All is trained together to raise the evidence lower bound

    ELBO = E_q[log p(x | z, l)] - KL(q(z) || p(z)) - KL(q(l) || p(l))

Forty cells of two kinds, which differ in the first two of three genes, are told apart again. Here z
is a single number, and rho says which gene the model expects most of in each cell:

    >>> counts = np.random.default_rng(0).poisson([[30.0, 3.0, 9.0], [3.0, 30.0, 9.0]] * 20)
    >>> model = SCVI(3, n_latent=1, n_hidden=8, likelihood="nb")
    >>> history = model.fit(counts, progress=False)
    >>> rho = model.expression_fraction(counts)
    >>> rho.argmax(axis=1)[:6]
    array([0, 1, 0, 1, 0, 1])

Five files carry what is not the model: recipe.py the choices that `fit` makes, and why;
count_inputs.py what is taken and refused; covariates.py what else than the batch the decoder may be
told; query.py how a trained model learns further batches; posterior.py, the next lesson, what a
trained model is asked.

Know before reading: vae.py, and minigrad/nn.py, distributions.py and count_likelihoods.py.

Know after: every network of the chapter's figure (NN1 to NN6) and what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from minigrad import backend, functional
from minigrad.backend import Array
from minigrad.checkpoint import Saved
from minigrad.count_likelihoods import (
    nb_cell_log_prob_from_logits,
    poisson_cell_log_prob_from_logits,
    zinb_cell_log_prob_from_logits,
)
from minigrad.data import Minibatches
from minigrad.distributions import Normal, kl_divergence
from minigrad.fit import History, evaluating, fit
from minigrad.functional import data_of
from minigrad.nn import BatchNorm1d, Dropout, Linear, Module, Parameter
from minigrad.parallel import ranks_of
from minigrad.tensor import Tensor
from minigrad.training import unchanged_if_it_fails
from models import recipe, scvi_tools
from models.abundance import ComparesAbundance
from models.count_inputs import (
    TrainingCells,
    cells_to_ask_about,
    cells_to_encode,
    check_training,
    known_of_data,
    training_cells,
)
from models.covariates import ObsColumns, columns_from
from models.differential import ComparesGroups
from models.inputs import dense, floating, one_of, sizes, whole_number
from models.posterior import (
    LOG_MEAN_OF_NO_CELLS,
    LOG_VAR_OF_NO_CELLS,
    AnswersByDraws,
    knows_library,
)
from models.query import MapsQueries, NewColumns, keep_apart

# Added to the variance of q, as the reference does: keeps KL finite when a dimension is very sure.
VARIANCE_FLOOR = 1e-4
CHUNK = 512  # cells at a time when predicting, and on a GPU more
LIKELIHOODS = {
    "zinb": zinb_cell_log_prob_from_logits,
    "nb": nb_cell_log_prob_from_logits,
    "poisson": poisson_cell_log_prob_from_logits,
}


# -------------------------------------------------------------------------------------- networks
class ToldLinear(Linear):
    """A Linear of x (n, n_in) and of what else is told of each cell, (n, n_conditions).

    y = W [x, conditions] + b. conditions None: nothing else is told. ValueError as for Linear.
    """

    def __call__(self, x, conditions=None):
        if conditions is not None:
            x = np.concatenate([dense(x), conditions], axis=1)
        return super().__call__(x)


class Layers(Module):
    """Linear, batch norm, ReLU and dropout, n_layers times; the conditions join the input of every
    Linear.

    h = dropout(relu(batch_norm(W [h, conditions] + b))), from x (n, n_in) to (n, n_hidden).
    conditions: what is known of each cell beside x, (n, n_conditions): its one-hot batch, and
    covariates where there are any (SCVI.conditions); n_conditions = 0: none are taken.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        n_conditions: int = 0,
        dropout: float = 0.0,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        widths = [n_in] + [n_hidden] * (n_layers - 1)
        self.linears: list[Linear] = [
            ToldLinear(n + n_conditions, n_hidden, dtype=dtype, rng=rng) for n in widths
        ]
        # momentum and eps are those of scvi-tools.
        self.norms = [BatchNorm1d(n_hidden, momentum=0.01, eps=1e-3, dtype=dtype) for _ in widths]
        self.dropout = Dropout(dropout)

    def __call__(self, x, rng=None, conditions=None):
        h = x
        for linear, norm in zip(self.linears, self.norms):
            h = self.dropout(functional.relu(norm(linear(h, conditions))), rng)
        return h


class Encoder(Module):
    """From log(1 + counts) (n, n_genes) to a Normal (n, n_out): mean and variance of the log
    library size, NN1 and NN2 of the chapter, and of z, NN3 and NN4.

    h = Layers(x), mean = W h + b, variance = exp(V h + c) + VARIANCE_FLOOR (Lopez et al. 2018,
    Methods). It may be told the conditions, too, see SCVI's encode_covariates.
    """

    def __init__(
        self,
        n_genes: int,
        n_out: int,
        n_hidden: int,
        n_layers: int,
        n_conditions: int,
        dropout: float,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        self.layers = Layers(
            n_genes, n_hidden, n_layers, n_conditions, dropout, dtype=dtype, rng=rng
        )
        # Two layers, which return the mean and the log variance of q. Saved weights go by these
        # names. (The `mean` of a distribution is an array: its expectation.)
        self.mean = Linear(n_hidden, n_out, dtype=dtype, rng=rng)
        self.log_var = Linear(n_hidden, n_out, dtype=dtype, rng=rng)

    def __call__(self, log1p_counts, rng=None, conditions=None) -> Normal:
        h = self.layers(log1p_counts, rng, conditions)
        mean = self.mean(h)
        variance = np.exp(self.log_var(h)) + VARIANCE_FLOOR
        return Normal(mean, np.sqrt(variance))


class Decoder(Module):
    """From z (n, n_latent) and the batch to the parameters of the counts (n, n_genes): NN5 (rho)
    and NN6 (zi) of the chapter.

    h = Layers(z, conditions), the batch being one of these; its heads are linear in h: rho (softmax
    of its output), zi (log odds of a structural zero; ZINB only), theta (log of the inverse
    dispersion; only where that is one per "gene-cell"). SCVI.heads calls them.
    """

    # Added to the logits of rho for cells of batches that `map_query` has added (query.py).
    offsets: NewColumns | None = None

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_conditions: int,
        likelihood: str,
        dispersion: str,
        *,
        dtype,
        rng: np.random.Generator,
    ):
        self.layers = Layers(n_latent, n_hidden, n_layers, n_conditions, dtype=dtype, rng=rng)
        self.rho = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)
        if likelihood == "zinb":
            self.zi = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)
        if dispersion == "gene-cell":
            self.theta = Linear(n_hidden, n_genes, dtype=dtype, rng=rng)


# ----------------------------------------------------------------------------------------- model
class SCVI(AnswersByDraws, ComparesGroups, ComparesAbundance, MapsQueries, Saved):
    """scVI for count matrices of n_genes genes, from n_batches batches.

    n_latent, n_hidden, n_layers: sizes of z and of the networks; n_layers None: 1, and 2 with
    several batches or covariates, which z then says less of (recipe.py); dropout: of the encoder's
    hidden units, None: by cells, genes and depth of the counts (`usual_dropout` there); thinning:
    whether the encoder is trained on thinned counts (`thinned` there); likelihood: "zinb", "nb" or
    "poisson"; dispersion: inverse dispersion theta per "gene", "gene-batch" or "gene-cell";
    library: "observed" (the cell's total) or "latent" (its own encoder, and a log-normal prior);
    library_log_mean, library_log_var: mean and variance of the log totals of cells, one number or
    one per batch, by default those of the training cells. They are the prior of a latent library;
    where it is observed, only `generate` uses them. columns: the obs columns of covariates, which
    `for_data` finds; encode_covariates: whether the encoders see batch and covariates, and not the
    decoder alone; reference: of a model that `map_query` made, what it knew before (query.py).
    dtype: of weights and arithmetic; seed: of the initial weights.

        z     ~ Normal(0, 1)
        rho_n = softmax(network(z_n, s_n))
        x_ng  ~ (ZI)NB(mean l_n rho_ng, inverse dispersion theta_g)

    trained on ELBO = E_q[log p(x | z, l)] - KL(q(z) || p(z)) - KL(q(l) || p(l)) (chapter, "scVI:
    VAE for single-cell transcriptomics"; Lopez et al. 2018, Methods, "generative process"). Errors
    name the argument. The methods, in the order in which `terms` calls them:

        counts   -- inference --> q(z | x), q(log l | x) -- a draw of each --> z, log l
        z, batch -- heads -----> logits of rho, log_theta, zi_logits -- log_prob --> log p(x | z, l)

        >>> counts = np.random.default_rng(0).poisson(2.0, (40, 10))
        >>> model = SCVI(10, n_latent=2, n_hidden=16)
        >>> history = model.fit(counts, epochs=5, progress=False)
        >>> model.latent(counts).shape, model.expression_fraction(counts).sum(axis=1).round(3)[:2]
        ((40, 2), array([1., 1.], dtype=float32))

    Architecture and objective are scvi-tools', but for thinned counts and the priors of weights and
    of log theta. These, the default number of latent dimensions and the defaults of training
    differ, by measurement on held-out cells (recipe.py).
    """

    # In files, beside the weights: arrays that are not trained (nn.py), and what JSON can say
    # (minigrad/checkpoint.py).
    buffers: tuple[str, ...] = ("library_log_mean", "library_log_var", "batch_fraction")
    described = ("batches", "genes", "trained", "n_cells", "unmeasured")
    kl_warmup = 0.25  # see fit
    n_cells: int | None = None  # that batch_fraction is of, those for validation too
    unmeasured: Mapping[str, list[str]] = {}  # batch -> genes that its cells lack: measured.py
    knows_data = False  # whether genes and batches are those of `for_data`, before it is trained
    ignored: list[str]  # names of weights that `from_scvi_tools` did not use

    def __init__(
        self,
        n_genes: int,
        n_batches: int = 1,
        *,
        n_latent: int = 30,
        n_hidden: int = 128,
        n_layers: int | None = None,
        dropout: float | None = None,
        thinning: bool = True,
        likelihood: str = "zinb",
        dispersion: str = "gene",
        library: str = "observed",
        library_log_mean=None,
        library_log_var=None,
        columns: Mapping[str, Any] | None = None,
        encode_covariates: bool = False,
        reference: Mapping[str, Any] | None = None,
        dtype=np.float32,
        seed: int = 0,
    ):
        one_of("likelihood", likelihood, LIKELIHOODS)
        one_of("dispersion", dispersion, ("gene", "gene-batch", "gene-cell"))
        one_of("library", library, ("observed", "latent"))
        dtype = floating(dtype)
        n_genes, n_batches = sizes(n_genes=n_genes, n_batches=n_batches)
        told = columns_from(columns)
        n_conditions = _n_conditions(n_batches, told)
        if n_layers is None:
            n_layers = recipe.usual_layers(n_conditions)
        n_latent, n_hidden, n_layers = sizes(
            n_latent=n_latent, n_hidden=n_hidden, n_layers=n_layers
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
            columns=None,
            encode_covariates=bool(encode_covariates),
            reference=reference,
            dtype=dtype.name,
            seed=whole_number("seed", seed, least=0),
        )
        self._know_columns(told)
        self.likelihood = likelihood
        self.dispersion = dispersion
        self.library = library
        self.n_genes = n_genes
        self.n_batches = n_batches
        self.n_latent = n_latent
        self.dtype = dtype

        rng = np.random.default_rng(self.config["seed"])
        if dropout is None:
            dropout = 0.0  # until `fit` knows the depth of the counts
        n_seen = n_conditions if encode_covariates else 0  # by the encoders
        self.z_encoder = Encoder(
            n_genes, n_latent, n_hidden, n_layers, n_seen, dropout, dtype=dtype, rng=rng
        )
        if library == "latent":
            self.l_encoder = Encoder(n_genes, 1, n_hidden, 1, n_seen, dropout, dtype=dtype, rng=rng)
        self.decoder = Decoder(
            n_genes,
            n_latent,
            n_hidden,
            n_layers,
            n_conditions,
            likelihood,
            dispersion,
            dtype=dtype,
            rng=rng,
        )
        if reference is not None:  # the weights of new batches stand in arrays of their own
            keep_apart(self, reference)
        if likelihood != "poisson" and dispersion != "gene-cell":
            shape = (n_genes,) if dispersion == "gene" else (n_genes, n_batches)
            self.log_theta = Parameter(rng.standard_normal(shape), dtype)

        self.library_log_mean_given = library_log_mean is not None
        self.library_log_var_given = library_log_var is not None
        self.library_log_mean = _per_batch(library_log_mean, LOG_MEAN_OF_NO_CELLS, n_batches, dtype)
        self.library_log_var = _per_batch(library_log_var, LOG_VAR_OF_NO_CELLS, n_batches, dtype)
        self.batch_fraction = np.full(n_batches, 1.0 / n_batches, dtype)
        if self.columns.n_covariates:
            self.buffers = (*SCVI.buffers, "covariate_mean")
        self.covariate_mean = self.columns.average().astype(dtype)
        self.batches: list = list(range(n_batches))
        self.genes: list | None = None
        self.trained = False

    @classmethod
    def for_data(
        cls,
        counts,
        batch: Array | str | None = None,
        categorical: str | Iterable[str] = (),
        continuous: str | Iterable[str] = (),
        *,
        layer: str | None = None,
        **config: Any,
    ) -> Self:
        """An untrained model for these counts (n_cells, n_genes): it takes sizes, genes and batches
        from them, and remembers the obs columns.

        batch: as for `fit`. categorical, continuous: names of obs columns with covariates: further
        labels of cells, and numbers, which z then need not say (covariates.py). config: the other
        arguments of SCVI. `fit` and all questions find the columns in the obs of the counts that
        they are given, also after `save` and `load`. ValueError for a column that is not there, or
        lacks something.
        """
        known = known_of_data(counts, batch, categorical, continuous, layer)
        n_batches = len(known.batches)
        model = cls(known.n_genes, n_batches, columns=known.columns.described(), **config)
        model.genes = known.genes
        model.batches = known.batches
        model.knows_data = True
        return model

    def _know_columns(self, columns: ObsColumns) -> None:
        """These are the obs columns of the model."""
        self.columns = columns
        self.config = {**self.config, "columns": columns.described()}

    # ----------------------------------------------------------------------------- the model itself
    # `inference`, `heads` and `log_prob`, as the class draws them; `terms` does one after the
    # other, and adds the divergences; `loss` and `validation` follow.

    def inference(
        self,
        counts,
        rng: np.random.Generator | None = None,
        batch: Array | None = None,
        covariates: Array | None = None,
    ) -> tuple[Normal, Normal | None]:
        """q(z | x) and q(log l | x) of a minibatch; the latter None where the library is observed.
        counts: (n, n_genes).

        batch codes (n,) and covariates (n, n_covariates) are looked at with encode_covariates only.
        rng: of the encoder's noise in training, dropout and thinning (recipe.py, `thinned`);
        without one nothing is thinned.
        """
        seen = counts
        if self.config["thinning"] and self.training and rng is not None:
            seen = recipe.thinned(counts, rng)
        conditions = None
        if self.config["encode_covariates"]:
            conditions = self.conditions(batch, covariates)
        q_z = self.z_encoder(_log1p(seen), rng, conditions)
        if self.library == "observed":
            return q_z, None
        # In full: thinning would blur the total, which is what this encoder has to read.
        return q_z, self.l_encoder(_log1p(counts), rng, conditions)

    def heads(
        self,
        z: Array,
        batch,
        rng: np.random.Generator | None = None,
        covariates: Array | None = None,
    ) -> dict:
        """What the decoder says of z (n, n_latent), batch codes (n,) and covariates (n,
        n_covariates), if the model has any: logits of rho, log_theta and zi_logits.

        Each (n, n_genes); log_theta may be (n_genes,); None where the likelihood has no such
        parameter.
        """
        conditions = self.conditions(batch, covariates)
        h = self.decoder.layers(z, rng, conditions)
        log_theta = None
        if self.likelihood != "poisson":
            if self.dispersion == "gene-cell":
                log_theta = self.decoder.theta(h)
            elif self.dispersion == "gene-batch":
                log_theta = self.one_hot(batch) @ np.transpose(self.log_theta)
            else:
                log_theta = self.log_theta
        zi_logits = self.decoder.zi(h) if self.likelihood == "zinb" else None
        logits = self._logits(h, conditions)
        return dict(logits=logits, log_theta=log_theta, zi_logits=zi_logits)

    def _logits(self, h, conditions):
        """Those of rho, (n, n_genes), from the decoder's last hidden units h (n, n_hidden)."""
        logits = self.decoder.rho(h)
        if self.decoder.offsets is not None:
            logits = logits + self.decoder.offsets(conditions)
        return logits

    def log_rho(self, z: Array, batch, covariates: Array | None = None) -> Array:
        """The log_rho of `generative`, (n, n_genes), alone, which takes less time.

        z: (n, n_latent); batch codes (n,) and covariates (n, n_covariates).
        """
        conditions = self.conditions(batch, covariates)
        h = self.decoder.layers(z, None, conditions)
        return functional.log_softmax(self._logits(h, conditions))

    def generative(
        self, z: Array, log_library: Array, batch, covariates: Array | None = None
    ) -> dict:
        """Parameters of the counts given z (n, n_latent), log_library (n, 1), batch codes (n,) and
        covariates (n, n_covariates), if the model has any.

        Returns log_rho, log_mu, log_theta and zi_logits, shaped as those of `heads`. Training does
        without it, see `log_prob`; whoever asks the model what it expects begins here.
        """
        heads = self.heads(z, batch, covariates=covariates)
        log_rho = functional.log_softmax(heads["logits"])
        return dict(
            log_rho=log_rho,
            log_mu=log_rho + log_library,
            log_theta=heads["log_theta"],
            zi_logits=heads["zi_logits"],
        )

    def log_prob(
        self,
        counts,
        log_library: Array,
        logits: Array,
        log_theta: Array | None = None,
        zi_logits: Array | None = None,
    ) -> Array:
        """log p(x | z, l) = sum over genes of log (ZI)NB or Poisson: (n,), in nats.

        counts: (n, n_genes); log_library: (n, 1); the other parameters are those of `heads`. It
        starts from the logits of rho, and not from log_mu = log_softmax(logits) + log_library, for
        a single kernel does all of that at once. A cell without counts, which training leaves out,
        has 0; `elbo` and `log_likelihood` give it a value of its own where the library is latent.
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
        covariates: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """(E_q[log p(x | z, l)], KL(q(z) || p(z)), KL(q(l) || p(l))) of each cell, (n,) each, by
        one draw from q.

        In nats; ELBO = the first minus the others (chapter, "Two optimization objectives"; Kingma &
        Welling 2014, eq. 7 and 10). The noise is eps_z (n, n_latent) and eps_l (n, 1), or drawn
        from rng.
        """
        q_z, q_l = self.inference(counts, rng, batch, covariates)
        z = _draw(q_z, eps_z, rng)
        kl_z = np.sum(kl_divergence(q_z, Normal(0.0, 1.0)), axis=1)
        if q_l is None:
            log_library = self.observed_log_library(counts)
            kl_l = np.zeros_like(data_of(kl_z))
        else:
            log_library = _draw(q_l, eps_l, rng)
            kl_l = np.sum(kl_divergence(q_l, self.library_prior(batch)), axis=1)
        log_p = self.log_prob(counts, log_library, **self.heads(z, batch, rng, covariates))
        return log_p, kl_z, kl_l

    def loss(
        self,
        counts,
        batch,
        covariates: Array | None = None,
        *,
        progress: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """-ELBO, averaged over the minibatch: a scalar = -mean(log p - weight kl_z - kl_l), in
        nats.

        progress: the fraction of the training that lies behind, from 0 to 1. The weight rises from
        0 to 1 while progress does from 0 to kl_warmup. The divergence of the library has weight 1
        throughout, as in scvi-tools.
        """
        log_p, kl_z, kl_l = self.terms(counts, batch, rng, covariates=covariates)
        if progress < self.kl_warmup:
            kl_z = (progress / self.kl_warmup) * kl_z
        elbo = log_p - kl_z
        if self.library == "latent":
            elbo = elbo - kl_l
        return -np.mean(elbo)

    def validation(
        self,
        counts,
        batch,
        covariates: Array | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> dict:
        """The ELBO of each cell (KL weight 1) and its two parts, as plain arrays."""
        terms = self.terms(counts, batch, rng, covariates=covariates)
        log_p, kl_z, kl_l = [data_of(term) for term in terms]
        kl = kl_z + kl_l
        return {"elbo": log_p - kl, "reconstruction": log_p, "kl": kl}

    def conditions(self, batch, covariates: Array | None = None) -> Array | None:
        """What a network is told of each cell: the one-hot batch, and beside it the covariates.

        (n, n_conditions), or None where there is nothing to tell, of batch codes (n,) and
        covariates (n, n_covariates) as `columns.table` makes them (covariates.py). ValueError where
        the model has covariates and is not told them.
        """
        if self.n_conditions == 0:
            return None
        if self.columns.n_covariates == 0:
            return self.one_hot(batch)
        if covariates is None:
            raise ValueError("covariates are missing: the model has some, see model.columns")
        if self.n_batches == 1:
            return covariates
        return np.concatenate([self.one_hot(batch), covariates], axis=1)

    @property
    def n_conditions(self) -> int:
        """How many columns `conditions` has."""
        return _n_conditions(self.n_batches, self.columns)

    def one_hot(self, batch) -> Array:
        """Batch codes (n,) as (n, n_batches) zeros and ones."""
        codes = np.arange(self.n_batches, like=batch)  # on the device where batch is
        return (batch[:, None] == codes).astype(self.dtype)

    def observed_log_library(self, counts) -> Array:
        """log of each cell's total, (n, 1); 0 for a cell without counts, whose likelihood does not
        depend on it.
        """
        total = backend.as_array(counts.sum(axis=1)).reshape(-1, 1)
        return _log_of_at_least_1(total).astype(self.dtype, copy=False)

    def library_prior(self, batch) -> Normal:
        """p(log l) of each cell's batch, parameters (n, 1)."""
        mean = self.library_log_mean[batch]
        variance = self.library_log_var[batch]
        return Normal(mean[:, None], np.sqrt(variance)[:, None])

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
        kl_warmup: float | None = None,
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
        whatever their size. batch: an int or string label per cell, or the name of an obs column; a
        Series is put in the order of the cells by their names; None: the column that `for_data` was
        told. Covariates are found in counts.obs.
        Cells without counts are left out, with a warning. A trained model is trained on; its genes
        and batches stay what they are, and others are refused, as for predictions.

        epochs: None for 200, fewer above 20,000 cells, more where that is under 500 steps, or 1,500
        with several batches or covariates.
        learning_rate: at the start; it falls to 0 on half a cosine; log theta has ten times as
        much, unless one layer has several batches or covariates to tell apart. kl_warmup: fraction
        of the training, at most 0.5, over which the KL weight rises from 0 to 1; None for 0.25, and
        for 0 where there are several batches, which then mix better, or covariates. weight_decay:
        of a normal prior of the decoder's output weights, in the loss of a cell; None for n_hidden
        / number of cells trained on; 0 for no prior, of log theta neither. Other arguments are
        those of minigrad.fit.
        What these defaults are worth, and why scvi-tools' are others, is told in recipe.py, with
        the measurements. ValueError names what is wrong with the counts, or an argument. What an
        error leaves of the model, and what Ctrl-C does, is told in minigrad.fit.
        """
        known_batch = self.columns.batch if batch is None else batch
        if kl_warmup is None:
            kl_warmup = recipe.usual_kl_warmup(self.n_conditions)
        check_training(self.n_batches, known_batch, epochs, batch_size, learning_rate, kl_warmup)
        with unchanged_if_it_fails(self):
            with ranks_of(parallel).preparing():
                cells = training_cells(self, counts, batch, layer)
                n_cells = len(cells.codes)
                n_train = n_cells - round(validation * n_cells)
                if n_train < 2 and validation < 1:
                    raise ValueError(
                        f"validation={validation} of {n_cells} cells leaves {n_train} to train on; "
                        "training needs at least 2"
                    )
                self._prepare_for(cells)
            if epochs is None:
                n_steps = max(1, round(n_train / batch_size))
                epochs = recipe.usual_epochs(n_cells, n_steps, self.n_conditions)
            if weight_decay is None:
                weight_decay = self.config["n_hidden"] / max(1, n_train)
            self.kl_warmup = float(kl_warmup)
            self.trained = True
            told = (cells.covariates,) if self.columns.n_covariates else ()
            return fit(
                self,
                (cells.counts, cells.codes, *told),
                epochs=epochs,
                optimizer=lambda parameters: recipe.optimizer_of(
                    self, parameters, learning_rate, weight_decay, max(1, n_train)
                ),
                batch_size=batch_size,
                validation=validation,
                seed=self.config["seed"] if seed is None else whole_number("seed", seed, least=0),
                early_stopping=early_stopping,
                device=device,
                checkpoint=checkpoint,
                resume=resume,
                progress=progress,
                parallel=parallel,
                describe=self.description,
            )

    def _prepare_for(self, cells: TrainingCells) -> None:
        """What follows from the cells of a first training: names, starting values, dropout."""
        if not self.trained:
            self.batches = cells.batches
            self.genes = cells.genes
            self.n_cells = len(cells.codes)
            self._know_columns(cells.columns)
            backend.assign(self.covariate_mean, cells.covariates.mean(axis=0))
            recipe.start(self, cells)
        elif not np.any(knows_library(self)):  # weights of scvi-tools
            recipe.start_library_prior(self, cells.sums.totals, cells.codes)
        if self.config["dropout"] is None:
            n_cells, n_genes = cells.counts.shape
            n_counts = cells.sums.totals.sum()
            self._set_dropout(recipe.usual_dropout(n_cells, n_genes, n_counts))

    def _set_dropout(self, dropout: float) -> None:
        """Dropout of the encoders, which `fit` has chosen."""
        self.config = {**self.config, "dropout": dropout}
        self.z_encoder.layers.dropout.p = dropout
        if self.library == "latent":
            self.l_encoder.layers.dropout.p = dropout

    # ---------------------------------------------------------------- what a trained model is asked
    # posterior.py (AnswersByDraws), differential.py (ComparesGroups) and abundance.py
    # (ComparesAbundance) have the other questions.
    def minibatches(
        self,
        counts,
        batch: Array | str | None = None,
        layer: str | None = None,
        size: int | None = None,
        on_disk: bool = True,
        is_batch_needed: bool = True,
    ) -> Minibatches:
        """Checked counts, batch codes and covariates, `size` cells at a time in their order:
        (n, n_genes), (n,) and (n, n_covariates). None: CHUNK, and more where the model is on a GPU.

        ValueError for an unknown batch or category, and other genes. on_disk: whether counts may
        stay on the disk, see as_matrix. is_batch_needed: see cells_to_ask_about.
        """
        columns = cells_to_ask_about(self, counts, batch, layer, on_disk, is_batch_needed)
        return self._in_minibatches(columns, size)

    def _in_minibatches(self, columns, size: int | None = None) -> Minibatches:
        """Columns of cells, `size` cells at a time: see `minibatches`."""
        if size is None:
            size = backend.entries_at_once(CHUNK * self.n_genes, self.device) // self.n_genes
        return Minibatches(columns, size)

    def latent(
        self,
        counts,
        batch: Array | str | None = None,
        *,
        return_std: bool = False,
        layer: str | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of q(z | x): (n_cells, n_latent), deterministic.

        With return_std: (means, standard deviations). batch, and the obs columns of covariates, are
        asked for only where the encoder sees them (encode_covariates).
        """
        mean, std = self.latent_of(cells_to_encode(self, counts, batch, layer))
        if not return_std:
            return mean
        return mean, std

    def latent_of(self, cells) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations of q(z | x), (n_cells, n_latent) each.

        cells: their columns, counts, batch codes and covariates, as `minibatches` has them.
        """
        means = []
        stds = []
        with evaluating(self):
            for minibatch in self._in_minibatches(cells):
                x, codes, covariates = [backend.rows_on(a, self.device) for a in minibatch]
                q_z, _ = self.inference(x, batch=codes, covariates=covariates)
                means.append(q_z.loc.numpy())
                stds.append(q_z.scale.numpy())
        return np.concatenate(means), np.concatenate(stds)

    # ---------------------------------------------------------------------------------------- files
    @staticmethod
    def least_size(config) -> tuple[int, int]:
        """(arrays, numbers) that the weights of a model with this configuration are at least: see
        checkpoint.Saved.
        """
        n_genes = int(config["n_genes"])
        n_batches = int(config["n_batches"])
        n_latent = int(config["n_latent"])
        n_hidden = int(config["n_hidden"])
        n_layers = int(config["n_layers"])
        inputs = n_genes + n_latent + (n_layers - 1) * n_hidden  # of the hidden units
        if n_batches > 1:
            inputs += n_layers * n_batches
        per_batch = 1  # moments of the library
        if config["dispersion"] == "gene-batch" and config["likelihood"] != "poisson":
            per_batch = n_genes  # log_theta
        return n_layers, n_hidden * inputs + n_batches * per_batch

    @classmethod
    def from_scvi_tools(cls, state, **config: Any) -> Self:
        """A model with weights trained with scvi-tools (1.x).

        state: the path of the folder that its `save` wrote, which says all else too, and of which
        no code is run; or a mapping of its state-dict names to arrays. Then config has the
        arguments of SCVI that the training used (n_batches, n_layers, likelihood, dispersion,
        library, encode_covariates ...); sizes of layers, and how many there are, are read from the
        weights. Of covariates, columns=dict(categorical={name: labels in the order of their codes},
        continuous=[names]), both in the order in which they were set up there. Heads that the
        configuration does not use are left out and listed in `.ignored`. ValueError for weights
        that are NaN or infinite, or of another model.

        Library sizes and the proportions of batches are not among the weights: `generate` asks for
        a library_size, and takes batches equally often.
        """
        return scvi_tools.model_of(cls, state, config)


def _n_conditions(n_batches: int, columns: ObsColumns) -> int:
    """How much is told of each cell: whether it is of each batch, if there are several, and its
    covariates.
    """
    return columns.n_covariates + (n_batches if n_batches > 1 else 0)


def _draw(q: Normal, eps: Array | None, rng: np.random.Generator | None) -> Array:
    """A draw from q with the noise eps, or with noise from rng where that is None."""
    if eps is None:
        return q.rsample(rng=rng)
    return q.rsample(eps=eps)


def _log1p(counts):
    """log(1 + counts), dense or CSR.

    1 + a count is exact, so log does. NumPy's log1p, which SciPy's calls, takes five times as long
    in float32 on processors with AVX2 only, and as long as log on those with AVX-512.
    """
    if not backend.is_sparse(counts):
        return _log_of_1_plus(counts)
    return backend.with_entries(counts, _log_of_1_plus(counts.data))


# Two formulas that a GPU computes in one call each: see backend.py.


@backend.elementwise
def _log_of_1_plus(x):
    return np.log(x + 1.0)


@backend.elementwise
def _log_of_at_least_1(x):
    return np.log(np.maximum(x, 1.0))


def _per_batch(values, default: float, n_batches: int, dtype) -> np.ndarray:
    """The values as an array (n_batches,): a number, or one of each batch; None for the default."""
    if values is None:
        values = default
    return np.array(np.broadcast_to(np.ravel(values), n_batches), dtype)

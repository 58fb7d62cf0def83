"""Autoencoders: networks that learn to give back what they are given, through a narrow place (chapter, "Autoencoder
definition"; Hinton & Salakhutdinov 2006).

Know before reading: minigrad/nn.py and fit.py. An encoder turns a row x of D features into a code z of d numbers, a
decoder turns z into x', and both are trained together so that x' is close to x:

    z = encode(x)        Linear, ReLU, dropout for each hidden layer, then one Linear: the bottleneck
    x' = decode(z)       the same in reverse, then the output: linear, sigmoid or softmax, as the data ask for
    loss(x, x')          what is lost on the way, averaged over features and rows

With d < D only what the rows have in common gets through. With d >= D (overcomplete) the identity would do; noise added
to the input takes that way out: the network must learn what rows look like to tell the noise from them. Without hidden
layers and with one matrix for both ways the code is that of principal component analysis: `TiedLinearAutoencoder`.

Know after: everything of a VAE (vae.py) but the probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real

import numpy as np
from scipy import sparse, special

from minigrad import backend, functional, optim
from minigrad.backend import Array
from minigrad.checkpoint import Saved
from minigrad.data import Blocks, Minibatches, split, take_rows
from minigrad.distributions import Bernoulli, Categorical
from minigrad.fit import History, evaluating, fit
from minigrad.nn import Dropout, Linear, Module, Parameter, ReLU, Sequential
from minigrad.parallel import ranks_of
from minigrad.tensor import Tensor
from models.counts import Counts

CHUNK = 512  # rows at a time when predicting
BLOCK = 2**20  # entries checked at a time, so that checks need little memory of their own
LOSSES = {
    "linear": ("mse",),
    "sigmoid": ("mse", "bce"),
    "softmax": ("cross_entropy", "mse"),
}  # the default first
UNIT_ADVICE = "{} is for features in [0, 1]: scale each, for example by (x - min) / (max - min)"
FRACTION_ADVICE = "{} is for counts or fractions, which are not negative"


# ------------------------------------------------------------------------------------------ what users pass, checked
def one_of(name, value, allowed) -> None:
    """ValueError unless `value` is one of `allowed`."""
    if not any(value is a or isinstance(value, str) and value == a for a in allowed):
        raise ValueError(f"{name} must be one of {tuple(allowed)}, not {value!r}")


def sizes(**named) -> list[int]:
    """The values as ints; ValueError with the name of one that is not a whole number of at least 1."""
    for name, n in named.items():
        if not isinstance(n, Real) or isinstance(n, bool) or n != n // 1 or n < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {n!r}")
    return [int(n) for n in named.values()]


def widths(hidden) -> list[int]:
    """The widths of hidden layers as ints; ValueError for what is no sequence of whole numbers of at least 1."""
    if isinstance(hidden, str) or not hasattr(hidden, "__len__"):
        raise ValueError(
            f"hidden must be a sequence of widths such as (512, 256), or () for none, not {hidden!r}"
        )
    return sizes(**{f"hidden[{i}]": n for i, n in enumerate(hidden)})


def floating(dtype) -> np.dtype:
    """float32 or float64 as a NumPy dtype; ValueError for another."""
    if dtype is None or np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be numpy.float32 or numpy.float64, not {dtype!r}")
    return np.dtype(dtype)


def as_features(
    x: Array, n_features: int, dtype, low=-np.inf, high=np.inf, advice: str = ""
) -> np.ndarray | sparse.csr_array:
    """The rows of x as a C-contiguous array or canonical CSR matrix (n, n_features) of `dtype`, every entry checked.

    x: array or nested list of numbers of any real dtype, SciPy sparse matrix, frame, AnnData (its .X) or Counts;
    entries finite and in [low, high]. It is never changed; the result shares its memory where nothing had to be
    converted. ValueError says what was found where, and what to do; `advice` is added for an entry out of range.
    """
    annotated = all(hasattr(x, attribute) for attribute in ("X", "layers", "obs_names"))
    x = x.X if annotated or isinstance(x, Counts) else x
    x = (
        x.to_memory() if hasattr(x, "to_memory") else x
    )  # of an AnnData object opened with backed="r"
    if isinstance(x, Blocks):
        raise ValueError(
            "x: lies on the disk, which only SCVI trains from; read it without backed=True"
        )
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError("x: a masked array; fill the masked entries first, with x.filled(value)")
    if not sparse.issparse(x):
        try:
            x = np.asarray(x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"x: no matrix of numbers ({error})") from error
    if x.ndim != 2:
        raise ValueError(
            f"x: has shape {x.shape}, must be (n, {n_features}); for a single row pass x[None, :]"
        )
    if x.shape[1] != n_features:
        raise ValueError(
            f"x: has {x.shape[1]} columns, the model was made for n_features={n_features}; select the "
            "same features, in the same order"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x: has shape {x.shape}, no rows; pass at least one")
    if x.dtype.kind not in "buif":
        raise ValueError(
            f"x: has dtype {x.dtype}, must be real numbers; convert it, or drop the columns that are text"
        )
    limit = float(
        np.finfo(dtype).max
    )  # comparing with finite bounds finds NaN and infinity in one go
    bounds = max(low, -limit), min(high, limit)
    return (
        _csr(x, dtype, bounds, advice)
        if sparse.issparse(x)
        else _dense(x, np.dtype(dtype), bounds, advice)
    )


def _csr(x, dtype, bounds, advice):
    """A canonical CSR matrix of dtype with the entries of a sparse x."""
    try:  # as a new matrix: what the caller's caches of itself (sorted? canonical?) may be outdated
        x = x.tocsr()
        x = sparse.csr_array((x.data, x.indices, x.indptr), shape=x.shape)
        x.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"x: a broken sparse matrix ({error}); build it again") from error
    if not x.has_canonical_format:
        x = sparse.csr_array(
            (x.data.astype(np.float64), x.indices.copy(), x.indptr.copy()), shape=x.shape
        )
        x.sum_duplicates()
    with np.errstate(over="ignore"):
        result = x.astype(dtype, copy=False)
    for a in range(0, result.nnz, BLOCK):
        bad = _first_bad(result.data[a : a + BLOCK], bounds)
        if bad is not None:
            row = np.searchsorted(x.indptr, a + bad, side="right") - 1
            raise ValueError(
                _complaint(row, x.indices[a + bad], x.data[a + bad], result.dtype, advice)
            )
    return result


def _dense(x, dtype, bounds, advice):
    """A C-contiguous array of dtype with the entries of x, converted and looked at block by block."""
    right = x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned
    result = x if right else np.empty(x.shape, dtype)
    step = max(1, BLOCK // x.shape[1])
    for a in range(0, len(x), step):
        if not right:
            with np.errstate(over="ignore"):
                result[a : a + step] = x[a : a + step]
        bad = _first_bad(result[a : a + step].ravel(), bounds)
        if bad is not None:
            row, column = divmod(bad, x.shape[1])
            raise ValueError(_complaint(a + row, column, x[a + row, column], dtype, advice))
    return result


def _first_bad(values, bounds):
    """Position of the first entry out of bounds (NaN is), or None."""
    good = (values >= bounds[0]) & (values <= bounds[1])
    return None if good.all() else int(np.argmin(good))


def _complaint(row, column, value, dtype, advice) -> str:
    found = f"x: row {row}, column {column} (from 0) is {value!s}"
    if not np.isfinite(value):
        return f"{found}; values must be finite: fill in or drop missing ones first"
    if abs(value) > np.finfo(dtype).max:
        return f"{found}, beyond the range of {dtype}; scale x, or make the model with dtype=np.float64"
    return f"{found}; {advice}"


def means(x: Array) -> np.ndarray:
    """The mean of each feature of x (dense or CSR): (n_features,) float64."""
    return np.asarray(x.sum(axis=0, dtype=np.float64)).ravel() / x.shape[0]


def mean_variance(x: Array, mean: Array) -> float:
    """The variance of a feature, averaged over features, of x (n, n_features), dense or CSR, whose `means` are given."""
    values = x.data if sparse.issparse(x) else x.ravel()
    squares = sum(
        float(np.sum(np.square(values[a : a + BLOCK], dtype=np.float64)))
        for a in range(0, len(values), BLOCK)
    )
    return squares / (x.shape[0] * x.shape[1]) - float(np.mean(mean**2))


def dense(x: Array) -> Array:
    """A minibatch (n, n_features) as a dense array: CSR is made dense, an array stays as it is."""
    return x.toarray() if backend.is_sparse(x) else x


# ------------------------------------------------------------------------------------------- what AE and VAE share
class FeatureModel(Saved, Module):
    """A model of rows of real-valued features: reading them, training on them, and predicting piece by piece.

    A model needs `n_features`, `dtype`, `config` (the arguments it was made with, seed among them), `loss` and
    `validation` as minigrad.fit wants them.
    """

    described = ("trained", "batch_size")
    trained = False
    batch_size = 128  # of `fit`, where it is not told another; None: all rows at once
    learning_rate = 1e-3
    low, high = -np.inf, np.inf  # the entries of x that the loss is made for
    advice = ""  # what to do about others

    @staticmethod
    def least_size(config) -> tuple[int, int]:
        """(arrays, numbers) of the encoder's matrices in a model with this configuration: see checkpoint.Saved."""
        units = [
            int(config["n_features"]),
            *map(int, config.get("hidden", ())),
            int(config["n_latent"]),
        ]
        return len(units) - 1, sum(n_in * n_out for n_in, n_out in zip(units, units[1:]))

    def fit(
        self,
        x: Array,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        validation: float = 0.1,
        learning_rate: float | None = None,
        seed: int | None = None,
        early_stopping: bool | int = False,
        checkpoint=None,
        resume: bool = False,
        progress: bool = True,
        device: str | None = None,
        parallel: str | None = None,
    ) -> History:
        """Train on x (n, n_features) with Adam, the learning rate falling to 0 on half a cosine. Returns the History.

        x: array or list, SciPy sparse matrix (never dense as a whole), or AnnData (its .X); real numbers, converted to
        the model's dtype. epochs: None for some 5000 steps, from 10 to 200 epochs. batch_size: None for 128, unless the
        class or preset says otherwise; so too learning_rate, None for 1e-3. validation: fraction of rows held out.
        seed: of order, split and noise; None for the model's. early_stopping, checkpoint, resume, progress, device, parallel:
        see minigrad.fit. ValueError names what is wrong with x; FloatingPointError if training leaves the finite
        numbers, which features far from order 1 make likely.
        """
        with ranks_of(parallel).preparing():
            x = self._rows(x, in_range=True)
        n, seed = x.shape[0], self.config["seed"] if seed is None else seed
        batch_size = sizes(batch_size=(self.batch_size or n) if batch_size is None else batch_size)[
            0
        ]
        epochs = self._default_epochs(n, batch_size) if epochs is None else sizes(epochs=epochs)[0]
        learning_rate = self.learning_rate if learning_rate is None else learning_rate
        rows, _ = split(n, validation, seed)
        if len(rows):
            self._start_from(x if len(rows) == n else take_rows(x, rows))
            self.trained = True
        return fit(
            self,
            (x,),
            epochs=epochs,
            optimizer=lambda p: self._optimizer(p, learning_rate),
            batch_size=batch_size,
            validation=validation,
            seed=seed,
            early_stopping=early_stopping,
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
            device=device,
            parallel=parallel,
            describe=self.description,
        )

    def _default_epochs(self, n, batch_size) -> int:
        return max(10, min(200, round(5000 * batch_size / n)))

    def _start_from(self, x) -> None:
        """Take from the training rows x what shall not be learnt by steps. Here: nothing."""

    def _optimizer(self, parameters, learning_rate):
        return optim.Adam(parameters, learning_rate)

    def _rows(self, x, in_range=False):
        """x, checked: see as_features. in_range: whether the loss is going to be taken of it."""
        bounds = (self.low, self.high) if in_range else (-np.inf, np.inf)
        return as_features(x, self.n_features, self.dtype, *bounds, advice=self.advice)

    def minibatches(self, x: Array, size=CHUNK, in_range: bool = False) -> Iterator[Array]:
        """Yield dense pieces (size, n_features) of checked rows, in their order, where the weights are."""
        for (piece,) in Minibatches((self._rows(x, in_range),), size):
            yield dense(backend.to_device(piece, self.device))

    def predict(self, x: Array, function) -> np.ndarray:
        """function(minibatch) of all rows of x (n, n_features), evaluated in pieces and put together: a host array."""
        with evaluating(self):
            return np.concatenate([function(piece).numpy() for piece in self.minibatches(x)])


def layers(units, dropout: float = 0.0, *, dtype, rng: np.random.Generator) -> Sequential:
    """Linear layers from each number of units to the next, with ReLU and dropout in between. Of one: the identity."""
    found = []
    for n_in, n_out in zip(units, units[1:]):
        found += [Linear(n_in, n_out, dtype=dtype, rng=rng), ReLU(), Dropout(dropout)]
    return Sequential(*found[:-2])


# ---------------------------------------------------------------------------------------------------------- autoencoder
class Autoencoder(FeatureModel):
    """A symmetric autoencoder (chapter, Figure 5): n_features - hidden - n_latent - reversed hidden - n_features.

    hidden: widths of the encoder's hidden layers, from the input on; () for none. n_latent: width of the bottleneck,
    which may exceed n_features. ReLU and dropout follow every hidden layer; the bottleneck is linear.
    output: "linear" for unbounded features, "sigmoid" for features in [0, 1], "softmax" for rows that are fractions or
    counts. loss: None for the first that the output has; with D features, averaged over rows,
        linear   "mse"            1/D sum_i (x_i - x'_i)^2
        sigmoid  "mse", or "bce"  -1/D sum_i [x_i log x'_i + (1 - x_i) log(1 - x'_i)], computed from the logits
        softmax  "cross_entropy"  -1/D sum_i x_i log x'_i, computed from log_softmax; or "mse"
    (chapter, "The AE loss"). "bce" does not stall where a sigmoid is at the wrong end; "cross_entropy" is least at
    x' = x / sum(x). dropout: probability in [0, 1). noise: standard deviation, in units of x, of the Gaussian noise
    that is added to inputs in training while the clean x stays the target (denoising; Vincent et al. 2008). dtype: of
    weights and arithmetic, float32 or float64. seed: of the initial weights. latent_activation: of the bottleneck,
    "linear" or "relu". initialization: "uniform" within 1/sqrt(n_in), as PyTorch's, or "glorot" (uniform within
    sqrt(6 / (n_in + n_out)), biases 0; Glorot & Bengio 2010, eq. 16). ValueError names an argument out of range.

        >>> x = np.random.default_rng(0).normal(size=(64, 6))
        >>> model = Autoencoder(6, hidden=(8,), n_latent=2)
        >>> history = model.fit(x, epochs=2, progress=False)
        >>> model.latent(x).shape, model.reconstruct(x).shape, len(history["train_loss"])
        ((64, 2), (64, 6), 2)
    """

    def __init__(
        self,
        n_features: int,
        hidden=(512, 256),
        n_latent: int = 32,
        output: str = "linear",
        loss=None,
        dropout: float = 0.0,
        noise: float = 0.0,
        dtype=np.float32,
        seed: int = 0,
        *,
        latent_activation: str = "linear",
        initialization: str = "uniform",
    ):
        one_of("output", output, LOSSES)
        one_of(f"loss (of output={output!r})", loss, (None, *LOSSES[output]))
        one_of("latent_activation", latent_activation, ("linear", "relu"))
        one_of("initialization", initialization, ("uniform", "glorot"))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), not {dropout!r}")
        if not 0 <= noise < np.inf:
            raise ValueError(f"noise must be a standard deviation of at least 0, not {noise!r}")
        self.n_features, self.n_latent = sizes(n_features=n_features, n_latent=n_latent)
        self.dtype, self.output, self.noise = floating(dtype), output, float(noise)
        self.objective, self.latent_activation = loss or LOSSES[output][0], latent_activation
        self.config = dict(
            n_features=self.n_features,
            hidden=widths(hidden),
            n_latent=self.n_latent,
            output=output,
            loss=loss,
            dropout=float(dropout),
            noise=self.noise,
            dtype=self.dtype.name,
            seed=int(seed),
            latent_activation=latent_activation,
            initialization=initialization,
        )
        if output != "linear":
            self.low, self.high = 0.0, 1.0 if output == "sigmoid" else np.inf
            self.advice = (UNIT_ADVICE if output == "sigmoid" else FRACTION_ADVICE).format(
                f"output={output!r}"
            )
        rng = np.random.default_rng(seed)
        down = [self.n_features, *self.config["hidden"], self.n_latent]
        self.encoder = layers(down, dropout, dtype=dtype, rng=rng)
        self.decoder = layers(down[::-1], dropout, dtype=dtype, rng=rng)
        if initialization == "glorot":
            _glorot(self, rng)

    @classmethod
    def geneex(cls, n_genes: int, preset: str = "course", **changes) -> Autoencoder:
        """The GENEEX autoencoder of the National Cancer Institute, for expression profiles of n_genes genes.

        preset "course", as the chapter has it ("GENEEX autoencoder architecture"): hidden 2048 and 1024, latent 128,
        linear output, MSE, for log1p of normalised counts (60,484 genes: 252 million weights). The chapter says that
        all layers but the last use ReLU and dropout. Read to the letter, that includes the bottleneck; here it means
        the hidden layers, and the bottleneck stays linear and whole, as Figure 5's does: of two latent dimensions
        (Figure 7b) ReLU would leave a quarter of the plane, and dropout would take one of two numbers away.
        latent_activation="relu" comes closer to the letter. The chapter names no rate of dropout: 0.1.
        preset "p1b1", as the NCI's code has it (CANDLE, Pilot 1, benchmark P1B1; 60,483 genes: 244 million weights):
        hidden 2000 and 600, latent 2, ReLU at the bottleneck too, sigmoid output and MSE for log expression that is
        min-max scaled to [0, 1] gene by gene, Glorot uniform weights, zero biases, no dropout, minibatches of 100.
        changes: any arguments of Autoencoder to set otherwise, such as n_latent=2.
        """
        one_of("preset", preset, ("course", "p1b1"))
        arguments = dict(hidden=(2048, 1024), n_latent=128, dropout=0.1)
        if preset == "p1b1":
            arguments = dict(
                hidden=(2000, 600),
                n_latent=2,
                output="sigmoid",
                loss="mse",
                latent_activation="relu",
                initialization="glorot",
            )
        model = cls(n_genes, **{**arguments, **changes})
        model.batch_size = 100 if preset == "p1b1" else cls.batch_size
        return model

    # ------------------------------------------------------------------------------------------------ the model itself
    def encode(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """The code z of a minibatch: (n, n_latent). x: array, CSR or Tensor (n, n_features); rng: for dropout."""
        z = self.encoder(x, rng)
        return functional.relu(z) if self.latent_activation == "relu" else z

    def decode(self, z: Array, rng: np.random.Generator | None = None) -> Array:
        """The reconstruction x' of codes z (n, n_latent): (n, n_features), in the range of the output."""
        return self._activated(self.decoder(z, rng))

    def _activated(self, raw):
        return {"linear": lambda y: y, "sigmoid": special.expit, "softmax": functional.softmax}[
            self.output
        ](raw)

    def row_loss(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """The loss of each row, (n,): of x against what is made of x plus noise (none without rng). x: dense."""
        noisy = (
            x + self.noise * rng.standard_normal(x.shape, dtype=x.dtype)
            if self.noise and rng is not None
            else x
        )
        raw = self.decoder(self.encode(noisy, rng), rng)
        if self.objective == "bce":
            return -np.mean(Bernoulli(raw).log_prob(x), axis=1)
        if self.objective == "cross_entropy":
            return -Categorical(raw).log_prob(x) / self.n_features
        return np.mean(np.square(self._activated(raw) - x), axis=1)

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """The loss of a minibatch (n, n_features), dense or CSR: a scalar, the mean over rows."""
        return np.mean(self.row_loss(dense(x), rng))

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict:
        """The loss of each held-out row, with noise on the input where training has it: the identity must not win."""
        return {"loss": self.row_loss(dense(x), rng).data}

    # ------------------------------------------------------------------------------------ what a trained model is asked
    def latent(self, x: Array) -> np.ndarray:
        """The codes of x (n, n_features; as for `fit`): (n, n_latent), deterministic, without noise and dropout."""
        return self.predict(x, self.encode)

    def reconstruct(self, x: Array) -> np.ndarray:
        """What comes out for x (n, n_features; as for `fit`): the same shape, in the range of the output."""
        return self.predict(x, lambda piece: self.decode(self.encode(piece)))


def _glorot(model, rng) -> None:
    """Weights of all Linear layers uniform within sqrt(6 / (n_in + n_out)), biases 0 (Keras' default)."""
    for layer in (m for _, m in model.named_modules() if isinstance(m, Linear)):
        bound = np.sqrt(6.0 / sum(layer.weight.shape))
        layer.weight.data[...] = rng.uniform(-bound, bound, layer.weight.shape)
        layer.bias.data[...] = 0.0


# ------------------------------------------------------------------------------------------------------------------ PCA
class TiedLinearAutoencoder(FeatureModel):
    """One matrix W for both ways, no hidden layer, no activation: this autoencoder becomes PCA as it trains.

        z = (x - mean) W,   x' = z W^T + mean,   loss = mean over rows of 1/D ||x' - x||^2   (chapter, Figure 6)

    W: (n_features, n_latent); mean: that of the training rows, a buffer. The loss has no minimum but where the columns
    of W are an orthonormal basis of the space of the first n_latent principal components (Baldi & Hornik 1989): the
    same subspace as the SVD's, in which W is free to be rotated. dtype, seed: as for Autoencoder. ValueError for an n_latent
    above n_features.
    """

    buffers = ("mean",)
    batch_size = None  # the noise of minibatches would keep W from coming to rest

    def __init__(self, n_features: int, n_latent: int, dtype=np.float32, seed: int = 0):
        self.n_features, self.n_latent = sizes(n_features=n_features, n_latent=n_latent)
        if self.n_latent > self.n_features:
            raise ValueError(
                f"n_latent={n_latent} exceeds n_features={n_features}: there are no more components"
            )
        self.dtype = floating(dtype)
        self.config = dict(
            n_features=self.n_features,
            n_latent=self.n_latent,
            dtype=self.dtype.name,
            seed=int(seed),
        )
        start = np.random.default_rng(seed).standard_normal((self.n_features, self.n_latent))
        self.weight, self.mean = (
            Parameter(start / n_features**0.5, dtype),
            np.zeros(self.n_features, dtype),
        )
        self.learning_rate = (
            0.3 / n_features**0.5
        )  # the entries of an orthonormal W are of size 1/sqrt(n_features)
        self.variance = 1.0  # of a feature, the mean over features

    def fit(self, x: Array, *, validation: float = 0.0, **training) -> History:
        """Train on x, all rows in every step (memory: some ten times x) and none held out: PCA leaves nothing out.

        Other arguments are those of Autoencoder.fit. The defaults (600 steps of Adam, its rate falling to 0 from
        0.3/sqrt(n_features)) bring W within principal angles of 1e-3 of the SVD where the variances of the last
        component inside and the first outside differ by 5 % or more.
        """
        return super().fit(x, validation=validation, **training)

    def _default_epochs(self, n, batch_size) -> int:
        return 600

    def _start_from(self, x) -> None:
        """The mean of the training rows; and their variance, which tells Adam what a small gradient is."""
        mean = means(x)
        backend.assign(self.mean, mean)
        self.variance = max(mean_variance(x, mean), 1e-30)

    def _optimizer(self, parameters, learning_rate):
        return optim.Adam(parameters, learning_rate, eps=1e-8 * self.variance)

    def encode(self, x: Array) -> Array:
        """The code z of a dense minibatch (n, n_features): (n, n_latent)."""
        return (x - self.mean) @ self.weight

    def decode(self, z: Array) -> Array:
        """The reconstruction x' of codes z (n, n_latent): (n, n_features)."""
        return z @ self.weight.T + self.mean

    def row_loss(self, x: Array) -> Array:
        """The mean squared error of each row of a dense minibatch: (n,)."""
        return np.mean(np.square(self.decode(self.encode(x)) - x), axis=1)

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Tensor:
        """The mean squared error of a minibatch, dense or CSR: a scalar."""
        return np.mean(self.row_loss(dense(x)))

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict:
        """The mean squared error of each held-out row."""
        return {"loss": self.row_loss(dense(x)).data}

    latent = Autoencoder.latent
    reconstruct = Autoencoder.reconstruct

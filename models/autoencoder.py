"""Autoencoders: networks that learn to give back what they are given, through a narrow place.

This is a lesson (chapter, "Autoencoder definition"; Hinton & Salakhutdinov 2006; "chapter" is block
5 of the course MCB128, see README). An encoder turns a row x of D features into a code z of d
numbers. A decoder turns z into x', a guess of x. Both are trained together so that x' is close to
x.

The smallest one has a single matrix w for both ways. Here it squeezes two features into one number:

    >>> x = np.array([[3.0, 6.0], [-3.0, -6.0], [2.0, -1.0], [-2.0, 1.0]])
    >>> w = np.array([[1.0], [2.0]]) / np.sqrt(5)  # a direction in the plane, of length 1
    >>> z = x @ w                                  # encode: how far along the direction
    >>> z.round(2).ravel()
    array([ 6.71, -6.71,  0.  ,  0.  ])
    >>> reconstruction = z @ w.T                   # decode: the point so far along it
    >>> np.mean((reconstruction - x) ** 2, axis=1).round(2)
    array([0. , 0. , 2.5, 2.5])

Rows on the line along w come back whole. Of the other two nothing is left, since one number cannot
say how far a row lies beside the line: what was lost is the loss. This w is the best there is,
because the rows are spread out most along it, and training finds it (or -w) from a random start:

    >>> model = TiedLinearAutoencoder(n_features=2, n_latent=1)
    >>> history = model.fit(x, progress=False)
    >>> abs(model.weight.numpy()).round(3)
    array([[0.447],
           [0.894]], dtype=float32)

A direction of greatest spread is a principal component: this autoencoder is PCA. Networks with
hidden layers in the place of the one matrix can follow curves instead of lines. All of them are

    z = encode(x)     Linear, ReLU, dropout for each hidden layer; then a Linear, the bottleneck
    x' = decode(z)    the same in reverse; then the output: linear, sigmoid or softmax
    loss(x, x')       how far x' is from x, averaged over features and rows

With d < D only what the rows have in common gets through the bottleneck. With d >= D (overcomplete)
a network could copy x and learn nothing. Noise that is added to its input, and not to the x that it
is compared with, rules this out: to remove the noise a network has to know what rows look like.

Know before reading: minigrad/nn.py, whose layers the networks are made of, and minigrad/fit.py, the
loop that trains them: it calls `loss`, `backward` and the optimiser, and none of the three is
called here. FeatureModel (feature_model.py) can wait. From it come `fit`, `predict` (a function of
all rows, piece by piece) and `batch_size`. A model says in `accepted` which entries of x its loss
is made for, in `config` how it was made (this is saved with its weights), and may replace
`_default_epochs`, `_start_from` and `_optimizer`, which `fit` calls.

Know after: everything of a VAE (vae.py) but the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from scipy import special

from minigrad import backend, functional, optim
from minigrad.backend import Array
from minigrad.distributions import Bernoulli, Categorical
from minigrad.fit import History
from minigrad.nn import Dropout, Linear, Module, Parameter, ReLU, Sequential
from minigrad.tensor import Tensor
from models.feature_model import FeatureModel
from models.inputs import (
    ANY_NUMBER,
    NOT_NEGATIVE,
    UNIT_INTERVAL,
    dense,
    floating,
    mean_variance,
    means,
    one_of,
    rows_of,
    sizes,
    whole_number,
    widths,
)

# By output: what is applied to the last layer of the decoder, the losses that go with it (the
# default first), and the features that can be given back.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda y: y,
    "sigmoid": special.expit,
    "softmax": functional.softmax,
}
LOSSES = {
    "linear": ("mse",),
    "sigmoid": ("mse", "bce"),
    "softmax": ("cross_entropy", "mse"),
}
RANGES = {"linear": ANY_NUMBER, "sigmoid": UNIT_INTERVAL, "softmax": NOT_NEGATIVE}


def layers(
    units: Sequence[int], dropout: float = 0.0, *, dtype: DTypeLike, rng: np.random.Generator
) -> Sequential:
    """Linear layers from each number of units to the next, with ReLU and dropout in between.

    units: widths, one or more. A single width makes no layer, and what goes in comes out. rng: of
    the initial weights and biases.
    """
    found: list[Module] = []
    for n_in, n_out in zip(units, units[1:]):
        if found:
            found += [ReLU(), Dropout(dropout)]
        found.append(Linear(n_in, n_out, dtype=dtype, rng=rng))
    return Sequential(*found)


# -------------------------------------------------------------------------------------- autoencoder
class Autoencoder(FeatureModel):
    """A symmetric autoencoder: n_features - hidden - n_latent - reversed hidden - n_features.

    (Chapter, Figure 5.) hidden: widths of the encoder's hidden layers, from the input on; () for
    none. n_latent: width of the bottleneck, which may exceed n_features. ReLU and dropout follow
    every hidden layer. latent_activation: of the bottleneck, "linear" or "relu".

    output: "linear" for unbounded features, "sigmoid" for features in [0, 1], "softmax" for rows
    that are fractions or counts. loss: None for the first that the output has; with D features,
    averaged over rows,

        linear   "mse"            1/D sum_i (x_i - x'_i)^2
        sigmoid  "mse", or "bce"  -1/D sum_i [x_i log x'_i + (1 - x_i) log(1 - x'_i)]
        softmax  "cross_entropy"  -1/D sum_i x_i log x'_i, or "mse"

    (chapter, "The AE loss"). "bce" is computed from logits and "cross_entropy" from log_softmax.
    "bce" does not stall where a sigmoid is at the wrong end; "cross_entropy" is least at
    x' = x / sum(x).

    dropout: probability in [0, 1). noise: standard deviation, in units of x, of the Gaussian noise
    that is added to inputs in training while the clean x stays the target (denoising; Vincent et
    al. 2008). initialization: "uniform", weights and biases within 1/sqrt(n_in), as PyTorch's; or
    "glorot", weights uniform within sqrt(6 / (n_in + n_out)), biases 0 (Glorot & Bengio 2010,
    eq. 16). seed: of the initial weights. dtype: of weights and arithmetic, float32 or float64.
    ValueError names an argument out of range.

        >>> x = np.random.default_rng(0).normal(size=(64, 6))
        >>> model = Autoencoder(6, hidden=(8,), n_latent=2)
        >>> history = model.fit(x, epochs=2, progress=False)
        >>> model.latent(x).shape, model.reconstruct(x).shape, len(history["train_loss"])
        ((64, 2), (64, 6), 2)
    """

    def __init__(
        self,
        n_features: int,
        hidden: Sequence[int] = (512, 256),
        n_latent: int = 32,
        output: str = "linear",
        loss: str | None = None,
        dropout: float = 0.0,
        noise: float = 0.0,
        dtype: DTypeLike = np.float32,
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
        self.dtype = floating(dtype)
        hidden = widths(hidden)
        self.output = output
        self.objective = loss or LOSSES[output][0]
        self.noise = float(noise)
        self.latent_activation = latent_activation
        self.accepted = RANGES[output].of(f"output={output!r}")
        self.config = dict(
            n_features=self.n_features,
            hidden=hidden,
            n_latent=self.n_latent,
            output=output,
            loss=loss,
            dropout=float(dropout),
            noise=self.noise,
            dtype=self.dtype.name,
            seed=whole_number("seed", seed, least=0),
            latent_activation=latent_activation,
            initialization=initialization,
        )
        rng = np.random.default_rng(self.config["seed"])
        units = [self.n_features, *hidden, self.n_latent]
        self.encoder = layers(units, dropout, dtype=self.dtype, rng=rng)
        self.decoder = layers(units[::-1], dropout, dtype=self.dtype, rng=rng)
        if initialization == "glorot":
            _glorot(self, rng)

    # ----------------------------------------------------------------------------- the model itself
    def encode(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """The code z of a minibatch: (n, n_latent).

        x: array, CSR or Tensor (n, n_features); rng: for dropout, in training.
        """
        z = self.encoder(x, rng)
        if self.latent_activation == "relu":
            z = functional.relu(z)
        return z

    def decode(self, z: Array, rng: np.random.Generator | None = None) -> Array:
        """The reconstruction x' of codes z (n, n_latent): (n, n_features), as the output has it."""
        activation = ACTIVATIONS[self.output]
        return activation(self.decoder(z, rng))

    def row_loss(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        """The loss of each row of a dense x (n, n_features): (n,), in the units of the objective.

        x is compared with what is made of x plus noise; without rng no noise is added.
        """
        noisy = x
        if self.noise and rng is not None:
            noisy = x + self.noise * rng.standard_normal(x.shape, dtype=x.dtype)
        z = self.encode(noisy, rng)
        # NumPy's functions of Tensors give Tensors, which remember how they were made. So a loss in
        # NumPy's notation is all that `backward` needs.
        if self.objective == "mse":
            return np.mean(np.square(self.decode(z, rng) - x), axis=1)
        # The logarithms of x', by formulas that stay exact where x' itself rounds to 0 or 1.
        raw = self.decoder(z, rng)
        if self.objective == "bce":
            return -np.mean(Bernoulli(raw).log_prob(x), axis=1)
        return -Categorical(raw).log_prob(x) / self.n_features

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Array:
        """The loss of a minibatch (n, n_features), dense or CSR: a scalar, the mean over rows.

        progress: the fraction of the training that is done, which minigrad.fit tells every model.
        It is not used here. (`fit(progress=False)` is something else: no display.)
        """
        return np.mean(self.row_loss(dense(x), rng))

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict[str, Array]:
        """The loss of each held-out row, with noise on the input where training has it.

        Without the noise, the network that copies its input would look best.
        """
        return {"loss": functional.data_of(self.row_loss(dense(x), rng))}

    # ---------------------------------------------------------------- what a trained model is asked
    def latent(self, x: Array) -> np.ndarray:
        """The codes of x (n, n_features; as for `fit`): (n, n_latent). No noise and no dropout."""
        return self.predict(x, self.encode)

    def reconstruct(self, x: Array) -> np.ndarray:
        """What comes out for x (n, n_features; as for `fit`): the same shape."""
        return self.predict(x, lambda piece: self.decode(self.encode(piece)))

    # -------------------------------------------------------------------------- a published example
    @classmethod
    def geneex(cls, n_genes: int, preset: str = "course", **changes: Any) -> Autoencoder:
        """The GENEEX autoencoder of the National Cancer Institute, for profiles of n_genes genes.

        preset "course", as the chapter has it ("GENEEX autoencoder architecture"): hidden 2048 and
        1024, latent 128, linear output, MSE, for log1p of normalised counts (60,484 genes: 252
        million weights). The chapter says that all layers but the last use ReLU and dropout. Read
        to the letter, that includes the bottleneck; here it means the hidden layers, and the
        bottleneck stays linear and whole, as Figure 5's does: of two latent dimensions (Figure 7b)
        ReLU would leave a quarter of the plane, and dropout would take one of two numbers away.
        latent_activation="relu" comes closer to the letter. The chapter names no rate of dropout:
        it is 0.1 here.

        preset "p1b1", as the NCI's code has it (CANDLE, Pilot 1, benchmark P1B1; 60,483 genes: 244
        million weights): hidden 2000 and 600, latent 2, ReLU at the bottleneck too, sigmoid output
        and MSE for log expression that is min-max scaled to [0, 1] gene by gene, Glorot uniform
        weights, zero biases, no dropout, minibatches of 100.

        changes: any arguments of Autoencoder to set otherwise, such as n_latent=2. Errors are those
        of Autoencoder.
        """
        one_of("preset", preset, ("course", "p1b1"))
        arguments: dict[str, Any] = dict(hidden=(2048, 1024), n_latent=128, dropout=0.1)
        batch_size = cls.batch_size
        if preset == "p1b1":
            arguments = dict(
                hidden=(2000, 600),
                n_latent=2,
                output="sigmoid",
                loss="mse",
                latent_activation="relu",
                initialization="glorot",
            )
            batch_size = 100
        model = cls(n_genes, **{**arguments, **changes})
        model.batch_size = batch_size
        return model


def _glorot(model: Module, rng: np.random.Generator) -> None:
    """Weights of all Linear layers uniform within sqrt(6 / (n_in + n_out)), biases 0 (Keras)."""
    for _, layer in model.named_modules():
        if isinstance(layer, Linear):
            bound = np.sqrt(6.0 / sum(layer.weight.shape))
            layer.weight.data[...] = rng.uniform(-bound, bound, layer.weight.shape)
            layer.bias.data[...] = 0.0


# ---------------------------------------------------------------------------------------------- PCA
class TiedLinearAutoencoder(FeatureModel):
    """One matrix W for both ways and nothing else: this autoencoder becomes PCA as it trains.

        z = (x - mean) W,   x' = z W^T + mean,   loss = mean over rows of 1/D ||x' - x||^2

    (chapter, Figure 6). W: (n_features, n_latent); mean: that of the training rows, which is saved
    with W. The loss has no minimum but where the columns of W are an orthonormal basis of the space
    of the first n_latent principal components (Baldi & Hornik 1989): the same subspace as the
    SVD's, in which W is free to be rotated. (If the rows vary along fewer than n_latent directions,
    W need not be orthonormal.) dtype, seed: as for Autoencoder. ValueError for an n_latent above
    n_features. The first example of this file has one.
    """

    buffers = ("mean",)
    batch_size = None  # the noise of minibatches would keep W from coming to rest

    def __init__(
        self, n_features: int, n_latent: int, dtype: DTypeLike = np.float32, seed: int = 0
    ):
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
            seed=whole_number("seed", seed, least=0),
        )
        start = np.random.default_rng(self.config["seed"]).standard_normal(
            (self.n_features, self.n_latent)
        )
        self.weight = Parameter(start / n_features**0.5, self.dtype)
        self.mean = np.zeros(self.n_features, self.dtype)  # of the training rows: see _start_from
        self.variance = 1.0  # of a feature in the training rows, averaged over features
        # The entries of an orthonormal W are of size 1/sqrt(n_features): steps are in proportion.
        self.learning_rate = 0.3 / n_features**0.5

    # ----------------------------------------------------------------------------- the model itself
    def encode(self, x: Array) -> Array:
        """The code z of a dense minibatch (n, n_features): (n, n_latent)."""
        return (x - self.mean) @ self.weight

    def decode(self, z: Array) -> Array:
        """The reconstruction x' of codes z (n, n_latent): (n, n_features)."""
        return z @ self.weight.T + self.mean

    def row_loss(self, x: Array) -> Array:
        """The mean squared error of each row of a dense minibatch: (n,), in squared units of x."""
        return np.mean(np.square(self.decode(self.encode(x)) - x), axis=1)

    def loss(
        self, x: Array, *, progress: float = 1.0, rng: np.random.Generator | None = None
    ) -> Array:
        """The mean squared error of a minibatch, dense or CSR: a scalar. progress: not used."""
        return np.mean(self.row_loss(dense(x)))

    def validation(self, x: Array, *, rng: np.random.Generator | None = None) -> dict[str, Array]:
        """The mean squared error of each held-out row."""
        return {"loss": functional.data_of(self.row_loss(dense(x)))}

    # ------------------------------------------------------------------------------------- training
    def fit(self, x: Array, *, validation: float = 0.0, **training: Any) -> History:
        """Train on x (n, n_features), all rows in every step and none held out.

        PCA leaves no row out either. It takes some ten times the memory of x. Other arguments are
        those of FeatureModel.fit. The defaults (600 steps of Adam, whose learning rate falls to 0
        from 0.3/sqrt(n_features)) bring W within principal angles of 1e-3 of the SVD where the
        variances of the last component inside and the first outside differ by 5 % or more.
        """
        return super().fit(x, validation=validation, **training)

    def _default_epochs(self, n: int, batch_size: int) -> int:
        return 600

    def _start_from(self, x: Array, rows: np.ndarray) -> None:
        """The mean of the training rows, and their variance, for _optimizer."""
        x = rows_of(x, rows)
        mean = means(x)
        backend.assign(self.mean, mean)
        self.variance = max(mean_variance(x, mean), 1e-30)

    def _optimizer(self, parameters: list[Tensor], learning_rate: float) -> optim.Optimizer:
        """Adam, told by the variance of the features which gradients are too small to count."""
        return optim.Adam(parameters, learning_rate, eps=1e-8 * self.variance)

    # ---------------------------------------------------------------- what a trained model is asked
    def latent(self, x: Array) -> np.ndarray:
        """The codes of x (n, n_features; as for `fit`): (n, n_latent)."""
        return self.predict(x, self.encode)

    def reconstruct(self, x: Array) -> np.ndarray:
        """What comes out for x (n, n_features; as for `fit`): the same shape."""
        return self.predict(x, lambda piece: self.decode(self.encode(piece)))

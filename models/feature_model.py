"""What every model of rows of real-valued features can do: be trained, saved, and asked in pieces.

This is engineering. autoencoder.py and vae.py say what a model is; this class does the errands
between the caller's matrix and the training loop, which are the same for all of them.

Know before reading: minigrad/fit.py, the training loop, and inputs.py, what a model accepts.

Know after: what happens between `model.fit(x)` of an autoencoder and minigrad.fit, and how a
trained model goes through more rows than memory would hold as one dense array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from minigrad import backend, optim
from minigrad.backend import Array
from minigrad.checkpoint import Saved
from minigrad.data import Minibatches, split
from minigrad.fit import History, evaluating, fit
from minigrad.nn import Module
from minigrad.parallel import ranks_of
from minigrad.tensor import Tensor
from minigrad.training import unchanged_if_it_fails
from models.inputs import (
    ANY_NUMBER,
    Range,
    as_features,
    dense,
    warn_if_untrained,
    whole_number,
)
from models.labels import genes_of, refuse_other_names

CHUNK = 512  # rows at a time when predicting, and on a GPU more


class FeatureModel(Saved, Module):
    """A model of rows of real-valued features: reading them, training on them, and predicting.

    A subclass has `n_features`, `dtype`, `config` (the arguments that it was made with, seed among
    them), and `loss` and `validation` as minigrad.fit wants them.
    """

    n_features: int
    dtype: np.dtype
    config: dict[str, Any]

    described: ClassVar[tuple[str, ...]] = ("trained", "batch_size", "features")
    trained: bool = False
    features: list[str] | None = None  # names of the columns trained on, where these had names
    batch_size: int | None = 128  # of `fit`, where it is not told another; None: all rows at once
    learning_rate: float = 1e-3
    accepted: Range = ANY_NUMBER  # the entries of x that the loss is made for

    @staticmethod
    def least_size(config: Mapping[str, Any]) -> tuple[int, int]:
        """(arrays, numbers) of the encoder's matrices in a model of this configuration.

        See checkpoint.Saved, which refuses a file that claims more than it holds.
        """
        hidden = [int(n) for n in config.get("hidden", ())]
        units = [int(config["n_features"]), *hidden, int(config["n_latent"])]
        n_weights = sum(n_in * n_out for n_in, n_out in zip(units, units[1:]))
        return len(units) - 1, n_weights

    # ------------------------------------------------------------------------------------- training
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
        checkpoint: Any = None,
        resume: bool = False,
        progress: bool = True,
        device: str | None = None,
        parallel: str | None = None,
    ) -> History:
        """Train on x (n, n_features) with Adam, whose learning rate falls to 0 on half a cosine.

        x: array or list, SciPy sparse matrix (never dense as a whole), AnnData (its .X) or
        DataFrame; real numbers, converted to the model's dtype. Names of columns are remembered,
        and others, or another order, refused from then on. epochs: None for some 5000 steps, from
        10 to 200 epochs. batch_size: None for 128, unless the class or preset says otherwise; so
        too learning_rate, None for 1e-3. validation: fraction of rows held out. seed: of order,
        split and noise; None for the model's. early_stopping, checkpoint, resume, progress, device,
        parallel: see minigrad.fit. Returns the History.

        ValueError names what is wrong with x; FloatingPointError if training leaves the finite
        numbers, which features far from order 1 make likely. What an error leaves of the model, and
        what Ctrl-C does, is told in minigrad.fit.
        """
        names = genes_of(x)
        with ranks_of(parallel).preparing():
            x = self._rows(x, in_range=True)
        n = x.shape[0]
        if seed is None:
            seed = self.config["seed"]
        seed = whole_number("seed", seed, least=0)
        if batch_size is None:
            batch_size = self.batch_size or n
        batch_size = whole_number("batch_size", batch_size)
        if epochs is None:
            epochs = self._default_epochs(n, batch_size)
        epochs = whole_number("epochs", epochs)
        rate = self.learning_rate if learning_rate is None else learning_rate

        with unchanged_if_it_fails(self):
            rows, _ = split(n, validation, seed)
            if len(rows):
                self._start_from(x, rows)
                if not self.trained:
                    self.features = names
                self.trained = True
            return fit(
                self,
                (x,),
                epochs=epochs,
                optimizer=lambda parameters: self._optimizer(parameters, rate),
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

    # Three things that a subclass may do in its own way.
    def _default_epochs(self, n: int, batch_size: int) -> int:
        """How many epochs `fit` takes for n rows where it is not told."""
        return max(10, min(200, round(5000 * batch_size / n)))

    def _start_from(self, x: Array, rows: np.ndarray) -> None:
        """Take from the training rows of x, (n_rows,), what need not be learnt. Here: nothing."""

    def _optimizer(self, parameters: list[Tensor], learning_rate: float) -> optim.Optimizer:
        """The optimiser of these parameters."""
        return optim.Adam(parameters, learning_rate)

    # ----------------------------------------------------------------------------------- predicting
    def _rows(self, x: Any, in_range: bool = False) -> Any:
        """x, checked: see as_features. in_range: whether the loss of it will be computed."""
        accepted = self.accepted if in_range else ANY_NUMBER
        rows = as_features(x, self.n_features, self.dtype, *accepted)
        refuse_other_names("x", "features", genes_of(x), self.features)
        return rows

    def minibatches(
        self, x: Array, size: int | None = None, in_range: bool = False
    ) -> Iterator[Array]:
        """Yield dense pieces (size, n_features) of the rows, in order, where the weights are.

        size None: CHUNK, and more where the model is on a GPU.
        """
        if size is None:
            n_entries = backend.entries_at_once(CHUNK * self.n_features, self.device)
            size = n_entries // self.n_features
        for (piece,) in Minibatches((self._rows(x, in_range),), size):
            yield dense(backend.rows_on(piece, self.device))

    def predict(self, x: Array, function: Callable[[Array], Any]) -> np.ndarray:
        """function(minibatch), a Tensor, of all rows of x (n, n_features), as one host array."""
        warn_if_untrained(self, stacklevel=3)
        with evaluating(self):
            return np.concatenate([function(piece).numpy() for piece in self.minibatches(x)])

"""The training loop: minibatch after minibatch, epoch after epoch.

This is a lesson. The loop is `train`, the first function below. What a loop needs in the real world
besides is in training.py: to go on after a kill, to stop at Ctrl-C, to train on several processes,
to find the first number that is not finite. Its `Run` knows where a training stands; what the loop
asks of it is said below, in plain Python.

Know before reading: nn.py, optim.py, data.py. The loop knows no model. It asks two things of one:

    model.loss(*minibatch, progress=..., rng=...)
        A scalar Tensor to make small. `progress`, from 0 to 1, says how much of the training lies
        behind: a model may change its loss on the way.
    model.validation(*minibatch, rng=...)
        A dict of name -> one number for each row, for rows that are not trained on. Early stopping
        goes by the first one: a name that ends in `loss` is to be small, one that ends in `elbo`
        to be large.

The smallest model has one weight: it learns the slope w of y = w x.

    >>> import numpy as np
    >>> from minigrad import nn, optim
    >>> from minigrad.fit import fit
    >>> class Slope(nn.Module):
    ...     def __init__(self):
    ...         self.w = nn.Parameter(np.zeros(1))
    ...
    ...     def loss(self, x, y, *, progress, rng):
    ...         return np.mean((self.w * x - y) ** 2)

Two rows, x = 1, 2 and y = 3, 6, make one minibatch. At w = 0 the loss is (3^2 + 6^2) / 2 = 22.5 and
its slope in w is -15, so that a step at the learning rate 0.1 takes w to 1.5, half of the way to 3.
The next two steps halve the distance again, and each divides the loss by 4. The losses below are
those before each step:

    >>> model = Slope()
    >>> x = np.array([1.0, 2.0])
    >>> history = fit(
    ...     model,
    ...     (x, 3.0 * x),
    ...     epochs=3,
    ...     optimizer=lambda parameters: optim.SGD(parameters, learning_rate=0.1),
    ...     schedule=None,
    ...     validation=0.0,
    ... )
    >>> history["train_loss"]
    [22.5, 5.625, 1.40625]
    >>> model.w.numpy()
    array([2.625])

This is what happens in there, and it comes to the same weight:

    >>> model = Slope()
    >>> optimizer = optim.SGD(model.parameters(), learning_rate=0.1)
    >>> epochs, batch_size, seed = 3, 128, 0
    >>> rows = np.random.default_rng(seed).permutation(2)
    >>> held_out, rows = rows[:0], rows[0:]  # a fraction of 0.0
    >>> for epoch in range(epochs):
    ...     order = np.random.default_rng([seed, 1, epoch]).permutation(rows)
    ...     for batch, start in enumerate(range(0, len(order), batch_size)):
    ...         chosen = order[start : start + batch_size]
    ...         rng = np.random.default_rng([seed, 2, epoch, batch])  # for dropout and other noise
    ...         loss = model.loss(x[chosen], 3.0 * x[chosen], progress=epoch / epochs, rng=rng)
    ...         optimizer.zero_grad()
    ...         loss.backward()
    ...         optimizer.step()
    >>> model.w.numpy()
    array([2.625])

`fit` differs from this in a few things. It checks, scores the rows held out, writes checkpoints and
shows a bar. Its `progress` counts the steps that are done, not only the epochs. A remainder of one
or two rows is no minibatch of its own, but joins the one before (data.py). And its generators have
other keys, so that rows come in another order: all noise is a function of (seed, what it is for,
epoch, step), and `NOISE` below is a number that keeps one purpose apart from the others. So a run
that was killed and resumed from its last checkpoint ends with the very numbers of one that was not,
provided that `loss` hands its `rng` on to the layers that draw.

Know after: what happens between a call of `fit` and the history that it returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minigrad import backend, optim
from minigrad.checkpoint import write_figure
from minigrad.data import NOISE, VALIDATION
from minigrad.notebook import as_frame, as_html, as_picture, number_of
from minigrad.tensor import no_grad
from minigrad.training import Run, prepare, unchanged_if_it_fails


def train(model, run: Run) -> None:
    """The loop: in every epoch one step for each minibatch, then a look at the rows held out.

    run: knows where the training stands (epoch, minibatch, history), so that a loop which was
    stopped can go on from the middle of an epoch. FloatingPointError for a loss, a gradient or a
    weight that is not finite.
    """
    while not run.is_over():
        model.train()  # dropout and batch normalisation behave as in training
        for minibatch in run.minibatches():  # the chosen rows; in another order in each epoch
            rng = run.rng(NOISE, run.batch)  # run.batch: the number of this minibatch
            loss = model.loss(*minibatch, progress=run.progress, rng=rng)
            run.optimizer.zero_grad()
            loss.backward()
            # The loss as a number, checked, and the number of rows that it is a mean over. Several
            # processes add up losses and gradients here.
            value, n_rows = run.complete(loss, minibatch)
            run.optimizer.step()
            if run.schedule is not None:
                run.schedule.step()
            run.count(value, n_rows)  # added up, for the mean loss of the epoch
        run.check_weights()  # that they are finite
        scores = validate(model, run)
        run.end_epoch(scores)  # mean loss and scores into the history; a checkpoint


def validate(model, run: Run) -> dict[str, float]:
    """The mean over the held-out rows of each number that the model reports of a row, by name."""
    sums: dict[str, float] = {}
    with evaluating(model):
        for number, minibatch in run.held_out_minibatches():  # in the same order in each epoch
            rng = run.rng(VALIDATION, number)
            for name, values in model.validation(*minibatch, rng=rng).items():
                total = float(backend.to_host(np.sum(values)))
                sums[name] = sums.get(name, 0.0) + total
    sums = run.add_up(sums)  # of several processes, each of which saw some of the minibatches
    n_rows = len(run.held_out.rows)
    return {f"validation_{name}": total / n_rows for name, total in sums.items()}


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Within: evaluation mode and nothing recorded; afterwards each module's mode as before."""
    before = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in before:
            module.training = mode


def fit(
    model,
    columns,
    *,
    epochs: int,
    optimizer,
    batch_size: int = 128,
    validation: float = 0.1,
    seed: int = 0,
    schedule=optim.CosineSchedule,
    early_stopping: bool | int = False,
    checkpoint=None,
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    parallel: str | None = None,
    describe=dict,
) -> History:
    """Train a model, which is then in evaluation mode. Returns the History.

    columns: parallel arrays, CSR matrices or Blocks of the same number of rows. optimizer: called
    with the list of parameters, returns an optim.Optimizer. validation: the fraction of rows held
    out, for the model's method of that name. schedule: called with (optimizer, number of steps), or
    None; for a StepSchedule write `lambda optimizer, n_steps: StepSchedule(optimizer, every=1000)`
    (TypeError for the class itself). early_stopping: stop after training.PATIENCE (or the number
    given) epochs without a better validation score; the best weights are restored. ValueError if
    the score's name does not end in loss or elbo.

    checkpoint: a path, written after every epoch and once a minute; resume: go on from it if it is
    there. progress: whether to show a bar, in terminals and notebooks, or elsewhere a line every
    few seconds (the `progress` that `loss` is given is another thing). device: "numpy" or "cupy"
    (default: the environment variable MINIGRAD_DEVICE, else where the model is); the model stays
    there. parallel: "mpi" under mpiexec: every rank takes its part of each minibatch of batch_size
    rows; all need the same columns and see the checkpoint. describe: a function without arguments;
    the dict that it returns (configuration, names of genes) is saved with the weights. `dict`
    itself returns an empty one.

    Ctrl-C returns, after the step that it falls into, what is there; a second one does not wait for
    the step. An error in the first epoch, or before it, leaves the model as it was, to the bit; one
    that comes later leaves the weights of the last whole epoch. FloatingPointError for a number
    that is not finite. Before anything is trained: OSError where the checkpoint cannot be written,
    ValueError where it is of another run.
    """
    with unchanged_if_it_fails(model):
        run = prepare(
            model,
            columns,
            history=History(),
            epochs=epochs,
            optimizer=optimizer,
            batch_size=batch_size,
            validation=validation,
            seed=seed,
            schedule=schedule,
            early_stopping=early_stopping,
            checkpoint=checkpoint,
            resume=resume,
            device=device,
            parallel=parallel,
            describe=describe,
        )
        with run.watched(progress):  # whether a bar is shown; Ctrl-C waits for a step to end
            train(model, run)
    return run.history


class History:
    """What training recorded: `history["train_loss"]` is a list, one entry for each epoch.

    names: what there is, and what `for name in history` goes through; `len(history)` is the number
    of epochs. interrupted: whether Ctrl-C ended the training.
    """

    interrupted = False

    def __init__(self, columns=None):
        self.columns = dict(columns or {})

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the order in which they were first recorded."""
        return list(self.columns)

    def __getitem__(self, name: str) -> list:
        if name not in self.columns:
            raise KeyError(f"history has no {name!r}; it has {self.names}")
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __contains__(self, name):
        return name in self.columns

    def __len__(self):
        return len(self.columns.get("epoch", []))

    def append(self, **values) -> None:
        """Add one epoch."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def __repr__(self):
        if not len(self):
            return f"History({self._length()})"
        last = ", ".join(
            f"{name} {values[-1]:.6g}" for name, values in self.columns.items() if values
        )
        return f"History({self._length()}; last: {last})"

    def _length(self) -> str:
        return number_of(len(self), "epoch")

    def _repr_html_(self) -> str:
        n_shown = 5
        last = [values[-n_shown:] for values in self.columns.values()]
        return as_html(self.names, zip(*last), f"{self._length()}; the last of them")

    def to_frame(self) -> Any:
        """One row for each epoch, a pandas DataFrame. ImportError where pandas is not installed."""
        return as_frame(self.columns)

    def plot(self, path: Any = None) -> Any:
        """Draw loss and validation scores by epoch.

        With a path (.png, .pdf, .svg) the picture is written and the path returned, without one the
        figure is returned. ValueError for a history without epochs.
        """
        from matplotlib.figure import Figure

        if not len(self):
            raise ValueError("plot: the history has no epochs yet; train for one at least")
        names = [name for name in self.names if name.startswith(("train_", "validation_"))]
        n_columns = min(len(names), 2)  # what a notebook or a page has room for
        n_rows = -(-len(names) // 2)
        figure = Figure(figsize=(4.2 * n_columns, 3.0 * n_rows), layout="constrained")
        all_axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
        for axes in all_axes[len(names) :]:
            axes.remove()
        for axes, name in zip(all_axes, names):
            axes.plot(self["epoch"], self[name], color="#0072B2")
            unit = " (nats a row)" if "elbo" in name else ""  # models use natural logarithms
            axes.set_xlabel("epoch")
            axes.set_ylabel(name.replace("_", " ") + unit, parse_math=False)
            # The first epochs would squeeze all others into a line: they may lie outside.
            first = min(2, len(self) // 2)
            shown = [y for epoch, y in zip(self["epoch"], self[name]) if epoch > first]
            if shown and max(shown) > min(shown):
                margin = 0.08 * (max(shown) - min(shown))
                axes.set_ylim(min(shown) - margin, max(shown) + margin)
        if path is None:
            return as_picture(figure)
        return write_figure(figure, path, dpi=120)

"""The training loop.

Know before reading: nn.py, optim.py, data.py. `fit` knows no model. It asks two things of one:
`model.loss(*minibatch, progress, rng)`, a scalar Tensor to make small, where `progress` in [0, 1] says how much of the
training lies behind (it drives, say, the weight of a KL term); and `model.validation(*minibatch, rng)`, a dict of name ->
one number a row, on rows held out from training: `elbo` (higher is better) or `loss` (lower is better) first.

All noise is a function of (seed, purpose, epoch, step), so a run that was killed and resumed from its last checkpoint
ends with the very numbers of one that was not.

Know after: all that happens between `model.fit(x)` and the history that it returns.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from minigrad import backend, optim, trace
from minigrad import checkpoint as files
from minigrad.data import NOISE, VALIDATION, Blocks, Minibatches, pieces, split
from minigrad.parallel import ranks_of
from minigrad.tensor import no_grad

SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch that takes longer than that
POSITION = (
    "epoch",
    "batch",
    "loss_sum",
    "n_seen",
    "seconds",
    "best_epoch",
)  # of a run, as a checkpoint has it
PATIENCE = 20  # epochs without a better validation score after which early stopping stops


class History:
    """What training recorded: `history["train_loss"]` is a list, one entry an epoch. `names` lists what there is.

    interrupted: whether Ctrl-C ended the training.
    """

    interrupted = False

    def __init__(self, columns=None):
        self.columns = dict(columns or {})

    names = property(lambda self: list(self.columns))

    def __getitem__(self, name: str) -> list:
        if name not in self.columns:
            raise KeyError(f"history has no {name!r}; it has {self.names}")
        return self.columns[name]

    def __contains__(self, name):
        return name in self.columns

    def __len__(self):
        return len(self.columns.get("epoch", []))

    def append(self, **values) -> None:
        """Add one epoch."""
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def __repr__(self):
        last = ", ".join(
            f"{name} {values[-1]:.6g}" for name, values in self.columns.items() if values
        )
        return f"History({len(self)} epochs; last: {last})"

    def plot(self, path) -> None:
        """Draw the curves of loss and validation against epochs into a picture file (.png, .pdf, .svg)."""
        from matplotlib.figure import Figure

        names = [n for n in self.names if n.startswith(("train_", "validation_"))]
        figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
        for axes, name in zip(
            np.atleast_1d(figure.subplots(1, len(names), squeeze=False)).ravel(), names
        ):
            axes.plot(self["epoch"], self[name], color="#0072B2")
            shown = [y for x, y in zip(self["epoch"], self[name]) if x > min(2, len(self) // 2)]
            if shown and max(shown) > min(
                shown
            ):  # the first epochs would squeeze all others into a line
                margin = 0.08 * (max(shown) - min(shown))
                axes.set_ylim(min(shown) - margin, max(shown) + margin)
            unit = " (nats a cell)" if "elbo" in name else ""
            axes.set_xlabel("epoch")
            axes.set_ylabel(name.replace("_", " ") + unit, parse_math=False)
        figure.savefig(path, dpi=120)


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
    """Train a model; returns the History. Afterwards the model holds its weights and is in evaluation mode.

    columns: parallel arrays, CSR matrices or Blocks, a row a cell. optimizer: called with the list of parameters, returns
    an optim.Optimizer. validation: fraction of rows held out. schedule: called with (optimizer, number of steps), or None.
    early_stopping: stop after PATIENCE (or the number given) epochs without a better validation score; the best weights
    are restored. checkpoint: a path, written after every epoch and once a minute; resume: go on from it if it is there.
    progress: a bar, if standard error is a terminal. device: "numpy" or "cupy" (default: the environment variable
    MINIGRAD_DEVICE, else where the model is); the model stays there. parallel: "mpi" under mpiexec: every rank takes its
    part of each minibatch of batch_size rows; all need the same columns and see the checkpoint.
    describe: called for what shall be in the checkpoint beside the weights (configuration, names of genes).
    Ctrl-C returns, after the step that it falls into, what is there; a second one does not wait for the step.
    FloatingPointError for a number that is not finite, the last good weights restored. Before anything is trained:
    OSError where the checkpoint cannot be written, ValueError where it is of another run.
    """
    ranks = ranks_of(parallel)
    with ranks.preparing():
        if checkpoint is not None and ranks.rank == 0:
            files.check_target(checkpoint)
        device = device or os.environ.get("MINIGRAD_DEVICE") or model.device
        train, held_out = _minibatches(columns, batch_size, validation, seed, early_stopping, ranks)
        model.to(device)
        run = _Run(
            model,
            optimizer(model.parameters()),
            train,
            held_out,
            epochs,
            seed,
            schedule,
            early_stopping,
            device,
            ranks,
        )
        is_compared = checkpoint or resume or ranks.size > 1
        settings = (
            _settings(run, columns, batch_size, validation) if is_compared else None
        )  # reads all of the data
        if resume:
            run.resume(checkpoint, settings, describe())
        if checkpoint and ranks.rank == 0:
            run.save = lambda: run.write(checkpoint, settings, describe())
    run.align(settings)
    hidden = ranks.rank > 0 or (None if progress else True)
    with (
        ranks.together(),
        tqdm(total=epochs * len(train), initial=run.n_done, unit="batch", disable=hidden) as bar,
    ):
        run.until_interrupted(bar)
    run.finish()
    return run.history


def _minibatches(columns, batch_size, validation, seed, early_stopping, ranks):
    """Minibatches to train on, of which this rank sees its share, and those held out. ValueError where there are too few."""
    n = columns[0].shape[0]
    train_rows, held_out = split(n, validation, seed)
    if early_stopping and not len(held_out):
        raise ValueError(
            f"early_stopping needs validation rows; validation={validation} of {n} gives none"
        )
    if not len(train_rows):
        raise ValueError("no rows to train on")
    if ranks.size > 1 and min(batch_size, len(train_rows)) < 2 * ranks.size:
        raise ValueError(
            f"batch_size={batch_size} of {len(train_rows)} rows: each of {ranks.size} ranks needs 2 at least; "
            "raise batch_size, which is for all ranks together, or use fewer"
        )
    return (
        Minibatches(columns, batch_size, train_rows, (ranks.rank, ranks.size)),
        Minibatches(columns, max(batch_size, 512), held_out),
    )


def _settings(run, columns, batch_size, validation) -> dict:
    """What must be the same for a run to be resumed to the same end."""
    column = columns[0]
    settings = {
        "epochs": int(run.epochs),
        "batch_size": int(batch_size),
        "n_rows": int(column.shape[0]),
        "validation": float(validation),
        "seed": int(run.seed),
        "early_stopping": run.patience,
        "optimizer": type(run.optimizer).__name__,
        "learning_rate": float(run.optimizer.learning_rate),
        "weight_decay": float(getattr(run.optimizer, "weight_decay", 0.0)),
        "data": [_fingerprint(each) for each in columns],
        "processes": run.ranks.size,
        "on_disk": isinstance(column, Blocks),
        "kl_warmup": getattr(run.model, "kl_warmup", None),
        "config": {k: v for k, v in getattr(run.model, "config", {}).items() if k != "seed"},
    }
    return json.loads(json.dumps(settings))  # as they come back from a file


def _fingerprint(column) -> str:
    """A number that another order of rows or of columns changes, as text: sum of x_ij sin(i + 1) sin(2 j + 1), 9 digits."""
    total, across = 0.0, np.sin(2.0 * np.arange(column.shape[1]) + 1.0) if column.ndim == 2 else 1.0
    for start, part in pieces(column) if column.ndim == 2 else [(0, column)]:
        down = np.sin(np.arange(start, start + part.shape[0]) + 1.0)
        total += float(np.sum(down * (part @ across if column.ndim == 2 else part)))
    return f"{total:.9g}"


class _Run:
    """One training: the state that moves, and the steps that move it."""

    def __init__(
        self,
        model,
        optimizer,
        train,
        held_out,
        epochs,
        seed,
        schedule,
        early_stopping,
        device,
        ranks,
    ):
        self.model, self.optimizer, self.train, self.held_out = model, optimizer, train, held_out
        self.epochs, self.seed, self.device, self.ranks = epochs, seed, device, ranks
        self.schedule = schedule(optimizer, epochs * len(train)) if schedule else None
        self.patience = PATIENCE if early_stopping is True else int(early_stopping)
        self.history = History()
        self.epoch = self.batch = 0  # the next minibatch to train on
        self.loss_sum, self.n_seen, self.seconds = 0.0, 0, 0.0
        self.best, self.best_score, self.best_epoch = None, -math.inf, 0
        self.good = model.state_dict()
        self.is_whole = True  # no step is half done
        self.is_interrupted = self.is_stopping = (
            False  # Ctrl-C was pressed here; all ranks agreed to stop
        )
        self.last_save = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint; `fit` puts the way to do it here, if there is to be one."""

    def align(self, settings) -> None:
        """Hold the settings of all ranks against those of the first, and begin with its weights."""
        if self.ranks.size == 1:
            return
        shapes = {name: list(a.shape) for name, a in self.model.state_dict().items()}
        position = {"epoch": self.epoch, "batch": self.batch}
        mine = {**settings, **position, "weights": shapes}
        first = json.loads(self.ranks.first_text(json.dumps(mine)))
        with self.ranks.preparing():
            if first != mine:
                names = [name for name in mine if mine[name] != first.get(name)]
                raise ValueError(
                    f"the ranks must train the same: the first has { ({name: first.get(name) for name in names}) }, "
                    f"number {self.ranks.rank} { ({name: mine[name] for name in names}) }"
                )
        for array in (self.optimizer.weights, *self.buffers("")):
            self.ranks.first(array)
        if not self.n_done:
            self.good = self.model.state_dict()

    def buffers(self, start) -> list:
        """Those arrays of the model that are not trained, and whose names begin so."""
        return [
            getattr(module, name)
            for _, module, name in self.model.named_buffers()
            if name.startswith(start)
        ]

    def until_interrupted(self, bar) -> None:
        """Train to the end, or to Ctrl-C: then the last whole step is saved, and said to be the last."""
        try:
            with self.patient():
                self.to_the_end(bar)
        except KeyboardInterrupt:
            if self.ranks.size > 1 and not self.is_stopping:
                raise  # a second Ctrl-C: the others are somewhere else
            self.history.interrupted = True
            if self.is_whole:
                self.save()
            if self.ranks.rank == 0:
                bar.write(
                    f"interrupted: the weights are those of the {'last step' if self.best is None else 'best epoch'}, "
                    "the history ends with the last whole epoch",
                    file=sys.stderr,
                )

    @contextmanager
    def patient(self):
        """Within: Ctrl-C waits for `rest`, where weights and position fit together; a second one does not wait."""
        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )

        def wait(*_):
            self.is_interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            if ours:
                signal.signal(signal.SIGINT, wait)
            yield
        finally:
            if ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def rest(self) -> None:
        """Between two steps, where all that a checkpoint holds is of one moment: stop on Ctrl-C; write one if it is time."""
        self.is_whole = True
        self.is_stopping |= self.is_interrupted and self.ranks.size == 1
        if self.is_stopping:
            raise KeyboardInterrupt
        if time.monotonic() - self.last_save > SAVE_EVERY:
            self.save()
            self.last_save = time.monotonic()

    n_done = property(lambda self: self.epoch * len(self.train) + self.batch)

    def to_the_end(self, bar) -> None:
        """Train epoch after epoch until the last, or until early stopping has waited long enough."""
        while self.epoch < self.epochs and not self.is_over():
            bar.set_description(f"epoch {self.epoch + 1}/{self.epochs}")
            self.train_epoch(bar)
            state = self.model.state_dict()
            bad = [name for name, a in state.items() if not np.all(np.isfinite(a))]
            if bad:
                self.give_up("the last step made a weight infinite or NaN", bad)
            scores = self.validate()
            self.is_whole = False
            self.history.append(
                epoch=self.epoch + 1,
                train_loss=self.loss_sum / self.n_seen,
                **scores,
                seconds=self.seconds,
                learning_rate=float(self.optimizer.learning_rate),
            )
            self.epoch, self.batch = self.epoch + 1, 0
            self.loss_sum, self.n_seen, self.seconds = 0.0, 0, 0.0
            self.good = state
            self.remember_best(scores)
            self.is_whole = True
            bar.set_postfix(
                {
                    name: f"{values[-1]:.5g}"
                    for name, values in self.history.columns.items()
                    if name.startswith(("train", "validation"))
                },
                refresh=False,
            )
            self.save()
            self.last_save = time.monotonic()
        if (
            self.best is not None
        ):  # the file of a finished run holds the weights that the model is left with
            self.model.load_state_dict(self.best)
            self.save()

    def train_epoch(self, bar) -> None:
        """One pass over the training rows, from minibatch `self.batch` on."""
        self.model.train()
        started = time.perf_counter()
        for minibatch in self.train.shuffled(self.seed, self.epoch, self.batch):
            self.is_whole = False
            minibatch = [backend.to_device(column, self.device) for column in minibatch]
            value, n_rows = self.step(minibatch)
            self.batch += 1
            self.loss_sum += value * n_rows
            self.n_seen += n_rows
            self.seconds += time.perf_counter() - started
            bar.update()
            self.rest()
            started = (
                time.perf_counter()
            )  # saving does not count, waiting for the next minibatch does

    def step(self, minibatch) -> tuple[float, int]:
        """One minibatch forward, backward, and one change of the weights. Returns the loss, and of how many rows it is."""
        loss = self.loss(minibatch)
        self.optimizer.zero_grad()
        loss.backward()
        gradients, value, n_rows = self.optimizer.gradients, loss.data, minibatch[0].shape[0]
        if self.ranks.size > 1:
            value, n_rows = self.share(loss.item(), n_rows)
            gradients *= minibatch[0].shape[0] / n_rows
            self.ranks.sum(gradients)
        with np.errstate(
            invalid="ignore"
        ):  # one number, the only one that a GPU is waited for: NaN if either is not finite
            finite = (value + 0.0 * (gradients @ gradients)).item()
        if not math.isfinite(finite):
            finite = float(value)
            if not (
                math.isfinite(finite) and np.all(np.isfinite(gradients))
            ):  # else only the square overflows
                self.stop_at_nonfinite(self.loss(minibatch))
        self.optimizer.step()
        if self.schedule:
            self.schedule.step()
        return finite, n_rows

    def share(self, value, n_rows) -> tuple[float, int]:
        """The loss of the minibatch and its rows, from those of this rank; also agrees on stopping, and averages the
        running statistics of batch norm, so that all ranks, and each checkpoint, have the same."""
        running = self.buffers("running_")
        told = [
            [value * n_rows, n_rows, self.is_interrupted],
            *[n_rows * backend.to_host(r).astype(np.float64) for r in running],
        ]
        total = self.ranks.sum(np.concatenate([np.ravel(part) for part in told]))
        self.is_stopping, at = bool(total[2]), 3
        for r in running:
            backend.assign(r, (total[at : at + r.size] / total[1]).reshape(r.shape))
            at += r.size
        return float(total[0] / total[1]), int(total[1])

    def loss(self, minibatch):
        key = [self.seed, NOISE, self.epoch, self.batch] + [self.ranks.rank] * (self.ranks.size > 1)
        rng = backend.generator(key, self.device)
        return self.model.loss(
            *minibatch, progress=self.n_done / (self.epochs * len(self.train)), rng=rng
        )

    def stop_at_nonfinite(self, loss):
        """Find the first non-finite number on the tape of this minibatch's loss, or in its gradients, and give up."""
        parameters = dict(self.model.named_parameters())
        bad = [name for name, p in parameters.items() if not np.all(np.isfinite(p.data))]
        where = trace.first_nonfinite(loss, names=self.model, gradients=True)
        if not bad and math.isfinite(loss.item()):
            self.optimizer.zero_grad()
            loss.backward()
            bad = [
                name
                for name, p in parameters.items()
                if p.grad is not None and not np.all(np.isfinite(p.grad))
            ]
        self.give_up(
            where
            or ("the gradients" if self.ranks.size == 1 else "the loss or a gradient of a rank"),
            bad,
        )

    def give_up(self, where, bad):
        """Restore the weights of the last whole epoch, and say what was not finite."""
        self.model.load_state_dict(self.good)
        self.model.eval()
        raise FloatingPointError(
            f"not finite in epoch {self.epoch + 1}, batch {min(self.batch + 1, len(self.train))}: {where}; "
            f"parameters that are not finite, or their gradients: {bad or 'none'}. The weights of the last good epoch "
            "were restored. A smaller learning_rate often helps; check the input for extreme values"
        )

    def validate(self) -> dict[str, float]:
        """The mean over held-out rows of what the model reports of them."""
        self.model.eval()
        totals, n_rows = {}, 0
        with no_grad():
            for i, minibatch in enumerate(self.held_out):
                n_rows += minibatch[0].shape[0]
                if i % self.ranks.size != self.ranks.rank:
                    continue
                rng = backend.generator([self.seed, VALIDATION, self.epoch, i], self.device)
                minibatch = [backend.to_device(column, self.device) for column in minibatch]
                for name, values in self.model.validation(*minibatch, rng=rng).items():
                    totals[name] = totals.get(name, 0.0) + float(backend.to_host(np.sum(values)))
                self.rest()
        if self.ranks.size > 1:
            names = json.loads(self.ranks.first_text(json.dumps(list(totals))))
            totals = dict(
                zip(
                    names,
                    self.ranks.sum(np.array([totals.get(name, 0.0) for name in names])).tolist(),
                )
            )
        return {f"validation_{name}": total / n_rows for name, total in totals.items()}

    def remember_best(self, scores) -> None:
        """Keep the weights of the best epoch, if early stopping asks for them."""
        if not self.patience:
            return
        name, value = next(iter(scores.items()))
        score = -value if name.endswith("loss") else value
        if score > self.best_score:
            self.best, self.best_score, self.best_epoch = self.good, score, self.epoch

    def is_over(self) -> bool:
        return self.patience > 0 and self.epoch - self.best_epoch >= self.patience

    def finish(self) -> None:
        """Best weights in place where early stopping kept them, dropout and batch norm switched to evaluation."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.optimizer.zero_grad()
        self.model.eval()

    def write(self, path, settings, description) -> None:
        """Write all that resuming exactly needs."""
        state = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best or {},
            "good": self.good,
        }
        arrays = {
            f"{group}/{name}": np.asarray(backend.to_host(a))
            for group, d in state.items()
            for name, a in d.items()
        }
        files.save(
            path,
            arrays,
            {
                **description,
                "settings": settings,
                "history": self.history.columns,
                "position": {name: getattr(self, name) for name in POSITION},
                "best_score": None if self.best is None else self.best_score,
            },
        )

    def resume(self, path, settings, description) -> None:
        """Go on from a checkpoint, if there is one; ValueError if it is of another run."""
        if path is None:
            raise ValueError("resume=True needs checkpoint=, the path to go on from")
        if not os.path.exists(path):
            return
        arrays, meta = files.load(path)
        before = meta.get("settings") or {}
        if before != settings:
            names = [
                name for name in {**before, **settings} if before.get(name) != settings.get(name)
            ]
            raise ValueError(
                f"{path} is a checkpoint of a run with { ({name: before.get(name) for name in names}) }, "
                f"this one has { ({name: settings.get(name) for name in names}) }"
            )
        for name, value in json.loads(
            json.dumps(description)
        ).items():  # names of genes, of batches
            if name not in ("config", "trained") and meta.get(name) != value:
                raise ValueError(
                    f"{path} is a checkpoint of a run with other {name}, or in another order"
                )
        groups = {"best": {}}
        for key, array in arrays.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = array
        try:
            self.model.load_state_dict(groups["weights"])
            self.optimizer.load_state_dict(groups["optimizer"])
            self.good, self.best = groups["good"], groups["best"] or None
            self.best_score = -math.inf if meta["best_score"] is None else meta["best_score"]
            self.history = History(meta["history"])
            vars(self).update({name: meta["position"][name] for name in POSITION})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: cannot be resumed from: it is incomplete ({error})"
            ) from error
        if self.schedule and self.n_done:
            self.schedule.n = self.n_done - 1
            self.schedule.step()


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Within: evaluation mode and nothing recorded; afterwards the mode as before."""
    before = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(before)

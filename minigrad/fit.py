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
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from minigrad import backend, checkpoint as files, optim, trace
from minigrad.data import NOISE, VALIDATION, Minibatches, split
from minigrad.tensor import no_grad

SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch that takes longer than that
POSITION = ("epoch", "batch", "loss_sum", "n_seen", "seconds", "best_epoch")  # of a run, as a checkpoint has it
PATIENCE = 20      # epochs without a better validation score after which early stopping stops


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
        last = ", ".join(f"{name} {values[-1]:.6g}" for name, values in self.columns.items() if values)
        return f"History({len(self)} epochs; last: {last})"

    def plot(self, path) -> None:
        """Draw the curves of loss and validation against epochs into a picture file (.png, .pdf, .svg)."""
        from matplotlib.figure import Figure
        names = [n for n in self.names if n.startswith(("train_", "validation_"))]
        figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names), squeeze=False)).ravel(), names):
            axes.plot(self["epoch"], self[name], color="#0072B2")
            shown = [y for x, y in zip(self["epoch"], self[name]) if x > min(2, len(self) // 2)]
            if shown and max(shown) > min(shown):  # the first epochs would squeeze all others into a line
                margin = 0.08 * (max(shown) - min(shown))
                axes.set_ylim(min(shown) - margin, max(shown) + margin)
            axes.set(xlabel="epoch", ylabel=name.replace("_", " ") + " (nats a cell)" * ("elbo" in name))
        figure.savefig(path, dpi=120)


def fit(model, columns, *, epochs: int, optimizer, batch_size: int = 128, validation: float = 0.1, seed: int = 0,
        schedule=optim.CosineSchedule, early_stopping: bool | int = False, checkpoint=None, resume: bool = False,
        progress: bool = True, device: str | None = None, describe=dict) -> History:
    """Train a model; returns the History. Afterwards the model holds its weights and is in evaluation mode.

    columns: parallel arrays or CSR matrices, a row a cell. optimizer: called with the list of parameters, returns an
    optim.Optimizer. validation: fraction of rows held out. schedule: called with (optimizer, number of steps), or None.
    early_stopping: stop after PATIENCE (or the number given) epochs without a better validation score; the best weights
    are restored. checkpoint: a path, written after every epoch and once a minute; resume: go on from it if it is there.
    progress: a bar, if standard error is a terminal. device: "numpy" or "cupy" (default: MINIGRAD_DEVICE, else "numpy").
    describe: called for what shall be in the checkpoint beside the weights (configuration, names of genes).
    Ctrl-C returns, after the step that it falls into, what is there; a second one does not wait for the step.
    FloatingPointError for a number that is not finite, the last good weights restored. Before anything is trained:
    OSError where the checkpoint cannot be written, ValueError where it is of another run.
    """
    if checkpoint is not None:
        files.check_target(checkpoint)
    device = device or os.environ.get("MINIGRAD_DEVICE", "numpy")
    train_rows, held_out = split(columns[0].shape[0], validation, seed)
    if early_stopping and not len(held_out):
        raise ValueError(f"early_stopping needs validation rows; validation={validation} of {columns[0].shape[0]} gives none")
    if not len(train_rows):
        raise ValueError("no rows to train on")
    model.to(device)
    run = _Run(model, optimizer(model.parameters()), Minibatches(columns, batch_size, train_rows),
               Minibatches(columns, max(batch_size, 512), held_out), epochs, seed, schedule, early_stopping, device)
    settings = {"epochs": int(epochs), "batch_size": int(batch_size), "n_rows": int(columns[0].shape[0]),
                "validation": float(validation), "seed": int(seed), "early_stopping": run.patience,
                "optimizer": type(run.optimizer).__name__, "learning_rate": float(run.optimizer.learning_rate),
                "weight_decay": float(getattr(run.optimizer, "weight_decay", 0.0)), "sum": float(columns[0].sum()),
                "kl_warmup": getattr(model, "kl_warmup", None),
                "config": {k: v for k, v in getattr(model, "config", {}).items() if k != "seed"}}
    settings = json.loads(json.dumps(settings))  # as they come back from a file
    if resume:
        run.resume(checkpoint, settings)
    run.save = (lambda: run.write(checkpoint, settings, describe())) if checkpoint else (lambda: None)
    with tqdm(total=epochs * len(run.train), initial=run.n_done, unit="batch", disable=None if progress else True) as bar:
        try:
            with run.patient():
                run.to_the_end(bar)
        except KeyboardInterrupt:
            run.history.interrupted = True
            if run.is_whole:
                run.save()
            bar.write(f"interrupted: the weights are those of the {'last step' if run.best is None else 'best epoch'}, "
                      "the history ends with the last whole epoch", file=sys.stderr)
    run.finish()
    return run.history


class _Run:
    """One training: the state that moves, and the steps that move it."""

    def __init__(self, model, optimizer, train, held_out, epochs, seed, schedule, early_stopping, device):
        self.model, self.optimizer, self.train, self.held_out = model, optimizer, train, held_out
        self.epochs, self.seed, self.device = epochs, seed, device
        self.schedule = schedule(optimizer, epochs * len(train)) if schedule else None
        self.patience = PATIENCE if early_stopping is True else int(early_stopping)
        self.history = History()
        self.epoch = self.batch = 0  # the next minibatch to train on
        self.loss_sum, self.n_seen, self.seconds = 0.0, 0, 0.0
        self.best, self.best_score, self.best_epoch = None, -math.inf, 0
        self.good = model.state_dict()
        self.is_whole, self.is_interrupted = True, False  # no step is half done; Ctrl-C was pressed
        self.last_save = time.monotonic()

    @contextmanager
    def patient(self):
        """Within: Ctrl-C waits for `rest`, where weights and position fit together; a second one does not wait."""
        ours = (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGINT) is signal.default_int_handler)

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
        if self.is_interrupted:
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
            self.history.append(epoch=self.epoch + 1, train_loss=self.loss_sum / self.n_seen, **scores,
                                seconds=self.seconds, learning_rate=float(self.optimizer.learning_rate))
            self.epoch, self.batch = self.epoch + 1, 0
            self.loss_sum, self.n_seen, self.seconds = 0.0, 0, 0.0
            self.good = state
            self.remember_best(scores)
            self.is_whole = True
            bar.set_postfix({name: f"{values[-1]:.5g}" for name, values in self.history.columns.items()
                             if name.startswith(("train", "validation"))}, refresh=False)
            self.save()
            self.last_save = time.monotonic()
        if self.best is not None:  # the file of a finished run holds the weights that the model is left with
            self.model.load_state_dict(self.best)
            self.save()

    def train_epoch(self, bar) -> None:
        """One pass over the training rows, from minibatch `self.batch` on."""
        self.model.train()
        for minibatch in self.train.shuffled(self.seed, self.epoch, self.batch):
            started = time.perf_counter()
            self.is_whole = False
            minibatch = [backend.to_device(column, self.device) for column in minibatch]
            value = self.step(minibatch)
            self.batch += 1
            self.loss_sum += value * minibatch[0].shape[0]
            self.n_seen += minibatch[0].shape[0]
            self.seconds += time.perf_counter() - started
            bar.update()
            self.rest()

    def step(self, minibatch) -> float:
        """One minibatch forward, backward, and one change of the weights. Returns the loss."""
        loss = self.loss(minibatch)
        value = loss.item()
        if not math.isfinite(value):
            self.stop_at_nonfinite(loss)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = self.optimizer.gradients
        if not math.isfinite(gradients @ gradients) and not np.all(np.isfinite(gradients)):  # the square may overflow
            self.stop_at_nonfinite(self.loss(minibatch))
        self.optimizer.step()
        if self.schedule:
            self.schedule.step()
        return value

    def loss(self, minibatch):
        rng = backend.generator([self.seed, NOISE, self.epoch, self.batch], self.device)
        return self.model.loss(*minibatch, progress=self.n_done / (self.epochs * len(self.train)), rng=rng)

    def stop_at_nonfinite(self, loss):
        """Find the first non-finite number on the tape of this minibatch's loss, or in its gradients, and give up."""
        parameters = dict(self.model.named_parameters())
        bad = [name for name, p in parameters.items() if not np.all(np.isfinite(p.data))]
        where = trace.first_nonfinite(loss, names=self.model, gradients=True)
        if not bad and math.isfinite(loss.item()):
            self.optimizer.zero_grad()
            loss.backward()
            bad = [name for name, p in parameters.items() if p.grad is not None and not np.all(np.isfinite(p.grad))]
        self.give_up(where or "the gradients", bad)

    def give_up(self, where, bad):
        """Restore the weights of the last whole epoch, and say what was not finite."""
        self.model.load_state_dict(self.good)
        self.model.eval()
        raise FloatingPointError(
            f"not finite in epoch {self.epoch + 1}, batch {min(self.batch + 1, len(self.train))}: {where}; "
            f"parameters that are not finite, or their gradients: {bad or 'none'}. The weights of the last good epoch "
            "were restored. A smaller learning_rate often helps; check the input for extreme values")

    def validate(self) -> dict[str, float]:
        """The mean over held-out rows of what the model reports of them."""
        self.model.eval()
        totals, n_rows = {}, 0
        with no_grad():
            for i, minibatch in enumerate(self.held_out):
                rng = backend.generator([self.seed, VALIDATION, self.epoch, i], self.device)
                minibatch = [backend.to_device(column, self.device) for column in minibatch]
                for name, values in self.model.validation(*minibatch, rng=rng).items():
                    totals[name] = totals.get(name, 0.0) + float(backend.to_host(np.sum(values)))
                n_rows += minibatch[0].shape[0]
                self.rest()
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
        state = {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best or {},
                 "good": self.good}
        arrays = {f"{group}/{name}": np.asarray(backend.to_host(a)) for group, d in state.items() for name, a in d.items()}
        files.save(path, arrays, {**description, "settings": settings, "history": self.history.columns,
                                  "position": {name: getattr(self, name) for name in POSITION},
                                  "best_score": None if self.best is None else self.best_score})

    def resume(self, path, settings) -> None:
        """Go on from a checkpoint, if there is one; ValueError if it is of another run."""
        if path is None:
            raise ValueError("resume=True needs checkpoint=, the path to go on from")
        if not os.path.exists(path):
            return
        arrays, meta = files.load(path)
        before = meta.get("settings") or {}
        if before != settings:
            names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            raise ValueError(f"{path} is a checkpoint of a run with {({name: before.get(name) for name in names})}, "
                             f"this one has {({name: settings.get(name) for name in names})}")
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
            raise ValueError(f"{path}: cannot be resumed from: it is incomplete ({error})") from error
        if self.schedule and self.n_done:
            self.schedule.n = self.n_done - 1
            self.schedule.step()


@contextmanager
def evaluating(model):
    """Within: evaluation mode and nothing recorded; afterwards the mode as before."""
    before = model.training
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        model.train(before)

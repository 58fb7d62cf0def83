"""What a training loop needs in the real world: to stop, to go on, and to say why it cannot.

This is engineering, for the loop of fit.py. `prepare` checks what `fit` was given and makes a
`Run`, which knows where the training stands: in which epoch, at which minibatch.

- *Going on.* A checkpoint holds all that the next step depends on, so that a resumed run ends with
  the very numbers of one that was not stopped. What must be the same for that (the data by a
  fingerprint, the settings) is written beside it and compared.
- *Ctrl-C.* It waits until a step is done, for in the middle of one the weights, the moments of the
  optimiser and the running statistics of batch normalisation do not belong together.
- *Several processes.* Each has a part of every minibatch; losses and gradients are added up before
  each step (parallel.py).
- *Errors.* In the first epoch they leave the model as it was, later with the weights of the last
  whole epoch. For a number that is not finite, the tape is searched for the first one.

Know before reading: the loop in fit.py, checkpoint.py, parallel.py, trace.py.
Know after: why a training that was killed, interrupted or split ends as if it had not been.
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
from minigrad.backend import Matrix
from minigrad.data import NOISE, Blocks, Minibatches, pieces, split
from minigrad.parallel import NotFinite, One, Ranks, ranks_of
from minigrad.progress import Lines, bar, in_words

SAVE_EVERY = 60.0  # seconds between checkpoints within an epoch that takes longer than that
PATIENCE = 20  # epochs without a better validation score after which early stopping stops
POSITION = ("epoch", "batch", "loss_sum", "n_seen", "seconds", "best_epoch")  # in a checkpoint


# ------------------------------------------------------------------------------- all, or as it was
@contextmanager
def unchanged_if_it_fails(model) -> Iterator[None]:
    """Within: an error leaves the model, a Module, as it was, unless a whole epoch was trained.

    As it was to the bit: weights, buffers, device, and the attributes of it and of its modules. (An
    attribute that is changed in place, such as a list that grows, is not brought back.) After a
    whole epoch `Run.watched` sees to the weights, and here nothing is done. Where it is called
    within itself, as models do that change before they call minigrad.fit, the outer one counts: of
    a large model, one more copy is enough.
    """
    if id(model) in _guarded:
        yield
        return
    modules = [module for _, module in model.named_modules()]
    attributes = [dict(vars(module)) for module in modules]
    weights = model.state_dict()
    device = model.device
    trained_on = model.trained_on  # another dict after each whole epoch
    _guarded.add(id(model))
    try:
        yield
    except BaseException:  # also Ctrl-C, before the loop runs
        if model.trained_on is trained_on:
            for module, before in zip(modules, attributes):
                vars(module).clear()
                vars(module).update(before)
            model.to(device)
            model.load_state_dict(weights)
        raise
    finally:
        _guarded.remove(id(model))


_guarded: set[int] = set()  # the id of each model of which `unchanged_if_it_fails` has a copy


# ---------------------------------------------------------------------------------- before training
def prepare(
    model,
    columns,
    *,
    history,
    epochs: int,
    optimizer,
    batch_size: int,
    validation: float,
    seed: int,
    schedule,
    early_stopping: bool | int,
    checkpoint,
    resume: bool,
    device: str | None,
    parallel: str | None,
    describe,
) -> Run:
    """A Run that is ready to train, or to go on.

    history: an empty History; all others are arguments of `fit`. OSError where the checkpoint
    cannot be written; ValueError where it is of another run, and for arguments that cannot be;
    TypeError for the class StepSchedule as a schedule.
    """
    if schedule is optim.StepSchedule:
        raise TypeError(
            "schedule: the class StepSchedule would take the number of all steps for its every=, "
            "and the learning rate would never fall; write for example "
            "schedule=lambda optimizer, n_steps: StepSchedule(optimizer, every=1000)"
        )
    ranks = ranks_of(parallel)
    with ranks.preparing():
        if checkpoint is not None and ranks.rank == 0:
            files.check_target(checkpoint)
        train, held_out = split_minibatches(
            columns, batch_size, validation, seed, early_stopping, ranks
        )
        model.to(device or os.environ.get("MINIGRAD_DEVICE") or model.device)
        run = Run(
            model,
            optimizer(model.parameters()),
            train,
            held_out,
            history=history,
            epochs=epochs,
            seed=seed,
            schedule=schedule,
            early_stopping=early_stopping,
            ranks=ranks,
            checkpoint=checkpoint,
            describe=describe,
        )
        if checkpoint or resume or ranks.size > 1:  # not otherwise: this reads all of the data
            run.settings = settings_of(run, columns, batch_size, validation)
        if resume:
            run.resume()
    run.align()
    return run


def split_minibatches(
    columns, batch_size: int, validation: float, seed: int, early_stopping, ranks: One | Ranks
) -> tuple[Minibatches, Minibatches]:
    """Minibatches to train on, of which this rank sees its part, and those held out.

    ValueError where there are too few rows.
    """
    n = columns[0].shape[0]
    train_rows, held_out_rows = split(n, validation, seed)
    if early_stopping and not len(held_out_rows):
        raise ValueError(
            f"early_stopping needs validation rows; validation={validation} of {n} gives none"
        )
    if not len(train_rows):
        raise ValueError("no rows to train on")
    if ranks.size > 1 and min(batch_size, len(train_rows)) < 2 * ranks.size:
        raise ValueError(
            f"batch_size={batch_size} of {len(train_rows)} rows: each of {ranks.size} ranks needs "
            "2 at least; raise batch_size, which is for all ranks together, or use fewer"
        )
    train = Minibatches(columns, batch_size, train_rows, (ranks.rank, ranks.size))
    held_out = Minibatches(columns, max(batch_size, 512), held_out_rows)
    return train, held_out


def settings_of(run: Run, columns, batch_size: int, validation: float) -> dict:
    """What must be the same for a run to be resumed to the same end, and on all ranks."""
    config = getattr(run.model, "config", {})
    settings = {
        "epochs": int(run.epochs),
        "batch_size": int(batch_size),
        "n_rows": int(columns[0].shape[0]),
        "validation": float(validation),
        "seed": int(run.seed),
        "early_stopping": run.patience,
        "optimizer": type(run.optimizer).__name__,
        "learning_rate": float(run.optimizer.learning_rate),
        "weight_decay": float(getattr(run.optimizer, "weight_decay", 0.0)),
        "data": [fingerprint(column) for column in columns],
        "processes": run.ranks.size,
        "on_disk": isinstance(columns[0], Blocks),
        "kl_warmup": getattr(run.model, "kl_warmup", None),
        "frozen": [name for name, p in run.model.named_parameters() if not p.requires_grad],
        "config": {name: value for name, value in config.items() if name != "seed"},
    }
    return json.loads(json.dumps(settings))  # as they come back from a file


def fingerprint(column: Matrix) -> str:
    """The sum of x_ij sin(i + 1) sin(2 j + 1), 9 digits of it: another order of rows changes it.

    column: (n,) or (n, features), in memory or on the disk.
    """
    total = 0.0
    if column.ndim == 1:
        total = float(np.sum(np.sin(np.arange(len(column)) + 1.0) * column))
        return f"{total:.9g}"
    across = np.sin(2.0 * np.arange(column.shape[1]) + 1.0)
    for start, part in pieces(column):
        down = np.sin(np.arange(start, start + part.shape[0]) + 1.0)
        total += float(np.sum(down * (part @ across)))
    return f"{total:.9g}"


class Run:
    """One training: where it stands, and all that it takes to stop, go on and share the work.

    epoch, batch: of the minibatch that comes next, both from 0. history: of whole epochs. held_out:
    the Minibatches that are not trained on.
    """

    def __init__(
        self,
        model,
        optimizer,
        train: Minibatches,
        held_out: Minibatches,
        *,
        history,
        epochs: int,
        seed: int,
        schedule,
        early_stopping: bool | int,
        ranks: One | Ranks,
        checkpoint=None,
        describe=dict,
    ):
        self.model = model
        self.optimizer = optimizer
        self.train = train
        self.held_out = held_out
        self.history = history
        self.device = model.device
        self.epochs = epochs
        self.seed = seed
        self.schedule = schedule(optimizer, epochs * len(train)) if schedule else None
        self.patience = PATIENCE if early_stopping is True else int(early_stopping)
        self.ranks = ranks
        self.checkpoint = checkpoint
        self.describe = describe
        self.settings: dict = {}
        self.generator: np.random.Generator | None = None  # of the last step, see `rng`

        self.epoch = 0
        self.batch = 0
        self.loss_sum = 0.0  # over the rows that this epoch has trained on
        self.n_seen = 0  # their number
        self.seconds = 0.0  # that they took, without writing checkpoints
        self.epoch_weights = model.state_dict()  # with which this epoch began: all are finite
        self.new_weights = self.epoch_weights  # with which it ended
        self.best_weights: dict | None = None
        self.best_score = -math.inf
        self.best_epoch = 0

        self.is_between_steps = True  # weights, optimiser, position and history belong together
        self.was_pressed = False  # Ctrl-C, on this rank
        self.is_stopping = False  # all ranks have agreed to stop
        self.last_save = time.monotonic()
        self.bar: tqdm  # while the loop runs
        self.lines: Lines

    # ------------------------------------------------------------------------ what the loop asks
    @property
    def n_done(self) -> int:
        """Steps that have been made, over all epochs."""
        return self.epoch * len(self.train) + self.batch

    @property
    def progress(self) -> float:
        """How much of the training lies behind, from 0 to 1."""
        return self.n_done / (self.epochs * len(self.train))

    def is_over(self) -> bool:
        """Whether the last epoch is done, or early stopping has waited long enough."""
        has_waited = self.patience > 0 and self.epoch - self.best_epoch >= self.patience
        return self.epoch >= self.epochs or has_waited

    def minibatches(self) -> Iterator[list]:
        """Yield the minibatches of this epoch that are still to come, where the model is.

        When the loop asks for the next one a step is done: then the run can be written, or stop.
        """
        self.bar.set_description(f"epoch {self.epoch + 1}/{self.epochs}")
        started = time.perf_counter()
        for minibatch in self.train.shuffled(self.seed, self.epoch, self.batch):
            self.is_between_steps = False
            yield self._on_device(minibatch)
            self.seconds += time.perf_counter() - started
            self.bar.update()
            self._between_steps()
            started = time.perf_counter()  # waiting for the next minibatch counts, saving does not

    def held_out_minibatches(self) -> Iterator[tuple[int, list]]:
        """Yield (number, minibatch) of the rows held out; each rank has its own ones."""
        for number, minibatch in enumerate(self.held_out):
            if number % self.ranks.size == self.ranks.rank:
                yield number, self._on_device(minibatch)
                self._between_steps()
        self.is_between_steps = False  # until `end_epoch` has brought the history up to date

    def _on_device(self, minibatch) -> list:
        return [backend.rows_on(column, self.device) for column in minibatch]

    def rng(self, purpose: int, number: int) -> np.random.Generator:
        """A generator for one minibatch of this epoch. purpose: NOISE or VALIDATION of data.py.

        Ranks train on different rows of a minibatch, and so need different noise; a minibatch that
        is held out gets the same noise whichever rank looks at it. It is to be used until the next
        call, which may return the same one, set to another stream.
        """
        key = [self.seed, purpose, self.epoch, number]
        if purpose == NOISE and self.ranks.size > 1:
            key.append(self.ranks.rank)
        self.generator = backend.generator(key, self.device, again=self.generator)
        return self.generator

    def complete(self, loss, minibatch) -> tuple[float, int]:
        """The loss of the minibatch and its number of rows, the parts of all ranks taken together.

        loss: a scalar Tensor, of this rank's part, after backward(). Afterwards the optimiser has
        the gradients of the whole minibatch. NotFinite where the loss or a gradient is not finite.
        """
        gradients = self.optimizer.gradients
        value = loss.data
        n_rows = minibatch[0].shape[0]
        if self.ranks.size > 1:
            n_own = n_rows
            value, n_rows = self._add_up_losses(loss.item(), n_own)
            gradients *= n_own / n_rows
            self.ranks.sum(gradients)
        # A GPU computes while the program goes on, and reading a number waits for it. So only one
        # is read: the loss, plus 0 (g . g), which is 0 where all gradients are finite, else NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            guarded = _nan_unless_finite(value, gradients @ gradients).item()
        if math.isfinite(guarded):
            return guarded, n_rows
        value = float(value)
        if not math.isfinite(value) or not np.all(np.isfinite(gradients)):
            self._explain_nonfinite(minibatch, value)
        return value, n_rows  # only the squares of the gradients were too large

    def _add_up_losses(self, value: float, n_rows: int) -> tuple[float, int]:
        """The loss of the minibatch and its rows, from those of this rank.

        What else the ranks must agree on travels along: whether Ctrl-C was pressed on one of them,
        and the running statistics of batch normalisation, which are averaged.
        """
        running = self._buffers("running_")
        told = [np.array([value * n_rows, n_rows, self.was_pressed], dtype=np.float64)]
        for array in running:
            told.append(n_rows * backend.to_host(array).astype(np.float64).ravel())
        total = self.ranks.sum(np.concatenate(told))
        n_all = total[1]
        self.is_stopping = bool(total[2])
        start = 3
        for array in running:
            mean = total[start : start + array.size] / n_all
            backend.assign(array, mean.reshape(array.shape))
            start += array.size
        return float(total[0] / n_all), int(n_all)

    def add_up(self, sums: dict[str, float]) -> dict[str, float]:
        """The sums over all ranks, from those of this one: none if it was given no minibatch."""
        if self.ranks.size == 1:
            return sums
        names = json.loads(self.ranks.first_text(json.dumps(list(sums))))
        totals = self.ranks.sum(np.array([sums.get(name, 0.0) for name in names]))
        return dict(zip(names, totals.tolist()))

    def count(self, value: float, n_rows: int) -> None:
        """A step is done: go on to the next minibatch. value: the loss, a mean over n_rows rows."""
        self.batch += 1
        self.loss_sum += value * n_rows
        self.n_seen += n_rows

    def check_weights(self) -> None:
        """At the end of an epoch: NotFinite if its last step ruined a weight."""
        self.new_weights = self.model.state_dict()
        bad = [name for name, a in self.new_weights.items() if not np.all(np.isfinite(a))]
        if bad:
            self._give_up("the last step made a weight infinite or NaN", bad)

    def end_epoch(self, scores: dict[str, float]) -> None:
        """Record a whole epoch, and write the checkpoint. scores: of the rows held out, by name."""
        self.history.append(
            epoch=self.epoch + 1,
            train_loss=self.loss_sum / self.n_seen,
            **scores,
            seconds=self.seconds,
            learning_rate=float(self.optimizer.learning_rate),
        )
        self.epoch += 1
        self.batch = 0
        self.loss_sum = 0.0
        self.n_seen = 0
        self.seconds = 0.0
        self.epoch_weights = self.new_weights
        if self.patience:
            self._remember_best(scores)
        self.is_between_steps = True
        shown = {
            name: f"{values[-1]:.5g}"
            for name, values in self.history.columns.items()
            if name.startswith(("train_", "validation_"))
        }
        self.bar.set_postfix(shown, refresh=False)
        self.lines.say(in_words(self.epoch, self.epochs, shown), self.is_over())
        self._tell_model()
        self.save()
        self.last_save = time.monotonic()

    def _remember_best(self, scores) -> None:
        """Keep the weights of the best epoch, for early stopping."""
        name, value = next(iter(scores.items()))
        if not name.endswith(("loss", "elbo")):
            raise ValueError(
                f"early_stopping: the first number of the model's validation() is {name!r}; its "
                "name must end in loss, which is to be small, or in elbo, which is to be large"
            )
        score = -value if name.endswith("loss") else value
        if score > self.best_score:
            self.best_weights = self.epoch_weights
            self.best_score = score
            self.best_epoch = self.epoch

    # --------------------------------------------------------------------- stopping in the middle
    @contextmanager
    def watched(self, is_shown: bool) -> Iterator[None]:
        """Within, the loop runs: Ctrl-C waits for a step to end, and an error of one rank ends all.

        is_shown: whether to show how far it is. Afterwards the model has the best weights, where
        early stopping has kept them, and is in evaluation mode. After an error it has those of the
        last whole epoch.
        """
        if self.epoch:
            self._tell_model()
        is_shown = is_shown and self.ranks.rank == 0
        self.lines = Lines(is_shown)
        n_steps = self.epochs * len(self.train)
        with (
            self.ranks.together(),
            bar(n_steps, self.n_done, "batch", is_shown) as self.bar,
        ):
            try:
                with self._ctrl_c_waits():
                    yield
                    if self.best_weights is not None:
                        self.model.load_state_dict(self.best_weights)
                        self.save()  # the file of a finished run holds the weights of the model
            except KeyboardInterrupt:
                if self.ranks.size > 1 and not self.is_stopping:
                    raise  # a second Ctrl-C: the others are somewhere else
                self._interrupted()
            except BaseException:  # a full disk, too little memory, a number that is not finite
                self._leave(self.epoch_weights)
                raise
        self._leave(self.best_weights)

    def _leave(self, weights: dict | None) -> None:
        """Leave the model with these weights, None: its own, and ready to predict."""
        if weights is not None:
            self.model.load_state_dict(weights)
        self.optimizer.zero_grad()
        self.model.eval()

    def _tell_model(self) -> None:
        """Let the model know what it was trained on so far."""
        self.model.trained_on = {"rows": len(self.train.rows), "epochs": self.epoch}

    @contextmanager
    def _ctrl_c_waits(self) -> Iterator[None]:
        """Within, a Ctrl-C waits for `_between_steps`, and a second one does not.

        Unless the program has a reaction of its own, or this is not its main thread.
        """
        is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )

        def wait(*_):
            self.was_pressed = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            if is_ours:
                signal.signal(signal.SIGINT, wait)
            yield
        finally:
            if is_ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _between_steps(self) -> None:
        """Here all that a checkpoint holds is of one moment. Stop after Ctrl-C, or write one."""
        self.is_between_steps = True
        if self.was_pressed and self.ranks.size == 1:
            self.is_stopping = True
        if self.is_stopping:
            raise KeyboardInterrupt
        if time.monotonic() - self.last_save > SAVE_EVERY:
            self.save()
            self.last_save = time.monotonic()

    def _interrupted(self) -> None:
        """After Ctrl-C: write what is whole, and say what there is."""
        self.history.interrupted = True
        if self.is_between_steps:
            self.save()
        if self.ranks.rank == 0:
            which = "last step" if self.best_weights is None else "best epoch"
            self.bar.write(
                f"interrupted: the weights are those of the {which}, "
                "the history ends with the last whole epoch",
                file=sys.stderr,
            )

    # ------------------------------------------------------------------------- several processes
    def align(self) -> None:
        """Begin with the weights of the first rank. ValueError if others train something else."""
        if self.ranks.size == 1:
            return
        shapes = {name: list(a.shape) for name, a in self.model.state_dict().items()}
        mine = {**self.settings, "epoch": self.epoch, "batch": self.batch, "weights": shapes}
        first = json.loads(self.ranks.first_text(json.dumps(mine)))
        with self.ranks.preparing():
            if first != mine:
                theirs, ours = _differences(first, mine)
                raise ValueError(
                    f"the ranks must train the same: the first has {theirs}, "
                    f"number {self.ranks.rank} {ours}"
                )
        # Weights that the optimiser does not have, because they are frozen, must agree as well.
        weights = [p.data for p in self.model.parameters()]
        for array in (*weights, *self._buffers("")):
            self.ranks.first(array)
        if not self.n_done:
            self.epoch_weights = self.model.state_dict()

    def _buffers(self, start: str) -> list:
        """Those arrays of the model that are not trained, and whose names begin so."""
        return [
            getattr(module, name)
            for _, module, name in self.model.named_buffers()
            if name.startswith(start)
        ]

    # ------------------------------------------------------------------------ numbers not finite
    def _explain_nonfinite(self, minibatch, value: float) -> None:
        """Search the tape of this minibatch's loss, and its gradients, for the first bad number.

        Then give up, and name it. value: the loss, as it was.
        """
        parameters = dict(self.model.named_parameters())
        bad = [name for name, p in parameters.items() if not np.all(np.isfinite(p.data))]
        loss = self.model.loss(
            *minibatch, progress=self.progress, rng=self.rng(NOISE, self.batch)
        )  # the tape of the first one is used up
        where = trace.first_nonfinite(loss, names=self.model, gradients=True)
        if not bad and math.isfinite(loss.item()):
            self.optimizer.zero_grad()
            loss.backward()
            for name, p in parameters.items():
                if p.grad is not None and not np.all(np.isfinite(p.grad)):
                    bad.append(name)
        if where is None:
            where = self._not_found_again(value)
        self._give_up(where, bad)

    def _not_found_again(self, value: float) -> str:
        """What was not finite, where the search has found nothing."""
        if self.ranks.size > 1:
            return "the loss or a gradient of a rank"
        if math.isfinite(value):
            return "the gradients"
        return (
            f"the loss was {value}, and was finite when it was computed once more; it should be a "
            "function of the minibatch, progress and rng only"
        )

    def _give_up(self, where: str, bad: list[str]) -> None:
        """Say what was not finite: NotFinite."""
        left = "is as it was"
        if self.epoch:
            left = f"has the weights of epoch {self.epoch}"
        batch = min(self.batch + 1, len(self.train))
        raise NotFinite(
            f"not finite in epoch {self.epoch + 1}, batch {batch}: {where}; parameters that are "
            f"not finite, or their gradients: {bad or 'none'}. The model {left}. A smaller "
            "learning_rate often helps; check the input for extreme values"
        )

    # -------------------------------------------------------------------------------- checkpoints
    def save(self) -> None:
        """Write the checkpoint, if there is to be one and this is the rank that writes it."""
        if self.checkpoint and self.ranks.rank == 0:
            self.write()

    def write(self) -> None:
        """Write all that going on exactly needs."""
        groups = {
            "weights": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_weights or {},
            "good": self.epoch_weights,
        }
        arrays = {
            f"{group}/{name}": np.asarray(backend.to_host(array))
            for group, named in groups.items()
            for name, array in named.items()
        }
        meta = {
            **self.describe(),
            "settings": self.settings,
            "history": self.history.columns,
            "position": {name: getattr(self, name) for name in POSITION},
            "best_score": None if self.best_weights is None else self.best_score,
        }
        files.save(self.checkpoint, arrays, meta)

    def resume(self) -> None:
        """Go on from the checkpoint, if it exists. ValueError if of another run, or damaged."""
        path = self.checkpoint
        if path is None:
            raise ValueError("resume=True needs checkpoint=, the path to go on from")
        if not os.path.exists(path):
            return
        arrays, meta = files.load(path)
        self._compare(path, meta)
        groups: dict[str, dict] = {"best": {}}
        for key, array in arrays.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = array
        try:
            # The model takes only what fits it; what is not its present weights is needed later.
            if groups["best"]:
                self.model.load_state_dict(groups["best"])
            self.model.load_state_dict(groups["good"])
            self.model.load_state_dict(groups["weights"])
            self.optimizer.load_state_dict(groups["optimizer"])
            self.epoch_weights = groups["good"]
            self.best_weights = groups["best"] or None
            self.best_score = -math.inf if meta["best_score"] is None else meta["best_score"]
            self.history.columns = dict(meta["history"])
            for name in POSITION:
                setattr(self, name, meta["position"][name])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: cannot be resumed from: it is incomplete, or of another model ({error})"
            ) from error
        if self.schedule is not None and self.n_done:
            self.schedule.n = self.n_done - 1
            self.schedule.step()  # which sets the learning rate

    def _compare(self, path, meta: dict) -> None:
        """ValueError if a checkpoint with this description is of another run."""
        before = meta.get("settings") or {}
        if not before:
            raise ValueError(
                f"{path} holds a model, and no training to go on with; load the model and fit it, "
                "or train anew"
            )
        if before != self.settings:
            theirs, ours = _differences(before, self.settings)
            raise ValueError(f"{path} is a checkpoint of a run with {theirs}, this one has {ours}")
        described = json.loads(json.dumps(self.describe()))  # as it comes back from a file
        for name, value in described.items():  # names of genes, of batches
            if name not in ("config", "trained", "trained_on") and meta.get(name) != value:
                raise ValueError(
                    f"{path} is a checkpoint of a run with other {name}, or in another order"
                )


@backend.elementwise
def _nan_unless_finite(value, square):
    """The value, but NaN where a square is not finite. (On a GPU: one call.)"""
    return value + 0.0 * square


def _differences(one: dict, other: dict) -> tuple[dict, dict]:
    """Of two dicts, those entries in which they differ."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return {name: one.get(name) for name in names}, {name: other.get(name) for name in names}

"""minigrad/fit.py, with a small regression that has all that a run must carry on: batch norm, dropout, moments.

A run that is stopped in any way and resumed must end with the very bits of one that was not. The test that kills runs
in a process of its own (`python test_fit.py killed FOLDER`), which forks.
"""

import functools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import sparse

from minigrad import Tensor, functional, nn, optim, progress
from minigrad import checkpoint as files
from minigrad import training as module
from minigrad.fit import History, evaluating, fit

N_ROWS = 60


class Regression(nn.Module):
    """y = x . w, learned through batch norm, dropout and noise; counts what it is asked."""

    def __init__(self, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)
        self.norm = nn.BatchNorm1d(3, dtype=dtype)
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(3, 1, dtype=dtype, rng=rng)
        self.calls, self.hook, self.validation_hook = [], lambda n: None, lambda n: None
        self.validated = []

    def __call__(self, x, rng=None):
        return self.linear(self.dropout(self.norm(x), rng))

    def loss(self, x, y, ids=None, *, progress, rng):
        h = self(x + 0.01 * rng.standard_normal(x.shape).astype(x.dtype), rng)
        self.calls.append((progress, None if ids is None else ids.tolist(), self.training))
        self.hook(len(self.calls))
        return functional.mse(h, y[:, None])

    def validation(self, x, y, ids=None, *, rng):
        self.validated.append((None if ids is None else ids.tolist(), self.training, rng.random()))
        self.validation_hook(len(self.validated))
        error = np.square(self(x).data[:, 0] - y)
        return {"loss": error, "absolute": np.sqrt(error)}


def data(n=N_ROWS, dtype=np.float64):
    rng = np.random.default_rng(5)
    x = rng.normal(2.0, 3.0, (n, 3)).astype(dtype)
    return x, (x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=n)).astype(dtype), np.arange(n)


RATE = 0.3


def adam(parameters):
    return optim.Adam(parameters, RATE)


OPTIONS = dict(epochs=6, optimizer=adam, batch_size=8, validation=0.2, seed=3, progress=False)
PER_EPOCH = 6  # minibatches


def train(model=None, **options):
    model = model or Regression()
    return model, fit(model, data(), **{**OPTIONS, **options})


@functools.cache
def uninterrupted(early_stopping=False):
    return train(early_stopping=early_stopping)


def assert_same_end(one, other):
    """Bit-equal weights and buffers, and histories equal but for the clock."""
    (model, history), (expected, before) = one, other
    for (name, a), (other_name, b) in zip(
        model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other_name and a.tobytes() == b.tobytes(), name
    assert history.names == before.names and len(history) == len(before)
    for name in history.names:
        assert name == "seconds" or history[name] == before[name], name


# ------------------------------------------------------------------------------------------------------ ordinary runs
def test_history_and_what_it_says():
    model, history = uninterrupted()
    names = [
        "epoch",
        "train_loss",
        "validation_loss",
        "validation_absolute",
        "seconds",
        "learning_rate",
    ]
    assert history.names == names
    assert all(len(history[name]) == 6 for name in history.names) and len(history) == 6
    assert (
        history["epoch"] == [1, 2, 3, 4, 5, 6] and "train_loss" in history and "loss" not in history
    )
    assert all(type(v) is float for name in history.names[1:] for v in history[name])
    assert history["train_loss"][-1] < 0.7 * history["train_loss"][0]
    assert history["validation_loss"][-1] < 0.7 * history["validation_loss"][0]
    assert all(s > 0 for s in history["seconds"])
    rates = [RATE * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(1, 7)]
    np.testing.assert_allclose(history["learning_rate"], rates, rtol=1e-12, atol=1e-15)
    assert (
        not model.training
        and not model.norm.training
        and all(p.grad is None for p in model.parameters())
    )
    with pytest.raises(KeyError, match="no 'nonsense'.*train_loss"):
        history["nonsense"]
    assert "6 epochs" in repr(history) and "train_loss" in repr(history)


def test_train_loss_is_the_mean_over_rows_and_validation_that_of_the_last_weights():
    model, losses = Regression(), []
    loss, sizes = model.loss, []

    def recorded(*columns, **keywords):
        value = loss(*columns, **keywords)
        losses.append(value.item())
        sizes.append(len(columns[0]))
        return value

    model.loss = recorded
    _, history = train(model)
    assert sizes[:PER_EPOCH] == [8] * 6
    for epoch in range(6):
        part = slice(PER_EPOCH * epoch, PER_EPOCH * (epoch + 1))
        assert history["train_loss"][epoch] == pytest.approx(
            np.average(losses[part], weights=sizes[part]), rel=1e-12
        )
    held_out = model.validated[-1][0]
    x, y, _ = data()
    errors = (model(x[held_out]).data[:, 0] - y[held_out]) ** 2
    assert history["validation_loss"][-1] == pytest.approx(errors.mean(), rel=1e-12)


def test_unequal_minibatches_count_by_their_rows():
    class Rows(Regression):
        def loss(self, x, y, ids, *, progress, rng):
            return functional.mse(self.linear(x) * 0.0, np.full((len(x), 1), math.sqrt(len(x))))

    _, history = train(
        Rows(), batch_size=10, validation=0.25, epochs=1
    )  # 45 rows: 10, 10, 10, 10, 5
    assert history["train_loss"] == [pytest.approx((4 * 10 * 10 + 5 * 5) / 45)]


def test_rows_for_validation_are_never_trained_on_and_all_others_once_an_epoch():
    model, _ = uninterrupted()
    held_out = set(model.validated[0][0])
    assert len(held_out) == 12 and all(set(ids) == held_out for ids, _, _ in model.validated)
    for epoch in range(6):
        seen = [
            i for _, ids, _ in model.calls[PER_EPOCH * epoch : PER_EPOCH * (epoch + 1)] for i in ids
        ]
        assert sorted(seen) == sorted(set(range(N_ROWS)) - held_out)
    orders = {
        tuple(i for _, ids, _ in model.calls[PER_EPOCH * e : PER_EPOCH * (e + 1)] for i in ids)
        for e in range(6)
    }
    assert len(orders) == 6
    assert all(training for _, _, training in model.calls) and not any(
        training for _, training, _ in model.validated
    )
    assert len({noise for _, _, noise in model.validated}) == 6  # a draw of its own each epoch


def test_progress_of_the_training_runs_from_zero_to_one():
    model, _ = uninterrupted()
    np.testing.assert_allclose([p for p, _, _ in model.calls], np.arange(36) / 36, rtol=1e-15)


def test_one_seed_gives_the_same_bits_and_another_seed_others():
    assert_same_end(train(), uninterrupted())
    model, history = train(seed=4)
    assert model.validated[0][0] != uninterrupted()[0].validated[0][0]
    assert history["train_loss"] != uninterrupted()[1]["train_loss"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_stay_and_sparse_columns_are_taken(dtype):
    class OnCounts(Regression):
        def __call__(self, x, rng=None):
            assert sparse.issparse(x) and x.dtype == dtype
            return self.linear(x)

        def loss(self, x, y, *, progress, rng):
            return functional.mse(self(x), y[:, None])

    x, y, _ = data(dtype=dtype)
    model = OnCounts(dtype=dtype)
    history = fit(model, (sparse.csr_matrix(x), y), **{**OPTIONS, "epochs": 30})
    assert all(a.dtype == dtype for a in model.state_dict().values())
    np.testing.assert_allclose(model.linear.weight.data, [[1.0, -2.0, 0.5]], atol=0.3)
    assert history["train_loss"][-1] < 0.2 * history["train_loss"][0]


def test_no_validation_no_schedule_and_no_epochs():
    model, history = train(validation=0, schedule=None)
    assert (
        history.names == ["epoch", "train_loss", "seconds", "learning_rate"]
        and model.validated == []
    )
    assert history["learning_rate"] == [RATE] * 6
    assert sorted(i for _, ids, _ in model.calls[:8] for i in ids) == list(range(N_ROWS))
    _, history = train(
        schedule=lambda optimizer, n: optim.StepSchedule(optimizer, every=n // 2, factor=0.1)
    )
    np.testing.assert_allclose(
        history["learning_rate"], RATE * np.array([1, 1, 0.1, 0.1, 0.1, 0.01])
    )
    model, history = train(epochs=0)
    assert (
        len(history) == 0
        and model.calls == []
        and not model.training
        and "0 epochs" in repr(history)
    )


def test_what_cannot_be_trained_is_refused_before_training(tmp_path, monkeypatch):
    def refused(error, words, columns=None, **options):
        model = Regression()
        with pytest.raises(error, match=words):
            fit(model, data() if columns is None else columns, **{**OPTIONS, **options})
        assert model.calls == []

    refused(ValueError, "early_stopping needs validation rows", validation=0, early_stopping=True)
    refused(ValueError, "early_stopping needs validation rows", data(2), early_stopping=True)
    refused(ValueError, "no rows to train on", data(0))
    refused(ValueError, "no rows to train on", data(1), validation=0.9)
    refused(ValueError, "validation must be", validation=1.0)
    refused(ValueError, "same number of rows", (data()[0], data()[1][:50]))
    refused(ValueError, "batch_size", batch_size=0)
    refused(ValueError, "nonsense", device="nonsense")
    refused(TypeError, "schedule: .*StepSchedule.*lambda", schedule=optim.StepSchedule)
    refused(ValueError, "resume=True needs checkpoint", resume=True)
    refused(FileNotFoundError, "no folder .*missing", checkpoint=tmp_path / "missing" / "run.npz")
    refused(IsADirectoryError, "is a folder", checkpoint=str(tmp_path))
    monkeypatch.setenv("MINIGRAD_DEVICE", "nonsense")
    refused(ValueError, "nonsense")


# ------------------------------------------------------------------------------------------------------ early stopping
class Scripted(Regression):
    """Scores as they are told; remembers the weights of each epoch."""

    def __init__(self, name, scores):
        super().__init__()
        self.script, self.scores, self.states = name, scores, []

    def validation(self, x, y, ids, *, rng):
        self.states.append(self.state_dict())
        return {
            self.script: np.full(len(x), self.scores[len(self.states) - 1]),
            "other": np.zeros(len(x)),
        }


@pytest.mark.parametrize(
    "name, scores, stops_after, best",
    [
        ("loss", [5, 4, 3, 3.5, 3, 4, 1, 1], 6, 3),
        ("elbo", [-5, -4, -3, -3.5, -3, -4, 0, 0], 6, 3),
        ("loss", [1, 2, 3, 4, 5], 4, 1),
        ("elbo", [1, 2, 3, 4, 5, 6, 7, 8], 8, 8),
        ("loss", [3, 4, 4, 2, 4, 4, 1, 4], 8, 7),
        ("loss", [math.nan, 4, math.nan, 5, 6, 7], 5, 2),
    ],
)
def test_early_stopping_stops_and_restores_the_best_weights(
    tmp_path, name, scores, stops_after, best
):
    model = Scripted(name, scores)
    _, history = train(model, epochs=8, early_stopping=3, checkpoint=tmp_path / "run.npz")
    assert len(history) == len(model.states) == stops_after
    np.testing.assert_array_equal(history[f"validation_{name}"], scores[:stops_after])
    arrays, _ = files.load(tmp_path / "run.npz")
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, model.states[best - 1][key])
        np.testing.assert_array_equal(
            value, arrays[f"weights/{key}"]
        )  # the file of a finished run has them too
    assert not model.training


def test_early_stopping_asks_for_a_score_of_which_it_knows_the_better_end():
    """An "error" that falls would count as getting worse, and the worst weights would be kept."""
    with pytest.raises(ValueError, match="early_stopping: .* 'validation_error'.* end in loss"):
        train(Scripted("error", [4, 3, 2, 1]), epochs=4, early_stopping=2)
    train(Scripted("error", [4, 3, 2, 1]), epochs=4)  # without it, any name will do


def test_without_early_stopping_the_last_weights_stay():
    model = Scripted("loss", [1, 2, 3, 4])
    train(model, epochs=4)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, model.states[-1][key])


def test_early_stopping_true_waits_for_patience(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 2)
    assert len(train(Scripted("loss", [1, 2, 3, 4]), epochs=4, early_stopping=True)[1]) == 3


# ------------------------------------------------------------------------------------------------- stopped and resumed
def raising(at, error=KeyboardInterrupt):
    def hook(n):
        if n == at:
            raise error

    return hook


def pressing(at):
    """Ctrl-C, as the keyboard sends it."""

    def hook(n):
        if n == at:
            os.kill(os.getpid(), signal.SIGINT)

    return hook


@pytest.fixture
def keyboard():
    """Python's own reaction to Ctrl-C, whatever the test runner set."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def resumed(path, **options):
    model = Regression(seed=9 if Path(path).exists() else 0)  # other weights, which must not matter
    return train(model, checkpoint=path, resume=True, **options)


@pytest.mark.parametrize("early_stopping", [False, 2])
@pytest.mark.parametrize("save_every", [0.0, 60.0])
@pytest.mark.parametrize("at", [1, 2, 6, 7, 20, 31, 36])
def test_an_interrupt_from_within_the_loss(tmp_path, monkeypatch, at, save_every, early_stopping):
    monkeypatch.setattr(module, "SAVE_EVERY", save_every)
    model = Regression()
    model.hook = raising(at)
    _, history = train(model, checkpoint=tmp_path / "run.npz", early_stopping=early_stopping)
    assert len(history) == (at - 1) // PER_EPOCH and not model.training
    assert_same_end(
        resumed(tmp_path / "run.npz", early_stopping=early_stopping), uninterrupted(early_stopping)
    )


@pytest.mark.parametrize("at", [1, 6, 7, 20, 36])
def test_ctrl_c_in_the_loss_ends_after_the_step(tmp_path, keyboard, at):
    model = Regression()
    model.hook = pressing(at)
    path = tmp_path / "run.npz"
    _, history = train(model, checkpoint=path)
    assert len(history) == at // PER_EPOCH - (at % PER_EPOCH == 0) and len(model.calls) == at
    arrays, meta = files.load(path)
    assert meta["position"]["epoch"] * PER_EPOCH + meta["position"]["batch"] == at
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, arrays[f"weights/{name}"])
    continued = resumed(path)
    assert_same_end(continued, uninterrupted())
    assert len(continued[0].calls) == 36 - at  # nothing was done twice


@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_ctrl_c_while_the_weights_change(tmp_path, keyboard, where, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", 2)  # the change of weights is in several pieces

    class Pressed(optim.Adam):
        def step(self):
            pressing(9)(self.n_steps if where == "before" else 0)
            super().step()
            pressing(9)(self.n_steps if where == "after" else 0)

        def update_block(self, block):
            super().update_block(block)
            pressing(9)(self.n_steps if where == "within" and block.start == 2 else 0)

    path = tmp_path / "run.npz"
    model, _ = train(optimizer=lambda p: Pressed(p, RATE), checkpoint=path)
    assert len(model.calls) in (9, 10)
    quiet = type("Pressed", (optim.Adam,), {})
    assert_same_end(resumed(path, optimizer=lambda p: quiet(p, RATE)), uninterrupted())


@pytest.mark.parametrize("hook", [pressing, raising])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_ctrl_c_in_validation(tmp_path, keyboard, at, hook):
    model = Regression()
    model.validation_hook = hook(at)
    _, history = train(model, checkpoint=tmp_path / "run.npz")
    assert len(history) == at - 1
    assert_same_end(resumed(tmp_path / "run.npz"), uninterrupted())


def test_a_second_ctrl_c_does_not_wait(tmp_path, keyboard):
    model, path = Regression(), tmp_path / "run.npz"

    def twice(n):
        if n == 15:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it waited")

    model.hook = twice
    _, history = train(model, checkpoint=path)
    assert len(history) == 2
    assert (
        files.load(path)[1]["position"]["batch"] == 0
    )  # half a step is not saved: the last epoch is
    assert_same_end(resumed(path), uninterrupted())


def test_ctrl_c_is_left_to_those_who_took_it(tmp_path):
    pressed = []

    def own(*_):
        pressed.append(1)

    before = signal.signal(signal.SIGINT, own)
    try:
        model = Regression()
        model.hook = pressing(7)
        _, history = train(model)
        assert signal.getsignal(signal.SIGINT) is own and pressed == [1] and len(history) == 6
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_a_thread(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(checkpoint=tmp_path / "run.npz")))
    thread.start()
    thread.join()
    assert_same_end(found[0], uninterrupted())


def test_ctrl_c_without_checkpoint_and_with_early_stopping(keyboard, capfd):
    model = Scripted("loss", [1, 2, 3, 4, 5, 6])
    model.hook = pressing(15)
    _, history = train(model, early_stopping=5)
    assert len(history) == 2
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, model.states[0][key])
    out, err = capfd.readouterr()
    assert out == "" and "interrupted" in err and "best epoch" in err
    model = Regression()
    model.hook = pressing(15)
    train(model)
    out, err = capfd.readouterr()
    assert out == "" and "last step" in err


def test_stopped_many_times(tmp_path):
    path, n_runs = tmp_path / "run.npz", 0
    while True:
        model = Regression(seed=n_runs)
        model.hook = pressing(5)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            end = train(model, checkpoint=path, resume=True)
        finally:
            signal.signal(signal.SIGINT, before)
        n_runs += 1
        if len(end[1]) == 6:
            break
    assert n_runs == 8
    assert_same_end(end, uninterrupted())


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path, save, n = tmp_path / "run.npz", files.save, []

    def full(*args):
        n.append(1)
        if len(n) == 4:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(files, "save", full)
    with pytest.raises(OSError, match="No space"):
        train(checkpoint=path)
    monkeypatch.undo()
    assert files.load(path)[1]["position"]["epoch"] == 3
    assert_same_end(resumed(path), uninterrupted())


def test_resuming_what_is_finished_and_what_is_not_there(tmp_path):
    path = tmp_path / "run.npz"
    assert_same_end(train(checkpoint=path, resume=True), uninterrupted())
    again = resumed(path)
    assert_same_end(again, uninterrupted())
    assert again[0].calls == []
    path = tmp_path / "early.npz"
    first = Scripted("loss", [1, 2, 3])
    train(first, epochs=9, early_stopping=2, checkpoint=path)
    second, history = train(
        Scripted("loss", []), epochs=9, early_stopping=2, checkpoint=path, resume=True
    )
    assert_same_end((second, history), (first, history))
    assert len(history) == 3 and second.calls == []


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=7),
        dict(batch_size=9),
        dict(validation=0.25),
        dict(seed=4),
        dict(early_stopping=2),
        dict(optimizer=lambda p: optim.Adam(p, 0.31)),
        dict(optimizer=lambda p: optim.SGD(p, RATE)),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    model = Regression(seed=9)
    before = model.state_dict()
    with pytest.raises(ValueError, match="checkpoint of a run with.*this one has"):
        train(model, **{"checkpoint": path, "resume": True, **change})
    assert model.calls == []
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_checkpoint_of_other_rows_another_model_or_none_at_all_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    options = {**OPTIONS, "checkpoint": path, "resume": True}
    with pytest.raises(ValueError, match="checkpoint of a run with"):
        fit(Regression(), data(59), **options)
    wider = Regression()
    wider.extra = nn.Parameter(np.ones(2))
    with pytest.raises(ValueError, match="missing names.*extra"):
        fit(wider, data(), **options)
    files.save(path, {f"weights/{k}": v for k, v in Regression().state_dict().items()}, {})
    with pytest.raises(ValueError, match="holds a model, and no training to go on with"):
        train(**options)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        train(**options)


@pytest.mark.parametrize(
    "lost",
    [
        "history",
        "position",
        "best_score",
        "optimizer/n_steps",
        "optimizer/moment0.0",
        "optimizer/n_missed",
        "optimizer/checksums",
        "position/epoch",
        "weights/linear.bias",
        "optimizer",
        "good",
    ],
)
def test_a_checkpoint_with_parts_missing_is_refused(tmp_path, lost):
    path = tmp_path / "run.npz"
    train(checkpoint=path)
    arrays, meta = files.load(path)
    arrays = {k: v for k, v in arrays.items() if k != lost and not k.startswith(lost + "/")}
    meta.pop(lost, None)
    if lost == "position/epoch":
        del meta["position"]["epoch"]
    files.save(path, arrays, meta)
    with pytest.raises(ValueError, match="run.npz"):
        resumed(path)


def test_numbers_of_numpy_as_options_and_what_is_described(tmp_path):
    path = tmp_path / "run.npz"
    odd = dict(
        epochs=np.int64(6),
        batch_size=np.int32(8),
        validation=np.float64(0.2),
        seed=np.uint8(3),
        optimizer=lambda p: optim.Adam(p, np.float64(RATE)),
    )
    model = Regression()
    model.hook = raising(20)
    train(model, checkpoint=path, describe=lambda: {"genes": ["a", "b"]}, **odd)
    assert files.load(path)[1]["genes"] == ["a", "b"]
    assert_same_end(resumed(path), uninterrupted())


def killed(folder):
    """(In its own process.) One run, killed five times at random moments while it saves after every step."""
    module.SAVE_EVERY = 0.0
    path, rng, positions, died = Path(folder) / "run.npz", np.random.default_rng(), [], 0
    options = dict(epochs=25, checkpoint=path, resume=True, early_stopping=20)
    started = time.monotonic()
    expected = train(**{**options, "checkpoint": Path(folder) / "other.npz"})
    duration = time.monotonic() - started
    while died < 5:
        child = os.fork()
        if child == 0:
            train(Regression(seed=int(rng.integers(100)) if path.exists() else 0), **options)
            os._exit(0)
        time.sleep(rng.uniform(0.01, 0.06) * duration)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert status == signal.SIGKILL, "it ended before it was killed"
        if path.exists():
            died += 1
            positions.append(files.load(path)[1]["position"])
    end = train(Regression(seed=7), **options)
    assert_same_end(end, expected)
    print(end[0].calls[0][0], [p["batch"] for p in positions])
    assert 0 < end[0].calls[0][0] < 1 and any(p["batch"] for p in positions)


def test_killed_at_random_moments_and_resumed(tmp_path):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, __file__, "killed", tmp_path],
        capture_output=True,
        text=True,
        env=env,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------ numbers that are not finite
class Breaking(Regression):
    """Does something bad in step `at`, counted from 1 over all epochs."""

    def __init__(self, at, how, dtype=np.float64):
        super().__init__(dtype=dtype)
        self.at, self.how, self.states = at, how, [self.state_dict()]

    def loss(self, x, y, ids, *, progress, rng):
        value = super().loss(x, y, ids, progress=progress, rng=rng)
        return self.how(self, value) if len(self.calls) >= self.at else value

    def validation(self, x, y, ids, *, rng):
        self.states.append(self.state_dict())
        return super().validation(x, y, ids, rng=rng)


def bad_loss(model, value):
    return np.log(value - value.item() - 1.0)  # of -1


def bad_weight(model, value):
    model.linear.weight.data[0, 1] = np.nan
    return functional.mse(model.linear(np.ones((2, 3))), np.ones((2, 1)))


def bad_gradient(model, value):
    return value + np.sum(np.sqrt(model.linear.bias * 0.0))  # 0, with an infinite slope


@pytest.mark.parametrize("at", [1, 4, 6, 7, 15])
@pytest.mark.parametrize(
    "how, operation, parameters",
    [
        (bad_loss, "log", "none"),
        (bad_weight, "linear.weight", "'linear.weight'"),
        (bad_gradient, "sqrt", "'linear.bias'"),
    ],
)
def test_what_is_not_finite_is_named_and_the_last_good_weights_restored(
    tmp_path, at, how, operation, parameters
):
    model = Breaking(at, how)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError) as raised:
        train(model, checkpoint=tmp_path / "run.npz", early_stopping=2)
    said = str(raised.value)
    epoch, batch = divmod(at - 1, PER_EPOCH)
    assert f"epoch {epoch + 1}, batch {batch + 1}:" in said and operation in said
    assert re.search(rf"parameters[^:]*: [^.]*{parameters}", said), said
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, model.states[epoch][name])
        assert np.all(np.isfinite(value))
    assert model.training == (epoch == 0)  # then it is as it was
    assert (tmp_path / "run.npz").exists() == (epoch > 0)
    if epoch:
        assert_same_end(resumed(tmp_path / "run.npz", early_stopping=2), uninterrupted(2))


def test_an_infinite_loss_that_does_not_come_again_is_said_to_be_the_loss():
    """A model with noise of its own: computed once more, its loss is finite."""

    class Unrepeatable(Regression):
        def loss(self, x, y, ids, *, progress, rng):
            value = super().loss(x, y, ids, progress=progress, rng=rng)
            return value + np.inf if len(self.calls) == 3 else value

    with pytest.raises(FloatingPointError, match=r"batch 3: the loss was inf, .* once more"):
        train(Unrepeatable())


@pytest.mark.parametrize("epochs", [1, 3])
def test_weights_ruined_by_the_last_step_of_an_epoch(epochs):
    """No loss follows that would show it."""

    class Huge(optim.SGD):
        def step(self):
            super().step()
            if self.n_steps == PER_EPOCH * epochs:
                self.weights[-1] = np.inf

    model = Breaking(10**9, None)
    with pytest.raises(
        FloatingPointError, match=rf"epoch {epochs}, batch 6: .*last step.*'linear.bias'"
    ):
        train(model, epochs=epochs, optimizer=lambda p: Huge(p, 1e-3))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, model.states[epochs - 1][name])


def test_large_gradients_whose_square_overflows_are_finite():
    class Steep(Regression):
        def loss(self, x, y, ids, *, progress, rng):
            return super().loss(x, y, ids, progress=progress, rng=rng) * 1e25

    model = Steep(dtype=np.float32)
    x, y, ids = data(dtype=np.float32)
    history = fit(model, (x, y, ids), **{**OPTIONS, "optimizer": lambda p: optim.SGD(p, 1e-27)})
    assert len(history) == 6 and history["train_loss"][-1] < history["train_loss"][0]


# ------------------------------------------------------------------------------------------------ what is on the screen
class Terminal:
    encoding = "utf-8"

    def __init__(self, is_one):
        self.is_one, self.text = is_one, ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.is_one


@pytest.mark.parametrize(
    "is_one, progress, shown", [(True, True, True), (False, True, False), (True, False, False)]
)
def test_the_bar_is_for_terminals_only(monkeypatch, capfd, is_one, progress, shown):
    screen = Terminal(is_one)
    monkeypatch.setattr(sys, "stderr", screen)
    train(progress=progress)
    monkeypatch.undo()
    assert ("epoch 6/6" in screen.text and "36/36" in screen.text) == shown == bool(screen.text)
    if shown:
        assert "validation_loss" in screen.text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("seconds, n_lines", [(0.0, 6), (3600.0, 0)])
def test_without_a_terminal_there_is_a_line_every_few_seconds(monkeypatch, seconds, n_lines):
    monkeypatch.setattr(progress, "SECONDS", seconds)
    screen = Terminal(False)
    monkeypatch.setattr(sys, "stderr", screen)
    history = train(progress=True)[1]
    lines = screen.text.splitlines()
    assert len(lines) == n_lines and "\r" not in screen.text
    for i, line in enumerate(lines):
        assert line.startswith(f"epoch {i + 1}/6, train_loss {history['train_loss'][i]:.5g}, ")
    train(progress=False)
    assert screen.text.splitlines() == lines


def test_lines_come_at_most_every_few_seconds_and_the_last_one_ends_them(monkeypatch):
    screen = Terminal(False)
    monkeypatch.setattr(sys, "stderr", screen)
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = progress.Lines(True)
    for epoch in range(1, 10):
        clock[0] = 2.0 * epoch
        lines.say(f"epoch {epoch}", is_last=epoch == 9)
    assert screen.text.split("\n") == ["epoch 3", "epoch 6", "epoch 9", ""]
    lines.say("one more", is_last=True)
    assert screen.text.endswith("one more\n")
    short = progress.Lines(True)
    short.say("over already", is_last=True)
    assert "over already" not in screen.text


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_bar_keeps_its_width_on_narrow_terminals(monkeypatch, width):
    screen = Terminal(True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: (width + 1, 25))
    with progress.bar(100, 0, "batch", True) as bar:
        bar.set_description("epoch 3/6")
        bar.set_postfix({"train_loss": "412.13", "validation_elbo": "-401.77"}, refresh=False)
        bar.update(50)
        bar.refresh()
    shown = [line for line in screen.text.split("\r") if "50%|" in line]
    assert shown
    for line in shown:
        assert len(line.rstrip("\n")) <= width
        assert len(line.split("|")[1]) == 16
        assert ("validation_elbo=-401.77" in line) == (width == 200)


def test_in_a_notebook_there_is_a_bar(monkeypatch):
    shell = SimpleNamespace(kernel=object(), config={})
    module = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", module)
    screen = Terminal(False)
    monkeypatch.setattr(sys, "stderr", screen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(progress=True)
    assert "36/36" in screen.text and "epoch 6/6, " not in screen.text


def test_a_resumed_bar_starts_where_it_stopped(tmp_path, monkeypatch):
    model = Regression()
    model.hook = raising(32)
    train(model, checkpoint=tmp_path / "run.npz")
    screen = Terminal(True)
    monkeypatch.setattr(sys, "stderr", screen)
    resumed(tmp_path / "run.npz", progress=True)
    assert "30/36" in screen.text and "36/36" in screen.text and "29/36" not in screen.text


@pytest.mark.parametrize("suffix, start", [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_history_is_drawn(tmp_path, suffix, start):
    path = tmp_path / f"curves{suffix}"
    assert uninterrupted()[1].plot(path) == path
    figure = uninterrupted()[1].plot()
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    assert path.read_bytes().startswith(start) and path.stat().st_size > 5000
    History({"epoch": [1], "train_loss": [0.5]}).plot(path)
    assert path.read_bytes().startswith(start)


def test_evaluating_is_for_the_while():
    model, weight = Regression(), Tensor(np.ones(2), requires_grad=True)
    for before in (True, False):
        model.train(before)
        with evaluating(model):
            assert not model.training and not model.norm.training and not (weight * 2).requires_grad
        assert model.training == model.norm.training == before and (weight * 2).requires_grad
        with pytest.raises(ZeroDivisionError), evaluating(model):
            1 / 0
        assert model.training == before and (weight * 2).requires_grad


def test_evaluating_gives_every_module_its_own_mode_back():
    """Batch norm that was put into evaluation, inside a model that trains, stays there."""
    model = Regression()
    model.norm.eval()
    with evaluating(model):
        assert not model.training and not model.dropout.training
    assert model.training and model.dropout.training and not model.norm.training


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])


# ------------------------------------------------------------------------- weights that are frozen
def frozen_regression():
    """Its batch norm is frozen, and not at the values where it would begin."""
    model = Regression()
    for p, value in ((model.norm.weight, 1.7), (model.norm.bias, -0.3)):
        p.data[...] = value
        p.requires_grad = False
    return model


def test_frozen_weights_stay_and_a_resumed_run_ends_alike(tmp_path, keyboard):
    path = tmp_path / "run.npz"
    whole = train(frozen_regression(), checkpoint=path)
    assert np.all(whole[0].norm.weight.data == 1.7) and np.all(whole[0].norm.bias.data == -0.3)
    assert np.any(whole[0].linear.weight.data != Regression().linear.weight.data)
    arrays, _ = files.load(path)
    assert np.all(arrays["weights/norm.weight"] == 1.7)

    stopped = frozen_regression()
    stopped.hook = pressing(15)
    train(stopped, checkpoint=path)
    fresh = frozen_regression()
    fresh.norm.weight.data[...] = 5.0  # the file has the right ones
    assert_same_end(train(fresh, checkpoint=path, resume=True), whole)


def test_a_run_is_not_resumed_with_other_weights_frozen(tmp_path):
    path = tmp_path / "run.npz"
    train(frozen_regression(), checkpoint=path)
    with pytest.raises(ValueError, match="frozen.*norm.weight"):
        train(Regression(), checkpoint=path, resume=True)


def test_an_optimiser_may_be_given_only_those_that_are_not_frozen(tmp_path, keyboard):
    def some(parameters):
        return adam([p for p in parameters if p.requires_grad])

    path = tmp_path / "run.npz"
    whole = train(frozen_regression(), optimizer=some)
    assert_same_end(whole, train(frozen_regression()))
    stopped = frozen_regression()
    stopped.hook = pressing(15)
    train(stopped, checkpoint=path, optimizer=some)
    resumed_run = train(frozen_regression(), optimizer=some, checkpoint=path, resume=True)
    assert_same_end(resumed_run, whole)


def test_a_run_is_not_resumed_with_the_parameters_in_another_order(tmp_path, keyboard):
    class Odd(Regression):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Parameter(np.ones(3)), nn.Parameter(np.ones(3))

        def __call__(self, x, rng=None):
            return super().__call__(x * self.one + self.two, rng)

    path = tmp_path / "run.npz"
    model = Odd()
    model.hook = pressing(15)
    train(model, checkpoint=path)
    with pytest.raises(ValueError, match="Adam.*(order|needed)"):
        train(Odd(), checkpoint=path, resume=True, optimizer=lambda ps: adam(ps[::-1]))
    with pytest.raises(ValueError, match="Adam.*order"):  # shapes do not tell
        train(
            Odd(), checkpoint=path, resume=True, optimizer=lambda ps: adam([ps[1], ps[0], *ps[2:]])
        )


# ------------------------------------------------------------------------------- data of halves
def test_rows_of_halves_are_trained_on_in_single_precision():
    """Their squares are beyond float16, and so is the sum of a column."""
    x, y, ids = data()
    x, y = (1000 * x).astype(np.float16), y.astype(np.float16)
    ends = []
    for columns in ((x, y, ids), (x.astype(np.float32), y.astype(np.float32), ids)):
        model = Regression(dtype=np.float32)
        seen = set()

        def loss(x, y, ids, *, model=model, seen=seen, **keywords):
            seen.update((x.dtype.name, y.dtype.name))
            return Regression.loss(model, x, y, ids, **keywords)

        model.loss = loss
        ends.append((model, fit(model, columns, **OPTIONS)))
        assert seen == {"float32"}
    assert_same_end(*ends)
    assert np.all(np.isfinite(ends[0][1]["validation_loss"]))

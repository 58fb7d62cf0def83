"""Nothing is lost: SCVI, through its public functions, killed, interrupted, and on a full disk, ends as if nothing had been.

Runs are killed in children of one process of its own (`python test_interruptions.py killed FOLDER`), which has imported
all and forks: so that a run begins at once, and nothing happens to pytest.
"""

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from minigrad import checkpoint
from minigrad import training as module
from minigrad.data import Blocks
from models import SCVI
from models.counts import Counts

N_KILLS, N_PRESSED = 20, 5


def counts(kind):
    """60 cells, one of them empty; from memory, or as if from a disk."""
    x = np.random.default_rng(0).poisson(2.0, (60, 8)).astype(np.float32)
    x[9] = 0
    x = sparse.csr_array(x)
    return Counts(
        x if kind == "memory" else Blocks(lambda a, b: x[a:b], np.arange(0, 61, 6), 8),
        np.arange(8),
        np.arange(60),
    )


def train(kind="memory", seed=0, **options):
    """A run; seed: of first weights, which must not matter to one that is resumed."""
    options = {
        **dict(epochs=16, batch_size=8, seed=0, early_stopping=12, progress=False),
        **options,
    }
    model = SCVI(8, n_latent=2, n_hidden=4, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(counts(kind), **options)
    return model, history


def assert_same_end(one, other):
    (model, history), (expected, before) = one, other
    for (name, a), b in zip(
        model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert a.tobytes() == b.tobytes(), name
    assert history.names == before.names
    assert all(history[name] == before[name] for name in history.names if name != "seconds")


def strike(number, moment, path, kind, seed):
    """Start or go on with a run in a child, send it a signal after a while; whether it still ran."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        train(kind, seed if path.exists() else 0, checkpoint=path, resume=True)
        os._exit(0)
    time.sleep(moment)
    os.kill(child, number)
    return os.waitpid(child, 0)[1] == number or number == signal.SIGINT


def killed(folder):
    """(In its own process.) Killed at random moments while it saves after every step, and now and then interrupted."""
    module.SAVE_EVERY = 0.0
    rng = np.random.default_rng()
    for kind in ("memory", "disk"):
        started = time.monotonic()
        expected = train(kind, checkpoint=Path(folder) / "other.npz")
        duration, done, path, positions = (
            time.monotonic() - started,
            [],
            Path(folder) / f"{kind}.npz",
            [],
        )
        while len(done) < (N_KILLS + N_PRESSED) // 2:
            number = signal.SIGINT if len(done) % 5 == 4 else signal.SIGKILL
            if strike(number, rng.uniform(0.0, 0.1) * duration, path, kind, len(done)):
                done.append(number)
            if path.exists():
                SCVI.load(path).latent(counts(kind))
                positions.append(checkpoint.load(path)[1]["position"])
                if positions[-1]["epoch"] == 16:  # it came to the end before: begin another
                    assert_same_end(train(kind, 7, checkpoint=path, resume=True), expected)
                    path.unlink()
        assert_same_end(train(kind, 7 * path.exists(), checkpoint=path, resume=True), expected)
        assert_same_end((SCVI.load(path), expected[1]), expected)
        assert any(p["batch"] for p in positions)
        print(kind, [p["epoch"] for p in positions], len(list(Path(folder).glob("*.part"))))


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
    print(done.stdout)


@pytest.mark.parametrize("at", [1, 4, 11])
def test_a_full_disk(tmp_path, monkeypatch, at):
    path, fsync, calls = tmp_path / "run.npz", os.fsync, []

    def full(handle):
        calls.append(1)
        if len(calls) == 2 * at - 1:  # each save flushes the file, and then the folder
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train(checkpoint=path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"] * (at > 1)
    if at > 1:
        assert SCVI.load(path).latent(counts("memory")).shape == (60, 2)
        assert checkpoint.load(path)[1]["position"]["epoch"] == at - 1
    assert_same_end(train(seed=3 * (at > 1), checkpoint=path, resume=True), train())


@pytest.mark.parametrize(
    "change",
    [dict(kl_warmup=0.1), dict(learning_rate=1e-3), dict(weight_decay=0.5), dict(epochs=3)],
)
def test_a_run_is_not_gone_on_with_otherwise(tmp_path, change):
    path = tmp_path / "run.npz"
    options = dict(epochs=2, weight_decay=0.1, checkpoint=path)
    train(**options)
    with pytest.raises(ValueError, match="checkpoint of a run with"):
        train(resume=True, **{**options, **change})


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

"""minigrad/parallel.py: two ranks under mpiexec do what one process does, stay equal, and die together.

What runs on the ranks are the functions below the line, `mpiexec -n 2 python test_parallel.py NAME FOLDER`. They leave
what they found in files of the folder, one a rank, which the tests compare.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad import checkpoint as files
from minigrad import functional, nn, optim, parallel
from minigrad.fit import fit
from minigrad.parallel import One, ranks_of
from minigrad.training import split_minibatches
from models import SCVI, Autoencoder

TIMEOUT = 60  # seconds after which ranks that wait for one another are ended


def ranks(name, folder, n=2, start=(), timeout=TIMEOUT):
    """Run a function of this file on n ranks: (exit status, what they said). start: options of Python."""
    pytest.importorskip("mpi4py")
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=places)
    if mpiexec is None:
        pytest.skip('there is no mpiexec: pip install "minigrad-scvi[mpi]"')
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [mpiexec, "-n", str(n), sys.executable, *start, __file__, name, str(folder)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=env, start_new_session=True, **pipes) as started:
        try:
            said, _ = started.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # a stopped rank would outlive mpiexec
            raise
    return started.returncode, said


def found(folder, rank):
    arrays, meta = files.load(folder / f"rank{rank}.npz")
    return arrays, meta["said"]


def test_one_process_asks_nobody():
    assert (ranks_of(None).rank, ranks_of(None).size) == (0, 1) and isinstance(ranks_of(None), One)
    with pytest.raises(ValueError, match="""parallel must be None or "mpi", not 'threads'"""):
        ranks_of("threads")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'pip install "minigrad-scvi\[mpi\]"'):
        Autoencoder(3, (2,), 1).fit(np.ones((9, 3)), parallel="mpi", epochs=1, progress=False)


def test_minibatches_too_small_for_the_ranks_are_refused():
    columns, four = (np.ones((50, 2)),), SimpleNamespace(rank=1, size=4)
    for batch_size, n in ((7, 50), (16, 6)):
        with pytest.raises(
            ValueError, match=f"batch_size={batch_size} of .* each of 4 ranks needs 2"
        ):
            split_minibatches((columns[0][:n],), batch_size, 0.0, 0, False, four)
    train, held_out = split_minibatches(columns, 16, 0.2, 0, False, four)
    assert train.shard == (1, 4) and held_out.shard == (0, 1)


def test_two_ranks_do_what_one_process_does(tmp_path):
    status, said = ranks("like_one_process", tmp_path)
    assert status == 0, said
    for rank in (0, 1):
        arrays, meta = found(tmp_path, rank)
        assert np.abs(arrays["gradient"]).max() > 0.01
        np.testing.assert_allclose(arrays["gradient"], arrays["alone/gradient"], rtol=0, atol=1e-12)
        assert arrays["losses"].shape == (4, 3) and np.ptp(arrays["losses"]) > 0.01
        np.testing.assert_allclose(arrays["losses"], arrays["alone/losses"], rtol=1e-11)
        np.testing.assert_allclose(arrays["end"], arrays["alone/end"], rtol=0, atol=1e-11)


def test_ranks_end_equal_with_one_checkpoint_and_resume_exactly(tmp_path):
    """With batch norm and dropout; the models of the ranks began with different weights."""
    status, said = ranks("trained_and_resumed", tmp_path)
    assert status == 0, said
    (first, a), (second, b) = found(tmp_path, 0), found(tmp_path, 1)
    assert a == b and len(a["whole"]) == 4
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name
    whole, parts = (
        {k.removeprefix(p): v.tobytes() for k, v in first.items() if k.startswith(p)}
        for p in ("whole/", "parts/")
    )
    assert whole == parts and a["whole"] == a["parts"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "parts.npz",
        "rank0.npz",
        "rank1.npz",
        "whole.npz",
    ]
    SCVI.load(tmp_path / "whole.npz")


def test_ranks_begin_with_the_frozen_weights_of_the_first(tmp_path):
    """Also where the optimiser was not given them."""
    status, said = ranks("freezes", tmp_path)
    assert status == 0, said
    (first, _), (second, _) = found(tmp_path, 0), found(tmp_path, 1)
    assert np.all(first["layers.layers.0.weight"] == 0.5)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


def test_an_error_after_the_training_is_one_of_the_program(tmp_path):
    """MPI ends where all have come to the end: the others do their work, and the error is shown."""
    status, said = ranks("raises_after", tmp_path, timeout=25)
    assert status != 0 and "ZeroDivisionError" in said
    assert len(list(tmp_path.glob("rank0*"))) == 1


def test_they_stop_together(tmp_path):
    """Early stopping, and a Ctrl-C that only one of them gets."""
    status, said = ranks("stopped", tmp_path)
    assert status == 0, said
    (first, a), (second, b) = found(tmp_path, 0), found(tmp_path, 1)
    assert a["early"] == b["early"] == [1, 4] and a["interrupted"] == b["interrupted"]
    assert a["interrupted"][0] == 2 and 6 <= a["interrupted"][1] <= 7
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert said.count("interrupted:") == 1


@pytest.mark.parametrize(
    "how",
    [
        "raises",
        "raises_alone",
        "is_killed",
        "first_is_killed",
        "fails_before",
        "has_bad_data",
        "has_other_data",
        "has_another_model",
        "exits",
    ],
)
def test_a_rank_that_fails_ends_all(tmp_path, how):
    status, said = ranks(how, tmp_path, start=["-m", "mpi4py"] if how == "exits" else [])
    assert status != 0, said
    expected = {
        "raises": "ZeroDivisionError",
        "raises_alone": "FloatingPointError: divide by zero",
        "fails_before": "rank 0 of 2 could not start: FileNotFoundError",
        "has_bad_data": r"row 3, column 2 \(from 0\) is -1.0",
        "has_other_data": "must train the same",
        "has_another_model": "must train the same.*layers",
        "is_killed": "",  # mpiexec says it, in its own words
        "first_is_killed": "",
        "exits": "ZeroDivisionError",
    }
    assert re.search(expected[how], said)
    assert not list(tmp_path.glob("rank*"))  # nobody came to the end
    if how in ("raises", "raises_alone", "is_killed", "first_is_killed"):
        assert files.load(tmp_path / "run.npz")[1]["position"]["epoch"] >= 1


@pytest.mark.parametrize("how", ["is_suspended", "fails_outside", "fits_less", "fits_alone"])
def test_nobody_waits_for_ever_for_a_rank_that_does_not_come(tmp_path, how):
    status, said = ranks(how, tmp_path, n=3, timeout=25)
    assert status != 0, said
    assert re.search(
        r"rank [02] of 3 has waited for [1-3] s, which ends all: rank 1 does not", said
    )
    assert "MINIGRAD_MPI_TIMEOUT to more seconds (now 1)" in said
    assert not list(tmp_path.glob("rank[02].npz"))  # nobody else came to the end


@pytest.mark.parametrize("how", ["raises_before", "is_suspended_before"])
def test_nobody_waits_for_ever_for_mpi_to_start(tmp_path, how):
    """MPI waits until all have started it, and no Python runs while it does."""
    status, said = ranks(how, tmp_path, timeout=25)
    assert status != 0, said
    assert "rank 0 of 2 has waited for 1 s for all processes to start MPI, which ends all" in said
    assert not list(tmp_path.iterdir())


def test_a_rank_that_waits_elsewhere_is_told_from_one_that_does_not(tmp_path):
    status, said = ranks("waits_elsewhere", tmp_path, timeout=25)
    assert status != 0, said
    assert re.search(
        "rank [01] of 2 has waited .*: rank [01] waits too, but at another place", said
    )


def test_a_slow_rank_is_waited_for(tmp_path):
    status, said = ranks("is_slow", tmp_path, timeout=25)
    assert status == 0 and said == ""
    assert len(list(tmp_path.glob("rank*"))) == 2


def test_time_for_which_a_process_itself_was_stopped_does_not_count(monkeypatch):
    """After Ctrl-Z and fg, all ranks find that hours have gone by."""
    hours = iter(3600.0 * np.arange(100))
    clock = SimpleNamespace(monotonic=lambda: next(hours), sleep=lambda seconds: None)
    monkeypatch.setattr(parallel, "time", clock)
    tests = iter([False] * 8 + [True])
    waiting = object.__new__(parallel.Ranks)
    waiting.timeout = 10.0
    waiting._answer = lambda: None
    waiting._end_all = lambda *_: pytest.fail("it gave up")
    waiting._wait(SimpleNamespace(Test=lambda: next(tests)))
    assert list(tests) == []


def test_the_time_to_wait_is_an_environment_variable(monkeypatch):
    monkeypatch.delenv("MINIGRAD_MPI_TIMEOUT", raising=False)
    assert parallel.timeout() == 600.0
    for text, seconds in (("1.5", 1.5), ("inf", np.inf)):
        monkeypatch.setenv("MINIGRAD_MPI_TIMEOUT", text)
        assert parallel.timeout() == seconds
    for text in ("0", "-3", "soon", "", "nan"):
        monkeypatch.setenv("MINIGRAD_MPI_TIMEOUT", text)
        with pytest.raises(ValueError, match=f"MINIGRAD_MPI_TIMEOUT must be .* not '{text}'"):
            parallel.timeout()


def test_an_mpiexec_that_mpi4py_knows_nothing_of_is_refused():
    """Two processes that both believe to be alone would write one checkpoint."""
    pytest.importorskip("mpi4py")
    done = subprocess.run(
        [sys.executable, "-c", "from minigrad.parallel import ranks_of; ranks_of('mpi')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 1
    assert "mpiexec started 2 processes, but mpi4py sees one" in done.stderr


# ----------------------------------------------------------------------------------------------------- on every rank
def write(folder, arrays, **said):
    files.save(Path(folder) / f"rank{ranks_of('mpi').rank}.npz", arrays, {"said": said})


def counts(n=70):
    return np.random.default_rng(1).poisson(2.0, (n, 6)).astype(np.float32)


class Plain(nn.Module):
    """Regression without batch norm or noise, so that minibatches can be cut."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 5, dtype=float, rng=rng),
            nn.Sigmoid(),
            nn.Linear(5, 1, dtype=float, rng=rng),
        )
        self.hook = lambda progress: None

    def loss(self, x, y, *, progress, rng):
        self.hook(progress)
        return functional.mse(self.layers(x), y[:, None])

    def validation(self, x, y, *, rng):
        error = (self.layers(x).data[:, 0] - y) ** 2
        return {"loss": error, "noise": rng.random(len(x)) * error}


def train(model, n=61, **options):
    x = np.random.default_rng(2).normal(size=(n, 3))
    kept = {}

    class Recorded(optim.Adam):
        def step(self):
            kept.setdefault("gradient", self.gradients.copy())
            super().step()

    columns = (x, x @ [1.0, -1.0, 0.5])
    history = fit(
        model,
        columns,
        **{
            **dict(
                epochs=4,
                batch_size=7,
                validation=0.1,
                progress=False,
                optimizer=lambda p: Recorded(p, 0.05),
            ),
            **options,
        },
    )
    return history, kept["gradient"]


def like_one_process(folder):
    arrays = {}
    for name, way in (
        ("alone/", None),
        ("", "mpi"),
    ):  # minibatches of 7 cannot be cut into equal parts
        model = Plain()
        history, arrays[name + "gradient"] = train(model, parallel=way)
        arrays[name + "losses"] = np.column_stack(
            [history[k] for k in ("train_loss", "validation_loss", "validation_noise")]
        )
        arrays[name + "end"] = np.concatenate([p.data.ravel() for p in model.parameters()])
    write(folder, arrays)


def freezes(folder):
    model, rank = Plain(), ranks_of("mpi").rank
    frozen = model.layers[0].weight
    frozen.data[...] = 0.5 + rank
    frozen.requires_grad = False
    x = np.random.default_rng(2).normal(size=(30, 3))
    fit(
        model,
        (x, x @ [1.0, -1.0, 0.5]),
        epochs=2,
        batch_size=7,
        optimizer=lambda ps: optim.Adam([p for p in ps if p.requires_grad], 0.05),
        parallel="mpi",
        progress=False,
    )
    write(folder, model.state_dict())


def trained_and_resumed(folder):
    """All at once, and with a Ctrl-C in the middle of an epoch after which other models go on."""
    rank, arrays, said, save = ranks_of("mpi").rank, {}, {}, files.save
    files.save = lambda *args: (time.sleep(0.1), save(*args))  # none may go on before it is there
    options = dict(epochs=4, batch_size=16, parallel="mpi", progress=False)
    for name, stops in (("whole", [None]), ("parts", [5, None])):
        for stop in stops:
            is_resumed, calls = name == "parts" and stop is None, []
            model = SCVI(6, n_latent=2, n_hidden=4, seed=rank + 7 * is_resumed)
            loss = model.loss

            def pressed(*args, **keywords):
                calls.append(1)
                if len(calls) == stop and rank == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                return loss(*args, **keywords)

            model.loss = pressed
            path = Path(folder) / f"{name}.npz"
            history = model.fit(counts(), checkpoint=path, resume=True, seed=0, **options)
            said[f"{name} {stop}"] = files.load(path)[1]["position"]
        arrays.update({f"{name}/{k}": v for k, v in model.state_dict().items()})
        said[name] = history["validation_elbo"]
    write(folder, arrays, **said)


def stopped(folder):
    model = Plain()
    model.validation = lambda x, y, *, rng: {"loss": np.full(len(x), float(len(calls)))}
    calls = []
    model.hook = lambda progress: calls.append(1)
    history, _ = train(model, parallel="mpi", early_stopping=3, epochs=50)
    early = [history["epoch"][0], len(history)]
    model, calls, rank = Plain(), [], ranks_of("mpi").rank

    def press(progress):
        calls.append(1)
        if len(calls) == 19 and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)

    model.hook = press
    history, _ = train(model, parallel="mpi", epochs=50)  # 8 minibatches an epoch
    write(folder, model.state_dict(), early=early, interrupted=[len(history), len(calls) - 13])


def fails_in_the_middle(folder, how, who=1):
    model, rank = Plain(), ranks_of("mpi").rank

    def fail(progress):
        if rank == who and progress > 0.6:
            how()

    model.hook = fail
    train(model, parallel="mpi", checkpoint=Path(folder) / "run.npz")
    write(folder, {})


def raises(folder):
    fails_in_the_middle(folder, lambda: 1 / 0)


def raises_alone(folder):
    """An error of the kind that all ranks raise at once, where a loss is not finite; but on one."""
    with np.errstate(divide="raise"):
        fails_in_the_middle(folder, lambda: 1.0 / np.zeros(1))


def is_killed(folder):
    fails_in_the_middle(folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def first_is_killed(folder):
    """The rank that writes the checkpoint, as where the system runs out of memory."""
    fails_in_the_middle(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), who=0)


def fails_before(folder):
    missing = Path(folder) / ("missing" if ranks_of("mpi").rank == 0 else ".") / "run.npz"
    train(Plain(), parallel="mpi", checkpoint=missing)
    write(folder, {})


def has_bad_data(folder):
    x = counts()
    x[3, 2] -= 99 * ranks_of("mpi").rank
    SCVI(6).fit(np.maximum(x, -1), parallel="mpi", epochs=1, progress=False)
    write(folder, {})


def has_other_data(folder):
    train(Plain(), n=61 + ranks_of("mpi").rank, parallel="mpi")
    write(folder, {})


def has_another_model(folder):
    """With a layer of as many weights, so that nothing else would notice."""
    model, rank = Plain(), ranks_of("mpi").rank
    if rank == 1:
        model.layers[0].weight = nn.Parameter(np.zeros((5, 3)))
        model.layers[2].weight = nn.Parameter(np.zeros((5, 1)))
    model.loss = lambda x, y, *, progress, rng: np.sum(model.layers[2].weight ** 2)
    train(model, parallel="mpi", validation=0)
    write(folder, {})


def exits(folder):
    """One rank fails outside of `fit`, as where a file is missing on one machine."""
    if ranks_of("mpi").rank == 1:
        1 / 0
    train(Plain(), parallel="mpi")
    write(folder, {})


def wait_at_most(seconds):
    """From here on; until all are here, imports may take as long as they like."""
    with ranks_of("mpi").preparing():
        os.environ["MINIGRAD_MPI_TIMEOUT"] = str(seconds)


def raises_after(folder):
    train(Plain(), parallel="mpi")
    if ranks_of("mpi").rank == 1:
        1 / 0
    time.sleep(0.5)
    write(folder, {})


def is_suspended(folder):
    wait_at_most(1)
    fails_in_the_middle(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def fails_outside(folder):
    """As `exits`, but nobody started it with mpi4py's runner."""
    wait_at_most(1)
    exits(folder)


def fails_before_mpi(folder, how):
    """Whose number is known from mpiexec, as MPI has not begun."""
    os.environ["MINIGRAD_MPI_TIMEOUT"] = "1"
    if os.environ["PMI_RANK"] == "1":
        how()
    train(Plain(), parallel="mpi")
    write(folder, {})


def raises_before(folder):
    fails_before_mpi(folder, lambda: 1 / 0)


def is_suspended_before(folder):
    fails_before_mpi(folder, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def fits_less(folder):
    wait_at_most(1)
    for _ in range(1 if ranks_of("mpi").rank == 1 else 2):
        train(Plain(), parallel="mpi")
    write(folder, {})


def fits_alone(folder):
    wait_at_most(1)
    train(Plain(), parallel=None if ranks_of("mpi").rank == 1 else "mpi")
    write(folder, {})


def waits_elsewhere(folder):
    wait_at_most(1)
    all_ranks = ranks_of("mpi")
    if all_ranks.rank == 1:
        parallel.Ranks.n_exchanges += (
            1  # as if it had taken part in something that the other has not
        )
        all_ranks.first(np.zeros(3), root=0)
    else:
        all_ranks.first(np.zeros(3), root=1)  # both believe that the other speaks
    write(folder, {})


def is_slow(folder):
    """Slower than a rank that asks now and then, and in each place where ranks wait."""
    wait_at_most(20)
    model, rank = Plain(), ranks_of("mpi").rank
    model.hook = lambda progress: time.sleep(0.4 * (progress == 0.5 and rank == 1))
    time.sleep(0.4 * rank)
    train(model, parallel="mpi")
    write(folder, {})


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])

"""Training on several processes, or machines, at once: what they tell each other, over MPI.

This is engineering, and optional: it needs mpi4py.

Know before reading: what a gradient is, and that the mean over a minibatch is the mean of its
parts' means, each weighted by its rows. MPI (message passing interface) starts the same program n
times, `mpiexec -n 4 python train.py`; each copy is a *rank*, numbered from 0. Each trains the same
model on its part of every minibatch, and before every step adds its gradient to those of the
others: so all make the same change, and their weights stay equal to the last bit. There is no
master; rank 0 alone writes the checkpoint and shows the progress.

What is a function of a whole minibatch is not the same on parts of it. Batch normalisation takes
mean and variance of the rank's own rows, as PyTorch's does by default; its running statistics,
which evaluation uses, are averaged over ranks in every step. All else equals one process on the
whole minibatch, up to rounding and to which random numbers are drawn.

All ranks must do the same, or they wait for one another for ever. So a failure of one rank within
`fit` ends them all. For one outside, say a file that one machine lacks, start Python with
`-m mpi4py`, or do all within `ranks_of("mpi").together()`; or within `preparing()`, if nothing
there waits for other ranks. What remains is a rank that says nothing: it was suspended, hangs, or
called `fit` less often than the others. Whoever has waited for it for MINIGRAD_MPI_TIMEOUT seconds
(an environment variable; 600 by default) ends all, and says which rank it was. One that is killed
ends all at once, which mpiexec says. When the program ends, MPI waits for all ranks without limit:
one of them may have work of its own to do after the training.

Know after: why one sum over ranks a step is nearly all that it takes.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from minigrad import backend

DeviceArray: TypeAlias = Any  # in annotations: an array of NumPy or CuPy, and no Tensor

# Environment variables that mpiexec sets for a process: how many there are, and which one it is.
LAUNCHERS = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
TIMEOUT = 600.0  # seconds that a rank waits for the others
ANSWER_TIME = 2.0  # seconds that a waiting rank has for saying that it waits
QUESTION, ANSWER = 31401, 31402  # tags of messages between waiting ranks; any that nobody else uses

# A program that ends its parent, with a sentence, unless its standard input is closed in time. It
# counts seconds rather than looking at the clock, which runs on while all are stopped (Ctrl-Z).
WATCHDOG = """
import os, select, signal, sys, time
parent, seconds, sentence = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
waited = 0.0
while waited < seconds:
    step = min(1.0, seconds - waited)
    if select.select([sys.stdin], [], [], step)[0]:
        sys.exit()
    waited += step
print(sentence, file=sys.stderr, flush=True)
time.sleep(0.5)
os.kill(parent, signal.SIGKILL)
"""


def ranks_of(parallel: str | None) -> One | Ranks:
    """Who trains: `One` process for None, the `Ranks` that mpiexec started for "mpi".

    ValueError for another name.
    """
    if parallel not in (None, "mpi"):
        raise ValueError(f'parallel must be None or "mpi", not {parallel!r}')
    return One() if parallel is None else Ranks()


class One:
    """A single process, which has nobody to ask: sums are its own, and it is the first."""

    rank = 0
    size = 1

    def sum(self, array: DeviceArray) -> DeviceArray:
        """The array, of any shape, as it is. See Ranks."""
        return array

    def first(self, array: DeviceArray, root: int = 0) -> DeviceArray:
        """The array, of any shape, as it is. See Ranks."""
        return array

    def first_text(self, text: str, root: int = 0) -> str:
        """The text as it is. See Ranks."""
        return text

    def preparing(self) -> AbstractContextManager:
        """See Ranks."""
        return nullcontext()

    def together(self) -> AbstractContextManager:
        """See Ranks."""
        return nullcontext()


class NotFinite(FloatingPointError):
    """An infinity or NaN in a sum over all ranks, which all of them find at the same time."""


class AnotherRankFailed(RuntimeError):
    """This rank could go on, but another cannot: says which one, and why."""


def timeout() -> float:
    """Seconds that a rank waits for the others: MINIGRAD_MPI_TIMEOUT, or the default.

    ValueError where that is no positive number.
    """
    text = os.environ.get("MINIGRAD_MPI_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValueError(
            "the environment variable MINIGRAD_MPI_TIMEOUT must be a number of seconds above 0 "
            f'("inf": wait for ever), not {text!r}'
        )
    return seconds


@contextmanager
def _started_in_time() -> Iterator[None]:
    """Within, MPI is started, which waits until all processes have done so: `timeout()` at most.

    MPI keeps Python from running while it waits, so another process looks at the clock.
    """
    seconds = timeout()
    started = [
        os.environ[name] for launcher in LAUNCHERS for name in launcher if name in os.environ
    ]
    if len(started) < 2 or started[0] == "1" or "mpi4py.MPI" in sys.modules or os.name != "posix":
        yield
        return
    size, rank = started[:2]
    sentence = (
        f"rank {rank} of {size} has waited for {seconds:g} s for all processes to start MPI, which "
        "ends all: one has failed before, was stopped, or never comes to train. Start Python with "
        "`mpiexec -n N python -m mpi4py`, so that an error of one ends all. If they may be so far "
        "apart, set MINIGRAD_MPI_TIMEOUT to more seconds"
    )
    command = [sys.executable, "-IS", "-c", WATCHDOG, str(os.getpid()), str(seconds), sentence]
    with subprocess.Popen(command, stdin=subprocess.PIPE):  # on leaving, its input is closed
        yield


class Ranks:
    """The processes that mpiexec started. rank: the number of this one; size: how many there are.

    ImportError where mpi4py is missing, RuntimeError where it finds no MPI library, or another one
    than mpiexec's.
    """

    n_exchanges = (
        0  # that this process has begun, by any of its Ranks; those of others must equal it
    )

    def __init__(self):
        try:
            with _started_in_time():
                from mpi4py import MPI
        except ImportError as error:
            raise ImportError(
                'parallel="mpi" needs mpi4py: pip install "minigrad-scvi[mpi]"'
            ) from error
        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank = self._comm.Get_rank()
        self.size = self._comm.Get_size()
        self.timeout = timeout()
        self._sent = []  # messages on their way
        started = [os.environ[name] for name, _ in LAUNCHERS if name in os.environ]
        if self.size == 1 and started not in ([], ["1"]):
            raise RuntimeError(
                f"mpiexec started {started[0]} processes, but mpi4py sees one: they belong to "
                "different MPI libraries, and each process would train alone; use the mpiexec of "
                f"mpi4py's library ({MPI.Get_library_version().splitlines()[0].strip()})"
            )

    def sum(self, array: DeviceArray) -> DeviceArray:
        """Replace the entries of a contiguous array, any shape, by their sums over all ranks.

        Returns it.
        """
        host = backend.to_host(array)
        self._wait(self._comm.Iallreduce(self._mpi.IN_PLACE, host))
        if host is not array:
            backend.assign(array, host)
        return array

    def first(self, array: DeviceArray, root: int = 0) -> DeviceArray:
        """Replace the entries of a contiguous array, any shape, by those of rank 0, or of `root`.

        Returns it.
        """
        host = backend.to_host(array)
        self._wait(self._comm.Ibcast(host, root=root))
        if host is not array:
            backend.assign(array, host)
        return array

    def first_text(self, text: str, root: int = 0) -> str:
        """The text of rank 0, or of `root`."""
        content = np.frombuffer(text.encode(), np.uint8)
        length = int(self.first(np.array([len(content)]), root)[0])
        mine = content.copy() if self.rank == root else np.empty(length, np.uint8)
        return self.first(mine, root).tobytes().decode()

    # ------------------------------------------------------------------------------------ waiting
    # An exchange is begun without waiting (MPI's Iallreduce rather than Allreduce; it is as fast),
    # and then asked again and again whether it is done: so somebody looks at the clock, and Ctrl-C
    # is heard.
    def _wait(self, request) -> None:
        """Wait until all ranks have taken part in an exchange; `timeout` seconds at most."""
        Ranks.n_exchanges += 1
        waited = 0.0
        last = time.monotonic()
        while not request.Test():
            now = time.monotonic()
            waited += min(
                now - last, 1.0
            )  # in a longer gap this process itself was stopped (Ctrl-Z)
            last = now
            if waited < 1e-3:
                continue  # the usual case, in which sleeping would cost time
            self._answer()
            if waited > self.timeout:
                self._end_all(1, self._who_is_missing(waited))
            time.sleep(min(waited / 20, 0.01))

    def _answer(self) -> None:
        """Tell the ranks that ask for it in which exchange this one waits."""
        status = self._mpi.Status()
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, QUESTION, status):
            self._comm.Recv(np.empty(1, np.int64), status.Get_source(), QUESTION)
            self._send(status.Get_source(), ANSWER)

    def _send(self, rank: int, tag: int) -> None:
        """Send the number of this rank's exchange, without waiting for the message to arrive."""
        content = np.array([Ranks.n_exchanges])
        self._sent.append((self._comm.Isend(content, rank, tag), content))

    def _who_is_missing(self, waited: float) -> str:
        """Ask the other ranks in which exchange they wait; says who waits in none, or another."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in others:
            self._send(rank, QUESTION)
        answers: dict[int, int] = {}
        status = self._mpi.Status()
        end = time.monotonic() + min(ANSWER_TIME, self.timeout)
        while time.monotonic() < end and len(answers) < len(others):
            self._answer()
            while self._comm.Iprobe(self._mpi.ANY_SOURCE, ANSWER, status):
                content = np.empty(1, np.int64)
                self._comm.Recv(content, status.Get_source(), ANSWER)
                answers[status.Get_source()] = int(content[0])
            time.sleep(0.01)
        silent = [str(rank) for rank in others if rank not in answers]
        elsewhere = [str(rank) for rank in answers if answers[rank] != Ranks.n_exchanges]
        if silent:
            who = (
                f"rank {', '.join(silent)} does not answer: stopped, busy, or done with its program"
            )
        elif elsewhere:
            who = f"rank {', '.join(elsewhere)} waits too, but at another place of the program"
        else:
            who = "the others wait too, but not for the same"
        return (
            f"rank {self.rank} of {self.size} has waited for {waited:.0f} s, which ends all: "
            f"{who}. All ranks must call fit equally often, with the same arguments, and be "
            "started by `mpiexec -n N python -m mpi4py`, so that an error of one ends all. If they "
            f"may be so far apart, set MINIGRAD_MPI_TIMEOUT to more seconds (now {self.timeout:g})"
        )

    def _end_all(self, status: int, said: str = "") -> None:
        """End all ranks, after a sentence to standard error."""
        if said:
            print(said, file=sys.stderr)
        sys.stderr.flush()
        time.sleep(0.5)  # mpiexec passes on only what it has read when the end comes
        self._comm.Abort(status)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within, nothing is asked of other ranks. If one fails, all do.

        The one with its error, the others with AnotherRankFailed.
        """
        failure = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        has_failed = np.zeros(self.size)
        has_failed[self.rank] = failure is not None
        if not self.sum(has_failed).any():
            return
        root = int(has_failed.argmax())
        said = self.first_text(f"{type(failure).__name__}: {failure}", root)
        if failure is not None:
            raise failure
        raise AnotherRankFailed(f"rank {root} of {self.size} could not start: {said}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, an error of one rank ends all, as the others would wait for it.

        NotFinite, which all find at once, is raised. All leave at the same time, so that what
        rank 0 has written is there for all. The error is shown by sys.excepthook, as Python shows
        one that nobody catches: it does not live long enough to be caught.
        """
        try:
            yield
            self._wait(self._comm.Ibarrier())
        except NotFinite:
            raise
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                raise
            print(f"rank {self.rank} of {self.size} failed, which ends all:", file=sys.stderr)
            sys.excepthook(*sys.exc_info())
            is_ctrl_c = isinstance(error, KeyboardInterrupt)
            self._end_all(130 if is_ctrl_c else 1)  # 130 is what a shell says of Ctrl-C
            raise  # it may take a moment

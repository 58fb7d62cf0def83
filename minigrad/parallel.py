"""Training on several processes, or machines, at once: what they tell each other, over MPI (mpi4py, optional).

Know before reading: what a gradient is, and that the mean over a minibatch is the mean of its parts' means, each weighted
by its rows. MPI (message passing interface) starts the same program n times, `mpiexec -n 4 python train.py`; each copy
is a *rank*, numbered from 0. Each trains the same model on its part of every minibatch, and after every step adds its
gradient to those of the others: so all make the same change, and their weights stay equal to the last bit. There is no
master; rank 0 alone writes the checkpoint and shows the progress.

What is a function of a whole minibatch is not the same on parts of it. Batch normalisation takes mean and variance of the
rank's own rows, as PyTorch's does by default; its running statistics, which evaluation uses, are averaged over ranks in
every step. All else equals one process on the whole minibatch, up to rounding and to which random numbers are drawn.

All ranks must do the same, or all wait for ever. So a failure of one rank within `fit` ends them all. For one outside, say
a file that one machine lacks, start Python with `-m mpi4py`, or do all within `ranks_of("mpi").together()`; or within
`preparing()`, if nothing there waits for other ranks.

Know after: why one sum over ranks a step is nearly all that it takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np

from minigrad import backend
from minigrad.backend import Array


def ranks_of(parallel: str | None) -> One | Ranks:
    """Who trains: `One` process for None, the `Ranks` that mpiexec started for "mpi". ValueError for another name."""
    if parallel not in (None, "mpi"):
        raise ValueError(f'parallel must be None or "mpi", not {parallel!r}')
    return One() if parallel is None else Ranks()


class One:
    """A single process, which has nobody to ask."""

    rank, size = 0, 1

    def preparing(self) -> AbstractContextManager:
        """See Ranks."""
        return nullcontext()

    def together(self) -> AbstractContextManager:
        """See Ranks."""
        return nullcontext()


class AnotherRankFailed(RuntimeError):
    """This rank could go on, but another cannot: says which one, and why."""


class Ranks:
    """The processes that mpiexec started. rank: the number of this one; size: how many there are.

    ImportError where mpi4py is missing, RuntimeError where it finds no MPI library.
    """

    def __init__(self):
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise ImportError(
                'parallel="mpi" needs mpi4py: pip install "minigrad-scvi[mpi]"'
            ) from error
        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()

    def sum(self, array: Array) -> Array:
        """Replace the entries of a contiguous array, any shape, by their sums over all ranks. Returns it."""
        host = backend.to_host(array)
        self._comm.Allreduce(self._mpi.IN_PLACE, host)
        if host is not array:
            backend.assign(array, host)
        return array

    def first(self, array: Array, root: int = 0) -> Array:
        """Replace the entries of a contiguous array, any shape, by those of rank 0, or of `root`. Returns it."""
        host = backend.to_host(array)
        self._comm.Bcast(host, root=root)
        if host is not array:
            backend.assign(array, host)
        return array

    def first_text(self, text: str, root: int = 0) -> str:
        """The text of rank 0, or of `root`."""
        content = np.frombuffer(text.encode(), np.uint8)
        length = int(self.first(np.array([len(content)]), root)[0])
        return (
            self.first(content.copy() if self.rank == root else np.empty(length, np.uint8), root)
            .tobytes()
            .decode()
        )

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within, nothing is asked of other ranks. If one fails, all do: it with its error, others with AnotherRankFailed."""
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
        """Within, an error of one rank ends all, as the others would wait for it; one that all find at once is raised.

        All leave at the same time, so that what rank 0 has written is there for all. The error is shown by
        sys.excepthook, as Python shows one that nobody catches: it does not live long enough to be caught.
        """
        try:
            yield
            self._comm.Barrier()
        except FloatingPointError:  # of sums over all ranks
            raise
        except BaseException as error:
            if isinstance(error, SystemExit) and not error.code:
                raise
            print(f"rank {self.rank} of {self.size} failed, which ends all:", file=sys.stderr)
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            time.sleep(0.5)  # mpiexec passes on what it has read when the end comes, and no more
            self._comm.Abort(
                130 if isinstance(error, KeyboardInterrupt) else 1
            )  # as a shell says it of Ctrl-C
            raise  # it may take a moment

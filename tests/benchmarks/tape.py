"""The cost of the tape: a chain of 4,000 operations on four floats, forward and backward, where arithmetic is nothing."""

from __future__ import annotations

import time

import numpy as np

from minigrad import Tensor
from tests.benchmarks import work


def job(name: str, n: int):
    """Returns seconds an operation, forward and backward."""
    start = np.array([0.1, 0.2, 0.3, 0.4])

    def run():
        x = Tensor(start, requires_grad=True)
        started = time.perf_counter()
        y = x
        for _ in range(work.CHAIN // 2):
            y = np.sin(y * 1.1)
        np.sum(y).backward()
        return (time.perf_counter() - started) / work.CHAIN

    return run


def version() -> str:
    return f"NumPy {np.__version__}"

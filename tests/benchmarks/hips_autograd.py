"""The same chain as tape.py with HIPS autograd."""

from __future__ import annotations

import time
from importlib.metadata import version as version_of

import autograd.numpy as anp
import numpy as np
from autograd import grad

from tests.benchmarks import work


def job(name: str, n: int):
    """Returns seconds an operation, forward and backward."""
    start = np.array([0.1, 0.2, 0.3, 0.4])

    def chain(x):
        for _ in range(work.CHAIN // 2):
            x = anp.sin(x * 1.1)
        return anp.sum(x)

    gradient = grad(chain)

    def run():
        started = time.perf_counter()
        gradient(start)
        return (time.perf_counter() - started) / work.CHAIN

    return run


def version() -> str:
    return f"autograd {version_of('autograd')}"

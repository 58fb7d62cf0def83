"""The bare PyTorch loop at its best: the step under torch.compile, Adam fused.

Know before reading: pytorch.py, whose model this is. Compiling, some half a minute, is not timed:
it happens in the first turn, which warms up.
"""

from __future__ import annotations

import time

import torch

from tests.benchmarks import work
from tests.benchmarks.pytorch import DEVICE, BareSCVI


def job(name: str, n: int):
    """What `worker` calls again and again: trains for n epochs, returns seconds an epoch."""
    torch.manual_seed(0)
    _, likelihood, data = name.split("-")
    x = torch.from_numpy(work.counts(data).toarray()).to(DEVICE)
    model = BareSCVI(x.shape[1], likelihood == "zinb").to(DEVICE)
    loss_of = torch.compile(model.loss, dynamic=False)
    optimizer = torch.optim.Adam(model.parameters(), work.RATE, fused=True)

    def run():
        started = time.perf_counter()
        for _ in range(n):
            # The last, smaller minibatch would be compiled for itself; it is left out here.
            whole = torch.randperm(len(x), device=DEVICE)[: len(x) // work.BATCH * work.BATCH]
            for rows in whole.split(work.BATCH):
                optimizer.zero_grad()
                loss = loss_of(x[rows])
                loss.backward()
                optimizer.step()
                loss.item()
        return (time.perf_counter() - started) / n * len(x) / len(whole)

    return run


def version() -> str:
    return f"PyTorch {torch.__version__}, torch.compile"

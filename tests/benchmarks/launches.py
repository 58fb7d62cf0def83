"""What a step of scVI's training asks of a GPU: `python -m tests.benchmarks.launches`. No GPU is needed.

Know before reading: tests/strict_device.py, which stands in for CuPy and keeps a list of all kernels that it would launch
and of all that crosses between host and device. A launch costs the host some microseconds, whatever the size of the
arrays; a wait costs what the device has still to do.

Know after: how many launches a step is made of, and which.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from scipy import sparse

from minigrad.training import Run
from models import SCVI
from tests import strict_device
from tests.strict_device import LAUNCHES, TRANSFERS


class Step(NamedTuple):
    """What one step of training did on the device."""

    launches: list[str]  # the name of each
    sent: list[int]  # bytes of each transfer to the device
    waits: list[int]  # bytes of each answer that the host waited for


def steps(monkeypatch, dense: bool = False, **settings) -> list[Step]:
    """The steps of an epoch of SCVI with these settings, minibatches and noise included, on the double.

    The counts are few and shallow, so that the encoder has dropout.
    """
    strict_device.installed(monkeypatch)
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 1.5, (300, 40))) + np.eye(300, 40)
    counts = counts.astype(np.float32)
    found = []
    whole = Run.minibatches

    def minibatches(run):
        # From one minibatch to the next: its way to the device, the step, and what the loop does then.
        _forget()
        for minibatch in whole(run):
            yield minibatch
            found.append(Step(list(LAUNCHES), list(TRANSFERS.to_device), list(TRANSFERS.to_host)))
            _forget()

    monkeypatch.setattr(Run, "minibatches", minibatches)
    model = SCVI(40, n_latent=5, n_hidden=16, **settings)
    model.fit(
        counts if dense else sparse.csr_array(counts),
        epochs=1,
        validation=0.0,
        device="cupy",
        progress=False,
    )
    return found


def _forget():
    LAUNCHES.clear()
    TRANSFERS.clear()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.launches", description=__doc__
    )
    parser.add_argument("--likelihood", nargs="+", default=["poisson", "nb", "zinb"])
    chosen = parser.parse_args(arguments)
    for likelihood in chosen.likelihood:
        with pytest.MonkeyPatch.context() as monkeypatch:
            step = steps(monkeypatch, likelihood=likelihood)[-1]
        print(
            f"{likelihood}: {len(step.launches)} launches, {len(step.sent)} arrays sent, "
            f"{len(step.waits)} waits"
        )
        of_each = Counter(step.launches).most_common()
        print("   ", ", ".join(f"{n} {name}" for name, n in of_each))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Training from the disk: memory, speed and what is learnt, `python -m tests.benchmarks.from_disk [--cells N] [--folder DIR]`.

A file of 1,300,000 cells x 720 genes is made (10 % non-zero, some 750 MB), written in blocks. Cells lie sorted by their
type, as files put together from samples do: what is hardest to shuffle. Three things are then measured, each in a process
of its own, as a process never gives its peak memory back:

    one epoch of SCVI from the disk, all cells      peak resident memory (goal: below 2 GB), time a cell
    five epochs in memory, 10,000 cells             time a cell (goal: from the disk at most 1.3 times as much)
    one epoch, 200,000 cells, in memory and not     ELBO of the same held-out cells (goal: equal within the noise of seeds)
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import sparse

from minigrad.data import pieces
from models import SCVI
from models.counts import read

N_GENES, N_TYPES, AT_A_TIME = 720, 20, 10_000
GOALS = {"memory": 2.0, "time": 1.3}


def make(path, n_cells: int) -> None:
    """Write an .h5ad file of negative binomial counts of N_TYPES types of cells, AT_A_TIME cells at a time."""
    import h5py

    rng = np.random.default_rng(0)
    base = rng.normal(-3.2, 1.6, N_GENES)
    profiles = np.exp(base + rng.normal(0.0, 0.7, (N_TYPES, N_GENES)))
    theta, indptr = rng.gamma(2.0, 1.0, N_GENES) + 0.3, [np.zeros(1, np.int64)]
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        x.attrs.update(
            {
                "encoding-type": "csr_matrix",
                "encoding-version": "0.1.0",
                "shape": (n_cells, N_GENES),
            }
        )
        data, indices = [
            x.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**17,))
            for name, kind in (("data", np.float32), ("indices", np.int32))
        ]
        for start in range(0, n_cells, AT_A_TIME):
            n = min(AT_A_TIME, n_cells - start)
            mu = profiles[np.arange(start, start + n) * N_TYPES // n_cells] * rng.lognormal(
                0.0, 0.4, (n, 1)
            )
            counts = rng.poisson(mu * rng.standard_gamma(theta, (n, N_GENES)) / theta)
            rows, columns = np.nonzero(counts)
            end = data.shape[0] + len(rows)
            for dataset, values in ((data, counts[rows, columns]), (indices, columns)):
                dataset.resize((end,))
                dataset[end - len(rows) :] = values
            indptr.append(indptr[-1][-1] + np.cumsum(np.bincount(rows, minlength=n)))
        x["indptr"] = np.concatenate(indptr)
        for axis, n in (("obs", n_cells), ("var", N_GENES)):
            group = file.create_group(axis)
            group.attrs.update(
                {
                    "encoding-type": "dataframe",
                    "encoding-version": "0.2.0",
                    "_index": "_index",
                    "column-order": np.array([], h5py.string_dtype()),
                }
            )
            group["_index"] = np.arange(n).astype("S")
        density = data.shape[0] / (n_cells * N_GENES)
    print(
        f"made {path}: {n_cells:,} cells x {N_GENES} genes, {density:.1%} non-zero, {path.stat().st_size / 1e9:.2f} GB"
    )


def train(path, backed: bool, n_cells: int, epochs: int, seed: int) -> dict:
    """Train on n_cells from all over the file; what it took."""
    counts = read(path, backed=True).X
    counts = counts[np.arange(n_cells) * len(counts) // n_cells]
    if not backed:
        counts = sparse.vstack([part for _, part in pieces(counts)], format="csr")
    wall, cpu = time.perf_counter(), time.process_time()
    history = SCVI(N_GENES, seed=seed).fit(counts, epochs=epochs, progress=False)
    return {
        "wall": 1e6 * float(np.median(history["seconds"])) / (n_cells - round(0.1 * n_cells)),
        "cpu": 1e6 * (time.process_time() - cpu) / (n_cells * epochs),
        "total": time.perf_counter() - wall,
        "elbo": history["validation_elbo"][-1],
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def measured(path, *, backed: bool, n_cells: int, epochs: int = 1, seed: int = 0) -> dict:
    """The same in a process of its own."""
    arguments = json.dumps([str(path), backed, n_cells, epochs, seed])
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.from_disk", "--train", arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def report(path, n_cells: int) -> None:
    """Measure all three, and print them beside their goals."""
    few, some = min(10_000, n_cells), min(200_000, n_cells)
    memory = [measured(path, backed=False, n_cells=few, epochs=5) for _ in range(2)]
    disk = measured(path, backed=True, n_cells=n_cells)
    memory += [measured(path, backed=False, n_cells=few, epochs=5) for _ in range(2)]
    print(
        f"from the disk, {n_cells:,} cells, one epoch: {disk['total']:.0f} s with checks and validation, "
        f"ELBO {disk['elbo']:.2f}\n    peak memory {disk['gb']:.2f} GB (goal {GOALS['memory']})"
    )
    for kind, what in (
        ("wall", "seconds of training"),
        ("cpu", "processor time of all, the reading thread's too"),
    ):
        usual = float(np.median([found[kind] for found in memory]))
        print(
            f"{what}: {disk[kind]:.1f} us a cell; in memory, {few:,} cells: {usual:.1f}\n"
            f"    ratio {disk[kind] / usual:.2f} (goal {GOALS['time']})",
            flush=True,
        )
    for backed in (False, True):
        found = [
            measured(path, backed=backed, n_cells=some, seed=seed)["elbo"] for seed in range(2)
        ]
        print(
            f"held-out ELBO after one epoch of {some:,} cells, {'from the disk' if backed else 'in memory'}, two seeds: "
            f"{found[0]:.3f} {found[1]:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=1_300_000)
    parser.add_argument(
        "--folder", type=Path, help="where the file is kept (default: a temporary folder)"
    )
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        path, *rest = json.loads(options.train)
        print(json.dumps(train(Path(path), *rest)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = (options.folder or Path(folder)) / f"cells{options.cells}.h5ad"
        if not path.exists():
            make(path, options.cells)
        report(path, options.cells)


if __name__ == "__main__":
    main()

"""Few cells, and few among many: `python -m tests.benchmarks.few_cells`.

A prior on the decoder's weights (weight decay) keeps a model from learning single cells by heart.
How much is too much? The default (see models/recipe.py) beside none:

    held-out ELBO     of 1,000 other cells of cortex, after training on 100 to 1,000 of them
    a group in z      20 of 1,000 simulated cells differ in 40 of 200 genes, by 0.3 to 1.2 on the
                      log2 scale. Does the latent space know them? Half of the cells say in which
                      direction the group lies, the other half whether it does (area under the ROC
                      curve: 0.5 is chance, 1 is always)

Know after: what the default costs where cells are few.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from scipy import stats

from demos import show
from models import SCVI
from models.counts import read
from tests.benchmarks.differential import simulate

N_CELLS, HELD_OUT = (100, 200, 500, 1000), 1000


def auroc_in_z(z: np.ndarray, in_group: np.ndarray, seed: int = 0) -> float:
    """How well cells of a group (n_cells,) bool are told from others along the line between means.

    z: (n_cells, n_latent). The line is drawn with one half of the cells and tried on the other, and
    the other way round: the mean of both areas under the ROC curve.
    """
    rng = np.random.default_rng(seed)
    half = np.zeros(len(z), bool)
    for cells in (np.flatnonzero(in_group), np.flatnonzero(~in_group)):
        half[rng.permutation(cells)[: len(cells) // 2]] = True
    found = []
    for known in (half, ~half):
        line = z[known & in_group].mean(axis=0) - z[known & ~in_group].mean(axis=0)
        inside, outside = z[~known & in_group] @ line, z[~known & ~in_group] @ line
        above = stats.mannwhitneyu(inside, outside).statistic
        found.append(above / (len(inside) * len(outside)))
    return float(np.mean(found))


def held_out_elbo(x, n_cells: int, seed: int, weight_decay: float | None) -> float:
    """Mean ELBO, in nats a cell, of HELD_OUT cells of x after training on n_cells others."""
    order = np.random.default_rng(seed).permutation(x.shape[0])
    model = SCVI(x.shape[1], seed=seed)
    model.fit(x[np.sort(order[:n_cells])], weight_decay=weight_decay, progress=False)
    return float(np.mean(model.elbo(x[np.sort(order[-HELD_OUT:])], n_samples=3)))


def group_in_z(seed: int, weight_decay: float | None) -> float:
    """`auroc_in_z` of 20 cells among 1,000, as described above."""
    data = simulate(20, 980, seed, total=2000.0, lfc=(0.3, 1.2))
    model = SCVI(data.x.shape[1], likelihood="nb", seed=seed)
    model.fit(data.x, weight_decay=weight_decay, progress=False)
    return auroc_in_z(model.latent(data.x), data.in_a)


def main(arguments=None) -> int:
    """Print a table in Markdown: means over seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.few_cells", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    seeds = range(parser.parse_args(arguments).seeds)
    x = read(show.DATA / "cortex.npz").X
    print("| | default | no weight decay |")
    print("| --- | --- | --- |", flush=True)
    for n_cells in N_CELLS:
        both = [[held_out_elbo(x, n_cells, s, decay) for s in seeds] for decay in (None, 0.0)]
        default, none = np.mean(both, axis=1)
        print(f"| held-out ELBO, {n_cells} cells | {default:.0f} | {none:.0f} |", flush=True)
    both = [[group_in_z(s, decay) for s in seeds] for decay in (None, 0.0)]
    default, none = np.mean(both, axis=1)
    print(f"| a group of 20 in 1,000 in z, AUROC | {default:.2f} | {none:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The GENEEX autoencoder: 2048-1024-128 on expression profiles, and a step at the published size.

The chapter's "Autoencoder application: Gene expression". `--size course` trains the architecture on
the 3,005 cells of mouse cortex, log-normalised. `--size published` takes one training step of each
preset at the size of the Genomic Data Commons profiles (60,484 genes in the chapter; 60,483 in the
NCI's code, 244 million weights), and prints time and memory.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from demos import show
from models import Autoencoder
from models.counts import log1p, normalize, read


def add_options(parser) -> None:
    parser.add_argument("--size", choices=("course", "published"), default="course")


def run(options) -> None:
    (published if options.size == "published" else course)(options)


def course(options) -> None:
    """Train 2048-1024-128 on real cells, and draw the code by its principal components."""
    counts = read(show.DATA / "cortex.npz")
    rows = np.random.default_rng(0).permutation(len(counts))[: 300 if options.quick else 3005]
    x, labels = log1p(normalize(counts.X[rows])).toarray(), counts.obs["labels"][rows]
    model = Autoencoder.geneex(x.shape[1], preset="course")
    history = model.fit(x, epochs=1 if options.quick else 8)
    z = model.latent(x)
    print(
        f"{sum(p.size for p in model.parameters()):,} weights, {np.mean(history['seconds']):.1f} s "
        "an epoch; squared error on "
        f"held-out cells {history['validation_loss'][0]:.3f} after one epoch, "
        f"{history['validation_loss'][-1]:.3f} at the end "
        f"(variance of the data: {x.var(axis=0).mean():.3f})"
    )
    f, axes = show.figure(width=6, height=4.4)
    centred = z - z.mean(axis=0)
    plane = np.linalg.svd(centred, full_matrices=False)[2][:2].T
    drawn = show.scatter(axes[0, 0], centred @ plane, labels)
    axes[0, 0].set(title="code of 128 dimensions, seen by PCA", xlabel="PC 1", ylabel="PC 2")
    show.legend(
        f,
        drawn,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        markerscale=2,
    )
    show.save(
        f,
        options.out,
        "geneex",
        "The GENEEX autoencoder (2048-1024-128) on mouse cortex: its code, by cell type.",
    )


def published(options) -> None:
    """One step at 60,484 (course) and 60,483 genes (p1b1)."""
    for preset, n_genes in (("course", 60_484), ("p1b1", 60_483)):
        x = np.random.default_rng(0).random((130, n_genes), dtype=np.float32)
        model = Autoencoder.geneex(n_genes, preset=preset)
        started = time.perf_counter()
        model.fit(x, epochs=1, batch_size=130, validation=0.0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        print(
            f"{preset:<8} {sum(p.size for p in model.parameters()):>12,} weights: one step of "
            f"{len(x)} profiles in "
            f"{time.perf_counter() - started:.1f} s, peak memory {peak / 1e9:.1f} GB"
        )
        del model

"""Figure 7 of the chapter: 6,000 cells of three expression profiles in an autoencoder's code.

Each third of the cells has another third of the genes switched on; noise is everywhere. Nobody
tells the autoencoder which cell is of which kind. Its 128-dimensional code, seen by PCA, falls into
three groups (a); so does a code of 2 dimensions, drawn directly (b).
"""

from __future__ import annotations

import numpy as np

from demos import show
from models import Autoencoder
from models.clustering import adjusted_rand_index, kmeans


def three_profiles(n_cells: int, n_genes: int, seed: int = 0):
    """(log expression (n_cells, n_genes), profile (n_cells,)), simulated.

    The background is standard normal; genes that are switched on have 2 more.
    """
    rng = np.random.default_rng(seed)
    profile = np.repeat(np.arange(3), n_cells // 3)
    on = profile[:, None] == np.arange(n_genes) * 3 // n_genes
    return (rng.normal(0, 1, on.shape) + 2.0 * on).astype(np.float32), profile


def run(options) -> None:
    n_cells, epochs = (600, 2) if options.quick else (6000, 8)
    x, profile = three_profiles(n_cells, 1000)
    f, axes = show.figure(1, 2)
    for ax, n_latent, how in zip(axes[0], (128, 2), ("seen by PCA", "drawn directly")):
        model = Autoencoder(1000, hidden=(512, 256), n_latent=n_latent, dropout=0.1)
        history = model.fit(x, epochs=epochs)
        z = model.latent(x)
        found = kmeans(z, 3)
        print(
            f"latent {n_latent:>3}: mean squared error {history['validation_loss'][-1]:.3f} on "
            "held-out cells (noise: 1); "
            f"k-means finds the profiles with ARI {adjusted_rand_index(profile, found):.3f}"
        )
        if n_latent > 2:
            centred = z - z.mean(axis=0)
            z = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        drawn = show.scatter(ax, z, [f"profile {p + 1}" for p in profile], size=5)
        ax.set(
            title=f"latent {n_latent}, {how}",
            xlabel="PC 1" if n_latent > 2 else "z 1",
            ylabel="PC 2" if n_latent > 2 else "z 2",
        )
    show.legend(axes[0, 1], drawn, frameon=False, fontsize=9, markerscale=2)
    show.save(
        f,
        options.out,
        "gene_expression",
        f"Codes of {n_cells} cells. Left: 128 dimensions, their first two principal "
        "components. Right: a code of two dimensions. The three profiles separate in both.",
    )

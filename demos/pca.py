"""Figure 6 of the chapter: a linear autoencoder with tied weights becomes PCA as it trains.

No hidden layers, no activation, and a decoder that is the encoder's transpose: then the least
squared error is reached exactly where the weights span the first principal components. Gradient
descent finds that subspace without being told of eigenvectors; the angles between its subspace and
that of the singular value decomposition go to zero.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import subspace_angles

from demos import show
from models import TiedLinearAutoencoder
from models.counts import log1p, normalize, read


def run(options) -> None:
    counts = read(show.DATA / "cortex.npz")
    x = log1p(normalize(counts.X)).toarray()[: 500 if options.quick else 3005]
    n_latent, rounds = 3, 3 if options.quick else 12
    v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][:n_latent]
    angles, epochs = [], []
    for k in range(1, rounds + 1):
        model = TiedLinearAutoencoder(x.shape[1], n_latent, seed=0)
        n_epochs = max(1, round(1.6**k))
        model.fit(x, epochs=n_epochs)
        angles.append(np.degrees(subspace_angles(model.weight.numpy(), v.T)))
        epochs.append(n_epochs)
        print(
            f"{n_epochs:>5} epochs: largest principal angle to the SVD's subspace "
            f"{angles[-1].max():.4f} degrees"
        )
    f, axes = show.figure(1, 2, width=4.8)
    for i, angle in enumerate(np.array(angles).T[::-1]):
        axes[0, 0].plot(
            epochs,
            np.maximum(angle, 1e-4),
            marker=show.MARKERS[i],
            color=show.COLORS[i],
            label=f"angle {i + 1}",
        )
    axes[0, 0].set(
        xlabel="epochs of training", ylabel="principal angle (degrees)", xscale="log", yscale="log"
    )
    axes[0, 0].legend(frameon=False)
    labels = counts.obs["labels"][: len(x)]
    drawn = show.scatter(axes[0, 1], (x - x.mean(axis=0)) @ v[:2].T, labels)
    axes[0, 1].set(title="the first two components", xlabel="PC 1", ylabel="PC 2")
    show.legend(
        axes[0, 1],
        drawn,
        frameon=False,
        fontsize=9,
        markerscale=1.6,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    show.save(
        f,
        options.out,
        "pca",
        "Left: angles between the subspace that a tied linear autoencoder has learnt and that of "
        "the SVD, for longer and longer training. Right: the cells of mouse cortex in that "
        "subspace.",
    )

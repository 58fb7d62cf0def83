"""What sampling from an autoencoder's latent space gives, and from a VAE's.

The chapter's "Connexion between Autoencoders and VAE". Both compress; only the VAE says where codes
of cells are likely to lie: its codes were pulled to the prior Normal(0, 1) while it learnt.
Standard normal codes decode to plausible cells with the VAE. With the autoencoder they fall
anywhere beside its codes, and decode to nothing like the data. How far a draw is from the data: the
distance to its nearest real cell, beside that of held-out cells.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from demos import show
from models import VAE, Autoencoder
from models.counts import log1p, normalize, read

GREY = "#AAAAAA"  # cells, in every panel


def run(options) -> None:
    counts = read(show.DATA / "cortex.npz")
    x = log1p(normalize(counts.X)).toarray()
    x = x[np.random.default_rng(0).permutation(len(x))[: 500 if options.quick else 3005]]
    train, test = x[len(x) // 5 :], x[: len(x) // 5]
    epochs = 5 if options.quick else 40
    ae, vae = (
        Autoencoder(x.shape[1], hidden=(128,), n_latent=2),
        VAE(x.shape[1], hidden=(128,), n_latent=2, sigma="learned"),
    )
    ae.fit(train, epochs=epochs)
    vae.fit(train, epochs=epochs)
    z = np.random.default_rng(1).standard_normal((1000, 2)).astype(np.float32)
    draws = {"AE": decoded(ae, z), "VAE": decoded(vae, z)}
    tree = cKDTree(train)
    near = tree.query(test)[0].mean()
    print(f"distance to the nearest training cell: held-out cells {near:.1f}")
    for name, y in draws.items():
        spread = np.linalg.norm(y.std(axis=0)) / np.linalg.norm(train.std(axis=0))
        print(
            f"{name:<4} draws: nearest cell at {tree.query(y)[0].mean():.1f}; spread of the draws "
            f"{spread:.2f} of the data's; "
            f"mean expression off by {np.linalg.norm(y.mean(axis=0) - train.mean(axis=0)):.1f}"
        )
    f, axes = show.figure(1, 3, width=3.2, height=3.1)
    codes = {"AE": ae.latent(train), "VAE": vae.latent(train)}
    for ax, (name, c) in zip(axes[0], codes.items()):
        ax.scatter(*c.T, s=4, color=GREY, linewidths=0, label="cells")
        ax.scatter(
            *z.T,
            s=4,
            color=show.COLORS[1],
            marker="^",
            linewidths=0,
            label="draws from Normal(0, 1)",
        )
        ax.set(title=f"{name}: latent space", xlabel="z 1", ylabel="z 2")
    v = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)[2][:2]
    axes[0, 2].scatter(
        *((train - train.mean(axis=0)) @ v.T).T, s=4, color=GREY, linewidths=0, label="cells"
    )
    for i, (name, y) in enumerate(draws.items()):
        axes[0, 2].scatter(
            *((y - train.mean(axis=0)) @ v.T).T,
            s=4,
            linewidths=0,
            label=f"{name} draws, decoded",
            color=show.COLORS[(5, 0)[i]],
            marker=show.MARKERS[2 * i],
        )
    axes[0, 2].set(title="decoded, seen by PCA", xlabel="PC 1", ylabel="PC 2")
    f.legend(
        handles=[*axes[0, 0].collections, *axes[0, 2].collections[1:]],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        markerscale=2,
        handletextpad=0.1,
    )
    show.save(
        f,
        options.out,
        "ae_vs_vae",
        "Codes of cells and draws from a standard normal, for an AE and a VAE: the AE's codes lie "
        "to one side of the draws, the VAE's around and among them, in groups with gaps between. "
        "Right: decoded, the AE's draws lie where no cells are, the VAE's among the cells, more of "
        "them between the groups than in them.",
    )


def decoded(model, z) -> np.ndarray:
    """The mean of what the decoder makes of codes z (n, 2)."""
    y = model.decode(z)
    y = getattr(y, "mean", y) if isinstance(model, VAE) else y
    return getattr(y, "data", y) if not isinstance(y, np.ndarray) else y

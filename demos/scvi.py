"""The main job: scVI on 3,005 cells of mouse cortex: held-out likelihood, clusters, a picture.

Figures 12 to 14 of the chapter. The cells of Zeisel et al. (2015) were sorted by hand into seven
types, which the model never sees. A fifth of the cells is held out; the rest trains a variational
autoencoder whose decoder is a zero-inflated negative binomial. Then k-means in the 30 latent
dimensions is compared with the seven types, beside the same on principal components of
log-normalised counts: the adjusted Rand index and the normalised mutual information ask whether the
clusters are the types (1 is perfect), the silhouette whether the types lie apart in the space (-1
to 1).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from demos import show
from models import SCVI
from models.clustering import adjusted_rand_index, kmeans, normalized_mutual_information, silhouette
from models.counts import log1p, normalize, read
from models.runs import write_cells
from models.tsne import tsne


def add_options(parser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=show.DATA / "cortex.npz",
        help="counts, any format that models.counts reads",
    )
    parser.add_argument("--likelihood", default="zinb", choices=["zinb", "nb", "poisson"])
    parser.add_argument(
        "--epochs",
        type=int,
        default=None,
        help="passes over the training cells (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0)


def run(options) -> None:
    counts = read(options.data)
    if options.quick:
        counts = counts[np.sort(np.random.default_rng(0).permutation(len(counts))[:600])]
    print(
        f"{options.data.name}: {counts.X.shape[0]} cells, {counts.X.shape[1]} genes, "
        f"{100 * counts.X.nnz / np.prod(counts.X.shape):.0f} % of the entries are not zero"
    )
    order = np.random.default_rng([options.seed, 1]).permutation(len(counts))
    test, train = np.sort(order[: len(order) // 5]), np.sort(order[len(order) // 5 :])

    model = SCVI(counts.X.shape[1], likelihood=options.likelihood, seed=options.seed)
    history = model.fit(counts[train], epochs=options.epochs or (15 if options.quick else None))
    print(
        f"trained on {len(train)} cells, {len(history)} epochs, {np.sum(history['seconds']):.0f} s"
    )
    print(
        f"held-out ELBO, {len(test)} cells: {model.elbo(counts[test], n_samples=5).mean():.1f} "
        "nats a cell"
    )
    n_samples = 50 if options.quick else 200
    value, error = model.log_likelihood(counts[test], n_samples=n_samples, return_error=True)
    print(
        f"held-out log p(x), importance-weighted, {n_samples} samples: {value.mean():.1f} nats a "
        "cell "
        f"(Monte Carlo error {np.sqrt(np.mean(error**2) / len(error)):.2f})"
    )

    z = model.latent(counts)
    labels = counts.obs.get("labels")
    if labels is not None:
        print_scores(
            {
                "scVI latent space": z,
                "PCA, log-normalised": principal_components(counts.X, z.shape[1]),
            },
            labels,
        )
    draw(z, labels, options)
    history.plot(options.out / "scvi_training.png")
    (options.out / "scvi_training.caption").write_text(
        "Loss and validation ELBO (with its two terms) by epoch.\n"
    )
    columns = [f"z{i}" for i in range(z.shape[1])]
    write_cells(options.out / "scvi_latent.csv", counts, "obsm", "X_scVI", z, columns)
    model.save(options.out / "scvi_model.npz")


def principal_components(x, n: int) -> np.ndarray:
    """The first n principal components of log-normalised counts, (n_cells, n)."""
    x = log1p(normalize(x)).toarray()
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return u[:, :n] * s[:n]


def print_scores(spaces: dict, labels) -> None:
    """A line for each space: how k-means and the annotated types agree."""
    k = len(set(labels))
    print(
        f"\nk-means, k = {k}, against the annotated "
        f"types:\n{'':<24}{'ARI':>6}{'NMI':>7}{'silhouette of the types':>26}"
    )
    for name, z in spaces.items():
        clusters = kmeans(z, k, seed=0)
        print(
            f"{name:<24}{adjusted_rand_index(labels, clusters):>6.2f}"
            f"{normalized_mutual_information(labels, clusters):>7.2f}{silhouette(z, labels):>26.2f}"
        )
    print()


def draw(z: np.ndarray, labels, options) -> None:
    """The latent space in the plane, by t-SNE of at most 1,000 cells."""
    rows = np.sort(np.random.default_rng(0).permutation(len(z))[: 300 if options.quick else 1000])
    y = tsne(z[rows], n_steps=100 if options.quick else 400)
    f, axes = show.figure(width=6.5, height=5)
    shown = ["cell"] * len(rows) if labels is None else labels[rows]
    drawn = show.scatter(axes[0, 0], y, shown, size=12)
    axes[0, 0].set(title="scVI latent space", xlabel="t-SNE 1", ylabel="t-SNE 2")
    if labels is not None:
        show.legend(
            f,
            drawn,
            loc="outside right upper",
            fontsize=9,
            markerscale=1.8,
            frameon=False,
        )
    show.save(
        f,
        options.out,
        "scvi",
        f"{len(rows)} of the cells in scVI's latent space, placed by t-SNE; "
        "colours are annotated cell types, which the model has not seen.",
    )

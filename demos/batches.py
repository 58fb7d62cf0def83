"""Batch correction: a simulated effect over real cells, apart before, mixed after, types kept.

None of the shipped data has real batches, so the effect is simulated, and simply: the cells are
split in two at random, and each half is "measured again" with an efficiency of its own for each
gene (counts are thinned binomially by a factor between 0.15 and 1, so they stay counts). A model
that knows nothing of batches must put the difference into its latent space. One whose decoder is
told each cell's batch need not: what the decoder can explain by the batch, z is free to forget.

The scores are those of the scIB benchmark (models/integration.py says what each counts): all lie
between 0 and 1, and 1 is best. The first four ask whether batches mix, the last three whether cell
types stay apart, and an integration is good where neither is bought with the other.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from demos import show
from demos.scvi import principal_components
from models import SCVI, integration
from models.counts import read
from models.tsne import tsne

SCORES = {
    "ilisi": "iLISI",
    "kbet": "kBET",
    "batch_silhouette": "silhouette of batches",
    "pcr_comparison": "PCR comparison",
    "clisi": "cLISI",
    "label_silhouette": "silhouette of types",
    "graph_connectivity": "graph connectivity",
}


def with_batch_effect(x, seed: int = 0):
    """(counts, batch labels): cells split in two by lot, each half thinned at rates of its own.

    There is a rate for each half and each gene.
    """
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.arange(x.shape[0]) % 2)
    rates = rng.uniform(0.15, 1.0, (2, x.shape[1]))
    dense = x.toarray().astype(np.int64)
    return sparse.csr_matrix(rng.binomial(dense, rates[batch]).astype(np.float32)), np.array(
        ["first", "second"]
    )[batch]


def print_scores(spaces, batch, types) -> None:
    """A line for each score, a column for each latent space; PCA is the space before."""
    found = {name: integration.scores(z, batch, types, spaces["PCA"]) for name, z in spaces.items()}
    print(f"{'':<24}" + "".join(f"{name:>22}" for name in found))
    for score, title in SCORES.items():
        print(f"{title:<24}" + "".join(f"{of[score]:>22.2f}" for of in found.values()))


def run(options) -> None:
    counts = read(show.DATA / "cortex.npz")
    rows = np.sort(
        np.random.default_rng(0).permutation(len(counts))[: 400 if options.quick else 1200]
    )
    x, batch = with_batch_effect(counts.X[rows])
    types, epochs = counts.obs["labels"][rows], 10 if options.quick else 50
    spaces = {"PCA": principal_components(x, 30)}
    for name, n_batches in (("scVI, blind", 1), ("scVI, told the batch", 2)):
        model = SCVI(x.shape[1], n_batches=n_batches, likelihood="nb")
        model.fit(x, batch if n_batches > 1 else None, epochs=epochs)
        spaces[name] = model.latent(x, batch if n_batches > 1 else None)
    print_scores(spaces, batch, types)
    f, axes = show.figure(2, 3, width=3.2, height=3.0)
    shown = np.random.default_rng(1).permutation(len(types))[:800]
    for column, (name, z) in enumerate(spaces.items()):
        y = tsne(z[shown], n_steps=100 if options.quick else 300)
        batches_drawn = show.scatter(axes[0, column], y, batch[shown])
        types_drawn = show.scatter(axes[1, column], y, types[shown])
        axes[0, column].set_title(name)
    axes[0, 0].set_ylabel("by batch (simulated)")
    axes[1, 0].set_ylabel("by cell type (annotated)")
    for place, drawn in zip(axes[:, -1], (batches_drawn, types_drawn)):
        show.legend(
            place,
            drawn,
            fontsize=9,
            markerscale=2,
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
    show.save(
        f,
        options.out,
        "batches",
        "t-SNE of three latent spaces. PCA and a model blind to batches keep the two "
        "(simulated) batches apart; a model whose decoder is told the batch mixes them, and the "
        "cell types stay apart.",
    )

"""t-SNE on the engine: a picture of many dimensions, by gradient descent on a loss of four lines.

t-SNE (van der Maaten & Hinton 2008) places a point in the plane for every cell, so that pairs that
are near in the many dimensions are near in the plane. Nearness p_ij in many dimensions is a
Gaussian whose width differs by cell, chosen so that each has about `perplexity` neighbours.
Nearness q_ij in the plane has the heavier tail of a Student t distribution, which lets groups drift
apart. The points move down the gradient of KL(p || q), which the engine finds by itself: the
published gradient formula appears nowhere below. (models/tsne.py has it, for the pictures of
reports, and the widths.) All pairs are compared, so it is for at most a thousand cells or so.
"""

from __future__ import annotations

import numpy as np

from demos import show
from minigrad import Tensor, optim
from models.counts import log1p, normalize, read
from models.tsne import nearness


def loss(y: Tensor, p: np.ndarray) -> Tensor:
    """KL(p || q) without the entropy of p, which is constant.

    q_ij is 1 / (1 + |y_i - y_j|^2), made to sum to 1.
    """
    squared = np.sum(np.square(y), axis=1, keepdims=True)
    kernel = np.clip(squared + squared.T - 2.0 * y @ y.T, 0.0, None) + 1.0
    return np.sum(p * np.log(kernel)) + np.log(np.sum(1.0 / kernel) - len(p))


def tsne(x: np.ndarray, perplexity: float = 30.0, n_steps: int = 400, seed: int = 0) -> np.ndarray:
    """Points (n, 2) for the rows of x (n, features).

    Starts at the first two principal components.
    """
    x = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    y = Tensor(
        (1e-2 * u[:, :2] * s[:2] / (u[:, 0] * s[0]).std()).astype(np.float32), requires_grad=True
    )
    p = nearness(x, min(perplexity, (len(x) - 1) / 3))
    optimizer = optim.SGD([y], learning_rate=max(len(x) / 12, 10.0), momentum=0.5)
    for step in range(n_steps):
        early = step < n_steps // 4
        optimizer.momentum = 0.5 if early else 0.8
        optimizer.zero_grad()
        loss(y, p * 12.0 if early else p).backward()  # early exaggeration gathers the groups first
        optimizer.step()
    return y.numpy().copy()


def run(options) -> None:
    counts = read(show.DATA / "pbmc68k.npz")
    n_cells = 200 if options.quick else 700
    rows = np.sort(np.random.default_rng(0).permutation(len(counts))[:n_cells])
    x, labels = log1p(normalize(counts.X[rows])).toarray(), counts.obs["labels"][rows]
    x = x - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    components = u[:, :20] * s[:20]
    y = tsne(components, n_steps=100 if options.quick else 500)
    p = nearness(components, 30.0)
    positive = p[p > 0]
    kl = loss(Tensor(y), p).item() + float(np.sum(positive * np.log(positive)))
    kl_pca = loss(
        Tensor((components[:, :2] / components[:, 0].std()).astype(np.float32)), p
    ).item() + float(np.sum(positive * np.log(positive)))
    print(
        f"KL(p || q): {kl_pca:.2f} nats for the first two principal components, {kl:.2f} after "
        "t-SNE"
    )
    f, axes = show.figure(1, 2, width=4.6, height=4.4)
    show.scatter(axes[0, 0], components[:, :2], labels)
    drawn = show.scatter(axes[0, 1], y, labels)
    axes[0, 0].set(title="two principal components", xlabel="PC 1", ylabel="PC 2")
    axes[0, 1].set(title="t-SNE of 20 components", xlabel="t-SNE 1", ylabel="t-SNE 2")
    show.legend(
        f,
        drawn,
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        markerscale=2,
        frameon=False,
    )
    show.save(
        f,
        options.out,
        "tsne",
        f"{n_cells} blood cells (Zheng et al. 2017), coloured by annotated type: the first two "
        "principal components overlap, t-SNE of the first 20 separates most of the groups, though "
        "not all kinds of T cells.",
    )

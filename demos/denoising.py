"""Overcomplete autoencoders: the identity problem, and denoising as the way out.

The chapter's "Undercomplete and overcomplete autoencoders". A code that is larger than the data can
carry everything, noise included: the best an overcomplete autoencoder can do with noisy data is to
copy them, and it nearly does. Asked for the *clean* curve behind a noisy one, copying no longer
pays: it must learn what curves look like.
"""

from __future__ import annotations

import numpy as np

from demos import show
from models import Autoencoder

N, SIGMA = 40, 0.4


def waves(n: int, seed: int) -> np.ndarray:
    """n smooth curves (n, 40): two sines of random frequency, phase and height."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, N)
    frequency, phase = rng.uniform(1, 3, (2, n, 1)), rng.uniform(0, 2 * np.pi, (2, n, 1))
    height = rng.uniform(0.4, 1, (2, n, 1))
    return np.sum(height * np.sin(2 * np.pi * frequency * t + phase), axis=0).astype(np.float32)


def run(options) -> None:
    train, clean = waves(800 if options.quick else 6000, 0), waves(1000, 1)
    noisy = clean + np.random.default_rng(2).normal(0, SIGMA, clean.shape).astype(np.float32)
    models = {}
    print(
        "squared error per entry against the clean curves; the noisy input itself: "
        f"{np.mean((noisy - clean) ** 2):.4f}"
    )
    for name, noise in (("plain", 0.0), ("denoising", SIGMA)):
        models[name] = Autoencoder(N, hidden=(128,), n_latent=2 * N, noise=noise)
        seen = (
            train
            if noise
            else train + np.random.default_rng(3).normal(0, SIGMA, train.shape).astype(np.float32)
        )
        models[name].fit(seen, epochs=5 if options.quick else 60)
        y = models[name].reconstruct(noisy)
        kept = np.corrcoef((noisy - y).ravel(), (noisy - clean).ravel())[0, 1]
        print(
            f"{name:<10} trained on {'noisy -> same' if noise == 0 else 'noisy -> clean'}: "
            f"{np.mean((y - clean) ** 2):.4f}; "
            f"correlation of what it changed with the noise: {kept:.2f}"
        )
    f, axes = show.figure(1, 3, width=3.2, height=2.8)
    for ax, i in zip(axes[0], range(3)):
        ax.plot(noisy[i], ".", color="#999999", markersize=4, label="noisy input")
        ax.plot(clean[i], color="black", linewidth=1, label="clean")
        for (name, model), color, style in zip(models.items(), show.COLORS[1::-1], ("--", "-")):
            ax.plot(model.reconstruct(noisy[i : i + 1])[0], style, color=color, label=name)
        ax.set(xlabel="position")
    axes[0, 0].set_ylabel("value")
    f.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
    )
    show.save(
        f,
        options.out,
        "denoising",
        f"Three new curves. Both autoencoders have a code of {2 * N} numbers for {N} inputs: "
        "the plain one copies the noise, the one that was trained on noisy inputs removes most of "
        "it.",
    )

"""Learning as communication: error against the size of the channel, autoencoder beside PCA.

The chapter's sections on communication and on the bottleneck (Figures 2, 3 and 5). The code z is a
channel between encoder and decoder. How wide must it be? The data here lie on a curved surface of 3
dimensions in a space of 50, with noise. A channel of fewer than 3 numbers cannot carry them; from 3
on, what remains is the noise. PCA, the best *linear* code, needs more: it cannot follow the
curvature.
"""

from __future__ import annotations

import numpy as np

from demos import show
from models import Autoencoder

NOISE = 0.05


def curved(n: int, seed: int = 0) -> np.ndarray:
    """n points (n, 50) of a smooth surface of 3 dimensions, plus noise of deviation NOISE."""
    rng = np.random.default_rng(7)
    directions, phases, amplitudes = (
        rng.normal(0, 0.9, (3, 50)),
        rng.uniform(0, 2 * np.pi, 50),
        rng.uniform(0.5, 1.0, 50),
    )
    rng = np.random.default_rng(seed)
    surface = amplitudes * np.sin(rng.uniform(-1, 1, (n, 3)) @ directions + phases)
    return (surface + rng.normal(0, NOISE, surface.shape)).astype(np.float32)


def pca_error(train, test, n: int) -> float:
    """Mean squared error per entry of test rows, projected on n components of the training rows."""
    mean = train.mean(axis=0)
    v = np.linalg.svd(train - mean, full_matrices=False)[2][:n]
    return float(np.mean((test - mean - (test - mean) @ v.T @ v) ** 2))


def run(options) -> None:
    train, test = curved(600 if options.quick else 4000), curved(1000, seed=1)
    widths = (1, 2, 3, 4) if options.quick else (1, 2, 3, 4, 6, 8, 12)
    errors, linear = [], [pca_error(train, test, n) for n in widths]
    print(
        f"{'width of the channel':>20}{'autoencoder':>14}{'PCA':>10}   (error per entry; the noise "
        f"alone: {NOISE**2:.4f})"
    )
    for n, of_pca in zip(widths, linear):
        model = Autoencoder(50, hidden=(128, 64), n_latent=n)
        model.fit(train, epochs=10 if options.quick else 60, learning_rate=3e-3)
        errors.append(float(np.mean((model.reconstruct(test) - test) ** 2)))
        print(f"{n:>20}{errors[-1]:>14.4f}{of_pca:>10.4f}")
    f, axes = show.figure(width=5.2)
    ax = axes[0, 0]
    ax.plot(widths, linear, "s--", color=show.COLORS[1], label="PCA")
    ax.plot(widths, errors, "o-", color=show.COLORS[0], label="autoencoder 50-128-64-n")
    ax.axhline(NOISE**2, color="#555555", linewidth=1, linestyle=":", label="variance of the noise")
    ax.axvline(3, color="#bbbbbb", linewidth=1)
    ax.set(
        xlabel="width of the channel, n", ylabel="squared error per entry, new data", yscale="log"
    )
    ax.legend(frameon=False)
    show.save(
        f,
        options.out,
        "bottleneck",
        "Error on new data against the width of the bottleneck. The data have 3 dimensions "
        "(grey line) and noise (dotted): the autoencoder's error drops to about the noise at 3, "
        "PCA's only slowly.",
    )

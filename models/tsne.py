"""t-SNE of some thousand cells, in seconds: many dimensions as a picture.

This is engineering.

Know before reading: demos/tsne.py, the lesson, which says what t-SNE is and lets the engine find
its gradient. Here is the gradient as its authors published it, in a few passes over all pairs:

    >>> import numpy as np
    >>> z = np.random.default_rng(0).normal(size=(60, 10)) + 8 * (np.arange(60) < 30)[:, None]
    >>> y = tsne(z)
    >>> y.shape
    (60, 2)

All pairs are compared, so time and memory grow with the square of the number of cells.

Know after: what a t-SNE costs, and why a random subset of the cells will do for a picture.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend import Array
from models.clustering import checked_points

EXAGGERATION = 12.0  # times p, in the first quarter of the steps: gathers the groups
N_BISECTIONS = 60
N_ROWS = 128  # of all pairs, in one go
NO_NEIGHBOUR = 1e-20  # a smaller p is taken for 0: denormal products make processors slow


def nearness(x: np.ndarray, perplexity: float) -> np.ndarray:
    """p_ij of the rows of x (n, features): (n, n) float32, symmetric, summing to 1.

        p_j|i = exp(-precision_i |x_i - x_j|²) / sum of these over j,    p_ij = (p_j|i + p_i|j) / 2n

    The precision of a row is that with which its entropy is log(perplexity), found by bisection.
    """
    squared = np.sum(x * x, axis=1)
    d = np.maximum(squared[:, None] + squared - 2.0 * x @ x.T, 0.0)  # |x_i - x_j|²
    np.fill_diagonal(d, np.inf)
    d -= d.min(axis=1, keepdims=True)  # p_j|i is the same, and its sum cannot become 0
    low = np.full(len(x), 1e-10)
    high = np.full(len(x), 1e10)
    for _ in range(N_BISECTIONS):
        precision = np.sqrt(low * high)  # the middle of their logarithms
        p = np.exp(-d * precision[:, None])
        p /= p.sum(axis=1, keepdims=True)
        entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)
        is_wide = entropy > np.log(perplexity)
        low = np.where(is_wide, precision, low)
        high = np.where(is_wide, high, precision)
    p = (p + p.T) / (2 * len(x))
    p[p < NO_NEIGHBOUR] = 0.0
    return p.astype(np.float32)


def gradient(y: np.ndarray, p: np.ndarray, exaggeration: float = 1.0) -> np.ndarray:
    """The gradient of KL(p || q) by the points y (n, 2): (n, 2). p: (n, n), symmetric.

        w_ij = 1 / (1 + |y_i - y_j|²),    q_ij = w_ij / sum of all w
        gradient_i = 4 sum_j (p_ij - q_ij) w_ij (y_i - y_j)

    This is equation 5 of van der Maaten & Hinton (2008). The sum of p_ij w_ij (y_i - y_j) is called
    attraction here, and the rest repulsion. exaggeration: what p is multiplied by. Rows are taken a
    few at a time, so that their pairs fit into the processor's cache.
    """
    squared_and_1 = np.sum(y * y, axis=1) + np.asarray(1.0, y.dtype)
    attraction = np.empty_like(y)
    repulsion = np.empty_like(y)
    total = 0.0
    for first in range(0, len(y), N_ROWS):
        rows = slice(first, first + N_ROWS)
        w = (-2.0 * y[rows]) @ y.T
        w += squared_and_1[rows, None]
        w += squared_and_1 - 1.0
        np.maximum(w, 1.0, out=w)  # 1 + |y_i - y_j|², but for rounding
        np.reciprocal(w, out=w)
        total += float(w.sum()) - len(w)  # a point and itself, for which w is 1, are no pair
        pull = p[rows] * w
        attraction[rows] = pull.sum(axis=1, keepdims=True) * y[rows] - pull @ y
        w *= w  # q_ij w_ij is w_ij² / total
        repulsion[rows] = w.sum(axis=1, keepdims=True) * y[rows] - w @ y
    return 4.0 * (exaggeration * attraction - repulsion / total)


def tsne(x: Array, perplexity: float = 30.0, n_steps: int = 400) -> np.ndarray:
    """Points (n, 2) float32 for the rows of x (n, features), which are real and finite.

    perplexity: how many neighbours a row has, about; a third of the others where that is less.
    Starts at the first two principal components, so nothing is drawn at random; fewer than three
    rows stay there. ValueError, TypeError for an unusable x. With gains, as the authors' program
    has them, 400 steps come as near to the minimum as a thousand without.
    """
    x = checked_points("tsne", x, "x").astype(np.float64)
    x = x - x.mean(axis=0)
    y = _start(x)
    if len(x) < 3:
        return y
    p = nearness(x, min(perplexity, (len(x) - 1) / 3))
    n_early = n_steps // 4
    learning_rate = max(len(x) / EXAGGERATION, 10.0)
    velocity = np.zeros_like(y)
    gain = np.ones_like(y)  # of each coordinate: more where it keeps its direction (Jacobs 1988)
    for step in range(n_steps):
        is_early = step < n_early
        slope = gradient(y, p, EXAGGERATION if is_early else 1.0)
        gain = np.where(slope * velocity < 0, gain + 0.2, np.maximum(0.8 * gain, 0.01))
        velocity *= 0.5 if is_early else 0.8
        velocity -= learning_rate * gain * slope
        y += velocity
    return y - y.mean(axis=0)


def _start(x: np.ndarray) -> np.ndarray:
    """The first two principal components of centred x, the first with a deviation of 0.01."""
    y = np.zeros((len(x), 2), np.float32)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    deviation = (u[:, 0] * s[0]).std()
    if deviation > 0:
        components = u[:, :2] * s[:2]
        y[:, : components.shape[1]] = 1e-2 / deviation * components
    return y

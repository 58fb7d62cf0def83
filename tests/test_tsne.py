"""models/tsne.py: the gradient is the engine's, and the picture keeps neighbours."""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.stats import entropy

from demos.tsne import loss
from demos.tsne import tsne as lesson
from minigrad import Tensor
from models.tsne import N_ROWS, gradient, nearness, tsne


@pytest.mark.parametrize("n", [5, N_ROWS + 3])
def test_the_gradient_is_that_which_the_engine_finds(n):
    rng = np.random.default_rng(0)
    p = nearness(rng.normal(size=(n, 4)), 1.5).astype(np.float64)
    p /= p.sum()
    y = Tensor(rng.normal(size=(n, 2)), requires_grad=True)
    loss(y, p).backward()
    np.testing.assert_allclose(gradient(y.data, p), y.grad, rtol=1e-6, atol=1e-9)


def test_exaggeration_is_of_p():
    rng = np.random.default_rng(0)
    p = nearness(rng.normal(size=(20, 4)), 5.0).astype(np.float64)
    y = rng.normal(size=(20, 2))
    np.testing.assert_allclose(gradient(y, p, 12.0), gradient(y, 12.0 * p), rtol=1e-10)


def test_each_row_has_the_perplexity_that_is_asked_for():
    """Before the matrix is made symmetric; so of points of which none differs from another, on a
    ring."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    p = nearness(np.column_stack([np.cos(angle), np.sin(angle)]), 7.0).astype(np.float64)
    np.testing.assert_allclose(p, p.T)
    assert p.sum() == pytest.approx(1.0, abs=1e-5) and not np.any(np.diag(p))
    np.testing.assert_allclose(np.exp(entropy(p, axis=1)), 7.0, rtol=1e-3)


def test_the_points_come_as_near_to_the_minimum_as_a_long_descent_of_the_lesson():
    """By KL(p || q); the lesson's descent has no gains, and takes more steps to come there."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    x[:, 0] += 6.0 * (np.arange(80) % 4)
    p = nearness(x - x.mean(axis=0), 79 / 3).astype(np.float64)
    ours, short, long = [
        loss(Tensor(y.astype(np.float64)), p).item()
        for y in (tsne(x, n_steps=150), lesson(x, n_steps=150), lesson(x, n_steps=1000))
    ]
    assert ours < long + 0.02 and ours < short


def test_groups_stay_apart_and_neighbours_together():
    """Three groups on a line of 8 dimensions more: nearest neighbours in the plane are mostly of
    the same group, of which two principal components know one only by chance."""
    rng = np.random.default_rng(0)
    group = np.arange(150) % 3
    x = rng.normal(size=(150, 9))
    x[:, 5] += 12.0 * group
    y = tsne(x, n_steps=200)
    assert y.shape == (150, 2) and y.dtype == np.float32
    _, nearest = cKDTree(y).query(y, 6)
    assert np.mean(group[nearest[:, 1:]] == group[:, None]) > 0.98
    np.testing.assert_array_equal(y, tsne(x, n_steps=200))


@pytest.mark.parametrize(
    "x",
    [
        np.ones((1, 3)),
        np.ones((2, 3)),
        np.arange(3.0)[:, None],
        np.ones((30, 3)),
        np.repeat(np.eye(2), 10, axis=0),
        np.arange(20.0)[:, None] ** 4,
        1e9 * np.eye(12),
    ],
)
def test_odd_inputs_give_finite_points(x):
    y = tsne(x, n_steps=60)
    assert y.shape == (len(x), 2) and np.isfinite(y).all()


@pytest.mark.parametrize("bad", [np.full((3, 2), np.nan), np.ones(3), np.ones((0, 2))])
def test_unusable_points_are_refused(bad):
    with pytest.raises(ValueError, match="tsne: x"):
        tsne(bad)

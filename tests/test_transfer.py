"""models/transfer.py against a loop over cells, closed forms, and simulated types."""

import math

import numpy as np
import pytest

from models import transfer_labels


def loop_transfer(reference, labels, query, k):
    """Equations of Lotfollahi et al. 2022, one query cell at a time, in plain Python."""
    found = []
    for cell in query:
        near = sorted((math.dist(cell, row), label) for row, label in zip(reference, labels))[:k]
        mean = sum(d for d, _ in near) / k
        s = math.sqrt(sum((d - mean) ** 2 for d, _ in near) / k)
        votes = {}
        for d, label in near:
            votes[label] = votes.get(label, 0) + math.exp(-d / (2 / s) ** 2)
        best = max(votes, key=votes.get)
        found.append((best, 1 - votes[best] / sum(votes.values())))
    return found


def test_labels_and_uncertainty_are_the_papers_equations():
    rng = np.random.default_rng(0)
    reference = 3 * rng.standard_normal((80, 3))
    labels = rng.choice(["B", "NK", "T"], 80)
    query = 3 * rng.standard_normal((25, 3))
    found = transfer_labels(reference, labels, query, n_neighbors=9)
    by_hand = loop_transfer(reference.tolist(), labels.tolist(), query.tolist(), 9)
    assert found.labels.tolist() == [label for label, _ in by_hand]
    np.testing.assert_allclose(found.uncertainty, [u for _, u in by_hand], atol=1e-12)
    assert found.uncertainty.min() < 0.4 < found.uncertainty.max()


def test_weights_fall_with_distance_as_the_equation_says():
    """Distances 1 and 7: s = 3, so that the weights are e^(-9/4) and e^(-63/4)."""
    labels, uncertainty = transfer_labels([[1.0], [-7.0]], ["near", "far"], [[0.0]], n_neighbors=2)
    assert labels.tolist() == ["near"]
    assert uncertainty[0] == pytest.approx(1 / (1 + math.exp(6 * 9 / 4)), rel=1e-9)


def test_equal_distances_vote_alike():
    labels, uncertainty = transfer_labels(np.eye(5), list("aabbb"), np.zeros((2, 5)), n_neighbors=5)
    assert labels.tolist() == ["b", "b"]
    np.testing.assert_allclose(uncertainty, 0.4, rtol=1e-12)
    labels, uncertainty = transfer_labels(np.eye(4), list("bbaa"), np.zeros((1, 4)), n_neighbors=4)
    assert labels.tolist() == ["a"]  # of equal votes the first in sorted order
    assert uncertainty[0] == pytest.approx(0.5)


def test_types_far_apart_are_found_without_uncertainty():
    rng = np.random.default_rng(1)
    centres = 20 * np.eye(4)
    types = rng.integers(0, 4, 400)
    z = centres[types] + rng.standard_normal((400, 4))
    labels, uncertainty = transfer_labels(z[:300], types[:300], z[300:])
    assert np.array_equal(labels, types[300:])
    assert labels.dtype == types.dtype
    assert np.array_equal(uncertainty, np.zeros(100))


def test_types_mixed_at_random_are_as_uncertain_as_their_frequencies_say():
    """Of two equally frequent labels among 15 votes the larger share is about 0.6 (the mean of a binomial's larger half)."""
    rng = np.random.default_rng(2)
    z = 1e-3 * rng.standard_normal((2000, 3))  # tight: all votes count alike
    labels = rng.choice(["x", "y"], 2000)
    _, uncertainty = transfer_labels(z, labels, 1e-3 * rng.standard_normal((500, 3)))
    larger = sum(math.comb(15, k) * max(k, 15 - k) for k in range(16)) / 2**15 / 15
    assert uncertainty.mean() == pytest.approx(1 - larger, abs=0.02)


def test_one_neighbour_is_the_nearest_cell():
    z = np.arange(10.0)[:, None]
    labels, uncertainty = transfer_labels(z, np.arange(10) * 10, z + 0.2, n_neighbors=1)
    assert labels.tolist() == (np.arange(10) * 10).tolist()
    assert not uncertainty.any()


def test_far_cells_do_not_lose_all_weights():
    """e^(-d s²/4) is 0 in floating point for each of these, but not their ratios."""
    z = [[0.0], [1.0], [9000.0]]
    labels, uncertainty = transfer_labels(z, ["a", "a", "b"], [[-5000.0]], n_neighbors=3)
    assert labels.tolist() == ["a"]
    assert uncertainty[0] == 0
    far = transfer_labels([[0.0], [1e149]], ["a", "b"], [[-1e149]], n_neighbors=2)
    assert far.labels.tolist() == ["a"]


def test_blocks_of_rows_change_nothing(monkeypatch):
    from models import clustering

    rng = np.random.default_rng(3)
    z, labels = rng.standard_normal((120, 2)), rng.integers(0, 3, 120)
    query = rng.standard_normal((50, 2))
    whole = transfer_labels(z, labels, query)
    monkeypatch.setattr(clustering, "BLOCK", 60)
    in_blocks = transfer_labels(z, labels, query)
    assert np.array_equal(in_blocks.labels, whole.labels)
    assert np.array_equal(in_blocks.uncertainty, whole.uncertainty)


Z = np.random.default_rng(4).standard_normal((20, 3))
NAN = np.where(Z == Z[7, 1], np.nan, Z)
LABELS = ["a", "b"] * 10


@pytest.mark.parametrize(
    "reference_z, labels, query_z, n_neighbors, words",
    [
        (Z[:0], [], Z, 15, "reference_z of shape .* is empty"),
        (Z, LABELS, Z[:0], 15, "query_z of shape .* is empty"),
        (NAN, LABELS, Z, 15, "reference_z has NaN or infinity in 1 of 20 rows, first in row 7"),
        (Z, LABELS, NAN, 15, "query_z has NaN or infinity in 1 of 20 rows, first in row 7"),
        (Z, LABELS, Z[:, :2], 15, "query_z has 2 dimensions, but reference_z 3"),
        (Z, LABELS, Z[0], 15, r"query_z must be \(n cells, d features\)"),
        (Z, LABELS[:-1], Z, 15, "labels has 19 labels, but reference_z has 20 cells"),
        (Z, [None, *LABELS[1:]], Z, 15, "labels is missing"),
        (Z, LABELS, Z, 21, "n_neighbors = 21 is more than the cells in reference_z, 20"),
        (Z[:1], ["a"], Z, 15, "n_neighbors = 15 is more than the cells in reference_z, 1"),
        (Z, LABELS, Z, 0, "n_neighbors must be a whole number of at least 1, not 0"),
        (Z, LABELS, Z, 2.5, "n_neighbors must be a whole number"),
    ],
)
def test_bad_input_is_refused_by_name(reference_z, labels, query_z, n_neighbors, words):
    with pytest.raises((ValueError, TypeError), match=f"^transfer_labels: .*{words}"):
        transfer_labels(reference_z, labels, query_z, n_neighbors)

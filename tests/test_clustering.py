"""models/clustering.py against brute force: every partition, every pair, every distance, in plain loops.

The loops here share no formula with the module: pairs are counted one by one, entropies come from dictionaries, means
and distances from definitions. Where scikit-learn is installed the same numbers are compared with its own.
"""

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import clustering
from models.clustering import (
    adjusted_rand_index,
    batch_mixing,
    centres,
    inertia,
    kmeans,
    normalized_mutual_information,
    silhouette,
)

quick = settings(max_examples=60, deadline=None)


# ------------------------------------------------------------------------------------------------ brute force


def pair_counting_ari(a, b):
    """Hubert and Arabie's index from the four kinds of pairs of cells (Steinley 2004, equation 5)."""
    both = only_a = only_b = neither = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        in_a, in_b = a[i] == a[j], b[i] == b[j]
        both += in_a and in_b
        only_a += in_a and not in_b
        only_b += in_b and not in_a
        neither += not in_a and not in_b
    if only_a == only_b == 0:  # the same partition
        return 1.0
    bottom = (both + only_a) * (only_a + neither) + (both + only_b) * (only_b + neither)
    return 2 * (both * neither - only_a * only_b) / bottom


def entropy(labels):
    return -sum(m / len(labels) * math.log(m / len(labels)) for m in Counter(labels).values())


def loop_nmi(a, b):
    """I = H(a) + H(b) - H(a, b) over the mean of the entropies."""
    h_a, h_b, h_ab = entropy(a), entropy(b), entropy(list(zip(a, b)))
    return 1.0 if h_a + h_b == 0 else 2 * (h_a + h_b - h_ab) / (h_a + h_b)


def loop_silhouette(z, labels):
    scores = []
    for i, own in enumerate(labels):
        to = {}
        for j, other in enumerate(labels):
            if i != j:
                to.setdefault(other, []).append(math.dist(z[i], z[j]))
        if own not in to:
            scores.append(0.0)
            continue
        a = sum(to[own]) / len(to[own])
        b = min(sum(d) / len(d) for group, d in to.items() if group != own)
        scores.append(0.0 if max(a, b) == 0 else (b - a) / max(a, b))
    return sum(scores) / len(scores)


def loop_batch_mixing(z, batch, n_neighbors):
    entropies = []
    for i in range(len(z)):
        others = sorted((j for j in range(len(z)) if j != i), key=lambda j: math.dist(z[i], z[j]))
        entropies.append(entropy([batch[j] for j in others[:n_neighbors]]))
    return sum(entropies) / len(entropies)


def loop_inertia(z, labels):
    total = 0.0
    for group in set(labels):
        rows = [z[i] for i in range(len(z)) if labels[i] == group]
        mean = [math.fsum(column) / len(rows) for column in zip(*rows)]
        total += sum(math.dist(row, mean) ** 2 for row in rows)
    return total


def best_of_all_partitions(z, k):
    n = len(z)
    return min(
        loop_inertia(z, (0, *rest))
        for rest in itertools.product(range(k), repeat=n - 1)
        if len({0, *rest}) == k
    )


# ------------------------------------------------------------------------------------------------ material


@st.composite
def two_labellings(draw):
    n = draw(st.integers(1, 30))
    one = st.lists(st.integers(0, draw(st.integers(0, n))), min_size=n, max_size=n)
    return draw(one), draw(one)


@st.composite
def labelled_points(draw, least=3):
    """Points on a small grid (so that equal rows occur) or anywhere, with at least two groups."""
    n, d = draw(st.integers(least, 25)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    z = (
        rng.integers(0, 3, (n, d)).astype(float)
        if draw(st.booleans())
        else rng.standard_normal((n, d))
    )
    labels = draw(
        st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(lambda x: len(set(x)) > 1)
    )
    return z, labels


def blobs(n=300, k=4, d=5, distance=30.0, seed=0):
    """Well separated groups: z, and which group each point is of."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    middles = distance * np.eye(k, d) * np.arange(1, k + 1)[:, None]
    return middles[truth] + rng.standard_normal((n, d)), truth


def same_groups(a, b):
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


# ------------------------------------------------------------------------------------------------ k-means


@pytest.mark.parametrize("k", [2, 3])
def test_kmeans_finds_the_best_of_all_partitions_of_few_points(k):
    """Not promised in general; but with 10 starts, each ended by single moves, it holds on all of these draws."""
    rng = np.random.default_rng(k)
    for _ in range(30):
        z = rng.standard_normal((rng.integers(k, 9 if k == 2 else 8), rng.integers(1, 4)))
        least = best_of_all_partitions(z.tolist(), k)
        found = loop_inertia(z.tolist(), kmeans(z, k).tolist())
        assert found == pytest.approx(least, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_recovers_separated_groups_from_one_start(seed):
    z, truth = blobs(k=5, seed=seed)
    assert same_groups(kmeans(z, 5, seed=seed, n_restarts=1), truth)


def test_kmeans_recovers_many_groups():
    z, truth = blobs(n=1000, k=25, d=25)
    assert same_groups(kmeans(z, 25), truth)


@quick
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_kmeans_ends_where_no_step_of_lloyd_changes_anything(seed, k):
    z = np.random.default_rng(seed).standard_normal((60, 2))
    labels = kmeans(z, k, n_restarts=1)
    means = [z[labels == j].mean(axis=0) for j in range(k)]
    for point, label in zip(z, labels):
        distances = [math.dist(point, mean) for mean in means]
        assert distances[label] <= min(distances) + 1e-9


@quick
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_kmeans_uses_every_label_and_numbers_by_size(seed, k, spread):
    """On a small grid many rows are equal and groups run empty on the way."""
    z = np.random.default_rng(seed).integers(0, spread, (20, 2))
    labels = kmeans(z, k, n_restarts=2)
    n_distinct = len(set(map(tuple, z.tolist())))
    assert labels.dtype == np.int64 and labels.shape == (20,)
    assert sorted(set(labels.tolist())) == list(range(min(k, n_distinct)))
    sizes = np.bincount(labels).tolist()
    assert sizes == sorted(sizes, reverse=True)
    if n_distinct <= k:
        assert inertia(z, labels) == 0


def test_groups_of_one_size_are_numbered_by_first_appearance():
    assert kmeans([[9.0], [0.0], [9.1], [0.1], [50.0], [50.1]], 3).tolist() == [0, 1, 0, 1, 2, 2]
    assert kmeans([[9.0], [0.0], [0.1]], 2).tolist() == [1, 0, 0]


def test_an_empty_group_takes_the_farthest_point_of_a_group_that_keeps_another():
    z = np.array([[0.0], [1.0], [2.0], [40.0]])
    labels = clustering._refill(
        z, np.array([0, 0, 0, 1]), np.array([[0.2], [10.0], [99.0], [98.0]])
    )
    assert labels.tolist() == [0, 3, 2, 1]  # 40 is farthest from its mean, but alone
    z = np.concatenate([np.zeros((50, 1)), np.arange(1.0, 4)[:, None]])
    from_bad_start = clustering._lloyd(z, np.array([[0.0], [77.0], [88.0], [99.0]]), 300)
    assert loop_inertia(z.tolist(), from_bad_start.tolist()) == 0


def test_one_point_moves_where_lloyd_is_stuck():
    """{0, 2} and {3.5}: 2 is nearer to its own mean 1 than to 3.5, but {0} and {2, 3.5} is tighter, 1.125 against 2."""
    z = np.array([[0.0], [2.0], [3.5]])
    assert same_groups(clustering._lloyd(z, np.array([[1.0], [3.5]]), 300), [0, 1, 1])
    labels = np.array([0, 1, 1])
    assert not clustering._move_one(z, labels, np.array([[0.0], [2.75]])) and labels.tolist() == [
        0,
        1,
        1,
    ]


def test_kmeans_one_seed_one_result_and_the_seed_matters():
    z = np.random.default_rng(0).standard_normal((200, 2))
    first = kmeans(z, 8, seed=3, n_restarts=1)
    assert np.array_equal(first, kmeans(z, 8, seed=3, n_restarts=1))
    assert any(
        not same_groups(first, kmeans(z, 8, seed=seed, n_restarts=1)) for seed in range(4, 8)
    )


def test_kmeans_more_restarts_are_never_worse():
    z = np.random.default_rng(1).standard_normal((150, 3))
    found = [inertia(z, kmeans(z, 9, n_restarts=r)) for r in range(1, 17)]
    assert (
        all(later <= earlier for earlier, later in zip(found, found[1:])) and found[-1] < found[0]
    )


def test_kmeans_starts_far_apart():
    """A row from each of 60 groups. Rows drawn without the few tries miss 2 to 5 of them, rows drawn evenly some 20."""
    rng = np.random.default_rng(0)
    truth = np.arange(600) % 60
    z = 25 * np.eye(60)[truth] + rng.standard_normal((600, 60)) / 2
    for seed in range(5):
        start = clustering._spread_out(z, 60, np.random.default_rng(seed))
        assert len({truth[(z == row).all(axis=1)].item() for row in start}) == 60


def test_kmeans_does_not_depend_on_the_order_or_the_place_or_the_type_of_points():
    z, truth = blobs(seed=2)
    order = np.random.default_rng(5).permutation(len(z))
    assert same_groups(kmeans(z[order], 4), truth[order])
    assert same_groups(kmeans(z + 1e10, 4), truth)
    assert same_groups(kmeans(z.astype(np.float32), 4), truth)
    assert same_groups(kmeans(np.round(z).astype(int).tolist(), 4), truth)
    copy = z.copy()
    kmeans(z, 4)
    assert np.array_equal(z, copy)


def test_kmeans_sees_small_groups_beside_a_far_point():
    z, truth = blobs(k=3)
    labels = kmeans(np.concatenate([z, np.full((1, 5), 1e12)]), 4, n_restarts=20)
    assert same_groups(labels, [*truth, 3])


def test_kmeans_gives_the_same_in_blocks_of_rows(monkeypatch):
    z = np.random.default_rng(3).standard_normal((101, 4))
    whole = kmeans(z, 6)
    monkeypatch.setattr(clustering, "BLOCK", 60)
    assert inertia(z, kmeans(z, 6)) == pytest.approx(
        inertia(z, whole), rel=0.02
    )  # single moves are left out
    means = centres(z, whole)
    in_blocks = clustering._nearest(z, means)
    assert in_blocks.tolist() == [
        min(range(6), key=lambda j: math.dist(row, means[j])) for row in z
    ]


def test_kmeans_ends():
    assert kmeans([[1.0, 2.0]], 1).tolist() == [0]
    assert kmeans([[5.0], [3.0], [4.0]], 3).tolist() == [0, 1, 2]
    assert set(kmeans(np.arange(6.0).reshape(6, 1), 1).tolist()) == {0}
    z = np.random.default_rng(0).standard_normal((500, 2))
    assert inertia(z, kmeans(z, 7, n_restarts=1, max_iter=1)) > inertia(
        z, kmeans(z, 7, n_restarts=1)
    )


@quick
@given(labelled_points())
def test_inertia_and_centres_are_their_definitions(case):
    z, labels = case
    assert inertia(z, labels) == pytest.approx(
        loop_inertia(z.tolist(), labels), rel=1e-12, abs=1e-12
    )
    names = [f"type {label}" for label in labels]
    for row, name in zip(centres(z, names), sorted(set(names)), strict=True):
        members = [z[i] for i in range(len(z)) if names[i] == name]
        np.testing.assert_allclose(row, sum(members) / len(members), atol=1e-12)


# ------------------------------------------------------------------------------------------------ ARI and NMI

SCORES = [(adjusted_rand_index, pair_counting_ari), (normalized_mutual_information, loop_nmi)]


@pytest.mark.parametrize("score, by_hand", SCORES)
@quick
@given(case=two_labellings())
def test_scores_equal_brute_force(score, by_hand, case):
    a, b = case
    found = score(a, b)
    assert isinstance(found, float)
    assert found == pytest.approx(by_hand(a, b), abs=1e-12)
    assert found == pytest.approx(score(b, a), abs=1e-15)
    assert found == pytest.approx(score([f"group {-x}" for x in a], np.array(b) * 7 - 3), abs=1e-12)


def test_ari_closed_cases():
    assert adjusted_rand_index([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(4 / 7, abs=1e-15)
    assert adjusted_rand_index([0, 0, 1, 1], [0, 1, 0, 1]) == -0.5
    assert adjusted_rand_index([0, 0, 0, 0], [0, 1, 2, 3]) == 0
    big = np.repeat([0, 1], 100_000)  # products of pairs of pairs exceed int64
    assert adjusted_rand_index(big, 1 - big) == 1.0
    assert adjusted_rand_index(big, np.tile([0, 1], 100_000)) == pytest.approx(0, abs=1e-5)


def test_nmi_closed_cases():
    assert normalized_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-15)
    # I = H(a) = log 2, H(b) = 1.5 log 2: arithmetic mean 1.25 log 2 (the geometric mean would give 0.816)
    assert normalized_mutual_information([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(
        0.8, abs=1e-15
    )
    assert normalized_mutual_information([0, 0, 0, 0], [0, 1, 2, 3]) == 0


@pytest.mark.parametrize("score", [adjusted_rand_index, normalized_mutual_information])
@pytest.mark.parametrize("a", [[0], ["x"] * 5, list("abcde"), list("aabbc"), list(range(997))])
def test_the_same_groups_score_one(score, a):
    assert score(a, [f"other {x}" for x in a]) == pytest.approx(1, abs=1e-14)


@quick
@given(two_labellings())
def test_nmi_stays_within_0_and_1(case):
    assert 0 <= normalized_mutual_information(*case) <= 1


def test_nmi_does_not_round_above_1():
    a = np.repeat(
        np.arange(17), np.arange(1, 18)
    )  # sizes 1 to 17: unclipped, the quotient is 1 + 2e-16
    assert normalized_mutual_information(a, a) <= 1


def test_ari_is_zero_on_average_for_random_labels():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 5, 60)
    found = [adjusted_rand_index(a, rng.permutation(a)) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20


# ------------------------------------------------------------------------------------------------ silhouette


@quick
@given(labelled_points())
def test_silhouette_equals_its_definition(case):
    z, labels = case
    assert silhouette(z, labels) == pytest.approx(loop_silhouette(z.tolist(), labels), abs=1e-12)
    assert silhouette(z, [f"type {x}" for x in labels]) == pytest.approx(
        silhouette(z, labels), abs=1e-12
    )


def test_silhouette_closed_cases():
    # two pairs: a = 1; b is the mean distance to the other pair
    points, labels = [[0.0], [1.0], [10.0], [11.0]], [0, 0, 1, 1]
    assert silhouette(points, labels) == pytest.approx((9.5 / 10.5 + 8.5 / 9.5) / 2, abs=1e-15)
    assert silhouette(points, [0, 1, 2, 3]) == 0  # all alone
    assert silhouette([[2.0]] * 4, labels) == 0  # all in one place
    assert silhouette([[0.0], [0.0], [5.0]], [0, 0, 1]) == pytest.approx(
        2 / 3
    )  # the one alone counts as 0
    assert silhouette(points, [0, 1, 0, 1]) < 0
    assert silhouette(np.array(points) + 1e6, labels) == pytest.approx(
        silhouette(points, labels), abs=1e-9
    )


def test_silhouette_gives_the_same_in_blocks_and_keeps_memory_small(monkeypatch):
    rng = np.random.default_rng(0)
    z, labels = rng.standard_normal((1500, 3)), rng.integers(0, 4, 1500)
    whole = silhouette(z, labels)
    monkeypatch.setattr(clustering, "BLOCK", 20_000)
    tracemalloc.start()
    in_blocks = silhouette(z, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert in_blocks == pytest.approx(whole, abs=1e-12)
    assert peak < 2e6  # all distances at once are 18 MB


# ------------------------------------------------------------------------------------------------ batch mixing


@quick
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4))
def test_batch_mixing_equals_brute_force(seed, n_neighbors, n_batches):
    rng = np.random.default_rng(seed)
    z, batch = rng.standard_normal((25, 2)), rng.integers(0, n_batches, 25)
    by_hand = loop_batch_mixing(z.tolist(), batch.tolist(), n_neighbors)
    assert batch_mixing(z, batch, n_neighbors, n_cells=None) == pytest.approx(by_hand, abs=1e-12)
    assert batch_mixing(z, [f"batch {b}" for b in batch], n_neighbors) == pytest.approx(
        by_hand, abs=1e-12
    )


def test_batch_mixing_closed_cases():
    z = np.arange(60.0)[:, None]
    assert batch_mixing(z, np.arange(60) % 2, n_neighbors=59) == pytest.approx(
        -(29 / 59 * math.log(29 / 59) + 30 / 59 * math.log(30 / 59)), abs=1e-14
    )  # itself left out
    assert batch_mixing(z, ["one"] * 60) == 0
    apart = np.concatenate([z[:30], z[:30] + 1000])
    assert batch_mixing(apart, np.repeat(["a", "b"], 30), n_neighbors=29) == 0


def test_batch_mixing_of_mixed_batches_is_the_entropy_of_their_sizes_less_the_stated_bias():
    rng = np.random.default_rng(0)
    z, batch = rng.standard_normal((4000, 3)), rng.choice(4, 4000, p=[0.4, 0.3, 0.2, 0.1])
    expected = entropy(batch.tolist()) - 3 / (2 * 50)
    assert batch_mixing(z, batch, n_cells=1500) == pytest.approx(expected, abs=0.01)


def test_batch_mixing_never_counts_a_cell_as_its_own_neighbour():
    """Among more equal rows than neighbours, the tree need not return the cell itself."""
    z = np.zeros((40, 2))
    neighbours = clustering.neighbours(clustering.cKDTree(z), z, np.arange(40), 5).cells
    assert neighbours.shape == (40, 5)
    assert not (neighbours == np.arange(40)[:, None]).any()
    assert all(len(set(row)) == 5 for row in neighbours.tolist())


def test_batch_mixing_draws_cells_by_seed():
    rng = np.random.default_rng(1)
    z, batch = rng.standard_normal((300, 2)), rng.integers(0, 2, 300)
    some = [batch_mixing(z, batch, 10, n_cells=20, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    everyone = batch_mixing(z, batch, 10, n_cells=None)
    assert batch_mixing(z, batch, 10, n_cells=300, seed=7) == everyone
    assert np.mean([batch_mixing(z, batch, 10, 20, seed) for seed in range(60)]) == pytest.approx(
        everyone, abs=0.02
    )


def test_batch_mixing_gives_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    z, batch = rng.standard_normal((203, 2)), rng.integers(0, 3, 203)
    whole = batch_mixing(z, batch, 10)
    monkeypatch.setattr(clustering, "BLOCK", 100)
    assert batch_mixing(z, batch, 10) == pytest.approx(whole, abs=1e-13)


# ------------------------------------------------------------------------------------------------ errors

GOOD = np.random.default_rng(0).standard_normal((6, 2))
TAKES_POINTS = [
    lambda z: kmeans(z, 2),
    lambda z: silhouette(z, [0, 1] * 3),
    lambda z: batch_mixing(z, [0, 1] * 3, 2),
    lambda z: inertia(z, [0, 1] * 3),
    lambda z: centres(z, [0, 1] * 3),
]
TAKES_LABELS = [
    lambda x: silhouette(GOOD, x),
    lambda x: batch_mixing(GOOD, x, 2),
    lambda x: inertia(GOOD, x),
    lambda x: centres(GOOD, x),
    lambda x: adjusted_rand_index([0, 1] * 3, x),
    lambda x: normalized_mutual_information([0, 1] * 3, x),
]


@pytest.mark.parametrize("call", TAKES_POINTS)
def test_unusable_points_are_refused(call):
    broken = GOOD.copy()
    broken[[2, 4], 1] = np.nan, np.inf
    with pytest.raises(
        ValueError, match="z has NaN or infinity in 2 of 6 rows, first in row 2; leave"
    ):
        call(broken)
    hidden = np.ma.array(GOOD, mask=np.isnan(broken) | np.isinf(broken))
    with pytest.raises(ValueError, match="z has NaN or infinity in 2 of 6 rows, first in row 2"):
        call(hidden)
    with pytest.raises(
        ValueError, match=r"not of shape \(6,\); for one feature pass z.reshape\(-1, 1\)"
    ):
        call(GOOD[:, 0])
    with pytest.raises(ValueError, match=r"z of shape \(0, 2\) is empty; pass"):
        call(GOOD[:0])
    with pytest.raises(ValueError, match=r"z of shape \(6, 0\) is empty; pass"):
        call(GOOD[:, :0])
    with pytest.raises(TypeError, match="z must be real numbers, not dtype complex128"):
        call(GOOD * 1j)
    with pytest.raises(TypeError, match="z is a sparse matrix; pass a dense array"):
        call(clustering.sparse.csr_matrix(GOOD))
    with pytest.raises(
        ValueError, match="z reaches 1.0e[+]200, whose square is no float64; rescale it"
    ):
        call(GOOD * 0 + 1e200)


@pytest.mark.parametrize("call", TAKES_LABELS)
def test_unusable_labels_are_refused(call):
    with pytest.raises(ValueError, match="has 5 labels, but [za] has 6 cells; pass one per cell"):
        call([0, 1, 0, 1, 0])
    with pytest.raises(
        ValueError, match=r"one label per cell, shape \(n,\), not of shape \(6, 1\)"
    ):
        call(np.zeros((6, 1), dtype=int))
    hidden = np.ma.array([0, 1, 0, 1, 0, 1], mask=np.arange(6) == 4)
    with pytest.raises(ValueError, match=r"missing .* for 1 of 6 cells, first for cell 4; leave"):
        call(hidden)
    for hole in (math.nan, None):
        with pytest.raises(
            ValueError, match=r"missing \(NaN or None\) for 1 of 6 cells, first for cell 4; leave"
        ):
            call(["a", "b", "a", "b", hole, "b"])
    with pytest.raises(
        ValueError, match=r"missing \(NaN or None\) for 2 of 6 cells, first for cell 0"
    ):
        call(np.array([math.nan, math.nan, 1.0, 0.0, 1.0, 0.0]))
    with pytest.raises(TypeError, match="mixes labels that cannot be compared"):
        call([0, "a", 1, "b", 2, "c"])


def test_other_unusable_arguments_are_refused():
    with pytest.raises(
        ValueError, match="kmeans: k = 7 is more than the number of points in z, 6; pass fewer"
    ):
        kmeans(GOOD, 7)
    with pytest.raises(ValueError, match="kmeans: k must be a whole number of at least 1, not 0"):
        kmeans(GOOD, 0)
    with pytest.raises(ValueError, match="kmeans: k must be a whole number of at least 1, not 2.5"):
        kmeans(GOOD, 2.5)
    with pytest.raises(ValueError, match="n_restarts must be a whole number of at least 1"):
        kmeans(GOOD, 2, n_restarts=0)
    with pytest.raises(ValueError, match="max_iter must be a whole number of at least 1"):
        kmeans(GOOD, 2, max_iter=0)
    with pytest.raises(ValueError, match="silhouette: labels has one group only"):
        silhouette(GOOD, ["a"] * 6)
    with pytest.raises(
        ValueError, match="n_neighbors = 50 is more than the other cells in z, 5; pass fewer"
    ):
        batch_mixing(GOOD, [0, 1] * 3)
    with pytest.raises(ValueError, match="n_cells must be a whole number of at least 1"):
        batch_mixing(GOOD, [0, 1] * 3, 2, n_cells=0)
    for score in (adjusted_rand_index, normalized_mutual_information):
        with pytest.raises(ValueError, match=f"{score.__name__}: a is empty; pass"):
            score([], [])


def test_labels_come_from_pandas_too():
    pandas = pytest.importorskip("pandas")
    names = ["b", "a", "b", "c", "c", "c"]
    for column in (
        pandas.Series(names, index=range(9, 3, -1)),
        pandas.Series(pandas.Categorical(names)),
        pandas.array(names, dtype="string"),
        np.array(names),
        np.array(names, dtype=object),
        tuple(names),
    ):
        assert adjusted_rand_index(column, [1, 0, 1, 2, 2, 2]) == 1
        assert silhouette(GOOD, column) == silhouette(GOOD, [1, 0, 1, 2, 2, 2])
    with pytest.raises(ValueError, match=r"a is missing \(NaN or None\) for 1 of 3 cells"):
        adjusted_rand_index(pandas.array(["a", None, "b"], dtype="string"), [0, 1, 2])


def test_numbers_of_groups_are_taken_as_other_whole_numbers_are():
    assert kmeans(GOOD, 2.0).tolist() == kmeans(GOOD, np.int8(2)).tolist()
    for k in (True, "2", None, np.nan, 2.5):
        with pytest.raises(ValueError, match="kmeans: k must be a whole number of at least 1"):
            kmeans(GOOD, k)


# ------------------------------------------------------------------------------------------------ scikit-learn


def test_scores_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for n, k in ((50, 3), (400, 7), (2000, 40)):
        z, a = blobs(n, k, d=k, distance=3.0)
        b = np.where(rng.random(n) < 0.3, rng.integers(0, k + 2, n), a)
        assert adjusted_rand_index(a, b) == pytest.approx(
            metrics.adjusted_rand_score(a, b), abs=1e-12
        )
        assert normalized_mutual_information(a, b) == pytest.approx(
            metrics.normalized_mutual_info_score(a, b), abs=1e-12
        )
        assert silhouette(z, b) == pytest.approx(metrics.silhouette_score(z, b), abs=1e-9)


def test_kmeans_is_as_good_as_that_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    z, truth = blobs(n=800, k=6, d=6, distance=1.5)
    theirs = cluster.KMeans(6, n_init=10, random_state=0).fit(z)
    assert inertia(z, theirs.labels_) == pytest.approx(theirs.inertia_, rel=1e-9)
    assert inertia(z, kmeans(z, 6)) <= theirs.inertia_ * 1.002

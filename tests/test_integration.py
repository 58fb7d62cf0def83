"""models/integration.py against scib-metrics' numbers, closed forms, and loops that share no formula with it.

tests/data/README.md says whence the numbers are.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

import models
from models import integration
from models.clustering import adjusted_rand_index, normalized_mutual_information
from models.integration import (
    batch_silhouette,
    clisi,
    graph_connectivity,
    ilisi,
    kbet,
    label_silhouette,
    lisi,
    pcr_comparison,
    scores,
)

DATA = Path(__file__).parent / "data" / "integration_scib_metrics.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(DATA, allow_pickle=False) as file:
        return dict(file)


# ------------------------------------------------------------------------------------------------ scib-metrics


@pytest.mark.parametrize("space", ["before", "after"])
def test_scores_are_those_of_scib_metrics(reference, space):
    z, types, batch = reference[space], reference["cell_type"], reference["batch"]
    found = {
        "ilisi": ilisi(z, batch),
        "clisi": clisi(z, types),
        "kbet": kbet(z, batch, n_neighbors=49),
        "kbet_within_types": kbet(z, batch, types),
        "graph_connectivity": graph_connectivity(z, types),
        "graph_connectivity_4": graph_connectivity(z, types, n_neighbors=3),
        "batch_silhouette": batch_silhouette(z, types, batch),
        "label_silhouette": label_silhouette(z, types),
    }
    for name, value in found.items():
        # theirs solve for the perplexity to 1e-5 only
        assert value == pytest.approx(reference[f"{space}/{name}"].item(), abs=3e-6), name
        assert isinstance(value, float)


@pytest.mark.parametrize("space", ["before", "after"])
def test_every_cell_has_the_lisi_and_the_p_value_of_scib_metrics(reference, space):
    z, types, batch = reference[space], reference["cell_type"], reference["batch"]
    np.testing.assert_allclose(lisi(z, batch), reference[f"{space}/lisi_of_batch"], atol=3e-5)
    np.testing.assert_allclose(lisi(z, types), reference[f"{space}/lisi_of_type"], atol=3e-5)
    for alpha in (0.001, 0.02, 0.3, 0.9):
        accepted = np.mean(reference[f"{space}/kbet_p_values"] >= alpha)
        assert kbet(z, batch, n_neighbors=49, alpha=alpha) == pytest.approx(accepted, abs=1e-12)


def test_what_compares_two_spaces_or_labellings_is_that_of_scib_metrics(reference):
    types, clusters = reference["cell_type"], reference["clusters"]
    removed = pcr_comparison(reference["before"], reference["after"], reference["batch"])
    assert removed == pytest.approx(reference["pcr_comparison"].item(), abs=1e-9)
    assert normalized_mutual_information(types, clusters) == pytest.approx(reference["nmi"].item())
    assert adjusted_rand_index(types, clusters) == pytest.approx(reference["ari"].item())


def test_all_scores_at_once_are_each_alone(reference):
    z, types, batch = reference["after"], reference["cell_type"], reference["batch"]
    assert scores(z, batch, types, reference["before"]) == {
        "ilisi": ilisi(z, batch),
        "clisi": clisi(z, types),
        "kbet": kbet(z, batch, types),
        "graph_connectivity": graph_connectivity(z, types),
        "batch_silhouette": batch_silhouette(z, types, batch),
        "label_silhouette": label_silhouette(z, types),
        "pcr_comparison": pcr_comparison(reference["before"], z, batch),
    }
    assert scores(z, batch) == {"ilisi": ilisi(z, batch), "kbet": kbet(z, batch)}
    assert models.integration is integration


def test_names_of_labels_and_order_of_cells_do_not_matter(reference):
    z, types, batch = reference["after"], reference["cell_type"], reference["batch"]
    order = np.random.default_rng(0).permutation(len(z))
    names = [f"type {-t}" for t in types[order]]
    donors = np.array(["c", "a", "b"])[batch[order]]
    found = scores(z[order], donors, names, reference["before"][order])
    assert found == pytest.approx(scores(z, batch, types, reference["before"]), abs=1e-12)


# ------------------------------------------------------------------------------------------------ closed forms


def two_far_groups(n=200):
    """Points of two groups, far from each other: (n, 3), and the group of each."""
    group = np.arange(n) % 2
    z = np.random.default_rng(1).standard_normal((n, 3))
    z[:, 0] += 1000 * group
    return z, group


def test_perfectly_separated():
    z, group = two_far_groups()
    other = np.random.default_rng(2).integers(0, 2, len(z))
    np.testing.assert_allclose(lisi(z, group), 1, rtol=1e-12)
    assert ilisi(z, group) == pytest.approx(0, abs=1e-12)
    assert clisi(z, group) == pytest.approx(1, abs=1e-12)
    assert kbet(z, group) == 0
    assert kbet(z, group, other) == 0
    assert graph_connectivity(z, group, n_neighbors=40) == 1
    assert label_silhouette(z, group) == pytest.approx(1, abs=5e-3)
    assert batch_silhouette(z, np.zeros(len(z)), group) == pytest.approx(0, abs=5e-3)


def test_cells_at_equal_distances_have_simpsons_index_of_the_others():
    """In a regular simplex all 89 others share the weight, and of one batch there are 44 or 45."""
    z, batch = np.eye(90), np.arange(90) % 2
    even = 89**2 / (44**2 + 45**2)
    np.testing.assert_allclose(lisi(z, batch), even, rtol=1e-12)
    assert ilisi(z, batch) == pytest.approx(even - 1, rel=1e-12)
    assert clisi(z, batch) == pytest.approx(2 - even, rel=1e-12)
    assert graph_connectivity(z, batch, n_neighbors=89) == 1
    assert kbet(z, batch, n_neighbors=89) == 1  # all cells are around each: observed = expected


def test_cells_in_one_place_are_mixed():
    z = np.zeros((60, 2))
    batch = np.arange(60) % 3
    assert ilisi(z, batch, perplexity=20) == pytest.approx(
        (59**2 / (20**2 + 20**2 + 19**2) - 1) / 2, rel=1e-12
    )
    assert batch_silhouette(z, batch % 1, batch) == 1


def test_position_that_says_nothing_of_batch():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((1500, 4))
    batch = rng.integers(0, 2, len(z))
    types = rng.integers(0, 3, len(z))
    assert ilisi(z, batch) > 0.9
    assert 0.92 < kbet(z, batch) < 0.98  # 1 - alpha, up to the steps of counts
    assert 0.92 < kbet(z, batch, types) < 0.98
    assert batch_silhouette(z, types, batch) > 0.96
    assert clisi(z, batch) < 0.1


def test_lisi_is_its_definition():
    """beta by Brent's method, in a loop over cells."""
    rng = np.random.default_rng(4)
    z, batch = rng.standard_normal((40, 2)), rng.integers(0, 3, 40)
    perplexity = 7
    by_hand = []
    for i in range(40):
        d = np.linalg.norm(z - z[i], axis=1)
        near = [j for j in np.argsort(d) if j != i][: 3 * perplexity - 1]

        def weights(beta):
            w = np.exp(-beta * (d[near] - d[near].min()))
            return w / w.sum()

        beta = optimize.brentq(
            lambda b: stats.entropy(weights(b)) - math.log(perplexity), 1e-6, 1e3, xtol=1e-13
        )
        shares = [weights(beta)[batch[near] == b].sum() for b in range(3)]
        by_hand.append(1 / sum(s**2 for s in shares))
    np.testing.assert_allclose(lisi(z, batch, perplexity), by_hand, rtol=1e-7)


@pytest.mark.parametrize("unit", [1e-120, 1e-9, 1e9, 1e120])
def test_lisi_has_no_units(unit):
    rng = np.random.default_rng(5)
    z, batch = rng.standard_normal((100, 3)), rng.integers(0, 2, 100)
    np.testing.assert_allclose(lisi(unit * z, batch), lisi(z, batch), rtol=1e-6)


def test_kbet_is_pearsons_test():
    rng = np.random.default_rng(6)
    z, batch = rng.standard_normal((80, 2)), rng.choice(3, 80, p=[0.6, 0.3, 0.1])
    z[:, 0] += batch
    fractions = np.bincount(batch) / 80
    accepted = []
    for i in range(80):
        around = np.argsort(np.linalg.norm(z - z[i], axis=1))[:21]  # the cell itself is the first
        observed = np.bincount(batch[around], minlength=3)
        accepted.append(stats.chisquare(observed, 21 * fractions).pvalue >= 0.05)
    assert kbet(z, batch, n_neighbors=20) == np.mean(accepted)
    assert 0 < np.mean(accepted) < 1


def test_kbet_leaves_out_types_without_two_batches():
    z, batch = two_far_groups()
    types = np.where(np.arange(len(z)) < 100, "of both", batch.astype(str))
    assert kbet(z, batch, types) == kbet(z[:100], batch[:100], np.zeros(100))


def test_a_type_in_two_pieces_is_as_connected_as_its_larger_one():
    z = np.concatenate([np.arange(30.0), 1e4 + np.arange(10.0)])[:, None]
    assert graph_connectivity(z, np.zeros(40), n_neighbors=4) == 0.75
    assert graph_connectivity(z, np.arange(40) >= 30, n_neighbors=4) == 1
    # the types' mean: one whole, and one of 5 in 30 apart
    types = (np.arange(40) >= 30) | (np.arange(40) < 5)
    assert graph_connectivity(z, types, n_neighbors=4) == pytest.approx((1 + 10 / 15) / 2)


def test_a_cell_that_is_nobodys_neighbour_is_not_connected():
    assert graph_connectivity([[0.0], [1.0], [2.1], [50.0]], [0, 0, 0, 0], n_neighbors=2) == 0.75


def test_batch_silhouette_closed_cases():
    # two batches in the same two places: a = 1, b = 1/2, so that s = -1/2
    z, batch = [[0.0], [0.0], [1.0], [1.0]], [0, 1, 0, 1]
    assert batch_silhouette(z, [5] * 4, batch) == pytest.approx(0.5, abs=1e-15)
    assert batch_silhouette(z, [5] * 4, [0, 0, 1, 1]) == 0  # each in its own place
    # the mean over types, not over cells; a type of one batch is left out
    z = np.array([0, 0, 1, 1, 7, 7, 7, 8, 8, 8, 9, 9.0])[:, None]
    types = [0] * 4 + [1] * 6 + [2] * 2
    batch = [0, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0]
    assert batch_silhouette(z, types, batch) == pytest.approx((0.5 + 0) / 2, abs=1e-15)


def test_pcr_is_a_regression_of_the_principal_components():
    rng = np.random.default_rng(7)
    batch = rng.integers(0, 3, 60)
    before = rng.standard_normal((60, 5)) @ rng.standard_normal((5, 5)) + 2 * batch[:, None]
    after = rng.standard_normal((60, 4)) + np.outer(batch == 1, [0.8, 0, 0, 0])

    def explained(z):
        u, s, _ = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
        design = np.eye(3)[batch]
        total = 0
        for component in (u * s).T:
            fit = design @ np.linalg.lstsq(design, component, rcond=None)[0]
            r2 = 1 - np.sum((component - fit) ** 2) / np.sum(component**2)
            total += r2 * component.var()
        return total / np.sum((u * s).var(axis=0))

    removed = 1 - explained(after) / explained(before)
    assert 0.1 < removed < 1
    assert pcr_comparison(before, after, batch) == pytest.approx(removed, abs=1e-12)


def test_pcr_closed_cases():
    batch = np.arange(40) % 2
    within = np.repeat(np.arange(20) % 2, 2) - 0.5  # unrelated to batch, of the same variance
    before = batch[:, None] * 3.0
    assert pcr_comparison(before, within[:, None], batch) == pytest.approx(1, abs=1e-12)
    assert pcr_comparison(before, np.zeros((40, 2)), batch) == 1
    both = np.column_stack([batch, within])
    assert pcr_comparison(before, both, batch) == pytest.approx(0.5, abs=1e-12)
    assert pcr_comparison(both, before, batch) == 0  # batches explain more than before


# ------------------------------------------------------------------------------------------------ blocks, bad input


def test_scores_are_the_same_in_blocks_of_rows(reference, monkeypatch):
    from models import clustering

    z, types, batch = reference["after"], reference["cell_type"], reference["batch"]
    whole = scores(z, batch, types)
    monkeypatch.setattr(clustering, "BLOCK", 1000)
    assert scores(z, batch, types) == pytest.approx(whole, abs=1e-8)


Z = np.random.default_rng(8).standard_normal((30, 2))
HALF = np.arange(30) % 2
NAN = np.where(np.arange(60).reshape(30, 2) == 9, np.nan, Z)
SCORES = {
    "lisi": lambda z, groups: lisi(z, groups, 5),
    "ilisi": lambda z, groups: ilisi(z, groups, 5),
    "clisi": lambda z, groups: clisi(z, groups, 5),
    "kbet": kbet,
    "batch_silhouette": lambda z, groups: batch_silhouette(z, np.zeros(len(groups)), groups),
    "label_silhouette": label_silhouette,
    "graph_connectivity": graph_connectivity,
    "pcr_comparison": lambda z, groups: pcr_comparison(z, z, groups),
    "scores": lambda z, groups: scores(z, groups, groups),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "z, groups, words",
    [
        (np.zeros((0, 2)), [], "is empty"),
        (NAN, HALF, "NaN or infinity in 1 of 30 rows, first in row 4"),
        (Z[:, 0], HALF, r"must be \(n cells, d features\)"),
        (Z, HALF[:-1], "has 29 labels, but .* has 30 cells"),
        (Z, [None, *HALF[1:]], "missing"),
    ],
)
def test_bad_input_is_refused_by_name(name, z, groups, words):
    with pytest.raises(ValueError, match=rf"^{name}: .*{words}"):
        SCORES[name](z, groups)


@pytest.mark.parametrize("name", SCORES)
def test_one_cell_is_refused(name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        SCORES[name](Z[:1], [0])


@pytest.mark.parametrize("name", sorted({*SCORES} - {"lisi", "graph_connectivity"}))
def test_one_group_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: .*(one group only|two batches)"):
        SCORES[name](Z, np.zeros(30))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ilisi(Z, HALF), "ilisi: perplexity = 30 is more than n/3 of z, 10"),
        (
            lambda: lisi(Z, HALF, perplexity=1),
            "lisi: perplexity must be a whole number of at least 2",
        ),
        (lambda: lisi(Z, HALF, perplexity=2.5), "lisi: perplexity must be a whole number"),
        (lambda: kbet(Z, HALF, n_neighbors=30), "kbet: n_neighbors = 30 is more than"),
        (
            lambda: kbet(Z, HALF, n_neighbors=0),
            "kbet: n_neighbors must be a whole number of at least 1",
        ),
        (lambda: kbet(Z, HALF, alpha=5), "kbet: alpha must lie between 0 and 1, not 5"),
        (lambda: kbet(Z, HALF, np.arange(30)), "kbet: no type of labels has 10 cells"),
        (lambda: kbet(Z, HALF, HALF[:3]), "kbet: labels has 3 labels"),
        (lambda: graph_connectivity(Z, HALF, 30), "n_neighbors = 30 is more than the other cells"),
        (lambda: batch_silhouette(Z, HALF, HALF), "batch_silhouette: no type of labels"),
        (lambda: pcr_comparison(Z, Z[:9], HALF), "pcr_comparison: z_after has 9 cells"),
        (lambda: pcr_comparison(Z, NAN, HALF), "pcr_comparison: z_after has NaN"),
        (lambda: pcr_comparison(NAN, Z, HALF), "pcr_comparison: z_before has NaN"),
        (lambda: pcr_comparison(np.ones((30, 2)), Z, HALF), "explain none of the variance of z_b"),
        (lambda: scores(Z[:5], HALF[:5]), "scores: z has 5 cells"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()

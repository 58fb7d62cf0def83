"""Differential expression, against hand computations and data of which the truth is known."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from models import SCVI, differential
from models.counts import Counts, read
from tests.test_posterior import DOWN, UP, counts_like, two_types, untrained

MARKERS = {
    "CD79A": 1,
    "CD79B": 1,
    "MS4A1": 1,
    "HLA-DQA1": 1,
    "LYZ": -1,
    "S100A8": -1,
    "S100A9": -1,
    "FCN1": -1,
}


@pytest.fixture(scope="module")
def trained():
    """A model of two_types, with the counts and the types."""
    x, types = two_types()
    model = SCVI(x.shape[1], n_latent=4, n_hidden=32, likelihood="nb")
    named = Counts(sparse.csr_array(x), [f"g{i}" for i in range(40)], range(400))
    model.fit(named, epochs=60, weight_decay=0.0, progress=False)
    return model, x, types


def in_order_of_genes(table, name):
    return table[name][np.argsort([int(g[1:]) for g in table["gene"]])]


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_a_known_shift_is_found(trained, mode):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, types == 0, mode=mode, n_samples=2000)
    assert {int(g[1:]) for g in table["gene"][:10]} == {*UP, *DOWN}
    lfc, bayes = in_order_of_genes(table, "lfc_mean"), in_order_of_genes(table, "bayes_factor")
    assert np.all(lfc[UP] > 0.7) and np.all(lfc[DOWN] < -0.7)
    assert np.all(np.abs(lfc[10:]) < 0.6)  # not 0: fractions sum to 1
    assert np.all(bayes[UP] > 2) and np.all((bayes[DOWN] < -2) == (mode == "vanilla"))
    assert np.all(in_order_of_genes(table, "is_de")[:10])
    evidence = np.abs(table["bayes_factor"]) if mode == "vanilla" else table["probability"]
    assert np.all(np.diff(evidence) <= 0)


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_two_halves_of_one_type_differ_in_nothing(trained, mode):
    model, x, types = trained
    for seed in range(4):
        cells = np.random.default_rng(seed).permutation(np.flatnonzero(types == 0))
        table = model.differential_expression(
            x, cells[::2], cells[1::2], mode=mode, n_samples=2000, seed=seed
        )
        assert not np.any(table["is_de"])
        assert np.max(np.abs(table["lfc_mean"])) < 0.3


def test_swapping_the_groups_flips_the_signs(trained):
    model, x, types = trained
    for mode in ("vanilla", "change"):
        one, other = (
            model.differential_expression(x, a, ~a, mode, n_samples=2000)
            for a in (types == 1, types == 0)
        )
        one, other = (
            {name: in_order_of_genes(table, name) for name in table.columns}
            for table in (one, other)
        )
        swapped = 1 - other["probability"] if mode == "vanilla" else other["probability"]
        bound = 6 * np.hypot(one["probability_error"], other["probability_error"]) + 0.01
        assert np.all(np.abs(one["probability"] - swapped) < bound)
        assert np.all(
            np.abs(one["lfc_mean"] + other["lfc_mean"]) < 6 * np.sqrt(2 / 2000) * one["lfc_std"]
        )
        for name in ("rho", "raw_mean", "nonzero"):
            np.testing.assert_allclose(one[f"{name}_a"], other[f"{name}_b"], rtol=0.05)


def test_groups_are_masks_or_positions_and_the_rest_by_default(trained):
    model, x, types = trained
    mask = types == 1
    tables = [
        model.differential_expression(x, a, b, n_samples=200)
        for a, b in (
            (mask, ~mask),
            (np.flatnonzero(mask), np.flatnonzero(~mask)),
            (mask.tolist(), None),
            (np.flatnonzero(mask)[::-1].tolist(), ~mask),
        )
    ]
    for table in tables[1:]:
        for name, column in tables[0].columns.items():
            np.testing.assert_array_equal(table[name], column)
    other = model.differential_expression(x, mask, n_samples=200, seed=1)
    assert np.any(in_order_of_genes(other, "lfc_mean") != in_order_of_genes(tables[0], "lfc_mean"))


def test_columns_say_what_is_in_the_data(trained):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, n_samples=4000)
    assert list(table.columns) == [
        "gene",
        "probability",
        "probability_error",
        "bayes_factor",
        "lfc_mean",
        "lfc_median",
        "lfc_std",
        "rho_a",
        "rho_b",
        "raw_mean_a",
        "raw_mean_b",
        "nonzero_a",
        "nonzero_b",
        "is_de",
    ]
    assert all(name in differential.DifferentialExpression.__doc__ for name in table.columns)
    for letter, group in (("a", types == 1), ("b", types == 0)):
        part = x[group].astype(np.float64)
        np.testing.assert_allclose(
            in_order_of_genes(table, f"raw_mean_{letter}"), part.mean(axis=0)
        )
        np.testing.assert_allclose(
            in_order_of_genes(table, f"nonzero_{letter}"), (part > 0).mean(axis=0)
        )
        rho = model.expression_fraction(x[group], n_samples=20).mean(axis=0)
        np.testing.assert_allclose(in_order_of_genes(table, f"rho_{letter}"), rho, rtol=0.06)
    p = table["probability"]
    np.testing.assert_allclose(table["bayes_factor"], np.log(p / (1 - p)))
    np.testing.assert_allclose(table["probability_error"], np.sqrt(p * (1 - p) / 4000))
    assert len(table) == 40 and "g7" in table["gene"]
    with pytest.raises(KeyError, match="no column 'p_value'; it has .*'probability'"):
        table["p_value"]


def test_the_error_of_the_probability_is_its_spread_over_seeds(trained):
    model, x, types = trained
    tables = [
        model.differential_expression(x, types == 1, n_samples=200, seed=seed) for seed in range(30)
    ]
    p = np.array([in_order_of_genes(table, "probability") for table in tables])
    error = np.array([in_order_of_genes(table, "probability_error") for table in tables]).mean(
        axis=0
    )
    uncertain = np.abs(p.mean(axis=0) - 0.5) < 0.46
    assert uncertain.sum() > 20
    assert 0.85 < np.mean(p.std(axis=0)[uncertain] / error[uncertain]) < 1.15


def test_probabilities_of_hand_made_fold_changes():
    lfc = np.zeros((8, 300), np.float32)
    lfc[:, 0], lfc[:, 1], lfc[:, 2] = 1.0, -1.0, [1, 1, 1, 1, 1, 1, -1, 0]
    lfc[:, 3], lfc[:, 299] = (
        [0.2, 0.2, 0.3, 0.3, 0.3, -0.3, -0.3, -0.3],
        [-0.3, -0.3, -0.3, -0.3, -0.3, 0.3, 0, 0],
    )
    vanilla, change = differential._summary(lfc, None), differential._summary(lfc, 0.25)
    np.testing.assert_allclose(
        vanilla["probability"][[0, 1, 2, 4, 299]], (np.array([8, 0, 6.5, 4, 2]) + 0.5) / 9
    )
    np.testing.assert_allclose(
        change["probability"][[0, 1, 2, 3, 4, 299]], (np.array([8, 8, 6, 3, 0, 5]) + 0.5) / 9
    )
    np.testing.assert_allclose(
        vanilla["bayes_factor"][[0, 1, 4]], [np.log(17), -np.log(17), 0.0], atol=1e-12
    )
    np.testing.assert_allclose(vanilla["probability_error"][0], np.sqrt(8.5 * 0.5) / 9 / np.sqrt(8))
    for name, f in (("lfc_mean", np.mean), ("lfc_median", np.median), ("lfc_std", np.std)):
        np.testing.assert_allclose(change[name], f(lfc.astype(float), axis=0), atol=1e-7)


def test_the_set_at_an_expected_fdr():
    p = np.array([0.5, 0.99, 0.90, 0.95, 0.2])
    assert differential._expected_fdr_set(p, 0.05).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]  # errors 1, 5, 10 %
    assert differential._expected_fdr_set(p, 0.0534).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]  # 16 % in 3
    assert differential._expected_fdr_set(p, 0.0533).tolist() == [False, True, False, True, False]
    assert not differential._expected_fdr_set(p, 0.005).any()
    assert differential._expected_fdr_set(p, 0.999).all()


def test_both_of_a_pair_are_decoded_in_one_batch_drawn_like_the_cells():
    model = untrained(n_batches=3, n_layers=1)
    model.decoder.layers.linears[0].weight.data[:, :2] = 0  # nothing depends on z, all on the batch
    codes = np.array([0] * 5 + [1] * 4 + [2] * 3)
    x = counts_like(model, 12) + 1
    a, b = np.arange(0, 4), np.array([4, 5, 6, 7])  # batches 0 0 0 0 and 0 1 1 1
    table = model.differential_expression(x, a, b, batch=codes, n_samples=4000)
    assert np.all(table["lfc_std"] == 0) and np.all(table["bayes_factor"] == 0)
    rho = [model.expression_fraction(x[:1], codes[:1], transform_batch=b)[0] for b in range(2)]
    np.testing.assert_allclose(
        table["rho_a"][np.argsort([int(g[5:]) for g in table["gene"]])],
        0.625 * rho[0] + 0.375 * rho[1],
        rtol=0.05,
    )


def test_two_cells_are_compared_by_the_logarithm_to_base_two():
    model = untrained()
    model.z_encoder.log_var.bias.data[
        ...
    ] = -30.0  # q(z) next to a point, so that all pairs are alike,
    model.z_encoder.mean.weight.data[...] *= 20.0  # and far from that of the other cell
    x = counts_like(model, 2, mean=20.0) + 1
    x[1, :6] += 40
    table = model.differential_expression(
        x, [0], [1], n_samples=100, genes=[f"g{i}" for i in range(12)]
    )
    rho = model.expression_fraction(x, n_samples=100)
    expected = np.log2(rho[0] / rho[1])
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(in_order_of_genes(table, "lfc_mean"), expected, atol=0.02)
    np.testing.assert_allclose(in_order_of_genes(table, "rho_a"), rho[0], rtol=0.02)


def test_one_gene_is_no_evidence():
    model = untrained(1)
    table = model.differential_expression(
        counts_like(model) + 1, [0, 1, 2], mode="vanilla", n_samples=50
    )
    assert table["bayes_factor"] == 0 and table["lfc_std"] == 0 and not table["is_de"]


def test_cells_without_counts_are_left_out_of_groups():
    model = untrained()
    x = counts_like(model, 10) + 1
    x[[0, 1, 9]] = 0
    table = model.differential_expression(
        x, [0, 1, 2, 3], n_samples=50, genes=[f"g{i}" for i in range(12)]
    )
    np.testing.assert_allclose(in_order_of_genes(table, "raw_mean_a"), x[2:4].mean(axis=0))
    np.testing.assert_allclose(in_order_of_genes(table, "raw_mean_b"), x[4:9].mean(axis=0))
    with pytest.raises(ValueError, match="group_a holds no cells with counts"):
        model.differential_expression(x, [0, 1])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(group_a=[]), "group_a holds no cells"),
        (dict(group_a=np.zeros(9, bool)), "group_a holds no cells"),
        (dict(group_a=np.ones(9, bool)), "group_b holds no cells"),
        (dict(group_a=[1, 2], group_b=[2, 3]), "share 1 cells, such as 2"),
        (dict(group_a=[1, 9]), "positions from 1 to 9; there are cells 0 to 8"),
        (dict(group_a=[-1]), "positions from -1"),
        (dict(group_a=[1, 1]), "lists cell 1 more than once"),
        (dict(group_a=[0, 1, 1, 0, 0, 0, 1, 0, 0]), "a mask is of booleans"),
        (
            dict(group_a=np.ones(8, bool)),
            "group_a must be a boolean mask of 9 cells or a list of positions, not bool",
        ),
        (dict(group_a=[0.5]), "group_a must be a boolean mask"),
        (dict(group_a=["B"] * 9), "make a mask: labels =="),
        (dict(group_a=3), "group_a must be a boolean mask"),
        (dict(group_a=[1], mode="changes"), "mode must be"),
        (dict(group_a=[1], n_samples=0), "n_samples must be"),
        (dict(group_a=[1], fdr=0.0), "fdr between 0 and 1"),
        (dict(group_a=[1], mode="change", delta=-1.0), "delta must be at least 0"),
        (dict(group_a=[1], genes=["a"]), "must be the names of the 12 genes"),
        (dict(group_a=[1], batch=["x"] * 9), "x unknown; the model knows 0"),
    ],
)
def test_wrong_questions(wrong, message):
    model = untrained()
    with pytest.raises(ValueError, match=message):
        model.differential_expression(counts_like(model) + 1, **wrong)


def test_names_of_genes_are_those_given_or_the_models_or_the_datas_or_numbers():
    model = untrained()
    x, names = counts_like(model) + 1, np.array([f"n{i}" for i in range(12)])
    data = Counts(sparse.csr_array(x), names, range(9))

    def found(counts, **given):
        return set(model.differential_expression(counts, [0, 1], n_samples=5, **given)["gene"])

    assert found(x) == {f"gene_{i}" for i in range(12)}
    assert found(data) == set(names)
    model.genes = [f"m{i}" for i in range(12)]
    assert found(x) == set(model.genes)
    assert found(x, genes=names) == set(names)
    with pytest.raises(ValueError, match="another order"):
        found(data)


def test_the_table_as_text_file_and_picture(trained, tmp_path):
    model, x, types = trained
    names = ['a, "b"', *[f"g{i}" for i in range(1, 40)]]
    for mode in ("vanilla", "change"):
        table = model.differential_expression(x, types == 1, mode=mode, n_samples=500, genes=names)
        text = str(table)
        assert "no p-values" in text and text.splitlines()[2].split()[-1] == str(table["is_de"][0])
        assert all(name in text for name in table["gene"][:10]) and "... 30 more" in text
        assert table.head(40).count("\n") == 41 and "more" not in table.head(40)
        table.to_csv(tmp_path / "table.csv")
        with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["gene"] for row in rows] == table["gene"].tolist()
        for name in list(table.columns)[1:-1]:
            assert [float(row[name]) for row in rows] == table[name].tolist()
        assert [row["is_de"] for row in rows] == [str(v) for v in table["is_de"]]
        table.volcano(tmp_path / "volcano.svg")
        picture = (tmp_path / "volcano.svg").read_text()
        assert all(f"<!-- {name} -->" in picture for name in table["gene"][:4] if "," not in name)
        for words in (
            "log2 fold change",
            "Bayes factor",
            f"neither ({np.sum(~table['is_de'])} genes)",
        ):
            assert words in picture


def test_markers_of_blood_cells_are_on_their_sides():
    """Real cells and a short training: B cells (+1) against monocytes (-1)."""
    counts = read(Path(__file__).parents[1] / "demos" / "data" / "pbmc68k.npz")
    model, types = SCVI(765), counts.obs["labels"]
    model.fit(counts, epochs=30, weight_decay=0.0, progress=False)
    table = model.differential_expression(counts, types == "CD19+ B", types == "CD14+ Monocyte")
    genes = table["gene"].tolist()
    sign = {gene: np.sign(table["bayes_factor"][genes.index(gene)]) for gene in MARKERS}
    assert sign == MARKERS
    assert {"CD79A", "S100A8", "S100A9", "FCN1"} <= set(genes[:100])
    cells = np.random.default_rng(0).permutation(np.flatnonzero(types == "Dendritic"))
    null = model.differential_expression(counts, cells[::2], cells[1::2], mode="change")
    assert np.sum(null["is_de"]) == 0

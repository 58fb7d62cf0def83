"""Differential expression, against hand computations and data of which the truth is known."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
from scipy import integrate, sparse, special, stats

from minigrad.distributions import NegativeBinomial
from models import SCVI, differential, differential_table
from models.counts import Counts, read
from models.groups import Cells, labels_of_cells
from tests.benchmarks.differential import Answer, measures, simulate, wilcoxon
from tests.test_posterior import DOWN, UP, counts_like, two_types, untrained

# most models here have not learnt
pytestmark = pytest.mark.filterwarnings("ignore:group_[ab]. its")

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


@pytest.fixture(scope="module")
def simulated():
    """500 cells against 500, of which 40 of 200 genes differ and no others; and a model of them."""
    data = simulate(500, 500, seed=0)
    model = SCVI(200, likelihood="nb", n_latent=10, n_hidden=64)
    model.fit(data.x, batch_size=256, progress=False)
    return model, data


def answer(table):
    """(marked, score, fold change) in the order of the genes: gene_0, gene_1 ..."""
    order = np.argsort([int(name[5:]) for name in table["gene"]])
    return [table[name][order] for name in ("is_de", "bayes_factor", "lfc_mean")]


def sums(**given):
    """Sums of a group of 100 cells with 12 genes, as expected unless something else is given."""
    usual = dict(
        observed=np.full(12, 1000.0),
        expected=np.full(12, 1000.0),
        excess=np.full(12, 1e-3),
        exposure=np.full(12, 12000.0),
        n_cells=100,
    )
    return differential.Sums(**{**usual, **given})


def in_order_of_genes(table, name):
    return table[name][np.argsort([int(g[1:]) for g in table["gene"]])]


# ------------------------------------------------------------------------- where the truth is known
def test_of_genes_that_are_equal_few_are_marked(simulated):
    """By default, at 5 % expected."""
    model, data = simulated
    table = model.differential_expression(data.x, data.in_a)
    power, false, auroc, slope = measures(Answer(*answer(table)), data.lfc)
    assert table.mode == "change" and table.delta == 0.25
    assert power > 0.9 and false < 0.1 and auroc > 0.99
    assert 0.9 < slope < 1.05


def test_vanilla_marks_no_genes(simulated):
    """A sure direction is no difference: how many false ones there are depends on the training."""
    model, data = simulated
    table = model.differential_expression(data.x, data.in_a, mode="vanilla")
    assert "is_de" not in table.columns and table.delta is None
    with pytest.raises(KeyError, match="'is_de'.*use mode 'change'"):
        table["is_de"]


def test_fold_changes_of_a_small_group_do_not_vanish():
    """20 cells of 1,000 that the model has not learnt: its rho are the same for all cells."""
    data = simulate(20, 980, seed=0)
    model = SCVI(200, likelihood="nb", n_latent=2)
    model.fit(data.x, epochs=20, weight_decay=20.0, progress=False)
    table = model.differential_expression(data.x, data.in_a)
    power, false, auroc, slope = measures(Answer(*answer(table)), data.lfc)
    assert slope > 0.5 and power > 0.35 and false < 0.1 and auroc > 0.9
    pairs = model.differential_expression(data.x, data.in_a, mode="vanilla", n_samples=500)
    assert np.max(np.abs(pairs["lfc_mean"])) < 0.3  # of true ones from 0.5 to 2


def test_a_batch_is_no_difference():
    """80 % of either group are in a batch of their own: the rank sum test finds the batches."""
    data = simulate(300, 300, seed=1, batches=True)
    model = SCVI(200, 2, likelihood="nb")
    model.fit(data.x, data.batch, epochs=60, progress=False)
    table = model.differential_expression(data.x, data.in_a, batch=data.batch)
    power, false, auroc, _ = measures(Answer(*answer(table)), data.lfc)
    assert power > 0.7 and false < 0.1 and auroc > 0.95
    assert measures(wilcoxon(data)["Wilcoxon"], data.lfc)[1] > 0.5


def test_a_likelihood_that_is_too_sure_marks_no_more(simulated):
    """Poisson for overdispersed counts: the cells themselves show how much they vary."""
    _, data = simulated
    model = SCVI(200, likelihood="poisson")
    model.fit(data.x, epochs=20, progress=False)
    _, false, _, _ = measures(
        Answer(*answer(model.differential_expression(data.x, data.in_a))), data.lfc
    )
    assert false < 0.1


@pytest.mark.parametrize("mode", ["vanilla", "change"])
def test_a_known_shift_is_found(trained, mode):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, types == 0, mode=mode, n_samples=2000)
    assert {int(g[1:]) for g in table["gene"][:10]} == {*UP, *DOWN}
    lfc, bayes = in_order_of_genes(table, "lfc_mean"), in_order_of_genes(table, "bayes_factor")
    assert np.all(lfc[UP] > 0.7) and np.all(lfc[DOWN] < -0.7)
    assert np.all(np.abs(lfc[10:]) < 0.6)  # not 0: fractions sum to 1
    assert np.all(bayes[UP] > 2) and np.all((bayes[DOWN] < -2) == (mode == "vanilla"))
    evidence = np.abs(table["bayes_factor"]) if mode == "vanilla" else table["probability"]
    assert np.all(np.diff(evidence) <= 0)
    if mode == "change":
        assert np.all(in_order_of_genes(table, "is_de")[:10])


@pytest.mark.parametrize("mixed", [False, True])
def test_two_halves_differ_in_nothing(trained, mixed):
    """Of one type of cells, and of all cells, of which one half has more of one type by chance."""
    model, x, types = trained
    for seed in range(4):
        cells = np.arange(len(x)) if mixed else np.flatnonzero(types == 0)
        cells = np.random.default_rng(seed).permutation(cells)
        table = model.differential_expression(x, cells[::2], cells[1::2], seed=seed)
        assert not np.any(table["is_de"])
        assert np.max(np.abs(table["lfc_mean"])) < 0.2


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
        assert np.all(np.abs(one["probability"] - swapped) < 0.1)
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
            if name != "comparison":
                np.testing.assert_array_equal(table[name], column)
    assert [set(table["comparison"]) for table in tables] == [{"b"}, {"b"}, {"rest"}, {"b"}]
    other = model.differential_expression(x, mask, n_samples=200, seed=1)
    assert np.any(in_order_of_genes(other, "lfc_mean") != in_order_of_genes(tables[0], "lfc_mean"))


COLUMNS = {
    "vanilla": "group comparison gene probability probability_error bayes_factor lfc_mean lfc_median lfc_std "
    "rho_a rho_b raw_mean_a raw_mean_b nonzero_a nonzero_b",
    "change": "group comparison gene probability bayes_factor lfc_mean lfc_std rho_a rho_b raw_mean_a raw_mean_b "
    "nonzero_a nonzero_b is_de",
}


@pytest.mark.parametrize("mode", COLUMNS)
def test_columns_say_what_is_in_the_data(trained, mode):
    model, x, types = trained
    table = model.differential_expression(x, types == 1, mode=mode, n_samples=4000)
    assert list(table.columns) == COLUMNS[mode].split()
    assert all(name in differential_table.DifferentialExpression.__doc__ for name in table.columns)
    for letter, group in (("a", types == 1), ("b", types == 0)):
        part = x[group].astype(np.float64)
        np.testing.assert_allclose(
            in_order_of_genes(table, f"raw_mean_{letter}"), part.mean(axis=0)
        )
        np.testing.assert_allclose(
            in_order_of_genes(table, f"nonzero_{letter}"), (part > 0).mean(axis=0)
        )
        if mode == "vanilla":
            rho = model.expression_fraction(x[group], n_samples=20).mean(axis=0)
        else:
            rho = part.sum(axis=0) / part.sum()
        np.testing.assert_allclose(in_order_of_genes(table, f"rho_{letter}"), rho, rtol=0.06)
    p = table["probability"]
    np.testing.assert_allclose(p, special.expit(table["bayes_factor"]))
    assert len(table) == 40 and "g7" in table["gene"]
    with pytest.raises(KeyError, match="no column 'p_value'; it has .*'probability'"):
        table["p_value"]


def test_the_error_of_the_probability_is_its_spread_over_seeds(trained):
    model, x, types = trained
    tables = [
        model.differential_expression(x, types == 1, mode="vanilla", n_samples=200, seed=seed)
        for seed in range(30)
    ]
    p = np.array([in_order_of_genes(table, "probability") for table in tables])
    error = np.array([in_order_of_genes(table, "probability_error") for table in tables]).mean(
        axis=0
    )
    uncertain = np.abs(p.mean(axis=0) - 0.5) < 0.46
    assert uncertain.sum() > 10
    assert 0.85 < np.mean(p.std(axis=0)[uncertain] / error[uncertain]) < 1.15


def test_probabilities_of_hand_made_fold_changes():
    lfc = np.zeros((8, 300), np.float32)
    lfc[:, 0], lfc[:, 1], lfc[:, 2] = 1.0, -1.0, [1, 1, 1, 1, 1, 1, -1, 0]
    lfc[:, 299] = [-0.3, -0.3, -0.3, -0.3, -0.3, 0.3, 0, 0]
    found = differential._of_pairs(lfc, np.ones((2, 300)))
    np.testing.assert_allclose(
        found["probability"][[0, 1, 2, 4, 299]], (np.array([8, 0, 6.5, 4, 2]) + 0.5) / 9
    )
    np.testing.assert_allclose(
        found["bayes_factor"][[0, 1, 4]], [np.log(17), -np.log(17), 0.0], atol=1e-12
    )
    np.testing.assert_allclose(found["probability_error"][0], np.sqrt(8.5 * 0.5) / 9 / np.sqrt(8))
    for name, f in (("lfc_mean", np.mean), ("lfc_median", np.median), ("lfc_std", np.std)):
        np.testing.assert_allclose(found[name], f(lfc.astype(float), axis=0), atol=1e-7)


@pytest.mark.parametrize(
    "fdr, chosen",
    [
        (0.05, [False, True, False, True, False]),  # errors of 1, 5, and 10 %: 3 % expected of two
        (0.0534, [False, True, True, True, False]),  # and 16 % in three
        (0.0533, [False, True, False, True, False]),
        (0.005, [False] * 5),
        (0.999, [True] * 5),
    ],
)
def test_the_set_at_an_expected_fdr(fdr, chosen):
    error = 1.0 - np.array([0.5, 0.99, 0.90, 0.95, 0.2])
    assert differential._expected_fdr_set(error, fdr).tolist() == chosen


# ------------------------------------------------------------------------------ the sums of a group
def brute_force_sums(model, x, codes, batches):
    """Observed, expected and share of cells of which the decoder is told nothing but the batch."""
    total = x.sum(axis=1, keepdims=True)
    rho = model.expression_fraction(x[:1].repeat(model.n_batches, 0), model.batches)
    share = sum(rho[b] * np.mean(batches == b) for b in range(model.n_batches))
    return x.sum(axis=0), (total * rho[codes]).sum(axis=0), share


def deaf(n_batches=1, **config):
    """A model whose decoder takes nothing from z."""
    model = untrained(n_batches=n_batches, dtype=np.float64, **config)
    model.decoder.layers.linears[0].weight.data[:, :2] = 0.0
    return model


def sums_of(model, x, codes, n_samples=20000):
    cells = np.arange(x.shape[0])
    rng = np.random.default_rng(0)
    told = Cells(x, codes, np.empty((x.shape[0], 0)))
    (tally,) = differential._tallies(model, told, [cells], n_samples, rng)
    return differential._sums(tally)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("n_batches", [1, 3])
def test_sums_by_brute_force(n_batches, form):
    model = deaf(n_batches, likelihood="nb")
    x, codes = counts_like(model, 30) + 1, np.arange(30) % 7 % n_batches
    found = sums_of(model, form(x), codes)
    observed, expected, share = brute_force_sums(model, x, codes, codes)
    np.testing.assert_allclose(found.observed, observed)
    np.testing.assert_allclose(found.expected, expected, rtol=1e-6)
    tolerance = 0.05 if n_batches > 1 else 1e-6  # batches are drawn
    np.testing.assert_allclose(found.exposure, expected / share, rtol=tolerance)
    if n_batches == 1:
        np.testing.assert_allclose(found.exposure, x.sum(), rtol=1e-6)
    assert found.n_cells == 30


def test_structural_zeros_are_zeros():
    """What is expected of ZINB is (1 - pi) mu: in counts drawn from the model that is the mean."""
    model = deaf(likelihood="zinb")
    x = counts_like(model, 30) + 1
    drawn = model.sample_posterior(x, n_samples=4000).mean(axis=0)
    found = sums_of(model, x, np.zeros(30, int))
    np.testing.assert_allclose(found.expected, drawn.sum(axis=0), rtol=0.05)
    assert found.expected.sum() < 0.9 * x.sum()


def test_expected_counts_are_those_of_denoising():
    """The mean over draws of z, which matters to this decoder."""
    model = untrained(likelihood="nb", dtype=np.float64)
    x = counts_like(model, 10) + 1
    found = sums_of(model, x, np.zeros(10, int))
    at_the_mean = model.denoise(x, n_samples=2000).sum(axis=0)
    np.testing.assert_allclose(found.expected, at_the_mean, rtol=0.04)


def test_the_excess_that_cells_show_by_brute_force():
    x = np.random.default_rng(0).poisson(3.0, (40, 7)).astype(float)
    totals = x.sum(axis=1, keepdims=True)
    off = x - totals * (x.sum(axis=0) / totals.sum())
    expected = (40 / 39 * np.sum(off**2, axis=0) - x.sum(axis=0)) / (x.sum(axis=0) + 0.5) ** 2
    np.testing.assert_allclose(differential._observed_excess(differential._counted(x)), expected)


def test_counts_that_vary_less_than_poisson_have_no_excess():
    model = deaf(likelihood="poisson")
    found = sums_of(model, np.full((20, 12), 5.0), np.zeros(20, int), 20)
    assert np.all(found.excess >= 0.0) and np.all(found.excess < 1e-6)


def test_shares_of_counts_by_hand():
    """No counts, but 10 if the groups were alike, in a group that has a tenth of all counts."""
    a = sums(observed=np.full(12, 0.0), exposure=np.full(12, 100.0))
    b = sums(observed=np.full(12, 100.0), exposure=np.full(12, 900.0))
    found, _ = differential._of_means(a, b, None)
    np.testing.assert_allclose(found["rho_a"], 0.1 * 0.5 / 10.5)
    np.testing.assert_allclose(found["rho_b"], 0.1 * 100.5 / 90.5)


@pytest.mark.parametrize("n_cells, mean, theta", [(20, 0.3, 1.0), (20, 5.0, 2.0), (300, 0.05, 0.5)])
def test_the_variance_of_a_log_ratio_is_that_over_experiments(n_cells, mean, theta):
    """Counts drawn again and again: log ratios over their standard errors have spread 1."""
    p = NegativeBinomial(np.full((n_cells, 500), np.log(mean)), np.log(theta))
    observed = p.sample(np.random.default_rng(1)).sum(axis=0)
    expected = np.full(500, n_cells * mean)
    excess = (n_cells * p.variance[0] - expected) / (expected + 0.5) ** 2
    group = sums(observed=observed, exposure=expected, excess=excess, n_cells=n_cells)
    log_fraction, variance = differential._log_fraction(group, 1.0)
    z = log_fraction / np.sqrt(variance)
    assert 0.85 < np.std(z) < 1.05
    assert np.mean(np.abs(z) > 1.96) < 0.07


def test_cells_that_differ_make_their_mean_less_certain():
    """Half of the cells have a gene ten times as often: how many of either is chance."""
    model = SCVI(3, n_latent=1, n_hidden=4, likelihood="poisson")
    rng = np.random.default_rng(0)
    mu = np.where(rng.random((200, 1)) < 0.5, [[10.0, 50.0, 50.0]], [[100.0, 50.0, 50.0]])
    x = rng.poisson(mu).astype(np.float32)
    model.fit(x, epochs=1, progress=False)
    group = sums_of(model, x, np.zeros(200, int), 200)
    total = x.sum(axis=1)
    again = [rng.integers(200, size=200) for _ in range(2000)]
    bootstrap = np.std([np.log(x[i, 0].sum() / total[i].sum()) for i in again])
    found = np.sqrt(1.0 / group.observed[0] + group.excess[0])
    assert found == pytest.approx(bootstrap, rel=0.15) and found > 2 / np.sqrt(group.observed[0])


def test_the_model_is_put_right_by_the_counts():
    """With one batch the share of a gene is that of the counts, whatever the model says of it."""
    model = deaf(likelihood="nb")
    x = counts_like(model, 60, mean=20.0)
    x[:30, 0] += 60
    table = model.differential_expression(x, np.arange(30), n_samples=100)
    order = np.argsort([int(g[5:]) for g in table["gene"]])
    for name, part in (("rho_a", x[:30]), ("rho_b", x[30:])):
        np.testing.assert_allclose(table[name][order], part.sum(axis=0) / part.sum(), rtol=1e-3)
    assert table["gene"][0] == "gene_0" and table["lfc_mean"][0] > 0.5


def test_genes_that_are_not_counted_say_nothing():
    """Of 20 cells against 980, whatever the model makes of their batches."""
    observed = np.full(12, 1000.0)
    observed[:2] = 0.0
    large = np.full(12, 12000.0)
    small = 0.02 * large
    small[1] = 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = differential._of_means(
            sums(observed=0.02 * observed, exposure=small),
            sums(observed=observed, exposure=large),
            None,
        )
    assert np.all(found["lfc_mean"][:2] == 0.0) and np.all(found["probability"][:2] < 0.05)
    assert np.all(found["rho_a"][:2] == 0.0) and np.all(np.isfinite(found["lfc_std"]))


def test_a_gene_that_the_model_holds_impossible_has_the_usual_exposure():
    model = deaf()
    model.decoder.rho.bias.data[0] = -2000.0
    x = counts_like(model, 20) + 1
    found = sums_of(model, x, np.zeros(20, int), 20)
    np.testing.assert_allclose(found.exposure, x.sum(), rtol=1e-6)


# ---------------------------------------------------------------------- what the genes say together
def mixture_of_two(n=3000, changed=0.2, narrow=0.1, wide=1.5, seed=0):
    """True fold changes, their estimates, and the variances of these; which genes changed."""
    rng = np.random.default_rng(seed)
    is_changed = rng.random(n) < changed
    true = np.where(is_changed, wide, narrow) * rng.standard_normal(n)
    std = rng.uniform(0.05, 0.8, n)
    return true, true + std * rng.standard_normal(n), std**2


def test_two_kinds_of_genes_by_integration():
    """The posterior of single genes, by quadrature of the true prior times the likelihood."""
    true, lfc, variance = mixture_of_two()
    believed = differential._two_kinds(lfc, variance)
    weight = np.exp(believed.log_weight)
    mean = np.sum(weight * believed.mean, axis=0)
    for gene in range(8):
        grid = np.linspace(-8, 8, 40001)
        density = stats.norm.pdf(lfc[gene], grid, np.sqrt(variance[gene])) * (
            0.8 * stats.norm.pdf(grid, 0, 0.1) + 0.2 * stats.norm.pdf(grid, 0, 1.5)
        )
        density /= integrate.trapezoid(density, grid)
        assert mean[gene] == pytest.approx(integrate.trapezoid(density * grid, grid), abs=0.03)
        above = integrate.trapezoid((density * (grid > 0.25)), grid)
        log_odds = differential._log_odds_above(believed, 0.25)[gene]
        assert special.expit(log_odds) == pytest.approx(above, abs=0.03)


def test_what_is_believed_is_calibrated():
    """Of the genes that are said to lie beyond delta with probability p, a share of p does."""
    true, lfc, variance = mixture_of_two(20000)
    believed = differential._two_kinds(lfc, variance)
    p = special.expit(differential._log_odds_above(believed, 0.25))
    for low, high in ((0.0, 0.05), (0.05, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.0)):
        among = (p >= low) & (p <= high)
        assert np.sum(among) > 100
        assert np.mean(true[among] > 0.25) == pytest.approx(np.mean(p[among]), abs=0.05)


def test_fold_changes_by_chance_alone_are_believed_to_be_none():
    rng = np.random.default_rng(0)
    for n_genes in (1, 12, 1000):
        variance = rng.uniform(0.01, 1.0, n_genes)
        lfc = np.sqrt(variance) * rng.standard_normal(n_genes)
        believed = differential._two_kinds(lfc, variance)
        mean = np.sum(np.exp(believed.log_weight) * believed.mean, axis=0)
        assert np.max(np.abs(mean)) < 0.25
        assert np.all(differential._log_odds_above(believed, 0.25) < 0.0)


def test_log_odds_of_what_is_next_to_certain():
    believed = differential.Mixture(
        np.log([[0.5], [0.5]]), np.array([[30.0], [20.0]]), np.array([[1.0], [1.0]])
    )
    expected = np.log(2.0) - stats.norm.logsf(20.0)  # of 1 / (0.5 sf(20) + 0.5 sf(30))
    np.testing.assert_allclose(differential._log_odds_above(believed, 0.0), expected)
    np.testing.assert_allclose(differential._log_odds_above(believed.turned(), 0.0), -expected)


@pytest.mark.parametrize("n_changed, low, high", [(2, 0.25, 0.25), (10, 0.9, 1.1)])
def test_delta_is_a_quarter_or_the_typical_fold_change(n_changed, low, high):
    observed = np.full(12, 1000.0)
    observed[:n_changed] = [2000.0, 500.0] * (n_changed // 2)
    found, delta = differential._of_means(sums(observed=observed), sums(), None)
    assert low <= delta <= high
    np.testing.assert_allclose(found["lfc_mean"][:2], [1.0, -1.0], rtol=0.05)
    by_chance = np.sqrt(0.002 + 1 / 1000 + 1 / observed[:2]) / np.log(2.0)
    np.testing.assert_allclose(found["lfc_std"][:2], by_chance, rtol=0.03)
    assert differential._of_means(sums(observed=observed), sums(), 0.7)[1] == 0.7


# ---------------------------------------------------------------------------- a model that is wrong
def test_a_group_that_the_model_has_not_learnt_is_warned_of():
    model = deaf(likelihood="nb")
    model.trained = True
    model.log_theta.data[...] = 1.0
    usual = model.sample_posterior(np.full((300, 12), 40.0))
    special = usual.copy()
    special[:20, :3] *= 4
    with pytest.warns(UserWarning, match="group_a: its 20 cells have other means.*by a factor of"):
        model.differential_expression(special, np.arange(20), n_samples=500)
    for mode in ("change", "vanilla"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.differential_expression(usual, np.arange(20), mode=mode, n_samples=500)


def told_of(obs, batch=None, categorical=()):
    """Counts of these cells, and a model that is told of them, which nobody trained."""
    n = len(next(iter(obs.values())))
    x = sparse.csr_array(np.random.default_rng(0).poisson(9.0, (n, 12)).astype(np.float32))
    names = np.array([f"G{i}" for i in range(12)]), np.array([f"c{i}" for i in range(n)])
    counts = Counts(x, *names, obs)
    model = SCVI.for_data(counts, batch, categorical, n_latent=2, n_hidden=4)
    model.trained = True
    return model, counts


SHARED_BY_FEW = [  # drug, ctrl: numbers of cells of donors P1 and P2, and whether that is warned of
    ((40, 0), (0, 40), "drug' (P1 100%) and group 'ctrl' (P2 100%)"),
    ((38, 2), (1, 39), "drug' (P1 95%, P2 5%) and group 'ctrl' (P2 98%, P1 2%)"),
    ((40, 0), (20, 20), None),
    ((32, 8), (8, 32), None),
]


@pytest.mark.parametrize("told", ["batch", "categorical"])
@pytest.mark.parametrize("drug, ctrl, says", SHARED_BY_FEW)
def test_groups_that_are_batches_are_warned_of(drug, ctrl, says, told):
    obs = {
        "group": np.repeat(["drug", "ctrl"], [sum(drug), sum(ctrl)]),
        "donor": np.repeat(["P1", "P2", "P1", "P2"], [*drug, *ctrl]),
    }
    model, counts = told_of(obs, **{told: "donor" if told == "batch" else ["donor"]})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.differential_expression(counts, "drug", "ctrl", groupby="group", n_samples=100)
    found = [str(w.message) for w in caught if "no cells, or few" in str(w.message)]
    assert len(found) == (says is not None), found
    without = "batch=" if told == "batch" else "'donor' among categorical="
    assert says is None or says in found[0] and f"train without {without}" in found[0]


def test_every_group_that_is_a_batch_is_named_in_one_warning():
    model, counts = told_of({"donor": np.repeat(["P1", "P2", "P3"], 20)}, "donor")
    with pytest.warns(UserWarning) as caught:
        model.differential_expression(counts, groupby="donor", n_samples=60)
    found = [str(w.message) for w in caught if "no cells, or few" in str(w.message)]
    assert len(found) == 1 and "group 'P3' (P3 100%) and the rest (P1 50%, P2 50%)" in found[0]
    alone, counts = told_of({"donor": np.repeat(["P1", "P2"], 20)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alone.differential_expression(counts, groupby="donor", n_samples=60)
    assert not [w for w in caught if "no cells, or few" in str(w.message)]


@pytest.mark.parametrize("n_genes", [20, 200])
def test_few_false_alarms(n_genes):
    """Groups of counts that the model has drawn itself: of 2 cells, of 20, of 150."""
    model = untrained(n_genes, likelihood="nb", scale=0.3)
    model.log_theta.data[...] = np.log(2.0)
    for seed in range(10):
        x = model.sample_posterior(np.full((150, n_genes), 2.0), seed=seed)
        for n in (2, 20, 150):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                differential._warn_of_misfit("a", sums_of(model, x[:n], np.zeros(n, int), n))


# -------------------------------------------------------------------------------------------- pairs
def test_both_of_a_pair_are_decoded_in_one_batch_drawn_like_the_cells():
    model = untrained(n_batches=3, n_layers=1)
    model.decoder.layers.linears[0].weight.data[:, :2] = 0  # nothing depends on z, all on the batch
    codes = np.array([0] * 5 + [1] * 4 + [2] * 3)
    x = counts_like(model, 12) + 1
    a, b = np.arange(0, 4), np.array([4, 5, 6, 7])  # batches 0 0 0 0 and 0 1 1 1
    table = model.differential_expression(x, a, b, mode="vanilla", batch=codes, n_samples=4000)
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
        x, [0], [1], mode="vanilla", n_samples=100, genes=[f"g{i}" for i in range(12)]
    )
    rho = model.expression_fraction(x, n_samples=100)
    expected = np.log2(rho[0] / rho[1])
    assert np.max(np.abs(expected)) > 0.1
    np.testing.assert_allclose(in_order_of_genes(table, "lfc_mean"), expected, atol=0.02)
    np.testing.assert_allclose(in_order_of_genes(table, "rho_a"), rho[0], rtol=0.02)


def test_one_gene_is_no_evidence():
    model = untrained(1)
    x = counts_like(model) + 1
    table = model.differential_expression(x, [0, 1, 2], mode="vanilla", n_samples=50)
    assert table["bayes_factor"] == 0 and table["lfc_std"] == 0
    table = model.differential_expression(x, [0, 1, 2], n_samples=50)
    assert abs(table["lfc_mean"]) < 0.05 and not table["is_de"]


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
        (dict(group_a=[1, 2], group_b=[2, 3]), "share 1 cell, such as 2"),
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
        (dict(group_a=[1], fdr=0.0), "fdr must be between 0 and 1"),
        (dict(group_a=[1], delta=-1.0), "delta must be at least 0, or None"),
        (dict(group_a=[1], delta=np.nan), "delta must be at least 0, or None"),
        (dict(group_a=[1], genes=["a"]), "must be the names of the 12 genes"),
        (dict(group_a=[1], batch=["x"] * 9), "x unknown; the model knows 0"),
    ],
)
def test_wrong_questions(wrong, message):
    model = untrained()
    with pytest.raises(ValueError, match=message):
        model.differential_expression(counts_like(model) + 1, **wrong)


# ---------------------------------------------------------------------------------- groups by label
@pytest.fixture(scope="module")
def labelled(trained):
    """A model, its Counts with labels of three groups, and a table of each against the rest.

    Type 0 is two groups by chance; ten cells have no label.
    """
    model, x, types = trained
    labels = np.where(types == 1, "one", np.where(np.arange(400) % 3 == 0, "two", "$three$"))
    labels = labels.astype(object)
    labels[:10] = None
    counts = Counts(sparse.csr_array(x), [f"g{i}" for i in range(40)], range(400), {"kind": labels})
    return model, counts, model.differential_expression(counts, groupby="kind", seed=1)


@pytest.mark.filterwarnings("ignore:group ")
def test_every_group_against_the_rest_in_one_table(labelled):
    model, counts, table = labelled
    labels = counts.obs["kind"]
    assert [groups.a for groups in table.groups] == ["$three$", "one", "two"]
    assert len(table) == 3 * 40 and set(table["comparison"]) == {"rest"}
    x = counts.X.toarray()
    for groups in table.groups:
        part = table[table["group"] == groups.a]
        assert len(part) == 40 and np.all(np.diff(part["bayes_factor"]) <= 0)
        mask = labels == groups.a
        assert (groups.n_a, groups.n_b) == (mask.sum(), (~mask).sum())  # without a label: the rest
        alone = model.differential_expression(counts, mask, seed=2)
        for name in ("raw_mean_a", "raw_mean_b", "nonzero_a", "nonzero_b"):
            np.testing.assert_allclose(
                in_order_of_genes(part, name), in_order_of_genes(alone, name), rtol=1e-12
            )
        of_cells = (x[~mask] > 0).mean(axis=0)
        np.testing.assert_allclose(in_order_of_genes(part, "nonzero_b"), of_cells)
        # Draws of z are other ones: by how much two seeds differ, so much these two may.
        lfc, lfc_alone = in_order_of_genes(part, "lfc_mean"), in_order_of_genes(alone, "lfc_mean")
        np.testing.assert_allclose(lfc, lfc_alone, atol=0.05)
        assert groups.delta == pytest.approx(alone.delta, abs=0.02)
    changed = table[table["is_de"]]
    assert set(changed["gene"][changed["group"] == "one"]) >= {f"g{i}" for i in (*UP, *DOWN)}


@pytest.mark.filterwarnings("ignore:group ")
def test_labels_name_the_groups_of_a_table(labelled, tmp_path):
    model, counts, _ = labelled
    labels = counts.obs["kind"]
    table = model.differential_expression(counts, "one", "two", groupby=labels, n_samples=200)
    same = model.differential_expression(counts, labels == "one", labels == "two", n_samples=200)
    np.testing.assert_array_equal(table["lfc_mean"], same["lfc_mean"])
    assert set(table["group"]) == {"one"} and set(table["comparison"]) == {"two"}
    assert set(same["group"]) == {"a"} and set(same["comparison"]) == {"b"}
    n_one, n_two = np.sum(labels == "one"), np.sum(labels == "two")
    assert f"a: one ({n_one} cells), b: two ({n_two} cells)" in str(table)
    table.to_csv(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("one,two,g")
    rest = model.differential_expression(counts, "one", groupby="kind", mode="vanilla")
    assert set(rest["comparison"]) == {"rest"} and rest.groups[0].n_b == 400 - n_one


@pytest.mark.filterwarnings("ignore:group ")
def test_pairs_of_every_group(labelled):
    model, counts, _ = labelled
    asked = dict(mode="vanilla", n_samples=300)
    table = model.differential_expression(counts, groupby="kind", **asked)
    for groups in table.groups:
        alone = model.differential_expression(counts, counts.obs["kind"] == groups.a, **asked)
        part = table[table["group"] == groups.a]
        np.testing.assert_array_equal(part["lfc_median"], alone["lfc_median"])
        assert groups.delta is None


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(), "group_a: which cells"),
        (dict(groupby="type"), "no column 'type'.*there are: kind, number, cell"),
        (dict(groupby=["a", "b"]), r"shape \(2,\), must be one label for each of 9"),
        (dict(groupby="kind", group_a="z"), "no cell has kind 'z'; there are: x, y"),
        (dict(groupby=list("xxxxyyyyy"), group_a="x", group_b="z"), "no cell has the label 'z'"),
        (dict(groupby="kind", group_a="x", group_b="x"), "share 4 cells"),
        (dict(groupby="kind", group_b="x"), "group_b needs group_a"),
        (dict(groupby="number"), "1 different labels for 9 cells"),
        (dict(groupby="cell"), "9 different labels for 9 cells.*pass a column of groups"),
    ],
)
def test_wrong_labels(wrong, message):
    model = untrained()
    obs = {"kind": np.array(list("xxxxyyyyy")), "number": np.ones(9), "cell": np.arange(9)}
    counts = Counts(sparse.csr_array(counts_like(model) + 1), range(12), range(9), obs)
    with pytest.raises(ValueError, match=message):
        model.differential_expression(counts, **wrong)


def test_missing_labels_are_none_whatever_kind_they_are():
    numbers = np.array([1.0, np.nan, 2.0])
    for given in (numbers, pandas.Series(numbers), pandas.Series([1, pandas.NA, 2], dtype="Int64")):
        assert labels_of_cells(None, given, 3, "groupby").tolist() == ["1", None, "2"]
    categories = pandas.Series(["x", None, "y"], dtype="category")
    assert labels_of_cells(None, categories, 3, "groupby").tolist() == ["x", None, "y"]


@pytest.mark.filterwarnings("ignore:group ")
def test_a_group_without_counts_is_left_out_with_a_warning():
    model = untrained()
    x = counts_like(model) + 1
    x[:3] = 0
    with pytest.warns(UserWarning, match="no cell of a has counts"):
        table = model.differential_expression(x, groupby=list("aaabbbccc"), n_samples=9)
    assert [groups.a for groups in table.groups] == ["b", "c"]
    assert table.groups[0].n_b == 3


@pytest.mark.filterwarnings("ignore:group ")
def test_rows_of_a_table_and_its_other_forms(labelled):
    _, _, table = labelled
    mask = (table["group"] == "one") & table["is_de"]
    np.testing.assert_array_equal(table[mask]["gene"], table["gene"][mask])
    assert table[5:9]["gene"].tolist() == table["gene"][5:9].tolist()
    assert table[3]["gene"].tolist() == [table["gene"][3]] and len(table[[0, 2]]) == 2
    with pytest.raises(IndexError):
        table[999]
    frame = table.to_frame()
    assert list(frame) == list(table) == list(table.columns)  # as pandas has it
    assert len(frame) == len(table) == 120
    assert "lfc_mean" in table and "no_such_column" not in table
    assert frame["is_de"].dtype == bool and frame["gene"][7] == table["gene"][7]
    text = str(table)
    for groups in table.groups:
        assert f"a: {groups.a} ({groups.n_a} cells), b: rest" in text
    assert text.count("... 37 more") == 3
    page = table._repr_html_()
    assert page.count("<table>") == 3 and page.count("<tr>") == 3 * 4 and "<td>g" in page
    one = table[table["group"] == "one"]
    assert [groups.a for groups in one.groups] == ["one"]
    assert "... 30 more" in str(one) and str(one) == one.head(10)  # as of a table of one comparison
    legend = one.volcano().legends[0]
    assert "higher in one (" in legend.get_texts()[2].get_text()
    assert str(table[:0]) == "no rows" and "no rows" in table[:0]._repr_html_()


@pytest.mark.filterwarnings("ignore:group ")
def test_the_volcano_of_every_group_is_a_panel_and_a_figure_without_a_path(labelled, tmp_path):
    _, _, table = labelled
    figure = table.volcano()
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.split(" (")[0] for title in titles] == ["a: $three$", "a: one", "a: two"]
    assert table.volcano(tmp_path / "all.svg") == tmp_path / "all.svg"
    picture = (tmp_path / "all.svg").read_text()
    n_higher = np.sum(table["is_de"] & (table["group"] == "one") & (table["lfc_mean"] > 0))
    assert f"<!-- {n_higher} genes higher in one -->" in picture
    assert "<!-- higher in b -->" in picture and "<!-- b: rest (" in picture
    with pytest.raises(ValueError, match="no rows"):
        table[:0].volcano()


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
        assert "no p-values" in text and all(name in text for name in table["gene"][:10])
        assert ("marks genes" in text) == (mode == "vanilla")
        if mode == "change":
            assert f"beyond {table.delta:.3g}: {np.sum(table['is_de'])} of 40 genes" in text
        assert "... 30 more" in text
        assert table.head(40).count("\n") == 42 and "more" not in table.head(40)
        table.to_csv(tmp_path / "table.csv")
        with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["gene"] for row in rows] == table["gene"].tolist()
        for name in table.columns:
            if name not in ("group", "comparison", "gene", "is_de"):
                assert [float(row[name]) for row in rows] == table[name].tolist()
        if mode == "change":
            assert [row["is_de"] for row in rows] == [str(v) for v in table["is_de"]]
        table.volcano(tmp_path / "volcano.svg")
        picture = (tmp_path / "volcano.svg").read_text()
        assert all(f"<!-- {name} -->" in picture for name in table["gene"][:4] if "," not in name)
        assert "log2 fold change" in picture and "Bayes factor" in picture
        if mode == "change":
            assert f"not marked ({np.sum(~table['is_de'])} genes)" in picture


def test_markers_of_blood_cells_are_on_their_sides():
    """Real cells and a short training: B cells (+1) against monocytes (-1)."""
    counts = read(Path(__file__).parents[1] / "demos" / "data" / "pbmc68k.npz")
    model, types = SCVI(765), counts.obs["labels"]
    model.fit(counts, epochs=30, weight_decay=0.0, progress=False)
    b_cells, monocytes = types == "CD19+ B", types == "CD14+ Monocyte"
    for mode, first in (("vanilla", 100), ("change", 250)):
        table = model.differential_expression(counts, b_cells, monocytes, mode)
        genes = table["gene"].tolist()
        sign = {gene: np.sign(table["lfc_mean"][genes.index(gene)]) for gene in MARKERS}
        assert sign == MARKERS
        assert {"CD79A", "S100A8", "S100A9", "FCN1"} <= set(genes[:first])
        if mode == "change":
            assert np.all(table["is_de"][[genes.index(gene) for gene in MARKERS]])
    rest = model.differential_expression(counts, b_cells)
    assert "CD79A" in rest["gene"][rest["lfc_mean"] > 0][:3]
    cells = np.random.default_rng(0).permutation(np.flatnonzero(types == "Dendritic"))
    null = model.differential_expression(counts, cells[::2], cells[1::2])
    assert np.sum(null["is_de"]) == 0


def test_names_of_genes_stand_in_a_column_within_the_picture():
    """From the top down in the order of their points, 6 % of the height from one to the next."""
    axes = Figure().subplots()
    axes.set(xlim=(-10, 10), ylim=(100, 200))
    y = np.linspace(110, 190, 10)
    names = [f"gene{i}" for i in range(10)]
    differential_table.name_genes(axes, names, np.full(10, 3.0), y, 10.0)
    assert [text.get_text() for text in axes.texts] == names[::-1]
    places = np.array([text.get_position() for text in axes.texts])
    np.testing.assert_allclose(places[:, 1], 200 - 6.0 * np.arange(1, 11))
    assert np.all((9 < places[:, 0]) & (places[:, 0] < 10))
    assert [text.xy for text in axes.texts] == [(3.0, height) for height in y[::-1]]

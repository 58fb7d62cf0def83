"""models/abundance.py: closed forms, scvi-tools' numbers, and samples of which the composition is known."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import sparse, stats

from models import SCVI, abundance, runs
from models.__main__ import main
from models.abundance import aggregated_log_posterior, log_normals, log_ratios, temperature
from models.counts import Counts, read
from models.groups import Samples
from tests.test_posterior import two_types

DATA = Path(__file__).parent / "data"


def samples_like(codes, in_a, in_b):
    names = [f"s{i}" for i in range(max(codes) + 1)]
    return Samples(names, np.asarray(codes), np.asarray(in_a), np.asarray(in_b))


def brute(mean, std, codes, in_a, in_b, out):
    """log mean_a q_s - log mean_b q_s at each cell by scipy.stats, cell by cell; out(n, i): whether cell i is left out at n."""
    found = []
    for n, z in enumerate(mean):
        q = []
        for positions in (in_a, in_b):
            densities = []
            for s in positions:
                cells = [i for i in np.flatnonzero(codes == s) if not out(n, i)]
                if cells:
                    each = [stats.norm.pdf(z, mean[i], std[i]).prod() for i in cells]
                    densities.append(np.mean(each))
            q.append(np.mean(densities))
        found.append(np.log(q[0] / q[1]))
    return np.array(found)


# ------------------------------------------------------------------------------------ the densities
@pytest.mark.parametrize("at_once", [7, 1 << 21])
def test_densities_are_those_of_scvi_tools(at_once, monkeypatch):
    """Its own numbers, which take variances for standard deviations, and its numbers where it is given the latter."""
    monkeypatch.setattr(abundance, "ENTRIES", at_once)
    r = np.load(DATA / "abundance_scvi_tools.npz")
    for name, scale in (("log_probs", r["std"] ** 2), ("log_probs_of_std", r["std"])):
        for i, sample in enumerate(["s0", "s1", "s2"]):
            cells = r["sample"] == sample
            found = aggregated_log_posterior(r["mean"], r["mean"][cells], scale[cells])
            # Its log(1 / n_s) is of float32.
            np.testing.assert_allclose(found, r[name][:, i], atol=1e-6, rtol=0.0)
            np.testing.assert_allclose(np.diff(found), np.diff(r[name][:, i]), atol=1e-11)


def test_a_sample_of_one_cell_is_a_normal_distribution():
    rng = np.random.default_rng(0)
    z, mean, std = rng.normal(size=(5, 3)), rng.normal(size=(1, 3)), rng.uniform(0.2, 2.0, (1, 3))
    expected = stats.norm.logpdf(z, mean, std).sum(axis=1)
    np.testing.assert_allclose(aggregated_log_posterior(z, mean, std), expected, rtol=1e-12)
    assert aggregated_log_posterior(z[:0], mean, std).shape == (0,)


def test_a_density_integrates_to_1():
    grid = np.linspace(-12.0, 12.0, 4001)
    log_q = aggregated_log_posterior(grid[:, None], [[-3.0], [1.0], [1.5]], [[0.4], [1.0], [0.1]])
    assert np.trapezoid(np.exp(log_q), grid) == pytest.approx(1.0, abs=1e-9)


def test_distant_and_narrow_normals_lose_no_digits():
    """Far from 0, and as narrow as the floor of the encoder's variance lets them be."""
    rng = np.random.default_rng(1)
    mean = 1e4 + rng.normal(size=(40, 30))
    std = np.full((40, 30), 0.01)
    expected = stats.norm.logpdf(mean[:, None], mean, std).sum(axis=2)
    np.testing.assert_allclose(log_normals(mean, mean, std), expected, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    "z, mean, std, says",
    [
        (np.zeros((2, 3)), np.zeros((4, 2)), np.ones((4, 2)), "z has shape"),
        (np.zeros(3), np.zeros((4, 3)), np.ones((4, 3)), "z has shape"),
        (np.zeros((2, 3)), np.zeros((0, 3)), np.ones((0, 3)), "at least one cell"),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.ones((4, 2)), "std"),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.zeros((4, 3)), "std: must be above 0"),
        (np.zeros((2, 3)), np.zeros((4, 3)), np.full((4, 3), np.nan), "std: must be above 0"),
    ],
)
def test_what_is_no_density_is_refused(z, mean, std, says):
    with pytest.raises(ValueError, match=says):
        aggregated_log_posterior(z, mean, std)


# ------------------------------------------------------------------------------------- the widening
def test_kernels_are_as_wide_as_it_takes():
    rng = np.random.default_rng(2)
    log_w = -(np.sort(rng.exponential(40.0, (30, 500)), axis=1) ** 1.5)
    log_w[:, 3] = -np.inf
    t = temperature(log_w, 20)
    w = np.exp((log_w - log_w.max(axis=1, keepdims=True)) / t[:, None])
    n = w.sum(axis=1) ** 2 / (w**2).sum(axis=1)
    np.testing.assert_allclose(n[t > 1.0], 20.0, rtol=1e-4)
    assert 20 < np.sum(t > 1.0) < 30 and np.all(n > 19.99)


def test_kernels_that_many_cells_share_stay_as_they_are():
    assert temperature(np.zeros((3, 60)), 50).tolist() == [1.0, 1.0, 1.0]
    few = temperature(np.array([[0.0, -3.0, -np.inf]]), 50)  # of two cells, all that there are
    assert few > 1e5


# --------------------------------------------------------------------------------------- the ratios
def test_samples_that_are_gaussians_have_the_ratio_of_their_densities():
    """All cells of a sample have the same q(z | x), so q_s is that, whoever is left out."""
    codes = np.repeat([0, 1, 2, 3], 10)
    centre = np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0], [0.0, -1.0]])
    width = np.array([[1.0, 1.0], [0.7, 1.2], [1.0, 0.8], [1.5, 1.0]])
    found = log_ratios(centre[codes], width[codes], samples_like(codes, [0, 1], [2, 3]), None)
    density = [[stats.norm.pdf(z, m, s).prod() for m, s in zip(centre, width)] for z in centre]
    others = {0: ([1], [2, 3]), 1: ([0], [2, 3]), 2: ([0, 1], [3]), 3: ([0, 1], [2])}
    for s, (a, b) in others.items():
        expected = np.log(np.mean(np.take(density[s], a)) / np.mean(np.take(density[s], b)))
        np.testing.assert_allclose(found.log_ratio[codes == s], expected, rtol=1e-12)
        assert np.all(np.isnan(found.log_q[codes == s, s]))
    np.testing.assert_allclose(found.error, 0.0, atol=1e-7)
    assert set(np.round(found.agreement, 3)) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("at_once", [50, 1 << 21])
@pytest.mark.parametrize("leave_out", ["sample", "cell"])
def test_ratios_are_those_of_loops_over_cells(leave_out, at_once, monkeypatch):
    monkeypatch.setattr(abundance, "ENTRIES", at_once)
    rng = np.random.default_rng(3)
    codes = rng.permutation(np.repeat([0, 1, 2, 3, 4, -1], [9, 5, 7, 4, 6, 3]))
    mean, std = rng.normal(size=(34, 2)), rng.uniform(0.3, 1.5, (34, 2))
    in_a, in_b = [0, 2], [1, 3, 4]
    found = log_ratios(mean, std, samples_like(codes, in_a, in_b), None, leave_out)

    def out(n, i):
        return n == i if leave_out == "cell" else codes[n] == codes[i]

    expected = brute(mean, std, codes, in_a, in_b, out)
    np.testing.assert_allclose(found.log_ratio, expected, rtol=1e-9)


def test_the_error_is_how_ratios_scatter_when_cells_are_drawn_again():
    """At one place, over 400 draws of the cells of two samples each."""
    rng = np.random.default_rng(4)
    codes = np.concatenate([np.repeat([0, 1, 2, 3], [60, 40, 50, 70]), [-1]])
    ratios, errors = [], []
    for _ in range(400):
        mean = rng.normal(size=(len(codes), 1))
        mean[-1] = 0.3
        std = np.full(mean.shape, 0.2)
        found = log_ratios(mean, std, samples_like(codes, [0, 1], [2, 3]), None)
        ratios.append(found.log_ratio[-1])
        errors.append(found.error[-1])
    assert np.std(ratios) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.12)


def simulated(n_samples=6, n_cells=150, n_latent=12, std=0.2, seed=0):
    """(mean, std, codes, is_first): three samples of either condition, of which 60 % and 20 % of the cells are of the first type."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(n_samples), n_cells)
    is_first = rng.random(len(codes)) < np.where(codes < n_samples // 2, 0.6, 0.2)
    mean = rng.normal(size=(len(codes), n_latent))
    mean[:, 0] += np.where(is_first, 6.0, -6.0)
    return mean, np.full(mean.shape, std), codes, is_first


@pytest.mark.parametrize("leave_out", ["sample", "cell"])
def test_a_type_three_times_as_frequent_has_log_3_and_the_rest_what_is_left(leave_out):
    """Kernels far too narrow for 12 dimensions, as those of cells with many counts are."""
    mean, std, codes, is_first = simulated()
    found = log_ratios(mean, std, samples_like(codes, [0, 1, 2], [3, 4, 5]), 50, leave_out)
    assert np.median(found.log_ratio[is_first]) == pytest.approx(np.log(3.0), abs=0.15)
    assert np.median(found.log_ratio[~is_first]) == pytest.approx(np.log(0.5), abs=0.15)
    assert np.mean(found.agreement[is_first] == 1.0) > 0.9
    off = found.log_ratio - np.where(is_first, np.log(3.0), np.log(0.5))
    assert 0.5 < np.std(off) / np.sqrt(np.mean(found.error**2)) < 1.5


def test_a_model_of_several_batches_finds_twice_the_share_and_errs_by_its_errors():
    """Each batch has cells of a donor of either condition; 10 draws of whose they are, by types, with known odds."""
    x, types = two_types(500)
    rng = np.random.default_rng(6)
    batch = rng.integers(3, size=len(x))
    x = rng.binomial(x.astype(int), np.exp(-rng.exponential(0.5, (3, x.shape[1])))[batch])
    x = x.astype(np.float32)
    model = SCVI(x.shape[1], n_batches=3, n_latent=4, seed=0)
    model.fit(x, batch=batch, epochs=40, progress=False)
    mean, std = model.latent_of([x, batch, np.zeros((len(x), 0), np.float32)])
    for odds in ([1.0, 1.0], [2.0, 1.0]):
        p_a = np.array(odds) / (1.0 + np.array(odds))
        n = np.bincount(types)
        expected = np.log(n * p_a / (n @ p_a)) - np.log(n * (1 - p_a) / (n @ (1 - p_a)))
        assert expected[0] - expected[1] == pytest.approx(np.log(odds[0]))
        ratios, relative = [], []
        for _ in range(10):
            in_a = rng.random(len(x)) < p_a[types]
            codes = batch + 3 * ~in_a
            found = log_ratios(mean, std, samples_like(codes, [0, 1, 2], [3, 4, 5]))
            ratios.append([found.log_ratio[types == k].mean() for k in (0, 1)])
            relative.append((found.log_ratio - expected[types]) / found.error)
        np.testing.assert_allclose(np.mean(ratios, axis=0), expected, atol=0.08)
        assert 0.75 < np.sqrt(np.mean(np.square(relative))) < 1.35


def test_where_a_condition_has_no_cells_the_ratio_is_uncertain():
    mean, std, codes, is_first = simulated()
    mean[is_first & (codes >= 3), 0] -= 12.0  # in b all are of the second type
    found = log_ratios(mean, std, samples_like(codes, [0, 1, 2], [3, 4, 5]))
    alone = is_first & (codes < 3)
    assert np.all(found.log_ratio[alone] > 3.0) and np.all(found.agreement[alone] == 1.0)
    assert np.median(found.error[alone]) > 0.5 and np.median(found.error[~is_first]) < 0.4


def test_cells_of_equal_conditions_are_not_taken_for_enriched_in_their_own():
    """The flaw of densities that hold the cell itself: shown with them, and gone without."""
    rng = np.random.default_rng(5)
    codes = np.repeat(np.arange(4), 100)
    mean, std = rng.normal(size=(400, 8)), np.full((400, 8), 0.3)
    in_a = codes < 2
    with_self = aggregated_log_posterior(mean, mean[in_a], std[in_a])
    with_self = with_self - aggregated_log_posterior(mean, mean[~in_a], std[~in_a])
    assert np.median(with_self[in_a]) > 3.0 and np.median(with_self[~in_a]) < -3.0
    for leave_out in ("sample", "cell"):
        found = log_ratios(mean, std, samples_like(codes, [0, 1], [2, 3]), 50, leave_out).log_ratio
        assert abs(found[in_a].mean() - found[~in_a].mean()) < 0.15
        assert abs(found.mean()) < 0.1


def test_what_is_one_donors_own_is_no_difference_of_conditions():
    """Donor 0 lies apart. Its cells have neighbours in no other donor of its condition, either."""
    rng = np.random.default_rng(6)
    codes = np.repeat(np.arange(4), 80)
    mean, std = rng.normal(size=(320, 3)), np.full((320, 3), 0.5)
    mean[codes == 0, 0] += 4.0
    samples = samples_like(codes, [0, 1], [2, 3])
    apart = codes == 0
    by_cell = log_ratios(mean, std, samples, 50, "cell").log_ratio[apart]
    by_sample = log_ratios(mean, std, samples, 50, "sample").log_ratio[apart]
    assert np.median(by_cell) > 2.0 and abs(np.median(by_sample)) < 0.7


# ------------------------------------------------------------------------------------------- the model
@pytest.fixture(scope="module")
def asked():
    """A model of two types, and counts of six samples: the second type three times as frequent in `stim`."""
    x, types = two_types(n_cells=900)
    rng = np.random.default_rng(7)
    sample = rng.integers(6, size=900)
    kept = (sample >= 3) | (types == 0) | (rng.random(900) < 1 / 3)
    x, types, sample = x[kept], types[kept], sample[kept]
    names = np.array([f"d{i}" for i in range(6)])[sample]
    obs = {"donor": names, "drug": np.where(sample >= 3, "stim", "ctrl"), "kind": types}
    genes, cells = [f"g{i}" for i in range(40)], [f"c{i}" for i in range(len(x))]
    counts = Counts(sparse.csr_array(x), genes, cells, obs)
    model = SCVI(40, n_latent=4, n_hidden=32, likelihood="nb")
    model.fit(counts, epochs=40, progress=False)
    return model, counts


def test_a_model_says_where_a_condition_has_more_cells(asked):
    model, counts = asked
    table = model.differential_abundance(counts, "donor", "drug", "stim")
    kind, stim = counts.obs["kind"], counts.obs["drug"] == "stim"
    of_type = [np.mean(kind[stim] == k) / np.mean(kind[~stim] == k) for k in (0, 1)]
    found = table.by(kind)
    assert found["label"].tolist() == ["1", "0"]
    expected = np.log(of_type)[::-1]
    np.testing.assert_allclose(found["log_ratio"], expected, atol=0.25)
    assert found["cells"].tolist() == [np.sum(kind == 1), np.sum(kind == 0)]
    other = model.differential_abundance(counts, "donor", "drug", "ctrl", "stim")
    np.testing.assert_allclose(other["log_ratio"], -table["log_ratio"], atol=1e-12)
    np.testing.assert_allclose(other["agreement"], 1.0 - table["agreement"], atol=1e-12)


def test_labels_are_found_by_the_name_of_the_cell(asked):
    model, counts = asked
    expected = model.differential_abundance(counts, "donor", "drug")
    assert (expected.a, expected.b) == ("ctrl", "stim")
    order = np.random.default_rng(8).permutation(len(counts))
    series = [
        pandas.Series(counts.obs[k], index=counts.cells).iloc[order] for k in ("donor", "drug")
    ]
    found = model.differential_abundance(counts, *series)
    np.testing.assert_array_equal(found["log_ratio"], expected["log_ratio"])
    assert found["cell"].tolist() == counts.cells.tolist()
    adata = counts.to_anndata()
    found = model.differential_abundance(adata, "donor", "drug")
    np.testing.assert_array_equal(found["log_ratio"], expected["log_ratio"])


def test_medians_by_label_go_by_the_names_of_cells(asked):
    model, counts = asked
    table = model.differential_abundance(counts, "donor", "drug")
    expected = table.by(counts.obs["kind"])
    order = np.random.default_rng(8).permutation(len(counts))
    kinds = pandas.Series(counts.obs["kind"], index=counts.cells).iloc[order]
    for name, column in table.by(kinds).items():
        np.testing.assert_array_equal(column, expected[name])
    nothing = table.by([None] * len(counts))
    assert list(nothing) == list(expected) and len(nothing["label"]) == 0


def test_a_condition_may_be_called_rest(asked):
    """As group_b it is that condition, and not all cells that are not of group_a."""
    model, counts = asked
    drug = np.where(
        np.isin(counts.obs["donor"], counts.obs["donor"][:1]), "third", counts.obs["drug"]
    )
    drug[drug == "ctrl"] = "rest"
    found = model.differential_abundance(counts, "donor", drug, "stim", "rest", leave_out="cell")
    of_third = set(counts.obs["donor"][drug == "third"])
    assert of_third and of_third.isdisjoint(found.samples)
    everything = model.differential_abundance(counts, "donor", drug, "stim", leave_out="cell")
    assert everything.b == "rest" and of_third < set(everything.samples)


def test_the_table_is_written_and_shown(asked, tmp_path):
    model, counts = asked
    table = model.differential_abundance(counts, "donor", "drug", "stim")
    table.to_csv(tmp_path / "da.csv")
    with open(tmp_path / "da.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:6] == ["cell", "sample", "condition", "log_ratio", "error", "agreement"]
    assert header[6:] == [f"log_q d{i}" for i in range(6)]
    assert [float(row[3]) for row in rows] == table["log_ratio"].tolist()
    frame = table.to_frame()
    assert frame.shape == (len(counts), 12) and list(frame.columns) == header
    assert (
        "a: stim (3 samples) over b: ctrl (3 samples)" in str(table)
        and "<table>" in table._repr_html_()
    )
    with pytest.raises(KeyError, match="no column 'lfc'"):
        table["lfc"]


@pytest.mark.parametrize(
    "n_unsure, says",
    [
        (0, "no cell is uncertain (error of 0.5 and more)"),
        (1, "1 cell is uncertain (error of 0.5 and more): few cells of a or of b are near it;"),
        (3, "3 cells are uncertain (error of 0.5 and more): few cells of a or of b are near them;"),
    ],
)
def test_cells_that_are_uncertain_are_told_of_where_there_are_some(asked, n_unsure, says):
    model, counts = asked
    table = model.differential_abundance(counts, "donor", "drug", "stim")
    table["error"][:] = np.where(np.arange(len(counts)) < n_unsure, 0.7, 0.1)
    assert says in str(table) and ("of the log ratio" in str(table)) == (n_unsure > 0)


def test_cells_that_are_in_no_density_are_told_where_they_lie(asked):
    model, counts = asked
    counts = Counts(counts.X.copy(), counts.genes, counts.cells, dict(counts.obs))
    donor, drug = counts.obs["donor"].astype(object), counts.obs["drug"].astype(object)
    donor[:5] = None
    drug[5:8] = np.nan
    counts.X.data[counts.X.indptr[9] : counts.X.indptr[10]] = 0.0
    counts.X.eliminate_zeros()
    with pytest.warns(UserWarning, match=f"8 of {len(counts)} cells lack one of the two"):
        table = model.differential_abundance(counts, donor, drug)
    assert np.flatnonzero(np.isnan(table["log_ratio"])).tolist() == [9]
    assert table["sample"][:5].tolist() == [None] * 5
    assert not np.isnan(table.log_q[:5]).any()
    known = np.ones(len(counts), bool)
    known[[*range(8), 9]] = False
    alone = model.differential_abundance(counts[known], donor[known], drug[known])
    # Encoded in other minibatches, in float32.
    np.testing.assert_allclose(table["log_ratio"][known], alone["log_ratio"], atol=1e-4)


def test_counts_may_lie_on_the_disk(asked, tmp_path):
    pytest.importorskip("anndata")
    model, counts = asked
    counts.to_anndata().write_h5ad(tmp_path / "c.h5ad")
    found = model.differential_abundance(read(tmp_path / "c.h5ad", backed=True), "donor", "drug")
    expected = model.differential_abundance(counts, "donor", "drug")
    np.testing.assert_allclose(found["log_ratio"], expected["log_ratio"], atol=1e-4)


def test_a_third_condition_is_in_the_rest_or_in_no_density(asked):
    model, counts = asked
    three = counts.obs["drug"].copy()
    three[counts.obs["donor"] == "d5"] = "both"
    asked_for = dict(leave_out="cell", n_neighbors=20)
    rest = model.differential_abundance(counts, "donor", three, "stim", **asked_for)
    assert rest.b == "rest" and len(rest.in_b) == 4
    two = model.differential_abundance(counts, "donor", three, "stim", "ctrl", **asked_for)
    assert two.samples == ["d0", "d1", "d2", "d3", "d4"] and np.isfinite(two["log_ratio"]).all()
    with pytest.raises(ValueError, match="there are 3 .both, ctrl, stim.; say by group_a"):
        model.differential_abundance(counts, "donor", three)


WRONG = [
    (dict(condition=["x"] * 9), "there is 1 .x., and a ratio is of two"),
    (dict(condition=[None] * 9), "there are 0 .no labels."),
    (dict(sample=["s"] * 9), "sample: 's' has cells of several conditions, x, y"),
    (dict(sample=list("abcdefghi")), "condition 'x' has no sample of two cells"),
    (dict(sample=list("aaaaabbcc")), "condition 'x' has one sample, a, .*leave_out='cell'"),
    (dict(sample="donor"), "sample: no column 'donor' of cells"),
    (dict(condition="drug"), "condition: no column 'drug' of cells"),
    (dict(sample=["a", "b"]), r"sample has shape \(2,\), must be one label for each of 9"),
    (dict(group_a="z"), "no cell has the condition 'z'; there are: x, y"),
    (dict(group_a="x", group_b="z"), "no cell has the condition 'z'"),
    (dict(group_a="x", group_b="x"), "are both 'x'"),
    (dict(group_b="x"), "say by group_a"),
    (dict(leave_out="donor"), "leave_out"),
    (dict(n_neighbors=0), "n_neighbors must be a whole number"),
    (dict(sample=pandas.Series(list("aabbbccdd"), index=list("abcdefghi"))), None),
]


@pytest.mark.filterwarnings("ignore:this SCVI was never fitted", "ignore:sample. .* of one cell")
@pytest.mark.parametrize("wrong, says", WRONG)
def test_wrong_samples_and_conditions(wrong, says):
    model = SCVI(5, n_latent=2, n_hidden=4)
    counts = np.random.default_rng(9).poisson(2.0, (9, 5)) + 1.0
    given = dict(sample=list("aabbbccdd"), condition=list("xxxxxyyyy"))
    if says is None:
        assert len(model.differential_abundance(counts, **{**given, **wrong})) == 9
        return
    with pytest.raises(ValueError, match=says):
        model.differential_abundance(counts, **{**given, **wrong})


@pytest.mark.filterwarnings("ignore:this SCVI was never fitted")
def test_a_sample_of_one_cell_is_left_out_with_a_warning():
    model = SCVI(5, n_latent=2, n_hidden=4)
    counts = np.random.default_rng(9).poisson(2.0, (10, 5)) + 1.0
    with pytest.warns(
        UserWarning, match="sample: e of one cell with counts: in no density"
    ) as caught:
        table = model.differential_abundance(counts, list("aabbbccdde"), list("xxxxxyyyyx"))
    assert [str(w.filename) for w in caught if "one cell" in str(w.message)] == [__file__]
    assert table.samples == ["a", "b", "c", "d"] and np.isfinite(table["log_ratio"]).all()


# ------------------------------------------------------------------------------------ the command line
@pytest.fixture(scope="module")
def run(asked, tmp_path_factory):
    """A run of the counts of `asked`, hardly trained."""
    folder = tmp_path_factory.mktemp("abundance")
    runs.write_counts(folder / "counts.npz", asked[1])
    words = ["--epochs", "2", "--latent", "3", "--hidden", "8", "--likelihood", "nb"]
    assert main(["train", str(folder / "counts.npz"), "--out", str(folder / "run"), *words]) == 0
    return folder


KEYS = ["--sample-key", "donor", "--condition-key", "drug"]


def test_the_command_line_gives_the_same(run, tmp_path, capsys):
    out = tmp_path / "da.csv"
    words = ["--groups", "stim", "ctrl", "--neighbors", "30", "--key", "kind", "--out", str(out)]
    assert main(["abundance", str(run / "run"), *KEYS, *words]) == 0
    said = capsys.readouterr().out
    model = runs.Run(run / "run").model()
    counts = runs.read_counts(run / "counts.npz")
    table = model.differential_abundance(counts, "donor", "drug", "stim", "ctrl", n_neighbors=30)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["log_ratio"]) for row in rows] == table["log_ratio"].tolist()
    assert [row["cell"] for row in rows] == counts.cells.tolist()
    assert "a: stim (3 samples) over b: ctrl (3 samples)" in said and "medians by kind" in said
    assert "0 is the same share of cells" in said


@pytest.mark.parametrize(
    "words, code, says",
    [
        ([*KEYS, "--out", "da.txt"], 2, "--out da.txt: must end in .csv"),
        ([*KEYS, "--groups", "a", "b", "c", "--out", "da.csv"], 2, "--groups takes one label or"),
        ([*KEYS, "--groups", "none", "--out", "da.csv"], 1, "no cell has the condition 'none'"),
        ([*KEYS[:3], "nothing", "--out", "da.csv"], 1, "no column 'nothing' of cells"),
        ([*KEYS[:3], "kind", "--out", "da.csv"], 1, "sample: 'd0' has cells of several conditions"),
        ([*KEYS[:2], "--condition-key", "donor", "--out", "da.csv"], 1, "say by --groups which"),
        (
            ["--sample-key", "drug", "--condition-key", "drug", "--out", "da.csv"],
            1,
            "condition 'ctrl' has one sample, ctrl, .*pass --leave-out cell",
        ),
    ],
)
def test_wrong_words_of_the_command(run, words, code, says, monkeypatch, capsys):
    monkeypatch.chdir(run)
    assert main(["abundance", "run", *words]) == code
    assert re.search(says, capsys.readouterr().err)
    assert not (run / "da.csv").exists()


def test_one_sample_of_each_condition_is_compared_on_demand(run, monkeypatch):
    monkeypatch.chdir(run)
    words = ["--sample-key", "drug", "--condition-key", "drug", "--leave-out", "cell"]
    assert main(["abundance", "run", *words, "--out", "alone.csv"]) == 0

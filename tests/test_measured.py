"""models/measured.py: genes that new cells lack are 0 there, and no answer takes them for counted."""

import copy
import warnings

import numpy as np
import pytest
from scipy import sparse

from models import SCVI, report
from models.counts import Counts
from models.measured import measured_in, unmeasured_in
from models.query import share_genes

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*have other means",  # of models hardly trained
    "ignore:counts. .* are taken for 0",
)
GENES = [f"g{i}" for i in range(20)]
ABSENT = ["g2", "g7", "g11"]
SAID = r"3 \(g2, g7, g11\) were not measured"


def cells_of(donor, n, genes=GENES, seed=0):
    """n cells of two types, which differ in the even genes, with the counts of these genes."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    rates = np.where((kind[:, None] == 1) & (np.arange(20) % 2 == 0), 8.0, 3.0)
    columns = [GENES.index(gene) for gene in genes]
    x = rng.poisson(rates).astype(np.float32)[:, columns]
    obs = {"donor": np.full(n, donor), "kind": np.array(["B", "T"])[kind]}
    return Counts(sparse.csr_array(x), genes, [f"{donor}_{i}" for i in range(n)], obs)


@pytest.fixture(scope="module")
def reference():
    counts = cells_of("d1", 200)
    model = SCVI.for_data(counts, "donor", n_latent=3, n_hidden=16, likelihood="nb")
    model.fit(counts, epochs=20, progress=False)
    return model


@pytest.fixture(scope="module")
def query(reference):
    """A model that knows d2 too, whose cells lack three genes, and these cells as it is asked."""
    seen = cells_of("d2", 120, [gene for gene in GENES if gene not in ABSENT], seed=1)
    mapped = reference.map_query(seen, epochs=4, progress=False)
    return mapped, mapped.align_genes(seen)


def is_absent(genes):
    return [gene in ABSENT for gene in genes]


# ------------------------------------------------------------------------------- what is remembered
def test_counts_say_which_genes_were_measured(query):
    _, cells = query
    assert cells.genes.tolist() == GENES
    np.testing.assert_array_equal(measured_in(cells), ~np.array(is_absent(GENES)))
    np.testing.assert_array_equal(measured_in(cells[:3]), measured_in(cells))
    backwards = share_genes(cells, [*GENES[::-1], "new"], 0.5)
    assert measured_in(backwards).tolist() == [*measured_in(cells)[::-1], False]
    assert measured_in(cells_of("d1", 5)) is None and measured_in(np.ones((3, 4))) is None


def test_anndata_keeps_what_counts_say(query, tmp_path):
    anndata = pytest.importorskip("anndata")
    model, cells = query
    cells.to_anndata().write_h5ad(tmp_path / "q.h5ad")
    adata = anndata.read_h5ad(tmp_path / "q.h5ad")
    np.testing.assert_array_equal(measured_in(adata), measured_in(cells))
    with pytest.warns(UserWarning, match=SAID):
        table = model.differential_expression(adata, groupby="kind", n_samples=50)
    assert not set(ABSENT) & set(table["gene"])


def test_a_model_without_names_of_genes_knows_them_by_number():
    seen = cells_of("d1", 60)
    model = SCVI(20, 2, n_latent=2, n_hidden=8, likelihood="nb")
    model.fit(seen.X, np.arange(60) % 2, epochs=1, progress=False)
    seen.var["is_measured"] = ~np.array(is_absent(GENES))
    mapped = model.map_query(seen, np.full(60, "new"), epochs=1, progress=False)
    assert mapped.unmeasured == {"new": ["gene_2", "gene_7", "gene_11"]}
    assert unmeasured_in(mapped, None, [2]).tolist() == is_absent(GENES)
    with pytest.warns(UserWarning, match=r"3 \(gene_2, gene_7, gene_11\) were not measured"):
        mapped.generate(3, batch="new")


def test_a_model_remembers_the_genes_of_each_batch(reference, query, tmp_path):
    model, cells = query
    assert model.unmeasured == {"d2": ABSENT} and reference.unmeasured == {}
    model.save(tmp_path / "m.npz")
    assert SCVI.load(tmp_path / "m.npz").unmeasured == {"d2": ABSENT}
    fewer = cells_of("d3", 60, GENES[:18], seed=2)
    again = model.map_query(fewer, epochs=1, progress=False)
    assert again.unmeasured == {"d2": ABSENT, "d3": ["g18", "g19"]}
    both = [1, 2, 1]
    assert np.flatnonzero(unmeasured_in(again, None, both)).tolist() == [2, 7, 11, 18, 19]
    whole = again.map_query(cells_of("d4", 60, seed=3), epochs=1, progress=False)
    assert whole.unmeasured == again.unmeasured


# ----------------------------------------------------------------------------------- the answers
@pytest.mark.parametrize("mode", ["change", "vanilla"])
def test_genes_that_were_not_measured_are_in_no_table(query, mode):
    model, cells = query
    with pytest.warns(UserWarning, match="genes left out of the table: " + SAID):
        table = model.differential_expression(cells, groupby="kind", mode=mode, n_samples=100)
    expected = sorted(2 * [gene for gene in GENES if gene not in ABSENT])
    assert sorted(table["gene"]) == expected
    assert table["raw_mean_a"].min() > 1.0  # every other gene was counted in every group


def test_counts_and_model_say_the_same(query):
    """Without the column of var the model knows it by the batch."""
    model, cells = query
    unsaid = Counts(cells.X, GENES, cells.cells, cells.obs)
    assert measured_in(unsaid) is None
    tables = []
    for counts in (cells, unsaid):
        with pytest.warns(UserWarning, match=SAID):
            tables.append(model.differential_expression(counts, groupby="kind", n_samples=100))
    np.testing.assert_array_equal(tables[0]["bayes_factor"], tables[1]["bayes_factor"])


def test_cells_of_both_donors_are_compared_by_genes_that_both_have(query):
    """Zeros that somebody else filled in: the model knows of which batch they are."""
    model, cells = query
    old = cells_of("d1", 100)
    x = sparse.vstack([old.X, cells.X], format="csr")
    donor = np.concatenate([old.obs["donor"], cells.obs["donor"]])
    kind = np.concatenate([old.obs["kind"], cells.obs["kind"]])
    asked = dict(batch=donor, n_samples=100)
    with pytest.warns(UserWarning, match=SAID):
        table = model.differential_expression(x, kind == "T", **asked)
    assert len(table) == 17
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not measured")
        of_old = [(kind == name) & (donor == "d1") for name in ("T", "B")]
        table = model.differential_expression(x, *of_old, **asked)
    assert len(table) == 20


ABOUT_GENES = {
    "denoise": lambda m, x, **k: m.denoise(x, **k),
    "rho": lambda m, x, **k: m.expression_fraction(x, **k),
    "sample": lambda m, x, **k: m.sample_posterior(x, **k),
    "generate": lambda m, x, batch="d2", **k: m.generate(5, batch=batch, **k),
    "one gene": lambda m, x, **k: m.denoise(x, genes=["g1", "g7"], **k),
}


@pytest.mark.parametrize("name", ABOUT_GENES)
def test_what_is_said_of_genes_that_were_not_measured_comes_with_a_warning(query, name):
    model, cells = query
    said = r"1 \(g7\) was not measured" if name == "one gene" else SAID
    with pytest.warns(UserWarning, match=said) as caught:
        ABOUT_GENES[name](model, cells)
    assert [str(w.filename) for w in caught if "not measured" in str(w.message)] == [__file__]


@pytest.mark.filterwarnings("error")
def test_no_warning_where_the_answer_is_of_cells_that_were_measured(query):
    model, cells = query
    model.denoise(cells, transform_batch="d1")
    model.expression_fraction(cells, transform_batch="d1")
    model.denoise(cells, genes=["g1", "g3"])
    model.generate(5, batch="d1")
    model.sample_posterior(cells_of("d1", 5))
    model.denoise(cells_of("d1", 5))
    model.latent(cells)


@pytest.mark.parametrize("transform", ["d1", None])
@pytest.mark.filterwarnings("ignore:genes. ")
def test_expected_counts_of_what_was_measured_sum_to_what_was_counted(query, transform):
    """A cell's total is of the genes that were looked for; what is expected of others comes on top."""
    model, cells = query
    mu = model.denoise(cells, transform_batch=transform)
    here = measured_in(cells)
    totals = cells.X.sum(axis=1)
    np.testing.assert_allclose(mu[:, here].sum(axis=1), totals, rtol=1e-5)
    rho = model.expression_fraction(cells, transform_batch=transform)
    np.testing.assert_allclose(rho.sum(axis=1), 1.0, rtol=1e-5)
    if transform is not None:
        expected = totals * rho[:, ~here].sum(axis=1) / rho[:, here].sum(axis=1)
        np.testing.assert_allclose(mu[:, ~here].sum(axis=1), expected, rtol=1e-4)
        assert np.mean(expected / totals) > 0.05  # three genes of twenty
    mu = model.denoise(cells, transform_batch=transform, library_size=100.0)
    np.testing.assert_allclose(mu.sum(axis=1), 100.0, rtol=1e-5)


def test_to_be_decoded_in_a_batch_that_lacks_genes_is_warned_of(query):
    model, _ = query
    with pytest.warns(UserWarning, match=SAID):
        model.denoise(cells_of("d1", 5), transform_batch=["d1", "d2"])


def test_a_known_batch_that_lacks_genes_here_has_them_elsewhere(reference):
    fewer = reference.align_genes(cells_of("d1", 30, GENES[:17]))
    with pytest.warns(UserWarning, match=r"3 \(g17, g18, g19\)"):
        reference.denoise(fewer)
    assert reference.unmeasured == {}


def test_the_report_leaves_them_out_of_its_picture(query, tmp_path, monkeypatch):
    model, cells = query
    seen = []
    for name in ("genes", "cells"):
        picture = getattr(report, name)
        monkeypatch.setattr(
            report,
            name,
            lambda x, drawn, picture=picture: seen.append((x, drawn)) or picture(x, drawn),
        )
    history = copy.deepcopy(model).fit(cells_of("d1", 60), epochs=1, progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not measured")  # the page says so itself
        report.write(tmp_path / "r.html", model, history, cells, title="r")
    for of_data, of_model in seen:
        assert of_data.shape == of_model.shape == (120, 17)
    page = (tmp_path / "r.html").read_text()
    assert page.count("3 genes that were not measured are left out.</figcaption>") == 2


def test_the_report_generates_cells_of_the_batches_that_it_shows(query, tmp_path, monkeypatch):
    model, cells = query
    told = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda n, **words: told.append(words["batch"]) or generate(n, **words)
    )
    history = copy.deepcopy(model).fit(cells_of("d1", 60), epochs=1, progress=False)
    report.write(tmp_path / "r.html", model, history, cells)
    assert set(np.ravel(told[0]).tolist()) == {"d2"}  # and none of d1, on which d2 was mapped

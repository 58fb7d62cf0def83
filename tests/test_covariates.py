"""Covariates: what a model is told of each cell beside its counts, and `SCVI.for_data`, which remembers the columns."""

import warnings

import numpy as np
import pytest
from scipy import sparse

from minigrad import checkpoint
from minigrad.data import Minibatches
from models import SCVI
from models.counts import Counts, read
from models.covariates import ObsColumns, columns_from, columns_in

SMALL = dict(n_latent=2, n_hidden=16, likelihood="nb")
TOLD = dict(batch="donor", categorical=["sex", "site"], continuous=["age"])


def cells(n=60, n_genes=8, seed=0):
    """Counts with a batch, two categories and a number for each cell."""
    rng = np.random.default_rng(seed)
    obs = dict(
        donor=np.array(["d1", "d2", "d3"])[rng.permutation(n) % 3],
        sex=np.array(["f", "m"])[rng.permutation(n) % 2],
        site=rng.permutation(n) % 3 + 10,
        age=rng.normal(40.0, 12.0, n),
    )
    x = sparse.csr_array(rng.poisson(3.0, (n, n_genes)).astype(np.float32))
    return Counts(x, [f"g{i}" for i in range(n_genes)], [f"c{i}" for i in range(n)], obs)


def changed(counts, **columns):
    """The same counts with other columns; None: without the column."""
    obs = {name: v for name, v in {**counts.obs, **columns}.items() if v is not None}
    return Counts(counts.X, counts.genes, counts.cells, obs)


def fitted(counts, told=TOLD, epochs=3, **config):
    model = SCVI.for_data(counts, **told, **{**SMALL, **config})
    model.fit(counts, epochs=epochs, progress=False)
    return model


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def trained():
    counts = cells()
    return fitted(counts), counts


ASK = {
    "elbo": lambda m, x, **b: m.elbo(x, **b),
    "log_likelihood": lambda m, x, **b: m.log_likelihood(x, n_samples=3, **b),
    "expression_fraction": lambda m, x, **b: m.expression_fraction(x, **b),
    "denoise": lambda m, x, **b: m.denoise(x, **b),
    "sample_posterior": lambda m, x, **b: m.sample_posterior(x, **b),
    "differential_expression": lambda m, x, **b: m.differential_expression(
        x, np.arange(20), n_samples=60, **b
    )["lfc_mean"],
}


pytestmark = pytest.mark.filterwarnings("ignore:.*have other means")  # of models hardly trained


# ------------------------------------------------------------------------------------- for_data
def test_for_data_reads_sizes_and_names():
    counts = cells()
    model = SCVI.for_data(counts, **TOLD, **SMALL)
    assert (model.n_genes, model.n_batches, model.config["n_latent"]) == (8, 3, 2)
    assert model.genes == counts.genes.tolist() and model.batches == ["d1", "d2", "d3"]
    assert model.columns.categorical == {"sex": ["f", "m"], "site": ["10", "11", "12"]}
    mean, std = model.columns.continuous["age"]
    np.testing.assert_allclose([mean, std], [counts.obs["age"].mean(), counts.obs["age"].std()])
    assert not model.trained


def test_with_batch_alone_it_is_the_model_that_one_would_have_written():
    counts = cells()
    model = fitted(counts, dict(batch="donor"))
    plain = SCVI(8, 3, **SMALL)
    plain.fit(counts, "donor", epochs=3, progress=False)
    same(model.state_dict(), plain.state_dict())
    for ask in ASK.values():
        np.testing.assert_array_equal(ask(model, counts), ask(plain, counts, batch="donor"))


def test_without_batch_and_covariates_it_is_the_model_of_one_batch():
    counts = cells()
    x = counts.X.toarray()
    model = SCVI.for_data(x, **SMALL)
    assert (model.n_genes, model.n_batches, model.genes) == (8, 1, None)
    same(model.state_dict(), SCVI(8, **SMALL).state_dict())
    assert model.config == SCVI(8, **SMALL).config


def test_labels_may_be_given_as_an_array():
    counts = cells()
    model = SCVI.for_data(counts.X, counts.obs["donor"], **SMALL)
    assert model.n_batches == 3 and model.columns == ObsColumns()
    with pytest.raises(ValueError, match="batch is missing"):
        model.fit(counts.X, epochs=1)


def test_one_batch_is_not_looked_for():
    counts = changed(cells(), donor=np.array(["d1"] * 60))
    model = fitted(counts, dict(batch="donor"))
    assert model.n_batches == 1 and model.batches == ["d1"]
    np.testing.assert_array_equal(model.elbo(counts.X), model.elbo(counts))


def test_an_anndata_object_is_read_alike():
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    counts = cells()
    frame = pandas.DataFrame(counts.obs, index=counts.cells).astype({"sex": "category"})
    data = anndata.AnnData(
        sparse.csr_matrix(counts.X), obs=frame, var=pandas.DataFrame(index=counts.genes)
    )
    same(fitted(data).state_dict(), fitted(counts).state_dict())


@pytest.mark.parametrize("question", ASK)
def test_a_saved_model_finds_the_columns_too(question, trained, tmp_path):
    model, counts = trained
    model.save(tmp_path / "model.npz")
    loaded = SCVI.load(tmp_path / "model.npz")
    assert loaded.columns == model.columns
    np.testing.assert_array_equal(ASK[question](loaded, counts), ASK[question](model, counts))
    np.testing.assert_array_equal(loaded.generate(5), model.generate(5))


def test_a_batch_that_is_given_counts_more_than_the_column(trained):
    model, counts = trained
    other = np.array(["d1"] * 60)
    np.testing.assert_array_equal(
        model.elbo(counts, other), model.elbo(changed(counts, donor=other))
    )
    assert np.any(model.elbo(counts, other) != model.elbo(counts))


def test_the_first_training_may_miss_a_batch():
    """The codes of batches are those of `for_data`, not of the cells that happen to be trained on."""
    counts = cells()
    model = SCVI.for_data(counts, **TOLD, **SMALL)
    model.fit(counts[counts.obs["donor"] != "d1"], epochs=2, progress=False)
    assert model.batches == ["d1", "d2", "d3"]
    np.testing.assert_allclose(model.batch_fraction, [0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="its genes differ"):
        SCVI.for_data(counts, **TOLD, **SMALL).fit(counts.select_genes(np.arange(8)[::-1]))


# ------------------------------------------------------------------- what does not depend on them
def test_latent_asks_for_neither_batch_nor_covariates(trained):
    model, counts = trained
    z = model.latent(counts)
    np.testing.assert_array_equal(model.latent(counts.X), z)
    np.testing.assert_array_equal(model.latent(counts.X, return_std=True)[0], z)
    with pytest.raises(ValueError, match="unknown"):
        model.latent(counts.X, ["d9"] * 60)


def test_latent_asks_for_them_where_the_encoder_sees_them():
    counts = cells()
    model = fitted(counts, encode_covariates=True)
    z = model.latent(counts)
    with pytest.raises(ValueError, match="batch: no obs column 'donor'"):
        model.latent(counts.X)
    with pytest.raises(ValueError, match="categorical: no obs column 'sex'"):
        model.latent(counts.X, counts.obs["donor"])
    for name, other in dict(
        donor=np.roll(counts.obs["donor"], 1),
        sex=np.roll(counts.obs["sex"], 1),
        age=counts.obs["age"] + 10.0,
    ).items():
        rows = np.flatnonzero(other != counts.obs[name])
        moved = np.any(model.latent(changed(counts, **{name: other})) != z, axis=1)
        assert moved[rows].all() and not np.delete(moved, rows).any(), name


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("library", ["observed", "latent"])
def test_encoders_that_see_covariates_take_dense_and_sparse_counts(form, library):
    counts = cells()
    model = fitted(counts, encode_covariates=True, library=library, n_layers=2)
    x = form(counts.X.toarray())
    table = model.columns.table(counts.obs, 60, np.float32)
    _, codes = np.unique(counts.obs["donor"], return_inverse=True)
    q_z, _ = model.inference(x, batch=codes, covariates=table)
    np.testing.assert_allclose(q_z.loc.numpy(), model.latent(counts), rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------- the table
def test_the_table_by_hand():
    counts = cells()
    columns = columns_in(counts.obs, 60, "donor", ["sex", "site"], "age")
    age = counts.obs["age"]
    expected = np.column_stack(
        [
            counts.obs["sex"] == "f",
            counts.obs["sex"] == "m",
            counts.obs["site"] == 10,
            counts.obs["site"] == 11,
            counts.obs["site"] == 12,
            (age - np.mean(age)) / np.std(age),
        ]
    )
    found = columns.table(counts.obs, 60, np.float64)
    assert columns.n_covariates == 6 and found.dtype == np.float64
    np.testing.assert_allclose(found, expected)


def test_numbers_are_standardised_by_the_cells_trained_on():
    counts = cells()
    x = counts.X.toarray()
    x[:10] = 0  # cells without counts, which are left out
    age = counts.obs["age"].copy()
    age[:10] = 1e6
    counts = Counts(sparse.csr_array(x), counts.genes, counts.cells, {**counts.obs, "age": age})
    with pytest.warns(UserWarning, match="10 cells without counts"):
        model = fitted(counts)
    np.testing.assert_allclose(
        model.columns.continuous["age"], [age[10:].mean(), age[10:].std()], rtol=1e-12
    )
    before = model.columns
    model.fit(changed(counts[20:], age=age[20:] + 100.0), epochs=1, progress=False)
    assert model.columns == before  # a trained model keeps them


def test_a_category_of_one_label_and_a_constant_number_say_nothing():
    counts = changed(cells(), sex=np.array(["f"] * 60), age=np.full(60, 7.0))
    model = fitted(counts, dict(categorical=["sex"], continuous=["age"]))
    assert model.columns.n_covariates == 1
    np.testing.assert_array_equal(
        model.columns.table(counts.obs, 60, np.float32), np.zeros((60, 1))
    )
    assert np.all(np.isfinite(model.elbo(counts)))


# ------------------------------------------------------------------------- what the decoder learns
def simulated(seed=0, n=400):
    """Cells of one kind; gene 0 rises with age by a known factor, gene 1 is twice as high in `m`."""
    rng = np.random.default_rng(seed)
    age = rng.normal(50.0, 10.0, n)
    is_m = rng.random(n) < 0.5
    mean = np.full((n, 12), 8.0)
    mean[:, 0] *= np.exp(0.5 * (age - 50.0) / 10.0)
    mean[:, 1] *= np.where(is_m, 2.0, 1.0)
    obs = dict(age=age, sex=np.where(is_m, "m", "f"), is_m=is_m)
    x = sparse.csr_array(rng.poisson(mean).astype(np.float32))
    return Counts(x, [f"g{i}" for i in range(12)], [f"c{i}" for i in range(n)], obs)


def trained_on_truth(counts, **told):
    model = SCVI.for_data(counts, **told, **{**SMALL, "n_hidden": 32})
    model.fit(counts, epochs=300, weight_decay=0.0, progress=False)
    return model


@pytest.fixture(scope="module")
def of_truth():
    counts = simulated()
    return trained_on_truth(counts, categorical="sex", continuous="age"), counts


@pytest.fixture(scope="module")
def untold(of_truth):
    return trained_on_truth(of_truth[1])


def test_the_decoder_learns_what_covariates_do(of_truth):
    model, counts = of_truth

    def log_share(**columns):
        told = {name: np.full(len(counts), value) for name, value in columns.items()}
        share = model.expression_fraction(changed(counts, **told)).mean(axis=0)
        return np.log(share[:2] / share[2:].mean())

    by_age = log_share(age=60.0, sex="f") - log_share(age=40.0, sex="f")
    by_sex = log_share(age=50.0, sex="m") - log_share(age=50.0, sex="f")
    np.testing.assert_allclose(by_age, [1.0, 0.0], atol=0.15)
    np.testing.assert_allclose(by_sex, [0.0, np.log(2.0)], atol=0.15)


def test_z_need_not_say_what_covariates_say(of_truth, untold):
    model, counts = of_truth

    def explained(z):
        z = np.column_stack([z, np.ones(len(z))])
        y = counts.obs["age"] - counts.obs["age"].mean()
        return 1.0 - np.sum((y - z @ np.linalg.lstsq(z, y)[0]) ** 2) / np.sum(y**2)

    assert explained(untold.latent(counts)) > 0.3
    assert explained(model.latent(counts)) < 0.1


def test_differential_expression_averages_covariates(of_truth, untold):
    """Two groups that differ in their sexes alone: gene 1 follows the sex, not the group."""
    told, counts = of_truth
    in_a = np.random.default_rng(1).random(400) < np.where(counts.obs["is_m"], 0.8, 0.2)
    found = {}
    for name, model in dict(told=told, untold=untold).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the untold model misses the groups' means
            table = model.differential_expression(counts, in_a, n_samples=2000)
        at = table["gene"].tolist().index("g1")
        found[name] = table["lfc_mean"][at], table["is_de"][at]
    assert abs(found["told"][0]) < 0.1 and not found["told"][1]
    assert found["untold"][0] > 0.4 and found["untold"][1]


def test_pairs_are_decoded_with_the_covariates_of_one_cell(of_truth):
    """The groups are the sexes: a pair in which each kept its own would differ in gene 1."""
    model, counts = of_truth
    table = model.differential_expression(counts, counts.obs["is_m"], mode="vanilla", n_samples=500)
    assert abs(table["lfc_mean"][table["gene"] == "g1"][0]) < 0.2


def test_transform_batch_leaves_covariates_as_they_are(trained):
    model, counts = trained
    for label in ("d1", "d3"):
        np.testing.assert_allclose(
            model.expression_fraction(counts, transform_batch=label),
            model.expression_fraction(changed(counts, donor=np.array([label] * 60))),
            rtol=1e-6,
        )


# --------------------------------------------------------------------------------- made-up cells
def test_generated_cells_have_the_covariates_that_are_asked_for(of_truth):
    model, _ = of_truth
    totals = {}
    for sex in ("f", "m"):
        x = model.generate(2000, covariates={"sex": sex, "age": 50.0})
        totals[sex] = x[:, 1].sum() / x[:, 2:].mean(axis=1).sum()
    assert totals["m"] / totals["f"] == pytest.approx(2.0, rel=0.2)
    x = model.generate(2000, covariates={"age": np.repeat([40.0, 60.0], 1000)})
    # Fractions of gene 0 beside the 92 counts of the others, with gene 1 twice as high in half.
    expected = (13.19 / (13.19 + 92.0)) / (4.85 / (4.85 + 92.0))
    assert x[1000:, 0].sum() / x[:1000, 0].sum() == pytest.approx(expected, rel=0.15)


def test_labels_of_generated_cells_come_in_the_proportions_of_the_training():
    counts = cells()
    sex = np.where(np.arange(60) < 45, "f", "m")
    model = fitted(changed(counts, sex=sex))
    average = model.covariate_mean
    np.testing.assert_allclose(average[:2], [0.75, 0.25])
    rng = np.random.default_rng(0)
    obs = model.columns.obs_of_new_cells({"site": 11}, 4000, average, rng)
    table = model.columns.table(obs, 4000, np.float64)
    np.testing.assert_allclose(table[:, 0].mean(), 0.75, atol=0.03)
    np.testing.assert_array_equal(table[:, 2:5], [[0.0, 1.0, 0.0]] * 4000)
    np.testing.assert_allclose(table[:, 5], 0.0, atol=1e-12)


def test_generated_cells_say_what_they_were_told(of_truth, trained):
    """The labels are those of the counts: gene 1 is twice as high in `m`, gene 0 follows age."""
    x, obs = of_truth[0].generate(6000, return_obs=True)
    np.testing.assert_array_equal(x, of_truth[0].generate(6000))
    assert list(obs) == ["sex", "age"] and set(obs["age"]) == {obs["age"][0]}
    share = [x[obs["sex"] == s, 1].sum() / x[obs["sex"] == s, 2:].sum() for s in ("f", "m")]
    assert share[1] / share[0] == pytest.approx(2.0, rel=0.2)
    model, counts = trained
    asked = {"site": 11, "age": np.linspace(30.0, 50.0, 9)}
    x, obs = model.generate(9, batch="d2", covariates=asked, return_obs=True)
    assert obs["donor"].tolist() == ["d2"] * 9 and obs["site"].tolist() == [11] * 9
    np.testing.assert_array_equal(obs["age"], asked["age"])
    model.elbo(Counts(x, counts.genes, [f"n{i}" for i in range(9)], obs))  # as they are


@pytest.mark.parametrize(
    "covariates, says",
    [
        ({"weight": 1.0}, "covariates: 'weight' unknown; the model has sex, site, age"),
        ({"sex": "x"}, "categorical: column 'sex': x unknown; the model knows f, m"),
        ({"age": [1.0, 2.0]}, r"covariates: 'age' has shape \(2,\) for n=3 cells"),
    ],
)
def test_covariates_that_no_cell_can_have(covariates, says, trained):
    with pytest.raises(ValueError, match=says):
        trained[0].generate(3, covariates=covariates)


# ------------------------------------------------------------------------------ from the disk
def test_minibatches_from_the_disk_carry_the_covariates(tmp_path, monkeypatch):
    """Each cell's number is its total: counts and covariates that belong together can be told."""
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    monkeypatch.setattr("minigrad.data.ENTRIES", 64)  # many blocks
    counts = cells()
    total = counts.X.sum(axis=1)
    obs = pandas.DataFrame({**counts.obs, "age": total}, index=counts.cells)
    data = anndata.AnnData(
        sparse.csr_matrix(counts.X), obs=obs, var=pandas.DataFrame(index=counts.genes)
    )
    data.write_h5ad(tmp_path / "x.h5ad")
    on_disk = read(tmp_path / "x.h5ad", backed=True)
    model = SCVI.for_data(on_disk, **TOLD, **SMALL)
    seen = []
    loss = model.loss

    def watched(x, codes, covariates, **keywords):
        mean, std = model.columns.continuous["age"]
        np.testing.assert_allclose(covariates[:, -1] * std + mean, x.sum(axis=1), rtol=1e-5)
        seen.extend(x.sum(axis=1))
        return loss(x, codes, covariates, **keywords)

    model.loss = watched
    model.fit(on_disk, epochs=1, batch_size=16, validation=0.0, progress=False)
    assert sorted(seen) == sorted(total)
    in_memory = changed(counts, age=total)
    np.testing.assert_allclose(model.elbo(on_disk), model.elbo(in_memory), rtol=1e-5)
    x, codes, table = next(iter(Minibatches(model.minibatches(on_disk).columns, 60)))
    np.testing.assert_array_equal(table, model.columns.table(in_memory.obs, 60, np.float32))


# --------------------------------------------------------------------------------------- refused
NOT_FINITE = np.where(np.arange(60) == 7, np.nan, 40.0)


@pytest.mark.parametrize(
    "columns, says",
    [
        (dict(sex=None), "categorical: no obs column 'sex'; there are: donor, site, age"),
        (dict(age=None), "continuous: no obs column 'age'; there are: donor, sex, site"),
        (
            dict(sex=np.array(["f", "x"] * 30)),
            "categorical: column 'sex': x unknown; the model knows f, m. Leave those cells out",
        ),
        (dict(site=np.full(60, 13)), "column 'site': 13 unknown; the model knows 10, 11, 12"),
        (
            dict(sex=np.where(np.arange(60) == 7, None, "f")),
            r"categorical: 1 of 60 cells has no label in column 'sex', the first of them cell 7 "
            r"\('c7'\); fill it in",
        ),
        (
            dict(site=np.where(NOT_FINITE == 40, 10.0, np.nan)),
            r"categorical: 1 of 60 cells has no label in column 'site'",
        ),
        (dict(site=np.full(60, 10.5)), "column 'site' has numbers that are not whole; give it as"),
        (
            dict(age=NOT_FINITE),
            r"continuous: cell 7 \('c7'\) has nan in column 'age'; numbers must be finite",
        ),
        (
            dict(age=np.datetime64("2024-01-31") + np.arange(60)),
            "continuous: column 'age' holds '2024-01-31' .* no number",
        ),
        (dict(age=np.where(np.arange(60) == 7, np.inf, 4.0)), r"cell 7 \('c7'\) has inf in col"),
        (
            dict(age=np.array(["old"] * 60)),
            r"continuous: column 'age' holds 'old' \(cell 0 \('c0'\)\), which is no number",
        ),
    ],
)
def test_columns_that_a_model_cannot_take(columns, says, trained):
    model, counts = trained
    wrong = changed(counts, **columns)
    before = model.state_dict()
    for ask in (*ASK.values(), lambda m, x: m.fit(x, epochs=1, progress=False)):
        with pytest.raises(ValueError, match=says):
            ask(model, wrong)
    same(model.state_dict(), before)
    if not says.startswith(("categorical: column 'sex': x", "column 'site': 13")):
        with pytest.raises(ValueError, match=says.split(", the")[0].split(";")[0]):
            SCVI.for_data(wrong, **TOLD)


def test_missing_labels_of_pandas_are_missing():
    pandas = pytest.importorskip("pandas")
    for values in (
        pandas.Categorical(["f", None] * 30),
        pandas.array(["f", None] * 30, dtype="string"),
        pandas.array([1, None] * 30, dtype="Int64"),
    ):
        frame = pandas.DataFrame({"sex": values})
        with pytest.raises(
            ValueError,
            match="categorical: 30 of 60 cells have no label in column 'sex', .* cell 1;",
        ):
            columns_in(frame, 60, None, ["sex"], [])


def test_a_matrix_has_no_columns(trained):
    model, counts = trained
    with pytest.raises(ValueError, match="no obs column 'sex'; there are: none. Give counts that"):
        model.elbo(counts.X, counts.obs["donor"])


@pytest.mark.parametrize(
    "told, says",
    [
        (dict(batch="sex", categorical=["sex"]), "column 'sex' is named twice"),
        (dict(categorical=["age"], continuous=["age"]), "column 'age' is named twice"),
        (dict(categorical=["sex", "sex"]), "column 'sex' is named twice"),
        (dict(categorical=[3]), "categorical must be names of obs columns, not 3"),
        (dict(batch="donors"), "batch: no obs column 'donors'"),
    ],
)
def test_columns_that_for_data_refuses(told, says):
    with pytest.raises(ValueError, match=says):
        SCVI.for_data(cells(), **told)


def test_a_training_that_fails_leaves_the_columns_as_they_were():
    counts = cells()
    model = SCVI.for_data(counts, **TOLD, **SMALL)
    before = model.columns
    with pytest.raises(ValueError, match="validation"):
        model.fit(changed(counts, age=counts.obs["age"] * 2.0), validation=0.99, epochs=1)
    assert model.columns == before and model.config["columns"] == before.described()


def test_a_run_does_not_resume_with_other_covariates(tmp_path):
    counts = cells()
    model = SCVI.for_data(counts, **TOLD, **SMALL)
    model.fit(counts, epochs=1, progress=False, checkpoint=tmp_path / "run.npz")
    again = SCVI.for_data(counts, **TOLD, **SMALL)
    with pytest.raises(ValueError, match="data"):
        again.fit(
            changed(counts, age=counts.obs["age"][::-1]),
            epochs=1,
            progress=False,
            checkpoint=tmp_path / "run.npz",
            resume=True,
        )


@pytest.mark.parametrize(
    "columns",
    [
        {"batches": "donor"},
        {"categorical": ["sex"]},
        {"categorical": {"sex": ["f", "f"]}},
        {"categorical": {"sex": []}},
        {"continuous": {"age": [0.0, 0.0]}},
        {"continuous": {"age": [np.nan, 1.0]}},
        {"continuous": {"age": 3}},
        "sex",
    ],
)
def test_a_description_that_is_none(columns):
    with pytest.raises(ValueError, match="columns: "):
        columns_from(columns)


def test_a_file_whose_description_does_not_fit_its_weights(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.npz")
    arrays, meta = checkpoint.load(tmp_path / "model.npz")
    for columns in (None, {"categorical": {"sex": [str(i) for i in range(9)]}}, {"x": 1}, [1]):
        meta["config"]["columns"] = columns
        checkpoint.save(tmp_path / "other.npz", arrays, meta)
        with pytest.raises(ValueError, match="description does not fit"):
            SCVI.load(tmp_path / "other.npz")


def test_decoding_without_covariates_that_a_model_has_is_an_error(trained):
    model, _ = trained
    with pytest.raises(ValueError, match="covariates are missing"):
        model.generative(np.zeros((2, 2)), np.zeros((2, 1)), np.zeros(2, int))

"""Labels of pandas objects decide where both sides have them; what cannot be put in order is refused.

Know before reading: models/labels.py. Know after: what happens to a Series of batches in another order.
"""

import warnings

import numpy as np
import pandas
import pytest
from scipy import sparse

from models import SCVI, VAE, Autoencoder, TiedLinearAutoencoder
from models.annotation import annotation_of
from models.count_inputs import warn_of_labels_that_are_none
from models.counts import Counts, annotate_h5ad, as_matrix
from models.inputs import as_features
from models.labels import MISSING, by_cell, cells_of, genes_of
from tests.example_counts import CELLS, GENES, X, adata

N = 40
BATCH = np.array(["left", "right"])[np.arange(N) // 20]
NAMES = [f"c{i}" for i in range(N)]
GENE_NAMES = ["a", "b", "d", "e", "f"]
SHUFFLED = np.random.default_rng(1).permutation(N)


def values():
    """Counts that differ by batch, so that a batch in the wrong place shows."""
    rates = np.array([[1.0, 9.0, 3.0, 3.0, 3.0], [9.0, 1.0, 3.0, 3.0, 3.0]])[np.arange(N) // 20]
    return np.random.default_rng(0).poisson(rates)


FORMS = {
    "DataFrame": lambda x: pandas.DataFrame(x, NAMES, GENE_NAMES),
    "AnnData": lambda x: pytest.importorskip("anndata").AnnData(
        sparse.csr_matrix(x.astype(np.float32)),
        obs=pandas.DataFrame(index=NAMES),
        var=pandas.DataFrame(index=GENE_NAMES),
    ),
    "Counts": lambda x: Counts(sparse.csr_array(x), GENE_NAMES, NAMES),
}


@pytest.fixture(scope="module")
def model():
    """Trained on a frame, with batches in the order of its rows."""
    made = SCVI(5, 2, n_latent=2, n_hidden=4, n_layers=1, likelihood="nb")
    made.fit(FORMS["DataFrame"](values()), BATCH, epochs=30, batch_size=10, progress=False)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_names_are_found_in_whatever_holds_counts(form):
    counts = FORMS[form](values())
    assert genes_of(counts) == GENE_NAMES and cells_of(counts) == NAMES


def test_what_has_no_names_has_none():
    for bare in values(), sparse.csr_matrix(values()), values().tolist():
        assert genes_of(bare) is None and cells_of(bare) is None
    assert genes_of(pandas.DataFrame(values())) is None


def test_genes_of_a_frame_are_kept_and_others_are_refused(model):
    frame = FORMS["DataFrame"](values())
    assert model.genes == GENE_NAMES
    assert model.latent(frame, BATCH).shape == (N, 2)
    for strange in (frame[GENE_NAMES[::-1]], frame.rename(columns={"a": "z"})):
        with pytest.raises(ValueError, match="genes differ, or stand in another order"):
            model.latent(strange, BATCH)
    assert np.array_equal(model.latent(values(), BATCH), model.latent(frame, BATCH))


FEATURE_MODELS = {
    "Autoencoder": lambda: Autoencoder(5, hidden=(4,), n_latent=2),
    "VAE": lambda: VAE(5, hidden=(4,), n_latent=2),
    "TiedLinearAutoencoder": lambda: TiedLinearAutoencoder(5, 2),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", FEATURE_MODELS)
def test_columns_of_autoencoders_and_vaes_are_kept_and_others_are_refused(kind, form, tmp_path):
    made = FEATURE_MODELS[kind]()
    x = values()
    made.fit(FORMS[form](x), epochs=2, batch_size=10, progress=False)
    assert made.features == GENE_NAMES
    expected = made.latent(x)  # an array has no names, and goes by position
    made.save(tmp_path / "m.npz")
    frame = FORMS["DataFrame"](x)
    for model in (made, type(made).load(tmp_path / "m.npz")):
        for same in FORMS.values():
            assert np.array_equal(model.latent(same(x)), expected)
        turned = FORMS[form](x[:, ::-1])
        for attribute in ("columns", "var_names", "genes"):
            if hasattr(turned, attribute):
                setattr(turned, attribute, np.array(GENE_NAMES[::-1]))
        for strange in (turned, frame[GENE_NAMES[::-1]], frame.rename(columns={"b": "z"})):
            for ask in (model.latent, model.reconstruct):
                with pytest.raises(ValueError, match="^x: its features differ, or stand in ano"):
                    ask(strange)
            with pytest.raises(ValueError, match=r"in the place of '[ab]'; select and order"):
                model.fit(strange, epochs=1, progress=False)
        assert model.features == GENE_NAMES
    again = FEATURE_MODELS[kind]()
    again.fit(x, epochs=1, batch_size=10, progress=False)
    assert again.features is None and again.latent(frame).shape == (N, 2)


@pytest.mark.parametrize("dtype", ["Int64", "UInt16", "Float32", "boolean", object])
def test_frames_of_dtypes_of_pandas_are_numbers_as_others(dtype):
    """Among them convert_dtypes' result, and what is read with pyarrow; NA is a missing number."""
    x = np.minimum(values(), 1)
    frame = FORMS["DataFrame"](x).astype(dtype)
    if dtype is object:  # may be anything
        with pytest.raises(ValueError, match="has dtype object, must be numbers"):
            as_matrix(frame)
        return
    assert np.array_equal(as_matrix(frame), x)
    assert np.array_equal(as_features(frame, 5, np.float32), x)
    assert as_matrix(frame).dtype == np.float32
    frame.iloc[3, 2] = pandas.NA
    for read in (as_matrix, lambda x: as_features(x, 5, np.float32)):
        with pytest.raises(ValueError, match=r"row 3, column 2 \(from 0\) is nan"):
            read(frame)
        with pytest.raises(ValueError, match="has dtype object, must be .*numbers"):
            read(frame.assign(a="text"))


def test_anndata_that_nobody_gave_names_has_none(model):
    bare = pytest.importorskip("anndata").AnnData(values().astype(np.float32))
    assert genes_of(bare) is None
    assert np.array_equal(model.latent(bare, BATCH), model.latent(values(), BATCH))


@pytest.mark.parametrize("kind", ["SCVI", *FEATURE_MODELS])
def test_questions_to_models_that_were_never_fitted_warn_where_they_are_asked(kind, recwarn):
    model = SCVI(5, n_latent=2, n_hidden=4) if kind == "SCVI" else FEATURE_MODELS[kind]()
    model.latent(values())
    (said,) = recwarn.list
    assert f"this {kind} was never fitted" in str(said.message) and said.filename == __file__
    model.fit(values(), epochs=1, batch_size=10, progress=False)
    model.latent(values())
    assert len(recwarn.list) == 1
    if kind == "VAE":
        VAE(5, hidden=(4,), n_latent=2).generate(2)
        VAE(5, hidden=(4,), n_latent=2).elbo(values())
        assert [warning.filename for warning in recwarn.list[1:]] == [__file__] * 2


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None])
def test_seeds_that_are_none_are_refused_by_name(seed):
    for make in (SCVI, Autoencoder, VAE):
        with pytest.raises(ValueError, match="^seed must be a whole number of at least 0, not"):
            make(5, n_latent=2, seed=seed)
    if seed is not None:  # then it is the model's
        with pytest.raises(ValueError, match="^seed must be a whole number of at least 0, not"):
            SCVI(5, n_latent=2, n_hidden=4).fit(values(), seed=seed, progress=False)
        with pytest.raises(ValueError, match="^seed must be a whole number of at least 0, not"):
            VAE(5, hidden=(4,), n_latent=2).fit(values(), seed=seed, progress=False)
    assert SCVI(5, n_latent=2, seed=2.0).config["seed"] == 2


def test_a_frame_with_a_row_for_each_gene_is_a_warning(recwarn):
    cells = [f"mouse1_{'ACGT'[i % 4]}ATTGCCATTGAC" for i in range(N)]
    frame = pandas.DataFrame(values(), cells, ["Actb", "Cd3e", "Rpl13", "Krt8", "Sftpc"])
    SCVI(5, n_latent=2, n_hidden=4).fit(frame, epochs=1, progress=False)
    assert not recwarn.list
    SCVI(N, n_latent=2, n_hidden=4).fit(frame.T, epochs=1, progress=False)
    (said,) = recwarn.list
    assert "'Actb'): if that is the wrong way round, transpose the counts" in str(said.message)
    assert said.filename == __file__


def test_antibodies_of_anndata_are_a_warning(recwarn):
    counts = FORMS["AnnData"](values())
    counts.var["feature_types"] = ["Gene Expression"] * 5
    SCVI(5, n_latent=2, n_hidden=4).fit(counts, epochs=1, progress=False)
    assert not recwarn.list
    counts.var["feature_types"] = ["Gene Expression"] * 3 + ["Antibody Capture"] * 2
    SCVI(5, n_latent=2, n_hidden=4).fit(counts, epochs=1, progress=False)
    (said,) = recwarn.list
    assert "counts: of 5 features 2 'Antibody Capture' are no genes" in str(said.message)
    assert said.filename == __file__


@pytest.mark.parametrize("form", FORMS)
def test_batches_go_by_the_names_of_cells(form, model):
    counts = FORMS[form](values())
    expected = model.elbo(counts, BATCH)
    assert np.abs(model.elbo(counts, BATCH[SHUFFLED]) - expected).mean() > 0.1  # it matters
    of_all = pandas.Series([*BATCH, "neither"], [*NAMES, "another cell"])
    for series in (
        pandas.Series(BATCH, NAMES),
        pandas.Series(BATCH, NAMES).iloc[SHUFFLED],
        pandas.Series(BATCH, NAMES, dtype="category").iloc[SHUFFLED],
        of_all.iloc[::-1],
        pandas.Series(BATCH),
    ):
        assert np.array_equal(model.elbo(counts, series), expected)
    assert np.array_equal(model.elbo(values(), pandas.Series(BATCH, NAMES)), expected)
    strange = pandas.Series(BATCH, [f"another {name}" for name in NAMES])
    with pytest.raises(
        ValueError, match="^batch: its index lacks 40 of the 40 cells, such as 'c0'"
    ):
        model.elbo(counts, strange)


@pytest.mark.parametrize("form", FORMS)
def test_training_takes_batches_by_the_names_of_cells(form):
    counts = FORMS[form](values())
    weights = []
    for batch in (BATCH, pandas.Series(BATCH, NAMES).iloc[SHUFFLED]):
        made = SCVI(5, 2, n_latent=2, n_hidden=4, n_layers=1, likelihood="nb")
        made.fit(counts, batch, epochs=2, batch_size=10, progress=False)
        weights.append(made.state_dict())
    for name, array in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], array, err_msg=name)


def test_rows_that_were_sorted_go_by_their_numbers():
    frame = pandas.DataFrame(values())
    series = pandas.Series(BATCH).iloc[SHUFFLED]
    assert np.array_equal(by_cell(series, cells_of(frame), "batch"), BATCH)
    turned = by_cell(pandas.Series(BATCH), cells_of(frame.iloc[SHUFFLED]), "batch")
    assert np.array_equal(turned, BATCH[SHUFFLED])


@pytest.mark.parametrize("word", [*MISSING, "none", "na", "Null", "missing"])
def test_one_rule_says_which_labels_mean_that_there_is_none(word, tmp_path):
    """A table's field, a label in obs that is warned of, and a cell that is left out."""
    path = tmp_path / "m.csv"
    path.write_text(f"cell,batch\nc0,{word}\nc1,b\nc2,b\n")
    in_table = annotation_of(path, np.array(["c0", "c1", "c2"])).obs["batch"].tolist()[0] is None
    labels = np.array([word, "b"])[np.arange(N) % 2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_labels_that_are_none([word, "b"], np.arange(N) % 2)
        found = Counts(sparse.csr_array(values()), GENE_NAMES, NAMES, {"batch": labels})
        left_out = len(found.annotated("batch")) < N
    said = [str(warning.message) for warning in caught]
    is_warned = any("as cells without one do" in text for text in said)
    assert in_table == is_warned == left_out == (word in MISSING)


def test_an_index_of_pandas_has_no_names_of_cells():
    for values in (pandas.Index(["a", "b"]), pandas.to_datetime(["2024-01-31", "2024-02-01"])):
        assert by_cell(values, ["c1", "c2"], "batch") is values


def test_groups_go_by_the_names_of_cells(model):
    counts = FORMS["DataFrame"](values())
    left = pandas.Series(BATCH == "left", NAMES)
    expected = model.differential_expression(counts, BATCH == "left", batch=BATCH, n_samples=200)
    found = model.differential_expression(
        counts, left.iloc[SHUFFLED], ~left.iloc[::-1], batch=BATCH, n_samples=200
    )
    np.testing.assert_array_equal(found["raw_mean_a"], expected["raw_mean_a"])
    positions = pandas.Series(np.arange(20), index=NAMES[20:])
    found = model.differential_expression(counts, positions, batch=BATCH, n_samples=200)
    np.testing.assert_array_equal(found["raw_mean_a"], expected["raw_mean_a"])
    np.testing.assert_array_equal(found["gene"], expected["gene"])


def test_names_that_occur_twice_are_no_order():
    twice = pandas.Series([1, 2, 3], ["a", "b", "a"])
    assert by_cell(twice, ["a", "b", "a"], "batch").tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="batch: stands in another order .* occur twice"):
        by_cell(twice, ["a", "a", "b"], "batch")


def test_columns_of_counts_go_by_the_names_of_cells():
    kinds = pandas.Series(BATCH, NAMES)
    obs = pandas.DataFrame({"kind": kinds}).iloc[SHUFFLED]
    for given in (obs, dict(obs.items())):
        counts = Counts(sparse.csr_array(values()), GENE_NAMES, NAMES, given)
        assert counts.obs["kind"].tolist() == BATCH.tolist()


def test_results_are_added_by_the_names_of_cells(tmp_path):
    adata(sparse.csr_matrix(X)).write_h5ad(tmp_path / "a.h5ad")
    order = np.random.default_rng(0).permutation(len(CELLS))
    clusters = pandas.Series(np.arange(len(CELLS)), CELLS).iloc[order]
    z = pandas.DataFrame(np.arange(len(CELLS))[:, None] * [1.0, 2.0], CELLS).iloc[order]
    annotate_h5ad(
        tmp_path / "a.h5ad", tmp_path / "b.h5ad", obsm={"z": z}, obs={"cluster": clusters}
    )
    found = pytest.importorskip("anndata").read_h5ad(tmp_path / "b.h5ad")
    assert found.obs["cluster"].tolist() == list(range(len(CELLS)))
    assert found.obsm["z"][:, 1].tolist() == list(range(0, 2 * len(CELLS), 2))
    assert list(found.var_names) == list(GENES)

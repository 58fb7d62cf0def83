"""Models that scvi-tools saved: the same numbers as there, and nothing of their files is run.

tests/data/README.md says where the folders are from. Know before reading: models/scvi_tools.py.
"""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from minigrad.functional import data_of
from models import SCVI
from models.counts import Counts
from models.scvi_tools import saved_model
from tests.test_torch_files import Harm, archive

FOLDER = Path(__file__).parent / "data" / "scvi_folder"
MADE = {
    "default": dict(likelihood="zinb", n_batches=1, library="observed", n_latent=2, dropout=0.1),
    "nb_covariates": dict(
        likelihood="nb", n_batches=2, library="observed", n_layers=2, n_latent=3, dropout=0.2
    ),
    "zinb_latent_library": dict(
        likelihood="zinb",
        n_batches=2,
        library="latent",
        dispersion="gene-batch",
        encode_covariates=True,
    ),
}


def recorded(name):
    """What scvi-tools said of 12 cells, and these cells as Counts."""
    found = dict(np.load(FOLDER / name / "expected.npz", allow_pickle=False))
    obs = {key: found.pop(key) for key in ("donor", "sex", "site", "age", "mito")}
    genes = [f"G{i}" for i in range(20)]
    return found, Counts(sparse.csr_array(found["x"]), genes, [f"c{i}" for i in range(12)], obs)


@pytest.mark.parametrize("name", MADE)
def test_a_folder_has_what_its_model_was_made_with(name):
    model = SCVI.from_scvi_tools(FOLDER / name)
    assert {key: model.config[key] for key in MADE[name]} == MADE[name]
    assert model.genes == [f"G{i}" for i in range(20)] and model.trained
    if name == "default":
        assert model.columns.described() is None
        return
    assert model.batches == ["d10", "d2"] and model.columns.batch == "donor"
    if name == "nb_covariates":
        assert model.columns.categorical == {"sex": ["f", "m"], "site": ["a", "b", "c"]}
        assert list(model.columns.continuous) == ["age", "mito"]


@pytest.mark.parametrize("name", MADE)
def test_its_answers_are_those_of_scvi_tools(name):
    """To rounding: both compute in float32."""
    expected, counts = recorded(name)
    model = SCVI.from_scvi_tools(FOLDER / name)
    mean, std = model.latent(counts, return_std=True)  # batch and covariates are found in obs
    np.testing.assert_allclose(mean, expected["z_mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, expected["z_std"], rtol=1e-5)
    x, codes, covariates = model.minibatches(counts).columns
    log_library = model.observed_log_library(x)
    if model.library == "latent":
        _, q_l = model.inference(x, batch=codes, covariates=covariates)
        np.testing.assert_allclose(data_of(q_l.loc), expected["l_mean"], rtol=1e-5)
        np.testing.assert_allclose(data_of(q_l.scale), expected["l_std"], rtol=1e-5)
        log_library = expected["l_mean"]
    heads = model.heads(expected["z_mean"], codes, covariates=covariates)
    log_p = data_of(model.log_prob(x, log_library, **heads))
    np.testing.assert_allclose(log_p, expected["log_p"], rtol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_it_is_the_model_of_its_state_dict(name):
    _, counts = recorded(name)
    saved = saved_model(FOLDER / name / "model.pt")
    of_folder = SCVI.from_scvi_tools(str(FOLDER / name))
    of_state = SCVI.from_scvi_tools(saved.state, **saved.config)
    of_state.batches = saved.batches  # which a state dict does not say
    np.testing.assert_array_equal(of_state.latent(counts), of_folder.latent(counts))
    np.testing.assert_array_equal(of_state.elbo(counts), of_folder.elbo(counts))
    assert SCVI.from_scvi_tools(FOLDER / name, dropout=0.7).config["dropout"] == 0.7


@pytest.mark.parametrize("name", MADE)
def test_it_can_be_saved_asked_and_trained_on(name, tmp_path):
    _, counts = recorded(name)
    model = SCVI.from_scvi_tools(FOLDER / name)
    model.save(tmp_path / "m.npz")
    again = SCVI.load(tmp_path / "m.npz")
    np.testing.assert_array_equal(again.denoise(counts), model.denoise(counts))
    if model.library == "observed":
        with pytest.raises(ValueError, match="weights of scvi-tools with an observed library: giv"):
            again.generate(4)
    else:
        assert again.generate(4).sum(axis=1).min() > 10
    assert again.generate(4, library_size=100.0).shape == (4, 20)
    again.fit(counts, epochs=1, batch_size=6, progress=False)
    assert again.generate(4).shape == (4, 20) and again.genes == model.genes


def test_the_genes_of_a_folder_are_asked_for():
    _, counts = recorded("default")
    turned = Counts(counts.X, counts.genes[::-1], counts.cells)
    with pytest.raises(ValueError, match="genes differ, or stand in another order"):
        SCVI.from_scvi_tools(FOLDER / "default").latent(turned)


# ----------------------------------------------------------------------------- what is refused, and how
def content(name="default"):
    """What a folder holds, as plain values."""
    saved = saved_model(FOLDER / name)
    mapping = np.array(saved.batches, object)
    asked = dict(n_layers=1, gene_likelihood="zinb", use_observed_lib_size=True)
    return {
        "model_state_dict": {**saved.state, "pyro_param_store": {}},
        "var_names": np.array(saved.genes),
        "attr_dict": {
            "init_params_": {"kwargs": {"kwargs": {}}, "non_kwargs": asked},
            "registry_": {
                "model_name": "SCVI",
                "setup_args": {"batch_key": None},
                "field_registries": {"batch": {"state_registry": {"categorical_mapping": mapping}}},
            },
        },
    }


def folder_of(path, value):
    path.mkdir(exist_ok=True)
    archive(path / "model.pt", pickle.dumps(value, 2))
    return path


def test_a_folder_made_to_do_harm_does_none(tmp_path):
    mark = tmp_path / "mark"
    value = content()
    value["attr_dict"]["history_"] = {"train_loss": Harm(mark)}  # where nobody looks
    folder = folder_of(tmp_path / "a", value)
    pickle.loads(pickle.dumps(value, 2))
    os.rmdir(mark)  # who unpickles it, is harmed
    assert SCVI.from_scvi_tools(folder).genes == [f"G{i}" for i in range(20)]
    for place in ("px_r", "decoder.px_scale_decoder.0.bias"):
        value["model_state_dict"][place] = Harm(mark)
        with pytest.raises(
            ValueError, match="model.pt: holds a call of os.makedirs, which was not"
        ):
            SCVI.from_scvi_tools(folder_of(tmp_path / "a", value))
    for part in ("var_names", "model_state_dict", "attr_dict"):
        with pytest.raises(ValueError, match="model.pt: "):
            SCVI.from_scvi_tools(folder_of(tmp_path / "a", {**content(), part: Harm(mark)}))
    assert not mark.exists()


def changed(*path, to):
    """The content with one value changed."""
    value = content()
    at = value
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return value


ASKED = ("attr_dict", "init_params_", "non_kwargs")
REGISTRY = ("attr_dict", "registry_")
REFUSED = {
    "another model": (
        lambda: changed(*REGISTRY, "model_name", to="TOTALVI"),
        "holds a TOTALVI; only SCVI is read",
    ),
    "log-normal latent space": (
        lambda: changed(*ASKED, "latent_distribution", to="ln"),
        "was made with latent_distribution='ln', which SCVI here does not have",
    ),
    "no batch norm": (
        lambda: changed(
            "attr_dict", "init_params_", "kwargs", to={"k": {"use_batch_norm": "none"}}
        ),
        "was made with use_batch_norm='none'",
    ),
    "size factors": (
        lambda: changed(*REGISTRY, "setup_args", to={"size_factor_key": "s"}),
        "was told size factors",
    ),
    "normal likelihood": (
        lambda: changed(*ASKED, "gene_likelihood", to="normal"),
        "likelihood must be one of .* not 'normal'",
    ),
    "two layers": (
        lambda: changed(*ASKED, "n_layers", to=2),
        "^state: has weights of 1 hidden layers, where n_layers is 2; give n_batches, n_l",
    ),
    "batches": (
        lambda: changed(
            *REGISTRY,
            "field_registries",
            to={"batch": {"state_registry": {"categorical_mapping": np.array(["a", "b"])}}},
        ),
        "^state: 'decoder.px_decoder.*has shape .* give n_batches, n_layers, likelihood, dispersion",
    ),
    "no model": (lambda: {"a": 1}, "of torch.save, but not of scvi-tools: it has no model_state_d"),
    "nothing": (lambda: None, "of torch.save, but not of scvi-tools"),
    "no registry": (lambda: changed("attr_dict", to={}), "damaged, or no model that scvi-tools"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_of_other_models_are_refused(case, tmp_path):
    make, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        SCVI.from_scvi_tools(folder_of(tmp_path / "a", make()))


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds one model.pt; there are: none"):
        SCVI.from_scvi_tools(tmp_path)
    with pytest.raises(FileNotFoundError):
        SCVI.from_scvi_tools(tmp_path / "model.pt")
    (tmp_path / "model_params.pt").touch()
    with pytest.raises(ValueError, match="before 0.15; write it again there, with SCVI.convert_le"):
        SCVI.from_scvi_tools(tmp_path)
    (tmp_path / "model_params.pt").unlink()
    for name in ("a_model.pt", "b_model.pt"):
        shutil.copy(FOLDER / "default" / "model.pt", tmp_path / name)
    with pytest.raises(FileNotFoundError, match="there are: a_model.pt, b_model.pt"):
        SCVI.from_scvi_tools(tmp_path)
    (tmp_path / "b_model.pt").unlink()  # with a prefix, as save(prefix=...) writes it
    assert SCVI.from_scvi_tools(tmp_path).n_genes == 20


def test_damaged_files_are_an_error_in_a_sentence(tmp_path):
    whole = (FOLDER / "default" / "model.pt").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            damaged[at] ^= 1 << rng.integers(8)
        (tmp_path / "model.pt").write_bytes(damaged[: len(whole) - (i % 3) * 900])
        try:
            SCVI.from_scvi_tools(tmp_path)
        except ValueError as error:
            refused += 1
            assert "model.pt: " in str(error) or "state: " in str(error)
    assert refused > 40


# --------------------------------------------------------------------------------- as a mapping
def test_a_latent_library_needs_its_prior():
    saved = saved_model(FOLDER / "zinb_latent_library")
    state = {name: array for name, array in saved.state.items() if "library_log" not in name}
    with pytest.raises(ValueError, match="^state: has no library_log_means and library_log_vars"):
        SCVI.from_scvi_tools(state, **saved.config)
    prior = dict(library_log_mean=[3.0, 4.0], library_log_var=[0.2, 0.3])
    model = SCVI.from_scvi_tools(state, **saved.config, **prior)
    assert model.library_log_mean.tolist() == [3.0, 4.0]


def test_weights_of_something_else_are_refused_in_a_sentence():
    saved = saved_model(FOLDER / "nb_covariates")
    with pytest.raises(
        ValueError, match="^state: has no 'z_encoder.*; pass the state dict of an SC"
    ):
        SCVI.from_scvi_tools({"weight": np.ones(3)})
    with pytest.raises(ValueError, match="^state: has weights of 2 hidden layers, where n_lay"):
        SCVI.from_scvi_tools(saved.state, **{**saved.config, "n_layers": 1})
    layers = {key: value for key, value in saved.config.items() if key != "n_layers"}
    assert SCVI.from_scvi_tools(saved.state, **layers).config["n_layers"] == 2  # read from them
    for wrong in (dict(n_batches=1), dict(n_batches=3), dict(columns=None), dict(n_hidden=5)):
        with pytest.raises(ValueError, match="^state: '.*has shape .* as in its training"):
            SCVI.from_scvi_tools(saved.state, **{**saved.config, **wrong})

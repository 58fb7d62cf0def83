"""A training that cannot begin leaves the model as it was, to the bit; one that ends early, at its last whole epoch."""

import copy
import warnings

import numpy as np
import pytest
from scipy import sparse

from minigrad import checkpoint, optim, training
from minigrad.fit import fit
from minigrad.nn import Linear
from models import SCVI, VAE, Autoencoder, TiedLinearAutoencoder, recipe
from models.counts import Counts

N_CELLS, N_GENES = 40, 6


def cells(n_cells=N_CELLS, seed=0):
    """Counts with names of genes, a batch of two labels, and covariates."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(3.0, (n_cells, N_GENES)).astype(np.float32)
    obs = {
        "donor": np.array(["a", "b"])[np.arange(n_cells) % 2],
        "sex": np.array(["f", "m"])[rng.integers(0, 2, n_cells)],
        "age": rng.normal(50.0, 9.0, n_cells),
    }
    return Counts(sparse.csr_array(x), list("uvwxyz"), range(n_cells), obs)


def covariate_model():
    return SCVI.for_data(
        cells(), "donor", categorical=["sex"], continuous=["age"], n_latent=2, n_hidden=8
    )


MODELS = {
    "autoencoder": lambda: Autoencoder(N_GENES, hidden=(8,), n_latent=2),
    "pca": lambda: TiedLinearAutoencoder(N_GENES, 2),
    "vae": lambda: VAE(N_GENES, hidden=(8,), n_latent=2, sigma="learned"),
    "scvi": lambda: SCVI(N_GENES, n_latent=2, n_hidden=8),
    "scvi, latent library": lambda: SCVI(N_GENES, n_latent=2, n_hidden=8, library="latent"),
    "scvi, covariates": covariate_model,
}


def all_of(model):
    """Everything a model consists of: arrays as bytes, and all else of each module."""
    found = {name: (a.dtype, a.tobytes()) for name, a in model.state_dict().items()}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not hasattr(value, "shape") and not isinstance(value, (Linear, list)):
                found[f"{prefix}.{name}"] = copy.deepcopy(value) if name == "config" else value
    for name in ("batches", "genes"):
        found[name] = list(getattr(model, name, None) or [])
    return found


def assert_as_before(model, before):
    after = all_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name] is value or after[name] == value, name


def failing(at):
    """A loss that fails in the step of this number, counted from 1."""
    calls = []

    def loss_of(model, error):
        right = type(model).loss

        def loss(*minibatch, **keywords):
            calls.append(1)
            if len(calls) == at:
                raise error
            return right(model, *minibatch, **keywords)

        return loss

    return loss_of


def train(model, x=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = cells() if x is None else x
        if not isinstance(model, SCVI) and isinstance(x, Counts):
            x = x.X
        return model.fit(
            x, **{**dict(epochs=3, batch_size=10, validation=0.25, progress=False), **options}
        )


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("is_trained", [False, True])
def test_what_is_refused_changes_nothing(model, is_trained, tmp_path):
    """Arguments and files of all kinds; also for a model that is trained on, with other settings than before."""
    if is_trained:
        train(model)
    model.train()  # as somebody may have left it
    before = all_of(model)
    (tmp_path / "damaged.npz").write_bytes(b"PK")

    def refused(error, *x, **options):
        with pytest.raises(error):
            train(model, *x, **options)
        assert_as_before(model, before)

    refused(OSError, checkpoint=tmp_path / "missing" / "run.npz")
    refused(OSError, checkpoint=tmp_path)
    refused(ValueError, checkpoint=tmp_path / "damaged.npz", resume=True)
    refused(ValueError, resume=True)
    refused(ValueError, validation=1.0)
    refused(ValueError, validation=0.99)
    refused(ValueError, validation=0.0, early_stopping=True)
    refused(ValueError, device="nonsense")
    refused(ValueError, parallel="nonsense")
    refused(ValueError, seed=-1)
    refused(ValueError, epochs=0)
    refused(ValueError, sparse.csr_array(np.full((N_CELLS, N_GENES), np.nan)))
    refused(ValueError, np.ones((N_CELLS, N_GENES + 1)))
    if hasattr(model, "kl_warmup"):
        refused(ValueError, kl_warmup=0.1, validation=0.99)
        refused(ValueError, np.ones((N_CELLS, N_GENES + 1)), kl_warmup=0.1)


@pytest.mark.parametrize("part", ["weights/", "optimizer/", "good/", "best/"])
def test_a_checkpoint_with_parts_missing_changes_nothing(model, part, tmp_path):
    path = tmp_path / "run.npz"
    train(model, checkpoint=path, early_stopping=2)
    arrays, meta = checkpoint.load(path)
    last = [name for name in arrays if name.startswith(part)][-1]
    arrays.pop(last)
    checkpoint.save(path, arrays, meta)
    model.load_state_dict({name: a + 1.0 for name, a in model.state_dict().items()})
    before = all_of(model)
    with pytest.raises(ValueError, match="run.npz: cannot be resumed from"):
        train(model, checkpoint=path, resume=True, early_stopping=2)
    assert_as_before(model, before)


@pytest.mark.parametrize(
    "error", [FloatingPointError(), KeyError("x"), MemoryError(), SystemExit()]
)
def test_an_error_in_the_first_epoch_changes_nothing(model, error):
    before = all_of(model)
    model.loss = failing(at=2)(model, error)
    with pytest.raises(type(error)):
        train(model)
    del model.loss
    assert_as_before(model, before)


def test_ctrl_c_before_the_first_step_changes_nothing(model, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    before = all_of(model)
    monkeypatch.setattr("minigrad.fit.prepare", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    assert_as_before(model, before)


def test_ctrl_c_in_the_start_of_scvi_changes_nothing(monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    model = MODELS["scvi"]()
    before = all_of(model)
    monkeypatch.setattr(recipe, "_pass_on", pressed)
    with pytest.raises(KeyboardInterrupt):
        train(model)
    assert_as_before(model, before)


def ends_of_epochs(make, monkeypatch, **options):
    """The weights at the end of each epoch of an undisturbed training."""
    found = []
    end_epoch = training.Run.end_epoch

    def and_remember(run, scores):
        end_epoch(run, scores)
        found.append(run.model.state_dict())

    with monkeypatch.context() as patched:
        patched.setattr(training.Run, "end_epoch", and_remember)
        train(make(), **options)
    return found


def assert_weights(model, expected):
    for name, a in model.state_dict().items():
        np.testing.assert_array_equal(a, expected[name], err_msg=name)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("error", [MemoryError(), ValueError(), FloatingPointError()])
def test_an_error_later_leaves_the_last_whole_epoch(kind, error, monkeypatch):
    model = MODELS[kind]()
    batch_size = N_CELLS if kind == "pca" else 10
    expected = ends_of_epochs(MODELS[kind], monkeypatch, batch_size=batch_size)
    n_steps = 1 if kind == "pca" else 3
    model.loss = failing(at=2 * n_steps + 1)(model, error)
    with pytest.raises(type(error)):
        train(model, batch_size=batch_size)
    del model.loss
    assert model.trained and not model.training
    assert model.trained_on == {"rows": 30, "epochs": 2}
    assert_weights(model, expected[1])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_an_error_in_a_resumed_run_leaves_its_last_whole_epoch(kind, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    expected = ends_of_epochs(MODELS[kind], monkeypatch)
    stopped = MODELS[kind]()
    n_steps = 3
    stopped.loss = failing(at=2 * n_steps + 2)(stopped, KeyboardInterrupt())
    history = train(stopped, checkpoint=path)
    assert history.interrupted and len(history) == 2
    model = MODELS[kind]()
    model.loss = failing(at=1)(model, MemoryError())
    with pytest.raises(MemoryError):
        train(model, checkpoint=path, resume=True)
    del model.loss
    assert model.trained and model.trained_on == {"rows": 30, "epochs": 2}
    assert_weights(model, expected[1])


def test_a_disk_that_is_full_leaves_the_epoch_that_was_not_written(monkeypatch, tmp_path):
    expected = ends_of_epochs(MODELS["scvi"], monkeypatch)
    saves = []

    def full(*_):
        saves.append(1)
        if len(saves) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(training.files, "save", full)
    model = MODELS["scvi"]()
    with pytest.raises(OSError, match="No space left"):
        train(model, checkpoint=tmp_path / "run.npz")
    assert model.trained
    assert_weights(model, expected[1])


@pytest.mark.parametrize("kind", MODELS)
def test_after_a_refusal_a_model_trains_as_if_it_had_not_been(kind):
    model = MODELS[kind]()
    with pytest.raises(ValueError):
        train(model, cells(seed=1), validation=0.99)
    train(model)
    other = MODELS[kind]()
    train(other)
    assert_weights(model, other.state_dict())


def test_a_module_that_is_no_model_of_ours_is_treated_alike(tmp_path):
    class Slope(Linear):
        def loss(self, x, *, progress, rng):
            self.bias.data[...] = 7.0
            raise ArithmeticError("no")

    module = Slope(3, 1)
    before = all_of(module)
    with pytest.raises(ArithmeticError):
        fit(
            module,
            (np.ones((8, 3), np.float32),),
            epochs=1,
            optimizer=optim.SGD,
            validation=0.0,
            progress=False,
        )
    assert_as_before(module, before)


def test_one_copy_is_made_of_the_weights(monkeypatch):
    """A model guards what it changes, and so does minigrad.fit, which it calls: together they keep one copy."""
    model = MODELS["vae"]()
    copies = []
    state_dict = type(model).state_dict

    def counted(self):
        copies.append(1)
        return state_dict(self)

    def stop(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(type(model), "state_dict", counted)
    monkeypatch.setattr("minigrad.fit.prepare", stop)
    for n_calls in (1, 2):  # the second is guarded as the first was
        with pytest.raises(RuntimeError):
            train(model)
        assert len(copies) == n_calls

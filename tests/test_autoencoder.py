"""models/autoencoder.py against plain NumPy, finite differences, and the singular value decomposition."""

import itertools

import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import subspace_angles

from minigrad import checkpoint
from minigrad.data import split
from models import VAE, Autoencoder, TiedLinearAutoencoder, inputs
from models.autoencoder import LOSSES
from models.counts import Counts
from models.inputs import as_features, mean_variance, means
from tests.copies import WAYS, check_copies
from tests.differences import check_gradients

KINDS = [(output, loss) for output, losses in LOSSES.items() for loss in losses]
quiet = dict(progress=False, device="numpy")


def rows(n=200, n_features=20, rank=3, seed=0):
    """Real-valued rows of a linear space of few dimensions."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, rank)) @ rng.standard_normal(
        (rank, n_features)
    ) + rng.standard_normal(n_features)


def suited(x, output):
    """Rows in the range of an output."""
    if output == "linear":
        return x
    x = (x - x.min(axis=0)) / (x.max(axis=0) - x.min(axis=0))
    return x / x.sum(axis=1, keepdims=True) if output == "softmax" else x


# ------------------------------------------------------------------------------------------------------------ the model
def by_hand(model, x):
    """The loss of each row in plain NumPy, from the weights alone."""
    state, raw = model.state_dict(), x
    for part in ("encoder", "decoder"):
        names = [n for n in state if n.startswith(part) and n.endswith("weight")]
        for name in names:
            raw = raw @ state[name].T + state[name.replace("weight", "bias")]
            if name != names[-1]:
                raw = np.where(raw > 0, raw, 0)
        if part == "encoder" and model.latent_activation == "relu":
            raw = np.where(raw > 0, raw, 0)
    out = {
        "linear": raw,
        "sigmoid": 1 / (1 + np.exp(-raw)),
        "softmax": np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True),
    }[model.output]
    if model.objective == "mse":
        return ((x - out) ** 2).sum(axis=1) / x.shape[1], out
    if model.objective == "bce":
        return -(x * np.log(out) + (1 - x) * np.log(1 - out)).sum(axis=1) / x.shape[1], out
    return -(x * np.log(out)).sum(axis=1) / x.shape[1], out


@pytest.mark.parametrize("activation", ["linear", "relu"])
@pytest.mark.parametrize("hidden", [(), (7,), (9, 6)])
@pytest.mark.parametrize("output, loss", KINDS)
def test_losses_and_outputs_are_the_formulas(output, loss, hidden, activation):
    x = suited(rows(30), output)
    model = Autoencoder(
        20, hidden, 4, output, loss, dtype=np.float64, latent_activation=activation, dropout=0.5
    ).eval()
    expected, out = by_hand(model, x)
    np.testing.assert_allclose(model.row_loss(x).data, expected, rtol=1e-12)
    np.testing.assert_allclose(model.reconstruct(x), out, rtol=1e-12)
    assert model.loss(sparse.csr_array(x)).item() == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_allclose(model.validation(x)["loss"], expected, rtol=1e-12)


@pytest.mark.parametrize("output, loss", KINDS)
def test_gradients_with_dropout_and_noise(output, loss):
    x = suited(rows(12, 6), output)
    model = Autoencoder(
        6, (8, 5), 3, output, loss, dropout=0.3, noise=0.2, dtype=np.float64, seed=3
    )
    check_gradients(model, lambda: model.loss(x, rng=np.random.default_rng(5)))


def test_defaults_by_output():
    assert [Autoencoder(3, (), 2, output).objective for output in LOSSES] == [
        "mse",
        "mse",
        "cross_entropy",
    ]
    assert [p.shape for p in Autoencoder(10).parameters()][::2] == [
        (512, 10),
        (256, 512),
        (32, 256),
        (256, 32),
        (512, 256),
        (10, 512),
    ]


def test_bce_of_extreme_logits_is_finite_and_right():
    model = Autoencoder(1, (), 1, "sigmoid", "bce")
    for layer in (model.encoder[0], model.decoder[0]):
        layer.weight.data[...], layer.bias.data[...] = 1.0, 0.0
    model.decoder[0].weight.data[...] = 1e4
    x = np.array(
        [[0.0], [1.0], [0.5]], np.float32
    )  # logits 0, 1e4, 5e3: the half costs 5e3 - 2.5e3
    np.testing.assert_allclose(model.row_loss(x).data, [np.log(2), 0.0, 2500.0], rtol=1e-6)
    model.decoder[0].weight.data[...] = -1e4
    np.testing.assert_allclose(model.row_loss(x).data, [np.log(2), 1e4, 2500.0], rtol=1e-6)
    model.loss(x).backward()
    assert np.isfinite(model.decoder[0].weight.grad).all()


def test_noise_and_dropout_are_for_training_only():
    x = rows(40).astype(np.float32)
    model = Autoencoder(20, (16,), 4, dropout=0.4, noise=0.5)
    assert (
        np.array_equal(model.latent(x), model.latent(x)) and model.training
    )  # predicting leaves the mode as it was
    loss = [model.loss(x, rng=np.random.default_rng(seed)).item() for seed in (0, 0, 1)]
    assert loss[0] == loss[1] != loss[2]
    for function, given in (
        (model.encode, x),
        (model.decode, np.ones((9, 4), np.float32)),
    ):  # dropout is in both halves
        assert not np.array_equal(
            *(function(given, np.random.default_rng(seed)).data for seed in (0, 1))
        )
    model.eval()  # no dropout now, but a denoiser is validated by denoising
    noisy = x + np.float32(0.5) * np.random.default_rng(4).standard_normal(
        x.shape, dtype=np.float32
    )
    expected = np.mean((model.reconstruct(noisy) - x) ** 2, axis=1)
    np.testing.assert_allclose(
        model.validation(x, rng=np.random.default_rng(4))["loss"], expected, rtol=1e-5
    )


def test_arithmetic_stays_in_the_dtype():
    for dtype in (np.float32, np.float64):
        for output, loss in KINDS:
            x = suited(rows(10), output)
            model = Autoencoder(20, (8,), 3, output, loss, noise=0.1, dropout=0.1, dtype=dtype)
            assert model.loss(x.astype(dtype), rng=np.random.default_rng(0)).dtype == dtype
            assert model.latent(x).dtype == model.reconstruct(x).dtype == dtype


# ------------------------------------------------------------------------------------------------------------- training
def test_low_rank_data_pass_a_bottleneck_of_their_rank_and_no_narrower_one():
    x = rows(400, 20, 3)
    error = {}
    for n_latent in (2, 3, 30):  # the last is overcomplete
        model = Autoencoder(20, (), n_latent, dtype=np.float64)
        history = model.fit(x, epochs=60, learning_rate=2e-2, batch_size=32, **quiet)
        error[n_latent] = np.mean((model.reconstruct(x) - x) ** 2) / x.var(axis=0).mean()
    assert error[3] < 1e-6 and error[30] < 1e-6
    left = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    assert (
        left[2] / left.sum() <= error[2] < 1.05 * left[2] / left.sum()
    )  # no linear code of two is better than PCA
    assert len(history) == 60 and history["validation_loss"][-1] < 1e-5


def test_a_curve_needs_one_number_a_row():
    t = np.random.default_rng(0).uniform(-2, 2, 600)
    x = np.stack([t, t**2, np.sin(2 * t), np.cos(t)], axis=1)
    model = Autoencoder(4, (64,), 1)
    model.fit(x, epochs=60, learning_rate=1e-2, batch_size=64, **quiet)
    unexplained = np.mean((model.reconstruct(x) - x) ** 2) / x.var(axis=0).mean()
    spectrum = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    assert unexplained < 0.02 < 0.3 < 1 - spectrum[0] / spectrum.sum()


@pytest.mark.parametrize("output, loss", KINDS)
def test_every_loss_falls_towards_its_least_value(output, loss):
    x = suited(rows(300, 12, 2), output)
    model = Autoencoder(12, (32,), 4, output, loss)
    before = np.mean(model.eval().row_loss(x.astype(np.float32)).data)
    model.train()
    model.fit(x, epochs=30, learning_rate=1e-2, batch_size=32, **quiet)
    after = np.mean(model.row_loss(x.astype(np.float32)).data)
    least = {
        "mse": 0.0,
        "bce": -np.mean(
            np.where(
                (x > 0) & (x < 1),
                x * np.log(np.clip(x, 1e-9, 1)) + (1 - x) * np.log(np.clip(1 - x, 1e-9, 1)),
                0,
            )
        ),
        "cross_entropy": -np.mean(x * np.log(np.clip(x, 1e-9, 1))),
    }[model.objective]
    assert least - 1e-6 < after < least + 0.1 * (before - least)


def test_denoising_beats_the_identity():
    clean, rng = rows(1000, 30, 3), np.random.default_rng(1)
    clean = clean / clean.std() + 0.3 * rng.standard_normal(clean.shape)
    noisy = clean + 0.5 * rng.standard_normal(clean.shape)
    errors = {}
    for noise in (
        0.0,
        0.5,
    ):  # overcomplete: without noise it learns to pass all on, and noise with it
        model = Autoencoder(30, (), 40, noise=noise)
        model.fit(clean[:800], epochs=30, batch_size=32, learning_rate=1e-2, **quiet)
        errors[noise] = np.mean((model.reconstruct(noisy[800:]) - clean[800:]) ** 2)
    identity = np.mean((noisy[800:] - clean[800:]) ** 2)
    best = np.cov(clean.T) @ np.linalg.inv(
        np.cov(clean.T) + 0.25 * np.eye(30)
    )  # of all linear ways: Wiener's filter
    filtered = (noisy[800:] - clean.mean(axis=0)) @ best.T + clean.mean(axis=0)
    assert errors[0.0] > 0.95 * identity
    assert errors[0.5] < 1.1 * np.mean((filtered - clean[800:]) ** 2) < 0.5 * identity


def test_early_stopping_keeps_the_best_epoch():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 30))
    model = Autoencoder(30, (128,), 30)
    history = model.fit(
        x, epochs=300, learning_rate=1e-2, validation=0.3, early_stopping=5, **quiet
    )
    assert len(history) < 300
    from minigrad.data import split

    held_out = split(60, 0.3, 0)[1]
    score = np.mean(model.row_loss(x[held_out].astype(np.float32)).data)
    assert score == pytest.approx(min(history["validation_loss"]), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize(
    "make",
    [
        lambda: Autoencoder(20, (8,), 3, "linear", dropout=0.1, noise=0.3, dtype=np.float64),
        lambda: Autoencoder.geneex(20, "p1b1", hidden=(6,)),
        lambda: TiedLinearAutoencoder(20, 3),
    ],
)
def test_saving_and_loading_is_exact(make, tmp_path):
    model, x = make(), suited(rows(50), "sigmoid")
    model.fit(x, epochs=2, **quiet)
    model.save(tmp_path / "model.npz")
    again = type(model).load(tmp_path / "model.npz")
    assert again.config == model.config and again.trained and again.batch_size == model.batch_size
    assert np.array_equal(again.latent(x), model.latent(x))
    assert np.array_equal(again.reconstruct(x), model.reconstruct(x))
    other = Autoencoder if isinstance(model, TiedLinearAutoencoder) else TiedLinearAutoencoder
    with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, not a {other.__name__}"):
        other.load(tmp_path / "model.npz")


def test_a_file_whose_description_does_not_fit_is_refused(tmp_path):
    from minigrad import checkpoint

    path = tmp_path / "model.npz"
    weights = {f"weights/{name}": a for name, a in Autoencoder(3, (), 2).state_dict().items()}
    good = dict(
        model="Autoencoder",
        config=dict(n_features=3, hidden=[], n_latent=2),
        trained=True,
        batch_size=128,
        features=None,
    )
    checkpoint.save(path, weights, good)
    assert Autoencoder.load(path).trained
    for config in (
        dict(n_features=-3),
        dict(n_features=3, unheard=1),
        dict(n_features=4),
        [1],
        dict(n_features="x"),
    ):
        checkpoint.save(path, weights, {**good, "config": config})
        with pytest.raises(ValueError, match="its description does not fit"):
            Autoencoder.load(path)


@pytest.mark.parametrize(
    "cls, arguments",
    [
        (Autoencoder, dict(hidden=(8,), n_latent=3, dropout=0.2, noise=0.1)),
        (TiedLinearAutoencoder, dict(n_latent=3)),
    ],
)
def test_resuming_is_exact(cls, arguments, tmp_path, monkeypatch):
    x, training = (
        rows(300),
        dict(epochs=6, batch_size=50, validation=0.2, checkpoint=tmp_path / "run.npz", **quiet),
    )
    whole = cls(20, **arguments)
    expected = whole.fit(x, **{**training, "checkpoint": None})
    killed, calls, loss = cls(20, **arguments), [], cls.loss

    def interrupted(self, *minibatch, **keywords):
        calls.append(0)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return loss(self, *minibatch, **keywords)

    monkeypatch.setattr(cls, "loss", interrupted)
    assert len(killed.fit(x, **training)) == 3
    monkeypatch.setattr(cls, "loss", loss)
    resumed = cls(20, **arguments, seed=0)
    history = resumed.fit(x, resume=True, **training)
    for name, array in whole.state_dict().items():
        assert np.array_equal(array, resumed.state_dict()[name]), name
    assert history["train_loss"] == expected["train_loss"]
    assert history["validation_loss"] == expected["validation_loss"]


def test_one_seed_one_result():
    x = rows(100)
    runs = [Autoencoder(20, (8,), 3, seed=seed) for seed in (0, 0, 1, 0)]
    for model, seed in zip(
        runs, (4, 4, 4, 5)
    ):  # the model's seed is of the weights, fit's of the order and the split
        model.fit(x, epochs=2, seed=seed, **quiet)
    a, b, c, d = (model.latent(x) for model in runs)
    assert np.array_equal(a, b) and not np.array_equal(a, c) and not np.array_equal(a, d)


# --------------------------------------------------------------------------------------------------------------- inputs
def _not_canonical(x):
    """CSR with unsorted columns, each entry split in two, and stored zeros."""
    x = sparse.csr_array(x)
    columns = np.concatenate(
        [np.tile(x.indices[a:b][::-1], 2) for a, b in zip(x.indptr, x.indptr[1:])]
    )
    data = np.concatenate(
        [np.append(x.data[a:b][::-1] - 1, np.ones(b - a)) for a, b in zip(x.indptr, x.indptr[1:])]
    )
    return sparse.csr_array((data, columns, 2 * x.indptr), shape=x.shape)


WHOLE = np.random.default_rng(0).poisson(1.0, (40, 6)).astype(float)
SAME = {
    "list": WHOLE.tolist(),
    "int64": WHOLE.astype(np.int64),
    "uint8": WHOLE.astype(np.uint8),
    "float64": WHOLE,
    "float32": WHOLE.astype(np.float32),
    "big-endian": WHOLE.astype(">f4"),
    "Fortran": np.asfortranarray(WHOLE),
    "view": np.repeat(WHOLE, 2, axis=1)[:, ::2],
    "read-only": WHOLE.copy(),
    "CSR": sparse.csr_matrix(WHOLE),
    "CSC": sparse.csc_array(WHOLE),
    "COO": sparse.coo_array(WHOLE),
    "not canonical": _not_canonical(WHOLE),
    "int CSR": sparse.csr_array(WHOLE.astype(np.int32)),
    "Counts": Counts(sparse.csr_array(WHOLE), range(6), range(40)),
}
SAME["read-only"].flags.writeable = False


@pytest.mark.parametrize("kind", SAME)
def test_all_kinds_of_input_give_the_same_numbers(kind):
    x = SAME[kind]
    before = x.copy() if hasattr(x, "copy") and not isinstance(x, list) else None
    expected, model = (Autoencoder(6, (5,), 2, "softmax") for _ in range(2))
    expected.fit(WHOLE.astype(np.float32), epochs=2, **quiet)
    model.fit(x, epochs=2, **quiet)
    assert np.array_equal(model.latent(x), expected.latent(WHOLE))
    if before is not None and sparse.issparse(x):
        assert all(
            np.array_equal(a, b)
            for a, b in zip((before.data, *before.nonzero()), (x.data, *x.nonzero()))
        )
    elif before is not None:
        assert np.array_equal(x, before)


def test_what_the_model_gets_is_canonical_and_contiguous():
    once = sparse.csr_array(([0.5, 0.25], ([0, 1], [1, 0])), shape=(2, 2))
    twice = sparse.csr_array(
        (np.array([1.5, -1.0, 0.25]), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2)
    )
    for x, dtype in itertools.product(
        (once, twice), (np.float32, np.float64)
    ):  # it is sums that count, and are in range
        found = as_features(x, 2, dtype, 0, 1)
        assert found.has_canonical_format and np.array_equal(found.toarray(), [[0, 0.5], [0.25, 0]])
    assert len(twice.data) == 3
    with pytest.raises(ValueError, match="row 0, column 1 .* is 1.2"):
        as_features(
            sparse.coo_array(([0.6, 0.6], ([0, 0], [1, 1])), shape=(2, 2)), 2, np.float32, 0, 1
        )
    for x in (
        np.asfortranarray(WHOLE.astype(np.float32)),
        np.repeat(WHOLE.astype(np.float32), 2, axis=1)[:, ::2],
    ):
        found = as_features(x, 6, np.float32)
        assert found.flags.c_contiguous and np.array_equal(found, WHOLE)


def test_bool_and_anndata():
    anndata = pytest.importorskip("anndata")
    x = WHOLE > 1
    model = Autoencoder(6, (), 2, "sigmoid")
    model.fit(x, epochs=1, **quiet)
    for same in (
        x.astype(float),
        anndata.AnnData(x.astype(np.float32)),
        anndata.AnnData(sparse.csr_matrix(x * 1.0)),
    ):
        assert np.array_equal(model.latent(x), model.latent(same))


def _with(value, at=(2, 3), dtype=float):
    x = np.zeros((5, 6), dtype)
    x[at] = value
    return x


def _broken():
    x = sparse.csr_array(WHOLE)
    x.indices[0] = 99
    return x


BAD = [
    (np.zeros((0, 6)), "no rows"),
    (np.zeros(6), r"x\[None, :\]"),
    (np.zeros((2, 3, 6)), r"must be \(n, 6\)"),
    (np.zeros((5, 7)), "has 7 columns.*n_features=6"),
    (np.zeros((5, 0)), "has 0 columns"),
    (_with(np.nan), "row 2, column 3 .* is nan; values must be finite"),
    (_with(-np.inf), "is -inf; values must"),
    (sparse.csr_array(_with(np.nan)), "row 2, column 3 .* is nan"),
    (sparse.csc_array(_with(np.inf)), "row 2, column"),
    (_with(1e300), "row 2, column 3 .* is 1e[+]300, beyond the range of float32.*float64"),
    (sparse.csr_array(_with(1e300)), "beyond the range of float32"),
    (np.full((5, 6), "a"), "has dtype <U1"),
    (np.full((5, 6), 1j), "complex128"),
    ([[1, 2], [3]], "no matrix of numb"),
    (np.ma.masked_array(np.zeros((5, 6)), np.eye(5, 6)), "masked"),
    (None, "shape"),
    (_broken(), "broken sparse matr"),
]


@pytest.mark.parametrize("x, message", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("ask", ["fit", "latent", "reconstruct"])
def test_bad_input_is_named(x, message, ask):
    for model in (Autoencoder(6, (), 2), TiedLinearAutoencoder(6, 2)):
        with pytest.raises(ValueError, match=f"^x: .*{message}"):
            getattr(model, ask)(x)


@pytest.mark.parametrize(
    "output, value, message",
    [
        (
            "sigmoid",
            1.5,
            r"row 2, column 3 .* is 1.5; output='sigmoid' is for features in \[0, 1\]: scale each",
        ),
        ("sigmoid", -0.5, "is -0.5; output='sigmoid'"),
        ("softmax", -1.0, "is -1.0; output='softmax' .* not negative"),
    ],
)
def test_ranges_of_outputs(output, value, message):
    model, dense = Autoencoder(6, (), 2, output), _with(value)
    for x in (dense, sparse.csr_array(dense)):
        with pytest.raises(ValueError, match=message):
            model.fit(x)
        assert model.latent(x).shape == (
            5,
            2,
        )  # new rows may lie outside of the range of those trained on
    assert not model.trained
    with pytest.raises(
        ValueError, match="row 399999, column 2 "
    ):  # beyond the first block of the check
        Autoencoder(6, (), 2, output).fit(
            np.vstack([np.zeros((399999, 6)), _with(value, (0, 2))[:1]])
        )


@pytest.mark.parametrize("shape", [(1, 6), (2, 1), (1, 1), (200, 1)])
def test_one_row_and_one_feature(shape):
    x = np.random.default_rng(0).random(shape)
    for output in LOSSES:
        model = Autoencoder(shape[1], (4,), 2, output)
        assert len(model.fit(x, epochs=2, **quiet)) == 2 and np.isfinite(model.reconstruct(x)).all()
    model = TiedLinearAutoencoder(shape[1], 1)
    model.fit(x, epochs=3, **quiet)
    assert np.isfinite(model.reconstruct(x)).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(n_features=0), "n_features must be a whole number"),
        (dict(n_features=2.5), "n_features"),
        (dict(n_latent=0), "n_latent"),
        (dict(n_latent=np.nan), "n_latent"),
        (dict(n_latent="2"), "n_latent"),
        (dict(hidden=(8, 0)), r"hidden\[1\]"),
        (dict(hidden=8), r"hidden must be a sequence .*\(512, 256\)"),
        (dict(hidden=None), "hidden"),
        (dict(output="tanh"), "output must be one of .*'softmax'.*not 'tanh'"),
        (dict(loss="bce"), "loss .*output='linear'.*must be one of"),
        (dict(output="softmax", loss="bce"), "cross_entropy"),
        (dict(dropout=1.0), "dropout"),
        (dict(noise=-1), "noise"),
        (dict(noise=np.nan), "noise"),
        (dict(dtype=np.int32), "dtype must be"),
        (dict(dtype=np.float16), "dtype must be"),
        (dict(dtype=None), "dtype"),
        (dict(latent_activation="tanh"), "latent_activation"),
        (dict(initialization="he"), "initialization"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(**{"n_features": 6, **arguments})


def test_bad_arguments_of_training_are_named():
    for arguments, message in [
        (dict(epochs=-1), "epochs"),
        (dict(epochs=1.5), "epochs"),
        (dict(batch_size=0), "batch"),
        (dict(validation=1.0), "validation"),
        (dict(validation=0.9), "no rows"),
    ]:
        model = Autoencoder(6, (), 2)
        with pytest.raises(ValueError, match=message):
            model.fit(WHOLE[:1], progress=False, **arguments)
        assert not model.trained


def test_memory_of_checks_is_that_of_a_block():
    import tracemalloc

    x = np.zeros((2000, 3000), np.float32)
    tracemalloc.start()
    assert as_features(x, 3000, np.float32) is x
    assert tracemalloc.get_traced_memory()[1] < 8e6 < x.nbytes
    tracemalloc.stop()


# --------------------------------------------------------------------------------------------------------------- GENEEX
def test_geneex_course():
    model = Autoencoder.geneex(50)
    assert [p.shape for p in model.parameters() if len(p.shape) == 2] == [
        (2048, 50),
        (1024, 2048),
        (128, 1024),
        (1024, 128),
        (2048, 1024),
        (50, 2048),
    ]
    assert (model.output, model.objective, model.latent_activation) == ("linear", "mse", "linear")
    assert 0 < model.config["dropout"] < 1
    assert (model.latent(np.random.default_rng(0).random((30, 50))) < 0).any()
    assert Autoencoder.geneex(50, n_latent=2, hidden=(8,)).latent(np.ones((3, 50))).shape == (3, 2)


def test_geneex_p1b1():
    model = Autoencoder.geneex(50, preset="p1b1")
    assert [p.shape for p in model.parameters() if len(p.shape) == 2] == [
        (2000, 50),
        (600, 2000),
        (2, 600),
        (600, 2),
        (2000, 600),
        (50, 2000),
    ]
    assert (model.output, model.objective, model.batch_size, model.config["dropout"]) == (
        "sigmoid",
        "mse",
        100,
        0.0,
    )
    published = (
        120_968_000 + 1_200_600 + 1_202 + 1_800 + 1_202_000 + 121_026_483
    )  # layer by layer, 60,483 features
    assert sum(p.size for p in model.parameters()) + 2 * 2000 * 60433 + 60433 == published
    for layer in (
        m for part in (model.encoder, model.decoder) for m in part.layers if hasattr(m, "weight")
    ):
        bound = np.sqrt(6 / sum(layer.weight.shape))
        assert not layer.bias.data.any()
        assert 0.98 * bound < np.abs(layer.weight.data).max() <= bound * (1 + 1e-6)
        assert layer.weight.data.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    x = np.random.default_rng(0).random((250, 50))
    assert (model.latent(x) >= 0).all() and (model.latent(x) == 0).any()  # ReLU at the bottleneck
    sizes = []
    model.loss, loss = (
        lambda x, **keywords: (sizes.append(len(x)), loss(x, **keywords))[1],
        model.loss,
    )
    history = model.fit(x, epochs=1, validation=0, **quiet)
    assert sizes == [100, 100, 50] and 0 < history["train_loss"][0] < 0.5
    with pytest.raises(ValueError, match="preset must be one of"):
        Autoencoder.geneex(50, preset="p1b2")


# ------------------------------------------------------------------------------------------------------------------ PCA
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "scale, kind", [(1.0, np.asarray), (1e-3, np.asarray), (100.0, sparse.csr_array)]
)
def test_tied_linear_autoencoder_becomes_pca(dtype, scale, kind):
    rng, d = np.random.default_rng(1), 4
    turn = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    x = scale * (
        (rng.standard_normal((300, 40)) / np.sqrt(np.arange(1, 41))) @ turn
        + rng.standard_normal(40)
    )
    model = TiedLinearAutoencoder(40, d, dtype=dtype)
    model.fit(kind(x), **quiet)
    u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    w = model.weight.data.astype(np.float64)
    assert subspace_angles(v[:d].T, w).max() < 1e-3
    np.testing.assert_allclose(w.T @ w, np.eye(d), atol=1e-4)
    np.testing.assert_allclose(model.mean, x.mean(axis=0), rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(
        model.reconstruct(x), (u[:, :d] * s[:d]) @ v[:d] + x.mean(axis=0), atol=1e-3 * scale
    )
    assert model.row_loss(x.astype(dtype)).data.mean() == pytest.approx(
        np.sum(s[d:] ** 2) / x.size, rel=1e-4
    )


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("shape", [(1, 7), (200, 20), (6, 50)])
def test_the_variance_of_a_feature(kind, shape, monkeypatch):
    """That of NumPy, averaged over features, however many entries are looked at at a time."""
    monkeypatch.setattr(inputs, "BLOCK", 37)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape) + rng.standard_normal(shape[1])
    x[rng.random(shape) < 0.3] = 0.0
    found = mean_variance(kind(x), means(kind(x)))
    assert found == pytest.approx(np.mean(np.var(x, axis=0)), rel=1e-10, abs=1e-14)


def test_what_is_small_for_adam_follows_the_training_rows():
    x = 50.0 * rows(60, 6)
    trained_on = x[split(60, 0.25, 0)[0]]
    model = TiedLinearAutoencoder(6, 2, dtype=np.float64)
    model.fit(x, epochs=1, validation=0.25, **quiet)
    variance = np.mean(np.var(trained_on, axis=0))
    assert model.variance == pytest.approx(variance, rel=1e-10)
    assert model._optimizer(model.parameters(), 0.1).eps == pytest.approx(1e-8 * variance)


def test_tied_gradients_and_training_mean():
    x = rows(50, 6)
    model = TiedLinearAutoencoder(6, 2, dtype=np.float64)
    model.fit(x, epochs=1, validation=0.2, **quiet)
    np.testing.assert_allclose(
        model.mean, x[split(50, 0.2, 0)[0]].mean(axis=0)
    )  # not of the rows held out
    check_gradients(model, lambda: model.loss(x))
    with pytest.raises(ValueError, match="n_latent=7 exceeds n_features=6"):
        TiedLinearAutoencoder(6, 7)


def test_tied_on_constant_rows_stays_finite():
    model = TiedLinearAutoencoder(6, 2)
    model.fit(np.full((10, 6), 3.0), epochs=20, **quiet)
    np.testing.assert_allclose(model.reconstruct(np.full((2, 6), 3.0)), 3.0)


@pytest.mark.parametrize(
    "n_features, hidden, n_latent",
    [(2000, (), 3), (3, (400,), 2), (2, (300, 300), 2), (2, (), 900), (500, (4, 3), 2)],
)
def test_the_least_size_of_a_file_is_close_to_its_size(n_features, hidden, n_latent):
    """Never more than the weights are, or `load` would refuse them; and enough to find a lie by."""
    made = [Autoencoder(n_features, hidden, n_latent), VAE(n_features, hidden, n_latent)]
    if not hidden:
        made.append(TiedLinearAutoencoder(max(n_features, n_latent), min(n_features, n_latent)))
    for model in made:
        weights = model.state_dict().values()
        n_arrays, size = model.least_size(model.config)
        assert n_arrays == len(hidden) + 1 <= len(weights)
        assert size <= sum(w.size for w in weights) < 5 * size


def test_the_sizes_by_default():
    model = Autoencoder(5)
    shapes = [p.shape for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(512, 5), (256, 512), (32, 256), (256, 32), (512, 256), (5, 512)]


# ----------------------------------------------------------------------- copies and frozen weights
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Autoencoder(20, (6,), 3, dropout=0.2, noise=0.1, dtype=np.float64),
        lambda: TiedLinearAutoencoder(20, 3, dtype=np.float64),
    ],
    ids=["Autoencoder", "TiedLinearAutoencoder"],
)
def test_copies_train_alike(make, way):
    x = rows(20)
    check_copies(make(), lambda m, step: m.loss(x, rng=np.random.default_rng(step)), way)


def test_frozen_weights_stay_are_saved_and_loaded(tmp_path):
    model = Autoencoder(20, (6,), 3)
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith("decoder")
    before = model.state_dict()
    model.fit(rows(), epochs=2, **quiet)
    after = model.state_dict()
    for name, p in model.named_parameters():
        assert np.array_equal(after[name], before[name]) == (not p.requires_grad), name
    model.save(tmp_path / "model.npz")
    loaded = Autoencoder.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.latent(rows()), model.latent(rows()))


def test_a_file_of_halves_is_computed_in_the_dtype_of_the_model(tmp_path):
    path = tmp_path / "model.npz"
    model = Autoencoder(20, (6,), 3)
    model.save(path)
    arrays, meta = checkpoint.load(path)
    checkpoint.save(path, {name: a.astype(np.float16) for name, a in arrays.items()}, meta)
    loaded = Autoencoder.load(path)
    for name, weights in loaded.state_dict().items():
        assert weights.dtype == np.float32, name
        np.testing.assert_array_equal(weights, model.state_dict()[name].astype(np.float16))
    assert loaded.latent(rows()).dtype == np.float32
    meta["config"]["dtype"] = "float16"
    checkpoint.save(path, arrays, meta)
    with pytest.raises(ValueError, match="does not fit.*numpy.float32 or numpy.float64"):
        Autoencoder.load(path)

"""The engine and the models on a device that refuses what CuPy refuses (tests/strict_device.py): the host's numbers.

Trainings are compared in float64, where the kernels of the host and their twins, which run on the device, agree to ten
digits. The double draws the noise that NumPy draws, so whole trainings agree.
"""

import dataclasses
import functools
import sys

import numpy as np
import pytest
from scipy import sparse, special

from demos import __main__ as demos
from minigrad import PRIMITIVES, Tensor, backend, functional, grad, nn, optim, trace
from minigrad.data import take_rows
from minigrad.distributions import (
    Bernoulli,
    Categorical,
    NegativeBinomial,
    Normal,
    Poisson,
    ZeroInflatedNegativeBinomial,
    kl_divergence,
)
from minigrad.example_inputs import EXAMPLES
from minigrad.training import Run
from models import SCVI, VAE, Autoencoder, TiedLinearAutoencoder, recipe
from models.counts import Counts
from tests import strict_device
from tests.benchmarks import launches
from tests.strict_device import LAUNCHES, TRANSFERS

close = dict(rtol=1e-8, atol=1e-10)


@pytest.fixture(autouse=True)
def double(monkeypatch):
    monkeypatch.delenv("MINIGRAD_DEVICE", raising=False)
    return strict_device.installed(monkeypatch)


def moved(x):
    """An array, number or matrix as an array (or sparse matrix) of the device."""
    return backend.to_device(x if sparse.issparse(x) else np.asarray(x), "cupy")


def arrays(x) -> list:
    """The numbers of a result, which may be a Tensor, an array anywhere, or a tuple of these."""
    parts = x if isinstance(x, (tuple, list)) else [x]
    return [backend.to_host(p.data if isinstance(p, Tensor) else p) for p in parts]


def agree(ours, theirs, **tolerance):
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_allclose(a, b, **{**close, **tolerance})


# ------------------------------------------------------------------------------------------------- the whole table
def derivatives(function, inputs):
    """Value, gradients, and gradients of the sum of their squares, by every input."""
    leaves = [Tensor(x, requires_grad=True) for x in inputs]
    y = function(*leaves)
    y = y[0] if isinstance(y, tuple) else y
    first = grad(np.sum(y * np.cos(y)), leaves, create_graph=True)
    second = grad(sum(np.sum(np.square(g)) for g in first), leaves)
    y.backward(np.ones_like(y.data))
    assert all(
        type(a) is type(x) for a, x in zip([*second, *(x.grad for x in leaves)], [*inputs, *inputs])
    )
    return [y.data, *(g.data for g in first), *second, *(x.grad for x in leaves)]


def examples_of(name):
    """(inputs on the host, the function of them there, the same on the device) for each example of a primitive.

    What an example passes beside its inputs is moved; the condition of `where` becomes an array, as CuPy asks; `solve`
    is reached through NumPy's, which stretches stacks of matrices to the one shape that CuPy asks.
    """
    rng, call = np.random.default_rng(0), np.linalg.solve if name == "solve" else PRIMITIVES[name]
    for example in EXAMPLES[name]:
        drawn = example.drawn(rng.random)
        if example.first:
            drawn[0] = example.first(Tensor(drawn[0])).data
        here = dataclasses.replace(example, first=None)
        there = dataclasses.replace(
            here,
            inputs=tuple(
                moved(x) if isinstance(x, (np.ndarray, bool)) or sparse.issparse(x) else x
                for x in example.inputs
            ),
        )
        yield drawn, here.function(call), there.function(call)


# Those that CuPy lacks, and those whose first or second derivative calls one that it lacks.
HOST_ONLY = set(
    """betaincc erfi hyp1f1 kn ndtri_exp powm1 jv yv iv kv ive kve
    j0 j1 y0 y1 i0 i1 i0e i1e k0 k1 k0e k1e exprel boxcox boxcox1p inv_boxcox inv_boxcox1p""".split()
)


@pytest.mark.parametrize("name", sorted(HOST_ONLY))
def test_what_the_device_lacks_is_an_error_that_says_so(name):
    inputs, _, there = next(examples_of(name))
    with pytest.raises(TypeError, match="on cupy.*: cupy has no such function; backend.to_host"):
        derivatives(there, [moved(x) for x in inputs])


@pytest.mark.parametrize("name", sorted(PRIMITIVES.keys() - HOST_ONLY))
def test_every_primitive_first_and_second_order(name):
    for inputs, here, there in examples_of(name):
        agree(derivatives(there, [moved(x) for x in inputs]), derivatives(here, inputs), rtol=1e-6)


DERIVED = {
    "mean": lambda x: np.mean(x, axis=1),
    "var": lambda x: np.var(x, axis=0),
    "std": lambda x: np.std(x, axis=0),
    "prod": lambda x: np.prod(x, axis=1),
    "norm": lambda x: np.linalg.norm(x, axis=1),
    "clip": lambda x: np.clip(x, 0.3, 0.8),
    "tan": np.tan,
    "log2": np.log2,
    "exp2": np.exp2,
    "moveaxis": lambda x: np.moveaxis(x, 0, 1),
    "flip": np.flip,
    "roll": lambda x: np.roll(x, 1, axis=0),
    "stack": lambda x: np.stack([x, x + 1.0]),
    "vstack": lambda x: np.vstack([x, x]),
    "hstack": lambda x: np.hstack([x, x]),
    "split": lambda x: np.split(x, [1])[1],
    "take": lambda x: np.take(x, [2, 0], 1),
    "sort": lambda x: np.sort(x, axis=0),
    "diagonal": np.diagonal,
    "trace": np.trace,
    "tril": np.tril,
    "triu": lambda x: np.triu(x, 1),
    "diff": np.diff,
    "dot": lambda x: np.dot(x, x),
    "outer": lambda x: np.outer(x[0], x[1]),
    "inner": lambda x: np.inner(x, x),
    "vdot": lambda x: np.vdot(x, x),
    "tensordot": lambda x: np.tensordot(x, x, 1),
    "solve a vector": lambda x: np.linalg.solve(x + 3.0 * derived_eye(x), x[0]),
    "vector @": lambda x: x[0] @ x,
    "slogdet": lambda x: np.linalg.slogdet(x + 3.0 * derived_eye(x))[::-1],
    "multi_dot": lambda x: np.linalg.multi_dot([x, x, x]),
    "einsum": lambda x: np.einsum("ij,jk,kk->i", x, x, x),
    "take_along_axis": lambda x: np.take_along_axis(x, np.argsort(x, axis=1), 1),
    "average": lambda x: np.average(x, 1, np.exp(x)),
    "ptp": np.ptp,
    "nanmean": lambda x: np.nanmean(x, axis=0),
    "nanvar": np.nanvar,
    "divmod": lambda x: divmod(3.0 * x, x)[1],
    "select": lambda x: np.select([x > 0.6, x > 0.4], [x * x, 2.0], x),
    "atleast_3d": np.atleast_3d,
    "column_stack": lambda x: np.column_stack([x, x[0]]),
    "array_split": lambda x: np.array_split(x, 2)[0],
    "repeat": lambda x: np.repeat(x, [2, 0, 1], axis=1),
    "tile": lambda x: np.tile(x, (2, 1, 2)),
    "pad": lambda x: np.pad(x, 1, constant_values=2.0),
    "pad by reading": lambda x: np.pad(x, (1, 2), "reflect"),
    "delete": lambda x: np.delete(x, 1, axis=0),
    "rot90": np.rot90,
    "take of booleans": lambda x: np.take(x, [True, False]),
    "compress": lambda x: np.compress([True, False, True], x, axis=1),
    "diag": lambda x: np.diag(x[0], 1),
    "kron": lambda x: np.kron(x, x[0]),
    "cross": lambda x: np.cross(x, x[0]),
    "median": lambda x: np.median(x, axis=1),
    "quantile": lambda x: np.quantile(x, [0.2, 0.9], axis=0),
    "partition": lambda x: np.sort(np.partition(x, 1, axis=0), axis=0),
    "cov": np.cov,
    "corrcoef": lambda x: np.corrcoef(x, rowvar=False),
    "linspace": lambda x: np.linspace(x, 2.0, 4),
    "interp": lambda x: np.interp(x, np.cumsum(x[0]), x[1]),
    "trapezoid": lambda x: np.trapezoid(x, np.cumsum(x[0])),
    "gradient": lambda x: np.gradient(x, 0.5, np.cumsum(x[0]), edge_order=2)[1],
    "gradient of equal steps": lambda x: np.gradient(x, axis=0, edge_order=2),
    "correlate": lambda x: np.correlate(x[0], x[1, :2], "same"),
    "logsumexp": functional.logsumexp,
    "layer_norm": lambda x: functional.layer_norm(x, x[0], x[1]),
    "softplus": functional.softplus,
    "mse": lambda x: functional.mse(x, 2.0 * x),
    "cross_entropy": lambda x: functional.cross_entropy(x, np.square(x)),
    "cross_entropy of classes": lambda x: functional.cross_entropy(x, np.argmax(x, axis=1)),
}


def derived_eye(x):
    """The identity where x is."""
    i = np.arange(x.shape[0], like=x.data)
    return (i[:, None] == i).astype(x.dtype)


@pytest.mark.parametrize("name", DERIVED)
def test_derived_functions(name):
    x = np.random.default_rng(1).uniform(0.2, 1.0, (3, 3))
    agree(derivatives(DERIVED[name], [moved(x)]), derivatives(DERIVED[name], [x]))


@pytest.mark.parametrize(
    "name",
    [
        "logsumexp",
        "softmax",
        "log_softmax",
        "softplus",
        "relu",
        "polygamma",
        "layer_norm",
        "batch_norm",
        "linear",
        "dropout",
        "mse",
        "cross_entropy",
    ],
)
def test_functions_of_networks_on_plain_arrays(name):
    """Given arrays instead of Tensors they compute, wherever the arrays are."""
    x = np.random.default_rng(1).uniform(0.2, 1.0, (3, 3))
    arguments = {
        "polygamma": lambda x: (2, x),
        "layer_norm": lambda x: (x, x[0], x[1]),
        "batch_norm": lambda x: (x, x[0], x[1]),
        "linear": lambda x: (x, x, x[0]),
        "dropout": lambda x: (x, x),
        "mse": lambda x: (x, 2.0 * x),
        "cross_entropy": lambda x: (x, 2.0 * x),
    }.get(name, lambda x: (x,))
    function = getattr(functional, name)
    there = function(*arguments(moved(x)))
    assert all(
        backend.device_of(y) == "cupy" for y in (there if isinstance(there, tuple) else [there])
    )
    agree(there, function(*arguments(x)))


def test_functions_without_a_derivative():
    x = np.random.default_rng(1).uniform(0.2, 1.0, (3, 3))
    here, there = Tensor(x), Tensor(moved(x))
    for function in (
        np.argmax,
        np.argsort,
        np.floor,
        np.isfinite,
        lambda t: t > 0.5,
        np.any,
        np.zeros_like,
    ):
        agree(function(there), function(here))
    assert repr(there) == repr(here) and there.sum().item() == pytest.approx(here.sum().item())
    assert np.shape(there) == (3, 3) and float(there[0, 0]) == x[0, 0]


def test_distributions():
    rng = np.random.default_rng(2)
    a, b, c = rng.normal(size=(3, 4, 5))
    counts = rng.poisson(2.0, (4, 5)).astype(float)
    made = {
        Normal: (a, np.exp(b)),
        Bernoulli: (a,),
        Categorical: (a,),
        Poisson: (a,),
        NegativeBinomial: (a, b),
        ZeroInflatedNegativeBinomial: (a, b, c),
    }
    for kind, parameters in made.items():
        here, there = kind(*parameters), kind(*map(moved, parameters))
        agree(
            [there.mean, there.variance, there.log_prob(moved(counts))],
            [here.mean, here.variance, here.log_prob(counts)],
        )
        agree(there.sample(backend.generator([3], "cupy")), here.sample(backend.generator([3])))
        if kind in (Normal, Bernoulli, Categorical):
            q = [kind(*[0.5 * p for p in some]) for some in (parameters, map(moved, parameters))]
            agree(kl_divergence(q[1], there), kl_divergence(q[0], here))
    agree(Poisson(moved(a)).log_prob(2.0), Poisson(a).log_prob(2.0))


def test_distributions_at_the_edges():
    """Impossible classes, certain ones, a theta of infinity, and NaN; the double refuses what would wait for a number."""
    logits = np.array([[0.0, -np.inf, 1.0], [0.5, 0.0, np.nan], [0.0, -np.inf, -np.inf]])
    one_hot = np.eye(3)[[0, 1, 0]]
    for kind, x in ((Bernoulli, np.array([1.0, 0.0, 1.0])), (Categorical, one_hot)):
        here, there = kind(logits), kind(moved(logits))
        agree(there.log_prob(moved(x)), here.log_prob(x))
        agree(kl_divergence(there, there), kl_divergence(here, here))
        agree(there.sample(backend.generator([3], "cupy")), here.sample(backend.generator([3])))
    a = np.array([0.5, np.nan, -np.inf])
    infinite = np.full(3, np.inf)
    for kind, parameters in (
        (Poisson, (a,)),
        (NegativeBinomial, (a, infinite)),
        (ZeroInflatedNegativeBinomial, (a, infinite, -infinite)),
    ):
        here, there = kind(*parameters), kind(*map(moved, parameters))
        agree(there.mean, here.mean)
        agree(there.sample(backend.generator([3], "cupy")), here.sample(backend.generator([3])))


# ------------------------------------------------------------------------------------------------------------ errors
def test_mixed_devices_are_an_error_that_names_both():
    here, there = (
        Tensor(np.ones((3, 3)), requires_grad=True),
        Tensor(moved(np.ones((3, 3))), requires_grad=True),
    )
    layer = nn.Linear(3, 2).to("cupy")
    for mix in (
        lambda: here + there,
        lambda: there * here.data,
        lambda: here.data @ there,
        lambda: np.concatenate([there, here]),
        lambda: layer(here),
        lambda: layer(here.data),
        lambda: layer(sparse.csr_matrix(here.data)),
        lambda: np.linalg.solve(there, here),
        lambda: np.where(here.data > 0, there, 0.0),
    ):
        with pytest.raises(
            (TypeError, ValueError), match="on cupy.*cupy and numpy: use backend.to_device"
        ):
            mix()


def test_an_array_of_the_device_mixes_with_none_of_the_host():
    here, there = np.ones(3), moved(np.ones(3))
    for mix in (
        lambda: here + there,
        lambda: there * here,
        lambda: np.asarray(there),
        lambda: np.add(here, there, out=here),
    ):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(ValueError):
        there[...] = here


def test_classes_beyond_the_last_are_refused_where_indices_wrap_around():
    for target in ([0, 3], [-1, 0]):
        with pytest.raises(IndexError, match="classes go from 0 to 2"):
            functional.cross_entropy(Tensor(moved(np.zeros((2, 3)))), moved(target))


def test_missing_cupy_or_gpu_says_what_to_do(monkeypatch):
    strict_device.installed(monkeypatch, n_devices=0)
    with pytest.raises(RuntimeError, match="no GPU"):
        nn.Linear(2, 2).to("cupy")
    strict_device.installed(monkeypatch, n_devices=RuntimeError("cudaErrorInsufficientDriver"))
    with pytest.raises(RuntimeError, match="no usable GPU.*InsufficientDriver"):
        Autoencoder(4, (3,), 2).fit(np.ones((8, 4)), epochs=1, device="cupy")
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r'pip install "minigrad-scvi\[gpu\]"'):
        SCVI(4).fit(np.ones((8, 4)), epochs=1, device="cupy")


def test_devices_by_name():
    x = np.ones((2, 2), np.float32)
    here, there = (
        (x, 1.0, sparse.csr_matrix(x), Tensor(x)),
        (moved(x), moved(sparse.csr_matrix(x)), Tensor(moved(x))),
    )
    assert [backend.device_of(a) for a in (*here, *there)] == ["numpy"] * 4 + ["cupy"] * 3
    there = moved(x)
    assert backend.to_device(there, "cupy") is there and backend.to_host(x) is x
    assert (
        sparse.issparse(backend.to_host(moved(sparse.csr_array(x))))
        and type(backend.to_host(there)) is np.ndarray
    )


# ------------------------------------------------------------------------------------------------- layers, optimisers
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.1, momentum=0.9),
        lambda p: optim.Adam(p, 0.1),
        lambda p: optim.AdamW(p, 0.1, weight_decay=0.3, undecayed=p[:1]),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_optimisers(make, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", 8)
    x, ends = np.random.default_rng(0).normal(size=(7, 4)), []
    for device in ("numpy", "cupy"):
        rng = np.random.default_rng(0)
        net = nn.Sequential(
            nn.Linear(4, 5, dtype=np.float64, rng=rng),
            nn.BatchNorm1d(5, dtype=np.float64),
            nn.Dropout(0.2),
            nn.LayerNorm(5, dtype=np.float64),
            nn.Sigmoid(),
            nn.Linear(5, 3, dtype=np.float64, rng=rng),
            nn.Softmax(),
        ).to(device)
        assert net.device == device
        optimizer = make(net.parameters())
        schedule = optim.CosineSchedule(optimizer, 10)
        assert optimizer.block_size == (
            8 if device == "numpy" else optimizer.weights.size
        )  # blocks are for the host's cache
        for step in range(4):
            optimizer.zero_grad()
            np.sum(
                np.log(net(backend.to_device(x, device), backend.generator([step], device)))[:, 0]
            ).backward()
            optim.clip_grad_norm(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.load_state_dict(optimizer.state_dict())
        state = net.state_dict()
        assert all(
            type(a) is np.ndarray for a in [*state.values(), optimizer.state_dict()["moment0.0"]]
        )
        net.load_state_dict(state)
        ends.append([*state.values(), *net.eval()(backend.to_device(x, device)).numpy()])
    agree(*ends)


def test_dropout_with_a_generator_of_its_own():
    x = np.ones((50, 4))
    agree(nn.Dropout(0.3, seed=1)(moved(x)), nn.Dropout(0.3, seed=1)(x))


def test_frozen_weights_move_and_go_on_being_frozen():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    for p in net[0].parameters():
        p.requires_grad = False
    before = net.state_dict()
    net.to("cupy")
    assert all(backend.device_of(p.data) == "cupy" for p in net.parameters())
    optimizer = optim.Adam(net.parameters(), 0.1)
    np.sum(net(moved(np.ones((4, 3), np.float32)))).backward()
    optimizer.step()
    state = net.state_dict()
    for name, value in before.items():
        assert np.array_equal(state[name], value) == name.startswith("layers.0"), name


def test_a_move_keeps_the_numbers_and_drops_the_gradients():
    block = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before, sizes = block.state_dict(), [p.size for p in block.parameters()]
    np.sum(block(np.ones((4, 3), np.float32))).backward()
    block.to("cupy")
    assert all(p.grad is None and backend.device_of(p.data) == "cupy" for p in block.parameters())
    assert len(TRANSFERS.to_device) == len(sizes) + 2
    block.to("numpy")
    assert all(
        np.array_equal(a, block.state_dict()[name]) or "running" in name
        for name, a in before.items()
    )


# ----------------------------------------------------------------------------------------------------- whole trainings
RNG = np.random.default_rng(11)
FEATURES = RNG.uniform(0.05, 0.95, (60, 6))
COUNTS = RNG.poisson(RNG.gamma(1.5, 1.5, (60, 6))).astype(float) + np.eye(60, 6)
BATCH = np.arange(60) % 3
TOLD = Counts(
    sparse.csr_array(COUNTS),
    [f"g{i}" for i in range(6)],
    [f"c{i}" for i in range(60)],
    {"kind": np.arange(60) % 2, "size": RNG.normal(3.0, 2.0, 60)},
)
kind = dict(dtype=np.float64, seed=3)
small = dict(hidden=(5,), n_latent=2, **kind)
# Without thinning: the device draws noise for all counts, and the host for those above 0.
wee = dict(n_latent=2, n_hidden=5, thinning=False, **kind)
MODELS = {
    "AE": (lambda: Autoencoder(6, noise=0.1, dropout=0.2, **small), FEATURES),
    "AE, sigmoid": (
        lambda: Autoencoder(6, output="sigmoid", loss="bce", latent_activation="relu", **small),
        FEATURES,
    ),
    "AE, softmax, CSR": (
        lambda: Autoencoder(6, output="softmax", **small),
        sparse.csr_matrix(COUNTS),
    ),
    "tied AE": (lambda: TiedLinearAutoencoder(6, 2, **kind), FEATURES),
    "VAE": (lambda: VAE(6, sigma="learned", **small), FEATURES),
    "VAE, Bernoulli": (
        lambda: VAE(6, decoder="bernoulli", **small),
        sparse.csr_array((FEATURES > 0.5).astype(float)),
    ),
    "VAE, categorical": (lambda: VAE(6, decoder="categorical", **small), COUNTS),
    **{
        f"scVI, {likelihood}, {dispersion}": (
            lambda likelihood=likelihood, dispersion=dispersion: SCVI(
                6, likelihood=likelihood, dispersion=dispersion, **wee
            ),
            sparse.csr_matrix(COUNTS),
        )
        for likelihood, dispersion in (
            ("zinb", "gene"),
            ("zinb", "gene-cell"),
            ("nb", "gene"),
            ("nb", "gene-cell"),
            ("poisson", "gene"),
        )
    },
    "scVI, batches": (
        lambda: SCVI(6, 3, likelihood="nb", dispersion="gene-batch", n_layers=2, **wee),
        COUNTS,
    ),
    "scVI, latent library": (lambda: SCVI(6, 3, library="latent", **wee), sparse.csr_array(COUNTS)),
    "scVI, covariates": (
        lambda: SCVI(
            6,
            3,
            library="latent",
            columns=dict(categorical={"kind": ["0", "1"]}, continuous=["size"]),
            encode_covariates=True,
            **wee,
        ),
        TOLD,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def extra(model):
    """What fit and predictions of this model take beside the data."""
    return {"batch": BATCH} if getattr(model, "n_batches", 1) > 1 else {}


def trained(name, device=None, epochs=2, **training):
    """(model, history) of a short training."""
    make, x = MODELS[name]
    model = make()
    history = model.fit(
        x,
        epochs=epochs,
        validation=0.25,
        device=device,
        progress=False,
        **{"batch_size": 16, **extra(model), **training},
    )
    return model, history


def asked(name, model) -> list:
    """All that a model can be asked, as host arrays."""
    _, x = MODELS[name]
    batch = extra(model)
    found = [model.latent(x, **batch)]
    if isinstance(model, (VAE, SCVI)):
        found += [
            *model.latent(x, return_std=True, **batch),
            model.elbo(x, n_samples=2, **batch),
            model.generate(9, seed=4),
            *model.log_likelihood(x, n_samples=3, return_error=True, **batch),
        ]
    if not isinstance(model, SCVI):
        return [*found, model.reconstruct(x)]
    table = model.differential_expression(
        x, np.arange(60) < 20, n_samples=40, mode="change", **batch
    )
    found += [
        model.denoise(x, n_samples=2, **batch),
        model.denoise(x, library_size=np.arange(1.0, 61.0), **batch),
        model.denoise(x, library_size=1e3, **batch),
        model.expression_fraction(x, **batch),
        model.sample_posterior(x, n_samples=2, **batch),
        table["lfc_mean"],
        table["rho_a"],
    ]
    if batch:
        found += [
            model.expression_fraction(x, transform_batch=[0, 2], **batch),
            model.generate(5, batch=1),
        ]
    return found


@every_model
def test_training_and_predictions_give_the_numbers_of_the_host(name):
    (here, expected), (there, history) = trained(name), trained(name, "cupy")
    assert there.device == "cupy"
    for column in expected.names:
        if column != "seconds":
            np.testing.assert_allclose(history[column], expected[column], **close, err_msg=column)
    ours, theirs = asked(name, there), asked(name, here)
    assert all(type(a) is np.ndarray for a in ours)
    agree(ours, theirs, rtol=1e-6, atol=1e-8)
    assert there.device == "cupy"


@every_model
def test_a_step_of_training_sends_the_minibatch_and_brings_the_loss(name, monkeypatch):
    """Nothing else crosses: not the noise, not the weights, not a test for numbers that are not finite."""
    steps, whole = [], Run.minibatches

    def minibatches(run):
        for minibatch in whole(run):
            TRANSFERS.clear()
            yield minibatch  # the loop makes its step, and asks for the next
            steps.append((list(TRANSFERS.to_device), list(TRANSFERS.to_host)))

    monkeypatch.setattr(Run, "minibatches", minibatches)
    trained(name, "cupy", epochs=1)
    assert len(steps) >= 1 and all(sent == [] and brought == [8] for sent, brought in steps)


def test_an_epoch_sends_each_minibatch_once(monkeypatch):
    sent, whole = [], Run.minibatches

    def minibatches(run):
        TRANSFERS.clear()
        yield from whole(run)
        sent.append((len(TRANSFERS.to_device), len(TRANSFERS.to_host)))

    monkeypatch.setattr(Run, "minibatches", minibatches)
    for name, per_step in (
        ("AE", 1),
        ("scVI, zinb, gene", 3),
        ("scVI, batches", 2),
    ):  # CSR is two arrays, numbers and places; batch codes one
        trained(name, "cupy", epochs=1)
        assert sent.pop() == (3 * per_step, 3)


@pytest.mark.parametrize("likelihood, most", [("poisson", 103), ("nb", 107), ("zinb", 114)])
def test_a_step_of_scvi_counts_its_launches_and_waits_once(likelihood, most, monkeypatch):
    """Sparse rows are sent as numbers and places, and made dense once; what is waited for is the loss."""
    for dense in (False, True):
        steps = launches.steps(monkeypatch, likelihood=likelihood, dense=dense)
        counts = [len(step.launches) for step in steps]
        # In the first step the KL has a weight that is not 1: a product, and its rule.
        assert counts == [most + extra - 2 * dense for extra in (2, 0, 0)]
        for step in steps:
            assert len(step.sent) == 3 - dense and step.waits == [4]
            assert step.launches.count("setitem") == 1 - dense and "toarray" not in step.launches


def test_the_double_counts_launches_by_their_names():
    x = moved(np.arange(6.0).reshape(2, 3))
    LAUNCHES.clear()
    y = np.exp(x[:, 1:]).T.reshape(-1)
    y += 1.0
    y[moved([0, 1])] = np.sum(y)
    assert LAUNCHES == ["exp", "add", "sum", "setitem"]
    TRANSFERS.clear()
    x[x > 1.0]
    x[x > 1.0] = 0.0  # the same number everywhere: nothing has to be known
    assert TRANSFERS.to_host == [8]


def test_launches_are_printed(capsys):
    assert launches.main(["--likelihood", "nb"]) == 0
    assert "nb: 107 launches, 3 arrays sent, 1 waits" in capsys.readouterr().out


@backend.elementwise
def distances(x, y, shift):
    d = np.abs(x - y) + shift
    return d, np.where(d > 1.0, np.sqrt(d), 0.0), special.expit(x)


@backend.elementwise
def moved_on(running, new, kept):
    running *= kept
    running += np.square(new)
    np.maximum(running, 0.5, out=running)


def test_an_elementwise_formula_is_one_launch():
    """Its operands broadcast, numbers do not make float32 float64, and it may change arrays in place."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x, y = rng.normal(size=(3, 4)).astype(dtype), rng.normal(size=4).astype(dtype)
        there = moved(x), moved(y)
        LAUNCHES.clear()
        results = distances(*there, 0.25)
        assert LAUNCHES == ["distances"]
        assert all(type(a) is strict_device.ndarray and a.dtype == dtype for a in results)
        agree(results, distances(x, y, 0.25), rtol=0, atol=0)
        assert moved_on(there[1], there[1] + 1.0, 0.9) is None
        moved_on(y, y + 1.0, 0.9)
        agree(there[1], y, rtol=0, atol=0)


def test_an_elementwise_formula_of_a_tensor_is_recorded():
    def root(x):
        return np.sqrt(x)

    for x in (np.array([1.0, 4.0]), moved([1.0, 4.0])):
        t = Tensor(x, requires_grad=True)
        agree(grad(np.sum(backend.elementwise(root)(t)), t), [np.array([0.5, 0.25])])


def on_device(formula, *arguments):
    """An elementwise formula of these arguments, the arrays among them moved."""
    there = [moved(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return backend.elementwise(formula)(*there)


def if_k(x, k):
    return x * k if k else x * 1.0


def if_k_is_0(x, k):
    return x * 1.0 if k == 0.0 else x * k


def at_least_half(x, k):
    return x * max(k, 0.5)


def a_fraction_of(x, k):
    return x * k if 0 < k < 1 else x


def by_pythons_number(x, k):
    return x * float(k)


@pytest.mark.parametrize(
    "formula", [if_k, if_k_is_0, at_least_half, a_fraction_of, by_pythons_number]
)
def test_a_formula_that_asks_for_a_value_is_refused(formula):
    """The kernel is made once for all values: of k = 0 it was right, of others silently wrong."""
    x = np.array([1.0, 2.0])
    assert np.shape(formula(x, 0.25)) == (2,)  # on the host all of them may be asked
    with pytest.raises(TypeError, match="in an elementwise formula|an elementwise formula cannot"):
        on_device(formula, x, 0.25)


def test_a_formula_that_asks_an_array_for_its_sign_is_refused():
    def signed(x):
        return x if x > 0 else -x

    with pytest.raises(TypeError, match="np.where and np.maximum choose by entry"):
        on_device(signed, np.array([1.0]))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16])
def test_few_bits_beside_a_number_are_refused(dtype):
    """CuPy computes bool * 1e5 in float16, where it is infinite; NumPy does in float64."""

    def scaled(x, k):
        return x * k

    def by_a_constant(x):
        return x * 1e5

    def chosen(x):
        return np.where(x == x, x, 0.5)

    def in_place(x):
        x += 1

    x = np.array([0, 1], dtype)
    for formula, others in ((scaled, (0.1,)), (by_a_constant, ()), (chosen, ()), (in_place, ())):
        with pytest.raises(TypeError, match=f"of {np.dtype(dtype)} and a number"):
            on_device(formula, x, *others)


def test_few_bits_beside_wider_ones_are_as_on_the_host():
    def masked(x, mask, k):
        return np.where(mask, x, 0.0) * mask + k, np.exp(mask), np.logical_not(mask)

    x = np.array([1.0, -2.0], np.float32)
    for mask in (np.array([True, False]), np.array([2, 0], np.int8)):
        ours, theirs = on_device(masked, x, mask, 2.0), masked(x, mask, 2.0)
        assert [a.dtype for a in ours] == [a.dtype for a in theirs]
        agree(ours, theirs, rtol=0, atol=0)


def outer(x):
    return np.add.outer(x, x)


def summed(x):
    return np.add.reduce(x)


def filled(x):
    return np.nan_to_num(x, nan=7.0)


def less_sum(x):
    return x - np.sum(x)


def in_double(x):
    return np.add(x, x, dtype=np.float64)


def where_positive(x):
    return np.sqrt(x, where=x > 0.0)


def in_two_parts(x):
    return np.modf(x)[0]


def quotient_and_rest(x):
    return divmod(x, 2.0)[1]


def places(x):
    return np.where(x > 0.0)


def next_number(x):
    return np.spacing(x)


@pytest.mark.parametrize(
    "formula, what",
    [
        (outer, "add.outer"),
        (summed, "add.reduce"),
        (filled, "nan_to_num"),
        (less_sum, "sum"),
        (in_double, "add with dtype="),
        (where_positive, "sqrt with where="),
        (in_two_parts, "modf"),
        (quotient_and_rest, "divmod"),
        (places, "where"),
        (next_number, "spacing"),
    ],
)
def test_what_is_no_operation_of_single_entries_is_refused(formula, what):
    with pytest.raises(TypeError, match=f"^{what} in an elementwise formula: "):
        on_device(formula, np.ones(3))


def test_numbers_alone_are_refused():
    """Of these CuPy makes float16 or float64, whatever the arrays are."""

    def product(x, a, b):
        return x + a * b

    def root(x, a, b):
        return x + np.sqrt(a) + b

    def choice(x, a, b):
        return x + np.where(x > 0.0, a, b)

    for formula in (product, root, choice):
        with pytest.raises(TypeError, match="of numbers alone in an elementwise formula"):
            on_device(formula, np.ones(3, np.float32), 1.0, 2.0)


def test_a_number_is_neither_true_nor_false():
    """CuPy takes True for an integer and keeps its kernel, in which 5 is then 1."""

    def scaled(x, k):
        return x * k

    with pytest.raises(TypeError, match="scaled: True or False among the arguments"):
        on_device(scaled, np.ones(3), True)


def test_a_formula_has_a_name_that_a_kernel_can_have():
    with pytest.raises(TypeError, match="by def"):
        backend.elementwise(lambda x: x + 1.0)
    with pytest.raises(TypeError, match="by def"):
        backend.elementwise(functools.partial(if_k, k=1.0))


def test_where_an_array_is_changed_it_is_of_the_whole_shape_and_on_memory_of_its_own():
    """The first CuPy says itself, the second only the double: on a GPU it is a race."""

    def added(x, y):
        x += y

    x = moved(np.ones((3, 3)))
    with pytest.raises(ValueError, match="non-broadcastable"):
        backend.elementwise(added)(x[0], x)
    with pytest.raises(ValueError, match="shares memory"):
        backend.elementwise(added)(x, x[0])
    backend.elementwise(added)(x[1:], x[0])
    agree(x, np.array([[1.0] * 3, [2.0] * 3, [2.0] * 3]))


def test_of_functions_that_do_not_compile_together_there_is_one():
    """CuPy's own error; the double knows which they are."""

    def two_betas(x):
        return special.beta(x, x) + special.betaln(x, x)

    def one_twice(x):
        return special.betaln(x, x) + special.betaln(x, 2.0) + special.gammaln(x)

    with pytest.raises(ValueError, match="does not compile"):
        on_device(two_betas, np.ones(3))
    agree(on_device(one_twice, np.full(3, 2.0)), one_twice(np.full(3, 2.0)))


def test_numpys_numbers_of_a_layer_keep_float32_on_the_device():
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for layer in (
        nn.BatchNorm1d(3, momentum=np.float64(0.1), eps=np.float64(1e-3)),
        nn.LayerNorm(3, eps=np.float64(1e-3)),
    ):
        layer.to("cupy")
        for training in (True, False):
            assert layer.train(training)(moved(x)).dtype == np.float32
        assert {a.dtype for a in layer.state_dict().values()} == {np.dtype(np.float32)}


def test_weights_come_to_the_host_together():
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1, dtype=np.float64))
    before = net.state_dict()
    net.to("cupy")
    TRANSFERS.clear()
    state = net.state_dict()
    assert len(TRANSFERS.to_host) == 2  # one of each dtype
    for name, value in before.items():
        assert state[name].dtype == value.dtype and state[name].flags.owndata
        np.testing.assert_array_equal(state[name], value)


def test_a_training_makes_one_generator(monkeypatch):
    """However many steps it has; and whichever generator it was, a key has one stream."""
    made = []
    whole = strict_device.RandomState.__init__

    def counted(state, *arguments, **keywords):
        made.append(keywords)
        whole(state, *arguments, **keywords)

    monkeypatch.setattr(strict_device.RandomState, "__init__", counted)
    trained("scVI, batches", "cupy", epochs=3)
    assert made == [{"method": 161}]
    used = backend.generator([1, 2], "cupy")
    used.standard_normal((7,))
    again = backend.generator([5, 6], "cupy", again=used)
    assert again is used
    agree(again.standard_normal((3,)), backend.generator([5, 6]).standard_normal(3))
    with pytest.raises(OverflowError):
        backend.generator([2**64], "cupy")


def test_sparse_rows_are_dense_on_the_device():
    rng = np.random.default_rng(0)
    x = sparse.random_array((7, 5), density=0.4, format="csr", rng=rng)
    twice = sparse.csr_array((np.array([1.0, 2.0, 4.0]), [3, 1, 3], [0, 0, 3]), shape=(2, 5))
    empty = sparse.csr_matrix((3, 4))
    for rows in (x, x.astype(np.float32), x > 0.5, twice, empty, sparse.csr_matrix(x)[:0]):
        there = backend.rows_on(rows, "cupy")
        assert type(there) is strict_device.ndarray and there.dtype == rows.dtype
        np.testing.assert_array_equal(backend.to_host(there), rows.toarray())
        assert backend.rows_on(rows, "numpy") is rows
    assert twice.nnz == 3  # what was given is as before
    dense = np.ones((2, 3))
    assert backend.rows_on(dense, "numpy") is dense
    agree(backend.rows_on(dense, "cupy"), dense)


@pytest.mark.parametrize("before", ["numpy", "cupy"])
def test_a_training_that_fails_leaves_the_model_where_it_was(before):
    model = SCVI(6, n_latent=2, n_hidden=5, library="latent").to(before)
    arrays = model.state_dict()

    def loss(*_, **__):
        raise MemoryError

    model.loss = loss
    with pytest.raises(MemoryError):
        model.fit(COUNTS, epochs=1, device="cupy", progress=False)
    del model.loss
    assert model.device == before and not model.trained
    assert {backend.device_of(a) for a in model._arrays().values()} == {before}
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    model.fit(COUNTS, epochs=1, device="cupy", progress=False)


def test_what_is_computed_at_once_follows_the_memory_of_the_device(monkeypatch):
    assert backend.entries_at_once(1000, "numpy") == 1000
    assert backend.entries_at_once(2**30, "cupy") == 2**30
    monkeypatch.setattr(strict_device, "MEMORY", 2**36)
    assert backend.entries_at_once(1000, "cupy") == 2**24  # float64: 128 MB of 64 GB
    model, _ = trained("scVI, batches")
    x = np.tile(COUNTS, (20, 1))
    batch = np.tile(BATCH, 20)
    expected = model.latent(x, batch)
    sizes = [len(codes) for _, codes, _ in model.minibatches(x, batch)]
    assert max(sizes) == 512
    model.to("cupy")
    assert [len(codes) for _, codes, _ in model.minibatches(x, batch)] == [1200]
    agree(model.latent(x, batch), expected)
    agree(model.denoise(x, batch=batch), model.to("numpy").denoise(x, batch=batch), rtol=1e-6)


def test_counts_are_thinned_on_the_device_without_waiting():
    counts = np.repeat([0.0, 1.0, 2.0, 30.0], 20000).reshape(4, -1)
    there = moved(counts)
    TRANSFERS.clear()
    kept = recipe.thinned(there, backend.generator([0], "cupy"))
    assert TRANSFERS.to_host == []
    half = backend.to_host(kept) / 2.0
    assert np.all(half[0] == 0) and np.all(half == np.rint(half))
    assert np.all((half >= 0) & (half <= counts))
    # Of a binomial with p = 1/2: mean x / 2, variance x / 4.
    np.testing.assert_allclose(half.mean(axis=1), counts[:, 0] / 2.0, atol=0.05)
    np.testing.assert_allclose(half.var(axis=1), counts[:, 0] / 4.0, atol=0.25)


def test_float32_stays_float32():
    model = SCVI(6, n_latent=2, n_hidden=5)
    model.fit(sparse.csr_matrix(COUNTS), epochs=1, batch_size=16, device="cupy", progress=False)
    assert (
        all(p.dtype == np.float32 for p in model.parameters())
        and model.latent(COUNTS).dtype == np.float32
    )


@pytest.mark.parametrize("name", ["AE", "scVI, latent library"])
def test_checkpoints_of_the_device_resume_anywhere(name, tmp_path):
    """Stopped after one epoch of two; resumed on the device and on the host: the ends of a run that was not stopped."""
    whole, _ = trained(name, "cupy", early_stopping=True)
    for device in ("cupy", "numpy"):
        path = tmp_path / f"{device}.npz"
        stopped = MODELS[name][0]()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "is_over", lambda run: run.epoch == 1)
            stopped.fit(
                MODELS[name][1],
                epochs=2,
                validation=0.25,
                batch_size=16,
                device="cupy",
                progress=False,
                early_stopping=True,
                checkpoint=path,
                **extra(stopped),
            )
        resumed, history = trained(name, device, early_stopping=True, checkpoint=path, resume=True)
        assert len(history) == 2 and resumed.device == device
        agree(list(resumed.state_dict().values()), list(whole.state_dict().values()))


@pytest.mark.parametrize("name", ["tied AE", "VAE", "scVI, zinb, gene"])
def test_files_of_the_device_load_on_the_host_and_go_back(name, tmp_path):
    model, _ = trained(name, "cupy")
    model.save(tmp_path / "model.npz")
    loaded = type(model).load(tmp_path / "model.npz")
    assert loaded.device == "numpy"
    agree(loaded.latent(MODELS[name][1]), model.latent(MODELS[name][1]))
    agree(loaded.to("cupy").latent(MODELS[name][1]), model.latent(MODELS[name][1]))


def test_where_a_training_runs(monkeypatch):
    """The argument, else the environment variable, else where the model is."""
    model = Autoencoder(6, **small)
    short = dict(epochs=1, progress=False)

    def device(**training):
        model.fit(FEATURES, **short, **training)
        return model.device

    assert device() == "numpy" and device(device="cupy") == "cupy" and device() == "cupy"
    monkeypatch.setenv("MINIGRAD_DEVICE", "numpy")
    assert device() == "numpy" and device(device="cupy") == "cupy"
    monkeypatch.setenv("MINIGRAD_DEVICE", "cupy")
    assert (
        model.to("numpy").device == "numpy"
        and device() == "cupy"
        and device(device="numpy") == "numpy"
    )
    monkeypatch.setenv("MINIGRAD_DEVICE", "tpu")
    with pytest.raises(ValueError, match="numpy.*cupy.*tpu"):
        device()


@every_model
def test_a_model_on_the_device_trains_on(name):
    """The second fit starts from weights that are there already: whatever it takes from the data is moved."""
    (here, _), (there, _) = trained(name), trained(name, "cupy")
    here.fit(MODELS[name][1], epochs=1, progress=False, **extra(here))
    there.fit(MODELS[name][1], epochs=1, progress=False, **extra(there))
    # Biases before a batch norm have a gradient of 0, and so move by the noise of rounding: 1e-10.
    ours, theirs = [list(model.state_dict().values()) for model in (there, here)]
    agree(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "tied AE",
        "VAE",
        "scVI, zinb, gene-cell",
        "scVI, batches",
        "scVI, latent library",
        "scVI, covariates",
    ],
)
def test_a_new_model_on_the_device_starts_from_the_moments_of_the_data(name):
    make, x = MODELS[name]
    model = make().to("cupy")
    model.fit(x, epochs=1, validation=0.25, batch_size=16, progress=False, **extra(model))
    agree(
        list(model.state_dict().values()),
        list(trained(name, epochs=1)[0].state_dict().values()),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["scVI, batches", "scVI, latent library", "scVI, covariates"])
def test_cells_are_mapped_on_the_device(name):
    """Onto a model of the device; and what comes of it answers there."""
    (here, _), (there, _) = trained(name), trained(name, "cupy")
    x = MODELS[name][1]
    queries = [
        model.map_query(x, ["new"] * 40 + ["newer"] * 20, epochs=2, progress=False)
        for model in (here, there)
    ]
    assert queries[1].device == "cupy" and there.device == "cupy"
    agree(list(queries[1].state_dict().values()), list(queries[0].state_dict().values()), rtol=1e-6)
    agree(asked(name, queries[1]), asked(name, queries[0]), rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
def test_numbers_that_are_not_finite_are_found_on_the_device():
    model = Autoencoder(6, **small)
    model.decoder[0].weight.data[0, 0] = 1e300
    with pytest.raises(FloatingPointError, match="epoch 1, batch 1.*square"):
        model.fit(FEATURES, epochs=1, device="cupy", progress=False)
    # In the first epoch: the model is as it was, where it was.
    assert model.device == "numpy" and model.decoder[0].weight.data[0, 0] == 1e300


def test_the_tape_of_the_device_is_printed_and_searched():
    x = Tensor(moved([1.0, 0.0]), requires_grad=True)
    assert "log" in str(trace.table(np.sum(np.log(x + 1.0))))
    with np.errstate(divide="ignore"):
        assert "log" in trace.first_nonfinite(np.sum(np.log(x)))
        assert "sqrt" in trace.first_nonfinite(np.sum(np.sqrt(x)), gradients=True)


def test_rows_of_a_matrix_on_the_device():
    rows = np.array([3, 0, 3])
    agree(take_rows(moved(sparse.csr_matrix(COUNTS)), rows).toarray(), COUNTS[rows])


# -------------------------------------------------------------------------------------------------------------- demos
@pytest.mark.parametrize("name", ["pca", "scvi"])
def test_demos_take_a_device(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(
        "MINIGRAD_DEVICE", "numpy"
    )  # restored after the test, which --device overrides
    TRANSFERS.clear()
    assert demos.main([name, "--quick", "--device", "cupy", "--out", str(tmp_path)]) == 0
    assert len(TRANSFERS.to_device) > 10 and (tmp_path / f"{name}.png").exists()


# --------------------------------------------------------------------------------------------------- the double itself
def test_the_double_refuses_what_cupy_refuses():
    x = moved(np.arange(6.0).reshape(2, 3))
    refused = [
        lambda: np.sum(x, where=x > 1),
        lambda: np.max(x, initial=0.0),
        lambda: np.var(x, correction=1),
        lambda: np.take(x, 1, mode="clip"),
        lambda: np.argsort(x, stable=True),
        lambda: np.linalg.trace(x),
        lambda: np.linalg.vector_norm(x),
        lambda: np.linalg.diagonal(x),
        lambda: np.linalg.outer(x[0], x[0]),
        lambda: np.eye(2, like=x),
        lambda: np.full(2, 1.0, like=x),
        lambda: np.exp(x, where=x > 1),
        lambda: np.add.at(x, (0, [1]), 1.0),
        lambda: np.concatenate([x, np.ones((1, 3))]),
        lambda: special.jv(x, x),
    ]
    for call in refused:
        with pytest.raises(TypeError):
            call()
    for name in ("normal", "permutation", "choice", "integers"):
        assert not hasattr(backend.generator([0], "cupy"), name)
    for odd in (np.array(["a"]), np.array([None])):
        with pytest.raises(ValueError, match="Unsupported dtype"):
            moved(odd)


def test_the_double_counts_and_wraps():
    x = moved(np.arange(4.0))
    TRANSFERS.clear()
    assert float(x[moved([5])][0]) == 1.0 and bool(x[0] == 0) and x.sum().item() == 6.0
    assert TRANSFERS.to_host == [8, 1, 8] and TRANSFERS.to_device == [8]
    x[[0, 1]] = 7.0
    assert isinstance(np.sum(x), strict_device.ndarray) and np.sum(x).shape == ()
    assert len(TRANSFERS.to_device) == 2

"""What only a GPU can say: `pytest tests/gpu` on a machine with an NVIDIA card and `pip install "minigrad-scvi[test,gpu]"`.

tests/test_device.py runs the same on a double of CuPy that needs no card. Here CUDA's functions, sums and noise are its
own: derivatives and trainings are held against the host's within its rounding, its noise against what it should be.
"""

import time

import numpy as np
import pytest
from scipy import sparse

from minigrad import PRIMITIVES, Tensor, backend, functional, grad, optim
from models import SCVI, VAE, Autoencoder
from tests.test_device import (
    HOST_ONLY,
    MODELS,
    agree,
    asked,
    derivatives,
    distances,
    examples_of,
    moved_on,
    trained,
)

# What is refused in formulas of one kernel: the double says it of CuPy, and here CuPy does.
from tests.test_device import (  # noqa: F401  isort: skip
    test_a_formula_that_asks_an_array_for_its_sign_is_refused,
    test_a_formula_that_asks_for_a_value_is_refused,
    test_a_number_is_neither_true_nor_false,
    test_few_bits_beside_a_number_are_refused,
    test_few_bits_beside_wider_ones_are_as_on_the_host,
    test_numbers_alone_are_refused,
    test_what_is_no_operation_of_single_entries_is_refused,
)


def missing() -> str:
    """What is missing for these tests, in words; empty where nothing is."""
    try:
        backend.to_device(np.zeros(1), "cupy")
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(autouse=True)
def no_device_by_default(monkeypatch):
    monkeypatch.delenv("MINIGRAD_DEVICE", raising=False)


class HostNoise:
    """A generator that draws on the host and sends the numbers: with it the two devices see the same noise."""

    def __init__(self, key):
        self.rng = np.random.default_rng(key)

    def random(self, size, dtype=np.float64):
        return backend.to_device(self.rng.random(size, dtype), "cupy")

    def standard_normal(self, size, dtype=np.float64):
        return backend.to_device(self.rng.standard_normal(size, dtype), "cupy")

    def standard_gamma(self, shape, size):
        return backend.to_device(self.rng.standard_gamma(backend.to_host(shape), size), "cupy")

    def poisson(self, rate, size):
        return backend.to_device(self.rng.poisson(backend.to_host(rate), size), "cupy")


@pytest.fixture
def same_noise(monkeypatch):
    on_host = backend.generator
    monkeypatch.setattr(
        backend,
        "generator",
        lambda key, device="numpy", again=None: (
            on_host(key) if device == "numpy" else HostNoise(key)
        ),
    )


@pytest.mark.parametrize("name", sorted(HOST_ONLY))
def test_what_cupy_lacks_is_an_error_that_says_so(name):
    inputs, _, there = next(examples_of(name))
    with pytest.raises(TypeError, match="on cupy.*: cupy has no such function; backend.to_host"):
        derivatives(there, [backend.to_device(x, "cupy") for x in inputs])


@pytest.mark.parametrize("name", sorted(PRIMITIVES.keys() - HOST_ONLY))
def test_derivatives_of_the_whole_table(name):
    """Value, first and second derivatives, on all examples, in float64."""
    for inputs, here, there in examples_of(name):
        agree(
            derivatives(there, [backend.to_device(x, "cupy") for x in inputs]),
            derivatives(here, inputs),
            rtol=1e-6,
            atol=1e-8,
        )


@pytest.mark.parametrize("name", MODELS)
def test_trainings_and_predictions_are_the_hosts(name, same_noise):
    """Given the same noise, in float64: losses of every epoch, then all that a model can be asked."""
    (here, expected), (there, history) = trained(name), trained(name, "cupy")
    for column in set(expected.names) - {"seconds"}:
        np.testing.assert_allclose(history[column], expected[column], rtol=1e-6, err_msg=column)
    ours = asked(name, there)
    assert there.device == "cupy" and all(type(a) is np.ndarray for a in ours)
    agree(ours, asked(name, here), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["scVI, batches", "scVI, latent library", "scVI, covariates"])
def test_cells_are_mapped_as_on_the_host(name, same_noise):
    """New batches, given the same noise; what the model knew of z stays to the bit."""
    x = MODELS[name][1]
    queries = []
    for device in ("numpy", "cupy"):
        model, _ = trained(name, device)
        query = model.map_query(x, ["new"] * 40 + ["newer"] * 20, epochs=2, progress=False)
        before, after = [m.z_encoder.state_dict() for m in (model, query)]
        assert all(np.array_equal(before[key], after[key]) for key in before)
        queries.append(query)
    assert queries[1].device == "cupy"
    here, there = [list(query.state_dict().values()) for query in queries]
    agree(there, here, rtol=1e-4, atol=1e-6)
    agree(asked(name, queries[1]), asked(name, queries[0]), rtol=1e-4, atol=1e-6)


def test_elementwise_formulas_are_the_hosts():
    """One kernel each: values, dtypes, and what changes in place."""
    rng = np.random.default_rng(0)
    for dtype, digits in ((np.float32, 1e-5), (np.float64, 1e-12)):
        x, y = rng.normal(size=(3, 4)).astype(dtype), rng.normal(size=4).astype(dtype)
        there = [backend.to_device(a, "cupy") for a in (x, y)]
        results = distances(*there, 0.25)
        assert all(backend.device_of(a) == "cupy" and a.dtype == dtype for a in results)
        agree(results, distances(x, y, 0.25), rtol=digits)
        moved_on(there[1], there[1] + 1.0, 0.9)
        moved_on(y, y + 1.0, 0.9)
        agree(there[1], y, rtol=digits)


def cells(n, n_genes, seed=0):
    """CSR counts of n cells of three types, float32."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 2.0, (3, n_genes))[rng.integers(3, size=n)]
    return sparse.csr_matrix(
        rng.poisson(rates).astype(np.float32) + np.eye(n, n_genes, dtype=np.float32)
    )


def test_trainings_with_the_gpus_own_noise_end_as_well():
    x, ends = cells(2000, 200), []
    for device in ("numpy", "cupy"):
        model = SCVI(200, n_latent=5, n_hidden=32)
        model.fit(x, epochs=20, device=device, progress=False)
        ends.append(
            (model.elbo(x, n_samples=5).mean(), model.log_likelihood(x[:200], n_samples=50).mean())
        )
        assert model.generate(50).shape == (50, 200)
    np.testing.assert_allclose(ends[1], ends[0], rtol=0.01)


def test_two_trainings_on_the_gpu_are_alike():
    x, ends = cells(300, 40), []
    for _ in range(2):
        model = VAE(40, (16,), 4, decoder="categorical")
        model.fit(x, epochs=3, device="cupy", progress=False)
        ends.append(model.latent(x))
    np.testing.assert_allclose(*ends, rtol=1e-3, atol=1e-4)  # sums by atomics come in any order


def test_noise_is_what_it_is_called_and_a_function_of_its_key():
    n = 400_000
    for dtype in (np.float32, np.float64):
        for name, mean, variance in (("random", 1 / 2, 1 / 12), ("standard_normal", 0.0, 1.0)):
            draws = [
                backend.to_host(getattr(backend.generator(key, "cupy"), name)((n,), dtype=dtype))
                for key in ([0, 1], [0, 1], [0, 2])
            ]
            assert (
                draws[0].dtype == dtype
                and np.array_equal(*draws[:2])
                and not np.array_equal(*draws[1:])
            )
            assert abs(np.corrcoef(draws[0], draws[2])[0, 1]) < 0.01
            assert draws[0].mean() == pytest.approx(mean, abs=0.01) and draws[
                0
            ].var() == pytest.approx(variance, abs=0.01)
    shapes = backend.to_device(np.full(n, 2.5), "cupy")
    rng = backend.generator([3], "cupy")
    gamma, poisson = [
        backend.to_host(draw)
        for draw in (rng.standard_gamma(shapes, size=(n,)), rng.poisson(shapes, size=(n,)))
    ]
    for draw in (gamma, poisson):
        assert draw.mean() == pytest.approx(2.5, abs=0.03) and draw.var() == pytest.approx(
            2.5, abs=0.06
        )


def test_sparse_input():
    x, rng = cells(100, 60), np.random.default_rng(0)
    there = backend.to_device(x, "cupy")
    assert backend.device_of(there) == "cupy" and (backend.to_host(there) != x).nnz == 0
    assert np.array_equal(backend.to_host(backend.rows_on(x, "cupy")), x.toarray())
    agree(there.toarray(), x.toarray())
    agree(there.sum(axis=1), np.asarray(x.sum(axis=1)))
    agree(there.log1p().toarray(), x.log1p().toarray(), rtol=1e-6)
    agree(there[np.array([5, 0, 5])].toarray(), x.toarray()[[5, 0, 5]])
    weight, bias = rng.normal(size=(8, 60)).astype(np.float32), np.zeros(8, np.float32)
    found = []
    for device in ("numpy", "cupy"):
        w, b = [Tensor(backend.to_device(a, device), requires_grad=True) for a in (weight, bias)]
        y = functional.linear(backend.to_device(x, device), w, b)
        found.append([y, *grad(np.sum(np.square(y)), [w, b])])
    agree(found[1], found[0], rtol=1e-3, atol=1e-2)  # float32, sums of 100


def test_a_step_waits_for_nothing():
    """From the minibatch to the gradients, and the change of the weights, CuPy sees no synchronisation."""
    cupyx = pytest.importorskip("cupyx")
    model = SCVI(60, n_latent=5, n_hidden=16).to("cupy").train()
    optimizer = optim.Adam(model.parameters())
    minibatch = cells(64, 60), np.zeros(64, int)
    rng = None
    for step in range(2):  # the first compiles, which may wait
        with cupyx.allow_synchronize(step == 0):
            x, codes = [backend.rows_on(a, "cupy") for a in minibatch]
            rng = backend.generator([step], "cupy", again=rng)
            loss = model.loss(x, codes, rng=rng)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert np.isfinite(loss.item())


@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: SCVI(2000, likelihood="zinb"), lambda: cells(5000, 2000)),
        (lambda: Autoencoder(1000, (2048, 1024), 128), lambda: cells(5000, 1000).toarray()),
    ],
    ids=["scVI", "AE 1000-2048-1024-128"],
)
def test_time_beside_the_cpu(make, x, request, capsys):
    """Prints; nothing is asserted of time. Seconds of the last of three epochs, batch 128, checks and noise included."""
    x, seconds = x(), {}
    for device in ("numpy", "cupy"):
        started = time.perf_counter()
        history = make().fit(x, epochs=3, device=device, progress=False, validation=0.0)
        seconds[device] = history["seconds"][-1], time.perf_counter() - started
    with capsys.disabled():
        print(
            f"\n{request.node.callspec.id}: "
            + "; ".join(
                f"{device} {last:.2f} s an epoch ({total:.1f} s in all)"
                for device, (last, total) in seconds.items()
            )
        )

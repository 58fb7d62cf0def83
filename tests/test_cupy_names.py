"""The double of CuPy (tests/strict_device.py) against CuPy itself, which can be imported where there is no GPU.

What the engine may call on the device is what the double lists, and the double refuses all else; so if every line of the
lists is true of CuPy, every call of the engine finds its function there, and each of its arguments.
"""

import inspect
import sys
import threading
from functools import reduce
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad import backend
from minigrad.derived import PLAIN
from minigrad.tensor import IMPLEMENTATIONS
from tests import strict_device
from tests.benchmarks import launches
from tests.strict_device import SIGNATURES, SPECIAL, UFUNCS
from tests.test_device import HOST_ONLY

cupy = pytest.importorskip(
    "cupy", reason='CuPy is not installed: pip install "cupy-cuda12x>=14" (no GPU is needed here)'
)
cupy_special = pytest.importorskip("cupyx.scipy.special")


def resolve(root, dotted: str):
    """root.a.b of "a.b"."""
    return reduce(getattr, dotted.split("."), root)


def arguments(signature) -> list:
    """The name of each argument, how it may be passed, and whether it may be left out."""
    return [(p.name, p.kind, p.default is p.empty) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_functions_take_the_arguments_that_the_double_takes(name):
    assert arguments(inspect.signature(resolve(cupy, name))) == arguments(SIGNATURES[name])
    assert resolve(cupy, name) is not resolve(np, name)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_numpy_hands_over_by_these_names(name):
    """CuPy looks for its function where the module and the name of NumPy's say; the double was asked by the same."""
    function = resolve(np, name)
    assert ".".join([*function.__module__.split(".")[1:], function.__name__]) == name


@pytest.mark.parametrize("name", sorted(UFUNCS | SPECIAL))
def test_ufuncs_exist_for_both_precisions(name):
    """CuPy looks in cupy first, then in cupyx.scipy.special; booleans and text aside, all take float32 and float64."""
    ufunc = getattr(cupy, name, None) or getattr(cupy_special, name)
    if name == "matmul":  # a generalised ufunc, which lists no types
        return
    assert isinstance(ufunc, cupy.ufunc)
    assert hasattr(cupy, name) if name in UFUNCS else hasattr(cupy_special, name)
    loops = {loop.partition("->")[0] for loop in ufunc.types}
    if not name.startswith(("bitwise", "invert")):
        assert "d" * ufunc.nin in loops
        assert "f" * ufunc.nin in loops or name == "yn"  # which computes in float64


def test_all_names_in_the_table_have_their_like_in_cupy():
    """Ufuncs with a rule of their own: none is missing from the double's list, and so from the check above."""
    ufuncs = {
        function.__name__
        for function, call in IMPLEMENTATIONS.items()
        if isinstance(function, np.ufunc)
        if getattr(call, "rules", None)
        if call.function is function  # some, as np.positive, are done by other functions
    }
    lacking = ufuncs - UFUNCS - SPECIAL
    assert lacking <= HOST_ONLY
    assert [name for name in lacking if hasattr(cupy_special, name)] == []


@pytest.mark.parametrize("function", PLAIN, ids=lambda function: function.__name__)
def test_what_a_tensor_answers_with_a_plain_array_exists(function):
    assert callable(getattr(cupy, function.__name__))


@pytest.mark.parametrize(
    "double, real",
    [
        (strict_device.ndarray, "ndarray"),
        (strict_device.RandomState, "random.RandomState"),
    ],
)
def test_the_methods_of_the_double_are_methods_of_cupy(double, real):
    real = resolve(cupy, real)
    assert [
        name for name in vars(double) if not name.startswith("_") and not hasattr(real, name)
    ] == []


def test_sparse_matrices_have_the_methods_of_the_double():
    from cupyx.scipy.sparse import csr_matrix

    names = {name for name in vars(strict_device.csr_matrix) if not name.startswith("_")}
    instance = {"indices", "indptr", "data"}  # set when one is made, which takes a GPU
    assert [name for name in names - instance if not hasattr(csr_matrix, name)] == []


@pytest.mark.parametrize(
    "method", ["__init__", "seed", "random_sample", "standard_normal", "standard_gamma", "poisson"]
)
def test_the_random_state_takes_the_arguments_of_the_double(method):
    ours = inspect.signature(getattr(strict_device.RandomState, method))
    theirs = inspect.signature(getattr(cupy.random.RandomState, method))
    assert arguments(ours) == arguments(theirs)


def test_cupy_keeps_64_bits_of_a_seed():
    """With a stand-in for cuRAND, which asks for a GPU: what a key of a training becomes."""
    seeds = []
    curand = SimpleNamespace(
        setPseudoRandomGeneratorSeed=lambda generator, seed: seeds.append(seed),
        setGeneratorOffset=lambda generator, offset: None,
        CURAND_RNG_PSEUDO_MT19937=0,
        CURAND_RNG_PSEUDO_MTGP32=1,
    )
    state = object.__new__(cupy.random.RandomState)
    state._lock = threading.Lock()
    state._generator = None
    state.method = 161
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy_backends.cuda.libs.curand", curand)
        patch.setitem(vars(sys.modules["cupy_backends.cuda.libs"]), "curand", curand)
        for step in range(2000):
            state.seed(np.array([0, 2, 7, step], np.uint64))
    assert len(set(seeds)) == 2000
    assert np.mean([seed >= 2**63 for seed in seeds]) == pytest.approx(0.5, abs=0.06)


def fusions_of_a_step(likelihood, dtype) -> list:
    """(function that is fused, its arguments, its results) of an epoch of scVI, as the double saw them."""
    seen = []

    def fuse(function):
        kernel = strict_device.fuse(function)

        def seeing(*arguments):
            results = kernel(*arguments)
            seen.append((function, arguments, results))
            return results

        return seeing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_kernel_of", backend._kernel_of.__wrapped__)
        double = strict_device.installed(patch)
        double.fuse = fuse
        patch.setattr(strict_device, "installed", lambda _: double)
        launches.steps(patch, likelihood=likelihood, dtype=dtype)
    return seen


def like_on_the_gpu(x):
    """An array of CuPy's of the dtype and the axes of one of the double; its memory is nowhere, and is not looked at."""
    if not isinstance(x, strict_device.ndarray):
        return x
    nowhere = cupy.cuda.UnownedMemory(1, 1, None, device_id=0)
    return cupy.ndarray((1,) * x.ndim, x.dtype, memptr=cupy.cuda.MemoryPointer(nowhere, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb"])
def test_cupy_makes_one_kernel_of_each_formula_of_a_step(likelihood, dtype, monkeypatch):
    """What CuPy's fusion does before it compiles takes no GPU: it calls the formula, and knows the dtypes of its results."""
    fusion = pytest.importorskip("cupy._core.fusion")
    if not hasattr(fusion, "_FusionHistory"):
        pytest.skip("another CuPy, whose fusion works in another way")
    seen = fusions_of_a_step(likelihood, dtype)
    monkeypatch.setattr(backend, "_cupy", lambda: cupy)
    assert len({function.__name__ for function, _, _ in seen}) >= 14
    for function, given, results in seen:
        history = fusion._FusionHistory()
        monkeypatch.setattr(fusion._thread_local, "history", history, raising=False)
        monkeypatch.setattr(fusion._thread_local, "is_old_fusing", True, raising=False)
        kernel, _ = history.get_fusion(function, [like_on_the_gpu(x) for x in given], "f")
        monkeypatch.setattr(fusion._thread_local, "is_old_fusing", False)
        results = results if isinstance(results, tuple) else (results,)
        expected = [x.dtype for x in results if x is not None]
        assert [np.dtype(p.dtype) for p in kernel.out_params] == expected, function.__name__


def test_cupy_without_a_gpu_is_an_error_that_says_so():
    try:
        has_gpu = cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        has_gpu = False
    if has_gpu:
        pytest.skip("there is a GPU")
    with pytest.raises(RuntimeError, match="found no"):
        backend.to_device(np.ones(3), "cupy")

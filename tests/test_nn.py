"""minigrad/nn.py: layers against numbers worked out by hand, and what a Module promises."""

import copy
import math
import sys

import numpy as np
import pytest
from scipy import sparse

from minigrad import Tensor, grad, nn, no_grad, optim
from tests.copies import WAYS


class Block(nn.Module):
    """Parameters, buffers and modules in every place where a Module may have them."""

    buffers = ("total",)

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.first = nn.Linear(3, 4, rng=rng)
        self.scale = nn.Parameter(rng.normal(size=4), np.float32)
        self.many = [
            nn.BatchNorm1d(4),
            nn.Sequential(nn.Linear(4, 2, rng=rng), nn.ReLU(), nn.Dropout(0.5)),
        ]
        self.total = np.arange(3.0)
        self.not_trained = Tensor(np.ones(2))
        self.n, self.name, self.array = 3, "block", np.ones(5)

    def __call__(self, x, rng=None):
        h = self.many[0](self.first(x) * self.scale)
        self.last = self.many[1](h, rng)
        return self.last


NAMES = [
    "scale",
    "first.weight",
    "first.bias",
    "many.0.weight",
    "many.0.bias",
    "many.1.layers.0.weight",
    "many.1.layers.0.bias",
]
BUFFERS = ["total", "many.0.running_mean", "many.0.running_var"]


# --------------------------------------------------------------------------------------- parameters
def test_parameter_is_a_leaf_with_a_copy_of_the_data():
    data = np.arange(3.0)
    p = nn.Parameter(data)
    data[0] = 9
    assert isinstance(p, Tensor) and p.requires_grad and p.grad is None
    np.testing.assert_array_equal(p.data, [0, 1, 2])


@pytest.mark.parametrize(
    "data, dtype, expected",
    [
        ([1.0, 2.0], None, np.float32),
        (1.5, None, np.float32),
        ([1, 2], None, np.float32),
        (np.ones(2), None, np.float64),
        (np.ones(2, np.float32), None, np.float32),
        (np.ones(2, int), None, np.float32),
        ([1.0], np.float64, np.float64),
        (np.ones(2), np.float32, np.float32),
    ],
)
def test_parameters_are_float32_unless_data_or_dtype_say_otherwise(data, dtype, expected):
    assert nn.Parameter(data, dtype).dtype == expected


def test_named_parameters_in_order_of_definition_each_once():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [id(p) for p in block.parameters()] == [id(p) for _, p in block.named_parameters()]
    assert dict(block.named_parameters())["many.1.layers.0.bias"] is block.many[1][0].bias
    assert [name for name, _, _ in block.named_buffers()] == BUFFERS


def test_what_was_computed_and_kept_is_no_parameter():
    block = Block()
    out = block(np.ones((4, 3), np.float32), np.random.default_rng(0))
    assert block.last is out and out.requires_grad
    assert [name for name, _ in block.named_parameters()] == NAMES
    np.sum(out).backward()  # uses the graph up; the output is no leaf for that
    assert [name for name, _ in block.named_parameters()] == NAMES


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.int64, complex])
@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: nn.Parameter([1.0], dtype),
        lambda dtype: nn.Linear(2, 3, dtype=dtype),
        lambda dtype: nn.BatchNorm1d(2, dtype=dtype),
        lambda dtype: nn.LayerNorm(2, dtype=dtype),
    ],
    ids=["Parameter", "Linear", "BatchNorm1d", "LayerNorm"],
)
def test_only_singles_and_doubles_are_trained(make, dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("longdouble is float64 here")
    with pytest.raises(TypeError, match=f"{np.dtype(dtype)}.*numpy.float32 or numpy.float64"):
        make(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_data_that_are_no_singles_or_doubles_need_a_dtype(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("longdouble is float64 here")
    data = np.array([1.5, 2.5], dtype)
    with pytest.raises(TypeError, match="numpy.float32 or numpy.float64"):
        nn.Parameter(data)
    p = nn.Parameter(data, np.float32)
    assert p.dtype == np.float32 and p.data.tolist() == [1.5, 2.5]


def test_parameters_are_in_the_byte_order_of_the_machine():
    p = nn.Parameter(np.array([1.5, 2.5], ">f8"))
    assert p.dtype == np.float64 and p.dtype.isnative and p.data.tolist() == [1.5, 2.5]


# --------------------------------------------------------------------------------- frozen parameters
def test_frozen_parameters_are_parameters():
    """They have names, are saved and loaded; a constant is none, nor is what is computed of them."""
    block = Block()
    block.first.weight.requires_grad = False
    block.scale.requires_grad = False
    block.last = block.scale * 2.0
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert len(block.parameters()) == len(NAMES)
    state = block.state_dict()
    assert list(state) == NAMES + BUFFERS
    other = Block(1)
    for p in other.parameters():
        p.requires_grad = False
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    assert not any(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parameter_may_be_frozen_before_it_has_a_module(when):
    block, p = Block(), nn.Parameter(np.zeros(2))
    if when == "before":
        p.requires_grad = False
    block.extra = p
    p.requires_grad = False
    assert dict(block.named_parameters())["extra"] is p
    p.requires_grad = True
    assert dict(block.named_parameters())["extra"] is p


@pytest.mark.parametrize("way", [*WAYS.values(), copy.copy], ids=[*WAYS, "copy"])
def test_a_copy_of_a_frozen_parameter_is_a_frozen_parameter(way):
    block = Block()
    block.first.weight.requires_grad = False
    copied = way(block)
    copied.first = way(copied.first)
    copied.first.weight = way(copied.first.weight)
    assert [name for name, _ in copied.named_parameters()] == NAMES
    assert [p.requires_grad for p in copied.parameters()] == [n != "first.weight" for n in NAMES]
    assert not copied.not_trained.is_parameter


def test_frozen_parameters_get_no_gradient_and_let_it_pass():
    """Through the frozen layer to the one before it, as by hand: y = b a x, dy/da = b x."""
    net = nn.Sequential(nn.Linear(1, 1, dtype=np.float64), nn.Linear(1, 1, dtype=np.float64))
    for layer, w in zip(net.layers, (2.0, 3.0)):
        layer.load_state_dict({"weight": np.full((1, 1), w), "bias": np.zeros(1)})
    for p in net[1].parameters():
        p.requires_grad = False
    np.sum(net(np.array([[5.0]]))).backward()
    assert net[0].weight.grad == 15.0 and net[0].bias.grad == 3.0
    assert net[1].weight.grad is None and net[1].bias.grad is None


def test_a_frozen_parameter_starts_where_it_is():
    p, q = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(2))
    p.requires_grad = False
    for each in (p, q):
        nn.start_at(each, [1.0, 2.0])
    assert p.data.tolist() == [0, 0] and q.data.tolist() == [1, 2]


# ------------------------------------------------------------------------------------- tied weights
class Tied(nn.Module):
    """An encoder and a decoder that share a weight, and a module that has two names."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.encoder = nn.Linear(3, 3, rng=rng)
        self.decoder = nn.Linear(3, 3, rng=rng)
        self.decoder.weight = self.encoder.weight
        self.norm = nn.BatchNorm1d(3)
        self.again = self.norm


def test_tied_weights_have_all_their_names_in_a_state_and_are_one_parameter():
    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["encoder.weight", "encoder.bias", "decoder.bias", "norm.weight", "norm.bias"]
    assert len(model.parameters()) == 5
    state = model.state_dict()
    assert {"decoder.weight", "again.weight", "again.running_mean"} < set(state)
    np.testing.assert_array_equal(state["decoder.weight"], state["encoder.weight"])

    other = Tied(1)
    optimizer = optim.SGD(other.parameters(), 1.0)
    other.load_state_dict(state)
    assert other.decoder.weight is other.encoder.weight
    np.testing.assert_array_equal(other.decoder.weight.data, model.encoder.weight.data)
    np.sum(other.encoder.weight + 2.0 * other.decoder.weight).backward()
    optimizer.step()  # once, with the sum of both gradients
    np.testing.assert_allclose(other.decoder.weight.data, state["encoder.weight"] - 3.0, rtol=1e-6)


def test_tied_weights_take_no_two_different_arrays():
    model = Tied()
    before = model.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    state["decoder.weight"] = state["decoder.weight"] + 1
    with pytest.raises(ValueError, match="encoder.weight and decoder.weight are one parameter"):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    state["decoder.weight"] = state["encoder.weight"] = np.full((3, 3), np.nan)
    model.load_state_dict(state)  # NaN is like NaN here


@pytest.mark.parametrize("way", WAYS)
def test_copies_stay_tied(way):
    copied = WAYS[way](Tied())
    assert copied.decoder.weight is copied.encoder.weight and copied.again is copied.norm


def test_a_shallow_copy_of_a_module_shares_its_parts():
    block = Block()
    optimizer = optim.SGD(block.parameters(), 0.1)
    copied = copy.copy(block)
    assert all(p is q for p, q in zip(copied.parameters(), block.parameters(), strict=True))
    np.sum(copied.scale).backward()
    optimizer.step()
    np.testing.assert_array_equal(copied.scale.data, block.scale.data)


# ---------------------------------------------------------------------------------- saving, loading
def test_state_dict_goes_there_and_back():
    a, b = Block(0), Block(1)
    a(np.ones((4, 3), np.float32), np.random.default_rng(0))
    state = a.state_dict()
    assert list(state) == NAMES + BUFFERS and all(type(v) is np.ndarray for v in state.values())
    b.load_state_dict(state)
    for name, value in b.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
        assert value.dtype == state[name].dtype
    a.eval(), b.eval()
    x = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(a(x).data, b(x).data)


def test_state_dict_is_a_copy_and_loading_is_in_place():
    block = Block()
    state = block.state_dict()
    before = {name: v.copy() for name, v in state.items()}
    arrays = [p.data for p in block.parameters()] + [m.running_mean for m in block.many[:1]]
    for p in block.parameters():
        p.data += 1
    block.many[0].running_mean += 1
    for name in state:
        np.testing.assert_array_equal(state[name], before[name])
    block.load_state_dict(state)
    after = [p.data for p in block.parameters()] + [m.running_mean for m in block.many[:1]]
    assert all(x is y for x, y in zip(arrays, after))
    state["scale"][:] = 100
    np.testing.assert_array_equal(block.scale.data, before["scale"])


def test_loading_keeps_the_dtype_and_the_arena():
    block = Block()
    optimizer = optim.SGD(block.parameters(), 0.1)
    block.load_state_dict({name: np.full(v.shape, 2.0) for name, v in block.state_dict().items()})
    assert np.all(optimizer.weights == 2) and block.scale.dtype == np.float32


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("scale"), "missing names.*scale"),
        (lambda s: s.update(extra=np.ones(2)), "unknown names.*extra"),
        (lambda s: s.update(scale=np.ones(5)), r"scale.*\(5,\).*\(4,\)"),
        (lambda s: s.update(scale=np.ones(())), r"scale.*\(\).*\(4,\)"),
        (
            lambda s: s.update({"many.0.running_var": np.ones((4, 1))}),
            r"running_var.*\(4, 1\).*\(4,\)",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_written(change, message):
    block = Block()
    before = block.state_dict()
    state = {name: v + 1 for name, v in before.items()}
    change(state)
    with pytest.raises(ValueError, match=message):
        block.load_state_dict(state)
    for name, value in block.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


# -------------------------------------------------------------------------------- modes and devices
def test_train_and_eval_reach_every_module():
    block = Block()
    everything = [block, block.first, *block.many, *block.many[1].layers]
    assert all(m.training for m in everything)
    assert block.eval() is block and not any(m.training for m in everything)
    assert block.train() is block and all(m.training for m in everything)
    block.many[1].eval()
    assert block.training and not block.many[1][2].training and block.many[0].training
    assert nn.Module.training and nn.Linear.training  # of the object, not of the class


def test_to_numpy_changes_nothing_even_for_an_optimiser():
    block = Block()
    optimizer = optim.SGD(block.parameters(), 0.5)
    arrays = [p.data for p in block.parameters()]
    assert block.to("numpy") is block
    assert all(p.data is a for p, a in zip(block.parameters(), arrays))
    before = block.scale.data.copy()
    np.sum(block.scale * 2.0).backward()
    gradient = block.scale.grad
    assert block.to("numpy").scale.grad is gradient
    optimizer.step()
    np.testing.assert_allclose(block.scale.data, before - 1.0)


def test_to_cupy_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    block = Block()
    with pytest.raises(ImportError, match=r'pip install "?minigrad.*\[gpu\]'):
        block.to("cupy")
    assert type(block.scale.data) is np.ndarray


def test_to_nonsense_lists_the_devices():
    with pytest.raises(ValueError, match="numpy.*cupy.*nonsense"):
        Block().to("nonsense")


# ------------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("n_in", [1, 16, 400])
def test_linear_starts_as_pytorchs(n_in):
    """torch.nn.Linear.reset_parameters: uniform within 1/sqrt(n_in), weight and bias."""
    layer = nn.Linear(n_in, 4000, rng=np.random.default_rng(0))
    assert (
        layer.weight.shape == (4000, n_in)
        and layer.bias.shape == (4000,)
        and layer.weight.dtype == np.float32
    )
    for p in (layer.weight.data, layer.bias.data):
        bound = 1 / math.sqrt(n_in)
        assert 0.99 * bound < np.max(np.abs(p)) <= bound * (1 + 1e-6)
        assert abs(p.mean()) < 5 * bound / math.sqrt(3 * p.size)
        assert abs(p.var() / (bound**2 / 3) - 1) < 0.1
    again, other = [nn.Linear(n_in, 4000, rng=np.random.default_rng(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(layer.weight.data, again.weight.data)
    assert np.any(layer.weight.data != other.weight.data)


def test_linear_computes_and_takes_a_dtype():
    layer = nn.Linear(2, 3, dtype=np.float64)
    layer.load_state_dict(
        {"weight": np.array([[1, 2], [3, 4], [5, 6.0]]), "bias": np.array([0.5, 0, -1])}
    )
    y = layer(np.array([[1.0, -1.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(y.data, [[-0.5, -1, -2], [4.5, 8, 11]])
    assert y.dtype == np.float64


def test_batch_norm_by_hand():
    """Columns (1, 3, 5), (2, 6, 1): means 3 and 3, biased variances 8/3, 14/3, unbiased 4, 7."""
    x = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    layer = nn.BatchNorm1d(2, momentum=0.1, eps=0.0, dtype=np.float64)
    layer.weight.data[:], layer.bias.data[:] = [2, 1], [10, 0]
    y = layer(Tensor(x, requires_grad=True))
    s, t = math.sqrt(8 / 3), math.sqrt(14 / 3)
    np.testing.assert_allclose(
        y.data, [[10 - 4 / s, -1 / t], [10, 3 / t], [10 + 4 / s, -2 / t]], rtol=1e-12
    )
    np.testing.assert_allclose(layer.running_mean, [0.3, 0.3], rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, [0.9 + 0.4, 0.9 + 0.7], rtol=1e-12)
    layer(x + 1)
    np.testing.assert_allclose(layer.running_mean, [0.67, 0.67], rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, [0.9 * 1.3 + 0.4, 0.9 * 1.6 + 0.7], rtol=1e-12)

    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    layer.eval()
    for rows in (x, x[:1]):  # a single row is fine now
        expected = [
            [10 + 2 * (a - 0.67) / math.sqrt(1.57), (b - 0.67) / math.sqrt(2.14)] for a, b in rows
        ]
        np.testing.assert_allclose(layer(rows).data, expected, rtol=1e-12)
    np.testing.assert_array_equal([layer.running_mean, layer.running_var], [mean, var])
    layer.eps = 0.5
    np.testing.assert_allclose(
        layer(x[:1]).data, [[10 + 0.66 / math.sqrt(2.07), 1.33 / math.sqrt(2.64)]], rtol=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_norm_keeps_dtypes_and_its_gradients_flow_in_both_modes(dtype):
    layer = nn.BatchNorm1d(3, dtype=dtype)
    x = Tensor(np.random.default_rng(0).normal(size=(5, 3)).astype(dtype), requires_grad=True)
    for mode in (True, False):
        layer.train(mode)
        y = layer(x)
        assert y.dtype == dtype and layer.running_mean.dtype == layer.running_var.dtype == dtype
        v = np.random.default_rng(1).normal(size=(5, 3)).astype(dtype)
        g_x, g_w, g_b = grad(y, [x, layer.weight, layer.bias], v)
        np.testing.assert_allclose(g_b, v.sum(axis=0), rtol=1e-5)
        assert np.any(g_x) and np.any(g_w) and g_x.dtype == g_w.dtype == dtype
        if mode:  # a shift of a whole column changes nothing
            np.testing.assert_allclose(g_x.sum(axis=0), 0, atol=1e-6)
        else:
            np.testing.assert_allclose(g_x, v / np.sqrt(layer.running_var + layer.eps), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float16])
def test_batch_norm_takes_its_statistics_of_whole_numbers_and_halves_without_overflow(dtype):
    x = np.random.default_rng(0).poisson(60, (300, 3)).astype(dtype)
    np.testing.assert_allclose(
        nn.BatchNorm1d(3)(x).data, nn.BatchNorm1d(3)(x.astype(np.float64)).data, atol=5e-3
    )


def test_batch_norm_needs_two_rows_and_its_own_width():
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="2 rows.*eval"):
        layer(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="batch_norm"):
        layer(np.ones((4, 1), np.float32))


def test_layer_norm_by_hand():
    layer = nn.LayerNorm(3, eps=0.0, dtype=np.float64)
    layer.weight.data[:], layer.bias.data[:] = [1, 2, 3], [0, 0, 1]
    s = math.sqrt(8 / 3)  # of 1, 3, 5
    np.testing.assert_allclose(
        layer(np.array([[1.0, 3.0, 5.0]])).data, [[-2 / s, 0, 1 + 6 / s]], rtol=1e-12
    )
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    np.testing.assert_allclose(layer(x).data[1, 2], layer(x[1, 2]).data, rtol=1e-12)
    layer.eval()
    np.testing.assert_allclose(layer(x).data, layer.train()(x).data)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_part_and_scales_it(p):
    n = 100_000
    x = Tensor(np.full(n, 3.0), requires_grad=True)
    y = nn.Dropout(p)(x, np.random.default_rng(0))
    kept = y.data != 0
    np.testing.assert_allclose(y.data[kept], 3.0 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(grad(np.sum(y), x)[0], kept / (1 - p), rtol=1e-6)
    halves = kept.reshape(2, -1)
    assert 0 < np.mean(halves[0] == halves[1]) < 1  # not one mask for every row


def test_dropout_is_a_function_of_the_generator():
    x, layer = np.ones((20, 20), np.float32), nn.Dropout(0.5)
    a, b, c = [layer(x, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(a, b)
    assert np.any(a != c) and a.dtype == np.float32
    first, second = layer(x), layer(x)  # without one: its own, which moves on
    assert np.any(first != second)
    np.testing.assert_array_equal(nn.Dropout(0.5, seed=3)(x), nn.Dropout(0.5, seed=3)(x))
    assert np.any(nn.Dropout(0.5)(x) != nn.Dropout(0.5)(x))  # two layers drop different entries


def test_layers_made_without_a_generator_differ():
    assert np.any(nn.Linear(8, 8).weight.data != nn.Linear(8, 8).weight.data)


def test_dropout_does_nothing_in_evaluation_or_at_p_zero():
    x = np.ones((4, 4))
    assert nn.Dropout(0.9).eval()(x) is x and nn.Dropout(0.0)(x) is x
    for p in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="Dropout"):
            nn.Dropout(p)


def test_activations_and_sequential():
    x = np.array([[-1.0, 0.0, 2.0]])
    e = np.exp(x)
    np.testing.assert_array_equal(nn.ReLU()(x), [[0, 0, 2]])
    np.testing.assert_allclose(nn.Sigmoid()(x), e / (1 + e), rtol=1e-12)
    np.testing.assert_allclose(nn.Softmax()(x), e / e.sum(), rtol=1e-12)
    net = nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Softmax())
    assert isinstance(net[1], nn.Dropout)
    dropped = nn.Dropout(0.5)(np.maximum(x, 0), np.random.default_rng(3))
    np.testing.assert_allclose(
        net(x, np.random.default_rng(3)), np.exp(dropped) / np.exp(dropped).sum(), rtol=1e-12
    )
    assert [
        name
        for name, _ in nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).named_parameters()
    ] == ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"]


def test_modules_compute_without_recording():
    with no_grad():
        y = Block()(np.ones((4, 3), np.float32), np.random.default_rng(0))
    assert not y.requires_grad and y.origin is None


# -------------------------------------------------------------------------------- sparse matrices, lists, sizes
@pytest.mark.parametrize(
    "kind", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.coo_array]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_dropout_of_a_sparse_matrix_drops_what_it_would_of_a_dense_one(kind, dtype):
    """`*` of a square matrix of the older kind is a product of matrices, which is what came out."""
    dense = np.random.default_rng(0).poisson(0.5, (30, 30)).astype(dtype)
    layer = nn.Dropout(0.5)
    y = layer(kind(dense), np.random.default_rng(1))
    assert sparse.issparse(y) and isinstance(y, sparse.spmatrix) == issubclass(
        kind, sparse.spmatrix
    )
    kept = y.toarray() != 0
    np.testing.assert_allclose(y.toarray(), np.where(kept, 2 * dense, 0))
    assert 0.3 < kept[dense > 0].mean() < 0.7
    as_dense = layer(dense, np.random.default_rng(1))
    np.testing.assert_array_equal(y.toarray(), as_dense)
    assert y.dtype == as_dense.dtype == (np.float32 if dtype == np.int64 else dtype)
    assert layer.eval()(x := kind(dense)) is x


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csr_array])
def test_every_layer_takes_a_sparse_matrix_rightly_or_refuses_it(kind):
    dense = np.random.default_rng(0).poisson(0.5, (6, 6)).astype(np.float32)
    linear = nn.Linear(6, 6)
    np.testing.assert_allclose(linear(kind(dense)).data, linear(dense).data, rtol=1e-5, atol=1e-6)
    layers = [nn.BatchNorm1d(6), nn.BatchNorm1d(6).eval(), nn.LayerNorm(6)]
    for layer in [*layers, nn.ReLU(), nn.Sigmoid(), nn.Softmax()]:
        with pytest.raises(TypeError, match="is a sparse matrix.*toarray"):
            layer(kind(dense))


def test_layers_take_lists():
    rows = [[1.0, 2.0], [4.0, 3.0]]
    for make in (lambda: nn.Linear(2, 2, rng=np.random.default_rng(0)), lambda: nn.BatchNorm1d(2)):
        np.testing.assert_array_equal(make()(rows).data, make()(np.array(rows)).data)
    for layer in (nn.LayerNorm(2), nn.BatchNorm1d(2).eval()):
        np.testing.assert_array_equal(layer(rows).data, layer(np.array(rows)).data)
    for layer in (nn.ReLU(), nn.Sigmoid(), nn.Softmax()):
        np.testing.assert_array_equal(layer(rows), layer(np.array(rows)))
    np.testing.assert_array_equal(
        nn.Dropout(0.5, seed=0)(rows), nn.Dropout(0.5, seed=0)(np.array(rows))
    )


def test_a_linear_layer_without_inputs_is_its_bias_and_learns():
    layer = nn.Linear(0, 3)
    y = layer(np.ones((4, 0), np.float32))
    np.testing.assert_array_equal(y.data, [layer.bias.data] * 4)
    np.sum(y).backward()
    np.testing.assert_array_equal(layer.bias.grad, [4, 4, 4])
    assert layer.weight.grad.shape == (3, 0)


@pytest.mark.parametrize(
    "sizes, name",
    [
        ((-1, 2), "n_in"),
        ((2, -1), "n_out"),
        ((2.5, 1), "n_in"),
        (("3", 1), "n_in"),
        ((2, True), "n_out"),
    ],
)
def test_linear_refuses_sizes_that_are_none(sizes, name):
    with pytest.raises(ValueError, match=f"Linear: {name} must be a whole number >= 0, not"):
        nn.Linear(*sizes)


@pytest.mark.parametrize(
    "make",
    [
        lambda number: nn.BatchNorm1d(3, momentum=number(0.1), eps=number(1e-3)),
        lambda number: nn.LayerNorm(3, eps=number(1e-3)),
    ],
)
def test_numpys_numbers_count_as_pythons(make):
    """np.float64 as a momentum or an eps neither makes float32 float64 nor changes a digit."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    for of in (np.array, lambda x: Tensor(x, requires_grad=True)):
        ours, theirs = make(np.float64), make(float)
        for training in (True, False):
            y = ours.train(training)(of(x))
            expected = theirs.train(training)(of(x))
            assert y.dtype == np.float32
            np.testing.assert_array_equal(
                getattr(y, "data", y), getattr(expected, "data", expected)
            )
        for name, array in ours.state_dict().items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, theirs.state_dict()[name])

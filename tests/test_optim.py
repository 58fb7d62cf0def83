"""minigrad/optim.py and arena.py: trajectories in Python's floats, from the formulas of the papers.

And what the arena promises.
"""

import copy
import math

import numpy as np
import pytest

from minigrad import Tensor, functional, nn, optim
from models import recipe
from tests.copies import WAYS, base, check_copies

SHAPES = [(3,), (2, 4), (), (1, 5), (0,)]


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [nn.Parameter(rng.normal(size=shape), dtype) for shape in SHAPES]


def gradients(n_steps, seed=1):
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=shape) * 10 ** rng.uniform(-3, 1) for shape in SHAPES]
        for _ in range(n_steps)
    ]


def push(ps, arrays):
    """Make the gradients of these arrays, by backward() of sum(p * array)."""
    total = 0.0
    for p, a in zip(ps, arrays):
        if a is not None:
            total = np.sum(p * a.astype(p.dtype)) + total
    total.backward()


def run(make, n_steps=12, dtype=np.float64, schedule=None):
    """The weights after each of n_steps, from the optimiser."""
    ps = parameters(dtype)
    optimizer = make(ps)
    schedule = schedule and schedule(optimizer)
    found = []
    for arrays in gradients(n_steps):
        optimizer.zero_grad()
        push(ps, arrays)
        optimizer.step()
        if schedule:
            schedule.step()
        found.append([p.data.copy() for p in ps])
    return found


def by_hand(update, n_steps=12, rates=None):
    """The same, each weight a Python float of its own.

    update(w, g, state, t, k) -> w; t from 1, k: which parameter.
    """
    weights = [p.data.copy() for p in parameters()]
    states = [[{} for _ in range(w.size)] for w in weights]
    found = []
    for t, arrays in enumerate(gradients(n_steps), 1):
        for k, (w, a, memory) in enumerate(zip(weights, arrays, states)):
            new = [
                update(float(x), float(g), s, t, k)
                for x, g, s in zip(w.ravel(), np.ravel(a), memory)
            ]
            w[...] = np.reshape(new, w.shape)
        found.append([w.copy() for w in weights])
    return found


def assert_same(found, expected, rtol=1e-12):
    for f, e in zip(found, expected, strict=True):
        for a, b in zip(f, e, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def sgd(lr, momentum):
    def update(w, g, s, t, k):
        s["v"] = momentum * s.get("v", 0.0) + g
        return w - lr * s["v"]

    return update


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, decay=lambda k: 0.0, rate=lambda t: 1.0):
    """Kingma and Ba (2015), algorithm 1; with decay, Loshchilov and Hutter (2019), algorithm 2."""

    def update(w, g, s, t, k):
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g * g
        m, v = s["m"] / (1 - b1**t), s["v"] / (1 - b2**t)
        return w - lr * rate(t) * (m / (math.sqrt(v) + eps) + decay(k) * w)

    return update


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum):
    assert_same(run(lambda ps: optim.SGD(ps, 0.05, momentum)), by_hand(sgd(0.05, momentum)))


@pytest.mark.parametrize("block", [1, 4, 16384])
@pytest.mark.parametrize("settings", [dict(), dict(betas=(0.5, 0.9), eps=0.1)])
def test_adam(settings, block, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", block)
    b1, b2 = settings.get("betas", (0.9, 0.999))
    expected = by_hand(adam(0.02, b1, b2, settings.get("eps", 1e-8)))
    assert_same(run(lambda ps: optim.Adam(ps, 0.02, **settings)), expected, rtol=1e-11)


def test_sgd_without_momentum_forgets_an_infinite_gradient():
    w = nn.Parameter(np.array([1.0]))
    optimizer = optim.SGD([w], 0.1)
    w.grad = np.array([np.inf])
    optimizer.step()
    w.data[:] = 1.0
    w.grad = np.array([2.0])
    optimizer.step()
    assert w.data == 0.8
    assert optimizer.moments[0] == 2.0  # the velocity is the gradient itself


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW], ids=["sgd", "adam", "adamw"])
def test_a_graph_from_before_a_step_is_refused_after_it(make):
    """The rule of w * w would look at the new w."""
    w, other = nn.Parameter(np.array([3.0])), nn.Parameter(np.array([2.0]))
    optimizer = make([w, other], 0.1)
    square, untouched = w * w, other * other
    np.sum(w).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="multiply was changed in place .*optimiser"):
        square.backward()
    untouched.backward()  # it had no gradient, so the step passed over it
    assert other.grad == 4.0
    w.grad = None
    np.sum(w * w).backward()
    assert w.grad == 2.0 * w.data


class PublishedAdam(optim.Adam):
    """Adam without the quick form."""

    update = optim.Adam.update_as_published


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-13), (np.float32, 2e-6)])
def test_the_quick_form_of_adam_is_the_published_one(dtype, rtol):
    """Weights and memory, step by step, also where a gradient is 0 or the first step is huge."""
    rng = np.random.default_rng(0)
    starts = rng.normal(size=50)
    quick, published = [
        make([nn.Parameter(starts, dtype)], 0.02, betas=(0.8, 0.99), eps=1e-3)
        for make in (optim.Adam, PublishedAdam)
    ]
    for _ in range(20):
        g = rng.normal(size=50) * 10.0 ** rng.integers(-6, 6, 50) * (rng.random(50) < 0.8)
        for optimizer in (quick, published):
            optimizer.zero_grad()
            push(optimizer.parameters, [g])
            optimizer.step()
        np.testing.assert_allclose(quick.weights, published.weights, rtol=rtol, atol=rtol)
        for beta, kept, mean in zip(quick.betas, quick.moments, published.moments, strict=True):
            np.testing.assert_allclose((1 - beta) * kept, mean, rtol=rtol, atol=rtol * abs(g).max())
    assert np.median(np.abs(quick.weights - starts)) > 0.02


def test_adam_in_float32():
    found = run(lambda ps: optim.Adam(ps, 0.02), dtype=np.float32)
    assert found[0][0].dtype == np.float32
    assert_same(found, by_hand(adam(0.02)), rtol=1e-5)


@pytest.mark.parametrize("block", [4, 16384])
def test_adamw_decays_all_but_those_left_out(block, monkeypatch):
    monkeypatch.setattr(optim, "BLOCK", block)
    found = run(lambda ps: optim.AdamW(ps, 0.02, weight_decay=0.7, undecayed=[ps[0], ps[3]]))
    assert_same(found, by_hand(adam(0.02, decay=lambda k: 0.0 if k in (0, 3) else 0.7)), rtol=1e-11)
    plain = run(lambda ps: optim.AdamW(ps, 0.02))
    assert_same(plain, by_hand(adam(0.02, decay=lambda k: 0.01)), rtol=1e-11)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: optim.SGD(ps, 0.05, 0.9),
        lambda ps: optim.Adam(ps, 0.02),
        lambda ps: optim.AdamW(ps, 0.02, weight_decay=0.1),
    ],
)
def test_arenas_longer_than_a_block(make):
    """Blocks of 16384: the ends of the blocks fall inside parameters."""
    rng = np.random.default_rng(0)
    sizes = [16383, 3, 40000]
    starts, slopes = [rng.normal(size=n) for n in sizes], [rng.normal(size=n) for n in sizes]
    whole = [nn.Parameter(w) for w in starts]
    optimizer = make(whole)
    alone = [
        nn.Parameter(w[-1:]) for w in starts
    ]  # the last weight of each, in an arena of its own
    others = [make([p]) for p in alone]
    for _ in range(3):
        optimizer.zero_grad()
        push(whole, slopes)
        optimizer.step()
        for p, o, g in zip(alone, others, slopes):
            o.zero_grad()
            push([p], [g[-1:]])
            o.step()
    for p, q, start in zip(whole, alone, starts):
        np.testing.assert_allclose(p.data[-1], q.data[0], rtol=1e-12)
        assert np.all(p.data != start)


# ---------------------------------------------------------------------------------------- schedules
def test_cosine_schedule():
    ps = parameters()
    optimizer = optim.SGD(ps, 0.8)
    schedule = optim.CosineSchedule(optimizer, 10)
    rates = [optimizer.learning_rate]
    for _ in range(12):
        schedule.step()
        rates.append(optimizer.learning_rate)
    expected = [0.8 * (1 + math.cos(math.pi * min(t / 10, 1))) / 2 for t in range(13)]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-15)
    assert rates[0] == 0.8 and abs(rates[5] - 0.4) < 1e-15 and rates[10] == rates[12] == 0
    found = run(lambda ps: optim.Adam(ps, 0.02), schedule=lambda o: optim.CosineSchedule(o, 12))

    def rate(t):
        return (1 + math.cos(math.pi * (t - 1) / 12)) / 2

    assert_same(found, by_hand(adam(0.02, rate=rate)), rtol=1e-11)


def test_step_schedule():
    optimizer = optim.SGD(parameters(), 1.0)
    schedule = optim.StepSchedule(optimizer, every=3, factor=0.5)
    rates = []
    for _ in range(7):
        rates.append(optimizer.learning_rate)
        schedule.step()
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


# ----------------------------------------------------------------------------------------- clipping
def test_clip_grad_norm():
    ps = parameters()
    optim.SGD(ps, 0.1)
    push(ps, gradients(1)[0])
    before = [p.grad.copy() for p in ps]
    norm = math.sqrt(math.fsum(float(g) ** 2 for a in before for g in a.ravel()))
    assert optim.clip_grad_norm(ps, norm * 2) == pytest.approx(norm, rel=1e-12)
    assert_same([[p.grad for p in ps]], [before])
    homes = [p.grad for p in ps]
    assert optim.clip_grad_norm(iter(ps), 0.5) == pytest.approx(norm, rel=1e-12)
    assert_same([[p.grad for p in ps]], [[g * 0.5 / norm for g in before]])
    assert all(p.grad is h for p, h in zip(ps, homes))
    assert optim.clip_grad_norm([nn.Parameter([1.0])], 1.0) == 0.0  # none has a gradient


# ---------------------------------------------------------------------------------------- the arena
def test_weights_and_gradients_are_views_of_one_array_each():
    ps = parameters()
    before = [p.data.copy() for p in ps]
    optimizer = optim.Adam(ps)
    n = sum(p.size for p in ps)
    assert optimizer.weights.shape == optimizer.gradients.shape == (n,)
    for p, b in zip(ps, before):
        np.testing.assert_array_equal(p.data, b)
        assert base(p.data) is optimizer.weights and p.data.shape == b.shape
    arrays = gradients(1)[0]
    push(ps, arrays)
    for p in ps:
        assert base(p.grad) is optimizer.gradients
    np.testing.assert_allclose(
        optimizer.gradients, np.concatenate([a.ravel() for a in arrays]), rtol=1e-15
    )
    optimizer.weights[:] = 7
    assert all(np.all(p.data == 7) for p in ps)


def test_gradients_add_up_until_they_are_forgotten():
    p = nn.Parameter(np.zeros(2))
    optimizer = optim.SGD([p], 1.0)
    push([p], [np.ones(2)])
    push([p], [np.ones(2)])
    np.testing.assert_array_equal(p.grad, [2, 2])
    optimizer.zero_grad()
    assert p.grad is None
    push([p], [np.ones(2)])
    np.testing.assert_array_equal(p.grad, [1, 1])
    optimizer.step()
    np.testing.assert_array_equal(p.data, [-1, -1])


def test_replaced_weights_are_adopted():
    ps = parameters()
    optimizer = optim.SGD(ps, 1.0)
    new = np.full((2, 4), 5.0)
    ps[1].data = new
    push(ps, [np.ones(shape) for shape in SHAPES])
    optimizer.step()
    np.testing.assert_array_equal(ps[1].data, np.full((2, 4), 4.0))
    np.testing.assert_array_equal(new, np.full((2, 4), 5.0))  # whose array it was has it still
    assert base(ps[1].data) is optimizer.weights
    ps[0].data = np.ones(4)
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\).*new optimiser"):
        optimizer.step()


def test_gradients_set_by_hand_count():
    p = nn.Parameter(np.zeros(2))
    optimizer = optim.SGD([p], 1.0)
    p.grad = np.array([1.0, 2.0])
    optimizer.step()
    np.testing.assert_array_equal(p.data, [-1, -2])


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: optim.SGD(ps, 0.1, 0.9),
        lambda ps: optim.Adam(ps, 0.1),
        lambda ps: optim.AdamW(ps, 0.1, weight_decay=0.5),
    ],
)
def test_parameters_without_gradient_stay(make):
    ps = parameters()
    optimizer = make(ps)
    push(ps, gradients(1)[0])
    optimizer.step()  # so that there are moments
    for left_out in ([0], [1], [0, 2], [3], [0, 1, 2, 3, 4]):
        optimizer.zero_grad()
        before = [p.data.copy() for p in ps]
        arrays = [None if k in left_out else np.ones(shape) for k, shape in enumerate(SHAPES)]
        if len(left_out) < len(ps):
            push(ps, arrays)
        optimizer.step()
        for k, (p, b) in enumerate(zip(ps, before)):
            assert np.all(p.data == b) if k in left_out else np.all(p.data != b)


def test_two_optimisers_on_the_same_parameters_take_turns():
    p, q = [nn.Parameter(np.array([1.0, 2.0])) for _ in range(2)]
    pair, one = [optim.SGD([p], 0.1), optim.SGD([p], 0.1)], optim.SGD([q], 0.1)
    for step in range(4):
        for x, optimizer in ((p, pair[step % 2]), (q, one)):
            optimizer.zero_grad()
            np.sum(x * x).backward()
            optimizer.step()
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW])
def test_what_cannot_be_optimised_is_refused(make):
    with pytest.raises(ValueError, match=make.__name__ + ".*no parameters"):
        make([])
    with pytest.raises(ValueError, match=make.__name__ + ".*float32.*float64"):
        make([nn.Parameter([1.0], np.float32), nn.Parameter([1.0], np.float64)])
    p = nn.Parameter([1.0])
    assert isinstance(make(iter([p])).parameters, list)


# -------------------------------------------------------------------------------------------- state
MAKERS = {
    "SGD": lambda ps: optim.SGD(ps, 0.05, 0.9),
    "Adam": lambda ps: optim.Adam(ps, 0.02),
    "AdamW": lambda ps: optim.AdamW(ps, 0.02, weight_decay=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_state_continues_bit_for_bit(name, dtype):
    make, arrays = MAKERS[name], gradients(8)

    def steps(ps, optimizer, some):
        for a in some:
            optimizer.zero_grad()
            push(ps, a)
            optimizer.step()
        return [p.data.copy() for p in ps]

    ps = parameters(dtype)
    optimizer = make(ps)
    halfway = steps(ps, optimizer, arrays[:4])
    state = optimizer.state_dict()
    kept = {k: np.array(v) for k, v in state.items()}
    expected = steps(ps, optimizer, arrays[4:])
    for k in kept:
        np.testing.assert_array_equal(state[k], kept[k])  # a copy: later steps do not change it
    qs = [nn.Parameter(w) for w in halfway]
    other = make(qs)
    moments = list(other.moments)
    other.load_state_dict(state)
    assert all(a is b for a, b in zip(moments, other.moments))
    for a, b in zip(steps(qs, other, arrays[4:]), expected):
        np.testing.assert_array_equal(a, b)


def test_the_state_of_another_optimiser_is_refused():
    adam_state = optim.Adam(parameters()).state_dict()
    with pytest.raises(ValueError, match="SGD"):
        optim.SGD(parameters()).load_state_dict(adam_state)
    with pytest.raises(ValueError, match="Adam"):
        optim.Adam(parameters()).load_state_dict(optim.SGD(parameters()).state_dict())
    with pytest.raises(ValueError, match="Adam"):
        optim.Adam([nn.Parameter([1.0, 2.0])]).load_state_dict(adam_state)
    with pytest.raises(ValueError, match="Adam"):
        optim.Adam(parameters()).load_state_dict({**adam_state, "moment0.1": np.ones(1)})


def test_tensors_without_gradient_are_no_trouble():
    frozen, p = Tensor(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([frozen, p], 1.0)
    np.sum(p * frozen).backward()
    optimizer.step()
    np.testing.assert_array_equal(frozen.data, [1, 1])
    np.testing.assert_array_equal(p.data, [0, 0])


def test_what_is_no_list_of_leaves_is_refused():
    w = Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(TypeError, match="leaf Tensors"):
        optim.SGD(w, 0.1)


def test_clipping_does_not_overflow_and_refuses_what_is_not_finite():
    p = Tensor(np.ones(2, np.float32), requires_grad=True)
    p.grad = np.array([3e25, 4e25], np.float32)
    assert optim.clip_grad_norm([p], 1.0) == pytest.approx(5e25, rel=1e-6)
    np.testing.assert_allclose(p.grad, [0.6, 0.8], rtol=1e-6)
    p.grad = np.array([np.inf, 1.0], np.float32)
    with pytest.raises(FloatingPointError):
        optim.clip_grad_norm([p], 1.0)
    assert p.grad[1] == 1.0


def test_undecayed_must_be_parameters():
    weight = nn.Parameter(np.ones(3))
    with pytest.raises(
        ValueError, match="undecayed holds a Tensor that is not one of the parameters"
    ):
        optim.AdamW([weight], undecayed=[nn.Parameter(np.ones(3))])


def test_two_different_losses_add_up_in_the_arena():
    """The second gradient of a weight must not be written over the first."""
    rng = np.random.default_rng(0)
    weight, bias = nn.Parameter(rng.standard_normal((2, 3))), nn.Parameter(np.zeros(2))
    optimizer = optim.SGD([weight, bias], 0.1)
    xs = rng.standard_normal((2, 5, 3))
    np.sum(functional.linear(xs[0], weight, bias)).backward()
    np.sum(functional.linear(xs[1], weight, bias)).backward()
    assert weight.grad is optimizer.arena.gradient_views[0]
    np.testing.assert_allclose(weight.grad, np.tile(xs.sum(axis=(0, 1)), (2, 1)))


def test_data_of_another_kind_gets_a_gradient_of_its_kind():
    """The arena is of float64 and the old shape; what took its place gets a gradient of its own."""
    weight, bias = nn.Parameter(np.ones((2, 3))), nn.Parameter(np.zeros(2))
    optim.SGD([weight, bias], 0.1)
    weight.data, bias.data = weight.data.astype(np.float32), np.zeros(1, np.float32)
    product = functional.linear(np.ones((4, 3), np.float32), weight, np.zeros(2, np.float32))
    np.sum(product + bias).backward()
    assert weight.grad.dtype == np.float32 and bias.grad.shape == (1,) and bias.grad[0] == 8.0


# --------------------------------------------------------------------------------- copies in memory
class Network(nn.Module):
    """Layers of every kind that has something to copy, one of them frozen, and tied weights."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.scale = nn.Parameter(np.ones(3))
        self.body = nn.Sequential(
            nn.Linear(3, 4, dtype=np.float64, rng=rng),
            nn.BatchNorm1d(4, dtype=np.float64),
            nn.Dropout(0.3, seed=1),
            nn.Linear(4, 3, dtype=np.float64, rng=rng),
        )
        self.shift = self.body[3].bias
        self.body[0].bias.requires_grad = False

    def __call__(self, x, rng=None):
        return self.body(x * self.scale + self.shift, rng)


def loss_of_network(model, step):
    x = np.random.default_rng(step).normal(size=(8, 3))
    return np.mean((model(x) - x[:, ::-1]) ** 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_copied_model_and_its_optimiser_train_like_the_originals(make, way):
    check_copies(Network(), loss_of_network, way, make)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKERS)
def test_copied_lists_of_parameters_go_on_in_the_middle_of_a_step(name, way):
    """The gradients are there, and the step is not made: they are copied as well."""
    arrays = gradients(4)

    def steps(ps, optimizer, some):
        for a in some:
            optimizer.zero_grad()
            push(ps, a)
            optimizer.step()

    ps = parameters()
    optimizer = MAKERS[name](ps)
    steps(ps, optimizer, arrays[:2])
    optimizer.zero_grad()
    push(ps, arrays[2])
    qs, copied = WAYS[way]((ps, optimizer))
    assert all(base(q.grad) is copied.gradients for q in qs)
    optimizer.learning_rate *= 2  # which is no concern of the copy's
    copied.learning_rate *= 2
    ends = []
    for some, one in ((qs, copied), (ps, optimizer)):
        before = [p.data.copy() for p in some]
        one.step()
        assert all(np.all(p.data != b) for p, b in zip(some, before))
        steps(some, one, arrays[3:])
        ends.append([p.data for p in some])
    assert_same([ends[0]], [ends[1]], rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_an_optimiser_copied_alone_has_parameters_of_its_own(way):
    ps = parameters()
    optimizer = optim.Adam(ps, 0.02)
    copied = WAYS[way](optimizer)
    before = [p.data.copy() for p in ps]
    push(copied.parameters, gradients(1)[0])
    copied.step()
    assert_same([[p.data for p in ps]], [before], rtol=0)
    assert optimizer.n_steps == 0 and all(p.grad is None for p in ps)
    push(ps, gradients(1)[0])
    optimizer.step()
    assert_same([[p.data for p in copied.parameters]], [[p.data for p in ps]], rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_schedule_drives_the_copied_optimiser(way):
    optimizer = optim.SGD(parameters(), 0.8)
    schedule = optim.CosineSchedule(optimizer, 10)
    schedule.step()
    copied, its_optimizer = WAYS[way]((schedule, optimizer))
    for _ in range(9):
        copied.step()
    assert its_optimizer.learning_rate == 0 and optimizer.learning_rate > 0.7


@pytest.mark.parametrize("name", MAKERS)
def test_a_shallow_copy_is_another_optimiser_of_the_same_parameters(name):
    """Its steps move them, as two optimisers take turns; what the original remembers stays."""
    arrays, ps = gradients(5), parameters()
    optimizer = MAKERS[name](ps)
    push(ps, arrays[0])
    optimizer.step()
    copied, state = copy.copy(optimizer), optimizer.state_dict()
    for a in arrays[1:4]:
        before = [p.data.copy() for p in ps]
        copied.zero_grad()
        push(ps, a)
        copied.step()
        assert all(np.all(p.data != b) for p, b in zip(ps, before))
    for key, value in optimizer.state_dict().items():
        assert key == "checksums" or np.array_equal(value, state[key]), key
    qs = [nn.Parameter(p.data) for p in ps]
    fresh = MAKERS[name](qs)
    fresh.load_state_dict(state)
    for some, one in ((ps, optimizer), (qs, fresh)):
        one.zero_grad()
        push(some, arrays[4])
        one.step()
    assert_same([[p.data for p in ps]], [[q.data for q in qs]], rtol=0)


def test_a_gradient_that_is_there_outlasts_a_new_optimiser():
    p = nn.Parameter(np.zeros(2))
    push([p], [np.ones(2)])
    optimizer = optim.SGD([p], 1.0)
    assert base(p.grad) is optimizer.gradients
    optimizer.step()
    np.testing.assert_array_equal(p.data, [-1, -1])


# ------------------------------------------------------------------------------- frozen parameters
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_frozen_stays_and_then_trains_as_if_it_had_just_come(name):
    """Neither momentum nor weight decay move it; Adam's correction begins with its first step."""
    make, arrays = MAKERS[name], gradients(9)
    (a, *_), (b, *_) = parameters(), parameters()
    ps = [a, nn.Parameter(np.ones(2))]
    optimizer = make(ps)
    ps[0].requires_grad = False  # after the optimiser was made
    start = a.data.copy()
    for some in arrays[:5]:
        optimizer.zero_grad()
        (np.sum(a * some[0]) + np.sum(ps[1])).backward()
        assert a.grad is None
        optimizer.step()
        np.testing.assert_array_equal(a.data, start)
    a.requires_grad = True
    alone = make([b])
    for some in arrays[5:]:
        optimizer.zero_grad()
        alone.zero_grad()
        (np.sum(a * some[0]) + np.sum(b * some[0]) + np.sum(ps[1])).backward()
        optimizer.step()
        alone.step()
        np.testing.assert_array_equal(a.data, b.data)
    assert np.all(a.data != start)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_frozen_in_between_goes_on_where_it_was(name):
    make, arrays = MAKERS[name], gradients(6)
    ps, qs = parameters(), parameters()
    whole, cut = make(ps), make(qs)
    for step, some in enumerate(arrays):
        if step == 3:  # two more steps, in which only the others learn
            for q in qs[:2]:
                q.requires_grad = False
            for _ in range(2):
                before = [q.data.copy() for q in qs[:2]]
                cut.zero_grad()
                push(qs, some)
                cut.step()
                assert_same([[q.data for q in qs[:2]]], [before], rtol=0)
            for q in qs[:2]:
                q.requires_grad = True
        for those, one in ((ps, whole), (qs, cut)):
            one.zero_grad()
            push(those, some)
            one.step()
    assert_same([[q.data for q in qs[:2]]], [[p.data for p in ps[:2]]], rtol=1e-15)
    assert np.any(qs[3].data != ps[3].data)


def test_what_is_frozen_with_its_gradient_does_not_move():
    p, q = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(2))
    optimizer = optim.AdamW([p, q], 0.1, weight_decay=0.5)
    push([p, q], [np.ones(2), np.ones(2)])
    p.requires_grad = False
    optimizer.step()
    assert np.all(p.data == 0) and np.all(q.data != 0)


# ------------------------------------------------------------------------------------ tied weights
@pytest.mark.parametrize("name", MAKERS)
def test_a_parameter_that_is_listed_twice_is_trained_once(name):
    arrays, ps, qs = gradients(3), parameters(), parameters()
    once, twice = MAKERS[name](ps), MAKERS[name]([*qs, qs[1], qs[0]])
    assert len(twice.parameters) == len(SHAPES) and twice.weights.size == once.weights.size
    for some in arrays:
        for those, one in ((ps, once), (qs, twice)):
            one.zero_grad()
            push(those, some)
            one.step()
    assert_same([[q.data for q in qs]], [[p.data for p in ps]], rtol=0)


def test_weights_that_do_not_decay_may_be_listed_twice():
    p, q = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3))
    optimizer = optim.AdamW([q, p, q], 0.1, weight_decay=0.5, undecayed=[q, q])
    push([p, q], [np.zeros(2), np.zeros(3)])
    optimizer.step()
    np.testing.assert_allclose(p.data, 0.95, rtol=1e-15)
    np.testing.assert_array_equal(q.data, 1.0)


# ---------------------------------------------------------------------- a state in the wrong order
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "shapes, order",
    [([(2, 3), (3, 2)], [1, 0]), ([(4,), (2, 2)], [1, 0]), ([(3,), (3,), (3,)], [1, 2, 0])],
)
def test_a_state_of_parameters_in_another_order_is_refused(name, shapes, order):
    rng = np.random.default_rng(0)
    ps = [nn.Parameter(rng.normal(size=shape)) for shape in shapes]
    optimizer = MAKERS[name](ps)
    push(ps, [rng.normal(size=shape) for shape in shapes])
    optimizer.step()
    state = optimizer.state_dict()
    other = MAKERS[name]([nn.Parameter(ps[i].data) for i in order])
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"{type(optimizer).__name__}: .*(order|needed)"):
        other.load_state_dict(state)
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    MAKERS[name]([nn.Parameter(p.data) for p in ps]).load_state_dict(state)  # the right one


def test_a_state_may_be_loaded_before_the_weights():
    ps, qs = parameters(seed=0), parameters(seed=1)
    optimizer, other = optim.Adam(ps), optim.Adam(qs)
    push(ps, gradients(1)[0])
    optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(ps, qs):
        q.data[...] = p.data
    for those, one in ((ps, optimizer), (qs, other)):
        one.zero_grad()
        push(those, gradients(1)[0])
        one.step()
    assert_same([[q.data for q in qs]], [[p.data for p in ps]], rtol=0)


def test_what_decays_is_part_of_the_order():
    """AdamW lays those that decay before the others: another choice is another order."""
    p, q = nn.Parameter([1.0, 2.0]), nn.Parameter([3.0, 4.0])
    state = optim.AdamW([p, q], undecayed=[q]).state_dict()
    with pytest.raises(ValueError, match="order"):
        optim.AdamW([p, q], undecayed=[p]).load_state_dict(state)


# ----------------------------------------------------------------------- numbers that are no singles
@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_weights_of_a_dtype_that_is_not_computed_in_are_refused(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("longdouble is float64 here")
    p = nn.Parameter(np.ones(3))
    p.data = p.data.astype(dtype)
    with pytest.raises(TypeError, match="SGD.*numpy.float32 or numpy.float64"):
        optim.SGD([p])


def test_halves_that_are_put_into_a_parameter_are_computed_with_in_its_dtype():
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.Adam([p], 0.1, eps=1e-12)  # which is 0 in float16
    p.data = np.full(3, 300, np.float16)
    p.grad = np.full(3, 600, np.float16)  # its square is beyond float16
    optimizer.step()
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.data, 299.9, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype, size",
    [(np.float64, 1e160), (np.float64, 1e-170), (np.float32, 1e20), (np.float32, 1e-40)],
)
def test_clipping_where_squares_are_out_of_range(dtype, size):
    p, q = nn.Parameter(np.ones(2, dtype)), nn.Parameter(np.ones(1, dtype))
    p.grad, q.grad = np.array([3 * size, 0], dtype), np.array([4 * size], dtype)
    rtol = 1e-4 if size == 1e-40 else 1e-6  # below 1e-38, float32 has fewer digits
    assert optim.clip_grad_norm([p, q], 10 * size) == pytest.approx(5 * size, rel=rtol)
    np.testing.assert_allclose(p.grad, [3 * size, 0], rtol=rtol)
    optim.clip_grad_norm([p, q], size)
    np.testing.assert_allclose(p.grad, [0.6 * size, 0], rtol=rtol)
    np.testing.assert_allclose(q.grad, [0.8 * size], rtol=rtol)


def test_clipping_by_a_factor_too_small_for_float32():
    p = nn.Parameter(np.ones(1, np.float32))
    p.grad = np.array([2e38], np.float32)
    optim.clip_grad_norm([p], 1e-9)
    np.testing.assert_allclose(p.grad, [1e-9], rtol=1e-6)


def test_clipping_counts_a_tied_weight_once():
    p = nn.Parameter(np.ones(2))
    p.grad = np.array([3.0, 4.0])
    assert optim.clip_grad_norm([p, p], 2.5) == 5.0
    np.testing.assert_allclose(p.grad, [1.5, 2.0], rtol=1e-15)


@pytest.mark.parametrize(
    "make",
    [
        lambda ps, number: optim.SGD(ps, number(0.1), momentum=number(0.9)),
        lambda ps, number: optim.Adam(
            ps, number(0.1), betas=(number(0.8), number(0.99)), eps=number(1e-3)
        ),
        lambda ps, number: optim.AdamW(ps, number(0.1), weight_decay=number(0.1)),
        lambda ps, number: recipe.AdamForCounts(ps, number(0.1), number(0.1), ps[:2], ps[-1], {}),
    ],
)
def test_numpys_numbers_count_as_pythons(make):
    """The same weights to the last digit: in float32 an update by np.float64 is one in double."""
    schedules = (
        lambda optimizer, number: optim.StepSchedule(optimizer, every=3, factor=number(0.3)),
        lambda optimizer, number: optim.CosineSchedule(optimizer, n_steps=20),
    )
    for schedule in schedules:
        found, expected = (
            run(
                lambda ps: make(ps, number),
                dtype=np.float32,
                schedule=lambda optimizer: schedule(optimizer, number),
            )
            for number in (np.float64, float)
        )
        for ours, theirs in zip(found, expected, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a.dtype == np.float32
                np.testing.assert_array_equal(a, b)

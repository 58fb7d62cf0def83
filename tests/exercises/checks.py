"""What a right answer to each exercise of the README ("How to read the source") does: one check an exercise.

A check takes the learner's answer and raises Wrong, saying in a line what is wrong. What it compares with is never minigrad's
own: closed forms, scipy.stats, quadrature, difference quotients. EXERCISES says what to write, and keeps the order.
"""

import inspect
import sys
from contextlib import contextmanager
from unittest import mock

import numpy as np
from scipy import integrate, special, stats

from minigrad import Tensor, backward, count_kernels, grad, gradcheck, kernels, nn, optim
from minigrad.checking import GradientError
from minigrad.count_likelihoods import zinb_log_prob
from minigrad.distributions import ZeroInflatedNegativeBinomial
from minigrad.fit import fit
from minigrad.table import Primitive
from minigrad.tensor import IMPLEMENTATIONS
from models import SCVI, VAE
from tests.exercises.ten_rules import TEN

EXERCISES = {
    "backward_keeping": "def backward_keeping(loss, inner): as loss.backward(), and adds to .grad of the Tensors in the list inner too",
    "undo_broadcasting": "def undo_broadcasting(g, shape): g summed to that shape; an array from an array, a Tensor from a Tensor",
    "owens_t": "owens_t = primitive(special.owens_t, rule of h, rule of a), so that special.owens_t(h, a) takes Tensors",
    "out_of_order": "def out_of_order(x): (y, what grad(y, x) would give first in, first out); x and y Tensors of one number",
    "jvp": "def jvp(f, x, v): J v, J the Jacobian of f at the array x; an array of the shape of f(x); v is an array as x",
    "sweep": "def sweep(output, gradient): a dict, from each leaf that needs a gradient to its gradient, an array",
    "softmax_rule": "def softmax_rule(g, y, x): the gradient of x, for y = softmax(x) along the last axis",
    "wrong_rule": "wrong_rule = (name, rule): the name in tests/exercises/ten_rules.py, and the right rule(g, y, x) or (g, y, a, b)",
    "Nesterov": "class Nesterov(optim.Optimizer): made as Nesterov(parameters, learning_rate=, momentum=)",
    "kl_gamma": "def kl_gamma(shape_q, rate_q, shape_p, rate_p): KL(q || p) in nats, elementwise",
    "NoisyRegression": "class NoisyRegression(nn.Module): made as NoisyRegression(n_features), with loss and validation as fit calls them",
    "ppca_log_prob": "def ppca_log_prob(x, weight, mean, sigma): log p(x) of each row in nats, shape (n,)",
    "StudentT": "class StudentT: made as StudentT(loc, scale, df), with log_prob(x), sample(rng), and mean, a property",
    "zinb_log_prob": "def zinb_log_prob(x, log_mu, log_theta, zi_logits): nats, elementwise",
    "scvi_elbo": "def scvi_elbo(model, counts, eps): the ELBO of each cell in nats, shape (n,); eps (n, n_latent)",
    "importance_weighted_loss": "def importance_weighted_loss(model, x, eps): a scalar; model a VAE, eps (k, n, n_latent)",
}


class Wrong(AssertionError):
    """An answer is wrong; the message is the hint."""


def _demand(is_right, hint):
    """Wrong, with the hint, unless is_right."""
    if not is_right:
        raise Wrong(hint)


def demand_ones_own(answer):
    """Wrong if the answer is a function or class of minigrad's or of models', imported."""
    source = answer.function if isinstance(answer, Primitive) else answer
    module = getattr(source, "__module__", None) or ""
    _demand(
        module.partition(".")[0] not in ("minigrad", "models"),
        f"it is the engine's own: {getattr(answer, '__name__', answer)} of {module}; write yours",
    )


@contextmanager
def _on_ones_own(*functions):
    """Within, the answer is to do without these functions of the engine: Wrong if one was called.

    They are known by their code, so that it does not matter by which name an answer calls them.
    """
    names = {f.__code__: f"{f.__qualname__} (in {f.__module__})" for f in functions}
    called = []

    def look(frame, event, argument):
        if event == "call" and frame.f_code in names:
            called.append(names[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)
    if called:
        raise Wrong(f"it calls the engine's own {called[0]}; here it is yours to write")


def _plain(value, what):
    """An answer's result as an array; it must be an array or a Tensor of numbers."""
    _demand(value is not None, f"{what}: is None; is there a `return`?")
    return np.asarray(value.data if isinstance(value, Tensor) else value)


def _same(found, expected, what, rtol=1e-6, atol=1e-9):
    """Wrong where an answer is another number, or has another shape, than it should."""
    found = _plain(found, what)
    expected = np.asarray(expected)
    _demand(
        found.shape == expected.shape,
        f"{what}: has shape {found.shape}, should have {expected.shape}",
    )
    is_off = ~np.isclose(found, expected, rtol=rtol, atol=atol)
    if is_off.any():
        at = tuple(int(i) for i in np.argwhere(is_off)[0])
        where = f" at index {at}" if at else ""
        raise Wrong(f"{what}: is {found[at]:.9g}{where}, should be {expected[at]:.9g}")


def _not(mistakes, found, what):
    """Wrong, with its hint, where an answer is what a usual mistake gives. mistakes: hint -> value."""
    found = _plain(found, what)
    for hint, value in mistakes.items():
        _demand(found.shape != np.shape(value) or not np.allclose(found, value), hint)


def _differentiable(f, *inputs, order=2):
    """gradcheck, with a word about what an answer has to be made of."""
    try:
        y = f(*[Tensor(x, requires_grad=True) for x in inputs])
    except TypeError as error:
        raise Wrong(
            f"it cannot be given Tensors ({error}); use NumPy's functions and operators"
        ) from error
    _demand(
        isinstance(y, Tensor),
        f"given Tensors it returns {type(y).__name__}, so that nothing was recorded",
    )
    try:
        gradcheck(f, *inputs, order=order)
    except GradientError as error:
        raise Wrong(str(error)) from error


def check_backward_keeping(answer):
    x = np.array([0.5, -1.0, 2.0])
    leaf, slope = Tensor(x, requires_grad=True), Tensor(1.5, requires_grad=True)
    leaf.grad = np.ones(3)  # from an earlier loss
    h = np.sin(slope * leaf)
    z, a, b = h * h, 2.0 * h, 3.0 * h
    loss = np.sum(z * h + a + b)  # the sum of h^3 + 5 h
    named = {"h": h, "h * h": z, "2 h": a, "3 h": b}
    z.grad = np.ones(3)  # likewise
    answer(loss, list(named.values()))
    h_data = np.sin(1.5 * x)
    inner = 3.0 * h_data**2 + 5.0
    given = "for loss = sum(h^3 + 5 h), h = sin(w x), the gradient"
    for name, t, expected in (
        ("h", h, inner),
        ("h * h, and the 1 that was in its .grad before", z, 1.0 + h_data),
        ("2 h", a, np.ones(3)),
        ("3 h", b, np.ones(3)),
    ):
        _demand(t.grad is not None, f"the .grad of {name}, which is in the list, is still None")
        _demand(not isinstance(t.grad, Tensor), f"the .grad of {name} is a Tensor, not an array")
        _same(t.grad, expected, f"{given} of {name}")
    _demand(
        slope.grad is not None,
        "the .grad of the leaf w is still None: was backward() called? (A sweep that is told what is "
        "`wanted` ends at the oldest of these, before it comes to the leaves.)",
    )
    _same(slope.grad, np.sum(inner * np.cos(1.5 * x) * x), f"{given} of the leaf w")
    _same(
        leaf.grad,
        1.0 + inner * np.cos(1.5 * x) * 1.5,
        f"{given} of the leaf x, and the 1 that was in x.grad before",
    )
    arrays = [t.grad for t in (leaf, slope, *named.values())]
    _demand(
        not any(np.shares_memory(p, q) for i, p in enumerate(arrays) for q in arrays[:i]),
        "two Tensors share one array as their .grad: adding to one changes the other",
    )
    try:
        loss.backward()
    except RuntimeError:
        return
    raise Wrong("the graph is still there afterwards; backward() drops it, to free the memory")


def check_undo_broadcasting(answer):
    rng = np.random.default_rng(0)
    for shape, to in (
        ((3,), (2, 3)),
        ((2, 1), (2, 3)),
        ((), (2, 3)),
        ((1, 3), (4, 2, 3)),
        ((1, 1, 2), (3, 1, 2)),
        ((2, 3), (2, 3)),
        ((3, 3), (3, 3)),
        ((1, 3), (0, 3)),
    ):
        g = rng.standard_normal(to)
        before = g.copy()
        # Which entry of the input each entry of the output was: then it is a matter of counting.
        entry = np.broadcast_to(np.arange(np.prod(shape, dtype=int)).reshape(shape), to)
        n_entries = int(np.prod(shape))
        expected = np.bincount(entry.ravel(), g.ravel(), n_entries).reshape(shape)
        with _on_ones_own(backward.unbroadcast, backward.sweep):
            found = answer(g, shape)
        _same(found, expected, f"g of shape {to} summed to {shape}")
        _demand(np.array_equal(g, before), "it has changed g, which is not its own")
    narrow = _plain(answer(g.astype(np.float32), (1, 3)), "the sum of a g of float32").dtype
    _demand(narrow == np.float32, f"a g of float32 became {narrow}")
    for shape in ((3,), (2, 1), ()):
        _differentiable(lambda g: answer(g, shape), rng.standard_normal((2, 3)))


def check_owens_t(answer):
    _demand(
        isinstance(answer, Primitive) and IMPLEMENTATIONS.get(special.owens_t) is answer,
        "it is not what primitive(special.owens_t, ...) returned",
    )
    _demand(answer.n_arrays == 2, f"it has {answer.n_arrays} rule, should have two: of h and of a")
    h, a = np.array([[-1.5], [0.0], [0.7]]), np.array([-2.0, 0.0, 0.4, 3.0])

    def density(t, h):
        return np.exp(-0.5 * h * h * (1.0 + t * t)) / (2.0 * np.pi * (1.0 + t * t))

    def slope_in_h(t, h):
        return -h * (1.0 + t * t) * density(t, h)

    def integral(f):
        """Of f(t, h) for t from 0 to a, of each h and a."""
        return np.vectorize(lambda h, a: integrate.quad(f, 0.0, a, args=(h,))[0])(h, a)

    tensors = Tensor(h, requires_grad=True), Tensor(a, requires_grad=True)
    y = special.owens_t(*tensors)
    _same(y, integral(density), "its value")
    for scale in (1.0, 3.0):
        g = np.full(y.shape, scale)
        found = grad(y, list(tensors), gradient=g)
        where = f"where the gradient of the output is {scale:g}, that of"
        _same(found[0], np.sum(g * integral(slope_in_h), axis=1, keepdims=True), f"{where} h")
        _same(found[1], np.sum(g * density(a, h), axis=0), f"{where} a")
    _differentiable(special.owens_t, h, a)
    # The rules themselves: the sweep would give their results the dtype of h and a in any case.
    narrow = np.linspace(0.5, 1.0, 3, dtype=np.float32)
    for rule, name in zip(answer.rules, "ha"):
        found = rule(np.ones_like(narrow), special.owens_t(narrow, narrow), narrow, narrow)
        _demand(
            found.dtype == np.float32,
            f"of float32 arrays the rule of {name} makes {found.dtype}, as a NumPy number such as "
            "np.sqrt(np.pi) would; constants in rules are Python's floats, as in ops.py",
        )


@contextmanager
def _first_in_first_out():
    """Within: the sweep visits nodes in the order in which it found them."""
    with (
        mock.patch.object(backward, "heappush", lambda queue, item: queue.append(item)),
        mock.patch.object(backward, "heappop", lambda queue: queue.pop(0)),
    ):
        yield


def check_out_of_order(answer):
    for x in (3.0, -0.7):
        t = Tensor(x, requires_grad=True)
        pair = answer(t)
        _demand(pair is not None, "it returns nothing; is there a `return`?")
        _demand(
            isinstance(pair, (tuple, list)) and len(pair) == 2,
            "it returns a pair, (y, what grad gives)",
        )
        y, said = pair
        _demand(isinstance(y, Tensor) and y.size == 1, "y is not a Tensor of one number")
        h = 1e-5 * abs(x)
        ahead, behind = (answer(Tensor(x + step, requires_grad=True))[0].item() for step in (h, -h))
        right = (ahead - behind) / (2.0 * h)
        with _first_in_first_out():
            found = grad(y, t)[0]
        _demand(
            not np.isclose(found, right, rtol=1e-5, atol=1e-7),
            f"nothing breaks: at x = {x:g}, grad gives {float(found):.9g} first in, first out, which is "
            "right; write down which nodes are in the queue after each visit, the oldest entry first",
        )
        said = float(np.reshape(_plain(said, "what grad gives"), ()))
        _demand(
            not np.isclose(said, right, rtol=1e-6),
            f"at x = {x:g}, {said:.9g} is what grad gives now, in the right order; what would it give "
            "first in, first out?",
        )
        _demand(
            np.isclose(said, found, rtol=1e-6),
            f"first in, first out, grad does not give {said:.9g} at x = {x:g}; follow the queue by "
            "hand, with the gradient of each node, and see in grad what becomes of what sweep yields",
        )


def check_jvp(answer):
    rng = np.random.default_rng(1)
    a, x, v = rng.standard_normal((7, 4)), rng.standard_normal(4), rng.standard_normal(4)
    n_calls = dict(f=0, rule=0)

    def counted_rule(g, y, x):
        n_calls["rule"] += 1
        return g * (1.0 - y * y)

    counted_tanh = Primitive(lambda x: np.tanh(x), (counted_rule,), "counted_tanh")

    def f(x):
        n_calls["f"] += 1
        return counted_tanh(a @ x)

    found = answer(f, x, v)
    _demand(
        n_calls["f"] == 1,
        f"it computed f {n_calls['f']} times; once is enough (f(x) knows its shape)",
    )
    _demand(
        n_calls["rule"] <= 2,
        f"for f(x) of 7 numbers it went back {n_calls['rule']} times: not row by row",
    )
    expected = (1.0 - np.tanh(a @ x) ** 2) * (a @ v)
    _same(found, expected, "for f(x) = tanh(A x), A of shape (7, 4)", rtol=1e-10)
    x, v = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    _same(
        answer(lambda x: np.std(x, axis=1), x, v),
        np.mean((x - x.mean(1, keepdims=True)) * v, axis=1) / x.std(1),
        "for f(x) = std(x, axis=1), x of shape (3, 4)",
    )
    _same(
        answer(lambda x: np.concatenate([x, x * x]), x, v),
        np.concatenate([v, 2.0 * x * v]),
        "for f(x) = concatenate([x, x * x])",
    )


def check_sweep(answer):
    def swept(output, gradient):
        with _on_ones_own(backward.sweep):
            found = answer(output, gradient)
        _demand(isinstance(found, dict), f"it returns a {type(found).__name__}, not a dict")
        return found

    def leaf(data):
        return Tensor(data, requires_grad=True)

    rng = np.random.default_rng(2)
    x, w, s = rng.standard_normal((2, 3)), rng.standard_normal(3), np.array(0.7)
    g = rng.standard_normal((2, 3))
    leaves = dict(x=leaf(x), w=leaf(w), s=leaf(s))
    constant = Tensor(np.full((2, 3), 2.0))
    product = leaves["x"] * leaves["w"]
    y = np.sin(product) + leaves["s"] * product + constant * leaves["x"]
    found = swept(y, g)
    through = g * (np.cos(x * w) + s)
    for name, expected in (
        ("x", through * w + 2.0 * g),
        ("w", np.sum(through * x, axis=0)),
        ("s", np.sum(g * x * w)),
    ):
        _demand(leaves[name] in found, f"for y = sin(x w) + s x w + 2 x the leaf {name} is missing")
        _same(
            found[leaves[name]], expected, f"for y = sin(x w) + s x w + 2 x, the gradient of {name}"
        )
        _demand(leaves[name].grad is None, f"it has filled {name}.grad; it is to return gradients")
    _demand(
        set(found) == set(leaves.values()),
        "the dict has more than the leaves that need a gradient",
    )

    # The rule of add hands on one and the same array to both inputs.
    x, w = leaf(1.0), leaf(2.0)
    found = swept((x + w) + x, np.array(1.0))
    for name, t, expected in (("x", x, 2.0), ("w", w, 1.0)):
        _same(found[t], expected, f"for y = (x + w) + x, the gradient of {name}")

    n_calls = 0

    def counted_rule(g, y, x):
        nonlocal n_calls
        n_calls += 1
        _demand(
            n_calls <= 12, "for 12 doublings a rule was asked more than 12 times: one visit each"
        )
        return g

    step = Primitive(lambda x: x.copy(), (counted_rule,), "counted")
    t = start = leaf(1.0)
    for _ in range(12):
        t = step(t)
        t = t + t
    _same(swept(t, np.array(1.0))[start], 4096.0, "for x doubled 12 times")

    t = start = leaf(1.0)
    for _ in range(3000):
        t = t + 1.0
    try:
        found = swept(t, np.array(1.0))
    except RecursionError as error:
        raise Wrong("a graph that is 3000 nodes deep is too deep for recursion") from error
    _same(found[start], 1.0, "for x + 1 + 1 ..., 3000 times")


def check_softmax_rule(answer):
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    y, before = special.softmax(x, axis=-1), g.copy()
    jacobians = [np.diag(row) - np.outer(row, row) for row in y]
    with _on_ones_own(kernels.softmax_backward, backward.sweep):
        found = answer(g, y, x)
    _same(
        found,
        np.stack([row @ j for row, j in zip(before, jacobians)]),
        "against the Jacobian, the gradient",
    )
    _demand(np.array_equal(g, before), "it has changed g, which is not its own")
    _differentiable(
        Primitive(lambda x: special.softmax(x, axis=-1), (answer,), "exercise_softmax"), x
    )


def check_wrong_rule(answer):
    _demand(
        isinstance(answer, (tuple, list)) and len(answer) == 2 and callable(answer[1]),
        "it is a pair, (name, rule)",
    )
    name, rule = answer
    _demand(name in TEN, f"{name!r} is none of the ten: {', '.join(TEN)}")
    _demand(
        name == "huber",
        f"the rules of {name} are right; one gradcheck judges the inputs that it is given and no "
        "others: does every formula of the ten see every kind of input?",
    )
    _differentiable(
        Primitive(TEN[name].function, (rule,), name), np.array([-3.0, -1.4, -0.6, 0.2, 0.9, 1.7])
    )


def check_Nesterov(answer):
    rate, momentum, slope = 0.1, 0.8, np.array([1.0, 3.0, 0.5])
    parameters = [nn.Parameter(np.ones(2), np.float64), nn.Parameter(np.ones(1), np.float64)]
    found = answer(parameters, learning_rate=rate, momentum=momentum)
    w, v = np.ones(3), np.zeros(3)
    for step in range(20):
        which = f"the weights after step {step + 1}"
        if step >= 5:
            which = f"with a halved learning rate, {which}"
        if step >= 10:
            which = f"resumed from its state_dict, the weights after step {step - 9}"
        if step == 5:
            rate = 0.5 * rate
            found.learning_rate = rate
        if step == 10:  # resumed from a checkpoint, in the middle
            state = found.state_dict()
            found = answer(parameters, learning_rate=rate, momentum=momentum)
            found.load_state_dict(state)
        found.zero_grad()
        first, second = parameters
        loss = 0.5 * np.sum(slope[:2] * first**2) + 0.5 * np.sum(slope[2:] * second**2)
        loss.backward()
        found.step()
        g = slope * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v)
        _same(
            np.concatenate([p.data for p in parameters]),
            w,
            which,
            rtol=1e-10,
        )
        _demand(
            np.allclose(np.concatenate([p.grad for p in parameters]), g, rtol=1e-10),
            f"in step {step + 1} it has changed .grad; an optimiser changes weights",
        )


def check_kl_gamma(answer):
    cases = np.array(
        [[2.0, 1.0, 2.0, 1.0], [0.7, 2.0, 1.5, 0.5], [9.0, 3.0, 2.0, 4.0], [2.0, 5.0, 2.0, 1.0]]
    )

    def by_quadrature(a, b, c, d):
        q, p = stats.gamma(a, scale=1 / b), stats.gamma(c, scale=1 / d)
        return integrate.quad(
            lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), 0, np.inf, epsabs=1e-10
        )[0]

    _same(
        answer(*cases.T),
        [by_quadrature(*case) for case in cases],
        "against quadrature, KL(q || p)",
        rtol=1e-6,
        atol=1e-7,
    )
    _differentiable(answer, *cases.T)


def check_NoisyRegression(answer):
    rng = np.random.default_rng(9)
    n, weight, bias = 200, np.array([1.0, -2.0, 0.5]), 0.3
    x = rng.standard_normal((n, 3))
    y = x @ weight + bias
    model = answer(3)
    names = {name: p.shape for name, p in model.named_parameters()}
    _demand(
        names == {"weight": (3,), "bias": (1,)},
        f"its parameters are {names}, should be weight of shape (3,) and bias of shape (1,)",
    )
    w, b = np.array([0.4, 0.1, -0.3]), np.array([0.2])
    model.weight.data[...] = w
    model.bias.data[...] = b
    for progress in (0.0, 0.75, 1.0):
        noise = (1.0 - progress) * np.random.default_rng(5).standard_normal(x.shape)
        _same(
            model.loss(x, y, progress=progress, rng=np.random.default_rng(5)),
            np.mean(((x + noise) @ w + b - y) ** 2),
            f"its loss at progress = {progress:g}",
            rtol=1e-4,
        )
    scores = model.validation(x, y, rng=np.random.default_rng(5))
    _demand(
        isinstance(scores, dict) and len(scores) == 1 and str(next(iter(scores))).endswith("loss"),
        "validation returns a dict with one entry, whose name ends in loss, so that fit can stop early",
    )
    _same(
        next(iter(scores.values())),
        (x @ w + b - y) ** 2,
        "what validation gives, the loss of each row",
        rtol=1e-4,
    )
    fit(
        model,
        (x, y),
        epochs=60,
        optimizer=lambda parameters: optim.Adam(parameters, 0.05),
        batch_size=50,
        validation=0.2,
        progress=False,
    )
    for name, truth in (("weight", weight), ("bias", np.array([bias]))):
        p = getattr(model, name)
        _same(p, truth, f"after training, when the noise is gone: {name}", rtol=0.1, atol=0.05)


def check_ppca_log_prob(answer):
    rng = np.random.default_rng(3)
    x, weight, mean = (rng.standard_normal(shape) for shape in ((6, 4), (4, 2), 4))
    sigma = 0.7
    normal = stats.multivariate_normal(mean, weight @ weight.T + sigma**2 * np.eye(4))
    _same(answer(x, weight, mean, sigma), normal.logpdf(x), "log p(x)")
    _differentiable(lambda w, m, s: answer(x, w, m, s), weight, mean, np.array(sigma))


def check_StudentT(answer):
    rng = np.random.default_rng(4)
    x, loc = rng.standard_normal(5) * 3, rng.standard_normal(5)
    scale, df = np.array([0.5, 1.0, 2.0, 1.0, 3.0]), 4.0
    _same(answer(loc, scale, df).log_prob(x), stats.t.logpdf(x, df, loc, scale), "log_prob")
    mean = answer(loc, scale, df).mean
    _demand(not callable(mean), "mean is a method, should be a property: p.mean without brackets")
    _same(mean, loc, "mean")
    _differentiable(
        lambda loc, scale, df: answer(loc, scale, df).log_prob(x), loc, scale, np.full(5, df)
    )
    draws = _plain(answer(np.full(4000, 1.0), 2.0, 3.0).sample(np.random.default_rng(5)), "sample")
    _demand(draws.shape == (4000,), f"sample has shape {draws.shape} for a loc of shape (4000,)")
    p = stats.kstest(draws, stats.t(3.0, 1.0, 2.0).cdf).pvalue
    _demand(p > 1e-3, f"4000 draws by sample are not from it (Kolmogorov-Smirnov, p = {p:.1g})")

    class Robust(VAE):
        def decode(self, z):
            return answer(self.decoder(z), 1.0, 4.0)

    data = np.random.default_rng(6).standard_t(4.0, (64, 5)).astype(np.float32)
    model = Robust(5, hidden=(8,), n_latent=2, seed=0)
    z = np.zeros((64, 2), np.float32)
    in_a_vae = "as the decoder of a VAE (loc a Tensor of float32, scale and df floats)"
    try:
        found = model.log_prob(data, z)
        model.fit(data, epochs=2, progress=False)
    except Exception as error:
        raise Wrong(f"{in_a_vae} it raised {type(error).__name__}: {error}") from error
    _demand(found.dtype == np.float32, f"{in_a_vae} its log_prob is {found.dtype}")


def check_zinb_log_prob(answer):
    x = np.array([0.0, 0.0, 1.0, 4.0, 60.0])
    log_mu, log_theta = np.log([0.3, 5.0, 2.0, 4.0, 30.0]), np.log([0.5, 2.0, 10.0, 1.0, 3.0])
    zi_logits = np.array([-1.0, 2.0, 0.0, -2.0, 1.0])
    theta, pi = np.exp(log_theta), special.expit(zi_logits)
    nb = stats.nbinom.pmf(x, theta, theta / (theta + np.exp(log_mu)))
    with _on_ones_own(
        ZeroInflatedNegativeBinomial.log_prob,
        count_kernels.zinb,
        inspect.unwrap(zinb_log_prob.twin),
    ):
        found = answer(x, log_mu, log_theta, zi_logits)
    _same(
        found,
        np.log(np.where(x == 0, pi, 0.0) + (1 - pi) * nb),
        "for counts 0, 0, 1, 4, 60: log p",
    )
    _differentiable(lambda *p: answer(x, *p), log_mu, log_theta, zi_logits)
    for a in (-800.0, 800.0):
        log_p = np.log(nb) if a < 0 else np.where(x == 0, 0.0, np.log(nb) - a)
        _same(
            answer(x, log_mu, log_theta, np.full(5, a)),
            log_p,
            f"for zi_logits = {a:g}: log p",
        )


def _hidden(w, prefix, x):
    """One scVI layer in evaluation: Linear, batch norm by its running statistics, ReLU."""
    h = x @ w[f"{prefix}.linears.0.weight"].T + w[f"{prefix}.linears.0.bias"]
    norm = {
        k: w[f"{prefix}.norms.0.{k}"] for k in ("weight", "bias", "running_mean", "running_var")
    }
    return np.maximum(
        (h - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3) * norm["weight"]
        + norm["bias"],
        0,
    )


def _elbo_by_scipy(model, counts, eps):
    """scVI's ELBO of each cell (ZINB, observed library, one batch), from the weights alone."""
    log_p, kl = _terms_by_scipy(model, counts, eps, counts.sum(1, keepdims=True))
    return log_p - kl


def _terms_by_scipy(model, counts, eps, library):
    """(log p(x | z), KL) of each cell, (n,) each; library (n, 1)."""
    w = model.state_dict()
    h = _hidden(w, "z_encoder.layers", np.log(1.0 + counts))
    loc = h @ w["z_encoder.mean.weight"].T + w["z_encoder.mean.bias"]
    var = np.exp(h @ w["z_encoder.log_var.weight"].T + w["z_encoder.log_var.bias"]) + 1e-4
    h = _hidden(w, "decoder.layers", loc + np.sqrt(var) * eps)
    rho = special.softmax(h @ w["decoder.rho.weight"].T + w["decoder.rho.bias"], axis=1)
    pi = special.expit(h @ w["decoder.zi.weight"].T + w["decoder.zi.bias"])
    mu, theta = library * rho, np.exp(w["log_theta"])
    nb = stats.nbinom.pmf(counts, theta, theta / (theta + mu))
    kl = 0.5 * (loc**2 + var - 1.0 - np.log(var)).sum(1)
    return np.log(np.where(counts == 0, pi, 0.0) + (1 - pi) * nb).sum(1), kl


def check_scvi_elbo(answer):
    rng = np.random.default_rng(8)
    counts = rng.poisson(3.0 * rng.random((6, 5)) + 0.2).astype(float)
    counts[0, :2] = 0.0, 7.0
    model = SCVI(5, n_latent=2, n_hidden=8, likelihood="zinb", dtype=np.float64, seed=0).eval()
    eps = rng.standard_normal((6, 2))
    try:
        with _on_ones_own(SCVI.terms, SCVI.loss, SCVI.validation, SCVI.elbo):
            found = answer(model, counts, eps)
    except (TypeError, ValueError, IndexError) as error:
        raise Wrong(
            f"{error} (log_library has shape (n, 1), its batch codes are n whole numbers: see generative)"
        ) from error
    library = counts.sum(1, keepdims=True)
    log_p, kl = _terms_by_scipy(model, counts, eps, library)
    without_eps, _ = _terms_by_scipy(model, counts, 0.0 * eps, library)
    by_exp, _ = _terms_by_scipy(model, counts, eps, np.exp(library))
    mistakes = {
        "that is minus the ELBO, a loss; turn the sign": kl - log_p,
        "the KL divergence is a cost: subtract it": log_p + kl,
        "the KL divergence is missing": log_p,
        "z is the mean of q; it has to be drawn: mean + standard deviation * eps": without_eps - kl,
        "generative takes the logarithm of the library size": by_exp - kl,
    }
    _not(mistakes, found, "the ELBO")
    _same(found, log_p - kl, "the ELBO")
    _demand(isinstance(found, Tensor), "it returns no Tensor, so that nothing was recorded")
    (slope,) = grad(np.sum(answer(model, counts, eps)), model.log_theta)
    h, values = 1e-6, []
    for step in (h, -2.0 * h):
        model.log_theta.data[1] += step
        values.append(_elbo_by_scipy(model, counts, eps).sum())
    model.log_theta.data[1] += h
    quotient = (values[0] - values[1]) / (2.0 * h)
    _same(slope[1], quotient, "its gradient with respect to log_theta[1]", 1e-4)


def _gaussian(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum(-1)


def _bound_by_scipy(model, x, eps):
    """The importance-weighted bound of a VAE without hidden layers, (n,), from its weights alone."""
    return special.logsumexp(_log_weights_by_scipy(model, x, eps), axis=0) - np.log(len(eps))


def _log_weights_by_scipy(model, x, eps):
    """The logarithms of the importance weights, (k, n)."""
    w = model.state_dict()
    loc = x @ w["mean.weight"].T + w["mean.bias"]
    scale = np.exp(0.5 * (x @ w["log_var.weight"].T + w["log_var.bias"]))
    z = loc + scale * eps
    out = z @ w["decoder.layers.0.weight"].T + w["decoder.layers.0.bias"]
    log_p = _gaussian(x, out, model.config["sigma"])
    return log_p + _gaussian(z, 0.0, 1.0) - _gaussian(z, loc, scale)


def check_importance_weighted_loss(answer):
    rng = np.random.default_rng(7)
    model = VAE(4, hidden=(), n_latent=2, sigma=0.6, dtype=np.float64, seed=1)
    x = rng.standard_normal((5, 4))
    for k in (1, 7):
        eps = rng.standard_normal((k, 5, 2))
        bound = np.mean(_bound_by_scipy(model, x, eps))
        mistakes = {f"for k = {k} that is the bound itself; the loss is minus that": bound}
        if k > 1:
            mean_of_logs = np.mean(_log_weights_by_scipy(model, x, eps))
            mistakes |= {
                "that is the mean of the logarithms of the weights, an ELBO of k draws; the bound is "
                "the logarithm of their mean": -mean_of_logs,
                "that has the sum of the k weights; the bound has their mean": -bound - np.log(k),
            }
        found = answer(model, x, eps)
        _not(mistakes, found, "the loss")
        _same(found, -bound, f"for k = {k}: the loss")
    _same(
        answer(model, 20.0 * x, eps),
        -np.mean(_bound_by_scipy(model, 20.0 * x, eps)),
        "for k = 7, x far from all that the model expects: the loss",
    )
    for name, p in model.named_parameters():
        loss = answer(model, x, eps)
        _demand(isinstance(loss, Tensor), "it returns no Tensor, so that nothing was recorded")
        (slope,) = grad(loss, p)
        at, h, values = (0,) * p.ndim, 1e-6, []
        for step in (h, -2.0 * h):
            p.data[at] += step
            values.append(-np.mean(_bound_by_scipy(model, x, eps)))
        p.data[at] += h
        quotient = (values[0] - values[1]) / (2.0 * h)
        _same(slope[at], quotient, f"the gradient of {name}[{at}]", 1e-4, 1e-7)

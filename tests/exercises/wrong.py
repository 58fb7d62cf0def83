"""Wrong answers, as they are really given, and words that the check's complaint must contain: the checks' own test."""

import numpy as np
from scipy import special

from minigrad import Tensor, backward, grad, kernels, nn, primitive
from minigrad.backward import add_to_grad, unbroadcast
from minigrad.count_likelihoods import zinb_log_prob
from minigrad.distributions import (
    NegativeBinomial,
    Normal,
    ZeroInflatedNegativeBinomial,
    kl_divergence,
)
from minigrad.tape import tape
from minigrad.tensor import IMPLEMENTATIONS


def _cut(x):
    """The data alone: what is computed from it is not recorded."""
    return x.data if isinstance(x, Tensor) else x


def _detached_weights(right):
    def loss(model, x, eps):
        q = model.encode(x)
        return (
            right(model, x, eps) + 0.0 * np.sum(q.loc) + np.mean(q.loc.data - q.loc)
        )  # right value, another gradient

    return loss


def _iw_mean_of_logs(model, x, eps):
    """The average of k ELBOs: the logarithm inside the mean."""
    q, total = model.encode(x), 0.0
    for e in eps:
        z = q.rsample(e)
        total = (
            total
            + model.log_prob(x, z)
            + np.sum(Normal(0.0, 1.0).log_prob(z) - q.log_prob(z), axis=1)
        )
    return -np.mean(total) / len(eps)


def _iw_underflowing(model, x, eps):
    """Right on paper: the mean of the exponentials, which all are 0 where x is improbable."""
    q = model.encode(x)
    weights = []
    for e in eps:
        z = q.rsample(e)
        log_q = np.sum(q.log_prob(z), axis=1)
        log_p_z = np.sum(Normal(0.0, 1.0).log_prob(z), axis=1)
        weights.append(np.exp(model.log_prob(x, z) + log_p_z - log_q))
    return -np.mean(np.log(np.mean(np.stack(weights), axis=0)))


def _zinb_by_probabilities(x, log_mu, log_theta, zi_logits):
    """Right on paper; the logarithm of a probability that has underflowed is not."""
    pi = special.expit(zi_logits)
    with np.errstate(all="ignore"):
        return np.log(
            np.where(x == 0, pi, 0.0)
            + (1.0 - pi) * np.exp(NegativeBinomial(log_mu, log_theta).log_prob(x))
        )


def _zinb_inflates_all(x, log_mu, log_theta, zi_logits):
    nb = special.log_expit(-zi_logits) + NegativeBinomial(log_mu, log_theta).log_prob(x)
    return np.logaddexp(special.log_expit(zi_logits), nb)


def _softmax_in_place(g, y, x):
    g *= y
    return g - y * np.sum(g, axis=-1, keepdims=True)


def _scvi_flat_library(model, counts, eps):
    """The totals as (n,), which does not broadcast along the cells."""
    q, _ = model.inference(counts)
    p = model.generative(q.rsample(eps), np.log(counts.sum(axis=1)), np.zeros(len(counts), int))
    return np.sum(NegativeBinomial(p["log_mu"], p["log_theta"]).log_prob(counts), axis=1)


def _scvi_theta_cut(right):
    def answer(model, counts, eps):
        elbo = right(model, counts, eps)
        return elbo + np.mean(model.log_theta.data - model.log_theta)

    return answer


def _scvi_without_library(model, counts, eps):
    q, _ = model.inference(counts)
    log_p = model.log_prob(
        counts,
        np.zeros((len(counts), 1)),
        **model.heads(q.rsample(eps), np.zeros(len(counts), int)),
    )
    return log_p - np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)


def _log_p(model, counts, eps, log_library):
    q, _ = model.inference(counts)
    p = model.generative(q.rsample(eps), log_library, np.zeros(len(counts), int))
    zinb = ZeroInflatedNegativeBinomial(p["log_mu"], p["log_theta"], p["zi_logits"])
    return np.sum(zinb.log_prob(counts), axis=1)


def _kl(model, counts):
    q, _ = model.inference(counts)
    return np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)


def _without_kl(model, counts, eps):
    return _log_p(model, counts, eps, np.log(counts.sum(axis=1, keepdims=True)))


def _scvi_adding_kl(model, counts, eps):
    return _without_kl(model, counts, eps) + _kl(model, counts)


def _scvi_library_without_log(model, counts, eps):
    return _log_p(model, counts, eps, counts.sum(axis=1, keepdims=True)) - _kl(model, counts)


def _scvi_by_terms(model, counts, eps):
    log_p, kl, _ = model.terms(counts, np.zeros(len(counts), int), eps_z=eps)
    return log_p - kl


def _nesterov(classical):
    """The solution with another update: plain momentum, or one that forgets what it was resumed from."""

    def make(right):
        class Wrong(right):
            def update(self, w, g, v):
                v *= self.momentum
                v += g
                w -= self.learning_rate * (v if classical else g + self.momentum * v)

            def state_dict(self):
                state = super().state_dict()
                if classical:
                    return state
                return {
                    name: 0.0 * value if name.startswith("moment") else value
                    for name, value in state.items()
                }

        return Wrong

    return make


def _nesterov_with(update):
    return lambda right: type("Wrong", (right,), {"update": update})


def _nesterov_scaled(self, w, g, v):
    """The learning rate inside the velocity: the same only as long as the rate stays."""
    v *= self.momentum
    v -= self.learning_rate * g
    w += self.momentum * v - self.learning_rate * g


def _nesterov_in_place(self, w, g, v):
    v *= self.momentum
    v += g
    g += self.momentum * v
    w -= self.learning_rate * g


# ------------------------------------------------------------------------ the engine's own files
def _backward_first(loss, inner):
    loss.backward()
    for t, g in zip(inner, grad(loss, inner)):
        add_to_grad(t, g)


def _keeps_with(gradients_of, put=add_to_grad):
    """The solution with other gradients for the inner Tensors: gradients_of(loss, inner)."""

    def answer(loss, inner):
        gradients = gradients_of(loss, inner)
        loss.backward()
        for t, g in zip(inner, gradients):
            put(t, g)

    return answer


def _put_in_its_place(t, g):
    """What was there before is lost."""
    t.grad = g


def _put_first(t, g):
    """Right in number; the first gradient is not copied."""
    t.grad = g if t.grad is None else t.grad + g


def _shared_gradients(loss, inner):
    """Those that the rules have made, not copied: two may be one and the same array."""
    wanted = {t.number: t for t in inner}
    found = dict(backward.sweep(loss, np.ones(()), wanted))
    return [found[t] for t in inner]


def _swept_once(loss, inner):
    """One sweep for all; but it ends at the oldest Tensor that is wanted, before the leaves."""
    for t, g in backward.sweep(loss, np.ones(()), {t.number for t in inner}, release=True):
        add_to_grad(t, g)


def _leaves_replaced(loss, inner):
    """Gradients of leaves are added to what is there; these are not."""
    gradients = grad(loss, inner)
    leaves = [leaf for leaf, _ in backward.sweep(loss, np.ones(()))]
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    for t, g in zip(inner, gradients):
        add_to_grad(t, g)


def _leaves_twice(right):
    def answer(loss, inner):
        gradients = list(backward.sweep(loss, np.ones(())))
        right(loss, inner)
        for leaf, g in gradients:
            add_to_grad(leaf, g)

    return answer


def _graph_kept(loss, inner):
    gradients = grad(loss, inner)
    for leaf, g in backward.sweep(loss, np.ones(())):
        add_to_grad(leaf, g)
    for t, g in zip(inner, gradients):
        add_to_grad(t, g)


def _undo_by_grad(g, shape):
    """What the engine's sweep does when it goes back through np.broadcast_to."""
    x = Tensor(np.zeros(shape, g.dtype), requires_grad=True)
    return grad(np.broadcast_to(x, g.shape), x, gradient=g)[0]


def _undo_in_place(g, shape):
    summed = np.sum(g, axis=tuple(range(g.ndim - len(shape))))
    summed = np.sum(summed, axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
    g *= 0.5
    return summed


def _undo_by_reduce(g, shape):
    """Right of arrays; of np.add.reduce the engine knows nothing."""
    n_new = g.ndim - len(shape)
    stretched = [i + n_new for i, length in enumerate(shape) if length == 1]
    return np.add.reduce(g, axis=(*range(n_new), *stretched)).reshape(shape)


def _registered_for(function, entry):
    """The entry, found for another function than its own."""
    IMPLEMENTATIONS[function] = entry
    return entry


def _owens_t(make):
    """The solution with other rules: make(rule of h, rule of a) -> a tuple of rules."""
    return lambda right: primitive(special.owens_t, *make(*right.rules))


def _by_quotient(f, x, v):
    return (f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6


def _row_by_row(f, x, v):
    x = Tensor(x, requires_grad=True)
    y = f(x)
    rows = [grad(y, x, gradient=row.reshape(y.shape))[0] for row in np.eye(y.size)]
    return np.reshape([np.sum(row * v) for row in rows], y.shape)


def _not_recorded(f, x, v):
    x = Tensor(x, requires_grad=True)
    y = f(x)
    u = Tensor(np.zeros(y.shape), requires_grad=True)
    return grad(grad(y, x, gradient=u)[0], u, gradient=v)[0]


def _swept_by_recursion(output, gradient):
    """Depth first: an input is visited once for each way to it."""
    found = {}

    def visit(node, g):
        if node.origin is None:
            found[node] = found.get(node, 0.0) + backward.unbroadcast(g, node.shape)
            return
        origin = node.origin
        for x, dx in zip(origin.inputs, origin.primitive.gradients(node, g, False)):
            if dx is not None:
                visit(x, backward.unbroadcast(dx, x.shape))

    visit(output, gradient)
    return found


def _swept_in_place(output, gradient):
    """`+=` changes an array that other nodes were given too."""
    known, found = {output: gradient}, {}
    for node in reversed(tape(output)):
        if node not in known:
            continue
        g = known.pop(node)
        if node.origin is None:
            found[node] = g
            continue
        origin = node.origin
        for x, dx in zip(origin.inputs, origin.primitive.gradients(node, g, False)):
            if dx is None:
                continue
            if x in known:
                known[x] += backward.unbroadcast(dx, x.shape)
            else:
                known[x] = dx if dx.shape == x.shape else backward.unbroadcast(dx, x.shape)
    return found


def _sorted_by_recursion(right):
    """Right for small graphs; the order is found by recursion, as micrograd does it."""

    def answer(output, gradient):
        def depth(node):
            inputs = () if node.origin is None else node.origin.inputs
            return 1 + max((depth(x) for x in inputs[:1] if isinstance(x, Tensor)), default=0)

        depth(output)
        return right(output, gradient)

    return answer


def _by_grad(output, gradient):
    leaves = [t for t in tape(output) if t.origin is None and t.requires_grad]
    return dict(zip(leaves, grad(output, leaves, gradient=gradient)))


def _sweep_with(change):
    """The solution, and then change(its dict, the output)."""

    def wrong(right):
        def answer(output, gradient):
            found = right(output, gradient)
            return change(found)

        return answer

    return wrong


def _fills_grad(found):
    for leaf, g in found.items():
        leaf.grad = g
    return found


def _noisy(**changes):
    """The solution with other methods."""
    return lambda right: type("Wrong", (right,), changes)


def _noisy_cut(self, x, y, *, progress, rng):
    """Right in value; only the bias is trained."""
    noise = (1.0 - progress) * rng.standard_normal(x.shape)
    return np.mean(np.square((x + noise) @ self.weight.data + self.bias - y))


class _NoisyColumn(nn.Module):
    def __init__(self, n_features):
        self.weight = nn.Parameter(np.zeros((n_features, 1)))
        self.bias = nn.Parameter(np.zeros(1))


# ------------------------------------------------------------------------- distributions, models
def _student(**changes):
    return lambda right: type("Wrong", (right,), changes)


def _ppca(scale, centred):
    def wrong(right):
        return lambda x, weight, mean, sigma: right(
            x, weight, mean if centred else 0.0 * mean, sigma**scale
        )

    return wrong


def _student_log_prob(make):
    """The solution with another log_prob: make(the right one) -> method(self, x)."""
    return lambda right: type("Wrong", (right,), {"log_prob": make(right.log_prob)})


def _of_arrays(right):
    return lambda self, x: right(self, x) + 0.0 * np.shape(self.scale)[0]


def _in_float64(right):
    def log_prob(self, x):
        return right(self, x) + np.zeros(np.shape(x))

    return log_prob


# name of the exercise -> (words, a function of the right answer that makes a wrong one)
WRONG = {
    "backward_keeping": [
        ("RuntimeError: this graph was used up", lambda right: _backward_first),
        ("the .grad of h, .* is still None", lambda right: lambda loss, inner: loss.backward()),
        (
            "of h is a Tensor",
            lambda right: _keeps_with(
                lambda loss, inner: grad(loss, inner, create_graph=True), _put_first
            ),
        ),
        (
            "gradient of h . h, and the 1 that was in its .grad before",
            lambda right: _keeps_with(grad, _put_in_its_place),
        ),
        (
            "gradient of h:",
            lambda right: _keeps_with(lambda loss, inner: [2.0 * g for g in grad(loss, inner)]),
        ),
        ("leaf w is still None.*ends at the oldest", lambda right: _swept_once),
        ("gradient of the leaf w: is", _leaves_twice),
        ("and the 1 that was in x.grad", lambda right: _leaves_replaced),
        ("share one array", lambda right: _keeps_with(_shared_gradients, _put_first)),
        ("graph is still there", lambda right: _graph_kept),
        ("takes 1 positional", lambda right: lambda loss: loss.backward()),
    ],
    "undo_broadcasting": [
        (r"summed to \(2, 1\): has shape", lambda right: lambda g, shape: np.sum(g, axis=0)),
        (
            "has shape",
            lambda right: lambda g, shape: np.sum(g, axis=tuple(range(g.ndim - len(shape)))),
        ),
        ("is .* should be", lambda right: lambda g, shape: 0.0 * right(g, shape)),
        (
            r"\(2, 3\) summed to \(3,\): is",
            lambda right: lambda g, shape: right(g, shape) / max(1, g.size // np.prod(shape)),
        ),
        ("None; is there a", lambda right: lambda g, shape: None),
        ("changed g", lambda right: _undo_in_place),
        ("float32 became float64", lambda right: lambda g, shape: right(g, shape) * np.ones(())),
        ("returns ndarray", lambda right: lambda g, shape: right(_cut(g), shape)),
        ("cannot be given Tensors", lambda right: _undo_by_reduce),
        (
            "calls the engine's own unbroadcast",
            lambda right: lambda g, shape: unbroadcast(g, shape),
        ),
        ("the engine's own: unbroadcast of minigrad.backward", lambda right: unbroadcast),
        ("calls the engine's own sweep", lambda right: _undo_by_grad),
    ],
    "owens_t": [
        ("is 1, that of h", _owens_t(lambda of_h, of_a: (of_a, of_h))),
        (
            "is 1, that of a",
            _owens_t(lambda of_h, of_a: (of_h, lambda g, y, h, a: 0.5 * of_a(g, y, h, a))),
        ),
        (
            "is 3, that of h",
            _owens_t(lambda of_h, of_a: (lambda g, y, h, a: of_h(1.0, y, h, a), of_a)),
        ),
        (
            "is 3, that of a",
            _owens_t(lambda of_h, of_a: (of_h, lambda g, y, h, a: of_a(1.0, y, h, a))),
        ),
        (
            "second derivative|create_graph",
            _owens_t(lambda of_h, of_a: (of_h, lambda g, y, h, a: of_a(g, y, h, _cut(a)))),
        ),
        (
            "rule of h makes float64",
            _owens_t(
                lambda of_h, of_a: (lambda g, y, h, a: of_h(g, y, h, a) * np.float64(1.0), of_a)
            ),
        ),
        ("1 rule, should have two", lambda right: primitive(special.owens_t, lambda g, y, h: g)),
        ("is not what", lambda right: special.owens_t),
        (
            "its value",
            lambda right: _registered_for(
                special.owens_t, primitive(special.beta, *right.rules, name="beta_again")
            ),
        ),
    ],
    "out_of_order": [
        ("nothing breaks", lambda right: lambda x: (x * x, 2.0 * x.data)),
        ("nothing breaks", lambda right: lambda x: ((x * x) * x, 2.0 * x.data**2)),
        ("27 is what grad gives now", lambda right: lambda x: (x * (x * x), 3.0 * x.data**2)),
        ("does not give 9 at x = 3", lambda right: lambda x: (x * (x * x), x.data**2)),
        ("returns nothing", lambda right: lambda x: None),
        ("a pair", lambda right: lambda x: x * (x * x)),
        ("not a Tensor", lambda right: lambda x: (x.data**3, 2.0 * x.data**2)),
    ],
    "jvp": [
        ("A of shape", lambda right: lambda f, x, v: 2.0 * right(f, x, v)),
        (
            "it raised ValueError",
            lambda right: (
                lambda f, x, v: grad(
                    f(Tensor(x, requires_grad=True)), Tensor(x, requires_grad=True), gradient=v
                )
            ),
        ),
        ("(A of shape|computed f 2 times)", lambda right: _by_quotient),
        ("not row by row", lambda right: _row_by_row),
        ("it raised TypeError", lambda right: _not_recorded),
        (
            "std",
            lambda right: lambda f, x, v: right(f, x, v) * (1.0 if x.ndim == 1 else 3.0),
        ),
        (
            "concatenate",
            lambda right: lambda f, x, v: np.abs(y) if np.ndim(y := right(f, x, v)) == 2 else y,
        ),
    ],
    "sweep": [
        ("more than 12 times", lambda right: _swept_by_recursion),
        (r"\(x \+ w\) \+ x, the gradient of w", lambda right: _swept_in_place),
        ("too deep for recursion", _sorted_by_recursion),
        ("not a dict", _sweep_with(lambda found: list(found.items()))),
        ("gradient of x: is", _sweep_with(lambda found: {x: 2.0 * g for x, g in found.items()})),
        (
            "leaf w is missing",
            _sweep_with(lambda found: {x: g for x, g in found.items() if x.size != 3}),
        ),
        ("gradient of x: is", _sweep_with(lambda found: {x: 0.0 * g for x, g in found.items()})),
        ("has filled x.grad", _sweep_with(_fills_grad)),
        (
            "more than the leaves",
            _sweep_with(lambda found: {**found, Tensor(2.0): np.ones(())}),
        ),
        ("calls the engine's own sweep", lambda right: lambda y, g: dict(backward.sweep(y, g))),
        ("calls the engine's own sweep", lambda right: _by_grad),
        ("the engine's own: sweep of minigrad.backward", lambda right: backward.sweep),
        (
            "doubled 12 times",
            _sweep_with(
                lambda found: found if len(found) > 1 else {x: g - 1.0 for x, g in found.items()}
            ),
        ),
        (
            "3000 times",
            _sweep_with(
                lambda found: {
                    x: np.maximum(g, 2.0) if len(found) == 1 else g for x, g in found.items()
                }
            ),
        ),
    ],
    "softmax_rule": [
        ("Jacobian", lambda right: lambda g, y, x: g * y * (1.0 - y)),
        ("Jacobian", lambda right: lambda g, y, x: y * (g - np.sum(g * y))),
        ("changed g", lambda right: _softmax_in_place),
        (
            "second derivative",
            lambda right: lambda g, y, x: right(_cut(g), _cut(y), x),
        ),
        (
            "calls the engine's own softmax_backward",
            lambda right: lambda g, y, x: kernels.softmax_backward(g, y, None, None, x)[0],
        ),
    ],
    "wrong_rule": [
        ("a pair", lambda right: "huber"),
        ("none of the ten", lambda right: ("hubert", right[1])),
        ("rules of gelu are right", lambda right: ("gelu", lambda g, y, x: g)),
        ("is wrong", lambda right: ("huber", lambda g, y, x: g * np.minimum(x, 1.0))),
        ("is wrong", lambda right: ("huber", lambda g, y, x: g * np.sign(x))),
        (
            "second derivative|create_graph",
            lambda right: ("huber", lambda g, y, x: g * np.clip(_cut(x), -1.0, 1.0)),
        ),
    ],
    "Nesterov": [
        ("after step 1:", _nesterov(classical=True)),
        ("resumed from its state_dict, the weights after step 1:", _nesterov(classical=False)),
        ("halved learning rate, the weights after step 6", _nesterov_with(_nesterov_scaled)),
        ("has changed .grad", _nesterov_with(_nesterov_in_place)),
    ],
    "kl_gamma": [
        ("quadrature", lambda right: lambda a, b, c, d: right(c, d, a, b)),
        ("quadrature", lambda right: lambda a, b, c, d: right(a, 1.0 / b, c, 1.0 / d)),
        ("nothing was recorded", lambda right: lambda *p: right(*[_cut(x) for x in p])),
        (
            "cannot be given Tensors",
            lambda right: lambda *p: right(*[np.asarray(x) for x in p]),
        ),
        (
            "no graph leads",
            lambda right: lambda a, b, c, d: right(a, b, c, _cut(d)),
        ),
    ],
    "NoisyRegression": [
        ("its parameters are", lambda right: _NoisyColumn),
        ("its parameters are {}", lambda right: lambda n: nn.Module()),
        (
            "loss at progress = 0:",
            _noisy(loss=lambda self, x, y, *, progress, rng: np.mean(self.squared_errors(x, y))),
        ),
        (
            "loss at progress = 0:",
            _noisy(
                loss=lambda self, x, y, *, progress, rng: np.mean(
                    self.squared_errors(x + progress * rng.standard_normal(x.shape), y)
                )
            ),
        ),
        (
            "loss at progress = 0.75:",
            _noisy(
                loss=lambda self, x, y, *, progress, rng: np.mean(
                    self.squared_errors(x + rng.standard_normal(x.shape), y)
                )
            ),
        ),
        ("unexpected keyword", _noisy(loss=lambda self, x, y: 0.0)),
        (
            "name ends in loss",
            _noisy(validation=lambda self, x, y, *, rng: self.squared_errors(x, y)),
        ),
        (
            "name ends in loss",
            _noisy(validation=lambda self, x, y, *, rng: {"error": self.squared_errors(x, y)}),
        ),
        (
            "validation gives, the loss of each row: has shape",
            _noisy(
                validation=lambda self, x, y, *, rng: {"loss": np.mean(self.squared_errors(x, y))}
            ),
        ),
        ("after training, .*: weight", _noisy(loss=_noisy_cut)),
    ],
    "ppca_log_prob": [
        ("log p.x.: is", _ppca(scale=0.5, centred=True)),
        ("log p.x.: is", _ppca(scale=1, centred=False)),
        ("shape", lambda right: lambda *p: np.sum(right(*p))),
        ("no graph leads", lambda right: lambda x, w, m, s: right(x, w, m, _cut(s))),
    ],
    "StudentT": [
        (
            "log_prob: is",
            _student(log_prob=lambda self, x: -np.square((x - self.loc) / self.scale)),
        ),
        (
            "draws",
            _student(
                sample=lambda self, rng: (
                    self.loc + self.scale * rng.standard_normal(np.shape(self.loc))
                )
            ),
        ),
        ("sample has shape", _student(sample=lambda self, rng: rng.standard_normal(3))),
        ("sample: is None", _student(sample=lambda self, rng: None)),
        ("mean: has shape", _student(mean=0.0)),
        ("mean is a method", _student(mean=lambda self: self.loc)),
        (
            "nothing was recorded",
            _student_log_prob(lambda right: lambda self, x: _cut(right(self, x))),
        ),
        ("decoder of a VAE .* it raised IndexError", _student_log_prob(_of_arrays)),
        ("decoder of a VAE .* float64", _student_log_prob(_in_float64)),
    ],
    "zinb_log_prob": [
        ("counts 0, 0,", lambda right: lambda x, m, t, a: NegativeBinomial(m, t).log_prob(x)),
        ("counts 0, 0,", lambda right: _zinb_inflates_all),
        ("counts 0, 0,", lambda right: lambda x, m, t, a: right(x, m, t, -a)),
        ("for zi_logits", lambda right: _zinb_by_probabilities),
        (
            "calls the engine's own ZeroInflatedNegativeBinomial.log_prob",
            lambda right: (
                lambda x, *parameters: ZeroInflatedNegativeBinomial(*parameters).log_prob(x)
            ),
        ),
        (
            "calls the engine's own zinb ",
            lambda right: lambda x, *parameters: zinb_log_prob(x, *parameters),
        ),
        (
            "calls the engine's own zinb_log_prob",
            lambda right: lambda x, *parameters: zinb_log_prob.twin(x, *parameters),
        ),
        ("the engine's own: zinb_log_prob", lambda right: zinb_log_prob),
        ("no graph leads", lambda right: lambda x, m, t, a: right(x, m, t, _cut(a))),
    ],
    "scvi_elbo": [
        ("the ELBO: is", lambda right: _scvi_without_library),
        ("the KL divergence is missing", lambda right: _without_kl),
        ("minus the ELBO", lambda right: lambda *p: -right(*p)),
        ("the KL divergence is a cost", lambda right: _scvi_adding_kl),
        ("z is the mean of q", lambda right: lambda m, x, eps: right(m, x, 0.0 * eps)),
        ("the logarithm of the library size", lambda right: _scvi_library_without_log),
        ("calls the engine's own SCVI.terms", lambda right: _scvi_by_terms),
        ("the ELBO: has shape", lambda right: lambda *p: np.mean(right(*p))),
        (r"log_library has shape \(n, 1\)", lambda right: _scvi_flat_library),
        ("no Tensor", lambda right: lambda *p: right(*p).data),
        (r"log_theta\[1\]", _scvi_theta_cut),
    ],
    "importance_weighted_loss": [
        ("the logarithm of their mean", lambda right: _iw_mean_of_logs),
        ("the sum of the k weights", lambda right: lambda m, x, e: right(m, x, e) - np.log(len(e))),
        ("for k = 1 that is the bound itself", lambda right: lambda *p: -right(*p)),
        ("far from all that the model expects", lambda right: _iw_underflowing),
        ("for k = 1: the loss: has shape", lambda right: lambda *p: np.full(5, right(*p).data)),
        ("returns no Tensor", lambda right: lambda *p: right(*p).data),
        ("the gradient of", _detached_weights),
    ],
}

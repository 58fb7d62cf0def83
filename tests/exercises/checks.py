"""What a right answer to each exercise of the README ("How to read the source") does: one check an exercise.

A check takes the learner's answer and raises AssertionError, saying what is wrong. What it compares with is never minigrad's
own: closed forms, scipy.stats, quadrature, difference quotients. EXERCISES says what to write, and keeps the order.
"""

import numpy as np
from scipy import integrate, special, stats

from minigrad import Tensor, grad, gradcheck, nn, primitive
from minigrad.tensor import IMPLEMENTATIONS
from models import SCVI, VAE

EXERCISES = {
    "by_hand": "def by_hand(a, b): the pair (dL/da, dL/db) of L = sum(sin(a * b) + a), plain arrays, no Tensor",
    "dawsn": "dawsn = primitive(special.dawsn, rule), so that special.dawsn takes Tensors",
    "log_cosh": "def log_cosh(x): log(cosh(x)) of an array or Tensor, elementwise, right where cosh overflows",
    "softmax_rule": "def softmax_rule(g, y, x): the gradient of x, for y = softmax(x) along the last axis",
    "quantile_loss": "def quantile_loss(prediction, target, quantile): a scalar, the mean of the pinball loss",
    "Nesterov": "class Nesterov(optim.Optimizer): made as Nesterov(parameters, learning_rate=, momentum=)",
    "kl_gamma": "def kl_gamma(shape_q, rate_q, shape_p, rate_p): KL(q || p) in nats, elementwise",
    "cyclic_kl_weight": "def cyclic_kl_weight(progress, n_cycles, rise): a number from 0 to 1",
    "ppca_log_prob": "def ppca_log_prob(x, weight, mean, sigma): log p(x) of each row in nats, shape (n,)",
    "StudentT": "class StudentT: made as StudentT(loc, scale, df), with log_prob(x), sample(rng) and mean",
    "zinb_log_prob": "def zinb_log_prob(x, log_mu, log_theta, zi_logits): nats, elementwise",
    "scvi_elbo": "def scvi_elbo(model, counts, eps): the ELBO of each cell in nats, shape (n,); eps (n, n_latent)",
    "importance_weighted_loss": "def importance_weighted_loss(model, x, eps): a scalar; model a VAE, eps (k, n, n_latent)",
}


def _plain(value, what):
    """An answer's result as an array; it must be an array or a Tensor of numbers."""
    assert value is not None, f"{what}: returned None; is there a `return`?"
    return np.asarray(value.data if isinstance(value, Tensor) else value)


def _same(found, expected, what, rtol=1e-6, atol=1e-9):
    """Fail where an answer is another number, or has another shape, than it should."""
    found = _plain(found, what)
    assert found.shape == np.shape(expected), (
        f"{what}: has shape {found.shape}, should have {np.shape(expected)}"
    )
    wrong = ~np.isclose(found, expected, rtol=rtol, atol=atol)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: is {found[at]:.9g} at index {at}, should be {np.asarray(expected)[at]:.9g}"
        )


def _differentiable(f, *inputs, what, order=2):
    """gradcheck, with a word about what an answer has to be made of."""
    try:
        y = f(*[Tensor(x, requires_grad=True) for x in inputs])
    except TypeError as error:
        raise AssertionError(
            f"{what}: cannot be given Tensors ({error}); use NumPy's functions and operators"
        ) from error
    assert isinstance(y, Tensor), (
        f"{what}: given Tensors it returns {type(y).__name__}; nothing was recorded"
    )
    gradcheck(f, *inputs, order=order)


def check_by_hand(answer):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))

    def loss(a, b):
        return np.sum(np.sin(a * b) + a)

    found = answer(a, b)
    assert isinstance(found, tuple) and len(found) == 2, "by_hand: returns a pair, (dL/da, dL/db)"
    for i, name in enumerate("ab"):
        expected, h = np.empty_like(a), 1e-5
        for at in np.ndindex(a.shape):
            step = np.zeros_like(a)
            step[at] = h
            up, down = ((a + s, b) if i == 0 else (a, b + s) for s in (step, -step))
            expected[at] = (loss(*up) - loss(*down)) / (2 * h)
        _same(found[i], expected, f"by_hand: dL/d{name}, by difference quotients,")


def check_dawsn(answer):
    assert IMPLEMENTATIONS.get(special.dawsn) is answer, (
        "dawsn: is not what primitive(special.dawsn, ...) returned"
    )
    x = np.array([[-3.0, -0.5, 0.0], [0.1, 2.0, 40.0]])
    t = Tensor(x, requires_grad=True)
    y = special.dawsn(t)
    value = np.array(
        [[integrate.quad(lambda t: np.exp(t * t - z * z), 0.0, z)[0] for z in row] for row in x]
    )
    slope_of_y = 1.0 - 2.0 * x * value
    _same(y, value, "dawsn: its value", atol=1e-6)
    (slope,) = grad(y, t, gradient=np.ones_like(x), create_graph=True)
    _same(slope, slope_of_y, "dawsn: its slope")
    _same(
        grad(special.dawsn(t), t, gradient=3.0 * np.ones_like(x))[0],
        3.0 * slope_of_y,
        "dawsn: the gradient where that of the output is 3",
    )
    (curvature,) = grad(slope, t, gradient=np.ones_like(x))
    _same(curvature, -2.0 * (value + x * slope_of_y), "dawsn: its second derivative")
    narrow = Tensor(x.astype(np.float32), requires_grad=True)
    (g,) = grad(special.dawsn(narrow), narrow, gradient=np.ones(x.shape, np.float32))
    assert g.dtype == np.float32, (
        f"dawsn: of float32 the gradient is {g.dtype}; use Python's numbers as constants"
    )


def check_log_cosh(answer):
    x = np.array([-800.0, -3.0, -0.2, 0.0, 0.2, 3.0, 800.0])
    _same(
        answer(x), np.abs(x) + np.log1p(np.exp(-2 * np.abs(x))) - np.log(2.0), "log_cosh: its value"
    )
    t = Tensor(x, requires_grad=True)
    y = answer(t)
    assert isinstance(y, Tensor), (
        "log_cosh: given a Tensor it does not return one; use NumPy's functions"
    )
    _same(grad(y, t, gradient=np.ones_like(x))[0], np.tanh(x), "log_cosh: its slope")
    _differentiable(answer, np.array([-3.0, -0.2, 0.0, 0.7]), what="log_cosh")


def check_softmax_rule(answer):
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
    y, before = special.softmax(x, axis=-1), g.copy()
    jacobians = [np.diag(row) - np.outer(row, row) for row in y]
    _same(
        answer(g, y, x),
        np.stack([row @ j for row, j in zip(before, jacobians)]),
        "softmax_rule: against the Jacobian,",
    )
    assert np.array_equal(g, before), "softmax_rule: has changed g, which is not its own"
    call = primitive(lambda x: special.softmax(x, axis=-1), answer, name="exercise_softmax")
    _differentiable(call, x, what="softmax_rule")


def check_quantile_loss(answer):
    rng = np.random.default_rng(2)
    target, prediction = rng.standard_normal(7), rng.standard_normal(7)
    for q in (0.5, 0.9):
        t = Tensor(prediction, requires_grad=True)
        loss = answer(t, target, q)
        _same(
            loss,
            np.mean(
                [q * (b - a) if b > a else (1 - q) * (a - b) for a, b in zip(prediction, target)]
            ),
            f"quantile_loss: its value for quantile={q}",
        )
        _same(
            grad(loss, t)[0],
            np.where(target > prediction, -q, 1 - q) / 7,
            f"quantile_loss: gradient for quantile={q}",
        )
    _differentiable(lambda p: answer(p, target, 0.9), prediction, what="quantile_loss", order=1)
    guesses, many = np.linspace(-3, 3, 1201), rng.standard_normal(501)
    best = guesses[
        np.argmin([_plain(answer(np.full(501, c), many, 0.8), "quantile_loss") for c in guesses])
    ]
    assert abs(best - np.quantile(many, 0.8)) < 0.02, (
        f"quantile_loss: least at {best:.3g}, not at the 0.8 quantile"
    )


def check_Nesterov(answer):
    rate, momentum, slope = 0.1, 0.8, np.array([1.0, 3.0, 0.5])
    parameters = [nn.Parameter(np.ones(2), np.float64), nn.Parameter(np.ones(1), np.float64)]
    found = answer(parameters, learning_rate=rate, momentum=momentum)
    w, v = np.ones(3), np.zeros(3)
    for step in range(20):
        if step == 10:  # resumed from a checkpoint, in the middle
            state, found = (
                found.state_dict(),
                answer(parameters, learning_rate=rate, momentum=momentum),
            )
            found.load_state_dict(state)
        found.zero_grad()
        (
            0.5 * np.sum(slope[:2] * parameters[0] ** 2)
            + 0.5 * np.sum(slope[2:] * parameters[1] ** 2)
        ).backward()
        found.step()
        g = slope * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v)
        _same(
            np.concatenate([p.data for p in parameters]),
            w,
            f"Nesterov: the weights after step {step + 1}",
            rtol=1e-10,
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
        "kl_gamma: against quadrature,",
        rtol=1e-6,
        atol=1e-7,
    )
    _differentiable(answer, *cases.T, what="kl_gamma")


def check_zinb_log_prob(answer):
    x = np.array([0.0, 0.0, 1.0, 4.0, 60.0])
    log_mu, log_theta = np.log([0.3, 5.0, 2.0, 4.0, 30.0]), np.log([0.5, 2.0, 10.0, 1.0, 3.0])
    zi_logits = np.array([-1.0, 2.0, 0.0, -2.0, 1.0])
    theta, pi = np.exp(log_theta), special.expit(zi_logits)
    nb = stats.nbinom.pmf(x, theta, theta / (theta + np.exp(log_mu)))
    _same(
        answer(x, log_mu, log_theta, zi_logits),
        np.log(np.where(x == 0, pi, 0.0) + (1 - pi) * nb),
        "zinb_log_prob:",
    )
    _differentiable(lambda *p: answer(x, *p), log_mu, log_theta, zi_logits, what="zinb_log_prob")
    for a in (-800.0, 800.0):
        log_p = np.log(nb) if a < 0 else np.where(x == 0, 0.0, np.log(nb) - a)
        _same(
            answer(x, log_mu, log_theta, np.full(5, a)),
            log_p,
            f"zinb_log_prob: for zi_logits = {a:g}",
        )


def check_cyclic_kl_weight(answer):
    for progress, weight in (
        (0.0, 0.0),
        (0.0625, 0.5),
        (0.125, 1.0),
        (0.2, 1.0),
        (0.25, 0.0),
        (0.5625, 0.5),
        (0.99, 1.0),
        (1.0, 1.0),
    ):
        _same(
            answer(progress, 4, 0.5), weight, f"cyclic_kl_weight({progress}, n_cycles=4, rise=0.5)"
        )
    _same(answer(0.25, 1, 1.0), 0.25, "cyclic_kl_weight(0.25, n_cycles=1, rise=1.0)")
    _same(answer(0.6, 2, 0.25), 0.8, "cyclic_kl_weight(0.6, n_cycles=2, rise=0.25)")


def check_ppca_log_prob(answer):
    rng = np.random.default_rng(3)
    x, weight, mean, sigma = (
        rng.standard_normal((6, 4)),
        rng.standard_normal((4, 2)),
        rng.standard_normal(4),
        0.7,
    )
    normal = stats.multivariate_normal(mean, weight @ weight.T + sigma**2 * np.eye(4))
    _same(answer(x, weight, mean, sigma), normal.logpdf(x), "ppca_log_prob:")
    _differentiable(
        lambda w, m, s: answer(x, w, m, s), weight, mean, np.array(sigma), what="ppca_log_prob"
    )


def check_StudentT(answer):
    rng = np.random.default_rng(4)
    x, loc, scale, df = (
        rng.standard_normal(5) * 3,
        rng.standard_normal(5),
        np.array([0.5, 1.0, 2.0, 1.0, 3.0]),
        4.0,
    )
    _same(
        answer(loc, scale, df).log_prob(x), stats.t.logpdf(x, df, loc, scale), "StudentT: log_prob"
    )
    _same(answer(loc, scale, df).mean, loc, "StudentT: mean")
    _differentiable(
        lambda loc, scale, df: answer(loc, scale, df).log_prob(x),
        loc,
        scale,
        np.full(5, df),
        what="StudentT",
    )
    draws = _plain(
        answer(np.full(4000, 1.0), 2.0, 3.0).sample(np.random.default_rng(5)), "StudentT: sample"
    )
    assert draws.shape == (4000,), (
        f"StudentT: sample has shape {draws.shape} for a loc of shape (4000,)"
    )
    p = stats.kstest(draws, stats.t(3.0, 1.0, 2.0).cdf).pvalue
    assert p > 1e-3, f"StudentT: 4000 draws are not from it (Kolmogorov-Smirnov, p = {p:.1g})"

    class Robust(VAE):
        def decode(self, z):
            return answer(self.decoder(z), 1.0, 4.0)

    data = np.random.default_rng(6).standard_t(4.0, (64, 5))
    history = Robust(5, hidden=(8,), n_latent=2, seed=0).fit(data, epochs=2, progress=False)
    assert np.isfinite(history["train_loss"]).all(), (
        "StudentT: a VAE with it as its decoder does not train"
    )


def _gaussian(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum(-1)


def _bound_by_scipy(model, x, eps):
    """The importance-weighted bound of a VAE without hidden layers, (n,), from its weights alone."""
    w = model.state_dict()
    loc, scale = (
        x @ w["mean.weight"].T + w["mean.bias"],
        np.exp(0.5 * (x @ w["log_var.weight"].T + w["log_var.bias"])),
    )
    z = loc + scale * eps
    out = z @ w["decoder.layers.0.weight"].T + w["decoder.layers.0.bias"]
    weights = (
        _gaussian(x, out, model.config["sigma"]) + _gaussian(z, 0.0, 1.0) - _gaussian(z, loc, scale)
    )
    return special.logsumexp(weights, axis=0) - np.log(len(eps))


def check_importance_weighted_loss(answer):
    rng = np.random.default_rng(7)
    model = VAE(4, hidden=(), n_latent=2, sigma=0.6, dtype=np.float64, seed=1)
    x = rng.standard_normal((5, 4))
    for k in (1, 7):
        eps = rng.standard_normal((k, 5, 2))
        _same(
            answer(model, x, eps),
            -np.mean(_bound_by_scipy(model, x, eps)),
            f"importance_weighted_loss: for k = {k}",
        )
    for name, p in model.named_parameters():
        (slope,) = grad(answer(model, x, eps), p)
        at, h, values = (0,) * p.ndim, 1e-6, []
        for sign in (1, -1):
            p.data[at] += sign * h
            values.append(-np.mean(_bound_by_scipy(model, x, eps)))
            p.data[at] -= sign * h
        _same(
            slope[at],
            (values[0] - values[1]) / (2 * h),
            f"importance_weighted_loss: the gradient of {name}",
            1e-4,
            1e-7,
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
    w = model.state_dict()
    h = _hidden(w, "z_encoder.layers", np.log(1.0 + counts))
    loc = h @ w["z_encoder.mean.weight"].T + w["z_encoder.mean.bias"]
    var = np.exp(h @ w["z_encoder.log_var.weight"].T + w["z_encoder.log_var.bias"]) + 1e-4
    h = _hidden(w, "decoder.layers", loc + np.sqrt(var) * eps)
    rho = special.softmax(h @ w["decoder.rho.weight"].T + w["decoder.rho.bias"], axis=1)
    pi = special.expit(h @ w["decoder.zi.weight"].T + w["decoder.zi.bias"])
    mu, theta = counts.sum(1, keepdims=True) * rho, np.exp(w["log_theta"])
    nb = stats.nbinom.pmf(counts, theta, theta / (theta + mu))
    kl = 0.5 * (loc**2 + var - 1.0 - np.log(var)).sum(1)
    return np.log(np.where(counts == 0, pi, 0.0) + (1 - pi) * nb).sum(1) - kl


def check_scvi_elbo(answer):
    rng = np.random.default_rng(8)
    counts = rng.poisson(3.0 * rng.random((6, 5)) + 0.2).astype(float)
    counts[0, :2] = 0.0, 7.0
    model = SCVI(5, n_latent=2, n_hidden=8, likelihood="zinb", dtype=np.float64, seed=0).eval()
    eps = rng.standard_normal((6, 2))
    _same(answer(model, counts, eps), _elbo_by_scipy(model, counts, eps), "scvi_elbo:")
    (slope,) = grad(np.sum(answer(model, counts, eps)), model.log_theta)
    h, values = 1e-6, []
    for sign in (1, -1):
        model.log_theta.data[1] += sign * h
        values.append(_elbo_by_scipy(model, counts, eps).sum())
        model.log_theta.data[1] -= sign * h
    _same(
        slope[1],
        (values[0] - values[1]) / (2 * h),
        "scvi_elbo: its gradient with respect to log_theta",
        1e-4,
    )

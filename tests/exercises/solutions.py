"""Model answers to the exercises of the README: look here after having tried. The suite runs the checks against them."""

from math import log, pi
from math import sqrt as root

import numpy as np
from scipy import special

from minigrad import Tensor, functional, grad, nn, optim, primitive
from minigrad.distributions import (
    NegativeBinomial,
    Normal,
    ZeroInflatedNegativeBinomial,
    kl_divergence,
)
from minigrad.tape import tape


def backward_keeping(loss, inner):
    gradients = grad(loss, inner)  # before backward(), which uses the graph up
    loss.backward()
    for t, g in zip(inner, gradients):
        t.grad = g if t.grad is None else t.grad + g


def undo_broadcasting(g, shape):
    new = tuple(range(g.ndim - len(shape)))  # axes that broadcasting put in front
    g = np.sum(g, axis=new)
    stretched = tuple(i for i, length in enumerate(shape) if length == 1)
    return np.sum(g, axis=stretched, keepdims=True)


# By the integrand at t = a; and by the integral of -h / (2 pi) exp(-h^2 (1 + t^2) / 2) for t from 0
# to a, which is an error function. Constants are Python's floats.
owens_t = primitive(
    special.owens_t,
    lambda g, y, h, a: (
        g * np.exp(-0.5 * h * h) * special.erf(h * a / root(2.0)) * (-0.5 / root(2.0 * pi))
    ),
    lambda g, y, h, a: g * np.exp(-0.5 * h * h * (1.0 + a * a)) / (1.0 + a * a) * (0.5 / pi),
)


def out_of_order(x):
    """x enters y directly and by way of x * x: first in, first out, it is visited before x * x is.

    So it is visited twice. Each time a part of its gradient is handed out as if it were all of it, and
    grad keeps the last, 2 x * x, which came by x * x. (backward would add both to .grad, and be right
    in the end; of what lies further on the work would double with every such detour. And if x were
    not a leaf, its second visit would find its origin used up.)
    """
    y = x * (x * x)
    return y, 2.0 * x.data**2


def jvp(f, x, v):
    x = Tensor(x, requires_grad=True)
    y = f(x)
    # J^T u is linear in u, whatever u is: its derivative in u, along v, is J v.
    u = Tensor(np.zeros(y.shape), requires_grad=True)
    (g,) = grad(y, x, gradient=u, create_graph=True)
    return grad(g, u, gradient=v)[0]


def sweep(output, gradient):
    known, found = {output: gradient}, {}
    for node in reversed(tape(output)):  # the youngest first: what used a node comes before it
        if node not in known:
            continue  # nothing that needs a gradient leads here
        g = known.pop(node)
        if node.origin is None:
            found[node] = g
            continue
        origin = node.origin
        for x, dx in zip(origin.inputs, origin.primitive.gradients(node, g, False)):
            if dx is not None:
                known[x] = known.get(x, 0.0) + undo_broadcasting(dx, x.shape)
    return found


def softmax_rule(g, y, x):
    return y * (g - np.sum(g * y, axis=-1, keepdims=True))


# The planted rule is right for x > -1. Where x < -1 the slope is -1.
wrong_rule = ("huber", lambda g, y, x: g * np.clip(x, -1.0, 1.0))


class Nesterov(optim.Optimizer):
    """w -= learning_rate * (g + momentum * v), v = momentum * v + g: the gradient where the momentum is about to lead."""

    n_moments = 1

    def __init__(self, parameters, learning_rate=1e-2, momentum=0.9):
        super().__init__(parameters, learning_rate)
        self.momentum = momentum

    def update(self, w, g, v):
        v *= self.momentum
        v += g
        w -= self.learning_rate * (g + self.momentum * v)


def kl_gamma(shape_q, rate_q, shape_p, rate_p):
    # E_q[log x], and E_q[x] = shape_q / rate_q
    mean_log = special.digamma(shape_q) - np.log(rate_q)
    log_norm_q = shape_q * np.log(rate_q) - special.gammaln(shape_q)
    log_norm_p = shape_p * np.log(rate_p) - special.gammaln(shape_p)
    by_shapes = (shape_q - shape_p) * mean_log
    by_rates = (rate_q - rate_p) * shape_q / rate_q
    return log_norm_q - log_norm_p + by_shapes - by_rates


class NoisyRegression(nn.Module):
    def __init__(self, n_features):
        self.weight = nn.Parameter(np.zeros(n_features))
        self.bias = nn.Parameter(np.zeros(1))

    def squared_errors(self, x, y):
        return np.square(x @ self.weight + self.bias - y)

    def loss(self, x, y, *, progress, rng):
        noise = (1.0 - progress) * rng.standard_normal(x.shape)
        return np.mean(self.squared_errors(x + noise, y))

    def validation(self, x, y, *, rng):
        return {"loss": self.squared_errors(x, y)}


def ppca_log_prob(x, weight, mean, sigma):
    n_features = np.shape(weight)[0]
    covariance = weight @ np.transpose(weight) + sigma**2 * np.eye(n_features)
    d = x - mean
    squared = np.sum(d * np.transpose(np.linalg.solve(covariance, np.transpose(d))), axis=1)
    return -0.5 * (squared + np.linalg.slogdet(covariance)[1] + n_features * log(2.0 * pi))


class StudentT:
    def __init__(self, loc, scale, df):
        self.loc, self.scale, self.df = loc, scale, df

    mean = property(lambda self: self.loc)  # for df > 1

    def log_prob(self, x):
        half, u = 0.5 * (self.df + 1.0), (x - self.loc) / self.scale
        norm = (
            special.gammaln(half)
            - special.gammaln(0.5 * self.df)
            - 0.5 * np.log(self.df * pi)
            - np.log(self.scale)
        )
        return norm - half * np.log1p(np.square(u) / self.df)

    def sample(self, rng):
        shape = np.shape(self.loc)
        chi2 = 2.0 * rng.standard_gamma(0.5 * self.df, size=shape)
        return self.loc + self.scale * rng.standard_normal(shape) / np.sqrt(chi2 / self.df)


def zinb_log_prob(x, log_mu, log_theta, zi_logits):
    nb = NegativeBinomial(log_mu, log_theta).log_prob(x)
    log_pi, log_rest = special.log_expit(zi_logits), special.log_expit(-zi_logits)
    return np.where(x == 0, np.logaddexp(log_pi, log_rest + nb), log_rest + nb)


def scvi_elbo(model, counts, eps):
    q, _ = model.inference(counts)
    p = model.generative(
        q.rsample(eps), np.log(counts.sum(axis=1, keepdims=True)), np.zeros(len(counts), int)
    )
    log_p = ZeroInflatedNegativeBinomial(p["log_mu"], p["log_theta"], p["zi_logits"]).log_prob(
        counts
    )
    return np.sum(log_p, axis=1) - np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)


def importance_weighted_loss(model, x, eps):
    q, prior = model.encode(x), Normal(0.0, 1.0)
    weights = []
    for e in eps:
        z = q.rsample(e)
        weights.append(model.log_prob(x, z) + np.sum(prior.log_prob(z) - q.log_prob(z), axis=1))
    return -np.mean(functional.logsumexp(np.stack(weights), axis=0) - log(len(eps)))

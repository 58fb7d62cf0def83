"""Wrong answers, as they are really given, and words that the check's complaint must contain: the checks' own test."""

import numpy as np
from scipy import special

from minigrad import Tensor, primitive
from minigrad.distributions import NegativeBinomial, Normal, kl_divergence


def _cut(x):
    """The data alone: what is computed from it is not recorded."""
    return x.data if isinstance(x, Tensor) else x


def _log_cosh_chosen(x):
    """Right in value; but where() also sends a gradient, infinity times zero, down the branch that was not chosen."""
    return np.where(np.abs(x) < 20.0, np.log(np.cosh(x)), np.abs(x) - np.log(2.0))


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


def _scvi_without_library(model, counts, eps):
    q, _ = model.inference(counts)
    log_p = model.log_prob(
        counts,
        np.zeros((len(counts), 1)),
        **model.heads(q.rsample(eps), np.zeros(len(counts), int)),
    )
    return log_p - np.sum(kl_divergence(q, Normal(0.0, 1.0)), axis=1)


def _without_kl(model, counts, eps):
    log_p, _, _ = model.terms(counts, np.zeros(len(counts), int), eps_z=eps)
    return log_p


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


def _student(**changes):
    return lambda right: type("Wrong", (right,), changes)


def _ppca(scale, centred):
    def wrong(right):
        return lambda x, weight, mean, sigma: right(
            x, weight, mean if centred else 0.0 * mean, sigma**scale
        )

    return wrong


# name of the exercise -> (words, a function of the right answer that makes a wrong one)
WRONG = {
    "by_hand": [
        ("dL/da", lambda right: lambda a, b: (np.cos(a * b) * b, np.cos(a * b) * a)),
        ("dL/da", lambda right: lambda a, b: right(a, b)[::-1]),
        ("a pair", lambda right: lambda a, b: right(a, b)[0]),
    ],
    "dawsn": [
        ("slope", lambda right: primitive(special.dawsn, lambda g, y, x: g * -2.0 * x * y)),
        (
            "of the output is 3",
            lambda right: primitive(special.dawsn, lambda g, y, x: 1.0 - 2.0 * x * y),
        ),
        (
            "second derivative",
            lambda right: primitive(special.dawsn, lambda g, y, x: g * (1.0 - 2.0 * _cut(x) * y)),
        ),
        ("is not what", lambda right: special.dawsn),
    ],
    "log_cosh": [
        ("value", lambda right: lambda x: np.log(np.cosh(x))),
        ("slope", lambda right: _log_cosh_chosen),
        ("does not return one", lambda right: lambda x: right(_cut(x))),
    ],
    "softmax_rule": [
        ("Jacobian", lambda right: lambda g, y, x: g * y * (1.0 - y)),
        ("Jacobian", lambda right: lambda g, y, x: y * (g - np.sum(g * y))),
        ("changed g", lambda right: _softmax_in_place),
        (
            "create_graph=True gives something else",
            lambda right: lambda g, y, x: right(_cut(g), _cut(y), x),
        ),
    ],
    "quantile_loss": [
        ("value", lambda right: lambda p, t, q: right(t, p, q)),
        ("value", lambda right: lambda p, t, q: 7.0 * right(p, t, q)),
        ("gradient", lambda right: lambda p, t, q: right(p, t, q) + np.mean(_cut(p) - p)),
    ],
    "Nesterov": [
        ("after step 1", _nesterov(classical=True)),
        ("after step 11", _nesterov(classical=False)),
    ],
    "kl_gamma": [
        ("quadrature", lambda right: lambda a, b, c, d: right(c, d, a, b)),
        ("quadrature", lambda right: lambda a, b, c, d: right(a, 1.0 / b, c, 1.0 / d)),
        ("nothing was recorded", lambda right: lambda *p: right(*[_cut(x) for x in p])),
    ],
    "cyclic_kl_weight": [
        (r"cyclic_kl_weight\(1.0", lambda right: lambda p, n, r: min(1.0, p * n % 1.0 / r)),
        (r"cyclic_kl_weight\(0.25", lambda right: lambda p, n, r: min(1.0, p * n / r)),
    ],
    "ppca_log_prob": [
        ("ppca_log_prob:", _ppca(scale=0.5, centred=True)),
        ("ppca_log_prob:", _ppca(scale=1, centred=False)),
        ("shape", lambda right: lambda *p: np.sum(right(*p))),
    ],
    "StudentT": [
        ("log_prob", _student(log_prob=lambda self, x: -np.square((x - self.loc) / self.scale))),
        (
            "draws",
            _student(
                sample=lambda self, rng: (
                    self.loc + self.scale * rng.standard_normal(np.shape(self.loc))
                )
            ),
        ),
        ("mean", _student(mean=0.0)),
    ],
    "zinb_log_prob": [
        ("zinb_log_prob:", lambda right: lambda x, m, t, a: NegativeBinomial(m, t).log_prob(x)),
        ("zinb_log_prob:", lambda right: _zinb_inflates_all),
        ("zinb_log_prob:", lambda right: lambda x, m, t, a: right(x, m, t, -a)),
        ("for zi_logits", lambda right: _zinb_by_probabilities),
    ],
    "scvi_elbo": [
        ("scvi_elbo:", lambda right: _scvi_without_library),
        ("scvi_elbo:", lambda right: _without_kl),
        ("shape", lambda right: lambda *p: np.mean(right(*p))),
    ],
    "importance_weighted_loss": [
        ("k = 7", lambda right: _iw_mean_of_logs),
        ("k = 1", lambda right: lambda *p: -right(*p)),
        ("gradient", _detached_weights),
    ],
}

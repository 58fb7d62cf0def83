"""Figure 11 of the chapter: log p(x) = ELBO + KL(q || posterior), each term known exactly.

z ~ Normal(0, 1), x ~ Normal(w z, sigma^2) for a vector w: probabilistic PCA with one dimension. Its
log p(x) and its posterior are closed forms, so the identity can be checked to the last digits,
while q is optimised with the model held fixed (log p stays, the gap closes) and then the model with
q held fixed (the bound rises, and log p with it or against it). Raising log p averaged over the
data is lowering KL(data || model). And the importance-weighted bound of K draws closes the gap that
a wrong q leaves.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from demos import show
from minigrad import Tensor, distributions, optim
from models.posterior import log_mean_exp

SIGMA = 0.7


def exact_log_p(x, w):
    """log p(x) of each row, (n,): x ~ Normal(0, w w^T + sigma^2)."""
    return stats.multivariate_normal(
        np.zeros(len(w)), np.outer(w, w) + SIGMA**2 * np.eye(len(w))
    ).logpdf(x)


def posterior(x, w):
    """Mean (n,) and standard deviation of p(z | x)."""
    precision = 1.0 + w @ w / SIGMA**2
    return x @ w / SIGMA**2 / precision, precision**-0.5


def elbo(x, w, mean, std):
    """E_q[log p(x | z)] - KL(q || p(z)) of each row (n,), exact: q is Normal, the model linear."""
    expected = (
        distributions.Normal(mean[:, None] * w, SIGMA).log_prob(x)
        - 0.5 * np.square(std[:, None] * w) / SIGMA**2
    )
    prior = distributions.Normal(0.0, 1.0)
    return np.sum(expected, axis=1) - distributions.kl_divergence(
        distributions.Normal(mean, std), prior
    )


def run(options) -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, -0.8, 0.5])
    x = rng.normal(size=(400, 1)) * truth + SIGMA * rng.normal(size=(400, 3))
    w = Tensor(np.array([0.3, 0.3, 0.3]), requires_grad=True)
    slope, log_std = (
        Tensor(np.array([0.2, 0.0, -0.2]), requires_grad=True),
        Tensor(np.zeros(400), requires_grad=True),
    )
    entropy = -exact_log_p(x, truth).mean()  # an estimate of the data's own entropy, from the truth
    records, worst = [], 0.0
    n = 40 if options.quick else 200
    for phase, trained in (("q", [slope, log_std]), ("model", [w]), ("both", [slope, log_std, w])):
        optimizer = optim.Adam(trained, 3e-2)
        for _ in range(n):
            bound = np.mean(elbo(x, w, x @ slope, np.exp(log_std)))
            for p in (w, slope, log_std):
                p.grad = None
            (-bound).backward()
            log_p, (m, s) = exact_log_p(x, w.data), posterior(x, w.data)
            q = distributions.Normal(x @ slope.data, np.exp(log_std.data))
            gap = distributions.kl_divergence(q, distributions.Normal(m, s))
            each = elbo(x, w.data, x @ slope.data, np.exp(log_std.data))
            worst = max(worst, np.max(np.abs(log_p - each - gap)))
            records.append((log_p.mean(), each.mean(), gap.mean(), -entropy - log_p.mean()))
            optimizer.step()
        print(
            f"after optimising {phase:<6} log p {records[-1][0]:.4f} = ELBO {records[-1][1]:.4f} + "
            "KL(q || posterior) "
            f"{records[-1][2]:.4f};  KL(data || model), estimated: {records[-1][3]:+.4f}"
        )
    print(f"the identity holds to {worst:.1e} at every step, for every point")
    draw(np.array(records), n, options, importance_weighted(x, w.data))


def importance_weighted(x, w, counts=(1, 3, 10, 30, 100, 300, 1000)):
    """The bound of K draws, averaged over points, and the exact log p.

    The draws come from a q that is wrong on purpose, the prior.
    """
    rng, found = np.random.default_rng(1), []
    for k in counts:
        z = rng.normal(size=(k, len(x)))
        log_weights = np.sum(distributions.Normal(z[:, :, None] * w, SIGMA).log_prob(x), axis=-1)
        found.append(log_mean_exp([log_weights])[0].mean())
    exact = exact_log_p(x, w).mean()
    print(
        "importance-weighted bound, q = prior: "
        + ", ".join(f"K={k}: {v:.3f}" for k, v in zip(counts, found))
        + f"; exact {exact:.3f}"
    )
    return counts, found, exact


def draw(records, n, options, weighted) -> None:
    f, axes = show.figure(1, 2, width=4.8)
    steps = np.arange(len(records))
    axes[0, 0].plot(steps, records[:, 0], color="black", label="log p(x)")
    axes[0, 0].plot(steps, records[:, 1], color=show.COLORS[0], linestyle="--", label="ELBO")
    axes[0, 0].fill_between(
        steps,
        records[:, 1],
        records[:, 0],
        color=show.COLORS[1],
        alpha=0.35,
        label="KL(q || posterior)",
    )
    for i, phase in enumerate(("optimise q", "the model", "both")):
        axes[0, 0].axvline(i * n, color="#bbbbbb", linewidth=0.8)
        axes[0, 0].text((i + 0.5) * n, records[:, 1].min(), phase, ha="center", fontsize=9)
    axes[0, 0].set(xlabel="step", ylabel="nats, mean over the data")
    axes[0, 0].legend(frameon=False, loc="upper left")
    counts, found, exact = weighted
    axes[0, 1].plot(counts, found, "o-", color=show.COLORS[0], label="bound of K draws, q = prior")
    axes[0, 1].axhline(exact, color="black", linewidth=1, label="exact log p(x)")
    axes[0, 1].set(xscale="log", xlabel="K", ylabel="nats, mean over the data")
    axes[0, 1].legend(frameon=False)
    show.save(
        f,
        options.out,
        "elbo",
        "Left: log p(x) is the ELBO plus the divergence of q from the true posterior (shaded), "
        "whichever half is optimised. Right: the importance-weighted bound rises to the exact "
        "value with more draws.",
    )

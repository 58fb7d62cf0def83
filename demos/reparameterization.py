"""The reparameterization trick: two unbiased estimates of one gradient, and how noisy each is.

The chapter's section of that name. The gradient of E_z[f(z)], z ~ Normal(mu, sigma), with respect
to mu can be estimated from draws in two ways. The score function: f(z) times the gradient of log
q(z), which needs nothing of f but its value. Or z = mu + sigma eps with eps ~ Normal(0, 1), so that
the derivative of f itself is used. Both are right on average; the variances differ by orders of
magnitude, the more so in more dimensions. That is why VAEs can be trained with one draw.
"""

from __future__ import annotations

import numpy as np

from demos import show
from minigrad import Tensor, distributions, grad

SIGMA = 0.5


def estimates(n_dims: int, n_draws: int, seed: int = 0):
    """Estimates of d E[f]/d mu_1 from single draws, by score function and by reparameterization.

    (n_draws,) each.

    f(z) = -sum (z - 2)^2 / 2, as from a Normal decoder; the exact gradient at mu = 0 is 2.
    """
    rng = np.random.default_rng(seed)
    mu = Tensor(
        np.zeros((n_draws, n_dims)), requires_grad=True
    )  # a row a draw, so that one sweep gives all estimates
    q = distributions.Normal(mu, SIGMA)
    z = q.rsample(rng.standard_normal((n_draws, n_dims)))
    (pathwise,) = grad(np.sum(-0.5 * np.square(z - 2.0)), mu)
    value = np.sum(-0.5 * np.square(z.data - 2.0), axis=1)
    log_q = np.sum(q.log_prob(z.data), axis=1)  # z held fixed: the draw does not depend on mu
    (score,) = grad(np.sum(value * log_q), mu)
    return score[:, 0], pathwise[:, 0]


def run(options) -> None:
    n_draws, dims = (2000 if options.quick else 100_000), (1, 2, 5, 10, 30, 100)
    table = []
    print(
        f"{'dimensions':>10}{'score: mean':>14}{'variance':>12}"
        f"{'reparameterized: mean':>24}{'variance':>10}{'ratio':>10}"
        "   exact: 2"
    )
    for d in dims:
        score, pathwise = estimates(d, max(500, n_draws // d))
        table.append((score.var(), pathwise.var()))
        print(
            f"{d:>10}{score.mean():>14.2f}{score.var():>12.2f}"
            f"{pathwise.mean():>24.3f}{pathwise.var():>10.3f}"
            f"{score.var() / pathwise.var():>10.0f}"
        )
    f, axes = show.figure(1, 2)
    score, pathwise = estimates(1, n_draws)
    bins = np.linspace(-12, 20, 100)
    axes[0, 0].hist(
        score, bins, density=True, color=show.COLORS[1], alpha=0.8, label="score function"
    )
    axes[0, 0].hist(
        pathwise, bins, density=True, color=show.COLORS[0], alpha=0.8, label="reparameterized"
    )
    axes[0, 0].axvline(2, color="black", linewidth=1)
    axes[0, 0].set(
        xlabel="estimate from one draw (exact: 2)", ylabel="density", title="one dimension"
    )
    axes[0, 0].legend(frameon=False)
    for values, i, name in zip(np.array(table).T, (1, 0), ("score function", "reparameterized")):
        axes[0, 1].plot(dims, values, marker=show.MARKERS[i], color=show.COLORS[i], label=name)
    axes[0, 1].set(
        xscale="log", yscale="log", xlabel="dimensions of z", ylabel="variance of the estimate"
    )
    axes[0, 1].legend(frameon=False)
    show.save(
        f,
        options.out,
        "reparameterization",
        "Left: the mean of both estimates is the exact gradient (the line), but one is far wider, "
        "and skewed. Right: the variance of the score-function estimate grows with the dimensions, "
        "the other does not.",
    )

# %% [markdown]
# # A bound on what cannot be computed
#
# **You will learn** why the likelihood of a model with hidden variables cannot be computed, which
# lower bound of it can (the ELBO), why raising that bound does two useful things at once (it fits
# the model, and it finds what a measurement says about the hidden variable), and how a gradient
# gets through a random draw (the reparameterisation trick). All on a model so small that the exact
# answer is known, so that every statement can be checked to the last digit.
#
# **Time:** about 55 minutes. The notebook runs in some ten seconds.
#
# **Know before:** the normal distribution and its density; the expectation $E[\cdot]$ as the
# average over many draws; conditional probability, $p(x, z) = p(x \mid z)\,p(z)$.
#
# Goes with these sections of the chapter (block 5 of MCB128, Spring 2026): "The Variational
# Inference approach", "Two optimization objectives. One method to achieve them both: The Evidence
# Lower Bound (ELBO)" with its Figure 11, and "The reparameterization trick".

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from demos.show import COLORS, MARKERS
from minigrad import Tensor, grad, optim

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: fewer steps and draws
plt.rcParams.update({"figure.figsize": (6.2, 3), "figure.dpi": 90, "font.size": 9})
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})

# %% [markdown]
# ## 1. A model in which all is known
#
# Think of one gene. Each cell has a hidden state $z$, say how far it has gone in some process, and
# the expression $x$ that we measure follows it, with noise:
#
# $$z \sim \text{Normal}(0, 1), \qquad x \mid z \sim \text{Normal}(w z, \sigma).$$
#
# (The second argument is the standard deviation, here and in the code.) Two questions matter. How
# probable does the model find the measured $x$? And what does $x$ say about $z$?
#
# $$p(x) = \int p(x \mid z)\,p(z)\,dz, \qquad p(z \mid x) = \frac{p(x \mid z)\,p(z)}{p(x)}.$$
#
# Both need the integral. Here it has a solution, because a sum of normal variables is normal:
#
# $$p(x) = \text{Normal}\big(0, \sqrt{w^2 + \sigma^2}\big), \qquad
# p(z \mid x) = \text{Normal}\Big(\frac{w x}{w^2 + \sigma^2}, \frac{\sigma}{\sqrt{w^2 +
# \sigma^2}}\Big).$$
#
# For the second, take the logarithm of $p(x \mid z)\,p(z)$ and complete the square in $z$:
#
# $$-\frac{(x - w z)^2}{2 \sigma^2} - \frac{z^2}{2} = -\frac{w^2 + \sigma^2}{2 \sigma^2}
# \Big(z - \frac{w x}{w^2 + \sigma^2}\Big)^2 + \text{what does not depend on } z.$$

# %%
SIGMA = 0.7


def exact_log_p(x, w):
    """log p(x), the integral solved."""
    return stats.norm(0, np.sqrt(w**2 + SIGMA**2)).logpdf(x)


def posterior(x, w):
    """Mean and standard deviation of p(z | x)."""
    return w * x / (w**2 + SIGMA**2), SIGMA / np.sqrt(w**2 + SIGMA**2)


x, w = 1.5, 1.2
z = np.linspace(-5, 5, 1000)
joint = stats.norm(0, 1).pdf(z) * stats.norm(w * z, SIGMA).pdf(x)
print(f"log p(x = {x}): {exact_log_p(x, w):.6f} by the formula")
print(f"              {np.log(np.sum(joint) * (z[1] - z[0])):.6f} by a sum over 1,000 values of z")
n_terms = 1000.0**10
print(f"such a sum for a z of 10 dimensions: {n_terms:.0e} terms,")
print(f"at a billion terms a second {n_terms / 1e9 / 3.15e7:.0e} years")

# %%
figure, axis = plt.subplots(figsize=(5.6, 2.8))
mean, std = posterior(x, w)
axis.plot(z, stats.norm(0, 1).pdf(z), "--", color="#777777", label="prior p(z)")
axis.plot(z, stats.norm(w * z, SIGMA).pdf(x), ":", color=COLORS[1], label="p(x | z), given x")
axis.fill_between(z, joint, color=COLORS[4], alpha=0.5, label="their product; its area is p(x)")
axis.plot(z, stats.norm(mean, std).pdf(z), color=COLORS[0], label="posterior p(z | x)")
axis.set(xlabel="hidden state z", ylabel="density", xlim=(-3, 4), ylim=(0, None))
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The years are the problem: models of cells have ten hidden dimensions or more. And once $w z$ is
# replaced by a neural network, there is no formula either. The integral is what "cannot be
# computed" in the title of this lesson. (The posterior needs it too. It has the shape of the shaded
# product, but must be divided by its area.)

# %% [markdown]
# ## 2. The bound
#
# The idea of variational inference: choose some distribution $q(z)$ that is easy to draw from, as a
# guess of $p(z \mid x)$. Whatever $z$ is, $\log p(x) = \log p(x, z) - \log p(z \mid x)$. Subtract
# and add $\log q(z)$, and average over $z$ drawn from $q$; then for *any* $q$
#
# $$\log p(x) \;=\; \underbrace{E_q\big[\log p(x, z) - \log q(z)\big]}_{\text{ELBO}}
# \;+\; \underbrace{E_q\big[\log q(z) - \log p(z \mid x)\big]}_{\text{KL}(q \,\|\, p(z \mid x))}.$$
#
# The second term, the *gap*, is a Kullback-Leibler divergence: never negative, and 0 only if the
# two distributions are the same. (For $\log t \le t - 1$ whatever $t$ is, and so minus the
# divergence, $E_q[\log (p/q)]$, is at most $E_q[p/q - 1] = \int p\,dz - \int q\,dz = 0$.)
# Logarithms are natural ones; their unit is called a *nat*. So the first term is at most
# $\log p(x)$: an *evidence lower bound*. And it contains nothing but what the
# model states outright. With $p(x, z) = p(x \mid z)\,p(z)$, what stands in its brackets is
#
# $$\log p(x, z) - \log q(z) = \log p(x \mid z) - \big[\log q(z) - \log p(z)\big],$$
#
# and the average of the last bracket over draws from $q$ is a divergence again, that of $q$ from
# the *prior*. So the bound can also be written
#
# $$\text{ELBO} = E_q\big[\log p(x \mid z)\big] - \text{KL}\big(q(z) \,\|\, p(z)\big):$$
#
# how well guesses of $z$ explain $x$, less what it costs that the guess is not the prior. For
# $q = \text{Normal}(m, s)$ in our model both are formulas. The logarithm of a normal density is a
# squared distance and a constant, so all that is needed is the mean of a squared distance from
# some $c$. It is the spread, and the way from the mean to $c$:
#
# $$E_q\big[(z - c)^2\big] = s^2 + (m - c)^2.$$
#
# In `kl_normal` it stands with $c = m_2$; in `elbo` it gives $E_q[(x - w z)^2]$, since $w z$ has
# mean $w m$ and standard deviation $w s$. Let us check the identity with guesses that are good and
# bad.


# %%
def kl_normal(m1, s1, m2, s2):
    """KL(Normal(m1, s1) || Normal(m2, s2)), in nats."""
    return np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


def elbo(x, w, m, s):
    """The exact ELBO of x with q = Normal(m, s)."""
    squared_error = (x - w * m) ** 2 + (w * s) ** 2  # E_q[(x - w z)^2]
    expected = -0.5 * np.log(2 * np.pi * SIGMA**2) - squared_error / (2 * SIGMA**2)
    return expected - kl_normal(m, s, 0.0, 1.0)


guesses = {
    "the prior": (0.0, 1.0),
    "right mean, too sure": (mean, 0.2),
    "right width, wrong place": (mean - 1.0, std),
    "the posterior": (mean, std),
}
print(f"{'q':<26}{'ELBO':>9} + {'gap':>7} = {'their sum':>12}")
for name, (m, s) in guesses.items():
    gap = kl_normal(m, s, mean, std)
    print(f"{name:<26}{elbo(x, w, m, s):>9.4f} + {gap:>7.4f} = {elbo(x, w, m, s) + gap:>12.8f}")
print(f"{'log p(x)':<48}{exact_log_p(x, w):>10.8f}")

# %% [markdown]
# The sum never changes; only its division does. All guesses at once, as a map: the ELBO has its
# top exactly where $q$ is the posterior, and the height of the top is $\log p(x)$. So to *find* the
# posterior one can climb this hill, without ever computing an integral.

# %%
m_axis = np.linspace(-1.5, 3, 200)
s_axis = np.linspace(0.12, 1.6, 200)
m_grid, s_grid = np.meshgrid(m_axis, s_axis)
hill = elbo(x, w, m_grid, s_grid)
figure, axis = plt.subplots(figsize=(5.6, 3.2))
levels = exact_log_p(x, w) - np.array([8, 4, 2, 1, 0.5, 0.2, 0.05])
lines = axis.contour(m_grid, s_grid, hill, levels=levels, colors="#777777", linestyles="solid")
axis.clabel(lines, fmt="%.2f", fontsize=8, colors="black")
for i, (name, (m, s)) in enumerate(guesses.items()):
    axis.plot(m, s, MARKERS[i], color=COLORS[(1, 5, 3, 0)[i]], label=name, markersize=6)
axis.set(xlabel="mean of q", ylabel="standard deviation of q", title="ELBO, in nats")
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# In larger models there is no formula for $E_q$, and one averages over draws of $z$ instead. Look
# at the *spread* of the draws: if $q$ is the posterior, every single draw gives exactly
# $\log p(x)$, since $p(x, z) / p(z \mid x)$ is $p(x)$ whatever $z$ is. A good guess makes the
# estimate not only higher but also quieter.

# %%
rng = np.random.default_rng(0)
for name, (m, s) in guesses.items():
    draws = rng.normal(m, s, 2000)
    log_joint = stats.norm(0, 1).logpdf(draws) + stats.norm(w * draws, SIGMA).logpdf(x)
    values = log_joint - stats.norm(m, s).logpdf(draws)
    print(f"{name:<26} mean of 2,000 draws {values.mean():>8.4f}, their spread {values.std():.4f}")

# %% [markdown]
# ## 3. Two objectives, one bound: Figure 11
#
# Now let $w$ be unknown, and let there be many cells. An *encoder* guesses for every cell: here
# $q(z \mid x) = \text{Normal}(a\,x, s)$, with two numbers $a$ and $s$ for all cells. (This $q$ can
# be exactly the posterior, whose mean is a multiple of $x$ and whose width is the same for all
# cells. In larger models it rarely can, and a gap remains.) We climb the mean ELBO of 400 cells by
# gradient, in three phases: first only the encoder ($a$, $s$), then only the model ($w$), then
# both.
#
# `elbo` above was written in NumPy for plain numbers. Given Tensors, it is differentiable as it
# stands.

# %%
rng = np.random.default_rng(1)
true_w = 1.2
cells = true_w * rng.normal(size=400) + SIGMA * rng.normal(size=400)

w_found = Tensor(np.array(0.4), requires_grad=True)
a = Tensor(np.array(-0.2), requires_grad=True)
log_s = Tensor(np.array(0.0), requires_grad=True)
phases = {"encoder": [a, log_s], "model": [w_found], "both": [a, log_s, w_found]}
n_steps = 20 if QUICK else 150
history = []
for name, trained in phases.items():
    optimizer = optim.Adam(trained, learning_rate=0.02)
    for _ in range(n_steps):
        bound = np.mean(elbo(cells, w_found, a * cells, np.exp(log_s)))
        log_p = exact_log_p(cells, w_found.data).mean()  # not used for training
        history.append((log_p, float(bound.data)))
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()  # changes only what this phase trains
    print(f"after {name:<8} log p {log_p:.4f}, ELBO {history[-1][1]:.4f}", end=", ")
    print(f"gap {log_p - history[-1][1]:.4f};  w = {w_found.data:.3f}")

# The best w has a formula too: p(x) must have the mean square of the cells.
best_w = np.sqrt(np.mean(cells**2) - SIGMA**2)
print(f"\nmost likely w: {best_w:.3f}, with log p {exact_log_p(cells, best_w).mean():.4f}")
slope, width = posterior(1.0, best_w)
print(f"its posterior: a = {slope:.3f}, s = {width:.3f}", end="; ")
print(f"found: a = {a.data:.3f}, s = {np.exp(log_s.data):.3f}")

# %%
log_p, bound = np.transpose(history)
turn = n_steps + np.argmax(log_p[n_steps : 2 * n_steps])  # of the steps that train the model
end = 2 * n_steps - 1
print(f"from step {turn} to step {end} log p goes from {log_p[turn]:.4f} to {log_p[end]:.4f},")
print(f"and the ELBO from {bound[turn]:.4f} to {bound[end]:.4f}")
steps = np.arange(len(history))
figure, axis = plt.subplots(figsize=(6.2, 3.2))
axis.plot(steps, log_p, color="black", label="log p(x)")
axis.plot(steps, bound, "--", color=COLORS[0], label="ELBO")
axis.fill_between(steps, bound, log_p, color=COLORS[1], alpha=0.4, label="KL(q || posterior)")
for i, name in enumerate(phases):
    axis.axvline(i * n_steps, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.text((i + 0.5) * n_steps, bound.min(), f"train: {name}", ha="center")
axis.set(xlabel="step", ylabel="nats, mean over cells")
axis.legend(loc="lower right", bbox_to_anchor=(1, 0.12))
plt.show()

# %% [markdown]
# - While the *encoder* learns, $\log p(x)$ (black) cannot move, since the model does not change.
#   The bound rises by closing the gap: $q$ becomes the posterior.
# - While the *model* learns with a frozen encoder, it moves to where the bound is higher. The gap
#   opens again: $q$ is the posterior of a model that is no longer there. And look at the black line
#   after its peak: Adam had carried $w$ past the place where the bound is highest, and on the way
#   back the bound rises while $\log p(x)$ *falls* (the numbers above the picture). With a frozen
#   encoder, a better bound need not be a better model.
# - With *both*, the bound pushes the model up, and the encoder follows. At the end the gap is
#   closed and $w$ is the most likely one.
#
# So these are the two useful things at once: the model becomes one under which the cells are
# probable, and $q$ becomes its posterior, which says of each cell what $z$ it is likely to have.
#
# Raising the average $\log p(x)$ of the cells is also what brings the model's distribution close to
# that of the data. The divergence between the two is, over cells $x$ of the data,
#
# $$\text{KL}(p_\text{data} \,\|\, p) = E[\log p_\text{data}(x)] - E[\log p(x)].$$
#
# The first term does not depend on the model, and the second is that average.

# %% [markdown]
# ## 4. The KL in closed form
#
# The term $\text{KL}(q \,\|\, p(z))$ of the ELBO could be averaged over draws like all else. But
# for two normal distributions there is a formula, the one in `kl_normal`. Against the standard
# normal it is the one at the end of the chapter's section "VAE Pytorch code",
#
# $$\text{KL} = -\tfrac{1}{2}\,(1 + \log s^2 - m^2 - s^2),$$
#
# summed over the dimensions of $z$. Here it is beside averages of 100 draws: right on average, but
# each with an error that the formula does not have.

# %%
rng = np.random.default_rng(2)
s_axis = np.linspace(0.1, 2, 200)
few = np.linspace(0.1, 2, 20)
figure, axis = plt.subplots(figsize=(5.2, 3))
for i, m in enumerate((0.0, 1.0)):
    formula = -0.5 * (1 + np.log(s_axis**2) - m**2 - s_axis**2)
    draws = rng.normal(m, few, (100, 20))
    log_ratio = stats.norm(m, few).logpdf(draws) - stats.norm(0, 1).logpdf(draws)
    axis.plot(s_axis, formula, ("-", "--")[i], color=COLORS[i], label=f"formula, m = {m:.0f}")
    averages = log_ratio.mean(axis=0)
    label = f"means of 100 draws, m = {m:.0f}"
    axis.plot(few, averages, MARKERS[i], color=COLORS[i], markersize=4, label=label)
axis.set(xlabel="standard deviation s of q", ylabel="KL(Normal(m, s) || Normal(0, 1))")
axis.legend()
plt.show()
print(f"KL(Normal(0, 0.2) || Normal(0, 1)) = {kl_normal(0, 0.2, 0, 1):.3f} nats, but the other")
print(f"way round, KL(Normal(0, 1) || Normal(0, 0.2)) = {kl_normal(0, 1, 0, 0.2):.3f}")

# %% [markdown]
# The last two lines: a divergence is no distance, it matters which of the two is drawn from. In the
# ELBO it is $q$, the one we *can* draw from.

# %% [markdown]
# ## 5. A gradient through a random draw
#
# In a *variational autoencoder* (VAE) encoder and decoder are networks. The one gives $q(z \mid
# x)$, the other $p(x \mid z)$. Then $E_q[\log p(x \mid z)]$ has no formula. We draw $z$ from $q$,
# and want the derivative with respect to the *mean* of $q$. But a number that came out of a
# generator does not remember the mean it was drawn with:

# %%
mu = Tensor(np.array(0.0), requires_grad=True)
rng = np.random.default_rng(3)


def f(z):
    """Stands for log p(x | z): best at z = 2."""
    return -0.5 * (z - 2.0) ** 2


z = Tensor(np.array(rng.normal(mu.data, 0.5)))  # a draw: only the number comes out
try:
    f(z).backward()
except RuntimeError as error:
    print("drawn by the generator:", error)

eps = rng.normal()
z = mu + 0.5 * eps  # the same distribution, and z remembers mu
f(z).backward()
print(f"drawn as mu + 0.5 * eps: derivative {mu.grad:.3f} from one draw")
slopes = 2.0 - 0.5 * rng.normal(size=10_000)  # f'(z) = 2 - z, of many such draws
print(f"of 10,000 draws: mean {slopes.mean():.2f}, one draw scatters by {slopes.std():.2f}")

# %% [markdown]
# That is the **reparameterisation trick**: draw $\varepsilon \sim \text{Normal}(0, 1)$, which
# depends on nothing, and *compute* $z = \mu + \sigma\,\varepsilon$. The derivative of $f$ itself is
# then used. (Exactly, $E_q[f'(z)] = E_q[2 - z] = 2 - \mu = 2$. One draw may be far from it, but is
# right on average, and training takes many.)
#
# It is not the only way. In $E_q[f(z)] = \int q(z)\,f(z)\,dz$ only $q$ depends on $\mu$, and
# $\partial q / \partial\mu = q\; \partial \log q / \partial\mu$. So one can use the derivative of
# the *log density* instead, the **score function**:
#
# $$\frac{\partial}{\partial\mu} E_q[f(z)] = \int \frac{\partial q}{\partial\mu}\,f\,dz =
# E_q\Big[f(z)\,\frac{\partial \log q(z)}{\partial\mu}\Big] = E_q\Big[f(z)\,\frac{z -
# \mu}{\sigma^2}\Big].$$
#
# It needs only the value of $f$, not its derivative. Both are right on average. For our $f$, summed
# over $d$ dimensions, the exact derivative with respect to the first mean, at $\mu = 0$, is 2.


# %%
def two_estimates(n_dims, n_draws):
    """Estimates of the derivative from one draw each: (n_draws,) by score, and by reparam."""
    rng = np.random.default_rng(4)
    mu = Tensor(np.zeros((n_draws, n_dims)), requires_grad=True)  # one row for each draw
    z = mu + 0.5 * rng.standard_normal((n_draws, n_dims))
    (by_reparameterisation,) = grad(np.sum(f(z)), mu)
    value = np.sum(f(z.data), axis=1)
    by_score = value * (z.data[:, 0] - 0.0) / 0.5**2
    return by_score, by_reparameterisation[:, 0]


n_draws = 1000 if QUICK else 20_000
dims = (1, 3, 10, 30, 100)
variances = []
print("means of all draws, with their standard errors, and variances of single draws:")
print(f"{'dimensions':>10}{'by score':>16}{'variance':>11}", end="")
print(f"{'reparameterised':>20}{'variance':>10}")
for n_dims in dims:
    pair = two_estimates(n_dims, n_draws)
    variances.append([estimate.var() for estimate in pair])
    score, reparam = pair
    errors = [estimate.std() / np.sqrt(n_draws) for estimate in pair]
    print(f"{n_dims:>10}{score.mean():>8.2f} ± {errors[0]:>5.2f}{score.var():>11.1f}", end="")
    print(f"{reparam.mean():>12.3f} ± {errors[1]:.3f}{reparam.var():>10.3f}")

# %%
score, reparam = two_estimates(1, n_draws)
bins = np.linspace(-4, 14, 90)
beyond = np.mean((score < bins[0]) | (score > bins[-1]))
print(f"not in the picture on the left: {beyond:.1%} of the score function's estimates,", end=" ")
print(f"which go from {score.min():.0f} to {score.max():.0f}")
figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 3))
left.hist(score, bins, density=True, color=COLORS[1], label="score function")
left.hist(reparam, bins, density=True, color=COLORS[0], alpha=0.8, label="reparameterised")
left.axvline(2, color="black", linewidth=1, linestyle=":", label="exact")
left.set(xlabel="estimate from one draw, d = 1", ylabel="density")
left.legend(fontsize=8)
for i, name in ((0, "score function"), (1, "reparameterised")):
    right.plot(dims, np.array(variances)[:, i], "os"[i] + "--"[i:], color=COLORS[1 - i], label=name)
right.set(xscale="log", yscale="log", xlabel="dimensions d of z", ylabel="variance")
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# The averages agree with 2 within two standard errors, but the variances do not agree at all. The
# score function multiplies by the *whole* value of $f$, to which every dimension adds; its noise
# grows with each. The reparameterised derivative looks at its own dimension only. This is why a
# VAE can be trained with a single draw per cell and step.
#
# The functions of this lesson, for all distributions that the models here use, are in
# `minigrad/distributions.py`: `Normal.rsample` is the trick, `kl_divergence` the closed form.

# %% [markdown]
# ## Your turn
#
# Put it together: the ELBO as a VAE computes it, from *one* draw. Given are cells `x` (n,), the
# model's `w` and `sigma`, the encoder's answer for each cell, `mean` (n,) and `std` (n,), and noise
# `eps` (n,). Return for each cell
#
# $$\log p(x \mid z) - \text{KL}\big(q \,\|\, \text{Normal}(0, 1)\big), \qquad
# z = \text{mean} + \text{std}\cdot\text{eps},$$
#
# with $\log p(x \mid z) = -\frac{(x - w z)^2}{2 \sigma^2} - \frac{1}{2}\log(2 \pi \sigma^2)$. Use
# NumPy's functions only, so that it takes Tensors. The cell after it is the check, which need not
# be read.


# %%
def elbo_of_one_draw(x, w, sigma, mean, std, eps):
    """An estimate of the ELBO of each x (n,) from one draw of z: (n,), in nats."""
    ...  # your turn


# %%
def check(answer):
    """What is wrong with an answer, in a sentence."""
    rng = np.random.default_rng(5)
    x, mean, eps = rng.normal(size=(3, 50))
    std = rng.uniform(0.2, 2, 50)
    kl = -0.5 * (1 + np.log(std**2) - mean**2 - std**2)

    def log_p(z):
        return stats.norm(0.9 * z, 1.3).logpdf(x)

    found = answer(x, 0.9, 1.3, mean, std, eps)
    if found is None:
        return "not yet: elbo_of_one_draw returns nothing so far (in the end, mind its `return`)."
    if np.shape(found) != (50,):
        return f"For 50 cells the result must have shape (50,), one number each: {np.shape(found)}."
    right = log_p(mean + std * eps) - kl
    mistakes = {
        "The KL is a cost: subtract it.": right + 2 * kl,
        "That is minus the ELBO, a loss: turn the sign.": -right,
        "Each cell has a KL of its own: do not sum it over the cells.": right + kl - np.sum(kl),
        "log p(x | z) needs the one z that was drawn; yours is averaged over q.": log_p(mean)
        - (0.9 * std) ** 2 / (2 * 1.3**2)
        - kl,
        "The KL is missing.": right + kl,
        "z must be mean + std * eps; yours has the variance in the place of std.": log_p(
            mean + std**2 * eps
        )
        - kl,
        "z must be mean + std * eps; yours has no std.": log_p(mean + eps) - kl,
        "z must be drawn: yours is the mean of q, without eps.": log_p(mean) - kl,
        "The KL has the log of the *variance*, log(std**2); yours has log(std).": right
        - 0.5 * np.log(std),
    }
    for sentence, value in mistakes.items():
        if np.allclose(found, value):
            return sentence
    if np.std(found - right) < 1e-9 < abs(np.mean(found - right)):
        return "All values are off by the same number: the constant of log p(x | z) is not right."
    if not np.allclose(found, right):
        terms = f"log p(x | z) {right[0] + kl[0]:.4f} less a KL of {kl[0]:.4f}"
        return f"The first cell has ELBO {right[0]:.4f} ({terms}), and yours is {found[0]:.4f}."
    q = [Tensor(mean, requires_grad=True), Tensor(std, requires_grad=True)]
    try:
        of_tensors = answer(x, 0.9, 1.3, *q, eps)
    except TypeError as error:
        return f"It cannot be differentiated, use NumPy's functions only: {error}"
    if not isinstance(of_tensors, Tensor):
        return "Given Tensors, the result must be a Tensor: use NumPy's functions only."
    in_z = 0.9 * (x - 0.9 * (mean + std * eps)) / 1.3**2  # the slope of log p(x | z) in z
    slopes = {"mean": in_z - mean, "std": in_z * eps - std + 1 / std}
    for (name, slope), found in zip(slopes.items(), grad(np.sum(of_tensors), q)):
        if not np.allclose(found, slope):
            return f"The value is right, but not its slope in {name}: all of it must be of Tensors."
    return "Right. Averaged over eps it is the exact ELBO, and its gradient the exact gradient."


print(check(elbo_of_one_draw))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def elbo_of_one_draw(x, w, sigma, mean, std, eps):
#     z = mean + std * eps
#     log_p = -((x - w * z) ** 2) / (2 * sigma**2) - 0.5 * np.log(2 * np.pi * sigma**2)
#     kl = -0.5 * (1 + np.log(std**2) - mean**2 - std**2)
#     return log_p - kl
# ```
#
# </details>

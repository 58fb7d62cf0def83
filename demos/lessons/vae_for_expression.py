# %% [markdown]
# # The VAE for gene expression
#
# **You will learn** to write a variational autoencoder in thirty lines, to train it on real cells,
# and to use it for what an autoencoder cannot do: draw new cells, and say how probable a cell is.
# Then you replace its normal decoder by one that is made for counts.
#
# **Time:** about 55 minutes. The notebook runs in about half a minute.
#
# **Know before:** the lesson `autoencoders` (encoder, code, decoder) and the lesson `bound` (the
# ELBO, its KL term, the reparameterisation trick).
#
# Goes with these sections of the chapter (block 5 of MCB128, Spring 2026): "The VAE decoder is a
# generative model", "VAE Pytorch code", "Connexion between Autoencoders and VAE?".

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from scipy import special, stats

from demos.show import COLORS, DATA, MARKERS, legend, scatter
from minigrad import Tensor, grad
from minigrad.functional import log_softmax
from minigrad.nn import Linear, Module, Parameter
from minigrad.optim import Adam
from models.counts import log1p, normalize, read

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: train a little only
plt.rcParams.update({"figure.figsize": (6.2, 3), "figure.dpi": 90, "font.size": 9})
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})

# %% [markdown]
# ## 1. The cells
#
# 3,005 cells of mouse cortex (Zeisel et al. 2015), 558 genes, which have only numbers in this file.
# As in the chapter, the input is normalised (each cell scaled to the same total) and
# log-transformed. A fifth of the cells is held out: the model is judged on cells that it was not
# trained on.

# %%
data = read(DATA / "cortex.npz")
order = np.random.default_rng(0).permutation(len(data))
if QUICK:
    order = order[:500]
counts = data.X[order].toarray()
cell_type = data.obs["labels"][order]
expression = log1p(normalize(counts))
n_test = len(order) // 5
test = expression[:n_test]
train = expression[n_test:]
n_genes = expression.shape[1]
print(f"{len(train)} cells to train on, {len(test)} held out, {n_genes} genes")
print(f"variance of a gene, averaged over genes: {train.var(axis=0).mean():.3f}")
print(f"entries that are zero: {np.mean(counts == 0):.0%}")

# %% [markdown]
# ## 2. The model in thirty lines
#
# The model says how a cell arises, in two steps (the chapter's Figures 9 and 10):
#
# $$z \sim \text{Normal}(0, I) \quad \text{(10 numbers)}, \qquad
# x \mid z \sim \text{Normal}(\mu(z), \sigma) \quad \text{(558 numbers)},$$
#
# where $\mu$ is a network, the decoder, and $\sigma$ is *fixed*, here 1. The encoder answers with
# the mean and standard deviation of $q(z \mid x)$. Both are trained to raise the ELBO, from one
# draw of $z$ for each cell,
#
# $$\log p(x \mid z) - \text{KL}\big(q(z \mid x) \,\|\, \text{Normal}(0, I)\big), \qquad z =
# \text{mean} + \text{std} \cdot \varepsilon.$$
#
# `Linear` is a layer, `x @ weight.T + bias`; `Module` finds the weights of all layers; `Adam`
# changes them, given their gradients. All else is NumPy, on Tensors. `start` is what the decoder
# says before it has learnt anything, for instance the average cell: then it only has to learn how
# cells differ from that.


# %%
class VAE(Module):
    def __init__(self, start, n_hidden=128, n_latent=10, sigma=1.0):
        n_genes = len(start)
        rng = np.random.default_rng(0)  # of the first weights
        self.n_latent = n_latent
        self.sigma = sigma
        self.hidden = Linear(n_genes, n_hidden, rng=rng)
        self.mean = Linear(n_hidden, n_latent, rng=rng)
        self.log_var = Linear(n_hidden, n_latent, rng=rng)
        self.back = Linear(n_latent, n_hidden, rng=rng)
        self.out = Linear(n_hidden, n_genes, rng=rng)
        self.out.bias.data[:] = start

    def encode(self, x):
        h = np.maximum(self.hidden(x), 0)
        return self.mean(h), np.exp(0.5 * self.log_var(h))

    def decode(self, z):
        return self.out(np.maximum(self.back(z), 0))

    def log_p(self, x, z):
        error = (x - self.decode(z)) / self.sigma
        constant = 0.5 * np.log(2 * np.pi * self.sigma**2)
        return np.sum(-0.5 * error**2 - constant, axis=1)

    def terms(self, x, eps):
        mean, std = self.encode(x)
        z = mean + std * eps
        kl = -0.5 * np.sum(1 + np.log(std**2) - mean**2 - std**2, axis=1)
        return self.log_p(x, z), kl


# %% [markdown]
# And the training: all cells in random order, 128 at a time (a *minibatch*), again and again. The
# steps become smaller towards the end, so that the weights come to rest.


# %%
def noise(rng, model, x):
    """A standard normal number for each cell and latent dimension: (n, n_latent)."""
    return rng.standard_normal((len(x), model.n_latent), dtype=np.float32)


def fit(model, x, held_out, epochs, learning_rate=3e-3):
    """Raise the ELBO of cells x; returns the two terms for the cells held out, for each epoch."""
    optimizer = Adam(model.parameters())
    rng = np.random.default_rng(1)
    history = []
    for epoch in range(epochs):
        optimizer.learning_rate = learning_rate * (1 - epoch / epochs)
        order = rng.permutation(len(x))
        for start in range(0, len(x), 128):
            batch = x[order[start : start + 128]]
            log_p, kl = model.terms(batch, noise(rng, model, batch))
            optimizer.zero_grad()
            loss = -np.mean(log_p - kl)
            loss.backward()
            optimizer.step()
        log_p, kl = model.terms(held_out, noise(rng, model, held_out))
        history.append((log_p.data.mean(), kl.data.mean()))
    return np.array(history)


epochs = 2 if QUICK else 60
average_cell = train.mean(axis=0)
model = VAE(average_cell, sigma=1.0)
history = fit(model, train, test, epochs)
log_p, kl = history[-1]
print(f"cells held out: ELBO {log_p - kl:.1f} nats a cell = {log_p:.1f} - KL {kl:.1f}")

# %% [markdown]
# The same in PyTorch, to be read beside the class above (it is not run here). `np` becomes `torch`,
# `axis` becomes `dim`, and a `Tensor` is a `Tensor` in both. In the loop, too, `np.mean` becomes
# `torch.mean`. The rows of a minibatch and the noise go through `torch.as_tensor` first; the
# learning rate is `optimizer.param_groups[0]["lr"]` there; and the values for the cells held out
# are `log_p.detach().numpy()`.
#
# ```python
# import math
# import torch
# from torch.nn import Linear, Module
#
#
# class VAE(Module):
#     def __init__(self, start, n_hidden=128, n_latent=10, sigma=1.0):
#         super().__init__()
#         n_genes = len(start)
#         self.n_latent = n_latent
#         self.sigma = sigma
#         self.hidden = Linear(n_genes, n_hidden)
#         self.mean = Linear(n_hidden, n_latent)
#         self.log_var = Linear(n_hidden, n_latent)
#         self.back = Linear(n_latent, n_hidden)
#         self.out = Linear(n_hidden, n_genes)
#         self.out.bias.data[:] = torch.as_tensor(start)
#
#     def encode(self, x):
#         h = torch.relu(self.hidden(x))
#         return self.mean(h), torch.exp(0.5 * self.log_var(h))
#
#     def decode(self, z):
#         return self.out(torch.relu(self.back(z)))
#
#     def log_p(self, x, z):
#         error = (x - self.decode(z)) / self.sigma
#         constant = 0.5 * math.log(2 * math.pi * self.sigma**2)
#         return torch.sum(-0.5 * error**2 - constant, dim=1)
#
#     def terms(self, x, eps):
#         mean, std = self.encode(x)
#         z = mean + std * eps
#         kl = -0.5 * torch.sum(1 + torch.log(std**2) - mean**2 - std**2, dim=1)
#         return self.log_p(x, z), kl
# ```

# %% [markdown]
# What did it learn? On the left the two terms of the ELBO during training: the model *pays* KL,
# that is, lets $z$ say something about the cell, for as long as this explains the cell better. On
# the right the means of $q(z \mid x)$ of all cells, 10 numbers each, seen by PCA.


# %%
def plane(z):
    """Rows z (n, d) in the plane of their first two principal components: (n, 2)."""
    z = z - z.mean(axis=0)
    return z @ np.linalg.svd(z, full_matrices=False)[2][:2].T


mean, std = model.encode(expression)
figure, axes = plt.subplots(1, 3, figsize=(8.2, 2.9), width_ratios=[1, 1, 1.3])
for i, (axis, name) in enumerate(zip(axes, ("log p(x | z)", "KL(q || prior)"))):
    axis.plot(np.arange(1, epochs + 1), history[:, i], color=COLORS[i])
    axis.set(xlabel="epoch", ylabel=f"{name} (nats a cell)")
drawn = scatter(axes[2], plane(mean.data)[:900], cell_type[:900], size=6)
axes[2].set(xlabel="PC 1 of z", ylabel="PC 2 of z")
legend(axes[2], drawn, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
plt.show()

# %% [markdown]
# ## 3. What it means to fix $\sigma$
#
# With $\sigma = 1$ the first term is $-\frac{1}{2}\lVert x - \mu(z) \rVert^2$ and a constant: half
# a squared error, as the chapter says. But $\sigma$ is a statement about cells: by how much the
# expression of a gene scatters around what $z$ says. And it is the exchange rate between the two
# terms. A small $\sigma$ makes errors expensive, so the model buys more $z$.

# %%
sigmas = (0.6, 1.0) if QUICK else (0.4, 0.5, 0.6, 0.7, 1.0, 1.4)
found = {}
for sigma in sigmas:
    candidate = VAE(average_cell, sigma=sigma)
    log_p, kl = fit(candidate, train, test, epochs)[-1]
    error = np.mean((candidate.decode(candidate.encode(test)[0]).data - test) ** 2)
    found[sigma] = (candidate, log_p - kl, kl)
    print(f"sigma {sigma}: ELBO {log_p - kl:>8.1f}, KL {kl:>5.1f}", end=", ")
    print(f"root mean squared error {np.sqrt(error):.3f}")
best_sigma = max(found, key=lambda sigma: found[sigma][1])
best = found[best_sigma][0]
print(f"highest ELBO on cells held out: sigma = {best_sigma}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(6.2, 2.7))
left.plot(sigmas, [found[s][1] for s in sigmas], "o-", color=COLORS[0])
left.set(xlabel="sigma", ylabel="ELBO (nats a cell)")
right.plot(sigmas, [found[s][2] for s in sigmas], "s-", color=COLORS[1])
right.set(xlabel="sigma", ylabel="KL (nats a cell)", ylim=(0, None))
plt.show()

# %% [markdown]
# By squared error the smallest $\sigma$ would be the best: the more $z$ says, the smaller the
# error. The ELBO of new cells, a bound on their probability, falls where $\sigma$ claims less
# scatter than there is, and where it claims more. It is highest where $\sigma$ is about as large as
# the error that remains.
#
# And what did the KL buy? From the largest $\sigma$ to the smallest the model pays three times as
# much, and the error hardly falls: the additional nats buy little detail, which is worth its price
# only where $\sigma$ says that errors are so expensive.

# %% [markdown]
# ## 4. Sampling: new cells
#
# An autoencoder says where the codes of *given* cells lie. A VAE *assumes* that codes lie as
# $\text{Normal}(0, I)$, the prior, and so it can make new cells: draw $z$ from the prior, decode,
# and add the noise of $p(x \mid z)$. Without that last step one gets averages of cells, not cells.
# The draws are as good as the assumption: look for what is wrong with them in the next two cells.
# For comparison, each cell's own $z$, drawn from its $q(z \mid x)$, is decoded as well.

# %%
rng = np.random.default_rng(2)
z = rng.standard_normal((len(train), 10), dtype=np.float32)
averages = best.decode(z).data
new = averages + best.sigma * rng.standard_normal(averages.shape, dtype=np.float32)

own_mean, own_std = (part.data for part in best.encode(train))
of_own_z = best.decode(rng.normal(own_mean, own_std).astype(np.float32)).data
of_own_z = of_own_z + best.sigma * rng.standard_normal(averages.shape, dtype=np.float32)

print("standard deviation of a gene, averaged over genes:")
print(f"  cells {train.std(axis=0).mean():.3f}, draws {new.std(axis=0).mean():.3f}", end=", ")
print(f"draws without the noise {averages.std(axis=0).mean():.3f}", end=", ")
print(f"draws with the cells' own z {of_own_z.std(axis=0).mean():.3f}")
agreement = np.corrcoef(train.mean(axis=0), new.mean(axis=0))[0, 1]
print(f"mean of each gene, cells against draws: correlation {agreement:.4f}")
print(f"entries below 0: cells {np.mean(train < 0):.0%}, draws {np.mean(new < 0):.0%}")

# %%
gene = int(np.argsort(train.var(axis=0))[-5])  # the fifth most variable: others would do
components = np.linalg.svd(train - average_cell, full_matrices=False)[2][:2].T
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
for i, (name, rows) in enumerate({"cells": train, "draws from the VAE": new}.items()):
    points = (rows[:500] - average_cell) @ components
    color = ("#999999", COLORS[0])[i]
    left.plot(*points.T, MARKERS[i], color=color, markersize=2.5, alpha=0.7, label=name)
    bins = np.linspace(-2, 6, 50)
    style = ({"alpha": 0.6}, {"histtype": "step", "linewidth": 1.6})[i]
    right.hist(rows[:, gene], bins, density=True, color=color, label=name, **style)
left.set(xlabel="PC 1 of the cells", ylabel="PC 2 of the cells", xticks=[], yticks=[])
right.set(xlabel=f"log expression of {data.genes[gene]}", ylabel="density")
left.legend(fontsize=8, frameon=True, loc="lower left", markerscale=1.5)
right.legend(fontsize=8)
plt.show()

of_cells, of_draws = ((rows - average_cell) @ components[:, 0] for rows in (train, new))
first, last = np.quantile(of_cells, [0.25, 0.75])
print("on PC 1   left arm    between  right arm")
for name, pc in {"cells": of_cells, "draws": of_draws}.items():
    shares = np.bincount(np.digitize(pc, [first, last]), minlength=3) / len(pc)
    print(f"{name:<7}" + "".join(f"{share:>11.0%}" for share in shares))
print(f"standard deviation of PC 1: cells {of_cells.std():.1f}, draws {of_draws.std():.1f}")

# %% [markdown]
# The prior is one round cloud, and the codes of cells are not: cells come in groups. So most draws
# lie *between* the groups, where there are few cells, and few reach the ends of the picture; the
# left arm, full of cells (the neurons), is nearly bare. (The arms in the table are the quarter of
# the cells that lies farthest out on each side.) That is also why genes vary less among draws than
# among cells, as printed above the picture: what makes genes differ most is the kind of cell, and
# the draws are mixtures of kinds. With the cells' own $z$ they vary as they should: not the decoder
# is at fault, but the assumption about $z$.
#
# Seen gene by gene (right) the draws do not look like cells either. Expression is never negative
# and often exactly 0, and a normal distribution knows nothing of that. Section 6 comes back to it.

# %% [markdown]
# ## 5. Density: how probable is a cell?
#
# $p(x)$ is an integral over $z$, and the ELBO is a bound of its logarithm. The bound can be made
# tighter with more draws. Draw $z_1, \dots, z_K$ from $q(z \mid x)$ and average the *weights*
#
# $$p(x) \approx \frac{1}{K} \sum_k \frac{p(x \mid z_k)\,p(z_k)}{q(z_k \mid x)}.$$
#
# With $K = 1$ the logarithm of this is one draw of the ELBO. With many it approaches $\log p(x)$:
# draws that $q$ proposes too often get a small weight (importance weighting; Burda et al. 2016).


# %%
def log_density(model, x, n_draws, rng):
    """log p(x) of each cell (n,), in nats, from n_draws importance weights each."""
    mean, std = (np.asarray(part.data, np.float64) for part in model.encode(x))
    log_weights = []
    for _ in range(n_draws):
        z = rng.normal(mean, std, (len(x), model.n_latent)).astype(np.float32)
        log_ratio = stats.norm(0, 1).logpdf(z) - stats.norm(mean, std).logpdf(z)
        log_weights.append(model.log_p(x, z).data + np.sum(log_ratio, axis=1))
    # The log of their mean. The weights themselves, e to the minus some hundred, would be rounded
    # to 0; logsumexp is the log of a sum of exps, and takes the largest out before any exp.
    return special.logsumexp(log_weights, axis=0) - np.log(n_draws)


# %% [markdown]
# Is it right? There is one VAE of which $p(x)$ is known: that with *linear* layers, where the
# decoder is $\mu(z) = W z + b$. A linear function of a normal $z$, plus normal noise, is normal:
#
# $$p(x) = \text{Normal}\big(b,\; W W^\top + \sigma^2 I\big).$$
#
# This model is called probabilistic PCA (Tipping & Bishop 1999), and its best $W$ is known as well:
# the principal components, each scaled by $\sqrt{\lambda - \sigma^2}$, with $\lambda$ its variance.


# %%
class LinearVAE(VAE):
    def __init__(self, start, n_latent=10, sigma=1.0):
        n_genes = len(start)
        rng = np.random.default_rng(0)
        self.n_latent = n_latent
        self.sigma = sigma
        self.mean = Linear(n_genes, n_latent, rng=rng)
        self.log_var = Parameter(np.zeros(n_latent, np.float32))  # the same for all cells
        self.out = Linear(n_latent, n_genes, rng=rng)
        self.out.bias.data[:] = start

    def encode(self, x):
        return self.mean(x), np.exp(0.5 * self.log_var)

    def decode(self, z):
        return self.out(z)


def exact_log_density(x, W, b, sigma):
    """log p(x) of each row where x = W z + b + noise: (n,)."""
    covariance = W @ W.T + sigma**2 * np.eye(len(W))
    return stats.multivariate_normal(b, covariance).logpdf(x)


linear = LinearVAE(average_cell, sigma=best_sigma)
log_p, kl = fit(linear, train, test, 2 * epochs, learning_rate=0.01)[-1]
W = linear.out.weight.data.astype(np.float64)
b = linear.out.bias.data.astype(np.float64)
exact = exact_log_density(test, W, b, best_sigma).mean()

variances, vectors = np.linalg.eigh(np.cov(train.T.astype(np.float64)))
best_W = vectors[:, -10:] * np.sqrt(np.maximum(variances[-10:] - best_sigma**2, 0))
by_pca = exact_log_density(test, best_W, average_cell, best_sigma).mean()
print(f"linear VAE, cells held out: ELBO {log_p - kl:.2f}, log p(x) exactly {exact:.2f}")
print(f"probabilistic PCA from eigenvalues: {by_pca:.2f}", end=", ")
print(f"so Adam stopped {by_pca - exact:.1f} nats short of the best W")

# %%
some = test[:100]
n_draws = (1, 10) if QUICK else (1, 3, 10, 30, 100, 300, 1000)
curves = {}
for name, which in {"linear": linear, "network": best}.items():
    rng = np.random.default_rng(3)
    curves[name] = [log_density(which, some, k, rng).mean() for k in n_draws]
exact = exact_log_density(some, W, b, best_sigma).mean()
print(f"100 cells: {curves['linear'][-1]:.3f} from {n_draws[-1]} draws, exactly {exact:.3f}")
print("(higher than above, for all cells held out: these happen to be easier)")
print(f"the network's VAE: {curves['network'][0]:.2f} from 1 draw (ELBO)", end=", ")
print(f"{curves['network'][-1]:.2f} from {n_draws[-1]}")

figure, axis = plt.subplots(figsize=(5.4, 3))
for i, (name, curve) in enumerate(curves.items()):
    label = f"{name} decoder, importance weighted"
    axis.plot(n_draws, curve, MARKERS[i] + "-", color=COLORS[i], label=label)
axis.axhline(exact, color="black", linestyle=":", linewidth=1, label="linear decoder, exact")
axis.set(xscale="log", xlabel="draws for each cell, K", ylabel="log p(x) (nats, mean)")
axis.legend()
plt.show()

# %% [markdown]
# For the linear decoder the weights come within 0.2 nats of the exact value, which is a reason to
# trust them for the network, where there is none to compare with. And now the two *models* can be
# compared, on the same new cells and with the same $\sigma$; one nat more in $\log p(x)$ means that
# the density at a cell is $e$ times as high. The network's curve, a lower bound, begins above the
# exact line of the linear decoder, by more than Adam left to be gained there: with ten numbers a
# cell as well, curves describe new cells better than planes.

# %% [markdown]
# ## 6. A decoder for counts
#
# Only $p(x \mid z)$ has to change for another kind of data. Take the counts themselves: a cell is a
# bag of molecules, and each belongs to some gene. The chapter's Figure 10 has a *categorical*
# decoder: the network's 558 outputs $f(z)$ become the probabilities of the genes, positive and with
# the sum 1, by the *softmax* $\rho_g = e^{f_g} / \sum_k e^{f_k}$, and
#
# $$\log p(x \mid z) = \sum_g x_g \log \rho_g,$$
#
# summed over genes, each as often as its molecules were counted. (For the number of *orders* in
# which molecules may come one would add a number that depends on $x$ alone; it changes no
# gradient.) Two methods
# differ, all else is inherited. The library size, how many molecules were caught, is no longer
# normalised away, it is simply the number of terms.


# %%
class CategoricalVAE(VAE):
    def encode(self, x):
        return super().encode(np.log1p(x))  # counts reach from 0 to hundreds

    def log_p(self, x, z):
        return np.sum(x * log_softmax(self.decode(z)), axis=1)


train_counts = counts[n_test:]
total = train_counts.sum(axis=0) + 1  # of each gene; the 1 for a gene without any
categorical = CategoricalVAE(np.log(total / total.sum()))
log_p, kl = fit(categorical, train_counts, counts[:n_test], epochs)[-1]
print(f"cells held out: ELBO {log_p - kl:.1f} nats a cell = {log_p:.1f} - KL {kl:.1f}")

# %% [markdown]
# The ELBO is not to be compared with those above: one is the density of real numbers, the other the
# probability of counts. The KL is in nats in both, and is larger than any in section 3. That does
# not show that counts say more about a cell: there too it was larger where errors cost more. Here
# every one of thousands of molecules counts as a witness of its own, and this decoder trusts each
# too much, as the draws will show.
#
# Now draw counts. The molecules of a cell, as many as a real cell has, are dealt out to the genes
# with the probabilities $\rho$. We do it twice: with $z$ from the prior, for new cells, and with
# each real cell's own $z$, from its $q(z \mid x)$. The second asks only whether $p(x \mid z)$ is
# right.


# %%
def draw_counts(model, z, library, rng):
    """Counts (n, n_genes) of cells with codes z and library molecules each (n,)."""
    f = model.decode(z.astype(np.float32)).data
    rho = special.softmax(f.astype(np.float64), axis=1)
    return rng.multinomial(library, rho)


rng = np.random.default_rng(4)
library = train_counts.sum(axis=1).astype(int)
mean, std = (part.data for part in categorical.encode(train_counts))
drawn_counts = {
    "z from the prior": draw_counts(categorical, rng.standard_normal(mean.shape), library, rng),
    "the cell's own z": draw_counts(categorical, rng.normal(mean, std), library, rng),
}
print(f"zeros among the counts of cells: {np.mean(train_counts == 0):.1%}")
for name, rows in drawn_counts.items():
    print(f"zeros among draws, {name}: {np.mean(rows == 0):.1%}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3))
left.plot([0, 0.7], [0, 0.7], color="#888888", linewidth=1)
bins = np.arange(-0.5, 41)
right.hist(train_counts[:, gene], bins, density=True, color="#999999", alpha=0.6, label="cells")
for i, (name, rows) in enumerate(drawn_counts.items()):
    zeros = np.mean(train_counts == 0, axis=0), np.mean(rows == 0, axis=0)
    color = (COLORS[0], COLORS[5])[i]
    fill = (color, "none")[i]  # squares are open, so that they hide no dots
    left.plot(*zeros, MARKERS[i], color=color, markerfacecolor=fill, markersize=2.8, label=name)
    style = {"histtype": "step", "linewidth": 1.5, "color": color, "linestyle": ("-", "--")[i]}
    right.hist(rows[:, gene], bins, density=True, label=name, **style)
left.set(xlabel="fraction of zeros of a gene, cells", ylabel="the same, draws")
left.legend(fontsize=8, markerscale=1.5)
right.set(xlabel=f"count of {data.genes[gene]}", ylabel="fraction of cells", yscale="log")
right.legend(fontsize=8)
plt.show()

too_few = np.mean(train_counts == 0, axis=0) - np.mean(rows == 0, axis=0)  # rows: with own z
odd = int(np.argmax(too_few))
types = cell_type[n_test:]
by_type = [np.mean(train_counts[types == name, odd] == 0) for name in set(types)]
print(f"{data.genes[odd]} is zero in {np.mean(train_counts[:, odd] == 0):.0%} of the cells", end="")
print(f" (of a type, {min(by_type):.0%} to {max(by_type):.0%}),", end=" ")
print(f"and in {np.mean(rows[:, odd] == 0):.0%} of their draws")

# %% [markdown]
# Counts that are whole, never negative and often 0: what the normal decoder could not do comes by
# itself. But not often enough. Even with each cell's own $z$ the draws have fewer zeros than the
# cells (squares below the line): real counts scatter more than dealing out molecules does. With $z$
# from the prior there are fewer still. As in section 4, many of those codes lie between the kinds
# of cells, and what they decode to is a mixture, in which most genes are expressed a little.
#
# The lone square at the bottom is the gene of the printed line. About half the cells of *every*
# type lack it, as they would a gene that only one sex uses. The code, ten numbers for all in which
# cells differ, has spent none on it, and so each cell is dealt the average.
#
# That counts scatter more has a remedy, a distribution with one more number for the scatter: the
# negative binomial, which scVI takes. That is the next lesson (`scvi_simplified`). The VAE of this
# lesson with all its decoders, and a $\sigma$ that is learned, is `models/vae.py`.

# %% [markdown]
# ## Your turn
#
# A third decoder. Sometimes one trusts only whether a gene was *detected*: $x_g$ is 1 or 0. Then
# the network's output $f_g$ is the log odds of a 1 (a Bernoulli decoder), with probability
# $p_g = 1 / (1 + e^{-f_g})$, and
#
# $$\log p(x \mid z) = \sum_g \big[x_g \log p_g + (1 - x_g) \log(1 - p_g)\big].$$
#
# Write it as a function of `x` and the log odds `f`, both (n, D), that returns (n,). It must not
# overflow where `f` is 1,000 or -1,000. Hint: write $\log p_g$ and $\log(1 - p_g)$ with $f_g$ and
# $\log(1 + e^{f_g})$; and `np.logaddexp(a, b)` is $\log(e^a + e^b)$ without overflow. If it is
# right, the cell after it trains a VAE with it. (That cell is the check, and need not be read.)


# %%
def bernoulli_log_p(x, f):
    """log p(x | z) of each row of x (n, D), zeros and ones, given log odds f (n, D): (n,)."""
    ...  # your turn


# %%
class DetectionVAE(VAE):
    def log_p(self, x, z):
        return bernoulli_log_p(x, self.decode(z))


def check(answer):
    """What is wrong with an answer, in a sentence."""
    rng = np.random.default_rng(5)
    f = rng.normal(0, 3, (6, 4))
    x = (rng.random((6, 4)) < 0.5).astype(float)
    right = np.sum(stats.bernoulli(special.expit(f)).logpmf(x), axis=1)
    found = answer(x, f)
    if found is None:
        return "not yet: bernoulli_log_p returns nothing so far (in the end, mind its `return`)."
    if np.shape(found) != (6,):
        return f"For 6 rows the result must have shape (6,), not {np.shape(found)}: sum over genes."
    if np.allclose(found, -right):
        return "The sign: a log-probability is negative, and the training raises it."
    if np.allclose(found, np.sum(x * special.log_expit(f), axis=1)):
        return "Zeros count too: a gene that was not detected adds log(1 - p)."
    if np.max(found) > 0:
        return f"A log-probability cannot be positive: one of yours is {np.max(found):.4f}."
    if not np.allclose(found, right):
        return f"The first row has log-probability {right[0]:.4f}, and yours is {found[0]:.4f}."
    with np.errstate(all="ignore"):
        extreme = answer(np.array([[1.0, 0.0, 0.0]]), np.array([[1000.0, -1000.0, 1000.0]]))
    if not np.allclose(extreme, -1000):
        return f"With log odds of 1,000 it must give -1000, and yours gives {extreme[0]}."
    odds = Tensor(f, requires_grad=True)
    try:
        (slope,) = grad(np.sum(answer(x, odds)), odds)
    except (TypeError, AttributeError, RuntimeError) as error:
        return f"It cannot be differentiated, use NumPy's functions only: {error}"
    if not np.allclose(slope, x - special.expit(f)):
        return "The value is right, but its derivative is not x - p: are all parts Tensors?"
    return "Right."


print(check(bernoulli_log_p))
if check(bernoulli_log_p) == "Right.":
    detected = (counts > 0).astype(np.float32)
    frequency = detected[n_test:].mean(axis=0).clip(1e-3, 1 - 1e-3)
    start = special.logit(frequency)
    alone = bernoulli_log_p(detected[:n_test], start + 0 * detected[:n_test]).mean()
    log_p, kl = fit(DetectionVAE(start), detected[n_test:], detected[:n_test], epochs)[-1]
    print(f"Cells held out, by each gene's frequency alone: {alone:.1f} nats a cell.")
    print(f"With the VAE: {log_p - kl:.1f} at least, of which the KL took {kl:.1f}.")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def bernoulli_log_p(x, f):
#     return np.sum(x * f - np.logaddexp(0, f), axis=1)
# ```
#
# </details>

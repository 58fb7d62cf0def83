# %% [markdown]
# # scVI, simplified
#
# A blood sample goes through a sequencer, and what comes back is a table of counts: how many
# molecules of each gene were found in each cell. Which cells are of one kind? Which genes differ
# between two kinds? One model answers both, scVI. Here it is in its simple form, which the chapter
# draws in Figures 13 and 14 (section *scVI architecture*), written out in some 70 lines.
#
# **What you learn.** To read every line of scVI: encoder, decoder, softmax, negative binomial, and
# the loop that trains them. To find groups of cells in what it has learned, and to compare two
# groups gene by gene with a Bayes factor.
#
# **Minutes.** 50. The notebook runs in about half a minute.
#
# **What to know before.** The lessons `bound` (what an ELBO is, and a draw $z = \text{mean} +
# \text{std}\cdot\varepsilon$) and `vae_for_expression` (an encoder and a decoder, trained
# together). Of statistics: the Poisson distribution, mean and variance.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from scipy import stats
from scipy.special import gammaln

from demos.show import COLORS, DATA, legend, scatter
from demos.tsne import tsne
from minigrad import grad, no_grad
from minigrad.nn import BatchNorm1d, Linear, Parameter
from models import SCVI
from models.clustering import adjusted_rand_index, kmeans
from models.counts import log1p, normalize, read

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: train a little only
plt.rcParams.update({"figure.figsize": (6, 2.8), "figure.dpi": 90, "font.size": 9})
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})

# %% [markdown]
# ## 1. The counts
#
# 700 cells of human blood (from the 68,000 of Zheng et al. 2017), 765 genes. Each row of the table
# is a cell $n$, each column a gene $g$, and $x_{ng}$ is the number of its molecules that were
# counted (Figure 13). Zheng et al. have named the type of each cell, by the sorted cells that it is
# most like; the model will not see these names.

# %%
data = read(DATA / "pbmc68k.npz")
order = np.random.default_rng(0).permutation(len(data))  # so that any part is a random part
counts = data.X[order].toarray().astype(np.float32)
cell_type = data.obs["labels"][order]
genes = np.array(data.genes)
n_cells, n_genes = counts.shape
totals = counts.sum(axis=1)
print(f"{n_cells} cells, {n_genes} genes; {np.mean(counts == 0):.0%} of the table are zeros")
print(f"a cell has from {totals.min():.0f} to {totals.max():.0f} counts")
print("types:", ", ".join(np.unique(cell_type)))

# %%
figure, (left, right) = plt.subplots(1, 2)
often = np.sort(np.argsort(-counts.sum(axis=0))[:60])
picture = left.imshow(
    np.maximum(counts[:40, often], 0.5), aspect="auto", cmap="viridis", norm=LogNorm(0.5, 100)
)
figure.colorbar(picture, ax=left, label="count (0: darkest)")
left.set(xlabel="60 of the genes", ylabel="40 of the cells", title="the input")
right.hist(totals, bins=30, color=COLORS[0])
right.set(xlabel="all counts of a cell", ylabel="cells", title="library sizes")
plt.show()

# %% [markdown]
# Two things in these pictures are not about biology.
#
# **The library size.** Some cells have several times as many counts as others, mostly because more
# of their molecules happened to be caught. So the model says what *fraction* $\rho_{ng}$ of a
# cell's expression belongs to gene $g$, and multiplies it by the cell's total $l_n$. In scVI,
# simplified, $l_n$ is not learned: it is the total that was observed.
#
# **The noise of counting.** Two cells with the same $\rho$ and $l$ do not have the same counts. A
# Poisson distribution has as much variance as mean. Real counts have more. (A part of it, in the
# picture below, is cell types and library sizes, for it has all cells in it. $z$ and $l$ will
# account for those; what is left is for the parameter $\theta$ of the next section.)

# %%
mean = counts.mean(axis=0)
variance = counts.var(axis=0)
figure, axes = plt.subplots(figsize=(4.2, 3))
axes.loglog(mean, variance, ".", color=COLORS[0], markersize=4, label="a gene")
line = np.array([mean.min(), mean.max()])
axes.loglog(line, line, "--", color=COLORS[1], label="Poisson: variance = mean")
axes.set(xlabel="mean count", ylabel="variance")
axes.legend()
plt.show()
print(f"{np.mean(variance > 1.2 * mean):.0%} of the genes: variance more than 1.2 times the mean")

# %% [markdown]
# ## 2. The whole model
#
# $$z_n \sim \text{Normal}(0, I), \qquad \rho_n = \text{softmax}\big(\text{decoder}(z_n)\big),
# \qquad x_{ng} \sim \text{NB}(\text{mean } l_n\,\rho_{ng},\ \theta_g)$$
#
# ```
#             encoder                       decoder             times l
#   x (765) ----------> mean, std ---> z (10) -----> rho (765) ---------> mean of x (765)
#      |                         draw                                          |
#      +------- sum: l --------------------------------------> NB(x), theta <--+
# ```
#
# This is Figure 14 from left to right. The layers come first: those of the encoder, then those of
# the decoder. $\theta$ is not computed from anything: it is one number for each gene, trained like
# a weight. (We train its logarithm, so that $\theta$ is positive whatever the training does.)
#
# Two kinds of layer are used. `Linear(a, b)` maps `a` numbers to `b`, by a matrix and a bias.
# `BatchNorm1d` scales each of its inputs to mean 0 and variance 1 over the cells at hand; networks
# train much faster with it. (Its two settings are those of the scvi-tools package.) A `Parameter`
# is an array that is to be trained.

# %%
n_hidden = 128
n_latent = 10
rng = np.random.default_rng(0)

hidden = Linear(n_genes, n_hidden, rng=rng)
hidden_norm = BatchNorm1d(n_hidden, momentum=0.01, eps=1e-3)
z_mean = Linear(n_hidden, n_latent, rng=rng)
z_log_var = Linear(n_hidden, n_latent, rng=rng)

back = Linear(n_latent, n_hidden, rng=rng)
back_norm = BatchNorm1d(n_hidden, momentum=0.01, eps=1e-3)
to_rho = Linear(n_hidden, n_genes, rng=rng)

log_theta = Parameter(np.zeros(n_genes))

# %% [markdown]
# **Encoder** and **decoder**. `np.maximum(..., 0)` is the ReLU. The encoder is told $\log(1 + x)$,
# because counts of 1 and of 100 are too far apart for a network, and the small 0.0001 keeps the
# variance from becoming 0. The decoder ends in a softmax, $\rho_g = e^{s_g} / \sum_k e^{s_k}$:
# all fractions are positive and add up to 1. We need its logarithm. (The largest $s$ is taken out
# before `np.exp`, which would overflow for large numbers. That changes nothing else.)


# %%
def encode(x):
    """Mean and standard deviation of q(z | x), (n, n_latent) each."""
    h = np.maximum(hidden_norm(hidden(np.log(1 + x))), 0)
    variance = np.exp(z_log_var(h)) + 0.0001
    return z_mean(h), np.sqrt(variance)


def decode(z):
    """log rho, (n, n_genes)."""
    s = to_rho(np.maximum(back_norm(back(z)), 0))
    s = s - np.max(s, axis=1, keepdims=True)
    return s - np.log(np.sum(np.exp(s), axis=1, keepdims=True))


# %% [markdown]
# **The negative binomial.** It is what comes out if the mean of a Poisson distribution is itself
# drawn from a gamma distribution each time. Its variance is $\mu + \mu^2/\theta$: the smaller
# $\theta$, the more it scatters, and a very large $\theta$ gives the Poisson back.
#
# $$\text{NB}(x) = \frac{\Gamma(x + \theta)}{\Gamma(\theta)\,x!}
# \left(\frac{\theta}{\theta + \mu}\right)^{\theta} \left(\frac{\mu}{\theta + \mu}\right)^{x}$$
#
# The code is its logarithm, term by term; `gammaln` is $\log\Gamma$, and $x! = \Gamma(x + 1)$.
# `np.logaddexp(a, b)` is $\log(e^a + e^b)$. SciPy knows the same distribution under other names for
# its parameters, and so it can tell whether we copied the formula right.


# %%
def log_nb(x, log_mu, log_theta):
    """log of the probability of each count x."""
    theta = np.exp(log_theta)
    log_sum = np.logaddexp(log_theta, log_mu)  # log(theta + mu)
    log_ways = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1)
    return log_ways + theta * (log_theta - log_sum) + x * (log_mu - log_sum)


x = np.arange(50.0)
by_scipy = stats.nbinom.logpmf(x, 2.0, 2.0 / (2.0 + 4.0))  # theta = 2, mu = 4
difference = np.max(np.abs(log_nb(x, np.log(4.0), np.log(2.0)) - by_scipy))
print(f"largest difference from SciPy's: {difference:.0e}")

# %% [markdown]
# **The ELBO** of each cell, from one draw of $z$: how probable are its counts under the decoder's
# distributions, minus what the code costs, $\text{KL}(q(z \mid x)\,\|\,\text{Normal}(0, I))$. A
# sum over genes, because given $z$ the genes are independent.


# %%
def elbo(x, eps):
    """The ELBO of each of n cells, (n,), in nats. eps: standard normal noise (n, n_latent)."""
    mean, std = encode(x)
    z = mean + std * eps
    log_l = np.log(np.sum(x, axis=1, keepdims=True))  # the library size, observed
    log_mu = log_l + decode(z)
    log_p = np.sum(log_nb(x, log_mu, log_theta), axis=1)
    kl = 0.5 * np.sum(mean**2 + std**2 - 1 - 2 * np.log(std), axis=1)
    return log_p - kl


# %% [markdown]
# ## 3. Training
#
# The plain loop: take 128 cells, compute the loss (minus the mean ELBO), get its gradient in every
# weight, change the weights a little, repeat. How large a little is, the rule called Adam decides
# for each weight by itself. It keeps a running mean of the gradient and one of its square, and
# moves the weight by rate $\cdot$ mean $/\sqrt{\text{mean of squares}}$: far where gradients
# agree from step to step, little where they contradict each other. (The two divisors make up for
# running means that began at 0.) `p.data` is the array of numbers in a parameter `p`.
#
# So no step is much longer than the rate. A weight need not go far. But $\log\theta$ begins at 0
# for each gene, and may have to go to 3, where $\theta$ is 20: it gets a rate of its own.
#
# Before the first step, the biases of the softmax are set to the logarithms of the genes' total
# counts. So the decoder begins with the average cell, and need not find it first. A tenth of the
# cells is held out: the model is judged on them and never trained on them.

# %%
layers = [hidden, hidden_norm, z_mean, z_log_var, back, back_norm, to_rho]
weights = [p for layer in layers for p in layer.parameters()] + [log_theta]
rates = [0.002 for p in weights[:-1]] + [0.05]
means = [np.zeros_like(p.data) for p in weights]
squares = [np.zeros_like(p.data) for p in weights]
n_steps = 0


def step(x):
    """Change all weights, once, by the gradient at these cells."""
    global n_steps
    n_steps += 1
    eps = rng.standard_normal((len(x), n_latent), dtype=np.float32)
    loss = -np.mean(elbo(x, eps))
    for p, g, mean, square, rate in zip(weights, grad(loss, weights), means, squares, rates):
        mean += 0.1 * (g - mean)
        square += 0.001 * (g**2 - square)
        size = np.sqrt(square / (1 - 0.999**n_steps)) + 1e-8
        p.data -= rate * mean / (1 - 0.9**n_steps) / size


def use(training):
    """Tell the layers: batch norm takes the mean of the cells at hand in training only."""
    for layer in layers:
        layer.train(training)


# %%
def mean_elbo(x):
    """The ELBO of these cells, averaged: only a look, and no gradient is kept."""
    with no_grad():
        return elbo(x, rng.standard_normal((len(x), n_latent), dtype=np.float32)).data.mean()


# %%
held_out, train = counts[:70], counts[70:]
to_rho.bias.data[...] = np.log(train.sum(axis=0) + 0.5)
history = []
thetas = []
for _ in range(3 if QUICK else 50):
    use(training=True)
    cells = rng.permutation(len(train))
    for start in range(0, len(cells), 128):
        step(train[cells[start : start + 128]])
    use(training=False)
    history.append([mean_elbo(train), mean_elbo(held_out)])
    thetas.append(np.exp(log_theta.data))

# %% [markdown]
# Count the lines: that was scVI, simplified. The ELBO of the cells that it trains on rises as long
# as one lets it. What counts is the ELBO of the cells that are held out. The gap between the two
# curves is learning by heart: what the model knows of its own cells and of no others. It opens
# early, and is no reason to stop. The held-out curve is: when that no longer rises, nothing is
# learned any more that holds for other cells. In the last fifteen epochs or so it only wavers,
# while the other rises on: we stop.

# %%
history = np.array(history)
figure, axes = plt.subplots(figsize=(5, 2.8))
for column, (name, style) in enumerate({"trained on": "-", "held out": "--"}.items()):
    axes.plot(1 + np.arange(len(history)), history[:, column], style, color=COLORS[column])
    axes.plot([], [], style, color=COLORS[column], label=name)
axes.set(xlabel="epoch (once over all cells)", ylabel="ELBO, nats a cell")
axes.legend()
plt.show()
print(f"the last epoch: {history[-1, 0]:.1f} trained on, {history[-1, 1]:.1f} held out")
before, last = np.array_split(history[-(len(history) // 3 + 1) :], 2)
rise = last.mean(axis=0) - before.mean(axis=0)
print(f"the mean of the last {len(last)} epochs, less that of the {len(before)} before:", end=" ")
print(f"{rise[0]:+.1f} trained on, {rise[1]:+.1f} held out")

# %% [markdown]
# And $\theta$? Nobody told the model any, and it has been learned along the way: first of all, the
# cell below prints how far $\log\theta$ went, beside how far its rate would have let it go. Within
# a cell state a count has $1 + \mu/\theta$ times the variance of a Poisson with its mean. So
# $\theta$ says nothing without $\mu$: compare genes of like mean. Of all genes with a mean of 1 to
# 2, here are those with the smallest and the largest $\theta$; and then two genes with many counts.

# %%
moved = np.max(np.abs(log_theta.data))
print(
    f"log theta went at most {moved:.1f}; "
    f"{n_steps} steps of {rates[-1]} are {n_steps * rates[-1]:.1f}"
)
mu = totals.mean() * train.sum(axis=0) / train.sum()
theta = thetas[-1]
alike = np.flatnonzero((mu > 1) & (mu < 2))
of_like_mean = [alike[np.argmin(theta[alike])], alike[np.argmax(theta[alike])]]
for i in of_like_mean + [list(genes).index(gene) for gene in ("LYZ", "FTL")]:
    print(
        f"{genes[i]:8} mean {mu[i]:4.1f}, theta {theta[i]:4.1f}: the variance of a count with this "
        f"mean is {1 + mu[i] / theta[i]:.1f} times a Poisson's"
    )
before = thetas[-1 - len(thetas) // 4]
print(
    f"theta of the gene in the middle: {np.median(before):.1f} after three quarters of the", end=" "
)
print(f"training, {np.median(theta):.1f} at its end")

# %% [markdown]
# The last line is a warning. While the held-out ELBO stays where it is, $\theta$ goes on growing: a
# model that learns its own cells by heart finds less and less scatter in them. So $\theta$ is what
# *this* model, trained *so long*, leaves unexplained. It is no constant of the gene.

# %% [markdown]
# ## 4. Clusters
#
# Each cell now has a code: the mean of its $q(z \mid x)$, ten numbers. Cells with similar
# expression have similar codes, whatever their library sizes (the chapter's section *Uses:
# clustering*). k-means looks for groups of codes. Then, and only now, the names of the types come
# out of the drawer.
#
# Below, each row is a type (and how many cells it has), each column a cluster that k-means has
# found, and a row says into which clusters the cells of the type went.

# %%
with no_grad():
    z = encode(counts)[0].data
names, sizes = np.unique(cell_type, return_counts=True)
cluster = kmeans(z, len(names), seed=0)
shares = np.array([np.bincount(cluster[cell_type == name], minlength=len(names)) for name in names])
shares = shares / shares.sum(axis=1, keepdims=True)

figure, axes = plt.subplots(figsize=(6, 3.2))
picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
figure.colorbar(picture, label="share of the type's cells")
axes.set(xlabel="cluster", xticks=range(len(names)))
axes.set_yticks(range(len(names)), [f"{name}: {size}" for name, size in zip(names, sizes)])
plt.show()

# %% [markdown]
# The adjusted Rand index says it in a number: 1 where clusters and types agree, about 0 where the
# clusters were drawn by lot. For comparison, the same for ten principal components of the
# normalised counts. And a picture of the ten dimensions on paper, by t-SNE, which keeps neighbours
# together (distances between far groups mean nothing in it).

# %%
expression = log1p(normalize(counts))
u, s, _ = np.linalg.svd(expression - expression.mean(axis=0), full_matrices=False)
for name, code in {"scVI, simplified": z, "principal components": u[:, :10] * s[:10]}.items():
    found = kmeans(code, len(names), seed=0)
    print(f"{name:21} adjusted Rand index {adjusted_rand_index(cell_type, found):.2f}")

place = tsne(z, n_steps=30 if QUICK else 250)
figure, axes = plt.subplots(figsize=(6.4, 3.4))
drawn = scatter(axes, place, cell_type, size=10)
legend(figure, drawn, loc="outside right upper", fontsize=7, markerscale=1.6)
axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", title="the codes z, coloured by type")
plt.show()

# %% [markdown]
# Read the table before you trust the number. B cells, monocytes and dendritic cells are mostly in
# two clusters each. But some dendritic cells are in the monocytes' clusters, and some naive T cells
# in those of the B cells. (Look how few naive T cells there are. A share of so few says little, and
# a name can be wrong as well.) NK cells and most cytotoxic T cells, which kill by the same
# molecules, are in one cluster; regulatory and memory T cells share theirs. That need not be the
# model's fault. These types differ in few molecules, of which a cell with some hundred counts shows
# next to none; and k-means was told to make as many groups as there are names, so it cuts large
# types into pieces. **A cluster is a proposal, not a cell type.** Nor is scVI magic: by this
# measure principal components do about as well. What they do not have is the next section: a
# probability for each statement.

# %% [markdown]
# ## 5. Differential expression in ten lines
#
# Take a B cell $a$ and a monocyte $b$. For a gene there are two hypotheses (the chapter's section
# *Uses: differential gene expression*):
#
# $$H_1:\ \rho_a > \rho_b \qquad\qquad H_0:\ \rho_a \le \rho_b$$
#
# $\rho$ is not known, but $q(z \mid x)$ says what is known of it: draw $z$ for either cell, decode
# both, and see which $\rho$ is larger. Repeat. The proportion $p$ of draws with $\rho_a > \rho_b$
# is the probability of $H_1$, and $p / (1 - p)$ its odds. A Bayes factor is the odds after the data
# over the odds before. Before, neither direction is the likelier one: the odds are 1, and the
# (logarithm of the) Bayes factor is $\log\frac{p}{1 - p}$: 0 if both are equally probable, 3 if
# $H_1$ is 20 times as probable. To compare two groups, each repetition also draws a cell at random
# from each.


# %%
def draw_rho(x, n):
    """rho of n cells drawn from x, with a draw of z for each: (n, n_genes)."""
    mean, std = encode(x)
    cell = rng.integers(len(x), size=n)
    z = mean[cell] + std[cell] * rng.standard_normal((n, n_latent), dtype=np.float32)
    return np.exp(decode(z)).data


def bayes_factors(x_a, x_b, n=5000):
    """log p(H1) / p(H0) of each gene, (n_genes,), and the draws that it comes from."""
    with no_grad():
        rho_a, rho_b = draw_rho(x_a, n), draw_rho(x_b, n)
    p = (np.sum(rho_a > rho_b, axis=0) + 0.5) / (n + 1)  # the halves: never exactly 0 or 1
    return np.log(p / (1 - p)), rho_a, rho_b


# %%
is_a = cell_type == "CD19+ B"
is_b = cell_type == "CD14+ Monocyte"
bayes_factor, rho_a, rho_b = bayes_factors(counts[is_a], counts[is_b])
fold = np.mean(np.log2(rho_a) - np.log2(rho_b), axis=0)  # log2 fold change, mean over the draws
print(f"{is_a.sum()} B cells (a), {is_b.sum()} monocytes (b)")
print("gene       log2 fold change  Bayes factor")
known = ["CD79A", "CD79B", "MS4A1", "HLA-DQA1", "LYZ", "S100A8", "S100A9", "FCN1", "PTPRC"]
for i in [list(genes).index(gene) for gene in known]:
    print(f"{genes[i]:9} {fold[i]:+17.2f} {bayes_factor[i]:+13.1f}")

# %% [markdown]
# The genes in the list are the textbook's: the first four mark B cells, the next four monocytes,
# and the last, CD45, is on every white blood cell. Not each marker comes out beyond 3. The question
# is about *one* cell of either kind, drawn at random, and cells of a kind differ; and monocytes,
# too, present antigens, for which they need the HLA genes. (A Bayes factor cannot be larger here
# than $\log(2 n + 1)$, where the same hypothesis held in all $n$ pairs: the genes at the edges of
# the picture below.)
#
# Is it right? `models.SCVI` is the library's scVI. With a negative binomial, without its
# refinements, it should be *this* model. So we hand it our weights, and ask its
# `differential_expression` the same question. Both draw 5,000 pairs at random, and not the same
# ones; up to that, the probabilities must agree. (The first half of the cell hands the weights
# over, each under the name that the library has for it. Skip it.)

# %%
library = SCVI(n_genes, n_latent=n_latent, likelihood="nb", thinning=False, dropout=0.0)
their_names = ["layers.linears.0", "layers.norms.0", "mean", "log_var"]
their_names = [f"z_encoder.{name}" for name in their_names]
their_names += ["decoder.layers.linears.0", "decoder.layers.norms.0", "decoder.rho"]
state = library.state_dict() | {"log_theta": log_theta.data}
for name, layer in zip(their_names, layers):
    state |= {f"{name}.{part}": array for part, array in layer.state_dict().items()}
library.load_state_dict(state)
library.trained = True  # elsewhere, by us

table = library.differential_expression(counts, is_a, is_b, mode="vanilla", genes=genes)
p_theirs = table["probability"][np.argsort(table["gene"])]
p_ours = 1 / (1 + np.exp(-bayes_factor))[np.argsort(genes)]
p = (p_ours + p_theirs) / 2
error = np.sqrt(2 * p * (1 - p) / 5000)  # of the difference of two proportions
largest = np.max(np.abs(p_ours - p_theirs) / error)
by_chance = 1 - (1 - 2 * stats.norm.sf(largest)) ** n_genes
print(f"largest difference of two probabilities: {np.max(np.abs(p_ours - p_theirs)):.3f}")
print(f"in standard errors it is {largest:.1f} at most; by chance alone, one of {n_genes} genes is")
print(f"as far off, or farther, in {by_chance:.0%} of such comparisons")

# %%
figure, axes = plt.subplots(figsize=(5.4, 3.4))
axes.plot(fold, bayes_factor, ".", color=COLORS[0], markersize=4, alpha=0.6)
for rank, i in enumerate([list(genes).index(gene) for gene in known]):
    axes.plot(fold[i], bayes_factor[i], "s", color=COLORS[1], markersize=4)
    up = 8 * (rank % 4) if bayes_factor[i] < -9 else 0  # at the edge names would hide one another
    beside = {"xytext": (4, up), "textcoords": "offset points", "va": "center"}
    if abs(bayes_factor[i]) < 1.5:  # in the middle the dots would hide them
        beside |= {"xytext": (30, -14), "arrowprops": {"arrowstyle": "-", "linewidth": 0.5}}
    axes.annotate(genes[i], (fold[i], bayes_factor[i]), fontsize=7, **beside)
for height in (-3, 3):
    axes.axhline(height, color="#999999", linewidth=0.8, linestyle=":")
axes.set(xlabel="log2 fold change, B cells over monocytes", ylabel="log Bayes factor, nats")
plt.show()

# %% [markdown]
# ## 6. Your turn: how much, and not only which way
#
# Look just beyond the dotted lines, near the middle. There are genes with a sure direction and a
# small fold change, less than 2-fold: where all pairs agree on which of two proportions is the
# larger, it need not be much larger. Whoever publishes all genes beyond the lines publishes those
# as well. So ask another question: **in which
# proportion of the pairs do $\rho_a$ and $\rho_b$ differ by more than a fold change that matters,
# either way?**
#
# Write this function. A `delta` of 1 means a factor of 2, up or down.


# %%
def probability_of_change(rho_a, rho_b, delta):
    """For each gene: the proportion of pairs with a log2 fold change beyond delta, up or down.

    rho_a, rho_b: (n_pairs, n_genes). Returns (n_genes,).
    """
    ...  # your turn


# %%
# Four pairs, and five genes. In all pairs the first four are up 8-fold, down 8-fold, up by a factor
# of 1.8, and up by one of 2.5. The last is up 8-fold in one pair, and the same in the others.
change = np.tile([8, 1 / 8, 1.8, 2.5, 8], (4, 1))
change[1:, 4] = 1
trial_b = np.full((4, 5), 0.01)
trial_a = trial_b * change
further_a = np.array([[10, 1 / 10, 7, 1 / 7]])  # one pair more, for another delta
answer = probability_of_change(trial_a, trial_b, 1.0)
if answer is None:
    print("not yet: the function returns nothing so far (in the end, mind its `return`)")
elif np.shape(answer) != (5,):
    print(
        f"wrong: of 5 genes the answer has the shape {np.shape(answer)}, not (5,): one number each"
    )
elif answer[0] == 0:
    print("wrong: a gene that is up 8-fold has probability 1, and yours 0: compare log2 of ratios")
elif answer[1] == 0:
    print("wrong: a gene that is down 8-fold has changed, too")
elif answer[2] > 0:
    print("wrong: up by 1.8 is less than 2-fold, and delta = 1 means 2-fold: take log2")
elif answer[3] == 0:
    print("wrong: up by 2.5 is more than 2-fold, and delta is in steps of 2-fold: log2, not log")
elif not np.allclose(answer, [1, 1, 0, 1, 0.25]):
    print(f"wrong: the probabilities are 1, 1, 0, 1 and 0.25, not {np.array(answer, float)}")
elif not np.allclose(probability_of_change(further_a, np.ones((1, 4)), 3.0), [1, 1, 0, 0]):
    print("wrong: right for delta = 1, but delta = 3 means 8-fold: up by 10 is beyond, by 7 is not")
else:
    probability = probability_of_change(rho_a, rho_b, 1.0)
    is_sure = np.abs(bayes_factor) > 3
    print(
        f"right. {is_sure.sum()} genes have a sure direction (Bayes factor beyond 3). Of these, "
        f"{np.sum(is_sure & (probability < 0.5))} have more probably changed less than 2-fold."
    )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def probability_of_change(rho_a, rho_b, delta):
#     log2_fold_change = np.log2(rho_a) - np.log2(rho_b)
#     return np.mean(np.abs(log2_fold_change) > delta, axis=0)
# ```
#
# </details>
#
# One thing no number of draws can tell. All pairs are decoded by one decoder, which was fitted once
# to these very cells; if it learned an accident of the sample, all draws agree on the accident.
# `models/differential.py` begins with this, and goes on to what its mode `"change"` does about it.
#
# **Next**: the lesson `scvi_whole` has what was simplified away here: a library size that is
# latent, zeros that are no counts, and batches.

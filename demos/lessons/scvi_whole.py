# %% [markdown]
# # scVI, whole
#
# The lesson `scvi_simplified` left three things out. This one puts them back: a library size that
# is latent, zeros that were never counted, and batches. That makes six networks, NN1 to NN6 of the
# chapter's Figure 12 (section *scVI architecture*). What is each of them for? Biology has a way to
# find out what a gene is for, and it works here as well: knock it out, and see what is lost.
#
# **What you learn.** What each network of scVI does, by a knockout of each; what a library size has
# to do with a batch effect; whether real counts need zero inflation, and when you can tell a
# dropout from a gene that is not expressed.
#
# **Minutes.** 45. The notebook runs in about a minute.
#
# **What to know before.** The lesson `scvi_simplified`, and Bayes' rule.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from demos.batches import with_batch_effect
from demos.show import COLORS, DATA, MARKERS, legend, scatter
from demos.tsne import tsne
from minigrad.distributions import NegativeBinomial, ZeroInflatedNegativeBinomial
from minigrad.nn import Linear
from models import SCVI
from models.clustering import adjusted_rand_index, batch_mixing, kmeans, silhouette
from models.counts import read

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: train a little only
n_epochs = 2 if QUICK else 75
n_draws = 3 if QUICK else 50
plt.rcParams.update({"figure.figsize": (6, 2.8), "figure.dpi": 90, "font.size": 9})
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})

# %% [markdown]
# ## 1. Six networks
#
# $$z_n \sim \text{Normal}(0, I), \qquad \log l_n \sim \text{Normal}(\text{mean and variance of its
# batch } s_n)$$
#
# $$\rho_n = \text{NN5}(z_n, s_n), \qquad \pi_n = \text{NN6}(z_n, s_n), \qquad x_{ng} \sim
# \text{ZINB}(\text{mean } l_n\,\rho_{ng},\ \theta_g,\ \pi_{ng})$$
#
# ```
#        +-- NN1: mean ------> q(log l | x) ---> l ------------------+
#        +-- NN2: variance -->                                       |
#    x --+                                                           v
#        +-- NN3: mean ------> q(z | x) -------> z --+--> NN5: rho, times l --> ZINB(x)
#        +-- NN4: variance -->                       +--> NN6: pi ---------------^
#                                                    ^
#                                       batch s -----+
# ```
#
# New are $l$, which the model infers as it infers $z$; $\pi$, the probability that a count is 0
# whatever the expression (a *structural* zero); and the batch $s$, which only the decoder is told.
#
# The library's model has all of this: `SCVI(n_genes, likelihood="zinb", library="latent")`. Each
# of the six is the last layer of a network there. (NN1 and NN2 share the layer below, and so do
# NN3 and NN4, and NN5 and NN6; for the figure this makes no difference.)

# %%
NETWORKS = {
    "NN1": ("l_encoder", "mean", "mean of q(log l)"),
    "NN2": ("l_encoder", "log_var", "variance of q(log l)"),
    "NN3": ("z_encoder", "mean", "mean of q(z)"),
    "NN4": ("z_encoder", "log_var", "variance of q(z)"),
    "NN5": ("decoder", "rho", "expression fractions rho"),
    "NN6": ("decoder", "zi", "structural zeros pi"),
}

# %% [markdown]
# ## 2. Cells of known depth
#
# The cells are those of mouse cortex (Zeisel et al. 2015): seven types, 558 genes. To know what the
# model should find out about library sizes, we make an experiment: half of the cells, drawn by lot,
# is sequenced only a fifth as deeply. Each of their molecules is kept with probability 0.2. In
# truth, nothing else tells the two halves apart.

# %%
data = read(DATA / "cortex.npz")
order = np.random.default_rng(0).permutation(len(data))[: 300 if QUICK else 1100]
real = data.X[order].toarray()
cell_type = data.obs["labels"][order]
n_cells, n_genes = real.shape

rng = np.random.default_rng(1)
is_shallow = rng.permutation(np.arange(n_cells) % 2 == 1)
counts = real.copy()
counts[is_shallow] = rng.binomial(real[is_shallow].astype(int), 0.2)
n_test = n_cells // 4
totals = counts.sum(axis=1)
print(f"{n_cells - n_test} cells to train on, {n_test} held out, {n_genes} genes")
print(
    f"typical library size: {np.median(totals[~is_shallow]):.0f} of the deep cells, "
    f"{np.median(totals[is_shallow]):.0f} of the shallow ones"
)

# %% [markdown]
# ## 3. Six knockouts
#
# A network is switched off when it gives every cell the same answer. That answer is still trained:
# so what is lost is not the number, but that it may differ from cell to cell.


# %%
class SameForAll(Linear):
    """A network that is switched off: it does not look at what it is given."""

    def __call__(self, h, rng=None):
        return super().__call__(np.ones(h.shape, h.dtype))


def trained(*off):
    """scVI trained on the cells that are not held out, with these of the six switched off."""
    model = SCVI(n_genes, n_latent=10, likelihood="zinb", library="latent")
    for name in off:
        part, head, _ = NETWORKS[name]
        n_out, n_in = getattr(getattr(model, part), head).weight.shape
        layer = SameForAll(n_in, n_out, rng=np.random.default_rng(0))
        setattr(getattr(model, part), head, layer)
    model.fit(counts[n_test:], epochs=n_epochs, validation=0, progress=False)
    return model


whole = trained()
without = {name: trained(name) for name in NETWORKS}

# %% [markdown]
# What is lost? First in one number: the ELBO of the cells that are held out, which is what all six
# were trained for. The same cells are put to each model, so the differences are taken cell by cell,
# and have a standard error. (It knows of the choice of cells only. A difference below a nat or two
# may well come out otherwise with another seed of the training. And `fit` does more than the loop
# of the last lesson, to be quick and not to learn cells by heart: `models/recipe.py` says what.)

# %%
elbo = whole.elbo(counts[:n_test], n_samples=n_draws)
lost = {name: elbo - m.elbo(counts[:n_test], n_samples=n_draws) for name, m in without.items()}
mean = np.array([of_cells.mean() for of_cells in lost.values()])
error = np.array([of_cells.std() for of_cells in lost.values()]) / np.sqrt(n_test)

figure, axes = plt.subplots(figsize=(6, 2.8))
axes.barh(range(6), mean, xerr=2 * error, color=COLORS[0], ecolor="#555555")
axes.set_yticks(range(6), [f"{name}: {about}" for name, (*_, about) in NETWORKS.items()])
axes.axvline(0, color="#555555", linewidth=0.8)
axes.invert_yaxis()
axes.set(xlabel="held-out ELBO that is lost, nats a cell (bars: 2 standard errors)")
plt.show()
print(f"the whole model: an ELBO of {elbo.mean():.1f} nats a cell")
for name, m, e in zip(NETWORKS, mean, error):
    print(f"without {name}: {m:6.1f} +- {e:.1f} nats lost")

# %% [markdown]
# Most is lost without NN3 (where is this cell?) and NN5 (what does a cell there express?); NN1
# comes next. (All of it is a small part of the whole ELBO. Most of that is the scatter of counts
# about their means, which no $z$ can foretell.) What NN2, NN4 and NN6 add is little or nothing.
#
# But geneticists know that a gene may be missed little because another one fills in for it. They
# knock out both.

# %%
for pair in (("NN3", "NN4"), ("NN5", "NN6")):
    of_pair = elbo - trained(*pair).elbo(counts[:n_test], n_samples=n_draws)
    e = of_pair.std() / np.sqrt(n_test)
    print(f"without {pair[0]} and {pair[1]}: {of_pair.mean():6.1f} +- {e:.1f} nats lost")
widths = without["NN3"].eval().inference(counts)[0].scale.data
found = kmeans(np.log(widths), 7, seed=0)
print("without NN3, clusters of the widths of q(z) agree with the types: ARI", end=" ")
print(f"{adjusted_rand_index(cell_type, found):.2f}")

# %% [markdown]
# The two pairs lose the same, all that $z$ gives, and far more than NN3 or NN5 alone. So NN4 had
# filled in for NN3: a model that may not say by the *mean* of $q(z)$ of which type a cell is says
# it, less well, by the *width* (last line; an adjusted Rand index of 1 is perfect, 0 is by lot).
# And without NN5, what $z$ knows still reaches the counts through NN6. **A knockout shows what the
# others cannot make up for, and not what a network does.** The next sections look at what each is
# *for*.

# %% [markdown]
# ## 4. NN1 and NN2: so that $z$ need not know the depth
#
# Which half a cell is in should not show in $z$: it is no biology. Two questions to the codes of
# all cells:
#
# - *Mixing*: are the 50 nearest neighbours of a cell of both halves? Their entropy is $\log 2 =
#   0.69$ if they are half and half, and 0 if all are of one half.
# - *Types* and *depth*: do clusters by k-means agree with the cell types, as they should, or with
#   the two halves, as they should not?

# %%
codes = {"whole": whole.latent(counts), "without NN1": without["NN1"].latent(counts)}
print("             mixing  types  depth  distance from the middle: deep, shallow")
for name, z in codes.items():
    cluster = kmeans(z, 7, seed=0)
    distance = np.linalg.norm(z - z.mean(axis=0), axis=1)
    print(
        f"{name:12} {batch_mixing(z, is_shallow):6.2f} "
        f"{adjusted_rand_index(cell_type, cluster):6.2f} "
        f"{adjusted_rand_index(is_shallow, cluster):6.2f} "
        f"{distance[~is_shallow].mean():31.2f} {distance[is_shallow].mean():8.2f}"
    )

# %%
figure, panels = plt.subplots(1, 2, figsize=(6, 2.9))
for axes, (name, z) in zip(panels, codes.items()):
    z = z - z.mean(axis=0)
    _, _, directions = np.linalg.svd(z, full_matrices=False)
    place = z @ directions[:2].T
    for i, (label, chosen) in enumerate({"deep": ~is_shallow, "shallow": is_shallow}.items()):
        axes.plot(*place[chosen].T, MARKERS[i], color=COLORS[i], markersize=2.5, label=label)
    axes.set(title=name, xlabel="z, principal component 1", ylabel="component 2")
panels[0].legend(markerscale=2)
plt.show()

# %% [markdown]
# Without NN1, the library size of every cell is the same, up to noise. But cells do differ in
# depth, and the model must put it somewhere: it puts it into $z$, and the clusters that k-means
# then finds are split by both, by type and by depth. **NN1 gives depth a place of its own.** (In
# scVI, simplified, the observed total did the same.) A trace of depth is left in $z$ even so: the
# codes of shallow cells lie nearer to the middle, that of the prior, from which it takes many
# molecules to get away.
#
# NN2 and NN4 say how *sure* the model is, of $l$ and of $z$. From fewer molecules one knows less:
# the more there are, the smaller the standard deviation should be. For $l$ there is even a limit.
# A count of $N$ molecules scatters by $\sqrt{N}$ or more, so nobody can know $\log l$ better than
# to $1/\sqrt{N}$.

# %%
q_z, q_l = whole.eval().inference(counts)
figure, panels = plt.subplots(1, 2, figsize=(6, 2.9))
spreads = {
    "NN4: std of q(z), mean": q_z.scale.data.mean(axis=1),
    "NN2: std of q(log l)": q_l.scale.data[:, 0],
}
for axes, (name, spread) in zip(panels, spreads.items()):
    for i, (label, chosen) in enumerate({"deep": ~is_shallow, "shallow": is_shallow}.items()):
        axes.semilogx(
            totals[chosen], spread[chosen], MARKERS[i], color=COLORS[i], markersize=2.5, label=label
        )
    axes.set(title=name, xlabel="library size of the cell", ylabel="standard deviation")
limit = 1 / np.sqrt(totals)
panels[1].loglog(np.sort(totals), np.sort(limit)[::-1], "--", color="black", label="the limit")
panels[1].set_yscale("log")
panels[1].legend(markerscale=2)
plt.show()

# %%
print("library size     std of q(z)  of q(log l)  surer of l than can be")
for chosen in np.array_split(np.argsort(totals), 5):  # a fifth of the cells each
    of_z, of_l = [spread[chosen].mean() for spread in spreads.values()]
    below = np.mean(spreads["NN2: std of q(log l)"][chosen] < limit[chosen])
    sizes = f"{totals[chosen[0]]:.0f} to {totals[chosen[-1]]:.0f}"
    print(f"{sizes:16} {of_z:11.2f} {of_l:12.3f} {below:16.0%} of cells")

# %% [markdown]
# NN4 does what it is for: the more molecules, the surer it is of $z$; but its cloud flattens
# towards the left. NN2 does so among the cells with many molecules only. Then its cloud bends down:
# of the shallowest cells it claims to know $l$ better than can be known. (Where the cloud ends at
# 0.01, it has met the 0.0001 that is added to the variance.)
#
# A network that says how sure it is has *learned* to say so, from the ELBO, which hardly notices:
# one width that fits all is a fair compromise. But whatever is computed from draws of $z$, like the
# Bayes factors of the last lesson, takes its word for it. **The variances of $q$ are claims, and no
# measurements.** The scvi-tools package does without NN1 and NN2 by default, and takes the observed
# total.

# %% [markdown]
# ## 5. NN6: zeros that were never counted
#
# A zero-inflated negative binomial is a negative binomial that is replaced by 0 with probability
# $\pi$:
#
# $$\text{ZINB}(x) = \pi\,[x = 0] + (1 - \pi)\,\text{NB}(x)$$
#
# ($[x = 0]$ is 1 where $x$ is 0, and else 0.) What a training needs is its logarithm. NN6 puts out
# the log odds $a$ of $\pi$, and as $\pi = 1/(1 + e^{-a})$ and $1 - \pi = 1/(1 + e^{a})$, it is
#
# $$\log\text{ZINB}(0) = \log\big(e^{a} + \text{NB}(0)\big) - \log(1 + e^{a}), \qquad
# \log\text{ZINB}(x) = \log\text{NB}(x) - \log(1 + e^{a}) \text{ for } x > 0.$$
#
# Both logarithms of sums are `np.logaddexp`, of $a$ and $\log\text{NB}(0)$ and of 0 and $a$: no
# large number is ever made, and nothing becomes $\log 0$.
#
# Here are the two with *the same mean* (the chapter's Figure 15). What the ZINB puts at 0 it must
# make up for elsewhere.

# %%
x = np.arange(16.0)
pi = 0.3
nb = NegativeBinomial(np.log(4.0), np.log(2.0))  # log of the mean, log theta
zinb = ZeroInflatedNegativeBinomial(np.log(4.0 / (1 - pi)), np.log(2.0), np.log(pi / (1 - pi)))
figure, axes = plt.subplots(figsize=(5, 2.8))
for i, (name, p) in enumerate({"NB": nb, f"ZINB, pi = {pi}": zinb}.items()):
    label = f"{name}: mean {float(p.mean):.1f}, variance {float(p.variance):.1f}"
    axes.bar(x + 0.4 * i - 0.2, np.exp(p.log_prob(x)), 0.4, color=COLORS[i], label=label)
axes.set(xlabel="count", ylabel="probability")
axes.legend()
plt.show()

# %% [markdown]
# **Do real counts need it?** Many zeros are no argument: an NB with a small mean or a small
# $\theta$ has many, too. The argument is the likelihood of cells that were held out. A model with
# NN6 can do all that one without it can, but it has more to learn, and can learn it wrong. So there
# may be a loss as well as a gain. (The library size is observed here; a Poisson, which has no
# $\theta$, runs along for comparison. What stands behind +- is one standard error, and the bars in
# the picture are two.)


# %%
def held_out_log_p(x, n_test, likelihood):
    """log p(x) of each of the first n_test cells, of a model trained on the others."""
    model = SCVI(x.shape[1], n_latent=10, likelihood=likelihood)
    model.fit(x[n_test:], epochs=n_epochs, validation=0, progress=False)
    return model.log_likelihood(x[:n_test], n_samples=2 * n_draws)


blood = read(DATA / "pbmc68k.npz")
blood_counts = blood.X[np.random.default_rng(0).permutation(len(blood))].toarray()
gain = {}
for name, x in {"cortex": real, "blood": blood_counts}.items():
    n = len(x) // 4
    log_p = {kind: held_out_log_p(x, n, kind) for kind in ("poisson", "nb", "zinb")}
    gain[name] = [log_p["nb"] - log_p["poisson"], log_p["zinb"] - log_p["nb"]]

# %%
figure, panels = plt.subplots(1, 2, figsize=(6, 2.8))
for column, (axes, title) in enumerate(zip(panels, ["NB over Poisson", "ZINB over NB"])):
    for i, name in enumerate(gain):
        difference = gain[name][column]
        m, e = difference.mean(), difference.std() / np.sqrt(len(difference))
        axes.bar(name, m, yerr=2 * e, color=COLORS[i], ecolor="#555555", width=0.6)
        print(f"{title:15} {name:6} {m:6.1f} +- {e:.1f} nats a cell")
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set(title=title, ylabel="held-out log p gained,\nnats a cell (bars: 2 s.e.)")
plt.show()

# %% [markdown]
# The step from Poisson to NB is the large one. The step from NB to ZINB is small, and it has
# another sign in the other data: the cells of cortex, which were handled one by one in the wells
# of a chip, gain by it; the droplets of blood do not, and are better off with the simpler model.
# **Whether there is zero inflation is a question to the data, and not to the method.** Judge by
# cells that were held out.
#
# (In cortex the gain is larger than what the knockout of NN6 lost in section 3. That was another
# question: with NN6 switched off each gene keeps a $\pi$, the same one in all cells, while an NB
# has none. And half of the cells there had been made shallow.)

# %% [markdown]
# **Where it is true.** We make dropouts: in the blood cells, each entry of the table becomes 0 with
# probability 0.3, whatever it was. And we keep a list of which.

# %%
rng = np.random.default_rng(2)
was_dropped = rng.random(blood_counts.shape) < 0.3
dropped = np.where(was_dropped, 0, blood_counts).astype(np.float32)
n = len(dropped) // 4
model = SCVI(dropped.shape[1], n_latent=10, likelihood="zinb")
model.fit(dropped[n:], epochs=n_epochs, validation=0, progress=False)
difference = model.log_likelihood(dropped[:n], n_samples=2 * n_draws)
difference = difference - held_out_log_p(dropped, n, "nb")
e = difference.std() / np.sqrt(n)
print(f"ZINB over NB, with dropouts: {difference.mean():.1f} +- {e:.1f} nats a cell")

log_library = np.log(dropped.sum(axis=1, keepdims=True))
model.eval()
one_batch = np.zeros(len(dropped), int)  # the number of each cell's batch: there is one
decoded = model.generative(model.latent(dropped), log_library, one_batch)
log_mu, log_theta, zi_logits = [decoded[name].data for name in ("log_mu", "log_theta", "zi_logits")]
for low, high in ((0, 1), (1, 10), (10, np.inf)):
    of_size = (np.exp(log_mu) > low) & (np.exp(log_mu) <= high)
    found = expit(zi_logits[of_size]).mean()
    print(f"expected count {low} to {high}: pi is {found:.2f} on average, in truth 0.30")
print(f"every pi began at {expit(-2.0):.2f}, log odds of -2: so the library begins a training")

# %% [markdown]
# Now the ZINB wins in blood, too. But NN6 comes nearer to the truth only where a gene has many
# counts. Training starts every $\pi$ at 0.12. With few counts it is still there; only with many has
# it begun to move. Where a count of 0 or 1 is expected anyhow, a zero tells nothing about its
# reason, and nothing pulls $\pi$ to its true value: what you read there is the start, and not the
# data. **Do not read $\pi$ of a weakly expressed gene as a rate of
# dropouts.**

# %% [markdown]
# ## 6. Batches
#
# A batch effect is like a library size for each gene: the same cells, measured twice, are counted
# with another efficiency, gene by gene. Again we simulate it, over the real cells of cortex, so
# that we know that it is no biology: the cells are split in two by lot, and each half is thinned,
# gene by gene, at rates of its own. One model is *blind* to the batch; the other tells its decoder
# (NN5 and NN6) the batch $s$ of each cell. Beside the mixing we look at silhouettes: near 1 if
# cells of a group lie close together and far from others, near 0 if groups lie within each other.

# %%
in_batches, batch = with_batch_effect(data.X[order])
spaces = {}
for name, told in {"blind": None, "told the batch": batch}.items():
    n_batches = 1 if told is None else 2
    model = SCVI(n_genes, n_batches, n_latent=10, likelihood="nb")
    model.fit(in_batches, told, epochs=n_epochs, validation=0, progress=False)
    spaces[name] = model.latent(in_batches, told)
print("                mixing (0.69 best)  silhouette of types  of batches")
for name, z in spaces.items():
    print(
        f"{name:15} {batch_mixing(z, batch):18.2f} {silhouette(z, cell_type):20.2f} "
        f"{silhouette(z, batch):11.2f}"
    )

# %%
# Above by batch, below the same cells by type.
figure, panels = plt.subplots(2, 2, figsize=(6, 5.6))
for (axes, below), (name, z) in zip(panels.T, spaces.items()):
    place = tsne(z[:400], n_steps=30 if QUICK else 250)
    for i, label in enumerate(np.unique(batch)):
        chosen = batch[:400] == label
        axes.plot(
            *place[chosen].T, MARKERS[i], color=COLORS[i], markersize=2.5, label=f"{label} batch"
        )
    axes.set(title=name, xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    drawn = scatter(below, place, cell_type[:400], size=6)
    below.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
above = panels[0, 0].get_legend_handles_labels()
figure.legend(*above, loc="outside upper center", ncols=2, fontsize=7, markerscale=2)
legend(figure, drawn, loc="outside lower center", ncols=4, fontsize=7, markerscale=1.6)
plt.show()

# %% [markdown]
# The blind model must explain with $z$ why the two halves differ, and keeps them apart. The other
# is told, and $z$ is free to forget it: what NN5 knows from $s$ costs nothing, while what it knows
# from $z$ has a price, the KL. The types lose nothing by it: their silhouette is no smaller. (In
# both models it is nearer to 0 than to 1: in ten dimensions the types are no islands. But in the
# lower pictures most types have a place of their own; in the blind model two, one for each batch.)
#
# It works here because the batches have the same cell types in them. If one batch were all neurons
# and the other all glia, the model could not know what is batch and what is type; nor could you.

# %% [markdown]
# ## 7. Your turn: dropout, or not expressed?
#
# You look at a zero in the table. Was it a structural zero, or did the negative binomial say 0 by
# itself? With the model's $\mu$, $\theta$ and $\pi$ for this entry, Bayes' rule answers. What you
# need of the negative binomial is its probability of 0:
#
# $$\text{NB}(0) = \left(\frac{\theta}{\theta + \mu}\right)^{\theta}$$
#
# Write the function. All three arguments are what networks put out: logarithms of $\mu$ and of
# $\theta$, and the log odds of $\pi$ (`expit` makes a probability of log odds).


# %%
def structural_given_zero(log_mu, log_theta, zi_logits):
    """The probability that a count which is 0 is a structural zero. Arrays that broadcast."""
    ...  # your turn


# %%
# Four entries, all with pi = 1/2: mean next to 0; mean 1, theta 1, so that NB(0) = 1/2; mean 1000;
# and mean 6, theta 2, so that NB(0) = 1/16.
mu, theta = np.array([1e-9, 1.0, 1000.0, 6.0]), np.array([1.0, 1.0, 2.0, 2.0])
even = np.zeros(4)
answer = structural_given_zero(np.log(mu), np.log(theta), even)
if answer is None:
    print("not yet: the function returns nothing so far (in the end, mind its `return`)")
elif np.shape(answer) != (4,):
    print(f"wrong: of 4 entries the answer has the shape {np.shape(answer)}, not (4,)")
elif np.allclose(answer, 1):
    print("wrong: that calls every zero structural, and pi is 1/2 here: did you use expit?")
elif np.allclose(answer, 0.5):
    print("wrong: that is pi, the probability before the zero was seen")
elif np.allclose(answer, [1, 3 / 4, 1 / 2, 17 / 32], atol=1e-3):
    print("wrong: that is the probability of a zero, of either kind; divide pi by it")
elif np.allclose(answer, [1 / 2, 1 / 3, 0, 1 / 17], atol=1e-3):
    print("wrong: that is the probability that the NB said 0; the question was the other one")
elif not np.allclose(answer[:3], [1 / 2, 2 / 3, 1], atol=1e-3):
    print(f"wrong: for pi = 1/2 and NB(0) = 1, 1/2, 0 it is 1/2, 2/3, 1, not {answer[:3]}")
elif not np.isclose(answer[3], 16 / 17):
    print(
        f"wrong: with mu = 6 and theta = 2 NB(0) is (1/4)^2, so it is {16 / 17:.2f}, "
        f"not {answer[3]:.2f}: the exponent?"
    )
elif not np.allclose(structural_given_zero(0.0, 0.0, np.log(1 / 3)), 0.4):
    print("wrong: right for pi = 1/2, but for pi = 1/4 and NB(0) = 1/2 it is 0.4")
else:
    said = structural_given_zero(log_mu, log_theta, zi_logits)
    is_zero = dropped == 0
    print("right. The zeros of the blood cells, by what your function says of them:")
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        chosen = is_zero & (said >= low) & (said < low + 0.2)
        if chosen.any():
            print(
                f"  {chosen.sum():6} zeros with {low:.1f} to {low + 0.2:.1f}: said "
                f"{said[chosen].mean():.2f}, dropped in truth {was_dropped[chosen].mean():.2f}"
            )

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def structural_given_zero(log_mu, log_theta, zi_logits):
#     theta = np.exp(log_theta)
#     nb_zero = np.exp(theta * (log_theta - np.logaddexp(log_theta, log_mu)))
#     pi = expit(zi_logits)
#     return pi / (pi + (1 - pi) * nb_zero)
# ```
#
# </details>
#
# In the table that the check prints, compare what is said with the truth. Where the model claims
# little, the truth is more: these are the weakly expressed genes, where $\pi$ stayed where it
# started. Where it claims most, it claims too much. It is right only between the
# two. Your formula is right in every row; but a probability computed from a model is no better
# than the $\pi$ and the NB that the model put in.
#
# **Next**: `models/scvi.py` is the model of this lesson, written to be read; `models/posterior.py`
# has what a trained one can be asked. And then your own counts: `python -m models --help`.

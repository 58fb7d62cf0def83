# %% [markdown]
# # Autoencoders
#
# **You will learn** what an autoencoder is for, when it is nothing else than principal component
# analysis (PCA), what a network adds to that, why one trains it on noisy data, and what it finds in
# gene expression: first in simulated cells, then in real ones.
#
# **Time:** about 40 minutes. The whole notebook runs in one to two minutes.
#
# **Know before:** NumPy (`@` is the product of matrices), mean and variance, what PCA is for. That
# training means following a gradient downhill is enough; how a gradient is computed is the subject
# of the lesson `engine`.
#
# The lesson goes with block 5 of the course MCB128 (AI in Molecular Biology, Spring 2026), "the
# chapter" from here on: its sections "Learning as communication", "Autoencoder definition",
# "Autoencoders as a non-linear generalization of principal component analysis (PCA)" and
# "Autoencoder application: Gene expression".

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import subspace_angles

from demos.show import COLORS, DATA, MARKERS, legend, scatter
from minigrad import Tensor, optim
from models import Autoencoder
from models.clustering import adjusted_rand_index, kmeans
from models.counts import log1p, normalize, read

QUICK = "MINIGRAD_QUICK" in os.environ  # for tests: train a little only
plt.rcParams.update({"figure.figsize": (6.2, 3), "figure.dpi": 90, "font.size": 9})
plt.rcParams.update({"figure.constrained_layout.use": True, "legend.frameon": False})

# %% [markdown]
# ## 1. A message of two numbers, a channel for one
#
# Somebody has measured two genes in many cells, and wants to tell you the values. The channel
# between you carries *one* number a cell. What should it be?
#
# Before the first cell is sent, you two agree on a direction $w$ in the plane, of length 1. For a
# cell $x$ the **encoder** sends $z = x \cdot w$, how far the cell lies along that direction. The
# **decoder** answers with $x' = z\,w$, the point so far along it. What lies beside the direction is
# lost. The loss is the mean squared error between $x'$ and $x$, as in the chapter's section "The AE
# loss".


# %%
def squared_error(x, w):
    """Mean squared error per entry when rows x (n, 2) are sent as one number along w (2,)."""
    z = x @ w  # encode: (n,)
    reconstruction = z[:, None] * w  # decode: (n, 2)
    return np.mean((reconstruction - x) ** 2)


rng = np.random.default_rng(0)
two_genes = rng.normal(size=(200, 2)) * [1.5, 0.4] @ np.array([[0.8, 0.6], [-0.6, 0.8]])
two_genes = two_genes - two_genes.mean(axis=0)

angles = np.radians(np.arange(180))
errors = [squared_error(two_genes, np.array([np.cos(a), np.sin(a)])) for a in angles]
best = angles[np.argmin(errors)]
print(f"best of 180 angles: {np.degrees(best):.0f} degrees, squared error {min(errors):.4f}")

# The principal components are the eigenvectors of the covariance, here from small to large.
variances, vectors = np.linalg.eigh(two_genes.T @ two_genes / len(two_genes))
component = vectors[:, 1]
angle = np.degrees(np.arctan2(component[1], component[0])) % 180
print(f"first principal component: {angle:.1f} degrees")
print(f"half the variance across it: {variances[0] / 2:.4f}")

# %%
w = np.array([np.cos(best), np.sin(best)])
received = (two_genes @ w)[:, None] * w
figure, (left, right) = plt.subplots(1, 2)
for cell, point in zip(two_genes[:60], received):
    left.plot(*np.transpose([cell, point]), color="#bbbbbb", linewidth=0.8, zorder=0)
left.plot(*two_genes[:60].T, "o", color=COLORS[0], markersize=3.5, label="sent, x")
left.plot(*received[:60].T, "s", color=COLORS[1], markersize=2.5, label="received, x'")
left.set(xlabel="gene 1", ylabel="gene 2", aspect="equal")
left.legend(loc="upper left")
right.plot(np.degrees(angles), errors, color=COLORS[0])
right.axvline(angle, color="black", linewidth=1, linestyle=":", label="principal component")
right.set(xlabel="direction agreed on (degrees)", ylabel="mean squared error", ylim=(0, None))
right.legend(loc="lower right")
plt.show()

# %% [markdown]
# The best direction is the one along which the cells differ most: the first principal component.
# What is lost is the variance across it (half of it, since the mean runs over two features).
#
# This is already an autoencoder. The chapter's picture of a communication channel (its Figures 2
# and 3) and its picture of an autoencoder (Figure 1) have the same parts: the sender is the
# encoder, the channel is the **bottleneck** or **code** $z$, the receiver is the decoder. The
# agreement made beforehand, here $w$, is what gets *learnt*. One asks of both the same question:
# how narrow can the channel be?

# %% [markdown]
# ## 2. PCA is the linear case
#
# Now real cells: 3,005 cells of mouse cortex (Zeisel et al. 2015) and 558 genes, normalised to the
# same total and log-transformed. The code has three numbers. The agreement is a matrix $W$ of shape
# (558, 3), used both ways, as in the chapter's Figure 6:
#
# $$z = x\,W, \qquad x' = z\,W^\top, \qquad \text{loss} = \text{mean of } (x' - x)^2.$$
#
# No eigenvalue is computed below. `W` is a `Tensor`, an array that remembers what was computed from
# it, so `loss.backward()` can put the gradient of the loss into `W.grad`, and Adam, an optimiser,
# takes a step downhill. After every fifth step we note how far the space that $W$ spans is from
# that of the first three principal components. Two planes in space meet at an angle; two spaces of
# three dimensions, within one of 558, meet at three. All are 0 where the two spaces are the same.
# An angle of 90 degrees means that one of the two has a direction of which the other has nothing.

# %%
counts = read(DATA / "cortex.npz")
cell_type = counts.obs["labels"]
expression = log1p(normalize(counts.X)).toarray()
x = expression - expression.mean(axis=0)
components = np.linalg.svd(x, full_matrices=False)[2][:3].T  # what PCA says: (558, 3)

n_steps = 20 if QUICK else 300
start = np.random.default_rng(0).normal(size=(x.shape[1], 3))
start = start / np.sqrt(x.shape[1])  # so that each column has length 1, or nearly
W = Tensor(start.astype(np.float32), requires_grad=True)
optimizer = optim.Adam([W], learning_rate=0.01)
steps = []
found = []
for step in range(n_steps):
    optimizer.learning_rate = 0.01 * (1 - step / n_steps)  # smaller and smaller steps
    optimizer.zero_grad()  # gradients add up, as the lesson `engine` tells: begin at 0
    loss = np.mean(np.square(x @ W @ W.T - x))
    loss.backward()
    optimizer.step()
    if step % 5 == 4:
        steps.append(step + 1)
        found.append(np.degrees(subspace_angles(W.data, components)))

of_pca = np.mean(np.square(x @ components @ components.T - x))
print(f"squared error: {loss.data:.5f} by training, {of_pca:.5f} by PCA")
print("angles between the two subspaces at the end, in degrees:", found[-1].round(3))
print("W.T @ W, should be the identity:", *(W.data.T @ W.data).round(3), sep="\n")
print(
    "W.T @ components, a rotation (perhaps mirrored):", *(W.data.T @ components).round(2), sep="\n"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6))
for i, angle in enumerate(np.transpose(found)):
    label = f"{('largest', 'second', 'smallest')[i]} angle"
    left.plot(steps, angle, color=COLORS[i], marker=MARKERS[i], markersize=3, label=label)
left.set(xlabel="step of training", ylabel="angle to PCA's subspace (degrees)", yscale="log")
left.legend()
some = np.random.default_rng(0).permutation(len(x))[:600]  # all cells would hide one another
drawn = scatter(right, x[some] @ components[:, :2], cell_type[some], size=14)
right.set(xlabel="PC 1", ylabel="PC 2", title="cells, by type")
beside = {"fontsize": 7, "loc": "center left", "bbox_to_anchor": (1, 0.5), "markerscale": 1.6}
legend(right, drawn, **beside)
plt.show()

# %% [markdown]
# The angles go to zero: with linear layers, no hidden layer and one shared matrix, an autoencoder
# *is* PCA. Two details. $W^\top W$ becomes the identity without being asked to: the columns of $W$
# end up at right angles and of length 1. And $W$ is not the matrix of components itself but a
# rotation of it: the receiver needs to know the *space*, any axes within it serve as well. So a
# single number of a code has no meaning by itself; the next run may give it rotated.

# %% [markdown]
# ## 3. What a network adds: curves
#
# A linear code can only use flat surfaces. If the cells lie on a curved one, say along a
# differentiation that turns genes on and then off again, a flat surface needs more dimensions to
# contain it than the cells really have.
#
# Here are simulated rows of 50 features that depend on *three* numbers each, through sines, with a
# little noise. `Autoencoder(50, hidden=(128, 64), n_latent=n)` is the chapter's Figure 5 in small:
# layers of 128 and 64 units, each followed by ReLU (negative numbers become 0), then the bottleneck
# of `n`, then the same backwards. An *epoch* of training is once over all rows. We vary the width
# of the channel, and measure the error on rows that were not trained on.

# %%
NOISE = 0.05


def curved(n, seed):
    """n rows (n, 50) that depend on three hidden numbers each, plus noise."""
    rng = np.random.default_rng(7)  # the surface: the same for every call
    directions = rng.normal(0, 0.9, (3, 50))
    phases = rng.uniform(0, 2 * np.pi, 50)
    rng = np.random.default_rng(seed)  # the rows on it
    hidden = rng.uniform(-1, 1, (n, 3))
    return np.sin(hidden @ directions + phases) + rng.normal(0, NOISE, (n, 50))


def pca_error(train, test, n):
    """Mean squared error of test rows, sent as n principal components of the training rows."""
    mean = train.mean(axis=0)
    v = np.linalg.svd(train - mean, full_matrices=False)[2][:n].T
    return np.mean((mean + (test - mean) @ v @ v.T - test) ** 2)


train = curved(3000, seed=0)
test = curved(1000, seed=1)
channel_widths = (1, 3) if QUICK else (1, 2, 3, 4, 6, 8)
of_network = []
for n in channel_widths:
    model = Autoencoder(50, hidden=(128, 64), n_latent=n)
    model.fit(train, epochs=3 if QUICK else 100, learning_rate=6e-3, progress=False)
    of_network.append(np.mean((model.reconstruct(test) - test) ** 2))
of_pca = [pca_error(train, test, n) for n in channel_widths]

print("channel   network       PCA")
for n, network, linear in zip(channel_widths, of_network, of_pca):
    print(f"{n:>7}{network:>10.5f}{linear:>10.5f}")
print(f"the variance of the noise alone: {NOISE**2:.5f}")
changes = np.array(of_network[1:]) / of_network[:-1] - 1
for wider, change in zip(channel_widths[1:], changes):
    print(f"widened to {wider} numbers, the network's error changes by {change:+.0%}")

# %%
figure, axis = plt.subplots(figsize=(4.8, 3))
axis.plot(channel_widths, of_pca, "s--", color=COLORS[1], label="PCA")
axis.plot(channel_widths, of_network, "o-", color=COLORS[0], label="autoencoder")
axis.axhline(NOISE**2, color="black", linestyle=":", linewidth=1, label="variance of the noise")
axis.axvline(3, color="#bbbbbb", linewidth=1, zorder=0)
axis.set(xlabel="width of the channel (numbers a row)", ylabel="mean squared error", yscale="log")
axis.legend()
plt.show()

# %% [markdown]
# The network's error falls steeply until the channel has three numbers (grey line), as many as the
# rows really depend on, and then by a few hundredths: what remains is near the noise, which nobody
# can send in three numbers. PCA goes on needing more. This is the sense in which an autoencoder is
# a non-linear generalisation of PCA, and how one can look for the true dimension of data: widen the
# channel until another number takes next to nothing off the error on *new* rows. (Train long enough
# for that: after 20 epochs instead of 100 the fourth number seems to matter. Try it.)

# %% [markdown]
# ## 4. A channel that is too wide, and noise as the cure
#
# The chapter's section "Undercomplete and overcomplete autoencoders" asks what happens when the
# code is *larger* than the data. Then the network may just copy. It compresses nothing and learns
# nothing: the identity problem.
#
# Copying stops paying as soon as the input and the target differ. In a **denoising** autoencoder
# noise is added to what the encoder sees, and the target is the clean row. In practice nobody has
# truly clean rows. One takes the data as they were measured for clean, and adds *more* noise to
# them: copying does not pay then either, but what the network learns to undo is the noise that was
# added, not that of the measurement.
#
# Here the curves are simulated, so that clean ones are known. Rows are smooth curves of 40 points,
# and both networks have a code of 80 numbers. The first is trained to give noisy curves back as
# they are, the second (`noise=0.4`) to give back the clean curve behind a noisy one. Both are then
# given new noisy curves.

# %%
SIGMA = 0.4


def waves(n, seed):
    """n smooth curves (n, 40), each the sum of two sines."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 1, 40)
    frequency = rng.uniform(1, 3, (2, n, 1))
    phase = rng.uniform(0, 2 * np.pi, (2, n, 1))
    height = rng.uniform(0.4, 1, (2, n, 1))
    return np.sum(height * np.sin(2 * np.pi * frequency * t + phase), axis=0)


clean = waves(5000, seed=0)
noisy = clean + np.random.default_rng(1).normal(0, SIGMA, clean.shape)
new_clean = waves(1000, seed=2)
new_noisy = new_clean + np.random.default_rng(3).normal(0, SIGMA, new_clean.shape)

epochs = 2 if QUICK else 50
copying = Autoencoder(40, hidden=(128,), n_latent=80)
copying.fit(noisy, epochs=epochs, progress=False)
denoising = Autoencoder(40, hidden=(128,), n_latent=80, noise=SIGMA)
denoising.fit(clean, epochs=epochs, progress=False)

outputs = {
    "nothing": new_noisy,
    "copying network": copying.reconstruct(new_noisy),
    "denoising network": denoising.reconstruct(new_noisy),
}
print("mean squared error against the clean curve, after:")
for name, output in outputs.items():
    print(f"  {name:<18}{np.mean((output - new_clean) ** 2):.4f}")

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
for axis, row in zip(axes, (0, 3)):
    axis.plot(new_noisy[row], ".", color="#888888", markersize=4, label="noisy input")
    axis.plot(new_clean[row], color="black", linewidth=1, label="clean")
    axis.plot(outputs["copying network"][row], "--", color=COLORS[1], label="copying network")
    axis.plot(outputs["denoising network"][row], color=COLORS[0], label="denoising network")
    axis.set(xlabel="position")
axes[0].set(ylabel="value")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# The copying network (dashed) goes through the noisy points. The denoising one has to know what
# curves look like, and removes most of the noise, although its code is as wide.

# %% [markdown]
# ## 5. GENEEX on simulated cells: Figure 7
#
# The chapter's example of an application is GENEEX, the autoencoder of the National Cancer
# Institute for expression profiles. Its Figure 7 uses simulated data: 6,000 cells with 1,000 genes;
# in each third of the cells another third of the genes is switched on. We make such data, and
# train two autoencoders without telling them which cell is of which kind: one with a code of 128
# numbers (7a), one with a code of 2 (7b).
#
# The published layers have 2,048 and 1,024 units. To be quick we take 512 and 256, here and in the
# next section. `Autoencoder.geneex` has the rest of the chapter's choices:
# ReLU and dropout (in training, some units are set to 0 at random) in the hidden layers, a linear
# output, squared error.
#
# To say in a number whether a code separates the kinds, we let k-means split the codes into three
# groups, and compare these with the truth by the adjusted Rand index, ARI: 1 if two ways to group
# the cells are the same, about 0 if one of them is random. (`fit` holds out a tenth of the cells,
# unless it is told otherwise. The squared error below is that of those.)


# %%
def three_profiles(n_cells, n_genes, seed=0):
    """(expression (n_cells, n_genes), profile (n_cells,)): noise, plus 2 where a gene is on."""
    rng = np.random.default_rng(seed)
    profile = np.repeat(np.arange(3), n_cells // 3)
    third_of_gene = np.arange(n_genes) * 3 // n_genes
    is_on = profile[:, None] == third_of_gene
    return rng.normal(0, 1, is_on.shape).astype(np.float32) + 2 * is_on, profile


simulated, profile = three_profiles(600 if QUICK else 6000, 1000)
codes = {}
for n_latent in (128, 2):
    model = Autoencoder.geneex(1000, hidden=(512, 256), n_latent=n_latent)
    history = model.fit(simulated, epochs=1 if QUICK else 5, progress=False)
    codes[n_latent] = model.latent(simulated)
    groups = kmeans(codes[n_latent], 3)
    error = history["validation_loss"][-1]
    agreement = adjusted_rand_index(profile, groups)
    print(f"code of {n_latent:>3}: squared error {error:.3f} on cells held out,", end=" ")
    print(f"k-means finds the profiles with ARI {agreement:.3f}")
print(f"variance of the data {simulated.var(axis=0).mean():.3f}, of its noise 1")
is_test = np.arange(len(simulated)) % 10 == 0
for n in (2, 128):
    linear = pca_error(simulated[~is_test], simulated[is_test], n)
    print(f"PCA with {n:>3} numbers: squared error {linear:.3f} on cells held out")


# %%
def plane(z):
    """Rows z (n, d) in the plane of their first two principal components: (n, 2)."""
    z = z - z.mean(axis=0)
    return z @ np.linalg.svd(z, full_matrices=False)[2][:2].T


names = np.array(["profile 1", "profile 2", "profile 3"])[profile]
figure, (left, right) = plt.subplots(1, 2)
scatter(left, plane(codes[128]), names, size=4)
left.set(title="7a: code of 128, seen by PCA", xlabel="PC 1", ylabel="PC 2")
drawn = scatter(right, codes[2], names, size=4)
right.set(title="7b: code of 2, as it is", xlabel="z 1", ylabel="z 2")
legend(figure, drawn, loc="outside lower center", ncols=3, markerscale=2)
plt.show()

# %% [markdown]
# Both codes separate the three kinds. The squared error stays near 1, the variance of the noise:
# the kinds come through the channel, and the noise of 1,000 genes does not. Through 2 numbers it
# cannot. Through 128 a part of it could: any 128 directions of 1,000 carry an eighth of the noise,
# and so PCA comes well below 1 (printed above). But five epochs with dropout have not taught the
# network to copy noise. To lose the noise is not a failure of the code. It is its use.

# %% [markdown]
# ## 6. GENEEX on real cells
#
# The same network with a code of 128, on the cells of mouse cortex. A tenth of the cells is held
# out. Beside it stands PCA, with ten numbers and with 128. We ask of each code how well it gives
# back the cells held out, and how well k-means finds in it the cell types that Zeisel et al.
# published. None has seen the types.

# %%
shown = np.random.default_rng(0).permutation(len(expression))[: 300 if QUICK else 3005]
real = expression[shown]
types = cell_type[shown]
n_test = len(real) // 10
k = len(set(types))

geneex = Autoencoder.geneex(real.shape[1], hidden=(512, 256))
geneex.fit(real[n_test:], epochs=1 if QUICK else 50, validation=0, progress=False)
code = geneex.latent(real)
error = np.mean((geneex.reconstruct(real[:n_test]) - real[:n_test]) ** 2)

print(f"variance of a gene, averaged over genes: {real.var(axis=0).mean():.3f}")
print(f"autoencoder, 128 numbers: squared error {error:.3f}", end=", ")
print(f"ARI with the {k} types {adjusted_rand_index(types, kmeans(code, k)):.3f}")

centre = real[n_test:].mean(axis=0)
components = np.linalg.svd(real[n_test:] - centre, full_matrices=False)[2].T
for n in (10, 128):
    error = pca_error(real[n_test:], real[:n_test], n)
    found = kmeans((real - centre) @ components[:, :n], k)
    print(f"PCA, {n:>3} numbers: squared error {error:.3f}", end=", ")
    print(f"ARI {adjusted_rand_index(types, found):.3f}")

# %%
figure, axis = plt.subplots(figsize=(6.2, 3.6))
drawn = scatter(axis, plane(code)[:900], types[:900], size=7)
axis.set(title="GENEEX's code of 128, seen by PCA", xlabel="PC 1", ylabel="PC 2")
legend(axis, drawn, **beside)
plt.show()

# %% [markdown]
# Neurons lie on one side, glia and the cells of vessels on the other. The network gives cells back
# no better than ten components do, and much worse than 128. And yet the types come apart better in
# its code: a small error and a useful code are not the same.
#
# What neither code knows is what a count is: squared error treats a 0 in a cell of which few
# molecules were caught like a 0 in a cell of which many were. The next lessons build a *model of
# counts*: what it means that a code is a distribution (`bound`), the variational autoencoder
# (`vae_for_expression`), and scVI (`scvi_simplified`).
#
# The source of what you used is `models/autoencoder.py`; it is written to be read.

# %% [markdown]
# ## Your turn
#
# Write the loss of a denoising autoencoder. You are given two functions, `encode` and `decode`,
# clean rows `x` of shape (n, D), the standard deviation of the noise, and a generator of random
# numbers. The loss is
#
# $$\frac{1}{nD}\sum \big(\text{decode}(\text{encode}(x + \text{noise}\cdot\varepsilon)) - x\big)^2,
# \qquad \varepsilon \sim \text{Normal}(0, 1) \text{ for each entry.}$$
#
# The noise comes from `rng.standard_normal(x.shape)`. Use NumPy's functions (`np.mean`,
# `np.square`), so that it can be differentiated when `encode` and `decode` contain Tensors. Fill in
# the cell, run it, and run the one below. That is the check, and need not be read.


# %%
def denoising_loss(encode, decode, x, noise, rng):
    """The mean squared error between clean rows x (n, D) and what is made of noisy ones."""
    ...  # your turn


# %%
def check(answer):
    """What is wrong with an answer, in a sentence."""
    x = 2 * np.random.default_rng(0).normal(size=(4000, 5))
    rng = np.random.default_rng(1)

    def loss(encode, decode, noise=0.5, rng=rng):
        return answer(encode, decode, x, noise, rng)

    of_copy = loss(lambda x: x, lambda z: z)
    if of_copy is None:
        return "not yet: denoising_loss returns nothing so far (in the end, mind its `return`)."
    if np.shape(of_copy) != ():
        return f"The loss must be one number, and yours has shape {np.shape(of_copy)}: take a mean."
    if of_copy < 0.01:
        return "A network that copies has loss 0: you compare with the noisy rows. Take x itself."
    if of_copy > 1:
        return f"A network that copies should lose 0.25, not {of_copy:.3g}: a mean, not a sum?"
    if abs(of_copy - 0.25) > 0.02:
        return f"A network that copies should lose the noise's variance, 0.25, not {of_copy:.3g}."
    if of_copy == loss(lambda x: x, lambda z: z):
        return "Two calls used the same noise: draw it from rng, anew each time."
    of_little = loss(lambda x: x, lambda z: z, noise=0.1)
    if abs(of_little - 0.01) > 0.002:
        return f"With noise = 0.1 a copy loses 0.01, and yours {of_little:.3g}: use the argument."
    twice = [loss(lambda x: x, lambda z: z, rng=np.random.default_rng(2)) for _ in range(2)]
    if twice[0] != twice[1]:
        return "Two generators with one seed gave two losses: draw from rng, which is handed in."
    of_zero = loss(lambda x: 0 * x, lambda z: z)
    if abs(of_zero - np.mean(x**2)) > 1e-9:
        return "A network that always says 0 loses more than it should: only encode sees the noise."
    # decode(encode(x + noise)) - x is 5 x + 6 noise + 1 here.
    expected = np.mean((5 * x + 1) ** 2) + 36 * 0.25
    if abs(loss(lambda x: 2 * x, lambda z: 3 * z + 1) - expected) > 1.5:
        return "Compare decode(encode(noisy rows)) with x: first decode the code, then subtract x."
    added = []

    def look(noisy):
        added.append(noisy - x)
        return noisy

    loss(look, lambda z: z)
    if np.allclose(added[0], added[0][:, :1]) or np.allclose(added[0], added[0][:1]):
        return "A whole row or column got one eps: draw one for each entry, in the shape of x."
    weight = Tensor(np.ones(5), requires_grad=True)
    try:
        of_tensor = loss(lambda x: x * weight, lambda z: z)
    except TypeError as error:
        return f"It cannot be differentiated, use NumPy's functions only: {error}"
    if not isinstance(of_tensor, Tensor):
        return "With Tensors inside, the loss must be a Tensor: use NumPy's functions only."
    return "Right: copying no longer pays."


print(check(denoising_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def denoising_loss(encode, decode, x, noise, rng):
#     noisy = x + noise * rng.standard_normal(x.shape)
#     return np.mean(np.square(decode(encode(noisy)) - x))
# ```
#
# </details>

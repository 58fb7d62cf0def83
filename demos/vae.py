"""Figures 8 to 10 of the chapter: VAEs with Gaussian and categorical decoders on real expression.

A VAE is an autoencoder whose code is a distribution and whose output is one. For log-normalised
expression the decoder is a Normal, and the reconstruction term a squared error; for counts a
categorical distribution over genes (Figure 10), and the reconstruction term the log-probability of
each molecule's gene. The curves show the two terms of the ELBO trading: reconstruction improves as
KL(q || prior) is spent. Draws from the prior, decoded, look like cells in their average expression,
and a histogram of one gene beside the data's shows how much of the variation they have.
"""

from __future__ import annotations

import numpy as np

from demos import show
from models import VAE
from models.counts import log1p, normalize, read


def draws(model: VAE, x: np.ndarray) -> np.ndarray:
    """As many new rows as x has, (n, n_genes): codes from the prior, decoded, with noise.

    A categorical decoder gives the gene of one molecule. Here each cell gets as many molecules as
    one of x.
    """
    if model.config["decoder"] != "categorical":
        return model.generate(len(x), seed=1)
    fractions = model.generate(len(x), seed=1, mean=True).astype(np.float64)
    fractions /= fractions.sum(axis=1, keepdims=True)
    return np.random.default_rng(1).multinomial(x.sum(axis=1).astype(int), fractions)


def run(options) -> None:
    counts = read(show.DATA / "cortex.npz")
    raw = counts.X[:400] if options.quick else counts.X
    log_expression = log1p(normalize(raw)).toarray()
    f, axes = show.figure(2, 3, width=3.3, height=2.9)
    for row, name, x in zip(axes, ("normal", "categorical"), (log_expression, raw.toarray())):
        model = VAE(
            x.shape[1],
            hidden=(128,),
            n_latent=10,
            decoder=name,
            sigma="learned" if name == "normal" else 1.0,
        )
        history = model.fit(x, epochs=4 if options.quick else 40)
        new = draws(model, x)
        fractions = [
            a / np.maximum(a.sum(axis=1, keepdims=True), 1e-9) if name == "categorical" else a
            for a in (x, new)
        ]
        means, spreads = [a.mean(axis=0) for a in fractions], [a.std(axis=0) for a in fractions]
        gene = int(np.argsort(spreads[0])[-5])
        print(
            f"{name:<12} decoder: held-out ELBO {history['validation_elbo'][-1]:.1f} nats a cell "
            "(reconstruction "
            f"{history['validation_reconstruction'][-1]:.1f}, KL "
            f"{history['validation_kl'][-1]:.1f}); genes, cells against "
            f"draws: correlation of means {np.corrcoef(*means)[0, 1]:.3f}, of spreads "
            f"{np.corrcoef(*spreads)[0, 1]:.3f}"
        )
        epochs = history["epoch"]
        row[0].plot(
            epochs,
            -np.array(history["validation_reconstruction"]),
            color=show.COLORS[0],
            label="-reconstruction",
        )
        row[0].set(xlabel="epoch", ylabel="-reconstruction (nats a cell)", title=f"{name} decoder")
        twin = row[0].twinx()
        twin.plot(epochs, history["validation_kl"], "--", color=show.COLORS[1])
        twin.set_ylabel("KL, dashed (nats a cell)")
        row[1].scatter(means[0], means[1], s=6, color=show.COLORS[0], linewidths=0)
        top = max(means[0].max(), means[1].max())
        least = min(means[0].min(), means[1].min()) if name == "categorical" else 0.0
        row[1].plot([least, top], [least, top], color="#888888", linewidth=0.8)
        row[1].set(xlabel="mean of a gene, cells", ylabel="mean of a gene, draws")
        bins = np.linspace(0, np.quantile(fractions[0][:, gene], 0.995), 30)
        row[2].hist(fractions[0][:, gene], bins, density=True, color="#999999", label="cells")
        row[2].hist(
            fractions[1][:, gene],
            bins,
            density=True,
            histtype="step",
            linewidth=1.6,
            color=show.COLORS[5],
            label="draws",
        )
        unit = "fraction" if name == "categorical" else "log expression"
        row[2].set(xlabel=f"{unit} of {counts.genes[gene]}", ylabel="density")
        if name == "categorical":  # most fractions are small
            row[1].set(xscale="log", yscale="log")
            row[2].set(yscale="log")
        row[2].legend(frameon=False)
    show.save(
        f,
        options.out,
        "vae",
        "VAEs on mouse cortex, above with a Normal, below with a categorical decoder: the terms of "
        "the held-out ELBO, the means of all genes in cells and in draws from the prior, which "
        "agree, and a gene that varies much, of which the draws have too few zeros and high "
        "values.",
    )

"""A trained scVI on one page: what its training, latent space and counts look like.

This is engineering.

Know before reading: scvi.py, posterior.py, and what k-means is. A figure for each question:

    training        loss and held-out ELBO by epoch
    latent space    cells on the first principal components of their latent means, by label and by
                    library size
    dimensions      KL of q(z | x) from the prior, by latent dimension: one near 0 goes unused
    counts          posterior predictive: mean and zeros of each gene, in the data and in counts
                    drawn from the model
    cells           library sizes and genes detected, in the data and in cells generated from the
                    prior

The page holds its pictures and needs no network. Also here: the palette of this project, for the
demos too, and legends that show names as they are.

Know after: how to look at a fitted model before believing it.
"""

from __future__ import annotations

import base64
import html
import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from minigrad.backend import Array, Matrix
from models import integration
from models.clustering import (
    adjusted_rand_index,
    batch_mixing,
    kmeans,
    normalized_mutual_information,
    silhouette,
)
from models.counts import Counts, library_size
from models.runs import as_texts, in_memory

# Okabe & Ito (2008), then three more for up to ten classes; markers help where colours do not.
COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
    "#F0E442",
    "#7F7F7F",
    "#882255",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #222;
    max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; border: 1px solid #ddd }
pre { background: #f6f6f6; padding: .8rem; white-space: pre-wrap; font-size: 12px }
figcaption { color: #555; margin-bottom: 1.5rem }
code { background: #f6f6f6 } nav a { margin-right: .8rem }"""
MOST_CELLS = 3000  # shown, and looked at for what needs all pairs of them
MOST_DRAWN = 1000  # cells of which the model draws counts
N_CLUSTERS = 7  # where no labels are given: the colours before yellow, which is pale on white
MOST_NUMBERS = 30  # that are taken for names, as of clusters
MOST_LABELS = 10  # that the palette tells apart; the rarer ones become "others"


def write(
    path,
    model,
    history,
    counts: Counts,
    batch: Array | str | None = None,
    labels: Array | None = None,
    label_name: str = "cluster",
    title: str = "scVI",
) -> None:
    """Write the page, one HTML file, for a trained SCVI and counts (n_cells, n_genes) of its genes.

    batch: a label per cell, or None; labels: (n_cells,) by which cells are coloured and clusters
    judged, called label_name; of numbers (`as_numbers`) there is a colour bar, and no clusters;
    None: k-means clusters. A large data set is looked at in a
    random few thousand cells, and only these are read into memory where the counts lie on the disk.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(counts))[:MOST_CELLS])
    counts = in_memory(counts[rows])
    batch, labels = (
        batch if batch is None else batch[rows],
        labels if labels is None else labels[rows],
    )
    mean, std = model.latent(counts, batch, return_std=True)
    shown: Array
    if labels is None:
        shown = kmeans(mean, min(N_CLUSTERS, len(mean))).astype(str)
    elif (numbers := as_numbers(labels)) is not None:
        shown = numbers
        labels = None  # no kinds of cells, that clusters could be judged by
    else:
        labels = as_texts(labels)
        shown = most_frequent(labels)
    drawn = np.sort(np.random.default_rng(1).permutation(len(counts))[:MOST_DRAWN])
    of_drawn = None if batch is None else batch[drawn]
    parts = [
        table(facts(model, history, len(rows)) + scores(mean, batch, labels, label_name)),
        integration_table(mean, batch, labels, label_name),
        figure(
            training(history),
            "Training: loss of the training cells, and ELBO of those held out, with its parts, by "
            "epoch. A validation ELBO that falls again says that the model learns its training "
            "cells by heart.",
        ),
        figure(
            latent_space(mean, shown, label_name, library_size(counts.X)),
            f"{len(mean):,} cells on the first principal "
            f"components of their latent means, by {label_name} and by library size.",
        ),
        figure(
            dimensions(mean, std),
            "KL divergence of q(z | x) from the prior, averaged over cells, by latent dimension. "
            "Where it is near 0 the dimension goes unused; where all are, the latent space says "
            "nothing.",
        ),
        figure(
            genes(counts.X[drawn], model.sample_posterior(counts[drawn], of_drawn)),
            "A point a gene: in the data, and in "
            "counts drawn from the model for the same cells. On the line the model has it right.",
        ),
        figure(
            cells(counts.X, model.generate(max(len(rows), 100))),
            "Cells of the data, and cells generated from the prior: "
            "their library sizes and numbers of genes detected.",
        ),
    ]
    name = html.escape(title)
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
        f"<style>{STYLE}</style>"
        f"<h1>{name}</h1>{''.join(parts)}</html>\n",
        encoding="utf-8",
    )


# -------------------------------------------------------------------------------------- the numbers
def facts(model, history, n_shown: int) -> list:
    """(what, value) pairs, str: of the model and its training."""
    c = model.config
    found = [
        (
            "model",
            f"{c['likelihood']}, {c['n_genes']:,} genes, {c['n_batches']} batch(es), "
            f"{c['n_latent']} latent dimensions, {c['n_layers']} x {c['n_hidden']} hidden units",
        ),
        (
            "training",
            f"{len(history)} epochs, {sum(history['seconds']):.0f} s"
            if len(history)
            else "no whole epoch",
        ),
    ]
    if "validation_elbo" in history:
        given = "; given each cell's total, so not to be compared with models of a latent library"
        found.append(
            (
                "held-out ELBO, last epoch",
                f"{history['validation_elbo'][-1]:.1f} nats a cell"
                + given * (c["library"] == "observed"),
            )
        )
    return [*found, ("cells looked at", f"{n_shown:,}")]


def scores(z: Array, batch, labels: Array, label_name) -> list:
    """(what, value) pairs, str: how clusters of z (n, n_latent) fit labels, how batches mix."""
    found, n_labels = [], 0 if labels is None else len(set(labels))
    if 1 < n_labels < len(z):
        clusters = kmeans(z, n_labels)
        ari = adjusted_rand_index(labels, clusters)
        nmi = normalized_mutual_information(labels, clusters)
        found += [
            (
                f"{n_labels} k-means clusters against {label_name}",
                f"ARI {ari:.2f}, NMI {nmi:.2f}",
            ),
            (f"silhouette of {label_name}", f"{silhouette(z, labels):.2f}"),
        ]
    if batch is not None and len(z) > 50 and len(set(batch)) > 1:
        p = np.unique(batch, return_counts=True)[1] / len(batch)
        found.append(
            (
                "entropy of batch mixing",
                f"{batch_mixing(z, batch):.2f} nats; {-np.sum(p * np.log(p)):.2f} if z knew "
                "nothing of batches",
            )
        )
    return found


def integration_table(z: Array, batch, labels, label_name) -> str:
    """HTML of the scores of integration of z (n, n_latent); nothing where there is one batch."""
    if batch is None or len(set(batch)) < 2 or len(z) < 3 * integration.PERPLEXITY:
        return ""
    n_labels = 0 if labels is None else len(set(labels))
    try:
        found = integration.scores(z, batch, labels if n_labels > 1 else None)
    except ValueError:  # labels of which none has cells of two batches, such as the batch itself
        found = integration.scores(z, batch)
    names = {
        "ilisi": "batches in a neighbourhood (iLISI)",
        "kbet": "neighbourhoods that pass for mixed (kBET)",
        "batch_silhouette": f"silhouette of batches within {label_name}, turned",
        "clisi": f"one {label_name} in a neighbourhood (cLISI)",
        "label_silhouette": f"silhouette of {label_name}, scaled",
        "graph_connectivity": f"{label_name} connected",
    }
    return "<h2>Integration: 0 to 1, 1 is best</h2>" + table(
        [(name, f"{found[score]:.2f}") for score, name in names.items() if score in found]
    )


def as_numbers(labels: Array) -> np.ndarray | None:
    """Labels (n,) that are a measurement, as float64, NaN where one is missing; None for names.

    Numbers of clusters and batches are whole and few; fractions, or many different numbers, measure
    something.
    """
    values = np.asarray(labels)
    if values.dtype == object:  # a column with missing values
        values = np.array([np.nan if value is None else value for value in values.tolist()])
    if values.dtype.kind not in "iuf":
        return None
    values = values.astype(np.float64)
    different = np.unique(values[np.isfinite(values)])
    are_whole = np.array_equal(different, np.floor(different))
    return None if are_whole and len(different) <= MOST_NUMBERS else values


def most_frequent(labels: Array) -> Array:
    """The labels, (n,) str, all but the most frequent called "others", so that colours suffice."""
    names, numbers = np.unique(labels, return_counts=True)
    if len(names) <= MOST_LABELS:
        return labels
    kept = names[np.argsort(-numbers, kind="stable")[: MOST_LABELS - 1]]
    return np.where(np.isin(labels, kept), labels, "others")


# ------------------------------------------------------------------------------------- the pictures
def training(history) -> bytes | None:
    """The curves, as a PNG; None where no epoch was finished."""
    if not len(history):
        return None
    file = io.BytesIO()
    history.plot(file)
    return file.getvalue()


def latent_space(mean: Array, labels: Array, label_name, library: Array) -> bytes:
    """Cells on two principal components of the latent means: by label, and by library size.

    mean: (n, n_latent); labels, library: (n,). Labels that are float have a colour bar, and are
    grey where they are not finite.
    """
    centred = mean - mean.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points, share = (u * s)[:, :2], s**2 / max(np.sum(s**2), 1e-30)
    if points.shape[1] == 1:
        points, share = np.column_stack([points, np.zeros(len(points))]), np.append(share, 0.0)
    f = Figure(figsize=(11.5, 4.4), layout="constrained")
    left, right = f.subplots(1, 2)
    if np.asarray(labels).dtype.kind == "f":
        by_number(left, points, labels, label_name)
    else:
        drawn = scatter(left, points, labels)
        legend(
            left,
            drawn,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            title=label_name,
            fontsize=8,
            markerscale=2,
            frameon=False,
        )
    depth = np.log10(np.maximum(library, 1.0))
    by_number(right, points, depth, "log10 library size (counts a cell)")
    for axes in (left, right):
        axes.set(
            xticks=[],
            yticks=[],
            xlabel=f"PC 1 of z ({share[0]:.0%} of its variance)",
            ylabel=f"PC 2 of z ({share[1]:.0%})",
        )
    return png(f)


def dimensions(mean: Array, std: Array) -> bytes:
    """KL(q(z_j | x) || Normal(0, 1)) of each latent dimension j, a mean over cells, largest first.

    mean, std: (n, n_latent).
    """
    kl = np.mean((mean**2 + std**2 - 1) / 2 - np.log(std), axis=0)
    f = Figure(figsize=(6.5, 3), layout="constrained")
    axes = f.add_subplot()
    axes.bar(np.arange(1, len(kl) + 1), np.sort(kl)[::-1], color=COLORS[0])
    axes.set(xlabel="latent dimension, by rank", ylabel="KL (nats a cell)")
    return png(f)


def genes(x: Matrix, drawn: Matrix) -> bytes:
    """Mean and fraction of zeros of each gene, in the data and in counts drawn from the model.

    x: (n, n_genes), CSR; drawn: (n, n_genes).
    """
    x = x.toarray()
    f = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = f.subplots(1, 2)
    means = np.maximum(
        [x.mean(axis=0), drawn.mean(axis=0)], 0.5 / len(x)
    )  # a gene without counts has a place on the log scale
    left.scatter(*means, s=9, color=COLORS[0], linewidths=0, alpha=0.7)
    left.plot(
        [means.min(), means.max()],
        [means.min(), means.max()],
        color="#555555",
        linewidth=0.8,
        zorder=0,
    )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="mean count in the data",
        ylabel="mean count in draws from the model",
    )
    right.scatter(
        np.mean(x == 0, axis=0),
        np.mean(drawn == 0, axis=0),
        s=9,
        color=COLORS[0],
        linewidths=0,
        alpha=0.7,
    )
    right.plot([0, 1], [0, 1], color="#555555", linewidth=0.8, zorder=0)
    right.set(
        xlabel="fraction of zeros in the data", ylabel="fraction of zeros in draws from the model"
    )
    return png(f)


def cells(x: Matrix, generated: Matrix) -> bytes:
    """Library sizes and genes detected: cells x (n, n_genes), CSR, and generated (m, n_genes)."""
    f = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = f.subplots(1, 2)
    sizes = [np.log10(np.maximum(total, 1.0)) for total in (library_size(x), generated.sum(axis=1))]
    detected = [np.diff(x.indptr), np.sum(generated > 0, axis=1)]
    names = "log10 library size (counts a cell)", "genes detected in a cell"
    for axes, values, name in zip((left, right), (sizes, detected), names):
        bins = np.linspace(min(v.min() for v in values), max(v.max() for v in values) + 1e-6, 41)
        for v, color, label, style in zip(
            values, (COLORS[0], COLORS[5]), ("data", "generated from the prior"), ("-", "--")
        ):
            axes.hist(
                v,
                bins,
                density=True,
                histtype="step",
                linewidth=1.6,
                color=color,
                linestyle=style,
                label=label,
            )
        axes.set(xlabel=name, ylabel="density of cells", yticks=[])
    left.legend(frameon=False, fontsize=8, loc="upper left")
    low, high = left.get_ylim()
    left.set_ylim(low, 1.2 * high)  # room for the legend
    return png(f)


def by_number(axes, points: np.ndarray, values: Array, name: str) -> None:
    """Points (n, 2) coloured by values (n,), with a colour bar; grey where they are not finite."""
    known = np.isfinite(values)
    axes.scatter(*points[~known].T, s=8, color="#CCCCCC", linewidths=0, rasterized=True)
    dots = axes.scatter(
        *points[known].T, c=values[known], s=8, cmap="viridis", linewidths=0, rasterized=True
    )
    axes.figure.colorbar(dots, ax=axes).set_label(name, parse_math=False)


def scatter(axes, points: np.ndarray, labels: Array, size: float = 8.0) -> dict:
    """Points (n, 2) by label, each with a colour and a marker of its own.

    Returns label -> what was drawn, for `legend`.
    """
    labels = np.asarray(labels)
    drawn = {}
    for i, name in enumerate(sorted(set(labels))):
        chosen = labels == name
        drawn[str(name)] = axes.scatter(
            *points[chosen].T,
            s=size,
            color=COLORS[i % len(COLORS)],
            marker=MARKERS[i % len(MARKERS)],
            linewidths=0,
            alpha=0.75,
            rasterized=True,
        )
    axes.set(xticks=[], yticks=[])
    return drawn


def legend(place, drawn: dict, **options) -> Legend:
    """The legend of what `scatter` has drawn, with every name as it is.

    place: the Axes, or their Figure; options: of matplotlib's legend. Names come from data, and
    matplotlib would set what stands between two `$` as mathematics and leave out a name that begins
    with `_`. So the legend is made with other names, which are then replaced.
    """
    made = place.legend(list(drawn.values()), ["name"] * len(drawn), **options)
    for text, name in zip(made.get_texts(), drawn):
        text.set_text(name)
        text.set_parse_math(False)
    made.get_title().set_parse_math(False)
    return made


# ----------------------------------------------------------------------------------------- the page
def png(f: Figure) -> bytes:
    """A figure as a PNG file's content."""
    file = io.BytesIO()
    f.savefig(file, format="png", dpi=110)
    return file.getvalue()


def figure(picture: bytes | None, caption: str) -> str:
    """HTML of a picture, in the page itself, and its caption; nothing where there is no picture."""
    if picture is None:
        return ""
    text, data = html.escape(caption), base64.b64encode(picture).decode()
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def table(pairs) -> str:
    """HTML of (what, value) pairs."""
    rows = "".join(f"<tr><td>{html.escape(what)}<td>{html.escape(value)}" for what, value in pairs)
    return f"<table>{rows}</table>"

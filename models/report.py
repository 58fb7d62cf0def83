"""A trained scVI on one page: what its training, latent space and counts look like.

This is engineering.

Know before reading: scvi.py, posterior.py, and what k-means is. A figure for each question:

    training        loss and held-out ELBO by epoch
    latent space    cells on the first principal components of their latent means, by label, by
                    batch and by library size
    dimensions      KL of q(z | x) from the prior, by latent dimension: one near 0 goes unused
    counts          posterior predictive: mean and zeros of each gene, in the data and in counts
                    drawn from the model
    cells           library sizes and genes detected, in the data and in cells generated from the
                    prior

The page holds its pictures and needs no network; on a narrow screen its panels stand one below the
other, and where the reader wants it dark it is. Also here: the palette of this project, for the
demos too, and legends that show names as they are.

Know after: how to look at a fitted model before believing it.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from minigrad.backend import Array, Matrix
from minigrad.fit import History
from models import integration
from models.clustering import (
    adjusted_rand_index,
    batch_mixing,
    kmeans,
    normalized_mutual_information,
    silhouette,
)
from models.counts import Counts, library_size
from models.measured import unmeasured_in
from models.posterior import knows_library
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
    "#C4BB34",
    "#7F7F7F",
    "#882255",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
MOST_LIGHT = 0.475  # luminance of markers: on white, whose is 1, a contrast of 2


def legible(color) -> str:
    """A colour of matplotlib as "#RRGGBB", darkened in its own hue where white would swallow it.

    Luminance and contrast are those of WCAG 2.1.
    """
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    if luminance <= MOST_LIGHT:
        return to_hex(color)
    linear = linear * (MOST_LIGHT / luminance)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = rgb.tolist()
    return to_hex((red, green, blue))


# Twenty more for up to as many classes, in the order of matplotlib's map of that name.
MANY_COLORS = tuple(legible(colormaps["tab20"](i)[:3]) for i in range(20))
OTHERS = "others"  # labels that have no colour of their own
STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
    max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere }
figure { margin: 1.5rem 0 }
.panels { display: flex; flex-wrap: wrap; align-items: flex-start; gap: .5rem }
.panels img { flex: 1 1 26rem; min-width: 0; max-width: min(100%, 40rem); height: auto;
    box-sizing: border-box; background: #fff; border: 1px solid #ddd }
.panels img:only-child { flex: 0 1 auto; max-width: 100% }
pre { background: #f6f6f6; padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
    font-size: 12px }
figcaption { color: #555; margin: .5rem 0 1.5rem; max-width: 60rem }
code { background: #f6f6f6 } nav a { margin-right: .8rem }
table { border-collapse: collapse }
td { padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
@media (prefers-color-scheme: dark) {
    body { color: #ddd; background: #161618 }
    pre, code { background: #26262a }
    figcaption { color: #aaa }
    td, .panels img { border-color: #444 }
    .panels img { filter: brightness(.88) }
    a { color: #8ab4f8 }
}"""
MOST_CELLS = 3000  # shown, and looked at for what needs all pairs of them
MOST_DRAWN = 1000  # cells of which the model draws counts
N_CLUSTERS = 7  # where no labels are given
MOST_NUMBERS = 30  # that are taken for names, as of clusters
MOST_LABELS = 20  # that colours and markers tell apart; the rarer ones become "others"


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
    n_new = max(len(rows), 100)
    sizes = None
    if not np.all(knows_library(model)):  # as weights of scvi-tools do not
        sizes = np.resize(np.maximum(library_size(counts.X), 1.0), n_new)
    of_drawn = None if batch is None else batch[drawn]
    codes = model.minibatches(counts[drawn], of_drawn).columns[1]
    is_measured = ~unmeasured_in(model, counts[drawn], codes)
    n_absent = int(np.sum(~is_measured))
    sampled = model.sample_posterior(counts[drawn], of_drawn)
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
            latent_space(mean, shown, label_name, library_size(counts.X), batch),
            f"{len(mean):,} cells on the first principal components of their latent means, by "
            f"{label_name}{', by batch' * has_batches(batch)} and by library size.",
        ),
        figure(
            dimensions(mean, std),
            "KL divergence of q(z | x) from the prior, averaged over cells, by latent dimension. "
            "Where it is near 0 the dimension goes unused; where all are, the latent space says "
            "nothing.",
        ),
        figure(
            genes(counts.X[drawn][:, is_measured], sampled[:, is_measured]),
            "A point a gene: in the data, and in "
            "counts drawn from the model for the same cells. On the line the model has it right."
            + f" {n_absent:,} genes that were not measured are left out."
            * (n_absent > 0),
        ),
        figure(
            cells(counts.X, model.generate(n_new, library_size=sizes)),
            "Cells of the data, and cells generated from the prior: "
            "their library sizes and numbers of genes detected.",
        ),
    ]
    Path(path).write_text(page(title, "".join(parts)), encoding="utf-8")


# -------------------------------------------------------------------------------------- the numbers
def batches_of(n: int) -> str:
    """Their number, in words of a sentence."""
    return f"{n} batch" + "es" * (n != 1)


def facts(model, history, n_shown: int) -> list:
    """(what, value) pairs, str: of the model and its training."""
    c = model.config
    found = [
        (
            "model",
            f"{c['likelihood']}, {c['n_genes']:,} genes, {batches_of(c['n_batches'])}, "
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


def has_batches(batch: Array | None) -> bool:
    """Whether there is more than one batch among cells with these labels, (n,)."""
    return batch is not None and len(np.unique(np.asarray(batch).astype(str))) > 1


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
    return np.where(np.isin(labels, kept), labels, OTHERS)


# ------------------------------------------------------------------------------------- the pictures
def training(history) -> list[bytes]:
    """The curves, as PNGs; none where no epoch was finished."""
    if not len(history):
        return []
    names = [name for name in history.names if name.startswith(("train_", "validation_"))]
    return [png(History({"epoch": history["epoch"], n: history[n]}).plot()) for n in names]


def latent_space(
    mean: Array, labels: Array, label_name, library: Array, batch: Array | None = None
) -> list[bytes]:
    """Cells on two principal components of the latent means: a panel for each thing known of them.

    mean: (n, n_latent); labels, library: (n,); batch: (n,), which has a panel if there are several.
    Labels that are float have a colour bar, and are grey where they are not finite.
    """
    centred = mean - mean.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points, share = (u * s)[:, :2], s**2 / max(np.sum(s**2), 1e-30)
    if points.shape[1] == 1:
        points, share = np.column_stack([points, np.zeros(len(points))]), np.append(share, 0.0)
    panels = []

    def panel() -> tuple:
        f = Figure(figsize=(5.8, 4.2), layout="constrained")
        axes = f.add_subplot()
        axes.set(
            xticks=[],
            yticks=[],
            xlabel=f"PC 1 of z ({share[0]:.0%} of its variance)",
            ylabel=f"PC 2 of z ({share[1]:.0%})",
        )
        panels.append(f)
        return f, axes

    beside = dict(loc="outside right upper", fontsize=8, markerscale=2, frameon=False)
    f, axes = panel()
    if np.asarray(labels).dtype.kind == "f":
        by_number(axes, points, labels, label_name)
    else:
        legend(f, scatter(axes, points, labels), title=label_name, **beside)
    if has_batches(batch):
        f, axes = panel()
        kinds = most_frequent(np.asarray(batch).astype(str))
        legend(f, mixed(axes, points, kinds), title="batch", **beside)
    f, axes = panel()
    depth = np.log10(np.maximum(library, 1.0))
    by_number(axes, points, depth, "log10 library size (counts a cell)")
    return [png(f) for f in panels]


def dimensions(mean: Array, std: Array) -> list[bytes]:
    """KL(q(z_j | x) || Normal(0, 1)) of each latent dimension j, a mean over cells, largest first.

    mean, std: (n, n_latent).
    """
    kl = np.mean((mean**2 + std**2 - 1) / 2 - np.log(std), axis=0)
    f, axes = panel_of_numbers()
    axes.bar(np.arange(1, len(kl) + 1), np.sort(kl)[::-1], color=COLORS[0])
    axes.set(xlabel="latent dimension, by rank", ylabel="KL (nats a cell)")
    return [png(f)]


def panel_of_numbers() -> tuple:
    """A Figure that is one panel of a page, and its axes."""
    f = Figure(figsize=(5.2, 3.8), layout="constrained")
    return f, f.add_subplot()


def genes(x: Matrix, drawn: Matrix) -> list[bytes]:
    """Mean and fraction of zeros of each gene, in the data and in counts drawn from the model.

    x: (n, n_genes), CSR; drawn: (n, n_genes).
    """
    x = x.toarray()
    of_means, left = panel_of_numbers()
    of_zeros, right = panel_of_numbers()
    means = np.maximum(
        [x.mean(axis=0), drawn.mean(axis=0)], 0.5 / len(x)
    )  # a gene without counts has a place on the log scale
    zeros = np.mean(x == 0, axis=0), np.mean(drawn == 0, axis=0)
    for axes, points in ((left, means), (right, zeros)):
        axes.scatter(*points, s=9, color=COLORS[0], linewidths=0, alpha=0.7)
    for axes, ends in ((left, [means.min(), means.max()]), (right, [0, 1])):
        axes.plot(ends, ends, color="#555555", linewidth=0.8, zorder=0)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="mean count in the data",
        ylabel="mean count in draws from the model",
    )
    right.set(
        xlabel="fraction of zeros in the data", ylabel="fraction of zeros in draws from the model"
    )
    return [png(of_means), png(of_zeros)]


def cells(x: Matrix, generated: Matrix) -> list[bytes]:
    """Library sizes and genes detected: cells x (n, n_genes), CSR, and generated (m, n_genes)."""
    sizes = [np.log10(np.maximum(total, 1.0)) for total in (library_size(x), generated.sum(axis=1))]
    detected = [np.diff(x.indptr), np.sum(generated > 0, axis=1)]
    names = "log10 library size (counts a cell)", "genes detected in a cell"
    panels = []
    for values, name in zip((sizes, detected), names):
        f, axes = panel_of_numbers()
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
        f.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
        panels.append(png(f))
    return panels


def look_of(names: list[str]) -> dict[str, dict]:
    """A colour and a marker for each name, as matplotlib's options; "others" are grey."""
    colors = COLORS if len(names) <= len(COLORS) else MANY_COLORS
    found = {}
    for i, name in enumerate(names):
        color = colors[i % len(colors)]
        found[name] = {"color": color, "marker": MARKERS[i % len(MARKERS)]}
    if OTHERS in found and len(names) > len(COLORS):
        found[OTHERS] = {"color": "#BBBBBB", "marker": "."}
    return found


def mixed(axes, points: np.ndarray, labels: Array, size: float = 8.0) -> dict:
    """Points (n, 2) coloured by label and drawn in random order, so that no label hides another.

    Returns label -> a handle, for `legend`.
    """
    labels = np.asarray(labels)
    look = look_of(sorted(set(labels.tolist())))
    order = np.random.default_rng(0).permutation(len(labels))
    colors = [look[name]["color"] for name in labels[order].tolist()]
    axes.scatter(*points[order].T, s=size, c=colors, linewidths=0, alpha=0.75, rasterized=True)
    axes.set(xticks=[], yticks=[])
    return {
        name: Line2D([], [], color=of_name["color"], marker="o", markersize=3, linestyle="")
        for name, of_name in look.items()
    }


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
    labels = np.asarray(labels).astype(str)
    drawn = {}
    for name, look in look_of(sorted(set(labels.tolist()))).items():
        chosen = labels == name
        drawn[name] = axes.scatter(
            *points[chosen].T,
            s=size,
            linewidths=0,
            alpha=0.75,
            rasterized=True,
            **look,
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


def page(title: str, body: str) -> str:
    """A whole HTML page of this style. title: text; body: HTML."""
    name = html.escape(title)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>{body}</html>\n"
    )


def figure(pictures: list[bytes], caption: str) -> str:
    """HTML of pictures side by side, in the page itself, and their caption; nothing for none."""
    if not pictures:
        return ""
    text = html.escape(caption)
    images = [
        f'<img alt="{text}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for picture in pictures
    ]
    panels = f"<div class=panels>{''.join(images)}</div>"
    return f"<figure>{panels}<figcaption>{text}</figcaption></figure>"


def table(pairs) -> str:
    """HTML of (what, value) pairs."""
    rows = "".join(f"<tr><td>{html.escape(what)}<td>{html.escape(value)}" for what, value in pairs)
    return f"<table>{rows}</table>"

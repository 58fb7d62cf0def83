"""A trained scVI on one page: what its training, latent space and counts look like.

This is engineering.

Know before reading: scvi.py, posterior.py, and what k-means is. A figure for each question:

    training        loss and held-out ELBO by epoch
    latent space    cells on the first principal components of their latent means, and by t-SNE of
                    them: by label, by batch and by library size
    dimensions      KL of q(z | x) from the prior, by latent dimension: one near 0 goes unused
    counts          posterior predictive: mean and zeros of each gene, in the data and in counts
                    drawn from the model
    cells           library sizes and genes detected, in the data and in cells generated from the
                    prior

The page holds its pictures and needs no network; on a narrow screen its panels stand one below the
other, and where the reader wants it dark it is. Names of labels are text of the page, not of a
picture, which a telephone would make too small. Also here, for the demos too: points by label, and
legends of pictures that show names as they are.

Know after: how to look at a fitted model before believing it.
"""

from __future__ import annotations

import base64
import html
import io
import re
import textwrap
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.markers import MarkerStyle

from minigrad.backend import Array, Matrix
from minigrad.checkpoint import whole_file
from minigrad.fit import History
from minigrad.notebook import for_number, number_of
from models import integration
from models.clustering import (
    adjusted_rand_index,
    batch_mixing,
    kmeans,
    normalized_mutual_information,
    silhouette,
)
from models.colors import COLORS, GREY, MARKERS, OTHERS, PALETTE, look_by_name, look_of
from models.counts import Counts, library_size
from models.measured import unmeasured_in
from models.posterior import knows_library
from models.runs import as_texts, in_memory
from models.tsne import tsne

__all__ = ["COLORS", "MARKERS", "figure", "legend", "look_of", "page", "scatter", "write"]
STYLE = """:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
    max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere }
figure { margin: 1.5rem 0 }
.panels { display: grid; gap: .75rem; align-items: start;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
.wide { overflow-x: auto }
figure img { max-width: 100%; box-sizing: border-box; background: #fff; border: 1px solid #ddd }
.panels img { width: 100% }
.legend { font-size: 14px; line-height: 1.35 }
@media (max-width: 63.4rem) { .legend { grid-column: 1 / -1 } }
.legend ul { list-style: none; margin: .3rem 0 0; padding: 0; column-gap: 1rem }
.legend li { break-inside: avoid; padding: .1rem 0 .1rem 1.3rem; position: relative }
.legend svg { width: .8rem; height: .8rem; position: absolute; left: 0; top: .3rem }
.legend small { opacity: .75; white-space: nowrap }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px }
figcaption { color: #555; margin: .5rem 0 1.5rem; max-width: 60rem }
figcaption, .legend, td:first-child { overflow-wrap: anywhere }
code { background: #f6f6f6 }
nav a { display: inline-block; margin-right: .8rem }
table { border-collapse: collapse }
td { padding: .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; min-width: 3rem }
td:first-child { min-width: 6rem }
td + td { padding-left: 1.5rem; overflow-wrap: break-word }
@media (prefers-color-scheme: dark) {
    body { color: #ddd; background: #161618 }
    pre, code { background: #26262a }
    figcaption { color: #aaa }
    td { border-color: #444 }
    figure img, .legend svg { filter: invert(.93) hue-rotate(180deg) brightness(1.15) }
    a { color: #8ab4f8 }
}"""
MOST_CELLS = 3000  # shown, and looked at for what needs all pairs of them
MOST_IN_TSNE = 1500  # which takes some three seconds
FEWEST_IN_TSNE = 10
MOST_DRAWN = 1000  # cells of which the model draws counts
N_CLUSTERS = 7  # where no labels are given
MOST_NUMBERS = 30  # that are taken for names, as of clusters
MOST_LABELS = len(PALETTE)  # that colours and markers tell apart; the rarer ones become "others"
LEAST = 0.6  # of the width of a picture with 130 pixels an inch: then its letters are legible
PANEL = (4.2, 3.5)  # inches: on a telephone, 9 centimetres of them, letters are legible
VIRIDIS = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.92, 256)))  # no yellow on white


def write(
    path,
    model,
    history,
    counts: Counts,
    batch: Array | str | None = None,
    labels: Array | None = None,
    label_name: str = "cluster",
    title: str = "scVI",
    colors: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the page, one HTML file, for a trained SCVI and counts (n_cells, n_genes) of its genes.

    batch: a label per cell, or None; labels: (n_cells,) by which cells are coloured and clusters
    judged, called label_name; of numbers (`as_numbers`) there is a colour bar, and no clusters;
    None: k-means clusters. A large data set is looked at in a random few thousand cells, and only
    these are read into memory where the counts lie on the disk.

    colors: label -> "#RRGGBB", of labels that have had a colour before, see `models.colors`.
    Returns the colours of all labels and batches in the page, to be given to the next report.
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
        shown = labels
    drawn = np.sort(np.random.default_rng(1).permutation(len(counts))[:MOST_DRAWN])
    n_new = max(len(rows), 100)
    sizes = None
    if not np.all(knows_library(model)):  # as weights of scvi-tools do not
        sizes = np.resize(np.maximum(library_size(counts.X), 1.0), n_new)
    of_drawn = None if batch is None else batch[drawn]
    codes = model.minibatches(counts[drawn], of_drawn).columns[1]
    is_measured = ~unmeasured_in(model, counts[drawn], codes)
    n_absent = int(np.sum(~is_measured))
    were = for_number(n_absent, "was", "were")
    are = for_number(n_absent, "is", "are")
    left_out = f" {number_of(n_absent, 'gene')} that {were} not measured {are} left out."
    left_out *= n_absent > 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not measured in these cells")  # the page says it
        sampled = model.sample_posterior(counts[drawn], of_drawn)
        generated = model.generate(
            n_new, batch=_batches_as_in(model, codes, n_new), library_size=sizes
        )
    is_known = batch is not None and np.array_equal(as_texts(shown), as_texts(batch))
    latent, colors_used = latent_space(
        planes(mean),
        shown,
        label_name,
        library_size(counts.X),
        None if is_known else batch,
        colors,
    )
    parts = [
        table(facts(model, history, len(rows)) + scores(mean, batch, labels, label_name)),
        integration_table(mean, batch, labels, label_name),
        figure(
            training(history),
            "Training: loss of the training cells, and ELBO of those held out, with its parts, by "
            "epoch. A validation ELBO that falls again says that the model learns its training "
            "cells by heart.",
        ),
        latent,
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
            + left_out,
        ),
        figure(
            cells(counts.X[:, is_measured], generated[:, is_measured]),
            "Cells of the data, and cells generated from the prior: "
            "their library sizes and numbers of genes detected." + left_out,
        ),
    ]
    with whole_file(path) as temporary:
        temporary.write_text(page(title, "".join(parts)), encoding="utf-8")
    return colors_used


def _batches_as_in(model, codes: Array, n: int) -> Array | None:
    """Labels of batches for n new cells, as often as those of the cells shown, by their codes.

    A model that cells were mapped onto knows batches of which none is shown.
    """
    if len(model.batches) < 2:
        return None
    return np.array([str(label) for label in model.batches])[np.resize(codes, n)]


# -------------------------------------------------------------------------------------- the numbers
def facts(model, history, n_shown: int) -> list:
    """(what, value) pairs, str: of the model and its training."""
    c = model.config
    found = [
        (
            "model",
            f"{c['likelihood']}, {number_of(c['n_genes'], 'gene')}, "
            f"{number_of(c['n_batches'], 'batch', 'batches')}, "
            f"{number_of(c['n_latent'], 'latent dimension')}, {c['n_layers']} x "
            f"{c['n_hidden']} hidden units",
        ),
        (
            "training",
            f"{number_of(len(history), 'epoch')}, {sum(history['seconds']):.0f} s"
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
    if len(z) > 50 and has_batches(batch):
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
    if not has_batches(batch) or len(z) < 3 * integration.PERPLEXITY:
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


def most_frequent(labels: np.ndarray) -> np.ndarray:
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


class Plane(NamedTuple):
    """Places of cells in a picture: points (n, 2) of cells, rows (n,), and the axes' names."""

    points: np.ndarray
    rows: np.ndarray
    x: str
    y: str


def planes(mean: Array) -> list[Plane]:
    """Latent means (n, n_latent) on two principal components, and by t-SNE if they are enough.

    t-SNE is of a random MOST_IN_TSNE of them at most.
    """
    centred = mean - mean.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = (u * s)[:, :2]
    share = s**2 / max(np.sum(s**2), 1e-30)
    if points.shape[1] == 1:
        points = np.column_stack([points, np.zeros(len(points))])
        share = np.append(share, 0.0)
    names = f"PC 1 of z ({share[0]:.0%} of its variance)", f"PC 2 of z ({share[1]:.0%})"
    found = [Plane(points, np.arange(len(points)), *names)]
    if len(mean) >= FEWEST_IN_TSNE:
        rows = np.sort(np.random.default_rng(2).permutation(len(mean))[:MOST_IN_TSNE])
        found.append(Plane(tsne(mean[rows]), rows, "t-SNE 1 of z", "t-SNE 2 of z"))
    return found


def latent_space(
    seen: list[Plane],
    labels: Array,
    label_name: str,
    library: Array,
    batch: Array | None = None,
    colors: Mapping[str, str] | None = None,
) -> tuple[str, dict[str, str]]:
    """(HTML, colours of labels): cells in planes, a figure for each thing that is known of them.

    labels, library: (n,); batch: (n,), which is shown if there are several. Labels that are float
    have a colour bar, and are grey where they are not finite; others have a legend beside the
    pictures. colors, and those returned: name -> "#RRGGBB", see `models.colors.look_by_name`.
    """
    labels = np.asarray(labels)
    given = colors or {}
    used: dict[str, str] = {}
    parts = []
    if labels.dtype.kind == "f":
        pictures = by_number(seen, labels, label_name)
        parts.append(figure(pictures, f"{cells_in(seen)}, by {label_name}."))
    else:
        shown = most_frequent(labels.astype(str))
        look = look_by_name(shown.tolist(), given)
        used |= colors_of(look)
        pictures = by_name(seen, shown, look)
        caption = f"{cells_in(seen)}, by {label_name}.{who_are_others(labels, shown)}"
        parts.append(figure(pictures, caption, legend_beside(shown, look, label_name)))
    if has_batches(batch):
        shown = most_frequent(as_texts(batch))
        look = {
            name: of_name | {"marker": "o"}
            for name, of_name in look_by_name(shown.tolist(), {**given, **used}).items()
        }
        used |= colors_of(look)
        pictures = by_name(seen, shown, look, are_mixed=True)
        caption = "The same cells, by batch, drawn in random order, so that no batch hides another."
        parts.append(figure(pictures, caption, legend_beside(shown, look, "batch")))
    depth = np.log10(np.maximum(library, 1.0))
    pictures = by_number(seen, depth, "log10 library size (counts a cell)")
    parts.append(figure(pictures, "The same cells, by library size."))
    return "".join(parts), used


def cells_in(seen: list[Plane]) -> str:
    """What the planes show, as the beginning of a caption."""
    text = f"{len(seen[0].rows):,} cells on the first principal components of their latent means"
    if len(seen) == 1:
        return text
    if len(seen[1].rows) < len(seen[0].rows):
        return f"{text}, and a random {len(seen[1].rows):,} of them by t-SNE"
    return f"{text}, and by t-SNE"


def who_are_others(labels: np.ndarray, shown: np.ndarray) -> str:
    """A sentence on how many labels (n,) are called "others" in those shown (n,), if some are."""
    n_labels = len(set(labels.tolist()))
    n_others = n_labels - len(set(shown.tolist()) - {OTHERS})
    return f" The {n_others:,} rarest of {n_labels:,} are called {OTHERS}." * (n_others > 0)


def colors_of(look: Mapping[str, dict]) -> dict[str, str]:
    """Name -> colour, without the greys of what is no label."""
    return {name: of_name["color"] for name, of_name in look.items() if name not in GREY}


def empty_plane(plane: Plane) -> tuple:
    """A Figure that is one panel of a page, and its axes, without numbers."""
    f, axes = panel_of_numbers()
    axes.set(xticks=[], yticks=[], xlabel=plane.x, ylabel=plane.y)
    return f, axes


def size_of_dots(plane: Plane) -> float:
    """The area of a cell's dot, points², larger where cells are few."""
    return float(np.clip(7000 / len(plane.rows), 8.0, 25.0))


def by_name(
    seen: list[Plane], names: np.ndarray, look: Mapping[str, dict], are_mixed: bool = False
) -> list[bytes]:
    """A picture of each plane, cells coloured by their names (n,).

    are_mixed: cells are drawn in random order, with one marker for all, so that no name hides
    another; else the rare ones lie on top.
    """
    pictures = []
    for plane in seen:
        f, axes = empty_plane(plane)
        draw = mixed if are_mixed else scatter
        draw(axes, plane.points, names[plane.rows], look=look, size=size_of_dots(plane))
        pictures.append(png(f))
    return pictures


def by_number(seen: list[Plane], values: Array, name: str) -> list[bytes]:
    """A picture of each plane, cells coloured by values (n,); grey where they are not finite."""
    pictures = []
    known = np.isfinite(values)
    ends = {"vmin": values[known].min(), "vmax": values[known].max()} if known.any() else {}
    for plane in seen:
        f, axes = empty_plane(plane)
        of_cells = values[plane.rows]
        known = np.isfinite(of_cells)
        look = {"s": size_of_dots(plane), "linewidths": 0}
        axes.scatter(*plane.points[~known].T, color="#CCCCCC", **look)
        dots = axes.scatter(*plane.points[known].T, c=of_cells[known], cmap=VIRIDIS, **look, **ends)
        lines = textwrap.wrap(name, 40, max_lines=2, placeholder=" ...")
        f.colorbar(dots, ax=axes).set_label("\n".join(lines), parse_math=False)
        pictures.append(png(f))
    return pictures


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
    f = Figure(figsize=PANEL, layout="constrained")
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
        xlabel="fraction of zeros in the data",
        ylabel="fraction of zeros in draws",
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
        f.legend(frameon=False, loc="outside upper center", ncols=2)
        panels.append(png(f))
    return panels


def mixed(
    axes, points: np.ndarray, labels: Array, look: Mapping[str, dict], size: float = 10.0
) -> None:
    """Points (n, 2) coloured by label and drawn in random order, so that no label hides another."""
    labels = np.asarray(labels)
    order = np.random.default_rng(0).permutation(len(labels))
    colors = [look[name]["color"] for name in labels[order].tolist()]
    axes.scatter(*points[order].T, s=size, c=colors, linewidths=0, alpha=0.75, rasterized=True)


def scatter(
    axes,
    points: np.ndarray,
    labels: Array,
    size: float = 10.0,
    look: Mapping[str, dict] | None = None,
) -> dict:
    """Points (n, 2) by label, each with a colour and a marker of its own, rare ones on top.

    look: label -> those, as matplotlib's options; None: by the order of the labels. Returns
    label -> what was drawn, for `legend`.
    """
    labels = np.asarray(labels).astype(str)
    names = sorted(set(labels.tolist()))
    look = look or look_of(names)
    drawn = {}
    for name in names:
        chosen = labels == name
        drawn[name] = axes.scatter(
            *points[chosen].T,
            s=size * (2 if look[name]["marker"] == "*" else 1),  # a star is mostly corners
            linewidths=0,
            alpha=0.75,
            zorder=2 - np.mean(chosen),
            rasterized=True,
            **look[name],
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
    """A figure as a PNG file's content, fine enough for the screens of telephones."""
    file = io.BytesIO()
    f.savefig(file, format="png", dpi=200)
    return file.getvalue()


def legend_beside(labels: np.ndarray, look: Mapping[str, dict], title: str) -> str:
    """HTML of a legend: each name of labels (n,) with its marker and its number of cells."""
    names, numbers = np.unique(labels, return_counts=True)
    how_many = dict(zip(names.tolist(), numbers.tolist()))
    entries = "".join(
        f"<li>{marker_of(look[name])}{html.escape(name)} <small>{how_many[name]:,}</small>"
        for name in sorted(how_many, key=as_read)
    )
    column = min(3.5 + 0.45 * max(map(len, how_many)), 20.0)  # rem, for one name a line
    return (
        f"<div class=legend><strong>{html.escape(title)}</strong>"
        f'<ul style="columns: {column:.1f}rem">{entries}</ul></div>'
    )


def as_read(name: str) -> tuple:
    """A key to sort names by: "cluster 2" comes before "cluster 10", and what is no label last."""
    parts: list = re.split("([0-9]+)", name)  # texts and numbers by turns
    for i in range(1, len(parts), 2):
        digits = parts[i].lstrip("0")
        parts[i] = len(digits), digits  # int() refuses thousands of them
    return name in GREY, parts


def marker_of(look: Mapping) -> str:
    """A marker of matplotlib's in its colour, as an image of vectors within a page."""
    style = MarkerStyle(look["marker"])
    path = style.get_path().transformed(style.get_transform())
    corners = np.asarray(path.to_polygons()[0])
    corners = corners / np.abs(corners).max()
    points = " ".join(f"{x:.2f},{-y:.2f}" for x, y in corners.tolist())
    return (
        f'<svg viewBox="-1 -1 2 2" aria-hidden=true><polygon points="{points}" '
        f'fill="{look["color"]}"/></svg>'
    )


def page(title: str, body: str) -> str:
    """A whole HTML page of this style. title: text; body: HTML."""
    name = html.escape(title)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>{body}</html>\n"
    )


def figure(pictures: list[bytes], caption: str, beside: str = "", is_wide: bool = False) -> str:
    """HTML of pictures side by side, in the page itself, and their caption; nothing for none.

    beside: HTML of what stands to their right, or below, such as a legend. is_wide: each picture
    has the page's width, if it needs it; where the page is narrower than a picture's letters can
    bear, it is moved sideways.
    """
    if not pictures:
        return ""
    text = html.escape(caption)
    images = []
    for picture in pictures:
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        least = f"style=min-width:{LEAST * pixels_across(picture):.0f}px " * is_wide
        images.append(f'<img {least}alt="{text}" src="{source}">')
    shown = f"<div class={'wide' if is_wide else 'panels'}>{''.join(images)}{beside}</div>"
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


def pixels_across(picture: bytes) -> int:
    """The width of a PNG, of which its header tells."""
    return int.from_bytes(picture[16:20], "big")


def table(pairs) -> str:
    """HTML of (what, value) pairs."""
    rows = "".join(f"<tr><td>{html.escape(what)}<td>{html.escape(value)}" for what, value in pairs)
    return f"<table>{rows}</table>"

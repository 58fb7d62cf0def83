"""How well batches mix and cell types stay apart: the scores of the scIB benchmark.

This is a reference: each function can be read alone.

Know before reading: clustering.py. An integration maps cells of several batches (donors,
laboratories, days) to points `z` of one latent space. It succeeds where a cell's neighbours are of
all batches, and of its own type. Luecken et al. 2022 ("Benchmarking atlas-level data integration in
single-cell genomics", Nature Methods 19, 41-50) compare methods by a panel of scores, for no single
one will do: what maps all cells to one place mixes batches perfectly. Here all lie between 0 and 1,
and 1 is best.

    do batches mix?              ilisi               how many batches a neighbourhood holds
                                 kbet                how often its shares of batches pass for chance
                                 batch_silhouette    whether batches part within a type
                                 pcr_comparison      how much less of the variance is the batches'
    do types stay apart?         clisi               how many types a neighbourhood holds
                                 label_silhouette    how tight and far apart the types are
                                 graph_connectivity  whether a type hangs together
    are clusters the types?      normalized_mutual_information and adjusted_rand_index, in
                                 clustering.py

An example, in which a shift of one coordinate parts two batches of one kind of cell:

    >>> z = np.random.default_rng(0).standard_normal((400, 5))
    >>> batch = np.arange(400) % 2
    >>> round(ilisi(z, batch), 2)
    0.93
    >>> z[:, 0] += 10 * batch
    >>> round(ilisi(z, batch), 2)
    0.0

Neighbours are the exact ones (SciPy's cKDTree), by Euclidean distance. On the same neighbours the
numbers are those of scib-metrics 0.5.10. `kbet` within types is the one exception, see there.

Know after: what each score of an integration counts, what a 0 and a 1 of it mean, and which of
them a collapsed latent space would still please.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.special import chdtrc

from minigrad.backend import Array
from minigrad.notebook import number_of
from models.clustering import (
    Neighbours,
    checked_points,
    group_codes,
    label_codes,
    neighbours,
    row_blocks,
    silhouette,
    silhouette_of_cells,
    sums_by_label,
)
from models.inputs import whole_number

PERPLEXITY = 30  # the defaults of the benchmark
CONNECTED_NEIGHBORS = 14
FEWEST_CELLS = 10  # of a type in which scIB looks for batches


def scores(
    z: Array, batch: Array, labels: Array | None = None, z_before: Array | None = None
) -> dict[str, float]:
    """All scores of one latent space, by name, from one search for neighbours beside that of kbet.

    z: (n, d) real numbers, finite, of at least 6 cells; batch: (n,) labels of two or more batches;
    labels: (n,) cell types, two or more, or None, which leaves out what needs types; z_before: (n,
    d') the space before integration, such as principal components, or None, which leaves out
    pcr_comparison. Returns name of the function -> float in [0, 1]; 1 is best. Of fewer than 90
    cells, LISI looks at all. Raises ValueError as those functions do.
    """
    z = checked_points("scores", z)
    batch = group_codes("scores", "batch", batch, len(z))
    perplexity = min(PERPLEXITY, len(z) // 3)
    if perplexity < 2:
        raise ValueError(
            f"scores: z has {number_of(len(z), 'cell')}, too few to have neighbours; pass 6 or more"
        )
    found = _nearest(z, 3 * perplexity - 1)
    weighted = _weighted(found, perplexity)
    result = {"ilisi": _ilisi(weighted, batch)}
    result["kbet"] = kbet(z, batch, labels)
    if z_before is not None:
        result["pcr_comparison"] = pcr_comparison(z_before, z, batch)
    if labels is not None:
        codes = group_codes("scores", "labels", labels, len(z))
        n_neighbors = min(CONNECTED_NEIGHBORS, len(z) - 1)
        nearest = found.cells[:, :n_neighbors]
        result["batch_silhouette"] = batch_silhouette(z, labels, batch)
        result["clisi"] = _clisi(weighted, codes)
        result["label_silhouette"] = label_silhouette(z, labels)
        result["graph_connectivity"] = _connectivity(nearest, codes)
    return result


# --------------------------------------------------------------------------------------------- LISI


def lisi(z: Array, labels: Array, perplexity: int = PERPLEXITY) -> np.ndarray:
    """The effective number of labels in each cell's neighbourhood: local inverse Simpson's index.

    z: (n, d) real numbers, finite; labels: (n,). perplexity: the effective number of neighbours, 2
    to n/3; three times as many cells are looked at, the cell itself among them but not counted.
    Returns (n,) float64, each from 1 (all neighbours have one label) to the number of labels.
    Raises ValueError for unusable arguments.

    With weights p_ij = exp(-beta_i d_ij) / sum_j exp(-beta_i d_ij) of the neighbours j of cell i,
    where beta_i is such that their entropy -sum_j p_ij log p_ij is log(perplexity),

        LISI_i = 1 / sum_b (sum of p_ij over the j with label b)²

    (Korsunsky et al. 2019, Harmony, Methods). One over Simpson's index is the number of equally
    frequent labels that would give the same chance of drawing one label twice.
    """
    z = checked_points("lisi", z)
    codes = label_codes("lisi", "labels", labels, len(z))
    return _lisi(_of_perplexity("lisi", z, perplexity), codes)


def ilisi(z: Array, batch: Array, perplexity: int = PERPLEXITY) -> float:
    """Whether batches mix: the median LISI of the batches, scaled.

    z: (n, d) real numbers, finite; batch: (n,) labels of at least two batches; perplexity: as in
    `lisi`. Returns a float: 0 where most neighbourhoods hold one batch, 1 where they hold all B
    batches in equal parts (which batches of unequal sizes do not reach). Raises ValueError for one
    batch only, and other unusable arguments.

        iLISI = (median_i LISI_i - 1) / (B - 1)      (Luecken et al. 2022, Methods)
    """
    z = checked_points("ilisi", z)
    codes = group_codes("ilisi", "batch", batch, len(z))
    return _ilisi(_of_perplexity("ilisi", z, perplexity), codes)


def clisi(z: Array, labels: Array, perplexity: int = PERPLEXITY) -> float:
    """Whether types stay apart: the median LISI of the cell types, scaled and turned.

    z: (n, d) real numbers, finite; labels: (n,) of at least two types; perplexity: as in `lisi`.
    Returns a float: 1 where most neighbourhoods hold one type, 0 where they hold all C types in
    equal parts. Raises ValueError for one type only, and other unusable arguments.

        cLISI = (C - median_i LISI_i) / (C - 1)      (Luecken et al. 2022, Methods)
    """
    z = checked_points("clisi", z)
    codes = group_codes("clisi", "labels", labels, len(z))
    return _clisi(_of_perplexity("clisi", z, perplexity), codes)


class Weighted(NamedTuple):
    """The neighbours of each cell, and what each counts by its distance: both (n_cells, k)."""

    cells: np.ndarray
    weights: np.ndarray


def _of_perplexity(function, z, perplexity) -> Weighted:
    """Three times as many neighbours as the perplexity, the cell itself counted."""
    perplexity = whole_number(f"{function}: perplexity", perplexity, 2, len(z) // 3, "n/3 of z")
    return _weighted(_nearest(z, 3 * perplexity - 1), perplexity)


def _weighted(found: Neighbours, perplexity) -> Weighted:
    weights = np.empty_like(found.distances)
    for rows in row_blocks(*weights.shape):
        weights[rows] = _weights(found.distances[rows], perplexity)
    return Weighted(found.cells, weights)


def _ilisi(weighted, codes):
    n_batches = codes.max() + 1
    return float((np.median(_lisi(weighted, codes)) - 1) / (n_batches - 1))


def _clisi(weighted, codes):
    n_types = codes.max() + 1
    return float((n_types - np.median(_lisi(weighted, codes))) / (n_types - 1))


def _lisi(weighted, codes):
    """LISI of each cell; codes: the labels as integers from 0."""
    n_labels = codes.max() + 1
    simpson = np.empty(len(codes))
    for rows in row_blocks(len(codes), weighted.cells.shape[1] + n_labels):
        shares = sums_by_label(codes[weighted.cells[rows]], n_labels, weighted.weights[rows])
        simpson[rows] = (shares**2).sum(axis=1)
    return 1 / simpson


def _weights(distances, perplexity):
    """Weights proportional to exp(-beta d) whose entropy is log(perplexity): (cells, k).

    The entropy falls as beta grows, from log k at 0 on. So each cell's beta is doubled until the
    entropy is below, or halved until it is above, and then found by bisection, all cells at once.
    More than `perplexity` neighbours at the least distance keep it above: they then share the
    weight.
    """
    d = distances - distances.min(axis=1, keepdims=True)  # cancels in p; else all exps may be 0
    mean = d.mean(axis=1, keepdims=True)
    d = d / np.where(mean > 0, mean, 1)  # beta is then near 1 whatever the units of z
    beta = np.ones((len(d), 1))
    low = np.zeros_like(beta)
    high = np.full_like(beta, np.inf)
    for _ in range(64):
        p = np.exp(-beta * d)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        entropy = np.log(total) + beta * (p * d).sum(axis=1, keepdims=True)  # -sum p log p
        too_high = entropy - np.log(perplexity)
        if np.abs(too_high).max() < 1e-9:
            break
        low = np.where(too_high > 0, beta, low)
        high = np.where(too_high > 0, high, beta)
        beta = np.where(np.isinf(high), 2 * beta, (low + high) / 2)
    return p


# --------------------------------------------------------------------------------------------- kBET


def kbet(
    z: Array,
    batch: Array,
    labels: Array | None = None,
    n_neighbors: int | None = None,
    alpha: float = 0.05,
) -> float:
    """Whether batches mix: the fraction of neighbourhoods whose shares of batches pass for chance.

    z: (n, d) real numbers, finite; batch: (n,) labels of at least two batches. labels: (n,) cell
    types, or None. With types the test is made within each, among its own cells, so that a type
    which is more frequent in one batch does no harm, and the result is the mean over the types that
    have at least 10 cells of at least two batches. n_neighbors: neighbours of a cell, itself not
    counted, 1 to n-1; None: a quarter of the mean batch size, but 10 to 70. alpha: level of the
    test, between 0 and 1. Returns a float: near 1 - alpha where position says nothing about batch,
    0 where every neighbourhood is of one batch. Raises ValueError for one batch only, types without
    two batches, and other unusable arguments.

    With o_ib of the K = n_neighbors + 1 cells around and including i in batch b, and f_b of all,

        chi2_i = sum_b (o_ib - K f_b)² / (K f_b)
        kBET = mean over cells of [P(chi2 with B-1 degrees of freedom > chi2_i) >= alpha]

    (Büttner et al. 2019, Nature Methods 16; here the rate of acceptance, as in Luecken et al.
    2022). Without types, this is `kbet` of scib-metrics. Within types, scIB takes neighbours by
    diffusion distance on the type's part of the graph of all cells, and gives 0 to a type that
    falls to pieces; here they are the Euclidean ones within the type, which are exact, and defined
    for every type.
    """
    z = checked_points("kbet", z)
    batch = group_codes("kbet", "batch", batch, len(z))
    if not 0 < alpha < 1:
        raise ValueError(f"kbet: alpha must lie between 0 and 1, not {alpha!r}; pass 0.05")
    if n_neighbors is not None:
        n_neighbors = whole_number(
            "kbet: n_neighbors", n_neighbors, 1, len(z) - 1, "the other cells in z"
        )
    if labels is None:
        return _acceptance(z, batch, n_neighbors, alpha)
    rates = [
        _acceptance(
            z[members], np.unique(batch[members], return_inverse=True)[1], n_neighbors, alpha
        )
        for members in _types_in_batches(label_codes("kbet", "labels", labels, len(z)), batch)
    ]
    if not rates:
        raise ValueError(
            f"kbet: no type of labels has {FEWEST_CELLS} cells of two batches; leave labels out, "
            "or pass coarser types"
        )
    return float(np.mean(rates))


def _types_in_batches(codes, batch):
    """The cells of each type that has FEWEST_CELLS of them, in two batches or more: (n,) bool."""
    for kind in range(codes.max() + 1):
        members = codes == kind
        if members.sum() >= FEWEST_CELLS and np.ptp(batch[members]) > 0:
            yield members


def _acceptance(z, batch, n_neighbors, alpha):
    sizes = np.bincount(batch)
    if n_neighbors is None:
        n_neighbors = min(70, max(10, int(sizes.mean() / 4)))
    found = _nearest(z, min(n_neighbors, len(z) - 1))
    statistic = _batch_statistics(found.cells, batch, sizes)
    return float(np.mean(chdtrc(len(sizes) - 1, statistic) >= alpha))


def _batch_statistics(nearest, batch, sizes):
    """chi2_i of each cell and its neighbours, (n,). nearest: (n, k) cells; sizes: of batches."""
    around = np.column_stack([np.arange(len(batch)), nearest])
    expected = around.shape[1] * sizes / len(batch)
    statistic = np.empty(len(batch))
    for rows in row_blocks(len(batch), around.shape[1] + len(sizes)):
        observed = sums_by_label(batch[around[rows]], len(sizes))
        statistic[rows] = ((observed - expected) ** 2 / expected).sum(axis=1)
    return statistic


# --------------------------------------------------------------------------------------- silhouette


def batch_silhouette(z: Array, labels: Array, batch: Array) -> float:
    """Whether batches part within a type: 1 less the silhouette of the batches, whatever its sign.

    z: (n, d) real numbers, finite; labels: (n,) cell types; batch: (n,). Returns a float: 1 where
    the batches of a type overlap, 0 where they are far apart. Types of one batch, and those in
    which every cell has a batch of its own, are left out. Raises ValueError where no type is left,
    and for other unusable arguments. Time grows as the square of the cells of a type.

    With s_i the silhouette (Rousseeuw 1987) of cell i's batch among the cells of its type c,

        mean over types c of the mean over its cells of 1 - |s_i|

    (Luecken et al. 2022, Methods). Of three batches or more it looks at the nearest other one only,
    so that a batch far from two that overlap may go unnoticed (Rautenstrauch and Ohler 2025): look
    at ilisi and kbet beside.
    """
    z = checked_points("batch_silhouette", z)
    codes = label_codes("batch_silhouette", "labels", labels, len(z))
    batch = label_codes("batch_silhouette", "batch", batch, len(z))
    found = []
    for kind in range(codes.max() + 1):
        members = codes == kind
        of_type = np.unique(batch[members], return_inverse=True)[1]
        if 1 < of_type.max() + 1 < len(of_type):
            found.append(np.mean(1 - np.abs(silhouette_of_cells(z[members], of_type))))
    if not found:
        raise ValueError(
            "batch_silhouette: no type of labels has cells of two batches, and several of one; "
            "pass a batch that cuts through the types"
        )
    return float(np.mean(found))


def label_silhouette(z: Array, labels: Array) -> float:
    """How tight and far apart the cell types are: their silhouette, scaled.

    z: (n, d) real numbers, finite; labels: (n,) of at least two types. Returns a float: 1 for tight
    types far apart, 0.5 where they overlap. Raises ValueError for unusable arguments.

        (silhouette + 1) / 2      (Luecken et al. 2022, Methods)
    """
    z = checked_points("label_silhouette", z)
    group_codes("label_silhouette", "labels", labels, len(z))
    return (silhouette(z, labels) + 1) / 2


# ------------------------------------------------------------------------------- graph connectivity


def graph_connectivity(z: Array, labels: Array, n_neighbors: int = CONNECTED_NEIGHBORS) -> float:
    """Whether each cell type hangs together in the graph of nearest neighbours.

    z: (n, d) real numbers, finite; labels: (n,). n_neighbors: neighbours of a cell, itself not
    counted, 1 to n-1. Returns a float in (0, 1]: 1 where from each cell of a type all its others
    can be reached through cells of the type. Raises ValueError for unusable arguments.

        mean over types c of |LCC(G_c)| / n_c      (Luecken et al. 2022, Methods)

    G_c is the graph of the n_c cells of type c, with an arrow from each cell to those of its
    nearest neighbours that are of the type; LCC is the largest strongly connected component: a
    cell that is nobody's neighbour is a component of its own. scib-metrics does the same; scIB
    itself follows edges both ways, and comes to a little more.
    """
    z = checked_points("graph_connectivity", z)
    codes = label_codes("graph_connectivity", "labels", labels, len(z))
    n_neighbors = whole_number(
        "graph_connectivity: n_neighbors", n_neighbors, 1, len(z) - 1, "the other cells in z"
    )
    found = _nearest(z, n_neighbors)
    return _connectivity(found.cells, codes)


def _connectivity(nearest, codes):
    n, k = nearest.shape
    starts = np.arange(0, n * k + 1, k)
    graph = sparse.csr_array((np.ones(n * k), nearest.ravel(), starts), shape=(n, n))
    largest = []
    for kind in range(codes.max() + 1):
        members = np.flatnonzero(codes == kind)
        within = graph[members][:, members]
        component = connected_components(within, connection="strong")[1]
        largest.append(np.bincount(component).max() / len(members))
    return float(np.mean(largest))


# ------------------------------------------------------------------- regression of the components


def pcr_comparison(z_before: Array, z_after: Array, batch: Array) -> float:
    """How much of the variance that the batches explained is gone.

    z_before: (n, d) real numbers, finite, before integration: principal components of normalised
    counts, say; z_after: (n, d') after; batch: (n,) labels of at least two batches. Returns a float
    in [0, 1]: 1 where batches explain nothing any more; 0 where they explain as large a share as
    before, or a larger. Raises ValueError where they explain nothing before, and for other unusable
    arguments.

        (PCR(before) - PCR(after)) / PCR(before),
        PCR = sum_j Var_j R²_j / sum_j Var_j

    over the principal components j: their variance, and the share of it that a regression on the
    batches explains (Büttner et al. 2019; Luecken et al. 2022, Methods). Var_j R²_j is the variance
    between batches along j; the sum over all components does not change when the axes are turned,
    so that none need be found:

        PCR = sum_b n_b |mean of batch b - mean|² / sum_i |z_i - mean|²
    """
    z_before = checked_points("pcr_comparison", z_before, "z_before")
    z_after = checked_points("pcr_comparison", z_after, "z_after")
    if len(z_before) != len(z_after):
        raise ValueError(
            f"pcr_comparison: z_after has {len(z_after)} cells, but z_before {len(z_before)}; pass "
            "the same cells in the same order"
        )
    codes = group_codes("pcr_comparison", "batch", batch, len(z_before), "z_before")
    before = _share_of_batches(z_before, codes)
    if before < 1e-12:
        raise ValueError(
            "pcr_comparison: batches explain none of the variance of z_before, so none can be "
            "removed; pass the space before integration, in which they differ"
        )
    return float(max(0, 1 - _share_of_batches(z_after, codes) / before))


def _share_of_batches(z, batch):
    """PCR of the batches: their part of the variance of z, in [0, 1]; 0 where z does not vary."""
    z = z - z.mean(axis=0)
    total = (z**2).sum()
    if total == 0:
        return 0.0
    sizes = np.bincount(batch)
    means = np.stack([z[batch == b].mean(axis=0) for b in range(len(sizes))])
    return float((sizes[:, None] * means**2).sum() / total)


def _nearest(z, n_neighbors) -> Neighbours:
    """The nearest neighbours of all cells."""
    return neighbours(cKDTree(z), z, np.arange(len(z)), n_neighbors)

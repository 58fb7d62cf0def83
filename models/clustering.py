"""Groups of cells in a latent space: finding them, and comparing them with cell types and batches.

This is a reference: each function can be read alone.

Know before reading: a model gave each cell a point `z` in a latent space, say of 10 to 30
dimensions, in which cells of one type should lie close together and cells of different batches
should mix. Entropies here are in nats.

Four questions are asked of such a space, and each has a number.

    are there groups?                kmeans finds k of them; silhouette says how well they are set
                                     apart
    are they the known cell types?   adjusted_rand_index counts pairs of cells, and
                                     normalized_mutual_information counts information; both ignore
                                     what the groups are called
    do the known types lie apart?    silhouette(z, cell_types)
    has the difference of            batch_mixing: are all batches met among a cell's neighbours?
    batches gone?

No one number will do. A latent space that maps all cells to a point mixes batches perfectly; one
that keeps every difference may part types well, and batches too. Look at a score for types and at
batch_mixing together.

Points are converted to float64. Labels may be integers, strings, booleans or categories, in an
array, a list or a pandas column; what counts is which cells have the same.

Know after: Lloyd's iteration and why its start decides, what each score counts, and where each one
is undefined.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from minigrad.backend import Array
from minigrad.notebook import number_of
from models.inputs import whole_number
from models.labels import is_missing

BLOCK = 2**22  # numbers in the largest temporary table of distances: 32 MB


# ------------------------------------------------------------------------------------------ k-means


def kmeans(
    z: Array, k: int, seed: int = 0, n_restarts: int = 10, max_iter: int = 300
) -> np.ndarray:
    """Split points into k groups so that they lie close to the means of their groups.

    z: (n, d) real numbers, finite. k: number of groups, 1 to n. seed: a non-negative integer; one
    seed gives one result. n_restarts: starts tried; the result with the smallest inertia is kept.
    max_iter: most passes a start. Returns labels, (n,) int64, numbered by size: 0 is the largest
    group. Each of 0..k-1 occurs, except where fewer than k rows of z are distinct (to rounding):
    then there is one label for each distinct row. Raises ValueError for k outside 1..n, for NaN or
    infinity, or where z is not two-dimensional.

    Minimises the inertia sum_i |z_i - mean(group of i)|² by Lloyd's iteration (1982): assign each
    point to the nearest mean, recompute the means, until no label changes and (Hartigan 1975)
    moving no single point pays. No step can increase the inertia, but where it ends depends on the
    start, so starts are drawn far apart (k-means++, Arthur and Vassilvitskii 2007) and several are
    tried. The result is a good local minimum, not surely the global one.
    """
    z = checked_points("kmeans", z)
    k = whole_number("kmeans: k", k, 1, len(z), "the number of points in z")
    n_restarts = whole_number("kmeans: n_restarts", n_restarts)
    max_iter = whole_number("kmeans: max_iter", max_iter)
    # Far from the origin, squares would cancel in _nearest. The median rather than the mean, which
    # one far point carries off.
    z = z - np.median(z, axis=0)
    best = None
    least = np.inf
    for restart in range(n_restarts):
        start = _spread_out(z, k, np.random.default_rng([seed, restart]))
        labels = _lloyd(z, start, max_iter)
        found = _inertia(z, labels, _means(z, labels))
        if found < least:
            best = labels
            least = found
    return _numbered_by_size(best)


def centres(z: Array, labels: Array) -> np.ndarray:
    """The mean of the points of each group.

    z: (n, d) real numbers, finite; labels: (n,). Returns (number of groups, d) float64, a row for
    each distinct label, in the labels' sorted order: row j belongs to label j after `kmeans`.
    Raises ValueError for unusable arguments.
    """
    z = checked_points("centres", z)
    return _means(z, label_codes("centres", "labels", labels, len(z)))


def inertia(z: Array, labels: Array) -> float:
    """What k-means minimises, sum_i |z_i - mean(group of i)|²: smaller is tighter.

    z: (n, d) real numbers, finite; labels: (n,). Returns a float, in squared units of z. It falls
    as groups are added, so compare it at one number of groups only. Raises ValueError for unusable
    arguments.
    """
    z = checked_points("inertia", z)
    labels = label_codes("inertia", "labels", labels, len(z))
    return _inertia(z, labels, _means(z, labels))


def _spread_out(z, k, rng):
    """k rows of z to start from, far apart; fewer, where fewer are distinct.

    The first is any row. Each later one is drawn with probability proportional to D², the squared
    distance to the nearest row chosen so far. As in the authors' own code, of a few so drawn the
    one that lowers sum(D²) most is kept.
    """
    n_tries = 2 + int(np.log(k))
    chosen = [rng.integers(len(z))]
    d2 = cdist(z[chosen], z, "sqeuclidean")[0]
    while len(chosen) < k:
        steps = np.cumsum(d2)
        if steps[-1] == 0:  # every row equals a chosen one
            break
        tries = np.searchsorted(steps, rng.random(n_tries) * steps[-1], side="right")
        tries = np.minimum(tries, len(z) - 1)  # a product may round up to the total
        d2_after = np.minimum(d2, cdist(z[tries], z, "sqeuclidean"))
        best = d2_after.sum(axis=1).argmin()
        chosen.append(tries[best])
        d2 = d2_after[best]
    return z[chosen]


def _lloyd(z, means, max_iter):
    """Labels after Lloyd's iteration from these means: (n,) codes, of which none is unused."""
    labels = None
    for _ in range(max_iter):
        before = labels
        labels = _refill(z, _nearest(z, means), means)
        unchanged = before is not None and np.array_equal(before, labels)
        if unchanged and not _move_one(z, labels, means):
            break
        means = _means(z, labels)
    return labels


def _move_one(z, labels, means):
    """Move the one point whose change of group lowers the inertia most, in place.

    Returns whether there was one.

    Hartigan's step (1975). Lloyd's compares distances to the means as they are. But a point pulls
    its own mean towards itself: leaving a group of s at squared distance d² saves d² s/(s-1), and
    joining one costs d² s/(s+1), so that a move can pay although its own mean is the nearest. This
    matters in small groups, where Lloyd's iteration gets stuck. Savings below 1e-6 of the inertia
    are left, so that large data take one look, and very large data none.
    """
    if len(z) * len(means) > BLOCK:
        return False
    sizes = np.bincount(labels)
    cell = np.arange(len(z))
    d2 = cdist(z, means, "sqeuclidean")
    saved = d2[cell, labels] * sizes[labels] / np.maximum(sizes[labels] - 1, 1)
    least = 1e-6 * d2[cell, labels].sum()
    cost = d2 * (sizes / (sizes + 1))
    cost[cell, labels] = np.inf
    gain = saved - cost.min(axis=1)
    best = gain.argmax()
    if gain[best] <= least:
        return False
    labels[best] = cost[best].argmin()
    return True


def _nearest(z, means):
    """The nearest mean of each point, by a matrix product.

    argmin_j |z - m_j|² = argmin_j (|m_j|² - 2 z·m_j)
    """
    labels = np.empty(len(z), dtype=np.int64)
    m2 = np.einsum("jd,jd->j", means, means)
    for rows in row_blocks(len(z), len(means)):
        scores = z[rows] @ (-2 * means.T)
        scores += m2
        labels[rows] = scores.argmin(axis=1)
    return labels


def _refill(z, labels, means):
    """Give each empty group the point farthest from its mean.

    It is taken from a group that keeps another point.
    """
    sizes = np.bincount(labels, minlength=len(means))
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        distance = ((z - means[labels]) ** 2).sum(axis=1)
        for group in empty:
            farthest = np.where(sizes[labels] > 1, distance, -1).argmax()
            sizes[labels[farthest]] -= 1
            sizes[group] = 1
            labels[farthest] = group
    return labels


def _means(z, codes):
    """The mean of each group: (number of codes, d).

    It is a product with the sparse matrix of 0 and 1 that says "cell i is in group j".
    """
    n = len(z)
    members = sparse.csr_array((np.ones(n), codes, np.arange(n + 1)))
    return (members.T @ z) / np.bincount(codes)[:, None]


def _inertia(z, codes, means):
    return float(((z - means[codes]) ** 2).sum())


def _numbered_by_size(labels):
    """The same groups, numbered from the largest; of equal ones the first met comes first."""
    _, first, codes, sizes = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[codes]


# ------------------------------------------------------------------------- comparing two labellings


def adjusted_rand_index(a: Array, b: Array) -> float:
    """How far two labellings agree on which pairs of cells belong together, corrected for chance.

    a, b: (n,) labels of the same cells. Returns a float: 1 for the same groups whatever their
    names, 0 on average for random labels with these group sizes, negative (to -0.5) for less
    agreement than that. Where both put all cells together, or both none, they are the same and the
    result is 1. Raises ValueError for unusable arguments.

    With T pairs of cells together in both, A in a, B in b, of N = n(n-1)/2 pairs,

        ARI = (T - AB/N) / ((A+B)/2 - AB/N)

    (Hubert and Arabie 1985). Computed in exact integers up to the last division.
    """
    n_ab, n_a, n_b, _ = _contingency("adjusted_rand_index", a, b)
    together = _pairs(n_ab)
    in_a = _pairs(n_a)
    in_b = _pairs(n_b)
    pairs = _pairs(n_a.sum())
    # T, A, B and N above; numerator and denominator are both multiplied by 2 N.
    most = pairs * (in_a + in_b) - 2 * in_a * in_b
    if most == 0:
        return 1.0
    return 2 * (pairs * together - in_a * in_b) / most


def normalized_mutual_information(a: Array, b: Array) -> float:
    """How much of the information in two labellings is common to both.

    a, b: (n,) labels of the same cells. Returns a float in [0, 1]: 1 for the same groups whatever
    their names, 0 where one says nothing about the other. It is not corrected for chance: many
    small groups score above 0 at random. Where both put all cells together they are the same and
    the result is 1. Raises ValueError for unusable arguments.

        NMI = I(a; b) / ((H(a) + H(b)) / 2),   I = sum_ij p_ij log(p_ij / (p_i p_j))

    over the pairs of labels that occur. It is normalised by the arithmetic mean of the entropies;
    Strehl and Ghosh 2002 use the geometric one.
    """
    n_ab, n_a, n_b, (i, j) = _contingency("normalized_mutual_information", a, b)
    n = n_a.sum()
    information = (n_ab / n * np.log(n * n_ab / (n_a[i] * n_b[j]))).sum()
    mean_entropy = (_entropy(n_a / n) + _entropy(n_b / n)) / 2
    if mean_entropy == 0:
        return 1.0
    return float(np.clip(information / mean_entropy, 0, 1))  # rounding leaves 1e-16 outside


def _contingency(function, a, b):
    """The number of cells n_ij with label i in a and j in b, for the pairs (i, j) that occur.

    Returns the n_ij, the sizes of the groups of a and of b, and the pairs as two arrays (i, j).
    """
    a = label_codes(function, "a", a)
    b = label_codes(function, "b", b, len(a), "a")
    n_a = np.bincount(a)
    n_b = np.bincount(b)
    pairs, n_ab = np.unique(a * len(n_b) + b, return_counts=True)
    return n_ab, n_a, n_b, divmod(pairs, len(n_b))


def _pairs(sizes):
    """The number of pairs of cells within groups of these sizes.

    It is a Python integer, since products of two would outgrow int64.
    """
    return int((sizes * (sizes - 1) // 2).sum())


def _entropy(p):
    """-sum p log p along the last axis, in nats, with 0 log 0 = 0."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


# ----------------------------------------------------------------------------- looking at the space


def silhouette(z: Array, labels: Array) -> float:
    """How well groups are set apart.

    The mean over cells of the distance to the next group less that to its own, scaled.

    z: (n, d) real numbers, finite; labels: (n,) with at least two distinct values. Returns a float
    in [-1, 1]: near 1 for tight groups far apart, 0 for overlapping ones, negative where cells lie
    closer to a group not their own. Raises ValueError for one group only, where it is undefined,
    and for other unusable arguments.

    For cell i with mean distance a_i to the others of its group and b_i to the cells of the nearest
    other group, s_i = (b_i - a_i) / max(a_i, b_i), and s_i = 0 for a cell alone in its group
    (Rousseeuw 1987). Euclidean distances. All n² of them are computed, in blocks of rows: time
    grows as n², memory as n. Draw some 20,000 cells of a million.
    """
    z = checked_points("silhouette", z)
    codes = group_codes("silhouette", "labels", labels, len(z))
    return float(silhouette_of_cells(z, codes).mean())


def silhouette_of_cells(z: Array, codes: Array) -> np.ndarray:
    """s_i of each cell, (n,), of which `silhouette` is the mean.

    z: (n, d) float64; codes: (n,) group of each cell, integers from 0, of at least two groups.
    """
    sizes = np.bincount(codes)
    # In the order of groups each group is a run of columns, which reduceat sums.
    order = np.argsort(codes, kind="stable")
    z = z[order]
    codes = codes[order]
    starts = np.cumsum(sizes) - sizes
    s = np.empty(len(z))
    for rows in row_blocks(len(z), len(z)):
        to_groups = np.add.reduceat(cdist(z[rows], z), starts, axis=1)
        s[order[rows]] = _silhouettes(to_groups, codes[rows], sizes)
    return s


def _silhouettes(to_groups, own, sizes):
    """s_i of a block of cells.

    to_groups: (rows, groups) summed distances to each group's cells; own: (rows,) codes.
    """
    cell = np.arange(len(own))
    others = sizes[own] - 1
    a = to_groups[cell, own] / np.maximum(others, 1)
    to_groups = to_groups / sizes
    to_groups[cell, own] = np.inf
    b = to_groups.min(axis=1)
    larger = np.maximum(a, b)
    return np.divide(b - a, larger, out=np.zeros_like(a), where=(others > 0) & (larger > 0))


def batch_mixing(
    z: Array, batch: Array, n_neighbors: int = 50, n_cells: int | None = 5000, seed: int = 0
) -> float:
    """Whether batches mix: the mean entropy of the batches among a cell's nearest neighbours.

    z: (n, d) real numbers, finite. batch: (n,) labels. n_neighbors: neighbours of a cell, the cell
    itself not counted, 1 to n-1. n_cells: how many cells to ask, drawn without replacement by seed;
    None, or n or more, asks all. Returns a float, in nats: 0 where all neighbours are of one batch,
    at most log(number of batches). If position says nothing about batch it comes close to the
    entropy of the batch sizes (log 2 = 0.693 for two equal ones), and stays below by about (number
    of batches - 1) / (2 n_neighbors). One batch gives 0. Raises ValueError for too few cells and
    for other unusable arguments.

    mean over cells u of -sum_b f_ub log f_ub, f_ub the fraction of batch b among the 50 nearest
    neighbours of u: the "entropy of batch mixing" of Lopez et al. 2018 (scVI), Methods. They
    average over fewer cells, drawn repeatedly.
    """
    z = checked_points("batch_mixing", z)
    codes = label_codes("batch_mixing", "batch", batch, len(z))
    n_neighbors = whole_number(
        "batch_mixing: n_neighbors", n_neighbors, 1, len(z) - 1, "the other cells in z"
    )
    n_cells = len(z) if n_cells is None else whole_number("batch_mixing: n_cells", n_cells)
    cells = np.arange(len(z))
    if n_cells < len(z):
        cells = np.random.default_rng(seed).choice(len(z), n_cells, replace=False)
    tree = cKDTree(z)
    n_batches = codes.max() + 1
    total = 0.0
    for rows in row_blocks(len(cells), n_neighbors + 1 + n_batches):
        met = codes[neighbours(tree, z, cells[rows], n_neighbors).cells]
        total += _entropy(sums_by_label(met, n_batches) / n_neighbors).sum()
    return float(total / len(cells))


def sums_by_label(codes: Array, n_labels: int, weights: Array | None = None) -> np.ndarray:
    """How often, or with what weight, each label stands in each row: (rows, n_labels).

    codes: (rows, k) integers from 0; weights: (rows, k) or None, for 1 each.
    """
    n_rows = len(codes)
    pairs = codes + n_labels * np.arange(n_rows)[:, None]  # a number for each row and label
    of_each = None if weights is None else weights.ravel()
    return np.bincount(pairs.ravel(), of_each, n_labels * n_rows).reshape(n_rows, n_labels)


class Neighbours(NamedTuple):
    """The cells nearest to each cell, itself left out, from the nearest on: both (n_cells, k)."""

    cells: np.ndarray
    distances: np.ndarray


def neighbours(tree: cKDTree, z: Array, cells: Array, n_neighbors: int) -> Neighbours:
    """The rows of z that are nearest to each of some cells, itself left out.

    tree: of z, (n, d); cells: (n_cells,) row numbers. Returns Neighbours of shape (n_cells,
    n_neighbors). A cell need not come first in its own list: other rows may be equal to it.
    """
    distances, nearest = tree.query(z[cells], n_neighbors + 1, workers=-1)
    itself = nearest == cells[:, None]
    # Where more equal rows than there are neighbours crowd it out: drop the last of them.
    itself[~itself.any(axis=1), -1] = True
    shape = len(cells), n_neighbors
    return Neighbours(nearest[~itself].reshape(shape), distances[~itself].reshape(shape))


# -------------------------------------------------------------------------------- what is passed in


def checked_points(function: str, z: Array, name: str = "z") -> np.ndarray:
    """The points z of a function, as a float64 array (n, d), or an error that names the argument.

    Raises TypeError for what is not a dense array of real numbers, ValueError for another shape, no
    cell, NaN, infinity, or numbers whose squares are no float64.
    """
    if sparse.issparse(z):
        raise TypeError(
            f"{function}: {name} is a sparse matrix; pass a dense array, such as model.latent(x)"
        )
    if isinstance(z, np.ma.MaskedArray):
        z = np.ma.filled(z.astype(np.result_type(z, np.float64)), np.nan)
    z = np.asarray(z)
    if z.dtype.kind not in "fiub":
        raise TypeError(f"{function}: {name} must be real numbers, not dtype {z.dtype}")
    if z.ndim != 2:
        raise ValueError(
            f"{function}: {name} must be (n cells, d features), not of shape {z.shape}; "
            f"for one feature pass {name}.reshape(-1, 1)"
        )
    if z.size == 0:
        raise ValueError(
            f"{function}: {name} of shape {z.shape} is empty; pass at least one cell and one "
            "feature"
        )
    z = z.astype(np.float64, copy=False)
    bad = ~np.isfinite(z).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{function}: {name} has NaN or infinity in {bad.sum()} of {number_of(len(z), 'row')}, "
            f"first in row {bad.argmax()}; leave those cells out"
        )
    if np.abs(z).max() > 1e150:
        raise ValueError(
            f"{function}: {name} reaches {np.abs(z).max():.1e}, whose square is no float64; "
            "rescale it"
        )
    return z


def label_codes(
    function: str, name: str, labels: Array, n: int | None = None, owner: str = "z"
) -> np.ndarray:
    """Labels of a function as integers from 0, (n,), in the labels' sorted order, or an error.

    n: how many cells there must be; owner: the argument that says so. Raises ValueError for another
    shape or number of labels, none, or missing ones; TypeError for labels that cannot be compared.
    """
    if isinstance(labels, np.ma.MaskedArray):
        labels = np.ma.filled(labels.astype(object), np.nan)
    if not isinstance(labels, np.ndarray) and not hasattr(labels, "__array__"):
        # A list. Without dtype, NumPy would turn its NaN among strings into the word "nan".
        labels = np.array(labels, dtype=object)
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            f"{function}: {name} must be one label per cell, shape (n,), "
            f"not of shape {labels.shape}"
        )
    if n is not None and len(labels) != n:
        raise ValueError(
            f"{function}: {name} has {number_of(len(labels), 'label')}, but {owner} has {n} cells; "
            "pass one per cell"
        )
    if len(labels) == 0:
        raise ValueError(f"{function}: {name} is empty; pass the label of at least one cell")
    try:
        if labels.dtype == object:
            missing = np.array([is_missing(x) for x in labels], dtype=bool)
        else:
            missing = np.array(labels != labels, dtype=bool)
        if not missing.any():
            return np.unique(labels, return_inverse=True)[1]
    except TypeError as error:
        raise TypeError(
            f"{function}: {name} mixes labels that cannot be compared ({error}); "
            "pass all integers or all strings, none missing"
        ) from error
    raise ValueError(
        f"{function}: {name} is missing (NaN or None) for {missing.sum()} of {len(labels)} cells, "
        f"first for cell {missing.argmax()}; leave those cells out, or give them a label of their "
        "own"
    )


def group_codes(function: str, name: str, labels: Array, n: int, owner: str = "z") -> np.ndarray:
    """The `label_codes` of at least two groups, (n,); ValueError for one group only."""
    codes = label_codes(function, name, labels, n, owner)
    if codes.max() == 0:
        raise ValueError(
            f"{function}: {name} has one group only, and the score compares groups; pass two or "
            "more"
        )
    return codes


def row_blocks(n_rows: int, n_columns: int) -> list[slice]:
    """Slices of rows, one after the other: rows times columns stays within BLOCK numbers."""
    step = max(1, BLOCK // n_columns)
    return [slice(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]

"""Cell types for new cells, from the nearest cells whose types are known.

This is a reference: one function.

Know before reading: clustering.py's first paragraph. Someone annotated the cells of a reference; a
model maps these and new cells (the query) to one latent space. Then each query cell asks its
nearest reference cells, and the label with most of their votes is its own:

    labels, uncertainty = transfer_labels(model.latent(reference), types, model.latent(query))
    labels[uncertainty > 0.2] = "unknown"      # as the Human Lung Cell Atlas does

Know after: how votes are weighted, and what the uncertainty does not know.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from minigrad.backend import Array
from minigrad.notebook import number_of
from models.clustering import checked_points, label_codes, row_blocks, sums_by_label
from models.inputs import whole_number


class Transferred(NamedTuple):
    """Labels for query cells, and how uncertain they are: both (n_query,)."""

    labels: np.ndarray
    uncertainty: np.ndarray


def transfer_labels(
    reference_z: Array, labels: Array, query_z: Array, n_neighbors: int = 15
) -> Transferred:
    """Label query cells by the votes of their nearest reference cells, and say how sure that is.

    reference_z: (n, d) real numbers, finite, latent means of annotated cells; labels: (n,), one for
    each; query_z: (n_query, d) of the cells to label, by the same model, or by one that
    `map_query` made of it. n_neighbors: reference cells asked, 1 to n. Returns Transferred(labels,
    uncertainty): labels (n_query,) of the dtype of those given (of labels with equal votes the
    first in sorted order), and uncertainty (n_query,) float64 from 0 (all say the same) to just
    below 1. Raises ValueError or TypeError for unusable arguments.

    Coordinates of two other models give labels too, and these mean nothing. Numbers do not say
    which model they are of, so only another number of dimensions can be refused here;
    `models.latent_files.space_of` tells whether two models share a latent space. Nor can it be seen
    that a cell has no counts, and so no place: leave such cells out.

    With distances d_j of the k neighbours j of a query cell and their standard deviation s,

        w_j = exp(-d_j / (2 / s)²) = exp(-d_j s² / 4)
        P(label) = sum of w_j over the j with the label / sum of all w_j,    uncertainty = 1 - max P

    (Lotfollahi et al. 2022, scArches, Methods; s about the mean distance, as their code has it).
    The weights depend on the units of z: in a tight space, where s is small, all neighbours count
    alike. And P knows only shares of votes: a cell of a type that the reference lacks still has
    nearest neighbours, and where these agree its uncertainty is 0.
    """
    reference_z = checked_points("transfer_labels", reference_z, "reference_z")
    codes = label_codes("transfer_labels", "labels", labels, len(reference_z), "reference_z")
    query_z = checked_points("transfer_labels", query_z, "query_z")
    if query_z.shape[1] != reference_z.shape[1]:
        raise ValueError(
            f"transfer_labels: query_z has {number_of(query_z.shape[1], 'dimension')}, but "
            f"reference_z {reference_z.shape[1]}; pass latent means of the same model"
        )
    n_neighbors = whole_number(
        "transfer_labels: n_neighbors", n_neighbors, 1, len(reference_z), "the cells in reference_z"
    )
    _, first = np.unique(codes, return_index=True)
    names = np.asarray(labels)[first]
    tree = cKDTree(reference_z)
    best = np.empty(len(query_z), dtype=np.int64)
    uncertainty = np.empty(len(query_z))
    for rows in row_blocks(len(query_z), n_neighbors + len(names)):
        asked = np.arange(1, n_neighbors + 1)  # a list, so that one neighbour is a column too
        distances, nearest = tree.query(query_z[rows], asked, workers=-1)
        p = sums_by_label(codes[nearest], len(names), _weights(distances))
        best[rows] = p.argmax(axis=1)
        p[np.arange(len(p)), best[rows]] = 0
        uncertainty[rows] = p.sum(axis=1)  # 1 - max P, and exactly 0 where all agree
    return Transferred(names[best], uncertainty)


def _weights(distances):
    """w_j of each query cell's neighbours, scaled so that they sum to 1: (rows, k)."""
    variance = distances.var(axis=1, keepdims=True)
    farther = distances - distances[:, :1]  # the nearest has weight 1 before scaling, never 0
    with np.errstate(over="ignore"):  # exp(-inf) = 0 is right
        w = np.exp(-farther * variance / 4)
    return w / w.sum(axis=1, keepdims=True)

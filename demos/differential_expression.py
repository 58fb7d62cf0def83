"""Differential expression: B cells against monocytes with their known markers; like against like.

The chapter's two hypotheses for a gene: H1, its expected fraction rho is higher in a cell of group
A than in one of group B, against H0, it is not. Pairs of cells, one of each group, and draws from
their posteriors give p(H1); the Bayes factor is log p / (1 - p). That says how sure the model is of
a direction, not that there is a difference: see models/differential.py. So genes are marked by
another question: do the means of the groups differ by more than a fold change that matters? Of two
random halves of one cell type, none should be.
"""

from __future__ import annotations

import numpy as np

from demos import show
from models import SCVI
from models.counts import read

MARKERS = {
    "B cells": ("CD79A", "CD79B", "MS4A1", "HLA-DQA1"),
    "monocytes": ("LYZ", "S100A8", "S100A9", "FCN1"),
}


def run(options) -> None:
    counts = read(show.DATA / "pbmc68k.npz")
    types = counts.obs["labels"]
    model = SCVI(counts.X.shape[1])
    model.fit(counts, epochs=20 if options.quick else 150)
    n_samples = 1000 if options.quick else 5000
    groups = "CD19+ B", "CD14+ Monocyte"
    asked = dict(n_samples=n_samples, genes=counts.genes)
    table = model.differential_expression(counts, *groups, groupby="labels", **asked)
    pairs = model.differential_expression(counts, *groups, "vanilla", groupby="labels", **asked)
    print(f"B cells against monocytes, {len(table)} genes\n{table}\n")
    for side, markers in MARKERS.items():
        for gene in markers:
            print(f"{gene:<10} marker of {side:<10} {about(gene, table, pairs)}")
    halves = np.random.default_rng(0).permutation(np.flatnonzero(types == "Dendritic"))
    null = model.differential_expression(counts, halves[::2], halves[1::2], **asked)
    print(
        f"\nat an expected false discovery rate of 0.05: {np.sum(table['is_de'])} genes differ "
        f"between B cells and monocytes, {np.sum(null['is_de'])} between two random halves of the "
        "dendritic cells"
    )
    table.to_csv(options.out / "differential_expression.csv")
    table.volcano(options.out / "differential_expression.png")
    (options.out / "differential_expression.caption").write_text(
        "One point per gene: fold change between B cells (right) and monocytes (left) against how "
        "sure it is that it lies beyond the dotted lines. Coloured genes are marked: some 5 % of "
        "them falsely, by expectation.\n"
    )


def about(gene, table, pairs) -> str:
    """Where a gene stands in the table, and what the pairs of cells say of it."""
    if gene not in table["gene"]:
        return "not among the genes of this data set"
    i = list(table["gene"]).index(gene)
    direction = pairs["bayes_factor"][list(pairs["gene"]).index(gene)]
    marked = "marked" if table["is_de"][i] else "not marked"
    return (
        f"rank {i + 1:>4} of {len(table)}, log2 fold change {table['lfc_mean'][i]:+.2f}, {marked}; "
        f"Bayes factor of rho_a > rho_b in pairs {direction:+.2f}"
    )

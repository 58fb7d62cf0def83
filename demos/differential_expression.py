"""Differential expression: B cells against monocytes, by posterior probability, with known markers.

The chapter's two hypotheses for a gene: H1, its expected fraction rho is higher in a cell of group
A than in one of group B, against H0, it is not. Pairs of cells, one of each group, and draws from
their posteriors give p(H1); the Bayes factor is log p / (1 - p). It is no p-value: it says how sure
the model is of a direction, not how seldom chance alone would do it. The second test asks for a
change that matters, a fold change beyond 2^0.25, and controls the expected fraction of false
discoveries. Two random halves of one cell type are the check that it finds nothing where there is
nothing.
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
    b_cells, monocytes = types == "CD19+ B", types == "CD14+ Monocyte"
    table = model.differential_expression(
        counts, b_cells, monocytes, n_samples=n_samples, genes=counts.genes
    )
    print(
        f"{b_cells.sum()} B cells against {monocytes.sum()} monocytes, {len(table)} "
        f"genes\n{table}\n"
    )
    genes, factor = list(table["gene"]), table["bayes_factor"]
    for side, markers in MARKERS.items():
        for gene in markers:
            if gene in genes:
                i = genes.index(gene)
                print(
                    f"{gene:<10} marker of {side:<10} rank {i + 1:>4} of {len(genes)}, Bayes "
                    f"factor {factor[i]:+.2f}"
                )
            else:
                print(f"{gene:<10} marker of {side:<10} not among the genes of this data set")
    change = model.differential_expression(
        counts, b_cells, monocytes, mode="change", n_samples=n_samples, genes=counts.genes
    )
    rows = np.flatnonzero(types == "Dendritic")
    halves = np.random.default_rng(0).permutation(rows)
    null = model.differential_expression(
        counts, halves[::2], halves[1::2], mode="change", n_samples=n_samples, genes=counts.genes
    )
    print(
        f"\nat a false discovery rate of 0.05: {np.sum(change['is_de'])} genes change between B "
        "cells and monocytes, "
        f"{np.sum(null['is_de'])} between two random halves of the dendritic cells"
    )
    table.to_csv(options.out / "differential_expression.csv")
    table.volcano(options.out / "differential_expression.png")
    (options.out / "differential_expression.caption").write_text(
        "A point a gene: fold change between B cells (right) and monocytes (left) against how sure "
        "the model is.\n"
    )

"""A day with counts: from a raw 10x folder to clusters, marker genes, a report, a second sample.

What one does with a sample of one's own, one step after the other: a raw 10x folder and a table of
its cells are read, looked at and trained on, with the donor as batch and a covariate; the latent
space is clustered and drawn, scored beside principal components, asked for marker genes of every
cluster, and put on a page; a second sample is mapped onto it, and its cells get labels. The cells
are real, the donors simulated. With scanpy and igraph installed, clusters are leiden's and the
plane is UMAP; without, k-means and t-SNE stand in.

The walk itself is a script and a notebook, demos/walks/day.py and .ipynb, with the command line
beside each step and what can go wrong in it. Here it runs as a demo.
"""

from __future__ import annotations

import os
import runpy
import warnings
from pathlib import Path

SCRIPT = Path(__file__).parent / "walks" / "day.py"


def run(options) -> None:
    before = dict(os.environ)
    os.environ["MINIGRAD_OUT"] = str(options.out)
    if options.quick:
        os.environ["MINIGRAD_QUICK"] = "1"
    try:
        with warnings.catch_warnings():  # the script has a way of its own to show them
            runpy.run_path(str(SCRIPT))
    finally:
        os.environ.clear()
        os.environ.update(before)

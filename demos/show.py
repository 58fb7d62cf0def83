"""Pictures of the demos: one palette that colour-blind readers can tell apart, one way to save with a caption."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

DATA = Path(__file__).parent / "data"
# Okabe & Ito (2008), then three more for up to ten classes; markers tell apart what colours alone might not.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442", "#7F7F7F", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def figure(n_rows: int = 1, n_columns: int = 1, width: float = 4.2, height: float = 3.6):
    """(Figure, array of axes (n_rows, n_columns)); sizes in inches a panel."""
    f = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    return f, f.subplots(n_rows, n_columns, squeeze=False)


def scatter(axes, points: np.ndarray, labels, size: float = 8.0) -> None:
    """Points (n, 2) by label, each with a colour and a marker of its own; drawn in random order."""
    names = sorted(set(labels))
    labels = np.asarray(labels)
    for i, name in enumerate(names):
        chosen = labels == name
        axes.scatter(*points[chosen].T, s=size, color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], linewidths=0,
                     alpha=0.75, label=str(name), rasterized=True)
    axes.set(xticks=[], yticks=[])


def save(f: Figure, out: Path, name: str, caption: str) -> None:
    """Write `out/NAME.png` and, for the page, its caption."""
    f.savefig(out / f"{name}.png", dpi=110)
    (out / f"{name}.caption").write_text(caption + "\n", encoding="utf-8")
    print(f"picture {name}.png: {caption}")

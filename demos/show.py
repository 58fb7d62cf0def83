"""Pictures of the demos: one palette, safe for colour-blind readers, and one way to save them."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from models.report import COLORS, MARKERS, legend, scatter

__all__ = ["COLORS", "DATA", "MARKERS", "figure", "legend", "save", "scatter"]
DATA = Path(__file__).parent / "data"


def figure(n_rows: int = 1, n_columns: int = 1, width: float = 4.2, height: float = 3.6):
    """(Figure, array of axes (n_rows, n_columns)); sizes in inches a panel."""
    f = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    return f, f.subplots(n_rows, n_columns, squeeze=False)


def save(f: Figure, out: Path, name: str, caption: str) -> None:
    """Write `out/NAME.png` and, for the page, its caption."""
    f.savefig(out / f"{name}.png", dpi=110)
    (out / f"{name}.caption").write_text(caption + "\n", encoding="utf-8")
    print(f"picture {name}.png: {caption}")

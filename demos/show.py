"""Pictures of the demos: one palette, safe for colour-blind readers, and one way to save them.

The web shows them some 830 pixels wide: there, letters are legible in figures of at most 10 inches.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from minigrad import picture
from minigrad.checkpoint import write_figure
from minigrad.notebook import as_picture
from models.report import COLORS, MARKERS, legend, scatter

__all__ = [
    "COLORS",
    "DATA",
    "MARKERS",
    "figure",
    "graph",
    "legend",
    "mark_quick",
    "save",
    "scatter",
]
DATA = Path(__file__).parent / "data"
RED = COLORS[5]


def figure(n_rows: int = 1, n_columns: int = 1, width: float = 4.2, height: float = 3.6):
    """(Figure, array of axes (n_rows, n_columns)); sizes in inches a panel."""
    f = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    return as_picture(f), f.subplots(n_rows, n_columns, squeeze=False)


def mark_quick(path: Path) -> None:
    """Write above a picture that it is of a quick run, and so need not show what is said of it."""
    pixels = imread(path)
    height, width = pixels.shape[:2]
    strip = 34  # pixels
    f = Figure(figsize=(width / 100, (height + strip) / 100), dpi=100)
    f.figimage(pixels, 0, 0, origin="upper")
    text = "quick run: too small for the caption to hold"
    place = {"ha": "left", "va": "center", "fontsize": min(13.0, 0.02 * width)}
    f.text(12 / width, 1 - strip / 2 / (height + strip), text, color=RED, weight="bold", **place)
    frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=RED, linewidth=6)
    f.add_artist(frame)
    write_figure(f, path, dpi=100)


def save(f: Figure, out: Path, name: str, caption: str) -> Figure:
    """Write `out/NAME.png` and, for the page, its caption; returns the figure, which a notebook
    shows.
    """
    write_figure(f, out / f"{name}.png", dpi=130)
    (out / f"{name}.caption").write_text(caption + "\n", encoding="utf-8")
    print(f"picture {name}.png: {caption}")
    return f


def graph(output, made_from, words, names=None) -> Figure:
    """The graph of any engine's computation: a box for each node, arrows from what it was made of.

    output: a node. made_from(node): the nodes that it was made from, none for a leaf. words(node):
    the lines of its box. names: {name: node}, for further first lines. A notebook shows the Figure
    that is returned.
    """
    name_of = {id(node): name for name, node in (names or {}).items()}
    nodes: list = []  # each after all that it was made from
    place: dict[int, int] = {}  # id of a node -> its place there
    waiting = [(output, False)]
    while waiting:
        node, is_complete = waiting.pop()
        if id(node) in place:
            continue
        if is_complete:  # all that it was made from has its place
            place[id(node)] = len(nodes)
            nodes.append(node)
        else:
            waiting.append((node, True))
            waiting += [(x, False) for x in reversed(made_from(node))]

    edges = {(place[id(x)], place[id(node)]) for node in nodes for x in made_from(node)}
    texts = []
    for node in nodes:
        kind = "operation" if made_from(node) else "leaf"
        named = [name_of[id(node)]] if id(node) in name_of else []
        texts.append(([*named, *words(node)], "output" if node is output else kind))
    return as_picture(picture.figure_of(*picture.layout(texts, sorted(edges))))

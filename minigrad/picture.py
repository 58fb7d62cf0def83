"""A graph drawn so that it can be read: boxes of text in layers, and arrows that pass no box.

Know before reading: that the steps of a computation, each made from earlier ones, are a directed graph without cycles.
Nothing here knows of Tensors: `layout` takes texts and pairs of them, and says where all goes, in inches; `paint` makes
a file of it with matplotlib. The method is Sugiyama's (1981), in four steps, a function each:

    _depths     the layer of each box: below all that it is made from
    _routed     long arrows cut at every layer, so that each piece goes from one layer to the next
    _ordered    an order within each layer that crosses few arrows
    _across     places within the layer: as straight as the order allows

Know after: how programs like Graphviz's dot draw a graph.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LETTER, LINE = (
    0.076,
    0.155,
)  # inches: width of a letter and height of a line, DejaVu Sans Mono at 9 points
LEGEND = 1.05  # inches: width of an entry of the legend
GAP = 0.26  # inches: between layers, where arrows bend
DPI = 110
FONT = dict(family="monospace", size=9, linespacing=1.22, parse_math=False)
COLOURS = {
    "leaf": ("#FBE3B5", "#B87700"),
    "data": ("#EEEEEE", "#777777"),
    "operation": ("#DCEFFB", "#2F7FB5"),
    "module": ("#F6E4EE", "#9C3F75"),
    "output": ("#CFEFE3", "#00795A"),
    "not finite": ("#F9D6C4", "#B34700"),
}  # light and dark of Okabe and Ito's


class Box(NamedTuple):
    """A box of the picture: its text, its kind (of COLOURS), and, in inches, its centre and size."""

    text: str
    kind: str
    x: float
    y: float
    width: float
    height: float


def layout(texts, edges) -> tuple[list, list, tuple[float, float]]:
    """Where all goes, in inches: (a Box for each text, the points of an arrow for each edge, (width, height)).

    texts: (lines, kind) of each box, what is made after what it is made from; lines that begin with a space are a list
    below a title. edges: pairs (a, b) of indices, a < b,
    sorted. Layers run downwards or to the right, whichever comes nearer to the shape of a page.
    """
    sizes = np.array(
        [(LETTER * max(map(len, lines)) + 0.2, LINE * len(lines) + 0.16) for lines, _ in texts]
    )
    layers, paths = _routed(_depths(len(texts), edges), edges)
    layers, near = _ordered(layers, paths)
    plans = [_plan(layers, paths, near, sizes, down) for down in (True, False)]
    centres, arrows, (width, height) = min(
        plans, key=lambda plan: abs(np.log(plan[2][0] / plan[2][1] / 1.2))
    )
    widest = max(width, LEGEND * len({kind for _, kind in texts}))
    margin = np.array([0.2 + (widest - width) / 2, 0.2])
    boxes = [
        Box("\n".join(lines), kind, *(c + margin), *size)
        for (lines, kind), c, size in zip(texts, centres, sizes)
    ]
    return boxes, [points + margin for points in arrows], (widest + 0.4, height + 0.75)


def paint(path, boxes, arrows, size) -> None:
    """Write what `layout` gave to a picture file (.png, .pdf, .svg), with a legend of the colours that occur."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for points in arrows:
        axes.add_patch(_arrow(points))
    for box in boxes:
        _paint_box(axes, box)
    kinds = [kind for kind in COLOURS if any(box.kind == kind for box in boxes)]
    for i, kind in enumerate(kinds):
        swatch = Box(kind, kind, 0.2 + LEGEND * (i + 0.5), height - 0.25, LEGEND - 0.1, 0.24)
        _paint_box(axes, swatch)
    figure.savefig(path, dpi=DPI)


def _paint_box(axes, box) -> None:
    """A box and its text: centred; of a module, a title and a list below it."""
    from matplotlib.patches import FancyBboxPatch

    light, dark = COLOURS[box.kind]
    left, top = box.x - box.width / 2, box.y - box.height / 2
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=light,
            edgecolor=dark,
            linewidth=1.2,
        )
    )
    title, *rest = box.text.split("\n")
    if rest and rest[0].startswith(" "):  # a list: columns, which must not be centred line by line
        axes.text(
            left + 0.1,
            top + 0.08 + LINE / 2,
            title,
            ha="left",
            va="center",
            color=dark,
            weight="bold",
            **FONT,
        )
        axes.text(left + 0.1, box.y + LINE / 2, "\n".join(rest), ha="left", va="center", **FONT)
    else:
        axes.text(box.x, box.y, box.text, ha="center", va="center", **FONT)


def _arrow(points):
    """An arrow along points as `_plan` gives them: straight within a layer, a Bezier curve from one to the next."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    hops = len(points) // 4
    codes = (
        [Path.MOVETO] + [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * hops + [Path.LINETO]
    )
    return FancyArrowPatch(
        path=Path(points, codes),
        arrowstyle="-|>,head_length=4,head_width=2.2",
        color="#555555",
        linewidth=0.9,
        joinstyle="round",
        shrinkA=0,
        shrinkB=0,
    )


def _depths(n, edges) -> list[int]:
    """The layer of each step: an operation just below its deepest input, a leaf just above its first user."""
    depth = [0] * n
    for (
        a,
        b,
    ) in (
        edges
    ):  # sorted by a, and every input has a smaller number than its user: depth[a] is final
        depth[b] = max(depth[b], depth[a] + 1)
    made = {b for _, b in edges}
    for i in set(range(n)) - made:
        depth[i] = min((depth[b] for a, b in edges if a == i), default=1) - 1
    return depth


def _routed(depth, edges):
    """Layers (lists of nodes), and each edge as a path with a node in every layer, a bend where it only passes.

    Arrows that come from one step share their bends, as wires of one trunk.
    """
    layers = [[i for i, d in enumerate(depth) if d == k] for k in range(max(depth) + 1)]
    bends, paths = {}, []
    for a, b in edges:
        passed = range(depth[a] + 1, depth[b])
        for k in passed:
            if (a, k) not in bends:
                bends[a, k] = len(depth) + len(bends)
                layers[k].append(bends[a, k])
        paths.append([a, *[bends[a, k] for k in passed], b])
    return layers, paths


def _ordered(layers, paths):
    """The layers, ordered so that few arrows cross, and each node's neighbours (in the layer before, and after).

    Sugiyama's heuristic (1981): downwards and upwards, sort each layer by the mean place of its neighbours.
    """
    hops = {hop for path in paths for hop in zip(path, path[1:])}
    near = {
        v: (sorted(a for a, b in hops if b == v), sorted(b for a, b in hops if a == v))
        for layer in layers
        for v in layer
    }
    layers, best, fewest = [list(layer) for layer in layers], None, None
    for sweep in range(24):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            place = {v: i - len(other) / 2 for other in layers for i, v in enumerate(other)}
            layer.sort(key=lambda v: np.mean([place[u] for u in near[v][sweep % 2]] or place[v]))
        place = {v: i for layer in layers for i, v in enumerate(layer)}
        by_layer = [[(place[a], place[b]) for a in layer for b in near[a][1]] for layer in layers]
        crossings = sum(
            (a - c) * (b - d) < 0 for pairs in by_layer for a, b in pairs for c, d in pairs
        )
        if best is None or crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best, near


def _across(layers, paths, near, widths, gap) -> dict[int, float]:
    """The coordinate of each node within its layer: as near as possible to the mean of its neighbours, without overlap.

    With the order given, that is a least-squares problem whose answer is an isotonic regression. In the second half of
    the sweeps all bends of a trunk are drawn, strongly, to one line: long arrows become straight. Leaves count little
    and give way, and at last boxes look only at what they are made from, so that chains become straight too.
    """
    from scipy.optimize import (
        isotonic_regression,
    )  # not above: it would double the time that importing minigrad takes

    trunk_of = {v: path[0] for path in paths for v in path[1:-1]}
    trunks = {a: [v for v in trunk_of if trunk_of[v] == a] for a in set(trunk_of.values())}
    trunks = {
        a: trunk + [u for v in trunk for u in near[v][0] + near[v][1]]
        for a, trunk in trunks.items()
    }
    made = {v: [u for u in near[v][0] + near[v][1] if near[u][0]] for v in near}
    inputs = {v: [u for u in near[v][0] if near[u][0]] for v in near}
    half = {v: widths[v] / 2 if v < len(widths) else 0.0 for layer in layers for v in layer}
    apart = [
        np.cumsum([0.0] + [half[u] + half[v] + gap for u, v in zip(layer, layer[1:])])
        for layer in layers
    ]
    x = {
        v: place - places[-1] / 2
        for layer, places in zip(layers, apart)
        for v, place in zip(layer, places)
    }
    for sweep in range(40):
        line = (
            {a: sum(x[v] for v in trunk) / len(trunk) for a, trunk in trunks.items()}
            if sweep > 20
            else {}
        )
        for k in range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers))):
            towards = [
                sweep > 30 and inputs[v] or made[v] or near[v][0] + near[v][1] or [v]
                for v in layers[k]
            ]
            wanted = [
                line[trunk_of[v]] if trunk_of.get(v) in line else sum(x[u] for u in us) / len(us)
                for v, us in zip(layers[k], towards)
            ] - apart[k]
            weights = [50.0 if v in trunk_of else 1.0 if near[v][0] else 0.02 for v in layers[k]]
            x.update(zip(layers[k], isotonic_regression(wanted, weights=weights).x + apart[k]))
    left = min(x[v] - half[v] for v in x)
    return {v: float(x[v] - left) for v in x}


def _plan(layers, paths, near, sizes, down):
    """Centres of the boxes, points of the arrows, and the size of all, with layers running downwards or to the right.

    An arrow: start; for each gap between layers its end, two control points, start of the next; tip.
    """
    wide, deep = sizes.T if down else sizes.T[::-1]
    x = _across(layers, paths, near, wide, 0.25)
    depths = [max([deep[v] for v in layer if v < len(deep)]) + 0.12 for layer in layers]
    start = np.cumsum([0.0] + [d + GAP for d in depths])
    layer_of = {v: k for k, layer in enumerate(layers) for v in layer}
    middle = [start[layer_of[i]] + depths[layer_of[i]] / 2 for i in range(len(deep))]
    arrows, before = (
        [],
        {b: sorted(x[p[-2]] for p in paths if p[-1] == b) for b in {p[-1] for p in paths}},
    )
    for path in paths:
        a, b, k = path[0], path[-1], layer_of[path[0]]
        rank, n = before[b].index(x[path[-2]]), len(before[b])
        port = x[b] + (rank - (n - 1) / 2) * min(
            0.25, wide[b] / (n + 1)
        )  # arrows into one box side by side
        points = [(x[a], middle[a] + deep[a] / 2)]
        for p, q in zip([x[v] for v in path[:-1]], [*[x[v] for v in path[1:-1]], port]):
            end, beginning = start[k] + depths[k], start[k + 1]
            points += [
                (p, end),
                (p, (end + beginning) / 2),
                (q, (end + beginning) / 2),
                (q, beginning),
            ]
            k += 1
        arrows.append(np.array([*points, (port, middle[b] - deep[b] / 2)]))
    turn = slice(None) if down else slice(None, None, -1)
    centres = np.array([(x[i], y) for i, y in enumerate(middle)])[:, turn]
    total = (max(x[v] + (wide[v] / 2 if v < len(wide) else 0.0) for v in x), start[-1] - GAP)
    return centres, [points[:, turn] for points in arrows], total[turn]

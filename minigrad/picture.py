"""A graph drawn so that it can be read: boxes of text in layers, and arrows that pass no box.

This is a lesson, in drawing graphs. The steps of a computation, each made from earlier ones, are a
directed graph without cycles. Where does each go on a page? Nothing here knows of Tensors: `layout`
takes the texts of the boxes, and pairs that say which is made from which, and says where all goes,
in inches; `paint` makes a file of it, with matplotlib.

    >>> from minigrad.picture import layout
    >>> texts = [(["x"], "leaf"), (["square"], "operation"), (["sum"], "output")]
    >>> boxes, arrows, (width, height) = layout(texts, edges=[(0, 1), (1, 2)])
    >>> for box in boxes:
    ...     print(f"{box.text:6} at {box.x:.2f}, {box.y:.2f}")
    x      at 1.78, 0.42
    square at 1.78, 1.11
    sum    at 1.78, 1.81

The method is that of Sugiyama, Tagawa & Toda (1981), in four steps with a function each:

    _depths     which layer each box is in: below all that it is made from
    _routed     long arrows are cut at every layer: each piece leads from one layer to the next
    _ordered    an order within each layer in which few arrows cross
    _across     places within each layer: as straight as the order allows

Know before reading: that a graph is a set of nodes and of edges between them.

Know after: how programs such as Graphviz's dot draw a graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Inches, except the last.
LETTER = 0.076  # width of a letter, in DejaVu Sans Mono at 9 points
LINE = 0.155  # height of a line
LEGEND = 1.05  # width of an entry of the legend
GAP = 0.26  # between layers, where arrows bend
NEIGHBOURS = 0.25  # between boxes of a layer, and between arrows that end in the same box
SHAPE_OF_A_PAGE = 1.2  # width over height

DPI = 110
FONT: dict[str, Any] = {
    "family": "monospace",
    "size": 9,
    "linespacing": 1.22,
    "parse_math": False,
}
COLOURS = {  # of the inside and of the edge, from Okabe and Ito's
    "leaf": ("#FBE3B5", "#B87700"),
    "data": ("#EEEEEE", "#777777"),
    "operation": ("#DCEFFB", "#2F7FB5"),
    "module": ("#F6E4EE", "#9C3F75"),
    "output": ("#CFEFE3", "#00795A"),
    "not finite": ("#F9D6C4", "#B34700"),
}


class Box(NamedTuple):
    """A box of the picture: text, kind (one of COLOURS), and, in inches, centre and size."""

    text: str
    kind: str
    x: float
    y: float
    width: float
    height: float


def layout(
    texts: list[tuple[list[str], str]], edges: list[tuple[int, int]]
) -> tuple[list[Box], list[np.ndarray], tuple[float, float]]:
    """Where all goes, in inches: (a Box for each text, an arrow for each edge, (width, height)).

    texts: (lines, kind) of each box; a box comes after all that it is made from. Lines that begin
    with a space are a list below a title. edges: pairs (a, b), sorted: box b is made from box a,
    a < b. An arrow is an array of points, (n, 2), see `_arrow_points`. Layers run downwards or to
    the right, whichever comes nearer to the shape of a page.
    """
    sizes = np.array([_size(lines) for lines, _ in texts])
    layers, paths = _routed(_depths(len(texts), edges), edges)
    neighbours = _neighbours(paths, layers)
    layers = _ordered(layers, neighbours)
    plans = [_plan(layers, paths, neighbours, sizes, downwards) for downwards in (True, False)]
    plan = min(plans, key=lambda plan: abs(np.log(plan.width / plan.height / SHAPE_OF_A_PAGE)))

    # Margins of 0.2 all around, and room for the legend below.
    widest = max(plan.width, LEGEND * len({kind for _, kind in texts}))
    margin = np.array([0.2 + (widest - plan.width) / 2, 0.2])
    boxes = []
    for (lines, kind), centre, size in zip(texts, plan.centres, sizes):
        x, y = centre + margin
        boxes.append(Box("\n".join(lines), kind, x, y, *size))
    return boxes, [points + margin for points in plan.arrows], (widest + 0.4, plan.height + 0.75)


def _size(lines) -> tuple[float, float]:
    """Width and height of a box with these lines."""
    return LETTER * max(map(len, lines)) + 0.2, LINE * len(lines) + 0.16


# ----------------------------------------------------------------------------- 1. layers, 2. routes
def _depths(n, edges) -> list[int]:
    """The layer of each box: an operation below its deepest input, a leaf just above its user."""
    depth = [0] * n
    for a, b in edges:  # sorted by a, and made-from pairs have a < b: depth[a] is final here
        depth[b] = max(depth[b], depth[a] + 1)
    made = {b for _, b in edges}
    for i in range(n):
        if i not in made:
            depth_of_users = [depth[b] for a, b in edges if a == i]
            depth[i] = min(depth_of_users, default=1) - 1
    return depth


def _routed(depth, edges):
    """(layers, paths): what is in each layer, and each edge as a path with a node in every layer.

    Boxes are the nodes 0, 1, ..., n - 1. Where an arrow only passes a layer it gets a node there,
    a bend, with a higher number. Arrows that come from one box share their bends, as the wires of a
    trunk.
    """
    n_boxes = len(depth)
    layers = [[i for i in range(n_boxes) if depth[i] == k] for k in range(max(depth) + 1)]
    bends: dict[tuple[int, int], int] = {}  # (box that the arrow comes from, layer) -> node
    paths = []
    for a, b in edges:
        path = [a]
        for k in range(depth[a] + 1, depth[b]):
            if (a, k) not in bends:
                bends[a, k] = n_boxes + len(bends)
                layers[k].append(bends[a, k])
            path.append(bends[a, k])
        paths.append([*path, b])
    return layers, paths


class _Neighbours(NamedTuple):
    """The nodes that a node is joined with: in the layer before, and in the layer after."""

    before: list[int]
    after: list[int]

    @property
    def all(self) -> list[int]:
        return self.before + self.after


def _neighbours(paths, layers) -> dict[int, _Neighbours]:
    """Node -> its neighbours, sorted."""
    found = {v: _Neighbours([], []) for layer in layers for v in layer}
    hops = {hop for path in paths for hop in zip(path, path[1:])}
    for a, b in sorted(hops):
        found[a].after.append(b)
        found[b].before.append(a)
    return found


# ------------------------------------------------------------------------------------- 3. the order
def _ordered(layers, neighbours) -> list[list[int]]:
    """The layers, each in an order in which few arrows cross.

    Sugiyama's heuristic: going down, and then up again, sort each layer by the mean place of its
    nodes' neighbours in the layer before (going up: after). Of 24 sweeps the best one is taken.
    """
    layers = [list(layer) for layer in layers]
    best = layers
    fewest = None
    for sweep in range(24):
        is_downwards = sweep % 2 == 0
        for layer in layers if is_downwards else layers[::-1]:
            _sort_by_neighbours(layer, layers, neighbours, is_downwards)
        crossings = _crossings(layers, neighbours)
        if fewest is None or crossings < fewest:
            best = [list(layer) for layer in layers]
            fewest = crossings
    return best


def _sort_by_neighbours(layer, layers, neighbours, is_downwards) -> None:
    """Sort one layer, in place, by the mean place of its nodes' neighbours on one side."""
    place = {v: i - len(other) / 2 for other in layers for i, v in enumerate(other)}

    def mean_place(v):
        joined = neighbours[v].before if is_downwards else neighbours[v].after
        return np.mean([place[u] for u in joined] or place[v])

    layer.sort(key=mean_place)


def _crossings(layers, neighbours) -> int:
    """How many pairs of arrows cross, each counted twice."""
    place = {v: i for layer in layers for i, v in enumerate(layer)}
    total = 0
    for layer in layers:
        hops = [(place[a], place[b]) for a in layer for b in neighbours[a].after]
        total += sum((a - c) * (b - d) < 0 for a, b in hops for c, d in hops)
    return total


# ------------------------------------------------------------------------------------ 4. the places
def _across(layers, paths, neighbours, widths) -> dict[int, float]:
    """Node -> its coordinate within its layer: near to its neighbours' mean, without overlap.

    In one layer that is a least-squares problem, in which the order is given and neighbours must
    keep a distance; its answer is an isotonic regression. The layers are visited again and again,
    forwards and backwards, 40 times in all. In the second half, all bends of a trunk are drawn
    strongly to one line, so that long arrows become straight. Leaves count little, and give way. At
    last, boxes look only at what they are made from, so that chains become straight as well.
    """
    # Not at the top: importing minigrad would take twice the time.
    from scipy.optimize import isotonic_regression

    trunk_of = {v: path[0] for path in paths for v in path[1:-1]}  # bend -> where its arrow starts
    trunks = _trunks(trunk_of, neighbours)
    line: dict[int, float] = {}  # box -> the line to which the bends of its arrows are drawn
    only_back = False  # whether nodes look only at what they are made from

    def wish(v):
        """Where a node would stand if it were alone in its layer."""
        if trunk_of.get(v) in line:
            return line[trunk_of[v]]
        towards = _towards(v, neighbours, only_back)
        return sum(x[u] for u in towards) / len(towards)

    # `closest`: the distance of each node from the first of its layer, if they stand as close as
    # they may. Less these distances, places that do not overlap are numbers that do not decrease.
    half = {v: _width(v, widths) / 2 for v in neighbours}
    rows = []
    x: dict[int, float] = {}
    for layer in layers:
        distances = [half[u] + half[v] + NEIGHBOURS for u, v in zip(layer, layer[1:])]
        closest = np.cumsum([0.0, *distances])
        weights = [_weight(v, trunk_of, neighbours) for v in layer]
        rows.append((layer, closest, weights))
        x.update(zip(layer, closest - closest[-1] / 2))

    for sweep in range(40):
        if sweep > 20:
            line = {a: sum(x[v] for v in trunk) / len(trunk) for a, trunk in trunks.items()}
        only_back = sweep > 30
        for layer, closest, weights in rows if sweep % 2 == 0 else rows[::-1]:
            wishes = np.array([wish(v) for v in layer])
            fit = isotonic_regression(wishes - closest, weights=weights)
            x.update(zip(layer, fit.x + closest))
    left = min(x[v] - half[v] for v in x)
    return {v: float(x[v] - left) for v in x}


def _width(node, widths) -> float:
    """The width of a node: bends, whose numbers follow those of the boxes, have none."""
    return widths[node] if node < len(widths) else 0.0


def _trunks(trunk_of, neighbours) -> dict[int, list[int]]:
    """Box -> all bends of the arrows that come from it, and all that these are joined with."""
    trunks: dict[int, list[int]] = {}
    for v, a in trunk_of.items():
        trunks.setdefault(a, []).append(v)
    return {a: trunk + [u for v in trunk for u in neighbours[v].all] for a, trunk in trunks.items()}


def _weight(v, trunk_of, neighbours) -> float:
    """How much it counts that a node stands where it wants to."""
    if v in trunk_of:
        return 50.0
    is_leaf = not neighbours[v].before
    return 0.02 if is_leaf else 1.0


def _towards(v, neighbours, only_back) -> list[int]:
    """The nodes that a node wants to be near: rather operations than leaves."""

    def operations(nodes):
        return [u for u in nodes if neighbours[u].before]

    inputs = operations(neighbours[v].before)
    if only_back and inputs:
        return inputs
    return operations(neighbours[v].all) or neighbours[v].all or [v]


# ----------------------------------------------------------------------------------------- the plan
class _Plan(NamedTuple):
    """Centres of the boxes, (n, 2); points of the arrows; and the size of all, in inches."""

    centres: np.ndarray
    arrows: list[np.ndarray]
    width: float
    height: float


def _plan(layers, paths, neighbours, sizes, downwards) -> _Plan:
    """Where all goes with layers running downwards, or else to the right.

    It is worked out as if downwards, `across` being to the right; at the end, x and y may be
    swapped.
    """
    wide, deep = sizes.T if downwards else sizes.T[::-1]
    n_boxes = len(sizes)
    across = _across(layers, paths, neighbours, wide)
    thickness = [max(deep[v] for v in layer if v < n_boxes) + 0.12 for layer in layers]
    top = np.cumsum([0.0, *(t + GAP for t in thickness)])  # of each layer
    layer_of = {v: k for k, layer in enumerate(layers) for v in layer}
    middle = [top[layer_of[i]] + thickness[layer_of[i]] / 2 for i in range(n_boxes)]

    arrows = []
    tips = _tips(paths, across, wide)
    for path, tip in zip(paths, tips):
        a, b = path[0], path[-1]
        first = layer_of[a]
        gaps = [(top[k] + thickness[k], top[k + 1]) for k in range(first, first + len(path) - 1)]
        arrows.append(
            _arrow_points(
                places=[*(across[v] for v in path[:-1]), tip],
                gaps=gaps,
                start=middle[a] + deep[a] / 2,
                end=middle[b] - deep[b] / 2,
            )
        )
    centres = np.array([(across[i], y) for i, y in enumerate(middle)])
    width = max(across[v] + _width(v, wide) / 2 for v in across)
    height = top[-1] - GAP
    if downwards:
        return _Plan(centres, arrows, width, height)
    return _Plan(centres[:, ::-1], [points[:, ::-1] for points in arrows], height, width)


def _tips(paths, across, wide) -> list[float]:
    """Where the tip of each arrow is: those into one box stand side by side, in order."""
    from_of: dict[int, list[float]] = {}  # box -> the places that its arrows come from, sorted
    for path in paths:
        from_of.setdefault(path[-1], []).append(across[path[-2]])
    for places in from_of.values():
        places.sort()
    tips = []
    for path in paths:
        b = path[-1]
        n = len(from_of[b])
        rank = from_of[b].index(across[path[-2]])
        distance = min(NEIGHBOURS, wide[b] / (n + 1))
        tips.append(across[b] + (rank - (n - 1) / 2) * distance)
    return tips


def _arrow_points(places, gaps, start, end) -> np.ndarray:
    """The points of an arrow, (n, 2): its start; four for each gap between layers; its tip.

    places: across, one in each layer. gaps: where each of them begins and ends. In a gap the arrow
    is a Bezier curve, given by its end points and by two control points halfway.
    """
    points = [(places[0], start)]
    for p, q, (upper, lower) in zip(places, places[1:], gaps):
        halfway = (upper + lower) / 2
        points += [(p, upper), (p, halfway), (q, halfway), (q, lower)]
    return np.array([*points, (places[-1], end)])


# ------------------------------------------------------------------------------------- the painting
def figure_of(boxes: list[Box], arrows: list[np.ndarray], size: tuple[float, float]) -> Any:
    """What `layout` gave as matplotlib's Figure, which a notebook shows, with a legend.

    Each arrow is an array of points, (n, 2).
    """
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size, dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for points in arrows:
        axes.add_patch(_arrow(points))
    for box in boxes:
        _paint_box(axes, box)
    kinds = [kind for kind in COLOURS if any(box.kind == kind for box in boxes)]
    for i, kind in enumerate(kinds):
        x = 0.2 + LEGEND * (i + 0.5)
        _paint_box(axes, Box(kind, kind, x, height - 0.25, LEGEND - 0.1, 0.24))
    return figure


def _paint_box(axes, box) -> None:
    """A box and its text: centred; of a module, a title and a list below it."""
    from matplotlib.patches import FancyBboxPatch

    inside, edge = COLOURS[box.kind]
    left = box.x - box.width / 2
    top = box.y - box.height / 2
    axes.add_patch(
        FancyBboxPatch(
            (left, top),
            box.width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=inside,
            edgecolor=edge,
            linewidth=1.2,
        )
    )
    title, *items = box.text.split("\n")
    if items and items[0].startswith(" "):  # columns, which must not be centred line by line
        beside = {"ha": "left", "va": "center", **FONT}
        axes.text(left + 0.1, top + 0.08 + LINE / 2, title, color=edge, weight="bold", **beside)
        axes.text(left + 0.1, box.y + LINE / 2, "\n".join(items), **beside)
    else:
        axes.text(box.x, box.y, box.text, ha="center", va="center", **FONT)


def _arrow(points):
    """An arrow along the points of `_arrow_points`: straight within a layer, curved between two."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    n_gaps = len(points) // 4
    in_a_gap = [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    codes = [Path.MOVETO, *(in_a_gap * n_gaps), Path.LINETO]
    return FancyArrowPatch(
        path=Path(points, codes),
        arrowstyle="-|>,head_length=4,head_width=2.2",
        color="#555555",
        linewidth=0.9,
        joinstyle="round",
        shrinkA=0,
        shrinkB=0,
    )

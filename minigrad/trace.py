"""Looking at the tape: printed as a table, drawn as a graph, and searched for the first number that is not finite.

Know before reading: tensor.py. Every Tensor that an operation made keeps in `origin` how it came to be; following the
origins from an output back to the leaves, and sorting by creation number, gives the *tape*: a list of steps in which
each follows its inputs. All functions here start from that list. `backward()` uses it up, so look first.

    print(trace.table(loss))                    every step: operation, inputs, shape, size of value and of gradient
    trace.draw(loss, "loss.png", names=model)   the same as a picture: layers, arrows, numbers where there are few
    trace.first_nonfinite(loss)                 the first step that holds an infinity or NaN, in words
    with trace.watch(): ...                     stop at the operation, forward or backward, that makes the first one

Know after: that the graph of a computation is a plain list of Tensors, and how a graph is drawn so that it can be read:
layers by depth, an order in each layer that crosses few arrows, and bends where an arrow passes a layer.
"""
from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from minigrad import backend, tensor
from minigrad.backend import Array
from minigrad.tensor import Tensor


# ---------------------------------------------------------------------------------------------------------- the tape
def tape(output: Tensor) -> list[Tensor]:
    """All Tensors that `output` was made from, and itself, oldest first. output: any shape. TypeError for no Tensor,
    RuntimeError if backward() used them up."""
    if not isinstance(output, Tensor):
        raise TypeError(f"trace: a Tensor is needed, not a {type(output).__name__}")
    found, waiting = {}, [output]
    while waiting:
        t = waiting.pop()
        if t.number in found:
            continue
        if t.origin == ():
            raise RuntimeError("trace: this graph was used up by an earlier backward(); look at it before, or run the "
                               "forward computation again")
        found[t.number] = t
        waiting += [x for x in t.origin[1] if type(x) is Tensor] if t.origin else []
    return [found[number] for number in sorted(found)]


def _gradients(output, gradient) -> dict[int, np.ndarray]:
    """Creation number -> gradient, of all steps that have one. None are known if several outputs have no weights."""
    if not output.requires_grad or gradient is None and output.size != 1:
        return {}
    gradient = gradient.data if isinstance(gradient, Tensor) else gradient
    start = tensor._initial(output, gradient, "trace")
    return {t.number: g for t, g in tensor._sweep(output, start)}


def _names(names) -> dict[int, str]:
    """Creation number -> name, from {Tensor: name}, {name: Tensor}, pairs of them, or a Module."""
    names = names.named_parameters() if hasattr(names, "named_parameters") else names or {}
    pairs = names.items() if isinstance(names, Mapping) else names
    return {(a if isinstance(a, Tensor) else b).number: b if isinstance(a, Tensor) else a for a, b in pairs}


def _short(x) -> str:
    """An operand or a keyword in a few letters."""
    if isinstance(x, tuple):
        return f"({','.join(map(_short, x))})"
    if isinstance(x, slice):
        return ":".join("" if i is None else str(i) for i in (x.start, x.stop, x.step)[:2 if x.step is None else 3])
    if hasattr(x, "shape") and x.shape != ():
        return f"{'csr' if backend.is_sparse(x) else 'array'}{_shape(x)}"
    if isinstance(x, (float, np.generic, np.ndarray)):
        return f"{float(x):g}"
    return textwrap.shorten(str(x), 24, placeholder=" ...")


def _shape(x) -> str:
    return str(tuple(x.shape)).replace(" ", "")


def _operands(t, step) -> str:
    """Where a step's inputs come from: numbers of earlier steps; constants as they are."""
    return ", ".join(f"#{step[x.number]}" if type(x) is Tensor else _short(x) for x in t.origin[1])


def _operation(t) -> str:
    """What made a step: the name of the primitive with its keywords; `leaf` is differentiated, `data` is not."""
    if not t.origin:
        return "leaf" if t.requires_grad else "data"
    said = ", ".join(f"{k}={_short(v)}" for k, v in t.origin[3].items() if v is not None and v is not False)
    return t.origin[0].__name__ + (f"({said})" if said else "")


# --------------------------------------------------------------------------------------------------------- the table
class Row(NamedTuple):
    """A step of the tape. value, gradient: Euclidean norms; gradient is None where there is none."""
    step: int
    name: str
    operation: str
    inputs: str
    shape: tuple
    dtype: str
    value: float
    gradient: float | None


class Table(list):
    """The rows of a tape, oldest first; as text, a table of them."""

    def __str__(self):
        def number(x):
            return "-" if x is None else f"{x:.4g}"
        cells = [("step", "name", "operation", "from", "shape", "dtype", "|value|", "|gradient|")]
        cells += [(f"#{r.step}", r.name, r.operation, r.inputs, _shape(r), r.dtype, number(r.value),
                   number(r.gradient)) for r in self]
        columns = [c for c in zip(*cells) if any(c[1:]) or c[0] != "name"]
        wide = [max(map(len, c)) for c in columns]
        lines = ["  ".join(x.rjust(w) if c[0] in ("step", "|value|", "|gradient|") else x.ljust(w)
                           for x, w, c in zip(line, wide, columns)).rstrip() for line in zip(*columns)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def table(output: Tensor, gradient: Array | None = None, names=None) -> Table:
    """The tape of `output`, a row a step: operation, inputs, shape, dtype, and the norms of value and gradient.

    output: Tensor of any shape. gradient: array of that shape, as in `backward`; without it the gradients of an output
    with several entries are left open. names: {Tensor: name}, pairs as from `named_parameters()`, or a Module. Nothing
    is used up, and no `.grad` is touched. Returns a list of `Row`s whose str() is the table.
    """
    steps, gradients, names = tape(output), _gradients(output, gradient), _names(names)
    step = {t.number: i for i, t in enumerate(steps)}
    return Table(Row(i, names.get(t.number, ""), _operation(t), _operands(t, step) if t.origin else "", t.shape,
                     t.dtype.name, _norm(t.numpy()), _norm(gradients.get(t.number))) for i, t in enumerate(steps))


def _norm(x) -> float | None:
    return None if x is None else float(np.linalg.norm(np.ravel(backend.to_host(x)).astype(np.float64)))


# -------------------------------------------------------------------------------------- numbers that are not finite
def _is_finite(x) -> bool:
    """Whether all entries of an operand are finite numbers; what are no floating numbers count as such."""
    x = x.data if isinstance(x, Tensor) or backend.is_sparse(x) else x
    kind = getattr(getattr(x, "dtype", None), "kind", "f" if isinstance(x, float) else "i")
    return kind not in "fc" or bool(np.all(np.isfinite(x)))


def _range(x) -> str:
    """An operand in words: dtype, shape, the range of its finite entries, and how many are not."""
    x = x.data if isinstance(x, Tensor) else x
    if not hasattr(x, "dtype"):
        return repr(x)
    values = np.ravel(backend.to_host(x.data if backend.is_sparse(x) else x))
    if x.shape == ():
        return str(values[0])
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    text = f"{x.dtype}{_shape(x)}"
    if finite.size and values.dtype.kind in "fiub":
        text += f" from {float(finite.min()):.6g} to {float(finite.max()):.6g}"
    if finite.size < values.size:
        first = values[~np.isfinite(values)][0]
        text += f", {values.size - finite.size} of {values.size} not finite (the first is {first})"
    return text


def first_nonfinite(output: Tensor, names=None, gradients: bool = False) -> str | None:
    """The first step of the tape of `output` that holds an infinity or NaN, in words; None if there is none.

    Says the step's number (that of `table`), its operation, and shape and range of its inputs. names: as in `table`.
    gradients: if all values are finite, look through the gradients as well (output of one entry).
    """
    steps, names = tape(output), _names(names)
    step = {t.number: i for i, t in enumerate(steps)}

    def title(t):
        return " ".join(filter(None, [f"#{step[t.number]}", names.get(t.number), _operation(t)]))

    def operands(t):
        return "; ".join(f"input {title(x) if type(x) is Tensor else i}: {_range(x)}"
                         for i, x in enumerate(t.origin[1]))

    for t in steps:
        if not _is_finite(t.data):
            return f"step {title(t)} is {_range(t)}" + (f"; {operands(t)}" if t.origin else "")
    known = _gradients(output, None) if gradients else {}
    for t in reversed(steps):
        if t.number in known and not _is_finite(known[t.number]):
            users = [u for u in steps if u.number in known and u.origin and any(x is t for x in u.origin[1])]
            bad = [u for u in users if not all(map(_is_finite, tensor._pull(u, known[u.number], record=False)))]
            through = [f"it comes through step {title(u)}, whose gradient is {_range(known[u.number])}; {operands(u)}"
                       for u in bad] or ["the sum of several gradients overflows"]
            return f"the gradient of step {title(t)} is {_range(known[t.number])}; {'; '.join(through)}"
    return None


@contextmanager
def watch() -> Iterator[None]:
    """Within `with watch():` an operation that makes an infinity or NaN out of finite inputs raises FloatingPointError.

    Forward and backward, in this thread. The message names the operation, and shape and range of its inputs. Python
    can be made to call a function at every return (a profiler's hook); here it looks at what primitives and rules
    return, so that nothing is spent on it elsewhere. Two or three times slower: for finding a fault.
    """
    call, pull = tensor._alias.__code__, tensor._pull.__code__  # all primitives are closures of one piece of code

    def at_return(frame, event, result):
        if event != "return" or frame.f_code not in (call, pull) or result is None:
            return
        local = frame.f_locals
        if frame.f_code is call:
            name, inputs, further, results, what = local["name"], local["arrays"], [], [result], ["the result"]
        else:
            name, inputs = f"the rule of {local['t'].origin[0].__name__}", local["t"].origin[2]
            further, results = [local["g"]], result
            what = [f"the gradient of input {i}" for i in range(len(inputs))]
        bad = [i for i, r in enumerate(results) if not _is_finite(r)]
        if bad and all(map(_is_finite, [*inputs, *further])):
            said = [f"input {i}: {_range(x)}" for i, x in enumerate(inputs)]
            said += [f"gradient of the output: {_range(g)}" for g in further]
            raise FloatingPointError(f"{name}: {what[bad[0]]} is {_range(results[bad[0]])}; all that went in is "
                                     f"finite: {'; '.join(said)}")

    before = sys.getprofile()
    sys.setprofile(at_return)
    try:
        yield
    finally:
        sys.setprofile(before)


# ------------------------------------------------------------------------------------------------------- the picture
SMALL = 4    # entries: up to so many are written out
MOST = 400   # steps: more make no picture
LETTER, LINE = 0.078, 0.155  # inches: width of a letter and height of a line, DejaVu Sans Mono at 9 points
COLOURS = {"leaf": ("#FBE3B5", "#B87700"), "data": ("#EEEEEE", "#777777"), "operation": ("#DCEFFB", "#2F7FB5"),
           "output": ("#CFEFE3", "#00795A"), "not finite": ("#F9D6C4", "#B34700")}  # light and dark of Okabe and Ito's


class Box(NamedTuple):
    """A step in the picture: its text, kind, and, in inches, its centre and size."""
    text: str
    kind: str
    x: float
    y: float
    width: float
    height: float


def draw(output: Tensor, path, names=None, gradient: Array | None = None) -> None:
    """Draw the graph that `output` came from into a picture file (.png, .pdf, .svg): inputs above or left, output last.

    A box is a step of `table`: number, name, operation; then value and gradient where they have at most 4 entries, else
    dtype and shape. names and gradient as in `table`. Boxes are coloured by kind, and those with a number that is not
    finite stand out. ValueError for more than 400 steps.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path
    boxes, arrows, (width, height) = layout(output, names, gradient)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for points in arrows:
        hops = len(points) // 4
        codes = [Path.MOVETO] + [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * hops + [Path.LINETO]
        axes.add_patch(FancyArrowPatch(path=Path(points, codes), arrowstyle="-|>,head_length=4,head_width=2.2",
                                       color="#555555", linewidth=0.9, joinstyle="round", shrinkA=0, shrinkB=0))
    for box in boxes:
        light, dark = COLOURS[box.kind]
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        axes.add_patch(FancyBboxPatch(corner, box.width, box.height, boxstyle="round,pad=0,rounding_size=0.06",
                                      facecolor=light, edgecolor=dark, linewidth=1.2))
        axes.text(box.x, box.y, box.text, ha="center", va="center", family="monospace", size=9, linespacing=1.22,
                  parse_math=False)
    for i, (kind, (light, dark)) in enumerate(COLOURS.items()):
        axes.text(0.2 + 1.15 * i, height - 0.2, kind, size=8, va="center",
                  bbox={"facecolor": light, "edgecolor": dark, "pad": 2})
    figure.savefig(path, dpi=110)


def layout(output: Tensor, names=None, gradient: Array | None = None) -> tuple[list[Box], list, tuple[float, float]]:
    """Where all goes, in inches: a Box a step, points of an arrow for each use of a step by another, (width, height).

    Layers run downwards or to the right, whichever comes nearer to the shape of a page. ValueError for too many steps.
    """
    steps = tape(output)
    if len(steps) > MOST:
        raise ValueError(f"trace.draw: {len(steps)} steps are too many for a picture (the most is {MOST}); "
                         "print(trace.table(output)) shows them")
    index = {t.number: i for i, t in enumerate(steps)}
    texts = list(_texts(steps, index, _names(names), _gradients(output, gradient)))
    sizes = np.array([(LETTER * max(map(len, lines)) + 0.2, LINE * len(lines) + 0.16) for lines, _ in texts])
    edges = sorted({(index[x.number], i) for i, t in enumerate(steps) if t.origin
                    for x in t.origin[1] if type(x) is Tensor})
    layers, paths = _routed(_depths(len(steps), edges), edges)
    layers, near = _ordered(layers, paths)
    plans = [_plan(layers, paths, near, sizes, down) for down in (True, False)]
    centres, arrows, (width, height) = min(plans, key=lambda plan: abs(np.log(plan[2][0] / plan[2][1] / 1.2)))
    margin = np.array([0.2 + max(0.0, 5.8 - width) / 2, 0.2])
    boxes = [Box("\n".join(lines), kind, *(c + margin), *size) for (lines, kind), c, size in zip(texts, centres, sizes)]
    return boxes, [points + margin for points in arrows], (max(width, 5.8) + 0.4, height + 0.7)


def _texts(steps, index, names, gradients):
    """The lines in each box, and what kind it is."""
    for t in steps:
        x, g = t.numpy(), backend.to_host(gradients.get(t.number))
        title = f"{_operation(t)} {_operands(t, index)}" if t.origin else "" if t.number in names else _operation(t)
        lines = textwrap.wrap(" ".join(filter(None, [f"#{index[t.number]}", names.get(t.number), title])), 34)
        if x.size <= SMALL:
            lines += [f"{what:5} {_written(a)}" for what, a in (("value", x), ("grad", g)) if a is not None]
        else:
            lines.append(f"{x.dtype} {_shape(x)}")
        fine = _is_finite(x) and (g is None or _is_finite(g))
        kind = "output" if t is steps[-1] else "operation" if t.origin else "leaf" if t.requires_grad else "data"
        yield lines, kind if fine else "not finite"


def _written(x) -> str:
    return np.array2string(np.asarray(x), formatter={"float_kind": lambda v: f"{v:.3g}"}).replace("\n", "")


def _depths(n, edges) -> list[int]:
    """The layer of each step: an operation just below its deepest input, a leaf just above its first user."""
    depth = [0] * n
    for a, b in edges:  # sorted by a, and every input has a smaller number than its user: depth[a] is final
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
    near = {v: (sorted(a for a, b in hops if b == v), sorted(b for a, b in hops if a == v))
            for layer in layers for v in layer}
    layers, best, fewest = [list(layer) for layer in layers], None, None
    for sweep in range(24):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            place = {v: i - len(other) / 2 for other in layers for i, v in enumerate(other)}
            layer.sort(key=lambda v: np.mean([place[u] for u in near[v][sweep % 2]] or place[v]))
        place = {v: i for layer in layers for i, v in enumerate(layer)}
        by_layer = [[(place[a], place[b]) for a in layer for b in near[a][1]] for layer in layers]
        crossings = sum((a - c) * (b - d) < 0 for pairs in by_layer for a, b in pairs for c, d in pairs)
        if best is None or crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best, near


def _across(layers, paths, near, widths, gap) -> dict[int, float]:
    """The coordinate of each node within its layer: as near as possible to the mean of its neighbours, without overlap.

    With the order given, that is a least-squares problem whose answer is an isotonic regression. In the second half of
    the sweeps all bends of a trunk are drawn, strongly, to one line: long arrows become straight. Leaves count little
    and give way, so that a chain of operations becomes straight too.
    """
    from scipy.optimize import isotonic_regression  # not above: it would double the time that importing minigrad takes
    trunk_of = {v: path[0] for path in paths for v in path[1:-1]}
    trunks = {a: [v for v in trunk_of if trunk_of[v] == a] for a in set(trunk_of.values())}
    trunks = {a: trunk + [u for v in trunk for u in near[v][0] + near[v][1]] for a, trunk in trunks.items()}
    made = {v: [u for u in near[v][0] + near[v][1] if near[u][0]] for v in near}
    half = {v: widths[v] / 2 if v < len(widths) else 0.0 for layer in layers for v in layer}
    apart = [np.cumsum([0.0] + [half[u] + half[v] + gap for u, v in zip(layer, layer[1:])]) for layer in layers]
    x = {v: place - places[-1] / 2 for layer, places in zip(layers, apart) for v, place in zip(layer, places)}
    for sweep in range(40):
        line = {a: sum(x[v] for v in trunk) / len(trunk) for a, trunk in trunks.items()} if sweep > 20 else {}
        for k in range(len(layers)) if sweep % 2 == 0 else reversed(range(len(layers))):
            towards = [made[v] or near[v][0] + near[v][1] or [v] for v in layers[k]]
            wanted = [line[trunk_of[v]] if trunk_of.get(v) in line else sum(x[u] for u in us) / len(us)
                      for v, us in zip(layers[k], towards)] - apart[k]
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
    depths = [max([deep[v] for v in layer if v < len(deep)]) + 0.2 for layer in layers]
    start = np.cumsum([0.0] + [d + 0.3 for d in depths])
    layer_of = {v: k for k, layer in enumerate(layers) for v in layer}
    middle = [start[layer_of[i]] + depths[layer_of[i]] / 2 for i in range(len(deep))]
    arrows, before = [], {b: sorted(x[p[-2]] for p in paths if p[-1] == b) for b in {p[-1] for p in paths}}
    for path in paths:
        a, b, k = path[0], path[-1], layer_of[path[0]]
        rank, n = before[b].index(x[path[-2]]), len(before[b])
        port = x[b] + (rank - (n - 1) / 2) * min(0.25, wide[b] / (n + 1))  # arrows into one box side by side
        points = [(x[a], middle[a] + deep[a] / 2)]
        for p, q in zip([x[v] for v in path[:-1]], [*[x[v] for v in path[1:-1]], port]):
            end, beginning = start[k] + depths[k], start[k + 1]
            points += [(p, end), (p, (end + beginning) / 2), (q, (end + beginning) / 2), (q, beginning)]
            k += 1
        arrows.append(np.array([*points, (port, middle[b] - deep[b] / 2)]))
    turn = slice(None) if down else slice(None, None, -1)
    centres = np.array([(x[i], y) for i, y in enumerate(middle)])[:, turn]
    total = (max(x[v] + (wide[v] / 2 if v < len(wide) else 0.0) for v in x), start[-1] - 0.3)
    return centres, [points[:, turn] for points in arrows], total[turn]

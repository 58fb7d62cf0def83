"""Looking at the tape: printed as a table, drawn as a graph, and searched for the first number that is not finite.

Know before reading: tensor.py. Every Tensor that an operation made keeps in `origin` how it came to be; following the
origins from an output back to the leaves, and sorting by creation number, gives the *tape*: a list of steps in which each
follows its inputs. All functions here start from that list, and it is there until `backward()` uses it up, so look first.

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
from collections.abc import Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from minigrad import backend, tensor
from minigrad.tensor import Tensor


# ---------------------------------------------------------------------------------------------------------- the tape
def tape(output: Tensor) -> list[Tensor]:
    """All Tensors that `output` was made from, and itself, oldest first. RuntimeError if backward() used them up."""
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
    return {t.number: backend.to_host(g) for t, g in tensor._sweep(output, start)}


def _names(names) -> dict[int, str]:
    """Creation number -> name, from {Tensor: name}, {name: Tensor}, pairs of them, or a Module."""
    names = names.named_parameters() if hasattr(names, "named_parameters") else names or {}
    pairs = names.items() if isinstance(names, Mapping) else names
    return {(a if isinstance(a, Tensor) else b).number: b if isinstance(a, Tensor) else a for a, b in pairs}


def _short(x) -> str:
    """An operand or a keyword in a few letters."""
    if isinstance(x, tuple) and any(hasattr(i, "shape") for i in x):
        return f"({', '.join(map(_short, x))})"
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
    call, _, _, keywords, _ = t.origin
    return call.__name__ + (f"({', '.join(f'{k}={_short(v)}' for k, v in keywords.items())})" if keywords else "")


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
        cells += [(f"#{r.step}", r.name, r.operation, r.inputs, str(r.shape), r.dtype, number(r.value), number(r.gradient))
                  for r in self]
        columns = [c for c in zip(*cells) if any(c[1:]) or c[0] != "name"]
        wide = [max(map(len, c)) for c in columns]
        lines = ["  ".join(x.rjust(w) if c[0] in ("step", "|value|", "|gradient|") else x.ljust(w)
                           for x, w, c in zip(line, wide, columns)).rstrip() for line in zip(*columns)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def table(output: Tensor, gradient=None, names=None) -> Table:
    """The tape of `output`, a row a step: operation, inputs, shape, dtype, and the norms of value and gradient.

    output: Tensor of any shape. gradient: array of that shape, as in `backward`; without it the gradients of an output with
    several entries are left open. names: {Tensor: name}, pairs as from `named_parameters()`, or a Module. Nothing is used
    up, and no `.grad` is touched. Returns a list of `Row`s whose str() is the table.
    """
    steps, gradients, names = tape(output), _gradients(output, gradient), _names(names)
    step = {t.number: i for i, t in enumerate(steps)}
    return Table(Row(i, names.get(t.number, ""), _operation(t), _operands(t, step) if t.origin else "", t.shape, t.dtype.name,
                     _norm(t.numpy()), _norm(gradients[t.number]) if t.number in gradients else None)
                 for i, t in enumerate(steps))


def _norm(x) -> float:
    return float(np.linalg.norm(np.ravel(x).astype(np.float64)))


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
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    text = f"{x.dtype}{_shape(x)}"
    if finite.size and values.dtype.kind in "fiub":
        text += f" from {float(finite.min()):.6g} to {float(finite.max()):.6g}"
    if finite.size < values.size:
        text += f", {values.size - finite.size} of {values.size} not finite (the first is {values[~np.isfinite(values)][0]})"
    return text


def first_nonfinite(output: Tensor, names=None, gradients=False) -> str | None:
    """The first step of the tape of `output` that holds an infinity or NaN, in words; None if there is none.

    Says the step's number (that of `table`), its operation, and shape and range of its inputs. names: as in `table`.
    gradients: if all values are finite, look through the gradients as well (output of one entry).
    """
    steps, names = tape(output), _names(names)
    step = {t.number: i for i, t in enumerate(steps)}

    def title(t):
        return " ".join(filter(None, [f"#{step[t.number]}", names.get(t.number), _operation(t)]))

    def operands(t):
        return "; ".join(f"input {title(x) if type(x) is Tensor else i}: {_range(x)}" for i, x in enumerate(t.origin[1]))

    for t in steps:
        if not _is_finite(t.data):
            return f"step {title(t)} is {_range(t)}" + (f"; {operands(t)}" if t.origin else "")
    known = _gradients(output, None) if gradients else {}
    for t in sorted(steps, key=lambda t: -t.number):
        if t.number in known and not _is_finite(known[t.number]):
            users = [u for u in steps if u.origin and any(x is t for x in u.origin[1]) and u.number in known]
            bad = [u for u in users if not all(g is None or _is_finite(g) for g in tensor._pull(u, known[u.number], False))]
            through = "; ".join(f"it comes through step {title(u)} with gradient {_range(known[u.number])}; {operands(u)}"
                                for u in bad) or "the sum of several gradients overflows"
            return f"gradient of step {title(t)} is {_range(known[t.number])}; {through}"
    return None


@contextmanager
def watch():
    """Within `with watch():` the operation that makes an infinity or NaN out of finite inputs raises FloatingPointError.

    Forward and backward, in this thread. The message names the operation, and shape and range of its inputs. Python calls
    a profile function at every return; here it looks at what primitives and rules return. Slow: for finding a fault.
    """
    call, pull = tensor._alias.__code__, tensor._pull.__code__  # all primitives are closures of one piece of code

    def at_return(frame, event, result):
        if event != "return" or frame.f_code not in (call, pull) or result is None:
            return
        local = frame.f_locals
        if frame.f_code is pull:
            t, g = local["t"], local["g"]
            inputs, results, name = t.origin[2], result, f"the rule of {t.origin[0].__name__}"
            made, sources = "gradient of input", [*inputs, g]
        else:
            inputs, results, name, made, sources = local["arrays"], [result], local["name"], "result", local["arrays"]
        bad = [i for i, r in enumerate(results) if isinstance(r, (Tensor, np.ndarray)) and not _is_finite(r)]
        if bad and all(map(_is_finite, sources)):
            which = f"{made} {bad[0]}" if frame.f_code is pull else made
            said = "; ".join(f"input {i}: {_range(x)}" for i, x in enumerate(inputs))
            said += f"; gradient of the output: {_range(local['g'])}" if frame.f_code is pull else ""
            raise FloatingPointError(f"{name}: {which} is {_range(results[bad[0]])}, from finite {said}")

    before = sys.getprofile()
    sys.setprofile(at_return)
    try:
        yield
    finally:
        sys.setprofile(before)


# ------------------------------------------------------------------------------------------------------- the picture
SMALL = 4        # entries: up to so many are written out
LETTER, LINE = 0.0753, 0.155  # inches: width of a letter and height of a line, DejaVu Sans Mono at 9 points
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


def draw(output: Tensor, path, names=None, gradient=None) -> None:
    """Draw the graph that `output` came from into a picture file (.png, .pdf, .svg): inputs above or left, output last.

    A box is a step of `table`: number, name, operation; then value and gradient where they have at most 4 entries, else
    dtype and shape. names and gradient as in `table`. Boxes are coloured by kind, and those with a number that is not
    finite stand out. Needs matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path
    boxes, arrows, (width, height) = layout(output, names, gradient)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    for points in arrows:
        codes = [Path.MOVETO] + [Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4] * (len(points) // 4) + [Path.LINETO]
        axes.add_patch(FancyArrowPatch(path=Path(points, codes), arrowstyle="-|>,head_length=4,head_width=2.2", color="#555555",
                                       linewidth=0.9, joinstyle="round", shrinkA=0, shrinkB=0))
    for box in boxes:
        light, dark = COLOURS[box.kind]
        axes.add_patch(FancyBboxPatch((box.x - box.width / 2, box.y - box.height / 2), box.width, box.height, facecolor=light,
                                      edgecolor=dark, linewidth=1.2, boxstyle="round,pad=0,rounding_size=0.06"))
        axes.text(box.x, box.y, box.text, ha="center", va="center", family="monospace", size=9, linespacing=1.22)
    for i, (kind, (light, dark)) in enumerate(COLOURS.items()):
        axes.text(0.2 + 1.15 * i, height - 0.2, kind, size=8, va="center", bbox=dict(facecolor=light, edgecolor=dark, pad=2))
    figure.savefig(path, dpi=110)


def layout(output: Tensor, names=None, gradient=None):
    """Where all goes: a Box a step, the points of an arrow for each use of one step by another, and (width, height).

    Layers run downwards or to the right, whichever comes nearer to the shape of a page. An arrow is a list of points: start,
    then for each gap between layers (layer's end, two control points, next layer's start), then the tip.
    """
    steps = tape(output)
    index = {t.number: i for i, t in enumerate(steps)}
    texts = _texts(steps, output, _names(names), _gradients(output, gradient), index)
    edges = sorted({(index[x.number], i) for i, t in enumerate(steps) if t.origin
                    for x in t.origin[1] if type(x) is Tensor})
    layers, paths = _routed(_depths(len(steps), edges), edges)
    layers, near = _ordered(layers, paths)
    sizes = [(LETTER * max(map(len, text.split("\n"))) + 0.2, LINE * len(text.split("\n")) + 0.16) for text, _ in texts]
    best = None
    for down in (True, False):
        across, along, total = _placed(layers, near, [s if down else s[::-1] for s in sizes], 0.3 if down else 0.2)
        width, height = total if down else total[::-1]
        width, height = max(width + 0.4, 6.0), height + 0.8
        if best is None or abs(np.log(width / height / 1.3)) < abs(np.log(best[-1][0] / best[-1][1] / 1.3)):
            arrows = _arrows(paths, across, along, layers)
            shift = (0.2 + (width - 0.4 - (total if down else total[::-1])[0]) / 2, 0.2)
            turn = [1, -1][:: 1 if down else -1]
            best = ([Box(*text, *(np.array([across[i], along[i][1]])[::1 if down else -1] + shift), *size)
                     for i, (text, size) in enumerate(zip(texts, sizes))],
                    [np.array(points)[:, ::turn[0]] + shift for points in arrows], (width, height))
    return best

"""Looking at the tape: printed as a table, drawn as a graph, and searched for the first number that is not finite.

Know before reading: tensor.py. Every Tensor that an operation made keeps in `origin` how it came to be; following the
origins from an output back to the leaves, and sorting by creation number, gives the *tape*: a list of steps in which
each follows its inputs. All functions here start from that list. `backward()` uses it up, so look first.

    print(trace.table(loss))                    every step: operation, inputs, shape, size of value and of gradient
    trace.draw(loss, "loss.png", names=model)   the same as a picture; in a large graph, a box a module
    trace.first_nonfinite(loss)                 the first step that holds an infinity or NaN, in words
    with trace.watch(): ...                     stop at the operation, forward or backward, that makes the first one

Know after: that the graph of a computation is a plain list of Tensors, and how to see which module each step is of,
without a module having to say so. How boxes and arrows find their places is in picture.py.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os.path import commonprefix
from typing import NamedTuple

import numpy as np

from minigrad import backend, picture
from minigrad.backend import Array
from minigrad.backward import USED_UP, sweep
from minigrad.fused import Fused
from minigrad.table import Primitive
from minigrad.tensor import Tensor, initial_gradient


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
        if t.origin is USED_UP:
            raise RuntimeError(
                "trace: this graph was used up by an earlier backward(); look at it before, or run the "
                "forward computation again"
            )
        found[t.number] = t
        waiting += _inputs(t)
    return [found[number] for number in sorted(found)]


def _inputs(t) -> list[Tensor]:
    return [x for x in t.origin.inputs if type(x) is Tensor] if t.origin else []


def _gradients(output, gradient) -> dict[int, np.ndarray]:
    """Creation number -> gradient, of all steps that have one. None are known if several outputs have no weights."""
    if not output.requires_grad or gradient is None and output.size != 1:
        return {}
    gradient = gradient.data if isinstance(gradient, Tensor) else gradient
    start = initial_gradient(output, gradient, "trace")
    return {t.number: g for t, g in sweep(output, start, range(output.number + 1))}


def _names(names, steps) -> dict[int, str]:
    """Creation number -> name, from {Tensor: name}, {name: Tensor}, pairs of them, or a Module.

    An operation on parameters goes by the layer that they are of: `decoder.rho` for one on `decoder.rho.weight`.
    """
    names = names.named_parameters() if hasattr(names, "named_parameters") else names or {}
    pairs = names.items() if isinstance(names, Mapping) else names
    named = {
        (a if isinstance(a, Tensor) else b).number: b if isinstance(a, Tensor) else a
        for a, b in pairs
    }
    for t in steps:
        paths = [
            named[x.number].split(".")[:-1]
            for x in _inputs(t)
            if not x.origin and x.number in named
        ]
        if layer := ".".join(commonprefix(paths)):
            named.setdefault(t.number, layer)
    return named


def _short(x) -> str:
    """An operand or a keyword in a few letters."""
    if isinstance(x, tuple):
        return f"({','.join(map(_short, x))})"
    if isinstance(x, slice):
        return ":".join(
            "" if i is None else str(i)
            for i in (x.start, x.stop, x.step)[: 2 if x.step is None else 3]
        )
    if hasattr(x, "shape") and x.shape != ():
        return f"{'csr' if backend.is_sparse(x) else 'array'}{_shape(x)}"
    if isinstance(x, (float, np.generic, np.ndarray)):
        return f"{float(x):g}"
    return textwrap.shorten(str(x), 24, placeholder=" ...")


def _shape(x) -> str:
    return str(tuple(x.shape)).replace(" ", "")


def _labels(steps) -> dict[int, str]:
    """Creation number -> "#3", the number of the step on the tape."""
    return {t.number: f"#{i}" for i, t in enumerate(steps)}


def _operands(t, labels) -> str:
    """Where a step's inputs come from: labels of earlier steps; constants as they are."""
    return ", ".join(labels[x.number] if type(x) is Tensor else _short(x) for x in t.origin.inputs)


def _operation(t) -> str:
    """What made a step: the name of the primitive with its keywords; `leaf` is differentiated, `data` is not.

    Left out: keywords that are off, and arrays (what a kernel was told of its own input, say its mean).
    """
    if not t.origin:
        return "leaf" if t.requires_grad else "data"
    said = ", ".join(
        f"{k}={_short(v)}"
        for k, v in t.origin.keywords.items()
        if v is not None and v is not False and not np.ndim(getattr(v, "data", None))
    )
    return t.origin.primitive.__name__ + (f"({said})" if said else "")


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
        cells += [
            (
                f"#{r.step}",
                r.name,
                r.operation,
                r.inputs,
                _shape(r),
                r.dtype,
                number(r.value),
                number(r.gradient),
            )
            for r in self
        ]
        columns = [c for c in zip(*cells) if any(c[1:]) or c[0] != "name"]
        wide = [max(map(len, c)) for c in columns]
        lines = [
            "  ".join(
                x.rjust(w) if c[0] in ("step", "|value|", "|gradient|") else x.ljust(w)
                for x, w, c in zip(line, wide, columns)
            ).rstrip()
            for line in zip(*columns)
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    __repr__ = __str__


def table(output: Tensor, gradient: Array | None = None, names=None) -> Table:
    """The tape of `output`, a row a step: operation, inputs, shape, dtype, and the norms of value and gradient.

    output: Tensor of any shape. gradient: array of that shape, as in `backward`; without it the gradients of an output
    with several entries are left open. names: {Tensor: name}, pairs as from `named_parameters()`, or a Module. Nothing
    is used up, and no `.grad` is touched. Returns a list of `Row`s whose str() is the table.
    """
    steps, gradients = tape(output), _gradients(output, gradient)
    labels, names = _labels(steps), _names(names, steps)
    return Table(
        Row(
            i,
            names.get(t.number, ""),
            _operation(t),
            _operands(t, labels) if t.origin else "",
            t.shape,
            t.dtype.name,
            _norm(t.numpy()),
            _norm(gradients.get(t.number)),
        )
        for i, t in enumerate(steps)
    )


def _norm(x) -> float | None:
    return (
        None
        if x is None
        else float(np.linalg.norm(np.ravel(backend.to_host(x)).astype(np.float64)))
    )


# -------------------------------------------------------------------------------------- numbers that are not finite
def _is_finite(x) -> bool:
    """Whether all entries of an operand are finite numbers; what are no floating numbers count as such."""
    x = x.data if isinstance(x, Tensor) or backend.is_sparse(x) else x
    kind = getattr(getattr(x, "dtype", None), "kind", "f" if isinstance(x, float) else "i")
    return kind not in "fc" or bool(np.all(np.isfinite(x)))


def _computed(gradients) -> list:
    """What a rule returned, with those that it would compute later, where they belong, computed."""
    return [g(None) if callable(g) else g for g in gradients]


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
    steps = tape(output)
    labels, names = _labels(steps), _names(names, steps)

    def title(t):
        return " ".join(filter(None, [labels[t.number], names.get(t.number), _operation(t)]))

    def operands(t):
        return "; ".join(
            f"input {title(x) if type(x) is Tensor else i}: {_range(x)}"
            for i, x in enumerate(t.origin.inputs)
        )

    for t in steps:
        if not _is_finite(t.data):
            return f"step {title(t)} is {_range(t)}" + (f"; {operands(t)}" if t.origin else "")
    known = _gradients(output, None) if gradients else {}
    for t in reversed(steps):
        if t.number in known and not _is_finite(known[t.number]):
            users = [
                u
                for u in steps
                if u.number in known and u.origin and any(x is t for x in u.origin.inputs)
            ]
            bad = [
                u
                for u in users
                if not all(
                    map(
                        _is_finite,
                        _computed(u.origin.primitive.gradients(u, known[u.number], record=False)),
                    )
                )
            ]
            through = [
                f"it comes through step {title(u)}, whose gradient is {_range(known[u.number])}; {operands(u)}"
                for u in bad
            ] or ["the sum of several gradients overflows"]
            return f"the gradient of step {title(t)} is {_range(known[t.number])}; {'; '.join(through)}"
    return None


@contextmanager
def watch() -> Iterator[None]:
    """Within `with watch():` an operation that makes an infinity or NaN out of finite inputs raises FloatingPointError.

    Forward and backward, in this thread. The message names the operation, and shape and range of its inputs. Python
    can be made to call a function at every return (a profiler's hook); here it looks at what primitives and rules
    return, so that nothing is spent on it elsewhere. Two or three times slower: for finding a fault.
    """
    calls = {entry.__call__.__code__ for entry in (Primitive, Fused)}
    rules = {entry.gradients.__code__ for entry in (Primitive, Fused)}

    def at_return(frame, event, result):
        if event != "return" or frame.f_code not in calls | rules or result is None:
            return
        local = frame.f_locals
        if frame.f_code in calls:
            name, inputs, further, results, what = (
                local["self"].__name__,
                local["arrays"],
                [],
                [result],
                ["the result"],
            )
        else:
            name, inputs = f"the rule of {local['self'].__name__}", local["origin"].arrays
            further, results = [local["g"]], _computed(result)
            what = [f"the gradient of input {i}" for i in range(len(inputs))]
        bad = [i for i, r in enumerate(results) if not _is_finite(r)]
        if bad and all(map(_is_finite, [*inputs, *further])):
            said = [f"input {i}: {_range(x)}" for i, x in enumerate(inputs)]
            said += [f"gradient of the output: {_range(g)}" for g in further]
            raise FloatingPointError(
                f"{name}: {what[bad[0]]} is {_range(results[bad[0]])}; all that went in is "
                f"finite: {'; '.join(said)}"
            )

    before = sys.getprofile()
    sys.setprofile(at_return)
    try:
        yield
    finally:
        sys.setprofile(before)


# ------------------------------------------------------------------------------------------------------- the picture
SMALL = 4  # entries: up to so many are written out
FEW = (
    20  # steps: of up to so many, each has a box of its own, whether or not it belongs to a module
)
MOST = 400  # steps: more make no picture


def draw(output: Tensor, path, names=None, gradient: Array | None = None) -> None:
    """Draw the graph that `output` came from into a picture file (.png, .pdf, .svg): inputs above or left, output last.

    A box is a step of `table`: number, name, operation; then value and gradient where they have at most 4 entries, else
    dtype and shape. With names=model, a graph of more than 20 steps has one box for each module directly inside the
    model (`z_encoder`, `decoder`, ...), which lists its steps: the path of the layer in the module, the operation, dtype
    and shape. Boxes are coloured by kind, and those with a number that is not finite stand out. names and gradient as
    in `table`; names=dict(model.named_parameters()) gives each step its own box. ValueError for more than 400 steps.
    """
    picture.paint(path, *layout(output, names, gradient))


def layout(
    output: Tensor, names=None, gradient: Array | None = None
) -> tuple[list, list, tuple[float, float]]:
    """Where all goes in the picture of a graph, in inches: (boxes, arrows, (width, height)), see picture.layout.

    ValueError for more than 400 steps.
    """
    steps = tape(output)
    if len(steps) > MOST:
        raise ValueError(
            f"trace.draw: {len(steps)} steps are too many for a picture (the most is {MOST}); "
            "print(trace.table(output)) shows them"
        )
    index = {t.number: i for i, t in enumerate(steps)}
    edges = sorted({(index[x.number], i) for i, t in enumerate(steps) for x in _inputs(t)})
    groups, members = [""] * len(steps), [[i] for i in range(len(steps))]
    if hasattr(names, "children") and len(steps) > FEW:
        groups = _groups(steps, edges, names)
        members = _gathered(groups, edges)
    box = {i: b for b, inside in enumerate(members) for i in inside}
    texts = _Texts(steps, _names(names, steps), _gradients(output, gradient))
    return picture.layout(
        [
            texts.module(groups[inside[0]], inside) if groups[inside[0]] else texts.step(*inside)
            for inside in members
        ],
        sorted({(box[a], box[b]) for a, b in edges if box[a] != box[b]}),
    )


# ---------------------------------------------------------------------------------------- which module a step is of
def _groups(steps, edges, model) -> list[str]:
    """The name of the module directly inside `model` that each step belongs to; "" for those of the model itself.

    A step belongs to the module whose parameters it uses. One that uses none (a ReLU, a dropout) lies within a module if
    that module's steps, and no others, are the next before it and the next after it that do use parameters.
    """
    owner = {p.number: "" for p in model.parameters()}
    owner.update({p.number: name for name, child in model.children() for p in child.parameters()})
    own = []
    for t in steps:
        used = {owner[x.number] for x in [t, *_inputs(t)] if x.number in owner}
        own.append(used.pop() if len(used) == 1 else "" if used else None)
    before, after = [set() for _ in steps], [set() for _ in steps]
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        before[b] |= before[a] if own[a] is None else {own[a]}
    for a, b in sorted(edges, reverse=True):
        after[a] |= after[b] if own[b] is None else {own[b]}
    return [
        (min(p) if len(p) == 1 and p == n else "") if name is None else name
        for name, p, n in zip(own, before, after)
    ]


def _gathered(groups, edges) -> list[list[int]]:
    """The steps in each box, what is made after what it is made from: one box a group, and one a step of group "".

    A step that is made, by way of other boxes, from a result of its group's box would close a circle of arrows there: it
    opens a second box of its group.
    """
    inputs = [[] for _ in groups]
    for a, b in edges:
        inputs[b].append(a)
    members, needs, latest, box = (
        [],
        [],
        {},
        [],
    )  # needs: all boxes that a box is made from, by whatever way
    for i, group in enumerate(groups):
        direct, b = {box[a] for a in inputs[i]}, latest.get(group)
        others = direct - {b}
        beyond = others.union(*(needs[o] for o in others))
        if not group or b is None or b in beyond:
            b = latest[group] = len(members)
            members.append([])
            needs.append(direct.union(*(needs[o] for o in direct)))
        else:
            for c, needed in enumerate(needs):
                if c == b or b in needed:
                    needed |= beyond
        members[b].append(i)
        box.append(b)
    return [members[b] for b in sorted(range(len(members)), key=lambda b: len(needs[b]))]


class _Texts:
    """What is written in the boxes: (lines, kind) of a step or of a module."""

    def __init__(self, steps, names, gradients):
        self.steps, self.names, self.gradients = steps, names, gradients
        self.label = _labels(steps)

    def step(self, i):
        """A box of its own for step i."""
        t = self.steps[i]
        x, g, name = (
            t.numpy(),
            backend.to_host(self.gradients.get(t.number)),
            self.names.get(t.number),
        )
        title = (
            f"{_operation(t)} {_operands(t, self.label)}"
            if t.origin
            else ""
            if name
            else _operation(t)
        )
        lines = textwrap.wrap(" ".join(filter(None, [f"#{i}", name, title])), 38)
        if x.size <= SMALL:
            lines += [
                f"{what:5} {_written(a)}"
                for what, a in (("value", x), ("grad", g))
                if a is not None
            ]
        else:
            lines.append(f"{x.dtype} {_shape(x)}")
        kind = (
            "output"
            if i == len(self.steps) - 1
            else "operation"
            if t.origin
            else "leaf"
            if t.requires_grad
            else "data"
        )
        return lines, kind if self.is_finite(t) else "not finite"

    def module(self, group, inside):
        """One box for the steps `inside` a module: its name, and a line for each but the parameters used there."""
        used = {x.number for i in inside for x in _inputs(self.steps[i])}
        listed = [
            self.steps[i]
            for i in inside
            if self.steps[i].origin or self.steps[i].number not in used
        ]
        rows = [self.row(t, group) for t in listed]
        wide = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            " " + "  ".join(cell.ljust(w) for cell, w in zip(row, wide) if w).rstrip()
            for row in rows
        ]
        fine = all(self.is_finite(self.steps[i]) for i in inside)
        return [group, *lines], "module" if fine else "not finite"

    def row(self, t, group):
        """The cells of a step in its module's box. Parameters go by their names within the layer that they are of."""
        path = self.names.get(t.number, "")
        layer = path if t.origin else path.rpartition(".")[0]
        parameters = {x.number: x for x in _inputs(t) if not x.origin and x.number in self.names}
        label = {**self.label, **{n: self.names[n].removeprefix(f"{layer}.") for n in parameters}}
        title = f"{_operation(t)} {_operands(t, label)}" if t.origin else path.rpartition(".")[2]
        flaws = ", ".join(
            label[x.number] for x in [t, *parameters.values()] if not self.is_finite(x)
        )
        within = layer.removeprefix(group).removeprefix(".")
        return (
            self.label[t.number],
            within,
            title,
            f"{t.dtype} {_shape(t)}",
            flaws and f"not finite: {flaws}",
        )

    def is_finite(self, t) -> bool:
        """Whether value and gradient of a step are."""
        return _is_finite(t.data) and _is_finite(self.gradients.get(t.number))


def _written(x) -> str:
    return np.array2string(np.asarray(x), formatter={"float_kind": lambda v: f"{v:.3g}"}).replace(
        "\n", ""
    )

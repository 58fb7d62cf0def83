"""What stands in each box of the picture of a computation: a step, or all steps of a module.

This file is engineering. tape.py gives the steps, picture.py places boxes and draws arrows; here is
what lies between. In a small graph each step has a box. In a large one, each module directly inside
the model has a box, which lists its steps: for that, it has to be found out of which module a step
is, and a box must not be needed to make what it is itself made from.

Know before reading: tape.py, and what `Module.children` is (nn.py).

Know after: how steps are told apart by module, although the tape knows nothing of modules.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np

from minigrad import backend, picture
from minigrad.tape import Step, shape_of

SMALL = 4  # entries: values of up to so many are written out
FEW = 20  # steps: of up to so many, each has a box of its own, whether or not there are modules
LINE_LENGTH = 38  # letters


def arrange(
    steps: list[Step], model: Any = None
) -> tuple[list[picture.Box], list[np.ndarray], tuple[float, float]]:
    """(boxes, arrows, (width, height)) of the picture, in inches: see picture.layout.

    model: a Module whose children get a box each, in a graph of more than FEW steps; or None. An
    arrow is an array of points, (n, 2).
    """
    edges = sorted({(x.number, step.number) for step in steps for x in step.steps_before})
    modules = [""] * len(steps)
    boxes = [[i] for i in range(len(steps))]
    if model is not None and len(steps) > FEW:
        modules = modules_of(steps, edges, model)
        boxes = gathered(modules, edges)
    box_of = {i: b for b, inside in enumerate(boxes) for i in inside}
    texts = []
    for inside in boxes:
        module = modules[inside[0]]
        if module:
            texts.append(_module_text(module, [steps[i] for i in inside]))
        else:
            step = steps[inside[0]]
            texts.append(_step_text(step, is_output=step is steps[-1]))
    arrows = {(box_of[a], box_of[b]) for a, b in edges if box_of[a] != box_of[b]}
    return picture.layout(texts, sorted(arrows))


# ------------------------------------------------------------------------ which module a step is of
def modules_of(steps: list[Step], edges: list[tuple[int, int]], model: Any) -> list[str]:
    """The name of the module directly inside `model` that each step belongs to.

    "" for steps of the model itself. A step belongs to the module whose parameters it uses. A step
    that uses none, such as a ReLU, lies within a module if the next steps that do use parameters,
    before it and after it, are all of that module.
    """
    owner = {p.number: "" for p in model.parameters()}
    for name, child in model.children():
        for p in child.parameters():
            owner[p.number] = name
    by_parameters = [_owner_of(step, owner) for step in steps]

    # The owners of the nearest steps with parameters: before each step, and after it.
    before: list[set[str]] = [set() for _ in steps]
    after: list[set[str]] = [set() for _ in steps]
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        before[b] |= _seen_from(by_parameters[a], before[a])
    for a, b in sorted(edges, reverse=True):
        after[a] |= _seen_from(by_parameters[b], after[b])

    found = []
    for name, earlier, later in zip(by_parameters, before, after):
        if name is not None:
            found.append(name)
        elif len(earlier) == 1 and earlier == later:
            found.append(min(earlier))
        else:
            found.append("")
    return found


def _owner_of(step, owner) -> str | None:
    """The owner of the parameters that a step is or uses: "" for several owners, None for none."""
    used = {owner[x.tensor.number] for x in [step, *step.steps_before] if x.tensor.number in owner}
    if not used:
        return None
    return used.pop() if len(used) == 1 else ""


def _seen_from(name, beyond) -> set:
    """The owners that are seen in one direction: that of the next step, or those beyond it."""
    return beyond if name is None else {name}


def gathered(modules: list[str], edges: list[tuple[int, int]]) -> list[list[int]]:
    """The steps in each box: one box for each module, and one for each step of module "".

    A box comes after all that it is made from. A step that is made, by way of other boxes, from a
    result of its module's box would close a circle of arrows there: it opens a second box.
    """
    inputs: list[list[int]] = [[] for _ in modules]
    for a, b in edges:
        inputs[b].append(a)
    boxes: list[list[int]] = []
    box_of: list[int] = []  # of each step
    latest: dict[str, int] = {}  # module -> its latest box
    upstream: list[set[int]] = []  # of each box: all boxes that it is made from, in whatever way

    for i, module in enumerate(modules):
        made_from = {box_of[a] for a in inputs[i]}
        own = latest.get(module) if module else None
        others = made_from - {own}
        beyond = others.union(*(upstream[b] for b in others))
        if own is None or own in beyond:  # no box yet, or one that would close a circle
            own = len(boxes)
            latest[module] = own
            boxes.append([])
            upstream.append(made_from.union(*(upstream[b] for b in made_from)))
        else:  # what this step brings to its box, it brings to all that is made from the box
            for b in range(len(boxes)):
                if b == own or own in upstream[b]:
                    upstream[b] |= beyond
        boxes[own].append(i)
        box_of.append(own)

    # A box has all of the boxes upstream that those have which it is made from, and these as well.
    in_order = sorted(range(len(boxes)), key=lambda b: len(upstream[b]))
    return [boxes[b] for b in in_order]


# -------------------------------------------------------------------------------- what is written
def _step_text(step, is_output) -> tuple[list[str], str]:
    """(lines, kind) of the box of one step; the kinds are those of picture.COLOURS."""
    words = [step.label, step.name]
    if not step.is_leaf:
        words += [step.operation, step.operands()]
    elif not step.name:
        words += [step.operation]
    lines = textwrap.wrap(" ".join(word for word in words if word), LINE_LENGTH)

    value = step.tensor.numpy()
    if value.size <= SMALL:
        lines.append(f"value {_written(value)}")
        if step.gradient is not None:
            lines.append(f"grad  {_written(backend.to_host(step.gradient))}")
    else:
        lines.append(f"{value.dtype} {shape_of(value)}")
    return lines, _kind(step, is_output)


def _kind(step, is_output) -> str:
    if not step.is_finite:
        return "not finite"
    if is_output:
        return "output"
    return step.operation if step.is_leaf else "operation"  # a leaf's is "leaf" or "data"


def _module_text(module, inside) -> tuple[list[str], str]:
    """(lines, kind) of the box of a module: its name, and a line for each of its steps.

    Parameters have no line where they are used there: the step that uses them names them.
    """
    used = {x.number for step in inside for x in step.steps_before}
    listed = [step for step in inside if not step.is_leaf or step.number not in used]
    rows = [_row(step, module) for step in listed]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [module]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths) if width]
        lines.append(" " + "  ".join(cells).rstrip())
    is_finite = all(step.is_finite for step in inside)
    return lines, "module" if is_finite else "not finite"


def _row(step, module) -> tuple[str, ...]:
    """The cells of a step in its module's box.

    Parameters go by their names within the layer that they are of: "weight", not
    "decoder.layers.0.weight".
    """
    layer, _, last = step.name.rpartition(".")
    if not step.is_leaf:
        layer = step.name
    parameters = [x for x in step.steps_before if x.is_leaf and x.name]
    labels = {x: x.name.removeprefix(f"{layer}.") for x in parameters}
    title = last if step.is_leaf else f"{step.operation} {step.operands(labels)}"
    flaws = [labels.get(x, x.label) for x in dict.fromkeys([step, *parameters]) if not x.is_finite]
    path = layer.removeprefix(module).removeprefix(".")
    dtype_and_shape = f"{step.tensor.dtype} {shape_of(step.tensor)}"
    return (
        step.label,
        path,
        title,
        dtype_and_shape,
        f"not finite: {', '.join(flaws)}" if flaws else "",
    )


def _written(x) -> str:
    """An array of few entries on one line, three digits each."""
    text = np.array2string(np.asarray(x), formatter={"float_kind": lambda v: f"{v:.3g}"})
    return text.replace("\n", "")

"""The tape: a computation as a list of steps, each made from earlier ones. This is a lesson.

Every Tensor that was recorded knows how it came to be. Following that back from an output to the
leaves, and sorting what was found by creation number, gives a list in which each step comes after
all that it was made from:

    >>> import numpy as np
    >>> from minigrad import Tensor
    >>> from minigrad.tape import steps_of
    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> y = np.sum(np.square(x) * 3.0)
    >>> for step in steps_of(y, names={x: "x"}):
    ...     print(step.label, step.name, step.operation, step.operands(), step.tensor.data)
    #0 x leaf  [1. 2.]
    #1  square #0 [1. 4.]
    #2  multiply #1, 3 [ 3. 12.]
    #3  sum #2 15.0

There is no more to a graph of operations than this list. `backward()` walks it from the end to the
start, and uses it up, so look first. trace.py prints it, searches it and draws it.

Know before reading: tensor.py; and for the gradients of steps backward.py.

Know after: how a Tensor's history is found and put into words, and how to see of which layer each
step is, although no layer says so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import Array
from minigrad.backward import USED_UP, Origin, sweep
from minigrad.tensor import Tensor, initial_gradient


# -------------------------------------------------------------------- what a Tensor says of itself
def origin_of(t: Tensor) -> Origin | None:
    """How a Tensor of any shape came to be: what was called, on what; None for a leaf.

    RuntimeError where an earlier backward() has used that up.
    """
    if t.origin is USED_UP:
        raise RuntimeError(
            "trace: this graph was used up by an earlier backward(); look at it before, or run the "
            "forward computation again"
        )
    return t.origin


def tape(output: Tensor) -> list[Tensor]:
    """All Tensors that `output`, of any shape, was made from, and itself, oldest first.

    TypeError for what is not a Tensor, RuntimeError where backward() used the graph up.
    """
    if not isinstance(output, Tensor):
        raise TypeError(f"trace: a Tensor is needed, not a {type(output).__name__}")
    found: dict[int, Tensor] = {}
    waiting = [output]
    while waiting:
        t = waiting.pop()
        if t.number not in found:
            found[t.number] = t
            origin = origin_of(t)
            if origin is not None:
                waiting += [x for x in origin.inputs if isinstance(x, Tensor)]
    # Tensors are numbered as they are made: inputs have smaller numbers than what is made of them.
    return [found[number] for number in sorted(found)]


# -------------------------------------------------------------------------------------------- steps
@dataclass(frozen=True, eq=False)
class Step:
    """A Tensor of the tape, and what is known of it.

    gradient has the Tensor's shape; None where it is not needed or not known.
    """

    number: int  # its place on the tape
    tensor: Tensor
    origin: Origin | None
    inputs: tuple  # what it was made from: earlier Steps, and constants as they were given
    name: str  # "" where there is none
    gradient: Array | None

    @property
    def label(self) -> str:
        """The number in writing, "#3"."""
        return f"#{self.number}"

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it."""
        return self.origin is None

    @property
    def is_finite(self) -> bool:
        """Whether its value, and its gradient if that is known, are finite."""
        return all_finite(self.tensor) and all_finite(self.gradient)

    @property
    def steps_before(self) -> list[Step]:
        """Those of the inputs that are Steps."""
        return [x for x in self.inputs if isinstance(x, Step)]

    @property
    def operation(self) -> str:
        """What made it: a primitive and its keywords. "leaf" is differentiated, "data" is not.

        Keywords that are None or False are left out, and so are arrays: statistics of its input
        that a kernel was given.
        """
        if self.origin is None:
            return "leaf" if self.tensor.requires_grad else "data"
        said = [
            f"{key}={in_short(value)}"
            for key, value in self.origin.keywords.items()
            if value is not None and value is not False and not _has_axes(value)
        ]
        name = self.origin.primitive.__name__
        return f"{name}({', '.join(said)})" if said else name

    def operands(self, other_labels: Mapping[Step, str] | None = None) -> str:
        """What it was made from: earlier steps by their labels, or by these other ones."""
        other_labels = other_labels or {}
        words = []
        for x in self.inputs:
            if isinstance(x, Step):
                words.append(other_labels.get(x, x.label))
            else:
                words.append(in_short(x))
        return ", ".join(words)

    def results_of_rules(self) -> list:
        """The gradients of the inputs, from the gradient; None for those that need none."""
        if self.origin is None:
            return []
        rules = self.origin.primitive
        return computed(rules.gradients(self.tensor, self.gradient, record=False))


def steps_of(
    output: Tensor, names: Any = None, gradient: Array | None = None, backward: bool = True
) -> list[Step]:
    """The tape of `output`, of any shape, oldest step first.

    names: {Tensor: name}, {name: Tensor}, pairs of them, or a Module. gradient: that of the output,
    of its shape; without it, gradients are known only if the output has a single entry. backward:
    whether to compute gradients at all. Nothing is used up. Errors as of `tape`.
    """
    tensors = tape(output)
    known_names = _by_number(names)
    gradients = _gradients(output, gradient) if backward else {}
    steps: dict[int, Step] = {}
    for number, t in enumerate(tensors):
        origin = origin_of(t)
        given = () if origin is None else origin.inputs
        inputs = tuple(steps[x.number] if isinstance(x, Tensor) else x for x in given)
        name = known_names.get(t.number) or _layer_of(inputs)
        steps[t.number] = Step(number, t, origin, inputs, name, gradients.get(t.number))
    return list(steps.values())


def _gradients(output, gradient) -> dict[int, Array]:
    """Creation number -> gradient, of all steps that have one. Nothing is used up.

    It is the sweep of `backward()`, asked to hand out the gradient of every step on its way.
    """
    if not output.requires_grad or (gradient is None and output.size != 1):
        return {}
    if isinstance(gradient, Tensor):
        gradient = gradient.data
    start = initial_gradient(output, gradient, "trace")
    every_step = range(output.number + 1)
    return {t.number: g for t, g in sweep(output, start, wanted=every_step)}


def computed(gradients: Iterable) -> list:
    """What a rule returned, with the products carried out that it left to the sweep."""
    return [g(None) if callable(g) else g for g in gradients]


def _by_number(names) -> dict[int, str]:
    """Creation number -> name, from all that `steps_of` takes as names."""
    if names is None:
        return {}
    if hasattr(names, "named_parameters"):
        names = names.named_parameters()
    pairs = names.items() if isinstance(names, Mapping) else names
    found = {}
    for a, b in pairs:
        if isinstance(a, Tensor):
            found[a.number] = b
        else:
            found[b.number] = a
    return found


def _layer_of(inputs: tuple) -> str:
    """The layer whose parameters an operation uses; "" if there is none.

    An operation on `decoder.rho.weight` is one of `decoder.rho`; one on parameters of two layers is
    of the module that holds both.
    """
    parameters = [x for x in inputs if isinstance(x, Step) and x.is_leaf and x.name]
    paths = [x.name.split(".")[:-1] for x in parameters]
    return ".".join(commonprefix(paths))


def all_finite(x: Any) -> bool:
    """Whether all entries of an operand, of any shape, are finite. None and integers are."""
    if isinstance(x, Tensor) or backend.is_sparse(x):
        x = x.data
    if isinstance(x, float):
        return bool(np.isfinite(x))
    kind = x.dtype.kind if hasattr(x, "dtype") else "i"
    return kind not in "fc" or bool(np.all(np.isfinite(x)))


# --------------------------------------------------------------------------------- things in words
def in_short(x: Any) -> str:
    """A constant or keyword, of any shape, in a few letters: "0.5", "array(3,4)", "(1:,::2)"."""
    if isinstance(x, tuple):
        return f"({','.join(map(in_short, x))})"
    if isinstance(x, slice):
        ends = [x.start, x.stop] if x.step is None else [x.start, x.stop, x.step]
        return ":".join("" if end is None else str(end) for end in ends)
    if isinstance(x, type):
        return x.__name__
    if _has_axes(x):
        return f"{'csr' if backend.is_sparse(x) else 'array'}{shape_of(x)}"
    if isinstance(x, (float, np.generic, np.ndarray)):
        return f"{float(x):g}"
    return textwrap.shorten(str(x), 24, placeholder=" ...")


def shape_of(x: Any) -> str:
    """The shape of an array, "(3,4)"."""
    return str(tuple(x.shape)).replace(" ", "")


def _has_axes(x) -> bool:
    """Whether x is an array or a sparse matrix, and not a single number."""
    return hasattr(x, "shape") and not isinstance(x, type) and x.shape != ()

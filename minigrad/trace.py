"""Looking at a computation: as a table, as a picture, and for the first number that is not finite.

This is a lesson, and the place to see with your own eyes what the engine does. Take a small
expression, and print the tape of it:

    >>> import numpy as np
    >>> from minigrad import Tensor
    >>> from minigrad.trace import table
    >>> a = Tensor(2.0, requires_grad=True)
    >>> b = Tensor(-3.0, requires_grad=True)
    >>> y = np.exp(a * b + 5.0)
    >>> print(table(y, names={a: "a", b: "b"}))
    step  name  operation  from    shape  dtype    |value|  |gradient|
    ------------------------------------------------------------------
      #0  a     leaf               ()     float64        2       1.104
      #1  b     leaf               ()     float64        3      0.7358
      #2        multiply   #0, #1  ()     float64        6      0.3679
      #3        add        #2, 5   ()     float64        1      0.3679
      #4        exp        #3      ()     float64   0.3679           1

Read downwards, it is the computation; read upwards, it is `backward()`: the gradient begins with 1
at the output, and each rule makes of it the gradients of the inputs. The last two columns are the
norms of value and gradient. In a model, there are some forty such steps.

    print(trace.table(loss, names=model))      every step, with the layer that it belongs to
    trace.draw(loss, "loss.png", names=model)  the same as a picture; one box for each module, where
                                               there are more than 20 steps
    trace.first_nonfinite(loss)                the first step with an infinity or NaN, in words
    with trace.watch(): ...                    stop at the operation, forward or backward, that
                                               makes the first one

(The function `table` prints a tape. It has nothing to do with the table of rules, in table.py.)

Know before reading: tape.py.

Know after: how to find out what a model computes, and where a NaN comes from. How boxes and arrows
of a picture find their places is in picture.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minigrad import backend, boxes, picture
from minigrad.backend import Array
from minigrad.checkpoint import write_figure
from minigrad.fused import Fused
from minigrad.notebook import as_frame, as_html, as_picture
from minigrad.table import Primitive
from minigrad.tape import Step, all_finite, computed, shape_of, steps_of, tape
from minigrad.tensor import Tensor

__all__ = ["Row", "Table", "draw", "first_nonfinite", "layout", "table", "tape", "watch"]

HEADER = ("step", "name", "operation", "from", "shape", "dtype", "|value|", "|gradient|")
MOST = 400  # steps: more make no picture


# --------------------------------------------------------------------------------------- the table
class Row(NamedTuple):
    """A step of the tape. value, gradient: Euclidean norms; None for an unknown gradient."""

    step: int
    name: str
    operation: str
    inputs: str
    shape: tuple
    dtype: str
    value: float
    gradient: float | None


class Table(list):
    """The rows of a tape, oldest first; as text, a table of them. A slice is a Table too."""

    def __getitem__(self, rows: Any) -> Any:
        found = super().__getitem__(rows)
        return Table(found) if isinstance(rows, slice) else found

    def __str__(self) -> str:
        if not self:
            return "no steps"
        cells = [HEADER, *map(_cells, self)]
        columns = []
        for title, *entries in zip(*cells):
            if title == "name" and not any(entries):
                continue  # nothing has a name
            column = [title, *entries]
            width = max(map(len, column))
            is_number = title in ("step", "|value|", "|gradient|")
            columns.append([x.rjust(width) if is_number else x.ljust(width) for x in column])
        first, *others = ["  ".join(line).rstrip() for line in zip(*columns)]
        rule = "-" * max(map(len, [first, *others]))
        return "\n".join([first, rule, *others])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(HEADER, map(_cells, self))

    def to_frame(self) -> Any:
        """A pandas DataFrame with the fields of `Row`. ImportError where there is no pandas."""
        return as_frame({name: [getattr(row, name) for row in self] for name in Row._fields})


def _cells(row: Row) -> tuple[str, ...]:
    """What is printed of a row."""
    return (
        f"#{row.step}",
        row.name,
        row.operation,
        row.inputs,
        str(row.shape).replace(" ", ""),
        row.dtype,
        f"{row.value:.4g}",
        "-" if row.gradient is None else f"{row.gradient:.4g}",
    )


def table(output: Tensor, names: Any = None, gradient: Array | None = None) -> Table:
    """The tape of `output`: a row for each step, with the norms of its value and gradient.

    output: Tensor of any shape. names: {Tensor: name}, pairs as from `named_parameters()`, or a
    Module. gradient: array of the output's shape, as in `backward`; without it the gradients of an
    output with several entries are left open. Nothing is used up, and no `.grad` is touched.
    Returns a list of `Row`s whose str() is the table. TypeError for what is not a Tensor,
    RuntimeError where backward() used the graph up.
    """
    rows = Table()
    for step in steps_of(output, names, gradient):
        value = step.tensor
        rows.append(
            Row(
                step=step.number,
                name=step.name,
                operation=step.operation,
                inputs=step.operands(),
                shape=value.shape,
                dtype=value.dtype.name,
                value=_norm(value.data),
                gradient=None if step.gradient is None else _norm(step.gradient),
            )
        )
    return rows


def _norm(x) -> float:
    return float(np.linalg.norm(np.ravel(backend.to_host(x)).astype(np.float64)))


# ------------------------------------------------------------------- numbers that are not finite
def first_nonfinite(output: Tensor, names: Any = None, gradients: bool = False) -> str | None:
    """The first step of the tape of `output` that holds an infinity or NaN, in words, or None.

    Says the step's number (that of `table`), its operation, and shape and range of its inputs.
    output: a Tensor of any shape. names: as in `table`. gradients: if all values are finite, look
    through the gradients as well (the output must have one entry).
    """
    for step in steps_of(output, names, backward=False):
        if not all_finite(step.tensor):
            found = f"step {_title(step)} is {_in_words(step.tensor)}"
            return found if step.is_leaf else f"{found}; {_inputs_in_words(step)}"
    if not gradients:
        return None

    # The sweep goes from the last step to the first: that is where its first bad gradient is.
    steps = steps_of(output, names)
    for step in reversed(steps):
        if step.gradient is not None and not all_finite(step.gradient):
            return (
                f"the gradient of step {_title(step)} is {_in_words(step.gradient)}; "
                + _where_from(step, steps)
            )
    return None


def _where_from(step, steps) -> str:
    """Which rules made a gradient that is not finite: those of the steps that used this one."""
    causes = []
    for user in steps:
        if user.gradient is None or step not in user.steps_before:
            continue
        if not all(map(all_finite, user.results_of_rules())):
            causes.append(
                f"it comes through step {_title(user)}, whose gradient is "
                f"{_in_words(user.gradient)}; {_inputs_in_words(user)}"
            )
    return "; ".join(causes) or "the sum of several gradients overflows"


def _title(step) -> str:
    """The step in words: "#2 decoder.rho linear"."""
    return " ".join(word for word in (step.label, step.name, step.operation) if word)


def _inputs_in_words(step) -> str:
    said = []
    for i, x in enumerate(step.inputs):
        if isinstance(x, Step):
            said.append(f"input {_title(x)}: {_in_words(x.tensor)}")
        else:
            said.append(f"input {i}: {_in_words(x)}")
    return "; ".join(said)


def _in_words(x) -> str:
    """An operand: dtype, shape, the range of its finite entries, and how many are not finite."""
    if isinstance(x, Tensor):
        x = x.data
    if not hasattr(x, "dtype"):
        return repr(x)
    values = np.ravel(backend.to_host(x.data if backend.is_sparse(x) else x))
    if x.shape == ():
        return str(values[0])
    text = f"{x.dtype}{shape_of(x)}"
    if values.dtype.kind not in "fiub":
        return text
    finite = values[np.isfinite(values)]
    if finite.size:
        text += f" from {float(finite.min()):.6g} to {float(finite.max()):.6g}"
    if finite.size < values.size:
        first = values[~np.isfinite(values)][0]
        n_bad = values.size - finite.size
        text += f", {n_bad} of {values.size} not finite (the first is {first})"
    return text


# --------------------------------------------------------------------------- stopping at the first
@contextmanager
def watch() -> Iterator[None]:
    """Within `with watch():` an operation that makes a number that is not finite is stopped.

    It raises FloatingPointError where an infinity or NaN comes out although all that went in was
    finite, forward and backward, in this thread only. The message names the operation, and shape
    and range of its inputs. Two or three times slower: for finding a fault.

    Python can be made to call a function whenever one returns, which is meant for profilers. Here
    that function looks at what primitives and rules return. So it costs nothing elsewhere. It does
    not see the sum of two gradients that are both finite; `first_nonfinite` does.
    """

    def at_return(frame, event, result):
        if event == "return" and result is not None:
            seen = _seen(frame, result)
            if seen is not None:
                _stop_if_not_finite(seen)

    before = sys.getprofile()
    sys.setprofile(at_return)
    try:
        yield
    finally:
        sys.setprofile(before)


class _Seen(NamedTuple):
    """What a primitive, or its rules, have just computed."""

    name: str
    inputs: list  # of the primitive
    gradients: list  # of its output; none where it is not the rules that return
    results: dict  # in words -> an array, or None


# The methods through which every operation passes, forward and backward.
_FORWARD = {entry.__call__.__code__ for entry in (Primitive, Fused)}
_BACKWARD = {entry.gradients.__code__ for entry in (Primitive, Fused)}


def _seen(frame, result) -> _Seen | None:
    """What returns here, if it is a primitive or its rules; read from their local variables."""
    if frame.f_code in _FORWARD:
        local = frame.f_locals
        name = local["self"].__name__
        return _Seen(name, list(local["arrays"]), [], {"the result": result})
    if frame.f_code in _BACKWARD:
        local = frame.f_locals
        name = f"the rule of {local['self'].__name__}"
        arrays = list(local["node"].origin.arrays)
        results = {f"the gradient of input {i}": g for i, g in enumerate(computed(result))}
        return _Seen(name, arrays, [local["g"]], results)
    return None


def _stop_if_not_finite(seen: _Seen) -> None:
    """FloatingPointError if a result is not finite although all that went in is."""
    bad = [(what, x) for what, x in seen.results.items() if not all_finite(x)]
    if not bad or not all(map(all_finite, [*seen.inputs, *seen.gradients])):
        return
    what, x = bad[0]
    said = [f"input {i}: {_in_words(each)}" for i, each in enumerate(seen.inputs)]
    said += [f"gradient of the output: {_in_words(each)}" for each in seen.gradients]
    raise FloatingPointError(
        f"{seen.name}: {what} is {_in_words(x)}; all that went in is finite: {'; '.join(said)}"
    )


# ------------------------------------------------------------------------------------- the picture
def draw(output: Tensor, path: Any = None, names: Any = None, gradient: Array | None = None) -> Any:
    """Draw the graph that `output` came from.

    With a path (.png, .pdf, .svg) the picture is written and the path returned, without one the
    matplotlib Figure is returned.

    Inputs are above or left, the output is last. A box is a step of `table`: number, name,
    operation; then value and gradient where they have at most 4 entries, else dtype and shape. With
    names=model, a graph of more than 20 steps has one box for each module directly inside the model
    (`z_encoder`, `decoder`, ...), which lists its steps: the path of the layer in the module, the
    operation, dtype and shape. Boxes are coloured by kind, and those with a number that is not
    finite stand out. output, names and gradient as in `table`, of the same shapes;
    names=dict(model.named_parameters()) gives each step its own box. ValueError for more than 400
    steps.
    """
    figure = picture.figure_of(*layout(output, names, gradient))
    if path is None:
        return as_picture(figure)
    return write_figure(figure, path, dpi=picture.DPI)


def layout(
    output: Tensor, names: Any = None, gradient: Array | None = None
) -> tuple[list[picture.Box], list[np.ndarray], tuple[float, float]]:
    """Where all goes in the picture of a graph, in inches: (boxes, arrows, (width, height)).

    An arrow is an array of points, (n, 2). ValueError for more than 400 steps.
    """
    steps = steps_of(output, names, gradient)
    if len(steps) > MOST:
        raise ValueError(
            f"trace.draw: {len(steps)} steps are too many for a picture (the most is {MOST}); "
            "print(trace.table(output)) shows them"
        )
    return boxes.arrange(steps, model=names if hasattr(names, "children") else None)

"""The table: how a NumPy function becomes one that records, with a rule for each of its inputs.

This is a lesson, the second one. An entry of the table is one line of calculus:

    >>> import numpy as np
    >>> from minigrad import Tensor, grad, primitive
    >>> cube = primitive(lambda x: x ** 3, lambda g, y, x: 3.0 * g * x ** 2, name="cube")
    >>> t = Tensor(2.0, requires_grad=True)
    >>> cube(t)
    Tensor(8., from cube)
    >>> grad(cube(t), t)
    [array(12.)]

Know before reading: tensor.py. There, NumPy hands its functions over to what stands in
`IMPLEMENTATIONS`; here is what it finds there. A call of an entry has four parts. For
`np.sum(t, 1)`, with t of shape (2, 3), they are:

1. The arguments are put in order. np.sum has one rule, so it takes one array, t; the 1 that
   follows is np.sum's next parameter, `axis`. It becomes a keyword: axis=1.
2. The arrays are taken out of the Tensors: t.data. Numbers beside them, as in t * 2.0, follow the
   Tensors' dtype, so that float32 stays float32.
3. The function computes: np.sum(t.data, axis=1). It is NumPy's, and knows nothing of Tensors.
4. The result, of shape (2,), becomes a new Tensor. If a gradient may be asked for, its origin says:
   this entry, of t, with axis=1.

Going backward, the sweep (backward.py) asks the entry for the `gradients` of its inputs, and the
entry asks its rules: here `rule(g, y, x, axis=1)`, which spreads g, of shape (2,), over (2, 3). A
rule is plain NumPy as well: given arrays it computes; given Tensors it records.

Know after: what `primitive` does, and so what every line of ops.py means.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from minigrad import backend
from minigrad.backward import Origin
from minigrad.tensor import IMPLEMENTATIONS, Tensor, check_keywords, numbers, recording

PRIMITIVES: dict[str, Primitive] = {}  # name -> entry: all of calculus that the engine knows


class Primitive:
    """An entry of the table: a function of arrays and Tensors, with the rules of its gradients.

    Made by `primitive`. Called with arrays only, it does what its function does; of the function's
    keywords it takes those that its rules know.
    """

    def __init__(self, function: Callable, rules: tuple, name: str):
        self.__name__ = name
        self.__doc__ = function.__doc__
        self.function = function
        self.rules = rules
        self.n_arrays = len(rules)

        # The keywords that are offered are those that a rule knows: what its signature has after
        # g, y and the arrays. For np.cumsum, whose rule(g, y, x, axis) it is, that is axis. (The
        # rule of an input without a gradient is None; the first other one is asked.)
        first_rule = next(rule for rule in rules if rule is not None)
        self.keywords = tuple(inspect.signature(first_rule).parameters)[2 + self.n_arrays :]

        # What may follow the arrays by position is up to the function: np.cumsum(t, 1) is axis=1.
        # And np.cumsum(t, 1, float) is dtype=float, which is refused: its rule knows no dtype, as
        # that of np.sum does.
        is_ufunc = isinstance(inspect.unwrap(function), np.ufunc)
        parameters = [] if is_ufunc else list(inspect.signature(function).parameters)
        self.by_position = parameters[self.n_arrays :]

        # An optimisation, which `beside_tensors` makes use of: a Python float need not be converted
        # for NumPy's ufuncs, which let it follow the dtype of the array beside it. SciPy's do not,
        # nor does the rule of np.power, which compares its operands with 0.
        is_numpys = getattr(np, name, None) is function
        self.takes_floats = is_ufunc and is_numpys and function is not np.power

    def __call__(self, *inputs, **keywords):
        if keywords or len(inputs) != self.n_arrays:
            inputs, keywords = self.in_order(inputs, keywords)
        arrays, needs, dtype = unwrapped(inputs)
        if dtype is None:  # no Tensor is among the inputs: it is the plain function
            return self.compute(arrays, keywords)
        if len(inputs) > 1:
            arrays = self.beside_tensors(inputs, arrays, dtype)
        y = self.compute(arrays, keywords)
        return wrapped(y, self, inputs, arrays, keywords, saved=None, needs=needs)

    def in_order(self, inputs: tuple, keywords: dict) -> tuple[tuple, dict]:
        """(arrays, keywords) from what the user gave: what follows the arrays are keywords.

        TypeError for another number of arguments.
        """
        n = self.n_arrays
        if not n <= len(inputs) <= n + len(self.by_position):
            raise TypeError(
                f"{self.__name__}: {len(inputs)} arguments; "
                f"it takes {n} arrays and then {self.by_position}"
            )
        keywords = dict(zip(self.by_position, inputs[n:]), **keywords)
        check_keywords(keywords, self.__name__, self.keywords)
        return inputs[:n], keywords

    def beside_tensors(self, inputs: tuple, arrays: list, dtype: np.dtype) -> list:
        """The arrays; numbers and integer arrays are converted to `dtype`, that of a Tensor."""
        for i, x in enumerate(inputs):
            if type(x) is Tensor or self.rules[i] is None:
                continue
            if type(x) is not float or not self.takes_floats:
                arrays[i] = backend.as_operand(x, dtype, self.__name__)
        return arrays

    def compute(self, arrays: list, keywords: dict) -> Any:
        """The function's result; its errors name the operation and its operands."""
        try:
            return self.function(*arrays, **keywords)
        except (TypeError, ValueError, IndexError) as error:
            raise backend.explained(error, self.__name__, arrays) from error

    def gradients(self, node: Tensor, g: Any, record: bool) -> list:
        """The gradient of each input, from the gradient g of `node`, which this entry made.

        record: whether the rules get Tensors, and so record. Returns a list, with None where no
        gradient is needed. A gradient may have the shape that broadcasting made: the sweep sums it.
        TypeError for a rule that returns None.
        """
        origin = node.origin
        assert origin is not None  # the sweep asks only of what an entry made
        y = node if record else node.data
        operands = with_tensors(origin.inputs, origin.arrays) if record else origin.arrays
        found: list = []
        for rule, need in zip(self.rules, origin.needs):
            if not need or rule is None:
                found.append(None)
                continue
            dx = rule(g, y, *operands, **origin.keywords)
            if dx is None:
                raise TypeError(f"for input {len(found)} it returned None, not an array")
            found.append(dx)
        return found

    def __repr__(self):
        return f"<{type(self).__name__.lower()} {self.__name__}>"


def unwrapped(inputs: tuple) -> tuple[list, list, Any]:
    """(arrays, needs, dtype): what is inside the inputs, which of them need a gradient.

    dtype: that of the last Tensor among the inputs, which numbers beside them are to have; None
    where there is no Tensor. (Of Tensors of two dtypes NumPy makes the wider one.)
    """
    arrays = []
    needs = []
    dtype = None
    for x in inputs:
        if type(x) is Tensor:
            arrays.append(x.data)
            needs.append(x.requires_grad)
            dtype = x.data.dtype
        else:
            arrays.append(x)
            needs.append(False)
    return arrays, needs, dtype


def wrapped(y, primitive, inputs, arrays, keywords, saved, needs) -> Tensor:
    """The result y as a Tensor of its shape, with its origin if a gradient may be asked for.

    y: what `primitive` computed. The other arguments are the fields of Origin.
    """
    records = recording.enabled and True in needs
    out = Tensor.__new__(Tensor)
    out.data = y if type(y) is np.ndarray else _as_array(y)
    out.requires_grad = records
    out.grad = None
    out.grad_storage = None
    out.number = next(numbers)
    out.changed = 0
    out.origin = None
    if records:
        # The garbage collector looks once at a tuple of arrays or flags, sees that no cycle leads
        # through it, and lets it go; at a list it would look again and again.
        out.origin = Origin(primitive, inputs, tuple(arrays), keywords, saved, tuple(needs))
    return out


def _as_array(y):
    """What a function gave as one number, as an array; arrays of other libraries as they are."""
    return np.asarray(y) if isinstance(y, (np.generic, float)) else y


def with_tensors(inputs: tuple, arrays) -> list:
    """What a formula gets that is to record: the Tensors themselves, and the arrays beside them."""
    return [x if type(x) is Tensor else a for x, a in zip(inputs, arrays)]


def primitive(function: Callable, *rules: Callable | None, name: str | None = None) -> Primitive:
    """Put a function into the table. What is returned takes Tensors as well as arrays, and records.

    function: of as many arrays as there are rules, and then keywords. rules: one for each array,
    `rule(g, y, *inputs, **keywords)`: the gradient of that input from the gradient `g` of the
    output `y`, in plain NumPy; None for an input that has no gradient. The gradient may have the
    shape that broadcasting made. The keywords that a user may pass are those that the first rule
    (that is not None) names; all rules of a function take the same ones. name: by default the
    function's.

    If `function` is NumPy's, or a ufunc of SciPy's, NumPy finds this entry from now on when it is
    given a Tensor. Any other function knows nothing of it: there, call the entry that is returned.

        >>> from scipy import special
        >>> i0 = primitive(special.i0, lambda g, y, x: g * special.i1(x))
        >>> t = Tensor(1.0, requires_grad=True)
        >>> special.i0(t).backward()
        >>> t.grad.round(4)
        np.float64(0.5652)
    """
    entry = Primitive(function, rules, name or function.__name__)
    return registered(entry)


Entry = TypeVar("Entry", bound=Primitive)


def registered(entry: Entry) -> Entry:
    """Put an entry into both tables; returns it."""
    PRIMITIVES[entry.__name__] = entry
    IMPLEMENTATIONS[entry.function] = entry
    return entry

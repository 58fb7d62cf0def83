"""Reverse-mode differentiation: a Tensor, how operations are recorded on it, and the sweep backwards.

Know before reading: NumPy, and the chain rule. If y = f(a, b), and a number L further on depends on y, then
dL/da = (dL/dy)(dy/da), summed over the entries of y. The product is taken from the left, so that it has the shape of `a`:
a *vector-Jacobian product*, one small function ("rule") per input of f. The table of rules is in ops.py.

1. `numpy.exp(t)` arrives in `Tensor.__array_ufunc__` (NEP 13) or `__array_function__` (NEP 18), which look the function
   up in the table and call its *primitive*.
2. The primitive computes on the arrays inside and wraps the result in a new Tensor, whose `origin` says how it came to
   be. Origins are the graph. They point only from outputs to inputs: no cycles, and dropping the output frees it all.
3. Tensors are numbered as they are made, so inputs have smaller numbers than outputs. Visiting by descending number
   meets a Tensor only after everything that used it: its gradient is complete by then.
4. At each visit the rules turn the output's gradient into those of the inputs; what reaches a Tensor by several ways adds
   up. Rules are plain NumPy: given arrays they compute; given Tensors (`create_graph`) they record, for second derivatives.

Know after: everything that happens between `numpy.exp(t)` and `t.grad`.
"""

import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from heapq import heappop, heappush
from itertools import count, repeat

import numpy as np

from minigrad import backend

PRIMITIVES = {}  # name -> primitive: all of calculus that the engine knows
IMPLEMENTATIONS = {}  # NumPy or SciPy function -> what runs when it is given a Tensor
_numbers = count()
_recording = type(
    "Recording", (threading.local,), {"enabled": True}
)()  # a flag of each thread, on at first


@contextmanager
def _recording_is(enabled):
    before, _recording.enabled = _recording.enabled, enabled
    try:
        yield
    finally:
        _recording.enabled = before


def no_grad() -> AbstractContextManager:
    """Within `with no_grad():` nothing is recorded, in this thread only: less memory and time where no gradient is due."""
    return _recording_is(False)


class Tensor:
    """An array that remembers how it was computed, and can be differentiated.

    data: any floating array (kept as it is, not copied), or numbers, lists and integer arrays, which become float64.
    requires_grad: whether `backward` shall fill `.grad` (same shape and dtype as `.data`). dtype: convert to this first.
    NumPy's functions and operators take Tensors; comparisons give plain boolean arrays. TypeError for complex or text.
    Until backward, the data and what was used as an index must not change: the rules look at them again.
        >>> t = Tensor([1.0, 2.0], requires_grad=True)
        >>> np.sum(t ** 3).backward(); t.grad
        array([ 3., 12.])
    """

    __slots__ = ("data", "requires_grad", "grad", "origin", "number", "home", "__weakref__")
    __array_priority__ = 1000  # so that cupy_array * t and sparse * t come here

    def __init__(self, data, requires_grad=False, dtype=None):
        if isinstance(data, Tensor):
            raise TypeError("Tensor(data): data is a Tensor already; use it as it is, or .detach()")
        data = backend.as_array(data)
        dtype = np.dtype(dtype or (data.dtype if data.dtype.kind == "f" else np.float64))
        if data.dtype.kind not in "fiub" or dtype.kind != "f":
            raise TypeError(
                f"Tensor({data.dtype}, dtype={dtype}): data must be real numbers, and dtype a floating one"
            )
        self.data = data if data.dtype == dtype else data.astype(dtype)
        self.requires_grad, self.number = requires_grad, next(_numbers)
        self.grad = self.home = None  # home: where an optimiser wants the gradient written
        self.origin = (
            None  # of a leaf; () once used up; else (call, inputs, arrays, keywords, saved, needs)
        )

    shape, ndim = property(lambda self: self.data.shape), property(lambda self: self.data.ndim)
    size, dtype = property(lambda self: self.data.size), property(lambda self: self.data.dtype)

    def __reduce__(self):  # copies have no history
        return Tensor, (self.data, self.requires_grad and self.origin is None)

    def backward(self, gradient: backend.Array = None) -> None:
        """Add to `.grad` of every leaf that this depends on: d(sum of self * gradient)/d(leaf). Uses the graph up.

        gradient: array of this shape; left out where this has a single entry (then it is 1). The `.grad` of an optimiser's
        parameter is a view of its arena: copy what shall outlive zero_grad. RuntimeError where nothing was recorded.
        """
        if not self.requires_grad:
            raise RuntimeError(
                "backward(): nothing to differentiate; no input of this Tensor had requires_grad=True"
            )
        gradient = gradient.data if isinstance(gradient, Tensor) else gradient
        for t, g in _sweep(self, _initial(self, gradient, "backward"), release=True):
            if t.grad is not None:
                np.add(t.grad, g, out=t.grad)
            else:  # rules may return views or their own input: a leaf gets a copy of its own
                t.grad = np.empty_like(g) if _home(t) is None else t.home
                if g is not t.grad:  # else the sweep had it written there
                    np.copyto(t.grad, g)

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        if method == "__call__":
            return _dispatch(ufunc, inputs, keywords)
        raise TypeError(
            f"numpy.{ufunc.__name__}.{method} does not take Tensors; numpy.sum, cumsum, prod ... do"
        )

    def __array_function__(self, function, types, inputs, keywords):
        return _dispatch(function, inputs, keywords)


def _dispatch(function, inputs, keywords):
    """What a NumPy function does when one of its arguments is a Tensor."""
    implementation = IMPLEMENTATIONS.get(function)
    if implementation is not None and not keywords:  # at once: names take time
        return implementation(*inputs)
    name = f"{getattr(function, '__module__', None) or 'numpy'}.{function.__name__}"
    if implementation is None:
        raise TypeError(
            f"{name} is not in minigrad's table of differentiable functions. Use functions that are "
            "(minigrad.PRIMITIVES, minigrad/derived.py), add a rule with minigrad.primitive, or pass .data"
        )
    return implementation(*inputs, **_checked(keywords, name, implementation.keywords))


def _checked(keywords, name, allowed):
    for key, value in keywords.items():
        if key == "out":
            raise TypeError(
                f"{name}: out= does not take Tensors, nor does array += Tensor; write a = a + t"
            )
        if isinstance(value, Tensor):
            raise TypeError(
                f"{name}: {key}= is a Tensor; Tensors go by position, in the places of arrays; or pass .data"
            )
        if allowed is not None and key not in allowed:
            raise TypeError(
                f"{name}: {key}= is not supported for Tensors; supported: {list(allowed)}"
            )
    return keywords


def primitive(function: Callable, *rules, name=None) -> Callable:
    """Put a function into the table: what it returns takes Tensors as well as arrays, and records.

    function: of as many arrays as there are rules, then keywords. rules: one per array, `rule(g, y, *inputs, **keywords)`
    gives the gradient of that input from the gradient `g` of the output `y`, in plain NumPy; None for an input that has
    none. It may have the shape that broadcasting made: the sweep sums it back. The keywords that a user may pass are
    those that the first rule names; all rules of a function take the same.
        >>> cube, t = primitive(lambda x: x ** 3, lambda g, y, x: 3.0 * g * x ** 2, name="cube"), Tensor(2.0, requires_grad=True)
        >>> grad(cube(t), t)
        [array(12.)]
    """
    names = list(inspect.signature(next(filter(None, rules))).parameters)
    return recorded(
        function, name or function.__name__, len(rules), names[2 + len(rules) :], rules=rules
    )


def recorded(
    function, name, n_inputs, allowed, rules=repeat(None), joint=None, twin=None
) -> Callable:
    """A version of `function` that also takes Tensors; its errors name it. All operations pass here: long, so as to be fast.

    Gradients come from `rules`, one an input; or from `joint`, where they share work: then function(needs, *arrays) gives
    (y, saved), and joint(g, y, saved, needs, *arrays) all gradients; needs says of each input whether its gradient is asked
    for. n_inputs None: any number. twin: the same in plain NumPy, for devices and for gradients of gradients.
    """
    new, ndarray, is_ufunc = (
        Tensor.__new__,
        np.ndarray,
        isinstance(inspect.unwrap(function), np.ufunc),
    )
    is_weak = (
        is_ufunc and getattr(np, name, None) is function is not np.power
    )  # takes a Python float as it is, rules included
    extras = [] if is_ufunc else list(inspect.signature(function).parameters)[n_inputs or 0 :]

    def call(*inputs, **keywords):
        if (
            joint is None and len(inputs) != n_inputs
        ):  # np.sum(t, 1): what follows the arrays are keywords
            if not n_inputs < len(inputs) <= n_inputs + len(extras):
                raise TypeError(
                    f"{name}: {len(inputs)} arguments; it takes {n_inputs} arrays and then {extras}"
                )
            inputs, keywords = inputs[:n_inputs], dict(zip(extras, inputs[n_inputs:]), **keywords)
        keywords = keywords and _checked(keywords, name, allowed)
        arrays, needs, tensor, mixed = [], [], None, False
        for x in inputs:
            if type(x) is Tensor:
                arrays.append(x.data)
                needs.append(x.requires_grad)
                tensor = x
            else:
                arrays.append(x)
                needs.append(False)
                mixed = mixed or type(x) is not float or not is_weak
        if mixed and tensor is not None:
            arrays = [
                a
                if type(x) is Tensor or not (joint or rule)
                else backend.settled(a, tensor.data.dtype, name, joint)
                for x, a, rule in zip(inputs, arrays, rules)
            ]
        if twin is not None and not backend.on_host(arrays):
            return twin(
                *[x if type(x) is Tensor else a for x, a in zip(inputs, arrays)], **keywords
            )
        record, saved = (_recording.enabled and True in needs), None
        try:
            if joint is None:
                y = function(*arrays, **keywords)
            else:
                y, saved = function(needs if record else [False] * len(needs), *arrays, **keywords)
        except (TypeError, ValueError, IndexError) as error:
            raise backend.explained(error, name, arrays) from error
        if tensor is None:
            return y
        out = new(Tensor)
        out.data = (
            y if type(y) is ndarray or not isinstance(y, (np.generic, float)) else np.asarray(y)
        )
        out.requires_grad, out.number = record, next(_numbers)
        # tuples of arrays and flags, unlike lists, drop out of garbage collection
        out.origin = (
            (call, inputs, tuple(arrays), keywords, saved, tuple(needs)) if record else None
        )
        out.grad = out.home = None
        return out

    call.__name__, call.keywords, call.rules, call.joint, call.twin = (
        name,
        tuple(allowed),
        rules,
        joint,
        twin,
    )
    PRIMITIVES[name] = IMPLEMENTATIONS[function] = call
    return call


def grad(output, inputs, gradient=None, create_graph=False) -> list:
    """d(sum of output * gradient)/d(each input), without touching `.grad` and without using the graph up.

    output: Tensor; inputs: a list of Tensors (or one) with requires_grad, leaves or not; gradient: array or Tensor of
    output's shape, may be left out where output has a single entry. Returns a list, one per input, of its shape and dtype:
    arrays, or Tensors to differentiate again (create_graph=True); zeros for an input without influence. TypeError for arrays.
        >>> x = Tensor([3.0], requires_grad=True)
        >>> grad(x ** 3, x)
        [array([27.])]
    """
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) or not x.requires_grad:
            raise TypeError(f"grad(): input {i} is not a Tensor with requires_grad=True")
    gradient = _initial(output, gradient, "grad")
    if create_graph != isinstance(
        gradient, Tensor
    ):  # an array where a Tensor is wanted, or the reverse
        gradient = Tensor(gradient) if create_graph else gradient.data
    found = {
        x.number: Tensor(np.zeros_like(x.data)) if create_graph else np.zeros_like(x.data)
        for x in inputs
    }
    if output.requires_grad and inputs:
        with _recording_is(create_graph):
            for t, g in _sweep(
                output, gradient, record=create_graph, also=found, oldest=min(found)
            ):
                found[t.number] = g
    return [found[x.number] if create_graph else np.copy(found[x.number]) for x in inputs]


def _initial(output, gradient, caller):
    """The gradient that the sweep starts from, checked."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{caller}(): the output is a {type(output).__name__}, not a Tensor: no Tensor went into it"
        )
    if gradient is None and output.size != 1:
        raise ValueError(
            f"{caller}(): an output of shape {output.shape} needs gradient= of that shape, or sum it first"
        )
    gradient = np.ones_like(output.data) if gradient is None else gradient
    gradient = (
        gradient
        if hasattr(gradient, "dtype")
        else np.asarray(gradient, output.dtype, like=output.data)
    )
    if gradient.shape != output.shape:
        raise ValueError(
            f"{caller}(): gradient has shape {gradient.shape}, the output {output.shape}"
        )
    return gradient if gradient.dtype == output.dtype else gradient.astype(output.dtype)


def _sweep(output, gradient, record=False, release=False, also=(), oldest=0):
    """Yield (Tensor, gradient) of each leaf, and of the Tensors with a number in `also`, each with its gradient complete.

    record: rules are given Tensors, and record. release: drop the graph on the way. oldest: nothing of interest lies beyond.
    """
    pending, queue = (
        {output.number: gradient},
        [(-output.number, output)],
    )  # the smallest comes first: minus the number
    while queue:
        t = heappop(queue)[1]
        g = pending.pop(t.number)
        if t.origin is None or t.number in also:
            yield t, g
            if t.origin is None or t.number == oldest:
                continue
        if not t.origin:
            raise RuntimeError(
                "this graph was used up by an earlier backward(): run forward again, or use minigrad.grad instead"
            )
        inputs, gradients = t.origin[1], _pull(t, g, record)
        if release:
            t.origin = ()
        for x, dx in zip(inputs, gradients):
            if dx is None or x.number < oldest:
                continue
            if callable(
                dx
            ):  # a large product: into the optimiser's arena at once, if it is the first part of a new .grad
                dx = dx(
                    _home(x) if release and x.grad is None and x.number not in pending else None
                )
            if dx.shape != x.data.shape:
                dx = backend.unbroadcast(dx, x.data.shape)
            dx = dx if dx.dtype == x.data.dtype else dx.astype(x.data.dtype)
            if x.number not in pending:
                heappush(queue, (-x.number, x))
            pending[x.number] = pending[x.number] + dx if x.number in pending else dx


def _home(t):
    return (
        t.home
        if t.home is not None and (t.home.shape, t.home.dtype) == (t.data.shape, t.data.dtype)
        else None
    )


def _pull(t, g, record):
    """The gradients of the inputs of the operation that made t, from the gradient of t; None where not needed."""
    call, inputs, arrays, keywords, saved, needs = t.origin
    if record and call.twin is not None:
        return _through_twin(call.twin, g, inputs, arrays, keywords, needs)
    y, arrays = (
        (t, [x if type(x) is Tensor else a for x, a in zip(inputs, arrays)])
        if record
        else (t.data, arrays)
    )
    if call.joint is not None:
        return [
            dx if need else None
            for dx, need in zip(call.joint(g, y, saved, needs, *arrays, **keywords), needs)
        ]
    found = []  # a loop: lists of this size take twice as long to comprehend
    for rule, need in zip(call.rules, needs):
        found.append(rule(g, y, *arrays, **keywords) if need and rule else None)
    return found


def _through_twin(twin, g, inputs, arrays, keywords, needs):
    """The gradients of a kernel as a graph: those of its twin, between aliases of the inputs and a new output.

    Aliases, as one input may be computed from another, or be given twice: the sweep shall stop at each.
    """
    aliases = [_alias(x) if type(x) is Tensor else a for x, a in zip(inputs, arrays)]
    found = iter(
        grad(
            twin(*aliases, **keywords),
            [x for x, need in zip(aliases, needs) if need],
            g,
            create_graph=True,
        )
    )
    return [next(found) if need else None for need in needs]


_alias = primitive(lambda x: x, lambda g, y, x: g, name="alias")

"""The sweep backwards: from the gradient of an output to the gradients of all that it came from.

This is a lesson, the third one, and the heart of the engine. Read it after tensor.py and table.py
(and a page of ops.py, which is a reference); in code those import this file, and not the reverse,
because the sweep asks little of what it sweeps over: a *node*, as Tensors are called here, has its
`data`, a `number`, and an `origin`.

Know before reading: tensor.py, table.py, a few rules of ops.py, and the chain rule. If y = f(a, b),
and a number L further on depends on y, then dL/da = (dL/dy)(dy/da), summed over the entries of y.
dL/dy comes first, as a row vector times the Jacobian dy/da: a *vector-Jacobian product*. It has the
shape of `a`, and no Jacobian is ever made: one small function for each input of f, a *rule*, gives
the product. Rules are in ops.py. (Some functions have one rule for all of their inputs together:
fused.py.)

One worked trace, of y = x * x at x = 3. Going forward, each node gets the next number:

    node                number  data  origin
    x                        0   3.0  None: nothing made it, it is a leaf
    y = multiply(x, x)       1   9.0  multiply, of node 0 and node 0

Going backward, the sweep visits the nodes that have a gradient by descending number:

    visit     its gradient   what happens
    y (1)     1.0            it starts here, with dy/dy = 1. The two rules of multiply, g * b and
                             g * a, give 1 * 3 for the left input and 1 * 3 for the right one.
                             Both inputs are node 0, so its gradient is 3 + 3
    x (0)     6.0            it is a leaf: 6.0 is a result, and indeed dy/dx = 2 x = 6

If x were the number 3 and y an array of two entries, as in y = x * [1, 2], broadcasting would have
used x twice: the rule gives [1, 2], and the two are summed to 3. If the sweep is told to record,
the rules get the Tensors x and y instead of 3.0 and 9.0: g * b is then a Tensor with an origin, and
the gradient 6.0 = g * x + g * x knows that it came from x. Differentiating that 6.0 in x gives 2.

An input is always older than what was computed from it, and so has a smaller number. When the
sweep comes to a node, it has visited everything that used the node: its gradient is complete.

The lesson is `sweep`, and `unbroadcast` after it. At first reading, skip what is marked as *an
optimisation*: it saves a copy of large gradients, and changes no number.

Know after: what happens between `loss.backward()` and `weight.grad`, why one visit to each node is
enough, and where broadcasting is undone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import Array, explained


class Origin(NamedTuple):
    """How a node came to be: a function of the table, and what it was given."""

    primitive: Any  # the entry of the table, which knows the rules: see table.py
    inputs: tuple  # what the user gave: Tensors, arrays, numbers
    arrays: tuple  # the plain arrays inside the inputs: the rules look at these again
    keywords: dict  # what else the user gave, such as axis=1
    saved: Any  # what a hand-written kernel (fused.py) keeps for its rule
    needs: tuple  # for each input, whether its gradient is needed


# The origin of a node whose graph an earlier backward() has dropped, to free the memory.
USED_UP = Origin(primitive=None, inputs=(), arrays=(), keywords={}, saved=None, needs=())


def sweep(
    output: Any,
    gradient: Array,
    wanted: Collection[int] = (),
    record: bool = False,
    release: bool = False,
) -> Iterator[tuple[Any, Array]]:
    """Yield (node, gradient), complete, for each leaf that needs one and each node that is wanted.

    output: the node to start from. gradient: that of the output, of its shape and dtype.
    wanted: numbers of nodes, leaves or not. With it, the sweep ends at the oldest of them, and
    leaves that are older are not yielded: what is older was computed before it, and cannot depend
    on it. record: the rules get Tensors and record what they do, so that the gradients can be
    differentiated again. release: drop the graph on the way. RuntimeError for a graph used up, or
    of a leaf that has changed since. What is wrong with a rule is an error that names it.
    """
    oldest = min(wanted, default=0)  # 0 where none is wanted: no number is smaller, so no limit
    pending = {output.number: gradient}  # number -> the gradient as far as it is known

    # A heap gives its smallest entry first: hence minus the number. Numbers are unique, so that
    # the heap never has to compare two nodes.
    queue = [(-output.number, output)]

    while queue:
        # The youngest node that is left: all that used it is younger still, and was visited.
        _, node = heappop(queue)
        g = pending.pop(node.number)

        is_leaf = node.origin is None
        if is_leaf or node.number in wanted:
            yield node, g
        if is_leaf or node.number == oldest:
            continue  # there is nothing beyond it that anybody wants

        # The rules turn the gradient of the node into the gradients of its inputs.
        origin = node.origin
        if origin is USED_UP:
            raise RuntimeError(
                "this graph was used up by an earlier backward(): run forward again, "
                "or use minigrad.grad instead of backward(): it keeps the graph"
            )
        try:
            input_gradients = origin.primitive.gradients(node, g, record)
        except (TypeError, ValueError, IndexError) as error:
            name = f"the rule of {origin.primitive.__name__}"
            raise explained(error, name, origin.arrays) from error
        if release:
            node.origin = USED_UP

        # An input may be reached by several ways: what comes by each of them is added up.
        for x, dx in zip(origin.inputs, input_gradients):
            if dx is None:
                continue  # no gradient is needed
            # The rule has looked at x as it is now. If x is a weight that was changed after the
            # node was computed from it, that gave a wrong number.
            if x.changed > node.number:
                raise _changed_since(origin)
            if x.number < oldest:
                continue  # there is nothing there that anybody wants
            is_first = x.number not in pending
            try:  # may_write: an optimisation, see the end of this file
                dx = _fitted(dx, x, may_write=release and is_first)
            except (AttributeError, TypeError, ValueError) as error:
                raise _misfit(error, origin, input_gradients, dx, x) from error
            if is_first:
                pending[x.number] = dx
                heappush(queue, (-x.number, x))
            else:
                pending[x.number] = pending[x.number] + dx


def _fitted(dx, x, may_write):
    """A gradient with the shape and dtype of its input. This is where broadcasting is undone."""
    if callable(dx):  # an optimisation, to be skipped: a kernel has put a large product off
        dx = _carried_out(dx, x, may_write)
    if dx.shape != x.data.shape:
        dx = unbroadcast(dx, x.data.shape)
    if dx.dtype != x.data.dtype:
        if dx.dtype.kind != "f":
            raise TypeError(f"{dx.dtype} is not floating")
        dx = dx.astype(x.data.dtype)
    return dx


def unbroadcast(g: Array, shape: tuple) -> Array:
    """Sum a gradient over the axes along which its input, of this shape, was stretched.

    An entry that broadcasting used n times has n gradients, and they add up. g: an array or Tensor
    of a shape that `shape` broadcasts to; ValueError for another. Returns one of that shape.
    """
    n_new = g.ndim - len(shape)  # axes that broadcasting put in front
    if n_new < 0:
        raise ValueError(f"{shape} does not broadcast to {g.shape}")
    to_sum = list(range(n_new))
    for axis, length in enumerate(shape, start=n_new):
        if g.shape[axis] == length:
            continue
        if length != 1:
            raise ValueError(f"{shape} does not broadcast to {g.shape}")
        to_sum.append(axis)
    return np.reshape(np.sum(g, axis=tuple(to_sum)), shape)


# --------------------------------------------------------------------------- what a rule did wrong
def _misfit(error, origin, input_gradients, dx, x):
    """The error for a rule that gave a dx that is no gradient of its input x."""
    i = next(i for i, other in enumerate(input_gradients) if other is dx)
    found = f"{dx.dtype}{list(dx.shape)}" if hasattr(dx, "dtype") else repr(dx)
    kind = ValueError if isinstance(error, ValueError) else TypeError
    return kind(
        f"the rule of {origin.primitive.__name__} for input {i} returned {type(dx).__name__} "
        f"{found}; a gradient is an array of floating numbers, of the shape {list(x.data.shape)} "
        f"of the input or of one that this broadcasts to ({error})"
    )


def _changed_since(origin):
    """The error for a leaf whose numbers are no longer those that the operation was given."""
    return RuntimeError(
        f"an input of {origin.primitive.__name__} was changed in place since, by `w += ...` within "
        "no_grad() or by the step of an optimiser, and its rule would look at the new numbers: run "
        "forward again"
    )


# -------------------------------------------------------------------------- where gradients arrive
def add_to_grad(leaf: Any, g: Array) -> None:
    """leaf.grad += g. The first time, the leaf gets a writable array that nothing else shares.

    g: the gradient, of the shape and dtype of leaf.data.
    """
    if leaf.grad is not None:
        np.add(leaf.grad, g, out=leaf.grad)
        return
    storage = _storage(leaf)
    # Rules may return views, or the very array they were given: it has to be copied.
    leaf.grad = np.empty_like(g) if storage is None else storage
    if g is not leaf.grad:  # else the product was written there already: see below
        np.copyto(leaf.grad, g)


# An optimisation. An optimiser keeps the gradients of all its parameters in one array (arena.py).
# It tells each parameter its place there, a view of that array: `grad_storage`. Two things follow:
# `.grad` is that view, and a large product, such as the gradient of the weights of a layer, can be
# written there directly instead of being copied. For that its kernel (fused.py) does not compute
# the product but returns a function, which does so once it is told where.


def _storage(leaf):
    """Where this leaf's gradient is to be written; None for a new array."""
    storage = leaf.grad_storage
    if storage is None or storage.shape != leaf.data.shape or storage.dtype != leaf.data.dtype:
        return None
    return storage


def _carried_out(product, x, may_write):
    """The gradient from a kernel that has put a large product off until now: product(out).

    may_write: this is the first part of the gradient of x, and backward() is collecting `.grad`.
    So the product may be written to where `.grad` will be.
    """
    is_free = may_write and x.grad is None
    return product(_storage(x) if is_free else None)

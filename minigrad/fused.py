"""Entries of the table whose gradients come from one joint rule, as those of kernels do.

This is engineering. An entry of table.py has a rule for each input. Where the gradients of the
inputs share work, or where a function is worth a hand-written kernel, one rule gives them all.

Know before reading: table.py and backward.py. A *kernel* is code that computes the same as a plain
formula, in fewer passes over memory. Its *twin* is that formula.
Know after: when the kernel runs and when its twin does. How kernels are written: kernels.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backward import Origin
from minigrad.table import Primitive, primitive, registered, unwrapped, with_tensors, wrapped
from minigrad.tensor import Tensor, check_keywords, grad, recording

# A new node with the data of another one.
_alias = primitive(lambda x: x, lambda g, y, x: g, name="alias")


class Fused(Primitive):
    """An entry whose gradients come from one joint rule, as those of a hand-written kernel do.

    Made by `fuse`. It differs from a Primitive in three ways: the forward pass may keep something
    for the rule (`saved`), the rule gives all gradients at once, and beside it stands a twin. The
    twin runs where the gradient itself is to be differentiated. `elsewhere` is what runs on arrays
    of a GPU: another Fused, of a kernel that is plain NumPy, or the twin. (None: this one does.) A
    Fused takes any number of arrays, and keywords by name only.
    """

    def __init__(
        self,
        forward: Callable,
        joint: Callable,
        twin: Callable | None,
        name: str,
        keywords,
        elsewhere: Callable | None,
    ):
        self.__name__ = name
        self.__doc__ = forward.__doc__ or (twin.__doc__ if twin else None)
        self.function = forward
        self.joint = joint
        self.twin = twin
        self.keywords = tuple(keywords)
        self.elsewhere = elsewhere

    def __call__(self, *inputs, **keywords):
        if keywords:
            check_keywords(keywords, self.__name__, self.keywords)
        arrays, needs, dtype = unwrapped(inputs)
        if dtype is not None:
            arrays = self.beside_tensors(inputs, arrays, dtype)
        if self.elsewhere is not None and not backend.on_host(arrays):
            return self.elsewhere(*with_tensors(inputs, arrays), **keywords)
        if not recording.enabled:
            needs = [False] * len(needs)  # so that the kernel keeps nothing
        try:
            y, saved = self.function(needs, *arrays, **keywords)
        except (TypeError, ValueError, IndexError) as error:
            raise backend.explained(error, self.__name__, arrays) from error
        if dtype is None:
            return y
        return wrapped(y, self, inputs, arrays, keywords, saved, needs)

    def beside_tensors(self, inputs: tuple, arrays: list, dtype: np.dtype) -> list:
        """As in Primitive; kernels also take sparse matrices, and None."""
        for i, x in enumerate(inputs):
            if type(x) is not Tensor:
                arrays[i] = backend.as_operand(x, dtype, self.__name__, in_kernel=True)
        return arrays

    def gradients(self, node: Tensor, g: Any, record: bool) -> list:
        """As in Primitive, of the shapes of the inputs; here the rule gives all at once.

        TypeError for a rule that leaves one out.
        """
        origin = node.origin
        assert origin is not None  # the sweep asks only of what an entry made
        if record and self.twin is not None:
            return self.through_twin(self.twin, origin, g)
        y = node if record else node.data
        operands = with_tensors(origin.inputs, origin.arrays) if record else origin.arrays
        found = self.joint(g, y, origin.saved, origin.needs, *operands, **origin.keywords)
        if len(found) != len(origin.needs):
            raise TypeError(f"it returned {len(found)} gradients for {len(origin.needs)} inputs")
        gradients: list = []
        for dx, need in zip(found, origin.needs):
            if need and dx is None:
                raise TypeError(f"for input {len(gradients)} it returned None, not an array")
            gradients.append(dx if need else None)
        return gradients

    def through_twin(self, twin: Callable, origin: Origin, g: Tensor) -> list:
        """The gradients as a graph: those of the twin, which is made of entries with rules.

        g: a Tensor of the shape of the output. The twin gets an alias of each input, which is a new
        node: else the sweep would run on into what the inputs were computed from, and could not
        tell apart an input that was given twice. TypeError for a twin that cuts the graph.
        """
        operands = with_tensors(origin.inputs, origin.arrays)
        aliases = [_alias(x) if type(x) is Tensor else x for x in operands]
        y = twin(*aliases, **origin.keywords)
        if not isinstance(y, Tensor) or not y.requires_grad:
            raise TypeError("its twin cuts the graph: nothing leads from its result to the inputs")
        wanted = [x for x, need in zip(aliases, origin.needs) if need]
        found = iter(grad(y, wanted, g, create_graph=True))
        return [next(found) if need else None for need in origin.needs]


def fuse(
    twin: Callable | None,
    forward: Callable,
    joint: Callable,
    name: str,
    elsewhere: tuple[Callable, Callable] | None = None,
) -> Fused:
    """Put a hand-written kernel into the table, beside its twin.

    twin: the same function as a plain NumPy formula; its keyword-only parameters are the keywords
    that a user may pass. None where forward and joint are plain NumPy themselves.
    forward(needs, *inputs, **keywords) gives (y, saved): the result, and what the rule wants to
    keep; needs says for each input whether its gradient will be asked for.
    joint(g, y, saved, needs, *inputs, **keywords) gives a gradient for each input, None where not
    needed. A large gradient may be postponed: joint gives a function of an array, which computes
    the gradient into that array (or into a new one, for None): see `_carried_out` in backward.py.
    Kernels see NumPy arrays, SciPy's CSR matrices and None.
    elsewhere: another forward and joint, for arrays of other libraries; None: the twin does there.
    """
    parameters = inspect.signature(twin or forward).parameters
    keywords = [k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    other = Fused(*elsewhere, twin, name, keywords, elsewhere=None) if elsewhere else twin
    return registered(Fused(forward, joint, twin, name, keywords, elsewhere=other))

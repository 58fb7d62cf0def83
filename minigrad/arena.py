"""The arena: all weights of a model in one flat array, and all their gradients in another.

This file is engineering. An optimiser changes every weight by the same formula, so it is best
applied to one long array: a few calls of NumPy, however many parameters there are. An arena makes
that array and gives each parameter its part of it:

    >>> import numpy as np
    >>> from minigrad import Tensor
    >>> from minigrad.arena import Arena
    >>> p = Tensor([1.0, 2.0], requires_grad=True)
    >>> q = Tensor([3.0], requires_grad=True)
    >>> arena = Arena([p, q], "Example")
    >>> arena.weights
    array([1., 2., 3.])
    >>> arena.weights[:] = 0.5
    >>> p.data
    array([0.5, 0.5])

Gradients have to arrive in the second array as well. For that, a Tensor has the slot
`grad_storage`: where `backward()` is to write its gradient. That of a parameter is a view of
`arena.gradients`, and `p.grad` is then that view; where it is None, `p.grad` is a new array.

    >>> np.sum(p * q).backward()
    >>> arena.gradients
    array([0.5, 0.5, 1. ])

A view that is copied, by copy.deepcopy or on the way to another process, is a view no more. So an
arena copies its parameters, and lays these out anew.

Know before reading: Tensor's `.data` and `.grad`, and what a view of a NumPy array is.

Know after: why an optimiser has to be made anew when a model moves to another device.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from minigrad import backend
from minigrad.backend import Array
from minigrad.tensor import Tensor, numbers


class Arena:
    """The weights of some parameters, and their gradients, in two flat arrays.

    parameters: leaf Tensors of one dtype and of any shapes; from now on each `p.data` is a view of
    `weights`, of the same shape as before, and so is its gradient, if it has one, of `gradients`. A
    Tensor that is listed twice (weights that are tied) has one place. owner: whose arena it is;
    error messages begin with it. ValueError for no parameters, or several dtypes; TypeError for
    other things.

    weights, gradients: arrays of shape (n,), n being the number of entries of all parameters.
    n_missed: for each parameter, how many steps have passed it over.
    """

    def __init__(self, parameters: Sequence[Tensor], owner: str):
        _check(parameters, owner)
        self.parameters = list(dict.fromkeys(parameters))  # each once
        self.owner = owner
        self.n_missed = [0] * len(self.parameters)

        like = self.parameters[0].data  # of the right dtype, on the right device
        n_weights = sum(p.size for p in self.parameters)
        self.weights: Array = np.zeros_like(like, shape=(n_weights,))
        self.gradients: Array = np.zeros_like(like, shape=(n_weights,))

        # Each parameter's part of the two arrays.
        self.slices: list[slice] = []
        start = 0
        for p in self.parameters:
            self.slices.append(slice(start, start + p.size))
            start += p.size
        self.weight_views = self.in_shape(self.weights)
        self.gradient_views = self.in_shape(self.gradients)
        self.attach()
        for p, storage in zip(self.parameters, self.gradient_views):
            if p.grad is not None:
                storage[...] = p.grad
                p.grad = storage

    def __reduce__(self):
        """A copy is made of copies of the parameters, which are then views of its own arrays."""
        return Arena, (self.parameters, self.owner), {"n_missed": self.n_missed}

    def in_shape(self, flat: Array) -> list[Array]:
        """Views of a flat array (n,): the part of each parameter, of its shape."""
        return [flat[part].reshape(p.shape) for p, part in zip(self.parameters, self.slices)]

    def checksums(self) -> np.ndarray:
        """The CRC-32 of each parameter's weights, by which its state is known again: integers."""
        self.attach()
        weights: np.ndarray = backend.to_host(self.weights)
        return np.array([zlib.crc32(weights[part].tobytes()) for part in self.slices])

    def attach(self) -> None:
        """Make each `p.data` a view of `weights` again, if somebody has put another array there.

        The new numbers are copied into the arena. ValueError where their shape or device is not
        what it was.
        """
        for p, view, storage in zip(self.parameters, self.weight_views, self.gradient_views):
            if p.data is not view:
                self._check_replacement(p.data, view)
                view[...] = p.data
                p.data = view
                p.grad_storage = storage

    def _check_replacement(self, data: Array, view: Array) -> None:
        """ValueError unless the data can take the place of the view."""
        device = backend.device_of(data)
        if data.shape != view.shape or device != backend.device_of(view):
            raise ValueError(
                f"{self.owner}: a parameter of shape {view.shape} has become {data.shape} "
                f"on {device}; make a new optimiser after that"
            )

    def blocks_to_change(self, size: int) -> Iterator[tuple[slice, int]]:
        """Yield (block, n_missed) of all that a step changes, each block at most `size` long.

        These are the weights that have a gradient and are not frozen. All others miss the step,
        which is counted. A gradient that somebody has put into `p.grad` is copied into the arena
        first.
        """
        for start, stop, n_missed in self._stretches():
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop)), n_missed

    def _stretches(self) -> list[list[int]]:
        """[start, stop, n_missed] of neighbours that a step changes, and that missed as many."""
        found: list[list[int]] = []
        now = next(numbers)
        for i, p in enumerate(self.parameters):
            if p.grad is None or not p.requires_grad:
                self.n_missed[i] += 1
                continue
            p.changed = now  # what was computed from it before cannot be differentiated any more
            if p.grad is not self.gradient_views[i]:
                self.gradient_views[i][...] = p.grad
            part, n_missed = self.slices[i], self.n_missed[i]
            if found and found[-1][1] == part.start and found[-1][2] == n_missed:
                found[-1][1] = part.stop
            else:
                found.append([part.start, part.stop, n_missed])
        return found


def leave(p: Tensor) -> None:
    """Forget the gradient of a parameter, of any shape, and its place: the data has moved."""
    p.grad = None
    p.grad_storage = None


def _check(parameters: Sequence[Tensor], owner: str) -> None:
    """An error unless these can share an arena."""
    if not parameters:
        raise ValueError(f"{owner}: no parameters to train")
    if not all(isinstance(p, Tensor) and p.origin is None for p in parameters):
        raise TypeError(
            f"{owner}: parameters must be a list of leaf Tensors, "
            "such as module.parameters() or [nn.Parameter(...)]"
        )
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) > 1:
        raise ValueError(
            f"{owner}: parameters of several dtypes {sorted(map(str, dtypes))}; use one"
        )
    backend.floating(dtypes.pop(), owner)

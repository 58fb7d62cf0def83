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

Know before reading: Tensor's `.data` and `.grad`, and what a view of a NumPy array is.

Know after: why an optimiser has to be made anew when a model moves to another device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from minigrad import backend
from minigrad.backend import Array
from minigrad.tensor import Tensor


class Arena:
    """The weights of some parameters, and their gradients, in two flat arrays.

    parameters: leaf Tensors of one dtype and of any shapes; from now on each `p.data` is a view of
    `weights`, of the same shape as before. owner: whose arena it is; error messages begin with it.
    weights, gradients: arrays of shape (n,), n being the number of entries of all parameters.
    ValueError for no parameters, one listed twice, or several dtypes; TypeError for other things.
    """

    def __init__(self, parameters: Sequence[Tensor], owner: str):
        _check(parameters, owner)
        self.parameters = parameters
        self.owner = owner

        like = parameters[0].data  # of the right dtype, on the right device
        n_weights = sum(p.size for p in parameters)
        self.weights: Array = np.zeros_like(like, shape=(n_weights,))
        self.gradients: Array = np.zeros_like(like, shape=(n_weights,))

        # Each parameter's part of the two arrays.
        self.slices: list[slice] = []
        self.weight_views: list[Array] = []
        self.gradient_views: list[Array] = []
        start = 0
        for p in parameters:
            part = slice(start, start + p.size)
            self.slices.append(part)
            self.weight_views.append(self.weights[part].reshape(p.shape))
            self.gradient_views.append(self.gradients[part].reshape(p.shape))
            p.grad = None
            start = part.stop
        self.attach()

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

    def blocks_with_gradient(self, size: int) -> Iterator[slice]:
        """Yield slices of the arena, each at most `size` long: all weights that have a gradient.

        A gradient that somebody has put into `p.grad` is copied into the arena first.
        """
        for start, stop in self._stretches():
            for first in range(start, stop, size):
                yield slice(first, min(first + size, stop))

    def _stretches(self) -> list[list[int]]:
        """[start, stop] of each stretch of the arena in which all parameters have a gradient."""
        stretches: list[list[int]] = []
        for p, part, storage in zip(self.parameters, self.slices, self.gradient_views):
            if p.grad is None:
                continue
            if p.grad is not storage:
                storage[...] = p.grad
            if stretches and stretches[-1][1] == part.start:
                stretches[-1][1] = part.stop
            else:
                stretches.append([part.start, part.stop])
        return stretches


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
    if len({id(p) for p in parameters}) < len(parameters):
        raise ValueError(f"{owner}: a parameter is listed twice")

"""Optimisers: how gradients change the weights. This is a lesson.

The gradient of a loss points to where the loss grows fastest, so a small step against it makes the
loss smaller. Here the loss is w^2, its gradient 2 w, and each step takes away a tenth of that:

    >>> import numpy as np
    >>> from minigrad import Tensor
    >>> from minigrad.optim import SGD
    >>> w = Tensor([4.0], requires_grad=True)
    >>> optimizer = SGD([w], learning_rate=0.1)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     np.sum(w ** 2).backward()
    ...     optimizer.step()
    ...     print(w.data.round(4))
    [3.2]
    [2.56]
    [2.048]

All optimisers do this. They differ in what they remember of earlier gradients, and in what they
make of it: that is one method, `update`. (AdamW shrinks the weights as well, before Adam's update.)
The rest is the same for all of them, and stands in the class `Optimizer`. Adam has its update
twice: as the paper has it, to be read, and a quick form that runs. A test holds one against the
other.

All weights lie in one flat array, and all gradients in another, so that an update is one formula
and not one for each parameter: `p.data` is a view into the flat array of weights, and `p.grad` into
that of gradients. The object that holds both arrays is an *arena* (arena.py, which need not be read
for this). It also knows which stretches of the arrays belong to parameters that have a gradient.

Know before reading: nn.py, for what a parameter is.

Know after: SGD with momentum, Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), how a
learning rate changes during training, and how to write another optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from math import cos, hypot, isfinite, pi, sqrt
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.arena import Arena
from minigrad.backend import Array
from minigrad.tensor import Tensor

# Weights updated at a time: Adam's five arrays of so many (weights, gradients, two moments and one
# to compute in) fit the processor's cache.
BLOCK = 32768


class Optimizer:
    """What all optimisers share: the two flat arrays, the count of steps, saving and loading.

    A new optimiser is a class with the method `update(w, g, *moments)`. It is given an array of
    weights and the gradient of each, and changes the weights in place. The moments are what it
    remembers of earlier gradients: `n_moments` arrays with a number for each weight, zeros at
    first, which `update` changes as well. SGD below is an example.

    parameters: leaf Tensors of one dtype, of any shapes. Those that are frozen (nn.py) stay as they
    are; one that is listed twice is trained once. learning_rate: how far a step goes; it may be
    changed at any time. TypeError and ValueError for parameters that cannot be trained together.

    n_steps: how many steps were made. weights, gradients: flat arrays of shape (n,), n being the
    number of entries of all parameters. moments: a list of arrays of that shape. t: while `update`
    runs, how often the weights that it was given have been changed, this time counted.
    """

    n_moments = 0
    update: Callable[..., None]

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float):
        self.arena = Arena(list(parameters), owner=type(self).__name__)
        self.parameters = self.arena.parameters
        # A Python number, beside which NumPy computes in the dtype of the weights.
        self.learning_rate = float(learning_rate)
        self.n_steps = 0
        self.t = 0
        self.moments = [np.zeros_like(self.weights) for _ in range(self.n_moments)]
        self.block_size = backend.at_a_time(self.weights, BLOCK)

    @property
    def weights(self) -> Array:
        """All weights, (n,)."""
        return self.arena.weights

    @property
    def gradients(self) -> Array:
        """All gradients, (n,); those of parameters whose `.grad` is None do not count."""
        return self.arena.gradients

    def __copy__(self):
        """copy.copy: another optimiser of the same parameters, with a memory of its own."""
        stay = {id(p): p for p in self.parameters}  # deepcopy takes these for copied already
        return copy.deepcopy(self, stay)

    def zero_grad(self) -> None:
        """Forget all gradients; without this, the next backward() adds to them."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient, a block of weights at a time.

        What was computed from these before cannot be differentiated any more (RuntimeError): see
        no_grad in tensor.py.
        """
        self.arena.attach()  # if somebody has put another array into a parameter: a view again
        self.n_steps += 1
        # A block is a slice of the flat arrays. Where a parameter had no gradient in some steps,
        # its weights have missed these. Where none ever was without, n_missed is 0: t is n_steps.
        for block, n_missed in self.arena.blocks_to_change(self.block_size):
            self.t = self.n_steps - n_missed
            self.update_block(block)

    def update_block(self, block: slice) -> None:
        """Let `update` change one part of the weights."""
        moments = [moment[block] for moment in self.moments]
        self.update(self.arena.weights[block], self.arena.gradients[block], *moments)

    def state_dict(self) -> dict[str, Any]:
        """What resuming exactly needs besides the weights.

        n_steps; n_missed, (n_parameters,), how many of these have passed over each parameter;
        copies of the moments, as `moment0.3` of the fourth parameter, of its shape; and a checksum
        of each parameter's weights, (n_parameters,), by which `load_state_dict` sees whether they
        are in the same order.
        """
        state: dict[str, Any] = {
            "n_steps": self.n_steps,
            "n_missed": np.array(self.arena.n_missed),
            "checksums": self.arena.checksums(),
        }
        for i, moment in enumerate(self.moments):
            for k, part in enumerate(self.arena.in_shape(backend.to_host(moment))):
                state[f"moment{i}.{k}"] = np.array(part)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The reverse of state_dict, in place.

        ValueError for the state of another kind of optimiser, or of parameters of other shapes; and
        for that of the same parameters in another order, provided that their weights were loaded
        before.
        """
        name = type(self).__name__
        own = self.state_dict()
        expected = {key: np.shape(value) for key, value in own.items()}
        found = {key: np.shape(value) for key, value in state.items()}
        if found != expected:
            raise ValueError(f"{name}: a state of {expected} is needed, this one has {found}")
        before, now = np.asarray(state["checksums"]), own["checksums"]
        if np.any(before != now) and np.array_equal(np.sort(before), np.sort(now)):
            raise ValueError(
                f"{name}: this is a state of the same parameters in another order; list them in "
                "the order in which they were when it was saved"
            )
        self.n_steps = int(state["n_steps"])
        self.arena.n_missed[:] = np.asarray(state["n_missed"]).tolist()
        for i, moment in enumerate(self.moments):
            parts = [np.ravel(state[f"moment{i}.{k}"]) for k in range(len(self.parameters))]
            backend.assign(moment, np.concatenate(parts))


class SGD(Optimizer):
    """Stochastic gradient descent: v = momentum * v + g, then w -= learning_rate * v.

    v, the velocity, is a sum of all gradients so far, in which each step multiplies the older ones
    by `momentum` (Polyak 1964; in the form that PyTorch has). Without momentum, v is the gradient
    itself. parameters: leaf Tensors of one dtype, of any shapes.
    """

    n_moments = 1

    def __init__(
        self, parameters: Iterable[Tensor], learning_rate: float = 1e-2, momentum: float = 0.0
    ):
        super().__init__(parameters, learning_rate)
        self.momentum = float(momentum)

    def update(self, w: Array, g: Array, v: Array) -> None:
        """v = momentum * v + g; w -= learning_rate * v. All of one shape, (n,)."""
        if self.momentum == 0.0:
            v[...] = g  # and not 0 * v + g, which is NaN for ever once a gradient was infinite
        else:
            v *= self.momentum
            v += g
        w -= self.learning_rate * v


class Adam(Optimizer):
    """A step for each weight by how well its gradients agree (Kingma & Ba 2015, algorithm 1).

    m is a running mean of the gradients, v one of their squares, and a step is

        w -= learning_rate * m_hat / (sqrt(v_hat) + eps)

    with both means corrected for their beginning, see `update_as_published`. Where all gradients of
    a weight are alike, the quotient is 1 or -1, whatever the scale of the loss; where they
    contradict each other it is small. So the first step is as long as the learning rate, unless the
    gradient is as small as eps:

        >>> for slope in (0.01, 100.0):
        ...     w = Tensor([4.0], requires_grad=True)
        ...     optimizer = Adam([w], learning_rate=0.1)
        ...     np.sum(slope * w).backward()
        ...     optimizer.step()
        ...     print(w.data.round(4))
        [3.9]
        [3.9]

    parameters: leaf Tensors of one dtype, of any shapes. betas: how much of each mean is kept at a
    step. eps: keeps the quotient finite where all gradients were 0. A parameter that has no
    gradient in some steps, because it is frozen or the loss goes without it, is as it would be had
    these steps not been.
    """

    n_moments = 2

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        super().__init__(parameters, learning_rate)
        beta1, beta2 = betas
        self.betas = (float(beta1), float(beta2))
        self.eps = float(eps)
        self.scratch = np.empty_like(self.weights[: self.block_size])

    def update_as_published(self, w: Array, g: Array, m: Array, v: Array) -> None:
        """Algorithm 1 of the paper, line by line. All of one shape, (n,); t counts the updates.

        Both means start at 0, and so are too small at first: the weights of the t gradients in them
        add up to 1 - beta^t only. Dividing by that gives m_hat and v_hat.
        """
        beta1, beta2 = self.betas
        t = self.t
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        w -= self.learning_rate * m_hat / (np.sqrt(v_hat) + self.eps)

    def update(self, w: Array, g: Array, sum_g: Array, sum_gg: Array) -> None:
        """The same steps, quicker; `step` calls it. All of one shape, (n,).

        It takes about two thirds of the time for many weights (400,000), and four fifths for few
        (2,000). Three things make it quicker. Each line of `_adam`, which follows, works in place,
        or in an array `s` that is kept for it. Each gradient is added as it is, so that the moments
        are sums here (in `state_dict` too, as moment0 and moment1), and the means of the paper are
        m = (1 - beta1) * sum_g and v = (1 - beta2) * sum_gg. And factors that are the same for all
        weights are put together beforehand: sqrt(v_hat) is sqrt(sum_gg) / c, with the number

            c = sqrt((1 - beta2^t) / (1 - beta2))

        and so m_hat / (sqrt(v_hat) + eps) is c * m_hat / (sqrt(sum_gg) + c * eps).
        """
        beta1, beta2 = self.betas
        t = self.t
        c = sqrt((1 - beta2**t) / (1 - beta2))
        length = self.learning_rate * c * (1 - beta1) / (1 - beta1**t)
        s = self.scratch[: w.size]
        _adam(w, g, sum_g, sum_gg, s, beta1, beta2, c * self.eps, length)


@backend.elementwise  # on a GPU in one call: see there
def _adam(w, g, sum_g, sum_gg, s, beta1, beta2, c_eps, length):
    """The update of Adam's weights, in place; all arrays (n,), all others numbers."""
    sum_g *= beta1
    sum_g += g

    np.multiply(g, g, out=s)
    sum_gg *= beta2
    sum_gg += s

    np.sqrt(sum_gg, out=s)
    s += c_eps
    np.divide(sum_g, s, out=s)
    s *= length
    w -= s


class AdamW(Adam):
    """Adam with decoupled weight decay: w -= learning_rate * weight_decay * w, then Adam's step.

    A penalty on large weights that is added to the loss is divided by sqrt(v_hat) like all of the
    gradient, so that it hardly acts where gradients are large. Done separately, it shrinks every
    weight by the same factor (Loshchilov & Hutter 2019, algorithm 2, in the form that PyTorch has:
    in the paper, the decay follows the schedule, but not the learning rate that it starts from).
    parameters: leaf Tensors of one dtype, of any shapes. undecayed: those of them that do not
    decay, such as biases and normalisation; in the flat arrays they come last. ValueError where one
    of these is not a parameter.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        undecayed: Iterable[Tensor] = (),
    ):
        # Those that decay come first in the flat arrays: then the decay is one product of a slice.
        parameters = {id(p): p for p in parameters}.values()  # each once
        left_out = {id(p) for p in undecayed}
        decayed = [p for p in parameters if id(p) not in left_out]
        others = [p for p in parameters if id(p) in left_out]
        if len(left_out) > len(others):
            raise ValueError("AdamW: undecayed holds a Tensor that is not one of the parameters")
        super().__init__(decayed + others, learning_rate, betas, eps)
        self.weight_decay = float(weight_decay)
        self.n_decayed = sum(p.size for p in decayed)  # the first so many weights

    def update_block(self, block: slice) -> None:
        """Weight decay, and then Adam's update, of a part of the weights."""
        decayed = self.weights[block.start : min(block.stop, self.n_decayed)]
        decayed *= 1 - self.learning_rate * self.weight_decay
        super().update_block(block)


class CosineSchedule:
    """The learning rate falls from its start to 0 over n_steps calls of step(), on half a cosine.

    After n calls it is start * (1 + cos(pi * n / n_steps)) / 2; Loshchilov & Hutter 2017, eq. 5,
    without restarts.
    """

    def __init__(self, optimizer: Optimizer, n_steps: int):
        self.optimizer = optimizer
        self.start = optimizer.learning_rate
        self.n_steps = n_steps
        self.n = 0

    def step(self) -> None:
        """Change the learning rate: call once after every step of the optimiser."""
        self.n += 1
        progress = min(self.n / self.n_steps, 1.0)
        self.optimizer.learning_rate = self.start * (1 + cos(pi * progress)) / 2


class StepSchedule:
    """The learning rate is multiplied by `factor` once in every so many calls of step().

    After n calls, learning_rate = start * factor^floor(n / every). So a rate that starts at 0.1,
    with every=2 and the default factor, goes for two steps at 0.1, two at 0.01, one at 0.001 ...:

        >>> optimizer = SGD([Tensor([1.0], requires_grad=True)], learning_rate=0.1)
        >>> schedule = StepSchedule(optimizer, every=2)
        >>> for _ in range(5):
        ...     print(round(optimizer.learning_rate, 6))  # of the step that is made here
        ...     schedule.step()
        0.1
        0.1
        0.01
        0.01
        0.001
    """

    def __init__(self, optimizer: Optimizer, every: int, factor: float = 0.1):
        self.optimizer = optimizer
        self.start = optimizer.learning_rate
        self.every = every
        self.factor = float(factor)
        self.n = 0

    def step(self) -> None:
        """Change the learning rate: call once after every step of the optimiser, or epoch."""
        self.n += 1
        self.optimizer.learning_rate = self.start * self.factor ** (self.n // self.every)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm.

    parameters: Tensors of any shapes; those without a gradient do not count, and one that is listed
    twice counts once. Returns the norm as it was: the square root of the sum of all squared
    entries. FloatingPointError, and all gradients untouched, where that is not finite.
    """
    gradients = [p.grad for p in dict.fromkeys(parameters) if p.grad is not None]
    norm = hypot(*map(_norm, gradients))
    if not isfinite(norm):
        raise FloatingPointError(f"clip_grad_norm: the norm of the gradients is {norm}")
    if norm > max_norm:
        for g in gradients:
            # In double: the factor may be too small for float32.
            np.multiply(g, max_norm / norm, out=g, dtype=np.float64, casting="same_kind")
    return norm


def _norm(x: Array) -> float:
    """The Euclidean norm of an array of any shape, also where the squares are out of range."""
    largest = float(np.max(np.abs(x))) if x.size else 0.0
    if largest == 0.0 or not isfinite(largest):
        return largest
    scaled = x.astype(np.float64) / largest
    return largest * sqrt(float(np.sum(np.square(scaled))))

"""Optimisers: what changes the weights, from their gradients.

Know before reading: nn.py. An optimiser owns an *arena*: one flat array for all weights and one for all gradients.
`p.data` and `p.grad` become views into them (`p.grad_storage` tells `backward` where to write), so that one update is a few
NumPy calls over one array however many parameters there are, done in blocks that stay in the processor's cache.

Know after: SGD, Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), and the usual schedules.
"""

from __future__ import annotations

import numpy as np

from minigrad import backend
from minigrad.tensor import Tensor

BLOCK = 32768  # weights updated at a time: Adam's four arrays of them fit the second-level cache (128 KiB each)


class Optimizer:
    """The arena, and what all optimisers share. `n_moments`: how many arrays of its own it keeps per weight.

    parameters: leaf Tensors of one dtype, any shapes. TypeError and ValueError for others.
    """

    n_moments = 0

    def __init__(self, parameters, learning_rate: float):
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: no parameters to train")
        if not all(isinstance(p, Tensor) and p.origin is None for p in self.parameters):
            raise TypeError(
                f"{type(self).__name__}: parameters must be a list of leaf Tensors, "
                "such as module.parameters() or [nn.Parameter(...)]"
            )
        kinds = {p.dtype for p in self.parameters}
        if len(kinds) > 1:
            raise ValueError(
                f"{type(self).__name__}: parameters of several dtypes {sorted(map(str, kinds))}; use one"
            )
        if len({id(p) for p in self.parameters}) < len(self.parameters):
            raise ValueError(f"{type(self).__name__}: a parameter is listed twice")
        self.learning_rate, self.n_steps = learning_rate, 0
        like, size = self.parameters[0].data, sum(p.size for p in self.parameters)
        self.weights, self.gradients = [np.zeros_like(like, shape=(size,)) for _ in range(2)]
        self.moments = [np.zeros_like(self.weights) for _ in range(self.n_moments)]
        self.block = backend.at_a_time(self.weights, BLOCK)
        self.scratch = np.empty_like(self.weights[: self.block])
        self.ends = np.cumsum([p.size for p in self.parameters]).tolist()
        self.views, self.homes = [], []
        for p, end in zip(self.parameters, self.ends):
            span = slice(end - p.size, end)
            self.views.append(self.weights[span].reshape(p.shape))
            self.homes.append(self.gradients[span].reshape(p.shape))
            p.grad = None
        self._adopt()

    def _adopt(self) -> None:
        """Make every p.data a view of the arena again, and its gradient's home, should somebody have replaced them."""
        for p, view, home in zip(self.parameters, self.views, self.homes):
            if p.data is not view:
                if p.data.shape != view.shape or backend.device_of(p.data) != backend.device_of(
                    view
                ):
                    raise ValueError(
                        f"{type(self).__name__}: a parameter of shape {view.shape} has become "
                        f"{p.data.shape} on {backend.device_of(p.data)}; make a new optimiser after that"
                    )
                view[...] = p.data
                p.data = view
            p.grad_storage = home

    def zero_grad(self) -> None:
        """Forget all gradients, so that the next backward() starts afresh."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        self._adopt()
        self.n_steps += 1
        for start, stop in self._spans():
            for a in range(start, stop, self.block):
                b = min(a + self.block, stop)
                self._update(slice(a, b), self.scratch[: b - a])

    def _spans(self):
        """(start, stop) of the stretches of the arena whose parameters have gradients."""
        spans = []
        for p, end, home in zip(self.parameters, self.ends, self.homes):
            if p.grad is None:
                continue
            if p.grad is not home:
                home[...] = p.grad
            if spans and spans[-1][1] == end - p.size:
                spans[-1][1] = end
            else:
                spans.append([end - p.size, end])
        return spans

    def _update(self, block, s) -> None:
        """Change the weights of one block (a slice of the arena); s is scratch of its size."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """What resuming exactly needs besides the weights: the step count and the moments (flat, as the arena)."""
        moments = {f"moment{i}": np.array(backend.to_host(m)) for i, m in enumerate(self.moments)}
        return {"n_steps": self.n_steps, **moments}

    def load_state_dict(self, state) -> None:
        """The reverse of state_dict, in place. ValueError for the state of another kind or size of optimiser."""
        expected = {"n_steps": (), **{f"moment{i}": m.shape for i, m in enumerate(self.moments)}}
        found = {name: np.shape(a) for name, a in state.items()}
        if found != expected:
            raise ValueError(
                f"{type(self).__name__}: a state of {expected} is needed, this one has {found}"
            )
        self.n_steps = int(state["n_steps"])
        for i, m in enumerate(self.moments):
            backend.assign(m, state[f"moment{i}"])


class SGD(Optimizer):
    """w -= learning_rate * v with v = momentum * v + gradient (PyTorch's convention; v starts at the first gradient)."""

    n_moments = 1

    def __init__(self, parameters, learning_rate: float = 1e-2, momentum: float = 0.0):
        super().__init__(parameters, learning_rate)
        self.momentum = momentum

    def _update(self, block, s):
        v = self.moments[0][block]
        v *= self.momentum
        v += self.gradients[block]
        self.weights[block] -= np.multiply(v, self.learning_rate, out=s)


class Adam(Optimizer):
    """w -= learning_rate * m' / (sqrt(v') + eps), m' and v' the bias-corrected running means of g and g^2.

    parameters: list of Tensors of one dtype; betas: decay of the two means a step (Kingma & Ba 2015, algorithm 1). Steps
    are counted for all parameters together: one without a gradient in some steps is corrected as if it had had one.
    """

    n_moments = 2

    def __init__(
        self, parameters, learning_rate: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-8
    ):
        super().__init__(parameters, learning_rate)
        self.betas, self.eps = betas, eps

    def _update(self, block, s):
        """The moments are kept as m/(1-b1) and v/(1-b2), so that a step is one pass over the arrays less for each; the
        bias corrections are folded into the step size and eps."""
        (b1, b2), g, m, v = (
            self.betas,
            self.gradients[block],
            self.moments[0][block],
            self.moments[1][block],
        )
        correction = ((1.0 - b2**self.n_steps) / (1.0 - b2)) ** 0.5
        m *= b1
        m += g
        v *= b2
        v += np.multiply(g, g, out=s)
        np.sqrt(v, out=s)
        s += self.eps * correction
        np.divide(m, s, out=s)
        s *= self.learning_rate * correction * (1.0 - b1) / (1.0 - b1**self.n_steps)
        self.weights[block] -= s


class AdamW(Adam):
    """Adam with decoupled weight decay: w -= learning_rate * weight_decay * w beside Adam's step.

    undecayed: those of the parameters that are left out of the decay (biases, normalisation). They come last in the
    arena, so that the decayed weights of a block are one slice. ValueError for a stranger among them.
    """

    def __init__(
        self,
        parameters,
        learning_rate: float = 1e-3,
        betas=(0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        undecayed=(),
    ):
        parameters, left_out = list(parameters), {id(p) for p in undecayed}
        if not left_out <= {id(p) for p in parameters}:
            raise ValueError("AdamW: undecayed holds a Tensor that is not one of the parameters")
        parameters = sorted(parameters, key=lambda p: id(p) in left_out)  # the sort is stable
        super().__init__(parameters, learning_rate, betas, eps)
        self.weight_decay, self.n_decayed = (
            weight_decay,
            sum(p.size for p in parameters if id(p) not in left_out),
        )

    def _update(self, block, s):
        self.weights[block.start : min(block.stop, self.n_decayed)] *= (
            1.0 - self.learning_rate * self.weight_decay
        )
        super()._update(block, s)


def clip_grad_norm(parameters, max_norm: float) -> float:
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm. Returns the norm before.

    FloatingPointError, and all gradients untouched, where the norm is not finite.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = (
        float(sum(float(np.sum(np.square(p.grad.astype(np.float64)))) for p in parameters)) ** 0.5
    )
    if not np.isfinite(norm):
        raise FloatingPointError(f"clip_grad_norm: the norm of the gradients is {norm}")
    if norm > max_norm:
        for p in parameters:
            p.grad *= max_norm / norm
    return norm


class CosineSchedule:
    """The learning rate falls from its start to 0 over n_steps calls of step(), on half a cosine (Loshchilov & Hutter 2017)."""

    def __init__(self, optimizer: Optimizer, n_steps: int):
        self.optimizer, self.start, self.n_steps, self.n = (
            optimizer,
            optimizer.learning_rate,
            n_steps,
            0,
        )

    def step(self) -> None:
        """Call once after every optimiser step."""
        self.n += 1
        self.optimizer.learning_rate = (
            self.start * 0.5 * (1.0 + np.cos(np.pi * min(self.n / self.n_steps, 1.0)).item())
        )


class StepSchedule:
    """The learning rate = start * factor^floor(n / every) after n calls of step(): multiplied by `factor` every so often."""

    def __init__(self, optimizer: Optimizer, every: int, factor: float = 0.1):
        self.optimizer, self.start, self.every, self.factor, self.n = (
            optimizer,
            optimizer.learning_rate,
            every,
            factor,
            0,
        )

    def step(self) -> None:
        """Call once after every optimiser step (or epoch)."""
        self.n += 1
        self.optimizer.learning_rate = self.start * self.factor ** (self.n // self.every)

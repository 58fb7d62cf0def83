"""Layers: modules that own parameters, and compute with functional.py.

Know before reading: functional.py. A Module is an object whose attributes are parameters (leaf Tensors), other modules,
lists of modules, or plain arrays that it lists as `buffers` (state that is saved but not trained). There is no
registration: `named_parameters` walks the attributes. Calling a module runs it: `module(x, rng)`; only layers that draw
noise look at `rng`.

Know after: what PyTorch's torch.nn does when a layer is made, moved, saved, or switched to evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special

from minigrad import backend, functional
from minigrad.tensor import Tensor


def Parameter(data, dtype=None) -> Tensor:
    """A leaf Tensor that is trained: a copy of `data` (any shape), float32 unless data or dtype say otherwise."""
    data = np.array(
        data, dtype=dtype if dtype is not None or hasattr(data, "dtype") else np.float32
    )
    return Tensor(data if data.dtype.kind == "f" else data.astype(np.float32), requires_grad=True)


_streams = np.random.default_rng(
    0
)  # each layer made without a generator gets a stream of its own, by order of making


class Module:
    """What has parameters: assign Tensors, modules, or lists of modules to attributes, and write `__call__`."""

    buffers = ()  # names of attributes that are saved and moved with the parameters, but not trained
    training = True

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules directly inside."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from (
                    (f"{name}.{i}", m) for i, m in enumerate(value) if isinstance(m, Module)
                )

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) of this and of all modules inside, in the order of definition."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, Tensor of any shape) of all parameters, in the order of definition."""
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.requires_grad and value.origin is None:
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_buffers(self) -> Iterator[tuple[str, Module, str]]:
        """Yield (dotted name, owner, attribute) of all buffers."""
        for prefix, module in self.named_modules():
            yield from (
                (f"{prefix}.{name}" if prefix else name, module, name) for name in module.buffers
            )

    def parameters(self) -> list[Tensor]:
        """All parameters, of any shapes, as a list."""
        return [p for _, p in self.named_parameters()]

    @property
    def device(self) -> str:
        """Where the parameters are, "numpy" or "cupy"; "numpy" for a module without any."""
        return next((backend.device_of(p.data) for p in self.parameters()), "numpy")

    def state_dict(self) -> dict[str, np.ndarray]:
        """Names to host copies of all parameters and buffers; shapes and dtypes stay."""
        state = {name: np.array(p.numpy()) for name, p in self.named_parameters()}
        state.update(
            {name: np.array(backend.to_host(getattr(m, a))) for name, m, a in self.named_buffers()}
        )
        return state

    def load_state_dict(self, state) -> None:
        """Write arrays into parameters and buffers, in place. ValueError for missing or unknown names and wrong shapes."""
        targets = {name: p.data for name, p in self.named_parameters()}
        targets.update({name: getattr(m, a) for name, m, a in self.named_buffers()})
        missing, unknown = (
            sorted(targets.keys() - state.keys()),
            sorted(state.keys() - targets.keys()),
        )
        if missing or unknown:
            raise ValueError(f"load_state_dict: missing names {missing}, unknown names {unknown}")
        for name, target in targets.items():
            if np.shape(state[name]) != target.shape:
                raise ValueError(
                    f"load_state_dict: {name} has shape {np.shape(state[name])}, not {target.shape}"
                )
        for name, target in targets.items():
            backend.assign(target, state[name])

    def train(self, mode: bool = True) -> Module:
        """Switch to training (dropout drops, batch norm uses the minibatch), or with False to evaluation. Returns self."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation: deterministic. Returns self."""
        return self.train(False)

    def to(self, device: str) -> Module:
        """Move parameters and buffers to "numpy" or "cupy". Returns self. An optimiser is to be made after this."""
        for p in self.parameters():
            moved = backend.to_device(p.data, device)
            if moved is not p.data:
                p.data, p.grad, p.grad_storage = moved, None, None
        for _, module, name in self.named_buffers():
            setattr(module, name, backend.to_device(getattr(module, name), device))
        return self


class Linear(Module):
    """y = x @ weight.T + bias. weight (n_out, n_in) and bias (n_out,) start uniform within 1/sqrt(n_in), as PyTorch's.

    x: (..., n_in), or CSR. The bound is that of He et al. 2015 with PyTorch's a = sqrt(5).
    """

    def __init__(
        self, n_in: int, n_out: int, *, dtype=np.float32, rng: np.random.Generator | None = None
    ):
        rng = rng if rng is not None else _streams.spawn(1)[0]
        bound = 1.0 / np.sqrt(max(n_in, 1))
        self.weight = Parameter(rng.uniform(-bound, bound, (n_out, n_in)), dtype)
        self.bias = Parameter(rng.uniform(-bound, bound, n_out), dtype)

    def __call__(self, x, rng=None):
        return functional.linear(x, self.weight, self.bias)


class BatchNorm1d(Module):
    """Batch normalisation, functional.batch_norm, with running statistics for evaluation. x: (n, n_features).

    momentum is PyTorch's: running = (1 - momentum) * running + momentum * minibatch's; the running variance takes the
    unbiased one (n - 1). In training a minibatch needs two rows (ValueError otherwise).
    """

    buffers = ("running_mean", "running_var")

    def __init__(
        self, n_features: int, *, momentum: float = 0.1, eps: float = 1e-5, dtype=np.float32
    ):
        self.weight, self.bias = (
            Parameter(np.ones(n_features), dtype),
            Parameter(np.zeros(n_features), dtype),
        )
        self.running_mean, self.running_var = (
            np.zeros(n_features, dtype),
            np.ones(n_features, dtype),
        )
        self.momentum, self.eps = momentum, eps

    def __call__(self, x, rng=None):
        if not self.training:
            scale = self.weight / np.sqrt(self.running_var + self.eps)
            return x * scale + (self.bias - self.running_mean * scale)
        if len(x) < 2:
            raise ValueError(
                f"BatchNorm1d in training needs at least 2 rows, not {len(x)}: call .eval() to predict"
            )
        y, mean, var = functional.batch_norm(x, self.weight, self.bias, self.eps)
        for running, new in (
            (self.running_mean, mean),
            (self.running_var, var * (len(x) / (len(x) - 1))),
        ):
            running *= 1.0 - self.momentum
            running += self.momentum * new
        return y


class LayerNorm(Module):
    """Each row to mean 0 and variance 1, then scaled and shifted by learned weight and bias.

    x: (..., n_features). Ba et al. 2016, eq. 4.
    """

    def __init__(self, n_features: int, *, eps: float = 1e-5, dtype=np.float32):
        self.weight, self.bias = (
            Parameter(np.ones(n_features), dtype),
            Parameter(np.zeros(n_features), dtype),
        )
        self.eps = eps

    def __call__(self, x, rng=None):
        return functional.layer_norm(x, self.weight, self.bias, self.eps)


class Dropout(Module):
    """In training, each entry is 0 with probability p and divided by 1 - p otherwise; in evaluation nothing happens.

    The mask comes from the generator that the call is given, or from one of its own (Srivastava et al. 2014).
    ValueError for a p outside of [0, 1).
    """

    def __init__(self, p: float = 0.5, seed: int | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), not {p}")
        self.p, self.rng = p, _streams.spawn(1)[0] if seed is None else np.random.default_rng(seed)

    def __call__(self, x, rng=None):
        if not self.training or self.p == 0:
            return x
        rng = rng if rng is not None else self.rng
        mask = (rng.random(x.shape, dtype=np.float32) >= self.p).astype(x.dtype)
        mask /= 1.0 - self.p
        return functional.dropout(
            x, backend.to_device(mask, backend.device_of(x))
        )  # a generator of its own is the host's


class ReLU(Module):
    """max(x, 0)."""

    def __call__(self, x, rng=None):
        return functional.relu(x)


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x)), elementwise."""

    def __call__(self, x, rng=None):
        return special.expit(x)


class Softmax(Module):
    """y = exp(x) / sum of exp(x), along the last axis."""

    def __call__(self, x, rng=None):
        return functional.softmax(x)


class Sequential(Module):
    """Layers one after the other: Sequential(Linear(8, 4), ReLU(), ...).

    >>> network = Sequential(Linear(8, 4), ReLU(), Linear(4, 1))
    >>> network(np.ones((5, 8), np.float32)).shape
    (5, 1)
    >>> [(name, p.shape) for name, p in network.named_parameters()][:2]
    [('layers.0.weight', (4, 8)), ('layers.0.bias', (4,))]
    """

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def __call__(self, x, rng=None):
        for layer in self.layers:
            x = layer(x, rng)
        return x

    def __getitem__(self, i):
        return self.layers[i]

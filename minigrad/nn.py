"""Layers, and the modules that networks are built of. This is a lesson.

A network is a formula with many parameters. A *module* is an object that owns some of them and
knows its part of the formula; networks are modules that hold other modules:

    >>> import numpy as np
    >>> from minigrad import functional
    >>> from minigrad.nn import Linear, Module
    >>> class Network(Module):
    ...     def __init__(self):
    ...         self.hidden = Linear(3, 8)
    ...         self.out = Linear(8, 1)
    ...
    ...     def __call__(self, x, rng=None):
    ...         return self.out(functional.relu(self.hidden(x)))
    >>> network = Network()
    >>> network(np.ones((5, 3), np.float32)).shape
    (5, 1)
    >>> [(name, p.shape) for name, p in network.named_parameters()]
    [('hidden.weight', (8, 3)), ('hidden.bias', (8,)), ('out.weight', (1, 8)), ('out.bias', (1,))]

Nothing was registered: `named_parameters` looks through the attributes of the object. It finds the
parameters among them, and goes on into the modules, and into lists of modules. Anything else, such
as a list of parameters or a dict of modules, it does not see. What it finds is what an optimiser
trains, what a file of weights holds, and what moves to a GPU.

A parameter can be *frozen*: it then gets no gradient, and optimisers leave it as it is. All else
that is done with parameters, such as saving and moving, is done with it too.

    >>> network.hidden.weight.requires_grad = False
    >>> np.sum(network(np.ones((5, 3), np.float32))).backward()
    >>> [name for name, p in network.named_parameters() if p.grad is None]
    ['hidden.weight']

Weights are *tied* where two modules hold the same Tensor. It is one parameter, trained once.

    >>> network.out.weight = network.hidden.bias
    >>> [name for name, p in network.named_parameters()]
    ['hidden.weight', 'hidden.bias', 'out.bias']

Every layer of this file is called in the same way, `layer(x, rng)`. `rng` is a generator of random
numbers, by which a caller can fix all the noise of a step; only layers that draw noise, such as
Dropout, look at it. x may be a plain array or a Tensor, and what comes back is a Tensor wherever a
Tensor went in, such as a weight: in annotations, `Array` means either.

Know before reading: functional.py, for what the layers compute.

Know after: what PyTorch's torch.nn does when a layer is made, moved, saved, or switched to
evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from scipy import special

from minigrad import arena, backend, functional
from minigrad.backend import Array
from minigrad.kernels import as_dense
from minigrad.tensor import Tensor


def Parameter(data: Any, dtype: Any = None) -> Tensor:
    """A Tensor to be trained: a leaf with requires_grad, holding a copy of `data`, of any shape.

    dtype: float32 or float64, by default that of a floating array, and float32 for all else.
    TypeError for another, also where it is that of the data. `p.requires_grad = False` freezes it.
    """
    if dtype is None:
        is_floating = hasattr(data, "dtype") and data.dtype.kind == "f"
        dtype = data.dtype if is_floating else np.float32
    values = np.array(data, backend.floating(dtype, "Parameter"))
    return Tensor(values, requires_grad=True)


def start_at(p: Tensor, values: Any) -> None:
    """Let a parameter begin at these values, of its shape; one that is frozen stays as it is."""
    if p.requires_grad:
        backend.assign(p.data, values)


# Layers that are made without a generator take the next one of these: two layers of the same
# shape start differently, and yet a program gets the same numbers whenever it runs.
_streams = np.random.default_rng(0)


def _own_stream() -> np.random.Generator:
    return _streams.spawn(1)[0]


class Module:
    """What owns parameters. A subclass assigns its parts to attributes, and defines `__call__`.

    Parts are parameters (leaf Tensors of any shape that were made to be trained, frozen or not),
    other modules, and lists of modules; what is in other containers is not trained, saved or moved.
    `buffers` names further attributes: arrays that are saved and moved, but not trained. `training`
    says whether the module is in training or in evaluation; it makes a difference to Dropout and
    BatchNorm1d.
    """

    buffers: tuple[str, ...] = ()
    training = True
    trained_on: dict[str, int] | None = None  # rows and epochs, as `minigrad.fit` sets it
    __call__: Callable[..., Any]

    # ------------------------------------------------------------------------ what there is inside
    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules directly inside, those in lists included."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (dotted name, module) of this and of all modules inside, in order of definition.

        The name of this module itself is the prefix.
        """
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(_dotted(prefix, name))

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (dotted name, Tensor of any shape) of all parameters, in order of definition.

        One that has several names comes once, with the first of them.
        """
        found = set()
        for name, p in self._parameters_by_all_names():
            if p not in found:
                found.add(p)
                yield name, p

    def _parameters_by_all_names(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor) and value.is_parameter:
                    yield _dotted(prefix, name), value

    def named_buffers(self) -> Iterator[tuple[str, Module, str]]:
        """Yield (dotted name, module, attribute) of all buffers: the array is module.attribute."""
        for prefix, module in self.named_modules():
            for name in module.buffers:
                yield _dotted(prefix, name), module, name

    def parameters(self) -> list[Tensor]:
        """All parameters, of any shapes, as a list, each once."""
        return [p for _, p in self.named_parameters()]

    # -------------------------------------------------------------------------- saving and loading
    def _arrays(self) -> dict[str, Array]:
        """Dotted name -> the array itself, of all parameters and then of all buffers."""
        arrays = {name: p.data for name, p in self._parameters_by_all_names()}
        for name, module, attribute in self.named_buffers():
            arrays[name] = getattr(module, attribute)
        return arrays

    def state_dict(self) -> dict[str, np.ndarray]:
        """Dotted name -> a copy on the host, of all parameters and buffers; any shapes.

        A parameter that has several names is there under each.
        """
        arrays = self._arrays()
        return dict(zip(arrays, backend.copies_on_host(list(arrays.values()))))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write arrays into the parameters and buffers, in place, keeping their dtypes.

        ValueError, and nothing is written, where a name is missing or unknown, a shape is wrong, or
        one parameter would have to be two different arrays.
        """
        arrays = self._arrays()
        missing = sorted(arrays.keys() - state.keys())
        unknown = sorted(state.keys() - arrays.keys())
        if missing or unknown:
            raise ValueError(f"load_state_dict: missing names {missing}, unknown names {unknown}")
        for name, array in arrays.items():
            shape = np.shape(state[name])
            if shape != array.shape:
                raise ValueError(f"load_state_dict: {name} has shape {shape}, not {array.shape}")
        first_names: dict[int, str] = {}
        for name, array in arrays.items():
            first = first_names.setdefault(id(array), name)
            if first != name and not np.array_equal(state[first], state[name], equal_nan=True):
                raise ValueError(
                    f"load_state_dict: {first} and {name} are one parameter here, "
                    "and differ in the state; give them Tensors of their own first"
                )
        for name, array in arrays.items():
            backend.assign(array, state[name])

    # --------------------------------------------------------------- training, evaluation, devices
    def train(self, mode: bool = True) -> Self:
        """Switch this and all modules inside to training, or with False to evaluation.

        In training, dropout drops and batch norm uses the minibatch's statistics. Returns self.
        """
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch to evaluation: deterministic. Returns self."""
        return self.train(False)

    @property
    def device(self) -> str:
        """Where the parameters are: "numpy" or "cupy"; "numpy" for a module without any."""
        for _, p in self.named_parameters():
            return backend.device_of(p.data)
        return "numpy"

    def to(self, device: str) -> Self:
        """Move parameters and buffers to "numpy" or "cupy". Returns self.

        What moves loses its gradient; make optimisers after this.
        """
        for p in self.parameters():
            moved = backend.to_device(p.data, device)
            if moved is not p.data:
                p.data = moved
                arena.leave(p)
        for _, module, attribute in self.named_buffers():
            setattr(module, attribute, backend.to_device(getattr(module, attribute), device))
        return self


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


# -------------------------------------------------------------------------- layers with parameters
class Linear(Module):
    """A linear map: y = x @ weight.T + bias.

    x: (..., n_in), or a CSR matrix (n, n_in); y: (..., n_out). weight: (n_out, n_in); bias:
    (n_out,). Both start uniform within 1/sqrt(n_in), as in PyTorch: the bound of He et al. 2015,
    where a, the negative slope of a leaky ReLU, is sqrt(5). rng: draws these; by default each layer
    has a generator of its own. With n_in = 0, y is the bias. ValueError where n_in or n_out is not
    a whole number >= 0.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        dtype: Any = np.float32,
        rng: np.random.Generator | None = None,
    ):
        for name, n in (("n_in", n_in), ("n_out", n_out)):
            if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or n < 0:
                raise ValueError(f"Linear: {name} must be a whole number >= 0, not {n!r}")
        if rng is None:
            rng = _own_stream()
        bound = 1.0 / np.sqrt(max(n_in, 1))
        self.weight = Parameter(rng.uniform(-bound, bound, (n_out, n_in)), dtype)
        self.bias = Parameter(rng.uniform(-bound, bound, n_out), dtype)

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        return functional.linear(x, self.weight, self.bias)


class BatchNorm1d(Module):
    """Batch normalisation: y = weight * (x - mean) / sqrt(var + eps) + bias.

    x, y: (n, n_features); weight, bias: (n_features,). Ioffe & Szegedy 2015, algorithm 1. In
    training, mean and var are those of each feature over the rows of the minibatch, of which there
    must be two at least (ValueError otherwise). In evaluation a row must not depend on what others
    it comes with: mean and var are then running means over the minibatches of the training,

        running = (1 - momentum) * running + momentum * that of the minibatch

    where the running variance takes the unbiased one, divided by n - 1. All this is as in PyTorch.
    TypeError for a sparse x.
    """

    buffers = ("running_mean", "running_var")

    def __init__(
        self,
        n_features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        dtype: Any = np.float32,
    ):
        self.weight = Parameter(np.ones(n_features), dtype)
        self.bias = Parameter(np.zeros(n_features), dtype)
        self.running_mean = np.zeros(n_features, self.weight.dtype)
        self.running_var = np.ones(n_features, self.weight.dtype)
        self.momentum = float(momentum)  # a number of NumPy's would make float32 arrays float64
        self.eps = float(eps)

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        x = as_dense(x, "BatchNorm1d: x")
        if not self.training:
            # The same formula with its constants put together: one product and one sum over x.
            scale = self.weight / np.sqrt(self.running_var + self.eps)
            return x * scale + (self.bias - self.running_mean * scale)
        n = x.shape[0] if x.ndim else 1
        if n < 2:
            raise ValueError(
                f"BatchNorm1d in training needs at least 2 rows, not {n}: call .eval() to predict"
            )
        y, mean, var = functional.batch_norm(x, self.weight, self.bias, self.eps)
        kept = 1.0 - self.momentum
        _update(self.running_mean, self.running_var, mean, var, kept, self.momentum, n / (n - 1))
        return y


@backend.elementwise  # on a GPU in one call: see there
def _update(running_mean, running_var, mean, var, kept, momentum, unbiasing):
    """Move running statistics towards those of the minibatch, in place. All (n_features,)."""
    running_mean *= kept
    running_mean += momentum * mean
    running_var *= kept
    running_var += momentum * (var * unbiasing)


class LayerNorm(Module):
    """Layer normalisation: y = weight * (x - mean) / sqrt(var + eps) + bias, each row by itself.

    x, y: (..., n_features); weight, bias: (n_features,). mean and var are over the features of one
    row, so training and evaluation are the same. Ba et al. 2016, eq. 4.
    """

    def __init__(self, n_features: int, *, eps: float = 1e-5, dtype: Any = np.float32):
        self.weight = Parameter(np.ones(n_features), dtype)
        self.bias = Parameter(np.zeros(n_features), dtype)
        self.eps = float(eps)

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        return functional.layer_norm(x, self.weight, self.bias, self.eps)


# ----------------------------------------------------------------------- layers without parameters
class Dropout(Module):
    """In training, each entry is 0 with probability p, and otherwise divided by 1 - p.

    So an entry keeps its expectation, p * 0 + (1 - p) * x / (1 - p) = x; in evaluation, y = x. x:
    an array or Tensor of any shape, whole numbers becoming float32; or a sparse matrix, of which
    the stored entries are dropped as they would be in a dense array, and which stays sparse (CSR).
    The mask comes from the generator that the call is given, or else from one of the layer's own,
    which starts from `seed`. Srivastava et al. 2014, section 4. ValueError for a p outside of
    [0, 1).
    """

    def __init__(self, p: float = 0.5, seed: int | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be in [0, 1), not {p}")
        self.p = p
        self.rng = _own_stream() if seed is None else np.random.default_rng(seed)

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        if not self.training or self.p == 0:
            return x
        if rng is None:
            rng = self.rng
        if not backend.is_sparse(x):
            x = as_dense(x, "Dropout: x")
        if x.dtype.kind != "f":
            x = x.astype(np.float32)
        is_kept = rng.random(x.shape, dtype=np.float32) >= self.p
        mask = np.divide(is_kept, 1.0 - self.p, dtype=x.dtype)
        # The layer's own generator draws on the host, wherever x may be.
        return functional.dropout(x, backend.to_device(mask, backend.device_of(x)))


class ReLU(Module):
    """y = max(x, 0), elementwise."""

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        return functional.relu(x)


class Sigmoid(Module):
    """y = 1 / (1 + exp(-x)), elementwise."""

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        return special.expit(as_dense(x, "Sigmoid: x"))


class Softmax(Module):
    """y = exp(x) / sum of exp(x), along the last axis."""

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        return functional.softmax(x)


class Sequential(Module):
    """Layers one after the other, each called on what the one before it returned.

    >>> network = Sequential(Linear(8, 4), ReLU(), Linear(4, 1))
    >>> network(np.ones((5, 8), np.float32)).shape
    (5, 1)
    >>> [(name, p.shape) for name, p in network.named_parameters()][:2]
    [('layers.0.weight', (4, 8)), ('layers.0.bias', (4,))]
    """

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def __call__(self, x: Array, rng: np.random.Generator | None = None) -> Array:
        for layer in self.layers:
            x = layer(x, rng)
        return x

    def __getitem__(self, i: int) -> Module:
        return self.layers[i]

"""`fused`, which puts a hand-written kernel beside its twin; and the kernels of functional.py.

This file is engineering. A student may stop after `fused`.

Some formulas are worth a kernel: code that makes fewer passes over memory than the formula would,
and that has its gradients by hand. A kernel is a pair of functions of NumPy arrays. The first one,
forward, computes the result. The second one, backward, turns the gradient of the result into the
gradients of all inputs at once, because these often share work.

Beside each kernel stands its *twin*: the same function as a plain formula of a few lines.

    >>> def forward(needs, x):
    ...     return x * x * x, None
    >>> def backward(g, y, saved, needs, x):
    ...     return [3.0 * g * x * x]
    >>> @fused(forward, backward)
    ... def cube(x):
    ...     return x**3
    >>> from minigrad import Tensor
    >>> t = Tensor([1.0, 2.0], requires_grad=True)
    >>> cube(t)
    Tensor([1., 8.], from cube)
    >>> cube.twin(t)
    Tensor([1., 8.], from power)

The twin says what the kernel means, and the tests hold the kernel against it. It is also what runs
where the kernel cannot: on arrays that are not NumPy's, and where the gradient itself is to be
differentiated. So a kernel may use buffers and tricks without a word about devices or recording.
Kernels are pure: a dropout mask is an input, and nothing that goes in is written to.

Know before reading: table.py, and ops.py for the rules that operations without a kernel have.

Know after: how the functions of functional.py are computed, and what to write for a new kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps

import numpy as np
from scipy import sparse

from minigrad.backend import Array
from minigrad.fused import fuse


def fused(forward: Callable, backward: Callable, name: str | None = None) -> Callable:
    """Decorator: the plain formula that follows is the twin of this kernel.

    forward(needs, *inputs, **keywords) returns (y, saved): the result, and what backward wants to
    have kept. needs says of each input whether its gradient will be asked for.

    backward(g, y, saved, needs, *inputs, **keywords) returns one gradient per input, from the
    gradient g of y; None for an input that needs none. A large gradient may be given as a function
    instead: the sweep calls it with an array to write into, or with None for a new array.

    Both see NumPy arrays and SciPy's CSR matrices only. The inputs go by position; what the twin
    takes by keyword only, the kernel does too. name: the operation's name in the table, the twin's
    by default.

    Returns the function that takes Tensors as well as arrays; its `.twin` is the formula.
    """

    def beside(twin: Callable) -> Callable:
        entry = fuse(twin, forward, backward, name or twin.__name__)

        @wraps(twin)  # so that help() shows the twin's words and arguments
        def call(*inputs, **keywords):
            return entry(*inputs, **keywords)

        call.twin = twin  # type: ignore[attr-defined]  # a function may have attributes
        return call

    return beside


# ------------------------------------------------------------------------------------------ linear
def linear_forward(needs, x, weight, bias) -> tuple:
    """x @ weight.T + bias, with the bias added in place. Keeps x: dense, and of a floating dtype.

    Shapes: as functional.linear has them.
    """
    x = x.toarray() if sparse.issparse(x) else x
    x = x if x.dtype.kind == "f" else x.astype(weight.dtype)
    y = np.matmul(x, weight.T)
    y += bias
    return y, x


def linear_backward(g, y, x, needs, _, weight, bias) -> tuple:
    """The gradients of x, weight and bias. The weight's is written where the sweep wants it.

    With one row of g and x for each vector: dx = g @ weight, dweight = g.T @ x, dbias = sum of g.
    """
    rows = g.reshape(-1, g.shape[-1])

    def d_weight(out):
        return np.matmul(rows.T, x.reshape(-1, x.shape[-1]), out=out)

    return (
        g @ weight if needs[0] else None,
        d_weight if needs[1] else None,
        np.sum(rows, axis=0) if needs[2] else None,
    )


# -------------------------------------------------------------------------------------------- relu
def relu_forward(needs, x) -> tuple:
    """max(x, 0) elementwise, in one pass."""
    return np.maximum(x, 0), None


def relu_backward(g, y, saved, needs, x) -> list:
    """g where x was positive, elementwise: there, and only there, y is not 0."""
    return [g * (y != 0)]


# ----------------------------------------------------------------------------------------- softmax
def highest(x, axis) -> np.ndarray:
    """The maximum over `axis`, kept with length 1; 0 where it is not finite. x: any shape.

    Subtracted before exp, it keeps the largest exponent at 0.
    """
    top = np.max(x, axis=axis, keepdims=True)
    return np.where(np.isfinite(top), top, np.zeros_like(top))


def softmax_forward(needs, x, *, axis=-1) -> tuple:
    """exp(x) / sum of exp(x), in one array. x: any shape."""
    y = x - highest(x, axis)
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y, None


def softmax_backward(g, y, saved, needs, x, *, axis=-1) -> list:
    """dx = y g - y sum(y g), with the sum over `axis`; any shape."""
    gy = g * y
    gy -= y * np.sum(gy, axis=axis, keepdims=True)
    return [gy]


def log_softmax_forward(needs, x, *, axis=-1) -> tuple:
    """x - log of the sum of exp(x). Keeps softmax(x), if a gradient is needed. x: any shape."""
    y = x - highest(x, axis)
    e = np.exp(y)
    total = np.sum(e, axis=axis, keepdims=True)
    y -= np.log(total)
    if not needs[0]:
        return y, None
    e /= total
    return y, e


def log_softmax_backward(g, y, softmax_of_x, needs, x, *, axis=-1) -> list:
    """dx = g - softmax(x) sum(g), with the sum over `axis`; any shape."""
    gx = softmax_of_x * np.sum(g, axis=axis, keepdims=True)
    return [np.subtract(g, gx, out=gx)]


# -------------------------------------------------------------------------------------- batch norm
def batch_norm_forward(needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """centred * weight / sqrt(var + eps) + bias, with one product per entry.

    x and centred, which is x minus its mean over the rows: (n, n_features); the others
    (n_features,).
    """
    return centred * (weight / np.sqrt(var + eps)) + bias, None


def batch_norm_backward(g, y, saved, needs, x, weight, bias, *, centred, var, eps) -> tuple:
    """The gradients of x, weight and bias, in two passes over the minibatch; shapes as forward.

    With u = centred / sqrt(var + eps), and all means over the rows:

        dx = weight / sqrt(var + eps) * (g - mean(g) - u mean(g u))
    """
    n = len(g)
    inverse_std = 1.0 / np.sqrt(var + eps)
    sum_g = np.sum(g, axis=0)
    sum_gu = np.einsum("ij,ij->j", g, centred) * inverse_std
    dx = None
    if needs[0]:
        dx = centred * (-inverse_std * sum_gu / n)
        dx += g
        dx -= sum_g / n
        dx *= weight * inverse_std
    return dx, sum_gu, sum_g


# ----------------------------------------------------------------------- divergence of two normals
def weak_log(x: Array) -> Array:
    """log(x), elementwise; of a Python number it is a Python number.

    NumPy calls these weak: beside a float32 array they do not make the result float64.
    """
    return math.log(x) if isinstance(x, (int, float)) else np.log(x)


def normal_kl_forward(needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """KL of two normal distributions, elementwise, in nats; distributions.py has the formula."""
    squares = q_scale**2 + (q_loc - p_loc) ** 2
    return weak_log(p_scale) - weak_log(q_scale) - 0.5 + 0.5 * squares / p_scale**2, None


def normal_kl_backward(g, y, saved, needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """The gradients of all four parameters, elementwise:

        d q_loc = (q_loc - p_loc) / p_scale^2 = -d p_loc
        d q_scale = q_scale / p_scale^2 - 1 / q_scale
        d p_scale = (1 - (q_scale^2 + (q_loc - p_loc)^2) / p_scale^2) / p_scale

    times g.
    """
    u = (q_loc - p_loc) / p_scale**2
    r = q_scale / p_scale**2
    return (
        g * u if needs[0] else None,
        g * (r - 1.0 / q_scale) if needs[1] else None,
        -g * u if needs[2] else None,
        g * (1.0 - r * q_scale - u * (q_loc - p_loc)) / p_scale if needs[3] else None,
    )

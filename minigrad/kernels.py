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
where the gradient itself is to be differentiated, and on arrays that are not NumPy's, unless there
is a kernel for these as well (array_kernels.py). So a kernel may use buffers and tricks without a
word about devices or recording. Kernels are pure: a dropout mask is an input, and nothing that goes
in is written to.

Know before reading: table.py, and ops.py for the rules that operations without a kernel have.

Know after: how the functions of functional.py are computed, and what to write for a new kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps

import numpy as np

from minigrad import backend
from minigrad.backend import Array, Matrix
from minigrad.fused import fuse
from minigrad.tensor import Tensor


def fused(
    forward: Callable,
    backward: Callable,
    name: str | None = None,
    elsewhere: tuple[Callable, Callable] | None = None,
) -> Callable:
    """Decorator: the plain formula that follows is the twin of this kernel.

    forward(needs, *inputs, **keywords) returns (y, saved): the result, and what backward wants to
    have kept. needs says of each input whether its gradient will be asked for.

    backward(g, y, saved, needs, *inputs, **keywords) returns one gradient per input, from the
    gradient g of y; None for an input that needs none. A large gradient may be given as a function
    instead: the sweep calls it with an array to write into, or with None for a new array.

    Both see NumPy arrays and SciPy's CSR matrices only. The inputs go by position; what the twin
    takes by keyword only, the kernel does too. Lists become arrays. name: the operation's name in
    the table, the twin's by default. elsewhere: forward and backward for arrays of other libraries
    than NumPy; without them the twin runs there.

    Returns the function that takes Tensors as well as arrays; its `.twin` is the formula.
    """

    def beside(twin: Callable) -> Callable:
        entry = fuse(twin, forward, backward, name or twin.__name__, elsewhere)

        @wraps(twin)  # so that help() shows the twin's words and arguments
        def call(*inputs, **keywords):
            inputs = [np.asarray(x) if isinstance(x, (list, tuple)) else x for x in inputs]
            return entry(*weak_numbers(inputs), **keywords)

        call.twin = twin  # type: ignore[attr-defined]  # a function may have attributes
        return call

    return beside


def weak_numbers(inputs: Iterable) -> list:
    """The same, of any shapes; beside an array, NumPy's numbers become Python's.

    NumPy calls these weak: beside a float32 array they do not make the result float64.
    """
    inputs = list(inputs)
    if not any(isinstance(x, np.generic) for x in inputs):
        return inputs
    if all(isinstance(x, (int, float, np.generic)) for x in inputs):
        return inputs
    return [x.item() if isinstance(x, (np.floating, np.integer)) else x for x in inputs]


def as_dense(x: Matrix, what: str) -> Array:
    """Arrays and Tensors as they are; a number or a list (of any depth) as an array of its shape.

    what: the name of x, for errors. TypeError for a sparse matrix: nearly every function turns its
    zeros into something else, and `*` of the older kind of sparse matrix is a matrix product. And
    TypeError for what is not numbers, and for a masked array.
    """
    if type(x) is np.ndarray or type(x) is Tensor:
        return x
    if backend.is_sparse(x):
        raise TypeError(
            f"{what} is a sparse matrix; of the functions of networks only linear and dropout take "
            "one: give a dense array, x.toarray()"
        )
    array = backend.as_array(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{what} is a {type(x).__name__}, and not an array of numbers")
    return array


def as_floating(x: Matrix, what: str) -> Array:
    """x of any shape `as_dense`, and whole numbers in float64: in uint8, 1 - 2 would be 255."""
    x = as_dense(x, what)
    return x if x.dtype.kind == "f" else x.astype(np.float64)


# ------------------------------------------------------------------------------------------ linear
def linear_forward(needs, x, weight, bias) -> tuple:
    """x @ weight.T + bias, with the bias added in place. Keeps x: dense, and of a floating dtype.

    Shapes: as functional.linear has them; ValueError for others.
    """
    x = x.toarray() if backend.is_sparse(x) else backend.as_array(x)
    weight = backend.as_array(weight)
    if weight.ndim != 2 or np.shape(bias) != weight.shape[:1] or x.shape[-1:] != weight.shape[1:]:
        raise ValueError("x must have shape (..., n_in), weight (n_out, n_in) and bias (n_out,)")
    x = x if x.dtype.kind == "f" else x.astype(weight.dtype)
    y = x @ weight.T
    y += bias
    return y, x


def linear_backward(g, y, x, needs, _, weight, bias) -> tuple:
    """The gradients of x, weight and bias. The weight's is written where the sweep wants it.

    With one row of g and x for each vector: dx = g @ weight, dweight = g.T @ x, dbias = sum of g.
    """
    n_out, n_in = weight.shape
    n = math.prod(g.shape[:-1])  # reshape(-1, n_out) does not know it where n_out is 0
    rows = g.reshape(n, n_out)

    def d_weight(out):
        return np.matmul(rows.T, x.reshape(n, n_in), out=out)

    def d_bias(out):
        return np.sum(rows, axis=0, out=out)

    return (
        g @ weight if needs[0] else None,
        d_weight if needs[1] else None,
        d_bias if needs[2] else None,
    )


# -------------------------------------------------------------------------------------------- relu
def relu_forward(needs, x) -> tuple:
    """max(x, 0) elementwise, in one pass."""
    return np.maximum(as_dense(x, "x"), 0), None


def relu_backward(g, y, saved, needs, x) -> list:
    """g where x was positive, elementwise: there, and only there, y is not 0."""
    return [_where_not_0(g, y)]


@backend.elementwise
def _where_not_0(g, y):
    return g * (y != 0)


# ----------------------------------------------------------------------------------------- softmax
def highest(x, axis) -> np.ndarray:
    """The maximum over `axis`, kept with length 1; 0 where it is not finite, or there is nothing.

    Subtracted before exp, it keeps the largest exponent at 0. x: any shape.
    """
    if 0 in np.shape(x):
        return np.sum(x, axis=axis, keepdims=True)  # all 0
    top = np.max(x, axis=axis, keepdims=True)
    return np.where(np.isfinite(top), top, np.zeros_like(top))


def _logits(x):
    """x as a floating array; ValueError for a single number, which has no axis."""
    x = backend.as_array(as_floating(x, "x"))
    if x.ndim == 0:
        raise ValueError("x must have an axis along which the probabilities sum to 1")
    return x


def softmax_forward(needs, x, *, axis=-1) -> tuple:
    """exp(x) / sum of exp(x), in one array. x: any shape but ()."""
    x = _logits(x)
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
    """x - log of the sum of exp(x). Keeps softmax(x), if a gradient is needed.

    x: any shape but ().
    """
    x = _logits(x)
    y = x - highest(x, axis)
    e = np.exp(y)
    total = np.sum(e, axis=axis, keepdims=True)
    with np.errstate(divide="ignore"):  # of no classes the sum is 0
        y -= np.log(total)
    if not needs[0]:
        return y, None
    e /= total
    return y, e


def log_softmax_backward(g, y, softmax_of_x, needs, x, *, axis=-1) -> list:
    """dx = g - softmax(x) sum(g), with the sum over `axis`; any shape."""
    gx = softmax_of_x * np.sum(g, axis=axis, keepdims=True)
    return [np.subtract(g, gx, out=gx)]


def weighted_log_softmax_forward(needs, weights, logits) -> tuple:
    """Sum of weights log softmax(logits) over the last axis. Keeps what log_softmax does.

    weights and logits: (..., k) that broadcast; ValueError where k differs.
    """
    logits = _logits(logits)
    weights = np.asarray(weights)
    if weights.shape[-1:] != logits.shape[-1:]:
        raise ValueError("weights and logits must have the same number of classes, the last axis")
    log_p, p = log_softmax_forward(needs[1:], logits)
    weights = weights.astype(log_p.dtype, copy=False)
    with np.errstate(invalid="ignore"):
        y = np.sum(weights * log_p, axis=-1)
    if np.isnan(y).any():  # 0 log 0 is 0; a NaN among the inputs stays
        is_nothing = (weights == 0) & (log_p == -np.inf)
        y = np.sum(weights * np.where(is_nothing, 0, log_p), axis=-1)
    return y, (log_p if needs[0] else None, p)


def weighted_log_softmax_backward(g, y, saved, needs, weights, logits) -> tuple:
    """d weights = g log softmax(logits), d logits = g (weights - softmax(logits) sum(weights))."""
    log_p, p = saved
    g = np.asarray(g)[..., None]
    d_logits = None
    if needs[1]:
        d_logits = p * -np.sum(weights, axis=-1, keepdims=True, dtype=p.dtype)
        d_logits = d_logits + weights
        d_logits *= g
    return g * log_p if needs[0] else None, d_logits


# --------------------------------------------------------------------------------------- Bernoulli
def bernoulli_forward(needs, x, logits) -> tuple:
    """x log p + (1 - x) log(1 - p) with p = expit(logits), elementwise; shapes that broadcast.

    With a = |logits|, the likelier of 0 and 1 has the log-probability -log(1 + e^-a), the other one
    that minus a. Keeps x - p, made of numbers that are not both near 1.
    """
    e = np.exp(-np.abs(logits))
    u = 1.0 + e
    # log(1 + e) with all digits where e is small: what rounding u took away is added to first order
    log_u = np.log(u) + (e - (u - 1.0)) / u
    x = np.asarray(x, e.dtype)
    # 1 - x or x, without np.where, which takes eight times longer where its choices alternate
    side = np.copysign(np.ones_like(e), logits)
    unlikely = 0.5 * (1.0 + side) - side * x
    with np.errstate(invalid="ignore"):
        surprise = np.where(unlikely == 0, 0, unlikely * np.abs(logits))  # not 0 * infinity
    return -log_u - surprise, side * (e / u - unlikely)


def bernoulli_backward(g, y, saved, needs, x, logits) -> tuple:
    """d x = g logits; d logits = g (x - p); elementwise."""
    return g * logits if needs[0] else None, g * saved if needs[1] else None


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
    u = (q_loc - p_loc) / p_scale
    t = (q_scale - p_scale) / p_scale
    # log(1 + t), with all digits where t is small: what rounding r took away is added to first
    # order. Where r is far from 1 it may lie outside of the dtype's range, so there the logarithms
    # are taken first.
    log_r = weak_log(q_scale) - weak_log(p_scale)
    with np.errstate(all="ignore"):  # of what np.where drops
        r = q_scale / p_scale
        near = np.log(r) + (t - (r - 1.0)) / r
    log_r = np.where(np.abs(t) < 0.5, near, log_r)
    return 0.5 * np.square(u) + ((t - log_r) + 0.5 * np.square(t)), (u, t)


def normal_kl_backward(g, y, saved, needs, q_loc, q_scale, p_loc, p_scale) -> tuple:
    """The gradients of all four parameters, elementwise, from u and t of the formula:

        d q_loc = u / p_scale = -d p_loc
        d q_scale = q_scale / p_scale^2 - 1 / q_scale = t (2 + t) / q_scale
        d p_scale = -(t (2 + t) + u^2) / p_scale

    times g. Quotients come before products, which might overflow.
    """
    u, t = saved
    slope = u / p_scale
    return (
        g * slope if needs[0] else None,
        g * (t / q_scale * (2.0 + t)) if needs[1] else None,
        -g * slope if needs[2] else None,
        -g * (t / p_scale * (2.0 + t) + u * slope) if needs[3] else None,
    )

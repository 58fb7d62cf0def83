"""Functions of neural networks: kernels beside their twins, and a few plain formulas that SciPy's names cannot dispatch.

Know before reading: ops.py. Some formulas are worth a hand-written kernel, forward and backward. Each is put into the
table by `fused`, beside its *twin*: the same function as a plain NumPy formula of a few lines. The twin is what the
kernel means, what tests hold it against, what runs when the gradient itself is to be differentiated, and what runs on
arrays that are not NumPy's. So kernels may use buffers and tricks without a word about devices. They are pure: a
dropout mask is an input, the statistics of a batch are an output.

Know after: every function that the layers of nn.py are made of.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from minigrad import ops
from minigrad.backend import Array
from minigrad.table import fused
from minigrad.tensor import Tensor


# ------------------------------------------------------------------------------------------------------------ linear
def _linear(x, weight, bias):
    """x @ weight.T + bias, the layer of every network here.

    x: (..., n_in) array or Tensor, or (n, n_in) CSR matrix (of which at most this minibatch becomes dense); weight:
    (n_out, n_in); bias: (n_out,). Returns (..., n_out). A sparse x is data: it gets no gradient.
    """
    x = x.toarray() if hasattr(x, "toarray") else x
    return x @ np.transpose(weight) + bias


def _linear_forward(needs, x, weight, bias):
    x = x.toarray() if sparse.issparse(x) else x
    x = x if x.dtype.kind == "f" else x.astype(weight.dtype)
    y = np.matmul(x, weight.T)
    y += bias
    return y, x


def _linear_backward(g, y, x, needs, _, weight, bias):
    rows = g.reshape(-1, g.shape[-1])
    return (
        g @ weight if needs[0] else None,
        (lambda out: np.matmul(rows.T, x.reshape(-1, x.shape[-1]), out=out)) if needs[1] else None,
        np.sum(rows, axis=0) if needs[2] else None,
    )


linear = fused(_linear, _linear_forward, _linear_backward, "linear")


# ------------------------------------------------------------------------------------------------------- activations
def _relu(x):
    """max(x, 0), elementwise, with slope 0 at 0 (as PyTorch). Any shape; the dtype stays."""
    return np.where(x <= 0, 0.0, x)  # NaN stays NaN


relu = fused(
    _relu,
    lambda needs, x: (np.maximum(x, 0), None),
    lambda g, y, saved, needs, x: [g * (y != 0)],
    "relu",
)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), elementwise, without overflow. Any shape; the dtype stays. Its slope is the logistic function."""
    return np.logaddexp(x, 0.0)


def polygamma(n: int, x: Array) -> Array:
    """The n-th derivative of digamma, elementwise (n >= 1; scipy.special.polygamma, which does not dispatch)."""
    return ops.polygamma(x if _is_floating(x) else np.asarray(x, np.float64), n)


def _is_floating(x):
    return hasattr(x, "dtype") and x.dtype.kind == "f"


def dropout(x: Array, mask: Array) -> Array:
    """x * mask: entries where mask is 0 are dropped. x and mask: same shape.

    mask holds 0 with probability p and 1 / (1 - p) otherwise, so that the expectation of x stays (Srivastava et al.
    2014, in the inverted form that PyTorch uses). It is an input, not drawn here: the function stays pure.
    """
    return x * mask


# ----------------------------------------------------------------------------------------------------------- softmax
def _highest(x, axis):
    """The maximum of the data, as a constant to subtract before exp; 0 where there is no finite one."""
    data = x.data if isinstance(x, Tensor) else x
    highest = np.max(data, axis=axis, keepdims=True)
    return np.where(np.isfinite(highest), highest, np.zeros_like(highest))


def logsumexp(x: Array, axis=None, keepdims: bool = False) -> Array:
    """log of the sum of exp(x) over `axis` (None: all), without overflow. Its gradient is softmax(x).

    x: any shape and floating dtype, which stays; the axis goes, or with keepdims gets length 1.
    """
    highest = _highest(x, axis)
    with np.errstate(
        divide="ignore"
    ):  # the sum over nothing but -inf is 0, and its logarithm rightly -inf
        total = np.log(np.sum(np.exp(x - highest), axis=axis, keepdims=True)) + highest
    return total if keepdims else np.squeeze(total, axis)


def _softmax(x, *, axis=-1):
    """exp(x) / sum of exp(x) along `axis`. Any shape and floating dtype; entries are positive and sum to 1."""
    e = np.exp(x - _highest(x, axis))
    return e / np.sum(e, axis=axis, keepdims=True)


def _softmax_forward(needs, x, *, axis=-1):
    y = x - _highest(x, axis)
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y, None


def _softmax_backward(g, y, saved, needs, x, *, axis=-1):
    gy = g * y
    gy -= y * np.sum(gy, axis=axis, keepdims=True)
    return [gy]


softmax = fused(_softmax, _softmax_forward, _softmax_backward, "softmax")


def _log_softmax(x, *, axis=-1):
    """x - logsumexp(x) along `axis`: the logarithm of softmax, exact where softmax itself would round to 0. Any shape."""
    return x - logsumexp(x, axis=axis, keepdims=True)


def _log_softmax_forward(needs, x, *, axis=-1):
    y = x - _highest(x, axis)
    e = np.exp(y)
    total = np.sum(e, axis=axis, keepdims=True)
    y -= np.log(total)
    return y, np.divide(e, total, out=e) if needs[0] else None


def _log_softmax_backward(g, y, softmax_x, needs, x, *, axis=-1):
    gx = softmax_x * np.sum(g, axis=axis, keepdims=True)
    return [np.subtract(g, gx, out=gx)]


log_softmax = fused(_log_softmax, _log_softmax_forward, _log_softmax_backward, "log_softmax")


# ----------------------------------------------------------------------------------------------------- normalisation
def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float = 1e-5
) -> tuple[Array, np.ndarray, np.ndarray]:
    """Each feature to mean 0 and variance 1 over the minibatch, then scaled and shifted (Ioffe & Szegedy 2015, alg. 1).

    x: (n, n_features), n >= 2; weight, bias: (n_features,); eps: added to the variance. Returns (y, mean, var): y as x,
    and the minibatch's mean and (biased) variance as plain arrays (n_features,), for the caller's running statistics.
    ValueError for other shapes.
    """
    data = x.data if isinstance(x, Tensor) else x
    if data.ndim != 2 or data.shape[1:] != weight.shape:
        raise ValueError(
            f"batch_norm: x has shape {data.shape}, not (n, n_features) with weight's {weight.shape}"
        )
    mean = np.mean(data, axis=0)
    centred = data - mean
    var = np.mean(centred * centred, axis=0)
    return _standardize(x, weight, bias, centred=centred, var=var, eps=eps), mean, var


def _standardize_twin(x, weight, bias, *, centred, var, eps):
    """Batch normalisation: weight * (x - mean) / sqrt(var + eps) + bias, mean and var those of x over its rows.

    centred (x - mean, an array) and var are what a kernel need not compute again; the twin computes both.
    """
    centred = x - np.mean(x, axis=0)
    return weight * centred / np.sqrt(np.mean(np.square(centred), axis=0) + eps) + bias


def _standardize_forward(needs, x, weight, bias, *, centred, var, eps):
    return centred * (weight / np.sqrt(var + eps)) + bias, None


def _standardize_backward(g, y, saved, needs, x, weight, bias, *, centred, var, eps):
    """With u = centred / std: dx = weight / std * (g - mean(g) - u * mean(g * u)), the means over the minibatch."""
    inverse = 1.0 / np.sqrt(var + eps)
    g_sum, gu_sum = np.sum(g, axis=0), np.einsum("ij,ij->j", g, centred) * inverse
    dx = None
    if needs[0]:
        dx = centred * (-inverse * gu_sum / len(g))
        dx += g
        dx -= g_sum / len(g)
        dx *= weight * inverse
    return dx, gu_sum, g_sum


_standardize = fused(_standardize_twin, _standardize_forward, _standardize_backward, "batch_norm")


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016). x: (..., n_features).

    weight, bias: (n_features,); eps: added to the variance. ValueError for other shapes.
    """
    if x.shape[-1:] != weight.shape:
        raise ValueError(
            f"layer_norm: x has shape {x.shape}, not (..., n_features) with weight's {weight.shape}"
        )
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return (
        weight * centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + eps) + bias
    )


# ------------------------------------------------------------------------------------------------------------ losses
def mse(prediction: Array, target: Array) -> Array:
    """Mean squared error, a scalar = mean over all entries of (prediction - target)^2, in squared units of both.

    ValueError for different shapes.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"mse: prediction has shape {prediction.shape}, target {target.shape}; they must be the same"
        )
    return np.mean(np.square(prediction - target))


def cross_entropy(logits: Array, target: Array) -> Array:
    """Mean over rows of -sum_k target_k log softmax(logits)_k, a scalar, in nats.

    logits: (n, k); target: (n,) integer classes, or (n, k) weights of any sum (probabilities, expression profiles).
    ValueError for other shapes, IndexError for a class that is not there.
    """
    if target.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"cross_entropy: logits {logits.shape} need a target of {logits.shape[:1]} or the same shape, "
            f"not {target.shape}"
        )
    log_p = log_softmax(logits)
    if target.ndim == 1:
        if np.any(
            (target < 0) | (target >= logits.shape[1])
        ):  # negative ones would count from the last; a GPU wraps all
            raise IndexError(
                f"cross_entropy: classes go from 0 to {logits.shape[1] - 1}, the target's from "
                f"{np.min(target)} to {np.max(target)}"
            )
        return -np.mean(log_p[np.arange(len(target), like=target), target])
    return -np.sum(log_p * target) / len(target)

"""The functions of networks, each as its plain formula.

This is a lesson. Some of the formulas below stand under the line `@fused(...)`. For these there is
a hand-written kernel as well, which computes the same with fewer passes over memory, and the
formula itself is called its *twin*. Kernels and `@fused` are in kernels.py; how the two become one
entry of the table is in fused.py. Take the softmax:

    >>> import numpy as np
    >>> from minigrad import Tensor, grad
    >>> x = Tensor([0.0, 1.0, 2.0], requires_grad=True)
    >>> softmax(x).data.round(3)
    array([0.09 , 0.245, 0.665])
    >>> softmax.twin(x).data.round(3)
    array([0.09 , 0.245, 0.665])

How does the last of these probabilities change with each of the logits? There are two ways to know:
the rule that somebody derived by hand, and the chain rule through the operations of the formula.

    >>> last = np.array([0.0, 0.0, 1.0])
    >>> grad(softmax(x), x, last)[0].round(3)
    array([-0.06 , -0.163,  0.223])
    >>> grad(softmax.twin(x), x, last)[0].round(3)
    array([-0.06 , -0.163,  0.223])

So a reader needs the formulas only, which are all in this file. The tests hold each kernel against
its twin.

Arguments may be arrays and Tensors, and lists and numbers too; a twin is given arrays or Tensors.
(`as_dense` and `as_floating`, with which some of the functions begin, make arrays of lists and
numbers, floating ones by the latter, and refuse sparse matrices by name. `kernels.highest` is the
highest entry along an axis, or 0 where that is infinite.)

Know before reading: tensor.py and ops.py, for NumPy's functions on Tensors; and what a layer of a
neural network is.

Know after: every function that the layers of nn.py are made of, and why some of them are not
written as a textbook would. (The losses of models/ are log-densities: see distributions.py.)
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from minigrad import array_kernels, kernels, special_functions
from minigrad.backend import Array, Matrix, elementwise, is_sparse
from minigrad.kernels import as_dense, as_floating, fused
from minigrad.tensor import Tensor


def data_of(x: Array) -> Array:
    """The array inside a Tensor, of any shape; anything else as it is. No derivative passes."""
    return x.data if isinstance(x, Tensor) else x


# ------------------------------------------------------------------------------------------ linear
@fused(
    kernels.linear_forward,
    kernels.linear_backward,
    elsewhere=(kernels.linear_forward, kernels.linear_backward),
)
def linear(x: Array, weight: Array, bias: Array) -> Array:
    """y = x @ weight.T + bias, the layer that every network here is built of.

    x: (..., n_in) array or Tensor, or a sparse matrix (n, n_in), which is made dense one minibatch
    at a time; weight: (n_out, n_in); bias: (n_out,). Returns (..., n_out). A sparse x is data: it
    gets no gradient. With n_in = 0 there is nothing to sum, and y is the bias. ValueError for other
    shapes.
    """
    x = x.toarray() if hasattr(x, "toarray") else x
    return x @ np.transpose(weight) + bias


# ------------------------------------------------------------------------------------- activations
@fused(
    kernels.relu_forward,
    kernels.relu_backward,
    elsewhere=(kernels.relu_forward, kernels.relu_backward),
)
def relu(x: Array) -> Array:
    """max(x, 0), elementwise. Its slope at 0 is 0, as in PyTorch.

    Any shape; the dtype stays. TypeError for a sparse matrix.
    """
    return np.where(x <= 0, 0.0, x)  # written with <=, so that NaN stays NaN


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), elementwise: a smooth max(x, 0). Its slope is the logistic function.

    Any shape; the dtype stays. As log(exp(x) + exp(0)) it does not overflow where exp(x) does.
    TypeError for a sparse matrix.

    >>> softplus(np.array([-1000.0, 1000.0]))
    array([   0., 1000.])
    """
    return np.logaddexp(as_floating(x, "softplus: x"), 0.0)


# ---------------------------------------- functions of scipy.special that are no ufuncs: to look up
def polygamma(n: int, x: Array) -> Array:
    """The n-th derivative of digamma, elementwise, for n >= 1.

    Any shape; whole numbers are computed in float64. It is here because scipy.special.polygamma is
    not a ufunc, and so does not hand a Tensor over. ValueError for another n, TypeError for a
    sparse matrix.
    """
    if not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(
            f"polygamma: n must be a whole number >= 1, not {n!r}; scipy.special.digamma is n = 0"
        )
    return special_functions.polygamma(as_floating(x, "polygamma: x"), n)


def multigammaln(x: Array, d: int) -> Array:
    """The log of the gamma function of d variables, elementwise, for x > (d - 1) / 2.

    Any shape. d (d - 1) / 4 log(pi) + sum over j < d of log gamma(x - j/2) (DLMF 35.3.4). It is
    here because scipy.special.multigammaln is not a ufunc. ValueError for a d below 1, TypeError
    for a sparse matrix.
    """
    if not isinstance(d, (int, np.integer)) or d < 1:
        raise ValueError(f"multigammaln: d must be a whole number >= 1, not {d!r}")
    x = as_floating(x, "multigammaln: x")
    constant = 0.25 * d * (d - 1) * math.log(math.pi)
    return sum(special.gammaln(x - 0.5 * j) for j in range(d)) + constant


# ----------------------------------------------------------------------------------------- dropout
def dropout(x: Matrix, mask: Array) -> Matrix:
    """x * mask: the entries where mask is 0 are dropped. x and mask have the same shape.

    mask is 0 with probability p, and 1 / (1 - p) otherwise, so that the expectation of the product
    is x (Srivastava et al. 2014; the scaling is PyTorch's). It is an input and not drawn here: so
    this is a function, and can be differentiated, tested and repeated.

    x: an array or Tensor, or a sparse matrix, which stays sparse (CSR) and is data: it gets no
    gradient. mask: a dense array. ValueError where the shapes differ, for they might broadcast.
    """
    mask = as_dense(mask, "dropout: mask")
    if not is_sparse(x):
        x = as_dense(x, "dropout: x")
    if x.shape != mask.shape:
        raise ValueError(
            f"dropout: x has shape {x.shape}, mask {mask.shape}; they must be the same"
        )
    if is_sparse(x):  # where `*` may be the product of matrices
        return x.multiply(data_of(mask)).tocsr()
    return x * mask


# ----------------------------------------------------------------------------------------- softmax
# exp(1000) overflows; exp(1000 - 1000) does not. Neither softmax nor logsumexp minds when the same
# number is subtracted from all logits of a row (logsumexp adds it again at the end), so the highest
# one is (or 0, where the highest is infinite). It counts as a constant, through which no derivative
# passes: the derivative for it is 0 anyway.


def logsumexp(x: Array, axis=None, keepdims: bool = False) -> Array:
    """The logarithm of the sum of exp(x) over `axis` (None: over all). Its gradient is softmax(x).

    x: any shape and floating dtype, which stays; the axis goes, or with keepdims gets length 1. Of
    nothing the sum is 0, and its logarithm -infinity. TypeError for a sparse matrix.

    >>> logsumexp(np.array([1000.0, 1000.0])).round(3)
    np.float64(1000.693)
    """
    x = as_floating(x, "logsumexp: x")
    highest = kernels.highest(data_of(x), axis)
    with np.errstate(divide="ignore"):  # of -inf alone the sum is 0, and its logarithm rightly -inf
        total = highest + np.log(np.sum(np.exp(x - highest), axis=axis, keepdims=True))
    return total if keepdims else np.squeeze(total, axis)


@fused(
    kernels.softmax_forward,
    kernels.softmax_backward,
    elsewhere=(kernels.softmax_forward, kernels.softmax_backward),
)
def softmax(x: Array, *, axis: int = -1) -> Array:
    """exp(x) / sum of exp(x) along `axis`: positive entries that sum to 1.

    Any shape but (), and floating dtype, both of which stay. A logit of -infinity has probability
    0. One of +infinity has NaN, and the finite ones beside it 0; a row of -infinity alone is NaN.
    TypeError for a sparse matrix.
    """
    e = np.exp(x - kernels.highest(data_of(x), axis))
    return e / np.sum(e, axis=axis, keepdims=True)


@fused(
    kernels.log_softmax_forward,
    kernels.log_softmax_backward,
    elsewhere=(kernels.log_softmax_forward, kernels.log_softmax_backward),
)
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """x - logsumexp(x) along `axis`: the logarithm of softmax(x), also where that rounds to 0.

    Any shape but (), and floating dtype, both of which stay. NaN and errors: as for `softmax`,
    with -infinity for the logarithm of a probability of 0.
    """
    return x - logsumexp(x, axis=axis, keepdims=True)


def times_log(weight: Array, log_p: Array) -> Array:
    """weight * log_p, elementwise; 0 where the weight and p are 0, for 0 log 0 = 0.

    That is the limit of w log w, and the reason for it here: a class without weight says nothing,
    however improbable it is. As numbers, 0 * -infinity would be NaN. Any shapes that broadcast.

    >>> times_log(np.array([0.0, 1.0]), np.array([-np.inf, -2.0]))
    array([ 0., -2.])
    """
    is_nothing = (data_of(weight) == 0) & (data_of(log_p) == -np.inf)
    return weight * np.where(is_nothing, 0.0, log_p)


@fused(kernels.weighted_log_softmax_forward, kernels.weighted_log_softmax_backward)
def weighted_log_softmax(weights: Array, logits: Array) -> Array:
    """The sum over classes of weight_k log softmax(logits)_k, in nats.

    weights, logits: (..., k) that broadcast. Returns (...), in the dtype of the logits. A class of
    weight 0 says nothing, also where its logit is -infinity. ValueError where k differs.
    """
    return np.sum(times_log(weights, log_softmax(logits)), axis=-1)


# ----------------------------------------------------------------------------------- normalisation
def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float = 1e-5
) -> tuple[Array, np.ndarray, np.ndarray]:
    """y = weight (x - mean) / sqrt(var + eps) + bias, with each feature's mean and variance.

    Mean and variance are those of the minibatch (Ioffe & Szegedy 2015, algorithm 1), so the result
    for one row depends on the others, and gradients flow through them too.

    x: (n, n_features); weight, bias: (n_features,). Returns (y, mean, var): y of x's shape, and the
    mean and the variance (divided by n, not n - 1) as plain arrays (n_features,), for the running
    statistics that the caller keeps. With n = 1, x is its own mean, and y is the bias. ValueError
    for other shapes, TypeError for a sparse x.
    """
    x = as_dense(x, "batch_norm: x")
    weight = as_dense(weight, "batch_norm: weight")
    bias = as_dense(bias, "batch_norm: bias")
    data = data_of(x)
    if data.ndim != 2 or not data.shape[1:] == weight.shape == bias.shape:
        raise ValueError(
            f"batch_norm: x has shape {data.shape}, weight {weight.shape} and bias {bias.shape}; "
            "they must be (n, n_features), (n_features,) and (n_features,)"
        )
    # As plain arrays, once: for the caller to keep, and for the kernel. The formula below computes
    # them again from x, for its gradients have to flow through them.
    mean = np.mean(data, axis=0)
    centred, squares = _deviations(data, mean)
    var = np.mean(squares, axis=0)
    y = _batch_norm(x, weight, bias, centred=centred, var=var, eps=float(eps))
    return y, mean, var


@elementwise
def _deviations(x, mean):
    """(x - mean, its square)."""
    centred = x - mean
    return centred, centred * centred


@fused(
    kernels.batch_norm_forward,
    kernels.batch_norm_backward,
    name="batch_norm",
    elsewhere=(array_kernels.batch_norm_forward, array_kernels.batch_norm_backward),
)
def _batch_norm(x, weight, bias, *, centred, var, eps):
    """The y of `batch_norm`. centred and var are for the kernel only: plain arrays."""
    deviation = x - np.mean(x, axis=0)
    variance = np.mean(np.square(deviation), axis=0)
    return weight * deviation / np.sqrt(variance + eps) + bias


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """y = weight (x - mean) / sqrt(var + eps) + bias, with each row's own mean and variance.

    x: (..., n_features); weight, bias: (n_features,). Ba et al. 2016. ValueError for other shapes,
    TypeError for a sparse x.
    """
    x = as_dense(x, "layer_norm: x")
    weight = as_dense(weight, "layer_norm: weight")
    bias = as_dense(bias, "layer_norm: bias")
    if weight.ndim != 1 or not x.shape[-1:] == weight.shape == bias.shape:
        raise ValueError(
            f"layer_norm: x has shape {x.shape}, weight {weight.shape} and bias {bias.shape}; "
            "they must be (..., n_features), (n_features,) and (n_features,)"
        )
    centred = x - np.mean(x, axis=-1, keepdims=True)
    var = np.mean(np.square(centred), axis=-1, keepdims=True)
    return weight * centred / np.sqrt(var + float(eps)) + bias


# ------------------------------------------------------------------------------------------ losses
def mse(prediction: Array, target: Array) -> Array:
    """Mean squared error = the mean over all entries of (prediction - target)^2: a scalar.

    In squared units of both, which must have the same shape: ValueError where they differ, for they
    might broadcast. TypeError for sparse matrices.
    """
    prediction = as_floating(prediction, "mse: prediction")
    target = as_floating(target, "mse: target")
    if prediction.shape != target.shape:
        raise ValueError(
            f"mse: prediction has shape {prediction.shape}, target {target.shape}; "
            "they must be the same"
        )
    return np.mean(np.square(prediction - target))


def cross_entropy(logits: Array, target: Array) -> Array:
    """The mean over rows of -sum_k target_k log softmax(logits)_k: a scalar, in nats.

    logits: (n, k); target: (n,) integer classes, or (n, k) weights of the classes of any sum
    (probabilities, expression profiles). A class c counts as weight 1 for c and 0 for the others.
    ValueError for other shapes, TypeError for classes that are not integers, IndexError for a class
    that does not exist.
    """
    logits = as_floating(logits, "cross_entropy: logits")
    target = as_dense(target, "cross_entropy: target")
    if logits.ndim != 2:
        raise ValueError(
            f"cross_entropy: logits must be (n, k), a row for each target, and not {logits.shape}; "
            "of a single row, give logits[np.newaxis]"
        )
    if target.shape not in (logits.shape, logits.shape[:1]):
        raise ValueError(
            f"cross_entropy: logits {logits.shape} need a target of {logits.shape[:1]} "
            f"or the same shape, not {target.shape}"
        )
    if target.ndim == 2:
        return -np.mean(weighted_log_softmax(target, logits))
    if target.dtype.kind not in "iu":
        raise TypeError(
            f"cross_entropy: a target of shape {target.shape} is a class for each row, and must "
            f"be integers, not {target.dtype}; weights of the classes have shape {logits.shape}"
        )
    # An index below 0 counts from the last class; on a GPU one too large wraps around as well.
    if np.any((target < 0) | (target >= logits.shape[1])):
        raise IndexError(
            f"cross_entropy: classes go from 0 to {logits.shape[1] - 1}, "
            f"the target's from {np.min(target)} to {np.max(target)}"
        )
    rows = np.arange(len(target), like=target)  # like: on the device where the target is
    return -np.mean(log_softmax(logits)[rows, target])

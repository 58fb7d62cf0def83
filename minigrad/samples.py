"""NumPy's functions of samples and of sampled curves: quantiles, covariances, slopes, integrals.

This is a reference, the second part of derived.py: each is plain NumPy over functions of the table.

Know before reading: derived.py.
Know after: what the slope of a quantile is, and of an interpolation.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad import backend, ops
from minigrad.backend import Array
from minigrad.derived import (
    as_operands,
    atleast_1d,
    diff,
    implements,
    mean,
    moveaxis,
    positive_axes,
    sort,
)
from minigrad.tensor import Tensor


# -------------------------------------------------------------------------------------- quantiles
def _sorted_rows(x, axis):
    """The entries along these axes sorted, in one last axis; what holds a NaN is NaN throughout."""
    axes = positive_axes(axis, x.ndim)
    others = [a for a in range(x.ndim) if a not in axes]
    n = math.prod(x.shape[a] for a in axes)
    rows = np.transpose(x, (*others, *axes))
    rows = sort(np.reshape(rows, (*(x.shape[a] for a in others), n)))
    last = rows[..., -1:]  # where a sort puts a NaN
    return np.where(np.isnan(last), last, rows)


def _kept(y, x, axis, keepdims):
    """y, whose last axes are those of x without the reduced ones: these with length 1 if wanted."""
    if not keepdims:
        return y
    axes = positive_axes(axis, x.ndim)
    in_front = y.shape[: y.ndim - (x.ndim - len(axes))]  # several quantiles
    return np.reshape(y, in_front + tuple(1 if a in axes else n for a, n in enumerate(x.shape)))


@implements(np.median)
def median(a: Array, axis=None, *, keepdims: bool = False) -> Array:
    """The entry in the middle, or the mean of both; equal entries stay in their order."""
    rows = _sorted_rows(a, axis)
    n = rows.shape[-1]
    middle = rows[..., max(n - 1, 0) // 2 : n // 2 + 1]
    return _kept(mean(middle, -1), a, axis, keepdims)


@implements(np.quantile)
def quantile(a: Array, q, axis=None, *, method="linear", keepdims: bool = False) -> Array:
    """Between two neighbours among the sorted entries, which share the gradient.

    NumPy says where: by every one of its methods, the quantile of the positions 0, 1, 2 ... is the
    position of the quantile.
    """
    if isinstance(q, Tensor):
        raise TypeError("quantile: q is a Tensor; no slope is offered there, pass q.data")
    rows = _sorted_rows(a, axis)
    n = rows.shape[-1]
    position = np.quantile(np.arange(n, dtype=a.dtype), q, method=method)
    below = np.minimum(np.floor(position), max(n - 2, 0)).astype(int)
    above = np.minimum(below + 1, n - 1)
    part = backend.to_device(np.asarray(position - below, a.dtype), backend.device_of(a))
    low = moveaxis(rows[..., below], range(-below.ndim, 0), range(below.ndim))
    high = moveaxis(rows[..., above], range(-below.ndim, 0), range(below.ndim))
    part = np.reshape(part, (*part.shape, *(1 for _ in rows.shape[:-1])))
    step = high - low
    # From the nearer neighbour on, as NumPy has it, so that rounding is the same.
    y = np.where(part < 0.5, low + step * part, high - step * (1.0 - part))
    return _kept(y, a, axis, keepdims)


@implements(np.percentile)
def percentile(a: Array, q, axis=None, *, method="linear", keepdims: bool = False) -> Array:
    if isinstance(q, Tensor):
        raise TypeError("percentile: q is a Tensor; no slope is offered there, pass q.data")
    q = np.true_divide(q, a.dtype.type(100))  # as NumPy has it
    return quantile(a, q, axis, method=method, keepdims=keepdims)


# ------------------------------------------------------------------------------------ covariances
@implements(np.cov)
def cov(
    m: Array, y: Array | None = None, rowvar: bool = True, bias: bool = False, ddof=None
) -> Array:
    """The covariances of the rows of m (and of y below them), or of the columns."""
    if y is not None:
        m, y = as_operands("cov", m, y)
    x = _rows(m, rowvar or m.ndim == 1)
    if y is not None:
        x = np.concatenate([x, _rows(y, rowvar or y.ndim < 2 or len(y) == 1)], axis=0)
    ddof = (0 if bias else 1) if ddof is None else ddof
    deviations = x - mean(x, 1, keepdims=True)
    products = deviations @ deviations.T
    n = x.shape[1] - ddof
    return np.squeeze(products * (1.0 / n if n > 0 else float("nan")))


def _rows(x, is_by_row):
    """A matrix with a row for each variable."""
    if x.ndim > 2:
        raise ValueError(f"cov: shape {x.shape}; pass a vector or a matrix")
    x = x if x.ndim == 2 else np.reshape(x, (1, -1))
    return x if is_by_row else np.transpose(x)


@implements(np.corrcoef)
def corrcoef(x: Array, y: Array | None = None, rowvar: bool = True) -> Array:
    c = cov(x, y, rowvar)
    if c.ndim == 0:
        return c / c
    deviation = np.sqrt(np.diagonal(c))
    c = c / np.expand_dims(deviation, 1) / np.expand_dims(deviation, 0)
    # Rounding may bring it beyond 1. What is cut off has no part in the slope.
    return c + (np.minimum(np.maximum(c.data, -1.0), 1.0) - c.data)


# -------------------------------------------------------------------- curves given by their points
@implements(np.linspace)
def linspace(start: Array, stop: Array, num: int = 50, endpoint: bool = True, *, axis=0) -> Array:
    start, stop = as_operands("linspace", start, stop)
    n_steps = num - 1 if endpoint else num
    delta = stop - start
    k = np.arange(num, like=delta.data).astype(delta.dtype)
    k = np.reshape(k, (-1, *(1 for _ in delta.shape)))
    y = start + k * (delta / max(n_steps, 1))
    if endpoint and num > 1:
        y = np.where(k == n_steps, stop, y)  # to the last digit
    return moveaxis(y, 0, axis)


@implements(np.interp)
def interp(x: Array, xp: Array, fp: Array, left: Array | None = None, right=None) -> Array:
    """On the line between the two points around x; beyond them it is constant.

    At a point, the slope is that of the line to its right, and at the last one of that to its left.
    """
    x, xp, fp = as_operands("interp", x, xp, fp)
    n = len(xp)
    if xp.ndim != 1 or fp.shape != xp.shape or n == 0:
        raise ValueError(
            f"interp: points of shapes {xp.shape} and {fp.shape}; pass two vectors, equally long"
        )
    at, points = [z.data if isinstance(z, Tensor) else z for z in (x, xp)]
    before = np.maximum(np.searchsorted(points, at, side="right") - 1, 0)
    if n == 1:
        y = 0.0 * (x - xp[before]) + fp[before]
    else:
        line = np.minimum(before, n - 2)
        slope = (fp[line + 1] - fp[line]) / (xp[line + 1] - xp[line])
        is_within = (at >= points[0]) & (at <= points[-1])
        inside = np.where(is_within, x, xp[before])  # beyond the points nothing may overflow
        y = slope * (inside - xp[before]) + fp[before]
    y = np.where(at < points[0], fp[0] if left is None else left, y)
    y = np.where(at > points[-1], fp[-1] if right is None else right, y)
    return np.where(np.isnan(at), x, y)


@implements(np.trapezoid)
def trapezoid(y: Array, x: Array | None = None, dx: Array = 1.0, axis=-1) -> Array:
    """The area under a curve through points: of each step its width times its mean height."""
    if x is None:
        y, dx = as_operands("trapezoid", y, dx)
    else:
        y, x = as_operands("trapezoid", y, x)
        dx = diff(x, axis=-1 if x.ndim == 1 else axis)
        if x.ndim == 1:  # the same steps in every row along the axis
            n_axes_after = y.ndim - 1 - positive_axes(axis, y.ndim)[0]
            dx = np.reshape(dx, (-1, *[1] * n_axes_after))
    y = moveaxis(y, axis, -1)
    heights = moveaxis(y[..., 1:] + y[..., :-1], -1, axis)
    return np.sum(dx * heights / 2.0, axis=axis)


@implements(np.gradient)
def gradient(f: Array, *varargs: Array, axis=None, edge_order: int = 1) -> Array | tuple:
    """The slopes of a curve through points, along each axis; a tuple where there are several.

    varargs: the distance of the points, or where they are, once or for each axis.
    """
    f, *spacings = as_operands("gradient", f, *(varargs or (1.0,)))
    axes = positive_axes(tuple(axis) if isinstance(axis, list) else axis, f.ndim)
    if len(spacings) == 1 and spacings[0].ndim == 0:
        spacings = spacings * len(axes)
    if len(spacings) != len(axes):
        raise TypeError(
            f"gradient: {len(spacings)} spacings for {len(axes)} axes; give one for each, "
            "or one number"
        )
    found = []
    for a, spacing in zip(axes, spacings):
        slopes = _slopes(moveaxis(f, a, -1), spacing, edge_order)
        found.append(moveaxis(slopes, -1, a))
    return found[0] if len(found) == 1 else tuple(found)


def _slopes(f, spacing, edge_order):
    """Along the last axis: the slope at each point of the parabola through it and its neighbours.

    At the ends: of the line to the next point, or of the parabola through the next two. Fornberg
    (1988), "Generation of finite difference formulas on arbitrarily spaced grids", has the weights.
    """
    n = f.shape[-1]
    if edge_order not in (1, 2):
        raise ValueError(f"gradient: edge_order={edge_order!r}; give 1 or 2")
    if n < edge_order + 1:
        raise ValueError(f"gradient: {n} points along an axis; {edge_order + 1} are needed")
    if spacing.ndim > 1 or (spacing.ndim == 1 and len(spacing) != n):
        raise ValueError(
            f"gradient: spacing of shape {spacing.shape} for {n} points; give a number, "
            "or a place for each point"
        )
    if spacing.ndim == 0:
        steps = diff(f) / spacing
        middle = (f[..., 2:] - f[..., :-2]) / (2.0 * spacing)
    else:
        width = diff(spacing)
        steps = diff(f) / width
        w = width[:-1]  # to the left of a point
        v = width[1:]  # to its right
        middle = (
            f[..., :-2] * (-v / (w * (w + v)))
            + f[..., 1:-1] * ((v - w) / (w * v))
            + f[..., 2:] * (w / (v * (w + v)))
        )
    first = steps[..., :1]
    last = steps[..., -1:]
    if edge_order == 2:  # half a step further, as the slope goes from one step to the next
        at_first = 0.5 if spacing.ndim == 0 else w[0] / (w[0] + v[0])
        at_last = 0.5 if spacing.ndim == 0 else v[-1] / (w[-1] + v[-1])
        first = first - (steps[..., 1:2] - first) * at_first
        last = last + (last - steps[..., -2:-1]) * at_last
    return np.concatenate([first, middle, last], axis=-1)


# ------------------------------------------------------------------------------------ convolutions
@implements(np.convolve)
def convolve(a: Array, v: Array, mode: str = "full") -> Array:
    a, v = [atleast_1d(x) for x in as_operands("convolve", a, v)]
    if a.ndim != 1 or v.ndim != 1 or a.size == 0 or v.size == 0:
        raise ValueError(f"convolve: shapes {a.shape} and {v.shape}; pass two vectors, not empty")
    full = ops.convolve(a, v)
    longer = max(a.size, v.size)
    shorter = min(a.size, v.size)
    if mode == "full":
        return full
    if mode == "same":
        return full[(shorter - 1) // 2 : (shorter - 1) // 2 + longer]
    if mode == "valid":
        return full[shorter - 1 : longer]
    raise ValueError(f"convolve: mode={mode!r}; take 'full', 'same' or 'valid'")


@implements(np.correlate)
def correlate(a: Array, v: Array, mode: str = "valid") -> Array:
    a, v = as_operands("correlate", a, v)
    if a.ndim != 1 or v.ndim != 1:
        raise ValueError(f"correlate: shapes {a.shape} and {v.shape}; pass two vectors")
    if v.size > a.size:
        return correlate(v, a, mode)[::-1]
    return convolve(a, v[::-1], mode)

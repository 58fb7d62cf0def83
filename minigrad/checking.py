"""Are the derivatives right? A lesson in finding out, and the check of every rule in the table.

Know before reading: tensor.py's docstring, and what a Taylor series is. A derivative can be had without any calculus:
walk a short way h along a direction d, and see how much the result changes. Because

    [f(x + h d) - f(x - h d)] / 2h  =  slope + c h^2 + ...

the quotient at h and the one at 2h give the slope with an error of the order h^4 only, as (4 Q(h) - Q(2h)) / 3. This
is slow, but it knows nothing of rules, so it can judge them. Five things make it a check that can be trusted:

1. *One random direction instead of all entries.* A derivative is a linear map J. Checking the single number
   <cotangent, J d> for a random direction d and a random cotangent (a weight per entry of the output) finds any wrong
   J unless luck is perfect: a rule that is transposed, swapped, or off by a factor 1.001 shows. A cotangent of ones is
   not enough: softmax sums to one, so with ones a rule that gives 0 would pass.
2. *Several steps h.* Too long, and h^4 is not small; too short, and what the subtraction leaves of f is rounding. No h
   suits all functions. But the right answer does not depend on h: where two steps agree, they are right, and how well
   they agree says how far the quotient itself can be trusted.
3. *float64*, for all of this would drown in the rounding of float32.
4. *Both sides apart.* At a kink, such as |x| at 0, there is no derivative to be right or wrong about, and the
   symmetric quotient would hide it: there it is 0. The slopes to either side, f(x + h d) - f(x) and f(x) - f(x - h d)
   over h, give the kink away: they differ, and keep differing as h shrinks. Such entries are left out, with a warning.
5. *The second derivative is the first derivative of the gradient*, so the same check, given the function that returns
   the gradient, judges `create_graph=True`. Inputs are moved one at a time and the gradients of all inputs are
   weighed, so every pair of inputs takes part.

Know after: how far a difference quotient can be trusted, and that every rule in the table holds: run
`python -m minigrad.checking`, which walks it in a few seconds.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import sparse

from minigrad import distributions, functional  # noqa: F401  (they put their kernels into the table)
from minigrad.table import PRIMITIVES
from minigrad.tensor import Tensor, grad

TOLERANCE = 1e-7  # of the derivative's own size; right rules are within 1e-9
SETTLED = 1e-10  # a quotient that agrees this well with its neighbour needs no shorter step
ROUGH = 1e-5  # one that agrees no better than this cannot judge anything
ORDERS = ("first", "second")


class GradientError(AssertionError):
    """A derivative is wrong, or cannot be checked; the message says which, where, and by how much."""


# ---------------------------------------------------------------------------------------------------------- gradcheck
def gradcheck(f, *inputs, order: int = 2, seed: int = 0) -> list[float]:
    """Hold the derivatives of f, of first and second order, against difference quotients, at the given inputs.

    f: takes as many Tensors (float64) as there are inputs and returns one, of any shape; it must be deterministic, so
    draw noise outside. inputs: arrays, numbers or Tensors of any shape, converted to float64. order: 1 or 2. seed: of
    the random direction and cotangent. Returns the worst relative error found, one number an order.

    Raises GradientError, which names the input, the direction and both values, where a derivative is wrong; also where
    a gradient has the wrong shape or dtype or is not finite, where the graph to an input is cut, and where f returns
    something else than a finite float64 Tensor. Warns (UserWarning) where f does not depend on an input, and where it
    has no derivative: entries that have a kink or a jump there are left out of the comparison. ValueError for another order.

        >>> worst = gradcheck(lambda x: np.sum(np.exp(x)), np.array([0.0, 1.0]))
        >>> len(worst), max(worst) < 1e-8
        (2, True)
    """
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, not {order!r}")
    if not inputs:
        raise ValueError("gradcheck: no inputs to differentiate with respect to")
    arrays = [np.array(x.data if isinstance(x, Tensor) else x, dtype=np.float64) for x in inputs]
    y = _value(f, arrays)
    _demand_finite(f, arrays, y)
    unit = float(np.max(np.abs(y), initial=0.0))
    with np.errstate(
        all="ignore"
    ):  # steps may leave the domain of f, where nothing is checked then
        return _checked(f, arrays, y.shape, unit, order, np.random.default_rng(seed))


def _checked(f, arrays, shape, unit, order, rng) -> list[float]:
    """The work of gradcheck; shape: that of f's output; unit: its largest absolute value."""
    cotangent, directions = (
        _random(rng, shape),
        [_random(rng, x.shape) * np.maximum(1.0, np.abs(x)) for x in arrays],
    )
    weights, worst = [_random(rng, x.shape) for x in arrays], [0.0] * order
    for i, direction in enumerate(directions):
        line = _Line(lambda xs: _value(f, xs), arrays, i, direction, ORDERS[0], unit)
        error, smooth = _compare(line, lambda c: _pulled(f, arrays, i, c), cotangent)
        worst[0] = max(worst[0], error)
        cotangent = np.where(
            smooth, cotangent, 0.0
        )  # what has no first derivative has no second one either
    if order == 2:
        _compare_recorded(f, arrays, cotangent, unit)
        for i, direction in enumerate(directions):
            line = _Line(
                lambda xs: _flat(_gradients(f, xs, cotangent)),
                arrays,
                i,
                direction,
                ORDERS[1],
                unit,
            )
            error, _ = _compare(
                line, lambda w: _pulled_twice(f, arrays, i, cotangent, w), _flat(weights)
            )
            worst[1] = max(worst[1], error)
    return worst


class _Line(NamedTuple):
    """A function of all inputs, seen as a function of one number: input `i` moves along `direction`.

    unit: a typical size of what f computes with. Rounding is judged by it where the function itself gives only
    rounding, such as the gradient of a constant.
    """

    function: Callable  # list of arrays -> array
    arrays: list
    i: int
    direction: np.ndarray
    order: str
    unit: float

    def __call__(self, h: float) -> np.ndarray:
        moved = list(self.arrays)
        moved[self.i] = moved[self.i] + h * self.direction
        return self.function(moved)

    def __str__(self):
        return f"the {self.order} derivative with respect to input {self.i} (shape {self.direction.shape})"

    def along(self) -> str:
        text = np.array2string(
            self.direction, precision=4, separator=", ", threshold=12, edgeitems=2
        )
        return "along the direction " + " ".join(text.split())


def _compare(line: _Line, pulled, cotangent):
    """Hold the slope of <cotangent, line(h)> at h = 0 against <gradient, direction>, gradient = pulled(cotangent).

    Returns the relative error, and which entries of line(0) are smooth (the others are left out). Raises GradientError.
    """
    smooth = _smooth(line)
    gradient, connected = pulled(np.where(smooth, cotangent, 0.0))
    x = line.arrays[line.i]
    if gradient.shape != x.shape or gradient.dtype != x.dtype:
        raise GradientError(
            f"gradcheck: {line} comes as {gradient.dtype} of shape {gradient.shape}, the input is "
            f"{x.dtype} of shape {x.shape}"
        )
    finite = bool(np.all(np.isfinite(gradient)))
    if not np.all(smooth):
        whose = "the output" if line.order == ORDERS[0] else "the gradients"
        warnings.warn(
            f"gradcheck: {line} does not exist here: {np.sum(~smooth)} of {smooth.size} entries of {whose} "
            f"have a kink, a jump or an end of their domain {line.along()}; they are left out"
            + ("" if finite else ", and the gradient is not finite"),
            UserWarning,
            stacklevel=4,
        )
        if not finite:
            return 0.0, smooth
    if not finite:
        raise GradientError(
            f"gradcheck: {line} has {np.sum(~np.isfinite(gradient))} entries that are not finite"
        )
    slope, spread, scale = _slope(line, cotangent, smooth)
    value = float(np.sum(gradient * line.direction))
    scale = max(scale, float(np.sum(np.abs(gradient * line.direction))))
    error = abs(slope - value) / scale if scale else 0.0
    if error * scale > max(TOLERANCE * scale, 10.0 * spread):
        cut = (
            "; no graph leads from the output to this input (.data, detach or no_grad on the way?)"
        )
        raise GradientError(
            f"gradcheck: {line} is wrong {line.along()}: difference quotients give {slope:.12g}, the "
            f"rules give {value:.12g} (relative error {error:.1e}, that of the quotients "
            f"{spread / scale:.0e}){'' if connected else cut}"
        )
    if not connected:
        warnings.warn(
            f"gradcheck: f does not depend on input {line.i}: nothing to check",
            UserWarning,
            stacklevel=4,
        )
    return error, smooth


# ---------------------------------------------------------------------------------------------- difference quotients
def _smooth(line: _Line) -> np.ndarray:
    """Which entries of line(0) have one slope, rather than one to either side: a boolean array of its shape.

    The jump from one slope to the other is h f'' for a smooth function: with a quarter of the step, a quarter of it is
    left; at a kink all of it. And where the slopes themselves grow as the step shrinks, f jumps or is infinitely steep.
    """
    here = line(0.0)
    for k in (22, 26, 30, 34):  # shorter ones only where these leave the domain
        h = 2.0**-k
        steps = [line(m * h) for m in (1, -1, 4, -4)]
        if all(np.all(np.isfinite(step)) for step in steps):
            break
    ahead, behind, far_ahead, far_behind = steps
    jump = np.abs(ahead - 2.0 * here + behind) / h
    far_jump = np.abs(far_ahead - 2.0 * here + far_behind) / (4.0 * h)
    size, far_size = [
        (np.abs(a - here) + np.abs(here - b)) / step
        for a, b, step in ((ahead, behind, h), (far_ahead, far_behind, 4.0 * h))
    ]
    largest, top = [np.max(a[np.isfinite(a)], initial=0.0) for a in (size, np.abs(here))]
    noise = 1e-4 * size + 1e-7 * largest + 1e3 * np.finfo(np.float64).eps * max(top, line.unit) / h
    return (
        np.isfinite(jump)
        & ((jump <= noise) | (jump <= 0.7 * far_jump))
        & (size <= 1.5 * far_size + noise)
    )


def _slope(line: _Line, cotangent, smooth):
    """d<cotangent, line(h)>/dh at h = 0, over the smooth entries.

    Returns the slope; how far it is from that of a step twice as long; and its scale, what errors are to be compared
    with: the sum of what all entries add to it in absolute value, but not less than rounding, and a hundredth of how
    steep things are nearby, make reasonable (the slope itself may be 0). The best of several steps is taken.
    """
    c, here = cotangent[smooth], line(0.0)[smooth]
    best, size = (0.0, np.inf, 1.0), float(np.abs(c) @ np.abs(here))
    nearby = [
        1e-2 * np.abs(c) @ np.abs((line(h)[smooth] - here) / h) for h in (2.0**-8, -(2.0**-8))
    ]
    floor = max(
        [1e-6 * size, 1e-5 * line.unit, *(float(steep) for steep in nearby if np.isfinite(steep))]
    )
    for k in range(10, 35, 3):
        h = 2.0**-k
        far, mid, near = [(line(m * h) - line(-m * h))[smooth] / (2.0 * m * h) for m in (4, 2, 1)]
        fine, coarse = (4.0 * near - mid) / 3.0, (4.0 * mid - far) / 3.0
        spread = abs(float(c @ (fine - coarse))) + np.finfo(np.float64).eps * size / h
        scale = max(float(np.abs(c) @ np.abs(fine)), floor)
        if np.isfinite(spread) and spread < best[1]:
            best = (float(c @ fine), spread, scale)
        if best[1] <= SETTLED * best[2]:
            break
    if best[1] > ROUGH * best[2]:
        raise GradientError(
            f"gradcheck: {line} cannot be judged {line.along()}: difference quotients settle no better "
            f"than to {best[0]:.6g} +- {best[1]:.1g}; f is noisy, of low precision, or has a kink near"
        )
    return best


# --------------------------------------------------------------------------------------------- values and gradients
def _random(rng, shape) -> np.ndarray:
    """Random signs and lengths between 1/2 and 3/2: no entry is so small that it hides an error."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)


def _flat(arrays) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays])


def _value(f, arrays) -> np.ndarray:
    """f at arrays, as an array. GradientError unless f returns a float64 Tensor."""
    y = f(*[Tensor(x) for x in arrays])
    if not isinstance(y, Tensor):
        raise GradientError(
            f"gradcheck: f returned a {type(y).__name__}, not a Tensor: no derivative can flow"
        )
    if y.dtype != np.float64:
        raise GradientError(
            f"gradcheck: f returned {y.dtype} for float64 inputs: something on the way is not float64"
        )
    return y.data


def _demand_finite(f, arrays, y):
    """GradientError unless the inputs and the output y of f are finite, and f gives y again when asked again."""
    for what, x in [*((f"input {i}", x) for i, x in enumerate(arrays)), ("the output of f", y)]:
        if not np.all(np.isfinite(x)):
            n_bad = np.sum(~np.isfinite(x))
            raise GradientError(
                f"gradcheck: {what} has {n_bad} of {np.size(x)} entries that are not finite"
            )
    if not np.array_equal(y, _value(f, arrays)):
        raise GradientError(
            "gradcheck: f gives two different results at the same inputs; draw noise outside of it"
        )


def _run(f, arrays, wanted, order):
    """f at new Tensors, those at the places `wanted` with requires_grad; returns (output, inputs)."""
    xs = [Tensor(x, requires_grad=i in wanted) for i, x in enumerate(arrays)]
    return f(*xs), xs


def _grad(y, xs, cotangent, what, **keywords):
    """minigrad.grad, whatever goes wrong in a rule told as a GradientError."""
    try:
        return grad(y, xs, cotangent, **keywords)
    except Exception as error:
        raise GradientError(
            f"gradcheck: {what} could not be computed: {type(error).__name__}: {error}"
        ) from error


def _pulled(f, arrays, i, cotangent):
    """The gradient of <cotangent, f> with respect to input i, and whether a graph leads there at all."""
    y, xs = _run(f, arrays, {i}, ORDERS[0])
    what = f"the first derivative with respect to input {i} (shape {arrays[i].shape})"
    return _grad(y, [xs[i]], cotangent, what)[0], y.requires_grad


def _gradients(f, arrays, cotangent, **keywords):
    """The gradients of <cotangent, f> with respect to all inputs."""
    y, xs = _run(f, arrays, range(len(arrays)), ORDERS[0])
    return _grad(y, xs, cotangent, "the first derivatives with respect to all inputs", **keywords)


def _pulled_twice(f, arrays, i, cotangent, weights):
    """The gradient of <weights, gradients of <cotangent, f>> with respect to input i; weights: flat, of all inputs."""
    y, xs = _run(f, arrays, range(len(arrays)), ORDERS[1])
    what = f"the second derivative with respect to input {i} (shape {arrays[i].shape})"
    gradients = _grad(y, xs, cotangent, what, create_graph=True)
    ends = np.cumsum([x.size for x in arrays])
    found = np.zeros_like(arrays[i])
    for g, x, end in zip(
        gradients, arrays, ends
    ):  # one by one: they need not all depend on the inputs
        found = found + _grad(g, [xs[i]], weights[end - x.size : end].reshape(x.shape), what)[0]
    return found, True


def _compare_recorded(f, arrays, cotangent, unit):
    """Recorded gradients (create_graph=True) come from rules run on Tensors, or a kernel's twin; they must agree."""
    plain, recorded = (
        _gradients(f, arrays, cotangent),
        _gradients(f, arrays, cotangent, create_graph=True),
    )
    scale = max([1e-6 * unit, *(float(np.max(np.abs(g), initial=0.0)) for g in plain)])
    for i, (a, b) in enumerate(zip(plain, recorded)):
        if not isinstance(b, Tensor) or b.shape != a.shape or b.dtype != a.dtype:
            raise GradientError(
                f"gradcheck: create_graph=True gives something else for input {i}: {b!r:.200}"
            )
        error = np.max(np.abs(a - b.data), initial=0.0)
        if error > TOLERANCE * scale:
            raise GradientError(
                f"gradcheck: the gradient for input {i} (shape {a.shape}) differs by {error:.3g}, of "
                f"{scale:.3g}, between create_graph=False and True: a rule or a kernel's twin is wrong"
            )


# ------------------------------------------------------------------------------------------ examples of the whole table
class Domain:
    """A region from which inputs are drawn: `values` maps uniform numbers in [0, 1), any shape, into it.

    `real(2, 3)` says: an input of shape (2, 3) from there.
    """

    def __init__(self, values):
        self.values = values

    def __call__(self, *shape):
        return _Input(self, shape)


class _Input(NamedTuple):
    domain: Domain
    shape: tuple


@dataclass(frozen=True)
class Example:
    """Inputs that exercise a primitive: `_Input`s, which are drawn and differentiated; others are passed as they are.

    keywords: passed on. first: applied to the first input, where not any will do. by: called in place of the primitive,
    where it is reached through another function.
    """

    inputs: tuple
    keywords: dict = field(default_factory=dict)
    first: Callable | None = None
    by: Callable | None = None

    def drawn(self, uniform) -> list[np.ndarray]:
        """The arrays (float64) to differentiate with respect to; uniform(shape) gives numbers in [0, 1)."""
        return [
            np.asarray(x.domain.values(uniform(x.shape)))
            for x in self.inputs
            if isinstance(x, _Input)
        ]

    def function(self, call) -> Callable:
        """The primitive `call` as a function of what `drawn` returns alone."""

        def f(*drawn):
            drawn = iter(drawn)
            inputs = [next(drawn) if isinstance(x, _Input) else x for x in self.inputs]
            if self.first:
                inputs[0] = self.first(inputs[0])
            return (self.by or call)(*inputs, **self.keywords)

        return f


def example(*inputs, first=None, by=None, **keywords) -> Example:
    """A line of EXAMPLES: `example(real(2, 3), axis=1)`."""
    return Example(inputs, keywords, first, by)


def elementwise(*domains) -> list[Example]:
    """Examples for an elementwise function of one input a domain: plain, 0-d, stretched by broadcasting, and empty."""
    if len(domains) == 1:
        return [example(domains[0](*shape)) for shape in ((), (5,), (2, 3), (0, 2))]
    shapes = [
        [(3,)],
        [()],
        [(), (2, 3)],
        [(2, 3), ()],
        [(2, 1), (3,)],
        [(1,), (3, 2), (2,)],
        [(0, 2), (1,)],
        [(1, 1), (2, 0)],
    ]
    return [
        example(*[domain(*some[k % len(some)]) for k, domain in enumerate(domains)])
        for some in shapes
    ]


def several(domain, *cases, first=None) -> list[Example]:
    """Examples of one input each: a case is its shape, or (shape, keywords)."""
    cases = [case if case and isinstance(case[-1], dict) else (case, {}) for case in cases]
    return [example(domain(*shape), first=first, **keywords) for shape, keywords in cases]


def _distinct(u):
    """No two entries closer than 0.2, whatever u: the largest is the largest for every small step."""
    rank = np.argsort(np.argsort(u, axis=None, kind="stable"), kind="stable").reshape(u.shape)
    return 0.3 * rank + 0.1 * u - 1.0


def _well_conditioned(x):
    """Square matrices (..., n, n) with entries up to 2, made far from singular; for Tensors too."""
    return 0.3 * x + np.broadcast_to(np.diag([3.0, -3.0, 4.5, 6.0][: x.shape[-1]]), x.shape).astype(
        x.dtype
    )


def _positive_definite(x):
    """Symmetric positive definite matrices (..., n, n) from any; for Tensors too."""
    return x @ np.swapaxes(x, -1, -2) + np.eye(x.shape[-1], dtype=x.dtype)


real = Domain(lambda u: 4.0 * u - 2.0)
positive = Domain(lambda u: 0.3 + 2.7 * u)
fraction = Domain(lambda u: 0.1 + 0.8 * u)
away = Domain(lambda u: np.where(u < 0.5, u - 0.7, u + 0.2))  # from 0, on either side
distinct = Domain(_distinct)
even = Domain(lambda u: np.floor(8.0 * u) / 2.0 - 2.0)  # halves, and
odd = Domain(
    lambda u: np.floor(8.0 * u) / 2.0 - 1.75
)  # what never comes closer than a quarter to them

# Elementwise functions: where to try each of their inputs.
ELEMENTWISE = {
    "add": (real, real),
    "subtract": (real, real),
    "multiply": (real, real),
    "divide": (real, away),
    "square": (real,),
    "negative": (real,),
    "reciprocal": (away,),
    "sqrt": (positive,),
    "exp": (real,),
    "expm1": (real,),
    "sin": (real,),
    "log": (positive,),
    "log1p": (positive,),
    "cos": (real,),
    "sinh": (real,),
    "cosh": (real,),
    "tanh": (real,),
    "arctan": (real,),
    "absolute": (away,),
    "sign": (away,),
    "logaddexp": (real, real),
    "maximum": (even, odd),
    "minimum": (even, odd),
    "power": (positive, real),
    "gammaln": (positive,),
    "gamma": (positive,),
    "erf": (real,),
    "digamma": (positive,),
    "betaln": (positive, positive),
    "erfc": (real,),
    "ndtr": (real,),
    "expit": (real,),
    "logit": (fraction,),
    "log_expit": (real,),
    "xlogy": (real, positive),
    "normal_kl": (real, positive, real, positive),
    "alias": (real,),
    "relu": (away,),
}
EXAMPLES = {name: elementwise(*domains) for name, domains in ELEMENTWISE.items()}

EXAMPLES["power"] += [
    example(away(3), 3.0),
    example(real(2, 2), 2),
    example(real(3), 1),
    example(real(), 0.0),
    example(0.5, real(3)),
    example(away(2, 1), np.array([-2, 0, 1])),
    example(positive(3), Domain(np.zeros_like)(3)),
]
EXAMPLES["gammaln"] += [example(Domain(lambda u: -0.9 + 0.8 * u)(4))]
EXAMPLES["xlogy"] += [example(0.0, positive(3)), example(np.array([0.0, 2.0]), positive(3, 1))]

_CONDITION = np.array([[True, False, True], [False, False, True]])
_REPEATED = np.array([2, 0, 2, -1])
_COUNTS = np.array(
    [[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [12.0, 0.0, 1.0]]
)  # with a cell that has none
_SQUARE = ((3, 3), (1, 1), (2, 2, 2))

EXAMPLES.update(
    {
        "where": [
            example(_CONDITION, real(2, 3), real(2, 3)),
            example(_CONDITION, real(), real(3)),
            example(True, real(2), real()),
            example(_CONDITION, real(2, 1), 1.0),
            example(np.zeros((0, 3), bool), real(1, 3), real(1)),
        ],
        "astype": several(real, ((2, 3), {"dtype": np.float64})),
        "polygamma": several(
            positive, ((3,), {"n": 1}), ((), {"n": 2}), ((2, 2), {"n": 3}), ((0,), {"n": 1})
        ),
        # reductions
        "sum": several(
            real,
            (3,),
            (),
            ((2, 3), {"axis": 1}),
            ((2, 3, 2), {"axis": (0, -1)}),
            ((2, 3), {"keepdims": True}),
            ((2, 3), {"axis": -2, "keepdims": True}),
            ((0, 2), {"axis": 0}),
            ((2, 3), {"axis": ()}),
        ),
        "max": several(
            distinct,
            (4,),
            (),
            ((2, 3), {"axis": 1}),
            ((2, 3, 2), {"axis": (0, -1)}),
            ((0, 2), {"axis": 1}),
            ((3, 2), {"axis": -2, "keepdims": True}),
        ),
        "cumsum": several(
            real, (4,), (), (2, 3), ((2, 3), {"axis": 0}), ((2, 3, 2), {"axis": -2}), (0,)
        ),
        # shapes and reading
        "reshape": several(
            real,
            ((2, 3), {"shape": (3, 2)}),
            ((4,), {"shape": (2, -1)}),
            ((), {"shape": (1, 1)}),
            ((1,), {"shape": ()}),
            ((0, 2), {"shape": (0,)}),
            ((3,), {"shape": 3}),
        ),
        "transpose": several(
            real,
            (2, 3),
            (),
            (0, 2),
            ((2, 3, 4), {"axes": (2, 0, 1)}),
            ((2, 3, 1), {"axes": (-1, 0, -2)}),
        ),
        "broadcast_to": several(
            real,
            ((3,), {"shape": (2, 3)}),
            ((), {"shape": (2, 2)}),
            ((2, 1), {"shape": (3, 2, 2)}),
            ((1,), {"shape": (0,)}),
            ((2,), {"shape": (2,)}),
        ),
        "getitem": several(
            real,
            *[
                ((3, 4), {"index": index})
                for index in (
                    1,
                    -1,
                    slice(1, None),
                    (slice(None, None, -2), 2),
                    (Ellipsis, None, 1),
                    (),
                    None,
                    (1, 2),
                    (0, slice(0, 0)),
                    [0, 0],
                    _REPEATED,
                    (_REPEATED, [0, 0, 0, 1]),
                    (_REPEATED[:, None], _REPEATED),
                    (slice(None), _REPEATED),
                    (_REPEATED, slice(1, 3)),
                    (_REPEATED, None, 1),
                    np.array([], int),
                    np.array([True, False, True]),
                    np.array([[True, False, True, False]] * 3),
                )
            ],
            ((), {"index": ()}),
            ((0, 2), {"index": slice(1)}),
        ),
        "scatter": several(
            real,
            ((4, 2), {"index": _REPEATED, "shape": (3, 2)}),
            ((2,), {"index": (slice(None), 1), "shape": (2, 3)}),
            ((), {"index": (0, 1), "shape": (2, 2)}),
            ((4,), {"index": (_REPEATED, _REPEATED), "shape": (3, 3)}),
            ((2,), {"index": np.array([True, False, True]), "shape": (3,)}),
        ),
        "concatenate": [
            example(real(3), real(2)),
            example(real(2, 3), real(1, 3), axis=0),
            example(real(2, 0), real(2, 1), axis=1),
            example(real(2, 1), real(2, 3), real(2, 2), axis=-1),
            example(real(2), np.ones(3)),
            example(real(2)),
        ],
        # linear algebra
        "matmul": [
            example(real(*a), real(*b))
            for a, b in (
                ((2, 3), (3, 4)),
                ((2, 2, 3), (2, 3, 2)),
                ((2, 3), (4, 3, 1)),
                ((2, 1, 3, 2), (3, 2, 2)),
                ((1, 1), (1, 1)),
                ((2, 0), (0, 3)),
            )
        ],
        "einsum": [
            example(real(*a), real(*b), subscripts=subscripts)
            for a, b, subscripts in (
                ((2, 3), (3, 4), "ij,jk->ik"),
                ((3,), (3,), "i,i->"),
                ((2,), (3,), "i,j->ji"),
                ((), (2,), ",i->i"),
                ((2, 3, 2), (3, 2), "bij,ij->bj"),
            )
        ],
        "inv": several(real, *_SQUARE, first=_well_conditioned),
        "det": several(real, *_SQUARE, first=_well_conditioned),
        "logabsdet": several(real, *_SQUARE, first=_well_conditioned),
        "cholesky": several(real, *_SQUARE, first=_positive_definite),
        "solve": [
            example(real(*a), real(*b), first=_well_conditioned)
            for a, b in (
                ((3, 3), (3, 2)),
                ((2, 2, 2), (2, 2, 1)),
                ((2, 2), (3, 2, 1)),
                ((3, 2, 2), (2, 1)),
            )
        ],
        # functions of networks
        "linear": [
            example(real(4, 3), real(2, 3), real(2)),
            example(sparse.csr_matrix(np.eye(3)), real(2, 3), real(2)),
        ],
        "softmax": several(
            real, (3,), (2, 3), ((2, 3), {"axis": 0}), ((2, 2, 2), {"axis": 1}), (0, 2)
        ),
        "batch_norm": [
            example(
                real(5, 3), real(3), real(3), by=lambda *inputs: functional.batch_norm(*inputs)[0]
            )
        ],
    }
)
EXAMPLES["min"], EXAMPLES["log_softmax"] = EXAMPLES["max"], EXAMPLES["softmax"]
for _name, _n in (
    ("poisson", 1),
    ("nb", 2),
    ("zinb", 3),
):  # log-likelihoods of counts (data), and _n parameters
    _shapes = [[(3, 3)] * _n, [(3, 3), (3,), (3, 3)][:_n]]
    EXAMPLES[f"{_name}_cell_log_prob"] = [
        example(counts, *[real(*shape) for shape in shapes])
        for shapes in _shapes
        for counts in (_COUNTS, sparse.csr_matrix(_COUNTS))
    ]
    EXAMPLES[f"{_name}_cell_log_prob_from_logits"] = [
        example(counts, real(3, 3), real(3, 1), *[real(*shape) for shape in shapes[1:]])
        for shapes in _shapes
        for counts in (_COUNTS, sparse.csr_matrix(_COUNTS))
    ]
    EXAMPLES[f"{_name}_log_prob"] = [
        example(_COUNTS, *[real(*shape) for shape in shapes]) for shapes in _shapes
    ] + [example(2.0, *[real()] * _n), example(_COUNTS[:, :1], *[real(2)] * _n)]


# ------------------------------------------------------------------------------------------------------ the whole table
def check_primitive(name: str, seed: int = 0) -> list[float]:
    """gradcheck of a primitive on all its examples. Returns the worst relative errors, first and second order.

    Raises KeyError where it has no example, and GradientError, which names it.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    worst = [0.0, 0.0]
    for each in EXAMPLES[name]:
        try:
            errors = gradcheck(each.function(PRIMITIVES[name]), *each.drawn(rng.random), seed=seed)
        except GradientError as error:
            shapes = [x.shape if isinstance(x, _Input) else "constant" for x in each.inputs]
            raise GradientError(f"{name} on {shapes} {each.keywords or ''}: {error}") from error
        worst = [max(pair) for pair in zip(worst, errors)]
    return worst


def main() -> int:
    """Walk the table, print the worst relative errors of each primitive; 0 if all are right and checked, else 1."""
    start, bad = time.perf_counter(), 0
    print(
        f"{'primitive':<16}{'examples':>9}{'first order':>13}{'second order':>14}   worst relative errors"
    )
    for name in sorted(PRIMITIVES):
        if not EXAMPLES.get(name):
            bad += 1
            print(f"{name:<16}        NO EXAMPLE: add one to EXAMPLES in minigrad/checking.py")
            continue
        try:
            first, second = check_primitive(name)
            print(f"{name:<16}{len(EXAMPLES[name]):>9}{first:>13.1e}{second:>14.1e}")
        except GradientError as error:
            bad += 1
            print(f"{name:<16}{len(EXAMPLES[name]):>9}    WRONG    {error}")
    seconds = time.perf_counter() - start
    verdict = f"{bad} WRONG OR UNCHECKED" if bad else "all are right"
    print(f"{len(PRIMITIVES)} primitives in {seconds:.1f} s: {verdict}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

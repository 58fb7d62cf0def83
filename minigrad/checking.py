"""Are the derivatives right? A lesson in finding out, and the check of every rule in the table.

A derivative can be had without any calculus: walk a short way h along a direction d, forwards and
backwards, and see how much the result changes. For f(x) = sum(exp(x)) the gradient is exp(x), and
so the slope along d is exp(x) @ d. Compare:

    >>> import numpy as np
    >>> x = np.array([0.0, 1.0])
    >>> d = np.array([0.6, 0.8])
    >>> def quotient(h):
    ...     return (np.sum(np.exp(x + h * d)) - np.sum(np.exp(x - h * d))) / (2 * h)
    >>> print(f"{np.exp(x) @ d:.12f}")
    2.774625462767
    >>> print(f"{quotient(0.001):.12f}")
    2.774625730727
    >>> print(f"{(4 * quotient(0.001) - quotient(0.002)) / 3:.12f}")
    2.774625462767

By Taylor's series the quotient is Q(h) = slope + a h^2 + b h^4 + ..., with some numbers a and b. In
(4 Q(h) - Q(2h)) / 3 the term with h^2 cancels (Richardson 1911); that is why the last line agrees
to all digits. This is slow, but it knows nothing of rules, and so it can judge them. Five things
make it a check that can be trusted:

1. *One random direction instead of all entries.* A derivative is a linear map J. Checking the
   single number sum(cotangent * (J d)), for a random direction d and a random cotangent (a
   weight for each entry of the output), finds any wrong J unless luck is perfect: a rule that is
   transposed, swapped, or off by a factor of 1.001 shows. A cotangent of ones would not do:
   softmax sums to one, so with ones a rule that gives 0 would pass. What a check of one number
   cannot see is a wrong entry that is 10^-7 of all of them together: check such entries by
   themselves.
2. *Several steps h.* If h is too long, h^4 is not small; if it is too short, what the subtraction
   leaves of f is rounding. No h suits all functions. But the right answer does not depend on h:
   where two steps agree, they are right, and how well they agree says how far the quotient itself
   can be trusted.
3. *float64*, because all of this would drown in the rounding of float32.
4. *Both sides apart.* At a kink, such as |x| at 0, there is no derivative to be right or wrong
   about, and the quotient above hides it: there it is 0. The slopes to either side, with f(x + h d)
   - f(x) and f(x) - f(x - h d) over h, give the kink away: they differ, and go on differing as h
   shrinks. Such entries of the output are left out, with a warning. So check a function before
   it is summed up: of a single number with a kink somewhere, nothing would be left to check.
5. *The second derivative is the first derivative of the gradient*, so the same check, given the
   function that returns the gradient, judges `create_graph=True`. Inputs are moved one at a time,
   and the gradients of all inputs are weighed, so every pair of inputs takes part.

Know before reading: tensor.py, and what a Taylor series is.

Know after: how far a difference quotient can be trusted, and that every rule in the table holds:
run `python -m minigrad.checking`, which walks it in a few seconds.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minigrad import distributions, functional  # noqa: F401  (their kernels are in the table)
from minigrad.example_inputs import EXAMPLES, Drawn
from minigrad.table import PRIMITIVES
from minigrad.tensor import Tensor, grad

TOLERANCE = 1e-7  # an error that is allowed, relative to the derivative; right rules reach 1e-8
FINE = 1e-10  # a quotient that agrees this well with its neighbour needs no shorter step
ROUGH = 1e-5  # one that agrees no better than this cannot judge anything
ROUNDING = float(np.finfo(np.float64).eps)  # of a result, relative to it

# The steps of the quotients, longest first. For a function of about 1, the extrapolated quotient is
# off by h^4 = 1e-12 at the first of them, and rounding adds as little, ROUNDING / h = 2e-13: a
# longer one is worse. At the last, ROUNDING / h = 4e-6 is nearly ROUGH: a shorter one is no use.
STEPS = [2.0**-k for k in range(10, 35, 3)]
# The steps with which kinks are looked for; shorter ones only where these leave the domain of f.
SHORT_STEPS = [2.0**-k for k in (22, 26, 30, 34)]
# Near a point where f is like |h|^p, a quarter of the step gives 4^(1-p) times the slope. A kink
# has p = 1; p is 3/2 or more where f is smooth, and 1/2 or less where it jumps or is vertical. The
# limits are drawn halfway, at p = 5/4 and at p = 3/4.
KINK = 4.0**-0.25
STEEP = 4.0**0.25


class GradientError(AssertionError):
    """A derivative is wrong, or cannot be checked; the message says which, and by how much."""


# --------------------------------------------------------------------------------------- gradcheck
def gradcheck(f: Callable, *inputs: Any, order: int = 2, seed: int = 0) -> list[float]:
    """Hold the derivatives of f at the given inputs against difference quotients.

    f: takes as many Tensors (float64) as there are inputs and returns one, of any shape; it must be
    deterministic, so draw noise outside. inputs: arrays, numbers or Tensors of any shape, converted
    to float64. order: 1, or 2 for second derivatives too. seed: of the random directions and
    cotangents. Returns the worst relative error found, one number per order.

    Raises GradientError, which names the input, the direction and both values, where a derivative
    is wrong; also where a gradient has the wrong shape or dtype or is not finite, where the graph
    to an input is cut, and where f returns something else than a finite float64 Tensor. Warns
    (UserWarning) where f does not depend on an input, and where it has no derivative: entries that
    have a kink or a jump there are left out of the comparison. ValueError for another order.

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

    # A weight for each entry of the output; a direction for each input, longer where it is large;
    # and a weight for each entry of the gradients, which are the output at second order.
    rng = np.random.default_rng(seed)
    cotangent = _random(rng, y.shape)
    directions = [_random(rng, x.shape) * np.maximum(1.0, np.abs(x)) for x in arrays]
    weights = [_random(rng, x.shape) for x in arrays]
    unit = float(np.max(np.abs(y), initial=0.0))  # a typical size, to judge rounding by
    with np.errstate(all="ignore"):  # steps may leave the domain of f, where nothing is checked
        error, cotangent = _check_first_order(f, arrays, unit, directions, cotangent)
        worst = [error]
        if order == 2:
            _check_recorded(f, arrays, unit, cotangent)
            worst.append(_check_second_order(f, arrays, unit, directions, cotangent, weights))
    return worst


def _check_first_order(f, arrays, unit, directions, cotangent):
    """Move one input after the other, and compare the slopes of f with the gradients.

    Returns the worst error, and the cotangent with 0 for the entries that have no derivative.
    """
    worst = 0.0
    for i, direction in enumerate(directions):
        line = Line(lambda xs: _value(f, xs), arrays, i, direction, "first", unit)
        by_rules = partial(_gradient, f, arrays, i)  # cotangent -> gradient of input i
        error, smooth = _compare(line, by_rules, cotangent)
        worst = max(worst, error)
        # What has no first derivative has no second one either.
        cotangent = np.where(smooth, cotangent, 0.0)
    return worst, cotangent


def _check_second_order(f, arrays, unit, directions, cotangent, weights):
    """The same for the function that returns the gradients of <cotangent, f>, of all inputs."""

    def gradients(xs):
        return _flat(_gradients(f, xs, cotangent))

    worst = 0.0
    for i, direction in enumerate(directions):
        line = Line(gradients, arrays, i, direction, "second", unit)
        by_rules = partial(_second_gradient, f, arrays, i, cotangent)  # weights -> gradient
        error, _ = _compare(line, by_rules, _flat(weights))
        worst = max(worst, error)
    return worst


def _check_recorded(f, arrays, unit, cotangent):
    """Gradients with create_graph=True come from rules on Tensors, or from a kernel's twin.

    They must be the same numbers as without: GradientError otherwise.
    """
    plain = _gradients(f, arrays, cotangent)
    recorded = _gradients(f, arrays, cotangent, create_graph=True)
    largest = [float(np.max(np.abs(g), initial=0.0)) for g in plain]
    scale = max(1e-6 * unit, *largest)  # gradients far smaller than f may be only rounding
    for i, (a, b) in enumerate(zip(plain, recorded)):
        if not isinstance(b, Tensor) or b.shape != a.shape or b.dtype != a.dtype:
            raise GradientError(
                f"gradcheck: create_graph=True gives something else for input {i}: {b!r:.200}"
            )
        error = np.max(np.abs(a - b.data), initial=0.0)
        if error > TOLERANCE * scale:
            raise GradientError(
                f"gradcheck: the gradient for input {i} (shape {a.shape}) differs by {error:.3g}, "
                f"of {scale:.3g}, between create_graph=False and True: a rule or a kernel's twin "
                "is wrong"
            )


class Line(NamedTuple):
    """A function of all inputs as a function of one number h: input `i` moves along `direction`.

    function: list of arrays -> array, of any shape. order: "first" or "second", for messages. unit:
    a typical size of what f computes with; rounding is judged by it where the function itself gives
    nothing but rounding, such as the gradient of a constant.
    """

    function: Callable[[list[np.ndarray]], np.ndarray]
    arrays: list[np.ndarray]
    i: int
    direction: np.ndarray
    order: str
    unit: float

    def __call__(self, h: float) -> np.ndarray:
        moved = list(self.arrays)
        moved[self.i] = moved[self.i] + h * self.direction
        return self.function(moved)

    def __str__(self) -> str:
        shape = self.direction.shape
        return f"the {self.order} derivative with respect to input {self.i} (shape {shape})"

    def along(self) -> str:
        """The direction in words."""
        text = np.array2string(
            self.direction, precision=4, separator=", ", threshold=12, edgeitems=2
        )
        return "along the direction " + " ".join(text.split())


def _compare(line: Line, by_rules: Callable, cotangent: np.ndarray):
    """Hold the slope of <cotangent, line(h)> at h = 0 against <gradient, direction>.

    by_rules: cotangent -> the gradient by the rules, and whether a graph leads to the input.
    Returns the relative error, and which entries of line(0) are smooth; the others are left out.
    Raises GradientError.
    """
    smooth = smooth_entries(line)
    gradient, is_connected = by_rules(np.where(smooth, cotangent, 0.0))
    _demand_alike(line, gradient)
    is_finite = bool(np.all(np.isfinite(gradient)))
    if not np.all(smooth):
        _warn_of_kinks(line, smooth, is_finite)
        if not is_finite:
            return 0.0, smooth
    if not is_finite:
        n_bad = np.sum(~np.isfinite(gradient))
        raise GradientError(f"gradcheck: {line} has {n_bad} entries that are not finite")

    slope = measured_slope(line, cotangent, smooth)
    value = float(np.sum(gradient * line.direction))
    scale = max(slope.scale, float(np.sum(np.abs(gradient * line.direction))))
    error = abs(slope.value - value)
    # The quotient's own uncertainty is an estimate: ten times as much is not yet a proof.
    if error > max(TOLERANCE * scale, 10.0 * slope.uncertainty):
        cut = (
            "; no graph leads from the output to this input (.data, detach or no_grad on the way?)"
        )
        raise GradientError(
            f"gradcheck: {line} is wrong {line.along()}: difference quotients give "
            f"{slope.value:.12g}, the rules give {value:.12g} (relative error {error / scale:.1e}, "
            f"that of the quotients {slope.uncertainty / scale:.0e}){'' if is_connected else cut}"
        )
    if not is_connected:
        warnings.warn(
            f"gradcheck: f does not depend on input {line.i}: nothing to check",
            UserWarning,
            stacklevel=4,
        )
    return error / scale if scale else 0.0, smooth


def _demand_alike(line, gradient):
    """GradientError unless the gradient has shape and dtype of its input."""
    x = line.arrays[line.i]
    if gradient.shape != x.shape or gradient.dtype != x.dtype:
        raise GradientError(
            f"gradcheck: {line} comes as {gradient.dtype} of shape {gradient.shape}, the input is "
            f"{x.dtype} of shape {x.shape}"
        )


def _warn_of_kinks(line, smooth, is_finite):
    whose = "the output" if line.order == "first" else "the gradients"
    warnings.warn(
        f"gradcheck: {line} does not exist here: {np.sum(~smooth)} of {smooth.size} entries of "
        f"{whose} have a kink, a jump or an end of their domain {line.along()}; they are left out"
        + ("" if is_finite else ", and the gradient is not finite"),
        UserWarning,
        stacklevel=5,
    )


# ----------------------------------------------------------------------------- difference quotients
def smooth_entries(line: Line) -> np.ndarray:
    """Which entries of line(0) have one slope, and not one to either side: booleans of its shape.

    For a smooth function the two slopes differ by h f'', so that with a quarter of the step only a
    quarter of the difference is left. At a kink all of it is left. And where the slopes themselves
    grow as the step shrinks, f jumps or is infinitely steep.
    """
    here = line(0.0)
    for h in SHORT_STEPS:
        near = _both_sides(line, here, h)
        far = _both_sides(line, here, 4.0 * h)
        if np.all(np.isfinite(near.difference)) and np.all(np.isfinite(far.difference)):
            break
    finite_size = near.size[np.isfinite(near.size)]
    finite_value = np.abs(here[np.isfinite(here)])
    largest_size = np.max(finite_size, initial=0.0)
    largest_value = max(np.max(finite_value, initial=0.0), line.unit)
    # Differences that mean nothing: curvature, as long as f'' is less than 800 times f'; what
    # entries with large slopes leave in others; and the rounding of a thousand operations.
    noise = 1e-4 * near.size + 1e-7 * largest_size + 1e3 * ROUNDING * largest_value / h
    is_no_kink = (near.difference <= noise) | (near.difference <= KINK * far.difference)
    is_not_steep = near.size <= STEEP * far.size + noise
    return np.isfinite(near.difference) & is_no_kink & is_not_steep


class _Sides(NamedTuple):
    """The slopes to either side: their difference, and the sum of their sizes; of each entry."""

    difference: np.ndarray
    size: np.ndarray


def _both_sides(line, here, h) -> _Sides:
    ahead = (line(h) - here) / h
    behind = (here - line(-h)) / h
    return _Sides(np.abs(ahead - behind), np.abs(ahead) + np.abs(behind))


class Slope(NamedTuple):
    """A slope by difference quotients."""

    value: float
    uncertainty: float  # how far off it may be
    scale: float  # what an error is to be compared with: the value, if no entries cancel in it


def measured_slope(line: Line, cotangent: np.ndarray, smooth: np.ndarray) -> Slope:
    """d<cotangent, line(h)>/dh at h = 0 over the smooth entries: the best of several steps.

    cotangent, smooth: of the shape of line(0). GradientError where no step can be trusted.

    The quotients of three steps, Q(h), Q(2h) and Q(4h), give two extrapolations, whose errors are
    proportional to h^4 and (2h)^4: they differ by fifteen times the error of the finer one. The
    uncertainty is this difference, and the rounding of f over h.
    """
    c = cotangent[smooth]
    size = float(np.abs(c) @ np.abs(line(0.0)[smooth]))
    smallest_scale = _smallest_scale(line, c, size, smooth)
    best = Slope(0.0, np.inf, 1.0)
    for h in STEPS:
        near, middle, far = [
            (line(step) - line(-step))[smooth] / (2.0 * step) for step in (h, 2.0 * h, 4.0 * h)
        ]
        fine = (4.0 * near - middle) / 3.0
        coarse = (4.0 * middle - far) / 3.0
        uncertainty = abs(float(c @ (fine - coarse))) + ROUNDING * size / h
        if np.isfinite(uncertainty) and uncertainty < best.uncertainty:
            scale = max(float(np.abs(c) @ np.abs(fine)), smallest_scale)
            best = Slope(float(c @ fine), uncertainty, scale)
        if best.uncertainty <= FINE * best.scale:
            break
    if best.uncertainty > ROUGH * best.scale:
        raise GradientError(
            f"gradcheck: {line} cannot be judged {line.along()}: difference quotients settle no "
            f"better than to {best.value:.6g} +- {best.uncertainty:.1g}; f is noisy, of low "
            "precision, or has a kink near"
        )
    return best


def _smallest_scale(line, c, size, smooth) -> float:
    """The least that errors are compared with, because the slope itself may be 0.

    Rounding alone makes a slope of ROUNDING * size / h: the scale is such that the tolerance allows
    for that. And where f is steep nearby, the scale is a hundredth of how steep it is there.
    """
    rounding = ROUNDING * max(size, 4.0 * line.unit) / STEPS[0]
    scale = rounding / TOLERANCE
    here = line(0.0)[smooth]
    farthest = 4.0 * STEPS[0]  # where the longest of all quotients begins
    for h in (farthest, -farthest):
        steepness = float(np.abs(c) @ np.abs((line(h)[smooth] - here) / h))
        if np.isfinite(steepness):
            scale = max(scale, 0.01 * steepness)
    return scale


# -------------------------------------------------------------------------- values and gradients
def _random(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """Random signs and lengths between 1/2 and 3/2: no entry is so small that it hides an error."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)


def _flat(arrays: Sequence) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays])


def _value(f: Callable, arrays: Sequence) -> np.ndarray:
    """f at arrays, as an array. GradientError unless f returns a float64 Tensor."""
    y = f(*[Tensor(x) for x in arrays])
    if not isinstance(y, Tensor):
        raise GradientError(
            f"gradcheck: f returned a {type(y).__name__}, not a Tensor: no derivative can flow"
        )
    if y.dtype != np.float64:
        raise GradientError(
            f"gradcheck: f returned {y.dtype} for float64 inputs: something on the way is not "
            "float64"
        )
    return y.data


def _demand_finite(f, arrays, y):
    """GradientError unless the inputs and the output y of f are finite, and f gives y again."""
    named = {f"input {i}": x for i, x in enumerate(arrays)}
    named["the output of f"] = y
    for name, x in named.items():
        n_bad = np.sum(~np.isfinite(x))
        if n_bad:
            raise GradientError(
                f"gradcheck: {name} has {n_bad} of {np.size(x)} entries that are not finite"
            )
    if not np.array_equal(y, _value(f, arrays)):
        raise GradientError(
            "gradcheck: f gives two different results at the same inputs; draw noise outside of it"
        )


def _gradient(f, arrays, i, cotangent):
    """The gradient of <cotangent, f> with respect to input i, and whether a graph leads there."""
    xs = [Tensor(x, requires_grad=k == i) for k, x in enumerate(arrays)]
    y = f(*xs)
    what = f"the first derivative with respect to input {i} (shape {arrays[i].shape})"
    (gradient,) = _grad(y, [xs[i]], cotangent, what)
    return gradient, y.requires_grad


def _gradients(f, arrays, cotangent, **keywords):
    """The gradients of <cotangent, f> with respect to all inputs."""
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    what = "the first derivatives with respect to all inputs"
    return _grad(f(*xs), xs, cotangent, what, **keywords)


def _second_gradient(f, arrays, i, cotangent, weights):
    """The gradient, with respect to input i, of <weights, gradients of <cotangent, f>>; and True.

    weights: flat, those of all inputs one after the other.
    """
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    what = f"the second derivative with respect to input {i} (shape {arrays[i].shape})"
    gradients = _grad(f(*xs), xs, cotangent, what, create_graph=True)
    total = np.zeros_like(arrays[i])
    start = 0
    for g, x in zip(gradients, arrays):  # one by one: not all of them need depend on the inputs
        weight = weights[start : start + x.size].reshape(x.shape)
        (part,) = _grad(g, [xs[i]], weight, what)
        total = total + part
        start += x.size
    return total, True


def _grad(y, xs, cotangent, what, **keywords):
    """minigrad.grad; whatever goes wrong in a rule is told as a GradientError."""
    try:
        return grad(y, xs, cotangent, **keywords)
    except Exception as error:
        raise GradientError(
            f"gradcheck: {what} could not be computed: {type(error).__name__}: {error}"
        ) from error


# ---------------------------------------------------------------------------------- the whole table
def check_primitive(name: str, seed: int = 0) -> list[float]:
    """gradcheck of a primitive on all its examples. Returns the worst errors of both orders.

    Raises KeyError where it has no example, and GradientError, which names it.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    worst = [0.0, 0.0]
    for example in EXAMPLES[name]:
        try:
            f = example.function(PRIMITIVES[name])
            errors = gradcheck(f, *example.drawn(rng.random), seed=seed)
        except GradientError as error:
            shapes = [x.shape if isinstance(x, Drawn) else "constant" for x in example.inputs]
            raise GradientError(f"{name} on {shapes} {example.keywords or ''}: {error}") from error
        worst = [max(pair) for pair in zip(worst, errors)]
    return worst


def main() -> int:
    """Check every primitive of the table, and print its worst relative errors.

    Returns 0 if all are right and have examples, else 1.
    """
    started = time.perf_counter()
    n_bad = 0
    print(f"{'primitive':<24}{'examples':>9}{'first order':>13}{'second order':>14}")
    for name in sorted(PRIMITIVES):
        n_examples = len(EXAMPLES.get(name, []))
        if not n_examples:
            n_bad += 1
            print(f"{name:<24} NO EXAMPLE: add a row to minigrad/example_inputs.py")
            continue
        try:
            first, second = check_primitive(name)
            print(f"{name:<24}{n_examples:>9}{first:>13.1e}{second:>14.1e}")
        except GradientError as error:
            n_bad += 1
            print(f"{name:<24}{n_examples:>9}    WRONG    {error}")
    seconds = time.perf_counter() - started
    verdict = f"{n_bad} WRONG OR UNCHECKED" if n_bad else "all are right"
    print(f"{len(PRIMITIVES)} primitives in {seconds:.1f} s: {verdict}")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())

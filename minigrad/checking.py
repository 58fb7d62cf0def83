"""Are the derivatives right? How to find out, and the check of every rule in the table.

This is a lesson. Difference quotients measure slopes and say how far they may be off
(quotients.py); the rules claim what the slopes are: for each function that can be differentiated
there is one in *the table* (table.py, ops.py). Here the two meet. For f(x) = x^2 at x = (1000,
0.1):

    >>> import numpy as np
    >>> from minigrad import primitive
    >>> square = primitive(
    ...     lambda x: x ** 2,
    ...     lambda g, y, x: g * np.where(abs(x) < 1.0, 0.0, 2.0 * x),  # wrong where x is small
    ...     name="wrong square")
    >>> gradcheck(square, np.array([1000.0, 0.1]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    minigrad.checking.GradientError: ... is wrong at entry (1,) of the input, for entry (1,) of \
the output: difference quotients give 0.2, the rules give 0 (relative error 1.0e+00, ...)

Measuring is half of it. What makes the comparison one that can be trusted:

1. *Every entry by itself.* A derivative is a matrix J, the Jacobian: J[j, i] says how entry j of
   the output changes with entry i of the input. Moving entry i alone measures column i of it. A
   gradient is a row: with a 1 at entry j as the gradient of the output, and 0 elsewhere, the rules
   give row j. So all of J can be compared. A single number, such as the slope of the sum of f along
   all ones, would not do: softmax sums to one, so a rule that gives 0 would pass.
2. *Each by its own scale.* In the example the slopes are 2000 and 0.2: an error of 0.2 is one of a
   whole, not of a ten-thousandth. And an entry is moved by parts of its own size: a step of 0.01 is
   short at 1000, and leaves the domain of log at 1e-10.
3. *What cannot be seen is said.* Where the change drowns in rounding, or where there is no slope,
   nothing is proved. That is a warning, or, where nothing else is left, an error.
4. *Large arrays in groups.* With thousands of entries J is too much. Then entries of similar size
   are moved together, by random lengths and signs, and looked at together, with random weights: a
   rule that is transposed, swapped, or off by a factor of 1.001 still shows, unless luck is
   perfect. What cannot be seen is a wrong entry that is 1e-7 of its group.
5. *The second derivative is the first derivative of the gradient*, so the same check, given the
   function that returns the gradient of a weighted sum of f, judges `create_graph=True`. The
   weights, an array of the shape of what f returns, are called `cotangent` below.
6. *Rules may only read.* One that writes into the gradient that it was given is right by itself and
   spoils the next one, which was given the same array. Here they get arrays that are read-only.

Know before reading: tensor.py and quotients.py.

Know after: that every rule in the table holds: run `python -m minigrad.checking`, which walks it in
some ten seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minigrad import distributions, functional  # noqa: F401  (their kernels are in the table)
from minigrad.example_inputs import EXAMPLES, Drawn
from minigrad.quotients import (
    DOUBT,
    ROUNDING,
    Slopes,
    measured_rounding,
    measured_slopes,
    random_weights,
)
from minigrad.table import PRIMITIVES
from minigrad.tensor import Tensor, grad

TOLERANCE = 1e-7  # an error that is allowed, relative to the derivative; right rules reach 1e-9
ROUGH = 1e-5  # a quotient that is no more certain than this, relative to it, cannot judge
N_GROUPS = 8  # an array of up to so many entries is judged entry by entry, a larger one in groups


class GradientError(AssertionError):
    """A derivative is wrong, or cannot be checked; the message says which, and by how much."""


# --------------------------------------------------------------------------------------- gradcheck
def gradcheck(f: Callable, *inputs: Any, order: int = 2, seed: int = 0) -> list[float]:
    """Hold the derivatives of f at the given inputs against difference quotients.

    f: takes as many Tensors (float64) as there are inputs and returns one, of any shape; it must be
    deterministic, so draw noise outside. inputs: arrays, numbers or Tensors of any shape, converted
    to float64. order: 1, or 2 for second derivatives too. seed: of the random weights with which
    the entries of large arrays are combined. Returns one number per order: the worst relative error
    of those derivatives that difference quotients give to seven digits (those that they give to
    five are judged, too); 0.0 also where there are none of these, and NaN for second order where no
    entry of the output has a first derivative.

    Raises GradientError, which names the input, the entries and both values, where a derivative is
    wrong; also where a gradient has the wrong shape or dtype or is not finite, where a rule writes
    into an array that it was given, where the graph to an input is cut, where f returns something
    else than a finite float64 Tensor, and where nothing could be judged. Warns (UserWarning) of
    what could not be judged beside what could, and is left out: entries of the output that have a
    kink or a jump, and slopes that drown in the rounding of f. Warns where f does not depend on an
    input. ValueError for another order.

        >>> worst = gradcheck(lambda x: np.sum(np.exp(x)), np.array([0.0, 1.0]))
        >>> len(worst), max(worst) < 1e-8
        (2, True)
    """
    if order not in (1, 2):
        raise ValueError(f"gradcheck: order must be 1 or 2, not {order!r}")
    if not inputs:
        raise ValueError("gradcheck: no inputs to differentiate with respect to")
    arrays = [np.array(x.data if isinstance(x, Tensor) else x, dtype=np.float64) for x in inputs]
    arrays = [_read_only(x) for x in arrays]
    y = _value(f, arrays)
    _demand_finite(f, arrays, y)

    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):  # steps may leave the domain of f, where nothing is checked
        first = Derivative(
            order="first",
            arrays=arrays,
            function=lambda xs: np.ravel(_value(f, xs)),
            rules=partial(_first_rules, f),
            shapes=[y.shape],
            largest=_largest([*arrays, y]),
        )
        rounding = first.rounding(rng)
        error, is_smooth = _check(first, rounding, rng)
        worst = [error]
        if order == 2:
            # What is differentiated again is the gradient of a weighted sum of all entries of the
            # output. Each has one over its own size as weight, so that all take about the same
            # part. (An entry of less than a millionth of the largest is weighted as if it were a
            # millionth: so large a weight would enlarge its rounding, too, and could drown the
            # others in it.) What has no first derivative has no second one either, and takes none.
            size = np.maximum(rounding, 1e-6 * np.max(rounding, initial=0.0)) / ROUNDING
            weights = np.where(is_smooth, random_weights(rng, size.shape) / size, 0.0)
            cotangent = weights.reshape(y.shape)
            second = Derivative(
                order="second",
                arrays=arrays,
                function=lambda xs: _flat(_gradients(f, xs, cotangent)),
                rules=partial(_second_rules, f, cotangent),
                shapes=[x.shape for x in arrays],
                largest=_largest([*arrays, y, cotangent]),
                has_kinks=not np.all(is_smooth),
            )
            rounding = second.rounding(rng)
            _check_same_with_graph(second, f, cotangent, rounding, rng)
            error, _ = _check(second, rounding, rng)
            has_no_slope = is_smooth.size > 0 and not np.any(is_smooth)  # so all weights are 0
            worst.append(float("nan") if has_no_slope else error)
    return worst


class Derivative(NamedTuple):
    """What is checked: a function of all inputs, and what the rules say of its derivative.

    order: "first" or "second", for messages. arrays: the inputs. function: list of arrays -> flat
    array; at second order it gives the gradients of all inputs, one after the other. shapes: those
    of its parts. rules: (arrays, i) -> a function from weights, one for each entry that `function`
    returns, to the gradient of the weighted sum with respect to input i; and whether a graph leads
    from input i to there. largest: of the numbers that it computes with, as far as they are known.
    has_kinks: of second order, whether the first has entries without a slope; the rules may have
    NaN beyond them.
    """

    order: str
    arrays: list[np.ndarray]
    function: Callable[[list[np.ndarray]], np.ndarray]
    rules: Callable
    shapes: list[tuple[int, ...]]
    largest: float
    has_kinks: bool = False

    def of_flat(self, flat: np.ndarray) -> np.ndarray:
        """The function of all inputs in one flat array."""
        return self.function(_parts(flat, self.arrays))

    def rounding(self, rng: np.random.Generator) -> np.ndarray:
        """That of each entry that the function returns: as many numbers, flat."""
        return self.rounding_of(self.of_flat, rng)

    def rounding_of(self, function: Callable, rng: np.random.Generator) -> np.ndarray:
        """That of another function of the same flat array."""
        return measured_rounding(function, _flat(self.arrays), ROUNDING * self.largest, rng)

    def name(self, i: int) -> str:
        """What is checked, for messages: the derivative with respect to input i."""
        shape = self.arrays[i].shape
        return f"the {self.order} derivative with respect to input {i} (shape {shape})"

    def entry(self, at: int) -> str:
        """The name of the entry of this number of what the function returns."""
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        part = int(np.searchsorted(np.cumsum(sizes), at, side="right"))
        index = _index(at - sum(sizes[:part]), self.shapes[part])
        if self.order == "first":
            return f"entry {index} of the output"
        return f"entry {index} of the gradient for input {part}"


def _check(derivative: Derivative, rounding: np.ndarray, rng: np.random.Generator):
    """Compare rules and quotients for one input after the other.

    Returns the worst error, and which entries of the output have slopes wherever inputs move.
    """
    outputs = grouped(derivative.function(derivative.arrays), rng)
    worst = 0.0
    is_smooth = np.ones(len(outputs.entries), bool)
    for i in range(len(derivative.arrays)):
        comparison = Comparison(derivative, i, outputs, rounding, rng)
        verdict = comparison.verdict()
        _tell(comparison, verdict)
        worst = max(worst, verdict.worst_error())
        is_smooth &= np.all(comparison.is_smooth, axis=0)
    return worst, is_smooth


def _check_same_with_graph(derivative, f, cotangent, rounding, rng):
    """Gradients with create_graph=True come from rules on Tensors, or from a kernel's twin.

    They must be the same numbers as without: GradientError otherwise.
    """

    def recorded(flat):
        xs = _parts(flat, derivative.arrays)
        found = _gradients(f, xs, cotangent, create_graph=True)
        for i, (g, x) in enumerate(zip(found, xs)):
            if not isinstance(g, Tensor) or g.shape != x.shape or g.dtype != x.dtype:
                raise GradientError(
                    f"gradcheck: create_graph=True gives something else for input {i}: {g!r:.200}"
                )
        return _flat([g.data for g in found])

    inputs = _flat(derivative.arrays)
    plain = derivative.of_flat(inputs)
    again = recorded(inputs)
    error = np.abs(plain - again)
    allowed = TOLERANCE * np.maximum(np.abs(plain), np.abs(again)) + DOUBT * rounding
    if np.any(error > allowed):  # a twin may round more than its kernel
        allowed = allowed + DOUBT * derivative.rounding_of(recorded, rng)
    if np.any(error > allowed):
        worst = int(np.argmax(error - allowed))
        raise GradientError(
            f"gradcheck: {derivative.entry(worst)} is {plain[worst]:.12g} with create_graph=False "
            f"and {again[worst]:.12g} with True: a rule or a kernel's twin is wrong"
        )


# ------------------------------------------------------------------------------- entries in groups
class Groups(NamedTuple):
    """The entries of a flat array in groups, each of which is judged by itself.

    entries: their numbers, group after group. starts: where in `entries` each group starts.
    weights: of the entries, in the same order.
    """

    entries: np.ndarray
    starts: np.ndarray
    weights: np.ndarray

    def members(self, k: int) -> np.ndarray:
        """The numbers of the entries in the k-th group: (n_members,)."""
        return np.split(self.entries, self.starts[1:])[k]

    def vectors(self) -> np.ndarray:
        """For each group its weights, in their places, and 0 elsewhere: (n_groups, n_entries)."""
        found = np.zeros((len(self.starts), len(self.entries)))
        lengths = np.diff(self.starts, append=len(self.entries))
        found[np.repeat(np.arange(len(self.starts)), lengths), self.entries] = self.weights
        return found

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The weighted sum of each group: (..., n_entries) -> (..., n_groups)."""
        return np.add.reduceat(values[..., self.entries] * self.weights, self.starts, axis=-1)

    def sizes(self, values: np.ndarray) -> np.ndarray:
        """The same of absolute values and weights: (..., n_entries) -> (..., n_groups)."""
        absolute = self._replace(weights=np.abs(self.weights))
        return absolute.sums(np.abs(values))

    def any(self, flags: np.ndarray) -> np.ndarray:
        """Which groups have an entry with a flag: (..., n_entries) -> (..., n_groups)."""
        return self.sizes(flags.astype(float)) > 0.0


def grouped(values: np.ndarray, rng: np.random.Generator) -> Groups:
    """Every entry by itself, with weight 1. Of a large array, entries of similar size together.

    values: of any shape.
    """
    entries = np.argsort(np.abs(values), axis=None, kind="stable")
    if entries.size <= N_GROUPS:
        return Groups(entries, np.arange(entries.size), np.ones(entries.size))
    starts = np.arange(N_GROUPS) * entries.size // N_GROUPS
    return Groups(entries, starts, random_weights(rng, entries.shape))


# ------------------------------------------------------------------------- rules against quotients
class Verdict(NamedTuple):
    """What quotients say of rules: for each group of entries that moved (rows) and of outputs."""

    quotient: np.ndarray
    rule: np.ndarray
    uncertainty: np.ndarray
    scale: np.ndarray  # what an error is to be compared with: the slope's own size
    reach: np.ndarray  # how far the input moves at a step of 1
    is_wrong: np.ndarray
    is_right: np.ndarray
    is_flat: np.ndarray  # right, but all that is known is that f changes by no more than rounding
    is_left_out: np.ndarray  # of some outputs in the group there is no slope
    is_settled: np.ndarray  # the quotients are as good as rounding allows

    @property
    def is_too_small(self) -> np.ndarray:
        """Neither right nor wrong, as the slope drowns in rounding: the shape of the fields."""
        return ~self.is_wrong & ~self.is_right & self.is_settled

    @property
    def is_unsettled(self) -> np.ndarray:
        """Neither right nor wrong, as no two steps give the same: the shape of the fields."""
        return ~self.is_wrong & ~self.is_right & ~self.is_settled

    def worst_error(self) -> float:
        """The largest relative error, where it is that of the rules and not of the quotients."""
        is_certain = (DOUBT * self.uncertainty <= TOLERANCE * self.scale) & (self.scale > 0.0)
        errors = np.abs(self.quotient - self.rule)[is_certain] / self.scale[is_certain]
        return float(np.max(errors, initial=0.0))


class Comparison:
    """The derivative with respect to input i: by the rules, and by quotients."""

    def __init__(self, derivative: Derivative, i: int, outputs: Groups, rounding, rng):
        self.derivative = derivative
        self.i = i
        self.x = derivative.arrays[i]
        self.inputs = grouped(self.x, rng)
        self.outputs = outputs
        self.rounding = rounding
        self.rng = rng
        self.gradient_of, self.is_connected = derivative.rules(derivative.arrays, i)
        self.gradients = self.by_rules(self.gradient_of)

    def verdict(self) -> Verdict:
        """Compare. Each entry is moved by parts of its own size.

        Where that is too little to be seen beside other entries, as in 1000 + 1e-10, it is moved by
        parts of the size of the largest.
        """
        own = np.where(self.x == 0.0, 1.0, np.abs(self.x)).ravel()
        longest = np.full(own.shape, np.max(own, initial=1.0))
        first, self.is_smooth = self.verdict_within(own)
        is_still = (first.quotient == 0.0) & (first.rule == 0.0)
        is_open = first.is_too_small | (first.is_flat & ~is_still)
        if not np.any(is_open) or np.all(own == longest):
            return first
        second, _ = self.verdict_within(longest)
        is_proof = second.is_wrong | (second.is_right & ~second.is_flat)
        is_better = is_open & is_proof & (second.quotient != 0.0)
        return Verdict(*[np.where(is_better, b, a) for a, b in zip(first, second)])

    def verdict_within(self, reach: np.ndarray) -> tuple[Verdict, np.ndarray]:
        """Compare, with each entry moved by parts of its reach.

        reach: flat, of the input's size. Returns also where there is a slope: booleans of shape
        (n_groups of the input, size of the output).
        """
        directions = self.inputs.vectors() * reach
        found = self.by_quotients(directions)
        rule, is_known = self.slopes_by_rules(directions, found.is_smooth)
        verdict = self.judged(found, rule, is_known, directions, 0.0)
        if not np.all(verdict.is_right):  # rules round, too: may that be all?
            noise = self.rounding_of_rules(rule, directions)
            verdict = self.judged(found, rule, is_known, directions, noise)
        return verdict, found.is_smooth

    def judged(self, found, rule, is_known, directions, rounding_of_rules) -> Verdict:
        """found: the measured Slopes. rule: what they are by the rules. is_known: what to judge."""
        value = np.where(is_known, found.value, 0.0)
        quotient = self.outputs.sums(value)
        scale = np.maximum(self.outputs.sizes(value), np.abs(rule))
        error = np.abs(quotient - rule)
        # Where f does not change at all, its change may have been lost beside larger numbers.
        lost = np.where(quotient == 0.0, ROUNDING * self.derivative.largest, 0.0)
        rounding = self.outputs.sizes(self.rounding) + lost + rounding_of_rules
        uncertainty = self.outputs.sizes(np.where(is_known, found.uncertainty, 0.0))
        uncertainty = uncertainty + lost + rounding_of_rules

        is_wrong = error > TOLERANCE * scale + DOUBT * uncertainty
        is_flat = ~is_wrong & (np.abs(rule) <= DOUBT * rounding)
        return Verdict(
            quotient=quotient,
            rule=rule,
            uncertainty=uncertainty,
            scale=scale,
            reach=np.max(np.abs(directions), axis=1, keepdims=True, initial=0.0) + 0.0 * scale,
            is_wrong=is_wrong,
            is_right=~is_wrong & ((uncertainty <= ROUGH * scale) | is_flat),
            is_flat=is_flat,
            is_left_out=self.outputs.any(~is_known),
            is_settled=~self.outputs.any(is_known & ~found.is_settled),
        )

    def by_quotients(self, directions: np.ndarray) -> Slopes:
        """The slopes of all outputs along directions (n_directions, size of the input)."""
        before = sum(x.size for x in self.derivative.arrays[: self.i])
        flat = _flat(self.derivative.arrays)
        moves = np.zeros((len(directions), flat.size))
        moves[:, before : before + self.x.size] = directions
        return measured_slopes(self.derivative.of_flat, flat, moves, self.rounding)

    def by_rules(self, gradient_of: Callable) -> np.ndarray:
        """The gradient of each group of outputs: (n_groups, size of the input).

        GradientError unless they have shape and dtype of the input, and come out the same again.
        """
        vectors = self.outputs.vectors()
        asked = [*vectors, vectors[0]] if len(vectors) else [np.zeros(0)] * 2
        found = []
        for weights in asked:
            g = gradient_of(weights)
            if g.shape != self.x.shape or g.dtype != self.x.dtype:
                raise GradientError(
                    f"gradcheck: {self.derivative.name(self.i)} comes as {g.dtype} of shape "
                    f"{g.shape}, the input is {self.x.dtype} of shape {self.x.shape}"
                )
            found.append(g.ravel())
        if not np.allclose(found[0], found[-1], TOLERANCE, 0.0, equal_nan=True):
            raise GradientError(
                f"gradcheck: {self.derivative.name(self.i)} is another one when it is computed "
                "once more from the same graph: a rule changes what was kept for it"
            )
        return np.array(found[:-1])[: len(vectors)]

    def slopes_by_rules(
        self, directions: np.ndarray, is_smooth: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slopes (n_directions, n_groups) of outputs, of the entries that are smooth.

        Returns them, and is_smooth without the entries next to a kink whose slope is not finite.
        GradientError where it is not finite without a kink.
        """
        slopes = _along(self.gradients, directions)
        has_kink = self.outputs.any(~is_smooth)
        for row, group in np.argwhere(has_kink):
            weights = np.where(is_smooth[row], self.outputs.vectors()[group], 0.0)
            gradient = self.gradient_of(weights).reshape(1, -1)
            slopes[row, group] = _along(gradient, directions[row : row + 1])[0, 0]

        is_bad = ~np.isfinite(slopes)
        is_without_reason = is_bad & ~np.any(has_kink, axis=1, keepdims=True)
        if np.any(is_without_reason) and not self.derivative.has_kinks:
            n_bad = max(1, np.sum(~np.isfinite(self.gradients)))
            raise GradientError(
                f"gradcheck: {self.derivative.name(self.i)} has {n_bad} entries that are not finite"
            )
        is_known = is_smooth.copy()
        for row, group in np.argwhere(is_bad):
            is_known[row, self.outputs.members(group)] = False
        return np.where(is_bad, 0.0, slopes), is_known

    def rounding_of_rules(self, slopes: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """How far rounding moves the slopes by the rules: of the shape of the slopes."""

        def by_rules(flat):
            gradient_of, _ = self.derivative.rules(_parts(flat, self.derivative.arrays), self.i)
            return _along(self.by_rules(gradient_of), directions).ravel()

        return self.derivative.rounding_of(by_rules, self.rng).reshape(slopes.shape)


def _along(gradients: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Slopes from gradients: (n_groups, n), (n_directions, n) -> (n_directions, n_groups)."""
    slopes = np.zeros((len(directions), len(gradients)))
    for row, direction in enumerate(directions):
        moved = direction != 0.0  # what does not move may be infinite
        slopes[row] = gradients[:, moved] @ direction[moved]
    return slopes


# ---------------------------------------------------------------------------------------- messages
def _tell(comparison: Comparison, verdict: Verdict) -> None:
    """Raise GradientError for what is wrong, and warn of what could not be judged."""
    name = comparison.derivative.name(comparison.i)
    is_open = verdict.is_left_out | verdict.is_too_small
    is_proved = verdict.is_wrong | (verdict.is_right & ~verdict.is_flat) | verdict.is_unsettled
    if is_open.size and np.all(np.any(is_open, axis=0)) and not np.any(is_proved):
        text = (
            f"nothing could be judged of {name}: every slope has a kink, a jump or an end of the "
            "domain here, or drowns in the rounding of f; check at another point"
        )
        if not comparison.derivative.has_kinks:
            raise GradientError(f"gradcheck: {text}")
        _warn(text)  # the first derivative was judged, where there is one
        return
    is_smooth = np.all(comparison.is_smooth, axis=0)
    if not np.all(is_smooth):
        whose = "the output" if comparison.derivative.order == "first" else "the gradients"
        _warn(
            f"{name} does not exist here: {np.sum(~is_smooth)} of {is_smooth.size} entries of "
            f"{whose} have a kink, a jump or an end of their domain; they are left out"
        )
    if np.any(verdict.is_wrong):
        raise GradientError(f"gradcheck: {name} is wrong {_what_is_wrong(comparison, verdict)}")
    if np.any(verdict.is_unsettled):
        at = _worst(verdict.is_unsettled, verdict.uncertainty)
        raise GradientError(
            f"gradcheck: {name} cannot be judged {_where(comparison, *at)}: difference quotients "
            f"settle no better than to {verdict.quotient[at]:.6g} +- {verdict.uncertainty[at]:.1g};"
            " f is noisy, of low precision, or has a kink near"
        )
    if np.any(verdict.is_too_small):
        _warn(
            f"{name} could not be judged in {np.sum(verdict.is_too_small)} of {is_open.size} "
            "slopes: they drown in the rounding of f"
        )
    if not comparison.is_connected:
        _warn(f"f does not depend on input {comparison.i}: nothing to check")


def _warn(text: str) -> None:
    # The caller of gradcheck is five calls up: _warn, _tell, _check, gradcheck.
    warnings.warn(f"gradcheck: {text}", UserWarning, stacklevel=5)


def _what_is_wrong(comparison: Comparison, verdict: Verdict) -> str:
    error = np.abs(verdict.quotient - verdict.rule)
    at = _worst(verdict.is_wrong, error / verdict.scale)
    # Where a single entry moved, its derivative is the slope over its reach.
    is_single = len(comparison.inputs.members(at[0])) == 1
    unit = verdict.reach[at] if is_single and comparison.x.size <= N_GROUPS else 1.0
    cut = ""
    if not comparison.is_connected:
        cut = (
            "; no graph leads from the output to this input (.data, detach or no_grad on the way?)"
        )
    return (
        f"{_where(comparison, *at)}: difference quotients give "
        f"{verdict.quotient[at] / unit:.12g}, the rules give {verdict.rule[at] / unit:.12g} "
        f"(relative error {error[at] / verdict.scale[at]:.1e}, that of the quotients "
        f"{verdict.uncertainty[at] / verdict.scale[at]:.0e}){cut}"
    )


def _worst(chosen: np.ndarray, badness: np.ndarray) -> tuple[int, ...]:
    return _index(int(np.argmax(np.where(chosen, badness, -1.0))), chosen.shape)


def _where(comparison: Comparison, row: int, group: int) -> str:
    """In words: which entries moved, and which were looked at."""
    moved = comparison.inputs.members(row)
    seen = comparison.outputs.members(group)
    words = f"at entry {_index(moved[0], comparison.x.shape)} of the input"
    if len(moved) > 1:
        words += f" and {len(moved) - 1} more"
    words += f", for {comparison.derivative.entry(int(seen[0]))}"
    if len(seen) > 1:
        words += f" and {len(seen) - 1} more"
    return words


# --------------------------------------------------------------------------- values and gradients
def _flat(arrays: Sequence) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in arrays])


def _largest(arrays: Sequence) -> float:
    """The largest absolute value; 1 at least, as a 1 stands in most formulas."""
    sizes = np.abs(_flat(arrays))
    return float(np.max(sizes[np.isfinite(sizes)], initial=1.0))


def _parts(flat: np.ndarray, arrays: Sequence) -> list[np.ndarray]:
    """The reverse: cut into arrays of the same shapes as these."""
    ends = np.cumsum([x.size for x in arrays])
    return [part.reshape(x.shape) for part, x in zip(np.split(flat, ends[:-1]), arrays)]


def _index(at, shape) -> tuple[int, ...]:
    """The index of the entry of this number, counted along the rows."""
    return tuple(int(k) for k in np.unravel_index(at, shape))


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


def _first_rules(f, arrays, i):
    """The gradient of <weights, f> with respect to input i alone: see `Derivative`."""
    xs = [Tensor(x, requires_grad=k == i) for k, x in enumerate(arrays)]
    y = f(*xs)
    _guard([y])
    what = f"the first derivative with respect to input {i} (shape {arrays[i].shape})"

    def gradient_of(weights):
        return _grad(y, [xs[i]], weights.reshape(y.shape), what)[0]

    return gradient_of, y.requires_grad


def _second_rules(f, cotangent, arrays, i):
    """The gradient of <weights, gradients of <cotangent, f>> with respect to input i."""
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    what = f"the second derivative with respect to input {i} (shape {arrays[i].shape})"
    gradients = _grad(f(*xs), xs, cotangent, what, create_graph=True)
    _guard(gradients)

    def gradient_of(weights):
        total = np.zeros_like(arrays[i])
        for g, weight in zip(gradients, _parts(weights, arrays)):
            if np.any(weight):  # one by one: not all of them need depend on the inputs
                total = total + _grad(g, [xs[i]], weight, what)[0]
        return total

    return gradient_of, True


def _gradients(f, arrays, cotangent, **keywords):
    """The gradients of <cotangent, f> with respect to all inputs."""
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    what = "the first derivatives with respect to all inputs"
    return _grad(f(*xs), xs, cotangent, what, **keywords)


def _grad(y, xs, cotangent, what, create_graph=False):
    """minigrad.grad; whatever goes wrong in a rule is told as a GradientError.

    And where y does not depend on any input, zeros: that may be right, or f may cut the graph.
    """
    if not y.requires_grad:
        zeros = [np.zeros_like(x.data) for x in xs]
        return list(map(Tensor, zeros)) if create_graph else zeros
    try:
        return grad(y, xs, _read_only(cotangent), create_graph=create_graph)
    except GradientError:
        raise
    except Exception as error:
        raise GradientError(
            f"gradcheck: {what} could not be computed: {type(error).__name__}: {error}"
        ) from error


# --------------------------------------------------------------------------------- rules that write
def _read_only(x):
    """A view of an array that cannot be written to; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    view = x.view()
    view.flags.writeable = False
    return view


class _Guarded:
    """In place of an entry of the table: its rules get read-only arrays only."""

    def __init__(self, entry):
        self.entry = entry
        self.__name__ = entry.__name__  # for errors

    def gradients(self, node, g, record):
        try:
            return self.entry.gradients(node, _read_only(g), record)
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise GradientError(
                f"gradcheck: a rule of {self.entry.__name__} writes into an array that it was "
                "given (g, y or an input). Others use that array too: it must make a new one"
            ) from error


def _guard(outputs: Sequence) -> None:
    """Put `_Guarded` in place of every entry in the graph under these Tensors."""
    seen = set()
    waiting = [x for x in outputs if isinstance(x, Tensor)]
    while waiting:
        node = waiting.pop()
        if node.origin is None or node.number in seen:
            continue
        seen.add(node.number)
        waiting += [x for x in node.origin.inputs if isinstance(x, Tensor)]
        node.data = _read_only(node.data)
        node.origin = node.origin._replace(
            primitive=_Guarded(node.origin.primitive),
            arrays=tuple(_read_only(x) for x in node.origin.arrays),
        )


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
        worst = [float(np.fmax(*pair)) for pair in zip(worst, errors)]  # fmax passes over a NaN
    return worst


def main(arguments: Sequence[str] = ()) -> int:
    """Check every primitive of the table, and print its worst relative errors.

    arguments: words of the command line; there are none but --help. Returns 0 if all are right and
    have examples, else 1.
    """
    argparse.ArgumentParser(
        prog="python -m minigrad.checking",
        description="Check the rules of every function that can be differentiated against "
        "difference quotients, first and second derivatives, on its examples "
        "(minigrad/example_inputs.py). Prints a line for each, with the worst relative error of "
        "either order. Takes some ten seconds. Exit code: 0 if all are right, 1 if one is wrong "
        "or has no example. For a function of your own: minigrad.gradcheck.",
    ).parse_args(arguments)
    started = time.perf_counter()
    width = max(len(name) for name in PRIMITIVES) + 1
    n_bad = 0
    n_checked = 0
    print(f"{'primitive':<{width}}{'examples':>9}{'first order':>13}{'second order':>14}")
    for name in sorted(PRIMITIVES):
        n_examples = len(EXAMPLES.get(name, []))
        n_checked += n_examples
        print(f"{name:<{width}}", end="")
        if not n_examples:
            n_bad += 1
            print(" NO EXAMPLE: add a row to minigrad/example_inputs.py")
            continue
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            try:
                first, second = check_primitive(name)
                print(f"{n_examples:>9}{first:>13.1e}{second:>14.1e}")
            except GradientError as error:
                n_bad += 1
                print(f"{n_examples:>9}    WRONG    {error}")
        for text in dict.fromkeys(str(note.message) for note in notes):
            print(f"    note: {text}")
    seconds = time.perf_counter() - started
    verdict = f"{n_bad} WRONG OR UNCHECKED" if n_bad else "all are right"
    print(f"{len(PRIMITIVES)} primitives, {n_checked} examples in {seconds:.1f} s: {verdict}")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

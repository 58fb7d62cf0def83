"""How steep is a function here? How to measure a slope, and to know how well.

This is a lesson. A derivative can be had without any calculus: walk a short way h forwards and
backwards, and see how much the result changes. For f(x) = exp(x) the slope at 1 is exp(1). Compare:

    >>> import numpy as np
    >>> def quotient(h):
    ...     return (np.exp(1 + h) - np.exp(1 - h)) / (2 * h)
    >>> print(f"{np.exp(1):.11f}")
    2.71828182846
    >>> print(f"{quotient(0.001):.11f}")
    2.71828228151
    >>> print(f"{(16 * quotient(0.001) - quotient(0.004)) / 15:.11f}")
    2.71828182846

By Taylor's series the quotient is Q(h) = slope + a h^2 + b h^4 + ..., with some numbers a and b. A
step four times as long gives another equation, Q(4h) = slope + 16 a h^2 + 256 b h^4 + ... From 16
times the first take the second: the terms with h^2 cancel, and what is left is 15 slope. So the
last line is (16 Q(h) - Q(4h)) / 15 (Richardson 1911), and agrees to all digits. This knows nothing
of rules, and so it can judge them. Four things make it a measurement that can be trusted:

1. *Several steps h.* If h is too long, h^4 is not small; if it is too short, what the subtraction
   leaves of f is rounding. No h suits all functions. But the right answer does not depend on h:
   where two steps agree, they are very probably right, and how well they agree says how far off
   they may be.
2. *The size of the rounding*, which is that difference where all steps are bad. 1 + 1e-8 x has a
   slope of 1e-8, and the 1 in it is only known to 1e-16: over a step of 0.01, the slope is known to
   1e-14, a millionth of it. Rounding need not be guessed: it can be seen (`measured_rounding`).
3. *float64*, because all of this would drown in the rounding of float32.
4. *Both sides apart.* At a kink, such as |x| at 0, there is no slope, and the quotient above hides
   it: there it is 0. The slopes to either side, with f(x + h) - f(x) and f(x) - f(x - h) over h,
   give the kink away: they differ, and go on differing as h shrinks.

Know before reading: what a Taylor series is.

Know after: how far a difference quotient can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FINE = 1e-9  # two steps that agree this well, relative to the slope, need no shorter one
DOUBT = 10.0  # uncertainties are estimates: only ten times as much is a proof
GREAT_DOUBT = DOUBT * DOUBT  # where one value out of line may spoil the estimate itself
ROUNDING = float(np.finfo(np.float64).eps)  # of a number, relative to it
SMALLEST = float(np.finfo(np.float64).tiny)  # numbers below this have fewer digits

# The steps, longest first, as parts of the way that an entry is moved. For an f that changes by
# about itself on that way, the extrapolated quotient is off by 16 h^4 f'''''/120: 3e-11 f''''' at
# the second of them and 1e-13 f''''' at the third, where rounding adds ROUNDING / h = 2e-13. At the
# last, rounding adds 4e-6: a shorter one would judge nothing.
STEPS = [4.0**-k for k in range(3, 18)]

# Near a point where f is like |h|^p, a quarter of the step gives 4^(1-p) times the slope. A kink
# has p = 1; mostly, p is 3/2 or more where f is smooth, and 1/2 or less where it jumps or is
# vertical. The limits are drawn halfway, at p = 5/4 and at p = 3/4. (So |x|^1.2, which has the
# slope 0 at 0, counts as a kink there: it is left out, which is the safe side to err on.)
KINK = 4.0**-0.25
STEEP = 4.0**0.25
SLIGHT = 1e-7  # a kink of less than this, relative to the slope, does not matter


# ------------------------------------------------------------------------------------------ slopes
class Slopes(NamedTuple):
    """Slopes of all entries of a result (columns) along some directions (rows)."""

    value: np.ndarray
    uncertainty: np.ndarray  # how far off the value may be
    is_smooth: np.ndarray  # False where there is none: at a kink, a jump, or an end of the domain
    is_settled: np.ndarray  # whether two steps agreed, as far as rounding allows


class Step(NamedTuple):
    """What one length of step tells, for each direction (row) and entry of the result (column)."""

    quotient: np.ndarray
    extrapolated: np.ndarray  # from this quotient and that of a step four times as long
    bend: np.ndarray  # by how much the slopes to either side differ
    size: np.ndarray  # the sum of their absolute values
    rounding: np.ndarray  # of the quotient


def measured_slopes(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    directions: np.ndarray,
    rounding: np.ndarray,
) -> Slopes:
    """The slope of each entry of function(x) as x moves along each of the directions.

    function: flat array -> flat array. directions: (n_directions, size of x). rounding: that of
    each entry of the result, from `measured_rounding`.

    Steps are taken from the longest to the shortest. At each of them a slope is the extrapolated
    quotient, and its uncertainty is by how much that changed from the step before (`longer`). Of
    all steps `found` keeps the slope with the least uncertainty. A slope is settled once two steps
    agree; a direction (`open_rows`) takes shorter steps until all of its slopes are.
    """
    here = function(x)
    shape = (len(directions), here.size)
    found = Slopes(
        value=np.zeros(shape),
        uncertainty=np.full(shape, np.inf),
        is_smooth=np.zeros(shape, bool),
        is_settled=np.zeros(shape, bool),
    )
    open_rows = np.arange(len(directions))  # the directions for which shorter steps are needed
    longer = Step(*[np.full(shape, np.nan)] * 5)  # the step before: there is none yet

    for h in STEPS:
        now = _step(function, x, directions[open_rows], here, rounding, h, longer.quotient)
        change = np.abs(now.extrapolated - longer.extrapolated)
        is_smooth = _is_smooth(now, longer)
        # Where all of the change may be rounding, a shorter step would only be worse.
        agrees = change <= FINE * np.abs(now.extrapolated) + DOUBT * now.rounding

        for row, k in enumerate(open_rows):
            uncertainty = change[row] + now.rounding[row]
            is_better = uncertainty < found.uncertainty[k]
            is_better &= is_smooth[row] & ~found.is_settled[k]
            found.value[k, is_better] = now.extrapolated[row, is_better]
            found.uncertainty[k, is_better] = uncertainty[is_better]
            found.is_settled[k] |= is_smooth[row] & agrees[row]
            found.is_smooth[k] = is_smooth[row] | found.is_settled[k]

        is_open = ~np.all(found.is_settled[open_rows], axis=1)
        open_rows = open_rows[is_open]
        longer = Step(*[field[is_open] for field in now])
        if not len(open_rows):
            break
    return found


def _step(function, x, directions, here, rounding, h, longer_quotient) -> Step:
    shape = (len(directions), here.size)
    there = np.array([function(x + h * d) for d in directions]).reshape(shape)
    back = np.array([function(x - h * d) for d in directions]).reshape(shape)
    ahead = (there - here) / h
    behind = (here - back) / h
    quotient = (there - back) / (2.0 * h)
    largest = np.maximum(np.abs(there), np.abs(back))
    return Step(
        quotient=quotient,
        extrapolated=(16.0 * quotient - longer_quotient) / 15.0,
        bend=np.abs(ahead - behind),
        size=np.abs(ahead) + np.abs(behind),
        rounding=np.maximum(rounding, ROUNDING * largest) / h,
    )


def _is_smooth(now: Step, longer: Step) -> np.ndarray:
    """Which entries have one slope, and not one to either side.

    For a smooth function the two slopes differ by h f'', so that with a quarter of the step only a
    quarter of the difference is left. At a kink all of it is left. And where the slopes themselves
    grow as the step shrinks, f jumps or is infinitely steep.
    """
    # One value out of line, that at x itself, would bend all steps.
    noise = SLIGHT * now.size + GREAT_DOUBT * now.rounding
    is_no_kink = (now.bend <= noise) | (now.bend <= KINK * longer.bend)
    is_not_steep = now.size <= STEEP * longer.size + noise
    return np.isfinite(now.bend) & is_no_kink & is_not_steep


# ---------------------------------------------------------------------------------------- rounding
def measured_rounding(
    function: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    last_digit: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """How far rounding moves each entry of function(x): an array of its shape.

    function: flat array -> flat array. last_digit: the rounding of the largest number that it
    computes with.

    Each entry has its own: what two numbers near 1 leave of each other has the rounding of 1, even
    where it is 1e-6, and the product of two small numbers has that of a small one. So look at a few
    points close together on a line. Of a smooth function, differences of differences leave nothing;
    of rounding, which is another one at each point, they leave plenty.
    """
    close = _roughness(function, x, 2.0**-32, rng)
    # Points may be so close that f has the same value at all of them, rounded to a number, and
    # seems exact: look farther away, too, but do not take a kink there for rounding.
    farther = _roughness(function, x, 2.0**-14, rng)
    farther = np.fmin(farther, GREAT_DOUBT * last_digit)
    least = ROUNDING * np.abs(function(x)) + SMALLEST
    return np.fmax(np.fmax(close, farther), least)


def _roughness(function, x, distance, rng) -> np.ndarray:
    """Moré and Wild (2011), Estimating computational noise: from fifth differences of 8 points.

    The coefficients are 1, 5, 10, 10, 5, 1, and their squares add up to 252: the differences spread
    by sqrt(252) times as much as the rounding.
    """
    direction = distance * random_weights(rng, x.shape) * x
    points = np.array([function(x + k * direction) for k in range(1, 9)])
    return np.max(np.abs(np.diff(points, 5, axis=0)), axis=0) / np.sqrt(252.0)


def random_weights(rng: np.random.Generator, shape: tuple) -> np.ndarray:
    """Random signs and sizes between 1/2 and 3/2, of this shape: none is too small to count."""
    return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)

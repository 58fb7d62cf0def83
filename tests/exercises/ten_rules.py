"""Ten functions with their rules, for the exercise `wrong_rule`: one rule is wrong, though not for all inputs.

    >>> from minigrad import gradcheck
    >>> from tests.exercises.ten_rules import TEN
    >>> worst = gradcheck(TEN["swish"], [-1.0, 2.0])

What the functions take: arrays of any shape that broadcast; `log_subtract` wants a > b, `unit` some
length along its last axis. None of them is in minigrad's table.
"""

from math import log, pi
from math import sqrt as root

import numpy as np
from scipy import special

from minigrad.table import Primitive

# fmt: off
RULES = {  # name: (the function, and a rule for each input)
    "arctan2": (
        np.arctan2,
        lambda g, y, a, b: g * b / (a * a + b * b),
        lambda g, y, a, b: -g * a / (a * a + b * b),
    ),
    "elu": (
        lambda x: np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0))),
        lambda g, y, x: g * np.where(x > 0.0, 1.0, y + 1.0),
    ),
    "gelu": (
        lambda x: x * special.ndtr(x),
        lambda g, y, x: g * (special.ndtr(x) + x * np.exp(-0.5 * x * x) / root(2.0 * pi)),
    ),
    "huber": (
        lambda x: np.where(np.abs(x) < 1.0, 0.5 * x * x, np.abs(x) - 0.5),
        lambda g, y, x: g * np.minimum(x, 1.0),
    ),
    "hypot": (
        np.hypot,
        lambda g, y, a, b: g * a / y,
        lambda g, y, a, b: g * b / y,
    ),
    "log_cosh": (
        lambda x: np.logaddexp(x, -x) - log(2.0),
        lambda g, y, x: g * np.tanh(x),
    ),
    "log_subtract": (
        lambda a, b: a + np.log1p(-np.exp(b - a)),
        lambda g, y, a, b: g / (1.0 - np.exp(b - a)),
        lambda g, y, a, b: g / (1.0 - np.exp(a - b)),
    ),
    "softsign": (
        lambda x: x / (1.0 + np.abs(x)),
        lambda g, y, x: g * np.square(1.0 - np.abs(y)),
    ),
    "swish": (
        lambda x: x * special.expit(x),
        lambda g, y, x: g * special.expit(x) * (1.0 + x - y),
    ),
    "unit": (
        lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True),
        lambda g, y, x: (g - y * np.sum(g * y, axis=-1, keepdims=True))
        / np.linalg.norm(x, axis=-1, keepdims=True),
    ),
}
# fmt: on
TEN = {name: Primitive(function, rules, name) for name, (function, *rules) in RULES.items()}

"""What is seen of a training while it runs. This is engineering.

In a terminal there is a bar, in a notebook one of its own kind. Elsewhere, in a file that collects
what a job on a cluster says, a bar would be thousands of lines: there, every few seconds, one line
says how far the training is.

Know before reading: what a terminal is (`isatty`), and tqdm. Know after: which of the three is
shown where.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

from tqdm import tqdm

from minigrad.notebook import is_notebook

SECONDS = 5.0  # between two lines, at least; before the first too, so short trainings are silent
# The bar has a width of its own, and what is to the right of it is cut where there is no room.
IN_A_TERMINAL = (
    "{desc} {percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
)


def is_terminal() -> bool:
    """Whether standard error is a terminal; None, after it was closed, is none."""
    return sys.stderr is not None and sys.stderr.isatty()


def bar(total: int, done: int, unit: str, is_wanted: bool) -> tqdm:
    """A bar of `total` steps, of which some are done; hidden where it is not wanted, or no use."""
    if is_wanted and is_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets it is a bar of letters
            from tqdm.auto import tqdm as bar_of_notebook
        return bar_of_notebook(total=total, initial=done, unit=unit)
    is_hidden = not (is_wanted and is_terminal())
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        disable=is_hidden,
        dynamic_ncols=True,
        bar_format=IN_A_TERMINAL,
    )


class Lines:
    """A line at the end of an epoch, at most one every few seconds, where there is no bar."""

    def __init__(self, is_wanted: bool):
        is_bar = is_notebook() or is_terminal()
        self.is_shown = is_wanted and not is_bar and sys.stderr is not None
        self.last = time.monotonic()
        self.n = 0

    def say(self, text: str, is_last: bool = False) -> None:
        """Show a line, if it is time. The last one is shown if there was another before."""
        is_time = time.monotonic() - self.last >= SECONDS
        if self.is_shown and (is_time or is_last and self.n > 0):
            print(text, file=sys.stderr, flush=True)
            self.last = time.monotonic()
            self.n += 1


def in_words(epoch: int, epochs: int, scores: dict[str, Any]) -> str:
    """The line of an epoch: `epoch 3/200, train_loss 412.1`."""
    return ", ".join([f"epoch {epoch}/{epochs}", *(f"{k} {v}" for k, v in scores.items())])

"""What a notebook asks of an object, whether there is one, and how numbers of things are said.

This is engineering.

A notebook shows the `_repr_html_` of the last value of a cell:

    >>> as_html(["gene", "lfc"], [["CD3D", 1.5]], caption="T < B")
    '<table><caption>T &lt; B</caption><tr><th>gene<th>lfc<tr><td>CD3D<td>1.5</table>'

Know before reading: nothing. Know after: that what comes from data is escaped in one place.
"""

from __future__ import annotations

import html
import importlib
import io
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any


def is_notebook() -> bool:
    """Whether this process computes for a notebook, and is not a program in a terminal."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it; nothing is imported here
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")


def number_of(n: int, noun: str, plural: str = "") -> str:
    """How many there are, in words of a sentence; plural: where it is not the noun with an s.

    >>> number_of(1, "cell"), number_of(3005, "cell"), number_of(2, "batch", "batches")
    ('1 cell', '3,005 cells', '2 batches')
    """
    return f"{n:,} {for_number(n, noun, plural or noun + 's')}"


def for_number(n: int, one: str, many: str) -> str:
    """The word that goes with a number of things: "has" with 1, "have" with others."""
    return one if n == 1 else many


def as_html(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table of texts and numbers: names of columns, rows of the same length, a line above.

    header: may be empty. Floats have four digits. Texts are shown as they are, whatever is in them.
    """
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{html.escape(caption)}</caption>")
    if header:
        parts.append("<tr>" + "".join(f"<th>{html.escape(name)}" for name in header))
    for row in rows:
        parts.append("<tr>" + "".join(f"<td>{html.escape(short(value))}" for value in row))
    return "".join([*parts, "</table>"])


def as_picture(figure: Any) -> Any:
    """The same matplotlib Figure, which notebooks now show as a picture.

    By themselves they show `<Figure size ...>` until pyplot has drawn something, and nobody who was
    given a figure needs pyplot.
    """
    figure._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def short(value: Any) -> str:
    """A value as text, floats with four digits: 0.123456 is 0.1235."""
    is_number = isinstance(value, float) or hasattr(value, "dtype") and value.dtype.kind == "f"
    return f"{value:.4g}" if is_number else str(value)


def as_frame(columns: Any) -> Any:
    """A pandas DataFrame of columns, name -> values; ImportError where pandas is not installed."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("to_frame needs pandas: pip install pandas") from error
    return pandas.DataFrame(columns)

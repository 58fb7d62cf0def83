"""Tables as HTML, for notebooks, which ask an object for its `_repr_html_`. This is engineering.

    >>> as_html(["gene", "lfc"], [["CD3D", 1.5]], caption="T < B")
    '<table><caption>T &lt; B</caption><tr><th>gene<th>lfc<tr><td>CD3D<td>1.5</table>'

Know before reading: nothing. Know after: that what comes from data is escaped in one place.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any


def as_html(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table of texts and numbers: names of columns, rows of the same length, a line above.

    Numbers that are floats have four digits. Texts are shown as they are, whatever is in them.
    """
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{html.escape(caption)}</caption>")
    if header:
        parts.append("<tr>" + "".join(f"<th>{html.escape(name)}" for name in header))
    for row in rows:
        parts.append("<tr>" + "".join(f"<td>{html.escape(short(value))}" for value in row))
    return "".join([*parts, "</table>"])


def short(value: Any) -> str:
    """A value as text, floats with four digits: 0.123456 is 0.1235."""
    is_number = hasattr(value, "dtype") and value.dtype.kind == "f" or isinstance(value, float)
    return f"{value:.4g}" if is_number else str(value)

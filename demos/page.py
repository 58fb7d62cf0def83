"""What demos printed and drew, as one page: `out/index.html`, viewable without a network."""

from __future__ import annotations

import html
import importlib
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path

from minigrad.checkpoint import whole_file
from models import report


class _Tee:
    """Writes to several streams at once."""

    def __init__(self, *streams):
        self.streams = streams

    def write(self, text):
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self):
        for stream in self.streams:
            stream.flush()

    def isatty(self):
        return False


@contextmanager
def recorded(out: Path, name: str):
    """What is printed within also goes to `out/NAME.txt`."""
    with open(out / f"{name}.txt", "w", encoding="utf-8") as file:
        before, sys.stdout = sys.stdout, _Tee(sys.stdout, file)
        try:
            yield
        finally:
            sys.stdout = before


def write(out: Path, names: list[str]) -> Path:
    """Make `out/index.html` from the texts, pictures and captions that the demos left in `out`."""
    parts = [f"<nav>{' '.join(f'<a href=#{n}>{n}</a>' for n in names)}</nav>"]
    for name in names:
        lesson = as_paragraphs(importlib.import_module(f"demos.{name}").__doc__)
        parts.append(f"<h2 id={name}>{name}</h2><p><code>python -m demos {name}</code></p>{lesson}")
        for picture in sorted(out.glob(f"{name}*.png")):
            caption = picture.with_suffix(".caption")
            if not caption.exists():
                continue
            text = caption.read_text(encoding="utf-8").strip()
            parts.append(report.figure([picture.read_bytes()], text, is_wide=True))
        said = (out / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        lines = [line for line in said if not line.startswith("picture ")]  # they are above
        parts.append(f"<pre>{html.escape(chr(10).join(lines).strip(chr(10)))}</pre>")
    page = out / "index.html"
    with whole_file(page) as temporary:
        temporary.write_text(report.page("minigrad: every demo", "".join(parts)), encoding="utf-8")
    return page


def as_paragraphs(docstring: str) -> str:
    """HTML of a docstring: its paragraphs, which a page may wrap anew, and as it is what is
    indented."""
    parts = []
    for part in inspect.cleandoc(docstring).split("\n\n"):
        tag = "pre" if part.startswith(" ") else "p"
        parts.append(f"<{tag}>{html.escape(part)}</{tag}>")
    return "".join(parts)

"""A lesson of demos/lessons as its reader has it: cells that run in order, one of them to fill in."""

import contextlib
import io
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

LESSONS = Path(__file__).resolve().parent.parent / "demos" / "lessons"


class Lesson:
    """One lesson, run once from top to bottom in its quick form.

    printed: what it printed. names: what its cells have defined.
    """

    def __init__(self, name):
        self.text = (LESSONS / f"{name}.py").read_text(encoding="utf-8")
        self.cells = re.split(r"^# %%.*\n", self.text, flags=re.MULTILINE)
        self.names = {"__name__": "lesson"}
        with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
            patch.setenv("MINIGRAD_QUICK", "1")
            plt.switch_backend("Agg")
            self.printed = self._run("\n".join(self.cells))
            plt.close("all")

    def _run(self, code):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "<lesson>", "exec"), self.names)
        return out.getvalue()

    @property
    def solution(self):
        """The code of the folded solution."""
        folded = self.text[self.text.index("<summary>Solution</summary>") :]
        lines = folded[: folded.index("</details>")].splitlines()
        code = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
        return code.split("```")[1].removeprefix("python\n")

    def answer(self, code):
        """What the checking cell prints where `code` stands in the place of the cell to fill in."""
        (to_fill,) = (i for i, cell in enumerate(self.cells) if "# your turn" in cell)
        return self._run(code + "\n\n" + self.cells[to_fill + 1]).strip()

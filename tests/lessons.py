"""What the tests of the lessons share: the cells of a script, and what its check says of an answer.

    >>> from tests import lessons
    >>> lessons.verdicts("NAME", [lessons.solution("NAME"), "def something(x):\\n    return x"])

gives what the checking cell of demos/lessons/NAME.py printed, a text for each answer: one for its
own solution, and one for a wrong answer. An answer is code that stands in for the cell that is to
be filled in, the one that says "# your turn"; the cell of code that follows it is the check.
"""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demos" / "lessons"
WALKS = ROOT / "demos" / "walks"
NAMES = [
    path.stem
    for path in sorted(FOLDER.glob("*.py"))
    if "\n# %%" in path.read_text(encoding="utf-8")
]
YOUR_TURN = "# your turn"


class Cell(NamedTuple):
    """A cell of a lesson: whether it is code, and its text without comment signs."""

    is_code: bool
    text: str


def cells(name, folder=FOLDER) -> list[Cell]:
    """The cells of a script, in order; what stands before the first `# %%` is none."""
    script = (folder / f"{name}.py").read_text(encoding="utf-8")
    parts = re.split(r"^# %%(.*)\n", script, flags=re.M)[1:]
    found = []
    for heading, body in zip(parts[::2], parts[1::2]):
        is_code = "[markdown]" not in heading
        text = body if is_code else re.sub(r"^# ?", "", body, flags=re.M)
        found.append(Cell(is_code, text.strip()))
    return found


def code(name) -> list[str]:
    """The cells of code."""
    return [cell.text for cell in cells(name) if cell.is_code]


def solution(name) -> str:
    """The code of the lesson's own solution, which is folded under <details>."""
    text = "\n".join(cell.text for cell in cells(name) if not cell.is_code)
    folded = re.findall(r"<details>(.*?)</details>", text, flags=re.S)
    assert len(folded) == 1, f"{name}: {len(folded)} folded solutions, not one"
    blocks = re.findall(r"^```python\n(.*?)^```", folded[0], flags=re.S | re.M)
    assert len(blocks) == 1, f"{name}: {len(blocks)} blocks of Python in the fold, not one"
    return blocks[0]


def fill_in(name) -> int:
    """Which cell of code is the one to fill in."""
    found = [i for i, text in enumerate(code(name)) if YOUR_TURN in text]
    assert len(found) == 1, f"{name}: {len(found)} cells say {YOUR_TURN!r}, not one"
    return found[0]


def definitions(name) -> dict:
    """The functions, classes, imports and CONSTANTS of a lesson, by name; nothing else of it runs."""
    defining = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    kept: list[ast.stmt] = []
    for node in ast.parse("\n\n".join(code(name))).body:
        is_constant = isinstance(node, ast.Assign) and re.fullmatch(
            "[A-Z_]{2,}", ast.unparse(node.targets[0])
        )
        if is_constant or isinstance(node, defining):
            kept.append(node)
    names = {"__name__": name}
    exec(compile(ast.Module(kept, type_ignores=[]), f"<{name}>", "exec"), names)
    return names


def printed(name) -> str:
    """What the cells of the executed notebook printed, in order: what the text speaks of."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", [])) for output in outputs)


def numbers(pattern, text) -> list[float]:
    """The numbers that the groups of a pattern stand for, of all places where it matches."""
    found = re.findall(pattern, text)
    assert found, f"nothing like {pattern!r} is printed"
    groups = [match if isinstance(match, tuple) else (match,) for match in found]
    return [float(group) for match in groups for group in match]


def quick_run(arguments, **keywords) -> subprocess.CompletedProcess:
    """Python, on these arguments, as the lessons run in the test-suite: small, without a window."""
    environment = {
        **os.environ,
        "MINIGRAD_QUICK": "1",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *arguments],
        cwd=FOLDER,
        env=environment,
        capture_output=True,
        text=True,
        **keywords,
    )


# A process of its own: a lesson may change what all share, such as the table of the engine. The cells
# before the one to fill in run once; each answer, and the check, see a copy of the names they made.
JUDGE = """
    import contextlib, io, json, sys

    before, answers, check = json.load(sys.stdin)
    names = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(before, "<lesson>", "exec"), names)
    said = []
    for answer in answers:
        mine = dict(names)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(answer, "<answer>", "exec"), mine)
            try:
                exec(compile(check, "<check>", "exec"), mine)
            except AssertionError as error:
                print(error)
        said.append(printed.getvalue())
    print(json.dumps(said))
"""


def verdicts(name, answers) -> list[str]:
    """What the lesson's check says of each answer: what it prints, and its AssertionError."""
    all_code = code(name)
    place = fill_in(name)
    given = json.dumps(["\n\n".join(all_code[:place]), list(answers), all_code[place + 1]])
    run = quick_run(["-c", textwrap.dedent(JUDGE)], input=given)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])

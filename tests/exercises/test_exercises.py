"""The exercises of the README, "How to read the source": that their checks can be trusted, and what the command prints.

The learner's own answers are not judged here, but by `python -m tests.exercises`.
"""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from minigrad import gradcheck
from minigrad.checking import GradientError
from minigrad.tensor import IMPLEMENTATIONS
from tests.exercises import __main__ as command
from tests.exercises import checks, judge, ten_rules
from tests.exercises.ten_rules import TEN

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOLUTIONS = HERE / "solutions.py"
WRONG = judge.load(HERE / "wrong.py").WRONG

pytestmark = pytest.mark.usefixtures("table_as_it_was")  # exercises add primitives


@pytest.mark.parametrize("name", checks.EXERCISES)
def test_model_solution_is_right(name):
    assert judge.hint(name, getattr(judge.load(SOLUTIONS), name)) == ""


@pytest.mark.parametrize(
    "name, i", [(name, i) for name, answers in WRONG.items() for i in range(len(answers))]
)
def test_wrong_answer_is_found_out_with_a_hint_of_one_line(name, i):
    words, make = WRONG[name][i]
    hint = judge.hint(name, make(getattr(judge.load(SOLUTIONS), name)))
    assert re.search(words, hint), hint
    assert "\n" not in hint and len(hint) <= judge.LONGEST_HINT


def test_the_function_to_add_is_not_in_the_table():
    assert special.owens_t not in IMPLEMENTATIONS


def test_every_exercise_has_its_check_its_wrong_answers_and_its_place_in_the_readme():
    assert list(checks.EXERCISES) == list(WRONG)
    assert list(checks.EXERCISES) == [
        name.removeprefix("check_") for name in vars(checks) if name.startswith("check_")
    ]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## How to read the source\n")[2].partition("\n## ")[0]
    assert re.findall(r"\*\*`(\w+)`\*\*", section) == list(checks.EXERCISES)
    stops = re.split(r"^\d+\. ", section, flags=re.M)[1:]
    assert len(stops) == len(checks.EXERCISES)
    assert all(stop.count("**`") == 1 for stop in stops)
    for path in re.findall(r"`((?:minigrad|models|tests)/[\w/]+\.py)`", section):
        assert (ROOT / path).exists() or path.endswith("answers.py"), path


# ----------------------------------------------------------------------------------- the ten rules
# Each of them where every piece of its formula is seen.
FAR = np.array([-3.0, -1.4, -0.6, 0.2, 0.9, 1.7])


def examples(x):
    """name -> inputs of the ten, made of x."""
    two = dict.fromkeys(("arctan2", "hypot"), (x, x[::-1] + 0.3))
    return dict.fromkeys(TEN, (x,)) | two | {"log_subtract": (x + 9.0, x)}


@pytest.mark.parametrize("name", TEN)
def test_one_of_the_ten_rules_is_wrong_and_only_far_below_0(name):
    gradcheck(TEN[name], *examples(np.abs(FAR))[name])
    if name == "huber":
        with pytest.raises(GradientError, match="is wrong"):
            gradcheck(TEN[name], *examples(FAR)[name])
    else:
        gradcheck(TEN[name], *examples(FAR)[name])


def test_the_example_beside_the_ten_rules_runs():
    assert doctest.testmod(ten_rules) == (0, 3)


# ------------------------------------------------------------------------------------- the command
def run(capsys, *arguments):
    """(exit status, the lines printed) of the command."""
    status = command.main([str(a) for a in arguments])
    return status, capsys.readouterr().out.splitlines()


def test_the_command_judges_a_file_of_answers(tmp_path):
    """As the learner runs it: some right, some wrong, the others missing."""
    answers = tmp_path / "mine.py"
    answers.write_text(
        "from tests.exercises.solutions import undo_broadcasting, sweep\n"
        "print('what the answers print')\n"
        "def jvp(f, x, v):\n"
        "    return f(x) + v\n"
        "wrong_rule = ('gelu', lambda g, y, x: g)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.exercises", answers],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == len(checks.EXERCISES) + 1
    for name, line in zip(checks.EXERCISES, lines):
        status = {
            "undo_broadcasting": "done",
            "sweep": "done",
            "jvp": "wrong: it raised .* \\(line 4 of mine.py\\)",
            "wrong_rule": "wrong: the rules of gelu are right",
        }.get(name, f"missing: {re.escape(checks.EXERCISES[name])}")
        assert re.match(f"{name} +{status}", line), line
    assert lines[-1] == f"2 done, {len(checks.EXERCISES) - 4} missing, 2 wrong"


def test_a_name_that_is_nearly_right_is_pointed_out(tmp_path):
    (tmp_path / "answers.py").write_text("nesterov = undo_broadcast = None\nkl_gammas = 1\n")
    found = {v.name: v for v in judge.verdicts(tmp_path / "answers.py")}
    assert {v.status for v in found.values()} == {"missing"}
    for name, meant in (
        ("Nesterov", "nesterov"),
        ("undo_broadcasting", "undo_broadcast"),
        ("kl_gamma", "kl_gammas"),
    ):
        assert found[name].hint.endswith(f" (there is {meant!r}: is that it?)")
    assert "is that it?" not in found["jvp"].hint


def test_without_answers_all_are_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "ANSWERS", tmp_path / "answers.py")
    status, lines = run(capsys)
    assert status == 0 and lines[-1] == f"0 done, {len(checks.EXERCISES)} missing, 0 wrong"
    assert len(lines) == len(checks.EXERCISES) + 1


def test_a_loop_that_never_ends_and_an_exit_are_wrong_and_the_others_are_judged(tmp_path):
    answers = tmp_path / "answers.py"
    answers.write_text(
        "import os\n"
        "from tests.exercises.solutions import softmax_rule\n"
        "def backward_keeping(loss, inner):\n"
        "    while True:\n"
        "        pass\n"
        "def undo_broadcasting(g, shape):\n"
        "    os._exit(3)\n"
    )
    found = {v.name: v for v in judge.verdicts(answers, time_limit=3.0)}
    assert list(found) == list(checks.EXERCISES)
    assert found["backward_keeping"].status == found["undo_broadcasting"].status == "wrong"
    assert "no end within 3 seconds" in found["backward_keeping"].hint
    assert "exit code 3" in found["undo_broadcasting"].hint
    assert found["softmax_rule"].status == "done"


class Sent(list):
    """What `judge` sends, instead of a pipe."""

    def send_bytes(self, message):
        self.append(json.loads(message))


@pytest.mark.parametrize(
    "text, words",
    [
        ("def jvp(f, x, v):\n    return (\n", r"SyntaxError: '\(' was never closed \(line 2 of"),
        ("import numpy\nnumpy.nothing\n", r"AttributeError: .* \(line 2 of"),
        ("def f():\n    1 / 0\nf()\n", r"ZeroDivisionError: .* \(line 3 and line 2 of"),
    ],
)
def test_the_reason_why_answers_cannot_be_loaded(tmp_path, text, words):
    (tmp_path / "answers.py").write_text(text)
    sent = Sent()
    judge.judge(sent, str(tmp_path / "answers.py"), list(checks.EXERCISES))
    ((status, hint),) = sent
    assert status == "broken" and re.search(words, hint) and "\n" not in hint


def test_answers_that_cannot_be_loaded_are_one_line_and_a_failure(tmp_path, capsys):
    (tmp_path / "answers.py").write_text("import os\nos._exit(3)\n")
    assert command.main([str(tmp_path / "answers.py")]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "answers.py cannot be loaded: it ended Python (exit code 3)" in printed.err


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        command.main([str(tmp_path / "none.py")])
    assert stopped.value.code == 2


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    """As in `python -m tests.exercises ANSWERS | head -1`."""
    (tmp_path / "answers.py").write_text("")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tests.exercises", tmp_path / "answers.py"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.returncode == 0 and done.stderr == ""

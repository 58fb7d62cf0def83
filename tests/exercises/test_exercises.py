"""The exercises of the README, "How to read the source": your answers, and whether the checks can be trusted.

Write your answers into tests/exercises/answers.py, under the names of checks.EXERCISES, and run

    .venv/bin/python -m pytest -n 0 -rs tests/exercises -k answer

An exercise without an answer is skipped, saying what to write; a wrong answer fails, saying what is wrong with it.
"""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def load(name):
    """A fresh module from a file here: what it puts into the table must be put there again for each test."""
    spec = importlib.util.spec_from_file_location(f"exercises_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load("checks")


pytestmark = pytest.mark.usefixtures("table_as_it_was")  # exercises and examples add primitives


def run(name, answer):
    with np.errstate(all="ignore"):  # an answer that overflows is judged by what comes of it
        getattr(checks, f"check_{name}")(answer)


@pytest.mark.parametrize("name", checks.EXERCISES)
def test_answer(name):
    missing = f"write into tests/exercises/answers.py: {checks.EXERCISES[name]}"
    if not (HERE / "answers.py").exists():
        pytest.skip(missing)
    answers = load("answers")
    if not hasattr(answers, name):
        pytest.skip(missing)
    run(name, getattr(answers, name))


@pytest.mark.parametrize("name", checks.EXERCISES)
def test_model_solution_is_right(name):
    run(name, getattr(load("solutions"), name))


@pytest.mark.parametrize(
    "name, i",
    [(name, i) for name, answers in load("wrong").WRONG.items() for i in range(len(answers))],
)
def test_wrong_solution_is_found_out(name, i):
    words, make = load("wrong").WRONG[name][i]
    right = getattr(load("solutions"), name)
    with pytest.raises(AssertionError, match=words):
        run(name, make(right))


def test_every_exercise_has_its_check_its_wrong_answers_and_its_place_in_the_readme():
    assert list(checks.EXERCISES) == list(load("wrong").WRONG)
    assert {f"check_{name}" for name in checks.EXERCISES} == {
        name for name in vars(checks) if name.startswith("check_")
    }
    text = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("## How to read the source\n")[2].partition("\n## ")[0]
    assert re.findall(r"\*\*`(\w+)`\*\*", section) == list(checks.EXERCISES)
    for path in re.findall(r"`((?:minigrad|models)/\w+\.py)`", section):
        assert (HERE.parents[1] / path).exists(), path


def test_an_answer_is_skipped_where_missing_and_judged_where_given(tmp_path, monkeypatch):
    """The learner's way through this file, with a folder of its own for the answers."""
    monkeypatch.setattr(sys.modules[__name__], "HERE", tmp_path)
    with pytest.raises(pytest.skip.Exception, match=r"def by_hand\(a, b\)"):
        test_answer("by_hand")
    (tmp_path / "answers.py").write_text(
        "import numpy as np\ndef by_hand(a, b):\n    return b * np.cos(a * b) + 1, a\n"
    )
    with pytest.raises(AssertionError, match="dL/db"):
        test_answer("by_hand")
    with pytest.raises(pytest.skip.Exception, match="def log_cosh"):
        test_answer("log_cosh")
    (tmp_path / "answers.py").write_text((Path(__file__).parent / "solutions.py").read_text())
    test_answer("by_hand")

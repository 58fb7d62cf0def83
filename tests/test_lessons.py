"""Each lesson runs as a script, its notebook is up to date and was run, and its solution is right."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lessons

ROOT = Path(__file__).resolve().parent.parent
every_lesson = pytest.mark.parametrize("name", lessons.NAMES)
# A walk is a notebook as well, but has nothing to fill in; tests/test_demos.py runs it.
every_notebook = pytest.mark.parametrize(
    "name, folder", [*((name, lessons.FOLDER) for name in lessons.NAMES), ("day", lessons.WALKS)]
)


def notebook(name, folder=lessons.FOLDER):
    """The notebook of a lesson or walk, as it lies in the repository."""
    path = folder / f"{name}.ipynb"
    assert path.exists(), f"{path.name} is missing: run python -m demos notebooks {name}"
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_lessons():
    assert lessons.NAMES


@every_lesson
def test_a_lesson_runs_as_a_script(name):
    run = lessons.quick_run([f"{name}.py"])
    assert run.returncode == 0, run.stderr[-2000:]
    assert "not yet" in run.stdout  # nothing is filled in, and the check says so


@every_notebook
def test_the_notebook_says_what_the_script_says(name, folder):
    """Read by the tests' own few lines, and not by jupytext, which made the notebook."""
    made = [
        lessons.Cell(cell["cell_type"] == "code", "".join(cell["source"]).strip())
        for cell in notebook(name, folder)["cells"]
    ]
    assert made == lessons.cells(name, folder), f"run python -m demos notebooks {name}"


@every_notebook
def test_the_notebook_was_run_whole_and_shows_pictures(name, folder):
    cells = [cell for cell in notebook(name, folder)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    pictures = [output["data"]["image/png"] for output in outputs if "data" in output and "image/png" in output["data"]]  # fmt: skip
    assert pictures
    assert sum(map(len, pictures)) < 2_000_000, "pictures are to be small"


@every_notebook
def test_the_notebook_holds_nothing_that_changes_by_itself(name, folder):
    made = notebook(name, folder)
    assert made["metadata"]["language_info"] == {"name": "python"}
    assert all(cell["metadata"] == {} for cell in made["cells"])


@every_lesson
def test_a_lesson_says_what_it_takes_and_ends_with_something_to_do(name):
    opening = lessons.cells(name)[0]
    assert not opening.is_code
    assert "minutes" in opening.text.lower()
    assert "before" in opening.text.lower()  # what to know before
    assert lessons.fill_in(name) == len(lessons.code(name)) - 2  # the check is the last


@every_lesson
def test_the_solution_defines_what_is_to_be_filled_in_and_passes(name):
    def defined(text):
        return {node.name for node in ast.parse(text).body if hasattr(node, "name")}

    blank = lessons.code(name)[lessons.fill_in(name)]
    assert defined(blank) <= defined(lessons.solution(name))
    before, after = lessons.verdicts(name, [blank, lessons.solution(name)])
    assert "not yet" in before and "not yet" not in after
    assert after.strip()


def demos(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "demos", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_an_unknown_lesson_is_an_error_that_lists_them():
    run = demos("notebooks", "nonsense")
    assert run.returncode == 2
    assert "there is no lesson or walk 'nonsense'" in run.stderr and lessons.NAMES[0] in run.stderr


def test_missing_packages_are_named_with_what_to_install(monkeypatch, capsys):
    from demos.notebooks import main

    monkeypatch.setitem(sys.modules, "jupytext", None)
    assert main([lessons.NAMES[0]]) == 1
    assert "pip install -e '.[notebooks]'" in capsys.readouterr().err


def test_a_cell_that_fails_is_shown_and_the_old_notebook_stays(monkeypatch, capsys, tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from demos import notebooks

    monkeypatch.setattr(notebooks, "LESSONS", tmp_path)
    monkeypatch.setattr(notebooks, "WALKS", tmp_path)
    (tmp_path / "faulty.py").write_text("# A lesson.\n# %%\nprint(1 // 0)\n")
    (tmp_path / "faulty.ipynb").write_text("the old one")
    assert notebooks.main([]) == 1
    printed = capsys.readouterr().err
    assert "faulty: a cell failed" in printed and "ZeroDivisionError" in printed
    assert (tmp_path / "faulty.ipynb").read_text() == "the old one"


def test_notebooks_and_scripts_are_part_of_what_is_installed():
    text = (ROOT / "setup.cfg").read_text()
    for package in ("demos.lessons", "demos.walks"):
        assert f"\n    {package}\n" in text and f"{package} = *.ipynb" in text


def test_a_notebook_is_the_same_each_time_it_is_made():
    pytest.importorskip("jupytext")
    from demos.notebooks import notebook_of

    script = "# %% [markdown]\n# Text.\n\n# %%\nx = 1\n\n# %%\nx = 1\n"
    first, second = notebook_of(script), notebook_of(script)
    assert first == second
    ids = [cell["id"] for cell in first["cells"]]
    assert len(set(ids)) == 3
    longer = notebook_of("# %%\ny = 2\n\n" + script)
    assert [cell["id"] for cell in longer["cells"]][1:] == ids


def test_a_graph_has_one_box_for_each_node_and_one_arrow_for_each_use():
    from matplotlib.patches import FancyArrowPatch

    from demos.show import graph

    # x is used by both a and b, and y is made from these.
    made_from = {"x": [], "a": ["x"], "b": ["x"], "y": ["a", "b"]}
    figure = graph("y", made_from.__getitem__, lambda node: [node], names={"dose": "x"})
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    assert sorted(words[:4]) == ["a", "b", "dose\nx", "y"]
    assert words[4:] == ["leaf", "operation", "output"]  # the legend
    assert sum(isinstance(patch, FancyArrowPatch) for patch in axes.patches) == 4

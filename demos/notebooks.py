"""`python -m demos notebooks [NAME ...]` makes the notebooks of lessons and walks: all, or some.

A lesson, demos/lessons/NAME.py, is a script in the percent format: `# %%` begins a cell of code and
`# %% [markdown]` a cell of text. So is a walk, demos/walks/NAME.py, which has nothing to fill in.
jupytext turns it into a notebook, nbclient runs that, and what comes out, with numbers and
pictures, is NAME.ipynb beside it. Two runs of one script give the same file, as far as it computes
the same: what would differ anyway (the times at which cells ran, names of cells drawn at random,
the version of Python) is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

LESSONS = Path(__file__).parent / "lessons"
WALKS = Path(__file__).parent / "walks"
ROOT = Path(__file__).parents[1]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS = 600  # a cell that takes longer is stopped


def scripts(*folders: Path) -> dict[str, Path]:
    """The files of folders that have cells, by their names; of LESSONS and WALKS by default."""
    files = [path for folder in folders or (LESSONS, WALKS) for path in sorted(folder.glob("*.py"))]
    return {path.stem: path for path in files if "\n# %%" in path.read_text(encoding="utf-8")}


def notebook_of(script: str):
    """The text of a script in the percent format, as a notebook that has not run yet."""
    import jupytext

    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.metadata = {"kernelspec": KERNEL}
    used: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata = {}
        # The name of a cell follows from what it says, so that it is the same in each run, and a
        # cell put in between changes no other.
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        used[name] = used.get(name, 0) + 1
        cell.id = name if used[name] == 1 else f"{name}-{used[name]}"
    return notebook


def execute(notebook, folder: Path) -> None:
    """Run all cells, in place, with `folder` as the working directory.

    nbclient's CellExecutionError where a cell raises, CellTimeoutError where it takes too long.
    """
    from nbclient import NotebookClient

    environment = dict(os.environ)
    environment.pop("MINIGRAD_QUICK", None)
    environment["OMP_NUM_THREADS"] = "1"  # more threads add up in another order
    environment["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name=KERNEL["name"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}


def make(script: Path) -> Path:
    """Write the executed notebook of a script beside it; returns its path."""
    import nbformat

    notebook = notebook_of(script.read_text(encoding="utf-8"))
    execute(notebook, script.parent)
    path = script.with_suffix(".ipynb")
    nbformat.write(notebook, path)
    return path


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code."""
    there = scripts()
    parser = argparse.ArgumentParser(
        prog="python -m demos notebooks",
        description="Run lessons and walks, and write their notebooks beside their scripts, as "
        f"demos/lessons/NAME.ipynb. There are: {', '.join(there)}.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a lesson or walk (default: all)")
    names = parser.parse_args(arguments).names or list(there)
    unknown = [name for name in names if name not in there]
    if unknown:
        print(
            f"there is no lesson or walk {unknown[0]!r}; there are: {', '.join(there)}",
            file=sys.stderr,
        )
        return 2
    try:
        import ipykernel  # noqa: F401 (runs the cells)
        import jupytext  # noqa: F401
        from nbclient.exceptions import CellExecutionError, CellTimeoutError
    except ImportError as error:
        print(
            f"notebooks need jupytext, nbclient and ipykernel ({error}): "
            "pip install -e '.[notebooks]'",
            file=sys.stderr,
        )
        return 1
    for name in names:
        started = time.perf_counter()
        try:
            path = make(there[name])
        except (CellExecutionError, CellTimeoutError) as error:
            print(f"{name}: a cell failed, and no notebook was written\n{error}", file=sys.stderr)
            return 1
        print(f"{path.relative_to(ROOT)}: {time.perf_counter() - started:.1f} s")
    return 0

"""`python -m demos` lists the demos, `python -m demos NAME [--quick] [--out DIR]` runs one.

The name `all` stands for all of them. `python -m demos notebooks [NAME ...]` makes the notebooks of
the lessons in demos/lessons, and of the walk in demos/walks (notebooks.py).

A demo is a module with a docstring (the lesson; its first line is the list's) and `run(options)`,
which prints numbers and saves pictures through demos/show.py. `add_options(parser)` is for those
that take more than --quick, --out and --device, which all have: `--device cupy` trains their models
on a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from demos import notebooks, page, show
from minigrad.backend import DEVICES

DEMOS = (
    "autodiff",
    "bottleneck",
    "gene_expression",
    "pca",
    "denoising",
    "elbo",
    "reparameterization",
    "vae",
    "ae_vs_vae",
    "counts",
    "scvi",
    "batches",
    "differential_expression",
    "tsne",
    "geneex",
    "day",
)


def load(name):
    """The module of a demo."""
    return importlib.import_module(f"demos.{name}")


def available() -> list[str]:
    """The demos that are there, in the order of the lessons."""
    return [name for name in DEMOS if (Path(__file__).parent / f"{name}.py").exists()]


def list_demos() -> None:
    """Print how demos are run, and one line for each."""
    print(__doc__.partition("\n\nA demo is a module")[0], end="\n\n")
    for name in available():
        print(f"  {name:<26}{load(name).__doc__.splitlines()[0]}")
    print("\nwhat a demo takes: python -m demos NAME --help")
    lessons = ", ".join(notebooks.scripts(notebooks.LESSONS))
    print(f"lessons, as scripts and notebooks in demos/lessons: {lessons}")
    print("the demo day as a notebook: demos/walks/day.ipynb")


def default_folder() -> Path:
    """The folder for what demos write, where --out does not say it."""
    return Path(os.environ.get("MINIGRAD_OUT", "out"))


def run_demo(name: str, arguments: list[str]) -> None:
    """Run one demo with its command-line options."""
    module = load(name)
    parser = argparse.ArgumentParser(
        prog=f"python -m demos {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a small version, in seconds")
    parser.add_argument(
        "--out",
        type=Path,
        default=default_folder(),
        help="folder for what the demo writes (default: the variable MINIGRAD_OUT, else out)",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        help="where models train (default: MINIGRAD_DEVICE, else numpy)",
    )
    if hasattr(module, "add_options"):
        module.add_options(parser)
    options = parser.parse_args(arguments)
    if options.device:
        os.environ["MINIGRAD_DEVICE"] = options.device
    options.out.mkdir(parents=True, exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in options.out.glob(f"{name}*.png")}
    with page.recorded(options.out, name):
        started = time.perf_counter()
        module.run(options)
        for path in sorted(options.out.glob(f"{name}*.png")):
            if options.quick and path.stat().st_mtime_ns != before.get(path):
                show.mark_quick(path)
        print(f"\n{name}: {time.perf_counter() - started:.1f} s; files in {options.out}/")


def main(arguments: list[str]) -> int:
    """The command line. Returns the exit code."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help", "list"):
        list_demos()
        return 0
    if name == "notebooks":
        return notebooks.main(rest)
    if name == "all":
        for demo in available():
            print(f"\n--- {demo}")
            run_demo(demo, rest)
        options = argparse.ArgumentParser()
        options.add_argument("--out", type=Path, default=default_folder())
        page.write(options.parse_known_args(rest)[0].out, available())
        return 0
    if name not in available():
        print(
            f"there is no demo {name!r}; there are: {', '.join(available())}, all "
            "(the name comes first, options after it)",
            file=sys.stderr,
        )
        return 2
    run_demo(name, rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

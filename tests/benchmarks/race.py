"""How soon is a model good? `python -m tests.benchmarks race [--seeds N] [DATA ...]`.

A user does not wait for an epoch, but for a good model. So this draws held-out likelihood against
seconds, for whole trainings of three sides on the same cells:

    ours         `SCVI.fit` with all defaults, once for each number of epochs in OURS (its learning
                 rate falls to 0 over them, so that each number is a training of its own)
    scvi-tools   its defaults for 400 epochs: 10 latent dimensions, dropout 0.1, Adam (rate 1e-3, eps
                 0.01, weight decay 1e-6), KL weight rising over all 400; looked at on the way
    PyTorch      the same recipe as a bare loop, without the framework's overhead

Each training is a process of its own. Its seconds run from the start of the process to the end of
the training: imports, checks and starting values are in them; the evaluation is not. All weights
are judged by one code, `SCVI.log_likelihood` here (racer.py). DATA are shipped data sets by name,
or files.

Know after: who gets to a given quality first, and by which recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from tqdm import tqdm

from demos import show
from tests.benchmarks.work import MISSING

ROOT = Path(__file__).parents[2]
OURS = (5, 10, 20, 30, 40, 60, 100, 200)
NAMES = {"ours": "ours", "scvi_tools": "scvi-tools", "pytorch": "bare PyTorch loop"}


def race(path: Path, likelihood: str, seeds: int, threads: int) -> dict:
    """{side: {epochs: [(seconds, log p) of each seed]}} of one data set."""
    jobs = [
        (side, seed, epochs)
        for seed in range(seeds)
        for side in NAMES
        for epochs in (OURS if side == "ours" else (400,))
    ]
    found = {side: defaultdict(list) for side in NAMES}
    for side, seed, epochs in tqdm(jobs, desc=path.stem, disable=None):
        for looked in run(side, path, likelihood, seed, epochs, threads):
            found[side][looked["epochs"]].append((looked["seconds"], looked["log_p"]))
            # At once: the whole table of a wide data set takes half an hour.
            tqdm.write(f"{path.stem}, seed {seed}, {NAMES[side]}: {looked}", file=sys.stderr)
    return found


def run(side: str, path: Path, likelihood: str, seed: int, epochs: int, threads: int) -> list[dict]:
    """What one racer printed, [] where its library is missing; RuntimeError where it failed."""
    command = [sys.executable, "-m", "tests.benchmarks.racer", side, str(path), likelihood]
    command += [str(seed), str(epochs)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(threads), capture_output=True, text=True
    )
    if done.returncode == MISSING:
        return []
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def environment(threads: int) -> dict[str, str]:
    """The environment of every side: the same threads, and the BLAS kernel that a user would get."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    kept = {
        k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    }
    return {**kept, **dict.fromkeys(names, str(threads))}


def curve(looks: dict) -> list[tuple[int, float, float]]:
    """(epochs, mean seconds, mean log p) of one side, by epochs."""
    return [
        (epochs, mean(seconds for seconds, _ in of_seeds), mean(log_p for _, log_p in of_seeds))
        for epochs, of_seeds in sorted(looks.items())
    ]


def first_to(curve_of_side: list, goal: float) -> tuple[int, float] | None:
    """(epochs, seconds) of the first point of a curve with log p of at least `goal`; None: none."""
    for epochs, seconds, log_p in curve_of_side:
        if log_p >= goal:
            return epochs, seconds
    return None


def rows(data: str, curves: dict) -> list[str]:
    """Lines of the table in Markdown: who reached the last value of scvi-tools, and when."""
    goal_epochs, goal_seconds, goal = curves["scvi_tools"][-1]
    lines = []
    for side, points in curves.items():
        if not points:
            lines.append(f"| {data} | {NAMES[side]} | not installed | | | |")
            continue
        reached = first_to(points, goal)
        last = points[-1]
        start = f"| {data} | {NAMES[side]} | {last[2]:.1f} ({last[0]} epochs, {last[1]:.1f} s) | "
        if reached is None:
            lines.append(start + f"not in {last[0]} epochs | | |")
        else:
            epochs, seconds = reached
            ratio = goal_seconds / seconds
            lines.append(start + f"{epochs} | {seconds:.1f} | {ratio:.1f} times sooner |")
    return lines


def draw(curves_of_data: dict, out: Path) -> None:
    """Held-out log p against seconds, a panel for each data set."""
    figure = Figure(figsize=(4.6 * len(curves_of_data), 3.9), layout="constrained")
    panels = figure.subplots(1, len(curves_of_data), squeeze=False)[0]
    for panel, (data, curves) in zip(panels, curves_of_data.items()):
        for (side, points), color, marker in zip(curves.items(), show.COLORS, show.MARKERS):
            if points:
                _, seconds, log_p = zip(*points)
                panel.plot(seconds, log_p, color=color, marker=marker, label=NAMES[side])
        if curves["scvi_tools"]:
            goal = curves["scvi_tools"][-1][2]
            panel.axhline(goal, color="0.5", linestyle=":", linewidth=1.0)
            values = [log_p for points in curves.values() for _, _, log_p in points]
            panel.set_ylim(goal - 2.0 * (max(values) - goal) - 5.0, max(values) + 3.0)
        panel.set_xscale("log")
        panel.set_title(data)
        panel.set_xlabel("seconds from the start of the process")
    panels[0].set_ylabel("held-out log p(x | total), nats a cell")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(out, dpi=110)


def main(arguments=None) -> int:
    """Race, print the table in Markdown, and draw the picture."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks race", description=__doc__.split("\n")[0]
    )
    parser.add_argument("data", nargs="*", default=["cortex", "pbmc68k"], metavar="DATA")
    parser.add_argument("--likelihood", default="zinb", choices=("zinb", "nb"))
    parser.add_argument("--seeds", type=int, default=3, help="splits and trainings (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side")
    parser.add_argument("--out", type=Path, default=Path("race.png"), help="the picture")
    chosen = parser.parse_args(arguments)
    print(
        f"{chosen.likelihood.upper()}, {chosen.seeds} seeds, {chosen.threads} threads a side, BLAS: {kernel()}\n"
    )
    print("| data | who | log p at the end | epochs to scvi-tools' last value | seconds | |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    curves_of_data = {}
    for name in chosen.data:
        shipped = show.DATA / f"{name}.npz"
        path = (shipped if shipped.exists() else Path(name)).resolve()
        found = race(path, chosen.likelihood, chosen.seeds, chosen.threads)
        curves = {side: curve(looks) for side, looks in found.items()}
        curves_of_data[path.stem] = curves
        if curves["scvi_tools"]:
            print("\n".join(rows(path.stem, curves)), flush=True)
        for side, points in curves.items():
            shown = ", ".join(f"{e}: {s:.1f} s {v:.1f}" for e, s, v in points)
            print(f"<!-- {path.stem}, {NAMES[side]}: {shown} -->", flush=True)
    draw(curves_of_data, chosen.out)
    return 0


def kernel() -> str:
    """The BLAS kernel that NumPy runs in the racers, by threadpoolctl; "unknown" without it."""
    code = "import numpy, threadpoolctl; print(*{p.get('architecture') for p in threadpoolctl.threadpool_info()})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(1), capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown (pip install threadpoolctl)"


if __name__ == "__main__":
    sys.exit(main())

"""Speed and memory beside what a user would take instead: `python -m tests.benchmarks [--rounds N] [JOB ...]`.

Know before reading: work.py says what is trained, ours.py, pytorch.py, scvi_tools.py and by_hand.py how. Each side is a
process of its own (worker.py); they take turns, so that what the machine does to one it does to all; medians and ratios
of medians are printed beside the goals. Sides whose library is not installed (extra `bench`) are left out; all get the
same number of threads. With MINIGRAD_DEVICE=cupy ours, PyTorch and JAX train on a GPU; the goals are for processors.

Know after: where this project is fast, where it is not, and by how much.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median

from tqdm import tqdm

from tests.benchmarks import race
from tests.benchmarks.race import environment, kernel
from tests.benchmarks.work import MISSING

ROOT = Path(__file__).parents[2]
# job: (epochs a turn, unit, factor from seconds to it, our side, {side: goal for the ratio})
JOBS = {
    "scvi-nb-brain": (
        3,
        "s an epoch",
        1.0,
        "ours",
        {
            "pytorch": 2.0,
            "pytorch_compiled": 1.3,
            "jax_jit": 1.1,
            "scvi_tools": 3.5,
            "by_hand": None,
        },
    ),
    "scvi-zinb-brain": (
        3,
        "s an epoch",
        1.0,
        "ours",
        {
            "pytorch": 2.0,
            "pytorch_compiled": 1.3,
            "jax_jit": 1.1,
            "scvi_tools": 3.5,
            "by_hand": None,
        },
    ),
    "scvi-nb-wide": (1, "ms a step", 1e3 / 16, "ours", {"pytorch": 2.0, "by_hand": None}),
    "ae": (2, "ms a step", 1e2, "ours", {"pytorch": 1.4}),
    "vae": (4, "ms a step", 1e2, "ours", {"pytorch": 2.0}),
    "tape": (1, "us an operation", 1e6, "tape", {"hips_autograd": 1.6}),
}


class Worker:
    """A process that does one side's work, a turn at a time."""

    def __init__(self, side, job, units, threads):
        self.command = [sys.executable, "-m", "tests.benchmarks.worker", side, job, str(units)]
        self.process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            env=environment(threads),
        )

    def turn(self) -> dict:
        """Seconds, peak memory and version; empty where a library is missing.

        RuntimeError for any other failure.
        """
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:  # what libraries print themselves is not ours
            if line.startswith("{"):
                return json.loads(line)
        if self.process.wait() == MISSING:
            return {}
        raise RuntimeError(f"failed; see why with: echo go | {' '.join(self.command)}")

    def stop(self):
        """End the process, if it has not ended itself."""
        self.process.kill()
        self.process.wait()


def compare(job: str, rounds: int, threads: int) -> list[str]:
    """Rows of the table for one job: a line per side."""
    units, unit, factor, mine, goals = JOBS[job]
    workers = {side: Worker(side, job, units, threads) for side in (mine, *goals)}
    first = {
        side: worker.turn() for side, worker in workers.items()
    }  # warms up, and says who is there
    sides = [side for side, found in first.items() if found]
    turns = {side: [] for side in sides}
    for _ in tqdm(range(rounds), desc=job, disable=None):
        for side in sides:
            turns[side].append(workers[side].turn())
    for worker in workers.values():
        worker.stop()
    seconds = {side: median(turn["seconds"] for turn in turns[side]) for side in sides}
    rows = []
    for side in sides:
        last, ratio, goal = turns[side][-1], seconds[side] / seconds[mine], goals.get(side)
        rows.append(
            f"| {job} | {side.replace('_', ' ')} ({last['version']}) | {seconds[side] * factor:.3g} {unit} | "
            f"{f'{ratio:.2f}' if side != mine else ''} | {goal or ''} | {last['megabytes']:.0f} |"
        )
    return rows + [
        f"| {job} | {side}: not installed | | | | |" for side in workers if side not in sides
    ]


def main(arguments=None) -> int:
    """Run the comparisons asked for and print a table in Markdown; `race ...` is race.py's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["race"]:
        return race.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each side (default: all processors)"
    )
    chosen = parser.parse_args(arguments)
    unknown = [job for job in chosen.jobs if job not in JOBS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(JOBS)}")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, {chosen.threads} threads a side, BLAS {kernel()}; "
        f"Python {platform.python_version()}; medians of {chosen.rounds} turns\n"
    )
    print(
        "| work | who | time | times ours | goal | peak MB |\n| --- | --- | --- | --- | --- | --- |"
    )
    for job in chosen.jobs or JOBS:
        print("\n".join(compare(job, chosen.rounds, chosen.threads)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

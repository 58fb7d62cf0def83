"""One side of a comparison, in a process of its own: does its work once for every line on standard input, and prints JSON.

Run by __main__.py as `python -m tests.benchmarks.worker SIDE JOB UNITS`. Processes of their own keep libraries from each
other's threads and let the memory of each be measured; taking turns line by line keeps them from running at once.
"""

import importlib
import json
import resource
import sys

from tests.benchmarks.work import MISSING


def main(side, name, units):
    try:
        module = importlib.import_module(f"tests.benchmarks.{side}")
    except ModuleNotFoundError:
        sys.exit(MISSING)
    run = module.job(name, int(units))
    for _ in sys.stdin:
        seconds = run()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            json.dumps({"seconds": seconds, "megabytes": peak, "version": module.version()}),
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Judge your answers to the exercises of the README, "How to read the source".

    python -m tests.exercises [ANSWERS]

One line for each exercise: done, missing (with what to write), or wrong (with a hint). ANSWERS is the file with your
answers; where it is empty, the lines say what each exercise is to be called and takes. The exit status is 0 if none is
wrong, 1 if one is or if the file cannot be loaded, 130 after Ctrl-C.
"""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from models.streams import kept_going
from tests.exercises.checks import EXERCISES
from tests.exercises.judge import BrokenAnswers, Verdict, verdicts

ANSWERS = Path(__file__).parent / "answers.py"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.exercises",
        description="Judge the answers to the exercises of the README.",
    )
    parser.add_argument(
        "answers",
        metavar="ANSWERS",
        nargs="?",
        type=Path,
        default=ANSWERS,
        help="a Python file with the answers under the exercises' names (tests/exercises/answers.py)",
    )
    path = parser.parse_args(arguments).answers
    if path.is_file():
        found = verdicts(path)
    elif path == ANSWERS:  # not begun yet
        found = (Verdict(name, "missing", text) for name, text in EXERCISES.items())
    else:
        parser.error(f"{path}: no such file")
    with kept_going() as output, closing(found):  # which ends the process that judges
        return report(found, path, output)


def report(found, path: Path, output) -> int:
    """Print the verdicts as they come, and how many of each kind; returns the exit status.

    output: the standard output; once nobody reads it any more, as after `| head`, no more is judged.
    """
    counted = {"done": 0, "missing": 0, "wrong": 0}
    try:
        for name, status, text in found:
            counted[status] += 1
            print(f"{name:<26}{status}{': ' if text else ''}{text}", flush=True)
            if output.error is not None:
                break
    except BrokenAnswers as error:
        print(f"{path} cannot be loaded: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(", ".join(f"{n} {status}" for status, n in counted.items()))
    return 1 if counted["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

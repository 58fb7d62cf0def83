"""How an answer is judged: a hint of one line if it is wrong, in a process that can be ended if it never ends."""

import difflib
import importlib.util
import json
import multiprocessing
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.exercises import checks

TIME_LIMIT = 60.0  # seconds for an exercise; the longest solution takes about one
LONGEST_HINT = 400  # characters


class Verdict(NamedTuple):
    """What became of an exercise. status: "done", "missing" or "wrong"; hint: what to write, what is wrong, or ""."""

    name: str
    status: str
    hint: str


class BrokenAnswers(Exception):
    """The file of answers cannot be loaded at all; the message says why."""


def load(path: Path):
    """A fresh module from a file: what it puts into the table is put there again by each load."""
    spec = importlib.util.spec_from_file_location(f"exercises_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hint(name: str, answer, path: Path | None = None) -> str:
    """What is wrong with an answer, in one line; "" if nothing is. path: where the answer stands, to name its lines."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():  # judged by what comes of it
            warnings.simplefilter("ignore")
            checks.demand_ones_own(answer)
            getattr(checks, f"check_{name}")(answer)
    except checks.Wrong as error:
        return in_one_line(str(error))
    except Exception as error:
        return in_one_line(f"it raised {in_words(error, path)}")
    return ""


def in_words(error: Exception, path: Path | None) -> str:
    """An error with its type and where in the answers it came up: outermost and innermost line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path is not None and frame.filename == str(path)
    ]
    text = str(error)
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
        text = error.msg
    where = ""
    if lines:
        outer_and_inner = " and ".join(f"line {n}" for n in dict.fromkeys((lines[0], lines[-1])))
        where = f" ({outer_and_inner} of {path.name})"
    return f"{type(error).__name__}: {text}{where}"


def in_one_line(text: str) -> str:
    """Without line breaks, and cut off where it is very long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_HINT else f"{text[: LONGEST_HINT - 4]} ..."


# ------------------------------------------------------------------- in a process of its own
def judge(connection, path: str, names: list[str]) -> None:
    """What the process does: load the answers, judge them, and send what it finds, as JSON."""

    def send(*message):
        connection.send_bytes(json.dumps(message).encode())

    with redirect_stdout(sys.stderr):  # what the answers print is not to stand between the verdicts
        try:
            answers = load(Path(path))
        except Exception as error:
            send("broken", in_one_line(in_words(error, Path(path))))
            return
        send("loaded", "")
        for name in names:
            if hasattr(answers, name):
                found = hint(name, getattr(answers, name), Path(path))
                send("wrong" if found else "done", found)
            else:
                send("missing", checks.EXERCISES[name] + misspelt(name, answers))


def misspelt(name: str, answers) -> str:
    """What to add where an answer is missing and there is one whose name is nearly the same; else ""."""
    others = set(vars(answers)) - set(checks.EXERCISES)
    close = difflib.get_close_matches(name, others, n=1, cutoff=0.8)
    return f" (there is {close[0]!r}: is that it?)" if close else ""


def judge_undisturbed(*arguments) -> None:
    """`judge`, in a process that leaves Ctrl-C to the one that started it, which then ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    judge(*arguments)


def verdicts(path: Path, time_limit: float = TIME_LIMIT) -> Iterator[Verdict]:
    """The Verdict of each exercise, in order. An answer that does not end, or ends the process, is wrong.

    time_limit: seconds for each. BrokenAnswers if the file cannot be loaded, or not within TIME_LIMIT.
    """
    names = list(checks.EXERCISES)
    while names:
        with _Process(path, names) as process:
            status, text = process.receive(TIME_LIMIT)
            if status != "loaded":
                raise BrokenAnswers(text)
            while names and status != "ended":
                status, text = process.receive(time_limit)
                yield Verdict(names.pop(0), "wrong" if status == "ended" else status, text)


class _Process:
    """A process that runs `judge`, ended when the block is left."""

    def __init__(self, path, names):
        self.arguments = str(path), names

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, its_end = context.Pipe(duplex=False)
        self.process = context.Process(
            target=judge_undisturbed, args=(its_end, *self.arguments), daemon=True
        )
        self.process.start()
        its_end.close()  # so that the end of the process is the end of the pipe
        return self

    def __exit__(self, error_type, *_):
        if error_type is None:
            self.process.join(10.0)  # after the last verdict it ends by itself
        self.process.kill()
        self.process.join()
        self.connection.close()

    def receive(self, seconds):
        """(status, text) as `judge` sent it; ("ended", why) if nothing comes."""
        if not self.connection.poll(seconds):
            self.process.kill()
            return "ended", f"no end within {seconds:g} seconds: is there a loop that never ends?"
        try:
            return json.loads(self.connection.recv_bytes())
        except EOFError:
            self.process.join()
            return "ended", f"it ended Python (exit code {self.process.exitcode})"

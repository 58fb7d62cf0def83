"""Standard output and standard error that may be closed, broken or full without stopping the work.

This is engineering. In `train ... 2>&1 | head -1` the reader of our words leaves after one line; in
a cron job the streams may be closed from the start. Neither is a reason to lose a training. Within
`kept_going()`, what cannot be written is dropped, and the command goes on.

Know before reading: nothing. Know after: what becomes of a word that nobody can read.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Stream:
    """A text stream that never fails. `error` is what the first failure was, or None.

    stream: the one that this stands for; None where the process was started without it.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.error: Exception | None = None
        with suppress(AttributeError):  # a stand-in, as tests and notebooks have, may not know how
            stream.reconfigure(errors="backslashreplace")  # what the terminal cannot show

    def write(self, text: str) -> int:
        """Write text, or drop it. Returns its length."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what is in the buffer, or drop it."""
        self._try(lambda: self.stream.flush())

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.stream is not None and self.error is None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, action) -> None:
        if self.stream is None or self.error is not None:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.error = error
            self._let_go()

    def _let_go(self) -> None:
        """What is left in the buffer goes nowhere, so that the process ends without an error."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    @property
    def lost(self) -> OSError | None:
        """The error by which a table was lost that somebody wanted; None where nobody was there.

        A reader that leaves early (a broken pipe) has had enough; a full disk has not.
        """
        if isinstance(self.error, OSError) and self.error.errno not in (errno.EPIPE, errno.EBADF):
            return self.error
        return None


@contextmanager
def kept_going() -> Iterator[Stream]:
    """Within, sys.stdout and sys.stderr are Streams; yields that of the standard output."""
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    output = Stream(sys.stdout)
    sys.stdout = output  # type: ignore[assignment]
    sys.stderr = Stream(sys.stderr)  # type: ignore[assignment]
    try:
        yield output
    finally:
        output.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open the null device where a standard descriptor is closed.

    Else the next file to be opened, such as a model's, would be descriptor 2, and what a C library
    has to say would be written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one

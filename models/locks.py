"""A lock that a process holds on a file or folder, so that no other one changes it meanwhile.

This is engineering. The lock is a small file beside what it protects, locked by the operating
system: when its owner dies, however it dies, the system lets go of it. The text in the file says
who the owner is, for the sentence that the other process gets.

Know before reading: nothing. Know after: why two trainings cannot share a run.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    import msvcrt

LONGEST = 200  # bytes of a file's name that the name of its lock has; file systems allow 255
FAR_AWAY = 1 << 30  # the byte that Windows locks: beyond the text, which others must read


class Locked(OSError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Any, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` within. doing: what for, in words, such as "trains".

    wait: for the process that holds it; else Locked, an OSError that names that process.
    """
    path = Path(path)
    descriptor = _taken(path, doing, wait)
    try:
        yield
    finally:
        # Removed while it is still locked: who opened it meanwhile finds in `_taken` that it is
        # gone.
        with suppress(OSError):  # Windows removes no open file: it stays, unlocked
            if _is_still(path, descriptor):
                os.unlink(path)
        os.close(descriptor)


def beside(path: Any) -> Path:
    """The lock file of a file: hidden, in the folder where the file really is."""
    folder, name = os.path.split(os.path.realpath(path))
    return Path(folder, f".{os.fsdecode(os.fsencode(name)[:LONGEST])}.lock")


def _taken(path, doing, wait):
    """The descriptor of the lock file, locked, and with our name in it."""
    is_told = False
    while True:
        # A link in its place, in a folder that came from a stranger, could lead to any file.
        no_link = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            owner = _owner(path)
            if not wait:
                raise Locked(f"{owner}; wait until it is done")
            if not is_told:
                warnings.warn(f"waiting: {owner}", stacklevel=4)
                is_told = True
            time.sleep(0.05)
            continue
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its last owner has removed it: begin anew
    me = f"process {os.getpid()} on {socket.gethostname()} {doing} (since {time.strftime('%H:%M')})"
    with suppress(OSError):  # a full disk is no reason not to lock
        os.truncate(descriptor, 0)
        os.write(descriptor, me.encode())
    return descriptor


def _lock(descriptor) -> bool:
    """Lock an open file, without waiting; whether that worked."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, FAR_AWAY, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: better to work than to refuse
        return True


def _is_still(path, descriptor) -> bool:
    """Whether the path still leads to the file that was opened."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path) -> str:
    """Who holds the lock, in words."""
    with suppress(OSError):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text:
            return text
    return f"another process holds {path}"

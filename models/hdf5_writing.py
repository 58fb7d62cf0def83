"""Writing HDF5 files so that a full disk is an error, and never a file that is quietly wrong.

This is engineering. HDF5's own library does not pass on every error of the disk: where space runs
out while a file is closed, it may report success and leave zeros, or end the process with SIGSEGV.
So the library is not given the file. It is given a Python object that looks like one, and whose
`write` is Python's: that one sees every error. The first error is kept, and the library goes on as
if nothing had happened, so that it closes without a crash; then the error is raised.

Know before reading: minigrad/checkpoint.py, which replaces a file only when its successor is whole.
Know after: why `embed --out x.h5ad` on a full disk ends with a sentence, and x.h5ad as it was.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class KeepingErrors(io.FileIO):
    """A file for HDF5's library to work on. `error` is the first error of the disk, or None."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of data. The number of its bytes, whether or not the disk took them."""
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        try:
            while left:
                left = left[super().write(left) :]  # a nearly full disk takes a part
        except OSError as error:
            self.error = self.error or error
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file; the new length, whether or not the disk took it."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; with zeros where the file ends early, as it does after an error."""
        view = memoryview(buffer).cast("B")
        left = view
        while n_read := super().readinto(left):  # the system gives 2 GB at a time
            left = left[n_read:]
        left[:] = bytes(len(left))
        return len(view)


@contextmanager
def hdf5_file(path: Any, mode: str) -> Iterator[Any]:
    """An open h5py.File, "w" for a new one or "r+" to change one; OSError if the disk refused a
    byte.

    Call it on a path of `checkpoint.whole_file`: after an error the file is worth nothing.
    """
    h5py = importlib.import_module("h5py")
    with KeepingErrors(path, "w+" if mode == "w" else "r+") as raw:
        try:
            with h5py.File(raw, mode) as file:
                yield file
        finally:
            # What h5py says after a failed write is a consequence of it: the cause is the error.
            if raw.error is not None:
                raise raw.error

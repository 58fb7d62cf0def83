"""HDF5 files from strangers, read in a process of their own, with limits of time and memory.

This is engineering.

Know before reading: `counts.read`, which this is, with the same arguments, result and errors.
.h5ad, .h5 and .loom are read by libhdf5, a C library. A file with flipped bits can make it loop for
ever, fill the memory or crash, and nothing in the same process can stop it: of 7,000 files with one
to four flipped bits 7 did. The command line therefore lets a child read such files:

    counts = guarded.read("counts.h5ad")      # the same as counts.read("counts.h5ad")

The child may compute and take memory in proportion to the size of the file, far more than a file
that is whole needs. What it has read comes through a pipe as plain arrays: a line of JSON with
their names, dtypes and shapes, then their bytes. Nothing is pickled. A child that does not come to
its end becomes a ValueError that says how it ended. It takes some 0.4 seconds to start. A matrix
that stays on the disk is read by the caller, after the child has read all of it once.

Know after: what protects the command line from HDF5 files, and what it costs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from minigrad.data import pieces
from models import counts, hdf5
from models.counts import Counts
from models.files import need
from models.zarr_store import is_zarr

# What reading may take: seconds of computing, bytes of memory; and more for each byte of the file.
SECONDS, SECONDS_A_BYTE = 20, 2e-6
MEMORY, MEMORY_A_BYTE = 2**30, 256


def read(
    path,
    layer: str | None = None,
    backed: bool = False,
    *,
    transpose: bool = False,
    obs=None,
    only_annotated: bool = False,
    gene_names: str | None = None,
    rounded: bool | None = None,
) -> Counts:
    """`counts.read`, where libhdf5 can do no harm: HDF5 files are read in a process of their own.

    Arguments, result, warnings and errors are those of `counts.read`. ValueError also for a file
    that makes libhdf5 crash, or take more than its share of time or memory.
    """
    reading: dict[str, Any] = {
        "transpose": transpose,
        "obs": None if obs is None else [os.fspath(table) for table in counts.tables_in(obs)],
        "only_annotated": only_annotated,
        "gene_names": gene_names,
        "rounded": rounded,
    }
    if isinstance(path, (list, tuple)):
        return counts.read_several(path, layer, backed, read, reading)
    options = {"layer": layer, "backed": backed, **reading}
    is_store = is_zarr(Path(path))
    is_hdf5 = Path(path).suffix.lower() in hdf5.ENDINGS and Path(path).is_file()
    if not is_store and not is_hdf5:
        return counts.read(path, **options)
    if find_spec("h5py") is None:
        need("h5py")  # says how to install it
    if is_hdf5:
        open(path, "rb").close()  # where it may not be read, the error is the ordinary one
        size = os.path.getsize(path)
    else:
        size = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    request = {
        "options": options,
        "seconds": int(SECONDS + SECONDS_A_BYTE * size),
        "memory": MEMORY + MEMORY_A_BYTE * size,
    }
    program = [sys.executable, "-P", "-m", "models.guarded", os.fspath(path), json.dumps(request)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
    ) as child:
        try:
            found = _receive(child.stdout)
        except BaseException:  # Ctrl-C above all
            child.kill()
            raise
    if found is None:
        raise ValueError(
            f"{path}: damaged, or made to do harm: {_end_of(child.returncode)} while it read the "
            "file; write or fetch it again"
        )
    if "error" in found:
        raise {"ImportError": ImportError}.get(found["error"], ValueError)(found["text"])
    if backed:
        return counts.read(path, **options)
    for note in found["warnings"]:
        warnings.warn(note, stacklevel=2)
    return _counts_from(found)


def environment() -> dict[str, str]:
    """The variables of a process that is to find these packages, wherever it is started."""
    packages = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, packages))}


def _end_of(code: int) -> str:
    """How a child ended that did not say it itself."""
    if code >= 0:
        return f"the process that reads ended with code {code}"
    name = signal.Signals(-code).name
    if name == "SIGXCPU":  # sent to who computes for longer than the limit
        return "the HDF5 library did not come to an end"
    return f"the HDF5 library crashed ({name})"


# --------------------------------------------------------------------------------- through the pipe
def _send(stream, arrays: dict, **said) -> None:
    """A line that says what follows, and the bytes of the arrays, name -> array."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    said["arrays"] = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    stream.write(json.dumps(said).encode() + b"\n")
    for array in arrays.values():
        stream.write(array.view(np.uint8).data)
    stream.flush()


def _receive(stream) -> dict | None:
    """What was sent, "arrays" as name -> array; None where it was not all."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    said = json.loads(line)
    arrays = {}
    for name, dtype, shape in said["arrays"]:
        arrays[name] = np.empty(shape, dtype)
        if stream.readinto(arrays[name].view(np.uint8).data) != arrays[name].nbytes:
            return None
    return said | {"arrays": arrays}


def _arrays_of(found: Counts) -> dict:
    """All of some counts as arrays of numbers and strings; a column with missing values as two."""
    x: Any = found.X
    arrays = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": np.array(x.shape)}
    arrays |= {"genes": found.genes, "cells": found.cells}
    for kind, columns in (("obs", found.obs), ("var", found.var)):
        for key, values in columns.items():
            if values.dtype == object:
                missing = np.array([value is None for value in values])
                arrays[f"missing {kind} {key}"] = missing
                values = np.array(values[~missing].tolist())
            arrays[f"{kind} {key}"] = values
    return arrays


def _counts_from(found: dict) -> Counts:
    """The counts again."""
    arrays = found["arrays"]
    x = sparse.csr_array(
        (arrays["data"], arrays["indices"], arrays["indptr"]), shape=tuple(arrays["shape"].tolist())
    )
    x.has_canonical_format = True  # the child has checked it
    columns: dict[str, dict] = {"obs": {}, "var": {}}
    for name, values in arrays.items():
        kind, _, key = name.partition(" ")
        if kind not in columns:
            continue
        missing = arrays.get(f"missing {name}")
        if missing is not None:
            known = values
            values = np.full(missing.shape, None)
            values[~missing] = known
        columns[kind][key] = values
    return Counts(x, arrays["genes"], arrays["cells"], **columns)


# ---------------------------------------------------------------------------------------- the child
def main(path: str, request: str) -> None:
    """Read the file and send it to standard output. request: JSON of what `read` asks for."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then ends this process
    asked = json.loads(request)
    options = asked["options"]
    _limit(asked["seconds"], asked["memory"])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = counts.read(path, **options)
            if options["backed"]:
                for _ in pieces(found.X):  # does libhdf5 come through the whole matrix?
                    pass
    except Exception as error:
        _send(sys.stdout.buffer, {}, error=type(error).__name__, text=str(error))
        return
    said = list(dict.fromkeys(str(warning.message) for warning in caught))
    _send(sys.stdout.buffer, {} if options["backed"] else _arrays_of(found), warnings=said)


def _limit(seconds: int, memory: int) -> None:
    """No more computing than this from now on, nor memory in bytes, where the system has such
    limits: not on Windows.
    """
    try:
        import resource
    except ImportError:
        return

    def lower(kind: int, soft: int, hard: int) -> None:
        """Set a limit, but not above what the system or a cluster's scheduler has set."""
        _, most = resource.getrlimit(kind)
        if most != resource.RLIM_INFINITY:
            soft = min(soft, most)
            hard = min(hard, most)
        resource.setrlimit(kind, (soft, hard))

    lower(resource.RLIMIT_CORE, 0, 0)
    lower(resource.RLIMIT_CPU, seconds, seconds + 5)
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        used = int(statistics.read_text().split()[0]) * resource.getpagesize()
        lower(resource.RLIMIT_AS, used + memory, used + memory)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Files of weights: an uncompressed npz of plain arrays and one JSON text, written whole or not at all.

Know before reading: an npz file is a zip archive of .npy files, each a short header (dtype, shape) and raw numbers.
Writing goes to a temporary file beside the target, which is flushed to the disk and then renamed over it: whenever the
power fails, the target is either the old file or the new one. Reading trusts nothing: files from strangers are data,
never code. Pickled objects, compressed members (which could unpack to any size) and headers that promise another size
than is there are refused before memory is taken.

Know after: why a killed run loses no more than what came after its last checkpoint.
"""
from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile

import numpy as np

FORMAT = "minigrad checkpoint"
VERSION = 1
_META = "meta"


def save(path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write arrays (numbers of any dtype and shape) and `meta` (what JSON can hold) to `path`, atomically.

    OSError (a full disk, a missing folder) leaves the old file as it was and no temporary one behind.
    """
    path = os.path.abspath(os.fspath(path))
    text = json.dumps({"format": FORMAT, "version": VERSION, **meta})
    members = {**arrays, _META: np.frombuffer(text.encode(), np.uint8)}
    handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", suffix=".part", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **members)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _flush_folder(os.path.dirname(path))


def _flush_folder(folder) -> None:
    """Make the renaming itself durable (where the system lets folders be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, meta) as `save` wrote them. ValueError in one sentence for anything else; FileNotFoundError if none."""
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {_name(m): _read(archive, m) for m in archive.infolist()}
        meta = json.loads(arrays.pop(_META).tobytes().decode())
        if meta["format"] != FORMAT:
            raise ValueError("it is not a minigrad checkpoint")
        if meta["version"] != VERSION:
            raise ValueError(f"its format is version {meta['version']}, this program reads version {VERSION}")
    except FileNotFoundError:
        raise
    except KeyError as error:
        raise ValueError(f"{path}: cannot be loaded: {error} is missing; it is not a minigrad checkpoint") from error
    except (ValueError, TypeError, AttributeError, zipfile.BadZipFile, NotImplementedError, EOFError, RecursionError,
            RuntimeError, OSError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be loaded: {error}") from error
    return arrays, meta


def _name(member: zipfile.ZipInfo) -> str:
    """The name of the array in a member; refuses what np.savez does not write."""
    name = member.filename
    if not name.endswith(".npy") or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise ValueError(f"it holds {name!r}, which is no array")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{name} is compressed, which this program never writes")
    return name[:-4]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, after checking that its header promises exactly the numbers that are there (zipfile checks the CRC)."""
    if member.file_size > os.fstat(archive.fp.fileno()).st_size:
        raise ValueError(f"{member.filename} claims to be larger than the file")
    content = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(content)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f"{member.filename} has the unknown npy version {version}")
    shape, fortran, dtype = header[version](content)
    if dtype.kind not in "fiub":
        raise ValueError(f"{member.filename} holds {dtype}, not numbers")
    raw = content.getbuffer()[content.tell():]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count * dtype.itemsize != len(raw) or any(n < 0 for n in shape):
        raise ValueError(f"{member.filename} promises shape {shape} of {dtype}, but holds {len(raw)} bytes")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()

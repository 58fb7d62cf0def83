"""Files of weights: an uncompressed npz of arrays and one JSON text, written whole or not at all.

This is engineering.

Know before reading: an npz file is a zip archive of .npy files, each a short header (dtype, shape)
and raw numbers. Writing goes to a temporary file beside the target, which is flushed to the disk
and then renamed over it: whenever the power fails, the target is either the old file or the new
one. Reading trusts nothing: files from strangers are data, never code. Pickled objects, compressed
or overlapping members (which could unpack to any size) and headers that promise another size than
is there are refused before memory is taken.

Know after: why a killed run loses no more than what came after its last checkpoint.
"""

from __future__ import annotations

import glob
import io
import json
import os
import stat
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from minigrad.nn import Module
from minigrad.notebook import as_html, number_of

FORMAT = "minigrad checkpoint"
VERSION = 2
# Bytes of JSON: 60,000 names of genes take one million; six million take a second to read.
LARGEST_META = 6_000_000
# Seconds after which an unfinished file is one of a dead process: no save takes a day.
STALE = 86_400
LONGEST_START = 180  # bytes of a name that its temporary file's begins with; file systems allow 255
LONGEST_SUFFIX = 40
_META = "meta"
_MOST = 10_000  # arrays in a file


class _Refused(ValueError):
    """What is wrong with a file, in words for the user."""


def check_target(path) -> None:
    """OSError, in a sentence, where `save` could not write.

    Better before hours of training than after them. It tries: a file is made beside the target, and
    removed. So it sees what permissions alone do not tell, such as a disk that is mounted
    read-only.
    """
    path = _behind_links(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{path} cannot be written: there is no folder {folder}; make it first"
        )
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"{path} cannot be written: it is a folder; give the path of a file in it"
        )
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} cannot be written: it is a device or a pipe; give another path")
    trial = _temporary(path)
    try:
        if not os.access(folder, os.W_OK):
            raise PermissionError
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long is one that cannot even be looked for
        open(trial, "xb").close()
        os.unlink(trial)
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be written: no permission to write into the folder {folder}"
        ) from error
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror or error}") from error


def _behind_links(path) -> str:
    """The absolute path that a path leads to: a symbolic link stays, and its target is written."""
    path = os.path.abspath(os.fspath(path))
    target = os.path.realpath(path)
    if os.path.islink(target):
        raise OSError(f"{path} cannot be written: it is a symbolic link that leads back to itself")
    return target


def _temporary(path) -> Path:
    """A new path beside `path`, of the same suffix, for what is to become `path`."""
    return Path(f"{_start_of_temporaries(path)}{os.urandom(4).hex()}.part{_suffix(path)}")


def _start_of_temporaries(path) -> str:
    """How the paths of temporary files begin: the name is cut, lest it become too long."""
    folder, name = os.path.split(path)
    return os.path.join(folder, os.fsdecode(os.fsencode(name)[:LONGEST_START])) + "."


def _suffix(path) -> str:
    return os.path.splitext(path)[1][:LONGEST_SUFFIX]


def save(path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    """Write arrays and `meta` to `path`, atomically.

    arrays: of real numbers or booleans, any shape; meta: what JSON can hold. OSError (a full disk,
    a missing folder) leaves the old file as it was and no temporary one behind. ValueError for
    arrays that `load` would refuse.
    """
    path = os.path.abspath(os.fspath(path))
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
    for name, a in arrays.items():
        if a.dtype.kind not in "fiub" or name == _META:
            raise ValueError(
                f"{path}: the array {name!r} of {a.dtype} cannot be saved: only numbers, and none "
                "called meta"
            )
    text = json.dumps({"format": FORMAT, "version": VERSION, **meta})
    arrays[_META] = np.frombuffer(text.encode(), np.uint8)
    if arrays[_META].nbytes > LARGEST_META:
        raise ValueError(
            f"{path}: the description (configuration, genes, history) is larger than "
            f"{LARGEST_META} bytes"
        )
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def write_figure(figure: Any, path: Any, dpi: int) -> Any:
    """Write a matplotlib Figure of so many dots an inch, whole or not at all; returns `path`.

    What it is, .png, .pdf or .svg, the suffix of the path says; without one it is as matplotlib's
    settings have it, with that suffix. An open file is written to as it stands. ValueError for a
    suffix that matplotlib does not know; OSError as of `whole_file`.
    """
    if hasattr(path, "write"):
        figure.savefig(path, dpi=dpi)
        return path
    target = os.fspath(path)
    kind = os.path.splitext(target)[1][1:]
    if not kind:
        kind = figure.canvas.get_default_filetype()
        target = f"{target}.{kind}"
    content = io.BytesIO()  # drawn before anything is opened: matplotlib's PDF hides a full disk
    figure.savefig(content, format=kind, dpi=dpi)
    with whole_file(target) as temporary:
        temporary.write_bytes(content.getvalue())
    return path


@contextmanager
def whole_file(path) -> Iterator[Path]:
    """A temporary path beside `path`, which on leaving becomes `path`, flushed to the disk.

    It has the same suffix. A symbolic link stays one, and what it leads to is replaced; a file
    keeps its permissions. After an error the temporary file is removed, and `path` is as it was.
    OSError where `path` cannot be written, with its name.

    The temporary file is there, and empty. Where it is to replace another one, which may be secret,
    only its owner can read it until it has the permissions of that one.
    """
    given = str(path)
    check_target(path)
    path = _behind_links(path)
    _remove_stale(path)
    temporary = _temporary(path)
    mode = 0o600 if os.path.exists(path) else 0o666
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        _keep_mode(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            error.filename = given  # a full disk does not say for which file it is too small
        raise
    _flush_folder(os.path.dirname(path))


def _keep_mode(path, temporary) -> None:
    """Give a file that replaces another one its permissions, and where possible its owner."""
    with suppress(FileNotFoundError):
        old = os.stat(path)
        if hasattr(os, "chown"):
            with suppress(OSError):  # only root may give files away
                os.chown(temporary, old.st_uid, old.st_gid)
        with suppress(OSError):  # some file systems have no permissions
            os.chmod(temporary, stat.S_IMODE(old.st_mode))
        if hasattr(os, "listxattr"):
            with suppress(OSError):  # access control lists and the like, on Linux
                for name in os.listxattr(path):
                    os.setxattr(temporary, name, os.getxattr(path, name))


def _remove_stale(path) -> None:
    """Remove what processes that were killed while they saved to this path left beside it."""
    start = glob.escape(_start_of_temporaries(path))
    for left in glob.glob(start + "[0-9a-f]" * 8 + ".part" + glob.escape(_suffix(path))):
        with suppress(OSError):  # another process may be doing the same
            if time.time() - os.path.getmtime(left) > STALE:
                os.unlink(left)


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
    """(arrays, meta) as `save` wrote them.

    ValueError in one sentence for anything else; FileNotFoundError if none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [_name(m) for m in members]
            if len(members) > _MOST or len(set(names)) < len(names):
                raise _Refused("it holds too many arrays, or one twice")
            if sum(m.file_size for m in members) > _size(archive):
                raise _Refused("its arrays claim to be larger than the file")
            arrays = {name: _read(archive, m) for name, m in zip(names, members)}
        return arrays, _meta(arrays)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path}: cannot be loaded: {error.strerror or error}") from error
    except _Refused as error:
        raise ValueError(f"{path}: cannot be loaded: {error}") from None
    except Exception as error:  # a dozen kinds, from BadZipFile to TokenError and MemoryError
        said = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{path}: cannot be loaded: it is damaged, or no minigrad checkpoint "
            f"({type(error).__name__}{': ' * bool(said)}{said})"
        ) from error


def _size(archive: zipfile.ZipFile) -> int:
    """The size of an open archive in bytes."""
    assert archive.fp is not None  # an open one has a file
    return os.fstat(archive.fp.fileno()).st_size


def _meta(arrays) -> dict:
    """Take the JSON text out of the arrays, read and checked."""
    if _META not in arrays:
        raise _Refused(f"{_META!r} is missing: it is no minigrad checkpoint")
    if arrays[_META].nbytes > LARGEST_META:
        raise _Refused(f"its description is larger than {LARGEST_META} bytes")
    meta = json.loads(arrays.pop(_META).tobytes().decode())
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise _Refused("it is no minigrad checkpoint")
    if meta.get("version") != VERSION:
        raise _Refused(
            f"its format is version {str(meta.get('version'))[:20]}, this program reads version "
            f"{VERSION}"
        )
    return meta


def _name(member: zipfile.ZipInfo) -> str:
    """The name of the array in a member; refuses what np.savez does not write."""
    name = member.filename
    if (
        not name.endswith(".npy")
        or name.startswith(("/", "\\"))
        or ".." in name.replace("\\", "/").split("/")
    ):
        raise _Refused(f"it holds {name[:100]!r}, which is no array")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise _Refused(f"{name[:100]!r} is compressed, which this program never writes")
    return name[:-4]


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, after checking that its header promises exactly the numbers that are there.

    Its CRC is checked by zipfile.
    """
    name = repr(member.filename[:100])
    content = io.BytesIO(archive.read(member))
    version = np.lib.format.read_magic(content)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in header:
        raise _Refused(f"{name} has the unknown npy version {version}")
    shape, fortran, dtype = header[version](content)
    if dtype.kind not in "fiub":
        raise _Refused(f"{name} holds {str(dtype)[:50]}, not numbers")
    raw = content.getbuffer()[content.tell() :]
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count * dtype.itemsize != len(raw) or any(n < 0 for n in shape):
        raise _Refused(
            f"{name} promises shape {str(shape)[:50]} of {dtype}, but holds {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()


def refuse_nonfinite(weights, said_first: str) -> None:
    """ValueError that names the first of the weights that is NaN or infinite somewhere.

    weights: name -> array of numbers; said_first: how the error begins.
    """
    for name, array in weights.items():
        finite = np.isfinite(np.asarray(array))
        if not np.all(finite):
            raise ValueError(
                f"{said_first}: {np.sum(~finite):,} of {finite.size:,} numbers of the weight "
                f"{name[:100]} are NaN or infinite; its training failed, so train again, or take "
                "an earlier file"
            )


class Saved(Module):
    """`save` and `load` for an nn.Module whose `config` are the arguments that it was made with.

    described: names of further attributes that belong to a trained model; these and the
    configuration as JSON can hold. least_size: a static method, config -> (arrays, numbers) that
    the weights of such a model are at least, up to a small factor: `load` holds it against what is
    in the file before it makes a model, which a few bytes could have claimed huge.
    """

    described: ClassVar[tuple[str, ...]] = ("trained",)
    config: dict

    @staticmethod
    def least_size(config: dict) -> tuple[int, int]:
        """(arrays, numbers), as said above. NotImplementedError here: each model has its own."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """The arguments that it was made with, its size, and what it was trained on."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config.items())
        said = f"{type(self).__name__}({arguments})"
        return ", ".join([said, *(f"{what}: {value}" for what, value in self._facts())])

    def _repr_html_(self) -> str:
        rows = [*self.config.items(), *self._facts()]
        return as_html([], rows, type(self).__name__)

    def _facts(self) -> list[tuple[str, str]]:
        """(what, value) pairs about a model beyond its arguments."""
        n_weights = sum(p.data.size for p in self.parameters())
        trained = "yes" if getattr(self, "trained", False) else "no"
        if self.trained_on is not None:
            rows = number_of(self.trained_on["rows"], "row")
            trained = f"{rows}, {number_of(self.trained_on['epochs'], 'epoch')}"
        return [*self._known(), ("weights", f"{n_weights:,}"), ("trained", trained)]

    def _known(self) -> list[tuple[str, str]]:
        """(what, value) pairs of what a model knows of its data: here nothing."""
        return []

    def save(self, path) -> None:
        """Write weights, configuration and `described` to an npz file, atomically."""
        save(
            path,
            {f"weights/{name}": a for name, a in self.state_dict().items()},
            self.description(),
        )

    def description(self) -> dict:
        """What is in a file beside the weights."""
        return {
            "model": type(self).__name__,
            "config": self.config,
            "trained_on": self.trained_on,
            **{n: getattr(self, n) for n in self.described},
        }

    @classmethod
    def load(cls, path) -> Self:
        """The model that `save` (or a checkpoint of `fit`) wrote, in evaluation mode.

        ValueError for any other file.
        """
        arrays, meta = load(path)
        if meta.get("model") != cls.__name__:
            raise ValueError(f"{path}: holds a {str(meta.get('model'))[:50]}, not a {cls.__name__}")
        weights = {k[8:]: a for k, a in arrays.items() if k.startswith("weights/")}
        refuse_nonfinite(weights, f"{path}: cannot be loaded")
        try:
            (n_arrays, size), found = (
                cls.least_size(meta["config"]),
                sum(a.size for a in weights.values()),
            )
            if n_arrays > len(weights) or size > found:
                raise ValueError(
                    f"at least {n_arrays} arrays of {size:.4g} numbers; it holds {len(weights)} of "
                    f"{found}"
                )
            model = cls(**meta["config"])
            model.load_state_dict(weights)
            for name in cls.described:  # what the class has a value for, an older file may lack
                setattr(model, name, meta[name] if name in meta else getattr(cls, name))
            model.trained_on = _trained_on(meta)
        except (
            TypeError,
            KeyError,
            ValueError,
            AttributeError,
            OverflowError,
            MemoryError,
        ) as error:
            raise ValueError(
                f"{path}: cannot be loaded: its description does not fit ({error})"
            ) from error
        return model.eval()


def _trained_on(meta: dict) -> dict[str, int] | None:
    """Rows and epochs of a training, from the description in a file; None where it has none."""
    found = meta.get("trained_on")
    if found is None:
        return None
    return {"rows": int(found["rows"]), "epochs": int(found["epochs"])}

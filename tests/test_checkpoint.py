"""minigrad/checkpoint.py: what was written comes back; whatever fails, the old file stays; no file can do harm.

The tests that kill, fill a disk or limit memory run in a process of their own (`python test_checkpoint.py NAME ...`),
which forks: so that nothing happens to pytest, and Python starts only once.
"""

import errno
import io
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigrad import checkpoint
from tests.limits import each_in_a_child

ARRAYS = {
    "weights/layers.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "weights/bias": np.ones(3),
    "optimizer/n_steps": np.array(7),
}
META = {"model": "SCVI", "history": {"train_loss": [0.1, 1e-300, 3.0]}, "genes": ["Actb", "Gapdh"]}


def same(found, expected):
    assert list(found) == list(expected)
    for name, a in expected.items():
        f, a = found[name], np.asarray(a)
        assert (
            type(f) is np.ndarray
            and f.dtype == a.dtype
            and f.shape == a.shape
            and f.tobytes() == a.tobytes()
        )
        assert f.flags.writeable


def in_own_process(*args, prefix=(), timeout=60):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*prefix, sys.executable, __file__, *map(str, args)],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ----------------------------------------------------------------------------------------------------- there and back
@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i8"]
)
def test_arrays_of_every_dtype_and_shape(tmp_path, dtype):
    shapes, rng = [(), (0,), (5,), (2, 0, 3), (2, 3, 4), (1,) * 20], np.random.default_rng(0)
    arrays = {str(shape): rng.integers(0, 100, shape).astype(dtype) for shape in shapes}
    checkpoint.save(tmp_path / "a.npz", arrays, {})
    same(checkpoint.load(tmp_path / "a.npz")[0], arrays)


def test_what_floats_hold_and_how_arrays_lie(tmp_path):
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, np.finfo(float).max])
    square = np.arange(12.0).reshape(3, 4)
    arrays = {
        "odd": odd,
        "fortran": np.asfortranarray(square),
        "turned": square.T,
        "every second": square[::2, ::-1],
        "größe/α": odd[:1],
        "a.b.c": odd[:2],
    }
    checkpoint.save(str(tmp_path / "a.npz"), arrays, {})
    same(checkpoint.load(str(tmp_path / "a.npz"))[0], arrays)
    with np.load(tmp_path / "a.npz") as plain:  # and anybody can read it
        np.testing.assert_array_equal(plain["turned"], square.T)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=20,
    )
)
def test_meta_is_what_json_can_hold(tmp_path, value):
    path = tmp_path / "a.npz"
    checkpoint.save(path, {}, {"value": value})
    arrays, meta = checkpoint.load(path)
    assert arrays == {} and meta == {
        "value": value,
        "format": checkpoint.FORMAT,
        "version": checkpoint.VERSION,
    }


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path):
    path = tmp_path / "a.npz"
    for bad in (
        np.array([None]),
        np.array(["text"]),
        np.ones(2, complex),
        np.array(["2020"], "M8[s]"),
    ):
        with pytest.raises(ValueError, match="'x'.*cannot be saved"):
            checkpoint.save(path, {"fine": np.ones(2), "x": bad}, {})
    with pytest.raises(ValueError, match="'meta'"):
        checkpoint.save(path, {"meta": np.ones(2)}, {})
    with pytest.raises(TypeError, match="JSON"):
        checkpoint.save(path, {}, {"x": np.ones(2)})
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------------------- whole or not at all
def test_a_new_file_obeys_the_umask_and_a_replaced_one_keeps_its_mode(tmp_path):
    for umask in (0o022, 0o077, 0o002):
        path = tmp_path / f"{umask}.npz"
        before = os.umask(umask)
        try:
            checkpoint.save(path, {"k": np.array(1)}, {})
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        for mode in (0o600, 0o640, 0o444):
            path.chmod(mode)
            checkpoint.save(path, {"k": np.array(mode)}, {})
            assert checkpoint.load(path)[0]["k"] == mode
            assert stat.S_IMODE(path.stat().st_mode) == mode
    assert len(os.listdir(tmp_path)) == 3


def test_a_symbolic_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "a.npz"
    link.symlink_to("../real/b.npz")  # which is not there yet
    for k in range(2):
        checkpoint.save(link, {"k": np.array(k)}, {})
        assert link.is_symlink() and checkpoint.load(tmp_path / "real" / "b.npz")[0]["k"] == k
    assert os.listdir(tmp_path / "real") == ["b.npz"]
    assert os.listdir(tmp_path / "links") == ["a.npz"]


def test_links_that_lead_nowhere_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop cannot be written: .*back to itself"):
        checkpoint.check_target(tmp_path / "loop")
    (tmp_path / "away").symlink_to(tmp_path / "gone" / "a.npz")
    with pytest.raises(FileNotFoundError, match="no folder .*gone"):
        checkpoint.check_target(tmp_path / "away")
    (tmp_path / "folder").symlink_to(tmp_path)
    with pytest.raises(IsADirectoryError, match="folder"):
        checkpoint.check_target(tmp_path / "folder")


def test_a_secret_file_is_secret_while_it_is_written_too(tmp_path):
    path = tmp_path / "a.npz"
    checkpoint.save(path, ARRAYS, META)
    path.chmod(0o640)
    with checkpoint.whole_file(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="only Linux has extended attributes")
def test_access_control_lists_and_other_attributes_are_kept(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        pytest.skip("this file system has no attributes")
    checkpoint.save(path, ARRAYS, META)
    assert os.getxattr(path, "user.note") == b"kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    path = tmp_path / "a.npz"
    os.mkfifo(path)
    with pytest.raises(OSError, match="a.npz cannot be written: it is a device or a pipe"):
        checkpoint.save(path, ARRAYS, META)
    assert path.is_fifo()


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as raised:
        with checkpoint.whole_file(tmp_path / "a.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a.csv")


@pytest.mark.parametrize("letter", ["a", "é"])
def test_names_as_long_as_the_file_system_allows(tmp_path, letter):
    longest = letter * ((255 - 4) // len(letter.encode())) + ".npz"
    checkpoint.save(tmp_path / longest, {"k": np.array(1)}, {})
    assert os.listdir(tmp_path) == [longest]
    for check in (checkpoint.check_target, lambda path: checkpoint.save(path, {}, {})):
        with pytest.raises(OSError, match="cannot be written: File name too long"):
            check(tmp_path / (letter + letter + longest))
    assert os.listdir(tmp_path) == [longest]


def test_a_disk_that_is_mounted_read_only_is_seen_before_the_work(tmp_path, monkeypatch):
    def refused(path, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(OSError, match="a.npz cannot be written: Read-only file system"):
        checkpoint.check_target(tmp_path / "a.npz")


FULL = OSError(errno.ENOSPC, "No space left on device")


def fails(error):
    def function(*args, **kwargs):
        raise error

    return function


def half_written(error):
    def savez(file, *args, **kwargs):
        file.write(b"PK\x03\x04 half of it")
        raise error

    return savez


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["savez", "fsync", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, where, error):
    path = tmp_path / "a.npz"
    checkpoint.save(path, ARRAYS, META)
    before = path.read_bytes()
    if where == "savez":
        monkeypatch.setattr(checkpoint.np, "savez", half_written(error))
    else:
        monkeypatch.setattr(checkpoint.os, where, fails(error))
    with pytest.raises(type(error)) as raised:
        checkpoint.save(path, {"other": np.ones(1000)}, {})
    assert raised.value is error
    assert os.listdir(tmp_path) == ["a.npz"] and path.read_bytes() == before


def test_ctrl_c_just_after_the_renaming(tmp_path, monkeypatch):
    replace = os.replace

    def replace_and_stop(a, b):
        replace(a, b)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", replace_and_stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "a.npz", ARRAYS, META)
    assert os.listdir(tmp_path) == ["a.npz"]
    same(checkpoint.load(tmp_path / "a.npz")[0], ARRAYS)


@pytest.mark.parametrize(
    "check", [checkpoint.check_target, lambda path: checkpoint.save(path, {}, {})]
)
def test_where_nothing_can_be_written(tmp_path, monkeypatch, check):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        check(tmp_path / "nowhere" / "a.npz")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        check(tmp_path / "folder")
    monkeypatch.setattr(checkpoint.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission"):
        check(tmp_path / "a.npz")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    check("a.npz")
    assert set(os.listdir()) <= {"folder", "a.npz"}


def limited_file_size(folder):
    """(In its own process.) The disk takes no more than 20 kB a file."""
    path = Path(folder) / "a.npz"
    checkpoint.save(path, ARRAYS, META)
    before = path.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for size in (
        3_000,
        100_000,
    ):  # beyond the limit in the buffer's last flush, or in the middle of an array
        try:
            checkpoint.save(path, {"a": np.ones(size)}, META)
        except OSError as error:
            assert error.errno == errno.EFBIG, error
        else:
            raise AssertionError("saved beyond the limit")
        assert os.listdir(folder) == ["a.npz"] and path.read_bytes() == before
    same(checkpoint.load(path)[0], ARRAYS)


def full_disk(folder):
    """(In its own process and name space.) A disk of 200 kB with the old file on it, too small for the new one."""
    assert os.system(f"mount -t tmpfs -o size=200k tmpfs {folder}") == 0
    path = Path(folder) / "a.npz"
    checkpoint.save(path, ARRAYS, META)
    before = path.read_bytes()
    for size in (30_000, 26_000, 24_500, 24_400, 24_300, 24_200, 24_100, 24_000):
        try:
            checkpoint.save(path, {"a": np.ones(size)}, META)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        else:
            print("fits:", size)
            break
        assert os.listdir(folder) == ["a.npz"] and path.read_bytes() == before
    same(checkpoint.load(path)[0], {"a": np.ones(size)} if path.read_bytes() != before else ARRAYS)


def test_files_that_may_not_grow(tmp_path):
    in_own_process("limited_file_size", tmp_path)


def test_a_full_disk(tmp_path):
    private = ["unshare", "--mount", "--map-root-user"]
    try:
        can = (
            subprocess.run(
                [*private, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True
            ).returncode
            == 0
        )
    except OSError:
        can = False
    if not can:
        pytest.skip("no disk of one's own can be mounted here")
    in_own_process("full_disk", tmp_path, prefix=private)


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    names = {
        "a.npz.0123abcd.part.npz": 2,
        "a.npz.89abcdef.part.npz": 0,
        "b.npz.0123abcd.part.npz": 2,
        "a.npz.part.npz": 2,
        "a.npz.0123abcd.part.txt": 2,
        "a.npz.notes.part.npz": 2,
        "[a].npz.0123abcd.part.npz": 2,
    }
    for name, days in names.items():
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - 86_400 * days,) * 2)
    checkpoint.save(tmp_path / "a.npz", ARRAYS, META)
    assert set(os.listdir(tmp_path)) == {"a.npz", *names} - {"a.npz.0123abcd.part.npz"}
    checkpoint.save(tmp_path / "[a].npz", ARRAYS, META)
    gone = {"a.npz.0123abcd.part.npz", "[a].npz.0123abcd.part.npz"}
    assert set(os.listdir(tmp_path)) == {"a.npz", "[a].npz", *names} - gone


def killed_while_saving(folder):
    """(In its own process.) Ten times: a child saves again and again, and is killed; the file is one that it wrote."""
    path, rng, seen = Path(folder) / "a.npz", np.random.default_rng(0), []
    checkpoint.save(path, {"a": np.zeros(20_000), "b": np.zeros(3)}, {"k": 0})
    for _ in range(10):
        last = checkpoint.load(path)[1]["k"]
        child = os.fork()
        if child == 0:
            for k in range(last + 1, 10**9):
                checkpoint.save(
                    path, {"a": np.full(20_000, float(k)), "b": np.full(3, float(k))}, {"k": k}
                )
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        arrays, meta = checkpoint.load(path)
        assert (
            np.all(arrays["a"] == meta["k"])
            and np.all(arrays["b"] == meta["k"])
            and len(arrays["a"]) == 20_000
        )
        seen.append(meta["k"])
    assert seen == sorted(seen) and len(set(seen)) > 3, seen


def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path):
    in_own_process("killed_while_saving", tmp_path)


# ------------------------------------------------------------------------------------------------------- hostile files
def npy(array, **changes):
    """The bytes of an .npy file; changes: of the header's entries, or header= all of its text."""
    a = np.asarray(array)
    header = {"descr": a.dtype.str, "fortran_order": False, "shape": a.shape, **changes}
    text = (
        header.get("header") or repr({k: header[k] for k in ("descr", "fortran_order", "shape")})
    ).encode() + b"\n"
    return (
        b"\x93NUMPY"
        + bytes(changes.get("version", (1, 0)))
        + struct.pack("<H", len(text))
        + text
        + a.tobytes()
    )


def meta_npy(text=None, **changes):
    text = (
        json.dumps({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, **changes})
        if text is None
        else text
    )
    return npy(np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8))


def archive(*members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        for name, content in members:
            z.writestr(name, content)
    return file.getvalue()


GOOD_META = ("meta.npy", meta_npy())


def one_array(content, name="a.npy"):
    return archive((name, content), GOOD_META)


def meta_only(*args, **kwargs):
    return archive(("a.npy", npy(np.ones(3))), ("meta.npy", meta_npy(*args, **kwargs)))


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def pickled():
    file = io.BytesIO()
    np.savez(file, a=np.array([Evil()], dtype=object), meta=np.zeros(1))
    return file.getvalue()


def pickled_under_a_false_flag():
    content = pickled()
    with zipfile.ZipFile(io.BytesIO(content)) as z:
        raw = z.read("a.npy")
    return one_array(raw.replace(b"'|O'", b"'|u1'", 1))


def overlapping(n=300, size=2**20):
    """n members in one (Fifield 2019): each holds the headers of all that follow, and then the same data."""
    data, local, central = npy(np.zeros(size, np.uint8)), b"", b""
    starts = []
    for i in reversed(range(n)):
        name, content = f"{i:05}.npy".encode(), local + data
        n_bytes = len(content)
        fields = struct.pack(
            "<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(content), n_bytes, n_bytes, len(name), 0
        )
        local = b"PK\x03\x04" + fields + name + local
        starts.append((name, fields, len(local)))
    for name, fields, back in starts:
        where = struct.pack("<HHHII", 0, 0, 0, 0, len(local) - back)
        central += b"PK\x01\x02" + struct.pack("<H", 20) + fields + where + name
    end = b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, n, n, len(central), len(local) + len(data), 0
    )
    return local + data + central + end


def claims(size):
    """A stored member of 8 numbers that says, in all places, that it has `size` bytes."""
    content = one_array(npy(np.ones(8)))
    true = struct.pack("<I", len(npy(np.ones(8))))
    return content.replace(true * 2, struct.pack("<I", size) * 2)


def shape(*sizes):
    return one_array(npy(np.ones(4), shape=sizes))


def header(text):
    return one_array(npy(np.ones(4), header=text))


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (4,), }"
HOSTILE = {
    "empty": lambda: b"",
    "text": lambda: b"not a zip\n" * 50,
    "noise": lambda: np.random.default_rng(0).bytes(10**5),
    "zeros": lambda: bytes(10**6),
    "an npy file": lambda: npy(np.ones(3)),
    "empty zip": lambda: archive(),
    "end of a zip": lambda: archive(GOOD_META)[-22:],
    "text in a zip": lambda: archive(("a.txt", "hello"), GOOD_META),
    "a folder in a zip": lambda: archive(("a/", ""), GOOD_META),
    "zip in a zip": lambda: archive(("a.npy", archive())),
    "plain npz": lambda: archive(("a.npy", npy(np.ones(3)))),
    "old version": lambda: meta_only(version=0),
    "new version": lambda: meta_only(version=checkpoint.VERSION + 1),
    "version true": lambda: meta_only(version="1"),
    "version huge": lambda: meta_only(version="9" * 10**6),
    "another format": lambda: meta_only(format="another"),
    "no format": lambda: meta_only("{}"),
    "meta list": lambda: meta_only("[1, 2]"),
    "meta number": lambda: meta_only("3"),
    "meta null": lambda: meta_only("null"),
    "meta empty": lambda: meta_only(""),
    "meta text": lambda: meta_only("hello"),
    "meta cut": lambda: meta_only('{"format": '),
    "meta not utf-8": lambda: meta_only(b'{"format": "\xff\xfe"}'),
    "meta zeros": lambda: meta_only(bytes(1000)),
    "meta deep": lambda: meta_only("[" * 200_000),
    "meta deep objects": lambda: meta_only('{"a":' * 200_000),
    "meta long number": lambda: meta_only("9" * 200_000),
    "meta of lists": lambda: meta_only("[" + "[]," * 6_000_000 + "0]"),
    "meta of objects": lambda: meta_only("[" + "{}," * 6_000_000 + "0]"),
    "meta of floats": lambda: archive(("meta.npy", npy(np.ones(5)))),
    "pickle": pickled,
    "pickle, false flag": pickled_under_a_false_flag,
    "pickle as meta": lambda: archive(("meta.npy", npy(np.zeros(1), descr="|O"))),
    "deflated bomb": lambda: archive(
        ("a.npy", npy(np.zeros(2**26, np.uint8))), compression=zipfile.ZIP_DEFLATED
    ),
    "bzip2": lambda: archive(GOOD_META, compression=zipfile.ZIP_BZIP2),
    "lzma": lambda: archive(GOOD_META, compression=zipfile.ZIP_LZMA),
    "overlapping bomb": overlapping,
    "claims 4 GB": lambda: claims(2**32 - 2),
    "claims 2 GB": lambda: claims(2**31),
    "claims 1 byte": lambda: claims(1),
    "name ../": lambda: one_array(npy(np.ones(3)), "../a.npy"),
    "name a/../..": lambda: one_array(b"", "a/../../b.npy"),
    "name /": lambda: one_array(npy(np.ones(3)), "/etc/a.npy"),
    "name ..\\": lambda: one_array(b"", "..\\a.npy"),
    "name long": lambda: one_array(b"", "../" + "a\n" * 20_000),
    "no suffix": lambda: one_array(npy(np.ones(3)), "a"),
    "twice": lambda: archive(("a.npy", npy(np.ones(3))), ("a.npy", npy(np.zeros(3))), GOOD_META),
    "many": lambda: archive(*[(f"{i}.npy", npy(np.ones(1))) for i in range(12_000)], GOOD_META),
    "shape too large": lambda: shape(10**9, 10**9),
    "shape too small": lambda: shape(3),
    "shape overflows": lambda: shape(2**62, 4),
    "shape negative": lambda: shape(-4),
    "shape negative twice": lambda: shape(-2, -2),
    "shape empty": lambda: shape(),
    "shape 0 and huge": lambda: one_array(npy(np.ones(0), shape=(0, 10**30))),
    "shape of 70": lambda: shape(*[1] * 69, 4),
    "shape long": lambda: shape(*[10**9] * 800),
    "shape of floats": lambda: shape(4.0),
    "shape text": lambda: shape("4"),
    "no bytes": lambda: one_array(b""),
    "magic only": lambda: one_array(npy(np.ones(3))[:8]),
    "cut header": lambda: one_array(npy(np.ones(3))[:30]),
    "no magic": lambda: one_array(b"x" * 200),
    "npy 3.0": lambda: one_array(npy(np.ones(3), version=(3, 0))),
    "npy 9.9": lambda: one_array(npy(np.ones(3), version=(9, 9))),
    "header text": lambda: header("hello"),
    "header code": lambda: header("__import__('os').system('touch executed')"),
    "header open": lambda: header(HEADER[:-6]),
    "header deep": lambda: header("(" * 9000),
    "header huge": lambda: header(HEADER + " " * 60_000),
    "header indented": lambda: header(" 1\n2\n  3"),
    "header quote": lambda: header("'''"),
    "header null": lambda: header("\0"),
    "header minus": lambda: header("-" * 5000 + "1"),
    "header list": lambda: header("[1]"),
    "header empty": lambda: header(" "),
    "header extra": lambda: header(HEADER[:-1] + "'x': 1}"),
    "header not ascii": lambda: header("é€"),
    "order": lambda: header(HEADER.replace("False", "3")),
    "dtype list": lambda: one_array(npy(np.ones(4), descr=["<f8"])),
    "dtype none": lambda: one_array(npy(np.ones(4), descr=None)),
    "dtype number": lambda: one_array(npy(np.ones(4), descr=8)),
    **{
        f"dtype {d}": lambda d=d: one_array(npy(np.ones(4), descr=d))
        for d in (
            "|O",
            "<c16",
            "|S8",
            "<U2",
            "<M8[s]",
            "|V8",
            "|V2000000000",
            "nonsense",
            "",
            "f8,f8",
            "|O8",
        )
    },
    "dtype nested": lambda: one_array(npy(np.ones(4), descr=[("a", "<f4"), ("b", "<f4")])),
    "dtype array": lambda: one_array(npy(np.ones(4), descr=("<f8", (10**9,)))),
}


def load_or_be_refused(path):
    """Print what was loaded, or an error that is no sentence."""
    try:
        arrays, meta = checkpoint.load(path)
        print(f"{path.name}: loaded {str(arrays)[:100]} {str(meta)[:100]}")
    except ValueError as error:
        said = str(error)
        start = f"{path}: cannot be loaded: "
        if "\n" in said or not said.startswith(start) or len(said) > len(start) + 220:
            print(f"{path.name}: not a sentence: {said[:500]}")


def limited_loads(folder):
    """(In its own process.)"""
    each_in_a_child(folder, load_or_be_refused)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_files_are_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for i, make in enumerate(HOSTILE.values()):
        (folder / f"{i:03}").write_bytes(make())
    said = in_own_process("limited_loads", folder).splitlines()
    names = list(HOSTILE)
    assert not said, "\n".join(f"{names[int(line[:3])]}: {line}" for line in said)
    assert not [
        p for p in (Path("executed"), folder / "executed", tmp_path / "executed") if p.exists()
    ]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "name, words",
    [
        ("deflated bomb", "compressed"),
        ("name ../", "which is no array"),
        ("shape too large", "promises shape"),
        ("new version", "version 3.*version 2"),
        ("pickle", "object, not numbers"),
        ("plain npz", "'meta' is missing"),
        ("overlapping bomb", "larger than the file"),
        ("twice", "twice"),
        ("another format", "no minigrad checkpoint"),
    ],
)
def test_the_sentence_says_what_is_wrong(tmp_path, name, words):
    (tmp_path / "x").write_bytes(HOSTILE[name]())
    with pytest.raises(ValueError, match=words):
        checkpoint.load(tmp_path / "x")


def test_no_file_is_no_damage_and_a_folder_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="cannot be loaded: Is a directory"):
        checkpoint.load(tmp_path)


def test_the_crafted_files_would_load_but_for_what_is_wrong_with_them(tmp_path):
    (tmp_path / "a").write_bytes(meta_only(x=1))
    arrays, meta = checkpoint.load(tmp_path / "a")
    same(arrays, {"a": np.ones(3)})
    assert meta["x"] == 1
    (tmp_path / "a").write_bytes(header(HEADER))
    same(checkpoint.load(tmp_path / "a")[0], {"a": np.ones(4)})


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a.npz"
    checkpoint.save(path, ARRAYS, META)
    return path.read_bytes(), checkpoint.load(path)


def refused_or_the_same(path, content, expected):
    """True if refused; whatever is loaded must be what was saved."""
    path.write_bytes(content)
    try:
        arrays, meta = checkpoint.load(path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < len(str(path)) + 250
        return True
    same(arrays, expected[0])
    assert meta == expected[1]


def test_cut_anywhere(good, tmp_path):
    content, expected = good
    assert all(
        refused_or_the_same(tmp_path / "x", content[:n], expected)
        for n in range(0, len(content), 3)
    )
    assert not refused_or_the_same(tmp_path / "x", content, expected)


fuzz = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
    )
)
def test_flipped_bits(good, tmp_path, flips):
    content, expected = bytearray(good[0]), good[1]
    for where, mask in flips:
        content[int(where * len(content))] ^= mask
    refused_or_the_same(tmp_path / "x", bytes(content), expected)


def test_every_byte_of_the_data_matters(good, tmp_path):
    content, expected = good
    start = content.index(ARRAYS["weights/bias"].tobytes())
    for i in range(start, start + 24):
        changed = bytearray(content)
        changed[i] ^= 1
        assert refused_or_the_same(tmp_path / "x", bytes(changed), expected)


@fuzz
@given(st.floats(0, 1), st.integers(0, 60), st.binary(max_size=60))
def test_spliced_bytes(good, tmp_path, where, removed, added):
    content, expected = good
    at = int(where * len(content))
    refused_or_the_same(tmp_path / "x", content[:at] + added + content[at + removed :], expected)


@settings(fuzz, max_examples=80)
@given(
    st.binary(max_size=200),
    st.dictionaries(st.text("ab./é", max_size=5), st.binary(max_size=40), max_size=3),
    st.text(max_size=60),
)
def test_noise_in_place_of_members(tmp_path, meta, members, head):
    members = [(name + ".npy", content) for name, content in members.items()]
    for content in (
        archive(*members, ("meta.npy", npy(np.frombuffer(meta, np.uint8)))),
        archive(*members, ("meta.npy", meta)),
        archive(("a.npy", npy(np.ones(2), header=head or "x")), GOOD_META),
    ):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError):
            checkpoint.load(tmp_path / "x")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])


def test_a_description_that_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="larger than"):
        checkpoint.save(
            tmp_path / "x.npz", {"a": np.ones(3)}, {"genes": "g" * (checkpoint.LARGEST_META + 1)}
        )
    assert not list(tmp_path.iterdir())

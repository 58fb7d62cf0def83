"""HDF5 files in a process of their own: the same counts, warnings and errors, and no file that
takes the caller with it.

Know before reading: models/guarded.py.
"""

import struct
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from models import guarded
from models.__main__ import main
from models.counts import read
from tests.example_counts import (
    GENES,
    X,
    adata,
    check,
    edit,
    npz,
    replace,
    write_loom,
    write_tenx,
)

pytest.importorskip("anndata")


def write(path):
    """The example with what is not easily sent: missing labels and numbers, an empty column."""
    pandas = pytest.importorskip("pandas")
    a = adata(sparse.csr_matrix(X), twice=2 * X)
    a.obs["type"] = a.obs["type"].where(np.arange(23) != 4)
    a.obs["n"] = pandas.array([None, *range(22)], dtype="Int64")
    a.obs["none"] = pandas.Categorical([None] * 23)
    a.obs["is"] = np.arange(23) % 3 == 0
    a.write_h5ad(path)


def same(one, other):
    check(one, other.genes, other.cells, other.X.toarray())
    assert list(one.obs) == list(other.obs)
    for key, values in one.obs.items():
        assert values.dtype.kind == other.obs[key].dtype.kind
        assert values.tolist() == other.obs[key].tolist()
        assert list(map(type, values.tolist())) == list(map(type, other.obs[key].tolist()))


@pytest.mark.parametrize("options", [{}, {"layer": "twice"}, {"transpose": True}])
def test_the_same_counts_come_back(tmp_path, options):
    write(tmp_path / "a.h5ad")
    same(guarded.read(tmp_path / "a.h5ad", **options), read(tmp_path / "a.h5ad", **options))


def test_the_same_of_other_formats_and_with_the_same_warnings(tmp_path):
    write_tenx(tmp_path / "a.h5", 3)
    same(guarded.read(tmp_path / "a.h5"), read(tmp_path / "a.h5"))
    same(guarded.read(npz(tmp_path / "a.npz")), read(tmp_path / "a.npz"))
    write_loom(tmp_path / "a.loom")
    with pytest.warns(UserWarning, match="a.loom: column attribute 'pca' left out") as said:
        found = guarded.read(tmp_path / "a.loom")
    assert said[0].filename == __file__ and len(said) == 1
    with pytest.warns(UserWarning):
        same(found, read(tmp_path / "a.loom"))


def test_a_matrix_stays_on_the_disk(tmp_path):
    write(tmp_path / "a.h5ad")
    counts = guarded.read(tmp_path / "a.h5ad", backed=True)
    assert np.array_equal(counts.X.block(0).toarray(), X[: counts.X.bounds[1]])
    edit(tmp_path / "a.h5ad", replace("X/data", np.full(np.count_nonzero(X), 0.5)))
    with pytest.raises(ValueError, match="a.h5ad: row 0, .* is 0.5"):  # all of it is looked at
        guarded.read(tmp_path / "a.h5ad", backed=True, rounded=False)


WRONG = {
    "not there": lambda path: None,
    "no HDF5": lambda path: path.write_text("cell,g1\n"),
    "cut off": lambda path: (write(path), path.write_bytes(path.read_bytes()[:3000])),
    "fractions": lambda path: (write(path), edit(path, replace("X/data", np.log1p(X[X > 0])))),
    "an unknown layer": lambda path: write(path),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_same_errors(tmp_path, case):
    WRONG[case](tmp_path / "a.h5ad")
    layer = "nope" if case == "an unknown layer" else None
    said = []
    for reader in read, guarded.read:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            reader(tmp_path / "a.h5ad", layer)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


def test_limits_that_the_system_has_set_are_kept(tmp_path):
    """Schedulers of clusters set some, which nobody may raise: they are no fault of the file."""
    write(tmp_path / "a.h5ad")
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (15, 15))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))\n"
        "from models import guarded\n"
        "guarded.MEMORY = 2**33\n"
        "print(guarded.read(sys.argv[1]).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.h5ad"],
        env={**guarded.environment(), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(23, 17)\n", done.stderr


# --------------------------------------------------------------- what the library does to a process
def endless(path):
    """A file that libhdf5 (to 2.0 at least) never comes to an end with: of the list of strings that
    AnnData's names are in, the first says that the next lies 0 bytes further: its length, rounded
    up with its head, is 2**64.
    """
    write(path)
    content = bytearray(path.read_bytes())
    length_of_first = content.index(b"GCOL") + 24
    content[length_of_first : length_of_first + 8] = struct.pack("<Q", 2**64 - 16)
    path.write_bytes(content)


@pytest.mark.parametrize("backed", [False, True])
def test_a_file_without_end_ends_in_a_sentence(tmp_path, monkeypatch, backed):
    monkeypatch.setattr(guarded, "SECONDS", 1)
    endless(tmp_path / "a.h5ad")
    with pytest.raises(
        ValueError, match=r"a\.h5ad: damaged.*(did not come to an end|write or fetch)"
    ):
        guarded.read(tmp_path / "a.h5ad", backed=backed)


def test_the_command_line_reads_guarded(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(guarded, "SECONDS", 1)
    endless(tmp_path / "a.h5ad")
    assert main(["train", str(tmp_path / "a.h5ad"), "--out", str(tmp_path / "run")]) == 1
    out, error = capfd.readouterr()
    assert not out and error.count("\n") == 1 and "a.h5ad: damaged" in error


HARM = {
    "a crash": ("os.kill(os.getpid(), signal.SIGSEGV)", r"damaged.*crashed \(SIGSEGV\)"),
    "an end": ("os._exit(3)", "damaged.*ended with code 3"),
    "half an answer": ("os.write(1, b'{\"arr'); os._exit(0)", "damaged.*ended with code 0"),
    "memory": ("bytearray(2**34)", r"a\.h5ad: damaged.*\(MemoryError"),
    "noise": ("os.write(2, b'free(): invalid pointer'); os.abort()", r"crashed \(SIGABRT\)"),
    "a package that is not there": ("raise ImportError('no')", "needs h5py: pip install"),
}


@pytest.mark.parametrize("case", HARM)
def test_whatever_becomes_of_the_child_is_a_sentence(tmp_path, monkeypatch, capfd, case):
    """The library is played by a module of its name that the child finds before it."""
    line, said = HARM[case]
    write(tmp_path / "a.h5ad")
    (tmp_path / "h5py.py").write_text(f"import os, signal\n{line}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ImportError if "package" in case else ValueError, match=said) as error:
        guarded.read(tmp_path / "a.h5ad")
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_a_module_beside_the_file_is_not_imported(tmp_path, monkeypatch):
    write(tmp_path / "a.h5ad")
    (tmp_path / "h5py.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert guarded.read("a.h5ad").genes.tolist() == GENES.tolist()


def test_an_interrupted_caller_ends_its_child(tmp_path, monkeypatch):
    children = []

    class Remembered(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            children.append(self)

    def interrupted(stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(guarded.subprocess, "Popen", Remembered)
    monkeypatch.setattr(guarded, "_receive", interrupted)
    endless(tmp_path / "a.h5ad")
    with pytest.raises(KeyboardInterrupt):
        guarded.read(tmp_path / "a.h5ad")
    assert len(children) == 1 and children[0].returncode == -9

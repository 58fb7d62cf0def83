"""HDF5 files on a disk that fills: the right file, or the old one and an error; and never a crash."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

anndata = pytest.importorskip("anndata")
h5py = pytest.importorskip("h5py")

from models.counts import Counts, annotate_h5ad  # noqa: E402
from models.hdf5_writing import KeepingErrors, hdf5_file  # noqa: E402
from models.runs import write_h5ad  # noqa: E402

ROOT = Path(__file__).parent.parent
N_CELLS = 400


def z():
    return np.random.default_rng(1).standard_normal((N_CELLS, 30)).astype(np.float32)


def counts():
    x = sparse.csr_array(np.random.default_rng(0).poisson(0.5, (N_CELLS, 50)).astype(np.float32))
    genes = [f"g{i}" for i in range(50)]
    return Counts(x, genes, [f"c{i}" for i in range(N_CELLS)])


def test_what_is_written_is_what_anndata_reads(tmp_path):
    write_h5ad(tmp_path / "a.h5ad", counts(), obsm={"X_scVI": z()})
    annotate_h5ad(tmp_path / "a.h5ad", tmp_path / "a.h5ad", obsm={"again": 2.0 * z()})
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(found.X.toarray(), counts().X.toarray())
    np.testing.assert_array_equal(found.obsm["X_scVI"], z())
    np.testing.assert_array_equal(found.obsm["again"], 2.0 * z())
    assert sorted(os.listdir(tmp_path)) == ["a.h5ad"]


@pytest.mark.parametrize("n_taken", [0, 1, 2_000, 10_000, 40_000])
def test_an_error_of_the_disk_is_raised_and_not_passed_over(tmp_path, monkeypatch, n_taken):
    """The disk takes so many bytes; HDF5 closes the file all the same, and then the error comes."""
    monkeypatch.setattr("models.hdf5_writing.KeepingErrors", _limited(n_taken))
    with pytest.raises(OSError, match="No space left"):
        with hdf5_file(tmp_path / "a.h5", "w") as file:
            file["values"] = np.arange(20_000.0)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
def test_the_first_error_is_kept_whatever_it_comes_from():
    """/dev/full takes no byte, and has no length that could be set."""
    with KeepingErrors("/dev/full", "r+") as raw:
        assert raw.error is None
        assert raw.write(b"abc") == 3
        first = raw.error
        assert first.errno == errno.ENOSPC
        assert raw.truncate(100) == 100 and raw.write(b"abc") == 3
        assert raw.error is first
    with KeepingErrors("/dev/full", "r+") as raw:
        assert raw.truncate(100) == 100
        first = raw.error
        assert isinstance(first, OSError) and first.errno != errno.ENOSPC
        assert raw.write(b"abc") == 3 and raw.error is first


def _limited(n_taken):
    """KeepingErrors on a raw file that takes n_taken bytes."""
    left = [n_taken]

    class Raw(KeepingErrors):
        def write(self, data):
            data = memoryview(data).cast("B")
            if len(data) > left[0]:
                self.error = self.error or OSError(28, "No space left on device")
                return len(data)
            left[0] -= len(data)
            return super().write(data)

    return Raw


def test_more_than_the_system_reads_at_once_is_read_whole(tmp_path, monkeypatch):
    """Linux reads 2 GB at a time; here it reads 100 bytes."""
    (tmp_path / "a").write_bytes(bytes(range(250)))

    class Slow(io.FileIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:100])

    file = type("Slow", (KeepingErrors, Slow), {})(tmp_path / "a", "r+")
    data = bytearray(b"x" * 300)
    with file:
        assert file.readinto(data) == 300
    assert data == bytes(range(250)) + bytes(50)


def test_a_new_file_has_categories_and_no_raw(tmp_path):
    """As AnnData's own writing has it."""
    made = counts()
    made.obs = {"kind": np.array(["a", "b"] * (N_CELLS // 2))}
    write_h5ad(tmp_path / "a.h5ad", made)
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert list(found.obs["kind"].cat.categories) == ["a", "b"]
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert "raw" not in file


def test_who_may_not_read_the_counts_may_not_read_the_copy(tmp_path):
    write_h5ad(tmp_path / "a.h5ad", counts())
    (tmp_path / "a.h5ad").chmod(0o400)
    annotate_h5ad(tmp_path / "a.h5ad", tmp_path / "b.h5ad", obsm={"z": z()})
    assert (tmp_path / "b.h5ad").stat().st_mode & 0o777 == 0o600


FILL = """
import sys
from tests.test_hdf5_writing import annotate_h5ad, counts, write_h5ad, z
how, path = sys.argv[1:]
try:
    if how == "add":
        annotate_h5ad(path, path, obsm={"X_scVI": z()})
    else:
        write_h5ad(path, counts(), obsm={"X_scVI": z()})
except OSError as error:
    sys.exit(f"{error}")
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root may mount a small disk",
)
@pytest.mark.parametrize("how", ["add", "new"])
def test_a_disk_that_fills_leaves_the_right_file_or_the_old_one(tmp_path, how):
    write_h5ad(tmp_path / "old.h5ad", counts())
    old = (tmp_path / "old.h5ad").read_bytes()
    disk = tmp_path / "disk"
    disk.mkdir()
    path = disk / "x.h5ad"
    outcomes = set()
    least = -(-len(old) // 1024) + 12
    for kilobytes in range(least, least + 2 * len(old) // 1024 + 140, 75):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        try:
            path.write_bytes(old)
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", FILL, how, str(path)],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            assert done.returncode in (0, 1), (kilobytes, done)  # no SIGSEGV, no SIGBUS
            assert os.listdir(disk) == ["x.h5ad"]
            if done.returncode == 0:
                found = anndata.read_h5ad(path)
                np.testing.assert_array_equal(found.obsm["X_scVI"], z())
                np.testing.assert_array_equal(found.X.toarray(), counts().X.toarray())
            else:
                assert "No space left on device" in done.stderr and path.read_bytes() == old
            outcomes.add(done.returncode)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    assert outcomes == {0, 1}  # there were levels of both kinds

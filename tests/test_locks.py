"""One process at a time: a lock is kept from others, says whose it is, and dies with its owner."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from models import locks

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from models import locks
with locks.locked(sys.argv[1], "is trying things out"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock tmp_path/lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_lock_that_another_process_holds_names_that_process(tmp_path, other):
    with pytest.raises(
        locks.Locked, match=rf"process {other.pid} on .* is trying things out .*wait"
    ):
        with locks.locked(tmp_path / "lock", "waits"):
            pytest.fail("it was taken")


def test_a_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / "lock").exists()
    with locks.locked(tmp_path / "lock", "goes on"):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()
    assert os.listdir(tmp_path) == []


def test_who_waits_gets_it_in_the_end(tmp_path, other):
    timer = threading.Timer(0.3, other.kill)
    timer.start()
    with pytest.warns(UserWarning, match=f"waiting: process {other.pid}"):
        with locks.locked(tmp_path / "lock", "waits", wait=True):
            assert other.wait(10) == -signal.SIGKILL
    timer.join()


def test_many_threads_take_turns(tmp_path):
    """Each adds 1 to a number in a file: none is lost, though each removes the lock file."""
    number = tmp_path / "number"
    number.write_text("0")

    def add():
        for _ in range(20):
            with locks.locked(tmp_path / "lock", "adds", wait=True):
                number.write_text(str(int(number.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    with pytest.warns(UserWarning, match="waiting"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert number.read_text() == "80"


def test_the_lock_of_a_link_is_that_of_the_file(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "x.h5ad").symlink_to("there/y.h5ad")
    assert locks.beside(tmp_path / "x.h5ad") == tmp_path / "there" / ".y.h5ad.lock"
    assert len(os.fsencode(locks.beside("é" * 120).name)) < 255


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows all links")
def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path):
    """A folder that came from a stranger may hold a link to any file."""
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to("mine")
    with pytest.raises(OSError):
        with locks.locked(tmp_path / "lock", "tries"):
            pytest.fail("it was taken")
    assert (tmp_path / "mine").read_text() == "precious"

"""Locks of folders, and what processes that were killed leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from detectkit.errors import UsageError
from detectkit.files import LOCK, atomic_write, clear_left_behind, locked, staging_folder

HOLD = """
import sys, time
from pathlib import Path
from detectkit.files import atomic_write, locked, staging_folder
place = Path(sys.argv[1])
with locked(place), staging_folder(place / "records") as folder, atomic_write(place / "resume.pt") as file:
    (folder / "part").write_text("")
    file.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to tmp_path/results and has locked it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "results")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_locked_folder_is_refused_until_its_process_is_gone(holder, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(UsageError, match="results: another detectkit run is at work there; wait until"):
        with locked(folder):
            pass
    assert (folder / LOCK).exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(folder):
        pass
    assert not (folder / LOCK).exists()


def test_the_lock_of_a_folder_that_was_moved_is_not_that_of_the_new_one(tmp_path):
    with contextlib.ExitStack() as second:
        with locked(tmp_path / "results"):
            (tmp_path / "results").rename(tmp_path / "moved")
            second.enter_context(locked(tmp_path / "results"))
        with pytest.raises(UsageError, match="another detectkit run is at work"), locked(
            tmp_path / "results"
        ):
            pass


def test_a_folder_that_nothing_was_put_into_goes_again(tmp_path):
    with locked(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b/c").is_dir()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"), locked(tmp_path / "a/b"):
        (tmp_path / "a/b/kept").write_text("")
    assert (tmp_path / "empty").is_dir() and [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]


def test_what_a_process_that_is_at_work_writes_is_left_to_it(holder, tmp_path):
    folder = tmp_path / "results"
    names = {f".records.{holder.pid}.tmp", f".resume.pt.{holder.pid}.tmp"}
    clear_left_behind(folder)
    with staging_folder(folder / "records"), atomic_write(folder / "resume.pt") as path:
        path.write_text("whole")
    assert names <= {path.name for path in folder.iterdir()}


def test_what_a_killed_process_left_goes_with_the_next_file_of_that_name(holder, tmp_path):
    folder = tmp_path / "results"
    holder.kill()
    holder.wait()
    with atomic_write(folder / "other.pt") as path:
        path.write_text("whole")
    assert (
        folder / f".resume.pt.{holder.pid}.tmp"
    ).exists()  # of another name: `clear_left_behind` takes all
    with staging_folder(folder / "records"), atomic_write(folder / "resume.pt") as path:
        path.write_text("whole")
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, "other.pt", "resume.pt"]


def test_all_that_killed_processes_left_goes_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own = f".resume.pt.{os.getpid()}.tmp"  # a container gives every process of its the same number
    stale = [f".resume.pt.{gone.pid}.tmp", f".a.b-c.{gone.pid}.tmp", own]
    kept = [
        f"resume.pt.{gone.pid}.tmp",
        ".cache.tmp",
        ".notes-training",
        ".x.12.txt",
        f".y.{os.getppid()}.tmp",
        ".z.-1.tmp",
    ]
    for name in (*stale, *kept):
        (tmp_path / name).write_text("")
    (tmp_path / f".folder.{gone.pid}.tmp").mkdir()
    (tmp_path / f".folder.{gone.pid}.tmp" / "part").write_text("")
    clear_left_behind(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    clear_left_behind(tmp_path / "nowhere")


def test_looking_for_what_is_left_costs_nothing_in_a_folder_of_many_files(tmp_path):
    for number in range(3000):
        (tmp_path / str(number)).touch()
    start = time.process_time()
    for number in range(200):
        with atomic_write(tmp_path / str(number)) as path:
            path.touch()
    assert time.process_time() - start < 1

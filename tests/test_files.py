"""Locks of folders, what processes that were killed leave, listings and patterns."""

import glob
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from detectkit.errors import DataError, UsageError
from detectkit.files import (
    LOCK,
    atomic_write,
    clear_left_behind,
    files_below,
    literal_start,
    locked,
    matching,
    staging_folder,
)

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


# Listings and patterns


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The current folder, and a writer of files below it."""
    monkeypatch.chdir(tmp_path)

    def write(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()

    return write


def test_files_come_in_a_settled_order_and_hidden_folders_are_not_entered(tree):
    tree("b", "a", ".c", "z/1", "d/2", "d/e/3", ".git/4")
    assert list(files_below(".")) == [".c", "a", "b", "d/2", "d/e/3", "z/1"]
    assert list(files_below("d/")) == ["2", "e/3"]
    assert list(files_below(".", passed_over=lambda place: place.endswith("/d"))) == [".c", "a", "b", "z/1"]


def test_links_are_aliases_and_not_followed_round_in_circles(tree, tmp_path):
    tree("s/z/deep/b", "other/x")
    (tmp_path / "s/alias").symlink_to("z/deep")
    (tmp_path / "s/loop").symlink_to(".")
    (tmp_path / "s/out").symlink_to("../other")
    (tmp_path / "other/back").symlink_to("../s")
    assert list(files_below("s")) == ["alias/b", "out/x", "z/deep/b"]
    (tmp_path / "link").symlink_to("s")
    assert list(files_below("link")) == list(files_below("s"))


def test_a_folder_that_cannot_be_listed(tree, tmp_path):
    tree("file")
    for name, why in (("gone", "No such file or directory"), ("file", "Not a directory")):
        with pytest.raises(DataError, match=f"^cannot list {tmp_path}/{name}: {why}$"):
            list(files_below(tmp_path / name))
        errors = []
        assert list(files_below(tmp_path / name, fail=errors.append)) == [] and len(errors) == 1


@pytest.mark.parametrize(
    "pattern",
    [
        "**",
        "**/x*",
        "*/x*",
        "d/**",
        "d/**/*",
        "**/e/**/x1",
        "*",
        "?/x[12]",
        "*/e/../x*",
        "**/**/x*",
        "./**/x2",
    ],
)
def test_what_matches_is_what_glob_finds(tree, tmp_path, pattern):
    tree("x0", "d/x1", "d/e/x2", "d/e/f/x1", "z/x1", ".h/x1", "d/.x1")
    for root in ("", f"{tmp_path}/"):
        found = {os.path.normpath(path) for path in glob.glob(root + pattern, recursive=True)}
        assert list(map(os.path.normpath, matching(root + pattern))) == sorted(found), root


def test_what_is_called_as_it_is_written_is_found_on_each_level(tree):
    tree("a/data[1]/part-0", "a/data1/part-0", "b/data1/part-0", "c/x[1]/part-0", "c/x[1]/part-9")
    assert matching("a/data[1]/part-[0-5]") == ["a/data[1]/part-0"]
    assert matching("*/data[1]/part-[0-5]") == ["a/data[1]/part-0", "b/data1/part-0"]
    assert matching("**/x[1]/part-[0-5]") == ["c/x[1]/part-0"]


def test_a_link_that_leads_back_gives_no_file_twice(tree, tmp_path):
    tree("d/part-0", "d/e/part-1")
    (tmp_path / "d/e/up").symlink_to("..")
    (tmp_path / "d/loop").symlink_to(".")
    assert matching("d/**/part-*") == ["d/e/part-1", "d/part-0"]


def test_two_stars_over_many_files_cost_as_much_as_listing_them(tree):
    tree(*(f"{number % 7}/{number}" for number in range(7000)))
    start = time.process_time()
    expected = sorted(glob.glob("**/*9", recursive=True))
    listed = time.process_time() - start
    start = time.process_time()
    assert matching("**/*9") == expected
    assert time.process_time() - start < 5 * listed


@pytest.mark.parametrize(
    "pattern, start",
    [
        ("a/b", "a/b"),
        ("a/b*c", "a/b"),
        ("a[*]b[?]c[[]1]-*", "a*b?c[1]-"),
        ("data[1]*", "data"),
        ("**", ""),
        ("", ""),
    ],
)
def test_what_all_paths_of_a_pattern_begin_with(pattern, start):
    assert literal_start(pattern) == start

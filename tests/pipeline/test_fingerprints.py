"""What is in files: content decides, and it is read again only where size or time of change differ."""

import os
import time

import pytest

from detectkit import stores
from detectkit.errors import DataError
from detectkit.pipeline import fingerprints
from detectkit.pipeline.fingerprints import Fingerprints

OLD = 1_700_000_000  # seconds; of files that have settled


@pytest.fixture
def prints(tmp_path):
    return Fingerprints(tmp_path / "cache" / "prints.json")


@pytest.fixture
def opened(monkeypatch):
    """The paths whose content is read."""
    paths = []
    digest = fingerprints.hashlib.file_digest

    def file_digest(file, name):
        paths.append(os.path.basename(file.name))
        return digest(file, name)

    monkeypatch.setattr(fingerprints.hashlib, "file_digest", file_digest)
    return paths


def write(path, text, *, when=OLD):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (when, when))
    return str(path)


def test_content_decides_not_the_time(prints, tmp_path):
    path = tmp_path / "a"
    first = prints.of(write(path, "one"))
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # sha256sum of "one"
    assert prints.of(write(path, "one", when=OLD + 9)) == first
    assert prints.of(write(path, "two", when=OLD + 9)) == first  # the same size and time: not looked into
    assert prints.of(write(path, "two", when=OLD + 10)) != first
    assert prints.of(write(path, "one", when=OLD + 11)) == first


def test_what_is_not_there_is_none(prints, tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "texts" / "a.txt", "no image")
    for name in ("nothing", "nothing*", "empty", "empty/**", "texts"):
        assert prints.of(str(tmp_path / name)) is None


def test_the_cache_spares_reading_in_the_next_run(prints, tmp_path, opened):
    path = write(tmp_path / "a", "one")
    first = prints.of(path)
    assert prints.of(path) == first and opened == ["a"]
    prints.save()
    assert Fingerprints(prints.cache).of(path) == first and opened == ["a"]
    os.utime(path, (OLD + 1, OLD + 1))
    assert Fingerprints(prints.cache).of(path) == first and opened == ["a", "a"]


def test_a_file_that_has_just_changed_is_read_again(prints, tmp_path, opened):
    """Within the resolution of its time of change it may change again unseen."""
    path = tmp_path / "a"
    now = time.time()
    first = prints.of(write(path, "one", when=now))
    assert prints.of(write(path, "two", when=now)) != first
    assert opened == ["a", "a"]
    prints.save()
    assert not prints.cache.exists()


def test_one_from_the_future_is_read_again(prints, tmp_path):
    path, future = tmp_path / "a", time.time() + 10**6
    first = prints.of(write(path, "one", when=future))
    assert prints.of(write(path, "two", when=future)) != first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1]}', "null", '"a"', "\udc80"])
def test_a_broken_cache_is_begun_anew(prints, tmp_path, content):
    prints.cache.parent.mkdir()
    prints.cache.write_bytes(content.encode("utf-8", "surrogateescape"))
    path = write(tmp_path / "a", "one")
    fresh = Fingerprints(prints.cache)
    assert fresh.of(path) == prints.of(path)
    fresh.save()
    assert path in prints.cache.read_text()


def test_a_cache_is_written_only_when_it_has_changed(prints, tmp_path):
    path = write(tmp_path / "a", "one")
    prints.of(path)
    prints.save()
    os.utime(prints.cache, (OLD, OLD))
    again = Fingerprints(prints.cache)
    again.of(path)
    again.save()
    assert os.path.getmtime(prints.cache) == OLD


def test_a_pattern_is_its_files(prints, tmp_path):
    pattern = str(tmp_path / "part-*")
    write(tmp_path / "other", "x")
    write(tmp_path / "part-1", "one")
    one = prints.of(pattern)
    write(tmp_path / "part-2", "two")
    two = prints.of(pattern)
    os.rename(tmp_path / "part-2", tmp_path / "part-3")
    renamed = prints.of(pattern)
    os.remove(tmp_path / "part-3")
    write(tmp_path / "other", "y", when=OLD + 5)
    assert len({one, two, renamed}) == 3 and prints.of(pattern) == one


def test_two_stars_reach_into_folders(prints, tmp_path):
    pattern = str(tmp_path / "labels" / "**")
    write(tmp_path / "labels" / "a.txt", "one")
    first = prints.of(pattern)
    write(tmp_path / "labels" / "deep" / "down" / "b.txt", "two")
    deep = prints.of(pattern)
    write(tmp_path / "labels" / "deep" / "down" / "b.txt", "three")
    assert len({first, deep, prints.of(pattern)}) == 3


def test_of_a_folder_only_images_count(prints, tmp_path):
    folder = tmp_path / "data"
    write(folder / "image_2" / "b.JPG", "b")
    write(folder / "image_2" / "a.png", "a")
    first = prints.of(str(folder))
    write(folder / "label_2" / "a.txt", "square")
    write(folder / "notes.md", "square")
    assert prints.of(str(folder)) == prints.of(f"{folder}/") == first
    write(folder / "image_3" / "c.png", "c")
    assert prints.of(str(folder)) != first


def test_linked_folders_count_and_pictures_of_results_do_not(prints, tmp_path):
    folder = tmp_path / "data"
    write(tmp_path / "disk" / "a.png", "a")
    folder.mkdir()
    os.symlink(tmp_path / "disk", folder / "images")
    os.symlink(folder, folder / "images" / "back")
    first = prints.of(str(folder))
    write(tmp_path / "disk" / "a.png", "other")
    second = prints.of(str(folder))
    assert None is not first != second
    write(folder / "results" / "mine" / "stage.json", "")
    write(folder / "results" / "mine" / "cost.png", "curve")
    assert prints.of(str(folder)) == second


def test_while_all_stands_still_it_is_looked_at_once(prints, tmp_path):
    path = write(tmp_path / "a", "one")
    with prints.standing_still():
        first = prints.of(path)
        write(tmp_path / "a", "three")
        assert prints.of(path) == first
    assert prints.of(path) != first


def test_a_folder_may_be_moved(prints, tmp_path):
    write(tmp_path / "here" / "a.png", "a")
    first = prints.of(str(tmp_path / "here"))
    os.rename(tmp_path / "here", tmp_path / "there")
    assert prints.of(str(tmp_path / "there")) == first


def test_home_is_expanded(prints, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prints.of("~/a") is None
    assert None is not prints.of(write(tmp_path / "a", "one")) == prints.of("~/a")


def test_an_image_that_cannot_be_read_is_no_error(prints, tmp_path):
    """No record may name it; where one does, the stage that reads it says so."""
    write(tmp_path / "data" / "a.png", "a")
    os.symlink(tmp_path / "gone.png", tmp_path / "data" / "b.png")
    dangling = prints.of(str(tmp_path / "data"))
    write(tmp_path / "gone.png", "b")
    assert None is not prints.of(str(tmp_path / "data")) != dangling


def test_files_in_a_store(prints, bucket):
    pattern = "s3://bucket/part-*"
    stores.allow([pattern])
    assert prints.of(pattern) is None
    write(bucket / "part-0", "one")
    first = prints.of(pattern)
    assert first is not None and prints.of(pattern) == first
    write(bucket / "part-0", "three")
    longer = prints.of(pattern)
    write(bucket / "part-1", "one")
    assert len({first, longer, prints.of(pattern)}) == 3


def test_a_store_that_is_not_asked(prints):
    with pytest.raises(DataError, match="nowhere://bucket/part-.* is not opened"):
        prints.of("nowhere://bucket/part-*")

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path

import pytest

from detectkit.console import log
from detectkit.data import overlap
from detectkit.data.overlap import require_separate
from detectkit.errors import DataError
from tests.data.conftest import config, make, picture, read, record


@pytest.mark.parametrize("embedded", [False, True])
def test_an_image_of_both_folds_is_refused(tmp_path: Path, embedded: bool) -> None:
    names = {"k-fold-000-of-002": "abcd", "k-fold-001-of-002": "cdef"}
    images = {stem: {"image": stem.encode(), "image_format": "png"} if embedded else {} for stem in "abcdef"}
    make(
        tmp_path,
        {name: [record(stem, **images[stem]) for stem in stems] for name, stems in names.items()},
    )
    both = config(tmp_path, "validation_fold: 0")
    with pytest.raises(DataError, match=r"^2 of the 4 validation images are among .* trained on \(c, d\)"):
        require_separate(*read(both), both)


def test_an_image_of_both_folds_by_another_name(tmp_path: Path) -> None:
    make(tmp_path, {"k-fold-000-of-002": [record("a")], "k-fold-001-of-002": [record("b"), record("c")]})
    both = config(tmp_path, "validation_fold: 0")
    require_separate(*read(both), both)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.png").symlink_to("c.png")
    with pytest.raises(DataError, match=r"^1 of the 1 validation images are among .* trained on \(a\)"):
        require_separate(*read(both), both)


@pytest.mark.parametrize("embedded", [(), ("a",), ("b",), ("a", "b")])
def test_a_copied_image_is_told(
    tmp_path: Path, embedded: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it lies in a file or in a record, under another name; one byte in another place makes another image."""
    log.propagate = True
    content = bytearray(random.Random(1).randbytes(20_000))
    other = bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    for copy, is_same in ((bytes(content), True), (other, False)):
        root = tmp_path / str(is_same)
        files = {"a": bytes(content), "b": copy}
        images = {
            name: {"image": files[name], "image_format": "png"} if name in embedded else {} for name in files
        }
        make(root, {f"k-fold-00{n}-of-002": [record(name, **images[name])] for n, name in enumerate(files)})
        for name in set(files) - set(embedded):
            (root / f"{name}.png").write_bytes(files[name])
        both = config(root, "validation_fold: 0")
        caplog.clear()
        require_separate(*read(both), both)
        assert (
            "1 of the 1 validation images are copies of some that are trained on (a)" in caplog.text
        ) == is_same


def test_files_of_one_form_are_told_by_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {f"k-fold-00{n}-of-002": [record(name)] for n, name in enumerate("ab")})
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode() * 50_000)
    counts: list[int] = []
    monkeypatch.setattr(
        overlap, "_read", lambda frame, start, count: counts.append(count) or frame.path.encode()
    )
    both = config(tmp_path, "validation_fold: 0")
    require_separate(*read(both), both)
    assert counts == [overlap.PIECE] * 2


def test_images_that_only_look_alike_are_not_in_both_folds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sets whose frames have the same ids, beside and in the records."""
    for name, content in (("one", b"pixels"), ("two", b"others")):
        images = [record("a", image=content, image_format="png"), record("b")]
        make(tmp_path / name, {"t": images})
    picture(40, 30, seed=49).save(tmp_path / "two" / "b.png")
    paths = f'tfrecords_path: "{tmp_path}/two/records/t" image_directory_path: "{tmp_path}/two"'
    both = config(tmp_path / "one", f"validation_data_source {{ {paths} }}")
    training, validation = read(both)
    assert [frame.frame_id for frame in training.frames] == [frame.frame_id for frame in validation.frames]
    require_separate(training, validation, both)
    assert not caplog.messages


def test_measuring_on_what_is_trained_on_may_be_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.propagate = True
    make(tmp_path, {"k-fold-000-of-002": [record("a")], "k-fold-001-of-002": [record("b")]})
    for pattern, is_meant in (("*", True), ("k-fold-*", True), ("k-fold-000*", False)):
        paths = f'tfrecords_path: "{tmp_path}/records/{pattern}" image_directory_path: "{tmp_path}"'
        both = config(tmp_path, f"validation_data_source {{ {paths} }}")
        caplog.clear()
        with nullcontext() if is_meant else pytest.raises(DataError, match="1 of the 1 validation images"):
            require_separate(*read(both), both)
        assert (
            "2 of the 2 validation images are among those that are trained on, as" in caplog.text
        ) == is_meant

"""Hashes of what images show, groups, and splits that keep a group together."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, strategies
from PIL import Image, ImageFilter

from detectkit.data.convert import convert
from detectkit.data.likeness import keep_together, near_duplicates, perceptual_hash
from detectkit.data.readers import LabelledImage
from detectkit.spec import loads

FAR = 0xFFFF_FFFF_0000_0000


def scene(seed, size=(160, 120)):
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size).filter(ImageFilter.GaussianBlur(2))


def bits(first, second):
    return (perceptual_hash(np.asarray(first)) ^ perceptual_hash(np.asarray(second))).bit_count()


def saved(image, quality):
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def test_copies_are_near_and_others_are_far():
    image = scene(1)
    assert bits(image, image) == 0
    assert bits(image, image.resize((320, 240))) <= 4
    assert bits(image, saved(image, 40)) <= 4
    assert bits(image, image.point(lambda value: value * 0.7 + 20)) <= 4
    assert min(bits(scene(a), scene(b)) for a, b in itertools.combinations(range(12), 2)) > 14
    assert bits(image, image.rotate(180)) > 14


def test_an_image_of_one_grey_shows_nothing():
    assert perceptual_hash(np.full((40, 60), 200, np.uint8)) == 0
    assert 0 < perceptual_hash(np.asarray(scene(1))) < 2**64


def test_groups_go_from_one_to_the_next():
    hashes = [0b0000, FAR, 0b0011, 0b1111, FAR, 2**40 - 1]
    assert near_duplicates(hashes, 2) == [[0, 2, 3], [1, 4]]
    assert near_duplicates(hashes, 0) == [[1, 4]]
    assert near_duplicates([], 4) == []


@given(strategies.lists(strategies.integers(0, 2**64 - 1) | strategies.integers(0, 255), max_size=40))
def test_groups_are_those_of_every_pair(hashes):
    group_of = {index: number for number, group in enumerate(near_duplicates(hashes, 3)) for index in group}
    for a, b in itertools.combinations(range(len(hashes)), 2):
        if (hashes[a] ^ hashes[b]).bit_count() <= 3:
            assert group_of[a] == group_of[b]
    assert all(list(group_of.values()).count(number) > 1 for number in set(group_of.values()))


@pytest.fixture
def films(tmp_path):
    """40 images: ten scenes of four frames each, as a list of frames."""
    (tmp_path / "image_2").mkdir()
    (tmp_path / "label_2").mkdir()
    frames = []
    for number in range(40):
        path = tmp_path / "image_2" / f"{number:02d}.png"
        scene(number // 4).point(lambda value: value * (1 - number % 4 / 20)).save(path)
        (tmp_path / "label_2" / f"{number:02d}.txt").write_text("cell 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n")
        frames.append(LabelledImage(path.stem, path, 160, 120, ()))
    return frames


def scenes(fold):
    return {int(frame.image.stem) // 4 for frame in fold}


def test_a_split_keeps_groups_together_and_its_share(films):
    order = np.random.default_rng(0).permutation(40)
    folds = [[films[at] for at in order[:8]], [films[at] for at in order[8:]]]
    found = keep_together(folds)
    assert [len(fold) for fold in found.folds] == [8, 32]
    assert scenes(found.folds[0]) & scenes(found.folds[1]) == set()
    assert (found.groups, found.images) == (10, 40) and 0 < found.moved <= 16


def test_without_near_duplicates_nothing_moves(films):
    single = films[::4]
    found = keep_together([single[:3], single[3:]])
    assert found.folds == [single[:3], single[3:]] and found.groups == found.moved == 0


def test_an_image_that_cannot_be_read_is_like_no_other(films):
    films[0].image.write_bytes(b"")
    assert keep_together([films[:1], films[1:]]).images == 39


@pytest.mark.spec_field("DatasetExportConfig.keep_near_duplicates_together")
def test_a_conversion_keeps_them_together(films, tmp_path, caplog):
    caplog.set_level("INFO", logger="detectkit")
    text = f'kitti_config {{ root_directory_path: "{tmp_path}" image_dir_name: "image_2" label_dir_name: "label_2" val_split: 20 }}'
    from detectkit.data.tfrecord import read_records

    def shared(config):
        summary = convert(config, str(tmp_path / "records" / "all"))
        parts = [
            {int(record.frame_id[-2:]) // 4 for shard in fold.shards for record in read_records(str(shard))}
            for fold in summary.folds
        ]
        assert [fold.frames for fold in summary.folds] == [8, 32]
        return parts[0] & parts[1]

    assert shared(loads(text))
    assert shared(loads(f"{text} keep_near_duplicates_together: true")) == set()
    assert "40 images are in groups of near-duplicates (10)" in caplog.text
    assert "fold 0 has 8 of 40 images" in caplog.text

"""Details of an evaluation: mistakes that a person can count, the file they are kept in, and what they agree with."""

import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from detectkit import spec
from detectkit.data.convert import convert
from detectkit.data.dataset import Frame
from detectkit.data.labels import DONTCARE, NO_OBJECTS
from detectkit.errors import DataError, OutputError
from detectkit.evaluation import evaluate
from detectkit.evaluation.agreement import agreement
from detectkit.evaluation.collect import Collector, _location, thinned
from detectkit.evaluation.details import (
    MOST_POINTS,
    Curve,
    Details,
    Location,
    errors,
    load,
    read_image,
    save,
)
from detectkit.evaluation.predictions import measured_images, predictions
from detectkit.evaluation.voc import Found, Labelled
from detectkit.predict import load_model

SQUARE, BAR = 0, 1
LEFT, RIGHT, AWAY = (0, 0, 20, 20), (40, 0, 60, 20), (70, 40, 90, 80)


def details(found, truths, *, overlaps=(0.5, 0.5), small=()):
    """Of three images; found has rows of image, box, class, score, truths of image, box, class.

    Args:
        small: rows of truths that are too small to count.
    """
    found = sorted(found, key=lambda row: (row[0], -row[3]))

    def column(rows, at, dtype):
        return torch.tensor([row[at] for row in rows], dtype=dtype)

    of_target = column(truths, 2, torch.int64) >= 0
    of_target[list(small)] = False
    return Details(
        class_names=["square", "bar"],
        images=[Location(f"/data/{name}.png", -1, name, 96, 64) for name in "abc"],
        found=Found(
            column(found, 1, torch.float32).reshape(-1, 4),
            column(found, 2, torch.int64),
            column(found, 0, torch.int64),
            column(found, 3, torch.float32),
        ),
        found_counts=torch.ones(len(found), dtype=torch.bool),
        truths=Labelled(
            column(truths, 1, torch.float32).reshape(-1, 4),
            column(truths, 2, torch.int64),
            column(truths, 0, torch.int64),
        ),
        truths_count=of_target,
        overlaps=list(overlaps),
        curves=[Curve([0.5, 1.0], [1.0, 2 / 3]), Curve([], [])],
        left_out=0,
    )


THREE = details(
    [
        (0, LEFT, SQUARE, 0.9),  # right
        (0, LEFT, SQUARE, 0.8),  # the same once more: wrong
        (0, AWAY, BAR, 0.4),  # wrong: nothing is there
        (1, RIGHT, BAR, 0.7),  # wrong: it is a square
        (1, (10, 40, 30, 60), SQUARE, 0.95),  # in a DontCare region: neither
        (2, (40, 0, 60, 10), SQUARE, 0.6),  # IoU exactly 1/2: right
    ],
    [
        (0, LEFT, SQUARE),
        (1, RIGHT, SQUARE),  # missed, 400 pixels
        (1, (0, 30, 40, 64), DONTCARE),
        (2, RIGHT, SQUARE),
        (2, AWAY, BAR),  # missed, 800 pixels
        (2, LEFT, BAR),  # too small to be looked for
    ],
    small=[5],
)


def test_false_positives_by_score_and_misses_by_area():
    false_positives, misses = errors(THREE)
    assert false_positives.scores.tolist() == pytest.approx([0.8, 0.7, 0.4])
    assert false_positives.images.tolist() == [0, 1, 0]
    assert false_positives.classes.tolist() == [SQUARE, BAR, BAR]
    assert false_positives.boxes.tolist() == [list(box) for box in (LEFT, RIGHT, AWAY)]
    assert misses.boxes.tolist() == [list(AWAY), list(RIGHT)]
    assert (misses.images.tolist(), misses.classes.tolist()) == ([2, 1], [BAR, SQUARE])


def test_each_class_has_its_own_overlap():
    strict = THREE._replace(overlaps=[0.51, 0.5])
    false_positives, misses = errors(strict)
    assert 2 in false_positives.images.tolist() and len(false_positives.scores) == 4
    assert (misses.images == 2).sum() == 2  # the square of image 2 too


def test_a_local_address_is_a_path():
    places = {
        "file:///data/a.png": "/data/a.png",
        "/data/a.png": "/data/a.png",
        "s3://b/part-0": "s3://b/part-0",
    }
    for address, path in places.items():
        assert _location(Frame("a", address, None, 0, None, NO_OBJECTS), 4, 3).path == path


def test_what_does_not_count_is_no_mistake():
    small = THREE.found_counts.clone()
    small[1] = False  # the second detection of the same square
    false_positives, _ = errors(THREE._replace(found_counts=small))
    assert false_positives.scores.tolist() == pytest.approx([0.7, 0.4])


def test_nothing_found_and_nothing_there():
    empty = details([], [])
    false_positives, misses = errors(empty)
    assert len(false_positives.scores) == len(misses.classes) == 0
    found = empty.detections()
    assert [len(one.scores) for one in found] == [0, 0, 0] and agreement(found, found).share == 1


def test_detections_by_image():
    one, other, last = THREE.detections()
    assert one.scores.tolist() == pytest.approx([0.9, 0.8, 0.4])
    assert other.boxes.tolist() == [[10, 40, 30, 60], list(RIGHT)]
    assert last.classes.tolist() == [SQUARE]
    # A network that finds the first of five in another place, and all else the same: 4 pairs of 6 and 6.
    moved = THREE.found.boxes.clone()
    moved[[0, 1]] += 50
    assert (
        agreement(
            THREE.detections(), THREE._replace(found=THREE.found._replace(boxes=moved)).detections()
        ).pairs
        == 4
    )


def same(one, other):
    """Whether two Details are equal in every number."""
    flat = [[*item.found, item.found_counts, *item.truths, item.truths_count] for item in (one, other)]
    rest = [
        (item.class_names, item.images, item.overlaps, item.curves, item.left_out) for item in (one, other)
    ]
    return rest[0] == rest[1] and all(
        first.dtype == second.dtype and torch.equal(first, second)
        for first, second in zip(*flat, strict=True)
    )


NUMBERS = st.floats(-1e4, 1e4, width=32)
NAMES = st.text(st.characters(), max_size=8)  # lone surrogates too: bytes of paths that are no UTF-8


@st.composite
def any_details(draw):
    images = draw(
        st.lists(
            st.builds(Location, NAMES, st.integers(-1, 9), NAMES, st.just(96), st.just(64)),
            min_size=1,
            max_size=4,
        )
    )
    names = draw(st.lists(NAMES, min_size=1, max_size=3))
    count, labels = draw(st.integers(0, 6)), draw(st.integers(0, 6))

    def numbers(size, low, high):
        values = draw(arrays(np.int64, size, elements=st.integers(low, high)))
        return torch.from_numpy(values)

    def floats(*shape):
        return torch.from_numpy(draw(arrays(np.float32, shape, elements=NUMBERS)))

    of_image = numbers(count, 0, len(images) - 1).sort().values
    curve = st.builds(Curve, st.lists(st.floats(0, 1), max_size=5), st.lists(st.floats(0, 1), max_size=5))
    return Details(
        class_names=names,
        images=images,
        found=Found(floats(count, 4), numbers(count, 0, len(names) - 1), of_image, floats(count)),
        found_counts=numbers(count, 0, 1).bool(),
        truths=Labelled(
            floats(labels, 4), numbers(labels, DONTCARE, len(names) - 1), numbers(labels, 0, len(images) - 1)
        ),
        truths_count=numbers(labels, 0, 1).bool(),
        overlaps=[draw(st.floats(0, 1)) for _ in names],
        curves=[draw(curve) for _ in names],
        left_out=draw(st.integers(0, 9)),
    )


@given(any_details())
def test_what_is_saved_is_loaded(tmp_path_factory, made):
    path = tmp_path_factory.getbasetemp() / "details.npz"
    save(path, made)
    assert same(load(path), made)


def test_the_same_details_make_the_same_file(tmp_path):
    save(tmp_path / "one", THREE)
    save(tmp_path / "other", THREE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file/details.npz"):
        save(tmp_path / "file" / "details.npz", THREE)


def refused(path):
    """The one line that a file is refused with."""
    with pytest.raises(DataError) as caught:
        load(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def rewritten(path, **changes):
    """The file of THREE with other arrays in it."""
    save(path, THREE)
    with np.load(path) as stored:
        columns = dict(stored)
    columns.update(changes)
    with open(path, "wb") as file:
        np.savez(file, **{name: values for name, values in columns.items() if values is not None})
    return path


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in refused(tmp_path / "details.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"text\n" * 100])
def test_files_of_others(tmp_path, content):
    path = tmp_path / "details.npz"
    path.write_bytes(content)
    assert str(path) in refused(path)


def test_arrays_of_others(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "two.npz", weights=np.zeros(3))
    np.savez(tmp_path / "objects.npz", header=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("header", "hello")
    for path in tmp_path.iterdir():
        assert "evaluate again" in refused(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"header": np.frombuffer(b"{}", np.uint8)}, "format"),
        ({"header": np.frombuffer(b'{"format": "detectkit.details 2"}', np.uint8)}, "details 2"),
        ({"found_boxes": np.zeros((6, 3), np.float32)}, "found_boxes is float32 .6, 3."),
        ({"found_boxes": np.zeros((6, 4))}, "found_boxes is float64"),
        ({"found_classes": np.full(6, 2)}, "found_classes holds numbers from 2 to 2"),
        ({"found_images": np.array([0, 0, 1, 1, 2, 3])}, "found_images holds numbers from 0 to 3"),
        ({"found_images": np.array([0, 1, 0, 1, 2, 2])}, "does not ascend"),
        ({"truths_count": None}, "truths_count"),
    ],
)
def test_parts_that_do_not_fit_together(tmp_path, changes, said):
    line = refused(rewritten(tmp_path / "details.npz", **changes))
    assert said.replace(".6, 3.", "(6, 3)") in line


def test_damage_anywhere_is_noticed(tmp_path):
    path = tmp_path / "details.npz"
    save(path, THREE)
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        refused(path)
    for place in range(0, len(content), 41):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            assert same(load(path), THREE)  # a time stamp, or another byte that nobody reads
        except DataError as error:
            assert "\n" not in str(error)


def trapezoids(curve):
    return float(np.trapezoid(curve.precision, curve.recall))


@pytest.mark.parametrize("count", [1, 200])
def test_a_short_curve_stays(count):
    curve = Curve(np.linspace(0, 1, count).tolist(), np.linspace(1, 0.2, count).tolist())
    assert thinned(curve) is curve


@given(arrays(np.bool_, st.integers(201, 1200)), st.integers(0, 50))
def test_a_long_curve_keeps_its_ends_and_its_area(hits, missed):
    """A curve as detections make it, each right or wrong."""
    true = hits.cumsum()
    curve = Curve((true / max(true[-1] + missed, 1)).tolist(), (true / np.arange(1, len(hits) + 1)).tolist())
    thin = thinned(curve)
    for values, original in zip(thin, curve, strict=True):
        assert 2 <= len(values) <= MOST_POINTS and (values[0], values[-1]) == (original[0], original[-1])
    assert thin.recall == sorted(thin.recall) and 0 <= min(thin.precision) <= max(thin.precision) <= 1 + 1e-9
    assert trapezoids(thin) == pytest.approx(trapezoids(curve), rel=1e-3, abs=1e-12)


def test_a_straight_curve_is_straight_when_thinned():
    curve = Curve(np.linspace(0, 1, 10_001).tolist(), np.linspace(1, 0, 10_001).tolist())
    thin = thinned(curve)
    assert len(thin.recall) == MOST_POINTS and trapezoids(thin) == pytest.approx(0.5)
    away = np.abs(np.array(thin.precision) - (1 - np.array(thin.recall)))
    assert away.max() <= 1 / (MOST_POINTS - 4)  # within one part at the ends, on the line between
    assert away[2:-2].max() < 1e-6


@pytest.fixture
def collect(tmp_path):
    """Measures a model with a spec; gives the result and its details, saved and loaded."""

    def call(model, experiment):
        predictor = load_model(model, "cpu", experiment=experiment)
        images = measured_images(experiment, predictor.class_names)
        collector = Collector(predictor.class_names, experiment.evaluation_config, images)
        batches = collector.watch(predictions(predictor, experiment, images=images))
        result = evaluate(batches, predictor.class_names, experiment.evaluation_config)
        save(tmp_path / "details.npz", collector.details(result))
        return result, load(tmp_path / "details.npz")

    return call


@pytest.mark.parametrize("protocol", ["VOC", "COCO"])
def test_mistakes_are_those_that_the_evaluation_counts(collect, tiny, learn, protocol):
    tiny.evaluation_config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
    result, found = collect(learn(tiny, noise=0.6), tiny)
    false_positives, misses = errors(found)
    wrong = [item.detections - item.true_positives for item in result.classes]
    missed = [item.ground_truth - item.true_positives for item in result.classes]
    assert sum(wrong) > 0 and sum(missed) > 0
    assert torch.bincount(false_positives.classes, minlength=2).tolist() == wrong
    assert torch.bincount(misses.classes, minlength=2).tolist() == missed
    assert found.left_out == 0 and len(found.found.scores) == sum(item.detections for item in result.classes)
    for curve, item in zip(found.curves, result.classes, strict=True):
        assert curve == (item.recall_curve, item.precision_curve)


def test_a_protocol_in_pixels_of_the_files_keeps_the_labels_as_they_are(collect, tiny, learnt):
    """The network is shown 64 x 48 pixels of each image: what lies outside counts for KITTI, and not for VOC."""
    preprocessing = tiny.augmentation_config.preprocessing
    preprocessing.output_image_width, preprocessing.output_image_height = 64, 48
    preprocessing.crop_right, preprocessing.crop_bottom = 64, 48
    boxes = {}
    for protocol in ("VOC", "KITTI"):
        tiny.evaluation_config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
        _, found = collect(learnt, tiny)
        boxes[protocol] = found.truths.boxes
        assert len(found.images) == 6 and len(found.detections()) == 6
    assert boxes["KITTI"].amax(0)[2] > 64 and len(boxes["KITTI"]) == 12
    assert boxes["VOC"].amax(0)[2] <= 64.001 and boxes["VOC"].amax(0)[3] <= 48.001 and len(boxes["VOC"]) <= 12


def test_boxes_are_in_pixels_of_the_files(collect, tiny, tiny_root, learnt):
    """The network sees the 96 x 64 pixels at twice their size: labels and limits are compared there, boxes kept here."""
    preprocessing = tiny.augmentation_config.preprocessing
    preprocessing.output_image_width, preprocessing.output_image_height = 192, 128
    preprocessing.enable_auto_resize = True
    tiny.evaluation_config.evaluation_box_config["square"].minimum_height = 57  # of 56
    result, found = collect(learnt, tiny)
    assert [item.ground_truth for item in result.classes] == [0, 6]
    assert found.truths_count[found.truths.classes == SQUARE].tolist() == [False] * 6
    assert found.truths_count[found.truths.classes == BAR].tolist() == [True] * 6
    assert len(found.images) == 6 and {(item.width, item.height) for item in found.images} == {(96, 64)}
    for number, location in enumerate(found.images):
        assert location.path == str(tiny_root / f"kitti/{location.name}.png") and location.record == -1
        lines = (
            (tiny_root / f"kitti/{location.name.replace('image_2', 'label_2')}.txt").read_text().splitlines()
        )
        labels = sorted([float(value) for value in line.split()[4:8]] for line in lines)
        own = sorted(found.truths.boxes[found.truths.images == number].tolist())
        np.testing.assert_allclose(own, labels, atol=1e-4)
        with Image.open(location.path) as image:
            assert (read_image(location) == np.asarray(image)).all()
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    assert (found.found.boxes <= limit).all() and (found.found.boxes >= 0).all()


def test_agreement_of_details_is_that_of_the_networks(collect, tiny, learn, learnt, learnt_onnx):
    _, exact = collect(learnt, tiny)
    _, same_network = collect(learnt_onnx, tiny)
    _, worse = collect(learn(tiny, noise=0.5), tiny)
    equal = agreement(exact.detections(), same_network.detections())
    assert equal.share == 1 and equal.pairs == 12
    predictor = load_model(learnt, "cpu", experiment=tiny)
    other = load_model(learn(tiny, noise=0.5), "cpu", experiment=tiny)
    direct = [
        [found for batch in predictions(one, tiny) for found in batch.in_original_pixels()]
        for one in (predictor, other)
    ]
    assert agreement(exact.detections(), worse.detections()) == agreement(*direct)


def test_images_in_records(collect, tiny, tiny_root, learnt, tmp_path, monkeypatch):
    export = spec.DatasetExportConfig(image_directory_path=str(tiny_root / "kitti"), embed_images=True)
    config = export.kitti_config
    config.root_directory_path, config.image_dir_name = str(tiny_root / "kitti"), "image_2"
    config.label_dir_name, config.image_extension = "label_2", ".png"
    config.partition_mode, config.num_partitions, config.val_split = "random", 2, 25
    convert(export, str(tmp_path / "records" / "tiny"))
    monkeypatch.chdir(tmp_path)
    tiny.dataset_config.data_sources[0].tfrecords_path = "records/tiny-fold-*"
    _, found = collect(learnt, tiny)
    assert sorted(item.record for item in found.images) == list(range(6))
    monkeypatch.chdir("/")
    for item in found.images:
        with Image.open(tiny_root / f"kitti/{item.name}.png") as image:
            assert (read_image(item) == np.asarray(image)).all()
    with pytest.raises(DataError, match="has no record 99 now"):
        read_image(found.images[0]._replace(record=99))


def test_an_image_that_is_gone_or_has_another_size(tiny_root, tmp_path):
    path = tiny_root / "kitti/image_2/000.png"
    with pytest.raises(DataError, match="is 96x64 pixels, its record says 95x64"):
        read_image(Location(str(path), -1, "000", 95, 64))
    with pytest.raises(DataError, match="none.png"):
        read_image(Location(str(tmp_path / "none.png"), -1, "none", 96, 64))


def test_of_thousands_of_detections_the_best_of_each_class_are_kept(collect, tiny, learnt, monkeypatch):
    monkeypatch.setattr("detectkit.evaluation.collect.MOST_DETECTIONS", 3)
    for name in ("square", "bar"):  # a detection for every cell
        config = tiny.postprocessing_config.target_class_config[name].clustering_config
        config.clustering_algorithm = spec.ClusteringConfig.NMS
        config.nms_iou_threshold, config.nms_confidence_threshold, config.coverage_threshold = 1.0, 0.0, 0.0
        config.minimum_bounding_box_height = 0
    result, found = collect(learnt, tiny)
    total = sum(item.detections for item in result.classes)
    assert total > 36 and found.left_out == total - 36
    assert len(found.found.scores) == 6 * 2 * 3
    for one in found.detections():
        assert torch.bincount(one.classes).tolist() == [3, 3]
        assert (one.scores.diff() <= 0).all()


def test_the_file_is_small(tmp_path):
    many = details([(image, LEFT, SQUARE, 0.5) for image in range(3) for _ in range(300)], [])
    save(tmp_path / "details.npz", many)
    assert (tmp_path / "details.npz").stat().st_size < 8000
    with np.load(tmp_path / "details.npz") as stored:
        assert json.loads(stored["header"].tobytes())["format"].startswith("detectkit.details")

"""Detection in a folder as a program uses it, without a command line, on a model that knows the tiny data by heart."""

import shutil

import pytest

from detectkit import spec
from detectkit.data import kitti
from detectkit.data.dataset import image_files
from detectkit.detect.folder import detect_images
from detectkit.detect.predictor import load_predictor
from detectkit.detect.write import ClassStyle, ResultFormat, result_folders, result_format
from detectkit.errors import DataError, SpecError, UsageError


@pytest.fixture
def images(tiny_root, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        shutil.copy(tiny_root / "kitti" / "image_2" / f"{number:03d}.png", folder)
    return folder


def test_images_are_detected_in_order_past_one_that_cannot_be_read(images, learnt, tiny_root, tmp_path):
    (images / "001.png").write_bytes(b"")
    predictor, message = load_predictor(None, learnt, "cpu")
    assert isinstance(message, spec.Experiment)  # the model's own
    form, skipped = result_format(message, predictor.class_names), []
    folders = result_folders(tmp_path / "out", form)
    results = list(
        detect_images(image_files(images), predictor, form, folders, batch_size=2, skipped=skipped)
    )
    assert [(item.name, item.detections) for item in results] == [
        ("000.png", 2),
        ("002.png", 2),
        ("003.png", 2),
    ]
    assert len(skipped) == 1 and "001.png: it is empty" in str(skipped[0])
    for item in results:
        label = item.name.replace(".png", ".txt")
        truth = {
            line.name: line.box for line in kitti.read_labels(tiny_root / "kitti" / "label_2" / label)[0]
        }
        for line in kitti.read_detections(tmp_path / "out" / "labels" / label):
            assert line.box == pytest.approx(truth[line.name], abs=3)


def test_only_what_the_format_asks_for_is_made(images, learnt, tmp_path):
    predictor, _ = load_predictor(None, learnt, "cpu")
    bars = {predictor.class_names.index("bar"): ClassStyle("rod", (0, 255, 0))}
    form = ResultFormat(bars, labels=False, images=False, line_width=1, is_scaled=False, kept=True)
    folders = result_folders(tmp_path / "out", form)
    results = detect_images(image_files(images), predictor, form, folders, batch_size=4, skipped=[])
    for item in results:
        assert item.detections == 1 and item.picture is not None and item.picture.size == (96, 64)
    assert not folders and not (tmp_path / "out").exists()


def test_two_images_of_one_label_file_are_refused_before_any_work(images, learnt, tmp_path):
    shutil.copy(images / "000.png", images / "000.jpg")
    predictor, message = load_predictor(None, learnt, "cpu")
    form = result_format(message, predictor.class_names)
    with pytest.raises(DataError, match="would both be labelled in 000.txt"):
        detect_images(image_files(images), predictor, form, {}, batch_size=1, skipped=[])


def test_an_inference_spec_gives_the_size_and_must_fit_the_model(learnt):
    asked = spec.Inference()
    with pytest.raises(UsageError, match="give the model"):
        load_predictor(asked, None, "cpu")
    config = asked.inferencer_config
    config.tlt_config.model = str(learnt)
    config.image_width, config.image_height, config.image_channels = 192, 128, 3
    predictor, message = load_predictor(asked, None, "cpu")
    pre = predictor.augmentation.preprocessing
    assert message is asked and (pre.output_image_width, pre.output_image_height) == (192, 128)
    assert pre.enable_auto_resize
    config.target_classes.append("bar")
    with pytest.raises(SpecError, match="target_classes: .* detects square, bar, in this order"):
        load_predictor(asked, None, "cpu")

"""Detections land in the pixels of the image they were found in, however the image was brought to the network."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import detectkit
from detectkit import spec
from detectkit.console import log
from detectkit.data.augment import Labels, Prepared
from detectkit.data.dataset import image_files
from detectkit.data.records import validation_frames
from detectkit.data.workers import loader
from detectkit.errors import DataError, ModelError
from detectkit.heads.grid import GridHead
from detectkit.model import checkpoint
from detectkit.model.detector import outline_of
from detectkit.predict import Predictor, load_model

OUTLINE = outline_of(spec.ModelConfig(), ["square", "bar"], 3)
BOX = (24, 16, 64, 48)


@pytest.fixture
def seeing(tiny):
    """A predictor whose network finds the one bright rectangle of a dark image, as a "square"."""

    def make():
        head = GridHead(tiny, OUTLINE)

        def forward(images):
            boxes, index = [], []
            for number, image in enumerate(images):
                rows, columns = torch.nonzero(image.mean(0) > 0.5, as_tuple=True)
                if len(rows):
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    index.append(number)
            prepared = Prepared(
                images=images,
                labels=labels(boxes, [0] * len(boxes), index),
                others=labels([], [], []),
                weights=torch.ones(len(images)),
                matrices=torch.eye(3).repeat(len(images), 1, 1),
            )
            targets = head.targets(prepared)
            return targets.coverage, targets.bbox.flatten(1, 2)

        return Predictor(forward, head, augmentation=tiny.augmentation_config)

    return make


def labels(boxes, classes, images):
    return Labels(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(classes, dtype=torch.int64),
        torch.tensor(images, dtype=torch.int64),
        ["label"] * len(boxes),
    )


def picture(size, box=BOX):
    """Black, with a white rectangle x1 y1 x2 y2."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    return pixels


def only_box(predictor, image):
    (found,) = predictor.predict([image])
    assert len(found.boxes) == 1 and found.classes.tolist() == [0]
    return found.boxes[0].tolist()


def test_image_of_the_networks_size(seeing):
    assert only_box(seeing(), picture((96, 64))) == pytest.approx(BOX, abs=1e-3)


def test_smaller_image_is_padded(seeing):
    assert only_box(seeing(), picture((70, 50))) == pytest.approx(BOX, abs=1e-3)


def test_larger_image_is_cut_where_the_network_ends(seeing, caplog):
    log.propagate = True
    image = picture((200, 100), (60, 30, 150, 60))
    caplog.clear()
    predictor = seeing()
    for _ in range(2):
        assert only_box(predictor, image) == pytest.approx((60, 30, 96, 60), abs=1e-3)
    assert caplog.messages == [
        "1 of 1 images are larger than the 96x64 pixels that the network sees (the image is 200x100): only their top left"
        " part was looked at; set augmentation_config.preprocessing.enable_auto_resize: true in the spec (-e), or cut the"
        " images in parts"
    ]


def test_auto_resize_scales_each_axis(seeing, tiny):
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    twice_three_times = picture((192, 192), (48, 48, 128, 144))
    assert only_box(seeing(), twice_three_times) == pytest.approx((48, 48, 128, 144), abs=0.01)
    assert only_box(seeing(), picture((48, 32), (10, 8, 30, 20))) == pytest.approx((10, 8, 30, 20), abs=0.01)


def test_scaled_then_cropped(seeing, tiny):
    pre = tiny.augmentation_config.preprocessing
    pre.scale_width, pre.scale_height = 0.5, 0.5
    pre.crop_left, pre.crop_top, pre.crop_right, pre.crop_bottom = 10, 20, 106, 84
    # Original x = (network x + 10) * 2, y = (network y + 20) * 2.
    image = picture((400, 300), (60, 80, 140, 160))
    assert only_box(seeing(), image) == pytest.approx((60, 80, 140, 160), abs=0.01)


def test_a_detection_is_clipped_to_its_image_and_dropped_in_the_padding(tiny):
    head = GridHead(tiny, OUTLINE)
    boxes = [[30.0, 20.0, 62.0, 60.0], [60.0, 8.0, 92.0, 56.0]]

    def forward(images):
        prepared = Prepared(
            images,
            labels(boxes, [0, 1], [0, 0]),
            labels([], [], []),
            torch.ones(1),
            torch.eye(3)[None],
        )
        targets = head.targets(prepared)
        return targets.coverage, targets.bbox.flatten(1, 2)

    predictor = Predictor(forward, head, augmentation=tiny.augmentation_config)
    (found,) = predictor.predict([np.zeros((40, 50, 3), np.uint8)])
    assert found.classes.tolist() == [0]
    assert found.boxes[0].tolist() == pytest.approx((30, 20, 50, 40), abs=1e-3)


def test_every_image_comes_once_in_order_with_a_short_last_batch(tiny, learnt):
    predictor = load_model(learnt, "cpu")
    validation = validation_frames(tiny.dataset_config, predictor.class_names)
    batches = loader(validation, tiny.augmentation_config, batch_size=4, order=range(6), workers=0)
    predicted = list(predictor.batches(batches))
    assert [len(item.detections) for item in predicted] == [4, 2]
    paths = [path for item in predicted for path in item.batch.image_paths]
    assert paths == [frame.path for frame in validation.frames] and len(set(paths)) == 6
    assert all(seconds > 0 for item in predicted for seconds in item.latency)


def test_files_pictures_and_arrays_give_the_same(learnt, tiny_root):
    path = tiny_root / "kitti" / "image_2" / "000.png"
    with Image.open(path) as image:
        image.load()
    model = detectkit.load_model(learnt, "cpu")
    same = model.predict([path, str(path), image, np.asarray(image), image.convert("RGBA")])
    assert len(same) == 5 and same[0].boxes.shape == (2, 4)
    for found in same[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, same[0]))


def test_the_python_way_finds_what_the_label_says(learnt, tiny_root, tiny, write_spec):
    experiment = detectkit.load_spec(write_spec(tiny))
    assert spec.dumps(experiment) == spec.dumps(tiny)
    model = detectkit.load_model(learnt)
    (found,) = model.predict([tiny_root / "kitti" / "image_2" / "007.png"])
    for line in (tiny_root / "kitti" / "label_2" / "007.txt").read_text().splitlines():
        name, *numbers = line.split()
        box = found.boxes[found.classes == model.class_names.index(name)]
        assert box.shape == (1, 4)
        assert box[0].tolist() == pytest.approx([float(value) for value in numbers[3:7]], abs=3)
    with pytest.raises(AttributeError, match="load_modle"):
        detectkit.load_modle


def test_one_image_is_not_a_list(learnt, tiny_root):
    model = load_model(learnt, "cpu")
    for image in ("a.png", tiny_root / "a.png", picture((96, 64)), Image.new("RGB", (96, 64))):
        with pytest.raises(TypeError, match=r"give \[image\]"):
            model.predict(image)
    assert model.predict([]) == []


def test_unusable_images(learnt, tmp_path):
    (tmp_path / "no.png").write_bytes(b"")
    model = load_model(learnt, "cpu")
    for image, text in (
        (tmp_path / "no.png", "cannot read the image"),
        (tmp_path / "gone.png", "does not exist"),
        (np.zeros((4, 4, 3), np.float32), "must be uint8"),
    ):
        with pytest.raises(DataError, match=text):
            model.predict([image])


def test_grey_model(tiny, tiny_root, learn):
    tiny.augmentation_config.preprocessing.output_image_channel = 1
    model = load_model(learn(tiny), "cpu")
    path = tiny_root / "kitti" / "image_2" / "003.png"
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    first, *rest = model.predict([path, grey, grey[:, :, None]])
    assert sorted(first.classes.tolist()) == [0, 1]
    for found in rest:
        torch.testing.assert_close(found.boxes, first.boxes)


def test_a_model_for_something_else(tiny, learnt):
    tiny.augmentation_config.preprocessing.output_image_channel = 1
    with pytest.raises(ModelError, match="takes images of 3 channels"):
        load_model(learnt, "cpu", experiment=tiny)
    names = [target.name for target in tiny.cost_function_config.target_classes]
    for target, name in zip(tiny.cost_function_config.target_classes, reversed(names)):
        target.name = name
    with pytest.raises(ModelError, match="detects square, bar; the spec is for bar, square"):
        load_model(learnt, "cpu", experiment=tiny)


def test_a_large_image_is_reduced_while_it_is_decoded(seeing, tiny, tmp_path):
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    Image.fromarray(picture((96 * 8, 64 * 8), (128, 128, 512, 384))).save(tmp_path / "large.png")
    predictor = seeing()
    assert only_box(predictor, tmp_path / "large.png") == pytest.approx((128, 128, 512, 384), abs=0.1)
    (batch,) = loader(image_files(tmp_path), tiny.augmentation_config, batch_size=1, order=[0], workers=0)
    assert batch.images.shape == (1, 3, 64, 96)


def test_a_photograph_is_turned_and_its_boxes_are_too(seeing, tmp_path, caplog):
    """A file and the picture that Pillow opens from it are the same; an array is what it is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(picture((80, 60)))
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.png", exif=exif)
    caplog.clear()
    predictor = seeing()
    assert only_box(predictor, tmp_path / "a.png") == pytest.approx(BOX, abs=1e-3)
    with Image.open(tmp_path / "a.png") as image:
        assert only_box(predictor, image) == pytest.approx(BOX, abs=1e-3)
        assert image.size == (60, 80)
        assert only_box(predictor, ImageOps.exif_transpose(image)) == pytest.approx(BOX, abs=1e-3)
    assert only_box(predictor, np.asarray(stored)) != pytest.approx(BOX, abs=1)


def test_arrays_of_other_values_are_refused_with_the_way_out(seeing):
    for dtype in (np.float32, np.float64, np.uint16, np.int32, bool):
        with pytest.raises(
            DataError, match=f"uint8 .* values of 0 to 255, not {np.dtype(dtype)} .*: scale it"
        ):
            seeing().predict([picture((80, 60)).astype(dtype)])
    for shape in ((60,), (60, 80, 2), (1, 60, 80, 3), (0, 80, 3)):
        with pytest.raises(DataError, match=r"must be uint8 \[h, w, 3\], not uint8"):
            seeing().predict([np.zeros(shape, np.uint8)])


def test_a_picture_of_more_than_eight_bits(seeing, tmp_path):
    wide = Image.fromarray(picture((80, 60))[:, :, 0].astype(np.uint16) * 16)
    assert only_box(seeing(), wide) == pytest.approx(BOX, abs=1e-3)


@pytest.mark.parametrize("section", ["augmentation_config", "cost_function_config", "postprocessing_config"])
def test_a_model_whose_spec_lacks_a_section_runs_by_another_spec(learnt, tmp_path, section):
    model = checkpoint.load(learnt)
    whole = spec.Experiment()
    whole.CopyFrom(model.spec)
    model.spec.ClearField(section)
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, model.detector, spec.dumps(model.spec), model.class_names)
    with pytest.raises(ModelError, match=f"m.safetensors: the spec in it lacks {section}: give the spec"):
        detectkit.load_model(path, "cpu")
    assert detectkit.load_model(path, "cpu", experiment=whole).class_names == model.class_names

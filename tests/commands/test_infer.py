"""`detectkit infer` with a training spec and with TLT's inference spec, on a model that knows the tiny data by heart."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectkit import spec
from detectkit.cli import main
from detectkit.data import kitti

PICTURES = "offline-run-*/files/media/images/images_annotated_*.png"  # of wandb
INFERENCE = """
inferencer_config {
  tlt_config { model: "MODEL" }
  batch_size: 4 image_width: 96 image_height: 64 image_channels: 3
  target_classes: "square" target_classes: "bar"
}
bbox_handler_config {
  kitti_dump: true disable_overlay: false overlay_linewidth: 2
  classwise_bbox_handler_config { key: "bar" value {
    confidence_model: "aggregate_cov" output_map: "rod" bbox_color { R: 0 G: 255 B: 0 }
    clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 }
  } }
  classwise_bbox_handler_config { key: "default" value {
    bbox_color { R: 255 G: 255 B: 0 }
    clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 }
  } }
}
"""


@pytest.fixture
def images(tiny_root, tmp_path):
    """A folder with five of the pictures and an empty one."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        shutil.copy(tiny_root / "kitti" / "image_2" / f"{number:03d}.png", folder)
    return folder


@pytest.fixture
def inference(learnt):
    message = spec.loads(INFERENCE.replace("MODEL", str(learnt)))
    assert isinstance(message, spec.Inference)
    return message


@pytest.fixture
def infer(images, write_spec, tmp_path, capsys):
    """Runs `infer` with a spec message on the images; gives exit code, stdout and stderr."""

    def call(message, *arguments, source=images):
        path = write_spec(message)
        code = main(
            [
                "infer",
                *map(str, ("-e", path, "-i", source, "-r", tmp_path / "out", *arguments)),
                "--gpus",
                "0",
            ]
        )
        return code, *capsys.readouterr()

    return call


def found(tmp_path, stem="000"):
    return kitti.read_detections(tmp_path / "out" / "labels" / f"{stem}.txt")


def truth(tiny_root, stem="000"):
    lines, _ = kitti.read_labels(tiny_root / "kitti" / "label_2" / f"{stem}.txt")
    return {line.name: line.box for line in lines}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_with_the_training_spec(infer, tiny, learnt, tiny_root, tmp_path):
    code, out, _ = infer(tiny, "-m", learnt)
    assert code == 0 and "10 detections in 5 images" in out
    assert names(tmp_path / "out" / "labels") == [f"{number:03d}.txt" for number in range(5)]
    assert names(tmp_path / "out" / "images_annotated") == [f"{number:03d}.png" for number in range(5)]
    for number in range(5):
        wanted = truth(tiny_root, f"{number:03d}")
        for line in found(tmp_path, f"{number:03d}"):
            assert line.box == pytest.approx(wanted.pop(line.name), abs=3)
        assert wanted == {}
    text = (tmp_path / "out" / "labels" / "000.txt").read_text()
    assert all(len(line.split(" ")) == 16 for line in text.splitlines())
    code, _, error = infer(tiny)
    assert code == 2 and "-m MODEL" in error


def test_an_image_where_nothing_is_found_has_an_empty_file(infer, tiny, learnt, images, tmp_path):
    for item in tiny.postprocessing_config.target_class_config.values():
        item.clustering_config.dbscan_confidence_threshold = 1000
    assert infer(tiny, "-m", learnt)[0] == 0
    assert [path.read_text() for path in (tmp_path / "out" / "labels").iterdir()] == [""] * 5


@pytest.mark.spec_field(
    "ClasswiseBboxHandlerConfig.output_map",
    "ClasswiseBboxHandlerConfig.BboxColor.R",
    "ClasswiseBboxHandlerConfig.BboxColor.G",
    "ClasswiseBboxHandlerConfig.BboxColor.B",
)
def test_with_an_inference_spec(infer, inference, tiny_root, tmp_path):
    code, out, _ = infer(inference)
    assert code == 0 and "10 detections in 5 images" in out
    wanted = truth(tiny_root)
    boxes = {line.name: line.box for line in found(tmp_path)}
    assert set(boxes) == {"rod", "square"}  # output_map, and the class's own name for "default"
    assert boxes["rod"] == pytest.approx(wanted["bar"], abs=3)
    with Image.open(tmp_path / "out" / "images_annotated" / "000.png") as image:
        pixels = np.asarray(image)
    for name, color in (("rod", (0, 255, 0)), ("square", (255, 255, 0))):
        _, _, right, bottom = boxes[name]
        # Two pixels of the outline's lower right corner, then none.
        row, column = int(np.ceil(bottom)) - 1, int(np.ceil(right)) - 1
        assert [tuple(pixels[row - step, column - step]) == color for step in range(3)] == [True, True, False]


@pytest.mark.spec_field("BboxHandlerConfig.overlay_linewidth")
def test_line_width(infer, inference, tmp_path):
    inference.bbox_handler_config.overlay_linewidth = 4
    assert infer(inference)[0] == 0
    (square,) = [line for line in found(tmp_path) if line.name == "square"]
    row, column = int(np.ceil(square.box[3])) - 1, int(np.ceil(square.box[2])) - 1
    with Image.open(tmp_path / "out" / "images_annotated" / "000.png") as image:
        hits = [image.getpixel((column - step, row - step)) == (255, 255, 0) for step in range(5)]
    assert hits == [True] * 4 + [False]


@pytest.mark.spec_field("BboxHandlerConfig.kitti_dump", "BboxHandlerConfig.disable_overlay")
def test_what_is_written_is_the_specs(infer, inference, tmp_path):
    handler = inference.bbox_handler_config
    handler.kitti_dump = False
    code, out, _ = infer(inference)
    assert code == 0 and names(tmp_path / "out") == ["images_annotated"]
    handler.disable_overlay = True
    shutil.rmtree(tmp_path / "out")
    code, out, _ = infer(inference)
    assert code == 0 and "nothing: the spec turns both outputs off" in out
    assert not (tmp_path / "out").exists()
    handler.kitti_dump = True
    assert infer(inference)[0] == 0 and names(tmp_path / "out") == ["labels"]


@pytest.mark.spec_field("BboxHandlerConfig.postproc_classes")
def test_only_the_chosen_classes(infer, inference, tmp_path):
    inference.bbox_handler_config.postproc_classes.append("bar")
    assert infer(inference)[0] == 0
    assert [line.name for line in found(tmp_path)] == ["rod"]
    inference.inferencer_config.ClearField("target_classes")
    del inference.bbox_handler_config.classwise_bbox_handler_config["default"]
    assert infer(inference)[0] == 0  # nothing is said about squares, and none is asked for
    inference.bbox_handler_config.postproc_classes.append("circle")
    code, _, error = infer(inference)
    assert code == 3 and "does not detect circle" in error


def test_no_entry_for_a_class(infer, inference):
    inference.inferencer_config.ClearField("target_classes")
    del inference.bbox_handler_config.classwise_bbox_handler_config["default"]
    code, _, error = infer(inference)
    assert code == 3 and 'no entry "square" and no "default"' in error


@pytest.mark.spec_field("ClasswiseBboxHandlerConfig.confidence_threshold")
def test_confidence_threshold(infer, inference, tmp_path):
    assert infer(inference)[0] == 0
    scores = {line.name: line.score for line in found(tmp_path)}
    entry = inference.bbox_handler_config.classwise_bbox_handler_config["bar"]
    for change, expected in ((-0.01, ["rod", "square"]), (0.01, ["square"])):
        entry.confidence_threshold = scores["rod"] + change
        assert infer(inference)[0] == 0
        assert sorted(line.name for line in found(tmp_path)) == expected


@pytest.mark.spec_field("InferencerConfig.target_classes")
def test_target_classes_must_be_the_models(infer, inference):
    inference.inferencer_config.target_classes[:] = ["bar", "square"]
    code, _, error = infer(inference)
    assert code == 3 and "detects square, bar, in this order" in error


@pytest.mark.spec_field("InferencerConfig.image_channels")
def test_size_and_channels_must_fit_the_model(infer, inference):
    inference.inferencer_config.image_width = 100
    code, _, error = infer(inference)
    assert code == 3 and "multiples of the network's stride 16, got 100x64" in error
    inference.inferencer_config.image_width = 96
    inference.inferencer_config.image_channels = 1
    code, _, error = infer(inference)
    assert code == 3 and "image_channels" in error and "takes 3" in error


@pytest.mark.spec_field("InferencerConfig.image_width", "InferencerConfig.image_height")
def test_images_are_resized_to_the_inference_specs_size(infer, inference, images, tiny_root, tmp_path):
    with Image.open(images / "000.png") as image:
        image.resize((192, 192), Image.Resampling.NEAREST).save(images / "000.png")
    assert infer(inference)[0] == 0
    x1, y1, x2, y2 = truth(tiny_root)["bar"]
    (rod,) = [line for line in found(tmp_path) if line.name == "rod"]
    assert rod.box == pytest.approx((2 * x1, 3 * y1, 2 * x2, 3 * y2), abs=12)
    # A network input of another size sees other pixels: the boxes are no longer those it learnt.
    before = {path.name: path.read_text() for path in (tmp_path / "out" / "labels").iterdir()}
    for field in ("image_width", "image_height"):
        setattr(inference.inferencer_config, field, 192)
        assert infer(inference)[0] == 0
        after = {path.name: path.read_text() for path in (tmp_path / "out" / "labels").iterdir()}
        assert after != before
        before = after


def test_the_confidence_is_the_sum_of_the_coverages_or_their_mean(infer, inference, tmp_path):
    assert infer(inference)[0] == 0
    summed = {line.name: line.score for line in found(tmp_path)}
    entry = inference.bbox_handler_config.classwise_bbox_handler_config["bar"]
    entry.confidence_model = "mean_cov"
    assert infer(inference)[0] == 0
    mean = {line.name: line.score for line in found(tmp_path)}
    assert mean["square"] == summed["square"]
    cells = summed["rod"] / mean["rod"]  # of the cluster
    assert 0 < mean["rod"] <= 1 and cells >= 2 and cells == pytest.approx(round(cells), rel=0.02)


def test_annotated_images_go_to_wandb_written_or_not(infer, inference, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    inference.bbox_handler_config.disable_overlay = True
    inference.bbox_handler_config.wandb_config.enabled = True
    code, out, error = infer(inference)
    assert code == 0 and names(tmp_path / "out") == ["labels", "wandb", "wandb_id.txt"], error
    files = tmp_path / "out" / "wandb"
    deadline = time.monotonic() + 60  # wandb's own process writes on after the run is finished
    while len(pictures := list(files.glob(PICTURES))) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pictures) == 5
    with Image.open(min(pictures, key=lambda path: int(path.stem.split("_")[2]))) as image:
        assert (np.asarray(image.convert("RGB")) == (0, 255, 0)).all(axis=2).any()  # the colour of rods


def test_a_published_tlt_spec(infer, learnt, tiny_root, tmp_path):
    """As the tutorial has it: other classes, a path of its container; `-m` and the model's own names make it run."""
    text = (Path(__file__).parents[1] / "spec" / "kitti_infer.txt").read_text()
    message = spec.loads(text)
    code, _, error = infer(message)
    assert code == 5 and "resnet18_detector_pruned.tlt" in error
    code, _, error = infer(message, "-m", learnt)
    assert code == 3 and "detects square, bar" in error
    text = text.replace('target_classes: "car"', 'target_classes: "square"').replace('"cyclist"', '"bar"')
    text = text.replace('target_classes: "pedestrian"', "").replace("1248", "96").replace("384", "64")
    assert infer(spec.loads(text), "-m", learnt)[0] == 0
    assert {line.name for line in found(tmp_path)} == {"square", "bar"}


@pytest.mark.spec_field("TLTConfig.model")
def test_m_overrides_the_model_of_the_spec(infer, inference, learnt):
    inference.inferencer_config.tlt_config.model = "/nowhere/model.safetensors"
    code, _, error = infer(inference)
    assert code == 5 and "/nowhere/model.safetensors" in error
    assert infer(inference, "-m", learnt)[0] == 0
    inference.inferencer_config.tlt_config.model = ""
    assert infer(inference, "-m", learnt)[0] == 0
    code, _, error = infer(inference)
    assert code == 2 and "tlt_config { model: … } or tensorrt_config { trt_engine: … }" in error


@pytest.mark.spec_field("TensorRTConfig.trt_engine")
def test_the_engine_of_the_spec(infer, inference, learnt, tmp_path):
    inference.inferencer_config.tensorrt_config.trt_engine = str(tmp_path / "none.engine")
    code, _, error = infer(inference)
    assert code == 5 and f"cannot read {tmp_path}/none.engine: No such file" in error
    (tmp_path / "a.engine").write_bytes(b"no engine")
    inference.inferencer_config.tensorrt_config.trt_engine = str(tmp_path / "a.engine")
    code, _, error = infer(inference)
    assert code == 5 and f"{tmp_path}/a.engine is a TensorRT engine, which runs on an NVIDIA GPU" in error
    assert infer(inference, "-m", learnt)[0] == 0


def test_an_onnx_model_detects_as_the_model_does(infer, inference, tiny, learnt, learnt_onnx, tmp_path):
    for message in (inference, tiny):
        lines = []
        for model in (learnt, learnt_onnx):
            assert infer(message, "-m", model)[0] == 0
            lines.append([line for number in range(5) for line in found(tmp_path, f"{number:03d}")])
        assert len(lines[0]) == 10
        for expected, line in zip(*lines, strict=True):
            assert line.name == expected.name
            assert line.box == pytest.approx(expected.box, abs=0.02)


def test_without_a_spec_it_is_the_one_in_the_model(tiny, write_spec, images, learnt_onnx, tmp_path, capsys):
    written = []
    for number, chosen in enumerate((["-e", write_spec(tiny)], [])):
        options = [*chosen, "-m", learnt_onnx, "-i", images, "-r", tmp_path / str(number), "--gpus", "0"]
        assert main(["infer", *map(str, options)]) == 0
        files = sorted((tmp_path / str(number)).rglob("*.txt"))
        written.append([(file.name, file.read_text()) for file in files])
    assert written[0] == written[1] and len(written[0]) == 5
    assert main(["infer", "-i", str(images), "-r", str(tmp_path)]) == 2
    assert "give the model: -m MODEL" in capsys.readouterr().err


def test_an_onnx_model_in_the_spec_is_bound_to_its_size(infer, inference, learnt_onnx):
    inference.inferencer_config.tlt_config.model = str(learnt_onnx)
    assert infer(inference)[0] == 0
    inference.inferencer_config.image_width = 128
    code, _, error = infer(inference)
    assert code == 5 and f"{learnt_onnx} is bound to images of 96x64; the spec's are 128x64" in error


def test_two_images_for_one_label_file(infer, tiny, learnt, images, tmp_path):
    shutil.copy(images / "000.png", images / "000.PNG")
    code, _, error = infer(tiny, "-m", learnt)
    assert code == 4 and "000.PNG" in error and "000.png" in error and "rename" in error
    assert not (tmp_path / "out").exists()


def test_sub_folders_keep_their_names(infer, tiny, learnt, images, tiny_root, tmp_path):
    for name in ("cam0/000.png", "cam1/000.tif", "cam1/deep/000.webp"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(images / "000.png") as image:
            image.save(images / name, **({"lossless": True} if name.endswith("webp") else {}))
    (images / "._000.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves them on other disks
    (images / ".thumbnails").mkdir()
    shutil.copy(images / "001.png", images / ".thumbnails")
    for name in ("photo.HEIC", "cam0/notes.txt"):
        (images / name).write_bytes(b"x")
    code, out, error = infer(tiny, "-m", learnt)
    assert code == 0 and "16 detections in 8 images" in out
    (line,) = [line for line in error.splitlines() if "passed over" in line]
    assert {part.strip() for part in line.split("passed over")[1].split(",")} == {
        "1 hidden",
        "1 .txt",
        "1 .HEIC",
    }
    assert "3 of 8 images are in sub-folders" in error
    wanted = {line.name: pytest.approx(line.box, abs=0.002) for line in found(tmp_path)}
    for stem in ("cam0/000", "cam1/000", "cam1/deep/000"):
        assert {line.name: line.box for line in found(tmp_path, stem)} == wanted
    for name in ("cam0/000.png", "cam1/000.tif", "cam1/deep/000.webp"):
        with Image.open(tmp_path / "out" / "images_annotated" / name) as image:
            assert image.size == (96, 64)


def test_its_own_pictures_are_no_images_to_look_at(infer, tiny, learnt, images, tmp_path):
    """Results may lie in the folder of the images."""
    for _ in range(2):
        code, out, _ = infer(tiny, "-m", learnt, source=images)
        assert code == 0 and "10 detections in 5 images" in out
        arguments = ["-e", tmp_path / "spec.txt", "-m", learnt, "-i", images, "-r", images, "--gpus", "0"]
        (tmp_path / "spec.txt").write_text(spec.dumps(tiny))
        assert main(["infer", *map(str, arguments)]) == 0
    assert len(names(images / "labels")) == 5


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photographs_are_turned_as_viewers_show_them(
    infer, tiny, learnt, images, tiny_root, tmp_path, orientation
):
    """The stored pixels lie otherwise; boxes and annotated images are as a viewer shows the photograph."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in list(images.glob("*.png"))[1:]:
        path.unlink()
    (path,) = images.iterdir()
    with Image.open(path) as image:
        upright = image.convert("RGB")
    upright.transpose(back[orientation]).save(path, exif=exif)
    code, out, _ = infer(tiny, "-m", learnt)
    assert code == 0 and "1 images are turned by their EXIF orientation, as viewers show them" in out
    wanted = truth(tiny_root, path.stem)
    assert len(wanted) == 2
    for line in found(tmp_path, path.stem):
        assert line.box == pytest.approx(wanted.pop(line.name), abs=3)
    assert wanted == {}
    with Image.open(tmp_path / "out" / "images_annotated" / path.name) as image:
        assert image.size == (96, 64) and not image.getexif()
        same = (np.asarray(image) == np.asarray(upright)).all(axis=2)
    assert same.mean() > 0.7  # all but the boxes


def test_larger_images_than_the_network_sees(infer, tiny, learnt, images):
    for name in ("001.png", "003.png"):
        with Image.open(images / name) as image:
            image.resize((200, 100)).save(images / name)
    code, _, error = infer(tiny, "-m", learnt)
    assert code == 0
    assert (
        "WARNING: 2 of 5 images are larger than the 96x64 pixels that the network sees"
        f" ({images}/001.png is 200x100): only their top left part was looked at; set" in error
    )
    assert error.count("larger than") == 1 and "enable_auto_resize: true" in error
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    assert "larger than" not in infer(tiny, "-m", learnt)[2]
    tiny.augmentation_config.preprocessing.enable_auto_resize = False
    tiny.augmentation_config.preprocessing.scale_width = (
        tiny.augmentation_config.preprocessing.scale_height
    ) = 0.48
    assert "larger than" not in infer(tiny, "-m", learnt)[2]


def test_values_of_more_than_eight_bits(infer, tiny, learnt, images, tiny_root, tmp_path):
    """A camera's 12 bits in 16, whole numbers of 32 bits, fractions: all show what 8 bits show."""
    with Image.open(images / "000.png") as image:
        grey = np.asarray(image.convert("L"))
    for path in images.iterdir():
        path.unlink()
    Image.fromarray(grey).save(images / "eight.png")
    Image.fromarray((grey * np.uint16(16) + np.uint16(15) * (grey > 0)).astype(np.uint16)).save(
        images / "twelve.png"
    )
    Image.fromarray(grey.astype(np.int32) * 257).save(images / "whole.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(images / "fraction.tif")
    Image.fromarray(grey.astype(np.float32)).save(images / "float.tif")
    code, _, error = infer(tiny, "-m", learnt)
    assert code == 0 and error.count("it is brought to 8 bits accordingly") == 1
    wanted = [(line.name, pytest.approx(line.box, abs=0.5)) for line in found(tmp_path, "eight")]
    assert wanted
    for name in ("twelve", "whole", "fraction", "float"):
        assert [(line.name, line.box) for line in found(tmp_path, name)] == wanted, name


def test_pictures_of_large_images_are_reduced(infer, tiny, learnt, images, tmp_path, monkeypatch):
    from detectkit.data import images as image_files

    monkeypatch.setattr(image_files, "LARGE", 96 * 64)
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    assert infer(tiny, "-m", learnt, source=images / "000.png")[0] == 0
    small = {line.name: line.box for line in found(tmp_path)}
    with Image.open(images / "000.png") as image:
        image.resize((192, 128), Image.Resampling.NEAREST).save(images / "000.png")
    code, out, _ = infer(tiny, "-m", learnt, source=images / "000.png")
    assert code == 0 and "1 annotated pictures are reduced: the images have more than 6,144 pixels" in out
    assert {line.name: tuple(side / 2 for side in line.box) for line in found(tmp_path)} == {
        name: pytest.approx(box, abs=0.5) for name, box in small.items()
    }
    with Image.open(tmp_path / "out" / "images_annotated" / "000.png") as image:
        assert image.size == (96, 64)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_unreadable_images_are_skipped_and_named(infer, tiny, learnt, images, tmp_path, batch_size):
    tiny.training_config.batch_size_per_gpu = batch_size
    (images / "001.png").write_bytes(b"")
    content = (images / "004.png").read_bytes()
    (images / "004.png").write_bytes(content[: len(content) // 2])
    code, out, error = infer(tiny, "-m", learnt)
    assert code == 4 and "6 detections in 3 images" in out
    for folder in ("labels", "images_annotated"):
        assert [name[:3] for name in names(tmp_path / "out" / folder)] == ["000", "002", "003"]
    first, second, last = error.splitlines()
    assert first.startswith("WARNING: skipped: cannot read the image") and "001.png: it is empty" in first
    assert second.startswith("WARNING: skipped: cannot read the image") and "004.png" in second
    assert last.startswith("error: 2 of 5 images were skipped; the first: cannot read the image")
    assert "001.png" in last


def test_one_image(infer, tiny, learnt, images, tmp_path):
    code, out, _ = infer(tiny, "-m", learnt, source=images / "002.png")
    assert code == 0 and "2 detections in 1 images" in out
    assert names(tmp_path / "out" / "labels") == ["002.txt"]


def test_a_picture_whose_name_is_of_no_known_kind(infer, tiny, learnt, images, tmp_path):
    (images / "000.png").rename(images / "camera")
    assert infer(tiny, "-m", learnt, source=images / "camera")[0] == 0
    assert names(tmp_path / "out" / "labels") == ["camera.txt"]
    assert names(tmp_path / "out" / "images_annotated") == ["camera.png"]


@pytest.mark.spec_field("InferencerConfig.batch_size")
def test_batch_size(infer, inference, tmp_path):
    assert infer(inference)[0] == 0
    whole = {path.name: path.read_text() for path in (tmp_path / "out" / "labels").iterdir()}
    assert infer(inference, "-b", "1")[0] == 0
    for name in whole:
        single = found(tmp_path, name.removesuffix(".txt"))
        assert len(single) == len(whole[name].splitlines())
    code, _, error = infer(inference, "-b", "0")
    assert code == 2 and "-b must be at least 1" in error


def test_a_conversion_spec_is_refused(tmp_path, images, capsys):
    path = tmp_path / "convert.txt"
    path.write_text(
        f'kitti_config {{ root_directory_path: "{tmp_path}" image_dir_name: "images" label_dir_name: "l" '
        'image_extension: ".png" partition_mode: "random" num_partitions: 2 val_split: 20 num_shards: 1 }\n'
    )
    assert main(["infer", "-e", str(path), "-i", str(images), "-r", str(tmp_path / "out")]) == 3
    assert "conversion spec" in capsys.readouterr().err

"""`detectkit calibrate` as a person runs it, on a ResNet10 that knows the tiny pictures; files are read by hand."""

import json
import struct

import h5py
import numpy as np
import onnx
import pytest
import torch

from detectkit import spec
from detectkit.cli import main
from detectkit.commands import calibrate as command
from detectkit.data.inputs import spread
from detectkit.deploy import calibrate as measuring
from detectkit.deploy.onnx import to_model
from detectkit.deploy.scales import METHODS, Range, ScaleTable, check_table, load_table, save_table
from detectkit.model import checkpoint

USAGE, SPEC, DATA, MODEL, OUTPUT = 2, 3, 4, 5, 6
FILES = ["calibration.cache", "layers.json", "scales.json", "status.jsonl"]


@pytest.fixture
def run(capsys):
    """Runs `calibrate` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["calibrate", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def quick(run, monkeypatch):
    """As `run`, but the images are only counted: only the table is written, with ranges that are not theirs."""

    def count(detector, batches, *, method):
        return ScaleTable(
            {"images": Range(1.0, 0.0, 1.0, 40.0)}, {"w": [1.0]}, method, sum(map(len, batches))
        )

    def write(folder, job, scales, tensorrt):
        save_table(folder / "scales.json", scales)
        return []

    monkeypatch.setattr(measuring, "calibrate", count)
    monkeypatch.setattr(command, "_write", write)
    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(error):
    """The one error of a command that failed."""
    assert "Traceback" not in error and error.count("error: ") == 1
    return error[error.index("error: ") + len("error: ") :]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def scales_of(path):
    """The scales of a cache, as the format's users read them."""
    lines = path.read_text().splitlines()[1:]
    return {
        name: struct.unpack("!f", bytes.fromhex(h))[0] for name, h in (line.split(": ") for line in lines)
    }


def test_what_is_written_and_what_is_said(run, learnt, write_spec, tiny, place):
    path = write_spec(tiny)
    code, out, error = run("-e", path, "-m", learnt, "-o", "out", "--batches", 4)
    assert code == 0 and names(place / "out") == FILES
    table, detector = load_table(place / "out/scales.json"), checkpoint.load(learnt).detector
    assert (table.method, table.images) == ("mse", 16)
    model = to_model(detector, height=64, width=96)
    assert check_table(table, model, "scales.json") is None

    lines = (place / "out/calibration.cache").read_text().splitlines()
    scales = scales_of(place / "out/calibration.cache")
    assert lines[0] == "TRT-100300-EntropyCalibration2" and len(lines) == len(scales) + 1
    for name, item in table.tensors.items():
        assert scales[name] == np.float32(item.amax / 127)
    # What TensorRT fuses has the range of what comes out.
    assert scales["backbone_conv1"] == scales["backbone_relu"]
    values = {item.name for item in model.graph.input} | {n for node in model.graph.node for n in node.output}
    assert set(scales) <= values

    layers = json.loads((place / "out/layers.json").read_text())["layers"]
    ratios = [layer["sqnr"] for layer in layers]
    weights = {item.name for item in model.graph.initializer}
    assert ratios == sorted(ratios) and {f"{layer['name']}.weight" for layer in layers} < weights
    assert {layer["input"] for layer in layers} < values
    printed = [line.split()[0] for line in out.splitlines() if line.startswith("backbone.")]
    assert printed == [layer["name"] for layer in layers]
    assert "16 images, mse: " in out and "WARNING: 16 images are few" in error
    end = [json.loads(line) for line in (place / "out/status.jsonl").read_text().splitlines()]
    assert [line["status"] for line in end] == ["STARTED", "SUCCESS"]
    assert end[1]["kpi"] == {"images": 16, "lowest_sqnr": ratios[0]}
    assert out.endswith(
        "wrote out/scales.json, out/calibration.cache (TensorRT 10.3.0) and out/layers.json\n"
        f"next: detectkit export -e {path} -m {learnt} -o out/model_int8.onnx --data_type int8"
        " --calibration out/scales.json\n"
    )


def test_the_ranges_are_those_of_the_images_without_augmentation(run, learnt, tiny, write_spec, place):
    """All 18 training pictures, by minmax: compared with the network run on them in one batch."""
    from detectkit.data.inputs import inputs
    from detectkit.data.records import training_frames

    assert (
        run("-e", write_spec(tiny), "-m", learnt, "-o", ".", "--method", "minmax", "--batch_size", 6)[0] == 0
    )
    table = load_table("scales.json")
    assert (table.method, table.images) == ("minmax", 18)
    frames = training_frames(tiny.dataset_config, spec.class_names(tiny))
    (images,) = inputs(frames, tiny, order=range(18), batch_size=18)
    detector = checkpoint.load(learnt).detector
    with torch.inference_mode():
        coverage, boxes = detector(images)
    for name, values in (
        ("images", images),
        ("output_cov/Sigmoid", coverage),
        ("output_bbox/BiasAdd", boxes),
    ):
        found = table.tensors[name]
        assert (found.low, found.high) == pytest.approx(
            (values.min().item(), values.max().item()), rel=1e-3, abs=1e-5
        )
        assert found.amax == (max(-found.low, found.high) if name == "output_bbox/BiasAdd" else 1)
    assert (place / "calibration.cache").read_text().startswith("TRT-100300-MinMaxCalibration\n")


def test_the_model_has_its_spec(run, learnt, place):
    code, out, _ = run("-m", learnt, "-o", ".", "--trt", "8.6.1", "--batches", 1, "--method", "mse")
    assert code == 0 and f"next: detectkit export -m {learnt} -o model_int8.onnx" in out
    assert (place / "calibration.cache").read_text().startswith("TRT-8601-EntropyCalibration2\n")


def test_the_methods_are_those_of_the_table():
    assert command.METHODS == METHODS


@pytest.mark.parametrize(
    "arguments, images",
    [
        ((), 16),  # 10 batches of 4 would be more than the 18 there are
        (("--batch_size", 7), 14),
        (("--batch_size", 100), 18),
        (("--batches", 1, "--batch_size", 18), 18),
        (("--batches", 2), 8),
    ],
)
def test_how_many_images(quick, learnt, place, monkeypatch, arguments, images):
    monkeypatch.setattr(command, "LEAST", images + images % 4)
    code, _, error = quick("-m", learnt, "-o", ".", *arguments)
    assert code == 0 and load_table("scales.json").images == images
    assert ("images are few" in error) == bool(images % 4)


@pytest.mark.parametrize(
    "count, total, expected",
    [(1, 9, [4]), (3, 9, [1, 4, 7]), (4, 4, [0, 1, 2, 3]), (2, 5, [1, 3]), (0, 5, [])],
)
def test_images_are_spread_over_the_whole_set(count, total, expected):
    assert spread(count, total) == expected


def test_no_image_comes_twice():
    for total in range(1, 40):
        for count in range(1, total + 1):
            chosen = spread(count, total)
            steps = {after - before for before, after in zip(chosen, chosen[1:])}
            assert (
                0 <= chosen[0] and chosen[-1] < total and max(steps, default=1) - min(steps, default=1) <= 1
            )
            assert min(steps, default=1) >= 1


def test_worse_layers_are_named(run, learnt, place, monkeypatch):
    monkeypatch.setattr(measuring, "HURTS", 1000.0)
    monkeypatch.setattr(command, "SHOWN", 3)
    code, out, error = run("-m", learnt, "-o", ".", "--batches", 1)
    layers = json.loads((place / "layers.json").read_text())["layers"]
    assert code == 0 and all(layer["hurts"] for layer in layers)
    worst = ", ".join(layer["name"] for layer in layers[:5])
    count = len(layers)
    assert (
        f"{count} of {count} convolutions hurt: {worst} and {count - 5} more; detectkit export --max-drop"
        in error
    )
    assert sum(line.endswith("  hurts") for line in out.splitlines()) == 3
    assert f"… and {count - 3} better ones, see layers.json" in out


@pytest.fixture
def learned(learnt, place):
    """The ranges of qat.safetensors, a model of quantisation-aware training."""
    from detectkit.model.quantization import Ranges

    model = checkpoint.load(learnt)
    model.detector.ranges = Ranges(model.detector)
    with torch.no_grad():
        model.detector.train()(torch.rand(2, 3, 64, 96))
    checkpoint.save("qat.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    return model.detector.ranges.learned()


def test_a_model_with_learned_ranges_needs_no_images(run, learned, tiny, write_spec, place):
    tiny.dataset_config.data_sources[0].tfrecords_path = "nothing-*"
    code, out, error = run("-e", write_spec(tiny), "-m", "qat.safetensors", "-o", "out")
    assert code == 0 and "learned ranges: what" in out
    assert "qat.safetensors has learned its ranges in training: no images are read" in error
    assert "few to calibrate with" not in error
    table = load_table("out/scales.json")
    assert table.method == "qat"
    for name, (low, high) in learned.items():
        assert (table.tensors[name].low, table.tensors[name].high) == pytest.approx((low, high))
        assert table.tensors[name].amax == pytest.approx(max(-low, high))
    assert scales_of(place / "out/calibration.cache")["images"] == np.float32(
        table.tensors["images"].amax / 127
    )
    end = json.loads((place / "out/status.jsonl").read_text().splitlines()[-1])
    assert (end["status"], end["kpi"]) == ("SUCCESS", {"images": table.images})


def test_learned_ranges_are_measured_anew_if_a_method_is_given(quick, learned, place):
    code, _, error = quick("-m", "qat.safetensors", "-o", "out", "--batches", 2)
    assert code == USAGE and "qat.safetensors has learned its ranges in training" in complaint(error)
    assert not (place / "out").exists()
    assert quick("-m", "qat.safetensors", "-o", "out", "--batches", 2, "--method", "mse")[0] == 0
    table = load_table("out/scales.json")
    assert (table.method, table.images) == ("mse", 8)


def test_a_model_that_has_diverged_is_one_error(run, learnt, place):
    model = checkpoint.load(learnt)
    with torch.no_grad():
        model.detector.output_bbox.weight[0, 0] = torch.nan
    checkpoint.save("nan.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    code, _, error = run("-m", "nan.safetensors", "-o", "out", "--batches", 1)
    message = complaint(error)
    assert code == MODEL and message.count("\n") == 1
    assert message.startswith("nan.safetensors: output_bbox.weight has values that are not finite")
    assert not (place / "out").exists()  # said before the work


def test_a_tensorfile_written_and_read_gives_the_same_ranges(run, learnt, place):
    """The same to the last byte: calibration draws nothing at random."""
    assert run("-m", learnt, "-o", "a", "--batches", 3)[0] == 0
    code, out, _ = run("-m", learnt, "-o", "b", "--batches", 3, "--save-tensorfile", "images.h5")
    assert code == 0 and "wrote images.h5" in out
    with h5py.File("images.h5") as file:
        assert file.attrs["count"] == 3 and file.attrs["shape"].tolist() == [4, 3, 64, 96]
    for name in FILES[:3]:
        assert (place / "a" / name).read_bytes() == (place / "b" / name).read_bytes()


def test_a_tensorfile_is_read_and_never_overwritten(quick, learnt, place):
    assert quick("-m", learnt, "-o", "a", "--batches", 3, "--save-tensorfile", "images.h5")[0] == 0
    assert quick("-m", learnt, "-o", "b", "--tensorfile", "images.h5")[0] == 0
    assert quick("-m", learnt, "-o", "c", "--tensorfile", "images.h5", "--batches", 2)[0] == 0
    assert [load_table(f"{folder}/scales.json").images for folder in "abc"] == [12, 12, 8]
    code, _, error = quick("-m", learnt, "-o", "d", "--save-tensorfile", "images.h5")
    assert code == OUTPUT and "images.h5 exists: remove it" in complaint(error)
    assert json.loads((place / "d/status.jsonl").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_a_tensorfile_of_other_images_is_refused(run, learnt, place):
    from detectkit.deploy.tensorfile import write_tensorfile

    write_tensorfile("small.h5", [np.zeros((2, 3, 32, 96), np.float32)])
    code, _, error = run("-m", learnt, "-o", ".", "--tensorfile", "small.h5")
    assert code == DATA and "small.h5 holds batches of the shape 2 x 3 x 32 x 96" in complaint(error)
    write_tensorfile("good.h5", [np.zeros((2, 3, 64, 96), np.float32)])
    code, _, error = run("-m", learnt, "-o", ".", "--tensorfile", "good.h5", "--batches", 2)
    assert code == USAGE and "--batches 2: good.h5 has 1" in complaint(error)
    (place / "text.h5").write_text("no HDF5")
    code, _, error = run("-m", learnt, "-o", ".", "--tensorfile", "text.h5")
    assert code == DATA and "text.h5" in complaint(error)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("", USAGE, "give a model (-m MODEL) and a folder for the results (-o DIR), or --retarget"),
        ("-m MODEL", USAGE, "give a model"),
        ("-o out", USAGE, "give a model"),
        ("-m MODEL -o out --batches 0", USAGE, "--batches must be at least 1, got 0"),
        ("-m MODEL -o out --batch_size -1", USAGE, "--batch_size must be at least 1, got -1"),
        ("-m MODEL -o out --batches 5", USAGE, "--batches 5: 18 training images make 4 full batches of 4"),
        ("-m MODEL -o out --tensorfile f --batch_size 2", USAGE, "--batch_size is for images of the spec"),
        ("-m MODEL -o out --tensorfile f --save-tensorfile g", USAGE, "not allowed with argument"),
        ("-m MODEL -o out --method best", USAGE, "invalid choice: 'best'"),
        ("-m MODEL -o out --trt 11.0.0", USAGE, "TensorRT 11 reads no calibration cache"),
        ("-m MODEL -o out --trt ten", USAGE, "ten is no version of TensorRT"),
        ("-m none.safetensors -o out", MODEL, "none.safetensors"),
        ("-m none.txt -o out", MODEL, "none.txt"),
        ("-m MODEL -o out -e none.txt", SPEC, "none.txt"),
        ("--retarget 10.3.0 cache -m MODEL", USAGE, "--retarget VERSION CACHE only takes -o FILE beside it"),
        ("--retarget 10.3.0 cache --batches 2", USAGE, "only takes -o FILE"),
        ("--retarget 10.3.0 cache", MODEL, "cache does not exist"),
        ("--retarget 10.3.0", USAGE, "expected 2 arguments"),
    ],
)
def test_what_cannot_be_done_is_one_error(run, learnt, place, arguments, code, message):
    given = [str(learnt) if word == "MODEL" else word for word in arguments.split()]
    found, out, error = run(*given)
    assert (found, out) == (code, "") and message in complaint(error)


def test_another_spec_than_the_models_is_refused(run, learnt, tiny, write_spec, place):
    tiny.cost_function_config.target_classes[0].name = "box"
    tiny.dataset_config.target_class_mapping["square"] = "box"
    for messages in (
        tiny.bbox_rasterizer_config.target_class_config,
        tiny.postprocessing_config.target_class_config,
    ):
        messages["box"].CopyFrom(messages["square"])
    tiny.evaluation_config.minimum_detection_ground_truth_overlap["box"] = 0.5
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-o", "out")
    assert (code, out) == (MODEL, "") and names(place) == ["spec.txt"]
    assert f"{learnt} detects square, bar; the spec is for box, bar (in this order)" in complaint(error)


def test_an_onnx_file_is_refused(run, learnt, place):
    from detectkit.runtimes.onnx import add_header

    model = checkpoint.load(learnt)
    content = to_model(model.detector, height=64, width=96)
    add_header(
        content,
        spec_text=spec.dumps(model.spec),
        class_names=model.class_names,
        channels=3,
        outline=model.detector.outline,
    )
    onnx.save(content, "model.onnx")
    code, _, error = run("-m", "model.onnx", "-o", "out")
    assert code == USAGE and "give the .safetensors model that it was made from" in complaint(error)


def test_a_folder_that_cannot_be_made(run, learnt, place):
    (place / "out").write_text("a file")
    code, _, error = run("-m", learnt, "-o", "out")
    assert code == OUTPUT and "cannot create the folder out" in complaint(error)


def test_retarget(run, place):
    content = b"TRT-8601-EntropyCalibration2\r\ninput_1: 3c010a14\r\n"
    (place / "old.cache").write_bytes(content)
    code, out, _ = run("--retarget", "10.3.0", "old.cache", "-o", "new.cache")
    assert (code, out) == (0, "wrote new.cache, for TensorRT 10.3.0\n")
    assert (place / "new.cache").read_bytes() == content.replace(b"8601", b"100300")
    assert (place / "old.cache").read_bytes() == content
    code, out, _ = run("--retarget", "10.14.1", "old.cache")
    assert (code, out) == (0, "wrote old.cache, for TensorRT 10.14.1\n")
    assert (place / "old.cache").read_bytes() == content.replace(b"8601", b"101401")
    code, _, error = run("--retarget", "11.0.0", "new.cache")
    assert (
        code == USAGE
        and "detectkit export --data_type int8 --calibration scales.json writes" in complaint(error)
    )


# calibration_config


@pytest.mark.spec_field("CalibrationConfig.tensorrt_version")
def test_the_spec_says_how(run, learnt, tiny, write_spec, place):
    config = tiny.calibration_config
    config.method, config.batches, config.batch_size = config.MINMAX, 2, 3
    config.tensorrt_version = "8.6.1"
    code, out, _ = run("-e", write_spec(tiny), "-m", learnt, "-o", "out")
    assert code == 0 and "6 images, minmax: " in out and "calibration.cache (TensorRT 8.6.1)" in out
    table = load_table("out/scales.json")
    assert (table.method, table.images) == ("minmax", 6)
    assert (place / "out/calibration.cache").read_text().startswith("TRT-8601-MinMaxCalibration\n")


@pytest.mark.spec_field(
    "CalibrationConfig.method", "CalibrationConfig.batches", "CalibrationConfig.batch_size"
)
@pytest.mark.parametrize(
    "fields, options, found",
    [
        ({}, (), ("mse", 16)),  # 10 batches or fewer: 4 of 4 images
        ({"batches": 2}, (), ("mse", 8)),
        ({"batch_size": 7}, (), ("mse", 14)),
        ({"batches": 0, "batch_size": 0}, (), ("mse", 16)),
        ({"method": spec.CalibrationConfig.ENTROPY}, (), ("entropy", 16)),
        ({"method": spec.CalibrationConfig.MSE, "batches": 1, "batch_size": 6}, (), ("mse", 6)),
        ({"batches": 9}, ("--batches", 2), ("mse", 8)),
        ({"batch_size": 5, "batches": 1}, ("--batch_size", 3), ("mse", 3)),
        ({"method": spec.CalibrationConfig.ENTROPY}, ("--method", "percentile"), ("percentile", 16)),
    ],
)
def test_options_go_before_the_spec(quick, learnt, tiny, write_spec, place, fields, options, found):
    tiny.calibration_config.MergeFrom(spec.CalibrationConfig(**fields))
    code, _, error = quick("-e", write_spec(tiny), "-m", learnt, "-o", ".", *options)
    assert code == 0, error
    table = load_table("scales.json")
    assert (table.method, table.images) == found


def test_the_section_of_the_spec_in_the_model_was_for_another_calibration(quick, learnt, place):
    model = checkpoint.load(learnt)
    model.spec.calibration_config.batches = 3
    checkpoint.save("other.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    assert quick("-m", "other.safetensors", "-o", ".")[0] == 0
    assert load_table("scales.json").images == 16


def test_a_spec_that_trains_nothing_has_batches_of_four(quick, learnt, tiny, write_spec, place):
    tiny.ClearField("training_config")
    tiny.model_config.pretrained_model_file = str(learnt)
    assert quick("-e", write_spec(tiny), "-m", learnt, "-o", ".")[0] == 0
    assert load_table("scales.json").images == 16


def test_a_tensorfile_and_the_batches_of_the_spec(quick, learnt, tiny, write_spec, place):
    assert quick("-m", learnt, "-o", "a", "--batches", 3, "--save-tensorfile", "images.h5")[0] == 0
    tiny.calibration_config.batches, tiny.calibration_config.batch_size = 2, 7
    path = write_spec(tiny)
    assert quick("-e", path, "-m", learnt, "-o", "b", "--tensorfile", "images.h5")[0] == 0
    assert load_table("b/scales.json").images == 8  # of 4, as they are in the file


def test_learned_ranges_and_the_spec(quick, learned, tiny, write_spec, place):
    """What says how to measure waits for a method."""
    tiny.calibration_config.batches = 2
    code, _, error = quick("-e", write_spec(tiny), "-m", "qat.safetensors", "-o", "out")
    assert code == 0 and "no images are read" in error
    assert load_table("out/scales.json").method == "qat"
    tiny.calibration_config.method = spec.CalibrationConfig.MSE
    assert quick("-e", write_spec(tiny), "-m", "qat.safetensors", "-o", "out")[0] == 0
    table = load_table("out/scales.json")
    assert (table.method, table.images) == ("mse", 8)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"batches": 5}, "calibration_config.batches 5: 18 training images make 4 full batches of 4"),
        ({"batches": 3, "batch_size": 9}, "calibration_config.batches 3: 18 training images make 2 full"),
        ({"tensorrt_version": "11.0.0"}, "calibration_config.tensorrt_version: TensorRT 11 reads no"),
    ],
)
def test_errors_name_the_field(run, learnt, tiny, write_spec, place, fields, message):
    tiny.calibration_config.MergeFrom(spec.CalibrationConfig(**fields))
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-o", "out")
    assert (code, out) == (USAGE, "") and complaint(error).startswith(message)

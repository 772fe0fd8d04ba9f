"""`detectkit export` as a person runs it, on a ResNet10 with random features."""

import configparser
import json
import re

import onnx
import pytest
import torch

import detectkit
from detectkit import spec
from detectkit.cli import main
from detectkit.deploy import export, float_layers
from detectkit.deploy.cache import write_cache
from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.export import ExportSource, sample_images
from detectkit.deploy.placement import eight_bit_layers
from detectkit.deploy.scales import load_table, parse_table, save_table
from detectkit.deploy.sensitivity import Sensitivity
from detectkit.errors import ModelError
from detectkit.model import checkpoint
from detectkit.model.quantization import Ranges
from detectkit.runtimes import load
from detectkit.runtimes.onnx import DATA_TYPE, SCALES, metadata, read_header

USAGE, SPEC, DATA, MODEL, OUTPUT = 2, 3, 4, 5, 6


@pytest.fixture
def run(capsys):
    """Runs `export` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["export", *map(str, arguments), "--gpus", "0"])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def images(learnt):
    """Training images, and the maps that the model makes of them."""
    model = checkpoint.load(learnt)
    found = sample_images(ExportSource(model.detector, model.spec, model.class_names), 12)
    with torch.no_grad():
        return found, model.detector(found)


@pytest.fixture(scope="module")
def scales(learnt, images, tmp_path_factory):
    """The folder that `detectkit calibrate` would write."""
    folder = tmp_path_factory.mktemp("calibrated")
    ranges = calibrate(checkpoint.load(learnt).detector, [images[0]], method="minmax")
    save_table(folder / "scales.json", ranges)
    write_cache(folder / "calibration.cache", ranges, graph=None)
    return folder / "scales.json"


def complaint(error):
    """The one error of a command that failed."""
    assert "Traceback" not in error and error.count("error: ") == 1
    return error[error.index("error: ") + len("error: ") :]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shape(value):
    return [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]


def test_a_float_file(run, learnt, place, images):
    code, out, _ = run("-m", learnt, "-o", "out/model", "-r", "status")
    model = onnx.load("out/model.onnx")
    assert code == 0 and files(place) == ["out/model.onnx", "status/status.jsonl"]
    assert out.startswith("wrote out/model.onnx: fp32, ")
    assert [(item.name, shape(item)) for item in (*model.graph.input, *model.graph.output)] == [
        ("images", ["N", 3, 64, 96]),
        ("output_cov/Sigmoid", ["N", 2, 4, 6]),
        ("output_bbox/BiasAdd", ["N", 8, 4, 6]),
    ]
    assert [item.version for item in model.opset_import] == [20] and "BatchNormalization" not in {
        node.op_type for node in model.graph.node
    }
    assert metadata(model)[DATA_TYPE] == "fp32" and SCALES not in metadata(model)
    assert read_header(model, "").classes == ["square", "bar"]
    for found, wanted in zip(load("out/model.onnx", "cpu").forward(images[0]), images[1]):
        assert torch.allclose(found, wanted, atol=1e-4)
    start, end = (json.loads(line) for line in (place / "status/status.jsonl").read_text().splitlines())
    assert (start["status"], end["status"]) == ("STARTED", "SUCCESS")
    size = (place / "out/model.onnx").stat().st_size / 2**20
    assert end["kpi"] == {"size": size, "param_count": pytest.approx(4.9, abs=0.2)}


def test_it_is_used_like_the_model(run, learnt, tiny, tiny_root, write_spec, place, capsys):
    path = write_spec(tiny)
    run("-m", learnt, "-o", "model.onnx")
    tables = []
    for model in (learnt, "model.onnx"):
        assert main(["evaluate", "-e", str(path), "-m", str(model), "--gpus", "0"]) == 0
        tables.append(capsys.readouterr().out.split("median latency")[0])
    assert tables[0] == tables[1] and "6 images" in tables[0]
    picture = tiny_root / "kitti/image_2/000.png"
    (first,), (second,) = (
        detectkit.load_model(model, "cpu").predict([picture]) for model in (learnt, "model.onnx")
    )
    assert torch.allclose(first.boxes, second.boxes, atol=1e-2)
    assert first.classes.tolist() == second.classes.tolist()


@pytest.mark.parametrize("options, least", [
    ("--data_type fp16", 40),
    ("--data_type int8 --runtime tensorrt", 12),
    ("--data_type int8 --runtime onnxruntime", 12),
    ("--data_type int8 --per-tensor", 8),
])  # fmt: skip
def test_fewer_bits(run, learnt, place, images, scales, options, least):
    """`least` is the signal to noise of the maps on training images, in dB."""
    table = ["--calibration", scales] if "int8" in options else []
    code, out, error = run("-m", learnt, "-o", "model.onnx", *options.split(), *table)
    assert code == 0, error
    content = metadata(onnx.load("model.onnx"))
    assert content[DATA_TYPE] == options.split()[1] and (SCALES in content) == bool(table)
    small, whole = ((place / "model.onnx").stat().st_size, learnt.stat().st_size)
    assert small < (0.3 if table else 0.55) * whole
    for found, wanted in zip(load("model.onnx", "cpu").forward(images[0]), images[1]):
        noise = (found - wanted).square().mean() / wanted.square().mean()
        assert -10 * noise.log10() > least


def test_choices_of_the_file(run, learnt, place):
    code, _, _ = run("-m", learnt, "-o", "model.onnx", "--target_opset", 13, "--static_batch_size", 2)
    model = onnx.load("model.onnx")
    assert code == 0 and model.opset_import[0].version == 13
    assert shape(model.graph.input[0]) == [2, 3, 64, 96] and shape(model.graph.output[0]) == [2, 2, 4, 6]


def test_nms_in_the_file(run, learnt, tiny, write_spec, place):
    for name in spec.class_names(tiny):
        entry = tiny.postprocessing_config.target_class_config[name].clustering_config
        entry.clustering_algorithm = spec.ClusteringConfig.NMS
    path = write_spec(tiny)
    code, _, error = run("-m", learnt, "-e", path, "-o", "model.onnx", "--nms")
    assert code == 0, error
    assert [item.name for item in onnx.load("model.onnx").graph.output][2] == "detections"
    assert load("model.onnx", "cpu").class_names == ["square", "bar"]


def test_names_of_the_file(run, learnt, place):
    model = place / "model.safetensors"
    model.write_bytes(learnt.read_bytes())
    assert run("-m", model)[0] == 0 and (place / "model.onnx").is_file()
    (place / "model.onnx").write_text("an older file")
    assert run("-m", model, "-o", "model")[0] == 0
    assert onnx.load("model.onnx").producer_name == "detectkit"


def test_deepstream(run, learnt, tiny, write_spec, place, scales):
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    path = write_spec(tiny)
    options = ("-e", path, "--gen_ds_config", "--max_batch_size", 4)
    code, out, error = run("-m", learnt, *options, "-o", "out/m", "--data_type", "fp16")
    assert code == 0 and error == ""
    assert files(place) == ["out/labels.txt", "out/m.onnx", "out/nvinfer_config.txt", "spec.txt"]
    assert (place / "out/labels.txt").read_text() == "square\nbar\n"
    found = configparser.ConfigParser()
    found.read("out/nvinfer_config.txt")
    properties = found["property"]
    assert properties["onnx-file"] == "m.onnx" and properties["batch-size"] == "4"
    assert properties["model-engine-file"] == "m.onnx_b4_gpu0_fp16.engine"
    assert properties["network-mode"] == "2" and "int8-calib-file" not in properties
    table = ("--data_type", "int8", "--calibration", scales)
    assert run("-m", learnt, *options, "-o", scales.parent / "m", *table)[0] == 0
    found.read(scales.parent / "nvinfer_config.txt")
    assert properties["int8-calib-file"] == "calibration.cache" and properties["network-mode"] == "1"


def test_deepstream_quantises_a_float_file_by_a_cache(run, learnt, place, scales):
    cache = scales.with_name("calibration.cache")
    options = ("--gen_ds_config", "--cal_cache_file", cache, "--static_batch_size", 2)
    code, _, error = run("-m", learnt, "-o", "m", *options)
    found = configparser.ConfigParser()
    found.read("nvinfer_config.txt")
    properties = found["property"]
    assert code == 0 and (place / properties["int8-calib-file"]).resolve() == cache.resolve()
    assert (properties["network-mode"], properties["batch-size"]) == ("1", "2")
    assert properties["model-engine-file"] == "m.onnx_b2_gpu0_int8.engine"
    assert "nvinfer_config.txt: the spec does not resize images" in error


def test_the_cache_of_another_network(run, learnt, place):
    (place / "a.cache").write_text("TRT-100300-EntropyCalibration2\ninput_1: 3c010a14\n")
    code, _, error = run("-m", learnt, "-o", "m", "--gen_ds_config", "--cal_cache_file", "a.cache")
    assert code == MODEL and "a.cache is of another network: the network does not have input_1" in complaint(
        error
    )
    assert files(place) == ["a.cache"]


def test_tlt_ranges(run, learnt, place, scales):
    code, out, _ = run("-m", learnt, "-o", "m", "--calibration", scales, "--cal_json_file", "tlt.json")
    content = json.loads((place / "tlt.json").read_text())
    ranges = load_table(scales)
    assert code == 0 and "wrote tlt.json" in out and list(content) == ["tensor_scales"]
    assert content["tensor_scales"] == {name: item.amax for name, item in ranges.tensors.items()}


def test_a_cache_does_as_a_table_does(run, learnt, place, scales):
    table = scales.with_name("calibration.cache")
    found = []
    for path in (scales, table):
        assert run("-m", learnt, "-o", "m.ONNX", "--data_type", "int8", "--calibration", path)[0] == 0
        steps = {
            item.name: float(onnx.numpy_helper.to_array(item))
            for item in onnx.load("m.ONNX").graph.initializer
            if item.name.endswith("/scale") and not item.dims
        }
        found.append(steps)
    assert len(found[0]) > 5 and found[1] == pytest.approx(found[0], rel=1e-6)
    assert files(place) == ["m.ONNX"]


def test_the_table_of_another_training(run, learnt, place, images, scales):
    model = checkpoint.load(learnt)
    with torch.no_grad():
        for weight in model.detector.backbone.parameters():
            weight *= 1.1
    checkpoint.save(place / "other.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    code, _, error = run("-m", "other.safetensors", "-o", "m", "--data_type", "int8", "--calibration", scales)
    assert code == MODEL and "scales.json is of another training of this network: " in complaint(error)
    assert files(place) == ["other.safetensors"]


@pytest.mark.parametrize("factor", [1e38, 1e4, 1e-4, 0])
@pytest.mark.parametrize("kind", ["table", "cache", "tlt", "deepstream"])
def test_ranges_of_nothing_are_refused(run, learnt, place, scales, kind, factor):
    table = load_table(scales)
    ranges = {name: item._replace(amax=min(item.amax * factor, 3e38)) for name, item in table.tensors.items()}
    table = table._replace(tensors=ranges)
    if kind == "table":
        save_table("ranges", table)
    elif kind == "tlt":
        content = {"tensor_scales": {name: item.amax for name, item in ranges.items()}}
        (place / "ranges").write_text(json.dumps(content))
    else:
        write_cache("ranges", table, graph=None)
        if factor == 0:  # where ours writes the range 1
            text = (place / "ranges").read_text()
            (place / "ranges").write_text(re.sub(r"(?<=: )\w+$", "0", text, flags=re.MULTILINE))
    options = ["--data_type", "int8", "--calibration", "ranges"]
    if kind == "deepstream":
        options = ["--gen_ds_config", "--cal_cache_file", "ranges"]
    code, _, error = run("-m", learnt, "-o", "m", *options)
    reason = "has a range of 0, and values up to" if factor == 0 else "is noise on random images"
    assert code == MODEL and complaint(error).startswith("ranges: ") and reason in error
    assert files(place) == ["ranges"]


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("NaN", "the range of images must be a number of 0 or more, not nan"),
        ("Infinity", "must be a number of 0 or more, not inf"),
        ("-1", "must be a number of 0 or more, not -1"),
        ('"1.0"', "must be a number of 0 or more, not '1.0'"),
        ("[1]", r"must be a number of 0 or more, not [1]"),
        ("true", "must be a number of 0 or more, not True"),
        ("null", "must be a number of 0 or more, not None"),
        ("1" + "0" * 60, "must be a number of 0 or more"),
    ],
)
def test_scales_of_tlt_that_are_no_ranges(run, learnt, place, scale, words):
    (place / "tlt.json").write_text(f'{{"tensor_scales": {{"images": {scale}}}}}')
    code, _, error = run("-m", learnt, "-o", "m", "--data_type", "int8", "--calibration", "tlt.json")
    assert code == MODEL and "tlt.json: " in complaint(error) and words in error


@pytest.mark.parametrize("scales", ["[]", "{}", "3", '"x"', "null"])
def test_scales_of_tlt_that_are_no_map(run, learnt, place, scales):
    (place / "tlt.json").write_text(f'{{"tensor_scales": {scales}}}')
    code, _, error = run("-m", learnt, "-o", "m", "--data_type", "int8", "--calibration", "tlt.json")
    assert code == MODEL and "tlt.json: tensor_scales must be a map" in complaint(error)


def test_a_changed_bit_of_an_exported_file_is_noticed(run, learnt, place):
    assert run("-m", learnt, "-o", "m.onnx")[0] == 0
    content = (place / "m.onnx").read_bytes()
    assert load("m.onnx", "cpu").kind == "onnx"
    for position in (100, len(content) // 3, len(content) // 2, len(content) - 40):
        changed = bytearray(content)
        changed[position] ^= 1
        (place / "m.onnx").write_bytes(changed)
        with pytest.raises(ModelError, match="m.onnx is damaged, or was changed after it was written"):
            load("m.onnx", "cpu")


def test_a_model_that_learned_its_ranges_needs_no_calibration(run, learnt, place, images):
    model = checkpoint.load(learnt)
    detector = model.detector
    detector.ranges = Ranges(detector)
    detector.ranges.train()
    with torch.no_grad():
        detector(images[0])
    checkpoint.save(place / "qat.safetensors", detector, spec.dumps(model.spec), model.class_names)
    code, _, error = run("-m", "qat.safetensors", "--data_type", "int8", "--cal_json_file", "tlt.json")
    assert code == 0, error
    stored = parse_table(metadata(onnx.load("qat.onnx"))[SCALES], "")
    assert stored.method == "qat" and {"images", "backbone_relu"} <= set(stored.tensors)
    scales = json.loads((place / "tlt.json").read_text())["tensor_scales"]
    assert scales["images"] == 1.0 and scales["backbone_relu"] > 0
    code, _, _ = run("-m", "qat.safetensors", "-o", "float")
    for found, wanted in zip(load("float.onnx", "cpu").forward(images[0]), images[1]):
        assert code == 0 and torch.allclose(found, wanted, atol=1e-4)


@pytest.fixture
def ranked(monkeypatch):
    """Names all layers in the order of the network, as if that were how much they hurt."""

    def rank(model, *_, **__):
        return [Sensitivity(layer, 20.0 + number) for number, layer in enumerate(eight_bit_layers(model))]

    monkeypatch.setattr(float_layers, "rank", rank)


def test_the_fewest_layers_in_float(run, learnt, place, scales, ranked, monkeypatch):
    """What is measured is replaced: all that counts is whether one layer is in 8 bits."""
    worst = "backbone.layer1.0.conv1"
    monkeypatch.setattr(
        float_layers, "accuracy", lambda model, *_: 70.0 if worst in in_8_bits(model) else 80.0
    )
    options = ("--data_type", "int8", "--calibration", scales, "--max-drop", 0.5, "--static_batch_size", 2)
    code, out, error = run("-m", learnt, "-o", "m", *options)
    assert code == 0, error
    assert "mAP 80.00 % in float; asked for: 79.50 %" in out and "mAP 70.00 % in 8 bits, 0 of" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("backbone.")]
    assert [row[0] for row in rows if row[2] == "float"] == [
        worst
    ] and "1 left in float beside the heads" in out
    model = onnx.load("m.onnx")
    assert in_8_bits(model) == {row[0] for row in rows} - {worst} and shape(model.graph.input[0])[0] == 2


def in_8_bits(model):
    """The convolutions whose weights are."""
    weights = (item for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8)
    return {item.name.partition(".weight")[0] for item in weights if len(item.dims) == 4}


def test_max_drop_measures_the_validation_images(run, learnt, place, scales, ranked):
    options = ("--data_type", "int8", "--calibration", scales, "--max-drop", 100)
    code, out, _ = run("-m", learnt, "-o", "m", *options)
    assert code == 0 and out.count("mAP ") == 2 and "all but the heads in 8 bits" in out


def test_options_of_tlt_name_the_command_that_has_them(run, learnt, place):
    options = "--batches 10 --cal_data_file a --engine_file b -s --force_ptq --max_batch_size 4 --cal_cache_file c -k x"
    code, _, error = run("-m", learnt, "-o", "m", *options.split())
    lines = [line for line in error.splitlines() if line.startswith("WARNING")]
    assert code == 0 and len(lines) == 8
    assert "--batches: calibration is a command of its own: detectkit calibrate --batches N" in error
    assert "--engine_file: engines are built by detectkit engine" in error
    assert "--cal_cache_file: only --gen_ds_config uses it" in error


BAD = [
    # Options, exit code, words of the message.
    ("--data_type int8", USAGE, "--data_type int8 needs the ranges of the tensors: `detectkit calibrate -e SPEC -m"),
    ("--cal_json_file a.json", USAGE, "--cal_json_file needs the ranges of the tensors"),
    ("--per-tensor", USAGE, "--per-tensor is for --data_type int8"),
    ("--max-drop 0.5", USAGE, "--max-drop is for --data_type int8"),
    ("--data_type int8 --max-drop -1", USAGE, "--max-drop -1: give points of mAP, from 0 to 100"),
    ("--data_type int8 --max-drop nan", USAGE, "--max-drop nan: give points of mAP"),
    ("--calibration a.json", USAGE, "--calibration is for --data_type int8"),
    ("--data_type int8 --calibration a.json", MODEL, "cannot read a.json: No such file or directory; detectkit calibrate"),
    ("--static_batch_size 0", USAGE, "--static_batch_size 0: must be at least 1, or -1 for any number"),
    ("--gen_ds_config --max_batch_size 0", USAGE, "--max_batch_size 0: must be at least 1"),
    ("--static_batch_size 2 --max_batch_size 4", USAGE, "--max_batch_size 4: must be at least 1, and"),
    ("--target_opset 12", USAGE, "there is no opset 12 to write: use one from 13 to "),
    ("--target_opset 1000", USAGE, "there is no opset 1000 to write"),
    ("--nms", USAGE, 'the spec clusters "square" with DBSCAN'),
    ("--nms --gen_ds_config", USAGE, "--gen_ds_config: DeepStream clusters itself, leave --nms out"),
    ("--data_type int8 --runtime onnxruntime --gen_ds_config", USAGE, "leave --runtime onnxruntime out"),
    ("--gen_ds_config --cal_cache_file a.cache", USAGE, "--cal_cache_file a.cache is not there: detectkit calibrate"),
    ("--data_type fp8", USAGE, "argument --data_type: invalid choice: 'fp8'"),
    ("-e no.txt", SPEC, "no.txt: there is no such file"),
]  # fmt: skip


@pytest.mark.parametrize("options, code, words", BAD, ids=[options for options, _, _ in BAD])
def test_bad_options(run, learnt, place, options, code, words):
    found, _, error = run("-m", learnt, "-o", "m", *options.split())
    assert words in complaint(error) and found == code
    assert files(place) == []


def test_places_that_cannot_be_written(run, learnt, place, scales):
    (place / "file").write_text("")
    for options, code, words in (
        (("-o", "file/m"), OUTPUT, "cannot write file/m.onnx: Not a directory"),
        (("-o", place), USAGE, "is a folder: name a file in it"),
        (("-o", "m", "--cal_json_file", "file/a"), OUTPUT, "cannot write file/a: Not a directory"),
        (
            ("-o", "m", "--calibration", scales, "--cal_json_file", scales),
            USAGE,
            "scales.json has another use here",
        ),
        (("-o", "m", "--cal_json_file", learnt), USAGE, "has another use here: give another name"),
        (("-o", "m", "--cal_json_file", "m.onnx"), USAGE, "m.onnx has another use here"),
    ):
        found, _, error = run("-m", learnt, *options)
        assert words in complaint(error) and found == code
    assert files(place) == ["file"]


def test_the_table_of_another_network(run, learnt, place, scales):
    content = json.loads(scales.read_text())
    content["tensors"]["backbone_layer9"] = content["tensors"]["images"]
    (place / "other.json").write_text(json.dumps(content))
    code, _, error = run("-m", learnt, "-o", "m", "--data_type", "int8", "--calibration", "other.json")
    assert (
        code == MODEL
        and "other.json is of another network: the network does not have backbone_layer9" in error
    )
    assert files(place) == ["other.json"]


def test_models_and_specs_that_do_not_fit(run, learnt, learnt_onnx, tiny, write_spec, place):
    code, _, error = run("-m", learnt_onnx, "-o", "m")
    assert code == MODEL and "learnt.onnx is exported already: give the .safetensors model" in complaint(
        error
    )
    (place / "a.safetensors").write_text("something else")
    code, _, error = run("-m", "a.safetensors", "-o", "m")
    assert code == MODEL and "a.safetensors is not a detectkit model" in complaint(error)
    tiny.augmentation_config.preprocessing.output_image_channel = 1
    code, _, error = run("-m", learnt, "-o", "m", "-e", write_spec(tiny))
    assert code == MODEL and "takes images of 3 channels" in complaint(error)
    tiny.augmentation_config.preprocessing.output_image_width = 97
    code, _, error = run("-m", learnt, "-o", "m", "-e", write_spec(tiny))
    assert code == SPEC and "output_image_width" in complaint(error)
    assert files(place) == ["a.safetensors", "spec.txt"]


def test_the_spec_of_e_goes_into_the_file(run, learnt, tiny, write_spec, place):
    pre = tiny.augmentation_config.preprocessing
    pre.output_image_width, pre.output_image_height = 128, 96
    tiny.training_config.visualizer.wandb_config.key = "secret"
    code, _, _ = run("-m", learnt, "-o", "m", "-e", write_spec(tiny))
    model = onnx.load("m.onnx")
    assert code == 0 and shape(model.graph.input[0]) == ["N", 3, 96, 128]
    assert read_header(model, "").spec.augmentation_config.preprocessing.output_image_width == 128
    assert b"secret" not in (place / "m.onnx").read_bytes()  # files are shown to others


def test_max_drop_needs_validation_images(run, learnt, tiny, write_spec, place, scales):
    tiny.dataset_config.ClearField("validation_fold")
    options = ("-e", write_spec(tiny), "--data_type", "int8", "--calibration", scales, "--max-drop", 1)
    code, _, error = run("-m", learnt, "-o", "m", *options)
    assert code == DATA and "no validation_fold or validation_data_source" in complaint(error)
    assert files(place) == ["spec.txt"]


def test_what_is_not_right_is_not_written(run, learnt, place, monkeypatch):
    def differs(*_, **__):
        raise ModelError("the exported model does not compute what PyTorch does")

    (place / "m.onnx").write_text("an older file")
    monkeypatch.setattr(export, "check_against", differs)
    code, _, _ = run("-m", learnt, "-o", "m", "-r", "status")
    records = [json.loads(line) for line in (place / "status/status.jsonl").read_text().splitlines()]
    assert code == MODEL and [record["status"] for record in records] == ["STARTED", "FAILURE"]
    assert (place / "m.onnx").read_text() == "an older file" and len(files(place)) == 2


def test_a_wrong_command_line_needs_no_torch():
    """Reading the options is quick."""
    import subprocess
    import sys

    code = "import sys; from detectkit.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["export", "-m", "a.safetensors", "--max-drop", "101"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "--max-drop 101: give points" in done.stderr


# export_config


@pytest.fixture
def eight_bits(tiny):
    """The spec with a section for 8 bits, as a message that a test may change."""
    tiny.calibration_config.SetInParent()
    tiny.export_config.data_type = spec.ExportConfig.INT8
    return tiny


def weight_scales(model):
    """How many scales the weights of the 8-bit convolutions have."""
    return {
        1 if not item.dims else 2 for item in model.graph.initializer if item.name.endswith("weight/scale")
    }


@pytest.mark.spec_field("ExportConfig.data_type", "ExportConfig.per_tensor")
def test_the_spec_says_8_bits(run, learnt, eight_bits, write_spec, place, scales):
    config = eight_bits.export_config
    for per_tensor, options, sizes in ((False, (), {2}), (True, (), {1}), (True, ("--no-per-tensor",), {2})):
        config.per_tensor = per_tensor
        path = write_spec(eight_bits)
        code, out, error = run("-e", path, "-m", learnt, "-o", "m", "--calibration", scales, *options)
        assert code == 0 and "wrote m.onnx: int8 for tensorrt" in out, error
        assert weight_scales(onnx.load("m.onnx")) == sizes


def test_an_option_goes_before_the_spec(run, learnt, eight_bits, write_spec, place):
    """What is for 8 bits only then waits."""
    config = eight_bits.export_config
    config.per_tensor, config.max_drop, config.runtime = True, 0.5, config.ONNXRUNTIME
    path = write_spec(eight_bits)
    code, out, error = run("-e", path, "-m", learnt, "-o", "m", "--data_type", "fp32")
    assert code == 0 and "wrote m.onnx: fp32, " in out and "warning" not in error.lower()
    code, _, error = run("-e", path, "-m", learnt, "-o", "m", "--data_type", "fp32", "--per-tensor")
    assert code == USAGE and "--per-tensor is for --data_type int8" in complaint(error)
    code, _, error = run("-e", path, "-m", learnt, "-o", "m")
    assert code == USAGE
    assert complaint(error).startswith(
        "export_config.data_type INT8 needs the ranges of the tensors: `detectkit"
    )


def test_the_section_of_the_spec_in_the_model_was_for_another_export(run, learnt, place):
    model = checkpoint.load(learnt)
    model.spec.export_config.data_type = spec.ExportConfig.FP16
    checkpoint.save("half.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    code, out, _ = run("-m", "half.safetensors")
    assert code == 0 and "wrote half.onnx: fp32, " in out


@pytest.mark.spec_field("ExportConfig.runtime")
def test_the_spec_says_for_which_runtime(run, learnt, eight_bits, write_spec, place, scales):
    """ONNX Runtime's kernels take unsigned values."""
    eight_bits.export_config.runtime = spec.ExportConfig.ONNXRUNTIME
    path = write_spec(eight_bits)
    for options, unsigned in (((), True), (("--runtime", "tensorrt"), False)):
        assert run("-e", path, "-m", learnt, "-o", "m", "--calibration", scales, *options)[0] == 0
        types = {item.data_type for item in onnx.load("m.onnx").graph.initializer}
        assert (onnx.TensorProto.UINT8 in types) == unsigned


@pytest.mark.spec_field("ExportConfig.max_drop")
def test_the_spec_says_how_much_accuracy_may_go(
    run, learnt, eight_bits, write_spec, place, scales, ranked, monkeypatch
):
    monkeypatch.setattr(float_layers, "accuracy", lambda *_: 80.0)
    eight_bits.export_config.max_drop = 0.0
    path = write_spec(eight_bits)
    for options, floor in (((), "80.00"), (("--max-drop", 0.5), "79.50")):
        code, out, _ = run("-e", path, "-m", learnt, "-o", "m", "--calibration", scales, *options)
        assert code == 0 and f"mAP 80.00 % in float; asked for: {floor} %" in out


@pytest.mark.spec_field("ExportConfig.target_opset", "ExportConfig.static_batch_size")
def test_the_spec_says_opset_and_batch(run, learnt, tiny, write_spec, place):
    tiny.export_config.target_opset, tiny.export_config.static_batch_size = 13, 2
    path = write_spec(tiny)
    options = ("--target_opset", 17, "--static_batch_size", -1)
    for given, opset, batch in (((), 13, 2), (options, 17, "N")):
        code, _, error = run("-e", path, "-m", learnt, "-o", "m", *given)
        model = onnx.load("m.onnx")
        assert code == 0, error
        assert (model.opset_import[0].version, shape(model.graph.input[0])[0]) == (opset, batch)
    tiny.export_config.static_batch_size = 0
    assert run("-e", write_spec(tiny), "-m", learnt, "-o", "m")[0] == 0
    assert shape(onnx.load("m.onnx").graph.input[0])[0] == "N"


@pytest.mark.spec_field("ExportConfig.nms")
def test_the_spec_says_nms(run, learnt, tiny, write_spec, place):
    for name in spec.class_names(tiny):
        entry = tiny.postprocessing_config.target_class_config[name].clustering_config
        entry.clustering_algorithm = spec.ClusteringConfig.NMS
    tiny.export_config.nms = True
    path = write_spec(tiny)
    for options, count in (((), 3), (("--no-nms",), 2)):
        code, _, error = run("-m", learnt, "-e", path, "-o", "m", *options)
        assert code == 0 and len(onnx.load("m.onnx").graph.output) == count, error


@pytest.mark.spec_field("ExportConfig.gen_ds_config")
def test_the_spec_says_deepstream(run, learnt, tiny, write_spec, place):
    tiny.export_config.gen_ds_config, tiny.export_config.static_batch_size = True, 3
    path = write_spec(tiny)
    assert run("-m", learnt, "-e", path, "-o", "plain/m", "--no-gen_ds_config")[0] == 0
    assert run("-m", learnt, "-e", path, "-o", "out/m")[0] == 0
    assert files(place / "plain") == ["m.onnx"]
    assert files(place / "out") == ["labels.txt", "m.onnx", "nvinfer_config.txt"]
    assert "batch-size=3\n" in (place / "out/nvinfer_config.txt").read_text()


def nothing(config):
    pass


def with_nms(config):
    config.nms = True


def for_onnxruntime(config):
    config.data_type, config.runtime = config.INT8, config.ONNXRUNTIME


def for_deepstream(config):
    config.gen_ds_config = True


def newest(config):
    config.target_opset = 1000


def three(config):
    config.static_batch_size = 3


@pytest.mark.parametrize(
    "change, options, message",
    [
        (with_nms, "", 'the spec clusters "square" with DBSCAN, which ONNX has not: set clustering_algorithm: NMS for every'
         " class in postprocessing_config, or leave export_config.nms out"),
        (with_nms, "--gen_ds_config", "--gen_ds_config: DeepStream clusters itself, leave export_config.nms out, or give"
         " --no-nms"),
        (for_deepstream, "--nms", "export_config.gen_ds_config: DeepStream clusters itself, leave --nms out"),
        (for_onnxruntime, "--gen_ds_config", "--gen_ds_config: DeepStream runs on TensorRT, leave export_config.runtime"
         " ONNXRUNTIME out, or give --runtime tensorrt"),
        (for_deepstream, "--data_type int8 --runtime onnxruntime", "export_config.gen_ds_config: DeepStream runs on"
         " TensorRT, leave --runtime onnxruntime out"),
        (newest, "", "there is no opset 1000 to write: use one from 13 to "),
        (three, "--gen_ds_config --max_batch_size 4", "--max_batch_size 4: must be at least 1, and"
         " export_config.static_batch_size if given"),
    ],
)  # fmt: skip
def test_errors_name_the_field(run, learnt, tiny, write_spec, place, change, options, message):
    tiny.calibration_config.SetInParent()
    change(tiny.export_config)
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-o", "m", *options.split())
    assert (code, out) == (USAGE, "") and complaint(error).startswith(message)
    assert change is not newest or "(export_config.target_opset)" in error


def test_max_drop_needs_labels(run, learnt, unlabelled, write_spec, place, scales, ranked):
    """Without them no drop is too great."""
    options = ("-e", write_spec(unlabelled), "--data_type", "int8", "--calibration", scales, "--max-drop", 1)
    code, _, error = run("-m", learnt, "-o", "m", *options)
    assert code == DATA and "no class has a labelled box that counts in the 6 images" in complaint(error)
    assert files(place) == ["spec.txt"]

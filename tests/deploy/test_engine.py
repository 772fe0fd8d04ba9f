"""TensorRT engines, built by the real TensorRT for RTX for GPUs that are not here.

What differs on TensorRT 10 and 11, which cannot be installed from here, is tested on fakes, which the names say.
"""

import json
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from detectkit.deploy import engine as module
from detectkit.deploy.builder import allow_types, set_targets, set_timing_cache, target_number
from detectkit.deploy.cache import write_cache
from detectkit.deploy.engine import build, data_type_of, read_model
from detectkit.deploy.half import half
from detectkit.deploy.onnx import to_model
from detectkit.deploy.qdq import quantize, table_from_cache
from detectkit.deploy.ranges import read_ranges
from detectkit.deploy.scales import save_table
from detectkit.errors import ModelError, UsageError
from detectkit.model.detector import build as build_detector
from detectkit.model.graph import folded, measured, tensor_name
from detectkit.runtimes.tensorrt import RTX, TENSORRT, Library, library
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS

HEIGHT, WIDTH = 64, 96
AMPERE = ["sm80", "sm86", "sm89", "sm120", "sm121"]


def detector_of(arch, depth):
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=NETWORKS[arch].batch_norm is not False)
    return build_detector(config, ["square", "bar"], 3)


def network_of(arch, depth, *, batch=None):
    """The float model and a table with the same range for all tensors."""
    detector = detector_of(arch, depth)
    model = to_model(detector, height=HEIGHT, width=WIDTH, batch=batch)
    names = [tensor_name(node) for node in measured(folded(detector))]
    return model, table_from_cache(model, dict.fromkeys(names, 4.0))


@pytest.fixture(scope="module")
def network():
    return network_of("resnet", 10)


def built(model, **options):
    return build(model, path="model.onnx", library=library(RTX), **options)


def weights(model):
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


@pytest.mark.parametrize(
    ("arch", "depth"),
    [
        ("resnet", 10),
        ("squeezenet", 0),
        *(
            pytest.param(arch, depth, marks=pytest.mark.slow)
            for arch, backbone in NETWORKS.items()
            for depth in backbone.depths or (0,)
            if (arch, depth) not in (("resnet", 10), ("squeezenet", 0))
        ),
    ],
)
def test_every_backbone_becomes_an_engine_in_every_data_type(arch, depth):
    model, table = network_of(arch, depth)
    for typed, data_type in (
        (model, "fp32"),
        (half(model), "fp16"),
        (quantize(model, table, runtime="tensorrt"), "int8"),
    ):
        found = built(typed, batch=(1, 2, 4))
        assert (found.data_type, found.targets, found.batch) == (data_type, AMPERE, (1, 2, 4))
        assert (found.height, found.width) == (HEIGHT, WIDTH)
        assert len(found.plan) > weights(typed)  # nothing of it was left out


def test_a_pyramid_of_levels_becomes_an_engine(pyramid):
    model = to_model(pyramid, height=HEIGHT, width=WIDTH)
    names = [tensor_name(node) for node in measured(folded(pyramid))]
    table = table_from_cache(model, dict.fromkeys(names, 4.0))
    for typed in (model, quantize(model, table, runtime="tensorrt")):
        assert built(typed).data_type == data_type_of(typed)


def test_a_float_model_becomes_16_or_8_bits_on_the_way(network, tmp_path):
    model, table = network
    save_table(tmp_path / "scales.json", table)
    write_cache(tmp_path / "calibration.cache", table, tensorrt="8.5.3", graph=model)
    scales = {"tensor_scales": {name: item.amax for name, item in table.tensors.items()}}
    (tmp_path / "tlt.json").write_text(json.dumps(scales))
    sizes = {"fp32": len(built(model).plan), "fp16": len(built(model, data_type="fp16").plan)}
    for name in ("scales.json", "calibration.cache", "tlt.json"):
        found = built(model, data_type="int8", cache=tmp_path / name)
        assert found.data_type == "int8"
        sizes[name] = len(found.plan)
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["scales.json"] < 0.4 * sizes["fp32"]
    assert sizes["scales.json"] == sizes["calibration.cache"] == sizes["tlt.json"]
    assert data_type_of(model) == "fp32"  # it has stayed as it was


def test_ranges_of_another_network_are_one_message(network, tmp_path):
    model, table = network
    other, others = network_of("resnet", 18)
    write_cache(tmp_path / "18.cache", others, graph=other)
    save_table(tmp_path / "18.json", others)
    (tmp_path / "tlt.json").write_text('{"tensor_scales": {"images": 1.0, "other": 2.0}}')
    for name in ("18.cache", "18.json", "tlt.json"):
        with pytest.raises(ModelError, match=rf"{name} is of another network: the network does not have "):
            built(model, data_type="int8", cache=tmp_path / name)
    write_cache(tmp_path / "10.cache", table, graph=model)
    with pytest.raises(ModelError, match=r"10\.cache is of another network: it has no range of backbone_"):
        built(other, data_type="int8", cache=tmp_path / "10.cache")
    with pytest.raises(ModelError, match="cannot read .*none.cache: No such file"):
        built(model, data_type="int8", cache=tmp_path / "none.cache")


def test_what_tensorrt_itself_adds_to_a_cache_is_left_out(network, tmp_path):
    model, table = network
    file = tmp_path / "calibration.cache"
    write_cache(file, table, graph=model)
    weight = model.graph.initializer[0].name
    file.write_text(
        file.read_text() + f"(Unnamed Layer* 3) [Constant]_output: 3ca14285\n{weight}: 3ca14285\n"
    )
    names = read_ranges(file, model).tensors.keys()
    assert names >= table.tensors.keys() and weight not in names
    assert all(name.isidentifier() or "/" in name for name in names)


@pytest.mark.parametrize(
    ("made", "wanted", "message"),
    [
        ("int8", "fp32", "--data_type fp32: model.onnx holds int8 already; give --data_type int8"),
        ("int8", "fp16", "--data_type fp16: model.onnx holds int8 already"),
        ("fp16", "fp32", "--data_type fp32: model.onnx holds fp16 already"),
        ("fp16", "int8", "--data_type int8: model.onnx holds fp16 already"),
        ("fp32", "int8", "--data_type int8: model.onnx has no ranges inside; give --calibration-cache"),
        ("fp32", "tf32", "--data_type tf32: must be one of fp32, fp16, int8"),
    ],
)
def test_data_types_that_the_model_cannot_become_are_one_message(network, made, wanted, message):
    model, table = network
    models = {"fp32": model, "fp16": half(model), "int8": quantize(model, table, runtime="tensorrt")}
    with pytest.raises(UsageError) as error:
        built(models[made], data_type=wanted)
    assert str(error.value).startswith(message)


def test_a_model_that_is_rounded_for_onnx_runtime_is_one_message(network):
    model, table = network
    with pytest.raises(ModelError, match="rounded to 8 bits for ONNX Runtime.*--runtime tensorrt"):
        built(quantize(model, table, runtime="onnxruntime"))


def test_a_model_with_nms_inside_is_one_message(network):
    model = onnx.ModelProto.FromString(network[0].SerializeToString())
    model.graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["M", 7]))
    with pytest.raises(ModelError, match="model.onnx has NMS inside, .* export it again without --nms"):
        built(model)


def test_ranges_that_are_not_needed_are_said_to_be_so(network, tmp_path, caplog):
    model, table = network
    built(quantize(model, table, runtime="tensorrt"), cache="some.cache")
    built(model, cache="some.cache")
    assert [record.message for record in caplog.records] == [
        "--calibration-cache some.cache is not used: the model has its ranges inside",
        "--calibration-cache some.cache is not used: fp32 needs no ranges",
    ]


def test_targets_are_those_named(network):
    model, _ = network
    assert built(model, targets=["sm89", "SM_86", "86"]).targets == ["sm86", "sm89"]
    turing = built(model, targets=["sm75"])
    assert turing.targets == ["sm75"] and turing.plan != built(model, targets=["sm86"]).plan
    with pytest.raises(UsageError) as error:
        built(model, targets=["sm86", "sm87", "sm90"])
    assert str(error.value).startswith(
        f"--target sm87, sm90: {library(RTX).title} builds for sm75, {', '.join(AMPERE)};"
    )
    with pytest.raises(UsageError, match="--target turing: name GPUs by compute capability, as sm86"):
        target_number("turing")


def test_batch_sizes(network):
    model, _ = network
    assert built(model).batch == (1, 1, 1)
    for wrong in ((2, 1, 4), (0, 1, 1), (1, 3, 2)):
        with pytest.raises(UsageError, match=f"batch sizes {', '.join(map(str, wrong))}: --min_batch_size"):
            built(model, batch=wrong)
    fixed, _ = network_of("resnet", 10, batch=3)
    assert built(fixed).batch == built(fixed, batch=(3, 3, 3)).batch == (3, 3, 3)
    with pytest.raises(UsageError, match="model.onnx has a fixed batch of 3: give no other batch sizes"):
        built(fixed, batch=(1, 1, 4))


def test_what_the_parser_cannot_read_has_the_nodes_name_and_operator():
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, HEIGHT, WIDTH])
    nodes = [
        helper.make_node("Relu", ["images"], ["x"], name="good"),
        helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="some.where"),
    ]
    graph = helper.make_graph(nodes, "g", [image], [output])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("some.where", 1)]
    with pytest.raises(ModelError) as error:
        built(helper.make_model(graph, opset_imports=opsets))
    text = str(error.value)
    assert text.startswith(f"{library(RTX).title} cannot read model.onnx: node strange (Frobnicate): ")
    assert "Plugin not found" in text and "\n" not in text


def test_an_input_that_is_not_ours_is_one_message():
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, "H", "W"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, "H", "W"])
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["y"])], "g", [image], [output])
    with pytest.raises(ModelError, match="model.onnx must have one input, images .* of a fixed size"):
        built(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_damaged_files_are_one_message(network, tmp_path):
    content = network[0].SerializeToString()
    file = tmp_path / "model.onnx"
    for damaged in (content[: len(content) // 2], b"no ONNX", b""):
        file.write_bytes(damaged)
        with pytest.raises(
            ModelError, match=r"model\.onnx is no ONNX model, or damaged \(.*\): export it again$"
        ):
            read_model(file)
    with pytest.raises(ModelError, match=r"cannot read .*none\.onnx: No such file"):
        read_model(tmp_path / "none.onnx")
    file.write_bytes(content)
    assert read_model(file) == network[0]


def test_a_network_that_cannot_be_built_is_one_message(network, monkeypatch):
    real = library(RTX)
    trt = SimpleNamespace(
        **{name: getattr(real.trt, name) for name in dir(real.trt) if not name.startswith("__")}
    )

    def builder(log):
        found = real.trt.Builder(log)

        def fail(network, config):
            log.errors.append("no memory")

        names = ("create_network", "create_builder_config", "create_optimization_profile")
        return SimpleNamespace(
            **{name: getattr(found, name) for name in names}, build_serialized_network=fail
        )

    trt.Builder = builder
    with pytest.raises(ModelError, match="cannot build model.onnx: no memory"):
        build(network[0], path="model.onnx", library=real._replace(trt=trt))


def test_a_timing_cache_has_no_use_where_nothing_is_timed(network, caplog):
    assert built(network[0], timing_cache=b"").timing_cache is None
    assert [record.message.split(":")[0] for record in caplog.records] == ["--timing-cache is not used"]


class FakeFlags:
    FP16, INT8 = "FP16", "INT8"


class FakeCalibrator:
    pass


class FakeMinMaxCalibrator(FakeCalibrator):
    pass


FAKE_10 = SimpleNamespace(
    BuilderFlag=FakeFlags,
    IInt8EntropyCalibrator2=FakeCalibrator,
    IInt8MinMaxCalibrator=FakeMinMaxCalibrator,
    HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere and later"),
)
TEN = Library(TENSORRT, "10.3.0", FAKE_10, None)
ELEVEN = Library(TENSORRT, "11.4.0", FAKE_10, None)


class FakeConfig:
    def __init__(self):
        self.flags, self.int8_calibrator, self.hardware_compatibility_level = [], None, None
        self.fits = True

    def set_flag(self, flag):
        self.flags.append(flag)

    def create_timing_cache(self, content):
        return SimpleNamespace(serialize=lambda: content + b" and more")

    def set_timing_cache(self, times, ignore_mismatch):
        assert not ignore_mismatch
        return self.fits


@pytest.mark.parametrize(
    ("data_type", "strict", "flags"),
    [
        ("fp32", False, []),
        ("fp16", False, ["FP16"]),
        ("int8", False, ["INT8", "FP16"]),
        ("int8", True, ["INT8"]),
    ],
)
def test_flags_on_a_fake_tensorrt_10(data_type, strict, flags):
    config = FakeConfig()
    allow_types(FAKE_10, config, data_type, calibration=None, strict=strict)
    assert config.flags == flags and config.int8_calibrator is None


@pytest.mark.parametrize("method", ["EntropyCalibration2", "MinMaxCalibration"])
def test_the_calibrator_on_a_fake_tensorrt_10_only_has_the_cache(method):
    config, cache = FakeConfig(), f"TRT-100300-{method}\nimages: 3c010204\n".encode()
    allow_types(FAKE_10, config, "int8", calibration=cache, strict=False)
    calibrator = config.int8_calibrator
    assert isinstance(calibrator, FakeMinMaxCalibrator) == (method == "MinMaxCalibration")
    assert calibrator.read_calibration_cache() == cache and calibrator.get_batch(["images"]) is None
    assert calibrator.get_batch_size() == 1 and calibrator.write_calibration_cache(cache) is None


def test_a_fake_tensorrt_10_gets_the_float_model_and_the_cache(network, tmp_path):
    model, table = network
    file = tmp_path / "calibration.cache"
    write_cache(file, table, tensorrt="10.3.0", graph=model)
    save_table(tmp_path / "scales.json", table)
    for path in (file, tmp_path / "scales.json"):
        given, data_type, calibration = module._prepare(model, TEN, "int8", path, "model.onnx")
        assert (given is model, data_type, calibration) == (True, "int8", file.read_bytes())
    assert module._prepare(model, TEN, "fp16", None, "model.onnx") == (model, "fp16", None)
    given, data_type, calibration = module._prepare(model, ELEVEN, "int8", file, "model.onnx")
    assert (data_type_of(given), data_type, calibration) == ("int8", "int8", None)
    assert data_type_of(module._prepare(model, ELEVEN, "fp16", None, "model.onnx")[0]) == "fp16"


def test_a_cache_of_another_version_is_refused_by_a_fake_tensorrt_10(network, tmp_path):
    model, table = network
    file = tmp_path / "calibration.cache"
    write_cache(file, table, tensorrt="8.5.3", graph=model)
    with pytest.raises(ModelError) as error:
        module._prepare(model, TEN, "int8", file, "model.onnx")
    assert str(error.value) == (
        f"{file} is for another TensorRT (its first line has 8503) than this one, 10.3.0: detectkit calibrate --retarget"
        f" 10.3.0 {file}"
    )


def test_targets_of_a_fake_tensorrt(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    config = FakeConfig()
    assert set_targets(TEN, config, []) == set_targets(TEN, config, ["sm86"]) == ["sm86"]
    assert config.hardware_compatibility_level is None
    assert set_targets(ELEVEN, config, ["sm80", "sm90"]) == ["sm80", "sm90"]
    assert config.hardware_compatibility_level == "ampere and later"
    with pytest.raises(
        UsageError, match="--target sm75: TensorRT 10.3.0 builds for the GPU of this machine, sm86"
    ):
        set_targets(TEN, config, ["sm75"])


def test_the_timing_cache_of_a_fake_tensorrt():
    config = FakeConfig()
    assert set_timing_cache(TEN, config, None) is None
    assert set_timing_cache(TEN, config, b"times").serialize() == b"times and more"
    config.fits = False
    with pytest.raises(UsageError, match="--timing-cache is of another TensorRT or GPU"):
        set_timing_cache(TEN, config, b"times")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_fake_tensorrt_without_a_gpu_is_one_message(network):
    with pytest.raises(UsageError, match="TensorRT 10.3.0 builds an engine on the GPU that it is for"):
        build(network[0], path="model.onnx", library=TEN)

"""8-bit ONNX: the numbers in the file, what they compute, and that ONNX Runtime computes it in integers."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, fx, nn

from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.onnx import check_against, to_model
from detectkit.deploy.placement import eight_bit_layers
from detectkit.deploy.qdq import Runtime, quantize, table_from_cache
from detectkit.deploy.scales import Range, ScaleTable, check_table
from detectkit.errors import ModelError
from detectkit.model.detector import Detector, build
from detectkit.model.graph import eight_bit_convolutions, folded
from detectkit.ops.quantize import fake_quantize
from detectkit.runtimes.onnx import add_header
from detectkit.spec.model_pb2 import ModelConfig

RUNTIMES: tuple[Runtime, ...] = ("tensorrt", "onnxruntime")
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def network(arch: str, depth: int = 0) -> tuple[Detector, onnx.ModelProto, ScaleTable]:
    """A detector whose biases and batch normalisation do something, as a float network, and its ranges.

    Without the means of what its convolutions read, so that rounding is all that is done to it.
    """
    torch.manual_seed(0)
    detector = build(ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True), ["square", "bar"], 3)
    with torch.no_grad():
        for name, weight in detector.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.9
        detector(IMAGES)
    model = to_model(detector.eval(), height=64, width=96)
    return detector, model, calibrate(detector, [IMAGES], method="minmax")._replace(means={})


@pytest.fixture(scope="module")
def resnet() -> tuple[Detector, onnx.ModelProto, ScaleTable]:
    return network("resnet", 10)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, images: Tensor = IMAGES, *, optimised: bool = True) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]


def optimised(model: onnx.ModelProto, folder: Path) -> list[onnx.NodeProto]:
    """What ONNX Runtime makes of a network."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine only
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_come_back_within_half_a_step(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable], runtime: Runtime, per_channel: bool
) -> None:
    _, model, table = resnet
    before, after = constants(model), constants(
        quantize(model, table, runtime=runtime, per_channel=per_channel)
    )
    layers = eight_bit_layers(model)
    for layer in layers:
        weight, integers = before[f"{layer}.weight"], after[f"{layer}.weight/integer"]
        scale = after[f"{layer}.weight/scale"]
        assert integers.dtype == np.int8 and np.abs(integers).max() == 127
        assert scale.shape == ((len(weight),) if per_channel else ())
        step = scale.reshape(-1, 1, 1, 1)
        assert (np.abs(integers * step - weight) <= 0.5001 * step).all()
        assert f"{layer}.weight" not in after  # the float ones are gone
    for head in ("output_cov", "output_bbox"):
        assert np.array_equal(after[f"{head}.weight"], before[f"{head}.weight"])
    assert len(layers) == 1 + 4 * 3  # the stem; of each unit two convolutions and a projection


def test_biases_are_whole_steps_of_the_sums_in_onnx_runtime_and_float_in_tensorrt(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    _, model, table = resnet
    before = constants(model)
    after = constants(quantize(model, table, runtime="onnxruntime"))
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[1].startswith("output"):
            continue
        source, weight, bias = node.input
        step = after[f"{source}/scale"] * after[f"{weight}/scale"]
        assert np.array_equal(after[f"{bias}/scale"], step)  # exactly: ONNX Runtime does not look at it
        assert after[f"{bias}/integer"].dtype == np.int32
        assert (np.abs(after[f"{bias}/integer"] * step - before[bias]) <= 0.5001 * step).all()
    symmetric = constants(quantize(model, table, runtime="tensorrt"))
    assert np.array_equal(symmetric["backbone.conv1.bias"], before["backbone.conv1.bias"])


def test_zero_is_at_0_or_128_for_onnx_runtime_and_always_0_for_tensorrt(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    _, model, table = resnet
    tensors = table.tensors | {
        "backbone_relu": Range(amax=5.1, low=0.0, high=6.0, sqnr=None),
        "backbone_layer1_0_conv2": Range(amax=2.54, low=-2.0, high=2.54, sqnr=None),
    }
    table = table._replace(tensors=tensors)
    written = constants(quantize(model, table, runtime="onnxruntime"))
    assert written["backbone_relu/zero"] == np.uint8(0)
    assert written["backbone_relu/scale"] == np.float32(0.02)  # 5.1 / 255
    assert written["backbone_layer1_0_conv2/zero"] == np.uint8(128)
    assert written["backbone_layer1_0_conv2/scale"] == np.float32(0.02)  # 2.54 / 127
    written = constants(quantize(model, table, runtime="tensorrt"))
    assert written["backbone_relu/scale"] == np.float32(5.1 / 127)
    zeros = [value for name, value in written.items() if name.endswith("/zero")]
    assert all(value.dtype == np.int8 and not value.any() for value in zeros) and len(zeros) > 20


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_layers_that_stay_float_are_as_they_were(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable], runtime: Runtime
) -> None:
    detector, model, table = resnet
    before, kept = constants(model), "backbone.layer2.0.conv1"
    after = constants(quantize(model, table, runtime=runtime, float_layers=[kept]))
    assert np.array_equal(after[f"{kept}.weight"], before[f"{kept}.weight"])
    assert np.array_equal(after[f"{kept}.bias"], before[f"{kept}.bias"])
    assert f"{kept}.weight/integer" not in after
    everything = quantize(model, table, runtime=runtime, float_layers=eight_bit_layers(model))
    assert [node.op_type for node in everything.graph.node] == [node.op_type for node in model.graph.node]
    for one, other in zip(run(everything), run(model), strict=True):
        assert torch.equal(one, other)


class Rounding(fx.Interpreter):
    """The folded network in PyTorch, each value computed from those that the file gives before it.

    So one value in the middle between two steps, which may go either way, does not change all that come behind it.
    """

    def __init__(
        self, graph: fx.GraphModule, table: ScaleTable, given: dict[str, Tensor], *, unsigned: bool
    ) -> None:
        super().__init__(graph)
        self.table, self.given, self.unsigned = table, given, unsigned
        self.equal: dict[str, float] = {}  # share of the values that are those of the file
        with torch.no_grad():
            for node in eight_bit_convolutions(graph):
                weight = graph.get_parameter(f"{node.target}.weight")
                amax = torch.tensor(table.weights[f"{node.target}.weight"])
                weight.copy_(fake_quantize(weight, amax, axis=0))

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        if node.name not in self.given:
            return value
        found = self.table.tensors[node.name]
        value = fake_quantize(value, found.amax, unsigned=self.unsigned and found.unsigned)
        close = torch.isclose(value, self.given[node.name], atol=1e-3 * found.amax)
        self.equal[node.name] = float(close.float().mean())
        return self.given[node.name]


def test_the_file_computes_what_rounding_in_pytorch_does(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    detector, model, table = resnet
    written = quantize(model, table, runtime="onnxruntime")
    names = [name for name in table.tensors if f"{name}/scale" in constants(written)]
    # The image and the stem; of each unit both convolutions, the projection and the sum.
    assert len(names) == 1 + 1 + 4 * (2 + 1 + 1)
    for name in names:
        written.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"{name}/rounded"))
    coverage, bbox, *values = run(written, optimised=False)
    simulated = Rounding(folded(detector), table, dict(zip(names, values, strict=True)), unsigned=True)
    with torch.no_grad():
        expected = simulated.run(IMAGES)
        exact = detector(IMAGES)
    assert set(simulated.equal) == set(names) and min(simulated.equal.values()) > 0.999
    assert torch.allclose(expected[0], coverage, atol=1e-5) and torch.allclose(expected[1], bbox, atol=1e-4)
    # The integer kernels compute the same but for such ties; and 8 bits are some noise, not more.
    for one, integer, float_map in zip(
        exact, run(quantize(model, table, runtime="onnxruntime")), (coverage, bbox), strict=True
    ):
        noise = (one - float_map).square().mean()
        assert (integer - float_map).square().mean() < noise
        assert 0 < noise < 0.02 * one.square().mean()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_pyramid_in_8_bits(pyramid: Detector, runtime: Runtime) -> None:
    """The convolution of all levels is rounded to what each of them reads; sums of shares are sums of floats."""
    model, table = to_model(pyramid, height=64, width=96), calibrate(pyramid, [IMAGES], method="minmax")
    check_table(table, model, "scales.json")
    assert eight_bit_layers(model) == ["fine.conv", "mid.conv", "shared", "shared_1", "shared_2"]
    written = quantize(model, table, runtime=runtime)
    found = constants(written)
    for name, before in (("shared", "sum_1"), ("shared_1", "down"), ("shared_2", "coarse")):
        assert found[f"{name}.weight/integer"].dtype == np.int8 and f"{before}/scale" in found
        if runtime == "onnxruntime":  # biases are whole steps of what each copy reads
            step = found[f"{before}/scale"] * found[f"{name}.weight/scale"]
            assert np.array_equal(found[f"{name}.bias/scale"], step)
    noise = [(one - two).square().mean() / two.var() for one, two in zip(run(written), pyramid(IMAGES))]
    assert 0 < min(noise) and max(noise) < 0.01
    assert check_against(pyramid, written.SerializeToString(), tolerance=1, least_sqnr=20) > 0


def test_onnx_runtime_resizes_integers(pyramid: Detector, tmp_path: Path) -> None:
    model, table = to_model(pyramid, height=64, width=96), calibrate(pyramid, [IMAGES], method="minmax")
    written = quantize(model, table, runtime="onnxruntime")
    passed = ("mid_function", "coarse", "up", "interpolate")  # all have the values of the first
    assert len({float(constants(written)[f"{name}/scale"]) for name in passed}) == 1
    nodes = optimised(written, tmp_path)
    maker = {name: node.op_type for node in nodes for name in node.output}
    assert [maker[node.input[0]] for node in nodes if node.op_type == "Resize"] == [
        "QLinearConv",
        "NhwcMaxPool",
    ]


@pytest.mark.parametrize(
    ("arch", "depth", "others"),
    [
        ("resnet", 10, {"QLinearAdd": 4}),
        ("mobilenet_v2", 0, {"QLinearAdd": 8}),  # relu6
        ("efficientnet_lite0", 0, {"QLinearAdd": 6}),  # TensorFlow's padding
        ("squeezenet", 0, {"QLinearConcat": 8, "NhwcMaxPool": 3}),
        pytest.param("darknet", 19, {"QLinearLeakyRelu": 18, "NhwcMaxPool": 5}, marks=pytest.mark.slow),
        pytest.param("googlenet", 0, {"QLinearConcat": 9, "NhwcMaxPool": 12}, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_computes_all_but_the_heads_in_integers(
    arch: str, depth: int, others: dict[str, int], tmp_path: Path
) -> None:
    _, model, table = network(arch, depth)
    nodes = optimised(quantize(model, table, runtime="onnxruntime"), tmp_path)
    found = Counter(node.op_type for node in nodes)
    assert found["QLinearConv"] == len(eight_bit_layers(model))
    assert found["Conv"] + found["FusedConv"] == 2  # the heads
    assert {kind: found[kind] for kind in others} == others
    assert found["QuantizeLinear"] == 1  # the image
    assert not {"Relu", "Clip", "Add", "Concat", "MaxPool", "LeakyRelu"} & set(found)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_concatenated_has_one_scale(runtime: Runtime) -> None:
    _, model, table = network("squeezenet")
    written = constants(quantize(model, table, runtime=runtime))
    joins = [node for node in model.graph.node if node.op_type == "Concat"]
    last = joins.pop()  # the heads read it: for TensorRT it stays float
    for node in joins:
        scales = {float(written[f"{name}/scale"]) for name in node.input}
        widest = max(table.tensors[name].amax for name in node.input)
        assert len(scales) == 1
        assert scales.pop() == pytest.approx(widest / (127 if runtime == "tensorrt" else 255), rel=0.2)
    assert len(joins) == 7 and (f"{last.output[0]}/scale" in written) == (runtime == "onnxruntime")


@pytest.mark.parametrize("amax", [0.0, 1e-30, 1e-9])
def test_where_no_signal_comes_in_the_bias_goes_out(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable], amax: float
) -> None:
    _, model, table = resnet
    dead, bias = "backbone_layer3_0_relu", "backbone.layer3.0.conv2.bias"
    table = table._replace(
        tensors=table.tensors | {dead: Range(amax, 0.0, amax, None)},
        weights=table.weights | {"backbone.layer3.0.conv2.weight": [0.0, *[1e-12] * 255]},
    )
    for per_channel in (True, False):
        written = constants(quantize(model, table, runtime="onnxruntime", per_channel=per_channel))
        back = written[f"{bias}/integer"] * written[f"{bias}/scale"].astype(np.float64)
        assert np.isfinite(written[f"{dead}/scale"]) and written[f"{dead}/scale"] > 0
        assert np.abs(back - constants(model)[bias]).max() < 0.01
    outputs = run(quantize(model, table, runtime="onnxruntime"))
    assert all(values.isfinite().all() for values in outputs)


def test_a_table_from_a_cache_has_the_weights_and_knows_what_is_never_negative(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    _, model, table = resnet
    amaxes = {name: values.amax for name, values in table.tensors.items()} | {"of another network": 1.0}
    made = table_from_cache(model, amaxes)
    check_table(made, model, "calibration.cache")
    assert made.method == "cache" and set(made.tensors) == set(table.tensors)
    assert made.tensors["backbone_relu"].unsigned and made.tensors["images"].unsigned
    assert not made.tensors["backbone_layer1_0_conv2"].unsigned
    assert made.weights["backbone.conv1.weight"] == pytest.approx(table.weights["backbone.conv1.weight"])
    one, other = (quantize(model, source, runtime="tensorrt") for source in (table, made))
    assert one.graph == other.graph


def test_the_header_comes_along_and_the_network_stays_as_it_was(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    detector, original, table = resnet
    model = onnx.ModelProto()
    model.CopyFrom(original)
    names = ["square", "bar"]
    add_header(model, spec_text="random_seed: 1", class_names=names, channels=3, outline=detector.outline)
    before = model.SerializeToString(deterministic=True)
    written = quantize(model, table, runtime="tensorrt")
    assert model.SerializeToString(deterministic=True) == before
    assert list(written.metadata_props) == list(model.metadata_props) and written.metadata_props
    assert len(written.SerializeToString()) < 0.3 * len(before)


def test_what_cannot_be_quantised_is_refused(resnet: tuple[Detector, onnx.ModelProto, ScaleTable]) -> None:
    _, model, table = resnet
    written = quantize(model, table, runtime="tensorrt")
    with pytest.raises(ModelError, match="8-bit"):
        quantize(written, table, runtime="tensorrt")
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 12
    with pytest.raises(ModelError, match="opset 13 or later, the network has 12"):
        quantize(old, table, runtime="tensorrt")
    fewer = {name: values for name, values in table.tensors.items() if name != "backbone_relu"}
    with pytest.raises(ModelError, match="no range for backbone_relu"):
        quantize(model, table._replace(tensors=fewer), runtime="tensorrt")
    pruned = table.weights | {"backbone.conv1.weight": [1.0] * 16}
    with pytest.raises(ModelError, match=r"16 ranges for backbone\.conv1\.weight, which has 64 filters"):
        quantize(model, table._replace(weights=pruned), runtime="tensorrt")
    half = onnx.ModelProto()
    half.CopyFrom(model)
    weight = next(tensor for tensor in half.graph.initializer if tensor.name == "backbone.conv1.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    with pytest.raises(ModelError, match="quantise the float32 network"):
        quantize(half, table, runtime="tensorrt")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("arch", ["resnet", "mobilenet_v2"])  # the second has depthwise convolutions
def test_biases_make_up_for_what_the_rounding_of_weights_does_on_average(arch: str, runtime: Runtime) -> None:
    detector, model, table = network(arch, 10 if arch == "resnet" else 0)
    means = calibrate(detector, [IMAGES]).means
    before = constants(model)
    float_biases = runtime == "tensorrt"
    plain, made = (
        constants(quantize(model, item, runtime=runtime, per_channel=False))
        for item in (table, table._replace(means=means))
    )
    for node in (node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in means):
        source, weight, bias = node.input
        assert np.array_equal(plain[f"{weight}/integer"], made[f"{weight}/integer"])
        steps = made[f"{weight}/scale"]
        error = torch.from_numpy(made[f"{weight}/integer"] * steps.astype(np.float64) - before[weight])
        groups = next((item.i for item in node.attribute if item.name == "group"), 1)
        side = weight_side(error)
        constant = torch.tensor(means[source], dtype=torch.float64)[None, :, None, None].expand(
            -1, -1, side, side
        )
        lost = torch.conv2d(constant, error, groups=groups).flatten().numpy()
        if float_biases:
            assert made[bias] == pytest.approx(before[bias] - lost, abs=1e-5)
        else:
            step = made[f"{bias}/scale"]
            assert np.abs(made[f"{bias}/integer"] * step - (before[bias] - lost)).max() <= 0.51 * step.max()


def weight_side(weight: Tensor) -> int:
    """Of its square kernel."""
    assert weight.shape[2] == weight.shape[3]
    return weight.shape[2]


def test_with_corrected_biases_the_maps_are_nearer(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    detector, model, table = resnet
    means = calibrate(detector, [IMAGES]).means
    wanted = run(model)
    errors = [
        sum(
            float((one - other).square().sum())
            for one, other in zip(
                run(quantize(model, item, runtime="onnxruntime", per_channel=False)), wanted
            )
        )
        for item in (table, table._replace(means=means))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_heads_and_what_stays_float_keep_their_biases(
    resnet: tuple[Detector, onnx.ModelProto, ScaleTable],
) -> None:
    detector, model, table = resnet
    table = table._replace(means=calibrate(detector, [IMAGES]).means)
    kept = "backbone.layer1.0.conv1"
    before, after = constants(model), constants(
        quantize(model, table, runtime="tensorrt", float_layers=[kept])
    )
    for name in (kept, "output_cov", "output_bbox"):
        assert np.array_equal(after[f"{name}.bias"], before[f"{name}.bias"])
    assert not np.array_equal(after["backbone.conv1.bias"], before["backbone.conv1.bias"])

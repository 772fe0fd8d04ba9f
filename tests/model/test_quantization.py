"""Quantisation-aware training: what it computes, how its ranges move, and that its models are models."""

import copy
import json
import logging
import math

import pytest
import safetensors.torch
import torch
from torch import fx, nn
from torch.nn.functional import conv2d

from detectkit import spec
from detectkit.compress.prune import prune
from detectkit.errors import ModelError
from detectkit.model import checkpoint, header, pretrained
from detectkit.model.detector import build
from detectkit.model.graph import eight_bit_convolutions, folded
from detectkit.model.quantization import Ranges
from detectkit.ops.quantize import channel_amax, fake_quantize
from detectkit.spec import ModelConfig
from detectkit.spec.networks import NETWORKS

LARGE = {"vgg", "darknet", "googlenet", "efficientnet_b0", "efficientnet_lite1"}
ARCHS = [
    pytest.param(arch, marks=pytest.mark.slow) if arch in LARGE else arch
    for arch in NETWORKS
    if arch not in {f"efficientnet_b{number}" for number in range(1, 8)}
]


def quantised(arch="resnet", *, num_layers=0, channels=3, batches=3, **choices):
    """A network in 8-bit rounding that has seen some batches, in evaluation mode."""
    torch.manual_seed(4)
    depth = 10 if arch == "resnet" else num_layers
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True, **choices)
    detector = build(config, ["car", "van"], channels)
    detector.ranges = Ranges(detector)
    with torch.no_grad():
        for _ in range(batches):
            detector.train()(torch.rand(2, channels, 64, 64))
    return detector.eval()


# What is computed


def by_hand(detector, images):
    """The int8 network of a ResNet10: batch normalisation folded, weights and what is stored rounded."""
    amax = {name: max(abs(low), abs(high)) for name, (low, high) in detector.ranges.learned().items()}
    backbone = detector.backbone

    def convolve(values, layer, norm):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = layer.weight * scale.reshape(-1, 1, 1, 1)
        weight = fake_quantize(weight, weight.abs().amax((1, 2, 3)), axis=0).to(values)
        bias = norm.bias - norm.running_mean * scale
        return conv2d(values, weight, bias, layer.stride, layer.padding)

    def rounded(values, name):
        return fake_quantize(values, amax[name]).to(values)

    values = rounded(images, "images")
    values = rounded(convolve(values, backbone.conv1, backbone.bn1).relu(), "backbone_relu")
    for stage in (1, 2, 3, 4):
        (unit,) = backbone.get_submodule(f"layer{stage}")
        name = f"backbone_layer{stage}_0"
        inner = rounded(convolve(values, unit.conv1, unit.bn1).relu(), f"{name}_relu")
        inner = rounded(convolve(inner, unit.conv2, unit.bn2), f"{name}_conv2")
        if unit.downsample:
            values = rounded(convolve(values, *unit.downsample), f"{name}_downsample_0")
        values = rounded((inner + values).relu(), f"{name}_relu_1")
    cov, bbox = detector.output_cov, detector.output_bbox
    return torch.sigmoid(conv2d(values, cov.weight, cov.bias)), conv2d(values, bbox.weight, bbox.bias)


def test_evaluation_computes_the_folded_network_in_8_bits():
    # Coverage of 0.5 is where rounding shows most. In 32 bits a few values would be rounded to the other side.
    detector = quantised(objective_set={"bbox": {}, "cov": {"prior": 0.5}}).double()
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        found, wanted, plain = detector(images), by_hand(detector, images), detector.plain(images)
    for one, other, third in zip(found, wanted, plain, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)
        assert (one - third).abs().max() > 1e-3  # the rounding is to be seen


class Rounded(fx.Interpreter):
    """A folded network whose tensors and weights are rounded as a detector's ranges say."""

    def __init__(self, detector):
        graph, rounded = folded(detector), detector.ranges.rounded(detector)
        super().__init__(graph)
        self.amax = {name: detector.ranges.amax(name) for name in rounded}
        for node in eight_bit_convolutions(graph):
            weight = graph.get_parameter(f"{node.target}.weight")
            weight.data = fake_quantize(weight.data, channel_amax(weight), axis=0).to(weight)

    def run_node(self, node):
        value = super().run_node(node)
        amax = self.amax.get(node.name)
        return value if amax is None else fake_quantize(value, amax).to(value)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_backbone_in_8_bits(arch, monkeypatch):
    detector = quantised(arch).double()
    for layer in detector.modules():
        if isinstance(layer, nn.BatchNorm2d):  # powers of 2, so that folding changes no rounding of a weight
            layer.running_var = 4 ** torch.log(layer.running_var).div(math.log(4)).round() - layer.eps
    monkeypatch.setattr(fx.GraphModule, "float", lambda graph: graph)  # `folded` stays in 64 bits
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = detector(images), Rounded(detector).run(images)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)


def test_a_pyramid_in_8_bits(pyramid, monkeypatch):
    """A convolution of several levels is rounded once; copies of it, each folded with its normalisation, are the same."""
    pyramid.ranges = Ranges(pyramid)
    with torch.no_grad():
        pyramid.ranges(pyramid, torch.rand(2, 3, 64, 96))
    pyramid.double().eval()
    for layer in pyramid.modules():
        if isinstance(layer, nn.BatchNorm2d):  # powers of 2, so that folding changes no rounding of a weight
            layer.running_var = 4 ** torch.log(layer.running_var).div(math.log(4)).round() - layer.eps
    monkeypatch.setattr(fx.GraphModule, "float", lambda graph: graph)  # `folded` stays in 64 bits
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        found, plain, wanted = (
            pyramid.ranges(pyramid, images),
            pyramid.plain(images),
            Rounded(pyramid).run(images),
        )
    for one, other, third in zip(found, wanted, plain, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-5, rtol=1e-5)
        assert (one - third).abs().max() > 1e-3
    learned, rounded = pyramid.ranges.learned(), pyramid.ranges.rounded(pyramid)
    assert learned["images"] == learned["near/Sigmoid"] == (0.0, 1.0)
    assert len({learned[name] for name in ("mid_function", "coarse", "up", "interpolate")}) == 1
    assert {"sum_1", "down", "unit", "relu_2"} < rounded and not rounded & {
        "predict",
        "far",
        "permute",
        "mid",
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_of_every_backbone_has_gradients_for_all_weights(arch):
    detector = quantised(arch, batches=0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coverage, boxes = detector(torch.rand(2, 3, 64, 64))
    (coverage.mean() + boxes.square().mean()).backward()
    without = [name for name, weight in detector.named_parameters() if not weight.grad.abs().sum() > 0]
    assert all(weight.grad.isfinite().all() for weight in detector.parameters())
    # A bias before batch normalisation does nothing (VGG), nor does one before a gate that is shut.
    assert [name for name in without if not name.endswith("bias")] == []


def test_what_stays_in_floating_point():
    detector = quantised("efficientnet_b0", batches=0)
    apart = set(detector.ranges.learned()) - detector.ranges.rounded(detector)
    heads = {"output_cov", "output_cov/Sigmoid", "output_bbox/BiasAdd"}
    gates = ("_avgpool", "_fc1", "_activation", "_fc2", "_scale_activation")
    assert heads < apart and len(apart) == 3 + 16 * len(gates)  # 16 units, each with a gate
    assert all(name.endswith(gates) for name in apart - heads)


def test_a_normalised_image_is_rounded_after_that():
    torch.manual_seed(0)
    detector = build(ModelConfig(arch="resnet", num_layers=10), ["car"], 3)
    detector.normalize.mean.fill_(0.5)
    detector.ranges = Ranges(detector)
    detector.train()(torch.rand(1, 3, 32, 32))
    assert "images" not in detector.ranges.rounded(detector)
    assert detector.ranges.learned()["truediv"][0] < -0.4


# Ranges


def test_ranges_by_hand():
    torch.manual_seed(0)
    detector = build(ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True), ["car"], 1)
    detector.normalize.mean.fill_(0.5)
    detector.ranges = Ranges(detector)
    seen = []
    for low, high in ((0.2, 0.8), (0.0, 1.0), (0.2, 0.8)):
        images = torch.full((1, 1, 32, 32), low)
        images[..., 0] = high
        with torch.no_grad():
            detector(images)
        seen += detector.ranges.learned()["truediv"]
    # The first batch as it is; then 9/11 of the way, for (1 + 1) / (10 + 1) is 2/11; then 9/12.
    low, high = -0.3 - 0.2 * 9 / 11, 0.3 + 0.2 * 9 / 11
    wanted = [-0.3, 0.3, low, high, low + 0.75 * (-0.3 - low), high + 0.75 * (0.3 - high)]
    assert seen == pytest.approx(wanted, abs=1e-6) and detector.ranges.batches == 3
    detector.ranges.batches.fill_(100_000)  # no more than 0.001 of the way
    with torch.no_grad():
        detector(torch.full((1, 1, 32, 32), 0.9))
    assert detector.ranges.learned()["truediv"][1] == pytest.approx(wanted[-1] + 0.001 * (0.4 - wanted[-1]))


def test_images_and_coverage_have_the_range_that_they_are_known_to_have():
    learned = quantised().ranges.learned()
    assert learned["images"] == learned["output_cov/Sigmoid"] == (0.0, 1.0)


def test_evaluation_moves_no_range():
    detector = quantised()
    before = detector.ranges.learned()
    detector(5 * torch.rand(1, 3, 32, 32))
    assert detector.ranges.learned() == before


def test_what_is_put_together_has_one_range():
    ranges = quantised("googlenet").ranges
    learned = ranges.learned()
    branches = [f"backbone_inception3a_branch{name}_function" for name in ("1", "2_1", "3_1", "4_1")]
    assert len({learned[name] for name in (*branches, "cat")}) == 1
    own = [ranges.get_buffer(name)[1] for name in branches]
    assert learned["cat"][1] == pytest.approx(float(max(own))) and len(set(own)) == 4
    assert learned["backbone_maxpool1"] == learned["backbone_conv1_function"]


def test_settled_ranges_and_statistics_stand_still():
    detector = quantised().train()
    detector.settle()
    before = copy.deepcopy(detector.state_dict())
    detector.train()(torch.rand(2, 3, 32, 32))[1].sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert detector.backbone.bn1.weight.grad.abs().sum() > 0


def test_a_tensor_of_zeros_stays_one():
    detector = quantised()
    with torch.no_grad():
        detector.backbone.layer1[0].bn2.weight.zero_()
        detector.backbone.conv1.weight[0] = 0
        detector.ranges.get_buffer("backbone_layer1_0_conv2").zero_()
        coverage, boxes = detector(torch.rand(1, 3, 32, 32))
    assert coverage.isfinite().all() and boxes.isfinite().all()


# Models


@pytest.fixture
def saved(tmp_path, tiny):
    tiny.model_config.num_layers = 10
    detector = quantised()
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, detector, spec.dumps(tiny), spec.class_names(tiny))
    return path, detector


def test_a_loaded_model_computes_the_same(saved):
    path, detector = saved
    images = torch.rand(1, 3, 64, 64)
    loaded = checkpoint.load(path).detector
    assert loaded.ranges.learned() == detector.ranges.learned()
    assert all(torch.equal(*pair) for pair in zip(loaded(images), detector(images), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("ranges.add"),
            "lacks ranges.add: its ranges are not those of its network",
        ),
        (lambda tensors: tensors.update({"ranges.sub_7": torch.zeros(2)}), "also has ranges.sub_7"),
        (lambda tensors: tensors["ranges.images"].fill_(torch.nan), "ranges.images is no range"),
        (
            lambda tensors: tensors["ranges.images"].copy_(torch.tensor([1.0, 0.0])),
            "ranges.images is no range",
        ),
        (lambda tensors: tensors.update({"ranges.images": torch.zeros(3)}), "ranges.images is no range"),
    ],
)
def test_damaged_ranges_are_refused(saved, change, message):
    path, _ = saved
    with safetensors.safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    change(tensors)
    entry = json.loads(metadata["detectkit"]) | {
        "checksum": header.UNSEALED
    }  # as of a writer that makes none
    safetensors.torch.save_file(tensors, path, metadata | {"detectkit": json.dumps(entry)})
    with pytest.raises(ModelError, match=message):
        checkpoint.load(path)


def test_a_float_training_starts_from_a_rounded_model(saved):
    path, detector = saved
    fresh = build(ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True), ["square", "bar"], 3).eval()
    report = pretrained.load_pretrained(fresh, path, ["square", "bar"])
    images = torch.rand(1, 3, 64, 64)
    assert fresh.ranges is None and report.skipped == []
    assert torch.equal(fresh(images)[0], detector.plain(images)[0])


def test_pruning_leaves_the_ranges_out(saved, tiny, caplog):
    _, detector = saved
    caplog.set_level(logging.INFO)
    tiny.pruning_config.threshold = 0.99
    pruned = prune(detector, tiny.pruning_config, experiment=tiny, sizes={}).detector
    assert pruned.ranges is None and detector.ranges is not None
    assert "the ranges of 8-bit rounding are left out" in caplog.text
    assert pruned.backbone.layer4[0].conv1.out_channels < 512
    pruned.ranges = Ranges(pruned)
    coverage, _ = pruned.train()(torch.rand(2, 3, 64, 64))
    assert coverage.isfinite().all() and pruned.ranges.batches == 1

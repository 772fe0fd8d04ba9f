"""The ONNX model computes what the detector does, in ONNX Runtime."""

import copy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detectkit.deploy.onnx import save_onnx, to_onnx
from detectkit.model.detector import Detector, build
from detectkit.spec.model_pb2 import ModelConfig

HEIGHT, WIDTH = 64, 96


def trained(arch: str, depth: int = 0, activation: str = "", channels: int = 3) -> Detector:
    """A detector in training mode, in which no tensor has the value that would hide its absence from the model."""
    torch.manual_seed(0)
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True, dropout_rate=0.5)
    if activation:
        config.activation.activation_type = activation
    detector = build(config, ["square", "bar"], channels)
    with torch.no_grad():
        detector.normalize.mean.fill_(0.4)
        detector.normalize.std.fill_(0.3)
        for name, weight in detector.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
        for layer in detector.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.momentum = (
                    0.9  # one batch moves the running statistics to where the outputs are not huge
                )
        detector(torch.rand(4, channels, HEIGHT, WIDTH))
    return detector


def run(model: bytes, images: Tensor) -> tuple[Tensor, Tensor]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = ["output_cov/Sigmoid", "output_bbox/BiasAdd"]
    coverage, bbox = session.run(names, {"images": images.numpy()})
    return torch.from_numpy(coverage), torch.from_numpy(bbox)


@pytest.mark.parametrize(
    ("arch", "depth", "activation"),
    [
        ("resnet", 10, "elu"),
        ("vgg", 16, "hard_swish"),
        ("mobilenet_v2", 0, ""),  # relu6
        ("efficientnet_b0", 0, ""),  # swish
        # tests/compress/test_backbones.py exports these pruned.
        *(
            pytest.param(arch, 0, "", marks=pytest.mark.slow)
            for arch in ("googlenet", "mobilenet_v1", "squeezenet")
        ),
        pytest.param("darknet", 19, "", marks=pytest.mark.slow),  # leaky_relu
    ],
)
def test_outputs_are_those_of_the_detector_in_evaluation_mode(arch: str, depth: int, activation: str) -> None:
    detector = trained(arch, depth, activation)
    model = to_onnx(detector, height=HEIGHT, width=WIDTH)
    nodes = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert "Conv" in nodes and "BatchNormalization" not in nodes
    detector.eval()
    for batch_size in (1, 3):
        images = torch.rand(batch_size, 3, HEIGHT, WIDTH)
        with torch.no_grad():
            coverage, bbox = detector(images)
        got_coverage, got_bbox = run(model, images)
        assert got_coverage.shape == coverage.shape and (got_coverage - coverage).abs().max() < 1e-4
        assert got_bbox.shape == bbox.shape and (got_bbox - bbox).abs().max() < 1e-4
        assert bbox.std() > 1e-2  # there is something to compare


def test_a_grey_detector_becomes_a_file_and_stays_as_it_was(tmp_path: Path) -> None:
    detector = trained("resnet", 10, channels=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    detector.freeze(["backbone.bn1.running_mean"])
    before, modes = copy.deepcopy(detector.state_dict()), [layer.training for layer in detector.modules()]
    save_onnx(tmp_path / "new" / "model.onnx", detector, height=HEIGHT, width=WIDTH)

    after = detector.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].stride() == tensor.stride() for name, tensor in before.items())
    assert [layer.training for layer in detector.modules()] == modes and True in modes and False in modes
    assert all(weight.requires_grad for weight in detector.parameters())

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]
    content = (tmp_path / "new" / "model.onnx").read_bytes()
    assert b"detectkit" not in content  # in the stack traces that the exporter adds
    graph = onnx.load_from_string(content).graph
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "images": ["N", 1, 64, 96],
        "output_cov/Sigmoid": ["N", 2, 4, 6],
        "output_bbox/BiasAdd": ["N", 8, 4, 6],
    }
    images = torch.rand(2, 1, HEIGHT, WIDTH)
    with torch.no_grad():
        coverage, bbox = detector.eval()(images)
    got_coverage, got_bbox = run(content, images)
    assert (got_coverage - coverage).abs().max() < 1e-4 and (got_bbox - bbox).abs().max() < 1e-4

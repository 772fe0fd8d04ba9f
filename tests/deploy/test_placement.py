"""Which tensors are rounded for which runtime: graphs small enough to read."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.onnx import to_model
from detectkit.deploy.placement import Placement, Wires, eight_bit_layers, for_onnxruntime, for_tensorrt
from detectkit.deploy.qdq import quantize
from detectkit.heads import Outline, Output
from detectkit.model.detector import Normalize, build
from detectkit.model.graph import eight_bit_convolutions, folded
from detectkit.spec.model_pb2 import ModelConfig

# A residual unit with a projection, one without, and two heads.
RESIDUAL = """
    images Conv a
    a Relu b
    b Conv c
    images Conv d
    c,d Add e
    e Relu f
    f Conv g
    f,g Add h
    h Relu i
    i Conv j
    j Conv cov
    j Conv bbox
"""


def wires(text: str) -> Wires:
    """A graph of a line a node: its inputs, what it does, its output. Weights are called as the output."""
    nodes, constants = [], []
    for line in text.split("\n"):
        if not line.strip():
            continue
        before, kind, output = line.split()
        inputs = before.split(",")
        if kind == "Conv":
            constants.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), f"{output}.weight"))
            inputs.append(f"{output}.weight")
        if kind == "Mul" and len(inputs) == 1:
            constants.append(numpy_helper.from_array(np.array(0.5, np.float32), f"{output}.share"))
            inputs.append(f"{output}.share")
        if kind == "Clip":
            for end, value in (("min", 0), ("max", 6)):
                constants.append(numpy_helper.from_array(np.array(value, np.float32), f"{output}.{end}"))
                inputs.append(f"{output}.{end}")
        nodes.append(helper.make_node(kind, inputs, [output], name=output))
    images, cov, bbox = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, 4, 4])
        for name in ("images", "cov", "bbox")
    )
    return Wires(helper.make_graph(nodes, "test", [images], [cov, bbox], initializer=constants))


def read(placement: Placement) -> dict[str, str]:
    """By rounded tensor, the outputs of the nodes that read it rounded."""
    return {
        name: " ".join(sorted(node.output[0] for node in nodes)) for name, nodes in placement.readers.items()
    }


def test_tensorrt_rounds_what_convolutions_read_and_the_skip_of_a_sum_only() -> None:
    placed = for_tensorrt(wires(RESIDUAL), [])
    assert [node.output[0] for node in placed.convolutions] == list("acdgj")
    # d is the projection; c, g and the sums stay as they are, and so does j, which only heads read.
    assert read(placed) == {"images": "a d", "b": "c", "d": "e", "f": "g h", "i": "j"}
    assert placed.groups == []


def test_onnx_runtime_rounds_every_result_behind_its_relu_for_all_readers() -> None:
    placed = for_onnxruntime(wires(RESIDUAL), [])
    assert read(placed) == {
        **{"images": "a d", "b": "c", "c": "e", "d": "e", "f": "g h"},
        **{"g": "h", "i": "j", "j": "bbox cov"},
    }


def test_a_float_layer_reads_and_gives_what_is_there() -> None:
    assert read(for_tensorrt(wires(RESIDUAL), ["g"])) == {"images": "a d", "b": "c", "d": "e", "i": "j"}
    # g reads what others have rounded anyway; its own output is not rounded, so the sum is one of floats.
    placed = for_onnxruntime(wires(RESIDUAL), ["g"])
    assert "g" not in placed.readers and "h" not in placed.readers
    assert read(placed)["i"] == "j"
    assert "g" not in [node.output[0] for node in placed.convolutions]


def test_nothing_is_rounded_where_all_layers_are_float() -> None:
    for place in (for_tensorrt, for_onnxruntime):
        placed = place(wires(RESIDUAL), list("acdgj"))
        assert placed.convolutions == [] and placed.readers == {} and placed.groups == []


def test_what_is_concatenated_shares_a_scale_with_the_result_and_its_pool() -> None:
    graph = wires("""
        images Conv a
        a Relu b
        images Conv c
        c Relu d
        b,d Concat e
        e MaxPool f
        f Conv g
        g Conv cov
        g Conv bbox
    """)
    placed = for_tensorrt(graph, [])
    assert read(placed) == {"images": "a c", "b": "e", "d": "e", "f": "g"}
    assert placed.groups == [{"b", "d", "f"}]
    placed = for_onnxruntime(graph, [])
    assert read(placed) == {"images": "a c", "b": "e", "d": "e", "e": "f", "f": "g", "g": "bbox cov"}
    assert placed.groups == [{"b", "d", "e", "f"}]


def test_a_weighted_sum_is_one_of_floats() -> None:
    graph = wires("""
        images Conv a
        images Conv b
        a Mul c
        b Mul d
        c,d Add e
        e Conv f
        f Conv cov
        f Conv bbox
    """)
    assert read(for_tensorrt(graph, [])) == {"images": "a b", "e": "f"}
    assert read(for_onnxruntime(graph, [])) == {
        **{"images": "a b", "a": "c", "b": "d", "e": "f"},
        "f": "bbox cov",
    }


def test_a_resized_map_has_the_scale_of_the_other() -> None:
    graph = wires("""
        images Conv a
        a Relu b
        b Resize c
        b Conv d
        c,d Add e
        e Conv f
        f Conv cov
        f Conv bbox
    """)
    assert read(for_tensorrt(graph, [])) == {"images": "a", "b": "d", "c": "e", "e": "f"}
    placed = for_onnxruntime(graph, [])
    assert read(placed) == {**{"images": "a", "b": "c d", "c": "e", "d": "e", "e": "f"}, "f": "bbox cov"}
    assert placed.groups == [{"b", "c"}]
    assert "c" in graph.not_negative()


def test_gates_stay_float_and_limited_relus_are_part_of_their_convolution() -> None:
    graph = wires("""
        images Conv a
        a Clip b
        b GlobalAveragePool c
        c Conv d
        d Relu e
        e Conv f
        f Sigmoid g
        g,b Mul h
        h Conv i
        i Conv cov
        i Conv bbox
    """)
    placed = for_tensorrt(graph, [])
    assert [node.output[0] for node in placed.convolutions] == ["a", "i"]
    assert read(placed) == {"images": "a", "h": "i"}
    assert read(for_onnxruntime(graph, [])) == {"images": "a", "b": "c h", "h": "i", "i": "bbox cov"}


def test_which_tensors_have_no_value_below_zero() -> None:
    graph = wires("""
        images Conv a
        a Relu b
        images Conv c
        c Clip d
        b,d Concat e
        e MaxPool f
        a,b Add g
        g Conv cov
        g Conv bbox
    """)
    assert graph.not_negative() == {"images", "b", "d", "e", "f"}


class Cascade(nn.Module):
    """The first output is also what makes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.channels, self.ranges = Normalize(3), 3, None
        self.outline = Outline((Output("one", "a", 0, 1), Output("two", "b", 0, 1)), (), multiple=1)
        self.stem, self.a, self.c, self.b = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def plain(self, images):
        one = self.a(torch.relu(self.stem(images)))
        return one, self.b(torch.relu(self.c(torch.relu(one))))


def test_a_convolution_that_makes_an_output_stays_float_also_where_another_reads_it() -> None:
    """In the file as in the calibration and the training in 8 bits."""
    network = Cascade().eval()
    model, table = to_model(network, height=8, width=8), calibrate(network, [torch.rand(2, 3, 8, 8)])
    expected = [str(node.target) for node in eight_bit_convolutions(folded(network))]
    assert eight_bit_layers(model) == expected == ["stem", "c"]
    for runtime in ("tensorrt", "onnxruntime"):
        stored = {tensor.name for tensor in quantize(model, table, runtime=runtime).graph.initializer}
        assert {name for name in stored if name.endswith(".weight")} == {"a.weight", "b.weight"}


@pytest.mark.parametrize(
    ("arch", "depth"),
    [
        *[
            ("resnet", 18),
            ("mobilenet_v1", 0),
            ("mobilenet_v2", 0),
            ("squeezenet", 0),
            ("efficientnet_b0", 0),
            ("efficientnet_lite0", 0),
        ],
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("googlenet", 0), ("vgg", 16), ("darknet", 53))
        ],
    ],
)
def test_the_onnx_graph_tells_the_same_convolutions_as_the_network(arch: str, depth: int) -> None:
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True)
    detector = build(config, ["square"], 3)
    expected = [str(node.target) for node in eight_bit_convolutions(folded(detector))]
    assert eight_bit_layers(to_model(detector, height=64, width=64)) == expected
    assert len(expected) > 5

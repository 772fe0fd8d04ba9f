"""The scale table holds what a network's values are, whatever the number of batches."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from detectkit.deploy import calibrate as module
from detectkit.deploy.calibrate import calibrate, layer_report, table_of
from detectkit.deploy.scales import METHODS, Range, ScaleTable
from detectkit.errors import DataError, ModelError
from detectkit.model.detector import Detector, build
from detectkit.model.graph import folded, quantizable, tensor_name
from detectkit.model.quantization import Ranges
from detectkit.ops.quantize import channel_amax, fake_quantize
from detectkit.spec.model_pb2 import ModelConfig

HEIGHT, WIDTH = 64, 96


def detector(arch: str = "resnet", depth: int = 10) -> Detector:
    """A network whose batch normalisation has seen images, in training mode; its coverage is about 0.5."""
    torch.manual_seed(0)
    heads = {"bbox": {}, "cov": {"prior": 0.5}}
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True, objective_set=heads)
    made = build(config, ["square", "bar"], 3)
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.9
    with torch.no_grad():
        made(torch.rand(4, 3, HEIGHT, WIDTH))
    return made


@pytest.fixture(scope="module")
def made() -> Detector:
    return detector()


@pytest.fixture(scope="module")
def tables(made: Detector) -> dict[str, ScaleTable]:
    """By every method, on the same images."""
    return {method: calibrate(made, batches(2), method=method) for method in METHODS}


def batches(count: int, size: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(size, 3, HEIGHT, WIDTH, generator=generator) for _ in range(count)]


def values_of(made: Detector, layer: str, images: list[Tensor]) -> Tensor:
    """What a layer of the detector gives, in evaluation mode, found without any graph."""
    network, seen = copy.deepcopy(made).eval(), []
    network.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    with torch.no_grad():
        for batch in images:
            network(batch)
    return torch.cat(seen)


def test_extremes_are_those_of_all_values(made: Detector) -> None:
    before = copy.deepcopy(made.state_dict())
    images = batches(3)
    table = calibrate(made, iter(images), method="minmax")
    assert table.method == "minmax" and table.images == 6
    for name, layer in (
        ("backbone_layer1_0_conv2", "backbone.layer1.0.bn2"),
        ("backbone_relu", "backbone.relu"),
        ("output_bbox/BiasAdd", "output_bbox"),
    ):
        values, found = values_of(made, layer, images), table.tensors[name]
        assert found.low == pytest.approx(float(values.min()), rel=1e-4)
        assert found.high == pytest.approx(float(values.max()), rel=1e-4)
        assert found.amax == max(abs(found.low), abs(found.high))
    image = table.tensors["images"]
    assert image.low == min(float(batch.min()) for batch in images) and image.unsigned
    assert table.tensors["output_bbox/BiasAdd"].low < 0 < table.tensors["output_cov/Sigmoid"].low
    assert made.training and all(
        torch.equal(value, before[name]) for name, value in made.state_dict().items()
    )


def test_means_are_those_of_the_channels_that_8_bit_convolutions_read(made: Detector) -> None:
    images = batches(3)
    table = calibrate(made, iter(images))
    graph = folded(made)
    assert set(table.means) == {tensor_name(node.all_input_nodes[0]) for node in quantizable(graph)}
    for name, wanted in (
        ("images", torch.cat(images)),
        ("backbone_relu", values_of(made, "backbone.relu", images)),
    ):
        expected = wanted.mean((0, 2, 3))
        assert table.means[name] == pytest.approx(expected.tolist(), rel=1e-4)


def test_weights_have_the_range_of_each_folded_channel(made: Detector) -> None:
    table = calibrate(made, batches(1))
    convolutions = {f"{name}.weight" for name, layer in made.named_modules() if isinstance(layer, nn.Conv2d)}
    assert set(table.weights) == convolutions
    normalization = made.backbone.get_submodule("bn1")
    factor = normalization.weight / (normalization.running_var + normalization.eps).sqrt()
    wanted = channel_amax(made.backbone.get_submodule("conv1").weight) * factor.abs()
    assert table.weights["backbone.conv1.weight"] == pytest.approx(wanted.tolist(), rel=1e-5)
    assert len(table.weights["output_bbox.weight"]) == 8


@pytest.mark.parametrize("method", METHODS)
def test_the_noise_reported_is_that_of_rounding(
    made: Detector, tables: dict[str, ScaleTable], method: str
) -> None:
    table = tables[method]
    values = values_of(made, "output_bbox", batches(2)).double()
    found = table.tensors["output_bbox/BiasAdd"]
    noise = fake_quantize(values, found.amax).double() - values
    wanted = 10 * float(torch.log10(values.square().mean() / noise.square().mean()))
    assert found.sqnr == pytest.approx(wanted, abs=0.5)
    estimated = [item for name, item in table.tensors.items() if name not in ("images", "output_cov/Sigmoid")]
    assert all(0 < item.amax <= max(-item.low, item.high) for item in estimated)


@pytest.mark.parametrize("method", METHODS)
def test_images_and_coverage_have_the_range_that_they_are_known_to_have(
    tables: dict[str, ScaleTable], method: str
) -> None:
    ranges = [tables[method].tensors[name] for name in ("images", "output_cov/Sigmoid")]
    assert [item.amax for item in ranges] == [1.0, 1.0]
    assert all(item.high < 1 and item.sqnr > 20 for item in ranges)  # whatever has been seen of it


def test_methods_differ_as_they_should(tables: dict[str, ScaleTable]) -> None:
    for name, widest in tables["minmax"].tensors.items():
        best = tables["mse"].tensors[name].sqnr
        assert best is not None and widest.sqnr is not None
        assert all((tables[method].tensors[name].sqnr or 0) < best + 0.05 for method in METHODS)
    narrow = sum(item.amax for item in tables["percentile"].tensors.values())
    assert narrow < sum(item.amax for item in tables["minmax"].tensors.values())


@pytest.mark.parametrize(
    "arch",
    [
        "squeezenet",
        *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("efficientnet_b0", "googlenet")),
    ],
)
def test_every_convolution_reads_a_tensor_with_a_range(arch: str) -> None:
    made = detector(arch, 0)
    table = calibrate(made, batches(1))
    graph = folded(made)
    report = layer_report(table, graph)
    assert len(report) == len(quantizable(graph)) > 20
    assert all(layer.input in table.tensors for layer in report)


def test_a_grey_detector_is_calibrated() -> None:
    made = build(ModelConfig(arch="resnet", num_layers=10), ["bar"], 1)
    assert calibrate(made, [torch.rand(1, 1, HEIGHT, WIDTH)]).images == 1


def test_no_images_and_values_that_are_none_are_errors(made: Detector) -> None:
    with pytest.raises(DataError, match="no images"):
        calibrate(made, [])
    broken = copy.deepcopy(made)
    with torch.no_grad():
        broken.backbone.get_submodule("layer1.0.conv1").weight[0] = math.nan
    with pytest.raises(ModelError, match="backbone_layer1_0_.* has values that are not finite"):
        calibrate(broken, batches(1))


def seen(arrays: list[np.ndarray]) -> module._Seen:
    made = module._Seen("values")
    for number, array in enumerate(arrays):
        made.add(torch.from_numpy(array), number)
    return made


@given(st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_growing_histogram_counts_as_one_made_at_once(scales: list[float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    arrays = [(generator.normal(size=500) * scale).astype(np.float32) for scale in scales]
    found, values = seen(arrays), np.abs(np.concatenate(arrays))
    assert found.counts.sum() == len(values) and len(found.counts) == module.BINS
    assert found.high == max(array.max() for array in arrays)
    edges = np.arange(module.BINS + 1) * found.width
    assert module.BINS / 2 * found.width <= values.max() <= edges[-1]
    # float32 may see a value at an edge on its other side
    wanted = np.histogram(values, edges)[0].cumsum()
    assert np.abs(found.counts.cumsum(0).numpy() - wanted).max() <= 2


def test_zeros_have_a_range_of_zero() -> None:
    found = seen([np.zeros(10, np.float32)])
    assert found.range("entropy") == Range(0.0, 0.0, 0.0, None)
    later = seen([np.zeros(10, np.float32), np.full(10, -3.0, np.float32)])
    assert later.counts.sum() == 20 and later.counts[0] == 10
    assert all(later.range(method).amax == pytest.approx(3.0, rel=1e-3) for method in METHODS)


def test_a_part_of_many_values_is_spread_over_channels_and_batches() -> None:
    channels, side = 16, 256
    values = np.broadcast_to(
        np.arange(1, channels + 1, dtype=np.float32)[:, None, None], (channels, side, side)
    )
    batch = torch.from_numpy(values.copy())[None]
    for layout in (torch.contiguous_format, torch.channels_last):
        made = module._Seen("values")
        for number in range(3):
            made.add(batch.contiguous(memory_format=layout), number)
        counted = made.counts[made.counts > 0]
        assert len(counted) == channels and counted.max() < 1.01 * counted.min()
        assert counted.sum() == pytest.approx(3 * module.SAMPLE, rel=0.1)


def noisy(table: ScaleTable, sqnr: float | None) -> ScaleTable:
    return table._replace(tensors={name: item._replace(sqnr=sqnr) for name, item in table.tensors.items()})


def test_the_report_puts_input_and_weight_together(made: Detector, tables: dict[str, ScaleTable]) -> None:
    graph = folded(made)
    report = layer_report(noisy(tables["mse"], 30.0), graph)
    for layer in report:
        assert layer.sqnr is not None and not layer.hurts
        assert 10 ** (-layer.sqnr / 10) == pytest.approx(1e-3 + 10 ** (-layer.weight / 10))
        assert layer.weight_per_tensor < layer.weight
    assert [layer.sqnr for layer in report] == sorted(layer.sqnr or 0 for layer in report)
    first = next(layer for layer in report if layer.name == "backbone.conv1")
    assert first.input == "images"

    weight = graph.get_parameter("backbone.conv1.weight").detach().numpy()
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    noise = np.round(weight / scale) * scale - weight
    assert first.weight == pytest.approx(10 * np.log10((weight**2).sum() / (noise**2).sum()), abs=0.01)


def test_the_report_names_what_hurts(made: Detector, tables: dict[str, ScaleTable]) -> None:
    graph = folded(made)
    assert all(layer.hurts for layer in layer_report(noisy(tables["mse"], 15.0), graph))
    unknown = layer_report(noisy(tables["mse"], None), graph)
    assert all(layer.sqnr is None and not layer.hurts for layer in unknown)


def test_nothing_is_kept_of_a_batch(made: Detector) -> None:
    given: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def images() -> Iterator[Tensor]:
        for _ in range(4):
            alive.append(sum(reference() is not None for reference in given))
            batch = torch.rand(1, 3, HEIGHT, WIDTH)
            given.append(weakref.ref(batch))
            yield batch

    calibrate(made, images())
    assert alive == [0, 1, 1, 1]


def test_a_network_trained_in_eight_bits_has_its_ranges_learned() -> None:
    made = detector()
    made.ranges = Ranges(made)
    made.train()
    for batch in batches(2):
        made(batch)
    table = table_of(made.eval())
    assert table.method == "qat" and table.images == 0
    learned = made.ranges.learned()
    assert {name: (item.low, item.high) for name, item in table.tensors.items()} == learned
    assert all(
        item.amax == max(-item.low, item.high) and item.sqnr is None for item in table.tensors.values()
    )
    float_table = calibrate(made, batches(1))
    assert list(table.tensors) == list(float_table.tensors) and table.weights == float_table.weights

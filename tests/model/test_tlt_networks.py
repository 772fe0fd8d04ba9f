"""TLT's networks, built and saved by Keras itself, compute the same here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from detectkit import spec
from detectkit.deploy.onnx import to_onnx
from detectkit.errors import ModelError
from detectkit.model import checkpoint, pretrained
from detectkit.model.detector import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

CLASSES = ["car", "van", "bus"]
HEIGHT, WIDTH = 96, 128
TWENTY_SEVEN = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ["KERAS_BACKEND"] = "torch"
    keras = pytest.importorskip("keras")
    keras.config.set_image_data_format("channels_first")
    return keras


class Builder:
    """TLT's blocks: symmetric padding, an epsilon of 0.001, biases where TLT DetectNet_v2 makes them."""

    def __init__(self, keras: Any, *, channels: int = 3, bias: bool = True, norm: bool = True) -> None:
        self.layers, self.bias, self.norm = keras.layers, bias, norm
        self.image = keras.Input((channels, HEIGHT, WIDTH))

    def convolution(
        self, x: Any, name: str, width: int, size: int, stride: int = 1, *, bias: bool | None = None
    ) -> Any:
        if size > 1:
            x = self.layers.ZeroPadding2D(size // 2)(x)
        bias = self.bias if bias is None else bias
        return self.layers.Conv2D(width, size, stride, use_bias=bias, name=name)(x)

    def depthwise(self, x: Any, name: str, size: int, stride: int, padding: Any = None) -> Any:
        x = self.layers.ZeroPadding2D(size // 2 if padding is None else padding)(x)
        return self.layers.DepthwiseConv2D(size, stride, use_bias=False, name=name)(x)

    def normalisation(self, x: Any, name: str) -> Any:
        return self.layers.BatchNormalization(axis=1, name=name)(x) if self.norm else x

    def function(self, x: Any, name: str = "relu") -> Any:
        if name == "leaky":
            return self.layers.LeakyReLU(negative_slope=0.1)(x)
        return self.layers.Activation(name)(x)

    def pool(self, x: Any, size: int, stride: int) -> Any:
        if size == 3:  # zeros do not matter behind ReLU
            x = self.layers.ZeroPadding2D(1)(x)
        return self.layers.MaxPooling2D(size, stride)(x)


def resnet(b: Builder, depth: int, all_projections: bool = False) -> Any:
    repeats = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    x = b.function(b.normalisation(b.convolution(b.image, "conv1", 64, 7, 2), "bn_conv1"))
    for stage, (count, width) in enumerate(zip(repeats, (64, 128, 256, 512), strict=True), start=1):
        for number in range(count):
            name = f"block_{stage}{TWENTY_SEVEN[number]}"
            stride = 2 if number == 0 and stage < 4 else 1
            kernels = [(1, width), (3, width), (1, 4 * width)] if depth >= 50 else [(3, width)] * 2
            y = x
            for place, (size, wide) in enumerate(kernels, start=1):
                y = b.convolution(y, f"{name}_conv_{place}", wide, size, stride if place == 1 else 1)
                y = b.normalisation(y, f"{name}_bn_{place}")
                y = b.function(y) if place < len(kernels) else y
            if number == 0 or all_projections:
                x = b.convolution(x, f"{name}_conv_shortcut", kernels[-1][1], 1, stride)
                x = b.normalisation(x, f"{name}_bn_shortcut")
            x = b.function(b.layers.Add()([x, y]))
    return x


def vgg(b: Builder, depth: int, pooling: bool) -> Any:
    x = b.image
    repeats = (2, 2, 3, 3, 3) if depth == 16 else (2, 2, 4, 4, 4)
    for block, (count, width) in enumerate(zip(repeats, (64, 128, 256, 512, 512), strict=True), start=1):
        for number in range(count):
            name = f"block_{block}{TWENTY_SEVEN[number]}"
            stride = 2 if number == 0 and block > 1 and not pooling else 1
            x = b.convolution(x, f"{name}_conv_1", width, 3, stride)
            x = b.function(b.normalisation(x, f"{name}_bn_1"))
        if pooling and block < 5:
            x = b.layers.MaxPooling2D(2, 2, name=f"block{block}_pool")(x)
    return x


def mobilenet_v1(b: Builder) -> Any:
    x = b.function(b.normalisation(b.convolution(b.image, "conv1", 32, 3, 2, bias=False), "conv1_bn"))
    widths = (64, 128, 128, 256, 256, *[512] * 6)
    for number, width in enumerate(widths, start=1):
        x = b.depthwise(x, f"conv_dw_{number}", 3, 2 if number in (2, 4, 6) else 1)
        x = b.function(b.normalisation(x, f"conv_dw_{number}_bn"))
        x = b.convolution(x, f"conv_pw_{number}", width, 1, bias=False)
        x = b.function(b.normalisation(x, f"conv_pw_{number}_bn"))
    return x


def mobilenet_v2(b: Builder) -> Any:
    x = b.function(b.normalisation(b.convolution(b.image, "conv1", 32, 3, 2, bias=False), "bn_conv1"))
    widths = (16, 24, 24, 32, 32, 32, *[64] * 4, *[96] * 3)
    for number, width in enumerate(widths):
        name, before, y = f"block_{number}" if number else "expanded_conv", x.shape[1], x
        if number:
            y = b.convolution(y, f"{name}_expand", 6 * before, 1, bias=False)
            y = b.function(b.normalisation(y, f"{name}_expand_bn"))
        y = b.depthwise(y, f"{name}_depthwise", 3, 2 if number in (1, 3, 6) else 1)
        y = b.function(b.normalisation(y, f"{name}_depthwise_bn"))
        y = b.convolution(y, f"{name}_project", width, 1, bias=False)
        y = b.normalisation(y, f"{name}_project_bn")
        x = b.layers.Add()([x, y]) if x.shape == y.shape else y
    return x


def squeezenet(b: Builder) -> Any:
    x = b.pool(b.function(b.convolution(b.image, "conv1", 96, 7, 2)), 3, 2)
    for number, (narrow, wide) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)], start=2
    ):
        x = b.function(b.convolution(x, f"fire{number}_squeeze_conv", narrow, 1))
        parts = [(f"fire{number}_expand_conv1x1", 1), (f"fire{number}_expand_conv3x3", 3)]
        x = b.layers.Concatenate(1)([b.function(b.convolution(x, name, wide, size)) for name, size in parts])
        x = b.pool(x, 3, 2) if number in (4, 8) else x
    return x


def googlenet(b: Builder) -> Any:
    def whole(x: Any, name: str, width: int, size: int, stride: int = 1, norm: str = "") -> Any:
        x = b.convolution(x, name, width, size, stride)
        return b.function(b.normalisation(x, norm or f"{name}_bn"))

    x = b.pool(whole(b.image, "conv1", 64, 7, 2, "bn_conv1"), 2, 2)
    x = whole(x, "conv2_reduce", 64, 1, norm="bn_conv2_reduce")
    x = b.pool(whole(x, "conv2", 192, 3, norm="bn_conv2"), 2, 2)
    widths = {
        **{"3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64)},
        **{"4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64)},
        **{"4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64)},
        **{"4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128)},
        "5b": (384, 192, 384, 48, 128, 128),
    }
    for name, (one, three_before, three, five_before, five, pooled) in widths.items():
        name = f"inception_{name}"
        parts = [
            whole(x, f"{name}_1x1", one, 1),
            whole(whole(x, f"{name}_3x3_reduce", three_before, 1), f"{name}_3x3", three, 3),
            whole(whole(x, f"{name}_5x5_reduce", five_before, 1), f"{name}_5x5", five, 5),
            whole(b.pool(x, 3, 1), f"{name}_pool_proj", pooled, 1),
        ]
        x = b.layers.Concatenate(1)(parts)
        x = b.pool(x, 2, 2) if name.endswith("3b") else x
    return x


def darknet(b: Builder, depth: int) -> Any:
    def whole(x: Any, name: str, width: int, size: int, stride: int = 1) -> Any:
        x = b.normalisation(b.convolution(x, name, width, size, stride, bias=False), f"{name}_bn")
        return b.function(x, "leaky")

    x = whole(b.image, "conv1", 32, 3)
    for stage in range(1, 6):
        width = 32 << stage
        if depth == 19:
            x = b.layers.MaxPooling2D(2, 2, name=f"maxpool_{stage}")(x)
            for number in range(1, (1, 3, 3, 5, 5)[stage - 1] + 1):
                wide, size = (width, 3) if number % 2 else (width // 2, 1)
                x = whole(x, f"b{stage}_conv{number}", wide, size)
            continue
        x = whole(x, f"conv{stage + 1}", width, 3, 2)
        for number in range(1, (1, 2, 8, 8, 4)[stage - 1] + 1):
            y = whole(x, f"b{stage}_conv{number}_1", width // 2, 1)
            x = b.layers.Add()([x, whole(y, f"b{stage}_conv{number}_2", width, 3)])
    return x


def efficientnet(b: Builder) -> Any:
    x = b.layers.ZeroPadding2D(((0, 1), (0, 1)))(b.image)
    x = b.layers.Conv2D(32, 3, 2, use_bias=False, name="stem_conv")(x)
    x = b.function(b.normalisation(x, "stem_bn"), "swish")
    stages = [
        *((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6)),
        *((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6)),
    ]
    for stage, (count, width, size, first, ratio) in enumerate(stages, start=1):
        for number in range(count):
            name, before, stride = f"block{stage}{TWENTY_SEVEN[number]}_", x.shape[1], first
            stride, y = (first, x) if number == 0 else (1, x)
            if ratio > 1:
                y = b.convolution(y, f"{name}expand_conv", ratio * before, 1, bias=False)
                y = b.function(b.normalisation(y, f"{name}expand_bn"), "swish")
            pads = (size // 2 - 1, size // 2) if stride == 2 else (size // 2, size // 2)
            y = b.depthwise(y, f"{name}dwconv", size, stride, (pads, pads))
            y = b.function(b.normalisation(y, f"{name}bn"), "swish")
            gate = b.layers.GlobalAveragePooling2D(keepdims=True)(y)
            gate = b.function(b.convolution(gate, f"{name}se_reduce", before // 4, 1, bias=True), "swish")
            gate = b.convolution(gate, f"{name}se_expand", ratio * before, 1, bias=True)
            y = b.layers.Multiply()([y, b.function(gate, "sigmoid")])
            y = b.normalisation(
                b.convolution(y, f"{name}project_conv", width, 1, bias=False), f"{name}project_bn"
            )
            x = b.layers.Add()([x, y]) if x.shape == y.shape else y
    x = b.convolution(x, "top_conv", 1280, 1, bias=False)
    return b.function(b.normalisation(x, "top_bn"), "swish")


# By name: model_config here, and the network there.
CASES: dict[str, tuple[dict[str, Any], Callable[[Builder], Any]]] = {
    "resnet10": ({"num_layers": 10}, lambda b: resnet(b, 10)),
    "resnet18": ({"num_layers": 18}, lambda b: resnet(b, 18)),
    "resnet18-all": ({"num_layers": 18, "all_projections": True}, lambda b: resnet(b, 18, True)),
    "resnet18-plain": ({"num_layers": 18, "use_batch_norm": False}, lambda b: resnet(b, 18)),
    "resnet34": ({"num_layers": 34}, lambda b: resnet(b, 34)),
    "resnet50": ({"num_layers": 50}, lambda b: resnet(b, 50)),
    "vgg16": ({"arch": "vgg", "num_layers": 16}, lambda b: vgg(b, 16, False)),
    "vgg19-pool": (
        {"arch": "vgg", "num_layers": 19, "use_pooling": True},
        lambda b: vgg(b, 19, True),
    ),
    "vgg16-plain": ({"arch": "vgg", "num_layers": 16, "use_batch_norm": False}, lambda b: vgg(b, 16, False)),
    "mobilenet_v1": ({"arch": "mobilenet_v1"}, mobilenet_v1),
    "mobilenet_v2": ({"arch": "mobilenet_v2"}, mobilenet_v2),
    "squeezenet": ({"arch": "squeezenet"}, squeezenet),
    "googlenet": ({"arch": "googlenet"}, googlenet),
    "darknet19": ({"arch": "darknet", "num_layers": 19}, lambda b: darknet(b, 19)),
    "darknet53": ({"arch": "darknet", "num_layers": 53}, lambda b: darknet(b, 53)),
    "efficientnet_b0": ({"arch": "efficientnet_b0"}, efficientnet),
}


def make(keras: Any, case: str, *, classes: int = 3) -> Any:
    """A detector with random weights, biases and statistics; its outputs: features, boxes, coverage."""
    config, network = CASES[case]
    b = Builder(keras, norm=config.get("use_batch_norm", True))
    features = network(b)
    bbox = b.layers.Conv2D(4 * classes, 1, name="output_bbox")(features)
    coverage = b.layers.Conv2D(classes, 1, activation="sigmoid", name="output_cov")(features)
    model = keras.Model(b.image, [features, bbox, coverage])
    generator = np.random.default_rng(3)
    for layer in model.layers:
        for weight in layer.weights:
            kind, shape = weight.name, weight.shape
            if "kernel" in kind:
                fan = np.prod(shape[:3]) if "Depthwise" not in type(layer).__name__ else np.prod(shape[:2])
                values = generator.normal(0, np.sqrt(2 / fan), shape)
            elif kind in ("gamma", "moving_variance"):
                low, high = (0.5, 1.5) if kind == "gamma" else (0.001, 1.5)
                values = generator.uniform(low, high, shape)
            else:
                values = generator.normal(0, 0.1, shape)
            weight.assign(values.astype(np.float32))
    size = float(run(model, torch.rand(1, 3, HEIGHT, WIDTH))[0].std())
    for head in ("output_bbox", "output_cov"):  # so that no coverage is 0 or 1
        model.get_layer(head).kernel.assign(model.get_layer(head).kernel / size)
    return model


def experiment(case: str, **changes: Any) -> spec.Experiment:
    found = spec.Experiment()
    config = found.model_config
    config.CopyFrom(spec.ModelConfig(**{"use_batch_norm": True} | CASES[case][0] | changes))
    for name in CLASSES:
        found.cost_function_config.target_classes.add().name = name
    found.augmentation_config.preprocessing.output_image_channel = 3
    return found


def run(model: Any, images: Tensor) -> list[Tensor]:
    found = model(images.numpy(), training=False)
    return [torch.as_tensor(value.detach()) for value in found]


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def as_keras_2(path: Path, old: Path) -> None:
    """The same file as Keras 2.2.4 wrote it: other names of weights, fixed-length lists, an optimizer behind."""
    with h5py.File(path) as new, h5py.File(old, "w") as file:
        file.attrs["keras_version"] = np.bytes_("2.2.4")
        file.attrs["backend"] = np.bytes_("tensorflow")
        file.attrs["model_config"] = str(new.attrs["model_config"]).encode()  # of any length
        file.attrs["training_config"] = np.bytes_("{}")
        file.create_group("optimizer_weights").create_dataset("SGD/iterations:0", data=np.int64(7))
        root = file.create_group("model_weights")
        layers = [str(name) for name in new["model_weights"].attrs["layer_names"]]
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for layer in layers:
            stored, group = new[f"model_weights/{layer}"], root.create_group(layer)
            names = [str(name) for name in stored.attrs["weight_names"]]
            leaves = [name.rpartition("/")[2] for name in names]
            if "dw" in layer or "depthwise" in layer:
                leaves = [leaf.replace("kernel", "depthwise_kernel") for leaf in leaves]
            group.attrs["weight_names"] = [f"{layer}_1/{leaf}:0".encode() for leaf in leaves] or np.array([])
            for name, leaf in zip(names, leaves, strict=True):
                group.create_dataset(f"{layer}_1/{leaf}:0", data=stored[name][()])


@pytest.mark.parametrize("case", CASES)
def test_a_trained_detector_computes_what_keras_does(keras: Any, tmp_path: Path, case: str) -> None:
    network = make(keras, case)
    path = tmp_path / "model.hdf5"
    network.save(path, include_optimizer=False)
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    features, bbox, coverage = run(network, images)

    model = checkpoint.load(path, experiment=experiment(case))
    assert model.class_names == CLASSES and model.spec.model_config.layout == spec.ModelConfig.TLT
    with torch.no_grad():
        assert error(model.detector.backbone(images)[0], features) < 1e-5
        found = model.detector(images)
    assert error(found[0], coverage) < 1e-5 and error(found[1], bbox) < 1e-5

    as_keras_2(path, tmp_path / "old.hdf5")
    old = checkpoint.load(tmp_path / "old.hdf5", experiment=experiment(case)).detector.state_dict()
    assert all(torch.equal(old[name], tensor) for name, tensor in model.detector.state_dict().items())

    checkpoint.save(tmp_path / "m.safetensors", model.detector, spec.dumps(model.spec), CLASSES)
    again = checkpoint.load(tmp_path / "m.safetensors").detector
    with torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(again(images), found, strict=True))
    session = onnxruntime.InferenceSession(to_onnx(again, height=HEIGHT, width=WIDTH))
    exported = session.run(["output_cov/Sigmoid", "output_bbox/BiasAdd"], {"images": images.numpy()})
    for one, other in zip(exported, (coverage, bbox), strict=True):
        assert error(torch.from_numpy(one), other) < 1e-4


@pytest.mark.parametrize("case", ["resnet18", "mobilenet_v2"])
def test_a_training_starts_from_it(keras: Any, tmp_path: Path, case: str) -> None:
    network = make(keras, case)
    network.save(tmp_path / "w.h5")
    config = experiment(case, pretrained_model_file=str(tmp_path / "w.h5")).model_config
    detector = build(config, CLASSES, 3)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = pretrained.load_pretrained(detector, tmp_path / "w.h5", CLASSES)
    assert {name.partition(".")[0] for name in report.skipped} == {"output_cov", "output_bbox"}
    kept = [name for name, tensor in detector.state_dict().items() if torch.equal(tensor, before[name])]
    assert [name for name in kept if name.startswith("backbone.") and "num_batches" not in name] == []
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        assert error(detector.eval().backbone(images)[0], run(network, images)[0]) < 1e-5


@pytest.mark.parametrize("mistake", ["epsilon", "bias", "padding"])
def test_what_would_be_wrong_shows(keras: Any, tmp_path: Path, mistake: str) -> None:
    network = make(keras, "resnet18")
    network.save(tmp_path / "m.h5")
    detector = checkpoint.load(tmp_path / "m.h5", experiment=experiment("resnet18")).detector
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    expected = run(network, images)[0]
    for name, layer in detector.backbone.named_modules():
        if mistake == "epsilon" and isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-5
        if mistake == "bias" and name == "bn1":
            layer.running_mean += torch.from_numpy(np.array(network.get_layer("conv1").bias))
    if mistake == "padding":
        images = torch.roll(images, 1, 3)
    with torch.no_grad():
        assert error(detector.backbone(images)[0], expected) > 1e-3


def test_the_weights_file_of_keras_3_is_refused(keras: Any, tmp_path: Path) -> None:
    make(keras, "squeezenet").save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ModelError, match="is a .weights.h5 file of Keras 3.*save the whole model"):
        checkpoint.load(tmp_path / "m.weights.h5", experiment=experiment("squeezenet"))


def test_weights_alone_as_keras_2_saved_them(keras: Any, tmp_path: Path) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    network = make(keras, "mobilenet_v1")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    images = torch.rand(1, 3, HEIGHT, WIDTH)
    model = checkpoint.load(tmp_path / "w.h5", experiment=experiment("mobilenet_v1"))
    with torch.no_grad():
        assert error(model.detector.backbone(images)[0], run(network, images)[0]) < 1e-5

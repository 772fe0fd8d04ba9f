"""TLT's Keras files become our networks: exact ones, narrower ones, and one line for what cannot be read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectkit import spec
from detectkit.compress.prune import Pruner
from detectkit.errors import ModelError
from detectkit.model import checkpoint, pretrained, tlt
from detectkit.model.base import Conv2dSame
from detectkit.model.detector import Detector, build
from detectkit.spec import ModelConfig
from detectkit.spec.networks import ENCRYPTED_FILES

Save = Callable[..., Path]
CLASSES = ["car", "van"]
HEADS = ["output_cov.weight", "output_cov.bias", "output_bbox.weight", "output_bbox.bias"]
SMALL: list[dict[str, Any]] = [
    {"num_layers": 10},
    {"num_layers": 18, "all_projections": True},
    {"num_layers": 10, "use_batch_norm": False},
    {"num_layers": 50},
    *(
        {"arch": arch}
        for arch in ("mobilenet_v1", "mobilenet_v2", "squeezenet", "googlenet", "efficientnet_b0")
    ),
    pytest.param({"arch": "vgg", "num_layers": 16, "use_pooling": True}, marks=pytest.mark.slow),
    pytest.param({"arch": "vgg", "num_layers": 19, "use_batch_norm": False}, marks=pytest.mark.slow),
    pytest.param({"arch": "darknet", "num_layers": 19}, marks=pytest.mark.slow),
    pytest.param({"arch": "darknet", "num_layers": 53}, marks=pytest.mark.slow),
]


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"use_batch_norm": True, "layout": ModelConfig.TLT, **changes})


def experiment(classes: list[str] = CLASSES, channels: int = 3, **changes: Any) -> spec.Experiment:
    found = spec.Experiment()
    found.model_config.CopyFrom(config(**{"num_layers": 10, **changes}))
    for name in classes:
        found.cost_function_config.target_classes.add().name = name
    found.augmentation_config.preprocessing.output_image_channel = channels
    return found


def detector(*, seed: int = 0, classes: int = 2, channels: int = 3, **changes: Any) -> Detector:
    """With all values random, as training leaves them, in evaluation mode."""
    torch.manual_seed(seed)
    network = build(
        config(**{"num_layers": 10, **changes}), [str(number) for number in range(classes)], channels
    )
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "bn1.weight")):
                tensor.uniform_(0.001, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(std=0.1)
    return network.eval()


def outputs(network: Detector, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat(network(images), dim=1)


def equal(one: Detector, other: Detector) -> bool:
    """Whether all tensors are the same, but for what a bias more and less has rounded."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.allclose(first[name].float(), second[name].float(), atol=1e-6) for name in first
    )


# --- what is in a file comes out


@pytest.mark.parametrize("changes", SMALL, ids=lambda changes: "-".join(map(str, changes.values())))
def test_a_trained_detector_of_every_family(tmp_path: Path, as_keras: Save, changes: dict[str, Any]) -> None:
    network = detector(**changes)
    path = as_keras(tmp_path / "model.hdf5", network)
    model = checkpoint.load(path, experiment=experiment(layout=ModelConfig.AS_PRETRAINED, **changes))
    assert equal(model.detector, network) and model.class_names == CLASSES
    assert model.spec.model_config.layout == ModelConfig.TLT
    checkpoint.save(tmp_path / "m.safetensors", model.detector, spec.dumps(model.spec), CLASSES)
    again = checkpoint.load(tmp_path / "m.safetensors").detector
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(outputs(again, images), outputs(model.detector, images))


def by_keras(layers: dict[str, dict[str, np.ndarray]], images: Tensor) -> Tensor:
    """TLT's ResNet10 from its own tensors: biases, an epsilon of 0.001, borders of half a kernel; its coverage."""

    def of(layer: str, name: str) -> Tensor:
        return torch.from_numpy(np.array(layers[layer][name]))

    def convolution(x: Tensor, name: str, stride: int, norm: str) -> Tensor:
        kernel = of(name, "kernel").permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, of(name, "bias"), stride, kernel.shape[-1] // 2)
        gamma, beta, mean, variance = (
            of(norm, key).reshape(-1, 1, 1) for key in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return gamma * (x - mean) / torch.sqrt(variance + 1e-3) + beta

    x = convolution(images, "conv1", 2, "bn_conv1").relu()
    for stage, stride in enumerate((2, 2, 2, 1), start=1):
        name = f"block_{stage}a"
        inner = convolution(x, f"{name}_conv_1", stride, f"{name}_bn_1").relu()
        inner = convolution(inner, f"{name}_conv_2", 1, f"{name}_bn_2")
        x = (inner + convolution(x, f"{name}_conv_shortcut", stride, f"{name}_bn_shortcut")).relu()
    kernel = of("output_cov", "kernel").permute(3, 2, 0, 1)
    return functional.conv2d(x, kernel, of("output_cov", "bias")).sigmoid()


def test_resnet10_computes_what_its_own_tensors_say(tmp_path: Path, as_keras: Save) -> None:
    kept: dict[str, dict[str, np.ndarray]] = {}
    path = as_keras(tmp_path / "m.h5", detector(), change=kept.update)
    found = checkpoint.load(path, experiment=experiment()).detector
    images = torch.rand(2, 3, 64, 96)
    expected = by_keras(kept, images)
    assert 0.05 < expected.std() and kept["conv1"]["bias"].std() > 0.05
    with torch.no_grad():
        assert (found(images)[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("changes", [{"num_layers": 10}, {"arch": "mobilenet_v2"}, {"arch": "googlenet"}])
def test_pruned_files_keep_their_widths(tmp_path: Path, as_keras: Save, changes: dict[str, Any]) -> None:
    whole = detector(**changes)
    pruner = Pruner(whole, spec.PruningConfig(), spec.Experiment())
    thresholds = pruner.thresholds()
    narrow = pruner.pruned(thresholds[int(0.6 * len(thresholds))]).detector
    path = as_keras(tmp_path / "pruned.hdf5", narrow)
    model = checkpoint.load(path, experiment=experiment(**changes))
    assert equal(model.detector, narrow)
    assert sum(p.numel() for p in narrow.parameters()) < 0.8 * sum(p.numel() for p in whole.parameters())

    for heads in (True, False):  # to train on, with its graph and without
        fresh = detector(seed=1, **changes).train()
        report = pretrained.load_pretrained(fresh, path, CLASSES, load_graph=heads)
        assert report.narrowed and fresh.training
        assert report.skipped == ([] if heads else HEADS) and report.classes == (CLASSES if heads else [])
        if heads:
            assert equal(fresh.eval(), narrow)
        else:
            assert report.remarks == [
                "its heads, of 2 classes, are left out: load_graph: true in model_config takes them over"
            ]


# --- weights to start from


def test_a_training_starts_from_the_backbone(tmp_path: Path, as_keras: Save) -> None:
    trained = detector()
    path = as_keras(tmp_path / "resnet10.hdf5", trained, change=without_heads)
    fresh = build(
        config(num_layers=10, layout=ModelConfig.AS_PRETRAINED, pretrained_model_file="a/resnet10.hdf5"),
        CLASSES,
        3,
    )
    report = pretrained.load_pretrained(fresh, path, CLASSES)
    assert report.skipped == HEADS and not (report.remarks or report.classes or report.narrowed)
    assert set(report.loaded) == {name for name in fresh.state_dict() if name.startswith("backbone.")}
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features, expected = fresh.eval().backbone(images)[0], trained.backbone(images)[0]
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    assert fresh.normalize.mean.eq(0).all() and fresh.normalize.std.eq(1).all()  # RGB from 0 to 1, as in TLT


def without_heads(layers: dict[str, dict[str, np.ndarray]]) -> None:
    del layers["output_cov"], layers["output_bbox"]
    layers["predictions"] = {"kernel": np.zeros((512, 176), np.float32), "bias": np.zeros(176, np.float32)}


def test_grey_images_take_the_sum_over_the_colours(tmp_path: Path, as_keras: Save) -> None:
    trained = detector()
    path = as_keras(tmp_path / "m.h5", trained)
    grey = detector(seed=1, channels=1)
    pretrained.load_pretrained(grey, path, CLASSES)
    colours = trained.get_parameter("backbone.conv1.weight")
    torch.testing.assert_close(grey.get_parameter("backbone.conv1.weight"), colours.sum(1, keepdim=True))


def test_projections_that_the_file_lacks_start_as_the_identity(tmp_path: Path, as_keras: Save) -> None:
    trained = detector(num_layers=18)
    path = as_keras(tmp_path / "m.h5", trained)
    fresh = build(config(num_layers=18, all_projections=True), CLASSES, 3)
    report = pretrained.load_pretrained(fresh, path, CLASSES)
    assert report.remarks[0] == (
        "its network lacks the projection block_4b_conv_shortcut: all_projections: false in model_config is its network"
    )
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features, expected = fresh.eval().backbone(images)[0], trained.backbone(images)[0]
    torch.testing.assert_close(features, expected, rtol=2e-2, atol=2e-2 * float(expected.std()))
    with pytest.raises(ModelError, match="m.h5: its network lacks the projection block_4b"):
        checkpoint.load(path, experiment=experiment(num_layers=18, all_projections=True))


def test_heads_of_another_count_are_left_out(tmp_path: Path, as_keras: Save) -> None:
    path = as_keras(tmp_path / "m.h5", detector(classes=3))
    report = pretrained.load_pretrained(detector(seed=1), path, CLASSES, load_graph=True)
    assert report.skipped == HEADS
    assert report.remarks == ["its heads, of 3 classes, are left out: the spec has 2"]


# --- what a model keeps


@pytest.mark.spec_field("ModelConfig.layout")
def test_layout_is_what_the_network_is_made_of() -> None:
    ours, theirs = (
        {
            arch: build(config(arch=arch, num_layers=depth, layout=layout), CLASSES, 3).backbone
            for arch, depth in FAMILIES
        }
        for layout in (ModelConfig.TORCHVISION, ModelConfig.TLT)
    )
    for arch, backbone in theirs.items():
        norms = [layer.eps for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert set(norms) == {1e-3} and backbone.layout == "TLT" != ours[arch].layout
        assert backbone.title.endswith("in TLT's layout") and backbone.published is None
    for backbones, strides in ((ours, [1, 2]), (theirs, [2, 1])):
        for stage in (1, 2, 3):
            unit = backbones["resnet"].get_submodule(f"layer{stage}.0")
            assert [unit.conv1.stride[0], unit.conv2.stride[0]] == strides
    for backbones, kernel, pool, function in ((ours, 3, 3, nn.ReLU6), (theirs, 5, 2, nn.ReLU)):
        branch = backbones["googlenet"].get_submodule("inception4a.branch3.1.conv")
        assert branch.kernel_size == (kernel, kernel) and branch.padding == (kernel // 2, kernel // 2)
        assert backbones["googlenet"].get_submodule("maxpool1").kernel_size == pool
        assert type(backbones["mobilenet_v2"].get_submodule("features.3.conv.0.2")) is function
    padded = [layer for layer in theirs["efficientnet_b0"].modules() if isinstance(layer, Conv2dSame)]
    assert [layer.kernel_size[0] for layer in padded] == [3, 3, 5, 3, 5]


FAMILIES = [("resnet", 50), ("googlenet", 0), ("mobilenet_v2", 0), ("efficientnet_b0", 0)]


@pytest.mark.parametrize(
    ("path", "layout", "expected"),
    [
        ("w/resnet18.hdf5", ModelConfig.AS_PRETRAINED, True),
        ("w/resnet18.H5", ModelConfig.AS_PRETRAINED, True),
        *(
            (f"w/pruned{suffix}", ModelConfig.AS_PRETRAINED, False) for suffix in ENCRYPTED_FILES
        ),  # never read
        ("w/resnet18.pth", ModelConfig.AS_PRETRAINED, False),
        ("", ModelConfig.AS_PRETRAINED, False),
        ("w/resnet18.hdf5", ModelConfig.TORCHVISION, False),
        ("m.safetensors", ModelConfig.TLT, True),
    ],
)
def test_without_layout_the_name_of_the_file_says_it(path: str, layout: int, expected: bool) -> None:
    model = config(pretrained_model_file=path, layout=layout)
    assert (build(model, CLASSES, 3).backbone.layout == "TLT") == expected


def test_retraining_keeps_the_layout_when_the_file_is_another() -> None:
    before = experiment(layout=ModelConfig.AS_PRETRAINED, pretrained_model_file="resnet10.hdf5")
    after = spec.retraining_spec(before, Path("pruned.safetensors"))
    assert after.model_config.layout == ModelConfig.TLT
    before.model_config.pretrained_model_file = "resnet10.pth"
    after = spec.retraining_spec(before, Path("pruned.safetensors"))
    assert after.model_config.layout == ModelConfig.AS_PRETRAINED


@pytest.mark.parametrize(("of_file", "asked"), [("TLT", "TORCHVISION"), ("TORCHVISION", "TLT")])
def test_a_model_in_the_other_layout_is_refused(tmp_path: Path, of_file: str, asked: str) -> None:
    stored = experiment(layout=ModelConfig.Layout.Value(of_file))
    network = detector(layout=stored.model_config.layout)
    checkpoint.save(tmp_path / "m.safetensors", network, spec.dumps(stored), CLASSES)
    other = detector(layout=ModelConfig.Layout.Value(asked))
    names = {"TLT": "TLT's", "TORCHVISION": "torchvision's"}
    words = f"m.safetensors has {names[of_file]} form of the network, the spec {names[asked]}: set layout: {of_file} in"
    with pytest.raises(ModelError, match=words):
        pretrained.load_pretrained(other, tmp_path / "m.safetensors", CLASSES)


@pytest.mark.parametrize(
    "changes",
    [{"arch": "squeezenet"}, {"arch": "mobilenet_v1", "use_batch_norm": False}, {"use_batch_norm": False}],
)
@pytest.mark.parametrize("of_file", ["TLT", "TORCHVISION"])
def test_a_network_of_one_form_has_no_other_layout(
    tmp_path: Path, changes: dict[str, Any], of_file: str
) -> None:
    stored = experiment(layout=ModelConfig.Layout.Value(of_file), **changes)
    network = detector(**changes, layout=stored.model_config.layout)
    checkpoint.save(tmp_path / "m.safetensors", network, spec.dumps(stored), CLASSES)
    asked = {"TLT": ModelConfig.TORCHVISION, "TORCHVISION": ModelConfig.TLT}[of_file]
    fresh = detector(seed=1, **changes, layout=asked)
    pretrained.load_pretrained(fresh, tmp_path / "m.safetensors", CLASSES)
    assert equal(fresh, network) and fresh.backbone.layout != network.backbone.layout


# --- what is refused


def no_norm(layers: dict[str, dict[str, np.ndarray]]) -> None:
    for name in [name for name in layers if "bn_" in name]:
        del layers[name]


def edited(layer: str, name: str, values: np.ndarray | None) -> Callable[..., None]:
    def change(layers: dict[str, dict[str, np.ndarray]]) -> None:
        if values is None:
            del layers[layer][name]
        else:
            layers.setdefault(layer, {})[name] = values

    return change


def behind_the_first(layers: dict[str, dict[str, np.ndarray]]) -> None:
    rest = dict(layers)
    layers.clear()
    layers |= {"conv1": rest.pop("conv1"), "stranger": {"kernel": np.zeros((1, 1, 2, 2), np.float32)}} | rest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 18}, 'holds resnet 10, the spec asks for resnet 18 in TLT\'s layout: set arch: "resnet", num_layers: 10'),
        ({"arch": "mobilenet_v1"}, 'holds resnet 10, the spec asks for mobilenet_v1 in TLT\'s layout: set arch: "resnet"'),
        ({"use_batch_norm": False}, "holds resnet 10 with batch normalisation: set use_batch_norm: true"),
        ({"use_pooling": True}, "have no pool: set use_pooling: false"),
        ({"layout": ModelConfig.TORCHVISION}, "is a file of TLT, whose networks differ: set layout: TLT"),
        ({"arch": "efficientnet_b1"}, "TLT's DetectNet_v2 has no efficientnet_b1"),
        ({"arch": "efficientnet_lite0"}, "TLT's DetectNet_v2 has no efficientnet_lite0"),
        ({"classes": ["car"]}, r"detects 2 classes, the spec 1 \(car\): use the spec"),
        ({"channels": 1}, "takes images of 3 channels, the spec has 1: change output_image_channel"),
    ],
)  # fmt: skip
def test_a_spec_of_another_network(
    tmp_path: Path, as_keras: Save, changes: dict[str, Any], words: str
) -> None:
    path = as_keras(tmp_path / "m.hdf5", detector())
    with pytest.raises(ModelError, match=f"m.hdf5.*{words}"):
        checkpoint.load(path, experiment=experiment(**changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_norm, "holds resnet 10 without batch normalisation: set use_batch_norm: false"),
        (without_heads, "is no detector: it lacks the heads output_cov and output_bbox.*pretrained_model_file"),
        (edited("conv1", "kernel", None), "lacks conv1/kernel: it does not hold the whole network"),
        (edited("bn_conv1", "gamma", None), "lacks bn_conv1/gamma"),
        (edited("conv1", "kernel", np.zeros((7, 7, 3, 64), np.float16)), "conv1/kernel is float16; weights of TLT"),
        (edited("conv1", "kernel", np.full((7, 7, 3, 64), np.nan, np.float32)), "conv1/kernel has values that are not finite"),
        (edited("conv1", "kernel", np.zeros((64, 3), np.float32)), r"is damaged: conv1/kernel has the shape \[64, 3\]"),
        (edited("conv1", "kernel", np.zeros((5, 5, 3, 64), np.float32)), r"backbone.conv1.weight is .*\[64, 3, 5, 5\], which is no part"),
        (edited("conv1", "bias", np.zeros(48, np.float32)), "bn_conv1 is not as wide as conv1"),
        (edited("block_1a_conv_1", "kernel", np.zeros((3, 3, 48, 64), np.float32)), "is damaged: its layers do not fit together"),
        (edited("block_2_projected_inputs", "kernel", np.zeros((1, 1, 8, 8), np.float32)), "its network also has block_2_projected"),
        (lambda layers: layers.pop("output_cov"), "is no detector: it lacks the heads"),
        (behind_the_first, "also has the layers stranger among those of its backbone"),
        (edited("conv1_qdq", "scaling_factor", np.float32(3)), "trained with enable_qat.*relu6"),
        (dict.clear, "holds no network of TLT's DetectNet_v2; its first layers with weights are: none"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_hold_the_network(
    tmp_path: Path, as_keras: Save, change: Callable[..., object], words: str
) -> None:
    path = as_keras(tmp_path / "m.hdf5", detector(), change=change)
    with pytest.raises(ModelError, match=f"^{re.escape(str(path))}.*{words}"):
        checkpoint.load(path, experiment=experiment())


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"name": "bn_conv1", "epsilon": 1e-5}, "bn_conv1 has an epsilon of 1e-05; those of TLT's networks are 0.001"),
        ({"name": "block_1a_conv_1", "strides": [1, 1]}, "block_1a_conv_1 has a stride of 1, the spec's network one of 2"),
    ],
)  # fmt: skip
def test_what_the_file_says_of_its_layers(
    tmp_path: Path, as_keras: Save, layer: dict[str, Any], words: str
) -> None:
    settings = [{"class_name": "Any", "config": layer}]
    path = as_keras(tmp_path / "m.hdf5", detector(), settings=settings)
    with pytest.raises(ModelError, match=words):
        checkpoint.load(path, experiment=experiment())


def test_a_file_of_a_training_in_8_bits_loads_with_relu6(tmp_path: Path, as_keras: Save) -> None:
    activation = ModelConfig.Activation(activation_type="relu6")
    network = detector(activation=activation)
    path = as_keras(tmp_path / "m.hdf5", network, change=edited("conv1_qdq", "scaling_factor", np.float32(3)))
    assert equal(checkpoint.load(path, experiment=experiment(activation=activation)).detector, network)


def test_without_a_spec_there_is_one_line(tmp_path: Path, as_keras: Save) -> None:
    path = as_keras(tmp_path / "m.hdf5", detector())
    with pytest.raises(ModelError) as caught:
        checkpoint.load(path)
    assert str(caught.value) == (
        f"{path} is a Keras file, which has neither a spec nor the names of its classes: give the training spec with -e, or make"
        f" a model of it: detectkit export -e SPEC -m {path} -o {tmp_path}/m.safetensors"
    )


@pytest.mark.parametrize("name", ["m.tlt", "m.etlt"])
def test_encrypted_weights_name_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)))
    with pytest.raises(
        ModelError, match=f"{name} is encrypted: with your key, TAO 5 writes it as a plain Keras file: tao "
    ):
        pretrained.load_pretrained(detector(), tmp_path / name, CLASSES)


# --- the names


def test_the_parameters_of_every_network_are_those_of_tlt() -> None:
    # Of Keras's networks, with the four vectors of batch normalisation and the biases of TLT DetectNet_v2.
    published = {
        **{("resnet", 10): 4_918_848, ("resnet", 18): 11_195_328, ("mobilenet_v1", 0): 1_627_840},
        **{("mobilenet_v2", 0): 558_656, ("squeezenet", 0): 735_424, ("darknet", 19): 19_831_776},
        **{("darknet", 53): 40_620_640, ("googlenet", 0): 6_002_672, ("efficientnet_b0", 0): 4_049_564},
    }
    for (arch, depth), total in published.items():
        with torch.device("meta"):
            backbone = build(config(arch=arch, num_layers=depth), CLASSES, 3).backbone
        with_bias = arch in ("resnet", "squeezenet", "googlenet")
        tensors = {name: t for name, t in backbone.state_dict().items() if "num_batches" not in name}
        biases = sum(
            layer.out_channels
            for layer in backbone.modules()
            if isinstance(layer, nn.Conv2d) and layer.bias is None and with_bias
        )
        assert sum(t.numel() for t in tensors.values()) + biases == total
        named = {name for unit in tlt.units(arch, depth) for name in (unit.ours, unit.norm) if name}
        own = {name.rpartition(".")[0] for name in tensors}
        assert own <= named and all(".downsample." in name for name in named - own)


def test_the_units_of_deep_stages_go_on_behind_z() -> None:
    names = [unit.convolution for unit in tlt.units("resnet", 152)]
    assert {"block_3z_conv_1", "block_3aj_conv_3"} <= set(names) and "block_3ak_conv_1" not in names


# --- the file itself


def test_links_to_other_files_are_not_followed(tmp_path: Path, as_keras: Save) -> None:
    other = as_keras(tmp_path / "other.h5", detector())
    path = as_keras(tmp_path / "m.h5", detector())
    with h5py.File(path, "r+") as file:
        del file["model_weights/conv1/conv1/kernel:0"]
        file["model_weights/conv1/conv1/kernel:0"] = h5py.ExternalLink(
            other, "model_weights/conv1/conv1/kernel:0"
        )
    with pytest.raises(ModelError, match="m.h5 is damaged: conv1/kernel:0 is not in it"):
        checkpoint.load(path, experiment=experiment())


def test_lists_of_names_that_are_split(tmp_path: Path, as_keras: Save) -> None:
    network = detector()
    path = as_keras(tmp_path / "m.h5", network)
    with h5py.File(path, "r+") as file:
        attributes = file["model_weights"].attrs
        names = attributes["layer_names"]
        del attributes["layer_names"]
        attributes["layer_names0"], attributes["layer_names1"] = names[:5], names[5:]
    assert equal(checkpoint.load(path, experiment=experiment()).detector, network)


def test_weights_alone(tmp_path: Path, as_keras: Save) -> None:
    network = detector()
    path = as_keras(tmp_path / "m.h5", network)
    with h5py.File(path) as whole, h5py.File(tmp_path / "w.h5", "w") as alone:
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", alone)
        alone.attrs["layer_names"] = whole["model_weights"].attrs["layer_names"]
    assert equal(checkpoint.load(tmp_path / "w.h5", experiment=experiment()).detector, network)


@pytest.mark.parametrize("kind", ["Functional", "Sequential"])
def test_networks_in_networks_are_refused(tmp_path: Path, as_keras: Save, kind: str) -> None:
    settings = [{"class_name": kind, "name": "resnet10", "config": {"name": "resnet10", "layers": []}}]
    path = as_keras(tmp_path / "m.h5", detector(), settings=settings)
    with pytest.raises(ModelError, match="its layer resnet10 is a network itself"):
        checkpoint.load(path, experiment=experiment())
    with h5py.File(path, "r+") as file:
        del file.attrs["model_config"]
        names = [b"a/kernel:0", b"b/kernel:0"]
        file["model_weights/input_1"].attrs["weight_names"] = names
        for name in names:
            file[f"model_weights/input_1/{name.decode()}"] = np.zeros((1, 1, 1, 1), np.float32)
    with pytest.raises(ModelError, match="its layer input_1 is a network itself"):
        checkpoint.load(path, experiment=experiment())


@pytest.mark.parametrize("content", ["empty", "encrypted", "half", "other", "keras 3", "config"])
def test_files_that_are_none(tmp_path: Path, as_keras: Save, content: str) -> None:
    path = as_keras(tmp_path / "m.h5", detector())
    whole = path.read_bytes()
    words = "is no HDF5 file: it is another kind of file, cut short, or encrypted; with your key, TAO 5"
    if content == "empty":
        path.write_bytes(b"")
    elif content == "encrypted":
        path.write_bytes(bytes(reversed(whole)))
    elif content == "half":
        path.write_bytes(whole[: len(whole) // 2])
        words = r"cannot be read, or is cut short \("
    elif content == "config":
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = "{"
        words = r"cannot be read, or is cut short \("
    else:
        with h5py.File(path, "w") as file:
            file.create_group("layers" if content == "keras 3" else "batch_0")
        words = "is a .weights.h5 file of Keras 3" if content == "keras 3" else "holds no weights of Keras"
    with pytest.raises(ModelError, match=f"m.h5 {words}"):
        checkpoint.load(path, experiment=experiment())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read .*none.h5: there is no such file"):
        checkpoint.load(tmp_path / "none.h5", experiment=experiment())

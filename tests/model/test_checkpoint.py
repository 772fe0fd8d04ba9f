"""Model files: what is written is what is read, and a bad file is one clear error."""

import contextlib
import copy
import functools
import json
import math
import os
import pickle
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from detectkit.errors import ModelError, OutputError
from detectkit.heads.grid_layers import GridLayers
from detectkit.model import checkpoint, pretrained
from detectkit.model.base import Backbone
from detectkit.model.detector import Detector, build
from detectkit.model.squeezenet import SqueezeNet
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS

CLASSES = ["car", "person", "sign"]
SAME_FILE = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


CAR = 'target_class_config { key: "car" value { clustering_config {'
ELU = ModelConfig.Activation(activation_type="elu")


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"arch": "resnet", "num_layers": 10, "use_batch_norm": True} | changes)


def detector(classes: list[str] = CLASSES, channels: int = 3, seed: int = 0, **changes: Any) -> Detector:
    """A network whose tensors, statistics too, are all random."""
    if not changes:  # nearly always: random numbers are dear
        return copy.deepcopy(_made(tuple(classes), channels, seed))
    return _make(config(**changes), classes, channels, seed)


@functools.cache
def _made(classes: tuple[str, ...], channels: int, seed: int) -> Detector:
    return _make(config(), classes, channels, seed)


def _make(model_config: ModelConfig, classes: Sequence[str], channels: int, seed: int) -> Detector:
    torch.manual_seed(seed)
    network = build(model_config, classes, channels)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
            layer.num_batches_tracked.fill_(seed + 7)  # type: ignore[union-attr]
    return network


def spec_text(**changes: Any) -> str:
    return text_format.MessageToString(Experiment(random_seed=42, model_config=config(**changes)))


def pruned(network: Detector, width: int) -> dict[str, Tensor]:
    """The first `width` channels of every layer but the outputs and the image."""
    tensors = {}
    # A Fire module of SqueezeNet gives the channels of two convolutions.
    twice = (".squeeze.weight", "output_cov.weight", "output_bbox.weight")
    fires = twice if isinstance(network.backbone, SqueezeNet) else ()
    for name, tensor in network.state_dict().items():
        if name.startswith("backbone") and tensor.dim():
            tensor = tensor[:width]
        if tensor.dim() == 4 and name != "backbone.conv1.weight":
            joined = name.endswith(fires) and name != "backbone.features.3.squeeze.weight"
            tensor = tensor[:, : 2 * width if joined else width]
        tensors[name] = tensor.clone()
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], **changes: Any) -> Path:
    """A model file with any tensors and any header."""
    header = {"format": 1, "classes": CLASSES, "channels": 3, "spec": spec_text()} | changes
    path.write_bytes(safetensors.torch.save(dict(tensors), {"detectkit": json.dumps(header)}))
    return path


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.safetensors", pruned(detector(), 4))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """In the block a file can grow no more after `room` bytes; not longer, or pytest could not write its own output."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- save and load


@pytest.mark.parametrize(
    ("changes", "channels"),
    [({}, 3), ({"use_batch_norm": False}, 1), ({"all_projections": True, "use_pooling": True}, 3)],
)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any], channels: int) -> None:
    network = detector(channels=channels, **changes)
    checkpoint.save(tmp_path / "m.safetensors", network, spec_text(**changes), CLASSES)
    model = checkpoint.load(tmp_path / "m.safetensors")
    assert equal(model.detector.state_dict(), network.state_dict())
    assert model.class_names == CLASSES
    assert model.spec == Experiment(random_seed=42, model_config=config(**changes))
    assert model.detector.channels == channels and not model.detector.training
    images = torch.rand(1, channels, 32, 48)
    with torch.no_grad():
        assert torch.equal(model.detector(images)[1], network.eval()(images)[1])
    assert os.listdir(tmp_path) == ["m.safetensors"]


SMALL = [
    *[("resnet", 10), ("darknet", 19), ("mobilenet_v1", 0), ("mobilenet_v2", 0), ("squeezenet", 0)],
    *[("googlenet", 0), ("vgg", 16), ("efficientnet_b0", 0), ("efficientnet_lite0", 0)],
]
LARGE = [
    (arch, depth)
    for arch, network in NETWORKS.items()
    for depth in network.depths or (0,)
    if (arch, depth) not in SMALL
]


@pytest.mark.parametrize(
    ("arch", "depth"), SMALL + [pytest.param(*pair, marks=pytest.mark.slow) for pair in LARGE]
)
def test_every_network_learns_a_step_and_comes_back_predicting_the_same(
    tmp_path: Path, arch: str, depth: int
) -> None:
    torch.manual_seed(1)
    network = build(config(arch=arch, num_layers=depth), CLASSES, 3)
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    coverage, bbox = network.train()(torch.rand(2, 3, 64, 64))
    (coverage.square().mean() + (bbox - 1).square().mean()).backward()
    assert all(
        weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in network.parameters()
    )
    optimizer.step()
    same = [name for name, weight in network.named_parameters() if torch.equal(weight, before[name])]
    # a residual branch that was dropped at random has no gradient
    assert not same if not arch.startswith("efficientnet_b") else len(same) < len(before) / 4
    checkpoint.save(tmp_path / "m", network, spec_text(arch=arch, num_layers=depth), CLASSES)
    loaded = checkpoint.load(tmp_path / "m").detector
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = network.eval()(images), loaded(images)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert ours[1].shape == (1, 12, 64 // network.outline.multiple, 96 // network.outline.multiple)


@pytest.mark.parametrize(
    ("arch", "width"),
    [
        *[("mobilenet_v1", 6), ("mobilenet_v2", 8), ("squeezenet", 4), ("efficientnet_b0", 4)],
        ("efficientnet_lite0", 8),
    ],
)
def test_a_pruned_model_of_any_family_is_a_model(tmp_path: Path, arch: str, width: int) -> None:
    tensors = pruned(detector(arch=arch, num_layers=0), width)
    path = write(tmp_path / "m.safetensors", tensors, spec=spec_text(arch=arch, num_layers=0))
    model = checkpoint.load(path)
    assert equal(model.detector.state_dict(), tensors)
    assert {layer.groups for layer in model.detector.modules() if isinstance(layer, nn.Conv2d)} <= {1, width}
    coverage, _ = model.detector.train()(torch.rand(2, 3, 64, 64))
    coverage.sum().backward()
    assert coverage.isfinite().all()


def test_equal_models_are_equal_files(tmp_path: Path, small: Path) -> None:
    model = checkpoint.load(small)
    for name in ("one", "two"):
        checkpoint.save(tmp_path / name, model.detector, spec_text(), model.class_names)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_class_names_and_spec_may_be_any_text(tmp_path: Path) -> None:
    names = ["voiture à quai", "人", 'a "b"']
    checkpoint.save(tmp_path / "m", detector(names), spec_text(), names)
    assert checkpoint.load(tmp_path / "m").class_names == names


def test_freezing_settings_survive(tmp_path: Path) -> None:
    changes = {"freeze_bn": True, "freeze_blocks": [0]}
    checkpoint.save(tmp_path / "m", detector(**changes), spec_text(**changes), CLASSES)
    loaded = checkpoint.load(tmp_path / "m").detector
    assert loaded.freeze_bn and not loaded.backbone.conv1.weight.requires_grad
    assert loaded.output_cov.weight.requires_grad


def test_a_pruned_model_is_a_model(tmp_path: Path) -> None:
    tensors = pruned(detector(), 5)
    model = checkpoint.load(write(tmp_path / "m.safetensors", tensors))
    assert equal(model.detector.state_dict(), tensors)
    convolution = model.detector.get_submodule("backbone.layer2.0.conv1")
    assert (convolution.in_channels, convolution.out_channels) == (5, 5)
    assert model.detector.backbone.bn1.num_features == 5
    coverage, bbox = model.detector.train()(torch.rand(2, 3, 32, 32))
    (coverage.sum() + bbox.sum()).backward()
    checkpoint.save(tmp_path / "again.safetensors", model.detector, spec_text(), CLASSES)
    assert checkpoint.load(tmp_path / "again.safetensors").detector.backbone.bn1.num_features == 5


class Chain(Backbone):
    """4 channels to 16 and to 16, the second and third layer in the groups that are given."""

    given = ("layers.2",)

    def __init__(self, second: int, third: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 16, 1, groups=second),
            nn.Conv2d(16, 16, 3, padding=1, groups=third),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.layers(images),)

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def gridded(backbone: Backbone, *, classes: int) -> Detector:
    return Detector(backbone, GridLayers(ModelConfig(), backbone.levels, classes), channels=3)


@pytest.mark.parametrize(
    ("groups", "shapes", "narrowed"),
    [
        ((1, 16), [(2, 3), (12, 2), (12, 1)], (1, 12)),  # the third is depthwise, and stays so
        ((2, 4), [(2, 3), (8, 1), (12, 2)], (2, 4)),  # others keep their number of groups
        ((4, 1), [(4, 3), (8, 1), (10, 8)], (4, 1)),  # as does one that makes several channels of one
    ],
)
def test_narrowing_keeps_groups(
    groups: tuple[int, int], shapes: list[tuple[int, int]], narrowed: tuple[int, int]
) -> None:
    network = gridded(Chain(*groups), classes=1)
    tensors = dict(network.state_dict())
    for number, (after, before) in enumerate(shapes):
        name = f"backbone.layers.{number}"
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"][:after, :before].clone()
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"][:after].clone()
    width = shapes[-1][0]
    for head in ("output_cov", "output_bbox"):
        tensors[f"{head}.weight"] = tensors[f"{head}.weight"][:, :width].clone()
    checkpoint.narrow(network, tensors)
    assert equal(network.state_dict(), tensors)
    layers = [layer for layer in network.backbone.modules() if isinstance(layer, nn.Conv2d)]
    assert tuple(layer.groups for layer in layers) == (1, *narrowed)
    assert [layer.out_channels for layer in layers] == [after for after, _ in shapes]
    assert [layer.in_channels for layer in layers[1:]] == [after for after, _ in shapes[:-1]]
    assert network.backbone.levels[0].channels == network.output_bbox.in_channels == width
    assert network(torch.rand(2, 3, 8, 8))[1].shape == (2, 4, 8, 8)


# --- bad model files


def refused(path: Path, *words: str) -> str:
    """The one line that says why, with all these words in it."""
    with pytest.raises(ModelError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message and message.count("\n") == 0
    assert all(word in message for word in words), message
    return message


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.safetensors", "No such file")
    assert refused(tmp_path, "Is a directory")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"random_seed: 42\n", b"\xff" * 64, b"PK\x03\x04" + b"x" * 99]
)
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    assert refused(tmp_path / "m.safetensors", "is not a detectkit model")


def test_weights_of_another_program(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "m.safetensors", {"format": "pt"})
    assert refused(tmp_path / "m.safetensors", "without a spec and class names")


@SAME_FILE
@given(share=st.floats(0, 1, exclude_max=True), tail=st.integers(0, 20))
def test_cut_short_anywhere(small: Path, share: float, tail: int) -> None:
    content = small.read_bytes()
    cut = small.with_name("cut.safetensors")
    for length in (int(len(content) * share), len(content) - 1 - tail):
        cut.write_bytes(content[:length])
        assert refused(cut, "is not a detectkit model, or is cut short")


@SAME_FILE
@given(position=st.integers(0, 8000), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_model_error_or_a_model(small: Path, position: int, byte: int) -> None:
    content = bytearray(small.read_bytes())
    content[position] = byte
    small.with_name("changed").write_bytes(content)
    try:
        checkpoint.load(small.with_name("changed"))
    except ModelError as error:
        assert "changed" in str(error)


def test_a_changed_bit_is_noticed_wherever_it_is(tmp_path: Path, small: Path) -> None:
    model = checkpoint.load(small)
    checkpoint.save(tmp_path / "m", model.detector, spec_text(), CLASSES)
    content = (tmp_path / "m").read_bytes()
    for position in (*range(0, 400, 7), *range(400, len(content), len(content) // 60)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        (tmp_path / "m").write_bytes(changed)
        try:
            checkpoint.load(tmp_path / "m")
        except ModelError as error:
            assert str(tmp_path / "m") in str(error)
        else:  # only where the checksum itself has no name any more
            assert 0 <= position - content.index(b"checksum") + 2 < 18
    changed = bytearray(content)
    changed[-1] ^= 1
    (tmp_path / "m").write_bytes(changed)
    assert refused(tmp_path / "m", "is damaged, or was changed after it was written")


def test_a_file_without_a_checksum_loads(small: Path) -> None:
    assert b"checksum" not in small.read_bytes()
    assert checkpoint.load(small).class_names == CLASSES


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["backbone.conv1.weight", "backbone.bn1.running_mean", "output_bbox.bias"])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, name: str, value: float) -> None:
    tensors = pruned(detector(), 4)
    tensors[name].view(-1)[-1] = value
    path = write(tmp_path / "m.safetensors", tensors)
    assert refused(path, f"{name} has values that are not finite: take another checkpoint")


@pytest.mark.parametrize(
    ("name", "value"),
    [("backbone.bn1.running_var", -1), ("normalize.std", 0), ("backbone.conv1.weight", 3e38)],
)
def test_weights_that_make_no_numbers_are_refused(tmp_path: Path, name: str, value: float) -> None:
    tensors = pruned(detector(), 4)
    tensors[name].fill_(value)
    if value == 3e38:
        tensors["normalize.mean"].fill_(-1)
    path = write(tmp_path / "m.safetensors", tensors)
    assert refused(path, "its maps of a black image are not finite")


@pytest.mark.parametrize("character", ["\x1b", "\x07", "\0", "\n", "\r", "\x9b", "\u202e", "\u2028", "\x7f"])
def test_a_class_name_that_a_terminal_would_obey_is_refused(tmp_path: Path, character: str) -> None:
    classes = ["car", f"per{character}son", "sign"]
    message = refused(
        write(tmp_path / "m.safetensors", pruned(detector(), 4), classes=classes), "a control character"
    )
    assert character not in message


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("augmentation_config { preprocessing { output_image_width: 0 output_image_height: 64 } }", "got 0"),
        (
            "augmentation_config { preprocessing { output_image_width: 1000000 } }",
            "must be in [16, 16384], got 1000000",
        ),
        ("augmentation_config { preprocessing { output_image_width: 33 } }", "must be a multiple of 16"),
        ("augmentation_config { preprocessing { output_image_channel: 4 } }", "must be one of 1, 3, got 4"),
        (f"postprocessing_config {{ {CAR} dbscan_eps: -1 }} }} }} }}", "dbscan_eps: must be"),
        (
            f"postprocessing_config {{ {CAR} dbscan_eps: nan }} }} }} }}",
            "dbscan_eps: must be a finite number, got nan",
        ),
        (f"postprocessing_config {{ {CAR} nms_iou_threshold: 7 }} }} }} }}", "nms_iou_threshold: must be in"),
        (
            f"postprocessing_config {{ {CAR} clustering_algorithm: 9 }} }} }} }}",
            "clustering_algorithm: must be one of",
        ),
    ],
)
def test_the_spec_in_a_model_is_judged(tmp_path: Path, section: str, words: str) -> None:
    path = write(tmp_path / "m.safetensors", pruned(detector(), 4), spec=f"{spec_text()} {section}")
    assert refused(path, "is damaged: in its spec ", words)


@pytest.mark.parametrize(
    "section", ["training_config { num_epochs: 0 }", "export_config { nms: true gen_ds_config: true }"]
)
def test_sections_that_a_model_does_not_run_by_are_not_judged(tmp_path: Path, section: str) -> None:
    path = write(tmp_path / "m.safetensors", pruned(detector(), 4), spec=f"{spec_text()} {section}")
    assert checkpoint.load(path).class_names == CLASSES


def test_a_newer_format(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", {"anything": torch.zeros(1)}, format=2)
    assert refused(path, "newer detectkit", "model format 2", "upgrade")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": "model_config {"}, "description"),
        ({"spec": "no_such_field: 1"}, "no_such_field"),
        ({"spec": 3}, "description"),
        ({"spec": 'model_config { arch: "vgg11" }'}, "vgg11"),
        ({"spec": 'model_config { arch: "vgg" num_layers: 16 }'}, "lacks backbone.features.0.bias"),
        (
            {"spec": 'model_config { arch: "resnet" num_layers: 34 use_batch_norm: true }'},
            "lacks backbone.layer1.1",
        ),
        ({"classes": 3}, "description"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["car", "person"]}, "[2, 512, 1, 1]"),
        ({"classes": ["a", "b", "c", "d"]}, "heads are not those of 4 classes"),
        ({"channels": -1}, "-1 image channels"),
        ({"channels": 1}, "normalize.mean"),
        ({"format": "newest"}, "is not a detectkit model"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert refused(write(tmp_path / "m.safetensors", pruned(detector(), 4), **changes), words)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("backbone.bn1.bias", lambda tensor: None, "lacks backbone.bn1.bias"),
        ("extra", lambda tensor: torch.zeros(1), "also has extra"),
        ("backbone.conv1.weight", lambda tensor: tensor[:3], "do not fit together"),
        ("backbone.bn1.running_var", lambda tensor: tensor[:3], "do not fit together"),
        ("backbone.conv1.weight", lambda tensor: tensor[:, :, :5, :5], "[4, 3, 5, 5]"),
        ("backbone.conv1.weight", lambda tensor: torch.zeros(65, 3, 7, 7), "[65, 3, 7, 7]"),
        ("backbone.conv1.weight", lambda tensor: tensor[:0], "[0, 3, 7, 7]"),
        ("backbone.conv1.weight", lambda tensor: tensor.half(), "torch.float16"),
        ("backbone.bn1.weight", lambda tensor: tensor.reshape(2, 2), "[2, 2]"),
        ("output_cov.bias", lambda tensor: tensor[:2], "do not fit together"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, name: str, change: Callable[[Tensor | None], Tensor | None], words: str
) -> None:
    tensors = pruned(detector(), 4)
    new = change(tensors.pop(name, None))
    if new is not None:
        tensors[name] = new.contiguous()
    assert refused(write(tmp_path / "m.safetensors", tensors), words)


# --- writing


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    network = detector()
    with pytest.raises(OutputError, match="cannot write .*m.safetensors"), full_disk(room):
        checkpoint.save(tmp_path / "m.safetensors", network, spec_text(), CLASSES)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_model_as_it_was(tmp_path: Path) -> None:
    old = detector()
    checkpoint.save(tmp_path / "m.safetensors", old, spec_text(), CLASSES)
    content = (tmp_path / "m.safetensors").read_bytes()
    with pytest.raises(OutputError), full_disk(len(content) // 2):
        checkpoint.save(tmp_path / "m.safetensors", detector(seed=1), spec_text(), CLASSES)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    assert (tmp_path / "m.safetensors").read_bytes() == content


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    old = detector()
    checkpoint.save(tmp_path / "m.safetensors", old, spec_text(), CLASSES)

    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "m.safetensors", detector(seed=1), spec_text(), CLASSES)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    assert equal(checkpoint.load(tmp_path / "m.safetensors").detector.state_dict(), old.state_dict())


# --- weights to start from: detectkit models


def test_other_classes_copy_the_heads_of_the_same_name(tmp_path: Path) -> None:
    source = detector()
    checkpoint.save(tmp_path / "m.safetensors", source, spec_text(), CLASSES)
    names = ["sign", "bus", "car", "tram"]
    network = detector(names, seed=1)
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    report = pretrained.load_pretrained(network, tmp_path / "m.safetensors", names)
    assert report.classes == ["sign", "car"] and not report.narrowed
    assert report.skipped == [
        "output_cov.weight",
        "output_cov.bias",
        "output_bbox.weight",
        "output_bbox.bias",
    ]
    assert set(report.loaded) == set(fresh)
    cov, bbox = network.output_cov.weight, network.output_bbox.weight
    assert torch.equal(cov[0], source.output_cov.weight[2]) and torch.equal(
        cov[2], source.output_cov.weight[0]
    )
    assert torch.equal(bbox[0:4], source.output_bbox.weight[8:12])
    assert torch.equal(bbox[8:12], source.output_bbox.weight[0:4])
    for row in (1, 3):
        assert torch.equal(cov[row], fresh["output_cov.weight"][row])
        assert torch.equal(bbox[4 * row : 4 * row + 4], fresh["output_bbox.weight"][4 * row : 4 * row + 4])
    assert equal(network.backbone.state_dict(), source.backbone.state_dict())


def test_the_same_classes_copy_everything(tmp_path: Path) -> None:
    source = detector()
    source.normalize.mean.fill_(0.25)
    checkpoint.save(tmp_path / "m.safetensors", source, spec_text(), CLASSES)
    network = detector(seed=1)
    report = pretrained.load_pretrained(network, tmp_path / "m.safetensors", CLASSES)
    assert equal(network.state_dict(), source.state_dict())
    assert (report.skipped, report.classes) == ([], CLASSES)


def test_no_common_class_keeps_fresh_heads(tmp_path: Path, small: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", detector(), spec_text(), CLASSES)
    network = detector(["cell"], seed=1)
    fresh = network.output_cov.weight.clone()
    report = pretrained.load_pretrained(network, tmp_path / "m.safetensors", ["cell"])
    assert torch.equal(network.output_cov.weight, fresh)
    assert report.classes == [] and not any(name.startswith("output") for name in report.loaded)


def test_a_pruned_model_narrows_the_detector(small: Path) -> None:
    source = checkpoint.load(small).detector
    network = detector(["sign", "bus"], seed=1, freeze_blocks=[0])
    report = pretrained.load_pretrained(network, small, ["sign", "bus"])
    assert report.narrowed and report.classes == ["sign"]
    assert equal(network.backbone.state_dict(), source.backbone.state_dict())
    assert network.output_bbox.weight.shape == (8, 4, 1, 1)
    assert torch.equal(network.output_bbox.weight[:4], source.output_bbox.weight[8:])
    limit = (6 / (4 + 8)) ** 0.5
    assert 0 < network.output_bbox.weight[4:].abs().max() <= limit and not network.output_bbox.bias[4:].any()
    assert not network.backbone.conv1.weight.requires_grad
    coverage, bbox = network.train()(torch.rand(2, 3, 32, 32))
    assert coverage.shape == (2, 2, 2, 2) and bbox.shape == (2, 8, 2, 2)


@pytest.mark.parametrize(
    ("changes", "channels", "words"),
    [
        ({"num_layers": 18}, 3, 'arch: "resnet", num_layers: 10, use_pooling: false, use_batch_norm: true'),
        ({"arch": "darknet", "num_layers": 19}, 3, 'arch: "resnet"'),
        ({"use_batch_norm": False}, 3, "use_batch_norm: true"),
        ({"all_projections": True, "num_layers": 18}, 3, "all_projections: false"),
        ({}, 1, "output_image_channel"),
        # No tensor tells these from the pruned network of the file.
        ({"use_pooling": True, "all_projections": True}, 3, "stays what it is: .*, use_pooling: false"),
        ({"activation": ELU}, 3, "pruned network and stays what it is: .*, no activation$"),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(
    small: Path, changes: dict[str, Any], channels: int, words: str
) -> None:
    network = detector(channels=channels, seed=1, **changes)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        pretrained.load_pretrained(network, small, CLASSES)
    assert equal(network.state_dict(), before)


def test_the_activation_of_a_pruned_model_is_kept(tmp_path: Path, small: Path) -> None:
    named = {"activation": ModelConfig.Activation(activation_type="relu")}
    assert pretrained.load_pretrained(detector(seed=1, **named), small, CLASSES).narrowed  # named or not
    tensors = pruned(detector(activation=ELU), 4)
    path = write(tmp_path / "elu.safetensors", tensors, spec=spec_text(activation=ELU))
    with pytest.raises(ModelError, match=r'activation \{ activation_type: "elu" \}$'):
        pretrained.load_pretrained(detector(seed=1), path, CLASSES)
    network = detector(seed=1, activation=ELU)
    assert pretrained.load_pretrained(network, path, CLASSES).narrowed
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(network.eval()(images)[1], checkpoint.load(path).detector(images)[1])


def test_weights_of_full_width_may_get_another_activation(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.safetensors", detector().state_dict())
    network = detector(seed=1, activation=ELU)
    report = pretrained.load_pretrained(network, path, CLASSES)
    assert not report.narrowed and equal(network.state_dict(), detector().state_dict())


# --- weights to start from: torchvision


def test_a_torchvision_file_loads_as_it_is(resnet18: Path) -> None:
    network = detector(num_layers=18, use_pooling=True)
    fresh_head = network.output_cov.weight.clone()
    report = pretrained.load_pretrained(network, resnet18, CLASSES)
    original = torchvision.models.resnet18(weights=None)
    original.load_state_dict(torch.load(resnet18, weights_only=True))
    assert report.skipped == [
        "output_cov.weight",
        "output_cov.bias",
        "output_bbox.weight",
        "output_bbox.bias",
    ]
    assert torch.equal(network.output_cov.weight, fresh_head)
    seen: list[Tensor] = []
    for model in (original, network.backbone):
        model.layer3.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        original.eval()((images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
        network.eval()(images)
    assert torch.equal(seen[0], seen[1])


def test_projections_that_torchvision_lacks_start_as_the_identity(resnet18: Path) -> None:
    plain = detector(num_layers=18, use_pooling=True)
    projected = detector(num_layers=18, use_pooling=True, all_projections=True)
    for network in (plain, projected):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
        pretrained.load_pretrained(network, resnet18, CLASSES)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = projected.eval().backbone(images)[0], plain.eval().backbone(images)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_strides_instead_of_pooling_need_one_projection_more(resnet18: Path) -> None:
    report = pretrained.load_pretrained(detector(num_layers=18), resnet18, CLASSES)
    backbone = [name for name in report.skipped if name.startswith("backbone.")]
    assert len(backbone) == 6 and all(name.startswith("backbone.layer1.0.downsample.") for name in backbone)


def test_grey_images_take_the_sum_over_the_colours(resnet18: Path) -> None:
    network = detector(channels=1, num_layers=18)
    pretrained.load_pretrained(network, resnet18, CLASSES)
    colours = torch.load(resnet18, weights_only=True)["conv1.weight"]
    assert torch.equal(network.backbone.conv1.weight, colours.sum(1, keepdim=True))
    assert network.normalize.mean.item() == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert network.normalize.std.item() == pytest.approx(0.226)


# By torchvision's name, ours.
TORCHVISION: dict[str, dict[str, Any]] = {
    "vgg16": {"arch": "vgg", "num_layers": 16, "use_batch_norm": False},
    "vgg19_bn": {"arch": "vgg", "num_layers": 19},
    "googlenet": {"arch": "googlenet", "num_layers": 0},
    "mobilenet_v2": {"arch": "mobilenet_v2", "num_layers": 0},
    "squeezenet1_0": {"arch": "squeezenet", "num_layers": 0},
    "efficientnet_b0": {"arch": "efficientnet_b0", "num_layers": 0},
    "resnet18": {"num_layers": 18},
}
LAST = {"googlenet": "inception5b", "mobilenet_v2": "features.13", "resnet18": "layer3"}


def original(name: str) -> nn.Module:
    """torchvision's network with random weights and statistics; what is large and behind ours is left out."""
    torch.manual_seed(6)
    options = (
        {"aux_logits": False, "init_weights": False, "transform_input": True} if name == "googlenet" else {}
    )
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    if name.startswith("vgg"):
        network.classifier, network.avgpool = nn.Sequential(nn.Identity(), nn.Linear(1, 1)), nn.Identity()
    network.to_empty(device="cpu")
    for layer in network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


def features(name: str, network: nn.Module, images: Tensor) -> Tensor:
    """What torchvision's network gives at the layer that is our last, with the border that ours has in squeezenet."""
    last = network.get_submodule(LAST.get(name, "features"))
    if name == "squeezenet1_0":
        last[0].padding = (3, 3)
        for layer in last:
            if isinstance(layer, nn.MaxPool2d):
                layer.padding, layer.ceil_mode = 1, False
    if name.startswith("vgg"):
        last[-1] = nn.Identity()  # the fifth pool
    if name == "googlenet":
        network.maxpool4 = nn.Identity()
    seen: list[Tensor] = []
    handle = last.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    with torch.no_grad(), contextlib.suppress(RuntimeError):  # the left out classifier
        network(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_give_torchvisions_features(tmp_path: Path, name: str) -> None:
    theirs = original(name)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    network = detector(use_pooling=True, **TORCHVISION[name])
    report = pretrained.load_pretrained(network, tmp_path / "w.pth", CLASSES)
    assert report.skipped == [
        "output_cov.weight",
        "output_cov.bias",
        "output_bbox.weight",
        "output_bbox.bias",
    ]
    images = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = features(name, theirs, (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
    network.eval()
    last = network.backbone.get_submodule("layer3" if name == "resnet18" else network.backbone.order[-1])
    seen: list[Tensor] = []
    last.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    assert seen[0].shape == expected.shape and expected.std() > 0
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def test_features_of_torchvision_saved_alone_load(tmp_path: Path) -> None:
    whole = original("mobilenet_v2").state_dict()
    alone = {name.removeprefix("features."): t for name, t in whole.items() if name.startswith("features.")}
    with_prefix = {name: t for name, t in whole.items() if name.startswith("features.")}
    assert "0.0.weight" in alone
    loaded = []
    for number, tensors in enumerate((whole, alone, with_prefix)):
        torch.save(tensors, tmp_path / f"{number}.pth")
        network = detector(seed=number, **TORCHVISION["mobilenet_v2"])
        pretrained.load_pretrained(network, tmp_path / f"{number}.pth", CLASSES)
        loaded.append(network.backbone.state_dict())
    assert equal(loaded[0], loaded[1]) and equal(loaded[0], loaded[2])
    assert torch.equal(loaded[0]["features.13.conv.2.weight"], whole["features.13.conv.2.weight"])


def test_a_torchvision_file_that_ends_before_our_last_layer(tmp_path: Path) -> None:
    tensors = original("mobilenet_v2").state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("features.13.")}
    torch.save(kept, tmp_path / "short.pth")
    with pytest.raises(
        ModelError, match="short.pth lacks features.13.conv.*asks for mobilenet_v2, torchvision's"
    ):
        pretrained.load_pretrained(detector(**TORCHVISION["mobilenet_v2"]), tmp_path / "short.pth", CLASSES)


def test_a_deeper_vgg_is_not_taken_for_a_shallower_one(tmp_path: Path) -> None:
    with torch.device("meta"):
        names = torchvision.models.vgg19_bn(weights=None).state_dict()
        network = detector(arch="vgg", num_layers=16)
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match="also has features.*the spec asks for vgg 16, torchvision's vgg16_bn"
    ):
        pretrained.load_pretrained(network, tmp_path / "w.pth", CLASSES)


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet"])
def test_grey_images_take_the_sum_over_the_colours_of_any_network(tmp_path: Path, name: str) -> None:
    tensors = original(name).state_dict()
    torch.save(tensors, tmp_path / "w.pth")
    network = detector(channels=1, **TORCHVISION[name])
    pretrained.load_pretrained(network, tmp_path / "w.pth", CLASSES)
    first = "conv1.conv.weight" if name == "googlenet" else "features.0.0.weight"
    assert torch.equal(network.backbone.get_parameter(first), tensors[first].sum(1, keepdim=True))
    # torchvision's GoogLeNet takes colours from -1 to 1 (its transform_input)
    expected = (0.5, 0.5) if name == "googlenet" else ((0.485 + 0.456 + 0.406) / 3, 0.226)
    assert (network.normalize.mean.item(), network.normalize.std.item()) == pytest.approx(expected)


# --- EfficientNet-PyTorch's weights


LITE = {  # strides and whole numbers of blocks
    "efficientnet_lite0": ((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1), 16),
    "efficientnet_lite1": ((1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1), 21),
}


def lite(arch: str) -> dict[str, Tensor]:
    """Random weights under EfficientNet-PyTorch's names, those of the first block behind ours too."""
    torch.manual_seed(8)
    tensors: dict[str, Tensor] = {}

    def convolution(name: str, normalisation: str, *shape: int) -> None:
        fan = math.prod(shape[1:])
        tensors[f"{name}.weight"] = torch.randn(shape) * math.sqrt(2 / fan)
        width = shape[0]
        tensors[f"{normalisation}.weight"] = torch.rand(width) + 0.5
        for leaf in ("bias", "running_mean"):
            tensors[f"{normalisation}.{leaf}"] = torch.randn(width) * 0.1
        tensors[f"{normalisation}.running_var"] = torch.rand(width) * 1.5 + 0.001
        tensors[f"{normalisation}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", "_bn0", 32, 3, 3, 3)
    before = 32
    with torch.device("meta"):
        shapes = detector(arch=arch, num_layers=0).backbone.blocks()
    for number, stride in enumerate(LITE[arch][0]):
        name, depthwise = f"_blocks.{number}", shapes[number + 1].get_parameter("depthwise.conv.weight")
        after = len(shapes[number + 1].get_parameter("project.conv.weight"))
        wide, size = len(depthwise), depthwise.shape[-1]
        if number:
            convolution(f"{name}._expand_conv", f"{name}._bn0", wide, before, 1, 1)
        convolution(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, size, size)
        convolution(f"{name}._project_conv", f"{name}._bn2", after, wide, 1, 1)
        before = after
    convolution(
        f"_blocks.{len(LITE[arch][0])}._expand_conv", f"_blocks.{len(LITE[arch][0])}._bn0", 8, before, 1, 1
    )
    convolution("_conv_head", "_bn1", 8, 8, 1, 1)
    return tensors | {"_fc.weight": torch.zeros(2, 8), "_fc.bias": torch.zeros(2)}


def lite_features(arch: str, tensors: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What TensorFlow computes at a stride of 16."""

    def convolution(
        values: Tensor, name: str, normalisation: str, stride: int = 1, groups: int = 1
    ) -> Tensor:
        weight = tensors[f"{name}.weight"]
        zeros = []
        for side in (values.shape[3], values.shape[2]):  # "same": the odd one goes below and on the right
            total = max((math.ceil(side / stride) - 1) * stride + weight.shape[-1] - side, 0)
            zeros += [total // 2, total - total // 2]
        values = functional.conv2d(functional.pad(values, zeros), weight, stride=stride, groups=groups)
        scale, shift, mean, variance = (
            tensors[f"{normalisation}.{leaf}"].reshape(-1, 1, 1)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (values - mean) / torch.sqrt(variance + 1e-3) * scale + shift

    values = convolution(images, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for number, stride in enumerate(LITE[arch][0]):
        name, inner = f"_blocks.{number}", values
        if number:
            inner = convolution(inner, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        inner = convolution(
            inner, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=inner.shape[1]
        ).clamp(0, 6)
        inner = convolution(inner, f"{name}._project_conv", f"{name}._bn2")
        values = values + inner if values.shape == inner.shape else inner
    return values


@pytest.mark.parametrize("arch", LITE)
def test_weights_of_efficientnet_lite_give_tensorflows_features(tmp_path: Path, arch: str) -> None:
    tensors = lite(arch)
    torch.save(tensors, tmp_path / "w.pth")
    network = detector(arch=arch, num_layers=0)
    report = pretrained.load_pretrained(network, tmp_path / "w.pth", CLASSES)
    assert {name.partition(".")[0] for name in report.skipped} == {"output_cov", "output_bbox"}
    colours = torch.rand(1, 3, 64, 96) * 255
    torch.testing.assert_close(network.normalize(colours / 255), (colours - 127) / 128)
    images = ((colours - 127) / 128).double()  # random networks blow up what 32 bits round
    with torch.no_grad():
        found = network.eval().double().backbone(images)[0]
    expected = lite_features(arch, {name: tensor.double() for name, tensor in tensors.items()}, images)
    assert found.shape == (1, 112, 4, 6)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_the_other_lite_is_refused(tmp_path: Path) -> None:
    for arch, words in (
        (
            "efficientnet_lite0",
            "lacks block12.*asks for efficientnet_lite1, EfficientNet-PyTorch's efficientnet-lite1",
        ),
        ("efficientnet_lite1", "other shapes in block4.*asks for efficientnet_lite0"),
    ):
        torch.save(lite(arch), tmp_path / "w.pth")
        other = next(name for name in LITE if name != arch)
        with pytest.raises(ModelError, match=words):
            pretrained.load_pretrained(detector(arch=other, num_layers=0), tmp_path / "w.pth", CLASSES)


# --- freezing what came from a file


def steps(network: Detector, count: int = 2) -> set[str]:
    """Train; gives the tensors that changed."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.eval().train()
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(count):
        coverage, bbox = network(torch.rand(2, network.channels, 64, 64))
        optimizer.zero_grad()
        (coverage.square().mean() + (bbox - 1).square().mean()).backward()
        optimizer.step()
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.spec_field("ModelConfig.freeze_pretrained_layers")
@pytest.mark.parametrize("frozen", [False, True])
def test_freezing_pretrained_layers_trains_only_what_the_file_lacks(resnet18: Path, frozen: bool) -> None:
    network = detector(num_layers=18, freeze_pretrained_layers=frozen)
    report = pretrained.load_pretrained(network, resnet18, CLASSES)
    changed = steps(network)
    assert "backbone.layer1.0.downsample.0.weight" in report.skipped
    if frozen:
        assert changed == set(report.skipped)
    else:
        assert {"backbone.conv1.weight", "backbone.bn1.running_mean"} <= changed


def test_heads_of_another_class_are_trained_and_those_of_the_same_classes_are_not(small: Path) -> None:
    network = detector(["sign", "bus"], freeze_pretrained_layers=True)
    pretrained.load_pretrained(network, small, ["sign", "bus"])
    assert steps(network) == {
        "output_cov.weight",
        "output_cov.bias",
        "output_bbox.weight",
        "output_bbox.bias",
    }
    network = detector(freeze_pretrained_layers=True)
    with pytest.raises(ModelError, match="small.safetensors holds every layer.*nothing to train"):
        pretrained.load_pretrained(network, small, CLASSES)


def test_files_without_batch_counters_load(tmp_path: Path, resnet18: Path) -> None:
    tensors = torch.load(resnet18, weights_only=True)
    torch.save(
        {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}, tmp_path / "old.pth"
    )
    report = pretrained.load_pretrained(
        detector(num_layers=18, use_pooling=True), tmp_path / "old.pth", CLASSES
    )
    assert "backbone.bn1.weight" in report.loaded and "backbone.bn1.num_batches_tracked" in report.skipped


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_layers": 34},
            "the spec asks for resnet 34, torchvision's resnet34: give its weights, or set arch",
        ),
        (
            {"num_layers": 10},
            "the spec asks for resnet 10, which torchvision does not have: give a detectkit model",
        ),
        (
            {"num_layers": 18, "use_batch_norm": False},
            "resnet 18 without batch normalisation, which torchvision does not have",
        ),
        ({"arch": "darknet", "num_layers": 19}, "darknet 19, which torchvision does not have"),
        ({"arch": "mobilenet_v1", "num_layers": 0}, "mobilenet_v1, which torchvision does not have"),
        ({"arch": "mobilenet_v2", "num_layers": 0}, "also has bn1.bias.*: the spec asks for mobilenet_v2"),
        ({"arch": "vgg", "num_layers": 16, "use_batch_norm": True}, "torchvision's vgg16_bn"),
        ({"arch": "vgg", "num_layers": 16, "use_batch_norm": False}, "torchvision's vgg16:"),
    ],
)
def test_another_network_is_refused_and_changes_nothing(
    resnet18: Path, changes: dict[str, Any], words: str
) -> None:
    network = detector(**changes)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        pretrained.load_pretrained(network, resnet18, CLASSES)
    assert equal(network.state_dict(), before)


def test_a_pruned_torchvision_file_names_its_tensors(tmp_path: Path, resnet18: Path) -> None:
    tensors = torch.load(resnet18, weights_only=True)
    torch.save(tensors | {"conv1.weight": tensors["conv1.weight"][:60]}, tmp_path / "p.pth")
    with pytest.raises(ModelError, match="other shapes in conv1.weight"):
        pretrained.load_pretrained(detector(num_layers=18), tmp_path / "p.pth", CLASSES)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, protocol: str) -> None:
    path, folder = tmp_path / "bad.pth", tmp_path / "ran"
    content = {"conv1.weight": Code(folder)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ModelError, match="bad.pth .*holds code, which is never run"):
        pretrained.load_pretrained(never_loaded(), path, CLASSES)
    assert not folder.exists()


@pytest.mark.parametrize(
    "content", [3, [torch.zeros(1)], {}, {"epoch": 3}, {1: torch.zeros(1)}, torch.zeros(2)]
)
def test_a_pth_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        pretrained.load_pretrained(never_loaded(), tmp_path / "m.pth", CLASSES)


def test_a_missing_pth(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read .*none.pth: No such file"):
        pretrained.load_pretrained(never_loaded(), tmp_path / "none.pth", CLASSES)


@functools.cache
def never_loaded() -> Detector:
    return build(config(num_layers=18), CLASSES, 3)


@SAME_FILE
@given(share=st.floats(0, 1, exclude_max=True), new=st.booleans(), byte=st.integers(0, 255))
def test_a_pth_cut_short_or_changed_is_a_model_error(
    tmp_path: Path, share: float, new: bool, byte: int
) -> None:
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"conv1.weight": torch.zeros(4)}, whole, _use_new_zipfile_serialization=new)
    content = bytearray(whole.read_bytes())
    position = int(share * len(content))
    network = never_loaded()
    path.write_bytes(content[:position])
    with pytest.raises(ModelError, match="cut.pth"):
        pretrained.load_pretrained(network, path, CLASSES)
    content[position] = byte
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cut.pth"):
        pretrained.load_pretrained(network, path, CLASSES)


@SAME_FILE
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="any.pth"):
        pretrained._state_dict(path)
    assert refused(path)

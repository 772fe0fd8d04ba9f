"""A tiny real experiment: pictures of red squares and blue bars, their records, and a spec that trains on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from detectkit import spec
from detectkit.console import log
from detectkit.data.augment import prepare
from detectkit.data.convert import convert
from detectkit.data.records import training_frames, validation_frames
from detectkit.data.workers import loader
from detectkit.deploy.onnx import to_model
from detectkit.heads.grid import GridHead
from detectkit.heads.outline import Level, Outline, Output
from detectkit.model import checkpoint, tlt
from detectkit.model.base import Convolution
from detectkit.model.detector import Detector, Normalize, build
from detectkit.heads.layers import L2Normalisation, MaxPool2dSame, WeightedSum
from detectkit.runtimes.onnx import add_header

torch.set_num_threads(1)  # small networks: threads only wait for each other
settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("untimed")

WIDTH, HEIGHT = 96, 64
SIZES = {"square": (28, 28), "bar": (40, 16)}
COLORS = {"square": (220, 30, 30), "bar": (30, 30, 220)}

SPEC = """
random_seed: 7
dataset_config {
  data_sources { tfrecords_path: "ROOT/records/tiny-fold-*" image_directory_path: "ROOT/kitti" }
  image_extension: "png"
  target_class_mapping { key: "square" value: "square" }
  target_class_mapping { key: "bar" value: "bar" }
  validation_fold: 0
}
augmentation_config {
  preprocessing { output_image_width: 96 output_image_height: 64 output_image_channel: 3 }
  spatial_augmentation { hflip_probability: 0.5 zoom_min: 1.0 zoom_max: 1.0 translate_max_x: 4 translate_max_y: 4 }
  color_augmentation { contrast_scale_max: 0.1 contrast_center: 0.5 }
}
model_config { arch: "resnet" num_layers: 10 use_batch_norm: true objective_set { bbox {} cov {} } }
training_config {
  batch_size_per_gpu: 4
  num_epochs: 2
  workers: 0
  checkpoint_interval: 1
  learning_rate {
    soft_start_annealing_schedule { min_learning_rate: 1e-4 max_learning_rate: 1e-3 soft_start: 0.1 annealing: 0.7 }
  }
  regularizer { type: L2 weight: 1e-6 }
  optimizer { adam { epsilon: 1e-8 beta1: 0.9 beta2: 0.999 } }
}
evaluation_config {
  average_precision_mode: INTEGRATE
  validation_period_during_training: 1
  first_validation_epoch: 1
  minimum_detection_ground_truth_overlap { key: "square" value: 0.5 }
  minimum_detection_ground_truth_overlap { key: "bar" value: 0.5 }
}
bbox_rasterizer_config {
  deadzone_radius: 0.67
  target_class_config { key: "square" value { cov_radius_x: 0.6 cov_radius_y: 0.6 bbox_min_radius: 0.7 } }
  target_class_config { key: "bar" value { cov_radius_x: 0.6 cov_radius_y: 0.6 bbox_min_radius: 0.7 } }
}
postprocessing_config {
  target_class_config {
    key: "square" value { clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 } }
  }
  target_class_config {
    key: "bar" value { clustering_config { coverage_threshold: 0.01 dbscan_eps: 0.4 dbscan_min_samples: 0.05 } }
  }
}
cost_function_config {
  target_classes {
    name: "square" class_weight: 1 coverage_foreground_weight: 0.3
    objectives { name: "cov" initial_weight: 1 weight_target: 1 }
    objectives { name: "bbox" initial_weight: 10 weight_target: 10 }
  }
  target_classes {
    name: "bar" class_weight: 1 coverage_foreground_weight: 0.3
    objectives { name: "cov" initial_weight: 1 weight_target: 1 }
    objectives { name: "bbox" initial_weight: 10 weight_target: 10 }
  }
  enable_autoweighting: true
  max_objective_weight: 0.9999
  min_objective_weight: 0.0001
}
"""

EXPORT = """
kitti_config {
  root_directory_path: "ROOT/kitti" image_dir_name: "image_2" label_dir_name: "label_2" image_extension: ".png"
  partition_mode: "random" num_partitions: 2 val_split: 25 num_shards: 1
}
image_directory_path: "ROOT/kitti"
"""


def draw_example(folder: Path, stem: str, generator: np.random.Generator) -> None:
    """One picture with a square and a bar side by side on noise, and its label file."""
    noise = generator.integers(90, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    lines = []
    for column, name in enumerate(generator.permutation(list(SIZES))):
        width, height = SIZES[name]
        x = 48 * column + int(generator.integers(0, 48 - width + 1))
        y = int(generator.integers(0, HEIGHT - height + 1))
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + height - 1), fill=COLORS[name])
        lines.append(f"{name} 0 0 0 {x} {y} {x + width} {y + height} 0 0 0 0 0 0 0\n")
    image.save(folder / "image_2" / f"{stem}.png")
    (folder / "label_2" / f"{stem}.txt").write_text("".join(lines))


class Pyramid(nn.Module):
    """A network of three levels and three outputs, with the operators that no backbone has; as a detector, for rooms below.

    On each level the same convolution, with a batch normalisation of its own, and the same convolution makes the output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.channels, self.ranges = Normalize(3), 3, None
        levels = (Level("fine", 2, 8), Level("mid", 4, 8), Level("coarse", 8, 8))
        names = ("near/Sigmoid", "mid", "far")
        known = ((0.0, 1.0), None, None)
        outputs = (Output(names[at], "predict", at, 3, known[at]) for at in range(3))
        self.outline = Outline(tuple(outputs), levels, multiple=8)
        self.fine = Convolution(3, 8, 3, stride=2, function=nn.ReLU())
        self.mid = Convolution(8, 8, 3, stride=2, function=nn.ReLU6())
        self.coarse, self.unit = MaxPool2dSame(3, 2, 1), L2Normalisation(8, scale=3.0)
        self.up, self.down = nn.Upsample(scale_factor=2), WeightedSum(3, softmax=True)
        self.sum = WeightedSum(2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in levels)
        self.predict = nn.Conv2d(8, 6, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.plain(images)

    def plain(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, 6, h, w] in (0, 1), [B, h w / 4, 6], and [B, 6, h / 4, w / 4]."""
        fine = self.fine(self.normalize(images))
        mid = self.mid(fine)
        coarse = self.coarse(mid)
        fine = self.sum(self.unit(fine), functional.interpolate(mid, scale_factor=2, mode="nearest"))
        mid = self.down(mid, self.up(coarse), self.coarse(fine))
        first, second, third = (
            self.predict(functional.relu(norm(self.shared(level))))
            for norm, level in zip(self.norms, (fine, mid, coarse), strict=True)
        )
        return torch.sigmoid(first).float(), second.permute(0, 2, 3, 1).flatten(1, 2), third


@pytest.fixture
def pyramid() -> Pyramid:
    """In evaluation mode, with statistics and shares that no default hides."""
    torch.manual_seed(0)
    network = Pyramid()
    with torch.no_grad():
        network.normalize.mean.fill_(0.4)
        network.sum.weights.copy_(torch.tensor([0.5, 1.5]))
        network.down.weights.copy_(torch.tensor([0.0, 1.0, -1.0]))
        network.unit.scale.uniform_(1, 4)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(std=0.1)
                layer.momentum = 1.0
        network(torch.rand(4, 3, HEIGHT, WIDTH))
    return network.eval()


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """A command in a test sends log lines to a stream that is closed afterwards: every test gets a log that none has set up."""
    before = list(log.handlers), log.propagate
    log.handlers[:], log.propagate = [], True
    yield
    log.handlers[:], log.propagate = before


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files s3://bucket/… has, for addresses that a spec of the user's may name."""
    fsspec = pytest.importorskip("fsspec")
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.registry import _registry

    root = tmp_path / "store"

    class Store(DirFileSystem):  # type: ignore[misc]
        protocol = "s3"
        cachable = False

        def __init__(self) -> None:
            super().__init__(path=str(root), fs=LocalFileSystem())

    (root / "bucket").mkdir(parents=True)
    fsspec.register_implementation("s3", Store, clobber=True)
    yield root / "bucket"
    _registry.pop("s3")


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kitti/ (24 pictures) and records/ (18 to train on, 6 in fold 0)."""
    root = tmp_path_factory.mktemp("tiny")
    for name in ("image_2", "label_2"):
        (root / "kitti" / name).mkdir(parents=True)
    generator = np.random.default_rng(3)
    for number in range(24):
        draw_example(root / "kitti", f"{number:03d}", generator)
    export = spec.loads(EXPORT.replace("ROOT", str(root)))
    assert isinstance(export, spec.DatasetExportConfig)
    convert(export, str(root / "records" / "tiny"))
    return root


@pytest.fixture(scope="session")
def tiny_text(tiny_root: Path) -> str:
    """The spec as a person writes it: what has a default is left out."""
    return SPEC.replace("ROOT", str(tiny_root))


@pytest.fixture
def tiny(tiny_root: Path) -> spec.Experiment:
    """The spec as a message that a test may change."""
    experiment = spec.loads(SPEC.replace("ROOT", str(tiny_root)))
    assert isinstance(experiment, spec.Experiment)
    return experiment


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[[spec.Spec], Path]:
    """Writes a spec message to a file and gives its path."""

    def write(message: spec.Spec) -> Path:
        path = tmp_path / "spec.txt"
        path.write_text(spec.dumps(message))
        return path

    return write


@pytest.fixture(scope="session")
def learnt(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file that knows the 24 pictures by heart: random features, heads from one least-squares solution."""
    experiment = spec.loads(SPEC.replace("ROOT", str(tiny_root)))
    assert isinstance(experiment, spec.Experiment)
    return _save_learnt(tmp_path_factory.mktemp("learnt") / "learnt.safetensors", experiment)


@pytest.fixture(scope="session")
def learnt_onnx(learnt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`learnt` as an ONNX model of any batch."""
    path = tmp_path_factory.mktemp("onnx") / "learnt.onnx"
    onnx.save(_exported(learnt), path)
    return path


@pytest.fixture
def as_onnx() -> Callable[..., onnx.ModelProto]:
    """Gives a model file as ONNX for images of its spec's size, with its header; `batch` fixes the batch."""
    return _exported


def _exported(file: Path, *, batch: int | None = None) -> onnx.ModelProto:
    model = checkpoint.load(file)
    size = model.spec.augmentation_config.preprocessing
    height, width = size.output_image_height, size.output_image_width
    found = to_model(model.detector, height=height, width=width, batch=batch)
    add_header(
        found,
        spec_text=spec.dumps(model.spec),
        class_names=model.class_names,
        channels=model.detector.channels,
        outline=model.detector.outline,
    )
    return found


@pytest.fixture(scope="session")
def as_keras() -> Callable[..., Path]:
    """Writes a detector as TLT does, in Keras's HDF5; `change` may edit its tensors by layer and name before."""
    return _save_keras


def _save_keras(
    path: Path,
    detector: Detector,
    *,
    change: Callable[[dict[str, dict[str, np.ndarray]]], object] | None = None,
    settings: Sequence[dict[str, Any]] | None = None,
) -> Path:
    """Convolutions get a bias where TLT's have one, which the mean of the normalisation behind them makes up for."""
    modules, generator = dict(detector.named_modules()), np.random.default_rng(6)
    backbone = detector.backbone
    has_norm = any(isinstance(layer, torch.nn.BatchNorm2d) for layer in backbone.modules())
    layers: dict[str, dict[str, np.ndarray]] = {}
    for unit in tlt.units(backbone.arch, backbone.depth, batch_norm=has_norm):
        layer, norm = modules.get(f"backbone.{unit.ours}"), modules.get(f"backbone.{unit.norm}")
        if not isinstance(layer, torch.nn.Conv2d):
            continue
        stored = _keras_convolution(layer)
        layers[unit.convolution] = stored
        if isinstance(norm, torch.nn.BatchNorm2d):
            values = {name: tensor.numpy().copy() for name, tensor in norm.state_dict().items()}
            names = {"gamma": "weight", "beta": "bias"}
            names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
            layers[unit.normalisation] = {theirs: values[ours] for theirs, ours in names.items()}
            if layer.bias is None:
                stored["bias"] = generator.normal(0, 0.1, layer.out_channels).astype(np.float32)
                layers[unit.normalisation]["moving_mean"] += stored["bias"]
    for head in ("output_bbox", "output_cov"):
        layers[head] = _keras_convolution(modules[head])
    if change:
        change(layers)
    _write_keras(path, layers, settings)
    return path


def _keras_convolution(layer: torch.nn.Module) -> dict[str, np.ndarray]:
    assert isinstance(layer, torch.nn.Conv2d)
    weight, depthwise = layer.weight.detach().numpy(), layer.groups > 1
    order = (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)
    found = {"depthwise_kernel" if depthwise else "kernel": weight.transpose(order)}
    return found if layer.bias is None else found | {"bias": layer.bias.detach().numpy()}


def _write_keras(
    path: Path, layers: dict[str, dict[str, np.ndarray]], settings: Sequence[dict[str, Any]] | None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name in ("input_1", *layers)]
        root.create_group("input_1").attrs["weight_names"] = np.array([])  # as Keras has it without weights
        for layer, tensors in layers.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}:0".encode() for name in tensors]
            for name, values in tensors.items():
                group.create_dataset(f"{layer}/{name}:0", data=values)
        if settings is not None:
            file.attrs["model_config"] = json.dumps(
                {"class_name": "Model", "config": {"layers": list(settings)}}
            )


@pytest.fixture
def write_kitti() -> Callable[..., Path]:
    """Writes a KITTI folder: grey images of one size, and for each the list of its (class, x1, y1, x2, y2)."""

    def write(
        root: Path, images: Sequence[Sequence[tuple[Any, ...]]], *, size: tuple[int, int] = (128, 96)
    ) -> Path:
        for name in ("image_2", "label_2"):
            (root / name).mkdir(parents=True)
        generator = np.random.default_rng(len(images))
        for number, labels in enumerate(images):
            shades = generator.integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1), dtype=np.uint8)
            Image.fromarray(shades).resize(size).save(root / "image_2" / f"{number:04d}.png")
            lines = [f"{name} 0 0 0 {x1} {y1} {x2} {y2} 0 0 0 0 0 0 0\n" for name, x1, y1, x2, y2 in labels]
            (root / "label_2" / f"{number:04d}.txt").write_text("".join(lines), encoding="utf-8")
        return root

    return write


@pytest.fixture
def learn(tmp_path: Path) -> Callable[..., Path]:
    """Makes what `learnt` is for another spec; `noise` is the relative error of its heads' weights."""

    def make(experiment: spec.Experiment, *, noise: float = 0.0) -> Path:
        return _save_learnt(tmp_path / "learnt.safetensors", experiment, noise)

    return make


def _save_learnt(path: Path, experiment: spec.Experiment, noise: float = 0.0) -> Path:
    names = spec.class_names(experiment)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        channels = experiment.augmentation_config.preprocessing.output_image_channel
        detector = build(experiment.model_config, names, channels).eval()
        _fit_heads(detector, experiment)
        for layer in (detector.output_cov, detector.output_bbox):
            layer.weight.mul_(1 + noise * torch.randn_like(layer.weight))
    checkpoint.save(path, detector, spec.dumps(experiment), names)
    return path


def _fit_heads(detector: Detector, experiment: spec.Experiment) -> None:
    """Set both heads to the least-squares solution that gives the targets of all pictures of the spec."""
    head = GridHead(experiment, detector.outline)
    features, coverage, bbox = [], [], []
    augmentation = experiment.augmentation_config
    for read in (training_frames, validation_frames):
        part = read(experiment.dataset_config, head.class_names)
        assert part is not None
        batches = loader(part, augmentation, batch_size=len(part), order=range(len(part)), workers=0)
        for batch in batches:
            prepared = prepare(batch, augmentation, generator=None, device="cpu")
            targets = head.targets(prepared)
            features += detector.backbone(prepared.images)
            coverage.append(targets.coverage.clamp(0.002, 0.9).logit())
            bbox.append(targets.bbox.flatten(1, 2))
    values = _cells(features)
    wanted = torch.cat((_cells(coverage), _cells(bbox)), dim=1)
    size = values.std()
    system = torch.cat((values / size, torch.ones(len(values), 1, dtype=values.dtype)), dim=1)
    ridge = 1e-4 * torch.eye(system.shape[1], dtype=values.dtype)
    solution = torch.linalg.solve(system.T @ system + ridge, system.T @ wanted)
    weight, bias = (solution[:-1] / size).T.float(), solution[-1].float()
    classes = len(head.class_names)
    for layer, rows in (
        (detector.output_cov, slice(0, classes)),
        (detector.output_bbox, slice(classes, None)),
    ):
        layer.weight.copy_(weight[rows, :, None, None])
        assert layer.bias is not None
        layer.bias.copy_(bias[rows])


def _cells(maps: list[Tensor]) -> Tensor:
    """Maps [B, K, H, W] as float64 rows [cells, K]."""
    return torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2).double()


@pytest.fixture
def unlabelled(tiny: spec.Experiment) -> spec.Experiment:
    """The spec with a mapping that meets no label of the records: images without a box of a class."""
    mapping = tiny.dataset_config.target_class_mapping
    for name in SIZES:
        del mapping[name]
        mapping[f"other {name}"] = name
    return tiny

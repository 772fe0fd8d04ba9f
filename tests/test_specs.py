"""Every spec that ships loads, breaks no rule, says nothing that has no effect, and fits the network that it names."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from detectkit import spec
from detectkit.data import sources
from detectkit.data.augment import Labels, Prepared
from detectkit.heads.grid import GridHead
from detectkit.model.detector import build
from detectkit.spec.networks import NETWORKS

ROOT = Path(__file__).parent.parent / "specs"
SPECS = sorted(ROOT.rglob("*.txt"))
TRAINING = [path for path in SPECS if isinstance(spec.load(path), spec.Experiment)]
ALTERNATIVE = re.compile(r"^( *)# (\w+: \S+)$", re.MULTILINE)  # a field to take the comment sign off


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SPECS, ids=name)
def test_a_spec_loads_without_a_warning(path: Path) -> None:
    message = spec.load(path)
    assert spec.check(message) == [] and spec.warnings(message) == []


@pytest.mark.parametrize(
    "path", [path for path in TRAINING if ALTERNATIVE.search(path.read_text())], ids=name
)
def test_the_fields_in_comments_are_right_too(path: Path) -> None:
    message = spec.loads(ALTERNATIVE.sub(r"\1\2", path.read_text()))
    assert spec.check(message) == [] and spec.warnings(message) == []


def test_there_is_a_spec_for_every_need() -> None:
    folders = {name(path).rpartition("/")[0] for path in SPECS}
    assert folders == {
        "",
        "backbones",
        "bccd",
        "boards",
        "coco",
        "csv",
        "demo",
        "kitti",
        "raccoon",
        "voc",
        "yolo",
    }
    kitti = {path.stem for path in SPECS if path.parent.name == "kitti"}
    assert kitti == {"convert", "train", "retrain", "infer"}


def test_every_backbone_family_has_a_spec() -> None:
    families = {re.sub("_b.$|(?<=lite).$", "", arch) for arch in NETWORKS}
    shipped = {path.stem: spec.load_experiment(path) for path in (ROOT / "backbones").glob("*.txt")}
    assert set(shipped) == families
    assert all(message.model_config.arch.startswith(family) for family, message in shipped.items())


@pytest.mark.parametrize("family", sorted({path.stem for path in (ROOT / "backbones").glob("*.txt")}))
def test_backbone_specs_differ_from_the_kitti_spec_in_the_network_alone(family: str) -> None:
    kitti = spec.load_experiment(ROOT / "kitti" / "train.txt")
    other = spec.load_experiment(ROOT / "backbones" / f"{family}.txt")
    other.model_config.CopyFrom(kitti.model_config)
    other.training_config.batch_size_per_gpu = kitti.training_config.batch_size_per_gpu
    other.training_config.cost_scaling.CopyFrom(kitti.training_config.cost_scaling)
    assert other == kitti


CHAINS = [path for path in TRAINING if spec.load_experiment(path).HasField("export_config")]


RECIPE = [
    ROOT / "bccd/mobilenet_v2.txt",
    *sorted((ROOT / "boards").iterdir()),
    *sorted((ROOT / "raccoon").iterdir()),
]


def test_the_chains_are_the_demo_the_blood_cells_and_the_recipe() -> None:
    recipe = [name(path) for path in RECIPE]
    assert sorted(name(path) for path in CHAINS) == sorted(["bccd/chain.txt", "demo.txt", *recipe])


@pytest.mark.parametrize("network", ["mobilenet_v2", "resnet10"])
def test_the_recipe_is_the_same_for_every_data_set_but_for_names_sizes_and_epochs(network: str) -> None:
    first, *others = (plain(spec.load_experiment(path)) for path in RECIPE if path.stem == network)
    assert others and all(other == first for other in others)


def plain(experiment: spec.Experiment) -> spec.Experiment:
    """Without data, sizes and epochs, with the sections of one class, whatever it is called."""
    experiment.ClearField("dataset_export_config")
    experiment.ClearField("dataset_config")
    experiment.training_config.num_epochs = experiment.evaluation_config.first_validation_epoch = 1
    size, moves = (
        experiment.augmentation_config.preprocessing,
        experiment.augmentation_config.spatial_augmentation,
    )
    for shift, side in (("x", size.output_image_width), ("y", size.output_image_height)):
        assert getattr(moves, f"translate_max_{shift}") == pytest.approx(side / 10, abs=2)
    size.output_image_width = size.output_image_height = 16
    moves.translate_max_x = moves.translate_max_y = 0
    for config in (experiment.bbox_rasterizer_config, experiment.postprocessing_config):
        values = list(config.target_class_config.values())
        assert all(value == values[0] for value in values)
        first = copy.deepcopy(values[0])
        config.target_class_config.clear()
        config.target_class_config["all"].CopyFrom(first)
    overlap = experiment.evaluation_config.minimum_detection_ground_truth_overlap
    assert set(overlap.values()) == {0.5}
    overlap.clear()
    targets = experiment.cost_function_config.target_classes
    for target in targets:
        target.name = "all"
        assert target == targets[0]
    del targets[1:]
    return experiment


@pytest.mark.parametrize("path", CHAINS, ids=name)
def test_a_chain_converts_the_records_that_it_trains_on(path: Path) -> None:
    experiment = spec.load_experiment(path)
    config = experiment.dataset_config
    data = [
        *config.data_sources,
        *[config.validation_data_source] * config.HasField("validation_data_source"),
    ]
    records = {
        (f"{export.output_filename}-fold-*", image_root(export))
        for export in experiment.dataset_export_config
    }
    assert {(source.tfrecords_path, source.image_directory_path) for source in data} == records


def image_root(config: spec.DatasetExportConfig) -> str:
    return config.image_directory_path or config.sample_config.root_directory_path


@pytest.mark.parametrize(
    "path, training", [("bccd/chain.txt", "bccd/train.txt"), ("demo.txt", "demo/train.txt")]
)
def test_a_chain_is_the_training_spec_with_more_sections_and_another_schedule(
    path: str, training: str
) -> None:
    chain, alone = spec.load_experiment(ROOT / path), spec.load_experiment(ROOT / training)
    for section in ("dataset_export_config", "pruning_config", "calibration_config", "export_config"):
        chain.ClearField(section)
    for experiment in (chain, alone):
        experiment.training_config.num_epochs = 1
        experiment.training_config.ClearField("learning_rate")
        experiment.evaluation_config.ClearField("first_validation_epoch")
        experiment.evaluation_config.ClearField("validation_period_during_training")
    assert chain == alone


def test_the_blood_cells_are_converted_as_by_the_specs_for_convert() -> None:
    exports = spec.load_experiment(ROOT / "bccd" / "chain.txt").dataset_export_config
    alone = [spec.load_dataset_export(ROOT / "bccd" / f"convert_{part}.txt") for part in ("train", "test")]
    for export in exports:
        export.ClearField("output_filename")
    assert list(exports) == alone


def test_the_demo_needs_no_extra_and_its_records_are_those_of_its_specs() -> None:
    demo = spec.load_experiment(ROOT / "demo.txt")
    assert not demo.export_config.HasField("engine_config")  # TensorRT is an extra
    converted = sources.as_kitti(demo.dataset_export_config[0])
    converted.ClearField("output_filename")
    alone = spec.load_dataset_export(ROOT / "demo" / "convert.txt")
    assert alone.image_directory_path == alone.kitti_config.root_directory_path  # what it is when unset
    alone.ClearField("image_directory_path")
    assert converted == alone


def one_box_of_each_class(head: GridHead, *, size: float) -> Prepared:
    """A batch of one image for each class, with one box around the centre."""
    count = len(head.class_names)
    x, y = head.width / 2, head.height / 2
    box = [x - size / 2, y - size / 2, x + size / 2, y + size / 2]
    labels = Labels(
        torch.tensor([box] * count), torch.arange(count), torch.arange(count), list(head.class_names)
    )
    none = Labels(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), [])
    images = torch.zeros(count, 3, head.height, head.width)
    return Prepared(images, labels, none, torch.ones(count), torch.eye(3).repeat(count, 1, 1))


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_the_network_gives_the_grid_that_the_targets_have(path: Path) -> None:
    experiment = spec.load_experiment(path)
    names = spec.class_names(experiment)
    preprocessing = experiment.augmentation_config.preprocessing
    channels = preprocessing.output_image_channel
    with torch.device("meta"):
        detector = build(experiment.model_config, names, channels).eval()
        images = torch.empty(
            len(names), channels, preprocessing.output_image_height, preprocessing.output_image_width
        )
        coverage, bbox = detector(images)
    head = GridHead(experiment, detector.outline)
    prepared = one_box_of_each_class(head, size=150.0)
    targets = head.targets(prepared)
    assert coverage.shape == targets.coverage.shape
    assert bbox.shape == targets.bbox.flatten(1, 2).shape
    # What a network without error would give is found again, once, where it was.
    found = head.detections((targets.coverage, targets.bbox.flatten(1, 2)))
    assert [detections.classes.tolist() for detections in found] == [[index] for index in range(len(names))]
    torch.testing.assert_close(
        torch.cat([detections.boxes for detections in found]), prepared.labels.boxes, atol=0.1, rtol=0
    )

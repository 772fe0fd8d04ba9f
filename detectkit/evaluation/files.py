"""KITTI detection files against KITTI label files, without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from detectkit.console import log
from detectkit.data import kitti
from detectkit.data.dataset import BACKGROUND, DONTCARE
from detectkit.errors import DataError
from detectkit.evaluation.measure import new_scores
from detectkit.evaluation.mistakes import mistakes
from detectkit.evaluation.results import Evaluation, Truth
from detectkit.ops.cluster import Detections
from detectkit.spec import EvaluationConfig, Experiment, class_names


def evaluate_files(detections: Path, labels: Path, experiment: Experiment) -> Evaluation:
    """Measure KITTI detection files (16 columns) on label files of the same names, in the pixels they are written in.

    Labels count through `target_class_mapping` and `dontcare_labels` alone, as in training: one called like a target
    class but not mapped is background. Detections are of target classes or of names that are mapped; others are left
    out with a warning. A label file without a detection file is an image without detections. `evaluation_box_config`
    is applied in the pixels of the files, not in those of the network. Label lines that cannot be used are left out
    with a warning, and counted.

    Raises:
        DataError: no label files, no detection file for any of them, or a detection that cannot be read.
        DetectkitError: the protocol needs a package that is not installed.
    """
    names = class_names(experiment)
    numbers = _label_numbers(experiment, names)
    # A detection called like one target class and mapped to another is of the class of its name.
    detected = {name: number for name, number in numbers.items() if number >= 0}
    detected |= {_key(name): number for number, name in enumerate(names)}
    scores = new_scores(names, experiment.evaluation_config)
    files, missing = _files(detections, labels)
    unknown: set[str] = set()
    num_rejected = 0
    for file in files:
        truth, rejected = kitti.read_labels(file)
        for line, reason in rejected:
            log.warning(f"{file}:{line}: {reason}")
        num_rejected += len(rejected)
        found = [] if file in missing else kitti.read_detections(detections / file.name)
        unknown |= {label.name for label in found if _key(label.name) not in detected}
        scores.add(_detections(found, detected), _truth(truth, numbers))
    if unknown:
        log.warning(
            f"detections of {', '.join(sorted(unknown))} are left out: neither target classes nor mapped to one"
        )
    protocol = EvaluationConfig.PROTOCOL.Name(experiment.evaluation_config.protocol)
    return Evaluation(
        scores.results(), scores.images, None, None, protocol, num_rejected, mistakes=mistakes(scores)
    )


def _label_numbers(experiment: Experiment, names: list[str]) -> dict[str, int]:
    """Label name, as files are searched for it, to target class or DONTCARE."""
    config = experiment.dataset_config
    mapping = config.target_class_mapping.items()
    numbers = {_key(label): names.index(name) for label, name in mapping if name in names}
    return numbers | {_key(name): DONTCARE for name in config.dontcare_labels}


def _files(detections: Path, labels: Path) -> tuple[list[Path], set[Path]]:
    """The label files, and those of them that have no detection file."""
    files = sorted(labels.glob("*.txt"))
    if not files:
        raise DataError(f"{labels} holds no label files (*.txt)")
    missing = {file for file in files if not (detections / file.name).exists()}
    if len(missing) == len(files):
        raise DataError(
            f"{detections} holds no detection file for any label file of {labels}, such as {files[0].name}"
        )
    if missing:
        log.warning(
            f"{len(missing)} of {len(files)} images have no file in {detections}, such as {min(missing).name}"
        )
    return files, missing


def _detections(found: Sequence[kitti.Label], numbers: Mapping[str, int]) -> Detections:
    known = [label for label in found if _key(label.name) in numbers]
    scores = torch.tensor([label.score or 0.0 for label in known], dtype=torch.float64)
    return Detections(
        _boxes(known), scores, torch.tensor([numbers[_key(label.name)] for label in known]).long()
    )


def _truth(labels: Sequence[kitti.Label], numbers: Mapping[str, int]) -> Truth:
    names = tuple(_key(label.name) for label in labels)
    return Truth(
        _boxes(labels),
        torch.tensor([numbers.get(name, BACKGROUND) for name in names]).long(),
        names,
        torch.tensor([label.truncation for label in labels], dtype=torch.float32),
        torch.tensor([label.occlusion for label in labels]).long(),
    )


def _boxes(labels: Sequence[kitti.Label]) -> Tensor:
    """[N, 4] as precise as they are written: two decimals, and an overlap of exactly 0.7, are common."""
    return torch.tensor([label.box for label in labels], dtype=torch.float64).reshape(-1, 4)


def _key(name: str) -> str:
    """A class name as label files are searched for it."""
    return kitti.file_name(name).lower()

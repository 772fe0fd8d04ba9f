"""KITTI detection files against KITTI label files, without any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from detectkit.console import log
from detectkit.data import kitti
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.data.readers import by_name
from detectkit.errors import DataError
from detectkit.evaluation.confusion import confusion
from detectkit.evaluation.measure import new_scores
from detectkit.evaluation.mistakes import mistakes, size_bounds
from detectkit.evaluation.results import Evaluation, Truth
from detectkit.files import files_below
from detectkit.ops.cluster import Detections
from detectkit.spec import EvaluationConfig, Experiment, class_names


def evaluate_files(detections: Path, labels: Path, experiment: Experiment) -> Evaluation:
    """Measure KITTI detection files (16 columns) on label files of the same paths below their folders, in their pixels.

    Labels count through `target_class_mapping` and `dontcare_labels` alone, as in training: one called like a target
    class but not mapped is background. Detections are of target classes or of names that are mapped; others are left
    out with a warning. A label file without a detection file is an image without detections; the other way round it is
    left out with a warning. `evaluation_box_config`
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
    unknown: set[str] = set()
    num_rejected = 0
    for file, detected_file in _pairs(detections, labels):
        truth, rejected = kitti.read_labels(file)
        for line, reason in rejected:
            log.warning(f"{file}:{line}: {reason}")
        num_rejected += len(rejected)
        found = kitti.read_detections(detected_file) if detected_file else []
        unknown |= {label.name for label in found if _key(label.name) not in detected}
        scores.add(_detections(found, detected), _truth(truth, numbers))
    if unknown:
        log.warning(
            f"detections of {', '.join(sorted(unknown))} are left out: neither target classes nor mapped to one"
        )
    protocol = EvaluationConfig.PROTOCOL.Name(experiment.evaluation_config.protocol)
    results = scores.results()
    return Evaluation(
        classes=results,
        images=scores.images,
        cost=None,
        latency=None,
        protocol=protocol,
        rejected=num_rejected,
        mistakes=mistakes(scores),
        sizes=size_bounds(scores),
        confusion=confusion(scores, results),
    )


def _label_numbers(experiment: Experiment, names: list[str]) -> dict[str, int]:
    """Label name, as files are searched for it, to target class or DONTCARE."""
    config = experiment.dataset_config
    mapping = config.target_class_mapping.items()
    numbers = {_key(label): names.index(name) for label, name in mapping if name in names}
    return numbers | {_key(name): DONTCARE for name in config.dontcare_labels}


def _pairs(detections: Path, labels: Path) -> list[tuple[Path, Path | None]]:
    """The label files, each with its detection file; None: it has none."""
    truths, found = _text_files(labels), _text_files(detections)
    if not truths:
        raise DataError(f"{labels} holds no label files (*.txt)")
    missing, unused = (sorted(one.keys() - other.keys()) for one, other in ((truths, found), (found, truths)))
    if len(missing) == len(truths):
        raise DataError(
            f"{detections} holds no detection file for any label file of {labels}, such as {truths[missing[0]]}"
        )
    if missing:
        log.warning(
            f"{len(missing)} of {len(truths)} images have no file in {detections}, such as {truths[missing[0]]}"
        )
    if unused:
        log.warning(
            f"{len(unused)} of {len(found)} detection files are left out: {labels} has no file for them, such as"
            f" {found[unused[0]]}"
        )
    return [
        (labels / file, detections / found[name] if name in found else None)
        for name, file in sorted(truths.items())
    ]


def _text_files(folder: Path) -> dict[str, str]:
    """The text files of a folder and of those below it, as paths from it, by their paths without the ending."""
    found = by_name(files_below(folder), ".txt")
    doubled = [file for same in found.values() for file in same[1:]]
    if doubled:
        log.warning(
            f"{folder}: {len(doubled)} files are left out that are another one's but for the ending: {doubled[0]}"
        )
    return {name: same[0] for name, same in found.items()}


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

"""What of a data set is likely to disappoint: too few images or boxes, boxes that the network does not see, labels that are
left out."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from detectkit.data.dataset import Dataset, Frame
from detectkit.data.geometry import Geometry
from detectkit.errors import DataError
from detectkit.spec import AugmentationConfig, DatasetConfig, Experiment, label_name
from detectkit.spec.classes import nearest

FEW_IMAGES = 50  # the smallest set that was learnt well here had 119, with ImageNet's weights
FEW_BOXES = 20  # of a class: 34 were enough for each of four boards, with ImageNet's weights
RARE = 100  # boxes of the most frequent class for one of this: with 11 for one, blood cells, all classes were learnt
NAMED = 12  # labels or classes that a line names
PART = 1000  # images that are looked at together, where one of them is enough
NO_MEAN = "and no mAP at all: no best model is chosen, and what goes by mAP cannot be done"


def warnings(
    training: Dataset,
    validation: Dataset | None,
    augmentation: AugmentationConfig,
    *,
    stride: int,
) -> list[str]:
    """One sentence for each thing that a training on these images cannot do well.

    Args:
        stride: network pixels of a grid cell.

    Raises:
        DataError: the network sees no training box of any class.
    """
    return scarce(training) + unseen(training, validation, augmentation, stride=stride)


def scarce(training: Dataset) -> list[str]:
    """Of what there is too little to learn from."""
    return [*_few(training), *_rare(training, _counts(training))]


def unseen(
    training: Dataset, validation: Dataset | None, augmentation: AugmentationConfig, *, stride: int
) -> list[str]:
    """Which boxes the network does not see, or not well; arguments and errors as of `warnings`."""
    found = list(_unseen(training, augmentation.preprocessing, stride=stride))
    if validation is not None:
        found += _held_out(validation, augmentation.preprocessing, stride=stride)
    return found


def require_seen(training: Dataset, augmentation: AugmentationConfig, *, stride: int) -> None:
    """Raise the error of `warnings`, without the work for its sentences: it ends at the first box that is seen."""
    for start in range(0, len(training), PART):
        part = Dataset(training.frames[start : start + PART], training.class_names)
        if not Geometry(part, augmentation.preprocessing, part="training", stride=stride).lost.all():
            return
    unseen(training, None, augmentation, stride=stride)


def left_out(dataset: Dataset, trained: Dataset, limit: int) -> list[str]:
    """One sentence for each reason to leave labels out before they are looked at.

    Args:
        dataset: as it was read.
        trained: the same with at most `limit` boxes an image; 0: all of them.
    """
    labels = sum(dataset.raw_counts.values())
    kept, capped = (sum(len(frame.objects.names) for frame in part.frames) for part in (dataset, trained))
    found = []
    if kept < labels:
        found.append(
            f"{labels - kept:,} of {labels:,} labels in the records have no area (x2 is not above x1, or y2 not above y1), and"
            " are left out: were they x, y, width and height? Correct them and convert again"
        )
    if capped < kept:
        found.append(
            f"max_boxes_per_image: {limit} leaves out {kept - capped:,} of {kept:,} labels, the smallest of an image"
        )
    return found


def beside(config: DatasetConfig, labels: Counter[str]) -> list[str]:
    """A line for each kind of labels in the records that are of no target class, with their counts."""
    mapped, neutral = (
        set(map(label_name, names)) for names in (config.target_class_mapping, config.dontcare_labels)
    )
    others = [item for item in _compared(labels).most_common() if item[0] not in mapped]
    parts = {
        "labels that count neither for nor against": [item for item in others if item[0] in neutral],
        "labels that are not mapped, so background": [item for item in others if item[0] not in neutral],
    }
    return [f"{title}: {_listed(items)}" for title, items in parts.items() if items]


def joined(config: DatasetConfig, labels: Counter[str]) -> list[str]:
    """A line for each class in which several names of the records meet."""
    names: dict[str, list[tuple[str, int]]] = {}
    mapping = {label_name(label): target for label, target in config.target_class_mapping.items()}
    for label, count in labels.most_common():
        if label_name(label) in mapping:
            names.setdefault(mapping[label_name(label)], []).append((label, count))
    return [f"labels that meet in {target}: {_listed(met)}" for target, met in names.items() if len(met) > 1]


def misnamed(experiment: Experiment, labels: Counter[str]) -> list[str]:
    """One sentence for each list of names in a spec with some that no record has, and for labels that are left out for a
    letter.

    Args:
        labels: boxes by name, as all records have it.
    """
    config = experiment.dataset_config
    filters = [
        item.label_filter.source_class_label_filter
        for item in experiment.loss_mask_label_filter.objective_label_filter_configs
    ]
    fields: dict[str, Iterable[str]] = {
        "dataset_config.target_class_mapping": sorted(config.target_class_mapping),
        "dataset_config.dontcare_labels": config.dontcare_labels,
        "loss_mask_label_filter, source_class_names": [
            name for item in filters for name in item.source_class_names
        ],
    }
    known = {label_name(name) for names in fields.values() for name in names}
    there = _compared(labels)
    free = Counter({label: count for label, count in there.items() if label not in known})
    found = []
    for field, names in fields.items():
        absent = [f"{name}{_meant(name, free)}" for name in names if label_name(name) not in there]
        if absent:
            found.append(f"{field}: no label in the records is called {_first(absent)}")
    mapped = {_plain(label): label for label in config.target_class_mapping if label_name(label) in there}
    alike = [(label, mapped[_plain(label)]) for label in free if _plain(label) in mapped]
    return found + [
        f'dataset_config.target_class_mapping: the {free[label]:,} labels "{label}" in the records are background, and'
        f' "{other}" is mapped: map both if they are one'
        for label, other in alike
    ]


def _compared(labels: Counter[str]) -> Counter[str]:
    """Labels as they are compared with those of a spec, whatever their spelling."""
    found = Counter[str]()
    for label, count in labels.items():
        found[label_name(label)] += count
    return found


def _plain(name: str) -> str:
    """Letters and digits alone, whatever their width, by which two spellings of one name are told."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def _meant(name: str, labels: Counter[str]) -> str:
    """The label of the records, if there is one, that is likely meant by a name which none has."""
    same = [label for label in labels if _plain(label) == _plain(name)]
    near = same[0] if same else nearest(name, sorted(labels))
    return "" if near is None else f' (is "{near}" meant, which {labels[near]:,} have?)'


def _listed(labels: Sequence[tuple[str, int]]) -> str:
    return _first([f"{label} ({count})" for label, count in labels])


def _first(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more


def _counts(dataset: Dataset, frames: Iterable[Frame] | None = None) -> list[int]:
    """Boxes of each target class, in all images or in some."""
    classes = [frame.objects.classes for frame in (dataset.frames if frames is None else frames)]
    joined = np.concatenate(classes) if classes else np.zeros(0, np.int64)
    counts: list[int] = np.bincount(joined[joined >= 0], minlength=len(dataset.class_names)).tolist()
    return counts


def _distinct(frames: Iterable[Frame]) -> list[Frame]:
    """The images without the copies that num_duplicates made: nothing more is to be learnt from those."""
    found = {
        # Images in records have the shard for their path, and their copies may be in another one.
        (
            frame.source,
            frame.frame_id,
            frame.path if frame.shard is None else "",
            frame.objects.boxes.tobytes(),
        ): frame
        for frame in frames
    }
    return list(found.values())


def _few(training: Dataset) -> Iterator[str]:
    frames = _distinct(training.frames)
    if len(frames) < FEW_IMAGES:
        yield (
            f"{len(frames)} training images are few: what is learnt of them may be true of them alone; more images, or"
            " pretrained_model_file and augmentation"
        )
    named = zip(training.class_names, _counts(training, frames), strict=True)
    few = [f"{name} {count:,}" for name, count in named if count < FEW_BOXES]
    if few:
        yield (
            f"too few training boxes to learn a class from: {_first(few)}; label more (copies of an image count once)"
        )


def _rare(training: Dataset, counts: Sequence[int]) -> Iterator[str]:
    """Copies count: they weigh in the cost."""
    named = list(zip(training.class_names, counts, strict=True))
    largest, most = max(named, key=lambda pair: pair[1])
    rare = [f"{name} {count:,}" for name, count in named if RARE * count < most]
    if rare:
        yield (
            f"rare beside the {most:,} training boxes of {largest}: {_first(rare)}; rare classes weigh little in the cost:"
            " raise their class_weight, or copy their images (num_duplicates of sample_modifier_config)"
        )


def _unseen(
    training: Dataset, preprocessing: AugmentationConfig.Preprocessing, *, stride: int
) -> Iterator[str]:
    """Training boxes that preprocessing cuts away or makes too small, and such as are not where they should be."""
    geometry = Geometry(training, preprocessing, part="training", stride=stride)
    told = [fault.sentence(geometry) for fault in geometry.faults]
    counts, lost = _counts(training), geometry.lost
    if len(geometry) and lost.sum() == sum(counts):
        start = "" if len(told) == 1 else f"no training box of {len(geometry):,} is left for the network: "
        raise DataError(start + "; ".join(told))
    yield from told
    gone = [
        name
        for name, count, away in zip(training.class_names, counts, geometry.counts(lost), strict=True)
        if count and count == away
    ]
    if gone:
        yield f"no training box of {_first(gone)} is left for the network: {'it is' if len(gone) == 1 else 'they are'} not learnt"
    yield from geometry.in_the_corner()
    yield from geometry.smaller_than_a_cell()


def _held_out(
    validation: Dataset, preprocessing: AugmentationConfig.Preprocessing, *, stride: int
) -> Iterator[str]:
    """The same of the boxes to measure on, as far as they are lost, and the classes without any."""
    geometry = Geometry(validation, preprocessing, part="validation", stride=stride)
    yield from (fault.sentence(geometry) for fault in geometry.faults)
    left = np.subtract(_counts(validation), geometry.counts(geometry.lost)).tolist()
    empty = [name for name, count in zip(validation.class_names, left, strict=True) if not count]
    if empty:
        part = "and no part in the mAP" if len(empty) < len(left) else NO_MEAN
        yield f"no validation box of class {_first(empty)}: no average precision, {part}"

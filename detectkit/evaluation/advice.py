"""What ails a network, told from its mistakes: a sentence for each illness, with its figure and the field to change.

An illness is named only where it is plain. A healthy network gets no sentence.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from detectkit.evaluation import rules
from detectkit.evaluation.results import ClassMistakes, Evaluation
from detectkit.evaluation.rules import Advice
from detectkit.heads.clustering import spec_clustering
from detectkit.spec import ClusteringConfig, Experiment

# Networks that had learnt gave 0.002 to 0.02 where nothing is, and up to 5 detections for each label and image; one after a
# single epoch 0.06 and 24, one whose coverage had starved 0.46 and 180.
GOOD = 0.9  # average precision of a class from which nothing is said of its coverage
BACKGROUND = 0.05  # coverage where nothing is
MANY = 12  # detections for each label and image
UNSEEN = 0.1  # coverage in the middle of objects; trained networks give above 0.4, fresh ones their prior
COST = 0.05  # average precision that an illness takes from a class: less is what two seeds may differ by
LEAST = 3  # boxes: fewer may be chance
LEARNT = 0.6  # mAP on training images at an IoU of at most 0.5: boards and raccoons had 0.99 when they were learnt, cards that were not 0.45
GAP = (
    rules.GAP
)  # mAP on training images less that on others: boards and raccoons, learnt well, had 0.06 and 0.08


class Finding(NamedTuple):
    """An illness, of the class that has it worst."""

    kind: str  # "coverage", "doubled", "confused"; of a training also "not learnt", "by heart"
    class_name: str  # "" where it is of all classes
    number: float  # AP that a class loses; of "coverage" see `findings`, of a training mAP on training images
    text: str  # for people, with the field to change

    def entry(self) -> dict[str, str | float]:
        """As results.json and status.jsonl hold it."""
        return {"kind": self.kind, "class": self.class_name, "number": self.number, "text": self.text}


def findings(result: Evaluation, experiment: Experiment) -> list[Finding]:
    """The illnesses of a network, at most one of each kind.

    "coverage": it has not learnt where objects are. `number` is the coverage where nothing is if that is high, or else
    the coverage on objects; without a network the detections of a label. Nothing else is said of such a class.
    "doubled": clustering leaves several detections on one object. "confused": objects are found under another name.

    Args:
        experiment: that they were found by.
    """
    mistakes = result.mistakes
    ill = set(unlearnt(result))
    others = [item for item in mistakes if item.name not in ill]
    made = (
        _coverage([item for item in mistakes if item.name in ill], result.images),
        _doubled([item for item in others if item.doubled >= LEAST], experiment),
        _confused([item for item in others if item.confused_with not in ill], experiment),
    )
    return [finding for finding in made if finding]


def unlearnt(result: Evaluation) -> list[str]:
    """The classes whose coverage is not learnt."""
    return [item.name for item in result.mistakes if _floods(item, result.images) or _is_unseen(item)]


def changes(
    result: Evaluation,
    experiment: Experiment,
    *,
    own: Mapping[str, float | None] | None = None,
    sees: int | None = None,
) -> list[Advice]:
    """What to change in the spec, see `rules.advice`."""
    return rules.advice(result, experiment, ill=unlearnt(result), own=own, sees=sees)


def learning(
    training: Evaluation, validation: Evaluation | None, experiment: Experiment, *, total: int
) -> Finding | None:
    """Whether a network has learnt its own images, and no others.

    Args:
        training: on training images, without augmentation.
        validation: on others, by the same network.
        total: how many training images there are.
    """
    own, epochs = mean_average_precision(training), experiment.training_config.num_epochs
    of = f"{training.images:,} of its {total:,}" if training.images < total else f"its {total:,}"
    if own is None:
        return None
    lenient = _mean(item.lenient_average_precision for item in training.mistakes) or 0.0
    if lenient < LEARNT:
        start = "" if experiment.model_config.pretrained_model_file else ", pretrained_model_file"
        eased = f", {_percent(lenient)} at an IoU of 0.5," if lenient > own else ""
        text = (
            f"it has not learnt its own images: mAP {_percent(own)}{eased} on {of} training images{_weak(training)}: more"
            f" num_epochs ({epochs} now), a higher max_learning_rate{start}; docs/tuning.md, It has not learnt"
        )
        return Finding("not learnt", "", own, text)
    figures = {item.name: item.average_precision for item in training.mistakes}
    return by_heart(figures, validation, experiment, of=of) if validation else None


def by_heart(
    training: Mapping[str, float | None], validation: Evaluation, experiment: Experiment, *, of: str
) -> Finding | None:
    """Compared over the classes that have labels in both, so that a rare one counts in both means or in none.

    Args:
        training: average precision on training images by class.
        of: how many of them, in words.
    """
    others = {item.name: item.average_precision for item in validation.mistakes}
    known = [{name for name, value in part.items() if value is not None} for part in (dict(training), others)]
    own, other = (
        _mean(part[name] for name in part if name in known[0] & known[1]) for part in (training, others)
    )
    if own is None or other is None or own - other < GAP:
        return None
    without = ", ".join(sorted(known[0] ^ known[1]))
    text = (
        f"it has learnt its own images by heart: mAP {_percent(own)} on {of} training images, {_percent(other)} on the"
        f" validation images{_weak(validation)}{f', without {without}' if without else ''}: more images, more augmentation,"
        f" or fewer num_epochs ({experiment.training_config.num_epochs} now); docs/tuning.md, It has learnt by heart"
    )
    return Finding("by heart", "", own, text)


def mean_average_precision(result: Evaluation) -> float | None:
    """As `ClassMistakes` counts, whatever the protocol; None where no class has a label."""
    return _mean(item.average_precision for item in result.mistakes)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _floods(item: ClassMistakes, images: int) -> bool:
    """Whether there is coverage where nothing is; of files, whether there are far too many detections."""
    if item.average_precision is not None and item.average_precision >= GOOD:
        return False
    if item.coverage is None or item.coverage.background is None:
        return item.detections > MANY * (item.labels + images)
    return item.coverage.background >= BACKGROUND


def _is_unseen(item: ClassMistakes) -> bool:
    """Whether most of its objects are not found, not under another name either, and have hardly any coverage."""
    if item.labels < LEAST or 2 * (item.found + item.confused) >= item.labels or item.coverage is None:
        return False
    return item.coverage.objects is not None and item.coverage.objects < UNSEEN


def _coverage(ill: Sequence[ClassMistakes], images: int) -> Finding | None:
    flooded = [item for item in ill if _floods(item, images)]
    alike = flooded or ill
    if flooded:
        number, name, told = max(map(_flood, flooded))
        fix = "; after a long training, equal weight_targets of cov and bbox, and a prior of 0.01 for cov"
    elif ill:
        number, name, told = min(map(_darkness, ill))
        fix = "; a higher class_weight and coverage_foreground_weight; more images of it if training images are better"
    else:
        return None
    text = (
        f"coverage is not learnt: {told}{_also(len(alike))}: more num_epochs, a higher max_learning_rate, or"
        f" pretrained_model_file{fix}; docs/tuning.md, Coverage is not learnt"
    )
    return Finding("coverage", name, number, text)


def _flood(item: ClassMistakes) -> tuple[float, str, str]:
    """The number of a finding, its class, and what is seen, where there is coverage or a detection everywhere."""
    told = f"{item.detections:,} detections for {_boxes(item.labels)} of {item.name}"
    if item.coverage is None or item.coverage.background is None:
        return item.detections / max(item.labels, 1), item.name, told
    background = item.coverage.background
    return background, item.name, f"{told}, and a coverage of {background:.2f} instead of 0 where nothing is"


def _darkness(item: ClassMistakes) -> tuple[float, str, str]:
    """The same where there is no coverage on objects."""
    objects, background = map(_level, item.coverage[:2] if item.coverage else (None, None))
    told = (
        f"{item.found:,} of {_boxes(item.labels)} of {item.name} found, with a coverage of {objects:.2f} instead of 1 on its"
        f" objects, and {background:.2f} where nothing is"
    )
    return objects, item.name, told


def _doubled(found: Sequence[ClassMistakes], experiment: Experiment) -> Finding | None:
    worst, count = _worst(found, lambda item: item.doubled_cost)
    if worst is None:
        return None
    clustering = spec_clustering(experiment.postprocessing_config)
    entry = clustering.get(worst.name)
    config = entry.config if entry else ClusteringConfig()
    eps = f"a larger dbscan_eps ({config.dbscan_eps:.3g} now)"
    overlap = _overlap(worst, config.nms_iou_threshold)
    fix = {
        ClusteringConfig.NMS: overlap,
        ClusteringConfig.HYBRID: f"{overlap}, or {eps}" if overlap else eps,
    }.get(config.clustering_algorithm, f"{eps}, or clustering_algorithm: NMS")
    fix = (
        f"{fix}; evaluate --tune-clustering looks for the values"
        if fix
        else "no lower nms_iou_threshold was found to help; docs/tuning.md, Boxes split"
    )
    text = (
        f"boxes are doubled by clustering: {worst.doubled:,} of {worst.detections:,} detections of {worst.name} are on an object"
        f" that is found already, which costs it {_points(worst.doubled_cost)}{_also(count)}: {fix}"
    )
    return Finding("doubled", worst.name, worst.doubled_cost, text)


def _overlap(item: ClassMistakes, now: float) -> str:
    """What NMS may be told, where trying it on the detections has shown that a lower value helps; else ""."""
    tried = item.suppression
    return (
        f"a lower nms_iou_threshold, {tried.overlap:.3g} ({now:.3g} now)"
        if tried and tried.overlap < now
        else ""
    )


def _confused(found: Sequence[ClassMistakes], experiment: Experiment) -> Finding | None:
    losing, count = _worst(found, lambda item: item.confused_cost)
    named = [item for item in found if item.confused >= LEAST]
    if losing is None or not named:
        return None
    # The class that loses may be the one whose name is given too often.
    worst = max(named, key=lambda item: item.confused / item.labels)
    probability = experiment.augmentation_config.spatial_augmentation.hflip_probability
    mirrored = (
        f", hflip_probability 0 ({probability:.3g} now) if they are mirror images" if probability else ""
    )
    text = (
        f"classes are confused: {worst.confused:,} of {_boxes(worst.labels)} of {worst.name} have a stronger detection of"
        f" another class over them, most often {worst.confused_with}; this costs {losing.name}"
        f" {_points(losing.confused_cost)}{_also(count)}: more images of both, labels that say one thing, a larger"
        f" output_image_width and output_image_height{mirrored}"
    )
    return Finding("confused", worst.name, losing.confused_cost, text)


def _worst(
    found: Sequence[ClassMistakes], cost: Callable[[ClassMistakes], float]
) -> tuple[ClassMistakes | None, int]:
    """The class that loses most, and how many lose enough to speak of."""
    losing = [item for item in found if cost(item) >= COST]
    return max(losing, key=cost, default=None), len(losing)


def _level(value: float | None) -> float:
    return 0.0 if value is None else value


def _weak(result: Evaluation) -> str:
    """The weakest class in brackets, where there are several."""
    known = [item for item in result.mistakes if item.average_precision is not None]
    if len(known) < 2:
        return ""
    name, value = min(
        ((item.name, _level(item.average_precision)) for item in known), key=lambda pair: pair[1]
    )
    return f" (least {name}, {_percent(value)})"


def _points(cost: float) -> str:
    return f"{100 * cost:.1f} points of AP"


def _also(count: int) -> str:
    """How many classes there are beside the one that is named."""
    return f" (and so {count - 1} more {'class' if count == 2 else 'classes'})" if count > 1 else ""


def _boxes(count: int) -> str:
    return f"{count:,} {'label' if count == 1 else 'labels'}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"

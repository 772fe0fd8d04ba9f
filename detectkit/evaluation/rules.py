"""What to change in a spec, told from the mistakes of a network: one table, `REMEDIES`.

A remedy is for a kind of mistake, of which `kinds` says what average precision it costs. Where that is tried on the detections
themselves, the gain is the one measured; else it is that cost times the share of it that such a change may win at most, which
is a judgement, and no promise.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from detectkit import spec
from detectkit.evaluation.results import ClassMistakes, ClassResult, Evaluation
from detectkit.heads.clustering import of_class, spec_clustering
from detectkit.spec.networks import is_grid

MOST = 5  # pieces of advice
SHOWN = 2  # fields of each on the terminal
GOOD = 0.9  # mean average precision from which no other training is advised
COST = (
    0.05  # average precision that a kind of mistake takes from a class: less is what two seeds may differ by
)
LEAST = 1.0  # labels that such a cost is of, in all classes that have it: one may be chance
LEAST_GAIN = 0.003  # of the mean over the classes, from which a change is worth a person's time
FEW_CELLS = 2  # sides in cells below which an object is hardly seen
SOME_CELLS = 4  # and below which its name and its edges may be
LARGEST = 2.0  # times as large as the input is now
SMALLER = 1.3  # times smaller than what is found, from which what is missed is missed for its size
WEAK = 5.0  # times the coverage where nothing is: what is weaker is no sign of an object
RARE = 0.2  # of the labels of the class that has most
HEAVIEST = 4.0  # times the class weight now
GOOD_F1 = 0.1  # F1 that a higher threshold must gain
LEARNT = 0.8  # average precision on training images, below which more epochs may help
POOR = 0.5  # the same on others, where that is not known
GAP = 0.25  # average precision on training images less that on others, from which it has learnt them by heart
TRANSLATION = 0.1  # of the input's side


class Edit(NamedTuple):
    """A field of the spec, with what it is and what it shall be."""

    field: str  # its path, with the names of classes in brackets
    now: float | str
    value: float | str


class Advice(NamedTuple):
    """A change of the spec, for the classes that need it."""

    remedy: str
    classes: tuple[str, ...]  # that lose most by it, the worst first
    edits: tuple[Edit, ...]
    gain: float  # what `of` gains at most, 0 to 1: a mean over the classes
    of: str  # "mAP", or "F1" of all detections
    why: str

    def entry(self) -> dict[str, Any]:
        """As results.json and status.jsonl hold it."""
        return self._asdict() | {"edits": [edit._asdict() for edit in self.edits]}


def told(given: Sequence[Advice]) -> list[str]:
    """Two lines for people for each."""
    lines = []
    for number, item in enumerate(given, start=1):
        edits = [
            f"{edit.field}: {_shown(edit.value)} ({_shown(edit.now)} now)" for edit in item.edits[:SHOWN]
        ]
        rest = len(item.edits) - SHOWN
        edits += [f"{rest} more for other classes"] if rest > 0 else []
        lines += [f"{number}. up to +{100 * item.gain:.1f} {item.of}: {', '.join(edits)}", f"   {item.why}"]
    return lines


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


class Case(NamedTuple):
    """A class of a network, as it was measured."""

    experiment: spec.Experiment
    result: Evaluation
    item: ClassMistakes
    number: int  # of the class
    sees: int | None  # side in network pixels of what a cell sees
    own: float | None  # average precision on training images
    is_ill: bool  # its coverage is not learnt: its boxes mean nothing yet

    @property
    def measured(self) -> ClassResult:
        return self.result.classes[self.number]

    @property
    def clustering(self) -> spec.ClusteringConfig:
        return of_class(spec_clustering(self.experiment.postprocessing_config), self.item.name).config

    @property
    def joins(self) -> bool:
        """Whether a detection's score is a sum over cells."""
        return self.clustering.clustering_algorithm == spec.ClusteringConfig.DBSCAN

    @property
    def threshold(self) -> tuple[str, float]:
        """The field, below `target_class_config`, that drops most of what is weak, and its value."""
        entry, own = (
            self.experiment.postprocessing_config.target_class_config[self.item.name],
            self.clustering,
        )
        fields = {
            "clustering_config.coverage_threshold": own.coverage_threshold,
            "confidence_config.confidence_threshold": entry.confidence_config.confidence_threshold,
        }
        if not self.joins:
            fields["clustering_config.nms_confidence_threshold"] = own.nms_confidence_threshold
        return max(fields.items(), key=lambda pair: pair[1])

    def cells(self, side: float | None) -> float | None:
        """A side in the protocol's pixels in cells of the grid; None where that is not known."""
        if side is None or self.result.scale is None or not is_grid(self.experiment.model_config):
            return None
        return side * self.result.scale / spec.NETWORKS[self.experiment.model_config.arch].stride


class Remedy(NamedTuple):
    """A row of the table."""

    name: str
    gain: Callable[
        [Case], float
    ]  # of the average precision of the class, at most; 0: it is not for this class
    edits: Callable[[Case], Iterable[tuple[str, float | str]]]  # fields with their new values
    why: Callable[[Case], str]
    of: str = "mAP"


def advice(
    result: Evaluation,
    experiment: spec.Experiment,
    *,
    ill: Sequence[str] = (),
    own: Mapping[str, float | None] | None = None,
    sees: int | None = None,
) -> list[Advice]:
    """At most MOST changes of the spec, the best first; each changes other fields than those before it.

    Args:
        experiment: that the network was measured by, with an entry for each class.
        ill: classes whose coverage is not learnt.
        own: average precision on training images, by class.
        sees: side in network pixels of what a cell sees.
    """
    known = own or {}
    cases = [
        Case(experiment, result, item, number, sees, known.get(item.name), item.name in ill)
        for number, item in enumerate(result.mistakes)
        if item.labels
    ]
    made = (_of_remedy(remedy, cases) for remedy in REMEDIES)
    ranked = sorted(
        (item for item in made if item and item.gain >= LEAST_GAIN),
        key=lambda item: (item.of != "mAP", -item.gain),
    )
    chosen: list[Advice] = []
    for item in ranked:
        taken = {edit.field for other in chosen for edit in other.edits}
        if not taken & {edit.field for edit in item.edits}:
            chosen.append(item)
    return chosen[:MOST]


def _of_remedy(remedy: Remedy, cases: Sequence[Case]) -> Advice | None:
    """For all the classes that need it; a field that serves several of them has the value that the worst one needs."""
    gains = [(remedy.gain(case), case) for case in cases]
    fields: dict[str, Edit] = {}
    helped: list[tuple[float, Case]] = []
    for gain, case in sorted((pair for pair in gains if pair[0] > 0), key=lambda pair: -pair[0]):
        edits = [Edit(field, value_now(case.experiment, field), value) for field, value in remedy.edits(case)]
        changes = [edit for edit in edits if edit.now != edit.value]
        if changes:
            helped.append((gain, case))
            fields |= {edit.field: edit for edit in changes if edit.field not in fields}
    if not helped:
        return None
    why = remedy.why(helped[0][1])
    others = len(helped) - 1
    if others:
        why += f" (and so {others} more {'class' if others == 1 else 'classes'})"
    return Advice(
        remedy=remedy.name,
        classes=tuple(case.item.name for _, case in helped),
        edits=tuple(fields.values()),
        gain=sum(gain for gain, _ in helped) / len(cases),
        of=remedy.of,
        why=why,
    )


def value_now(experiment: spec.Experiment, field: str) -> float | str:
    """The value of a scalar field by its path, such as `a.b["class"].c`, as a spec writes it."""
    owner, name = _owner(experiment, field)
    value = getattr(owner, name)
    found = owner.DESCRIPTOR.fields_by_name[name]
    if found.enum_type is not None:
        return str(found.enum_type.values_by_number[value].name)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def edited(experiment: spec.Experiment, edits: Iterable[Edit]) -> spec.Experiment:
    """A copy of the spec with other values."""
    result = spec.Experiment()
    result.CopyFrom(experiment)
    for edit in edits:
        owner, name = _owner(result, edit.field)
        enum = owner.DESCRIPTOR.fields_by_name[name].enum_type
        setattr(owner, name, enum.values_by_name[str(edit.value)].number if enum else edit.value)
    return result


def _owner(experiment: spec.Experiment, field: str) -> tuple[Message, str]:
    """The message that a field is in, and its name. What is in brackets is the key of a map, or the `name` in a list."""
    *steps, (name, _) = re.findall(r'([^.\[\]"]+)(?:\["(.*?)"\])?(?:\.|$)', field)
    here: Any = experiment
    for step, key in steps:
        here = getattr(here, step)
        if key and isinstance(here, Mapping):
            here = here[key]
        elif key:
            here = next(item for item in here if item.name == key)
    return here, name


# The gains of the table, for a class


def _by(kind: str, share: float, when: Callable[[Case], bool] = lambda case: True) -> Callable[[Case], float]:
    """A share of what a kind of mistake costs, where that is enough to speak of: for what takes another training."""

    def gain(case: Case) -> float:
        if _mean(case.result) >= GOOD:
            return 0.0
        applies = _is_plain(case, lambda item: _cost(item, kind)) and when(case)
        return share * _cost(case.item, kind) if applies else 0.0

    return gain


def _mean(result: Evaluation) -> float:
    known = [item.average_precision for item in result.mistakes if item.average_precision is not None]
    return statistics.fmean(known)


def _cost(item: ClassMistakes, kind: str) -> float:
    cost: float = getattr(item.costs, kind)
    return cost


def _is_plain(case: Case, cost: Callable[[ClassMistakes], float]) -> bool:
    """Whether a cost is more than chance, of a class that has learnt where objects are."""
    if case.is_ill or cost(case.item) < COST:
        return False
    alike = [item for item in case.result.mistakes if cost(item) >= COST]
    return sum(cost(item) * item.labels for item in alike) >= LEAST


def _suppression_gain(case: Case) -> float:
    found = case.item.suppression
    if found is None or case.joins or not _is_plain(case, lambda item: item.doubled_cost):
        return 0.0
    return found.gain if found.overlap < case.clustering.nms_iou_threshold else 0.0


def _joining_gain(case: Case) -> float:
    is_doubled = case.joins and _is_plain(case, lambda item: item.doubled_cost)
    return case.item.doubled_cost / 2 if is_doubled else 0.0


def _cut_gain(case: Case) -> float:
    """What the F1 of all detections gains by the cut, where false alarms cost average precision too."""
    cut, item = case.item.cut, case.item
    if cut is None or not _is_plain(case, lambda item: item.costs.background):
        return 0.0
    total = item.detections + item.labels
    gain = 2 * (item.found - cut.lost) / (total - cut.dropped - cut.lost) - 2 * item.found / total
    return gain if gain >= GOOD_F1 else 0.0


def _weak_share(case: Case) -> float:
    """The share of the labels whose coverage is too low to count, but clearly above that where nothing is."""
    levels = case.item.coverage
    if levels is None or not levels.tenths or levels.background is None:
        return 0.0
    low, high = max(WEAK * levels.background, _lower_threshold(case)), case.threshold[1]
    return max(_below(levels.tenths, high) - _below(levels.tenths, low), 0.0) if low < high else 0.0


def _below(tenths: Sequence[float], value: float) -> float:
    """The share of a sample, known by its tenths, that is below a value."""
    for number, (low, high) in enumerate(zip(tenths, tenths[1:])):
        if value <= high:
            part = (value - low) / (high - low) if high > low else 1.0
            return max(number + part, 0.0) / 10
    return 1.0


def _weak_gain(case: Case) -> float:
    item = case.item
    if not _is_plain(case, lambda item: item.costs.missed) or not item.counts.missed:
        return 0.0
    return item.costs.missed * min(_weak_share(case) * item.labels / item.counts.missed, 1.0)


def _heart_gain(case: Case) -> float:
    item = case.item
    if case.own is None or item.average_precision is None:
        return 0.0
    gap = case.own - item.average_precision
    return 0.3 * gap if gap >= GAP and gap * item.labels >= LEAST else 0.0


def _learning_gain(case: Case) -> float:
    """Of a class that is ill, or not learnt on training images either; where these are not known, of one that is poor.

    What other clustering wins back has been learnt.
    """
    item, own = case.item, case.own
    if item.average_precision is None:
        return 0.0
    reached = item.average_precision + max(_suppression_gain(case), _joining_gain(case), _weak_gain(case))
    if reached < LEARNT and (case.is_ill or (reached < POOR if own is None else own < LEARNT)):
        return (LEARNT - reached) / 2
    return 0.0


# When they apply


def _is_coarse(case: Case) -> bool:
    cells = case.cells(case.item.sides.found)
    return cells is not None and cells < SOME_CELLS


def _is_missed_for_its_size(case: Case) -> bool:
    cells, sides = case.cells(case.item.sides.missed), case.item.sides
    if cells is None or cells >= FEW_CELLS or sides.missed is None:
        return False
    return sides.found is None or sides.found >= SMALLER * sides.missed


def _is_larger_than_seen(case: Case) -> bool:
    found, scale = case.item.sides.found, case.result.scale
    return None not in (case.sees, found, scale) and found * scale > case.sees  # type: ignore[operator]


def _is_rare(case: Case) -> bool:
    most = max(item.labels for item in case.result.mistakes)
    return case.item.labels < RARE * most


def _balance(case: Case) -> tuple[str, float, float]:
    """The path of the weight of boxes, and the weights of boxes and of coverage."""
    config = case.experiment.cost_function_config
    name = "weight_target" if config.enable_autoweighting else "initial_weight"
    objectives = {item.name: getattr(item, name) for item in config.target_classes[case.number].objectives}
    return f'{_target(case)}.objectives["bbox"].{name}', objectives["bbox"], objectives["cov"]


def _boxes_weigh_little(case: Case) -> bool:
    if not is_grid(case.experiment.model_config):
        return False
    _, boxes, coverage = _balance(case)
    return 0 < boxes < 10 * coverage


def _augmentation(case: Case) -> spec.AugmentationConfig.SpatialAugmentation:
    return case.experiment.augmentation_config.spatial_augmentation


# What they change


def _target(case: Case) -> str:
    return f'cost_function_config.target_classes["{case.item.name}"]'


def _processing(case: Case, field: str) -> str:
    return f'postprocessing_config.target_class_config["{case.item.name}"].{field}'


def _input(case: Case, factor: float) -> list[tuple[str, float]]:
    """The input's sides, as multiples of 32, which every network takes, and at least as much larger or smaller."""
    whole = math.ceil if factor > 1 else math.floor
    pre = case.experiment.augmentation_config.preprocessing
    sides = {"output_image_width": pre.output_image_width, "output_image_height": pre.output_image_height}
    return [
        (f"augmentation_config.preprocessing.{name}", max(whole(side * factor / 32), 1) * 32)
        for name, side in sides.items()
    ]


def _factor(case: Case) -> float:
    """How much larger the input has to be for the missed objects to have FEW_CELLS cells."""
    return min(FEW_CELLS / (case.cells(case.item.sides.missed) or FEW_CELLS), LARGEST)


def _epochs(case: Case, factor: float) -> list[tuple[str, float]]:
    return [("training_config.num_epochs", round(case.experiment.training_config.num_epochs * factor))]


def _lower_threshold(case: Case) -> float:
    return _rounded(case.threshold[1] / 4)


def _cut_edit(case: Case) -> list[tuple[str, float]]:
    assert case.item.cut is not None
    field = "clustering_config.coverage_threshold"
    if case.clustering.clustering_algorithm != spec.ClusteringConfig.NMS:
        field = "confidence_config.confidence_threshold"
    return [(_processing(case, field), _rounded(case.item.cut.score))]


def _lower_threshold_edit(case: Case) -> list[tuple[str, float]]:
    """All thresholds that are above the value."""
    value, own = _lower_threshold(case), case.clustering
    fields = [("clustering_config.coverage_threshold", own.coverage_threshold)]
    if not case.joins:
        fields += [("clustering_config.nms_confidence_threshold", own.nms_confidence_threshold)]
    entry = case.experiment.postprocessing_config.target_class_config[case.item.name]
    fields += [("confidence_config.confidence_threshold", entry.confidence_config.confidence_threshold)]
    return [(_processing(case, field), value) for field, now in fields if now > value]


def _rounded(value: float) -> float:
    """Down to two digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / unit + 1e-9) * unit:.6g}")


def _varied(case: Case) -> list[tuple[str, float | str]]:
    """The first augmentation that there is none of; where all are used, fewer epochs."""
    path, spatial = "augmentation_config.spatial_augmentation", _augmentation(case)
    if spatial.zoom_min == spatial.zoom_max:
        return [(f"{path}.zoom_min", 0.8), (f"{path}.zoom_max", 1.2)]
    if not spatial.translate_max_x and not spatial.translate_max_y:
        pre = case.experiment.augmentation_config.preprocessing
        return [
            (f"{path}.translate_max_x", round(TRANSLATION * pre.output_image_width)),
            (f"{path}.translate_max_y", round(TRANSLATION * pre.output_image_height)),
        ]
    if not case.experiment.augmentation_config.color_augmentation.contrast_scale_max:
        color = "augmentation_config.color_augmentation"
        return [(f"{color}.contrast_scale_max", 0.2), (f"{color}.saturation_shift_max", 0.2)]
    return [*_epochs(case, 2 / 3)]


# What they say


def _points(value: float) -> str:
    return f"{100 * value:.1f} points of AP"


def _costing(case: Case, kind: str) -> str:
    return f"cost {case.item.name} {_points(getattr(case.item.costs, kind))}"


def _cells_told(case: Case, side: float | None) -> str:
    return f"{case.cells(side) or 0:.1f} grid cells wide"


def _doubled_told(case: Case) -> str:
    return f"{case.item.doubled:,} of {case.item.detections:,} detections of {case.item.name} are on an object that is found"


def _cut_told(case: Case) -> str:
    cut, item = case.item.cut, case.item
    assert cut is not None
    return (
        f"{cut.dropped:,} of {item.detections - item.found:,} wrong detections of {item.name} score less than"
        f" {_rounded(cut.score):.3g}, and {cut.lost:,} of {item.found:,} right ones; what infer shows gets better, mAP does not"
    )


REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        "lower the overlap that NMS allows",
        _suppression_gain,
        lambda case: [
            (_processing(case, "clustering_config.nms_iou_threshold"), case.item.suppression.overlap)  # type: ignore[union-attr]
        ],
        lambda case: f"{_doubled_told(case)}; tried on these detections",
    ),
    Remedy(
        "join boxes that overlap less",
        _joining_gain,
        lambda case: [
            (
                _processing(case, "clustering_config.dbscan_eps"),
                _rounded(min(case.clustering.dbscan_eps + 0.15, 0.6)),
            )
        ],
        lambda case: f"{_doubled_told(case)}; evaluate --tune-clustering finds the value",
    ),
    Remedy(
        "let boxes weigh more",
        _by("misplaced", 0.3, _boxes_weigh_little),
        lambda case: [(_balance(case)[0], min(3 * _balance(case)[1], 10 * _balance(case)[2]))],
        lambda case: f"boxes that lie badly {_costing(case, 'misplaced')}",
    ),
    Remedy(
        "enlarge the input, for edges",
        _by("misplaced", 0.3, _is_coarse),
        lambda case: _input(case, 1.5),
        lambda case: (
            f"boxes that lie badly {_costing(case, 'misplaced')}, whose objects are"
            f" {_cells_told(case, case.item.sides.found)}"
        ),
    ),
    Remedy(
        "show objects whole",
        _by("misplaced", 0.5, _is_larger_than_seen),
        lambda case: _input(case, case.sees / (case.item.sides.found * case.result.scale)),  # type: ignore[operator]
        lambda case: (
            f"boxes that lie badly {_costing(case, 'misplaced')}, whose objects are"
            f" {case.item.sides.found * case.result.scale:.0f} pixels wide where a cell sees {case.sees}; a deeper network"  # type: ignore[operator]
            " would do as well"
        ),
    ),
    Remedy(
        "do not mirror",
        _by("wrong_class", 0.3, lambda case: _augmentation(case).hflip_probability > 0),
        lambda case: [("augmentation_config.spatial_augmentation.hflip_probability", 0.0)],
        lambda case: (
            f"wrong names {_costing(case, 'wrong_class')}, most often {case.item.confused_with or 'for others'}; only if"
            " they are mirror images, or letters"
        ),
    ),
    Remedy(
        "enlarge the input, for names",
        _by("wrong_class", 0.4, _is_coarse),
        lambda case: _input(case, 1.5),
        lambda case: (
            f"wrong names {_costing(case, 'wrong_class')}, whose objects are {_cells_told(case, case.item.sides.found)}"
        ),
    ),
    Remedy(
        "train longer, for names",
        _by("wrong_class", 0.3, lambda case: case.own is None or case.own < LEARNT),
        lambda case: _epochs(case, 2),
        lambda case: f"wrong names {_costing(case, 'wrong_class')}: they are learnt after places",
    ),
    Remedy(
        "count hard cells for more",
        _by(
            "background",
            0.3,
            lambda case: is_grid(case.experiment.model_config)
            and not case.experiment.cost_function_config.coverage_focal_gamma,
        ),
        lambda case: [("cost_function_config.coverage_focal_gamma", 2.0)],
        lambda case: f"{case.item.counts.background:,} detections where nothing is {_costing(case, 'background')}",
    ),
    Remedy("drop weak detections", _cut_gain, _cut_edit, _cut_told, of="F1"),
    Remedy(
        "let weak cells count",
        _weak_gain,
        _lower_threshold_edit,
        lambda case: (
            f"{100 * _weak_share(case):.0f} % of {case.item.labels:,} labels of {case.item.name} have a coverage between"
            f" {_lower_threshold(case):.3g} and {case.threshold[1]:.3g}; missed ones {_costing(case, 'missed')}"
        ),
    ),
    Remedy(
        "enlarge the input, for small objects",
        _by("missed", 0.5, _is_missed_for_its_size),
        lambda case: _input(case, _factor(case)),
        lambda case: (
            f"{case.item.counts.missed:,} missed objects {_costing(case, 'missed')}, half of them less than"
            f" {_cells_told(case, case.item.sides.missed)}"
        ),
    ),
    Remedy(
        "let a rare class weigh more",
        _by("missed", 0.4, _is_rare),
        lambda case: [
            (
                f"{_target(case)}.class_weight",
                _rounded(
                    HEAVIEST * case.experiment.cost_function_config.target_classes[case.number].class_weight
                ),
            )
        ],
        lambda case: (
            f"{case.item.counts.missed:,} missed of {case.item.labels:,} labels {_costing(case, 'missed')}, which is rare;"
            " more images of it are better"
        ),
    ),
    Remedy(
        "vary what it learns",
        _heart_gain,
        _varied,
        lambda case: (
            f"{case.item.name} has {100 * (case.own or 0):.1f} % on training images and"
            f" {100 * (case.item.average_precision or 0):.1f} % here: more images are better"
        ),
    ),
    Remedy(
        "train longer",
        _learning_gain,
        lambda case: _epochs(case, 2),
        lambda case: (
            f"{case.item.name} is not learnt: {100 * (case.item.average_precision or 0):.1f} % here"
            + (f", {100 * case.own:.1f} % on training images" if case.own is not None else "")
        ),
    ),
)

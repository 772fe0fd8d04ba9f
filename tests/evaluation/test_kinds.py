"""Kinds of mistakes and what they cost, held to TIDE's definition written plainly, and to cases that a person can count."""

import itertools
import random

import pytest
import torch

from detectkit import spec
from detectkit.data.labels import DONTCARE
from detectkit.evaluation import Truth, new_scores
from detectkit.evaluation.confusion import confusion
from detectkit.evaluation.kinds import SIDES
from detectkit.evaluation.mistakes import mistakes, size_bounds
from detectkit.evaluation.results import Confusion, Kinds
from detectkit.ops.cluster import Detections

NAMES = ["ace", "king", "jack"]
ACE, KING, JACK = range(3)
HERE, THERE = (0, 0, 20, 20), (40, 0, 60, 20)
SMALL, MEDIUM, LARGE = (0, 0, 20, 20), (100, 0, 160, 60), (200, 0, 400, 200)


def collected(images, config=None):
    """Detections (box, class, score) and labels (box, class) of each image."""
    config = config or spec.EvaluationConfig(average_precision_mode="INTEGRATE")
    scores = new_scores(NAMES, config)
    for found, labels in images:
        found = sorted(found, key=lambda row: -row[2])
        boxes, classes, values = zip(*found) if found else ((), (), ())
        where, names = zip(*labels) if labels else ((), ())
        detections = Detections(
            torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            torch.tensor(values, dtype=torch.float64),
            torch.tensor(classes, dtype=torch.int64),
        )
        truth = torch.tensor(where, dtype=torch.float64).reshape(-1, 4)
        scores.add(detections, Truth(truth, torch.tensor(names, dtype=torch.int64)))
    return scores


# TIDE, plainly


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    size = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / (size - common)


def area_under(points, labels):
    """The average precision of (score, right) with so many labels: all steps of recall, each at the best precision after it."""
    points = sorted(points, key=lambda point: -point[0])
    precisions, rights = [], 0
    for number, (_, right) in enumerate(points, start=1):
        rights += right
        precisions.append(rights / number)
    return sum(
        max(precisions[at:]) / labels for at, (_, right) in enumerate(points) if right
    )  # recall grows only where one is right


def judge_image(found, labels):
    """A dictionary for each detection of an image and for each label; the former sorted by falling score."""
    truths = [{"box": box, "class": name, "used": False, "errors": []} for box, name in labels]
    rows = [
        {"box": box, "class": name, "score": score, "right": False}
        for box, name, score in sorted(found, key=lambda row: -row[2])
    ]
    for row in rows:
        own = [truth for truth in truths if truth["class"] == row["class"]]
        best = max(own, key=lambda truth: overlap(row["box"], truth["box"]), default=None)
        if best and overlap(row["box"], best["box"]) >= 0.5 and not best["used"]:
            row["right"] = best["used"] = True
    for row in rows:
        row["kind"], row["label"] = ("right", None) if row["right"] else kind_of(row, truths)
        if row["label"]:
            row["label"]["errors"].append(row)
    return rows, truths


def kind_of(row, truths):
    def best(chosen):
        return max(
            ((overlap(row["box"], truth["box"]), truth) for truth in chosen),
            key=lambda pair: pair[0],
            default=(0, None),
        )

    own, label = best([truth for truth in truths if truth["class"] == row["class"]])
    other, other_label = best([truth for truth in truths if truth["class"] != row["class"]])
    if 0.1 <= own < 0.5:
        return "misplaced", label
    if other >= 0.5:
        return "wrong_class", other_label
    if own >= 0.5:
        return "duplicate", None
    return ("background" if max(own, other) <= 0.1 else "both"), None


def size_of(box, bounds):
    side = ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
    return sum(side > bound for bound in bounds)


def plain_cost(images, number, kind, bounds, size=None):
    """What the average precision of a class gains where all mistakes of one kind (and size) are put right."""
    before, after, wanted, missed = [], [], 0, 0
    for rows, truths in images:
        own = [truth for truth in truths if truth["class"] == number]
        wanted += len(own)
        for truth in own:
            is_missed = not truth["used"] and not truth["errors"]
            if kind == "missed" and is_missed and size in (None, size_of(truth["box"], bounds)):
                missed += 1
        for row in rows:
            point = (row["score"], row["right"])
            if row["class"] == number:
                before.append(point)
            label = row["label"]
            mended = row["kind"] == kind and size in (None, size_of((label or row)["box"], bounds))
            if not mended:
                after += [point] if row["class"] == number else []
            elif label and label["class"] == number and not label["used"] and label["errors"][0] is row:
                after.append((row["score"], True))
    if not wanted:
        return 0
    left = wanted - missed
    return max((area_under(after, left) if left else 1) - area_under(before, wanted), 0)


def some_images(seed):
    """Random labels, and detections around them, many of another class, moved or doubled; a few beside them."""
    draw = random.Random(seed)
    images = []
    for _ in range(8):
        labels = []
        for x, y in itertools.product((0, 150, 300), (0, 150)):
            if draw.random() < 0.6:
                x, y, width, height = x + draw.uniform(0, 30), y, *(draw.uniform(10, 110) for _ in "ab")
                labels.append(((x, y, x + width, y + height), draw.randrange(3)))
        found = []
        for (x1, y1, x2, y2), name in labels:
            for _ in range(draw.randrange(4)):
                jitter = draw.choice((0.05, 0.2, 0.5))
                left, top, right, bottom = (
                    side + draw.gauss(0, jitter) * (x2 - x1 + y2 - y1) / 4 for side in (x1, y1, x2, y2)
                )
                right, bottom = max(right, left + 2), max(bottom, top + 2)
                shown = name if draw.random() < 0.6 else draw.randrange(3)
                found.append(((left, top, right, bottom), shown, draw.random()))
        for _ in range(draw.randrange(3)):
            x, y = draw.uniform(0, 400), draw.uniform(0, 300)
            found.append(((x, y, x + 30, y + 30), draw.randrange(3), draw.random()))
        images.append((found, labels))
    return images


@pytest.mark.parametrize("seed", range(12))
def test_costs_are_those_of_the_definition(seed):
    images = some_images(seed)
    scores = collected(images)
    bounds = size_bounds(scores)
    judged = [judge_image(found, labels) for found, labels in images]
    for number, item in enumerate(mistakes(scores)):
        for kind in Kinds._fields:
            assert getattr(item.costs, kind) == pytest.approx(plain_cost(judged, number, kind, bounds)), kind
            for size, costs in enumerate(item.costs_by_size):
                wanted = plain_cost(judged, number, kind, bounds, size)
                assert getattr(costs, kind) == pytest.approx(wanted), (kind, size)
        rows = [row for own, _ in judged for row in own if row["class"] == number]
        for kind in Kinds._fields[:-1]:
            assert getattr(item.counts, kind) == sum(row["kind"] == kind for row in rows)


def only(item):
    """The kinds that a class has, with count and cost."""
    pairs = zip(Kinds._fields, item.counts, item.costs, strict=True)
    return {kind: (count, round(cost, 6)) for kind, count, cost in pairs if count or cost}


@pytest.mark.parametrize(
    ("box", "name", "kind"),
    [
        ((0, 0, 20, 8), ACE, "misplaced"),  # IoU 0.4
        (HERE, KING, "wrong_class"),
        ((0, 0, 20, 8), KING, "both"),
        ((70, 70, 90, 90), ACE, "background"),
        ((0, 0, 20, 1), ACE, "background"),  # IoU 0.05
    ],
)
def test_one_mistake_of_each_kind(box, name, kind):
    items = mistakes(collected([([(box, name, 0.9)], [(HERE, ACE)])]))
    counted = items[name].counts
    assert {field: value for field, value in counted._asdict().items() if value and field != "missed"} == {
        kind: 1
    }
    mended = kind in ("misplaced", "wrong_class")
    assert items[ACE].counts.missed == (0 if mended else 1)
    assert getattr(items[ACE].costs, kind) == (1 if mended else 0)
    assert items[ACE].costs.missed == (0 if mended else 1)  # nothing is left to be found


def test_a_second_right_box_is_a_duplicate():
    found = [(HERE, ACE, 0.9), (HERE, ACE, 0.8), (THERE, ACE, 0.7)]
    ace = mistakes(collected([(found, [(HERE, ACE), (THERE, ACE)])]))[ACE]
    assert only(ace) == {"duplicate": (1, round(1 / 6, 6))}  # 1/2 + 1/2 * 2/3, and 1 without it


def test_of_several_that_could_be_put_right_the_strongest_is():
    found = [((0, 0, 20, 8), ACE, 0.5), ((0, 0, 20, 7), ACE, 0.8), ((70, 70, 90, 90), ACE, 0.6)]
    ace = mistakes(collected([(found, [(HERE, ACE)])]))[ACE]
    assert ace.counts.misplaced == 2 and ace.costs.misplaced == 1  # that of 0.8, and the other is gone


def test_missed_objects_are_taken_from_those_to_be_found():
    found = [(HERE, ACE, 0.9), ((70, 70, 90, 90), ACE, 0.95)]
    ace = mistakes(collected([(found, [(HERE, ACE), (THERE, ACE)])]))[ACE]
    # AP 1/2 of 1/2; of one label 1/2; without the wrong one 1 of 1/2.
    assert only(ace) == {"background": (1, 0.25), "missed": (1, 0.25)}


def test_what_lies_in_a_dontcare_region_is_no_mistake():
    ace = mistakes(collected([([(THERE, ACE, 0.9)], [(HERE, ACE), ((30, 0, 70, 30), DONTCARE)])]))[ACE]
    assert only(ace) == {"missed": (1, 1.0)}


def test_sizes_are_cocos():
    labels = [(SMALL, ACE), (MEDIUM, ACE), (LARGE, ACE)]
    scores = collected([([(SMALL, ACE, 0.9), (LARGE, ACE, 0.8)], labels)])
    ace = mistakes(scores)[ACE]
    assert size_bounds(scores) == SIDES
    assert [round(costs.missed, 6) for costs in ace.costs_by_size] == [0, round(1 / 3, 6), 0]
    assert ace.sides == (pytest.approx((20 + 200) / 2), 60)  # medians


def test_sizes_are_thirds_of_the_labels_where_none_is_of_one_of_cocos():
    labels = [((0, 0, side, side), ACE) for side in (10, 20, 30, 40)]
    assert size_bounds(collected([([], labels)])) == pytest.approx((20, 30))
    assert size_bounds(collected([([], [])])) == SIDES


def test_the_overlap_from_which_doubled_boxes_are_best_dropped():
    """Second boxes overlap the first by 0.5, and two objects that stand close by 0.25."""
    second = (0, 0, 20, 10)
    close = (0, 12, 20, 32)
    images = [([(HERE, ACE, 0.9), (second, ACE, 0.8), (close, ACE, 0.7)], [(HERE, ACE), (close, ACE)])] * 4
    ace = mistakes(collected(images))[ACE]
    assert ace.doubled == 4 and ace.suppression.overlap == 0.4
    assert ace.suppression.gain == pytest.approx(ace.doubled_cost) and ace.doubled_cost > 0.1


def test_a_score_below_which_hardly_a_right_detection_lies():
    images = [([(HERE, ACE, 0.8), (THERE, ACE, 0.3), ((70, 0, 90, 20), ACE, 0.5)], [(HERE, ACE)])] * 3
    ace, king, _ = mistakes(collected(images))
    assert ace.cut == (0.4, 3, 0) and king.cut is None


def test_which_classes_are_taken_for_which():
    first = (
        [(HERE, KING, 0.9), (HERE, ACE, 0.8), (THERE, KING, 0.85), ((80, 0, 99, 20), JACK, 0.7)],
        [(HERE, ACE), (THERE, ACE), ((0, 70, 20, 90), KING)],
    )
    others = [([(HERE, KING, score)], [(HERE, KING)]) for score in (0.95, 0.5)]
    scores = collected([first, *others])
    found = confusion(scores, scores.results())
    # The king on the first ace is one too many, that on the second is its only name; a king is missed. There is no jack.
    assert found == Confusion(
        ("ace", "king", "jack"), [[1, 1, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    )
    assert found.worst(5) == [("ace", "king", 1)]


def test_confusion_is_of_detections_from_the_best_score_on():
    images = [([(HERE, ACE, 0.9), (THERE, ACE, 0.2)], [(HERE, ACE)])]
    scores = collected(images)
    assert confusion(scores, scores.results()).counts[3][ACE] == 0
    swapped = collected(
        [([(HERE, KING, 0.9), (THERE, KING, 0.2)], [(HERE, ACE), (THERE, ACE), (SMALL, JACK)])]
    )
    assert confusion(swapped, swapped.results()).counts[ACE] == [0, 0, 0, 2]  # no king is to be found
    swapped = collected([([(HERE, KING, 0.9), (THERE, ACE, 0.2)], [(HERE, ACE), (THERE, KING)])])
    assert confusion(swapped, swapped.results()).counts[:2] == [[0, 1, 0, 0], [1, 0, 0, 0]]
    nothing = collected([([], [])])
    assert confusion(nothing, nothing.results()).counts == [[0] * 4] * 4

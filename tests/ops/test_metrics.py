"""Matching against VOC's loops and pycocotools, average precision against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detectkit.ops import metrics
from detectkit.ops.boxes import pairwise_iou
from detectkit.ops.metrics import average_precision, best_f1, match, precision_recall, within


def same_image(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def true_positives(
    detections: list[tuple[float, ...]],
    scores: list[float],
    truth: list[tuple[float, ...]],
    threshold: float | Tensor,
) -> list[bool]:
    found = torch.tensor(detections, dtype=torch.float64).reshape(-1, 4)
    boxes = torch.tensor(truth, dtype=torch.float64).reshape(-1, 4)
    groups = same_image(len(found)), same_image(len(boxes))
    result = match(found, torch.tensor(scores), groups[0], boxes, groups[1], iou_threshold=threshold)
    flags: list[bool] = result.tolist()
    return flags


A, B = (0, 0, 10, 10), (20, 0, 30, 10)


@pytest.mark.parametrize(
    ("detections", "scores", "truth", "expected"),
    [
        ([A, B], [0.9, 0.8], [A, B], [True, True]),
        ([A, A], [0.8, 0.9], [A], [False, True]),  # the higher score claims it, the other is false
        ([A, A], [0.5, 0.5], [A], [True, False]),  # equal scores: the first given
        ([(0, 0, 10, 5)], [0.5], [A], [True]),  # an IoU of exactly the threshold
        ([(0, 0, 10, 4.9)], [0.5], [A], [False]),
        ([A], [0.5], [], [False]),
        ([], [], [A], []),
        ([(5, 5, 5, 5)], [0.9], [(5, 5, 5, 5)], [False]),  # empty boxes overlap nothing
        # The second detection overlaps both boxes well, the taken one better: VOC gives it no second choice.
        ([A, (0, 0, 10, 9)], [0.9, 0.8], [A, (0, 0, 10, 7)], [True, False]),
    ],
)
def test_match(
    detections: list[tuple[float, ...]],
    scores: list[float],
    truth: list[tuple[float, ...]],
    expected: list[bool],
) -> None:
    assert true_positives(detections, scores, truth, 0.5) == expected


def test_match_stays_within_an_image_and_takes_a_threshold_per_detection() -> None:
    boxes = torch.tensor([A, A, B], dtype=torch.float64)
    scores, images = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([7, 3, 3])
    truth, truth_images = torch.tensor([A, B], dtype=torch.float64), torch.tensor([3, 7])
    found = match(boxes, scores, images, truth, truth_images, iou_threshold=0.5)
    assert found.tolist() == [False, True, False]
    half = [(0, 0, 10, 5), (20, 0, 30, 5)]
    assert true_positives(half, [0.9, 0.8], [A, B], torch.tensor([0.4, 0.6])) == [True, False]


def voc_loops(boxes: Tensor, scores: Tensor, group: Tensor, truth: Tensor, truth_group: Tensor) -> list[bool]:
    result, taken = [False] * len(boxes), [False] * len(truth)
    for index in sorted(range(len(boxes)), key=lambda i: -float(scores[i])):
        best, best_iou = -1, -1.0
        for candidate in range(len(truth)):
            overlap = float(pairwise_iou(boxes[index : index + 1], truth[candidate : candidate + 1]))
            if truth_group[candidate] == group[index] and overlap > best_iou:
                best, best_iou = candidate, overlap
        if best_iou >= 0.5 and not taken[best]:
            taken[best] = result[index] = True
    return result


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 20), st.integers(0, 8), st.booleans())
def test_match_is_that_of_the_voc_loops(seed: int, detections: int, truths: int, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)

    def some_boxes(count: int) -> Tensor:
        corner = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 6).round()
        return torch.cat(
            (corner, corner + 4 + (torch.rand(count, 2, generator=generator) * 8).round()), dim=1
        )

    boxes, truth = some_boxes(detections), some_boxes(truths)
    scores = torch.rand(detections, generator=generator)
    scores = (scores * 4).round() if coarse else scores
    group, truth_group = (torch.randint(2, (n,), generator=generator) for n in (detections, truths))
    found = match(boxes, scores, group, truth, truth_group, iou_threshold=0.5)
    assert found.tolist() == voc_loops(boxes, scores, group, truth, truth_group)


def scene(images: int, truths: int, detections: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Ground truth on a lattice, so that no two boxes overlap, and detections scattered around it."""
    generator = torch.Generator().manual_seed(5)
    truth_group = torch.arange(images).repeat_interleave(truths)
    corner = (
        torch.stack((torch.arange(truths) % 5, torch.arange(truths) // 5), dim=1).repeat(images, 1) * 50.0
    )
    truth = torch.cat(
        (corner, corner + 20 + 25 * torch.rand(corner.shape, generator=generator)), dim=1
    ).double()
    source = torch.randint(len(truth), (detections,), generator=generator)
    noise = torch.randn(detections, 4, generator=generator).double() * 3
    scores = torch.rand(detections, generator=generator, dtype=torch.float64)
    return truth[source] + noise, scores, truth_group[source], truth, truth_group


def coco_evaluation(
    boxes: Tensor, scores: Tensor, group: Tensor, truth: Tensor, truth_group: Tensor, threshold: float
) -> Any:
    def rows(values: Tensor, images: Tensor) -> list[dict[str, Any]]:
        sizes = torch.cat((values[:, :2], values[:, 2:] - values[:, :2]), dim=1)
        pairs = enumerate(zip(sizes.tolist(), images.tolist()), start=1)
        return [
            {"id": i, "image_id": image, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, (box, image) in pairs
        ]

    ground_truth, detected = COCO(), COCO()
    images = [{"id": i} for i in truth_group.unique().tolist()]
    ground_truth.dataset = {
        "images": images,
        "categories": [{"id": 1}],
        "annotations": rows(truth, truth_group),
    }
    found = [{**row, "score": score} for row, score in zip(rows(boxes, group), scores.tolist())]
    detected.dataset = {"images": images, "categories": [{"id": 1}], "annotations": found}
    ground_truth.createIndex()
    detected.createIndex()
    evaluation = COCOeval(ground_truth, detected, "bbox")
    evaluation.params.iouThrs = np.array([threshold])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [100_000]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def test_curve_is_that_of_pycocotools_where_the_rules_coincide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disjoint ground truth and an IoU above 1/2: a detection has one candidate, so a second choice never arises."""
    monkeypatch.setattr(metrics, "CHUNK", 17)  # several chunks
    boxes, scores, group, truth, truth_group = scene(images=12, truths=9, detections=300)
    evaluation = coco_evaluation(boxes, scores, group, truth, truth_group, threshold=0.6)
    found = match(boxes, scores, group, truth, truth_group, iou_threshold=0.6)
    matched = {
        i for image in evaluation.evalImgs for i, gt in zip(image["dtIds"], image["dtMatches"][0]) if gt
    }
    assert {int(i) for i in found.nonzero().flatten() + 1} == matched
    assert 50 < len(matched) < 108
    precision, recall, _ = precision_recall(scores, found, len(truth))
    assert float(recall[-1]) == pytest.approx(float(evaluation.eval["recall"][0, 0, 0, 0]))
    ours = [
        float(precision[recall >= level].max()) if bool((recall >= level).any()) else 0.0 for level in LEVELS
    ]
    assert ours == pytest.approx(evaluation.eval["precision"][0, :, 0, 0, 0].tolist())


LEVELS = np.linspace(0, 1, 101)


def curve(flags: list[bool], truths: int) -> tuple[Tensor, Tensor]:
    scores = torch.linspace(1, 0.1, len(flags)) if flags else torch.zeros(0)
    precision, recall, _ = precision_recall(scores, torch.tensor(flags, dtype=torch.bool), truths)
    return precision, recall


@pytest.mark.parametrize(
    ("flags", "truths", "sample", "integrate"),
    [
        *(([True] * n, n, 1.0, 1.0) for n in (1, 2, 3, 4, 7, 10, 30)),  # a perfect detector
        ([False] + [True] * 4, 4, 0.8, 0.8),  # and with a false one before all others
        ([True, True, True, False], 10, 4 / 11, 0.3),  # recalls 0, 0.1, 0.2, 0.3
        ([True, False, True], 4, (3 + 3 * 2 / 3) / 11, 0.25 + 0.25 * 2 / 3),
        ([False, False], 4, 0.0, 0.0),
        ([], 4, 0.0, 0.0),
        ([False], 0, 0.0, 0.0),
        ([], 0, 0.0, 0.0),
    ],
)
def test_average_precision(flags: list[bool], truths: int, sample: float, integrate: float) -> None:
    assert average_precision(*curve(flags, truths), "sample") == pytest.approx(sample)
    assert average_precision(*curve(flags, truths), "integrate") == pytest.approx(integrate)


def test_average_precision_rejects_another_mode() -> None:
    with pytest.raises(ValueError, match="integrate"):
        average_precision(*curve([True], 1), "coco")  # type: ignore[arg-type]


def test_precision_recall_sorts_by_score() -> None:
    scores, flags = torch.tensor([0.2, 0.9, 0.5]), torch.tensor([True, True, False])
    precision, recall, ordered = precision_recall(scores, flags, 4)
    assert ordered.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3]) and recall.tolist() == [0.25, 0.25, 0.5]


def test_best_f1() -> None:
    precision, recall = curve([True, True, False, False], 2)
    assert best_f1(precision, recall, torch.tensor([0.9, 0.8, 0.7, 0.6]).double()) == pytest.approx(
        (1, 1, 1, 0.8)
    )
    # A threshold cannot separate equal scores: with 0.8 for both, precision is 2 / 3.
    got = best_f1(precision, recall, torch.tensor([0.9, 0.8, 0.8, 0.6]).double())
    assert got == pytest.approx((2 / 3, 1, 0.8, 0.8))
    assert best_f1(*curve([], 3), torch.zeros(0)) == (0, 0, 0, 0)
    assert best_f1(*curve([False], 3), torch.ones(1))[2] == 0


def test_within_takes_the_share_of_the_boxes_own_area() -> None:
    boxes = torch.tensor(
        [(0, 0, 10, 10), (5, 0, 15, 10), (0, 0, 100, 100), (3, 3, 3, 9), A], dtype=torch.float64
    )
    regions = torch.tensor([(0, 0, 9, 10), (0, 0, 10, 10)], dtype=torch.float64)
    images = torch.tensor([0, 0, 0, 0, 1])
    found = within(boxes, images, regions, torch.tensor([0, 0]), least_share=0.5)
    # All of the first; exactly half of the second; a hundredth of the third; no area; another image.
    assert found.tolist() == [True, False, False, False, False]
    assert within(boxes, images, regions, torch.tensor([0, 0]), least_share=0.499).tolist()[1]
    assert not within(boxes, images, regions[:0], torch.zeros(0, dtype=torch.int64), least_share=0).any()

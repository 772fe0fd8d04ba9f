"""Clustering: the fixtures of TLT, scikit-learn's labels, torchvision's NMS."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from torch import Tensor

from detectkit.ops.boxes import pairwise_iou
from detectkit.ops.cluster import cluster, dbscan, merge, nms

USUAL: dict[str, Any] = dict(
    algorithm="dbscan",
    coverage_threshold=0.005,
    minimum_height=4.0,
    dbscan_eps=0.15,
    dbscan_min_samples=1.0,
    dbscan_confidence_threshold=0.1,
    nms_iou_threshold=0.3,
    nms_confidence_threshold=0.2,
)


def block(box: tuple[float, float, float, float], count: int = 25) -> Tensor:
    return torch.tensor([box], dtype=torch.float32).expand(count, 4)


def run(boxes: Tensor, coverage: Tensor, **changes: Any) -> tuple[list[list[float]], list[float]]:
    found, scores, _ = cluster(boxes, coverage, **{**USUAL, **changes})
    return found.tolist(), scores.tolist()


def reference_labels(boxes: Tensor, weights: Tensor, eps: float, min_samples: int) -> np.ndarray[Any, Any]:
    distance = 1 - pairwise_iou(boxes.double(), boxes.double()).numpy()
    model = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    labels: np.ndarray[Any, Any] = model.fit(distance, sample_weight=weights.double().numpy()).labels_
    return labels


def test_nothing_covered_gives_nothing() -> None:
    for algorithm in ("dbscan", "nms", "hybrid"):
        for boxes, coverage in (
            (torch.zeros(0, 4), torch.zeros(0)),
            (block((0, 0, 16, 16)), torch.zeros(25)),
        ):
            assert run(boxes, coverage, algorithm=algorithm) == ([], [])


def test_two_blocks_of_nearly_the_same_box_are_one_object() -> None:
    boxes = torch.cat((block((0, 0, 16, 16)), block((0.1, 0.1, 16.1, 16.1))))
    found, scores = run(boxes, torch.ones(50))
    assert found[0] == pytest.approx([0.05, 0.05, 16.05, 16.05], abs=1e-5) and scores == [50]


def test_coverage_must_exceed_its_threshold() -> None:
    boxes = torch.cat((block((0, 0, 16, 16)), block((16, 16, 32, 32))))
    coverage = torch.cat((torch.full((25,), 0.01), torch.ones(25)))
    assert run(boxes, coverage, coverage_threshold=0.1) == ([[16, 16, 32, 32]], [25])
    assert run(boxes, torch.full((50,), 0.5), coverage_threshold=0.5) == ([], [])


@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_change_nothing(algorithm: str, number: float) -> None:
    boxes, coverage = torch.cat((block((0, 0, 16, 16)), block((40, 0, 60, 20)))), torch.full((50,), 0.5)
    images = torch.arange(2).repeat_interleave(25)
    options = {**USUAL, "algorithm": algorithm}
    expected = cluster(boxes, coverage, images, **options)
    broken = block((number, 0, number, 9), 2), block((2, 0, 18, 16), 1)
    found = cluster(
        torch.cat((*broken, boxes)),
        torch.cat((torch.tensor([0.9, number, number]), coverage)),
        torch.cat((torch.zeros(3, dtype=torch.int64), images)),
        **options,
    )
    assert len(expected[0]) == 2
    for value, other in zip(expected, found, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize("algorithm", ["dbscan", "nms", "hybrid"])
def test_boxes_must_be_taller_than_the_minimum(algorithm: str) -> None:
    boxes = torch.cat((block((0, 0, 5, 5)), block((5, 5, 15, 15))))
    found, scores = run(boxes, torch.ones(50), minimum_height=6, algorithm=algorithm)
    assert found == [[5, 5, 15, 15]] and scores == ([25] if algorithm == "dbscan" else [1])
    assert run(boxes[25:], torch.ones(25), minimum_height=10, algorithm=algorithm) == ([], [])


def test_two_objects_by_descending_score() -> None:
    boxes = torch.cat((block((0, 0, 16, 16), 3), block((40, 40, 60, 60), 5)))
    assert run(boxes, torch.ones(8)) == ([[40, 40, 60, 60], [0, 0, 16, 16]], [5, 3])


def test_weak_neighbourhoods_are_noise_until_min_samples_is_lowered() -> None:
    boxes = block((0, 0, 16, 16), 4)
    coverage = torch.full((4,), 0.125)
    assert run(boxes, coverage) == ([], [])  # 4 * 0.125 < 1
    assert run(boxes, coverage, dbscan_min_samples=0.5) == ([[0, 0, 16, 16]], [0.5])
    assert run(boxes, coverage, dbscan_min_samples=0.0) == ([], [])  # 0 counts as 1
    assert run(boxes, coverage * 2, dbscan_min_samples=0.0) == ([[0, 0, 16, 16]], [1])


def test_confidence_threshold_keeps_equal_scores() -> None:
    boxes = block((0, 0, 16, 16), 4)
    assert len(run(boxes, torch.full((4,), 0.25), dbscan_confidence_threshold=1.0)[0]) == 1
    assert len(run(boxes, torch.full((4,), 0.25), dbscan_confidence_threshold=1.01)[0]) == 0
    assert len(run(boxes, torch.full((4,), 0.25), algorithm="nms", nms_confidence_threshold=0.25)[0]) == 1


def test_mean_coverage_as_confidence() -> None:
    boxes = torch.cat((block((0, 0, 16, 16), 4), block((40, 40, 60, 60), 2)))
    coverage = torch.tensor([0.25, 0.25, 0.5, 0.5, 0.75, 0.5])
    first, second = [0, 0, 16, 16], [40, 40, 60, 60]
    assert run(boxes, coverage) == ([first, second], [1.5, 1.25])
    assert run(boxes, coverage, confidence_model="mean_cov") == ([second, first], [0.625, 0.375])
    # Both thresholds are for the confidence that is reported, in hybrid that of the cluster and that of the box.
    for threshold in ("dbscan_confidence_threshold", "confidence_threshold"):
        options = {"confidence_model": "mean_cov", threshold: 0.5}
        assert run(boxes, coverage, **options) == ([second], [0.625])
    hybrid = {"algorithm": "hybrid", "confidence_model": "mean_cov"}
    assert run(boxes, coverage, dbscan_confidence_threshold=0.5, **hybrid) == ([second], [0.75])
    assert run(boxes, coverage, confidence_threshold=0.5, **hybrid) == ([second, first], [0.75, 0.5])
    with pytest.raises(ValueError, match="mean_cov"):
        run(boxes, coverage, confidence_model="mlp")


@pytest.mark.parametrize(
    ("algorithm", "scores"), [("dbscan", [5, 3]), ("nms", [1, 0.5]), ("hybrid", [1, 0.5])]
)
def test_final_threshold_keeps_equal_scores(algorithm: str, scores: list[float]) -> None:
    boxes = torch.cat((block((0, 0, 16, 16), 5), block((40, 40, 60, 60), 6)))
    coverage = torch.tensor([1.0] * 5 + [0.5] * 6)
    assert run(boxes, coverage, algorithm=algorithm)[1] == scores
    assert run(boxes, coverage, algorithm=algorithm, confidence_threshold=scores[1])[1] == scores
    above = scores[1] + 0.01
    assert run(boxes, coverage, algorithm=algorithm, confidence_threshold=above)[1] == scores[:1]


def test_nms_keeps_scores_and_order() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [20, 5, 30, 15]])
    coverage = torch.tensor([0.5, 0.75, 0.25, 0.125])  # IoU of the last two is 1/3
    assert run(boxes, coverage, algorithm="nms") == ([[1, 0, 11, 10], [20, 0, 30, 10]], [0.75, 0.25])
    kept = nms(boxes, coverage, iou_threshold=0.4)
    assert kept.tolist() == [1, 2, 3]


def test_hybrid_is_nms_among_members_of_surviving_clusters() -> None:
    strong = torch.tensor([[0.0, 0, 16, 16], [0, 0, 16, 17], [0, 1, 16, 17]])
    lonely = torch.tensor([[50.0, 50, 70, 70]])
    coverage = torch.tensor([0.5, 0.75, 0.5, 0.875])
    found, scores = run(torch.cat((strong, lonely)), coverage, algorithm="hybrid")
    assert (found, scores) == ([[0, 0, 16, 17]], [0.75])  # a raw box; the best box of all is noise to DBSCAN
    assert run(torch.cat((strong, lonely)), coverage, algorithm="hybrid", dbscan_confidence_threshold=2) == (
        [],
        [],
    )


def test_unknown_algorithm() -> None:
    with pytest.raises(ValueError, match="hybrid"):
        run(block((0, 0, 9, 9)), torch.ones(25), algorithm="kmeans")


def test_border_box_joins_the_cluster_numbered_first() -> None:
    """Boxes in a row: a strong one and a weak one at either end, a weak one between that overlaps both weak ones."""
    x = torch.tensor([13.0, 10.0, 5.0, 0.0, -3.0])
    boxes = torch.stack((x, torch.zeros(5), x + 10, torch.full((5,), 10.0)), dim=1)
    weights = torch.tensor([1.0, 0.25, 0.125, 0.25, 1.0])
    assert dbscan(boxes, weights, eps=0.7, min_samples=1.2).tolist() == [0, 0, 0, 1, 1]
    assert dbscan(boxes.flip(0), weights, eps=0.7, min_samples=1.2).tolist() == [0, 0, 0, 1, 1]
    assert dbscan(boxes, weights, eps=0.7, min_samples=0.6).tolist() == [
        0,
        0,
        0,
        0,
        0,
    ]  # the middle is a core now
    assert dbscan(boxes, weights, eps=0.5, min_samples=1.2).tolist() == [0, 0, -1, 1, 1]


def test_empty_boxes_are_noise() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 9]] * 3 + [[0.0, 0, 9, 9]])
    assert dbscan(boxes, torch.full((4,), 2.0), eps=0.5, min_samples=1).tolist() == [-1, -1, -1, 0]
    assert dbscan(boxes, torch.full((4,), 2.0), eps=1.0, min_samples=1).tolist() == [0, 0, 0, 0]


def test_merge_weighs_boxes_and_drops_noise() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [4, 4, 12, 12], [90, 90, 99, 99], [1, 1, 2, 2]])
    box, total, mean = merge(boxes, torch.tensor([0.75, 0.25, 0.5, 0.5]), torch.tensor([0, 0, -1, 1]))
    assert box.tolist() == [[1, 1, 9, 9], [1, 1, 2, 2]]
    assert total.tolist() == [1, 0.5] and mean.tolist() == [0.5, 0.5]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Boxes that jitter around a few centres, some empty, some equal; 32-bit weights as a network gives them."""
    count = draw(st.integers(0, 60))
    seed = draw(st.integers(0, 2**31))
    spread = draw(st.sampled_from([0.0, 1.0, 4.0, 30.0]))
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(draw(st.integers(1, 6)), 4, generator=generator) * 60
    boxes = centers[torch.randint(len(centers), (count,), generator=generator)]
    boxes = boxes + spread * torch.randn(count, 4, generator=generator)
    if draw(st.booleans()):
        boxes = boxes.round()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:] + 20, boxes[:, :2])
    weights = torch.rand(count, generator=generator) + 2**-8
    return boxes, weights


@settings(max_examples=300)
@given(crowds(), st.sampled_from([1e-9, 0.15, 0.3, 0.5, 0.75, 0.99, 1.0]), st.integers(1, 8))
def test_labels_are_those_of_scikit_learn(crowd: tuple[Tensor, Tensor], eps: float, min_samples: int) -> None:
    boxes, weights = crowd
    labels = dbscan(boxes, weights, eps=eps, min_samples=min_samples)
    if len(boxes) == 0:
        assert labels.shape == (0,)
    else:
        assert labels.tolist() == reference_labels(boxes, weights, eps, min_samples).tolist()


@settings(max_examples=50)
@given(crowds(), st.sampled_from([0.0, 0.3, 0.7]))
def test_nms_is_that_of_torchvision(crowd: tuple[Tensor, Tensor], threshold: float) -> None:
    from torchvision.ops import nms as torchvision_nms

    boxes, weights = crowd
    found, scores, _ = cluster(
        boxes,
        weights,
        **{**USUAL, "algorithm": "nms", "minimum_height": -1.0, "nms_iou_threshold": threshold},
    )
    chosen = torchvision_nms(boxes, weights, threshold)
    chosen = chosen[weights[chosen] >= USUAL["nms_confidence_threshold"]]
    assert torch.equal(found, boxes[chosen]) and torch.equal(scores, weights[chosen])


@settings(max_examples=80)
@given(
    st.lists(crowds(), min_size=1, max_size=4),
    st.sampled_from(["dbscan", "nms", "hybrid"]),
    st.sampled_from([0.15, 0.5, 0.99, 1.0]),
)
def test_images_at_once_give_exactly_what_each_gives_alone(
    crowds: list[tuple[Tensor, Tensor]], algorithm: str, eps: float
) -> None:
    options: dict[str, Any] = {**USUAL, "algorithm": algorithm, "dbscan_eps": eps}
    images = torch.repeat_interleave(
        torch.arange(len(crowds)), torch.tensor([len(boxes) for boxes, _ in crowds])
    )
    boxes, weights = (torch.cat(column) for column in zip(*crowds))
    found, scores, image = cluster(boxes, weights, images, **options)
    assert torch.equal(image, image.sort().values)
    for number, (own_boxes, own_weights) in enumerate(crowds):
        alone, alone_scores, _ = cluster(own_boxes, own_weights, **options)
        assert torch.equal(found[image == number], alone)
        assert torch.equal(scores[image == number], alone_scores)

"""Average precision, precision and recall of detections whose figures a person can work out."""

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectkit import spec
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.errors import DataError
from detectkit.evaluation import Evaluation, Truth
from detectkit.evaluation.voc import Scores
from detectkit.ops.cluster import Detections

SAMPLE, INTEGRATE = spec.EvaluationConfig.SAMPLE, spec.EvaluationConfig.INTEGRATE


def config(mode=INTEGRATE, overlap=0.5):
    names = ("square", "bar")
    return spec.EvaluationConfig(
        average_precision_mode=mode, minimum_detection_ground_truth_overlap={name: overlap for name in names}
    )


def detections(*rows):
    """From rows of box, score, class."""
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float64).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows], dtype=torch.float64)
    return Detections(boxes, scores, torch.tensor([number for _, _, number in rows], dtype=torch.int64))


def labels(*rows):
    """From rows of box, class."""
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float64).reshape(-1, 4)
    return Truth(boxes, torch.tensor([number for _, number in rows], dtype=torch.int64))


LEFT, RIGHT, AWAY = [0, 0, 20, 20], [40, 0, 60, 20], [70, 40, 90, 60]


def three(mode):
    """Two labels; a right detection at .9, a wrong one at .8, a right one at .7."""
    scores = Scores(["square", "bar"], config(mode))
    scores.add(detections((LEFT, 0.9, 0), (AWAY, 0.8, 0)), labels((LEFT, 0)))
    scores.add(detections((RIGHT, 0.7, 0)), labels((RIGHT, 0)))
    return scores.results()


@pytest.mark.spec_field("EvaluationConfig.average_precision_mode")
def test_integrate_and_sample_by_hand():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    square, bar = three(INTEGRATE)
    assert square.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert square.precision_curve == pytest.approx([1, 0.5, 2 / 3])
    assert square.recall_curve == [0.5, 0.5, 1]
    # Recalls 0 to .5 (six of them) reach precision 1, the other five 2/3.
    assert three(SAMPLE)[0].average_precision == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert (square.ground_truth, square.detections, square.true_positives) == (2, 3, 2)
    assert (square.precision, square.recall, square.f1) == pytest.approx((2 / 3, 1, 0.8))
    assert square.threshold == pytest.approx(0.7)
    assert bar.average_precision is None


def test_a_class_without_labels_has_no_ap_and_no_part_in_the_mean():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (RIGHT, 0.9, 1)), labels((LEFT, 0)))
    square, bar = scores.results()
    assert square.average_precision == 1
    assert bar.average_precision is None and bar.detections == 1 and bar.true_positives == 0
    assert (bar.precision, bar.recall, bar.f1, bar.threshold) == (None, None, None, None)
    assert Evaluation([square, bar], 1, None, None).mean_average_precision == 1
    nothing = Evaluation([bar], 1, None, None)
    assert nothing.mean_average_precision is None
    with pytest.raises(DataError, match="no class has a labelled box that counts in the 1 images measured"):
        nothing.required_mean()


def test_a_class_without_detections_has_ap_zero():
    scores = Scores(["square", "bar"], config())
    scores.add(detections(), labels((LEFT, 0)))
    scores.add(detections(), labels())
    square = scores.results()[0]
    assert square.average_precision == 0 and square.detections == 0 and square.ground_truth == 1
    assert scores.images == 2


def test_one_class_alone_measures_as_among_all():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (AWAY, 0.8, 1)), labels((LEFT, 0), (RIGHT, 1)))
    assert [scores.result(0), scores.result(1)] == scores.results()


def test_images_and_classes_are_kept_apart():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (RIGHT, 0.9, 0)), labels((LEFT, 1)))
    scores.add(detections(), labels((RIGHT, 0)))
    square, bar = scores.results()
    assert (square.true_positives, square.ground_truth, bar.true_positives) == (0, 1, 0)


@pytest.mark.spec_field("EvaluationConfig.minimum_detection_ground_truth_overlap")
def test_overlap_is_the_specs():
    shifted = [5, 0, 25, 20]  # IoU 15 / 25 = 0.6
    for overlap, expected in ((0.6, 1), (0.61, 0)):
        scores = Scores(["square", "bar"], config(overlap=overlap))
        scores.add(detections((shifted, 0.9, 0)), labels((LEFT, 0)))
        assert scores.results()[0].true_positives == expected


@pytest.mark.spec_field(
    "EvaluationConfig.EvaluationBoxConfig.minimum_height",
    "EvaluationConfig.EvaluationBoxConfig.maximum_height",
    "EvaluationConfig.EvaluationBoxConfig.minimum_width",
    "EvaluationConfig.EvaluationBoxConfig.maximum_width",
)
@pytest.mark.parametrize(
    ("field", "limit", "other"),
    [
        ("minimum_height", 20, [0, 40, 20, 59]),
        ("maximum_height", 20, [0, 40, 20, 61]),
        ("minimum_width", 20, [0, 40, 19, 60]),
        ("maximum_width", 20, [0, 40, 21, 60]),
    ],
)
def test_boxes_of_other_sizes_are_left_out_of_both(field, limit, other):
    settings = config()
    setattr(settings.evaluation_box_config["square"], field, limit)
    scores = Scores(["square", "bar"], settings)
    found = detections((LEFT, 0.9, 0), (other, 0.8, 0), (other, 0.8, 1))
    scores.add(found, labels((LEFT, 0), (other, 0), (other, 1)))
    square, bar = scores.results()
    assert (square.ground_truth, square.detections, square.true_positives) == (1, 1, 1)
    assert square.average_precision == 1
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (1, 1, 1)  # no limits of its own


REGION = [60, 30, 84, 70]  # 14 of the 20 columns of AWAY


@pytest.mark.parametrize(
    ("overlap", "box", "detections_that_count"),
    [
        (0.5, AWAY, 2),  # 14 x 20 of 20 x 20 pixels are in the region
        (0.69, AWAY, 2),
        (0.7, AWAY, 3),  # it must be more
        (0.5, [0, 40, 20, 60], 3),  # far from the region
    ],
)
def test_a_wrong_detection_in_a_dontcare_region_does_not_count(overlap, box, detections_that_count):
    scores = Scores(["square", "bar"], config(overlap=overlap))
    found = detections((LEFT, 0.9, 0), (RIGHT, 0.85, 0), (box, 0.8, 0))
    scores.add(found, labels((LEFT, 0), (REGION, DONTCARE), (AWAY, BACKGROUND)))
    # In another image there is no such region.
    scores.add(detections((AWAY, 0.7, 1)), labels((LEFT, 1)))
    square, bar = scores.results()
    assert (square.ground_truth, square.detections) == (1, detections_that_count)
    assert square.true_positives == 1 and len(square.precision_curve) == detections_that_count
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (1, 1, 0)


def test_a_right_detection_in_a_dontcare_region_is_right():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (LEFT, 0.8, 0)), labels((LEFT, 0), ([0, 0, 96, 64], DONTCARE)))
    square = scores.results()[0]
    assert (square.detections, square.true_positives, square.average_precision) == (1, 1, 1)


def scene(seed):
    """20 images: labels on a lattice, so that none is near another, and detections near and far from them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        cells = torch.randperm(12, generator=generator)[:7]
        corner = torch.stack((cells % 4, cells // 4), dim=1) * 50.0
        size = 20 + 20 * torch.rand(7, 2, generator=generator)
        truth = torch.cat((corner, corner + size), dim=1)
        near = truth.repeat(3, 1) + 4 * torch.randn(21, 4, generator=generator)
        scores = torch.rand(21, generator=generator)
        yield Detections(near, scores, torch.zeros(21, dtype=torch.int64)), truth


def coco_precisions(images, recalls):
    """Highest precision at each recall or beyond at IoU 0.5, by pycocotools."""
    truth = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1, "iscrowd": 0}
        for image, (_, boxes) in enumerate(images)
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    found = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, (item, _) in enumerate(images)
        for (x1, y1, x2, y2), score in zip(item.boxes.tolist(), item.scores.tolist())
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": [{**item, "id": number} for number, item in enumerate(truth, start=1)],
    }
    coco.createIndex()
    judge = COCOeval(coco, coco.loadRes(found), "bbox")
    judge.params.iouThrs, judge.params.recThrs = torch.tensor([0.5]).numpy(), recalls.numpy()
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    return torch.from_numpy(judge.eval["precision"])[0, :, 0, 0, -1]


@pytest.mark.parametrize("seed", [0, 1])
def test_ap_is_that_of_pycocotools(seed, capsys):
    images = list(scene(seed))
    labelled = sum(len(boxes) for _, boxes in images)
    every_recall = torch.arange(1, labelled + 1, dtype=torch.float64) / labelled
    expected = {
        INTEGRATE: coco_precisions(images, every_recall).mean().item(),
        SAMPLE: coco_precisions(images, torch.arange(11, dtype=torch.float64) / 10).mean().item(),
    }
    for mode, value in expected.items():
        scores = Scores(["square", "bar"], config(mode))
        for found, boxes in images:
            scores.add(found, Truth(boxes, torch.zeros(len(boxes), dtype=torch.int64)))
        measured = scores.results()[0].average_precision
        assert 0.2 < measured < 0.9
        assert measured == pytest.approx(value, abs=1e-9)

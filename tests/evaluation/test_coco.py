"""COCO's figures against those of pycocotools on the same boxes."""

import sys

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectkit import spec
from detectkit.data.labels import BACKGROUND, DONTCARE
from detectkit.errors import DetectkitError
from detectkit.evaluation import Evaluation, Truth, new_scores, require_package
from detectkit.ops.cluster import Detections

NAMES = ["square", "bar", "absent"]
FIGURES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
FIGURES += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]  # in the order of pycocotools


def collection(**options):
    return new_scores(NAMES, spec.EvaluationConfig(protocol="COCO", **options))


def scene(seed, images=25):
    """Detections and labels of each image: boxes of 10 to 200 pixels of two classes, background, DontCare regions."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(images):
        count = int(torch.randint(0, 9, (1,), generator=generator))
        corner = 400 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
        size = 10 * 20 ** torch.rand(count, 1, generator=generator, dtype=torch.float64)
        boxes = torch.cat((corner, corner + size * (1 + torch.rand(count, 2, generator=generator))), dim=1)
        kinds = torch.tensor([0, 0, 1, 1, BACKGROUND, DONTCARE])
        classes = kinds[torch.randint(6, (count,), generator=generator)]
        noise = 0.07 * torch.randn(3 * count, 4, generator=generator, dtype=torch.float64) * size.repeat(3, 1)
        found = boxes.repeat(3, 1) + noise
        scores = (20 * torch.rand(3 * count, generator=generator)).round() / 20
        numbers = torch.where(classes < 0, 0, classes).repeat(3)
        yield Detections(found, scores, numbers), Truth(boxes, classes)


def pycocotools(images, capsys):
    """The twelve figures of all classes, and AP of each."""
    truth, found = [], []
    for number, (item, labels) in enumerate(images):
        for box, kind in zip(labels.boxes.tolist(), labels.classes.tolist()):
            crowd = kind == DONTCARE
            for category in ([0, 1, 2] if crowd else [kind] if kind >= 0 else []):
                truth.append(
                    annotation(number, box, category) | {"iscrowd": int(crowd), "id": len(truth) + 1}
                )
        for box, score, kind in zip(item.boxes.tolist(), item.scores.tolist(), item.classes.tolist()):
            found.append(annotation(number, box, kind) | {"score": score})
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": number} for number in range(3)],
        "annotations": truth,
    }
    coco.createIndex()
    judge = COCOeval(coco, coco.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    capsys.readouterr()
    return judge.stats, judge.eval["precision"][..., 0, 2].mean(axis=(0, 1))


def annotation(image, box, category):
    x1, y1, x2, y2 = box
    size = [x2 - x1, y2 - y1]
    return {"image_id": image, "category_id": category, "bbox": [x1, y1, *size], "area": size[0] * size[1]}


@pytest.mark.parametrize("seed", [0, 1])
def test_figures_are_those_of_pycocotools(seed, capsys):
    images = list(scene(seed))
    expected, by_class = pycocotools(images, capsys)
    collected = collection()
    for item, labels in images:
        collected.add(item, labels)
    classes = collected.results()
    result = Evaluation(classes, len(images), None, None, "COCO")
    assert list(result.mean_figures) == FIGURES
    assert list(result.mean_figures.values()) == pytest.approx(expected.tolist(), abs=1e-9)
    assert result.mean_average_precision == pytest.approx(expected[0])
    assert [item.average_precision for item in classes[:2]] == pytest.approx(by_class[:2].tolist())
    assert all(0.15 < item.average_precision < 0.9 for item in classes[:2])
    assert set(classes[2].figures.values()) == {None} and classes[2].average_precision is None


def test_without_detections_there_is_nothing_to_average():
    collected = collection()
    none = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    collected.add(Detections(*none), Truth(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0])))
    square = collected.result(0)
    assert square.average_precision == 0 and square.figures["AP_small"] == 0
    assert square.figures["AP_large"] is None
    assert (square.ground_truth, square.detections, square.recall) == (1, 0, 0)


def test_precision_and_recall_are_those_at_an_iou_of_a_half():
    collected = collection(minimum_detection_ground_truth_overlap={"square": 0.9})
    half = torch.tensor([[0.0, 0, 20, 11]]), torch.tensor([0.5]), torch.tensor([0])
    collected.add(Detections(*half), Truth(torch.tensor([[0.0, 0, 20, 20]]), torch.tensor([0])))
    square = collected.result(0)
    assert (square.precision, square.recall, square.true_positives) == (1, 1, 1)
    # An IoU of 0.55 is enough for the first two of the ten IoUs.
    assert square.average_precision == pytest.approx(0.2) and square.figures["AP75"] == 0


def test_without_the_package_there_is_one_clear_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(DetectkitError, match="pip install faster-coco-eval"):
        require_package(spec.EvaluationConfig(protocol="COCO"))
    with pytest.raises(DetectkitError, match="faster-coco-eval"):
        collection()
    require_package(spec.EvaluationConfig(protocol="KITTI"))

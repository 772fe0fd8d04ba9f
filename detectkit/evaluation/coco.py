"""COCO's average precision and recall, by faster-coco-eval."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from detectkit.data.labels import DONTCARE
from detectkit.errors import DetectkitError
from detectkit.evaluation.results import ClassResult
from detectkit.evaluation.voc import Found, Labelled, Scores
from detectkit.spec import EvaluationConfig

AREAS = ("all", "small", "medium", "large")  # of boxes: below 32², below 96² and above it
MAX_DETECTIONS = (1, 10, 100)


def require_package(config: EvaluationConfig) -> None:
    """Raise DetectkitError if the protocol needs a package that is not installed."""
    if config.protocol == EvaluationConfig.COCO and importlib.util.find_spec("faster_coco_eval") is None:
        raise DetectkitError(
            "evaluation_config.protocol COCO needs the package faster-coco-eval: pip install faster-coco-eval, or"
            " use another protocol"
        )


class CocoScores(Scores):
    """COCO's figures, in the pixels of the image files: `AP` is the mean over the IoUs 0.5, 0.55 .. 0.95.

    An object's area is that of its box; a DontCare region is a crowd of every class. Of a class, the 100 detections
    with the highest scores in an image count: a grid detector with a low threshold can give more. Precision, recall
    and F1, which COCO does not have, are those at the IoU 0.5, of all detections.
    """

    def __init__(self, class_names: list[str], config: EvaluationConfig):
        require_package(config)
        super().__init__(class_names, config)

    def overlap(self, index: int) -> float:
        return 0.5

    def _class_result(self, index: int, found: Found, labels: Labelled) -> ClassResult:
        figures = self._figures(index, found, labels)
        result = super()._class_result(index, found, labels)
        return result._replace(average_precision=figures["AP"], figures=figures)

    def _figures(self, index: int, found: Found, labels: Labelled) -> dict[str, float | None]:
        from faster_coco_eval import COCOeval_faster  # an optional package

        regions = labels.classes == DONTCARE
        kept = self.counts(index, labels) | regions
        truth = _dataset(self.images, labels.boxes[kept], labels.images[kept], iscrowd=regions[kept].int())
        kept = self.counts(index, found)
        scores = found.scores[kept]
        detected = _dataset(self.images, found.boxes[kept], found.images[kept], score=scores)
        judge = COCOeval_faster(truth, detected, iouType="bbox")
        judge.params.maxDets = list(MAX_DETECTIONS)
        judge.evaluate()
        judge.accumulate()
        precision = torch.from_numpy(judge.eval["precision"])[:, :, 0, :, -1]  # [IoUs, recalls, areas]
        recall = torch.from_numpy(judge.eval["recall"])[:, 0]  # [IoUs, areas, MAX_DETECTIONS]
        figures = {"AP": _mean(precision[..., 0])}
        figures |= {f"AP{percent}": _mean(precision[at, :, 0]) for percent, at in ((50, 0), (75, 5))}
        figures |= {f"AP_{name}": _mean(precision[..., at]) for at, name in enumerate(AREAS) if at}
        figures |= {f"AR_{most}": _mean(recall[:, 0, at]) for at, most in enumerate(MAX_DETECTIONS)}
        return figures | {f"AR_{name}": _mean(recall[:, at, -1]) for at, name in enumerate(AREAS) if at}


def _dataset(images: int, boxes: torch.Tensor, image: torch.Tensor, **columns: torch.Tensor) -> Any:
    """A COCO data set of one category: boxes [N, 4] in images [N], and other columns [N]."""
    from faster_coco_eval import COCO

    sizes = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).double().tolist()
    others = [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]
    rows = zip(image.tolist(), sizes, others, strict=True)
    annotations = [
        {"iscrowd": 0, "id": number, "image_id": at, "category_id": 1, "bbox": box, "area": box[2] * box[3]}
        | other
        for number, (at, box, other) in enumerate(rows, start=1)
    ]
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": 1}],
        "annotations": annotations,
    }
    dataset.createIndex()
    return dataset


def _mean(values: torch.Tensor) -> float | None:
    """Mean of what COCO could measure; -1 says that there is no object of this kind."""
    known = values[values > -1]
    return float(known.mean()) if len(known) else None

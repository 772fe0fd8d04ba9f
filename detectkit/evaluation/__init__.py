"""Average precision, precision and recall, and latency of detections against labels, by three protocols."""

from detectkit.evaluation.coco import require_package
from detectkit.evaluation.files import evaluate_files
from detectkit.evaluation.measure import evaluate, image_truths, new_scores, placements
from detectkit.evaluation.results import ClassResult, Evaluation, Truth

__all__ = [
    "ClassResult",
    "Evaluation",
    "Truth",
    "evaluate",
    "evaluate_files",
    "image_truths",
    "new_scores",
    "placements",
    "require_package",
]

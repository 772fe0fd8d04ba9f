"""Kinds of mistakes, their costs and confusion of 1000 images with 100 detections and 10 labels each, for 1, 3 and 80 classes.

At most 5 seconds of CPU time on one thread are wanted. Usage: python bench/mistakes.py
"""

from __future__ import annotations

import sys
import time

import torch

from detectkit.evaluation import Truth, new_scores
from detectkit.evaluation.confusion import confusion
from detectkit.evaluation.mistakes import mistakes
from detectkit.evaluation.voc import Scores
from detectkit.ops.cluster import Detections
from detectkit.spec import EvaluationConfig

IMAGES, TRUTHS, DETECTIONS, LIMIT = 1000, 10, 100, 5.0


def scene(classes: int) -> Scores:
    """Detections scattered around labels, seven of ten with their name."""
    generator = torch.Generator().manual_seed(0)
    config = EvaluationConfig(average_precision_mode="INTEGRATE")
    scores = new_scores([f"class{number}" for number in range(classes)], config)
    for _ in range(IMAGES):
        corners = 500 * torch.rand(TRUTHS, 2, generator=generator)
        sizes = 10 + 150 * torch.rand(TRUTHS, 2, generator=generator)
        boxes = torch.cat((corners, corners + sizes), dim=1)
        names = torch.randint(classes, (TRUTHS,), generator=generator)
        source = torch.randint(TRUTHS, (DETECTIONS,), generator=generator)
        found = boxes[source] + 15 * torch.randn(DETECTIONS, 4, generator=generator)
        others = torch.randint(classes, (DETECTIONS,), generator=generator)
        shown = torch.where(torch.rand(DETECTIONS, generator=generator) < 0.7, names[source], others)
        ranked = torch.rand(DETECTIONS, generator=generator).sort(descending=True).values
        scores.add(Detections(found, ranked, shown), Truth(boxes, names))
    return scores


def main() -> int:
    torch.set_num_threads(1)
    slowest = 0.0
    for classes in (1, 3, 80):
        scores = scene(classes)
        results = scores.results()
        start = time.process_time()
        mistakes(scores)
        confusion(scores, results)
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        print(f"{classes:2} classes: {seconds:.2f} s")
    print(f"slowest {slowest:.2f} s, at most {LIMIT:.0f} s wanted")
    return int(slowest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""Clustering 1000 boxes as scikit-learn's DBSCAN does, with equal labels; at least 8 times faster is wanted.

scikit-learn needs the matrix of distances: it is timed with the matrix's computation and without it,
in CPU time on one thread.
Usage: python bench/cluster.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import DBSCAN
from torch import Tensor

from detectkit.ops.boxes import pairwise_iou
from detectkit.ops.cluster import dbscan

COUNT, EPS, REPEATS = 1000, 0.3, 25


def scene(objects: int) -> tuple[Tensor, Tensor]:
    """The boxes that the cells of some objects give, in the cells' order, one in ten astray; coverages as weights."""
    generator = torch.Generator().manual_seed(objects)
    corner = torch.rand(objects, 2, generator=generator) * torch.tensor([1100.0, 300.0])
    size = torch.rand(objects, 2, generator=generator) * 90 + 30
    owner = torch.randint(objects, (COUNT,), generator=generator)
    noise = (
        torch.randn(COUNT, 4, generator=generator)
        * torch.where(torch.arange(COUNT) % 10 == 0, 15.0, 2.5)[:, None]
    )
    boxes = torch.cat((corner, corner + size), dim=1)[owner] + noise
    return boxes, torch.rand(COUNT, generator=generator)


def median_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return sorted(times[1:])[REPEATS // 2]  # the first call warms up


def compare(objects: int) -> None:
    boxes, weights = scene(objects)
    model = DBSCAN(eps=EPS, min_samples=1, metric="precomputed")

    def distances() -> np.ndarray:
        return 1 - pairwise_iou(boxes.double(), boxes.double()).numpy()

    matrix, weight = distances(), weights.double().numpy()
    labels = dbscan(boxes, weights, eps=EPS, min_samples=1)
    expected = model.fit(matrix, sample_weight=weight).labels_
    if labels.tolist() != expected.tolist():
        raise SystemExit("cluster: the labels differ from scikit-learn's")
    ours = median_seconds(lambda: dbscan(boxes, weights, eps=EPS, min_samples=1))
    fit = median_seconds(lambda: model.fit(matrix, sample_weight=weight))
    whole = median_seconds(lambda: model.fit(distances(), sample_weight=weight))
    print(
        f"cluster: {whole / ours:.1f} times faster than scikit-learn's DBSCAN with its distance matrix, {fit / ours:.1f} "
        f"times without the matrix (wanted 8): {1000 * ours:.2f} ms against {1000 * whole:.2f} and {1000 * fit:.2f} ms, "
        f"{COUNT} boxes of {objects} objects, labels equal ({labels.max() + 1} clusters, {(labels < 0).sum()} noise)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in (100, 30, 10):
        compare(number)

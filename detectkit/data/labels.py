"""The labels of an image: boxes, the classes they are mapped to, and what KITTI's columns say of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BACKGROUND = -1  # class of a label that is no target class
DONTCARE = -2  # class of a label in dontcare_labels: counts neither for nor against


class Objects(NamedTuple):
    """The labels of an image, those of no target class included. n boxes."""

    boxes: NDArray[np.float32]  # [n, 4] x1 y1 x2 y2 in original pixels
    classes: NDArray[np.int64]  # [n], a target class (0 and up), BACKGROUND or DONTCARE
    names: tuple[str, ...]  # n names of the records, as `label_name` gives them
    truncation: NDArray[np.float32]  # [n] 0 whole, 1 outside the image, as KITTI labels
    occlusion: NDArray[np.int64]  # [n] 0 visible, 1 partly, 2 largely hidden, 3 unknown, as KITTI labels

    def chosen(self, index: NDArray[Any]) -> Objects:
        """Those that an index array or mask [n] names."""
        names = tuple(np.array(self.names, dtype=object)[index])
        return Objects(
            self.boxes[index], self.classes[index], names, self.truncation[index], self.occlusion[index]
        )

    def largest(self, limit: int) -> Objects:
        """Those of no target class, and of the others at most `limit`, by the area of their boxes."""
        target = np.flatnonzero(self.classes >= 0)
        if len(target) <= limit:
            return self
        sizes = (self.boxes[target, 2:] - self.boxes[target, :2]).prod(axis=1)
        kept = self.classes < 0
        kept[target[np.argsort(-sizes, kind="stable")[:limit]]] = True
        return self.chosen(kept)


NO_OBJECTS = Objects(
    np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (), np.zeros(0, np.float32), np.zeros(0, np.int64)
)

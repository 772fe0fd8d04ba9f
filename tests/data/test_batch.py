from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from detectkit.data.batch import Sample, collate
from detectkit.data.labels import NO_OBJECTS
from detectkit.data.records import training_frames
from tests.data.conftest import CLASSES, config, load_all, make, record


class TestCollate:
    def test_padding_repeats_the_edge_once(self) -> None:
        small = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3)
        large = np.full((1, 4, 5), 9, dtype=np.uint8)
        samples = [
            Sample(image, 1, (image.shape[2], image.shape[1]), NO_OBJECTS, 1.0, "", "")
            for image in (small, large)
        ]
        batch = collate(samples)
        assert batch.images[0, 0].tolist() == [[1, 2, 3, 3, 0], [4, 5, 6, 6, 0], [4, 5, 6, 6, 0], [0] * 5]
        assert batch.sizes.tolist() == [[3, 2], [5, 4]]
        assert batch.boxes.shape == (0, 4) and batch.image_index.dtype == torch.int64

    def test_boxes_know_their_image(self, tmp_path: Path) -> None:
        make(tmp_path, {"t": [record("a", names=("car", "person")), record("b", names=()), record("c")]})
        [batch] = load_all(training_frames(config(tmp_path), CLASSES), batch_size=4)
        assert batch.image_index.tolist() == [0, 0, 2]
        assert batch.classes.tolist() == [1, 0, 1]
        assert batch.frame_ids == ["a", "b", "c"]

"""Batches against their own labels, by every protocol in its own pixels."""

import numpy as np
import pytest
import torch

from detectkit import spec
from detectkit.data import augment
from detectkit.data.batch import Sample, collate
from detectkit.data.labels import BACKGROUND, DONTCARE, Objects
from detectkit.data.records import validation_frames
from detectkit.data.workers import loader
from detectkit.evaluation import evaluate
from detectkit.ops.cluster import Detections
from detectkit.predict import Latency, Predicted, load_model


def test_every_image_counts_once_with_a_short_last_batch(tiny, learnt):
    predictor = load_model(learnt, "cpu")
    validation = validation_frames(tiny.dataset_config, predictor.class_names)
    results = []
    for batch_size in (4, 6, 1):
        batches = loader(
            validation, tiny.augmentation_config, batch_size=batch_size, order=range(6), workers=0
        )
        costs = iter(range(1, 10))
        results.append(
            evaluate(
                predictor.batches(batches),
                predictor.class_names,
                tiny.evaluation_config,
                cost=lambda _: next(costs),
            )
        )
    for result in results:
        assert result.images == 6
        assert [item.ground_truth for item in result.classes] == [6, 6]
        assert result.mean_average_precision == pytest.approx(1)
        assert min(result.latency) > 0
    # Batches of 4 + 2, 6 and 1 x 6 images cost 1, 2, …: the mean is over images.
    assert [result.cost for result in results] == [pytest.approx((4 * 1 + 2 * 2) / 6), 1, 3.5]


LABELS = {  # in a picture of 320 x 240 pixels
    "square": ([20, 20, 60, 62], 0),
    "person_sitting": ([100, 20, 140, 62], BACKGROUND),
    "dontcare": ([200, 20, 240, 62], DONTCARE),
    "tree": ([20, 120, 60, 162], BACKGROUND),
}


@pytest.fixture
def halved(tiny):
    """A batch of one picture that the network sees at half its size, each label of it detected as a square."""
    preprocessing = tiny.augmentation_config.preprocessing
    preprocessing.output_image_width, preprocessing.output_image_height = 160, 120
    preprocessing.enable_auto_resize = True
    boxes = np.array([box for box, _ in LABELS.values()], dtype=np.float32)
    classes = np.array([number for _, number in LABELS.values()])
    zeros = np.zeros(len(boxes), np.float32), np.zeros(len(boxes), np.int64)
    sample = Sample(
        image=np.zeros((3, 240, 320), np.uint8),
        reduction=1,
        original_size=(320, 240),
        objects=Objects(boxes, classes, tuple(LABELS), *zeros),
        weight=1.0,
        frame_id="a",
        image_path="a.png",
    )
    batch = collate([sample])
    prepared = augment.prepare(batch, tiny.augmentation_config, generator=None, device="cpu")
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = Detections(torch.from_numpy(boxes) / 2, scores, torch.zeros(4, dtype=torch.int64))
    outputs = torch.zeros(1, 2, 8, 10), torch.zeros(1, 8, 8, 10)
    return Predicted(batch, prepared, outputs, [found], Latency(1.0, 1.0, 1.0))


@pytest.mark.spec_field("EvaluationConfig.protocol")
@pytest.mark.parametrize(
    ("protocol", "name", "counted"),
    [
        ("VOC", "square", 3),  # not the one in the DontCare region
        ("KITTI", "square", 3),
        ("KITTI", "pedestrian", 2),  # nor the one of its neighbour
        ("COCO", "square", 3),
    ],
)
def test_each_protocol_has_its_own_neutral_labels(halved, protocol, name, counted):
    config = spec.EvaluationConfig(protocol=protocol)
    result = evaluate([halved], [name, "bar"], config)
    assert result.protocol == protocol and result.images == 1
    square = result.classes[0]
    assert (square.ground_truth, square.detections, square.true_positives) == (1, counted, 1)
    assert set(result.mean_figures) == set(square.figures)
    assert ("AP40_hard" in square.figures, "AP_small" in square.figures) == (
        protocol == "KITTI",
        protocol == "COCO",
    )


def test_sizes_are_those_of_the_protocols_pixels(halved):
    """The square is 42 pixels high in its file, and 21 to the network."""
    limit = spec.EvaluationConfig.EvaluationBoxConfig(minimum_height=30)
    for protocol, expected in (("VOC", 0), ("KITTI", 1), ("COCO", 1)):
        config = spec.EvaluationConfig(protocol=protocol, evaluation_box_config={"square": limit})
        square = evaluate([halved], ["square", "bar"], config).classes[0]
        assert square.ground_truth == expected
        if protocol == "KITTI":
            assert square.figures["AP40_easy"] is not None  # 40 pixels
        if protocol == "COCO":
            assert square.figures["AP_medium"] is not None and square.figures["AP_small"] is None

"""The worst mistakes of a model, as pictures."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from detectkit.evaluation.details import Curve, Details, Location
from detectkit.evaluation.voc import Found, Labelled
from detectkit.report import mistakes as own

GREY, ORANGE, BLUE = (128, 128, 128), (255, 106, 0), (0, 160, 255)


@pytest.fixture
def details(tmp_path):
    """Two images: a right car, a false one of score 0.9 and one of 0.8, one car that was missed, one found badly."""
    for name in ("a", "b"):
        Image.new("RGB", (200, 100), GREY).save(tmp_path / f"{name}.png")
    found = [
        (10, 10, 50, 50, 0, 0.7),
        (100, 40, 140, 80, 0, 0.8),
        (20, 20, 60, 60, 1, 0.9),
        (120, 12, 170, 62, 1, 0.5),
    ]
    truths = [(10, 10, 50, 50, 0), (150, 60, 190, 100, 0), (140, 10, 190, 60, 1)]
    boxes = torch.tensor([row[:4] for row in found], dtype=torch.float32)
    images = torch.tensor([row[4] for row in found])
    labels = torch.tensor([row[:4] for row in truths], dtype=torch.float32)
    label_images = torch.tensor([row[4] for row in truths])
    return Details(
        class_names=["car"],
        images=[Location(str(tmp_path / f"{name}.png"), -1, f"left/{name}", 200, 100) for name in ("a", "b")],
        found=Found(
            boxes, torch.zeros(4, dtype=torch.int64), images, torch.tensor([row[5] for row in found])
        ),
        found_counts=torch.ones(4, dtype=torch.bool),
        truths=Labelled(labels, torch.zeros(3, dtype=torch.int64), label_images),
        truths_count=torch.ones(3, dtype=torch.bool),
        overlaps=[0.5],
        curves=[Curve([], [])],
        left_out=0,
    )


def pictures(figures):
    """The pixels of each figure, and its text."""
    for figure in figures:
        code = re.search('base64,([^"]+)"', figure)[1]
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))), dtype=int)
        yield image, re.sub("<[^>]+>", " ", figure.replace("<br>", " | ")).strip()


def near(image, color):
    """How many pixels have about this colour."""
    return int((np.abs(image - color).sum(axis=2) < 90).sum())


def test_the_worst_come_first(details):
    found = own.mistakes(details)
    assert [round(item.score, 2) for item in found.false_positives] == [0.9, 0.8, 0.5]
    assert [item.box for item in found.misses] == [(140, 10, 190, 60), (150, 60, 190, 100)]  # by area
    assert (found.false_positive_count, found.miss_count) == (3, 2)


def test_scores_of_two_classes_are_not_compared(details):
    """Those of dogs are sums, far above 1: the classes take turns, and begin with the one that has fewer detections above its mistake."""
    scores = torch.tensor([0.9, 0.8, 31.0, 7.0])  # cars: right, wrong; dogs: both wrong
    classes = torch.tensor([0, 0, 1, 1])
    found = details.found._replace(scores=scores, classes=classes)
    truths = details.truths._replace(classes=torch.tensor([0, 0, 1]))
    worst = own.mistakes(
        details._replace(
            class_names=["car", "dog"],
            overlaps=[0.5, 0.5],
            curves=[Curve([], [])] * 2,
            found=found,
            truths=truths,
        )
    )
    assert [round(item.score, 2) for item in worst.false_positives] == [31.0, 0.8, 7.0]


def test_a_strange_image_does_not_hide_the_others(details):
    many = 5
    found = Found(*(torch.cat([column] + [column[1:2]] * many) for column in details.found))
    order = found.images.argsort(stable=True)
    found = Found(*(column[order] for column in found))
    worst = own.mistakes(details._replace(found=found, found_counts=torch.ones(4 + many, dtype=torch.bool)))
    assert worst.false_positive_count == 3 + many
    assert [item.image for item in worst.false_positives] == [1, 0, 0, 1]  # FROM_ONE_IMAGE is 2


def test_pictures_of_mistakes(details):
    found = own.mistakes(details)
    (first, told), (second, _), _ = pictures(own.figures(details, found.false_positives))
    assert told == "car 0.90 | b"
    # a square of the image's height, which is less than 2.6 times the box
    assert first.shape == (240, 240, 3)
    assert near(first, ORANGE) > 500  # 3 pixels wide and 96 long, four times
    assert near(first, BLUE) == 0 and near(second, BLUE) > 100  # a label beside it, or not
    (missed, told), *_ = pictures(own.figures(details, found.misses))
    assert told == "car 50×50 | b"
    assert near(missed, BLUE) > 500 and near(missed, ORANGE) > 200  # what came near, IoU 0.43


def test_images_that_are_gone_are_left_out(details, tmp_path):
    found = own.mistakes(details)
    (tmp_path / "b.png").unlink()
    assert len(own.figures(details, found.false_positives)) == 1

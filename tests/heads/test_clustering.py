"""Candidates by part, against masks; what clustering makes of them is held by the tests of `ops` and of the heads."""

import time

import torch

from detectkit import tune
from detectkit.heads import Candidates
from detectkit.heads.clustering import parted


def drawn(count, *, images, classes):
    generator = torch.Generator().manual_seed(1)
    owners = torch.randint(images, (count,), generator=generator).sort().values
    numbers = torch.randint(classes, (count,), generator=generator)
    return Candidates(torch.rand(count, 4, generator=generator), torch.rand(count), numbers, owners)


def test_parts_are_those_of_masks_in_their_order():
    """Three images, five classes of which the last has none; also where there is no candidate."""
    for count in (200, 0):
        found = drawn(count, images=3, classes=4)
        numbers = found.images * 5 + found.classes
        parts = parted(found, numbers, parts=15)
        assert len(parts) == 15
        for number, part in enumerate(parts):
            expected = (values[numbers == number] for values in found)
            assert all(torch.equal(one, other) for one, other in zip(part, expected, strict=True))


def test_the_search_does_not_go_over_all_candidates_for_each_class_of_each_image(monkeypatch):
    """100 000 in 16 images of 80 classes: by masks it is 1280 times over all of them, some ten seconds."""
    found = drawn(100_000, images=16, classes=80)

    class Head:
        class_names = [str(number) for number in range(80)]

        def candidates(self, outputs, *, lowest):
            return found

    class Predicted:
        outputs = ()

    for name in ("image_truths", "placements"):
        monkeypatch.setattr(tune, name, lambda *_: range(16))
    before = time.process_time()
    images = tune._candidates(Predicted(), Head(), None, lowest=0.0)
    assert time.process_time() - before < 1
    assert len(images) == 16 and all(len(image.boxes) == len(image.coverage) == 80 for image in images)
    mask = (found.images == 3) & (found.classes == 7)
    assert torch.equal(images[3].boxes[7], found.boxes[mask]) and images[3].truth == 3

"""Where the boxes of a data set lie as training sees them, and what is likely wrong where they are lost or cut."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectkit.data.augment import preprocessing_matrices
from detectkit.data.batch import has_crop
from detectkit.data.dataset import Dataset
from detectkit.data.labels import NO_OBJECTS
from detectkit.ops.boxes import area, clip, transform
from detectkit.spec import AugmentationConfig

Mask = NDArray[np.bool_]

PART = 0.5  # of a box's area: with less of it in sight, what is left is a stump of the object
MANY = 0.25  # share of the boxes: a few small or cut ones are in every data set
CORNER = (
    0.55  # share of width and height: where no box reaches beyond it, labels and images are not of one size
)
CORNER_BOXES = 20  # that differ: fewer may lie in the corner by chance
NAMED = 4  # classes that a sentence names
CONVERT = "and convert again"


class Fault(NamedTuple):
    """What keeps boxes from the network. N boxes."""

    lost: Mask  # [N], which are dropped for it
    partly: Mask  # [N], of which less than `PART` is left for it
    what: str  # follows "are"
    cause: str  # likely, and what to change

    def sentence(self, geometry: Geometry) -> str:
        """For people, with counts by class."""
        touched = self.lost | self.partly
        who = geometry.subject(touched)
        cut = int(self.partly.sum())
        partly = f" ({cut:,} of them by more than half, the others wholly)" if cut and self.lost.any() else ""
        share = "" if self.lost.any() else "with more than half of their area "
        return f"{who} {'is' if touched.sum() == 1 else 'are'} {share}{self.what}{partly}: {self.cause}"


class Geometry:
    """The boxes of target classes in images of known size, as the network sees them without augmentation. N boxes.

    Args:
        part: of the data: "training" or "validation".
        stride: network pixels of a grid cell.
    """

    def __init__(
        self, dataset: Dataset, preprocessing: AugmentationConfig.Preprocessing, *, part: str, stride: int
    ):
        self.class_names, self.part, self.stride = dataset.class_names, part, stride
        self.preprocessing = preprocessing
        frames = [
            frame for frame in dataset.frames if frame.size is not None and (frame.objects.classes >= 0).any()
        ]
        objects = [frame.objects for frame in frames] or [NO_OBJECTS]
        classes = np.concatenate([item.classes for item in objects])
        target = classes >= 0
        self._frames = frames
        counts = [len(item.classes) for item in objects]
        self._owner = np.repeat(np.arange(len(objects)), counts)[target]  # int64 [N], the image of a box
        self.classes = classes[target]  # int64 [N]
        boxes = torch.from_numpy(np.concatenate([item.boxes for item in objects])[target]).double()
        self.boxes = boxes.numpy()  # float64 [N, 4], in pixels of the files
        sizes = torch.tensor([frame.size for frame in frames], dtype=torch.float64).reshape(-1, 2)
        self.images = sizes.numpy()[self._owner]  # float64 [N, 2], width and height of the file
        seen = _seen(boxes, sizes, preprocessing, torch.from_numpy(self._owner))
        self.sizes = (
            seen.sizes.numpy()
        )  # float64 [N, 2], width and height of what the network sees, in its pixels
        self.inside = seen.inside.numpy()  # float64 [N], share of a box that is in its image
        self.seen = seen.share.numpy()  # float64 [N], share of that part that the network sees

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def faults(self) -> list[Fault]:
        """What boxes are lost to, each to one thing; the first that holds for a box."""
        made = (self._relative, self._outside, self._cut, self._small)
        lost = np.zeros(len(self), np.bool_)
        found = []
        for make in made:
            fault = make(~lost)
            lost = lost | fault.lost
            if fault.lost.any() or fault.partly.sum() > MANY * len(self):
                found.append(fault)
        return found

    @cached_property
    def lost(self) -> Mask:
        """Which boxes [N] the network never sees."""
        lost = np.zeros(len(self), np.bool_)
        for fault in self.faults:
            lost |= fault.lost
        return lost

    def counts(self, mask: Mask) -> list[int]:
        """Boxes by class."""
        found: list[int] = np.bincount(self.classes[mask], minlength=len(self.class_names)).tolist()
        return found

    def subject(self, mask: Mask) -> str:
        """Which boxes a sentence is about: how many of how many, by class."""
        counts, totals = self.counts(mask), self.counts(np.ones(len(self), np.bool_))
        named = sorted(
            (item for item in zip(counts, totals, self.class_names, strict=True) if item[0]), reverse=True
        )
        if len(named) == 1:
            count, total, name = named[0]
            return f"{_of(count, total)} {self.part} boxes of {name}"
        if mask.all():
            return f"all {len(self):,} {self.part} boxes of all classes"
        told = ", ".join(f"{name} {_of(count, total)}" for count, total, name in named[:NAMED])
        more = f" and {len(named) - NAMED} more classes" if len(named) > NAMED else ""
        return f"{int(mask.sum()):,} of {len(self):,} {self.part} boxes ({told}{more})"

    def smaller_than_a_cell(self) -> Iterator[str]:
        """Of the classes of which many boxes are so; of many such classes in one sentence."""
        small = ~self.lost & (self.sizes.prod(axis=1) < self.stride**2)
        counts = zip(self.counts(small), self.counts(np.ones(len(self), np.bool_)), strict=True)
        chosen = [number for number, (count, total) in enumerate(counts) if count > MANY * total]
        masks = [small & (self.classes == number) for number in chosen]
        if len(masks) > NAMED:
            masks = [small & np.isin(self.classes, chosen)]
        for mask in masks:
            yield (
                f"{self.subject(mask)} are smaller than a grid cell of {self.stride}x{self.stride} pixels: they are hard to tell"
                " apart; a larger output_image_width and output_image_height, or images cut in parts"
            )

    def in_the_corner(self) -> Iterator[str]:
        """Whether all boxes lie in the top left part of their images, as those do that were labelled on smaller ones."""
        if not len(self):
            return
        reach = (self.boxes[:, 2:] / self.images).max(axis=0)
        if (reach > CORNER).any() or len(np.unique(self.boxes, axis=0)) < CORNER_BOXES:
            return
        most = self.boxes[:, 2:].max()
        unit = "in percent" if most <= 100 else "in thousandths" if most <= 1000 else "of a smaller image"
        yield (
            f"all {len(self):,} {self.part} boxes lie in the top left {reach[0]:.0%} of the width and {reach[1]:.0%} of the"
            f" height of their images, none beyond pixel {most:.0f}: were the images made larger after labelling, or are the"
            f" coordinates {unit}? If so, multiply them {CONVERT}"
        )

    # The faults. Each looks at the boxes that no other has lost.

    def _relative(self, left: Mask) -> Fault:
        # From -1: those of Pascal VOC are counted from 1, and so one less here.
        is_relative = (
            left & ((self.boxes >= -1) & (self.boxes <= 1)).all(axis=1) & (self.images > 1).all(axis=1)
        )
        return Fault(
            is_relative,
            np.zeros_like(is_relative),
            "between 0 and 1",
            "they are shares of the image, as YOLO's labels are, not pixels; multiply x by the width and y by the height of"
            f" each image {CONVERT}",
        )

    def _outside(self, left: Mask) -> Fault:
        lost = left & (self.inside <= 0)
        partly = left & ~lost & (self.inside < PART)
        touched = lost | partly
        if not touched.any():
            return Fault(lost, partly, "", "")
        width, height = self.images[touched].T
        x1, y1, x2, y2 = self.boxes[touched].T
        number = int(touched.argmax())
        frame, box = self._frames[self._owner[number]], self.boxes[number]
        example = (
            f"{frame.frame_id} has {self.images[number][0]:.0f}x{self.images[number][1]:.0f} pixels, and a box from"
            f" {box[0]:.0f}, {box[1]:.0f} to {box[2]:.0f}, {box[3]:.0f}"
        )
        is_turned = (width != height) & (x2 <= height) & (y2 <= width) & (x1 >= 0) & (y1 >= 0)
        if is_turned.all():
            cause = "were the images turned by a quarter after labelling?"
        elif ((x2 <= 0) | (y2 <= 0)).all():
            cause = "their coordinates are negative: is the origin of the labels not the top left corner?"
        elif self._are_corners_for_sizes():
            cause = "are the labels x1, y1, x2 and y2, where x, y, width and height are meant?"
        else:
            cause = (
                f"boxes reach to {(x2 / width).max():.2g} times the width and {(y2 / height).max():.2g} times the height: were"
                " the images made smaller, or cut, after labelling?"
            )
        return Fault(
            lost,
            partly,
            "outside their image",
            f"{example}; {cause} Take images and labels of one size {CONVERT}",
        )

    def _are_corners_for_sizes(self) -> bool:
        """Whether all widths and heights would be right and bottom sides of boxes in their images."""
        start, size = self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]
        return bool(((size > start) & (size <= self.images)).all())

    def _cut(self, left: Mask) -> Fault:
        pre = self.preprocessing
        lost = left & (self.seen <= 0)
        partly = left & ~lost & (self.seen < PART)
        touched = lost | partly
        fixes = []
        if has_crop(pre):
            fixes.append("other crop_left, crop_top, crop_right and crop_bottom")
        if pre.scale_width > 1 or pre.scale_height > 1:
            fixes.append("a lower scale_width and scale_height")
        if not pre.enable_auto_resize:
            fixes += [
                "enable_auto_resize: true",
                "a larger output_image_width and output_image_height",
            ]
        width, height = self.images[touched].max(axis=0) if touched.any() else (0, 0)
        size = f"{pre.output_image_width}x{pre.output_image_height}"
        return Fault(
            lost,
            partly,
            f"outside the {size} pixels that the network sees",
            f"their images have up to {width:.0f}x{height:.0f}; {', or '.join(fixes)} in augmentation_config.preprocessing",
        )

    def _small(self, left: Mask) -> Fault:
        pre = self.preprocessing
        lost = left & (self.sizes < (pre.min_bbox_width, pre.min_bbox_height)).any(axis=1)
        width, height = self.sizes[lost].max(axis=0) if lost.any() else (0, 0)
        return Fault(
            lost,
            np.zeros_like(lost),
            "below min_bbox_width or min_bbox_height",
            f"these are {pre.min_bbox_width:g} and {pre.min_bbox_height:g} pixels, and such boxes at most {width:.3g} wide and"
            f" {height:.3g} high as the network sees them; lower both in augmentation_config.preprocessing, or take a larger"
            " output_image_width and output_image_height",
        )


def _of(count: int, total: int) -> str:
    return f"all {total:,}" if count == total else f"{count:,} of {total:,}"


class _Seen(NamedTuple):
    """What preprocessing leaves of N boxes."""

    sizes: Tensor  # [N, 2] width and height of what the network sees, in network pixels
    inside: Tensor  # [N] share of the box that is in its image
    share: Tensor  # [N] share of that part that the network sees


def _seen(
    boxes: Tensor, images: Tensor, preprocessing: AugmentationConfig.Preprocessing, owner: Tensor
) -> _Seen:
    """Of boxes [N, 4] in images of sizes [B, 2]; `owner` [N] is the image of a box."""
    matrices, regions = preprocessing_matrices(images, preprocessing)
    matrices, regions = matrices[owner], regions[owner]
    inside = _within(boxes, torch.cat((torch.zeros_like(images), images), dim=1)[owner])
    moved = transform(_within(inside, regions), matrices)
    moved = clip(moved, preprocessing.output_image_width, preprocessing.output_image_height)
    sizes = (moved[:, 2:] - moved[:, :2]).clamp(min=0)
    return _Seen(
        sizes, _share(area(inside), area(boxes)), _share(sizes.prod(dim=1), area(transform(inside, matrices)))
    )


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """[N], 0 where there is nothing."""
    return part / whole.where(whole > 0, 1.0)


def _within(boxes: Tensor, regions: Tensor) -> Tensor:
    """Boxes [N, 4] cut to regions [N, 4]; one outside becomes empty."""
    left_top = boxes[:, :2].maximum(regions[:, :2])
    right_bottom = boxes[:, 2:].minimum(regions[:, 2:]).maximum(left_top)
    return torch.cat((left_top, right_bottom), dim=1)

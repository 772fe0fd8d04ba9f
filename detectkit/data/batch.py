"""Decoded images and their labels, one (`Sample`) or stacked (`Batch`): what loading hands to augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectkit.data.labels import Objects
from detectkit.spec import AugmentationConfig


class Sample(NamedTuple):
    """A decoded image and its labels."""

    image: NDArray[np.uint8]  # [c, h, w], possibly reduced
    reduction: int  # original pixels a pixel of `image`, along each axis
    original_size: tuple[int, int]  # width, height of the image file, upright
    objects: Objects
    weight: float
    frame_id: str
    image_path: str
    turned: bool = False  # by the EXIF orientation of the file
    stretched: str = ""  # how its values were brought to 8 bits, see `images.Decoded`


class Batch(NamedTuple):
    """Samples stacked. B images, N labels in all, see `Objects`."""

    images: Tensor  # uint8 [B, c, h, w]; right of and below an image: its last pixels once more, then 0
    sizes: Tensor  # float32 [B, 2] width, height of the image in pixels of `images`
    original_sizes: Tensor  # float32 [B, 2] width, height of the image file, upright
    boxes: Tensor  # float32 [N, 4] x1 y1 x2 y2 in original pixels
    classes: Tensor  # int64 [N]
    names: list[str]
    truncation: Tensor  # float32 [N]
    occlusion: Tensor  # int64 [N]
    image_index: Tensor  # int64 [N], which of the B images a box is in
    weights: Tensor  # float32 [B]
    frame_ids: list[str]
    image_paths: list[str]
    turned: Sequence[bool] = ()  # B of them, or none
    stretched: Sequence[str] = ()


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples; see `Batch` for how images of different sizes are padded."""
    height, width = (max(sample.image.shape[axis] for sample in samples) for axis in (1, 2))
    images = np.zeros((len(samples), samples[0].image.shape[0], height, width), dtype=np.uint8)
    for target, sample in zip(images, samples):
        h, w = sample.image.shape[1:]
        target[:, :h, :w] = sample.image
        # Bilinear sampling at an image's edge reaches half a pixel over it, and must not find black there.
        target[:, h : h + 1, :w] = target[:, h - 1 : h, :w]
        target[:, : h + 1, w : w + 1] = target[:, : h + 1, w - 1 : w]
    objects = [sample.objects for sample in samples]
    counts = torch.tensor([len(item.names) for item in objects])
    original = torch.tensor([sample.original_size for sample in samples], dtype=torch.float32)
    return Batch(
        images=torch.from_numpy(images),
        sizes=original / torch.tensor([[sample.reduction] for sample in samples]),
        original_sizes=original,
        boxes=torch.from_numpy(np.concatenate([item.boxes for item in objects])),
        classes=torch.from_numpy(np.concatenate([item.classes for item in objects])),
        names=[name for item in objects for name in item.names],
        truncation=torch.from_numpy(np.concatenate([item.truncation for item in objects])),
        occlusion=torch.from_numpy(np.concatenate([item.occlusion for item in objects])),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        weights=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        frame_ids=[sample.frame_id for sample in samples],
        image_paths=[sample.image_path for sample in samples],
        turned=[sample.turned for sample in samples],
        stretched=[sample.stretched for sample in samples],
    )


def decode_size(config: AugmentationConfig) -> tuple[int, int] | None:
    """The (width, height) towards which images may be reduced while they are decoded; None: decode them in full.

    An image much larger than the network's input would otherwise be resampled with holes.
    """
    pre = config.preprocessing
    if not pre.enable_auto_resize or has_crop(pre):
        return None
    return pre.output_image_width, pre.output_image_height


def has_crop(pre: AugmentationConfig.Preprocessing) -> bool:
    """Whether the spec cuts a rectangle from the image (crop_* all 0: it does not)."""
    return pre.crop_right > pre.crop_left and pre.crop_bottom > pre.crop_top

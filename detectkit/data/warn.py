"""What of a data set is likely to disappoint: too few images or boxes, boxes that the network does not see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detectkit.data.augment import preprocessing_matrices
from detectkit.data.dataset import Dataset, Frame
from detectkit.errors import DataError
from detectkit.ops.boxes import clip, transform
from detectkit.spec import AugmentationConfig

FEW_IMAGES = 50  # the smallest set that was learnt well here had 119, with ImageNet's weights
FEW_BOXES = 20  # of a class: 34 were enough for each of four boards, with ImageNet's weights
RARE = 100  # boxes of the most frequent class for one of this: with 11 for one, blood cells, all classes were learnt
MANY_SMALL = 0.25  # share of a class's boxes: a few small ones are in every data set


class _Seen(NamedTuple):
    """The boxes of target classes as the network sees them without augmentation. N boxes."""

    classes: NDArray[np.int64]  # [N]
    sizes: NDArray[
        np.float64
    ]  # [N, 2] width and height of the visible part in network pixels; 0 where there is none


def warnings(
    training: Dataset,
    validation: Dataset | None,
    augmentation: AugmentationConfig,
    *,
    stride: int,
) -> list[str]:
    """One sentence for each thing that a training on these images cannot do well.

    Args:
        stride: network pixels of a grid cell.

    Raises:
        DataError: the network sees no training box of any class.
    """
    counts = _counts(training)
    found = [
        *_few(training),
        *_rare(training, counts),
        *_unseen(training, augmentation.preprocessing, boxes=sum(counts), stride=stride),
    ]
    if validation is not None:
        held_out = _counts(validation)
        empty = [name for name, count in zip(training.class_names, held_out) if not count]
        if empty:
            found.append(
                f"no validation box of class {', '.join(empty)}: no average precision, and no part in the mAP"
            )
    return found


def _counts(dataset: Dataset, frames: Iterable[Frame] | None = None) -> list[int]:
    """Boxes of each target class, in all images or in some."""
    classes = [frame.objects.classes for frame in (dataset.frames if frames is None else frames)]
    joined = np.concatenate(classes) if classes else np.zeros(0, np.int64)
    counts: list[int] = np.bincount(joined[joined >= 0], minlength=len(dataset.class_names)).tolist()
    return counts


def _distinct(frames: Iterable[Frame]) -> list[Frame]:
    """The images without the copies that num_duplicates made: nothing more is to be learnt from those."""
    found = {
        # Images in records have the shard for their path, and their copies may be in another one.
        (
            frame.source,
            frame.frame_id,
            frame.path if frame.shard is None else "",
            frame.objects.boxes.tobytes(),
        ): frame
        for frame in frames
    }
    return list(found.values())


def _few(training: Dataset) -> Iterator[str]:
    frames = _distinct(training.frames)
    if len(frames) < FEW_IMAGES:
        yield (
            f"{len(frames)} training images are few: what is learnt of them may be true of them alone; more images, or"
            " pretrained_model_file and augmentation"
        )
    named = zip(training.class_names, _counts(training, frames), strict=True)
    few = [f"{name} {count:,}" for name, count in named if count < FEW_BOXES]
    if few:
        yield (
            f"too few training boxes to learn a class from: {', '.join(few)}; label more (copies of an image count once)"
        )


def _rare(training: Dataset, counts: Sequence[int]) -> Iterator[str]:
    """Copies count: they weigh in the cost."""
    named = list(zip(training.class_names, counts, strict=True))
    largest, most = max(named, key=lambda pair: pair[1])
    rare = [f"{name} {count:,}" for name, count in named if RARE * count < most]
    if rare:
        yield (
            f"rare beside the {most:,} training boxes of {largest}: {', '.join(rare)}; rare classes weigh little in the cost:"
            " raise their class_weight, or copy their images (num_duplicates of sample_modifier_config)"
        )


def _unseen(
    training: Dataset, preprocessing: AugmentationConfig.Preprocessing, *, boxes: int, stride: int
) -> Iterator[str]:
    """Boxes that preprocessing cuts away or makes too small; `boxes` counts those of all target classes."""
    seen = _seen(training, preprocessing)
    least = preprocessing.min_bbox_width, preprocessing.min_bbox_height
    is_lost = ~((seen.sizes > 0) & (seen.sizes >= least)).all(axis=1)
    is_small = ~is_lost & (seen.sizes.prod(axis=1) < stride**2)
    size = f"{preprocessing.output_image_width}x{preprocessing.output_image_height}"
    why = f"outside the {size} pixels that the network sees, or below min_bbox_width or min_bbox_height"
    fix = "enable_auto_resize: true, or a larger output_image_width and output_image_height"
    if boxes and is_lost.sum() == boxes:
        raise DataError(f"all {boxes:,} training boxes of all classes are {why}: {fix}, or lower limits")
    for number, name in enumerate(training.class_names):
        own = seen.classes == number
        count, lost, small = int(own.sum()), int((own & is_lost).sum()), int((own & is_small).sum())
        if count and lost == count:
            yield f"all {count:,} training boxes of {name} are {why}, so it is not learnt: {fix}, or lower limits"
        elif lost > MANY_SMALL * count:
            yield f"{lost:,} of {count:,} training boxes of {name} are {why}: {fix}"
        if small > MANY_SMALL * count:
            yield (
                f"{small:,} of {count:,} training boxes of {name} are smaller than a grid cell of {stride}x{stride} pixels: they"
                " are hard to tell apart; a larger output_image_width and output_image_height, or images cut in parts"
            )


def _seen(dataset: Dataset, preprocessing: AugmentationConfig.Preprocessing) -> _Seen:
    frames = [
        frame for frame in dataset.frames if frame.size is not None and (frame.objects.classes >= 0).any()
    ]
    if not frames:
        return _Seen(np.zeros(0, np.int64), np.zeros((0, 2)))
    sizes = torch.tensor([frame.size for frame in frames], dtype=torch.float64)
    matrices, regions = preprocessing_matrices(sizes, preprocessing)
    kept = [frame.objects.classes >= 0 for frame in frames]
    owner = torch.repeat_interleave(torch.tensor([int(mask.sum()) for mask in kept]))
    boxes = torch.from_numpy(
        np.concatenate([frame.objects.boxes[mask] for frame, mask in zip(frames, kept, strict=True)])
    ).double()
    visible = regions[owner]
    left_top = boxes[:, :2].maximum(visible[:, :2])
    right_bottom = boxes[:, 2:].minimum(visible[:, 2:]).maximum(left_top)
    moved = transform(torch.cat((left_top, right_bottom), dim=1), matrices[owner])
    moved = clip(moved, preprocessing.output_image_width, preprocessing.output_image_height)
    classes = np.concatenate([frame.objects.classes[mask] for frame, mask in zip(frames, kept, strict=True)])
    return _Seen(classes, (moved[:, 2:] - moved[:, :2]).clamp(min=0).numpy())

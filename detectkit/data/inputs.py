"""What a network sees of a data set when it is not trained: the images alone, without augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from detectkit.data.augment import prepare
from detectkit.data.dataset import Dataset
from detectkit.data.workers import loader
from detectkit.spec import Experiment


def inputs(
    images: Dataset, experiment: Experiment, *, order: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    """The images that `order` names, in batches [B, c, H, W] float32 in [0, 1] on the CPU, decoded on the spec's workers.

    Raises:
        DataError: an image cannot be used, or a worker died.
    """
    augmentation = experiment.augmentation_config
    batches = loader(
        images,
        augmentation,
        batch_size=batch_size,
        order=order,
        workers=experiment.training_config.workers,
    )
    for batch in batches:
        yield prepare(batch, augmentation, generator=None, device="cpu").images


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers 0 to `total` - 1, ascending and evenly spread, the same ones every time; count <= total."""
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]

"""Write what the network sees: augmented training images with their boxes, and the coverage targets over them.

Labels that are no target, DontCare among them, are grey.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import add_spec_argument
from detectkit.console import progress, say
from detectkit.errors import UsageError
from detectkit.files import atomic_write, make_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from detectkit.data.augment import Labels

BATCH_SIZE = 4
SHEET_COLUMNS = 4
GREY = (160, 160, 160)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec")
    parser.add_argument(
        "-o", "--output_dir", required=True, type=Path, metavar="DIR", help="where pictures go"
    )
    parser.add_argument("-n", "--num_images", default=16, type=int, metavar="N", help="how many (16)")


def run(args: argparse.Namespace) -> None:
    from detectkit import draw

    if args.num_images < 1:
        raise UsageError(f"-n must be at least 1, got {args.num_images}")
    experiment = spec.load_experiment(args.experiment_spec)
    pictures: list[Image] = []
    seen = _pictures(experiment, args.num_images)
    for name, picture in progress(seen, total=args.num_images, label="visualize", unit="images"):
        make_directory(args.output_dir)
        with atomic_write(args.output_dir / f"{len(pictures):03d}_{name}.png") as path:
            picture.save(path, format="PNG")
        pictures.append(picture)
    with atomic_write(args.output_dir / "overview.png") as path:
        draw.sheet(pictures, columns=SHEET_COLUMNS).save(path, format="PNG")
    say(
        f"wrote {len(pictures)} pictures and overview.png to {args.output_dir}: boxes, and coverage targets as tinted cells"
    )
    say(f"next: detectkit train -e {args.experiment_spec} -r RESULTS_DIR")


def _pictures(experiment: spec.Experiment, count: int) -> Iterator[tuple[str, Image]]:
    """Yield (name, picture) of `count` training images, chosen and augmented as the spec's random_seed says."""
    import numpy as np
    import torch

    from detectkit import draw
    from detectkit.data.augment import prepare
    from detectkit.data.records import training_frames
    from detectkit.data.workers import loader, training_order
    from detectkit.heads import make_head
    from detectkit.model.detector import outline_of

    augmentation, seed = experiment.augmentation_config, experiment.random_seed
    channels = augmentation.preprocessing.output_image_channel
    head = make_head(experiment, outline_of(experiment.model_config, spec.class_names(experiment), channels))
    colors = draw.class_colors(len(head.class_names))
    training = training_frames(experiment.dataset_config, head.class_names)
    order = training_order(training.groups(), 1, seed=seed, epoch=0)[:count]
    generator = torch.Generator().manual_seed(seed)
    batches = loader(training, augmentation, batch_size=BATCH_SIZE, order=order, workers=0)
    for batch in batches:
        prepared = prepare(batch, augmentation, generator=generator, device="cpu")
        coverage = head.coverage(head.targets(prepared)).numpy()
        pixels = (prepared.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for index, frame_id in enumerate(batch.frame_ids):
            own = prepared.labels.image_index == index
            classes = prepared.labels.classes[own].tolist()
            tinted = draw.overlay(pixels[index], coverage[index], colors=colors)
            boxes, names = _others(prepared.others, index)
            picture = draw.annotate(
                np.asarray(tinted),
                np.concatenate([boxes, prepared.labels.boxes[own].numpy()]),
                labels=[*names, *(head.class_names[number] for number in classes)],
                colors=[GREY] * len(names) + [colors[number] for number in classes],
            )
            yield Path(frame_id).name, picture


def _others(others: Labels, index: int) -> tuple[NDArray[np.float32], list[str]]:
    """Boxes [n, 4] and names of the labels of an image that are of no target class."""
    own = (others.image_index == index).tolist()
    return others.boxes[own].numpy(), [name for name, is_own in zip(others.names, own) if is_own]

"""Pictures, records and specs of a few images, and the ways to read them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image

from detectkit.data.batch import Batch
from detectkit.data.dataset import Dataset
from detectkit.data.records import training_frames, validation_frames
from detectkit.data.tfrecord import Record, encode, write_shard
from detectkit.data.workers import loader
from detectkit.spec import AugmentationConfig, DatasetConfig

MAPPING = 'target_class_mapping { key: "car" value: "vehicle" } target_class_mapping { key: "person" value: "person" }'
CLASSES = ["person", "vehicle"]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that JPEG keeps it: a gradient with an offset."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2 + seed % 50], axis=2).astype(np.uint8))


def record(
    frame_id: str, *, size: tuple[int, int] = (40, 30), names: tuple[str, ...] = ("car",), **kwargs: object
) -> Record:
    boxes = np.array([[1 + i, 2, 11 + i, 22] for i in range(len(names))], dtype=np.float32).reshape(-1, 4)
    zeros = np.zeros(len(names))
    return Record(
        frame_id, *size, list(names), boxes, zeros.astype(np.float32), zeros.astype(np.int64), **kwargs  # type: ignore[arg-type]
    )


def make(root: Path, shards: dict[str, list[Record]], *, images: bool = True) -> Path:
    """Write shards under root/records and an image for every record that does not embed one."""
    (root / "records").mkdir(parents=True, exist_ok=True)
    seeds = itertools.count()
    for name, records in shards.items():
        write_shard(root / "records" / name, [encode(item) for item in records])
        for item in records:
            path = root / f"{item.frame_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if images and item.image is None:
                picture(item.width, item.height, seed=next(seeds)).save(path)
    return root


def config(root: Path, rest: str = "", *, pattern: str = "*", mapping: str = MAPPING) -> DatasetConfig:
    source = f'data_sources {{ tfrecords_path: "{root}/records/{pattern}" image_directory_path: "{root}" }}'
    return text_format.Parse(f"{source} {mapping} {rest}", DatasetConfig())


def read(both: DatasetConfig) -> tuple[Dataset, Dataset]:
    """What a spec trains on and what it measures on."""
    validation = validation_frames(both, CLASSES)
    assert validation is not None
    return training_frames(both, CLASSES), validation


def augmentation(channels: int = 3) -> AugmentationConfig:
    """Of a spec that leaves images in their size."""
    size = {"output_image_width": 64, "output_image_height": 32}
    return AugmentationConfig(preprocessing={**size, "output_image_channel": channels})  # type: ignore[arg-type]


def load_all(dataset: Dataset, *, channels: int = 3, **arguments: object) -> list[Batch]:
    settings = {"batch_size": 2, "order": range(len(dataset)), "workers": 0, **arguments}
    return list(loader(dataset, augmentation(channels), **settings))  # type: ignore[arg-type]

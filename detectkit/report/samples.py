"""The data of a run: how many boxes of each class, how large they are, and what the images look like."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectkit import draw, spec
from detectkit.data.batch import has_crop
from detectkit.data.dataset import Dataset
from detectkit.data.records import training_frames, validation_frames
from detectkit.errors import DataError
from detectkit.model.detector import outline_of
from detectkit.page import Html, joined, picture, swatch
from detectkit.report import charts

AT_MOST = 5000  # images whose records are read of each part
IMAGES = 6
WIDTH = 480  # pixels of a sample image
QUALITY = 80  # of JPEG
CLASSES = 10  # shown in charts, the most frequent ones
TRAINING, VALIDATION = ("training", "s7"), ("validation", "ink")


class SampledImages(NamedTuple):
    """The training or the validation images, or an even sample of them."""

    images: int  # all there are
    read: int  # of them
    counts: list[int]  # boxes by class
    sizes: list[NDArray[np.float64]]  # by class, square roots of the boxes' areas in network pixels


class Data(NamedTuple):
    """What the records of a spec hold."""

    class_names: list[str]  # the most frequent CLASSES
    left_out: int  # other classes
    training: SampledImages
    validation: SampledImages | None
    samples: list[Html]  # figures
    stride: int  # network pixels of a grid cell, the finest


def read(experiment: spec.Experiment) -> Data:
    """Read the records, evenly spaced ones of many, and open a few images.

    Raises:
        DataError: there are no records yet, they are damaged, or images are missing.
        SpecError: `model_config` names no network.
    """
    names = spec.class_names(experiment)
    config = experiment.dataset_config
    channels = experiment.augmentation_config.preprocessing.output_image_channel
    training = training_frames(config, names, at_most=AT_MOST)
    validation = validation_frames(config, names, at_most=AT_MOST)
    part = _part(training, experiment)
    chosen = sorted(np.argsort([-count for count in part.counts], kind="stable")[:CLASSES].tolist())
    return Data(
        class_names=[names[at] for at in chosen],
        left_out=len(names) - len(chosen),
        training=_some(part, chosen),
        validation=_some(_part(validation, experiment), chosen) if validation else None,
        samples=_samples(training, names),
        stride=outline_of(experiment.model_config, names, channels).levels[0].stride,
    )


def counted(data: Data) -> Html:
    """Boxes by class as a chart."""
    groups = [(*TRAINING, data.training.counts)]
    if data.validation:
        groups.append((*VALIDATION, data.validation.counts))
    told = "; ".join(
        f"{name}: {', '.join(f'{counts[at]} {group}' for group, _, counts in groups)}"
        for at, name in enumerate(data.class_names)
    )
    return charts.bars(
        data.class_names, groups, title="Boxes by class", alt=f"Bars of boxes by class. {told}."
    )


def sizes(data: Data) -> Html:
    """The sizes of the boxes as a chart."""
    none = [np.zeros(0)] * len(data.class_names)
    others = data.validation.sizes if data.validation else none
    rows = [charts.Histogram(*row) for row in zip(data.class_names, data.training.sizes, others, strict=True)]
    medians = ", ".join(f"{row.name} {np.median(row.first):.0f}" for row in rows if len(row.first))
    return charts.histograms(
        rows,
        groups=(TRAINING, VALIDATION),
        mark=(data.stride, f"grid cell, {data.stride} px"),
        title="Sizes of the boxes, as shares of them",
        alt=f"Histograms of the square root of the boxes' area in network pixels; medians: {medians}.",
        x_label="√area, pixels of the network",
    )


def key(data: Data, names: list[str]) -> Html:
    """The colours of the classes in the sample images."""
    colors = dict(zip(names, draw.class_colors(len(names))))
    parts = [joined(swatch("#%02x%02x%02x" % colors[name]), name + "\u2003") for name in data.class_names]
    return joined(*parts)


def _some(part: SampledImages, chosen: list[int]) -> SampledImages:
    return part._replace(counts=[part.counts[at] for at in chosen], sizes=[part.sizes[at] for at in chosen])


def _part(dataset: Dataset, experiment: spec.Experiment) -> SampledImages:
    found: list[list[NDArray[np.float64]]] = [[] for _ in dataset.class_names]
    for frame in dataset.frames:
        width_height = frame.objects.boxes[:, 2:] - frame.objects.boxes[:, :2]
        own = np.sqrt(width_height.astype(np.float64).prod(axis=1)) * _scale(frame.size, experiment)
        for number, kept in enumerate(found):
            kept.append(own[frame.objects.classes == number])
    all_sizes = [np.concatenate(kept) if kept else np.zeros(0) for kept in found]
    return SampledImages(dataset.total, len(dataset), [len(own) for own in all_sizes], all_sizes)


def _scale(size: tuple[int, int] | None, experiment: spec.Experiment) -> float:
    """Network pixels a pixel of the file, the mean of both axes."""
    pre = experiment.augmentation_config.preprocessing
    if size is None or not pre.enable_auto_resize:
        return 1.0
    width, height = size
    if has_crop(pre):
        width, height = pre.crop_right - pre.crop_left, pre.crop_bottom - pre.crop_top
    if not width or not height:
        return 1.0
    return float(np.sqrt(pre.output_image_width / width * pre.output_image_height / height))


def _samples(dataset: Dataset, names: list[str]) -> list[Html]:
    """Evenly spaced images with their boxes; those that cannot be read are left out."""
    most = min(IMAGES, len(dataset))
    colors = draw.class_colors(len(names))
    figures = []
    for index in (np.arange(most) * len(dataset) // max(most, 1)).tolist():
        try:
            sample = dataset.sample(index, channels=3)
        except DataError:
            continue
        own = sample.objects.classes >= 0
        boxes, classes = sample.objects.boxes[own], sample.objects.classes[own]
        image = sample.image.transpose(1, 2, 0)
        whole = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
        shown, moved = draw.cut(image, whole, boxes, context=1.0, least=1, side=WIDTH)
        annotated = draw.annotate(
            shown, moved, labels=[""] * len(boxes), colors=[colors[number] for number in classes]
        )
        count = f"{len(boxes)} {'box' if len(boxes) == 1 else 'boxes'}"
        figures.append(
            picture(
                draw.jpeg(annotated, quality=QUALITY),
                f"{sample.frame_id} · {count}",
                alt=f"Training image {sample.frame_id}, labelled: {count}",
            )
        )
    return figures

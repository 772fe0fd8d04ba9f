"""What is written of detections: KITTI label files and annotated pictures, in the pixels of the image files."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from detectkit import spec
from detectkit.data import images
from detectkit.data.formats import FORMAT_OF
from detectkit.data.kitti import write_detections
from detectkit.detect.predictor import Asked
from detectkit.draw import annotate, class_colors, screens
from detectkit.errors import SpecError
from detectkit.files import atomic_write
from detectkit.ops.cluster import Detections
from detectkit.predict import Predicted

WRITERS = 4  # threads


class ClassStyle(NamedTuple):
    """How one class is written."""

    label: str
    color: tuple[int, int, int]


class ResultFormat(NamedTuple):
    """What is written, as the spec says."""

    styles: dict[int, ClassStyle]  # by class number; a class without one is left out
    labels: bool
    images: bool
    line_width: int
    is_scaled: bool  # whether lines are wider in images that are larger than a screen
    kept: bool = False  # images are drawn for somebody else, written or not


class ImageResult(NamedTuple):
    """What became of one image."""

    name: str
    detections: int
    picture: Image | None  # where the format says that it is kept
    reduced: bool  # whether the picture has fewer pixels than the image


def result_format(message: Asked, class_names: list[str]) -> ResultFormat:
    """Of a training spec: every class, in files and pictures; an inference spec says it.

    Raises:
        SpecError: an inference spec names a class that is not there, or has no entry for one.
    """
    colors = class_colors(len(class_names))
    if isinstance(message, spec.Experiment):
        styles = {number: ClassStyle(name, colors[number]) for number, name in enumerate(class_names)}
        return ResultFormat(styles, labels=True, images=True, line_width=2, is_scaled=True)
    handler = message.bbox_handler_config
    chosen = list(handler.postproc_classes) or class_names
    unknown = [name for name in chosen if name not in class_names]
    if unknown:
        raise SpecError(
            f"bbox_handler_config.postproc_classes: the model does not detect {', '.join(unknown)}"
        )
    classwise = handler.classwise_bbox_handler_config
    styles = {
        number: _style(name, classwise, colors[number])
        for number, name in enumerate(class_names)
        if name in chosen
    }
    return ResultFormat(
        styles,
        labels=handler.kitti_dump,
        images=not handler.disable_overlay,
        line_width=max(handler.overlay_linewidth, 1),
        is_scaled=not handler.HasField("overlay_linewidth"),
        kept=handler.wandb_config.enabled,
    )


def _style(
    name: str, classwise: Mapping[str, spec.ClasswiseBboxHandlerConfig], color: tuple[int, int, int]
) -> ClassStyle:
    key = spec.entry_of(classwise, name)
    if key is None:
        raise SpecError(
            f'bbox_handler_config.classwise_bbox_handler_config has no entry "{name}" and no "default"'
        )
    config = classwise[key]
    if config.HasField("bbox_color"):
        color = (config.bbox_color.R, config.bbox_color.G, config.bbox_color.B)
    return ClassStyle(config.output_map or name, color)


def result_folders(results: Path, form: ResultFormat) -> dict[str, Path]:
    """Where results go, by kind; the first file makes its folder."""
    wanted = {"labels": form.labels, "images_annotated": form.images}
    return {name: results / name for name, is_wanted in wanted.items() if is_wanted}


def write_results(
    batches: Iterable[Predicted], form: ResultFormat, folders: Mapping[str, Path]
) -> Iterator[ImageResult]:
    """Write the files of every image on threads, while the network goes on; what was written comes in order.

    Raises:
        OutputError: a file cannot be written.
    """
    pool = ThreadPoolExecutor(WRITERS)
    under_way: deque[Future[ImageResult]] = deque()
    try:
        for predicted in batches:
            ids, paths = predicted.batch.frame_ids, predicted.batch.image_paths
            for name, path, detections in zip(ids, paths, predicted.in_original_pixels(), strict=True):
                under_way.append(
                    pool.submit(_write, name, Path(path), detections, form=form, folders=folders)
                )
            while len(under_way) > 2 * len(paths):
                yield under_way.popleft().result()
        for future in under_way:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    name: str, path: Path, detections: Detections, *, form: ResultFormat, folders: Mapping[str, Path]
) -> ImageResult:
    """Draw, and write the files of one image, whose path below a folder of results is `name`, without extension."""
    rows = [
        (form.styles[number], box, score)
        for box, score, number in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist()
        )
        if number in form.styles
    ]
    if "labels" in folders:
        lines = [(style.label, box, score) for style, box, score in rows]
        write_detections(folders["labels"] / f"{name}.txt", lines)
    if not (form.images or form.kept):
        return ImageResult(path.name, len(rows), None, reduced=False)
    picture, reduction = _annotated(path, rows, form)
    if "images_annotated" in folders:
        _save(picture, name, path, folders["images_annotated"])
    return ImageResult(path.name, len(rows), picture if form.kept else None, reduction > 1)


def _annotated(
    path: Path, rows: list[tuple[ClassStyle, list[float], float]], form: ResultFormat
) -> tuple[Image, int]:
    """The image with its boxes, and by how much it is reduced along each axis: a large one would take gigabytes."""
    with images.open_image(str(path), name=str(path)) as image:
        width, height, _ = images.upright_size(image)
        factor = math.ceil(math.sqrt(width * height / images.LARGE))
        decoded = images.decode(
            image,
            channels=3,
            target_size=(max(width // factor, 1), max(height // factor, 1)) if factor > 1 else None,
            name=str(path),
        )
    pixels = np.ascontiguousarray(decoded.pixels.transpose(1, 2, 0))
    scale = screens(pixels.shape[1], pixels.shape[0]) if form.is_scaled else 1
    boxes = np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4)
    picture = annotate(
        pixels,
        boxes / decoded.reduction,
        labels=[f"{style.label} {score:.2f}" for style, _, score in rows],
        colors=[style.color for style, _, _ in rows],
        line_width=round(form.line_width * scale),
    )
    return picture, decoded.reduction


def _save(picture: Image, name: str, path: Path, folder: Path) -> None:
    """Write the annotated picture of the image at `path` as `name`, in the format of its extension."""
    # Files that are no image by their name, such as one given by itself, may be of a format that cannot be written.
    is_known = path.suffix.lower() in FORMAT_OF
    target = folder / (f"{name}{path.suffix}" if is_known else f"{path.name}.png")
    with atomic_write(target) as temporary:
        picture.save(temporary, format=FORMAT_OF[target.suffix.lower()])

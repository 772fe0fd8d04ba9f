"""Detect objects in images: KITTI label files and annotated images, in the pixels of the images."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detectkit import spec
from detectkit.commands.options import add_device_arguments, add_spec_argument, choose_device
from detectkit.console import ProgressBar, log, say
from detectkit.errors import DataError, SpecError, UsageError
from detectkit.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

    from detectkit.data.dataset import Batch, Frame
    from detectkit.ops.cluster import Detections
    from detectkit.predict import Predicted, Predictor
    from detectkit.runtimes import Network
    from detectkit.trackers import Tracker

WRITERS = 4


class Style(NamedTuple):
    """How one class is written."""

    label: str
    color: tuple[int, int, int]


class Output(NamedTuple):
    """What is written, as the spec says."""

    styles: dict[int, Style]  # by class number; a class without one is left out
    labels: bool
    images: bool
    line_width: int
    is_scaled: bool  # whether lines are wider in images that are larger than a screen
    kept: bool = False  # images are drawn for somebody else, written or not


class Written(NamedTuple):
    """What became of one image."""

    name: str
    detections: int
    picture: Image | None  # where the output says that it is kept
    reduced: bool  # whether the picture has fewer pixels than the image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, required=False, help="an inference or a training spec (the one in the model)")
    parser.add_argument(
        "-i", "--image_dir", required=True, type=Path, metavar="IMAGES", help="a folder, or one image"
    )
    parser.add_argument(
        "-r", "--results_dir", required=True, type=Path, metavar="DIR", help="where results go"
    )
    parser.add_argument(
        "-m", "--model_path", type=Path, metavar="MODEL", help="instead of the one in the spec"
    )
    parser.add_argument("-b", "--batch_size", type=int, metavar="N", help="instead of the one in the spec")
    parser.add_argument("--verbosity", action="store_true", dest="verbose", help=argparse.SUPPRESS)
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    given = spec.load(args.experiment_spec) if args.experiment_spec else None
    if isinstance(given, spec.DatasetExportConfig):
        raise SpecError(
            f"{args.experiment_spec} is a conversion spec: infer takes an inference or a training spec"
        )

    from detectkit.data.dataset import image_files, loader
    from detectkit.data.images import LARGE, TURNED

    predictor, message = _predictor(args, given)
    output = _output(message, predictor.class_names)
    batch_size = _batch_size(message) if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise UsageError(f"-b must be at least 1, got {batch_size}")
    own = [args.results_dir / name for name in ("images_annotated", "wandb")]  # of an earlier call
    images = image_files(args.image_dir, without=own)
    _require_own_names(images.frames)
    deep = sum("/" in frame.frame_id for frame in images.frames)
    if deep:
        log.info(f"{deep} of {len(images)} images are in sub-folders: their results are in sub-folders too")

    def load(order: Sequence[int], workers: int) -> Iterator[Batch]:
        return loader(images, predictor.augmentation, batch_size=batch_size, order=order, workers=workers)

    skipped: list[DataError] = []
    batches = _readable(load, len(images), batch_size, skipped)
    folders = _folders(args.results_dir, output)
    found = reduced = 0
    with (
        ProgressBar("detecting", total=len(images), unit="images") as bar,
        _tracker(message, args.results_dir) as tracker,
    ):
        for number, written in enumerate(_written(predictor.batches(batches), output, folders)):
            found += written.detections
            reduced += written.reduced
            if tracker and written.picture:
                tracker.images({"images_annotated": [written.picture]}, number, captions=[written.name])
            bar.advance()
    places = (
        " and ".join(str(folder) for folder in folders.values()) or "nothing: the spec turns both outputs off"
    )
    say(f"{found} detections in {len(images) - len(skipped)} images")
    if len(skipped) < len(images):
        say(f"wrote {places}")
    if predictor.seen.turned:
        say(f"{predictor.seen.turned} {TURNED}: boxes and annotated images are in those pixels")
    predictor.seen.warn_of_larger()
    if reduced:
        say(f"{reduced} annotated pictures are reduced: the images have more than {LARGE:,} pixels")
    if skipped:
        raise DataError(f"{len(skipped)} of {len(images)} images were skipped; the first: {skipped[0]}")


def _written(batches: Iterable[Predicted], output: Output, folders: Mapping[str, Path]) -> Iterator[Written]:
    """Write the files of every image on threads, while the network goes on; what was written comes in order."""
    pool = ThreadPoolExecutor(WRITERS)
    under_way: deque[Future[Written]] = deque()
    try:
        for predicted in batches:
            ids, paths = predicted.batch.frame_ids, predicted.batch.image_paths
            for name, path, detections in zip(ids, paths, predicted.in_original_pixels(), strict=True):
                under_way.append(
                    pool.submit(_write, name, Path(path), detections, output=output, folders=folders)
                )
            while len(under_way) > 2 * len(paths):
                yield under_way.popleft().result()
        for future in under_way:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _readable(
    load: Callable[[Sequence[int], int], Iterator[Batch]],
    count: int,
    batch_size: int,
    skipped: list[DataError],
) -> Iterator[Batch]:
    """Batches of images 0 to `count` without those that cannot be read, which go to `skipped` with a warning.

    Args:
        load: the batches of an order of images on a number of workers; raises DataError at a batch it cannot give.
    """
    start = 0
    while start < count:
        try:
            for batch in load(range(start, count), 1):
                yield batch
                start += batch_size
        except DataError:  # in the batch from `start`: take its images one by one, then go on behind them
            stop, before = min(start + batch_size, count), len(skipped)
            for index in range(start, stop):
                try:
                    yield from load([index], 0)
                except DataError as error:
                    log.warning(f"skipped: {error}")
                    skipped.append(error)
            if len(skipped) == before:
                raise  # of the loading, not of an image
            start = stop


def _require_own_names(frames: Sequence[Frame]) -> None:
    """One label file an image: no two images may differ in their extension only."""
    seen: dict[str, str] = {}
    for frame in frames:
        first = seen.setdefault(frame.frame_id, frame.path)
        if first != frame.path:
            raise DataError(
                f"{first} and {frame.path} would both be labelled in {frame.frame_id}.txt: rename or remove one"
            )


def _predictor(
    args: argparse.Namespace, given: spec.Inference | spec.Experiment | None
) -> tuple[Predictor, spec.Inference | spec.Experiment]:
    """What detects, and the spec that says how: the one that was given, or the model's own."""
    from detectkit.heads import ClassClustering
    from detectkit.predict import make_predictor
    from detectkit.runtimes import load

    device = choose_device(args)
    if not isinstance(given, spec.Inference):
        if args.model_path is None:
            raise UsageError("give the model: -m MODEL")
        network = load(args.model_path, device, experiment=given)
        experiment = spec.spec_to_use(given, network.spec, network.file)
        return make_predictor(network, experiment, device), experiment
    config = given.inferencer_config
    named = config.tlt_config.model or config.tensorrt_config.trt_engine
    path = args.model_path or (Path(named).expanduser() if named else None)
    if path is None:
        raise UsageError(
            "give the model: -m MODEL, or in the spec tlt_config { model: … } or tensorrt_config { trt_engine: … }"
        )
    classwise = given.bbox_handler_config.classwise_bbox_handler_config
    network = load(path, device)
    predictor = make_predictor(
        network,
        _resized(network, config),
        device,
        clustering={
            name: ClassClustering(item.clustering_config, item.confidence_threshold, item.confidence_model)
            for name, item in classwise.items()
        },
    )
    return predictor, given


def _resized(network: Network, config: spec.InferencerConfig) -> spec.Experiment:
    """The model's spec for images of an inference spec's size: resized, as TLT does, whatever the training did."""
    if list(config.target_classes or network.class_names) != network.class_names:
        raise SpecError(
            f"inferencer_config.target_classes: {network.file} detects {', '.join(network.class_names)}, in this order"
        )
    multiple, channels = network.outline.multiple, network.channels
    if config.image_width % multiple or config.image_height % multiple:
        raise SpecError(
            f"inferencer_config: image_width and image_height must be multiples of the network's stride {multiple},"
            f" got {config.image_width}x{config.image_height}"
        )
    if config.image_channels != channels:
        raise SpecError(f"inferencer_config.image_channels: {network.file} takes {channels}")
    resized = copy.deepcopy(network.spec)
    preprocessing = spec.AugmentationConfig.Preprocessing(
        output_image_width=config.image_width,
        output_image_height=config.image_height,
        output_image_channel=channels,
        enable_auto_resize=True,
    )
    resized.augmentation_config.preprocessing.CopyFrom(preprocessing)
    return resized


def _batch_size(message: spec.Inference | spec.Experiment) -> int:
    if isinstance(message, spec.Experiment):
        return spec.batch_size(message)
    return message.inferencer_config.batch_size


def _output(message: spec.Inference | spec.Experiment, class_names: list[str]) -> Output:
    from detectkit.draw import class_colors

    colors = class_colors(len(class_names))
    if isinstance(message, spec.Experiment):
        styles = {number: Style(name, colors[number]) for number, name in enumerate(class_names)}
        return Output(styles, labels=True, images=True, line_width=2, is_scaled=True)
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
    return Output(
        styles,
        labels=handler.kitti_dump,
        images=not handler.disable_overlay,
        line_width=max(handler.overlay_linewidth, 1),
        is_scaled=not handler.HasField("overlay_linewidth"),
        kept=handler.wandb_config.enabled,
    )


def _style(
    name: str, classwise: Mapping[str, spec.ClasswiseBboxHandlerConfig], color: tuple[int, int, int]
) -> Style:
    key = name if name in classwise else "default"
    if key not in classwise:
        raise SpecError(
            f'bbox_handler_config.classwise_bbox_handler_config has no entry "{name}" and no "default"'
        )
    config = classwise[key]
    if config.HasField("bbox_color"):
        color = (config.bbox_color.R, config.bbox_color.G, config.bbox_color.B)
    return Style(config.output_map or name, color)


def _folders(results: Path, output: Output) -> dict[str, Path]:
    """Where results go, by kind; the first file makes its folder."""
    wanted = {"labels": output.labels, "images_annotated": output.images}
    return {name: results / name for name, is_wanted in wanted.items() if is_wanted}


def _write(
    name: str, path: Path, detections: Detections, *, output: Output, folders: Mapping[str, Path]
) -> Written:
    """Draw, and write the files of one image, whose path below a folder of results is `name`, without extension."""
    from detectkit.data.kitti import write_detections

    rows = [
        (output.styles[number], box, score)
        for box, score, number in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist()
        )
        if number in output.styles
    ]
    if "labels" in folders:
        lines = [(style.label, box, score) for style, box, score in rows]
        write_detections(folders["labels"] / f"{name}.txt", lines)
    if not (output.images or output.kept):
        return Written(path.name, len(rows), None, reduced=False)
    picture, reduction = _annotated(path, rows, output)
    if "images_annotated" in folders:
        _save(picture, name, path, folders["images_annotated"])
    return Written(path.name, len(rows), picture if output.kept else None, reduction > 1)


def _annotated(path: Path, rows: list[tuple[Style, list[float], float]], output: Output) -> tuple[Image, int]:
    """The image with its boxes, and by how much it is reduced along each axis: a large one would take gigabytes."""
    import numpy as np

    from detectkit.data.images import LARGE, decode, open_image, upright_size
    from detectkit.draw import annotate, screens

    with open_image(str(path), name=str(path)) as image:
        width, height, _ = upright_size(image)
        factor = math.ceil(math.sqrt(width * height / LARGE))
        decoded = decode(
            image,
            channels=3,
            target_size=(max(width // factor, 1), max(height // factor, 1)) if factor > 1 else None,
            name=str(path),
        )
    pixels = np.ascontiguousarray(decoded.pixels.transpose(1, 2, 0))
    scale = screens(pixels.shape[1], pixels.shape[0]) if output.is_scaled else 1
    boxes = np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4)
    picture = annotate(
        pixels,
        boxes / decoded.reduction,
        labels=[f"{style.label} {score:.2f}" for style, _, score in rows],
        colors=[style.color for style, _, _ in rows],
        line_width=round(output.line_width * scale),
    )
    return picture, decoded.reduction


def _save(picture: Image, name: str, path: Path, folder: Path) -> None:
    """Write the annotated picture of the image at `path` as `name`, in the format of its extension."""
    from detectkit.data.formats import FORMAT_OF

    # Files that are no image by their name, such as one given by itself, may be of a format that cannot be written.
    is_known = path.suffix.lower() in FORMAT_OF
    target = folder / (f"{name}{path.suffix}" if is_known else f"{path.name}.png")
    with atomic_write(target) as temporary:
        picture.save(temporary, format=FORMAT_OF[target.suffix.lower()])


@contextlib.contextmanager
def _tracker(message: spec.Inference | spec.Experiment, results: Path) -> Iterator[Tracker | None]:
    """Weights & Biases, where an inference spec asks for it."""
    from detectkit.trackers import wandb_tracker

    if isinstance(message, spec.Experiment) or not message.bbox_handler_config.wandb_config.enabled:
        yield None
        return
    with contextlib.closing(
        wandb_tracker(message.bbox_handler_config.wandb_config, message, results)
    ) as tracker:
        yield tracker

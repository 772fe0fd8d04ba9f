"""Detect objects in images: KITTI label files and annotated images, in the pixels of the images."""

from __future__ import annotations

import argparse
import contextlib
import copy
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

    from detectkit.data.dataset import Batch
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
    kept: bool = False  # images are drawn for somebody else, written or not


class Written(NamedTuple):
    """What became of one image."""

    name: str
    detections: int
    picture: Image | None  # where the output says that it is kept


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

    predictor, message = _predictor(args, given)
    output = _output(message, predictor.class_names)
    batch_size = _batch_size(message) if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise UsageError(f"-b must be at least 1, got {batch_size}")
    images = image_files(args.image_dir)
    _require_own_names([Path(frame.path) for frame in images.frames])

    def load(order: Sequence[int], workers: int) -> Iterator[Batch]:
        return loader(images, predictor.augmentation, batch_size=batch_size, order=order, workers=workers)

    skipped: list[DataError] = []
    batches = _readable(load, len(images), batch_size, skipped)
    folders = _folders(args.results_dir, output)
    found = 0
    with (
        ProgressBar("detecting", total=len(images), unit="images") as bar,
        _tracker(message, args.results_dir) as tracker,
    ):
        for number, written in enumerate(_written(predictor.batches(batches), output, folders)):
            found += written.detections
            if tracker and written.picture:
                tracker.images({"images_annotated": [written.picture]}, number, captions=[written.name])
            bar.advance()
    places = (
        " and ".join(str(folder) for folder in folders.values()) or "nothing: the spec turns both outputs off"
    )
    say(f"{found} detections in {len(images) - len(skipped)} images")
    if len(skipped) < len(images):
        say(f"wrote {places}")
    if skipped:
        raise DataError(f"{len(skipped)} of {len(images)} images were skipped; the first: {skipped[0]}")


def _written(batches: Iterable[Predicted], output: Output, folders: Mapping[str, Path]) -> Iterator[Written]:
    """Write the files of every image on threads, while the network goes on; what was written comes in order."""
    pool = ThreadPoolExecutor(WRITERS)
    under_way: deque[Future[Written]] = deque()
    try:
        for predicted in batches:
            paths = predicted.batch.image_paths
            for path, detections in zip(paths, predicted.in_original_pixels(), strict=True):
                under_way.append(pool.submit(_write, Path(path), detections, output=output, folders=folders))
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


def _require_own_names(paths: list[Path]) -> None:
    """One label file an image: no two images may differ in their extension only."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise DataError(
                f"{seen[path.stem]} and {path} would both be labelled in {path.stem}.txt: rename or remove one"
            )
        seen[path.stem] = path


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
    stride, channels = network.stride, network.channels
    if config.image_width % stride or config.image_height % stride:
        raise SpecError(
            f"inferencer_config: image_width and image_height must be multiples of the network's stride {stride},"
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
        return Output(styles, labels=True, images=True, line_width=2)
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


def _write(path: Path, detections: Detections, *, output: Output, folders: Mapping[str, Path]) -> Written:
    """Draw, and write the files of one image."""
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
        write_detections(folders["labels"] / f"{path.stem}.txt", lines)
    picture = _annotated(path, rows, output.line_width) if output.images or output.kept else None
    if picture and "images_annotated" in folders:
        _save(picture, path, folders["images_annotated"])
    return Written(path.name, len(rows), picture if output.kept else None)


def _annotated(path: Path, rows: list[tuple[Style, list[float], float]], line_width: int) -> Image:
    import numpy as np

    from detectkit.data.dataset import decode, open_image
    from detectkit.draw import annotate

    with open_image(str(path), name=str(path)) as image:
        pixels, _ = decode(image, channels=3, target_size=None, name=str(path))
    return annotate(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4),
        labels=[f"{style.label} {score:.2f}" for style, _, score in rows],
        colors=[style.color for style, _, _ in rows],
        line_width=line_width,
    )


def _save(picture: Image, path: Path, folder: Path) -> None:
    """Write the annotated picture of the image at `path` in the format of its name."""
    from PIL.Image import registered_extensions

    from detectkit.data.dataset import IMAGE_EXTENSIONS

    # Files that are no image by their name, such as one given by itself, may be of a format that cannot be written.
    name = path.name if path.suffix.lower() in IMAGE_EXTENSIONS else f"{path.name}.png"
    target = folder / name
    with atomic_write(target) as temporary:
        picture.save(temporary, format=registered_extensions()[target.suffix.lower()])


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

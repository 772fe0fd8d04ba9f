"""Detect objects in images: KITTI label files and annotated images, in the pixels of the images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detectkit import spec
from detectkit.commands.devices import add_device_arguments, choose_device
from detectkit.console import progress, say
from detectkit.errors import DataError, SpecError, UsageError
from detectkit.files import atomic_write

if TYPE_CHECKING:
    from detectkit.ops.cluster import Detections
    from detectkit.predict import Predictor


class Style(NamedTuple):
    """How one class is written."""

    label: str
    color: tuple[int, int, int]
    minimum_score: float


class Output(NamedTuple):
    """What is written, as the spec says."""

    styles: dict[int, Style]  # by class number; a class without one is left out
    labels: bool
    images: bool
    line_width: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e", "--experiment_spec", required=True, type=Path, metavar="SPEC", help="inference or training"
    )
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
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    message = spec.load(args.experiment_spec)
    if isinstance(message, spec.DatasetExportConfig):
        raise SpecError(
            f"{args.experiment_spec} is a conversion spec: infer takes an inference or a training spec"
        )

    from detectkit.data.dataset import decode_size, image_files, loader

    predictor = _predictor(args, message)
    output = _output(message, predictor.class_names)
    batch_size = _batch_size(message) if args.batch_size is None else args.batch_size
    if batch_size < 1:
        raise UsageError(f"-b must be at least 1, got {batch_size}")
    images = image_files(args.image_dir)
    _require_own_names([Path(frame.path) for frame in images.frames])
    batches = loader(
        images,
        batch_size=batch_size,
        order=range(len(images)),
        workers=1,
        channels=predictor.channels,
        target_size=decode_size(predictor.augmentation),
    )
    folders = _folders(args.results_dir, output)
    found = 0
    count = -(-len(images) // batch_size)
    for predicted in progress(predictor.batches(batches), total=count, label="detecting", unit="batches"):
        for path, detections in zip(predicted.batch.image_paths, predicted.in_original_pixels(), strict=True):
            found += _write(Path(path), detections, output=output, folders=folders)
    written = (
        " and ".join(str(folder) for folder in folders.values()) or "nothing: the spec turns both outputs off"
    )
    say(f"{found} detections in {len(images)} images")
    say(f"wrote {written}")


def _require_own_names(paths: list[Path]) -> None:
    """One label file an image: no two images may differ in their extension only."""
    seen: dict[str, Path] = {}
    for path in paths:
        if path.stem in seen:
            raise DataError(
                f"{seen[path.stem]} and {path} would both be labelled in {path.stem}.txt: rename or remove one"
            )
        seen[path.stem] = path


def _predictor(args: argparse.Namespace, message: spec.Inference | spec.Experiment) -> Predictor:
    from detectkit.predict import load_model

    device = choose_device(args)
    if isinstance(message, spec.Experiment):
        if args.model_path is None:
            raise UsageError("give the model: -m MODEL")
        return load_model(args.model_path, device, experiment=message)
    named = message.inferencer_config.tlt_config.model
    path = args.model_path or (Path(named).expanduser() if named else None)
    if path is None:
        raise UsageError("give the model: -m MODEL, or tlt_config { model: … } in the spec")
    classwise = message.bbox_handler_config.classwise_bbox_handler_config
    predictor = load_model(
        path, device, clustering={name: item.clustering_config for name, item in classwise.items()}
    )
    return _resized(predictor, message.inferencer_config, path)


def _resized(predictor: Predictor, config: spec.InferencerConfig, path: str | Path) -> Predictor:
    """Take images in the size of an inference spec: resized, as TLT does, whatever the training did."""
    if list(config.target_classes or predictor.class_names) != predictor.class_names:
        raise SpecError(
            f"inferencer_config.target_classes: {path} detects {', '.join(predictor.class_names)}, in this order"
        )
    stride = predictor.head.stride
    if config.image_width % stride or config.image_height % stride:
        raise SpecError(
            f"inferencer_config: image_width and image_height must be multiples of the network's stride {stride},"
            f" got {config.image_width}x{config.image_height}"
        )
    if config.image_channels != predictor.channels:
        raise SpecError(f"inferencer_config.image_channels: {path} takes {predictor.channels}")
    augmentation = spec.AugmentationConfig()
    augmentation.preprocessing.output_image_width = predictor.head.width = config.image_width
    augmentation.preprocessing.output_image_height = predictor.head.height = config.image_height
    augmentation.preprocessing.output_image_channel = predictor.channels
    augmentation.preprocessing.enable_auto_resize = True
    predictor.augmentation = augmentation
    return predictor


def _batch_size(message: spec.Inference | spec.Experiment) -> int:
    if isinstance(message, spec.Experiment):
        return message.training_config.batch_size_per_gpu
    return message.inferencer_config.batch_size


def _output(message: spec.Inference | spec.Experiment, class_names: list[str]) -> Output:
    from detectkit.draw import class_colors

    colors = class_colors(len(class_names))
    if isinstance(message, spec.Experiment):
        styles = {number: Style(name, colors[number], 0.0) for number, name in enumerate(class_names)}
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
    return Style(config.output_map or name, color, config.confidence_threshold)


def _folders(results: Path, output: Output) -> dict[str, Path]:
    """Where results go, by kind; the first file makes its folder."""
    wanted = {"labels": output.labels, "images_annotated": output.images}
    return {name: results / name for name, is_wanted in wanted.items() if is_wanted}


def _write(path: Path, detections: Detections, *, output: Output, folders: Mapping[str, Path]) -> int:
    """Write the files of one image; gives the number of detections in them."""
    from detectkit.data.dataset import IMAGE_EXTENSIONS
    from detectkit.data.kitti import write_detections

    rows = [
        (output.styles[number], box, score)
        for box, score, number in zip(
            detections.boxes.tolist(), detections.scores.tolist(), detections.classes.tolist()
        )
        if number in output.styles and score >= output.styles[number].minimum_score
    ]
    if "labels" in folders:
        lines = [(style.label, box, score) for style, box, score in rows]
        write_detections(folders["labels"] / f"{path.stem}.txt", lines)
    if "images_annotated" in folders:
        # Files that are no image by their name, such as one given by itself, may be of a format that cannot be written.
        name = path.name if path.suffix.lower() in IMAGE_EXTENSIONS else f"{path.name}.png"
        _annotate(path, rows, output.line_width, folders["images_annotated"] / name)
    return len(rows)


def _annotate(
    path: Path, rows: list[tuple[Style, list[float], float]], line_width: int, target: Path
) -> None:
    import numpy as np
    from PIL import Image

    from detectkit.data.dataset import decode, open_image
    from detectkit.draw import annotate

    with open_image(str(path), name=str(path)) as image:
        pixels, _ = decode(image, channels=3, target_size=None, name=str(path))
    picture = annotate(
        np.ascontiguousarray(pixels.transpose(1, 2, 0)),
        np.array([box for _, box, _ in rows], dtype=np.float32).reshape(-1, 4),
        labels=[f"{style.label} {score:.2f}" for style, _, score in rows],
        colors=[style.color for style, _, _ in rows],
        line_width=line_width,
    )
    with atomic_write(target) as temporary:
        picture.save(temporary, format=Image.registered_extensions()[target.suffix.lower()])

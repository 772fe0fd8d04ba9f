"""A proposal as the text of a spec: short, with the reason for each choice beside it."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.message import Message

from detectkit.console import visible
from detectkit.propose.choose import BATCH, Proposal, keeps_together
from detectkit.propose.count import DONTCARE, TEST, TRAIN, VALIDATION, Reading
from detectkit.spec import DatasetExportConfig, label_name
from detectkit.spec.by_class import DEFAULT
from detectkit.spec.schema import quoted, short

WIDTH = 118  # characters of a line, where the classes are not too many
CLASS_LINES = 10  # that their names take
CALIBRATION = 20  # batches; where there are not as many, the schema's default takes what there is
COLOURS = (
    "hue_rotation_max: 10.0 saturation_shift_max: 0.2 contrast_scale_max: 0.2 contrast_center: 0.5"
    " color_shift_stddev: 0.05"
)
OBJECTIVES = " ".join(
    f'objectives {{ name: "{name}" initial_weight: 1.0 weight_target: 1.0 }}' for name in ("cov", "bbox")
)


def text(proposal: Proposal) -> str:
    """The spec: under 80 lines, whatever the classes are called and however many there are."""
    return "\n".join(_lines(proposal)) + "\n"


def class_names(proposal: Proposal) -> dict[str, str]:
    """The classes of the spec by the labels that they have: their own names, but for one that is called as what serves all."""
    names = {name: name for name in proposal.classes.value}
    for name in names:
        if name == DEFAULT:
            taken = set(map(label_name, names))
            names[name] = next(
                new for number in range(1, len(taken) + 2) if (new := f"{name}_{number}") not in taken
            )
    return names


def _lines(proposal: Proposal) -> Iterator[str]:
    contents = proposal.contents
    boxes = len(contents.train.boxes)
    yield _comment(
        f"Written by `detectkit init` for {proposal.data}: {len(contents.train.images):,} training images, {boxes:,} boxes,"
        f" {len(proposal.classes.value)} {'class' if len(proposal.classes.value) == 1 else 'classes'}."
    )
    yield _comment(f"From these to an 8-bit detector:  detectkit run -e {proposal.spec}")
    yield "# Values are those of the recipe in docs/datasets.md; `detectkit explain FIELD` tells what a field is."
    yield "random_seed: 42"
    yield _comment(f"Split: {proposal.split.why}.")
    for reading in _used(proposal):
        yield from _conversion(proposal, reading)
    yield from _data(proposal)
    yield from _augmentation(proposal)
    yield from _network(proposal)
    yield from _training(proposal)
    yield from _measuring(proposal)
    yield from _classes(proposal)
    yield from _after(proposal)


def _used(proposal: Proposal) -> list[Reading]:
    """Those that are trained on and measured on; others are kept apart."""
    return [
        reading
        for reading in proposal.contents.readings
        if reading.role in (TRAIN, proposal.split.value) or proposal.contents.drawn
    ]


def _conversion(proposal: Proposal, reading: Reading) -> Iterator[str]:
    config = reading.config
    kind = config.WhichOneof("convert_config_type") or "kitti_config"
    others = DatasetExportConfig()
    others.CopyFrom(config)
    others.ClearField(kind)
    others.output_filename = _records(proposal, reading)
    if keeps_together(proposal.contents, proposal.classes.value):
        others.keep_near_duplicates_together = True
    if reading.extension not in ("", _extension(proposal)):
        others.embed_images = True  # else its records say nothing of the extension, and the spec has one
    yield "dataset_export_config {"
    yield f"  {kind} {{ {_in_a_line(getattr(config, kind))} }}"
    yield f"  {_in_a_line(others)}"
    yield "}"


def _extension(proposal: Proposal) -> str:
    """What the spec says of all images whose records say nothing of it; empty: all of them do."""
    return next((reading.extension for reading in _used(proposal) if reading.extension), "")


def _in_a_line(message: Message) -> str:
    return text_format.MessageToString(message, as_one_line=True, as_utf8=True).strip()


def _records(proposal: Proposal, reading: Reading) -> str:
    """The prefix of its records."""
    return str(Path("results", proposal.name, "records", reading.role))


def _source(proposal: Proposal, reading: Reading) -> str:
    pattern = f"{glob.escape(_records(proposal, reading))}-fold-*"
    return f"tfrecords_path: {quoted(pattern)} image_directory_path: {quoted(str(reading.image_root))}"


def _data(proposal: Proposal) -> Iterator[str]:
    contents, role = proposal.contents, proposal.split.value
    yield "dataset_config {"
    for reading in _used(proposal):
        field = "data_sources" if reading.role == TRAIN else "validation_data_source"
        yield f"  {field} {{ {_source(proposal, reading)} }}"
    if extension := _extension(proposal):
        yield f"  image_extension: {quoted(extension)}"
    if contents.drawn and role == VALIDATION:
        yield "  validation_fold: 0"
    for label, name in class_names(proposal).items():
        if label != name:
            yield f"  target_class_mapping {{ key: {quoted(label)} value: {quoted(name)} }}"
    if contents.ignored:
        yield f"  dontcare_labels: {quoted(DONTCARE)}"
    yield "}"
    yield ""


def _augmentation(proposal: Proposal) -> Iterator[str]:
    width, height = proposal.size.value
    yield "augmentation_config {"
    yield _comment(f"Input: {proposal.size.why}.", indent=2)
    yield (
        f"  preprocessing {{ output_image_width: {width} output_image_height: {height} enable_auto_resize: true"
        " min_bbox_width: 4.0 min_bbox_height: 4.0 }"
    )
    yield _comment(f"Mirroring: {proposal.mirrors.why}.", indent=2)
    yield (
        f"  spatial_augmentation {{ hflip_probability: {0.5 if proposal.mirrors.value else 0.0} zoom_min: 0.7 zoom_max: 1.3"
        f" translate_max_x: {width // 10} translate_max_y: {height // 10} }}"
    )
    yield f"  color_augmentation {{ {COLOURS} }}"
    yield "}"
    yield ""


def _network(proposal: Proposal) -> Iterator[str]:
    start = proposal.start.value
    yield "model_config {"
    yield _comment(f"Network: {proposal.start.why}.", indent=2)
    layers = f" num_layers: {start.num_layers}" if start.num_layers else ""
    yield f"  arch: {quoted(start.arch)}{layers} use_batch_norm: true"
    if start.weights:
        yield f"  pretrained_model_file: {quoted(start.weights)}"
    yield "  objective_set { bbox { scale: 35.0 offset: 0.5 } cov { } }"
    yield "}"
    yield ""


def _training(proposal: Proposal) -> Iterator[str]:
    yield "training_config {"
    yield _comment(f"Epochs: {proposal.epochs.why}.", indent=2)
    yield f"  batch_size_per_gpu: {BATCH} num_epochs: {proposal.epochs.value}"
    yield _comment(
        f"Rate: {proposal.rate.why}. What is measured and saved is the average of about the last 200 steps.",
        indent=2,
    )
    yield (
        "  learning_rate { soft_start_annealing_schedule { min_learning_rate: 1e-05 max_learning_rate:"
        f" {short(proposal.rate.value)} soft_start: 0.1 annealing: 0.5 }} }}"
    )
    yield "  regularizer { type: L2 weight: 1e-06 } optimizer { adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 } }"
    yield "  ema_decay: 0.995 checkpoint_interval: 10"
    yield "}"
    yield ""


def _measuring(proposal: Proposal) -> Iterator[str]:
    first, period = validations(proposal)
    yield "evaluation_config {"
    if proposal.split.value == TEST:
        yield "  # Test images choose no model: they are measured after the last epoch."
    yield (
        f"  average_precision_mode: INTEGRATE first_validation_epoch: {first}"
        f" validation_period_during_training: {period}"
    )
    yield f'  minimum_detection_ground_truth_overlap {{ key: "{DEFAULT}" value: 0.5 }}'
    yield "}"
    yield ""


def validations(proposal: Proposal) -> tuple[int, int]:
    """The first epoch that is validated, and the epochs from one to the next; the last one always is."""
    epochs = proposal.epochs.value
    if proposal.passes == 1:
        return epochs, 10
    return max(epochs // 2, 1), max(math.ceil(epochs / 10), 1)


def _classes(proposal: Proposal) -> Iterator[str]:
    yield "# Radii: those of the recipe; an object has the cells around its centre, and one at least."
    radii = "cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 0.4 cov_radius_y: 0.4 bbox_min_radius: 1.0"
    yield "bbox_rasterizer_config {"
    yield f'  target_class_config {{ key: "{DEFAULT}" value {{ {radii} }} }} deadzone_radius: 0.67'
    yield "}"
    yield _comment(f"Clustering: {proposal.overlap.why}.")
    yield f'postprocessing_config {{ target_class_config {{ key: "{DEFAULT}" value {{ clustering_config {{'
    yield (
        "  clustering_algorithm: NMS coverage_threshold: 0.05 nms_iou_threshold:"
        f" {short(proposal.overlap.value)} nms_confidence_threshold: 0.05 minimum_bounding_box_height: 4"
    )
    yield "} } } }"
    yield _comment(f"Classes: {proposal.classes.why}.")
    yield "cost_function_config {"
    yield from _wrapped([quoted(name) for name in class_names(proposal).values()])
    yield "  # No class is preferred: what helps one costs others."
    yield f'  target_classes {{ name: "{DEFAULT}" class_weight: 1.0 coverage_foreground_weight: 0.5 {OBJECTIVES} }}'
    yield "  enable_autoweighting: true max_objective_weight: 0.9999 min_objective_weight: 0.0001 coverage_focal_gamma: 2.0"
    yield "}"


def _wrapped(names: list[str]) -> Iterator[str]:
    """The list of classes in lines of `WIDTH`, or of more where those would be too many."""
    width = WIDTH
    while len(rows := _filled(names, width)) > CLASS_LINES:
        width = 5 * width // 4
    if len(rows) == 1:
        yield f"  class_names: [ {rows[0]} ]"
        return
    yield f"  class_names: [ {rows[0]}"
    yield from (f"    {row}" for row in rows[1:-1])
    yield f"    {rows[-1]} ]"


def _filled(names: list[str], width: int) -> list[str]:
    rows: list[str] = []
    for number, name in enumerate(names):
        item = name + "," * (number < len(names) - 1)
        if rows and len(rows[-1]) + 1 + len(item) <= width - 4:
            rows[-1] += f" {item}"
        else:
            rows.append(item)
    return rows


def _after(proposal: Proposal) -> Iterator[str]:
    images = len(proposal.contents.train.images)
    if proposal.contents.drawn:
        images -= images // 5  # those that look alike may go to the other side
    batches = f" batches: {CALIBRATION}" if images >= CALIBRATION * BATCH else ""
    batches += " batch_size: 1" if images < BATCH else ""
    yield ""
    yield "# Labels and images are looked through before the training, and with what it has learnt: a list to decide in, nothing is changed."
    yield "data_cleaning_config { }"
    yield "# A quarter of the parameters, by what they change in the cost; trained again, the whole one teaching. Then 8 bits."
    yield "pruning_config { target_params: 0.25 }"
    yield f"calibration_config {{ method: MSE{batches} }}"
    yield "export_config { data_type: INT8 runtime: ONNXRUNTIME }"


def _comment(words: str, *, indent: int = 0) -> str:
    """A line of comment, whatever names are in it."""
    return f"{' ' * indent}# {visible(words)}"

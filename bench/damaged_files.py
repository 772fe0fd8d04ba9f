"""Files that a person may be given, whole and damaged: model, ONNX, resume and record files, ranges, labels, images.

Each kind makes its files once, damages them, and reads them again as a command does. What may come of it:

refused  a DetectkitError
same     what is read is what was written
changed  something else is read, where nothing in the file could tell: a digit of a text file
silent   something else is read, or less than there is, without a word: wrong wherever the file has a checksum or lists its objects
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from damages import damaged_bytes, damaged_json, damaged_text
from PIL import Image

from detectkit import spec
from detectkit.compress.prune import prune
from detectkit.data.convert import convert
from detectkit.data.dataset import Dataset, sample_from_image
from detectkit.data.records import training_frames, validation_frames
from detectkit.deploy.cache import read_cache, write_cache
from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.onnx import to_model
from detectkit.deploy.scales import dump_table, load_table
from detectkit.errors import DetectkitError
from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.model.header import UNSEALED, seal
from detectkit.predict import load_model
from detectkit.runtimes.onnx import add_header, load_onnx
from detectkit.train import state as states
from detectkit.train.loop import train
from detectkit.train.run import set_up

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
WIDTH, HEIGHT, IMAGES = 64, 48, 8
LAYOUTS = ("kitti", "voc", "coco", "yolo", "csv")
TABLE = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


class Kind(NamedTuple):
    """A kind of file, whole."""

    damage: Callable[[random.Random], None]  # writes the files of one case
    read: Callable[[], object]  # what a command gets of them; equal where the same was read
    whole: object  # what is read of the whole files
    is_guarded: bool  # whether a change must be noticed


class Lost(Exception):
    """Something was given, and neither read nor refused."""


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds, their whole files made below a folder."""
    experiment = _experiment(folder)
    model = _model(folder, experiment)
    made = {
        "model, bytes": _of_bytes(model, lambda path: _network(checkpoint.load(path))),
        "model, header": _model_header(model),
        "model, spec": _model_spec(model),
        "onnx, bytes": _of_bytes(_onnx(model), _onnx_maps),
        "resume, bytes": _of_bytes(_resume(folder, experiment), _resumed(experiment)),
        "resume, values": _resume_values(folder, experiment),
        "record, bytes": _records(folder, experiment, "shard"),
        "record, index": _records(folder, experiment, "index"),
        "scales, values": _scales(folder),
        "cache, bytes": _cache(folder),
        "image, bytes": _image(folder),
    }
    return made | {f"labels, {name}": _labels(folder, name) for name in LAYOUTS}


def outcome(kind: Kind, generator: random.Random) -> str:
    """What becomes of one case; an exception that is no DetectkitError goes on."""
    kind.damage(generator)
    try:
        found = kind.read()
    except DetectkitError as error:
        if not str(error).strip() or "\n" in str(error).strip():
            raise Lost(f"a message of no line or several: {error!r}") from error
        return "refused"
    except Lost:
        raise
    if found == kind.whole:
        return "same"
    return "silent" if kind.is_guarded else "changed"


# The whole files


def _experiment(folder: Path) -> spec.Experiment:
    """A few pictures with labels in each layout, the records of one, and a spec that trains on them."""
    generator = np.random.default_rng(3)
    images = folder / "kitti" / "image_2"
    images.mkdir(parents=True)
    for number in range(IMAGES):
        noise = generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number:03d}.png")
    for layout in LAYOUTS:
        _write_labels(folder, layout)
    convert(_conversion(folder, "kitti"), str(folder / "records" / "tiny"))
    experiment = spec.load_experiment(ROOT / "specs/demo.txt")
    for section in ("dataset_export_config", "pruning_config", "calibration_config", "export_config"):
        experiment.ClearField(section)
    data, size = experiment.dataset_config, experiment.augmentation_config.preprocessing
    data.data_sources[0].tfrecords_path = str(folder / "records" / "tiny-fold-*")
    data.data_sources[0].image_directory_path = str(folder / "kitti")
    data.image_extension, data.validation_fold = "png", 0
    size.output_image_width, size.output_image_height = WIDTH, HEIGHT
    training = experiment.training_config
    training.num_epochs, training.workers, training.visualizer.enabled = 1, 0, False
    return experiment


def _label_files(folder: Path, layout: str) -> list[Path]:
    if layout == "coco":
        return [folder / "kitti" / "coco.json"]
    if layout == "csv":
        return [folder / "kitti" / "boxes.csv"]
    if layout == "yolo":
        return [folder / "kitti" / "labels" / f"{number:03d}.txt" for number in range(IMAGES)]
    suffix = "txt" if layout == "kitti" else "xml"
    return [folder / "kitti" / layout / f"{number:03d}.{suffix}" for number in range(IMAGES)]


def _write_labels(folder: Path, layout: str) -> None:
    files = _label_files(folder, layout)
    files[0].parent.mkdir(exist_ok=True)
    boxes = {"zero": (8, 8, 40, 36), "one": (20, 10, 50, 40), "four": (1, 1, 30, 30)}
    if layout == "kitti":
        lines = [
            f"{name} 0.5 1 -1.57 {' '.join(map(str, box))} 1.7 0.6 0.8 1 2 10 0.1"
            for name, box in boxes.items()
        ]
        lines.append("DontCare -1 -1 -10 1 1 9 9 -1 -1 -1 -1000 -1000 -1000 -10")
        for file in files:
            file.write_text("\n".join(lines) + "\n")
    elif layout == "voc":
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
            + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
            + "</bndbox></object>"
            for name, box in boxes.items()
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        for file in files:
            file.write_text(f"<annotation><filename>{file.stem}.png</filename>{size}{objects}</annotation>")
    elif layout == "yolo":
        shares = [
            ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
            for x1, y1, x2, y2 in boxes.values()
        ]
        lines = [f"{number} {' '.join(f'{share:.6f}' for share in box)}" for number, box in enumerate(shares)]
        for file in files:
            file.write_text("\n".join(lines) + "\n")
        (folder / "kitti" / "classes.txt").write_text("\n".join(boxes) + "\n")
    elif layout == "csv":
        rows = [
            f"{number:03d}.png,{WIDTH},{HEIGHT},{name},{','.join(map(str, box))}\n"
            for number in range(IMAGES)
            for name, box in boxes.items()
        ]
        files[0].write_text(TABLE + "".join(rows))
    else:
        categories = [{"id": number, "name": name} for number, name in enumerate(boxes, start=1)]
        listed = [
            {"id": number, "file_name": f"{number:03d}.png", "width": WIDTH, "height": HEIGHT}
            for number in range(IMAGES)
        ]
        found = [
            {
                "id": 10 * image + number,
                "image_id": image,
                "category_id": number,
                "bbox": [x, y, right - x, bottom - y],
            }
            for image in range(IMAGES)
            for number, (x, y, right, bottom) in enumerate(boxes.values(), start=1)
        ]
        files[0].write_text(json.dumps({"images": listed, "categories": categories, "annotations": found}))


def _conversion(folder: Path, layout: str) -> spec.DatasetExportConfig:
    config = spec.DatasetExportConfig(image_directory_path=str(folder / "kitti"))
    if layout == "coco":
        coco = config.coco_config
        coco.root_directory_path = str(folder / "kitti")
        coco.img_dir_names.append("image_2")
        coco.annotation_files.append("coco.json")
        return config
    if layout == "csv":
        table = config.csv_config
        table.root_directory_path, table.image_dir_name = str(folder / "kitti"), "image_2"
        table.csv_files.append("boxes.csv")
        return config
    if layout == "yolo":
        config.yolo_config.root_directory_path, config.yolo_config.classes_file = (
            str(folder / "kitti"),
            "classes.txt",
        )
        config.yolo_config.image_dir_names.append("image_2")
        return config
    source = config.kitti_config if layout == "kitti" else config.voc_config
    source.root_directory_path, source.image_dir_name, source.image_extension = (
        str(folder / "kitti"),
        "image_2",
        "png",
    )
    if layout == "kitti":
        config.kitti_config.label_dir_name, config.kitti_config.partition_mode = "kitti", "random"
        config.kitti_config.num_partitions = 2
    else:
        config.voc_config.annotation_dir_name = "voc"
    source.val_split, source.num_shards = 25, 1
    return config


def _model(folder: Path, experiment: spec.Experiment) -> Path:
    """A network of few parameters: a damage is as likely to hit what describes them."""
    names = spec.class_names(experiment)
    torch.manual_seed(1)
    network = build(experiment.model_config, names, 3)
    config = spec.PruningConfig(
        criterion=spec.PruningConfig.NORM, threshold=0.9999, min_num_filters=2, granularity=1
    )
    narrow = prune(network, config, experiment=experiment, sizes={}).detector
    path = folder / "model.safetensors"
    checkpoint.save(path, narrow, spec.dumps(experiment), names)
    return path


def _onnx(model: Path) -> Path:
    loaded = checkpoint.load(model)
    exported = to_model(loaded.detector, height=HEIGHT, width=WIDTH, batch=None)
    add_header(
        exported,
        spec_text=spec.dumps(loaded.spec),
        class_names=loaded.class_names,
        channels=3,
        outline=loaded.detector.outline,
    )
    path = model.with_suffix(".onnx")
    path.write_bytes(seal(exported.SerializeToString()))
    return path


def _again(folder: Path, experiment: spec.Experiment) -> spec.Experiment:
    """The spec of a short training of the model."""
    again = spec.Experiment()
    again.CopyFrom(experiment)
    again.model_config.pretrained_model_file, again.model_config.load_graph = (
        str(folder / "model.safetensors"),
        True,
    )
    return again


def _resume(folder: Path, experiment: spec.Experiment) -> Path:
    train(set_up(_again(folder, experiment), folder / "run", name="model", device=CPU))
    return folder / "run" / "resume.pt"


# What is read of them


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def _network(model: checkpoint.Model) -> tuple[str, str, list[str]]:
    return _digest(model.detector.state_dict()), spec.dumps(model.spec), model.class_names


def _onnx_maps(path: Path) -> tuple[list[str], str]:
    network = load_onnx(path, "cpu")
    images = torch.linspace(0, 1, 3 * HEIGHT * WIDTH).reshape(1, 3, HEIGHT, WIDTH)
    maps = network.forward(images)
    return network.class_names, _digest({str(number): tensor for number, tensor in enumerate(maps)})


def _frames(experiment: spec.Experiment) -> list[object]:
    """All that training and validation get of the records."""
    names = spec.class_names(experiment)
    read = [
        training_frames(experiment.dataset_config, names),
        validation_frames(experiment.dataset_config, names),
    ]
    return [
        (
            frame.frame_id,
            frame.size,
            frame.objects.names,
            frame.objects.boxes.tolist(),
            frame.objects.truncation.tolist(),
        )
        for part in read
        if isinstance(part, Dataset)
        for frame in part.frames
    ]


# The kinds


def _of_bytes(path: Path, read: Callable[[Path], object]) -> Kind:
    """A file with a checksum."""
    whole = path.read_bytes()
    damaged = path.with_name(f"damaged{path.suffix}")

    def damage(generator: random.Random) -> None:
        damaged.write_bytes(damaged_bytes(whole, generator))

    return Kind(damage, lambda: read(damaged), read(path), is_guarded=True)


def _model_header(path: Path) -> Kind:
    """What the metadata says, with tensors as a writer of such files would have them, and without a checksum."""

    def change(header: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        changed: dict[str, Any] = damaged_json(header, generator)
        return changed

    return _of_metadata(path, change)


def _model_spec(path: Path) -> Kind:
    def change(header: dict[str, Any], generator: random.Random) -> dict[str, Any]:
        return header | {"spec": damaged_text(header["spec"], generator)}

    return _of_metadata(path, change)


def _of_metadata(path: Path, change: Callable[[dict[str, Any], random.Random], dict[str, Any]]) -> Kind:
    damaged = path.with_name("changed.safetensors")
    tensors = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["detectkit"]) | {"checksum": UNSEALED}

    def damage(generator: random.Random) -> None:
        text = json.dumps(change(header, generator))
        damaged.write_bytes(safetensors.torch.save(tensors, {"detectkit": text}))

    def read() -> object:
        """Also one image, in the size that the spec says."""
        model = checkpoint.load(damaged)
        size = model.spec.augmentation_config.preprocessing
        if size.output_image_height * size.output_image_width < 2**20:
            load_model(damaged, CPU).predict([Image.new("RGB", (WIDTH, HEIGHT))])
        return _network(model)

    return Kind(damage, read, None, is_guarded=False)


def _resumed(experiment: spec.Experiment) -> Callable[[Path], object]:
    """A run that is taken up again; it is finished, so nothing is trained."""

    def read(path: Path) -> object:
        folder = path.parent / "again"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(path, folder / "resume.pt")
        run = set_up(_again(path.parents[1], experiment), folder, name="model", device=CPU)
        return (
            _digest(run.state.detector.state_dict()),
            run.state.epoch,
            run.state.step,
            json.dumps(run.state.history),
        )

    return read


def _resume_values(folder: Path, experiment: spec.Experiment) -> Kind:
    """What a resume file holds, left out, doubled or replaced, in a file that is whole."""
    path = folder / "run" / "resume.pt"
    content = states.read(path)
    read = _resumed(experiment)

    def damage(generator: random.Random) -> None:
        states.write(path.with_name("changed.pt"), damaged_json(content, generator))

    return Kind(damage, lambda: read(path.with_name("changed.pt")), None, is_guarded=False)


def _records(folder: Path, experiment: spec.Experiment, part: str) -> Kind:
    """A shard, or the index beside it."""
    shards = sorted(path for path in (folder / "records").iterdir() if path.suffix != ".index")
    path = shards[-1] if part == "shard" else Path(f"{shards[-1]}.index")
    whole = path.read_bytes()

    def damage(generator: random.Random) -> None:
        path.write_bytes(damaged_bytes(whole, generator))

    def read() -> object:
        try:
            return _frames(experiment)
        finally:
            path.write_bytes(whole)  # the other kinds read it

    return Kind(damage, read, _frames(experiment), is_guarded=True)


def _scales(folder: Path) -> Kind:
    """Ranges with other values: what is taken must be numbers that can be ranges."""
    loaded = checkpoint.load(folder / "model.safetensors")
    table = calibrate(loaded.detector, [torch.rand(2, 3, HEIGHT, WIDTH)])
    text = dump_table(table)
    path = folder / "scales.json"

    def damage(generator: random.Random) -> None:
        changed = damaged_json(json.loads(text), generator)
        path.write_text(json.dumps(changed) if generator.random() < 0.8 else damaged_text(text, generator))

    def read() -> object:
        found = load_table(path)
        numbers = [value for item in found.tensors.values() for value in (item.amax, item.low, item.high)]
        numbers += [value for values in found.weights.values() for value in values]
        if not all(map(math.isfinite, numbers)):
            raise Lost(f"a range that is no number: {path.read_text()}")
        return dump_table(found)

    return Kind(damage, read, text, is_guarded=False)


def _cache(folder: Path) -> Kind:
    loaded = checkpoint.load(folder / "model.safetensors")
    path = folder / "calibration.cache"
    write_cache(path, calibrate(loaded.detector, [torch.rand(2, 3, HEIGHT, WIDTH)]))
    whole = path.read_bytes()

    def damage(generator: random.Random) -> None:
        path.write_bytes(damaged_bytes(whole, generator))

    def read() -> object:
        found = read_cache(path)
        if not all(map(math.isfinite, found.values())):
            raise Lost(f"a range that is no number: {path.read_bytes()!r}")
        return found

    return Kind(damage, read, read(), is_guarded=False)


def _image(folder: Path) -> Kind:
    """Pixels have no checksum in JPEG: anything may be seen, but of the size that was asked for."""
    experiment = spec.load_experiment(ROOT / "specs/demo.txt")
    wholes = {}
    picture = Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB")
    for name in ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        picture.save(buffer, name)
        wholes[name] = buffer.getvalue()
    path = folder / "image.jpg"

    def damage(generator: random.Random) -> None:
        path.write_bytes(damaged_bytes(generator.choice(list(wholes.values())), generator))

    def read() -> object:
        sample = sample_from_image(path, channels=3, augmentation=experiment.augmentation_config)
        if sample.image.shape[0] != 3 or sample.image.dtype != np.uint8:
            raise Lost(f"an image of {sample.image.dtype} {sample.image.shape}")
        return None

    return Kind(damage, read, None, is_guarded=False)


def _labels(folder: Path, layout: str) -> Kind:
    """Every object of every label file is in the records, or among what is said to be left out."""
    config = _conversion(folder, layout)
    files = _label_files(folder, layout)
    wholes = [file.read_bytes() for file in files]
    prefix = folder / "from" / layout

    def damage(generator: random.Random) -> None:
        for file, whole in zip(files, wholes, strict=True):
            file.write_bytes(whole)
        for _ in range(min(len(files), 2)):
            number = generator.randrange(len(files))
            if layout == "coco" and generator.random() < 0.7:
                changed = damaged_json(json.loads(wholes[number]), generator)
                files[number].write_text(json.dumps(changed))
            elif generator.random() < 0.5:
                files[number].write_bytes(damaged_bytes(wholes[number], generator))
            else:
                files[number].write_text(damaged_text(wholes[number].decode(), generator), encoding="utf-8")

    def read() -> object:
        summary = convert(config, str(prefix))
        written = sum(fold.boxes.total() for fold in summary.folds)
        if not summary.rejected:
            given = sum(_objects(file, layout) or 0 for file in files)
            if given > written:
                raise Lost(
                    f"{given} objects, {written} written, nothing said: {[file.read_bytes() for file in files]}"
                )
        return written, len(summary.rejected)

    return Kind(damage, read, None, is_guarded=False)


def _objects(file: Path, layout: str) -> int | None:
    """The objects that a label file lists; None: it cannot be read as one."""
    try:
        if layout == "csv":
            return max(sum(map(any, csv.reader(io.StringIO(file.read_text(encoding="utf-8"))))) - 1, 0)
        if layout in ("kitti", "yolo"):
            return sum(bool(line.strip()) for line in file.read_text(encoding="utf-8").splitlines())
        if layout == "voc":
            return len(ElementTree.fromstring(file.read_bytes()).findall("object"))
        return len(json.loads(file.read_text())["annotations"])
    except (ValueError, csv.Error, ElementTree.ParseError, LookupError, TypeError):
        return None

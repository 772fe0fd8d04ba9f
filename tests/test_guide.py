"""The guide holds: what its pages name is there, and every command and every piece of Python on them runs, on tiny data.

The pages are run in reading order in one folder that has what they name: specs, shrunk, and data of 24 pictures. What a
page takes for granted is done before it, so that one page can be tested alone.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image, ImageDraw

from detectkit import spec
from detectkit.cli import main
from detectkit.commands.completion import _actions
from detectkit.commands.tree import ALIASES, COMMANDS, parse, whole
from detectkit.data.digits import make_sample_data
from detectkit.deploy.latency import latencies
from detectkit.model.detector import build
from detectkit.ops.decode import decode
from detectkit.spec.explain import places

ROOT = Path(__file__).parent.parent
README, INDEX = ROOT / "README.md", ROOT / "docs" / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = [README, INDEX, *(INDEX.parent / name for name in LINK.findall(INDEX.read_text()))]
SPEC_PATH = re.compile(r"\bspecs/[\w./-]*\w")
SPECS_OF_THE_READER = {"specs/mine.txt"}
TABLE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^ {4}(detectkit [^\n]+)$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")  # in a sentence
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
MAKE = re.compile(r"^make ([a-z][a-z-]*)", re.MULTILINE)
OF_OTHER_TOOLS = re.compile(r"docker|pip|make|trtexec|--(build-arg|shm-size|user)\b")  # how such code begins
PLACEHOLDERS = {"COMMAND", "FIELD", "PATH"}
IN_CONTAINER = re.compile(r"(?<!\S)detectkit (\w.*)$")
ASSIGNED = re.compile(r"^(\w+=(\$\([^)]*\)|\S)+ )+")  # environment variables before a command
FIELD = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+)+)(?:(?::| \{) [^`]*)?`")
FIELD_PAGES = ("data.md", "tuning.md")  # what looks like a field there is one

# How lines begin that are not run, and why.
NOT_RUN = {
    "make ": "sets up an environment, or takes minutes; the command that `make demo` runs stands by itself",
    "detectkit init ": "the reader's spec is written already, for all pages; tests/commands/test_init.py runs it",
    "cp specs/demo.txt specs/mine.txt": "the reader edits the copy: here it is edited already",
    "trtexec ": "belongs to TensorRT, and needs a GPU",
    "python bench/": "measures for minutes",
    "docker ": "needs a container engine",
    "mkdir ": "makes folders for a container",
}


class Piece(NamedTuple):
    """A part of a page that does something."""

    language: str  # sh, python, protobuf
    text: str
    line: int

    def lines(self) -> list[str]:
        """The command lines of a shell's text."""
        lines = [line.strip() for line in self.text.replace("\\\n", " ").splitlines()]
        return [ASSIGNED.sub("", line) for line in lines if line and not line.startswith("#")]


def pieces(page: Path) -> list[Piece]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        language, fenced, indented = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Piece("sh", indented, line) if indented else Piece(language, fenced, line))
    return found


def reason_not_to_run(line: str) -> str | None:
    return next((reason for start, reason in NOT_RUN.items() if line.startswith(start)), None)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# What the pages name


def anchors(page: Path) -> set[str]:
    """The headings, as links name them."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in HEADING.findall(page.read_text())
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    missing = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    specs = set(SPEC_PATH.findall(text)) - SPECS_OF_THE_READER
    missing += [path for path in specs if not (ROOT / path).exists()]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    assert {page.name for page in PAGES[1:]} == {page.name for page in INDEX.parent.glob("*.md")}


@pytest.mark.parametrize("name", FIELD_PAGES)
def test_the_fields_that_a_page_names_are_those_of_the_spec(name: str) -> None:
    known = {place.field.name for place in places()}
    assert [field for field in FIELD.findall((INDEX.parent / name).read_text()) if field not in known] == []


def table_lines() -> list[str]:
    """The commands of the README's table, with the parts in brackets written out."""
    return [re.sub(r"[][]", "", line) for line in TABLE.findall(README.read_text())]


def test_every_command_is_in_the_readme() -> None:
    assert {line.split()[0] for line in table_lines()} >= set(COMMANDS)


@pytest.mark.parametrize("line", table_lines())
def test_a_line_of_the_table_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["1" if word == "N" else word for word in line.split() if word not in ("…", "...")]
    name = ALIASES.get(arguments[0], arguments[0])
    module = importlib.import_module(f"detectkit.commands.{name.replace('-', '_')}")
    understood: list[Any] = []
    monkeypatch.setattr(module, "run", understood.append)
    assert main(arguments) == 0 and len(understood) == 1


# What the pages say between their blocks


def code_of(page: Path) -> list[str]:
    """The pieces of code in its sentences and tables."""
    return CODE.findall(FENCED.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in code_of(page):
        program, *words = code.split()
        if program != "detectkit" or not words or words[0] in PLACEHOLDERS:
            continue
        assert words[0] in (*COMMANDS, *ALIASES, "--version"), code
        if words[0] == "explain" and words[-1] not in PLACEHOLDERS:
            assert main(words) == 0, code
        elif len(words) > 1 and not words[-1].startswith(
            "-"
        ):  # a name alone, or with an option, is only named
            assert parse(words), code


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All that detectkit's commands take, those of TLT that do nothing included."""
    return {name for action in _actions(whole()) for name in action.option_strings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_options_that_a_page_names_are_there(page: Path, options: set[str]) -> None:
    own = [code for code in code_of(page) if not OF_OTHER_TOOLS.match(code)]
    assert [name for code in own for name in OPTION.findall(code) if name not in options] == []


def test_what_make_is_asked_for_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = [line for page in PAGES for line in (*code_of(page), *page.read_text().splitlines())]
    asked = {name for line in shown for name in MAKE.findall(line)}
    assert {"demo", "setup", "check", "docs", "image"} <= asked and asked - targets == set()


# What the pages run on


def draw(path: Path, names: Sequence[str], generator: np.random.Generator) -> list[tuple[str, list[int]]]:
    """A picture of 96x64 with an object of every name on noise; gives their boxes."""
    image = Image.fromarray(generator.integers(90, 130, (64, 96, 3), dtype=np.uint8))
    width, objects = 96 // len(names), []
    for number, name in enumerate(names):
        w, h = (width - 6, 40) if number % 2 else (width - 10, 24)
        x, y = number * width + int(generator.integers(0, 5)), int(generator.integers(0, 64 - h))
        color = ("red", "blue", "yellow", "white")[number]
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=color)
        objects.append((name, [x, y, x + w, y + h]))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return objects


def make_kitti(images: Path, labels: Path, names: Sequence[str], suffix: str, count: int = 24) -> None:
    generator = np.random.default_rng(3)
    labels.mkdir(parents=True)
    for number in range(count):
        objects = draw(images / f"{number:06d}{suffix}", names, generator)
        lines = [f"{name} 0 0 0 {' '.join(map(str, box))} 0 0 0 0 0 0 0\n" for name, box in objects]
        (labels / f"{number:06d}.txt").write_text("".join(lines))


def make_coco(root: Path, names: Sequence[str]) -> None:
    generator = np.random.default_rng(4)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    for fold in ("val2017", "train2017"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(4):
            images.append({"id": number, "file_name": f"{number}.jpg", "width": 96, "height": 64})
            for name, (x1, y1, x2, y2) in draw(root / fold / f"{number}.jpg", names, generator):
                box = [x1, y1, x2 - x1, y2 - y1]
                entry = {"id": len(annotations), "image_id": number, "category_id": names.index(name)}
                annotations.append({**entry, "bbox": box, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{fold}.json").write_text(json.dumps(content))


def make_voc(root: Path, names: Sequence[str]) -> None:
    generator = np.random.default_rng(5)
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        objects = ""
        for name, box in draw(root / "JPEGImages" / f"{number}.jpg", names, generator):
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]))
            edges = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
            objects += f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"
        text = f"<annotation><size><width>96</width><height>64</height></size>{objects}</annotation>"
        (root / "Annotations" / f"{number}.xml").write_text(text)
    (root / "ImageSets" / "Main" / "val.txt").write_text("0\n1\n")
    (root / "ImageSets" / "Main" / "train.txt").write_text("2\n3\n")


def make_yolo_and_csv(data: Path, names: Sequence[str]) -> None:
    """The same pictures in two layouts."""
    generator = np.random.default_rng(6)
    for part in ("valid", "train"):
        labels = data / "yolo" / part / "labels"
        labels.mkdir(parents=True)
        rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
        for number in range(4):
            objects = draw(data / "yolo" / part / "images" / f"{number}.jpg", names, generator)
            lines = []
            for name, (x1, y1, x2, y2) in objects:
                centre = f"{(x1 + x2) / 192} {(y1 + y2) / 128}"
                lines.append(f"{names.index(name)} {centre} {(x2 - x1) / 96} {(y2 - y1) / 64}\n")
                rows.append(f"{number}.jpg,96,64,{name},{x1},{y1},{x2},{y2}")
            (labels / f"{number}.txt").write_text("".join(lines))
        shutil.copytree(data / "yolo" / part / "images", data / "csv" / part)
        (data / "csv" / part / "_annotations.csv").write_text("\n".join(rows))
    (data / "yolo" / "data.yaml").write_text(f"nc: {len(names)}\nnames: {list(names)}\n")


def make_data(data: Path) -> None:
    """The folders that the pages name."""
    make_kitti(data / "mine" / "image_2", data / "mine" / "label_2", ["square", "bar"], ".jpg")
    (data / "mine" / "labels.txt").write_text("square\nbar\n")
    kitti, names = data / "kitti", ["Car", "Pedestrian", "Cyclist"]
    make_kitti(kitti / "data_object_image_2/training/image_2", kitti / "training/label_2", names, ".png")
    make_kitti(kitti / "data_object_image_2/testing/image_2", kitti / "testing/label_2", names, ".png", 4)
    for part in ("train", "test"):
        folder = data / "bccd" / part
        make_kitti(folder / "image_2", folder / "label_2", ["RBC", "WBC", "Platelets"], ".jpg")
    make_coco(data / "coco", ["person", "bicycle", "car"])
    make_voc(data / "VOCdevkit" / "VOC2012", ["person", "dog"])
    make_yolo_and_csv(data, ["car", "traffic light"])


def shrink(message: spec.Spec) -> None:
    """The same experiment on pictures of 96x64, in an epoch and with the least of networks."""
    if isinstance(message, spec.Inference):
        message.inferencer_config.image_width, message.inferencer_config.image_height = 96, 64
        message.inferencer_config.batch_size = 4
    if not isinstance(message, spec.Experiment):
        return
    size = message.augmentation_config.preprocessing
    size.output_image_width, size.output_image_height, size.enable_auto_resize = 96, 64, True
    message.augmentation_config.ClearField("spatial_augmentation")
    model, training = message.model_config, message.training_config
    model.arch, model.num_layers, model.use_batch_norm = "squeezenet", 0, False
    if model.pretrained_model_file.endswith(".pth"):
        model.ClearField("pretrained_model_file")
    model.ClearField("training_precision")
    training.batch_size_per_gpu, training.num_epochs, training.workers = 4, 1, 0
    message.evaluation_config.first_validation_epoch = 1
    if message.pruning_config.HasField("retraining"):
        message.pruning_config.retraining.num_epochs = 1
    if message.HasField("calibration_config"):
        message.calibration_config.ClearField("batches")


CONVERSION = """
dataset_export_config {
  kitti_config {
    root_directory_path: "data/mine" image_dir_name: "image_2" label_dir_name: "label_2" image_extension: ".jpg"
    num_partitions: 2 val_split: 25 num_shards: 1
  }
  image_directory_path: "data/mine"
  output_filename: "results/mine/records/mine"
}
pruning_config { target_params: 0.5 }
calibration_config { }
export_config { data_type: INT8 runtime: ONNXRUNTIME }
"""


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, tiny_root: Path, tiny_text: str, as_keras: Callable[..., Path]
) -> Iterator[Path]:
    """The current folder of the pages: data/, and specs/ as the shipped ones are, shrunk, with the reader's."""
    folder = tmp_path_factory.mktemp("guide")
    make_data(folder / "data")
    for path in (ROOT / "specs").rglob("*.txt"):
        message = spec.load(path)
        shrink(message)
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text_format.MessageToString(message))
    mine = tiny_text.replace(f"{tiny_root}/records/tiny", "results/mine/records/mine")
    mine = mine.replace(f"{tiny_root}/kitti", "data/mine").replace('"png"', '"jpg"') + CONVERSION
    experiment = spec.loads(mine)
    shrink(experiment)
    (folder / "specs" / "mine.txt").write_text(text_format.MessageToString(experiment))
    trained = spec.load_experiment(folder / "specs/kitti/train.txt")  # with TLT, as a page has it
    detector = build(trained.model_config, spec.class_names(trained), 3)
    as_keras(folder / "weights" / "model.hdf5", detector)
    assert make_sample_data.__kwdefaults__ and latencies.__kwdefaults__
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(make_sample_data.__kwdefaults__, "frames", 20)
        patch.setitem(latencies.__kwdefaults__, "rounds", 1)  # times are not what is tested here
        patch.setattr("detectkit.deploy.stopwatch.ROUNDS", 1)
        patch.setattr(
            "detectkit.commands.run._report", lambda folder: None
        )  # `detectkit report` is on a page itself
        yield folder


def run(line: str, captured: pytest.CaptureFixture[str]) -> int:
    command, *arguments = shlex.split(line, comments=True)
    assert command == "detectkit", f"{line}: run it, or name it in NOT_RUN"
    captured.readouterr()
    try:
        code = main(arguments)
    except SystemExit as left:  # --help, --version
        code = int(left.code or 0)
    said = captured.readouterr()
    assert code == 0, f"{line}\n{said.out[-2000:]}\n{said.err[-2000:]}"
    return code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_runs(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pieces(page)
    if page.parent == INDEX.parent and "results/mine/" in page.read_text():
        run("detectkit run -e specs/mine.txt", capsys)
    names: dict[str, Any] = {}
    for piece in found:
        if piece.language == "python":
            exec(compile(piece.text, f"{page.name}:{piece.line}", "exec"), names)
        if piece.language == "protobuf":
            text_format.Parse(piece.text, spec.Experiment())
        for line in piece.lines() if piece.language == "sh" else ():
            if reason_not_to_run(line) is None:
                assert run(line, capsys) == 0


def sections(page: Path) -> list[spec.Experiment]:
    """What a page shows of specs."""
    found = [piece.text for piece in pieces(page) if piece.language == "protobuf"]
    return [text_format.Parse(text, spec.Experiment()) for text in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_sections_that_a_page_shows_keep_the_rules(page: Path) -> None:
    """Put into a spec in the place of its own; classes would have to be changed everywhere."""
    for part in sections(page):
        experiment = spec.load_experiment(ROOT / "specs" / "demo.txt")
        for field, _ in part.ListFields():
            experiment.ClearField(field.name)
        experiment.MergeFrom(part)
        broken = [str(violation) for violation in spec.check(experiment)]
        assert part.HasField("dataset_config") or broken == []


@pytest.mark.parametrize(("number", "kind"), [*enumerate(["kitti", "coco", "voc", "yolo", "csv"])])
def test_the_conversions_of_the_data_page_work(
    number: int, kind: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [config for part in sections(INDEX.parent / "data.md") for config in part.dataset_export_config]
    assert configs[number].WhichOneof("convert_config_type") == f"{kind}_config" and len(configs) == 5
    (tmp_path / "convert.txt").write_text(text_format.MessageToString(configs[number]))
    run(f"detectkit convert -d {tmp_path}/convert.txt -o {tmp_path}/records/x", capsys)
    assert list((tmp_path / "records").glob("x-fold-000*")) and not list(tmp_path.rglob("*_warning.json"))


def test_onnx_runtime_alone_gives_the_boxes_of_detectkit(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's few lines decode as `detectkit` does, but for the cut at the border, and crossed boxes, which become empty."""
    [text] = [piece.text for piece in pieces(INDEX.parent / "deploying.md") if piece.language == "python"]
    run("detectkit run -e specs/mine.txt", capsys)
    model = "results/mine/train/weights/model-best.safetensors"
    run(f"detectkit export -m {model} -o results/mine/model.onnx", capsys)
    names: dict[str, Any] = {}
    exec(text.replace("> 0.3", ">= 0"), names)  # all cells
    maps = torch.from_numpy(names["bbox"]).unflatten(1, (-1, 4))
    width, height = names["width"], names["height"]
    expected = decode(maps, stride=names["stride"], scale=35.0, offset=0.5, width=width, height=height)
    found = names["boxes"].clip(0, [width, height, width, height])
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
    assert len(found) == (width // 16) * (height // 16) and np.ptp(found[:, 2]) > 16
    np.testing.assert_allclose(found, expected[0, 0].flatten(0, 1), atol=1e-3)


def lines_not_run() -> list[str]:
    shown = [
        line for page in PAGES for piece in pieces(page) if piece.language == "sh" for line in piece.lines()
    ]
    return [line for line in shown if reason_not_to_run(line)]


def test_what_is_not_run_is_on_the_pages() -> None:
    lines = lines_not_run()
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def test_commands_in_containers_are_understood() -> None:
    inside = [IN_CONTAINER.search(line) for line in lines_not_run() if line.startswith("docker ")]
    found = [shlex.split(match[1]) for match in inside if match]
    assert len(found) >= 3 and all(parse(words) for words in found)

"""The code before and the code at hand, side by side on the CPU: the same weights, files, detections and pages, or how they differ.

    python bench/same.py BEFORE                                       # a checkout with its messages generated; fifteen minutes
    python bench/same.py BEFORE AFTER --only export --networks vgg-16
    python bench/same.py BEFORE -r DIR                                # all that both have written is kept in DIR

Both run the same command lines on the same files: data, records, models of every backbone, and runs, all written by the code before,
so files of it must still load. The models were trained for a step and have random scales, shifts and statistics.
What is in the files is compared bit for bit, and so are their bytes. Differences that are meant (an entry of a header or JSON file that only
the code at hand has, a checksum that follows, a time, a version) are told, and cost nothing; any other makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from differences import READERS, Difference, differences
from PIL import Image, ImageDraw

from detectkit.console import table
from detectkit.errors import Interrupted

ROOT = Path(__file__).resolve().parent.parent
SEED = 7
# Of the demo's spec, and their colours here.
CLASSES = {"zero": (220, 40, 40), "one": (40, 200, 40), "four": (40, 60, 220)}
DEMO = (320, 192)  # pixels, width and height
SMALL = (64, 32)  # of every backbone: two cells of the widest stride
FEW = ("resnet-10", "mobilenet_v2", "efficientnet_b0")  # where one of each kind is enough
# Minutes each, of the same blocks as smaller ones: only by name.
LARGE = ("resnet-101", "resnet-152", "resnet-200", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7")
THRESHOLDS = ("0.2", "0.5", "0.8")  # see `randomise`: norms are spread evenly below the largest
METHODS = ("minmax", "entropy", "percentile")  # of calibration, besides the default
FORMATS = {  # of ONNX files
    "float": (),
    "fp16": ("--data_type", "fp16"),
    "int8": ("--data_type", "int8"),
    "int8_onnxruntime": ("--data_type", "int8", "--runtime", "onnxruntime"),
}
EPOCH = '"Epoch finished."'  # in status.jsonl
SHOWN = 12  # differences of a part
# One process a checkout runs command after command: each line it reads is one, each line it answers its exit code.
PROCESS = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from detectkit.cli import main
for line in sys.stdin:
    try:
        code = main(json.loads(line))
    except BaseException:
        traceback.print_exc()
        code = -1
    print(code, file=answers, flush=True)
"""
NETWORKS = """
import json
from detectkit.spec.networks import NETWORKS
print(json.dumps({arch: [network.depths, network.in_tlt] for arch, network in NETWORKS.items()}))
"""
DATA = """
kitti_config {
  root_directory_path: "GIVEN/NAME" image_dir_name: "image_2" label_dir_name: "label_2" image_extension: ".png"
  partition_mode: "random" num_partitions: 2 val_split: 25 num_shards: 2
}
image_directory_path: "GIVEN/NAME"
"""


class Network(NamedTuple):
    """A backbone in one of its forms."""

    arch: str
    depth: int  # 0: it has one
    is_tlts: bool

    @property
    def name(self) -> str:
        return self.arch + (f"-{self.depth}" if self.depth else "") + ("-tlt" if self.is_tlts else "")


class Checkout:
    """The commands of a checkout, run one after the other in one process, in a folder that their paths start from."""

    def __init__(self, root: Path, folder: Path) -> None:
        if not (root / "detectkit/spec/experiment_pb2.py").is_file():
            make = f"cd {root} && {sys.executable} -c 'import setup; setup.generate()'"
            sys.exit(f"{root} is no checkout of detectkit with its messages generated: {make}")
        folder.mkdir(parents=True)
        self.root, self.folder, self.log = root, folder, folder.with_suffix(".log")
        # The number of threads decides in which order numbers are added.
        self.environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self._started: subprocess.Popen[str] | None = None

    def python(self, *arguments: str) -> list[str]:
        """The command line of a Python that has this detectkit, and not what is in the current folder."""
        return [sys.executable, "-P", *arguments]

    def start(self, *arguments: str | Path) -> None:
        """Begin with a command of detectkit."""
        if self._started is None:
            with self.log.open("ab") as log:
                self._started = subprocess.Popen(
                    self.python("-c", PROCESS),
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self._started.stdin
        self._offset = self.log.stat().st_size
        self._started.stdin.write(json.dumps(list(map(str, arguments))) + "\n")
        self._started.stdin.flush()

    def finish(self) -> str:
        """Wait for the end of what was begun; gives its error, empty where there is none."""
        assert self._started and self._started.stdout
        answer = self._started.stdout.readline().strip()
        if answer == "0":
            return ""
        if not answer:  # the process is gone: the next command gets another one
            answer, self._started = f"{self._started.wait()}", None
        with self.log.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().decode(errors="replace").splitlines()
        told = next((line for line in reversed(lines) if line.startswith("error: ")), None)
        last = told or next((line for line in reversed(lines) if line.strip()), "no word")
        return f"exit code {answer}, {last}"

    def run(self, *arguments: str | Path) -> None:
        """A command that must succeed for anything to be compared."""
        self.start(*arguments)
        if error := self.finish():
            sys.exit(
                f"{self.root}: detectkit {' '.join(map(str, arguments))}: {error}; all of it is in {self.log}"
            )

    def close(self) -> None:
        if self._started is not None:
            assert self._started.stdin
            self._started.stdin.close()
            self._started.wait()


class Part:
    """What was compared of a part, and what differs."""

    def __init__(self) -> None:
        self.compared = self.same = self.equal = 0  # files; in what is in them; in their bytes too
        self.found: list[tuple[str, Difference]] = []  # with the file's name
        self.notes: list[str] = []

    def add(self, name: str, found: Sequence[Difference], *, is_equal: bool) -> None:
        self.compared += 1
        self.equal += is_equal
        self.same += not any(not item.is_meant for item in found)
        self.found += [(name, item) for item in found]


class Comparison:
    """Both checkouts, and the files that the one before has made for both.

    What a command reads it names in full, what it writes from the folder of its side: so both run the same command lines.
    """

    def __init__(
        self, before: Path, after: Path, folder: Path, networks: Sequence[str], *, keeps: bool
    ) -> None:
        self.keeps = keeps  # what has been compared
        self.given = folder / "given"
        self.given.mkdir()
        self.before, self.after = (
            Checkout(root, folder / side) for root, side in ((before, "before"), (after, "after"))
        )
        self.networks = self._networks(networks)
        self.part = Part()

    def _networks(self, names: Sequence[str]) -> list[Network]:
        """Those of the code before: all depths, and TLT's layout at the first depth of a family that has it."""
        command = self.before.python("-c", NETWORKS)
        printed = subprocess.check_output(
            command, env=self.before.environment, cwd=self.before.folder, text=True
        )
        found = []
        for arch, (depths, in_tlt) in json.loads(printed).items():
            found += [Network(arch, depth, False) for depth in depths or [0]]
            if in_tlt and not re.fullmatch("efficientnet_b[1-9]", arch):
                found.append(Network(arch, depths[0] if depths else 0, True))
        every = [network.name for network in found]
        unknown = [name for name in names if name not in every]
        if unknown:
            sys.exit(f"there is no network {', '.join(unknown)}: choose of {', '.join(every)}")
        return [network for network in found if network.name in (names or {*every} - {*LARGE})]

    def both(self, *arguments: str | Path) -> bool:
        """Run a command by both at the same time; gives whether both succeeded. A failure is a difference, of both too."""
        for side in (self.before, self.after):
            side.start(*arguments)
        errors = [side.finish() for side in (self.before, self.after)]
        if not any(errors):
            return True
        text = (
            f"fails on both sides: {errors[0]}"
            if errors[0] == errors[1]
            else f"{errors[0] or 'runs'}; now {errors[1] or 'runs'}"
        )
        self.part.add(f"detectkit {' '.join(map(str, arguments))}", [Difference(text)], is_equal=False)
        return False

    def compare(self, *names: str) -> None:
        """Files that both have written, or those of folders, by their paths in the folders of the two."""
        for name in names:
            for path in self.written(name):
                pair = self.before.folder / path, self.after.folder / path
                equal = all(file.is_file() for file in pair) and pair[0].read_bytes() == pair[1].read_bytes()
                self.part.add(str(path), differences(*pair), is_equal=equal)

    def drop(self, name: str) -> None:
        """Remove a large file of both that has been compared, where nothing is kept."""
        if not self.keeps:
            for side in (self.before, self.after):
                (side.folder / name).unlink(missing_ok=True)

    def written(self, name: str) -> list[Path]:
        """A file, or those of a folder, that at least one side has, by their paths in its folder."""
        found = set()
        for side in (self.before, self.after):
            place = side.folder / name
            files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
            found |= {file.relative_to(side.folder) for file in files}
        return sorted(found)

    def hand_over(self, name: str, to: str) -> None:
        """Copy what the code before has written to the code at hand, as it is."""
        shutil.copytree(self.before.folder / name, self.after.folder / to)

    # What the code before makes once, for both

    def data(self, name: str, size: tuple[int, int], count: int) -> None:
        """Pictures with labels, and their records."""
        if (self.given / name).exists():
            return
        draw(self.given / name, size, count)
        spec = self.given / f"{name}_convert.txt"
        spec.write_text(self._on(name, DATA))
        self.before.run("convert", "-d", spec, "-o", self.given / f"{name}_records/part")

    def demo(self) -> Path:
        """The demo's spec on 24 pictures, two epochs; gives its path."""
        self.data("demo", DEMO, 24)
        path = self.given / "demo.txt"
        path.write_text(without(self._spec("demo"), "dataset_export_config"))
        return path

    def chain(self) -> Path:
        """The same with the conversion, for a whole run."""
        self.data("demo", DEMO, 24)
        text = self._spec("demo").replace(f"{self.given}/demo_records/part", "records/part")
        path = self.given / "chain.txt"
        path.write_text(text)
        return path

    def _spec(self, data: str) -> str:
        """The demo's spec of the code before, on other pictures."""
        changes = {
            r"sample_config \{[^}]*\}": DATA[: DATA.index("}") + 1].strip().replace("\n", " "),
            r'"results/demo/records/digits': '"GIVEN/NAME_records/part',
            r'"results/demo/data"': '"GIVEN/NAME"',
            r'image_extension: "jpg"': 'image_extension: "png"',
            r"num_epochs: 7": "num_epochs: 2",
            r"num_epochs: 3": "num_epochs: 1",
            r"batches: 20": "batches: 4",
        }
        return self._on(data, changed((self.before.root / "specs/demo.txt").read_text(), changes))

    def _on(self, data: str, text: str) -> str:
        return text.replace("GIVEN", str(self.given)).replace("NAME", data)

    def trained(self) -> Path:
        """The demo's network as the code before trains it, two epochs; gives the path of the model."""
        model = self.before.folder / "training/weights/model.safetensors"
        if not model.exists():
            self.before.run("train", "-e", self.demo(), "-r", "training")
        return model

    def model(self, network: Network) -> Path:
        """A model of a backbone with random scales, shifts and statistics; gives its path."""
        path = self.given / "models" / f"{network.name}.safetensors"
        if not path.exists():
            self.data("small", SMALL, 4)
            spec = self.given / f"{network.name}.txt"
            spec.write_text(self._small_spec(network))
            self.before.run("train", "-e", spec, "-r", "one_step")
            path.parent.mkdir(exist_ok=True)
            randomise(self.before.folder / "one_step/weights/model.safetensors", path)
            shutil.rmtree(self.before.folder / "one_step")
        return path

    def _small_spec(self, network: Network) -> str:
        layout = " layout: TLT" if network.is_tlts else ""
        text = self._spec("small")
        for section in ("dataset_export_config", "pruning_config", "calibration_config", "export_config"):
            text = without(text, section)
        changes = {
            r'arch: "resnet"\n  num_layers: 10': f'arch: "{network.arch}" num_layers: {network.depth}{layout}',
            r"training_precision \{[^}]*\}": "",
            r"output_image_width: 320": f"output_image_width: {SMALL[0]}",
            r"output_image_height: 192": f"output_image_height: {SMALL[1]}",
            r"num_epochs: 2": "num_epochs: 1 workers: 0",
            r"visualizer \{[^}]*\}": "",
            r"validation_period_during_training: 2\n  first_validation_epoch: 1": "",
        }
        return changed(text, changes)

    def scales(self, network: Network) -> Path:
        """The calibration table of a model by the code before; gives its path."""
        folder = Path("calibration") / network.name
        if not (self.before.folder / folder / "scales.json").exists():
            self.before.run(
                "calibrate", "-m", self.model(network), "-o", folder, "--batches", "1", "--batch_size", "2"
            )
        return self.before.folder / folder / "scales.json"


# Data, specs and models


def draw(folder: Path, size: tuple[int, int], count: int) -> None:
    """Noise with a bright rectangle of each class in a third of the width, and KITTI's labels."""
    generator = np.random.default_rng(SEED)
    for name in ("image_2", "label_2"):
        (folder / name).mkdir(parents=True)
    width, height = size
    for number in range(count):
        image = Image.fromarray(generator.integers(80, 140, (height, width, 3), dtype=np.uint8))
        lines = []
        for third, name in enumerate(generator.permutation(list(CLASSES))):
            w, h = (
                int(generator.integers(low, high))
                for low, high in ((width // 5, width // 3), (height // 3, height))
            )
            x, y = third * width // 3, int(generator.integers(0, height - h + 1))
            ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=CLASSES[name])
            lines.append(f"{name} 0 0 0 {x} {y} {x + w} {y + h} 0 0 0 0 0 0 0\n")
        image.save(folder / f"image_2/{number:03}.png")
        (folder / f"label_2/{number:03}.txt").write_text("".join(lines))


def changed(text: str, changes: dict[str, str]) -> str:
    """A spec with patterns replaced; each must be in it."""
    for pattern, new in changes.items():
        text, count = re.subn(pattern, lambda _, new=new: new, text)  # type: ignore[misc]
        if not count:
            sys.exit(
                f"the demo's spec of the code before does not have {pattern} any more: bench/same.py changes it"
            )
    return text


def without(text: str, section: str) -> str:
    """A spec without a section, which ends with a brace at the begin of a line."""
    return changed(text, {rf"(?ms)^{section} \{{.*?^\}}\n": ""})


def randomise(source: Path, target: Path) -> None:
    """Copy a model, with random norms of its filters, shifts, scales and statistics: those of a training that lasted."""
    generator = np.random.default_rng(SEED)
    tensors = safetensors.numpy.load_file(source)
    with safetensors.safe_open(source, framework="numpy") as file:
        metadata = {  # without a checksum, as those of files from before there was one
            name: re.sub('("checksum": )"[0-9a-f]{64}"', rf'\1"{"0" * 64}"', text)
            for name, text in file.metadata().items()
        }
    for (
        name,
        values,
    ) in tensors.items():  # such that neither the values of deep networks vanish in 8 bits nor overflow in 16
        leaf = name.rpartition(".")[2]
        if leaf == "weight" and values.ndim == 4:
            new = values * generator.uniform(0.1, 1, (len(values), 1, 1, 1))
        elif leaf in ("weight", "running_var"):
            new = generator.uniform(*((0.5, 1.5) if leaf == "weight" else (0.2, 0.8)), values.shape)
        elif leaf in ("bias", "running_mean"):
            new = generator.normal(0, 0.1, values.shape)
        else:
            continue
        tensors[name] = new.astype(values.dtype)
    safetensors.numpy.save_file(tensors, target, metadata)


# The parts


def records(pair: Comparison) -> None:
    """Labels as records."""
    pair.data("demo", DEMO, 24)
    if pair.both("convert", "-d", pair.given / "demo_convert.txt", "-o", "records_again/part"):
        pair.compare("records_again")


def training(pair: Comparison) -> None:
    """Two epochs of the demo's network."""
    spec = pair.demo()
    if pair.both("train", "-e", spec, "-r", "training"):
        pair.compare("training/weights", "training/experiment_spec.txt")


def resume(pair: Comparison) -> None:
    """A training that the code before has begun and that was stopped in its second epoch goes on with the code at hand, and ends as
    one of the code before that was never stopped."""
    pair.trained()
    before, spec = pair.before, pair.demo()
    command = before.python("-m", "detectkit", "train", "-e", spec, "-r", "stopped")
    status = before.folder / "stopped/status.jsonl"
    with before.log.open("ab") as log:
        started = subprocess.Popen(command, cwd=before.folder, env=before.environment, stdout=log, stderr=log)
        while started.poll() is None and not (status.exists() and EPOCH in status.read_text()):
            time.sleep(0.02)
        started.terminate()
    if started.wait() != Interrupted.exit_code:
        sys.exit(f"the training was not stopped in its second epoch, see {before.log}: try again")
    pair.hand_over("stopped", "resumed")
    shutil.copytree(before.folder / "training", before.folder / "resumed")  # finished: nothing is done there
    if pair.both("train", "-e", spec, "-r", "resumed"):
        pair.compare("resumed/weights", "resumed/experiment_spec.txt")


def calibration(pair: Comparison) -> None:
    """The tables and caches of every backbone; by all methods of a few."""
    for network in pair.networks:
        arguments = ("-m", pair.model(network), "--batches", "1", "--batch_size", "2")
        for method in (None, *(METHODS if network.name in FEW else ())):
            folder = f"calibration{'_' + method if method else ''}/{network.name}"
            if pair.both("calibrate", *arguments, "-o", folder, *(("--method", method) if method else ())):
                pair.compare(
                    *(f"{folder}/{file}" for file in ("scales.json", "calibration.cache", "layers.json"))
                )


def export(pair: Comparison) -> None:
    """Every backbone as ONNX, in float and fewer bits."""
    for network in pair.networks:
        for name, options in FORMATS.items():
            given = ("--calibration", pair.scales(network)) if "int8" in options else ()
            output = f"export/{network.name}_{name}.onnx"
            if pair.both("export", "-m", pair.model(network), "-o", output, *options, *given):
                pair.compare(output)
                pair.drop(output)


def pruning(pair: Comparison) -> None:
    """Every backbone at three thresholds by the norms of its filters; a few by what the cost would lose."""
    for network in pair.networks:
        for threshold in THRESHOLDS:
            output = f"pruned/{network.name}_{threshold}"
            if pair.both(
                "prune", "-m", pair.model(network), "-o", output, "-pth", threshold, "-n", "MAX", "-nf", "8"
            ):
                pair.compare(f"{output}.safetensors", f"{output}_retrain.txt")
                pair.drop(f"{output}.safetensors")
        if network.name in FEW:
            _prune_by_cost(pair, network)


def _prune_by_cost(pair: Comparison, network: Network) -> None:
    model, spec = pair.model(network), pair.given / f"{network.name}_taylor.txt"
    text = (pair.given / f"{network.name}.txt").read_text()
    spec.write_text(text + "pruning_config { criterion: TAYLOR target_params: 0.5 }\n")
    output = f"pruned/{network.name}_taylor"
    if pair.both("prune", "-e", spec, "-m", model, "-o", output):
        pair.compare(f"{output}.safetensors", f"{output}_retrain.txt")


def detections(pair: Comparison) -> None:
    """The trained network on 20 pictures as it is, as ONNX, and in 8 bits; and measured on its validation pictures."""
    draw(pair.given / "pictures", DEMO, 20)
    models = {"model": pair.trained()} | {
        name: pair.before.folder / f"{name}.onnx" for name in ("float", "int8")
    }
    pair.before.run("calibrate", "-m", models["model"], "-o", "ranges", "--batches", "4")
    for name, options in {"float": (), "int8": ("--calibration", "ranges/scales.json")}.items():
        pair.before.run("export", "-m", models["model"], "-o", models[name], *FORMATS[name], *options)
    spec = pair.given / "sure.txt"
    unsure = {"coverage_threshold: 0.05": "coverage_threshold: 0.005"}  # two epochs are little
    spec.write_text(changed((pair.given / "demo.txt").read_text(), unsure))
    for name, model in models.items():
        if pair.both("infer", "-e", spec, "-m", model, "-i", pair.given / "pictures", "-r", f"infer/{name}"):
            pair.compare(f"infer/{name}")
        if pair.both("evaluate", "-e", spec, "-m", model, "-r", f"evaluate/{name}"):
            pair.compare(f"evaluate/{name}/results.json", f"evaluate/{name}/details.npz")
    labels = list((pair.before.folder / "infer").glob("*/labels/**/*.txt"))
    boxes = sum(len(path.read_text().splitlines()) for path in labels)
    pair.part.notes.append(f"{boxes} boxes in {len(labels)} label files")
    if not boxes:
        pair.part.add("infer", [Difference("nothing is detected, so nothing is compared")], is_equal=False)


def chain(pair: Comparison) -> None:
    """A whole run: the code at hand goes on with what the code before has begun, and each makes the page of the same finished run."""
    spec = pair.chain()
    pair.before.run("run", "-e", spec, "-r", "run", "--until", "train")
    pair.hand_over("run", "run")
    pair.hand_over("records", "records")
    trained = (pair.after.folder / "run/train/stage.json").read_bytes()
    if not pair.both("run", "-e", spec, "-r", "run"):
        return
    if (pair.after.folder / "run/train/stage.json").read_bytes() != trained:
        pair.part.add(
            "run/train",
            [Difference("done by the code before, and done again by the code at hand")],
            is_equal=False,
        )
    # Not the page, which is full of times: that of one run is compared instead.
    kinds = READERS.keys() - {".html"}
    pair.compare(*(str(path) for path in pair.written("run") if path.suffix in kinds and path.name[0] != "."))
    shutil.copytree(pair.before.folder / "run", pair.before.folder / "finished")
    pair.hand_over("run", "finished")
    if pair.both("report", "finished"):
        pair.compare("finished/report.html")


PARTS: dict[str, Callable[[Comparison], None]] = {
    "records": records,
    "training": training,
    "resume": resume,
    "run": chain,
    "detections": detections,
    "calibration": calibration,
    "export": export,
    "pruning": pruning,
}


def compare(pair: Comparison, name: str) -> tuple[Part, float]:
    """One part, and the seconds that it took."""
    pair.part, start = Part(), time.perf_counter()
    PARTS[name](pair)
    seconds = time.perf_counter() - start
    counts = f"{pair.part.same} of {pair.part.compared} the same"
    print(f"{name}: {counts}, {seconds:.0f} s", file=sys.stderr, flush=True)
    return pair.part, seconds


def show(done: dict[str, tuple[Part, float]]) -> bool:
    """The table, then what differs; gives whether nothing but what is meant does."""
    rows = [
        (name, part.compared, part.same, part.equal, f"{seconds:.0f}")
        for name, (part, seconds) in done.items()
    ]
    table(("part", "files compared", "the same in content", "and in bytes", "seconds"), rows)
    for name, (part, _) in done.items():
        for note in part.notes:
            print(f"{name}: {note}")
        meant = Counter(item.text for _, item in part.found if item.is_meant)
        for text, count in meant.items():
            print(f"{name}: meant, in {count} files: {text}")
        real = [(file, item.text) for file, item in part.found if not item.is_meant]
        for file, text in real[:SHOWN]:
            print(f"{name}: DIFFERS: {file}: {text}")
        if len(real) > SHOWN:
            print(f"{name}: DIFFERS: and {len(real) - SHOWN} more")
    return all(part.same == part.compared > 0 for part, _ in done.values())


@contextlib.contextmanager
def workplace(results: Path | None) -> Iterator[Path]:
    """The folder of both: `results`, which must be new, or one that goes in the end."""
    if results is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    try:
        results.mkdir(parents=True)
    except FileExistsError:
        sys.exit(f"-r {results} is there already: name a new folder, or remove it first")
    yield results.resolve()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout, with its messages generated")
    parser.add_argument(
        "after", type=Path, nargs="?", default=ROOT, metavar="AFTER", help="another one (that of this file)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these, for instance vgg-16 or vgg-16-tlt",
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="new: keep everything there")
    args = parser.parse_args()
    with workplace(args.results_dir) as folder:
        pair = Comparison(
            args.before.resolve(),
            args.after.resolve(),
            folder,
            args.networks,
            keeps=args.results_dir is not None,
        )
        try:
            done = {name: compare(pair, name) for name in PARTS if name in args.only}
        finally:
            pair.before.close()
            pair.after.close()
    raise SystemExit(not show(done))


if __name__ == "__main__":
    main()

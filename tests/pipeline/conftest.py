"""One spec for the whole chain on the tiny experiment, and commands that write files without any network."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detectkit import spec
from detectkit.commands.tree import parse
from detectkit.pipeline.chain import Chain
from detectkit.pipeline.plan import PlannedStage, plan
from detectkit.pipeline.run import Runner
from detectkit.pipeline.stages import chain_of
from tests.conftest import EXPORT, SPEC, draw_example

SECTIONS = {
    "convert": f'dataset_export_config {{ {EXPORT} output_filename: "ROOT/records/tiny" }}\n',
    "train": SPEC,
    "prune": "pruning_config { target_params: 0.6 retraining { num_epochs: 1 } }\n",
    "calibrate": "calibration_config { batches: 3 }\n",
    "export": "export_config { data_type: INT8 runtime: ONNXRUNTIME }\n",
}
CHAIN = tuple(SECTIONS)


class Place:
    """A folder with label files, images, a spec of them, and the folder of its run."""

    def __init__(self, root: Path):
        self.root = root
        self.images, self.labels = root / "kitti" / "image_2", root / "kitti" / "label_2"
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        self.spec, self.folder = root / "chain.txt", root / "run"
        self.write()

    def write(self, *sections: str, change: dict[str, str] | None = None, more: str = "") -> None:
        """Write the spec: the sections named, all if none is, with texts changed and text added."""
        text = "".join(SECTIONS[name] for name in sections or CHAIN) + more
        for old, new in (change or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        self.spec.write_text(text.replace("ROOT", str(self.root)))

    @property
    def chain(self) -> Chain:
        return chain_of(spec.load_experiment(self.spec), self.folder)

    def state(self, name: str) -> dict:
        return json.loads((self.folder / name / "stage.json").read_text())

    def change_state(self, name: str, **values: object) -> None:
        (self.folder / name / "stage.json").write_text(json.dumps(self.state(name) | values))


class FakePlace(Place):
    """Its commands write what they would write, but short texts that hang on what they read."""

    def __init__(self, root: Path):
        super().__init__(root)
        for number in range(4):
            (self.images / f"{number}.png").write_text(f"pixels {number}")
            (self.labels / f"{number}.txt").write_text("square 0 0 0 1 1 9 9 0 0 0 0 0 0 0\n")
        self.records = "tiny"  # what their names begin with
        self.done: list[str] = []
        self.count = 0
        self.fails: dict[str, Exception] = {}

    def run(self, first: str | None = None, last: str | None = None) -> list[str]:
        """Run the stages that are to be done; gives the names of their folders."""
        self.done = []
        runner = Runner(self.chain, self._execute, lambda folder: None, {})
        self.count = runner.run(plan(self.chain, runner.prints, first=first, last=last))
        return list(dict.fromkeys(self.done))

    def plan(self, first: str | None = None, last: str | None = None) -> list[PlannedStage]:
        chain = self.chain
        runner = Runner(chain, self._execute, lambda folder: None, {})
        return plan(chain, runner.prints, first=first, last=last)

    def actions(self, first: str | None = None, last: str | None = None) -> dict[str, str]:
        """What is to be done, by stage, without what is done."""
        return {
            step.stage.name: step.action.value
            for step in self.plan(first, last)
            if step.action.value != "done"
        }

    def _execute(self, command: list[str]) -> None:
        module, args = parse(command)
        name = self._stage(command[0], args)
        self.done.append(name)
        if name in self.fails:
            raise self.fails[name]
        getattr(self, f"_{command[0]}")(args)

    def _stage(self, command: str, args: argparse.Namespace) -> str:
        places = [getattr(args, key, None) for key in ("results_dir", "output_file", "output")]
        place = next(path for path in places if path)
        return next(part for part in Path(place).relative_to(self.folder).parts)

    def _convert(self, args: argparse.Namespace) -> None:
        text = "".join(path.read_text() for path in sorted(self.labels.iterdir()))
        for fold in range(2):
            write(self.root / "records" / f"{self.records}-fold-00{fold}-of-002-shard-00000-of-00001", text)

    def _train(self, args: argparse.Namespace) -> None:
        experiment = spec.load_experiment(args.experiment_spec)
        config = experiment.training_config
        start = experiment.model_config.pretrained_model_file
        text = f"{config.num_epochs} {config.learning_rate} {read(start) if start else ''}"
        for name in ("weights/model.safetensors", "weights/model-best.safetensors", "resume.pt"):
            write(args.results_dir / name, f"{name} {text}")
        write(args.results_dir / "experiment_spec.txt", spec.dumps(experiment))

    def _evaluate(self, args: argparse.Namespace) -> None:
        write(args.results_dir / "results.json", '{"mean_average_precision": 0.5}')

    def _prune(self, args: argparse.Namespace) -> None:
        experiment = spec.load_experiment(args.experiment_spec)
        write(args.output_file, f"pruned {experiment.pruning_config.target_params} {read(args.model)}")

    def _calibrate(self, args: argparse.Namespace) -> None:
        experiment = spec.load_experiment(args.experiment_spec)
        write(args.output / "scales.json", f"{experiment.calibration_config.batches} {read(args.model)}")

    def _export(self, args: argparse.Namespace) -> None:
        ranges = read(args.calibration) if args.calibration else ""
        write(args.output_file, f"{args.output_file.name} {read(args.model)} {ranges}")

    def _engine(self, args: argparse.Namespace) -> None:
        write(args.output, f"engine of {read(args.model)}")

    def _latency(self, args: argparse.Namespace) -> None:
        write(args.results_dir / "latency.json", " ".join(read(path) for path in args.models))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePlace:
    """The whole chain with commands that need no network; nothing of it has to last."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    return FakePlace(tmp_path)


@pytest.fixture(scope="session")
def draw() -> Callable[..., Place]:
    """Makes a place with pictures that a network can be trained on."""

    def make(root: Path, *, pictures: int = 12) -> Place:
        place = Place(root)
        generator = np.random.default_rng(3)
        for number in range(pictures):
            draw_example(root / "kitti", f"{number:03d}", generator)
        return place

    return make

"""The shipped experiments from nothing to their accuracy, with the minutes that each command takes.

    python bench/experiment.py demo    # wanted: mAP 0.90 within 10 minutes
    python bench/experiment.py bccd    # wanted: mAP 0.83 within 30 minutes
    python bench/experiment.py bccd-mobilenet_v2    # and bccd-googlenet: other backbones, wanted as much within 60

The commands run one after the other in a temporary folder; the exit code is 1 when the accuracy or the time is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DETECTKIT = Path(sys.executable).with_name("detectkit")


class Experiment(NamedTuple):
    commands: list[str]
    accuracy: float  # mAP, 0 to 1
    minutes: float  # all commands together, by the clock


def bccd(name: str, *, minutes: float) -> Experiment:
    """The blood cells with the network of specs/bccd/<name>.txt."""
    results, spec = f"results/bccd/{name}", f"specs/bccd/{name}.txt"
    return Experiment(
        commands=[
            "convert -d specs/bccd/convert_train.txt -o results/bccd/records/train",
            "convert -d specs/bccd/convert_test.txt -o results/bccd/records/test",
            f"train -e {spec} -r {results}",
            f"evaluate -e {spec} -m {results}/weights/model.safetensors -r results/evaluation",
        ],
        accuracy=0.83,
        minutes=minutes,
    )


EXPERIMENTS = {
    "demo": Experiment(
        commands=[
            "sample-data -o results/demo/data",
            "convert -d specs/demo/convert.txt -o results/demo/records/digits",
            "train -e specs/demo/train.txt -r results/demo/train",
            "evaluate -e specs/demo/train.txt -m results/demo/train/weights/model-best.safetensors -r results/evaluation",
        ],
        accuracy=0.90,
        minutes=10,
    ),
    "bccd": bccd("train", minutes=30),
    "bccd-mobilenet_v2": bccd("mobilenet_v2", minutes=60),
    "bccd-googlenet": bccd("googlenet", minutes=60),
}


class Minutes(NamedTuple):
    wall: float
    cpu: float  # user and system, loader processes included


def run(command: str, folder: Path) -> Minutes:
    """Run one command in a folder; leaves with its exit code when it fails."""
    print(f"$ detectkit {command}", flush=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = subprocess.run([DETECTKIT, *command.split()], cwd=folder).returncode
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(code)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Minutes(wall / 60, cpu / 60)


def report(name: str, experiment: Experiment, spent: list[Minutes], results: dict) -> bool:
    """Print minutes and accuracy; gives whether both are as wanted."""
    total = Minutes(*(sum(column) for column in zip(*spent)))
    print("\nwall min  CPU min  command")
    for minutes, command in [*zip(spent, experiment.commands, strict=True), (total, "total")]:
        print(f"{minutes.wall:8.2f} {minutes.cpu:8.2f}  {command}")
    print(f"\nAP of {results['images']} images")
    for label, measured in results["classes"].items():
        area = measured["average_precision"]
        print(f"  {label}: {'no labelled box' if area is None else f'{area:.4f}'}")
    accuracy = results["mean_average_precision"]
    print(
        f"{name}: mAP {accuracy:.4f} (wanted {experiment.accuracy:.2f}), {total.wall:.1f} minutes"
        f" (limit {experiment.minutes:g}), {total.cpu:.1f} CPU minutes"
    )
    return accuracy >= experiment.accuracy and total.wall <= experiment.minutes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=EXPERIMENTS)
    name = parser.parse_args().name
    experiment = EXPERIMENTS[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for inputs in ("specs", "data"):
            (folder / inputs).symlink_to(ROOT / inputs)
        spent = [run(command, folder) for command in experiment.commands]
        results = json.loads((folder / "results" / "evaluation" / "results.json").read_text())
    if not report(name, experiment, spent, results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""`detectkit run` on the shipped experiments: what the chain takes, what it reaches, and a second run of it.

    python bench/run.py demo    # wanted: within 10 minutes
    python bench/run.py bccd    # wanted: within 60 CPU minutes; the test images of docs/bccd.md
    python bench/run.py bccd-train    # one training; bccd-googlenet is another backbone

Everything goes into a temporary folder, or into the folder of -r, where a run that was cut goes on and a complete one is only
measured: times are those of the stages, summed over restarts. Wanted of each: no mAP below the bar, but that of a network just
pruned; a report below 5 MB; a second run with nothing changed within 3 seconds. The exit code is 1 where one of them is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DETECTKIT = Path(sys.executable).with_name("detectkit")
CHAIN = "specs/bccd/chain.txt"
REPORT_BYTES = 5e6
SECOND_RUN = 3.0  # seconds by the clock
FREE = {"evaluate_pruned"}  # measured before it is trained again


class Experiment(NamedTuple):
    spec: str
    accuracy: float  # least mAP, 0 to 1
    cpu_minutes: float  # most of all stages, user and system, on all cores together
    wall_minutes: float  # and by the clock
    records: str = ""  # the spec whose conversions it needs, where it has none


EXPERIMENTS = {
    "demo": Experiment("specs/demo.txt", 0.88, cpu_minutes=20, wall_minutes=10),
    "bccd": Experiment(CHAIN, 0.83, cpu_minutes=60, wall_minutes=60),
    "bccd-train": Experiment("specs/bccd/train.txt", 0.83, 60, 30, records=CHAIN),
    "bccd-googlenet": Experiment("specs/bccd/googlenet.txt", 0.83, 120, 60, records=CHAIN),
}


class Seconds(NamedTuple):
    wall: float
    cpu: float


class Stage(NamedTuple):
    name: str
    spent: Seconds
    restarts: int
    accuracy: float | None  # mAP, of a stage that evaluates


class Bar(NamedTuple):
    """One figure and what it must not pass."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def call(command: list[str], folder: Path) -> Seconds:
    """Run one command in a folder; leaves with its exit code when it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = subprocess.run(command, cwd=folder).returncode
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(code)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def detectkit(arguments: str, folder: Path) -> Seconds:
    print(f"$ detectkit {arguments}", flush=True)
    return call([str(DETECTKIT), *arguments.split()], folder)


def read_stages(results: Path) -> list[Stage]:
    """The stages of a run, in their order."""
    files = [json.loads(path.read_text()) | {"path": path} for path in results.glob("*/stage.json")]
    stages = []
    for file in sorted(files, key=lambda file: (not file["started"], file["started"])):
        measured = file["path"].with_name("results.json")
        accuracy = json.loads(measured.read_text())["mean_average_precision"] if measured.exists() else None
        spent = Seconds(file["wall_seconds"], file["cpu_seconds"])
        stages.append(Stage(file["name"], spent, file["restarts"], accuracy))
    return stages


def print_stages(stages: list[Stage], total: Seconds) -> None:
    print("\nwall min  CPU min  restarts     mAP  stage")
    for name, spent, restarts, accuracy in [*stages, Stage("all", total, 0, None)]:
        shown = "" if accuracy is None else f"{100 * accuracy:.1f}"
        print(f"{spent.wall / 60:8.2f} {spent.cpu / 60:8.2f} {restarts or '':>9} {shown:>7}  {name}")


def measure(name: str, folder: Path, results: Path) -> bool:
    """Run an experiment twice in a folder, and print what it took; gives whether all bars are met."""
    experiment = EXPERIMENTS[name]
    command = f"run -e {experiment.spec} -r {results}"
    if experiment.records:
        detectkit(f"convert -d {experiment.records}", folder)
    first = detectkit(command, folder)
    stages = read_stages(results)
    total = Seconds(sum(stage.spent.wall for stage in stages), sum(stage.spent.cpu for stage in stages))
    print_stages(stages, total)
    print(f"the command itself: {first.wall / 60:.2f} minutes, {first.cpu / 60:.2f} CPU minutes\n")
    second = detectkit(command, folder)
    if read_stages(results) != stages:
        raise SystemExit(f"{name}: the second run did something, with nothing changed")
    script = f"from detectkit import spec; spec.load({experiment.spec!r})"
    least = call([sys.executable, "-c", script], folder)
    print(
        f"second run: {second.wall:.2f} s, {second.wall / least.wall:.1f} times as long as loading the spec"
    )
    accuracies = [stage.accuracy for stage in stages if stage.accuracy is not None and stage.name not in FREE]
    bars = [
        # What a restart repeats is in the command's time, what an earlier call did in that of the stages.
        Bar("CPU time", max(total.cpu, first.cpu) / 60, experiment.cpu_minutes, "minutes"),
        Bar("time", max(total.wall, first.wall) / 60, experiment.wall_minutes, "minutes"),
        Bar("least mAP", 100 * min(accuracies), 100 * experiment.accuracy, "points", at_least=True),
        Bar("report", (results / "report.html").stat().st_size / 1e6, REPORT_BYTES / 1e6, "MB"),
        Bar("second run", second.wall, SECOND_RUN, "s"),
    ]
    for bar in bars:
        word = "at least" if bar.at_least else "at most"
        verdict = "" if bar.is_met else "   MISSED"
        print(f"{name}: {bar.name} {bar.value:.2f} {bar.unit} (wanted: {word} {bar.limit:g}){verdict}")
    return all(bar.is_met for bar in bars)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS, default="demo")
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.results_dir:
        is_good = measure(args.name, ROOT, Path(os.path.abspath(args.results_dir)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for inputs in ("specs", "data"):
                (folder / inputs).symlink_to(ROOT / inputs)
            is_good = measure(args.name, folder, folder / "results" / args.name)
    if not is_good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

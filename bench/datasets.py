"""One recipe on every data set: float, pruned to a quarter and to a tenth, in 8 bits; mean and spread over seeds in one table.

    python bench/datasets.py -r DIR                               # everything: about twelve hours on two cores
    python bench/datasets.py -r DIR boards raccoon --seeds 42     # some of it
    python bench/datasets.py -r DIR --table                       # what DIR holds so far, nothing is run

Every row is a spec of specs/: `detectkit run` does its chain, then the float model is pruned to a tenth and trained again. The rows
`-tlt` have the costs, rates, regulariser, augmentation and clustering of the TLT tutorial (specs/kitti/train.txt) in the place of the recipe's;
the network, its weights, batch and input size, epochs and auto-weighting, without which weight_target means nothing, stay.
Everything stays in DIR, where a bench that was cut goes on. The test images are measured after the last epochs only. The exit code
is 1 where a bar is missed, or where it is not known yet whether it is met.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectkit import spec

ROOT = Path(__file__).resolve().parent.parent
DETECTKIT = Path(sys.executable).with_name("detectkit")
TUTORIAL = ROOT / "specs/kitti/train.txt"
SEVERAL, ONE = (42, 43, 44), (42,)
MODELS = ("float", "quarter", "quarter retrained", "int8", "tenth", "tenth retrained")
# Points of mAP that may be lost, in the mean over seeds, and the share of it that pruning alone has to leave.
LEAST_KEPT, QUARTER_LOSS, TENTH_LOSS, INT8_LOSS = 0.4, 1.0, 3.0, 0.5


class Row(NamedTuple):
    """A spec, the seeds it is trained with, and the mAP in points that the float models have to reach."""

    spec: str
    seeds: tuple[int, ...]
    least: float
    tutorial: bool = False  # with the values of the TLT tutorial


ROWS = {
    "boards": Row("specs/boards/mobilenet_v2.txt", SEVERAL, 92.0),
    "raccoon": Row("specs/raccoon/mobilenet_v2.txt", SEVERAL, 87.0),
    "bccd": Row("specs/bccd/mobilenet_v2.txt", ONE, 86.0),
    "demo": Row("specs/demo.txt", ONE, 88.0),
    # From scratch: the bars are what a well-known one-stage detector of 2.6 M parameters reaches in the same time.
    "boards-scratch": Row("specs/boards/resnet10.txt", SEVERAL, 60.6),
    "raccoon-scratch": Row("specs/raccoon/resnet10.txt", SEVERAL, 53.7),
    "bccd-scratch": Row("specs/bccd/chain.txt", ONE, 82.9),
    # No bar: TLT's epochs are four times as many.
    "boards-tlt": Row("specs/boards/mobilenet_v2.txt", ONE, 0.0, tutorial=True),
    "raccoon-tlt": Row("specs/raccoon/mobilenet_v2.txt", ONE, 0.0, tutorial=True),
}


def as_in_the_tutorial(experiment: spec.Experiment) -> spec.Experiment:
    """A spec with the values of the TLT tutorial for costs, rates, regulariser, augmentation and clustering."""
    tutorial = spec.load_experiment(TUTORIAL)
    made = spec.Experiment()
    made.CopyFrom(experiment)
    for target in made.cost_function_config.target_classes:
        model = tutorial.cost_function_config.target_classes[0]
        target.coverage_foreground_weight = model.coverage_foreground_weight
        target.ClearField("objectives")
        target.objectives.extend(model.objectives)
    made.cost_function_config.ClearField("coverage_focal_gamma")
    for name in ("learning_rate", "regularizer", "optimizer"):
        getattr(made.training_config, name).CopyFrom(getattr(tutorial.training_config, name))
    made.training_config.ClearField("ema_decay")
    for name in ("spatial_augmentation", "color_augmentation"):
        getattr(made.augmentation_config, name).CopyFrom(getattr(tutorial.augmentation_config, name))
    for section in ("bbox_rasterizer_config", "postprocessing_config"):
        own, model = (
            getattr(made, section).target_class_config,
            getattr(tutorial, section).target_class_config,
        )
        for name in own:
            own[name].CopyFrom(next(iter(model.values())))
    return made


def detectkit(*arguments: str | Path, folder: Path) -> None:
    """Run one command in a folder; leaves with its exit code when it fails."""
    print("$ detectkit", *arguments, flush=True)
    code = subprocess.run([DETECTKIT, *arguments], cwd=folder).returncode
    if code:
        raise SystemExit(code)


def accuracy(results: Path) -> float | None:
    """The mAP in points of an evaluation, if it was made."""
    file = results / "results.json"
    return 100 * float(json.loads(file.read_text())["mean_average_precision"]) if file.exists() else None


def run(row: Row, seed: int, results: Path, folder: Path) -> None:
    """The chain of a row with one seed, and the tenth beside it."""
    experiment = spec.load_experiment(ROOT / row.spec)
    experiment.random_seed = seed
    if row.tutorial:
        experiment = as_in_the_tutorial(experiment)
    results.mkdir(parents=True, exist_ok=True)
    path = results / "spec.txt"
    path.write_text(spec.dumps(experiment), encoding="utf-8")
    chain = results / "chain"
    detectkit("run", "-e", path, "-r", chain, folder=folder)
    tenth = results / "tenth.safetensors"
    if not tenth.exists():
        model = next((chain / "train/weights").glob("*-best.safetensors"))
        command = ("prune", "-e", path, "-m", model, "-o", tenth, "--target-params", "0.1")
        detectkit(*command, folder=folder)
    if accuracy(results / "tenth") is None:
        detectkit("evaluate", "-e", path, "-m", tenth, "-r", results / "tenth", folder=folder)
    detectkit("train", "-e", results / "tenth_retrain.txt", "-r", results / "tenth_retrained", folder=folder)
    if accuracy(results / "tenth_evaluated") is None:
        best = next((results / "tenth_retrained/weights").glob("*-best.safetensors"))
        detectkit("evaluate", "-e", path, "-m", best, "-r", results / "tenth_evaluated", folder=folder)


def measured(results: Path) -> list[float | None]:
    """The mAP of each of `MODELS`, in points; None where it is not known yet."""
    chain = results / "chain"
    folders = [chain / f"evaluate_{name}" for name in ("float", "pruned", "retrained", "int8")]
    return [accuracy(folder) for folder in (*folders, results / "tenth", results / "tenth_evaluated")]


def minutes(results: Path) -> float | None:
    """By the clock, of the first training."""
    file = results / "chain/train/stage.json"
    return json.loads(file.read_text())["wall_seconds"] / 60 if file.exists() else None


def columns(row: Row, folder: Path) -> list[list[float]]:
    """The figures of each of `MODELS` over the seeds."""
    by_seed = [measured(folder / str(seed)) for seed in row.seeds]
    return [[value for value in values if value is not None] for values in zip(*by_seed, strict=True)]


def verdicts(name: str, row: Row, found: Sequence[Sequence[float]]) -> Iterator[tuple[str, bool]]:
    """The bars of a row, in words, and whether the means reach them; one that is not known yet is missed."""
    means = [statistics.fmean(values) if values else math.nan for values in found]
    whole, quarter, retrained, int8, _, tenth = means
    bars = (
        (f"float {whole:.1f}, at least {row.least:g}", whole >= row.least),
        (f"a quarter keeps {quarter:.1f}, at least {LEAST_KEPT * whole:.1f}", quarter >= LEAST_KEPT * whole),
        (
            f"retrained {retrained:.1f}, at least {whole - QUARTER_LOSS:.1f}",
            retrained >= whole - QUARTER_LOSS,
        ),
        (f"a tenth, retrained {tenth:.1f}, at least {whole - TENTH_LOSS:.1f}", tenth >= whole - TENTH_LOSS),
        (f"8 bits {int8:.1f}, at least {retrained - INT8_LOSS:.1f}", int8 >= retrained - INT8_LOSS),
    )
    for text, is_met in bars:
        yield f"{name}: {text}", is_met


def shown(values: Sequence[float]) -> str:
    """Mean, spread (standard deviation of the sample) and number."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def print_table(folder: Path) -> bool:
    """The table of docs/datasets.md, and the bars; gives whether all are met."""
    print(f"| data set | spec | seeds | {' | '.join(MODELS)} | minutes |")
    print("|" + "---|" * (len(MODELS) + 4))
    judged = []
    for name, row in ROWS.items():
        found = columns(row, folder / name)
        times = [time for seed in row.seeds if (time := minutes(folder / name / str(seed))) is not None]
        cells = " | ".join(shown(values) for values in found)
        print(f"| {name} | `{row.spec}` | {len(found[0])} | {cells} | {shown(times)} |")
        judged += [] if row.tutorial else list(verdicts(name, row, found))
    return print_verdicts(judged)


def print_verdicts(judged: Sequence[tuple[str, bool]]) -> bool:
    """Each bar in words; gives whether all are met."""
    print()
    for text, is_met in judged:
        print(f"{text}{'' if is_met else '   MISSED' if 'nan' not in text else '   not known yet'}")
    return all(is_met for _, is_met in judged)


def asked(description: str | None, rows: Collection[str]) -> argparse.Namespace:
    """What the command line asks for: rows, results_dir, seeds, table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}; all of them if none is named"
    )
    parser.add_argument("-r", "--results_dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="only these")
    parser.add_argument("--table", action="store_true", help="only print what DIR holds")
    args = parser.parse_args()
    for name in args.rows:
        if name not in rows:
            parser.error(f"there is no row {name}: choose of {', '.join(rows)}")
    return args


def main() -> None:
    args = asked(__doc__, ROWS)
    folder = args.results_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for inputs in ("specs", "data"):
        if not os.path.lexists(folder / inputs):
            (folder / inputs).symlink_to(ROOT / inputs)
    for name in () if args.table else args.rows or ROWS:
        for seed in args.seeds or ROWS[name].seeds:
            run(ROWS[name], seed, folder / name / str(seed), folder)
    if not print_table(folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

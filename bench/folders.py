"""What `detectkit init` and `run` make of a folder with nothing edited by hand: float, pruned, retrained and 8 bits in one table.

    python bench/folders.py -r DIR                             # everything: about eight hours on two cores
    python bench/folders.py -r DIR boards raccoon --seeds 42   # some of it
    python bench/folders.py -r DIR --table                     # what DIR holds so far, nothing is run

Each data set is started from MobileNetV2's ImageNet weights and from scratch, with 20 minutes for the first training. A second seed
changes the one line random_seed. Everything stays in DIR, where a bench that was cut goes on: a spec that is there is not written
again. The exit code is 1 where a bar is missed, or where it is not known yet whether it is met.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import accuracy, asked, detectkit, print_verdicts, shown

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = "data/weights/mobilenet_v2_imagenet_features.pth"
MINUTES = 20
SEVERAL, ONE = (42, 43), (42,)
MODELS = ("float", "pruned", "retrained", "int8")
# Points of mAP that may be lost, in the mean over seeds.
RETRAINING_LOSS, INT8_LOSS = 1.0, 0.5


class Row(NamedTuple):
    """A folder, where its training starts, the seeds, and the mAP in points that the float models have to reach."""

    data: str
    weights: str  # empty: from scratch
    seeds: tuple[int, ...]
    least: float


ROWS = {
    "bccd": Row("data/bccd", WEIGHTS, ONE, 86.0),
    "boards": Row("data/boards", WEIGHTS, SEVERAL, 92.0),
    "raccoon": Row("data/raccoon", WEIGHTS, SEVERAL, 87.0),
    # From scratch: the bars are what a well-known one-stage detector of 2.6 M parameters reaches in about that time.
    "bccd-scratch": Row("data/bccd", "", ONE, 82.9),
    "boards-scratch": Row("data/boards", "", SEVERAL, 60.6),
    "raccoon-scratch": Row("data/raccoon", "", SEVERAL, 53.7),
}


def run(name: str, seed: int, folder: Path) -> None:
    """The spec of a row, with one seed, and all that it asks for."""
    row, spec = ROWS[name], f"{name}-{seed}.txt"
    if not (folder / spec).exists():
        start = ("--weights", row.weights) if row.weights else ()
        detectkit("init", row.data, "--minutes", str(MINUTES), *start, "-o", spec, folder=folder)
        text = (folder / spec).read_text(encoding="utf-8")
        changed = text.replace("\nrandom_seed: 42\n", f"\nrandom_seed: {seed}\n", 1)
        (folder / spec).write_text(changed, encoding="utf-8")
    detectkit("run", "-e", spec, folder=folder)


def measured(name: str, seed: int, folder: Path) -> list[float | None]:
    """The mAP of each of `MODELS`, in points; None where it is not known yet."""
    chain = folder / "results" / f"{name}-{seed}"
    return [accuracy(chain / f"evaluate_{model}") for model in MODELS]


def minutes(name: str, seed: int, folder: Path) -> float | None:
    """By the clock, of the first training."""
    file = folder / "results" / f"{name}-{seed}" / "train" / "stage.json"
    return json.loads(file.read_text())["wall_seconds"] / 60 if file.exists() else None


def verdicts(name: str, row: Row, found: Sequence[Sequence[float]]) -> Iterator[tuple[str, bool]]:
    """The bars of a row, in words, and whether the means reach them; one that is not known yet is missed."""
    whole, _, retrained, int8 = (statistics.fmean(values) if values else math.nan for values in found)
    bars = (
        (f"float {whole:.1f}, at least {row.least:g}", whole >= row.least),
        (
            f"retrained {retrained:.1f}, at least {whole - RETRAINING_LOSS:.1f}",
            retrained >= whole - RETRAINING_LOSS,
        ),
        (f"8 bits {int8:.1f}, at least {retrained - INT8_LOSS:.1f}", int8 >= retrained - INT8_LOSS),
    )
    for text, is_met in bars:
        yield f"{name}: {text}", is_met


def print_table(folder: Path) -> bool:
    """The figures, and the bars; gives whether all are met."""
    print(f"| data set | starts from | seeds | {' | '.join(MODELS)} | minutes |")
    print("|" + "---|" * (len(MODELS) + 4))
    judged = []
    for name, row in ROWS.items():
        by_seed = [measured(name, seed, folder) for seed in row.seeds]
        found = [[value for value in values if value is not None] for values in zip(*by_seed, strict=True)]
        times = [time for seed in row.seeds if (time := minutes(name, seed, folder)) is not None]
        start = "ImageNet" if row.weights else "nothing"
        cells = " | ".join(shown(values) for values in found)
        print(f"| {name} | {start} | {len(found[0])} | {cells} | {shown(times)} |")
        judged += verdicts(name, row, found)
    return print_verdicts(judged)


def main() -> None:
    args = asked(__doc__, ROWS)
    folder = args.results_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(folder / "data"):
        (folder / "data").symlink_to(ROOT / "data")
    for name in () if args.table else args.rows or ROWS:
        for seed in args.seeds or ROWS[name].seeds:
            run(name, seed, folder)
    if not print_table(folder):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

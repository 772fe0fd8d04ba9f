"""Plants 40 faults into a copy of a folder in KITTI's layout, and counts how many `detectkit clean` finds.

    python bench/cleaning.py DATA [-m MODEL] [--seed 0] [--work DIR]

DATA has train/image_2 and train/label_2. Every finding that is not planted is listed, for a person to judge: they were in the
data before, or are false alarms. The images are looked at again, as many times as makes 5000, to time them. Ends with 1 where
fewer than 36 are found or a minute is not enough.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from detectkit import spec
from detectkit.audit.findings import DataFinding, FindingKind, short
from detectkit.audit.gather import Gathered, gather
from detectkit.audit.look import look

FOUND, TIMED = 36, 5000
EXPORT = """
kitti_config {{
  root_directory_path: "{root}" image_dir_name: "image_2" label_dir_name: "label_2" image_extension: "{extension}" val_split: 20
}}
"""
ZEROS = " 0 0 0 0 0 0 0"


class Fault(NamedTuple):
    """Something that was planted."""

    what: str
    file: str  # name without extension
    kinds: tuple[FindingKind, ...]  # as which it may be found


class Planter:
    """A folder that faults are planted into, each in images of its own."""

    def __init__(self, root: Path, generator: random.Random):
        self.root, self.generator = root, generator
        self.images = {path.stem: path for path in sorted((root / "image_2").iterdir())}
        lines = {name: self.labels(name).read_text().splitlines() for name in self.images}
        self.free = [name for name in self.images if len(lines[name]) >= 3]
        generator.shuffle(self.free)
        self.faults: list[Fault] = []

    def labels(self, name: str) -> Path:
        return self.root / "label_2" / f"{name}.txt"

    def plant(self, what: str, kinds: tuple[FindingKind, ...], count: int, do: Callable[[str], str]) -> None:
        """`do` is given an image's name and gives that of the file in which the fault then is."""
        for _ in range(count):
            self.faults.append(Fault(what, do(self.free.pop()), kinds))

    def cut(self, name: str) -> str:
        content = self.images[name].read_bytes()
        self.images[name].write_bytes(content[: len(content) * 2 // 3])
        return name

    def spoil(self, name: str) -> str:
        self.images[name].write_bytes(b"no image")
        return name

    def copy(self, name: str) -> str:
        return self._beside(name, lambda path: shutil.copy(self.images[name], path))

    def shrink(self, name: str) -> str:
        def save(path: Path) -> None:
            with Image.open(self.images[name]) as image:
                image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4)).save(
                    path, quality=70
                )

        return self._beside(name, save, scale=0.75)

    def empty(self, name: str) -> str:
        self.labels(name).write_text("")
        return name

    def turn(self, name: str) -> str:
        """Mark as lying on its side an image with labels that then reach out of it."""
        with Image.open(self.images[name]) as image:
            exif = Image.Exif()
            exif[0x0112] = 6
            width, height = image.size
            image.convert("RGB").save(self.images[name], exif=exif, quality=95)
        side = min(width, height)
        self.add(name, (max(width, height) - 60, 5, max(width, height) - 5, side / 2))
        return name

    def add(self, name: str, box: tuple[float, ...], label: str = "", rest: str = ZEROS) -> str:
        lines = self.labels(name).read_text().splitlines()
        columns = lines[0].split()
        lines.append(f"{label or columns[0]} 0 0 0 {' '.join(f'{value:g}' for value in box)}{rest}")
        self.labels(name).write_text("\n".join(lines) + "\n")
        return name

    def box(self, name: str) -> tuple[str, list[float]]:
        """Class and box of the frequent class's first label, else of the first."""
        rows = [line.split() for line in self.labels(name).read_text().splitlines()]
        row = max(rows, key=lambda row: (float(row[6]) - float(row[4])) * (float(row[7]) - float(row[5])))
        return row[0], [float(value) for value in row[4:8]]

    def rename(self, name: str) -> str:
        path, lines = self.labels(name), self.labels(name).read_text().splitlines()
        label, rest = lines[0].split(" ", 1)
        slips = [
            label.lower() + "s",
            label[0] + label[2:3] + label[1:2] + label[3:],
            label + label[-1],
            f"{label}_",
        ]
        lines[0] = f"{self.generator.choice(slips)} {rest}"
        path.write_text("\n".join(lines) + "\n")
        return name

    def _beside(self, name: str, save: Callable[[Path], object], scale: float = 1.0) -> str:
        other = f"{name}_copy"
        path = self.images[name].with_name(f"{other}{self.images[name].suffix}")
        save(path)
        lines = []
        for line in self.labels(name).read_text().splitlines():
            columns = line.split()
            columns[4:8] = [f"{float(value) * scale:g}" for value in columns[4:8]]
            lines.append(" ".join(columns))
        self.labels(other).write_text("\n".join(lines) + "\n")
        return name


def plant(root: Path, seed: int) -> list[Fault]:
    """40 faults of 14 kinds, each in another image."""
    planter = Planter(root, random.Random(seed))
    copies = (FindingKind.DUPLICATE, FindingKind.NEAR_DUPLICATE, FindingKind.LEAK)
    planter.plant("cut short", (FindingKind.UNREADABLE,), 3, planter.cut)
    planter.plant("no image", (FindingKind.UNREADABLE,), 2, planter.spoil)
    planter.plant("copied", copies, 4, planter.copy)
    planter.plant("saved smaller", copies, 4, planter.shrink)
    planter.plant("without labels", (FindingKind.UNLABELLED,), 3, planter.empty)
    planter.plant("turned by EXIF", (FindingKind.TURNED,), 2, planter.turn)
    planter.plant(
        "outside", (FindingKind.OUTSIDE,), 3, lambda name: planter.add(name, (5000, 5000, 5080, 5090))
    )
    planter.plant(
        "partly outside", (FindingKind.PARTLY_OUTSIDE,), 2, lambda name: planter.add(name, (-60, 40, 50, 150))
    )
    planter.plant(
        "without area", (FindingKind.DEGENERATE,), 2, lambda name: planter.add(name, (50, 50, 50, 90))
    )
    planter.plant("thin", (FindingKind.DEGENERATE,), 1, lambda name: planter.add(name, (50, 50, 51, 90)))
    planter.plant(
        "doubled",
        (FindingKind.DOUBLED,),
        4,
        lambda name: planter.add(name, _nudged(planter, name), planter.box(name)[0]),
    )
    planter.plant(
        "two classes",
        (FindingKind.TWO_CLASSES,),
        3,
        lambda name: planter.add(name, _nudged(planter, name), "Other"),
    )
    planter.plant(
        "odd size or shape",
        (FindingKind.ODD_SIZE, FindingKind.ODD_SHAPE),
        3,
        lambda name: planter.add(name, (30, 30, 470, 42)),
    )
    planter.plant("misspelt", (FindingKind.MISSPELT,), 4, planter.rename)
    return planter.faults


def _nudged(planter: Planter, name: str) -> tuple[float, ...]:
    x1, y1, x2, y2 = planter.box(name)[1]
    return (x1 + (x2 - x1) * 0.01, y1, x2, y2 - (y2 - y1) * 0.01)


def is_found(fault: Fault, findings: list[DataFinding]) -> bool:
    return any(item.kind in fault.kinds and _is_of(fault, item) for item in findings)


def _is_of(fault: Fault, item: DataFinding) -> bool:
    names = {Path(path).stem for path in (item.image, item.label_file, item.other) if path}
    return bool(names & {fault.file, f"{fault.file}_copy"})


def timed(gathered: Gathered) -> float:
    """Images a minute, all checks together."""
    times = -(-TIMED // len(gathered.images))
    many = gathered._replace(images=gathered.images * times)
    start = time.perf_counter()
    look(many, spec.DataCleaningConfig())
    return 60 * len(many.images) / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the copy goes; a temporary folder otherwise")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = (args.work or Path(temporary)) / "planted"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("image_2", "label_2"):
            shutil.copytree(args.data / "train" / name, root / name)
        for path in root.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        extension = next((root / "image_2").iterdir()).suffix
        config = spec.loads(EXPORT.format(root=root, extension=extension))
        clean = gather(config)
        per_minute = timed(clean)
        before = {(item.kind, item.image, item.line) for item in look(clean, spec.DataCleaningConfig())}
        faults = plant(root, args.seed)
        gathered = gather(config)
        predictor = None
        if args.model:
            from detectkit.predict import load_model

            predictor = load_model(args.model)
        findings = look(gathered, spec.DataCleaningConfig(), predictor)
        missed = [fault for fault in faults if not is_found(fault, findings)]
        rest = [item for item in findings if not any(_is_of(fault, item) for fault in faults)]
        found = len(faults) - len(missed)
        for fault in missed:
            print(f"missed: {fault.what} in {fault.file}")
        print(f"\n{len(rest)} other findings, for a person to judge:")
        for item in rest[:60]:
            known = "was there before" if (item.kind, item.image, item.line) in before else "new"
            print(
                f"  {item.sureness:.2f} {item.kind} {short(item.image or item.label_file)}: {item.text} ({known})"
            )
        print(f"\nplanted faults found: {found} of {len(faults)} (at least {FOUND})")
        print(f"images a minute: {per_minute:,.0f} (at least {TIMED:,})")
    return 0 if found >= FOUND and per_minute >= TIMED else 1


if __name__ == "__main__":
    sys.exit(main())

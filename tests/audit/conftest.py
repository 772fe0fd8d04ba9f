"""A folder of 40 pictures with clean labels, into which a test plants one fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from detectkit import spec
from detectkit.audit.findings import DataFinding, counted
from detectkit.audit.gather import gather
from detectkit.audit.look import look

SIZE = 160, 120
REST = "0 0 0 0 0 0 0"


class Folder:
    """Pictures 00.png … 39.png, each with a square and a bar that have room around them."""

    def __init__(self, root: Path):
        self.root = root
        self.images, self.labels = root / "image_2", root / "label_2"
        for folder in (self.images, self.labels):
            folder.mkdir(parents=True)
        generator = np.random.default_rng(5)
        for number in range(40):
            self.picture(f"{number:02d}", generator)
            x, y = generator.integers(10, 40, 2)
            self.write(
                f"{number:02d}", [("square", x, y, x + 28, y + 30), ("bar", x + 50, y, x + 90, y + 16)]
            )

    def picture(self, name: str, generator: np.random.Generator) -> Path:
        """Coarse noise: pictures that no two hashes of are near."""
        pixels = generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        path = self.images / f"{name}.png"
        Image.fromarray(pixels).resize(SIZE).filter(ImageFilter.GaussianBlur(2)).save(path)
        return path

    def write(self, name: str, labels: list[tuple]) -> Path:
        path = self.labels / f"{name}.txt"
        path.write_text("".join(line(*label) for label in labels))
        return path

    def add(self, name: str, *labels: tuple) -> None:
        path = self.labels / f"{name}.txt"
        path.write_text(path.read_text() + "".join(line(*label) for label in labels))

    def export(self, more: str = "") -> spec.DatasetExportConfig:
        text = f'root_directory_path: "{self.root}" image_dir_name: "image_2" label_dir_name: "label_2" val_split: 25'
        return spec.loads(f"kitti_config {{ {text} }} {more}")

    def find(self, config: spec.DataCleaningConfig | None = None, more: str = "") -> list[DataFinding]:
        return look(gather(self.export(more)), config or spec.DataCleaningConfig())

    def kinds(self, **fields: object) -> dict[str, int]:
        """How many findings there are of each kind."""
        return {str(kind): count for kind, count in counted(self.find(spec.DataCleaningConfig(**fields)))}


def line(name: str, *box: float) -> str:
    return f"{name} 0 0 0 {' '.join(f'{side:g}' for side in box)} {REST}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kitti")

"""A small data set made of what scikit-learn ships: handwritten digits on photographs. Nothing is downloaded."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detectkit.console import progress
from detectkit.errors import OutputError
from detectkit.files import staging_folder

CLASSES = {0: "zero", 1: "one", 4: "four"}  # digits that a person tells apart at a glance
VALIDATION_SHARE = 5  # every fifth frame, and every fifth of the digits, is for validation only
FRAMES, WIDTH, HEIGHT = 1000, 320, 192
HEIGHTS = (40, 110)  # of a digit, pixels
MOST_OVERLAP = 0.3  # share of a digit's pixels that another one may hide

Floats = NDArray[numpy.float32]


class Glyph(NamedTuple):
    """A digit ready to be placed: how much of each pixel it covers, [h, w] in [0, 1], cut to its ink."""

    name: str
    ink: Floats


class Placed(NamedTuple):
    """A digit in the picture."""

    name: str
    mask: NDArray[numpy.bool_]  # [height, width] of the picture: its ink
    box: tuple[int, int, int, int]  # pixels, inside the picture
    truncation: float  # share of its box outside the picture


def make_sample_data(
    output_dir: str | Path, *, frames: int = FRAMES, width: int = WIDTH, height: int = HEIGHT, seed: int = 42
) -> bool:
    """Write image_2/*.jpg, label_2/*.txt (KITTI) and sequences.json; False when the folder already holds just that.

    Each picture has one to five digits of the classes zero, one and four, 40 to 110 pixels high, in bright colours
    with a dark rim, partly overlapping and now and then cut by the border. The sequences "training" and "validation"
    share no scanned digit. The same arguments give the same files on one machine.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
    """
    output = Path(output_dir)
    is_free = not output.exists() or (output.is_dir() and not any(output.iterdir()))
    if not is_free and not (output / "sequences.json").is_file():
        raise OutputError(f"{output} holds something else: name a new folder, or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(output) as staging:
            made = staging / "made"
            _write(made, frames=frames, width=width, height=height, seed=seed)
            if is_free:
                os.replace(made, output)
            elif _texts(made) != _texts(output):
                raise OutputError(f"{output} holds other sample data: name a new folder, or remove it first")
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    return is_free


def _write(folder: Path, *, frames: int, width: int, height: int, seed: int) -> None:
    from sklearn.datasets import load_digits, load_sample_images

    digits = load_digits()
    scans = [(digits.images[i], CLASSES[label]) for i, label in enumerate(digits.target) if label in CLASSES]
    held_out = len(scans) // VALIDATION_SHARE
    photographs = [Image.fromarray(picture) for picture in load_sample_images().images]
    generator = numpy.random.default_rng(seed)
    (folder / "image_2").mkdir(parents=True)
    (folder / "label_2").mkdir()
    names = [f"{number:06}" for number in range(frames)]
    validation = names[::VALIDATION_SHARE]
    for name in progress(names, total=frames, label="drawing pictures"):
        writers = scans[:held_out] if name in validation else scans[held_out:]
        picture, placed = draw_frame(photographs, writers, width=width, height=height, generator=generator)
        picture.save(folder / "image_2" / f"{name}.jpg", quality=92)
        (folder / "label_2" / f"{name}.txt").write_text("".join(map(_line, placed, _occlusions(placed))))
    sequences = {"training": sorted(set(names) - set(validation)), "validation": validation}
    (folder / "sequences.json").write_text(json.dumps(sequences, indent=1) + "\n")


def draw_frame(
    photographs: Sequence[Image.Image],
    scans: Sequence[tuple[Floats, str]],
    *,
    width: int,
    height: int,
    generator: numpy.random.Generator,
) -> tuple[Image.Image, list[Placed]]:
    """Draw one picture of width x height pixels; give it and its digits, those behind first."""
    canvas = _background(photographs, width, height, generator)
    placed: list[Placed] = []
    wanted = int(generator.integers(1, 6))
    for _ in range(4 * wanted):  # a digit that would hide another one too much is left out
        scan, name = scans[int(generator.integers(len(scans)))]
        glyph = Glyph(name, _ink(scan, int(generator.integers(HEIGHTS[0], min(HEIGHTS[1], height) + 1))))
        left = int(generator.integers(-8, max(width + 8 - glyph.ink.shape[1], -7)))
        top = int(generator.integers(-8, max(height + 8 - glyph.ink.shape[0], -7)))
        cover, digit = _place(glyph, (left, top), width=width, height=height)
        if len(placed) < wanted and all(_hidden(other, digit) <= MOST_OVERLAP for other in placed):
            window = _around(digit.box, margin=8)
            canvas[window] = _paint(canvas[window], cover[window], generator)
            placed.append(digit)
    return Image.fromarray(numpy.round(canvas).astype(numpy.uint8)), placed


def _ink(scan: Floats, pixels_high: int) -> Floats:
    """Enlarge an 8x8 scan (values 0..16) so that its ink is about `pixels_high` tall; smooth strokes, crisp rim."""
    padded = numpy.pad(scan.astype(numpy.float32) / 16, 1)
    rows = numpy.flatnonzero((padded > 0.3).any(axis=1))
    scale = pixels_high / (rows[-1] - rows[0] + 1)
    size = max(round(10 * scale), 10)
    large = numpy.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BICUBIC))
    ink = numpy.clip((large - 0.35) * 0.6 * scale, 0, 1).astype(
        numpy.float32
    )  # about two pixels from none to full
    ys, xs = numpy.nonzero(ink > 0.5)
    cut: Floats = ink[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return cut


def _background(
    photographs: Sequence[Image.Image], width: int, height: int, generator: numpy.random.Generator
) -> Floats:
    """Cut a random window out of a photograph, [height, width, 3] in 0..255, perhaps mirrored and darker."""
    photograph = photographs[int(generator.integers(len(photographs)))]
    largest = min(photograph.width / width, photograph.height / height)
    zoom = largest * generator.uniform(0.5, 1)
    left = generator.uniform(0, photograph.width - zoom * width)
    top = generator.uniform(0, photograph.height - zoom * height)
    window = (left, top, left + zoom * width, top + zoom * height)
    picture = numpy.asarray(photograph.resize((width, height), Image.Resampling.BILINEAR, box=window))
    mirrored = picture[:, ::-1] if generator.random() < 0.5 else picture
    return mirrored.astype(numpy.float32) * numpy.float32(generator.uniform(0.5, 1))


def _place(glyph: Glyph, corner: tuple[int, int], *, width: int, height: int) -> tuple[Floats, Placed]:
    """Put a glyph's top left corner at a pixel; give its ink on the whole picture, [height, width], and the digit."""
    left, top = corner
    rows, columns = glyph.ink.shape
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height)
    cover = numpy.zeros((height, width), dtype=numpy.float32)
    cover[y1:y2, x1:x2] = glyph.ink[y1 - top : y2 - top, x1 - left : x2 - left]
    truncation = 1 - (x2 - x1) * (y2 - y1) / (rows * columns)
    return cover, Placed(glyph.name, cover > 0.5, (x1, y1, x2, y2), truncation)


def _around(box: tuple[int, int, int, int], *, margin: int) -> tuple[slice, slice]:
    x1, y1, x2, y2 = box
    return slice(max(y1 - margin, 0), y2 + margin), slice(max(x1 - margin, 0), x2 + margin)


def _hidden(behind: Placed, front: Placed) -> float:
    """Share of the ink of one digit that another one hides."""
    return float((behind.mask & front.mask).sum() / behind.mask.sum())


def _paint(canvas: Floats, cover: Floats, generator: numpy.random.Generator) -> Floats:
    """Lay a bright colour over the canvas where there is ink, with a dark rim around it."""
    color = 255 * numpy.array(
        colorsys.hsv_to_rgb(generator.random(), generator.uniform(0.1, 0.7), 1), numpy.float32
    )
    blurred = Image.fromarray(numpy.round(255 * cover).astype(numpy.uint8)).filter(
        ImageFilter.GaussianBlur(2)
    )
    rim = numpy.clip(numpy.asarray(blurred, dtype=numpy.float32)[..., None] / 64, 0, 1)
    dark = canvas * (1 - rim) + 25 * rim
    return numpy.asarray(dark * (1 - cover[..., None]) + color * cover[..., None], dtype=numpy.float32)


def _occlusions(placed: Sequence[Placed]) -> list[int]:
    """KITTI's occlusion of each digit: 0 when fully visible, 1 when those drawn after it hide a part."""
    return [
        int(any(_hidden(digit, front) > 0 for front in placed[i + 1 :])) for i, digit in enumerate(placed)
    ]


def _line(digit: Placed, occlusion: int) -> str:
    x1, y1, x2, y2 = digit.box
    place = "0.00 0.00 0.00 0.00 0.00 0.00 0.00"
    return (
        f"{digit.name} {digit.truncation:.2f} {occlusion} 0.00 {x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} {place}\n"
    )


def _texts(folder: Path) -> dict[str, bytes]:
    """Name of every file below a folder, with the bytes of those that are text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): b"" if path.suffix == ".jpg" else path.read_bytes() for path in files
    }

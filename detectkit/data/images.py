"""Image files: which formats are read, how large and which way up they are, and their pixels in 8 bits.

Every image of a user is opened here: in the formats of `FORMATS`, within the limits below, and turned as its EXIF
orientation says, which is how viewers and labelling tools show it.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from detectkit.data.formats import FORMATS, is_image
from detectkit.errors import DataError
from detectkit.files import files_below, is_hidden

NAMED = ", ".join(FORMATS)
MOST_PIXELS = 250_000_000  # of an image: about a gigabyte while it is decoded
LONGEST = 65_535  # pixels of a side: JPEG's own limit
LARGE = 50_000_000  # pixels: beyond this an image must be worth its memory
DENSEST = 500  # bytes of pixels a byte of a large file; zlib ends near 1000, photographs and drawings stay below 300
REPLACE = "replace it, or take it out of the data"
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Warning),
)  # what Pillow raises for a bad file
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # grey with more than 8 bits
BITS = (8, 10, 12, 14, 16)  # of cameras
ROWS = 256  # that are stretched at a time
ORIENTATION = 0x0112  # EXIF
UPRIGHT = 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = 5  # and above: width and height change places
TURNED = "images are turned by their EXIF orientation, as viewers show them"
STRETCHED = (
    "%s holds %s: it is brought to 8 bits accordingly, and others like it; where images of one camera differ in this, save"
    " them all in 8 bits"
)

# Of sizes, EXIF data and the like: what Pillow warns of is judged here, in words that name the file.
warnings.filterwarnings("ignore", module=r"PIL\.")
Image.MAX_IMAGE_PIXELS = MOST_PIXELS

Result = TypeVar("Result")


class Size(NamedTuple):
    """Of an image as viewers show it."""

    width: int  # pixels
    height: int
    turned: bool  # by its EXIF orientation: the stored pixels lie otherwise


class Decoded(NamedTuple):
    """An image in 8 bits, upright."""

    pixels: NDArray[np.uint8]  # [c, h, w], possibly reduced
    reduction: int  # pixels of the file a pixel of `pixels`, along each axis
    size: Size  # of the file
    stretched: str  # what its values were, where they had to be brought to 8 bits by a guess; else empty


class Listing(NamedTuple):
    """What a folder holds."""

    files: list[Path]  # images by their endings, sorted
    others: Counter[str]  # files that were passed over, by ending


# Folders


def list_images(folder: Path, *, without: Collection[Path] = ()) -> Listing:
    """The images of a folder and its sub-folders; hidden files and folders are passed over, and so is `without`.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[Path] = []
    others: Counter[str] = Counter()
    passed_over = {os.path.realpath(path) for path in without}
    for file in files_below(folder, passed_over=lambda place: os.path.realpath(place) in passed_over):
        if is_image(file) and (folder / file).is_file():
            files.append(folder / file)
        else:
            others[ending(file)] += 1
    return Listing(sorted(files), others)


def ending(file: str) -> str:
    """What a file that is no image is counted as."""
    return "hidden" if is_hidden(file) else os.path.splitext(file)[1] or "without an ending"


def counted(others: Counter[str], *, most: int = 5) -> str:
    """How many files there are of each ending."""
    named = [f"{count} {ending}" for ending, count in others.most_common(most)]
    left = sum(others.values()) - sum(count for _, count in others.most_common(most))
    return ", ".join(named + [f"{left} more"] * bool(left))


# Files


def open_image(source: str | io.BytesIO, *, name: str) -> Image.Image:
    """Open an image file and read its header.

    Raises:
        DataError: there is no such file, it is no image of `FORMATS`, or larger than the limits.
    """
    return _named(lambda: _opened(source), name)


def file_size(path: Path) -> Size:
    """The size of an image file, from its header.

    Raises:
        ValueError: it cannot be used; the reason, without the path.
        OSError: it cannot be read.
    """
    with _opened(path) as image:
        return upright_size(image)


def upright_size(image: Image.Image) -> Size:
    """The size of an opened image when it is turned as its EXIF orientation says."""
    orientation = _orientation(image)
    width, height = image.size
    if tags := getattr(image, "tag_v2", None):  # Pillow turns TIFF itself: `size` may be either
        width, height = int(tags[256]), int(tags[257])
    return Size(*((height, width) if orientation >= SIDEWAYS else (width, height)), orientation != UPRIGHT)


def decode(image: Image.Image, *, channels: int, target_size: tuple[int, int] | None, name: str) -> Decoded:
    """The pixels of an opened image, 3 channels (RGB) or 1 (grey), upright.

    CMYK and palettes are converted, alpha is dropped. Grey of more than 8 bits is brought to 8 by its range, see
    `_stretched`.

    Args:
        target_size: reduce by the largest whole factor that leaves at least this (width, height), by averaging.

    Raises:
        DataError: the file is cut short or damaged.
    """
    return _named(lambda: _decoded(image, "L" if channels == 1 else "RGB", target_size), name)


def _decoded(image: Image.Image, mode: str, target_size: tuple[int, int] | None) -> Decoded:
    size, turn = upright_size(image), _turn(image)
    factor = 1
    if target_size is not None:
        factor = max(1, min(size.width // target_size[0], size.height // target_size[1]))
    stored = image.width
    if factor > 1:
        _draft(image, mode, factor, turned=turn is not None)
    is_cut = _has_wide_colors(image)
    stretched = ""
    if image.mode in WIDE_MODES:
        pixels, stretched = _stretched(image)
    else:
        pixels = _converted(image, mode)
        if is_cut:
            pixels, stretched = _brightened(pixels)
    rest = factor // round(stored / pixels.width)
    if turn is not None:
        pixels = pixels.transpose(turn)
    if rest > 1:
        pixels = pixels.reduce(rest)
    array = np.asarray(pixels.convert(mode))
    planes = array[None] if mode == "L" else array.transpose(2, 0, 1)
    return Decoded(np.ascontiguousarray(planes), factor, size, stretched)


def _draft(image: Image.Image, mode: str, factor: int, *, turned: bool) -> None:
    """Have a JPEG decoder do what it can of a reduction, almost for free; others ignore it."""
    width, height = image.size
    for power in (8, 4, 2, 1):
        # A last column that averages fewer pixels would come first in an image that is turned, and shift the others.
        if factor % power == 0 and not (turned and (width % power or height % power)):
            image.draft(mode, (width // power, height // power))
            return


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow's way to RGB without its warning about transparency
    if image.mode == "L":  # a third of the work as long as it is grey
        image.load()
        return image
    return image.convert(mode)


# Orientation


def _orientation(image: Image.Image) -> int:
    """Of the pixels as stored, 1 to 8; 1 where the file does not say it, or not in a way that can be read."""
    tags, data = getattr(image, "tag_v2", None), image.info.get("exif", b"")
    if tags is None and not data:
        return UPRIGHT
    try:
        if tags is None:
            # Not getexif: it reads all of a PNG for want of data, and XMP, which viewers pass over.
            tags = Image.Exif()
            tags.load(data)
        found = tags.get(ORIENTATION, UPRIGHT)
    except UNREADABLE:
        return UPRIGHT
    return found if found in TURNS else UPRIGHT


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the pixels that Pillow gives upright: it does so itself for TIFF."""
    return None if hasattr(image, "tag_v2") else TURNS.get(_orientation(image))


# Values of more than 8 bits


def _stretched(image: Image.Image) -> tuple[Image.Image, str]:
    """A grey image of wide values in 8 bits, and what they were, in words; empty: 16 bits, as expected."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are no finite numbers")
    if image.format == "PPM" and image.mode == "I":  # Pillow has scaled them by the maximum in the file
        black, white, words = 0.0, 65535.0, ""
    else:
        black, white, words = _limits(low, high, whole=values.dtype.kind != "f")
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):  # not all at once: they take eight times the memory
        part = (values[start : start + ROWS].astype(np.float64) - black) * (255 / max(white - black, 1e-30))
        result[start : start + ROWS] = np.rint(part.clip(0, 255))
    return Image.fromarray(result), words


def _limits(low: float, high: float, *, whole: bool) -> tuple[float, float, str]:
    """Which values are black and white in an image whose values are `low` to `high`, and why, in words.

    Few and fixed limits, so that images of one camera are made equally bright.
    """
    if not whole and low >= -1 and high <= 1:
        return (0.0, 1.0, "fractions of 0 to 1") if low >= 0 else (-1.0, 1.0, "fractions of -1 to 1")
    if low < 0:
        return low, high, f"values of {low:g} to {high:g}, which are stretched from the least to the greatest"
    bits = next((bits for bits in BITS if high < 2**bits), int(high).bit_length())
    return (
        0.0,
        2.0**bits - 1,
        "" if whole and bits == 16 else f"values up to {high:g}, which are taken for {bits} bits",
    )


def _has_wide_colors(image: Image.Image) -> bool:
    """Whether Pillow reads the upper 8 of 16 bits: of colours, and of grey with alpha."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())) and image.mode not in WIDE_MODES


def _brightened(pixels: Image.Image) -> tuple[Image.Image, str]:
    """An image of which the upper 8 of 16 bits are there, by the bits that its values need."""
    edges = pixels.getextrema()
    high = max(high for _, high in (edges if isinstance(edges[0], tuple) else [edges]))
    bits = next(bits for bits in BITS if high < 2 ** (bits - 8))
    if bits == BITS[-1] or not high:
        return pixels, ""
    words = f"colours that need {bits} of 16 bits, of which {bits - 8} are read"
    return pixels.point(lambda value: min(value * 255 / (2 ** (bits - 8) - 1), 255)), words


# Reading


def _opened(source: str | Path | io.BytesIO) -> Image.Image:
    """Raises ValueError for what is no image or beyond the limits, OSError for what cannot be read."""
    stored = len(source.getbuffer()) if isinstance(source, io.BytesIO) else os.stat(source).st_size
    try:
        image = Image.open(source, formats=tuple(FORMATS))
    except UnidentifiedImageError as error:
        raise ValueError(f"it is no image of the formats {NAMED}" if stored else "it is empty") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"it has more than {MOST_PIXELS:,} pixels: make it smaller, or cut it in parts"
        ) from error
    try:
        _require_sensible(image, stored)
    except ValueError:
        image.close()
        raise
    return image


def _require_sensible(image: Image.Image, stored: int) -> None:
    """Raise ValueError for an image beyond the limits; `stored` is the size of the file in bytes."""
    width, height = image.size
    pixels = width * height
    size = f"it is {width}x{height} pixels"
    if pixels > MOST_PIXELS or max(width, height) > LONGEST:
        most = f"at most {MOST_PIXELS:,} pixels and sides of {LONGEST:,} are read"
        raise ValueError(f"{size}, and {most}: make it smaller, or cut it in parts")
    bits = {"1": 1, "L": 8, "P": 8, "LA": 16, "RGB": 24}.get(image.mode, 32)
    if pixels > LARGE and pixels * bits > 8 * DENSEST * stored:
        raise ValueError(
            f"{size} in {stored:,} bytes, so it holds next to nothing: it would only fill the memory"
        )


def _named(read: Callable[[], Result], name: str) -> Result:
    """Call `read`; what Pillow raises over a damaged file becomes one DataError."""
    try:
        return read()
    except FileNotFoundError as error:
        raise DataError(f"{name} does not exist") from error
    except UNREADABLE as error:
        raise DataError(f"cannot read the image {name}: {reason(error)}; {REPLACE}") from error


def reason(error: BaseException) -> str:
    """What Pillow or the system says of a file, without its name."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice for it"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)

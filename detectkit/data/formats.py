"""Which image files are read: a list that imports nothing heavy."""

from __future__ import annotations

import os

from detectkit.files import is_hidden

# Pillow's names, and the endings that folders are searched for. MPO, which many phones write as .jpg, is opened as
# JPEG. Pillow knows more, some of which start another program: EPS.
FORMATS = {
    "BMP": (".bmp",),
    "JPEG": (".jfif", ".jpeg", ".jpg"),
    "PNG": (".png",),
    "PPM": (".pgm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
FORMAT_OF = {ending: name for name, endings in FORMATS.items() for ending in endings}
IMAGE_EXTENSIONS = tuple(sorted(FORMAT_OF))


def is_image(file: str) -> bool:
    """Whether a file of a folder is taken for an image: by its ending, and not hidden."""
    return os.path.splitext(file)[1].lower() in FORMAT_OF and not is_hidden(file)

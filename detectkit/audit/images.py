"""Images that cannot be used, that are there twice, or on both sides of the split."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectkit.audit.findings import AuditedImage, DataFinding, FindingKind, of_image, short
from detectkit.data import tfrecord
from detectkit.data.cleaning_list import Correction, Verb
from detectkit.data.formats import is_image
from detectkit.data.images import decode, open_image
from detectkit.data.likeness import BITS, SIDE, in_threads, near_duplicates, perceptual_hash
from detectkit.data.readers import Reject
from detectkit.errors import DataError
from detectkit.spec import DataCleaningConfig

TRAINING, VALIDATION = "training", "validation"  # parts
FEW_UNLABELLED = 0.1  # share of images without labels from which on they are meant
DIGEST = 16  # bytes: no two files of different content have one


class Look(NamedTuple):
    """What decoding an image gave."""

    digest: bytes = b""  # of the file's content
    hash: int = 0  # see `perceptual_hash`
    error: str = ""  # why it cannot be used


def content_of(image: AuditedImage) -> bytes:
    """The image file. Raises DataError where it cannot be read."""
    if image.record is not None and image.record.shard is not None:
        return tfrecord.read_record(image.record.shard, image.record.number).image or b""
    try:
        return Path(image.frame.image).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {image.name}: {error.strerror or error}") from error


def pixels_of(image: AuditedImage) -> NDArray[np.uint8]:
    """All pixels [h, w, 3] as viewers show them. Raises DataError."""
    with open_image(io.BytesIO(content_of(image)), name=image.name) as opened:
        return decode(opened, channels=3, target_size=None, name=image.name).pixels.transpose(1, 2, 0)


def looked_at(images: Sequence[AuditedImage]) -> list[Look]:
    """Decode every image, small, in threads."""
    return list(in_threads(_look, images, label="looking at images"))


def _look(image: AuditedImage) -> Look:
    try:
        content = content_of(image)
        with open_image(io.BytesIO(content), name=image.name) as opened:
            pixels = decode(opened, channels=1, target_size=(SIDE, SIDE), name=image.name).pixels[0]
    except DataError as error:
        return Look(error=str(error))
    return Look(hashlib.blake2b(content, digest_size=DIGEST).digest(), perceptual_hash(pixels))


def findings(
    images: Sequence[AuditedImage], looks: Sequence[Look], config: DataCleaningConfig
) -> Iterator[DataFinding]:
    """What is wrong with images, one finding for each copy of an image but the first.

    A copy is a leak where it is validated on and its like is trained on; the copy to leave out is then the one that is
    trained on, so that what was measured stays comparable.
    """
    for image, look in zip(images, looks, strict=True):
        if look.error:
            yield of_image(FindingKind.UNREADABLE, image, look.error, correction=Correction(Verb.DROP_IMAGE))
    sound = [number for number, look in enumerate(looks) if not look.error]
    yield from _alike(images, looks, sound, config.near_duplicate_distance)
    yield from _unlabelled(images)


def _alike(
    images: Sequence[AuditedImage], looks: Sequence[Look], sound: Sequence[int], distance: int
) -> Iterator[DataFinding]:
    for group in near_duplicates([looks[number].hash for number in sound], distance):
        members = sorted((sound[place] for place in group), key=lambda number: _worth(images[number], number))
        for place, number in enumerate(members[1:], start=1):
            other = min(members[:place], key=lambda before: _difference(looks[number], looks[before]))
            yield _copy(images[number], looks[number], images[other], looks[other])


def _worth(image: AuditedImage, number: int) -> tuple[bool, int, int]:
    """The order in which one of several copies is kept: one that is validated on, then the one of most labels."""
    return image.part != VALIDATION, -len(image.frame.labels), number


def _difference(first: Look, second: Look) -> tuple[bool, int]:
    return first.digest != second.digest, (first.hash ^ second.hash).bit_count()


def _copy(image: AuditedImage, look: Look, other: AuditedImage, before: Look) -> DataFinding:
    differs, bits = _difference(look, before)
    name = short(other.name)
    where = (
        f"nearly the same as {name} ({bits} of {BITS} bits differ)" if differs else f"the same file as {name}"
    )
    kind = FindingKind.NEAR_DUPLICATE if differs else FindingKind.DUPLICATE
    if image.part != other.part:
        kind, where = FindingKind.LEAK, f"{where}: that one is in {other.part}, this one in {image.part}"
    sureness = 1.0 if not differs else 0.95 - bits / BITS
    correction = Correction(Verb.DROP_IMAGE)
    return of_image(kind, image, where, correction=correction, sureness=sureness, other=other.name)


def left_out(rejected: Iterable[Reject]) -> Iterator[DataFinding]:
    """Files that a conversion leaves out by itself."""
    for reject in rejected:
        if not reject.is_label:
            file = (reject.file, "") if is_image(reject.file) else ("", reject.file)
            text = f"{reject.reason}; conversions leave it out"
            yield DataFinding(_kind(reject), file[0], text, label_file=file[1], line=reject.line)


def _kind(reject: Reject) -> FindingKind:
    if "EXIF orientation" in reject.reason:
        return FindingKind.TURNED
    if reject.reason == "the label file is missing":
        return FindingKind.UNLABELLED
    is_damaged = is_image(reject.file) and reject.reason.startswith(
        ("not a readable image", "the file is empty")
    )
    return FindingKind.UNREADABLE if is_damaged else FindingKind.LEFT_OUT


def _unlabelled(images: Sequence[AuditedImage]) -> Iterator[DataFinding]:
    empty = [image for image in images if not image.frame.labels]
    if len(empty) <= FEW_UNLABELLED * len(images):
        for image in empty:
            text = f"no label, as have {len(empty)} of {len(images)} images: shows it nothing?"
            yield of_image(FindingKind.UNLABELLED, image, text, sureness=0.6)

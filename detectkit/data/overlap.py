"""Images that are both trained on and measured on, by their files and by their content."""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c

from detectkit.console import log
from detectkit.data.dataset import NAMED_FILES, PIECE, Dataset, Frame
from detectkit.data.records import same_shards
from detectkit.errors import DataError
from detectkit.spec import DatasetConfig


def require_separate(training: Dataset, validation: Dataset, config: DatasetConfig) -> None:
    """Refuse images that are both trained on and measured on: what is measured on them says nothing of new ones.

    Both have been through `require_images`. Other files and records of the same content, of which public data sets have
    some, are a warning.

    A spec whose validation_data_source names the very shards that are trained on means it, and gets a warning.

    Raises:
        DataError: names some of the images; or one cannot be read.
    """
    trained = {_identity(frame) for frame in training.frames}
    shared = [frame for frame in validation.frames if _identity(frame) in trained]
    if not shared:
        _tell_of_copies(training, validation)
        return
    counted = f"{len(shared)} of the {len(validation)} validation images are among those that are trained on"
    if config.HasField("validation_data_source") and same_shards(config):
        log.warning(f"{counted}, as the spec says: what is measured says nothing of new images")
        return
    ids = sorted({frame.frame_id for frame in shared})
    named = ", ".join(ids[:NAMED_FILES]) + (", …" if len(ids) > NAMED_FILES else "")
    raise DataError(
        f"{counted} ({named}): what is measured on them says nothing of new images; let validation_fold or"
        " validation_data_source name other records, or convert the data again"
    )


def _identity(frame: Frame) -> tuple[object, ...]:
    """What is the same of two frames that show the same image file, whatever path or shard leads there."""
    return frame.file if frame.shard is None else (frame.frame_id, *_whole(frame))


def _tell_of_copies(training: Dataset, validation: Dataset) -> None:
    copies = _shared(training.frames, validation.frames)
    if copies:
        log.warning(
            f"{len(copies)} of the {len(validation)} validation images are copies of some that are trained on"
            f" ({copies[0].frame_id}): what is measured on them says nothing of new images; take them out of one fold"
        )


def _shared(training: Sequence[Frame], validation: Sequence[Frame]) -> list[Frame]:
    """The validation images that have the content of one that is trained on, whatever path or record leads there."""
    trained, shared = list(training), [frame for frame in validation if frame.length]
    for identity in (_form, _piece, _whole):  # each is dearer, and asked of what those before it have left
        known = set(map(identity, trained)) if shared else set()
        keys = [identity(frame) for frame in shared]
        shared = [frame for frame, key in zip(shared, keys) if key in known]
        left = {_form(frame) for frame in shared}
        trained = [frame for frame in trained if _form(frame) in left]
    return shared


def _form(frame: Frame) -> tuple[object, ...]:
    return frame.size, frame.length


def _piece(frame: Frame) -> tuple[object, ...]:
    """Tells most images apart whose files are as long as each other, as all are of formats that do not compress."""
    if frame.shard is not None:
        return *_form(frame), frame.checksums[0]
    return *_form(frame), google_crc32c.value(_read(frame, frame.length // 2, PIECE))


def _whole(frame: Frame) -> tuple[object, ...]:
    if frame.shard is not None:
        return *_form(frame), frame.checksums[1]
    return *_form(frame), google_crc32c.value(_read(frame, 0, frame.length))


def _read(frame: Frame, start: int, count: int) -> bytes:
    try:
        with open(frame.path, "rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError as error:
        raise DataError(f"cannot read {frame.path}: {error.strerror or error}") from error

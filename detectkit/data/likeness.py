"""Images that look alike: a hash of what an image shows, groups of near-duplicates, and splits that keep a group together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detectkit.console import progress
from detectkit.data.images import decode, open_image
from detectkit.data.readers import LabelledImage
from detectkit.errors import DataError

BITS = 64
SIDE = 32  # pixels that the transform sees: coarse enough for copies in another size to be the same
DISTANCE = (
    10  # bits: shots of one moment, or with writing on one, differ by up to this; others by 32, seldom by 14
)
FLAT = 1e-3  # grey values: below it there is nothing to see
CHUNK = 256  # hashes that are compared with all others at a time

Item = TypeVar("Item")
Result = TypeVar("Result")


def perceptual_hash(image: NDArray[np.uint8]) -> int:
    """64 bits of what a grey image [h, w] shows: near in Hamming distance for copies in another size, quality or brightness.

    The signs of the 64 lowest frequencies of its cosine transform against their median, without the mean brightness, as
    pHash has them (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"). An image of one
    grey has 0. Mirrored, turned and cut images have another hash.
    """
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    cosines, (rows, columns) = _cosines(), _lowest()
    values = (cosines @ np.asarray(small, dtype=np.float64) @ cosines.T)[rows, columns]
    if np.abs(values).max() < FLAT:
        return 0
    bits = np.packbits(values > np.median(values))
    return int.from_bytes(bits.tobytes(), "big")


def near_duplicates(hashes: Sequence[int], distance: int) -> list[list[int]]:
    """Groups of indices, of 2 or more each, whose hashes differ in at most `distance` bits from one to the next.

    A film is one group, though its ends may differ more. Groups are in the order of their first member, members ascending.
    """
    distinct = sorted(set(hashes))
    place = {value: number for number, value in enumerate(distinct)}
    values = np.array(distinct, dtype=np.uint64)
    parent = list(range(len(distinct)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for start in range(0, len(values), CHUNK):
        differing = np.bitwise_count(values[start : start + CHUNK, None] ^ values[None, start:])
        for first, second in zip(*np.nonzero(differing <= distance)):
            parent[root(start + int(second))] = root(start + int(first))
    groups: dict[int, list[int]] = {}
    for index, value in enumerate(hashes):
        groups.setdefault(root(place[value]), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def grey(path: Path) -> NDArray[np.uint8]:
    """The pixels [h, w] of an image in grey, reduced as far as `perceptual_hash` bears it; all of the file is decoded.

    Raises:
        DataError: the image cannot be read, is damaged or cut short.
    """
    with open_image(str(path), name=str(path)) as image:
        decoded = decode(image, channels=1, target_size=(SIDE, SIDE), name=str(path))
    return np.asarray(decoded.pixels[0])


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], *, label: str) -> Iterator[Result]:
    """The results of `work`, in the order of the items: decoding and hashing let other threads run."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        yield from progress(pool.map(work, items), total=len(items), label=label, unit="images")


# Splits


class Regrouped(NamedTuple):
    """A split whose groups of near-duplicates are each in one fold."""

    folds: list[list[LabelledImage]]
    groups: int
    images: int  # in groups
    moved: int  # images that are in another fold than before


def keep_together(folds: Sequence[Sequence[LabelledImage]], *, distance: int = DISTANCE) -> Regrouped:
    """Deal the images of two folds anew, so that near-duplicates are in one, and fold 0 has as many as groups allow.

    Images are taken in the order that they are in, which was drawn at random: without near-duplicates nothing moves. An
    image that cannot be decoded is like no other.
    """
    frames = [frame for fold in folds for frame in fold]
    hashes = list(in_threads(_hash_of, [frame.image for frame in frames], label="comparing images"))
    readable = [index for index, value in enumerate(hashes) if value is not None]
    groups = near_duplicates([hashes[index] or 0 for index in readable], distance)
    units = _units(len(frames), ([readable[index] for index in group] for group in groups))
    chosen = _chosen(units, len(folds[0]))
    first = {index for unit in chosen for index in unit}
    dealt = [
        [frame for index, frame in enumerate(frames) if (index in first) == wanted]
        for wanted in (True, False)
    ]
    moved = sum((index < len(folds[0])) != (index in first) for index in range(len(frames)))
    return Regrouped(dealt, len(groups), sum(map(len, groups)), moved)


def _hash_of(path: Path) -> int | None:
    try:
        return perceptual_hash(grey(path))
    except DataError:
        return None


def _units(count: int, groups: Iterable[Sequence[int]]) -> list[Sequence[int]]:
    """What is dealt as one: groups, and single images, by their first members."""
    group_of = {index: group for group in groups for index in group}
    units = {group_of.get(index, [index])[0]: group_of.get(index, [index]) for index in range(count)}
    return [units[first] for first in sorted(units)]


def _chosen(units: Sequence[Sequence[int]], wanted: int) -> list[Sequence[int]]:
    """The units of fold 0: in their order those that fit, then the one that brings the sum nearest to what is wanted."""
    chosen: list[Sequence[int]] = []
    left: list[Sequence[int]] = []
    free = wanted
    for unit in units:
        fits = len(unit) <= free
        (chosen if fits else left).append(unit)
        free -= len(unit) * fits
    smallest = min(left, key=len, default=())
    if smallest and len(smallest) - free < free:
        chosen.append(smallest)
    return chosen


@functools.cache
def _cosines() -> NDArray[np.float64]:
    """The cosine transform (DCT-II, orthonormal) of SIDE values: [SIDE, SIDE]."""
    place, frequency = np.arange(SIDE), np.arange(SIDE)[:, None]
    matrix = np.cos(np.pi * (2 * place + 1) * frequency / (2 * SIDE)) * np.sqrt(2 / SIDE)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix)


@functools.cache
def _lowest() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the lowest frequencies, the mean left out."""
    places = [(row, column) for row in range(SIDE) for column in range(SIDE) if row or column]
    lowest = sorted(places, key=lambda place: (sum(place), place))[:BITS]
    rows, columns = np.array(lowest).T
    return rows, columns

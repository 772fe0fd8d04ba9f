"""Class names that are a slip: in case, blanks or letters near a name that many labels have."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

from detectkit.audit.findings import AuditedImage, DataFinding, FindingKind, labels_of, of_label
from detectkit.data.cleaning_list import Correction, Verb

RARE = 20  # labels of the frequent name for one of the slip, at least
SHORTEST = 3  # letters of a name that can have a slip
TELLING = 5  # letters of a name that one other letter in place of its own does not make another one of: RBC and WBC are two
LONG = 8  # letters from which on two may be wrong
SAME, NEAR, PLURAL = 0.95, 0.8, 0.9  # how sure


def findings(images: Sequence[AuditedImage]) -> Iterator[DataFinding]:
    """One for each label with a name that is taken for another one's."""
    names = Counter(label.name for _, _, label in labels_of(images))
    meant = slips(names)
    for image, index, label in labels_of(images):
        if label.name in meant:
            right, sureness = meant[label.name]
            text = f"{label.name!r} has {names[label.name]} labels: is {right!r} meant, which has {names[right]}?"
            correction = Correction(Verb.RENAME, name=right)
            yield of_label(FindingKind.MISSPELT, image, index, text, correction=correction, sureness=sureness)


def slips(names: Counter[str]) -> dict[str, tuple[str, float]]:
    """Names that are likely meant to be another one, with that one and how sure it is (0 to 1).

    One that differs in case, blanks and signs alone is a slip however many labels it has; one that differs in letters where
    the other has twenty times as many. Names that differ in a digit (`route_1`, `route_2`) are two classes.
    """
    found: dict[str, tuple[str, float]] = {}
    for name, count in names.items():
        candidates = []
        for other, more in names.items():
            sureness = _sureness(name, count, other, more)
            if sureness:
                candidates.append((sureness, more, other))
        if candidates:
            sureness, _, right = max(candidates)
            found[name] = (right, sureness)
    return found


def _sureness(name: str, count: int, other: str, more: int) -> float:
    """How sure it is that a name of `count` labels is meant to be another one; 0: it is not."""
    if name == other or (more, other) < (count, name):  # of equal counts one is right
        return 0.0
    plain, meant = _plain(name), _plain(other)
    if plain and plain == meant:
        return SAME
    if more < RARE * count or min(len(plain), len(meant)) < SHORTEST or _digits(plain) != _digits(meant):
        return 0.0
    if plain in (meant + "s", meant + "es") or meant in (plain + "s", plain + "es"):
        return PLURAL
    if len(meant) < TELLING and len(plain) == len(meant) and sorted(plain) != sorted(meant):
        return 0.0
    distance = edit_distance(plain, meant)
    return NEAR if distance <= (2 if len(meant) >= LONG else 1) else 0.0


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def _digits(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def edit_distance(first: str, second: str) -> int:
    """Letters to put in, leave out, replace or swap with their neighbour, to make one of two texts the other."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        earlier, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
    return row[-1]

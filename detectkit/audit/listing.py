"""The list of findings as a file that a person decides in."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from detectkit.audit.findings import DataFinding
from detectkit.data.cleaning_list import ACCEPT, COLUMNS, ListedFinding, Verb, box_cell, read_list
from detectkit.files import atomic_write

LIST = "cleaning.csv"
Key = tuple[str, str, str, str]  # kind, image or label file, class, box

# What begins a cell with one of these is a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_list(
    path: Path, findings: Sequence[DataFinding], *, accept: Collection[str] = (), earlier: Sequence[Path] = ()
) -> int:
    """Write the findings, a row each, with the decisions that are in the file already; a new one has none.

    What was decided on and is not found this time stays in the list.

    Args:
        earlier: lists whose decisions are kept, too.
        accept: kinds whose undecided findings get `accept`, but for those that only ask to look.

    Returns:
        How many findings have a decision.

    Raises:
        DataError: the file that is there is no list. OutputError: it cannot be written.
    """
    made = [_decisions(file) for file in (path, *earlier) if file.exists()]
    rows = []
    for item in findings:
        key = _key(item.kind, item.image, item.name, box_cell(item.box))
        said = [decisions[key].pop(0).decision for decisions in made if decisions.get(key)]
        decision = next(filter(None, said), "")
        if not decision and item.kind in accept and item.correction.verb != Verb.LOOK:
            decision = ACCEPT
        rows.append(_cells(item, decision))
    rows += [_again(row) for row in _left(made)]
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)  # with the mark by which spreadsheets know UTF-8
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return sum(bool(row[COLUMNS.index("decision")]) for row in rows)


def _decisions(path: Path) -> dict[Key, list[ListedFinding]]:
    """What was decided on, by what it is of; of equal findings in their order."""
    found: dict[Key, list[ListedFinding]] = defaultdict(list)
    for row in read_list(path):
        found[_key(row.kind, row.image, row.name, box_cell(row.box))].append(row)
    return found


def _left(made: Sequence[dict[Key, list[ListedFinding]]]) -> list[ListedFinding]:
    """Those with a decision that were not found this time, as without the model of last time; of several lists, each once."""
    rows = [row for decisions in made for same in decisions.values() for row in same if row.decision]
    return list({row._replace(line=0): row for row in rows}.values())


def _again(row: ListedFinding) -> list[str]:
    told = "decided on before, and not found this time"
    return [row.kind, row.image, "", "", row.name, box_cell(row.box), "", row.suggestion, row.decision, told]


def _key(*columns: str) -> Key:
    kind, image, name, box = columns
    return str(kind), image, name, box


def _cells(item: DataFinding, decision: str) -> list[str]:
    line = "" if item.line is None else str(item.line)
    return [
        *(str(item.kind), item.image, item.label_file, line, item.name, box_cell(item.box)),
        *(f"{item.sureness:.3f}", str(item.correction), decision, _plain(item.text)),
    ]


def _plain(text: str) -> str:
    return f" {text}" if text.startswith(FORMULA) else text

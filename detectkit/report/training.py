"""The course of a training, from the status.jsonl that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from detectkit.report.folder import number


class Epoch(NamedTuple):
    """What was measured after an epoch; None where it was not."""

    number: int  # from 1
    cost: float | None
    learning_rate: float | None
    validation_cost: float | None
    mean: float | None  # average precision, 0 to 1
    by_class: dict[str, float | None]


def history(path: Path) -> list[Epoch]:
    """The epochs of a status.jsonl; empty where there is none. Lines that are cut or not understood are skipped.

    A training that was stopped goes on in the same file, one begun anew as well: an epoch that comes a second time
    takes the place of the first and of all after it.
    """
    epochs: list[Epoch] = []
    for record in _records(path):
        found = _epoch(record)
        if found is not None:
            epochs = [epoch for epoch in epochs if epoch.number < found.number] + [found]
    return epochs


def training_mean(path: Path) -> float | None:
    """The mAP on training images that the end of a training writes to status.jsonl, 0 to 1; None before it is over."""
    for record in reversed(_records(path)):
        mean = number(_dict(record.get("kpi")).get("training mean average precision"))
        if mean is not None or "epoch" in record:
            return mean
    return None


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [record for record in map(_record, lines) if record]


def _record(line: str) -> dict[str, Any]:
    try:
        return _dict(json.loads(line))
    except (ValueError, RecursionError):
        return {}


def _epoch(record: dict[str, Any]) -> Epoch | None:
    if number(record.get("epoch")) is None:
        return None
    values, kpi = _dict(record.get("graphical")), _dict(record.get("kpi"))
    classes = _dict(_dict(record.get("categorical")).get("average_precision"))
    return Epoch(
        number=int(record["epoch"]),
        cost=number(values.get("loss")),
        learning_rate=number(values.get("learning_rate")),
        validation_cost=number(values.get("validation_cost")),
        mean=number(kpi.get("mean average precision")),
        by_class={str(name): number(value) for name, value in classes.items()},
    )


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

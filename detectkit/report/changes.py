"""What the final float model gets wrong, by kind, and what to change in the spec, from its results.json.

What is missing there, or damaged, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectkit import page
from detectkit.pipeline.products import Role
from detectkit.report.folder import RunFolder, number, read_json
from detectkit.report.models import MOST_CLASSES, ModelRow, final_float

WORST = 15  # classes, and pairs of classes, where there are many


def changes(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """What ails the model, and the fields to change, the best first; "" where it is neither."""
    last = final_float(found)
    if last is None or last.key not in run.results:
        return ""
    rows = []
    for item in _dicts(_results(run, last).get("advice")):
        gain, edits = number(item.get("gain")), _dicts(item.get("edits"))
        if gain is None or not edits:
            continue
        told = page.lines(
            *(f"{edit.get('field')}: {_value(edit, 'value')} ({_value(edit, 'now')} now)" for edit in edits)
        )
        rows.append([told, f"up to +{100 * gain:.1f} {item.get('of')}", str(item.get("why"))])
    findings = [page.paragraph(told) for told in run.results[last.key].findings]
    if not rows and not findings:
        return ""
    note = page.paragraph(
        f"Of {last.title}. A gain is what the mistakes cost that a change is for, or a share of it: what it may win, not what"
        " it will. Change one thing at a time.",
        style="note",
    )
    table = [page.table(["field", "gain, points", "why"], rows, text=[0, 2])] if rows else []
    return "\n".join((note, *findings, *table))


def kinds(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """What each kind of mistake costs, by class and by size; "" where the evaluation did not say."""
    from detectkit.evaluation.results import TITLES  # imports torch

    content = _content(run, found)
    by_class = {
        str(name): item["costs"]
        for name, item in _dict(content.get("mistakes")).items()
        if isinstance(item, dict) and isinstance(item.get("costs"), dict)
    }
    mean = _dict(content.get("mistake_costs"))
    if not by_class or not mean:
        return ""
    rows = [[name, *_points(costs)] for name, costs in by_class.items()]
    first = sorted(by_class, key=lambda name: -_total(by_class[name]))[:WORST]
    shown = rows if len(rows) <= MOST_CLASSES else [[name, *_points(by_class[name])] for name in first]
    sizes = _dicts(content.get("mistake_costs_by_size"))
    headers = ["", *TITLES]
    told = (
        "Points of average precision that are won where all mistakes of a kind, and they alone, are put right, as TIDE"
        " measures it; they do not add up."
    )
    parts = [page.paragraph(told, style="note")]
    parts += [page.table(headers, [["mean", *_points(mean)], *(shown if len(rows) > 1 else [])])]
    if len(shown) < len(rows):
        parts += [page.folded(f"All {len(rows)} classes", page.table(headers, rows))]
    if sizes:
        parts += [page.table(headers, [[_size(sizes, at), *_points(item)] for at, item in enumerate(sizes)])]
    return "\n".join(parts)


def confusion(run: RunFolder, found: Sequence[ModelRow]) -> str:
    """Which classes are taken for which: a matrix of few, the worst pairs of many; "" for one class."""
    content = _dict(_content(run, found).get("confusion"))
    names, counts = content.get("class_names"), _matrix(content.get("counts"))
    if not isinstance(names, list) or len(names) < 2 or len(counts) != len(names) + 1:
        return ""
    titles = [*map(str, names), "background"]
    told = (
        "Labels by row, what they are found as by column, from the score on where the F1 of a class is best. Below, what is"
        " found where nothing is; on the right, what is missed."
    )
    if len(names) <= MOST_CLASSES:
        rows: list[list[object]] = [
            [name, *(_cell(value, at == row) for at, value in enumerate(counts[row]))]
            for row, name in enumerate(titles)
        ]
        return page.paragraph(told, style="note") + page.table(["label", *titles], rows)
    pairs = [
        (counts[row][at], sum(counts[row]), titles[row], titles[at])
        for row in range(len(names))
        for at in range(len(names))
        if at != row and counts[row][at]
    ]
    if not pairs:
        return ""
    cells = [
        [label, taken, count, total] for count, total, label, taken in sorted(pairs, reverse=True)[:WORST]
    ]
    note = f"Of {len(names)} classes the pairs that are most often confused, from the score on where the F1 of a class is best."
    return page.paragraph(note, style="note") + page.table(["label", "found as", "times", "of labels"], cells)


def _value(edit: dict[str, Any], key: str) -> str:
    known = number(edit.get(key))
    return str(edit.get(key)) if known is None else f"{known:.6g}"


def _cell(value: object, is_right: bool) -> object:
    return page.marked(str(value), "good") if is_right and value else value or ""


def _matrix(counts: object) -> list[list[int]]:
    """As many numbers in each row as there are rows; [] for anything else."""
    rows = counts if isinstance(counts, list) else []
    square = all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    return rows if square and all(isinstance(value, int) for row in rows for value in row) else []


def _size(sizes: Sequence[dict[str, Any]], at: int) -> str:
    bound = number(sizes[at].get("up_to"))
    return "larger" if bound is None else f"up to {bound:.0f}² pixels"


def _points(costs: dict[str, Any]) -> list[str]:
    from detectkit.evaluation.results import Kinds

    values = [number(costs.get(kind)) for kind in Kinds._fields]
    return ["-" if value is None else f"{100 * value:.1f}" for value in values]


def _total(costs: dict[str, Any]) -> float:
    return sum(number(value) or 0 for value in costs.values())


def _content(run: RunFolder, found: Sequence[ModelRow]) -> dict[str, Any]:
    last = final_float(found)
    return _results(run, last) if last else {}


def _results(run: RunFolder, model: ModelRow) -> dict[str, Any]:
    path = run.file(Role.RESULTS, model.key)
    return (read_json(path, []) if path else None) or {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

"""What a training has said of its own images."""

from __future__ import annotations

import json
from pathlib import Path

WEIGHTS, STATUS = "weights", "status.jsonl"  # in the folder of a training
EARLIER = ".epoch-"  # in the names of models from before the end


def training_figures(model: Path) -> dict[str, float | None]:
    """The average precision of each class on training images, as the training that wrote a model measured it at its end.

    Empty where the model does not lie in the folder of a training that has ended, or is one from before its end.
    """
    if model.parent.name != WEIGHTS or EARLIER in model.name:
        return {}
    try:
        lines = (model.parent.parent / STATUS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            record = json.loads(line)
            if "epoch" in record:
                return {}  # it goes on
            figures = record["categorical"]["training_average_precision"].items()
            return {str(name): None if value is None else float(value) for name, value in figures}
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
            continue
    return {}

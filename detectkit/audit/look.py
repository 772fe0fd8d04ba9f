"""All that is looked for, in one list."""

from __future__ import annotations

from detectkit.audit import boxes, classes, images
from detectkit.audit.findings import BY_MODEL, DataFinding, ranked
from detectkit.audit.gather import Gathered
from detectkit.audit.suggestions import suggestions
from detectkit.predict import Predictor
from detectkit.spec import DataCleaningConfig


def look(
    gathered: Gathered, config: DataCleaningConfig, predictor: Predictor | None = None
) -> list[DataFinding]:
    """Look through images and labels; what a rule finds comes first, then what a model suggests, each by sureness."""
    seen = images.looked_at(gathered.images)
    found = [
        *images.findings(gathered.images, seen, config),
        *images.left_out(gathered.rejected),
        *boxes.findings(gathered.images, config, gathered.neutral),
        *boxes.unusable(gathered.rejected),
        *classes.findings(gathered.images),
    ]
    by_rule = ranked(item for item in found if item.kind not in config.ignored_kinds)
    if predictor is None or set(BY_MODEL) <= set(config.ignored_kinds):
        return by_rule
    sound = [image for image, one in zip(gathered.images, seen, strict=True) if not one.error]
    return [*by_rule, *suggested(gathered._replace(images=sound), config, predictor)]


def suggested(gathered: Gathered, config: DataCleaningConfig, predictor: Predictor) -> list[DataFinding]:
    """What a model suggests of images that can be read, the surest first."""
    found = suggestions(gathered.images, predictor, gathered.classes)
    kept = [item for item in found if item.kind not in config.ignored_kinds]
    return kept[: config.max_suggestions]

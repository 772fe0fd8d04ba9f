"""Names of classes and labels, in specs and in text files: TLT's labels.txt beside an export, DeepStream's label file."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectkit.errors import SpecError
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.schema import quoted


def lists_classes(experiment: Experiment) -> bool:
    """Whether the classes stand in a list, as a person may write them; a loaded spec has an entry for each instead."""
    config = experiment.cost_function_config
    return bool(config.class_names or config.class_file)


def class_names(experiment: Experiment) -> list[str]:
    """The target classes in the order of the network's outputs.

    Raises:
        SpecError: `class_file`, which a loaded spec does not have, is no list of classes.
    """
    config = experiment.cost_function_config
    if config.class_file:
        return read_class_list(Path(config.class_file))
    return list(config.class_names) or [target.name for target in config.target_classes]


def label_name(text: str) -> str:
    """Give a label name as the records have it: in lower case and without white space, as TLT's are.

    Letters of every script stay; those that are a letter and an accent are composed.
    """
    return unicodedata.normalize("NFC", "".join(text.split()).lower())


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name nearest to a name, letter case aside."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.75)
    return lower[near[0]] if near else None


def read_class_list(path: Path) -> list[str]:
    """The names in a text file, one a line, or all on one line with `;` between them; blank lines do not count.

    A path may begin with `~`. Raises SpecError for a file that cannot be read, holds no name, or one name twice.
    """
    place = Path(os.path.expanduser(path))
    if place.exists() and not place.is_file():
        raise SpecError(f"{path}: the list of classes cannot be read: it is no file")
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise SpecError(f"{path}: the list of classes cannot be read: {reason}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = [name.strip() for name in lines[0].split(";") if name.strip()]
    if not lines:
        raise SpecError(f"{path}: the list of classes is empty: write one name a line")
    twice = [name for name, count in Counter(lines).items() if count > 1]
    if twice:
        raise SpecError(f"{path}: class {quoted(twice[0])} stands {Counter(lines)[twice[0]]} times: keep one")
    return lines


def compare_classes(
    message: Experiment | Inference | DatasetExportConfig, listed: list[str], name: str
) -> list[str]:
    """The spec's classes in the order of the network's outputs, when `listed`, read from the file `name`, is the same.

    Raises SpecError that says which names, or which order, differ, and for a spec without classes.
    """
    match message:
        case Experiment():
            classes, field = class_names(message), "cost_function_config.target_classes"
        case Inference():
            classes, field = (
                list(message.inferencer_config.target_classes),
                "inferencer_config.target_classes",
            )
        case DatasetExportConfig():
            raise SpecError(f"{name}: a conversion spec has no classes to compare with")
    problems = [f"{quoted(other)} is not in the spec" for other in listed if other not in classes]
    problems += [f"{quoted(own)} is not in the list" for own in classes if own not in listed]
    if not problems and listed != classes:
        place = next(index for index, pair in enumerate(zip(listed, classes)) if pair[0] != pair[1])
        here, there = quoted(classes[place]), quoted(listed[place])
        problems = [f"output {place + 1} of the network is {here}, the list has {there} there"]
    if problems:
        raise SpecError(
            f"{name}: not the classes of {field}: {'; '.join(problems)}. The spec has, in this order: {', '.join(classes)}"
        )
    return classes

"""What a spec says class by class: maps whose entry `default` serves the classes without one, and the list of classes.

`load` writes all of it out, so that what reads a spec finds an entry for each class, and knows of no list and no `default`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, MutableMapping
from typing import Any

from google.protobuf.message import Message

from detectkit.spec.classes import class_names, label_name, lists_classes
from detectkit.spec.cost_function_pb2 import CostFunctionConfig
from detectkit.spec.dataset_export_pb2 import DatasetExportConfig
from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.inference_pb2 import Inference
from detectkit.spec.schema import fields_of, join, rule_of

DEFAULT = "default"  # the entry for the classes without one
TARGETS = "cost_function_config.target_classes"
LABELS = "dataset_config.target_class_mapping"
EXCEPTIONS = 10  # classes that are named as those which an entry does not serve


def entry_of(entries: Container[str], name: str) -> str | None:
    """The key of the entry that serves a class: its own name, else `default`; None where there is neither."""
    return next((key for key in (name, DEFAULT) if key in entries), None)


def class_maps(message: Message, path: str = "") -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """Path and entries of every map by target class that has any, in a message and the sections in it."""
    for field, value in fields_of(message):
        here = join(path, field.name)
        if rule_of(field).by_class:
            yield here, value
        elif field.message_type is not None and not field.is_repeated:
            yield from class_maps(value, here)


def class_entries(experiment: Experiment) -> dict[str, set[str]]:
    """The keys of all that may have an entry for each class, by path: of maps, and of the target classes where a list names
    those."""
    found = {path: set(entries) for path, entries in class_maps(experiment)}
    if lists_classes(experiment):
        found[TARGETS] = {target.name for target in experiment.cost_function_config.target_classes}
    return found


def own_labels(experiment: Experiment) -> list[str]:
    """The classes of a list that have the label of their own name: those whose name is no label that the spec speaks of.

    Raises:
        SpecError: `class_file` is no list of classes.
    """
    config = experiment.dataset_config
    taken = set(map(label_name, (*config.target_class_mapping, *config.dontcare_labels)))
    found = []
    for name in class_names(experiment) if lists_classes(experiment) else ():
        if label_name(name) not in taken:
            taken.add(label_name(name))
            found.append(name)
    return found


def expanded(
    message: Experiment | Inference | DatasetExportConfig,
) -> Experiment | Inference | DatasetExportConfig:
    """A training spec with an entry for each class wherever `default` stood, and the classes of a list as target classes and
    labels: a copy, equal to the spec where it has neither, so that a copy of a copy is the same. Specs of other kinds are
    given back: the classes of an inference spec may be known to its model alone.

    Args:
        message: a spec that breaks no rule.

    Raises:
        SpecError: `class_file` is no list of classes.
    """
    if not isinstance(message, Experiment):
        return message
    result = Experiment()
    result.CopyFrom(message)
    names = class_names(message)
    labels = {label_name(name): name for name in own_labels(message)}
    result.dataset_config.target_class_mapping.update(labels)
    if lists_classes(message):
        _write_targets(result, names)
    for _, entries in class_maps(result):
        if DEFAULT in entries:
            for name in names:
                if name not in entries:
                    _copy_default(entries, name)
            del entries[DEFAULT]
    return result


def _write_targets(experiment: Experiment, names: list[str]) -> None:
    """Put the target classes of a list in its order, and leave the list out."""
    config = experiment.cost_function_config
    given = {target.name: target for target in config.target_classes}
    targets = []
    for name in names:
        target = CostFunctionConfig.TargetClass()
        key = entry_of(given, name)
        if key is not None:
            target.CopyFrom(given[key])
        target.name = name
        targets.append(target)
    for field in ("target_classes", "class_names", "class_file"):
        config.ClearField(field)
    config.target_classes.extend(targets)


def _copy_default(entries: MutableMapping[str, Any], name: str) -> None:
    if isinstance(entries[DEFAULT], Message):
        entries[name].CopyFrom(entries[DEFAULT])  # maps of messages take no assignment
    else:
        entries[name] = entries[DEFAULT]


def shared_entries(message: Experiment | Inference | DatasetExportConfig) -> dict[str, str]:
    """What of a spec, as a person wrote it, stands for several classes: which ones, in words, by the path of the section.

    Raises:
        SpecError: `class_file` is no list of classes.
    """
    if not isinstance(message, Experiment):
        return _shared_by_unlisted(message)
    names = class_names(message)
    found = {
        path: f"the entry {DEFAULT} serves {_which(set(names) - entries, names)}"
        for path, entries in class_entries(message).items()
        if DEFAULT in entries
    }
    labelled = own_labels(message)
    if labelled:
        found[LABELS] = f"their own names are the labels of {_which(set(labelled), names)}"
    return found


def _shared_by_unlisted(message: Inference | DatasetExportConfig) -> dict[str, str]:
    """Of a spec whose classes may be known to the model or the labels alone."""
    maps = ((path, entries) for path, entries in class_maps(message) if DEFAULT in entries)
    rest = {path: ", ".join(sorted(set(entries) - {DEFAULT})) for path, entries in maps}
    return {
        path: f"the entry {DEFAULT} serves every class{f' but {names}' if names else ''}"
        for path, names in rest.items()
    }


def _which(chosen: set[str], names: list[str]) -> str:
    """The chosen ones of the classes, as all but a few where that is shorter."""
    rest = [name for name in names if name not in chosen]
    if not chosen:
        return "no class"
    if not rest:
        return f"all {len(names)} classes" if len(names) > 1 else f"the class {names[0]}"
    if len(rest) <= min(len(chosen), EXCEPTIONS):
        return f"all {len(names)} classes but {', '.join(rest)}"
    return ", ".join(name for name in names if name in chosen)

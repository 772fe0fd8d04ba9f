"""Which changes of a spec make another training of it, and which one can go on with."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.load import resolved
from detectkit.spec.networks import layout_of
from detectkit.spec.phases import only
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.schema import present, show

BATCH_SIZE = 4  # of a spec that trains nothing


def changed_sections(before: Experiment, now: Experiment) -> list[str]:
    """The top-level fields that differ, defaults written out."""
    before, now = resolved(before), resolved(now)
    names = [field.name for field in Experiment.DESCRIPTOR.fields]
    return [name for name in names if getattr(before, name) != getattr(now, name)]


def field_changes(before: Experiment, now: Experiment) -> list[tuple[str, str, str]]:
    """Path, value before and value now of every field that differs, defaults written out; empty for what is not there."""
    old, new = dict(_values(resolved(before), "")), dict(_values(resolved(now), ""))
    paths = [*new, *(path for path in old if path not in new)]
    return [(path, old.get(path, ""), new.get(path, "")) for path in paths if old.get(path) != new.get(path)]


def _values(message: Message, path: str) -> Iterator[tuple[str, str]]:
    for here, field, value in present(message, path):
        if isinstance(value, Message):
            yield from _values(value, here)
        else:
            yield here, show(value, field)


def another_training(before: Experiment, now: Experiment) -> list[str]:
    """The top-level fields whose change makes the training another one; empty: one can go on where it was."""
    return changed_sections(_learned(before), _learned(now))


def is_measured_otherwise(before: Experiment, now: Experiment) -> bool:
    """Whether accuracies by the one spec cannot be compared with those by the other."""
    return bool(changed_sections(only(before, Rule.MEASURING), only(now, Rule.MEASURING)))


def batch_size(experiment: Experiment) -> int:
    """Images that go through the network at once."""
    return experiment.training_config.batch_size_per_gpu or BATCH_SIZE


def _learned(experiment: Experiment) -> Experiment:
    """What a training that has begun cannot change."""
    kept = only(experiment, Rule.DATA, Rule.TRAINING)
    if kept.training_config.HasField("distillation"):
        kept.training_config.distillation.ClearField("teacher_model_file")  # its weights are compared
    config = kept.model_config  # a layout that is written out is the one that the name of a file has said
    config.layout = layout_of(config)
    return kept

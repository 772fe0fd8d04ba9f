"""To which phase of a run the fields of a training spec belong, as the schema says."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.message import Message

from detectkit.spec.experiment_pb2 import Experiment
from detectkit.spec.rule_pb2 import Rule
from detectkit.spec.schema import fields_of, rule_of, schema_of


def only(experiment: Experiment, *wanted: Rule.Phase | str) -> Experiment:
    """A copy with the fields of these phases alone; sections that are named are there whole."""
    others = set(Rule.Phase.values()) - {Rule.OF_SECTION, *wanted}
    sections = {name for name in wanted if isinstance(name, str)}
    assert sections <= set(schema_of(Experiment).fields_by_name), sections
    return _without(experiment, others, spared=sections)


def without(experiment: Experiment, *phases: Rule.Phase) -> Experiment:
    """A copy without the fields of these phases, wherever they stand."""
    return _without(experiment, phases)


def _without(experiment: Experiment, phases: Collection[int], *, spared: Collection[str] = ()) -> Experiment:
    kept = Experiment()
    kept.CopyFrom(experiment)
    _clear(kept, phases, spared)
    return kept


def _clear(message: Message, phases: Collection[int], spared: Collection[str] = ()) -> None:
    """Clear in place; a field without a phase of its own stays, or goes, with its section."""
    for field, value in fields_of(message):
        if field.name in spared:
            continue
        if rule_of(field).phase in phases:
            message.ClearField(field.name)
        elif isinstance(value, Message):
            _clear(value, phases)

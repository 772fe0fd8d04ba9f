"""What a field is for stands in the schema: sections, and the fields of a training that may change while it is under way."""

import pytest

from detectkit import spec
from detectkit.spec.schema import rule_of
from detectkit.spec.phases import without
from detectkit.spec.runs import is_measured_otherwise
from detectkit.spec.rule_pb2 import Rule


def names(message):
    return [field.name for field, _ in message.ListFields()]


def of_phase(descriptor, *phases):
    return [field.name for field in descriptor.fields if rule_of(field).phase in phases]


def test_every_section_is_for_something():
    assert of_phase(spec.Experiment.DESCRIPTOR, Rule.OF_SECTION) == []


def test_what_a_training_may_change_on_its_way():
    """One that has ended goes on with other values of the first, and is left alone after a change of the others."""
    training = spec.TrainingConfig.DESCRIPTOR
    assert of_phase(training, Rule.RESUMABLE) == [
        *("num_epochs", "learning_rate", "regularizer", "cost_scaling", "clip_gradient_norm")
    ]
    assert of_phase(training, Rule.RUNNING) == ["checkpoint_interval", "visualizer", "workers"]


@pytest.fixture
def whole():
    text = """
    random_seed: 3
    dataset_config { target_class_mapping { key: "car" value: "car" } }
    evaluation_config { validation_period_during_training: 5 }
    training_config { num_epochs: 4 batch_size_per_gpu: 2 workers: 3 distillation { weight: 0.5 } }
    dataset_export_config { output_filename: "records/a" }
    dataset_export_config { output_filename: "records/b" }
    pruning_config { retraining { num_epochs: 6 } }
    """
    from google.protobuf import text_format

    return text_format.Parse(text, spec.Experiment())


def test_the_fields_of_some_phases(whole):
    learned = spec.only(whole, Rule.DATA, Rule.TRAINING)
    assert names(learned) == ["random_seed", "dataset_config", "training_config"]
    assert names(learned.training_config) == ["batch_size_per_gpu", "distillation"]
    assert names(spec.only(whole, Rule.CONVERTING, "training_config")) == [
        *("training_config", "dataset_export_config")
    ]
    assert spec.only(whole, "training_config").training_config == whole.training_config


def test_all_but_the_fields_of_some_phases(whole):
    left = without(whole, Rule.CONVERTING, Rule.PRUNING, Rule.RUNNING)
    assert names(left) == ["random_seed", "dataset_config", "evaluation_config", "training_config"]
    assert names(left.training_config) == ["batch_size_per_gpu", "num_epochs", "distillation"]
    assert len(whole.dataset_export_config) == 2  # which is not touched


def test_what_is_measured_otherwise_is_not_compared(whole):
    other = spec.Experiment.FromString(whole.SerializeToString())
    other.training_config.num_epochs = 9
    assert not is_measured_otherwise(whole, other)
    other.evaluation_config.validation_period_during_training = 1
    assert is_measured_otherwise(whole, other)


@pytest.mark.parametrize(
    "path, said", [("training_config.num_epochs", True), ("training_config.batch_size_per_gpu", False)]
)
def test_explain_tells_what_may_change(path, said):
    assert ("may change in a resumed training" in spec.explain(path)) == said

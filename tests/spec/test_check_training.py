"""The rules of training_config that are our own additions to TLT's."""

import pytest
from google.protobuf import text_format

from detectkit import spec


@pytest.fixture
def experiment(kitti_train):
    return spec.loads(kitti_train)


def violations(message):
    return [str(violation) for violation in spec.check(message)]


def test_the_first_stage_keeps_the_same_rules(experiment):
    text = """
      first_stage {
        num_epochs: 3
        learning_rate {
          early_stopping_annealing_schedule { min_learning_rate: 2 max_learning_rate: 1 patience_steps: 30 }
        }
      }
    """
    text_format.Parse(text, experiment.training_config)
    experiment.evaluation_config.validation_period_during_training = 1
    path = "training_config.first_stage.learning_rate.early_stopping_annealing_schedule"
    assert violations(experiment) == [
        f"{path}.min_learning_rate: must be at most max_learning_rate (1), got 2",
        f"{path}.patience_steps: must be at most the epochs of its stage (3), got 30",
    ]


@pytest.mark.parametrize(
    ("field", "value", "interval"),
    [
        ("accumulate_batches", 0, "[1, inf)"),
        ("clip_gradient_norm", -1, "[0, inf)"),
        ("ema_decay", 1, "[0, 1)"),
    ],
)
def test_ranges(experiment, field, value, interval):
    setattr(experiment.training_config, field, value)
    assert violations(experiment) == [f"training_config.{field}: must be in {interval}, got {value}"]

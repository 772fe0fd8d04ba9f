"""The specs that train a trained network again."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from detectkit import spec
from detectkit.spec import qat_spec, retraining_spec


def test_the_retraining_spec_starts_from_the_pruned_model_with_nothing_frozen(tiny):
    frozen = spec.Experiment()
    frozen.CopyFrom(tiny)
    frozen.model_config.pretrained_model_file = "first.safetensors"
    frozen.model_config.freeze_pretrained_layers = True
    frozen.model_config.freeze_blocks[:] = [0, 1]
    frozen.model_config.freeze_bn = True
    found = retraining_spec(frozen, Path("pruned.safetensors")).model_config
    assert found.pretrained_model_file == "pruned.safetensors" and found.load_graph
    assert not found.freeze_pretrained_layers and not found.freeze_blocks
    assert found.freeze_bn  # batch normalisation, as before
    assert list(frozen.model_config.freeze_blocks) == [0, 1] and not frozen.model_config.load_graph
    for name in ("training_config", "dataset_config", "cost_function_config"):
        kept = retraining_spec(frozen, Path("pruned.safetensors"))
        assert getattr(kept, name) == getattr(tiny, name)


def test_the_retraining_spec_does_again_nothing_that_was_before(tiny):
    """What comes after the training is still to be done."""
    whole = spec.Experiment()
    whole.CopyFrom(tiny)
    whole.pruning_config.target_params = 0.5
    whole.dataset_export_config.add().output_filename = "records"
    whole.calibration_config.batches, whole.export_config.nms = 2, True
    whole.training_config.first_stage.num_epochs = 3
    found = retraining_spec(whole, Path("pruned.safetensors"))
    assert not found.dataset_export_config and not found.HasField("pruning_config")
    assert not found.training_config.HasField("first_stage")
    assert found.calibration_config.batches == 2 and found.export_config.nms
    assert whole.HasField("pruning_config") and whole.training_config.HasField("first_stage")


def test_the_retraining_spec_keeps_the_layout_that_a_name_has_said(tiny):
    """Beside the rate that hangs on what is left."""
    whole = spec.Experiment()
    whole.CopyFrom(tiny)
    whole.model_config.pretrained_model_file = "resnet10.hdf5"
    found = retraining_spec(whole, Path("pruned.safetensors"), kept=1.0)
    assert found.model_config.layout == spec.ModelConfig.TLT
    assert found.model_config.pretrained_model_file == "pruned.safetensors" and found.model_config.load_graph
    rate = found.training_config.learning_rate.soft_start_annealing_schedule
    assert rate.max_learning_rate == pytest.approx(5e-4) and rate.soft_start == pytest.approx(0.05)  # of 1e-3
    assert whole.model_config.layout == spec.ModelConfig.AS_PRETRAINED


@pytest.mark.parametrize("kept, epochs", [(1.0, 20), (1.02, 20), (0.75, 25), (0.5, 30), (0.0, 40)])
def test_the_more_is_lost_the_longer_a_retraining_is(tiny, kept, epochs):
    tiny.training_config.num_epochs = tiny.evaluation_config.first_validation_epoch = 20
    found = retraining_spec(tiny, Path("pruned"), kept=kept)
    assert found.training_config.num_epochs == epochs
    assert found.evaluation_config.first_validation_epoch == epochs  # still at its end only
    tiny.evaluation_config.first_validation_epoch = 5
    assert retraining_spec(tiny, Path("pruned"), kept=kept).evaluation_config.first_validation_epoch == 5


def test_a_retraining_is_as_long_as_the_spec_says(tiny):
    training = retraining_spec(tiny, Path("pruned"), spec.Retraining(num_epochs=3), kept=0.0).training_config
    assert training.num_epochs == 3
    assert retraining_spec(tiny, Path("pruned")).training_config.num_epochs == tiny.training_config.num_epochs


RETRAINING = """
num_epochs: 3
learning_rate {
  soft_start_annealing_schedule { min_learning_rate: 1e-6 max_learning_rate: 1e-5 soft_start: 0.2 annealing: 0.5 }
}
"""


def test_a_retraining_says_what_differs(tiny):
    retraining = text_format.Parse(RETRAINING, spec.Retraining())
    found = retraining_spec(tiny, Path("a.safetensors"), retraining).training_config
    assert found.num_epochs == 3 and found.learning_rate == retraining.learning_rate
    for rest in (spec.Retraining(num_epochs=3), spec.Retraining(learning_rate=retraining.learning_rate)):
        found = retraining_spec(tiny, Path("a.safetensors"), rest).training_config
        whole = spec.TrainingConfig()
        whole.CopyFrom(tiny.training_config)
        whole.MergeFrom(spec.TrainingConfig(num_epochs=rest.num_epochs or whole.num_epochs))
        if rest.HasField("learning_rate"):
            whole.learning_rate.CopyFrom(rest.learning_rate)
        assert found == whole
    for nothing in (spec.Retraining(), spec.Retraining(num_epochs=0), None):
        assert retraining_spec(tiny, Path("a"), nothing).training_config == tiny.training_config


def test_the_spec_of_training_in_8_bits(tiny):
    whole = spec.Experiment()
    whole.CopyFrom(tiny)
    whole.calibration_config.tensorrt_version = "8.6.1"
    retraining = text_format.Parse(RETRAINING, spec.Retraining())
    whole.calibration_config.quantization_aware_training.CopyFrom(retraining)
    found = spec.loads(spec.dumps(qat_spec(whole, Path("pruned.safetensors"))))  # it breaks no rule
    assert (found.model_config.pretrained_model_file, found.model_config.load_graph) == (
        "pruned.safetensors",
        True,
    )
    assert found.training_config.enable_qat and found.training_config.num_epochs == 3
    assert found.training_config.learning_rate == retraining.learning_rate
    assert found.calibration_config == spec.CalibrationConfig(tensorrt_version="8.6.1")  # nothing to do twice
    assert not whole.training_config.enable_qat  # stays as it is


TEACHER, OTHER = Path("whole.safetensors"), Path("other.safetensors")


def teacher_of(tiny, retraining="", *, own=""):
    whole = spec.Experiment()
    whole.CopyFrom(tiny)
    text_format.Parse(own, whole.training_config)
    retraining = text_format.Parse(retraining, spec.Retraining())
    return retraining_spec(whole, Path("pruned"), retraining, teacher=TEACHER).training_config.distillation


def test_the_network_before_a_pruning_teaches_unless_the_spec_says_otherwise(tiny):
    assert teacher_of(tiny) == spec.DistillationConfig(teacher_model_file=str(TEACHER))
    found = teacher_of(tiny, "distillation { weight: 0.1 }")
    assert (found.teacher_model_file, found.weight) == (str(TEACHER), pytest.approx(0.1))
    own = 'distillation { teacher_model_file: "other.safetensors" weight: 1 }'
    for given in ({"retraining": own}, {"own": own}):
        found = teacher_of(tiny, **given)
        assert (found.teacher_model_file, found.weight) == (str(OTHER), 1)


def test_a_weight_of_0_is_no_teacher(tiny):
    zero = text_format.Parse("distillation { weight: 0 }", spec.Retraining())
    training = retraining_spec(tiny, Path("pruned"), zero, teacher=TEACHER)
    assert training.training_config == tiny.training_config  # not even the section


def test_a_training_in_8_bits_has_the_teacher_that_is_asked_for(tiny):
    """The network that it starts from, or that of the training; none by itself."""
    whole = spec.Experiment()
    whole.CopyFrom(tiny)
    retraining = whole.calibration_config.quantization_aware_training
    retraining.num_epochs = 1
    model = Path("float.safetensors")
    assert not qat_spec(whole, model).training_config.HasField("distillation")
    retraining.distillation.weight = 0.5
    assert qat_spec(whole, model).training_config.distillation.teacher_model_file == str(model)
    retraining.ClearField("distillation")
    whole.training_config.distillation.teacher_model_file = str(OTHER)
    assert qat_spec(whole, model).training_config.distillation.teacher_model_file == str(OTHER)


def test_a_spec_and_its_resolved_form_are_taught_alike(tiny):
    tiny.training_config.distillation.teacher_model_file = str(OTHER)
    tiny.training_config.distillation.weight = 1
    tiny.pruning_config.retraining.distillation.SetInParent()
    both = [
        retraining_spec(whole, Path("pruned"), whole.pruning_config.retraining, teacher=TEACHER)
        for whole in (tiny, spec.resolved(tiny))
    ]
    first, second = (spec.resolved(one).training_config.distillation for one in both)
    assert first == second == spec.DistillationConfig(teacher_model_file=str(TEACHER), weight=0.03)


def eased(tiny, kept, retraining=None):
    return retraining_spec(tiny, Path("a"), retraining, kept=kept).training_config


def test_the_rate_of_a_retraining_hangs_on_what_is_left(tiny):
    """Twice of nothing, half of all; the rise, a tenth of the run before, is a twentieth; all else stays."""
    whole = spec.TrainingConfig()
    whole.CopyFrom(tiny.training_config)
    before = whole.learning_rate.soft_start_annealing_schedule
    assert (before.soft_start, before.max_learning_rate) == pytest.approx((0.1, 1e-3))
    before.soft_start, whole.num_epochs = 0.05, 3  # of 2, and half of them more
    assert eased(tiny, 0.5) == whole
    for kept, rate, epochs in (
        (0.0, 2e-3, 4),
        (0.25, 1.41e-3, 4),
        (0.75, 7.07e-4, 2),
        (1.0, 5e-4, 2),
        (1.2, 5e-4, 2),
    ):
        before.max_learning_rate, whole.num_epochs = rate, epochs
        assert eased(tiny, kept) == whole
    assert eased(tiny, None) == tiny.training_config  # not measured
    schedule = tiny.training_config.learning_rate.soft_start_annealing_schedule
    schedule.soft_start, schedule.min_learning_rate = 0.0, 8e-4
    found = eased(tiny, 1.0).learning_rate.soft_start_annealing_schedule
    assert found.soft_start == 0 and found.max_learning_rate == found.min_learning_rate  # no lower


def test_a_rate_that_is_said_is_not_eased(tiny):
    retraining = text_format.Parse(RETRAINING, spec.Retraining())
    assert eased(tiny, 1.0, retraining).learning_rate == retraining.learning_rate
    found = eased(tiny, 1.0, spec.Retraining(num_epochs=7))
    assert found.num_epochs == 7
    assert found.learning_rate.soft_start_annealing_schedule.max_learning_rate == pytest.approx(5e-4)


def test_the_rise_of_an_early_stopping_schedule_is_counted_in_epochs(tiny):
    tiny.training_config.num_epochs = 40
    schedule = tiny.training_config.learning_rate.early_stopping_annealing_schedule
    schedule.min_learning_rate, schedule.max_learning_rate, schedule.soft_start_epochs = 1e-5, 1e-3, 8
    found = eased(tiny, 1.0).learning_rate.early_stopping_annealing_schedule
    assert found.soft_start_epochs == 2 and found.max_learning_rate == pytest.approx(5e-4)

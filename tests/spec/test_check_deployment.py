"""The rules and warnings of the sections for before and after the training: conversions, calibration, export."""

import pytest
from google.protobuf import text_format

from detectkit import spec

CALIBRATED = "calibration_config { } export_config { data_type: INT8 "


@pytest.fixture
def experiment(kitti_train):
    return spec.loads(kitti_train)


def violations(experiment, text):
    text_format.Merge(text, experiment)
    return [str(violation) for violation in spec.check(experiment)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'calibration_config { tensorrt_version: "ten" }',
            'tensorrt_version: must be a version such as "10.3.0", got "ten"',
        ),
        (
            "calibration_config { method: 7 }",
            "method: must be one of MSE (0), MINMAX (1), ENTROPY (2), PERCENTILE (3), got 7",
        ),
        (
            "calibration_config { method: MINMAX quantization_aware_training { } }",
            "method: must be left out with quantization_aware_training, which learns the ranges, got MINMAX",
        ),
    ],
)
def test_calibration(experiment, text, expected):
    assert violations(experiment, text) == [f"calibration_config.{expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "export_config { data_type: INT8 }",
            "data_type: needs calibration_config, or training_config.enable_qat, for the ranges, got INT8",
        ),
        ("export_config { target_opset: 12 }", "target_opset: must be in [13, inf), got 12"),
        (CALIBRATED + "max_drop: 101 }", "max_drop: must be in [0, 100], got 101"),
        (
            "export_config { nms: true gen_ds_config: true }",
            "nms: must be left out with gen_ds_config: DeepStream clusters itself",
        ),
        (
            "export_config { nms: true engine_config { } }",
            "nms: must be left out with engine_config: it is for ONNX Runtime",
        ),
        (
            CALIBRATED + "runtime: ONNXRUNTIME gen_ds_config: true }",
            "runtime: must be TENSORRT with gen_ds_config: DeepStream runs on it, got ONNXRUNTIME",
        ),
        (
            "export_config { engine_config { opt_batch_size: 8 max_batch_size: 4 } }",
            "engine_config.opt_batch_size: must be at most max_batch_size (4), got 8",
        ),
        (
            "export_config { static_batch_size: 4 engine_config { opt_batch_size: 4 max_batch_size: 8 } }",
            "engine_config.max_batch_size: must be static_batch_size (4), or left out, got 8",
        ),
        (
            "export_config { engine_config { min_batch_size: 2 max_batch_size: 1 } }",
            "engine_config.min_batch_size: must be at most max_batch_size (1), got 2",
        ),
        (
            "export_config { engine_config { max_workspace_size: -1 } }",
            "engine_config.max_workspace_size: must be in [0, inf), got -1",
        ),
    ],
)
def test_export(experiment, text, expected):
    assert violations(experiment, text) == [f"export_config.{expected}"]


@pytest.mark.parametrize(
    "text",
    [
        CALIBRATED + "runtime: ONNXRUNTIME max_drop: 0.5 }",
        "export_config { engine_config { opt_batch_size: 4 } }",
        "training_config { enable_qat: true } export_config { data_type: INT8 }",
        "calibration_config { quantization_aware_training { num_epochs: 2 } } export_config { data_type: INT8 }",
    ],
)
def test_what_is_good(experiment, text):
    assert violations(experiment, text) == [] and spec.warnings(experiment) == []


def test_choices_for_8_bits_do_nothing_without_them(experiment):
    assert violations(experiment, "export_config { data_type: FP16 max_drop: 1 }") == []
    why = "has no effect: it is for data_type INT8, and this is FP16"
    assert spec.warnings(experiment) == [f"export_config.max_drop {why}"]


RETRAINING = "pruning_config { retraining { %s } }"
SCHEDULE = "soft_start_annealing_schedule { min_learning_rate: %g max_learning_rate: 0.01 }"


def test_a_schedule_of_the_retraining_is_judged_as_the_other(experiment):
    text = RETRAINING % f"learning_rate {{ {SCHEDULE % 0.1} }}"
    path = "pruning_config.retraining.learning_rate.soft_start_annealing_schedule.min_learning_rate"
    assert violations(experiment, text) == [f"{path}: must be at most max_learning_rate (0.01), got 0.1"]


def test_fewer_epochs_than_the_schedule_of_the_first_training_has_patience(experiment):
    text = "training_config { learning_rate { early_stopping_annealing_schedule { min_learning_rate: 1e-5"
    text += " max_learning_rate: 0.1 patience_steps: 20 } } }"
    assert violations(experiment, text) == []
    (found,) = violations(experiment, RETRAINING % "num_epochs: 15")
    assert found.startswith("pruning_config.retraining.num_epochs, with training_config.learning_rate.")
    assert found.endswith("patience_steps: must be at most the epochs of its stage (15), got 20")


def test_what_trains_nothing_needs_a_model(experiment):
    experiment.ClearField("training_config")
    experiment.model_config.ClearField("pretrained_model_file")
    assert violations(experiment, "") == ["training_config: this section is missing"]
    assert violations(experiment, 'model_config { pretrained_model_file: "model.safetensors" }') == []
    rule = "needs training_config, which says the rest"
    assert violations(experiment, RETRAINING % "num_epochs: 2") == [f"pruning_config.retraining: {rule}"]
    assert spec.batch_size(experiment) == 4


def test_conversions_are_judged_by_their_own_rules(experiment):
    text = 'dataset_export_config { sample_config { root_directory_path: "digits" } } dataset_export_config { kitti_config {'
    assert violations(experiment, text + ' root_directory_path: "k" num_partitions: 3 } }') == [
        'dataset_export_config[1].kitti_config.num_partitions: partition_mode "random" makes 2 partitions, got 3'
    ]
    (found,) = [text for text in violations(experiment, "dataset_export_config { }") if "[2]" in text]
    assert found.startswith("dataset_export_config[2].kitti_config: this section is missing")


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ("training_config { num_epochs: 999 }", []),
        ("pruning_config { threshold: 0.3 }", []),
        (CALIBRATED + "}", []),
        ('dataset_export_config { output_filename: "x" }', []),
        ("postprocessing_config { }", []),
        ("training_config { batch_size_per_gpu: 7 }", ["training_config"]),
        ("random_seed: 7 model_config { num_layers: 34 }", ["random_seed", "model_config"]),
    ],
)
def test_what_makes_another_training(experiment, change, other):
    changed = spec.loads(spec.dumps(experiment))
    text_format.Merge(change, changed)
    assert spec.another_training(experiment, changed) == other


@pytest.mark.parametrize(
    ("file", "layout", "other"),
    [
        ("resnet18.hdf5", "TLT", []),
        ("resnet18.hdf5", "TORCHVISION", ["model_config"]),
        ("resnet18.pth", "TORCHVISION", []),
        ("resnet18.pth", "TLT", ["model_config"]),
    ],
)
def test_a_layout_written_out_is_the_same_training(experiment, file, layout, other):
    experiment.model_config.pretrained_model_file = file
    experiment.model_config.layout = spec.ModelConfig.AS_PRETRAINED
    changed = spec.loads(spec.dumps(experiment))
    changed.model_config.layout = spec.ModelConfig.Layout.Value(layout)
    assert spec.another_training(experiment, changed) == other

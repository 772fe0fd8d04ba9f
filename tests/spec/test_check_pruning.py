"""The rules and warnings of pruning_config, and what it says of itself."""

import pytest
from google.protobuf import text_format

from detectkit import spec
from detectkit.errors import SpecError


@pytest.fixture
def experiment(kitti_train):
    return spec.loads(kitti_train)


def violations(experiment, pruning):
    text_format.Parse(pruning, experiment.pruning_config)
    return [str(violation) for violation in spec.check(experiment)]


def warnings(experiment, pruning):
    assert violations(experiment, pruning) == []
    return spec.warnings(experiment)


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        ("threshold: -0.1", "threshold: must be in [0, inf), got -0.1"),
        ("threshold: inf", "threshold: must be a finite number, got inf"),
        ("target_params: 10.8", "target_params: must be in (0, 1], got 10.8"),
        ("target_macs: 0", "target_macs: must be in (0, 1], got 0"),
        ("target_latency: -1", "target_latency: must be in (0, 1], got -1"),
        ("granularity: 0", "granularity: must be in [1, inf), got 0"),
        ("min_num_filters: 0", "min_num_filters: must be in [1, inf), got 0"),
        ("calibration_batches: 0", "calibration_batches: must be in [1, inf), got 0"),
        ("iterations: 0", "iterations: must be in [1, inf), got 0"),
    ],
)
def test_ranges(experiment, pruning, expected):
    assert violations(experiment, pruning) == [f"pruning_config.{expected}"]


def test_there_is_one_aim_and_without_it_a_threshold_of_a_tenth(kitti_train):
    with pytest.raises(SpecError, match="target_macs"):
        spec.loads(kitti_train + "pruning_config { threshold: 0.2 target_macs: 0.5 }")
    config = spec.loads(kitti_train + "pruning_config { }").pruning_config
    assert config.WhichOneof("aim") is None
    assert config.threshold == pytest.approx(0.1)
    assert "float · default 0.1 · in [0, inf) · excludes target_params" in spec.explain(
        "pruning_config.threshold"
    )


def test_an_aim_survives_being_written_out(experiment):
    experiment.pruning_config.target_params = 0.25
    again = spec.loads(spec.dumps(experiment)).pruning_config
    assert again.WhichOneof("aim") == "target_params" and again.target_params == 0.25
    assert again.granularity == 8 and again.HasField("granularity")


@pytest.mark.parametrize("threshold", ["1", "1.5"])
def test_a_threshold_that_no_filter_exceeds(experiment, threshold):
    (found,) = violations(experiment, f"threshold: {threshold}")
    assert found == (
        "pruning_config.threshold: must be below 1 with normalizer MAX: no normalised statistic is above 1, so nothing "
        f"would be kept, got {threshold}"
    )
    assert (
        violations(experiment, "normalizer: L2") == []
    )  # equal filters have the square root of their number


def test_a_threshold_just_below_the_strongest_filter(experiment):
    assert violations(experiment, "threshold: 0.999") == []


@pytest.mark.parametrize(
    ("arch", "use_batch_norm", "fits"),
    [
        ("resnet", True, True),
        ("resnet", False, False),
        ("efficientnet_b0", False, True),  # has it always
        ("squeezenet", True, False),  # never
    ],
)
def test_the_scale_of_batch_normalisation_needs_it(experiment, arch, use_batch_norm, fits):
    model = experiment.model_config
    model.arch, model.use_batch_norm = arch, use_batch_norm
    model.ClearField("num_layers")
    experiment.augmentation_config.preprocessing.output_image_width = 640
    experiment.augmentation_config.preprocessing.output_image_height = 384
    found = violations(experiment, "criterion: BATCH_NORM_SCALE")
    rule = "must be NORM or TAYLOR, as the network of model_config has no batch normalisation"
    assert found == ([] if fits else [f"pruning_config.criterion: {rule}, got BATCH_NORM_SCALE"])
    experiment.pruning_config.Clear()
    assert violations(experiment, "criterion: TAYLOR") == []


def test_frozen_layers_may_be_retrained_in_turns(experiment):
    """Retraining thaws them."""
    experiment.model_config.pretrained_model_file = "model.safetensors"
    experiment.model_config.freeze_pretrained_layers = True
    assert violations(experiment, "iterations: 3") == []


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        ("calibration_batches: 20", "criterion NORM looks at no images"),
        (
            "calibration_batches: 20 criterion: BATCH_NORM_SCALE",
            "criterion BATCH_NORM_SCALE looks at no images",
        ),
        ("calibration_batches: 20 criterion: TAYLOR", ""),
        ("calibration_batches: 20 target_macs: 0.5", ""),  # AUTO is TAYLOR there
        ("calibration_batches: 10", ""),  # the default, as a spec that was written out has it
    ],
)
def test_batches_that_nothing_looks_at(experiment, pruning, expected):
    experiment.model_config.use_batch_norm = True
    path = "pruning_config.calibration_batches has no effect: "
    assert warnings(experiment, pruning) == ([path + expected] if expected else [])


@pytest.mark.parametrize("name", ["equalization_criterion: INTERSECTION", "normalizer: L2"])
def test_what_norms_alone_have_a_use_for(experiment, name):
    path = f"pruning_config.{name.partition(':')[0]} has no effect: on the way to a target, criterion TAYLOR compares filters"
    for pruning in ("target_params: 0.5", "criterion: TAYLOR target_params: 0.5"):
        experiment.pruning_config.Clear()
        (found,) = warnings(experiment, f"{pruning} {name}")
        assert found.startswith(path)
    for pruning in (
        "",
        "threshold: 0.5",
        "criterion: NORM target_params: 0.5",
        "criterion: TAYLOR threshold: 0.5",
    ):
        experiment.pruning_config.Clear()
        assert warnings(experiment, f"{pruning} {name}") == []

"""Learning from a teacher beside the labels: the cost, the runs that have one, and the files that cannot be one."""

import copy
import shutil

import pytest
import torch
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectkit import spec
from detectkit.errors import ModelError, UsageError
from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.train.loop import train
from detectkit.train.run import set_up
from detectkit.train.stages import begin
from detectkit.train.step import features_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher(tiny_text, tmp_path_factory):
    """A trained model of the tiny experiment, whose network is another one."""
    experiment = spec.loads(tiny_text.replace("num_epochs: 2", "num_epochs: 1"))
    return train(set_up(experiment, tmp_path_factory.mktemp("teacher"), name="model", device=CPU)).last


@pytest.fixture
def taught(small, teacher):
    small.training_config.distillation.teacher_model_file = str(teacher)
    return small


def run(experiment, results):
    return train(set_up(experiment, results, name="model", device=CPU))


def taught_by(state):
    (term,) = (term for term in state.terms if term.name == "teacher")
    return term


def weights(path):
    return checkpoint.load(path).detector.state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.spec_field("DistillationConfig.teacher_model_file", "DistillationConfig.weight")
def test_a_teacher_counts_by_its_weight_and_a_weight_of_0_is_none(taught, tmp_path):
    taught.training_config.num_epochs = 1
    config, found = taught.training_config.distillation, []
    for weight in (0.0, 0.03, 1.0):
        config.weight = weight
        found.append(weights(run(taught, tmp_path / str(weight)).last))
    taught.training_config.ClearField("distillation")
    plain = weights(run(taught, tmp_path / "plain").last)
    assert [equal(one, plain) for one in found] == [True, False, False]
    assert not equal(found[1], found[2])


def cost(state, images):
    with torch.no_grad(), features_of(state.detector) as features:
        state.detector(images)
        return float(taught_by(state).cost(images, features.pop()))


def test_the_network_learns_what_its_teacher_sees(taught, tmp_path):
    """Not only the convolution between them, which is held."""
    taught.training_config.num_epochs = 10
    taught.training_config.distillation.weight = 1.0
    taught.training_config.optimizer.adam.SetInParent()
    setting = set_up(taught, tmp_path, name="model", device=CPU)
    taught_by(setting.state).adapter.requires_grad_(False)
    begin(setting.state, taught.training_config, 0)
    images = torch.rand(4, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    setting.state.detector.train()
    before = cost(setting.state, images)
    train(setting)
    setting.state.detector.train()
    assert cost(setting.state, images) < 0.9 * before


def test_the_teacher_stays_as_it_is_and_leaves_nothing_in_the_model(taught, teacher, tmp_path):
    before = weights(teacher)
    setting = set_up(taught, tmp_path, name="model", device=CPU)
    network = taught_by(setting.state).network
    outcome = train(setting)
    assert equal(network.state_dict(), before) and not network.training
    assert all(weight.grad is None for weight in network.parameters())
    taught.training_config.ClearField("distillation")
    plain = set_up(taught, tmp_path / "plain", name="model", device=CPU).state.detector
    assert weights(outcome.last).keys() == plain.state_dict().keys()


def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher, tmp_path):
    experiment = checkpoint.load(teacher).spec
    experiment.model_config.pretrained_model_file = str(teacher)
    experiment.training_config.distillation.teacher_model_file = str(teacher)
    state = set_up(experiment, tmp_path, name="model", device=CPU).state
    network, images = state.detector.eval(), torch.rand(2, 3, 64, 96)
    channels = network.output_cov.in_channels
    with torch.no_grad():
        taught_by(state).adapter.weight.copy_(torch.eye(channels)[:, :, None, None])
        with features_of(network) as features:
            network(images)
            network(images.flip(3))
        right, wrong = (float(taught_by(state).cost(images, maps)) for maps in features)
    assert right == pytest.approx(0, abs=1e-6) and wrong > 0.1
    assert not network.dropout._forward_pre_hooks  # none is left


def test_a_run_with_a_teacher_goes_on_where_it_was(taught, tmp_path):
    """The convolution between their features, which no model file holds, and its moments too."""
    taught.training_config.optimizer.adam.SetInParent()
    taught.training_config.ema_decay = 0.9
    whole = run(taught, tmp_path / "whole")
    taught.training_config.num_epochs = 1
    run(taught, tmp_path / "cut")
    taught.training_config.num_epochs = 2
    setting = set_up(taught, tmp_path / "cut", name="model", device=CPU)
    adapter = copy.deepcopy(taught_by(setting.state).adapter.state_dict())
    fresh = taught_by(set_up(taught, tmp_path / "fresh", name="model", device=CPU).state).adapter.state_dict()
    assert not equal(adapter, fresh)
    assert equal(weights(train(setting).last), weights(whole.last))


def test_the_cost_against_the_teacher_is_on_the_board(taught, tmp_path):
    taught.training_config.num_epochs = 1
    taught.training_config.visualizer.enabled = True
    run(taught, tmp_path)
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    task, others, total = (
        [event.value for event in events.Scalars(tag)] for tag in ("task_cost", "teacher_cost", "total_cost")
    )
    assert all(value > 0 for value in others)
    assert total == pytest.approx([a + b for a, b in zip(task, others, strict=True)], rel=1e-5)


def test_a_teacher_of_other_widths_and_layers_teaches(taught, teacher, tmp_path):
    assert taught.model_config.arch != checkpoint.load(teacher).spec.model_config.arch
    setting = set_up(taught, tmp_path, name="model", device=CPU)
    assert taught_by(setting.state).adapter.weight.shape[:2] == (
        512,
        setting.state.detector.output_cov.in_channels,
    )


def test_a_teacher_that_is_not_there_or_answers_something_else(taught, teacher, tmp_path):
    config = taught.training_config.distillation
    config.teacher_model_file = str(tmp_path / "none.safetensors")
    with pytest.raises(
        ModelError, match="teacher_model_file: there is no file .*none.safetensors; put it back"
    ):
        set_up(taught, tmp_path / "run", name="model", device=CPU)
    damaged = tmp_path / "damaged.safetensors"
    shutil.copy(teacher, damaged)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    config.teacher_model_file = str(damaged)
    with pytest.raises(
        ModelError, match="distillation.teacher_model_file: .*damaged.safetensors is not a detectkit model"
    ):
        set_up(taught, tmp_path / "run", name="model", device=CPU)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_cells_or_images_is_refused(taught, teacher, tmp_path):
    model = checkpoint.load(teacher)
    gray = spec.Experiment()
    gray.CopyFrom(model.spec)
    gray.augmentation_config.preprocessing.output_image_channel = 1
    other = tmp_path / "other.safetensors"
    network = build(gray.model_config, model.class_names, 1)
    checkpoint.save(other, network, spec.dumps(gray), model.class_names)
    taught.training_config.distillation.teacher_model_file = str(other)
    with pytest.raises(
        ModelError, match="cannot teach this network: channels of images 1 there, 3 here; name another"
    ):
        set_up(taught, tmp_path / "run", name="model", device=CPU)


def test_a_teacher_of_other_classes_teaches(taught, teacher, tmp_path):
    """What it sees, not what it calls it."""
    model = checkpoint.load(teacher)
    other = tmp_path / "other.safetensors"
    checkpoint.save(other, model.detector, spec.dumps(model.spec), ["dog", "cat"])
    taught.training_config.distillation.teacher_model_file = str(other)
    taught.training_config.num_epochs = 1
    assert run(taught, tmp_path / "run").last.exists()


def test_a_teacher_without_a_file_is_a_broken_rule(taught):
    taught.training_config.distillation.ClearField("teacher_model_file")
    (violation,) = spec.check(taught)
    assert violation.path == "training_config.distillation.teacher_model_file"


def test_a_run_does_not_go_on_with_another_teacher(taught, teacher, tmp_path):
    """Of the same name; the same one of another name is the same teacher."""
    first, second = (tmp_path / name for name in ("first.safetensors", "second.safetensors"))
    for path in (first, second):
        shutil.copy(teacher, path)
    config = taught.training_config
    config.num_epochs, config.distillation.teacher_model_file = 1, str(first)
    run(taught, tmp_path / "run")
    config.num_epochs, config.distillation.teacher_model_file = 2, str(second)
    assert set_up(taught, tmp_path / "run", name="model", device=CPU).state.epoch == 1
    model = checkpoint.load(teacher)
    with torch.no_grad():
        model.detector.backbone.conv1.weight.mul_(2)
    checkpoint.save(second, model.detector, spec.dumps(model.spec), model.class_names)
    with pytest.raises(UsageError, match="holds a run with another teacher, whose file has changed since"):
        set_up(taught, tmp_path / "run", name="model", device=CPU)


def test_a_model_that_the_run_itself_writes_is_no_teacher(taught, teacher, tmp_path):
    own = tmp_path / "run/weights/model-best.safetensors"
    own.parent.mkdir(parents=True)
    shutil.copy(teacher, own)
    taught.training_config.distillation.teacher_model_file = str(own)
    with pytest.raises(UsageError, match="where this run writes its models: use another -r"):
        set_up(taught, tmp_path / "run", name="model", device=CPU)


@pytest.mark.parametrize(
    "more",
    [
        "enable_qat: true ema_decay: 0.9",
        "accumulate_batches: 2 clip_gradient_norm: 1",
        """first_stage { num_epochs: 1 learning_rate { soft_start_annealing_schedule {
             min_learning_rate: 1e-3 max_learning_rate: 1e-3 } } }""",
    ],
)
def test_a_teacher_goes_with_the_other_ways_to_train(taught, tmp_path, more):
    taught.training_config.num_epochs = 1
    text_format.Merge(more, taught.training_config)
    taught.model_config.dropout_rate = 0.5
    assert run(taught, tmp_path).last.exists()


def test_a_teacher_in_8_bits_teaches_in_float(taught, small, tmp_path):
    """A network that was trained in 8-bit rounding."""
    small.training_config.ClearField("distillation")
    small.training_config.num_epochs, small.training_config.enable_qat = 1, True
    model = run(small, tmp_path / "rounded").last
    small.training_config.enable_qat = False
    small.training_config.distillation.teacher_model_file = str(model)
    assert checkpoint.load(model).detector.ranges is not None
    assert taught_by(set_up(small, tmp_path / "b", name="model", device=CPU).state).network.ranges is None


def test_a_keras_file_of_another_network_has_to_be_made_a_model_first(taught, tmp_path):
    path = tmp_path / "model.hdf5"
    path.write_bytes(b"no HDF5")
    taught.training_config.distillation.teacher_model_file = str(path)
    with pytest.raises(ModelError, match="teacher_model_file: .*model.hdf5.*detectkit export -e ITS_SPEC -m"):
        set_up(taught, tmp_path / "run", name="model", device=CPU)

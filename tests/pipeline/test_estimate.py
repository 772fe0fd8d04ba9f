"""What stages may take, with a network of known speed: one that learns from 10 images a second and looks at 100."""

import pytest

from detectkit.errors import DataError
from detectkit.pipeline import basis, deploying, speed, training
from detectkit.pipeline.estimate import estimates
from detectkit.pipeline.speed import Speed

MILLION = 10**6 * 4 / 2**20  # MiB


@pytest.fixture
def machine(monkeypatch):
    """1 million parameters; 80 images to train on and 20 to measure on, unless there are no records yet."""
    has = {"records": (80, 20), "measured": 0}

    def measure(experiment, images):
        has["measured"] += 1
        return Speed(10**6, 0.1, 0.01, 0.0)

    def count(experiment):
        if has["records"] is None:
            raise DataError("no records")
        return has["records"]

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "count_records", count)
    return has


def said(fake, **options):
    steps = fake.plan(**options)
    return dict(zip((step.stage.name for step in steps), estimates(fake.chain, steps), strict=True))


def test_training_takes_its_steps_and_validations(fake, machine):
    found = said(fake)["train"]
    # 2 epochs of 80 images at 0.1 s, 2 validations of 20 images at 0.01 s and what clustering takes
    computing = 2 * 80 * 0.1 + 2 * 20 * (0.01 + basis.PER_DETECTED)
    assert computing < found.seconds < computing + 5
    # 2 checkpoints, the best model, and the state: the weights with two moments of Adam each
    assert found.mib == pytest.approx((2 + 1 + 3) * MILLION + training.FIGURES)


@pytest.mark.parametrize(
    "change, copies",
    [
        ({"adam { epsilon: 1e-8 beta1: 0.9 beta2: 0.999 }": "sgd { momentum: 0.9 }"}, 2 + 1 + 2),
        ({"num_epochs: 2": "num_epochs: 2 ema_decay: 0.99"}, 2 + 1 + 4),
        ({"checkpoint_interval: 1": "checkpoint_interval: 0"}, 1 + 1 + 3),
        ({"num_epochs: 2": "num_epochs: 7", "checkpoint_interval: 1": "checkpoint_interval: 5"}, 2 + 1 + 3),
        ({"validation_fold: 0": ""}, 2 + 3),
    ],
)
def test_what_a_training_keeps(fake, machine, change, copies):
    fake.write("convert", "train", change=change)
    assert said(fake)["train"].mib == pytest.approx(copies * MILLION + training.FIGURES)


def test_the_last_batch_is_full(fake, machine):
    before = said(fake)["train"].seconds
    machine["records"] = (77, 20)
    assert said(fake)["train"].seconds == before
    machine["records"] = (76, 20)
    assert said(fake)["train"].seconds == pytest.approx(before - 2 * 4 * 0.1)


def test_retraining_takes_the_share_that_pruning_leaves(fake, machine):
    fake.write(change={"retraining { num_epochs: 1 }": "retraining { num_epochs: 2 }"})
    found = said(fake)
    fixed = training.STARTING
    ratio = (found["retrain"].seconds - fixed) / (found["train"].seconds - fixed)
    assert 0.55 < ratio < 0.75  # 0.6, and the plots
    assert found["retrain"].mib == pytest.approx((2 + 1 + 3) * 0.6 * MILLION + training.FIGURES)
    assert found["prune"].mib == pytest.approx(0.6 * MILLION + basis.TABLES)
    # In 32 bits as what to fall back on, and in 8
    assert found["export"].mib == pytest.approx(0.6 * MILLION * 1.25)


def test_pruning_in_turns_trains(fake, machine):
    once = said(fake)["prune"].seconds
    fake.write(change={"target_params: 0.6": "target_params: 0.6 iterations: 3"})
    assert said(fake)["prune"].seconds > once + 3 * 80 * 0.1 * 0.6


def test_labels_are_counted_before_there_are_records(fake, machine):
    machine["records"] = None
    few = said(fake)["train"].seconds  # a quarter of 4 is for validation: 3 images, one batch of 4
    for number in range(4, 40):
        (fake.images / f"{number}.png").write_text("")
    assert said(fake)["train"].seconds - few == pytest.approx(2 * (28 * 0.1 + 9 * 0.013))


def test_without_records_and_without_a_conversion_it_is_an_error(fake, machine):
    machine["records"] = None
    fake.write("train")
    with pytest.raises(DataError, match="no records"):
        said(fake)


def test_what_is_done_takes_nothing_and_is_not_measured(fake, machine):
    fake.run()
    assert {(found.seconds, found.mib) for found in said(fake).values()} == {(0.0, 0.0)}
    assert machine["measured"] == 0


def done_in(fake, **seconds):
    fake.run()
    for step in fake.plan():
        fake.change_state(step.stage.name, wall_seconds=seconds.get(step.stage.name, 1.0))


def test_what_was_done_takes_what_it_took(fake, machine):
    done_in(fake, prune=7.0, retrain=30.0)
    (fake.folder / "prune" / "large").write_bytes(bytes(3 * 2**20))
    fake.write(change={"target_params: 0.6": "target_params: 0.5", "{ num_epochs: 1 }": "{ num_epochs: 3 }"})
    found = said(fake)
    assert found["prune"].seconds == 7.0
    assert found["prune"].mib == found["prune"].freed == pytest.approx(3, abs=0.01)
    assert found["retrain"].seconds == 90.0 and found["train"].seconds == 0.0
    assert machine["measured"] == 0


def test_more_epochs_take_their_part_of_what_was_taken(fake, machine):
    done_in(fake, train=10.0)
    fake.write(change={"num_epochs: 2": "num_epochs: 5"})
    assert said(fake)["train"].seconds == 15.0


def test_a_training_that_was_cut_takes_what_is_left(fake, machine):
    whole = said(fake)["train"].seconds
    fake.run()
    fake.change_state("train", status="begun")
    (fake.folder / "train" / "status.jsonl").write_text('{"message": "a"}\n{"epoch": 1}\n{"message": "b"}\n')
    left = said(fake)["train"].seconds
    assert whole / 2 <= left < whole / 2 + training.STARTING


def test_what_cannot_be_done_takes_nothing(fake, machine, monkeypatch):
    monkeypatch.setattr(deploying, "has_gpu", lambda: False)
    monkeypatch.setattr(deploying, "has_tensorrt", lambda: True)
    monkeypatch.setattr(deploying, "builds_ahead", lambda: True)
    fake.write("convert", "train", more="export_config { data_type: FP16 engine_config { } }")
    found = said(fake)
    assert found["evaluate_engine"].seconds == 0 and found["engine"].seconds > 1
    assert found["export"].mib == pytest.approx(1.5 * MILLION)

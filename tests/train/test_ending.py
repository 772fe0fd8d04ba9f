"""What the end of a training says of it."""

import json
import logging
import re

import numpy as np
import pytest
import torch

from detectkit.data import tfrecord
from detectkit.data.dataset import Dataset, Frame
from detectkit.data.labels import Objects
from detectkit.evaluation import advice
from detectkit.model import checkpoint
from detectkit.train import loop
from detectkit.train.run import set_up


def run(experiment, results):
    return loop.train(set_up(experiment, results, name="model", device=torch.device("cpu")))


def endings(results):
    records = [json.loads(line) for line in (results / "status.jsonl").read_text().splitlines()]
    return [record for record in records if "training mean average precision" in record.get("kpi", {})]


def test_a_network_that_has_not_learnt_says_so_once(small, tmp_path, caplog):
    outcome = run(small, tmp_path)  # two epochs of three steps
    assert "training_mean_average_precision" not in outcome.history[0]
    measured = outcome.history[1]["training_mean_average_precision"]
    [ending] = endings(tmp_path)
    assert ending["kpi"]["training mean average precision"] == measured < advice.LEARNT
    kinds = [finding["kind"] for finding in ending["findings"]]
    assert kinds == ["not learnt", "coverage"]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned[-2:] == [finding["text"] for finding in ending["findings"]]
    assert "on its 6 training images" in warned[-2] and "more num_epochs (2 now)" in warned[-2]
    assert (
        run(small, tmp_path).history == outcome.history and len(endings(tmp_path)) == 1
    )  # nothing is left to do


@pytest.fixture
def knowing(small, learn):
    """The tiny spec on what it starts from: a network that knows all pictures by heart, trained by next to nothing."""
    small.model_config.pretrained_model_file = str(learn(small))
    small.model_config.freeze_bn = True
    soft = small.training_config.learning_rate.soft_start_annealing_schedule
    soft.min_learning_rate = soft.max_learning_rate = 1e-7
    small.training_config.num_epochs = 1
    return small


def test_a_network_that_has_learnt_says_nothing(knowing, tmp_path, caplog):
    caplog.set_level(logging.INFO, "detectkit")
    outcome = run(knowing, tmp_path)
    assert outcome.history[0]["training_mean_average_precision"] > 0.9
    [ending] = endings(tmp_path)
    assert ending["findings"] == [] and set(ending["categorical"]["training_average_precision"]) == {
        "square",
        "bar",
    }
    assert re.search(r"without augmentation, mAP [\d.]+ on 6 of the training images", caplog.text)


def test_a_sample_is_measured_without_augmentation(knowing, tmp_path, monkeypatch):
    knowing.augmentation_config.spatial_augmentation.translate_max_x = 40
    monkeypatch.setattr(loop, "TRAINING_SAMPLE", 4)
    run = set_up(knowing, tmp_path, name="model", device=torch.device("cpu"))
    measured = loop.measure_training(run)
    assert measured.images == 4 and advice.mean_average_precision(measured) > 0.9


def test_a_class_that_few_images_have_is_in_the_sample():
    def frames(total, *rare):
        zeros = np.zeros(1, np.float32), np.zeros(1, np.int64)
        found = [
            Objects(np.zeros((1, 4), np.float32), np.array([int(at in rare)]), ("a",), *zeros)
            for at in range(total)
        ]
        found = [Frame(str(at), f"{at}.png", None, 0, (96, 64), own) for at, own in enumerate(found)]
        return Dataset(found, ["square", "bar"])

    assert loop.sample(frames(3, 1), 100) == [0, 1, 2]
    assert loop.sample(frames(16, 6, 7), 4) == [2, 6, 10, 14]  # spread evenly, with a bar in the sixth
    assert loop.sample(frames(16, 7, 8), 4) == [0, 4, 7, 12]  # the first square and bar, two more
    assert loop.sample(frames(16, 7), 1) == [0]


def test_the_model_is_there_before_its_end_is_measured(small, tmp_path, monkeypatch):
    """A kill in between loses the figure alone; the same command measures it again and ends with the same weights."""
    small.training_config.checkpoint_interval = 1
    whole = checkpoint.load(run(small, tmp_path / "whole").last).detector.state_dict()
    measure = loop.measure_training

    def killed(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "measure_training", killed)
    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path / "cut")
    file = tmp_path / "cut/weights/model.safetensors"
    first = file.read_bytes()
    monkeypatch.setattr(loop, "measure_training", measure)
    run(small, tmp_path / "cut")
    assert file.read_bytes() == first and len(endings(tmp_path / "cut")) == 1
    again = checkpoint.load(file).detector.state_dict()
    assert all(torch.equal(again[name], values) for name, values in whole.items())


def test_a_validation_without_labels_chooses_no_best_model(small, tmp_path, caplog):
    """The last one is taken, and the mAP is null, not 0."""
    caplog.set_level(logging.INFO, "detectkit")
    source = small.dataset_config.validation_data_source
    [shard] = tfrecord.find_shards(source.tfrecords_path.replace("fold-000", "fold-001"))  # of other images
    records = [
        record._replace(names=["nothing"] * len(record.names)) for record in tfrecord.read_records(shard)
    ]
    tfrecord.write_shard(tmp_path / "bare", map(tfrecord.encode, records))
    source.tfrecords_path = str(tmp_path / "bare")
    small.training_config.visualizer.enabled = True
    outcome = run(small, tmp_path / "out")
    assert outcome.best is None and outcome.last.is_file()
    assert not (tmp_path / "out" / "weights" / "model-best.safetensors").exists()
    assert outcome.history[-1]["mean_average_precision"] is None
    lines = (tmp_path / "out" / "status.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["kpi"] == {"mean average precision": None}
    assert "mAP - (square -, bar -)" in caplog.text
    assert "no validation box of class square, bar: no average precision, and no mAP at all" in caplog.text
    assert (tmp_path / "out" / "average_precision.png").exists()

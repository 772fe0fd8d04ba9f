"""The course of a training, read from status.jsonl."""

import json

from detectkit.report.training import Epoch, history, training_mean


def line(epoch, cost):
    return json.dumps({"epoch": epoch, "graphical": {"loss": cost}})


def test_what_an_epoch_measured(tmp_path):
    path = tmp_path / "status.jsonl"
    graphical = {"loss": 0.5, "learning_rate": 1e-3, "validation_cost": 0.25}
    kpi, classes = {"mean average precision": 0.75}, {"average_precision": {"car": 0.75, "dog": None}}
    record = {"epoch": 3, "graphical": graphical, "kpi": kpi, "categorical": classes}
    path.write_text('{"message": "Starting training."}\n' + json.dumps(record) + "\n")
    assert history(path) == [Epoch(3, 0.5, 1e-3, 0.25, 0.75, {"car": 0.75, "dog": None})]


def test_an_epoch_that_comes_again_takes_the_place_of_what_followed(tmp_path):
    path = tmp_path / "status.jsonl"
    lines = [line(1, 0.9), line(2, 0.8), line(3, 0.7), line(2, 0.6)]
    path.write_text("\n".join([*lines, '{"epoch": 4, "graph', "[1]", "null", '{"epoch": "x"}']))
    assert [(epoch.number, epoch.cost) for epoch in history(path)] == [(1, 0.9), (2, 0.6)]


def test_no_file(tmp_path):
    assert history(tmp_path / "status.jsonl") == [] == history(tmp_path)


def test_what_a_training_measured_on_its_own_images(tmp_path):
    path = tmp_path / "status.jsonl"
    ending = json.dumps({"kpi": {"training mean average precision": 0.75}})
    path.write_text("\n".join([line(1, 0.9), ending, '{"message": "Training complete."}']))
    assert training_mean(path) == 0.75
    path.write_text(path.read_text() + "\n" + line(2, 0.8))  # it goes on
    assert training_mean(path) is None is training_mean(tmp_path)

"""What a training has said of its own images, where a model lies in its folder."""

import json

import pytest

from detectkit.evaluation.trained import training_figures

ENDING = {"categorical": {"training_average_precision": {"ace": 0.5, "king": None}}}


def folder(tmp_path, *records):
    (tmp_path / "weights").mkdir()
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (tmp_path / "status.jsonl").write_text("\n".join(lines))
    return tmp_path / "weights"


def test_of_a_training_that_has_ended(tmp_path):
    weights = folder(tmp_path, {"epoch": 1}, ENDING, {"status": "SUCCESS"}, "{cut")
    assert training_figures(weights / "model-best.safetensors") == {"ace": 0.5, "king": None}
    assert training_figures(weights / "model.epoch-010.safetensors") == {}
    assert training_figures(tmp_path / "model.safetensors") == {}


@pytest.mark.parametrize("last", [{"epoch": 2}, None])
def test_of_one_that_goes_on_or_has_said_nothing(tmp_path, last):
    records = [ENDING, last] if last else ["[]", "3", json.dumps({"categorical": 3})]
    assert training_figures(folder(tmp_path, *records) / "model.safetensors") == {}


def test_of_no_training(tmp_path):
    assert training_figures(tmp_path / "weights" / "model.safetensors") == {}

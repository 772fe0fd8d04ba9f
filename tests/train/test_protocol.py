"""Validation during training counts by the protocol that the spec names."""

import json
import sys

import pytest

from detectkit.cli import main


@pytest.mark.parametrize("protocol", ["KITTI", "COCO"])
def test_training_validates_by_the_protocol_as_evaluate_does(tiny, tiny_text, learn, tmp_path, protocol):
    text = tiny_text.replace("evaluation_config {", f"evaluation_config {{ protocol: {protocol}")
    start = learn(tiny, noise=0.1)  # it finds most boxes, and is trained by next to nothing
    text = text.replace("model_config {", f'model_config {{ freeze_bn: true pretrained_model_file: "{start}"')
    text = text.replace("1e-4 max_learning_rate: 1e-3", "1e-7 max_learning_rate: 1e-6")
    (tmp_path / "spec.txt").write_text(text)
    arguments = "-e", str(tmp_path / "spec.txt"), "-r", str(tmp_path / "run"), "--gpus", "0"
    assert main(["train", *arguments]) == 0
    model = tmp_path / "run/weights/model.safetensors"
    assert main(["evaluate", *arguments, "-m", str(model)]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    lines = (tmp_path / "run/status.jsonl").read_text().splitlines()
    measured = [
        record["kpi"]["mean average precision"] for record in map(json.loads, lines) if "epoch" in record
    ]
    assert results["protocol"] == protocol and len(measured) == 2
    assert measured[-1] == pytest.approx(results["mean_average_precision"], abs=1e-6)
    assert 0 < max(measured) < 1


def test_a_missing_package_is_told_before_training(tiny_text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    (tmp_path / "spec.txt").write_text(
        tiny_text.replace("evaluation_config {", "evaluation_config { protocol: COCO")
    )
    assert main(["train", "-e", str(tmp_path / "spec.txt"), "-r", str(tmp_path / "run"), "--gpus", "0"]) == 1
    assert capsys.readouterr().err.count("pip install faster-coco-eval") == 1
    assert not (tmp_path / "run").exists()

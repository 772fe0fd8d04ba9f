"""`detectkit latency`: times of models side by side, what the file holds, and what it refuses."""

import json
import shutil

import onnx
import onnxruntime
import pytest
import torch

from detectkit import versions
from detectkit.cli import main
from detectkit.deploy import latency
from detectkit.model import checkpoint
from detectkit.model.detector import gmacs, parameters

USAGE, MODEL, OUTPUT = 2, 5, 6


@pytest.fixture
def run(capsys):
    """Runs `latency` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["latency", *map(str, arguments), "--gpus", "0"])
        return code, *capsys.readouterr()

    return call


def test_a_model_its_onnx_file_and_a_larger_one(run, tiny, learn, learnt, learnt_onnx, tmp_path, monkeypatch):
    preprocessing = tiny.augmentation_config.preprocessing
    preprocessing.output_image_width, preprocessing.output_image_height = 192, 128
    preprocessing.enable_auto_resize = True
    larger = shutil.move(learn(tiny), tmp_path / "larger.safetensors")
    monkeypatch.setattr(
        latency, "latencies", lambda runs: [0.002 * (number + 1) for number in range(len(runs))]
    )
    code, out, _ = run(learnt, learnt_onnx, larger, "--batch_size", 4, "-r", tmp_path / "out")
    assert code == 0 and f"4 images at once, on {versions.processor()}, 1 thread" in out
    assert f"wrote {tmp_path}/out/latency.json" in out
    assert f"next: detectkit compare -e SPEC {learnt} {learnt_onnx} {larger}" in out
    content = json.loads((tmp_path / "out/latency.json").read_text())
    models = content.pop("models")
    assert content == {"batch_size": 4, "machine": versions.processor(), "threads": 1}
    assert [item["model"] for item in models] == [str(path) for path in (learnt, learnt_onnx, larger)]
    assert [item["kind"] for item in models] == ["model", "onnx", "model"]
    assert {item["runtime"] for item in models} == {f"ONNX Runtime {onnxruntime.__version__} (CPU)"}
    assert [item["seconds_per_image"] for item in models] == pytest.approx([0.0005, 0.001, 0.0015])
    detector = checkpoint.load(learnt).detector
    assert [item["parameters"] for item in models] == [parameters(detector), None, parameters(detector)]
    assert [item["gmacs"] for item in models] == [
        pytest.approx(gmacs(detector, 64, 96)),
        None,
        pytest.approx(gmacs(detector, 128, 192)),  # four times the first
    ]
    assert models[2]["gmacs"] == pytest.approx(4 * models[0]["gmacs"], rel=1e-3)
    assert models[1]["size_mib"] == learnt_onnx.stat().st_size / 2**20
    rows = {line.split()[0]: line for line in out.splitlines() if "ONNX Runtime" in line}
    assert list(rows) == [path.name for path in (learnt, learnt_onnx, larger)]
    assert rows["learnt.safetensors"].split()[5:7] == ["0.50", "1.00"]  # ms an image, faster
    assert rows["learnt.onnx"].split()[5:9] == ["1.00", "0.50", "-", "-"]


def test_times_are_real(run, learnt, as_onnx, tmp_path):
    """Eight images take longer than one, but an image of them does not take eight times as long."""
    onnx.save(as_onnx(learnt), tmp_path / "any.onnx")
    seconds = []
    for size in (1, 8):
        assert run(tmp_path / "any.onnx", "--batch_size", size, "-r", tmp_path)[0] == 0
        (item,) = json.loads((tmp_path / "latency.json").read_text())["models"]
        seconds.append(item["seconds_per_image"])
    assert 0 < seconds[0] < 8 * seconds[1] and seconds[1] < 2 * seconds[0]


def test_without_a_folder_nothing_is_written(run, learnt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(learnt)
    assert code == 0 and "wrote" not in out and list(tmp_path.iterdir()) == []


def test_a_broken_file_is_one_line_before_anything_is_timed(run, learnt, learnt_onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "latencies", None)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(learnt_onnx.read_bytes()[:5000])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(learnt.read_bytes()[:5000])
    text = tmp_path / "spec.txt"
    text.write_text("hello")
    for path in (broken, cut, text, tmp_path / "none.onnx"):
        code, out, error = run(learnt, path, "-r", tmp_path / "out")
        assert (code, out) == (MODEL, "") and error.count("\n") == 1 and str(path) in error
    assert not (tmp_path / "out").exists()


def test_too_many_images_at_once(run, learnt):
    code, _, error = run(learnt, "--batch_size", 10**9)
    lines = [line for line in error.splitlines() if line.startswith("error")]
    assert code == MODEL and len(lines) == 1 and f"{learnt} cannot be run on 1000000000 images" in lines[0]


def test_wrong_command_lines(run, learnt, tmp_path):
    code, _, error = run(learnt, learnt)
    assert code == USAGE and f"{learnt} is named twice" in error
    code, _, error = run(learnt, "--batch_size", 0)
    assert code == USAGE and "--batch_size 0: must be 1 or more" in error
    (tmp_path / "file").write_text("")
    code, out, error = run(learnt, "-r", tmp_path / "file")
    assert (code, out) == (OUTPUT, "") and f"cannot write {tmp_path}/file/latency.json" in error


def test_threads_are_those_of_torch(run, learnt, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert run(learnt, "-r", tmp_path)[0] == 0
    assert json.loads((tmp_path / "latency.json").read_text())["threads"] == 2

"""A detector that TLT has trained, a Keras file, in the commands that take models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detectkit import spec
from detectkit.cli import main
from detectkit.model import checkpoint
from detectkit.runtimes import load
from detectkit.spec import ModelConfig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives exit code, stdout and stderr in one line each."""

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        code = main([command, *map(str, arguments), "--gpus", "0"])
        out, error = capsys.readouterr()
        return code, " ".join(out.split()), " ".join(error.split())

    return call


@pytest.fixture
def experiment(tiny: spec.Experiment) -> spec.Experiment:
    """As a spec of TLT: it names TLT's weights, which says that the network is TLT's, too."""
    tiny.model_config.pretrained_model_file = "resnet10.hdf5"
    return tiny


@pytest.fixture
def place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experiment: spec.Experiment,
    write_spec: Callable[[spec.Spec], Path],
    learn: Callable[..., Path],
    as_keras: Callable[..., Path],
) -> Path:
    """The current folder, with spec.txt and model.hdf5, which knows the pictures."""
    monkeypatch.chdir(tmp_path)
    write_spec(experiment).rename("spec.txt")
    as_keras(tmp_path / "model.hdf5", checkpoint.load(learn(experiment)).detector)
    return tmp_path


def test_it_is_evaluated_with_its_spec(run: Run, place: Path) -> None:
    code, out, _ = run("evaluate", "-e", "spec.txt", "-m", "model.hdf5", "-r", "results")
    assert code == 0 and "mAP 100.00 %" in out
    assert json.loads(Path("results/results.json").read_text())["mean_average_precision"] == pytest.approx(1)


def test_export_makes_a_model_of_it(run: Run, place: Path) -> None:
    code, out, _ = run("export", "-e", "spec.txt", "-m", "model.hdf5", "-o", "model.safetensors")
    assert code == 0 and "wrote model.safetensors: resnet 10 in TLT's layout, 4,9" in out
    assert "for square, bar in this order" in out and "next: detectkit evaluate -m model.safetensors" in out
    assert checkpoint.load("model.safetensors").spec.model_config.layout == ModelConfig.TLT
    code, out, _ = run("evaluate", "-m", "model.safetensors")
    assert code == 0 and "mAP 100.00 %" in out


def test_it_is_exported_as_onnx(run: Run, place: Path) -> None:
    text = Path("spec.txt").read_text()  # whose layout nothing says but the file of the model
    Path("plain.txt").write_text(text.replace('pretrained_model_file: "resnet10.hdf5"', ""))
    code, _, _ = run("export", "-e", "plain.txt", "-m", "model.hdf5", "-o", "model.onnx")
    assert code == 0 and load("model.onnx", "cpu").spec.model_config.layout == ModelConfig.TLT
    code, out, _ = run("evaluate", "-e", "spec.txt", "-m", "model.onnx")
    assert code == 0 and "mAP 100.00 %" in out


def test_it_is_pruned_and_its_retraining_starts_from_its_layout(
    run: Run, place: Path, experiment: spec.Experiment
) -> None:
    experiment.model_config.pretrained_model_file = ""  # nothing else says that it is TLT's
    Path("spec.txt").write_text(spec.dumps(experiment))
    arguments = ("-e", "spec.txt", "-m", "model.hdf5", "-o", "pruned", "--target-params", "0.5")
    assert run("prune", *arguments)[0] == 0
    retraining = spec.load_experiment("pruned_retrain.txt").model_config
    assert retraining.layout == ModelConfig.TLT and retraining.pretrained_model_file == "pruned.safetensors"
    assert retraining.load_graph
    code, _, error = run("train", "-e", "pruned_retrain.txt", "-r", "results")
    assert code == 0
    trained = checkpoint.load("results/weights/model.safetensors").detector
    assert {layer.eps for layer in trained.modules() if isinstance(layer, torch.nn.BatchNorm2d)} == {1e-3}


def test_a_training_that_starts_from_it_says_what_it_took(
    run: Run, place: Path, experiment: spec.Experiment
) -> None:
    experiment.model_config.pretrained_model_file = "model.hdf5"
    experiment.training_config.num_epochs = 1
    Path("spec.txt").write_text(spec.dumps(experiment))
    code, _, error = run("train", "-e", "spec.txt", "-r", "results")
    assert code == 0
    assert (
        "model.hdf5: its heads, of 2 classes, are left out: load_graph: true in model_config takes" in error
    )
    assert checkpoint.load("results/weights/model.safetensors").detector.backbone.layout == "TLT"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("infer", "-m", "model.hdf5", "-i", "images", "-r", "r"), "detectkit export -e SPEC -m model.hdf5 -o model.safetensors"),
        (("latency", "model.hdf5"), "detectkit export -e SPEC -m model.hdf5 -o model.safetensors"),
        (("evaluate", "-m", "a.tlt", "-e", "spec.txt"), "a.tlt is encrypted: with your key, TAO 5 writes it as a plain Keras file"),
    ],
)  # fmt: skip
def test_one_line_where_it_cannot_be_read(
    run: Run, place: Path, command: tuple[str, ...], words: str
) -> None:
    code, _, error = run(*command)
    assert code == 5 and words in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *(
            (
                ("-m", "model.hdf5", *options.split()),
                f"-o out.safetensors: leave {options.split()[0]} out, or give an .onnx file",
            )
            for options in (
                "--data_type int8",
                "--nms",
                "--calibration scales.json",
                "--cal_json_file tlt.json",
                "--cal_cache_file calibration.cache",
                "--max_batch_size 8",
            )
        ),
        (
            ("-m", "model.hdf5", "--max_batch_size", "8", "--static_batch_size", "4"),
            "leave --static_batch_size, --max_batch_size out, or give an .onnx file",
        ),
        (
            ("-m", "model.safetensors"),
            "-o out.safetensors: model.safetensors is no Keras file of TLT: give an .onnx file",
        ),
    ],
)
def test_only_a_keras_file_becomes_a_model(
    run: Run, place: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, _, error = run("export", "-e", "spec.txt", "-o", "out.safetensors", *arguments)
    assert code == 2 and words in error and not Path("out.safetensors").exists()


def test_a_run_that_trains_nothing_wants_a_model(
    capsys: pytest.CaptureFixture[str], place: Path, experiment: spec.Experiment
) -> None:
    experiment.model_config.pretrained_model_file = "model.hdf5"
    experiment.ClearField("training_config")
    Path("spec.txt").write_text(spec.dumps(experiment))
    assert main(["run", "-e", "spec.txt"]) == 2
    error: Any = " ".join(capsys.readouterr().err.split())
    assert "detectkit export -e spec.txt -m model.hdf5 -o model.safetensors" in error

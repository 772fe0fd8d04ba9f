"""What the checks of `detectkit doctor` find on this machine, and on broken ones."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from detectkit.cli import main
from detectkit.deploy import engine
from detectkit.doctor import CHECKS, Diagnosis, examine, machine, packages, runtimes
from detectkit.errors import ModelError
from detectkit.runtimes import onnx as onnx_module
from detectkit.runtimes import tensorrt as tensorrt_module

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
NO_GPU = not torch.cuda.is_available()
ROOT = Path(__file__).parent.parent.parent
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def quick(monkeypatch: Patch) -> None:
    """Measure shortly."""
    monkeypatch.setattr(machine, "WRITTEN", machine.MEBIBYTE)
    monkeypatch.setattr(machine, "DECODE_SECONDS", 0.01)


def found(title: str, folder: Path = Path(".")) -> list[Diagnosis]:
    """What one check finds, exceptions included."""
    return list(examine(next(check for check in CHECKS if check.title == title), folder))


def hide(monkeypatch: Patch, *names: str) -> None:
    """Make packages look as if they were not installed: neither their versions nor their modules are found."""
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_the_requirements_are_those_of_setup_cfg(monkeypatch: Patch, tmp_path: Path) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert set(packages.EXTRAS) == set(settings["options.extras_require"]) - {"dev"}
    needed = packages.requirements()
    assert ("protobuf", ">=7.35.1,<8") in needed[""] and ("torch", ">=2.10") in needed[""]
    assert needed["coco"] == [("faster-coco-eval", ">=1.6")]

    monkeypatch.setattr(packages, "SOURCE", tmp_path)  # no checkout: of the installed package
    lines = ["torch>=2.7", "protobuf<8,>=7.35.1", 'faster-coco-eval>=1.6; extra == "coco"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert packages.requirements() == {
        "": [("torch", ">=2.7"), ("protobuf", "<8,>=7.35.1")],
        "coco": [("faster-coco-eval", ">=1.6")],
    }
    hide(monkeypatch, "faster-coco-eval")
    monkeypatch.setattr(packages, "EXTRAS", {"coco": "to count"})
    text = "coco, to count: faster-coco-eval is not installed"
    assert found("extras") == [Diagnosis("note", text, "pip install 'faster-coco-eval>=1.6'")]


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.7", ">=2.7", True),
        ("2.7.0+cu130", ">=2.7", True),  # zeros at the end do not count
        ("2.10.0", ">=2.7", True),  # numbers, not letters
        ("2.6.1", ">=2.7", False),
        ("8.0rc1", ">=7.35.1,<8", False),
        ("7.36.2", ">=7.35.1,<8", True),
        ("1.8.2", ">=1.7,!=1.8.2", False),
        ("1.0", "", True),
    ],
)
def test_versions_and_their_bounds(version: str, bounds: str, fits: bool) -> None:
    assert packages._fits(version, bounds) == fits


def test_an_extra_that_is_missing(monkeypatch: Patch) -> None:
    hide(monkeypatch, "wandb")
    text = "wandb, to watch a training in Weights & Biases: wandb is not installed"
    assert Diagnosis("note", text, f"in {ROOT}: pip install -e '.[wandb]'") in found("extras")
    assert [line.grade for line in found("extras")].count("note") == 1


def test_a_package_that_is_too_old_or_does_not_load(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        packages,
        "requirements",
        lambda: {"": [("torch", ">=99"), ("onnxruntime", ">=1.20"), ("pillow", ""), ("nosuch", ">=1")]},
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    torch_line, runtime, missing = found("packages")[1:]
    assert (torch_line.grade, torch_line.fix) == ("fault", "pip install 'torch>=99'")
    assert torch_line.text == f"torch {importlib.metadata.version('torch')} is not >=99"
    assert runtime.grade == "note" and runtime.text.startswith(
        "onnxruntime does not load (ModuleNotFoundError"
    )
    assert missing == Diagnosis("fault", "nosuch is not installed", "pip install 'nosuch>=1'")


def test_without_onnx_runtime_a_training_works(monkeypatch: Patch, capsys: Capture, quick: None) -> None:
    hide(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    monkeypatch.delitem(sys.modules, "detectkit.runtimes.onnx")
    monkeypatch.delitem(sys.modules, "detectkit.deploy.onnx")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "- onnxruntime is not installed\n  pip install 'onnxruntime>=1.20'\n" in text
    assert re.search("^- ONNX Runtime: ModuleNotFoundError: .*onnxruntime", text, re.MULTILINE)
    assert text.endswith("\ntraining works on this machine\n")


def test_a_wrong_result_of_onnx_runtime(monkeypatch: Patch) -> None:
    wrong = SimpleNamespace(
        get_providers=lambda: ["CPUExecutionProvider"], run=lambda *_: [torch.zeros(1, 1, 8, 8)]
    )
    monkeypatch.setattr(onnx_module, "make_session", lambda *_, **__: wrong)
    assert found("ONNX Runtime")[0].text.endswith("asked for cpu gives a wrong result on CPU")


def test_without_tensorrt(monkeypatch: Patch) -> None:
    def missing() -> None:
        raise ModelError("there is no TensorRT here (tensorrt: libnvinfer.so.11: not found): pip install it")

    monkeypatch.setattr(tensorrt_module, "library", missing)
    fix = f"in {ROOT}: pip install -e '.[tensorrt]'"
    text = "TensorRT: there is no TensorRT here (tensorrt: libnvinfer.so.11: not found)"
    monkeypatch.setattr(
        runtimes, "versions", lambda: {"TensorRT": "11.4"}
    )  # its package is here, its library is not
    assert found("TensorRT") == [Diagnosis("note", text, fix)]
    monkeypatch.setattr(runtimes, "versions", lambda: {"TensorRT": "not installed"})
    assert found("TensorRT") == [Diagnosis("note", "TensorRT: not installed, so no engines", fix)]


@pytest.mark.skipif(not NO_GPU, reason="says what a machine without a GPU can do")
def test_tensorrt_without_a_gpu(monkeypatch: Patch) -> None:
    [line] = found("TensorRT")
    assert line.grade == "ok"
    assert re.match(
        r"TensorRT for RTX [\d.]+ builds an engine of one layer in .* running it needs a GPU", line.text
    )

    def fails(*_: object, **__: object) -> None:
        raise ModelError("TensorRT for RTX 1.2 cannot build a model of one layer: no memory")

    monkeypatch.setattr(engine, "build", fails)
    [line] = found("TensorRT")
    assert (line.grade, line.text) == (
        "note",
        "TensorRT: ModelError: TensorRT for RTX 1.2 cannot build a model of one layer: no memory",
    )


def test_a_driver_that_torch_cannot_use(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_driver", lambda: "")
    assert found("GPU") == [Diagnosis("ok", "none: training runs on the CPU")]
    monkeypatch.setattr(machine, "_driver", lambda: "470.10")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    [line] = found("GPU")
    assert line.text == "NVIDIA's driver 470.10 is here, but torch with CUDA 13.2 uses no GPU: it finds none"
    assert line.fix.endswith("--gpus all")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in found("GPU")[0].text


def test_gpus(monkeypatch: Patch) -> None:
    gpu = SimpleNamespace(name="NVIDIA A10", total_memory=24 * machine.GIBIBYTE, major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    monkeypatch.setattr(machine, "_driver", lambda: "580.95")
    expected = "0: NVIDIA A10, 24.0 GiB, compute capability 8.6, driver 580.95"
    assert found("GPU") == [Diagnosis("ok", expected)]


def test_the_driver_of_a_machine_without_nvidia_smi(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    assert machine._driver() == ""
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\n"
    (tmp_path / "version").write_text(line)
    assert machine._driver() == "580.95.05"


def test_limits_of_a_container(monkeypatch: Patch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    first, second = found("CPU")
    assert ", 0.5 cores for us, 4 threads, " in first.text
    assert second == Diagnosis(
        "note", "4 threads on 0.5 cores wait for each other", "export OMP_NUM_THREADS=1"
    )
    [line] = found("memory")
    assert line.text == "1.0 GiB (the limit of the container) of memory is little"
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert ", 0.5 cores" not in found("CPU")[0].text and "container" not in found("memory")[0].text


def test_little_shared_memory(monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/"))
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20)
    )  # Docker's default
    [line] = found("shared memory")
    assert (line.grade, line.text) == (
        "note",
        "/ has 64 MiB, too little for loader processes: they may die of it",
    )
    assert "--shm-size=2g" in line.fix


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files acts as a full disk does."""
    code = (
        "import resource, sys; from pathlib import Path; from detectkit.doctor import machine\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "for line in machine.disk(Path(sys.argv[1])): print(line.grade, line.text)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"fault cannot write to {tmp_path}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_little_space(monkeypatch: Patch, tmp_path: Path, quick: None) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**29, 2**29))
    [line] = found("disk", tmp_path)
    assert line.grade == "note" and line.text.endswith("0.5 GiB free, which is little for records and models")


def test_code_that_is_older_than_its_schema(monkeypatch: Patch) -> None:
    schema = FileDescriptorSet.FromString((ROOT / "detectkit/spec/schema.binpb").read_bytes())
    own = next(file for file in schema.file if file.name.endswith("training.proto"))
    own.message_type[0].field.add(name="newer", number=2000)
    monkeypatch.setattr(packages, "_compiled", lambda proto: schema.SerializeToString())
    [line] = found("generated code")
    assert line.text == "the spec's message classes are older than proto/"
    assert line.grade == "fault" and line.fix.endswith("python -c 'import setup; setup.generate()'")


def test_another_version_of_protobuf_compiles_the_same_schema(monkeypatch: Patch) -> None:
    schema = FileDescriptorSet.FromString((ROOT / "detectkit/spec/schema.binpb").read_bytes())
    [theirs] = [file for file in schema.file if file.name.startswith("google/")]
    theirs.message_type.add(name="New")
    monkeypatch.setattr(packages, "_compiled", lambda proto: schema.SerializeToString())
    assert found("generated code") == [Diagnosis("ok", "the spec's message classes are those of proto/")]


def test_a_step_that_learns_nothing(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    [line] = found("training")
    assert line.grade == "fault" and line.text.startswith(
        "a step of a ResNet10 on cpu learns nothing: cost ["
    )

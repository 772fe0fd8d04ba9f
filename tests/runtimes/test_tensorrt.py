"""Finding TensorRT, its log lines, the file beside an engine, and how batches are fed.

TensorRT for RTX is here, without a GPU. What needs TensorRT 10 or 11, or a GPU, is tested on fakes, which the names say.
"""

import contextlib
import ctypes
import importlib
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detectkit import runtimes
from detectkit.errors import ModelError, OutputError
from detectkit.model import header
from detectkit.model.detector import outline_of
from detectkit.model.header import INPUT
from detectkit.runtimes import tensorrt
from detectkit.runtimes.tensorrt import (
    RTX,
    TENSORRT,
    Library,
    Sidecar,
    library,
    load_sidecar,
    pieces,
    save_sidecar,
    sidecar_path,
)
from detectkit.spec.model_pb2 import ModelConfig

find = library.__wrapped__  # without its memory of the last answer
OUTLINE = outline_of(ModelConfig(), ["thing"], 3)
OUTPUTS = OUTLINE.names
SIDECAR = Sidecar({}, RTX, "1.7.1", "fp32", ["sm86"], (1, 2, 4), 64, 96)


class Logger:
    pass


def fake_modules(monkeypatch, **modules):
    """Imports that give these modules, or raise these errors; others are not there."""

    def find_module(name):
        found = modules.get(name, ModuleNotFoundError(name))
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(__name__=name, __version__=found, ILogger=Logger)

    monkeypatch.setattr(importlib, "import_module", find_module)


def test_tensorrt_for_rtx_is_found_and_is_the_same_next_time():
    found = library(RTX)
    assert found.name == RTX and found.title == f"TensorRT for RTX {found.version}"
    assert found.trt.__version__.startswith(found.version + ".") and found.version.count(".") == 2
    assert found.strongly_typed and found.ahead_of_time
    assert library(RTX) is found


def test_a_fake_tensorrt_10_and_11_differ_in_types(monkeypatch):
    fake_modules(monkeypatch, tensorrt="10.3.0", tensorrt_rtx="1.7.1.116")
    ten = find(TENSORRT)
    assert (ten.title, ten.strongly_typed, ten.ahead_of_time) == ("TensorRT 10.3.0", False, False)
    assert find(RTX).title == "TensorRT for RTX 1.7.1"
    fake_modules(monkeypatch, tensorrt="11.4.0.106")
    eleven = find()
    assert (eleven.title, eleven.strongly_typed, eleven.ahead_of_time) == ("TensorRT 11.4.0", True, False)


def test_of_two_libraries_the_one_is_taken_that_can_build_here(monkeypatch):
    fake_modules(monkeypatch, tensorrt="10.3.0", tensorrt_rtx="1.7.1.116")
    for has_gpu, name in ((True, TENSORRT), (False, RTX)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert find().name == name


def test_no_library_is_one_message_with_the_pip_line(monkeypatch):
    fake_modules(monkeypatch)
    with pytest.raises(ModelError) as error:
        find()
    assert "there is no TensorRT or TensorRT for RTX here (not installed)" in str(error.value)
    assert "pip install 'detectkit[tensorrt]'" in str(error.value) and "\n" not in str(error.value)


def test_libraries_that_cannot_be_used_are_named_with_the_reason(monkeypatch):
    missing = ImportError("libcudart.so.13: cannot open shared object file")
    fake_modules(monkeypatch, tensorrt="8.6.1", tensorrt_rtx_bindings=missing)
    with pytest.raises(ModelError) as error:
        find()
    assert "TensorRT 8.6.1 is too old, 10 is the oldest" in str(error.value)
    assert "tensorrt_rtx_bindings: libcudart.so.13: cannot open shared object file" in str(error.value)


def test_the_library_writes_to_our_log_and_not_to_the_terminal(capfd, caplog):
    found = library(RTX)
    found.take_errors()
    builder = found.trt.Builder(found.log)
    network = builder.create_network(0)
    with caplog.at_level(logging.DEBUG, "detectkit"):
        assert not found.trt.OnnxParser(network, found.log).parse(b"no ONNX at all")
    assert capfd.readouterr() == ("", "")
    (line,) = [record for record in caplog.records if "Failed to parse the ONNX model" in record.message]
    assert line.levelno == logging.DEBUG  # it becomes the text of an exception
    assert len(found.take_errors()) == 1 and found.take_errors() == []
    severity = found.trt.ILogger.Severity
    with caplog.at_level(logging.DEBUG, "detectkit"):
        caplog.clear()
        for item in (severity.WARNING, severity.INFO, severity.VERBOSE):
            found.log.log(item, f"a line of {item.name}")
    assert [(record.levelname, record.message.split(": ")[1]) for record in caplog.records] == [
        ("WARNING", "a line of WARNING"),
        ("DEBUG", "a line of INFO"),
    ]


def test_the_file_beside_an_engine_says_what_was_written(tmp_path):
    engine = tmp_path / "model.engine"
    assert save_sidecar(engine, SIDECAR) == tmp_path / "model.engine.json" == sidecar_path(engine)
    assert load_sidecar(engine) == SIDECAR
    assert json.loads(sidecar_path(engine).read_text())["batch"] == [1, 2, 4]
    with pytest.raises(OutputError):
        save_sidecar(tmp_path / "model.engine.json" / "x.engine", SIDECAR)


def test_what_a_newer_detectkit_writes_beside_an_engine_is_named_and_passed_over(tmp_path, caplog):
    engine = tmp_path / "model.engine"
    content = SIDECAR._asdict() | {"header": {"written_by": "0.9.1"}, "profile": 3}
    sidecar_path(engine).write_text(json.dumps(content))
    assert load_sidecar(engine)._replace(header={}) == SIDECAR
    assert "model.engine.json was written by detectkit 0.9.1" in caplog.text
    assert "without effect: profile" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "7", json.dumps(SIDECAR._asdict() | {"batch": [4, 2, 1]}), '{"header": {}, "more": 1}']
    + [json.dumps(SIDECAR._asdict() | {"builder": "tensorflow"}), "\udcff"],
)
def test_a_damaged_file_beside_an_engine_is_one_message(tmp_path, text):
    engine = tmp_path / "model.engine"
    sidecar_path(engine).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"model\.engine\.json is damaged \(.*run detectkit engine again$"):
        load_sidecar(engine)


def test_an_engine_without_the_file_beside_it_is_one_message(tmp_path):
    with pytest.raises(
        ModelError, match=r"model\.engine\.json is missing, which has the classes and the spec"
    ):
        load_sidecar(tmp_path / "model.engine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_engine_without_a_gpu_is_one_message(tmp_path):
    engine = tmp_path / "model.engine"
    with pytest.raises(ModelError, match=r"cannot read .*model\.engine: No such file"):
        runtimes.load(engine, "cpu")
    engine.write_bytes(b"a plan")
    for device in ("cpu", "cuda"):
        with pytest.raises(
            ModelError, match="runs on an NVIDIA GPU, and there is none here: give the ONNX model"
        ):
            runtimes.load(engine, device)


@given(count=st.integers(1, 20), low=st.integers(1, 5), more=st.integers(0, 5))
def test_pieces_of_a_batch_have_sizes_that_the_engine_takes(count, low, more):
    images = torch.arange(1.0, count + 1).view(count, 1, 1, 1).expand(count, 1, 2, 3)
    cut = pieces(images, low, low + more)
    assert all(low <= len(piece) <= low + more for piece in cut)
    joined = torch.cat(cut)
    assert torch.equal(joined[:count], images) and not joined[count:].any()


class FakeContext:
    """Computes what an engine could, at the addresses that it is given: coverage is the mean of 16 x 16 pixels."""

    def __init__(self):
        self.batches, self.addresses = [], {}

    def set_input_shape(self, name, shape):
        assert name == INPUT
        self.batches.append(shape[0])

    def get_tensor_shape(self, name):
        return (self.batches[-1], 1 if name == OUTPUTS[0] else 4, 4, 6)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        shapes = {INPUT: (self.batches[-1], 3, 64, 96)} | {
            name: self.get_tensor_shape(name) for name in OUTPUTS
        }
        arrays = {
            name: np.ctypeslib.as_array(
                (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
            )
            for name, shape in shapes.items()
        }
        blocks = arrays[INPUT].reshape(-1, 3, 4, 16, 6, 16)
        coverage = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
        arrays[OUTPUTS[0]][:] = coverage.ravel()
        arrays[OUTPUTS[1]][:] = coverage[:, None].repeat(4, axis=1).ravel()
        return True


def fake_library(context, *, names=(INPUT, *OUTPUTS), loads=True):
    shapes = {INPUT: (-1, 3, 64, 96), OUTPUTS[0]: (-1, 1, 4, 6), OUTPUTS[1]: (-1, 4, 4, 6)}
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda number: names[number],
        get_tensor_shape=shapes.get,
        create_execution_context=lambda: context,
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if loads else None)
    trt = SimpleNamespace(Runtime=lambda log: runtime)
    return Library(RTX, "1.7.1", trt, SimpleNamespace(errors=[] if loads else ["bad magic"]))


@pytest.fixture
def fake_gpu(tmp_path, tiny_text, monkeypatch):
    """An engine file with its sidecar, and a `torch.cuda` that runs on the CPU; gives a function that loads it."""
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"a plan")
    content = json.loads(header.dumps(tiny_text, ["thing"], 3, OUTLINE))
    save_sidecar(engine, SIDECAR._replace(header=content, batch=(2, 4, 4)))
    stream = SimpleNamespace(cuda_stream=7, wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    def load(fake):
        monkeypatch.setattr(tensorrt, "library", lambda name: fake)
        return runtimes.load(engine, "cuda")

    return load


def test_a_fake_engine_runs_batches_of_any_size(fake_gpu):
    context = FakeContext()
    network = fake_gpu(fake_library(context))
    assert (network.kind, network.class_names, network.channels) == ("engine", ["thing"], 3)
    assert (network.size, network.outline.multiple) == ((64, 96), 16)
    images = torch.rand(5, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    coverage, boxes = network.forward(images)
    assert context.batches == [4, 2]  # the second of one image and one of zeros
    expected = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 16)
    assert coverage.shape == (5, 1, 4, 6) and torch.allclose(coverage, expected, atol=1e-6)
    assert torch.equal(boxes, coverage.expand(5, 4, 4, 6))


def test_fake_engines_that_are_not_ours_or_do_not_load_are_one_message(fake_gpu, tmp_path):
    with pytest.raises(ModelError, match="takes and gives detections, images, output_bbox"):
        fake_gpu(fake_library(FakeContext(), names=(INPUT, *OUTPUTS, "detections")))
    with pytest.raises(
        ModelError, match=r"cannot be loaded by TensorRT for RTX 1.7.1; .* for sm86: .*\(bad magic\)"
    ):
        fake_gpu(fake_library(FakeContext(), loads=False))
    engine = tmp_path / "model.engine"
    save_sidecar(engine, load_sidecar(engine)._replace(height=128))
    with pytest.raises(ModelError, match=r"model\.engine\.json is of another engine"):
        fake_gpu(fake_library(FakeContext()))

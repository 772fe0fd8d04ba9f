"""Times of networks side by side."""

import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper, save
from torch import Tensor

from detectkit.console import log
from detectkit.deploy import latency
from detectkit.deploy.latency import deployed, latencies, onnx_run
from detectkit.errors import ModelError
from detectkit.runtimes import load, tensorrt


def convolutions(count: int) -> bytes:
    """A chain of 3x3 convolutions of 16 channels."""
    shape = ["N", 16, 48, 64]
    weight = np.full((16, 16, 3, 3), 0.01, dtype=np.float32)
    nodes = [
        helper.make_node("Conv", [f"x{number}", "weight"], [f"x{number + 1}"], pads=[1, 1, 1, 1])
        for number in range(count)
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{count}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def test_eight_times_the_work_takes_longer_wherever_it_stands() -> None:
    light, heavy = convolutions(2), convolutions(16)
    runs = [onnx_run(model, batch_size=2, threads=1) for model in (heavy, light, heavy)]
    times = latencies(runs, rounds=9)
    assert len(times) == 3
    assert 0 < times[1] < min(times[0], times[2])


def test_a_model_is_deployed_as_its_onnx_file_is(learnt: Path, learnt_onnx: Path) -> None:
    model, file = (deployed(load(path, "cpu"), "cpu") for path in (learnt, learnt_onnx))
    assert model.runtime == file.runtime == f"ONNX Runtime {onnxruntime.__version__} (CPU)"
    # PyTorch, once its network is exported, has nothing to do with it.
    model.run()
    times = latencies([model.run, file.run], rounds=15)
    assert 1 / 3 < times[0] / times[1] < 3


def test_a_larger_image_takes_longer(learnt: Path) -> None:
    network = load(learnt, "cpu")
    runs = [deployed(network, "cpu", size=size).run for size in (None, (256, 384))]
    small, large = latencies(runs, rounds=9)
    assert large > 2 * small  # 16 times the pixels


class Session:
    """Of a file that takes images [4, 3, 8, 8] of 16 bits."""

    def __init__(self) -> None:
        self.fed: list[tuple[tuple[int, ...], str]] = []

    def get_inputs(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(name="images", shape=[4, 3, 8, 8], type="tensor(float16)")]

    def run(self, _: None, feed: dict[str, NDArray[np.float16]]) -> None:
        self.fed.append((feed["images"].shape, str(feed["images"].dtype)))


@pytest.mark.parametrize(("batch_size", "turns"), [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_fixed_batch_takes_turns(batch_size: int, turns: int) -> None:
    session = Session()
    latency._session_run(session, batch_size)()
    assert session.fed == [((4, 3, 8, 8), "float16")] * turns


def test_a_fixed_batch_is_warned_of(
    learnt: Path, as_onnx: Callable[..., ModelProto], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log.propagate = True
    save(as_onnx(learnt, batch=4), tmp_path / "four.onnx")
    network = load(tmp_path / "four.onnx", "cpu")
    deployed(network, "cpu", batch_size=8)
    assert caplog.messages == []
    deployed(network, "cpu", batch_size=1)
    assert caplog.messages == [
        f"{network.file} takes 4 images at a time, no fewer: its time for 1 is that for more"
    ]


def test_more_images_than_fit_are_one_line(learnt: Path) -> None:
    with pytest.raises(
        ModelError, match=f"^{learnt} cannot be run on 1000000000 images at once .*: give fewer"
    ):
        deployed(load(learnt, "cpu"), "cpu", batch_size=10**9)


def test_on_a_gpu_that_onnx_runtime_cannot_use(learnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not here is a stand-in: the images stay on the CPU, the network says where it would run."""
    network = load(learnt, "cpu")
    shapes = []

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(images.shape))
        return images, images

    monkeypatch.setattr(latency, "CUDA", "none")
    monkeypatch.setattr(Tensor, "to", lambda images, _: images)
    model = deployed(network._replace(forward=forward), "cuda", batch_size=2)
    assert model.runtime == f"PyTorch {torch.__version__} (GPU)"
    assert shapes == [(2, 3, 64, 96)]
    title = types.SimpleNamespace(title="TensorRT 10.9.0")
    monkeypatch.setattr(tensorrt, "library", lambda _: title)
    monkeypatch.setattr(tensorrt, "load_sidecar", lambda _: types.SimpleNamespace(builder="tensorrt"))
    engine = deployed(network._replace(forward=forward, kind="engine", size=(32, 48)), "cuda")
    assert engine.runtime == "TensorRT 10.9.0 (GPU)" and shapes[1:] == [(1, 3, 32, 48)]


def test_no_models_take_no_time() -> None:
    assert latencies([]) == []


class Machine:
    """A clock that only the runs move, and a list of these runs.

    Args:
        seconds: that the runs of each model take one after the other; then the last for ever.
    """

    def __init__(self, seconds: dict[bytes, list[float]]) -> None:
        self.now = 0.0
        self.seconds = {name: list(times) for name, times in seconds.items()}
        self.ran: list[bytes] = []

    def runs(self) -> list[Callable[[], object]]:
        return [self._run(name) for name in self.seconds]

    def _run(self, model: bytes) -> Callable[[], object]:
        def run() -> None:
            times = self.seconds[model]
            self.now += times.pop(0) if len(times) > 1 else times[0]
            self.ran.append(model)

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(**seconds: list[float]) -> Machine:
        made = Machine({name.encode(): times for name, times in seconds.items()})
        clock = types.SimpleNamespace(monotonic=lambda: made.now, perf_counter=lambda: made.now)
        monkeypatch.setattr(latency, "time", clock)
        return made

    return make


def test_runs_take_turns_in_alternating_order(machine: Callable[..., Machine]) -> None:
    made = machine(a=[1.0], b=[2.0])
    assert latencies(made.runs(), rounds=3) == [1.0, 2.0]
    # In each turn one run that does not count and one that does.
    assert b"".join(made.ran) == b"aabb" + b"bbaa" + b"aabb"


def test_median_is_that_of_every_second_run(machine: Callable[..., Machine]) -> None:
    made = machine(a=[90.0, 3.0, 90.0, 1.0, 90.0, 50.0, 90.0, 2.0, 90.0, 4.0])
    assert latencies(made.runs(), rounds=5, time_limit=1e6) == [3.0]  # of 1 2 3 4 50


@pytest.mark.parametrize(
    ("time_limit", "rounds"),
    # A round takes 2 seconds: the one that begins at 12 is the first beyond 11; of 5 rounds there is always all.
    [(1000.0, 30), (11.0, 6), (0.0, 5)],
)
def test_no_round_begins_after_the_time_limit(
    machine: Callable[..., Machine], time_limit: float, rounds: int
) -> None:
    made = machine(a=[1.0])
    latencies(made.runs(), rounds=30, time_limit=time_limit)
    assert len(made.ran) == 2 * rounds

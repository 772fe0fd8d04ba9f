"""Times of networks side by side."""

import types
from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from detectkit.deploy import latency
from detectkit.deploy.latency import latencies, onnx_run


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

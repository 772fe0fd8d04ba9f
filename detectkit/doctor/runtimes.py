"""Whether a training, ONNX Runtime and TensorRT work: each does a little of what it is for."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit.doctor.lines import Diagnosis, first_line
from detectkit.doctor.packages import install, requirements
from detectkit.errors import ModelError
from detectkit.versions import MISSING, versions

if TYPE_CHECKING:
    import onnx

REINSTALL_RUNTIME = "pip install --force-reinstall onnxruntime (onnxruntime-gpu for a GPU)"


def training(folder: Path) -> Iterator[Diagnosis]:
    """One step of a small network on each kind of device, with all that a training imports."""
    import torch

    importlib.import_module("detectkit.train.loop")
    yield _step("cpu")
    if torch.cuda.is_available():
        try:
            yield _step("cuda")
        except (RuntimeError, AssertionError) as error:
            text = f"a step on the GPU fails: {first_line(error)}"
            fix = "install a torch that is built for this GPU (pytorch.org), or give --gpus 0 to each command"
            yield Diagnosis("fault", text, fix)


def _step(device: str) -> Diagnosis:
    import torch

    from detectkit import spec
    from detectkit.model.detector import build

    start = time.monotonic()
    costs = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = spec.ModelConfig(arch="resnet", num_layers=10, use_batch_norm=True)
        detector = build(config, ["object"], 3).to(device)
        images = torch.rand(2, 3, 64, 64).to(device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4)  # so small that the cost must fall
    for _ in range(2):
        cost = torch.stack([maps.square().mean() for maps in detector(images)]).sum()
        optimizer.zero_grad()
        cost.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        costs.append(cost.item())
    if not costs[1] < costs[0]:
        fix = "install torch again: pip install --force-reinstall torch torchvision"
        return Diagnosis("fault", f"a step of a ResNet10 on {device} learns nothing: cost {costs}", fix)
    return Diagnosis("ok", f"two steps of a ResNet10 on {device} in {time.monotonic() - start:.1f} s")


def _one_layer() -> onnx.ModelProto:
    """A convolution of ones: 27 for an image of ones, but for its rim."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from detectkit.deploy.onnx import OPSET
    from detectkit.model.header import INPUT

    weight = numpy_helper.from_array(np.ones((1, 3, 3, 3), np.float32), "weight")
    node = helper.make_node("Conv", [INPUT, "weight"], ["sum"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "one_layer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 1, 8, 8])],
        [weight],
    )
    opset = helper.make_opsetid("", OPSET)
    version = helper.find_min_ir_version_for([opset])
    return helper.make_model(graph, opset_imports=[opset], ir_version=version)


def onnx_runtime(folder: Path) -> Iterator[Diagnosis]:
    import numpy as np
    import onnxruntime
    import torch

    from detectkit.runtimes.onnx import CUDA, make_session

    model = _one_layer().SerializeToString()
    names = ", ".join(
        name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()
    )
    for device in ["cpu"] + ["cuda"] * (
        torch.cuda.is_available() and CUDA in onnxruntime.get_available_providers()
    ):
        session = make_session(model, device=device)
        used = session.get_providers()[0].removesuffix("ExecutionProvider")
        (found,) = session.run(None, {"images": np.ones((1, 3, 8, 8), np.float32)})
        right = abs(float(found[0, 0, 4, 4]) - 27) < 0.1
        if right and used == device.upper():
            yield Diagnosis("ok", f"{onnxruntime.__version__} runs a layer on {used}; it has {names}")
        else:
            result = "the right" if right else "a wrong"
            text = (
                f"ONNX Runtime {onnxruntime.__version__} asked for {device} gives {result} result on {used}"
            )
            yield Diagnosis("note", text, REINSTALL_RUNTIME)
    if torch.cuda.is_available() and CUDA not in onnxruntime.get_available_providers():
        text = "ONNX Runtime cannot use the GPU: ONNX models run on the CPU"
        yield Diagnosis("note", text, "pip uninstall onnxruntime && pip install onnxruntime-gpu")


def tensorrt(folder: Path) -> Iterator[Diagnosis]:
    import torch

    from detectkit.runtimes.tensorrt import library

    try:
        found = library()
    except ModelError as error:
        tried = versions()["TensorRT"]
        needed = dict(requirements().get("tensorrt", []))
        text = (
            "not installed, so no engines" if tried == MISSING else str(error).partition(": pip install")[0]
        )
        yield Diagnosis("note", f"TensorRT: {text}", install(needed, extra="tensorrt"))
        return
    if not found.ahead_of_time and not torch.cuda.is_available():
        text = f"{found.title} loads; building and running engines needs a GPU, which is not here"
        yield Diagnosis("ok", text)
        return

    from detectkit.deploy.engine import build

    start = time.monotonic()
    plan = build(_one_layer(), path="a model of one layer", library=found).plan
    built = f"{found.title} builds an engine of one layer in {time.monotonic() - start:.1f} s"
    if not torch.cuda.is_available():
        yield Diagnosis("ok", f"{built}; running it needs a GPU, which is not here")
    elif abs(_run_engine(found, plan) - 27) < 0.1:
        yield Diagnosis("ok", f"{built}, and runs it")
    else:
        reason = "; ".join(found.take_errors()) or "a wrong result"
        yield Diagnosis(
            "note", f"{built}, but cannot run it: {reason}", "a newer driver, or another TensorRT"
        )


def _run_engine(library: Any, plan: bytes) -> float:
    """The middle of the layer's output for an image of ones; NaN where it cannot be run."""
    import torch

    engine = library.trt.Runtime(library.log).deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine else None
    if context is None:
        return float("nan")
    images, found = torch.ones(1, 3, 8, 8, device="cuda"), torch.zeros(1, 1, 8, 8, device="cuda")
    context.set_tensor_address("images", images.data_ptr())
    context.set_tensor_address("sum", found.data_ptr())
    done = context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return found[0, 0, 4, 4].item() if done else float("nan")

"""The ranges of quantisation-aware training in exported networks."""

import torch

from detectkit.deploy.calibrate import table_of
from detectkit.deploy.onnx import to_model
from detectkit.deploy.qdq import quantize
from detectkit.model.detector import build
from detectkit.model.quantization import Ranges
from detectkit.runtimes.onnx import make_session
from detectkit.spec import ModelConfig


def distance(first, second):
    """The root of the mean squared difference of the boxes."""
    return float((first - second).square().mean().sqrt())


def test_runtimes_compute_what_was_trained():
    torch.manual_seed(4)
    detector = build(ModelConfig(arch="squeezenet"), ["car", "van"], 3).train()
    detector.ranges = Ranges(detector)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            detector(images)
        trained, plain = detector.eval()(images)[1], detector.plain(images)[1]
    model, table = to_model(detector, height=64, width=64), table_of(detector)
    found = {}
    for runtime in ("tensorrt", "onnxruntime"):
        session = make_session(quantize(model, table, runtime=runtime).SerializeToString(), threads=1)
        found[runtime] = torch.from_numpy(session.run(None, {"images": images.numpy()})[1])
    error = distance(trained, plain)
    # TensorRT leaves the input of the heads as it is; ONNX Runtime has twice the levels for what is never below 0.
    assert distance(found["tensorrt"], trained) < 0.5 * error
    assert distance(found["onnxruntime"], plain) < error

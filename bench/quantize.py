"""Eight bits on BCCD: ResNet18 and the pruned ResNet18 in ONNX Runtime, against 32 bits; every figure in one table.

    python bench/quantize.py [-r DIR]    # with DIR, what bench/prune.py -r DIR has trained there is used

The commands are those of docs/deploying.md. The exit code is 1 when one of the wanted figures is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater
from prune import ORIGINAL, PRUNED, RESULTS, RETRAINED, SPEC, Figure, run, workplace
from torch import fx

from detectkit import spec
from detectkit.console import table
from detectkit.data import augment
from detectkit.data.batch import Batch
from detectkit.data.inputs import inputs, spread
from detectkit.data.records import training_frames
from detectkit.data.workers import loader
from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.latency import latencies, onnx_run
from detectkit.deploy.scales import METHODS
from detectkit.evaluation.predictions import predictions
from detectkit.model import checkpoint
from detectkit.model.graph import folded, measured, tensor_name
from detectkit.model.header import INPUT
from detectkit.ops.quantize import sqnr
from detectkit.predict import Predictor, load_model

NAMES = {"resnet18": ORIGINAL, "retrained": RETRAINED}
DEPLOYED = RESULTS / "deployed"
LIMITS = {
    "": 0.5,
    "--per-tensor": 1.0,
}  # points of mAP lost by 8 bits, with a scale a channel and a scale a tensor
QAT_SPEC = "specs/bccd/resnet18_qat.txt"
QAT_LIMIT = 0.3
BATCHES, BATCH_SIZE = 10, 8
ROUNDS = 5
BINS = 4096

PEAK = """
import resource, sys
from detectkit.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
raise SystemExit(code)
"""


def measure(folder: Path) -> Iterator[Figure]:
    """Figure by figure; the table of methods is printed on the way."""
    train(folder)
    for name, model in NAMES.items():
        onnx = export(name, "fp32", "", folder)
        yield from same_maps(name, folder / model, folder / onnx)
        before, after = accuracy(model, folder), accuracy(onnx, folder)
        yield Figure(
            f"{name}: mAP of the ONNX file",
            f"{after:.4f} (was {before:.4f})",
            "4 digits",
            same(before, after),
        )
        yield from methods(name, before, folder)
        yield qat(name, before, folder)
    yield from speed(folder)
    for name, model in NAMES.items():
        yield calibration_time(name, folder / model)
    yield memory(folder)
    for name, model in NAMES.items():
        yield from entropy(name, folder / model, folder)


def train(folder: Path) -> None:
    """What bench/prune.py trains, unless it is there."""
    for half in ("train", "test"):
        if not list((folder / RESULTS / "records").glob(f"{half}-fold*")):
            run(f"convert -d specs/bccd/convert_{half}.txt -o {RESULTS}/records/{half}", folder)
    run(f"train -e {SPEC} -r {RESULTS}/resnet18", folder)
    if not (folder / PRUNED).exists():
        run(f"prune -e {SPEC} -m {ORIGINAL} -o {PRUNED}", folder)
    run(f"train -e {RESULTS}/pruned_retrain.txt -r {RESULTS}/retrained", folder)


def export(
    name: str, data_type: str, options: str, folder: Path, *, model: Path | None = None, kind: str = ""
) -> Path:
    """An ONNX file for ONNX Runtime."""
    output = DEPLOYED / f"{name}_{data_type}{kind}.onnx"
    run(
        f"export -e {SPEC} -m {model or NAMES[name]} -o {output} --data_type {data_type} --runtime onnxruntime {options}",
        folder,
    )
    return output


def accuracy(model: Path, folder: Path) -> float:
    """mAP in points on the test images."""
    results = DEPLOYED / "evaluations" / "_".join((*model.parts[2:-2], model.stem))
    run(f"evaluate -e {SPEC} -m {model} -r {results}", folder)
    return 100 * float(json.loads((folder / results / "results.json").read_text())["mean_average_precision"])


def same(before: float, after: float) -> bool:
    """Whether two mAP agree to four digits."""
    return f"{before:.2f}" == f"{after:.2f}"


def same_maps(name: str, model: Path, onnx: Path) -> Iterator[Figure]:
    """The maps of the model and of its ONNX file on all test images."""
    experiment = spec.load_experiment(SPEC)
    ours, other = (load_model(path, "cpu", experiment=experiment) for path in (model, onnx))
    worst = 0.0
    with torch.inference_mode():
        for predicted in predictions(ours, experiment, label=f"maps of {name}"):
            found = other.forward(predicted.prepared.images)
            pairs = zip(predicted.outputs, found, strict=True)
            worst = max(worst, *(float((one - two).abs().max()) for one, two in pairs))
    yield Figure(f"{name}: greatest difference of the maps", f"{worst:.1e}", "<= 1e-4", worst <= 1e-4)


def methods(name: str, before: float, folder: Path) -> Iterator[Figure]:
    """mAP by method and kind of weight scales; the first, the default, is held to the limits."""
    found: dict[tuple[str, str], float] = {}
    for method in METHODS:
        scales = DEPLOYED / f"{name}_{method}"
        run(
            f"calibrate -e {SPEC} -m {NAMES[name]} -o {scales} --batches {BATCHES} --batch_size {BATCH_SIZE}"
            f" --method {method}",
            folder,
        )
        for kind in LIMITS:
            options = f"{kind} --calibration {scales}/scales.json"
            model = export(name, "int8", options, folder, kind=f"_{method}{kind.removeprefix('-')}")
            found[method, kind] = accuracy(model, folder)
    rows = [(method, *(f"{found[method, kind]:.2f}" for kind in LIMITS)) for method in METHODS]
    table(
        ("ranges by", "scale a channel", "scale a tensor"),
        rows,
        title=f"{name}: mAP in 8 bits; float {before:.2f}",
    )
    for kind, limit in LIMITS.items():
        lost = before - found[METHODS[0], kind]
        what = "a tensor" if kind else "a channel"
        yield Figure(
            f"{name}: mAP lost, {METHODS[0]}, scale {what}", f"{lost:.2f}", f"<= {limit}", lost <= limit
        )


def qat(name: str, before: float, folder: Path) -> Figure:
    """A few epochs in 8-bit rounding, exported with the ranges that they end with."""
    results = RESULTS / f"{name}_qat"
    experiment = spec.load_experiment(folder / QAT_SPEC)
    experiment.model_config.pretrained_model_file = str(NAMES[name])
    experiment.model_config.load_graph = True
    own = DEPLOYED / f"{name}_qat.txt"
    (folder / own).write_text(spec.dumps(experiment))
    run(f"train -e {own} -r {results}", folder)
    model = export(f"{name}_qat", "int8", "", folder, model=results / "weights/model.safetensors")
    lost = before - accuracy(model, folder)
    return Figure(f"{name}: mAP lost, trained in 8 bits", f"{lost:.2f}", f"<= {QAT_LIMIT}", lost <= QAT_LIMIT)


def speed(folder: Path) -> Iterator[Figure]:
    """ONNX Runtime, side by side."""
    files = {
        (name, kind): (folder / DEPLOYED / f"{name}_{kind}.onnx").read_bytes()
        for name in NAMES
        for kind in ("fp32", f"int8_{METHODS[0]}")
    }
    for batch_size in (1, 8):
        runs = [onnx_run(model, batch_size=batch_size) for model in files.values()]
        plain, short, pruned, both = latencies(runs)
        for what, fast, slow, limit in (
            ("8 bits against 32", short, plain, 2.0),
            ("pruned, 8 bits against 32", both, pruned, None),
            ("pruned in 8 bits against unpruned in 32", both, plain, 6.0),
        ):
            value = f"{slow / fast:.2f}x ({1000 * slow:.1f} to {1000 * fast:.1f} ms)"
            wanted = f">= {limit:g}x" if limit else "-"
            yield Figure(f"batch {batch_size}: {what}", value, wanted, slow >= (limit or 0) * fast)


def calibration_time(name: str, model: Path) -> Figure:
    """Calibration, searching the ranges included, against plain inference on the same images, in turns."""
    loaded, experiment = checkpoint.load(model), spec.load_experiment(SPEC)
    predictor = load_model(model, "cpu", experiment=experiment)
    images = training_frames(experiment.dataset_config, predictor.class_names)
    batches = list(
        loader(
            images,
            experiment.augmentation_config,
            batch_size=BATCH_SIZE,
            order=range(BATCHES * BATCH_SIZE),
            workers=0,
        )
    )

    def inference() -> None:
        for _ in predictor.batches(batches):
            pass

    def calibration() -> None:
        calibrate(loaded.detector, (prepared(predictor, batch) for batch in batches))

    plain, whole = latencies([inference, calibration], rounds=ROUNDS, time_limit=0)
    value = f"{whole / plain:.2f} ({plain:.1f} to {whole:.1f} s)"
    return Figure(f"{name}: time of calibration / inference", value, "<= 1.5", whole <= 1.5 * plain)


def prepared(predictor: Predictor, batch: Batch) -> torch.Tensor:
    return augment.prepare(batch, predictor.augmentation, generator=None, device="cpu").images


def memory(folder: Path) -> Figure:
    """Peak memory of the command with 10 and with 100 batches, each in a process of its own."""
    peaks = []
    for batches in (10, 100):
        command = (
            f"calibrate -e {SPEC} -m {RETRAINED} -o {DEPLOYED}/memory --batches {batches} --batch_size 2"
        )
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command.split()],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    few, many = peaks
    return Figure(
        "peak memory, 100 batches / 10",
        f"{many / few:.2f} ({few:.0f} to {many:.0f} MiB)",
        "<= 1.05",
        many <= 1.05 * few,
    )


class Spread(fx.Interpreter):
    """Runs a network and counts the magnitudes of what has a range, by tensor, and the widths of the bins."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.names = {node: tensor_name(node) for node in measured(graph)}
        self.histograms: dict[str, tuple[torch.Tensor, float]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.names:
            most = float(value.abs().max())
            counts = torch.histc(value.abs(), BINS, min=0, max=most)
            self.histograms[self.names[n]] = counts, most / BINS
        return value


class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    """Gives a batch to ONNX Runtime's calibrator."""

    def __init__(self, images: torch.Tensor) -> None:
        self.batches = iter([{INPUT: images.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def entropy(name: str, model: Path, folder: Path) -> Iterator[Figure]:
    """Our entropy ranges and ONNX Runtime's on the same images: how near, and which round better."""
    loaded, experiment = checkpoint.load(model), spec.load_experiment(SPEC)
    frames = training_frames(experiment.dataset_config, loaded.class_names)
    images = next(inputs(frames, experiment, order=spread(16, len(frames)), batch_size=16))
    ours = calibrate(loaded.detector, [images], method="entropy").tensors
    seen = Spread(folded(loaded.detector))
    with torch.inference_mode():
        seen.run(images)
    rounded = [
        item for item in seen.histograms if item not in loaded.detector.outline.names
    ]  # the heads are not
    for bins in (128, 2048):  # ONNX Runtime's own choice, and TensorRT's
        with tempfile.TemporaryDirectory() as place:
            calibrator = EntropyCalibrater(
                folder / DEPLOYED / f"{name}_fp32.onnx",
                augmented_model_path=f"{place}/augmented.onnx",
                symmetric=True,
                num_bins=bins,
                num_quantized_bins=128,
            )
            calibrator.augment_graph()
            calibrator.create_inference_session()
            calibrator.collect_data(Reader(images))
            found = calibrator.compute_data()
        theirs = {
            item: float(max(abs(low), abs(high)))
            for item in rounded
            for low, high in [found[item].range_value]
        }
        near = sum(abs(theirs[item] / ours[item].amax - 1) <= 0.05 for item in rounded)
        better = [
            statistics.median(sqnr(*seen.histograms[item], amax) for item, amax in ranges)
            for ranges in (((item, ours[item].amax) for item in rounded), theirs.items())
        ]
        yield Figure(
            f"{name}: entropy ranges near ONNX Runtime's of {bins} bins",
            f"{near} of {len(rounded)}; median SQNR {better[0]:.1f} dB, theirs {better[1]:.1f}",
            "all within 5 %, or a better SQNR",
            near == len(rounded) or better[0] > better[1],
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="keep everything there")
    args = parser.parse_args()
    start = time.monotonic()
    # Specs name their files from the current folder, for the commands as for what is measured in this process.
    with workplace(args.results_dir) as folder, contextlib.chdir(folder):
        figures = list(measure(Path.cwd()))
    rows = [(*figure[:3], "yes" if figure.reached else "NO") for figure in figures]
    table(
        ("8 bits on BCCD", "measured", "wanted", "reached"), rows, title=f"{time.monotonic() - start:.0f} s"
    )
    raise SystemExit(not all(figure.reached for figure in figures))


if __name__ == "__main__":
    main()

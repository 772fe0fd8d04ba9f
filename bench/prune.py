"""Pruning on BCCD: a ResNet18 trained, pruned to a tenth, retrained, measured; every figure in one table.

    python bench/prune.py [-r DIR]    # about an hour on two cores; with DIR it goes on where it was cut

The commands are those of specs/bccd/resnet18.txt. The exit code is 1 when one of the wanted figures is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from detectkit import spec
from detectkit.compress.prune import Pruner, find_threshold, widths
from detectkit.console import table
from detectkit.deploy.latency import latencies, onnx_run
from detectkit.deploy.onnx import to_onnx
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, build, parameters

ROOT = Path(__file__).resolve().parent.parent
DETECTKIT = Path(sys.executable).with_name("detectkit")
SHARE = 0.108  # of the parameters: that of the TLT tutorial
SPEC = "specs/bccd/resnet18.txt"
RESULTS = Path("results/bccd")
ORIGINAL = RESULTS / "resnet18/weights/model.safetensors"
PRUNED = RESULTS / "pruned.safetensors"
RETRAINED = RESULTS / "retrained/weights/model.safetensors"


class Figure(NamedTuple):
    """A line of the table."""

    what: str
    value: str
    wanted: str
    reached: bool


def run(command: str, folder: Path) -> str:
    """Run one command in a folder and show it; gives what it printed, leaves with its exit code when it fails."""
    print(f"$ detectkit {command}", flush=True)
    done = subprocess.run([DETECTKIT, *command.split()], cwd=folder, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def accuracy(model: Path, name: str, folder: Path) -> float:
    """mAP in points on the test images."""
    results = RESULTS / f"evaluation_{name}"
    run(f"evaluate -e {SPEC} -m {model} -r {results}", folder)
    return 100 * float(json.loads((folder / results / "results.json").read_text())["mean_average_precision"])


def measure(folder: Path) -> Iterator[Figure]:
    """The whole way, figure by figure."""
    for half in ("train", "test"):
        if not list((folder / RESULTS / "records").glob(f"{half}-fold*")):
            run(f"convert -d specs/bccd/convert_{half}.txt -o {RESULTS}/records/{half}", folder)
    run(f"train -e {SPEC} -r {RESULTS}/resnet18", folder)
    run(f"prune -e {SPEC} -m {ORIGINAL} -o {PRUNED}", folder)
    run(f"train -e {RESULTS}/pruned_retrain.txt -r {RESULTS}/retrained", folder)
    before, after = accuracy(ORIGINAL, "resnet18", folder), accuracy(RETRAINED, "retrained", folder)
    original, retrained = checkpoint.load(folder / ORIGINAL), checkpoint.load(folder / RETRAINED)
    share = parameters(retrained.detector) / parameters(original.detector)
    yield Figure("parameters left", f"{share:.4f}", f"<= {SHARE}", share <= SHARE)
    yield Figure("mAP after retraining", f"{after:.2f} (was {before:.2f})", "within 1", after >= before - 1)
    yield from speed(original, retrained)
    yield from sweep(original, folder)
    yield from zeroed(original)
    yield resnet50(original.spec)


def size(model: checkpoint.Model) -> dict[str, int]:
    pre = model.spec.augmentation_config.preprocessing
    return {"height": pre.output_image_height, "width": pre.output_image_width}


def speed(original: checkpoint.Model, retrained: checkpoint.Model) -> Iterator[Figure]:
    """ONNX Runtime, side by side."""
    models = [to_onnx(model.detector, **size(original)) for model in (original, retrained)]
    for batch_size in (1, 8):
        before, after = latencies([onnx_run(model, batch_size=batch_size) for model in models])
        value = f"{before / after:.2f}x ({1000 * before:.0f} to {1000 * after:.0f} ms)"
        yield Figure(f"faster, batch {batch_size}", value, ">= 3x", before >= 3 * after)


def sweep(original: checkpoint.Model, folder: Path) -> Iterator[Figure]:
    """The thresholds of `--sweep` with the granularity of 8 that is the default."""
    printed = run(f"prune -m {ORIGINAL} -o {RESULTS}/sweep --sweep", folder)
    rows = [row for row in (line.split() for line in printed.splitlines()) if len(row) == 5]
    rows = [row for row in rows if row[4].replace(".", "").isdigit()]  # milliseconds
    slowest = max(float(row[3]) for row in rows)
    yield Figure(f"slowest of {len(rows)} thresholds", f"{slowest:.2f} of the time", "<= 1", slowest <= 1)
    pruner = Pruner(original.detector, spec.PruningConfig(), original.spec)
    networks = [pruner.pruned(float(row[0])).detector for row in rows]
    pairs = [width for network in networks for width in widths(original.detector, network)]
    odd = [width for width in pairs if width.after % 8 and not width.layer.startswith("output_")]
    yield Figure("widths that are no multiples of 8", f"{len(odd)} of {len(pairs)}", "0", not odd)


def zeroed(original: checkpoint.Model) -> Iterator[Figure]:
    """The narrowed network against the original in which no layer sees the channels that are left out."""
    pruner = Pruner(original.detector, spec.PruningConfig(), original.spec)
    thresholds = pruner.thresholds()
    images = torch.rand(2, 3, *size(original).values(), generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for part in (0.25, 0.5, 0.9):
        threshold = thresholds[int(part * len(thresholds))]
        with torch.no_grad(), blinded(pruner, threshold):
            expected = original.detector(images)
        with torch.no_grad():
            found = pruner.pruned(threshold).detector(images)
        differences = (float((one - two).abs().max()) for one, two in zip(expected, found, strict=True))
        worst = max(worst, *differences)
    yield Figure("narrowed against zeroed, 3 thresholds", f"{worst:.1e}", "<= 1e-5", worst <= 1e-5)


@contextlib.contextmanager
def blinded(pruner: Pruner, threshold: float) -> Iterator[None]:
    """Give every convolution zeros in the place of the channels that go at a threshold."""
    kept = pruner.kept(threshold)
    hooks = []
    for name, groups in pruner.wiring.takes.items():
        mask = torch.cat([torch.zeros(group.width).index_fill(0, kept[group], 1.0) for group in groups])
        layer = pruner.detector.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            hooks.append(
                layer.register_forward_pre_hook(lambda _, inputs, mask=mask: inputs[0] * mask[:, None, None])
            )
    yield
    for hook in hooks:
        hook.remove()


def resnet50(experiment: spec.Experiment) -> Figure:
    """Reading the graph, weighing the filters, finding the threshold of a target, narrowing."""
    config = spec.ModelConfig(arch="resnet", num_layers=50, use_batch_norm=True)
    network: Detector = build(config, ["car"], 3)
    start = time.perf_counter()
    pruner = Pruner(network, spec.PruningConfig(), experiment)
    whole = parameters(network)
    threshold = find_threshold(
        pruner, lambda smaller: parameters(smaller) / whole, SHARE, name="target_params"
    )
    pruner.pruned(threshold)
    seconds = time.perf_counter() - start
    return Figure("pruning ResNet50, without files and times", f"{seconds:.1f} s", "< 10 s", seconds < 10)


@contextlib.contextmanager
def workplace(results: Path | None) -> Iterator[Path]:
    """A folder with the specs and the data: `results`, or one that goes in the end."""
    with contextlib.ExitStack() as stack:
        folder = results or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for inputs in ("specs", "data"):
            if not (folder / inputs).exists():
                (folder / inputs).symlink_to(ROOT / inputs)
        yield folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-r", "--results_dir", type=Path, metavar="DIR", help="keep everything there")
    args = parser.parse_args()
    with workplace(args.results_dir) as folder:
        figures = list(measure(folder))
    rows = [(*figure[:3], "yes" if figure.reached else "NO") for figure in figures]
    table(("ResNet18 on BCCD", "measured", "wanted", "reached"), rows)
    raise SystemExit(not all(figure.reached for figure in figures))


if __name__ == "__main__":
    main()

"""Training throughput as a fraction of the bare forward, backward and Adam step of the same network.

    python bench/throughput.py [--rounds 3]

ResNet18 at 1248x384, batch 4, JPEG files on disk, one loader process (on a GPU: as many as there are cores). Rounds of
both alternate in one process; a training round is a short epoch, its loader started anew. The ratio is of medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from detectkit import spec
from detectkit.data.convert import convert
from detectkit.predict import default_device
from detectkit.train import loop, optim
from detectkit.train.run import Run, set_up

WIDTH, HEIGHT, BATCH = 1248, 384, 4
CLASSES = ("car", "pedestrian", "cyclist")
SPEC = Path(__file__).parent.parent / "specs/demo/train.txt"


def write_images(root: Path, count: int) -> None:
    """Photograph-like JPEGs (smooth noise) with ten boxes each, in KITTI layout."""
    generator = np.random.default_rng(0)
    for folder in ("image_2", "label_2"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        coarse = generator.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        image.save(root / f"image_2/{number:04d}.jpg", quality=90)
        lines = []
        for box in range(10):
            x, y = int(generator.integers(0, WIDTH - 120)), int(generator.integers(0, HEIGHT - 80))
            lines.append(f"{CLASSES[box % 3]} 0 0 0 {x} {y} {x + 120} {y + 80} 0 0 0 0 0 0 0")
        (root / f"label_2/{number:04d}.txt").write_text("\n".join(lines))


def experiment(root: Path, workers: int) -> spec.Experiment:
    """The demo's spec with KITTI's size, ResNet18 and three classes of its own."""
    text = SPEC.read_text()
    for old, new in zip(("zero", "one", "four"), CLASSES, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
    made = spec.loads(text)
    assert isinstance(made, spec.Experiment)
    source = made.dataset_config.data_sources[0]
    source.tfrecords_path, source.image_directory_path = str(root / "records-fold-*"), str(root)
    made.dataset_config.ClearField("dataset_split_type")
    pre = made.augmentation_config.preprocessing
    pre.output_image_width, pre.output_image_height = WIDTH, HEIGHT
    made.augmentation_config.spatial_augmentation.hflip_probability = 0.5
    made.model_config.num_layers = 18
    made.model_config.ClearField("training_precision")  # both sides in float32
    made.training_config.batch_size_per_gpu, made.training_config.workers = BATCH, workers
    made.training_config.ClearField("visualizer")
    return made


def records(root: Path) -> None:
    export = spec.DatasetExportConfig(image_directory_path=str(root))
    kitti = export.kitti_config
    kitti.root_directory_path, kitti.image_dir_name, kitti.label_dir_name = str(root), "image_2", "label_2"
    kitti.image_extension, kitti.partition_mode = ".jpg", "random"
    kitti.num_partitions, kitti.num_shards, kitti.val_split = 2, 1, 0
    convert(export, str(root / "records"))


def synchronized() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def training_round(run: Run) -> float:
    """Seconds a step of one epoch of `detectkit train`."""
    start = synchronized()
    for _ in loop.epoch_steps(run):
        pass
    seconds = (synchronized() - start) / run.steps
    run.state.epoch, run.state.step = run.state.epoch + 1, 0
    return seconds


def bare_round(run: Run, steps: int) -> float:
    """Seconds a step of the network alone on random tensors that are there already."""
    network = run.state.detector
    optimizer = optim.make_optimizer(network, run.config.optimizer)
    images = torch.rand(BATCH, 3, HEIGHT, WIDTH, device=run.device).to(memory_format=torch.channels_last)
    start = synchronized()
    for _ in range(steps):
        coverage, bbox = network(images)
        optimizer.zero_grad(set_to_none=True)
        (coverage.mean() + bbox.abs().mean()).backward()
        optimizer.step()
    return (synchronized() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    device = default_device()
    workers, steps = (os.cpu_count() or 1, 50) if device.type == "cuda" else (1, 6)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, steps * BATCH)
        records(root)
        run = set_up(experiment(root, workers), root / "results", name="model", device=device)
        bare_round(run, 1), training_round(run)  # the first steps choose kernels and fill caches
        pairs = [(bare_round(run, steps), training_round(run)) for _ in range(rounds)]
    bare, training = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(
        f"{device.type}, {workers} loader processes: training {BATCH / training:.2f} images/s,"
        f" bare step {BATCH / bare:.2f} images/s, ratio {bare / training:.3f} (of {rounds} rounds:"
        f" {', '.join(f'{b / t:.3f}' for b, t in pairs)})"
    )


if __name__ == "__main__":
    main()

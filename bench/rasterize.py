"""Rasterising a batch of targets as a part of one training step of a ResNet18 at 384x1248; the limit is 3 %.

The step is forward, backward and Adam on random images: no loading, no augmentation. Usage: python bench/rasterize.py
[DEVICE], cpu by default.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from detectkit.ops.rasterize import ClassGeometry, rasterize

IMAGES, CLASSES, BOXES, WIDTH, HEIGHT, STRIDE = 16, 3, 30, 1248, 384, 16


def network() -> nn.Module:
    """ResNet18 at stride 16 with a coverage and a box head, as DetectNet_v2 has it."""
    backbone = resnet18()
    backbone.layer4[0].conv1.stride = backbone.layer4[0].downsample[0].stride = (1, 1)
    return nn.Sequential(*list(backbone.children())[:-2], nn.Conv2d(512, 5 * CLASSES, 1))


def scene(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes as on a road: 20 to 250 pixels wide, 15 to 150 high."""
    count = IMAGES * CLASSES * BOXES
    size = torch.rand(count, 2) * torch.tensor([230.0, 135.0]) + torch.tensor([20.0, 15.0])
    corner = torch.rand(count, 2) * (torch.tensor([WIDTH, HEIGHT]) - size)
    index = torch.arange(count)
    boxes = torch.cat((corner, corner + size), dim=1)
    return boxes.to(device), (index % IMAGES).to(device), (index // IMAGES % CLASSES).to(device)


def median_seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[1:])[repeats // 2]  # the first call warms up


def main(device: str) -> None:
    torch.manual_seed(0)
    model, images = network().to(device), torch.rand(IMAGES, 3, HEIGHT, WIDTH, device=device)
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    boxes, image_index, class_index = scene(device)
    geometry = ClassGeometry(
        *(torch.full((CLASSES,), value, device=device) for value in (0.5, 0.5, 0.4, 0.4, 1.0))
    )

    def targets() -> object:
        return rasterize(
            boxes,
            image_index,
            class_index,
            batch_size=IMAGES,
            geometry=geometry,
            deadzone_radius=0.67,
            stride=STRIDE,
            grid_width=WIDTH // STRIDE,
            grid_height=HEIGHT // STRIDE,
            scale=35.0,
            offset=0.5,
        )

    ours, whole = median_seconds(targets, 15, device), median_seconds(
        step, 3 if device == "cpu" else 15, device
    )
    print(
        f"rasterize: {100 * ours / whole:.2f} % of a training step (limit 3 %): {1000 * ours:.1f} ms of {whole:.3f} s, "
        f"{IMAGES} images x {CLASSES} classes x {BOXES} boxes, {device}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main(*sys.argv[1:] or ["cpu"])

"""Learning what a trained network sees, beside the labels (knowledge distillation by features)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectkit import spec
from detectkit.console import log
from detectkit.errors import ModelError, UsageError
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, parameters
from detectkit.ops.losses import correlation_cost
from detectkit.spec.networks import is_keras
from detectkit.train.step import Forwarded, Term

FIELD = "training_config.distillation.teacher_model_file"


class Teacher(Term):
    """A network whose features, the last level of its backbone, are to be found again in those of the network that is trained.

    The student's go through a convolution to the teacher's channels, which is trained with it and thrown away at the end
    (FitNets, Romero et al. 2015), and are then correlated with them (PKD, Cao et al. 2022).

    Args:
        network: the teacher.
        channels: of the student's features.
        weight: of the cost.
        number_format: in which the teacher's features are computed.
    """

    name = "teacher"

    def __init__(
        self, network: Detector, *, channels: int, weight: float, number_format: torch.dtype
    ) -> None:
        network.ranges = None  # in 8-bit rounding it would be less sure of what it knows
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.module = self.adapter = nn.Conv2d(channels, network.backbone.levels[-1].channels, kernel_size=1)
        self.adapter.to(next(network.parameters()).device)
        self.weight, self.number_format = weight, number_format

    def cost(self, images: Tensor, features: Tensor) -> Tensor:
        """What the student has missed in a batch, [], unweighted; correlated in 32 bits.

        Args:
            images: [B, c, H, W], channels last, as the student has seen them.
            features: [B, n, h, w], the student's, of its last level.
        """
        is_short = self.number_format != torch.float32
        with (
            torch.no_grad(),
            torch.autocast(
                images.device.type, dtype=self.number_format if is_short else None, enabled=is_short
            ),
        ):
            *_, own = self.network.backbone(self.network.normalize(images))
        return correlation_cost(self.adapter(features.float()), own)

    def __call__(self, forwarded: Forwarded) -> Tensor:
        """The same of a batch that the student has seen."""
        return self.cost(forwarded.images, forwarded.features[-1])

    def state(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "teacher": self.digest()}

    def restore(self, content: Mapping[str, Any], path: Path) -> None:
        if content["teacher"] != self.digest():
            raise UsageError(
                f"{path.parent} holds a run with another teacher, whose file has changed since: put it back, use another -r,"
                f" or delete {path} to start again"
            )
        self.adapter.load_state_dict(content["adapter"])

    def digest(self) -> str:
        """Of its weights: two teachers are the same where they have the same, wherever their files are."""
        found = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()


def load_teacher(
    experiment: spec.Experiment, results: Path, student: Detector, *, number_format: torch.dtype
) -> Teacher | None:
    """The teacher that `training_config.distillation` names, if any, on the student's device.

    Args:
        results: of the run; what it writes there cannot be its teacher.

    Raises:
        ModelError: no such model, or one of other cells or images than the student.
        UsageError: it is in `results`.
    """
    config = experiment.training_config.distillation
    if not spec.has_teacher(config):
        return None
    path = Path(config.teacher_model_file).expanduser()
    if results.resolve() in path.resolve().parents:
        raise UsageError(f"{FIELD}: {path} is in {results}, where this run writes its models: use another -r")
    network = read_teacher(path, experiment, student).to(next(student.parameters()).device)
    log.info(
        f"taught by {path}, of {parameters(network):,} parameters: the cost counts {config.weight:g} of what is missed of"
        " its features, too"
    )
    channels = student.backbone.levels[-1].channels
    return Teacher(network, channels=channels, weight=config.weight, number_format=number_format)


def read_teacher(path: Path, experiment: spec.Experiment, student: Detector) -> Detector:
    """The network of a model file, if it can be the teacher of another; errors as `load_teacher`."""
    if not path.is_file():
        raise ModelError(f"{FIELD}: there is no file {path}; put it back, or correct the path")
    try:
        network = checkpoint.load(path, experiment=experiment).detector
    except ModelError as error:
        other = f"; if it is another network than this spec's: detectkit export -e ITS_SPEC -m {path} -o TEACHER.safetensors"
        raise ModelError(f"{FIELD}: {error}{other if is_keras(str(path)) else ''}") from error
    for what, their, our in (
        ("stride", network.outline.levels[-1].stride, student.outline.levels[-1].stride),
        ("channels of images", network.channels, student.channels),
    ):
        if their != our:
            raise ModelError(
                f"{FIELD}: {path} cannot teach this network: {what} {their} there, {our} here; name another model"
            )
    return network

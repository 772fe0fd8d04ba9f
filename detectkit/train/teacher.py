"""Learning what a trained network sees, beside the labels (knowledge distillation by features)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from detectkit import spec
from detectkit.console import log
from detectkit.errors import ModelError
from detectkit.model import checkpoint
from detectkit.model.detector import Detector, parameters
from detectkit.ops.losses import correlation_cost


class Teacher:
    """A network whose features, which are what its heads get, are to be found again in those of the network that is trained.

    The student's go through a convolution to the teacher's channels, which is trained with it and thrown away at the end
    (FitNets, Romero et al. 2015), and are then correlated with them (PKD, Cao et al. 2022).

    Args:
        network: the teacher.
        student: its features are seen from now on.
        weight: of the cost.
    """

    def __init__(self, network: Detector, student: Detector, *, weight: float) -> None:
        self.network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        own, students = (net.output_cov.in_channels for net in (network, student))
        self.adapter = nn.Conv2d(students, own, kernel_size=1).to(next(network.parameters()).device)
        self.weight = weight
        self._own: list[Tensor] = []  # features of the last run
        self._students: list[Tensor] = []
        _keep_features(network, self._own)
        _keep_features(student, self._students)

    def cost(self, images: Tensor) -> Tensor:
        """What the student has missed in the batch that it has just seen, a scalar; computed in 32 bits.

        Args:
            images: [B, c, H, W], channels last, as the student has seen them.
        """
        with torch.no_grad():
            self.network(images)
        return self.weight * correlation_cost(self.adapter(self._students.pop().float()), self._own.pop())


def _keep_features(network: Detector, found: list[Tensor]) -> None:
    """Keep what the heads get in the last run, [B, n, h, w]."""
    network.output_cov.register_forward_pre_hook(lambda layer, inputs: found.__setitem__(slice(None), inputs))


def load_teacher(experiment: spec.Experiment, student: Detector) -> Teacher | None:
    """The teacher that `training_config.distillation` names, if any, on the student's device.

    Raises:
        ModelError: no such model, or one of other cells or images than the student.
    """
    config = experiment.training_config.distillation
    if not spec.has_teacher(config):
        return None
    path = Path(config.teacher_model_file).expanduser()
    if not path.is_file():
        raise ModelError(
            f"training_config.distillation.teacher_model_file: there is no file {path}; correct the path, or leave"
            " distillation out to train on the labels alone"
        )
    network = checkpoint.load(path, next(student.parameters()).device, experiment=experiment).detector
    for what, their, our in (
        ("stride", network.stride, student.stride),
        ("channels of images", network.channels, student.channels),
    ):
        if their != our:
            raise ModelError(
                f"{path} cannot teach this network: {what} {their} there, {our} here; name another teacher_model_file in"
                " training_config.distillation"
            )
    log.info(f"taught by {path}, of {parameters(network):,} parameters, beside the labels")
    return Teacher(network, student, weight=config.weight)

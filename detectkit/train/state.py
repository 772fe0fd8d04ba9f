"""Everything that a run needs to go on where it was cut, in one file that holds data only."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from detectkit.errors import ModelError
from detectkit.files import atomic_write
from detectkit.model.detector import Detector
from detectkit.model.pretrained import UNREADABLE
from detectkit.ops.schedule import Plateau
from detectkit.train.average import WeightAverage
from detectkit.train.precision import CostScale
from detectkit.train.teacher import Teacher
from detectkit.train.weighting import ObjectiveWeights

FORMAT = 3


@dataclass
class State:
    """A run in progress: what changes while it trains.

    `images` is the size of the training set. `epoch` and `step` are the position: epochs done, and batches done of the
    epoch under way. `stage` is the number of the stage, and `stage_start` the epochs done when it began. `history` has
    one entry an epoch: epoch, cost, learning_rate, stage where there are two, cost_scale_exponent where the cost is
    scaled, and, where it was validated, mean_average_precision and average_precision by class (None without labels) and
    validation_cost; where the run ended, and again where one that was given more epochs did, also
    training_mean_average_precision.
    """

    detector: Detector
    weights: ObjectiveWeights
    images: int
    average: WeightAverage | None = None
    teacher: Teacher | None = None
    scale: CostScale | None = None
    optimizer: Optimizer = field(init=False)  # made with each stage
    epoch: int = 0
    step: int = 0
    stage: int = 0
    stage_start: int = 0
    plateau: Plateau = Plateau()  # of the stage under way
    cost_sum: Tensor = field(default_factory=lambda: torch.zeros(()))  # over the steps of the epoch under way
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def trained(self) -> nn.Module:
        """What an optimizer moves: the detector, and what compares it with its teacher."""
        return nn.ModuleList([self.detector, self.teacher.adapter]) if self.teacher else self.detector

    @property
    def result(self) -> Detector:
        """The network that is validated and saved: the average where there is one, else the one that is trained."""
        return self.average.detector if self.average else self.detector


def save(path: Path, state: State, spec_text: str) -> None:
    """Write the state so that a crash leaves the old file or the new one.

    Gradients are not in it: save between two moves of the weights.

    Raises:
        OutputError: no space or no permission.
    """
    content = {
        "format": FORMAT,
        "spec": spec_text,
        "detector": state.detector.state_dict(),
        "frozen": sorted(state.detector.frozen),
        "average": state.average.state() if state.average else None,
        "adapter": state.teacher.adapter.state_dict() if state.teacher else None,
        "teacher": state.teacher.digest() if state.teacher else None,
        "optimizer": state.optimizer.state_dict(),
        "cost_scale_exponent": float(state.scale.exponent) if state.scale else None,
        "weights": state.weights.state(),
        "images": state.images,
        "position": [state.epoch, state.step],
        "stage": [state.stage, state.stage_start],
        "plateau": list(state.plateau),
        "cost_sum": state.cost_sum.cpu(),
        "best": state.best,
        "history": state.history,
    }
    buffer = io.BytesIO()  # torch.save hides the reason of a failed write; a plain file tells it
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read(path: Path) -> dict[str, Any]:
    """The content of a state file.

    Raises:
        ModelError: damaged, or written by another version.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"]
    except PermissionError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise ModelError(
            f"{path} is damaged and cannot be resumed from: delete it to start the run again"
        ) from error
    if found != FORMAT:
        raise ModelError(
            f"{path} has format {found}, this version reads {FORMAT}: use the version that wrote it"
        )
    return content


def restore(state: State, content: dict[str, Any]) -> None:
    """Put what `read` gave into a run that was set up from the same spec, with its detector filled and its stage begun."""
    state.optimizer.load_state_dict(content["optimizer"])
    if state.average:
        state.average.restore(content["average"])
    if state.teacher:
        state.teacher.adapter.load_state_dict(content["adapter"])
    if state.scale and content["cost_scale_exponent"] is not None:
        state.scale.exponent.fill_(content["cost_scale_exponent"])
    state.weights.restore(content["weights"])
    state.epoch, state.step = content["position"]
    state.stage, state.stage_start = content["stage"]
    state.plateau = Plateau(*content["plateau"])
    state.cost_sum, state.best, state.history = content["cost_sum"], content["best"], content["history"]

"""Everything that a run needs to go on where it was cut, in one file that holds data only."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from detectkit import __version__
from detectkit.errors import ModelError
from detectkit.files import atomic_write
from detectkit.heads import Balance
from detectkit.model.detector import Detector
from detectkit.model.pretrained import UNREADABLE
from detectkit.ops.schedule import Plateau
from detectkit.spec.stored import WRITER, other_writer
from detectkit.train.average import WeightAverage
from detectkit.train.precision import CostScale
from detectkit.train.step import Task, Term

FORMAT = 4
UNSEALED = 3  # the format that differs by having no checksum
DIGEST = hashlib.sha256  # of what torch has written, behind it
PLOTTED = {"cost", "learning_rate"}  # of each epoch
# What every state of this format has besides its number and its writer, and of which types. What a term of the cost has
# not there is None; one that is not named here has entries beside these.
PARTS: dict[str, type | tuple[type, ...]] = {
    "spec": str,
    "detector": dict,
    "frozen": list,
    "average": (dict, type(None)),
    "adapter": (dict, type(None)),
    "teacher": (str, type(None)),
    "optimizer": dict,
    "cost_scale_exponent": (float, type(None)),
    "weights": dict,
    "images": int,
    "position": list,
    "stage": list,
    "plateau": list,
    "cost_sum": Tensor,
    "best": float,
    "history": list,
}


@dataclass
class State:
    """A run in progress: what changes while it trains.

    `terms` is what the cost is the sum of, in this order. `images` is the size of the training set. `epoch` and `step` are the position: epochs done, and batches done of the
    epoch under way. `stage` is the number of the stage, and `stage_start` the epochs done when it began. `history` has
    one entry an epoch: epoch, cost, learning_rate, stage where there are two, cost_scale_exponent where the cost is
    scaled, and, where it was validated, mean_average_precision and average_precision by class (None without labels) and
    validation_cost; where the run ended, and again where one that was given more epochs did, also
    training_mean_average_precision.
    """

    detector: Detector
    terms: list[Term]
    images: int
    average: WeightAverage | None = None
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
        """What an optimizer moves: the detector, and the modules of the terms."""
        modules = [term.module for term in self.terms if term.module is not None]
        return nn.ModuleList([self.detector, *modules])

    @property
    def balance(self) -> Balance:
        """Of the head's costs."""
        return next(term.balance for term in self.terms if isinstance(term, Task))

    @property
    def remembered(self) -> dict[str, Any]:
        """The entries of all terms in a resume file."""
        return {name: value for term in self.terms for name, value in term.state().items()}

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
    content = dict.fromkeys(PARTS) | {
        "format": FORMAT,
        WRITER: __version__,
        "spec": spec_text,
        "detector": state.detector.state_dict(),
        "frozen": sorted(state.detector.frozen),
        "average": state.average.state() if state.average else None,
        "optimizer": state.optimizer.state_dict(),
        "cost_scale_exponent": float(state.scale.exponent) if state.scale else None,
        "images": state.images,
        "position": [state.epoch, state.step],
        "stage": [state.stage, state.stage_start],
        "plateau": list(state.plateau),
        "cost_sum": state.cost_sum.cpu(),
        "best": state.best,
        "history": state.history,
        **state.remembered,
    }
    with atomic_write(path) as temporary:
        write(temporary, content)


def write(path: Path, content: Any) -> None:
    """Write what `read` reads: what torch makes of the content, and its checksum."""
    buffer = io.BytesIO()  # torch.save hides the reason of a failed write; a plain file tells it
    torch.save(content, buffer)
    buffer.write(DIGEST(buffer.getbuffer()).digest())
    path.write_bytes(buffer.getbuffer())


def read(path: Path) -> dict[str, Any]:
    """The content of a state file.

    Raises:
        ModelError: damaged, or written by another version.
    """
    try:
        data = path.read_bytes()
        content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = content["format"]
    except PermissionError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    except UNREADABLE as error:
        raise damaged(path) from error
    writer = content.get(WRITER)
    if found not in (UNSEALED, FORMAT):
        raise ModelError(
            f"{path} has format {found}, this version reads {FORMAT}: use the version that wrote it{other_writer(writer)}"
        )
    size = DIGEST().digest_size
    if found != UNSEALED and DIGEST(data[:-size]).digest() != data[-size:]:
        raise damaged(path)
    unusable = [name for name, kind in PARTS.items() if not isinstance(content.get(name, ...), kind)]
    unusable = unusable or [name for name, is_sound in _judged(content) if not is_sound]
    if unusable:
        raise damaged(path, f"its {', '.join(unusable)} cannot be used{other_writer(writer)}")
    return content


def _judged(content: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """The parts of a state, and whether each can be what `save` has written."""
    (epoch, step), (stage, stage_start) = (
        value if len(value) == 2 and all(map(_is_count, value)) else (-1, -1)
        for value in (content["position"], content["stage"])
    )
    yield "position", epoch >= 0
    yield "stage", 0 <= stage_start <= epoch
    yield "history", len(content["history"]) == epoch and all(
        isinstance(entry, dict) and entry.get("epoch") == number and PLOTTED <= entry.keys()
        for number, entry in enumerate(content["history"], start=1)
    )
    yield "plateau", _is_plateau(content["plateau"])
    yield "detector", all(
        isinstance(value, Tensor) and bool(value.isfinite().all()) for value in content["detector"].values()
    )
    yield "frozen", all(isinstance(name, str) for name in content["frozen"])
    yield "cost_sum", content["cost_sum"].numel() == 1
    yield "best", not math.isnan(content["best"])
    yield "cost_scale_exponent", math.isfinite(content["cost_scale_exponent"] or 0.0)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_plateau(values: list[Any]) -> bool:
    if len(values) != len(Plateau._fields):
        return False
    cost, epoch, start, ended = values
    counts = _is_count(epoch) and (start is None or _is_count(start))
    return isinstance(cost, float) and not math.isnan(cost) and counts and isinstance(ended, bool)


def damaged(path: Path, why: str = "") -> ModelError:
    """The error of a state that nothing can go on from."""
    reason = f" ({why})" if why else ""
    return ModelError(
        f"{path} is damaged{reason} and cannot be resumed from: delete it to start the run again"
    )


def restore(state: State, content: dict[str, Any], path: Path, *, steps: int, stages: int) -> None:
    """Put what `read` gave into a run that was set up from the same spec, with its detector filled and its stage begun.

    Args:
        path: where it is from, for messages.
        steps: of an epoch.
        stages: how many there are.

    Raises:
        ModelError: it is no state of such a run.
        UsageError: it is one of a run with another teacher.
    """
    if content["position"][1] >= steps or content["stage"][0] >= stages:
        raise damaged(path, "its position is none of this run")
    try:
        for term in state.terms:
            term.restore(content, path)
        _restore(state, content)
    except UNREADABLE as error:
        raise damaged(path) from error


def _restore(state: State, content: dict[str, Any]) -> None:
    _restore_optimizer(state.optimizer, content["optimizer"])
    if state.average:
        state.average.restore(content["average"])
    if state.scale and content["cost_scale_exponent"] is not None:
        state.scale.exponent.fill_(content["cost_scale_exponent"])
    state.epoch, state.step = content["position"]
    state.stage, state.stage_start = content["stage"]
    state.plateau = Plateau(*content["plateau"])
    state.cost_sum, state.best, state.history = content["cost_sum"], content["best"], content["history"]


def _restore_optimizer(optimizer: Optimizer, content: dict[str, Any]) -> None:
    """Take over what it remembers; its settings are those of the spec. Raises ValueError."""
    settings = [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(content)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for weight, kept in optimizer.state.items():
        for value in kept.values():
            if isinstance(value, Tensor) and value.numel() != 1 and value.shape != weight.shape:
                raise ValueError("an optimizer of other weights")

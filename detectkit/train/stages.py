"""The stages of a run: the heads alone where the spec has a first stage, then everything."""

from __future__ import annotations

from typing import NamedTuple

from detectkit.errors import SpecError
from detectkit.ops.schedule import Plateau
from detectkit.spec import EarlyStoppingAnnealingScheduleConfig, LearningRateConfig, TrainingConfig
from detectkit.train import optim
from detectkit.train.state import State


class Stage(NamedTuple):
    """A part of a run with an optimizer and a learning rate of its own."""

    name: str  # as in logs and history
    heads_only: bool  # the backbone stays as it is, batch-norm statistics included
    epochs: int  # at most; an early-stopping schedule may end it before
    learning_rate: LearningRateConfig

    @property
    def early_stopping(self) -> EarlyStoppingAnnealingScheduleConfig | None:
        """The schedule that may end the stage early, if it has one."""
        if self.learning_rate.WhichOneof("learning_rate") == "early_stopping_annealing_schedule":
            return self.learning_rate.early_stopping_annealing_schedule
        return None


def stages(config: TrainingConfig) -> list[Stage]:
    """One or two."""
    everything = Stage("everything", False, config.num_epochs, config.learning_rate)
    if not config.HasField("first_stage"):
        return [everything]
    first = config.first_stage
    return [Stage("heads", True, first.num_epochs, first.learning_rate), everything]


def begin(state: State, config: TrainingConfig, number: int) -> None:
    """Go over to a stage: other weights are trained, with a new optimizer that remembers no gradients.

    Raises:
        SpecError: every weight of the stage is frozen.
    """
    stage = stages(config)[number]
    state.detector.freeze_backbone(stage.heads_only)
    if not any(weight.requires_grad for weight in state.detector.parameters()):
        where = "training_config.first_stage" if stage.heads_only else "model_config"
        raise SpecError(
            f"{where}: no weight is left to train: freeze fewer layers (freeze_blocks, freeze_pretrained_layers)"
        )
    state.optimizer = optim.make_optimizer(state.trained, config.optimizer)
    state.stage, state.stage_start, state.plateau = number, state.epoch, Plateau()

"""One pruning: from a model to its narrow file, the spec for retraining it, and the figures of what has changed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from detectkit import spec
from detectkit.compress.accuracy import Left, what_is_left
from detectkit.compress.prune import prune
from detectkit.compress.retrain import prune_and_retrain, save_pruned
from detectkit.compress.yardstick import Yardstick
from detectkit.console import log
from detectkit.files import atomic_write, locked
from detectkit.model.checkpoint import Model
from detectkit.model.detector import Detector, parameters
from detectkit.spec import PruningConfig
from detectkit.spec.schema import short
from detectkit.trackers import without_key

LITTLE = 0.4  # of mAP: with less, retraining was seen to fall short of it


class PruningJob(NamedTuple):
    """What is pruned, and how."""

    model: Model
    path: Path  # of the model
    experiment: spec.Experiment  # for retraining
    config: PruningConfig
    yardstick: Yardstick
    output: Path  # the pruned model
    retraining: Path  # the spec for training it again

    @property
    def trains(self) -> bool:
        """Whether the spec says how to train, so that one for retraining can be made of it."""
        return self.experiment.HasField("training_config")


class PruningFigures(NamedTuple):
    """The original and the pruned network, before and after."""

    parameters: tuple[int, int]
    gmacs: tuple[float, float]  # 1e9 multiplications an image
    mebibytes: tuple[float, float]  # of the files
    seconds: tuple[float, float]  # an image
    left: Left | None  # of the accuracy, where it was measured

    @property
    def ratio(self) -> float:
        """The share of the parameters that is left."""
        before, after = self.parameters
        return after / before

    @property
    def time(self) -> float:
        """The share of the time that is left."""
        before, after = self.seconds
        return after / before

    def kpi(self) -> dict[str, float]:
        """TLT's figures for status.jsonl, and mAP."""
        found = {
            "pruning_ratio": self.ratio,
            "size": self.mebibytes[1],
            "param_count": self.parameters[1] / 1e6,
        }
        if self.left is not None:
            found |= {
                "mean_average_precision_before": self.left.before,
                "mean_average_precision": self.left.after,
            }
            if self.left.share is not None:
                found["mean_average_precision_left"] = self.left.share
        return found


def prune_model(job: PruningJob, results: Path | None) -> Model:
    """Prune, with training in between if the spec says so.

    Args:
        results: the folder of the training; needed for more than one iteration.

    Raises:
        SpecError, ModelError, DataError, OutputError, Interrupted: as pruning and training do.
    """
    model, config, sizes = job.model, job.config, job.yardstick.sizes
    if config.iterations > 1:
        assert results is not None
        with locked(results):
            return prune_and_retrain(model, job.experiment, config, results, sizes=sizes, teacher=job.path)
    pruned = prune(model.detector, config, experiment=job.experiment, sizes=sizes)
    if pruned.threshold is not None:
        text, aim = short(pruned.threshold), config.WhichOneof("aim")
        found = f", found for {aim}: the same again with -pth {text}" if aim in sizes else ""
        log.info(f"threshold {text}{found}")
    return model._replace(detector=pruned.detector)


def measure_left(job: PruningJob, pruned: Detector) -> Left | None:
    """What is left of the accuracy, with a warning where it is little; None: there is nothing to measure it on."""
    left = what_is_left(job.model.detector, pruned, job.experiment)
    if left is None or left.share is None or job.config.iterations > 1:
        return left
    if left.share < LITTLE:
        log.warning(
            f"mAP {100 * left.after:.2f} is left of {100 * left.before:.2f}: training again may not bring it back;"
            f" {_advice(job)}"
        )
    return left


def _advice(job: PruningJob) -> str:
    """What to change where little is left."""
    config = job.config
    aim = config.WhichOneof("aim")
    less = f"raise {aim}" if aim in job.yardstick.sizes else "lower threshold (-pth)"
    if config.criterion != PruningConfig.TAYLOR:
        return f"set criterion: TAYLOR with a target in pruning_config, or {less}"
    return f"{less}, or set iterations: 3 in pruning_config, which trains in between"


def save_results(job: PruningJob, model: Model, left: Left | None) -> None:
    """Write the pruned model, and the spec for retraining it where the spec trains and has not done so in between.

    Raises:
        OutputError: a file cannot be written.
    """
    save_pruned(job.output, model, job.config)
    if job.config.iterations == 1 and job.trains:
        with atomic_write(job.retraining) as path:
            path.write_text(_retraining_text(job, left), encoding="utf-8")


def _retraining_text(job: PruningJob, left: Left | None) -> str:
    experiment, kept = without_key(job.experiment), left.share if left is not None else None
    again = spec.retraining_spec(experiment, job.output, job.config.retraining, kept=kept, teacher=job.path)
    return spec.dumps(again)


def measure_figures(job: PruningJob, pruned: Detector, left: Left | None) -> PruningFigures:
    """What a pruning has changed, of networks whose files are written."""
    networks = job.model.detector, pruned
    seconds = job.yardstick.seconds(*networks)
    return PruningFigures(
        parameters=(parameters(networks[0]), parameters(pruned)),
        gmacs=(job.yardstick.gmacs(networks[0]), job.yardstick.gmacs(pruned)),
        mebibytes=(job.path.stat().st_size / 2**20, job.output.stat().st_size / 2**20),
        seconds=(seconds[0], seconds[1]),
        left=left,
    )


def warn_of_size(config: PruningConfig, figures: PruningFigures) -> None:
    """Say where a pruning has missed what was wanted of it."""
    took = figures.time
    if figures.ratio == 1:
        log.warning(
            "nothing is left out: raise the threshold (-pth; --sweep shows what each one leaves) or lower"
            " min_num_filters (-nf)"
        )
    most = config.target_latency
    if config.HasField("target_latency") and took > most:
        log.warning(
            f"measured again it takes {took:.4f} of the time, more than the {most:g} of target_latency: times differ here"
            " from one minute to the next; prune again when the machine is idle, or aim lower"
        )

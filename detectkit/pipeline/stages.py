"""The stages of a run, in their order. To add one, write it as `RunStage` says, and put it here."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from detectkit.pipeline import products
from detectkit.pipeline.chain import Chain
from detectkit.pipeline.cleaning import CLEAN, SUGGEST
from detectkit.pipeline.converting import CONVERT
from detectkit.pipeline.deploying import CALIBRATE, ENGINE, EXPORT, runs_engines
from detectkit.pipeline.measuring import LATENCY, evaluation
from detectkit.pipeline.products import Product
from detectkit.pipeline.pruning import PRUNE, RETRAIN
from detectkit.pipeline.training import QAT, TRAIN
from detectkit.spec import Experiment

STAGES = (
    CLEAN,
    CONVERT,
    TRAIN,
    evaluation("float"),
    SUGGEST,
    PRUNE,
    evaluation("pruned"),
    RETRAIN,
    evaluation("retrained"),
    QAT,
    evaluation("qat"),
    CALIBRATE,
    EXPORT,
    evaluation("fp32"),
    evaluation("fp16"),
    evaluation("int8"),
    ENGINE,
    evaluation("engine", impossible=runs_engines),
    LATENCY,
)


def chain_of(experiment: Experiment, folder: Path) -> Chain:
    """A run of a spec in a folder, with all stages that there are."""
    return Chain(experiment, folder, STAGES)


def kept_products(
    folder: Path, content: object, experiment: Experiment | None, names: Collection[str]
) -> list[Product]:
    """The products of a run that is in a folder.

    Args:
        content: what run.json lists as its products; without a list, those count that its stages make today: it was
            written before there was one.
        experiment: the spec of the run; None: it cannot be read.
        names: of the stages of the run.
    """
    found = products.from_json(content, folder)
    if found is not None:
        return found
    chain = chain_of(experiment or Experiment(), folder)
    given = [] if TRAIN.name in names else chain.given
    return [*given, *(product for stage in STAGES if stage.name in names for product in stage.makes(chain))]

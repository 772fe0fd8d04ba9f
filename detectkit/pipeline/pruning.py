"""The stages that prune a network, and train again what is left."""

from __future__ import annotations

import json
from pathlib import Path

from detectkit.pipeline.basis import TABLES, Basis, Estimate
from detectkit.pipeline.chain import SPEC, Chain, Command, RunStage, teacher
from detectkit.pipeline.products import NETWORKS, Product, Role
from detectkit.pipeline.training import LEARNED, epochs_take, training
from detectkit.spec import (
    Experiment,
    PruningConfig,
    Rule,
    batch_size,
    chosen_criterion,
    only,
    retraining_spec,
)

RETRAIN_SPEC = "spec_retrain.txt"
UNKNOWN_SHARE = 0.5  # of the network that is left by a threshold
STEPS = 5  # of a pruning by images; each looks at all costs, and at what each image says of each filter
COMPARING = 5.0  # seconds of timing two networks, at most, and of exporting them
TRIES = 8  # networks that are timed until one is as fast as it has to be
MEASURED = 100  # images on which it measures what is left, at most


def _is_in_turns(chain: Chain) -> bool:
    """Whether the pruning itself trains again, after each of its turns."""
    return chain.experiment.pruning_config.iterations > 1


def _is_retrained(chain: Chain) -> bool:
    """Whether the pruned network is trained again by a stage of its own."""
    return PRUNE.wanted(chain) and chain.trains and not _is_in_turns(chain)


def _judges_by_images(chain: Chain) -> bool:
    """Whether pruning looks at what the cost of training images would lose."""
    config, data = chain.experiment.pruning_config, chain.experiment.dataset_config
    return chosen_criterion(config, data) == PruningConfig.TAYLOR


def _looks(chain: Chain) -> bool:
    """Whether pruning looks at images: to judge the filters, or because it trains in turns."""
    return _judges_by_images(chain) or _is_in_turns(chain)


def _spec(chain: Chain) -> Experiment:
    """Without what comes after it; data and training only where pruning looks at images."""
    kept = only(chain.experiment, Rule.PRUNING, *(LEARNED if _looks(chain) else ()))
    if not _is_in_turns(chain):
        kept.pruning_config.ClearField("retraining")
    return kept


def _reads(chain: Chain) -> list[str]:
    data = chain.sources(validation=_is_in_turns(chain)) if _looks(chain) else []
    taught = teacher(_retraining(chain)) if _is_in_turns(chain) else []
    return list(dict.fromkeys([*data, chain.last(*NETWORKS, before="prune"), *taught]))


def _commands(chain: Chain) -> list[Command]:
    model, pruned = chain.last(*NETWORKS, before="prune"), chain.path("prune", "pruned.safetensors")
    return [["prune", "-e", chain.path(SPEC), "-m", model, "-o", pruned, "-r", chain.path("prune")]]


def _makes(chain: Chain) -> list[Product]:
    role = Role.PASSING if _is_retrained(chain) else Role.NETWORK
    return [Product("pruned", "pruned", role, chain.path("prune", "pruned.safetensors"))]


def _takes(chain: Chain, basis: Basis) -> Estimate:
    config = chain.experiment.pruning_config
    aim = config.WhichOneof("aim")
    share = UNKNOWN_SHARE if aim in (None, "threshold") else getattr(config, aim)
    left = basis._replace(share=basis.share * share)
    seconds = min(COMPARING, 2.0 + 400 * basis.finding)
    if _judges_by_images(chain):
        seconds += 2 * STEPS * config.calibration_batches * batch_size(chain.experiment) * basis.learning
    seconds *= TRIES if aim == "target_latency" else 1
    seconds += 2 * MEASURED * basis.finding * chain.validates
    mib = basis.mib * left.share + TABLES
    if _is_in_turns(chain):
        retraining = _retraining(chain)
        half_way = basis._replace(share=(basis.share + left.share) / 2)
        epochs = retraining.training_config.num_epochs
        seconds += config.iterations * epochs_take(retraining, epochs, half_way).seconds
        mib += config.iterations * epochs_take(retraining, epochs, left).mib
    return Estimate(seconds, mib, leaves=left.share)


PRUNE = RunStage(
    name="prune",
    title="leaving out filters",
    wanted=lambda chain: chain.experiment.HasField("pruning_config"),
    commands=_commands,
    spec=_spec,
    reads=_reads,
    writes=lambda chain: [chain.path("prune", "pruned.safetensors")],
    takes=_takes,
    makes=_makes,
)


def _retraining(chain: Chain) -> Experiment:
    config = chain.experiment.pruning_config.retraining
    whole, pruned = (Path(chain.last(*NETWORKS, before=name)) for name in ("prune", "retrain"))
    return retraining_spec(chain.experiment, pruned, config, kept=_share_of_map(chain), teacher=whole)


def _share_of_map(chain: Chain) -> float | None:
    """The share of mAP that pruning has left, as it has written down; None: it is not done, or has not measured."""
    path = Path(chain.path("prune", "status.jsonl"))
    for line in reversed(path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        try:
            share = json.loads(line)["kpi"]["mean_average_precision_left"]
        except (ValueError, LookupError, TypeError):  # of another kind, or cut by a crash
            continue
        return float(share)
    return None


RETRAIN = training(
    "retrain",
    "training what is left",
    model=Product("retrained", "retrained", Role.NETWORK, ""),
    course="Retraining",
    wanted=_is_retrained,
    experiment=_retraining,
    spec_file=RETRAIN_SPEC,
)

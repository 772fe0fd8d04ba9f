"""What the stages of a run may take, before they are begun: seconds and MiB, right within a factor of about two.

A stage that was done before in the same folder takes what it took then. What the others take they say themselves, by
how long the network takes here, and by how many images there are; the constants are of an idle machine of two cores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


from detectkit.errors import DataError
from detectkit.pipeline import state as states
from detectkit.pipeline.basis import Basis, Estimate, size_mib
from detectkit.pipeline.chain import Chain
from detectkit.pipeline.converting import count_labels
from detectkit.pipeline.plan import TRAINED_WITH, Action, PlannedStage
from detectkit.pipeline.training import num_epochs
from detectkit.spec.stored import read_stored

NOTICED = 0.01  # seconds; what took less was not measured


def estimates(chain: Chain, steps: Sequence[PlannedStage]) -> list[Estimate]:
    """Of each step of a plan; what is done takes nothing. Nothing is written; some seconds of computing.

    Raises:
        DetectkitError: the network or the data that a stage would be told of cannot be read.
    """
    known = [_from_before(chain, step) for step in steps]
    if all(known):
        return [estimate for estimate in known if estimate]
    basis = _basis(chain)
    found = []
    for step, estimate in zip(steps, known, strict=True):
        computed = step.stage.takes(chain, basis)
        basis = basis._replace(share=basis.share * computed.leaves)
        found.append(estimate or _left(chain, step, computed))
    return found


def _from_before(chain: Chain, step: PlannedStage) -> Estimate | None:
    """By what the stage took when it was done in this folder; None: it was not."""
    state = step.state
    is_impossible = state.status == states.SKIPPED if state else bool(step.why)
    if step.action == Action.NOTHING or is_impossible:
        return Estimate(0.0, 0.0)
    if state is None or state.status != states.DONE or state.wall_seconds < NOTICED:
        return None
    mib = size_mib(step.folder)
    freed = 0.0 if step.action == Action.BEGIN else mib
    before, now = _epochs_before(step.folder), num_epochs(step.stage.spec(chain).training_config)
    if not step.stage.trains or not before or not now:
        return Estimate(state.wall_seconds, mib, freed)
    part = now - before if step.action == Action.GO_ON else now
    return Estimate(state.wall_seconds * max(part, 0) / before, mib, freed)


def _left(chain: Chain, step: PlannedStage, whole: Estimate) -> Estimate:
    """What is still to be done of a stage."""
    if step.action == Action.AGAIN:
        return whole._replace(freed=size_mib(step.folder))
    epochs = num_epochs(step.stage.spec(chain).training_config) if step.stage.trains else 0
    if step.action != Action.GO_ON or not epochs:
        return whole
    share = max(epochs - _epochs_done(step.folder), 0) / epochs
    return Estimate(whole.seconds * share, whole.mib * share)


def _epochs_before(folder: Path) -> int:
    """That the training in a folder was to have; 0: unknown."""
    try:
        stored = read_stored((folder / TRAINED_WITH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return num_epochs(stored.spec.training_config)


def _epochs_done(folder: Path) -> int:
    """Of a training that was cut."""
    done = 0
    try:
        for line in (folder / "status.jsonl").read_text(encoding="utf-8").splitlines():
            done = json.loads(line).get("epoch", done)
    except (OSError, ValueError):
        pass
    return done


def _basis(chain: Chain) -> Basis:
    from detectkit.pipeline import speed  # imports torch

    measured = speed.measure(chain.experiment, next(_image_folders(chain), None))
    try:
        training, validation = speed.count_records(chain.experiment)
    except DataError:
        if not chain.experiment.dataset_export_config:
            raise
        training, validation = count_labels(chain)
    workers = chain.experiment.training_config.workers if chain.trains else 0
    decoding = measured.decoding / max(min(workers, os.cpu_count() or 1), 1)
    mib = measured.parameters * 4 / 2**20
    return Basis(training, validation, mib, measured.learning + decoding, measured.finding + decoding)


def _image_folders(chain: Chain) -> Iterator[Path]:
    config = chain.experiment.dataset_config
    for source in (*config.data_sources, config.validation_data_source):
        path = Path(source.image_directory_path).expanduser()
        if source.image_directory_path and path.is_dir():
            yield path

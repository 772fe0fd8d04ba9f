"""Which stages of a run are done, which have to be done, and why."""

from __future__ import annotations

import enum
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


from detectkit import spec
from detectkit.errors import UsageError
from detectkit.files import literal_start, local_path
from detectkit.pipeline import state as states
from detectkit.pipeline.chain import SPEC, Chain, RunStage
from detectkit.pipeline.fingerprints import Fingerprints
from detectkit.pipeline.state import StageState
from detectkit.pipeline.training import LEARNED
from detectkit.spec import Experiment, only
from detectkit.spec.stored import read_stored, warn_of_unknown
from detectkit.stores import is_remote
from detectkit.versions import versions

RUN_FILE = "run.json"  # in the folder of a run, from its beginning
RUN_ENTRIES = ("spec", "command", "versions", "machine", "stages", "products")  # of it
TRAINED_WITH = "experiment_spec.txt"  # in the folder of a training
TRAINED = ("resume.pt", "weights/*.safetensors")  # there too, as soon as there is something to lose
SHOWN = 3  # changed fields in a message


class Action(enum.Enum):
    """What is to be done with a stage."""

    NOTHING = "done"
    BEGIN = "to do"
    GO_ON = "goes on"  # it was cut, or may be trained on
    AGAIN = "again"  # from the start: what it reads has changed
    AFTER = "after the others"  # not known before a stage that it reads from is done


class PlannedStage(NamedTuple):
    """A stage of a run, and what is to be done with it."""

    stage: RunStage
    folder: Path
    state: StageState | None  # as it was left
    action: Action
    why: str  # in words; empty where there is nothing to say
    spec: dict[str, str]  # see `StageState`
    reads: dict[str, str | None]


def plan(
    chain: Chain, prints: Fingerprints, *, first: str | None = None, last: str | None = None
) -> list[PlannedStage]:
    """The stages that a spec wants, in their order, and what is to be done with each.

    Args:
        first: the stage from which everything is done again, unchanged or not.
        last: the stage after which, and after the measurements that belong to it, the run ends.

    Raises:
        UsageError: the spec wants no such stage; or the folder holds the run of another spec, or on other data, and
            `first` does not say that it may go.
    """
    stages = chain.wanted
    begin, end = (_place(chain, name, option) for name, option in ((first, "--from"), (last, "--until")))
    while last is not None and end + 1 < len(stages) and stages[end + 1].measures:
        end += 1
    stages = stages[: end + 1] if last is not None else stages
    if first is not None and begin >= len(stages):
        raise UsageError(f"--from {first} comes after --until {last}")
    forced = {stage.name for stage in stages[begin:]} if first is not None else set()
    _check_same_spec(chain, forced)
    steps: list[PlannedStage] = []
    with prints.standing_still():
        for stage in stages:
            steps.append(look(chain, stage, prints, forced=stage.name in forced, before=steps))
    return steps


def _place(chain: Chain, name: str | None, option: str) -> int:
    names = [stage.name for stage in chain.wanted]
    if name is None:
        return 0
    if name not in names:
        known = [stage.name for stage in chain.stages]
        why = "the spec has no section for it" if name in known else "there is no such stage"
        raise UsageError(f"{option} {name}: {why}; the stages are {', '.join(names)}")
    return names.index(name)


def look(
    chain: Chain,
    stage: RunStage,
    prints: Fingerprints,
    *,
    forced: bool = False,
    before: Sequence[PlannedStage] = (),
) -> PlannedStage:
    """What is to be done with one stage.

    Args:
        forced: it is done again, unchanged or not.
        before: the stages before it, as far as they are not done yet.

    Raises:
        UsageError: its folder is not one of a run, or what a kept stage has read has changed.
    """
    folder = chain.folder / stage.name
    state = states.read(folder)
    step = PlannedStage(stage, folder, state, Action.BEGIN, "", _sections(stage.spec(chain)), {})
    if state is None and states.is_foreign(folder):
        raise UsageError(f"{folder} holds files that no run has made: use another -r, or move them away")
    if forced:
        return step._replace(
            action=Action.AGAIN if state else Action.BEGIN, reads=_reads(chain, stage, prints)
        )
    pending = [other for other in before if other.action != Action.NOTHING and _follows(chain, stage, other)]
    if pending:
        _check_kept(chain, step, [other for other in pending if other.action == Action.AGAIN])
        if state is None:
            return step._replace(why=stage.impossible(chain) or "")
        return step._replace(action=Action.AFTER)
    step = step._replace(reads=_reads(chain, stage, prints))
    if state is None:
        return step._replace(why=stage.impossible(chain) or "")
    changes = _changes(chain, state, step)
    if not changes:
        return _unchanged(chain, step, state, prints)
    goes_on = (
        stage.trains and not _different(_here(chain, state), step.reads) and _may_go_on(chain, step, state)
    )
    step = step._replace(action=Action.GO_ON if goes_on else Action.AGAIN, why=", ".join(changes))
    if not goes_on:
        _check_kept(chain, step, [step])
    return step


def _unchanged(chain: Chain, step: PlannedStage, state: StageState, prints: Fingerprints) -> PlannedStage:
    if state.status == states.SKIPPED:
        is_so = step.stage.impossible(chain) is not None
        return step._replace(action=Action.NOTHING if is_so else Action.BEGIN)
    if state.status != states.DONE:
        return step._replace(
            action=Action.GO_ON, why="failed" if state.status == states.FAILED else "was cut"
        )
    missing = [path for path in step.stage.writes(chain) if prints.of(path) is None]
    if missing:
        return step._replace(action=Action.GO_ON, why=f"{missing[0]} is missing")
    return step._replace(action=Action.NOTHING)


def _changes(chain: Chain, state: StageState, step: PlannedStage) -> list[str]:
    """The fields and files whose content is another one than when the stage was begun, in words."""
    sections = _different(state.spec, step.spec)
    files = [
        f"{name.removesuffix('/**')} {'changed' if step.reads.get(name, True) else 'is not there'}"
        for name in _different(_here(chain, state), step.reads)
    ]
    return (
        [_told(_field_changes(chain, sections)) or f"{', '.join(sections)} changed"] if sections else []
    ) + files


def _different(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> list[str]:
    return [name for name in dict.fromkeys([*now, *before]) if before.get(name) != now.get(name)]


def _field_changes(chain: Chain, sections: Collection[str]) -> list[tuple[str, str, str]]:
    """What differs in these sections from the spec that the run was last given."""
    before = _read_spec(chain.folder / SPEC)
    changes = spec.field_changes(before, chain.experiment) if before else []
    return [change for change in changes if re.split(r"[.\[]", change[0])[0] in sections]


def _told(changes: Sequence[tuple[str, str, str]]) -> str:
    """The first of them in words."""
    told = [f"{name} was {old or 'not set'}, is {new or 'not set'}" for name, old, new in changes[:SHOWN]]
    return "; ".join(told) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")


def _read_spec(path: Path) -> Experiment | None:
    """A spec as a run or a training has written it; None where there is none, or none that can be read."""
    try:
        stored = read_stored(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    warn_of_unknown(path, None, stored.unknown)
    return stored.spec


def _may_go_on(chain: Chain, step: PlannedStage, state: StageState) -> bool:
    """Whether a training can take up the spec as it is now where it was; what is finished only learns by more epochs."""
    before = _read_spec(step.folder / TRAINED_WITH)
    if before is None:
        return False
    now = step.stage.spec(chain)
    if spec.another_training(before, now):
        return False
    if state.status != states.DONE:
        return True
    parts = [only(only(message, *LEARNED), "training_config") for message in (before, now)]
    for part in parts:
        part.training_config.ClearField("num_epochs")
    is_longer = now.training_config.num_epochs >= before.training_config.num_epochs
    return is_longer and not spec.changed_sections(*parts)


def _check_same_spec(chain: Chain, forced: set[str]) -> None:
    """Refuse the folder of another experiment, unless everything in it is to be done again."""
    folder = chain.folder
    if not (folder / RUN_FILE).exists():
        foreign = [name for name in chain.specs if (folder / name).exists()]
        if foreign:
            raise UsageError(
                f"{folder / foreign[0]} is of no run, and a run would overwrite it: use another -r, or move it away"
            )
    main = _main(chain.wanted)
    has_nothing = main.is_kept and not _has_trained(folder / main.name)
    if not (folder / SPEC).exists() or main.name in forced or has_nothing:
        return
    before = _read_spec(folder / SPEC)
    if before is None:
        raise UsageError(f"{folder / SPEC} cannot be read as the spec of a run: use another -r")
    other = spec.another_training(before, chain.experiment)
    if other:
        raise UsageError(
            f"{folder} holds the run of another spec ({_told(_field_changes(chain, other))}): use another -r, or --from"
            f" {main.name} to do it again"
        )


def _main(stages: Sequence[RunStage]) -> RunStage:
    """The stage that everything hangs on: the first one that is kept, or simply the first."""
    return next((stage for stage in stages if stage.is_kept), stages[0])


def _check_kept(chain: Chain, step: PlannedStage, changed: Sequence[PlannedStage]) -> None:
    """A training is long: it is not thrown away because a file or a field has changed, unless asked for."""
    if step.stage.is_kept and changed and _has_trained(step.folder):
        raise UsageError(
            f"{step.folder} was not trained on this ({changed[0].why}): use another -r, or --from"
            f" {changed[0].stage.name} to do it again"
        )


def _has_trained(folder: Path) -> bool:
    """Whether there is something to lose."""
    return any(any(folder.glob(name)) for name in TRAINED)


def _follows(chain: Chain, stage: RunStage, other: PlannedStage) -> bool:
    """Whether a stage reads what another one writes."""
    written = [_start(path) for path in (f"{other.folder}{os.sep}", *other.stage.writes(chain))]
    for source in stage.reads(chain):
        start = _start(source)
        if any(start.startswith(place) for place in written):
            return True
        if start != _absolute(source) and any(place.startswith(start) for place in written):
            return True  # records/* for what is written to records/name-fold-*
    return False


def _start(pattern: str) -> str:
    """What all paths of a pattern begin with."""
    return literal_start(_absolute(pattern))


def _absolute(path: str) -> str:
    """One spelling of a path; a folder's keeps its last separator."""
    if is_remote(path):
        return path
    return os.path.abspath(local_path(path)) + os.sep * path.endswith(os.sep)


def _reads(chain: Chain, stage: RunStage, prints: Fingerprints) -> dict[str, str | None]:
    found = {_name(chain, source): prints.of(source) for source in stage.reads(chain)}
    return found | {name: versions()[name] for name in stage.tools}


def _here(chain: Chain, state: StageState) -> dict[str, str | None]:
    """What a stage has read, named as now."""
    return {_name(chain, source): text for source, text in state.reads.items()}


def _name(chain: Chain, source: str) -> str:
    """Below the folder of the run from there on: it is the same run from another current folder, or where it was moved."""
    return source.removeprefix(os.path.join(chain.folder, ""))


def _sections(experiment: Experiment) -> dict[str, str]:
    """The fingerprint of each section, whether its defaults are written out or not."""
    experiment = spec.reduced(experiment)
    # A stage that starts from a model, or has one as its teacher, reads the file.
    if experiment.HasField("model_config"):
        experiment.model_config.ClearField("pretrained_model_file")
    if experiment.HasField("training_config"):
        if experiment.training_config.HasField("distillation"):
            experiment.training_config.distillation.ClearField("teacher_model_file")
    names = [field.name for field, _ in experiment.ListFields()]
    parts = {name: only(experiment, name).SerializeToString(deterministic=True) for name in names}
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}

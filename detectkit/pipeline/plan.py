"""Which stages of a run are done, which have to be done, and why."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from google.protobuf import text_format

from detectkit import spec
from detectkit.errors import UsageError
from detectkit.pipeline import state as states
from detectkit.pipeline.fingerprints import Fingerprints
from detectkit.pipeline.stages import SPEC, STAGES, Chain, Stage, only
from detectkit.pipeline.state import State
from detectkit.spec import Experiment

RUN_FILE = "run.json"  # in the folder of a run, from its beginning
TRAINED_WITH = "experiment_spec.txt"  # in the folder of a training
TRAINED = ("resume.pt", "weights/*.safetensors")  # there too, as soon as there is something to lose
# Fields of training_config that change nothing of what is learned, or only how much of it.
HARMLESS = ("num_epochs", "checkpoint_interval", "visualizer", "workers")


class Action(enum.Enum):
    """What is to be done with a stage."""

    NOTHING = "done"
    BEGIN = "to do"
    GO_ON = "goes on"  # it was cut, or may be trained on
    AGAIN = "again"  # from the start: what it reads has changed
    AFTER = "after the others"  # not known before a stage that it reads from is done


class Step(NamedTuple):
    """A stage of a run, and what is to be done with it."""

    stage: Stage
    folder: Path
    state: State | None  # as it was left
    action: Action
    why: str  # in words; empty where there is nothing to say
    spec: dict[str, str]  # see `State`
    reads: dict[str, str | None]


def plan(
    chain: Chain, prints: Fingerprints, *, first: str | None = None, last: str | None = None
) -> list[Step]:
    """The stages that a spec wants, in their order, and what is to be done with each.

    Args:
        first: the stage from which everything is done again, unchanged or not.
        last: the stage after which, and after the measurements that belong to it, the run ends.

    Raises:
        UsageError: the spec wants no such stage; or the folder holds the run of another spec, or on other data, and
            `first` does not say that it may go.
    """
    stages = wanted(chain)
    begin, end = _place(stages, first, "--from"), _place(stages, last, "--until")
    while last is not None and end + 1 < len(stages) and stages[end + 1].measures:
        end += 1
    stages = stages[: end + 1] if last is not None else stages
    if first is not None and begin >= len(stages):
        raise UsageError(f"--from {first} comes after --until {last}")
    forced = {stage.name for stage in stages[begin:]} if first is not None else set()
    _check_same_spec(chain, stages, forced)
    steps: list[Step] = []
    for stage in stages:
        steps.append(look(chain, stage, prints, forced=stage.name in forced, before=steps))
    return steps


def wanted(chain: Chain) -> list[Stage]:
    """The stages that a spec has sections for."""
    return [stage for stage in STAGES if stage.wanted(chain)]


def _place(stages: Sequence[Stage], name: str | None, option: str) -> int:
    names = [stage.name for stage in stages]
    if name is None:
        return 0
    if name not in names:
        known = [stage.name for stage in STAGES]
        why = "the spec has no section for it" if name in known else "there is no such stage"
        raise UsageError(f"{option} {name}: {why}; the stages are {', '.join(names)}")
    return names.index(name)


def look(
    chain: Chain, stage: Stage, prints: Fingerprints, *, forced: bool = False, before: Sequence[Step] = ()
) -> Step:
    """What is to be done with one stage.

    Args:
        forced: it is done again, unchanged or not.
        before: the stages before it, as far as they are not done yet.

    Raises:
        UsageError: its folder is not one of a run, or what a kept stage has read has changed.
    """
    folder = chain.folder / stage.name
    state = states.read(folder)
    step = Step(stage, folder, state, Action.BEGIN, "", _sections(stage.spec(chain)), {})
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
    changes = _changes(state, step)
    if not changes:
        return _unchanged(chain, step, state, prints)
    goes_on = stage.trains and state.reads == step.reads and _may_go_on(chain, step, state)
    step = step._replace(action=Action.GO_ON if goes_on else Action.AGAIN, why=", ".join(changes))
    if not goes_on:
        _check_kept(chain, step, [step])
    return step


def _unchanged(chain: Chain, step: Step, state: State, prints: Fingerprints) -> Step:
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


def _changes(state: State, step: Step) -> list[str]:
    """The sections and files whose content is another one than when the stage was begun."""
    parts = []
    for before, now in ((state.spec, step.spec), (state.reads, step.reads)):
        names = dict.fromkeys([*now, *before])
        parts += [name for name in names if before.get(name) != now.get(name)]
    return [f"{name.removesuffix('/**')} changed" for name in parts]


def _may_go_on(chain: Chain, step: Step, state: State) -> bool:
    """Whether a training can take up the spec as it is now where it was; what is finished only learns by more epochs."""
    before = Experiment()
    try:
        text_format.Parse((step.folder / TRAINED_WITH).read_text(encoding="utf-8"), before)
    except (OSError, text_format.ParseError):
        return False
    now = step.stage.spec(chain)
    if spec.another_training(before, now):
        return False
    if state.status != states.DONE:
        return True
    parts = [Experiment(), Experiment()]
    for part, message in zip(parts, (before, now), strict=True):
        part.training_config.CopyFrom(message.training_config)
        for name in HARMLESS:
            part.training_config.ClearField(name)
    return not spec.changed_sections(*parts)


def _check_same_spec(chain: Chain, stages: Sequence[Stage], forced: set[str]) -> None:
    """Refuse the folder of another experiment, unless everything in it is to be done again."""
    path = chain.folder / SPEC
    if not (chain.folder / RUN_FILE).exists():
        foreign = [name for name in chain.specs if (chain.folder / name).exists()]
        if foreign:
            raise UsageError(
                f"{chain.folder / foreign[0]} is of no run, and a run would overwrite it: use another -r, or move it away"
            )
    if not path.exists() or _main(stages).name in forced:
        return
    before = Experiment()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), before)
    except (OSError, text_format.ParseError) as error:
        raise UsageError(f"{path} cannot be read as the spec of a run: use another -r") from error
    if spec.another_training(before, chain.experiment):
        ways = set(spec.another_training(before, chain.experiment))
        changes = [
            change
            for change in spec.field_changes(before, chain.experiment)
            if change[0].split(".")[0].split("[")[0] in ways
        ]
        shown = "; ".join(
            f"{name} was {old or 'not set'}, is {new or 'not set'}" for name, old, new in changes[:3]
        )
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UsageError(
            f"{chain.folder} holds the run of another spec ({shown}{more}): use another -r, or --from"
            f" {_main(stages).name} to do it again"
        )


def _main(stages: Sequence[Stage]) -> Stage:
    """The stage that everything hangs on: the first one that is kept, or simply the first."""
    return next((stage for stage in stages if stage.is_kept), stages[0])


def _check_kept(chain: Chain, step: Step, changed: Sequence[Step]) -> None:
    """A training is long: it is not thrown away because a file or a field has changed, unless asked for."""
    if step.stage.is_kept and changed and any(any(step.folder.glob(name)) for name in TRAINED):
        raise UsageError(
            f"{step.folder} was trained before {changed[0].why}: use another -r, or --from"
            f" {changed[0].stage.name} to do it again"
        )


def _follows(chain: Chain, stage: Stage, other: Step) -> bool:
    """Whether a stage reads what another one writes."""
    written = [f"{other.folder}{os.sep}", *(path.rstrip("*") for path in other.stage.writes(chain))]
    return any(source.startswith(start) for source in stage.reads(chain) for start in written)


def _reads(chain: Chain, stage: Stage, prints: Fingerprints) -> dict[str, str | None]:
    return {source: prints.of(source) for source in stage.reads(chain)}


def _sections(experiment: Experiment) -> dict[str, str]:
    """The fingerprint of each section, whether its defaults are written out or not."""
    experiment = spec.reduced(experiment)
    names = [field.name for field, _ in experiment.ListFields()]
    parts = {name: only(experiment, [name]).SerializeToString(deterministic=True) for name in names}
    return {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}

"""What is in the folder of a run: read as far as it is there, for it is read while it is being written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from detectkit import spec
from detectkit.errors import UsageError
from detectkit.pipeline.chain import SPEC
from detectkit.pipeline.plan import RUN_ENTRIES, RUN_FILE
from detectkit.pipeline.products import Product, Role
from detectkit.pipeline.stages import STAGES, kept_products
from detectkit.pipeline.state import STAGE_FILE
from detectkit.spec.stored import read_stored, unknown_entries


class StageOutcome(NamedTuple):
    """A stage of a run, as its stage.json says."""

    name: str
    title: str
    status: str  # "done", "failed", "begun", "skipped" (not possible here); "waiting" where there is no stage.json yet
    error: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    started: str = ""
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    restarts: int = 0


class Results(NamedTuple):
    """What an evaluation wrote."""

    key: str  # of the model
    measured: str  # the model file, as it was given
    images: int
    mean: float | None  # average precision, 0 to 1; None where no class has a labelled box
    by_class: dict[str, float | None]
    protocol: str
    findings: tuple[str, ...] = ()  # what ails the model, a sentence each


class RunFolder(NamedTuple):
    """A folder of `detectkit run`, as far as it can be read."""

    folder: Path
    info: dict[str, Any]  # run.json
    stages: tuple[StageOutcome, ...]
    spec_text: str  # "" where there is none
    experiment: spec.Experiment | None
    products: tuple[Product, ...]
    results: dict[str, Results]  # by key
    problems: tuple[str, ...]  # what could not be read, a sentence each

    @property
    def title(self) -> str:
        """The name of the spec, or of the folder."""
        return Path(str(self.info.get("spec") or self.folder.absolute())).stem

    def of(self, *roles: Role) -> list[Product]:
        """What has, or will have, one of these roles."""
        return [product for product in self.products if product.role in roles]

    def file(self, role: Role, key: str) -> Path | None:
        return next((Path(product.path) for product in self.of(role) if product.key == key), None)

    def maker(self, path: str | Path | None) -> StageOutcome | None:
        """The stage in whose folder a product is; None: the run was given it."""
        return next(
            (stage for stage in self.stages if path and Path(path).is_relative_to(self.folder / stage.name)),
            None,
        )


def is_run(folder: Path) -> bool:
    return (folder / RUN_FILE).is_file() or any(folder.glob(f"*/{STAGE_FILE}"))


def read(folder: Path) -> RunFolder:
    """Read what is there.

    Raises:
        UsageError: it is not the folder of a run.
    """
    if not is_run(folder):
        raise UsageError(
            f"{folder} is not the folder of a run (no {RUN_FILE}): give the DIR of `detectkit run -e SPEC -r DIR`"
        )
    problems: list[str] = []
    info = read_json(folder / RUN_FILE, problems) or {}
    text, experiment = _spec(folder, problems)
    planned = _planned(info)
    names = sorted(planned or {path.name for path in folder.glob("*") if path.is_dir()})
    stages = _stages(folder, planned, names, problems)
    listed = info.get("products")
    products = kept_products(folder, listed, experiment, names)
    if isinstance(listed, list) and len(products) < len(listed):
        problems.append(
            f"{RUN_FILE} lists {len(listed) - len(products)} products that are damaged or of another version: left out"
        )
    unknown = unknown_entries(info, RUN_ENTRIES)
    if unknown:
        problems.append(
            f"{RUN_FILE} has entries of another version, without effect here: {', '.join(unknown)}"
        )
    measured = (_results(product, problems) for product in products if product.role == Role.RESULTS)
    results = {item.key: item for item in measured if item is not None}
    return RunFolder(folder, info, stages, text, experiment, tuple(products), results, tuple(problems))


def read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """An object of a JSON file; None where there is none, or it cannot be read, which goes into `problems`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {_reason(error)}")
        return None
    return content


def number(value: object) -> float | None:
    """A finite number of a file; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < float("inf") else None


def find(run: RunFolder, path: str) -> Path:
    """A file that a run names: as it was given, or where it is now if the folder was moved."""
    given = Path(path)
    if given.exists():
        return given
    parts = given.parts
    for length in range(min(len(parts), 4), 0, -1):
        inside = run.folder.joinpath(*parts[-length:])
        if inside.exists():
            return inside
    return given


def shown(run: RunFolder, path: str | os.PathLike[str]) -> str:
    """A path as a person wants to read it: below the run's folder where it is there, never below a home."""
    text = os.fspath(path)
    absolute, folder = os.path.abspath(text), os.path.abspath(run.folder)
    if absolute.startswith(folder + os.sep):
        return os.path.relpath(absolute, folder)
    home = os.path.expanduser("~")
    return "~" + text[len(home) :] if home != os.sep and text.startswith(home + os.sep) else text


def _spec(folder: Path, problems: list[str]) -> tuple[str, spec.Experiment | None]:
    path = folder / SPEC
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "", None
    except (OSError, ValueError) as error:
        problems.append(f"{SPEC} cannot be read: {_reason(error)}")
        return "", None
    try:
        stored = read_stored(text)
    except ValueError as error:
        problems.append(f"{SPEC} is not understood: {_reason(error)}")
        return text, None
    if stored.unknown:
        problems.append(
            f"{SPEC} has fields of another version, without effect here: {', '.join(stored.unknown)}"
        )
    broken = spec.check(stored.spec)
    if broken:
        problems.append(f"{SPEC} is not understood: {broken[0]}")
    return text, None if broken else stored.spec


def _planned(info: dict[str, Any]) -> dict[str, str]:
    """The titles of the stages that the spec has now, by name; a folder may hold others, of an earlier spec."""
    pairs = [item for item in _list(info.get("stages")) if isinstance(item, list) and len(item) == 2]
    return {str(name): str(title) for name, title in pairs}


def _stages(
    folder: Path, planned: dict[str, str], names: Iterable[str], problems: list[str]
) -> tuple[StageOutcome, ...]:
    """In the order of run.json; where it has none, in that of all stages, then of their begin."""
    found = {name: StageOutcome(name, title, "waiting") for name, title in planned.items()}
    for name in names:
        content = read_json(folder / name / STAGE_FILE, problems)
        if content is not None:
            found[name] = _stage(name, content)
    places = {name: at for at, name in enumerate(planned or [stage.name for stage in STAGES])}
    return tuple(
        sorted(found.values(), key=lambda stage: (places.get(stage.name, len(places)), stage.started))
    )


def _stage(name: str, content: dict[str, Any]) -> StageOutcome:
    commands = [item for item in _list(content.get("commands")) if isinstance(item, list)]
    status = str(content.get("status"))
    return StageOutcome(
        name=name,
        title=str(content.get("title") or name),
        status=status if status in ("done", "failed", "skipped") else "begun",
        error=str(content["error"]) if content.get("error") else None,
        commands=tuple(tuple(map(str, line)) for line in commands),
        started=str(content.get("started") or ""),
        wall_seconds=number(content.get("wall_seconds")),
        cpu_seconds=number(content.get("cpu_seconds")),
        restarts=int(number(content.get("restarts")) or 0),
    )


def _results(product: Product, problems: list[str]) -> Results | None:
    path = Path(product.path)
    content = read_json(path, problems)
    if content is None:
        return None
    mean, classes = number(content.get("mean_average_precision")), content.get("classes")
    is_measured = mean is not None or content.get("mean_average_precision", 0) is None
    if not is_measured or not isinstance(classes, dict):
        problems.append(f"{path.parent.name}/{path.name} has no average precision")
        return None
    return Results(
        key=product.key,
        measured=str(content.get("measured") or ""),
        images=int(number(content.get("images")) or 0),
        mean=mean,
        by_class={
            str(name): number(item.get("average_precision"))
            for name, item in classes.items()
            if isinstance(item, dict)
        },
        protocol=str(content.get("protocol") or "VOC"),
        findings=_texts(content.get("findings")),
    )


def _texts(findings: object) -> tuple[str, ...]:
    """The sentences of the `findings` of results.json."""
    entries = [item for item in _list(findings) if isinstance(item, dict)]
    return tuple(item["text"] for item in entries if isinstance(item.get("text"), str))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return (str(error).splitlines() or [type(error).__name__])[0]

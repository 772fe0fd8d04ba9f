"""The models of a run in a row: how good, how large, how fast, and how far they find the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectkit.errors import DetectkitError
from detectkit.files import atomic_write
from detectkit.pipeline.products import MODELS, NETWORKS, Product, Role
from detectkit.report.folder import Results, RunFolder, find, number, read_json

TABLE = "report.json"
SPACE = "\u00a0"  # before %, where no line may break
MOST_CLASSES = 12  # that have a column and charts of their own
UNLABELLED = "the images that it was measured on have no labelled box of a class"
# Of the page, in turns for the models of a role: what is shipped looks the same whatever was trained before it.
COLORS = {Role.NETWORK: "s0 s2 s5 s6", Role.PASSING: "s1", Role.ROUNDED: "s3", Role.DEPLOYED: "s4 s7"}
# Line styles of matplotlib: colours alone do not reach everyone.
DASHES = {Role.NETWORK: "-", Role.PASSING: ":", Role.ROUNDED: "-.", Role.DEPLOYED: "--"}


class ModelRow(NamedTuple):
    """A row of the table; None where it is not known."""

    key: str  # of the product, as are the next two
    title: str
    role: Role
    place: int  # among the models of its role
    measured: str | None  # the file, as it was given
    mean: float | None = None  # average precision, 0 to 1
    by_class: dict[str, float | None] = {}
    parameters: int | None = None
    gmacs: float | None = None
    mebibytes: float | None = None
    seconds: float | None = None  # for an image
    agreement: float | None = None  # share of the detections that are those of the float model, 0 to 1
    runtime: str = ""  # what it was timed in, and whether on a CPU or a GPU
    why: str = ""  # something is missing

    @property
    def color(self) -> str:
        colors = COLORS[self.role].split()
        return colors[self.place % len(colors)]

    @property
    def dashes(self) -> str:
        return DASHES[self.role]

    @property
    def is_passing(self) -> bool:
        """Trained again by a later stage: no result to compare with."""
        return self.role == Role.PASSING


def models(run: RunFolder) -> list[ModelRow]:
    """A row for each model of a run."""
    times, agreements = _times(run), _agreements(run)
    found = [
        _row(run, product, run.of(product.role).index(product), times, agreements.get(product.key))
        for product in run.of(*MODELS)
    ]
    last = final_float(found)
    return [_of_network(model, last) if last and model.role not in NETWORKS else model for model in found]


def faster(model: ModelRow, all_models: Sequence[ModelRow]) -> float | None:
    """How many times a model is faster than the float one."""
    first = _first_network(all_models)
    return first.seconds / model.seconds if first and first.seconds and model.seconds else None


def final_float(all_models: Sequence[ModelRow]) -> ModelRow | None:
    """The last model that computes in float and was measured."""
    return _last(all_models, Role.NETWORK)


def deployed(all_models: Sequence[ModelRow]) -> ModelRow | None:
    """The measured model that would be shipped."""
    return _last(all_models, Role.DEPLOYED)


def class_names(all_models: Sequence[ModelRow]) -> list[str]:
    """Those of all models, in the order of the first."""
    return list(dict.fromkeys(name for model in all_models for name in model.by_class))


def rows(all_models: Sequence[ModelRow]) -> tuple[list[str], list[list[str]]]:
    """The table as text: headers, and a row for each model; "-" for what is not known.

    More than MOST_CLASSES are not in it, see `class_rows`.
    """
    names = class_names(all_models) if has_few_classes(all_models) else []
    headers = [
        "model",
        "mAP %",
        *(f"{name} %" for name in names),
        "parameters",
        "GMACs",
        "MiB",
        "ms",
        "faster",
    ]
    found = [
        [
            model.title,
            percent(model.mean),
            *(percent(model.by_class.get(name)) for name in names),
            "-" if model.parameters is None else f"{model.parameters:,}",
            _text(model.gmacs, ".2f"),
            _text(model.mebibytes, ".1f"),
            _text(None if model.seconds is None else 1000 * model.seconds, ".1f"),
            _text(faster(model, all_models), ".1f", after="x"),
            percent(model.agreement),
        ]
        for model in all_models
    ]
    return [*headers, "agree %"], found


def class_rows(titled: Sequence[tuple[str, ModelRow]]) -> tuple[list[str], list[list[str]]]:
    """Average precision as text: headers, a row for each class, a column for each model (its title, and itself)."""
    measured = [(title, model) for title, model in titled if model.mean is not None]
    names = class_names([model for _, model in measured])
    cells = [[name, *(percent(model.by_class.get(name)) for _, model in measured)] for name in names]
    return ["class", *(f"{title} %" for title, _ in measured)], cells


def has_few_classes(all_models: Sequence[ModelRow]) -> bool:
    return len(class_names(all_models)) <= MOST_CLASSES


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def verdict(all_models: Sequence[ModelRow]) -> str:
    """What came out, in a line; "" before anything is measured."""
    measured = [model for model in all_models if model.mean is not None]
    first, last, shipped = _first_network(all_models), final_float(all_models), deployed(all_models)
    if first is not None and first.mean is None:
        first = None
    if first is None and measured:
        first = shipped or measured[0]
        return f"{first.title}: mAP {percent(first.mean)}{SPACE}%"
    if first is None:
        return f"mAP -: {UNLABELLED}" if any(model.why == UNLABELLED for model in all_models) else ""
    parts = [f"mAP {percent(first.mean)}{SPACE}%"]
    if last is not None and last != first:
        after = f"{percent(last.mean)}{SPACE}% {last.title}{_smaller(first, last)}"
        parts = [f"mAP {percent(first.mean)}{SPACE}% {first.title} → {after}"]
    else:
        passing = [model for model in measured if model.is_passing]
        parts += [f"{model.title}, before retraining, {percent(model.mean)}{SPACE}%" for model in passing]
    if shipped is not None:
        gain = faster(shipped, all_models)
        parts.append(
            f"{shipped.title} {percent(shipped.mean)}{SPACE}%"
            + (f", {gain:.1f}x faster than {first.title}" if gain else "")
        )
    return "; ".join(parts)


def write_table(run: RunFolder, all_models: Sequence[ModelRow]) -> None:
    """Keep the table as data beside the page, for machines and for `kept_table`.

    Raises:
        OutputError: it cannot be written.
    """
    rows = [model._asdict() | {"is_passing": model.is_passing} for model in all_models]
    content = {"verdict": verdict(all_models), "models": rows}
    with atomic_write(run.folder / TABLE) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def kept_table(run: RunFolder) -> list[ModelRow] | None:
    """The table as it was last written, if none of the files it comes from is newer: agreement takes seconds."""
    try:
        written = (run.folder / TABLE).stat().st_mtime_ns
        sources = [
            path for pattern in ("*/*.json", "*/*.npz", "run.json") for path in run.folder.glob(pattern)
        ]
        if any(path.stat().st_mtime_ns > written for path in sources):
            return None
        content = read_json(run.folder / TABLE, [])
        rows = content["models"] if content else None
        return rows and [ModelRow(*(item[name] for name in ModelRow._fields)) for item in rows]
    except (OSError, TypeError, KeyError):
        return None


def _text(value: float | None, form: str, after: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{after}"


def _smaller(first: ModelRow, last: ModelRow) -> str:
    if not first.parameters or last.parameters is None:
        return ""
    return f" with {100 * last.parameters / first.parameters:.1f}{SPACE}% of the parameters"


def _first_network(all_models: Sequence[ModelRow]) -> ModelRow | None:
    """The one that the others are compared with."""
    return next((model for model in all_models if model.role in NETWORKS and not model.is_passing), None)


def _last(all_models: Sequence[ModelRow], role: Role) -> ModelRow | None:
    """The last one that was measured."""
    return next((item for item in reversed(all_models) if item.mean is not None and item.role == role), None)


def _row(
    run: RunFolder,
    product: Product,
    place: int,
    times: dict[Path, dict[str, Any]],
    agreement: float | None,
) -> ModelRow:
    results = run.results.get(product.key)
    file = find(run, results.measured) if results and results.measured else Path(product.path)
    timed = times.get(file.resolve(), {})
    size = number(timed.get("size_mib"))
    if size is None and file.is_file():
        size = file.stat().st_size / 2**20
    parameters = number(timed.get("parameters"))
    return ModelRow(
        key=product.key,
        title=product.title,
        role=product.role,
        place=place,
        measured=results.measured if results else None,
        mean=results.mean if results else None,
        by_class=results.by_class if results else {},
        parameters=None if parameters is None else int(parameters),
        gmacs=number(timed.get("gmacs")),
        mebibytes=size,
        seconds=number(timed.get("seconds_per_image")),
        agreement=agreement,
        runtime=str(timed.get("runtime") or ""),
        why=_why(run, product, results) or _not_timed(file, times),
    )


def _of_network(model: ModelRow, last: ModelRow) -> ModelRow:
    """The row with the parameters and multiplications of its network, where its file does not tell them."""
    if model.parameters is not None or model.mean is None:
        return model
    return model._replace(parameters=last.parameters, gmacs=last.gmacs)


def _why(run: RunFolder, product: Product, results: Results | None) -> str:
    """Why a model has no accuracy."""
    if results is not None:
        return UNLABELLED if results.mean is None else ""
    stage, made = run.maker(run.file(Role.RESULTS, product.key)), run.maker(product.path)
    if stage is not None:
        texts = {
            "failed": f"its evaluation failed: {stage.error or 'no reason is given'}",
            "begun": "is being evaluated, or was cut off",
            "waiting": "not evaluated yet",
            "skipped": f"not measured: {stage.error or 'it is not possible here'}",
        }
        return texts.get(stage.status, "its results.json is missing or damaged")
    if made is not None and made.status == "failed":
        return f"could not be made: {made.error or 'no reason is given'}"
    if made is not None and made.status != "done":
        return "not made yet"
    return "no stage of the run measures its accuracy"


def _not_timed(file: Path, times: dict[Path, dict[str, Any]]) -> str:
    """Of two files of one network one is timed."""
    is_left_out = times and file.is_file() and file.resolve() not in times
    return "not timed: another row has the same network" if is_left_out else ""


def timing(run: RunFolder) -> dict[str, Any]:
    """What latency.json holds; empty where there is none."""
    contents = [read_json(Path(product.path), []) for product in run.of(Role.TIMES)]
    return next((content for content in contents if content), {})


def _times(run: RunFolder) -> dict[Path, dict[str, Any]]:
    """The entries of latency.json by file."""
    entries = timing(run).get("models")
    found = [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []
    return {find(run, str(item.get("model"))).resolve(): item for item in found}


def _agreements(run: RunFolder) -> dict[str, float]:
    """The agreement of each model with the first one, as far as both have kept what they found."""
    paths = {
        product.key: Path(product.path) for product in run.of(Role.DETAILS) if product.key in run.results
    }
    networks = run.of(*NETWORKS)
    one = networks[0].key if networks else ""
    if len(paths) < 2 or one not in paths or not paths[one].is_file():
        return {}
    from detectkit.evaluation import details  # imports torch, and is only needed here
    from detectkit.evaluation.agreement import agreement

    try:
        first = details.load(paths[one])
    except DetectkitError:
        return {}
    found = {}
    for key, path in paths.items():
        try:
            other = details.load(path) if key != one else first
        except DetectkitError:
            continue
        if [item.name for item in other.images] == [item.name for item in first.images]:
            found[key] = agreement(first.detections(), other.detections()).share
    return found

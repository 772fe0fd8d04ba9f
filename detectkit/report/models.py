"""The models of a run in a row: how good, how large, how fast, and how far they find the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectkit.errors import DetectkitError
from detectkit.files import atomic_write
from detectkit.report.folder import EVALUATE, Results, Run, Stage, find, number, read_json

TABLE = "report.json"
SPACE = "\u00a0"  # before %, where no line may break
MOST_CLASSES = 12  # that have a column and charts of their own
UNLABELLED = "the images that it was measured on have no labelled box of a class"
LATENCY = Path("latency", "latency.json")


class Kind(NamedTuple):
    """How a model is called and drawn, in every chart and table of a report."""

    title: str
    color: str  # of the page
    dashes: str  # a line style of matplotlib: colours alone do not reach everyone


KINDS = {
    "float": Kind("float", "s0", "-"),
    "pruned": Kind("pruned", "s1", ":"),
    "retrained": Kind("retrained", "s2", "-"),
    "qat": Kind("QAT", "s3", "-."),
    "fp32": Kind("ONNX FP32", "s5", "--"),
    "fp16": Kind("ONNX FP16", "s6", "--"),
    "int8": Kind("INT8", "s4", "--"),
    "engine": Kind("engine", "s7", "-."),
}
FLOATS = ("retrained", "pruned", "float")  # the first that is there is what the deployed files are made of
DEPLOYED = ("engine", "int8", "fp16", "fp32")
SAME_NETWORK = ("qat", *DEPLOYED)  # in other numbers than the last float model


class Model(NamedTuple):
    """A row of the table; None where it is not known."""

    key: str  # of KINDS, or what comes after evaluate_
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
    is_passing: bool = False  # pruned, and trained again by a later stage: no result to compare with

    @property
    def kind(self) -> Kind:
        return kind(self.key)


def kind(key: str) -> Kind:
    """How a model is shown; of a stage that is not known here, by its own name."""
    return KINDS.get(key, Kind(key, "s7", "--"))


def models(run: Run) -> list[Model]:
    """A row for each model that is or will be evaluated, in the order of KINDS."""
    stages = {
        stage.name.removeprefix(EVALUATE): stage for stage in run.stages if stage.name.startswith(EVALUATE)
    }
    keys = {*run.results, *stages} | ({"engine"} if _has_engine(run) else set())
    order = list(KINDS)
    ordered = sorted(keys, key=lambda key: (order.index(key) if key in order else len(order), key))
    times = _times(run)
    agreements = _agreements(run)
    found = [_model(run, key, stages.get(key), times, agreements.get(key)) for key in ordered]
    last = final_float(found)
    return [_of_network(model, last) if last and model.key in SAME_NETWORK else model for model in found]


def faster(model: Model, all_models: Sequence[Model]) -> float | None:
    """How many times a model is faster than the float one."""
    first = next((item.seconds for item in all_models if item.key == "float"), None)
    return first / model.seconds if first and model.seconds else None


def final_float(all_models: Sequence[Model]) -> Model | None:
    """The last model that computes in float and was measured."""
    return _first([model for model in all_models if not model.is_passing], FLOATS)


def deployed(all_models: Sequence[Model]) -> Model | None:
    """The measured model that would be shipped, engine before ONNX file."""
    return _first(all_models, DEPLOYED)


def class_names(all_models: Sequence[Model]) -> list[str]:
    """Those of all models, in the order of the first."""
    return list(dict.fromkeys(name for model in all_models for name in model.by_class))


def rows(all_models: Sequence[Model]) -> tuple[list[str], list[list[str]]]:
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
            model.kind.title,
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


def class_rows(titled: Sequence[tuple[str, Model]]) -> tuple[list[str], list[list[str]]]:
    """Average precision as text: headers, a row for each class, a column for each model (its title, and itself)."""
    measured = [(title, model) for title, model in titled if model.mean is not None]
    names = class_names([model for _, model in measured])
    cells = [[name, *(percent(model.by_class.get(name)) for _, model in measured)] for name in names]
    return ["class", *(f"{title} %" for title, _ in measured)], cells


def has_few_classes(all_models: Sequence[Model]) -> bool:
    return len(class_names(all_models)) <= MOST_CLASSES


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def verdict(all_models: Sequence[Model]) -> str:
    """What came out, in a line; "" before anything is measured."""
    measured = {model.key: model for model in all_models if model.mean is not None}
    first, last, shipped = measured.get("float"), final_float(all_models), deployed(all_models)
    if first is None and (shipped or measured):
        first = shipped or next(iter(measured.values()))
        return f"{first.kind.title}: mAP {percent(first.mean)}{SPACE}%"
    if first is None:
        return f"mAP -: {UNLABELLED}" if any(model.why == UNLABELLED for model in all_models) else ""
    parts = [f"mAP {percent(first.mean)}{SPACE}%"]
    if last is not None and last != first:
        after = f"{percent(last.mean)}{SPACE}% {last.kind.title}{_smaller(first, last)}"
        parts = [f"mAP {percent(first.mean)}{SPACE}% float → {after}"]
    elif "pruned" in measured:
        parts.append(f"pruned, before retraining, {percent(measured['pruned'].mean)}{SPACE}%")
    if shipped is not None:
        gain = faster(shipped, all_models)
        parts.append(
            f"{shipped.kind.title} {percent(shipped.mean)}{SPACE}%"
            + (f", {gain:.1f}x faster than float" if gain else "")
        )
    return "; ".join(parts)


def write_table(run: Run, all_models: Sequence[Model]) -> None:
    """Keep the table as data beside the page, for machines and for `kept_table`.

    Raises:
        OutputError: it cannot be written.
    """
    content = {"verdict": verdict(all_models), "models": [model._asdict() for model in all_models]}
    with atomic_write(run.folder / TABLE) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def kept_table(run: Run) -> list[Model] | None:
    """The table as it was last written, if none of the files it comes from is newer: agreement takes seconds."""
    try:
        written = (run.folder / TABLE).stat().st_mtime_ns
        sources = [
            path for pattern in ("*/*.json", "*/*.npz", "run.json") for path in run.folder.glob(pattern)
        ]
        if any(path.stat().st_mtime_ns > written for path in sources):
            return None
        content = read_json(run.folder / TABLE, [])
        return [Model(**item) for item in content["models"]] if content else None
    except (OSError, TypeError, KeyError):
        return None


def _text(value: float | None, form: str, after: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{after}"


def _smaller(first: Model, last: Model) -> str:
    if not first.parameters or last.parameters is None:
        return ""
    return f" with {100 * last.parameters / first.parameters:.1f}{SPACE}% of the parameters"


def _first(all_models: Sequence[Model], keys: Sequence[str]) -> Model | None:
    measured = {model.key: model for model in all_models if model.mean is not None}
    return next((measured[key] for key in keys if key in measured), None)


def _has_engine(run: Run) -> bool:
    if run.stage("engine") is not None:
        return True
    export = run.experiment.export_config if run.experiment else None
    return export is not None and export.HasField("engine_config")


def _model(
    run: Run, key: str, stage: Stage | None, times: dict[Path, dict[str, Any]], agreement: float | None
) -> Model:
    results = run.results.get(key)
    file = _file(run, key, results)
    timed = times.get(file.resolve(), {}) if file else {}
    size = number(timed.get("size_mib"))
    if size is None and file and file.is_file():
        size = file.stat().st_size / 2**20
    parameters = number(timed.get("parameters"))
    return Model(
        key=key,
        measured=results.measured if results else None,
        mean=results.mean if results else None,
        by_class=results.by_class if results else {},
        parameters=None if parameters is None else int(parameters),
        gmacs=number(timed.get("gmacs")),
        mebibytes=size,
        seconds=number(timed.get("seconds_per_image")),
        agreement=agreement,
        runtime=str(timed.get("runtime") or ""),
        why=_why(run, key, stage, results) or _not_timed(file, times),
        is_passing=key == "pruned" and run.stage("retrain") is not None,
    )


def _of_network(model: Model, last: Model) -> Model:
    """The row with the parameters and multiplications of its network, where its file does not tell them."""
    if model.parameters is not None or model.mean is None:
        return model
    return model._replace(parameters=last.parameters, gmacs=last.gmacs)


def _file(run: Run, key: str, results: Results | None) -> Path | None:
    if results and results.measured:
        return find(run, results.measured)
    engine = run.folder / "engine" / "model.engine"
    return engine if key == "engine" and engine.is_file() else None


def _why(run: Run, key: str, stage: Stage | None, results: Results | None) -> str:
    """Why a model has no accuracy."""
    if results is not None:
        return UNLABELLED if results.mean is None else ""
    if stage is not None:
        texts = {
            "failed": f"its evaluation failed: {stage.error or 'no reason is given'}",
            "begun": "is being evaluated, or was cut off",
            "waiting": "not evaluated yet",
            "skipped": f"not measured: {stage.error or 'it is not possible here'}",
        }
        return texts.get(stage.status, "its results.json is missing or damaged")
    built = run.stage("engine")
    if key == "engine" and built is not None and built.status == "failed":
        return f"could not be built: {built.error or 'no reason is given'}"
    if key == "engine" and (built is None or built.status != "done"):
        return "not built yet"
    return "not measured: an engine runs on a GPU only"


def _not_timed(file: Path | None, times: dict[Path, dict[str, Any]]) -> str:
    """Of two files of one network one is timed."""
    is_left_out = times and file and file.resolve() not in times
    return "not timed: another row has the same network" if is_left_out else ""


def _times(run: Run) -> dict[Path, dict[str, Any]]:
    """The entries of latency.json by file."""
    content = read_json(run.folder / LATENCY, []) or {}
    entries = content.get("models")
    found = [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []
    return {find(run, str(item.get("model"))).resolve(): item for item in found}


def _agreements(run: Run) -> dict[str, float]:
    """The agreement of each model with the float one, as far as both have kept what they found."""
    paths = {key: run.folder / f"{EVALUATE}{key}" / "details.npz" for key in run.results}
    if len(paths) < 2 or not ("float" in paths and paths["float"].is_file()):
        return {}
    from detectkit.evaluation import details  # imports torch, and is only needed here
    from detectkit.evaluation.agreement import agreement

    try:
        first = details.load(paths["float"])
    except DetectkitError:
        return {}
    found = {}
    for key, path in paths.items():
        try:
            other = details.load(path) if key != "float" else first
        except DetectkitError:
            continue
        if [item.name for item in other.images] == [item.name for item in first.images]:
            found[key] = agreement(first.detections(), other.detections()).share
    return found

"""Look through images and labels for what is wrong: a page with pictures, and a list to decide in. Nothing is changed.

With a model also labels that seem to be missing, of a wrong class, or badly placed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detectkit import spec
from detectkit.commands.options import add_device_arguments, add_spec_argument, choose_device
from detectkit.console import StatusLog, say, table
from detectkit.errors import SpecError, UsageError
from detectkit.files import make_directory

if TYPE_CHECKING:
    from detectkit.audit.findings import DataFinding
    from detectkit.audit.gather import Gathered
    from detectkit.predict import Predictor

FIRST = 8  # findings on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec or a conversion spec")
    parser.add_argument(
        "-m", "--model_path", type=Path, metavar="MODEL", help="suggest what this model finds otherwise, too"
    )
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        default=Path("cleaning"),
        metavar="DIR",
        help="where results go (cleaning)",
    )
    parser.add_argument(
        "--accept",
        default="",
        metavar="KIND,KIND",
        help="decide on all findings of these kinds as they are suggested, unless they are decided on",
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    message = spec.load(args.experiment_spec)
    if not isinstance(message, spec.Experiment | spec.DatasetExportConfig):
        raise SpecError(
            f"{args.experiment_spec} is an inference spec: clean takes a training or a conversion spec"
        )
    accepted = _kinds(args.accept)

    from detectkit.audit.gather import gather
    from detectkit.audit.listing import LIST, write_list
    from detectkit.audit.look import look
    from detectkit.audit.page import write_page

    config = (
        message.data_cleaning_config if isinstance(message, spec.Experiment) else spec.DataCleaningConfig()
    )
    predictor = _predictor(args, message)
    folder = make_directory(args.results_dir)
    status = StatusLog(folder / "status.jsonl")
    status.write("Starting cleaning.", status="STARTED")
    with status.failures():
        gathered = gather(message)
        found = look(gathered, config, predictor)
        decided = write_list(folder / LIST, found, accept=accepted, earlier=_earlier(message))
        page = write_page(folder, gathered.images, found)
    _tell(gathered, found)
    say(f"wrote {page} with pictures, and {folder / LIST}: {decided} of {len(found)} findings are decided on")
    if found:
        say(
            "next: look at the page, copy the list beside your spec, write `accept`, `keep` or another action into its column"
            " decision, and name the copy as cleaning_file of the conversion"
        )
    status.write("Cleaning complete.", status="SUCCESS", kpi={"findings": len(found), "decided": decided})


def _kinds(text: str) -> set[str]:
    from detectkit.audit.findings import FindingKind  # torch takes seconds: not for --help

    kinds = {kind.strip() for kind in text.split(",") if kind.strip()}
    unknown = kinds - set(FindingKind)
    if unknown:
        raise UsageError(f"--accept {sorted(unknown)[0]} is no kind; they are {', '.join(FindingKind)}")
    return kinds


def _earlier(message: spec.Experiment | spec.DatasetExportConfig) -> list[Path]:
    """The lists that conversions go by."""
    configs = message.dataset_export_config if isinstance(message, spec.Experiment) else [message]
    return [Path(config.cleaning_file).expanduser() for config in configs if config.cleaning_file]


def _predictor(args: argparse.Namespace, message: spec.Spec) -> Predictor | None:
    if args.model_path is None:
        return None
    from detectkit.predict import load_model

    experiment = message if isinstance(message, spec.Experiment) else None
    return load_model(args.model_path, choose_device(args), experiment=experiment)


def _tell(gathered: Gathered, found: Sequence[DataFinding]) -> None:
    from detectkit.audit.findings import counted
    from detectkit.audit.page import TITLES

    labels = sum(len(image.frame.labels) for image in gathered.images)
    if not found:
        say(f"nothing found in {len(gathered.images)} images with {labels} labels")
        return
    rows = [(str(kind), TITLES[kind], count) for kind, count in counted(found)]
    table(("kind", "what", "findings"), rows, title=f"{len(gathered.images)} images, {labels} labels")
    say("\nthe surest:")
    for item in found[:FIRST]:
        place = item.label_file if item.line else item.image or item.label_file
        line = f":{item.line}" if item.line else ""
        say(f"  {place}{line}: {item.kind}: {item.text}")

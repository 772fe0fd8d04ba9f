"""Measure several models side by side: accuracy by class, size, time, and how far they find the same."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detectkit import spec
from detectkit.commands.options import add_device_arguments, add_spec_argument, choose_device
from detectkit.console import log, say, table
from detectkit.files import atomic_write, check_writable, make_directory, short_names

JSON, HTML = "compare.json", "compare.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_argument(parser, help="a training spec: its validation images are measured")
    parser.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="models, ONNX files, engines; the first is the measure",
    )
    parser.add_argument(
        "-r", "--results_dir", type=Path, metavar="DIR", help="where compare.json and compare.html go"
    )
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> None:
    names = short_names(args.models)
    experiment = spec.load_experiment(args.experiment_spec)
    if args.results_dir:
        check_writable(args.results_dir / JSON)

    from detectkit.evaluation import require_package
    from detectkit.report import comparison

    require_package(experiment.evaluation_config)
    compared = comparison.compare(args.models, experiment, names, choose_device(args))
    headers, rows = comparison.rows(compared)
    table(headers, rows, title=comparison.title(compared))
    if compared[0].result.mean_average_precision is None:
        log.warning(
            "no class has a labelled box that counts in these images: there is no mAP to compare, only size, time and agreement"
        )
    if not args.results_dir:
        return
    folder = make_directory(args.results_dir)
    content = {
        "spec": str(args.experiment_spec),
        "models": [comparison.as_json(item) for item in compared],
    }
    with atomic_write(folder / JSON) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_write(folder / HTML) as path:
        path.write_text(comparison.as_page(args.experiment_spec, compared), encoding="utf-8")
    say(f"wrote {folder / JSON} and {folder / HTML}")

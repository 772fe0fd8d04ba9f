"""Write the page of a run, or one that puts several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectkit.console import say, table
from detectkit.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="the folder of a run, as of `detectkit run -r DIR`",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="of several runs, where the page goes; one has DIR/report.html",
    )


def run(args: argparse.Namespace) -> None:
    several = len(args.folders) > 1
    if several and args.output is None:
        raise UsageError("several runs need a file for their page: -o FILE")
    if not several and args.output is not None:
        raise UsageError("-o is for several runs: the page of one is DIR/report.html")

    from detectkit import report

    if several:
        say(f"wrote {report.compare_reports(args.folders, args.output)}")
        return
    written = report.write_report(args.folders[0])
    headers, rows = report.summary(args.folders[0])
    if rows:
        table(headers, rows)
    say(f"wrote {written}")

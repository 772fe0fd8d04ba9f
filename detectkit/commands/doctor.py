"""What is installed on this machine, which device and runtimes work, how fast the disk and the decoder are, and how
to mend what is wrong. Exit code 0 if a training works here, 1 if not."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectkit.console import say
from detectkit.doctor import CHECKS, Diagnosis, examine
from detectkit.errors import DetectkitError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r",
        "--results_dir",
        type=Path,
        default=Path("."),
        metavar="DIR",
        help="where results would go: the disk that is measured (the current folder)",
    )


def run(args: argparse.Namespace) -> None:
    found = []
    for check in CHECKS:
        title = check.title
        for line in examine(check, args.results_dir):
            found.append(line)
            _print(title, line)
            title = ""
    faults, notes = ([line for line in found if line.grade == grade] for grade in ("fault", "note"))
    if faults or notes:
        say("\nto mend:")
    for line in faults + notes:
        say(f"- {line.text}\n  {line.fix}")
    if faults:
        raise DetectkitError(f"training does not work on this machine: {faults[0].text}; the fix is above")
    say("\ntraining works on this machine")


def _print(title: str, line: Diagnosis) -> None:
    say(f"{title:<14}  {line.grade:<5}  {line.text}")

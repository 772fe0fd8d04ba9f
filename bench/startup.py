"""CPU seconds of the commands that answer at once: `--help`, `--version` (wanted below 0.25), `check --spec-only` (0.3).

User and system time of a child process, the median of five. Usage: python bench/startup.py
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DETECTKIT = Path(sys.executable).with_name("detectkit")
REPEATS = 5
COMMANDS = [
    (["--help"], 0.25),
    (["--version"], 0.25),
    (["check", "-e", "specs/demo/train.txt", "--spec-only"], 0.3),
]


def cpu_seconds(arguments: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([DETECTKIT, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    for arguments, bound in COMMANDS:
        cpu_seconds(arguments)  # the first run fills the disk's cache
        seconds = statistics.median(cpu_seconds(arguments) for _ in range(REPEATS))
        print(
            f"startup: {seconds / bound:.2f} of the {bound} s wanted: {seconds:.3f} s of CPU, detectkit {' '.join(arguments)}"
        )


if __name__ == "__main__":
    main()

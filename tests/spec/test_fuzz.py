"""A few of the damaged files of bench/fuzz.py: all are read or refused with a message."""

import runpy
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_damaged_specs_load_or_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    counts = runpy.run_path(str(BENCH / "fuzz.py"))["fuzz"](300, seed=7)
    assert sum(counts.values()) == 300
    assert {outcome.split(": ")[1] for outcome in counts} == {"loads", "refused"}


def test_damaged_files_are_read_or_refused(monkeypatch):
    """Those with a checksum as they were written, or not at all."""
    monkeypatch.syspath_prepend(BENCH)
    counts = runpy.run_path(str(BENCH / "fuzz.py"))["fuzz_files"](144, seed=7)
    assert sum(counts.values()) == 144
    assert {outcome.rpartition(": ")[2] for outcome in counts} <= {"refused", "same", "changed"}

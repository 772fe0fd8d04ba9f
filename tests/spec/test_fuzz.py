"""A few of the damaged specs of bench/fuzz.py: all load or are refused with a message."""

import runpy
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_damaged_specs_load_or_are_refused(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    counts = runpy.run_path(str(BENCH / "fuzz.py"))["fuzz"](300, seed=7)
    assert sum(counts.values()) == 300
    assert {outcome.split(": ")[1] for outcome in counts} == {"loads", "refused"}

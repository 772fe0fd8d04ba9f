"""Every spec that ships loads, breaks no rule, and says nothing that has no effect."""

from pathlib import Path

import pytest

from detectkit import spec

SPECS = sorted((Path(__file__).parent.parent / "specs").rglob("*.txt"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_spec_loads_without_a_warning(path):
    message = spec.load(path)
    assert spec.check(message) == [] and spec.warnings(message) == []


def test_there_are_specs():
    assert {path.parent.name for path in SPECS} >= {"demo", "bccd"}

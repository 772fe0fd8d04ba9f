"""The command that shows what the checks find: tests/doctor has these."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from detectkit.cli import main
from detectkit.commands import doctor
from detectkit.doctor import CHECKS, Check, Diagnosis, machine, packages

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture
def quick(monkeypatch: Patch) -> None:
    """Measure shortly."""
    monkeypatch.setattr(machine, "WRITTEN", machine.MEBIBYTE)
    monkeypatch.setattr(machine, "DECODE_SECONDS", 0.01)


def test_this_machine(capsys: Capture, tmp_path: Path) -> None:
    start = time.process_time()
    assert main(["doctor", "-r", str(tmp_path / "results")]) == 0
    assert time.process_time() - start < 20
    text = capsys.readouterr().out
    assert [line.split("  ")[0] for line in text.splitlines() if re.match(r"\w.* {2}(ok|note) ", line)] == [
        check.title for check in CHECKS
    ]
    assert f"all {len(packages.requirements()[''])} packages that detectkit needs are here and load" in text
    assert re.search(r"\d cores for us, \d+ threads, (no )?bfloat16 units", text)
    assert re.search(r"ONNX Runtime +ok +[\d.]+ runs a layer on CPU; it has .*CPU", text)
    assert re.search(rf"{tmp_path}: writes \d+ MiB/s, reads \d+ MiB/s, [\d.]+ GiB free", text)
    assert re.search(r"decoder +ok +\d+ JPEG and \d+ PNG images/s of 640x480 on one core", text)
    assert text.endswith("\ntraining works on this machine\n")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(capsys: Capture, tmp_path: Path, quick: None) -> None:
    (tmp_path / "file").touch()
    assert main(["doctor", "-r", str(tmp_path / "file" / "results")]) == 1
    output = capsys.readouterr()
    text = f"cannot write to {tmp_path}/file/results: Not a directory"
    fix = "make room or set its permissions, or name another folder with -r"
    assert f"disk            fault  {text}\n" in output.out
    assert f"\nto mend:\n- {text}\n  {fix}\n" in output.out
    assert output.err == f"error: training does not work on this machine: {text}; the fix is above\n"


def test_a_check_that_fails_is_a_line(monkeypatch: Patch, capsys: Capture) -> None:
    def fails(folder: Path) -> Iterator[Diagnosis]:
        yield Diagnosis("ok", "so far")
        raise OSError("libgomp.so.1: cannot open shared object file\nand more")

    monkeypatch.setattr(doctor, "CHECKS", (Check("first", fails, "mend it"),))
    assert main(["doctor"]) == 0
    text = "first: OSError: libgomp.so.1: cannot open shared object file"
    assert capsys.readouterr().out.splitlines() == [
        "first           ok     so far",
        f"                note   {text}",
        "",
        "to mend:",
        f"- {text}",
        "  mend it",
        "",
        "training works on this machine",
    ]
    monkeypatch.setattr(doctor, "CHECKS", (Check("first", fails, "mend it", for_training=True),))
    assert main(["doctor"]) == 1
    assert (
        f"error: training does not work on this machine: {text}; the fix is above\n"
        == capsys.readouterr().err
    )

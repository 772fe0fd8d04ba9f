"""The command line itself: help, version, names of commands, and what it says to a wrong line."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detectkit import __version__
from detectkit.cli import ALIASES, COMMANDS, main

SPECS = Path(__file__).parent / "spec"
USAGE_ERROR = 2

Capture = pytest.CaptureFixture[str]


def printed(arguments: list[str], captured: Capture) -> str:
    """What a command that ends early and well prints."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    return captured.readouterr().out


def complaint(arguments: list[str], captured: Capture) -> str:
    """The one line that answers a wrong command line."""
    assert main(arguments) == USAGE_ERROR
    error = captured.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_answers_at_once_and_without_torch(arguments: list[str]) -> None:
    code = (
        "import resource, sys, json\n"
        "from detectkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps([used.ru_utime + used.ru_stime, sorted({'torch', 'numpy', 'PIL'} & sys.modules.keys())]))\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    seconds, heavy = zip(*(json.loads(run.splitlines()[-1]) for run in runs))
    assert min(seconds) < 0.5 and not any(heavy)


def test_help_lists_every_command(capsys: Capture) -> None:
    text = printed(["-h"], capsys)
    for name in (*COMMANDS, *ALIASES):
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_help_of_a_command_tells_what_each_option_is_for(name: str, capsys: Capture) -> None:
    text = printed([name, "--help"], capsys)
    assert text.startswith(f"usage: detectkit {name} ")
    module = importlib.import_module(f"detectkit.commands.{ALIASES.get(name, name).replace('-', '_')}")
    assert " ".join(module.__doc__.split()) in " ".join(text.split())
    options = text.split("options:\n")[1]
    entries = re.split(r"\n(?=  -)", options.rstrip())
    assert {"-h, --help", "-k KEY, --key KEY", "-v, --verbose"} <= {
        entry[2:].split("  ")[0] for entry in entries
    }
    for entry in entries:
        assert re.search(r"(\s{2,}|\n\s+)\w", entry[2:]), f"no word on {entry}"


def test_version(capsys: Capture) -> None:
    assert printed(["--version"], capsys) == f"detectkit {__version__}\n"


def test_unknown_command(capsys: Capture) -> None:
    assert "there is no command trian; did you mean train?" in complaint(["trian", "-e", "spec.txt"], capsys)
    assert f"the commands are {', '.join(COMMANDS)}" in complaint(["xyz"], capsys)
    assert "COMMAND; `detectkit --help` shows" in complaint([], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-e", "spec.txt"], "the following arguments are required: -r/--results_dir"),
        (["-e", "spec.txt", "-r", "results", "--gpu", "1"], "unrecognized arguments: --gpu 1"),
        (["-e", "spec.txt", "-r", "results", "--gpus", "one"], "argument --gpus: invalid int value: 'one'"),
        (["-e", "spec.txt", "-r"], "argument -r/--results_dir: expected one argument"),
    ],
)
def test_wrong_options(arguments: list[str], words: str, capsys: Capture) -> None:
    assert f"{words}; `detectkit train --help` shows" in complaint(["train", *arguments], capsys)


def test_wrong_values(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "spec.txt").write_text((SPECS / "kitti_train.txt").read_text())
    line = ["evaluate", "-e", str(tmp_path / "spec.txt")]
    assert "give a model (-m MODEL), or detections" in complaint(line, capsys)
    assert "--detections and --labels belong together" in complaint([*line, "--detections", "found"], capsys)
    assert "--tune-clustering needs a model" in complaint(
        [*line, "--detections", "a", "--labels", "b", "--tune-clustering"], capsys
    )


@pytest.mark.parametrize("alias", ALIASES)
def test_names_of_tlt_are_the_same_commands(alias: str, capsys: Capture) -> None:
    texts = [printed([name, "-h"], capsys).split() for name in (alias, ALIASES[alias])]
    assert texts[0][2:3] == [alias] and texts[0][3:] == texts[1][3:]


def test_a_key_is_accepted_and_said_to_do_nothing(capsys: Capture) -> None:
    line = ["check", "-e", str(SPECS / "kitti_infer.txt"), "--spec-only"]
    assert main([*line, "-k", "tlt_encode"]) == 0
    assert "WARNING: -k: files are not encrypted here, the key is not used\n" in capsys.readouterr().err
    assert main(line) == 0
    assert "-k" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "detectkit", "explain"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_an_error_of_the_system_names_the_file(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> str:
        raise OSError(28, os.strerror(28), "results/file")

    monkeypatch.setattr("detectkit.spec.explain", fails)
    assert main(["explain"]) == 6
    assert capsys.readouterr().err == "error: results/file: No space left on device\n"

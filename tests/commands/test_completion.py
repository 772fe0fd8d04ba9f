"""The completion scripts, and what bash completes with its own."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detectkit.cli import main
from detectkit.commands.tree import ALIASES, COMMANDS

Capture = pytest.CaptureFixture[str]

# Completes the words given, the last one being typed, and prints a suggestion a line.
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_detectkit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    path = tmp_path_factory.mktemp("completion") / "detectkit.bash"
    path.write_text(made("bash"))
    return path


def made(shell: str) -> str:
    """The script for a shell, from a process of its own as a person makes it."""
    command = [sys.executable, "-m", "detectkit", "completion", shell]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def completed(script: Path, folder: Path, *words: str) -> list[str]:
    command = ["bash", "-c", ASK, "bash", str(script), "detectkit", *words]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return found.stdout.split()


def test_the_script_is_right_bash(script: Path) -> None:
    found = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        ([""], [*COMMANDS, *ALIASES]),
        (["gen"], ["gen_trt_engine"]),  # TLT's name
        (["train", "--res"], ["--results_dir"]),
        (["train", "-e", "s.txt", "-r", "r", "--mod"], ["--model_name"]),
        (["gen_trt_engine", "--max_w"], ["--max_workspace_size"]),
        (["export", "--runtime", "o"], ["onnxruntime"]),  # a choice
        (["train", "--use"], []),  # accepted from TLT's command lines, not suggested
        (["completion", "z"], ["zsh"]),
        (["--v"], ["--version"]),
    ],
)
def test_commands_and_options(script: Path, tmp_path: Path, words: list[str], expected: list[str]) -> None:
    assert completed(script, tmp_path, *words) == expected


def test_files_and_folders(script: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.txt").touch()
    (tmp_path / "specs").mkdir()
    assert sorted(completed(script, tmp_path, "train", "-e", "spe")) == ["spec.txt", "specs"]
    assert completed(script, tmp_path, "train", "-r", "spe") == ["specs"]  # a folder of results
    assert sorted(completed(script, tmp_path, "compare", "-e", "spec.txt", "spe")) == ["spec.txt", "specs"]


@pytest.mark.parametrize(
    ("shell", "beginning"), [("zsh", "#compdef detectkit"), ("tcsh", "complete detectkit")]
)
def test_other_shells(shell: str, beginning: str, tmp_path: Path) -> None:
    text = made(shell)
    assert any(line.startswith(beginning) for line in text.splitlines())
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_another_shell_and_a_missing_package(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["completion", "fish"]) == 2
    error = capsys.readouterr().err
    assert "argument shell: invalid choice: 'fish'" in error and error.count("\n") == 1

    imported = builtins.__import__

    def without_shtab(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "shtab":
            raise ModuleNotFoundError("No module named 'shtab'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_shtab)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr().err.endswith("(No module named 'shtab'): pip install shtab\n")


def test_help_says_how_to_install_it(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    text = capsys.readouterr().out
    assert "detectkit completion bash > ~/.local/share/bash-completion/completions/detectkit\n" in text
    assert "~/.zshrc" in text and "~/.tcshrc" in text

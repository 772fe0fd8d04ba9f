"""What the README and the pages under docs/ name is there, and the command lines they show are understood."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from detectkit.cli import ALIASES, COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
SPEC_PATH = re.compile(r"\bspecs/[\w./-]*\w")
SHOWN = re.compile(r"^ +detectkit (.+)$", re.MULTILINE)
TABLE = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)


def command_lines() -> list[str]:
    """The commands in code blocks, and those of the README's table with the parts in brackets written out."""
    shown = [line for page in PAGES for line in SHOWN.findall(page.read_text())]
    table = [re.sub(r"[][]", "", line) for line in TABLE.findall(PAGES[0].read_text())]
    return shown + table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text().replace("specs/mine", "specs/demo")  # the reader's copy
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in SPEC_PATH.findall(text) if not (ROOT / path).exists()]
    assert missing == []


def test_every_command_is_in_the_readme() -> None:
    assert {line.split()[0] for line in command_lines()} == set(COMMANDS)


@pytest.mark.parametrize("line", command_lines())
def test_a_command_line_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["1" if word == "N" else word for word in shlex.split(line, comments=True)]
    name = ALIASES.get(arguments[0], arguments[0])
    module = importlib.import_module(f"detectkit.commands.{name.replace('-', '_')}")
    understood: list[argparse.Namespace] = []
    monkeypatch.setattr(module, "run", understood.append)
    assert main(arguments) == 0 and len(understood) == 1

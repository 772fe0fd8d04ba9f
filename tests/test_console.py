"""What is printed: names are shown and not obeyed, and no terminal's encoding ends a command."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from detectkit import console
from detectkit.cli import main
from detectkit.console import visible

Capture = pytest.CaptureFixture[str]
HOSTILE = "a\x1b[31mb\x07c\0d\re\x9bf\u202eg\u2028h"
SHOWN = r"a\x1b[31mb\x07c\x00d\re\x9bf\u202eg\u2028h"


@pytest.mark.parametrize(
    "text", ["car", "voiture à quai", "人", "车 Fußgänger", 'a "b"', "می‌خواهم", "vier☃", "🚗", ""]
)
def test_text_of_any_script_is_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_control_characters_are_escapes() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\nb\tc") == r"a\nb\tc" and visible("a\nb\tc", kept="\n\t") == "a\nb\tc"


def test_tables_lines_logs_and_errors_show_escapes(capsys: Capture, tmp_path: Path) -> None:
    console.set_up(verbose=False, log_file=tmp_path / "log")
    console.say(f"wrote {HOSTILE}")
    console.table(("class", "AP"), [(f"x\n{HOSTILE}", "1.0")])
    console.log.warning(f"x\nERROR: {HOSTILE}")
    console.log.warning("%s", HOSTILE)
    console.fail(HOSTILE)
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"wrote {SHOWN}" and out.splitlines()[-1] == rf"x\n{SHOWN}  1.0"
    assert err == f"WARNING: x\\nERROR: {SHOWN}\nWARNING: {SHOWN}\nerror: {SHOWN}\n"
    assert [line.split("WARNING: ")[1] for line in (tmp_path / "log").read_text().splitlines()] == [
        f"x\\nERROR: {SHOWN}",
        SHOWN,
    ]
    console.set_up(verbose=False)


def test_a_path_in_an_error_is_shown_and_not_obeyed(capsys: Capture) -> None:
    assert main(["explain", "\x1b]0;title\x07"]) == 2
    assert "\x1b" not in (error := capsys.readouterr().err) and r"\x1b]0;title\x07" in error


def test_a_name_that_a_log_file_cannot_hold(capsys: Capture, tmp_path: Path) -> None:
    console.show_all()
    console.set_up(verbose=False, log_file=tmp_path / "log")
    console.log.warning("\udcff.jpg")  # of a file system that is not UTF-8
    console.set_up(verbose=False)
    assert r"\udcff.jpg" in (tmp_path / "log").read_text()
    assert logging.raiseExceptions and "Traceback" not in capsys.readouterr().err


CODE = """
import sys
from detectkit import cli, console
from detectkit.commands import tree

def run(args):
    console.table(("class", "AP"), [("vier\u2603", "1.0")])
    console.log.warning("vier\u2603 \udcff")
    raise cli.DetectkitError("vier\u2603")

class Module:
    run = staticmethod(run)

_, args = tree.parse(["explain"])
cli.parse = lambda arguments: (Module, args)
sys.exit(cli.main(["explain"]))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_that_lacks_the_letters(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(CODE.replace("\udcff", r"\udcff"), encoding="utf-8")
    environment = os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"}
    ended = subprocess.run([sys.executable, tmp_path / "code.py"], capture_output=True, env=environment)
    name = "vier☃" if encoding == "utf-8" else r"vier\u2603"
    assert ended.returncode == 1
    assert name in ended.stdout.decode(encoding)
    assert ended.stderr.decode(encoding) == f"WARNING: {name} \\udcff\nerror: {name}\n"

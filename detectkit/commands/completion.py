"""Print a script that completes detectkit's commands, options and files in a shell: TAB after `detectkit tr` gives train."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from detectkit.commands import tree
from detectkit.console import say
from detectkit.errors import DetectkitError

SHELLS = ("bash", "zsh", "tcsh")
INSTALLING = """\
to install it, for the shells started from then on:
  bash  detectkit completion bash > ~/.local/share/bash-completion/completions/detectkit
        (make the folder first; without the package bash-completion, put this into ~/.bashrc:
        eval "$(detectkit completion bash)")
  zsh   detectkit completion zsh > ~/.zfunc/_detectkit
        (make the folder first, and put this into ~/.zshrc, before compinit: fpath=(~/.zfunc $fpath))
  tcsh  detectkit completion tcsh > ~/.detectkit.tcsh
        (and put this into ~/.tcshrc: source ~/.detectkit.tcsh)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="which shell the script is for")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = INSTALLING


def run(args: argparse.Namespace) -> None:
    try:
        import shtab
    except ImportError as error:
        raise DetectkitError(
            f"the scripts are made by a package that is not here ({error}): pip install shtab"
        ) from error

    parser = tree.whole()
    for action in _actions(parser):
        if action.type is Path:
            folder = action.metavar == "DIR"
            action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
    say(shtab.complete(parser, args.shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)

"""Reads what check.py needs of a Dockerfile and a .dockerignore: https://docs.docker.com/reference/dockerfile."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import NamedTuple

KNOWN = set("ARG CMD COPY ENTRYPOINT ENV HEALTHCHECK LABEL RUN STOPSIGNAL USER VOLUME WORKDIR".split())
FLAG = re.compile(r"--([a-z-]+)=(\S+)\s+")
VARIABLE = re.compile(r"\\(\$)|\$(\w+)|\$\{(\w+)(?::([-+])([^}]*))?\}")


class Instruction(NamedTuple):
    """One instruction: `COPY --from=build a b` has the name COPY, the flags {"from": "build"} and the value `a b`."""

    line: int
    name: str
    flags: dict[str, str]
    value: str

    @property
    def words(self) -> list[str]:
        """The value of the exec form (a JSON list), else its words as a shell splits them."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


class Stage(NamedTuple):
    """FROM base AS name, and what follows."""

    name: str
    base: str
    instructions: list[Instruction]

    def last(self, name: str) -> Instruction | None:
        """The instruction that counts of those that replace each other, such as USER."""
        return next((item for item in reversed(self.instructions) if item.name == name), None)


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile. ValueError for what is not known here: better than running something else."""
    stages: list[Stage] = []
    for line, content in _logical_lines(text):
        name, _, value = content.partition(" ")
        if name == "FROM":
            match = re.fullmatch(r"(\S+) AS (\S+)", value.strip())
            if match is None:
                raise ValueError(f"line {line}: FROM needs a name here: FROM BASE AS NAME")
            stages.append(Stage(match[2], match[1], []))
        elif name not in KNOWN or not stages or "<<" in value:
            raise ValueError(f"line {line}: this {name} is not known here")
        else:
            flags, value = _flags(value.strip())
            stages[-1].instructions.append(Instruction(line, name, flags, value))
    return stages


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME:+other}` replaced, as Docker does before COPY, ENV, USER."""

    def value(match: re.Match[str]) -> str:
        dollar, short, name, sign, word = match.groups()
        found = variables.get(short or name or "", "")
        if dollar:
            return "$"
        if sign == "-":
            return found or word
        if sign == "+":
            return word if found else ""
        return found

    return VARIABLE.sub(value, text)


def ignored(path: str, patterns: list[str]) -> bool:
    """Whether a file of the context stays out of it: the last line of .dockerignore that fits decides."""
    result = False
    parents = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
    for pattern in patterns:
        plain = pattern.removeprefix("!")
        forms = (plain, plain.removeprefix("**/"))
        # fnmatch's * also crosses folders; all patterns here are names, or begin with **/
        if any(fnmatch(parent, form) for parent in parents for form in forms if parent != "."):
            result = not pattern.startswith("!")
    return result


def patterns(path: Path) -> list[str]:
    """The lines of a .dockerignore."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines joined where they end in a backslash, without comments, each with the number of its first."""
    start, parts = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        start = start or number
        parts += line.rstrip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            yield start, parts.strip()
            start, parts = 0, ""


def _flags(value: str) -> tuple[dict[str, str], str]:
    flags = {}
    while match := FLAG.match(value):
        flags[match[1]] = match[2]
        value = value[match.end() :]
    return flags, value

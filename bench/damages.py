"""Damages: of a text in tokens, of bytes, of what a JSON file holds. All are drawn from a generator, so that a seed repeats them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

from detectkit.spec.explain import places
from detectkit.spec.text import TOKEN

NUMBERS = (
    *(
        "nan",
        "-nan",
        "inf",
        "-inf",
        "infinity",
        "0",
        "-0",
        "-1",
        "1",
        "2",
        "3",
        "16",
        "0.5",
        "1e-320",
        "1e308",
        "1e999",
    ),
    *(
        "-1e39",
        "2147483648",
        "4294967296",
        "-2147483649",
        "18446744073709551616",
        "9" * 400,
        "0x10",
        "007",
        "1.",
        ".5f",
    ),
)
PIECES = (
    *(
        "{",
        "}",
        "<",
        ">",
        "[",
        "]",
        ":",
        ";",
        ",",
        "#",
        "//",
        '"',
        "'",
        "\\",
        "“",
        "”",
        "\0",
        "\x85",
        "\u2028",
        "\ufeff",
    ),
    *(
        '"\\xff"',
        '"\\u12"',
        "-",
        "+",
        "true",
        "key",
        "value",
        "\r",
        "é",
        "\U0001f697",
        "<FIXME>",
        "a{" * 40,
        "[" * 40,
    ),
)
# What stands in the place of a value of a JSON file.
ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    1e-320,
    1e38,
    1e308,
    -1e39,
    2**31,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
)
ODD += ("", "x", "\x1b[31m", "1", "nan", "../../x", [], {}, [[]], [None], {"x": 1})  # type: ignore[assignment]
Damage = Callable[[list[str], random.Random], None]


def damaged_text(text: str, generator: random.Random) -> str:
    tokens = [match.group() for match in TOKEN.finditer(text)]
    damages = generator.choice((SOUND, SOUND, SOUND + BROKEN))
    for _ in range(generator.randint(1, 4)):
        generator.choice(damages)(tokens, generator)
    return "".join(tokens)


def damaged_bytes(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        at = generator.randrange(len(changed) + 1)
        length = generator.choice((0, 1, 1, 4))
        changed[at : at + length] = generator.randbytes(generator.choice((0, 1, 1, 4)))
    return bytes(changed)


def damaged_json(content: Any, generator: random.Random) -> Any:
    """A copy of what a JSON file holds, with one to three values left out, doubled or replaced."""
    changed = [copy.deepcopy(content)]
    for _ in range(generator.randint(1, 3)):
        holder, key = generator.choice(_values(changed))
        what = generator.random()
        if what < 0.2 and holder is not changed:
            del holder[key]
        elif what < 0.3 and isinstance(holder, list) and holder is not changed:
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(generator.choice(ODD))
    return changed[0]


def _values(content: Any) -> list[tuple[Any, Any]]:
    """Every value of nested lists and dictionaries, by what holds it and its key there."""
    keys = range(len(content)) if isinstance(content, list) else content if isinstance(content, dict) else ()
    found = [(content, key) for key in keys]
    return found + [inner for key in keys for inner in _values(content[key])]


# Damages of a list of tokens, in place. Half of the tokens are spaces.


def leave_out(tokens: list[str], generator: random.Random) -> None:
    at = generator.randrange(len(tokens) + 1)
    del tokens[at : at + generator.choice((1, 2, 8))]


def double(tokens: list[str], generator: random.Random) -> None:
    at = generator.randrange(len(tokens) + 1)
    tokens[at:at] = tokens[at : at + generator.choice((1, 2, 8, 40))]


def swap(tokens: list[str], generator: random.Random) -> None:
    if tokens:
        first, second = generator.randrange(len(tokens)), generator.randrange(len(tokens))
        tokens[first], tokens[second] = tokens[second], tokens[first]


def insert(tokens: list[str], generator: random.Random) -> None:
    tokens.insert(generator.randrange(len(tokens) + 1), generator.choice(PIECES))


def change_number(tokens: list[str], generator: random.Random) -> None:
    numbers = [at for at, token in enumerate(tokens) if token[:1] in "-.0123456789"]
    if numbers:
        tokens[generator.choice(numbers)] = generator.choice(NUMBERS)


def change_name(tokens: list[str], generator: random.Random) -> None:
    """Another field's name in the place of one, or another text in the place of one."""
    names = [at for at, token in enumerate(tokens) if token[:1].isalpha()]
    strings = [at for at, token in enumerate(tokens) if token[:1] in "\"'"]
    if strings and generator.random() < 0.3:
        tokens[generator.choice(strings)] = tokens[generator.choice(strings)]
    elif names:
        tokens[generator.choice(names)] = generator.choice(FIELDS)


def change_block(tokens: list[str], generator: random.Random) -> None:
    """A whole block left out, doubled, or put into itself."""
    openers = [at for at, token in enumerate(tokens) if token == "{"]
    if not openers:
        return
    start = generator.choice(openers)
    depth, end = 0, start
    while end < len(tokens):
        depth += (tokens[end] == "{") - (tokens[end] == "}")
        end += 1
        if depth == 0:
            break
    block = tokens[start:end]
    tokens[start:end] = generator.choice(([], ["{", "}"], block * 2, ["{", *block, "}"], block[:1] * 40))


def cut(tokens: list[str], generator: random.Random) -> None:
    del tokens[generator.randrange(len(tokens) + 1) :]


FIELDS = sorted({place.field.name for place in places()})
SOUND: tuple[Damage, ...] = (change_number, change_number, change_name, change_block)  # mostly still specs
BROKEN: tuple[Damage, ...] = (leave_out, double, swap, insert, cut)

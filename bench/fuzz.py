"""Damaged specs: every one of them must load or be refused with a message, whatever its bytes.

    python bench/fuzz.py [--cases 100000] [--seed 1]

Starts from every spec in specs/ and tests/spec/, as text and in protobuf's binary form. A case has one to four mutations:
tokens left out, doubled, swapped, inserted or replaced (numbers by nan, infinities, huge, tiny and negative ones, names by
other names), whole blocks left out, doubled or nested, ends cut off, bytes changed. What loads is also written out, read back
and compared with TLT. Any exception but SpecError is printed with its case and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from detectkit import spec
from detectkit.errors import SpecError
from detectkit.spec.explain import places
from detectkit.spec.text import TOKEN

ROOT = Path(__file__).parents[1]
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
Damage = Callable[[list[str], random.Random], None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Load damaged specs; count what becomes of them.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger("detectkit").setLevel(logging.ERROR)  # warnings of a hundred thousand specs
    start = time.perf_counter()
    counts = fuzz(args.cases, args.seed)
    for outcome, count in counts.most_common():
        print(f"{count:8}  {outcome}")
    print(f"{args.cases} specs in {time.perf_counter() - start:.0f} s, seed {args.seed}")
    sys.exit(any("traceback" in outcome for outcome in counts))


def fuzz(cases: int, seed: int) -> Counter[str]:
    """Outcomes of so many damaged specs, counted by how they were given and what became of them."""
    generator = random.Random(seed)
    texts = [
        path.read_text() for path in sorted([*ROOT.glob("specs/**/*.txt"), *ROOT.glob("tests/spec/*.txt")])
    ]
    binaries = [spec.loads(text).SerializeToString() for text in texts]
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spec"
        for case in range(cases):
            kind = ("text", "text", "text", "bytes", "binary")[case % 5]
            if kind == "text":
                text = damaged_text(generator.choice(texts), generator)
                outcome = of(lambda: spec.loads(text), "spec:", repr(text))
            else:
                whole = generator.choice(binaries if kind == "binary" else texts)
                data = damaged_bytes(whole if isinstance(whole, bytes) else whole.encode(), generator)
                file.write_bytes(data)
                outcome = of(lambda: spec.load(file), str(file), repr(data))
            counts[f"{kind}: {outcome}"] += 1
    return counts


def of(load: Callable[[], spec.Spec], name: str, shown: str) -> str:
    """What becomes of one spec: `loads`, `refused`, or `traceback`, which is printed."""
    try:
        message = load()
        spec.differences(message)
        if spec.dumps(spec.loads(spec.dumps(message))) != spec.dumps(message):
            raise ValueError("written out and read back, the spec is another one")
        return "loads"
    except SpecError as error:
        if str(error).startswith(name):
            return "refused"
        print(f"a message that does not name the file: {error}\n{shown}\n", flush=True)
    except Exception:
        traceback.print_exc()
        print(f"{shown}\n", flush=True)
    return "traceback"


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

if __name__ == "__main__":
    main()

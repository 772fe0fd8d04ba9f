"""Damaged files: every one of them must be read or refused with a message, whatever its bytes, and nothing may be lost without a word.

    python bench/fuzz.py [--cases 100000] [--seed 1]           # specs
    python bench/fuzz.py --files [--cases 20000] [--seed 1]    # the other files: bench/damaged_files.py says which, and what counts
    python bench/fuzz.py --files --kind 'labels, coco'         # one kind of them

Specs start from every spec in specs/ and tests/spec/, as text and in protobuf's binary form. A case has one to four mutations:
tokens left out, doubled, swapped, inserted or replaced (numbers by nan, infinities, huge, tiny and negative ones, names by
other names), whole blocks left out, doubled or nested, ends cut off, bytes changed. What loads is also written out, read back
and compared with TLT. Any exception but detectkit's own is printed with its case, as is a case that takes longer than LONGEST
and one that is lost, and they make the exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import damaged_files
from damages import damaged_bytes, damaged_text

from detectkit import spec
from detectkit.errors import SpecError

ROOT = Path(__file__).parents[1]
LONGEST = 20  # seconds a case, on a busy machine
WRONG = ("traceback", "lost", "silent", "hangs")


def main() -> None:
    parser = argparse.ArgumentParser(description="Read damaged files; count what becomes of them.")
    parser.add_argument("--files", action="store_true", help="other files than specs")
    parser.add_argument("--kind", metavar="KIND", help="one kind of them")
    parser.add_argument("--cases", type=int, help="100000 specs, or 20000 files")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger("detectkit").setLevel(logging.CRITICAL)  # warnings of a hundred thousand files
    start = time.perf_counter()
    if args.files or args.kind:
        counts = fuzz_files(args.cases or 20_000, args.seed, only=args.kind)
    else:
        counts = fuzz(args.cases or 100_000, args.seed)
    for name, count in sorted(counts.items()):
        print(f"{count:8}  {name}")
    print(f"{counts.total()} cases in {time.perf_counter() - start:.0f} s, seed {args.seed}")
    sys.exit(any(name.endswith(WRONG) for name in counts))


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


def fuzz_files(cases: int, seed: int, *, only: str | None = None) -> Counter[str]:
    """Outcomes of so many damaged files, the same number of each kind, counted by kind and by what became of them."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        made = damaged_files.kinds(Path(folder))
        chosen = {name: kind for name, kind in made.items() if only in (None, name)}
        if not chosen:
            sys.exit(f"there is no kind {only}: choose of {'; '.join(made)}")
        for name, kind in chosen.items():
            for number in range(-(-cases // len(chosen))):
                counts[
                    f"{name}: {_outcome(name, kind, random.Random(f'{seed} {name} {number}'), number)}"
                ] += 1
    return counts


def _outcome(name: str, kind: damaged_files.Kind, generator: random.Random, number: int) -> str:
    """See `damaged_files`; besides, `traceback`, `lost`, and `hangs`, which are printed as is `silent`."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(LONGEST)
    try:
        found = damaged_files.outcome(kind, generator)
        if found == "silent":
            print(f"{name}, case {number}: silent\n", flush=True)
        return found
    except damaged_files.Lost as error:
        print(f"{name}, case {number}: {error}\n", flush=True)
        return "lost"
    except TimeoutError:
        traceback.print_exc()
        return "hangs"
    except Exception:
        traceback.print_exc()
        print(f"{name}, case {number}\n", flush=True)
        return "traceback"
    finally:
        signal.alarm(0)


def _give_up(*_: object) -> None:
    raise TimeoutError(f"longer than {LONGEST} s")


if __name__ == "__main__":
    main()

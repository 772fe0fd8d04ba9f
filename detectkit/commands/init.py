"""Look at a folder of labelled images, and write a short training spec that fits it: with it, `detectkit run` does the rest.

KITTI, COCO, Pascal VOC, YOLO and CSV are recognised, also as labelling tools export them.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectkit.console import log, say, table
from detectkit.errors import OutputError, UsageError
from detectkit.files import atomic_write, check_writable

if TYPE_CHECKING:
    from detectkit.propose.choose import Choice, Pace, Proposal, Start
    from detectkit.propose.count import Contents

KINDS = ("kitti", "coco", "voc", "yolo", "csv")
REASONS = 5  # of what was left out, told on the terminal
MINUTES = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of images and their labels")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="SPEC",
        help="the spec to write (specs/NAME.txt, by the name of the folder)",
    )
    parser.add_argument("--format", choices=KINDS, help="of the labels, where a folder has several")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="PATH",
        help="a file of ImageNet weights, or a folder with some; the best are taken",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="N",
        help=f"that the first training may take on this machine ({MINUTES:g}); the one after pruning takes less than twice that",
    )
    parser.add_argument("--head", choices=("grid",), default="grid", help="of the network (grid)")
    parser.add_argument(
        "--target-latency",
        type=float,
        metavar="MS",
        help="milliseconds that an image may take the finished network here; the largest that holds it is taken",
    )
    parser.add_argument(
        "--classes", metavar="A,B", help="only these, with commas between them; others are background"
    )
    parser.add_argument(
        "--explain", action="store_true", help="print also what else there was to choose, with its numbers"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a spec that is there already")


def run(args: argparse.Namespace) -> None:
    _check_number("--minutes", args.minutes)
    if args.target_latency is not None:
        _check_number("--target-latency", args.target_latency)
    path = args.output or Path("specs", f"{_name(args.data)}.txt")
    _check_place(path, overwrite=args.overwrite)

    from detectkit.data.layouts import recognise
    from detectkit.propose.count import count

    contents = count(recognise(_named_alike(args.data), args.format))
    _print_contents(contents)
    proposal, pace = _propose(args, contents, path)
    _print_choices(proposal, explain=args.explain)
    _print_doubts(proposal, pace, args.minutes)
    _write(proposal, path)
    say(f"wrote {path}")
    say(f"next: detectkit run -e {path}   (--dry-run tells first how long each stage takes)")


def _check_number(option: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{option} {value:g}: must be a number above 0")


def _name(folder: Path) -> str:
    """A name for files, from that of the folder."""
    return re.sub(r"[^\w.-]+", "_", folder.resolve().name).strip("._") or "mine"


def _named_alike(folder: Path) -> Path:
    """The path as a spec has it: short below the current folder, from where commands run."""
    absolute, here = folder.absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def _check_place(path: Path, *, overwrite: bool) -> None:
    """Raise before any work where the spec cannot be written, or would take the place of another one."""
    if path.is_dir():
        raise UsageError(f"-o {path} is a folder: name a file in it, for instance {path / 'mine.txt'}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already: give another -o, or --overwrite")
    check_writable(path)


def _propose(args: argparse.Namespace, contents: Contents, path: Path) -> tuple[Proposal, Pace]:
    """All choices; the network is timed on this machine before its epochs are counted."""
    from detectkit import spec
    from detectkit.propose import choose, measure, write

    wanted = [name for name in (args.classes or "").split(",") if name.strip()]
    classes = choose.classes(contents, wanted)
    size = choose.input_sizes(contents, classes.value)
    start, size = _start(args, classes.value, size)
    split, pretrained = choose.split(contents, classes.value), bool(start.value.weights)
    proposal = choose.Proposal(
        spec=str(path),
        data=str(args.data),
        contents=contents,
        classes=classes,
        split=split,
        size=size,
        start=start,
        mirrors=choose.mirrors(classes.value),
        epochs=choose.Choice(1, ""),  # until it is known how long one takes
        passes=1,
        rate=choose.rate(pretrained=pretrained),
        overlap=choose.overlap(contents, classes.value),
    )
    experiment = spec.loads(write.text(proposal), str(path))
    assert isinstance(experiment, spec.Experiment)
    pace = measure.pace(experiment, contents.train.images)
    measured = len(contents.portions[split.value].images) if split.value else 0
    passes = choose.passes(split.value, measured, pace, args.minutes)
    images = len(contents.train.images)
    epochs = choose.epochs(images, passes * measured, pace, args.minutes, pretrained=pretrained)
    return proposal._replace(epochs=epochs, passes=passes), pace


def _start(
    args: argparse.Namespace, names: list[str], size: Choice[tuple[int, int]]
) -> tuple[Choice[Start], Choice[tuple[int, int]]]:
    """The network and its input, by the weights that are there and the time that it may take."""
    from detectkit.propose import choose, measure

    found = measure.find_weights(_named_alike(args.weights.expanduser())) if args.weights else []
    if args.target_latency is None:
        return choose.start(found), size
    sizes = list(dict.fromkeys((size.value, choose.smaller(size.value))))
    timed = measure.latencies(found or choose.SCRATCH, sizes, names)
    start, chosen, holds = choose.within(timed, args.target_latency / 1000)
    if not holds:
        log.warning(
            "%s; a smaller input, a lower target_params in pruning_config, or a faster machine", start.why
        )
    if chosen != size.value:
        size = choose.Choice(
            chosen, f"smaller for --target-latency {args.target_latency:g} ms; {size.why}", size.others
        )
    return start, size


def _print_contents(contents: Contents) -> None:
    import numpy as np

    from detectkit.propose.count import TEST, TRAIN, VALIDATION

    say(f"{contents.layout.kind}: {contents.layout.told}")
    roles = [role for role in (TRAIN, VALIDATION, TEST) if role in contents.portions]
    portions = [contents.portions[role] for role in roles]
    rows = []
    for number, name in enumerate(contents.names):
        boxes = [portion.counts(contents.names)[number] for portion in portions]
        rows.append((name, *boxes, sum(portion.images_with(contents.names)[number] for portion in portions)))
    every, empty = [len(portion.images) for portion in portions], [portion.empty for portion in portions]
    rows += [("images", *every, sum(every)), ("without a box", *empty, sum(empty))]
    table(["class", *(f"{role} boxes" for role in roles), "images"], rows)
    low, high = (
        edge(np.concatenate([portion.sizes for portion in portions]), axis=0) for edge in (np.min, np.max)
    )
    ignored = f"; {contents.ignored} regions called dontcare, which are ignored" if contents.ignored else ""
    say(
        f"images are {low[0]:.0f} to {high[0]:.0f} pixels wide and {low[1]:.0f} to {high[1]:.0f} high{ignored}"
    )


def _print_choices(proposal: Proposal, *, explain: bool) -> None:
    width, height = proposal.size.value
    choices: list[tuple[str, str, Choice[Any]]] = [
        ("classes", str(len(proposal.classes.value)), proposal.classes),
        ("measured on", proposal.split.value or "nothing", proposal.split),
        ("input", f"{width}x{height}", proposal.size),
        ("network", proposal.start.value.title, proposal.start),
        ("epochs", str(proposal.epochs.value), proposal.epochs),
        ("greatest rate", f"{proposal.rate.value:g}", proposal.rate),
        ("mirroring", "yes" if proposal.mirrors.value else "no", proposal.mirrors),
        ("NMS at an IoU of", f"{proposal.overlap.value:g}", proposal.overlap),
    ]
    table(
        ["chosen", "", "because"],
        [(what, value, choice.why) for what, value, choice in choices],
        title="the spec",
    )
    if not explain:
        return
    _print_sizes(proposal)
    rows = [(what, other) for what, _, choice in choices for other in choice.others]
    table(["instead of", "there was"], rows, title="not chosen")
    say(
        "\nthe same for all data, as measured on several sets (docs/datasets.md): batch of 4, class weights of 1, a prior of"
        " 0.01, radii of 0.4, focal weights, the average of 200 steps, pruning to a quarter by Taylor, 8 bits by MSE"
    )


def _print_sizes(proposal: Proposal) -> None:
    """How large the objects of each class are in the network's input."""
    import numpy as np

    from detectkit.propose.choose import CELL, box_sides

    train, names = proposal.contents.train, proposal.contents.names
    sides = box_sides(train, proposal.size.value) / CELL
    rows = []
    for name in proposal.classes.value:
        own = train.classes == names.index(name)
        shares = [f"{100 * float((sides[own] < limit).mean()):.0f}%" for limit in (1, 2, 4, 8)]
        aspects = train.boxes[own] * train.sizes[train.places[own]]
        aspect = float(np.median(aspects[:, 0] / np.maximum(aspects[:, 1], 1e-9)))
        rows.append((name, f"{float(np.median(sides[own])):.1f}", *shares, f"{aspect:.2f}"))
    heads = ["class", "median side", "below 1", "below 2", "below 4", "below 8", "width/height"]
    table(heads, rows, title=f"training boxes, in cells of {CELL} pixels of the input")


def _print_doubts(proposal: Proposal, pace: Pace, minutes: float) -> None:
    from detectkit.data.readers import reasons
    from detectkit.propose import choose

    contents = proposal.contents
    if contents.rejected:
        log.warning(f"left out: {len(contents.rejected)} lines, labels or images")
        for told in reasons(contents.rejected, most=REASONS):
            log.warning(f"  {told}")
    role = proposal.split.value
    measured = proposal.passes * len(contents.portions[role].images) if role else 0
    count = proposal.epochs.value
    hurried = choose.hurried(len(contents.train.images), measured, count, pace, minutes)
    for doubt in (*hurried, *choose.doubts(proposal)):
        log.warning(doubt)


def _write(proposal: Proposal, path: Path) -> None:
    """Write the spec, which is judged before."""
    from detectkit import spec
    from detectkit.propose.write import text

    content = text(proposal)
    spec.loads(content, str(path))
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")

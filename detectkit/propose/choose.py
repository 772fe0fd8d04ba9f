"""From what was counted to what the spec says: values of the recipe of docs/datasets.md, each with its reason and its number.

Nothing here reads a file or looks at the machine: what was measured is an argument.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from detectkit.data.layouts import class_differences
from detectkit.data.warn import FEW_BOXES, FEW_IMAGES, RARE
from detectkit.errors import DataError, UsageError
from detectkit.propose.count import ASSURED, TEST, VALIDATION, Contents, Portion
from detectkit.spec import label_name
from detectkit.spec.classes import nearest

T = TypeVar("T")

CELL = 16  # pixels of the network's input: the stride of every backbone below
MULTIPLE = 32  # pixels of a side: every backbone takes such sizes
USUAL, LARGE = (416, 320), (512, 384)  # the sizes of the recipe
SMALL = 2.0  # cells: below this an object is small
NARROW = 4.0  # times as wide as high, or as high as wide, that an input may be
BATCH = 4
ENOUGH = 1200  # steps: what the recipe needs
MOST_STEPS = {True: 2000, False: 4000}  # by whether weights are the start
MOST_EPOCHS = {True: 20, False: 40}  # of more images than give as many steps
RATES = {True: 0.001, False: 0.0015}
# Share of its time that a network takes pruned to a quarter, in ONNX Runtime at 416x320 and, ResNet10, at 512x384.
LEFT = {"mobilenet_v2": 0.43, "efficientnet_lite0": 0.33, "resnet": 0.24}
MOST_LEFT = 0.43  # of one that was not measured
NMS, DENSEST, DOUBLED = 0.45, 0.6, 0.9  # IoU: of the recipe, at most, and of two labels on one object
CROWDED = 0.02  # share of the boxes with a neighbour nearer than NMS, above which NMS gives way
VALIDATIONS = 6  # passes over validation images, the best of which chooses the model
MEASURING = 0.2  # of the minutes, at most, for these
BUSY = 0.9  # processes a core: of a machine that has more to do, a time says little
FEW_MEASURED = 10  # validation boxes of a class, below which each is 10 points of its AP
ALIKE, RARER = 0.85, 5  # likeness of two names, and how many times the boxes of one the other has
NAMED = 6  # classes that a line names

WORDS = "zero one two three four five six seven eight nine ten jack queen king ace"
# Classes whose mirror image is another one, or none: signs to the left and right, letters, digits, playing cards.
ONE_SIDED = re.compile(
    rf"(.*[^a-z])?(left|right)([^a-z].*)?|\d+|[a-z]|(10|[2-9ajqk])[^a-z0-9]?[hdcs]|{'|'.join(WORDS.split())}"
    r"|(letter|digit|number)([^a-z].*)?|.*[^a-z](of|-)[^a-z](hearts|spades|clubs|diamonds)"
)
CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


class Choice(NamedTuple, Generic[T]):
    """A value, and why it."""

    value: T
    why: str  # a line, with its number
    others: tuple[str, ...] = ()  # what else there was, a line each, with its numbers


class Start(NamedTuple):
    """Where a training starts: a backbone, and its weights."""

    arch: str
    num_layers: int  # 0: the network has one depth
    weights: str  # a file; empty: from scratch

    @property
    def title(self) -> str:
        return f"{self.arch}{self.num_layers or ''}"


class Pace(NamedTuple):
    """How fast a network is on this machine, at the size and batch of its spec."""

    step: float  # seconds of a step of training, images decoded
    finding: float  # seconds of an image that is measured
    load: float  # processes a core that ran or waited meanwhile; 0: not known


class Proposal(NamedTuple):
    """All that a spec says which differs from data set to data set."""

    spec: str  # the file that it is to be
    data: str  # the folder, as it was given
    contents: Contents
    classes: Choice[list[str]]  # as most of their labels spell them
    split: Choice[str]  # the role that is measured on, or empty
    size: Choice[tuple[int, int]]  # width, height
    start: Choice[Start]
    mirrors: Choice[bool]
    epochs: Choice[int]
    passes: int  # over what is measured on, while it trains
    rate: Choice[float]
    overlap: Choice[float]  # IoU from which NMS drops a box

    @property
    def name(self) -> str:
        """Of the folder below results/: that of the spec, as `detectkit run` has it."""
        return PurePath(self.spec).stem


SCRATCH = (Start("resnet", 10, ""),)


# Classes and splits


def classes(contents: Contents, wanted: Sequence[str] = ()) -> Choice[list[str]]:
    """The classes to learn: those that are wanted, else all that have a box to train on.

    Raises:
        UsageError: one that is wanted does not exist. DataError: none is left.
    """
    counts = dict(zip(contents.names, contents.train.counts(contents.names)))
    if wanted:
        known = {label_name(name): name for name in contents.names}
        for name in wanted:
            if label_name(name) not in known:
                near = nearest(name, contents.names)
                raise UsageError(
                    f"--classes: no label is called {name!r}"
                    + (f"; is {near!r} meant?" if near else f"; there are {_few(contents.names)}")
                )
        chosen = [known[key] for key in dict.fromkeys(map(label_name, wanted))]
        rest = [name for name in contents.names if name not in chosen]
        why = "those of --classes" + (f"; boxes of {_few(rest)} are background" if rest else "")
    else:
        chosen = list(contents.names)
        why = "every label that there is"
    unseen = [name for name in chosen if not counts[name]]
    chosen = [name for name in chosen if counts[name]]
    if not chosen:
        raise DataError(
            f"no training image has a box of {_few(unseen)}: there is nothing to learn from; label some, or divide the"
            " images anew"
        )
    if unseen:
        why = f"all that have a box to train on; {_few(unseen)} {'has' if len(unseen) == 1 else 'have'} none"
    return Choice(chosen, f"{why}; {sum(counts[name] for name in chosen):,} boxes to train on")


def split(contents: Contents, chosen: Sequence[str]) -> Choice[str]:
    """The role of the images that are measured on."""
    portions = contents.portions
    for role in (VALIDATION, TEST):
        if role in portions and portions[role].images:
            name, fewest = _rarest(portions[role], contents.names, chosen)
            boxes = f"{name} has {fewest} boxes there" if len(chosen) > 1 else f"with {fewest} boxes"
            count = len(portions[role].images)
            if role == TEST:
                why = f"there is no validation set: the {count} test images are measured after the last epoch only; {boxes}"
            elif contents.drawn:
                apart = (
                    ", those that look alike kept together"
                    if keeps_together(contents, chosen)
                    else ", image by image"
                )
                why = f"there is no split: {contents.drawn:.0f} % of the images, {count}, are drawn for validation{apart}; {boxes}"
            else:
                why = f"as found: {count} images to measure on; {boxes}"
            return Choice(role, why)
    return Choice(
        "", "there is none, and none can be drawn from one image or several lists: nothing is measured"
    )


def keeps_together(contents: Contents, chosen: Sequence[str]) -> bool:
    """Whether images that look alike may be kept on one side of a draw: no class is so rare that all of it could be there."""
    found = np.sum([part.images_with(contents.names) for part in contents.portions.values()], axis=0)
    return contents.drawn > 0 and all(
        count >= ASSURED for name, count in zip(contents.names, found) if name in chosen
    )


def _rarest(portion: Portion, names: Sequence[str], chosen: Sequence[str]) -> tuple[str, int]:
    counts = dict(zip(names, portion.counts(names)))
    return min(((name, counts[name]) for name in chosen), key=lambda pair: pair[1])


# Network and input


def cells(contents: Contents, chosen: Sequence[str], size: tuple[int, int]) -> dict[str, float]:
    """The median side of the training boxes of each class in cells of 16 pixels, images resized: the root of their area."""
    sides = box_sides(contents.train, size) / CELL
    numbers = {name: contents.names.index(name) for name in chosen}
    return {
        name: float(np.median(sides[contents.train.classes == number])) for name, number in numbers.items()
    }


def box_sides(portion: Portion, size: tuple[int, int]) -> NDArray[np.float64]:
    """The root of the area of each box in pixels of the network's input, [n]."""
    sides: NDArray[np.float64] = np.sqrt((portion.boxes * size).prod(axis=1))
    return sides


def input_sizes(contents: Contents, chosen: Sequence[str]) -> Choice[tuple[int, int]]:
    """Width and height of the network's input.

    The recipe's two sizes, in the shape of the images: the larger one where a class is small at the usual one. An input
    larger than the images themselves is chosen only where objects are small.
    """
    sizes = contents.train.sizes
    aspect = float(np.exp(np.median(np.log(sizes[:, 0] / sizes[:, 1]))))
    shape = min(max(aspect, 1 / NARROW), NARROW)
    usual, large = (_shaped(math.prod(size), shape) for size in (USUAL, LARGE))
    width, height = (MULTIPLE * math.ceil(float(side) / MULTIPLE) for side in np.median(sizes, axis=0))
    own = [(width, height), (2 * width, 2 * height)]  # as they are, or twice as large
    offered = [size for size in own if size[0] < usual[0] and size[1] < usual[1]] + [usual, large]
    smallest = [min(cells(contents, chosen, size).items(), key=_second) for size in offered]
    place = next((place for place, (_, side) in enumerate(smallest) if side >= SMALL), len(offered) - 1)
    name, side = smallest[place]
    why = f"images are {aspect:.2f} times as wide as high, {_of(name, chosen)} {side:.1f} cells of {CELL} pixels wide"
    if place:
        why += f" ({smallest[place - 1][1]:.1f} at {_times(offered[place - 1])})"
    others = tuple(
        f"{_times(other)}: {_of(kind, chosen)} {median:.1f} cells wide"
        for other, (kind, median) in zip(offered, smallest)
        if other != offered[place]
    )
    return Choice(offered[place], why, others)


def smaller(size: tuple[int, int]) -> tuple[int, int]:
    """The usual input of the shape of a larger one; the same where it is not larger."""
    usual = _shaped(math.prod(USUAL), size[0] / size[1])
    return usual if math.prod(usual) < math.prod(size) else size


def _shaped(area: int, aspect: float) -> tuple[int, int]:
    return _rounded(math.sqrt(area * aspect)), _rounded(math.sqrt(area / aspect))


def _rounded(pixels: float) -> int:
    return max(round(pixels / MULTIPLE), 1) * MULTIPLE


def start(found: Sequence[Start]) -> Choice[Start]:
    """The backbone, without a limit of time: the first of those whose weights are there, else ResNet10 from scratch."""
    if not found:
        why = "no --weights: from scratch; with MobileNetV2's ImageNet weights the same images teach far more (docs/datasets.md)"
        return Choice(SCRATCH[0], why)
    others = tuple(f"{other.title}: its weights are there too" for other in found[1:])
    return Choice(
        found[0], "its ImageNet weights are there: a few hundred images cannot teach as much", others
    )


class Candidate(NamedTuple):
    """A network that was timed before any training, whole."""

    start: Start
    size: tuple[int, int]
    seconds: float  # an image, as it would be deployed here

    @property
    def pruned(self) -> float:
        """Seconds that it is likely to take once it is pruned to a quarter."""
        return self.seconds * LEFT.get(self.start.arch, MOST_LEFT)


def within(timed: Sequence[Candidate], limit: float) -> tuple[Choice[Start], tuple[int, int], bool]:
    """The largest of the candidates that holds a time once it is pruned to a quarter, and if none does the quickest.

    Args:
        timed: those of the larger input first, of one size the best ones first.
        limit: seconds an image.

    Returns:
        The network, its input, and whether it holds the time.
    """
    holding = [candidate for candidate in timed if candidate.pruned <= limit]
    chosen = (
        max(holding, key=lambda one: (math.prod(one.size), one.seconds))
        if holding
        else min(timed, key=lambda one: one.seconds)
    )
    told = tuple(_told(candidate) for candidate in timed if candidate != chosen)
    verdict = "the largest within" if holding else "none is within"
    why = f"{verdict} --target-latency {1000 * limit:g} ms: {_told(chosen)}"
    return Choice(chosen.start, why, told), chosen.size, bool(holding)


def _told(candidate: Candidate) -> str:
    return (
        f"{candidate.start.title} at {_times(candidate.size)} takes {1000 * candidate.seconds:.1f} ms here, a quarter of it"
        f" about {1000 * candidate.pruned:.1f}"
    )


# Training


def mirrors(chosen: Sequence[str]) -> Choice[bool]:
    """Whether images may be mirrored: not where the name of a class says that its mirror image is another one."""
    one_sided = [name for name in chosen if ONE_SIDED.fullmatch(CAMEL.sub("_", name.strip()).lower())]
    if one_sided:
        return Choice(False, f"mirrored, {_few(one_sided)} would be another thing, or none")
    return Choice(True, "no name says that a mirrored object is another one (signs, text: set 0)")


def passes(role: str, measured: int, pace: Pace, minutes: float) -> int:
    """How often it is measured while it trains: once, where that chooses no model, or would take too much of the minutes."""
    takes = VALIDATIONS * measured * pace.finding
    return VALIDATIONS if role == VALIDATION and takes <= MEASURING * 60 * minutes else 1


def epochs(images: int, measured: int, pace: Pace, minutes: float, *, pretrained: bool) -> Choice[int]:
    """How many epochs the minutes allow, and no more than help.

    Args:
        images: to train on.
        measured: images that are measured while it trains, in all passes.
        minutes: for the whole training.
    """
    steps = -(-images // BATCH)
    spent = measured * pace.finding
    affordable = max(int((60 * minutes - spent) / (steps * pace.step)), 1)
    most = max(math.ceil(MOST_STEPS[pretrained] / steps), MOST_EPOCHS[pretrained])
    count = min(affordable, most)
    takes = (count * steps * pace.step + spent) / 60
    of = f"{count * steps:,} steps of {BATCH} images at {1000 * pace.step:.0f} ms, about {_minutes(takes)}"
    reason = f"more than {most} are not known to help" if affordable > most else f"--minutes {minutes:g}"
    if takes > minutes:
        reason = f"one epoch is the least, though it takes more than --minutes {minutes:g}"
    allowed = f"{affordable} epochs would fit into {minutes:g} minutes"
    needed = f"{math.ceil(ENOUGH / steps)} epochs are {ENOUGH} steps, about {_minutes(_enough(images, measured, pace))}"
    return Choice(count, f"{of}; {reason}", (allowed, needed))


def _enough(images: int, measured: int, pace: Pace) -> float:
    """Minutes of as many whole epochs as the recipe needs."""
    steps = -(-images // BATCH)
    return (math.ceil(ENOUGH / steps) * steps * pace.step + measured * pace.finding) / 60


def hurried(images: int, measured: int, count: int, pace: Pace, minutes: float) -> Iterator[str]:
    """A sentence for each thing that makes the epochs doubtful: fewer steps than the recipe needs, times of a busy machine.

    Args:
        measured: see `epochs`.
        count: of the epochs.
    """
    steps = -(-images // BATCH)
    if steps * count < ENOUGH:
        takes = math.ceil(_enough(images, measured, pace))
        yield (
            f"{steps * count:,} steps of training, and about {ENOUGH} are needed: --minutes {takes}, or a faster machine"
        )
    if pace.load > BUSY:
        yield (
            f"this machine is busy ({pace.load:.1f} processes a core), so a step took {1000 * pace.step:.0f} ms: where it will be"
            " idle, do this again then, or give more --minutes"
        )


def rate(*, pretrained: bool) -> Choice[float]:
    """The greatest learning rate."""
    why = "of a network that starts from weights" if pretrained else "of a network that starts from nothing"
    return Choice(RATES[pretrained], why)


def overlap(contents: Contents, chosen: Sequence[str]) -> Choice[float]:
    """The IoU from which NMS drops a box: the recipe's, and more where labelled neighbours overlap by more than that."""
    numbers = [contents.names.index(name) for name in chosen]
    near = contents.train.nearest[np.isin(contents.train.classes, numbers)]
    near = near[near < DOUBLED]  # two labels on one object say nothing of neighbours
    share = float((near > NMS).mean()) if len(near) else 0.0
    said = f"{100 * share:.1f} % of the boxes overlap one of their class by an IoU of more than {NMS}"
    if share <= CROWDED:
        return Choice(NMS, said)
    value = min(math.ceil(20 * float(np.quantile(near, 1 - CROWDED))) / 20, DENSEST)
    return Choice(value, f"{said}: they would be dropped at that", (f"{NMS}: the recipe's",))


# What is doubtful


def doubts(proposal: Proposal) -> Iterator[str]:
    """A sentence for each thing that is likely to disappoint, most important first."""
    contents, chosen = proposal.contents, proposal.classes.value
    train = contents.train
    if len(train.images) < FEW_IMAGES:
        yield (
            f"{len(train.images)} training images are few: what is learnt of them may be true of them alone; {FEW_IMAGES} is"
            " the least, a few hundred are better"
        )
    counts = {
        name: count for name, count in zip(contents.names, train.counts(contents.names)) if name in chosen
    }
    few = [f"{name} {count}" for name, count in counts.items() if count < FEW_BOXES]
    if few:
        yield f"too few boxes to learn a class from, which are kept: {_few(few)}; label {FEW_BOXES} at least"
    most = max(counts.values())
    rare = [f"{name} {count}" for name, count in counts.items() if FEW_BOXES <= count < most / RARE]
    if rare:
        yield f"rare beside {most:,} boxes: {_few(rare)}; raise their class_weight if their AP stays low"
    seen = {
        role: [name for name, count in zip(contents.names, part.counts(contents.names)) if count]
        for role, part in contents.portions.items()
    }
    yield from class_differences(seen)
    yield from _doubtful_measure(proposal)
    yield from _doubtful_sizes(proposal)
    yield from alike(contents)
    if train.empty > len(train.images) / 2:
        yield (
            f"{train.empty} of {len(train.images)} training images have no box: if objects on them were not labelled, the"
            " network learns not to find them"
        )
    doubled = int((train.nearest >= DOUBLED).sum())
    if doubled:
        yield f"{doubled} boxes lie on another one of their class (IoU of {DOUBLED} or more): perhaps labelled twice"


def _doubtful_measure(proposal: Proposal) -> Iterator[str]:
    contents, role = proposal.contents, proposal.split.value
    if not role:
        yield proposal.split.why
        return
    if role == TEST:
        yield (
            "the test images also set the rate of the training after pruning, as there is no validation set: their figures"
            " flatter a little"
        )
    counts = dict(zip(contents.names, contents.portions[role].counts(contents.names)))
    few = [f"{name} {counts[name]}" for name in proposal.classes.value if 0 < counts[name] < FEW_MEASURED]
    if few:
        yield f"few boxes to measure on: {_few(few)}; each is 10 points of the AP of its class, or more"


def _doubtful_sizes(proposal: Proposal) -> Iterator[str]:
    contents, size = proposal.contents, proposal.size.value
    medians = cells(contents, proposal.classes.value, size)
    tiny = [f"{name} {side:.1f}" for name, side in medians.items() if side < 1]
    if tiny:
        yield (
            f"smaller than a cell of {CELL} pixels at {_times(size)}, in the median: {_few(tiny)} cells; cut the images up, or"
            " take a larger input and more minutes"
        )
    sizes = contents.train.sizes
    aspects = sizes[:, 0] / sizes[:, 1] / (size[0] / size[1])
    other = int((np.maximum(aspects, 1 / aspects) > 2).sum())
    if other:
        yield f"{other} of {len(sizes)} training images are of quite another shape than {_times(size)}: they are stretched"


def alike(contents: Contents) -> Iterator[str]:
    """Classes whose names may be one, misspelt: told, never merged. And spellings that the records make one."""
    for name, spellings in contents.spellings.items():
        if len(spellings) > 1:
            met = ", ".join(f"{spelling!r} {count}" for spelling, count in spellings.most_common(NAMED))
            yield f"labels that are one class, as letter case and blanks do not count: {met}"
    totals = {name: spellings.total() for name, spellings in contents.spellings.items()}
    for index, first in enumerate(contents.names):
        for second in contents.names[index + 1 :]:
            if _may_be_one(first, second, totals):
                yield (
                    f"may be one class: {first!r} {totals[first]}, {second!r} {totals[second]}; if so, name the label in"
                    " target_class_mapping of dataset_config"
                )


def _may_be_one(first: str, second: str, totals: dict[str, int]) -> bool:
    plain = ["".join(filter(str.isalnum, name.casefold())) for name in (first, second)]
    if plain[0] == plain[1] or plain[0] == f"{plain[1]}s" or plain[1] == f"{plain[0]}s":
        return bool(plain[0])
    letters = ["".join(filter(str.isalpha, text)) for text in plain]
    if letters[0] == letters[1] or min(map(len, letters)) < 4:
        return False  # numbered ones are meant
    few, many = sorted((totals[first], totals[second]))
    if few * RARER > many:
        return False
    return bool(difflib.get_close_matches(plain[0], plain[1:], cutoff=ALIKE))


# Words


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _of(name: str, chosen: Sequence[str]) -> str:
    return f"the smallest class, {name}, is" if len(chosen) > 1 else "objects are"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"

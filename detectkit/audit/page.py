"""The findings as a page of HTML: each a picture, cut out around its box."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from detectkit import draw
from detectkit.audit.findings import AuditedImage, DataFinding, FindingKind, counted, short
from detectkit.audit.images import pixels_of
from detectkit.data.cleaning_list import Box, Verb
from detectkit.errors import DataError
from detectkit.files import atomic_write
from detectkit.page import Html, Section, grid, lines, page, paragraph, picture, table

PAGE, SUMMARY = "cleaning.html", "cleaning.json"
SHOWN = 48  # pictures of a kind, the surest
IN_REPORT = 8  # pictures that a report shows
FROM_ONE_IMAGE = 3  # of a kind: many cuts of one strange image would hide the rest
SIDE = 240  # pixels of a picture
CONTEXT, LEAST = 2.6, 64  # as for the mistakes of a report
QUALITY = 80  # of JPEG
LABELLED, PROPOSED = "#00a0ff", "#ff6a00"  # blue and orange: all eyes tell them apart

TITLES = {
    FindingKind.UNREADABLE: "Images that cannot be read",
    FindingKind.DUPLICATE: "The same file twice",
    FindingKind.NEAR_DUPLICATE: "Nearly the same image",
    FindingKind.LEAK: "Trained on and measured on",
    FindingKind.TURNED: "Labels that do not fit the EXIF orientation",
    FindingKind.UNLABELLED: "Images without labels",
    FindingKind.LEFT_OUT: "What conversions leave out",
    FindingKind.DEGENERATE: "Boxes without area",
    FindingKind.OUTSIDE: "Boxes outside the image",
    FindingKind.PARTLY_OUTSIDE: "Boxes partly outside",
    FindingKind.DOUBLED: "Objects labelled twice",
    FindingKind.TWO_CLASSES: "Objects of two classes",
    FindingKind.ODD_SIZE: "Sizes far from their class",
    FindingKind.ODD_SHAPE: "Shapes far from their class",
    FindingKind.MISSPELT: "Misspelt classes",
    FindingKind.MISSING: "Labels that seem to be missing",
    FindingKind.WRONG_CLASS: "Labels of another class, it seems",
    FindingKind.BADLY_PLACED: "Boxes that fit badly, it seems",
}


def write_page(folder: Path, images: Sequence[AuditedImage], findings: Sequence[DataFinding]) -> Path:
    """Write the page, and cleaning.json with the counts that a report shows; gives the path of the page.

    Raises:
        OutputError: it cannot be written.
    """
    kinds = counted(findings)
    by_name = {image.name: image for image in images}
    parts = [
        paragraph(f"{len(findings)} findings in {len(images)} images", style="lead"),
        paragraph(
            "Blue is as labelled, orange what it is compared with or could be. Decide in cleaning.csv; nothing is changed.",
            style="note",
        ),
        table(("kind", "findings"), [(TITLES[kind], count) for kind, count in kinds]),
    ]
    sections = [_section(kind, by_name, findings) for kind, _ in kinds]
    path = folder / PAGE
    with atomic_write(path) as temporary:
        temporary.write_text(page("Data cleaning", *parts, sections=sections), encoding="utf-8")
    content = {
        "images": len(images),
        "kinds": [[kind, TITLES[kind], count] for kind, count in kinds],
        "first": list(figures(by_name, _first(findings))),
    }
    with atomic_write(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _section(
    kind: FindingKind, images: Mapping[str, AuditedImage], findings: Sequence[DataFinding]
) -> Section:
    own = [item for item in findings if item.kind == kind]
    shown = _chosen(own)
    more = (
        [paragraph(f"{len(shown)} of {len(own)}; all are in cleaning.csv.", style="note")]
        if len(shown) < len(own)
        else []
    )
    return Section(str(kind), TITLES[kind], "\n".join((*more, grid(figures(images, shown), small=True))))


def _first(findings: Sequence[DataFinding]) -> list[DataFinding]:
    """A few for a report: the surest of each kind, kinds in turn."""
    by_kind = [_chosen([item for item in findings if item.kind == kind]) for kind, _ in counted(findings)]
    turns = [item for turn in itertools.zip_longest(*by_kind) for item in turn if item is not None]
    return turns[:IN_REPORT]


def _chosen(findings: Sequence[DataFinding]) -> list[DataFinding]:
    chosen: list[DataFinding] = []
    taken: dict[str, int] = {}
    for item in findings:
        taken[item.image] = taken.get(item.image, 0) + bool(item.image)
        if taken[item.image] <= FROM_ONE_IMAGE:
            chosen.append(item)
        if len(chosen) == SHOWN:
            break
    return chosen


def figures(images: Mapping[str, AuditedImage], findings: Sequence[DataFinding]) -> Iterator[Html]:
    """A picture of each finding with its caption; where the image cannot be shown, its caption alone."""
    for item in findings:
        place = short(item.label_file) + (f":{item.line}" if item.line else "") if item.label_file else ""
        told = lines(item.text, " · ".join(filter(None, (short(item.image), place, _proposal(item)))))
        shown = _picture(images.get(item.image), item)
        if shown is None:
            yield Html(f"<figure><figcaption>{told}</figcaption></figure>")
        else:
            yield picture(shown, told, alt=f"{item.kind}: {short(item.image)}")
        if item.other in images and not item.box:
            like = _picture(images[item.other], item._replace(other_box=None))
            if like is not None:
                yield picture(like, short(item.other), alt=f"compared with: {short(item.other)}")


def _proposal(item: DataFinding) -> str:
    return "" if item.correction.verb == Verb.LOOK else str(item.correction)


def _picture(image: AuditedImage | None, item: DataFinding) -> bytes | None:
    """JPEG of the surroundings of a box, or of the whole image; None where it cannot be read."""
    if image is None:
        return None
    try:
        pixels = pixels_of(image)
    except DataError:
        return None
    drawn: list[tuple[Box, str]] = []
    if item.other_box:
        drawn.append((item.other_box, PROPOSED))
    if item.box:
        drawn.append((item.box, PROPOSED if item.kind is FindingKind.MISSING else LABELLED))
    height, width = pixels.shape[:2]
    whole = (0.0, 0.0, float(width), float(height))
    focus = _within(item.box, width, height) if item.box else None
    if focus is None:
        cut, moved = draw.cut(pixels, whole, [box for box, _ in drawn], context=1.0, least=1, side=SIDE)
    else:
        boxes = [box for box, _ in drawn]
        cut, moved = draw.cut(pixels, focus, boxes, context=CONTEXT, least=LEAST, side=SIDE)
    colors = [draw.rgb(color) for _, color in drawn]
    shown = draw.annotate(
        np.ascontiguousarray(cut), moved, labels=[""] * len(drawn), colors=colors, line_width=2
    )
    return draw.jpeg(shown, quality=QUALITY)


def _within(box: Box, width: int, height: int) -> Box | None:
    """The part of a box that is inside the image; None where there is none."""
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

"""Make a small data set to try things out: handwritten digits on photographs, with KITTI labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from detectkit.console import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output_dir", required=True, type=Path, metavar="DIR", help="new or empty folder"
    )


def run(args: argparse.Namespace) -> None:
    from detectkit.data.digits import CLASSES, FRAMES, HEIGHT, WIDTH, make_sample_data

    folder = args.output_dir
    if make_sample_data(folder):
        say(f"wrote {FRAMES} images with labels of {', '.join(CLASSES.values())} to {folder}")
    else:
        say(f"{folder} already holds this data set: nothing to do")
    say(f"  image_2/*.jpg   {WIDTH}x{HEIGHT} pixels, 1 to 5 digits each")
    say("  label_2/*.txt   KITTI labels")
    say("  sequences.json  which pictures are for training, and which, with other digits, for validation")
    if str(folder) == "results/demo/data":
        say("next: detectkit convert -d specs/demo/convert.txt -o results/demo/records/digits")
    else:
        say(f"next: in a copy of specs/demo/convert.txt, put {folder} in place of results/demo/data (twice)")
        say("      detectkit convert -d COPY -o PREFIX")

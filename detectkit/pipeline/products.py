"""What the stages of a run make, and what it is to later stages and to the report; a run keeps a list of it in run.json."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Role(enum.StrEnum):
    """What a product is. Of the first four, which are models, a report has a row each."""

    NETWORK = "network"  # trained, in float; what the stages after it go on with
    PASSING = "passing"  # the same, but trained again by a later stage: no result to compare others with
    ROUNDED = "rounded"  # the network before it, trained in 8-bit rounding
    DEPLOYED = "deployed"  # the network before it as it is shipped, the later one rather than the earlier
    RESULTS = "results"  # results.json of the model with the same key
    DETAILS = "details"  # details.npz of it
    COURSE = "course"  # status.jsonl of the training that made the model with the same key
    TIMES = "times"  # latency.json
    FINDINGS = "findings"  # cleaning.json: what is wrong with the data
    LAYERS = "layers"  # what each layer loses in 8 bits; a file to take along, too
    FILE = "file"  # to take to another machine


NETWORKS = (Role.NETWORK, Role.PASSING)
MODELS = (*NETWORKS, Role.ROUNDED, Role.DEPLOYED)


class Product(NamedTuple):
    """Something that a stage makes."""

    key: str  # tells it from the others of its role; of a model: `evaluate_KEY` is the stage that measures it
    title: str  # as the report names it
    role: Role
    path: str  # of a file: below the folder of its stage, unless the run was given it


def to_json(products: Iterable[Product], folder: Path) -> list[dict[str, str]]:
    """As run.json has them: paths below the folder of the run are relative to it, others absolute."""
    content = []
    for product in products:
        path, whole = os.path.abspath(product.path), os.path.join(os.path.abspath(folder), "")
        content.append(product._asdict() | {"path": path.removeprefix(whole)})
    return content


def from_json(content: object, folder: Path) -> list[Product] | None:
    """What `to_json` gave, wherever the folder of the run is now; None where it is no list.

    Entries that are damaged, or have a role that is not known here, are left out.
    """
    if not isinstance(content, list):
        return None
    texts = [item for item in content if isinstance(item, dict) and _is_product(item)]
    return [
        Product(item["key"], item["title"], Role(item["role"]), str(folder / item["path"])) for item in texts
    ]


def _is_product(item: dict[object, object]) -> bool:
    return all(isinstance(item.get(name), str) for name in Product._fields) and item["role"] in set(Role)

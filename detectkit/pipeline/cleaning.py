"""The stages that look for what is wrong with the data: before it is converted, and with what a training has learnt."""

from __future__ import annotations

import json
from pathlib import Path

from detectkit.pipeline.basis import Basis, Estimate
from detectkit.pipeline.chain import SPEC, Chain, Command, RunStage
from detectkit.pipeline.converting import cleaning_files, label_files
from detectkit.pipeline.products import NETWORKS, Product, Role
from detectkit.spec import Experiment, Rule, only

STARTING, PER_IMAGE = 2.0, 0.006  # seconds: of a look, and of an image, which is decoded small
TABLE = 2.0  # MiB of a page with its pictures


def _is_wanted(chain: Chain) -> bool:
    return chain.experiment.HasField("data_cleaning_config")


def _spec(chain: Chain) -> Experiment:
    """What it looks for, and in which images; what is drawn into which fold counts for leaks."""
    return only(chain.experiment, Rule.CLEANING, Rule.CONVERTING, "dataset_config")


def _reads(chain: Chain) -> list[str]:
    data = label_files(chain) if chain.experiment.dataset_export_config else chain.sources()
    return [*data, *cleaning_files(chain)]


def _seconds(basis: Basis) -> float:
    return STARTING + PER_IMAGE * (basis.training + basis.validation)


def _makes(name: str, title: str, chain: Chain) -> list[Product]:
    return [Product(name, title, Role.FINDINGS, chain.path(name, "cleaning.json"))]


def _writes(name: str, chain: Chain) -> list[str]:
    return [chain.path(name, file) for file in ("cleaning.csv", "cleaning.html", "cleaning.json")]


def _tells(name: str, chain: Chain) -> str:
    kinds = json.loads(Path(chain.path(name, "cleaning.json")).read_text(encoding="utf-8"))["kinds"]
    told = ", ".join(f"{count} {kind}" for kind, _, count in kinds)
    return f"{told}: {chain.path(name, 'cleaning.html')}" if told else "nothing found"


def _model(chain: Chain) -> str:
    return chain.last(*NETWORKS, before="suggest")


def _suggest(chain: Chain) -> list[Command]:
    words = ["clean", "-e", chain.path(SPEC), "-m", _model(chain), "-r", chain.path("suggest")]
    return [words]


def _suggestion_spec(chain: Chain) -> Experiment:
    return only(chain.experiment, Rule.CLEANING, Rule.CONVERTING, Rule.DATA, Rule.MEASURING)


def _suggesting_takes(chain: Chain, basis: Basis) -> Estimate:
    images = basis.training + basis.validation
    return Estimate(_seconds(basis) + images * basis.finding * basis.share, TABLE)


CLEAN = RunStage(
    name="clean",
    title="what is wrong with the data",
    wanted=_is_wanted,
    commands=lambda chain: [["clean", "-e", chain.path(SPEC), "-r", chain.path("clean")]],
    spec=_spec,
    reads=_reads,
    writes=lambda chain: _writes("clean", chain),
    takes=lambda chain, basis: Estimate(_seconds(basis), TABLE),
    makes=lambda chain: _makes("clean", "Data cleaning", chain),
    tells=lambda chain: _tells("clean", chain),
)

SUGGEST = RunStage(
    name="suggest",
    title="labels that the network contradicts",
    wanted=_is_wanted,
    commands=_suggest,
    spec=_suggestion_spec,
    reads=lambda chain: [*_reads(chain), _model(chain)],
    writes=lambda chain: _writes("suggest", chain),
    takes=_suggesting_takes,
    makes=lambda chain: _makes("suggest", "Data cleaning with the float model", chain),
    tells=lambda chain: _tells("suggest", chain),
)

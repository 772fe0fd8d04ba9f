"""The stages that measure what others have made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detectkit.pipeline.basis import TABLES, Basis, Estimate
from detectkit.pipeline.chain import SPEC, Chain, RunStage
from detectkit.pipeline.products import NETWORKS, Product, Role
from detectkit.spec import Experiment, Rule, only

STARTING, TIMING = 1.0, 0.7  # seconds of an evaluation, and of each network that is timed, besides their work
ROUNDS, LONGEST = 60, 60.0  # runs of each network that is timed; seconds of all of them


def evaluation(key: str, *, impossible: Callable[[Chain], str | None] = lambda chain: None) -> RunStage:
    """The stage that measures a model, by the key of the product, on the validation images."""
    name = f"evaluate_{key}"

    def model(chain: Chain) -> str | None:
        return next((product.path for product in chain.models if product.key == key), None)

    def makes(chain: Chain) -> list[Product]:
        return [
            Product(key, "accuracy", Role.RESULTS, chain.path(name, "results.json")),
            Product(key, "detections", Role.DETAILS, chain.path(name, "details.npz")),
        ]

    def tells(chain: Chain) -> str:
        text = Path(chain.path(name, "results.json")).read_text(encoding="utf-8")
        mean = json.loads(text)["mean_average_precision"]
        none = "mAP - %: no labelled box in the images measured"
        return none if mean is None else f"mAP {100 * mean:.2f} %"

    return RunStage(
        name=name,
        title=f"accuracy of {key}",
        wanted=lambda chain: chain.validates and model(chain) is not None,
        commands=lambda chain: [
            ["evaluate", "-e", chain.path(SPEC), "-m", str(model(chain)), "-r", chain.path(name)]
        ],
        spec=lambda chain: only(
            chain.experiment, Rule.DATA, Rule.MEASURING, "bbox_rasterizer_config", "model_config"
        ),
        reads=lambda chain: [*chain.sources(training=False), str(model(chain))],
        writes=lambda chain: [chain.path(name, "results.json")],
        takes=lambda chain, basis: Estimate(STARTING + basis.measuring, TABLES),
        makes=makes,
        impossible=impossible,
        tells=tells,
        measures=True,
    )


def _timed(chain: Chain) -> list[str]:
    """The models that can run here; of two files of one network in the same numbers, one."""
    hindered = {stage.name for stage in chain.stages if stage.impossible(chain)}
    runs = [product for product in chain.models if f"evaluate_{product.key}" not in hindered]
    shipped = [item.path for item in runs if item.role == Role.DEPLOYED and item.key != "fp32"]
    return [item.path for item in runs if item.role in NETWORKS] + shipped


def _timing_takes(chain: Chain, basis: Basis) -> Estimate:
    others = len(_timed(chain)) - 1
    running = ROUNDS * basis.finding * (1 + others * basis.share)
    return Estimate(TIMING * (1 + others) + min(running, LONGEST), 0.01)


LATENCY = RunStage(
    name="latency",
    title="times side by side",
    wanted=lambda chain: True,
    commands=lambda chain: [["latency", *_timed(chain), "-r", chain.path("latency")]],
    spec=lambda chain: Experiment(),
    reads=_timed,
    writes=lambda chain: [chain.path("latency", "latency.json")],
    takes=_timing_takes,
    makes=lambda chain: [Product("latency", "times", Role.TIMES, chain.path("latency", "latency.json"))],
    measures=True,
)

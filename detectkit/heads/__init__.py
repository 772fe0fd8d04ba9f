"""The heads: which maps of a backbone a network takes, what it makes of them, and what that means.

A family of heads is layers and a meaning. `family` says which one a spec asks for, and nothing else does: whoever builds a
network or reads its maps comes from here. `docs/contributing.md` tells how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectkit.heads.clustering import ClassClustering
from detectkit.heads.grid import GridHead
from detectkit.heads.grid_layers import GridLayers
from detectkit.heads.head import Balance, Candidates, Family, Head, Layers, Maps
from detectkit.heads.outline import Level, Outline, Output
from detectkit.spec import Experiment, ModelConfig

__all__ = [
    "Balance",
    "Candidates",
    "ClassClustering",
    "Family",
    "Head",
    "Layers",
    "Level",
    "Maps",
    "Outline",
    "Output",
    "family",
    "make_head",
]


def family(model_config: ModelConfig) -> Family:
    """The family whose section `model_config` has; without any, which is refused where a spec is loaded, the grid's.

    Raises:
        NotImplementedError: the schema has a head that has no line here.
    """
    match model_config.WhichOneof("head"):
        case "objective_set" | None:
            return Family(GridLayers, GridHead)
        case head:
            raise NotImplementedError(f"heads.family has no line for model_config.{head}")


def make_head(
    experiment: Experiment,
    outline: Outline,
    *,
    clustering: Mapping[str, ClassClustering] | None = None,
) -> Head[Any]:
    """The meaning of a network's maps.

    Args:
        experiment: the spec; `cost_function_config.target_classes` gives the classes in the order of the outputs.
        outline: what the network gives.
        clustering: clustering by class name, when it is not to be that of `postprocessing_config` (an inference
            spec brings its own); the entry "default" serves the classes without one.
    """
    return family(experiment.model_config).head(experiment, outline, clustering=clustering)

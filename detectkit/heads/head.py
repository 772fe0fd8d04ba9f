"""What every family of heads has: layers that make maps, and a meaning of these maps.

B images, C classes, N candidates, H W pixels, h w cells.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from PIL.Image import Image
from torch import Tensor, nn

from detectkit.data.augment import Prepared
from detectkit.heads.outline import Level, Outline
from detectkit.ops.cluster import Detections
from detectkit.ops.rasterize import ClassGeometry
from detectkit.spec import Experiment, ModelConfig

if TYPE_CHECKING:
    from detectkit.heads.clustering import ClassClustering

T = TypeVar("T")
Maps = tuple[Tensor, ...]


class Layers(nn.Module, abc.ABC):
    """The layers of a head. A detector takes their children over as its own, so all tensors are in named children.

    Args:
        model_config: of the spec.
        levels: what the backbone gives.
        classes: C.
    """

    # Input pixels a cell of the maps that are wanted of the backbone, the finest first; none: its own last one, TLT's.
    strides: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def __init__(self, model_config: ModelConfig, levels: Sequence[Level], classes: int) -> None:
        super().__init__()

    @abc.abstractmethod
    def reset(self) -> None:
        """Fresh weights from torch's global generator, for the widths that the layers have."""

    @abc.abstractmethod
    def forward(self, maps: Maps) -> Maps:
        """The maps [B, channels, h, w] of the backbone's levels to those of the outputs, float32; torch.fx traces it."""

    @abc.abstractmethod
    def outline(self, levels: Sequence[Level]) -> Outline:
        """What `forward` gives of such maps."""


class Candidates(NamedTuple):
    """Boxes that the cells of a batch propose, on the CPU; by image, in the order of its cells."""

    boxes: Tensor  # [N, 4] x1 y1 x2 y2 in network pixels, clipped to the image
    scores: Tensor  # [N]
    classes: Tensor  # int64 [N]
    images: Tensor  # int64 [N], ascending


class Balance(Protocol):
    """How the costs of a head are weighed against each other; it may follow them."""

    def total(self, costs: Mapping[str, Tensor]) -> Tensor:
        """The cost [] of a batch: what training makes smaller."""

    def accumulate(self, costs: Mapping[str, Tensor]) -> None:
        """Take notice of the costs of a step, without waiting for their device."""

    def end_epoch(self) -> list[tuple[int, str]]:
        """Adapt the weights; gives class number and objective of what has begun to starve by them."""

    def figures(self, costs: Mapping[str, Tensor]) -> dict[str, float]:
        """What trackers show of the costs of a step, "task_cost", their weighted sum, among it."""

    def state(self) -> dict[str, Any]:
        """All that changes, for `restore` and for torch.load with weights_only."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises KeyError, TypeError or ValueError: it is none of such a balance."""


class Head(Protocol[T]):  # T: what `targets` gives
    """What the maps of a network mean, by the sections of a spec."""

    class_names: list[str]  # in the order of the outputs
    width: int  # of the images, in pixels
    height: int
    clustering: list[dict[str, Any]]  # for each class, the arguments of `ops.cluster.cluster`

    @property
    def geometry(self) -> ClassGeometry | None:
        """Of the classes, where the first output is their coverage; None: it is not."""

    def targets(self, prepared: Prepared) -> T:
        """What the maps shall be for a batch, on its device."""

    def coverage(self, targets: T) -> Tensor:
        """How much of each cell is an object's, [B, C, h, w] in [0, 1], for pictures; of the finest level."""

    def costs(self, outputs: Maps, targets: T, image_weights: Tensor) -> dict[str, Tensor]:
        """What a batch costs by objective, unweighted: each [C], or each [] where classes share it.

        Args:
            outputs: as the detector gives them.
            image_weights: [B], the `source_weight` of each image.
        """

    def balance(self) -> Balance:
        """A new balance of the costs, with the initial weights of the spec."""

    def candidates(self, outputs: Maps, *, lowest: float, at_most: int | None = None) -> Candidates:
        """The boxes of a score above `lowest`, of each image the `at_most` of the highest scores (None: all of them).

        They are chosen on the device of the outputs; `ops.decode.highest` tells which.
        """

    def detections(self, outputs: Maps) -> list[Detections]:
        """What is found in each image, boxes in network pixels, by descending score."""

    def pictures(
        self, prepared: Prepared, targets: T, outputs: Maps, *, count: int
    ) -> dict[str, list[Image]]:
        """Pictures by tag of the first `count` images: what was asked, what was answered, and what the difference costs."""


class MakeHead(Protocol):
    """How the head of a family is made; see `heads.make_head`."""

    def __call__(
        self,
        experiment: Experiment,
        outline: Outline,
        *,
        clustering: Mapping[str, ClassClustering] | None = None,
    ) -> Head[Any]:
        """The head."""


class Family(NamedTuple):
    """What a family of heads is made of."""

    layers: type[Layers]
    head: MakeHead

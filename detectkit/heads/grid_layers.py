"""The layers of the grid head: two 1x1 convolutions on the last level of the backbone (TLT DetectNet_v2).

B images, C classes, h w grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectkit.heads.head import Layers, Maps
from detectkit.heads.outline import Level, Outline, Output
from detectkit.spec import ModelConfig


class GridLayers(Layers):
    """Coverage and boxes. A fresh head gives every cell the coverage `objective_set.cov.prior`."""

    def __init__(self, model_config: ModelConfig, levels: Sequence[Level], classes: int) -> None:
        super().__init__(model_config, levels, classes)
        (level,) = levels
        self.output_cov = nn.Conv2d(level.channels, classes, kernel_size=1)
        self.output_bbox = nn.Conv2d(level.channels, 4 * classes, kernel_size=1)
        self.prior = model_config.objective_set.cov.prior
        self.reset()

    def reset(self) -> None:
        """Glorot's uniform distribution (TLT DetectNet_v2), and biases that give the prior and no distance."""
        log_odds = math.log(self.prior / (1 - self.prior))
        for layer, bias in ((self.output_cov, log_odds), (self.output_bbox, 0.0)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.constant_(_bias(layer), bias)

    def forward(self, maps: Maps) -> Maps:
        """Features ([B, n, h, w],) to coverage [B, C, h, w] in (0, 1), and boxes [B, 4C, h, w], class-major: left, top, right, bottom."""
        (features,) = maps
        # In 16 bits a coverage near 1 would round to 1, which costs as if it were sure.
        return torch.sigmoid(self.output_cov(features).float()), self.output_bbox(features).float()

    def outline(self, levels: Sequence[Level]) -> Outline:
        """The outputs have TLT's names, which its DeepStream parsers ask for."""
        (level,) = levels
        return Outline(
            outputs=(
                Output("output_cov/Sigmoid", "output_cov", 0, 1, known=(0.0, 1.0)),
                Output("output_bbox/BiasAdd", "output_bbox", 0, 4),
            ),
            levels=(level,),
            multiple=level.stride,
        )


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # both are made with one
    return layer.bias

"""A step on a GPU that is not there: torch computes with shapes and devices alone, and refuses tensors of two devices."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from detectkit.heads.grid import GridHead
from detectkit.heads.weighting import ObjectiveWeights
from detectkit.model.detector import build
from detectkit.ops.rasterize import Targets
from detectkit.train import optim
from detectkit.train.precision import CostScale

GPU = torch.device("cuda:0")


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("regularization", ["NO_REG", "L2"])
def test_a_step_stays_on_its_device_and_waits_for_no_number(tiny, optimizer, regularization):
    config = tiny.training_config
    config.optimizer.ClearField("optimizer")
    getattr(config.optimizer, optimizer).SetInParent()
    config.regularizer.type = config.regularizer.RegularizationType.Value(regularization)
    tiny.model_config.dropout_rate = 0.5
    tiny.model_config.objective_set.bbox.loss_ratios.l1 = 1
    tiny.model_config.objective_set.bbox.loss_ratios.giou = 1
    with FakeTensorMode():
        with torch.device(GPU):
            detector = build(tiny.model_config, ["square", "bar"], 3)
            images, image_weights = torch.rand(2, 3, 64, 96), torch.ones(2)
            maps = {"coverage": (), "coverage_norm": (), "bbox": (4,), "mask": (2,)}
            targets = Targets(**{name: torch.rand(2, 2, *sides, 4, 6) for name, sides in maps.items()})
        weights, scale = ObjectiveWeights(tiny.cost_function_config), CostScale(config.cost_scaling, GPU)
        costs = GridHead(tiny, detector.outline).costs(detector(images), targets, image_weights)
        regularized = optim.regularized_weights(detector, head=detector.head_layers)
        sizes = optim.regularization_cost(regularized, config.regularizer)
        total = weights.total(costs) + config.regularizer.weight * sizes
        assert (total * scale.factor).device == costs["cov"].device == costs["bbox"].device == GPU
        weights.accumulate(costs)
        assert weights.sums.device == GPU
        for weight in detector.parameters():
            weight.grad = torch.empty_like(weight)
        optim.step(optim.make_optimizer(detector, config.optimizer), clip_norm=1.0, scale=scale)
        assert scale.exponent.device == GPU
        with pytest.raises(DataDependentOutputException):
            float(total)  # as any wait above would have

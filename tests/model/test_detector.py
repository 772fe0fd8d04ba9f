"""The detector: heads, freezing, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detectkit import heads
from detectkit.errors import SpecError
from detectkit.heads.grid import GridHead
from detectkit.heads.grid_layers import GridLayers
from detectkit.model.detector import Detector, build, summary
from detectkit.spec.model_pb2 import ModelConfig

CLASSES = ["car", "person", "sign"]


def detector(classes: list[str] = CLASSES, channels: int = 3, **settings: object) -> Detector:
    torch.manual_seed(0)
    config = ModelConfig(**{"arch": "resnet", "num_layers": 10, "use_batch_norm": True} | settings)
    return build(config, classes, channels)


def adam_step(network: Detector) -> tuple[set[str], set[str]]:
    """One training step; gives the names of the tensors that stayed and of those that changed."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01)
    coverage, bbox = network(torch.rand(2, network.channels, 32, 32))
    (coverage.square().sum() + (bbox - 1).square().sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    after = network.state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    return same, before.keys() - same


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [["cell"], CLASSES])
def test_outputs_are_coverage_in_0_to_1_and_four_box_channels_a_class(
    classes: list[str], channels: int
) -> None:
    network = detector(classes, channels).eval()
    coverage, bbox = network(torch.rand(2, channels, 48, 80))
    assert coverage.shape == (2, len(classes), 3, 5)
    assert bbox.shape == (2, 4 * len(classes), 3, 5)
    assert 0 < coverage.min() and coverage.max() < 1
    assert bbox.min() < 0  # linear
    assert network.outline.multiple == 16


def test_parameters_of_resnet18_with_three_classes() -> None:
    network = detector(num_layers=18)
    # torchvision's 11,176,512, the projection of the first stage, and 15 output channels of 512 weights and a bias
    assert summary(network, 32, 32).parameters == 11_176_512 + (64 * 64 + 2 * 64) + 15 * 513


def test_cost_of_resnet18_at_32_pixels_by_hand() -> None:
    stem = 16 * 16 * (64 * 3 * 7 * 7)
    layer1 = 8 * 8 * (4 * 64 * 64 * 9 + 64 * 64)
    layer2 = 4 * 4 * (64 * 128 * 9 + 3 * 128 * 128 * 9 + 64 * 128)
    layer3 = 2 * 2 * (128 * 256 * 9 + 3 * 256 * 256 * 9 + 128 * 256)
    layer4 = 2 * 2 * (256 * 512 * 9 + 3 * 512 * 512 * 9 + 256 * 512)
    heads = 2 * 2 * 5 * 512
    cost = summary(detector(["cell"], num_layers=18), 32, 32)
    assert cost.gmacs == pytest.approx((stem + layer1 + layer2 + layer3 + layer4 + heads) / 1e9, rel=1e-12)
    assert cost.strides == (16,)
    assert cost.receptive_field == 331  # tests/model/test_backbones.py has it by hand


def test_summary_leaves_the_detector_as_it_is() -> None:
    network = detector(freeze_blocks=[0])
    cost = summary(network, 64, 64)
    assert network.training and all(weight.device.type == "cpu" for weight in network.parameters())
    assert cost.parameters - cost.trainable == 64 * 3 * 7 * 7


@pytest.mark.spec_field("ModelConfig.CovObjective.prior")
def test_every_cell_starts_with_the_prior_of_coverage() -> None:
    plain, of_tlt = detector(), detector(objective_set={"bbox": {}, "cov": {"prior": 0.5}})
    assert plain.output_cov.bias.tolist() == pytest.approx([-4.59512] * 3)  # -ln(99)
    assert not of_tlt.output_cov.bias.any()
    features = torch.zeros(1, 512, 2, 2)
    assert torch.sigmoid(plain.output_cov(features)).flatten().tolist() == pytest.approx([0.01] * 12)


def test_heads_start_from_glorot_and_no_distance() -> None:
    network = detector()
    for head, outputs in ((network.output_cov, 3), (network.output_bbox, 12)):
        limit = (6 / (512 + outputs)) ** 0.5
        assert head.weight.abs().max() <= limit and head.weight.abs().max() > 0.98 * limit
    assert not network.output_bbox.bias.any()


def test_images_pass_the_fresh_normalisation_unchanged() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(detector().normalize(images), images)


def test_num_layers_0_is_the_default_of_18() -> None:
    assert detector(num_layers=0).state_dict().keys() == detector(num_layers=18).state_dict().keys()


def test_the_same_seed_builds_the_same_weights() -> None:
    one, other = detector().state_dict(), detector().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_everything_but_the_normalisation_trains() -> None:
    same, _ = adam_step(detector())
    assert same == {"normalize.mean", "normalize.std"}


@pytest.mark.spec_field("ModelConfig.freeze_blocks")
@pytest.mark.parametrize(
    ("blocks", "prefixes"),
    [
        ([0], ("backbone.conv1.",)),
        ([1, 3], ("backbone.layer1.", "backbone.layer3.")),
        ([0, 5], ("backbone.conv1.",)),  # a ResNet has no block 5
        ([0, 1, 2, 3, 4], ("backbone.",)),
    ],
)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_freeze_blocks_holds_their_convolutions_only(
    blocks: list[float], prefixes: tuple[str, ...], batch_norm: bool
) -> None:
    network = detector(freeze_blocks=blocks, use_batch_norm=batch_norm)
    convolutions = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    frozen = {
        name
        for name in network.state_dict()
        if name.startswith(prefixes) and name.rpartition(".")[0] in convolutions
    }
    same, _ = adam_step(network)
    assert same == frozen | {"normalize.mean", "normalize.std"}


@pytest.mark.spec_field("ModelConfig.freeze_bn")
def test_freeze_bn_holds_the_statistics_and_trains_scale_and_shift() -> None:
    network = detector(freeze_bn=True)
    statistics = {name for name in network.state_dict() if "running_" in name or "num_batches" in name}
    same, changed = adam_step(network)
    assert same == statistics | {"normalize.mean", "normalize.std"}
    assert {"backbone.bn1.weight", "backbone.bn1.bias"} <= changed


def test_frozen_statistics_give_the_same_output_in_training_as_in_evaluation() -> None:
    network = detector(freeze_bn=True)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        trained: tuple[Tensor, Tensor] = network.train()(images)
        evaluated: tuple[Tensor, Tensor] = network.eval()(images)
    assert network.train() is network and network.backbone.training
    assert torch.equal(trained[0], evaluated[0]) and torch.equal(trained[1], evaluated[1])


def test_a_frozen_backbone_stays_as_it_is_while_the_heads_train() -> None:
    network = detector()
    network.freeze_backbone(True)
    assert summary(network, 32, 32).trainable == 15 * 513
    same, changed = adam_step(network)
    assert changed == {"output_cov.weight", "output_cov.bias", "output_bbox.weight", "output_bbox.bias"}
    assert all(name.startswith(("backbone.", "normalize.")) for name in same)
    assert network.training and not any(layer.training for layer in network.backbone.modules())


@pytest.mark.parametrize("times", [1, 2])
def test_thawing_gives_back_what_was_trained_before(times: int) -> None:
    network = detector(freeze_blocks=[0, 2], freeze_bn=True)
    before = {name: weight.requires_grad for name, weight in network.named_parameters()}
    modes = {name: layer.training for name, layer in network.train().named_modules()}
    for _ in range(times):
        network.freeze_backbone(True)
    assert not any(weight.requires_grad for weight in network.backbone.parameters())
    for _ in range(times):
        network.freeze_backbone(False)
    assert {name: weight.requires_grad for name, weight in network.named_parameters()} == before
    assert {name: layer.training for name, layer in network.named_modules()} == modes
    assert True in before.values() and False in before.values()


def test_what_is_frozen_for_good_stays_so_after_thawing() -> None:
    network = detector()
    network.freeze_backbone(True)
    network.freeze(["backbone.conv1.weight", "backbone.bn1.running_mean"])
    network.freeze_backbone(False)
    same, _ = adam_step(network)
    statistics = {f"backbone.bn1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert same == {"normalize.mean", "normalize.std", "backbone.conv1.weight"} | statistics


@pytest.mark.spec_field("ModelConfig.dropout_rate")
def test_dropout_drops_a_share_of_the_features_in_training_only() -> None:
    network = detector(dropout_rate=0.25)
    seen: list[Tensor] = []
    network.output_bbox.register_forward_hook(lambda _layer, inputs, _output: seen.append(inputs[0]))
    network.backbone.layer4[0].register_forward_hook(lambda _layer, _inputs, output: output.fill_(3.0))
    images = torch.rand(4, 3, 64, 64)
    network.train()(images)
    network.eval()(images)
    dropped = (seen[0] == 0).float().mean()
    assert 0.24 < dropped < 0.26  # 32,768 values: 4 standard deviations
    assert seen[0].max().item() == pytest.approx(3 / 0.75) and (seen[1] == 3).all()
    assert network.state_dict().keys() == detector().state_dict().keys()


def test_a_depth_that_does_not_exist_is_a_spec_error() -> None:
    with pytest.raises(SpecError) as caught:
        detector(num_layers=19)
    message = "model_config.num_layers: resnet has no 19 layers; use one of: 10, 18, 34, 50, 101, 152, 200"
    assert str(caught.value) == message


class Loose(GridLayers):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale = nn.Parameter(torch.ones(1))


class Fixed(GridLayers):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("anchors", torch.ones(4), persistent=False)


def named(name: str) -> type[GridLayers]:
    def make(self: GridLayers, *arguments: Any) -> None:
        GridLayers.__init__(self, *arguments)
        self.add_module(name, nn.Conv2d(1, 1, 1))

    return type("Named", (GridLayers,), {"__init__": make})


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (Loose, "Loose.scale would be neither trained nor saved: put it in a child"),
        (Fixed, "Fixed.anchors would be neither trained nor saved: put it in a child"),
        (named("backbone"), "Named.backbone: the detector has a backbone of its own"),
        (named("normalize"), "Named.normalize: the detector has a normalize of its own"),
        (named("ranges"), "Named.ranges: the detector has a ranges of its own"),
    ],
)
def test_layers_whose_tensors_would_be_lost(
    layers: type[GridLayers], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "family", lambda config: heads.Family(layers, GridHead))
    with pytest.raises(ValueError, match=words):
        detector()

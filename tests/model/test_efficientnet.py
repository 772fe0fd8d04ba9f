"""EfficientNets in TensorFlow's form, as EfficientDet's weights need them, and the files of timm."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectkit.errors import ModelError
from detectkit.model.backbones import make_backbone
from detectkit.model.base import Backbone
from detectkit.model.detector import build
from detectkit.model.pretrained import load_pretrained
from detectkit.spec.model_pb2 import ModelConfig


def config(arch: str = "efficientnet_b0", layout: str = "TENSORFLOW", **fields: object) -> ModelConfig:
    return ModelConfig(arch=arch, use_batch_norm=True, layout=layout, **fields)  # type: ignore[arg-type]


def levels(**fields: object) -> Backbone:
    return make_backbone(config(**fields), 3, (8, 16, 32)).eval()  # type: ignore[arg-type]


def with_statistics(network: nn.Module) -> nn.Module:
    """In evaluation mode, with biases, scales and statistics as training leaves them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return network.eval()


def timms(name: str) -> str:
    """The name in timm's files of a tensor of b0 up to the last stage."""
    if found := re.fullmatch(r"features\.0\.(\d)\.(\w+)", name):
        return f"{['conv_stem', 'bn1'][int(found[1])]}.{found[2]}"
    found = re.fullmatch(r"features\.(\d)\.(\d)\.block\.(\d)\.(\w+)\.(\w+)", name)
    assert found
    stage, unit, place, part, leaf = found.groups()
    place_here = int(place) + (stage == "1")  # the first stage has no expansion
    if place_here == 2:
        return f"blocks.{int(stage) - 1}.{unit}.se.conv_{dict(fc1='reduce', fc2='expand')[part]}.{leaf}"
    kind = {0: ("conv_pw", "bn1"), 1: ("conv_dw", "bn2"), 3: ("conv_pwl", "bn3")}
    first = {1: ("conv_dw", "bn1"), 3: ("conv_pw", "bn2")}
    return f"blocks.{int(stage) - 1}.{unit}.{(first if stage == '1' else kind)[place_here][int(part)]}.{leaf}"


def as_timms(backbone: Backbone) -> dict[str, Tensor]:
    return {timms(name): tensor.clone() for name, tensor in backbone.state_dict().items()}


def reference(tensors: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """What TensorFlow computes from these weights of b0: the maps behind stages 3, 5 and 7."""

    def convolution(values: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight, border = tensors[f"{name}.weight"], []
        for side in (values.shape[3], values.shape[2]):
            total = max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0)
            border += [total // 2, total - total // 2]
        values = functional.conv2d(functional.pad(values, border), weight, stride=stride, groups=groups)
        scale, shift, mean, variance = (
            tensors[f"{norm}.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return functional.batch_norm(values, mean, variance, scale, shift, eps=1e-3)

    values, maps = functional.silu(convolution(images, "conv_stem", "bn1", 2)), []
    for stage, (units, stride) in enumerate(zip((1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1))):
        for unit in range(units):
            name, inner, norms = f"blocks.{stage}.{unit}", values, iter(("bn1", "bn2", "bn3"))
            if stage:
                inner = functional.silu(convolution(inner, f"{name}.conv_pw", f"{name}.{next(norms)}"))
            step = 1 if unit else stride
            norm = f"{name}.{next(norms)}"
            inner = functional.silu(convolution(inner, f"{name}.conv_dw", norm, step, inner.shape[1]))
            gate = inner.mean((2, 3), keepdim=True)
            for part, function in (("reduce", functional.silu), ("expand", torch.sigmoid)):
                layer = f"{name}.se.conv_{part}"
                gate = function(functional.conv2d(gate, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]))
            last = "conv_pwl" if stage else "conv_pw"
            inner = convolution(inner * gate, f"{name}.{last}", f"{name}.{next(norms)}")
            values = values + inner if values.shape == inner.shape else inner
        if stage in (2, 4, 6):
            maps.append(values)
    return maps


@pytest.mark.parametrize("side", [64, 75])  # 75: odd at the first convolution, and at a stride of 4
def test_weights_of_timm_give_tensorflows_maps(side: int) -> None:
    torch.manual_seed(0)
    tensors = as_timms(with_statistics(levels()))
    assert tensors["blocks.0.0.conv_pw.weight"].shape == (16, 32, 1, 1)
    assert tensors["blocks.6.0.conv_pwl.weight"].shape == (320, 1152, 1, 1)
    network = levels()
    behind = {
        "conv_head.weight": torch.zeros(1),
        "bn2.bias": torch.zeros(1),
        "classifier.bias": torch.zeros(1),
    }
    named = {network.named_here(name): tensor for name, tensor in (tensors | behind).items()}
    network.load_state_dict(
        {name: tensor for name, tensor in named.items() if not name.startswith(network.behind)}
    )
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        found, expected = network(images), reference(tensors, images)
    assert [values.shape for values in found] == [values.shape for values in expected]
    for one, other in zip(found, expected):
        assert other.std() > 1e-3 and (one - other).abs().max() < 1e-5
    with torch.no_grad():  # torchvision's form pads all sides alike
        symmetric = levels(layout="TORCHVISION")
        symmetric.load_state_dict(network.state_dict())
        assert (symmetric(images)[0] - expected[0]).abs().max() > 0.01 * expected[0].std()


def test_a_file_of_timm_loads_into_the_form_of_its_weights_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = make_backbone(config(), 3)
    theirs = {
        name: tensor for name, tensor in fresh.state_dict().items() if not name.startswith("features.8")
    }
    tensors = {timms(name): tensor for name, tensor in theirs.items()}
    tensors |= {
        timm: fresh.state_dict()[ours]
        for ours, timm in [("features.8.0.weight", "conv_head.weight")]
        + [
            (f"features.8.1.{leaf}", f"bn2.{leaf}")
            for leaf in ("weight", "bias", "running_mean", "running_var")
        ]
    }
    torch.save(tensors, tmp_path / "timm.pth")
    network = build(config(), ["square"], 3)
    assert network.backbone.title == "efficientnet_b0 in TensorFlow's layout"
    report = load_pretrained(network, tmp_path / "timm.pth", ["square"])
    assert {name.partition(".")[0] for name in report.skipped} <= {"output_cov", "output_bbox", "backbone"}
    assert torch.equal(network.backbone.get_parameter("features.8.0.weight"), tensors["conv_head.weight"])
    with pytest.raises(
        ModelError, match="TensorFlow's form of the network, the spec torchvision's: set layout: TENS"
    ):
        load_pretrained(build(config(layout="TORCHVISION"), ["square"], 3), tmp_path / "timm.pth", ["square"])
    for name, names in (("whole", ""), ("alone", "features.")):
        torch.save(
            {key.removeprefix(names): value for key, value in fresh.state_dict().items()}, tmp_path / name
        )
        with pytest.raises(
            ModelError, match="torchvision's form of the network, the spec TensorFlow's: set layout: TO"
        ):
            load_pretrained(network, tmp_path / name, ["square"])


@pytest.mark.parametrize("arch", [f"efficientnet_lite{number}" for number in range(5)])
def test_names_of_timm_and_of_efficientnet_pytorch_are_the_same_tensors(arch: str) -> None:
    with torch.device("meta"):
        network = levels(arch=arch)
    units = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}
    units |= {"lite3": (1, 3, 3, 5, 5, 6, 1), "lite4": (1, 4, 4, 6, 6, 8, 1)}  # as timm has them
    of_timm, of_pytorch = ["conv_stem.weight", "bn1.bias"], ["_conv_stem.weight", "_bn0.bias"]
    number = 0
    for stage, count in enumerate(units[arch.removeprefix("efficientnet_")]):
        for unit in range(count):
            parts = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            theirs = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            if not stage:
                parts, theirs = ["conv_dw", "bn1", "conv_pw", "bn2"], theirs[2:]
            of_timm += [f"blocks.{stage}.{unit}.{part}.weight" for part in parts]
            of_pytorch += [f"_blocks.{number}.{part}.weight" for part in theirs]
            number += 1
    ours = [network.named_here(name) for name in of_timm]
    assert ours == [network.named_here(name) for name in of_pytorch]
    own = network.state_dict()
    assert set(ours) - set(own) == set() and len(set(ours)) == len(ours)
    assert sum(name.endswith("weight") for name in own) == len(ours)  # of the stem a weight and a bias each
    assert all("_conv_head.weight".startswith(network.behind) for _ in own) and "bn2.bias".startswith(
        network.behind
    )


@pytest.mark.spec_field("ModelConfig.batch_norm_momentum")
def test_momentum_is_what_a_batch_gives_to_the_statistics() -> None:
    torch.manual_seed(0)
    slow, usual = (build(config(**fields), ["square"], 3) for fields in ({"batch_norm_momentum": 0.01}, {}))
    for network, share in ((slow, 0.01), (usual, 0.1)):
        norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert [layer.momentum for layer in norms] == [pytest.approx(share)] * len(norms)
        layer = norms[0].train()
        layer(torch.full((2, 32, 4, 4), 5.0))
        assert layer.running_mean.tolist() == pytest.approx([5 * share] * 32)

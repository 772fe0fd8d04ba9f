"""The levels of the backbones: maps at strides of 8, 16 and 32, as torchvision's networks have them."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from detectkit.errors import SpecError
from detectkit.heads import Level
from detectkit.model.backbones import make_backbone
from detectkit.model.base import Backbone
from detectkit.spec.model_pb2 import ModelConfig
from detectkit.spec.networks import NETWORKS

# Channels at strides of 8, 16 and 32: by the papers, He 2015 table 1, Simonyan 2014 table 1, Redmon 2018 table 1, Howard 2017
# table 1, Sandler 2018 table 2, Szegedy 2014 table 1, Tan 2019 table 1 and its widths, Liu 2020.
CHANNELS = {
    ("resnet", 18): (128, 256, 512),
    ("resnet", 50): (512, 1024, 2048),
    ("vgg", 16): (512, 512, 512),
    ("darknet", 19): (256, 512, 1024),
    ("darknet", 53): (256, 512, 1024),
    ("mobilenet_v1", 0): (256, 512, 1024),
    ("mobilenet_v2", 0): (32, 96, 320),
    ("squeezenet", 0): (512, 512),
    ("googlenet", 0): (480, 832, 1024),
    ("efficientnet_lite0", 0): (40, 112, 320),
    ("efficientnet_lite1", 0): (40, 112, 320),
    ("efficientnet_lite2", 0): (48, 120, 352),
    ("efficientnet_lite3", 0): (48, 136, 384),
    ("efficientnet_lite4", 0): (56, 160, 448),
    ("efficientnet_b0", 0): (40, 112, 320),
    ("efficientnet_b1", 0): (40, 112, 320),
    ("efficientnet_b2", 0): (48, 120, 352),
    ("efficientnet_b3", 0): (48, 136, 384),
    ("efficientnet_b4", 0): (56, 160, 448),
    ("efficientnet_b5", 0): (64, 176, 512),
    ("efficientnet_b6", 0): (72, 200, 576),
    ("efficientnet_b7", 0): (80, 224, 640),
}
# torchvision's names of the layers that give these maps.
THEIRS = {
    ("resnet18", "resnet", 18): ("layer2", "layer3", "layer4"),
    ("resnet50", "resnet", 50): ("layer2", "layer3", "layer4"),
    ("vgg16", "vgg", 16): ("features.22", "features.29", "features.30"),
    ("vgg16_bn", "vgg", 16): ("features.32", "features.42", "features.43"),
    ("mobilenet_v2", "mobilenet_v2", 0): ("features.6", "features.13", "features.17"),
    ("googlenet", "googlenet", 0): ("inception3b", "inception4e", "inception5b"),
    ("efficientnet_b0", "efficientnet_b0", 0): ("features.3", "features.5", "features.7"),
}


def backbone(arch: str, depth: int, *strides: int, device: str = "meta", **fields: object) -> Backbone:
    config = ModelConfig(arch=arch, num_layers=depth, use_batch_norm=True, use_pooling=True)
    config.MergeFrom(ModelConfig(**fields))  # type: ignore[arg-type]
    with torch.device(device):
        return make_backbone(config, 3, strides).eval()


@pytest.mark.parametrize(("arch", "depth"), CHANNELS)
@pytest.mark.parametrize("layout", ["TORCHVISION", "TLT"])
def test_maps_at_strides_of_8_16_and_32(arch: str, depth: int, layout: str) -> None:
    channels = CHANNELS[arch, depth]
    strides = (8, 16, 32)[: len(channels)]
    network = backbone(arch, depth, *strides, layout=layout)
    assert [level[1:] for level in network.levels] == list(zip(strides, channels))
    with torch.no_grad():
        maps = network(torch.empty(2, 3, 128, 192, device="meta"))
    assert [values.shape for values in maps] == [
        (2, width, 128 // stride, 192 // stride) for stride, width in zip(strides, channels)
    ]


def test_every_family_is_in_the_table() -> None:
    assert set(NETWORKS) == {arch for arch, _ in CHANNELS}


@pytest.mark.parametrize(("arch", "depth"), CHANNELS)
def test_a_cell_that_reaches_over_the_border_counts(arch: str, depth: int) -> None:
    # SSD's 300 pixels: 37.5 cells at a stride of 8
    strides = (8, 16, 32)[: len(CHANNELS[arch, depth])]
    for layout in ("TORCHVISION", "TLT"):
        network = backbone(arch, depth, *strides, layout=layout)
        with torch.no_grad():
            maps = network(torch.empty(1, 3, 300, 332, device="meta"))
        assert [tuple(values.shape[2:]) for values in maps] == [(38, 42), (19, 21), (10, 11)][: len(maps)]


@pytest.mark.parametrize(("arch", "depth"), CHANNELS)
def test_blocks_are_those_that_the_spec_knows(arch: str, depth: int) -> None:
    known = NETWORKS[arch]
    blocks = list(backbone(arch, depth, *(8, 16, 32)[: len(CHANNELS[arch, depth])]).blocks())
    if arch.startswith("efficientnet_b"):
        assert blocks == list(known.blocks[:-1])  # without the last convolution
    else:
        assert blocks == list(range(known.blocks[0], known.blocks[-1] + known.more_blocks + 1))


def test_the_maps_of_vgg_are_those_that_ssd_takes() -> None:
    """conv4_3, in torchvision before its L2 normalisation, and conv5_3, behind which SSD has its pool and two convolutions."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None).backbone.eval()
    ours = backbone("vgg", 16, 8, 16, device="cpu", use_batch_norm=False)
    assert [level.name for level in ours.levels] == ["features.22", "features.29"]
    layers = [*theirs.features, *theirs.extra[0][:7]]
    ours.load_state_dict(nn.ModuleDict({"features": nn.Sequential(*layers)}).state_dict())
    images = torch.rand(1, 3, 300, 300)
    with torch.no_grad():
        fine, mid = ours(images)
        expected = theirs.features(images)
        assert torch.equal(fine, expected) and fine.shape == (1, 512, 38, 38)
        expected = theirs.extra[0][:7](expected)
        assert torch.equal(mid, expected) and mid.shape == (1, 512, 19, 19) and mid.std() > 0


@pytest.mark.parametrize(("name", "arch", "depth"), THEIRS)
def test_maps_are_those_of_torchvision_with_its_weights(name: str, arch: str, depth: int) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    original = torchvision.models.get_model(name, weights=None, **options).eval()
    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    ours = backbone(arch, depth, 8, 16, 32, device="cpu", use_batch_norm=name != "vgg16")
    theirs = original.state_dict()
    ours.load_state_dict(
        {key: tensor for key, tensor in theirs.items() if not key.startswith(ours.behind)}, strict=True
    )
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = create_feature_extractor(original, list(THEIRS[name, arch, depth]))(images)
        found = ours(images)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected.values(), strict=True):
        assert one.std() > 0 and torch.equal(one, other)


def test_a_stride_that_a_network_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="model_config.arch: squeezenet has no maps at a stride of 32"):
        backbone("squeezenet", 0, 8, 16, 32)


@pytest.mark.parametrize("strides", [(16, 8), (8, 8)])
def test_strides_that_do_not_ascend(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the finest first"):
        backbone("resnet", 10, *strides)


def test_what_is_behind_the_last_map_is_lost() -> None:
    network = backbone("darknet", 19, 8, 16)
    assert network.levels == (Level("stage3", 8, 256), Level("stage4", 16, 512))
    assert list(network.blocks()) == [0, 1, 2, 3, 4]
    assert network.behind[-1] == "stage5."
    # The layers that are asked for are those of the whole network, and so are their weights' names.
    whole = backbone("darknet", 19).state_dict()
    assert set(network.state_dict()) == {name for name in whole if not name.startswith("stage5")}


def test_without_strides_it_is_the_last_map_of_tlts() -> None:
    assert backbone("mobilenet_v2", 0).levels == (Level("features.13", 16, 96),)
    assert backbone("efficientnet_b0", 0).levels == (Level("features.8", 32, 1280),)

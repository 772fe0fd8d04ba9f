"""Every backbone, pruned at three thresholds, is an ordinary model: it computes, reloads, learns and is exported."""

import copy
import functools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from detectkit import spec
from detectkit.compress.prune import Pruner, prune, widths
from detectkit.compress.retrain import save_pruned
from detectkit.deploy.calibrate import calibrate
from detectkit.deploy.onnx import check_against, to_model, to_onnx
from detectkit.deploy.qdq import quantize
from detectkit.heads.grid_layers import GridLayers
from detectkit.model import checkpoint, pretrained
from detectkit.model.base import Backbone, Convolution
from detectkit.model.detector import Detector, build, parameters
from detectkit.spec import PruningConfig
from detectkit.spec.networks import NETWORKS
from detectkit.train.loop import train
from detectkit.train.run import set_up
from detectkit.spec.model_pb2 import ModelConfig

CLASSES = ["square", "bar"]
HEIGHT, WIDTH = 64, 96
PARTS = (0.25, 0.6, 0.95)  # of the filters whose importance is not above the threshold
QUICK = [
    *[("resnet", 10), ("vgg", 16), ("darknet", 19), ("mobilenet_v1", 0), ("mobilenet_v2", 0)],
    *[("squeezenet", 0), ("googlenet", 0), ("efficientnet_b0", 0), ("efficientnet_lite0", 0)],
]
ALL = [(arch, depth) for arch, network in NETWORKS.items() for depth in network.depths or (0,)]
SLOW = [pytest.param(pair, marks=pytest.mark.slow) for pair in ALL if pair not in QUICK]


def experiment(arch: str, depth: int) -> spec.Experiment:
    result = spec.Experiment()
    result.model_config.arch, result.model_config.num_layers = arch, depth
    result.model_config.use_batch_norm = True
    return result


def make(arch: str, depth: int) -> Detector:
    return build(experiment(arch, depth).model_config, CLASSES, 3)


def with_statistics(network: Detector) -> Detector:
    """In evaluation mode, with biases, scales and running statistics as training leaves them."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("bias"):
                weight.normal_(std=0.1)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.momentum = 1.0  # one batch is enough
        network.train()(torch.rand(4, 3, HEIGHT, WIDTH))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1
    return network.eval()


def outputs(network: Detector, images: Tensor) -> Tensor:
    """Both maps, one behind the other: [B, 5C, h, w]."""
    with torch.no_grad():
        return torch.cat(network(images), dim=1)


def at(pruner: Pruner, part: float) -> float:
    """The threshold that this part of the filters is not above."""
    values = pruner.thresholds()
    return values[int(part * (len(values) - 1))]


def blind(pruner: Pruner, threshold: float) -> Detector:
    """A copy of the original, every convolution of which sees zeros in the place of the channels that go."""
    original = copy.deepcopy(pruner.detector)
    kept = pruner.kept(threshold)
    for name, groups in pruner.wiring.takes.items():
        layer = original.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            mask = torch.cat([torch.zeros(group.width).index_fill(0, kept[group], 1.0) for group in groups])
            layer.register_forward_pre_hook(functools.partial(masked, mask[:, None, None]))
    return original


def masked(mask: Tensor, _: nn.Module, images: tuple[Tensor]) -> Tensor:
    return images[0] * mask


def difference(one: Detector, other: Detector) -> float:
    """The greatest of both maps, in 64 bits: what is left is no rounding."""
    images = torch.rand(1, 3, HEIGHT // 2, WIDTH, dtype=torch.float64)
    found, expected = (outputs(copy.deepcopy(network).double(), images) for network in (one, other))
    return float((found - expected).abs().max())


@pytest.fixture(scope="module", params=[*QUICK, *SLOW], ids=lambda pair: f"{pair[0]}{pair[1] or ''}")
def pair(request: pytest.FixtureRequest) -> tuple[str, int]:
    """arch and num_layers; all tests of one network come together, so that only one is in memory."""
    found: tuple[str, int] = request.param
    return found


@pytest.fixture(scope="module")
def pruner(pair: tuple[str, int]) -> Pruner:
    torch.manual_seed(0)
    return Pruner(with_statistics(make(*pair)), PruningConfig(), spec.Experiment())


@pytest.fixture(scope="module")
def narrowed(pruner: Pruner) -> list[Detector]:
    """The networks at `PARTS`; no test changes one."""
    return [pruner.pruned(at(pruner, part)).detector for part in PARTS]


def test_it_computes_what_the_original_does_without_the_channels_that_go(
    pruner: Pruner, narrowed: list[Detector]
) -> None:
    for part, network in zip(PARTS, narrowed, strict=True):
        assert difference(network, blind(pruner, at(pruner, part))) < 1e-5
    assert difference(network, pruner.detector) > 1e-2  # it is not that nothing was lost


def test_widths_fall_by_eights(pruner: Pruner, narrowed: list[Detector]) -> None:
    sizes = [parameters(network) for network in (pruner.detector, *narrowed)]
    assert sizes == sorted(set(sizes), reverse=True)
    for network in narrowed:
        found = widths(pruner.detector, network)
        assert {width.layer for width in found if width.after != width.before and width.after % 8} == set()
        assert min(width.after for width in found if width.before >= 16) >= 16
        assert all(width.after == width.before for width in found if width.layer.startswith("output_"))


def test_it_reloads_learns_a_step_and_is_pruned_again(
    tmp_path: Path, pair: tuple[str, int], narrowed: list[Detector]
) -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    text = spec.dumps(experiment(*pair))
    for network in narrowed:
        checkpoint.save(tmp_path / "pruned.safetensors", network, text, CLASSES)
        loaded = checkpoint.load(tmp_path / "pruned.safetensors").detector
        assert torch.equal(outputs(loaded, images), outputs(network, images))
        learn_a_step(loaded)
        smaller = again(loaded.eval())
        assert parameters(smaller) < parameters(loaded)
        found = outputs(smaller, images)
        assert found.shape == (2, 10, HEIGHT // network.outline.multiple, WIDTH // network.outline.multiple)
        assert found.isfinite().all()
    checkpoint.save(tmp_path / "twice.safetensors", smaller, text, CLASSES)
    assert torch.equal(outputs(checkpoint.load(tmp_path / "twice.safetensors").detector, images), found)


def learn_a_step(network: Detector) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = [weight.detach().clone() for weight in network.parameters()]
    coverage, bbox = network.train()(torch.rand(2, 3, HEIGHT, WIDTH))
    (coverage.square().mean() + (bbox - 1).square().mean()).backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # An EfficientNet leaves out branches at random, which have no gradient then.
    assert len(gradients) > len(before) / 2
    optimizer.step()
    after = list(network.parameters())
    assert sum(not torch.equal(one, two) for one, two in zip(before, after, strict=True)) > len(before) / 2


def again(network: Detector) -> Detector:
    """Pruned once more, with a finer granularity where eights leave nothing to take."""
    second = Pruner(network, PruningConfig(granularity=1, min_num_filters=4), spec.Experiment())
    return second.pruned(at(second, 0.5)).detector


def test_a_fresh_detector_of_full_width_starts_from_it(
    tmp_path: Path, pair: tuple[str, int], narrowed: list[Detector]
) -> None:
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    for network in narrowed:
        checkpoint.save(tmp_path / "pruned.safetensors", network, spec.dumps(experiment(*pair)), CLASSES)
        fresh = make(*pair)
        report = pretrained.load_pretrained(fresh, tmp_path / "pruned.safetensors", CLASSES)
        assert report.narrowed and not report.skipped
        assert [layer for layer in widths(network, fresh) if layer.before != layer.after] == []
        assert fresh.backbone.levels == network.backbone.levels
        assert torch.equal(outputs(fresh.eval(), images), outputs(network, images))


@pytest.mark.parametrize(
    "number", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)]
)
def test_onnx_runtime_computes_the_same(narrowed: list[Detector], number: int) -> None:
    network = narrowed[number]
    model = to_onnx(network, height=HEIGHT, width=WIDTH)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = torch.rand(3, 3, HEIGHT, WIDTH)
    names = ["output_cov/Sigmoid", "output_bbox/BiasAdd"]
    found = [torch.from_numpy(values) for values in session.run(names, {"images": images.numpy()})]
    assert (torch.cat(found, dim=1) - outputs(network, images)).abs().max() < 1e-4


class Grouped(Backbone):
    """Grouped convolutions that are not depthwise, which none of the backbones has."""

    given = ("grouped",)

    def __init__(self) -> None:
        super().__init__()
        self.first = Convolution(3, 24, 3, stride=4, function=nn.ReLU())
        self.grouped = Convolution(24, 32, 3, stride=4, groups=4, function=nn.ReLU())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.grouped(self.first(images)),)

    def blocks(self) -> dict[int, nn.Module]:
        return {}


def gridded(backbone: Backbone, *, classes: int) -> Detector:
    return Detector(backbone, GridLayers(ModelConfig(), backbone.levels, classes), channels=3)


def test_the_groups_of_a_convolution_keep_the_same_places() -> None:
    torch.manual_seed(0)
    original = with_statistics(gridded(Grouped(), classes=2))
    config = PruningConfig(granularity=1, min_num_filters=1)
    pruner = Pruner(original, config, spec.Experiment())
    for threshold in pruner.thresholds()[:-1]:
        network = pruner.pruned(threshold).detector
        layer = network.get_submodule("backbone.grouped.conv")
        assert isinstance(layer, nn.Conv2d) and layer.groups == 4
        assert layer.in_channels % 4 == layer.out_channels % 4 == 0
        assert difference(network, blind(pruner, threshold)) < 1e-5
    assert (layer.in_channels, layer.out_channels) == (4, 4)  # one place in each of the four


def test_a_pruned_model_is_trained_on_pictures(tiny: spec.Experiment, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny.training_config.num_epochs = 1
    config = PruningConfig(target_params=0.3)
    original = build(tiny.model_config, spec.class_names(tiny), 3).eval()
    share = {"target_params": lambda network: parameters(network) / parameters(original)}
    pruned = prune(original, config, experiment=tiny, sizes=share).detector
    model = checkpoint.Model(pruned, tiny, spec.class_names(tiny))
    save_pruned(tmp_path / "pruned.safetensors", model, config)
    run = set_up(
        spec.retraining_spec(tiny, tmp_path / "pruned.safetensors"),
        tmp_path / "results",
        name="model",
        device=torch.device("cpu"),
    )
    trained = checkpoint.load(train(run).last).detector
    assert parameters(trained) == parameters(pruned) <= 0.3 * parameters(original)
    assert [layer for layer in widths(pruned, trained) if layer.before != layer.after] == []
    assert not torch.equal(trained.output_cov.weight, pruned.output_cov.weight)
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    assert outputs(trained, images).shape == (2, 10, 4, 6)
    assert outputs(trained, images).isfinite().all()


# --- the other forms of a family


FORMS = {
    "efficientnet_b0 of TensorFlow": ModelConfig(arch="efficientnet_b0", layout=ModelConfig.TENSORFLOW),
    "efficientnet_lite3": ModelConfig(arch="efficientnet_lite3"),
    "resnet 18 v1d": ModelConfig(
        arch="resnet", deep_stem=True, average_pooled_shortcuts=True, use_batch_norm=True
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_another_form_is_pruned_exported_and_rounded(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = with_statistics(build(FORMS[form], CLASSES, 3))
    pruner = Pruner(whole, PruningConfig(), spec.Experiment())
    network = pruner.pruned(at(pruner, 0.5)).detector
    assert parameters(network) < 0.8 * parameters(whole)
    assert difference(network, blind(pruner, at(pruner, 0.5))) < 1e-5
    model = to_model(network, height=HEIGHT, width=WIDTH)
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images.numpy()})
    assert np.abs(np.concatenate(found, axis=1) - outputs(network, images).numpy()).max() < 1e-4
    table = calibrate(network, [images], method="minmax")
    rounded = quantize(model, table, runtime="onnxruntime").SerializeToString()
    assert check_against(network, rounded, tolerance=10, least_sqnr=5) > 0
    stored = spec.Experiment(model_config=FORMS[form])
    checkpoint.save(tmp_path / "pruned.safetensors", network, spec.dumps(stored), CLASSES)
    loaded = checkpoint.load(tmp_path / "pruned.safetensors").detector
    assert torch.equal(outputs(loaded, images), outputs(network, images))

"""Another family of heads than the grid goes the whole way, and is known to nothing but `heads.family`.

It has three outputs on two levels, of which one has nothing to do with classes, costs that the classes share, and boxes
whose middles are those of cells.
"""

import json
import math
import shutil
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, l1_loss

from detectkit import heads, runtimes, spec
from detectkit.cli import main
from detectkit.errors import Interrupted, ModelError, UsageError
from detectkit.heads import Candidates, Family, Layers, Outline, Output
from detectkit.heads.clustering import (
    clustered,
    clustering_arguments,
    lowest_score,
    of_class,
    spec_clustering,
)
from detectkit.model import checkpoint
from detectkit.ops.boxes import clip
from detectkit.train import loop
from detectkit.train.run import set_up

STRIDES = (8, 16)


class Asked(NamedTuple):
    """Whether the middle of an object is in a cell [B, C, h, w], at both levels, and its size [B, 2, h, w] at the second."""

    fine: Tensor
    coarse: Tensor
    sizes: Tensor  # logarithms of width and height in cells; 0 where there is none


class ToyLayers(Layers):
    """Whether a cell is the middle of an object, on both levels; how large that is, on the second."""

    strides = STRIDES

    def __init__(self, model_config, levels, classes):
        super().__init__(model_config, levels, classes)
        fine, coarse = (level.channels for level in levels)
        self.toy_neck = nn.Sequential(nn.Conv2d(fine, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.toy_fine, self.toy_coarse = nn.Conv2d(24, classes, 1), nn.Conv2d(coarse, classes, 1)
        self.toy_sizes = nn.Conv2d(coarse, 2, 1)
        self.reset()

    def reset(self):
        for layer in (self.toy_neck[0], self.toy_fine, self.toy_coarse, self.toy_sizes):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, maps):
        fine, coarse = maps
        scores = self.toy_fine(self.toy_neck(fine)), self.toy_coarse(coarse)
        return *(torch.sigmoid(score.float()) for score in scores), self.toy_sizes(coarse).float()

    def outline(self, levels):
        outputs = (
            Output("toy/fine", "toy_fine", 0, 1, known=(0.0, 1.0)),
            Output("toy/coarse", "toy_coarse", 1, 1, known=(0.0, 1.0)),
            Output("toy/sizes", "toy_sizes", 1, 2, of_classes=False),
        )
        return Outline(outputs, tuple(levels), levels[-1].stride)


class Doubled:
    """A balance that counts sizes twice, and steps."""

    def __init__(self):
        self.steps = 0

    def total(self, costs):
        return costs["scores"] + 2 * costs["sizes"]

    def accumulate(self, costs):
        self.steps += 1

    def end_epoch(self):
        return []

    def figures(self, costs):
        parts = {f"mean_cost_{name}": float(cost.detach()) for name, cost in costs.items()}
        return {"task_cost": parts["mean_cost_scores"] + 2 * parts["mean_cost_sizes"], **parts}

    def state(self):
        return {"steps": self.steps}

    def restore(self, state):
        self.steps = state["steps"]


class ToyHead:
    geometry = None

    def __init__(self, experiment, outline, *, clustering=None):
        assert [level.stride for level in outline.levels] == list(STRIDES)
        self.class_names = spec.class_names(experiment)
        size = experiment.augmentation_config.preprocessing
        self.width, self.height = size.output_image_width, size.output_image_height
        by_class = spec_clustering(experiment.postprocessing_config) if clustering is None else clustering
        self.clustering = [clustering_arguments(of_class(by_class, name)) for name in self.class_names]

    def targets(self, prepared):
        labels, batch, maps = prepared.labels, len(prepared.images), []
        for stride, channels in zip((*STRIDES, STRIDES[1]), (2, 2, 2), strict=True):
            maps.append(torch.zeros(batch, channels, self.height // stride, self.width // stride))
        middles, sizes = (labels.boxes[:, :2] + labels.boxes[:, 2:]) / 2, labels.boxes[:, 2:] - labels.boxes[
            :, :2
        ]
        for number, stride in enumerate(STRIDES):
            column, row = (middles / stride).long().unbind(1)
            maps[number][labels.image_index, labels.classes, row, column] = 1
            if number == 1:
                maps[2][labels.image_index, :, row, column] = (sizes / stride).log()
        return Asked(*maps)

    def coverage(self, targets):
        return targets.fine

    def costs(self, outputs, targets, image_weights):
        fine, coarse, sizes = outputs
        scores = binary_cross_entropy(fine, targets.fine) + binary_cross_entropy(coarse, targets.coarse)
        asked = targets.sizes != 0
        return {"scores": scores * image_weights.mean(), "sizes": l1_loss(sizes * asked, targets.sizes)}

    def balance(self):
        return Doubled()

    def candidates(self, outputs, *, lowest):
        """A cell of the first level has a square of two cells, one of the second a box of the size that it gives."""
        fine, coarse, sizes = outputs
        parts = []
        for scores, stride in ((fine, 8), (coarse, 16)):
            image, number, row, column = (scores > lowest).nonzero(as_tuple=True)
            middle = (torch.stack((column, row), dim=1) + 0.5) * stride
            given = torch.full((len(image), 2), math.log(2)) if stride == 8 else sizes[image, :, row, column]
            half = given.clamp(-3, 3).exp() * stride / 2
            boxes = clip(torch.cat((middle - half, middle + half), dim=1), self.width, self.height)
            parts.append((boxes, scores[image, number, row, column], number, image))
        boxes, scores, classes, images = (torch.cat(column) for column in zip(*parts, strict=True))
        order = images.argsort(stable=True)
        return Candidates(boxes[order], scores[order], classes[order], images[order])

    def detections(self, outputs):
        found = self.candidates(outputs, lowest=lowest_score(self.clustering))
        return clustered(found, self.clustering, images=len(outputs[0]))

    def pictures(self, prepared, targets, outputs, *, count):
        maps = (outputs[0][:count].amax(1) * 255).byte().cpu().numpy()
        return {"image/fine": [Image.fromarray(values) for values in maps]}


@pytest.fixture
def toy(tiny, monkeypatch):
    """The tiny experiment, whose networks have the toy's head; two steps an epoch."""
    monkeypatch.setattr(heads, "family", lambda model_config: Family(ToyLayers, ToyHead))
    tiny.training_config.batch_size_per_gpu = 9
    tiny.training_config.num_epochs = 1
    for entry in tiny.postprocessing_config.target_class_config.values():
        entry.clustering_config.clustering_algorithm = spec.ClusteringConfig.NMS
        entry.clustering_config.nms_confidence_threshold = 0.1
    return tiny


@pytest.fixture
def trained(toy, tmp_path):
    return loop.train(run(toy, tmp_path / "run")).last


def run(experiment, results):
    return set_up(experiment, results, name="model", device=torch.device("cpu"))


def test_trains_and_goes_on_where_it_was_cut(toy, tmp_path, monkeypatch):
    toy.training_config.visualizer.enabled = True
    toy.training_config.visualizer.num_images = 1
    whole = run(toy, tmp_path / "whole")
    before = {name: weight.clone() for name, weight in whole.state.detector.named_parameters()}
    loop.train(whole)
    assert whole.state.balance.steps == 2 and whole.state.history[0]["validation_cost"] > 0
    after = whole.state.detector.state_dict()
    assert all(not torch.equal(after[name], weight) for name, weight in before.items())

    step = loop.train_step

    def cut(run, batch):
        found = step(run, batch)
        stop.requested = True
        return found

    stop = loop.StopRequest()
    monkeypatch.setattr(loop, "StopRequest", lambda: stop)
    monkeypatch.setattr(loop, "train_step", cut)
    with pytest.raises(Interrupted):
        loop.train(run(toy, tmp_path / "cut"))
    stop.requested = False
    monkeypatch.setattr(loop, "train_step", step)
    again = run(toy, tmp_path / "cut")
    assert (again.state.step, again.state.balance.steps) == (1, 1)
    loop.train(again)
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.state.detector.state_dict().items())


def test_its_file_says_what_it_gives(trained):
    model = checkpoint.load(trained)
    outline = model.detector.outline
    assert [(level.stride, level.channels) for level in outline.levels] == [(8, 128), (16, 512)]
    assert {name.partition(".")[0] for name in model.detector.state_dict()} == {
        *("normalize", "backbone", "toy_neck", "toy_fine", "toy_coarse", "toy_sizes")
    }
    maps = model.detector(torch.zeros(1, 3, 64, 96))
    assert [tuple(values.shape) for values in maps] == [(1, 2, 8, 12), (1, 2, 4, 6), (1, 2, 4, 6)]
    assert runtimes.load(trained, "cpu").outline == outline


def test_is_measured_pruned_and_finds(toy, trained, tmp_path, capsys):
    pruned, results = tmp_path / "pruned.safetensors", tmp_path / "results"
    commands = [
        ["evaluate", "-m", trained, "-r", results],
        ["prune", "-pm", trained, "-o", pruned, "--target-params", "0.5"],
        ["evaluate", "-m", pruned],
    ]
    for command in commands:
        assert main(list(map(str, command))) == 0, capsys.readouterr().err
    measured = json.loads((results / "results.json").read_text())
    assert measured["images"] == 6 and measured["validation_cost"] > 0
    narrow, wide = (checkpoint.load(path).detector for path in (pruned, trained))
    assert narrow.outline.outputs == wide.outline.outputs
    assert [level.channels for level in narrow.outline.levels] < [
        level.channels for level in wide.outline.levels
    ]
    assert narrow.get_submodule("toy_neck.0").out_channels < 24
    assert narrow.get_submodule("toy_sizes").out_channels == 2


def test_calibrates_and_runs_from_its_onnx_file(toy, trained, tiny_root, tmp_path, capsys):
    table, file = tmp_path / "calibration", tmp_path / "model.onnx"
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(tiny_root / "kitti" / "image_2" / "000.png", images)
    commands = [
        ["calibrate", "-m", trained, "-o", table, "--batches", 1],
        ["export", "-m", trained, "-o", file],
        ["infer", "-m", file, "-i", images, "-r", tmp_path / "found"],
        ["export", "-m", trained, "-o", tmp_path / "half.onnx", "--data_type", "fp16"],
        [
            *("export", "-m", trained, "-o", tmp_path / "int8.onnx", "--data_type", "int8"),
            "--calibration",
            table / "scales.json",
        ],
    ]
    for command in commands:
        assert main(list(map(str, command))) == 0, capsys.readouterr().err
    network, images = checkpoint.load(trained).detector, torch.rand(2, 3, 64, 96)
    for path, tolerance in ((file, 1e-5), (tmp_path / "half.onnx", 2e-2)):
        loaded = runtimes.load(path, "cpu")
        assert loaded.outline == network.outline
        with torch.no_grad():
            for ours, theirs in zip(network(images), loaded.forward(images), strict=True):
                assert (ours - theirs).abs().max() < tolerance
    tensors = json.loads((table / "scales.json").read_text())["tensors"]
    assert tensors["toy/fine"]["amax"] == tensors["toy/coarse"]["amax"] == 1.0
    assert (tmp_path / "found" / "labels" / "000.txt").exists()


@pytest.mark.parametrize(
    ("option", "words"), [("--nms", "grid head only"), ("--gen_ds_config", "nvinfer's own parser")]
)
def test_what_only_the_grid_has_is_refused(option, words, trained, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    assert main(["export", "-m", str(trained), "-o", str(file), option]) == UsageError.exit_code
    assert words in capsys.readouterr().err and not file.exists()


def test_outputs_that_are_not_those_of_the_weights(trained, monkeypatch):
    monkeypatch.undo()  # the grid is back
    with pytest.raises(ModelError, match="lacks output_bbox"):
        checkpoint.load(trained)

"""Another family of heads than the grid goes the whole way, and is known to nothing but `heads.family`.

It has three outputs on two levels, whose layers the levels share, two anchors a cell, an output that has nothing to do
with classes, costs of each class and of all, and boxes whose middles are those of cells.
"""

import json
import shutil
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

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
from detectkit.ops.decode import highest
from detectkit.train import loop
from detectkit.train.run import set_up

STRIDES = (8, 16)
SIDES = (2, 4)  # of the anchors, in cells


class Asked(NamedTuple):
    """Whether the middle of an object is in a cell [B, 2, C, h, w], at both levels, and its size [B, 2, h, w] at the second."""

    fine: Tensor
    coarse: Tensor
    sizes: Tensor  # logarithms of width and height in cells; 0 where there is none


class ToyLayers(Layers):
    """Whether a cell is the middle of an object, on both levels; how large that is, on the second."""

    strides = STRIDES

    def __init__(self, model_config, levels, classes):
        super().__init__(model_config, levels, classes)
        self.toy_fine, self.toy_coarse = (
            nn.Sequential(nn.Conv2d(level.channels, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
            for level in levels
        )
        self.toy_neck = nn.Conv2d(64, 64, 3, padding=1)
        self.toy_scores, self.toy_sizes = nn.Conv2d(64, len(SIDES) * classes, 1), nn.Conv2d(64, 2, 1)
        self.reset()

    def reset(self):
        for layer in (self.toy_fine[0], self.toy_coarse[0], self.toy_neck, self.toy_scores, self.toy_sizes):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, maps):
        fine, coarse = maps
        fine = functional.relu(self.toy_neck(self.toy_fine(fine)))
        coarse = functional.relu(self.toy_neck(self.toy_coarse(coarse)))
        scores = (torch.sigmoid(self.toy_scores(level).float()) for level in (fine, coarse))
        return *scores, self.toy_sizes(coarse).float()

    def outline(self, levels):
        outputs = (
            Output("toy/fine", "toy_scores", 0, 1, known=(0.0, 1.0), anchors=2),
            Output("toy/coarse", "toy_scores", 1, 1, known=(0.0, 1.0), anchors=2),
            Output("toy/sizes", "toy_sizes", 1, 2, of_classes=False),
        )
        return Outline(outputs, tuple(levels), levels[-1].stride)


class Doubled:
    """A balance that counts sizes twice, and steps."""

    def __init__(self):
        self.steps = 0

    def total(self, costs):
        return costs["scores"].sum() + 2 * costs["sizes"]

    def accumulate(self, costs):
        self.steps += 1

    def end_epoch(self):
        return []

    def figures(self, costs):
        parts = {f"mean_cost_{name}": float(cost.detach().sum()) for name, cost in costs.items()}
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
        labels, batch, scores = prepared.labels, len(prepared.images), []
        sizes = torch.zeros(batch, 2, self.height // STRIDES[1], self.width // STRIDES[1])
        low, high = labels.boxes[:, :2], labels.boxes[:, 2:]
        for stride in STRIDES:
            column, row = ((low + high) / 2 / stride).long().unbind(1)
            anchor = ((high - low).amax(1) > 3 * stride).long()
            maps = torch.zeros(
                batch, len(SIDES), len(self.class_names), self.height // stride, self.width // stride
            )
            maps[labels.image_index, anchor, labels.classes, row, column] = 1
            scores.append(maps)
        sizes[labels.image_index, :, row, column] = ((high - low) / stride).log()
        return Asked(*scores, sizes)

    def coverage(self, targets):
        return targets.fine.amax(1)

    def costs(self, outputs, targets, image_weights):
        """Of the scores [C], of the sizes []."""
        *scores, sizes = outputs
        cost = sum(
            functional.binary_cross_entropy(by_anchor(found), asked, reduction="none").mean((0, 1, 3, 4))
            for found, asked in zip(scores, targets[:2], strict=True)
        )
        asked = targets.sizes != 0
        return {
            "scores": cost * image_weights.mean(),
            "sizes": functional.l1_loss(sizes * asked, targets.sizes),
        }

    def balance(self):
        return Doubled()

    def candidates(self, outputs, *, lowest, at_most=None):
        """A cell of the first level has squares, one of the second a box of the size that it gives."""
        *scores, sizes = outputs
        every = torch.cat([by_anchor(maps).flatten(1) for maps in scores], dim=1)
        chosen = every > lowest
        if at_most is not None:
            chosen &= highest(every, at_most)
        counts, parts = [maps[0].numel() for maps in scores], []
        for maps, own, stride in zip(scores, chosen.split(counts, dim=1), STRIDES, strict=True):
            maps = by_anchor(maps)
            image, anchor, number, row, column = own.reshape(maps.shape).nonzero(as_tuple=True)
            middle = (torch.stack((column, row), dim=1) + 0.5) * stride
            side = torch.tensor(SIDES)[anchor, None].expand(-1, 2).log()
            given = side if stride == 8 else sizes[image, :, row, column].clamp(-3, 3)
            half = given.exp() * stride / 2
            boxes = clip(torch.cat((middle - half, middle + half), dim=1), self.width, self.height)
            parts.append((boxes, maps[image, anchor, number, row, column], number, image))
        boxes, scores, classes, images = (torch.cat(column) for column in zip(*parts, strict=True))
        order = images.argsort(stable=True)
        return Candidates(boxes[order], scores[order], classes[order], images[order])

    def detections(self, outputs):
        found = self.candidates(outputs, lowest=lowest_score(self.clustering))
        return clustered(found, self.clustering, images=len(outputs[0]))

    def pictures(self, prepared, targets, outputs, *, count):
        maps = (outputs[0][:count].amax(1) * 255).byte().cpu().numpy()
        return {"image/fine": [Image.fromarray(values) for values in maps]}


def by_anchor(maps):
    """[B, anchors * C, h, w] to [B, anchors, C, h, w]."""
    return maps.unflatten(1, (len(SIDES), -1))


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
        *("normalize", "backbone", "toy_fine", "toy_coarse", "toy_neck", "toy_scores", "toy_sizes")
    }
    maps = model.detector(torch.zeros(1, 3, 64, 96))
    assert [tuple(values.shape) for values in maps] == [(1, 4, 8, 12), (1, 4, 4, 6), (1, 2, 4, 6)]
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
    widths = {
        name: narrow.get_submodule(name).out_channels for name in ("toy_fine.0", "toy_coarse.0", "toy_neck")
    }
    assert widths["toy_fine.0"] == widths["toy_coarse.0"] < 64 and widths["toy_neck"] < 64
    assert [narrow.get_submodule(f"toy_{name}").out_channels for name in ("scores", "sizes")] == [4, 2]


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


def test_learns_with_8_bits_and_runs_with_them(toy, tmp_path, capsys):
    toy.training_config.enable_qat = True
    model, file = loop.train(run(toy, tmp_path / "run")).last, tmp_path / "int8.onnx"
    assert (
        main(list(map(str, ["export", "-m", model, "-o", file, "--data_type", "int8"]))) == 0
    ), capsys.readouterr().err
    torch.manual_seed(0)
    network, images = checkpoint.load(model).detector, torch.rand(2, 3, 64, 96)
    assert {"toy_fine_2", "toy_coarse_2", "toy/sizes"} <= set(network.ranges.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(network(images), runtimes.load(file, "cpu").forward(images), strict=True):
            assert (ours - theirs).abs().mean() < 0.03


def test_its_clustering_is_tuned(toy, trained, tmp_path, capsys):
    for entry in toy.postprocessing_config.target_class_config.values():
        entry.clustering_config.clustering_algorithm = spec.ClusteringConfig.DBSCAN
    path = tmp_path / "spec.txt"
    path.write_text(spec.dumps(toy))
    assert main(list(map(str, ["evaluate", "-e", path, "-m", trained, "--tune-clustering"]))) == 0
    assert "before tuning, mAP" in capsys.readouterr().out


def test_begins_with_the_weights_of_another_whose_classes_it_shares(toy, trained, tmp_path):
    toy.model_config.pretrained_model_file = str(trained)
    del toy.cost_function_config.target_classes[0]  # the squares
    old, new = checkpoint.load(trained).detector, run(toy, tmp_path / "next").state.detector
    for name in ("backbone.layer1.0.conv1.weight", "toy_neck.weight", "toy_sizes.bias"):
        assert torch.equal(old.state_dict()[name], new.state_dict()[name])
    # Channels of the scores: the anchors' squares and bars in turn.
    assert torch.equal(old.toy_scores.weight[[1, 3]], new.toy_scores.weight)


def test_learns_from_a_teacher(toy, trained, tmp_path):
    toy.training_config.distillation.teacher_model_file = str(trained)
    taught = run(toy, tmp_path / "taught")
    loop.train(taught)
    assert taught.state.balance.steps == 2


def test_what_it_is_asked_for_is_shown(toy, write_spec, tmp_path):
    assert main(list(map(str, ["visualize", "-e", write_spec(toy), "-o", tmp_path / "seen"]))) == 0
    assert (tmp_path / "seen" / "overview.png").exists()


def test_the_best_candidates_of_an_image(toy):
    head = ToyHead(toy, Outline((), tuple(heads.Level("", stride, 1) for stride in STRIDES), 16))
    torch.manual_seed(0)
    outputs = torch.rand(2, 4, 8, 12), torch.rand(2, 4, 4, 6), torch.rand(2, 2, 4, 6)
    whole, cut = (head.candidates(outputs, lowest=0.5, at_most=at_most) for at_most in (None, 5))
    assert cut.images.tolist() == [0] * 5 + [1] * 5
    for image in range(2):
        expected = whole.scores[whole.images == image].sort(descending=True).values[:5]
        assert torch.equal(cut.scores[cut.images == image].sort(descending=True).values, expected)


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

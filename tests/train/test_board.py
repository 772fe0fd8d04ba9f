"""What TensorBoard's files hold after a run, read with TensorBoard's own reader."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectkit.heads.pictures import cell_costs
from detectkit.train.step import Forwarded
from detectkit.data.augment import prepare
from detectkit.data.workers import loader
from detectkit.train.loop import train
from detectkit.train.run import set_up

CPU = torch.device("cpu")
CLASSES = ("square", "bar")
KINDS = (
    "cov_cost",
    "cov_gt",
    "cov_pred",
    "bbox_cost",
    "bbox_gt",
    "bbox_pred",
    "preds",
    "rectangle_bbox_preds",
)


def events(results):
    return EventAccumulator(str(Path(results) / "events"), size_guidance={"images": 0, "scalars": 0}).Reload()


def pixels(results, tag, number=-1):
    image = events(results).Images(tag)[number]
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))


class Shown:
    """A run that was set up, whose board is shown a batch at any position."""

    def __init__(self, experiment, results):
        self.run = set_up(experiment, results, name="model", device=CPU)
        batches = loader(
            self.run.training, experiment.augmentation_config, batch_size=3, order=[0, 1, 2], workers=0
        )
        self.prepared = prepare(
            next(iter(batches)), experiment.augmentation_config, generator=None, device="cpu"
        )
        self.targets = self.run.head.targets(self.prepared)
        generator = torch.Generator().manual_seed(1)
        self.outputs = (
            torch.rand(3, 2, 4, 6, generator=generator),
            torch.randn(3, 8, 4, 6, generator=generator),
        )

    def costs(self):
        return self.run.head.costs(self.outputs, self.targets, self.prepared.weights)

    def step(self, epoch, step, *, steps):
        state = self.run.state
        state.epoch, state.step = epoch, step
        self.run.board.step(
            state,
            steps,
            forwarded=Forwarded(
                self.prepared, self.prepared.images, self.targets, self.outputs, (), self.costs()
            ),
            costs={"task": torch.tensor(9.0), "regularization": torch.tensor(0.25)},
            rate=1e-3,
        )


@pytest.fixture
def shown(tiny, tmp_path):
    """Makes a `Shown` of the tiny experiment as it is then, its visualizer enabled."""

    def make():
        tiny.training_config.visualizer.enabled = True
        return Shown(tiny, tmp_path)

    return make


@pytest.mark.spec_field("VisualizerConfig.enabled")
def test_a_run_writes_tlts_tags_and_the_values_it_had(small, tmp_path):
    small.training_config.regularizer.type = small.training_config.regularizer.L2
    small.training_config.regularizer.weight = 1e-4
    small.training_config.visualizer.enabled = True
    small.cost_function_config.enable_autoweighting = False
    outcome = train(set_up(small, tmp_path, name="model", device=CPU))
    written = events(tmp_path)
    objectives = [f"{name}_{objective}" for name in CLASSES for objective in ("cov", "bbox")]
    assert set(written.Tags()["scalars"]) == {
        *("task_cost", "regularization_cost", "total_cost", "learning_rate", "validation_cost"),
        *(
            f"{kind}_{name}"
            for kind in ("mean_cost", "cost_percentage", "cost_autoweight")
            for name in objectives
        ),
        "mean average precision (mAP) (in %)",
        *(f"{name}_AP (in %)" for name in CLASSES),
    }
    assert set(written.Tags()["images"]) == {
        "image/images",
        *(f"image/{name}_{kind}" for name in CLASSES for kind in KINDS),
    }
    values = {tag: [item.value for item in written.Scalars(tag)] for tag in written.Tags()["scalars"]}
    assert [item.step for item in written.Scalars("total_cost")] == list(range(6))  # 2 epochs of 3 steps
    for epoch, entry in enumerate(outcome.history):
        assert np.mean(values["total_cost"][3 * epoch : 3 * epoch + 3]) == pytest.approx(
            entry["cost"], rel=1e-5
        )
        assert values["learning_rate"][3 * epoch + 2] == pytest.approx(entry["learning_rate"])
        assert values["validation_cost"][epoch] == pytest.approx(entry["validation_cost"])
        mean = 100 * entry["mean_average_precision"]
        assert values["mean average precision (mAP) (in %)"][epoch] == pytest.approx(mean)
        for name in CLASSES:
            assert values[f"{name}_AP (in %)"][epoch] == pytest.approx(100 * entry["average_precision"][name])
    assert [item.step for item in written.Scalars("validation_cost")] == [3, 6]
    for step in range(6):
        # Both classes weigh a half, cov 1/11 and bbox 10/11 of it (initial weights 1 and 10).
        cov, bbox = (
            [values[f"mean_cost_{name}_{objective}"][step] for name in CLASSES]
            for objective in ("cov", "bbox")
        )
        assert values["task_cost"][step] == pytest.approx(sum(cov) / 22 + sum(bbox) * 10 / 22, rel=1e-5)
        whole = values["task_cost"][step] + values["regularization_cost"][step]
        assert values["total_cost"][step] == pytest.approx(whole)
        assert sum(values[f"cost_percentage_{name}"][step] for name in objectives) == pytest.approx(100)
        assert values["cost_autoweight_bar_bbox"][step] == pytest.approx(10 / 11)


def test_without_the_visualizer_there_are_no_events(tiny, tmp_path):
    Shown(tiny, tmp_path).step(0, 0, steps=1)
    assert not (tmp_path / "events").exists()


@pytest.mark.spec_field("VisualizerConfig.scalar_logging_frequency")
@pytest.mark.parametrize(
    ("frequency", "expected"),
    [(5, [0, 2, 4, 6, 8]), (3, [0, 3, 6, 9]), (1, [0]), (99, list(range(10))), (0, list(range(10)))],
)
def test_scalars_are_written_so_many_times_an_epoch(tiny, shown, tmp_path, frequency, expected):
    tiny.training_config.visualizer.scalar_logging_frequency = frequency
    tiny.training_config.visualizer.num_images = 0
    board = shown()
    for step in range(10):
        board.step(1, step, steps=10)
    board.run.board.close()
    assert [item.step - 10 for item in events(tmp_path).Scalars("task_cost")] == expected


@pytest.mark.spec_field("VisualizerConfig.infrequent_logging_frequency")
@pytest.mark.parametrize(("period", "expected"), [(3, [0, 6, 12]), (0, [0, 2, 4, 6, 8, 10, 12])])
def test_pictures_are_written_every_so_many_epochs(tiny, shown, tmp_path, period, expected):
    tiny.training_config.visualizer.infrequent_logging_frequency = period
    board = shown()
    for epoch in range(7):
        for step in range(2):
            board.step(epoch, step, steps=2)
    board.run.board.close()
    assert [item.step for item in events(tmp_path).Images("image/bar_preds")] == expected


@pytest.mark.spec_field("VisualizerConfig.num_images")
@pytest.mark.parametrize(("count", "height"), [(1, 64), (2, 132), (9, 200)])
def test_so_many_images_below_each_other(tiny, shown, tmp_path, count, height):
    tiny.training_config.visualizer.num_images = count
    board = shown()
    board.step(0, 0, steps=1)
    board.run.board.close()
    assert pixels(tmp_path, "image/images").shape == (
        height,
        96,
        3,
    )  # of a batch of three, 4 pixels between them
    assert pixels(tmp_path, "image/bar_cov_cost").shape == (height, 96, 3)


def test_no_images_no_pictures(tiny, shown, tmp_path):
    tiny.training_config.visualizer.num_images = 0
    board = shown()
    board.step(0, 0, steps=1)
    board.run.board.close()
    assert events(tmp_path).Tags()["images"] == [] and len(events(tmp_path).Tags()["scalars"]) == 16


@pytest.mark.spec_field("VisualizerConfig.TargetClassConfig.coverage_threshold")
@pytest.mark.parametrize(("threshold", "right"), [(None, 90), (0.3, 40)])
def test_only_boxes_of_cells_above_the_threshold_are_drawn(tiny, shown, tmp_path, threshold, right):
    visualizer = tiny.training_config.visualizer
    visualizer.num_images = 1
    if threshold is not None:
        visualizer.target_class_config["square"].coverage_threshold = threshold
    board = shown()
    coverage, bbox = torch.zeros(3, 2, 4, 6), torch.zeros(3, 8, 4, 6)
    coverage[0, 0, 1, 1], coverage[0, 0, 1, 4] = 1.0, 0.2
    # Cells (1, 1) and (1, 4) answer the boxes 10 12 40 50 and 60 12 90 50; their anchors are at 16.5 and 64.5, 16.5.
    for column, edges in ((1, (10, 12, 40, 50)), (4, (60, 12, 90, 50))):
        x, y = 16 * column + 0.5, 16.5
        sides = torch.tensor([x - edges[0], y - edges[1], edges[2] - x, edges[3] - y])
        bbox[0, :4, 1, column] = sides / tiny.model_config.objective_set.bbox.scale
    board.outputs = (coverage, bbox)
    board.step(0, 0, steps=1)
    board.run.board.close()
    image = pixels(tmp_path, "image/images")
    drawn = np.nonzero((pixels(tmp_path, "image/square_rectangle_bbox_preds") != image).any(axis=2))
    assert (drawn[0].min(), drawn[0].max() + 1) == (12, 50)
    assert (drawn[1].min(), drawn[1].max() + 1) == (10, right)
    lit = pixels(tmp_path, "image/square_preds")
    assert (lit[31, 25] == image[31, 25]).all()  # fully in the middle of the first ellipse
    assert lit[5, 5].max() == pytest.approx(0.2 * image[5, 5].max(), abs=1)  # dark outside
    assert (lit[31, 75].max() > 0.25 * image[31, 75].max()) == (right == 90)
    assert not (pixels(tmp_path, "image/bar_rectangle_bbox_preds") != image).any()


def test_maps_show_the_targets_where_they_are(tiny, shown, tmp_path):
    board = shown()
    board.step(0, 0, steps=1)
    board.run.board.close()
    seen = 0
    for index, name in enumerate(CLASSES):
        coverages = pixels(tmp_path, f"image/{name}_cov_gt").astype(int).sum(axis=2)
        distances = pixels(tmp_path, f"image/{name}_bbox_gt").astype(int)
        for number in range(3):
            covered = (board.targets.coverage[number, index] > 0).numpy()
            top = 68 * number  # pictures of 64 lines, 4 between them
            light = coverages[top + 8 : top + 64 : 16, 8:96:16]
            assert ((light > 10) == covered).all()
            top = (
                70 * number
            )  # four maps with cells of 8 pixels, 2 between them; the first is the left side's
            left = distances[top + 4 : top + 32 : 8, 4:48:8]
            covered[:2, :4] = False  # under the word "left"
            wanted = board.targets.bbox[number, index, 0].numpy()
            assert ((left[:, :, 0] > left[:, :, 2]) == (wanted > 0))[covered].all()
            seen += covered.sum()
    assert seen > 5


def test_cell_costs_are_the_parts_of_the_cost(shown):
    board = shown()
    maps = cell_costs(board.run.head, board.outputs, board.targets, board.prepared.weights)
    assert maps.shape == (3, 2, 2, 4, 6)
    torch.testing.assert_close(maps.mean(dim=(0, 3, 4)), torch.stack(list(board.costs().values()), dim=1))
    empty = torch.nonzero(board.targets.coverage == 0)[0].tolist()
    image, name, row, column = empty
    predicted = float(board.outputs[0][image, name, row, column])
    # A background cell weighs 1 - 0.3, and has no box.
    assert float(maps[image, name, 0, row, column]) == pytest.approx(
        -0.7 * math.log(1 - predicted + 1e-5), rel=1e-4
    )
    assert float(maps[image, name, 1, row, column]) == 0
    masked = board.targets._replace(mask=torch.full((3, 2, 2, 4, 6), 0.5))
    halved = cell_costs(board.run.head, board.outputs, masked, board.prepared.weights)
    torch.testing.assert_close(halved, maps / 2)


def test_the_key_of_an_account_is_in_no_file(tiny, tmp_path):
    tiny.training_config.num_epochs = 1
    tiny.training_config.visualizer.wandb_config.key = "0123456789abcdef-secret"
    tiny.training_config.visualizer.wandb_config.project = "cells"
    outcome = train(set_up(tiny, tmp_path, name="model", device=torch.device("cpu")))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert outcome.last in files and tmp_path / "resume.pt" in files
    assert [path for path in files if b"secret" in path.read_bytes()] == []
    assert b"cells" in (tmp_path / "experiment_spec.txt").read_bytes()

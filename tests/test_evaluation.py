"""Average precision, precision and recall of detections whose figures a person can work out."""

import logging

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detectkit import spec
from detectkit.data import kitti
from detectkit.data.dataset import loader, validation_frames
from detectkit.errors import DataError
from detectkit.evaluation import Evaluation, Scores, evaluate, evaluate_files
from detectkit.ops.cluster import Detections
from detectkit.predict import load_model

SAMPLE, INTEGRATE = spec.EvaluationConfig.SAMPLE, spec.EvaluationConfig.INTEGRATE


def config(mode=INTEGRATE, overlap=0.5):
    names = ("square", "bar")
    return spec.EvaluationConfig(
        average_precision_mode=mode, minimum_detection_ground_truth_overlap={name: overlap for name in names}
    )


def detections(*rows):
    """From rows of box, score, class."""
    boxes = torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows])
    return Detections(boxes, scores, torch.tensor([number for _, _, number in rows], dtype=torch.int64))


def labels(*rows):
    """From rows of box, class."""
    boxes = torch.tensor([box for box, _ in rows], dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor([number for _, number in rows], dtype=torch.int64)


LEFT, RIGHT, AWAY = [0, 0, 20, 20], [40, 0, 60, 20], [70, 40, 90, 60]


def three(mode):
    """Two labels; a right detection at .9, a wrong one at .8, a right one at .7."""
    scores = Scores(["square", "bar"], config(mode))
    scores.add(detections((LEFT, 0.9, 0), (AWAY, 0.8, 0)), *labels((LEFT, 0)))
    scores.add(detections((RIGHT, 0.7, 0)), *labels((RIGHT, 0)))
    return scores.results()


def test_integrate_and_sample_by_hand():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    square, bar = three(INTEGRATE)
    assert square.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert square.precision_curve == pytest.approx([1, 0.5, 2 / 3])
    assert square.recall_curve == [0.5, 0.5, 1]
    # Recalls 0 to .5 (six of them) reach precision 1, the other five 2/3.
    assert three(SAMPLE)[0].average_precision == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert (square.ground_truth, square.detections, square.true_positives) == (2, 3, 2)
    assert (square.precision, square.recall, square.f1) == pytest.approx((2 / 3, 1, 0.8))
    assert square.threshold == pytest.approx(0.7)
    assert bar.average_precision is None


def test_a_class_without_labels_has_no_ap_and_no_part_in_the_mean():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (RIGHT, 0.9, 1)), *labels((LEFT, 0)))
    square, bar = scores.results()
    assert square.average_precision == 1
    assert bar.average_precision is None and bar.detections == 1 and bar.true_positives == 0
    assert (bar.precision, bar.recall, bar.f1) == (0, 0, 0)
    assert Evaluation([square, bar], 1, None, None).mean_average_precision == 1
    assert Evaluation([bar], 1, None, None).mean_average_precision == 0


def test_a_class_without_detections_has_ap_zero():
    scores = Scores(["square", "bar"], config())
    scores.add(detections(), *labels((LEFT, 0)))
    scores.add(detections(), *labels())
    square = scores.results()[0]
    assert square.average_precision == 0 and square.detections == 0 and square.ground_truth == 1
    assert scores.images == 2


def test_one_class_alone_measures_as_among_all():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (AWAY, 0.8, 1)), *labels((LEFT, 0), (RIGHT, 1)))
    assert [scores.result(0), scores.result(1)] == scores.results()


def test_images_and_classes_are_kept_apart():
    scores = Scores(["square", "bar"], config())
    scores.add(detections((LEFT, 0.9, 0), (RIGHT, 0.9, 0)), *labels((LEFT, 1)))
    scores.add(detections(), *labels((RIGHT, 0)))
    square, bar = scores.results()
    assert (square.true_positives, square.ground_truth, bar.true_positives) == (0, 1, 0)


def test_overlap_is_the_specs():
    shifted = [5, 0, 25, 20]  # IoU 15 / 25 = 0.6
    for overlap, expected in ((0.6, 1), (0.61, 0)):
        scores = Scores(["square", "bar"], config(overlap=overlap))
        scores.add(detections((shifted, 0.9, 0)), *labels((LEFT, 0)))
        assert scores.results()[0].true_positives == expected


def test_boxes_of_other_sizes_are_left_out_of_both():
    settings = config()
    settings.evaluation_box_config["square"].minimum_height = 20
    settings.evaluation_box_config["square"].maximum_width = 30
    small, wide = [0, 40, 20, 59], [0, 0, 31, 40]
    scores = Scores(["square", "bar"], settings)
    found = detections((LEFT, 0.9, 0), (small, 0.8, 0), (wide, 0.7, 0), (small, 0.8, 1))
    scores.add(found, *labels((LEFT, 0), (small, 0), (wide, 0), (small, 1)))
    square, bar = scores.results()
    assert (square.ground_truth, square.detections, square.true_positives) == (1, 1, 1)
    assert square.average_precision == 1
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (1, 1, 1)  # no limits of its own


def scene(seed):
    """20 images: labels on a lattice, so that none is near another, and detections near and far from them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        cells = torch.randperm(12, generator=generator)[:7]
        corner = torch.stack((cells % 4, cells // 4), dim=1) * 50.0
        size = 20 + 20 * torch.rand(7, 2, generator=generator)
        truth = torch.cat((corner, corner + size), dim=1)
        near = truth.repeat(3, 1) + 4 * torch.randn(21, 4, generator=generator)
        scores = torch.rand(21, generator=generator)
        yield Detections(near, scores, torch.zeros(21, dtype=torch.int64)), truth


def coco_precisions(images, recalls):
    """Highest precision at each recall or beyond at IoU 0.5, by pycocotools."""
    truth = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1, "iscrowd": 0}
        for image, (_, boxes) in enumerate(images)
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    found = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for image, (item, _) in enumerate(images)
        for (x1, y1, x2, y2), score in zip(item.boxes.tolist(), item.scores.tolist())
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(images))],
        "categories": [{"id": 1}],
        "annotations": [{**item, "id": number} for number, item in enumerate(truth, start=1)],
    }
    coco.createIndex()
    judge = COCOeval(coco, coco.loadRes(found), "bbox")
    judge.params.iouThrs, judge.params.recThrs = torch.tensor([0.5]).numpy(), recalls.numpy()
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    return torch.from_numpy(judge.eval["precision"])[0, :, 0, 0, -1]


@pytest.mark.parametrize("seed", [0, 1])
def test_ap_is_that_of_pycocotools(seed, capsys):
    images = list(scene(seed))
    labelled = sum(len(boxes) for _, boxes in images)
    every_recall = torch.arange(1, labelled + 1, dtype=torch.float64) / labelled
    expected = {
        INTEGRATE: coco_precisions(images, every_recall).mean().item(),
        SAMPLE: coco_precisions(images, torch.arange(11, dtype=torch.float64) / 10).mean().item(),
    }
    for mode, value in expected.items():
        scores = Scores(["square", "bar"], config(mode))
        for found, boxes in images:
            scores.add(found, boxes, torch.zeros(len(boxes), dtype=torch.int64))
        measured = scores.results()[0].average_precision
        assert 0.2 < measured < 0.9
        assert measured == pytest.approx(value, abs=1e-9)


def test_every_image_counts_once_with_a_short_last_batch(tiny, learnt):
    predictor = load_model(learnt, "cpu")
    validation = validation_frames(tiny.dataset_config, predictor.class_names)
    results = []
    for batch_size in (4, 6, 1):
        batches = loader(
            validation, tiny.augmentation_config, batch_size=batch_size, order=range(6), workers=0
        )
        costs = iter(range(1, 10))
        results.append(
            evaluate(
                predictor.batches(batches),
                predictor.class_names,
                tiny.evaluation_config,
                cost=lambda _: next(costs),
            )
        )
    for result in results:
        assert result.images == 6
        assert [item.ground_truth for item in result.classes] == [6, 6]
        assert result.mean_average_precision == pytest.approx(1)
        assert min(result.latency) > 0
    # Batches of 4 + 2, 6 and 1 x 6 images cost 1, 2, …: the mean is over images.
    assert [result.cost for result in results] == [pytest.approx((4 * 1 + 2 * 2) / 6), 1, 3.5]


# KITTI files


@pytest.fixture
def folders(tmp_path):
    """Folders for detections and labels, and a writer of a label file from rows of (name, box)."""
    for name in ("found", "truth"):
        (tmp_path / name).mkdir()

    def label(stem, *rows):
        text = "".join(f"{name} 0 0 0 {' '.join(map(str, box))} 0 0 0 0 0 0 0\n" for name, box in rows)
        (tmp_path / "truth" / f"{stem}.txt").write_text(text)

    return tmp_path / "found", tmp_path / "truth", label


def test_files_measure_as_the_same_boxes_in_memory(tiny, folders):
    found, truth, label = folders
    scores = Scores(["square", "bar"], tiny.evaluation_config)
    for number, (item, boxes) in enumerate(scene(2)):
        item = Detections((item.boxes * 8).round() / 8, (item.scores * 512).round() / 512, item.classes)
        boxes = (boxes * 8).round() / 8
        kept = ((item.boxes[:, 2:] > item.boxes[:, :2]).all(1)).tolist()
        assert all(kept)
        label(number, *(("Square", box) for box in boxes.tolist()))
        rows = [("square", box, score) for box, score in zip(item.boxes.tolist(), item.scores.tolist())]
        kitti.write_detections(found / f"{number}.txt", rows)
    for number in sorted(range(20), key=str):  # files come in the order of their names
        read = kitti.read_detections(found / f"{number}.txt")
        names, _ = kitti.read_labels(truth / f"{number}.txt")
        scores.add(
            detections(*((line.box, line.score, 0) for line in read)),
            *labels(*((line.box, 0) for line in names)),
        )
    result = evaluate_files(found, truth, tiny)
    assert result.images == 20 and result.cost is None and result.latency is None
    assert result.classes == scores.results()
    assert 0.2 < result.classes[0].average_precision < 0.9


def test_names_go_through_the_mapping_and_others_are_left_out(tiny, folders):
    found, truth, label = folders
    tiny.dataset_config.target_class_mapping["quadrat"] = "square"
    label("a", ("Quadrat", LEFT), ("square", RIGHT), ("DontCare", AWAY))
    rows = [("square", LEFT, 0.9), ("quadrat", RIGHT, 0.8), ("person", AWAY, 0.9)]
    kitti.write_detections(found / "a.txt", rows)
    square, bar = evaluate_files(found, truth, tiny).classes
    assert (square.ground_truth, square.detections, square.true_positives) == (2, 2, 2)
    assert (bar.ground_truth, bar.detections) == (0, 0)


def test_a_label_called_like_a_class_but_not_mapped_is_background(tiny, folders):
    found, truth, label = folders
    del tiny.dataset_config.target_class_mapping["bar"]
    tiny.dataset_config.target_class_mapping["rod"] = "bar"
    label("a", ("bar", LEFT), ("rod", RIGHT))
    kitti.write_detections(found / "a.txt", [("bar", LEFT, 0.9), ("rod", RIGHT, 0.8)])
    bar = evaluate_files(found, truth, tiny).classes[1]
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (1, 2, 1)


def test_detections_of_unknown_names_are_told_once(tiny, folders, logged):
    found, truth, label = folders
    for stem in "ab":
        label(stem, ("square", LEFT))
        rows = [("person", LEFT, 0.9), ("Dog", LEFT, 0.9), ("Square", LEFT, 0.9)]
        kitti.write_detections(found / f"{stem}.txt", rows)
    assert evaluate_files(found, truth, tiny).classes[0].detections == 2
    assert logged.text.count("detections of Dog, person are left out") == 1


def test_a_class_of_two_words_is_found_in_files(tiny, folders):
    found, truth, label = folders
    tiny.cost_function_config.target_classes[0].name = "red square"
    tiny.dataset_config.target_class_mapping["square"] = "red square"
    label("a", ("square", LEFT))
    kitti.write_detections(found / "a.txt", [("red square", LEFT, 0.9)])
    assert evaluate_files(found, truth, tiny).classes[0].true_positives == 1


def test_a_label_mapped_away_from_the_class_of_its_name(tiny, folders):
    found, truth, label = folders
    tiny.dataset_config.target_class_mapping["bar"] = "square"
    tiny.dataset_config.target_class_mapping["rod"] = "bar"
    label("a", ("bar", LEFT))
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9), ("bar", LEFT, 0.9)])
    square, bar = evaluate_files(found, truth, tiny).classes
    assert (square.ground_truth, square.true_positives) == (1, 1)
    assert (bar.ground_truth, bar.detections, bar.true_positives) == (0, 1, 0)


@pytest.fixture
def logged(caplog):
    """What the package's own logger, which does not propagate, takes down."""
    log = logging.getLogger("detectkit")
    log.addHandler(caplog.handler)
    yield caplog
    log.removeHandler(caplog.handler)


def test_an_image_without_a_detection_file_has_no_detections(tiny, folders, logged):
    found, truth, label = folders
    label("a", ("square", LEFT))
    label("b", ("square", LEFT))
    kitti.write_detections(found / "a.txt", [("square", LEFT, 0.9)])
    result = evaluate_files(found, truth, tiny)
    assert "1 of 2 images have no file" in logged.text and "b.txt" in logged.text
    assert result.images == 2 and result.classes[0].recall == 0.5


def test_files_that_cannot_be_measured(tiny, folders):
    found, truth, label = folders
    with pytest.raises(DataError, match="holds no label files"):
        evaluate_files(found, truth, tiny)
    label("a", ("square", LEFT))
    with pytest.raises(DataError, match=r"holds no detection file .* a\.txt"):
        evaluate_files(found, truth, tiny)
    (found / "a.txt").write_text((truth / "a.txt").read_text())
    with pytest.raises(DataError, match=r"a\.txt:1: 15 columns"):
        evaluate_files(found, truth, tiny)

"""Which sentence an illness gets, and that a healthy network gets none."""

import pytest

from detectkit import spec
from detectkit.evaluation import Evaluation
from detectkit.evaluation.advice import findings, learning
from detectkit.evaluation.results import ClassMistakes, Coverage, Suppression

HEALTHY = ClassMistakes("ace", 100, 95, 140, 0.85, 0.85, 12, 0.02, 4, "king", 0.03, Coverage(0.8, 0.003))


def result(*mistakes, images=50):
    return Evaluation([], images, None, None, mistakes=mistakes)


def found(tiny, *mistakes, images=50):
    return [
        (item.kind, item.class_name, item.number) for item in findings(result(*mistakes, images=images), tiny)
    ]


def test_a_healthy_network_gets_no_sentence(tiny):
    fewer = HEALTHY._replace(doubled=2, doubled_cost=0.3, confused=2, confused_cost=0.3)  # two may be chance
    without_labels = HEALTHY._replace(labels=0, found=0, average_precision=None, confused=0)
    files = HEALTHY._replace(coverage=None)
    assert found(tiny, HEALTHY, without_labels, files) == found(tiny, fewer) == found(tiny) == []


def test_coverage_where_nothing_is(tiny):
    """A network whose coverage starved, as one was seen."""
    starved = HEALTHY._replace(
        name="king", labels=33, detections=11608, average_precision=0.36, doubled_cost=0.2
    )
    starved = starved._replace(coverage=Coverage(0.9, 0.46))
    assert "equal weight_targets" in findings(result(starved), tiny)[0].text
    less = starved._replace(name="ace", coverage=Coverage(0.9, 0.05))
    [finding] = findings(result(less, starved), tiny)  # nothing of the doubled boxes
    assert (finding.kind, finding.class_name, finding.number) == ("coverage", "king", 0.46)
    assert finding.text.startswith(
        "coverage is not learnt: 11,608 detections for 33 labels of king, and a coverage of 0.46 instead of 0 where nothing is"
        " (and so 1 more class): more num_epochs"
    )
    assert found(tiny, starved._replace(average_precision=0.95, doubled_cost=0.0)) == []


def test_detections_of_files_are_counted(tiny):
    files = HEALTHY._replace(coverage=None, doubled_cost=0.0)
    assert found(tiny, files._replace(detections=1800), images=50) == []  # 12 for each label and image
    assert found(tiny, files._replace(detections=1801), images=50) == [("coverage", "ace", 18.01)]


def test_objects_without_coverage(tiny):
    unseen = HEALTHY._replace(
        found=45, average_precision=0.3, doubled_cost=0.0, coverage=Coverage(0.04, 0.01)
    )
    [finding] = findings(result(unseen), tiny)
    assert (finding.kind, finding.number) == ("coverage", 0.04)
    assert (
        "45 of 100 labels of ace found, with a coverage of 0.04 instead of 1 on its objects, and 0.01"
        in finding.text
    )
    assert "class_weight" in finding.text
    assert found(tiny, unseen._replace(found=46)) == []  # 4 are found under another name
    assert found(tiny, unseen._replace(coverage=Coverage(0.1, 0.01))) == []


@pytest.mark.parametrize(
    ("algorithm", "best", "told"),
    [
        (
            "DBSCAN",
            None,
            "a larger dbscan_eps (0.4 now), or clustering_algorithm: NMS; evaluate --tune-clustering",
        ),
        ("NMS", 0.2, "a lower nms_iou_threshold, 0.2 (0.3 now); evaluate --tune-clustering"),
        ("NMS", 0.4, "no lower nms_iou_threshold was found to help; docs/tuning.md, Boxes split"),
        ("NMS", None, "no lower nms_iou_threshold was found to help; docs/tuning.md, Boxes split"),
        (
            "HYBRID",
            0.2,
            "a lower nms_iou_threshold, 0.2 (0.3 now), or a larger dbscan_eps (0.4 now); evaluate",
        ),
        ("HYBRID", None, "a larger dbscan_eps (0.4 now); evaluate --tune-clustering"),
    ],
)
def test_doubled_boxes(tiny, algorithm, best, told):
    config = tiny.postprocessing_config.target_class_config["square"].clustering_config
    config.clustering_algorithm = config.ClusteringAlgorithm.Value(algorithm)
    suppression = None if best is None else Suppression(best, 0.1)
    doubled = HEALTHY._replace(name="square", doubled=41, doubled_cost=0.21, suppression=suppression)
    [finding] = findings(result(doubled, HEALTHY._replace(doubled_cost=0.06)), tiny)
    assert (finding.kind, finding.class_name, finding.number) == ("doubled", "square", 0.21)
    assert "41 of 140 detections of square are on an object that is found already" in finding.text
    assert f"21.0 points of AP (and so 1 more class): {told}" in finding.text


def test_confused_classes(tiny):
    ace = HEALTHY._replace(confused=31, confused_with="king", confused_cost=0.04)
    king = HEALTHY._replace(name="king", confused=1, confused_with="ace", confused_cost=0.18)
    [finding] = findings(result(ace, king), tiny)
    assert (finding.kind, finding.class_name, finding.number) == ("confused", "ace", 0.18)
    assert (
        "31 of 100 labels of ace have a stronger detection of another class over them, most often king"
        in finding.text
    )
    assert "this costs king 18.0 points of AP: more images of both" in finding.text
    assert finding.text.endswith(", hflip_probability 0 (0.5 now) if they are mirror images")
    tiny.augmentation_config.spatial_augmentation.hflip_probability = 0
    assert "hflip" not in findings(result(ace, king), tiny)[0].text


def test_what_is_confused_with_a_class_that_is_everywhere_is_not_spoken_of(tiny):
    starved = HEALTHY._replace(name="king", average_precision=0.36, coverage=Coverage(0.9, 0.46))
    beside = HEALTHY._replace(confused=31, confused_with="king", confused_cost=0.4)
    assert found(tiny, beside, starved) == [("coverage", "king", 0.46)]


def test_an_entry_for_machines(tiny):
    [finding] = findings(result(HEALTHY._replace(doubled_cost=0.5)), tiny)
    assert finding.entry() == {"kind": "doubled", "class": "ace", "number": 0.5, "text": finding.text}


def learnt(own, other, *, start="", eased=0.0):
    experiment = spec.Experiment()
    experiment.training_config.num_epochs = 40
    experiment.model_config.pretrained_model_file = start
    training = result(
        HEALTHY._replace(average_precision=own, lenient_average_precision=own + eased),
        HEALTHY._replace(
            name="king", average_precision=own + 0.1, lenient_average_precision=own + 0.1 + eased
        ),
        images=100,
    )
    others = [
        HEALTHY._replace(average_precision=other),
        HEALTHY._replace(name="king", average_precision=other),
    ]
    validation = None if other is None else result(*others)
    return learning(training, validation, experiment, total=296)


def test_a_network_that_has_not_learnt_its_own_images():
    finding = learnt(0.4, 0.4)
    assert (finding.kind, finding.class_name, finding.number) == ("not learnt", "", pytest.approx(0.45))
    assert (
        "mAP 45.0 % on 100 of its 296 training images (least ace, 40.0 %): more num_epochs (40 now)"
        in finding.text
    )
    assert "pretrained_model_file" in finding.text
    assert "pretrained_model_file" not in learnt(0.4, None, start="a.pth").text


def test_a_network_that_knows_its_images_by_heart():
    finding = learnt(0.9, 0.6)
    assert finding.kind == "by heart" and finding.number == pytest.approx(0.95)
    assert (
        "mAP 95.0 % on 100 of its 296 training images, 60.0 % on the validation images (least ace, 60.0 %): more images"
        in finding.text
    )
    assert learnt(0.9, 0.8) is None and learnt(0.9, None) is None


def test_training_images_without_a_label_say_nothing():
    nothing = result(HEALTHY._replace(labels=0, average_precision=None))
    assert learning(nothing, None, spec.Experiment(), total=1) is None


def test_what_is_hard_to_place_is_judged_at_an_overlap_of_a_half():
    assert learnt(0.4, 0.4, eased=0.2) is None  # 65 % there
    finding = learnt(0.4, 0.4, eased=0.1)
    assert finding.number == pytest.approx(0.45)
    assert "mAP 45.0 %, 55.0 % at an IoU of 0.5, on 100 of its 296 training images" in finding.text


def test_by_heart_compares_the_classes_that_both_know():
    own = HEALTHY._replace(average_precision=0.9, lenient_average_precision=0.9)
    rare = HEALTHY._replace(name="king", average_precision=None, lenient_average_precision=None, labels=0)
    lost = rare._replace(average_precision=0.0, lenient_average_precision=0.0, labels=3)

    def judged(training, validation):
        return learning(result(*training), result(*validation), spec.Experiment(), total=50)

    assert judged([own, rare], [own, lost]) is None  # 90 % and 45 % over all
    assert judged([own], [lost]) is None  # nothing to compare
    finding = judged([own, rare], [own._replace(average_precision=0.6), lost])
    assert finding.kind == "by heart" and finding.number == 0.9
    assert "90.0 % on its 50 training images, 60.0 % on the validation images" in finding.text
    assert "without king: more images" in finding.text


def test_classes_without_coverage_are_not_counted_as_flooded(tiny):
    starved = HEALTHY._replace(name="king", average_precision=0.36, coverage=Coverage(0.9, 0.46))
    unseen = HEALTHY._replace(found=45, average_precision=0.3, coverage=Coverage(0.04, 0.01))
    [finding] = findings(result(starved, unseen), tiny)
    assert finding.class_name == "king" and "more class" not in finding.text

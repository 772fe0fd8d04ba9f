"""The text of a spec: short, without a warning, and whatever is in the folder it loads."""

import logging
import random
from collections import Counter

import numpy as np
import pytest

from detectkit import spec
from detectkit.console import log
from detectkit.data.layouts import recognise
from detectkit.propose import choose
from detectkit.propose.count import count
from detectkit.propose.write import class_names, text, validations
from detectkit.spec import label_name

COCO = (
    "person bicycle car motorcycle airplane bus train truck boat traffic-light fire-hydrant stop-sign parking-meter bench bird"
    " cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard"
    " sports-ball kite baseball-bat baseball-glove skateboard surfboard tennis-racket bottle wine-glass cup fork knife spoon"
    " bowl banana apple sandwich orange broccoli carrot hot-dog pizza donut cake chair couch potted-plant bed dining-table"
    " toilet tv laptop mouse remote keyboard cell-phone microwave oven toaster sink refrigerator book clock vase scissors"
    " teddy-bear hair-drier toothbrush"
).split()
NAMES = [
    "default",
    "true",
    "class_names",
    "car",
    "Größe",
    "犬",
    "it's",
    'a"b',
    "{",
    "#5",
    "x:y",
    "\\n",
    "cov",
    "$HOME",
]


def propose(folder, path="specs/mine.txt", *, weights=""):
    contents = count(recognise(folder, "kitti"))
    classes = choose.classes(contents)
    start = choose.start([choose.Start("mobilenet_v2", 0, weights)] if weights else [])
    return choose.Proposal(
        path,
        str(folder),
        contents,
        classes,
        choose.split(contents, classes.value),
        choose.input_sizes(contents, classes.value),
        start,
        choose.mirrors(classes.value),
        choose.Choice(40, "1,200 steps"),
        1 if contents.drawn == 0 else 6,
        choose.rate(pretrained=bool(weights)),
        choose.overlap(contents, classes.value),
    )


def loaded(content, caplog):
    """The spec, if nothing was warned of and it has under 80 lines."""
    log.propagate = True
    with caplog.at_level(logging.WARNING, logger="detectkit"):
        experiment = spec.loads(content)
    assert caplog.messages == []
    assert content.count("\n") < 80
    return experiment


def test_values_of_the_recipe(tmp_path, write_kitti, caplog):
    write_kitti(
        tmp_path / "d" / "train", [[("cat", 0, 0, 64, 48)], [("dog", 0, 0, 64, 48)]] * 4, size=(640, 480)
    )
    write_kitti(tmp_path / "d" / "test", [[("cat", 0, 0, 64, 48)]], size=(640, 480))
    experiment = loaded(text(propose(tmp_path / "d", weights="w.pth")), caplog)
    assert spec.class_names(experiment) == ["cat", "dog"]
    pre, spatial = (
        experiment.augmentation_config.preprocessing,
        experiment.augmentation_config.spatial_augmentation,
    )
    assert (pre.output_image_width, pre.output_image_height, pre.output_image_channel) == (416, 320, 3)
    assert (spatial.hflip_probability, spatial.translate_max_x, spatial.translate_max_y) == (0.5, 41, 32)
    model, training = experiment.model_config, experiment.training_config
    assert (model.arch, model.pretrained_model_file) == ("mobilenet_v2", "w.pth")
    assert (training.batch_size_per_gpu, training.num_epochs) == (4, 40)
    assert training.learning_rate.soft_start_annealing_schedule.max_learning_rate == pytest.approx(0.001)
    assert experiment.pruning_config.target_params == 0.25
    assert not experiment.calibration_config.HasField("batches")  # 8 images are 2 batches
    assert experiment.export_config.data_type == spec.ExportConfig.INT8
    assert [config.output_filename for config in experiment.dataset_export_config] == [
        "results/mine/records/train",
        "results/mine/records/test",
    ]
    data = experiment.dataset_config
    assert data.validation_data_source.tfrecords_path == "results/mine/records/test-fold-*"
    assert data.image_extension == "png"
    # Test images choose nothing: they are measured after the last epoch only.
    assert experiment.evaluation_config.first_validation_epoch == 40


def test_the_recipe_is_that_of_the_specs_of_the_project(tmp_path, write_kitti, caplog):
    """But for names, sizes, epochs and paths."""
    hand = spec.load_experiment("specs/boards/mobilenet_v2.txt")
    names = [target.name for target in hand.cost_function_config.target_classes]
    write_kitti(tmp_path / "d" / "train", [[(name, 0, 0, 99, 99) for name in names]] * 80, size=(800, 600))
    write_kitti(tmp_path / "d" / "test", [[(names[0], 0, 0, 99, 99)]], size=(800, 600))
    weights = hand.model_config.pretrained_model_file
    made = loaded(text(propose(tmp_path / "d", weights=weights)), caplog)
    made.augmentation_config.spatial_augmentation.translate_max_x = 40  # a tenth of 416 is 41.6
    for part in (hand, made):
        part.ClearField("dataset_config")
        part.ClearField("dataset_export_config")
        part.ClearField("data_cleaning_config")
    assert spec.resolved(made) == spec.resolved(hand)


def test_validation_that_chooses_is_measured_while_it_trains(tmp_path, write_kitti, caplog):
    write_kitti(tmp_path / "d", [[("cat", 0, 0, 64, 48)]] * 10)
    proposal = propose(tmp_path / "d")
    assert validations(proposal) == (20, 4)
    content = text(proposal)
    experiment = loaded(content, caplog)
    assert experiment.dataset_config.validation_fold == 0
    (config,) = experiment.dataset_export_config
    assert config.kitti_config.val_split == 20 and config.keep_near_duplicates_together
    assert (
        "# Split: there is no split: 20 % of the images, 2, are drawn for validation, those that look alike"
        in content
    )


@pytest.mark.parametrize("images, expected", [(3, "MSE batch_size: 1"), (79, "MSE"), (80, "MSE batches: 20")])
def test_calibration_takes_no_more_images_than_there_are(tmp_path, write_kitti, caplog, images, expected):
    write_kitti(tmp_path / "d" / "train", [[("cat", 0, 0, 64, 48)]] * images, size=(64, 48))
    write_kitti(tmp_path / "d" / "val", [[("cat", 0, 0, 64, 48)]], size=(64, 48))
    content = text(propose(tmp_path / "d"))
    loaded(content, caplog)
    assert f"calibration_config {{ method: {expected} }}" in content


def test_names_that_mean_something_to_a_spec(tmp_path, write_kitti, caplog):
    write_kitti(tmp_path / "d", [[(name, 0, 0, 64, 48) for name in (*NAMES, "DontCare")]] * 10)
    proposal = propose(tmp_path / "d")
    experiment = loaded(text(proposal), caplog)
    assert set(spec.class_names(experiment)) == {*NAMES, "default_1"} - {"default"}
    assert experiment.dataset_config.target_class_mapping["default"] == "default_1"
    assert list(experiment.dataset_config.dontcare_labels) == ["dontcare"]
    assert class_names(proposal)["default"] == "default_1"


@pytest.mark.parametrize(
    "names", [COCO, [f"{'very_' * 20}long_{n}" for n in range(80)], [f"c{n:04d}" for n in range(1000)]]
)
def test_many_classes_fit(tmp_path, write_kitti, caplog, names):
    write_kitti(
        tmp_path / "d" / "train", [[(name, 0, 0, 64, 48) for name in (*names, "default", "dontcare")]] * 2
    )
    write_kitti(tmp_path / "d" / "val", [[(name, 0, 0, 64, 48) for name in names]])
    experiment = loaded(text(propose(tmp_path / "d")), caplog)
    assert len(spec.class_names(experiment)) == len(names) + 1


def test_splits_with_images_of_different_extensions(tmp_path, write_kitti, caplog):
    write_kitti(tmp_path / "d" / "train", [[("cat", 0, 0, 64, 48)]] * 4)
    val = write_kitti(tmp_path / "d" / "val", [[("cat", 0, 0, 64, 48)]] * 4)
    for file in (val / "image_2").iterdir():
        file.rename(file.with_suffix(".jpg"))
    experiment = loaded(text(propose(tmp_path / "d")), caplog)
    assert [config.embed_images for config in experiment.dataset_export_config] == [False, True]
    assert experiment.dataset_config.image_extension == "png"


def test_paths_with_blanks_quotes_and_wildcards(tmp_path, write_kitti, caplog):
    folder = tmp_path / 'my [new] "data" größe'
    write_kitti(folder, [[("cat", 0, 0, 64, 48)]] * 10)
    experiment = loaded(text(propose(folder, "specs/a [b].txt")), caplog)
    (config,) = experiment.dataset_export_config
    assert config.output_filename == "results/a [b]/records/train"
    assert experiment.dataset_config.data_sources[0].tfrecords_path == "results/a [[]b]/records/train-fold-*"
    assert experiment.dataset_config.data_sources[0].image_directory_path == str(folder)


@pytest.mark.parametrize("seed", range(12))
def test_random_folders(tmp_path, write_kitti, caplog, seed):
    generator = random.Random(seed)
    pool = generator.sample(NAMES + COCO, generator.randint(1, 12))
    images = []
    size = (generator.randint(8, 900), generator.randint(8, 600))
    for _ in range(generator.randint(1, 30)):
        labels = []
        for _ in range(generator.choice((0, 0, 1, 3, 9))):
            x, y = generator.uniform(-20, size[0]), generator.uniform(-20, size[1])
            labels.append(
                (
                    generator.choice(pool),
                    x,
                    y,
                    x + generator.uniform(0.1, 300),
                    y + generator.uniform(0.1, 300),
                )
            )
        images.append(labels)
    images[0].append((pool[0], 1, 1, 7, 7))
    parts = generator.choice((("",), ("train", "val"), ("train", "test"), ("train", "val", "test")))
    for part in parts:
        write_kitti(tmp_path / "d" / part, images)
    proposal = propose(tmp_path / "d")
    experiment = loaded(text(proposal), caplog)
    counts = Counter(label_name(label[0]) for labels in images for label in labels)
    assert {label_name(name) for name in proposal.classes.value} <= set(counts)
    assert all(
        np.isfinite(
            list(choose.cells(proposal.contents, proposal.classes.value, proposal.size.value).values())
        )
    )
    assert list(choose.doubts(proposal)) is not None
    assert experiment.training_config.num_epochs == 40

"""A short spec, with an entry `default` and the classes in a list, is the long one: what a person leaves out is told."""

import os
import re

import pytest
from google.protobuf import text_format

from detectkit import spec
from detectkit.errors import SpecError
from detectkit.spec.by_class import class_maps, entry_of
from detectkit.spec.explain import places, value_field
from detectkit.spec.schema import rule_of
from detectkit.spec.stored import read_stored

# The class sections of the KITTI spec, short: car has entries of its own, pedestrian and cyclist have those of `default`.
SHORT = """
bbox_rasterizer_config {
  target_class_config { key: "car" value { cov_radius_x: 0.4 cov_radius_y: 0.4 cov_center_x: 0.5 cov_center_y: 0.5 bbox_min_radius: 1 } }
  target_class_config { key: "default" value { cov_radius_x: 1 cov_radius_y: 1 cov_center_x: 0.5 cov_center_y: 0.5 bbox_min_radius: 1 } }
  deadzone_radius: 0.67
}
postprocessing_config {
  target_class_config { key: "car" value { clustering_config {
    coverage_threshold: 0.005 dbscan_eps: 0.13 dbscan_min_samples: 0.05 minimum_bounding_box_height: 4 } } }
  target_class_config { key: "default" value { clustering_config {
    coverage_threshold: 0.005 dbscan_eps: 0.15 dbscan_min_samples: 0.05 minimum_bounding_box_height: 4 } } }
}
evaluation_config {
  average_precision_mode: INTEGRATE
  validation_period_during_training: 10
  first_validation_epoch: 1
  minimum_detection_ground_truth_overlap { key: "car" value: 0.7 }
  minimum_detection_ground_truth_overlap { key: "default" value: 0.5 }
}
cost_function_config {
  LIST
  target_classes {
    name: "default" class_weight: 1 coverage_foreground_weight: 0.05
    objectives { name: "cov" initial_weight: 1 weight_target: 1 }
    objectives { name: "bbox" initial_weight: 10 weight_target: 10 }
  }
}
"""
NAMES = 'class_names: ["car", "pedestrian", "cyclist"]'
RASTER = "bbox_rasterizer_config.target_class_config"
TARGETS = "cost_function_config.target_classes"
LISTED = "cost_function_config.class_names"


@pytest.fixture
def short(kitti_train):
    """The KITTI spec with short class sections."""
    text = re.sub(
        r"^(bbox_rasterizer|postprocessing|evaluation|cost_function)_config \{.*?^\}\n",
        "",
        kitti_train,
        flags=re.MULTILINE | re.DOTALL,
    )
    text = re.sub(r"  target_class_mapping \{.*?\}\n", "", text, flags=re.DOTALL)
    return text + SHORT.replace("LIST", NAMES)


def problems(text):
    """What is wrong with a spec, without its lines and columns."""
    with pytest.raises(SpecError) as caught:
        spec.loads(text)
    return [re.sub(r"^spec:(\d+:\d+: )?", "", line) for line in str(caught.value).splitlines()]


@pytest.mark.spec_field("CostFunctionConfig.class_names")
def test_the_short_spec_is_the_long_one(short, kitti_train):
    loaded, long = spec.loads(short), spec.loads(kitti_train)
    assert loaded == long
    assert spec.class_names(loaded) == ["car", "pedestrian", "cyclist"]
    assert [target.name for target in loaded.cost_function_config.target_classes] == spec.class_names(loaded)
    assert "default" not in loaded.postprocessing_config.target_class_config
    assert spec.loads(spec.dumps(loaded), "again") == spec.resolved(loaded)


@pytest.mark.spec_field("CostFunctionConfig.class_file")
@pytest.mark.parametrize("where", ["here", "absolute", "home"])
def test_the_list_may_be_a_file(short, kitti_train, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names.txt").write_text("car\npedestrian\n\ncyclist\n")
    path = {"here": "names.txt", "absolute": f"{tmp_path}/names.txt", "home": "~/names.txt"}[where]
    (tmp_path / "s.txt").write_text(short.replace(NAMES, f'class_file: "{path}"'))
    loaded = spec.load(tmp_path / "s.txt")
    assert loaded == spec.loads(kitti_train)
    (tmp_path / "names.txt").unlink()
    assert spec.loads(spec.dumps(loaded)) == spec.resolved(loaded)  # it stands alone


def test_a_spec_without_either_is_as_it_is_written(kitti_train, kitti_infer, kitti_convert, tmp_path):
    for text in (kitti_train, kitti_infer, kitti_convert):
        (tmp_path / "s.txt").write_text(text)
        assert spec.load(tmp_path / "s.txt") == spec.load_written(tmp_path / "s.txt")
    assert (
        spec.shared_entries(spec.loads(kitti_train)) == spec.shared_entries(spec.loads(kitti_convert)) == {}
    )
    assert spec.shared_entries(spec.loads(kitti_infer)) == {
        "bbox_handler_config.classwise_bbox_handler_config": "the entry default serves every class but car"
    }


def test_default_serves_without_a_list_too(kitti_train):
    """The classes are those of target_classes; maps that a person may leave out take the entry as the others do."""
    own = spec.loads(kitti_train)
    boxes = own.evaluation_config.evaluation_box_config
    boxes["car"].minimum_height = 40
    boxes["default"].minimum_height = 25
    pictures = own.training_config.visualizer.target_class_config
    pictures["default"].coverage_threshold = 0.5
    assert spec.check(own) == [] and spec.warnings(own) == []
    found = spec.expanded(own)
    heights = {
        name: box.minimum_height for name, box in found.evaluation_config.evaluation_box_config.items()
    }
    assert heights == {"car": 40, "pedestrian": 25, "cyclist": 25}
    shown = found.training_config.visualizer.target_class_config
    assert {name: item.coverage_threshold for name, item in shown.items()} == dict.fromkeys(heights, 0.5)
    assert set(boxes) == {"car", "default"}  # what was given is not changed


def test_the_classes_are_in_the_order_of_the_list_with_their_own_costs(short):
    own = 'target_classes { name: "cyclist" class_weight: 4 objectives { name: "cov" initial_weight: 1 }'
    own += ' objectives { name: "bbox" initial_weight: 2 } }'
    loaded = spec.loads(short.replace("  target_classes {", f"  {own}\n  target_classes {{"))
    weights = [(target.name, target.class_weight) for target in loaded.cost_function_config.target_classes]
    assert weights == [("car", 1), ("pedestrian", 1), ("cyclist", 4)]


def test_a_label_may_be_of_another_class_than_its_own(short):
    mapping = 'target_class_mapping { key: "van" value: "car" } dontcare_labels: "tram"'
    text = short.replace("  validation_fold", f"  {mapping}\n  validation_fold").replace(
        '"car", "', '"car", "Traffic light", "'
    )
    loaded = spec.loads(text)
    assert dict(loaded.dataset_config.target_class_mapping) == {
        **{"van": "car", "car": "car", "trafficlight": "Traffic light"},
        **{"pedestrian": "pedestrian", "cyclist": "cyclist"},
    }
    taken = text.replace('key: "van" value: "car"', 'key: "pedestrian" value: "car"')
    lacks = (
        'dataset_config.target_class_mapping: must map a label to class "pedestrian" of cost_function_config'
    )
    assert problems(taken) == [f'{lacks}, got "Traffic light", "car", "cyclist"']
    assert problems(text.replace('"tram"', '"pedestrian"')) == [
        f'{lacks}, got "Traffic light", "car", "cyclist"'
    ]


# What is told


def test_which_classes_an_entry_serves_is_told(short):
    text = short.replace(NAMES, NAMES.replace("]", ', "bus", "van"]'))
    assert spec.shared_entries(spec.loads(text)) == {}
    written = text_format.Parse(text, spec.Experiment())
    assert spec.shared_entries(written) == {
        "postprocessing_config.target_class_config": "the entry default serves all 5 classes but car",
        "evaluation_config.minimum_detection_ground_truth_overlap": "the entry default serves all 5 classes but car",
        RASTER: "the entry default serves all 5 classes but car",
        TARGETS: "the entry default serves all 5 classes",
        "dataset_config.target_class_mapping": "their own names are the labels of all 5 classes",
    }
    entries = written.bbox_rasterizer_config.target_class_config
    for name in ("pedestrian", "cyclist"):
        entries[name].CopyFrom(entries["car"])
    assert spec.shared_entries(written)[RASTER] == "the entry default serves bus, van"


def test_an_entry_that_serves_no_class_has_no_effect(kitti_train):
    own = spec.loads(kitti_train)
    own.evaluation_config.minimum_detection_ground_truth_overlap["default"] = 0.5
    path = 'evaluation_config.minimum_detection_ground_truth_overlap["default"]'
    assert spec.check(own) == []
    assert spec.warnings(own) == [f"{path} has no effect: every class has an entry of its own"]


# Mistakes


@pytest.mark.parametrize(
    ("pattern", "by", "expected"),
    [
        (
            r'key: "car" value { cov',
            'key: "caar" value { cov',
            [f'{RASTER}["caar"]: must be a class of cost_function_config beside the entry "default" ("car", "cyclist", '
             '"pedestrian" (is "car" meant?))'],
        ),
        (
            r'key: "default" value: 0.5',
            'key: "pedestrian" value: 0.5',
            ['evaluation_config.minimum_detection_ground_truth_overlap: must have an entry for class "cyclist" of '
             'cost_function_config, or "default", got "car", "pedestrian"'],
        ),
        (
            r'"cyclist"\]',
            '"default"]',
            [f'{LISTED}: must not be "default", which is the entry for the classes that have none of their own, got "default"'],
        ),
        (r'"cyclist"\]', '"cyclist", "car"]', [f'{LISTED}: class "car" must stand once, got 2 times']),
        (r'"cyclist"\]', '"cyclist", ""]', [f'{LISTED}: must not be empty, got ""']),
        (
            r'name: "default" class_weight',
            'name: "pedestrain" class_weight',
            [f'{TARGETS}: must have an entry for class "{name}" of cost_function_config, or "default", got "pedestrain"'
             + ' (is "pedestrain" meant?)' * (name == "pedestrian") for name in ("car", "pedestrian", "cyclist")]
            + [f'{TARGETS}[0].name: must be one of class_names ("car", "cyclist", "pedestrian" (is "pedestrian" meant?)), '
               'got "pedestrain"'],
        ),
        (
            r"(?s)  target_classes \{.*\}\n\}",
            "}",
            [f'{TARGETS}: must have an entry "default", for the classes of the list'],
        ),
        (
            r"class_names: .*\]",
            "",
            ["dataset_config.target_class_mapping: at least one is needed",
             f'{TARGETS}[0].name: must not be "default", which is the entry for the classes that have none of their own, of '
             'class_names or class_file: one of them is missing, got "default"'],
        ),
        (
            r"(?s)class_names: .*\]\n  target_classes \{.*\}\n\}",
            "}",
            ["dataset_config.target_class_mapping: at least one is needed",
             f"{TARGETS}: at least one is needed, or class_names, or class_file"],
        ),
    ],
)  # fmt: skip
def test_mistakes_of_lists_and_defaults(short, pattern, by, expected):
    text, count = re.subn(pattern, by, short)
    assert count == 1
    assert sorted(problems(text)) == sorted(expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the list of classes cannot be read: No such file or directory"),
        ("\n", "the list of classes is empty: write one name a line"),
        ("car\nbus\ncar\n", 'class "car" stands 2 times: keep one'),
    ],
)
def test_a_file_that_is_no_list_is_one_message_at_its_line(short, tmp_path, content, reason):
    file, spec_file = tmp_path / "names.txt", tmp_path / "s.txt"
    if content is not None:
        file.write_text(content)
    text = short.replace(NAMES, f'class_file: "{file}"')
    spec_file.write_text(text)
    line = text[: text.index("class_file")].count("\n") + 1
    with pytest.raises(SpecError) as caught:
        spec.load(spec_file)
    place = f"{spec_file}:{line}:3: cost_function_config.class_file"
    assert str(caught.value) == f"{place}: {file}: {reason}"


def test_names_in_a_file_are_judged_as_those_in_the_spec(short, tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("car\npedestrian\ndefault\ncyc\x1blist\n")
    path = "cost_function_config.class_file"
    assert problems(short.replace(NAMES, f'class_file: "{file}"')) == [
        f'{path}: must have no control character (it has U+001B), got "cyc\\u001blist"',
        f'{path}: must not be "default", which is the entry for the classes that have none of their own, got "default"',
    ]
    file.write_text("car\npedestrian\ncyclist")
    both = short.replace(NAMES, f'{NAMES} class_file: "{file}"')
    assert problems(both) == [f'{path}: must be left out with class_names: keep one of them, got "{file}"']


def test_no_class_is_called_default(kitti_train):
    text = kitti_train.replace('"cyclist"', '"default"')
    assert problems(text) == [
        f'{TARGETS}[2].name: must not be "default", which is the entry for the classes that have none of their own, of '
        'class_names or class_file: one of them is missing, got "default"'
    ]


# The schema


def test_every_map_by_class_takes_a_default():
    """A new map belongs to one of the two lists."""
    maps = {place.field.full_name.removeprefix("detectkit.spec."): place.field for place in places()}
    maps = {name: rule_of(field).by_class for name, field in maps.items() if value_field(field)}
    assert {name for name, is_by_class in maps.items() if is_by_class} == {
        "BboxHandlerConfig.classwise_bbox_handler_config",
        "BboxRasterizerConfig.target_class_config",
        "DatasetExportConfig.SampleModifierConfig.minimum_target_class_imbalance",
        "EvaluationConfig.evaluation_box_config",
        "EvaluationConfig.minimum_detection_ground_truth_overlap",
        "PostProcessingConfig.target_class_config",
        "VisualizerConfig.target_class_config",
    }
    assert {name for name, is_by_class in maps.items() if not is_by_class} == {
        "DatasetConfig.target_class_mapping",
        "DatasetExportConfig.SampleModifierConfig.source_to_target_class_mapping",
        "DatasetExportConfig.target_class_mapping",
        "ModelConfig.Activation.activation_parameters",
    }


def test_the_maps_of_a_spec_and_the_entry_of_a_class(kitti_train):
    own = spec.loads(kitti_train)
    assert [path for path, _ in class_maps(own)] == [
        "postprocessing_config.target_class_config",
        "evaluation_config.minimum_detection_ground_truth_overlap",
        RASTER,
    ]
    assert [entry_of({"car", "default"}, name) for name in ("car", "bus")] == ["car", "default"]
    assert entry_of({"car"}, "bus") is None


def test_two_classes_of_one_label_are_told_where_no_mapping_says_whose_it_is(short):
    text = short.replace(NAMES, 'class_names: ["car", "hot dog", "hotdog"]')
    rule = 'cost_function_config.class_names: must not have the label of class "hot dog", "hotdog": say in'
    assert any(rule in line for line in problems(text))
    mapped = 'target_class_mapping { key: "sausage" value: "hot dog" } target_class_mapping { key: "hotdog" value: "hotdog" }'
    found = spec.loads(text.replace("dataset_config {", f"dataset_config {{ {mapped}", 1))
    assert dict(found.dataset_config.target_class_mapping) == {
        "car": "car",
        "sausage": "hot dog",
        "hotdog": "hotdog",
    }


def test_an_empty_file_name_is_told(short):
    assert any(
        "class_file: must not be empty" in line for line in problems(short.replace(NAMES, 'class_file: ""'))
    )


def test_a_list_that_is_no_file_is_not_waited_for(short, tmp_path):
    os.mkfifo(tmp_path / "names")
    with pytest.raises(SpecError, match="the list of classes cannot be read: it is no file"):
        spec.loads(short.replace(NAMES, f'class_file: "{tmp_path / "names"}"'))


def test_what_is_stored_names_no_list(short):
    for part in (NAMES, 'class_file: "/dev/zero"'):
        with pytest.raises(ValueError, match="a list of classes, which no resolved spec has"):
            read_stored(short.replace(NAMES, part))
    assert read_stored(spec.dumps(spec.loads(short))).spec == spec.resolved(spec.loads(short))


def test_a_misspelt_default_is_one_mistake_in_its_section(short):
    raster = short.index("bbox_rasterizer_config {")
    text = short[:raster] + short[raster:].replace('key: "default"', 'key: "defualt"', 1)
    assert problems(text) == [
        f'{RASTER}: must have an entry for 2 more classes of cost_function_config, or "default" (is that meant?),'
        ' got "defualt"'
    ]

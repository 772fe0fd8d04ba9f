import logging
import re
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectkit import spec
from detectkit.errors import SpecError


def message_of(text, name="s.txt"):
    with pytest.raises(SpecError) as caught:
        spec.loads(text, name)
    return str(caught.value)


def error_of(path):
    with pytest.raises(SpecError) as caught:
        spec.load(path)
    return str(caught.value)


@pytest.fixture(autouse=True)
def warnings_reach_pytest(monkeypatch):
    """An earlier command may have taken the logger away from pytest."""
    monkeypatch.setattr(logging.getLogger("detectkit"), "propagate", True)


# What loads


def test_tutorial_training_spec_loads_without_a_warning(tmp_path, kitti_train, caplog):
    (tmp_path / "train.txt").write_text(kitti_train)
    experiment = spec.load(tmp_path / "train.txt")
    assert isinstance(experiment, spec.Experiment)
    assert spec.class_names(experiment) == ["car", "pedestrian", "cyclist"]
    clustering = experiment.postprocessing_config.target_class_config["car"].clustering_config
    assert clustering.dbscan_min_samples == pytest.approx(0.05)
    assert experiment.training_config.workers == 1  # a default
    assert caplog.text == ""


def test_kinds_are_recognised(kitti_train, kitti_infer, kitti_convert):
    kinds = [type(spec.loads(text)) for text in (kitti_train, kitti_infer, kitti_convert)]
    assert kinds == [spec.Experiment, spec.Inference, spec.DatasetExportConfig]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,  # byte-order mark
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("  ", "\t"),
        lambda text: text.replace(": ", ":"),
        lambda text: text.replace("value {", "value: {"),
        lambda text: text.replace('"', "'"),
        lambda text: text.replace(" {", " <").replace("}", ">"),
        lambda text: text.replace("num_layers: 18", "num_layers: 18; # half\u00a0of “36” // or so\n"),
        lambda text: text.replace("freeze_blocks: 0", "freeze_blocks: [0, 1]"),
        lambda text: text.replace("freeze_blocks: 0", "freeze_blocks: 0 freeze_blocks: 1"),
        lambda text: text.replace('"resnet"', '"res" "net"'),
        lambda text: text.replace("dbscan_min_samples: 0.05", "dbscan_min_samples: 1"),
        lambda text: text.replace("dbscan_min_samples: 0.05", "dbscan_min_samples: 0.0500000007451"),
    ],
)
def test_forms_in_which_people_write_specs(tmp_path, kitti_train, change):
    path = tmp_path / "train.txt"
    path.write_bytes(change(kitti_train).encode())
    experiment = spec.load_experiment(path)
    assert experiment.model_config.arch == "resnet"
    assert experiment.training_config.num_epochs == 120


def test_quirks_of_published_inference_specs(kitti_infer, caplog):
    assert 'key:"car"' in kitti_infer and "value: {" in kitti_infer and "inferencer_config:{" in kitti_infer
    start = kitti_infer.index("  tlt_config{")
    end = kitti_infer.index("}\n}\nbbox_handler_config")
    engine = "  tensorrt_config { calibrator_config { calibration_cache: 'c' batch_size: 4 n_batches: 10 } "
    inference = spec.loads(kitti_infer[:start] + engine + kitti_infer[end:])
    entries = inference.bbox_handler_config.classwise_bbox_handler_config
    assert entries["car"].confidence_threshold == pytest.approx(0.9)  # TLT 1 and 2 have it in this place
    assert entries["car"].clustering_config.dbscan_min_samples == pytest.approx(0.05)
    assert entries["default"].clustering_config.dbscan_min_samples == 1
    assert inference.inferencer_config.tensorrt_config.calibrator_config.batch_size == 4
    assert (
        "tensorrt_config.calibrator_config has no effect: build the engine with detectkit engine"
        in caplog.text
    )


def test_binary_specs(tmp_path, kitti_train, kitti_infer, kitti_convert):
    for text in (kitti_train, kitti_infer, kitti_convert):
        message = spec.loads(text)
        (tmp_path / "spec.bin").write_bytes(message.SerializeToString())
        assert spec.load(tmp_path / "spec.bin") == message


def test_binary_spec_of_tlt_has_whole_min_samples(tmp_path, kitti_train):
    experiment = spec.loads(kitti_train)
    clustering = experiment.postprocessing_config.target_class_config["car"].clustering_config
    clustering.ClearField("dbscan_min_samples")
    clustering.MergeFromString(bytes([5 << 3, 1]))  # field 5 as a varint of 1
    (tmp_path / "spec.bin").write_bytes(experiment.SerializeToString())
    loaded = spec.load_experiment(tmp_path / "spec.bin")
    assert loaded.postprocessing_config.target_class_config["car"].clustering_config.dbscan_min_samples == 1.0


def test_dumps_writes_defaults_out_and_loads_again(kitti_train):
    experiment = spec.loads(kitti_train)
    text = spec.dumps(experiment)
    assert "workers: 1\n" in text and "num_layers: 18\n" in text and "nms_iou_threshold: 0.3\n" in text
    assert not experiment.training_config.HasField("workers")  # the spec itself stays as it was
    assert spec.dumps(spec.loads(text)) == text


# What does not: the file


def test_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "train.txt").write_text("#")
    assert "there is no such file; did you mean" in error_of(tmp_path / "trian.txt")
    assert error_of(tmp_path / "a" / "b").endswith("there is no such file")


def test_files_that_are_no_spec(tmp_path):
    for name, data, reason in [
        ("empty", b"", "the file is empty"),
        ("blank", b" \n\t", "the file is empty"),
        ("comments", b"# nothing\n", "the file is empty but for comments"),
        ("binary", bytes(range(256)), "this is neither text nor a spec in protobuf's binary form"),
        ("utf16", "random_seed: 1".encode("utf-16"), "the text is in UTF-16; save it as UTF-8"),
        ("latin", b"# fine\n# \xe9t\xe9", "latin:2:3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("json", b'{"random_seed": 1}', "json:1:1: this is JSON"),
        ("large", b"#" * (5 * 2**20), "is larger than 4 MiB, the most that a spec may have"),
    ]:
        (tmp_path / name).write_bytes(data)
        assert reason in error_of(tmp_path / name)
    assert "is a folder; name a spec file in it" in error_of(tmp_path)
    assert "cannot be read" in error_of("\0")


def test_another_kind_of_spec_names_its_command(tmp_path, kitti_infer):
    (tmp_path / "infer.txt").write_text(kitti_infer)
    with pytest.raises(
        SpecError, match="this is an inference spec, for `detectkit infer`; here a training spec"
    ):
        spec.load_experiment(tmp_path / "infer.txt")


# What does not: the text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("random_seed: “1”", 's.txt:1:14: curly quote “: type straight quotes " instead'),
        ("random_seed: 1\n// why", "s.txt:2:1: '//' does not start a comment here: use '#'"),
        ("random_seed: 1–2", "s.txt:1:15: unexpected – (en dash): type - instead"),
        (
            "model_config {\n num_layer: 18\n}",
            "s.txt:2:2: unknown field num_layer in ModelConfig; did you mean num_layers?",
        ),
        (
            "model_cfg { }",
            "s.txt:1:1: no spec of detectkit has a field model_cfg here; did you mean model_config?",
        ),
        (
            "evaluation_config { average_precision_mode: INTEGRAL }",
            "s.txt:1:45: average_precision_mode takes one of SAMPLE, INTEGRATE, got INTEGRAL; did you mean INTEGRATE?",
        ),
        ('random_seed: "4"', 's.txt:1:14: random_seed takes a whole number of at least 0, got "4"'),
        ("random_seed: 4.5", "s.txt:1:14: random_seed takes a whole number of at least 0, got 4.5"),
        ("random_seed: -1", "s.txt:1:14: random_seed takes a whole number of at least 0, got -1"),
        (
            "random_seed: 5000000000",
            "s.txt:1:14: random_seed takes a whole number of at least 0, got 5000000000",
        ),
        ("model_config { arch: resnet }", 's.txt:1:22: arch takes text in quotes, like "car", got resnet'),
        ("model_config { use_pooling: yes }", "s.txt:1:29: use_pooling takes true or false, got yes"),
        ("model_config { dropout_rate: x }", "s.txt:1:30: dropout_rate takes a number, got x"),
        ("model_config: 3", "s.txt:1:15: model_config is a block: write model_config { … }"),
        ("random_seed { }", "s.txt:1:13: random_seed takes a whole number of at least 0, got a block"),
        ("random_seed: [1, 2]", "s.txt:1:1: random_seed takes one value, not a list"),
        ("random_seed: 1\nrandom_seed: 2", "s.txt:2:1: random_seed is given on lines 1 and 2: keep one"),
        (
            "dataset_config {\n validation_fold: 0\n validation_data_source { }\n}",
            "s.txt:3:2: validation_data_source and validation_fold (line 2) exclude each other: keep one",
        ),
        ("model_config {\n arch: 'x'", "s.txt:1:14: this { is never closed"),
        ("model_config { arch: [", "s.txt:1:22: this [ is never closed"),
        ("random_seed: 1 }", "s.txt:1:16: expected the name of a field, got }"),
        ("random_seed 1", "s.txt:1:13: expected ':' or '{' after random_seed, got 1"),
        ("random_seed:", "s.txt:1:13: expected a value after random_seed, got the end of the file"),
        ('model_config { arch: "resnet', 's.txt:1:22: the text that starts with " is not closed on its line'),
        (
            'model_config { arch: "D:\\\\k\\k" }',
            r"s.txt:1:22: \k means nothing in text: write \\ for a backslash, or / in paths",
        ),
        (
            "model_config { load_graph: <FIXME> }",
            "s.txt:1:28: put a value for load_graph in the place of <FIXME>",
        ),
        (
            "dataset_config { image_extension: <your own> }",
            "s.txt:1:35: put a value for image_extension in the place of <your own>",
        ),
        (
            "random_seed: 42\nssd_config { }\ntraining_config { }",
            "s.txt:2:1: this is a spec of TLT's SSD; detectkit reads those of DetectNet_v2",
        ),
        ("a{" * 100, "s.txt:1:66: more than 32 blocks inside each other"),
    ],
)
def test_text_errors_name_line_and_column(text, expected):
    assert message_of(text) == expected


# The beginnings of published specs, each with what tells its network.
OTHERS = {
    "ssd_config { }": "SSD",
    "yolov4_config { }": "YOLO",
    'random_seed: 42\nyolo_config { big_anchor_shape: "[(116,90)]" }': "YOLO",
    "random_seed: 42\nnms_config { confidence_threshold: 0.001 }": "YOLO, SSD or RetinaNet",
    "lpr_config { hidden_units: 512 }": "LPRNet",
    "seed: 123\nuse_amp: False\nmaskrcnn_config { nlayers: 50 }": "Mask R-CNN",
    "network_config { rpn_stride: 16 }": "Faster R-CNN",
    'enc_key: "tlt"\nmodel_config { input_image_config { image_type: RGB } arch: "resnet:18" }': "Faster R-CNN",
    'model_config { arch: "resnet" n_layers: 18 input_image_size: "3,224,224" }\ntrain_config { }': "image classification",
    'eval_config { eval_dataset_path: "/data/test" top_k: 3 }': "image classification",
    'model_config { arch: "resnet" input_image_size: "3,60,80" }\ndataset_config { train_csv_path: "t.csv" }': "multitask classification",
    'random_seed: 42\nmodel_config { model_input_width: 320 arch: "vanilla_unet" }': "UNet",
    'dataset_config { dataset: "custom" data_class_config { } }': "UNet",
    "training_config { train_batch_size: 16 }\nmodel_config { model_name: 'efficientdet-d0' }": "EfficientDet",
}


@pytest.mark.parametrize(("text", "network"), OTHERS.items())
def test_a_spec_of_another_network_is_one_line_that_names_it(text, network):
    message = message_of(text + "\ntraining_config { unknown: 1 }")
    assert len(message.splitlines()) == 1
    assert message.endswith(f": this is a spec of TLT's {network}; detectkit reads those of DetectNet_v2")


@pytest.mark.parametrize(
    ("text", "whose"),
    [
        (
            "__class_name__: BpNetTrainer\nmodel:\n  __class_name__: BpNetLiteModel\n",
            "a spec of TAO's BodyPoseNet",
        ),
        ("checkpoint_dir: /results\nmodel:\n  name: FpeNet\n", "a spec of TAO's FPENet"),
        (
            "dataset:\n  loader:\n    shuffle: true\nmodel:\n  name: 'efficientdet-d0'\n",
            "a spec of TAO's EfficientDet",
        ),
        ("model_path: /home/me/model.hdf5\nscales: [0.5, 1.0]\n", "as the specs of TAO's other networks are"),
        ("# a list\nclasses:\n- car\n- van\n", "as the specs of TAO's other networks are"),
    ],
)
def test_yaml_is_said_to_be_yaml(text, whose):
    assert message_of(text) == (
        f"s.txt:1:1: this is YAML, {whose}; detectkit reads those of DetectNet_v2, which are protobuf text"
    )


def test_a_field_of_another_network_in_a_spec_of_ours_is_an_unknown_field(kitti_train):
    text = kitti_train.replace("num_layers: 18", 'num_layers: 18\n  input_image_size: "3,384,1248"')
    assert "unknown field input_image_size in ModelConfig" in message_of(text)


def test_load_graph_without_a_model_says_what_is_missing(kitti_train):
    text = kitti_train.replace("num_layers: 18", "num_layers: 18\n  load_graph: true")
    text = "\n".join(line for line in text.splitlines() if "pretrained_model_file" not in line)
    assert message_of(text).endswith(
        "model_config.load_graph: needs pretrained_model_file, the model to start from; the spec names none"
    )


def test_curly_quotes_are_counted(kitti_train):
    assert message_of(kitti_train.replace('"', "”")).endswith("instead (29 lines have them)")


def test_curly_quotes_and_slashes_in_strings_are_fine(kitti_train):
    text = kitti_train.replace('"/path/to/kitti/root"', '"gs://bucket/“kitti”"')
    assert spec.loads(text).dataset_config.data_sources[0].image_directory_path == "gs://bucket/“kitti”"


def test_every_text_error_is_listed(kitti_train):
    text = (
        kitti_train.replace("num_epochs", "epochs").replace("hflip_", "flip_").replace("type: L1", "type: l1")
    )
    lines = message_of(text).splitlines()
    assert [line.split(": ")[1].split(" in ")[0] for line in lines] == [
        "unknown field flip_probability",
        "unknown field epochs",
        "type takes one of NO_REG, L1, L2, got l1; did you mean L1?",
    ]


def test_protobufs_own_complaints_keep_their_place():
    assert message_of('model_config {\n arch: "\\xff" }').startswith("s.txt:2:15: Couldn't parse string")


def test_rules_are_reported_with_line_and_path(kitti_train):
    text = kitti_train.replace("beta1: 0.9", "beta1: nan").replace(
        "deadzone_radius: 0.67", "deadzone_radius: 2"
    )
    line = text[: text.index("beta1")].count("\n") + 1
    first, second = message_of(text).splitlines()
    assert first == f"s.txt:{line}:7: training_config.optimizer.adam.beta1: must be a finite number, got nan"
    assert second.endswith(":3: bbox_rasterizer_config.deadzone_radius: must be in [0, 1], got 2")


@pytest.mark.parametrize("character", ["\\x1b", "\\n", "\\a", "\\302\\233"])
def test_names_that_a_terminal_would_obey_are_refused(kitti_train, character):
    message = message_of(kitti_train.replace('"cyclist"', f'"cyc{character}list"'))
    assert re.search(r"target_classes\[[12]\].name: must have no control character \(it has U\+00", message)
    assert message.count("target_class_mapping: must have no control character (it has U+00") == 1
    assert not set("\x1b\a\x9b") & set(message)


def test_notes_may_have_lines(kitti_train):
    notes = 'training_config {\n  visualizer { wandb_config { enabled: true notes: "two\\nlines" } }'
    loaded = spec.loads(kitti_train.replace("training_config {", notes, 1))
    assert loaded.training_config.visualizer.wandb_config.notes == "two\nlines"


def test_line_of_a_map_entry(kitti_train):
    start = kitti_train.index("bbox_rasterizer_config")
    place = kitti_train.index("cov_radius_y: 1.0", start)
    text = kitti_train[:place] + "cov_radius_y: 7.0" + kitti_train[place + len("cov_radius_y: 1.0") :]
    line = text[:place].count("\n") + 1
    path = 'bbox_rasterizer_config.target_class_config["cyclist"].cov_radius_y'
    assert message_of(text) == f"s.txt:{line}:7: {path}: must be in (0, 1], got 7"


def test_long_lists_of_problems_are_cut(kitti_train):
    text = "model_config {\n" + "x: 1\n" * 100 + "}"
    assert message_of(text).splitlines()[-1] == "… and 60 more"


# What loads with a warning


def test_fields_without_effect_are_named_once(kitti_train, caplog):
    text = kitti_train.replace("dbscan_eps", "neighborhood_size: 1 dbscan_eps")
    spec.loads(text)
    assert len(caplog.records) == 1
    assert (
        'target_class_config["car"].clustering_config.neighborhood_size (and in 2 more places)' in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "again", "place"),
    [
        ("num_epochs: 120", "num_epochs: 120", "num_epochs is given on lines {} and {}"),
        ("num_epochs: 120", "num_epochs: 0x78", "num_epochs is given on lines {} and {}"),
        ("beta1: 0.9", "beta1: .9f", "beta1 is given on lines {} and {}"),
        ("deadzone_radius: 0.67", "deadzone_radius: 0.670", "deadzone_radius is given on lines {} and {}"),
        ("validation_fold: 0", "validation_fold: 0", "validation_fold is given on lines {} and {}"),
        ("type: L1", "type: 1", "type is given on lines {} and {}"),
        ('arch: "resnet"', "arch: 'resnet'", "arch is given on lines {} and {}"),
        ("use_batch_norm: true", "use_batch_norm: True", "use_batch_norm is given on lines {} and {}"),
    ],
)
def test_a_scalar_given_twice_with_one_value_is_a_warning(kitti_train, caplog, text, again, place):
    assert text in kitti_train
    once = spec.loads(kitti_train)
    line = kitti_train[: kitti_train.index(text)].count("\n") + 1
    assert spec.loads(kitti_train.replace(text, f"{text}\n{again}", 1)) == once
    warning = f"{place.format(line, line + 1)}, each time with the same value: one is enough"
    assert [record.getMessage() for record in caplog.records] == [f"spec:{line + 1}:1: {warning}"]


@pytest.mark.parametrize(
    "text", ["num_epochs: 120 num_epochs: 120 num_epochs: 121", "batch_size_per_gpu: 1 batch_size_per_gpu: 2"]
)
def test_a_scalar_given_twice_with_two_values_stays_an_error(text):
    name = text.split(":")[0]
    assert f"{name} is given twice on line 1: keep one" in message_of(f"training_config {{ {text} }}")


def test_a_block_given_twice_stays_an_error():
    assert message_of("model_config { }\nmodel_config { }") == (
        "s.txt:2:1: model_config is given on lines 1 and 2: keep one"
    )


def test_what_is_given_a_million_times_is_one_warning(kitti_train, caplog):
    spec.loads(kitti_train.replace("num_epochs: 120", "num_epochs: 120\n" * 3))
    assert "num_epochs is given 3 times, from line" in caplog.text and len(caplog.records) == 1


def test_map_key_given_twice_on_one_line(kitti_train, caplog):
    entry = 'target_class_mapping { key: "x" value: "car" } '
    spec.loads(kitti_train.replace("  validation_fold", entry * 2 + "validation_fold"))
    assert 'target_class_mapping["x"] is given twice on line 20: the last one counts' in caplog.text


def test_map_key_given_twice(kitti_train, caplog):
    entry = 'target_class_mapping { key: "car" value: "car" }\n'
    spec.loads(kitti_train.replace("  validation_fold", entry + "validation_fold"))
    assert 'target_class_mapping["car"] is given on lines 8 and 20: the last one counts' in caplog.text


# Robustness and cost


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_specs_give_messages(kitti_train, kitti_infer, kitti_convert, data):
    text = data.draw(st.sampled_from([kitti_train, kitti_infer, kitti_convert]))
    pieces = [
        "{",
        "}",
        "[",
        "<",
        ":",
        '"',
        "\\",
        "nan",
        "1e99",
        "9" * 5000,
        "\0",
        "“",
        "#",
        "\\xff",
        "key",
        "true",
    ]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 40))
        piece = data.draw(st.one_of(st.sampled_from(pieces), st.text(max_size=4)))
        text = text[:start] + piece + text[start + length :]
    try:
        spec.loads(text)
    except SpecError as error:
        assert str(error).startswith("spec:")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_give_messages(tmp_path, data):
    (tmp_path / "spec").write_bytes(data)
    try:
        spec.load(tmp_path / "spec")
    except SpecError as error:
        assert str(error).startswith(str(tmp_path))


def of_many_classes(kitti_train, count):
    """The spec with so many classes more, all of them as the cyclist."""
    message = spec.loads(kitti_train)
    names = [f"class {number}" for number in range(count)]
    for target in message.cost_function_config.target_classes:
        if target.name == "cyclist":
            cyclist = target
    for name in names:
        message.dataset_config.target_class_mapping[name] = name
        message.cost_function_config.target_classes.add().MergeFrom(cyclist)
        message.cost_function_config.target_classes[-1].name = name
        message.evaluation_config.minimum_detection_ground_truth_overlap[name] = 0.5
        for section in (message.bbox_rasterizer_config, message.postprocessing_config):
            section.target_class_config[name].CopyFrom(section.target_class_config["cyclist"])
        box = message.evaluation_config.evaluation_box_config
        box[name].CopyFrom(box["cyclist"])
    return spec.dumps(message)


@pytest.mark.parametrize(
    ("pattern", "by", "words"),
    [
        ("cov_radius_x: [0-9.]+", "cov_radius_x: 7", "cov_radius_x: must be in (0, 1], got 7"),
        ("cov_radius_x", "cov_radius", "unknown field cov_radius in TargetClassConfig"),
        (
            "(?<=bbox_rasterizer_config)(?s:.*)class ",
            lambda text: text[0].replace("class ", "x"),
            "more classes",
        ),
    ],
)
def test_a_thousand_classes_that_break_a_rule_take_no_minute(kitti_train, pattern, by, words):
    text = of_many_classes(kitti_train, 1000)
    start = time.process_time()
    message = message_of(re.sub(pattern, by, text))
    assert words in message and len(message) < 20_000
    assert time.process_time() - start < 10  # most of it in protobuf's parser


def test_a_spec_of_fifteen_megabytes_is_refused_at_once(tmp_path, kitti_train):
    (tmp_path / "s.txt").write_text(kitti_train + "random_seed: 42\n" * 2**20)
    start = time.process_time()
    with pytest.raises(SpecError, match="s.txt: is larger than 4 MiB, the most that a spec may have"):
        spec.load(tmp_path / "s.txt")
    assert time.process_time() - start < 1


def test_loading_is_cheap_and_needs_no_torch(tmp_path, kitti_train):
    (tmp_path / "train.txt").write_text(kitti_train)
    code = (
        "import sys, time\nfrom detectkit import spec\nspec.load(sys.argv[1])\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\nprint(time.process_time())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "train.txt")]
    seconds = min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))
    assert seconds < 0.3

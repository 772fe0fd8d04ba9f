"""What a model file says of itself comes back as it was written, and anything else is one clear error."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit import __version__, spec
from detectkit.console import visible
from detectkit.errors import ModelError
from detectkit.model import header

TEXT = 'model_config { arch: "resnet" num_layers: 10 }'
NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(visible), min_size=1, max_size=4)


@settings(max_examples=20)
@given(names=NAMES, channels=st.sampled_from([1, 3]))
def test_comes_back(names, channels):
    found = header.loads(header.dumps(TEXT, names, channels), "m.onnx")
    assert (found.classes, found.channels) == (names, channels)
    assert found.spec.model_config.arch == "resnet" and found.spec.model_config.num_layers == 10


def test_equal_models_have_equal_headers(tiny):
    text = spec.dumps(tiny)
    assert header.dumps(text, ["a", "b"], 3) == header.dumps(text, ("a", "b"), 3)
    assert header.loads(header.dumps(text, ["a"], 3), "m").spec == spec.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[" * 100_000,
        "[]",
        "7",
        "null",
        '{"classes": []}',
        '{"format": "x"}',
        '{"format": 1e400}',
    ],
)
def test_of_other_software(text):
    with pytest.raises(ModelError, match="^m.onnx is not a detectkit model: .* detectkit export"):
        header.loads(text, "m.onnx")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("objective_set { cov { prior: -1 } bbox {} }", r"prior: must be in \(0, 1\), got -1"),
        ("dropout_rate: 5", r"dropout_rate: must be in \[0, 1\), got 5"),
    ],
)
def test_the_network_of_a_spec_is_judged(change, words):
    text = TEXT.replace("}", f"{change} }}")
    with pytest.raises(ModelError, match=f"^m.onnx is damaged: in its spec model_config.*{words}"):
        header.loads(header.dumps(text, ["a"], 3), "m.onnx")


def test_a_spec_that_has_lost_its_classes():
    with pytest.raises(ModelError, match="^m.onnx is damaged: its spec has no target_classes$"):
        header.loads(header.dumps(f"{TEXT} cost_function_config {{}}", ["a"], 3), "m.onnx")


def test_of_a_newer_detectkit():
    content = json.loads(header.dumps(TEXT, ["a"], 3)) | {"format": 2}
    with pytest.raises(ModelError, match="m was written by a newer .*model format 2; .* up to 1.*: upgrade"):
        header.loads(json.dumps(content), "m")


def test_fields_that_a_newer_detectkit_has_are_named_once_and_passed_over(caplog):
    text = """model_config { arch: "resnet" num_layers: 10 vision: 3 objective_set { bbox { far { near: 1 } } } }
        neck { size: 1 } neck { size: 2 }
        postprocessing_config { target_class_config { key: "a" value { clustering_config { soft: 1 } } } }"""
    content = json.loads(header.dumps(text, ["a"], 3)) | {"written_by": "0.9.1", "teacher": "b"}
    found = header.loads(json.dumps(content), "m.onnx")
    assert found.spec.model_config.num_layers == 10 and found.classes == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"m.onnx was written by detectkit 0.9.1 (this is {__version__}): teacher, model_config.vision,"
        " model_config.objective_set.bbox.far, neck,"
        " postprocessing_config.target_class_config.value.clustering_config.soft do not count here"
    ]


def test_what_this_version_wrote_is_read_without_a_word(tiny, caplog):
    header.loads(header.dumps(spec.dumps(tiny), ["a"], 3), "m")
    assert not caplog.records


def test_a_file_from_before_the_writer_was_named(caplog):
    content = json.loads(header.dumps(TEXT, ["a"], 3))
    assert content.pop("written_by") == __version__
    assert header.loads(json.dumps(content), "m").channels == 3
    assert not caplog.records


def test_what_cannot_be_read_says_who_wrote_it():
    text = TEXT.replace("}", "layout: HEXAGONS }")
    content = json.loads(header.dumps(text, ["a"], 3)) | {"written_by": "0.9.1"}
    with pytest.raises(
        ModelError, match=r"^m is damaged: .*HEXAGONS.*; it was written by detectkit 0.9.1 \(this is "
    ):
        header.loads(json.dumps(content), "m")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": "model_config {"}, "its description cannot be read"),
        ({"spec": "no_such_field: 1"}, "its description cannot be read"),
        ({"classes": 7}, "its description cannot be read"),
        ({"channels": "three"}, "its description cannot be read"),
        ({"channels": math.inf}, "its description cannot be read"),
        ({"classes": []}, "0 classes, 3 image channels"),
        ({"channels": 4}, "1 classes, 4 image channels"),
    ],
)
def test_damaged(change, words):
    content = json.loads(header.dumps(TEXT, ["a"], 3)) | change
    with pytest.raises(ModelError, match=f"^m is damaged: .*{words}"):
        header.loads(json.dumps(content), "m")

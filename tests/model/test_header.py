"""What a model file says of itself comes back as it was written, and anything else is one clear error."""

import json
import math

import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit import __version__, heads, runtimes, spec
from detectkit.console import visible
from detectkit.errors import ModelError
from detectkit.heads import Family, Level, Outline, Output
from detectkit.heads.grid import GridHead
from detectkit.heads.grid_layers import GridLayers
from detectkit.model import checkpoint, header
from detectkit.model.checkpoint import outline_in

TEXT = 'model_config { arch: "resnet" num_layers: 10 }'
OUTLINE = Outline(
    outputs=(Output("maps", "layer", 0, 1, known=(0.0, 1.0)), Output("boxes", "box", 1, 4, of_classes=False)),
    levels=(Level("backbone.fine", 8, 32), Level("backbone.last", 16, 64)),
    multiple=16,
)
NAMES = st.lists(st.text(st.characters(codec="utf-8"), min_size=1).map(visible), min_size=1, max_size=4)


@settings(max_examples=20)
@given(names=NAMES, channels=st.sampled_from([1, 3]))
def test_comes_back(names, channels):
    found = header.loads(header.dumps(TEXT, names, channels, OUTLINE), "m.onnx")
    assert (found.classes, found.channels, found.outline) == (names, channels, OUTLINE)
    assert found.spec.model_config.arch == "resnet" and found.spec.model_config.num_layers == 10


def test_equal_models_have_equal_headers(tiny):
    text = spec.dumps(tiny)
    assert header.dumps(text, ["a", "b"], 3, OUTLINE) == header.dumps(text, ("a", "b"), 3, OUTLINE)
    assert header.loads(header.dumps(text, ["a"], 3, OUTLINE), "m").spec == spec.loads(text)


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
        header.loads(header.dumps(text, ["a"], 3, OUTLINE), "m.onnx")


def test_a_spec_that_has_lost_its_classes():
    with pytest.raises(ModelError, match="^m.onnx is damaged: its spec has no target_classes$"):
        header.loads(header.dumps(f"{TEXT} cost_function_config {{}}", ["a"], 3, OUTLINE), "m.onnx")


def test_of_an_older_detectkit_the_outputs_are_those_of_the_spec():
    content = json.loads(header.dumps(TEXT, ["a"], 3, OUTLINE))
    del content["outline"]
    assert header.loads(json.dumps(content), "m").outline is None


def test_of_a_newer_detectkit():
    content = json.loads(header.dumps(TEXT, ["a"], 3, OUTLINE)) | {"format": 2}
    with pytest.raises(ModelError, match="m was written by a newer .*model format 2; .* up to 1.*: upgrade"):
        header.loads(json.dumps(content), "m")


def test_fields_that_a_newer_detectkit_has_are_named_once_and_passed_over(caplog):
    text = """model_config { arch: "resnet" num_layers: 10 vision: 3 objective_set { bbox { far { near: 1 } } } }
        neck { size: 1 } neck { size: 2 }
        postprocessing_config { target_class_config { key: "a" value { clustering_config { soft: 1 } } } }"""
    content = json.loads(header.dumps(text, ["a"], 3, OUTLINE)) | {"written_by": "0.9.1", "teacher": "b"}
    found = header.loads(json.dumps(content), "m.onnx")
    assert found.spec.model_config.num_layers == 10 and found.classes == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"m.onnx was written by detectkit 0.9.1 (this is {__version__}): not known here, and without effect:"
        " teacher, model_config.vision,"
        " model_config.objective_set.bbox.far, neck,"
        " postprocessing_config.target_class_config.value.clustering_config.soft"
    ]


def test_entries_of_an_outline_that_a_newer_detectkit_has_are_named_too(caplog):
    outline = OUTLINE.content()
    outline["levels"][0]["scale"] = 2
    del outline["outputs"][1]["known"], outline["outputs"][0]["anchors"]
    content = json.loads(header.dumps(TEXT, ["a"], 3, OUTLINE)) | {"written_by": "0.9.2", "outline": outline}
    assert header.loads(json.dumps(content), "m.onnx").outline == OUTLINE
    assert [record.getMessage() for record in caplog.records] == [
        f"m.onnx was written by detectkit 0.9.2 (this is {__version__}): not known here, and without effect:"
        " outline.levels.scale"
    ]


def test_what_this_version_wrote_is_read_without_a_word(tiny, caplog):
    header.loads(header.dumps(spec.dumps(tiny), ["a"], 3, OUTLINE), "m")
    assert not caplog.records


def test_a_file_from_before_the_writer_was_named(caplog):
    content = json.loads(header.dumps(TEXT, ["a"], 3, OUTLINE))
    assert content.pop("written_by") == __version__
    assert header.loads(json.dumps(content), "m").channels == 3
    assert not caplog.records


def test_what_cannot_be_read_says_who_wrote_it():
    text = TEXT.replace("}", "layout: HEXAGONS }")
    content = json.loads(header.dumps(text, ["a"], 3, OUTLINE)) | {"written_by": "0.9.1"}
    with pytest.raises(
        ModelError, match=r"^m is damaged: .*HEXAGONS.*; it was written by detectkit 0.9.1 \(this is "
    ):
        header.loads(json.dumps(content), "m")


def test_a_network_that_only_a_newer_detectkit_has_says_who_wrote_it():
    content = json.loads(header.dumps(TEXT.replace("resnet", "vision"), ["a"], 3, OUTLINE))
    with pytest.raises(
        ModelError, match=r"arch: must be one of .*\"vision\"; it was written by detectkit 0.9.1 \("
    ):
        header.loads(json.dumps(content | {"written_by": "0.9.1"}), "m")
    with pytest.raises(ModelError, match='got "vision"$'):
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
        ({"outline": {}}, "its description cannot be read"),
        ({"outline": OUTLINE.content() | {"levels": []}}, "its description cannot be read"),
        ({"outline": OUTLINE.content() | {"outputs": []}}, "its description cannot be read"),
        ({"outline": OUTLINE.content() | {"multiple": 0}}, "its description cannot be read"),
    ],
)
def test_damaged(change, words):
    content = json.loads(header.dumps(TEXT, ["a"], 3, OUTLINE)) | change
    with pytest.raises(ModelError, match=f"^m is damaged: .*{words}"):
        header.loads(json.dumps(content), "m")


@pytest.fixture
def described(learnt, tmp_path):
    """Writes the model with another description; None takes the entry out."""

    def write(**entries):
        with safetensors.safe_open(learnt, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            content = json.loads(file.metadata()[header.HEADER]) | entries | {"checksum": header.UNSEALED}
        content = {name: value for name, value in content.items() if value is not None}
        path = tmp_path / "other.safetensors"
        safetensors.torch.save_file(tensors, path, {header.HEADER: json.dumps(content)})
        return path

    return write


def test_a_file_without_outputs_has_those_of_its_weights(learnt, described):
    before, after = (runtimes.load(path, "cpu") for path in (learnt, described(outline=None)))
    assert before.outline == after.outline and before.outline.names == [
        "output_cov/Sigmoid",
        "output_bbox/BiasAdd",
    ]


def test_names_and_ranges_are_those_of_this_version(learnt, described):
    outline = runtimes.load(learnt, "cpu").outline
    other = outline.content() | {"levels": [outline.levels[0]._replace(name="backbone.stage4")._asdict()]}
    other["outputs"][1]["known"] = (-9.0, 9.0)
    other["outputs"][0]["name"] = "coverage"
    assert runtimes.load(described(outline=other), "cpu").outline == outline


def test_weights_of_another_network_say_who_wrote_them(learnt, described):
    text = spec.dumps(checkpoint.load(learnt).spec).replace("num_layers: 10", "num_layers: 34")
    with pytest.raises(
        ModelError, match=r"lacks .* its own spec describes; it was written by detectkit 0.9.1 \("
    ):
        checkpoint.load(described(spec=text, written_by="0.9.1"))
    with pytest.raises(ModelError, match="its own spec describes$"):
        checkpoint.load(described(spec=text))


def test_a_network_that_cannot_be_built_names_its_file(monkeypatch):
    layers = type("Wide", (GridLayers,), {"strides": (16, 32)})
    monkeypatch.setattr(heads, "family", lambda config: Family(layers, GridHead))
    text = 'model_config { arch: "squeezenet" }'
    content = json.loads(header.dumps(text, ["a"], 3, OUTLINE)) | {"written_by": "0.9.1"}
    assert outline_in(header.loads(json.dumps(content), "m"), "m") == OUTLINE
    del content["outline"]
    with pytest.raises(
        ModelError, match="^m needs .* no maps at a stride of 32.*; it was written by .* 0.9.1"
    ):
        outline_in(header.loads(json.dumps(content), "m"), "m")


@pytest.mark.parametrize(
    "change", [{"multiple": 32}, {"levels": [{"name": "backbone.layer4", "stride": 16, "channels": 7}]}]
)
def test_outputs_that_are_not_those_of_the_weights(learnt, described, change):
    outline = runtimes.load(learnt, "cpu").outline.content()
    path = described(outline=outline | change)
    with pytest.raises(
        ModelError, match=f"^{path} is damaged: the outputs that it describes are not those of its"
    ):
        runtimes.load(path, "cpu")

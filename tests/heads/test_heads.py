"""Which family of heads a spec asks for, and what is said of one that asks for none."""

from types import SimpleNamespace

import pytest

from detectkit import heads, spec
from detectkit.errors import SpecError
from detectkit.heads import Level, Outline, Output
from detectkit.heads.grid import GridHead
from detectkit.heads.grid_layers import GridLayers
from detectkit.heads.outline import parse_outline, unknown_in
from detectkit.model.detector import outline_of
from detectkit.spec.networks import is_grid

GRID = "objective_set { bbox {} cov {} }"


def test_the_section_of_model_config_chooses(tiny):
    assert tiny.model_config.WhichOneof("head") == "objective_set"
    assert heads.family(tiny.model_config) == (GridLayers, GridHead)


def test_a_head_goes_by_the_cells_of_the_network_at_hand(tiny):
    tiny.model_config.arch, tiny.model_config.num_layers = "darknet", 19
    outline = outline_of(tiny.model_config, ["square", "bar"], 3)
    assert (outline.multiple, heads.make_head(tiny, outline).stride) == (32, 32)
    fine = outline._replace(levels=(Level("layer", 8, 4),))
    assert heads.make_head(tiny, fine).stride == 8


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("", "model_config.objective_set: this section is missing"),
        (f"{GRID} {GRID}", "objective_set is given twice"),
    ],
)
def test_no_head_and_two_are_one_message(section, words, tiny_text):
    with pytest.raises(SpecError, match=words) as caught:
        spec.loads(tiny_text.replace(GRID, section))
    assert len(str(caught.value).splitlines()) == 1


def test_a_head_that_has_no_family_is_no_grid(tiny):
    another = SimpleNamespace(WhichOneof={"head": "pyramid"}.get)
    assert not is_grid(another) and is_grid(tiny.model_config) and is_grid(spec.ModelConfig())
    with pytest.raises(NotImplementedError, match="no line for model_config.pyramid"):
        heads.family(another)
    assert heads.family(spec.ModelConfig()) == (GridLayers, GridHead)


OUTPUTS = (Output("scores", "one", 0, 3, (0.0, 1.0)), Output("sizes", "two", 1, 4, of_classes=False))
OUTLINE = Outline(OUTPUTS, (Level("a", 8, 16), Level("b", 32, 64)), 32)


def test_shapes_of_outputs_of_classes_and_of_others():
    assert OUTLINE.shapes(5, 64, 96) == [(15, 8, 12), (4, 2, 3)]
    assert parse_outline(OUTLINE.content()) == OUTLINE


def test_shapes_with_anchors_and_with_cells_that_reach_over_the_border():
    """SSD300 has 38, 19, 10 and 5 cells a side, six boxes in most; EfficientDet nine (Liu 2016, Tan 2020)."""
    outputs = (Output("scores", "one", 0, 1, anchors=6), Output("boxes", "two", 1, 4, None, False, 9))
    outline = Outline(outputs, (Level("a", 8, 512), Level("b", 64, 256)), 1)
    assert outline.shapes(20, 300, 300) == [(120, 38, 38), (36, 5, 5)]
    assert parse_outline(outline.content()) == outline


def test_the_outline_of_another_version():
    content = OUTLINE.content()
    content["levels"][1]["scale"] = content["outputs"][0]["axes"] = content["outputs"][1]["axes"] = 3
    content["order"] = 1
    assert unknown_in(content) == ["outline.order", "outline.outputs.axes", "outline.levels.scale"]
    for output in content["outputs"]:
        for name in ("known", "of_classes", "anchors"):
            del output[name]
    plain = tuple(Output(*output[:4]) for output in OUTPUTS)
    assert parse_outline(content) == OUTLINE._replace(outputs=plain)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({"levels": (Level("stage1", 8, 16), Level("stage2", 32, 64))}, True),
        ({"outputs": (OUTPUTS[0]._replace(name="x", known=None), OUTPUTS[1])}, True),
        ({"levels": (Level("a", 16, 16), Level("b", 32, 64))}, False),
        ({"levels": (Level("a", 8, 17), Level("b", 32, 64))}, False),
        ({"outputs": OUTPUTS[:1]}, False),
        ({"outputs": (OUTPUTS[0]._replace(level=1), OUTPUTS[1])}, False),
        ({"outputs": (OUTPUTS[0]._replace(values=4), OUTPUTS[1])}, False),
        ({"multiple": 64}, False),
    ],
)
def test_only_what_weights_decide_must_fit(change, fits):
    assert OUTLINE.fits(OUTLINE._replace(**change), 2) is fits

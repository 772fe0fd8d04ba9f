"""Which family of heads a spec asks for, and what is said of one that asks for none."""

import pytest

from detectkit import heads, spec
from detectkit.errors import SpecError
from detectkit.heads import Level, Outline, Output
from detectkit.heads.grid import GridHead
from detectkit.heads.grid_layers import GridLayers
from detectkit.model.detector import outline_of

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


def test_shapes_of_outputs_of_classes_and_of_others():
    outputs = (Output("scores", "one", 0, 3), Output("sizes", "two", 1, 4, of_classes=False))
    outline = Outline(outputs, (Level("a", 8, 16), Level("b", 32, 64)), 32)
    assert outline.shapes(5, 64, 96) == [(15, 8, 12), (4, 2, 3)]
    assert heads.outline.parse_outline(outline.content()) == outline

"""Options, and the fields of a spec behind them."""

from argparse import Namespace

import pytest

from detectkit import spec
from detectkit.commands.settings import Settings
from detectkit.errors import UsageError

OPTIONS = {"data_type": "--data_type", "nms": "--nms", "max_drop": "--max-drop", "target_opset": "--target"}
NOT_GIVEN = dict.fromkeys(OPTIONS)


def settings(options=NOT_GIVEN, **fields):
    return Settings(Namespace(**(NOT_GIVEN | options)), spec.ExportConfig(**fields), "section", OPTIONS)


def test_what_neither_says_is_none():
    nothing = settings()
    assert [nothing.value(name) for name in OPTIONS] == [None] * 4
    assert [nothing.title(name) for name in OPTIONS] == list(OPTIONS.values())


def test_a_field_counts_where_no_option_is_given():
    found = settings({"nms": False}, data_type=spec.ExportConfig.INT8, nms=True, max_drop=0)
    assert [found.value(name) for name in ("data_type", "nms", "max_drop")] == ["int8", False, 0]
    assert [found.title(name) for name in ("data_type", "nms", "max_drop")] == [
        "section.data_type",
        "--nms",
        "section.max_drop",
    ]
    assert not found.is_given("data_type") and found.is_given("nms")


def test_what_is_asked_for_is_written_as_its_place_has_it():
    field = settings(data_type=spec.ExportConfig.FP16, nms=True, max_drop=0.1, target_opset=17)
    assert [field.text(name) for name in OPTIONS] == [
        *("section.data_type FP16", "section.nms", "section.max_drop 0.1", "section.target_opset 17")
    ]
    option = settings({"data_type": "fp16", "nms": True, "max_drop": 0.1, "target_opset": 17}, nms=False)
    assert [option.text(name) for name in OPTIONS] == [
        *("--data_type fp16", "--nms", "--max-drop 0.1", "--target 17")
    ]


def test_a_list():
    options = {"targets": "--target"}
    for given, field, found in (
        (None, [], None),
        (None, ["sm86"], ["sm86"]),
        (["sm89"], ["sm86"], ["sm89"]),
        ([], ["sm86"], []),
    ):
        section = spec.EngineConfig(targets=field)
        assert Settings(Namespace(targets=given), section, "section", options).value("targets") == found


def test_errors_name_what_has_spoken():
    with pytest.raises(UsageError) as error, settings(nms=True, target_opset=17).named():
        raise UsageError("--nms, --no-nms, (--target) --targets --target-x --max-drop --target: 17")
    assert str(error.value) == (
        "section.nms, --no-nms, (section.target_opset) --targets --target-x --max-drop section.target_opset: 17"
    )

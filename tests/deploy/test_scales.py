import json
import math

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from detectkit.deploy.scales import (
    LARGEST,
    ORIGINS,
    UNSIGNED_LEVELS,
    Range,
    ScaleTable,
    check_table,
    dump_table,
    load_table,
    parse_table,
    save_table,
    scale_of,
)
from detectkit.errors import ModelError, OutputError

TABLE = ScaleTable(
    tensors={
        "images": Range(1.0, 0.0, 1.0, 52.5),
        "relu": Range(2.5, 0.0, 3.0, 38.25),
        "head": Range(4.0, -4.0, 1.0, None),
    },
    weights={"first.weight": [0.5, 0.25], "head.weight": [1.0, 0.0, 2.0]},
    method="entropy",
    images=80,
    means={"images": [0.5, 0.25, -1.0], "relu": [0.125, 2.0]},
)


def network(filters=2):
    """images -> Conv first -> Relu relu -> Conv head."""
    arrays = {
        "first.weight": np.ones((filters, 3, 1, 1), np.float32),
        "head.weight": np.ones((3, filters, 1, 1), np.float32),
    }
    for name, array in arrays.items():
        array *= np.float32(TABLE.weights[name][: len(array)]).reshape(-1, 1, 1, 1)
    nodes = [
        helper.make_node("Conv", ["images", "first.weight"], ["first"]),
        helper.make_node("Relu", ["first"], ["relu"]),
        helper.make_node("Conv", ["relu", "head.weight"], ["head"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, 4, 4])
        for name, channels in (("images", 3), ("head", 3))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers))


def changed(**entries):
    return json.dumps(json.loads(dump_table(TABLE)) | entries)


def test_a_step_is_a_part_of_the_range():
    assert (scale_of(2.54), scale_of(2.55, UNSIGNED_LEVELS)) == pytest.approx((0.02, 0.01))


@given(amax=st.floats(0, LARGEST))
def test_every_range_has_a_positive_float32_step(amax):
    step = float(np.float32(scale_of(amax)))
    assert 0 < step < LARGEST and step * step >= 2.0**-126


def test_a_dead_channel_gets_the_step_of_amax_1():
    assert scale_of(0.0) == scale_of(1.0) == 1 / 127


def test_unsigned_is_what_is_never_negative():
    assert [item.unsigned for item in TABLE.tensors.values()] == [True, True, False]


def test_a_table_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "scales.json"
    save_table(path, TABLE)
    assert load_table(path) == TABLE
    assert json.loads(path.read_text())["format"] == 1
    assert len(path.read_text().splitlines()) == 18  # for a diff: a line for each tensor


NUMBERS = st.floats(-LARGEST, LARGEST)
POSITIVE, FINITE = st.floats(0, LARGEST), st.floats(-LARGEST, LARGEST)
RANGES = st.builds(
    lambda amax, ends, sqnr: Range(amax, min(ends), max(ends), sqnr),
    POSITIVE,
    st.tuples(NUMBERS, NUMBERS),
    st.none() | NUMBERS,
)


@given(
    tensors=st.dictionaries(st.text(), RANGES, min_size=1, max_size=4),
    weights=st.dictionaries(st.text(), st.lists(POSITIVE, min_size=1, max_size=4), min_size=1, max_size=3),
    method=st.sampled_from(ORIGINS),
    images=st.integers(0, 10**9),
    means=st.dictionaries(st.text(), st.lists(FINITE, min_size=1, max_size=4), max_size=3),
)
def test_any_table_comes_back_as_it_was(tensors, weights, method, images, means):
    table = ScaleTable(tensors, weights, method, images, means)
    assert parse_table(dump_table(table), "x") == table


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_table_cut_short_is_one_error(share):
    text = dump_table(TABLE).rstrip()
    with pytest.raises(ModelError, match=r"^x.* is no scale table: it is not JSON"):
        parse_table(text[: int(share * len(text))], "x")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "x is no scale table: it has no format; run detectkit calibrate again"),
        ("[" * 100_000, "x is no scale table: it is not JSON"),
        ("{}", "it has no format"),
        (changed(format=2), "x has format 2, this version reads format 1"),
        (
            changed(method="best"),
            "x: method must be one of mse, minmax, entropy, percentile, qat, cache, not 'best'",
        ),
        (changed(images=-1), "images must be a whole number, not -1"),
        (changed(images=True), "images must be a whole number, not True"),
        (changed(tensors=[]), "tensors must be a map"),
        (changed(tensors={}), "tensors must be a map"),
        (changed(weights={"w": []}), "w: must be a list of one number a channel"),
        (changed(weights={"w": [1, "2"]}), "w: channel 1 must be a number, not '2'"),
        (changed(weights={"w": [1, -2]}), "w: channel 1 must be 0 or more, not -2"),
        (changed(weights={"w": [math.nan]}), "w: channel 0 must be a number, not nan"),
        (changed(tensors={"t": 1}), "t has no amax"),
        (changed(tensors={"t": {"amax": 1, "low": 0, "high": 1}}), "t has no sqnr"),
        (changed(tensors={"t": Range(math.nan, 0, 1, None)._asdict()}), "t: amax must be a number, not nan"),
        (changed(tensors={"t": Range(math.inf, 0, 1, None)._asdict()}), "t: amax must be a number, not inf"),
        (changed(tensors={"t": Range(1e39, 0, 1, None)._asdict()}), "t: amax must be a number, not 1e"),
        (changed(tensors={"t": Range(10**400, 0, 1, None)._asdict()}), "t: amax must be a number, not 1000"),
        (changed(tensors={"t": Range(-1, 0, 1, None)._asdict()}), "t: amax must be 0 or more, not -1"),
        (changed(tensors={"t": Range(1, 2, 1, None)._asdict()}), "t: low 2 is above high 1"),
        (changed(tensors={"t": Range(1, 0, 1, "40")._asdict()}), "t: sqnr must be a number, not '40'"),
    ],
)
def test_what_cannot_be_a_table_is_one_error(text, message):
    with pytest.raises(ModelError) as caught:
        parse_table(text, "x")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["method", "images", "tensors", "weights"])
def test_an_entry_that_is_missing_is_named(key):
    content = json.loads(dump_table(TABLE))
    del content[key]
    with pytest.raises(ModelError, match=f"x: the table has no {key}"):
        parse_table(json.dumps(content), "x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_other_file_is_one_error(content, tmp_path):
    path = tmp_path / "scales.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_table(path)
    assert str(path) in str(caught.value)


def test_no_file_a_folder_and_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(ModelError, match="scales.json does not exist: detectkit calibrate writes"):
        load_table(tmp_path / "scales.json")
    with pytest.raises(ModelError, match="cannot read the scale table"):
        load_table(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_table(tmp_path / "file" / "scales.json", TABLE)


def test_numbers_that_json_does_not_know_are_not_written():
    with pytest.raises(ValueError):
        dump_table(TABLE._replace(weights={"w": [math.nan]}))


def test_the_table_of_a_network_passes():
    assert check_table(TABLE, network(), "scales.json") is None


def test_the_tables_of_other_networks_are_refused():
    other = {f"layer{number}": item for number, item in enumerate(list(TABLE.tensors.values()) * 2)}
    cases = [
        (
            TABLE._replace(tensors=TABLE.tensors | other),
            "does not have layer0, layer1, layer2 and 3 more; run",
        ),
        (TABLE._replace(weights=TABLE.weights | {"gate.weight": [1.0]}), "does not have gate.weight; run"),
        (TABLE._replace(tensors={"images": TABLE.tensors["images"]}), "it has no range of relu; run"),
        (TABLE._replace(weights={"first.weight": [1.0, 1.0]}), "it has no range of head.weight; run"),
    ]
    for table, message in cases:
        with pytest.raises(ModelError) as caught:
            check_table(table, network(), "scales.json")
        assert "scales.json is of another network: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "count"), [([0.5, 0.26], 1), ([0.51, 0.24], 2), ([0.0, 0.25], 1), ([0.5, LARGEST], 1)]
)
def test_the_table_of_another_training_is_refused(weights, count):
    table = TABLE._replace(weights=TABLE.weights | {"first.weight": weights})
    words = f"scales.json is of another training of this network: first.weight has other largest weights in {count} of 2"
    with pytest.raises(ModelError, match=words):
        check_table(table, network(), "scales.json")


def test_what_folding_rounds_is_no_other_training():
    table = TABLE._replace(weights=TABLE.weights | {"first.weight": [0.5 * (1 + 1e-6), 0.25]})
    assert check_table(table, network(), "scales.json") is None


def test_a_table_from_before_pruning_is_refused():
    with pytest.raises(
        ModelError, match=r"first.weight has 2 channels there and 1 in the network \(pruned since\?\)"
    ):
        check_table(TABLE, network(filters=1), "scales.json")


def test_the_network_of_these_tests_is_one():
    assert onnx.checker.check_model(network()) is None


def test_means_of_another_number_of_channels_are_of_another_network():
    check_table(TABLE, network(), "scales.json")
    other = TABLE._replace(means={"relu": [0.5, 0.5, 0.5]})
    with pytest.raises(
        ModelError, match="scales.json is of another network: relu has 3 channels there and 2 in"
    ):
        check_table(other, network(), "scales.json")


@pytest.mark.parametrize("means", [{"relu": []}, {"relu": ["a"]}, {"relu": 1.0}, {"relu": [1e39]}, [1.0]])
def test_means_that_are_no_numbers(means):
    with pytest.raises(ModelError, match="^x: "):
        parse_table(changed(means=means), "x")


def test_a_table_without_means_is_a_table():
    content = json.loads(dump_table(TABLE))
    del content["means"]
    assert parse_table(json.dumps(content), "x") == TABLE._replace(means={})

"""bench/same.py: this checkout is the same as itself, a change of it is found and named, and what is meant is told apart."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[1]


def same(*arguments):
    """The exit code of the command, and what it printed."""
    command = [sys.executable, ROOT / "bench/same.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_checkout_is_the_same_as_itself():
    code, printed = same(ROOT, "--only", "export", "--networks", "squeezenet")
    row = next(line.split() for line in printed.splitlines() if line.startswith("export "))
    assert (code, row[1:4]) == (0, ["4", "4", "4"]), printed


def test_a_changed_constant_is_found_and_named(tmp_path):
    for folder in ("detectkit", "specs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "detectkit/ops/quantize.py"
    changed.write_text(changed.read_text().replace("\nLEVELS = 128", "\nLEVELS = 64"))
    code, printed = same(ROOT, tmp_path, "--only", "records", "calibration", "--networks", "squeezenet")
    assert code == 1
    row = next(line.split() for line in printed.splitlines() if line.startswith("records "))
    assert row[1] == row[2] == row[3]
    named = r"calibration: DIFFERS: calibration/squeezenet/scales.json: \d+ other values: tensors\.\w+\.\w+ is [\d.]+ and [\d.]+"
    assert re.search(named, printed), printed


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    code, printed = same(tmp_path)
    assert code == 1
    assert f"{tmp_path} is no checkout of detectkit with its messages generated" in printed


# What differs in two files


@pytest.fixture
def told(tmp_path):
    """Two files by a function that writes one, as what differs and whether it is meant."""
    differences = runpy.run_path(str(ROOT / "bench/differences.py"))["differences"]

    def tell(write, first, second, suffix):
        paths = [tmp_path / f"{name}{suffix}" for name in ("before", "after")]
        for path, content in zip(paths, (first, second), strict=True):
            write(path, content)
        return [tuple(item) for item in differences(*paths)]

    return tell


def save_weights(path, content):
    header, *values = content
    tensors = {name: np.array(value, dtype=np.float32) for name, value in zip("ab", values, strict=False)}
    safetensors.numpy.save_file(tensors, path, {"detectkit": json.dumps(header)})


@pytest.mark.parametrize(
    "after, expected",
    [
        (({"checksum": "1"}, [1, 2], [3]), []),
        (
            ({"checksum": "2", "outputs": []}, [1, 2], [3]),
            [("another checksum in the header, which follows", True), ("new in the header: outputs", True)],
        ),
        (({}, [1, 2], [3]), [("gone from the header: checksum", False)]),
        (
            ({"checksum": "1"}, [1, 2.5], [3]),
            [("values of 1 of 2 tensors: a, 1 of 2 values, at most 0.5 apart", False)],
        ),
        (({"checksum": "1"}, [1], [3]), [("shapes of 1 of 2 tensors: a is [2] and [1]", False)]),
        (({"checksum": "1"}, [1, 2]), [("1 tensors gone: b", False)]),
    ],
    ids=["nothing", "header", "gone", "value", "width", "tensor"],
)
def test_of_weights(told, after, expected):
    assert told(save_weights, ({"checksum": "1"}, [1, 2], [3]), after, ".safetensors") == expected


def save_network(path, content):
    kind, slope, version = content
    images, maps = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("images", "maps")
    )
    node = helper.make_node(kind, ["images"], ["maps"], name="activation", alpha=slope)
    graph = helper.make_graph(
        [node], "detector", [images], [maps], [numpy_helper.from_array(np.ones(2), "weight")]
    )
    onnx.save(helper.make_model(graph, producer_name="detectkit", producer_version=version), path)


def test_of_a_network(told):
    before = ("LeakyRelu", 0.5, "1")
    assert told(save_network, before, before, ".onnx") == []
    assert told(save_network, before, ("LeakyRelu", 0.5, "2"), ".onnx") == [
        ("producer_version: 1 and 2", True)
    ]
    [(text, is_meant)] = told(save_network, before, ("LeakyRelu", 0.25, "1"), ".onnx")
    assert not is_meant
    assert text == (
        "nodes: 1 and 1 nodes, the first other one: LeakyRelu activation(images; alpha=0.5) -> maps"
        " and LeakyRelu activation(images; alpha=0.25) -> maps"
    )


def test_of_texts(told):
    def write(path, content):
        path.write_text(content)

    measured = ['{"map": 0.5, "latency_seconds": 1}', '{"map": 0.5, "latency_seconds": 2}']
    assert told(write, *measured, ".json") == [("times", True)]
    assert told(write, '{"map": [0.5]}', '{"map": [0.25]}', ".json") == [
        ("1 other values: map[0] is 0.5 and 0.25", False)
    ]
    assert told(write, '{"map": 1}', '{"map": 1, "recall": 2}', ".json") == [("1 new entries: recall", True)]
    assert told(write, '{"map": 1}', "{}", ".json") == [("1 other values: map is gone", False)]
    assert told(write, "mAP 50\ntook 0:07\n", "mAP 50\ntook 0:08\n", ".txt") == [("text: times", True)]
    assert told(write, "mAP 50\n", "mAP 40\n", ".txt") == [
        ("text: 1 lines gone, 1 new: mAP 50 and mAP 40", False)
    ]
    pages = [
        "<style>a</style><table><tr><td>mAP<td>50</table>",
        "<style>b</style><table><tr><td>mAP<td>40</table>",
    ]
    assert told(write, *pages, ".html") == [
        ("tables: 1 lines gone, 1 new: mAP | 50 and mAP | 40", False),
    ]

"""ONNX models in ONNX Runtime: any batch, 32 or 16 bits; what is broken or another software's is one clear error."""

import json
import re

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from detectkit.errors import ModelError
from detectkit.model.detector import outline_of
from detectkit.model.header import HEADER, seal
from detectkit.runtimes import load
from detectkit.runtimes.onnx import DATA_TYPE, SCALES, add_header, make_session, metadata, read_header
from detectkit.spec.model_pb2 import ModelConfig

OUTLINE = outline_of(ModelConfig(), ["a"], 1)
IMAGES = torch.rand(5, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(learnt_onnx):
    """The learnt model, to change."""
    return onnx.load(learnt_onnx)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "changed.onnx"


def refused(file, *words):
    """The one line that says why, with all these words in it."""
    with pytest.raises(ModelError) as caught:
        load(file, "cpu")
    message = str(caught.value)
    assert str(file) in message and "\n" not in message
    assert all(word in message for word in words), message
    return True


def equal_maps(one, other, tolerance):
    assert [maps.dtype for maps in other] == [torch.float32, torch.float32]
    return all(torch.allclose(a, b, atol=tolerance, rtol=tolerance) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_same_maps_as_pytorch(learnt, learnt_onnx, count):
    with torch.no_grad():
        expected = load(learnt, "cpu").forward(IMAGES[:count])
    found = load(learnt_onnx, "cpu").forward(IMAGES[:count].contiguous(memory_format=torch.channels_last))
    assert [tuple(maps.shape) for maps in found] == [(count, 2, 4, 6), (count, 8, 4, 6)]
    assert equal_maps(expected, found, 1e-4)


def test_a_fixed_batch_is_filled_up_and_split(learnt, learnt_onnx, as_onnx, file):
    onnx.save(as_onnx(learnt, batch=2), file)
    free, fixed = load(learnt_onnx, "cpu"), load(file, "cpu")
    for count in (1, 2, 3, 5):
        expected, found = free.forward(IMAGES[:count]), fixed.forward(IMAGES[:count])
        assert found[0].shape[0] == found[1].shape[0] == count
        assert equal_maps(expected, found, 1e-5)


def test_an_input_of_16_bits(learnt_onnx, model, file):
    [images] = model.graph.input
    images.type.tensor_type.elem_type = TensorProto.FLOAT16
    for node in model.graph.node:
        node.input[:] = ["widened" if name == images.name else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", [images.name], ["widened"], to=TensorProto.FLOAT))
    onnx.save(model, file)
    assert equal_maps(load(learnt_onnx, "cpu").forward(IMAGES), load(file, "cpu").forward(IMAGES), 0.02)


def test_images_of_any_size(learnt, model, file):
    for value in (*model.graph.input, *model.graph.output):
        for side, name in zip(value.type.tensor_type.shape.dim[2:], ("h", "w")):
            side.dim_param = name + value.name
    del model.graph.value_info[:]
    onnx.save(model, file)
    network = load(file, "cpu")
    assert network.size is None and network.outline.multiple == 16
    with torch.no_grad():
        expected = load(learnt, "cpu").forward(IMAGES[:, :, :48, :32])
    assert equal_maps(expected, network.forward(IMAGES[:, :, :48, :32]), 1e-4)


def test_further_outputs_are_not_asked_for(learnt_onnx, model, file):
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[0].output[0], 1, None))
    onnx.save(model, file)
    assert equal_maps(load(learnt_onnx, "cpu").forward(IMAGES), load(file, "cpu").forward(IMAGES), 1e-6)


def test_what_is_written_into_a_model_comes_back(model):
    helper.set_model_props(model, {"author": "me"})
    add_header(
        model,
        spec_text="random_seed: 7",
        class_names=["a"],
        channels=1,
        outline=OUTLINE,
        data_type="int8",
        scales="{}",
    )
    found = read_header(model, "m.onnx")
    assert (found.spec.random_seed, found.classes, found.channels, found.outline) == (7, ["a"], 1, OUTLINE)
    assert set(metadata(model)) == {"author", HEADER, DATA_TYPE, SCALES}
    assert (metadata(model)[DATA_TYPE], metadata(model)[SCALES]) == ("int8", "{}")
    add_header(model, spec_text="random_seed: 8", class_names=["a"], channels=1, outline=OUTLINE)
    assert read_header(model, "m.onnx").spec.random_seed == 8 and len(model.metadata_props) == 4


def test_threads():
    node = helper.make_node("Relu", ["images"], ["out"])
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("images", "out")]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:])
    opset = [helper.make_opsetid("", 17)]
    content = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    assert make_session(content).get_session_options().intra_op_num_threads == torch.get_num_threads()
    session = make_session(content, threads=3)
    assert session.get_session_options().intra_op_num_threads == 3
    assert session.run(None, {"images": np.float32([-1])})[0].tolist() == [0]


def test_a_gpu_that_onnx_runtime_cannot_use(learnt_onnx, caplog, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    session = make_session(learnt_onnx, device="cuda")
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert "cannot use the GPU and runs on the CPU: install onnxruntime-gpu" in caplog.text


# --- what is no model of ours


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"random_seed: 42\n", b"\xff" * 64])
def test_no_onnx_model(file, content):
    file.write_bytes(content)
    assert refused(file, "is no ONNX model that ONNX Runtime", "or is damaged")


SAME_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)


@SAME_FILE
@given(share=st.floats(0, 1, exclude_max=True))
def test_cut_short_anywhere(learnt_onnx, file, share):
    content = learnt_onnx.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert refused(file, "is no ONNX model", "or is damaged")


@SAME_FILE
@given(back=st.integers(1, 12000), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_model_error_or_a_model(learnt_onnx, file, capfd, back, byte):
    content = bytearray(learnt_onnx.read_bytes())
    content[-back] = byte
    file.write_bytes(content)
    try:
        load(file, "cpu")
    except ModelError as error:
        assert str(file) in str(error)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number(model, file, value):
    weight = model.graph.initializer[0]
    numbers = onnx.numpy_helper.to_array(weight).copy()
    numbers.flat[-1] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, file)
    assert refused(file, f"{weight.name} has values that are not finite: export another checkpoint")


def test_a_weight_beside_the_file_that_is_no_number(model, file):
    for weight in model.graph.initializer:
        if weight.name.startswith("output_cov"):
            numbers = onnx.numpy_helper.to_array(weight) * np.float32(np.nan)
            weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, file, save_as_external_data=True, size_threshold=0, location="weights")
    assert refused(file, "its maps of a black image are not finite")


def test_a_file_with_a_checksum(model, file):
    content = seal(model.SerializeToString())
    file.write_bytes(content)
    assert load(file, "cpu").class_names == load_names(model)
    onnx.save(onnx.load(file), file)  # as it is, by another program
    assert file.read_bytes() == content and load(file, "cpu")
    helper.set_model_props(model := onnx.load(file), metadata(model) | {"author": "me"})
    onnx.save(model, file)
    assert refused(file, "is damaged, or was changed after it was written: its checksum is another")


def load_names(model):
    return json.loads(metadata(model)[HEADER])["classes"]


def test_of_other_software(model, file):
    del model.metadata_props[:]
    onnx.save(model, file)
    assert refused(file, "is an ONNX model without a detectkit spec and class names", "detectkit export")


def test_of_a_newer_detectkit(model, file):
    content = json.loads(metadata(model)[HEADER]) | {"format": 2}
    helper.set_model_props(model, {HEADER: json.dumps(content)})
    onnx.save(model, file)
    assert refused(file, "was written by a newer detectkit", "upgrade")


def test_of_other_classes_than_it_says(model, file):
    content = json.loads(metadata(model)[HEADER]) | {"classes": ["square", "bar", "disc"]}
    helper.set_model_props(model, {HEADER: json.dumps(content)})
    onnx.save(model, file)
    assert refused(file, "is damaged: its maps (1, 2, 4, 6) and (1, 8, 4, 6) are not those of 3 classes")


def test_of_other_channels_than_it_says(model, file):
    content = json.loads(metadata(model)[HEADER]) | {"channels": 1}
    helper.set_model_props(model, {HEADER: json.dumps(content)})
    onnx.save(model, file)
    assert refused(file, "it must take float images [N, 1, height, width]")


def test_other_names_of_its_tensors(model, file):
    name = OUTLINE.names[0]
    renamed = onnx.load_from_string(model.SerializeToString().replace(name.encode(), b"x" * len(name)))
    helper.set_model_props(renamed, metadata(model))
    onnx.save(renamed, file)
    assert refused(file, "is not as detectkit export writes it", OUTLINE.names[0])


def test_an_operator_that_onnx_runtime_lacks(model, file):
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, file)
    assert refused(file, "can run, or is damaged (")
    with pytest.raises(ModelError, match=re.escape(f"{file} is no ONNX model")) as caught:
        load(file, "cpu")
    assert "[ONNXRuntimeError]" not in str(caught.value)

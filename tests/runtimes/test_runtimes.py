"""A model file is run by what its name says, and every kind gives the same detections."""

import shutil

import pytest
import torch

import detectkit
from detectkit.errors import ModelError
from detectkit.predict import load_model
from detectkit.runtimes import ENGINES, kind, load


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.safetensors", "model"),
        ("a.onnx", "onnx"),
        ("A.ONNX", "onnx"),
        ("a.hdf5", "model"),
        ("a.h5", "model"),
        ("a.b.safetensors", "model"),
    ]
    + [(f"a{suffix}", "engine") for suffix in ENGINES],
)
def test_kind(name, expected):
    assert kind(name) == expected


@pytest.mark.parametrize("name", ["a.pt", "a", "onnx", ".onnx"])
def test_other_names(name):
    with pytest.raises(
        ModelError, match=rf"^{name} is no model file by its name: .*safetensors.*onnx.*engine.*-e an .hdf5"
    ):
        kind(name)


@pytest.mark.parametrize("name", ["a.tlt", "a.etlt"])
def test_encrypted_models_name_the_way_out(name):
    with pytest.raises(ModelError, match=rf"^{name} is encrypted: .* tao model detectnet_v2 prune"):
        kind(name)


def test_a_folder_names_the_model_in_it(tmp_path, learnt):
    with pytest.raises(
        ModelError, match="is a folder: name the model file in it, such as .*weights/model.saf"
    ):
        load(tmp_path, "cpu")
    (tmp_path / "run/weights").mkdir(parents=True)
    shutil.copy(learnt, tmp_path / "run/weights/model.epoch-010.safetensors")
    with pytest.raises(ModelError, match="such as .*/run/weights/model.epoch-010.safetensors$"):
        load(tmp_path / "run", "cpu")


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".engine"])
def test_a_file_that_is_not_there(tmp_path, suffix):
    with pytest.raises(ModelError, match=f"{tmp_path}/none{suffix}"):
        load(tmp_path / f"none{suffix}", "cpu")


def test_what_a_network_says_of_itself(learnt, learnt_onnx):
    model, onnx = load(learnt, "cpu"), load(learnt_onnx, "cpu")
    assert (model.kind, model.size, model.file) == ("model", None, learnt)
    assert (onnx.kind, onnx.size, onnx.file) == ("onnx", (64, 96), learnt_onnx)
    for network in (model, onnx):
        assert network.class_names == ["square", "bar"]
        assert (network.channels, network.outline.multiple) == (3, 16)
    assert model.spec == onnx.spec


def test_an_onnx_model_finds_what_the_model_finds(learnt, learnt_onnx, tiny_root):
    paths = [tiny_root / f"kitti/image_2/{number:03d}.png" for number in range(6)]
    model, onnx = (detectkit.load_model(path, "cpu") for path in (learnt, learnt_onnx))
    assert onnx.class_names == model.class_names
    for expected, found in zip(model.predict(paths), onnx.predict(paths), strict=True):
        assert len(expected.boxes) == 2 and found.classes.tolist() == expected.classes.tolist()
        torch.testing.assert_close(found.boxes, expected.boxes, atol=0.01, rtol=0)
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)


def test_another_size_than_the_network_is_bound_to(learnt, learnt_onnx, tiny):
    tiny.augmentation_config.preprocessing.output_image_width = 128
    assert load_model(learnt, "cpu", experiment=tiny).predict([]) == []
    with pytest.raises(
        ModelError, match=f"^{learnt_onnx} is bound to images of 96x64; the spec's are 128x64: "
    ):
        load_model(learnt_onnx, "cpu", experiment=tiny)

"""What the machine and files are asked."""

import pytest
import torch
from PIL import Image

from detectkit import spec
from detectkit.data.layouts import recognise
from detectkit.errors import DataError, ModelError
from detectkit.model.detector import build
from detectkit.propose import measure
from detectkit.propose.choose import SCRATCH
from detectkit.propose.count import count
from detectkit.spec import ModelConfig


def save(path, arch):
    """The weights of a fresh backbone, as torchvision's classifier has them."""
    config = ModelConfig(arch=arch, use_batch_norm=True)
    config.objective_set.cov.SetInParent()
    config.objective_set.bbox.SetInParent()
    torch.save(build(config, ["a"], 3).backbone.state_dict(), path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save(folder / "lite.pth", "efficientnet_lite0")
    save(folder / "mobile.pth", "mobilenet_v2")
    (folder / "notes.txt").write_text("none")
    (folder / "broken.pth").write_bytes(b"none")
    return folder


def test_the_best_weights_come_first(weights):
    found = measure.find_weights(weights)
    assert [(start.arch, start.weights) for start in found] == [
        ("mobilenet_v2", str(weights / "mobile.pth")),
        ("efficientnet_lite0", str(weights / "lite.pth")),
    ]
    assert [start.arch for start in measure.find_weights(weights / "lite.pth")] == ["efficientnet_lite0"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("nothing.pth", "there is no such file or folder"),
        ("broken.pth", "it is of none of mobilenet_v2, efficientnet_lite0, efficientnet_lite1"),
        ("empty", "it has no file .pth or .pt"),
    ],
)
def test_no_weights(weights, name, text):
    (weights / "empty").mkdir(exist_ok=True)
    with pytest.raises(ModelError, match="--weights .*") as error:
        measure.find_weights(weights / name)
    assert text in str(error.value)


def test_a_step_is_timed(tiny, tmp_path, write_kitti):
    write_kitti(tmp_path / "d" / "train", [[("square", 0, 0, 64, 48)], []] * 4)
    write_kitti(tmp_path / "d" / "test", [[("square", 0, 0, 64, 48)]])
    contents = count(recognise(tmp_path / "d"))
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    before = torch.get_rng_state()
    pace = measure.pace(tiny, contents.train.images)
    assert 0 < pace.finding < pace.step < 20 and pace.load >= 0
    assert torch.equal(before, torch.get_rng_state())
    assert spec.batch_size(tiny) == 4


def test_images_that_cannot_be_decoded_are_passed_over(tiny, tmp_path, write_kitti, caplog):
    root = write_kitti(tmp_path / "d", [[("square", 0, 0, 64, 48)]] * 6)
    contents = count(recognise(tmp_path / "d"))
    tiny.augmentation_config.preprocessing.enable_auto_resize = True
    file = contents.train.images[0].image
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert measure.pace(tiny, contents.train.images).step > 0
    for file in (root / "image_2").iterdir():
        Image.new("L", (128, 96)).save(file)
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError):
        measure.pace(tiny, contents.train.images)


def test_networks_are_timed_at_each_size():
    found = measure.latencies(SCRATCH, [(64, 32), (32, 32)], ["a", "b"])
    assert [(one.start.title, one.size) for one in found] == [("resnet10", (64, 32)), ("resnet10", (32, 32))]
    assert all(one.seconds > 0 for one in found)

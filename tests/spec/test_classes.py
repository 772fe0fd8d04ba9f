import pytest

from detectkit import spec
from detectkit.errors import SpecError


@pytest.mark.parametrize(
    "text",
    [
        b"car\nroad sign\nvan\n",
        b"\xef\xbb\xbfcar\r\n\r\n  road sign \r\nvan",
        b"car;road sign;van;\n",
        b"car ; road sign;van",
    ],
    ids=["lines", "mark-and-crlf", "one-line", "spaces"],
)
def test_lists_as_tlt_and_deepstream_write_them(tmp_path, text):
    (tmp_path / "labels.txt").write_bytes(text)
    assert spec.read_class_list(tmp_path / "labels.txt") == ["car", "road sign", "van"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b" \n\n", "the list of classes is empty: write one name a line"),
        (b"car\nvan\ncar\n", 'class "car" stands 2 times: keep one'),
        (b"\xff\xfec\0a\0r\0", "the list of classes cannot be read: it is not text in UTF-8"),
        (None, "the list of classes cannot be read: No such file or directory"),
    ],
)
def test_files_that_are_no_list(tmp_path, text, reason):
    path = tmp_path / "labels.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(SpecError) as caught:
        spec.read_class_list(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_the_order_of_the_outputs_counts(kitti_train, kitti_infer):
    experiment, inference = spec.loads(kitti_train), spec.loads(kitti_infer)
    order = ["car", "pedestrian", "cyclist"]
    assert spec.compare_classes(experiment, order, "l") == order
    with pytest.raises(SpecError) as caught:
        spec.compare_classes(inference, order, "l")
    assert str(caught.value) == (
        'l: not the classes of inferencer_config.target_classes: output 2 of the network is "cyclist", the list has '
        '"pedestrian" there. The spec has, in this order: car, cyclist, pedestrian'
    )


def test_names_that_differ_are_listed(kitti_train, kitti_convert):
    with pytest.raises(SpecError) as caught:
        spec.compare_classes(spec.loads(kitti_train), ["Car", "pedestrian"], "l")
    assert '"Car" is not in the spec; "car" is not in the list; "cyclist" is not in the list' in str(
        caught.value
    )
    with pytest.raises(SpecError, match="l: a conversion spec has no classes to compare with"):
        spec.compare_classes(spec.loads(kitti_convert), ["car"], "l")

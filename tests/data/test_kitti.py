"""Label files as people and tools write them."""

import math
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectkit.data import kitti
from detectkit.errors import DataError

CAR = "Car 0.50 1 -1.57 10.5 20 110.5 80 1.5 1.6 3.9 1.0 2.0 8.4 0.01"


def write(folder, text):
    path = folder / "000001.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kitti")


def reasons(tmp_path, text):
    labels, rejected = kitti.read_labels(write(tmp_path, text))
    assert labels == []
    return rejected


def test_fifteen_columns(tmp_path):
    labels, rejected = kitti.read_labels(write(tmp_path, CAR + "\n"))
    assert rejected == []
    assert labels == [
        kitti.Label(
            "Car", 0.5, 1, -1.57, (10.5, 20, 110.5, 80), (1.5, 1.6, 3.9), (1, 2, 8.4), 0.01, score=None
        )
    ]


def test_sixteenth_column_is_the_score(tmp_path):
    labels, _ = kitti.read_labels(write(tmp_path, CAR + " 0.75"))
    assert labels[0].score == 0.75


@pytest.mark.parametrize("content", ["", "\n", " \n\t\r\n"])
def test_empty_file_is_an_image_without_objects(tmp_path, content):
    assert kitti.read_labels(write(tmp_path, content)) == ([], [])


@pytest.mark.parametrize(
    "content", [f"{CAR}\r\n{CAR}\r\n", f"\n\n{CAR}\n \n{CAR}", f"\ufeff{CAR}\n{CAR}", f"{CAR}\r{CAR}"]
)
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path, content):
    labels, rejected = kitti.read_labels(write(tmp_path, content))
    assert [label.name for label in labels] == ["Car", "Car"]
    assert rejected == []


def test_box_outside_the_image_is_kept_as_written(tmp_path):
    labels, rejected = kitti.read_labels(write(tmp_path, CAR.replace("10.5 20", "-40.25 -3")))
    assert labels[0].box == (-40.25, -3, 110.5, 80)
    assert rejected == []


@pytest.mark.parametrize(
    "line, reason",
    [
        (CAR.rsplit(" ", 1)[0], "14 columns, but a label has 15, or 16 with a score"),
        (CAR + " 0.5 0.5", "17 columns, but a label has 15, or 16 with a score"),
        (CAR.replace("110.5", "right"), "x2 is 'right', not a number"),
        (CAR.replace("110.5", "nan"), "x2 is 'nan', not a finite number of a sensible size"),
        (CAR.replace("110.5", "1e30"), "x2 is '1e30', not a finite number of a sensible size"),
        (CAR.replace("110.5", "1_0"), "x2 is '1_0', not a number"),
        (
            CAR.replace("0.50 1", "0.50 1.5"),
            "occlusion is '1.5', not 0, 1, 2, 3 or -1: columns are missing or moved",
        ),
        (
            "type 2 0.1 1 -1.57 20 30 70 80 1.5 1.6 3.2 1 2 30 -1.5",
            "truncation is '2', not from 0 to 1, or -1: columns are moved, as by a blank in the class name"
            " (write 'type_2')",
        ),
        ("0" + " 0.1 0.6" * 7, f"occlusion is '0.6', not 0, 1, 2, 3 or -1: {kitti.YOLO}"),
        (
            CAR.replace("110.5", "5"),
            "the box (10.5, 20, 5, 80) is reversed: it needs x1 < x2 and y1 < y2, not x, y, width and height",
        ),
        (
            CAR.replace("110.5", "10.5"),
            "the box (10.5, 20, 10.5, 80) has no area: it needs x1 < x2 and y1 < y2",
        ),
        (CAR.encode() + b" \xff\xfe", "not UTF-8 text"),
        (
            "traffic light" + CAR[3:],
            "truncation is 'light', not a number: columns are moved, as by a blank in the class name"
            " (write 'traffic_light')",
        ),
    ],
)
def test_bad_line_is_rejected_with_its_number_and_reason(tmp_path, line, reason):
    content = b"\n" + (line if isinstance(line, bytes) else line.encode())
    assert reasons(tmp_path, content) == [kitti.RejectedLine(2, reason)]
    with pytest.raises(DataError, match="000001.txt:2: ") as error:
        kitti.read_labels(tmp_path / "000001.txt", strict=True)
    assert reason in str(error.value)


ZEROS = " 0 0 0 0 0 0 0"
MOVED = "columns are moved, as by a blank in the class name (write {!r})"


@pytest.mark.parametrize(
    "line, reason",
    [
        # In the first two every column is in its range: the height in 3D gives them away.
        (
            "ball 1 0 0 0 20 30 70 80" + ZEROS,
            f"a label but for its second column, '1': {MOVED.format('ball_1')}",
        ),
        ("ball 0.5 0 1 -1.5 20 30 70 80 1.5 1.6 3.9 1 2 8.4 0", "a label but for its second column, '0.5': "),
        (
            "ball 1 0 0 0 20 30 70 80 0 0 0 0 0 0",
            "a label but for its second column, '1': columns are missing",
        ),
        (
            "ball 2 0 0 0 20 30 70 80" + ZEROS,
            f"truncation is '2', not from 0 to 1, or -1: {MOVED.format('ball_2')}",
        ),
        (
            "hot dog 0 0 0 20 30 70 80" + ZEROS,
            f"truncation is 'dog', not a number: {MOVED.format('hot_dog')}",
        ),
        ("a b c 0 0 0 20 30 70 80" + ZEROS, "a blank in the class name makes more of them (write 'a_b_c')"),
        (
            "type 1 a 0 0 0 20 30 70 80" + ZEROS + " 0.5",
            "18 columns, but a label has 15, or 16 with a score: a blank",
        ),
        (
            "ball 2 0 0 20 30 70 80" + ZEROS,
            "truncation is '2', not from 0 to 1, or -1: columns are missing or moved",
        ),
        ("ball -0.5 0 0 20 30 70 80" + ZEROS, "truncation is '-0.5', not from 0 to 1"),
        ("ball 0 7 0 20 30 70 80" + ZEROS, "occlusion is '7', not 0, 1, 2, 3 or -1"),
        ("ball 0 -2 0 20 30 70 80" + ZEROS, "occlusion is '-2', not 0, 1, 2, 3 or -1"),
        ("ball 0 0 99 20 30 70 80" + ZEROS, "alpha is '99', not an angle from -pi to pi, or -10"),
        ("ball 0 0 -90 20 30 70 80" + ZEROS, "alpha is '-90', not an angle from -pi to pi, or -10"),
        ("ba\x1bll 0 0 0 20 30 70 80" + ZEROS, r"the class name 'ba\x1bll' has the control character U+001B"),
        ("ba\0ll 0 0 0 20 30 70 80" + ZEROS, r"the class name 'ba\x00ll' has the control character U+0000"),
        (
            "ba\u202ell 0 0 0 20 30 70 80" + ZEROS,
            r"the class name 'ba\u202ell' has the control character U+202E",
        ),
    ],
)
def test_columns_that_are_not_what_they_should_be(tmp_path, line, reason):
    [reject] = reasons(tmp_path, line)
    assert reason in reject.reason


@pytest.mark.parametrize(
    "line",
    [
        "DontCare -1 -1 -10 20 30 70 80 -1 -1 -1 -1000 -1000 -1000 -10",
        "Car -1 -1 -10 20 30 70 80 -1 -1 -1 -1000 -1000 -1000 -10 0.9",  # KITTI's own form of a detection in 2D
        "Car 1.00 3 3.14 0 0.5 70 80 1.5 1.6 3.9 1 2 8.4 -3.14",
        "Car 0 0 4.7 20 30 70 80" + ZEROS,  # angles from 0 to 2 pi
        "Car 0 0 0 0 30 9 80 1.5 1.6 3.9 1 2 8.4 0.01 0.5",
        "Car 0 0 0 -5 30 -2 80" + ZEROS,  # outside of the image
        "Fu\u00dfg\u00e4nger 0 0 0 20 30 70 80" + ZEROS,
        "\u8f66 0 0 0 20 30 70 80" + ZEROS,
        "\u0645\u06cc\u200c\u062e 0 0 0 20 30 70 80" + ZEROS,  # Persian joins words without a space
    ],
)
def test_unusual_lines_that_are_labels(tmp_path, line):
    labels, rejected = kitti.read_labels(write(tmp_path, line))
    assert rejected == [] and [label.name for label in labels] == [line.split()[0]]


@pytest.mark.parametrize(
    "line, likely",
    [
        ("0 0.5 0.5 0.1 0.2", "a line of YOLO"),
        ("12 0.5 0.5 0.1 0.2 0.93", "a line of YOLO"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3 0.3", "a line of YOLO"),
        ("0 2 Car 0 0 -1.5 20 30 70 80 1.5 1.6 3.9 1 2 8.4 0.01", "a line of KITTI's tracking"),
        ("7 -1 DontCare -1 -1 -10 20 30 70 80 -1 -1 -1 -1000 -1000 -1000 -10", "a line of KITTI's tracking"),
        ("a.jpg,20,30,70,80,car", "not by commas as in CSV"),
        ("car; 0; 0; 0; 20; 30; 70; 80", "not by commas as in CSV"),
        ("car 20 30 70 80", "a class and a box alone"),
        ("car 0 0 0 20 30 70 80", "the seven columns of 3D are missing; write 0 for each"),
        ("<annotation><object>", "XML, not text"),
        ('{"shapes": []}', "JSON, not text"),
        ("1 2 9 2 9 7 1 7 plane 0", "a line of DOTA"),
        ("car", "1 column, but a label has 15, or 16 with a score"),
    ],
)
def test_other_formats_are_named(tmp_path, line, likely):
    [reject] = reasons(tmp_path, line)
    assert likely in reject.reason


def test_bad_line_does_not_take_its_neighbours_along(tmp_path):
    labels, rejected = kitti.read_labels(write(tmp_path, f"{CAR}\ncar 1 2\n{CAR}\n"))
    assert len(labels) == 2
    assert [reject.line for reject in rejected] == [2]


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot read the label file .*gone.txt: No such file"):
        kitti.read_labels(tmp_path / "gone.txt")


def test_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(DataError, match="Is a directory"):
        kitti.read_labels(tmp_path)


@settings(deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_give_labels_or_reasons(content):
    labels, rejected = kitti.parse_labels(content)
    lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    assert len(labels) + len(rejected) == len(lines)


tokens = st.sampled_from(
    ["car", "0", "-1", "12.5", "1e5", "inf", "-nan", "0x10", "٣", "1,5", "--3", "1e400", "9" * 30]
)


@settings(deadline=None)
@given(rows=st.lists(st.lists(tokens, min_size=13, max_size=17).map(" ".join), max_size=4))
def test_near_labels_are_finite_or_rejected(rows):
    labels, rejected = kitti.parse_labels("\n".join(rows).encode())
    assert len(labels) + len(rejected) == len(rows)
    for label in labels:
        assert all(math.isfinite(value) for value in (*label.box, label.alpha, *label.location))
        assert label.box[0] < label.box[2] and label.box[1] < label.box[3]
        assert -(2**63) <= label.occlusion < 2**63


numbers = st.floats(-5000, 5000)
detections = st.lists(
    st.tuples(
        st.text(string.ascii_letters, min_size=1),
        st.tuples(numbers, numbers, numbers, numbers).map(
            lambda b: (*map(min, b[:2], b[2:]), *map(max, b[:2], b[2:]))
        ),
        st.floats(0, 10),
    ),
    max_size=5,
)


@settings(max_examples=30)
@given(rows=detections)
def test_detections_come_back_as_written(folder, rows):
    path = folder / "a.txt"
    kitti.write_detections(path, rows)
    read = kitti.read_detections(path)
    assert [label.name for label in read] == [name for name, _, _ in rows]
    for label, (_, box, score) in zip(read, rows):
        assert label.box == pytest.approx(box, abs=6e-4)
        assert label.score == pytest.approx(score, abs=6e-4)


def test_detection_line_is_the_one_tlt_writes(tmp_path):
    kitti.write_detections(tmp_path / "a.txt", [("car", (1, 2.5, 30.12345, 40), 0.987654)])
    zeros = "0.00 0.00 0.00 0.00 0.00 0.00 0.00"
    assert (tmp_path / "a.txt").read_text() == f"car 0.00 0 0.00 1.000 2.500 30.123 40.000 {zeros} 0.988\n"


def test_nothing_found_is_an_empty_file(tmp_path):
    kitti.write_detections(tmp_path / "a.txt", [])
    assert (tmp_path / "a.txt").read_bytes() == b""
    assert kitti.read_detections(tmp_path / "a.txt") == []


def test_white_space_in_a_class_name_becomes_an_underscore(tmp_path):
    kitti.write_detections(tmp_path / "a.txt", [("traffic light", (1, 2, 3, 4), 1)])
    assert kitti.read_detections(tmp_path / "a.txt")[0].name == "traffic_light"


def test_empty_detection_box_is_read_back(tmp_path):
    kitti.write_detections(tmp_path / "a.txt", [("car", (10, 2, 10.0001, 4), 1)])
    assert kitti.read_detections(tmp_path / "a.txt")[0].box == (10, 2, 10, 4)


def test_detection_without_a_score(tmp_path):
    with pytest.raises(DataError, match="000001.txt:1: 15 columns, but a detection has 16"):
        kitti.read_detections(write(tmp_path, CAR))

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from detectkit.deploy.cache import read_cache, retarget, version_number, write_cache
from detectkit.deploy.scales import Range, ScaleTable
from detectkit.errors import ModelError, OutputError, UsageError

# By TLT 3 for TensorRT 8.0.1, shortened: names with and without the colon, and one that TensorRT made up.
TLT = (
    b"TRT-8001-EntropyCalibration2\n"
    b"input_1: 3c010a14\n"
    b"output_bbox/BiasAdd:0: 3ca14285\n"
    b"(Unnamed Layer* 4) [Fully Connected]_output: 3d65992f\n"
)


def table(method="entropy", **amaxes):
    return ScaleTable({name: Range(amax, -amax, amax, None) for name, amax in amaxes.items()}, {}, method, 1)


def published_reader(path):
    """Names and scales, as the format's users read them."""
    lines = path.read_text().splitlines()[1:]
    return {
        name: struct.unpack("!f", bytes.fromhex(h))[0] for name, h in (line.split(": ") for line in lines)
    }


@pytest.fixture
def cache(tmp_path):
    """Writes the bytes of a cache; gives its path."""

    def make(content):
        path = tmp_path / "calibration.cache"
        path.write_bytes(content)
        return path

    return make


@pytest.mark.parametrize(
    "version, number",
    [
        ("7.1.3", 7103),
        ("8.0.1", 8001),
        ("8.2.3", 8203),
        ("8.5.3", 8503),
        ("8.5.3.1", 8503),
        ("8.6.1", 8601),
        ("10.0.1", 100001),
        ("10.3.0", 100300),
        ("10.14.1", 101401),
        ("10.14.1.48", 101401),
    ],
)
def test_the_number_of_a_version(version, number):
    assert version_number(version) == number


def test_no_two_versions_share_a_number():
    versions = [
        f"{major}.{minor}.{patch}" for major in range(4, 11) for minor in range(10) for patch in range(12)
    ]
    versions += [f"10.{minor}.0" for minor in range(10, 100)]
    assert len({version_number(version) for version in versions}) == len(versions)


@pytest.mark.parametrize(
    "version",
    ["", "10", "10.3", "v10.3.0", "10.3.0-1", "8.10.0", "10.3.100", "0.0.0", "010.3.0", "١٠.3.0", "10.3.0\n"],
)
def test_what_is_no_version(version):
    with pytest.raises(UsageError, match="give three numbers, as 10.3.0"):
        version_number(version)


@pytest.mark.parametrize("version", ["11.0.0", "11.4.0.106", "12.0.0"])
def test_tensorrt_11_reads_no_cache(version):
    with pytest.raises(UsageError, match="reads no calibration cache .* detectkit export --data_type int8"):
        version_number(version)


def test_a_cache_by_hand(tmp_path):
    path = tmp_path / "new" / "calibration.cache"
    write_cache(path, table(images=1.0, relu=2.5))
    assert path.read_bytes() == b"TRT-100300-EntropyCalibration2\nimages: 3c010204\nrelu: 3ca14285\n"


@pytest.mark.parametrize(
    "method, title",
    [
        ("minmax", "MinMaxCalibration"),
        ("percentile", "EntropyCalibration2"),
        ("mse", "EntropyCalibration2"),
        ("qat", "EntropyCalibration2"),
    ],
)
def test_the_header_names_version_and_method(method, title, tmp_path):
    write_cache(tmp_path / "c", table(method, images=1.0), tensorrt="8.5.3")
    assert (tmp_path / "c").read_text().splitlines()[0] == f"TRT-8503-{title}"


def test_a_dead_tensor_gets_a_positive_scale(tmp_path):
    write_cache(tmp_path / "c", table(dead=0.0))
    assert published_reader(tmp_path / "c")["dead"] == np.float32(1 / 127)


def test_tensorrt_11_writes_nothing(tmp_path):
    with pytest.raises(UsageError, match="TensorRT 11"):
        write_cache(tmp_path / "c", table(images=1.0), tensorrt="11.0.0")
    assert list(tmp_path.iterdir()) == []


def test_a_convolution_gets_the_range_of_the_activation_behind_it(tmp_path):
    """The convolution that two nodes read keeps its own, which the table then has, and an output is not touched."""
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["conv1"]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w"], ["conv2"]),
        helper.make_node("Clip", ["conv2", "zero", "six"], ["relu6"]),
        helper.make_node("Conv", ["relu6", "w"], ["conv3"]),
        helper.make_node("Sigmoid", ["conv3"], ["gate"]),
        helper.make_node("Mul", ["conv3", "gate"], ["silu"]),
        helper.make_node("Conv", ["silu", "w"], ["conv4"]),
        helper.make_node("Relu", ["conv4"], ["relu4"]),
    ]
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 4, 4])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value("images")], [value("conv4"), value("relu4")])
    known = table(images=1.0, relu1=2.0, relu6=6.0, conv3=3.0, silu=2.5, relu4=1.5)
    write_cache(tmp_path / "c", known, graph=helper.make_model(graph))
    amaxes = read_cache(tmp_path / "c")
    assert set(amaxes) == {*known.tensors, "conv1", "conv2"}
    assert (amaxes["conv1"], amaxes["conv2"], amaxes["conv3"]) == pytest.approx((2, 6, 3))


def test_tlts_cache(cache):
    amaxes = read_cache(cache(TLT))
    assert list(amaxes) == ["input_1", "output_bbox/BiasAdd:0", "(Unnamed Layer* 4) [Fully Connected]_output"]
    assert amaxes["input_1"] == pytest.approx(1.000244, abs=5e-7)
    assert amaxes["output_bbox/BiasAdd:0"] == pytest.approx(2.5)


def test_line_ends_blank_lines_and_a_missing_last_line_end(cache):
    expected = read_cache(cache(TLT))
    assert read_cache(cache(TLT.replace(b"\n", b"\r\n"))) == expected
    assert read_cache(cache(TLT.replace(b"\n", b"\n \n"))) == expected
    assert read_cache(cache(TLT.rstrip())) == expected


def test_a_scale_of_0(cache):
    """TLT pads no digits; TensorRT writes ranges of 0 for constants."""
    assert read_cache(cache(TLT + b"a: 0\nb: 00000000\n"))["a"] == 0.0


NAMES = st.text(min_size=1).filter(lambda name: "\n" not in name)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amaxes=st.dictionaries(NAMES, st.floats(1e-15, 1e30), min_size=1, max_size=5))
def test_any_range_comes_back(amaxes, tmp_path):
    write_cache(
        tmp_path / "c", table(**{})._replace(tensors={n: Range(a, 0, a, None) for n, a in amaxes.items()})
    )
    found = read_cache(tmp_path / "c")
    assert list(found) == list(amaxes) and list(found.values()) == pytest.approx(
        list(amaxes.values()), rel=1e-7
    )


@given(scale=st.floats(2**-60, 2**90, width=32))
def test_the_bits_are_those_of_the_published_reader(scale, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bits.cache"
    write_cache(path, table(x=scale * 127))
    assert published_reader(path)["x"] == scale


@pytest.mark.parametrize(
    "content, line, message",
    [
        (
            b"",
            1,
            "a calibration cache begins with a line as TRT-100300-EntropyCalibration2, not an empty line",
        ),
        (
            b"\x00\xff\x80" * 100,
            1,
            "begins with a line as TRT-100300-EntropyCalibration2, not '\\x00\\xff",
        ),
        (
            b"input_1: 3c010a14\n",
            1,
            "begins with a line as TRT-100300-EntropyCalibration2, not 'input_1: 3c010a14'",
        ),
        (
            TLT + b"conv1 3c010a14\n",
            5,
            "must be a tensor, a colon and 8 hexadecimal digits, not 'conv1 3c010a14'",
        ),
        (TLT + b": 3c010a14\n", 5, "must be a tensor"),
        (TLT + b"conv1: 3c010a1\n", 5, "8 hexadecimal digits, not 'conv1: 3c010a1'"),
        (TLT + b"conv1: 3c010a1g\r\n", 5, "8 hexadecimal digits, not 'conv1: 3c010a1g'"),
        (TLT + b"conv1: 0x3c010a14\n", 5, "8 hexadecimal digits"),
        (TLT + b"conv1:\n", 5, "8 hexadecimal digits"),
        (TLT + b"conv1: 7fc00000\n", 5, "7fc00000 is nan, which is no range"),
        (TLT + b"conv1: 7f800000\n", 5, "7f800000 is inf, which is no range"),
        (TLT + b"conv1: bca14285\n", 5, "bca14285 is -0.019685, which is no range"),
        (TLT + b"input_1: 3c010a14\n", 5, "input_1 is there twice"),
        (TLT + b"\xff\xfe: 3c010a14\n", 5, "no text: '\\xff\\xfe: 3c010a14'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(content, line, message, cache):
    path = cache(content)
    with pytest.raises(ModelError) as caught:
        read_cache(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ") and message in str(caught.value)


def test_a_cache_of_nothing_no_file_and_a_folder(cache, tmp_path):
    with pytest.raises(ModelError, match="has no tensor in it"):
        read_cache(cache(b"TRT-8001-EntropyCalibration2\n"))
    with pytest.raises(ModelError, match="nothing.cache does not exist: detectkit calibrate writes"):
        read_cache(tmp_path / "nothing.cache")
    with pytest.raises(ModelError, match="cannot read the calibration cache"):
        read_cache(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=80), has_header=st.booleans())
def test_any_other_file_is_ranges_or_one_error(junk, has_header, tmp_path):
    path = tmp_path / "c"
    path.write_bytes((b"TRT-8001-EntropyCalibration2\n" if has_header else b"") + junk)
    try:
        amaxes = read_cache(path)
    except ModelError as error:
        assert str(path) in str(error)
    else:
        assert all(0 <= amax < float("inf") for amax in amaxes.values())


@pytest.mark.parametrize(
    "content", [TLT, TLT.replace(b"\n", b"\r\n"), TLT.rstrip(), TLT.replace(b"8001", b"8XXX")]
)
def test_retarget_changes_the_version_alone(content, cache, tmp_path):
    path = cache(content)
    retarget(path, "10.3.0", tmp_path / "out" / "new.cache")
    written = (tmp_path / "out" / "new.cache").read_bytes()
    assert written == content.replace(b"TRT-8001", b"TRT-100300").replace(b"TRT-8XXX", b"TRT-100300")
    assert path.read_bytes() == content
    retarget(path, "10.3.0")
    assert path.read_bytes() == written and {item.name for item in tmp_path.iterdir()} == {path.name, "out"}


def test_retarget_keeps_the_method(cache):
    path = cache(TLT.replace(b"EntropyCalibration2", b"MinMaxCalibration"))
    retarget(path, "8.6.1")
    assert path.read_bytes().startswith(b"TRT-8601-MinMaxCalibration\ninput_1")


def test_retarget_leaves_what_it_refuses(cache, tmp_path):
    path = cache(TLT)
    with pytest.raises(UsageError, match="TensorRT 11 reads no calibration cache"):
        retarget(path, "11.0.0")
    with pytest.raises(OutputError):
        retarget(path, "10.3.0", path / "below")
    assert path.read_bytes() == TLT
    broken = cache(TLT + b"cut: 3c0")
    with pytest.raises(ModelError, match="line 5"):
        retarget(broken, "10.3.0")
    assert broken.read_bytes() == TLT + b"cut: 3c0"

"""Record files: whole, cut short, with a flipped byte, made elsewhere."""

import glob
import importlib.util
import io
import pickle
import struct

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detectkit import stores
from detectkit.console import log
from detectkit.data import tfrecord
from detectkit.data.example_pb2 import Example
from detectkit.errors import DataError


def record(stem="000001", boxes=((1, 2, 30, 40), (-5, 0.5, 700, 20)), image=None):
    return tfrecord.Record(
        frame_id=f"image_2/{stem}",
        width=640,
        height=480,
        names=["car", "pedestrian"][: len(boxes)],
        boxes=numpy.array(boxes, dtype=numpy.float32).reshape(-1, 4),
        truncation=numpy.linspace(0, 0.5, len(boxes), dtype=numpy.float32),
        occlusion=numpy.arange(len(boxes)),
        image=image,
        image_format="jpg" if image else "",
    )


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        numpy.testing.assert_array_equal(a, b)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "data-fold-000-of-002-shard-00000-of-00001"
    tfrecord.write_shard(path, [tfrecord.encode(record(f"{i:06}")) for i in range(4)])
    return path


@pytest.mark.parametrize("original", [record(), record(boxes=()), record(image=b"\xff\xd8jpeg")])
def test_record_comes_back_as_encoded(original):
    assert_same(tfrecord.decode(tfrecord.encode(original)), original)


def test_further_columns_are_written():
    data = tfrecord.encode(record(), {"target/world_bbox_h": [1.5, 1.75]})
    assert list(Example.FromString(data).features.feature["target/world_bbox_h"].float_list.value) == [
        1.5,
        1.75,
    ]


def test_framing_is_that_of_tfrecord(tmp_path):
    """Length, its checksum, data, its checksum; checksums are CRC-32C (RFC 3720), masked."""
    tfrecord.write_shard(tmp_path / "a", [b"abc"])
    content = (tmp_path / "a").read_bytes()
    assert content == bytes.fromhex("0300000000000000") + content[8:12] + b"abc" + content[15:19]
    crc = 0x364B3FB7  # CRC-32C of "abc"
    assert (
        struct.unpack("<I", content[15:])[0]
        == (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF
    )


def test_random_access_by_the_index(shard):
    opened = tfrecord.open_shard(str(shard))
    assert [tfrecord.read_record(opened, i).frame_id for i in (3, 0, 2)] == [
        f"image_2/00000{i}" for i in (3, 0, 2)
    ]


def test_reading_in_order(shard):
    assert [r.frame_id for r in tfrecord.read_records(str(shard))] == [f"image_2/00000{i}" for i in range(4)]


@pytest.mark.parametrize("content", [None, b"", b"0 10\n", b"words\n", b"0 1 2\n", b"\xff\xfe"])
def test_missing_or_stale_index_is_rebuilt_in_memory(shard, content):
    index = shard.with_name(shard.name + ".index")
    expected = tfrecord.open_shard(str(shard))
    index.unlink()
    if content is not None:
        index.write_bytes(content)
    for rebuilt, original in zip(tfrecord.open_shard(str(shard))[1:], expected[1:]):
        numpy.testing.assert_array_equal(rebuilt, original)
    assert index.exists() == (content is not None)


def test_empty_shard(tmp_path):
    assert tfrecord.write_shard(tmp_path / "empty", []) == 0
    assert len(tfrecord.open_shard(str(tmp_path / "empty")).offsets) == 0
    assert list(tfrecord.read_records(str(tmp_path / "empty"))) == []


def test_opened_shard_can_be_sent_to_a_worker(shard):
    opened = pickle.loads(pickle.dumps(tfrecord.open_shard(str(shard))))
    assert tfrecord.read_record(opened, 1).frame_id == "image_2/000001"


@pytest.mark.parametrize("keep", [1, 11, 12, 100, -1])
def test_shard_cut_short(shard, keep):
    content = shard.read_bytes()
    last = len(content) // 4 * 3
    shard.write_bytes(content[: last + keep] if keep > 0 else content[:keep])
    with pytest.raises(DataError, match="record 3 is cut short: the file is damaged"):
        tfrecord.open_shard(str(shard))
    with pytest.raises(DataError, match="record 3 is cut short"):
        list(tfrecord.read_records(str(shard)))


def test_flipped_byte_in_the_data(shard):
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 + 50] ^= 0x10
    shard.write_bytes(content)
    opened = tfrecord.open_shard(str(shard))
    tfrecord.read_record(opened, 0)
    with pytest.raises(DataError, match=f"{shard.name}: record 1 fails its checksum"):
        tfrecord.read_record(opened, 1)
    with pytest.raises(DataError, match="record 1 fails its checksum"):
        list(tfrecord.read_records(str(shard)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(shard, position, bit):
    content = bytearray(shard.read_bytes())
    content[position % len(content)] ^= 1 << bit
    broken = shard.with_name("broken")
    broken.write_bytes(content)
    with pytest.raises(DataError, match="record [0-3] "):
        list(tfrecord.read_records(str(broken)))


def test_not_a_tfrecord_file(tmp_path):
    (tmp_path / "text").write_text("hello, this is no record file at all")
    with pytest.raises(
        DataError, match="record 0 has a length that fails its checksum: .* not a TFRecord file"
    ):
        tfrecord.open_shard(str(tmp_path / "text"))


def test_missing_shard(tmp_path):
    with pytest.raises(DataError, match="cannot read .*gone"):
        tfrecord.open_shard(str(tmp_path / "gone"))


def changed(change):
    example = Example.FromString(tfrecord.encode(record()))
    change(example.features.feature)
    return example.SerializeToString()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\xff\xff\xff", "not a tf.train.Example"),
        (b"", "it has no frame/id"),
        (changed(lambda f: f.pop("frame/width")), "it has no frame/width"),
        (
            changed(lambda f: f.pop("target/coordinates_x2")),
            "target/coordinates_x2 has 0 values for 2 objects",
        ),
        (
            changed(lambda f: f["target/occlusion"].int64_list.value.append(1)),
            "occlusion has 3 values for 2 objects",
        ),
        (changed(lambda f: f["frame/width"].int64_list.value.insert(0, 0)), "not a sensible number"),
    ],
)
def test_record_of_something_else(tmp_path, data, reason):
    path = tmp_path / "a"
    tfrecord.write_shard(path, [data])
    with pytest.raises(DataError, match=f"{path}: record 0 cannot be used: .*{reason}"):
        tfrecord.read_record(tfrecord.open_shard(str(path)), 0)


def test_record_without_truncation_and_occlusion():
    plain = tfrecord.decode(changed(lambda f: (f.pop("target/truncation"), f.pop("target/occlusion"))))
    assert plain.truncation.tolist() == [0, 0]
    assert plain.occlusion.tolist() == [0, 0]


@settings(deadline=None)
@given(data=st.binary(max_size=80))
def test_decoding_any_bytes_raises_nothing_but_value_error(data):
    try:
        tfrecord.decode(data)
    except ValueError:
        pass


def test_find_shards_leaves_the_other_files_out(shard):
    for name in ("data_warning.json", "status.jsonl"):
        (shard.parent / name).write_text("{}")
    (shard.parent / "folder").mkdir()
    assert tfrecord.find_shards(f"{shard.parent}/*") == [str(shard)]
    assert tfrecord.find_shards(f"{shard.parent}/nothing*") == []


def test_shards_in_object_storage(bucket):
    (bucket / "a").write_bytes(b"")
    data = [tfrecord.encode(record("1")), tfrecord.encode(record("2", image=b"pixels"))]
    (bucket / "train-00000").write_bytes(b"".join(map(framed, data)))
    stores.allow(["s3://bucket/train-*"])
    assert tfrecord.find_shards("s3://bucket/train-*") == ["s3://bucket/train-00000"]
    opened = tfrecord.open_shard("s3://bucket/train-00000")
    assert tfrecord.read_record(opened, 1).image == b"pixels"
    assert [r.frame_id for r in tfrecord.read_records("s3://bucket/train-00000")] == [
        "image_2/1",
        "image_2/2",
    ]
    (bucket / "train-00000").unlink()
    with pytest.raises(DataError, match="cannot read s3://bucket/train-00000: there is no such file"):
        tfrecord.open_shard("s3://bucket/train-00000")


def framed(data):
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", tfrecord._masked_crc(part)) for part in (length, data)]
    return length + crcs[0] + data + crcs[1]


@pytest.mark.parametrize(
    "address",
    [
        "nosuch://bucket/*",
        "reference://*::data:application/json,{}",
        "simplecache::s3://bucket/part-*",
        "s3://bucket/part-*::file:///etc/passwd",
        "ftp://127.0.0.1/part-*",
        "github://owner:name@main/part-*",
        "tar://part-*::file:///tmp/a.tar",
        "http://127.0.0.1/part-0",
        "S3://bucket/part-*",
    ],
)
def test_an_address_of_another_protocol_is_not_opened(address):
    stores.allow([address])
    for use in (tfrecord.find_shards, tfrecord.open_shard, lambda path: list(tfrecord.read_records(path))):
        with pytest.raises(DataError, match="is not opened: addresses begin with s3://.* without chains"):
            use(address)


def test_an_address_that_no_spec_of_the_user_names_is_not_opened(bucket):
    (bucket / "other-0").write_bytes(framed(tfrecord.encode(record())))
    for use in (tfrecord.find_shards, tfrecord.open_shard, lambda path: list(tfrecord.read_records(path))):
        with pytest.raises(DataError, match="s3://bucket/other-0 is not opened: it is named in a model"):
            use("s3://bucket/other-0")


def test_whatever_goes_wrong_in_a_store_is_one_message(bucket):
    import fsspec

    class Broken(fsspec.get_filesystem_class("s3")):
        def glob(self, *_, **__):
            raise KeyError("a\nb")

    fsspec.register_implementation("s3", Broken, clobber=True)
    stores.allow(["s3://bucket/*", "gs://bucket/*"])
    with pytest.raises(DataError, match=r"^cannot list s3://bucket/\*: 'a.*b'$"):
        tfrecord.find_shards("s3://bucket/*")
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(DataError, match=r"^cannot list gs://bucket/\*: .*gcsfs"):
            tfrecord.find_shards("gs://bucket/*")


def test_a_store_that_fails_while_a_file_is_read_is_one_message(bucket, monkeypatch):
    import fsspec

    class Breaking(fsspec.get_filesystem_class("s3")):
        def open(self, *_, **__):
            return BrokenStream()

    class BrokenStream(io.BytesIO):
        def read(self, *_):
            raise RuntimeError("the connection\nwas reset")

    (bucket / "part-0").write_bytes(framed(tfrecord.encode(record())))
    fsspec.register_implementation("s3", Breaking, clobber=True)
    stores.allow(["s3://bucket/part-0"])
    message = "^cannot read s3://bucket/part-0: the connection was reset$"
    with pytest.raises(DataError, match=message):
        list(tfrecord.read_records("s3://bucket/part-0"))
    with pytest.raises(DataError, match=message):
        tfrecord.open_shard("s3://bucket/part-0")
    monkeypatch.setattr(BrokenStream, "seek", BrokenStream.read)
    with pytest.raises(DataError, match=message):
        list(tfrecord.read_records("s3://bucket/part-0"))


@pytest.mark.parametrize("name", ["a*b", "data[1]", "what?", "a[b", "[!x]", "**"])
def test_a_folder_is_taken_as_it_is_called(tmp_path, name):
    for folder in (name, "aXb", "data1", "whatX", "y", "deep/er"):
        (tmp_path / folder).mkdir(parents=True)
        tfrecord.write_shard(tmp_path / folder / "t-fold-000-of-002", [])
    expected = [str(tmp_path / name / "t-fold-000-of-002")]
    for pattern in (f"{tmp_path}/{name}/t-*", *expected, f"{glob.escape(str(tmp_path / name))}/t-*"):
        assert tfrecord.find_shards(pattern) == expected
        assert tfrecord.find_shards(f"file://{pattern}") == expected


def test_patterns_match_folders_that_are_not_there_as_written(tmp_path):
    for folder in ("data[1]/a", "data1/a", "data2/b/c"):
        (tmp_path / folder).mkdir(parents=True)
        tfrecord.write_shard(tmp_path / folder / "x[1]-0", [])
    found = tfrecord.find_shards(f"{tmp_path}/*/a/x*")
    assert found == [f"{tmp_path}/data1/a/x[1]-0", f"{tmp_path}/data[1]/a/x[1]-0"]
    assert len(tfrecord.find_shards(f"{tmp_path}/**/x*")) == 3
    assert tfrecord.find_shards(f"{tmp_path}/data[2-9]/**") == [f"{tmp_path}/data2/b/c/x[1]-0"]
    assert tfrecord.find_shards(f"{tmp_path}/data2/b/c/x[1]-*") == [f"{tmp_path}/data2/b/c/x[1]-0"]


@pytest.mark.parametrize("pattern", ["**/x*", "*/*/x*", "?/b/x[0-9]*"])
def test_patterns_are_not_looked_for_below_files(tmp_path, monkeypatch, pattern):
    (tmp_path / "a/b").mkdir(parents=True)
    for number in range(300):
        (tmp_path / f"a/b/x{number}").touch()
        (tmp_path / f"a/{number}").touch()
    asked, find = [], glob.glob
    monkeypatch.setattr(glob, "glob", lambda *args, **named: asked.append(args) or find(*args, **named))
    assert len(tfrecord.find_shards(f"{tmp_path}/{pattern}")) == 300
    assert len(asked) < 10


def test_a_shard_that_is_cut_between_two_records_is_told_by_its_index(shard):
    opened = tfrecord.open_shard(str(shard))
    for kept in (2, 0):
        shard.write_bytes(shard.read_bytes()[: opened.offsets[kept]])
        message = f"is cut short: it has {kept} records, and its index lists 4; convert the data again"
        with pytest.raises(DataError, match=message):
            tfrecord.open_shard(str(shard))
        with pytest.raises(DataError, match=message):
            list(tfrecord.read_records(str(shard)))


def test_an_index_of_another_shard_is_told_and_not_used(shard, caplog):
    caplog.set_level("WARNING", logger="detectkit")
    log.propagate = True
    shard.with_name(f"{shard.name}.index").write_text("0 30\n30 50\n")
    assert len(tfrecord.open_shard(str(shard)).offsets) == 4
    assert len(list(tfrecord.read_records(str(shard)))) == 4
    assert [item.getMessage() for item in caplog.records] == [
        f"{shard}.index does not fit its shard, and is not used: delete it, or convert the data again"
    ]


def test_an_index_that_is_wrong_inside_is_blamed_and_not_the_shard(shard):
    index = shard.with_name(f"{shard.name}.index")
    (first, one), (second, two), *rest = [map(int, line.split()) for line in index.read_text().splitlines()]
    spans = [(first, one - 3), (second - 3, two + 3), *map(tuple, rest)]
    index.write_text("".join(f"{offset} {length}\n" for offset, length in spans))
    opened = tfrecord.open_shard(str(shard))
    with pytest.raises(DataError, match=f"^{shard}.index does not fit its shard: delete it"):
        tfrecord.read_record(opened, 1)
    assert len(list(tfrecord.read_records(str(shard)))) == 4


def test_a_record_of_more_boxes_than_an_image_may_have(tmp_path):
    for count in (tfrecord.MOST_BOXES, tfrecord.MOST_BOXES + 1, 10**6):
        boxes = numpy.tile(numpy.float32([1, 2, 30, 40]), (count, 1))
        full = record()._replace(
            names=["car"] * count,
            boxes=boxes,
            truncation=boxes[:, 0],
            occlusion=numpy.zeros(count, numpy.int64),
        )
        tfrecord.write_shard(tmp_path / "full", [tfrecord.encode(full)])
        if count == tfrecord.MOST_BOXES:
            assert len(next(tfrecord.read_records(str(tmp_path / "full"))).names) == count
        else:
            with pytest.raises(DataError, match=f"full: record 0 cannot be used: it has {count} boxes"):
                next(tfrecord.read_records(str(tmp_path / "full")))


def test_a_record_larger_than_memory_is_not_read(tmp_path):
    """Its length is true, and the file has as many bytes, none of which takes space on the disk."""
    length = struct.pack("<Q", 50 * 2**30)
    with open(tmp_path / "huge", "wb") as file:
        file.write(length + struct.pack("<I", tfrecord._masked_crc(length)))
        file.truncate(50 * 2**30 + tfrecord.FRAMING)
    with pytest.raises(DataError, match="record 0 has 51200 MiB, more than the 1024"):
        next(tfrecord.read_records(str(tmp_path / "huge")))


# Files that TLT wrote, built byte by byte


def varint(value):
    """Protobuf's varint; negative numbers are 64 bits of two's complement, so ten bytes."""
    value, out = value % 2**64, b""
    while value > 127:
        out, value = out + bytes([value % 128 + 128]), value // 128
    return out + bytes([value])


def field(number, content):
    """A field of wire type 2: a message, bytes or packed numbers."""
    return varint(number * 8 + 2) + varint(len(content)) + content


def strings(*values):
    return field(1, b"".join(field(1, value.encode()) for value in values))


def floats(*values):
    return field(2, field(1, struct.pack(f"<{len(values)}f", *values)) if values else b"")


def integers(*values):
    return field(3, field(1, b"".join(map(varint, values))) if values else b"")


def example(features):
    """A tf.train.Example: a message with one map of feature name to Feature."""
    entries = [field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()]
    return field(1, b"".join(entries))


def masked_crc32c(data):
    """CRC-32C bit by bit (polynomial 0x1EDC6F41, reflected), then TFRecord's mask."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def as_tlt_frames_it(data):
    length = struct.pack("<Q", len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


TLT = {  # frame 006505 of KITTI: a car behind the left edge of the image, and a region nobody labelled
    "frame/id": strings("image_2/006505"),
    "frame/height": integers(375),
    "frame/width": integers(1242),
    "target/object_class": strings("car", "dontcare"),
    "target/truncation": floats(0.25, -1.0),
    "target/occlusion": integers(2, -1),
    "target/observation_angle": floats(-1.5, -10.0),
    "target/coordinates_x1": floats(-3.5, 503.89),
    "target/coordinates_y1": floats(180.0, 169.71),
    "target/coordinates_x2": floats(100.25, 590.61),
    "target/coordinates_y2": floats(374.0, 190.13),
    "target/world_bbox_h": floats(1.5, -1.0),
    "target/world_bbox_w": floats(1.75, -1.0),
    "target/world_bbox_l": floats(4.0, -1.0),
    "target/world_bbox_x": floats(-16.5, -1000.0),
    "target/world_bbox_y": floats(2.5, -1000.0),
    "target/world_bbox_z": floats(58.5, -1000.0),
    "target/world_bbox_rot_y": floats(1.57, -10.0),
}
WITH_LIDAR = {
    **TLT,
    "point_cloud/id": strings("velodyne/006505"),
    "point_cloud/num_input_channels": integers(4),
    "calibration/T_lidar_to_camera": floats(*range(16)),
    "calibration/P_lidar_to_image": floats(*range(12)),
}


def without(*names):
    return {name: value for name, value in TLT.items() if name not in names}


@pytest.fixture
def tlt_shard(tmp_path):
    """A shard as TLT names it, without an index."""

    def write(*examples):
        path = tmp_path / "kitti_trainval-fold-000-of-002-shard-00000-of-00010"
        path.write_bytes(b"".join(as_tlt_frames_it(example(features)) for features in examples))
        return path

    return write


EMPTY = {"frame/id": strings("image_2/000001"), "frame/height": integers(370), "frame/width": integers(1224)}
EMPTY |= {name: strings() if "class" in name else floats() for name in TLT if name.startswith("target/")}
EMPTY["target/occlusion"] = integers()


def test_records_of_tlt_give_what_was_put_in(tlt_shard):
    path = tlt_shard(TLT, EMPTY, WITH_LIDAR)
    assert len(TLT) == 18
    assert tfrecord.find_shards(f"{path.parent}/kitti_trainval*") == [str(path)]
    opened = tfrecord.open_shard(str(path))
    car, empty, lidar = (tfrecord.read_record(opened, number) for number in range(3))
    assert (car.frame_id, car.width, car.height) == ("image_2/006505", 1242, 375)
    assert car.names == ["car", "dontcare"]
    boxes = [[-3.5, 180, 100.25, 374], [503.89, 169.71, 590.61, 190.13]]
    numpy.testing.assert_array_equal(car.boxes, numpy.array(boxes, dtype=numpy.float32))
    assert car.truncation.tolist() == [0.25, -1] and car.occlusion.tolist() == [2, -1]
    assert car.occlusion.dtype == numpy.int64 and car.boxes.dtype == car.truncation.dtype == numpy.float32
    assert car.image is None and car.image_format == ""
    assert (empty.frame_id, empty.names, empty.boxes.shape) == ("image_2/000001", [], (0, 4))
    assert_same(lidar, car)
    for one, other in zip(tfrecord.read_records(str(path)), (car, empty, lidar), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    "absent",
    [
        ["target/truncation"],
        ["target/occlusion"],
        ["target/truncation", "target/occlusion", "target/observation_angle"],
        [name for name in TLT if "world_bbox" in name],
    ],
)
def test_records_of_tlt_without_some_columns(tlt_shard, absent):
    [record] = tfrecord.read_records(str(tlt_shard(without(*absent))))
    assert record.names == ["car", "dontcare"]
    assert record.truncation.tolist() == ([0, 0] if "target/truncation" in absent else [0.25, -1])
    assert record.occlusion.tolist() == ([0, 0] if "target/occlusion" in absent else [2, -1])


def test_our_records_are_those_of_tlt_to_the_byte(tlt_shard, tmp_path):
    """A map has no order, so the features are sorted by name for the comparison."""
    path = tlt_shard(dict(sorted(TLT.items())))
    [record] = tfrecord.read_records(str(path))
    columns = {
        "target/observation_angle": [-1.5, -10],
        **{
            "target/world_bbox_h": [1.5, -1],
            "target/world_bbox_w": [1.75, -1],
            "target/world_bbox_l": [4, -1],
        },
        **{f"target/world_bbox_{axis}": [at, -1000] for axis, at in zip("xyz", (-16.5, 2.5, 58.5))},
        "target/world_bbox_rot_y": [1.57, -10],
    }
    tfrecord.write_shard(tmp_path / "ours", [tfrecord.encode(record, columns)])
    assert (tmp_path / "ours").read_bytes() == path.read_bytes()

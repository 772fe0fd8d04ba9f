"""Record files: whole, cut short, with a flipped byte, made elsewhere."""

import pickle
import struct

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_shards_in_object_storage():
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a", b"")
    with fsspec.open("memory://bucket/train-00000", "wb") as file:
        file.write(
            framed(tfrecord.encode(record("1"))) + framed(tfrecord.encode(record("2", image=b"pixels")))
        )
    assert tfrecord.find_shards("memory://bucket/train-*") == ["memory:///bucket/train-00000"]
    opened = tfrecord.open_shard("memory://bucket/train-00000")
    assert tfrecord.read_record(opened, 1).image == b"pixels"
    assert [r.frame_id for r in tfrecord.read_records("memory://bucket/train-00000")] == [
        "image_2/1",
        "image_2/2",
    ]
    with pytest.raises(DataError, match="cannot read memory://bucket/gone"):
        tfrecord.open_shard("memory://bucket/gone")


def framed(data):
    length = struct.pack("<Q", len(data))
    crcs = [struct.pack("<I", tfrecord._masked_crc(part)) for part in (length, data)]
    return length + crcs[0] + data + crcs[1]


def test_unknown_protocol():
    with pytest.raises(DataError, match="cannot list nosuch://"):
        tfrecord.find_shards("nosuch://bucket/*")

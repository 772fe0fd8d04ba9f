import h5py
import numpy as np
import pytest

from detectkit import cli
from detectkit.deploy.tensorfile import read_tensorfile, write_tensorfile
from detectkit.errors import DataError, OutputError


def test_the_file_has_the_layout_that_tlt_reads(tmp_path):
    batches = [np.full((2, 3, 4, 5), value, np.float32) for value in (0.25, 0.5)]
    assert write_tensorfile(tmp_path / "tensor", iter(batches)) == 2
    with h5py.File(tmp_path / "tensor") as file:
        assert file.attrs["count"] == 2 and file.attrs["shape"].tolist() == [2, 3, 4, 5]
        assert sorted(file) == ["_tensorfile_array_key__0", "_tensorfile_array_key__1"]
        stored = file["_tensorfile_array_key__1"]["_tensorfile_array_key_"]
        assert stored.compression == "gzip" and np.array_equal(stored[:], batches[1])


def test_batches_of_two_shapes_leave_nothing(tmp_path):
    batches = [np.zeros((2, 3, 4, 5), np.float32), np.zeros((1, 3, 4, 5), np.float32)]
    with pytest.raises(DataError, match="one shape"):
        write_tensorfile(tmp_path / "tensor", batches)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(tmp_path):
    (tmp_path / "tensor").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_tensorfile(tmp_path / "tensor", [np.zeros((1, 1, 1, 1), np.float32)])
    assert (tmp_path / "tensor").read_text() == "mine"


def stored(path, count=3):
    """A file of random batches, and these."""
    batches = list(np.random.default_rng(0).random((count, 2, 3, 4, 5), dtype=np.float32))
    write_tensorfile(path, batches)
    return batches


def test_batches_come_back_one_by_one(tmp_path):
    batches = stored(tmp_path / "tensor", count=12)
    count, read = read_tensorfile(tmp_path / "tensor", 3, 4, 5)
    assert count == 12
    for number, batch in enumerate(read):
        assert batch.dtype == np.float32 and np.array_equal(batch, batches[number])
    assert number == 11


def test_a_file_of_tlt_is_read(tmp_path):
    # As its tools write it: float64 attributes and data in some versions, no compression.
    with h5py.File(tmp_path / "tlt", "w") as file:
        file.attrs["count"], file.attrs["shape"] = np.float64(1), np.array([1, 1, 2, 2])
        file.create_group("_tensorfile_array_key__0")["_tensorfile_array_key_"] = np.full((1, 1, 2, 2), 0.5)
    count, batches = read_tensorfile(tmp_path / "tlt", 1, 2, 2)
    assert count == 1 and [batch.tolist() for batch in batches] == [[[[[0.5, 0.5], [0.5, 0.5]]]]]


def test_other_shapes_are_refused(tmp_path):
    stored(tmp_path / "tensor")
    with pytest.raises(DataError, match="shape 2 x 3 x 4 x 5, the network takes N x 1 x 4 x 5"):
        read_tensorfile(tmp_path / "tensor", 1, 4, 5)
    with h5py.File(tmp_path / "tensor", "a") as file:
        del file["_tensorfile_array_key__1"]
        file.create_group("_tensorfile_array_key__1")["_tensorfile_array_key_"] = np.zeros((2, 3, 4, 4))
    with pytest.raises(DataError, match="batch 1 has the shape 2 x 3 x 4 x 4, not 2 x 3 x 4 x 5"):
        list(read_tensorfile(tmp_path / "tensor", 3, 4, 5)[1])


@pytest.mark.parametrize("values", [255.0, -0.1, np.nan])
def test_values_that_are_no_images_are_refused(tmp_path, values):
    write_tensorfile(tmp_path / "tensor", [np.full((1, 1, 2, 2), values, np.float32)])
    with pytest.raises(DataError, match=r"batch 0 has values from .* lie in \[0, 1\]"):
        list(read_tensorfile(tmp_path / "tensor", 1, 2, 2)[1])


def test_what_is_no_tensorfile_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_tensorfile(tmp_path / "none", 3, 4, 5)
    with pytest.raises(DataError, match="is no TensorFile"):
        read_tensorfile(tmp_path, 3, 4, 5)
    (tmp_path / "text").write_text("no HDF5")
    with pytest.raises(DataError, match="is no TensorFile"):
        read_tensorfile(tmp_path / "text", 3, 4, 5)
    with h5py.File(tmp_path / "other", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(DataError, match="lacks count or shape"):
        read_tensorfile(tmp_path / "other", 3, 4, 5)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([0, 3, 4, 5], "shape 0 x 3 x 4 x 5, the network takes N x 3 x 4 x 5, N at least 1"),
        ([-1, 3, 4, 5], "shape -1 x 3 x 4 x 5"),
        ([2, 3, 4], "shape 2 x 3 x 4,"),
        ([], "shape of no size"),
        ([10**9, 3, 4, 5], "batches of 1000000000 images, more than 8 GiB each"),
        (np.nan, "lacks count or shape"),
    ],
)
def test_shapes_that_are_none(tmp_path, shape, words):
    stored(tmp_path / "tensor")
    with h5py.File(tmp_path / "tensor", "a") as file:
        file.attrs["shape"] = shape
    with pytest.raises(DataError, match=words):
        read_tensorfile(tmp_path / "tensor", 3, 4, 5)


@pytest.mark.parametrize("count", [0, -1, 10**12, np.inf, "many", [1, 2]])
def test_counts_that_are_none(tmp_path, count):
    stored(tmp_path / "tensor")
    with h5py.File(tmp_path / "tensor", "a") as file:
        file.attrs["count"] = count
    with pytest.raises(DataError, match="was cut short: |lacks count or shape"):
        read_tensorfile(tmp_path / "tensor", 3, 4, 5)


def with_text(file, name):
    file[name] = np.array([b"a", b"b"])


def with_group(file, name):
    file.create_group(name)


def with_link(file, name):
    file[name] = h5py.SoftLink("/nowhere")


def with_structure(file, name):
    file[name] = np.zeros((2, 3, 4, 5), [("a", "f4")])


def without_shape(file, name):
    file[name] = h5py.Empty("f4")


def elsewhere(file, name):
    file.create_dataset(name, (2, 3, 4, 5), "f4", external=[("/dev/zero", 0, 480)])


@pytest.mark.parametrize("put", [with_text, with_group, with_link, with_structure, without_shape, elsewhere])
def test_batches_that_hold_no_numbers(tmp_path, put):
    stored(tmp_path / "tensor")
    name = "_tensorfile_array_key__1/_tensorfile_array_key_"
    with h5py.File(tmp_path / "tensor", "a") as file:
        del file[name]
        put(file, name)
    with pytest.raises(DataError, match="tensor: batch 1 |batch 1 of 3 is missing"):
        list(read_tensorfile(tmp_path / "tensor", 3, 4, 5)[1])


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "tensor"
    stored(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 400):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="no TensorFile|cut short|cannot be read"):
            list(read_tensorfile(path, 3, 4, 5)[1])
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["_tensorfile_array_key__2"]
    with pytest.raises(DataError, match="was cut short: batch 2 of 3 is missing"):
        read_tensorfile(path, 3, 4, 5)


def test_a_damaged_batch_is_named(tmp_path):
    path = tmp_path / "tensor"
    stored(path)
    with h5py.File(path) as file:
        chunk = file["_tensorfile_array_key__1/_tensorfile_array_key_"].id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    with pytest.raises(DataError, match="batch 1 cannot be read"):
        list(read_tensorfile(path, 3, 4, 5)[1])


def test_command(tiny, write_spec, tmp_path, capsys):
    path, output = str(write_spec(tiny)), tmp_path / "calibration.tensor"
    assert cli.main(["calibration_tensorfile", "-e", path, "-o", str(output), "-m", "3"]) == 0
    with h5py.File(output) as file:
        first = file["_tensorfile_array_key__0"]["_tensorfile_array_key_"][:]
    assert first.shape == (4, 3, 64, 96) and 0 <= first.min() < first.max() <= 1
    assert cli.main(["calibration_tensorfile", "-e", path, "-o", str(tmp_path / "more"), "-m", "5"]) == 2
    assert "18 images make 4 full batches of 4" in capsys.readouterr().err

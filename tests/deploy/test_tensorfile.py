import h5py
import numpy as np
import pytest

from detectkit import cli
from detectkit.deploy.tensorfile import write_tensorfile
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


def test_command(tiny, write_spec, tmp_path, capsys):
    path, output = str(write_spec(tiny)), tmp_path / "calibration.tensor"
    assert cli.main(["calibration_tensorfile", "-e", path, "-o", str(output), "-m", "3"]) == 0
    with h5py.File(output) as file:
        first = file["_tensorfile_array_key__0"]["_tensorfile_array_key_"][:]
    assert first.shape == (4, 3, 64, 96) and 0 <= first.min() < first.max() <= 1
    assert cli.main(["calibration_tensorfile", "-e", path, "-o", str(tmp_path / "more"), "-m", "5"]) == 2
    assert "18 images make 4 full batches of 4" in capsys.readouterr().err

"""`detectkit sample-data` as a person types it."""

import pytest

from detectkit import cli
from detectkit.data import digits


@pytest.fixture
def few_frames(monkeypatch):
    monkeypatch.setitem(digits.make_sample_data.__kwdefaults__, "frames", 3)


def test_makes_the_data_and_says_what_is_next(few_frames, tmp_path, capsys):
    folder = tmp_path / "data"
    assert cli.main(["sample-data", "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"labels of zero, one, four to {folder}" in printed and "next: " in printed
    assert len(list((folder / "image_2").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert cli.main(["sample-data", "-o", str(folder)]) == 0
    assert "already holds this data set: nothing to do" in capsys.readouterr().out


def test_other_folder_is_refused(few_frames, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert cli.main(["sample-data", "-o", str(tmp_path)]) == 6
    assert f"{tmp_path} holds something else" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

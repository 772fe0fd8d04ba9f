"""`detectkit report`: what it prints and refuses; the pages are tested in tests/report."""

import json

import pytest

from detectkit.cli import main

USAGE, OUTPUT = 2, 6


@pytest.fixture
def folder(tmp_path):
    """Makes the folder of a run in which one model was evaluated."""

    def make(name, mean=0.5):
        content = {
            "mean_average_precision": mean,
            "images": 3,
            "classes": {"car": {"average_precision": mean}},
        }
        (tmp_path / name / "evaluate_float").mkdir(parents=True)
        (tmp_path / name / "evaluate_float" / "results.json").write_text(json.dumps(content))
        (tmp_path / name / "run.json").write_text("{}")
        return tmp_path / name

    return make


def run(capsys, *arguments):
    code = main(["report", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_one_run(folder, capsys):
    one = folder("one")
    code, out, err = run(capsys, one)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == f"wrote {one / 'report.html'}" and lines[2].split()[:3] == ["float", "50.0", "50.0"]
    assert "mAP 50.0" in (one / "report.html").read_text()


def test_several_runs(folder, capsys, tmp_path):
    code, out, _ = run(capsys, folder("one"), folder("two", 0.75), "-o", tmp_path / "all.html")
    assert (code, out) == (0, f"wrote {tmp_path / 'all.html'}\n")
    assert "75.0" in (tmp_path / "all.html").read_text()
    assert not (tmp_path / "one" / "report.html").exists()


def test_bad_usage(folder, capsys, tmp_path):
    one, two = folder("one"), folder("two")
    for arguments in (
        [one, two],
        [one, "-o", tmp_path / "x"],
        [tmp_path],
        [one, tmp_path, "-o", tmp_path / "x"],
    ):
        code, out, err = run(capsys, *arguments)
        assert code == USAGE and out == "" and err.count("\n") == 1
    code, _, err = run(capsys, one, one, "-o", tmp_path / "x")
    assert code == USAGE and "named twice" in err
    (tmp_path / "file").touch()
    code, _, err = run(capsys, one, two, "-o", tmp_path / "file" / "x.html")
    assert code == OUTPUT and err.count("\n") == 1

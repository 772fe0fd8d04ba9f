"""`detectkit compare`: the same network in two files, one that is worse, and files that do not fit."""

import json
import shutil
from pathlib import Path

import onnxruntime
import pytest

from detectkit.cli import main
from detectkit.files import short_names

USAGE, MODEL, OUTPUT = 2, 5, 6


@pytest.fixture
def run(capsys):
    """Runs `compare` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["compare", *map(str, arguments), "--gpus", "0"])
        return code, *capsys.readouterr()

    return call


def rows(out):
    """The cells of each model's row, by its name."""
    lines = out.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith("---")) + 1 :]
    return {line.split()[0]: line.split()[1:] for line in table if not line.startswith("wrote")}


def test_a_model_its_onnx_file_and_a_worse_one(run, tiny, write_spec, learnt, learnt_onnx, learn, tmp_path):
    worse = learn(tiny, noise=0.5)
    code, out, _ = run("-e", write_spec(tiny), learnt, learnt_onnx, worse, "-r", tmp_path / "out")
    assert code == 0 and "6 images" in out
    first, same, other = rows(out).values()
    # MiB, mAP, square, bar, ms, faster, agree
    assert first[1:4] == same[1:4] == ["100.00", "100.00", "100.00"]
    assert first[5] == "1.00" and first[6] == same[6] == "100.00"
    assert float(first[0]) == pytest.approx(learnt.stat().st_size / 2**20, abs=0.006)
    assert float(other[1]) < 100 and float(other[6]) < 100

    content = json.loads((tmp_path / "out" / "compare.json").read_text())["models"]
    assert [item["model"] for item in content] == [str(path) for path in (learnt, learnt_onnx, worse)]
    assert [item["kind"] for item in content] == ["model", "onnx", "model"]
    # On the CPU a model is timed as it would be deployed: no PyTorch.
    assert {item["runtime"] for item in content} == {f"ONNX Runtime {onnxruntime.__version__} (CPU)"}
    assert content[1]["mean_average_precision"] == pytest.approx(1)
    assert content[1]["agreement"]["mean_iou"] == pytest.approx(1, abs=1e-3)
    assert content[1]["agreement"]["pairs"] == content[1]["agreement"]["detections"] == 12
    assert all(item["network_seconds_per_image"] > 0 for item in content)
    assert f"{100 * content[2]['agreement']['share']:.2f}" == other[6]

    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<tr>") == 4 and page.count("data:image/png;base64,") == 2  # a picture a class
    assert all(f"<td>{name}</td>" in page for name in rows(out)) and "http" not in page


def test_without_a_folder_nothing_is_written(run, tiny, write_spec, learnt, tmp_path, monkeypatch):
    path = write_spec(tiny)
    monkeypatch.chdir(tmp_path)
    assert run("-e", path, learnt)[0] == 0
    assert [file.name for file in tmp_path.iterdir()] == ["spec.txt"]


def test_other_classes_are_known_before_anything_is_measured(run, tiny, write_spec, learnt, tmp_path):
    good = write_spec(tiny)
    other = tmp_path / "other.txt"
    other.write_text(good.read_text().replace('"bar"', '"pole"'))
    code, out, error = run("-e", other, learnt)
    assert code == MODEL and out == ""
    assert f"{learnt} detects square, bar; the spec is for square, pole" in error


def test_one_broken_file_among_good_ones(run, tiny, write_spec, learnt, learnt_onnx, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(learnt_onnx.read_bytes()[:5000])
    code, out, error = run("-e", write_spec(tiny), learnt, broken)
    assert code == MODEL and out == "" and error.count("\n") == 1 and str(broken) in error


def test_a_model_named_twice(run, tiny, write_spec, learnt, tmp_path):
    code, _, error = run("-e", write_spec(tiny), learnt, learnt)
    assert code == USAGE and f"{learnt} is named twice" in error
    copy = tmp_path / learnt.name
    shutil.copy(learnt, copy)
    code, out, _ = run("-e", write_spec(tiny), learnt, copy)
    assert code == 0 and list(rows(out)) == [f"{path.parent.name}/{path.name}" for path in (learnt, copy)]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b.onnx"], ["b.onnx"]),
        (["a/m.onnx", "b/m.onnx", "b/n.onnx"], ["a/m.onnx", "b/m.onnx", "n.onnx"]),
        (["run/weights/m", "/other/weights/m"], ["run/weights/m", "other/weights/m"]),
        (["/m", "/a/m"], ["/m", "a/m"]),  # one is the end of the other
    ],
)
def test_names_are_as_short_as_tells_them_apart(paths, names):
    assert short_names([Path(path) for path in paths]) == names


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_measured(
    run, tiny, write_spec, learnt, tmp_path
):
    (tmp_path / "file").write_text("")
    code, out, error = run("-e", write_spec(tiny), learnt, "-r", tmp_path / "file" / "out")
    assert (code, out) == (OUTPUT, "") and f"cannot write {tmp_path}/file/out/compare.json" in error


def test_images_without_labels(run, unlabelled, write_spec, learnt, learnt_onnx, tmp_path):
    code, out, error = run("-e", write_spec(unlabelled), learnt, learnt_onnx, "-r", tmp_path)
    assert code == 0 and [cells[1:4] for cells in rows(out).values()] == [["-", "-", "-"]] * 2
    assert "there is no mAP to compare, only size, time and agreement" in error
    content = json.loads((tmp_path / "compare.json").read_text())["models"]
    assert [item["mean_average_precision"] for item in content] == [None, None]
    assert "data:image/png" in (tmp_path / "compare.html").read_text()

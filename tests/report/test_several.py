"""Several runs side by side."""

import re
import shutil

import pytest

from detectkit import spec
from detectkit.errors import UsageError
from detectkit.report import compare_reports

from .test_single import sections


def test_two_runs(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    message = spec.loads((run / "spec.txt").read_text())
    message.training_config.num_epochs = 9
    message.augmentation_config.ClearField("color_augmentation")
    (other / "spec.txt").write_text(spec.dumps(message))
    path = other / "evaluate_retrained" / "results.json"
    path.write_text(path.read_text().replace("0.875", "0.5"))
    page = compare_reports([run, other], tmp_path / "out" / "page.html")
    assert page == tmp_path / "out" / "page.html"
    text = page.read_text()
    found = sections(text)
    assert list(found) == ["Models", "Specs", "Precision and recall", "Training"]
    assert "run: mAP 100.0\u00a0% float → 87.5" in re.sub("<[^>]+>", "", text)
    assert "other: mAP 100.0\u00a0% float → 50.0" in re.sub("<[^>]+>", "", text)
    assert found["Models"].count("<tr>") == 1 + 2 * 5 and found["Models"].count("<svg") == 1
    assert "<td>training_config.num_epochs</td><td>2</td><td>9</td>" in found["Specs"]
    assert "contrast_scale_max" in found["Specs"] and "batch_size_per_gpu" not in found["Specs"]
    assert found["Precision and recall"].count("<svg") == 2
    assert found["Training"].count("<svg") == 2 * 4  # train and retrain: cost, learning rate, mAP, a class


def test_times_of_different_machines_are_told(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    page = tmp_path / "page.html"
    assert (
        "Times on z80, 2 threads, of each run by itself." in compare_reports([run, other], page).read_text()
    )
    path = other / "latency" / "latency.json"
    path.write_text(path.read_text().replace("z80", "6502"))
    text = compare_reports([run, other], page).read_text()
    assert "different machines or settings: run on z80, 2 threads; other on 6502, 2 threads." in text


def test_runs_of_the_same_spec_with_little_in_them(run, tmp_path):
    for name in ("train", "retrain", "latency", *(path.name for path in run.glob("evaluate_*"))):
        shutil.rmtree(run / name)
    others = [shutil.copytree(run, tmp_path / name) for name in ("b", "c")]
    text = compare_reports([run, *others], tmp_path / "page.html").read_text()
    assert list(sections(text)) == ["Models", "Specs"]  # an engine that was built, and not measured
    assert "Nothing: their specs are the same." in text
    assert text.count("no model has been measured yet") == 3


def test_what_cannot_be_compared(run, tmp_path):
    output = tmp_path / "page.html"
    with pytest.raises(UsageError, match="two or more runs"):
        compare_reports([run], output)
    with pytest.raises(UsageError, match="named twice"):
        compare_reports([run, tmp_path / "x" / ".." / "run"], output)
    with pytest.raises(UsageError, match="is not the folder of a run"):
        compare_reports([run, tmp_path], output)
    assert not output.exists()

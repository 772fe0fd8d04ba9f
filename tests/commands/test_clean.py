"""`detectkit clean`: what it says, writes and refuses, and a run that cleans."""

import csv
import json

import pytest

from detectkit import spec
from detectkit.cli import main
from detectkit.errors import UsageError
from detectkit.pipeline.stages import chain_of
from tests.audit.conftest import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "kitti")


@pytest.fixture
def clean(folder, tmp_path):
    """Runs the command on the folder; the exit code."""
    path = tmp_path / "export.txt"
    path.write_text(spec.dumps(folder.export()))

    def run(*options):
        return main(["clean", "-e", str(path), "-r", str(tmp_path / "out"), *options])

    return run


def decisions(folder):
    with (folder / "cleaning.csv").open(encoding="utf-8-sig", newline="") as file:
        return [row["decision"] for row in csv.DictReader(file)]


def test_clean_data(clean, tmp_path, capsys):
    assert clean() == 0
    assert "nothing found in 40 images with 80 labels" in capsys.readouterr().out
    assert decisions(tmp_path / "out") == []


def test_findings_are_counted_listed_and_shown(clean, folder, tmp_path, capsys):
    folder.add("04", ("bar", 200, 10, 240, 26))
    folder.add("05", ("sqaure", 100, 80, 128, 110))
    assert clean() == 0
    out = capsys.readouterr().out
    assert "outside         Boxes outside the image         1" in out
    assert (
        f"{folder.labels / '04.txt'}:3: outside: bar (200, 10, 240, 26) is outside the image of 160x120"
        in out
    )
    assert "0 of 2 findings are decided on" in out and "as cleaning_file of the conversion" in out
    page = (tmp_path / "out" / "cleaning.html").read_text()
    assert page.count("<img ") == 2 and "http:" not in page and "https:" not in page
    assert json.loads((tmp_path / "out" / "cleaning.json").read_text())["kinds"] == [
        ["outside", "Boxes outside the image", 1],
        ["misspelt_class", "Misspelt classes", 1],
    ]


def test_kinds_are_accepted_and_stay_so(clean, folder, tmp_path):
    folder.add("04", ("bar", 200, 10, 240, 26))
    folder.add("05", ("sqaure", 100, 80, 128, 110))
    assert clean("--accept", "outside") == 0 and decisions(tmp_path / "out") == ["accept", ""]
    assert clean() == 0 and decisions(tmp_path / "out") == ["accept", ""]


def test_an_unknown_kind(clean, capsys):
    assert clean("--accept", "outsid") == 2
    assert "--accept outsid is no kind; they are unreadable_image, " in capsys.readouterr().err


def test_a_list_that_is_spoilt_is_not_written_over(clean, folder, tmp_path, capsys):
    folder.add("04", ("bar", 200, 10, 240, 26))
    clean()
    path = tmp_path / "out" / "cleaning.csv"
    path.write_text(path.read_text().replace("drop label,,", "drop label,drp label,"))
    before = path.read_text()
    assert clean() == 4 and path.read_text() == before
    assert f"{path}:2: decision 'drp label' is none" in capsys.readouterr().err


def test_an_inference_spec_is_refused(tmp_path, capsys):
    path = tmp_path / "infer.txt"
    path.write_text('inferencer_config { target_classes: "a" image_width: 32 image_height: 32 }')
    assert main(["clean", "-e", str(path)]) == 3


def test_a_model_suggests_by_its_classes(folder, tiny, learnt, write_spec, tmp_path, capsys):
    assert main(["clean", "-e", str(write_spec(tiny)), "-m", str(learnt), "-r", str(tmp_path / "m")]) == 0
    assert "24 images, 48 labels" in capsys.readouterr().out or decisions(tmp_path / "m") == []


# A run


def test_a_run_cleans_before_converting_and_after_training(tiny, tiny_root, tmp_path):
    tiny.data_cleaning_config.SetInParent()
    names = [stage.name for stage in chain_of(tiny, tmp_path).wanted]
    assert names[:4] == ["clean", "train", "evaluate_float", "suggest"]
    tiny.ClearField("data_cleaning_config")
    assert not {"clean", "suggest"} & {stage.name for stage in chain_of(tiny, tmp_path).wanted}


def test_a_list_that_a_stage_would_clear_away_is_refused(tiny, folder, tmp_path):
    """Its decisions would be lost when the stage is done again."""
    tiny.data_cleaning_config.SetInParent()
    config = tiny.dataset_export_config.add()
    config.CopyFrom(folder.export(f'cleaning_file: "{tmp_path}/run/clean/cleaning.csv"'))
    chain = chain_of(tiny, tmp_path / "run")
    for stage in [stage for stage in chain.wanted if stage.name in ("clean", "convert")]:
        with pytest.raises(UsageError, match="emptied when the stage is done again: copy it beside the spec"):
            stage.reads(chain)
    config.cleaning_file = str(tmp_path / "mine.csv")
    assert all(str(tmp_path / "mine.csv") in stage.reads(chain) for stage in chain.wanted[:2])


def test_the_stage_with_a_model_is_given_the_network(tiny, tmp_path):
    tiny.data_cleaning_config.SetInParent()
    chain = chain_of(tiny, tmp_path)
    (stage,) = [stage for stage in chain.wanted if stage.name == "suggest"]
    ((*_, option, model, _, folder),) = stage.commands(chain)
    assert option == "-m" and model.endswith("model-best.safetensors") and model in stage.reads(chain)
    assert folder == str(tmp_path / "suggest")

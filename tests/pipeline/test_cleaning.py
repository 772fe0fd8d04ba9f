"""The stages that look through the data, in a whole run of a small network."""

import csv
import json

from detectkit import spec
from detectkit.cli import main
from detectkit.pipeline.chain import SPEC

SMALL = {'arch: "resnet" num_layers: 10 use_batch_norm: true': 'arch: "squeezenet"'}


def rows(folder):
    with open(folder / "cleaning.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_looks_before_and_after_its_training(tmp_path, draw, capsys):
    """A copy of an image is found by the first, told on the terminal and in the report; both are done once."""
    place = draw(tmp_path)
    for folder, ending in ((place.images, ".png"), (place.labels, ".txt")):
        (folder / f"copy{ending}").write_bytes((folder / f"000{ending}").read_bytes())
    place.write("convert", "train", change=SMALL, more="data_cleaning_config { }\n")
    command = ["run", "-e", str(place.spec), "-r", str(place.folder), "--until", "suggest"]
    assert main(command) == 0
    copies = [row for row in rows(place.folder / "clean") if row["text"].startswith("the same file as")]
    assert [row["decision"] for row in copies] == [""]
    assert {
        json.loads((place.folder / name / "cleaning.json").read_text())["images"]
        for name in ("clean", "suggest")
    } == {13}
    told = f'{copies[0]["kind"]}: {place.folder / "clean" / "cleaning.html"}'
    assert told in capsys.readouterr().err
    assert "Data cleaning with the float model" in (place.folder / "report.html").read_text(encoding="utf-8")
    assert spec.load_experiment(place.folder / SPEC).HasField("data_cleaning_config")
    before = [(place.folder / name / "stage.json").stat().st_mtime_ns for name in ("clean", "suggest")]
    assert main(command) == 0
    assert [
        (place.folder / name / "stage.json").stat().st_mtime_ns for name in ("clean", "suggest")
    ] == before

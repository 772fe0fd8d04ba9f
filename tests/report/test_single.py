"""The report of one run: what it says of a whole one, and of any part of it."""

import json
import re
import shutil

import pytest

from detectkit.errors import UsageError
from detectkit.evaluation import details
from detectkit.report import is_run, summary, write_report

VERDICT = (
    "mAP 100.0\u00a0% float → 87.5\u00a0% retrained with 10.0\u00a0% of the parameters;"
    " INT8 100.0\u00a0%, 4.0x faster than float"
)
OF_A_STAGE = [
    "convert",
    "train",
    "evaluate_float",
    "prune",
    "evaluate_pruned",
    "retrain",
    "evaluate_retrained",
]
OF_A_STAGE += ["calibrate", "export", "evaluate_int8", "engine", "evaluate_engine", "latency"]


def keep(run, wanted, given=()):
    """Leave only the stages in run.json that `wanted` says by name, and what they make and the run was `given`."""
    info = json.loads((run / "run.json").read_text())
    stages = [item for item in info["stages"] if wanted(item[0])]
    products = [*given, *(item for item in info["products"] if wanted(item["path"].split("/")[0]))]
    (run / "run.json").write_text(json.dumps(info | {"stages": stages, "products": products}))


def sections(text):
    """The content of each section by its title."""
    parts = re.split(r'<h2 id="\w+">([^<]+)</h2>', text)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.fixture(scope="module")
def text(whole_run, tmp_path_factory):
    """The report of the whole run."""
    run = shutil.copytree(whole_run, tmp_path_factory.mktemp("text") / "run")
    path = write_report(run)
    assert path == run / "report.html"
    return path.read_text()


def test_a_whole_run(text):
    found = sections(text)
    assert VERDICT in text
    assert list(found) == [
        *(
            "Models",
            "Precision and recall",
            "Worst mistakes",
            "Data",
            "Training",
            "8 bits",
            "Files to deploy",
        ),
        *("Stages and commands", "Environment", "Spec"),
    ]
    assert len(text) < 400_000
    assert "12 of 13 stages done; evaluate_engine skipped: 0:13:00 wall time, 0:26:00 CPU time." in text
    assert ", on z80, 2 threads;" in found["Models"]
    assert "not measured: an engine runs on a GPU, and there is none here." in found["Models"]
    assert found["Models"].count("<svg") == 2 and found["Precision and recall"].count("<svg") == 2
    assert "18 images to train on, 6 for validation." in found["Data"]
    assert found["Data"].count("<svg") == 2 and found["Data"].count("data:image/jpeg") == 6
    # cost, learning rate, mAP, and the class that was measured
    assert found["Training"].count("<svg") == 4
    assert found["8 bits"].count("<tr>") == 1 + 10 and "1 of 12 hurt" in found["8 bits"]
    assert "engine/model.engine" in found["Files to deploy"] and "1.0 MiB" in found["Files to deploy"]
    assert "detectkit explain &#x27;a path/train&#x27;" in found["Stages and commands"]
    swatches = re.findall(r"var\(--(s\d)\)", found["Models"])[:5]
    assert swatches == ["s0", "s1", "s2", "s4", "s7"]  # float, pruned, retrained, INT8, engine
    assert "<h3>Stage by stage</h3>" in found["Stages and commands"]
    assert "z80" in found["Environment"] and "dataset_config" in found["Spec"]


def test_the_page_needs_nothing_else(text):
    links = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "<script" not in text and "@import" not in text and "url(http" not in text
    assert all(f'id="{link[1:]}"' in text for link in links if link[0] == "#" and link[1] not in "mpDh")


def test_every_picture_says_what_it_shows(text):
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', text))
    assert len(re.findall(r"<img [^>]*alt=", text)) == text.count("<img ")
    assert len(re.findall(r'<svg [^>]*aria-label="[^"]+"', text)) == text.count("<svg ")


def test_the_table_for_the_terminal(run):
    headers, rows = summary(run)
    assert headers == [
        *("model", "mAP %", "square %", "bar %", "parameters", "GMACs", "MiB", "ms", "faster", "agree %")
    ]
    assert rows[0] == [
        "float",
        "100.0",
        "100.0",
        "100.0",
        "1,000,000",
        "0.50",
        "1.0",
        "40.0",
        "1.0x",
        "100.0",
    ]
    assert rows[1][:2] + rows[1][4:9] == ["pruned", "25.0", "100,000", "0.50", "1.0", "20.0", "2.0x"]
    assert [row[0] for row in rows] == ["float", "pruned", "retrained", "INT8", "engine"]
    assert rows[3][4:] == [
        "100,000",
        "0.50",
        "1.0",
        "10.0",
        "4.0x",
        "100.0",
    ]  # the network is the retrained one
    assert rows[4] == ["engine", "-", "-", "-", "-", "-", "1.0", "-", "-", "-"]


def test_the_table_is_kept_as_data_until_something_is_newer(run, monkeypatch):
    write_report(run)
    content = json.loads((run / "report.json").read_text())
    assert content["verdict"] == VERDICT and content["models"][0]["parameters"] == 1_000_000
    before = summary(run)
    monkeypatch.setattr("detectkit.report.single.models", None)  # what takes seconds is not called
    assert summary(run) == before
    monkeypatch.undo()
    path = run / "evaluate_retrained" / "results.json"
    path.write_text(path.read_text().replace('_precision": 0.875', '_precision": 0.5'))
    assert summary(run)[1][2][1] == "50.0"


@pytest.mark.parametrize("count", [1, 6, 12])
def test_every_beginning_of_a_run_has_a_report(run, count):
    for name in OF_A_STAGE[count:]:
        shutil.rmtree(run / name)
    path = run / OF_A_STAGE[count - 1] / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "begun"}))
    text = write_report(run).read_text()
    assert f"{count - 1} of 13 stages done; {OF_A_STAGE[count - 1]} under way, or cut off" in text
    measured = sum(name.startswith("evaluate") for name in OF_A_STAGE[:count])
    assert ("No model has been measured yet." in text) == (measured == 0)


def test_stages_that_the_spec_no_longer_has_are_not_shown(run):
    """Their folders stay, and are those of the run's earlier spec."""
    keep(run, lambda name: name not in ("calibrate", "export", "evaluate_int8"))
    found = sections(write_report(run).read_text())
    assert "INT8" not in found["Models"] and "evaluate_int8" not in found["Stages and commands"]
    assert "retrained" in found["Models"] and "8 bits" not in found


def test_classes_are_compared_before_anything_is_timed(run):
    shutil.rmtree(run / "latency")
    models = sections(write_report(run).read_text())["Models"]
    assert models.count("<svg") == 1 and "AP % by class" in models and "by the stage latency" in models


def test_many_classes_have_a_table_of_their_own(run):
    """On a terminal and on a page 80 columns are none."""
    classes = {f"class {at}": {"average_precision": at / 100} for at in range(80)}
    for path in run.glob("evaluate_*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": classes}))
    headers, rows = summary(run)
    assert len(headers) == len(rows[0]) == 8
    models = sections(write_report(run).read_text())["Models"]
    assert "<summary>Average precision of 80 classes</summary>" in models
    assert (
        "<tr><th>class</th><th>float %</th><th>pruned %</th><th>retrained %</th><th>INT8 %</th></tr>"
        in models
    )
    assert "<tr><td>class 79</td>" + 4 * "<td>79.0</td>" + "</tr>" in models


def test_what_was_timed_in_what(run):
    """A GPU for the one and a CPU for the other is no comparison of networks: it is told."""
    path = run / "latency" / "latency.json"
    content = json.loads(path.read_text())
    for item in content["models"]:
        item["runtime"] = "ONNX Runtime 1 (CPU)"
    path.write_text(json.dumps(content | {"threads": 1}))
    assert ", on z80, 1 thread, in ONNX Runtime 1 (CPU); faster" in write_report(run).read_text()
    content["models"][0]["runtime"] = "PyTorch 2 (GPU)"
    path.write_text(json.dumps(content))
    text = write_report(run).read_text()
    assert "float in PyTorch 2 (GPU), pruned and retrained and INT8 in ONNX Runtime 1 (CPU); faster" in text


def test_what_the_evaluation_did_not_keep_is_told(run):
    path = run / "evaluate_int8" / "details.npz"
    details.save(path, details.load(path)._replace(left_out=1234))
    assert sections(write_report(run).read_text())["Worst mistakes"].count("1,234 detections") == 1


@pytest.mark.parametrize("protocol, told", [("KITTI", "moderate objects"), ("COCO", "curves at 0.5")])
def test_the_protocol_is_told(run, protocol, told):
    for path in run.glob("evaluate_*/results.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": protocol}))
    found = sections(write_report(run).read_text())
    assert f"mAP: as {protocol} counts" in found["Models"] and told in found["Precision and recall"]


def test_what_ails_the_last_float_model_and_how_it_knows_its_own_images(run):
    path = run / "evaluate_retrained" / "results.json"
    findings = [{"kind": "doubled", "class": "bar", "number": 0.1, "text": "boxes are <doubled>"}, 3, {}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"findings": findings}))
    ending = {"kpi": {"training mean average precision": 0.875}}
    with open(run / "train" / "status.jsonl", "a") as file:
        file.write(json.dumps(ending) + "\n")
    found = sections(write_report(run).read_text())
    assert "boxes are &lt;doubled&gt;" in found["What to change"]
    assert "On images that it was trained on, without augmentation, mAP: float 87.5 %." in found["Training"]


def told_by(run, **content):
    """The sections of a report whose last float model was evaluated with this in its results.json."""
    path = run / "evaluate_retrained" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    return sections(write_report(run).read_text())


def test_what_to_change(run):
    edits = [{"field": "training_config.num_epochs", "now": 2, "value": 4}]
    advice = [{"edits": edits, "gain": 0.123, "of": "mAP", "why": "so <far>"}, {"edits": [], "gain": 1}, 3]
    found = told_by(run, advice=advice)["What to change"]
    assert "training_config.num_epochs: 4 (2 now)" in found and "so &lt;far&gt;" in found
    assert found.count("up to +12.3 mAP") == found.count("up to") == 1 and "Of retrained." in found


@pytest.mark.parametrize("classes", [2, 80])
def test_kinds_of_mistakes_and_confusion(run, classes):
    names = [f"class{number}" for number in range(classes)]
    costs = {"wrong_class": 0.1, "misplaced": 0.02, "both": 0, "duplicate": 0, "background": 0, "missed": 0.3}
    counts = [[0] * (classes + 1) for _ in range(classes + 1)]
    counts[0][0], counts[0][1], counts[1][classes], counts[classes][1] = 17, 23, 5, 7
    found = told_by(
        run,
        mistakes={name: {"costs": costs} for name in names},
        mistake_costs=costs,
        mistake_costs_by_size=[{"up_to": 32} | costs, {"up_to": 96} | costs, {"up_to": None} | costs],
        confusion={"class_names": names, "counts": counts},
    )
    kinds, confusion = found["Kinds of mistakes"], found["Classes taken for others"]
    assert "wrong class" in kinds and "up to 32² pixels" in kinds and "30.0" in kinds
    assert ("All 80 classes" in kinds) == (classes == 80)
    assert "23" in confusion and ("17" in confusion) == (classes == 2)
    assert confusion.count("<tr>") == (4 if classes == 2 else 2)  # a matrix, or the one pair


@pytest.mark.parametrize("content", [3, [], {}, [[1]], {"class_names": ["a", "b"], "counts": [[1], 2, 3]}])
def test_what_mistakes_cost_may_be_damaged(run, content):
    names = ("advice", "mistakes", "mistake_costs", "mistake_costs_by_size", "confusion")
    found = told_by(run, **dict.fromkeys(names, content))
    assert "Kinds of mistakes" not in found and "Classes taken for others" not in found


def test_a_failed_stage_is_told_first(run):
    path = run / "retrain" / "stage.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "no space <left>"})
    )
    text = write_report(run).read_text()
    assert text.index("Failed in retrain: ") < text.index(VERDICT)
    assert "no space &lt;left&gt;" in text and "<left>" not in text


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"a": NaN', "\x00", '{"models": 3}', '{"layers": 3}']
)
def test_damaged_files_break_nothing(run, content):
    for path in sorted(run.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".npz", ".txt"):
            path.write_text(content)
    text = write_report(run).read_text()
    assert "No model has been measured yet." in text
    (run / "spec.txt").unlink()
    (run / "spec.txt").mkdir()
    assert "spec.txt cannot be read" in write_report(run).read_text()


def test_values_of_other_kinds_break_nothing(run):
    paths = [*run.glob("*/*.json"), run / "run.json"]
    for value in ("text", -1, {"a": [1]}, [None, {"model": 3, "sqnr": 1, "a": {}}]):
        for path in paths:
            path.write_text(json.dumps({name: value for name in json.loads(path.read_text())}))
        for name in ("train", "retrain"):
            line = {"epoch": 1, "graphical": value, "kpi": value, "categorical": value}
            (run / name / "status.jsonl").write_text(f"{json.dumps(value)}\n{json.dumps(line)}\n{{")
        assert "No model has been measured yet." in write_report(run).read_text()


def test_images_that_are_gone(run, tiny_root):
    """The records name a folder that is not there: no sample images, and the curves stay."""
    text = (run / "spec.txt").read_text()
    (run / "spec.txt").write_text(text.replace(f"{tiny_root}/kitti", "/gone"))
    found = sections(write_report(run).read_text())
    assert "The data cannot be read: 18 of 18 images are missing" in found["Data"]
    assert found["Precision and recall"].count("<svg") == 2


def test_a_run_that_only_evaluates(run):
    for name in OF_A_STAGE:
        if name != "evaluate_float":
            shutil.rmtree(run / name)
    model = {"key": "float", "title": "float", "role": "network", "path": "/models/mine.safetensors"}
    keep(run, lambda name: name == "evaluate_float", given=[model])
    text = write_report(run).read_text()
    assert '<p class="lead">mAP 100.0\u00a0%</p>' in text
    assert "All 1 stages are done" not in text and "The one stage is done" in text


def test_models_that_no_stage_measures_have_their_times(run, whole_run):
    times = run / "latency" / "latency.json"
    times.write_text(times.read_text().replace(str(whole_run), str(run)))
    keep(run, lambda name: not name.startswith("evaluate"))
    path = run / "engine" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed", "error": "no memory"}))
    headers, rows = summary(run)
    assert rows[0] == ["float", "-", "1,000,000", "0.50", "1.0", "40.0", "1.0x", "-"]
    assert [row[0] for row in rows] == ["float", "pruned", "retrained", "INT8", "engine"]
    models = sections(write_report(run).read_text())["Models"]
    assert "float: no stage of the run measures its accuracy." in models
    assert "engine: could not be made: no memory." in models


def test_no_run(tmp_path):
    assert not is_run(tmp_path) and not is_run(tmp_path / "none")
    for call in (write_report, summary):
        with pytest.raises(UsageError, match="is not the folder of a run"):
            call(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_images_without_labels_have_no_accuracy(tmp_path):
    folder = tmp_path / "run"
    (folder / "evaluate_float").mkdir(parents=True)
    content = {"images": 3, "mean_average_precision": None, "classes": {"car": {"average_precision": None}}}
    (folder / "evaluate_float" / "results.json").write_text(json.dumps(content))
    (folder / "run.json").write_text("{}")
    text = write_report(folder).read_text()
    assert "mAP -: the images that it was measured on have no labelled box of a class" in text
    assert "has no average precision" not in text and "not evaluated" not in text

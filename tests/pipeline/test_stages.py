"""A stage is one entry, and what it makes is found wherever it has to be; folders of runs from before that are read."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format

from detectkit import __version__, spec
from detectkit.cli import main
from detectkit.commands import run as command
from detectkit.pipeline import speed, stages
from detectkit.pipeline.basis import Estimate
from detectkit.pipeline.chain import RunStage
from detectkit.pipeline.measuring import evaluation
from detectkit.pipeline.products import NETWORKS, Product, Role, from_json, to_json
from detectkit.pipeline.speed import Speed
from detectkit.pipeline.stages import STAGES, chain_of
from detectkit.report import folder as folders, summary, write_report
from tests.pipeline.conftest import FakePlace, read, write

BEFORE = json.loads(Path(__file__).with_name("before.json").read_text())


# A stage that nothing in the package knows: it sharpens the network that training leaves


def sharpened(chain):
    return chain.path("sharpen", "sharp.safetensors")


SHARPEN = RunStage(
    name="sharpen",
    title="sharpening what was learnt",
    wanted=lambda chain: chain.trains,
    commands=lambda chain: [
        ["sharpen", chain.path("spec_sharp.txt"), chain.last(*NETWORKS, before="sharpen"), sharpened(chain)]
    ],
    spec=lambda chain: spec.only(chain.experiment, spec.Rule.DATA),
    reads=lambda chain: [chain.last(*NETWORKS, before="sharpen")],
    writes=lambda chain: [sharpened(chain)],
    takes=lambda chain, basis: Estimate(100 * basis.finding, 2 * basis.mib),
    makes=lambda chain: [
        Product("sharp", "sharpened", Role.NETWORK, sharpened(chain)),
        Product("edges", "how sharp each edge is", Role.FILE, chain.path("sharpen", "edges.txt")),
    ],
    specs=lambda chain: {"spec_sharp.txt": spec.only(chain.experiment, "random_seed")},
)


def execute(place):
    """What runs the commands of a run: those of a FakePlace, and `sharpen`."""

    def run(words):
        if words[0] != "sharpen":
            return place._execute(words)
        place.done.append("sharpen")
        seed = spec.Experiment()
        text_format.Parse(Path(words[1]).read_text(), seed)
        write(Path(words[3]), f"{seed.random_seed} {read(words[2])}")
        return write(Path(words[3]).with_name("edges.txt"), "sharp")

    return run


@pytest.fixture
def sharp(fake, monkeypatch):
    """A run with the stage after the training."""
    at = [stage.name for stage in STAGES].index("evaluate_float") + 1
    monkeypatch.setattr(stages, "STAGES", (*STAGES[:at], SHARPEN, evaluation("sharp"), *STAGES[at:]))
    monkeypatch.setattr(command, "_execute", execute(fake))
    monkeypatch.setattr(speed, "measure", lambda experiment, images: Speed(2**18, 1.0, 0.1, 0.0))  # 1 MiB
    monkeypatch.setattr(speed, "count_records", lambda experiment: (80, 20))
    return fake


def detectkit_run(place, *options):
    return main(["run", "-e", str(place.spec), "-r", str(place.folder), *options])


def test_the_time_of_a_stage_is_told_before(sharp, capsys):
    assert detectkit_run(sharp, "--dry-run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row and row[0] == "sharpen"]
    assert row[-2:] == ["0:00:10", "2.0"]  # 100 passes of 0.1 s, and twice the weights
    assert any(row and row[0] == "evaluate_sharp" for row in rows)


def test_a_stage_is_done_and_its_product_reported(sharp, capsys):
    assert detectkit_run(sharp) == 0
    at = sharp.done.index("sharpen")
    assert sharp.done[at - 1 : at + 3] == ["evaluate_float", "sharpen", "evaluate_sharp", "prune"]
    made = sharp.folder / "sharpen" / "sharp.safetensors"
    assert made.read_text().startswith("7 ")  # the seed, by the spec that the stage gives
    # What comes after goes on with the product, and is taught by it.
    assert sharp.state("prune")["commands"][0][3:5] == ["-m", str(made)]
    assert "sharpen/sharp.safetensors" in sharp.state("retrain")["reads"]
    assert str(made) in sharp.state("latency")["commands"][0]
    content = json.loads((sharp.folder / "run.json").read_text())
    assert [item for item in content["products"] if item["path"].startswith("sharpen/")] == [
        {"key": "sharp", "title": "sharpened", "role": "network", "path": "sharpen/sharp.safetensors"},
        {"key": "edges", "title": "how sharp each edge is", "role": "file", "path": "sharpen/edges.txt"},
    ]
    page = (sharp.folder / "report.html").read_text()
    assert "<td>sharpen/edges.txt</td>" in page and "how sharp each edge is" in page
    assert [row[0] for row in summary(sharp.folder)[1]] == [
        *("float", "sharpened", "pruned", "retrained", "INT8")
    ]
    capsys.readouterr()
    assert detectkit_run(sharp) == 0 and "nothing to do" in capsys.readouterr().out


def test_what_a_stage_makes_is_done_again_with_what_follows(sharp):
    detectkit_run(sharp)
    sharp.done = []
    (sharp.folder / "sharpen" / "sharp.safetensors").write_text("duller")
    assert detectkit_run(sharp, "--from", "sharpen", "--until", "sharpen") == 0
    assert list(dict.fromkeys(sharp.done)) == ["sharpen", "evaluate_sharp"]
    assert not (sharp.folder / "prune").exists() and (sharp.folder / "train").exists()


# Products


def test_products_are_found_where_the_folder_is_now(tmp_path):
    made = Product("float", "float", Role.NETWORK, str(tmp_path / "run/train/model.safetensors"))
    given = Product("float", "float", Role.NETWORK, "/models/mine.safetensors")
    content = to_json([made, given], tmp_path / "run")
    assert [item["path"] for item in content] == ["train/model.safetensors", "/models/mine.safetensors"]
    moved = from_json(json.loads(json.dumps(content)), tmp_path / "moved")
    assert [item.path for item in moved] == [str(tmp_path / "moved/train/model.safetensors"), given.path]


def test_products_of_another_version_are_left_out(tmp_path):
    content = to_json([Product("a", "b", Role.FILE, str(tmp_path / "c"))], tmp_path)
    others = [content[0] | {"role": "hologram"}, content[0] | {"path": 3}, {"key": "x"}, None]
    assert len(from_json([*others, content[0] | {"colour": "red"}], tmp_path)) == 1
    assert from_json(None, tmp_path) is None and from_json([], tmp_path) == []


@pytest.mark.parametrize("text", ["", "iterations: 2"])
def test_a_pruned_network_is_a_result_unless_it_is_trained_again(fake, text):
    fake.write("train", "prune", change={"target_params: 0.6": f"target_params: 0.6 {text}"})
    roles = {product.key: product.role for product in fake.chain.models}
    if text:
        assert roles == {"float": Role.NETWORK, "pruned": Role.NETWORK}
    else:
        assert roles == {"float": Role.NETWORK, "pruned": Role.PASSING, "retrained": Role.NETWORK}


def test_every_product_is_below_the_folder_of_its_stage(fake):
    fake.write(more="", change={"runtime: ONNXRUNTIME": "engine_config { }"})
    chain = chain_of(fake.chain.experiment, fake.folder)
    keys = [(product.role, product.key) for product in chain.products]
    assert len(set(keys)) == len(keys)
    for stage in chain.wanted:
        assert all(
            Path(product.path).is_relative_to(fake.folder / stage.name) for product in stage.makes(chain)
        )


# Folders from before run.json had products


@pytest.fixture
def before(tmp_path, monkeypatch):
    """The folder of a run as it was written then; its files and their fingerprints are those of a FakePlace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda file: None)
    place = FakePlace(Path("place"))
    place.spec.write_text("\n".join(BEFORE["spec.txt"]["lines"]))
    place.run()
    for name, content in BEFORE.items():
        if name != "spec.txt":
            (place.folder / name).write_text(json.dumps(content))
    (place.folder / ".fingerprints.json").unlink(missing_ok=True)
    return place


def test_a_run_from_before_is_done(before):
    assert before.actions() == {} and before.run() == []


def test_a_run_from_before_goes_on(before):
    before.change_state("train", status="begun")
    before.change_state("calibrate", status="failed", error="no space")
    before.spec.write_text(before.spec.read_text().replace("batches: 3", "batches: 4"))
    assert before.actions()["train"] == "goes on"
    assert before.run() == ["train", "calibrate", "export", "evaluate_int8", "latency"]
    assert before.state("train")["restarts"] == 1
    assert "products" in json.loads((before.folder / "run.json").read_text())


def test_a_run_from_before_is_reported_as_one_of_today(before):
    rows = summary(before.folder)[1]
    assert [row[0] for row in rows] == ["float", "pruned", "retrained", "INT8"]
    page = write_report(before.folder).read_text()
    assert "All 11 stages are done" in page and "<td>export/model_int8.onnx</td>" in page
    found = folders.read(before.folder).products
    before.run(first="latency")
    assert json.loads((before.folder / "run.json").read_text())["products"]
    assert folders.read(before.folder).products == found


# Folders that a newer detectkit has written


def test_a_run_of_a_newer_version_is_done_and_what_is_not_known_is_named(fake, caplog):
    fake.write()
    fake.run()
    fake.change_state("prune", written_by="0.9.1", mood="calm")
    assert fake.actions() == {} and fake.run() == []
    told = [line for line in caplog.messages if "without effect" in line]
    path = fake.folder / "prune" / "stage.json"
    assert told == [
        f"{path} was written by detectkit 0.9.1 (this is {__version__}): not known here, and without effect: mood"
    ]


def test_a_training_of_a_newer_version_goes_on(fake, caplog):
    fake.write()
    fake.run(last="train")
    fake.write(change={"num_epochs: 2": "num_epochs: 3"})
    written = fake.folder / "train" / "experiment_spec.txt"
    written.write_text(written.read_text() + "\nclock { ticks: 3 }")
    assert fake.actions()["train"] == "goes on"
    assert (
        f"{written} was written by another detectkit (this is {__version__}): not known here" in caplog.text
    )


def test_the_report_of_a_newer_version_says_what_it_passes_over(fake):
    fake.write()
    fake.run()
    path = fake.folder / "spec.txt"
    path.write_text(path.read_text() + "\nclock { ticks: 3 }")
    read_in = folders.read(fake.folder)
    assert read_in.experiment == spec.resolved(fake.chain.experiment)
    assert read_in.problems[0] == "spec.txt has fields of another version, without effect here: clock"
    about = json.loads((fake.folder / "run.json").read_text())
    about["products"][0]["role"] = "hologram"
    (fake.folder / "run.json").write_text(json.dumps(about | {"weather": "fair"}))
    assert {
        "run.json lists 1 products that are damaged or of another version: left out",
        "run.json has entries of another version, without effect here: weather",
    } <= set(folders.read(fake.folder).problems)
    path.write_text("clock {")
    assert any(line.startswith("spec.txt is not understood: ") for line in folders.read(fake.folder).problems)

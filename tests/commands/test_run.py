"""`detectkit run`: where it runs, what it prints, what it refuses; whole runs are in tests/pipeline."""

from pathlib import Path

import pytest

from detectkit import report
from detectkit.cli import main
from detectkit.commands import run as command
from detectkit.errors import DataError
from detectkit.pipeline import speed
from detectkit.pipeline.speed import Speed

USAGE, SPEC = 2, 3


@pytest.fixture
def place(tmp_path, tiny_text, monkeypatch):
    """The current folder, with a training spec whose network takes no time to measure, and commands that do nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.txt").write_text(tiny_text)
    monkeypatch.setattr(speed, "measure", lambda experiment, images: Speed(2**18, 1.0, 0.1, 0.0))  # 1 MiB
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    monkeypatch.setattr(report, "summary", lambda folder: (("model", "mAP %"), [("float", "12.5")]))
    return tmp_path


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """The command lines of the stages, which only leave the files that they have to."""
    found = []

    def execute(words):
        found.append(words)
        folder = tmp_path / words[words.index("-r") + 1]
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        for name in ("weights/model.safetensors", "weights/model-best.safetensors", "latency.json"):
            (folder / name).write_text("")
        (folder / "results.json").write_text('{"mean_average_precision": 0.125}')

    monkeypatch.setattr(command, "_execute", execute)
    return found


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_ends_with_the_table_and_the_report(place, executed, capsys):
    assert main(["run", "-e", "tiny.txt"]) == 0
    out, err = capsys.readouterr()
    assert [words[0] for words in executed] == ["train", "evaluate", "latency"]
    assert executed[0] == ["train", "-e", "results/tiny/spec.txt", "-r", "results/tiny/train"]
    lines = out.splitlines()
    assert lines[0].split() == ["stage", "what", "state", "why"]
    assert lines[2].split() == ["train", "training", "in", "float", "to", "do"]
    assert lines[-6:-2] == ["model  mAP %", "-----  -----", "float   12.5", ""]
    assert lines[-2] == "3 of 3 stages done in 0:00:00" and lines[-1] == "report: results/tiny/report.html"
    assert "evaluate_float: done in 0:00:00, mAP 12.50 %" in err


def test_a_teacher_that_is_not_there_is_known_before_any_work(place, executed, capsys):
    """Unless the run itself writes it."""
    own = Path("results/tiny/train/weights/model-best.safetensors")
    for teacher, code in (("none.safetensors", 5), (own, 0)):
        text = f'pruning_config {{ retraining {{ distillation {{ teacher_model_file: "{teacher}" }} }} }}'
        Path("taught.txt").write_text(Path("tiny.txt").read_text() + text)
        assert main(["run", "-e", "taught.txt", "-r", "results/tiny", "--until", "train"]) == code
    assert [words[0] for words in executed] == ["train", "evaluate"]
    error = capsys.readouterr().err
    assert (
        "pruning_config.retraining.distillation.teacher_model_file: there is no file none.safetensors"
        in error
    )


def test_the_second_time_there_is_nothing_to_do(place, executed, capsys):
    main(["run", "-e", "tiny.txt"])
    capsys.readouterr()
    assert main(["run", "-e", "tiny.txt"]) == 0 and len(executed) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("nothing to do: all 3 stages are done, and nothing they read has changed (")
    assert main(["run", "-e", "tiny.txt", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("nothing to do: all 3 stages are done")


@pytest.mark.parametrize("spelling", ["out", "./out/", "other/../out", "PLACE/out"])
def test_a_folder_is_the_same_however_it_is_named(place, executed, spelling):
    main(["run", "-e", "tiny.txt", "-r", "out"])
    assert main(["run", "-e", "tiny.txt", "-r", spelling.replace("PLACE", str(place))]) == 0
    assert len(executed) == 3


def test_the_key_of_an_account_is_written_nowhere(place, executed, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    text = (place / "tiny.txt").read_text()
    visualizer = 'training_config { visualizer { wandb_config { key: "s3cret" } }'
    (place / "tiny.txt").write_text(text.replace("training_config {", visualizer))
    assert main(["run", "-e", "tiny.txt"]) == 0
    assert command.os.environ["WANDB_API_KEY"] == "s3cret"
    monkeypatch.delenv("WANDB_API_KEY")
    written = [path for path in (place / "results").rglob("*") if path.is_file()]
    assert written and not any(b"s3cret" in path.read_bytes() for path in written)


def test_a_dry_run_tells_times_and_sizes_and_writes_nothing(place, executed, capsys):
    before = files(place)
    assert main(["run", "-e", "tiny.txt", "--dry-run"]) == 0
    assert files(place) == before and executed == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "what", "state", "about", "MiB", "why"]
    rows = {line.split()[0]: line.split() for line in lines[2:-2]}
    # 2 epochs of 18 images in batches of 4 at a second an image, and 2 validations of 6 images at 0.1 s
    assert rows["train"][-2] == "0:00:44" and rows["train"][-1] == "6.2"
    assert lines[-3].startswith("in all") and "GiB are free at results/tiny" in lines[-1]


def test_a_dry_run_warns_of_a_full_disk(place, monkeypatch, capsys):
    monkeypatch.setattr(command, "_free_mib", lambda folder: 5.0)
    assert main(["run", "-e", "tiny.txt", "--dry-run"]) == 0
    assert "WARNING: results/tiny: the run may need 6 MiB, and 5 are free" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--from", "prune"],
            "--from prune: the spec has no section for it; the stages are train, evaluate_float, latency",
        ),
        (
            ["--until", "x"],
            "--until x: there is no such stage; the stages are train, evaluate_float, latency",
        ),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_stages_that_cannot_be(place, executed, capsys, options, message, dry):
    assert main(["run", "-e", "tiny.txt", *options, *dry]) == USAGE
    assert capsys.readouterr().err == f"error: {message}\n" and executed == []


def test_a_broken_spec_makes_no_folder(place, capsys):
    (place / "tiny.txt").write_text("random_seed: x")
    before = files(place)
    assert main(["run", "-e", "tiny.txt"]) == SPEC
    assert capsys.readouterr().err.startswith("error: tiny.txt:1:14: ") and files(place) == before


def test_a_report_that_cannot_be_made_loses_nothing(place, executed, monkeypatch, capsys):
    def fail(folder):
        raise DataError("the pictures are gone")

    monkeypatch.setattr(report, "write_report", fail)
    assert main(["run", "-e", "tiny.txt"]) == 0
    assert "WARNING: no report: the pictures are gone" in capsys.readouterr().err


def test_a_report_that_breaks_loses_nothing(place, executed, monkeypatch, capsys):
    def fail(folder):
        raise KeyError("a bug")

    monkeypatch.setattr(report, "write_report", fail)
    monkeypatch.setattr(report, "summary", fail)
    assert main(["run", "-e", "tiny.txt"]) == 0 and len(executed) == 3
    assert "WARNING: no report: KeyError: 'a bug'" in capsys.readouterr().err


def test_a_report_that_a_kill_has_prevented_is_made(place, executed, monkeypatch):
    main(["run", "-e", "tiny.txt"])
    made = []
    monkeypatch.setattr(report, "write_report", made.append)
    assert main(["run", "-e", "tiny.txt"]) == 0 and len(executed) == 3 and len(made) == 1
    (made[0] / "report.html").write_text("")
    assert main(["run", "-e", "tiny.txt"]) == 0 and len(made) == 1


def test_no_key_is_shown_or_kept(place, executed, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "of the environment")
    text = (place / "tiny.txt").read_text()
    visualizer = 'training_config { visualizer { wandb_config { key: "s3cret" } }'
    (place / "tiny.txt").write_text(text.replace("training_config {", visualizer))
    assert main(["run", "-e", "tiny.txt", "-k", "s3cret"]) == 0
    (place / "results" / "tiny" / "train" / "experiment_spec.txt").write_text(
        (place / "results" / "tiny" / "spec.txt").read_text()
    )
    (place / "tiny.txt").write_text(
        text.replace("training_config {", visualizer).replace("num_epochs: 2", "num_epochs: 3")
    )
    assert main(["run", "-e", "tiny.txt", "-k", "s3cret"]) == 0
    out, err = capsys.readouterr()
    assert "num_epochs was 2, is 3" in out and "s3cret" not in out + err
    written = [path for path in (place / "results").rglob("*") if path.is_file()]
    assert not any(b"s3cret" in path.read_bytes() for path in written)

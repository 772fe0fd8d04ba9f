"""The command line itself: help, version, names of commands, and what it says to a wrong line."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detectkit import __version__
from detectkit.cli import main
from detectkit.commands.tree import ALIASES, COMMANDS, parse, whole
from detectkit.versions import processor, versions

SPECS = Path(__file__).parent / "spec"
USAGE_ERROR = 2

Capture = pytest.CaptureFixture[str]


def printed(arguments: list[str], captured: Capture) -> str:
    """What a command that ends early and well prints."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    return captured.readouterr().out


def complaint(arguments: list[str], captured: Capture) -> str:
    """The one line that answers a wrong command line."""
    assert main(arguments) == USAGE_ERROR
    error = captured.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_answers_at_once_and_without_torch(arguments: list[str]) -> None:
    code = (
        "import resource, sys, json\n"
        "from detectkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(json.dumps([used.ru_utime + used.ru_stime, sorted({'torch', 'numpy', 'PIL'} & sys.modules.keys())]))\n"
    )
    command = [sys.executable, "-c", code, *arguments]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    seconds, heavy = zip(*(json.loads(run.splitlines()[-1]) for run in runs))
    assert min(seconds) < 0.5 and not any(heavy)


def test_help_lists_every_command(capsys: Capture) -> None:
    text = printed(["-h"], capsys)
    for name in (*COMMANDS, *ALIASES):
        assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("name", [*COMMANDS, *ALIASES])
def test_help_of_a_command_tells_what_each_option_is_for(name: str, capsys: Capture) -> None:
    text = printed([name, "--help"], capsys)
    assert text.startswith(f"usage: detectkit {name} ")
    module = importlib.import_module(f"detectkit.commands.{ALIASES.get(name, name).replace('-', '_')}")
    assert " ".join(module.__doc__.split()) in " ".join(text.split())
    options = text.split("options:\n")[1]
    entries = re.split(r"\n(?=  -)", options.rstrip())
    assert {"-h, --help", "-k KEY, --key KEY", "-v, --verbose"} <= {
        entry[2:].split("  ")[0] for entry in entries
    }
    for entry in entries:
        assert re.search(r"(\s{2,}|\n\s+)\w", entry[2:]), f"no word on {entry}"


def test_version(capsys: Capture) -> None:
    """The first line is detectkit's own, for scripts; the others are what `versions()` gives to the report."""
    lines = printed(["--version"], capsys).splitlines()
    assert lines[0] == f"detectkit {__version__}"
    names = ("Python", "platform", "torch", "torchvision", "onnx", "onnxruntime", "protobuf", "TensorRT")
    assert [line.split()[0] for line in lines[1:]] == list(names)
    assert lines == [f"{name} {version}" for name, version in versions().items()]


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    found = versions()
    assert found["Python"] == "{}.{}.{}".format(*sys.version_info)
    assert found["torch"].startswith(torch.__version__.split("+")[0])
    assert found["torch"].endswith(f"(CUDA {torch.version.cuda})" if torch.version.cuda else "(no CUDA)")

    installed = {"onnxruntime-gpu": "1.31.1", "tensorrt": "10.3.0", "tensorrt-rtx": "1.2.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = versions()
    assert found["torch"] == found["onnx"] == "not installed"
    assert found["onnxruntime"] == "1.31.1 (onnxruntime-gpu)" and found["TensorRT"] == "10.3.0"
    del installed["tensorrt"]
    assert versions()["TensorRT"] == "1.2.0 (tensorrt-rtx)"


def test_the_name_of_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("detectkit.versions.CPU_INFO", tmp_path / "cpuinfo")
    assert processor() != ""  # where the system has no such file
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel\t\t: 79\nmodel name\t: Some CPU @ 2.20GHz\n")
    assert processor() == "Some CPU @ 2.20GHz"


def test_the_whole_tree_has_every_command_with_its_options() -> None:
    """The tree that completion reads understands what the parser of a single command understands."""
    parser = whole()
    for line, _ in TLT_LINES:
        args = vars(parser.parse_args(line.split()))
        assert args == vars(parse(line.split())[1])


def test_unknown_command(capsys: Capture) -> None:
    assert "there is no command trian; did you mean train?" in complaint(["trian", "-e", "spec.txt"], capsys)
    assert f"the commands are {', '.join(COMMANDS)}" in complaint(["xyz"], capsys)
    assert "COMMAND; `detectkit --help` shows" in complaint([], capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-e", "spec.txt"], "the following arguments are required: -r/--results_dir"),
        (["-e", "spec.txt", "-r", "results", "--gpu", "1"], "unrecognized arguments: --gpu 1"),
        (["-e", "spec.txt", "-r", "results", "--gpus", "one"], "argument --gpus: invalid int value: 'one'"),
        (["-e", "spec.txt", "-r"], "argument -r/--results_dir: expected one argument"),
    ],
)
def test_wrong_options(arguments: list[str], words: str, capsys: Capture) -> None:
    assert f"{words}; `detectkit train --help` shows" in complaint(["train", *arguments], capsys)


def test_wrong_values(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "spec.txt").write_text((SPECS / "kitti_train.txt").read_text())
    line = ["evaluate", "-e", str(tmp_path / "spec.txt")]
    assert "give a model (-m MODEL), or detections" in complaint(line, capsys)
    assert "--detections and --labels belong together" in complaint([*line, "--detections", "found"], capsys)
    assert "--tune-clustering needs a model" in complaint(
        [*line, "--detections", "a", "--labels", "b", "--tune-clustering"], capsys
    )


@pytest.mark.parametrize("alias", ALIASES)
def test_names_of_tlt_are_the_same_commands(alias: str, capsys: Capture) -> None:
    texts = [printed([name, "-h"], capsys).split() for name in (alias, ALIASES[alias])]
    assert texts[0][2:3] == [alias] and texts[0][3:] == texts[1][3:]


def test_a_key_is_accepted_and_said_to_do_nothing(capsys: Capture) -> None:
    line = ["check", "-e", str(SPECS / "kitti_infer.txt"), "--spec-only"]
    assert main([*line, "-k", "tlt_encode"]) == 0
    assert "WARNING: -k: files are not encrypted here, the key is not used\n" in capsys.readouterr().err
    assert main(line) == 0
    assert "-k" not in capsys.readouterr().err


TLT_LINES = [
    ("dataset_convert -d s.txt -o out -f 0 -v -r dir", []),
    ("dataset_convert --dataset_export_spec s.txt --output_filename out --validation_fold 0 --verbose", []),
    ("dataset_convert -d s.txt -o out --results_dir dir --log_file log.txt", []),
    ("train -e s.txt -r dir -n name -k key -v", ["-k: files are not encrypted"]),
    (
        "train --experiment_spec_file s.txt --results_dir dir --model_name name --key key --verbose",
        ["--key: "],
    ),
    ("train --experiment_spec s.txt -r dir --gpus 1 --gpu_index 0 --log_file log.txt", []),
    ("train -e s.txt -r dir --use_amp", ["--use_amp: not used; put training_precision"]),
    ("train -e s.txt -r dir --enable_determinism -np 1", ["--enable_determinism: ", "-np: not used"]),
    ("train -e s.txt -r dir --num_processes 1", ["--num_processes: not used"]),
    ("evaluate -e s.txt -m model -r dir -f tlt --use_training_set -k key -v", ["-k: "]),
    ("evaluate --experiment_spec s.txt --model_path model --results_dir dir --framework tensorrt", []),
    ("evaluate --experiment_spec_file s.txt -m engine -f tensorrt", []),
    (
        "evaluate -e s.txt -m model -i images -l labels -b 4",
        ["-i: ", "-l: ", "-b: not used; images, labels and batch"],
    ),
    (
        "evaluate -e s.txt -m m --image_dir i --label_dir l --batch_size 4",
        ["--image_dir: ", "--label_dir: ", "--b"],
    ),
    ("inference -e s.txt -i images -r dir -b 4 -m model -k key -v", ["-k: "]),
    ("inference --experiment_spec s.txt --image_dir images --results_dir dir --batch_size 4 --verbosity", []),
    ("inference --experiment_spec_file s.txt -i images -r dir --model_path model --key key", ["--key: "]),
    ("calibration_tensorfile -e s.txt -o out -m 10 --use_validation_set -v -k key", ["-k: "]),
    ("calibration_tensorfile --experiment_spec_file s.txt --output_path out --max_batches 10 --verbose", []),
]


@pytest.mark.parametrize(("line", "ignored"), TLT_LINES)
def test_command_lines_of_tlt_are_understood(line: str, ignored: list[str]) -> None:
    words = line.split()
    _, args = parse(words)
    assert len(args.ignored) == len(ignored)
    assert all(said.startswith(start) for said, start in zip(args.ignored, ignored))
    assert args.verbose == bool({"-v", "--verbose", "--verbosity"} & set(words))
    path = args.dataset_export_spec if words[0] == "dataset_convert" else args.experiment_spec
    assert path == Path("s.txt")


def test_log_lines_are_appended_to_a_file(capsys: Capture, tmp_path: Path) -> None:
    line = ["check", "-e", str(SPECS / "kitti_infer.txt"), "--spec-only", "-k", "key"]
    for _ in range(2):
        assert main([*line, "--log_file", str(tmp_path / "log.txt")]) == 0
        assert "WARNING: -k: files are not encrypted" in capsys.readouterr().err
    assert main(line) == 0
    assert (tmp_path / "log.txt").read_text().count("WARNING: -k: files are not encrypted") == 2
    assert main([*line, "--log_file", str(tmp_path / "no" / "log.txt")]) == 6
    assert f"error: {tmp_path}/no/log.txt: No such file or directory" in capsys.readouterr().err


def test_gpu_memory_that_runs_out(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    error: Exception = torch.cuda.OutOfMemoryError("CUDA out of memory")

    def fails(path: str) -> str:
        raise error

    monkeypatch.setattr("detectkit.spec.explain", fails)
    assert main(["explain"]) == 1
    expected = "error: out of GPU memory: lower training_config.batch_size_per_gpu (or -b)\n"
    assert capsys.readouterr().err == expected
    error = RuntimeError("of another kind")
    with pytest.raises(RuntimeError, match="of another kind"):
        main(["explain"])


def test_a_reader_that_leaves_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "detectkit", "explain"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")


def test_an_error_of_the_system_names_the_file(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: str) -> str:
        raise OSError(28, os.strerror(28), "results/file")

    monkeypatch.setattr("detectkit.spec.explain", fails)
    assert main(["explain"]) == 6
    assert capsys.readouterr().err == "error: results/file: No space left on device\n"

"""`detectkit engine` as a person runs it, with the real TensorRT for RTX."""

import json
from types import SimpleNamespace

import onnx
import pytest

from detectkit import spec
from detectkit.cli import main
from detectkit.commands import engine as command
from detectkit.commands.settings import Settings
from detectkit.deploy import engine
from detectkit.deploy.cache import write_cache
from detectkit.deploy.qdq import quantize, table_from_cache
from detectkit.deploy.scales import save_table
from detectkit.errors import ModelError
from detectkit.model import header
from detectkit.runtimes import tensorrt
from detectkit.runtimes.tensorrt import RTX, library, load_sidecar

USAGE, SPEC, MODEL = 2, 3, 5
AMPERE = ["sm80", "sm86", "sm89", "sm120", "sm121"]


@pytest.fixture
def place(tmp_path, monkeypatch, learnt_onnx):
    """The current folder, with model.onnx and its ranges in scales.json."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load(learnt_onnx)
    onnx.save(model, "model.onnx")
    names = ["images", *(name for node in model.graph.node for name in node.output)]
    save_table("scales.json", table_from_cache(model, dict.fromkeys(names, 4.0)))
    return tmp_path


@pytest.fixture
def run(capfd):
    """Runs `engine` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["engine", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def test_an_engine_and_the_file_beside_it(run, place, tiny):
    code, out, err = run(
        "-m", "model.onnx", "--min_batch_size", 1, "--opt_batch_size", 2, "--max_batch_size", 4
    )
    assert code == 0
    found = load_sidecar("model.engine")
    assert (found.builder, found.version, found.data_type) == (RTX, library(RTX).version, "fp32")
    assert (found.targets, found.batch, found.height, found.width) == (AMPERE, (1, 2, 4), 64, 96)
    stored = header.loads(json.dumps(found.header), "model.engine.json")
    assert (stored.classes, stored.channels) == (["square", "bar"], 3)
    assert stored.spec.augmentation_config.preprocessing.output_image_width == 96
    size = (place / "model.engine").stat().st_size
    assert f"wrote model.engine: {size / 2**20:.1f} MiB, " in out
    assert (
        " layers in fp32, batch 1 to 4, best at 2, images 96x64, for sm80, sm86, sm89, sm120, sm121 (" in out
    )
    assert "wrote model.engine.json: " in out and "detectkit evaluate -e SPEC -m model.engine" in out
    assert err == f"INFO: building with {library(RTX).title}\n"
    assert sorted(path.name for path in place.iterdir()) == [
        "model.engine",
        "model.engine.json",
        "model.onnx",
        "scales.json",
    ]


def test_eight_bits_for_two_gpus(run, place):
    code, out, _ = run(
        *("-m", "model.onnx", "-o", "out/small", "--data_type", "int8", "--calibration-cache", "scales.json"),
        *("--target", "sm86,sm89", "--max_workspace_size", 0.5, "-r", "logs"),
    )
    assert code == 0 and "wrote out/small.engine: " in out and " in int8, batch 1, " in out
    found = load_sidecar("out/small.engine")
    assert (found.data_type, found.targets, found.batch) == ("int8", ["sm86", "sm89"], (1, 1, 1))
    records = [json.loads(line) for line in (place / "logs/status.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["STARTED", "SUCCESS"]
    assert records[1]["kpi"] == {"size": (place / "out/small.engine").stat().st_size / 2**20}


def test_a_command_line_of_tlt(place, capfd, tiny, write_spec):
    model = onnx.load("model.onnx")
    names = ["images", *(name for node in model.graph.node for name in node.output)]
    table = table_from_cache(model, dict.fromkeys(names, 4.0))
    write_cache("cal.bin", table, graph=model)
    line = (
        "gen_trt_engine -m model.onnx -k key -e spec.txt --data_type int8 --cal_cache_file cal.bin --batches 10 --batch_size 8"
        " --cal_image_dir images --engine_file model.trt --max_batch_size 8 --max_workspace_size 1073741824 -s -r logs"
    )
    write_spec(tiny)
    assert main(line.split()) == 0
    out, err = capfd.readouterr()
    assert "wrote model.trt: " in out and load_sidecar("model.trt").batch == (1, 8, 8)
    warnings = [
        line.removeprefix("WARNING: ").split(":")[0] for line in err.splitlines() if "WARNING" in line
    ]
    assert warnings == ["-k", "--batches", "--batch_size", "--cal_image_dir"]


def test_options_that_do_not_go_together_are_one_message(run, place):
    for arguments, message in (
        (("-m", "model.safetensors"), "engines are built from .onnx models, which detectkit export writes"),
        (("-m", "model.onnx", "-o", "."), "-o . is a folder: name a file in it"),
        (("-m", "model.onnx", "--target", "sm87"), "--target sm87: TensorRT for RTX"),
        (("-m", "model.onnx", "--max_workspace_size", 0), "--max_workspace_size 0: must be above 0"),
        (("-m", "model.onnx", "--max_workspace_size", "nan"), "--max_workspace_size nan: must be above 0"),
        (("-m", "model.onnx", "--max_workspace_size", "inf"), "--max_workspace_size inf: must be above 0"),
        (("-m", "model.onnx", "--max_workspace_size", "1e30"), "--max_workspace_size 1e+30: must be above 0"),
        (("-m", "model.onnx", "--min_batch_size", 4, "--max_batch_size", 2), "batch sizes 4, 2, 2: "),
        (("-m", "model.onnx", "--data_type", "int8"), "has no ranges inside; give --calibration-cache"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (USAGE, "") and message in err.splitlines()[-1]
    assert sorted(path.name for path in place.iterdir()) == ["model.onnx", "scales.json"]


def test_models_that_cannot_be_used_are_one_message(run, place, learnt_onnx):
    model = onnx.load("model.onnx")
    content = (place / "model.onnx").read_bytes()
    (place / "cut.onnx").write_bytes(content[: len(content) // 2])
    integers = quantize(
        model, table_from_cache(model, {"images": 1.0} | ranges(model)), runtime="onnxruntime"
    )
    onnx.save(integers, "integers.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    for name, message in (
        ("none.onnx", "cannot read none.onnx: No such file or directory"),
        ("cut.onnx", "cut.onnx is no ONNX model, or damaged"),
        ("foreign.onnx", "foreign.onnx is an ONNX model without a detectkit spec"),
        ("integers.onnx", "integers.onnx is rounded to 8 bits for ONNX Runtime"),
    ):
        code, out, err = run("-m", name, "-o", "x.engine", "-r", "logs")
        assert (code, out) == (MODEL, "") and message in err.splitlines()[-1]
        last = (place / "logs/status.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["status"] == "FAILURE" and message in json.loads(last)["message"]
    assert not (place / "x.engine").exists() and not (place / "x.engine.json").exists()


def ranges(model):
    return {name: 4.0 for node in model.graph.node for name in node.output}


def test_no_library_is_one_message(run, place, monkeypatch):
    def nothing(name=None):
        raise ModelError("there is no TensorRT here: pip install it")

    monkeypatch.setattr(tensorrt, "library", nothing)
    code, out, err = run("-m", "model.onnx")
    assert (code, out, err) == (MODEL, "", "error: there is no TensorRT here: pip install it\n")


def test_a_timing_cache_is_not_written_where_nothing_is_timed(run, place):
    code, _, err = run("-m", "model.onnx", "--timing-cache", "times.bin")
    assert code == 0 and "WARNING: --timing-cache is not used: TensorRT for RTX" in err
    assert not (place / "times.bin").exists()
    code, _, err = run("-m", "model.onnx", "--timing-cache", ".")
    assert code == MODEL and "cannot read the timing cache ." in err


# export_config.engine_config


@pytest.fixture
def built(monkeypatch):
    """What the real builder was asked for."""
    asked = []
    build = engine.build

    def spy(model, **options):
        asked.append(options)
        return build(model, **options)

    monkeypatch.setattr(engine, "build", spy)
    return asked


@pytest.mark.spec_field(
    "EngineConfig.targets",
    "EngineConfig.min_batch_size",
    "EngineConfig.opt_batch_size",
    "EngineConfig.max_batch_size",
    "EngineConfig.max_workspace_size",
)
def test_the_spec_says_how(run, place, tiny, write_spec, built):
    config = tiny.export_config.engine_config
    config.targets[:] = ["sm86", "sm89"]
    config.min_batch_size, config.opt_batch_size, config.max_batch_size = 2, 3, 4
    config.max_workspace_size = 0.5
    path = write_spec(tiny)
    code, out, _ = run("-e", path, "-m", "model.onnx")
    found = load_sidecar("model.engine")
    assert (code, found.targets, found.batch) == (0, ["sm86", "sm89"], (2, 3, 4))
    assert built[0]["workspace_gib"] == 0.5
    assert out.endswith(f"detectkit evaluate -e {path} -m model.engine\n")
    options = ("--target", "sm89", "--max_batch_size", 8, "--max_workspace_size", 2**30)
    assert run("-e", path, "-m", "model.onnx", *options)[0] == 0
    found = load_sidecar("model.engine")
    assert (found.targets, found.batch, built[1]["workspace_gib"]) == (["sm89"], (2, 3, 8), 1.0)


@pytest.mark.parametrize(
    "fields, batch",
    [
        ({}, None),
        ({"min_batch_size": 0, "opt_batch_size": 0, "max_batch_size": 0, "max_workspace_size": 0}, None),
        ({"max_batch_size": 4}, (1, 4, 4)),
        ({"opt_batch_size": 4}, (1, 4, 4)),
        ({"min_batch_size": 2, "opt_batch_size": 1}, (2, 1, 2)),
        ({"min_batch_size": 2}, (2, 2, 2)),
    ],
)
def test_what_the_spec_leaves_out(fields, batch):
    args = SimpleNamespace(**dict.fromkeys(command.OPTIONS))
    settings = Settings(args, spec.EngineConfig(**fields), "engine_config", command.OPTIONS)
    assert command._batch(settings) == batch and command._workspace(settings) is None


def test_a_file_of_a_fixed_batch_and_a_spec_without_batches(run, place, tiny, write_spec, learnt, as_onnx):
    onnx.save(as_onnx(learnt, batch=3), "three.onnx")
    tiny.export_config.engine_config.targets[:] = ["sm86"]
    assert run("-e", write_spec(tiny), "-m", "three.onnx")[0] == 0
    assert load_sidecar("three.engine").batch == (3, 3, 3)
    tiny.export_config.engine_config.max_batch_size = 4
    code, _, error = run("-e", write_spec(tiny), "-m", "three.onnx")
    assert code == USAGE and error.splitlines()[-1] == (
        "error: three.onnx has a fixed batch of 3: give no other batch sizes (--min_batch_size, --opt_batch_size,"
        " export_config.engine_config.max_batch_size), or export it without --static_batch_size"
    )


def test_errors_name_the_field(run, place, tiny, write_spec):
    section, config = "export_config.engine_config", tiny.export_config.engine_config
    config.targets[:], config.opt_batch_size, config.max_batch_size = ["sm87"], 2, 4
    path = write_spec(tiny)
    config.max_workspace_size = 1e30
    for options, message in (
        ((), f"{section}.targets sm87: TensorRT for RTX"),
        (("--target", "sm88"), "--target sm88: TensorRT for RTX"),
        (
            ("--max_batch_size", 1, "--target", "sm86"),
            f"batch sizes 1, 2, 1: --min_batch_size, {section}.opt_batch_size and --max_batch_size must be 1",
        ),
    ):
        code, out, error = run("-e", path, "-m", "model.onnx", *options)
        assert (code, out) == (USAGE, "") and error.splitlines()[-1].startswith(f"error: {message}")
    code, _, error = run("-e", write_spec(tiny), "-m", "model.onnx")
    assert code == USAGE and f"error: {section}.max_workspace_size 1e+30: must be above 0" in error
    code, _, error = run("-e", "none.txt", "-m", "model.onnx")
    assert code == SPEC and error.startswith("error: none.txt: there is no such file")

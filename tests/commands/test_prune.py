"""`detectkit prune` as a person runs it, on a ResNet10 with random features; what it prints is compared with the files.

Where a test does not look at times, exporting and measuring are replaced by counting.
"""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detectkit import spec
from detectkit.cli import main
from detectkit.compress import accuracy, sweep
from detectkit.deploy import stopwatch
from detectkit.model import checkpoint
from detectkit.model.detector import gmacs, parameters
from detectkit.spec import PruningConfig

USAGE, SPEC, DATA, MODEL, OUTPUT = 2, 3, 4, 5, 6


def figure(model):
    """The number of parameters that stands for an exported model."""
    return int(model)


def count_for_time(monkeypatch):
    """A network takes as many seconds as it has parameters."""
    monkeypatch.setattr(stopwatch, "to_onnx", lambda network, **_: str(parameters(network)).encode())
    monkeypatch.setattr(stopwatch, "onnx_run", lambda model, **_: model)
    monkeypatch.setattr(stopwatch, "latencies", lambda models, **_: [figure(model) for model in models])


@pytest.fixture
def run(capsys):
    """Runs `prune` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["prune", *map(str, arguments), "--gpus", "0"])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def quick(run, monkeypatch):
    """As `run`, without measuring times."""
    count_for_time(monkeypatch)
    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def norms(path, name):
    """The normalised norms of the filters of a layer, from the file."""
    weight = checkpoint.load(path).detector.get_submodule(name).weight
    values = weight.detach().double().square().sum((1, 2, 3)).sqrt()
    return values / values.max()


def widths(path):
    network = checkpoint.load(path).detector
    return {
        name: len(layer.weight) for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)
    }


def printed_widths(out):
    """Before and after, from the table by layer."""
    rows = re.findall(r"^(\S+) +(\d+) +(\d+)$", out, re.MULTILINE)
    return {name: (int(before), int(after)) for name, before, after in rows}


def printed(out, row):
    """Before, after and their ratio, from the table of totals."""
    (line,) = [line for line in out.splitlines() if line.startswith(row)]
    return [float(value.replace(",", "")) for value in line[len(row) :].split()]


def complaint(error):
    """The one error of a command that failed."""
    assert "Traceback" not in error and error.count("error: ") == 1
    return error[error.index("error: ") + len("error: ") :]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


INNER = "backbone.layer3.0.conv1"  # a group of its own


def rounded(values, threshold, step=8, least=16):
    count = max(int((values > threshold).sum()), least)
    return min(-(-count // step) * step, len(values))


def test_what_is_printed_is_what_is_in_the_files(run, learnt, place, monkeypatch):
    """With real exports and times."""
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0)  # five rounds are enough
    code, out, error = run("-m", learnt, "-o", "out/small", "-pth", 0.95, "-r", "status")
    assert code == 0
    small = place / "out/small.safetensors"
    before, after = widths(learnt), widths(small)
    assert printed_widths(out) == {name: (before[name], after[name]) for name in before}
    assert after[INNER] == rounded(norms(learnt, INNER), 0.95) < before[INNER]
    assert after["output_cov"] == 2 and after["output_bbox"] == 8
    networks = [checkpoint.load(path).detector for path in (learnt, small)]
    counts = [parameters(network) for network in networks]
    ratio = counts[1] / counts[0]
    assert printed(out, "parameters") == [*counts, pytest.approx(ratio, abs=5e-5)]
    macs = [gmacs(network, 64, 96) for network in networks]
    assert printed(out, "GMACs an image") == pytest.approx([*macs, macs[1] / macs[0]], abs=5e-4)
    sizes = [path.stat().st_size / 2**20 for path in (learnt, small)]
    assert printed(out, "file, MiB") == pytest.approx([*sizes, sizes[1] / sizes[0]], abs=5e-4)
    slow, fast, share = printed(out, "ONNX Runtime, ms an image")
    assert 0 < fast and 0 < slow < 1000 and share == pytest.approx(fast / slow, abs=2e-3)
    assert f"Pruning ratio (pruned model / original model): {ratio:.6f}; removed: {1 - ratio:.2%}" in out
    assert "at 96x64" in out and "threshold 0.95" in error
    assert out.endswith(
        "wrote out/small.safetensors, and out/small_retrain.txt: the spec with pretrained_model_file and load_graph set, for 4"
        f" epochs in the place of 2, and taught by {learnt}, which has to stay where it is\n"
        "next: detectkit train -e out/small_retrain.txt -r DIR\n"
    )
    assert files(place / "out") == ["small.safetensors", "small_retrain.txt"]
    start, end = (json.loads(line) for line in (place / "status/status.jsonl").read_text().splitlines())
    assert (start["status"], end["status"]) == ("STARTED", "SUCCESS")
    left = {name: end["kpi"].pop(f"mean_average_precision{name}", None) for name in ("_before", "", "_left")}
    assert end["kpi"] == {"pruning_ratio": ratio, "size": sizes[1], "param_count": counts[1] / 1e6}
    whole, rest, share = printed(out, "mAP %, of 6 validation images")
    assert [whole, rest] == pytest.approx([100 * left["_before"], 100 * left[""]], abs=5e-3)
    assert share == pytest.approx(left["_left"], abs=5e-5)


@pytest.mark.parametrize("model, output", [("-m", "-o"), ("-pm", "--output_file"), ("--model", "-o")])
def test_names_of_the_files(quick, learnt, place, model, output):
    assert quick(model, learnt, output, "out.safetensors", "-k", "key")[0] == 0
    assert files(place) == ["out.safetensors", "out_retrain.txt"]


def test_without_options_and_pruning_config_the_threshold_is_a_tenth(quick, learnt, place):
    code, out, error = quick("-m", learnt, "-o", "out")
    assert (
        code == 0 and "threshold 0.1\n" in error and "ratio (pruned model / original model): 1.000000" in out
    )
    assert widths("out.safetensors") == widths(learnt)
    assert error.count("WARNING: nothing is left out: raise the threshold (-pth") == 1


@pytest.mark.parametrize(
    ("criterion", "threshold"),
    [("union", 0.97), ("Intersection", 0.88), ("ARITHMETIC_MEAN", 0.93), ("geometric_mean", 0.93)],
)
def test_options_of_tlt(quick, learnt, place, criterion, threshold):
    options = ["-pth", threshold, "-eq", criterion, "-pg", 4, "-nf", 40, "-n", "max", "-k", "key"]
    code, out, _ = quick("-pm", learnt, "-o", "out", *options, "-el", INNER, "backbone.layer4.0.conv1")
    assert code == 0
    after = widths("out.safetensors")
    assert after[INNER] == 256 and after["backbone.layer4.0.conv1"] == 512
    first = "backbone.layer1.0.conv1"
    assert after[first] == rounded(norms(learnt, first), threshold, step=4, least=40)
    # Layers of a residual sum.
    parts = [norms(learnt, f"backbone.layer4.0.{name}") for name in ("conv2", "downsample.0")]
    both = torch.stack(parts)
    combined = {
        "union": both.amax(0),
        "intersection": both.amin(0),
        "arithmetic_mean": both.mean(0),
        "geometric_mean": both.prod(0).sqrt(),
    }[criterion.lower()]
    kept = rounded(combined, threshold, step=4, least=40)
    assert after["backbone.layer4.0.conv2"] == after["backbone.layer4.0.downsample.0"] == kept
    assert 40 < kept < 512


def test_the_l2_normaliser(quick, learnt, place):
    """n equal filters have the square root of n each."""
    assert quick("-m", learnt, "-o", "out", "-n", "L2", "-pth", 16)[0] == 0
    after = widths("out.safetensors")
    values = norms(learnt, INNER)
    assert after[INNER] == rounded(values / values.norm() * 256, 16) < 256
    assert after["backbone.layer2.0.conv1"] == 16  # all of the 128 are near 11.3


def test_options_go_before_the_spec(quick, tiny, learnt, write_spec, place):
    config = tiny.pruning_config
    config.target_params, config.granularity, config.min_num_filters = 0.5, 32, 64
    config.excluded_layers[:] = [INNER]
    path = write_spec(tiny)
    assert quick("-m", learnt, "-e", path, "-o", "spec")[0] == 0
    alone = widths("spec.safetensors")
    assert alone[INNER] == 256 and all(
        width % 32 == 0 for name, width in alone.items() if "output" not in name
    )
    other = "backbone.layer3.0.conv2"
    assert quick("-m", learnt, "-e", path, "-o", "both", "-pth", 0.95, "-pg", 8, "-el", other)[0] == 0
    after = widths("both.safetensors")
    assert after[INNER] == rounded(norms(learnt, INNER), 0.95, step=8, least=64) and after[other] == 256
    assert after["backbone.layer1.0.conv1"] == 64
    stored = checkpoint.load("both.safetensors").spec.pruning_config
    assert stored.WhichOneof("aim") == "threshold" and stored.threshold == pytest.approx(0.95)
    assert (stored.granularity, stored.min_num_filters, list(stored.excluded_layers)) == (8, 64, [other])


@pytest.mark.parametrize("option, row", [("params", "parameters"), ("macs", "GMACs an image")])
def test_targets_are_reached_and_hardly_missed(quick, learnt, place, option, row):
    """-eq asks for the criterion of TLT, whose thresholds do the same again."""
    code, out, error = quick("-m", learnt, "-o", "out", f"--target-{option}", 0.3, "-eq", "union")
    assert code == 0
    share = printed(out, row)[2]
    assert 0.28 < share <= 0.3
    (threshold,) = re.findall(rf"found for target_{option}: the same again with -pth (\S+)", error)
    assert quick("-m", learnt, "-o", "again", "-pth", threshold)[0] == 0
    first, second = (
        checkpoint.load(f"{name}.safetensors").detector.state_dict() for name in ("out", "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


CHOICES = [
    # Of a spec, options, the criterion, and what is said of it.
    (
        "",
        "--target-params 0.9",
        PruningConfig.TAYLOR,
        "criterion TAYLOR: filters are judged by what the cost of",
    ),
    ("", "--target-params 0.9 -eq union", PruningConfig.NORM, "criterion NORM, as TLT's"),
    ("target_params: 0.9", "-pth 0.95", PruningConfig.NORM, "criterion NORM, as TLT's"),
    ("target_params: 0.9", "", PruningConfig.TAYLOR, "criterion TAYLOR: "),
    ("criterion: AUTO threshold: 0.95", "", PruningConfig.NORM, "criterion NORM, as TLT's"),
    ("criterion: NORM target_params: 0.9", "", PruningConfig.NORM, None),
    ("criterion: TAYLOR", "-pth 0.1", PruningConfig.TAYLOR, None),
]


@pytest.mark.parametrize("text, options, criterion, words", CHOICES)
def test_the_criterion_that_is_taken(
    quick, tiny_text, learnt, place, monkeypatch, text, options, criterion, words
):
    """TAYLOR for a target, where neither the spec nor an option of TLT's asks for another."""
    monkeypatch.setattr(accuracy, "IMAGES", 1)
    (place / "spec.txt").write_text(f"{tiny_text}pruning_config {{ {text} calibration_batches: 1 }}")
    code, _, error = quick("-m", learnt, "-o", "out", "-e", "spec.txt", *options.split())
    assert code == 0, error
    assert checkpoint.load("out.safetensors").spec.pruning_config.criterion == criterion
    assert words in error if words else "INFO: criterion" not in error


def test_without_the_training_images_filters_are_judged_by_their_norms(
    quick, tiny, learnt, write_spec, place
):
    tiny.dataset_config.data_sources[0].tfrecords_path = "nothing/*"
    assert quick("-m", learnt, "-o", "out", "-e", write_spec(tiny), "--target-params", 0.9)[0] == 0
    code, _, error = quick("-m", learnt, "-o", "norm", "-eq", "union", "--target-params", 0.9)
    assert code == 0
    first, second = (checkpoint.load(f"{name}.safetensors") for name in ("out", "norm"))
    assert first.spec.pruning_config.criterion == PruningConfig.NORM
    before, after = first.detector.state_dict(), second.detector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_why_it_is_the_norm_and_that_nothing_is_measured(quick, tiny, learnt, write_spec, place):
    tiny.dataset_config.data_sources[0].tfrecords_path = "nothing/*"
    code, out, error = quick("-m", learnt, "-o", "out", "-e", write_spec(tiny), "--target-params", 0.9)
    assert code == 0 and "mAP" not in out
    reason = "WARNING: criterion NORM, which looks at no images and leaves less: those to train on cannot be read (no files match"
    assert error.count(reason) == 1
    assert error.count("what is left of the accuracy was not measured: no files match") == 1


def test_without_validation_images_nothing_is_measured(quick, tiny, learnt, write_spec, place):
    tiny.dataset_config.ClearField("validation_fold")
    code, out, error = quick("-m", learnt, "-o", "out", "-e", write_spec(tiny), "-pth", 0.95, "-r", "status")
    assert code == 0 and "mAP" not in out
    words = "what is left of the accuracy was not measured: the spec has no validation_fold or validation_data_source"
    assert error.count(words) == 1
    kpi = json.loads((place / "status/status.jsonl").read_text().splitlines()[-1])["kpi"]
    assert kpi.keys() == {"pruning_ratio", "size", "param_count"}


def test_more_is_left_where_the_images_are_looked_at(quick, learnt, place):
    """And where little is left, a warning names what to change."""
    left = {}
    for name, options in (("taylor", []), ("norm", ["-eq", "union"])):
        code, out, error = quick("-m", learnt, "-o", name, "--target-params", 0.5, *options)
        assert code == 0
        before, after, left[name] = printed(out, "mAP %, of 6 validation images")
        assert before == 100 and after == 100 * left[name]
    assert left["taylor"] > 0.4 > 0.2 > left["norm"]  # chance has made the features: real ones keep more
    assert error.count("is left of 100.00: training again may not bring it back; set criterion: TAYLOR") == 1


def test_the_rate_of_the_retraining_hangs_on_what_is_left(quick, tiny, learnt, place):
    before = tiny.training_config.learning_rate.soft_start_annealing_schedule
    found = {}
    for name, threshold in (("whole", 0.1), ("little", 0.98)):
        assert quick("-m", learnt, "-o", name, "-pth", threshold)[0] == 0
        training = spec.load_experiment(f"{name}_retrain.txt").training_config
        assert training.num_epochs == {"whole": 1, "little": 2}[name] * tiny.training_config.num_epochs
        found[name] = training.learning_rate.soft_start_annealing_schedule
        assert found[name].soft_start == pytest.approx(0.05) and before.soft_start == pytest.approx(0.1)
        assert found[name].annealing == before.annealing
        assert found[name].min_learning_rate == before.min_learning_rate
    assert before.max_learning_rate == pytest.approx(1e-3)
    assert found["whole"].max_learning_rate == pytest.approx(5e-4)
    assert found["little"].max_learning_rate == pytest.approx(2e-3)


@pytest.fixture
def drifting(monkeypatch, place):
    """Makes the narrow network slower by a factor once the search has ended and the file is written.

    Gives the models that are measured.
    """

    def make(factor):
        measured = []

        def measure(models, **_):
            measured.append(models)
            before, after = map(figure, models)
            return [before, after * (factor if (place / "out.safetensors").exists() else 1)]

        count_for_time(monkeypatch)
        monkeypatch.setattr(stopwatch, "latencies", measure)
        return measured

    return make


@pytest.mark.spec_field("PruningConfig.target_latency")
def test_a_target_of_time_holds_when_it_is_measured_again(run, tiny, learnt, write_spec, drifting):
    measured = drifting(1.02)
    tiny.pruning_config.target_latency = 0.4
    tiny.pruning_config.criterion = PruningConfig.NORM
    code, out, error = run("-m", learnt, "-e", write_spec(tiny), "-o", "out")
    assert code == 0 and "measured again" not in error
    assert 0.37 < printed(out, "parameters")[2] < 0.4 / 1.02
    assert 0.38 < printed(out, "ONNX Runtime, ms an image")[2] <= 0.4
    searched = [narrow for _, narrow in measured[:-1]]  # then comes the table
    assert len(searched) == len(set(searched)) == error.count("of the parameters take") > 3


def test_a_target_of_time_that_is_missed_when_it_is_measured_again(run, learnt, drifting):
    drifting(1.5)
    code, out, error = run("-m", learnt, "-o", "out", "--target-latency", 0.4)
    share = printed(out, "ONNX Runtime, ms an image")[2]
    assert code == 0 and 0.5 < share <= 0.6
    assert f"measured again it takes {share:.4f} of the time, more than the 0.4 of target_latency" in error


def swept(out):
    """The header and the rows of the table of a sweep."""
    lines = out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("threshold ")]
    assert lines[-1].startswith("next: ")
    return lines[first].split(), [list(map(float, line.split())) for line in lines[first + 2 : -2]]


def test_a_sweep_writes_a_table_and_a_plot_and_no_model(quick, learnt, place, monkeypatch):
    monkeypatch.setattr(sweep, "SHARES", (0.9, 0.4))
    code, out, _ = quick("-m", learnt, "-o", "look/out", "--sweep", "-r", "status")
    assert code == 0 and files(place) == ["look", "look/out.png"] and "wrote look/out.png" in out
    assert (place / "look/out.png").read_bytes().startswith(b"\x89PNG")
    headers, (much, little) = swept(out)
    assert headers == ["threshold", "parameters", "MACs", "time", "ms"]
    assert 0.9 < much[0] < little[0] < 1
    assert 0.87 < much[1] <= 0.9 and 0.38 < little[1] <= 0.4 and 0 < little[2] < much[2] < 1
    assert little[3] == little[1] and much[3] == much[1]  # a second a parameter
    count = parameters(checkpoint.load(learnt).detector)
    assert much[4] == pytest.approx(1000 * count * much[1], rel=1e-3)


def test_a_sweep_ends_where_nothing_more_can_go(quick, learnt, place):
    code, out, _ = quick("-m", learnt, "-o", "out", "-nf", 384, "--sweep")
    _, rows = swept(out)
    shares = [share for _, share, *_ in rows]
    assert code == 0 and len(rows) == 2 and 0.87 < shares[0] <= 0.9 and 0.77 < shares[1] <= 0.8
    threshold, share, macs, *_ = rows[1]
    _, out, _ = quick("-m", learnt, "-o", "out", "-nf", 384, "-pth", threshold)
    assert (printed(out, "parameters")[2], printed(out, "GMACs an image")[2]) == (share, macs)
    code, _, error = quick("-m", learnt, "-o", "none", "-nf", 512, "--sweep")
    assert code == SPEC and "target_params: 0.9 cannot be reached" in complaint(error)
    assert not (place / "none.png").exists()


def test_a_pruned_model_is_a_model(quick, tiny, tiny_root, learnt, write_spec, place, capsys):
    """It is measured, used, retrained, and pruned again."""
    path = write_spec(tiny)
    assert quick("-m", learnt, "-o", "out", "--target-params", 0.9)[0] == 0
    before = widths("out.safetensors")

    def call(*arguments):
        assert main([*map(str, arguments), "--gpus", "0"]) == 0
        return "".join(capsys.readouterr())

    measured = call("evaluate", "-e", path, "-m", "out.safetensors")
    assert "6 images" in measured and "pruned and not trained again yet" in measured
    images = tiny_root / "kitti/image_2/000.png"
    assert "in 1 images" in call("infer", "-e", path, "-m", "out.safetensors", "-i", images, "-r", "found")
    retraining = spec.load_experiment("out_retrain.txt")
    retraining.training_config.num_epochs = 1
    (place / "out_retrain.txt").write_text(spec.dumps(retraining))
    said = call("train", "-e", "out_retrain.txt", "-r", "a")
    assert "out.safetensors: " in said and " tensors loaded, 0 fresh" in said
    assert (
        f"{sum(map(torch.numel, checkpoint.load('out.safetensors').detector.parameters())):,} parameters"
        in said
    )
    assert "pruned network" not in said  # load_graph has said so
    retraining.model_config.load_graph = False
    (place / "without.txt").write_text(spec.dumps(retraining))
    said = call("train", "-e", "without.txt", "-r", "b")
    assert said.count("this is a pruned network: its widths are taken over; set load_graph: true") == 1
    retrained = "a/weights/model.safetensors"
    assert widths(retrained) == widths("b/weights/model.safetensors") == before
    code, out, _ = quick("-m", retrained, "-e", path, "-o", "again", "--target-params", 0.5)
    after = widths("again.safetensors")
    assert code == 0 and printed_widths(out) == {name: (before[name], after[name]) for name in before}
    assert 0.45 < printed(out, "parameters")[2] <= 0.5
    assert "detections in 1 images" in call(
        "infer", "-e", path, "-m", "again.safetensors", "-i", images, "-r", "again"
    )


def test_the_retraining_spec_is_the_one_given_and_its_paths_are_as_given(
    quick, tiny, learnt, write_spec, place
):
    tiny.training_config.num_epochs = 77
    tiny.model_config.freeze_blocks[:] = [0, 1]
    tiny.training_config.visualizer.wandb_config.key = "secret"
    assert quick("-m", learnt, "-e", write_spec(tiny), "-o", "below/out")[0] == 0
    retraining = spec.load_experiment("below/out_retrain.txt")
    assert retraining.training_config.num_epochs == 77 and not retraining.model_config.freeze_blocks
    # Relative to the current folder, as every path of a spec.
    assert retraining.model_config.pretrained_model_file == "below/out.safetensors"
    assert retraining.model_config.load_graph
    assert "secret" not in (place / "below/out_retrain.txt").read_text()  # results are shown to others


def test_a_spec_that_names_an_encrypted_file_is_of_the_own_model(quick, tiny, learnt, write_spec, place):
    """As TLT's specs do: that file is never read, and says nothing of the network."""
    tiny.model_config.pretrained_model_file = "resnet10.tlt"
    assert quick("-m", learnt, "-e", write_spec(tiny), "-o", "out")[0] == 0
    assert spec.load_experiment("out_retrain.txt").model_config.layout == spec.ModelConfig.AS_PRETRAINED


def test_a_cut_while_times_are_measured_leaves_all_that_retraining_needs(quick, learnt, place, monkeypatch):
    def cut(models, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stopwatch, "latencies", cut)
    assert quick("-m", learnt, "-o", "out")[0] == 130
    assert files(place) == ["out.safetensors", "out_retrain.txt"]


@pytest.mark.parametrize("has_spec", [True, False])
def test_iterations(quick, tiny, learnt, write_spec, place, has_spec):
    tiny.pruning_config.target_params, tiny.pruning_config.iterations = 0.25, 2
    tiny.training_config.num_epochs = 1
    path = write_spec(tiny)
    model = learnt
    if not has_spec:  # it is in the model
        stored = checkpoint.load(learnt)
        model = place / "model.safetensors"
        checkpoint.save(model, stored.detector, path.read_text(), stored.class_names)
    given = ["-e", path] if has_spec else []
    code, out, error = quick("-m", model, *given, "-o", "out", "-r", "turns")
    assert code == 0, error
    measured_with = path if has_spec else "turns/iteration_2/experiment_spec.txt"
    assert out.endswith(
        "wrote out.safetensors, pruned and retrained 2 times\n"
        f"next: detectkit evaluate -e {measured_with} -m out.safetensors\n"
    )
    assert not (place / "out_retrain.txt").exists()
    half, quarter = (
        sum(
            map(torch.numel, checkpoint.load(f"turns/iteration_{n}/pruned.safetensors").detector.parameters())
        )
        for n in (1, 2)
    )
    whole, last, share = printed(out, "parameters")
    assert 0.48 < half / whole <= 0.5 and 0.23 < quarter / whole <= 0.25
    assert last == quarter and share == pytest.approx(quarter / whole, abs=1e-4)
    assert main(["evaluate", "-e", str(measured_with), "-m", "out.safetensors", "--gpus", "0"]) == 0


BAD = [
    # Options, exit code, words of the message.
    ("-el backbone.layer9", SPEC, "has no convolution backbone.layer9; did you mean backbone.layer"),
    ("-pth 1", USAGE, "-pth: must be below 1 with normalizer MAX"),
    ("-pth -0.1", USAGE, "-pth: must be in [0, inf), got -0.1"),
    ("-pth nan", USAGE, "-pth: must be a finite number, got nan"),
    ("-pth much", USAGE, "argument -pth/--pruning_threshold: invalid float value: 'much'"),
    ("-n L2 -pth 400", SPEC, "threshold 400 (-pth) keeps nothing: the greatest importance of a filter is "),
    ("-pg 0", USAGE, "-pg: must be in [1, inf), got 0"),
    ("-pg -8", USAGE, "-pg: must be in [1, 4294967295], got -8"),
    ("-nf 5000000000", USAGE, "-nf: must be in [1, 4294967295], got 5000000000"),
    ("--target-params 0", USAGE, "--target-params: must be in (0, 1], got 0"),
    ("--target-macs 30", USAGE, "--target-macs: must be in (0, 1], got 30"),
    ("--target-params 0.001", SPEC, "target_params: 0.001 cannot be reached: the smallest network is 0.0"),
    (
        "--target-macs 0.5 --target-params 0.5",
        USAGE,
        "--target-params: not allowed with argument --target-macs",
    ),
    ("--sweep -pth 0.5", USAGE, "not allowed with argument"),
    ("-eq both", USAGE, "argument -eq/--equalization_criterion: invalid choice: 'BOTH'"),
    ("-pth 1.5 -pg 0", USAGE, "-pg: must be in [1, inf), got 0"),
]


@pytest.mark.parametrize("options, code, words", BAD, ids=[options for options, _, _ in BAD])
def test_bad_options(quick, learnt, place, options, code, words):
    found, _, error = quick("-m", learnt, "-o", "out/model", *options.split())
    assert words in complaint(error)
    assert found == code and files(place) == []


def not_a_model(folder):
    (folder / "model.safetensors").write_text("something else")
    return "model.safetensors is not a detectkit model, or is cut short"


def weights_alone(folder):
    import safetensors.torch

    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return "it holds weights without a spec and class names"


def no_model(folder):
    return "cannot read model.safetensors: No such file or directory"


@pytest.mark.parametrize("make", [not_a_model, weights_alone, no_model])
def test_what_is_not_a_model(quick, place, make):
    words = make(place)
    before = files(place)
    code, _, error = quick("-m", "model.safetensors", "-o", "out")
    assert code == MODEL and words in complaint(error) and files(place) == before


@pytest.fixture
def never(monkeypatch):
    """Fails the test when a model is loaded."""
    monkeypatch.setattr(checkpoint, "load", lambda *_: pytest.fail("loaded"))


def test_an_output_that_cannot_be_written_is_refused_before_the_work(quick, learnt, place, never):
    (place / "file").write_text("")
    (place / "folder.safetensors").mkdir()
    before = files(place)
    for output, code, words in (
        ("file/out", OUTPUT, "cannot write file/out.safetensors: Not a directory"),
        (place, USAGE, "is a folder: name a file in it"),
        ("folder", USAGE, "-o folder is a folder: name a file in it"),
        ("/proc/out", OUTPUT, "cannot write /proc/out.safetensors: "),
        (learnt, USAGE, "is the model itself: give another name"),
        (learnt.with_suffix(""), USAGE, "is the model itself: give another name"),
    ):
        found, _, error = quick("-m", learnt, "-o", output)
        assert words in complaint(error) and found == code
    assert files(place) == before


def test_the_spec_is_not_overwritten(quick, tiny, learnt, place, never):
    (place / "out_retrain.txt").write_text(spec.dumps(tiny))
    code, _, error = quick("-m", learnt, "-o", "out", "-e", place / "out_retrain.txt")
    assert code == USAGE and "would overwrite out_retrain.txt, which -e names" in complaint(error)
    assert files(place) == ["out_retrain.txt"]


def other_classes(tiny):
    tiny.cost_function_config.target_classes[0].name = "disc"
    for section in (
        tiny.evaluation_config.minimum_detection_ground_truth_overlap,
        tiny.bbox_rasterizer_config.target_class_config,
        tiny.postprocessing_config.target_class_config,
    ):
        if isinstance(section["square"], float):
            section["disc"] = section.pop("square")
        else:
            section["disc"].CopyFrom(section.pop("square"))
    tiny.dataset_config.target_class_mapping["square"] = "disc"
    return "detects square, bar; the spec is for disc, bar (in this order): use the spec that it was trained with"


def other_depth(tiny):
    tiny.model_config.num_layers = 18
    return "learnt.safetensors is resnet 10, the spec asks for resnet 18"


def no_normalisation(tiny):
    tiny.model_config.use_batch_norm = False
    return "is resnet 10, the spec asks for resnet 10 without batch normalisation"


OTHER_LAYERS = (
    "is resnet 10, the spec asks for resnet 10, with another use_pooling, all_projections or activation: use"
)


def other_layers(tiny):
    tiny.model_config.use_pooling, tiny.model_config.all_projections = True, False
    return OTHER_LAYERS


def other_pooling(tiny):  # the same tensors: a ResNet10 without pooling has all projections anyway
    tiny.model_config.use_pooling = tiny.model_config.all_projections = True
    return OTHER_LAYERS


def other_activation(tiny):
    tiny.model_config.activation.activation_type = "elu"
    return OTHER_LAYERS


def grey_images(tiny):
    tiny.augmentation_config.preprocessing.output_image_channel = 1
    return "takes images of 3 channels, the spec has 1: use the spec that it was trained with"


OTHER = (
    *(other_classes, other_depth, no_normalisation, other_layers, other_pooling, other_activation),
    grey_images,
)


@pytest.mark.parametrize("change", OTHER)
def test_the_spec_of_another_model(quick, tiny, learnt, write_spec, place, change):
    words = change(tiny)
    path = write_spec(tiny)
    code, _, error = quick("-m", learnt, "-e", path, "-o", "out", "-r", "status")
    assert words in complaint(error) and code == MODEL and files(place) == ["spec.txt"]


def test_bad_specs(quick, tiny_text, learnt, place):
    (place / "spec.txt").write_text(tiny_text + "pruning_config { iterations: 3 }")
    for arguments, code, words in (
        (["spec.txt"], USAGE, "pruning_config.iterations is 3: give -r DIR for the training between"),
        (["spec.txt", "-r", "spec.txt"], OUTPUT, "cannot create the folder spec.txt"),
        (["no.txt"], SPEC, "no.txt: there is no such file"),
    ):
        found, _, error = quick("-m", learnt, "-o", "out", "-e", *arguments)
        assert words in complaint(error) and found == code
    assert files(place) == ["spec.txt"]


def test_what_stops_the_work_is_in_the_status(quick, learnt, place):
    code, _, _ = quick("-m", learnt, "-o", "out", "-el", "nothing", "-r", "status")
    records = [json.loads(line) for line in (place / "status/status.jsonl").read_text().splitlines()]
    assert code == SPEC and [record["status"] for record in records] == ["STARTED", "FAILURE"]
    assert records[1]["message"].startswith("excluded_layers (-el): the network has no convolution nothing")
    assert files(place) == ["status", "status/status.jsonl"]


def test_a_wrong_command_line_needs_no_torch():
    """Reading the options is quick."""
    import subprocess

    code = "import sys; from detectkit.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    arguments = ["prune", "-m", "a.safetensors", "-o", "a"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "is the model itself" in done.stderr


def test_the_network_before_the_pruning_is_written_down_as_the_teacher(quick, learnt, place, capsys):
    assert main(["prune", "-m", str(learnt), "-o", "out", "-pth", "0.5"]) == 0
    distillation = spec.load_experiment("out_retrain.txt").training_config.distillation
    assert (distillation.teacher_model_file, distillation.weight) == (str(learnt), pytest.approx(0.03))
    assert f"taught by {learnt}, which has to stay where it is" in capsys.readouterr().out


def test_a_teacher_of_the_past_that_is_gone_gives_way(quick, tiny, learnt, place, capsys):
    """That of a spec that is given has to be there, before anything is pruned."""
    model = checkpoint.load(learnt)
    model.spec.training_config.distillation.teacher_model_file = "gone.safetensors"
    checkpoint.save("again.safetensors", model.detector, spec.dumps(model.spec), model.class_names)
    assert main(["prune", "-m", "again.safetensors", "-o", "out", "-pth", "0.5"]) == 0
    assert (
        "gone.safetensors, which taught again.safetensors, is not there any more" in capsys.readouterr().err
    )
    distillation = spec.load_experiment("out_retrain.txt").training_config.distillation
    assert distillation.teacher_model_file == "again.safetensors"
    tiny.pruning_config.retraining.distillation.teacher_model_file = "gone.safetensors"
    Path("given.txt").write_text(spec.dumps(tiny))
    arguments = ["-m", "again.safetensors", "-o", "other", "-pth", "0.5", "-e", "given.txt"]
    assert main(["prune", *arguments]) != 0
    assert "distillation.teacher_model_file: there is no file gone.safetensors" in capsys.readouterr().err
    assert not Path("other.safetensors").exists()


def test_without_labels_nothing_is_measured(quick, unlabelled, learnt, write_spec, place):
    code, out, error = quick(
        "-m", learnt, "-o", "out", "-e", write_spec(unlabelled), "-pth", 0.95, "-r", "status"
    )
    assert code == 0 and "mAP" not in out
    assert error.count("what is left of the accuracy was not measured: no class has a labelled box") == 1
    kpi = json.loads((place / "status/status.jsonl").read_text().splitlines()[-1])["kpi"]
    assert kpi.keys() == {"pruning_ratio", "size", "param_count"}

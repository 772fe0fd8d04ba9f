"""`detectkit evaluate` on a model that knows the tiny data by heart, and on files."""

import json
import re
import shutil
import sys

import onnx
import pytest

from detectkit import spec
from detectkit.cli import main
from detectkit.data.records import validation_frames
from detectkit.evaluation import details
from detectkit.model import checkpoint
from detectkit.model.detector import build
from detectkit.predict import Predictor


@pytest.fixture
def run(capsys):
    """Runs `evaluate` with arguments; gives exit code, stdout and stderr."""

    def call(*arguments):
        code = main(["evaluate", *map(str, arguments), "--gpus", "0"])
        return code, *capsys.readouterr()

    return call


def test_results_of_a_model(run, tiny, write_spec, learnt, tmp_path):
    code, out, _ = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0
    assert "6 images" in out and "mAP 100.00 %" in out and "median latency, ms an image: preprocessing" in out
    assert "(preprocessing excludes decoding)" in out
    assert f"next: detectkit infer -e {tmp_path / 'spec.txt'} -m {learnt}" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["images"] == 6 and results["mean_average_precision"] == pytest.approx(1)
    assert results["measured"] == str(learnt) and results["spec"] == str(tmp_path / "spec.txt")
    assert list(results["classes"]) == ["square", "bar"]
    square = results["classes"]["square"]
    assert (square["ground_truth"], square["detections"], square["true_positives"]) == (6, 6, 6)
    assert (square["precision"], square["recall"], square["f1"]) == (1, 1, 1)
    assert square["average_precision"] == pytest.approx(1) and square["threshold"] > 0
    assert set(results["latency_seconds_per_image"]) == {"preprocessing", "network", "clustering"}
    assert results["validation_cost"] > 0
    assert (tmp_path / "out" / "precision_recall.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "details.npz",
        "precision_recall.png",
        "results.json",
    ]


def test_a_healthy_model_is_not_ailing(run, tiny, write_spec, learnt, tmp_path):
    code, _, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and error == ""
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["findings"] == results["advice"] == []
    assert results["confusion"]["counts"][0][0] == 6 and set(results["mistake_costs"].values()) == {0}
    assert len(results["mistake_costs_by_size"]) == 3
    square = results["mistakes"]["square"]
    assert (square["labels"], square["found"], square["detections"]) == (6, 6, 6)
    assert square["average_precision"] == pytest.approx(1)
    assert (square["doubled"], square["confused"], square["confused_with"]) == (0, 0, "")
    assert square["coverage"]["objects"] > 0.5 and square["coverage"]["background"] < 0.02


def test_what_ails_a_model_is_told_and_written(run, tiny, write_spec, learnt, tmp_path):
    """The same model, with clustering that joins next to nothing, and with labels that have each other's name."""
    mapping, entries = (
        tiny.dataset_config.target_class_mapping,
        tiny.postprocessing_config.target_class_config,
    )
    for name in ("square", "bar"):
        entries[name].clustering_config.dbscan_eps = 0.01
    code, _, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and error.count("WARNING") == 1
    [finding] = json.loads((tmp_path / "out" / "results.json").read_text())["findings"]
    assert finding["kind"] == "doubled" and finding["class"] in ("square", "bar") and finding["number"] > 0.05
    assert finding["text"] in error and "a larger dbscan_eps (0.01 now)" in error

    for name in ("square", "bar"):
        entries[name].clustering_config.dbscan_eps = 0.4
    mapping["square"], mapping["bar"] = "bar", "square"
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and error.count("WARNING") == 1
    assert "mistakes cost, points of AP: wrong class 100.0, badly placed 0.0" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    [finding] = results["findings"]
    assert finding["kind"] == "confused" and finding["number"] == pytest.approx(1)
    assert (
        "6 of 6 labels of square have a stronger detection of another class over them, most often bar"
        in error
    )
    assert results["mistakes"]["bar"]["confused_with"] == "square"
    assert results["confusion"]["counts"][0][1] == 6
    [mirror] = [item for item in results["advice"] if item["remedy"] == "do not mirror"]
    field = "augmentation_config.spatial_augmentation.hflip_probability"
    assert mirror["edits"] == [{"field": field, "now": 0.5, "value": 0.0}]
    assert f"{field}: 0 (0.5 now)" in out


def test_a_network_that_was_not_trained_has_not_learnt_coverage(run, tiny, write_spec, tmp_path):
    names = ["square", "bar"]
    file = tmp_path / "fresh.safetensors"
    checkpoint.save(file, build(tiny.model_config, names, 3), spec.dumps(tiny), names)
    code, _, error = run("-e", write_spec(tiny), "-m", file)
    assert code == 0 and error.count("WARNING") == 1 and "coverage is not learnt: " in error


def test_details_are_those_of_the_same_pass(run, tiny, write_spec, learn, tmp_path, monkeypatch):
    path, model = write_spec(tiny), learn(tiny, noise=0.6)
    passes = []
    batches = Predictor.batches
    monkeypatch.setattr(Predictor, "batches", lambda *args: passes.append(1) or batches(*args))
    code, out, _ = run("-e", path, "-m", model, "-r", tmp_path / "out")
    assert code == 0 and passes == [1]
    names = [tmp_path / "out" / name for name in ("results.json", "details.npz", "precision_recall.png")]
    assert f"wrote {names[0]}, {names[1]} and {names[2]}" in out
    found = details.load(names[1])
    results = json.loads(names[0].read_text())["classes"]
    false_positives, misses = details.errors(found)
    assert len(false_positives.scores) + len(misses.classes) > 0
    for number, item in enumerate(results.values()):
        assert (false_positives.classes == number).sum() == item["detections"] - item["true_positives"]
        assert (misses.classes == number).sum() == item["ground_truth"] - item["true_positives"]
    # What is measured without details takes those of an earlier model away.
    code, out, _ = run("-e", path, "-m", model, "-r", tmp_path / "out", "--tune-clustering")
    assert code == 0 and not names[1].exists() and "details.npz" not in out


def test_an_onnx_model_measures_as_the_model_does(run, tiny, write_spec, learn, as_onnx, tmp_path):
    model, path = learn(tiny, noise=0.25), write_spec(tiny)
    onnx.save(as_onnx(model), tmp_path / "m.onnx")
    tables = []
    for file in (model, tmp_path / "m.onnx"):
        code, out, _ = run("-e", path, "-m", file)
        assert code == 0
        tables.append(out[: out.index("median latency")])
    assert tables[0] == tables[1] and "mAP" in tables[0] and "mAP 100.00" not in tables[0]


def test_without_a_spec_it_is_the_one_in_the_model(run, tiny, write_spec, learnt, learnt_onnx, tmp_path):
    with_spec = run("-e", write_spec(tiny), "-m", learnt)[1]
    for model in (learnt, learnt_onnx):
        code, out, _ = run("-m", model, "-r", tmp_path / "out")
        assert code == 0 and out[: out.index("median")] == with_spec[: with_spec.index("median")]
        assert f"next: detectkit infer -m {model} -i" in out
        assert json.loads((tmp_path / "out/results.json").read_text())["spec"] == str(model)


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_measured(
    run, tiny, write_spec, learnt, tmp_path
):
    (tmp_path / "file").write_text("")
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "file")
    assert (code, out) == (6, "") and f"cannot write {tmp_path}/file/results.json" in error


def test_detections_need_a_spec(run):
    code, _, error = run("--detections", "found", "--labels", "labels")
    assert code == 2 and "--detections: give the spec too (-e SPEC)" in error


def test_training_set(run, tiny, write_spec, learnt):
    path = write_spec(tiny)
    assert "18 images" in run("-e", path, "-m", learnt, "--use_training_set")[1]
    tiny.dataset_config.ClearField("validation_fold")
    code, _, error = run("-e", write_spec(tiny), "-m", learnt)
    assert code == 4 and "--use_training_set" in error


@pytest.mark.parametrize("measured, arguments", [(0, []), (1, ["--use_training_set"])])
def test_only_the_measured_set_has_to_be_there(
    run, tiny, tiny_root, write_spec, learnt, tmp_path, measured, arguments
):
    """The records of the other fold are not on this machine, nor are their images."""
    (tmp_path / "records").mkdir()
    for path in (tiny_root / "records").glob(f"*fold-{measured:03d}-of-*"):
        shutil.copy(path, tmp_path / "records")
    tiny.dataset_config.data_sources[0].tfrecords_path = str(tmp_path / "records/tiny-fold-*")
    code, out, _ = run("-e", write_spec(tiny), "-m", learnt, *arguments)
    assert code == 0 and f"{(6, 18)[measured]} images" in out


def test_images_that_the_network_sees_in_part_are_told(run, tiny, write_spec, learnt, tmp_path):
    preprocessing = tiny.augmentation_config.preprocessing
    preprocessing.output_image_width, preprocessing.output_image_height = 48, 32
    warning = "WARNING: 6 of 6 images are larger than the 48x32 pixels that the network sees"
    for more in ([], ["--tune-clustering"]):
        code, _, error = run("-e", write_spec(tiny), "-m", learnt, *more)
        assert code == 0 and error.count("larger than") == 1 and warning in error
    preprocessing.enable_auto_resize = True
    assert "larger than" not in run("-e", write_spec(tiny), "-m", learnt)[2]


def test_class_without_labels(run, tiny, write_spec, learnt, tmp_path):
    limits = tiny.evaluation_config.evaluation_box_config
    limits["square"].minimum_height = 0
    limits["bar"].minimum_height = 1000
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and "bar has no labelled box here" in error and "mAP 100.00 %" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["classes"]["bar"]["average_precision"] is None
    assert results["mean_average_precision"] == pytest.approx(1)


def test_detections_of_infer_measure_like_the_model(
    run, tiny, tiny_root, write_spec, learn, tmp_path, capsys
):
    model, path = learn(tiny, noise=0.25), write_spec(tiny)
    validation = validation_frames(tiny.dataset_config, ["square", "bar"])
    for folder in ("images", "truth"):
        (tmp_path / folder).mkdir()
    for frame in validation.frames:
        shutil.copy(frame.path, tmp_path / "images")
        name = frame.frame_id.rpartition("/")[2]
        shutil.copy(tiny_root / "kitti" / "label_2" / f"{name}.txt", tmp_path / "truth")
    infer = [
        "infer",
        "-e",
        path,
        "-m",
        model,
        "-i",
        tmp_path / "images",
        "-r",
        tmp_path / "found",
        "--gpus",
        "0",
    ]
    assert main([*map(str, infer)]) == 0
    assert run("-e", path, "-m", model, "-r", tmp_path / "a")[0] == 0
    code, out, _ = run(
        "-e",
        path,
        "--detections",
        tmp_path / "found/labels",
        "--labels",
        tmp_path / "truth",
        "-r",
        tmp_path / "b",
    )
    assert code == 0 and "next:" not in out
    direct, files = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert 0.05 < direct["mean_average_precision"] < 0.99
    assert "latency_seconds_per_image" not in files and "validation_cost" not in files
    for name, ours in direct["classes"].items():
        # Files have three decimals.
        assert files["classes"][name] == pytest.approx(ours, abs=1e-3)


@pytest.mark.parametrize(
    ("protocol", "headers", "keys"),
    [
        ("KITTI", "class AP40 easy AP40 moderate AP40 hard AP11 easy", {"AP40_moderate", "AP11_hard"}),
        ("COCO", "class AP AP50 AP75 AP small", {"AP", "AP50", "AR_100"}),
    ],
)
def test_the_figures_of_a_protocol(run, tiny, write_spec, learnt, tmp_path, protocol, headers, keys):
    tiny.evaluation_config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and headers in re.sub(" +", " ", out) and f"as {protocol} counts, %" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["protocol"] == protocol and keys <= set(results["mean_figures"])
    square = results["classes"]["square"]
    assert keys <= set(square["figures"]) == set(results["mean_figures"])
    assert (square["ground_truth"], square["detections"], square["recall"]) == (6, 6, 1)
    assert square["average_precision"] == square["figures"]["AP40_moderate" if protocol == "KITTI" else "AP"]
    assert (tmp_path / "out" / "precision_recall.png").read_bytes().startswith(b"\x89PNG")
    assert ("KITTI samples 41 recalls" in error) == (protocol == "KITTI")
    if protocol == "KITTI":
        # Six objects give thresholds for the first six of 41 recalls; bars are 16 pixels high, too low for KITTI.
        assert square["average_precision"] == pytest.approx(5 / 40)
        assert results["classes"]["bar"]["average_precision"] is None
        assert results["mean_average_precision"] == pytest.approx(5 / 40)


def test_without_its_package_coco_is_refused_before_any_work(run, tiny, write_spec, tmp_path, monkeypatch):
    tiny.evaluation_config.protocol = spec.EvaluationConfig.COCO
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    code, out, error = run("-e", write_spec(tiny), "-m", tmp_path / "no.safetensors", "-r", tmp_path / "out")
    assert code == 1 and error.count("faster-coco-eval: pip install faster-coco-eval") == 1
    assert not out and not (tmp_path / "out").exists()


def test_unusable_label_lines_are_in_the_final_line(run, tiny, write_spec, tmp_path):
    for name, columns in (("found", "0.9"), ("truth", "")):
        (tmp_path / name).mkdir()
        line = f"square 0 0 0 0 0 20 20 0 0 0 0 0 0 0 {columns}\n"
        (tmp_path / name / "a.txt").write_text(line)
    folders = "--detections", tmp_path / "found", "--labels", tmp_path / "truth"
    path = write_spec(tiny)
    assert "mAP 100.00 %\n" in run("-e", path, *folders)[1]
    with (tmp_path / "truth" / "a.txt").open("a") as file:
        file.write("square 0 0\n")
    code, out, error = run("-e", path, *folders, "-r", tmp_path / "out")
    assert code == 0 and "a.txt:2: 3 columns" in error
    assert "mAP 100.00 % (1 unusable label line left out)\n" in out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["unusable_label_lines"] == 1


def test_tuning_prints_a_block_to_paste(run, tiny, write_spec, learnt, tmp_path):
    for item in tiny.postprocessing_config.target_class_config.values():
        item.clustering_config.dbscan_min_samples = 1.9
        item.clustering_config.dbscan_eps = 0.05
    path = write_spec(tiny)
    before = run("-e", path, "-m", learnt, "-r", tmp_path / "before")
    code, out, _ = run("-e", path, "-m", learnt, "-r", tmp_path / "after", "--tune-clustering")
    assert before[0] == code == 0
    old, new = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("before", "after"))
    assert new["mean_average_precision"] > old["mean_average_precision"]
    block = re.search(r"put this into the spec.*?:\n\n(.*?)\n\n", out, re.DOTALL)[1]
    assert new["tuned_spec_block"].strip() == block.strip() and "tuned_spec_block" not in old
    assert new["mean_average_precision_before_tuning"] == pytest.approx(old["mean_average_precision"])
    assert new["measured_on_the_images_tuned_on"] is True
    assert f"before tuning, mAP {100 * old['mean_average_precision']:.2f} %" in out
    assert "on the very images that the values were tuned on" in out
    tiny.ClearField("postprocessing_config")
    path.write_text(spec.dumps(tiny) + block)
    assert run("-e", path, "-m", learnt, "-r", tmp_path / "pasted")[0] == 0
    pasted = json.loads((tmp_path / "pasted" / "results.json").read_text())
    assert pasted["classes"] == new["classes"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give a model"),
        (("-m", "a", "--detections", "b", "--labels", "c"), "give a model"),
        (("--detections", "b"), "belong together"),
        (("-m", "a", "--labels", "b"), "belong together"),
        (("--detections", "b", "--labels", "c", "--tune-clustering"), "needs a model"),
        (("--detections", "b", "--labels", "c", "--use_training_set"), "--use_training_set is for a model"),
        (("-m", "a.safetensors", "-f", "tensorrt"), "a.safetensors is a .safetensors model by its name"),
        (("-m", "a.onnx", "-f", "tlt"), "-f tlt: a.onnx is an ONNX model by its name: leave -f out"),
        (("-m", "a.trt", "-f", "tlt"), "a TensorRT engine by its name"),
    ],
)
def test_usage(run, tmp_path, arguments, message):
    code, _, error = run("-e", tmp_path / "spec.txt", *arguments)
    assert code == 2 and message in error


def test_device_options(tiny, write_spec, learnt, capsys):
    base = ["evaluate", "-e", str(write_spec(tiny)), "-m", str(learnt)]
    assert main([*base, "--gpus", "2"]) == 2
    assert "runs on one GPU" in capsys.readouterr().err
    for index in ("-1", "99"):
        assert main([*base, "--gpus", "1", "--gpu_index", index]) == 2
        assert f"no GPU {index}" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["VOC", "KITTI", "COCO"])
def test_images_without_labels_measure_nothing(run, unlabelled, write_spec, learnt, tmp_path, protocol):
    """Not 0 % either, which would be the figure of a model that finds nothing."""
    unlabelled.evaluation_config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precision_recall.png").write_text("of an earlier model")
    code, out, error = run("-e", write_spec(unlabelled), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and "\nmAP - %\n" in out and "0.00" not in out
    assert (
        "no class has a labelled box that counts in these 6 images, so there is neither AP nor mAP" in error
    )
    [row] = [line.split() for line in out.splitlines() if line.split()[:2] == ["square", "-"]][:1]
    assert row[:7] == ["square", "-", "-", "-", "-", "-", "0"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["mean_average_precision"] is None
    square = results["classes"]["square"]
    names = ("average_precision", "precision", "recall", "f1", "threshold")
    assert [square[name] for name in names] == [None] * 5 and square["detections"] > 0
    assert not (tmp_path / "out" / "precision_recall.png").exists()


def test_one_class_without_labels_has_no_part_in_the_mean(run, tiny, write_spec, learnt, tmp_path):
    mapping = tiny.dataset_config.target_class_mapping
    del mapping["bar"]
    mapping["pole"] = "bar"
    code, out, error = run("-e", write_spec(tiny), "-m", learnt, "-r", tmp_path / "out")
    assert code == 0 and "mAP 100.00 %" in out and "bar has no labelled box here" in error
    classes = json.loads((tmp_path / "out" / "results.json").read_text())["classes"]
    assert classes["square"]["recall"] == 1 and classes["bar"]["recall"] is None


def test_clustering_is_not_tuned_on_images_without_labels(run, unlabelled, write_spec, learnt, tmp_path):
    options = ("-m", learnt, "-r", tmp_path / "out", "--tune-clustering")
    code, out, error = run("-e", write_spec(unlabelled), *options)
    assert code == 4 and "put this into the spec" not in out
    assert (
        "error: no class has a labelled box that counts in the 6 images measured, so there is no mAP" in error
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "labels, protocol, least",
    [
        ("", "VOC", 0),
        ("DontCare 0 0 0 0 0 20 20 0 0 0 0 0 0 0", "VOC", 0),
        ("cat 0 0 0 0 0 20 20 0 0 0 0 0 0 0", "COCO", 0),
        ("square 0 0 0 0 0 20 20 0 0 0 0 0 0 0", "VOC", 30),  # below evaluation_box_config
        ("square 0.9 0 0 0 0 60 60 0 0 0 0 0 0 0", "KITTI", 0),  # harder than moderate
    ],
)
def test_files_without_a_label_that_counts(run, tiny, write_spec, tmp_path, labels, protocol, least):
    tiny.evaluation_config.protocol = spec.EvaluationConfig.PROTOCOL.Value(protocol)
    for name in ("square", "bar"):
        box = tiny.evaluation_config.evaluation_box_config[name]
        box.minimum_width, box.maximum_width, box.maximum_height = least, 999, 999
    for name, text in (("found", "square 0 0 0 0 0 60 60 0 0 0 0 0 0 0 0.9"), ("truth", labels)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"{text}\n")
    folders = "--detections", tmp_path / "found", "--labels", tmp_path / "truth"
    code, out, error = run("-e", write_spec(tiny), *folders, "-r", tmp_path / "out")
    assert (
        code == 0
        and "mAP - %" in out
        and "no class has a labelled box that counts in these 1 images" in error
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text())["mean_average_precision"] is None

import subprocess
import sys
from pathlib import Path

from detectkit import cli

ROOT = Path(__file__).parents[2]


def test_explain_prints_a_field(capsys):
    assert cli.main(["explain", "training_config.num_epochs"]) == 0
    assert "Times that every training image is seen." in capsys.readouterr().out


def test_explain_without_a_path_lists_the_sections(capsys):
    assert cli.main(["explain"]) == 0
    assert "bbox_rasterizer_config" in capsys.readouterr().out


def test_the_classes_that_an_entry_serves_in_a_spec(capsys):
    section, path = "bbox_rasterizer_config.target_class_config", str(ROOT / "specs/coco/all_classes.txt")
    assert cli.main(["explain", "-e", path, f'{section}["car"]']) == 0
    told = capsys.readouterr().out.splitlines()
    assert "  map from class to BboxRasterizerConfig.TargetClassConfig · required" in told
    assert told[-1] == f"{path}: {section}: the entry default serves all 80 classes but car"
    assert cli.main(["explain", "-e", path, "class_names"]) == 0
    assert capsys.readouterr().out.endswith(f"{path}: no entry `default` serves a class there\n")


def test_the_classes_that_an_entry_serves_in_an_inference_spec(capsys):
    path = str(ROOT / "tests/spec/kitti_infer.txt")
    assert cli.main(["explain", "-e", path, "classwise_bbox_handler_config"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    section = "bbox_handler_config.classwise_bbox_handler_config"
    assert last.startswith(f"{path}: {section}: the entry default serves every class")


def test_unknown_path_is_a_usage_error(capsys):
    assert cli.main(["explain", "num_epoch"]) == 2
    assert "did you mean training_config.num_epochs or" in capsys.readouterr().err


def test_the_backbones_are_told_without_torch():
    code = (
        "import sys\nfrom detectkit import cli\ncli.main(['explain', 'model_config.arch'])\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "19 (default), 53" in done.stdout

import subprocess
import sys

from detectkit import cli


def test_explain_prints_a_field(capsys):
    assert cli.main(["explain", "training_config.num_epochs"]) == 0
    assert "Times that every training image is seen." in capsys.readouterr().out


def test_explain_without_a_path_lists_the_sections(capsys):
    assert cli.main(["explain"]) == 0
    assert "bbox_rasterizer_config" in capsys.readouterr().out


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

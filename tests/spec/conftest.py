"""Three whole specs as people have them: the KITTI training, inference and conversion specs of TLT's tutorial."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def kitti_train() -> str:
    return (HERE / "kitti_train.txt").read_text()


@pytest.fixture(scope="session")
def kitti_infer() -> str:
    return (HERE / "kitti_infer.txt").read_text()


@pytest.fixture(scope="session")
def kitti_convert() -> str:
    return (HERE / "kitti_convert.txt").read_text()

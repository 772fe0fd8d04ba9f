"""A training run whose loader processes are signalled along with it, as a terminal or a job scheduler does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from detectkit.train import loop, state as states
from detectkit.train.run import set_up


@pytest.mark.spec_field("TrainingConfig.workers")
def test_as_many_processes_read_images_as_the_spec_says(small, tmp_path):
    found = []
    for workers in (0, 2):
        small.training_config.workers = workers
        run = set_up(small, tmp_path / str(workers), name="model", device=torch.device("cpu"))
        steps = loop.epoch_steps(run)
        next(steps)
        found.append(len(multiprocessing.active_children()))
        steps.close()
    assert found == [0, 2]


def test_a_stopped_process_group_saves_its_state(tiny, tmp_path, write_spec):
    tiny.training_config.workers = 2
    tiny.training_config.num_epochs = 1000
    results, output = tmp_path / "run", tmp_path / "output"
    command = [sys.executable, "-m", "detectkit", "train", "-e", str(write_spec(tiny)), "-r", str(results)]
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not (results / "resume.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.02)
        before = states.read(results / "resume.pt")
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 130, output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = output.read_text()
    assert "everything is saved" in text and text.count("stopping after this step") == 1
    after = states.read(results / "resume.pt")
    assert after["position"] > before["position"]

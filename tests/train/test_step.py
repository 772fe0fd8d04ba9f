"""A further cost is one more term: nothing else knows of it."""

import os
import signal

import pytest
import torch
from google.protobuf import text_format
from torch import nn
from torch.nn.functional import mse_loss

from detectkit.errors import Interrupted, ModelError
from detectkit.train import loop, run as runs, state as states
from detectkit.train.run import set_up
from detectkit.train.step import Term


class Reading(Term):
    """How well the brightness of the images can be read from the features, ever less important."""

    name, weight = "reading", 0.5

    def __init__(self, channels):
        self.module = nn.Linear(channels, 1)
        self.batches = 0

    def __call__(self, forwarded):
        self.batches += 1
        found = self.module(forwarded.features[-1].float().mean((2, 3))).squeeze(1)
        return mse_loss(found, forwarded.images.mean((1, 2, 3))) / self.batches

    def state(self):
        return {**super().state(), "reading_batches": self.batches}

    def restore(self, content, path):
        super().restore(content, path)
        self.batches = content["reading_batches"]


@pytest.fixture
def reading(small, monkeypatch):
    """An experiment of two epochs of three steps whose cost has the term."""
    text_format.Merge("optimizer { adam { } } ema_decay: 0.9 num_epochs: 2", small.training_config)
    before = runs._terms

    def terms(experiment, results, detector, *arguments, **options):
        found = before(experiment, results, detector, *arguments, **options)
        return [*found, Reading(detector.backbone.levels[-1].channels)]

    monkeypatch.setattr(runs, "_terms", terms)
    return small


def opened(experiment, results):
    return set_up(experiment, results, name="model", device=torch.device("cpu"))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_term_learns_and_remembers_and_goes_on_where_it_was_cut(reading, tmp_path, monkeypatch, caplog):
    whole = opened(reading, tmp_path / "whole")
    start = whole.state.terms[-1].module.weight.detach().clone()
    loop.train(whole)
    term = whole.state.terms[-1]
    assert term.batches == 6 and not torch.equal(term.module.weight, start)

    step = loop.train_step

    def stop(run, batch):
        cost = step(run, batch)
        os.kill(os.getpid(), signal.SIGINT)
        return cost

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop)
        for _ in range(4):  # after each step, and in the second epoch
            with pytest.raises(Interrupted):
                loop.train(opened(reading, tmp_path / "cut"))
    cut = opened(reading, tmp_path / "cut")
    assert (cut.state.epoch, cut.state.step, cut.state.terms[-1].batches) == (1, 1, 4)
    loop.train(cut)
    assert "do not count here" not in caplog.text
    assert cut.state.terms[-1].batches == 6 and cut.state.history == whole.state.history
    assert same(cut.state.trained.state_dict(), whole.state.trained.state_dict())
    assert same(cut.state.result.state_dict(), whole.state.result.state_dict())


def test_a_term_counts_by_its_weight(reading, tmp_path):
    found = []
    for weight in (0.0, 0.5):
        run = opened(reading, tmp_path / str(weight))
        run.state.terms[-1].weight = weight
        loop.train(run)
        found.append(run.state)
    assert not same(*(state.detector.state_dict() for state in found))
    assert "reading" in states.read(tmp_path / "0.5/resume.pt")


def test_a_state_without_what_a_term_remembers_is_damaged(reading, tmp_path):
    reading.training_config.num_epochs = 1
    loop.train(opened(reading, tmp_path))
    path = tmp_path / "resume.pt"
    content = states.read(path)
    del content["reading_batches"]
    states.write(path, content)
    with pytest.raises(ModelError, match="resume.pt is damaged and cannot be resumed from"):
        opened(reading, tmp_path)

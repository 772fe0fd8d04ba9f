"""How fast a network is here: figures that a person can check are few, so what is timed is told beforehand."""

import pytest

from detectkit.errors import DataError
from detectkit.pipeline import speed


def test_a_network_is_timed_and_counted(tiny, tiny_root, monkeypatch):
    """Of batches of 4, by a clock that goes on by 2 s whenever it is looked at; decoding is of one image each."""
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    found = speed.measure(tiny, tiny_root / "kitti")
    assert (found.finding, found.learning, found.decoding) == (0.5, 0.5 * speed.LEARNING, 2.0)
    assert found.parameters > 10**5
    assert speed.measure(tiny, None).decoding == 0.0


def test_records_are_counted(tiny):
    assert speed.count_records(tiny) == (18, 6)
    for source in tiny.dataset_config.data_sources:
        source.tfrecords_path = "/gone/*"
    with pytest.raises(DataError):
        speed.count_records(tiny)

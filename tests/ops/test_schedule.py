from __future__ import annotations

import pytest

from detectkit.ops.schedule import soft_start_annealing


@pytest.mark.parametrize(
    ("progress", "rate"),
    [
        (0.0, 1e-6),
        (0.05, 1e-5),  # halfway up in the logarithm
        (0.1, 1e-4),
        (0.4, 1e-4),
        (0.7, 1e-4),
        (0.85, 1e-5),
        (1.0, 1e-6),
    ],
)
def test_up_flat_down(progress: float, rate: float) -> None:
    got = soft_start_annealing(progress, minimum=1e-6, maximum=1e-4, soft_start=0.1, annealing=0.7)
    assert got == pytest.approx(rate, rel=1e-9)


def test_no_soft_start_begins_at_the_maximum_and_no_annealing_ends_there() -> None:
    for progress in (0.0, 0.5, 1.0):
        rate = soft_start_annealing(progress, minimum=1e-6, maximum=1e-4, soft_start=0.0, annealing=1.0)
        assert rate == pytest.approx(1e-4)


def test_soft_start_may_end_where_annealing_begins() -> None:
    rate = soft_start_annealing(0.5, minimum=1e-6, maximum=1e-4, soft_start=0.5, annealing=0.5)
    assert rate == pytest.approx(1e-4)

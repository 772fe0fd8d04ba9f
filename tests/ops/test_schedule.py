from __future__ import annotations

import pytest

from detectkit.ops.schedule import Plateau, early_stopping_annealing, observe, soft_start_annealing


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


def seen(costs: list[float], *, period: int = 1, patience: int, annealing_epochs: int) -> list[Plateau]:
    """What is known after each of the validations, of which there is one every `period` epochs."""
    found = [Plateau()]
    for number, cost in enumerate(costs, start=1):
        epoch = number * period
        found.append(
            observe(found[-1], cost, epoch, patience=patience, annealing_epochs=annealing_epochs),
        )
    return found[1:]


def test_a_constant_cost_is_waited_for_twice() -> None:
    # TLT's own example: cost 0.42, patience 2, an epoch of annealing; it tests for "at least" the patience.
    found = seen([0.42] * 5, patience=2, annealing_epochs=1)
    assert [plateau.annealing_start for plateau in found] == [None, None, 3, 3, 3]
    assert [plateau.ended for plateau in found] == [False, False, False, False, True]


def test_the_run_ends_only_after_the_fall() -> None:
    found = seen([0.42] * 9, patience=1, annealing_epochs=5)
    assert [plateau.annealing_start for plateau in found][:3] == [None, 2, 2]
    assert [plateau.ended for plateau in found].index(True) == 6  # epoch 7 = 2 + 5


def test_a_lower_cost_begins_the_waiting_anew_and_equal_is_not_lower() -> None:
    found = seen([3.0, 2.0, 2.0, 1.9, 1.9, 1.9], patience=2, annealing_epochs=1)
    assert [plateau.best_epoch for plateau in found] == [1, 2, 2, 4, 4, 6]
    assert [plateau.annealing_start for plateau in found] == [None] * 5 + [6]


def test_annealing_takes_the_cost_of_its_start_for_the_best() -> None:
    found = seen([1.0, 5.0, 4.0, 4.5], patience=1, annealing_epochs=1)
    assert found[1] == Plateau(best_cost=5.0, best_epoch=2, annealing_start=2)
    assert found[2].best_cost == 4.0 and not found[2].ended and found[3].ended


def test_patience_counts_epochs_not_validations() -> None:
    found = seen([1.0, 1.0, 1.0], period=5, patience=6, annealing_epochs=1)
    assert [plateau.annealing_start for plateau in found] == [None, None, 15]
    assert not observe(Plateau(1.0, 1), float("nan"), 2, patience=5, annealing_epochs=1).ended


@pytest.mark.parametrize(
    ("position", "start", "rate"),
    [
        (0.0, None, 1e-6),
        (1.0, None, 1e-5),
        (2.0, None, 1e-4),
        (100.0, None, 1e-4),
        (7.0, 7, 1e-4),
        (8.0, 7, 10**-4.5),
        (11.0, 7, 1e-6),
        (20.0, 7, 1e-6),  # stays at the minimum
        (1.0, 1, 1e-5),  # still rising when the fall begins
    ],
)
def test_up_flat_and_down_from_where_the_plateau_began(
    position: float, start: int | None, rate: float
) -> None:
    got = early_stopping_annealing(
        position,
        minimum=1e-6,
        maximum=1e-4,
        soft_start_epochs=2,
        annealing_epochs=4,
        annealing_start=start,
    )
    assert got == pytest.approx(rate, rel=1e-9)


def test_early_stopping_without_rise_and_fall_stays_at_the_maximum() -> None:
    for position, start in ((0.0, None), (9.0, 3)):
        rate = early_stopping_annealing(
            position,
            minimum=1e-6,
            maximum=1e-4,
            soft_start_epochs=0,
            annealing_epochs=0,
            annealing_start=start,
        )
        assert rate == pytest.approx(1e-4)

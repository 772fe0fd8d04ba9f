"""How long networks take on this machine, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from detectkit.runtimes.onnx import make_session

FEWEST_ROUNDS = 5  # of which a median leaves out the two slowest


def latencies(
    runs: Sequence[Callable[[], object]], *, rounds: int = 30, time_limit: float = 60.0
) -> list[float]:
    """Median seconds that each function takes.

    They take turns, in alternating order, so that whatever else the machine does slows down all of them alike: the times
    of one call can be compared, those of two calls less so.

    Args:
        runs: each runs a network on one batch, see `onnx_run`.
        rounds: turns of each.
        time_limit: seconds after which no new round begins, once there have been 5.
    """
    turns: list[tuple[Callable[[], object], list[float]]] = [(run, []) for run in runs]
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > time_limit:
            break
        for run, times in turns if number % 2 == 0 else reversed(turns):
            run()  # the first run sets up its memory; later the others have taken the caches and cores
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    # A low quantile would flatter the quicker network on a busy machine: only its runs fit between two interruptions.
    return [statistics.median(times) for _, times in turns]


def onnx_run(model: bytes, *, batch_size: int, threads: int | None = None) -> Callable[[], object]:
    """A function that runs a model in ONNX Runtime on the CPU, on the same random images every time.

    Args:
        model: of one input [N, c, H, W] float32, as `to_onnx` makes them.
        batch_size: images N.
        threads: as many as torch uses if None.
    """
    session = make_session(model, threads=threads)
    (images,) = session.get_inputs()
    shape = (batch_size, *images.shape[1:])
    feed = {images.name: np.random.default_rng(0).random(shape, dtype=np.float32)}
    return lambda: session.run(None, feed)

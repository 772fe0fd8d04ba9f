"""How long networks take on this machine's CPU, in ONNX Runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime
import torch

FEWEST_ROUNDS = 5  # of which a median leaves out the two slowest


def latencies(
    models: Sequence[bytes],
    *,
    batch_size: int,
    rounds: int = 30,
    threads: int | None = None,
    time_limit: float = 60.0,
) -> list[float]:
    """Median seconds that each model takes for a batch of random images.

    The models take turns, in alternating order, so that whatever else the machine does slows down all of them alike:
    the times of one call can be compared, those of two calls less so. All models are in memory at once.

    Args:
        models: of one input [N, c, H, W] float32 each, as `to_onnx` makes them.
        batch_size: images N.
        rounds: turns of each model.
        threads: as many as torch uses if None.
        time_limit: seconds after which no new round begins, once there have been 5.
    """
    runs = [
        _load(model, batch_size=batch_size, threads=threads or torch.get_num_threads()) for model in models
    ]
    turns: list[tuple[Callable[[], object], list[float]]] = [(run, []) for run in runs]
    started = time.monotonic()
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() - started > time_limit:
            break
        for run, times in turns if number % 2 == 0 else reversed(turns):
            run()  # the first run sets up its memory; later the other models have taken the caches and cores
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    # A low quantile would flatter the quicker model on a busy machine: only its runs fit between two interruptions.
    return [statistics.median(times) for _, times in turns]


def _load(model: bytes, *, batch_size: int, threads: int) -> Callable[[], object]:
    """A function that runs the model once, on the same images every time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads wait in a busy loop for the next work: good within a run, but after it they take the others' cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    shape = (batch_size, *images.shape[1:])
    feed = {images.name: np.random.default_rng(0).random(shape, dtype=np.float32)}
    return lambda: session.run(None, feed)

"""8-bit rounding and the search for ranges, held to torch's fake quantisation, to ONNX Runtime and to brute force."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.stats import entropy
from torch import Tensor

from detectkit.ops.quantize import (
    channel_amax,
    decibels,
    entropy_amax,
    fake_quantize,
    mse_amax,
    percentile_amax,
    sqnr,
)

BINS = 2048


def normal(count: int = 200_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def laplace(count: int = 200_000, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).laplace(size=count)).float()


def histogram(values: Tensor, bins: int = BINS) -> tuple[Tensor, float]:
    """Counts of the magnitudes, and the width of a bin; the last one ends at the largest."""
    largest = float(values.abs().max())
    return torch.histc(values.abs(), bins, min=0, max=largest).double(), largest / bins


def error(values: Tensor, amax: float) -> float:
    """Mean squared error of rounding to 8 bits, from the values themselves."""
    return float((fake_quantize(values, amax) - values).double().square().mean())


def test_values_round_half_to_even_and_are_cut_off() -> None:
    values = torch.tensor([0.0, 0.4, 0.5, 1.5, 2.5, -0.5, -1.5, 127.4, 200.0, -128.4, -200.0])
    rounded = [0.0, 0.0, 0.0, 2.0, 2.0, 0.0, -2.0, 127.0, 127.0, -128.0, -128.0]
    assert fake_quantize(values, 127.0).tolist() == rounded
    assert fake_quantize(values / 4, 127 / 4).tolist() == [value / 4 for value in rounded]


def test_unsigned_values_have_twice_the_levels_on_one_side() -> None:
    values = torch.tensor([-3.0, 0.4, 128.6, 254.5, 300.0])
    assert fake_quantize(values, 255.0, unsigned=True).tolist() == [0.0, 0.0, 129.0, 254.0, 255.0]


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40),
    st.floats(2.0**-10, 1e4, width=32),
    st.booleans(),
)
def test_values_and_gradient_are_those_of_torch(values: list[float], amax: float, unsigned: bool) -> None:
    lowest, highest = (0, 255) if unsigned else (-128, 127)
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    scale = torch.tensor(amax) / highest
    number = torch.tensor(values, dtype=torch.float64) / scale.double()
    # torch multiplies by 1 / scale: beside a half it may round to the other side.
    clear = ((number.abs() % 1) - 0.5).abs() > 1e-6 * (1 + number.abs())
    got = fake_quantize(ours, amax, unsigned=unsigned)
    zero = torch.zeros((), dtype=torch.int32)
    wanted = torch.fake_quantize_per_tensor_affine(theirs, scale, zero, lowest, highest)
    got.sum().backward()
    wanted.sum().backward()
    assert torch.allclose(got[clear], wanted[clear], rtol=1e-6)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad[clear], theirs.grad[clear])


@pytest.mark.parametrize("axis", [0, 1])
def test_ranges_along_an_axis_are_those_of_torch(axis: int) -> None:
    values = normal(4 * 5 * 9).reshape(4, 5, 3, 3) * torch.arange(1, 6).reshape(5, 1, 1)
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    amax = values.abs().amax([dim for dim in range(4) if dim != axis]) * 0.8
    got = fake_quantize(ours, amax, axis=axis)
    zero = torch.zeros(len(amax), dtype=torch.int32)
    wanted = torch.fake_quantize_per_channel_affine(theirs, amax / 127, zero, axis, -128, 127)
    got.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.allclose(got, wanted, atol=1e-6)
    assert ours.grad is not None and theirs.grad is not None and torch.allclose(ours.grad, theirs.grad)
    assert 0 < (ours.grad == 0).sum() < ours.numel()


def test_sixteen_bits_are_rounded_in_thirty_two() -> None:
    values = normal(1000).bfloat16().requires_grad_()
    got = fake_quantize(values, 3.0)
    got.sum().backward()
    assert got.dtype == torch.float32 and torch.equal(got, fake_quantize(values.detach().float(), 3.0))
    assert values.grad is not None and values.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fake_quantize(values.detach(), 3.0), got)


def test_a_range_of_zero_divides_nothing_by_zero() -> None:
    got = fake_quantize(torch.tensor([[0.0, 0.0], [3.0, -1.5]]), torch.tensor([0.0, 3.0]), axis=0)
    assert got[0].tolist() == [0.0, 0.0] and got[1, 0] == 3.0
    assert fake_quantize(torch.zeros(3), 0.0).tolist() == [0.0] * 3


def test_shapes_alone_suffice() -> None:
    assert fake_quantize(torch.empty(2, 3, device="meta"), 1.0).shape == (2, 3)


def test_channel_amax() -> None:
    weight = torch.tensor([[[[1.0, -3.0]]], [[[0.0, 0.5]]]])
    assert channel_amax(weight).tolist() == [3.0, 0.5]


def published_entropy(counts: np.ndarray, levels: int = 128) -> list[float]:
    """The divergences of all ranges, written down as in the talk that `entropy_amax` names, with scipy's entropy."""
    found = []
    for end in range(levels, len(counts) + 1):
        p = counts[:end].copy()
        p[-1] += counts[end:].sum()
        level = np.arange(end) * levels // end
        q = np.zeros(end)
        for number in range(levels):
            filled = (level == number) & (counts[:end] > 0)
            if filled.any():
                q[filled] = counts[:end][filled].sum() / filled.sum()
        found.append(float(entropy(p, q)) if q.sum() > 0 else math.inf)
    return found


@pytest.mark.parametrize("values", [normal(20_000), laplace(20_000), laplace(400).square()])
def test_entropy_is_the_published_search(values: Tensor) -> None:
    counts, width = histogram(values, 400)
    counts[0] = torch.minimum(counts[0], counts[1])
    divergences = np.array(published_entropy(counts.numpy()))
    beyond = counts.sum() - counts.cumsum(0)[127:]
    divergences[(beyond > 0.01 * counts.sum()).numpy()] = math.inf
    best = 128 + np.flatnonzero(divergences <= divergences.min() + 1e-12)[-1]
    assert entropy_amax(counts, width) == pytest.approx(best * width, rel=1e-9)


def test_entropy_does_not_see_the_zeros_of_a_relu() -> None:
    values = laplace().abs()
    with_zeros = torch.cat((values, torch.zeros(len(values))))
    amax = entropy_amax(*histogram(with_zeros))
    assert amax == entropy_amax(*histogram(values))
    assert decibels(float(values.square().mean()), error(values, amax)) > 25

    # ONNX Runtime's counts them, and cuts off most of what is not zero.
    theirs = onnxruntime_amax("entropy", with_zeros[::20], bins=1024)
    assert theirs < 0.5 * amax and error(values, theirs) > 10 * error(values, amax)


def onnxruntime_amax(method: str, values: Tensor, bins: int = 4096, levels: int = 256) -> float:
    """By default as many bins and levels on each side of zero as ours."""
    collector = HistogramCollector(method, method == "percentile", bins, levels, 99.99, None)
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"values": values.numpy()})
        low, high = collector.compute_collection_result()["values"][:2]
    return max(-float(low), float(high))


def test_entropy_does_not_stop_at_the_smallest_value_of_a_bright_image() -> None:
    values = 0.3 + 0.6 * torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    values[0] = 0.2
    assert entropy_amax(*histogram(values)) > 0.89


def test_entropy_of_few_values_keeps_all() -> None:
    assert entropy_amax(torch.zeros(BINS), 0.1) == 0.0
    counts = torch.zeros(BINS)
    counts[100] = 5
    assert entropy_amax(counts, 0.1) == pytest.approx(10.1)
    counts[1500] = 3
    assert entropy_amax(counts, 0.1) == pytest.approx(150.1)


@pytest.mark.parametrize("share", [50.0, 99.0, 99.99, 100.0])
def test_percentile_is_that_of_the_values(share: float) -> None:
    values = normal()
    counts, width = histogram(values)
    wanted = float(np.percentile(values.abs().numpy(), share))
    assert percentile_amax(counts, width, share) == pytest.approx(wanted, abs=width)


def test_percentile_is_that_of_onnx_runtime() -> None:
    values = normal()
    counts, width = histogram(values)
    assert percentile_amax(counts, width) == pytest.approx(
        onnxruntime_amax("percentile", values, bins=BINS), abs=width
    )
    assert percentile_amax(torch.zeros(BINS), width) == 0.0


@pytest.mark.parametrize("values", [normal(50_000), laplace(50_000), normal(50_000).relu()])
def test_mse_is_the_least_of_all_ranges(values: Tensor) -> None:
    counts, width = histogram(values)
    amax = mse_amax(counts, width)
    least = min(error(values, end * width) for end in range(256, BINS + 1, 16))
    assert error(values, amax) < 1.005 * least


def test_mse_of_nothing_is_zero() -> None:
    assert mse_amax(torch.zeros(BINS), 1.0) == 0.0


@pytest.mark.parametrize("part", [0.3, 0.7, 1.0, 1.5])
def test_sqnr_is_that_of_the_rounded_values(part: float) -> None:
    for values in (normal(), laplace(), normal().relu(), torch.cat((normal(), torch.zeros(10**6)))):
        counts, width = histogram(values)
        amax = part * BINS * width
        wanted = decibels(float(values.double().square().mean()), error(values, amax))
        assert sqnr(counts, width, amax) == pytest.approx(wanted, abs=0.2)


def test_sqnr_of_evenly_spread_values_is_that_of_the_textbook() -> None:
    # Signal amax^2 / 3, noise of a step's even spread: step^2 / 12 with amax / 127.
    assert sqnr(torch.ones(BINS), 1.0, BINS) == pytest.approx(10 * math.log10(4 * 127**2), abs=0.1)
    assert sqnr(torch.zeros(BINS), 1.0, 1.0) == math.inf

"""Eight bits: rounding to them, and the range that loses least of what a histogram counts.

An 8-bit number is scale * q. Signed: q from -128 to 127, scale = amax / 127, zero is 0. Unsigned: q from 0 to 255,
scale = amax / 255. Beyond its range a value is cut off: a narrow range rounds finely and cuts off much, a wide one the
other way round. Histograms count |value| in bins of one width, the first of which begins at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 128  # magnitudes of a signed 8-bit number
COARSE = 8  # bins between the ranges that `mse_amax` tries first
MOST_CUT = 0.01  # share of the values beyond a range of `entropy_amax`
SMALLEST_SCALE = 2.0**-63  # the product of two, which is that of a bias, is still a normal float32


def fake_quantize(
    values: Tensor, amax: Tensor | float, *, axis: int | None = None, unsigned: bool = False
) -> Tensor:
    """Values as they come back from 8 bits: rounded, half to even, and cut to the range.

    The gradient passes through the rounding as if it were not there, and is zero where a value was cut off; `amax`
    has none. The result is float32, whatever the values are: 16 bits hold no 8-bit grid at every scale. A range of 0
    has the scale of one of 1, which is exact for the zeros that it stands for.

    Args:
        values: of any shape.
        amax: the largest magnitude of the range, 0 or more; with an axis one for each entry along it.
        axis: of values, whose entries have ranges of their own.
        unsigned: values below 0 are cut off, the others get twice the levels.
    """
    lowest, highest = (0, 255) if unsigned else (-128, 127)
    amax = torch.as_tensor(amax, dtype=torch.float32, device=values.device).detach()
    scale = torch.where(amax > 0, (amax / highest).clamp(min=SMALLEST_SCALE), 1 / highest)
    if axis is not None:
        scale = scale.reshape([-1 if number == axis else 1 for number in range(values.dim())])
    quantized: Tensor = _Rounded.apply(values.float(), scale, lowest, highest)
    return quantized


class _Rounded(torch.autograd.Function):
    """Three times as fast as torch.fake_quantize_per_tensor_affine on a CPU, and it runs on meta tensors."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
        number = (values / scale).round_()
        ctx.save_for_backward(number)
        ctx.limits = lowest - 0.5, highest + 0.5
        return number.clamp(lowest, highest).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (number,) = ctx.saved_tensors
        # One pass; a product with a mask of booleans takes six times as long.
        return torch.ops.aten.hardtanh_backward(gradient, number, *ctx.limits), None, None, None


def channel_amax(weight: Tensor) -> Tensor:
    """The largest magnitude of each output channel [C] of a convolution's weight [C, ...]."""
    return weight.detach().abs().flatten(1).amax(1)


def entropy_amax(histogram: Tensor, width: float) -> float:
    """The range whose 128 levels lose least information: TensorRT's entropy calibration.

    For every range from 128 bins on, P is the histogram within, with all that lies beyond in its last bin; Q is the
    same without what lies beyond, each level's counts spread evenly over its bins that are not empty. The range is the
    one of the least Kullback-Leibler divergence of Q from P, the widest of several.
    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. Two things differ. As in NVIDIA's pytorch-quantization,
    zeros are left out, which every range holds exactly: after a ReLU they are half of all values, and spread over the
    lowest level they would count as a loss, the more so the wider the range. And no range cuts off more than 1 % of the
    other values: where they lie far from zero, as in bright images, P and Q are the same single bin, without any
    divergence, for the range that ends with the smallest value.

    Args:
        histogram: counts [n].
        width: of a bin.

    Returns:
        The largest magnitude of the range, the end of a bin; 0 where all values are zero.
    """
    counts = _without_zeros(histogram)
    used = _used(counts)
    if used <= LEVELS:
        return used * width
    counts = counts[:used]
    kept = _cumulative(counts)
    total = kept[-1]
    narrowest = int(torch.searchsorted(kept, (1 - MOST_CUT) * total))
    ends = torch.arange(max(narrowest, LEVELS), used + 1, device=counts.device)  # in bins, of the ranges
    inside, last = kept[ends], counts[ends - 1]
    beyond = total - inside

    # With p = counts / total and q = a level's counts / its bins / inside, the sum of p log(p / q) over bins falls into
    # sums over bins that do not depend on the range, and sums over levels.
    bins = _cumulative(_xlogx(counts))[ends] - _xlogx(last) + _xlogx(last + beyond)
    upper = torch.arange(LEVELS + 1, device=counts.device) * ends[:, None]
    edges = (upper + LEVELS - 1) // LEVELS  # [ranges, 129]: the bins before each level
    level, filled = kept[edges].diff(dim=1), _cumulative((counts > 0).double())[edges].diff(dim=1)
    spread = torch.log((level / filled.clamp(min=1)).clamp(min=torch.finfo(torch.float64).tiny))
    levels = (level * spread).sum(1) + beyond * spread[:, -1]
    divergence = (bins - levels) / total - torch.log(total / inside)
    divergence[(last == 0) & (beyond > 0)] = torch.inf  # the last bin of P is filled, that of Q empty
    best = len(ends) - 1 - int(divergence.flip(0).argmin())
    return int(ends[best]) * width


def percentile_amax(histogram: Tensor, width: float, share: float = 99.99) -> float:
    """The magnitude that `share` percent of the values do not exceed, as if they lay evenly within each bin.

    Args:
        histogram: counts [n].
        width: of a bin.
        share: in (0, 100].
    """
    kept = _cumulative(histogram.double())
    if kept[-1] == 0:
        return 0.0
    wanted = kept[-1] * (share / 100)
    number = max(int(torch.searchsorted(kept, wanted)), 1)  # the bin before this edge holds the wanted value
    below, above = kept[number - 1], kept[number]
    return float(number - 1 + (wanted - below) / (above - below)) * width


def mse_amax(histogram: Tensor, width: float) -> float:
    """The range of the least mean squared error of rounding and cutting off, the end of a bin; see `sqnr`.

    Args:
        histogram: counts [n].
        width: of a bin.
    """
    counts = _without_zeros(histogram)
    used = _used(counts)
    if used == 0:
        return 0.0
    # The error changes little from one bin to the next: look at every eighth, then around the best of them.
    coarse = _best_end(counts, torch.arange(1, used + COARSE, COARSE).clamp(max=used))
    return _best_end(counts, torch.arange(max(coarse - COARSE, 1), min(coarse + COARSE, used) + 1)) * width


def _best_end(counts: Tensor, ends: Tensor) -> int:
    """The one of `ends` [k], in bins, of the least squared error."""
    return int(ends[int(_squared_error(counts, ends.to(counts)).argmin())])


def sqnr(histogram: Tensor, width: float, amax: float) -> float:
    """Signal to quantisation noise in dB: the squares of all values to those of their signed 8-bit rounding errors.

    Values lie evenly within their bin; what the first bin has more than the second are zeros. Infinite where all
    values are zero.

    Args:
        histogram: counts [n].
        width: of a bin.
        amax: of the range, 0 or more.
    """
    counts = _without_zeros(histogram)
    whole, end = (
        torch.tensor([end], dtype=torch.float64, device=counts.device)
        for end in (float(len(counts)), amax / width)
    )
    return decibels(float(_moments(counts, whole)[2]), float(_squared_error(counts, end)))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; infinite without noise."""
    return (
        10 * float(torch.log10(torch.tensor(signal / noise, dtype=torch.float64))) if noise > 0 else torch.inf
    )


def _squared_error(counts: Tensor, ends: Tensor) -> Tensor:
    """Sums of squared errors [k] in squared bins for ranges that end at `ends` [k] bins.

    Level l takes what lies between (l - 1/2) and (l + 1/2) steps, the last level all beyond. Its error is the second
    moment about l steps, from the moments about 0 up to the edges of the levels.
    """
    step = ends[:, None] / (LEVELS - 1)
    level = torch.arange(LEVELS, dtype=torch.float64, device=ends.device)
    upper = (level[:-1] + 0.5) * step
    edges = torch.cat((torch.zeros_like(step), upper, torch.full_like(step, len(counts))), dim=1)
    edges = edges.clamp(max=len(counts))
    zeroth, first, second = (moment.diff(dim=1) for moment in _moments(counts, edges))
    value = level * step
    return (second - 2 * value * first + value.square() * zeroth).sum(1).clamp(min=0)


def _moments(counts: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of 1, x and x^2 over the values x (in bins) up to `positions`, values lying evenly within bins."""
    start = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    sums = (
        _cumulative(counts),
        _cumulative(counts * (start + 0.5)),
        _cumulative(counts * (start.square() + start + 1 / 3)),
    )
    number = positions.long().clamp(max=len(counts) - 1)
    count, low = counts[number], number.double()
    return (
        sums[0][number] + count * (positions - low),
        sums[1][number] + count * (positions.square() - low.square()) / 2,
        sums[2][number] + count * (positions**3 - low**3) / 3,
    )


def _without_zeros(histogram: Tensor) -> Tensor:
    """Counts in float64 without those taken for exact zeros: what the first bin has more than the second."""
    counts = histogram.double()
    return torch.cat((torch.minimum(counts[:1], counts[1:2]), counts[1:]))


def _used(counts: Tensor) -> int:
    """The number of bins up to the last that is not empty."""
    filled = counts.nonzero()
    return int(filled[-1]) + 1 if len(filled) else 0


def _cumulative(counts: Tensor) -> Tensor:
    """Sums [n + 1] of the first 0, 1 … n."""
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))


def _xlogx(values: Tensor) -> Tensor:
    product: Tensor = torch.special.xlogy(values, values)
    return product

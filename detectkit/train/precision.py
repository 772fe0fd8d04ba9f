"""Number formats of training, and the scaling of the cost that 16 bits need (TLT DetectNet_v2 cost_scaling)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from detectkit.spec import CostScalingConfig, ModelConfig


def number_format(precision: ModelConfig.TrainingPrecision, device: torch.device) -> torch.dtype:
    """What the network is trained in: float32, or for FLOAT16 what `device` computes in rather than emulates.

    That is float16 on a GPU; on a CPU bfloat16 if it has matrix units for it, else float32, which is faster there:
    AVX-512's bfloat16 instructions alone make a step 1.2 to 1.6 times as long.
    """
    if precision.backend_floatx != ModelConfig.TrainingPrecision.FLOAT16:
        return torch.float32
    if device.type == "cuda":
        return torch.float16
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    able = any(found.get(unit) for unit in ("amx_bf16", "bf16"))
    return torch.bfloat16 if able else torch.float32


class CostScale:
    """Two to the power of an exponent that rises with every step of finite gradients and falls with every other.

    The exponent stays on the device, so that no step waits for it.
    """

    def __init__(self, config: CostScalingConfig, device: torch.device):
        self.exponent = torch.tensor(config.initial_exponent, dtype=torch.float64, device=device)
        self.increment, self.decrement = config.increment, config.decrement

    @property
    def factor(self) -> Tensor:
        """What costs are multiplied with and gradients divided by, float32 []."""
        return torch.exp2(self.exponent).float()

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the factor, in place."""
        torch._foreach_mul_(gradients, 1 / self.factor)

    def update(self, overflow: Tensor) -> None:
        """Adapt the exponent; `overflow` [] is 1 when the gradients were not finite, else 0."""
        self.exponent = torch.where(
            overflow > 0, self.exponent - self.decrement, self.exponent + self.increment
        )


def cost_scale(
    config: CostScalingConfig, number_format: torch.dtype, device: torch.device
) -> CostScale | None:
    """The scaling of a run: where the spec asks for it, and always in float16, whose least numbers are too large."""
    return CostScale(config, device) if config.enabled or number_format == torch.float16 else None

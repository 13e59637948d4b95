"""Precision of candidate networks, and the scale of the loss that half precision needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of each precision to the type that autocast computes in, if it does.

``tf32`` is float32 whose products a GPU may compute with 10 bits of mantissa, and float32 on a CPU.
"""


@contextmanager
def tensor_cores(precision: str, device: torch.device) -> Iterator[None]:
    """Context in which float32 products of a GPU are what the precision says.

    torch's own default is TF32 in convolutions, and float32 in matrix products.
    """
    if device.type != "cuda":
        yield
        return
    allowed = precision == "tf32"
    products = torch.backends.cuda.matmul.allow_tf32
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convolutions


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Context in which candidate networks run."""
    dtype = PRECISIONS[precision]
    if dtype is None:
        return nullcontext()
    # The cache of cast weights would outlive a replayed CUDA graph, and weights are used once.
    return torch.autocast(device.type, dtype, cache_enabled=False)


@dataclass
class LossScale:
    """Factor on the loss that keeps half-precision gradients in range (arXiv 1710.03740, 3.2).

    It is halved after a step in which gradients overflowed, and doubled after
    ``growth_interval`` steps in which none did.

    Attributes:
        value: The factor.
        good_steps: Steps since the last change.
        growth_interval: See above.
    """

    value: float = 65536.0
    good_steps: int = 0
    growth_interval: int = 2000

    def update(self, overflowed: bool) -> None:
        """Take note of a step."""
        if overflowed:
            self.value = max(self.value / 2, 1.0)
            self.good_steps = 0
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self.value = min(self.value * 2, 2.0**24)
            self.good_steps = 0

    def state_dict(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """From a checkpoint."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])

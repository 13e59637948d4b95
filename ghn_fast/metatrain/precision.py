"""Precision of candidate networks, and the scale of the loss that half precision needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from ghn_fast.ops.backend import extension_problem

PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of each precision to the narrow type that networks compute in, if they do.

``tf32`` is float32 whose products a GPU may compute with 10 bits of mantissa, and float32 on a CPU.
"""


AUTO = "auto"
"""Name of the setting that leaves the choice to :func:`choose`."""

# Instructions that multiply matrices in bfloat16, as torch names them, and as people do.
_PRODUCTS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def choose(device: torch.device) -> tuple[str, str]:
    """The fastest precision of a device, and the reason in words.

    On a CPU that is bfloat16 where the processor multiplies it and the ops that oneDNN lacks are
    compiled.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in bfloat16"
        return "float32", "the GPU does not compute in bfloat16"
    if device.type != "cpu":
        return "float32", f"nothing is known about {device.type}"
    problem = extension_problem()
    if problem is not None:
        return "float32", f"no compiled ops: {problem}"
    here = torch.backends.cpu.get_cpu_capability()
    has = torch.cpu.get_capabilities()
    found = [words for name, words in _PRODUCTS.items() if has.get(name)]
    # ATEN_CPU_CAPABILITY may ask for less than there is.
    if not found or not here.startswith("AVX512"):
        return "float32", "the processor, or torch's setting for it, has no products of bfloat16"
    return "bf16", f"the processor has {found[0]}"


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


def casts(precision: str, device: torch.device) -> bool:
    """Whether networks that can are given weights and images in the type, instead of autocast.

    On a CPU: activations then keep the type, and no operation casts a weight of its own.
    """
    return precision == "bf16" and device.type == "cpu"


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

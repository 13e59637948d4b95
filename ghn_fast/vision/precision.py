"""Precision that networks run in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
    """Context in which networks run."""
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

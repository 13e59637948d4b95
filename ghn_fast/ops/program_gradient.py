"""Gradient of the loss of a network that is a program: forward, loss and backward in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ghn_fast.ops.backend import extension_problem, register_op
from ghn_fast.ops.network_program import Program

# The narrow types that the compiled op computes in.
TYPES = (None, torch.bfloat16)


def program_gradient(
    program: Program,
    places: Mapping[str, tuple[int, Sequence[int]]],
    flat: Tensor,
    narrow: Tensor | None,
    images: Tensor,
    targets: Tensor,
    gradient: Tensor,
    *,
    factor: float = 1.0,
    label_smoothing: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[int, float, int]:
    """Gradients of ``factor`` times the cross-entropy of a network, on a CPU.

    Compiled only: there is no lock of Python while it runs, so that several networks run side by
    side in threads. In plain PyTorch, and on other devices, a program is differentiated as any
    other function is (:meth:`ghn_fast.ops.network_program.Program.run`;
    :mod:`ghn_fast.metatrain.candidate_run` does so).

    Args:
        program: The network.
        places: Per parameter its offset and shape in the buffers, at least of those of the program.
        flat: Parameters (P,), float32.
        narrow: The same in bfloat16, if the network shall compute in that: tensors of more than one
            axis are taken from here, and images are converted.
        images: Images (B, 3, S, S).
        targets: Class of each image (B,).
        gradient: Where the gradients go (P,), float32, in the same places; the rest stays as it is.
        factor: Factor on the loss.
        label_smoothing: Of the cross-entropy.
        generator: Source of the masks of dropout; torch's own by default.

    Returns:
        0, or 1 where the loss is not finite, or 2 where a gradient is not, and then ``gradient`` is
        zero throughout; the loss; the number of correct images.

    Raises:
        KeyError: If a parameter has no place.
        TypeError: If a buffer has another dtype.
        ValueError: If a shape does not fit, or a place is outside of the buffers.
    """
    packed: list[int] = []
    for name in program.names:
        offset, shape = places[name]
        packed += (offset, len(shape), *shape)
    found: tuple[int, float, int] = torch.ops.ghn_fast.program_gradient(
        *(program.packed, packed, flat, narrow, images, targets),
        *(factor, label_smoothing, generator, gradient),
    )
    return found


register_op("program_gradient", {"cpu": extension_problem})

"""Decoders by name: what makes parameters of node embeddings, and the plan that it follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode import BlockDecoder, VectorDecoder, decode
from ghn_fast.hypernet.decode_plan import plan_decoding
from ghn_fast.hypernet.low_rank import LowRankDecoder, LowRankPlan, plan_low_rank


class Plan(Protocol):
    """What is decoded for a batch of graphs, and where it goes."""

    @property
    def ranges(self) -> list[dict[str, tuple[int, tuple[int, ...]]]]:
        """Per graph, name of each parameter to (offset, shape) in the flat buffer."""

    def expand(self, decoded: Any) -> Tensor:
        """The flat buffer of all parameters, differentiable."""

    def expand_into(self, decoded: Any, tensors: Sequence[Tensor | None]) -> None:
        """Write all parameters into tensors, one for each, or ``None`` to leave it out."""


class DecoderKind(NamedTuple):
    """A decoder.

    Attributes:
        weights: Makes the part that decodes weights.
        vectors: Makes the part that decodes 1-D parameters, ``None`` if the other does that, too.
        plan: Takes graphs, a configuration and ``head``, and makes a plan.
        decode: Takes node embeddings (N, C), a plan and both parts; what it returns the plan
            expands.
    """

    weights: Callable[[GHNConfig], Any]
    vectors: Callable[[GHNConfig], Any]
    plan: Callable[..., Any]
    decode: Callable[..., Any]


def _decode_low_rank(
    x: Tensor, plan: LowRankPlan, weights: LowRankDecoder, vectors: nn.Module | None
) -> Any:
    return plan.decode(x, weights, vectors)


DECODERS = {
    "block": DecoderKind(BlockDecoder, VectorDecoder, plan_decoding, decode),
    "low_rank": DecoderKind(
        LowRankDecoder,
        lambda config: VectorDecoder(config) if config.vectors == "mlp" else None,
        plan_low_rank,
        _decode_low_rank,
    ),
}
"""Each decoder by the name that configurations have for it."""

"""Configuration of a graph hypernetwork."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ghn_fast.graph.rules import GraphRules
from ghn_fast.utils.settings import checked

# Published hypernetworks take one. All rounds are one call of an op, which no signal ends early.
MOST_STEPS = 1000
_CHOICES = {
    "window": ("corner", "middle"),
    "decoder": ("block", "low_rank"),
    "vectors": ("mlp", "low_rank"),
    "weights": ("fan_in", "standard_deviation"),
}
# Width, layers and heads.
_PUBLISHED = {
    "ghn3-t": (64, 3, 8),
    "ghn3-s": (128, 5, 16),
    "ghn3-l": (256, 12, 16),
    "ghn3-xl": (384, 24, 16),
}


# And the rank.
_LOGAH = {
    "logah-tiny": (64, 3, 8, 32),
    "logah-small": (128, 5, 16, 90),
    "logah-base": (256, 5, 16, 128),
    "logah-large": (256, 12, 16, 256),
}


@dataclass(frozen=True)
class GHNConfig:
    """Shape and variant of a graph hypernetwork.

    The defaults are GHN-2 for CIFAR-10 (arXiv 2110.13100). GHN-1 is ``virtual_edges=1,
    normalize=False, layer_norm=False``; the MLP baseline is ``propagator="mlp"``. GHN-3 (arXiv
    2303.04143) is ``propagator="graphormer", rules="ghn3", window="middle"``.

    Attributes:
        max_shape: Largest block that is decoded (out, in, height, width); height equals width.
        num_classes: Number of classes that the heads predict; other numbers are sliced or repeated.
        hid: Width of the node embeddings, a multiple of 4.
        propagator: Registered name of the graph neural network.
        virtual_edges: Largest distance that gets a virtual edge; 1 means none.
        normalize: Whether predicted parameters are normalised (section 4.2).
        layer_norm: Whether the node embeddings are normalised after propagation.
        steps: Number of rounds of propagation T of the gated GNN, at most 1,000.
        layers: Number of layers of the graphormer.
        heads: Number of heads of its attention, a divisor of ``hid``.
        rules: Name of the rules that graphs are made by (:class:`ghn_fast.graph.rules.GraphRules`).
        window: Which positions of the largest block small kernels are: those at its ``"corner"``,
            or those in its ``"middle"``. Kernels that are larger than the block are interpolated
            from all of it in the latter case.
        decoder: ``"block"``, or ``"low_rank"``: weights are products of two factors, for networks
            of any width (LoGAH, arXiv 2405.16287). The latter decodes out- and in-channels up to
            ``max_shape`` without repetition.
        rank: Number of columns of the factors.
        vectors: With the decoder ``low_rank``, whether 1-D parameters come from an MLP (``"mlp"``)
            or from the same factors (``"low_rank"``).
        weights: With that decoder, how weights are normalised: by their fan-in, or to a
            ``"standard_deviation"``, that of the network's own initial values.
        language: Whether node types and sizes of language models are known.
    """

    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    num_classes: int = 10
    hid: int = 32
    propagator: str = "gated_gnn"
    virtual_edges: int = 50
    normalize: bool = True
    layer_norm: bool = True
    steps: int = 1
    layers: int = 3
    heads: int = 8
    rules: str = "ghn2"
    window: str = "corner"
    decoder: str = "block"
    rank: int = 32
    vectors: str = "mlp"
    weights: str = "fan_in"
    language: bool = False

    def __post_init__(self) -> None:
        shape = self.max_shape
        if len(shape) != 4 or min(shape) < 1 or shape[2] != shape[3]:
            raise ValueError(
                f"max_shape: got {shape}, needs four positive integers with equal height and width"
            )
        if self.hid < 4 or self.hid % 4:
            raise ValueError(f"hid: got {self.hid}, needs a positive multiple of 4")
        for name in ("num_classes", "virtual_edges", "steps", "layers", "heads", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, needs at least 1")
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps: got {self.steps}, needs at most {MOST_STEPS}")
        GraphRules.named(self.rules)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, needs one of {', '.join(known)}"
                )

    @property
    def graph_rules(self) -> GraphRules:
        """The rules that graphs are made by."""
        return GraphRules.named(self.rules)

    @property
    def vector_channels(self) -> int:
        """Number of channels of the blocks of 1-D parameters."""
        return self.hid // 2 if self.decoder == "low_rank" else max(self.max_shape[:2])

    @property
    def uses_virtual_edges(self) -> bool:
        """Whether messages run along virtual edges."""
        return self.virtual_edges > 1

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        values = asdict(self)
        values["max_shape"] = list(self.max_shape)
        return values

    @staticmethod
    def named(name: str, num_classes: int = 1000) -> GHNConfig:
        """A configuration of the sizes that were published.

        Args:
            name: ``ghn3-t``, ``ghn3-s``, ``ghn3-l`` or ``ghn3-xl`` (arXiv 2303.04143);
                ``logah-tiny``, ``logah-small``, ``logah-base`` or ``logah-large`` for vision
                transformers (arXiv 2405.16287), and with ``-gpt`` behind for GPT-2.
            num_classes: Number of classes; kernels up to 16 are decoded for 1,000 of them, as for
                ImageNet, up to 11 for fewer.

        Raises:
            ValueError: If there is none of that name.
        """
        if name.removesuffix("-gpt") in _LOGAH:
            hid, layers, heads, rank = _LOGAH[name.removesuffix("-gpt")]
            language = name.endswith("-gpt")
            return GHNConfig(
                max_shape=(2048, 2048, 16, 16),
                num_classes=num_classes,
                hid=hid,
                propagator="graphormer",
                layers=layers,
                heads=heads,
                rules="language-published" if language else "ghn3",
                window="middle",
                decoder="low_rank",
                rank=rank,
                vectors="low_rank",
                weights="standard_deviation" if language else "fan_in",
                language=language,
                virtual_edges=250 if language else 50,
            )
        if name not in _PUBLISHED:
            raise ValueError(
                f"name: got {name!r}, needs one of {', '.join((*_PUBLISHED, *_LOGAH))}, those of "
                "LoGAH also with -gpt behind"
            )
        hid, layers, heads = _PUBLISHED[name]
        size = 16 if num_classes >= 1000 else 11
        return GHNConfig(
            max_shape=(hid, hid, size, size),
            num_classes=num_classes,
            hid=hid,
            propagator="graphormer",
            layers=layers,
            heads=heads,
            rules="ghn3",
            window="middle",
        )

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> GHNConfig:
        """From plain values.

        Raises:
            ValueError: If a name is unknown or a value is not valid.
        """
        return GHNConfig(**checked(GHNConfig, values, "entry"))

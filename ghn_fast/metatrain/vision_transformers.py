"""Vision transformers to train on, of the sizes of ViTs-1K (arXiv 2405.16287).

DeepNets-1M has few networks of attention. Here a meta-batch is drawn anew for each step; a graph is
captured once for each size, of which there are about a hundred.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ghn_fast.graph.rules import GraphRules
from ghn_fast.metatrain.sized_networks import SizedNetwork, draw_width
from ghn_fast.utils.optional import require
from ghn_fast.utils.seeds import derive_seed

ARCHITECTURES = "vits"
# Smallest and largest width by the number of layers, in steps.
_WIDTHS = {
    3: (384, 512),
    **dict.fromkeys((4, 5), (256, 384)),
    **dict.fromkeys(range(6, 10), (128, 256)),
}
_STEP = 32
# Images from this size on have patches as for ImageNet.
_LARGE_IMAGE, _PATCH, _LARGE_PATCH = 64, 2, 16


@dataclass(frozen=True)
class ViTItem(SizedNetwork):
    """A vision transformer; what a step needs of an architecture.

    Attributes:
        index: Its number.
        layers, width, heads: Its size.
        num_classes, image_size: Of the data.
        virtual_edges, rules: Of its graph.
    """

    index: int
    layers: int
    width: int
    heads: int
    num_classes: int
    image_size: int
    virtual_edges: int
    rules: GraphRules

    @property
    def name(self) -> str:
        """Its name, for example ``vit-5-3x384``."""
        return f"vit-{self.index}-{self.layers}x{self.width}"

    def build(self, num_classes: int, image_size: int) -> Any:
        """The network, without dropout.

        Raises:
            ValueError: If the side of the images is no multiple of that of a patch.
        """
        torchvision = require("torchvision", "vision", "vision transformers")
        patch = _patch(image_size)
        if image_size % patch:
            raise ValueError(
                f"image_size: got {image_size}, needs a multiple of {patch} for vision transformers"
            )
        return torchvision.models.VisionTransformer(
            image_size=image_size,
            patch_size=patch,
            num_layers=self.layers,
            num_heads=self.heads,
            hidden_dim=self.width,
            mlp_dim=4 * self.width,
            num_classes=num_classes,
        )

    def fixed(self, num_classes: int, image_size: int) -> dict[str, Tensor]:
        """Values of what rules may leave unpredicted, drawn as in torchvision; always the same."""
        tokens = (image_size // _patch(image_size)) ** 2 + 1
        generator = torch.Generator().manual_seed(derive_seed("vits", tokens, self.width))
        positions = torch.empty(1, tokens, self.width).normal_(std=0.02, generator=generator)
        return {
            "class_token": torch.zeros(1, 1, self.width),
            "encoder.pos_embedding": positions,
        }

    def size(self, num_classes: int, image_size: int) -> Hashable:
        """All that its graph depends on beside virtual edges and rules."""
        return self.layers, self.width, self.heads, num_classes, image_size

    def example(self, image_size: int) -> dict[str, Any]:
        """The size of an image."""
        return {"input_shape": (3, image_size, image_size)}


def _patch(image_size: int) -> int:
    """Side of a patch."""
    return _LARGE_PATCH if image_size >= _LARGE_IMAGE else _PATCH


def vit_batches(
    meta_batch: int,
    *,
    seed: int,
    start_step: int,
    num_classes: int,
    image_size: int,
    widths: tuple[int, int],
    virtual_edges: int,
    rules: GraphRules,
) -> Iterator[list[Any]]:
    """Meta-batches of vision transformers without end; step k depends on (seed, k) alone.

    Layers are drawn from 3 to 9, widths from those of ViTs-1K for the number of layers, as far as
    they are within ``widths``, and heads as there: 3, 6 or 12 where they divide the width, else 4
    or 8.
    """
    step = start_step
    while True:
        generator = torch.Generator().manual_seed(derive_seed("vits", seed, step))

        def draw(least: int, most: int, source: torch.Generator = generator) -> int:
            return int(torch.randint(least, most + 1, (), generator=source))

        items = []
        for place in range(meta_batch):
            layers = draw(3, 9)
            width = draw_width(
                _WIDTHS[layers], widths, step=_STEP, smallest=_STEP, generator=generator
            )
            choices = [heads for heads in (3, 6, 12) if width % heads == 0] or [4, 8]
            heads = choices[draw(0, len(choices) - 1)]
            number = step * meta_batch + place
            sizes = (layers, width, heads, num_classes, image_size)
            items.append(ViTItem(number, *sizes, virtual_edges, rules))
        yield items
        step += 1

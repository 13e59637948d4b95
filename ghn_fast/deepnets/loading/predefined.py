"""The networks of the split ``predefined``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import nn

from ghn_fast.capturing.capture import capture
from ghn_fast.deepnets.architectures.spec import LARGE_IMAGE
from ghn_fast.deepnets.loading.items import ArchItem
from ghn_fast.deepnets.sampling.splits import IMAGE_SIZES
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.utils.optional import require


class PredefinedItem(ArchItem):
    """A predefined network; its numbers of parameters are those of the network as it is built."""

    @cached_property
    def base_params(self) -> Mapping[str, int]:
        return {name: self._count(10, size) for name, size in IMAGE_SIZES.items()}

    @cached_property
    def num_params(self) -> int:
        return self._count(self.num_classes, self.image_size)

    def _count(self, num_classes: int, image_size: int) -> int:
        with torch.device("meta"):
            network = self.build(num_classes, image_size)
        return sum(parameter.numel() for parameter in network.parameters())


class ResNet50Item(PredefinedItem):
    """ResNet-50 of torchvision; for small images with a 3x3 convolution and no pooling first."""

    def _graph_for(self, num_classes: int, image_size: int) -> ArchGraph:
        with torch.device("meta"):
            network = self.build(num_classes, image_size)
        return capture(network, (3, image_size, image_size), self.virtual_edges, rules=self.rules)

    def build(self, num_classes: int | None = None, image_size: int | None = None) -> nn.Module:
        models = require("torchvision.models", "vision", "networks of torchvision")
        num_classes, image_size = self._defaults(num_classes, image_size)
        network: nn.Module = models.resnet50(num_classes=num_classes)
        network.input_shape = (3, image_size, image_size)  # type: ignore[assignment]
        if image_size < LARGE_IMAGE:
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        return network

    @cached_property
    def num_nodes(self) -> int:
        return self.graph.num_nodes

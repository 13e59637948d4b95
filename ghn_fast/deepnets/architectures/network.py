"""The network that a configuration describes, as a module."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.layers import (
    Conv2d,
    FactorizedReduce,
    Linear,
    PosEnc,
    Stride,
    conv,
    make_op,
    norm_layer,
    relu_conv,
)
from ghn_fast.deepnets.architectures.spec import (
    CellSpec,
    NetworkSpec,
    PreprocessSpec,
    StemSpec,
    network_spec,
)


class Cell(nn.Module):
    """A cell: states computed from the outputs of the two cells before it.

    Only operations that matter for the output of the network are executed.

    Args:
        spec: What to build.
        norm: Whether convolutions are followed by batch normalisation.
    """

    def __init__(self, spec: CellSpec, norm: bool) -> None:
        super().__init__()
        self.preprocess0 = _preprocess(spec.preprocess[0], spec.channels, norm)
        self.preprocess1 = _preprocess(spec.preprocess[1], spec.channels, norm)
        self._ops = nn.ModuleList(
            make_op(op.primitive, spec.channels, op.stride, norm) for op in spec.ops
        )
        self._spec = spec

    def forward(self, s0: Tensor | None, s1: Tensor | None) -> Tensor | None:
        """Output of the cell, ``None`` if nothing needs it.

        Args:
            s0: Output of the cell before the last, (batch, channels, height, width).
            s1: Output of the last cell.
        """
        spec = self._spec
        if not spec.alive:
            return None
        states: list[Tensor | None] = []
        for layer, part, x in zip(
            (self.preprocess0, self.preprocess1), spec.preprocess, (s0, s1), strict=True
        ):
            states.append(layer(x) if part.alive else None)
        for step in range(0, len(spec.ops), 2):
            terms = [
                self._ops[position](states[spec.ops[position].source])
                for position in (step, step + 1)
                if spec.ops[position].alive
            ]
            if len(terms) == 2:
                states.append(terms[0] + terms[1])
            else:
                states.append(terms[0] if terms else None)
        return self._concat(states)

    def _concat(self, states: list[Tensor | None]) -> Tensor:
        chosen = [None if state is None else states[state] for state in self._spec.concat]
        parts = [part for part in chosen if part is not None]
        if len(parts) < len(chosen):
            # States that nothing reaches count as zeros, which keeps the number of channels.
            zeros = parts[0] * 0
            parts = [zeros if part is None else part for part in chosen]
        return torch.cat(parts, dim=1)


class Network(nn.Module):
    """A network of DeepNets-1M (arXiv 2110.13100, section 3).

    Parameters have the names, shapes and order of the published networks. Operations that no path
    from the input to the output uses own parameters, too, but are not executed: their parameters
    may hold anything, or stay on the meta device.

    Args:
        config: What to build.
        num_classes: Number of classes.
        image_size: Height and width of the images. From 64 on the stem is that for ImageNet. It
            matters for the shapes of the positional encoding, and of the classifier without global
            average pooling.

    Raises:
        ValueError: If no path leads from the input to the output, or a size is not positive.
    """

    def __init__(self, config: NetworkConfig, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        spec = network_spec(config, num_classes, image_size)
        if not spec.connected:
            raise ValueError(
                f"config: no path leads from the input to the output, got {config.genotype}; needs "
                "fewer 'none' operations"
            )
        self.config = config
        # What a hypernetwork captures the graph with, if it is not told otherwise.
        self.input_shape = (3, image_size, image_size)
        self._spec: NetworkSpec = spec
        self._build_stem(spec.stem, spec.norm)
        self.cells = nn.ModuleList(Cell(cell, spec.norm) for cell in spec.cells)
        layers: list[nn.Module] = []
        for width, following in pairwise(spec.classifier):
            if layers:
                layers += [nn.ReLU(), nn.Dropout(p=0.5)]
            layers.append(Linear(width, following))
        self.classifier = nn.Sequential(*layers)

    def _build_stem(self, stem: StemSpec, norm: bool) -> None:
        channels, kernel = stem.channels, stem.kernel
        if stem.kind == "vit":
            self.stem0: nn.Module = Conv2d(
                3, channels, kernel, stride=stem.stride, padding=int(kernel < 4), bias=False
            )
            self.pos_enc = PosEnc(channels, stem.sizes[1])
        elif stem.kind == "simple":
            self.stem = nn.Sequential(
                conv(3, channels, kernel, stem.stride),
                norm_layer(norm, channels),
                nn.MaxPool2d(3, stride=2, padding=1) if stem.pool else nn.Identity(),
            )
        else:
            self.stem0 = nn.Sequential(
                conv(3, channels // 2, kernel, stem.stride),
                norm_layer(norm, channels // 2),
                nn.ReLU(),
                conv(channels // 2, channels, 3, stem.stride),
                norm_layer(norm, channels),
            )
            # Position 0 is a ReLU in the published networks; see _stem_outputs.
            self.stem1 = nn.Sequential(
                nn.Identity(), conv(channels, channels, 3, 2), norm_layer(norm, channels)
            )

    def _stem_outputs(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        kind = self._spec.stem.kind
        if kind == "vit":
            x = self.pos_enc(self.stem0(image))
            return x, x
        if kind == "simple":
            x = self.stem(image)
            return x, x
        # The published stem applies this ReLU in place, so that the first cell reads its result.
        x = F.relu(self.stem0(image))
        return x, self.stem1(x) if self._spec.stem1_alive else None

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a batch of images.

        Args:
            image: (batch, 3, image_size, image_size).

        Returns:
            (batch, num_classes).
        """
        s0: Tensor | None
        s1: Tensor | None
        s0, s1 = self._stem_outputs(image)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        if s1 is None:
            raise RuntimeError("the last cell has no output")
        if self._spec.glob_avg:
            s1 = F.adaptive_avg_pool2d(s1, 1)
        return self.classifier(s1.reshape(s1.shape[0], -1))


def _preprocess(spec: PreprocessSpec, channels: int, norm: bool) -> nn.Module:
    if spec.kind == "conv":
        return relu_conv(spec.in_channels, channels, norm)
    if spec.kind == "factorized":
        return FactorizedReduce(spec.in_channels, channels, norm)
    return Stride() if spec.kind == "stride" else nn.Identity()

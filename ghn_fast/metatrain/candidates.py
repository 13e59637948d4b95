"""Candidate networks as functions of predicted parameters: of DeepNets-1M, or any module."""

from __future__ import annotations

import types
from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.spec import network_spec
from ghn_fast.hypernet.batch_statistics import use_batch_statistics
from ghn_fast.metatrain.functional_networks import program_of
from ghn_fast.ops.exact_batch_norm import batch_norm
from ghn_fast.ops.network_program import Program


class Candidate(Protocol):
    """A network without parameters.

    Attributes:
        generator: Source of all its random numbers, so that other networks may run at the same
            time; ``None`` if it may draw from torch's own.
        casts: Whether it takes images and weights of a narrow type, and vectors in float32.
        program: What it computes, if it is known instruction by instruction.
    """

    generator: torch.Generator | None
    casts: bool
    program: Program | None

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, S, S)."""


class FunctionalNetwork:
    """A network of DeepNets-1M; see :mod:`ghn_fast.metatrain.functional_networks`.

    Args:
        config: The network.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        device: Where it will run.
    """

    def __init__(
        self, config: NetworkConfig, num_classes: int, image_size: int, device: torch.device
    ) -> None:
        self.generator: torch.Generator | None = torch.Generator(device)
        self.casts = True
        self.program: Program | None = program_of(network_spec(config, num_classes, image_size))

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        assert self.program is not None
        return self.program.run(parameters, images, self.generator)


class ModuleNetwork:
    """Any module, whose own parameters are not used.

    Args:
        module: The module, best on the meta device. It is taken over: put into training mode, with
            batch statistics, which are exact. Parameters that a call does not name stay as they
            are; on the meta device, the module must not need them.
    """

    generator: torch.Generator | None = None
    casts = False
    program: Program | None = None

    def __init__(self, module: nn.Module, fixed: Mapping[str, Tensor] | None = None) -> None:
        self._module = module.train()
        self._fixed = dict(fixed or {})
        self._names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        use_batch_statistics(module)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.forward = types.MethodType(_batch_norm, layer)  # type: ignore[method-assign]

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits of images; a parameter that several layers share need be named once.

        Raises:
            ValueError: If the module has no parameter of a name.
        """
        for name in parameters:
            if name not in self._names:
                raise ValueError(
                    f"names: got {name!r}, which {type(self._module).__name__} does not have; was "
                    "the graph made for another network?"
                )
        logits: Tensor = functional_call(self._module, self._fixed | dict(parameters), (images,))
        return logits


def candidate(
    architecture: Any, *, num_classes: int, image_size: int, device: torch.device
) -> Candidate:
    """The network of an architecture (see :class:`ghn_fast.metatrain.step.Architecture`)."""
    if isinstance(getattr(architecture, "config", None), NetworkConfig):
        config = architecture.config_for(image_size)
        return FunctionalNetwork(config, num_classes, image_size, device)
    with torch.device("meta"):
        module = architecture.build(num_classes=num_classes, image_size=image_size)
    fixed: dict[str, Tensor] = {}
    if hasattr(architecture, "fixed"):
        values = architecture.fixed(num_classes=num_classes, image_size=image_size)
        fixed = {name: value.to(device) for name, value in values.items()}
    return ModuleNetwork(module, fixed)


def candidate_key(architecture: Any, *, num_classes: int, image_size: int) -> Hashable | None:
    """What tells whether two candidates are the same function; ``None`` if nothing does."""
    if isinstance(getattr(architecture, "config", None), NetworkConfig):
        return architecture.config_for(image_size), num_classes, image_size
    return None


def _batch_norm(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return batch_norm(x, self.weight, self.bias, self.eps)

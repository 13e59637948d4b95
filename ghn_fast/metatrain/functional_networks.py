"""Skeletons: the modules of candidate networks without parameters of their own.

A skeleton is built once per structure, on the meta device. A step only puts tensors, views of the
flat buffer of predicted parameters, in the places where the modules look for their parameters.
"""

from __future__ import annotations

import math
import types
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.deepnets.architectures.layers import SelfAttention
from ghn_fast.deepnets.architectures.network import Network
from ghn_fast.hypernet.batch_statistics import use_batch_statistics
from ghn_fast.metatrain.exact_batch_norm import batch_norm


class SeededDropout(nn.Module):
    """Dropout whose mask comes from a generator of its own, so that networks may run side by side.

    Args:
        p: Probability that an element is dropped.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        mask = torch.empty_like(x).bernoulli_(keep, generator=self.generator)
        return x * mask.div_(keep) if keep > 0 else x * mask


class Skeleton:
    """The modules of a network, without parameters.

    Args:
        network: The network, best on the meta device. It is taken over: put into training mode,
            with batch statistics, and adapted (see :func:`adapt`).
        device: Where it will run.

    Attributes:
        network: The modules.
        deterministic: Whether all random numbers that it draws come from its own generator, so that
            other networks may run at the same time.
        generator: Its generator.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network = network.train()
        use_batch_statistics(network)
        self.generator = torch.Generator(device)
        self.deterministic = isinstance(network, Network)
        adapt(network, self.generator)
        self._places = _places(network)
        self._names: tuple[str, ...] = ()
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._order: list[int] = []

    def bind(self, names: Sequence[str], tensors: Sequence[Tensor]) -> None:
        """Put tensors where the modules look for the parameters of these names.

        A parameter that several modules share gets its tensor in all of them. Parameters that are
        not named stay on the meta device; a network must not need them.

        Raises:
            ValueError: If the network has no parameter of a name.
        """
        key = tuple(names)
        if key != self._names:
            self._prepare(key)
        for (place, attribute), index in zip(self._slots, self._order, strict=True):
            place[attribute] = tensors[index]

    def release(self) -> None:
        """Let go of the tensors."""
        for place, attribute in self._slots:
            place[attribute] = None

    def _prepare(self, names: tuple[str, ...]) -> None:
        self._slots, self._order = [], []
        for index, name in enumerate(names):
            if name not in self._places:
                raise ValueError(
                    f"names: got {name!r}, which {type(self.network).__name__} does not have; was "
                    "the graph made for another network?"
                )
            for module, attribute in self._places[name]:
                # In the instance's own dictionary it is found without nn.Module.__getattr__.
                module._parameters.pop(attribute, None)
                self._slots.append((module.__dict__, attribute))
                self._order.append(index)
        self._names = names


class SkeletonCache:
    """Skeletons by structure, the most recently used ones.

    A skeleton is taken out while it is in use, so that the same structure twice in a meta-batch
    gets two.

    Args:
        capacity: Number of skeletons that are kept, at least 0.
        device: Where they will run.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        if capacity < 0:
            raise ValueError(f"capacity: got {capacity}, needs at least 0")
        self.capacity = capacity
        self.device = device
        self.built = 0
        self._kept: OrderedDict[Hashable, list[Skeleton]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(
        self, architecture: Any, *, num_classes: int, image_size: int
    ) -> tuple[Hashable | None, Skeleton]:
        """The key of an architecture's structure and a skeleton; give it back after use."""
        key = structure_key(architecture, num_classes, image_size)
        kept = self._kept.get(key) if key is not None else None
        if kept:
            self._count -= 1
            skeleton = kept.pop()
            if not kept:
                del self._kept[key]
            return key, skeleton
        self.built += 1
        with torch.device("meta"):
            network = architecture.build(num_classes=num_classes, image_size=image_size)
        return key, Skeleton(network, self.device)

    def give_back(self, key: Hashable | None, skeleton: Skeleton) -> None:
        """Keep a skeleton for the next time."""
        skeleton.release()
        if key is None or self.capacity == 0:
            return
        self._kept.setdefault(key, []).append(skeleton)
        self._kept.move_to_end(key)
        self._count += 1
        while self._count > self.capacity:
            _, oldest = self._kept.popitem(last=False)
            self._count -= len(oldest)


def structure_key(architecture: Any, num_classes: int, image_size: int) -> Hashable | None:
    """What tells whether two architectures have the same modules; ``None`` if nothing does."""
    if getattr(architecture, "config", None) is None:
        return None
    return architecture.config_for(image_size), num_classes, image_size


def adapt(network: nn.Module, generator: torch.Generator) -> None:
    """Exchange layers for equal ones that suit training side by side, in place.

    Dropout gets a generator of its own. Self-attention (which DeepNets-1M spells out, because the
    recorded operations make the graph) becomes one fused operation that never stores the matrix of
    attention weights. Batch normalisation gets exact statistics.
    """
    for module in list(network.modules()):
        if isinstance(module, SelfAttention):
            module._attend = types.MethodType(_fused_attention, module)  # type: ignore[method-assign]
        if isinstance(module, nn.BatchNorm2d):
            module.forward = types.MethodType(_batch_norm, module)  # type: ignore[method-assign]
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                dropout = SeededDropout(child.p).train(child.training)
                dropout.generator = generator
                setattr(module, name, dropout)


def _batch_norm(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return batch_norm(x, self.weight, self.bias, self.eps)


def _fused_attention(self: SelfAttention, tokens: Tensor) -> Tensor:
    batch, pixels, _ = tokens.shape
    query, key, value = (
        part.reshape(batch, pixels, self.heads, -1).transpose(1, 2)
        for part in self.to_qkv(tokens).chunk(3, dim=-1)
    )
    merged = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return self.to_out(merged.reshape(batch, pixels, -1))


def _places(network: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Where each parameter is found, by every name that it has."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            place = (module, attribute)
            known = owners.setdefault(id(parameter), [])
            if place not in known:
                known.append(place)
            names[f"{prefix}.{attribute}" if prefix else attribute] = id(parameter)
    return {name: owners[number] for name, number in names.items()}


def views(flat: Tensor, shapes: Sequence[tuple[int, ...]], offsets: Sequence[int]) -> list[Tensor]:
    """Views of pieces of a flat tensor (n,), without gradient history.

    Args:
        flat: The tensor.
        shapes: Shape of each piece.
        offsets: Where each piece begins, ascending from 0; there may be gaps between them.
    """
    # One split, in which a gap follows each piece, is faster than many slices.
    sizes = []
    for shape, begin, end in zip(shapes, offsets, [*offsets[1:], len(flat)], strict=True):
        size = math.prod(shape)
        sizes += [size, end - begin - size]
    if not sizes:
        return []
    with torch.no_grad():
        pieces = flat.split(sizes)[::2]
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

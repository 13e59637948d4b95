"""Features of architectures: embeddings, and the baselines that they have to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghn_fast.graph import NODE_TYPES, ArchGraph, graph_properties
from ghn_fast.hypernet import GHN
from ghn_fast.studies.embeddings import embed_architectures
from ghn_fast.studies.networks import Network
from ghn_fast.studies.regression import Array
from ghn_fast.utils.modes import evaluation_mode

FEATURES = ("embeddings", "parameters", "FLOPs", "operations", "paths")
COMBINED = "embeddings and counts"
"""Embeddings beside all counts."""


def architecture_features(
    ghn: GHN,
    networks: Sequence[Network],
    *,
    num_classes: int,
    image_size: int,
    on_network: Callable[[int], None] | None = None,
) -> dict[str, Array]:
    """Features of networks by name, each (networks, F).

    ``embeddings`` are the hypernetwork's, mean over nodes. ``parameters`` and ``FLOPs`` are the
    logarithms of the two numbers, ``operations`` how many nodes of each type there are,
    ``paths`` nodes, edges, average degree, average shortest and longest path of the graph.

    Args:
        ghn: The hypernetwork.
        networks: The networks, at least one.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels.
        on_network: Called with the number of networks that are done.
    """
    if not networks:
        raise ValueError("networks: got none, needs at least one")
    graphs, rows = [], []
    for done, network in enumerate(networks, start=1):
        graph = network.graph(
            num_classes, image_size, ghn.config.virtual_edges, rules=ghn.config.graph_rules
        )
        graphs.append(graph)
        model = network.build(num_classes, image_size)
        rows.append(_counts(model, graph, image_size))
        if on_network is not None:
            on_network(done)
    found: dict[str, Array] = {"embeddings": embed_architectures(ghn, graphs).double().numpy()}
    for name in FEATURES[1:]:
        found[name] = np.array([row[name] for row in rows], dtype=np.float64)
    counts = [found[name] for name in FEATURES[1:]]
    found[COMBINED] = np.concatenate([found["embeddings"], *map(_scaled, counts)], axis=1)
    return found


def _scaled(values: Array) -> Array:
    """Counts in the range of embeddings, whose components have a variance near 1."""
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 1e-12, spread, 1.0)


def _counts(model: nn.Module, graph: ArchGraph, image_size: int) -> dict[str, list[float]]:
    properties = graph_properties(graph)
    types = torch.bincount(graph.op_types, minlength=len(NODE_TYPES)).tolist()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": [float(np.log(max(parameters, 1)))],
        "FLOPs": [float(np.log(max(count_flops(model, image_size), 1)))],
        "operations": [float(count) for count in types],
        "paths": [
            *(float(properties.nodes), float(properties.edges), properties.average_degree),
            *(properties.average_path, float(properties.depth)),
        ],
    }


def count_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations of the convolutions and linear layers, for one image.

    A product and its sum count as two; what has no weights (pooling, activations, the products of
    attention) is not counted. The network runs once, so that it tells its own sizes, on two images:
    BatchNorm layers that keep no statistics take no single value.

    Args:
        model: The network.
        image_size: Height and width of the image in pixels.
    """
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)  # these layers have one
        total += 2 * output.numel() * weight[0].numel()

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    first: Any = next(model.parameters(), None)
    device = first.device if first is not None else torch.device("cpu")
    try:
        with evaluation_mode(model), torch.no_grad():
            model(torch.zeros(2, 3, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return total // 2

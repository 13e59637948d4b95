"""Prediction as one would write it straight from the paper.

Capture runs the network on a real image and walks through autograd's graph. Virtual edges come from
a breadth-first search per node, messages from a loop over nodes, and every parameter is tiled,
normalised and copied into its module by itself. Decoding is by shape group, on slices of the
decoder's weights: the published system does that much. Weights are those of a ``ghn_fast.GHN``; no
other code of the package takes part except the tables of known sizes.

It covers what the networks of the comparison contain, no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast import GHN, NODE_TYPES
from ghn_fast.hypernet.encode import channel_table, kernel_table
from suite.peers.node_by_node import Baseline

_KINDS = {
    "Convolution": "conv",
    "Addmm": "linear",
    "NativeBatchNorm": "bn",
    "CudnnBatchNorm": "bn",
    "MaxPool2DWithIndices": "max_pool",
    "AvgPool2D": "avg_pool",
    "AdaptiveAvgPool2D": "glob_avg",
    "Mean": "glob_avg",
    "Add": "sum",
    "Cat": "concat",
}


@dataclass
class Node:
    """A node of the graph: type, shape, and the names of the parameters that it predicts."""

    kind: str
    shape: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()


@dataclass
class Graph:
    """Nodes in topological order, rows (from, to, distance), and the order of message passing."""

    nodes: list[Node]
    edges: Tensor
    walk: Baseline


def capture(
    model: nn.Module, input_shape: tuple[int, ...] = (3, 224, 224), cutoff: int = 50
) -> Graph:
    """Run the network once, and make a graph of what autograd recorded."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    output = model(torch.randn(1, *input_shape))
    for module, mode in training.items():
        module.training = mode
    nodes, preds = _read(output.grad_fn, model)
    order = _sort(preds)
    place = {node: index for index, node in enumerate(order)}
    succs: list[list[int]] = [[] for _ in order]
    for node in order:
        for pred in preds[node]:
            succs[place[pred]].append(place[node])
    edges = torch.tensor(list(_distances(succs, cutoff)))
    return Graph([nodes[node] for node in order], edges, Baseline(edges, [0, len(order)]))


def _read(root: Any, model: nn.Module) -> tuple[dict[Any, Node], dict[Any, set[Any]]]:
    """The nodes and their predecessors; operations that are no nodes are skipped on the way."""
    names = {id(param): name for name, param in model.named_parameters()}
    groups = {
        id(module.weight): module.groups
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    }
    nodes: dict[Any, Node] = {"input": Node("input")}
    preds: dict[Any, set[Any]] = {"input": set()}
    known: dict[Any, Any] = {}

    def visit(function: Any) -> set[Any]:
        """The nodes whose output a function passes on; all functions before it are known."""
        kind = _KINDS.get(type(function).__name__.rpartition("Backward")[0])
        readers = [reader for reader, _ in function.next_functions if reader is not None]
        inputs = {node for r in readers if r in known for node in known[r]}
        if all(_parameter(reader) is not None for reader in readers):
            inputs = {"input"}
        parameters = [p for r in readers if (p := _parameter(r)) is not None]
        if kind is None or (kind in ("sum", "concat") and len(inputs) < 2):
            return inputs
        if kind == "linear":
            parameters.reverse()
        if kind in ("conv", "linear"):
            last = inputs
            for index, parameter in enumerate(parameters):
                grouped = index == 0 and groups.get(id(parameter), 1) > 1
                node_kind = "bias" if index else ("sep_conv" if grouped else "conv")
                key = (function, index)
                nodes[key] = Node(node_kind, tuple(parameter.shape), (names[id(parameter)],))
                preds[key] = last
                last = {key}
            return last
        shape = None
        if kind in ("max_pool", "avg_pool"):
            shape = (1, 1, *function._saved_kernel_size)
        elif kind == "bn":
            shape = tuple(parameters[0].shape)
        nodes[function] = Node(kind, shape, tuple(names[id(p)] for p in parameters))
        preds[function] = inputs
        return {function}

    stack = [(root, False)]
    while stack:
        function, is_ready = stack.pop()
        if function in known or _parameter(function) is not None:
            continue
        if is_ready:
            known[function] = visit(function)
            continue
        stack.append((function, True))
        stack.extend((reader, False) for reader, _ in function.next_functions if reader is not None)
    return nodes, preds


def _parameter(function: Any) -> Tensor | None:
    """The parameter behind a leaf of autograd's graph; a linear layer reads its transpose."""
    if type(function).__name__ == "TBackward0":
        function = function.next_functions[0][0]
    return getattr(function, "variable", None)


def _sort(preds: dict[Any, set[Any]]) -> list[Any]:
    """Sort the nodes topologically."""
    succs: dict[Any, list[Any]] = {node: [] for node in preds}
    missing = {node: len(before) for node, before in preds.items()}
    for node, before in preds.items():
        for pred in before:
            succs[pred].append(node)
    queue = deque(node for node, count in missing.items() if count == 0)
    order = []
    while queue:
        node = queue.popleft()
        order.append(node)
        for succ in succs[node]:
            missing[succ] -= 1
            if missing[succ] == 0:
                queue.append(succ)
    return order


def _distances(succs: list[list[int]], cutoff: int) -> Iterable[tuple[int, int, int]]:
    """Find distances by a breadth-first search from each node."""
    for start in range(len(succs)):
        distance = {start: 0}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if distance[node] == cutoff:
                continue
            for succ in succs[node]:
                if succ not in distance:
                    distance[succ] = distance[node] + 1
                    queue.append(succ)
        yield from ((start, node, steps) for node, steps in distance.items() if steps)


class Predictor:
    """Predict with the weights of a GHN-2.

    Args:
        ghn: The hypernetwork; its weights are read, its code is not run.
    """

    def __init__(self, ghn: GHN) -> None:
        self.ghn = ghn
        self.channels = channel_table(ghn.config.num_classes)
        self.kernels = kernel_table(ghn.config.max_shape[2])

    @torch.no_grad()
    def __call__(self, model: nn.Module, graph: Graph | None = None) -> nn.Module:
        """Fill the parameters of a network in place; without a graph it is captured."""
        if graph is None:
            with torch.enable_grad():
                graph = capture(model)
        # Its parts are those of a gated GNN.
        gnn: Any = self.ghn.propagator
        x = self._encode(graph)
        x = self.ghn.norm(graph.walk(x, gnn.message, gnn.virtual_message, gnn.update))
        params = dict(model.named_parameters())
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, node in enumerate(graph.nodes):
            if node.names:
                groups.setdefault(self._group(graph, index), []).append(index)
        for (decoder, *shape), members in groups.items():
            blocks = self._decode(x[torch.tensor(members)], decoder, shape)
            for block, index in zip(blocks, members, strict=True):
                node = graph.nodes[index]
                for row, name in enumerate(node.names):
                    value = block
                    if decoder == "vector":
                        value = block[1 if node.kind == "bias" else row]
                    param = params[name]
                    is_shift = node.kind == "bias" or row == 1
                    param.data.copy_(_normalise(_tile(value, param.shape), is_shift))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.track_running_stats = False
                module.running_mean = module.running_var = module.num_batches_tracked = None
        return model

    def _encode(self, graph: Graph) -> Tensor:
        encoder = self.ghn.encoder
        missing = encoder.channel.num_embeddings - 1, encoder.kernel.num_embeddings - 1
        rows = []
        for node in graph.nodes:
            if node.shape is None:
                rows.append([missing[0], missing[0], missing[1], missing[1]])
                continue
            out, in_, height, width = (*node.shape, 1, 1, 1)[:4]
            channels = [int(self.channels[min(c, len(self.channels) - 1)]) for c in (out, in_)]
            kernels = [int(self.kernels[min(k, len(self.kernels) - 1)]) for k in (height, width)]
            rows.append(channels + kernels)
        index = torch.tensor(rows)
        shape = torch.cat([encoder.channel(index[:, :2]), encoder.kernel(index[:, 2:])], 1)
        types = torch.tensor([NODE_TYPES.index(node.kind) for node in graph.nodes])
        return encoder.op(types) + shape.flatten(1)

    def _group(self, graph: Graph, index: int) -> tuple[Any, ...]:
        """Which decoder makes a parameter, and the size of its block."""
        shape = graph.nodes[index].shape
        assert shape is not None
        last = len(graph.nodes) - 1
        most_out, most_in, most, _ = self.ghn.config.max_shape
        if len(shape) == 1:
            return ("class bias",) if index == last else ("vector",)
        if len(shape) == 2 and index == last - 1:
            return "class weight", most_out, _rounded(shape[1], most_in), 1, 1
        out, in_, height, width = (*shape, 1, 1)[:4]
        sizes = _rounded(out, most_out), _rounded(in_, most_in), min(height, most), min(width, most)
        return "block", *sizes

    def _decode(self, x: Tensor, decoder: str, shape: list[int]) -> Tensor:
        vectors, blocks = self.ghn.vectors, self.ghn.blocks
        if decoder in ("vector", "class bias"):
            rows = vectors.layers(x).view(len(x), 2, -1)
            return rows if decoder == "vector" else vectors.head(F.relu(rows[:, 1]))
        out, in_, height, width = shape
        most_out, most_in, most, _ = self.ghn.config.max_shape
        features = F.relu(blocks.expand(x)).view(len(x), -1, most, most)[:, :, :height, :width]
        features = F.relu(
            F.conv2d(features, blocks.hidden.weight[..., None, None], blocks.hidden.bias)
        )
        weight = blocks.output.weight.view(most_out, most_in, -1)[:out, :in_].flatten(0, 1)
        bias = blocks.output.bias.view(most_out, most_in)[:out, :in_].flatten()
        block = F.conv2d(features, weight[..., None, None], bias).view(len(x), *shape)
        if decoder == "class weight":
            block = F.relu(block.flatten(2)).transpose(1, 2)
            return blocks.head(block).transpose(1, 2)[..., None, None]
        return block


def _rounded(channels: int, most: int) -> int:
    channels = min(channels, most)
    if channels % 3 == 0:
        channels = channels // 3 * 4
    return most if 2 * channels >= most else channels


def _tile(value: Tensor, shape: torch.Size) -> Tensor:
    """Repeat a block until it is large enough, and cut off the rest."""
    if len(shape) == 2 and value.ndim == 4:
        value = value[..., 0, 0]
    repeats = [-(-want // have) for want, have in zip(shape, value.shape, strict=True)]
    value = value.repeat(repeats)
    return value[tuple(slice(want) for want in shape)]


def _normalise(value: Tensor, is_shift: bool) -> Tensor:
    """Normalise as section 4.2 of arXiv 2110.13100 says."""
    if value.ndim == 1:
        return torch.tanh(value / 5) if is_shift else 2 * torch.sigmoid(value / 2)
    fan_in = value[0].numel()
    depthwise = value.ndim == 4 and (value.shape[1] == 1 or value.shape[2] < value.shape[3])
    return value * ((1 if depthwise else 2) / fan_in) ** 0.5

"""Graph neural networks that update the node embeddings, behind a small registry."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.graphormer import Graphormer
from ghn_fast.ops.gated_gnn import GRUWeights, MLPWeights, gated_gnn

PropagatorFactory = Callable[[GHNConfig], nn.Module]

_registry: dict[str, PropagatorFactory] = {}


def register_propagator(name: str, factory: PropagatorFactory) -> None:
    """Make a graph neural network available as ``GHNConfig(propagator=name)``.

    Args:
        name: Name of the network; must be new.
        factory: Called with the configuration, returns a module whose ``forward(x, batch)`` maps
            node features (N, C) and a :class:`~ghn_fast.graph.batch.GraphBatch` to node features
            (N, C).

    Raises:
        ValueError: If the name is taken.
        TypeError: If ``factory`` cannot be called.
    """
    if name in _registry:
        raise ValueError(f"name: {name!r} is registered already; registered are {propagators()}")
    if not callable(factory):
        raise TypeError(f"factory: got {type(factory).__name__}, needs a callable")
    _registry[name] = factory


def propagators() -> list[str]:
    """Names of the registered propagators."""
    return sorted(_registry)


def build_propagator(config: GHNConfig) -> nn.Module:
    """Build the propagator that a configuration names.

    Raises:
        ValueError: If no propagator of that name is registered.
    """
    if config.propagator not in _registry:
        raise ValueError(
            f"propagator: got {config.propagator!r}, registered are {propagators()}; add your own "
            "with ghn_fast.register_propagator"
        )
    return _registry[config.propagator](config)


class GatedGNN(nn.Module):
    """Gated GNN with forward and backward sweeps (see :mod:`ghn_fast.ops.gated_gnn`).

    Args:
        config: Uses ``hid``, ``virtual_edges`` and ``steps``.
    """

    needs = ("plan",)

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        hid = config.hid
        self.steps = config.steps
        self.message = _mlp(hid, hid // 2 if config.uses_virtual_edges else hid)
        self.virtual_message = _mlp(hid, hid // 2) if config.uses_virtual_edges else None
        self.update = nn.GRUCell(hid, hid)

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """Update node features (N, C)."""
        gru = self.update
        return gated_gnn(
            x,
            batch.plan,
            _weights(self.message),
            None if self.virtual_message is None else _weights(self.virtual_message),
            GRUWeights(gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh),
            self.steps,
        )


class MLPPropagator(nn.Module):
    """The MLP baseline: every node by itself, two layers with ReLU, no edges.

    Args:
        config: Uses ``hid``.
    """

    def __init__(self, config: GHNConfig) -> None:
        super().__init__()
        self.layers = _mlp(config.hid, config.hid)

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """Update node features (N, C); ``batch`` is not read."""
        return self.layers(x)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())


def _weights(mlp: nn.Sequential) -> MLPWeights:
    first, last = mlp[0], mlp[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    return MLPWeights(first.weight, first.bias, last.weight, last.bias)


register_propagator("gated_gnn", GatedGNN)
register_propagator("graphormer", Graphormer)
register_propagator("mlp", MLPPropagator)

BUILT_IN = tuple(propagators())

"""Giving predicted parameters to a network: where they go, and the step that writes them there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ghn_fast.capturing.structure import Structure
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet.batch_statistics import drop_running_statistics, norm_layers
from ghn_fast.hypernet.decoders import Plan
from ghn_fast.hypernet.named import named_parameters
from ghn_fast.hypernet.report import Clock, PredictionReport


@dataclass(frozen=True)
class Destinations:
    """Where the predictions for one network go.

    Attributes:
        graph: The network's graph.
        tensors: For each predicted tensor the parameter that it goes to, or ``None`` where the
            network has no storage to fill.
        predicted: Names of the parameters that are filled, in the network's order.
        skipped: The others, with the reason.
        norms: The BatchNorm layers with their names.
    """

    graph: ArchGraph
    tensors: list[Tensor | None]
    predicted: Sequence[str]
    skipped: dict[str, str]
    norms: list[tuple[str, nn.Module]]


def bind(
    decoded: Any,
    plan: Plan,
    destinations: Destinations,
    clock: Clock,
    *,
    batch_statistics: bool,
) -> PredictionReport:
    """Write predicted parameters into a network.

    It is expanded straight into the parameters, whose dtypes, devices and strides stay as they
    are.

    Args:
        decoded: What was decoded by the plan.
        plan: The plan.
        destinations: Where the parameters go, one for each parameter of the plan.
        clock: Ends the stages ``expand`` and ``bind``.
        batch_statistics: Whether BatchNorm layers are switched to batch statistics.
    """
    plan.expand_into(decoded, destinations.tensors)
    clock.lap("expand")
    return finish(destinations, clock, batch_statistics=batch_statistics)


def finish(destinations: Destinations, clock: Clock, *, batch_statistics: bool) -> PredictionReport:
    """Switch the BatchNorm layers if asked to, and report what was done.

    Args:
        destinations, clock, batch_statistics: As in :func:`bind`, by which the parameters have been
            written.
    """
    changed = drop_running_statistics(destinations.norms) if batch_statistics else []
    clock.lap("bind")
    seconds = {**clock.seconds, "total": sum(clock.seconds.values())}
    return PredictionReport(
        list(destinations.predicted),
        dict(destinations.skipped),
        seconds,
        changed,
        destinations.graph.partial,
        list(destinations.graph.notes),
    )


def check_graph(model: nn.Module, graph: ArchGraph) -> None:
    """Check that a graph belongs to a network: every predicted name is there, with its shape.

    Raises:
        ValueError: If a parameter is missing in the network or has another shape.
    """
    params = dict(model.named_parameters(remove_duplicate=False))
    for target in graph.targets:
        if target.name not in params:
            raise ValueError(
                f"graph: predicts parameter '{target.name}', which {type(model).__name__} does not "
                "have; was the graph made for another network?"
            )
        shape = tuple(params[target.name].shape)
        if shape != target.shape:
            raise ValueError(
                f"graph: predicts parameter '{target.name}' of shape {target.shape}, but "
                f"{type(model).__name__} needs {shape}; was the graph made for another network?"
            )


def find_destinations(model: nn.Module, graph: ArchGraph, names: Sequence[str]) -> Destinations:
    """Find by name where predictions go.

    Args:
        model: The network.
        graph: Its graph.
        names: Names of the predicted parameters: all that the graph predicts, or all but the
            classifier's.
    """
    rows = {graph.aliases.get(name, name): row for row, name in enumerate(names)}
    unasked = {target.name for target in graph.targets}.difference(names)
    tensors: list[Tensor | None] = [None] * len(names)
    predicted, skipped = [], {}
    for name, param in named_parameters(model):
        known_as = graph.aliases.get(name, name)
        row = rows.get(known_as)
        if known_as in unasked:
            skipped[name] = "the classifier was not asked for (head=False)"
        elif row is None:
            skipped[name] = graph.skipped.get(name, "the graph has no node for it")
        elif param.is_meta:
            skipped[name] = "it is on the meta device and has no storage to fill"
        else:
            tensors[row] = param
            predicted.append(name)
    return Destinations(graph, tensors, predicted, skipped, norm_layers(model))


@dataclass(frozen=True)
class Binding:
    """Where predictions go in all networks of one structure, found once.

    Attributes:
        rows: For each parameter of :class:`~ghn_fast.capturing.structure.Structure` the number of
            the tensor that is predicted for it, or -1.
        count: Number of predicted tensors.
        predicted: Names of the predicted parameters, in the network's order.
        skipped: The others, with the reason.
        norms: Names of the BatchNorm layers.
    """

    rows: tuple[int, ...]
    count: int
    predicted: tuple[str, ...]
    skipped: dict[str, str]
    norms: tuple[str, ...]

    @classmethod
    def of(
        cls, model: nn.Module, structure: Structure, destinations: Destinations
    ) -> Binding | None:
        """The binding for the structure of a network.

        Args:
            model: The network.
            structure: Its structure.
            destinations: Where predictions go in this network (:func:`find_destinations`).

        Returns:
            The binding, or ``None`` for a network that names are needed for: one with parameters on
            the meta device, or whose structure lists others than it has registered (a parameter
            that is a buffer elsewhere, a module that an attribute holds).
        """
        if (
            not structure.complete
            or not _same([p for _, p in named_parameters(model)], structure.parameters)
            or not _same([layer for _, layer in destinations.norms], structure.norms)
            or any(p.is_meta for p in structure.parameters)
        ):
            return None
        rows = {id(tensor): row for row, tensor in enumerate(destinations.tensors)}
        return cls(
            tuple(rows.get(id(p), -1) for p in structure.parameters),
            len(destinations.tensors),
            tuple(destinations.predicted),
            destinations.skipped,
            tuple(name for name, _ in destinations.norms),
        )

    def destinations(self, graph: ArchGraph, structure: Structure) -> Destinations | None:
        """Where predictions go in a network of this structure.

        ``None`` where a parameter has no storage to fill, and names are needed again.
        """
        tensors: list[Tensor | None] = [None] * self.count
        for row, parameter in zip(self.rows, structure.parameters, strict=True):
            if parameter.is_meta:
                return None
            if row >= 0:
                tensors[row] = parameter
        norms = list(zip(self.norms, structure.norms, strict=True))
        return Destinations(graph, tensors, self.predicted, self.skipped, norms)


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))

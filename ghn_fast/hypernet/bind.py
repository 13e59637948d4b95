"""Giving predicted parameters to a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ghn_fast.capturing.structure import Structure
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet.batch_statistics import named_modules, norm_layers

_NOT_IN_GRAPH = "the graph has no node for it"
_FROZEN = (
    "frozen (requires_grad=False, other parameters are trainable): its values are meant to stay; "
    "frozen='predict' predicts it as well"
)


@dataclass
class PredictionReport:
    """What a prediction did. Every parameter of the network is in exactly one of the first two.

    Attributes:
        predicted: Names of the parameters that were predicted, in the network's order.
        skipped: Parameters that were left as they were, with the reason.
        seconds: Wall-clock seconds by stage (capture, encode, propagate, decode, expand, bind) and
            in total.
        batch_statistics: Names of the BatchNorm layers that normalise with batch statistics from
            now on, because running statistics are not predicted.
        warnings: Why predicted parameters may not work in this network, as sentences.
    """

    predicted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    batch_statistics: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


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


def find_destinations(
    model: nn.Module, graph: ArchGraph, names: Sequence[str], report: PredictionReport
) -> list[Tensor | None]:
    """The tensors of a network that predicted parameters go to, and the report of what they are.

    Args:
        model: The network; dtypes, devices and strides of its parameters stay as they are.
        graph: Its graph, for the reasons of what is left out.
        names: Names of the predicted parameters.
        report: Gets ``predicted`` and ``skipped``.

    Returns:
        For each name the parameter, or ``None`` where it has no storage to fill.
    """
    place = {graph.aliases.get(name, name): index for index, name in enumerate(names)}
    out: list[Tensor | None] = [None] * len(names)
    for name, param in _named_parameters(model):
        index = place.get(graph.aliases.get(name, name))
        if index is None:
            report.skipped[name] = graph.skipped.get(name, _NOT_IN_GRAPH)
        elif param.is_meta:
            report.skipped[name] = "it is on the meta device and has no storage to fill"
        else:
            out[index] = param
            report.predicted.append(name)
    return out


def check_frozen(frozen: str) -> None:
    """Check what a caller wants to be done with frozen parameters.

    Raises:
        ValueError: If it is neither ``"keep"`` nor ``"predict"``.
    """
    if frozen not in ("keep", "predict"):
        raise ValueError(f"frozen: got {frozen!r}, needs 'keep' or 'predict'")


def keep_frozen(model: nn.Module, out: list[Tensor | None], report: PredictionReport) -> None:
    """Leave frozen parameters out of a prediction, in place.

    A parameter with ``requires_grad=False`` in a network that has trainable ones is fixed by design
    (Sobel filters, the integral weights of YOLO). In a wholly frozen network nothing is special.

    Args:
        model: The network.
        out: The destinations (:func:`find_destinations`); those of frozen parameters go.
        report: Their names move from ``predicted`` to ``skipped``.
    """
    frozen = {id(t): place for place, t in enumerate(out) if t is not None and not t.requires_grad}
    if not frozen or not any(parameter.requires_grad for parameter in model.parameters()):
        return
    for name, parameter in _named_parameters(model):
        place = frozen.get(id(parameter))
        if place is not None:
            out[place] = None
            report.skipped[name] = _FROZEN
    report.predicted = [name for name in report.predicted if name not in report.skipped]


@dataclass(frozen=True)
class Binding:
    """What goes where in all networks of one structure, found once.

    Attributes:
        places: For each parameter of :class:`~ghn_fast.capturing.structure.Structure` the index of
            what is predicted for it, or -1.
        count: Number of predicted tensors.
        predicted: Names of the predicted parameters, in the network's order.
        skipped: The others, with the reason.
        norms: Names of the BatchNorm layers.
    """

    places: tuple[int, ...]
    count: int
    predicted: tuple[str, ...]
    skipped: dict[str, str]
    norms: tuple[str, ...]

    def destinations(
        self, structure: Structure, report: PredictionReport
    ) -> list[Tensor | None] | None:
        """As :func:`find_destinations`; ``None`` where a parameter has no storage to fill."""
        out: list[Tensor | None] = [None] * self.count
        for place, parameter in zip(self.places, structure.parameters, strict=True):
            if parameter.is_meta:
                return None
            if place >= 0:
                out[place] = parameter
        report.predicted = list(self.predicted)
        report.skipped = dict(self.skipped)
        return out

    def norm_layers(self, structure: Structure) -> list[tuple[str, nn.Module]]:
        """The BatchNorm layers with their names."""
        return list(zip(self.norms, structure.norms, strict=True))


def bind(
    model: nn.Module, structure: Structure, out: Sequence[Tensor | None], report: PredictionReport
) -> Binding | None:
    """The binding for the structure of a network.

    Args:
        model: The network.
        structure: Its structure.
        out: The destinations in this network (:func:`find_destinations`).
        report: The report that has been made with them.

    Returns:
        The binding, or ``None`` for a network that names are needed for: one with parameters on the
        meta device, or whose structure lists others than it has registered (a parameter that is a
        buffer elsewhere, a module that an attribute holds).
    """
    norms = norm_layers(model)
    if (
        not structure.complete
        or not _same([p for _, p in _named_parameters(model)], structure.parameters)
        or not _same([layer for _, layer in norms], structure.norms)
        or any(p.is_meta for p in structure.parameters)
    ):
        return None
    index = {id(tensor): place for place, tensor in enumerate(out) if tensor is not None}
    places = tuple(index.get(id(p), -1) for p in structure.parameters)
    names = tuple(name for name, _ in norms)
    return Binding(places, len(out), tuple(report.predicted), dict(report.skipped), names)


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether two sequences hold the same objects."""
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _named_parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    """As ``list(model.named_parameters())``, which takes several times as long."""
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for prefix, module in named_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                found.append((prefix + name, parameter))
    return found


def warn_skipped(report: PredictionReport) -> None:
    """Warn about parameters that keep their values, all in one warning."""
    if not report.skipped:
        return
    name, reason = next(iter(report.skipped.items()))
    total = len(report.skipped) + len(report.predicted)
    warnings.warn(
        f"{len(report.skipped)} of {total} parameters were not predicted and keep their values, "
        f"the first one '{name}': {reason}. ghn.predict(model).skipped lists them all",
        UserWarning,
        stacklevel=3,
    )

"""The graph hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ghn_fast.capturing.cache import cached_capture
from ghn_fast.capturing.structure import Structure
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.batch import GraphBatch
from ghn_fast.hypernet.batch_statistics import use_batch_statistics
from ghn_fast.hypernet.bind import (
    PredictionReport,
    bind,
    check_frozen,
    check_graph,
    find_destinations,
    keep_frozen,
    warn_skipped,
)
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decode import BlockDecoder, VectorDecoder
from ghn_fast.hypernet.encode import NodeEncoder
from ghn_fast.hypernet.expand import DecodePlan, decode, plan_decoding
from ghn_fast.hypernet.predictor import (
    Clock,
    Predictor,
    Prepared,
    explain_head,
    prepare,
    run_prepared,
)
from ghn_fast.hypernet.propagate import build_propagator
from ghn_fast.ops.expand_params import expand_params


class GHN(nn.Module):
    """Predicts all parameters of a network from its architecture graph (arXiv 2110.13100).

    Args:
        config: Shape and variant; the default is GHN-2 for CIFAR-10.
    """

    def __init__(self, config: GHNConfig | None = None) -> None:
        super().__init__()
        self.config = config or GHNConfig()
        hid = self.config.hid
        self.encoder = NodeEncoder(hid, self.config.num_classes, self.config.max_shape[2])
        self.propagator = build_propagator(self.config)
        self.norm = nn.LayerNorm(hid) if self.config.layer_norm else nn.Identity()
        self.blocks = BlockDecoder(self.config)
        self.vectors = VectorDecoder(self.config)

    @property
    def device(self) -> torch.device:
        """Device of the hypernetwork's own weights."""
        return self.encoder.op.weight.device

    def forward(
        self,
        model: nn.Module,
        graph: ArchGraph | None = None,
        *,
        input_shape: Any = None,
        example_inputs: Any = None,
        frozen: str = "keep",
    ) -> nn.Module:
        """Fill the parameters of a network in place and return it; see :meth:`predict`."""
        inputs = (input_shape, example_inputs)
        report = self._predict(model, graph, inputs, frozen, batch_statistics=True, head=True)
        warn_skipped(report)
        return model

    def predict(
        self,
        model: nn.Module,
        graph: ArchGraph | None = None,
        *,
        input_shape: Any = None,
        example_inputs: Any = None,
        batch_statistics: bool = True,
        head: bool = True,
        frozen: str = "keep",
    ) -> PredictionReport:
        """Fill the parameters of a network in place and report what was done.

        Args:
            model: The network; may be on any device and of any floating-point type.
            graph: Its architecture graph, if it is at hand; captured otherwise.
            input_shape: Shape of one input for the capture, or a sequence of shapes for several; by
                default what the network says of itself (attribute ``input_shape``), else
                (3, 224, 224).
            example_inputs: Instead of ``input_shape``, inputs whose shapes and types are used: a
                tensor, a tuple of positional or a dict of keyword arguments.
            batch_statistics: Whether BatchNorm layers are switched to batch statistics. Running
                statistics are not predicted, so evaluation needs this; before fine-tuning,
                :func:`ghn_fast.track_running_statistics` switches back.
            head: Whether to predict the classifier at the graph's end, too; without it weight and
                bias of the classifier keep their values, for fine-tuning on other classes.
            frozen: What is done with parameters that have ``requires_grad=False`` in a network with
                trainable ones: ``"keep"`` leaves their values, ``"predict"`` predicts them as well.
                In a wholly frozen network all are predicted.

        Returns:
            The report: names predicted, names skipped with the reason, seconds by stage.

        Raises:
            TypeError: If ``model`` is not a module or ``graph`` not an architecture graph.
            CaptureError: If the graph cannot be captured.
            ValueError: If ``graph`` belongs to another network, or ``frozen`` is not valid.
        """
        inputs = (input_shape, example_inputs)
        report = self._predict(model, graph, inputs, frozen, batch_statistics, head)
        warn_skipped(report)
        return report

    def embed(
        self,
        model: nn.Module | ArchGraph | Sequence[ArchGraph],
        *,
        input_shape: Any = None,
        example_inputs: Any = None,
    ) -> Tensor:
        """Node embeddings after propagation: (N, C), N nodes of the graph (or all graphs)."""
        if isinstance(model, nn.Module):
            graphs = [self._capture(model, (input_shape, example_inputs))[0]]
        elif isinstance(model, ArchGraph):
            graphs = [model]
        else:
            graphs = list(model)
            for graph in graphs:
                if not isinstance(graph, ArchGraph):
                    raise TypeError(
                        f"model: got a sequence with {type(graph).__name__}, needs a network, an "
                        "ArchGraph or a sequence of ArchGraphs"
                    )
        with torch.no_grad():
            return self.node_embeddings(GraphBatch(graphs).to(self.device))

    def node_embeddings(self, batch: GraphBatch) -> Tensor:
        """Node embeddings (N, C) of a batch of graphs, differentiable."""
        x = self.encoder(batch.op_types, batch.shapes)
        return self.norm(self.propagator(x, batch))

    def predict_flat(
        self, graphs: Sequence[ArchGraph], *, head: bool = True
    ) -> tuple[Tensor, DecodePlan]:
        """Predict the parameters of a meta-batch into one flat buffer, differentiable.

        Args:
            graphs: Architecture graphs.
            head: As in :meth:`predict`.

        Returns:
            The flat buffer and its plan, whose ``ranges`` say where each parameter lies.
        """
        batch = GraphBatch(graphs).to(self.device)
        plan = plan_decoding(batch.graphs, self.config, head=head)
        x = self.node_embeddings(batch)
        return expand_params(decode(x, plan, self.blocks, self.vectors), plan.params), plan

    def predict_tensors(self, graphs: Sequence[ArchGraph]) -> list[dict[str, Tensor]]:
        """Predict the parameters of a meta-batch as one dict of name to tensor per graph.

        The tensors are views of one flat buffer and differentiable, for use with
        ``torch.func.functional_call``.
        """
        flat, plan = self.predict_flat(graphs)
        # One split instead of a slice for each: its backward pass fills one buffer. Between two
        # parameters there is a gap, which may be empty.
        sizes, end = [], 0
        for row in plan.params.rows:
            size = math.prod(row.shape)
            sizes += [row.offset - end, size]
            end = row.offset + size
        pieces = iter(flat.split([*sizes, flat.numel() - end])[1::2])
        return [
            {name: next(pieces).view(shape) for name, (_, shape) in ranges.items()}
            for ranges in plan.ranges
        ]

    def compile_plan(
        self,
        model: nn.Module,
        graph: ArchGraph | None = None,
        *,
        input_shape: Any = None,
        example_inputs: Any = None,
        batch_statistics: bool = True,
        head: bool = True,
        frozen: str = "keep",
        cuda_graph: bool = True,
    ) -> Predictor:
        """Prepare repeated prediction for one network, while the hypernetwork changes.

        Args:
            model, graph, input_shape, example_inputs, batch_statistics, head, frozen: As in
                :meth:`predict`.
            cuda_graph: Whether to replay a CUDA graph where that is possible.

        Returns:
            A :class:`Predictor`; calling it fills the parameters of ``model``.

        Raises:
            As :meth:`predict`.
        """
        graph, _, _ = self._graph_of(model, graph, (input_shape, example_inputs))
        return Predictor(
            self,
            model,
            graph,
            batch_statistics=batch_statistics,
            head=head,
            frozen=frozen,
            cuda_graph=cuda_graph,
        )

    def _capture(
        self, model: nn.Module, inputs: tuple[Any, Any]
    ) -> tuple[ArchGraph, Structure | None]:
        input_shape, example_inputs = inputs
        if input_shape is None and example_inputs is None:
            input_shape = getattr(model, "input_shape", None)
        return cached_capture(
            model, input_shape, self.config.virtual_edges, example_inputs=example_inputs
        )

    def _graph_of(
        self, model: nn.Module, graph: ArchGraph | None, inputs: tuple[Any, Any]
    ) -> tuple[ArchGraph, bool, Structure | None]:
        """The graph of a network, whether nobody else can change it, and what it was found by."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
        if graph is None:
            graph, structure = self._capture(model, inputs)
            return graph, True, structure
        if not isinstance(graph, ArchGraph):
            raise TypeError(f"graph: got {type(graph).__name__}, needs an ArchGraph")
        check_graph(model, graph)
        if graph.virtual_edges != self.config.virtual_edges:
            graph = graph.with_virtual_edges(self.config.virtual_edges)
        return graph, False, None

    def _predict(
        self,
        model: nn.Module,
        graph: ArchGraph | None,
        inputs: tuple[Any, Any],
        frozen: str,
        batch_statistics: bool,
        head: bool,
    ) -> PredictionReport:
        check_frozen(frozen)
        report = PredictionReport()
        clock = Clock(report.seconds)
        graph, ours, structure = self._graph_of(model, graph, inputs)
        prepared = prepare(self, graph, head, keep=ours)
        clock.lap("capture")
        out, norms = self._destinations(model, graph, prepared, structure, head, report)
        if frozen == "keep":
            keep_frozen(model, out, report)
        report.warnings = list(graph.notes)
        clock.lap("bind")
        run_prepared(self, prepared, out, clock)
        if batch_statistics:
            report.batch_statistics = use_batch_statistics(model, norms)
        clock.lap("bind")
        report.seconds["total"] = sum(report.seconds.values())
        return report

    @staticmethod
    def _destinations(
        model: nn.Module,
        graph: ArchGraph,
        prepared: Prepared,
        structure: Structure | None,
        head: bool,
        report: PredictionReport,
    ) -> tuple[list[Tensor | None], list[tuple[str, nn.Module]] | None]:
        """Where predictions go, and the BatchNorm layers where they are known."""
        known = prepared.binding
        if structure is not None and known is not None:
            out = known.destinations(structure, report)
            if out is not None:
                return out, known.norm_layers(structure)
        out = find_destinations(model, graph, prepared.names, report)
        explain_head(graph, head, report)
        if structure is not None and known is None:
            prepared.binding = bind(model, structure, out, report)
        return out, None

"""The graph hypernetwork."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ghn_fast.capturing.cache import cached_capture
from ghn_fast.capturing.input_types import ExampleInputs, InputShape
from ghn_fast.capturing.structure import Structure
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.hypernet import pipeline
from ghn_fast.hypernet.bind import check_graph
from ghn_fast.hypernet.config import GHNConfig
from ghn_fast.hypernet.decoders import DECODERS, Plan
from ghn_fast.hypernet.encode import NodeEncoder
from ghn_fast.hypernet.explain import reference_of
from ghn_fast.hypernet.predictor import Predictor
from ghn_fast.hypernet.propagate import build_propagator
from ghn_fast.hypernet.publishing import Published
from ghn_fast.hypernet.report import Clock, PredictionReport
from ghn_fast.hypernet.withheld import check_frozen

# What the last layers of decoders are divided by.
_SMALLER = 5.0


class GHN(Published, nn.Module):
    """Predicts all parameters of a network from its architecture graph (arXiv 2110.13100).

    Args:
        config: Shape and variant; the default is GHN-2 for CIFAR-10.
    """

    def __init__(self, config: GHNConfig | None = None) -> None:
        super().__init__()
        self.config = config or GHNConfig()
        # A file of accuracies of predicted networks, if the checkpoint has one.
        self.accuracies: Path | None = None
        hid = self.config.hid
        self.encoder = NodeEncoder(
            hid,
            self.config.num_classes,
            self.config.max_shape[2],
            language=self.config.language,
        )
        self.propagator = build_propagator(self.config)
        self.norm: nn.Module = nn.LayerNorm(hid) if self.config.layer_norm else nn.Identity()
        decoder = DECODERS[self.config.decoder]
        self.blocks = decoder.weights(self.config)
        self.vectors = decoder.vectors(self.config)
        if self.config.propagator == "graphormer":
            self._initialise()

    def _initialise(self) -> None:
        """Draw weights as GHN-3 begins with (arXiv 2303.04143, appendix): small predictions."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)
        last = [] if self.vectors is None else [self.vectors.layers[2]]
        if self.config.decoder == "block":
            last += [self.blocks.output, self.blocks.head]
        with torch.no_grad():
            for layer in last:
                layer.weight /= _SMALLER
                layer.bias.zero_()

    @property
    def device(self) -> torch.device:
        """Device of the hypernetwork's own weights."""
        return self.encoder.op.weight.device

    def forward(
        self,
        model: nn.Module,
        graph: ArchGraph | None = None,
        *,
        input_shape: InputShape | None = None,
        example_inputs: ExampleInputs | None = None,
        frozen: str = "keep",
    ) -> nn.Module:
        """Fill the parameters of a network in place, BatchNorm layers and classifier included.

        Args:
            model, graph, input_shape, example_inputs, frozen: As in :meth:`predict`.

        Returns:
            ``model``, whose parameters are the same tensors with other values. Parameters that
            cannot be predicted keep theirs, with a warning that names the first one.

        Raises:
            TypeError, ValueError, CaptureError: As :meth:`predict`.
        """
        report = self._predict(model, graph, input_shape, example_inputs, frozen=frozen)
        report.warn_skipped()
        return model

    def predict(
        self,
        model: nn.Module,
        graph: ArchGraph | None = None,
        *,
        input_shape: InputShape | None = None,
        example_inputs: ExampleInputs | None = None,
        batch_statistics: bool = True,
        head: bool = True,
        frozen: str = "keep",
        explain: bool = False,
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
            explain: Whether the report says how far the network is from those of training, and
                what accuracy to expect if the checkpoint knows of any; a network that is outside of
                what was trained on gets a warning there. The first such call embeds some hundred
                training architectures, which takes about a second.

        Returns:
            The report: names predicted, names skipped with the reason, seconds by stage.

        Raises:
            TypeError: If ``model`` is not a module or ``graph`` not an architecture graph.
            CaptureError: If the graph cannot be captured.
            ValueError: If ``graph`` belongs to another network or was made by other rules than the
                hypernetwork's, or ``frozen`` is not valid.
        """
        report = self._predict(
            model,
            graph,
            input_shape,
            example_inputs,
            batch_statistics=batch_statistics,
            head=head,
            frozen=frozen,
            explain=explain,
        )
        report.warn_skipped()
        return report

    def embed(
        self,
        model: nn.Module | ArchGraph | Sequence[ArchGraph],
        *,
        input_shape: InputShape | None = None,
        example_inputs: ExampleInputs | None = None,
    ) -> Tensor:
        """Embed the nodes of graphs: what the decoders read, without gradients.

        Args:
            model: A network, its graph, or a sequence of graphs.
            input_shape, example_inputs: For a network, as in :meth:`predict`.

        Returns:
            Node embeddings (N, hid) after propagation, N nodes of the graph, or of all graphs one
            after the other.

        Raises:
            TypeError: If ``model`` is none of these.
            CaptureError: If the graph of a network cannot be captured.
            ValueError: If the sequence is empty.
        """
        if isinstance(model, nn.Module):
            graphs = [self._capture(model, input_shape, example_inputs)[0]]
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
            return pipeline.embed(self, *pipeline.collate(self, graphs))

    def predict_flat(
        self, graphs: Sequence[ArchGraph], *, head: bool = True
    ) -> tuple[Tensor, Plan]:
        """Predict the parameters of a meta-batch into one flat buffer, differentiable.

        Args:
            graphs: At least one architecture graph.
            head: As in :meth:`predict`.

        Returns:
            The flat buffer, one dimension, dtype and device of the hypernetwork; and its plan,
            whose ``ranges`` say for each graph where each parameter lies: name to (offset, shape).
            Parameters begin at multiples of 16 elements; the gaps between them are 0.

        Raises:
            TypeError: If one of ``graphs`` is not an architecture graph.
            ValueError: If ``graphs`` is empty, a graph was made by other rules than the
                hypernetwork's, or its edges are not valid.
        """
        prepared = pipeline.prepare(self, graphs, head=head)
        decoded = pipeline.forward(self, prepared)
        return prepared.plan.expand(decoded), prepared.plan

    def predict_tensors(self, graphs: Sequence[ArchGraph]) -> list[dict[str, Tensor]]:
        """Predict the parameters of a meta-batch by name, for ``torch.func.functional_call``.

        Args:
            graphs: At least one architecture graph.

        Returns:
            Per graph a dict of name to parameter, in the shapes of the network. The tensors are
            views of one flat buffer, and differentiable.

        Raises:
            TypeError, ValueError: As :meth:`predict_flat`.
        """
        flat, plan = self.predict_flat(graphs)
        # One split instead of a slice for each: its backward pass fills one buffer. Between two
        # parameters there is a gap, which may be empty.
        sizes, end = [], 0
        for offset, shape in (place for ranges in plan.ranges for place in ranges.values()):
            size = math.prod(shape)
            sizes += [offset - end, size]
            end = offset + size
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
        input_shape: InputShape | None = None,
        example_inputs: ExampleInputs | None = None,
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
            TypeError, ValueError, CaptureError: As :meth:`predict`.
        """
        check_frozen(frozen)
        graph, _ = self._graph_of(model, graph, input_shape, example_inputs)
        return Predictor(
            self,
            model,
            graph,
            batch_statistics=batch_statistics,
            head=head,
            frozen=frozen,
            cuda_graph=cuda_graph,
        )

    def _predict(
        self,
        model: nn.Module,
        graph: ArchGraph | None,
        input_shape: InputShape | None,
        example_inputs: ExampleInputs | None,
        *,
        batch_statistics: bool = True,
        head: bool = True,
        frozen: str = "keep",
        explain: bool = False,
    ) -> PredictionReport:
        check_frozen(frozen)
        clock = Clock()
        graph, structure = self._graph_of(model, graph, input_shape, example_inputs)
        # A graph that was found by structure is one that nobody changes.
        prepared = pipeline.prepare(self, [graph], head=head, keep=structure is not None)
        clock.lap("capture")
        destinations = prepared.destinations(model, structure, frozen)
        clock.lap("bind")
        report = pipeline.predict(
            self, prepared, destinations, clock, batch_statistics=batch_statistics
        )
        if explain:
            found = reference_of(self, self.accuracies).explain(self.embed(graph))
            report.explanation = found
            if found.far:
                report.warnings.append(str(found))
        return report

    def _graph_of(
        self,
        model: nn.Module,
        graph: ArchGraph | None,
        input_shape: InputShape | None,
        example_inputs: ExampleInputs | None,
    ) -> tuple[ArchGraph, Structure | None]:
        """The graph of a network, and the structure that it was found by, if it was."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
        if graph is None:
            return self._capture(model, input_shape, example_inputs)
        if not isinstance(graph, ArchGraph):
            raise TypeError(f"graph: got {type(graph).__name__}, needs an ArchGraph")
        check_graph(model, graph)
        if graph.virtual_edges != self.config.virtual_edges:
            graph = graph.with_virtual_edges(self.config.virtual_edges)
        return graph, None

    def _capture(
        self,
        model: nn.Module,
        input_shape: InputShape | None,
        example_inputs: ExampleInputs | None,
    ) -> tuple[ArchGraph, Structure | None]:
        if input_shape is None and example_inputs is None:
            input_shape = getattr(model, "input_shape", None)
            if input_shape is None and self.config.language:
                # A few symbols; how many does not matter to the graph.
                example_inputs = {"input_ids": torch.arange(3)[None]}
        return cached_capture(
            model,
            input_shape,
            self.config.virtual_edges,
            example_inputs=example_inputs,
            rules=self.config.graph_rules,
        )

"""A network that was asked for by name: how to make it, and what its inputs look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ghn_fast.capturing.capture import capture
from ghn_fast.capturing.input_types import ExampleInputs, InputShape
from ghn_fast.graph.arch_graph import ArchGraph
from ghn_fast.graph.rules import GraphRules


@dataclass(frozen=True)
class NamedModel:
    """A network by name; nothing is built before it is asked for.

    Attributes:
        name: The name as it was given.
        make: Makes the network, randomly initialised; called anew for each one.
        input_shape: Shape of one input without the batch dimension; ``None`` where
            ``example_inputs`` or the network itself says it.
        example_inputs: Inputs whose shapes and types are used for the capture.
        derive: Makes the architecture graph for a largest distance of virtual edges, by rules,
            without tracing; ``None`` where the network has to be captured.
        image_size: Height and width of images where the network reads images and the name or the
            caller says how large they are.
        num_classes: Number of classes that the network was asked for; ``None`` for its own.
        built_for_size: Whether the network was made for ``image_size``; others were made for
            photographs, and take any size.
    """

    name: str
    make: Callable[[], nn.Module]
    input_shape: InputShape | None = None
    example_inputs: ExampleInputs | None = None
    derive: Callable[[int, GraphRules], ArchGraph] | None = None
    image_size: int | None = None
    num_classes: int | None = None
    built_for_size: bool = False

    def build(self) -> nn.Module:
        """Make the network, randomly initialised by torch's generator."""
        network = self.make()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"model: {self.name} gave a {type(network).__name__}, needs a torch.nn.Module"
            )
        return network

    @property
    def inputs(self) -> dict[str, Any]:
        """What :func:`ghn_fast.capture` and ``ghn.predict`` are told of the inputs."""
        if self.example_inputs is not None:
            return {"example_inputs": self.example_inputs}
        return {} if self.input_shape is None else {"input_shape": self.input_shape}

    def graph(
        self,
        virtual_edges: int = 1,
        *,
        network: nn.Module | None = None,
        rules: GraphRules = GraphRules.GHN2,
    ) -> ArchGraph:
        """The architecture graph.

        Args:
            virtual_edges: Largest distance that gets a virtual edge; 1 means none.
            network: What :meth:`build` gave, if it is at hand; made otherwise, where it is needed.
            rules: The rules that the graph is made by.

        Raises:
            CaptureError: If the graph cannot be captured.
        """
        if self.derive is not None:
            return self.derive(virtual_edges, rules)
        network = self.build() if network is None else network
        inputs = self.inputs or {"input_shape": getattr(network, "input_shape", (3, 224, 224))}
        return capture(network, virtual_edges=virtual_edges, rules=rules, **inputs)

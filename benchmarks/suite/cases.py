"""The cases: which path, on which back end and device, at which sizes.

A grid lists the values of every parameter of one path; its cases are all combinations. The asv
suite runs every case. Those that are guarded are also compared between revisions and counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What is measured: one way through the package at given parameters.

    Attributes:
        path: The op or the way through the package.
        part: ``forward``, ``backward``, or what is called where there is no gradient.
        backend: Back end of the ops, or ``straightforward`` for what one would write first.
        device: Device of the tensors.
        hid: Width of the node embeddings; for the ops of candidate networks, of their activations.
        graph: Which architecture graphs (see :func:`suite.setups.graphs_of`); for the ops of
            candidate networks, the kernel.
        meta_batch: Number of graphs.
        dtype: Type of the floating-point tensors.
        threshold: Ratio of times above which a case has become slower.
        exact: Whether the allocations are the same on every machine of one architecture.
        cache: ``warm``, or ``cold`` if each call finds the caches full of other data.
    """

    path: str
    part: str
    backend: str
    device: str
    hid: int
    graph: str
    meta_batch: int
    dtype: str
    threshold: float = 1.05
    exact: bool = True
    cache: str = "warm"

    @property
    def name(self) -> str:
        """Unique among all cases."""
        return (
            f"{self.path}.{self.part}({self.backend}, {self.device}, hid={self.hid}, "
            f"{self.graph} x {self.meta_batch}, {self.dtype}"
            f"{', cold' if self.cache == 'cold' else ''})"
        )


@dataclass(frozen=True)
class Grid:
    """All cases of one path; attributes as of :class:`Case`, with all values of each.

    Attributes:
        targets: Pairs of back end and device.
        guard: For some parameters the values that are guarded; the others are with all.
    """

    path: str
    parts: tuple[str, ...]
    targets: tuple[tuple[str, str], ...]
    hid: tuple[int, ...] = (32,)
    graphs: tuple[str, ...] = ("resnet50",)
    meta_batches: tuple[int, ...] = (1,)
    dtypes: tuple[str, ...] = ("float32",)
    threshold: float = 1.05
    exact: bool = True
    caches: tuple[str, ...] = ("warm",)
    guard: tuple[tuple[str, tuple[object, ...]], ...] = ()

    def cases(self) -> Iterator[Case]:
        """Yield every combination."""
        for part, target, hid, graph, meta_batch, dtype, cache in itertools.product(
            self.parts, self.targets, self.hid, self.graphs, self.meta_batches, self.dtypes,
            self.caches,
        ):  # fmt: skip
            yield Case(
                self.path,
                part,
                *target,
                hid,
                graph,
                meta_batch,
                dtype,
                self.threshold,
                self.exact,
                cache,
            )

    def guards(self, case: Case) -> bool:
        """Whether a case is compared between revisions and counted."""
        return all(getattr(case, name) in values for name, values in self.guard)


CPU, REFERENCE, CUDA = ("cpu", "cpu"), ("reference", "cpu"), ("cuda", "cuda")
AUTO, AUTO_CUDA = ("auto", "cpu"), ("auto", "cuda")
# What one would write first (suite/peers): the ratio to it is what README quotes.
PLAIN, PLAIN_CUDA = ("straightforward", "cpu"), ("straightforward", "cuda")
_GRADIENT = ("forward", "backward")
_COMPILED = ("backend", ("cpu", "cuda", "auto"))
# Measured, neither compared nor counted.
_UNGUARDED = (("backend", ()),)
_NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg16")
_ONE = (_COMPILED, ("graph", ("resnet18",)))

GRIDS = (
    Grid("gated_gnn", _GRADIENT, (CPU, REFERENCE, PLAIN, CUDA, PLAIN_CUDA), hid=(32, 64),
         graphs=("resnet50", "train"), meta_batches=(1, 8),
         guard=(_COMPILED, ("hid", (32,)), ("graph", ("train",)), ("meta_batch", (8,)))),
    Grid("expand_params", _GRADIENT, (CPU, REFERENCE, CUDA), graphs=("resnet50", "train"),
         dtypes=("float32", "bfloat16"), caches=("warm", "cold"),
         guard=(_COMPILED, ("dtype", ("float32",)), ("cache", ("warm",)))),
    Grid("shortest_distances", ("call",), (CPU, REFERENCE), graphs=("train", "deep"),
         guard=(_COMPILED,)),
    Grid("collate_edges", ("call",), (CPU, REFERENCE), graphs=("train",), meta_batches=(8,),
         guard=(_COMPILED,)),
    Grid("decode", _GRADIENT, (AUTO, AUTO_CUDA), hid=(32, 64), graphs=("train",),
         meta_batches=(1, 8), guard=(("hid", (32,)), ("meta_batch", (1,)))),
    Grid("graph_attention", _GRADIENT, (CPU, REFERENCE, CUDA), hid=(64,), graphs=("train",),
         meta_batches=(8,), guard=(_COMPILED,)),
    Grid("depthwise_conv2d", _GRADIENT, (CPU, REFERENCE), hid=(64,), graphs=("3x3", "5x5"),
         dtypes=("float32", "bfloat16"),
         guard=(_COMPILED, ("graph", ("5x5",)), ("dtype", ("float32",)))),
    Grid("batch_norm_act", _GRADIENT, (CPU, REFERENCE), hid=(64,), graphs=("none",),
         dtypes=("float32", "bfloat16"), guard=(_COMPILED, ("dtype", ("float32",)))),
    Grid("capture", ("call",), (AUTO,), graphs=("resnet18", "resnet50"), threshold=1.08,
         guard=_ONE),
    Grid("predict_cold", ("call",), (AUTO, PLAIN, AUTO_CUDA), graphs=_NETWORKS, threshold=1.08,
         guard=_ONE),
    Grid("predict_warm", ("call",), (AUTO, PLAIN, AUTO_CUDA), graphs=_NETWORKS, threshold=1.08,
         guard=_ONE),
    # Preparing repeated prediction for one network; and the prediction then.
    Grid("compile_plan", ("build", "call"), (AUTO, AUTO_CUDA), graphs=("resnet18", "resnet50"),
         threshold=1.08, guard=(*_ONE, ("part", ("call",)))),
    # A stack of wide linear layers, for the memory that it takes.
    Grid("predict_large", ("call",), (AUTO,), graphs=("stack",), dtypes=("float32", "bfloat16"),
         threshold=1.08, guard=_UNGUARDED),
    Grid("loader", ("call",), (AUTO,), graphs=("train", "packed"), meta_batches=(1, 8),
         threshold=1.08, guard=(("graph", ("train",)), ("meta_batch", (1,)))),
    # One record for a file; and a whole file of them in the packed layout.
    Grid("generator", ("record", "file"), (AUTO,), graphs=("train",), threshold=1.08,
         guard=(("part", ("record",)),)),
    # Convolutions of the candidate networks allocate what the machine's library wants. `fresh` are
    # other architectures in every step.
    Grid("meta_step", ("call",), (AUTO, PLAIN, AUTO_CUDA), graphs=("train", "fresh"),
         meta_batches=(1, 2, 8), threshold=1.08, exact=False,
         guard=(_COMPILED, ("graph", ("train",)), ("meta_batch", (1,)))),
)  # fmt: skip


def all_cases() -> list[Case]:
    """Every case of every grid."""
    return [case for grid in GRIDS for case in grid.cases()]


def guarded_cases() -> list[Case]:
    """The cases that are compared between revisions and counted."""
    return [case for grid in GRIDS for case in grid.cases() if grid.guards(case)]


def find_case(name: str) -> Case:
    """Find the case of a name.

    Raises:
        ValueError: If there is none.
    """
    for case in all_cases():
        if case.name == name:
            return case
    raise ValueError(f"case: there is none named {name!r}")


def choose(cases: list[Case], patterns: list[str] | None) -> list[Case]:
    """Choose the cases whose name contains one of the patterns; all without patterns.

    Raises:
        ValueError: If a pattern fits no case.
    """
    for pattern in patterns or ():
        if not any(pattern in case.name for case in cases):
            raise ValueError(f"--only: {pattern!r} is in the name of no case")
    return [c for c in cases if not patterns or any(pattern in c.name for pattern in patterns)]

"""Architectures of DeepNets-1M from their packed records: sizes, and graphs with their plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ghn_fast.ops.backend import library_problem, register_op
from ghn_fast.ops.gated_gnn_plan import no_inference


def deepnets_graph(
    record: Tensor,
    num_classes: int,
    image_size: int,
    structure_size: int,
    virtual_edges: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Architecture graph of a network of DeepNets-1M (arXiv 2110.13100, section 3).

    Runs on the back end ``cpu``, on the host. The reference takes a configuration instead of its
    record, and makes the same graph: ``ghn_fast.deepnets.build_graph``, which chooses.

    Args:
        record: The packed architecture (docs/deepnets.md has its fields), uint8 (bytes,).
        num_classes: Number of classes.
        image_size: Height and width of the images that the shapes are for.
        structure_size: Height and width of the images that nodes and edges are for.
        virtual_edges: Largest shortest-path distance that gets a virtual edge; 1 means none.

    Returns:
        Node types, int64 (N,); rows (number of the parameter's name or -1, dimensions of its shape
        or 0 for none, the shape, filled up with ones) of the nodes, int32 (N, 6); numbers of the
        names of the parameters that no node stands for, int32 (S,); and the packed plan of message
        passing (:meth:`ghn_fast.ops.gated_gnn_plan.GraphPlan.of_packed`), int32. All on the CPU,
        and the same for every call.

    Raises:
        TypeError: If ``record`` is not a tensor of uint8.
        ValueError: If it is not on the CPU or not a valid record, no path leads from the input to
            the output, or a number is out of range.
        RuntimeError: If the compiled ops are not there.
    """
    _check("record", record, torch.uint8)
    with no_inference():
        return torch.ops.ghn_fast.deepnets_graph(
            record, num_classes, image_size, structure_size, virtual_edges
        )


def deepnets_sizes(
    records: Tensor,
    ends: Tensor,
    num_classes: int,
    image_sizes: Sequence[int],
    *,
    nodes: bool = False,
) -> Tensor:
    """Numbers of nodes and of parameters of networks of DeepNets-1M.

    Runs on the back end ``cpu``, on the host; the reference is that of :func:`deepnets_graph`.

    Args:
        records: Packed architectures one behind the other, uint8 (bytes,).
        ends: End of each record in ``records``, ascending, int64 (B,).
        num_classes: Number of classes.
        image_sizes: Heights and widths of images; none only checks the records.
        nodes: Whether to count the nodes of the graph for the first of them.

    Returns:
        int64 (B, 1 + number of image sizes): nodes (0 if not asked for), then the number of
        parameters for each image size. (0, ...) without records.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If one is not on the CPU, a record or a number is not valid, or a network has
            2^62 parameters or more.
        RuntimeError: If the compiled ops are not there.
    """
    _check("records", records, torch.uint8)
    _check("ends", ends, torch.int64)
    return torch.ops.ghn_fast.deepnets_sizes(records, ends, num_classes, image_sizes, nodes)


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: got {got}, needs a tensor of {dtype}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: got a tensor on {tensor.device}, needs it on the CPU")
    if tensor.ndim != 1:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, needs one dimension")
    if library_problem() is not None:
        raise RuntimeError(f"deepnets_graph needs the compiled ops: {library_problem()}")


def _fake_graph(
    record: Tensor, num_classes: int, image_size: int, structure_size: int, virtual_edges: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # How many nodes, skipped parameters and numbers of the plan there are, the record decides.
    context: Any = torch.library.get_ctx()
    nodes, skipped, packed = (context.new_dynamic_size() for _ in range(3))
    return (
        record.new_empty((nodes,), dtype=torch.int64),
        record.new_empty((nodes, 6), dtype=torch.int32),
        record.new_empty((skipped,), dtype=torch.int32),
        record.new_empty((packed,), dtype=torch.int32),
    )


def _fake_sizes(
    records: Tensor, ends: Tensor, num_classes: int, image_sizes: Sequence[int], nodes: bool
) -> Tensor:
    return ends.new_empty((ends.shape[0], 1 + len(image_sizes)))


if library_problem() is None:
    torch.library.register_fake("ghn_fast::deepnets_graph", _fake_graph)
    torch.library.register_fake("ghn_fast::deepnets_sizes", _fake_sizes)

register_op("deepnets_graph", {"cpu": library_problem}, on_host=True)
register_op("deepnets_sizes", {"cpu": library_problem}, on_host=True)

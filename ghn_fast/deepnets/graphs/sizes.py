"""Sizes of networks from their configurations: shapes and numbers of parameters, and of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ghn_fast.deepnets.architectures.genotype import NetworkConfig
from ghn_fast.deepnets.architectures.parameters import network_parameters
from ghn_fast.deepnets.architectures.record import decode
from ghn_fast.deepnets.architectures.spec import check_sizes, network_spec
from ghn_fast.deepnets.graphs.build import build_graph
from ghn_fast.deepnets.graphs.derive import compiled, record_of
from ghn_fast.ops.deepnets_graph import deepnets_sizes


def parameter_shapes(
    config: NetworkConfig, num_classes: int = 10, image_size: int = 32
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of a network, in the order of ``named_parameters()``.

    Parameters of operations that are not executed are included, and networks without a path from
    the input to the output are allowed.

    Raises:
        ValueError: If ``num_classes`` or ``image_size`` is not positive.
    """
    spec = network_spec(config, num_classes, image_size)
    return {param.name: param.shape for param in network_parameters(spec)}


def count_parameters(config: NetworkConfig, num_classes: int = 10, image_size: int = 32) -> int:
    """Number of elements of all parameters of a network; see :func:`parameter_shapes`."""
    return count_for_sizes(config, num_classes, (image_size,))[0]


def count_for_sizes(
    config: NetworkConfig, num_classes: int, image_sizes: Sequence[int]
) -> list[int]:
    """:func:`count_parameters` for several image sizes."""
    return network_sizes([config], num_classes, image_sizes)[0][1:]


def network_sizes(
    configs: Sequence[NetworkConfig],
    num_classes: int,
    image_sizes: Sequence[int],
    *,
    nodes: bool = False,
) -> list[list[int]]:
    """Sizes of networks.

    Args:
        configs: The networks.
        num_classes: Number of classes.
        image_sizes: Heights and widths of images, at least one.
        nodes: Whether to count the nodes of the graph for the first of them.

    Returns:
        For each network the number of nodes (0 if not asked for), then the number of parameters for
        each image size.

    Raises:
        ValueError: If a number is not positive, or nodes are asked for and no path leads from the
            input of a network to its output.
    """
    for image_size in image_sizes:
        check_sizes(num_classes, image_size)
    records = [record_of(config, max(image_sizes)) for config in configs]
    fitting = [record for record in records if record is not None]
    if len(fitting) == len(configs):
        return sizes_of_records(fitting, num_classes, image_sizes, nodes=nodes).tolist()
    result = []
    for config in configs:
        counts = [
            sum(prod(shape) for shape in parameter_shapes(config, num_classes, size).values())
            for size in image_sizes
        ]
        count = 0
        if nodes:
            count = build_graph(
                config, num_classes=num_classes, image_size=image_sizes[0], virtual_edges=1
            ).num_nodes
        result.append([count, *counts])
    return result


def sizes_of_records(
    records: Sequence[bytes],
    num_classes: int,
    image_sizes: Sequence[int],
    *,
    nodes: bool = False,
) -> Tensor:
    """:func:`network_sizes` of records by the compiled back end, which has to be there.

    Returns:
        Long tensor (B, 1 + number of image sizes).

    Raises:
        ValueError: If a record or size is not valid, or a network has 2^62 parameters or more.
    """
    ends = torch.tensor([len(record) for record in records], dtype=torch.int64).cumsum(0)
    data = torch.frombuffer(bytearray(b"".join(records) or b"\0"), dtype=torch.uint8)
    return deepnets_sizes(data, ends, num_classes, image_sizes, nodes=nodes)


def check_record(record: bytes) -> None:
    """Refuse bytes that are not the record of a valid configuration.

    Raises:
        ValueError: If they are not; the message says what is wrong.
    """
    if compiled():
        data = torch.frombuffer(bytearray(record), dtype=torch.uint8)
        deepnets_sizes(data, _end(len(record)), 1, ())
    else:
        decode(record)


@lru_cache(maxsize=1024)
def _end(size: int) -> Tensor:
    """The end of a single record; making the tensor takes as long as reading the record."""
    return torch.tensor([size])

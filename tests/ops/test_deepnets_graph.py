from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ghn_fast.deepnets import Genotype, NetworkConfig, build_graph, count_parameters, sample_config
from ghn_fast.deepnets.architectures.record import encode
from ghn_fast.ops import backend
from ghn_fast.ops.deepnets_graph import deepnets_graph, deepnets_sizes
from ghn_fast.ops.gated_gnn_plan import GraphPlan


def bytes_of(*records: bytes) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8)


def configs(count: int) -> list[NetworkConfig]:
    return [sample_config("train", index, 2) for index in range(count)]


@pytest.mark.library
@pytest.mark.usefixtures("nan_empty")
def test_equals_the_reference() -> None:
    """tests/deepnets/test_derive.py compares names and shapes, over more networks."""
    for config in configs(5):
        with backend.backend("reference"):
            expected = build_graph(config, num_classes=7, virtual_edges=9)
        types, table, skipped, packed = deepnets_graph(bytes_of(encode(config)), 7, 32, 32, 9)
        assert torch.equal(types, expected.op_types)
        assert table.shape == (len(types), 6)
        assert skipped.shape == (len(expected.skipped),)
        assert torch.equal(GraphPlan.of_packed(packed, len(types)).edges, expected.edges)
        dims = [len(shape) if shape else 0 for shape in expected.shapes]
        assert table[:, 1].tolist() == dims


@pytest.mark.library
@pytest.mark.usefixtures("nan_empty")
def test_sizes_equal_those_of_the_reference() -> None:
    records = [encode(config) for config in configs(4)]
    ends = torch.tensor([len(record) for record in records]).cumsum(0)
    expected = []
    with backend.backend("reference"):
        for config in configs(4):
            counts = [count_parameters(config, 3, size) for size in (32, 64)]
            expected.append([build_graph(config, virtual_edges=1).num_nodes, *counts])
    found = deepnets_sizes(bytes_of(*records), ends, 3, (32, 64), nodes=True)
    assert found.tolist() == expected
    counts_alone = deepnets_sizes(bytes_of(*records), ends, 3, (32, 64))
    assert torch.equal(counts_alone[:, 1:], found[:, 1:])
    assert not counts_alone[:, 0].any()
    assert deepnets_sizes(bytes_of(*records), ends, 3, ()).shape == (4, 1)
    assert deepnets_sizes(bytes_of(*records)[:0], ends[:0], 3, (32,)).shape == (0, 2)


@pytest.mark.library
def test_layout_does_not_matter() -> None:
    record = bytes_of(encode(configs(1)[0]))
    strided = torch.stack((record, record), dim=1)[:, 0]
    assert not strided.is_contiguous()
    for one, other in zip(
        deepnets_graph(strided, 10, 32, 32, 50), deepnets_graph(record, 10, 32, 32, 50), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.library
def test_opcheck() -> None:
    records = [encode(config) for config in configs(2)]
    ends = torch.tensor([len(records[0]), len(records[0]) + len(records[1])])
    ops = torch.ops.ghn_fast
    torch.library.opcheck(ops.deepnets_graph.default, (bytes_of(records[0]), 10, 64, 32, 50))
    torch.library.opcheck(
        ops.deepnets_sizes.default, (bytes_of(*records), ends, 10, [32, 64], True)
    )


@pytest.mark.library
def test_compiles_into_one_graph() -> None:
    record = encode(configs(1)[0])
    data, ends = bytes_of(record), torch.tensor([len(record)])
    run = torch.compile(
        lambda data, ends: deepnets_sizes(data, ends, 10, (32,)) * 2,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(run(data, ends), deepnets_sizes(data, ends, 10, (32,)) * 2)


@pytest.mark.library
def test_bad_arguments_are_named() -> None:
    record = encode(configs(1)[0])
    data, ends = bytes_of(record), torch.tensor([len(record)])
    for wrong, error, message in (
        (data.int(), TypeError, "got torch.int32, needs a tensor of torch.uint8"),
        (record, TypeError, "got bytes, needs a tensor of torch.uint8"),
        (data.to("meta"), ValueError, "got a tensor on meta, needs it on the CPU"),
        (data[None], ValueError, r"got shape \(1, \d+\), needs one dimension"),
    ):
        with pytest.raises(error, match=f"record: {message}"):
            deepnets_graph(wrong, 10, 32, 32, 50)  # type: ignore[arg-type]
        with pytest.raises(error, match=f"records: {message}"):
            deepnets_sizes(wrong, ends, 10, (32,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ends: got torch.int32, needs a tensor of torch.int64"):
        deepnets_sizes(data, ends.int(), 10, (32,))
    for numbers, message in (
        ((0, 32, 32, 50), "num_classes: got 0, needs a positive integer"),
        ((10, 0, 32, 50), "image_size: got 0, needs a positive integer"),
        ((10, 32, 1 << 21, 50), "image_size: got 2097152, needs a positive integer up to 1048576"),
        ((10, 32, 32, 0), "virtual_edges: got 0, needs at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            deepnets_graph(data, *numbers)
    with pytest.raises(ValueError, match="image_sizes: got none, needs one for nodes"):
        deepnets_sizes(data, ends, 10, (), nodes=True)
    with pytest.raises(ValueError, match="ends: got 3 after"):
        deepnets_sizes(data, torch.tensor([len(record), 3]), 10, (32,))
    genes = (("none", 0), ("none", 1))
    cut = NetworkConfig(genotype=Genotype(genes, (2,), genes, (2,)), n_cells=3)
    with pytest.raises(ValueError, match="config: no path leads from the input to the output"):
        deepnets_graph(bytes_of(encode(cut)), 10, 32, 32, 50)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "ghn_fast.ops.deepnets_graph.library_problem"
    monkeypatch.setattr(module, lambda: "it is elsewhere")
    with pytest.raises(RuntimeError, match="needs the compiled ops: it is elsewhere"):
        deepnets_graph(bytes_of(b"\0"), 10, 32, 32, 50)

from __future__ import annotations

import pytest
import torch

from ghn_fast.deepnets import SampledNets
from ghn_fast.graph.batch import GraphBatch


@pytest.mark.parametrize("cutoff", [1, 5, 50, 200])
def test_codes_are_those_of_each_pair(cutoff: int) -> None:
    graphs = [net.graph for net in SampledNets("train", 3, 1, cutoff)]
    pairs = GraphBatch(graphs).pairs
    assert pairs.cutoff == cutoff
    assert pairs.codes.dtype == (torch.uint8 if cutoff < 128 else torch.int16)
    start = 0
    for graph, alone in zip(graphs, pairs.each(), strict=True):
        size = graph.num_nodes
        codes = pairs.codes[start : start + size * size].view(size, size)
        start += size * size
        expected = torch.zeros(size, size, dtype=torch.int64)
        inputs = torch.zeros(size, dtype=torch.int64)
        degrees = torch.zeros(2, size, dtype=torch.int64)
        for source, target, distance in graph.edges.tolist():
            expected[source, target] = distance
            expected[target, source] = cutoff + distance
            if source == 0:
                inputs[target] = distance
            if distance == 1:
                degrees[0, target] += 1
                degrees[1, source] += 1
        assert torch.equal(codes.long(), expected)
        assert torch.equal(alone.codes.view(size, size), codes)
        assert torch.equal(alone.input_distances, inputs)
        assert torch.equal(torch.stack([alone.in_degrees, alone.out_degrees]), degrees)
        assert alone.offsets == (0, size)
    assert start == len(pairs.codes)


def test_graphs_of_different_limits_have_no_codes() -> None:
    graphs = [SampledNets("train", 1, 1, cutoff)[0].graph for cutoff in (5, 6)]
    batch = GraphBatch(graphs)
    with pytest.raises(ValueError, match=r"virtual edges up to \[5, 6\], needs one limit"):
        _ = batch.pairs

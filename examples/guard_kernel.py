"""Guard a kernel: compare an implementation of your own with the reference, then time both in turn.

    python examples/guard_kernel.py --implementation mine.py:shortest_distances

Numbers come first: the reference of an op defines its result, and every element has to agree on
inputs of many sizes, empty ones among them. Only what is right is timed, in turn with the
reference, so that a busy machine slows both. Exit status 1 means that an element differs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ghn_fast
from ghn_fast.models.from_file import load_function
from ghn_fast.ops.shortest_distances import shortest_distances

CUTOFF = 50
Implementation = Callable[[Tensor, int, int], Tensor]


def graphs(count: int) -> list[tuple[Tensor, int]]:
    """Edges (E, 2) with from < to, and numbers of nodes, from one node without edges on."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for nodes in torch.linspace(1, 200, count).long().tolist():
        pairs = torch.combinations(torch.arange(nodes), 2)
        chosen = torch.rand(len(pairs), generator=generator) < 3 / max(nodes, 1)
        chain = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)], 1)
        found.append((torch.unique(torch.cat([pairs[chosen], chain]), dim=0), nodes))
    return found


def reference(edges: Tensor, nodes: int, cutoff: int) -> Tensor:
    """The op in plain PyTorch, which defines the result."""
    with ghn_fast.backend("reference"):
        return shortest_distances(edges, nodes, cutoff)


def differs(mine: Implementation, cases: list[tuple[Tensor, int]]) -> str | None:
    """The first case on which an implementation differs, in words."""
    for edges, nodes in cases:
        expected, got = reference(edges, nodes, CUTOFF), mine(edges, nodes, CUTOFF)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return (
                f"{nodes} nodes: got {got.dtype} {tuple(got.shape)}, "
                f"needs {expected.dtype} {tuple(expected.shape)}"
            )
        wrong = (got != expected).any(1).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            return f"{nodes} nodes, row {row}: got {got[row]}, needs {expected[row]}"
    return None


def milliseconds(function: Implementation, case: tuple[Tensor, int]) -> float:
    """Time of one call."""
    begin = time.perf_counter()
    function(*case, CUTOFF)
    return 1e3 * (time.perf_counter() - begin)


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--implementation", help="FILE.py:FUNCTION of (edges, num_nodes, cutoff); ours by default."
    )
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()

    mine: Implementation = shortest_distances
    if chosen.implementation is not None:
        mine = load_function(chosen.implementation)
    cases = graphs(chosen.cases)
    problem = differs(mine, cases)
    if problem is not None:
        raise SystemExit(f"differs: {problem}")
    print(f"equal on {len(cases)} graphs of up to {cases[-1][1]} nodes")
    pairs = [
        (milliseconds(mine, cases[-1]), milliseconds(reference, cases[-1]))
        for _ in range(chosen.repeats + 1)
    ][1:]  # the first one warms up
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{ours:.2f} ms, reference {theirs:.2f} ms: {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()

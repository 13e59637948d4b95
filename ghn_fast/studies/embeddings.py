"""Architectures as vectors: what a hypernetwork knows of them before it decodes parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet import GHN

# Graphs that are embedded together: more of them no longer fit into the cache of a core.
BATCH = 16
POOLINGS = ("mean", "sum", "max")


def embed_architectures(
    ghn: GHN,
    graphs: Iterable[ArchGraph | Callable[[], ArchGraph]],
    *,
    pooling: str = "mean",
    workers: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """One vector per architecture: its node embeddings after propagation, pooled.

    Args:
        ghn: The hypernetwork.
        graphs: Architecture graphs, perhaps without end; or functions that make them, which then
            run in the threads that embed them.
        pooling: ``mean`` over the nodes as in arXiv 2110.13100, section 4.3; ``sum`` or ``max``.
        workers: Threads.
        on_batch: Called with the number of architectures that are done.

    Returns:
        Embeddings (architectures, hid) float32 on the CPU.

    Raises:
        ValueError: If there are no graphs, or an argument is out of range.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}, needs one of {', '.join(POOLINGS)}")
    rows, done = [], 0
    for part in embed_batches(ghn, graphs, workers=workers):
        rows += [pool_nodes(nodes, pooling) for nodes in part]
        done += len(part)
        if on_batch is not None:
            on_batch(done)
    if not rows:
        raise ValueError("graphs: got none, needs at least one")
    return torch.stack(rows)


def embed_batches(
    ghn: GHN,
    graphs: Iterable[ArchGraph | Callable[[], ArchGraph]],
    *,
    workers: int = 1,
) -> Iterator[list[Tensor]]:
    """Node embeddings of architectures, batch by batch: per graph a tensor (nodes, hid) on the CPU.

    Args:
        ghn, graphs, workers: As for :func:`embed_architectures`.

    Raises:
        ValueError: If ``workers`` is below 1.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, needs at least 1")
    batches = _batched(graphs, BATCH)
    if workers == 1:
        for batch in batches:
            yield _embed(ghn, batch)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        # Two batches for each thread are under way, so that an endless stream stays one.
        waiting = [
            pool.submit(_embed, ghn, batch) for batch in itertools.islice(batches, 2 * workers)
        ]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [pool.submit(_embed, ghn, b) for b in itertools.islice(batches, 1)]
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batched(graphs: Iterable[object], size: int) -> Iterator[list[object]]:
    stream = iter(graphs)
    while batch := list(itertools.islice(stream, size)):
        yield batch


def _embed(ghn: GHN, batch: Sequence[object]) -> list[Tensor]:
    graphs: list[ArchGraph] = [g() if callable(g) else g for g in batch]  # type: ignore[misc]
    nodes = ghn.embed(graphs).cpu()
    return list(nodes.split([graph.num_nodes for graph in graphs]))


def pool_nodes(nodes: Tensor, pooling: str = "mean") -> Tensor:
    """Node embeddings (nodes, hid) as one vector (hid,)."""
    if pooling == "max":
        return nodes.amax(dim=0)
    return nodes.mean(dim=0) if pooling == "mean" else nodes.sum(dim=0)


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two sets of vectors, each taken for a Gaussian (arXiv 1706.08500).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` with means m and covariances C; arXiv
    2110.13100, appendix, measures with it how far splits are from the training split.

    Args:
        one: Vectors (N, hid), at least two.
        other: Vectors (M, hid), at least two.

    Raises:
        ValueError: If a set has less than two vectors, or they are of different lengths.
    """
    for name, rows in (("one", one), ("other", other)):
        if rows.ndim != 2 or len(rows) < 2:
            raise ValueError(f"{name}: got shape {tuple(rows.shape)}, needs at least 2 vectors")
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"other: got vectors of {other.shape[1]}, needs {one.shape[1]} as in one")
    one, other = one.double(), other.double()
    first, second = torch.cov(one.T), torch.cov(other.T)
    root = _root(first)
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (one.mean(0) - other.mean(0)).pow(2).sum()
    return float(apart + first.trace() + second.trace() - 2 * mixed)


def _root(matrix: Tensor) -> Tensor:
    """The root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def nearest(embeddings: Tensor, query: Tensor, count: int = 5) -> tuple[list[int], list[float]]:
    """The architectures whose embeddings are nearest to another one.

    Args:
        embeddings: Vectors (N, hid).
        query: The vector (hid,).
        count: How many at most.

    Returns:
        Their numbers and Euclidean distances, nearest first; of equal ones the lower number first.
    """
    distances = torch.linalg.vector_norm(embeddings - query, dim=1)
    order = torch.sort(distances, stable=True).indices[:count]
    return order.tolist(), distances[order].tolist()


def principal_components(embeddings: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Project vectors onto their directions of largest variance.

    Args:
        embeddings: Vectors (N, hid).
        count: Number of directions.

    Returns:
        Projections (N, count) and shares of the variance (count,). Signs are fixed: in each
        direction the projection of largest size is positive.

    Raises:
        ValueError: If there are fewer vectors or dimensions than directions.
    """
    if min(embeddings.shape) < count:
        raise ValueError(
            f"embeddings: got shape {tuple(embeddings.shape)}, needs {count} or more of both"
        )
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    projected = u[:, :count] * s[:count]
    largest = projected.gather(0, projected.abs().argmax(dim=0)[None])
    shares = s[:count].pow(2) / s.pow(2).sum().clamp(min=1e-300)
    return projected * torch.where(largest < 0, -1.0, 1.0), shares

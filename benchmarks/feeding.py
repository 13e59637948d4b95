"""Feeding meta-training with architectures: generator, files, items, loader.

    python benchmarks/feeding.py [--count 20000] [--workers 2] [--json report.json]

Prints architectures per second of ``ghn-fast deepnets generate`` for the training split and what a
million of them takes, bytes per architecture, milliseconds until an item of the file is ready, and
graphs per second through the loader. Rates per core are per second of CPU time, of all processes
and threads together, so that a busy machine does not matter much for them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from native import about

from ghn_fast.deepnets import ArchItem, ArchSequence, DeepNets, SampledNets, generate, meta_batches
from ghn_fast.deepnets.graphs.derive import compiled
from ghn_fast.graph.batch import GraphBatch

MILLION = 1_000_000
# What a million architectures may take and an item may cost, and what the loader should reach.
TARGETS = {"minutes": 30, "gigabytes": 2, "item_ms": 0.5, "graphs_per_core": 2000}


def cpu_seconds() -> float:
    """CPU time of this process and of all that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def generator(count: int, workers: int, folder: Path) -> dict[str, float]:
    """Write the first architectures of the training split."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    path = generate("train", count, folder, workers=workers, format="packed")
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    size = path.stat().st_size / count
    return {
        "count": count,
        "workers": workers,
        "per_second": count / wall,
        "per_core_second": count / cpu,
        "bytes_each": size,
        "million_minutes": MILLION / count * wall / 60,
        "million_minutes_on_2_cores": MILLION / count * cpu / 2 / 60,
        "million_gigabytes": size * MILLION / 1e9,
    }


def schedule(item: ArchItem) -> Any:
    """Read node types, shapes and names in arrays, distances, and the schedule."""
    graph = item.graph
    return graph.op_types, graph.plan or graph.edges


def edges(item: ArchItem) -> Any:
    """Read the same, and the distances as a table of edges."""
    return schedule(item), item.graph.edges


def targets(item: ArchItem) -> Any:
    """Read the same, and names, shapes and parameters of the nodes as Python objects."""
    return edges(item), item.graph.names, item.graph.shapes, item.graph.targets


ITEMS: dict[str, Callable[[ArchItem], Any]] = {
    "graph, distances, schedule": schedule,
    "and table of edges": edges,
    "and names, shapes, targets": targets,
}


def items(nets: ArchSequence, samples: int) -> dict[str, dict[str, float]]:
    """Measure milliseconds from a random index to an item; the cases alternate."""
    indices = [random.Random(0).randrange(len(nets)) for _ in range(samples)]
    times: dict[str, list[float]] = {name: [] for name in ITEMS}
    cpu = dict.fromkeys(ITEMS, 0.0)
    for index in indices[:50]:
        targets(nets[index])
    for index in indices:
        for name, make in ITEMS.items():
            used, start = time.thread_time(), time.perf_counter()
            made = make(nets[index])
            times[name].append(1e3 * (time.perf_counter() - start))
            cpu[name] += 1e3 * (time.thread_time() - used)
            del made
    return {
        name: {
            "mean_ms": statistics.fmean(values),
            "median_ms": statistics.median(values),
            "p99_ms": statistics.quantiles(values, n=100)[-1],
            "most_ms": max(values),
            "mean_cpu_ms": cpu[name] / samples,
        }
        for name, values in times.items()
    }


def loader(nets: ArchSequence, workers: int, steps: int, meta_batch: int = 8) -> dict[str, float]:
    """Measure how many graphs per second come as ready meta-batches."""
    batches = meta_batches(nets, meta_batch, seed=0, workers=workers)
    count = take(batches, 20)
    wall, cpu = time.perf_counter(), time.process_time()
    count = take(batches, steps)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()  # type: ignore[attr-defined]
    return {"graphs_per_second": count / wall, "graphs_per_core_second": count / cpu}


def take(batches: Iterator[Any], steps: int) -> int:
    """Count the graphs of the next meta-batches."""
    count = 0
    for batch in islice(batches, steps):
        count += len(GraphBatch([item.graph for item in batch]))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="architectures to generate")
    parser.add_argument("--workers", type=int, default=2, help="processes that generate")
    parser.add_argument("--samples", type=int, default=2000, help="items to time")
    parser.add_argument("--steps", type=int, default=300, help="meta-batches of 8 to load")
    parser.add_argument("--folder", type=Path, help="where to keep the file")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"about": about(1), "compiled": compiled(), "targets": TARGETS}

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        report["generator"] = result = generator(arguments.count, arguments.workers, folder)
        print(
            f"generator: {result['per_second']:.0f} architectures/s with {arguments.workers} "
            f"workers, {result['per_core_second']:.0f} per core; a million: "
            f"{result['million_minutes']:.1f} min here, "
            f"{result['million_minutes_on_2_cores']:.1f} min of two cores' time (at most "
            f"{TARGETS['minutes']}), {result['million_gigabytes']:.3f} GB (at most "
            f"{TARGETS['gigabytes']}); {result['bytes_each']:.1f} bytes each",
            flush=True,
        )
        nets = DeepNets(folder, "train")
        report["items"] = items(nets, arguments.samples)
        print(f"item (at most {TARGETS['item_ms']} ms): mean, median, 99 %, most; CPU time")
        for name, r in report["items"].items():
            values = ", ".join(f"{r[key]:.3f}" for key in ("mean_ms", "median_ms", "p99_ms"))
            rest = f"{r['most_ms']:.3f}; {r['mean_cpu_ms']:.3f}"
            print(f"  {name:28} {values}, {rest} ms", flush=True)
        report["loader"] = {}
        print(f"loader (at least {TARGETS['graphs_per_core']} graphs/s per core):")
        sources = {"packed file": nets, "sampled": SampledNets("train", MILLION, 0)}
        for source, sequence in sources.items():
            for workers in (0, 1, 2):
                name = f"{source}, {workers} workers"
                report["loader"][name] = r = loader(sequence, workers, arguments.steps)
                print(
                    f"  {name:24} {r['graphs_per_second']:7.0f} graphs/s, "
                    f"{r['graphs_per_core_second']:7.0f} per core",
                    flush=True,
                )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

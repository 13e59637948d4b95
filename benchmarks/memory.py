"""Memory that a prediction needs on top of the network, in a fresh process.

    python benchmarks/memory.py [--parameters 1e9] [--dtype float32|bfloat16] [--json report.json]

The network is a stack of wide linear layers; its storage is touched before, so that what the
process grows by is what the prediction needs. A small network is predicted first, which loads
libraries and fills caches once. Target: at most 5 % of the size of the network.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import torch
from measure import Measurement, about
from torch import nn

import ghn_fast

MOST = 0.05
WIDTH = 8192


def stack(layers: int, dtype: torch.dtype) -> nn.Sequential:
    """Build ``layers`` linear layers of 67 million parameters each, norms between, and a head."""
    torch.set_default_dtype(dtype)
    try:
        modules: list[nn.Module] = [nn.Linear(64, WIDTH)]
        for _ in range(layers):
            modules += [nn.LayerNorm(WIDTH), nn.ReLU(), nn.utils.skip_init(nn.Linear, WIDTH, WIDTH)]
        network = nn.Sequential(*modules, nn.Linear(WIDTH, 10))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.5)
    return network


def peak() -> int:
    """Largest resident size of the process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(parameters: float, dtype: torch.dtype) -> Measurement:
    """Measure by how much one prediction enlarges the process, as a part of the network's size."""
    ghn = ghn_fast.GHN()
    ghn.predict(stack(1, dtype)[:4], input_shape=(64,))
    network = stack(max(round(parameters / WIDTH**2), 1), dtype)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    before = peak()
    report = ghn.predict(network, input_shape=(64,))
    grown = peak() - before
    details = {
        "bytes": size,
        "parameters": sum(p.numel() for p in network.parameters()),
        "tensors": len(report.predicted),
        "skipped": len(report.skipped),
        "grown_bytes": grown,
        "seconds": report.seconds["total"],
    }
    name = f"memory of predicting {details['parameters'] / 1e9:.2f} billion parameters, {dtype}"
    return Measurement(name, grown / size, "of its size", at_most=MOST, details=details)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.parameters, getattr(torch, arguments.dtype))
    d = result.details
    print(result.line())
    print(
        f"  {d['bytes'] / 1e9:.2f} GB, {d['tensors']} tensors ({d['skipped']} skipped); grown by "
        f"{d['grown_bytes'] / 1e6:.1f} MB; {d['seconds']:.2f} s"
    )
    if arguments.json is not None:
        report = {"about": about(torch.get_num_threads()), "result": result.to_dict()}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Which parameter tensors of known networks are predicted, and why others are not.

``python benchmarks/coverage.py`` captures every classification model of torchvision (with
``--timm``, those of timm that the tests name) and prints how many of its parameter tensors have a
place in its architecture graph. Models are built on the meta device where their code allows it, so
that large ones need no memory.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ghn_fast.capturing import CaptureError, capture

TIMM_MODELS = (
    "resnet50",
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnextv2_tiny",
    "mixer_b16_224",
    "efficientnetv2_rw_s",
    "regnety_016",
    "resnest50d",
    "coat_lite_mini",
    "poolformer_s12",
    "mobilevit_s",
    "levit_128",
    "xcit_nano_12_p16_224",
)


@dataclass
class Row:
    """Coverage of one network.

    Attributes:
        name: Name of the network.
        predicted: Parameter tensors that the graph predicts.
        total: All parameter tensors.
        nodes: Nodes of the graph.
        milliseconds: Time of the capture.
        reasons: Reason for not predicting a tensor, to the names of the tensors.
        error: Why there is no graph, or an empty text.
    """

    name: str
    predicted: int
    total: int
    nodes: int
    milliseconds: float
    reasons: dict[str, list[str]]
    error: str = ""


def measure(name: str, model: nn.Module, input_shape: tuple[int, ...]) -> Row:
    """Capture a network and count its parameter tensors."""
    names = [name for name, _ in model.named_parameters()]
    start = time.perf_counter()
    try:
        graph = capture(model, input_shape)
    except CaptureError as error:
        return Row(name, 0, len(names), 0, 0.0, {}, str(error))
    elapsed = 1e3 * (time.perf_counter() - start)
    predicted = {target.name for target in graph.targets}
    reasons: dict[str, list[str]] = {}
    for parameter in names:
        if parameter not in predicted:
            reasons.setdefault(graph.skipped[parameter], []).append(parameter)
    return Row(name, len(predicted), len(names), graph.num_nodes, elapsed, reasons)


def torchvision_models() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """List name, network and input shape of every classification model of torchvision."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):

        def build(name: str = name) -> nn.Module:
            return torchvision.models.get_model(name, weights=None, num_classes=10)

        size = 299 if name.startswith("inception") else 224
        yield name, on_meta(build), (3, size, size)


def timm_models() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """List name, network and input shape of the models of timm that the tests name."""
    import timm

    for name in TIMM_MODELS:

        def build(name: str = name) -> nn.Module:
            return timm.create_model(name, pretrained=False, num_classes=10)

        model = on_meta(build)
        yield name, model, tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224)))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without storage, unless its constructor computes with values."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def print_table(rows: list[Row]) -> None:
    """Print a line per network, the total, and the reasons."""
    print(f"{'network':34s} {'predicted':>9s} {'total':>6s} {'nodes':>6s} {'ms':>7s}")
    for row in rows:
        counts = f"{row.predicted:9d} {row.total:6d} {row.nodes:6d} {row.milliseconds:7.1f}"
        print(f"{row.name:34s} {counts}  {row.error}".rstrip())
    predicted, total = sum(row.predicted for row in rows), sum(row.total for row in rows)
    print(f"{len(rows)} networks: {predicted} of {total} tensors, {100 * predicted / total:.2f} %")
    reasons: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in rows:
        for reason, names in row.reasons.items():
            reasons[reason] += len(names)
            example.setdefault(reason, f"{row.name}: {names[0]}")
    for reason, count in reasons.most_common():
        print(f"{count:6d} not predicted: {reason} (first: {example[reason]})")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--timm", action="store_true", help="models of timm, not of torchvision")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    models = timm_models() if arguments.timm else torchvision_models()
    rows = [measure(*model) for model in models]
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()

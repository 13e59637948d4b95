"""What the commands ``evaluate``, ``predict`` and ``demo`` do and print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from ghn_fast.commands.architectures import torchvision_model
from ghn_fast.deepnets import DeepNets, SampledNets
from ghn_fast.graph import ArchGraph
from ghn_fast.hypernet import GHN, PredictionReport, from_pretrained
from ghn_fast.vision import (
    ArchitectureResult,
    EvaluationReport,
    Summary,
    evaluate_networks,
    load_images,
)

# Test architectures that `demo` and `evaluate` sample; meta-training never draws from this stream.
_TEST_SEED = 0


@dataclass(frozen=True)
class _Item:
    """An architecture with its graph for a data set's classes and image size."""

    item: Any
    num_classes: int
    image_size: int

    @property
    def index(self) -> int:
        return int(self.item.index)

    @property
    def name(self) -> str:
        return str(self.item.name)

    @property
    def graph(self) -> ArchGraph:
        return self.item.graph_for(num_classes=self.num_classes, image_size=self.image_size)

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        return self.item.build(num_classes=num_classes, image_size=image_size)


def evaluate_split(
    ghn: GHN,
    split: str,
    dataset: str,
    *,
    count: int,
    data_root: str | None = None,
    deepnets: Path | None = None,
    batch_size: int = 64,
    seed: int = _TEST_SEED,
    baseline: bool = True,
    device: str = "cpu",
    on_result: Callable[[int, int, ArchitectureResult], None] | None = None,
) -> EvaluationReport:
    """Evaluate predicted networks of a split on held-out images.

    Validation architectures meet validation images, all others test images.

    Args:
        ghn: The hypernetwork.
        split: Split of DeepNets-1M.
        dataset: Image data, see :func:`ghn_fast.vision.load_images`.
        count: Number of architectures at most.
        data_root: Folder of the image data.
        deepnets: Folder of generated files; without it the split is sampled.
        batch_size: Images per batch; BatchNorm uses the statistics of each batch.
        seed: Seed of sampled architectures.
        baseline: Whether to evaluate random initialisation, too.
        device: Where to run the networks.
        on_result: Called with (done, total, record) after each architecture.

    Raises:
        ValueError: If the data set has another number of classes than the hypernetwork.
    """
    splits = load_images(dataset, data_root)
    if splits.num_classes != ghn.config.num_classes:
        raise ValueError(
            f"dataset: {dataset} has {splits.num_classes} classes, but the hypernetwork predicts "
            f"classifiers of {ghn.config.num_classes}; evaluate it on the data it was trained for"
        )
    nets: DeepNets | SampledNets
    if deepnets is not None or split == "predefined":
        nets = DeepNets(deepnets, split, virtual_edges=ghn.config.virtual_edges)
    else:
        nets = SampledNets(split, count, seed, virtual_edges=ghn.config.virtual_edges)
    total = min(count, len(nets))
    items = [_Item(nets[index], splits.num_classes, splits.image_size) for index in range(total)]
    done = 0

    def report_one(record: ArchitectureResult) -> None:
        nonlocal done
        done += 1
        if on_result is not None:
            on_result(done, total, record)

    return evaluate_networks(
        items,
        lambda model, graph: _fill(ghn, model, graph),
        splits,
        batch_size=batch_size,
        images="val" if split == "val" else "test",
        device=device,
        baseline=baseline,
        seed=seed,
        on_result=report_one,
    )


def print_evaluation(report: EvaluationReport, title: str) -> None:
    """Print the summary of an evaluation."""
    table = Table(title=f"{title}, {report.num_images} {report.images} images of {report.dataset}")
    for column in ("parameters", "top-1 average %", "standard error", "best", "worst", "networks"):
        table.add_column(column, justify="left" if column == "parameters" else "right")
    for name, summary in (("predicted", report.predicted), ("random", report.random)):
        if summary is not None:
            table.add_row(name, *_summary_cells(summary))
    console = Console()
    console.print(table)
    console.print(f"BatchNorm: {report.batch_norm}")
    for record in report.failed:
        console.print(f"failed: {record.name}: {record.error}", style="red", highlight=False)


def predict_torchvision(
    name: str, ckpt: str, num_classes: int | None, input_size: int
) -> tuple[nn.Module, PredictionReport]:
    """Build a torchvision model by name and predict its parameters.

    Raises:
        ValueError: If torchvision has no classification model of that name.
    """
    ghn = from_pretrained(ckpt)
    network = torchvision_model(name, num_classes or ghn.config.num_classes)
    return network, ghn.predict(network, input_shape=(3, input_size, input_size))


def print_prediction(name: str, network: nn.Module, report: PredictionReport) -> None:
    """Print what a prediction did, and how long each stage took."""
    params = dict(network.named_parameters())
    numel = sum(params[n].numel() for n in report.predicted)
    table = Table(title=f"{name}: {len(report.predicted)} tensors, {numel / 1e6:.2f} M parameters")
    table.add_column("stage")
    table.add_column("milliseconds", justify="right")
    for stage, seconds in report.seconds.items():
        table.add_row(stage, f"{1e3 * seconds:.1f}")
    console = Console()
    console.print(table)
    for parameter, reason in report.skipped.items():
        console.print(f"not predicted: {parameter}: {reason}", highlight=False)
    if report.batch_statistics:
        console.print(
            f"{len(report.batch_statistics)} BatchNorm layers use batch statistics from now on"
        )


def run_demo(ckpt: str, count: int, out: Path) -> None:
    """Predict ResNet-50 and ``count`` unseen test architectures; evaluate them on digits.

    Prints a table and saves ``demo.json`` and ``demo.png`` in ``out``.
    """
    ghn = from_pretrained(ckpt)
    splits = load_images("digits")
    edges = ghn.config.virtual_edges
    resnet = DeepNets(None, "predefined", virtual_edges=edges)[0]
    nets = [resnet, *SampledNets("test", count, _TEST_SEED, virtual_edges=edges)]
    items = [_Item(net, splits.num_classes, splits.image_size) for net in nets]
    console = Console()
    console.print(
        f"{ckpt}: predicting {len(items)} networks that it has not seen, evaluating them on "
        f"{len(splits.test)} held-out digits"
    )
    report = evaluate_networks(items, lambda model, graph: _fill(ghn, model, graph), splits)
    console.print(_demo_table(report.records, nets))
    for name, summary in (("predicted", report.predicted), ("random", report.random)):
        if summary is not None:
            console.print(
                f"{name} parameters: {summary.mean:.1f} ± {summary.standard_error:.1f} % top-1"
            )
    out.mkdir(parents=True, exist_ok=True)
    report.to_json(out / "demo.json")
    report.histogram(out / "demo.png")
    console.print(f"written: {out / 'demo.json'} and {out / 'demo.png'}")


def _demo_table(records: Sequence[ArchitectureResult], nets: Sequence[Any]) -> Table:
    table = Table(title="Parameters predicted in one forward pass, no training")
    table.add_column("network")
    for column in ("nodes", "parameters", "milliseconds", "top-1 %", "random init %"):
        table.add_column(column, justify="right")
    for record, net in zip(records, nets, strict=True):
        if record.error is not None:
            table.add_row(record.name, "", "", "", record.error, "")
            continue
        table.add_row(
            record.name,
            str(net.num_nodes),
            f"{(record.num_params or 0) / 1e6:.2f} M",
            f"{1e3 * (record.seconds_predict or 0):.0f}",
            f"{record.top1:.1f}",
            f"{record.random_top1:.1f}",
        )
    return table


def _summary_cells(summary: Summary) -> list[str]:
    return [
        f"{summary.mean:.1f}",
        f"{summary.standard_error:.1f}",
        f"{summary.best:.1f}",
        f"{summary.worst:.1f}",
        str(summary.count),
    ]


def _fill(ghn: GHN, model: nn.Module, graph: ArchGraph) -> None:
    import warnings

    with warnings.catch_warnings():
        # Operations that no path uses keep their values by design in DeepNets-1M.
        warnings.simplefilter("ignore", UserWarning)
        ghn.predict(model, graph)

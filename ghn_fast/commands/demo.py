"""``demo``: unseen networks, predicted and evaluated within a minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ghn_fast.commands.common import check_out, picture
from ghn_fast.commands.output import make_console, say_written

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor, nn

    from ghn_fast.vision import ArchitectureResult, EvaluationReport, ImageSplits

# Meta-training never draws from this stream of test architectures.
_TEST_SEED = 0

# Bundled hypernetworks, natural images first, and the images that each knows.
_BUNDLED = {"ghn2-cifar10": "cifar10-sample", "ghn2-digits": "digits"}

# Test images that are kept of more than twice as many: the demo is over within a minute or so.
_KEPT_IMAGES = 300

# Images a batch, whose statistics BatchNorm layers normalise by, as published; the first ones of
# the first batch are drawn with the classes that a network gives them.
_BATCH, _SHOWN = 64, 18


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("demo-out"),
    ckpt: Annotated[
        str | None,
        typer.Option("--ckpt", help="A hypernetwork; by default those that come with the package."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Images for it: digits or cifar10-sample.  "
            "[default: what a bundled one knows, digits for others]",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Unseen test architectures.")] = 8,
) -> dict[str, Any]:
    """Predict ResNet-50 and unseen architectures, and evaluate them on held-out images."""
    from ghn_fast.hypernet.checkpoint import bundled

    check_out(out)
    if ckpt is None and dataset is not None:
        raise ValueError(f"--dataset: got {dataset}, needs --ckpt with the hypernetwork for it")
    here = {name: images for name, images in _BUNDLED.items() if name in bundled()}
    chosen = here if ckpt is None else {ckpt: dataset or _BUNDLED.get(ckpt, "digits")}
    found = {name: _evaluate(name, images, count) for name, images in chosen.items()}
    out.mkdir(parents=True, exist_ok=True)
    written = [
        path for name, shown in found.items() for path in _write(shown, out, Path(name).name)
    ]
    say_written(written)
    reports = {name: asdict(shown.report) for name, shown in found.items()}
    return {"hypernetworks": reports, "written": written}


class _Shown(NamedTuple):
    """What is shown of a hypernetwork."""

    report: EvaluationReport
    title: str
    images: Tensor  # (B, 3, S, S), pixels of 0..1
    names: list[str]
    targets: list[int]
    classes: list[int]  # that the predicted ResNet-50 gives the first ones; none if it failed


def _evaluate(ckpt: str, dataset: str, count: int) -> _Shown:
    import torch

    from ghn_fast.commands.evaluation import FittedItem, fill
    from ghn_fast.deepnets import DeepNets, SampledNets
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.vision import eval_batches, evaluate_networks, load_images

    ghn = from_pretrained(ckpt)
    splits = _fewer(load_images(dataset))
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    resnet = DeepNets(None, "predefined", edges, rules=rules)[0]
    nets = [resnet, *SampledNets("test", count, _TEST_SEED, edges, rules=rules)]
    items = [FittedItem(net, splits.num_classes, splits.image_size) for net in nets]
    console = make_console()
    console.print(
        f"{ckpt}: predicting {len(items)} networks that it has not seen, evaluating them on "
        f"{len(splits.test)} held-out images ({dataset})"
    )
    batch, _ = next(eval_batches(splits.test, splits, _BATCH))
    classes: list[int] = []

    def classify(model: nn.Module, record: ArchitectureResult) -> None:
        if record.name == resnet.name:
            with torch.inference_mode():
                classes.extend(model.eval()(batch).argmax(1)[:_SHOWN].tolist())

    report = evaluate_networks(
        items,
        lambda model, graph: fill(ghn, model, graph),
        splits,
        batch_size=_BATCH,
        on_network=classify,
    )
    console.print(_table(report.records, nets))
    for name, summary in (("predicted", report.predicted), ("random", report.random)):
        if summary is not None:
            console.print(
                f"{name} parameters: {summary.mean:.1f} ± {summary.standard_error:.1f} % top-1"
            )
    # The same batch as pixels of 0..1.
    plain = replace(splits, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels, targets = next(eval_batches(splits.test, plain, _BATCH))
    title = f"ResNet-50, predicted by {ckpt}"
    return _Shown(report, title, pixels, list(splits.class_names), targets.tolist(), classes)


def _fewer(splits: ImageSplits) -> ImageSplits:
    """The data set with some of its test images, as many of each class as there are."""
    import torch

    total = len(splits.test)
    if total <= 2 * _KEPT_IMAGES:
        return splits
    # In order of their classes, so that steps through them take as many of each.
    order = splits.test.targets.argsort(stable=True)
    chosen = order[torch.arange(_KEPT_IMAGES) * total // _KEPT_IMAGES]
    return replace(splits, test=splits.test.subset(chosen))


def _write(shown: _Shown, out: Path, name: str) -> list[Path]:
    """The report and the pictures, as files that begin with the hypernetwork's name."""
    report = shown.report
    report.to_json(out / f"{name}.json")
    written = [out / f"{name}.json"]
    if report.predicted is not None:
        written += picture(type(report).histogram, report, out / f"{name}.png")
    if shown.classes:
        written += picture(_draw, shown, out / f"{name}-images.png")
    return written


def _draw(shown: _Shown, path: Path) -> None:
    """Images with the classes that they are given; wrong ones in another colour."""
    from matplotlib.figure import Figure

    from ghn_fast.vision.results import PREDICTED_COLOUR, RANDOM_COLOUR

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    figure.suptitle(f"{shown.title}; no training, batch statistics", fontsize=10)
    axes = figure.subplots(3, _SHOWN // 3).ravel()
    for axis, image, target, found in zip(
        axes, shown.images, shown.targets, shown.classes, strict=False
    ):
        axis.imshow(image.permute(1, 2, 0).numpy())
        right = found == target
        words = shown.names[found] if right else f"{shown.names[found]}\n({shown.names[target]})"
        axis.set_xlabel(words, fontsize=8, color=PREDICTED_COLOUR if right else RANDOM_COLOUR)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=160)


def _table(records: Sequence[ArchitectureResult], nets: Sequence[Any]) -> Table:
    from rich.table import Table

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

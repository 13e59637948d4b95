"""``demo``: unseen networks, predicted and evaluated within a minute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import check_out, picture
from ghn_fast.commands.output import make_console, say_written

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.vision import ArchitectureResult

# Meta-training never draws from this stream of test architectures.
_TEST_SEED = 0


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the picture.")] = Path("demo-out"),
    ckpt: Annotated[str, typer.Option("--ckpt")] = "ghn2-digits",
    count: Annotated[int, typer.Option(min=1, help="Unseen test architectures.")] = 8,
) -> dict[str, Any]:
    """Predict ResNet-50 and unseen architectures, and evaluate them on held-out digits."""
    from ghn_fast.commands.evaluation import FittedItem, fill
    from ghn_fast.deepnets import DeepNets, SampledNets
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.vision import evaluate_networks, load_images

    check_out(out)
    ghn = from_pretrained(ckpt)
    splits = load_images("digits")
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    resnet = DeepNets(None, "predefined", edges, rules=rules)[0]
    nets = [resnet, *SampledNets("test", count, _TEST_SEED, edges, rules=rules)]
    items = [FittedItem(net, splits.num_classes, splits.image_size) for net in nets]
    console = make_console()
    console.print(
        f"{ckpt}: predicting {len(items)} networks that it has not seen, evaluating them on "
        f"{len(splits.test)} held-out digits"
    )
    report = evaluate_networks(items, lambda model, graph: fill(ghn, model, graph), splits)
    console.print(_table(report.records, nets))
    for name, summary in (("predicted", report.predicted), ("random", report.random)):
        if summary is not None:
            console.print(
                f"{name} parameters: {summary.mean:.1f} ± {summary.standard_error:.1f} % top-1"
            )
    out.mkdir(parents=True, exist_ok=True)
    report.to_json(out / "demo.json")
    drawn = picture(type(report).histogram, report, out / "demo.png")
    written = [out / "demo.json", *drawn]
    say_written(written)
    return {**asdict(report), "written": written}


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

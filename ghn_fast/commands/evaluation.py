"""``evaluate``: accuracy of predicted networks on held-out images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    MOST,
    DataRoot,
    Dataset,
    DeepNetsFolder,
    Device,
    Pixels,
    Precision,
    check_device,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import UnfinishedError, make_console, say_written
from ghn_fast.utils.json_files import to_json

if TYPE_CHECKING:
    from torch import nn

    from ghn_fast.graph import ArchGraph
    from ghn_fast.hypernet import GHN
    from ghn_fast.vision import ArchitectureResult, EvaluationReport, ImageSplits
    from ghn_fast.vision.record_file import RecordFile


class EvaluationSplit(StrEnum):
    """Splits that can be evaluated."""

    val = "val"
    test = "test"
    wide = "wide"
    deep = "deep"
    dense = "dense"
    bnfree = "bnfree"
    predefined = "predefined"
    search = "search"
    train = "train"


def evaluate(
    ckpt: Annotated[str, typer.Option("--ckpt", help="Name, folder or file of a hypernetwork.")],
    split: Annotated[
        EvaluationSplit, typer.Option("--split", help="Split of DeepNets-1M.")
    ] = EvaluationSplit.test,
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    image_size: Pixels = None,
    deepnets: DeepNetsFolder = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Architectures at most; by default all of the split, but no more than 500."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a batch.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampled architectures.")] = 0,
    baseline: Annotated[bool, typer.Option(help="Evaluate random initialisation, too.")] = True,
    statistics_batches: Annotated[
        int,
        typer.Option(
            min=0,
            help="Training batches of a second evaluation with training statistics; 0: none.",
        ),
    ] = 200,
    noise: Annotated[
        float,
        typer.Option(min=0, help="Noise on pixels of 0..1 in a further evaluation; 0: none."),
    ] = 0.0,
    precision: Precision = "float32",
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("evaluation"),
    device: Device = "cpu",
) -> dict[str, Any]:
    """Accuracy of predicted networks on held-out images.

    After an interruption the same command goes on with the architectures that are missing.
    """
    from ghn_fast.deepnets import SPLIT_SIZES
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.utils import distributed
    from ghn_fast.vision import load_images
    from ghn_fast.vision.record_file import RecordFile

    check_device(device)
    check_out(out)
    main_process = distributed.launched().rank == 0
    device = distributed.device_for(device)
    ghn = from_pretrained(ckpt, device=device)
    splits = load_images(dataset, data_root, image_size=image_size)
    name = split.value
    count = limit or min(SPLIT_SIZES.get(name, MOST), MOST)
    settings: dict[str, Any] = {"deepnets": deepnets, "batch_size": batch_size, "seed": seed}
    settings |= {"baseline": baseline, "device": device, "precision": precision}
    settings |= {"statistics_batches": statistics_batches, "noise": noise}
    stem = results_stem(name, dataset)
    with (
        distributed.job(device),
        RecordFile(out, stem, about_evaluation(ghn, name, splits, **settings)) as records,
        make_progress(show=main_process) as progress,
    ):
        task = progress.add_task(f"{name} architectures", total=None, info="")

        def on_result(done: int, total: int, record: ArchitectureResult) -> None:
            info = record.error or f"top-1 {record.top1:.1f} %"
            # The other processes are about as far with their shares.
            done = min(done * distributed.world_size(), total)
            progress.update(task, completed=done, total=total, info=info)

        try:
            report = evaluate_split(
                ghn, name, splits, count=count, on_result=on_result, records=records, **settings
            )
        except KeyboardInterrupt:
            if main_process:
                typer.echo("interrupted; the same command goes on", err=True)
            raise UnfinishedError({"finished": False}, INTERRUPTED) from None
        report.ckpt, report.split = ckpt, name
        if main_process:
            out.mkdir(parents=True, exist_ok=True)
            report.to_json(out / f"{stem}.json")
        distributed.barrier()  # records of all processes stay until the results are there
    if not main_process:
        return {"main_process": False}
    print_evaluation(report, f"{ckpt} on {name}")
    written = [out / f"{stem}.json"]
    if report.predicted is not None:
        written += picture(type(report).histogram, report, out / f"{stem}.png")
    say_written(written)
    result = {**asdict(report), "written": written}
    if report.predicted is None:
        raise UnfinishedError(result, 1)
    return result


def results_stem(split: str, dataset: str) -> str:
    """The name of the results of a split, without a suffix."""
    kind, _, folder = dataset.partition(":")
    return "-".join(filter(None, (split, kind, Path(folder).name)))


def about_evaluation(
    ghn: GHN,
    split: str,
    splits: ImageSplits,
    *,
    deepnets: Path | None,
    seed: int,
    device: str,
    precision: str,
    **settings: Any,
) -> dict[str, Any]:
    """What identifies an evaluation, for :class:`ghn_fast.vision.record_file.RecordFile`.

    The architectures are no part of it, which their records tell themselves: fewer are the first
    ones of more, and files of them may be anywhere.
    """
    import torch

    import ghn_fast
    from ghn_fast.studies.identity import about_training, fingerprint
    from ghn_fast.vision.precision import AUTO, choose

    return {
        "version": ghn_fast.__version__,
        "torch": torch.__version__,
        "hypernetwork": fingerprint(ghn),
        "split": split,
        "device": device.partition(":")[0],
        "precision": choose(torch.device(device))[0] if precision == AUTO else precision,
        **about_training(splits, settings, "val" if split == "val" else "test", seed),
    }


def evaluate_split(
    ghn: GHN,
    split: str,
    splits: ImageSplits,
    *,
    count: int,
    deepnets: Path | None,
    batch_size: int,
    seed: int,
    baseline: bool,
    device: str,
    on_result: Callable[[int, int, ArchitectureResult], None],
    statistics_batches: int = 0,
    noise: float = 0.0,
    on_network: Callable[[nn.Module, ArchitectureResult], None] | None = None,
    precision: str = "float32",
    records: RecordFile | None = None,
) -> EvaluationReport:
    """Evaluate predicted networks of a split on held-out images.

    Validation architectures meet validation images, all others test images.

    Args:
        ghn: The hypernetwork.
        split: Split of DeepNets-1M.
        splits: The image data set.
        count: Number of architectures at most.
        deepnets: Folder of generated files; without it the split is sampled.
        batch_size: Images per batch; BatchNorm uses the statistics of each batch.
        seed: Seed of sampled architectures.
        baseline: Whether to evaluate random initialisation, too.
        device: Where to run the networks.
        on_result: Called with (done, total, record) after each architecture.
        statistics_batches, noise, on_network, precision: As in
            :func:`ghn_fast.vision.evaluate_networks`.
        records: Where records are kept, and taken from.

    Raises:
        ValueError: If the data set has another number of classes than the hypernetwork.
    """
    from ghn_fast.deepnets import DeepNets, SampledNets
    from ghn_fast.vision import evaluate_networks

    if splits.num_classes != ghn.config.num_classes:
        raise ValueError(
            f"dataset: {splits.name} has {splits.num_classes} classes, but the hypernetwork "
            f"predicts classifiers of {ghn.config.num_classes}; evaluate it on the data it was "
            "trained for"
        )
    nets: DeepNets | SampledNets
    if deepnets is not None or split == "predefined":
        nets = DeepNets(deepnets, split, ghn.config.virtual_edges, rules=ghn.config.graph_rules)
    else:
        nets = SampledNets(
            split, count, seed, ghn.config.virtual_edges, rules=ghn.config.graph_rules
        )
    total = min(count, len(nets))
    items = [
        FittedItem(nets[index], splits.num_classes, splits.image_size) for index in range(total)
    ]
    done = 0
    told = {item.index: item.architecture for item in items} if records is not None else {}
    known = {} if records is None else records.known(told)

    def report_one(record: ArchitectureResult) -> None:
        nonlocal done
        done += 1
        if records is not None and record.index not in known:
            records.add(record, told[record.index])
        on_result(done, total, record)

    return evaluate_networks(
        items,
        lambda model, graph: fill(ghn, model, graph),
        splits,
        batch_size=batch_size,
        images="val" if split == "val" else "test",
        device=device,
        baseline=baseline,
        seed=seed,
        on_result=report_one,
        statistics_batches=statistics_batches,
        noise=noise,
        on_network=on_network,
        precision=precision,
        known=known,
    )


@dataclass(frozen=True)
class FittedItem:
    """An architecture of DeepNets-1M with its graph for a data set's classes and image size."""

    item: Any
    num_classes: int
    image_size: int

    @property
    def index(self) -> int:
        """Index in the split."""
        return int(self.item.index)

    @property
    def name(self) -> str:
        """Name of the architecture."""
        return str(self.item.name)

    @property
    def architecture(self) -> str:
        """Its configuration, if it is made of cells; the name tells others apart."""
        try:
            config = self.item.config
        except (ValueError, OSError):  # of a damaged file, which its evaluation will report
            config = None
        return self.name if config is None else to_json(config.to_dict())

    @property
    def graph(self) -> ArchGraph:
        """The graph for the data set."""
        return self.item.graph_for(num_classes=self.num_classes, image_size=self.image_size)

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """Make the network."""
        return self.item.build(num_classes=num_classes, image_size=image_size)


def fill(ghn: GHN, model: nn.Module, graph: ArchGraph) -> None:
    """Predict the parameters of a DeepNets-1M network in place, without warnings.

    Operations that no path uses keep their values by design.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ghn.predict(model, graph)


def print_evaluation(report: EvaluationReport, title: str) -> None:
    """Print the summary of an evaluation."""
    from rich.table import Table

    title += f", {report.num_images} {report.images} images of {report.dataset}"
    if report.precision != "float32":
        title += f", networks in {report.precision}"
    table = Table(title=title)
    table.add_column("parameters")
    table.add_column("BatchNorm")
    for column in ("top-1 average %", "standard error", "best", "worst", "networks"):
        table.add_column(column, justify="right")
    noisy = f"{report.batch_norm}, noise {report.noise:g}"
    for name, statistics, summary in (
        ("predicted", report.batch_norm, report.predicted),
        ("predicted", "training statistics", report.running),
        ("predicted", noisy, report.noisy),
        ("random", report.batch_norm, report.random),
    ):
        if summary is not None:
            numbers = (summary.mean, summary.standard_error, summary.best, summary.worst)
            cells = [f"{number:.1f}" for number in numbers]
            table.add_row(name, statistics, *cells, str(summary.count))
    console = make_console()
    console.print(table)
    if report.predicted_top5 is not None and report.num_classes > 5:
        console.print(f"top-5, {report.batch_norm}: {report.predicted_top5.mean:.1f} %")
    for record in report.failed:
        console.print(f"failed: {record.name}: {record.error}", style="red", highlight=False)

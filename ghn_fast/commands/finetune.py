"""``finetune``: predict parameters, then fine-tune on a few images of each class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    Cells,
    Channels,
    DataRoot,
    Dataset,
    Device,
    Pixels,
    check_device,
    check_out,
    picture,
)
from ghn_fast.commands.jobs import length, result_of, watched
from ghn_fast.commands.output import print_table, say_written
from ghn_fast.commands.sgd import Networks

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.curves import TrainingCurve
    from ghn_fast.studies.finetune import FinetuneReport


def finetune(
    networks: Networks,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            "--shots", min=1, help="Training images of each class; repeatable.  [default: 100]"
        ),
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            "--init",
            help="Where networks start: random, he, orthogonal, predicted, predicted-orthogonal "
            "(noise and orthogonal late layers) or FILE.safetensors, for example of pretrained "
            "weights; repeatable.  [default: random and predicted]",
        ),
    ] = None,
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    image_size: Pixels = None,
    head: Annotated[
        str,
        typer.Option(help="auto (predicted if the classes are as many), predict or keep."),
    ] = "auto",
    epochs: Annotated[float, typer.Option(help="Passes over the subset.")] = 50.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 96,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    lr: Annotated[
        list[float] | None,
        typer.Option(
            "--lr",
            help="Learning rate; of several, the best one on validation images is taken.  "
            "[default: 0.025]",
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 1e-3,
    evaluations: Annotated[
        int, typer.Option(min=2, help="Evaluations of a training, start and end included.")
    ] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise of predicted-orthogonal, relative.")
    ] = 3e-5,
    orthogonal_from: Annotated[
        int, typer.Option(min=0, help="Weight from which predicted-orthogonal begins.")
    ] = 0,
    channels: Channels = None,
    cells: Cells = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of results; trainings in it are not repeated.")
    ] = Path("finetune"),
    device: Device = "cpu",
) -> dict[str, Any]:
    """Predict parameters, fine-tune on a few images of each class, and compare with other starts.

    The table has the accuracy on all test images, mean ± standard deviation over seeds. Writes
    OUT/finetune.json and OUT/finetune.png. Ctrl-C keeps what was done; the same command continues.
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.finetune import finetune_networks
    from ghn_fast.studies.networks import find_networks
    from ghn_fast.studies.training import TrainingSettings
    from ghn_fast.utils import distributed
    from ghn_fast.vision import load_images

    heads = {"auto": None, "predict": True, "keep": False}
    if head not in heads:
        raise ValueError(f"head: got {head!r}, needs one of {', '.join(heads)}")
    check_device(device)
    check_out(out)
    inits = init or ["random", "predicted"]
    lrs = lr or [0.025]
    settings = TrainingSettings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lrs[0],
        weight_decay=weight_decay,
        evaluations=evaluations,
    )
    found = find_networks(networks, channels=channels, cells=cells)
    main_process = distributed.launched().rank == 0
    device = distributed.device_for(device)
    splits = load_images(dataset, data_root, image_size=image_size)
    needs = any(name.startswith("predicted") for name in inits)
    ghn = from_pretrained(ckpt, device=device) if needs else None
    with watched(device, show=main_process) as watch:
        report = finetune_networks(
            found,
            inits,
            splits,
            shots or [100],
            settings,
            lrs=lrs,
            ghn=ghn,
            seeds=range(seed, seed + seeds),
            head=heads[head],
            noise=noise,
            orthogonal_from=orthogonal_from,
            out=out,
            device=device,
            **watch._asdict(),
        )
    if not main_process:
        return {"main_process": False}
    written = write_finetune(report, out)
    print_table(finetune_table(report))
    say_written(written)
    return result_of(report)


def write_finetune(report: FinetuneReport, out: Path) -> list[Path]:
    """Write JSON and the picture of the curves; returns the files."""
    from ghn_fast.studies.curves import draw_curves
    from ghn_fast.utils.json_files import write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "finetune.json", report.to_dict())
    panels: dict[str, str] = {}
    curves: dict[str, list[TrainingCurve]] = {}
    for training in report.trainings:
        panel = f"{training.network}, {training.shots}-shot"
        key = f"{panel}, {training.init}"
        if training.curve.points:
            panels[key] = panel
            curves.setdefault(key, []).append(training.curve)
    shown = list(dict.fromkeys(panels.values()))[:6]
    curves = {key: seeds for key, seeds in curves.items() if panels[key] in shown}
    written = [out / "finetune.json"]
    if curves:
        kept = {key: panels[key] for key in curves}
        draw = partial(draw_curves, panels=kept, y_label="top-1 on test images (%)")
        written += picture(draw, curves, out / "finetune.png")
    return written


def finetune_table(report: FinetuneReport) -> Table:
    """The table: a row for each network and number of shots, a column for each start."""
    from rich.table import Table

    from ghn_fast.studies.curves import plus_minus

    settings = report.settings
    table = Table(
        title=f"top-1 % on all test images of {report.dataset} after {length(settings)} of "
        f"{settings['optimizer']}; mean ± standard deviation over seeds"
    )
    inits = list(dict.fromkeys(t.init for t in report.trainings))
    table.add_column("network")
    table.add_column("shots", justify="right")
    for init in inits:
        table.add_column(init, justify="right")
        if init.startswith("predicted"):
            table.add_column("before training", justify="right")
    rows = dict.fromkeys((t.network, t.shots) for t in report.trainings)
    for network, shots in rows:
        cells = []
        for init in inits:
            seeds = [
                t
                for t in report.trainings
                if (t.network, t.shots, t.init) == (network, shots, init)
            ]
            good = [t.top1 for t in seeds if t.top1 is not None and t.error is None]
            failed = f" ({len(seeds) - len(good)} failed)" if len(good) < len(seeds) else ""
            cells.append(plus_minus(good) + failed)
            if init.startswith("predicted"):
                cells.append(plus_minus([t.start_top1 for t in seeds if t.start_top1 is not None]))
        table.add_row(network, str(shots), *cells)
    return table

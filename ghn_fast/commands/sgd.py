"""``sgd``: ordinary training, from random, predicted or other parameters."""

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
    DeepNetsFolder,
    Device,
    Pixels,
    check_device,
    check_out,
    picture,
)
from ghn_fast.commands.jobs import length, result_of, watched
from ghn_fast.commands.output import print_table, say, say_written

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.curves import TrainingCurve
    from ghn_fast.studies.sgd import SgdReport, Training

Networks = Annotated[
    list[str],
    typer.Argument(
        help="Networks: a torchvision model, timm:NAME, hf:CONFIG_OR_FOLDER, "
        "deepnets:SPLIT:FIRST-LAST, vit, darts, pdarts, a genotype's FILE.json, or "
        "FILE.py:FUNCTION.",
        show_default=False,
    ),
]


def sgd(
    networks: Networks,
    init: Annotated[
        list[str] | None,
        typer.Option(
            "--init",
            help="Where networks start: random, he, orthogonal, predicted or FILE.safetensors; "
            "repeatable.  [default: random and predicted]",
        ),
    ] = None,
    ckpt: Annotated[
        str, typer.Option("--ckpt", help="Hypernetwork of --init predicted.")
    ] = "ghn2-digits",
    dataset: Dataset = "digits",
    data_root: DataRoot = None,
    image_size: Pixels = None,
    images: Annotated[str, typer.Option(help="Images of the evaluations: test or val.")] = "test",
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 50.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 96,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.025,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 3e-4,
    schedule: Annotated[str, typer.Option(help="cosine or constant.")] = "cosine",
    evaluations: Annotated[
        int, typer.Option(min=2, help="Evaluations of a training, start and end included.")
    ] = 11,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    channels: Channels = None,
    cells: Cells = None,
    deepnets: DeepNetsFolder = None,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise of the accuracy on noisy images.")
    ] = 0.08,
    convergence: Annotated[
        float, typer.Option(help="Training accuracy in % that convergence counts steps to.")
    ] = 95.0,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of results; trainings in it are continued.")
    ] = Path("sgd"),
    device: Device = "cpu",
) -> dict[str, Any]:
    """Train networks by SGD or Adam from random, predicted or given parameters, and compare.

    Says how many steps of training the predicted parameters are worth. Writes OUT/sgd.json with
    all curves, OUT/curves.png, and OUT/labels.csv, which the command properties reads. Ctrl-C keeps
    what was done; the same command continues. On several GPUs:
    torchrun --nproc-per-node 8 -m ghn_fast sgd ...
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.networks import find_networks
    from ghn_fast.studies.sgd import train_networks
    from ghn_fast.studies.training import TrainingSettings
    from ghn_fast.utils import distributed
    from ghn_fast.vision import load_images

    check_device(device)
    check_out(out)
    inits = init or ["random", "predicted"]
    settings = TrainingSettings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        evaluations=evaluations,
    )
    found = find_networks(networks, deepnets=deepnets, channels=channels, cells=cells)
    main_process = distributed.launched().rank == 0
    device = distributed.device_for(device)
    splits = load_images(dataset, data_root, image_size=image_size)
    ghn = from_pretrained(ckpt, device=device) if "predicted" in inits else None
    with watched(device, show=main_process) as watch:
        report = train_networks(
            found,
            inits,
            splits,
            settings,
            ghn=ghn,
            seeds=range(seed, seed + seeds),
            images=images,
            noise=noise,
            convergence=convergence,
            out=out,
            device=device,
            **watch._asdict(),
        )
    if not main_process:
        return {"main_process": False}
    written = write_sgd(report, out)
    print_table(sgd_table(report))
    for network in dict.fromkeys(t.network for t in report.trainings):
        line = worth_line(report, network)
        if line:
            say(line)
    say_written(written)
    return result_of(report)


def write_sgd(report: SgdReport, out: Path) -> list[Path]:
    """Write JSON, labels and the picture of the curves; returns the files."""
    from ghn_fast.studies.curves import draw_curves
    from ghn_fast.studies.sgd import LABELS
    from ghn_fast.utils.files import write_atomically
    from ghn_fast.utils.json_files import write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sgd.json", report.to_dict())
    write_atomically(out / LABELS, report.labels())
    names = list(dict.fromkeys(t.network for t in report.trainings if t.curve.points))[:4]
    curves: dict[str, list[TrainingCurve]] = {}
    panels = {}
    for training in report.trainings:
        if training.network in names and training.curve.points:
            key = f"{training.network}, {training.init}"
            curves.setdefault(key, []).append(training.curve)
            panels[key] = training.network
    written = [out / "sgd.json", out / LABELS]
    if curves:
        written += picture(partial(draw_curves, panels=panels), curves, out / "curves.png")
    return written


def sgd_table(report: SgdReport) -> Table:
    """The table of trainings, seeds averaged."""
    from rich.table import Table

    from ghn_fast.studies.curves import plus_minus

    settings = report.settings
    table = Table(title=f"{length(settings)} of {settings['optimizer']}, {report.images} images of "
                  f"{report.dataset}, training statistics for BatchNorm")  # fmt: skip
    table.add_column("network")
    table.add_column("start")
    for column in ("parameters", "top-1 % before", "after", "with noise", "steps to "
                   f"{settings['convergence']:g} % in training"):  # fmt: skip
        table.add_column(column, justify="right")
    groups: dict[tuple[str, str], list[Training]] = {}
    for training in report.trainings:
        groups.setdefault((training.network, training.init), []).append(training)
    for (network, init), seeds in groups.items():
        errors = [t.error for t in seeds if t.error]
        if errors:
            table.add_row(network, init, "", "", errors[0][:60], "", "")
            continue
        table.add_row(
            network,
            init,
            f"{seeds[0].parameters / 1e6:.2f} M",
            plus_minus([t.start_top1 for t in seeds if t.start_top1 is not None]),
            plus_minus([t.top1 for t in seeds if t.top1 is not None]),
            plus_minus([t.noisy_top1 for t in seeds if t.noisy_top1 is not None]),
            plus_minus([t.convergence for t in seeds if t.convergence is not None], 0),
        )
    return table


def worth_line(report: SgdReport, network: str) -> str:
    """How many steps of SGD prediction is worth for a network; empty if that was not measured."""
    from ghn_fast.studies.curves import plus_minus

    inits = {t.init for t in report.trainings if t.network == network}
    if not {"random", "predicted"} <= inits:
        return ""
    steps = report.worth(network)
    if steps:
        return f"{network}: prediction is worth {plus_minus(steps, 0)} steps from random parameters"
    return f"{network}: no curve from random parameters crosses the predicted accuracy"

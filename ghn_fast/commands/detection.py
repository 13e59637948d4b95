"""``detect``: object detection on backbones whose parameters are predicted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    Cells,
    Channels,
    Device,
    check_device,
    check_out,
    make_progress,
    picture,
)
from ghn_fast.commands.output import UnfinishedError, print_table, say_written
from ghn_fast.commands.sgd import Networks
from ghn_fast.utils.optional import require

if TYPE_CHECKING:
    from rich.table import Table

    from ghn_fast.studies.detection import Detection, DetectionReport


def detect(
    networks: Networks,
    dataset: Annotated[
        str,
        typer.Option(
            help="A folder in Penn-Fudan's layout, a file of COCO's annotations (.json), or "
            "shapes: rendered figures.",
        ),
    ] = "shapes",
    init: Annotated[
        list[str] | None,
        typer.Option(
            "--init",
            help="Where backbones start: random, he, orthogonal, predicted or FILE.safetensors; "
            "repeatable.  [default: random and predicted]",
        ),
    ] = None,
    ckpt: Annotated[str, typer.Option("--ckpt", help="The hypernetwork.")] = "ghn2-digits",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 2,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 0.005,
    side: Annotated[
        int | None,
        typer.Option(
            min=32, help="Shorter side of the images.  [default: 96 for shapes, else 800]"
        ),
    ] = None,
    test: Annotated[int, typer.Option(min=1, help="Images that are held out.")] = 50,
    shapes: Annotated[int, typer.Option(min=2, help="Images of --dataset shapes.")] = 170,
    channels: Channels = None,
    cells: Cells = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for results.")] = Path("detection"),
    device: Device = "cpu",
) -> dict[str, Any]:
    """Train Faster R-CNN on backbones from random, predicted or given parameters.

    Reports AP at an overlap of 0.5 on held-out images. Needs pip install 'ghn-fast[detection]'.
    Writes OUT/detection.json and OUT/detection.png. Ctrl-C keeps what was done.
    """
    from ghn_fast.hypernet import from_pretrained
    from ghn_fast.studies.detection import DetectionSettings, train_detectors
    from ghn_fast.studies.detection_data import load_boxes, render_shapes
    from ghn_fast.studies.networks import find_networks
    from ghn_fast.utils.json_files import write_json
    from ghn_fast.utils.signals import stop_requests

    check_device(device)
    check_out(out)
    inits = init or ["random", "predicted"]
    rendered = dataset == "shapes"
    settings = DetectionSettings(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        side=side or (96 if rendered else 800),
        test=test,
    )
    found = find_networks(networks, channels=channels, cells=cells)
    if rendered and test >= shapes:
        raise ValueError(f"test: got {test}, but --shapes makes {shapes} images")
    if rendered:
        dataset = str(render_shapes(out / "shapes", shapes, seed=seed))
    images = load_boxes(dataset)
    ghn = from_pretrained(ckpt, device=device) if "predicted" in inits else None
    with stop_requests() as stop, make_progress(rate=True) as progress:
        overall = progress.add_task("detectors", total=None, info="")
        task = progress.add_task("steps", total=None, info="")

        def on_step(name: str, done: int, total: int, loss: float) -> None:
            progress.update(task, completed=done, total=total, info=f"{name}: loss {loss:.3f}")

        def on_result(done: int, total: int, record: Detection) -> None:
            info = record.error or (f"AP {record.ap50[-1]:.3f}" if record.ap50 else "")
            progress.update(overall, completed=done, total=total, info=info)

        report = train_detectors(
            found,
            inits,
            images,
            settings,
            ghn=ghn,
            seeds=range(seed, seed + seeds),
            device=device,
            stop=stop,
            on_step=on_step,
            on_result=on_result,
        )
    out.mkdir(parents=True, exist_ok=True)
    result = report.to_dict()
    write_json(out / "detection.json", result)
    drawn = picture(draw_detection, report, out / "detection.png")
    print_table(detection_table(report))
    say_written([out / "detection.json", *drawn])
    if not report.finished:
        typer.echo("interrupted", err=True)
        raise UnfinishedError(result, INTERRUPTED)
    if all(record.error for record in report.detections):
        raise ValueError(f"every training failed, the first one: {report.detections[0].error}")
    return result


def detection_table(report: DetectionReport) -> Table:
    """AP at 0.5: a row for each start, a column for each backbone; published numbers below."""
    from rich.table import Table

    from ghn_fast.studies.curves import plus_minus
    from ghn_fast.studies.detection import PUBLISHED

    table = Table(
        title=f"AP at 0.5 on {report.test} images of {report.dataset} after "
        f"{report.settings['epochs']} epochs on {report.train}; published: Penn-Fudan"
    )
    table.add_column("start")
    networks = list(dict.fromkeys(d.network for d in report.detections))
    for network in networks:
        table.add_column(network, justify="right")
    for init in dict.fromkeys(d.init for d in report.detections):
        cells = []
        for network in networks:
            some = [d for d in report.detections if (d.network, d.init) == (network, init)]
            errors = [d.error for d in some if d.error]
            values = [d.ap50[-1] for d in some if d.ap50]
            cells.append(errors[0][:50] if errors else plus_minus(values, 3))
        table.add_row(init, *cells)
    for name, known in PUBLISHED.items():
        shown = [f"{known[n]:.3f}" if n in known else "" for n in networks]
        if any(shown):
            table.add_row(f"published: {name}", *shown)
    return table


def draw_detection(report: DetectionReport, path: Path) -> None:
    """AP against epochs, one panel for each backbone."""
    Figure = require("matplotlib.figure", "drawing", "pictures").Figure

    from ghn_fast.studies.curves import COLOURS

    networks = list(dict.fromkeys(d.network for d in report.detections))[:4]
    figure = Figure(figsize=(1.0 + 3.0 * len(networks), 3.0), layout="constrained")
    axes = figure.subplots(1, len(networks), squeeze=False, sharey=True)[0]
    inits = list(dict.fromkeys(d.init for d in report.detections))
    for axis, network in zip(axes, networks, strict=True):
        for record in report.detections:
            if record.network == network and record.ap50:
                colour = COLOURS[inits.index(record.init) % len(COLOURS)]
                epochs = range(1, len(record.ap50) + 1)
                label = record.init if record.seed == report.detections[0].seed else None
                axis.plot(epochs, record.ap50, color=colour, marker="o", markersize=3, label=label)
        axis.set_title(network, loc="left", fontsize=10)
        axis.set_xlabel("epochs")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("AP at 0.5")
    if axes[0].lines:
        axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)

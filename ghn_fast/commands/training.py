"""``train`` and ``report``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.commands.common import (
    INTERRUPTED,
    DataRoot,
    check_device,
    check_out,
    make_progress,
)
from ghn_fast.commands.output import UnfinishedError, say


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run; continued if it exists.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of settings; options override it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="digits, cifar10, imagenet, folder:PATH, text:PATH or text:generated."),
    ] = None,
    data_root: DataRoot = None,
    deepnets: Annotated[
        str | None,
        typer.Option(
            help="Folder of generated files, how many architectures to sample, or vits; for text, "
            "gpts."
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Hypernetwork to start from, as in evaluate --ckpt.")
    ] = None,
    meta_batch: Annotated[int | None, typer.Option(min=1, help="Architectures per step.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the run.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole run.")] = None,
    hid: Annotated[int | None, typer.Option(min=4, help="Width of the embeddings.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="In steps.")] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints at most.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=0, help="Steps between evaluations; 0 for none.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, tf32, bf16, fp16 or auto.")
    ] = None,
    pool_size: Annotated[
        int | None, typer.Option(min=0, help="Architectures in the pool; 0 for no pool.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option("--tracker", help="tensorboard or wandb; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of the file; repeatable."),
    ] = None,
) -> dict[str, Any]:
    """Meta-train a hypernetwork, or continue the run in OUT.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m ghn_fast train ...
    """
    from ghn_fast.metatrain import TrainConfig, read_config
    from ghn_fast.metatrain import train as run
    from ghn_fast.metatrain.config import parse_settings
    from ghn_fast.metatrain.run import networks_run_in
    from ghn_fast.utils import distributed

    values = read_config(config) if config is not None else {}
    beside = ("out", "config", "settings", "as_json")
    given = {
        name: value
        for name, value in context.params.items()
        if name not in beside and value is not None and value != []
    }
    given |= parse_settings(settings or [])
    if "steps" in given or "epochs" in given:
        values.pop("steps", None)
        values.pop("epochs", None)
    checked = TrainConfig.from_dict({**values, **given})
    check_device(checked.execution.device)
    check_out(out)
    main_process = distributed.launched().rank == 0
    if main_process:
        typer.echo(networks_run_in(checked, out), err=True)
    with make_progress(show=main_process, rate=True) as progress:
        task = progress.add_task("meta-training", total=None, info="")
        skipped, first = 0, None

        def on_step(metrics: dict[str, Any], total: int) -> None:
            nonlocal skipped, first
            if first is None:
                # The time of a continued run counts from here, for speed and time left.
                first = metrics["step"] - 1
                progress.reset(task, total=total, completed=first)
            skipped += metrics["skipped"]
            info = f"loss {metrics['loss']:.3f}  top-1 {metrics['top1']:.1f} %  skipped {skipped}"
            progress.update(task, completed=metrics["step"], total=total, info=info)

        result = run(checked, out, on_step=on_step)
    if main_process:
        checkpoint = result.checkpoint or "none yet"
        say(f"step {result.step} of {result.total}, checkpoint: {checkpoint}")
    if result.interrupted:
        if main_process:
            say("interrupted; the same command continues the run")
        raise UnfinishedError(asdict(result), INTERRUPTED)
    return asdict(result)


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
) -> dict[str, Any]:
    """Write RUN/report.html: curves, evaluations, skipped architectures, settings."""
    from ghn_fast.metatrain.page import write_report

    page = write_report(run)
    say(f"written: {page}")
    return {"run": run, "out": page}

"""What the subcommands share: options, checks, output."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ghn_fast.utils.logs import get_logger

# Exit status of a program that SIGINT ended, by the convention of shells.
INTERRUPTED = 130
# Architectures that are taken of a large split unless it is told otherwise.
MOST = 500

Dataset = Annotated[
    str,
    typer.Option(
        "--dataset",
        help="digits, cifar10, cifar10-sample, imagenet or folder:PATH (an ImageFolder).",
    ),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="Of the networks: float32, tf32, bf16, fp16 or auto (the fastest).",
    ),
]
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Folder of the image data.")]
Pixels = Annotated[
    int | None, typer.Option("--image-size", min=8, help="Side of the images in pixels.")
]
Channels = Annotated[
    int | None, typer.Option("--channels", min=2, help="Channels of networks made of cells.")
]
Cells = Annotated[int | None, typer.Option("--cells", min=1, help="Their number of cells.")]


def complete_model(incomplete: str) -> list[str]:
    """Names of networks that begin as what has been typed, for the shell."""
    from ghn_fast.models import known_names

    return known_names(incomplete)


ModelName = Annotated[
    str,
    typer.Argument(
        help="A network: of torchvision (resnet50), timm:NAME, hf:CONFIG_OR_FOLDER, "
        "FILE.py:FUNCTION, deepnets:SPLIT:INDEX, or a .pt2 file of torch.export.",
        autocompletion=complete_model,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--input-size", min=1, help="Height and width of an image; by default the network's own."
    ),
]
DeepNetsFolder = Annotated[
    Path | None,
    typer.Option(
        "--deepnets", help="Folder of generated files; without it architectures are sampled."
    ),
]


def check_out(folder: Path) -> None:
    """Refuse a folder that results cannot be written to before the work, not after it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--out: got {folder}, but {existing} is a file; needs a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"--out: got {folder}, but {existing} cannot be written to")


def check_out_file(path: Path, suffix: str) -> None:
    """Refuse a file that cannot be written, or whose name says another format, before the work."""
    check_out(path.parent)
    if path.is_dir():
        raise ValueError(f"--out: got {path}, which is a folder; needs a file, NAME{suffix}")
    if path.suffix not in ("", suffix):
        raise ValueError(
            f"--out: got {path}, needs a name that ends in {suffix}, which is what is written"
        )


def check_device(name: str) -> None:
    """Refuse a device that is not there before the work, not in it."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: got {name!r}, needs cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device: got {name!r}, but there is no CUDA GPU that torch can use; use cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {name!r}, but there are {torch.cuda.device_count()} CUDA GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: got {name!r}, needs cpu, cuda or cuda:N")


def can_draw() -> bool:
    """Whether pictures can be drawn; if not, a warning says what they need."""
    from ghn_fast.utils.optional import installed, missing

    if installed("matplotlib"):
        return True
    get_logger(__name__).warning("%s", missing("matplotlib", "drawing", "pictures"))
    return False


def picture(draw: Callable[..., None], data: Any, path: Path, *more: Any) -> list[Path]:
    """Draw a picture by ``draw(data, path, *more)``, unless what that needs is not installed.

    Returns:
        The path, in a list, if it was drawn.
    """
    if not can_draw():
        return []
    draw(data, path, *more)
    return [path]


def make_progress(*, show: bool = True, rate: bool = False) -> Any:
    """A progress bar on standard error; its tasks have a field ``info``.

    In a terminal and in a notebook it is drawn in place. Elsewhere, in the file of a batch job for
    instance, it is a line now and then.

    Args:
        show: Whether it is drawn at all.
        rate: Whether it says how many steps there are in a second.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Steps per second, or seconds per step where that is the larger number."""

        def render(self, task: Task) -> Text:
            speed = task.speed
            if not rate or not speed:
                return Text("")
            return Text(f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step")

    console = Console(stderr=True)
    if show and not (console.is_terminal or console.is_jupyter):
        from ghn_fast.commands.lines import ProgressLines

        return ProgressLines()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        Rate(),
        TextColumn("{task.fields[info]}"),
        console=console,
        disable=not show,
    )

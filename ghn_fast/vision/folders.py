"""Trees of image files: one folder per class, split into train, val and test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ghn_fast.utils.optional import require
from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.images import SMALL_IMAGE, ImageSet, ImageSplits, decode_files

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224

# Trees up to this many bytes of decoded images are kept in memory (CIFAR-10: 176 MiB).
MEMORY_LIMIT = 256 * 2**20

# Part of a tree without test images that is held out for testing.
TEST_FRACTION = 0.2

# Images looked at to find the size of a tree's images, and to estimate the normalisation of a
# tree too large for memory.
SIZE_SAMPLE = 64
STATISTICS_SAMPLE = 2048


@dataclass(frozen=True)
class ClassTree:
    """The image files of a tree with one folder per class.

    Attributes:
        path: Root of the tree.
        class_names: Names of the classes, sorted.
        paths: The files, sorted by class and name.
        targets: The class of each file.
    """

    path: Path
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    targets: tuple[int, ...]


def scan_classes(path: Path) -> ClassTree:
    """List the images of path/<class>/**, sorted; folders that start with a dot are ignored.

    Raises:
        FileNotFoundError: If the folder is missing; the message names it.
        ValueError: If it has no class folders or a class has no images, if a link leads back to a
            folder that it lies in, or an image is no regular file; the message names the path.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no such image folder: {path}")
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise ValueError(f"{path} has no class folders; expected {path}/<class>/<image files>")
    paths: list[str] = []
    targets: list[int] = []
    for index, name in enumerate(names):
        files = _images_below(path / name)
        if not files:
            raise ValueError(
                f"class folder {path / name} has no images; known extensions are "
                f"{', '.join(_extensions())}"
            )
        paths.extend(sorted(files))
        targets.extend([index] * len(files))
    return ClassTree(path, tuple(names), tuple(paths), tuple(targets))


def _extensions() -> tuple[str, ...]:
    folder = require("torchvision.datasets.folder", "vision", "folders of images")
    extensions: tuple[str, ...] = folder.IMG_EXTENSIONS
    return extensions


def _images_below(folder: Path) -> list[str]:
    """The image files below a folder, links followed, each real folder once."""
    found: list[str] = []
    visited: set[tuple[int, int]] = set()
    # With the real folders that each lies in: a link to one of them has no end.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), _above(folder))]
    while waiting:
        here, above = waiting.pop()
        identity = _identity(here)
        if identity in above:
            raise ValueError(f"{here} is a link to a folder that it lies in; remove it")
        if identity in visited:
            continue
        visited.add(identity)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, above | {identity}))
                elif entry.name.lower().endswith(_extensions()) and entry.name[0] != ".":
                    if not entry.is_file():
                        raise ValueError(f"{entry.path} is no regular file, needs an image")
                    found.append(entry.path)
    return found


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _above(folder: Path) -> frozenset[tuple[int, int]]:
    return frozenset(_identity(str(parent)) for parent in folder.absolute().parents)


def stratified_split(
    targets: Tensor,
    fractions: Sequence[float],
    generator: torch.Generator,
    class_names: Sequence[str] | None = None,
) -> list[Tensor]:
    """Split indices 0..N-1 into disjoint parts, class by class.

    A part does not depend on the fractions after it.

    Args:
        targets: Class of each image, (N,) int64.
        fractions: Part i holds ``round(fractions[i] * n)`` of the n images of each class, at least
            one.
        generator: CPU generator of the random choice.
        class_names: Names of the classes for the message of an error.

    Returns:
        The sorted indices of each part, and of the rest.

    Raises:
        ValueError: If a class has too few images for one in each part.
    """
    parts: list[list[Tensor]] = [[] for _ in range(len(fractions) + 1)]
    for label in targets.unique().tolist():
        members = (targets == label).nonzero().flatten()
        sizes = [max(1, round(fraction * len(members))) for fraction in fractions]
        rest = len(members) - sum(sizes)
        if rest < 1:
            name = class_names[label] if class_names is not None else label
            raise ValueError(
                f"class {name} has {len(members)} images, too few to hold out "
                f"{' and '.join(str(size) for size in sizes)} and keep one for training"
            )
        members = members[torch.randperm(len(members), generator=generator)]
        for part, chunk in zip(parts, members.split([*sizes, rest]), strict=True):
            part.append(chunk)
    return [torch.cat(part).sort().values for part in parts]


def load_folder(
    name: str, path: Path, image_size: int | None, val_fraction: float, seed: int
) -> ImageSplits:
    """Load any ImageFolder tree; see :func:`ghn_fast.vision.load_images`."""
    if not path.is_dir():
        raise FileNotFoundError(f"no such image folder: {path}")
    if (path / "train").is_dir():
        train = scan_classes(path / "train")
        val, test = (
            scan_classes(path / part) if (path / part).is_dir() else None
            for part in ("val", "test")
        )
    else:
        stray = [part for part in ("val", "test") if (path / part).is_dir()]
        if stray:
            raise FileNotFoundError(f"{path} has {' and '.join(stray)} but no train folder")
        train, val, test = scan_classes(path), None, None
    return _assemble(name, train, val, test, image_size, val_fraction, seed, in_memory=True)


def load_imagenet(
    name: str, root: Path, image_size: int | None, val_fraction: float, seed: int
) -> ImageSplits:
    """Load the ImageNet layout root/train, root/val (the test images), decoded on demand."""
    train, test = scan_classes(root / "train"), scan_classes(root / "val")
    size = IMAGENET_SIZE if image_size is None else image_size
    return _assemble(name, train, None, test, size, val_fraction, seed, in_memory=False)


def _assemble(
    name: str,
    train: ClassTree,
    val: ClassTree | None,
    test: ClassTree | None,
    image_size: int | None,
    val_fraction: float,
    seed: int,
    *,
    in_memory: bool,
) -> ImageSplits:
    for other in (val, test):
        if other is not None:
            _check_same_classes(train, other)
    size = common_size(train.paths) if image_size is None else image_size
    count = sum(len(tree.paths) for tree in (train, val, test) if tree is not None)
    in_memory = in_memory and count * 3 * size * size <= MEMORY_LIMIT

    fractions = ([TEST_FRACTION] if test is None else []) + ([val_fraction] if val is None else [])
    try:
        parts = stratified_split(
            torch.tensor(train.targets),
            fractions,
            seeded_generator("hold out", seed),
            train.class_names,
        )
    except ValueError as error:
        raise ValueError(f"{train.path}: {error}") from error
    pool = _image_set(train, size, in_memory)
    test_set = pool.subset(parts.pop(0)) if test is None else _image_set(test, size, in_memory)
    val_set = pool.subset(parts.pop(0)) if val is None else _image_set(val, size, in_memory)
    train_set = pool.subset(parts.pop(0))

    if size <= SMALL_IMAGE:
        mean, std = channel_statistics(train_set)
        augment = "crop_flip"
    else:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        augment = "resized_crop_flip"
    return ImageSplits(
        name=name,
        num_classes=len(train.class_names),
        class_names=train.class_names,
        image_size=size,
        mean=mean,
        std=std,
        train=train_set,
        val=val_set,
        test=test_set,
        augment=augment,
    )


def _check_same_classes(train: ClassTree, other: ClassTree) -> None:
    missing = sorted(set(train.class_names) - set(other.class_names))
    unknown = sorted(set(other.class_names) - set(train.class_names))
    if missing or unknown:
        parts = [f"lacks {_shortened(missing)}"] if missing else []
        parts += [f"has the unknown {_shortened(unknown)}"] if unknown else []
        raise ValueError(
            f"the classes of {other.path} differ from those of {train.path}: it "
            f"{' and '.join(parts)}"
        )


def _shortened(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _image_set(tree: ClassTree, image_size: int, in_memory: bool) -> ImageSet:
    targets = torch.tensor(tree.targets, dtype=torch.int64)
    if not in_memory:
        return ImageSet(targets, image_size, paths=tree.paths)
    images = decode_files(tree.paths, image_size, workers=_decoding_threads())
    return ImageSet(targets, image_size, images=images)


def _decoding_threads() -> int:
    # PIL releases the interpreter lock while it decodes and resizes, so threads suffice.
    return min(16, os.cpu_count() or 1)


def common_size(paths: Sequence[str]) -> int:
    """The side that images share if they are squares of at most 224 pixels, else 224.

    The headers of up to about :data:`SIZE_SAMPLE` files, spread over the tree, are read.

    Raises:
        ValueError: If a file cannot be decoded; the message names it.
    """
    Image = require("PIL.Image", "vision", "image files")

    sides: set[tuple[int, int]] = set()
    for path in paths[:: max(1, len(paths) // SIZE_SAMPLE)]:
        try:
            with Image.open(path) as image:
                sides.add(image.size)
        except Exception as error:  # of PIL's own for a header that says it is huge
            raise ValueError(f"cannot decode the image {path}: {error}") from error
    width, height = next(iter(sides))
    shared = len(sides) == 1 and width == height and 8 <= width <= IMAGENET_SIZE
    return width if shared else IMAGENET_SIZE


def channel_statistics(
    images: ImageSet,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Compute mean and standard deviation per channel over all pixels, scaled to 0..1.

    A set that is read from files is estimated from about :data:`STATISTICS_SAMPLE` images spread
    over it. The standard deviation is at least one grey level, 1/255, so that constant images can
    be normalised.
    """
    if images.images is not None:
        pixels = images.images
    else:
        chosen = torch.arange(0, len(images), max(1, len(images) // STATISTICS_SAMPLE))
        pixels = images.pixels(chosen, workers=_decoding_threads())
    # Counts per grey level: exact, and no float copy of the images.
    levels = torch.arange(256, dtype=torch.float64) / 255
    means: list[float] = []
    deviations: list[float] = []
    for channel in range(3):
        counts = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
        weights = counts / counts.sum()
        mean = float((weights * levels).sum())
        means.append(mean)
        deviations.append(max(1 / 255, float((weights * (levels - mean) ** 2).sum() ** 0.5)))
    return (means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2])

"""Images with boxes: Penn-Fudan's layout, COCO's annotations, and rendered shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ghn_fast.utils.seeds import derive_seed

IMAGES, MASKS = "PNGImages", "PedMasks"


@dataclass(frozen=True)
class BoxedImages:
    """Images with boxes, read when they are asked for.

    Attributes:
        name: What they are called.
        paths: The files.
        boxes: Per image boxes (B, 4) float32: left, top, right, bottom in pixels.
        labels: Per image classes (B,) int64, from 1 on; 0 is the background.
        class_names: Names of the classes, without the background.
    """

    name: str
    paths: tuple[Path, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Tensor:
        """An image (3, H, W) float32 of 0..1.

        Raises:
            ValueError: If it cannot be decoded; the message names it.
        """
        return torch.from_numpy(_pixels(self.paths[index]).copy()).permute(2, 0, 1) / 255

    def subset(self, indices: list[int]) -> BoxedImages:
        """The images at ``indices``, in that order."""
        return BoxedImages(
            self.name,
            tuple(self.paths[i] for i in indices),
            tuple(self.boxes[i] for i in indices),
            tuple(self.labels[i] for i in indices),
            self.class_names,
        )

    def split(self, test: int, seed: int) -> tuple[BoxedImages, BoxedImages]:
        """Training and test images, at random.

        Raises:
            ValueError: If there are not more than ``test`` images.
        """
        if not 1 <= test < len(self):
            raise ValueError(f"test: got {test}, but {self.name} has {len(self)} images")
        order = np.random.default_rng(derive_seed("boxes", seed)).permutation(len(self)).tolist()
        return self.subset(order[:-test]), self.subset(order[-test:])


def _pixels(path: Path, mode: str = "RGB") -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"cannot decode the image {path}: {error}") from error


def load_boxes(name: str) -> BoxedImages:
    """Read a data set of images with boxes.

    Args:
        name: A folder in Penn-Fudan's layout (``PNGImages`` and ``PedMasks``, where a mask numbers
            the objects from 1 on), or a file of COCO's annotations (``.json``), whose images lie
            beside it, in a folder ``images`` beside it, or where their names say.

    Raises:
        FileNotFoundError: If it is missing; the message says what was looked for.
        ValueError: If it is not valid, or no image has a box.
    """
    path = Path(name).expanduser()
    found = _coco(path) if path.suffix == ".json" else _penn_fudan(path)
    if not len(found):
        raise ValueError(f"{path}: no image has a box")
    return found


def _penn_fudan(folder: Path) -> BoxedImages:
    images, masks = folder / IMAGES, folder / MASKS
    if not images.is_dir() or not masks.is_dir():
        raise FileNotFoundError(
            f"{folder}: has no folders {IMAGES} and {MASKS}; needs Penn-Fudan's layout or a file "
            "of COCO's annotations"
        )
    paths, boxes, labels = [], [], []
    for path in sorted(images.glob("*.png")):
        mask_path = masks / f"{path.stem}_mask.png"
        if not mask_path.is_file():
            raise FileNotFoundError(f"{path}: its mask {mask_path} is missing")
        mask = _pixels(mask_path, "")
        if mask.ndim != 2:
            raise ValueError(f"{mask_path}: has {mask.ndim} dimensions, needs numbers of objects")
        rows = []
        for number in np.unique(mask[mask > 0]):
            ys, xs = np.nonzero(mask == number)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            rows.append([float(side) for side in box])
        if rows:
            paths.append(path)
            boxes.append(torch.tensor(rows))
            labels.append(torch.ones(len(rows), dtype=torch.int64))
    return BoxedImages(folder.name, tuple(paths), tuple(boxes), tuple(labels), ("object",))


def _coco(path: Path) -> BoxedImages:
    if not path.is_file():
        raise FileNotFoundError(f"no such file of annotations: {path}")
    try:
        data = json.loads(path.read_text())
        categories = {int(c["id"]): str(c["name"]) for c in data["categories"]}
        files = {int(i["id"]): str(i["file_name"]) for i in data["images"]}
        numbers = {key: place for place, key in enumerate(sorted(categories), start=1)}
        rows: dict[int, list[tuple[list[float], int]]] = {key: [] for key in files}
        for item in data["annotations"]:
            left, top, width, height = map(float, item["bbox"])
            if width <= 0 or height <= 0 or item.get("iscrowd"):
                continue
            box = [left, top, left + width, top + height]
            rows[int(item["image_id"])].append((box, numbers[int(item["category_id"])]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: is no file of COCO's annotations ({error!r})") from error
    places = (path.parent, path.parent / "images", Path())
    paths, boxes, labels = [], [], []
    for key, found in rows.items():
        if not found:
            continue
        candidates = [place / files[key] for place in places]
        file = next((c for c in candidates if c.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"{path}: its image {candidates[0]} is missing")
        paths.append(file)
        boxes.append(torch.tensor([box for box, _ in found]))
        labels.append(torch.tensor([label for _, label in found]))
    names = tuple(categories[key] for key in sorted(categories))
    return BoxedImages(path.stem, tuple(paths), tuple(boxes), tuple(labels), names)


def render_shapes(folder: str | Path, count: int, *, size: int = 96, seed: int = 0) -> Path:
    """Write images of walking figures on noise, in Penn-Fudan's layout.

    A figure is a head on a body of one colour; one to three of them stand in an image and may
    overlap. It is a stand-in for the real data where nothing can be downloaded.

    Args:
        folder: Where they go; files that are there already are written again.
        count: Number of images.
        size: Height and width in pixels, at least 32.
        seed: Seed of everything.

    Returns:
        The folder.

    Raises:
        ValueError: If an argument is out of range.
    """
    from PIL import Image

    if count < 1 or size < 32:
        raise ValueError(f"count, size: got {count} and {size}, needs at least 1 and 32")
    folder = Path(folder)
    for part in (IMAGES, MASKS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = np.random.default_rng(derive_seed("shapes", seed, index))
        ground = rng.integers(60, 196, 3)
        pixels = np.clip(ground + rng.normal(0, 25, (size, size, 3)), 0, 255)
        mask = np.zeros((size, size), dtype=np.uint8)
        for number in range(1, int(rng.integers(1, 4)) + 1):
            inside = _figure(rng, size)
            colour = (ground + rng.choice([-1, 1]) * rng.integers(70, 120, 3)) % 256
            pixels[inside] = np.clip(colour + rng.normal(0, 12, (int(inside.sum()), 3)), 0, 255)
            mask[inside] = number
        name = f"Shapes{index:05d}"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / IMAGES / f"{name}.png")
        Image.fromarray(mask).save(folder / MASKS / f"{name}_mask.png")
    return folder


def _figure(rng: np.random.Generator, size: int) -> Any:
    """The pixels of a head on a body."""
    ys, xs = np.mgrid[:size, :size]
    height = float(rng.uniform(0.3, 0.6) * size)
    width = height * float(rng.uniform(0.3, 0.45))
    x = float(rng.uniform(width / 2 + 1, size - width / 2 - 1))
    y = float(rng.uniform(height / 2 + 1, size - height / 2 - 1))
    radius = width / 2.6
    head = (xs - x) ** 2 + (ys - (y - height / 2 + radius)) ** 2 <= radius**2
    across = (2 * (xs - x) / width) ** 2
    along = (2 * (ys - (y + radius)) / (height - 2 * radius)) ** 4
    return head | (across + along <= 1)

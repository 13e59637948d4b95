"""The images that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghn_fast.vision import load_images, train_batches

FILES = Path(__file__).parents[2] / "ghn_fast" / "vision" / "samples" / "cifar10"


def test_a_hundred_images_of_each_class() -> None:
    splits = load_images("cifar10-sample")
    assert torch.bincount(splits.test.targets).tolist() == [100] * 10
    assert splits.test.image_size == splits.image_size == 32
    # Class names in the order of their numbers, as in CIFAR-10.
    assert splits.class_names == tuple(sorted(path.stem for path in FILES.glob("*.jpg")))


@pytest.mark.parametrize(("index", "name", "tile"), [(0, "airplane", 0), (9, "truck", 57)])
def test_an_image_is_a_tile_of_its_file(index: int, name: str, tile: int) -> None:
    splits = load_images("cifar10-sample")
    row, column = divmod(tile, 10)
    box = (32 * column, 32 * row, 32 * column + 32, 32 * row + 32)
    with Image.open(FILES / f"{name}.jpg") as image:
        want = np.asarray(image.convert("RGB").crop(box))
    assert splits.test.images is not None
    have = splits.test.images[100 * index + tile].permute(1, 2, 0).numpy()
    assert np.array_equal(have, want)


def test_another_size_is_that_of_pillow() -> None:
    small, full = (load_images("cifar10-sample", image_size=size).test for size in (16, None))
    assert small.images is not None and full.images is not None
    assert small.images.shape == (1000, 3, 16, 16)
    image = Image.fromarray(full.images[321].permute(1, 2, 0).numpy())
    want = torch.from_numpy(np.array(image.resize((16, 16), Image.Resampling.BILINEAR)))
    # Pillow rounds after each of the two axes.
    assert int((small.images[321].permute(1, 2, 0).int() - want.int()).abs().max()) in (0, 1)


def test_training_on_it_is_refused() -> None:
    with pytest.raises(ValueError, match="cifar10-sample has no training images"):
        train_batches(load_images("cifar10-sample"), 8, seed=0)

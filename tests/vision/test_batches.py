from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from ghn_fast.vision import (
    ImageSet,
    ImageSplits,
    eval_batches,
    load_images,
    train_batches,
)
from ghn_fast.vision.augment import augment_batch, crop_boxes, draw_crops, seeded_generator
from tolerances import assert_close


@pytest.fixture(scope="module")
def digits() -> ImageSplits:
    return load_images("digits")


# --- training batches


def tagged_splits(count: int, size: int = 16, augment: str = "crop_flip") -> ImageSplits:
    """Image i is target i: all pixels i + 1, so that a batch shows which images it holds."""
    values = torch.arange(1, count + 1, dtype=torch.uint8)
    images = values.view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()
    part = ImageSet(torch.arange(count), size, images=images)
    return ImageSplits(
        name="tagged",
        num_classes=count,
        class_names=tuple(str(i) for i in range(count)),
        image_size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        train=part,
        val=part,
        test=part,
        augment=augment,
    )


def take(batches: object, count: int) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(batches, count))  # type: ignore[call-overload]


def test_every_epoch_is_a_fresh_permutation() -> None:
    splits = tagged_splits(23)
    batches = take(train_batches(splits, 5, seed=0), 8)
    epochs = [torch.cat([t for _, t in batches[i : i + 4]]).tolist() for i in (0, 4)]
    for epoch in epochs:
        assert len(set(epoch)) == 20
    assert epochs[0] != epochs[1]
    for images, targets in batches:
        # The crop keeps at least one original pixel, whose value tells the image.
        assert_close(images.amax(dim=(1, 2, 3)) * 255, (targets + 1).float())


@pytest.mark.parametrize("start", [1, 4, 5, 13])
def test_training_resumes_exactly(digits: ImageSplits, start: int) -> None:
    splits = tagged_splits(23)
    for data, size in ((splits, 5), (digits, 256)):
        whole = take(train_batches(data, size, seed=9), 16)
        resumed = take(train_batches(data, size, seed=9, start_step=start), 16 - start)
        for expected, got in zip(whole[start:], resumed, strict=True):
            assert torch.equal(expected[0], got[0]) and torch.equal(expected[1], got[1])


def test_large_training_crops_resume_exactly(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for i in range(14):
        folder = tmp_path / ("val" if i < 2 else "train") / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    splits = load_images("imagenet", tmp_path, image_size=72)
    whole = take(train_batches(splits, 2, seed=1), 7)
    for workers in (0, 2):
        resumed = take(train_batches(splits, 2, seed=1, start_step=3, workers=workers), 4)
        for expected, got in zip(whole[3:], resumed, strict=True):
            assert torch.equal(expected[0], got[0]) and torch.equal(expected[1], got[1])
    assert whole[0][0].shape == (2, 3, 72, 72)
    flat = torch.cat([images for images, _ in whole]).flatten(1)
    assert len(torch.unique(flat, dim=0)) == len(flat)


def test_large_training_crops_are_cut_from_the_files(tmp_path: Path) -> None:
    # Smooth images, in which crop and resize do not depend on how edges are treated.
    ramp = np.linspace(0, 255, 90)
    for name, level in (("a", 0), ("b", 255)):
        pixels = np.stack(np.broadcast_arrays(ramp, ramp[:80, None], level), axis=-1)
        for part in ("train", "val"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(9 if part == "train" else 1):
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    splits = load_images("imagenet", tmp_path, image_size=72)
    images, targets = next(train_batches(splits, 16, seed=2))

    order = torch.randperm(16, generator=seeded_generator("order", 2, 0))
    draws, mirrored = draw_crops(16, seeded_generator("augment", 2, 0))
    boxes = crop_boxes(draws, torch.full((16,), 80), torch.full((16,), 90))
    assert 0 < mirrored.sum() < 16
    assert torch.equal(targets, splits.train.targets[order])
    for got, index, box, mirror in zip(images, order, boxes.tolist(), mirrored, strict=True):
        with Image.open(splits.train.paths[index]) as image:
            crop = tvf.to_tensor(tvf.resized_crop(image, *box, [72, 72]))
        crop = tvf.normalize(crop.flip(2) if mirror else crop, splits.mean, splits.std)
        # compared by hand: bytes of two resizings that round differently, up to 3 apart.
        torch.testing.assert_close(got, crop, rtol=0, atol=3 / 255 / 0.22)


def test_seeds_differ(digits: ImageSplits) -> None:
    first, _ = next(train_batches(digits, 16, seed=0))
    second, _ = next(train_batches(digits, 16, seed=1))
    assert not torch.equal(first, second)


def test_training_does_not_touch_the_global_generator(digits: ImageSplits) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    take(train_batches(digits, 16, seed=0), 2)
    assert torch.equal(torch.rand(3), expected)


def test_training_batch_is_augmented_then_normalised(digits: ImageSplits) -> None:
    images, targets = next(train_batches(digits, 16, seed=4))
    order = torch.randperm(len(digits.train), generator=seeded_generator("order", 4, 0))[:16]
    pixels = augment_batch(digits.train.images[order], "shift", seeded_generator("augment", 4, 0))
    expected = (pixels.double() / 255 - digits.mean[0]) / digits.std[0]
    assert_close(images, expected)
    assert torch.equal(targets, digits.train.targets[order])
    assert images.dtype == torch.float32 and images.is_contiguous()
    assert targets.dtype == torch.int64


def test_training_arguments_out_of_range(digits: ImageSplits) -> None:
    with pytest.raises(ValueError, match=r"batch_size 5000 exceeds.*digits"):
        train_batches(digits, 5000, seed=0)
    with pytest.raises(ValueError, match="batch_size must be 1"):
        train_batches(digits, 0, seed=0)
    with pytest.raises(ValueError, match="start_step"):
        train_batches(digits, 4, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="workers"):
        train_batches(digits, 4, seed=0, workers=-1)


# --- evaluation batches


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (10, 5, [5, 5]),
        (11, 5, [5, 6]),
        (12, 5, [5, 5, 2]),
        (1, 5, [1]),
        (3, 1, [1, 1, 1]),
        (6, 5, [6]),
    ],
)
def test_evaluation_sees_every_image_once(count: int, size: int, sizes: list[int]) -> None:
    splits = tagged_splits(count)
    batches = list(eval_batches(splits.test, splits, size))
    assert [len(targets) for _, targets in batches] == sizes
    targets = torch.cat([t for _, t in batches])
    assert sorted(targets.tolist()) == list(range(count))
    images = torch.cat([x for x, _ in batches])
    assert_close(images[:, 0, 0, 0] * 255, (targets + 1).float())


def test_evaluation_order_is_shuffled_and_fixed() -> None:
    splits = tagged_splits(40)
    orders = [
        torch.cat([t for _, t in eval_batches(splits.test, splits, 8, shuffle_seed=s)]).tolist()
        for s in (0, 0, 1, None)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != orders[3] == list(range(40))


def test_evaluation_of_an_empty_set() -> None:
    splits = tagged_splits(4)
    empty = splits.test.subset(torch.tensor([], dtype=torch.int64))
    assert list(eval_batches(empty, splits, 2)) == []

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as tvf

from ghn_fast.vision.augment import (
    augment_batch,
    crop_boxes,
    draw_crops,
    resample_boxes,
    seeded_generator,
    shift_and_flip,
)
from tolerances import assert_close


def random_images(count: int, size: int = 32) -> torch.Tensor:
    # No zeros, so that black borders can be told from images.
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def generator() -> torch.Generator:
    return seeded_generator("test", 1)


def shifts_of(before: torch.Tensor, after: torch.Tensor, padding: int) -> set[tuple[int, int, int]]:
    """All (top, left, mirrored) whose padded crop of `before` is `after`."""
    padded = torch.nn.functional.pad(before, (padding,) * 4)
    height, width = before.shape[-2:]
    found = set()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            found |= {(top, left, 0)} if torch.equal(crop, after) else set()
            found |= {(top, left, 1)} if torch.equal(crop.flip(2), after) else set()
    return found


@pytest.mark.parametrize(
    ("policy", "padding", "flips"), [("shift", 3, {0}), ("crop_flip", 4, {0, 1})]
)
def test_shifted_crops(policy: str, padding: int, flips: set[int]) -> None:
    images = random_images(96)
    result = augment_batch(images, policy, generator())
    assert result.dtype == torch.uint8 and result.shape == images.shape
    moves = [shifts_of(a, b, padding) for a, b in zip(images, result, strict=True)]
    assert all(len(move) == 1 for move in moves)
    tops, lefts, mirrored = (set(column) for column in zip(*(m.pop() for m in moves), strict=True))
    assert tops == lefts == set(range(2 * padding + 1))
    assert mirrored == flips


def test_augmentation_depends_on_the_generator_alone() -> None:
    images = random_images(8)
    for policy in ("shift", "crop_flip", "resized_crop_flip"):
        first, again, other = (
            augment_batch(images, policy, seeded_generator("test", seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_odd_sizes_and_few_channels() -> None:
    images = random_images(5, 9)[:, :1, :, :7]
    result = shift_and_flip(images, 2, flip=False, generator=generator())
    assert all(shifts_of(a, b, 2) for a, b in zip(images, result, strict=True))


def test_crop_boxes_lie_inside_with_the_right_area_and_ratio() -> None:
    draws, mirrored = draw_crops(4000, generator())
    sizes = torch.tensor([[224, 224], [300, 500], [64, 48], [480, 360]]).repeat(1000, 1)
    top, left, height, width = crop_boxes(draws, sizes[:, 0], sizes[:, 1]).unbind(dim=1)
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= sizes[:, 0]).all() and (left + width <= sizes[:, 1]).all()
    area = height * width / sizes.prod(dim=1)
    ratio = width / height
    # Rounding to whole pixels moves both a little.
    assert area.min() > 0.07 and area.max() <= 1 and area.max() > 0.95
    assert ratio.min() > 0.75 * 0.9 and ratio.max() < 4 / 3 * 1.1
    assert 0.45 < mirrored.float().mean() < 0.55
    # Area is uniform apart from the attempts that do not fit, which are large ones.
    assert 0.4 < area.mean() < 0.54


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, (0, 43, 10, 13)), (100, 12, (42, 0, 16, 12)), (1, 1, (0, 0, 1, 1))],
)
def test_crop_falls_back_to_the_centre(height: int, width: int, box: tuple[int, ...]) -> None:
    # The whole area of an elongated image has no crop with an aspect ratio of 3/4 to 4/3.
    draws = torch.full((1, 10, 4), 0.999)
    assert crop_boxes(draws, torch.tensor([height]), torch.tensor([width]))[0].tolist() == list(box)


def test_resampling_a_box_is_crop_and_resize() -> None:
    images = random_images(4, 24)
    boxes = torch.tensor([[0, 0, 24, 24], [3, 5, 12, 10], [10, 0, 9, 20], [8, 8, 6, 6]])
    mirrored = torch.tensor([False, False, True, True])
    result = resample_boxes(images, boxes, mirrored)
    assert_close(result[0], images[0].float())
    for image, box, mirror, got in zip(images, boxes.tolist(), mirrored, result, strict=True):
        expected = tvf.resized_crop(image.float(), *box, [24, 24], antialias=False)
        expected = expected.flip(2) if mirror else expected
        # At its rim a crop alone repeats its last pixels, where the box still sees its neighbours.
        margin = -(-24 // (2 * min(box[2:])))
        inner = slice(margin, 24 - margin)
        assert_close(got[:, inner, inner], expected[:, inner, inner])


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match=r"shift, crop_flip.*'mixup'"):
        augment_batch(random_images(1), "mixup", generator())


def test_seeded_generator_separates_keys() -> None:
    keys = [("a", 1, 23), ("a", 12, 3), ("b", 1, 23), ("a", -1, 23), ("a", 1, 24)]
    draws = {torch.rand(1, generator=seeded_generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)

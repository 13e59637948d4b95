from __future__ import annotations

import numpy as np
import pytest
import torch

from ghn_fast.vision import ImageSplits, eval_batches, load_images
from image_trees import bilinear, counts, keys
from tolerances import assert_close


@pytest.fixture(scope="module")
def digits() -> ImageSplits:
    return load_images("digits")


def test_digits_sizes_and_stratification(digits: ImageSplits) -> None:
    from sklearn.datasets import load_digits

    totals = np.bincount(load_digits().target)
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    for part, fraction in ((digits.test, 0.2), (digits.val, 0.1), (digits.train, 0.7)):
        # compared by hand: whole numbers of images, within one of the part.
        np.testing.assert_allclose(counts(part), fraction * totals, atol=1)
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    assert (digits.image_size, digits.augment, digits.name) == (32, "shift", "digits")


def test_digits_pixels_and_targets_are_the_source_ones(digits: ImageSplits) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    stored = torch.cat([part.images for part in (digits.train, digits.val, digits.test)])
    targets = torch.cat([part.targets for part in (digits.train, digits.val, digits.test)])
    assert stored.shape == (1797, 3, 32, 32)
    assert (stored[:, :1] == stored).all()
    # Bilinear enlargement by 4 keeps the mean of every image: match the two sets by it and class.
    means = stored[:, 0].double().mean(dim=(1, 2)).numpy() * 16 / 255
    ours = np.lexsort((means, targets))
    theirs = np.lexsort((source.images.mean(axis=(1, 2)), source.target))
    np.testing.assert_array_equal(targets[ours], source.target[theirs])
    # compared by hand: stored pixels are rounded to bytes.
    np.testing.assert_allclose(means[ours], source.images.mean(axis=(1, 2))[theirs], atol=0.02)
    for image, label in zip(source.images[:40], source.target[:40], strict=True):
        # Exact halves may round either way.
        distance = np.abs(stored[:, 0].numpy() - bilinear(image * 255 / 16, 32)).max(axis=(1, 2))
        nearest = distance.argmin()
        assert distance[nearest] <= 0.501 and targets[nearest] == label


def test_digits_held_out_images_are_the_same_for_everyone(digits: ImageSplits) -> None:
    other = load_images("digits", seed=123)
    for name in ("train", "val", "test"):
        assert keys(digits.split(name)) == keys(other.split(name))
    larger = load_images("digits", val_fraction=0.3)
    assert keys(larger.test) == keys(digits.test)
    assert set(keys(larger.val)) > set(keys(digits.val))
    assert (larger.mean, larger.std) == (digits.mean, digits.std)


def test_digits_parts_are_disjoint(digits: ImageSplits) -> None:
    train, val, test = (set(keys(part)) for part in (digits.train, digits.val, digits.test))
    assert not (train & val or train & test or val & test)


def test_digits_are_standardised(digits: ImageSplits) -> None:
    known = torch.cat([digits.train.images, digits.val.images]).double() / 255
    assert_close(digits.mean, [known.mean().item()] * 3)
    assert_close(digits.std, [known.std(correction=0).item()] * 3)
    batch = torch.cat([images for images, _ in eval_batches(digits.train, digits, 256)])
    # compared by hand: mean and deviation are of the validation images, too.
    assert abs(batch.mean().item()) < 0.02
    assert abs(batch.std().item() - 1) < 0.02


def test_digits_at_another_size() -> None:
    splits = load_images("digits", image_size=24)
    images, _ = next(eval_batches(splits.test, splits, 8))
    assert images.shape == (8, 3, 24, 24)


def test_unknown_split_name(digits: ImageSplits) -> None:
    assert digits.split("val") is digits.val
    with pytest.raises(ValueError, match="train, val, test"):
        digits.split("name")

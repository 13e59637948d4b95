from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from ghn_fast.vision import eval_batches, load_images, train_batches
from image_trees import IMAGENET_MEAN, IMAGENET_STD, bilinear
from tolerances import assert_close


def write_cifar10(
    root: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int = 21
) -> dict[str, np.ndarray]:
    """CIFAR-10's python files with random pixels, their checksums put into torchvision's table."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    written: dict[str, np.ndarray] = {}
    checksums = {}

    def dump(name: str, content: dict[str, object]) -> None:
        data = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(data)
        checksums[name] = hashlib.md5(data).hexdigest()

    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        # Rows are 1,024 red, 1,024 green and 1,024 blue values, row by row.
        pixels = generator.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = generator.integers(0, 10, per_batch).tolist()
        dump(name, {"data": pixels, "labels": labels, "batch_label": name, "filenames": []})
        written[name], written[f"{name} labels"] = pixels, np.array(labels)
    names = [f"class {i}" for i in range(10)]
    dump("batches.meta", {"label_names": names, "num_cases_per_batch": per_batch})

    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", ""] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", ""]])
    for entry in (*CIFAR10.train_list, *CIFAR10.test_list):
        entry[1] = checksums[entry[0]]
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums["batches.meta"]})
    return written


def test_cifar10_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar10(tmp_path, monkeypatch)
    splits = load_images("cifar10", tmp_path, seed=5)

    names = [f"data_batch_{i}" for i in range(1, 6)]
    pixels = np.concatenate([written[name] for name in names]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([written[f"{name} labels"] for name in names])
    # 105 // 10 images at the end of the training files are held out.
    np.testing.assert_array_equal(splits.train.images, pixels[:95])
    np.testing.assert_array_equal(splits.train.targets, labels[:95])
    np.testing.assert_array_equal(splits.val.images, pixels[95:])
    np.testing.assert_array_equal(splits.val.targets, labels[95:])
    np.testing.assert_array_equal(splits.test.images, written["test_batch"].reshape(-1, 3, 32, 32))
    assert splits.class_names == tuple(f"class {i}" for i in range(10))

    mean = np.array([0.49139968, 0.48215827, 0.44653124]).reshape(3, 1, 1)
    std = np.array([0.24703233, 0.24348505, 0.26158768]).reshape(3, 1, 1)
    images, targets = next(eval_batches(splits.val, splits, 10, shuffle_seed=None))
    assert_close(images, (pixels[95:] / 255 - mean) / std)
    np.testing.assert_array_equal(targets, labels[95:])


def test_cifar10_enlarged_is_normalised_for_imagenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar10(tmp_path, monkeypatch)
    splits = load_images("cifar10", tmp_path, image_size=64)
    images, _ = next(eval_batches(splits.test, splits, 2, shuffle_seed=None))
    source = written["test_batch"][0].reshape(3, 32, 32) / 255
    expected = np.stack([bilinear(channel, 64) for channel in source])
    expected = (expected - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(
        IMAGENET_STD, (3, 1, 1)
    )
    assert_close(images[0], expected)
    assert next(train_batches(splits, 4, seed=0))[0].shape == (4, 3, 64, 64)


def test_cifar10_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*download"):
        load_images("cifar10", tmp_path)
    write_cifar10(tmp_path, monkeypatch)
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_2", "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=f"{tmp_path}.*damaged"):
        load_images("cifar10", tmp_path)

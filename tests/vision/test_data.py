from __future__ import annotations

import hashlib
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghn_fast.vision import (
    DATASETS,
    ImageSet,
    ImageSplits,
    eval_batches,
    folders,
    load_images,
    train_batches,
)
from ghn_fast.vision.images import decode_files
from tolerances import assert_close

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def write_tree(
    path: Path, counts: dict[str, int], size: tuple[int, int] = (16, 16), start: int = 0
) -> dict[str, np.ndarray]:
    """PNG files path/<class>/<i>.png of unique random pixels; returns (H, W, 3) by file name."""
    pixels = {}
    generator = np.random.default_rng([start, *(len(name) for name in counts)])
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for i in range(start, start + count):
            image = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            file = path / name / f"{i:03d}.png"
            Image.fromarray(image).save(file)
            pixels[str(file)] = image
    return pixels


def keys(images: ImageSet) -> list[bytes]:
    """One key per image: its pixels."""
    return [image.numpy().tobytes() for image in images.pixels(torch.arange(len(images)))]


def assert_partition(splits: ImageSplits, expected: set[bytes]) -> None:
    parts = [keys(part) for part in (splits.train, splits.val, splits.test)]
    everything = [key for part in parts for key in part]
    assert len(everything) == len(set(everything)) == len(expected)
    assert set(everything) == expected


def chw(images: dict[str, np.ndarray]) -> set[bytes]:
    return {np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes() for image in images.values()}


def counts(images: ImageSet) -> list[int]:
    return torch.bincount(images.targets).tolist()


# --- digits


@pytest.fixture(scope="module")
def digits() -> ImageSplits:
    return load_images("digits")


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement with pixel centres at half-integers, one pixel at a time."""
    side = len(image)
    result = np.empty((size, size))
    for y, x in itertools.product(range(size), repeat=2):
        v = min(max((y + 0.5) * side / size - 0.5, 0), side - 1)
        u = min(max((x + 0.5) * side / size - 0.5, 0), side - 1)
        top, left = int(v), int(u)
        low, right = min(top + 1, side - 1), min(left + 1, side - 1)
        b, a = v - top, u - left
        result[y, x] = (1 - b) * ((1 - a) * image[top, left] + a * image[top, right]) + b * (
            (1 - a) * image[low, left] + a * image[low, right]
        )
    return result


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


# --- CIFAR-10


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


# --- ImageNet


def test_imagenet_layout(tmp_path: Path) -> None:
    train = write_tree(tmp_path / "train", {"n01": 10, "n02": 20}, size=(40, 30))
    test = write_tree(tmp_path / "val", {"n01": 2, "n02": 2}, size=(40, 30), start=100)
    splits = load_images("imagenet", tmp_path, seed=1)
    assert splits.image_size == 224
    assert (splits.mean, splits.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert splits.train.images is None and splits.test.images is None
    assert counts(splits.val) == [1, 2] and counts(splits.train) == [9, 18]
    assert sorted(splits.train.paths + splits.val.paths) == sorted(train)
    assert list(splits.test.paths) == sorted(test)
    assert splits.augment == "resized_crop_flip"

    again = load_images("imagenet", tmp_path, seed=1)
    assert again.val.paths == splits.val.paths
    others = {load_images("imagenet", tmp_path, seed=s).val.paths for s in range(2, 7)}
    assert any(paths != splits.val.paths for paths in others)


def test_large_images_are_evaluated_on_their_centre(tmp_path: Path) -> None:
    from torchvision import transforms

    train = write_tree(tmp_path / "train", {"a": 3, "b": 3}, size=(300, 270))
    write_tree(tmp_path / "val", {"a": 1, "b": 1}, size=(20, 20))
    splits = load_images("imagenet", tmp_path)
    published = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images, _ = next(eval_batches(splits.train, splits, 4, shuffle_seed=None))
    for image, path in zip(images, splits.train.paths, strict=True):
        assert_close(image, published(Image.fromarray(train[path])))


# --- any folder


def test_folder_with_train_only(tmp_path: Path) -> None:
    pixels = write_tree(tmp_path / "train", {"cat": 20, "dog": 30})
    splits = load_images(f"folder:{tmp_path}", val_fraction=0.1)
    assert_partition(splits, chw(pixels))
    assert [counts(part) for part in (splits.train, splits.val, splits.test)] == [
        [14, 21],
        [2, 3],
        [4, 6],
    ]
    assert splits.class_names == ("cat", "dog")
    assert splits.name == f"folder:{tmp_path}"
    assert splits.image_size == 16
    assert splits.train.images is not None


def test_folder_targets_follow_the_files(tmp_path: Path) -> None:
    pixels = write_tree(tmp_path, {"cat": 8, "dog": 9, "eel": 7})
    splits = load_images(f"folder:{tmp_path}")
    label = {
        np.ascontiguousarray(image.transpose(2, 0, 1)).tobytes(): Path(path).parent.name
        for path, image in pixels.items()
    }
    for part in (splits.train, splits.val, splits.test):
        names = [splits.class_names[target] for target in part.targets.tolist()]
        assert names == [label[key] for key in keys(part)]


def test_files_are_listed_in_order(tmp_path: Path) -> None:
    for i in range(0, 190, 17):
        for folder in ("b", "a", "b/nested"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{i * 7 % 190:03d}.JPG").touch()
            (tmp_path / folder / f"{i}.txt").touch()
    tree = folders.scan_classes(tmp_path)
    files = [str(path) for path in tmp_path.rglob("*.JPG")]
    assert list(tree.paths) == sorted(files) and tree.class_names == ("a", "b")
    assert tree.targets == (0,) * 12 + (1,) * 24


def test_folder_uses_the_parts_that_are_there(tmp_path: Path) -> None:
    train = write_tree(tmp_path / "train", {"a": 10, "b": 10})
    test = write_tree(tmp_path / "test", {"a": 3, "b": 4}, start=50)
    splits = load_images(f"folder:{tmp_path}", val_fraction=0.2)
    assert set(keys(splits.test)) == chw(test)
    assert set(keys(splits.train)) | set(keys(splits.val)) == chw(train)
    assert counts(splits.val) == [2, 2] and counts(splits.train) == [8, 8]

    val = write_tree(tmp_path / "val", {"a": 1, "b": 2}, start=80)
    splits = load_images(f"folder:{tmp_path}")
    assert set(keys(splits.val)) == chw(val)
    assert counts(splits.train) == [10, 10]


def test_folder_without_train_is_the_class_tree(tmp_path: Path) -> None:
    pixels = write_tree(tmp_path / "pets", {"a": 10, "b": 10})
    (tmp_path / "pets" / ".cache").mkdir()
    splits = load_images("folder:pets", tmp_path)
    assert_partition(splits, chw(pixels))
    assert splits.class_names == ("a", "b")


def test_folder_seed_moves_the_held_out_images(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    first, again, other = (load_images(f"folder:{tmp_path}", seed=seed) for seed in (0, 0, 1))
    assert keys(first.val) == keys(again.val) and keys(first.test) == keys(again.test)
    assert keys(first.val) != keys(other.val) and keys(first.test) != keys(other.test)


def test_small_folder_is_normalised_by_its_training_images(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 12, "b": 12})
    splits = load_images(f"folder:{tmp_path}")
    known = splits.train.images.double() / 255
    assert_close(splits.mean, known.mean(dim=(0, 2, 3)))
    assert_close(splits.std, known.std(dim=(0, 2, 3), correction=0))


def test_tree_too_large_for_memory_gives_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, {"a": 12, "b": 12})
    near = load_images(f"folder:{tmp_path}")
    monkeypatch.setattr(folders, "MEMORY_LIMIT", 24 * 3 * 16 * 16 - 1)
    far = load_images(f"folder:{tmp_path}")
    assert far.train.images is None and near.train.images is not None
    assert (far.mean, far.std) == (near.mean, near.std)
    for workers in (0, 2):
        for expected, got in zip(
            eval_batches(near.train, near, 5),
            eval_batches(far.train, far, 5, workers=workers),
            strict=True,
        ):
            assert_close(got[0], expected[0])
            assert_close(got[1], expected[1])
        first = itertools.islice(train_batches(near, 4, seed=3), 10)
        second = itertools.islice(train_batches(far, 4, seed=3, workers=workers), 10)
        for expected, got in zip(first, second, strict=True):
            assert_close(got[0], expected[0])
            assert_close(got[1], expected[1])


def test_folder_image_size(tmp_path: Path) -> None:
    write_tree(tmp_path / "mixed" / "a", {"x": 4, "y": 4}, size=(20, 16))
    splits = load_images(f"folder:{tmp_path}/mixed/a")
    assert splits.image_size == 224 and splits.augment == "resized_crop_flip"
    assert (splits.mean, splits.std) == (IMAGENET_MEAN, IMAGENET_STD)
    splits = load_images(f"folder:{tmp_path}/mixed/a", image_size=16)
    assert splits.train.images.shape[1:] == (3, 16, 16) and splits.augment == "crop_flip"


def test_small_images_are_cropped_at_the_centre(tmp_path: Path) -> None:
    pixels = write_tree(tmp_path, {"a": 4, "b": 4}, size=(20, 16))
    splits = load_images(f"folder:{tmp_path}", image_size=16)
    expected = chw({path: image[:, 2:18] for path, image in pixels.items()})
    assert_partition(splits, expected)


# --- errors


def test_unknown_name_lists_the_valid_ones() -> None:
    for name in ("mnist", "folder:", "CIFAR10 "):
        with pytest.raises(ValueError) as caught:
            load_images(name)
        assert all(valid in str(caught.value) for valid in DATASETS)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_val_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="val_fraction"):
        load_images("digits", val_fraction=fraction)


def test_other_arguments_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size"):
        load_images("digits", image_size=0)
    with pytest.raises(ValueError, match="download"):
        load_images("imagenet", tmp_path, download=True)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "nowhere")):
        load_images(f"folder:{tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "train")):
        load_images("imagenet", tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path} has no class folders"):
        load_images(f"folder:{tmp_path}")
    write_tree(tmp_path / "test", {"a": 2})
    with pytest.raises(FileNotFoundError, match="no train"):
        load_images(f"folder:{tmp_path}")


def test_empty_class_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5})
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "readme.txt").write_text("no image")
    with pytest.raises(ValueError, match=str(tmp_path / "train" / "b")):
        load_images(f"folder:{tmp_path}")


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 5, "b": 5})
    write_tree(tmp_path / "test", {"a": 5, "c": 5})
    with pytest.raises(ValueError, match=r"test differ.*lacks b.*unknown c"):
        load_images(f"folder:{tmp_path}")


def test_class_too_small_to_split_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 5, "rare": 2})
    with pytest.raises(ValueError, match=f"{tmp_path}.*rare has 2 images"):
        load_images(f"folder:{tmp_path}")


@pytest.mark.parametrize("size", [None, 16])
def test_damaged_image_is_named(tmp_path: Path, size: int | None) -> None:
    write_tree(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "a" / "000.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a/000\.png"):
        load_images(f"folder:{tmp_path}", image_size=size)


def test_image_set_checks_its_parts() -> None:
    targets = torch.zeros(2, dtype=torch.int64)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="exactly one"):
        ImageSet(targets, 8)
    with pytest.raises(ValueError, match="uint8"):
        ImageSet(targets, 8, images=images.float())
    with pytest.raises(ValueError, match="int64"):
        ImageSet(targets.float(), 8, images=images)
    with pytest.raises(ValueError, match="1 paths for 2"):
        ImageSet(targets, 8, paths=("x",))


def test_unknown_split_name(digits: ImageSplits) -> None:
    assert digits.split("val") is digits.val
    with pytest.raises(ValueError, match="train, val, test"):
        digits.split("name")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_levels_of_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / f"8.{suffix}")
    Image.fromarray(grey.astype(np.uint16) * 256 + 37).save(tmp_path / f"16.{suffix}")
    eight, sixteen = decode_files([str(tmp_path / f"{n}.{suffix}") for n in (8, 16)], 16)
    assert torch.equal(eight, sixteen)


@pytest.mark.parametrize("pixels", [np.float32(0.5), np.int32(70_000), np.int32(-1)])
def test_pixels_of_unknown_range_are_named(tmp_path: Path, pixels: np.generic) -> None:
    Image.fromarray(np.full((16, 16), pixels)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"cannot decode the image .*a.tif: its (pixels|grey)"):
        decode_files([str(tmp_path / "a.tif")], 16)


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_links_that_lead_upwards_are_named(tmp_path: Path, target: str) -> None:
    write_tree(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "inner").mkdir()
    (tmp_path / "a" / "inner" / "up").symlink_to(target)
    with pytest.raises(ValueError, match=r"inner/up is a link to a folder that it lies in"):
        folders.scan_classes(tmp_path)


def test_a_folder_that_is_linked_twice_counts_once(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"a": 2, "b": 2})
    write_tree(tmp_path, {"more": 3})
    for link in ("one", "two"):
        (tmp_path / "tree" / "a" / link).symlink_to(tmp_path / "more")
    assert folders.scan_classes(tmp_path / "tree").targets == (0,) * 5 + (1,) * 2


def test_pipes_and_broken_links_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 2})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    for read in (
        lambda: folders.scan_classes(tmp_path),
        lambda: decode_files([str(tmp_path / "a" / "pipe.png")], 16),
    ):
        with pytest.raises(ValueError, match=r"pipe.png is no regular file"):
            read()
    os.unlink(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=r"gone.png is no regular file"):
        folders.scan_classes(tmp_path)

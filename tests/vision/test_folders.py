from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ghn_fast.vision import eval_batches, folders, load_images, train_batches
from ghn_fast.vision.images import decode_files
from image_trees import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    assert_partition,
    chw,
    counts,
    keys,
    write_tree,
)
from tolerances import assert_close


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


@pytest.mark.parametrize("size", [None, 16])
def test_an_image_that_says_it_is_huge_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    write_tree(tmp_path, {"a": 8})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"cannot decode the image .*a/.*png: .*exceeds"):
        load_images(f"folder:{tmp_path}", image_size=size)


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

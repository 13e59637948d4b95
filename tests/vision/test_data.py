from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ghn_fast.vision import DATASETS, ImageSet, load_images
from ghn_fast.vision.images import decode_files


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


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_levels_of_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / f"8.{suffix}")
    Image.fromarray(grey.astype(np.uint16) * 256 + 37).save(tmp_path / f"16.{suffix}")
    eight, sixteen = decode_files([str(tmp_path / f"{n}.{suffix}") for n in (8, 16)], 16)
    assert torch.equal(eight, sixteen)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_line_is_no_image(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (1000, 1)).save(tmp_path / "short.png")
    assert decode_files([str(tmp_path / "short.png")], 16).shape == (1, 3, 16, 16)
    Image.new(mode, (1, 1001)).save(tmp_path / "line.png")
    with pytest.raises(ValueError, match=r"line\.png: it has 1×1001 pixels"):
        decode_files([str(tmp_path / "line.png")], 16)


@pytest.mark.parametrize("pixels", [np.float32(0.5), np.int32(70_000), np.int32(200)])
def test_pixels_of_unknown_range_are_named(tmp_path: Path, pixels: np.generic) -> None:
    Image.fromarray(np.full((16, 16), pixels)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"cannot decode the image .*a.tif: its (pixels|grey)"):
        decode_files([str(tmp_path / "a.tif")], 16)

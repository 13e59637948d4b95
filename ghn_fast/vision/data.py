"""Image data sets by name, with held-out validation images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional as F

from ghn_fast.utils.optional import require
from ghn_fast.vision.augment import seeded_generator
from ghn_fast.vision.folders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TEST_FRACTION,
    channel_statistics,
    load_folder,
    load_imagenet,
    stratified_split,
)
from ghn_fast.vision.images import ImageSet, ImageSplits
from ghn_fast.vision.sample import CLASS_NAMES, sample_images

DATASETS = ("digits", "cifar10", "cifar10-sample", "imagenet", "folder:PATH")
"""Names of the image data sets, see :func:`load_images`."""

CIFAR10_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR10_STD = (0.24703233, 0.24348505, 0.26158768)
SMALL_SIZE = 32


def load_images(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> ImageSplits:
    """Load an image data set with disjoint training, validation and test images.

    ``digits`` are the 1,797 handwritten 8×8 digits that come with scikit-learn, enlarged bilinearly
    to 3 × 32 × 32. 20 % are test images, the same for everyone whatever the arguments;
    ``val_fraction`` of all images, whatever the seed, are validation images.

    ``cifar10`` is CIFAR-10 in torchvision's layout, root/cifar-10-batches-py. The last
    ``val_fraction`` of the training images are validation images, as in the published code.

    ``cifar10-sample`` are 1,000 test images of CIFAR-10, stored as JPEG, that come with the
    package; it has no others, so that networks can be evaluated on it, but not trained.

    ``imagenet`` is read from root/train/<class>/* and root/val/<class>/*, whose images are the test
    images. They are decoded when they are used.

    ``folder:PATH`` is any tree PATH/train/<class>/* with optional PATH/val and PATH/test or,
    without a folder ``train``, PATH/<class>/*. Missing validation images are held out of the
    training images by class, ``val_fraction`` of them, and missing test images likewise, 20 %; both
    depend on ``seed``. Up to 256 MiB are kept in memory, more is decoded when it is used.

    Digits and folders of images of up to 64 pixels are normalised by mean and standard deviation
    of their training images (digits: of all images but the test images), CIFAR-10 and its sample by
    the published statistics (CIFAR-10 at other sizes than 32 by ImageNet's, as for networks that
    were trained there), all others by ImageNet's.

    Args:
        name: One of :data:`DATASETS`. PATH is relative to ``root`` if that is given.
        root: Folder of the data; by default ``data`` for CIFAR-10 and ``data/imagenet`` for
            ImageNet.
        image_size: Side of the images in pixels, at least 8. By default 32 for digits, CIFAR-10,
            and its sample, 224 for ImageNet; for a folder the side that its images share if they
            are squares of at most 224, else 224.
        val_fraction: Part of the images that is held out for validation.
        seed: Seed of what is held out of a folder or of ImageNet.
        download: Whether torchvision downloads CIFAR-10 to ``root``.

    Raises:
        ValueError: If the name is unknown or an argument out of range, an image cannot be decoded,
            a class is empty, or classes differ between the parts; the message names the path.
        FileNotFoundError: If a folder is missing; the message names it.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    if image_size is not None and image_size < 8:
        raise ValueError(f"image_size must be 8 or more pixels, got {image_size}")
    is_folder = name.startswith("folder:")
    if download and (is_folder or name == "imagenet"):
        raise ValueError(f"download is possible for cifar10 only, not for {name}")

    if name == "digits":
        return _load_digits(SMALL_SIZE if image_size is None else image_size, val_fraction)
    if name == "cifar10":
        size = SMALL_SIZE if image_size is None else image_size
        return _load_cifar10(_folder(root or "data"), size, val_fraction, download)
    if name == "cifar10-sample":
        return _load_sample(SMALL_SIZE if image_size is None else image_size)
    if name == "imagenet":
        folder = _folder(root or Path("data", "imagenet"))
        return load_imagenet(name, folder, image_size, val_fraction, seed)
    if is_folder and name != "folder:":
        path = _folder(name.removeprefix("folder:"))
        path = path if root is None else _folder(root) / path
        return load_folder(name, path, image_size, val_fraction, seed)
    raise ValueError(f"unknown image data set {name!r}; valid names are {', '.join(DATASETS)}")


def _folder(path: str | Path) -> Path:
    return Path(path).expanduser()


def _load_digits(image_size: int, val_fraction: float) -> ImageSplits:
    source = require("sklearn.datasets", "vision", "handwritten digits").load_digits()
    grey = torch.from_numpy(source.images).float()[:, None] * (255 / 16)  # stored as 0..16
    grey = F.interpolate(grey, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images = grey.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    everything = ImageSet(torch.from_numpy(source.target).long(), image_size, images=images)

    generator = seeded_generator("digits")
    test, val, train = stratified_split(
        everything.targets, (TEST_FRACTION, val_fraction), generator
    )
    mean, std = channel_statistics(everything.subset(torch.cat([train, val])))
    return ImageSplits(
        name="digits",
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
        image_size=image_size,
        mean=mean,
        std=std,
        train=everything.subset(train),
        val=everything.subset(val),
        test=everything.subset(test),
        augment="shift",
    )


def _load_sample(image_size: int) -> ImageSplits:
    images = sample_images(image_size)
    nothing = images.subset(torch.arange(0))
    return ImageSplits(
        name="cifar10-sample",
        num_classes=len(CLASS_NAMES),
        class_names=CLASS_NAMES,
        image_size=image_size,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        train=nothing,
        val=nothing,
        test=images,
        augment="crop_flip",
    )


def _load_cifar10(root: Path, image_size: int, val_fraction: float, download: bool) -> ImageSplits:
    CIFAR10 = require("torchvision.datasets", "vision", "files of CIFAR-10").CIFAR10

    folder = root / CIFAR10.base_folder
    if not download and not folder.is_dir():
        raise FileNotFoundError(
            f"CIFAR-10 not found: {folder} is missing; download=True fetches it, and "
            "folder:PATH reads CIFAR-10 stored as image files"
        )
    try:
        source = CIFAR10(str(root), train=True, download=download)
        test_source = CIFAR10(str(root), train=False)
    except RuntimeError as error:
        raise ValueError(f"CIFAR-10 in {folder} is incomplete or damaged ({error})") from error
    pool, test = (
        ImageSet(
            torch.tensor(part.targets, dtype=torch.int64),
            SMALL_SIZE,
            images=torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
        )
        for part in (source, test_source)
    )
    # The small addend keeps the product from falling below an integer by rounding.
    held_out = int(len(pool) * val_fraction + 1e-6)
    if not 0 < held_out < len(pool):
        raise ValueError(f"val_fraction {val_fraction} holds out {held_out} of {len(pool)} images")
    train, val = torch.arange(len(pool)).split([len(pool) - held_out, held_out])
    own_size = image_size == SMALL_SIZE
    return ImageSplits(
        name="cifar10",
        num_classes=10,
        class_names=tuple(source.classes),
        image_size=image_size,
        mean=CIFAR10_MEAN if own_size else IMAGENET_MEAN,
        std=CIFAR10_STD if own_size else IMAGENET_STD,
        train=pool.subset(train),
        val=pool.subset(val),
        test=test,
        augment="crop_flip",
    )

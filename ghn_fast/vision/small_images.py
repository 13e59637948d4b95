"""Stems of networks that were made for photographs, changed for small images."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ghn_fast.vision.images import SMALL_IMAGE
from ghn_fast.vision.stem_trial import (
    encodes_positions,
    first_convolution,
    fit_by_trial,
    fit_first,
)

M = TypeVar("M", bound=nn.Module)


def fit_to_images(model: M, image_size: int) -> M:
    """Change the stem of a network that was made for 224 pixels so that it suits small images.

    Networks for photographs shrink an image to a quarter before their first block, which leaves
    nothing of one of 32 pixels. The published evaluation (arXiv 2110.13100, section 5) changes
    stems of torchvision as follows, and so does this function, for timm's networks of the same
    layout, too:

    - ResNet and DenseNet: the first convolution becomes 3×3 with stride 1 (the middle of its
      kernel stays), and the first pooling goes;
    - MobileNetV2 and V3: the convolutions of the first five blocks have stride 1;
    - VGG: the poolings among the first ten layers go, of which there are two, or one where two
      convolutions with BatchNorm come before each;
    - AlexNet, ShuffleNetV2, GoogLeNet: the first convolution has stride 1, the pooling after it
      goes;
    - all others (MNASNet, ConvNeXt, EfficientNet, RegNet, ...), and networks that have the name of
      such a family but another layout: the first convolution has stride 1, and so have those beside
      it (RepVGG). If the network then takes no such images, its first max pooling goes, too
      (Inception v3); if that does not serve either, it keeps the stem that it has. So a network
      with positional encodings or windows that was built for the size stays as it is, as does one
      that says so (an attribute ``img_size`` or ``image_size``).

    Beside that the network gets the attribute ``input_shape``, from which a hypernetwork knows what
    to capture.

    Args:
        model: The network; it is changed in place.
        image_size: Height and width of the images in pixels. From 64 on the stem stays.

    Returns:
        ``model``.

    Raises:
        ValueError: If ``image_size`` is below 8, the network takes larger images and none of this
            size, because of positional encodings or windows, for example (it has to be built for
            this one), no convolution reads images of three channels, or a kernel to be cut is
            computed from other parameters (``weight_norm``). The network is as it was, then.
        TypeError: If ``model`` is no module or ``image_size`` no integer.

    Examples:
        The published protocol for ResNet-50 on CIFAR-10::

            model = fit_to_images(torchvision.models.resnet50(num_classes=10), 32)
            ghn(model)
            accuracy(model, eval_batches(splits.test, splits, 64))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
    try:
        image_size = operator.index(image_size)
    except TypeError:
        raise TypeError(f"image_size: got {image_size!r}, needs an integer, of pixels") from None
    if image_size < 8:
        raise ValueError(f"image_size: got {image_size}, needs at least 8 pixels")
    if image_size < SMALL_IMAGE:
        fit = _FITS.get(_kind(model))
        if fit is None or encodes_positions(model):
            fit_by_trial(model, image_size)
        else:
            fit(model)
    model.input_shape = (3, image_size, image_size)  # type: ignore[assignment]
    return model


def _kind(model: nn.Module) -> str:
    """The family of a network by the classes that it is derived from, and by its layout."""
    names = [base.__name__ for base in type(model).__mro__]
    kind = next((name for name in names if name in _FITS), names[0])
    has_features = isinstance(getattr(model, "features", None), nn.Sequential)
    # Others than torchvision call networks by these names that are put together otherwise.
    return "" if kind in _WITH_FEATURES and not has_features else kind


def _shrink_kernel(layer: nn.Conv2d, side: int = 3) -> None:
    """Give a convolution a kernel of ``side``, the middle of what it has, and stride 1."""
    height, width = layer.kernel_size
    if height < side or width < side:
        raise ValueError(f"model: its first kernel is {height}×{width}, needs {side}×{side}")
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            "model: the kernel of its first convolution is computed from other parameters "
            "(weight_norm or another parametrization), so it cannot be cut to "
            f"{side}×{side}; fit the network before it is parametrized"
        )
    top, left = (height - side) // 2, (width - side) // 2
    with torch.no_grad():
        kernel = layer.weight[:, :, top : top + side, left : left + side].clone()
    layer.weight = nn.Parameter(kernel, requires_grad=layer.weight.requires_grad)
    layer.kernel_size, layer.stride = (side, side), (1, 1)
    layer.padding = (side // 2 * layer.dilation[0], side // 2 * layer.dilation[1])
    # What padding_mode="reflect" and "circular" pad by; torch derives it when a layer is made.
    layer._reversed_padding_repeated_twice = [n for n in reversed(layer.padding) for _ in range(2)]


def _fit_resnet(model: nn.Module) -> None:
    _shrink_kernel(first_convolution(model))
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()


def _drop_poolings(features: Any, among: int, most: int) -> None:
    """Replace the first max poolings among the first layers."""
    for name, layer in list(features.named_children())[:among]:
        if isinstance(layer, nn.MaxPool2d) and most:
            features.set_submodule(name, nn.Identity())
            most -= 1


def _fit_densenet(model: Any) -> None:
    _shrink_kernel(first_convolution(model))
    _drop_poolings(model.features, 4, 1)


def _fit_mobilenet(model: Any) -> None:
    for block in list(model.features)[:5]:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)


def _fit_vgg(model: Any) -> None:
    _drop_poolings(model.features, 10, 2)


def _fit_alexnet(model: Any) -> None:
    fit_first(model)
    _drop_poolings(model.features, 3, 1)


def _fit_with_pooling(model: nn.Module) -> None:
    fit_first(model)
    for name in ("maxpool", "maxpool1"):
        if isinstance(getattr(model, name, None), nn.MaxPool2d):
            setattr(model, name, nn.Identity())
            return


_FITS: dict[str, Callable[[nn.Module], None]] = {
    "ResNet": _fit_resnet,
    "DenseNet": _fit_densenet,
    "MobileNetV2": _fit_mobilenet,
    "MobileNetV3": _fit_mobilenet,
    "VGG": _fit_vgg,
    "AlexNet": _fit_alexnet,
    "ShuffleNetV2": _fit_with_pooling,
    "GoogLeNet": _fit_with_pooling,
}
_WITH_FEATURES = ("DenseNet", "MobileNetV2", "MobileNetV3", "VGG", "AlexNet")

"""Stems of networks that were made for photographs, changed for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ghn_fast.vision.images import SMALL_IMAGE

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
    - VGG: the first two poolings go;
    - AlexNet, ShuffleNetV2, GoogLeNet: the first convolution has stride 1, the pooling after it
      goes;
    - all others (MNASNet, ConvNeXt, EfficientNet, RegNet, ...): the first convolution has stride 1.

    Beside that the network gets the attribute ``input_shape``, from which a hypernetwork knows what
    to capture.

    Args:
        model: The network; it is changed in place.
        image_size: Height and width of the images in pixels. From 64 on the stem stays.

    Returns:
        ``model``.

    Raises:
        ValueError: If ``image_size`` is below 8, the network has positional encodings of a fixed
            image size (it has to be built for the other size), or no convolution reads images.
        TypeError: If ``model`` is no module.

    Examples:
        The published protocol for ResNet-50 on CIFAR-10::

            model = fit_to_images(torchvision.models.resnet50(num_classes=10), 32)
            ghn(model)
            accuracy(model, eval_batches(splits.test, splits, 64))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
    if image_size < 8:
        raise ValueError(f"image_size: got {image_size}, needs at least 8 pixels")
    if image_size < SMALL_IMAGE:
        _FITS.get(_kind(model), _fit_first)(model)
    model.input_shape = (3, image_size, image_size)  # type: ignore[assignment]
    return model


def _kind(model: nn.Module) -> str:
    """The family of a network by the classes that it is derived from."""
    names = [base.__name__ for base in type(model).__mro__]
    return next((name for name in names if name in _FITS), names[0])


def _first_convolution(model: nn.Module) -> nn.Conv2d:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            patches = module.stride == module.kernel_size and module.stride[0] > 4
            if patches or any("pos_emb" in key for key, _ in model.named_parameters()):
                raise ValueError(
                    f"model: {type(model).__name__} cuts images into patches (layer '{name}') and "
                    "encodes their positions for one image size; build it for the other size "
                    "(image_size= in torchvision, img_size= in timm, and smaller patches)"
                )
            return module
    raise ValueError(
        f"model: {type(model).__name__} has no convolution that reads images of 3 channels"
    )


def _fit_first(model: nn.Module) -> None:
    _first_convolution(model).stride = (1, 1)


def _shrink_kernel(layer: nn.Conv2d, side: int = 3) -> None:
    """Give a convolution a kernel of ``side``, the middle of what it has, and stride 1."""
    height, width = layer.kernel_size
    if height < side or width < side:
        raise ValueError(f"model: its first kernel is {height}×{width}, needs {side}×{side}")
    top, left = (height - side) // 2, (width - side) // 2
    with torch.no_grad():
        kernel = layer.weight[:, :, top : top + side, left : left + side].clone()
    layer.weight = nn.Parameter(kernel, requires_grad=layer.weight.requires_grad)
    layer.kernel_size, layer.stride = (side, side), (1, 1)
    layer.padding = (side // 2, side // 2)


def _fit_resnet(model: nn.Module) -> None:
    _shrink_kernel(_first_convolution(model))
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()


def _features(model: nn.Module) -> nn.Sequential:
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential):
        raise ValueError(f"model: {type(model).__name__} has no list of layers named 'features'")
    return features


def _drop_poolings(features: nn.Sequential, among: int, most: int) -> None:
    """Replace the first max poolings among the first layers."""
    for name, layer in list(features.named_children())[:among]:
        if isinstance(layer, nn.MaxPool2d) and most:
            features.set_submodule(name, nn.Identity())
            most -= 1


def _fit_densenet(model: nn.Module) -> None:
    _shrink_kernel(_first_convolution(model))
    _drop_poolings(_features(model), 4, 1)


def _fit_mobilenet(model: nn.Module) -> None:
    for block in list(_features(model))[:5]:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)


def _fit_vgg(model: nn.Module) -> None:
    _drop_poolings(_features(model), 10, 2)


def _fit_alexnet(model: nn.Module) -> None:
    _fit_first(model)
    _drop_poolings(_features(model), 3, 1)


def _fit_with_pooling(model: nn.Module) -> None:
    _fit_first(model)
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

"""Stems of networks that were made for photographs, changed for small images."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ghn_fast.utils.errors import one_line
from ghn_fast.utils.modes import evaluation_mode
from ghn_fast.vision.images import SMALL_IMAGE

M = TypeVar("M", bound=nn.Module)

# Sides in pixels of the images that networks are made for.
USUAL_SIZES = (32, 64, 96, 128, 224, 256, 299, 384)


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
      (Inception); if that does not serve either, it keeps the stem that it has: so a network with
      positional encodings or windows that was built for the size stays as it is, as does one that
      says so (an attribute ``img_size`` or ``image_size``).

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
        if _built_for(model, image_size):
            pass
        elif fit is None or _encodes_positions(model):
            _fit_by_trial(model, image_size)
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


def _first_convolution(model: nn.Module) -> nn.Conv2d:
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return module
    raise ValueError(
        f"model: {type(model).__name__} has no convolution that reads images of 3 channels"
    )


def _built_for(model: nn.Module, image_size: int) -> bool:
    """Whether a network says that its images have this size, as timm's and torchvision's do."""
    values = [
        getattr(module, name, None)
        for module in model.modules()
        for name in ("img_size", "image_size")
    ]
    return any(
        value == image_size if isinstance(value, int) else tuple(value) == (image_size, image_size)
        for value in values
        if isinstance(value, (int, tuple, list))
    )


def _cuts_patches(model: nn.Module) -> bool:
    """Whether the first convolution cuts images into patches that are too large for small ones."""
    first = _first_convolution(model)
    return first.stride == first.kernel_size and first.stride[0] > 4


def _encodes_positions(model: nn.Module) -> bool:
    return _cuts_patches(model) or any("pos_emb" in key for key, _ in model.named_parameters())


def _fit_by_trial(model: nn.Module, image_size: int) -> None:
    """Change the stem of a network of no known family, and see whether it takes the images.

    Encodings that are computed (EdgeNeXt) take the larger map of features that stride 1 gives;
    those with a value for each position, and windows, fit one size of images and the stem that the
    network has.
    """
    kept = [(layer, layer.stride) for layer in _first_convolutions(model)]
    pooling = next((n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)), None)
    error = None
    if not _cuts_patches(model):
        _fit_first(model)
        error = _failure(model, image_size)
        if error is None:
            return
        if pooling is not None:
            removed = model.get_submodule(pooling)
            model.set_submodule(pooling, nn.Identity())
            if _failure(model, image_size) is None:
                return
            model.set_submodule(pooling, removed)
        for layer, stride in kept:
            layer.stride = stride
    as_it_was = _failure(model, image_size)
    if as_it_was is None:
        return
    error = as_it_was if error is None else error
    if _cuts_patches(model):
        name = next(n for n, m in model.named_modules() if m is kept[0][0])
        why = f"cuts images into patches (layer '{name}') and encodes their positions for one size"
    elif _encodes_positions(model) or any(_failure(model, n) is None for n in USUAL_SIZES):
        why = f"takes none of {image_size}×{image_size} pixels ({one_line(error)})"
    else:
        # It takes no image alone, of whatever size (it has other inputs, too), so nothing is known.
        _fit_first(model)
        return
    raise ValueError(
        f"model: {type(model).__name__} was made for images of another size: it {why}; build it "
        "for this one (image_size= in torchvision, img_size= in timm, smaller patches or windows)"
    ) from error


def _failure(model: nn.Module, image_size: int) -> Exception | None:
    """The error of a forward pass of an image of a size, if there is one."""
    weight = _first_convolution(model).weight
    image = torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype)
    with evaluation_mode(model), torch.no_grad():
        try:
            model(image)
        except Exception as error:  # whatever a network of anybody raises for other sizes
            return error
    return None


def _first_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The first convolution and those beside it: branches that are added up stay of one size."""
    first = _first_convolution(model)
    like = (first.stride, first.out_channels)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [c for c in convolutions if c.in_channels == 3 and (c.stride, c.out_channels) == like]


def _fit_first(model: nn.Module) -> None:
    for layer in _first_convolutions(model):
        layer.stride = (1, 1)


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
    _shrink_kernel(_first_convolution(model))
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()


def _drop_poolings(features: Any, among: int, most: int) -> None:
    """Replace the first max poolings among the first layers."""
    for name, layer in list(features.named_children())[:among]:
        if isinstance(layer, nn.MaxPool2d) and most:
            features.set_submodule(name, nn.Identity())
            most -= 1


def _fit_densenet(model: Any) -> None:
    _shrink_kernel(_first_convolution(model))
    _drop_poolings(model.features, 4, 1)


def _fit_mobilenet(model: Any) -> None:
    for block in list(model.features)[:5]:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)


def _fit_vgg(model: Any) -> None:
    _drop_poolings(model.features, 10, 2)


def _fit_alexnet(model: Any) -> None:
    _fit_first(model)
    _drop_poolings(model.features, 3, 1)


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
_WITH_FEATURES = ("DenseNet", "MobileNetV2", "MobileNetV3", "VGG", "AlexNet")

"""Stems of networks of no known family: what is changed is what lets them take small images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ghn_fast.utils.errors import one_line
from ghn_fast.utils.modes import evaluation_mode

# Sides in pixels of the images that networks are made for.
USUAL_SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 299, 384)


def first_convolution(model: nn.Module) -> nn.Conv2d:
    """The convolution that reads images.

    Raises:
        ValueError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return module
    raise ValueError(
        f"model: {type(model).__name__} has no convolution that reads images of 3 channels"
    )


def _built_for(model: nn.Module, image_size: int) -> bool:
    """Whether a network says that its images have this size, as timm's and torchvision's do.

    The network says so itself, or the module that reads images; those further on have sizes of
    features.
    """
    first = first_convolution(model)
    readers = [m for m in model.modules() if any(child is first for child in m.children())]
    return any(
        value == image_size if isinstance(value, int) else tuple(value) == (image_size, image_size)
        for module in (model, *readers)
        for value in (getattr(module, "img_size", None), getattr(module, "image_size", None))
        if isinstance(value, (int, tuple, list))
    )


def _cuts_patches(model: nn.Module) -> bool:
    """Whether the first convolution cuts images into patches that are too large for small ones."""
    first = first_convolution(model)
    return first.stride == first.kernel_size and first.stride[0] > 4


def encodes_positions(model: nn.Module) -> bool:
    """Whether a network has encodings of positions, or patches of vision transformers."""
    return _cuts_patches(model) or any("pos_emb" in key for key, _ in model.named_parameters())


def fit_by_trial(model: nn.Module, image_size: int) -> None:
    """Change the stem of a network of no known family, and see whether it takes the images.

    Encodings that are computed (EdgeNeXt) take the larger map of features that stride 1 gives;
    those with a value for each position, and windows, fit one size of images and the stem that the
    network has.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        # A forward pass would give them their sizes.
        fit_first(model)
        return
    stem = _Stem(model)
    with stem.restored_after_errors():
        if _built_for(model, image_size) and _failure(model, image_size) is None:
            return
        if not _cuts_patches(model):
            fit_first(model)
            if _failure(model, image_size) is None or stem.serves_without_pooling(image_size):
                return
            stem.restore()
        as_it_was = _failure(model, image_size)
        if as_it_was is None:
            return
        if _cuts_patches(model):
            layer = next(n for n, m in model.named_modules() if m is first_convolution(model))
            why = f"cuts images into patches (layer '{layer}'), whose positions it encodes"
        elif encodes_positions(model) or any(_failure(model, n) is None for n in USUAL_SIZES):
            why = f"takes none of {image_size}×{image_size} pixels ({one_line(as_it_was)})"
        else:
            # It takes no image alone, of whatever size (it has other inputs, too).
            fit_first(model)
            return
        raise ValueError(
            f"model: {type(model).__name__} was made for images of another size: it {why}; build "
            "it for this one, if it can be (image_size= or input_size= in torchvision, img_size= "
            "in timm; smaller patches or windows)"
        ) from as_it_was


class _Stem:
    """The first convolutions of a network and its first max pooling, as they were."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._strides = [(layer, layer.stride) for layer in first_convolutions(model)]
        found = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d))
        self._pooling = next(found, None)

    def restore(self) -> None:
        """Put back what was changed."""
        for layer, stride in self._strides:
            layer.stride = stride
        if self._pooling is not None:
            self._model.set_submodule(*self._pooling)

    @contextmanager
    def restored_after_errors(self) -> Iterator[None]:
        """A context after whose errors, interruptions too, the network is as it was."""
        try:
            yield
        except BaseException:
            self.restore()
            raise

    def serves_without_pooling(self, image_size: int) -> bool:
        """Take the first max pooling out; whether the network takes images of a size then.

        A module that is called more than once serves further poolings, too, and has to stay.
        """
        if self._pooling is None:
            return False
        calls: list[None] = []
        place = nn.Identity()
        hook = place.register_forward_hook(lambda *_: calls.append(None))
        self._model.set_submodule(self._pooling[0], place)
        taken = _failure(self._model, image_size) is None
        hook.remove()
        return taken and len(calls) == 1


def _failure(model: nn.Module, image_size: int) -> Exception | None:
    """The error of a forward pass of an image of a size, if there is one."""
    weight = first_convolution(model).weight
    image = torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype)
    devices = [weight.device] if weight.device.type == "cuda" else []
    with evaluation_mode(model), torch.no_grad(), torch.random.fork_rng(devices):
        try:
            model(image)
        except Exception as error:  # whatever a network of anybody raises for other sizes
            return error
    return None


def first_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The first convolution and those beside it: branches that are added up stay of one size."""
    first = first_convolution(model)
    like = (first.stride, first.out_channels)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return [c for c in convolutions if c.in_channels == 3 and (c.stride, c.out_channels) == like]


def fit_first(model: nn.Module) -> None:
    """Give the first convolutions stride 1."""
    for layer in first_convolutions(model):
        layer.stride = (1, 1)

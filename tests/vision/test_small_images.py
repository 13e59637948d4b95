"""Stems for small images, against what the published evaluation does to each family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ghn_fast.vision import fit_to_images

torchvision = pytest.importorskip("torchvision")


def built(name: str) -> nn.Module:
    extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    with torch.device("meta"):
        return torchvision.models.get_model(name, num_classes=10, **extra)


def trunk_side(model: nn.Module, side: int) -> int:
    """Height of the last features of four dimensions, for images of a side."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(module, nn.Conv2d) and isinstance(output, torch.Tensor):
            sizes.append(output.shape[-1])

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model.eval()(torch.empty(2, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    # Squeeze and excitation ends in one position.
    return min(size for size in sizes if size > 1)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("resnet50", 7, 4),
        ("densenet121", 7, 4),
        ("vgg16", 14, 8),
        ("mobilenet_v2", 7, 8),
        ("mobilenet_v3_small", 7, 16),
        ("alexnet", 13, 12),
        ("shufflenet_v2_x0_5", 7, 4),
        ("googlenet", 7, 4),
        ("mnasnet0_5", 7, 2),
        ("convnext_tiny", 7, 3),
    ],
)
def test_small_images_keep_their_positions(name: str, before: int, after: int) -> None:
    model = built(name)
    assert trunk_side(model, 224) == before
    assert fit_to_images(model, 224) is model
    assert trunk_side(model, 224) == before
    fit_to_images(model, 32)
    assert model.input_shape == (3, 32, 32)
    assert trunk_side(model, 32) == after


def test_the_middle_of_the_kernel_stays() -> None:
    model = torchvision.models.resnet18()
    kernel = model.conv1.weight.detach().clone()
    fit_to_images(model, 32)
    assert torch.equal(model.conv1.weight, kernel[:, :, 2:5, 2:5])
    assert model.conv1.padding == (1, 1)
    assert isinstance(model.maxpool, nn.Identity)
    # It equals the ResNet-50 of the predefined split, layer by layer.
    from ghn_fast.deepnets import DeepNets

    theirs = DeepNets(None, "predefined")[0].build(image_size=32)
    ours = fit_to_images(torchvision.models.resnet50(num_classes=10), 32)
    assert str(ours) == str(theirs)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="build it for the other size"):
        fit_to_images(built("vit_b_16"), 32)
    with pytest.raises(ValueError, match="no convolution that reads images"):
        fit_to_images(nn.Linear(3, 4), 32)
    with pytest.raises(ValueError, match="image_size: got 4"):
        fit_to_images(built("resnet18"), 4)
    with pytest.raises(TypeError, match="model: got str"):
        fit_to_images("resnet50", 32)  # type: ignore[type-var]


def test_timm(seeded: int) -> None:
    timm = pytest.importorskip("timm")
    model = fit_to_images(timm.create_model("resnet18", num_classes=10), 32)
    assert model.conv1.kernel_size == (3, 3)
    assert isinstance(model.maxpool, nn.Identity)
    model = fit_to_images(timm.create_model("efficientnet_b0", num_classes=10), 32)
    assert model.conv_stem.stride == (1, 1)
    assert model.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)

"""Stems for small images, against what the published evaluation does to each family."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from ghn_fast.vision import fit_to_images
from tolerances import assert_close

torchvision = pytest.importorskip("torchvision")


def built(name: str) -> nn.Module:
    inception = name in ("googlenet", "inception_v3")
    extra = {"init_weights": False, "aux_logits": False} if inception else {}
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
        ("vgg16_bn", 14, 4),  # one of its poolings is among the first ten layers
        ("mobilenet_v2", 7, 8),
        ("mobilenet_v3_small", 7, 16),
        ("alexnet", 13, 12),
        ("shufflenet_v2_x0_5", 7, 4),
        ("googlenet", 7, 4),
        ("mnasnet0_5", 7, 2),
        ("convnext_tiny", 7, 3),
        ("inception_v3", 5, 2),  # nothing is left of a map of 5 with its first pooling
        ("swin_t", 56, 29),  # after its only convolution
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


class Block(torchvision.models.ResNet):
    """A ResNet whose first convolution is another one."""

    def __init__(self, first: nn.Module) -> None:
        block = torchvision.models.resnet.BasicBlock
        super().__init__(block, [1, 1, 1, 1], num_classes=10)
        self.conv1 = first


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_a_smaller_kernel_pads_less_in_every_way_of_padding(seeded: int, mode: str) -> None:
    model = Block(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False, padding_mode=mode))
    fit_to_images(model, 32)
    images = torch.rand(2, 3, 32, 32)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    assert_close(model.conv1(images), nn.functional.conv2d(padded, model.conv1.weight))


def test_a_dilated_kernel_keeps_the_size_of_images() -> None:
    first = nn.Conv2d(3, 64, 7, stride=2, padding=6, dilation=2, bias=False)
    model = fit_to_images(Block(first), 32)
    assert model.conv1(torch.zeros(1, 3, 32, 32)).shape[2:] == (32, 32)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_kernel_that_is_computed_cannot_be_cut(norm: Callable[[nn.Module], nn.Module]) -> None:
    first = norm(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False))
    with pytest.raises(ValueError, match="computed from other parameters"):
        fit_to_images(Block(first), 32)


class Branches(nn.Module):
    """A stem of two convolutions whose results are added (RepVGG)."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1, stride=2)
        self.three = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.back = nn.Conv2d(8, 3, 1)
        self.late = nn.Conv2d(3, 10, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.late(self.back(self.one(x) + self.three(x))).mean((2, 3))


def test_convolutions_side_by_side_are_fitted_together() -> None:
    model = fit_to_images(Branches(), 32)
    assert model.one.stride == model.three.stride == (1, 1)
    assert model.late.stride == (2, 2)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


class VGG(nn.Module):
    """A family's name, and another layout than torchvision's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(nn.MaxPool2d(2))


@pytest.mark.parametrize("name", ["VGG", "DenseNet", "MobileNetV2", "MobileNetV3", "AlexNet"])
def test_a_family_by_name_alone_gets_stride_one(name: str) -> None:
    model = fit_to_images(type(name, (VGG,), {})(), 32)
    assert model.stem.stride == (1, 1)
    assert isinstance(model.blocks[0], nn.MaxPool2d)


def test_positions_of_that_size_are_left_alone() -> None:
    def vit(image_size: int) -> nn.Module:
        return torchvision.models.VisionTransformer(
            image_size, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
        )

    model = vit(32)
    model.train()
    model.encoder.eval()
    images, kept = torch.rand(2, 3, 32, 32), copy.deepcopy(model)
    assert fit_to_images(model, 32).conv_proj.stride == (4, 4)
    assert torch.equal(model.eval()(images), kept.eval()(images))
    for size in (28, 48):
        with pytest.raises(ValueError, match="build it for this one"):
            fit_to_images(vit(32), size)


class Waves(nn.Module):
    """A network whose encodings of positions are computed, for any size (EdgeNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.pos_embed = nn.Linear(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        places = torch.cartesian_prod(*(torch.arange(n, dtype=x.dtype) for n in x.shape[2:]))
        return x.flatten(2).mean(2) + self.pos_embed(places).mean(0)


def test_positions_that_are_computed_take_more_of_them() -> None:
    model = Waves()
    model.eval()
    model.stem.train()
    fit_to_images(model, 32)
    assert model.stem.stride == (1, 1)
    assert not model.training and model.stem.training


class Windows(nn.Module):
    """A network whose maps of features have to be cut into windows of a side."""

    def __init__(self, window: int, stride: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=stride, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.window = window

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        assert x.shape[2] % self.window == 0, f"{x.shape[2]} is no multiple of {self.window}"
        return x.mean((2, 3))


def test_windows_decide_what_of_the_stem_goes() -> None:
    # Maps of 16 with stride 1, of 32 without the pooling beside, of 4 with the stem as it was.
    for window, stride, pooling in ((16, 1, nn.MaxPool2d), (32, 1, nn.Identity)):
        model = fit_to_images(Windows(window), 32)
        assert (model.stem.stride, type(model.pool)) == ((stride, stride), pooling)
    model = fit_to_images(Windows(12, stride=2), 48)
    assert model.stem.stride == (1, 1)
    model = fit_to_images(Windows(9), 36)
    assert model.stem.stride == (1, 1)
    model = Windows(7)
    with pytest.raises(ValueError, match=r"takes none of 32×32 pixels \(AssertionError: 4 is no m"):
        fit_to_images(model, 32)
    assert model.stem.stride == (4, 4) and isinstance(model.pool, nn.MaxPool2d)
    assert not hasattr(model, "input_shape")


class FixedSize(Windows):
    """A network that was built for images of one size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        assert x.shape[2] == self.window
        return x.mean((2, 3))


def test_a_network_that_was_built_for_the_size_keeps_its_stem() -> None:
    model = fit_to_images(FixedSize(8), 32)
    assert model.stem.stride == (4, 4) and isinstance(model.pool, nn.MaxPool2d)
    # With stride 1 it would take the images, too; what the network or its reader says decides.
    for says, where, stride in (
        ((32, 32), "", 4), (32, "", 4), ([32, 32], "reader", 4),
        ((64, 64), "", 1), ((32, 32), "reader.pool", 1), (torch.ones(2), "", 1),
    ):  # fmt: skip
        model = nn.Sequential()
        model.reader = Windows(4)
        model.get_submodule(where).img_size = says
        assert fit_to_images(model, 32).reader.stem.stride == (stride, stride), (says, where)
    # One that says so, and takes none of them.
    model = Windows(3)
    model.image_size = 32
    with pytest.raises(ValueError, match="takes none of 32×32"):
        fit_to_images(model, 32)
    resnet = torchvision.models.resnet18()
    resnet.image_size = 32
    assert fit_to_images(resnet, 32).conv1.stride == (1, 1)


class Poolings(nn.Module):
    """One pooling that is used several times, on odd sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for _ in range(4):
            x = self.pool(x)
        return x.mean((2, 3))


def test_a_pooling_of_several_places_is_not_taken_out() -> None:
    model = Poolings()
    with pytest.raises(ValueError, match="takes none of 8×8 pixels"):
        fit_to_images(model, 8)
    assert isinstance(model.pool, nn.MaxPool2d)


class Drawing(Windows):
    """A network that draws random numbers in evaluation mode, and can be interrupted."""

    interrupted = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.interrupted and self.stem.stride == (1, 1):
            raise KeyboardInterrupt
        return super().forward(x) + torch.rand(())


def test_a_trial_leaves_nothing_behind() -> None:
    before = torch.get_rng_state()
    model = fit_to_images(Drawing(16), 32)
    torch.manual_seed(0)
    assert model.stem.stride == (1, 1)
    torch.set_rng_state(before)
    expected = Drawing(16)
    torch.set_rng_state(before)
    found = fit_to_images(Drawing(16), 32)
    after = torch.get_rng_state()
    assert torch.equal(found.stem.weight, expected.stem.weight)
    torch.set_rng_state(before)
    Drawing(16)
    assert torch.equal(torch.get_rng_state(), after)

    model = Drawing(7)
    model.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        fit_to_images(model, 32)
    assert model.stem.stride == (4, 4)


def test_what_has_no_size_yet_gets_none_from_a_trial() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.LazyLinear(10))
    fit_to_images(model, 32)
    assert model[0].stride == (1, 1)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


class TwoInputs(Windows):
    """A network that takes no image alone."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x) + y


def test_a_network_with_other_inputs_gets_stride_one() -> None:
    model = fit_to_images(TwoInputs(16), 32)
    assert model.stem.stride == (1, 1) and isinstance(model.pool, nn.MaxPool2d)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="build it for this one"):
        fit_to_images(built("vit_b_16"), 32)
    with pytest.raises(ValueError, match="MaxVit was made for images of another size"):
        fit_to_images(built("maxvit_t"), 32)
    with pytest.raises(ValueError, match="no convolution that reads images"):
        fit_to_images(nn.Linear(3, 4), 32)
    with pytest.raises(ValueError, match="image_size: got 4"):
        fit_to_images(built("resnet18"), 4)
    with pytest.raises(TypeError, match=r"image_size: got 32\.0"):
        fit_to_images(built("resnet18"), 32.0)  # type: ignore[arg-type]
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
    with torch.device("meta"):
        model = timm.create_model("mobilenetv3_small_050", num_classes=10)
    assert fit_to_images(model, 32).conv_stem.stride == (1, 1)
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10)
        small = timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=10, img_size=32, window_size=4
        )
        inception = timm.create_model("inception_resnet_v2", num_classes=10)
    with pytest.raises(ValueError, match="img_size= in timm"):
        fit_to_images(swin, 32)
    assert fit_to_images(small, 32).patch_embed.proj.stride == (4, 4)
    fit_to_images(inception, 32)
    assert inception.eval()(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)

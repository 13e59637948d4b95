"""Known networks: each parameter is predicted or kept for a reason, and outputs are finite."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import SwinTransformerBlockV2

import ghn_fast
from ghn_fast.capturing import capture
from ghn_fast.graph import ArchGraph

# One model of each family, and how many of its tensors keep their values.
FAMILIES = {
    "alexnet": 0,
    "convnext_tiny": 0,
    "densenet121": 0,
    "efficientnet_b0": 0,
    "efficientnet_v2_s": 0,
    "googlenet": 14,
    "inception_v3": 8,
    "maxvit_t": 22,
    "mnasnet0_5": 0,
    "mobilenet_v2": 0,
    "mobilenet_v3_small": 0,
    "regnet_x_400mf": 0,
    "regnet_y_400mf": 0,
    "resnet18": 0,
    "resnext50_32x4d": 0,
    "shufflenet_v2_x0_5": 0,
    "squeezenet1_0": 0,
    "swin_t": 12,
    "swin_v2_t": 12,
    "vgg11_bn": 0,
    "vit_b_32": 1,
    "wide_resnet50_2": 0,
}
KEPT = ("relative_position_bias_table", "logit_scale", "pos_embedding", "aux1", "aux2", "AuxLogits")


def build(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            with torch.device("meta"):
                return torchvision.models.get_model(name, num_classes=10)
        except NotImplementedError:
            # Constructors that compute with values, as those of RegNet.
            return torchvision.models.get_model(name, num_classes=10)


def check(model: nn.Module, graph: ArchGraph) -> set[str]:
    params = dict(model.named_parameters())
    predicted = {target.name: target for target in graph.targets}
    assert set(predicted) | set(graph.skipped) == set(params)
    assert not set(predicted) & set(graph.skipped)
    assert all(graph.skipped.values())
    for name, target in predicted.items():
        assert target.shape == tuple(params[name].shape)
        assert torch.Size(target.predicted_shape).numel() == params[name].numel()
    heads = [target.name for target in graph.targets if target.head]
    assert len(heads) <= 2
    return set(graph.skipped)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_torchvision(name: str) -> None:
    model = build(name)
    size = 299 if name == "inception_v3" else 224
    skipped = check(model, capture(model, (3, size, size)))
    assert len(skipped) == FAMILIES[name]
    assert all(any(part in parameter for part in KEPT) for parameter in skipped)


TIMM = {
    "resnet50": 0,
    "vit_tiny_patch16_224": 1,
    "deit3_small_patch16_224": 1,
    "swin_tiny_patch4_window7_224": 12,
    "convnextv2_tiny": 0,
    "mixer_b16_224": 0,
    "efficientnetv2_rw_s": 0,
    "regnety_016": 0,
    "resnest50d": 0,
    "coat_lite_mini": 0,
    "poolformer_s12": 0,
    "mobilevit_s": 0,
    "levit_128": 14,
    "xcit_nano_12_p16_224": 0,
}


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (pip install ghn-fast[timm])")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, num_classes=10)
        except (NotImplementedError, RuntimeError):
            model = timm.create_model(name, pretrained=False, num_classes=10)
        graph = capture(model, model.default_cfg["input_size"])
    assert len(check(model, graph)) == TIMM[name]


SMALL = {
    "vit": partial(torchvision.models.VisionTransformer, 32, 8, 2, 2, 32, 64, num_classes=10),
    "swin": partial(
        torchvision.models.SwinTransformer, [4, 4], 24, [1, 2], [2, 4], [4, 4], num_classes=10
    ),
    "swin v2": partial(
        torchvision.models.SwinTransformer,
        [4, 4],
        24,
        [1, 1],
        [2, 4],
        [4, 4],
        num_classes=10,
        block=SwinTransformerBlockV2,
        downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
    ),
    "convnext": partial(
        torchvision.models.ConvNeXt,
        [CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)],
        num_classes=10,
    ),
    "maxvit": partial(
        torchvision.models.MaxVit, (64, 64), 8, 4, [16, 24], [1, 1], 8, 0.0, num_classes=10
    ),
    "mobilenet": partial(torchvision.models.mobilenet_v3_small, num_classes=10),
    "shufflenet": partial(torchvision.models.shufflenet_v2_x0_5, num_classes=10),
    "resnet": partial(torchvision.models.resnet18, num_classes=10),
}


@pytest.mark.parametrize("name", SMALL)
def test_predicted_networks_give_finite_outputs(name: str) -> None:
    model = SMALL[name]().eval()
    ghn = ghn_fast.GHN().eval()
    size = 64 if name == "maxvit" else 32
    with warnings.catch_warnings():
        # Tables keep their values.
        warnings.simplefilter("ignore", UserWarning)
        report = ghn.predict(model, input_shape=(3, size, size))
    assert len(report.predicted) + len(report.skipped) == len(list(model.parameters()))
    with torch.no_grad():
        output = model(torch.randn(4, 3, size, size))
    assert output.shape == (4, 10)
    assert bool(output.isfinite().all())
    assert float(output.std()) > 0

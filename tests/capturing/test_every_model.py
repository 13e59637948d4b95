"""Every model of torchvision, and models of timm: which tensors are predicted, and why not.

`pytest -m slow -s` prints a line per network and the reasons. Models are built on the meta device
where their code allows it, so that large ones need no memory.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from ghn_fast.capturing import capture

TIMM_MODELS = (
    "resnet50",
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnextv2_tiny",
    "mixer_b16_224",
    "efficientnetv2_rw_s",
    "regnety_016",
    "resnest50d",
    "coat_lite_mini",
    "poolformer_s12",
    "mobilevit_s",
    "levit_128",
    "xcit_nano_12_p16_224",
)
Models = Iterator[tuple[str, nn.Module, tuple[int, ...]]]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without storage, unless its constructor computes with values."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def torchvision_models() -> Models:
    """Name, network and input shape of every classification model of torchvision."""
    import torchvision

    get = torchvision.models.get_model
    for name in torchvision.models.list_models(module=torchvision.models):
        size = 299 if name.startswith("inception") else 224
        model = on_meta(lambda name=name: get(name, weights=None, num_classes=10))  # type: ignore[misc]
        yield name, model, (3, size, size)


def timm_models() -> Models:
    """Name, network and input shape of models of timm."""
    timm = pytest.importorskip("timm")
    for name in TIMM_MODELS:
        model = on_meta(lambda name=name: timm.create_model(name, num_classes=10))  # type: ignore[misc]
        yield name, model, tuple(getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224)))


@pytest.mark.slow
@pytest.mark.parametrize("models", [torchvision_models, timm_models])
def test_nearly_all_tensors_are_predicted_and_the_others_have_a_reason(
    models: Callable[[], Models],
) -> None:
    predicted = total = 0
    reasons: Counter[str] = Counter()
    warnings.simplefilter("ignore")
    for name, model, shape in models():
        graph = capture(model, shape)
        names = [parameter for parameter, _ in model.named_parameters()]
        targets = {target.name for target in graph.targets}
        left = [parameter for parameter in names if parameter not in targets]
        assert set(left) <= set(graph.skipped), name
        reasons.update(graph.skipped[parameter] for parameter in left)
        predicted += len(names) - len(left)
        total += len(names)
        print(f"{name:34s} {len(names) - len(left):6d} of {len(names):6d}, {graph.num_nodes} nodes")
    print(f"{predicted} of {total} tensors, {100 * predicted / total:.2f} %")
    for reason, count in reasons.most_common():
        print(f"{count:6d} not predicted: {reason}")
    assert predicted / total > 0.99

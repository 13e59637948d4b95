from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.graph.structure import structural_key

SHAPE = (3, 32, 32)


def key_of(model: nn.Module, inputs: Any = SHAPE) -> tuple[Any, ...]:
    key = structural_key(model, inputs)
    assert key is not None
    return key


class Net(nn.Module):
    """One convolution and whatever else decides how it is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class OtherNet(Net):
    pass


def relu(x: Tensor) -> Tensor:
    return F.relu(x)


def closed_over(value: Any) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return x * value

    return function


def changed(change: Callable[[Net], object], **attributes: Any) -> Net:
    net = Net(**attributes)
    change(net)
    return net


def test_equal_networks_have_equal_keys() -> None:
    for make in (
        lambda: torchvision.models.resnet18(num_classes=10),
        lambda: torchvision.models.densenet121(num_classes=10),
        lambda: Net(act=functools.partial(F.pad, pad=(1, 1)), sizes=[1, (2, 3)], mode="a"),
    ):
        assert key_of(make()) == key_of(make())


def test_values_do_not_matter() -> None:
    net = Net()
    before = key_of(net)
    with torch.no_grad():
        net.conv.weight.zero_()
    assert key_of(net.requires_grad_(False)) == before


SHARED = nn.Linear(4, 4)
DIFFERENT = {
    "class": OtherNet(),
    "attribute": Net(flag=True),
    "value": Net(flag=False),
    "type of a value": Net(flag=1),
    "float": Net(flag=1.0),
    "nested": Net(flag=[1, (2, 3)]),
    "otherwise nested": Net(flag=[1, 2, (3,)]),
    "list": Net(flag=[[1], 2]),
    "dict": Net(flag={"a": 1}),
    "other key": Net(flag={"b": 1}),
    "set": Net(flag={1, 2}),
    "set of bools": Net(flag={True, 2}),
    "function": Net(flag=relu),
    "other function": Net(flag=F.relu),
    "builtin": Net(flag=torch.relu),
    "partial": Net(flag=functools.partial(F.pad, pad=(1, 1))),
    "other partial": Net(flag=functools.partial(F.pad, pad=(2, 2))),
    "dtype": Net(flag=torch.float16),
    "submodule": Net(flag=nn.ReLU()),
    "shape of a submodule": Net(flag=nn.Linear(3, 4)),
    "bias": Net(flag=nn.Linear(3, 4, bias=False)),
    "stride": changed(lambda net: setattr(net.conv, "stride", (2, 2))),
    "groups": changed(lambda net: setattr(net.conv, "groups", 2)),
    "shape": changed(lambda net: setattr(net, "conv", nn.Conv2d(3, 9, 3))),
    "dtype of parameters": Net().half(),
    "training": Net().eval(),
    "buffer": changed(lambda net: net.register_buffer("b", torch.zeros(2))),
    "shape of a buffer": changed(lambda net: net.register_buffer("b", torch.zeros(3))),
    "two": Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
    "one twice": Net(a=SHARED, b=SHARED),
    "shared weight": changed(
        lambda net: setattr(net.b, "weight", net.a.weight), a=nn.Linear(4, 4), b=nn.Linear(4, 4)
    ),
    "no module": Net(a=None),
}


def test_different_networks_have_different_keys() -> None:
    keys = {name: key_of(net) for name, net in {"plain": Net(), **DIFFERENT}.items()}
    for name, key in keys.items():
        equal = [other for other, k in keys.items() if k == key]
        assert equal == [name]


def test_functions_count_by_identity_and_by_what_they_close_over() -> None:
    function = closed_over(2)
    assert key_of(Net(f=function)) == key_of(Net(f=function))
    assert key_of(Net(f=function)) != key_of(Net(f=closed_over(3)))
    options = [1]
    function = closed_over(options)
    before = key_of(Net(f=function))
    options.append(2)
    assert key_of(Net(f=function)) != before


def test_inputs_count() -> None:
    net = Net()
    assert key_of(net, (3, 32, 32)) != key_of(net, (3, 64, 64))
    assert key_of(net, torch.zeros(1, 3, 8, 8)) == key_of(net, torch.ones(1, 3, 8, 8))
    assert key_of(net, torch.zeros(1, 3, 8, 8)) != key_of(net, torch.zeros(2, 3, 8, 8))


def test_replaced_forward_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(Net())
    monkeypatch.setattr(Net, "forward", lambda self, x: x)
    assert key_of(Net()) != before


class Unknown:
    """An object that may hold anything."""


@pytest.mark.parametrize(
    "attribute", [Unknown(), torch.zeros(3), closed_over(nn.ReLU()), closed_over(Unknown())]
)
def test_what_cannot_be_listed_has_no_key(attribute: object) -> None:
    assert structural_key(Net(attribute=attribute), SHAPE) is None


def test_networks_with_hooks_have_no_key() -> None:
    net = Net()
    handle = net.conv.register_forward_hook(lambda module, inputs, output: output)
    assert structural_key(net, SHAPE) is None
    handle.remove()
    assert structural_key(net, SHAPE) is not None
    with_global = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, x: None)
    try:
        assert structural_key(net, SHAPE) is None
    finally:
        with_global.remove()


def test_a_key_does_not_keep_the_network() -> None:
    net = Net(act=functools.partial(F.pad, pad=(1, 1)), child=nn.ReLU())
    net.method = net.conv.extra_repr  # type: ignore[assignment]
    key, alive = key_of(net), weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    assert key

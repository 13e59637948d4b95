from __future__ import annotations

import functools
import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import ghn_fast
from ghn_fast.capturing.structure import Structure, structure_of

SHAPE = (3, 32, 32)


@pytest.fixture(
    autouse=True, params=[pytest.param("compiled", marks=pytest.mark.extension), "reference"]
)
def lister(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test with the walk over the modules in C++ and in Python."""
    with ghn_fast.backend("auto" if request.param == "compiled" else "reference"):
        yield


def listed(model: nn.Module, inputs: Any = SHAPE) -> Structure:
    structure = structure_of(model, inputs)
    assert structure is not None
    return structure


def key_of(model: nn.Module, inputs: Any = SHAPE) -> tuple[Any, ...]:
    return listed(model, inputs).key


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
    "list of bools": Net(flag=[True, 2]),
    "tuple": Net(flag=(1, 2)),
    "list of numbers": Net(flag=[1, 2]),
    "shorter": Net(flag=(1,)),
    "two tuples": Net(flag=(1,), other=(2,)),
    "empty tuple": Net(flag=()),
    "empty set": Net(flag=set()),
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


def test_values_of_integer_inputs_count() -> None:
    net = Net()
    keys = [
        key_of(net, {"ids": torch.tensor(ids)}) for ids in ([1, 2], [1, 3], [True, True], [1, 2])
    ]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3
    assert structure_of(net, torch.zeros(1 << 17, dtype=torch.long)) is None


def test_values_of_small_buffers_count() -> None:
    def make(values: list[float], count: int = 1) -> nn.Module:
        return changed(lambda net: net.register_buffer("b", torch.tensor(values).repeat(count)))

    assert key_of(make([1.0])) == key_of(make([1.0])) != key_of(make([2.0]))
    assert key_of(make([1.0], 99)) == key_of(make([2.0], 99))


@pytest.mark.parametrize("back", [False, True])
def test_running_statistics_do_not_count(back: bool) -> None:
    model = torchvision.models.resnet18(num_classes=10)
    before = key_of(model)
    model.bn1.running_mean.fill_(3)
    assert key_of(model) == before
    ghn_fast.use_batch_statistics(model)
    if back:
        ghn_fast.track_running_statistics(model)
    assert key_of(model) == before


def test_shared_memory_counts() -> None:
    def make(share: Callable[[nn.Linear], Tensor]) -> nn.Module:
        net = Net(a=nn.Linear(4, 4), b=nn.Linear(4, 4))
        net.b.weight = nn.Parameter(share(net.a))  # type: ignore[arg-type]
        return net

    def expanded(_: nn.Linear) -> Tensor:
        return torch.zeros(4, 1).expand(4, 4)

    def own(_: nn.Linear) -> Tensor:
        return torch.zeros(4, 4)

    keys = [key_of(make(share)) for share in (lambda a: a.weight.data, own, expanded, own)]
    assert keys[1] == keys[3]
    assert len(set(keys)) == 3


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
    assert structure_of(Net(attribute=attribute), SHAPE) is None


def test_networks_with_hooks_have_no_key() -> None:
    net = Net()
    handle = net.conv.register_forward_hook(lambda module, inputs, output: output)
    assert structure_of(net, SHAPE) is None
    handle.remove()
    assert structure_of(net, SHAPE) is not None
    with_global = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, x: None)
    try:
        assert structure_of(net, SHAPE) is None
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


def test_parameters_and_norms_are_those_of_the_network() -> None:
    shared = nn.Linear(4, 4)
    net = Net(a=shared, b=nn.Sequential(shared, nn.BatchNorm1d(4)), norm=nn.BatchNorm2d(8))
    net.b.extra = nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    net.b[1].weight = net.norm.weight  # type: ignore[index, union-attr]
    net.register_parameter("none", None)
    for model in (net, torchvision.models.googlenet(num_classes=10, init_weights=False)):
        structure = listed(model)
        assert structure.complete
        want = list(model.parameters())
        assert [id(p) for p in structure.parameters] == [id(p) for p in want]
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert [id(m) for m in structure.norms] == [id(m) for m in norms]


def test_modules_held_elsewhere_make_it_incomplete() -> None:
    assert not listed(Net(held=[nn.Linear(2, 2)])).complete
    # ... also one that is registered later on.
    net = Net()
    net.held = [net.conv]  # type: ignore[assignment]
    assert not listed(net).complete


def test_order_of_an_ordered_dict_counts() -> None:
    def make(first: str) -> nn.Module:
        net = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
        net._modules = OrderedDict(net._modules)
        net._modules.move_to_end(first, last=False)
        return net

    assert key_of(make("a")) != key_of(make("b"))
    assert [id(p) for p in listed(make("b")).parameters] != []
    net = make("b")
    assert [id(p) for p in listed(net).parameters] == [id(p) for p in net.parameters()]


class Subclass(torch.Tensor):
    """A tensor with another class."""


def test_classes_of_tensors_count() -> None:
    def make(cls: type[Tensor]) -> nn.Module:
        net = Net()
        net.register_buffer("b", torch.zeros(2).as_subclass(cls))
        return net

    assert key_of(make(Tensor)) != key_of(make(Subclass))
    assert key_of(make(Subclass)) == key_of(make(Subclass))


def test_very_deep_networks_do_not_crash() -> None:
    net: nn.Module = nn.ReLU()
    for _ in range(20000):
        net = nn.Sequential(net)
    try:
        assert structure_of(net, SHAPE) is None
    finally:
        # Taken apart by hand: the interpreter frees it without recursion in any case.
        while isinstance(net, nn.Sequential):
            net = net._modules.pop("0")  # type: ignore[assignment]


def test_walks_are_freed() -> None:
    net = Net()
    alive = weakref.ref(net)
    listed(net)
    gc.disable()
    try:
        del net
        assert alive() is None
    finally:
        gc.enable()

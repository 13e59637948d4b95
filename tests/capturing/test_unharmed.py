"""Nothing of a network changes while it is captured, whatever it holds."""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import random
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ghn_fast.capturing import CaptureError, capture
from snapshots import snapshot


class Net(nn.Module):
    """Two layers, and something between them that is told what passes."""

    def __init__(
        self, use: Callable[[Net, Tensor], object], fail: bool = False, **held: Any
    ) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0
        self.use = use
        self.fail = False
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        self.use(self, h)
        if self.fail:
            raise KeyError("on purpose")
        return self.out(h)


class Log:
    """An object of one's own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.count = 0

    def add(self, item: Any) -> None:
        self.count += 1
        self.seen.append(item)

    def __call__(self, item: Any) -> Any:
        self.add(item)
        return item


class Slotted:
    __slots__ = ("last", "seen")

    def __init__(self) -> None:
        self.seen: list[Any] = []


class ListOfMine(list):  # type: ignore[type-arg]
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class DictOfMine(dict):  # type: ignore[type-arg]
    pass


Pair = collections.namedtuple("Pair", ("name", "items"))


def step(net: Net) -> None:
    net.calls += 1
    net.count = net.count + 1


def counting() -> Callable[[Tensor], None]:
    calls = 0
    seen = []

    def count(x: Tensor) -> None:
        nonlocal calls
        calls += 1
        seen.append(x)

    return count


def sharing() -> tuple[Callable[[], None], Callable[[], int]]:
    total = 0

    def add() -> None:
        nonlocal total
        total += 1

    def get() -> int:
        return total

    return add, get


def assert_shared(net: Net, x: Tensor) -> None:
    add, get = net.two
    before = get()
    add()
    assert get() == before + 1


def over_itself(make: Callable[[Net], Any]) -> Net:
    """A network with an attribute made from itself."""
    net = Net(lambda net, x: net.inner(x))
    net.inner = make(net)
    return net


def closure(net: Net) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        step(net)
        return net.fc(x)

    return inner


def nested_closure(net: Net) -> Callable[[Tensor], Tensor]:
    inner = closure(net)

    @functools.wraps(inner)
    def outer(x: Tensor) -> Tensor:
        return inner(x)

    return outer


def at_default(net: Net) -> Callable[..., None]:
    def inner(x: Tensor, net: Net = net, *, log: Log = Log()) -> None:  # noqa: B008
        step(net)
        log.add(x)

    return inner


def method_of_object(net: Net) -> Callable[[Tensor], Tensor]:
    class Runner:
        def __init__(self) -> None:
            self.net = net
            self.log = Log()

        def run(self, x: Tensor) -> Tensor:
            step(self.net)
            self.log.add(x)
            return self.net.fc(x)

    return Runner().run


def attributes(value: Any) -> Any:
    value.seen = []
    return value


OVER_ITSELF = {
    "lambda": lambda net: lambda x: (step(net), net.fc(x)),
    "closure": closure,
    "nested closure": nested_closure,
    "partial": lambda net: functools.partial(lambda net, x: step(net), net),
    "partial of a method": lambda net: functools.partial(Net.use_fc, net),
    "keyword of a partial": lambda net: functools.partial(lambda x, net: step(net), net=net),
    "default": at_default,
    "bound method": lambda net: net.run,
    "method of an object": method_of_object,
    "list of functions": lambda net: [closure(net)][0],
    "cached function": lambda net: functools.lru_cache(None)(closure(net)),
    "weak reference": lambda net: (lambda ref: lambda x: step(ref()))(weakref.ref(net)),
    "weak proxy": lambda net: (lambda ref: lambda x: step(ref))(weakref.proxy(net)),
}


def run(self: Net, x: Tensor) -> Tensor:
    step(self)
    return self.fc(x)


Net.run = run  # type: ignore[attr-defined]
Net.use_fc = run  # type: ignore[attr-defined]


def check(net: nn.Module, fail: bool = False, **inputs: Any) -> None:
    """Capture a network and compare everything it holds before and after."""
    if fail:
        net.fail = True  # type: ignore[assignment]
    before = snapshot(net)
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with pytest.raises(CaptureError, match="on purpose") if fail else contextlib.nullcontext():
        capture(net, **(inputs or {"input_shape": (4,)}))
    assert snapshot(net) == before
    assert random.getstate() == generators[0]
    assert (np.random.get_state()[1] == generators[1][1]).all()
    assert torch.equal(torch.get_rng_state(), generators[2])


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", OVER_ITSELF)
def test_functions_that_hold_the_network(name: str, fail: bool) -> None:
    net = over_itself(OVER_ITSELF[name])
    check(net, fail)
    assert net.calls == 0
    assert net.count == 0


HELD: dict[str, tuple[Callable[[], Any], Callable[[Net, Tensor], object]]] = {
    "object": (Log, lambda net, x: net.held.add(x)),
    "callable object": (Log, lambda net, x: net.held(x)),
    "method of an object": (lambda: Log().add, lambda net, x: net.held(x)),
    "object with slots": (Slotted, lambda net, x: net.held.seen.append(x)),
    "slot": (Slotted, lambda net, x: setattr(net.held, "last", x)),
    "objects in a list": (lambda: [Log()], lambda net, x: net.held[0].add(x)),
    "objects as keys": (lambda: {Log(): 1}, lambda net, x: next(iter(net.held)).add(x)),
    "list": (lambda: [1], lambda net, x: net.held.append(x)),
    "list that holds itself": (
        lambda: (lambda items: (items.append(items), items)[1])([1]),
        lambda net, x: net.held[1].append(x),
    ),
    "subclass of list": (lambda: ListOfMine("a"), lambda net, x: net.held.append(x)),
    "method of a list": (lambda: [1].append, lambda net, x: net.held(x)),
    "subclass of dict": (DictOfMine, lambda net, x: net.held.update(x=x)),
    "attribute of a subclass": (
        lambda: attributes(DictOfMine()), lambda net, x: net.held.seen.append(x)
    ),
    "Counter": (lambda: collections.Counter(a=1), lambda net, x: net.held.update("ab")),
    "defaultdict": (lambda: collections.defaultdict(list), lambda net, x: net.held[1].append(x)),
    "ordered": (collections.OrderedDict, lambda net, x: net.held.update(x=x)),
    "deque": (lambda: collections.deque([1], maxlen=1), lambda net, x: net.held.append(x)),
    "set": (lambda: {1}, lambda net, x: net.held.add(2)),
    "list in a tuple": (lambda: (1, [2]), lambda net, x: net.held[1].append(x)),
    "list in a named tuple": (lambda: Pair("a", []), lambda net, x: net.held.items.append(x)),
    "namespace": (lambda: types.SimpleNamespace(n=[]), lambda net, x: net.held.n.append(x)),
    "array": (lambda: np.zeros(3), lambda net, x: np.add(net.held, 1, out=net.held)),
    "array of objects": (
        lambda: np.array([Log(), None], dtype=object), lambda net, x: net.held[0].add(x)
    ),
    "tensor": (lambda: torch.zeros(3), lambda net, x: net.held.add_(1)),
    "tensor with features": (lambda: torch.zeros(4), lambda net, x: net.held.add_(x.mean(0))),
    "view of a tensor": (lambda: torch.zeros(3, 4)[1], lambda net, x: net.held.copy_(x.mean(0))),
    "data of a tensor": (lambda: torch.zeros(3), lambda net, x: net.held.data.add_(1)),
    "filled tensor": (lambda: torch.zeros(3), lambda net, x: net.held.__setitem__(0, 5)),
    "array of a tensor": (lambda: torch.zeros(3), lambda net, x: net.held.numpy().fill(2)),
    "parameter in a list": (
        lambda: [nn.Parameter(torch.zeros(4))], lambda net, x: net.held[0].data.add_(1)
    ),
    "module in a list": (lambda: [nn.BatchNorm1d(4)], lambda net, x: net.held[0].train()(x)),
    "optimizer": (
        lambda: torch.optim.SGD([nn.Parameter(torch.zeros(4))], 0.1),
        lambda net, x: net.held.param_groups[0].update(lr=1.0),
    ),
    "closure": (counting, lambda net, x: net.held(x)),
    "random generator": (lambda: random.Random(1), lambda net, x: net.held.random()),
    "NumPy generator": (lambda: np.random.default_rng(1), lambda net, x: net.held.random()),
    "old NumPy generator": (lambda: np.random.RandomState(1), lambda net, x: net.held.rand()),
    "torch generator": (
        lambda: torch.Generator().manual_seed(1),
        lambda net, x: torch.rand(3, generator=net.held),
    ),
    "seeded generator": (torch.Generator, lambda net, x: net.held.manual_seed(7)),
    "count": (lambda: itertools.count(), lambda net, x: next(net.held)),
    "cycle": (lambda: itertools.cycle([1, 2]), lambda net, x: next(net.held)),
    "iterator": (lambda: iter([1, 2]), lambda net, x: next(net.held)),
    "weak set": (weakref.WeakSet, lambda net, x: net.held.add(net)),
    "weak dictionary": (weakref.WeakKeyDictionary, lambda net, x: net.held.update({net: x})),
    "frozen by name": (lambda: {"a": {"b": [1]}}, lambda net, x: net.held["a"]["b"].append(x)),
}  # fmt: skip


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", HELD)
def test_what_a_network_holds(name: str, fail: bool) -> None:
    make, use = HELD[name]
    check(Net(use, held=make()), fail)


def test_functions_go_on_sharing_their_variables() -> None:
    check(Net(assert_shared, two=sharing()))


def test_marks_keep_their_identity() -> None:
    class Mark:
        pass

    mark = Mark()

    def use(net: Net, x: Tensor) -> None:
        assert net.held is mark
        assert net.kind is Log

    check(Net(use, held=mark, kind=Log))


def test_generators_of_python_are_refused() -> None:
    held = (n for n in range(3))
    net = Net(lambda net, x: next(net.held), held=held)
    with pytest.raises(CaptureError, match="Python generator"):
        capture(net, (4,))
    assert next(held) == 0


@pytest.mark.parametrize("fail", [False, True])
def test_attributes_of_classes(fail: bool) -> None:
    class Counted(Net):
        total = 0
        history: ClassVar[list[Any]] = []
        table = torch.zeros(4)

        def forward(self, x: Tensor) -> Tensor:
            type(self).total += 1
            Counted.total += 1
            Counted.added = True  # type: ignore[attr-defined]
            self.history.append(x)
            self.table.add_(1)
            return super().forward(x)

    check(Counted(lambda net, x: None), fail)
    assert (Counted.total, Counted.history, hasattr(Counted, "added")) == (0, [], False)
    assert bool((Counted.table == 0).all())


NUMBERS = [1]
TABLE: dict[str, Any] = {"one": 1}
FEATURES: Any = None


@functools.lru_cache
def remembered(size: int) -> Tensor:
    return torch.zeros(size)


@pytest.mark.parametrize("fail", [False, True])
def test_containers_of_classes_and_modules(fail: bool) -> None:
    class Noting(Net):
        history: ClassVar[list[Any]] = []
        table: ClassVar[dict[str, Any]] = {"deep": {"deeper": []}}
        counts: ClassVar[collections.Counter[str]] = collections.Counter(a=1)
        last: ClassVar[collections.deque[Any]] = collections.deque(maxlen=1)
        names: ClassVar[set[str]] = set()

        def forward(self, x: Tensor) -> Tensor:
            global FEATURES
            Noting.history.append(x)
            Noting.table["x"] = x
            Noting.table["deep"]["deeper"].append(1)
            Noting.counts["a"] += 1
            Noting.last.append(x)
            Noting.names.add("x")
            FEATURES = x
            NUMBERS.append(2)
            TABLE["list"] = [x]
            TABLE["two"] = 2
            return super().forward(x + remembered(4))

    check(Noting(lambda net, x: None), fail)
    assert Noting.history == [] and Noting.table == {"deep": {"deeper": []}}
    assert Noting.counts == {"a": 1} and not Noting.last and not Noting.names
    # Of a module, which others may change at the same time, what would break it goes.
    assert FEATURES is None and "list" not in TABLE
    assert remembered.cache_info().currsize == 0
    assert NUMBERS[0] == 1 and TABLE["one"] == 1


class Scaled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * 2


@pytest.mark.parametrize("inside", [False, True])
def test_cached_parametrisations(inside: bool) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
            parametrize.register_parametrization(self.fc, "weight", Scaled())

        def forward(self, x: Tensor) -> Tensor:
            with parametrize.cached() if inside else contextlib.nullcontext():
                return self.out(self.fc(self.fc(x)))

    net = Cached().eval()
    x = torch.randn(2, 4)
    expected = net(x)
    with parametrize.cached():
        first = net.fc.weight
        check(net)
        assert net.fc.weight is first
        assert torch.equal(net(x), expected)
        assert all(not tensor.is_meta for tensor in parametrize._cache.values())
    assert not capture(net, (4,)).skipped
    assert torch.equal(net(x), expected)


def test_hooks_stay_as_they_are() -> None:
    def use(net: Net, x: Tensor) -> None:
        net.handle.remove()
        net.fc.register_forward_hook(lambda *_: None)
        net.fc._forward_hooks.clear()

    net = Net(use)
    net.handle = net.fc.register_forward_hook(lambda *_: None)
    check(net)
    assert len(net.fc._forward_hooks) == 1


REGISTERED: dict[str, Callable[[Net, Tensor], object]] = {
    "forward hook": lambda net, x: net.fc.register_forward_hook(
        lambda *_: None, with_kwargs=True, always_call=True
    ),
    "hook before": lambda net, x: net.fc.register_forward_pre_hook(
        lambda *_: None, with_kwargs=True
    ),
    "backward hook": lambda net, x: net.fc.register_full_backward_hook(lambda *_: None),
    "hook before backward": lambda net, x: net.fc.register_full_backward_pre_hook(lambda *_: None),
    "buffer": lambda net, x: net.fc.register_buffer("late", torch.zeros(1), persistent=False),
    "parameter": lambda net, x: net.fc.register_parameter("late", nn.Parameter(torch.zeros(1))),
    "module": lambda net, x: net.fc.add_module("late", nn.ReLU()),
}


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("name", REGISTERED)
def test_what_the_forward_pass_registers(name: str, fail: bool) -> None:
    check(Net(REGISTERED[name]), fail)


def test_parameters_that_are_replaced_or_written() -> None:
    def use(net: Net, x: Tensor) -> None:
        net.fc.weight = nn.Parameter(torch.ones(4, 4))
        with torch.no_grad():
            net.out.weight.mul_(2)
            net.out.bias.copy_(torch.ones(3))
            net.out.weight[0].zero_()
        net.out.bias.data = torch.ones(3)
        net.out.weight.requires_grad_(False)
        net.extra = nn.Linear(2, 2)
        net.train()
        del net.use

    check(Net(use))


def test_cache_of_a_function_outside() -> None:
    @functools.lru_cache
    def positions(count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device)

    def use(net: Net, x: Tensor) -> None:
        positions(x.shape[-1], x.device)

    check(Net(use))
    kept = positions(4, torch.device("cpu"))
    assert kept.device.type == "cpu"
    assert kept.tolist() == [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    yield
    assert not parametrize._cache
    assert not parametrize._cache_enabled

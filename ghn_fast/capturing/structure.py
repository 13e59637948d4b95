"""Keys of networks: equal keys mean equal structure, so that a graph need not be captured again.

A key lists everything that the forward pass of a network can read: the classes of all modules and
their ``forward``, names, shapes and dtypes of parameters and buffers, which of them are shared,
values of small buffers and of integers among the inputs, and every other attribute, down to
functions by identity. Running statistics are left out: a prediction drops them, and no graph
depends on them. Keys are compared element by element, not by a hash alone. A network with an
attribute that cannot be listed (a tensor outside of parameters and buffers, an object of an unknown
class, a hook) has no key and is captured every time.

What a forward pass reads from outside of the network, a global variable say, no key can know.

The walk over the modules, which is most of the work, is compiled where the extension is there
(csrc/aten/structure.cpp); it lists the same things in a form of its own.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from ghn_fast.capturing.tensors import is_mask
from ghn_fast.ops.backend import extension, requested

# Listed by value together with their class, since 1 == 1.0 == True.
_PLAIN = frozenset((int, float, complex, bool, str, bytes, type(None), type(...), range))
_BY_VALUE = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_HOOKS = frozenset(
    name for name in vars(nn.Module()) if "hook" in name and not name.startswith("_is_")
)
# Concern loading and saving alone.
_IGNORED = frozenset(
    (
        "_parameters",
        "_buffers",
        "_modules",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
    )
)


# What BatchNorm layers lose with a prediction.
_STATISTICS = frozenset(("running_mean", "running_var", "num_batches_tracked"))
_TRACKING = "track_running_stats"
# Buffers of at most so many elements, and inputs, are listed by their values.
_FEW_ELEMENTS = 16
_MOST_ELEMENTS = 1 << 16


class _Layout(NamedTuple):
    """Places of a module's attributes: hooks, which must be empty, and all that is listed."""

    hooks: tuple[int, ...]
    others: tuple[int, ...]


# Modules of one class nearly always have the same attributes, in one order.
_layouts: dict[tuple[str, ...], _Layout] = {}


def _layout_of(names: tuple[str, ...]) -> _Layout:
    hooks = [i for i, name in enumerate(names) if name in _HOOKS and name not in _IGNORED]
    others = [i for i, name in enumerate(names) if name not in _HOOKS and name not in _IGNORED]
    return _Layout(tuple(hooks), tuple(others))


class _NoKey(Exception):
    """Something that a key cannot list."""


class Structure(NamedTuple):
    """What a network is made of.

    Attributes:
        key: Equal for networks of equal structure, and hashable. It keeps classes and functions
            alive, not the network.
        parameters: The parameters in the order of ``named_parameters()``, each once. Networks with
            equal keys have them at equal places, under equal names.
        norms: The BatchNorm layers in the order of ``named_modules()``, each once.
        complete: False if a module is held by an attribute; ``parameters`` and ``norms`` may then
            hold more than the network has registered, or have it in another order.
    """

    key: tuple[Any, ...]
    parameters: list[Tensor]
    norms: list[nn.Module]
    complete: bool


def structure_of(model: nn.Module, inputs: Any) -> Structure | None:
    """List a network together with the inputs that it is captured with.

    Args:
        model: The network.
        inputs: Shapes, tensors (their shape and dtype count) or plain values, nested.

    Returns:
        The structure, or ``None`` for a network that has no key.
    """
    if _global_forward_hooks or _global_forward_pre_hooks:
        return None
    compiled = extension.problem is None and requested() != "reference"
    lister = _CompiledLister() if compiled else _Lister()
    try:
        lister.add_module(model, registered=True)
        lister.value(inputs, tensors=True)
        key = lister.finish()
        hash(key)
    except Exception:  # what cannot be listed has no key; capture says what is wrong with it
        return None
    return Structure(key, lister.parameters, lister.norms, not lister.hidden)


class _Lister:
    """Collects the items of a key; a flat list in which every container says its length."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.parameters: list[Tensor] = []
        self.norms: list[nn.Module] = []
        self.hidden = False
        self.storages: dict[int, int] = {}
        # Objects that were listed, to their number; kept alive so that no identity comes again.
        self.seen: dict[int, tuple[int, Any]] = {}
        self.in_closure = False

    def is_new(self, item: Any) -> bool:
        """Number an object; one that was listed before is listed by its number."""
        number = self.seen.get(id(item))
        if number is not None:
            self.items.append(number[0])
            return False
        self.seen[id(item)] = (len(self.seen), item)
        return True

    def finish(self) -> tuple[Any, ...]:
        """The key."""
        return tuple(self.items)

    def add_module(self, module: nn.Module, *, registered: bool) -> None:
        """List a module, the network itself or a child; not registered if an attribute holds it."""
        self.hidden = self.hidden or not registered
        cls = type(module)
        items = self.items
        items.append(cls)
        if not self.is_new(module):
            return
        is_norm = isinstance(module, _BatchNorm)
        if is_norm:
            self.norms.append(module)
        items.append(cls.forward)
        attributes = vars(module)
        names = tuple(attributes)
        layout = _layouts.get(names)
        if layout is None:
            layout = _layouts.setdefault(names, _layout_of(names))
        values = list(attributes.values())
        for place in layout.hooks:
            if values[place]:
                raise _NoKey
        items.append(names)
        for place in layout.others:
            if not (is_norm and names[place] == _TRACKING):
                self.value(values[place])
        tensors: tuple[Mapping[str, Tensor | None], ...] = (module._parameters, module._buffers)
        for named in tensors:
            items.append(len(named))
            for name, tensor in named.items():
                items.append(name)
                if is_norm and name in _STATISTICS:
                    continue
                items.append(type(tensor))
                if tensor is not None and self.is_new(tensor):
                    items.append(tensor.shape)
                    items.append(tensor.dtype)
                    if named is module._parameters:
                        self.parameters.append(tensor)
                        self.memory(tensor)
                    elif tensor.numel() <= _FEW_ELEMENTS:
                        items.append(_values(tensor))
        items.append(len(module._modules))
        for name, child in module._modules.items():
            items.append(name)
            if child is None:
                items.append(None)
            else:
                self.add_module(child, registered=True)

    def memory(self, tensor: Tensor) -> None:
        """List where a parameter lies: it may share its memory with others."""
        if type(tensor) is not nn.Parameter or tensor.layout is not torch.strided:
            self.items.append(str(tensor.layout))
            return
        storage = tensor.untyped_storage()._cdata
        self.items.append(self.storages.setdefault(storage, len(self.storages)))
        self.items.append(tensor.storage_offset())
        self.items.append(_is_expanded(tensor))

    def value(self, value: Any, *, tensors: bool = False) -> None:
        kind = type(value)
        items = self.items
        items.append(kind)
        if kind in _PLAIN or isinstance(value, (*_BY_VALUE, type, Enum)):
            items.append(value)
        elif kind in (tuple, list, torch.Size):
            items.append(len(value))
            for item in value:
                self.value(item, tensors=tensors)
        elif kind in (dict, OrderedDict):
            items.append(len(value))
            for name, item in value.items():
                self.value(name)
                self.value(item, tensors=tensors)
        elif kind in (set, frozenset):
            if not all(type(item) in _PLAIN for item in value):
                raise _NoKey
            items.append(frozenset((type(item), item) for item in value))
        elif isinstance(value, nn.Module):
            if self.in_closure:  # the key would keep the network alive with the function
                raise _NoKey
            self.add_module(value, registered=False)
        elif tensors and isinstance(value, Tensor):
            items.append(value.shape)
            items.append(value.dtype)
            if not (value.is_floating_point() or value.is_complex()) or is_mask(value):
                if value.numel() > _MOST_ELEMENTS:
                    raise _NoKey
                items.append(_values(value))
        elif kind is types.FunctionType:
            self.function(value)
        elif kind is types.BuiltinFunctionType:
            if not isinstance(value.__self__, (types.ModuleType, type, type(None))):
                raise _NoKey
            items.append(value)
        elif kind is functools.partial:
            self.value(value.func)
            self.value(value.args)
            self.value(value.keywords)
        elif kind is types.MethodType:
            self.value(value.__func__)
            self.value(value.__self__)
        elif is_dataclass(value):
            self.value(vars(value) if hasattr(value, "__dict__") else None)
            if hasattr(kind, "__slots__"):
                raise _NoKey
        else:
            raise _NoKey

    def function(self, function: Callable[..., Any]) -> None:
        self.items.append(function)
        self.items.append(function.__code__)
        if not self.is_new(function):
            return
        before, self.in_closure = self.in_closure, True
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # an empty cell
                raise _NoKey from None
            self.value(content)
        self.value(function.__defaults__)
        self.value(function.__kwdefaults__)
        self.value(vars(function))
        self.in_closure = before


def _values(tensor: Tensor) -> bytes | None:
    """The values of a tensor; ``None`` where they cannot be read at once."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return None
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_quantized:
        return None
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _is_expanded(tensor: Tensor) -> bool:
    return any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))


class _CompiledLister(_Lister):
    """The same with the walk over the modules in C++."""

    def __init__(self) -> None:
        walk = extension.module.Walk(_HOOKS, _IGNORED, _BatchNorm, _NoKey)
        self.walk = walk
        self.items = walk.items
        self.parameters = walk.parameters
        self.norms = walk.norms
        self.in_closure = False

    @property
    def hidden(self) -> bool:  # type: ignore[override]
        return self.walk.hidden

    def is_new(self, item: Any) -> bool:
        return self.walk.is_new(item)

    def finish(self) -> tuple[Any, ...]:
        return self.walk.finish()

    def add_module(self, module: nn.Module, *, registered: bool) -> None:
        self.walk.add_module(module, registered, self.value)

"""A stand-in for a network: the same modules and the same code, with tensors of its own.

Running the forward pass of the stand-in touches nothing of the network: it has its own modules, its
own copies of what they hold, and its own tensors. Those of parameters and large buffers have shapes
but no values; those of other buffers have the values of the network's. Several threads may
therefore capture one network at the same time.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from ghn_fast.capturing.classes import ClassAttributes
from ghn_fast.capturing.copies import PLAIN, Copier
from ghn_fast.capturing.known import KnownValues, meta_like
from ghn_fast.capturing.module_types import describe_parameter
from ghn_fast.capturing.raw import RawParam
from ghn_fast.capturing.tensors import STAND_IN

_BASE = nn.Module()
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_WITH_KWARGS = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_NO_HOOKS = (
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Normalise by statistics, whose values no forward pass looks at.
_NORMS = "torch.nn.modules.batchnorm"
_OWN = frozenset(_BASE.__dict__) | {"_compiled_call_impl"}


class LazyParameterError(ValueError):
    """A parameter has no shape yet."""


class HooksNeededError(RuntimeError):
    """The forward pass registers a hook, and no hooks are called."""


class _NoHooks(OrderedDict[int, Any]):
    """The hooks of all modules that have none of their own."""

    def __setitem__(self, number: int, hook: Any) -> None:
        raise HooksNeededError("the forward pass registers a hook")


class Shadow:
    """The stand-in of a network.

    Args:
        model: The network; nothing of it changes.
        hooks: Whether to call hooks that the forward pass registers.

    Attributes:
        module: The stand-in, in evaluation mode.
        params: Name of each parameter to its description, in the network's order.
        by_id: ``id`` of each meta parameter to its description.
        aliases: Further names of shared parameters, to the first one.
        dtype: Type of the network's first floating-point tensor.
        known: The known values of the forward pass.
        copy: Copies what else a module holds.
        classes: What the network's classes hold.
        ignored_hooks: Whether the network has hooks that are not called.

    Raises:
        LazyParameterError: If a parameter has no shape yet.
        TypeError: If the network holds TorchScript, whose code cannot be followed.
    """

    def __init__(self, model: nn.Module, *, hooks: bool = False) -> None:
        # Hooks that are registered from now on belong to the forward pass.
        self._first_hook = RemovableHandle.next_id
        self._all_hooks = hooks
        self.params: dict[str, RawParam] = {}
        self.by_id: dict[int, RawParam] = {}
        self.aliases: dict[str, str] = {}
        self.dtype: torch.dtype | None = None
        self._first_name: dict[int, str] = {}
        self._metas: dict[str, Tensor] = {}
        self._tensors: dict[int, Tensor] = {}
        self._places: dict[Any, tuple[Tensor, str]] = {}
        self._statistics: dict[tuple[Any, ...], Tensor] = {}
        self._modules: dict[int, nn.Module] = {}
        self._no_hooks = _NoHooks()
        self.ignored_hooks = False
        self.known = KnownValues()
        self.copy = Copier(self.stand_in, self._outside)
        self.classes = ClassAttributes(self.copy)
        # Ids stay valid as long as what they stand for lives.
        self._kept: list[Any] = []
        self._name_parameters(model)
        self.module = self._shadow(model)

    def name_of(self, module: object) -> str | None:
        """Name in the network of a module of the stand-in; ``None`` for anything else."""
        for prefix, original in self._named:
            if self._modules[id(original)] is module:
                return prefix
        return None

    def stand_in(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the network: a meta tensor, or a copy with its values."""
        found = self._tensors.get(id(tensor))
        return self.known.copy(tensor) if found is None else found

    def parameter(self, tensor: Tensor) -> Tensor | None:
        """The meta tensor that stands for a parameter or statistics; ``None`` for others."""
        return self._tensors.get(id(tensor))

    def misses_hooks(self) -> bool:
        """Whether hooks were registered since, which are called only if ``hooks`` says so."""
        return not self._all_hooks and RemovableHandle.next_id > self._first_hook

    def close(self) -> None:
        """Take the stand-in apart, so that its memory is free at once (its parts form cycles)."""
        for module in self._modules.values():
            module.__dict__.clear()
        self.__dict__.clear()

    def _name_parameters(self, model: nn.Module) -> None:
        self._named: list[tuple[str, nn.Module]] = []
        stack: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", model, ())]
        while stack:
            prefix, module, above = stack.pop()
            self._named.append((prefix, module))
            dot = f"{prefix}." if prefix else ""
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    self._name_parameter(dot + attribute, module, attribute, parameter)
            if module._modules:
                above = (*above, id(module))
                children = [
                    (dot + name, child, above)
                    for name, child in module._modules.items()
                    if child is not None and id(child) not in above
                ]
                stack.extend(reversed(children))

    def _name_parameter(
        self, name: str, module: nn.Module, attribute: str, parameter: Tensor
    ) -> None:
        first = self._first_name.setdefault(id(parameter), name)
        if first != name:
            self.aliases[name] = first
            return
        if is_lazy(parameter):
            raise LazyParameterError(
                f"model: parameter '{name}' has no shape yet; run the network once before"
            )
        shape = tuple(parameter.shape)
        is_plain = (
            type(parameter) is nn.Parameter
            and parameter.layout is torch.strided
            and parameter.is_contiguous()
            and parameter.is_floating_point()
        )
        first = self._place(name, parameter)
        if first != name:
            self.aliases[name] = first
            self._tensors[id(parameter)] = self._metas[first]
            self._kept.append(parameter)
            return
        if is_plain:
            dtype = parameter.dtype
            meta = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        else:
            meta = _parameter_like(parameter)
        if self.dtype is None and meta.is_floating_point():
            self.dtype = parameter.dtype
        self._tensors[id(parameter)] = self._metas[name] = meta
        self._kept.append(parameter)
        reason = None if is_plain else _obstacle(parameter)
        if reason is None:
            description = describe_parameter(module, attribute, name, shape)
        else:
            description = RawParam(name, shape, None, reason=reason)
        self.params[name] = self.by_id[id(meta)] = description

    def _place(self, name: str, parameter: Tensor) -> str:
        """Name of the first parameter that is the same view of the same memory."""
        if type(parameter) is not nn.Parameter or parameter.layout is not torch.strided:
            return name
        start = parameter.data_ptr()
        if start == 0:
            return name
        found = self._places.get(start)
        if found is None:  # nearly always, so that views need not be described
            self._places[start] = (parameter, name)
            return name
        if _is_same_view(parameter, found[0]):
            return found[1]
        # Several views may start at one address.
        view = (start, parameter.shape, parameter.stride(), parameter.dtype, parameter.device)
        return self._places.setdefault(view, (parameter, name))[1]

    def _shadow(self, module: nn.Module) -> nn.Module:
        found = self._modules.get(id(module))
        if found is not None:
            return found
        original = _uncompiled(module)
        if original is not module:
            found = self._modules[id(module)] = self._shadow(original)
            return found
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"model: got {type(module).__name__} of TorchScript, needs modules in Python"
            )
        parametrised = "parametrizations" in module._modules
        kind = _uncached_class(module) if parametrised else type(module)
        shadow: nn.Module = object.__new__(kind)
        self._modules[id(module)] = shadow
        self._kept.append(module)
        state = dict(module.__dict__)
        for key in _own_names(tuple(state)):
            value = state[key]
            if not (
                type(value) in PLAIN
                or (type(value) is tuple and PLAIN.issuperset(map(type, value)))
            ):
                state[key] = self.copy(value)
        for key, value in self.classes.of(type(module)):
            state.setdefault(key, value)
        state["_parameters"] = {
            key: None if value is None else self._tensors[id(value)]
            for key, value in module._parameters.items()
        }
        state["_buffers"] = self._buffers(module) if module._buffers else {}
        state["_non_persistent_buffers_set"] = set(state["_non_persistent_buffers_set"])
        state["_modules"] = {
            key: None if child is None else self._shadow(child)
            for key, child in module._modules.items()
        }
        state["training"] = False
        object.__setattr__(shadow, "__dict__", state)
        self._take_hooks(module, shadow)
        return shadow

    def _buffers(self, module: nn.Module) -> dict[str, Tensor | None]:
        buffers: dict[str, Tensor | None] = {}
        is_norm = type(module).__module__ == _NORMS
        for key, value in module._buffers.items():
            if value is None:
                buffers[key] = None
                continue
            found = self._tensors.get(id(value))
            if found is None and is_norm:
                # One for all of a shape: nothing is read from statistics.
                found = self._statistics.get((value.shape, value.dtype))
                if found is None:
                    found = meta_like(value)
                    self._statistics[value.shape, value.dtype] = found
                self._tensors[id(value)] = found
                self._kept.append(value)
            buffers[key] = self.known.copy(value) if found is None else found
        return buffers

    def _take_hooks(self, module: nn.Module, shadow: nn.Module) -> None:
        """Keep the hooks that belong to the network; with none of them, ``forward`` is called.

        Others are observers that belong to their user: they are not called. Hooks that the forward
        pass itself registers are.
        """
        state = shadow.__dict__
        kept = False
        for key in _HOOKS:
            hooks = state[key]
            state[key] = self._no_hooks
            if hooks:
                own = OrderedDict(
                    (number, self.copy(hook))
                    for number, hook in hooks.items()
                    if self._belongs(hook)
                )
                self.ignored_hooks = self.ignored_hooks or len(own) < len(hooks)
                if own:
                    state[key], kept = own, True
        for key in _NO_HOOKS:
            state[key] = self._no_hooks
        if self._all_hooks:
            for key in (*_HOOKS, *_WITH_KWARGS):
                state[key] = OrderedDict(state[key])
            for key in _NO_HOOKS:
                state[key] = OrderedDict()
            state["_compiled_call_impl"] = partial(_call, shadow, self._first_hook)
        else:
            state["_compiled_call_impl"] = partial(_call, shadow, None) if kept else shadow.forward
        state[STAND_IN] = True

    def _belongs(self, hook: Any) -> bool:
        """Whether a hook is part of the network.

        It is if ``torch.nn.utils`` made it (weight and spectral norm, pruning), if it is a method
        of a module or of an object that the network holds, or if it comes from the installed
        library that the network's classes come from.
        """
        name = getattr(hook, "__module__", None) or type(hook).__module__
        if name.startswith("torch.nn.utils"):
            return True
        while isinstance(hook, partial):
            hook = hook.func
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, nn.Module):
            return any(owner is module for _, module in self._named)
        if owner is not None and self.copy.knows(owner):
            return True
        root = name.partition(".")[0]
        roots = {type(module).__module__.partition(".")[0] for _, module in self._named} - {"torch"}
        return root in roots and _is_installed(root)

    def _outside(self, module: nn.Module) -> nn.Module:
        """Stand-in of a module that is held by an ordinary attribute."""
        if id(module) not in self._modules:
            for part in module.modules():
                for parameter in part._parameters.values():
                    if parameter is not None and id(parameter) not in self._tensors:
                        self._tensors[id(parameter)] = _parameter_like(parameter)
                        self._kept.append(parameter)
        return self._shadow(module)


def _call(module: nn.Module, first_hook: int | None, /, *args: Any, **kwargs: Any) -> Any:
    """Call a module with its own hooks, and those for all modules from ``first_hook`` on."""
    for hook in _from(first_hook, _global_forward_pre_hooks):
        changed = hook(module, args)
        if changed is not None:
            args = changed if isinstance(changed, tuple) else (changed,)
    for number, hook in list(module._forward_pre_hooks.items()):
        if number in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            if changed is not None:
                args, kwargs = changed
        else:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    result = module.forward(*args, **kwargs)
    for hook in _from(first_hook, _global_forward_hooks):
        changed = hook(module, args, result)
        result = result if changed is None else changed
    for number, hook in list(module._forward_hooks.items()):
        if number in module._forward_hooks_with_kwargs:
            changed = hook(module, args, kwargs, result)
        else:
            changed = hook(module, args, result)
        result = result if changed is None else changed
    return result


def _is_same_view(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors that start at one address have the same elements."""
    return (one.shape, one.stride(), one.dtype, one.device) == (
        other.shape,
        other.stride(),
        other.dtype,
        other.device,
    )


def _from(first: int | None, hooks: Mapping[int, Any]) -> list[Any]:
    if first is None:
        return []
    return [hook for number, hook in list(hooks.items()) if number >= first]


@lru_cache(maxsize=4096)
def _own_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of a module's attributes, those that not every module has; a class has few orders of them."""
    return tuple(name for name in names if name not in _OWN)


@lru_cache(maxsize=256)
def _is_installed(root: str) -> bool:
    """Whether a package was installed, wherever to, rather than lies where its user works."""
    path = getattr(sys.modules.get(root), "__file__", None)
    if path is None:
        return False
    folder = Path(path).parent
    if Path(path).stem == "__init__":
        folder = folder.parent
    if folder.name in ("site-packages", "dist-packages"):
        return True
    if any(folder.glob(f"{root}-*.dist-info")):
        return True
    try:  # an editable install
        distribution(root)
    except PackageNotFoundError:
        return False
    return True


def _uncached_class(module: nn.Module) -> type[nn.Module]:
    """A class whose parametrised tensors are not kept in the cache of the network's own.

    ``torch.nn.utils.parametrize.cached`` files them under the module that was parametrised first.
    """

    def tensor(name: str) -> property:
        def get(self: Any) -> Tensor:
            kept = self.__dict__.setdefault("_parametrized", {})
            if not parametrize._cache_enabled:
                return self.parametrizations[name]()
            if name not in kept:
                kept[name] = self.parametrizations[name]()
            return kept[name]

        return property(get, lambda self, value: self.parametrizations[name].right_inverse(value))

    cls: Any = type(module)
    names = list(module._modules["parametrizations"]._modules)  # type: ignore[union-attr]
    return type(cls.__name__, (cls,), {name: tensor(name) for name in names})


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module within the wrapper that ``torch.compile`` returns."""
    if type(module).__name__ == "OptimizedModule":
        return module._modules.get("_orig_mod") or module
    return module


def _parameter_like(parameter: Tensor) -> Tensor:
    meta = meta_like(parameter)
    if meta.is_floating_point() or meta.is_complex():
        meta.requires_grad = True
    return meta


def _obstacle(parameter: Tensor) -> str | None:
    """Why a parameter cannot be predicted, whatever it is used for."""
    if parameter.layout is not torch.strided:
        return "it is sparse, and predicted values are dense"
    if parameter.is_complex():
        return "it is complex, and predicted values are real"
    if not parameter.is_floating_point():
        return f"it is of type {str(parameter.dtype).removeprefix('torch.')}, not floating-point"
    if type(parameter).__module__.startswith("torch.distributed"):
        return f"it is a {type(parameter).__name__}, of which this process holds a part"
    return None

"""A stand-in for a network: the same modules and the same code, with meta tensors for its tensors.

Running the forward pass of the stand-in touches nothing of the network: it has its own modules, its
own containers and its own tensors, which have shapes but no values. Several threads may therefore
capture one network at the same time.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ghn_fast.capturing.module_types import describe_parameter
from ghn_fast.capturing.raw import RawParam

_BASE = nn.Module()
_OWN = frozenset(_BASE.__dict__) | {"_compiled_call_impl"}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_NO_HOOKS = (
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_PLAIN = frozenset(
    (int, float, str, bool, bytes, complex, type(None), type, torch.dtype, torch.device)
)
_SEQUENCES = frozenset((list, tuple, set, frozenset, deque))
_MAPPINGS = frozenset((dict, OrderedDict))


class LazyParameterError(ValueError):
    """A parameter has no shape yet."""


class Shadow:
    """The stand-in of a network.

    Args:
        model: The network; nothing of it changes.

    Attributes:
        module: The stand-in, in evaluation mode.
        params: Name of each parameter to its description, in the network's order.
        by_id: ``id`` of each meta parameter to its description.
        aliases: Further names of shared parameters, to the first one.
        dtype: Type of the network's first floating-point tensor.

    Raises:
        LazyParameterError: If a parameter has no shape yet.
        TypeError: If the network holds TorchScript, whose code cannot be followed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.params: dict[str, RawParam] = {}
        self.by_id: dict[int, RawParam] = {}
        self.aliases: dict[str, str] = {}
        self.dtype: torch.dtype | None = None
        self._first_name: dict[int, str] = {}
        self._tensors: dict[int, Tensor] = {}
        self._modules: dict[int, nn.Module] = {}
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
        """The meta tensor that stands for a tensor of the network, always the same one."""
        found = self._tensors.get(id(tensor))
        if found is None:
            found = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            self._tensors[id(tensor)] = found
            self._kept.append(tensor)
        return found

    def close(self) -> None:
        """Take the stand-in apart, so that its memory is free at once (its parts form cycles)."""
        for module in self._modules.values():
            module.__dict__.clear()

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
        floating = parameter.is_floating_point()
        meta = torch.empty_strided(
            shape, parameter.stride(), dtype=parameter.dtype, device="meta", requires_grad=floating
        )
        if floating and self.dtype is None:
            self.dtype = parameter.dtype
        self._tensors[id(parameter)] = meta
        self._kept.append(parameter)
        description = describe_parameter(module, attribute, name, shape)
        self.params[name] = self.by_id[id(meta)] = description

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
        shadow: nn.Module = object.__new__(type(module))
        self._modules[id(module)] = shadow
        self._kept.append(module)
        state = dict(module.__dict__)
        for key in state.keys() - _OWN:
            value = state[key]
            if type(value) not in _PLAIN:
                state[key] = self._remap(value)
        state["_parameters"] = {
            key: None if value is None else self._tensors[id(value)]
            for key, value in module._parameters.items()
        }
        state["_buffers"] = {
            key: None if value is None else self.stand_in(value)
            for key, value in module._buffers.items()
        }
        state["_modules"] = {
            key: None if child is None else self._shadow(child)
            for key, child in module._modules.items()
        }
        state["training"] = False
        state["_compiled_call_impl"] = None
        object.__setattr__(shadow, "__dict__", state)
        self._take_hooks(module, shadow)
        return shadow

    def _take_hooks(self, module: nn.Module, shadow: nn.Module) -> None:
        """Keep hooks that compute a layer's weight; with none of them, call ``forward`` directly.

        All other hooks are observers that belong to their user: they are not called.
        """
        state = shadow.__dict__
        kept = False
        for key in _HOOKS:
            hooks = state[key]
            if hooks:
                hooks = OrderedDict((k, v) for k, v in hooks.items() if _computes_weight(v))
                kept = kept or bool(hooks)
                state[key] = hooks
        for key in _NO_HOOKS:
            if state.get(key):
                state[key] = OrderedDict()
        if not kept:
            state["_compiled_call_impl"] = shadow.forward

    def _remap(self, value: Any) -> Any:
        """A value that a module holds, with stand-ins for modules and tensors within."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, Tensor):
            return value if value.is_meta and not value.requires_grad else self.stand_in(value)
        if isinstance(value, nn.Module):
            return self._outside(value)
        if kind is tuple and all(type(item) in _PLAIN for item in value):
            return value
        if kind in _SEQUENCES:
            return kind(self._remap(item) for item in value)
        if kind in _MAPPINGS:
            return kind((key, self._remap(item)) for key, item in value.items())
        if kind is defaultdict:
            items = {key: self._remap(item) for key, item in value.items()}
            return defaultdict(value.default_factory, items)
        if kind is types.MethodType and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self._outside(value.__self__))
        if kind is functools.partial:
            args = [self._remap(item) for item in value.args]
            keywords = {key: self._remap(item) for key, item in value.keywords.items()}
            return functools.partial(self._remap(value.func), *args, **keywords)
        # A compiled function runs as it was written.
        return getattr(value, "_torchdynamo_orig_callable", value) if callable(value) else value

    def _outside(self, module: nn.Module) -> nn.Module:
        """Stand-in of a module that is held by an ordinary attribute."""
        if id(module) not in self._modules:
            for part in module.modules():
                for parameter in part._parameters.values():
                    if parameter is not None and id(parameter) not in self._tensors:
                        meta = self.stand_in(parameter)
                        meta.requires_grad_(parameter.is_floating_point())
        return self._shadow(module)


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module within the wrapper that ``torch.compile`` returns."""
    if type(module).__name__ == "OptimizedModule":
        return module._modules.get("_orig_mod") or module
    return module


def _computes_weight(hook: Any) -> bool:
    """Whether a hook is one of ``torch.nn.utils`` (weight and spectral norm, pruning)."""
    return type(hook).__module__.startswith("torch.nn.utils")

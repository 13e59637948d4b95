"""Recording the operations of a forward pass on meta tensors.

Autograd records most operations by itself. Those that networks are made of (convolutions, linear
layers, normalisation, activations) would spend nearly all of the time of a capture in PyTorch's
shape functions; :mod:`ghn_fast.capturing.op_shapes` works out their shapes and writes their record
down directly. Both kinds of records mix freely: an output of a rule is an ordinary meta tensor,
whose autograd node stands for the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map

from ghn_fast.capturing.raw import RawInput, RawOp, RawParam

Rule = Callable[..., Any]
"""Takes the recorder and the arguments of an operation; ``None`` leaves it to autograd."""


class Step(NamedTuple):
    """An operation that a rule wrote down; see :class:`ghn_fast.capturing.raw.RawOp`.

    ``sources`` are edges: autograd nodes, meta parameters, other steps' keys, or ``None``.
    """

    kind: str
    sources: Sequence[Any]
    kernel: tuple[int, int] | None = None
    keepdim: bool | None = None
    detail: Any = None


class Key:
    """An operation within a step, that has no tensor of its own."""

    __slots__ = ()


class Recorder(TorchFunctionMode):
    """Runs operations on meta tensors only, and records them.

    Tensors that are not meta are replaced by meta tensors, creation and moves of tensors are
    redirected to the meta device.

    Args:
        rules: Rule of each function, by the function.
        stand_in: Meta tensor for a real one.
        always_grad: Whether operations are recorded under ``torch.no_grad()``, too.
        constants: Whether tensors that the forward pass creates have values, until they meet
            others.
    """

    def __init__(
        self,
        rules: Mapping[Any, Rule],
        stand_in: Callable[[Tensor], Tensor],
        *,
        always_grad: bool = False,
        constants: bool = False,
    ) -> None:
        super().__init__()
        self._constants: dict[int, Tensor] | None = {} if constants else None
        self._always_grad = always_grad
        self.steps: dict[Any, Step] = {}
        self._rules = rules
        self._stand_in = stand_in

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if self._constants is not None and self._is_constant(func, args, kwargs or {}):
            device = {"device": "cpu"} if func in _constructors() else {}
            result = func(*args, **{**(kwargs or {}), **device})
            self._constants.update((id(t), t) for t in tensors_in(result))
            return result
        args = self._all_meta(args)
        if kwargs:
            kwargs = self._all_meta(kwargs)
        rule = self._rules.get(func)
        if rule is not None and torch.is_grad_enabled():
            try:
                result = rule(self, *args, **kwargs) if kwargs else rule(self, *args)
            except TypeError:
                # Arguments that the rule does not know; PyTorch takes them, or explains.
                result = None
            if result is not None:
                return result
        redirect = _REDIRECTED.get(func)
        if redirect is not None and (self._always_grad or redirect is not _keep_grad):
            return redirect(args, kwargs or {})
        if kwargs:
            if "device" in kwargs:
                kwargs = {**kwargs, "device": "meta"}
            if "generator" in kwargs:
                kwargs = {**kwargs, "generator": None}
        if func in _constructors():
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **kwargs) if kwargs else func(*args)

    def _is_constant(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether an operation creates a constant, or reads constants only."""
        constants = self._constants or {}
        read = list(tensors_in([*args, *kwargs.values()]))
        if not read:
            return func in _constructors()
        return all(id(tensor) in constants for tensor in read)

    def _all_meta(self, values: Any) -> Any:
        items = values.values() if isinstance(values, dict) else values
        return values if all(map(_is_meta, items)) else tree_map(self._one_meta, values)

    def _one_meta(self, value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not value.is_meta
        return self._stand_in(value) if is_real else value

    def record(
        self,
        kind: str,
        sources: Sequence[Any],
        shape: Sequence[int],
        like: Tensor,
        *,
        kernel: tuple[int, int] | None = None,
        keepdim: bool | None = None,
        detail: Any = None,
        strides: Sequence[int] | None = None,
    ) -> Tensor:
        """Write an operation down and return its output, of the type of ``like``.

        The output is contiguous, or has the given strides (without gaps and overlaps).
        """
        if strides is None:
            leaf = torch.empty(shape, dtype=like.dtype, device="meta", requires_grad=True)
        else:
            leaf = torch.empty_strided(
                shape, strides, dtype=like.dtype, device="meta", requires_grad=True
            )
        # Not a leaf, so that operations in place may follow.
        output = leaf.clone()
        self.steps[output.grad_fn] = Step(kind, sources, kernel, keepdim, detail)
        return output

    def record_in_place(
        self, kind: str, sources: Sequence[Any], tensor: Tensor, *, detail: Any = None
    ) -> Tensor:
        """Write an operation down that changes ``tensor``, which is not a view."""
        torch.relu_(tensor)
        self.steps[tensor.grad_fn] = Step(kind, sources, detail=detail)
        return tensor

    def step(self, kind: str, *sources: Any, detail: Any = None) -> Key:
        """Write an operation down that has no output of its own; returns its key."""
        key = Key()
        self.steps[key] = Step(kind, sources, detail=detail)
        return key

    def read(
        self,
        outputs: Sequence[Tensor],
        params: Mapping[int, RawParam],
        inputs: Mapping[Any, RawInput],
    ) -> tuple[list[Any], list[RawOp]]:
        """The operations behind output tensors.

        Args:
            outputs: Tensors of the forward pass.
            params: Description of each meta parameter, by its ``id``.
            inputs: Autograd node of each tensor of the input.

        Returns:
            The operation of each output, and all operations.
        """
        ops: dict[Any, Any] = dict(inputs)
        found: list[tuple[RawOp, Sequence[Any]]] = []
        steps = self.steps
        stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
        while stack:
            node = stack.pop()
            if node in ops:
                continue
            step = steps.get(node)
            if step is not None:
                op = RawOp(step.kind, kernel=step.kernel, keepdim=step.keepdim)
                op.detail = step.detail
                sources = step.sources
            else:
                op = _autograd_op(node)
                sources = [_source(reader) for reader, _ in node.next_functions]
            ops[node] = op
            found.append((op, sources))
            stack.extend(s for s in sources if s is not None and not isinstance(s, Tensor))
        for op, sources in found:
            op.inputs = [
                None if s is None else params.get(id(s)) if isinstance(s, Tensor) else ops[s]
                for s in sources
            ]
        roots = [ops[output.grad_fn] for output in outputs if output.grad_fn is not None]
        return roots, [op for op, _ in found]


def _is_meta(value: Any) -> bool:
    """Whether a value certainly holds no real tensor."""
    kind = type(value)
    if kind in _PLAIN:
        return True
    if isinstance(value, Tensor):
        return value.is_meta
    return kind in (tuple, list) and all(map(_is_meta, value))


def edge(tensor: Any) -> Any:
    """What an operation that reads ``tensor`` points to (``None`` for what has no gradient)."""
    if isinstance(tensor, Tensor) and tensor.requires_grad:
        node = tensor.grad_fn
        return tensor if node is None else node
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def _source(reader: Any) -> Any:
    return getattr(reader, "variable", reader)


def _autograd_op(node: Any) -> RawOp:
    name = type(node).__name__
    kind = name.partition("Backward")[0]
    kernel = getattr(node, "_saved_kernel_size", None) if "Pool2D" in name else None
    op = RawOp(
        kind,
        kernel=None if kernel is None else (int(kernel[0]), int(kernel[-1])),
        keepdim=getattr(node, "_saved_keepdim", None) if kind == "Mean" else None,
    )
    op.detail = node
    return op


def _constructors() -> frozenset[Any]:
    global _CONSTRUCTORS
    if _CONSTRUCTORS is None:
        _CONSTRUCTORS = frozenset(_device_constructors())
    return _CONSTRUCTORS


_CONSTRUCTORS: frozenset[Any] | None = None
_PLAIN = frozenset(
    (int, float, bool, str, type(None), torch.dtype, torch.Size, torch.device, slice, type(...))
)


def _to(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    def on_meta(value: Any) -> Any:
        is_device = isinstance(value, (torch.device, str)) or type(value) is int
        return torch.device("meta") if is_device else value

    tensor, *rest = args
    if tensor.is_meta:
        rest = [on_meta(value) for value in rest]
        kwargs = {key: on_meta(v) if key == "device" else v for key, v in kwargs.items()}
    return tensor.to(*rest, **kwargs)


def _same(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _through(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Detached features flow on: gradients stop there, values do not."""
    return args[0].view_as(args[0])


def _keep_grad(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    return None


_REDIRECTED: dict[Any, Callable[[Sequence[Any], dict[str, Any]], Any]] = {
    torch.Tensor.to: _to,
    torch.Tensor.cuda: _same,
    torch.Tensor.cpu: _same,
    torch.Tensor.detach: _through,
    torch.detach: _through,
    torch._C._set_grad_enabled: _keep_grad,
}

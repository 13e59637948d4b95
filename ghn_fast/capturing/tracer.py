"""Recording the operations of a forward pass on meta tensors.

Autograd records most operations by itself. Those that networks are made of (convolutions, linear
layers, normalisation, activations) would spend nearly all of the time of a capture in PyTorch's
shape functions; :mod:`ghn_fast.capturing.op_shapes` works out their shapes and writes their record
down directly. Both kinds of records mix freely: an output of a rule is an ordinary meta tensor,
whose autograd node stands for the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ghn_fast.capturing.known import KnownValues, constructors, meta_like
from ghn_fast.capturing.raw import RawInput, RawOp, RawParam
from ghn_fast.capturing.tensors import tensors_in

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
    """Runs operations that features or parameters take part in on meta tensors, and records them.

    Everything else is computed (:mod:`ghn_fast.capturing.known`). Operations are recorded whatever
    the forward pass says about gradients.

    Args:
        rules: Rule of each function, by the function.
        stand_in: Tensor that stands for one of the network's: meta for a parameter, or ``None``.
        specials: What is done in the place of a function (:mod:`ghn_fast.capturing.specials`).
        recover: What is done about one that fails (:mod:`ghn_fast.capturing.recover`).
        known: The known values, if there are some before the pass begins.
        keep_results: Whether to remember all results, for a pass that does not come to its end.

    Attributes:
        assumed: What had to be assumed about values of features, in words.
    """

    def __init__(
        self,
        rules: Mapping[Any, Rule],
        stand_in: Callable[[Tensor], Tensor | None],
        *,
        specials: Mapping[Any, Callable[..., Any]],
        recover: Callable[..., Any],
        known: KnownValues | None = None,
        keep_results: bool = False,
    ) -> None:
        super().__init__()
        self.steps: dict[Any, Step] = {}
        self.known = KnownValues() if known is None else known
        self.assumed: dict[str, None] = {}
        self.results: list[Tensor] | None = [] if keep_results else None
        self._choices: list[Tensor] = []
        self._rules = rules
        self._specials = specials
        self._recover = recover
        self._stand_in = stand_in
        # What functions of autograd that run without gradients compute inside: see _hide.
        self._hidden: dict[int, tuple[Tensor, Any]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if torch.is_grad_enabled():
            rule = self._rules.get(func)
            if rule is not None and self.results is None and not self._hidden:
                # The way of nearly all operations of a plain network.
                kinds = _kinds(args) | (_kinds(kwargs.values()) if kwargs else 0)
                if kinds == _META:
                    result = self._by_rule(rule, args, kwargs)
                    if result is not None:
                        return result
            result = self.run(func, args, kwargs)
        else:
            # Inference mode, or within a function of autograd (a checkpoint, for instance).
            with torch.inference_mode(False), torch.enable_grad():
                result = self.run(func, args, kwargs)
            self._hide(result)
        if self.results is not None:
            self._keep(result, [*args, *(kwargs or {}).values()])
        return result

    def _keep(self, result: Any, given: Sequence[Any]) -> None:
        """Remember a result, and features that it was chosen by: indices, conditions."""
        results = list(tensors_in(result))
        self.results.extend(t for t in results if t.grad_fn is not None)  # type: ignore[union-attr]
        if any(t.is_meta and not t.is_floating_point() and not t.is_complex() for t in results):
            self._choices.extend(t for t in tensors_in(given) if t.grad_fn is not None)

    def choices_before(
        self, outputs: Sequence[Tensor], params: Mapping[int, RawParam]
    ) -> list[Tensor]:
        """Features that decide what is chosen, and that outputs do not depend on otherwise."""
        reached: set[int] = set()
        for tensor in outputs if self._choices else ():
            reached |= self.parameters_behind(tensor, params)
        found = []
        for tensor in self._choices:
            new = self.parameters_behind(tensor, params) - reached
            if new:
                reached |= new
                found.append(tensor)
        return found

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        """Run a function on whatever mixture of meta and real tensors."""
        kinds = _kinds(args)
        if kwargs:
            kinds |= _kinds(kwargs.values())
            if kwargs.get("out") is not None and kinds != _REAL:
                return self._into(func, args, kwargs)
        if kinds != _META:
            if kinds == 0:
                return self._without_tensors(func, args, kwargs or {})
            args, kwargs = _mapped(self._own, args, kwargs)
            kinds = _kinds(args) | _kinds(kwargs.values())
            if kinds == _REAL:
                return self.known.run(func, args, kwargs)
        if self._hidden:
            args, kwargs = _mapped(self._shown, args, kwargs)
        special = self._specials.get(func)
        if special is not None:
            result = special(self, func, args, kwargs or {})
            if result is not NotImplemented:
                return result
        if kinds == _META:
            return self.on_meta(func, args, kwargs)
        if _is_in_place(func):
            first = args[0]
            if isinstance(first, Tensor) and not first.is_meta:
                args = (self.known.lose(first), *args[1:])
        if func in _ARITHMETIC and len(args) == 2:
            args = _with_number(func, *args)
        given = args, kwargs or {}
        meta_args, meta_kwargs = _mapped(_as_meta, *given)
        return self.on_meta(func, meta_args, meta_kwargs, given)

    def on_meta(
        self, func: Any, args: Sequence[Any], kwargs: dict[str, Any] | None, given: Any = None
    ) -> Any:
        """Run a function on meta tensors alone; ``given`` are its arguments with known values."""
        rule = self._rules.get(func)
        result = None if rule is None else self._by_rule(rule, args, kwargs)
        if result is not None:
            return result
        if kwargs:
            if "device" in kwargs:
                kwargs = {**kwargs, "device": "meta"}
            if "generator" in kwargs:
                kwargs = {**kwargs, "generator": None}
        try:
            return func(*args, **kwargs) if kwargs else func(*args)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError) as error:
            if "leaf Variable that requires grad" in str(error):
                return args[0]  # a parameter that changes in place goes on being the parameter
            given = (args, kwargs or {}) if given is None else given
            return self._recover(self, func, args, kwargs or {}, given, error)

    def _by_rule(self, rule: Rule, args: Sequence[Any], kwargs: dict[str, Any] | None) -> Any:
        if torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        try:
            return rule(self, *args, **kwargs) if kwargs else rule(self, *args)
        except TypeError:
            # Arguments that the rule does not know; PyTorch takes them, or explains.
            return None

    def _without_tensors(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func in constructors():
            return self.known.construct(func, args, kwargs)
        if func is torch._C._set_grad_enabled:
            return None
        return self.known.run(func, args, kwargs)

    def _into(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Autograd records nothing that is computed into a given tensor; copies it does."""
        out = kwargs["out"]
        result = self.run(func, args, {key: v for key, v in kwargs.items() if key != "out"})
        for target, source in zip(tensors_in(out), tensors_in(result), strict=True):
            self.run(torch.Tensor.copy_, (target, source), None)
        return out

    def _own(self, value: Any) -> Any:
        """What stands for a real tensor in this pass."""
        if type(value) is slice:
            return slice(*map(self._own, (value.start, value.stop, value.step)))
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        if self.known.owns(value):
            return self.known.current(value)
        found = self._stand_in(value)
        return self.known.current(self.known.copy(value)) if found is None else found

    def final(self, output: Any) -> list[Tensor]:
        """The tensors of an output that depend on parameters."""
        tensors = [self._shown(self._own(tensor)) for tensor in tensors_in(output)]
        return [tensor for tensor in tensors if tensor.grad_fn is not None]

    def _hide(self, result: Any) -> None:
        """Remember what a function of autograd computes, which autograd itself does not record.

        The record of what happens inside such a function ends with the function: its output gets
        another record, or none. A parameter that is used inside is found through this one.
        """
        for tensor in tensors_in(result):
            if tensor.is_meta and tensor.grad_fn is not None:
                self._hidden[id(tensor)] = (tensor, tensor.grad_fn)

    def _shown(self, value: Any) -> Any:
        """A result from inside a function of autograd that got no record outside."""
        if isinstance(value, Tensor) and value.grad_fn is None and id(value) in self._hidden:
            source = self._hidden[id(value)][1]
            return self.record("Alias", (source,), value.shape, value, strides=value.stride())
        return value

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
        inside = self._inside()
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
                if node in inside and self.parameters_behind(inside[node], params):
                    op, sources = RawOp("Alias"), inside[node]
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

    def parameters_behind(self, sources: Any, params: Mapping[int, RawParam]) -> set[int]:
        """``id`` of each meta parameter that a tensor, or records, depend on."""
        found: set[int] = set()
        seen: set[Any] = set()
        stack = [sources.grad_fn] if isinstance(sources, Tensor) else list(sources)
        while stack:
            node = stack.pop()
            if isinstance(node, Tensor):
                if id(node) in params:
                    found.add(id(node))
            elif node is not None and node not in seen:
                seen.add(node)
                step = self.steps.get(node)
                if step is not None:
                    stack.extend(step.sources)
                else:
                    stack.extend(_source(reader) for reader, _ in node.next_functions)
        return found

    def _inside(self) -> dict[Any, list[Any]]:
        """What each function of autograd computed inside, by its own record."""
        found: dict[Any, list[Any]] = {}
        for tensor, source in self._hidden.values():
            node = tensor.grad_fn
            if node is not None and node is not source:
                found.setdefault(node, []).append(source)
        return found


_META, _REAL = 1, 2


def _kinds(values: Any) -> int:
    """Whether meta tensors, real tensors or both are among values."""
    found = 0
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            continue
        if kind is Tensor or kind is Parameter or isinstance(value, Tensor):
            found |= _META if value.is_meta else _REAL
        elif isinstance(value, (tuple, list)):
            found |= _kinds(value)
        elif kind is slice:
            found |= _kinds((value.start, value.stop, value.step))
        elif isinstance(value, Mapping):
            found |= _kinds(value.values())
    return found


def _mapped(
    function: Callable[[Any], Any], args: Sequence[Any], kwargs: dict[str, Any] | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with a function applied to the tensors and slices among them."""
    named = {name: _map(function, value) for name, value in kwargs.items()} if kwargs else {}
    return tuple([_map(function, value) for value in args]), named


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """As ``tree_map``, which takes longer than most operations, in the plain cases."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is Tensor or kind is Parameter or kind is slice:
        return function(value)
    if kind is tuple:
        return tuple([_map(function, item) for item in value])
    if kind is list:
        return [_map(function, item) for item in value]
    return tree_map(function, value)


def _as_meta(value: Any) -> Any:
    if type(value) is slice:
        return slice(*map(_as_meta, (value.start, value.stop, value.step)))
    return meta_like(value) if isinstance(value, Tensor) and not value.is_meta else value


def _with_number(func: Any, first: Any, second: Any) -> tuple[Any, Any]:
    """Two operands, of which a known tensor of one element becomes a number beside features."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return first, second
    known, other = (second, first) if first.is_meta else (first, second)
    if known.is_meta or known.numel() != 1 or known.dim() > other.dim() or other.dim() == 0:
        return first, second
    if known.is_complex() or (known.dim() and known.dtype != other.dtype):
        return first, second
    if known is first and func not in _COMMUTATIVE:
        return first, second
    return other, known.item()


def _is_in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name in _IN_PLACE)
    return name.endswith("_")


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


_PLAIN = frozenset(
    (int, float, bool, str, type(None), torch.dtype, torch.Size, torch.device, type(...))
)
_IN_PLACE = frozenset(
    f"__i{name}__"
    for name in ("add", "sub", "mul", "div", "truediv", "and", "or", "xor", "pow", "mod")
)
_COMMUTATIVE = frozenset(
    (Tensor.add, Tensor.__add__, torch.add, Tensor.mul, Tensor.__mul__, torch.mul)
)
_ARITHMETIC = _COMMUTATIVE | frozenset(
    (Tensor.sub, Tensor.__sub__, torch.sub, Tensor.div, Tensor.__truediv__, torch.div)
)

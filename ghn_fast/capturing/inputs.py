"""Where features begin: the inputs of a network, and what is computed of them.

Floating-point inputs take part in the record: they have an autograd node of their own, so that
features are told from constants wherever they arrive. Integer inputs (symbols, positions) and masks
have values that are known (:mod:`ghn_fast.capturing.known`) and no gradients; a mode follows them,
and what is computed of them, to where they become features: as indices of a table, or as operands
of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ghn_fast.capturing.raw import INPUT, RawInput, RawOp, RawParam
from ghn_fast.capturing.tensors import tensors_in

READS_BY_INDEX = frozenset(("Embedding", "EmbeddingBag", "Gather", "Index", "IndexSelect", "Take"))
"""Operations that read rows of their first operand by a tensor of numbers."""


class Inputs:
    """The inputs of one forward pass.

    Attributes:
        nodes: Autograd node of each floating-point tensor, to ``INPUT``.
        readers: Autograd nodes of operations that read an integer tensor which comes of the input.
    """

    def __init__(self) -> None:
        self.nodes: dict[Any, RawInput] = {}
        self.readers: set[Any] = set()
        # Tensors without gradients that come of the input, by id; kept so that ids stay theirs.
        self._plain: dict[int, Tensor] = {}
        # Whole numbers that were read from them, and go on without a trace.
        self.numbers: set[int] = set()

    def features(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A meta tensor of a floating-point input; in-place operations may follow."""
        with _unrecorded(), torch.inference_mode(False), torch.enable_grad():
            leaf = torch.empty(tuple(shape), dtype=dtype, device="meta", requires_grad=True)
            tensor = leaf.clone()
        self.nodes[tensor.grad_fn] = INPUT
        return tensor

    def follow(self, tensor: Tensor) -> Tensor:
        """Note a tensor without gradients that comes of the input."""
        self._plain[id(tensor)] = tensor
        return tensor

    def mode(self) -> AbstractContextManager[Any]:
        """Context in which the network runs."""
        return _Following(self) if self._plain else nullcontext()

    def comes_of_input(self, tensor: Tensor) -> bool:
        """Whether a tensor without gradients comes of the input."""
        return id(tensor) in self._plain

    def mark(self, ops: Sequence[RawOp]) -> None:
        """Let the record show which rows were read by indices that come of the input."""
        if not self.readers:
            return
        for op in ops:
            if op.kind in (*READS_BY_INDEX, "Select") and op.detail in self.readers:
                op.inputs = [*op.inputs, INPUT]
                if op.kind == "Select":  # one row, by a number of the input
                    op.kind = "IndexSelect"


def _unrecorded() -> AbstractContextManager[Any]:
    """Context in which neither the recorder nor a mode sees what is done with tensors."""
    return torch._C.DisableTorchFunction()


class _Following(TorchFunctionMode):
    """Follows tensors without gradients from the input to where they become features."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self._inputs = inputs

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        read = list(tensors_in((args, kwargs)))
        numbers = self._inputs.numbers
        if not any(map(self._inputs.comes_of_input, read)) and not (
            numbers and func in _FOR_NUMBERS and _has_number(args[-1:], numbers)
        ):
            return func(*args, **kwargs)
        # A mask that is added to features stays a constant.
        if func not in _SUMS:
            with _unrecorded():
                if any(tensor.requires_grad for tensor in read):
                    args, kwargs = tree_map(self._as_features, (tuple(args), kwargs))
        result = func(*args, **kwargs)
        if func in _READING_NUMBERS:
            numbers.update(_whole_numbers(result))
        changed = args[0] if func is torch.Tensor.__setitem__ else None
        with _unrecorded():
            for tensor in tensors_in((result, changed)):
                if not tensor.requires_grad:
                    self._inputs.follow(tensor)
                elif tensor.grad_fn is not None:
                    self._mark(tensor.grad_fn, read)
        return result

    def _as_features(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not self._inputs.comes_of_input(value):
            return value
        if value.requires_grad or not value.is_floating_point():
            return value
        return self._inputs.features(value.shape, value.dtype)

    def _mark(self, node: Any, read: Sequence[Tensor]) -> None:
        """Mark what one call has recorded: the nodes between its result and its arguments."""
        ends = {tensor.grad_fn for tensor in read} | self._inputs.nodes.keys()
        stack = [node]
        while stack:
            current = stack.pop()
            if current is None or current in ends or current in self._inputs.readers:
                continue
            self._inputs.readers.add(current)
            stack.extend(source for source, _ in current.next_functions)


def _whole_numbers(value: Any) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _whole_numbers(item)


def _has_number(value: Any, numbers: set[int]) -> bool:
    """Whether one of these numbers, and nothing but numbers, is among values."""
    return any(number in numbers for number in _whole_numbers(value))


_READING_NUMBERS: frozenset[Callable[..., Any]] = frozenset(
    (torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.__int__, torch.Tensor.__index__)
)
# Where whole numbers of the input become features: as the index of a row, and as a tensor again.
_FOR_NUMBERS: frozenset[Callable[..., Any]] = frozenset(
    (torch.Tensor.__getitem__, torch.tensor, torch.as_tensor)
)
_SUMS: frozenset[Callable[..., Any]] = frozenset(
    (
        torch.add,
        torch.Tensor.add,
        torch.Tensor.add_,
        torch.Tensor.__add__,
        torch.Tensor.__radd__,
        torch.Tensor.__iadd__,
    )
)


_VIEWS = "Clone ConstantPadNd Permute Reshape ToCopy Transpose Unsqueeze UnsafeView View"
_KEEPING_SIZE = frozenset(("Div", "Mul", *_VIEWS.split()))


def factor_of(op: RawOp) -> float:
    """The number that an operation multiplies its first operand by; 1 for other operations."""
    number = op.detail
    if op.kind not in ("Mul", "Div") or type(number) not in (int, float) or not number:
        return 1.0
    if op.kind == "Mul":
        return float(number)
    return 1.0 / number if op.inputs and op.inputs[0] is not None else 1.0


def from_parameters(
    roots: Sequence[RawOp | RawInput], ops: Sequence[RawOp]
) -> tuple[list[RawOp], list[RawOp]]:
    """Leave out what is computed of the inputs alone: its readers read ``INPUT`` instead.

    Args:
        roots: The operations of the outputs.
        ops: All operations behind them.

    Returns:
        The outputs that depend on a parameter, and the operations that do.
    """
    alone: set[int] = set()

    def is_alone(op: RawOp) -> bool:
        return not any(
            type(i) is RawParam or (type(i) is RawOp and id(i) not in alone) for i in op.inputs
        )

    waiting = [op for op in ops if INPUT in op.inputs and is_alone(op)]
    while waiting:
        alone.update(map(id, waiting))
        for op in ops:
            if id(op) not in alone and any(id(i) in alone for i in op.inputs):
                for item in op.inputs:
                    if type(item) is RawOp and id(item) in alone and item.kind in _KEEPING_SIZE:
                        op.input_factor *= factor_of(item) * item.input_factor
                op.inputs = [INPUT if id(i) in alone else i for i in op.inputs]
        waiting = [op for op in ops if INPUT in op.inputs and id(op) not in alone and is_alone(op)]
    return (
        [op for op in roots if type(op) is RawOp and id(op) not in alone],
        [op for op in ops if id(op) not in alone] if alone else list(ops),
    )

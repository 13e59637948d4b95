"""Shapes and records of the operations that networks are made of.

A rule gives the record that autograd would make, operation by operation, for the plain cases:
contiguous floating-point tensors of one type. It returns ``None`` for anything else, and PyTorch
runs the operation, or says what is wrong with it. Four rules deviate on purpose, because what
PyTorch records differs from device to device or hides what a layer is: attention is one ``msa``
node, recurrent layers are linear layers, instance and RMS normalisation are norm layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn_fast.capturing.op_shapes_linear import (
    attention,
    grouped_product,
    linear,
    multi_head_attention,
    recurrent,
    recurrent_cell,
    several_products,
)
from ghn_fast.capturing.strides import (
    Size,
    broadcast,
    is_floating,
    is_plain,
    joins_contiguous,
    joint_layout,
    layout_of,
    sizes,
)
from ghn_fast.capturing.tensors import edge
from ghn_fast.capturing.tracer import Recorder, Rule


def _conv(dims: int) -> Rule:
    def rule(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or not is_plain(weight) or layout_of(input) is None:
            return None
        size, kernel = input.shape, weight.shape
        if len(size) != dims + 2 or len(kernel) != dims + 2 or input.dtype != weight.dtype:
            return None
        if size[1] != kernel[1] * groups or kernel[0] % groups:
            return None
        if not (input.requires_grad or weight.requires_grad):
            return None
        steps, holes = sizes(stride, dims), sizes(dilation, dims)
        shape = [size[0], kernel[0]]
        for n, k, s, p, d in zip(
            size[2:], kernel[2:], steps, sizes(padding, dims), holes, strict=True
        ):
            shape.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        if min(shape) < 1:
            return None
        detail = (groups, holes, steps, False, kernel)
        sources = (edge(input), edge(weight), edge(bias))
        return recorder.record("Convolution", sources, shape, input, detail=detail)

    return rule


def batch_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    # Features of one pixel in one image have no statistics; only their shape matters here.
    if input.dim() < 2:
        return None
    channels = input.shape[1]
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and tensor.numel() != channels:
            return None
    return _norm(recorder, "NativeBatchNorm", input, weight, bias)


def layer_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    shape = tuple(normalized_shape)
    if tuple(input.shape[-len(shape) :]) != shape:
        return None
    if weight is not None and tuple(weight.shape) != shape:
        return None
    return _norm(recorder, "NativeLayerNorm", input, weight, bias, any_layout=True)


def group_norm(
    recorder: Recorder,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if input.dim() < 2 or input.shape[1] % num_groups:
        return None
    if weight is not None and weight.numel() != input.shape[1]:
        return None
    return _norm(recorder, "NativeGroupNorm", input, weight, bias)


def instance_norm(
    recorder: Recorder,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if weight is not None and weight.numel() != input.shape[1]:
        return None
    return _norm(recorder, "InstanceNorm", input, weight, bias, any_layout=True)


def rms_norm(
    recorder: Recorder,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor | None:
    if tuple(input.shape[-len(tuple(normalized_shape)) :]) != tuple(normalized_shape):
        return None
    return _norm(recorder, "RmsNorm", input, weight, None, any_layout=True)


def _norm(
    recorder: Recorder,
    kind: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    any_layout: bool = False,
) -> Tensor | None:
    tracked = any(t is not None and t.requires_grad for t in (input, weight, bias))
    if not tracked or not (is_floating(input) if any_layout else is_plain(input)):
        return None
    sources = (edge(input), edge(weight), edge(bias))
    return recorder.record(kind, sources, input.shape, input)


def _unary(kind: str) -> Rule:
    """An activation; its last argument, or a keyword, may ask for it in place."""

    def rule(recorder: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        layout = layout_of(input) if input.requires_grad else None
        if layout is None:
            return None
        in_place = kwargs.get("inplace") or (args and args[-1] is True)
        if not in_place:
            sources = (input.grad_fn or input,)
            return recorder.record(kind, sources, input.shape, input, strides=layout or None)
        if input.grad_fn is None or input._is_view():
            return None
        return recorder.record_in_place(kind, (input.grad_fn,), input)

    return rule


def _binary(kind: str, *, in_place: bool = False) -> Rule:
    def rule(recorder: Recorder, input: Any, other: Any) -> Tensor | None:
        tensors = [value for value in (input, other) if isinstance(value, Tensor)]
        if len(tensors) < 2 and type(other if tensors[0] is input else input) not in (int, float):
            return None
        if not any(tensor.requires_grad for tensor in tensors):
            return None
        like = tensors[0]
        if tensors[-1].dtype != like.dtype:
            return None
        shape = like.shape if len(tensors) == 1 else broadcast(like.shape, tensors[1].shape)
        strides = None if shape is None else joint_layout(tensors, shape)
        if shape is None or strides is None:
            return None
        sources = (edge(input), edge(other))
        if len(tensors) == 2:
            detail: Any = (like.shape, other.shape)
        else:
            detail = other if like is input else input
        if not in_place:
            return recorder.record(
                kind, sources, shape, like, detail=detail, strides=strides or None
            )
        if tuple(shape) != tuple(input.shape) or input.grad_fn is None or input._is_view():
            return None
        return recorder.record_in_place(kind, sources, input, detail=detail)

    return rule


def cat(
    recorder: Recorder, tensors: Sequence[Tensor], dim: int = 0, *, out: None = None
) -> Tensor | None:
    first = tensors[0]
    dims = first.dim()
    dim = dim + dims if dim < 0 else dim
    shape = list(first.shape)
    total = 0
    tracked = False
    for tensor in tensors:
        if not joins_contiguous(tensor) or tensor.dim() != dims or tensor.dtype != first.dtype:
            return None
        size = list(tensor.shape)
        total += size[dim]
        size[dim] = shape[dim]
        if size != shape:
            return None
        tracked = tracked or tensor.requires_grad
    if not tracked or out is not None:
        return None
    shape[dim] = total
    return recorder.record("Cat", [edge(tensor) for tensor in tensors], shape, first)


def adaptive_avg_pool2d(recorder: Recorder, input: Tensor, output_size: Any) -> Tensor | None:
    if input.dim() != 4 or not input.requires_grad or not is_plain(input):
        return None
    if sizes(output_size, 2) != (1, 1):
        return None
    shape = (*input.shape[:2], 1, 1)
    return recorder.record("Mean", (edge(input),), shape, input, keepdim=True)


def roll(recorder: Recorder, input: Tensor, shifts: Any, dims: Any = ()) -> Tensor | None:
    if not input.requires_grad or not dims or not is_floating(input):
        return None
    return recorder.record("Roll", (edge(input),), input.shape, input)


def normalize(
    recorder: Recorder, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12
) -> Tensor | None:
    if not input.requires_grad or not is_plain(input):
        return None
    source = edge(input)
    length = recorder.step("ClampMin", recorder.step("LinalgVectorNorm", source))
    spread = recorder.step("Expand", length)
    return recorder.record("Div", (source, spread), input.shape, input)


def _table() -> dict[Any, Rule]:
    rules: dict[Any, Rule] = {
        F.conv1d: _conv(1),
        F.conv2d: _conv(2),
        F.conv3d: _conv(3),
        F.linear: linear,
        F.batch_norm: batch_norm,
        F.layer_norm: layer_norm,
        F.group_norm: group_norm,
        F.instance_norm: instance_norm,
        F.rms_norm: rms_norm,
        F.adaptive_avg_pool2d: adaptive_avg_pool2d,
        F.normalize: normalize,
        F.scaled_dot_product_attention: attention,
        torch._grouped_mm: grouped_product,
        F.multi_head_attention_forward: multi_head_attention,
        torch.cat: cat,
        torch.roll: roll,
        torch.Tensor.roll: roll,
        torch.lstm: recurrent(4, cell=True),
        torch.gru: recurrent(3),
        torch.rnn_tanh: recurrent(1),
        torch.rnn_relu: recurrent(1),
        torch.lstm_cell: recurrent_cell(4, cell=True),
        torch.gru_cell: recurrent_cell(3),
        torch.rnn_tanh_cell: recurrent_cell(1),
        torch.rnn_relu_cell: recurrent_cell(1),
        torch.einsum: several_products,
    }
    if hasattr(F, "grouped_mm"):
        rules[F.grouped_mm] = grouped_product
    for kind, functions in _UNARY.items():
        rules.update((function, _unary(kind)) for function in functions)
    for kind, functions in _BINARY.items():
        rules.update((function, _binary(kind)) for function in functions)
    for kind, functions in _BINARY_IN_PLACE.items():
        rules.update((function, _binary(kind, in_place=True)) for function in functions)
    return rules


_UNARY: dict[str, tuple[Any, ...]] = {
    "Relu": (F.relu, torch.relu, torch.Tensor.relu),
    "Hardtanh": (F.hardtanh, F.relu6),
    "Hardswish": (F.hardswish,),
    "Hardsigmoid": (F.hardsigmoid,),
    "Silu": (F.silu,),
    "Mish": (F.mish,),
    "Gelu": (F.gelu,),
    "LeakyRelu": (F.leaky_relu,),
    "Elu": (F.elu,),
    "Softplus": (F.softplus,),
    "Sigmoid": (torch.sigmoid, torch.Tensor.sigmoid),
    "Tanh": (torch.tanh, torch.Tensor.tanh),
}
_BINARY: dict[str, tuple[Any, ...]] = {
    "Add": (torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__, torch.add),
    "Mul": (torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.mul),
    "Sub": (torch.Tensor.sub, torch.Tensor.__sub__, torch.sub),
    "Div": (torch.Tensor.div, torch.Tensor.__truediv__, torch.div),
}
_BINARY_IN_PLACE: dict[str, tuple[Any, ...]] = {
    "Add": (torch.Tensor.add_, torch.Tensor.__iadd__),
    "Mul": (torch.Tensor.mul_, torch.Tensor.__imul__),
}

RULES = _table()
"""Rule of each function of PyTorch that has one."""

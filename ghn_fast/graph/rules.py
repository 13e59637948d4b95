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

from ghn_fast.graph.record import Recorder, Rule, edge

_Size = int | Sequence[int]


def _conv(dims: int) -> Rule:
    def rule(
        recorder: Recorder,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: _Size = 1,
        padding: _Size | str = 0,
        dilation: _Size = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or not _plain(weight) or _layout(input) is None:
            return None
        size, kernel = input.shape, weight.shape
        if len(size) != dims + 2 or len(kernel) != dims + 2 or input.dtype != weight.dtype:
            return None
        if size[1] != kernel[1] * groups or kernel[0] % groups:
            return None
        if not (input.requires_grad or weight.requires_grad):
            return None
        steps, holes = _sizes(stride, dims), _sizes(dilation, dims)
        shape = [size[0], kernel[0]]
        for n, k, s, p, d in zip(
            size[2:], kernel[2:], steps, _sizes(padding, dims), holes, strict=True
        ):
            shape.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
        if min(shape) < 1:
            return None
        detail = (groups, holes, steps, False)
        sources = (edge(input), edge(weight), edge(bias))
        return recorder.record("Convolution", sources, shape, input, detail=detail)

    return rule


def linear(
    recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if not _floating(input) or not _plain(weight) or input.dtype != weight.dtype:
        return None
    size = input.shape
    if len(size) < 2 or weight.dim() != 2 or size[-1] != weight.shape[1]:
        return None
    if not (input.requires_grad or weight.requires_grad):
        return None
    out, width = weight.shape
    shape = (*size[:-1], out)
    transposed = recorder.inner("T", edge(weight))
    contiguous = input.is_contiguous()
    if len(size) == 2:
        if not contiguous and bias is not None:
            return None
        kind, sources = _product(edge(input), transposed, bias)
        return recorder.record(kind, sources, shape, input, detail=width)
    if contiguous:
        source = recorder.inner("View", edge(input)) if input.requires_grad else None
        kind, sources = _product(source, transposed, bias)
    else:
        kind, sources = _product(edge(input.reshape(-1, width)), transposed, None)
    product = recorder.inner(kind, *sources, detail=width)
    if contiguous or bias is None:
        return recorder.record("UnsafeView", (product,), shape, input)
    viewed = recorder.inner("UnsafeView", product)
    return recorder.record("Add", (viewed, edge(bias)), shape, input)


def _product(source: Any, transposed: Any, bias: Tensor | None) -> tuple[str, tuple[Any, ...]]:
    if bias is None:
        return "Mm", (source, transposed)
    return "Addmm", (edge(bias), source, transposed)


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
    if not tracked or not (_floating(input) if any_layout else _plain(input)):
        return None
    sources = (edge(input), edge(weight), edge(bias))
    return recorder.record(kind, sources, input.shape, input)


def _unary(kind: str) -> Rule:
    """An activation; its last argument, or a keyword, may ask for it in place."""

    def rule(recorder: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
        layout = _layout(input) if input.requires_grad else None
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
        shape = like.shape if len(tensors) == 1 else _broadcast(like.shape, tensors[1].shape)
        strides = None if shape is None else _joint_layout(tensors, shape)
        if shape is None or strides is None:
            return None
        sources = (edge(input), edge(other))
        if not in_place:
            return recorder.record(kind, sources, shape, like, strides=strides or None)
        if tuple(shape) != tuple(input.shape) or input.grad_fn is None or input._is_view():
            return None
        return recorder.record_in_place(kind, sources, input)

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
        if not _plain(tensor) or tensor.dim() != dims or tensor.dtype != first.dtype:
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
    if input.dim() != 4 or not input.requires_grad or not _plain(input):
        return None
    if _sizes(output_size, 2) != (1, 1):
        return None
    shape = (*input.shape[:2], 1, 1)
    return recorder.record("Mean", (edge(input),), shape, input, keepdim=True)


def roll(recorder: Recorder, input: Tensor, shifts: Any, dims: Any = ()) -> Tensor | None:
    if not input.requires_grad or not dims or not _floating(input):
        return None
    return recorder.record("Roll", (edge(input),), input.shape, input)


def normalize(
    recorder: Recorder, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12
) -> Tensor | None:
    if not input.requires_grad or not _plain(input):
        return None
    source = edge(input)
    length = recorder.inner("ClampMin", recorder.inner("LinalgVectorNorm", source))
    spread = recorder.inner("Expand", length)
    return recorder.record("Div", (source, spread), input.shape, input)


def attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    tensors = (query, key, value)
    if not any(t.requires_grad for t in tensors) or not all(_floating(t) for t in tensors):
        return None
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    shape = (*query.shape[:-1], value.shape[-1])
    sources = [edge(tensor) for tensor in (*tensors, attn_mask)]
    return recorder.record("ScaledDotProduct", sources, shape, query)


def multi_head_attention(
    recorder: Recorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None] | None:
    """``nn.MultiheadAttention``: input projections, attention, output projection."""
    inputs = (query, key, value)
    width = query.shape[-1]
    if query.dim() not in (2, 3) or width != embed_dim_to_check or width % num_heads:
        return None
    if not all(_floating(t) and t.dim() == query.dim() for t in inputs):
        return None
    if static_k is not None or static_v is not None or key.shape[0] != value.shape[0]:
        return None
    features = list({id(t): t for t in inputs}.values())
    if use_separate_proj_weight:
        weights = [q_proj_weight, k_proj_weight, v_proj_weight]
        if any(w is None for w in weights):
            return None
        projected = [
            recorder.inner(
                "Addmm" if in_proj_bias is not None else "Mm",
                *([edge(in_proj_bias)] if in_proj_bias is not None else []),
                edge(t),
                recorder.inner("T", edge(w)),
                detail=t.shape[-1],
            )
            for t, w in zip(inputs, weights, strict=True)
        ]
    else:
        if in_proj_weight is None or tuple(in_proj_weight.shape) != (3 * width, width):
            return None
        transposed = recorder.inner("T", edge(in_proj_weight))
        sources = [*(edge(t) for t in features), transposed]
        if in_proj_bias is None:
            projected = [recorder.inner("Mm", *sources, detail=width)]
        else:
            projected = [recorder.inner("Addmm", edge(in_proj_bias), *sources, detail=width)]
    tokens = [edge(t) for t in (bias_k, bias_v) if t is not None]
    if tokens:
        projected = [recorder.inner("Cat", *projected, *tokens)]
    attended = recorder.inner("ScaledDotProduct", *projected, None, None, None, edge(attn_mask))
    kind, sources_out = _product(attended, recorder.inner("T", edge(out_proj_weight)), out_proj_bias)
    output = recorder.record(kind, sources_out, query.shape, query, detail=width)
    if not need_weights:
        return output, None
    keys = key.shape[0] + bool(tokens) + add_zero_attn
    shape: tuple[int, ...] = (query.shape[0], keys)
    heads = () if average_attn_weights else (num_heads,)
    shape = (*heads, *shape) if query.dim() == 2 else (query.shape[1], *heads, *shape)
    return output, torch.empty(shape, dtype=query.dtype, device="meta")


def _recurrent(gates: int, *, cell: bool = False) -> Rule:
    """LSTM (4 gates) and GRU (3 gates), padded: two linear layers per layer and direction."""

    def rule(
        recorder: Recorder,
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...] | None:
        if not isinstance(params, (list, tuple)) or not _floating(input):
            return None
        directions = 1 + bidirectional
        each = len(params) // (num_layers * directions)
        source, width, states = edge(input), 0, []
        for layer in range(num_layers):
            ends = []
            for direction in range(directions):
                start = (layer * directions + direction) * each
                weights = params[start : start + each]
                biases = weights[2:4] if has_biases else (None, None)
                end, hidden = source, weights[0].shape[0] // gates
                for weight, bias in zip(weights[:2], biases, strict=True):
                    end = _inner_linear(recorder, end, weight, bias)
                width = weights[1].shape[1]
                if each > 2 + 2 * has_biases:
                    end = _inner_linear(recorder, end, weights[-1], None)
                    width = weights[-1].shape[0]
                states.append((width, hidden))
                ends.append(end)
            source = ends[0] if directions == 1 else recorder.inner("Cat", *ends)
        shape = (*input.shape[:-1], width * directions)
        output = recorder.record("Alias", (source,), shape, input)
        batch = input.shape[0 if batch_first else 1]
        hidden_shapes = [
            (num_layers * directions, batch, states[-1][which]) for which in ((0, 1) if cell else (0,))
        ]
        return (
            output,
            *(recorder.record("Alias", (source,), s, input) for s in hidden_shapes),
        )

    return rule


def _inner_linear(recorder: Recorder, source: Any, weight: Tensor, bias: Tensor | None) -> Any:
    transposed = recorder.inner("T", edge(weight))
    kind, sources = _product(source, transposed, bias)
    return recorder.inner(kind, *sources, detail=weight.shape[1])


def _floating(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.is_floating_point()


def _plain(tensor: Tensor) -> bool:
    return tensor.is_meta and tensor.is_floating_point() and tensor.is_contiguous()


def _layout(tensor: Tensor) -> tuple[int, ...] | None:
    """Strides of a floating-point tensor, empty if it is contiguous, ``None`` if it has gaps."""
    if not (tensor.is_meta and tensor.is_floating_point()):
        return None
    if tensor.is_contiguous():
        return ()
    strides = tensor.stride()
    expected = 1
    for stride, size in sorted(zip(strides, tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return None
        expected *= size
    return strides


def _joint_layout(tensors: Sequence[Tensor], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Layout of an elementwise result, as :func:`_layout`; ``None`` where it is not obvious."""
    layouts = [_layout(tensor) for tensor in tensors]
    if None in layouts:
        return None
    if not any(layouts):
        return ()
    full = [
        layout for layout, t in zip(layouts, tensors, strict=True) if t.shape == torch.Size(shape)
    ]
    if len(full) == len(tensors):
        return full[0] if full[0] == full[-1] else None
    # A scale or shift of one dimension takes the layout of the features.
    vectors = [t for t in tensors if t.shape != torch.Size(shape)]
    one = sum(size > 1 for size in vectors[0].shape) <= 1
    return full[0] if len(full) == 1 and one else None


def _sizes(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    sizes = tuple(value)
    return sizes * dims if len(sizes) == 1 else sizes


def _broadcast(first: Sequence[int], second: Sequence[int]) -> Sequence[int] | None:
    if first == second:
        return first
    if len(first) < len(second):
        first, second = second, first
    result = list(first)
    for place in range(1, len(second) + 1):
        have, want = result[-place], second[-place]
        if have == 1:
            result[-place] = want
        elif want not in (1, have):
            return None
    return result




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
        F.multi_head_attention_forward: multi_head_attention,
        torch.cat: cat,
        torch.roll: roll,
        torch.Tensor.roll: roll,
        torch.lstm: _recurrent(4, cell=True),
        torch.gru: _recurrent(3),
        torch.rnn_tanh: _recurrent(1),
        torch.rnn_relu: _recurrent(1),
    }
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

"""Rules of linear layers, and of layers that are made of them: attention and recurrent layers."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from ghn_fast.capturing.strides import is_floating, is_plain
from ghn_fast.capturing.tensors import edge
from ghn_fast.capturing.tracer import Recorder, Rule


def linear(
    recorder: Recorder, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if not is_floating(input) or not is_plain(weight) or input.dtype != weight.dtype:
        return None
    size = input.shape
    if len(size) < 2 or weight.dim() != 2 or size[-1] != weight.shape[1]:
        return None
    if not (input.requires_grad or weight.requires_grad):
        return None
    out, width = weight.shape
    shape = (*size[:-1], out)
    transposed = recorder.step("T", edge(weight))
    contiguous = input.is_contiguous()
    if len(size) == 2:
        if not contiguous and bias is not None:
            return None
        kind, sources = _product(edge(input), transposed, bias)
        return recorder.record(kind, sources, shape, input, detail=width)
    if contiguous:
        source = recorder.step("View", edge(input)) if input.requires_grad else None
        kind, sources = _product(source, transposed, bias)
    else:
        kind, sources = _product(edge(input.reshape(-1, width)), transposed, None)
    product = recorder.step(kind, *sources, detail=width)
    if contiguous or bias is None:
        return recorder.record("UnsafeView", (product,), shape, input)
    viewed = recorder.step("UnsafeView", product)
    return recorder.record("Add", (viewed, edge(bias)), shape, input)


def _product(source: Any, transposed: Any, bias: Tensor | None) -> tuple[str, tuple[Any, ...]]:
    if bias is None:
        return "Mm", (source, transposed)
    return "Addmm", (edge(bias), source, transposed)


def grouped_product(
    recorder: Recorder,
    input: Tensor,
    weight: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor | None:
    """A product for each of several groups of rows; PyTorch's shape function wants bfloat16."""
    if not (is_floating(input) and is_floating(weight)) or bias is not None:
        return None
    if input.shape[-1] != weight.shape[-2]:
        return None
    if input.dim() == 2 and weight.dim() == 2:
        groups: tuple[int, ...] = () if offs is None else (offs.shape[0],)
        shape = (*groups, input.shape[0], weight.shape[-1])
    elif input.dim() == 3 and weight.dim() == 3:
        shape = (*input.shape[:2], weight.shape[-1])
    else:
        shape = (input.shape[-2], weight.shape[-1])
    like = input if out_dtype is None else torch.empty((), dtype=out_dtype, device="meta")
    sources = (edge(input), edge(weight))
    return recorder.record("GroupedMm", sources, shape, like, detail=input.shape[-1])


def several_products(recorder: Recorder, equation: Any, *operands: Any) -> Tensor | None:
    """An einsum of a weight with several features: bilinear, where sums run over all its inputs.

    Two operands are left to PyTorch, as is a weight that features from a softmax mix.
    """
    if len(operands) < 3 or not isinstance(equation, str) or "." in equation:
        return None
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or len(letters) != len(operands):
        return None
    if any(not is_floating(t) or t.dim() != len(x) for t, x in zip(operands, letters, strict=True)):
        return None
    weights = [n for n, t in enumerate(operands) if t.requires_grad and t.grad_fn is None]
    if len(weights) != 1:
        return None
    weight, own = operands[weights[0]], letters[weights[0]]
    others = [n for n in range(len(operands)) if n != weights[0]]
    summed = set(own) - set(result)
    if len(summed) < 2 or any(not summed & set(letters[n]) for n in others):
        return None
    if any(_is_gate(operands[n]) for n in others):
        return None
    size: dict[str, int] = {}
    for tensor, word in zip(operands, letters, strict=True):
        size.update(zip(word, tensor.shape, strict=True))
    fan_in = prod(size[x] for x in summed)
    sources = [edge(operands[n]) for n in others]
    return recorder.record(
        "Trilinear",
        (sources[0], edge(weight), *sources[1:]),
        [size[x] for x in result],
        operands[others[0]],
        detail=(weight.numel() // fan_in, fan_in),
    )


def _is_gate(tensor: Tensor) -> bool:
    return type(tensor.grad_fn).__name__.startswith(("Softmax", "Sigmoid"))


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
    if not any(t.requires_grad for t in tensors) or not all(is_floating(t) for t in tensors):
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
    if not all(is_floating(t) and t.dim() == query.dim() for t in inputs):
        return None
    if static_k is not None or static_v is not None or key.shape[0] != value.shape[0]:
        return None
    features = list({id(t): t for t in inputs}.values())
    if use_separate_proj_weight:
        weights = [q_proj_weight, k_proj_weight, v_proj_weight]
        if any(w is None for w in weights):
            return None
        projected = [
            recorder.step(
                "Addmm" if in_proj_bias is not None else "Mm",
                *([edge(in_proj_bias)] if in_proj_bias is not None else []),
                edge(t),
                recorder.step("T", edge(w)),
                detail=t.shape[-1],
            )
            for t, w in zip(inputs, weights, strict=True)
        ]
    else:
        if in_proj_weight is None or tuple(in_proj_weight.shape) != (3 * width, width):
            return None
        transposed = recorder.step("T", edge(in_proj_weight))
        sources = [*(edge(t) for t in features), transposed]
        if in_proj_bias is None:
            projected = [recorder.step("Mm", *sources, detail=width)]
        else:
            projected = [recorder.step("Addmm", edge(in_proj_bias), *sources, detail=width)]
    tokens = [edge(t) for t in (bias_k, bias_v) if t is not None]
    if tokens:
        projected = [recorder.step("Cat", *projected, *tokens)]
    attended = recorder.step("ScaledDotProduct", *projected, None, None, None, edge(attn_mask))
    kind, sources_out = _product(attended, recorder.step("T", edge(out_proj_weight)), out_proj_bias)
    output = recorder.record(kind, sources_out, query.shape, query, detail=width)
    if not need_weights:
        return output, None
    keys = key.shape[0] + bool(tokens) + add_zero_attn
    shape: tuple[int, ...] = (query.shape[0], keys)
    heads = () if average_attn_weights else (num_heads,)
    shape = (*heads, *shape) if query.dim() == 2 else (query.shape[1], *heads, *shape)
    return output, torch.empty(shape, dtype=query.dtype, device="meta")


def recurrent(gates: int, *, cell: bool = False) -> Rule:
    """LSTM (4 gates), GRU (3) and RNN (1): two linear layers per layer and direction.

    Padded, or packed: then the sizes of the batch come second, and a flag less at the end. A first
    state that depends on parameters or features is joined with what the state's product reads.
    """

    def rule(recorder: Recorder, input: Tensor, *args: Any) -> tuple[Tensor, ...] | None:
        packed = len(args) == 8 and isinstance(args[2], (list, tuple))
        if packed:
            _, hx, params, has_biases, num_layers, _, _, bidirectional = args
        else:
            hx, params, has_biases, num_layers, _, _, bidirectional, batch_first = args
        if not isinstance(params, (list, tuple)) or not is_floating(input):
            return None
        firsts = hx if isinstance(hx, (list, tuple)) else (hx,)
        first_states = [edge(state) for state in firsts if edge(state) is not None]
        directions = 1 + bidirectional
        each = len(params) // (num_layers * directions)
        source, width, states = edge(input), 0, []
        for layer in range(num_layers):
            ends = []
            for direction in range(directions):
                start = (layer * directions + direction) * each
                weights = params[start : start + each]
                biases = weights[2:4] if has_biases else (None, None)
                hidden = weights[0].shape[0] // gates
                end = _inner_linear(recorder, source, weights[0], biases[0])
                if layer == 0 and first_states:
                    end = recorder.step("Cat", end, *first_states)
                end = _inner_linear(recorder, end, weights[1], biases[1])
                width = weights[1].shape[1]
                if each > 2 + 2 * has_biases:
                    end = _inner_linear(recorder, end, weights[-1], None)
                    width = weights[-1].shape[0]
                states.append((width, hidden))
                ends.append(end)
            source = ends[0] if directions == 1 else recorder.step("Cat", *ends)
        shape = (*input.shape[:-1], width * directions)
        output = recorder.record("Alias", (source,), shape, input)
        batch = firsts[0].shape[1] if packed else input.shape[0 if batch_first else 1]
        hidden_shapes = [
            (num_layers * directions, batch, states[-1][which])
            for which in ((0, 1) if cell else (0,))
        ]
        return (
            output,
            *(recorder.record("Alias", (source,), s, input) for s in hidden_shapes),
        )

    return rule


def recurrent_cell(gates: int, *, cell: bool = False) -> Rule:
    """One step of an LSTM, GRU or RNN: two linear layers, as of the whole layers."""

    def rule(
        recorder: Recorder,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        states = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        if not is_floating(input) or not is_floating(w_ih) or len(states) != 1 + cell:
            return None
        if input.shape[-1] != w_ih.shape[1] or w_hh.shape[0] != gates * w_hh.shape[1]:
            return None
        if any(state.shape != (*input.shape[:-1], w_hh.shape[1]) for state in states):
            return None
        end = _inner_linear(recorder, edge(input), w_ih, b_ih)
        known = [edge(state) for state in states if edge(state) is not None]
        if known:
            end = recorder.step("Cat", end, *known)
        end = _inner_linear(recorder, end, w_hh, b_hh)
        results = [recorder.record("Alias", (end,), state.shape, input) for state in states]
        return tuple(results) if cell else results[0]

    return rule


def _inner_linear(recorder: Recorder, source: Any, weight: Tensor, bias: Tensor | None) -> Any:
    transposed = recorder.step("T", edge(weight))
    kind, sources = _product(source, transposed, bias)
    return recorder.step(kind, *sources, detail=weight.shape[1])

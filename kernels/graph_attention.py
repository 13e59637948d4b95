"""Attention within each graph of a batch, with a bias by the code of a pair, in Triton.

The contract is that of :func:`ghn_fast.ops.graph_attention.graph_attention`. A program has a tile
of queries of one head and goes through the keys of their graph, tile by tile; nothing of the size
of all pairs is made. Backward, logits are computed again: once by queries, which gives the
gradients of queries and of the biases, once by keys for those of keys and values. The gradients of
the biases are sums within a program, code by code of those in a tile, and the programs' are added
up in one order: no atomics.

A code outside of the table yields NaN: what a GPU reads cannot be checked without waiting for it.

Float32, with products in float32. Tested in Triton's interpreter, and compiled for a GPU (sm_90);
the compiled code has not run on one yet. The sizes of the tiles are not tuned.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LARGEST", "ROWS", "WARPS", "backward", "constants", "forward"]

# Widest head whose tiles fit into a program's registers.
LARGEST = 32
# Queries and keys of a tile, as few as products take. With 32, the gradients of wide heads spill
# (sm_90; Triton 3.6 with 4, 8 and 16 warps, Triton 3.8 with 4).
ROWS = 16
WARPS = 4


def constants(heads: int, width: int, rows: int) -> dict[str, Any]:
    """The sizes that an instance of the kernels is compiled for.

    Args:
        heads, width: H heads of width d.
        rows: Number of biases.
    """
    return {
        "HEADS": heads,
        "WIDTH": width,
        "D": max(16, triton.next_power_of_2(width)),
        "TABLE": rows,
        "CODES": triton.next_power_of_2(rows),
        "ROWS": ROWS,
    }


def forward(qkv: Tensor, codes: Tensor, tiles: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (N, H d), and the logarithms (N, H) of the sums that logits are normalised by.

    Args:
        qkv: Queries, keys and values (N, 3, H, d), contiguous.
        codes: Codes of the pairs.
        tiles: Of each program first and last node of its graph, the graph's first code and the
            first query in it (T, 4), int64.
        table: Biases (R, H), contiguous.
    """
    nodes, _, heads, width = qkv.shape
    out, logsum = qkv.new_empty(nodes, heads * width), qkv.new_empty(nodes, heads)
    if len(tiles):
        with torch.cuda.device_of(qkv):
            _forward_kernel[(len(tiles), heads)](
                qkv_ptr=qkv,
                codes_ptr=codes,
                table_ptr=table,
                tiles_ptr=tiles,
                out_ptr=out,
                logsum_ptr=logsum,
                scale=width**-0.5,
                num_warps=WARPS,
                **constants(heads, width, len(table)),
            )
    return out, logsum


def backward(
    grad: Tensor,
    qkv: Tensor,
    codes: Tensor,
    tiles: Tensor,
    table: Tensor,
    out: Tensor,
    logsum: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of ``qkv`` and ``table``.

    Args:
        grad: Gradient of the outputs (N, H d), contiguous.
        qkv, codes, tiles, table: As in :func:`forward`.
        out, logsum: Its results.
    """
    nodes, _, heads, width = qkv.shape
    result = torch.empty_like(qkv)
    parts = qkv.new_zeros(len(tiles), heads, len(table))
    if len(tiles):
        mean = (grad * out).view(nodes, heads, width).sum(2)
        given = {
            "qkv_ptr": qkv,
            "codes_ptr": codes,
            "table_ptr": table,
            "tiles_ptr": tiles,
            "grad_ptr": grad,
            "mean_ptr": mean,
            "logsum_ptr": logsum,
            "result_ptr": result,
            "scale": width**-0.5,
            "num_warps": WARPS,
            **constants(heads, width, len(table)),
        }
        with torch.cuda.device_of(qkv):
            _grad_queries_kernel[(len(tiles), heads)](parts_ptr=parts, **given)
            _grad_keys_kernel[(len(tiles), heads)](**given)
    return result, parts.sum(0).t().contiguous()


@triton.jit
def _tile(tiles_ptr, ROWS: tl.constexpr):
    """First node of the graph, their number, the graph's codes, and the places of the tile."""
    tile = tiles_ptr + tl.program_id(0) * 4
    first = tl.load(tile)
    nodes = tl.load(tile + 1) - first
    return first, nodes, tl.load(tile + 2), tl.load(tile + 3) + tl.arange(0, ROWS)


@triton.jit
def _rows(ptr, place, inside, stride, shift, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [ROWS, D] of a matrix from a column on, zeros behind WIDTH."""
    k = tl.arange(0, D)
    mask = inside[:, None] & (k < WIDTH)[None, :]
    return tl.load(ptr + place[:, None] * stride + shift + k[None, :], mask=mask, other=0.0)


@triton.jit
def _biases(
    codes_ptr,
    table_ptr,
    pair,
    i,
    j,
    nodes,
    head,
    HEADS: tl.constexpr,
    TABLE: tl.constexpr,
):
    """Codes and biases [ROWS, ROWS] of pairs; code -1 where there is no pair."""
    inside = (i < nodes)[:, None] & (j < nodes)[None, :]
    code = tl.load(codes_ptr + pair + i[:, None] * nodes + j[None, :], mask=inside, other=0)
    code = code.to(tl.int32)
    known = (code >= 0) & (code < TABLE)
    bias = tl.load(table_ptr + code * HEADS + head, mask=known, other=float("nan"))
    return tl.where(inside, code, -1), bias


@triton.jit
def _forward_kernel(
    qkv_ptr,  # (N, 3, H, d)
    codes_ptr,
    table_ptr,  # (R, H)
    tiles_ptr,  # (T, 4)
    out_ptr,  # (N, H d)
    logsum_ptr,  # (N, H)
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    TABLE: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A tile of queries against all keys; sums are scaled anew where a larger logit comes."""
    first, nodes, pair, i = _tile(tiles_ptr, ROWS)
    head = tl.program_id(1)
    part = HEADS * WIDTH
    shift = head * WIDTH
    query = _rows(qkv_ptr, first + i, i < nodes, 3 * part, shift, D, WIDTH) * scale
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, D], tl.float32)
    start = tl.full([], 0, tl.int64)
    while start < nodes:
        j = start + tl.arange(0, ROWS)
        key = _rows(qkv_ptr, first + j, j < nodes, 3 * part, part + shift, D, WIDTH)
        value = _rows(qkv_ptr, first + j, j < nodes, 3 * part, 2 * part + shift, D, WIDTH)
        _code, bias = _biases(codes_ptr, table_ptr, pair, i, j, nodes, head, HEADS, TABLE)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") + bias
        logits = tl.where((j < nodes)[None, :], logits, float("-inf"))
        higher = tl.maximum(most, tl.max(logits, axis=1))
        fix = tl.exp(most - higher)
        p = tl.exp(logits - higher[:, None])
        total = total * fix + tl.sum(p, axis=1)
        sums = sums * fix[:, None] + tl.dot(p, value, input_precision="ieee")
        most = higher
        start += ROWS
    k = tl.arange(0, D)
    mask = (i < nodes)[:, None] & (k < WIDTH)[None, :]
    place = out_ptr + (first + i)[:, None] * part + shift + k[None, :]
    tl.store(place, sums / total[:, None], mask=mask)
    tl.store(logsum_ptr + (first + i) * HEADS + head, most + tl.log(total), mask=i < nodes)


@triton.jit
def _grad_queries_kernel(
    qkv_ptr,  # (N, 3, H, d)
    codes_ptr,
    table_ptr,  # (R, H)
    tiles_ptr,  # (T, 4)
    grad_ptr,  # (N, H d)
    mean_ptr,  # (N, H): sum of gradient times output
    logsum_ptr,  # (N, H)
    result_ptr,  # (N, 3, H, d)
    parts_ptr,  # (T, H, R)
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    TABLE: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of a tile of queries, and of the biases of their pairs."""
    first, nodes, pair, i = _tile(tiles_ptr, ROWS)
    head = tl.program_id(1)
    part = HEADS * WIDTH
    shift = head * WIDTH
    is_query = i < nodes
    query = _rows(qkv_ptr, first + i, is_query, 3 * part, shift, D, WIDTH) * scale
    grad = _rows(grad_ptr, first + i, is_query, part, shift, D, WIDTH)
    mean = tl.load(mean_ptr + (first + i) * HEADS + head, mask=is_query, other=0.0)
    logsum = tl.load(logsum_ptr + (first + i) * HEADS + head, mask=is_query, other=0.0)
    sums = tl.zeros([ROWS, D], tl.float32)
    numbers = tl.arange(0, CODES)
    of_codes = tl.zeros([CODES], tl.float32)
    start = tl.full([], 0, tl.int64)
    while start < nodes:
        j = start + tl.arange(0, ROWS)
        key = _rows(qkv_ptr, first + j, j < nodes, 3 * part, part + shift, D, WIDTH)
        value = _rows(qkv_ptr, first + j, j < nodes, 3 * part, 2 * part + shift, D, WIDTH)
        code, bias = _biases(codes_ptr, table_ptr, pair, i, j, nodes, head, HEADS, TABLE)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") + bias
        p = tl.exp(logits - logsum[:, None])
        slope = p * (tl.dot(grad, tl.trans(value), input_precision="ieee") - mean[:, None])
        slope = tl.where(code >= 0, slope, 0.0)
        sums += tl.dot(slope, key, input_precision="ieee")
        number = tl.min(tl.min(tl.where(code >= 0, code, 1 << 15), axis=1), axis=0)
        last = tl.max(tl.max(code, axis=1), axis=0)
        while number <= last:
            of_one = tl.sum(tl.sum(tl.where(code == number, slope, 0.0), axis=1), axis=0)
            of_codes += tl.where(numbers == number, of_one, 0.0)
            number += 1
        start += ROWS
    k = tl.arange(0, D)
    mask = is_query[:, None] & (k < WIDTH)[None, :]
    place = result_ptr + (first + i)[:, None] * (3 * part) + shift + k[None, :]
    tl.store(place, sums * scale, mask=mask)
    line = parts_ptr + (tl.program_id(0).to(tl.int64) * HEADS + head) * TABLE
    tl.store(line + numbers, of_codes, mask=numbers < TABLE)


@triton.jit
def _grad_keys_kernel(
    qkv_ptr,  # (N, 3, H, d)
    codes_ptr,
    table_ptr,  # (R, H)
    tiles_ptr,  # (T, 4)
    grad_ptr,  # (N, H d)
    mean_ptr,  # (N, H)
    logsum_ptr,  # (N, H)
    result_ptr,  # (N, 3, H, d)
    scale,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    TABLE: tl.constexpr,
    CODES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Gradients of a tile of keys and values."""
    first, nodes, pair, j = _tile(tiles_ptr, ROWS)
    head = tl.program_id(1)
    part = HEADS * WIDTH
    shift = head * WIDTH
    is_key = j < nodes
    key = _rows(qkv_ptr, first + j, is_key, 3 * part, part + shift, D, WIDTH)
    value = _rows(qkv_ptr, first + j, is_key, 3 * part, 2 * part + shift, D, WIDTH)
    of_keys = tl.zeros([ROWS, D], tl.float32)
    of_values = tl.zeros([ROWS, D], tl.float32)
    start = tl.full([], 0, tl.int64)
    while start < nodes:
        i = start + tl.arange(0, ROWS)
        is_query = i < nodes
        query = _rows(qkv_ptr, first + i, is_query, 3 * part, shift, D, WIDTH) * scale
        grad = _rows(grad_ptr, first + i, is_query, part, shift, D, WIDTH)
        mean = tl.load(mean_ptr + (first + i) * HEADS + head, mask=is_query, other=0.0)
        logsum = tl.load(logsum_ptr + (first + i) * HEADS + head, mask=is_query, other=0.0)
        code, bias = _biases(codes_ptr, table_ptr, pair, i, j, nodes, head, HEADS, TABLE)
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") + bias
        p = tl.where(code >= 0, tl.exp(logits - logsum[:, None]), 0.0)
        slope = p * (tl.dot(grad, tl.trans(value), input_precision="ieee") - mean[:, None])
        of_values += tl.dot(tl.trans(p), grad, input_precision="ieee")
        of_keys += tl.dot(tl.trans(slope), query, input_precision="ieee")
        start += ROWS
    k = tl.arange(0, D)
    mask = is_key[:, None] & (k < WIDTH)[None, :]
    place = result_ptr + (first + j)[:, None] * (3 * part) + part + shift + k[None, :]
    tl.store(place, of_keys, mask=mask)
    tl.store(place + part, of_values, mask=mask)

"""Architecture graph of an ``nn.Module``, from its structure alone.

The forward pass runs on meta tensors: shapes are computed, values are not. Autograd records the
operations, and the record is read backwards from the output (:mod:`ghn_fast.graph.raw`). Parameters
and buffers are replaced by meta tensors for the duration of the call, so that nothing of the module
changes: values, BatchNorm statistics, random state and hooks stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ghn_fast.graph.arch_graph import ArchGraph, graph_from_nodes
from ghn_fast.graph.contract import contract
from ghn_fast.graph.layers import describe_parameter
from ghn_fast.graph.raw import NodeGraph, RawOp, RawParam, linearise, order_nodes

_UNREACHED = "not on a path from the input to the output"


class CaptureError(ValueError):
    """The graph of a network could not be captured; the message says where and what to change."""


def capture(
    model: nn.Module,
    input_shape: Sequence[int] = (3, 224, 224),
    virtual_edges: int = 50,
) -> ArchGraph:
    """Capture the architecture graph of a network.

    Args:
        model: Any network whose forward pass takes one image batch.
        input_shape: Shape of one input, without the batch dimension.
        virtual_edges: Largest shortest-path distance that gets a virtual edge (arXiv 2110.13100,
            Eq. 4); 1 means none. GHN-2 uses 50.

    Returns:
        The graph; its ``skipped`` names the parameters that it has no node for, with the reason.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``.
        CaptureError: If the forward pass fails on ``input_shape``, or yields no output that depends
            on a parameter.
        ValueError: If ``input_shape`` or ``virtual_edges`` is not valid.
    """
    _check_arguments(model, input_shape)
    if virtual_edges < 1:
        raise ValueError(f"virtual_edges: got {virtual_edges}, needs at least 1 (1 means none)")
    tensors, params, aliases = _meta_state(model)
    try:
        output = _forward(model, tensors, input_shape)
    except Exception as error:
        raise CaptureError(_explain_failure(model, tensors, input_shape, error)) from error
    if output is None:
        raise CaptureError(
            f"model: the output of {type(model).__name__} depends on no parameter, needs a tensor "
            "(or a tuple, list or dict that begins with one) computed from parameters with "
            "gradients enabled"
        )
    by_id = {id(tensors[name]): param for name, param in params.items()}
    nodes = contract(order_nodes(linearise(_read_autograd(output, by_id))))
    return graph_from_nodes(
        nodes, virtual_edges=virtual_edges, skipped=_skipped(nodes, params), aliases=aliases
    )


def _check_arguments(model: nn.Module, input_shape: Sequence[int]) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
    sizes = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"input_shape: got {input_shape!r}, needs positive integers such as (3, 224, 224)"
        )


def _meta_state(
    model: nn.Module,
) -> tuple[dict[str, Tensor], dict[str, RawParam], dict[str, str]]:
    """Meta stand-ins for all parameters and buffers, descriptions, and names of shared tensors."""
    tensors: dict[str, Tensor] = {}
    params: dict[str, RawParam] = {}
    aliases: dict[str, str] = {}
    first_name: dict[int, str] = {}
    seen: set[nn.Module] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        # Each slot of each module is replaced once, or it would not get its own value back.
        new = module not in seen
        seen.add(module)
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if id(parameter) in first_name:
                aliases[name] = first_name[id(parameter)]
                if new:
                    tensors[name] = tensors[aliases[name]]
                continue
            if is_lazy(parameter):
                raise CaptureError(
                    f"model: parameter '{name}' has no shape yet; run the network once before"
                )
            first_name[id(parameter)] = name
            tensors[name] = _meta(parameter).requires_grad_(parameter.is_floating_point())
            params[name] = describe_parameter(module, attribute, name, tuple(parameter.shape))
        for attribute, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if new:
                tensors[f"{prefix}.{attribute}" if prefix else attribute] = _meta(buffer)
    return tensors, params, aliases


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _forward(
    model: nn.Module, tensors: Mapping[str, Tensor], input_shape: Sequence[int]
) -> Tensor | None:
    floating = (t.dtype for t in tensors.values() if t.is_floating_point())
    dtype = next(floating, torch.get_default_dtype())
    # A batch of one: with more images reshapes turn into copies, which look like attention.
    image = torch.empty(1, *input_shape, dtype=dtype, device="meta")
    modes: list[Any] = [torch.device("meta")]
    while True:
        try:
            with torch.enable_grad(), _batch_norm_in_eval_mode(model), ExitStack() as stack:
                for mode in modes:
                    stack.enter_context(mode)
                output = torch.func.functional_call(
                    model, dict(tensors), (image,), tie_weights=False
                )
            break
        except RuntimeError as error:
            # Tensors that are neither parameters nor buffers are found in this way only; the mode
            # that replaces them makes every call slower.
            if "meta" not in str(error) or len(modes) > 1:
                raise
            modes.append(_EverythingOnMeta())
    return next((t for t in _tensors(output) if t.grad_fn is not None), None)


@contextmanager
def _batch_norm_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm take one image of one pixel, which it refuses where it needs statistics."""
    saved = []
    try:
        for module in model.modules():
            if not isinstance(module, _BatchNorm):
                continue
            saved.append((module, module.training, module.running_mean, module.running_var))
            module.training = False
            if module.running_mean is None:
                module.running_mean = torch.zeros(module.num_features, device="meta")
                module.running_var = torch.ones(module.num_features, device="meta")
        yield
    finally:
        for module, training, mean, variance in saved:
            module.training = training
            module.running_mean = mean
            module.running_var = variance


class _EverythingOnMeta(TorchFunctionMode):
    """Replaces every tensor that an operation reads by a stand-in on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def move(value: Any) -> Any:
            is_real = isinstance(value, Tensor) and not value.is_meta
            return _meta(value) if is_real else value

        return func(*tree_map(move, args), **tree_map(move, kwargs or {}))


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in a nested output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _tensors(value)


def _read_autograd(output: Tensor, params: Mapping[int, RawParam]) -> RawOp:
    """Turn autograd's record into raw operations."""
    root = output.grad_fn
    ops: dict[Any, RawOp] = {}
    stack: list[Any] = [root]
    found: list[Any] = []
    while stack:
        function = stack.pop()
        if function in ops:
            continue
        name = type(function).__name__
        kernel = getattr(function, "_saved_kernel_size", None) if "Pool2D" in name else None
        ops[function] = RawOp(
            name.partition("Backward")[0],
            kernel=None if kernel is None else (int(kernel[0]), int(kernel[-1])),
            keepdim=getattr(function, "_saved_keepdim", None) if name.startswith("Mean") else None,
        )
        found.append(function)
        for reader, _ in function.next_functions:
            if reader is not None and not hasattr(reader, "variable"):
                stack.append(reader)
    for function in found:
        inputs: list[RawOp | RawParam | None] = []
        for reader, _ in function.next_functions:
            if reader is None:
                inputs.append(None)
            elif hasattr(reader, "variable"):
                inputs.append(params.get(id(reader.variable)))
            else:
                inputs.append(ops[reader])
        ops[function].inputs = inputs
    return ops[root]


def _skipped(nodes: NodeGraph, params: Mapping[str, RawParam]) -> dict[str, str]:
    reached: set[str] = set()
    for node in nodes.kept():
        if node.param is not None:
            reached.add(node.param.name)
            if node.param.shift_name is not None:
                reached.add(node.param.shift_name)
    return {
        name: param.reason or _UNREACHED for name, param in params.items() if name not in reached
    }


def _explain_failure(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    input_shape: Sequence[int],
    error: Exception,
) -> str:
    """Say which layer failed: run once more, with hooks that follow the calls."""
    names = {id(module): name for name, module in model.named_modules()}
    calls: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        if id(module) in names:
            calls.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        if calls and calls[-1] is module:
            calls.pop()

    hooks = (
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave),
    )
    try:
        _forward(model, tensors, input_shape)
    except Exception:
        where = calls[-1] if calls else model
    else:
        where = model
    finally:
        for hook in hooks:
            hook.remove()
    path = names.get(id(where)) or "the network itself"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    hint = "If the network expects another input size, pass it, for example input_shape=(3, 32, 32)"
    if "meta" in reason:
        hint = (
            "The capture has shapes but no values: a forward pass that depends on values, or "
            f"moves tensors between devices, cannot be captured. {hint}"
        )
    return (
        f"model: the forward pass failed in layer '{path}' ({type(where).__name__}) on an input of "
        f"shape {(1, *input_shape)}: {reason}. {hint}"
    )

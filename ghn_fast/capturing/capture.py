"""Architecture graph of an ``nn.Module``, from its structure alone.

A stand-in for the network (:mod:`ghn_fast.capturing.shadow`) runs its forward pass on meta tensors:
shapes are computed, values are not, and nothing of the network is touched. The operations are
recorded (:mod:`ghn_fast.capturing.tracer`), and the record is read backwards from the outputs.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ghn_fast.capturing.assemble import graph_from_nodes
from ghn_fast.capturing.contract import contract
from ghn_fast.capturing.inputs import Inputs, from_parameters
from ghn_fast.capturing.op_shapes import RULES
from ghn_fast.capturing.raw import NodeGraph, RawParam, linearise, order_nodes
from ghn_fast.capturing.roles import assign_roles, needs_roles, normalises
from ghn_fast.capturing.shadow import LazyParameterError, Shadow
from ghn_fast.capturing.tracer import Recorder, tensors_in
from ghn_fast.graph.arch_graph import ArchGraph

_DEFAULT_SHAPE = (3, 224, 224)
_UNREACHED = "not on a path from the input to the output"
_NOT_NORMALISED = (
    "no layer of the network normalises features: predicted blocks repeat, so that sums over them "
    "are larger or smaller than those over independent weights, layer by layer, and outputs may be "
    "orders of magnitude outside of the range that training expects"
)


class CaptureError(ValueError):
    """The graph of a network could not be captured; the message says where and what to change."""


def capture(
    model: nn.Module,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    virtual_edges: int = 50,
    *,
    example_inputs: Any = None,
) -> ArchGraph:
    """Capture the architecture graph of a network in evaluation mode.

    Nothing is computed but shapes, and nothing of the network changes, so that several threads may
    capture at the same time. Hooks of the network are not called, apart from those by which
    ``torch.nn.utils`` computes a weight.

    Args:
        model: Any network.
        input_shape: Shape of the input without the batch dimension, (3, 224, 224) by default; for
            several inputs a sequence of shapes.
        virtual_edges: Largest shortest-path distance that gets a virtual edge (arXiv 2110.13100,
            Eq. 4); 1 means none. GHN-2 uses 50.
        example_inputs: Instead of ``input_shape``, for inputs that are not images: a tensor, a
            tuple or list of positional arguments, or a dict of keyword arguments, nested as the
            network takes them. Only shapes and types of tensors are read, batch dimension included
            (best 1); other values are passed as they are.

    Returns:
        The graph; its ``skipped`` names the parameters that it has no node for, with the reason.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``, or is TorchScript.
        CaptureError: If the forward pass fails on the inputs, or yields no output that depends on a
            parameter.
        ValueError: If ``input_shape`` or ``virtual_edges`` is not valid.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, needs a torch.nn.Module")
    if virtual_edges < 1:
        raise ValueError(f"virtual_edges: got {virtual_edges}, needs at least 1 (1 means none)")
    shapes = None
    if example_inputs is None:
        shapes = _check_shapes(_DEFAULT_SHAPE if input_shape is None else input_shape)
    elif input_shape is not None:
        raise ValueError("input_shape: got a value beside example_inputs, needs only one of them")
    # Forward passes under torch.no_grad() are recorded all the same, unless they need it to change
    # parameters in place. Constants have no values, unless the forward pass reads them.
    how = {"always_grad": True, "constants": False}
    while True:
        try:
            shadow = Shadow(model)
        except LazyParameterError as error:
            raise CaptureError(str(error)) from None
        try:
            return _capture(model, shadow, shapes, example_inputs, virtual_edges, how)
        except _Again as again:
            how = {**how, again.option: not how[again.option]}
        finally:
            shadow.close()


class _Again(Exception):
    """The forward pass needs another option of the recorder."""

    def __init__(self, option: str) -> None:
        super().__init__(option)
        self.option = option


def _capture(
    model: nn.Module,
    shadow: Shadow,
    shapes: Sequence[tuple[int, ...]] | None,
    example_inputs: Any,
    virtual_edges: int,
    how: Mapping[str, bool],
) -> ArchGraph:
    recorder = Recorder(RULES, shadow.stand_in, **how)
    inputs = Inputs()
    dtype = shadow.dtype or torch.get_default_dtype()
    args, kwargs = _inputs(shapes, example_inputs, dtype, inputs)
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _random_state(),
            recorder,
            inputs.mode(),
        ):
            output = shadow.module(*args, **kwargs)
    except Exception as error:
        if how["always_grad"] and "leaf Variable that requires grad" in str(error):
            raise _Again("always_grad") from error
        if not how["constants"] and "meta" in str(error):
            raise _Again("constants") from error
        raise CaptureError(_explain(model, shadow, args, kwargs, error)) from error
    outputs = [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None]
    roots, ops = from_parameters(*recorder.read(outputs, shadow.by_id, inputs.nodes))
    if not roots:
        raise CaptureError(
            f"model: the output of {type(model).__name__} depends on no parameter, needs a tensor "
            "(or a tuple, list or dict with one) computed from parameters"
        )
    inputs.mark(ops)
    depends = None
    if needs_roles(ops, shadow.params.values()):
        depends = assign_roles(ops)
    nodes = contract(order_nodes(linearise(*roots)))
    return graph_from_nodes(
        nodes,
        virtual_edges=virtual_edges,
        skipped=_skipped(nodes, shadow.params),
        aliases=shadow.aliases,
        notes=() if normalises(ops, depends) else (_NOT_NORMALISED,),
    )


def _check_shapes(input_shape: Any) -> list[tuple[int, ...]]:
    """One shape or several, as a list of shapes."""
    is_sequence = isinstance(input_shape, Sequence) and not isinstance(input_shape, str)
    several = is_sequence and len(input_shape) > 0 and isinstance(input_shape[0], Sequence)
    shapes = list(input_shape) if several else [input_shape]
    for shape in shapes:
        sizes = tuple(shape) if isinstance(shape, Sequence) else ()
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(
                f"input_shape: got {input_shape!r}, needs positive integers such as (3, 224, 224), "
                "or a sequence of such shapes for several inputs"
            )
    return [tuple(shape) for shape in shapes]


def _inputs(
    shapes: Sequence[tuple[int, ...]] | None,
    example_inputs: Any,
    dtype: torch.dtype,
    inputs: Inputs,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward pass."""
    if shapes is not None:
        # A batch of one: with more images reshapes turn into copies, which look like attention.
        return tuple(inputs.features((1, *shape), dtype) for shape in shapes), {}

    def on_meta(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return inputs.features(value.shape, dtype)
        return inputs.follow(torch.empty(value.shape, dtype=value.dtype, device="meta"))

    if isinstance(example_inputs, Mapping):
        return (), {name: tree_map(on_meta, value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(tree_map(on_meta, value) for value in example_inputs), {}
    return (on_meta(example_inputs),), {}


@contextmanager
def _random_state() -> Iterator[None]:
    """Put the generators back that a forward pass may draw from."""
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    torch_state = torch.random.get_rng_state()
    try:
        yield
    finally:
        # Only if the pass drew: other threads may have drawn in the meantime.
        if random.getstate() != python_state:
            random.setstate(python_state)
        if numpy is not None and not _same_state(numpy.random.get_state(), numpy_state):
            numpy.random.set_state(numpy_state)
        if not torch.equal(torch.random.get_rng_state(), torch_state):
            torch.random.set_rng_state(torch_state)


def _same_state(first: Any, second: Any) -> bool:
    return first[2:] == second[2:] and bool((first[1] == second[1]).all())


def _skipped(nodes: NodeGraph, params: Mapping[str, RawParam]) -> dict[str, str]:
    reached: set[str] = set()
    for node in nodes.kept():
        if node.param is not None:
            reached.add(node.param.name)
            if node.param.shift_name is not None:
                reached.add(node.param.shift_name)
    return {
        name: _UNREACHED if param.open or param.reason is None else param.reason
        for name, param in params.items()
        if name not in reached
    }


def _explain(
    model: nn.Module,
    shadow: Shadow,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    error: Exception,
) -> str:
    """Say which layer failed: the innermost module whose code was running."""
    where: Any = model
    path = ""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        name = shadow.name_of(owner) if isinstance(owner, nn.Module) else None
        if name is not None:
            where, path = owner, name
        trace = trace.tb_next
    shapes = [tuple(t.shape) for t in tensors_in([*args, *kwargs.values()])]
    of = f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}"
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    hint = "If the network expects another input size, pass it, for example input_shape=(3, 32, 32)"
    if isinstance(error, TypeError) and "argument" in reason:
        hint = (
            "If the network takes several inputs, pass a shape for each, or example_inputs with "
            "the arguments"
        )
    elif "meta" in reason or ".item()" in reason:
        hint = (
            "The capture has shapes but no values: a forward pass that depends on values cannot be "
            f"captured. {hint}"
        )
    return (
        f"model: the forward pass failed in layer '{path or 'the network itself'}' "
        f"({type(where).__name__}) on an input of {of}: {reason}. {hint}"
    )

"""Architecture graph of an ``nn.Module``, from its structure alone.

A stand-in for the network (:mod:`ghn_fast.capturing.shadow`) runs its forward pass, and nothing of
the network is touched. Of what depends on features or parameters only shapes are computed; the rest
is computed (:mod:`ghn_fast.capturing.known`). The operations are recorded
(:mod:`ghn_fast.capturing.tracer`), and the record is read backwards from the outputs.
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
from ghn_fast.capturing.blocks import name_blocks
from ghn_fast.capturing.contract import contract
from ghn_fast.capturing.input_types import ExampleInputs, InputShape
from ghn_fast.capturing.inputs import Inputs, from_parameters
from ghn_fast.capturing.known import ValuesNeededError
from ghn_fast.capturing.op_shapes import RULES
from ghn_fast.capturing.raw import NodeGraph, RawParam, linearise, order_nodes
from ghn_fast.capturing.recover import recover
from ghn_fast.capturing.roles import assign_roles, needs_roles, normalises
from ghn_fast.capturing.shadow import LazyParameterError, Shadow
from ghn_fast.capturing.specials import SPECIALS
from ghn_fast.capturing.tensors import is_mask, tensors_in
from ghn_fast.capturing.tracer import Recorder
from ghn_fast.capturing.words import explain_failure, explain_partial
from ghn_fast.graph.arch_graph import NOT_NORMALISED, ArchGraph
from ghn_fast.graph.rules import GraphRules

_DEFAULT_SHAPE = (3, 224, 224)
_UNREACHED = "not on a path from the input to the output"


class CaptureError(ValueError):
    """The graph of a network could not be captured; the message says where and what to change."""


def capture(
    model: nn.Module,
    input_shape: InputShape | None = None,
    virtual_edges: int = 50,
    *,
    example_inputs: ExampleInputs | None = None,
    rules: GraphRules = GraphRules.GHN2,
) -> ArchGraph:
    """Capture the architecture graph of a network in evaluation mode.

    Of features and parameters nothing is computed but shapes, and nothing of the network changes,
    so that several threads may capture at the same time. Hooks of the network are not called, apart
    from its own: those by which ``torch.nn.utils`` computes a weight, methods of its modules, and
    those that the forward pass registers.

    Args:
        model: Any network.
        input_shape: Shape of the input without the batch dimension, (3, 224, 224) by default; for
            several inputs a sequence of shapes.
        virtual_edges: Largest shortest-path distance that gets a virtual edge (arXiv 2110.13100,
            Eq. 4); 1 means none. GHN-2 uses 50.
        example_inputs: Instead of ``input_shape``, for inputs that are not images: a tensor, a
            tuple or list of positional arguments, or a dict of keyword arguments, nested as the
            network takes them. Of floating-point tensors only shapes and types are read, batch
            dimension included (best 1); integers and booleans keep their values, which the forward
            pass may look at, and so do masks, tensors with infinite elements.
        rules: What is a node, and which parameters have one; a hypernetwork reads graphs of the
            rules that it was trained with (``ghn.config.graph_rules``).

    Returns:
        The graph; its ``skipped`` names the parameters that it has no node for, with the reason.
        Where the forward pass looks at values of features behind the last parameter, the graph is
        that of what was done before, and ``partial`` says so.

    Raises:
        TypeError: If ``model`` is not an ``nn.Module``, or is TorchScript.
        CaptureError: If the forward pass fails on the inputs, looks at values of features before it
            comes to the last parameter, or yields no output that depends on a parameter.
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
    try:
        shadow = Shadow(model)
        try:
            return _capture(model, shadow, shapes, example_inputs, virtual_edges, rules)
        except _LookCloserError:
            shadow.close()
            shadow = Shadow(model, hooks=True)
            return _capture(
                model, shadow, shapes, example_inputs, virtual_edges, rules, closely=True
            )
        finally:
            shadow.close()
    except LazyParameterError as error:
        raise CaptureError(str(error)) from None
    except RecursionError as error:
        raise CaptureError(
            f"model: {type(model).__name__} is nested too deeply to be captured: {error}"
        ) from None


class _LookCloserError(Exception):
    """All results have to be kept, since outputs alone do not lead to all parameters, or all hooks
    have to be called.
    """


def _capture(
    model: nn.Module,
    shadow: Shadow,
    shapes: Sequence[tuple[int, ...]] | None,
    example_inputs: Any,
    virtual_edges: int,
    rules: GraphRules,
    *,
    closely: bool = False,
) -> ArchGraph:
    recorder = Recorder(
        RULES,
        shadow.parameter,
        specials=SPECIALS,
        recover=recover,
        known=shadow.known,
        keep_results=closely,
    )
    inputs = Inputs()
    dtype = shadow.dtype or torch.get_default_dtype()
    args, kwargs = _inputs(shapes, example_inputs, dtype, shadow, inputs)
    partial = None
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            _random_state(),
            shadow.classes.unchanged(),
        ):
            with recorder, inputs.mode():
                output = shadow.module(*args, **kwargs)
            outputs = recorder.final(output)
    except Exception as error:
        if not closely and (isinstance(error, ValuesNeededError) or shadow.misses_hooks()):
            raise _LookCloserError from error
        message = explain_failure(model, shadow, args, kwargs, error)
        outputs = _last_results(recorder, shadow) if isinstance(error, ValuesNeededError) else []
        if not outputs:
            raise CaptureError(message) from error
        partial = explain_partial(shadow, error)
    if not closely and shadow.misses_hooks():
        raise _LookCloserError
    if partial is None:
        outputs = recorder.choices_before(outputs, shadow.by_id) + outputs
        if recorder.assumed:
            partial = f"it was assumed {', and '.join(recorder.assumed)}"
    try:
        roots, ops = from_parameters(*recorder.read(outputs, shadow.by_id, inputs.nodes))
        if not roots:
            raise CaptureError(
                f"model: the output of {type(model).__name__} depends on no parameter, needs a "
                "tensor (or a tuple, list or dict with one) computed from parameters"
            )
        inputs.mark(ops)
        depends = None
        if needs_roles(ops, shadow.params.values()):
            depends = assign_roles(ops, rules)
        if rules.blocks == "structure":
            name_blocks(ops, rules)
        nodes = contract(order_nodes(linearise(*roots), rules), rules)
        skipped = _skipped(nodes, shadow.params)
        if not closely and _UNREACHED in skipped.values():
            raise _LookCloserError
        return graph_from_nodes(
            nodes,
            virtual_edges=virtual_edges,
            skipped=skipped,
            aliases=shadow.aliases,
            notes=() if normalises(ops, depends) else (NOT_NORMALISED,),
            partial=partial,
            rules=rules,
            initial_deviation=_initial_deviation(model),
        )
    except (_LookCloserError, CaptureError):
        raise
    except Exception as error:
        raise CaptureError(
            f"model: the forward pass of {type(model).__name__} was recorded, but its record "
            f"cannot be turned into a graph: {error}"
        ) from error


def _initial_deviation(model: nn.Module) -> float:
    """Standard deviation of the weights' initial values, as a language model says it."""
    value = getattr(getattr(model, "config", None), "initializer_range", None)
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.02


def _last_results(recorder: Recorder, shadow: Shadow) -> list[Tensor]:
    """What stands for the outputs of a forward pass that did not come to its end.

    Results that nothing reads, from the last one on, as long as they lead to further parameters;
    none if a parameter is not among those that they lead to.
    """
    results = recorder.results or []
    found: list[Tensor] = []
    reached: set[int] = set()
    for tensor in reversed(results):
        new = recorder.parameters_behind(tensor, shadow.by_id) - reached
        if new:
            reached |= new
            found.insert(0, tensor)
    wanted = {id(param) for param in shadow.by_id.values() if param.open or param.node_type}
    have = {id(shadow.by_id[key]) for key in reached}
    return found if wanted <= have else []


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
    shadow: Shadow,
    inputs: Inputs,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the forward pass."""
    if shapes is not None:
        # A batch of one: with more images reshapes turn into copies, which look like attention.
        return tuple(inputs.features((1, *shape), dtype) for shape in shapes), {}

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor):
            made = shadow.copy(value)
            for tensor in tensors_in(made):
                inputs.follow(tensor)
            return made
        if (value.is_floating_point() or value.is_complex()) and not is_mask(value):
            kind = dtype if value.is_floating_point() else value.dtype
            return inputs.features(value.shape, kind)
        return inputs.follow(shadow.known.copy(value))

    if isinstance(example_inputs, Mapping):
        return (), {name: tree_map(given, value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(tree_map(given, value) for value in example_inputs), {}
    return (given(example_inputs),), {}


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
        name: param.reason or _UNREACHED for name, param in params.items() if name not in reached
    }

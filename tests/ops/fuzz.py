"""Random calls of every op with arguments that are nearly right, in a process of their own.

    python tests/ops/fuzz.py --calls 100000 --seed 1

Real calls are recorded while small hypernetworks predict, train and read architectures. Then one
or two arguments of a recorded call are changed: type, shape, strides, values, device, length of a
list. Plans are changed behind torch's back, too, when they are known to be sound already.
A call may raise an exception or succeed. It may not end the process, and it may not write to an
argument that its schema does not name as written to. Before each call its number and what was
changed are printed, so that the last line says what ended the process.

``LD_PRELOAD`` of a sanitizer's library and native ops compiled with it make this a search for
reads and writes out of bounds.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACE = "ghn_fast"
# A size that was changed at random may ask for any amount of memory; no machine shall swap for it.
MEMORY = 6 << 30
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
NUMBERS = (-(2**63), -(2**31) - 1, -2, -1, 0, 1, 2, 3, 7, 64, 1000, 2**31, 2**33, 2**62, 2**63 - 1)
ALLOWED = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, MemoryError)


class Call(NamedTuple):
    """A call of an op: the overload and its arguments, by position."""

    op: Any
    args: tuple[Any, ...]


class Recorder(TorchDispatchMode):
    """Keeps copies of the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == NAMESPACE:
            self.calls.append(Call(func, tuple(copied(arg) for arg in args)))
        return func(*args, **(kwargs or {}))


def copied(value: Any) -> Any:
    """A copy that shares no memory; tensors without history."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        return [copied(item) for item in value]
    return value


def recorded_calls() -> list[Call]:
    """Calls of every op, on small inputs.

    Raises:
        AssertionError: If a native op was not called.
    """
    import ghn_fast
    from ghn_fast.deepnets import DeepNets, SampledNets, build_graph, count_parameters
    from ghn_fast.graph.batch import GraphBatch

    config = ghn_fast.GHNConfig(hid=8, max_shape=(8, 8, 5, 5), num_classes=3, virtual_edges=5)
    nets = SampledNets("test", 3, seed=1, virtual_edges=5)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Flatten(),
        torch.nn.Linear(216, 3),
    )  # fmt: skip
    with Recorder() as recorder:
        for net in nets:
            assert net.config is not None
            build_graph(net.config, num_classes=3, virtual_edges=5)
            count_parameters(net.config)
        ghn = ghn_fast.GHN(config)
        graphs = [net.graph for net in nets]
        flat, _ = ghn.predict_flat(graphs)
        flat.sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ghn.predict(model, input_shape=(3, 8, 8))
            ghn.double().predict(model, input_shape=(3, 8, 8))
        resnet = DeepNets(None, "predefined", virtual_edges=3)[0].graph
        plan = GraphBatch([resnet]).plan
        plan.edges  # noqa: B018
        ops = torch.ops.ghn_fast
        packed = GraphBatch([graphs[0]]).plan.packed
        assert packed is not None
        ops.gated_gnn_plan_to(packed, torch.device("cpu"))
        ops.gated_gnn_plan_edges(packed)
        ops.gated_gnn_join([packed, packed])
        image_calls()
        attention_calls()
    # Packing is for other devices than the CPU; its arguments are those of the op itself.
    extra = [
        Call(ops.expand_params_pack.default, (call.args[1], call.args[0], call.args[3]))
        for call in recorder.calls
        if call.op is ops.expand_params.default
    ]
    calls = [*recorder.calls, *extra, *program_calls()]
    missing = set(op_names()) - {call.op._schema.name.partition("::")[2] for call in calls}
    assert not missing, f"no call of {sorted(missing)} was recorded"
    return calls


def image_calls() -> None:
    """Calls of the ops on images, forward and backward, in each type that they take."""
    from ghn_fast.ops.batch_norm_act import batch_norm_act
    from ghn_fast.ops.depthwise_conv2d import depthwise_conv2d

    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 19, 9, 8).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(19, 1, 3, 5).to(dtype).requires_grad_()
        vectors = torch.randn(2, 19, requires_grad=True)
        y = depthwise_conv2d(x.requires_grad_(), weight, (2, 1), (1, 2), (1, 1))
        batch_norm_act(y, vectors[0], vectors[1], 1e-5, True).sum().backward()


def attention_calls() -> None:
    """Calls of the attention over nodes, with codes of each type that it takes."""
    from ghn_fast.ops.graph_attention import graph_attention

    for dtype in (torch.uint8, torch.int16):
        qkv = torch.randn(7, 3, 2, 4, requires_grad=True)
        table = torch.randn(5, 2, requires_grad=True)
        codes = torch.randint(0, 5, (3 * 3 + 4 * 4,), dtype=dtype)
        graph_attention(qkv, codes, [0, 3, 7], table).sum().backward()


def program_calls() -> list[Call]:
    """Calls of the op that runs a network; the recorder sees the operations that it consists of."""
    from ghn_fast.deepnets import SampledNets
    from ghn_fast.deepnets.architectures.network import Network
    from ghn_fast.deepnets.architectures.spec import network_spec
    from ghn_fast.metatrain.functional_networks import program_of

    calls = []
    for split in ("train", "bnfree"):
        config = SampledNets(split, 2, seed=1)[1].config_for(8)
        program = program_of(network_spec(config, 3, 8))
        parameters = dict(Network(config, 3, 8).named_parameters())
        places: list[int] = []
        flat: list[Tensor] = []
        for name in program.names:
            shape = parameters[name].shape
            places += (sum(map(len, flat)), len(shape), *shape)
            flat.append(parameters[name].detach().flatten())
        values = torch.cat(flat)
        images = torch.randn(3, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        for narrow in (None, values.bfloat16()):
            arguments = (program.packed, places, values, narrow, images, torch.arange(3))
            more = (0.5, 0.1, None, torch.zeros_like(values))
            calls.append(Call(torch.ops.ghn_fast.program_gradient.default, (*arguments, *more)))
    return calls


def op_names() -> list[str]:
    """Names of all native ops."""
    schemas = torch._C._jit_get_all_schemas()
    names = {s.name.partition("::")[2] for s in schemas if s.name.startswith(f"{NAMESPACE}::")}
    # Triton's ops are registered from Python when they are first used.
    return sorted(name for name in names if "triton" not in name)


def changed_tensor(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """A tensor that differs in type, shape, strides, values or device."""
    if x.is_meta:
        return x, "nothing more"
    kind = rng.choice(("dtype", "shape", "strides", "values", "values", "values", "device"))
    if kind == "dtype":
        dtype = rng.choice(DTYPES)
        return x.to(dtype), f"dtype {dtype}"
    if kind == "device":
        return x.to("meta"), "device meta"
    if kind == "shape":
        return changed_shape(x, rng)
    if kind == "strides":
        return changed_strides(x, rng)
    return changed_values(x, rng)


def changed_shape(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """A tensor of another shape."""
    choices = [x[None], x.flatten(), x.reshape(-1)[:0], x.new_zeros(()), x.new_zeros((0, 3))]
    if x.ndim and len(x):
        choices += [x[:-1], x[:1], torch.cat([x, x]), x[..., :-1], x[..., :0]]
    y = rng.choice(choices)
    return y, f"shape {tuple(y.shape)}"


def changed_strides(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """The same shape or nearly so, in memory that is not contiguous."""
    choices = [torch.stack([x, x], -1)[..., 0], x.expand(2, *x.shape), x.flatten()[::2]]
    if x.ndim > 1:
        choices += [x.transpose(0, -1), x.transpose(0, -1).contiguous().transpose(0, -1)]
    if x.ndim:
        choices.append(x[:1].expand(x.shape) if len(x) else x)
    y = rng.choice(choices)
    return y, f"strides {y.stride()} of shape {tuple(y.shape)}"


def changed_values(x: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """Some elements are others, extreme ones among them."""
    y = x.clone()
    flat = y.view(-1) if y.is_contiguous() else y.reshape(-1)
    where = (
        [rng.randrange(flat.numel()) for _ in range(rng.choice((1, 1, 2, 5)))] if len(flat) else []
    )
    for index in where:
        if y.is_floating_point():
            flat[index] = rng.choice((math.nan, math.inf, -1e30, 0.0))
        elif y.dtype == torch.bool or y.is_complex():
            flat[index] = not flat[index]
        else:
            limits = torch.iinfo(y.dtype)
            value = rng.choice(
                (*NUMBERS, int(flat[index]) + rng.choice((-1, 1)), rng.randrange(256))
            )
            flat[index] = min(max(value, limits.min), limits.max)
    return flat.view(y.shape), f"values at {where}"


def tampered(plan: Tensor, rng: random.Random) -> tuple[Tensor, str]:
    """A plan that is known to be sound, written to past torch's version counter."""
    known = torch.ops.ghn_fast.gated_gnn_join([plan])
    memory = known.numpy()
    # The header is small and decides where everything else is read.
    where = [rng.randrange(rng.choice((16, len(memory)))) for _ in range(rng.choice((1, 1, 3)))]
    for index in where:
        value = rng.choice((*NUMBERS, int(memory[index]) + rng.choice((-1, 1)), rng.randrange(64)))
        memory[index] = min(max(value, -(2**31)), 2**31 - 1)
    return known, f"tampered with at {where}"


def changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """An argument that differs, and what differs."""
    if isinstance(value, Tensor):
        return changed_tensor(value, rng)
    if isinstance(value, bool):
        return not value, "flag"
    if isinstance(value, int):
        number = rng.choice((*NUMBERS, value - 1, value + 1, 2 * value))
        number = min(max(number, -(2**63)), 2**63 - 1)
        return number, f"number {number}"
    if isinstance(value, list):
        return changed_list(value, rng)
    if isinstance(value, torch.device):
        return torch.device(rng.choice(("meta", "cuda", "cpu"))), "device"
    return value, "nothing"


def changed_list(value: list[Any], rng: random.Random) -> tuple[list[Any], str]:
    """A list that is shorter, longer, in another order, or has an element that differs."""
    if not value or rng.random() < 0.3:
        choices = [value[:-1], value + value, value[::-1], [], value[:1] * len(value)]
        found = rng.choice(choices)
        return found, f"list of {len(found)} (was {len(value)})"
    index = rng.randrange(len(value))
    item, what = changed(value[index], rng)
    return [*value[:index], item, *value[index + 1 :]], f"[{index}] {what}"


def changed_calls(calls: list[Call], count: int, seed: int) -> Iterator[tuple[Call, str]]:
    """Calls in which one or two arguments differ, each op equally often."""
    rng = random.Random(seed)
    by_op: dict[Any, list[Call]] = {}
    for call in calls:
        by_op.setdefault(call.op, []).append(call)
    ops = sorted(by_op, key=str)
    for _ in range(count):
        op, args = rng.choice(by_op[rng.choice(ops)])
        fresh, words = [copied(arg) for arg in args], []
        for _ in range(rng.choice((1, 1, 2))):
            index = rng.randrange(len(fresh))
            name = op._schema.arguments[index].name
            if name == "plan" and not words and rng.random() < 0.5:
                fresh[index], what = tampered(fresh[index], rng)
            else:
                fresh[index], what = changed(fresh[index], rng)
            words.append(f"{name}: {what}")
        yield Call(op, tuple(fresh)), f"{op} with {'; '.join(words)}"


def run(call: Call) -> str | None:
    """Make a call; what is wrong with what it did, or ``None``."""
    kept = []
    for argument, value in zip(call.op._schema.arguments, call.args, strict=False):
        if argument.alias_info is None or not argument.alias_info.is_write:
            kept.append((argument.name, value, copied(value)))
    try:
        call.op(*call.args)
    except ALLOWED as error:
        if "INTERNAL ASSERT" in str(error):
            return f"an internal error: {str(error).splitlines()[0]}"
    for name, value, before in kept:
        if not same(value, before):
            return f"{name} was written to"
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, bit for bit."""
    if isinstance(a, Tensor):
        if a.device.type == "meta":
            return True
        if a.is_floating_point() or a.is_complex():
            return torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))
        return torch.equal(a, b)
    if isinstance(a, list):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def main() -> None:
    """Make the calls; exit status 1 if one of them did what it must not do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    calls = recorded_calls()
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, resource.RLIM_INFINITY))
    wrong = 0
    for number, (call, what) in enumerate(changed_calls(calls, options.calls, options.seed)):
        print(f"{number} {what}", flush=True)
        problem = run(call)
        if problem is not None:
            wrong += 1
            print(f"WRONG {number} {what}: {problem}", flush=True)
    print(f"{options.calls} calls of {len({c.op for c in calls})} ops, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()

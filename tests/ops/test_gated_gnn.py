from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
import naive
from ghn_fast.ops import backend
from ghn_fast.ops.gated_gnn import GRUWeights, MLPWeights, gated_gnn
from ghn_fast.ops.gated_gnn_plan import GraphPlan
from randomised import HealthCheck, given, settings, st
from tolerances import assert_close


@pytest.fixture
def compiled(device: torch.device) -> str:
    """The compiled back end of each device in turn."""
    problem = backend.problem_of("gated_gnn", device.type, device.type)
    if problem is not None:
        pytest.skip(f"back end {device.type!r} of gated_gnn: {problem}")
    return device.type


@pytest.fixture(params=["reference", "compiled"])
def name(request: pytest.FixtureRequest, device: torch.device) -> str:
    """Each back end of each device in turn."""
    if request.param == "reference":
        return "reference"
    compiled: str = request.getfixturevalue("compiled")
    return compiled


class Network(NamedTuple):
    """Modules with the weights of the op."""

    mlp: nn.Sequential
    mlp_ve: nn.Sequential | None
    gru: nn.GRUCell

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Network:
        return Network(*(None if m is None else copy.deepcopy(m).to(device, dtype) for m in self))

    def parameters(self) -> list[Tensor]:
        modules = [m for m in self if m is not None]
        return [p for module in modules for p in module.parameters()]

    def propagate(self, x: Tensor, plan: GraphPlan, steps: int = 1) -> Tensor:
        mlp_ve = None if self.mlp_ve is None else mlp_weights(self.mlp_ve)
        return gated_gnn(x, plan, mlp_weights(self.mlp), mlp_ve, gru_weights(self.gru), steps)


def network(
    hid: int = 8, hidden: int = 4, *, virtual: bool = True, dtype: torch.dtype = torch.float32
) -> Network:
    mlps = [naive.mlp(hid, hidden, dtype) for _ in range(2)]
    return Network(mlps[0], mlps[1] if virtual else None, nn.GRUCell(hid, hid, dtype=dtype))


def mlp_weights(mlp: nn.Sequential) -> MLPWeights:
    return MLPWeights(mlp[0].weight, mlp[0].bias, mlp[2].weight, mlp[2].bias)


def gru_weights(gru: nn.GRUCell) -> GRUWeights:
    return GRUWeights(gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh)


def make_rows(edges: list[tuple[int, int]], num_nodes: int, cutoff: int) -> Tensor:
    rows = sorted(naive.distances(edges, num_nodes, cutoff))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def random_rows(num_nodes: int, density: float, cutoff: int = 50) -> Tensor:
    return make_rows(naive.random_dag(num_nodes, density, seed=num_nodes), num_nodes, cutoff)


def batch_of(sizes: list[int], density: float = 0.2, cutoff: int = 50) -> GraphPlan:
    offsets, parts = [0], []
    for size in sizes:
        shift = torch.tensor([offsets[-1], offsets[-1], 0])
        parts.append(random_rows(size, density, cutoff) + shift)
        offsets.append(offsets[-1] + size)
    return GraphPlan(torch.cat(parts), offsets)


def results(net: Network, x: Tensor, run: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
    """Value and all gradients of a function of x, for one fixed direction."""
    x = x.detach().clone().requires_grad_()
    out = run(x)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    inputs = [x, *net.parameters()]
    return [out, *torch.autograd.grad((out * probe).sum(), inputs, allow_unused=True)]


def assert_same_results(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for index, (have, need) in enumerate(zip(actual, expected, strict=True)):
        name = f"gradient {index - 1}" if index else "output"
        if need is None or not need.any():
            # Messages that nobody receives: exactly no gradient.
            assert have is None or not have.any(), name
        else:
            assert_close(have, need, context="gradient" if index else "op", name=name)


CASES = [
    pytest.param(1, 0.0, 50, id="one node"),
    pytest.param(6, 0.0, 50, id="no edges"),
    pytest.param(12, 0.2, 1, id="no virtual edges"),
    pytest.param(25, 0.15, 50, id="virtual edges"),
    pytest.param(30, 0.05, 3, id="disconnected"),
]


@pytest.mark.parametrize(("num_nodes", "density", "cutoff"), CASES)
@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_values_and_gradients_equal_the_node_by_node_loop(
    name: str,
    device: torch.device,
    num_nodes: int,
    density: float,
    cutoff: int,
    virtual: bool,
    steps: int,
) -> None:
    rows = random_rows(num_nodes, density, cutoff)
    net = network(virtual=virtual)
    x = torch.randn(num_nodes, 8)
    expected = results(
        net, x, lambda x: naive.gated_gnn(x, rows.tolist(), net.mlp, net.mlp_ve, net.gru, steps)
    )
    plan = GraphPlan(rows, [0, num_nodes]).to(device)
    there = net.on(device)
    with ghn_fast.backend(name):
        actual = results(there, x.to(device), lambda x: there.propagate(x, plan, steps))
    assert_same_results(actual, expected)


def compare_with_reference(
    compiled: str, device: torch.device, net: Network, x: Tensor, plan: GraphPlan, steps: int = 1
) -> None:
    """Value and all gradients of a compiled back end against the reference on the CPU."""
    with ghn_fast.backend("reference"):
        expected = results(net, x, lambda x: net.propagate(x, plan, steps))
    there, plan = net.on(device), plan.to(device)
    with ghn_fast.backend(compiled):
        actual = results(there, x.to(device), lambda x: there.propagate(x, plan, steps))
    assert_same_results(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("hid", "hidden"), [(8, 4), (12, 6), (32, 16), (32, 32), (40, 20), (64, 32), (128, 64), (7, 3)]
)
def test_every_width_equals_the_reference(
    compiled: str, device: torch.device, dtype: torch.dtype, hid: int, hidden: int
) -> None:
    plan = batch_of([5, 40, 1, 23])
    x = torch.randn(plan.num_nodes, hid, dtype=dtype)
    compare_with_reference(compiled, device, network(hid, hidden, dtype=dtype), x, plan)


@pytest.mark.library
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("hid", "hidden", "sizes"),
    [
        (8, 4, [5, 40, 1, 0, 23]),
        (32, 16, [600, 1, 0, 90, 300]),
        (32, 16, [90] * 300),
        (32, 16, [1000]),
        (32, 32, [1000, 60]),
        (128, 64, [60, 400]),
    ],
    ids=["small", "models", "more graphs than blocks", "beyond shared memory", "mixed", "wide"],
)
@pytest.mark.parametrize("virtual", [True, False])
def test_cuda_equals_the_cpu_and_repeats_its_bits(
    dtype: torch.dtype, hid: int, hidden: int, sizes: list[int], virtual: bool
) -> None:
    plan = batch_of(sizes, density=3 / max(sizes))
    net = network(hid, hidden, virtual=virtual, dtype=dtype)
    x = torch.randn(plan.num_nodes, hid, dtype=dtype)
    # In double precision, so that the errors of one back end count alone.
    exact = net.on(torch.device("cpu"), torch.float64)
    with ghn_fast.backend("cpu"):
        wide = results(exact, x.double(), lambda x: exact.propagate(x, plan, 2))
    expected = [None if value is None else value.to(dtype) for value in wide]
    plan, x = plan.to("cuda"), x.cuda()
    net = net.on(torch.device("cuda"))
    with ghn_fast.backend("cuda"):
        actual = results(net, x, lambda x: net.propagate(x, plan, 2))
        again = results(net, x, lambda x: net.propagate(x, plan, 2))
        with torch.no_grad():
            assert torch.equal(net.propagate(x, plan, 2), actual[0])
    # Of millions of hidden values some are so near zero that single precision gives them the other
    # sign, which decides about a gradient behind a ReLU; those are compared in double precision.
    compared = 1 if dtype == torch.float32 and len(sizes) > 100 else len(actual)
    assert_same_results(actual[:compared], expected[:compared])
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    density=st.sampled_from((0.0, 0.03, 0.1, 0.4)),
    cutoff=st.sampled_from((1, 2, 50)),
    virtual=st.booleans(),
    steps=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    hid=st.sampled_from((8, 32)),
)
def test_random_batches_equal_the_reference(
    compiled: str,
    device: torch.device,
    hid: int,
    sizes: list[int],
    density: float,
    cutoff: int,
    virtual: bool,
    steps: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    plan = batch_of(sizes, density, cutoff)
    # The kernels that a GPU has for models are for single precision.
    dtype = torch.float64 if hid == 8 else torch.float32
    net = network(hid, hid // 2 if virtual else hid, virtual=virtual, dtype=dtype)
    x = torch.randn(plan.num_nodes, hid, dtype=dtype)
    compare_with_reference(compiled, device, net, x, plan, steps)


def test_a_large_graph_equals_the_reference(compiled: str, device: torch.device) -> None:
    num_nodes = 2000
    steps = torch.randint(1, 9, (num_nodes,)).tolist()
    edges = {(v - 1, v) for v in range(1, num_nodes)}
    edges |= {(max(v - s, 0), v) for v, s in enumerate(steps) if v > s}
    plan = GraphPlan(make_rows(sorted(edges), num_nodes, 6), [0, num_nodes])
    # Errors of single precision grow along a path of hundreds of nodes.
    net = network(16, 8, dtype=torch.float64)
    x = torch.randn(num_nodes, 16, dtype=torch.float64)
    compare_with_reference(compiled, device, net, x, plan)


@pytest.mark.parametrize("virtual", [True, False])
def test_gradcheck_in_double_precision(name: str, device: torch.device, virtual: bool) -> None:
    plan = batch_of([7, 3], density=0.4).to(device)
    net = network(4, 2, virtual=virtual, dtype=torch.float64).on(device)
    split = 8 if virtual else 4
    x = torch.randn(plan.num_nodes, 4, dtype=torch.float64).to(device).requires_grad_()

    def function(x: Tensor, *values: Tensor) -> Tensor:
        mlp_ve = MLPWeights(*values[4:8]) if virtual else None
        return gated_gnn(x, plan, MLPWeights(*values[:4]), mlp_ve, GRUWeights(*values[split:]), 2)

    with ghn_fast.backend(name):
        assert torch.autograd.gradcheck(function, [x, *net.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("virtual", [True, False])
def test_opcheck(compiled: str, device: torch.device, virtual: bool, dtype: torch.dtype) -> None:
    plan = batch_of([9, 1, 12]).to(device)
    net = network(virtual=virtual, dtype=dtype).on(device)
    weights = net.parameters()
    x = torch.randn(plan.num_nodes, 8, dtype=dtype).to(device).requires_grad_()
    forward = torch.ops.ghn_fast.gated_gnn_forward
    torch.library.opcheck(forward.default, (x, plan.packed, weights, 2, True))
    x, weights = x.detach(), [w.detach() for w in weights]
    torch.library.opcheck(forward.default, (x, plan.packed, weights, 1, False))
    out, saved = forward(x, plan.packed, weights, 1, True)
    backward = torch.ops.ghn_fast.gated_gnn_backward
    torch.library.opcheck(backward.default, (out, x, plan.packed, weights, saved, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(compiled: str, device: torch.device, dtype: torch.dtype) -> None:
    plan = batch_of([9, 12]).to(device)
    net = network(dtype=dtype).on(device)
    x = torch.randn(plan.num_nodes, 8, dtype=dtype).to(device)
    expected = results(net, x, lambda x: 2 * net.propagate(x, plan))
    compiled = torch.compile(
        lambda x: 2 * net.propagate(x, plan), fullgraph=True, backend="aot_eager"
    )
    assert_same_results(results(net, x, compiled), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_features(name: str, device: torch.device, dtype: torch.dtype) -> None:
    plan = batch_of([9, 12]).to(device)
    wide = network().on(device)
    x = torch.randn(plan.num_nodes, 8).to(device, dtype)
    net = Network(*(m.to(dtype) for m in wide))
    with ghn_fast.backend(name):
        actual = net.propagate(x, plan)
        expected = Network(*(m.float() for m in net)).propagate(x.float(), plan)
    assert actual.dtype == dtype
    # Up to 17 updates in a row, each of which rounds once more on the reference.
    assert_close(actual, expected, dtype=dtype, context="ghn")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize(("hid", "hidden"), [(12, 6), (32, 16)])
def test_narrow_features_are_computed_in_single_precision(
    compiled: str, device: torch.device, dtype: torch.dtype, virtual: bool, hid: int, hidden: int
) -> None:
    plan = batch_of([9, 30, 12]).to(device)
    net = network(hid, hidden, virtual=virtual, dtype=dtype).on(device)
    wide = net.on(device)
    wide = Network(*(None if m is None else m.float() for m in wide))
    x = torch.randn(plan.num_nodes, hid).to(device, dtype)
    with ghn_fast.backend(compiled):
        actual = results(net, x, lambda x: net.propagate(x, plan, 2))
        expected = results(wide, x, lambda x: wide.propagate(x.float(), plan, 2).to(dtype))
    for have, need in zip(actual, expected, strict=True):
        assert have is not None and need is not None and have.dtype == dtype
        # The same arithmetic, rounded once at the end.
        assert torch.equal(have, need.to(dtype))


def on_threads(count: int, run: Callable[[], list[Tensor | None]]) -> list[Tensor | None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


@pytest.mark.library
@pytest.mark.parametrize("sizes", [[90, 3, 41, 60, 7], [300]], ids=["batch", "wide levels"])
def test_bits_do_not_depend_on_threads_or_repetition(sizes: list[int]) -> None:
    plan = batch_of(sizes, density=0.01)
    net = network(32, 16)
    x = torch.randn(plan.num_nodes, 32)

    def run() -> list[Tensor | None]:
        with ghn_fast.backend("cpu"):
            return results(net, x, lambda x: net.propagate(x, plan))

    first = on_threads(1, run)
    for count in (1, 2, 3):
        for have, need in zip(on_threads(count, run), first, strict=True):
            assert torch.equal(have, need)


def test_a_graph_gives_the_same_bits_alone_and_in_a_batch(
    compiled: str, device: torch.device
) -> None:
    net = network(32, 16).on(device)
    sizes = [20, 33, 8]
    x = torch.randn(sum(sizes), 32).to(device)
    with ghn_fast.backend(compiled):
        together = net.propagate(x, batch_of(sizes).to(device)).split(sizes)
        for size, rows, out in zip(sizes, x.split(sizes), together, strict=True):
            assert torch.equal(net.propagate(rows, batch_of([size]).to(device)), out)


def test_every_output_is_written(name: str, device: torch.device, nan_empty: None) -> None:
    plan = batch_of([40, 3], density=0.1).to(device)
    net = network(12, 6).on(device)
    x = torch.randn(43, 12).to(device)
    with ghn_fast.backend(name):
        found = results(net, x, lambda x: net.propagate(x, plan))
    assert all(tensor is not None and tensor.isfinite().all() for tensor in found)


def test_non_contiguous_inputs(name: str, device: torch.device) -> None:
    plan = batch_of([9]).to(device)
    net = network().on(device)
    x = torch.randn(8, 9).to(device).T
    with ghn_fast.backend(name):
        expected = net.propagate(x.contiguous(), plan)
        assert torch.equal(net.propagate(x, plan), expected)
        net.gru.weight_ih = nn.Parameter(net.gru.weight_ih.detach().T.contiguous().T)
        assert not net.gru.weight_ih.is_contiguous()
        assert_close(net.propagate(x, plan), expected)
        out = net.propagate(x, plan)
        # expand: a gradient with strides of zero
        out.backward(torch.ones((), device=device).expand_as(out))
    assert net.gru.weight_ih.grad is not None
    assert net.gru.weight_ih.grad.isfinite().all()


@pytest.mark.parametrize("offsets", [[0], [0, 0], [0, 0, 0]])
def test_no_nodes(name: str, device: torch.device, offsets: list[int]) -> None:
    plan = GraphPlan(torch.zeros(0, 3, dtype=torch.int64), offsets).to(device)
    net = network().on(device)
    with ghn_fast.backend(name):
        assert net.propagate(torch.zeros(0, 8, device=device), plan).shape == (0, 8)
        out = net.propagate(torch.zeros(0, 8, device=device, requires_grad=True), plan)
        out.sum().backward()


def test_what_needs_no_gradient_keeps_nothing(compiled: str, device: torch.device) -> None:
    plan = batch_of([9]).to(device)
    net = network().on(device)
    weights = [w.detach() for w in net.parameters()]
    x = torch.randn(9, 8).to(device)
    forward = torch.ops.ghn_fast.gated_gnn_forward
    out, saved = forward(x, plan.packed, weights, 1, False)
    assert saved.numel() == 0
    assert not out.requires_grad
    out, _ = forward(x, plan.packed, net.parameters(), 1, False)
    with pytest.raises(RuntimeError, match="save=True"):
        out.sum().backward()


def test_bad_arguments_are_named(name: str, device: torch.device) -> None:
    plan = batch_of([2], density=1.0).to(device)
    net = network().on(device)
    rest = (plan, mlp_weights(net.mlp), None, gru_weights(net.gru))

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    with ghn_fast.backend(name):
        with pytest.raises(ValueError, match=r"x: got shape \(3, 8\), needs \(2, C\)"):
            gated_gnn(zeros(3, 8), *rest)
        with pytest.raises(TypeError, match=r"x: got torch\.int64"):
            gated_gnn(zeros(2, 8, dtype=torch.int64), *rest)
        with pytest.raises(ValueError, match=r"mlp.weight_0: got shape \(4, 8\), needs \(4, 4\)"):
            gated_gnn(zeros(2, 4), *rest)
        with pytest.raises(ValueError, match=r"gru.weight_ih: got shape"):
            bad = rest[3]._replace(weight_ih=zeros(8, 8))
            gated_gnn(zeros(2, 8), *rest[:3], bad)
        with pytest.raises(TypeError, match=r"mlp.weight_0: got torch.float32, needs torch.f"):
            gated_gnn(zeros(2, 8, dtype=torch.float64), *rest)
        with pytest.raises(ValueError, match="steps: got 0"):
            gated_gnn(zeros(2, 8), *rest, steps=0)
    with pytest.raises(ValueError, match=f"plans: got plans on {device.type}.*needs them on meta"):
        gated_gnn(torch.zeros(2, 8, device="meta"), *rest)


@pytest.mark.parametrize("native", [pytest.param(True, marks=pytest.mark.library), False])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((1, 0, 1), "topological order"),
        ((1, 1, 1), "topological order"),
        ((0, 4, 1), "needs nodes from 0 to 3"),
        ((-1, 1, 1), "needs nodes from 0 to 3"),
        ((0, 1, 0), "distance.*needs 1 to 4"),
        ((0, 1, 5), "distance.*needs 1 to 4"),
        ((0, 2, 1), "different graphs"),
    ],
)
def test_bad_edges_are_named(
    native: bool, row: tuple[int, int, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("ghn_fast.ops.gated_gnn_plan.library_problem", lambda: "not compiled")
    with pytest.raises(ValueError, match=message):
        GraphPlan(torch.tensor([(0, 1, 1), row]), [0, 2, 4])


def test_bad_plans_are_named() -> None:
    rows = torch.tensor([(0, 1, 1)])
    with pytest.raises(TypeError, match=r"edges: got torch.float32"):
        GraphPlan(rows.float(), [0, 2])
    with pytest.raises(ValueError, match=r"edges: got shape \(1, 2\), needs \(M, 3\)"):
        GraphPlan(rows[:, :2], [0, 2])
    for offsets in ([], [1, 2], [0, 2, 1]):
        with pytest.raises(ValueError, match="offsets: got"):
            GraphPlan(rows, offsets)

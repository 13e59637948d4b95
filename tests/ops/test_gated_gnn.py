from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import naive
from ghn_fast.graph.schedule import level_schedule
from ghn_fast.ops.gated_gnn import GRUWeights, MLPWeights, SweepPlan, gated_gnn, plan_sweep
from tolerances import assert_close


def make_rows(edges: list[tuple[int, int]], num_nodes: int, cutoff: int) -> Tensor:
    rows = sorted(naive.distances(edges, num_nodes, cutoff))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def plans(rows: Tensor, num_nodes: int) -> tuple[SweepPlan, SweepPlan]:
    schedule = level_schedule(rows, num_nodes)
    source, target, distance = rows.unbind(1)
    return (
        plan_sweep(source, target, distance, schedule.forward),
        plan_sweep(target, source, distance, schedule.backward),
    )


def weights(mlp: nn.Sequential) -> MLPWeights:
    return MLPWeights(mlp[0].weight, mlp[0].bias, mlp[2].weight, mlp[2].bias)


def gru_weights(gru: nn.GRUCell) -> GRUWeights:
    return GRUWeights(gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh)


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
    num_nodes: int, density: float, cutoff: int, virtual: bool, steps: int
) -> None:
    hid = 8
    edges = naive.random_dag(num_nodes, density, seed=num_nodes)
    rows = make_rows(edges, num_nodes, cutoff)
    mlp, mlp_ve, gru = naive.mlp(hid, 4), naive.mlp(hid, 4), nn.GRUCell(hid, hid)
    used = [mlp, gru, *([mlp_ve] if virtual else [])]
    params = [p for module in used for p in module.parameters()]
    x = torch.randn(num_nodes, hid, requires_grad=True)
    probe = torch.randn(num_nodes, hid)

    expected = naive.gated_gnn(x, rows.tolist(), mlp, mlp_ve if virtual else None, gru, steps)
    want = torch.autograd.grad((expected * probe).sum(), [x, *params], allow_unused=True)
    actual = gated_gnn(
        x,
        plans(rows, num_nodes),
        weights(mlp),
        weights(mlp_ve) if virtual else None,
        gru_weights(gru),
        steps,
    )
    got = torch.autograd.grad((actual * probe).sum(), [x, *params], allow_unused=True)

    assert_close(actual, expected, context="op")
    for index, (have, need) in enumerate(zip(got, want, strict=True)):
        if need is None:
            assert have is None or not have.any()
        else:
            assert_close(have, need, context="gradient", name=f"gradient {index}")


def test_gradcheck_in_double_precision() -> None:
    hid, num_nodes = 4, 7
    rows = make_rows(naive.random_dag(num_nodes, 0.4, 5), num_nodes, 50)
    tensors = [torch.randn(num_nodes, hid)]
    for mlp in (naive.mlp(hid, 2), naive.mlp(hid, 2)):
        tensors += list(weights(mlp))
    tensors += list(gru_weights(nn.GRUCell(hid, hid)))
    inputs = [t.detach().double().requires_grad_() for t in tensors]
    sweep = plans(rows, num_nodes)

    def function(*values: Tensor) -> Tensor:
        mlp, mlp_ve = MLPWeights(*values[1:5]), MLPWeights(*values[5:9])
        return gated_gnn(values[0], sweep, mlp, mlp_ve, GRUWeights(*values[9:]))

    assert torch.autograd.gradcheck(function, inputs)


def test_every_output_is_written(nan_empty: None) -> None:
    rows = make_rows(naive.random_dag(40, 0.1, 2), 40, 50)
    mlp, gru = naive.mlp(8, 4), nn.GRUCell(8, 8)
    out = gated_gnn(torch.randn(40, 8), plans(rows, 40), weights(mlp), None, gru_weights(gru))
    assert out.isfinite().all()


def test_non_contiguous_features() -> None:
    rows = make_rows(naive.random_dag(9, 0.3, 2), 9, 50)
    mlp, gru = naive.mlp(8, 4), nn.GRUCell(8, 8)
    x = torch.randn(8, 9).T
    arguments = (plans(rows, 9), weights(mlp), None, gru_weights(gru))
    assert torch.equal(gated_gnn(x, *arguments), gated_gnn(x.contiguous(), *arguments))


def test_empty_graph() -> None:
    rows = torch.zeros(0, 3, dtype=torch.int64)
    mlp, gru = naive.mlp(8, 4), nn.GRUCell(8, 8)
    out = gated_gnn(torch.zeros(0, 8), plans(rows, 0), weights(mlp), None, gru_weights(gru))
    assert out.shape == (0, 8)


def test_bad_arguments_are_named() -> None:
    rows = make_rows([(0, 1)], 2, 50)
    mlp, gru, sweep = naive.mlp(8, 4), nn.GRUCell(8, 8), plans(rows, 2)
    rest = (weights(mlp), None, gru_weights(gru))
    with pytest.raises(ValueError, match=r"x: got shape \(3, 8\), needs \(2, C\)"):
        gated_gnn(torch.zeros(3, 8), sweep, *rest)
    with pytest.raises(TypeError, match=r"x: got torch\.int64"):
        gated_gnn(torch.zeros(2, 8, dtype=torch.int64), sweep, *rest)
    with pytest.raises(ValueError, match="weight_ih"):
        gated_gnn(torch.zeros(2, 4), sweep, *rest)
    with pytest.raises(ValueError, match="steps: got 0"):
        gated_gnn(torch.zeros(2, 8), sweep, *rest, steps=0)


def test_bad_plans_are_named() -> None:
    def plan(source: int, target: int, distance: int) -> SweepPlan:
        edge = [torch.tensor([value]) for value in (source, target, distance)]
        return plan_sweep(*edge, torch.tensor([0, 1]))

    with pytest.raises(ValueError, match="higher level"):
        plan(1, 0, 1)
    with pytest.raises(ValueError, match="targets: got nodes from 2"):
        plan(0, 2, 1)
    with pytest.raises(ValueError, match="distances: got 0"):
        plan(0, 1, 0)

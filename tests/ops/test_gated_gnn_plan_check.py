"""What the compiled gated GNN does with plans and arguments that nobody should pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ghn_fast.ops.gated_gnn  # noqa: F401 - registers the op
from ghn_fast.ops import backend
from ghn_fast.ops.gated_gnn_plan import GraphPlan

HEADER = 8
CHANNELS, HIDDEN = 8, 4
# Two graphs: a diamond with a virtual edge across, and a pair.
EDGES = [(0, 1, 1), (0, 2, 1), (1, 3, 1), (2, 3, 1), (0, 3, 2), (4, 5, 1)]
OFFSETS = [0, 4, 6]


@pytest.fixture(autouse=True)
def compiled(device: torch.device) -> None:
    problem = backend.problem_of("gated_gnn", device.type, device.type)
    if problem is not None:
        pytest.skip(f"back end {device.type!r} of gated_gnn: {problem}")


def packed_plan() -> Tensor:
    plan = GraphPlan(torch.tensor(EDGES), OFFSETS).packed
    assert plan is not None
    return plan


def places() -> dict[str, int]:
    """Where the parts of the packed plan begin (csrc/common/gated_gnn_plan.h)."""
    graphs, nodes, edges, forward, backward = packed_plan()[1:6].tolist()
    sizes = [("graph_ptr", graphs + 1)]
    for side in ("in", "out"):
        sizes += [(f"{side}.ptr", nodes + 1), (f"{side}.split", nodes)]
        sizes += [(f"{side}.node", edges), (f"{side}.distance", edges)]
    for sweep, levels in (("forward", forward), ("backward", backward)):
        sizes += [(f"{sweep}.node", nodes), (f"{sweep}.graph_level", graphs + 1)]
        sizes += [(f"{sweep}.level", levels + 1)]
    found, at = {}, HEADER
    for name, size in sizes:
        found[name] = at
        at += size
    assert at == len(packed_plan())
    return found


def make_weights(device: torch.device, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    c, h = CHANNELS, HIDDEN
    shapes = 2 * [(h, c), (h,), (c, h), (c,)] + [(3 * c, c), (3 * c, c), (3 * c,), (3 * c,)]
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


def call(
    plan: Tensor, device: torch.device, x: Tensor | None = None, weights: list[Tensor] | None = None
) -> None:
    """Forward and backward with a plan, of which it has to be the first or the second to raise."""
    x = torch.randn(6, CHANNELS).to(device) if x is None else x
    weights = make_weights(device) if weights is None else weights
    out, saved = torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, True)
    torch.ops.ghn_fast.gated_gnn_backward(out, x, plan, weights, saved, 1)


def call_backward_alone(plan: Tensor, device: torch.device) -> None:
    weights, x = make_weights(device), torch.randn(6, CHANNELS).to(device)
    good = torch.ops.ghn_fast.gated_gnn_plan_to(packed_plan(), device)
    out, saved = torch.ops.ghn_fast.gated_gnn_forward(x, good, weights, 1, True)
    torch.ops.ghn_fast.gated_gnn_backward(out, x, plan, weights, saved, 1)


CORRUPTIONS = [
    ("", 0, 0, "is no plan"),  # magic
    ("", 1, -1, "is no plan"),  # number of graphs
    ("", 2, 5, "is no plan"),  # number of nodes
    ("", 3, 2**31 - 1, "is no plan"),  # number of edges
    ("", 4, 1, "is no plan"),  # number of levels
    ("", 6, 7, "is no plan"),  # largest distance
    ("", 6, 3, "largest distance is 2, and it tells 3"),
    ("graph_ptr", 1, 7, "first nodes of its graphs do not ascend"),
    ("graph_ptr", 0, 1, "first nodes of its graphs do not ascend"),
    ("in.ptr", 2, 6, "edges by receiver is out of range"),  # does not ascend
    ("in.split", 3, 6, "edges by receiver is out of range"),
    ("in.node", 0, 4, "edges by receiver is out of range"),  # of another graph
    ("in.node", 0, -1, "edges by receiver is out of range"),
    ("in.distance", 0, 3, "edges by receiver is out of range"),  # beyond the largest
    ("in.distance", 0, 0, "edges by receiver have a distance other than 1"),
    ("in.distance", 4, 1, "edges by receiver have a distance other than 1"),
    ("out.node", 0, 3, "edges by receiver are not those by sender"),
    ("out.distance", 2, 0, "edges by sender have a distance other than 1"),
    ("forward.node", 0, 4, "order of the forward sweep is out of range"),
    ("forward.node", 0, 1, "forward sweep visits a node twice"),
    ("forward.graph_level", 1, 2, "order of the forward sweep is out of range"),
    ("forward.level", 1, 9, "order of the forward sweep is out of range"),
    ("backward.node", 0, 0, "backward sweep visits a node twice"),
]


@pytest.mark.parametrize(("part", "index", "value", "message"), CORRUPTIONS)
def test_a_corrupted_plan_is_refused(
    device: torch.device, part: str, index: int, value: int, message: str
) -> None:
    plan = packed_plan().clone()
    plan[places()[part] + index if part else index] = value
    with pytest.raises(ValueError, match=f"plan: .*{message}.*needs the result of gated_gnn_plan"):
        call(plan.to(device), device)
    with pytest.raises(ValueError, match=f"plan: .*{message}"):
        call_backward_alone(plan.to(device), device)
    with pytest.raises(ValueError, match=f"plan: .*{message}"):
        torch.ops.ghn_fast.gated_gnn_plan_to(plan, device)


def test_an_order_that_is_not_topological_is_refused(device: torch.device) -> None:
    for sweep in ("forward", "backward"):
        plan = packed_plan().clone()
        at = places()[f"{sweep}.node"]
        # The source and the sink of the diamond change places.
        plan[at], plan[at + 3] = plan[at + 3].clone(), plan[at].clone()
        with pytest.raises(ValueError, match=f"the {sweep} sweep does not follow a topological"):
            call(plan.to(device), device)


def test_a_cycle_is_refused(device: torch.device) -> None:
    plan = packed_plan().clone()
    at = places()
    # 4 -> 5 becomes 5 -> 5 in both lists: consistent, but no order can follow it.
    plan[at["in.node"] + 5] = 1
    plan[at["out.ptr"] + 5] = plan[at["out.ptr"] + 4]
    plan[at["out.split"] + 4] = plan[at["out.ptr"] + 4]
    plan[at["out.node"] + 5] = 1
    with pytest.raises(ValueError, match="does not follow a topological order"):
        call(plan.to(device), device)


def test_every_single_wild_number_is_refused(device: torch.device) -> None:
    plan = packed_plan()
    for index in range(len(plan)):
        for value in (-1, 10_000, 2**31 - 1, -(2**31)):
            wild = plan.clone()
            wild[index] = value
            with pytest.raises(ValueError, match="plan: "):
                call(wild.to(device), device)


def test_what_is_no_plan_at_all_is_refused(device: torch.device) -> None:
    plan = packed_plan().to(device)
    call(plan, device)
    for bad in (plan[:-1], plan[:5], plan[:0], torch.cat([plan, plan])):
        with pytest.raises(
            ValueError, match=f"plan: got a vector of {len(bad)} numbers that is no"
        ):
            call(bad, device)
    with pytest.raises(ValueError, match="plan: got Long, needs Int"):
        call(plan.long(), device)
    with pytest.raises(ValueError, match=r"plan: got shape .*needs a contiguous vector"):
        call(plan.reshape(-1, 1), device)
    with pytest.raises(ValueError, match=r"plan: got shape .*needs a contiguous vector"):
        call(torch.stack([plan, plan], 1)[:, 0], device)
    for nodes in (0, 5, 7):
        with pytest.raises(ValueError, match=f"x: got {nodes} nodes, needs 6"):
            call(plan, device, torch.randn(nodes, CHANNELS).to(device))


def test_a_plan_that_is_written_to_is_checked_again(device: torch.device) -> None:
    plan = torch.ops.ghn_fast.gated_gnn_plan_to(packed_plan(), device)
    call(plan, device)
    before = plan[0].clone()
    plan[0] = 0
    with pytest.raises(ValueError, match="is no plan"):
        call(plan, device)
    plan[0] = before
    call(plan, device)
    view = plan[:]
    view[3] = 2
    with pytest.raises(ValueError, match="is no plan"):
        call(plan, device)


def test_a_plan_of_inference_mode(device: torch.device) -> None:
    with torch.inference_mode():
        made = GraphPlan(torch.tensor(EDGES), OFFSETS).to(device).packed
        assert made is not None and not made.is_inference()
        plan = packed_plan().clone().to(device)
        assert plan.is_inference()
        call(plan, device)
        # No version counter tells of this write.
        plan[0] = 0
        with pytest.raises(ValueError, match="is no plan"):
            call(plan, device)
    call(made, device)


@pytest.mark.parametrize(
    ("part", "value"),
    [("in.node", 1_000_000), ("in.distance", 2), ("forward.node", 1), ("backward.node", 0)],
)
def test_writes_that_torch_does_not_see_are_refused_on_the_cpu(part: str, value: int) -> None:
    plan = packed_plan()
    x, weights = torch.randn(6, CHANNELS), make_weights(torch.device("cpu"))
    before = torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, False)[0]
    version, number = plan._version, int(plan[places()[part]])
    plan.numpy()[places()[part]] = value
    assert plan._version == version and number != value
    for call in (
        lambda: torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, False),
        lambda: torch.ops.ghn_fast.gated_gnn_plan_to(plan, torch.device("cpu")),
        lambda: torch.ops.ghn_fast.gated_gnn_join([packed_plan(), plan]),
    ):
        with pytest.raises(ValueError, match=r"plan: .*needs the result of gated_gnn_plan"):
            call()
    plan.numpy()[places()[part]] = number
    assert torch.equal(torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, False)[0], before)


def test_what_is_written_to_a_new_plan_is_refused() -> None:
    """Past torch, and before anything has used the plan."""
    x, weights = torch.randn(6, CHANNELS), make_weights(torch.device("cpu"))
    for plan in (packed_plan(), torch.ops.ghn_fast.gated_gnn_join([packed_plan()])):
        # In bounds: the source and the sink of the diamond change places.
        at = places()["forward.node"]
        order = plan.numpy()
        order[at], order[at + 3] = int(order[at + 3]), int(order[at])
        assert plan._version == 0
        with pytest.raises(ValueError, match="forward sweep does not follow a topological order"):
            torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, False)


def test_contents_are_known_whatever_tensor_holds_them() -> None:
    """A sound plan at an address that held another, and in memory that does not begin evenly."""
    x, weights = torch.randn(6, CHANNELS), make_weights(torch.device("cpu"))
    plan = packed_plan()
    expected = torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, False)[0]
    reused = torch.empty(len(plan) + 3, dtype=torch.int32)
    for start in (0, 1, 3):
        reused.zero_()
        with pytest.raises(ValueError, match="is no plan"):
            torch.ops.ghn_fast.gated_gnn_forward(
                x, reused[start : start + len(plan)], weights, 1, False
            )
        reused[start : start + len(plan)] = plan
        out = torch.ops.ghn_fast.gated_gnn_forward(
            x, reused[start : start + len(plan)], weights, 1, False
        )[0]
        assert torch.equal(out, expected)


def test_a_plan_on_another_device_is_refused(device: torch.device) -> None:
    plan = packed_plan()
    with pytest.raises(ValueError, match="plan: got a tensor on meta, needs it on"):
        call(plan.to("meta"), device)
    if device.type == "cuda":
        with pytest.raises(ValueError, match="plan: got a tensor on cpu, needs it on cuda"):
            call(plan, device)
        with pytest.raises(ValueError, match=r"plan: got a tensor on cuda.*, needs it on cpu"):
            call(
                plan.to(device), device, torch.randn(6, CHANNELS), make_weights(torch.device("cpu"))
            )


def test_weights_that_do_not_fit_are_refused(device: torch.device) -> None:
    plan = packed_plan().to(device)

    def with_weight(index: int, weight: Tensor) -> list[Tensor]:
        weights = make_weights(device)
        weights[index] = weight.to(device)
        return weights

    cases = [
        (0, torch.zeros(HIDDEN, 9), "mlp.weight_0: got shape"),
        (0, torch.zeros(HIDDEN), "mlp.weight_0: got shape"),
        (1, torch.zeros(5), "mlp.bias_0: got shape"),
        (6, torch.zeros(CHANNELS, 5), "mlp_ve.weight_1: got shape"),
        (8, torch.zeros(CHANNELS, CHANNELS), "gru.weight_ih: got shape"),
        (11, torch.zeros(0), "gru.bias_hh: got shape"),
    ]
    for index, weight, message in cases:
        with pytest.raises(ValueError, match=message):
            call(plan, device, weights=with_weight(index, weight))
    with pytest.raises(ValueError, match=r"gru\.weight_hh: got Double, needs Float"):
        call(plan, device, weights=with_weight(9, torch.zeros(24, 8, dtype=torch.float64)))
    with pytest.raises(ValueError, match="weights: got 11 tensors, needs 8 or 12"):
        call(plan, device, weights=make_weights(device)[:-1])
    with pytest.raises(ValueError, match="weights: got 0 tensors"):
        call(plan, device, weights=[])


def test_features_that_do_not_fit_are_refused(device: torch.device) -> None:
    plan = packed_plan().to(device)
    with pytest.raises(ValueError, match="x: got Int, needs float32, float64, float16 or bfloat16"):
        call(plan, device, torch.zeros(6, CHANNELS, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match=r"x: got shape \[6\], needs \(N, C\)"):
        call(plan, device, torch.zeros(6, device=device))
    with pytest.raises(ValueError, match="x: got 1025 channels, needs at most 1024"):
        call(plan, device, torch.zeros(6, 1025, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_backward_gets_is_checked(device: torch.device, dtype: torch.dtype) -> None:
    plan = packed_plan().to(device)
    weights = make_weights(device, dtype)
    x = torch.randn(6, CHANNELS).to(device, dtype)
    out, saved = torch.ops.ghn_fast.gated_gnn_forward(x, plan, weights, 1, True)
    assert saved.dtype == torch.float32
    backward = torch.ops.ghn_fast.gated_gnn_backward
    for bad in (saved[:1], saved[:, :5], saved[..., :-1], saved.new_zeros(0), saved[0]):
        with pytest.raises(ValueError, match="saved: got shape"):
            backward(out, x, plan, weights, bad, 1)
    with pytest.raises(ValueError, match="saved: got shape"):
        backward(out, x, plan, weights, saved, 2)
    with pytest.raises(ValueError, match="saved: got Double, needs Float"):
        backward(out, x, plan, weights, saved.double(), 1)
    with pytest.raises(ValueError, match="grad: got shape"):
        backward(out[:-1], x, plan, weights, saved, 1)
    with pytest.raises(ValueError, match="grad: got Double"):
        backward(out.double(), x, plan, weights, saved, 1)
    with pytest.raises(ValueError, match="steps: got 0"):
        backward(out, x, plan, weights, saved, 0)

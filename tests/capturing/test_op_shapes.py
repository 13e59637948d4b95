"""Shapes and records by rule against what autograd records."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ghn_fast.capturing import capture
from ghn_fast.capturing.op_shapes import RULES
from ghn_fast.capturing.recover import recover
from ghn_fast.capturing.specials import SPECIALS
from ghn_fast.capturing.tracer import Recorder
from graphs import assert_same_graph
from networks import Branches, Shared, SmallCNN, Tied

# These rules differ from autograd's record on purpose.
SEMANTIC = (
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,
    F.instance_norm,
    F.rms_norm,
)


class Mixed(nn.Module):
    """Operations in place, permuted features, broadcasts and linear layers of every layout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.gain = nn.Parameter(torch.ones(8, 1, 1))
        self.grouped = nn.Conv2d(8, 8, (1, 3), groups=4, dilation=(1, 2), bias=False)
        self.tokens = nn.Linear(8, 6)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x), inplace=True)
        y = self.norm(x.permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        x = x + self.gain * F.silu(y)
        x += F.hardsigmoid(x.mean((2, 3), keepdim=True)) * x
        x = self.grouped(self.group(x)) * 0.5 - 1
        x = torch.cat([x[:, :4].relu_(), torch.roll(x[:, 4:], (1,), (2,))], 1)
        mixed = self.tokens(x.flatten(2).transpose(1, 2)).softmax(-1).sum()
        x = F.normalize(x, dim=1).sigmoid() / 2 + mixed
        return self.head(F.dropout(F.adaptive_avg_pool2d(F.relu6(x), 1).flatten(1), 0.1, False))


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.device("meta"):
            return torchvision.models.get_model(name, num_classes=10)

    return build


@pytest.mark.parametrize(
    "build",
    [
        SmallCNN,
        Branches,
        Shared,
        Tied,
        Mixed,
        *map(
            torchvision_model,
            ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t"],
        ),
    ],
)
def test_rules_record_what_autograd_records(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    graph = capture(model, (3, 64, 64))
    autograd = {function: rule for function, rule in RULES.items() if function in SEMANTIC}
    monkeypatch.setattr(sys.modules[capture.__module__], "RULES", autograd)
    assert_same_graph(graph, capture(model, (3, 64, 64)))


LAYERS: dict[str, nn.Module] = {
    "lstm": nn.LSTM(12, 5, 2, device="meta", proj_size=3),
    "gru": nn.GRU(12, 5, bidirectional=True, device="meta"),
    "attention": nn.MultiheadAttention(12, 3, device="meta"),
}
CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv1d": lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], stride=2, padding=1),
    "conv2d": lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=2),
    "conv3d": lambda x, w: F.conv3d(x[None], w[None, :1].expand(2, 1, 8, 3, 3)),
    "grouped": lambda x, w: F.conv2d(x, w[:, :2], groups=4),
    "linear": lambda x, w: F.linear(x, w[:, 0].reshape(-1, 12)),
    "permuted": lambda x, w: F.linear(x.transpose(1, 2).transpose(2, 3), w[0, :, :, 0].t()),
    "layer_norm": lambda x, w: F.layer_norm(x, (12,)),
    "group_norm": lambda x, w: F.group_norm(x, 2),
    "relu": lambda x, w: F.relu(x.permute(0, 2, 3, 1)),
    "in place": lambda x, w: F.elu(x * 1, 1.0, True),
    "broadcast": lambda x, w: x.permute(0, 2, 3, 1) * w[0, :, 0, 0],
    "outer": lambda x, w: x[:, :, :1] + x[..., :1],
    "gaps": lambda x, w: x[:, :, ::2, 1:7] * 0.5,
    "gaps, permuted": lambda x, w: x.unflatten(3, (3, 4)).permute(3, 0, 4, 1, 2)[1] / 3,
    "overlapping": lambda x, w: x.as_strided((2, 3, 4), (1, 1, 2)) * 2,
    "half": lambda x, w: x.half() * 2,
    "cat": lambda x, w: torch.cat([x, x[:, :3]], -3),
    "cat of parts": lambda x, w: torch.cat([x[:, 0::2, 0::3], x[:, 1::2, 1::3]], -1),
    "cat of three": lambda x, w: torch.cat([x[0].mT[:, ::2], x[0].mT[:, 1::2]], 1),
    "cat, channels last": lambda x, w: torch.cat([x.permute(0, 3, 1, 2)] * 2, 1),
    "cat of channels last": lambda x, w: torch.cat([x.permute(0, 3, 1, 2)[:, :, ::2]] * 2, 1),
    "pool": lambda x, w: F.adaptive_avg_pool2d(x, (1, 1)),
    "roll": lambda x, w: torch.roll(x, 1, -1),
    "attention": lambda x, w: F.scaled_dot_product_attention(x, x[..., :5, :], x[..., :5, :]),
    "lstm": lambda x, w: LAYERS["lstm"](x[0])[0],
    "lstm state": lambda x, w: LAYERS["lstm"](x[0])[1][0],
    "lstm cell": lambda x, w: LAYERS["lstm"](x[0])[1][1],
    "gru": lambda x, w: LAYERS["gru"](x[0])[1],
    "attended": lambda x, w: LAYERS["attention"](x[0], x[0], x[0])[0],
    "attention weights": lambda x, w: LAYERS["attention"](x[0], x[0], x[0])[1],
}


def recorder(rules: dict) -> Recorder:
    """A recorder of a network that holds no tensors."""
    return Recorder(rules, lambda tensor: tensor, specials=SPECIALS, recover=recover)


@pytest.mark.parametrize("case", CASES)
def test_shapes_by_rule_are_right(case: str) -> None:
    def run(rules: dict) -> Tensor:
        x = torch.empty(1, 8, 9, 12, device="meta", requires_grad=True) * 1
        w = torch.empty(8, 8, 3, 3, device="meta", requires_grad=True)
        with recorder(rules):
            return CASES[case](x, w)

    ours, theirs = run(RULES), run({})
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert ours.stride() == theirs.stride()


def test_wrong_shapes_raise_as_in_pytorch() -> None:
    x = torch.empty(1, 8, 9, 12, device="meta", requires_grad=True) * 1
    with recorder(RULES):
        with pytest.raises(RuntimeError):
            F.conv2d(x, torch.empty(4, 5, 3, 3))
        with pytest.raises(RuntimeError):
            F.linear(x, torch.empty(4, 5))
        with pytest.raises(RuntimeError):
            x + torch.empty(7, device="meta")
        with pytest.raises(RuntimeError):
            torch.cat([x, x[:, :, 1:]], 1)
        with pytest.raises(RuntimeError):
            F.conv2d(x, torch.empty(4, 8, 30, 3, device="meta"))

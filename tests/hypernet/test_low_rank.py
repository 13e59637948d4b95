"""The decoder of LoGAH: against its equation written out, and against published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import ghn_fast
from ghn_fast.graph import ArchGraph
from ghn_fast.graph.rules import GraphRules
from ghn_fast.hypernet.low_rank import LowRankDecoder
from published import check
from tolerances import assert_close

CONFIG = ghn_fast.GHNConfig(
    max_shape=(24, 24, 16, 16),
    num_classes=5,
    hid=8,
    propagator="graphormer",
    layers=1,
    heads=2,
    rules="ghn3",
    window="middle",
    decoder="low_rank",
    rank=6,
    vectors="low_rank",
)


class Small(nn.Module):
    """Kernels, matrices and vectors below and above the largest number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 30, 3, padding=1),
            nn.BatchNorm2d(30),
            nn.Conv2d(30, 12, (3, 5), padding=(1, 2), bias=False),
            nn.Flatten(),
            nn.Linear(12 * 16, 70),
            nn.LayerNorm(70),
            nn.Linear(70, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def graph() -> ArchGraph:
    return ghn_fast.capture(Small(), (3, 4, 4), rules=GraphRules.GHN3)


def written_out(
    decoder: LowRankDecoder, x: Tensor, shape: tuple[int, ...], length: int, row: int, most: int
) -> Tensor:
    """One parameter from the embedding (C,) of its node, before normalisation."""
    r = decoder.rank
    z = decoder.layers(x).view(2 * r, r)
    y = torch.relu(z) @ decoder.output.weight.t() + decoder.output.bias
    numbers = y.reshape(2 * decoder.side, r)
    a, b = numbers[: decoder.side], numbers[decoder.side :]
    if len(shape) == 1:
        both = (a[: 2 * length] * b[0]).sum(1).view(2, length)[row]
        return both.repeat(-(-shape[0] // min(length, shape[0])))[: shape[0]]
    out, in_, height, width = (*shape, 1, 1)[:4]
    o, i = min(out, most), min(in_, most)
    block = (a[: o * height] @ b[: i * width].t()).view(o, height, i, width).transpose(1, 2)
    whole = block.repeat(-(-out // o), -(-in_ // i), 1, 1)[:out, :in_]
    return whole.reshape(shape)


def rounded(size: int, most: int) -> int:
    size = min(size, most)
    size = size // 3 * 4 if size % 3 == 0 else size
    return most if size >= most / 2 else size


@pytest.mark.parametrize("weights", ["fan_in", "standard_deviation"])
def test_every_parameter_is_its_equation(weights: str) -> None:
    config = ghn_fast.GHNConfig(
        **{**CONFIG.to_dict(), "weights": weights, "max_shape": (24, 24, 16, 16)}
    )
    ghn = ghn_fast.GHN(config).double().eval()
    made = graph()
    with torch.no_grad():
        x = ghn.embed(made)
        (tensors,) = ghn.predict_tensors([made])
        for target in made.targets:
            most = 24
            length = rounded(target.shape[0], most)
            want = written_out(ghn.blocks, x[target.node], target.shape, length, target.row, most)
            if want.ndim == 1:
                want = torch.tanh(0.2 * want) if target.row else 2 * torch.sigmoid(0.5 * want)
            elif weights == "standard_deviation":
                want = want / (want.std() + 1e-7) * 0.02
            else:
                shape = target.shape
                wide = len(shape) > 2 and shape[2] < shape[3]
                want = want * ((1 if wide else 2) / want[0].numel()) ** 0.5
            assert_close(tensors[target.name], want, context="ghn", name=target.name)


def test_a_network_is_filled_with_the_same_numbers() -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    model = Small()
    report = ghn.predict(model, input_shape=(3, 4, 4))
    assert report.predicted == [name for name, _ in model.named_parameters()]
    (tensors,) = ghn.predict_tensors([graph()])
    for name, value in model.named_parameters():
        assert_close(value, tensors[name].detach(), context="ghn", name=name)
    twice = model.double()
    ghn.predict(twice, input_shape=(3, 4, 4))
    for name, value in twice.named_parameters():
        assert_close(value, tensors[name].detach(), context="ghn", dtype=torch.float32, name=name)


def test_without_the_classifier() -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    model = Small()
    before = model.layers[6].weight.detach().clone()
    report = ghn.predict(model, input_shape=(3, 4, 4), head=False)
    assert torch.equal(model.layers[6].weight, before)
    assert list(report.skipped) == ["layers.6.weight", "layers.6.bias"]


def test_the_flat_buffer_with_and_without_gradients() -> None:
    for vectors in ("low_rank", "mlp"):
        config = ghn_fast.GHNConfig(
            **{**CONFIG.to_dict(), "vectors": vectors, "max_shape": (24, 24, 16, 16)}
        )
        ghn = ghn_fast.GHN(config)
        made = graph()
        flat, plan = ghn.predict_flat([made, made])
        with torch.no_grad():
            again, _ = ghn.predict_flat([made, made])
        assert flat.shape == again.shape
        assert_close(flat, again, context="ghn")
        assert len(plan.ranges) == 2
        flat.square().sum().backward()
        for name, weight in ghn.named_parameters():
            assert weight.grad is not None, name
            assert torch.isfinite(weight.grad).all(), name


def test_gradients() -> None:
    ghn = ghn_fast.GHN(
        ghn_fast.GHNConfig(
            **{**CONFIG.to_dict(), "weights": "standard_deviation", "max_shape": (24, 24, 16, 16)}
        )
    ).double()
    made = ghn_fast.capture(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.Linear(30, 5)),
        (3, 2, 2),
        rules=GraphRules.GHN3,
    )
    weight = ghn.blocks.output.weight

    def flat(part: Tensor) -> Tensor:
        whole = torch.cat([part, weight[4:].detach()])
        return torch.func.functional_call(
            ghn, {"blocks.output.weight": whole}, (made,), tie_weights=False
        )

    ghn.forward = lambda made: ghn.predict_flat([made])[0]  # type: ignore[method-assign, assignment]
    part = weight[:4].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(flat, (part,))


def test_kernels_that_are_too_large() -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    model = nn.Sequential(
        nn.Conv2d(3, 24, (1, 17), padding=(0, 8)), nn.Flatten(), nn.Linear(384, 5)
    )
    with pytest.raises(ValueError, match=r"'0.weight' of shape \(24, 24, 17, 1\)") as error:
        ghn.predict(
            nn.Sequential(nn.Conv2d(24, 24, (17, 1), padding=(8, 0)), *model[1:]),
            input_shape=(24, 4, 4),
        )
    assert "needs 408 rows of a factor, which has 384" in str(error.value)


@pytest.mark.parametrize(
    ("name", "count"), [("logah-tiny", 2.54), ("logah-small", 21.41), ("logah-base", 78.23),
                        ("logah-large", 289.42)],
)  # fmt: skip
def test_published_sizes(name: str, count: float) -> None:
    with torch.device("meta"):
        ghn = ghn_fast.GHN(ghn_fast.GHNConfig.named(name))
    # What is never used, one layer of the decoder, counts in the published numbers.
    unused = ghn.config.rank * (ghn.config.rank + 1)
    total = sum(weight.numel() for weight in ghn.parameters()) + unused
    # compared by hand: published in millions, with two decimals
    assert abs(total / 1e6 - count) < 0.01


def test_vision_transformers_of_any_width() -> None:
    ghn = ghn_fast.GHN(CONFIG).eval()
    model = torchvision.models.VisionTransformer(8, 2, 1, 2, 40, 80, num_classes=5)
    before = model.encoder.pos_embedding.detach().clone()
    report = ghn.predict(model, input_shape=(3, 8, 8))
    assert report.skipped.keys() == {"class_token"}
    assert torch.equal(model.encoder.pos_embedding[:, 0], before[:, 0])
    assert not (model.encoder.pos_embedding[:, 1:] == before[:, 1:]).any()


def test_published_numbers(fixtures_dir: Path, tmp_path: Path) -> None:
    paths = sorted((fixtures_dir / "ghn3").glob("logah_[tv]*-*.json"))
    assert len(paths) >= 4
    for path in paths:
        check(path, tmp_path)


def test_published_numbers_of_language_models(fixtures_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    paths = sorted((fixtures_dir / "ghn3").glob("logah_gpt2-*.json"))
    assert len(paths) >= 2
    for path in paths:
        check(path, tmp_path)

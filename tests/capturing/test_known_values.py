"""What depends on no feature and no parameter has values, wherever it goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.capturing import CaptureError, capture, known
from ghn_fast.capturing.structure import structure_of

IDS = torch.tensor([[3, 1, 4, 1, 5]])
MASK = torch.tensor([[True, True, True, False, False]])


class Net(nn.Module):
    """Two layers, with something in between that looks at values."""

    def __init__(self, between: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.between = between
        self.plain = torch.tensor([8.0, 16.0])
        self.register_buffer("steps", torch.tensor([2, 4]))
        self.register_buffer("causal", torch.ones(5, 5).tril() > 0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        result = self.between(self, h)
        return self.out(h if result is None else result)


def expect(condition: Any) -> None:
    if not condition:
        raise AssertionError("another way than the real network takes")


# Features have the shape (1, 5, 8).
BETWEEN: dict[str, Callable[[Net, Tensor], Any]] = {
    "moved": lambda n, h: expect(torch.ones(4).to(h.device).bool().all()),
    "of the type of features": lambda n, h: expect(torch.arange(3).type_as(h).sum() == 3),
    "moved to features": lambda n, h: expect(torch.arange(3).to(h).max().item() == 2),
    "moved to a GPU": lambda n, h: expect(torch.ones(2, device="cuda").sum() == 2),
    "same device": lambda n, h: expect(n.steps.device == h.device == torch.ones(1).device),
    "not meta": lambda n, h: expect(not h.is_meta and h.device.type == "cpu"),
    "index": lambda n, h: h[:, torch.tensor(1)],
    "several indices": lambda n, h: h[:, torch.tensor([0, 2])],
    "index of rows and columns": lambda n, h: h[torch.tensor([0]), torch.tensor([2])],
    "slice up to a buffer": lambda n, h: expect(h[:, : n.steps[0]].shape[1] == 2),
    "mask as an index": lambda n, h: expect(h[:, MASK[0]].shape[1] == 3),
    "mask of two dimensions": lambda n, h: expect(h[MASK].shape == (3, 8)),
    "write through a mask": lambda n, h: h.clone().__setitem__(MASK, 0.0),
    "write through an index": lambda n, h: h.clone().__setitem__((0, n.steps), 1.0),
    "masked_fill": lambda n, h: h.masked_fill(~MASK[..., None], 0.0),
    "masked_select": lambda n, h: expect(h.masked_select(MASK[..., None]).shape == (24,)),
    "where": lambda n, h: torch.where(MASK[..., None], h, torch.zeros(())),
    "places": lambda n, h: expect(torch.where(MASK)[1].tolist() == [0, 1, 2]),
    "nonzero": lambda n, h: expect(MASK.nonzero().shape == (3, 2)),
    "in": lambda n, h: expect(4 in IDS and 0 not in IDS),
    "any": lambda n, h: expect((IDS == 5).any() and not (IDS > 5).any()),
    "number": lambda n, h: h.view(1, 5, int(n.steps[0]), -1).flatten(2),
    "number of a view": lambda n, h: h.view(1, 5, n.steps[0], n.steps[1]).flatten(2),
    "element": lambda n, h: h * h.new_full((1, 8), n.plain[1]),
    "list": lambda n, h: expect(n.steps.tolist() == [2, 4]),
    "array": lambda n, h: expect(n.steps.numpy().sum() == 6),
    "loop over elements": lambda n, h: expect([int(i) for i in n.steps] == [2, 4]),
    "range": lambda n, h: expect(len(range(n.steps[0])) == 2),
    "new_zeros": lambda n, h: expect(h.new_zeros(3).sum() == 0),
    "zeros_like": lambda n, h: expect(not torch.zeros_like(h).any()),
    "ones_like": lambda n, h: expect(bool((torch.ones_like(h[..., :2]) == 1).all())),
    "full_like": lambda n, h: expect(torch.full_like(h, 3.0).mean() == 3),
    "new_tensor": lambda n, h: expect(h.new_tensor([1.0, 2.0]).sum() == 3),
    "new_ones of another type": lambda n, h: expect(h.new_ones(2, dtype=torch.bool).all()),
    "empty and filled": lambda n, h: expect(torch.empty(3, device=h.device).fill_(2).sum() == 6),
    "finite": lambda n, h: expect(not torch.isnan(h).any() and torch.isfinite(h).all()),
    "expand_as": lambda n, h: expect(torch.ones(1, 1, 1).expand_as(h).sum() == 40),
    "buffer of a mask": lambda n, h: expect(n.causal[:3, :3].sum() == 6),
    "repeat_interleave": lambda n, h: expect(
        h.repeat_interleave(torch.tensor([1, 0, 2, 0, 0]), 1).shape == (1, 3, 8)
    ),
    "tensor_split": lambda n, h: expect(len(torch.tensor_split(h, n.steps, dim=1)) == 3),
    "split": lambda n, h: expect(len(h.split(n.steps[0].item(), 1)) == 3),
    "sum of sizes": lambda n, h: expect(int(torch.tensor(h.shape).prod()) == 40),
    "size from a tensor": lambda n, h: torch.zeros(n.steps[0], 5, 8)[:1] + h,
    "cumulative": lambda n, h: expect(MASK.long().cumsum(-1).max() == 3),
    "unique": lambda n, h: expect(torch.unique(IDS).numel() == 4),
    "sort": lambda n, h: expect(IDS.sort().values[0, 0] == 1),
    "random": lambda n, h: expect(0 <= torch.rand(3).max() < 1),
    "numpy": lambda n, h: h + torch.from_numpy(torch.ones(8).numpy()),
    "legacy": lambda n, h: h + torch.Tensor([1.0] * 8),
    "equal": lambda n, h: expect(torch.equal(n.steps, torch.tensor([2, 4]))),
    "vmap": lambda n, h: expect(torch.func.vmap(lambda i: i * 2)(n.steps).tolist() == [4, 8]),
    "written features": lambda n, h: write(torch.zeros(1, 5, 8), h),
    "written views": lambda n, h: write(torch.zeros(2, 1, 5, 8), h)[0],
    "features by mask": lambda n, h: (h * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True),
    "out": lambda n, h: torch.add(h, 1, out=torch.empty_like(h)),
}  # fmt: skip


def write(target: Tensor, h: Tensor) -> Tensor:
    view = target[..., :4]
    view.copy_(h[..., :4])
    target[..., 4:] = h[..., 4:]
    return target


@pytest.mark.parametrize("name", BETWEEN)
def test_values_in_between(name: str) -> None:
    graph = capture(Net(BETWEEN[name]), example_inputs=torch.zeros(1, 5, 8))
    assert not graph.skipped
    assert graph.partial is None


def test_features_written_into_a_constant_lead_on() -> None:
    plain = capture(Net(lambda n, h: h), example_inputs=torch.zeros(1, 5, 8))
    for name in ("written features", "written views", "out"):
        graph = capture(Net(BETWEEN[name]), example_inputs=torch.zeros(1, 5, 8))
        assert graph.names == plain.names
        assert torch.equal(graph.edges, plain.edges)


class Masked(nn.Module):
    """Depends on integer and boolean inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.all, self.some = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        if (ids < 0).any() or ids.max() > 8:
            raise IndexError("no such word")
        h = self.fc(self.emb(ids))
        if mask is None or mask.all():
            return self.all(h)
        lengths = mask.sum(1).tolist()
        return self.some(torch.stack([row[:n].mean(0) for row, n in zip(h, lengths, strict=True)]))


def test_values_of_inputs() -> None:
    def kept(mask: Tensor | None) -> set[str]:
        graph = capture(Masked(), example_inputs={"ids": IDS, "mask": mask})
        return {target.name for target in graph.targets if not target.name.startswith("fc")}

    assert kept(None) == kept(torch.ones_like(MASK)) == {"all.weight", "all.bias"}
    assert kept(MASK) == {"some.weight", "some.bias"}
    with pytest.raises(CaptureError, match="no such word"):
        capture(Masked(), example_inputs=IDS + 9)
    assert IDS.tolist() == [[3, 1, 4, 1, 5]]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences(kind: Any, is_sorted: bool) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(8, 16, 2, batch_first=True, bidirectional=True)
            self.out = nn.Linear(32, 4)

        def forward(self, x: Tensor, lengths: Any) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(
                x, lengths, batch_first=True, enforce_sorted=is_sorted
            )
            h, sizes = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            return self.out(h[torch.arange(3), sizes - 1])

    expected = capture(nn.ModuleList([Packed().rnn])[0], example_inputs=torch.zeros(3, 7, 8))
    for lengths in ([7, 5, 2], torch.tensor([7, 5, 2])):
        if not is_sorted:
            lengths = lengths[::-1] if isinstance(lengths, list) else lengths.flip(0)
        graph = capture(Packed(), example_inputs=(torch.zeros(3, 7, 8), lengths))
        assert not graph.skipped
        found = [t for t in graph.targets if t.name.startswith("rnn.")]
        for target, other in zip(found, expected.targets, strict=True):
            assert target.name == f"rnn.{other.name}"
            assert (target.predicted_shape, target.fan_in) == (other.predicted_shape, other.fan_in)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("filled", [True, False])
def test_transformer_encoder_with_a_padding_mask(nested: bool, filled: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = filled
    inputs = {"src": torch.zeros(2, 5, 16), "src_key_padding_mask": mask}
    expected = capture(model, example_inputs=torch.zeros(2, 5, 16))
    graph = capture(model, example_inputs=inputs)
    assert not graph.skipped
    assert graph.names == expected.names
    assert torch.equal(graph.edges, expected.edges)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 1)
    x = torch.zeros(2, 5, 16)
    inputs = {"tgt": x, "memory": x, "memory_key_padding_mask": mask, "tgt_is_causal": True,
              "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5)}  # fmt: skip
    assert not capture(decoder, example_inputs=inputs).skipped


def test_masks_of_infinite_elements_keep_their_values() -> None:
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    x = torch.zeros(2, 5, 16)
    assert not capture(encoder, example_inputs={"src": x, "mask": mask}).skipped
    network = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    inputs = {"src": x, "tgt": x, "tgt_mask": mask}
    assert not capture(network, example_inputs=inputs).skipped
    keys = [
        structure_of(encoder, {"src": x, "mask": m})
        for m in (mask, mask.clone(), mask.masked_fill(mask == 0, 1.0))
    ]
    assert keys[0] is not None and keys[1] is not None and keys[2] is not None
    assert keys[0].key == keys[1].key != keys[2].key


def test_large_tensors_have_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST_ELEMENTS", 100)

    def between(net: Net, h: Tensor) -> Tensor:
        large = torch.zeros(20, 20)
        outer = torch.arange(60)[:, None] * torch.arange(60)
        repeated = torch.zeros(8).repeat(200)
        for tensor in (large, outer, repeated):
            with pytest.raises(RuntimeError, match="asks for values"):
                tensor.tolist()
        return h + large[:1, :8] + outer[:1, :8] + repeated[:8]

    assert not capture(Net(between), example_inputs=torch.zeros(1, 5, 8)).skipped


def test_an_enormous_constant_takes_no_memory() -> None:
    def between(net: Net, h: Tensor) -> Tensor:
        mask = torch.zeros(1 << 20, 1 << 20)
        rows = torch.arange(1 << 20)
        return h + mask[0, :8] + (rows[:, None] < rows[None])[0, :8]

    assert not capture(Net(between), example_inputs=torch.zeros(1, 5, 8)).skipped


@pytest.mark.parametrize(
    "between",
    [
        lambda n, h: h if h.sum() > 0 else -h,
        lambda n, h: h * float(h.mean()),
        lambda n, h: h * n.fc.weight.norm().item(),
        lambda n, h: h[: int(h.argmax())],
        lambda n, h: h * h.mean().detach().numpy(),
        lambda n, h: h + (1 if n.fc.bias[0] else 2),
        lambda n, h: h * n.written(h).sum().item(),
    ],
)
def test_values_of_features_and_parameters_are_not_there(between: Any) -> None:
    net = Net(between)
    net.written = lambda h: write(torch.zeros(1, 5, 8), h)
    with pytest.raises(CaptureError, match="values of a tensor that depends on features") as error:
        capture(net, example_inputs=torch.zeros(1, 5, 8))
    assert "input_shape" not in str(error.value)

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

import ghn_fast
from ghn_fast.capturing import cache_info, capture, clear_cache
from ghn_fast.hypernet import pipeline
from ghn_fast.hypernet.predictor import Predictor
from ghn_fast.hypernet.report import Clock
from networks import SmallCNN
from tolerances import assert_close

CONFIG = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 5, 5))


@pytest.fixture
def ghn() -> ghn_fast.GHN:
    clear_cache()
    return ghn_fast.GHN(CONFIG).eval()


def small() -> nn.Module:
    return SmallCNN()


def parameters(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_same_parameters(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


def test_a_cached_structure_gives_the_same_parameters(ghn: ghn_fast.GHN) -> None:
    models = [small() for _ in range(3)]
    for model in models[:2]:
        ghn.predict(model)
    assert cache_info().hits == 1
    ghn.predict(models[2], capture(models[2]))
    assert_same_parameters(models[0], models[1])
    assert_same_parameters(models[0], models[2])


class Shared(nn.Module):
    """A parameter under two names, one that is not used, BatchNorm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3)
        self.third = nn.Conv2d(8, 8, 3)
        self.third.weight = self.second.weight
        self.unused = nn.Parameter(torch.zeros(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.norm(self.first(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*not predicted")
@pytest.mark.parametrize("head", [True, False])
def test_a_known_structure_gives_the_same_report(ghn: ghn_fast.GHN, head: bool) -> None:
    models = [Shared() for _ in range(4)]
    reports = [ghn.predict(model, head=head) for model in models[:3]]
    assert cache_info().hits == 2
    reports.append(ghn.predict(models[3], capture(models[3]), head=head))
    for model, report in zip(models, reports, strict=True):
        assert report.predicted == reports[3].predicted
        assert report.skipped == reports[3].skipped
        assert report.batch_statistics == ["norm"]
        assert model.norm.running_mean is None and not model.norm.track_running_stats
        assert_same_parameters(*(
            nn.ParameterDict({k.replace(".", "_"): p for k, p in m.named_parameters()
                              if k in report.predicted}) for m in (model, models[3])
        ))  # fmt: skip
    reports[1].predicted.clear()
    reports[1].skipped.clear()
    again = ghn.predict(Shared(), head=head)
    assert again.predicted == reports[0].predicted
    assert again.skipped == reports[0].skipped
    assert ghn.predict(models[0], head=head).batch_statistics == []


@pytest.mark.filterwarnings("ignore:.*not predicted")
def test_a_known_structure_on_the_meta_device(ghn: ghn_fast.GHN) -> None:
    for model in (Shared(), Shared().to("meta"), Shared()):
        report = ghn.predict(model)
        on_meta = model.first.weight.is_meta
        assert ("first.weight" in report.skipped) == on_meta
    ghn_fast.graph.clear_cache()
    for model in (Shared().to("meta"), Shared()):
        report = ghn.predict(model)
    assert "first.weight" in report.predicted


class BufferToo(nn.Module):
    """A parameter that its parent has as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Conv2d(3, 8, 3)
        self.register_buffer("weight", self.child.weight)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.child(x).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*not predicted")
def test_a_parameter_that_is_a_buffer_too(ghn: ghn_fast.GHN) -> None:
    first = BufferToo()
    first.child.weight = nn.Parameter(first.child.weight.to("meta"))
    first.weight = first.child.weight
    models = [first, BufferToo(), BufferToo()]
    reports = [ghn.predict(model) for model in models]
    assert reports[1].predicted == reports[2].predicted == list(
        dict(models[1].named_parameters())
    )  # fmt: skip
    assert_same_parameters(models[1], models[2])


@pytest.mark.filterwarnings("ignore:.*jit")
def test_torchscript_inside_is_refused(ghn: ghn_fast.GHN) -> None:
    model = nn.Sequential(small(), torch.jit.script(nn.Linear(10, 10)))
    with pytest.raises(TypeError, match="TorchScript"):
        ghn.predict(model)


def test_the_flat_buffer_has_the_same_values(ghn: ghn_fast.GHN) -> None:
    model = small()
    ghn.predict(model)
    (tensors,) = ghn.predict_tensors([capture(model)])
    for name, parameter in model.named_parameters():
        # Products without gradients may run in another library.
        assert_close(parameter, tensors[name], context="ghn", name=name)


def test_parts_of_the_flat_buffer_are_aligned_and_fill_it(ghn: ghn_fast.GHN) -> None:
    graphs = [capture(small()), capture(torchvision.models.squeezenet1_0(num_classes=10))]
    flat, plan = ghn.predict_flat(graphs)
    end = 0
    for ranges in plan.ranges:
        for offset, shape in ranges.values():
            assert offset % 16 == 0
            assert end <= offset < end + 16
            end = offset + math.prod(shape)
    assert end <= len(flat) < end + 16


def test_compiled_plans_follow_the_hypernetwork(ghn: ghn_fast.GHN) -> None:
    bound, plain = small(), small()
    predictor = ghn.compile_plan(bound)
    assert isinstance(predictor, Predictor)
    assert predictor.report.predicted == [name for name, _ in bound.named_parameters()]
    for _ in range(3):
        with torch.no_grad():
            for weight in ghn.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        report = predictor()
        assert report.predicted == ghn.predict(plain).predicted
        assert_same_parameters(bound, plain)


def test_compiled_plans_follow_the_network(ghn: ghn_fast.GHN) -> None:
    bound, plain = small(), small()
    predictor = ghn.compile_plan(bound)
    predictor()
    ghn.predict(plain)
    want = parameters(plain)
    bound.double()
    predictor()
    for got, expected in zip(bound.parameters(), want, strict=True):
        assert got.dtype == torch.float64
        assert_close(got.float(), expected)
    bound.to("meta")
    assert len(predictor().skipped) == len(want)


def replace_parameters(model: nn.Module) -> None:
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(torch.full_like(parameter, 7.0)))


def replace_a_layer(model: nn.Module) -> None:
    model.layers[3] = nn.Conv2d(32, 64, 3)


def exchange_storage(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 7.0)


def convert_there_and_back(model: nn.Module) -> None:
    model.double().float()


@pytest.mark.parametrize(
    "change", [replace_parameters, replace_a_layer, exchange_storage, convert_there_and_back]
)
def test_compiled_plans_fill_the_parameters_that_are_there(
    ghn: ghn_fast.GHN, change: Callable[[nn.Module], None]
) -> None:
    bound, plain = small(), small()
    predictor = ghn.compile_plan(bound)
    predictor()
    change(bound)
    report = predictor()
    ghn.predict(plain)
    assert report.predicted == [name for name, _ in bound.named_parameters()]
    assert_same_parameters(bound, plain)


def test_compiled_plans_leave_what_is_new_alone(ghn: ghn_fast.GHN) -> None:
    model = small()
    predictor = ghn.compile_plan(model)
    predictor()
    prune.identity(model.layers[0], "weight")
    model.layers[2] = nn.PReLU()
    report = predictor()
    assert set(report.skipped) == {"layers.0.weight_orig", "layers.2.weight"}
    assert len(report.predicted) == len(list(model.parameters())) - 2


def test_compiled_plans_find_parameters_that_swap_their_content(ghn: ghn_fast.GHN) -> None:
    model = small()
    predictor = ghn.compile_plan(model)
    objects = list(model.parameters())
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to("meta")
        assert all(a is b for a, b in zip(objects, model.parameters(), strict=True))
        assert len(predictor().skipped) == len(objects)
        model.to_empty(device="cpu")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert predictor().skipped == {}
    plain = small()
    ghn.predict(plain)
    assert_same_parameters(model, plain)


def test_compiled_plans_refuse_parameters_of_another_size(ghn: ghn_fast.GHN) -> None:
    model = small()
    predictor = ghn.compile_plan(model)
    model.layers[10] = nn.Linear(128, 11)
    with pytest.raises(ValueError, match=r"shape \(11, 128\), needs 1280 elements"):
        predictor()


def test_compiled_plans_look_names_up_once(
    ghn: ghn_fast.GHN, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    predictor = ghn.compile_plan(model)
    monkeypatch.setattr(pipeline, "find_destinations", None)
    decoder = pipeline.DECODERS[ghn.config.decoder]
    monkeypatch.setitem(pipeline.DECODERS, ghn.config.decoder, decoder._replace(plan=None))
    for _ in range(2):
        assert len(predictor().predicted) == len(list(model.parameters()))


def test_compiled_plans_take_the_options_of_predict(ghn: ghn_fast.GHN) -> None:
    model = small()
    before = parameters(model)
    report = ghn.compile_plan(model, head=False, batch_statistics=False)()
    assert report.batch_statistics == []
    assert [n for n, r in report.skipped.items() if "head=False" in r] == list(report.skipped)
    kept = set(report.skipped)
    for (name, now), old in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(now, old) == (name in kept)
    with pytest.raises(ValueError, match="made for another network"):
        ghn.compile_plan(nn.Linear(3, 4), capture(small()))
    with pytest.raises(TypeError, match="model: got int"):
        ghn.compile_plan(3)  # type: ignore[arg-type]


def test_a_changed_graph_of_the_user_is_read_again(ghn: ghn_fast.GHN) -> None:
    model, other = small(), small()
    graph = capture(model)
    ghn.predict(model, graph)
    graph.op_types[1:3] = graph.op_types[1:3].flip(0)
    ghn.predict(other, graph)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    )


def test_predictions_from_several_threads_at_once(ghn: ghn_fast.GHN) -> None:
    makers = [
        small,
        lambda: torchvision.models.squeezenet1_1(num_classes=10),
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
    ]
    expected = []
    for make in makers:
        expected.append(make())
        ghn.predict(expected[-1])
    clear_cache()
    problems: list[str] = []

    def work(start: int) -> None:
        try:
            for turn in range(3):
                index = (start + turn) % len(makers)
                model = makers[index]()
                ghn.predict(model)
                assert_same_parameters(model, expected[index])
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_channels_last_and_half_precision_networks(ghn: ghn_fast.GHN) -> None:
    plain = small()
    ghn.predict(plain)
    ordered = small().to(memory_format=torch.channels_last)
    ghn.predict(ordered)
    assert_same_parameters(ordered, plain)
    assert any(not p.is_contiguous() for p in ordered.parameters())
    half = small().half()
    ghn.predict(half)
    for got, want in zip(half.parameters(), plain.parameters(), strict=True):
        assert torch.equal(got, want.half())


@pytest.mark.cuda
def test_replayed_graphs_on_cuda(ghn: ghn_fast.GHN) -> None:
    ghn = ghn.cuda()
    bound, plain = small().cuda(), small().cuda()
    predictor = ghn.compile_plan(bound)
    for _ in range(3):
        with torch.no_grad():
            for weight in ghn.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        predictor()
        ghn.predict(plain)
        for got, want in zip(bound.parameters(), plain.parameters(), strict=True):
            assert_close(got, want, context="ghn")


class Recorded:
    """In the place of a CUDA graph: predicts when it is replayed."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def replay(self) -> None:
        self.predictor._predict(Clock(), batch_statistics=False)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Predictor]:
    """Predictors record CUDA graphs on the CPU; a list of those that have done so, each time."""
    found: list[Predictor] = []

    def record(self: Predictor) -> Recorded:
        found.append(self)
        return Recorded(self)

    monkeypatch.setattr(Predictor, "_can_replay", lambda self: self._cuda_graph)
    monkeypatch.setattr(Predictor, "_record_cuda_graph", record)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    return found


def test_a_graph_is_recorded_again_for_tensors_that_lie_otherwise(
    ghn: ghn_fast.GHN, recordings: list[Predictor]
) -> None:
    square = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 32), nn.Linear(32, 10))
    graph = capture(square, (3, 4, 4))
    predictor, plain = ghn.compile_plan(square, graph), copy.deepcopy(square)
    for _ in range(2):
        predictor()
    assert len(recordings) == 1
    weight = square[2].weight
    address = weight.data_ptr()
    weight.data = weight.data.t()
    assert weight.data_ptr() == address
    predictor()
    assert len(recordings) == 2
    ghn.predict(plain, graph)
    assert_same_parameters(square, plain)


def test_a_graph_that_cannot_be_recorded_is_left_alone(
    ghn: ghn_fast.GHN, recordings: list[Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[None] = []

    def record(self: Predictor) -> Recorded:
        tried.append(None)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Predictor, "_record_cuda_graph", record)
    bound, plain = small(), small()
    predictor = ghn.compile_plan(bound)
    with pytest.warns(RuntimeWarning, match="runs without: operation not permitted"):
        predictor()
    predictor()
    assert len(tried) == 1
    ghn.predict(plain)
    assert_same_parameters(bound, plain)


@pytest.mark.cuda
def test_threads_predict_at_once_on_cuda(ghn: ghn_fast.GHN) -> None:
    ghn = ghn.cuda()
    models = [small().cuda() for _ in range(8)]
    expected = small().cuda()
    ghn.predict(expected)

    def predict(model: nn.Module) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                ghn.predict(model)
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=predict, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        assert_same_parameters(model, expected)

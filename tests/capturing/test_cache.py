from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from torch import nn

import ghn_fast
from ghn_fast.capturing import CaptureError, cache, cache_info, capture, clear_cache
from ghn_fast.capturing.cache import cached_capture
from ghn_fast.graph import ArchGraph
from graphs import assert_same_graph
from networks import SmallCNN


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    clear_cache()
    yield
    clear_cache()


def graph_of(*args: object) -> ArchGraph:
    return cached_capture(*args)[0]  # type: ignore[arg-type]


def test_a_known_structure_is_not_captured_again() -> None:
    first = graph_of(SmallCNN(), (3, 32, 32), 50)
    assert graph_of(SmallCNN(), (3, 32, 32), 50) is first
    assert_same_graph(first, capture(SmallCNN(), (3, 32, 32), 50))
    assert cache_info()[:4] == (1, 1, 0, 1)


def test_a_predicted_network_is_known() -> None:
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()
    model = SmallCNN()
    for _ in range(3):
        ghn.predict(model, input_shape=(3, 32, 32))
    assert cache_info()[:3] == (2, 1, 0)


def test_virtual_edges_and_inputs_count() -> None:
    graphs = [
        graph_of(SmallCNN(), (3, size, size), cutoff) for size in (32, 40) for cutoff in (1, 50)
    ]
    assert len({id(graph) for graph in graphs}) == 4
    assert graphs[0].virtual_edges == 1


def test_networks_without_a_key_are_captured_every_time() -> None:
    model = SmallCNN()
    model.note = object()  # type: ignore[assignment]
    graphs = [graph_of(model, (3, 32, 32), 50) for _ in range(2)]
    assert graphs[0] is not graphs[1]
    assert cache_info().without_key == 2
    assert cache_info().size == 0


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_GRAPHS", 2)
    models = [nn.Sequential(nn.Conv2d(3, width, 1), nn.Flatten()) for width in (4, 5, 6)]
    for model in (*models, models[1]):
        graph_of(model, (3, 4, 4), 1)
    assert cache_info() == (1, 3, 0, 2)
    graph_of(models[0], (3, 4, 4), 1)  # the one used longest ago had to go
    assert cache_info().misses == 4


def test_failures_are_not_kept() -> None:
    model = nn.Linear(7, 2)
    for _ in range(2):
        with pytest.raises(CaptureError):
            graph_of(model, (3, 4, 4), 1)
    assert graph_of(model, (7,), 1).num_nodes > 0


def test_threads_get_the_same_graph() -> None:
    found = []

    def work() -> None:
        for _ in range(5):
            found.append(graph_of(SmallCNN(), (3, 32, 32), 50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for graph in found:
        assert_same_graph(graph, found[0])
    assert cache_info().size == 1

"""The example service: what it answers equals the plain call, and what is malformed gets a 4xx."""

from __future__ import annotations

import http.client
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.models import resolve
from ghn_fast.utils.optional import installed
from tolerances import assert_close

pytest.importorskip("fastapi", reason="the service needs fastapi (extra `serve`)")
uvicorn = pytest.importorskip("uvicorn", reason="the service needs uvicorn (extra `serve`)")
SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("example_serve", SERVE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ghn() -> ghn_fast.GHN:
    torch.manual_seed(0)
    return ghn_fast.GHN(ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3))).eval()


@pytest.fixture(scope="module")
def port(ghn: ghn_fast.GHN) -> Iterator[int]:
    """A service on a free port of this machine."""
    serve = load_example()
    limits = serve.Limits(most_parameters=12_000_000, at_once=2, waiting=8)
    app = serve.make_app(serve.Service(ghn, "tiny", limits))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline, "the service has not begun within a minute"
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(timeout=30)


def ask(port: int, body: Any, path: str = "/predict") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    text = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, text)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data


def test_answers_are_the_parameters_of_the_plain_call(port: int, ghn: ghn_fast.GHN) -> None:
    from safetensors.torch import load

    config = SampledNets("test", 1, 0)[0].config
    assert config is not None
    for body, name, size in (
        ({"model": "deepnets:test:0"}, "deepnets:test:0", 32),
        ({"config": config.to_dict()}, "deepnets:test:0", 32),
        ({"model": "resnet18", "image_size": 40, "num_classes": 10}, "resnet18", 40),
    ):
        if name == "resnet18":
            pytest.importorskip("torchvision")
        named = resolve(name, num_classes=10, image_size=size)
        network = named.build()
        report = ghn.predict(network, named.graph(50, network=network))
        status, data = ask(port, body)
        assert status == 200, data
        answered = load(data)
        assert set(answered) == set(report.predicted)
        parameters = dict(network.named_parameters())
        for parameter, value in answered.items():
            assert_close(value, parameters[parameter].detach(), name=parameter)


def test_graphs_are_those_that_the_hypernetwork_reads() -> None:
    config = ghn_fast.GHNConfig(hid=8, max_shape=(16, 16, 3, 3), rules="ghn3")
    service = load_example().Service(ghn_fast.GHN(config), "tiny")
    net = SampledNets("test", 1, 0)[0]
    assert net.config is not None
    bodies: list[dict[str, Any]] = [{"model": "deepnets:test:0"}, {"config": net.config.to_dict()}]
    if installed("torchvision"):
        bodies.append({"model": "squeezenet1_1"})
    for body in bodies:
        assert service.graph_of(body).rules == config.graph_rules


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 60_000, 400, "no JSON"),
        ([1], 400, "needs an object"),
        ({}, 422, "needs either 'model'"),
        ({"model": "vgg11", "config": {}}, 422, "needs either 'model'"),
        ({"model": "vgg11", "speed": 1}, 422, "unknown entries ['speed']"),
        ({"model": "resnte18"}, 422, "the nearest are resnet18"),
        ({"model": 3}, 422, "needs a name of torchvision"),
        ({"model": "setup.py:main"}, 422, "needs a name of torchvision"),
        ({"model": "hf:vit"}, 422, "needs a name of torchvision"),
        ({"model": "../x.pt2"}, 422, "needs a name of torchvision"),
        ({"model": "deepnets:test:99999999999999999999"}, 422, "needs an index below"),
        ({"model": "resnet18", "num_classes": True}, 422, "num_classes: got True"),
        ({"model": "resnet18", "num_classes": 10**9}, 422, "num_classes: got 1000000000"),
        ({"model": "resnet18", "image_size": 0}, 422, "image_size: got 0"),
        ({"model": "vgg11"}, 413, "predicts at most 12,000,000"),
        ({"config": 3}, 422, "needs an object"),
        ({"config": {"n_cells": 3}}, 422, "genotype"),
        (b"x" * 100_000, 413, "longer than"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused(port: int, body: Any, status: int, message: str) -> None:
    pytest.importorskip("torchvision")
    got, data = ask(port, body)
    assert (got, message in json.loads(data)["detail"]) == (status, True), data


def test_other_paths(port: int) -> None:
    status, data = ask(port, {}, "/other")
    assert status == 404
    assert "POST /predict" in json.loads(data)["detail"]


def test_many_clients_at_once_and_turns_are_given_back(port: int) -> None:
    bodies = [{"model": f"deepnets:test:{index % 4}"} for index in range(40)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda body: ask(port, body)[0], bodies))
    # Those that find too many before them are told to come again.
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 8
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", json.dumps(bodies[0]))
    connection.getresponse()  # leaves without reading the answer
    connection.close()
    for _ in range(4):
        assert ask(port, bodies[1])[0] == 200
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    values = json.loads(connection.getresponse().read())
    assert values["waiting"] == 0
    assert values["answered"] >= 12

"""A small HTTP service: POST a network, get its predicted parameters as safetensors.

    pip install 'ghn-fast[vision,serve]'
    python examples/serve.py --ckpt ghn2-digits --port 8000
    curl -s localhost:8000/predict -d '{"model": "resnet18", "num_classes": 10}' -o net.safetensors

A network is named (torchvision, ``timm:NAME``, ``deepnets:SPLIT:INDEX``; nothing that runs a file
or reads one), or given as the configuration of a DeepNets-1M network. It is never built with memory
of its own: its graph is captured from a stand-in, and what is predicted goes into the answer.

Memory is bounded: by the parameters of a network (``--most-parameters``), by how many answers are
computed or sent at a time (``--at-once``), by how many requests may wait for that (``--waiting``;
more are told to come again, 503), by the size of a request, and by how many graphs are kept. A
malformed request is answered with 4xx and a sentence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from safetensors.torch import save
from starlette.concurrency import run_in_threadpool

import ghn_fast
from ghn_fast.deepnets import NetworkConfig, build_graph
from ghn_fast.graph import ArchGraph
from ghn_fast.models import resolve
from ghn_fast.utils.cache import BoundedCache

LONGEST_BODY = 64 << 10
CHUNK = 1 << 20
# Architectures of a split that may be asked for by number.
SAMPLED = 10_000
# Networks of these names are made by libraries; other forms of names read or run files.
REFUSED = ("hf:", ".py", ".pt2", "/")


@dataclass
class Limits:
    """What the service takes on.

    Attributes:
        most_parameters: Of a network.
        largest_image: Height and width of an image in pixels.
        most_classes: Of a classifier.
        at_once: Answers that are computed or sent at a time.
        waiting: Requests that may wait for their turn.
        graphs: Graphs that are kept.
    """

    most_parameters: int = 100_000_000
    largest_image: int = 512
    most_classes: int = 10_000
    at_once: int = 2
    waiting: int = 64
    graphs: int = 256


@dataclass
class Service:
    """Predicts parameters, and counts what it did."""

    ghn: ghn_fast.GHN
    name: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.graphs: BoundedCache[str, ArchGraph] = BoundedCache(self.limits.graphs)
        self.turns = asyncio.Semaphore(self.limits.at_once)
        self.waiting = self.answered = 0

    def graph_of(self, wanted: dict[str, Any]) -> ArchGraph:
        """The graph of a request.

        Raises:
            ValueError: If the request is malformed, or the network too large.
        """
        unknown = set(wanted) - {"model", "config", "num_classes", "image_size"}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        if ("model" in wanted) == ("config" in wanted):
            raise ValueError("needs either 'model' (a name) or 'config' (of DeepNets-1M)")
        classes = self._number(
            wanted, "num_classes", self.ghn.config.num_classes, self.limits.most_classes
        )
        size = self._number(wanted, "image_size", None, self.limits.largest_image)
        key = json.dumps(wanted, sort_keys=True)
        graph = self.graphs.get(key)
        if graph is None:
            if "model" in wanted:
                graph = self._named(wanted["model"], classes, size)
            else:
                graph = self._configured(wanted["config"], classes, size)
            count = sum(_numel(target.shape) for target in graph.targets)
            self._check_size(count)
            self.graphs.keep(key, graph)
        return graph

    def _named(self, name: Any, classes: int | None, size: int | None) -> ArchGraph:
        if not isinstance(name, str) or any(part in name for part in REFUSED):
            raise ValueError(
                f"model: got {name!r}, needs a name of torchvision, timm:NAME or "
                "deepnets:SPLIT:INDEX"
            )
        number = name.rpartition(":")[2] if name.startswith("deepnets:") else "0"
        if number.isdecimal() and int(number[:9]) >= SAMPLED:
            raise ValueError(f"model: got {name!r}, needs an index below {SAMPLED}")
        named = resolve(name, num_classes=classes, image_size=size)
        edges, rules = self.ghn.config.virtual_edges, self.ghn.config.graph_rules
        if named.derive is not None:
            return named.graph(edges, rules=rules)
        with torch.device("meta"):
            network = named.build()
        self._check_size(sum(parameter.numel() for parameter in network.parameters()))
        return named.graph(edges, network=network, rules=rules)

    def _configured(self, config: Any, classes: int | None, size: int | None) -> ArchGraph:
        if not isinstance(config, dict):
            raise ValueError(f"config: got {type(config).__name__}, needs an object")
        return build_graph(
            NetworkConfig.from_dict(config),
            num_classes=classes or 10,
            image_size=size or 32,
            virtual_edges=self.ghn.config.virtual_edges,
            rules=self.ghn.config.graph_rules,
        )

    def _check_size(self, count: int) -> None:
        if count > self.limits.most_parameters:
            raise OverflowError(
                f"the network has {count:,} parameters, this service predicts at most "
                f"{self.limits.most_parameters:,}"
            )

    @staticmethod
    def _number(wanted: dict[str, Any], name: str, default: int | None, most: int) -> int | None:
        value = wanted.get(name, default)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise ValueError(f"{name}: got {value!r}, needs an integer from 1 to {most}")
        return value

    def predict(self, wanted: dict[str, Any]) -> bytes:
        """A safetensors file with the parameters of a network."""
        begin = time.perf_counter()
        graph = self.graph_of(wanted)
        with torch.inference_mode():
            tensors = self.ghn.predict_tensors([graph])[0]
        metadata = {
            "format": "pt",
            "generator": f"ghn_fast {ghn_fast.__version__}",
            "hypernetwork": self.name,
            "request": json.dumps(wanted),
            "skipped": json.dumps(dict(graph.skipped)),
            "seconds": f"{time.perf_counter() - begin:.6f}",
        }
        return save(tensors, metadata)


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def make_app(service: Service) -> FastAPI:
    """The application: POST /predict, GET /health."""
    app = FastAPI(title="ghn_fast", version=ghn_fast.__version__)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {
            "hypernetwork": service.name,
            "answered": service.answered,
            "waiting": service.waiting,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }

    @app.post("/predict")
    async def predict(request: Request) -> StreamingResponse:
        wanted = await _read(request)
        if service.waiting >= service.limits.waiting:
            raise HTTPException(503, "too many requests wait", {"Retry-After": "1"})
        service.waiting += 1
        try:
            await service.turns.acquire()
        finally:
            service.waiting -= 1
        try:
            data = await run_in_threadpool(service.predict, wanted)
        except OverflowError as error:
            service.turns.release()
            raise HTTPException(413, str(error)) from error
        except (ValueError, TypeError, ModuleNotFoundError, RuntimeError) as error:
            service.turns.release()
            raise HTTPException(422, " ".join(str(error).split())[:500]) from error
        except BaseException:
            service.turns.release()
            raise
        headers = {"Content-Length": str(len(data))}
        return StreamingResponse(
            _chunks(service, data), media_type="application/octet-stream", headers=headers
        )

    @app.exception_handler(404)
    async def nothing_here(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "POST /predict or GET /health"}, 404)

    return app


async def _read(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413, f"the request is longer than {LONGEST_BODY} bytes")
    try:
        wanted = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is no JSON: {error}") from error
    if not isinstance(wanted, dict):
        raise HTTPException(400, f"the request is a {type(wanted).__name__}, needs an object")
    return wanted


async def _chunks(service: Service, data: bytes) -> AsyncIterator[bytes]:
    """The answer in pieces; the turn ends when the last one is sent, or the client has gone."""
    try:
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            yield bytes(view[start : start + CHUNK])
        service.answered += 1
    finally:
        service.turns.release()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", default="ghn2-digits")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    limits = Limits()
    parser.add_argument("--most-parameters", type=int, default=limits.most_parameters)
    parser.add_argument("--at-once", type=int, default=limits.at_once)
    parser.add_argument("--waiting", type=int, default=limits.waiting)
    chosen = parser.parse_args()
    limits = Limits(
        most_parameters=chosen.most_parameters, at_once=chosen.at_once, waiting=chosen.waiting
    )
    service = Service(ghn_fast.from_pretrained(chosen.ckpt), chosen.ckpt, limits)
    uvicorn.run(make_app(service), host=chosen.host, port=chosen.port, log_level="warning")


if __name__ == "__main__":
    main()

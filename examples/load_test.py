"""Load examples/serve.py with many clients, beside the plain call of the same hypernetwork.

    python examples/serve.py &
    python examples/load_test.py --requests 1000 --clients 16

Prints one JSON object: milliseconds at the 50th, 95th and 99th percentile by kind of network, those
of the plain call, answers by status, and the memory of the service before and after.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import ghn_fast
from ghn_fast.deepnets import SampledNets
from ghn_fast.models import resolve

NAMED = ("resnet18", "mobilenet_v3_small", "squeezenet1_1")
# One in so many requests is malformed, and has to be refused.
MALFORMED_EVERY = 50
CONFIGS = 40


def requests(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Kind and body of each request: named networks and genotypes in turn, some malformed."""
    configs = [net.config for net in SampledNets("test", CONFIGS, 0)]
    found: list[tuple[str, dict[str, Any]]] = []
    for index in range(count):
        if index % MALFORMED_EVERY == MALFORMED_EVERY - 1:
            found.append(("malformed", {"model": "resnte50"}))
        elif index % 2:
            name = NAMED[index // 2 % len(NAMED)]
            found.append((name, {"model": name, "image_size": 32}))
        else:
            config = configs[index // 2 % CONFIGS]
            assert config is not None
            found.append(("genotype", {"config": config.to_dict()}))
    return found


def ask(host: str, port: int, body: dict[str, Any]) -> tuple[int, float, int]:
    """Status, milliseconds until the last byte, and bytes of one request."""
    connection = http.client.HTTPConnection(host, port, timeout=120)
    begin = time.perf_counter()
    connection.request("POST", "/predict", json.dumps(body))
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, 1e3 * (time.perf_counter() - begin), len(data)


def health(host: str, port: int) -> dict[str, Any]:
    """What the service says of itself."""
    connection = http.client.HTTPConnection(host, port, timeout=120)
    connection.request("GET", "/health")
    values: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return values


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 with the number of values; the number alone if there are fewer than two."""
    if len(values) < 2:
        return {"count": len(values)}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        "count": len(values),
        "p50": round(cuts[49], 1),
        "p95": round(cuts[94], 1),
        "p99": round(cuts[98], 1),
    }


def plain_call(ckpt: str, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of ``ghn(model)`` for the same networks, structure known, in one thread."""
    ghn = ghn_fast.from_pretrained(ckpt)
    models: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        name: [(resolve(name, num_classes=10).build(), {"input_shape": (3, 32, 32)})]
        for name in NAMED
    }
    edges, rules = ghn.config.virtual_edges, ghn.config.graph_rules
    nets = SampledNets("test", CONFIGS, 0, edges, rules=rules)
    models["genotype"] = [(net.build(), {"graph": net.graph}) for net in nets]
    found = {}
    for name, networks in models.items():
        times = []
        for _ in range(repeats):
            for network, options in networks:
                begin = time.perf_counter()
                with torch.no_grad():
                    ghn.predict(network, **options)
                times.append(1e3 * (time.perf_counter() - begin))
        found[name] = percentiles(times[len(networks) :])
    return found


def main() -> None:
    """Run the load and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--ckpt", default="ghn2-digits", help="For the plain call.")
    parser.add_argument("--repeats", type=int, default=20, help="Of the plain call; 0 for none.")
    chosen = parser.parse_args()
    todo = requests(chosen.requests)
    before = health(chosen.host, chosen.port)
    begin = time.perf_counter()
    with ThreadPoolExecutor(chosen.clients) as pool:
        answers = list(pool.map(lambda item: ask(chosen.host, chosen.port, item[1]), todo))
    seconds = time.perf_counter() - begin
    after = health(chosen.host, chosen.port)
    kinds: dict[str, list[float]] = {}
    statuses: dict[str, Counter[int]] = {}
    for (kind, _), (status, milliseconds, _) in zip(todo, answers, strict=True):
        kinds.setdefault(kind, []).append(milliseconds)
        statuses.setdefault(kind, Counter())[status] += 1
    good = [a for a in answers if a[0] == 200]
    print(
        json.dumps(
            {
                "clients": chosen.clients,
                "requests_per_second": round(len(todo) / seconds, 1),
                "megabytes_per_second": round(sum(a[2] for a in good) / seconds / 1e6, 1),
                "all": percentiles([a[1] for a in good]),
                "by_kind": {kind: percentiles(values) for kind, values in kinds.items()},
                "statuses": statuses,
                "peak_memory_mb": [before["peak_memory_mb"], after["peak_memory_mb"]],
                "plain_call": plain_call(chosen.ckpt, chosen.repeats) if chosen.repeats else None,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

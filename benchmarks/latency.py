"""Latency of prediction: ratios to a straightforward implementation, within one run.

    python benchmarks/latency.py [--threads 2] [--repeats 7] [--models resnet18 ...]
                                 [--published PATH] [--json report.json]

Per model: *cold* is from module to parameters at first sight, *warm* the same for another module of
a known architecture, *given* with its graph passed along, *fill* writes a constant to all
parameters. Every measurement has a module of its own. All are taken in turn, so that a ratio
compares neighbours; a line gives medians, and the least and largest ratio. Before anything is
timed, the parameters of both implementations are compared element by element.

``--published`` names a folder with the published implementation (facebookresearch/ppuda, which
needs einops); it is then measured in the same turns, with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from native import about
from straightforward import Predictor, capture
from torch import nn

import ghn_fast
from ghn_fast.graph import clear_cache

MODELS = (
    "resnet18",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet101_2",
    "densenet121",
    "mobilenet_v2",
    "vgg16",
)
INPUT = (3, 224, 224)
# Least multiples of the baseline: geometric means, and of any single model.
TARGETS = {"cold": 5.0, "warm": 6.0}
LEAST_OF_ONE = 2.5
# Most that a warm prediction may take compared with filling the memory, and importing the package
# compared with importing torch.
MOST_OF_FILL = ("wide_resnet101_2", 2.5)
MOST_OF_IMPORT = 1.5
HEAVY = ("matplotlib", "sklearn", "h5py", "rich", "typer", "torchvision", "tensorboard", "networkx",
         "scipy", "pandas", "sympy", "torch_geometric", "timm", "triton")  # fmt: skip


def seconds(run: Callable[[nn.Module], Any], template: nn.Module) -> float:
    """Measure one call on a module that it has not seen."""
    module = copy.deepcopy(template)
    gc.collect()
    start = time.perf_counter()
    run(module)
    return time.perf_counter() - start


def measure(
    runs: dict[str, Callable[[nn.Module], Any]], template: nn.Module, repeats: int
) -> dict[str, list[float]]:
    """Measure several implementations in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run, template))
    return times


def check_equal(fast: nn.Module, slow: nn.Module) -> float:
    """Find the largest error, relative to the larger of an element and the mean magnitude."""
    worst = 0.0
    others = dict(slow.named_parameters())
    for name, param in fast.named_parameters():
        want = others[name].detach()
        size = want.abs()
        scale = size.clamp(min=float(size.mean()))
        worst = max(worst, float(((param.detach() - want).abs() / scale).max()))
    if not worst <= 1e-4:
        raise RuntimeError(f"parameters differ by {worst:.1e} of what they should be")
    return worst


def fill(module: nn.Module) -> None:
    """Write every parameter once."""
    with torch.no_grad():
        for param in module.parameters():
            param.fill_(0.5)


def one_model(
    name: str, ghn: ghn_fast.GHN, baseline: Predictor, published: Any, repeats: int
) -> dict[str, Any]:
    """Compare and measure the implementations on one model."""
    template = torchvision.models.get_model(name, weights=None, num_classes=10).eval()
    graph = ghn_fast.capture(template, INPUT, ghn.config.virtual_edges)
    own_graph = capture(template, INPUT)
    fast, slow = copy.deepcopy(template), copy.deepcopy(template)
    ghn.predict(fast)
    baseline(slow)
    result: dict[str, Any] = {
        "parameters": sum(param.numel() for param in template.parameters()),
        "nodes": graph.num_nodes,
        "largest_error": check_equal(fast, slow),
    }

    def cold(module: nn.Module) -> None:
        clear_cache()
        ghn.predict(module)

    runs: dict[str, Callable[[nn.Module], Any]] = {
        "cold": cold,
        "baseline_cold": baseline,
        "warm": ghn.predict,
        "baseline_warm": lambda module: baseline(module, own_graph),
        "given": lambda module: ghn.predict(module, graph),
        "fill": fill,
    }
    if published is not None:
        run, capture_published = published
        check_equal(fast, run(copy.deepcopy(template)))
        known = capture_published(copy.deepcopy(template))
        runs["published_cold"] = run
        runs["published_warm"] = lambda module: run(module, known)
    del fast, slow
    times = measure(runs, template, repeats)
    for run_name, values in times.items():
        result[f"{run_name}_ms"] = 1e3 * statistics.median(values)
    for peer in ("baseline", "published"):
        for part in ("cold", "warm"):
            if f"{peer}_{part}" in times:
                result[f"{peer}_{part}_ratio"] = spread(times[f"{peer}_{part}"], times[part])
    result["warm_to_fill"] = spread(times["warm"], times["fill"])
    return result


def spread(over: list[float], under: list[float]) -> dict[str, float]:
    """Median, least and largest ratio of neighbouring measurements."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    return {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def load_published(folder: Path, ghn: ghn_fast.GHN) -> Any:
    """Load the published hypernetwork with our weights: functions to predict and to capture."""
    sys.path.insert(0, str(folder))
    graphs = importlib.import_module("ppuda.deepnets1m.graph")
    config = ghn.config
    peer = importlib.import_module("ppuda.ghn.nn").GHN(
        max_shape=config.max_shape,
        num_classes=config.num_classes,
        weight_norm=config.normalize,
        ve=config.uses_virtual_edges,
        layernorm=config.layer_norm,
        hid=config.hid,
    )
    from ghn_fast.hypernet.published import published_state

    ours, state = ghn.state_dict(), {}
    for name, tensor in peer.state_dict().items():
        (translated,) = published_state({name: tensor})
        state[name] = ours[translated].reshape(tensor.shape)
    peer.load_state_dict(state)
    peer.eval()

    def make_graph(module: nn.Module) -> Any:
        module.expected_input_sz = INPUT  # type: ignore[assignment]
        batch = graphs.GraphBatch([graphs.Graph(module, ve_cutoff=config.virtual_edges)])
        batch.to_device("cpu")
        return batch

    def run(module: nn.Module, graph: Any = None) -> nn.Module:
        module.expected_input_sz = INPUT  # type: ignore[assignment]
        # Without gradients, as a careful user of it would call it; capturing needs them.
        known = make_graph(module) if graph is None else graph
        with torch.no_grad():
            return peer(module, known)

    return run, make_graph


def import_time(repeats: int) -> dict[str, Any]:
    """Measure imports in fresh processes, in turn, and which heavy modules they load.

    ``ghn_fast`` alone loads its parts at first use, so that importing what predicts is measured,
    too.
    """
    statements = {
        "torch": "import torch",
        "package": "import ghn_fast",
        "prediction": "from ghn_fast import GHN, capture, from_pretrained",
    }
    times: dict[str, list[float]] = {name: [] for name in statements}
    loaded: dict[str, set[str]] = {}
    for _ in range(repeats + 1):
        for name, statement in statements.items():
            code = (
                "import sys, time; start = time.perf_counter(); "
                f"{statement}; print(time.perf_counter() - start, *sys.modules)"
            )
            result = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            spent, *modules = result.stdout.split()
            times[name].append(float(spent))
            loaded[name] = set(modules)
    # The first turn reads files that are not in memory yet.
    times = {name: values[1:] for name, values in times.items()}
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratio": {name: spread(times[name], times["torch"]) for name in ("package", "prediction")},
        "heavy": sorted(set(HEAVY) & (loaded["prediction"] - loaded["torch"])),
        "target": MOST_OF_IMPORT,
    }


def print_imports(imports: dict[str, Any]) -> None:
    """Print what importing costs."""
    print(f"import torch: {imports['seconds']['torch']:.2f} s")
    for name, label in (
        ("package", "import ghn_fast"),
        ("prediction", "from ghn_fast import GHN, ..."),
    ):
        ratio = imports["ratio"][name]
        print(
            f"{label}: {imports['seconds'][name]:.2f} s, {ratio['median']:.2f} times that "
            f"({ratio['least']:.2f}–{ratio['most']:.2f}); target at most {MOST_OF_IMPORT}"
        )
    print(f"heavy modules beyond those of torch: {', '.join(imports['heavy']) or 'none'}")


def summarise(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Take geometric means over the models; no target is met if a model failed."""
    summary: dict[str, Any] = {}
    complete = all("error" not in model for model in models.values())
    for peer in ("baseline", "published"):
        for part, target in TARGETS.items():
            ratios = {
                name: model[f"{peer}_{part}_ratio"]["median"]
                for name, model in models.items()
                if f"{peer}_{part}_ratio" in model
            }
            if ratios:
                mean = statistics.geometric_mean(ratios.values())
                worst = min(ratios, key=lambda name: ratios[name])
                summary[f"{peer}_{part}"] = {
                    "geometric_mean": mean,
                    "target": target,
                    "least": ratios[worst],
                    "least_model": worst,
                    "least_target": LEAST_OF_ONE,
                    "met": complete and mean >= target and ratios[worst] >= LEAST_OF_ONE,
                }
    name, most = MOST_OF_FILL
    if name in models and "warm_to_fill" in models[name]:
        ratio = models[name]["warm_to_fill"]["median"]
        summary["warm_to_fill"] = {
            "model": name,
            "ratio": ratio,
            "target": most,
            "met": ratio <= most,
        }
    return summary


def print_model(name: str, r: dict[str, Any]) -> None:
    """Print the line of one model, and one more for the published implementation."""
    if "error" in r:
        print(f"{name:17} failed: {r['error']}", flush=True)
        return

    def pair(peer: str, part: str) -> str:
        ratio = r[f"{peer}_{part}_ratio"]
        return (
            f"{r[f'{part}_ms']:8.1f} {r[f'{peer}_{part}_ms']:8.1f} {ratio['median']:6.1f}x "
            f"({ratio['least']:.1f}–{ratio['most']:.1f})".ljust(40)
        )

    fills = r["warm_to_fill"]["median"]
    print(
        f"{name:17}{r['parameters'] / 1e6:6.1f} {pair('baseline', 'cold')} "
        f"{pair('baseline', 'warm')} {r['given_ms']:8.1f} {r['fill_ms']:7.1f} {fills:6.1f}x",
        flush=True,
    )
    if "published_cold_ratio" in r:
        print(
            f"{'  published':17}{'':6} {pair('published', 'cold')} {pair('published', 'warm')}",
            flush=True,
        )


def print_summary(summary: dict[str, Any]) -> None:
    """Print geometric means and targets."""

    def verdict(met: bool) -> str:
        return "met" if met else "missed"

    for name, entry in summary.items():
        if name == "warm_to_fill":
            print(
                f"{entry['model']}, warm: {entry['ratio']:.1f} times filling the memory; target at "
                f"most {entry['target']}: {verdict(entry['met'])}"
            )
            continue
        peer, part = name.split("_")
        print(
            f"{part} against {peer}: geometric mean {entry['geometric_mean']:.1f}x (target "
            f"{entry['target']:g}x), least {entry['least']:.1f}x on {entry['least_model']} (target "
            f"{entry['least_target']:g}x): {verdict(entry['met'])}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--published", type=Path, help="folder of the published implementation")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats: got {arguments.repeats}, needs at least 1")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    ghn = ghn_fast.GHN().eval()
    published = None
    if arguments.published is not None:
        published = load_published(arguments.published, ghn)
    report: dict[str, Any] = {"about": about(arguments.threads), "models": {}}

    report["import"] = import_time(arguments.repeats)
    print_imports(report["import"])
    print(
        f"GHN-2, hid 32, float32, {arguments.threads} threads, medians of {arguments.repeats}, "
        f"milliseconds; warm: known architecture\n"
        f"{'':17}{'M':>6} {'cold':>8} {'baseline':>8} {'':22} {'warm':>8} {'baseline':>8} {'':22} "
        f"{'given':>8} {'fill':>7} {'warm/fill':>6}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in arguments.models:
            try:
                result = one_model(name, ghn, Predictor(ghn), published, arguments.repeats)
            except Exception as error:
                # A failed case is recorded as failed.
                result = {"error": f"{type(error).__name__}: {error}"}
            report["models"][name] = result
            print_model(name, result)
    report["summary"] = summarise(report["models"])
    print_summary(report["summary"])
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

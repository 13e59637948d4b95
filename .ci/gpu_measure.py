"""One case of gpu_check's measurements, in a process of its own.

    python .ci/gpu_measure.py CASE OUT [--device cuda] [--repeats 3]

What it finds is written after each part, so that a deadline takes away only what is missing then.
On the CPU sizes are small: that is a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpu_parts import ROOT, Measurement, attempt

# Steps a second that a GPU should reach at meta-batch 8 with 64 images, with graphs and without.
GPU_STEPS, GPU_EAGER_STEPS = 60.0, 25.0

# Against the loop over the nodes; and parts of the bandwidth of a copy, backward and forward.
RATIO, PARTS = 100.0, (0.4, 0.6)

Part = tuple[str, Callable[[], Sequence[Measurement]]]


def ops(device: str, repeats: int) -> Iterator[Part]:
    """The guarded cases of the suite, and expansion of 1 GB of parameters against a copy."""
    from suite.cases import guarded_cases

    cases = [case for case in guarded_cases() if case.device == device]
    if device == "cpu":
        # Message passing is measured against a loop, which takes minutes there.
        cases = [case for case in cases if case.path == "expand_params"][:1]
    for case in cases:
        yield case.name, partial(measured, case)
    for case in cases:
        if case.path == "expand_params" and case.graph == "resnet50" and device == "cuda":
            large = replace(case, graph="wide_resnet101_2", meta_batch=2)
            yield large.name, partial(bandwidth, large)


def measured(case: Any) -> list[Measurement]:
    """Milliseconds of a case, and for message passing the ratio to the loop over the nodes."""
    from suite.cases import all_cases
    from suite.measuring import measure_case, peer_of

    known = {other.name: other for other in all_cases()}
    times = measure_case(case, peer_of(case, known))
    found = [Measurement(case.name, 1e3 * times["seconds"]["median"], "ms", details=times)]
    if case.path == "gated_gnn":
        name, ratio = f"{case.name} against the loop", times["peer"]["ratio"]["median"]
        least = RATIO if case.device == "cuda" else None
        found.append(Measurement(name, ratio, "times", at_least=least))
    return found


def bandwidth(case: Any) -> list[Measurement]:
    """The part of the bandwidth of a copy that a case comes to."""
    from suite.measuring import measure_case
    from suite.roofline import measure_ceilings, roofline_of

    seconds = measure_case(case, None)["seconds"]["median"]
    roof = roofline_of(case, seconds, measure_ceilings("cuda"))
    least = PARTS[case.part == "forward"]
    name = f"{case.name}, bandwidth"
    return [Measurement(name, roof["achieved"], "of a copy", at_least=least, details=roof)]


def triton(device: str, repeats: int) -> Iterator[Part]:
    """The Triton kernels on the guarded cases of the two ops that have them."""
    from suite.cases import guarded_cases

    import ghn_fast

    def on_triton(case: Any) -> list[Measurement]:
        with ghn_fast.backend("triton"):
            return [replace(m, name=f"{m.name}, Triton", at_least=None) for m in measured(case)]

    for case in guarded_cases():
        if case.device == device == "cuda" and case.path in ("gated_gnn", "expand_params"):
            yield f"{case.name}, Triton", partial(on_triton, case)


def latency(device: str, repeats: int) -> Iterator[Part]:
    """Prediction for one network: at once, and again and again."""
    import torch
    import torchvision

    import ghn_fast

    names = ("resnet18",) if device == "cpu" else ("resnet50", "resnet152")
    torch.manual_seed(0)
    ghn = ghn_fast.GHN(ghn_fast.GHNConfig()).to(device).eval()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def measured(name: str) -> list[Measurement]:
        model = torchvision.models.get_model(name, num_classes=10).to(device)
        predictor = ghn.compile_plan(model)
        found = []
        for label, call in (("predict", lambda: ghn.predict(model)), ("Predictor", predictor)):
            for _ in range(3):
                call()
            wait()
            times = []
            for _ in range(5 * repeats):
                start = time.perf_counter()
                call()
                wait()
                times.append(1e3 * (time.perf_counter() - start))
            times.sort()
            details = {"least_ms": times[0], "most_ms": times[-1], "repeats": len(times)}
            middle = times[len(times) // 2]
            found.append(Measurement(f"{label}, {name}", middle, "ms", details=details))
        return found

    for name in names:
        yield f"latency, {name}", partial(measured, name)


def step(device: str, repeats: int) -> Iterator[Part]:
    """A step of meta-training in each way of running it, then against the straightforward loop."""
    from gpu_steps import Way, measure_way, ratio

    small = device == "cpu"
    for precision in ("bf16", "tf32", "float32"):
        for channels_last in (True, False):
            for graphs in (True, False):
                if small and (precision, channels_last, graphs) != ("bf16", True, True):
                    continue
                way = Way(precision, channels_last, graphs and not small)
                least = (GPU_STEPS if graphs else GPU_EAGER_STEPS) if not small else None
                yield way.name(), partial(measure_way, way, device, repeats, least, small=small)
    yield "step against the straightforward loop", lambda: ratio(device, small=small)


CASES: dict[str, Callable[[str, int], Iterator[Part]]] = {
    "ops": ops,
    "step": step,
    "triton": triton,
    "latency": latency,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    found: list[dict[str, Any]] = []
    for name, part in CASES[arguments.case](arguments.device, arguments.repeats):
        for measurement in attempt(name, part):
            print(measurement.line(), flush=True)
            line, met = measurement.line(), measurement.met
            found.append({**asdict(measurement), "met": met, "line": line})
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

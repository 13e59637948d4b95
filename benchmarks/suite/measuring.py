"""Every case measured into one results file, from which README and docs/performance.md are written.

A case is measured in turn with what one would write first, where there is that, so that a ratio
compares neighbours. Times are of one thread: of the processor on a CPU, between two events of the
stream on a GPU. Percentiles are of single calls on the clock on the wall.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite import clock
from suite.cases import Case, all_cases
from suite.machine import about, machine_name, write_whole

REPEATS, LEAST = 9, 0.03
PERCENTILES, CALLS = (50, 95, 99), 200
_LATENCY = ("predict_cold", "predict_warm", "compile_plan")


def peer_of(case: Case, known: Mapping[str, Case]) -> Case | None:
    """The case that another one is measured against: straightforward, or the reference."""
    if case.backend in ("straightforward", "reference") or case.cache == "cold":
        return None
    for backend in ("straightforward", "reference"):
        device = "cpu" if backend == "reference" else case.device
        peer = replace(case, backend=backend, device=device)
        if peer.name in known and device == case.device:
            return known[peer.name]
    return None


def measure_case(case: Case, peer: Case | None = None) -> dict[str, Any]:
    """Measure a case, in turn with its peer.

    Raises:
        suite.setups.SkippedError: If it cannot run here.
    """
    import ghn_fast
    from suite.setups import prepared

    with ExitStack() as stack:
        runs = {"own": stack.enter_context(prepared(case))}
        if peer is not None:
            runs["peer"] = stack.enter_context(prepared(peer))

        # The innermost choice of a back end counts; each run has its own.
        def of(name: str, backend: str) -> Callable[[], Any]:
            run = runs[name]

            def call() -> Any:
                with ghn_fast.backend("reference" if backend == "straightforward" else backend):
                    return run()

            return call

        calls = {"own": of("own", case.backend)}
        if peer is not None:
            calls["peer"] = of("peer", peer.backend)
        gc.collect()
        if case.cache == "cold":
            flush = clock.flusher(case.device)
            times = {
                "own": [
                    clock.cold_seconds(calls["own"], flush, 3, case.device) for _ in range(REPEATS)
                ]
            }
        else:
            times = clock.in_turn(calls, REPEATS, LEAST, case.device)
        found: dict[str, Any] = {"seconds": clock.spread(times["own"])}
        if peer is not None:
            found["peer"] = {
                "case": peer.name,
                "seconds": clock.spread(times["peer"]),
                "ratio": clock.ratios(times["peer"], times["own"]),
            }
        if case.path in _LATENCY and case.backend == "auto":
            single = [clock.seconds(calls["own"], 1, case.device, wall=True) for _ in range(CALLS)]
            found["latency"] = {f"p{p}": clock.percentile(single, p) for p in PERCENTILES}
        return found


def measure_all(
    out: Path,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
    commit: str | None = None,
) -> dict[str, Any]:
    """Measure cases into a results file; those that are in the file and not chosen stay.

    Args:
        out: The file.
        only: Parts of names; all cases without.
        say: Called with a line after every case.
        commit: What is measured, if git cannot tell.
    """
    import torch

    from suite.memory import added_part
    from suite.roofline import PATHS, measure_ceilings, roofline_of
    from suite.setups import SkippedError

    torch.set_num_threads(1)
    known = {case.name: case for case in all_cases()}
    report: dict[str, Any] = {"cases": {}}
    if out.is_file() and only:
        report = json.loads(out.read_text())
    if only and not any(part in name for part in only for name in known):
        raise ValueError(f"--only: {' and '.join(map(repr, only))} are in the name of no case")
    report |= {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine_name()}
    report["about"] = about(1, commit)
    ceilings = {}
    for name, case in known.items():
        if only and not any(part in name for part in only):
            continue
        try:
            found = measure_case(case, peer_of(case, known))
        except SkippedError:
            continue
        except Exception as error:
            # A failed case is recorded as failed.
            found = {"error": f"{type(error).__name__}: {error}"}
        is_own = case.backend not in ("reference", "straightforward")
        if "seconds" in found and case.path in PATHS and is_own:
            if case.device not in ceilings:
                ceilings[case.device] = measure_ceilings(case.device)
                report.setdefault("ceilings", {})[case.device] = vars(ceilings[case.device])
            if case.dtype == "float32" and case.cache == "warm":
                seconds = found["seconds"]["median"]
                found["roofline"] = roofline_of(case, seconds, ceilings[case.device])
        if case.path == "predict_large":
            found["memory"] = added_part(case.dtype)
        report["cases"][name] = found
        write_whole(out, json.dumps(report, indent=1, allow_nan=False) + "\n")
        say(f"{_line(found)}  {name}")
    return report


def _line(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"FAILED: {found['error']}"
    ratio = found.get("peer", {}).get("ratio", {}).get("median")
    times = f"{1e3 * found['seconds']['median']:9.3f} ms"
    return times + (f" {ratio:6.1f} times" if ratio else f"{'':13}")

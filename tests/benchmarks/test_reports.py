"""From results to pages: asv's files, the trends, the performance page, the roofline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import bench
import pytest
import torch
from suite import cases, floors, measuring, pages, results, roofline, setups, trends

from tolerances import assert_close

ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = ["result", "params", "version", "started_at", "duration"]


def result_of(commit: str, date: int, times: list[float | None]) -> dict[str, Any]:
    params = [["'cpu, cpu'", "'cuda, cuda'"], ["32"]]
    return {
        "commit_hash": commit,
        "date": date,
        "params": {"machine": "m1"},
        "result_columns": COLUMNS,
        "results": {
            "times.Op.time_call": [times, params, "1", 0, 1.0],
            "counts.Tracked.track_calls": [[7, 8], params, "1", 0, 1.0],
            "times.Broken.time_call": [None, params, "1", 0, 1.0],
        },
    }


def write_results(folder: Path, levels: list[float]) -> None:
    (folder / "m1").mkdir(parents=True)
    (folder / "m1" / "machine.json").write_text("{}")
    for number, level in enumerate(levels):
        result = result_of(f"{number:02}" * 20, number, [level, math.nan])
        (folder / "m1" / f"{number:02}-x.json").write_text(json.dumps(result))


def test_series_hold_what_was_measured_in_the_order_of_commits(tmp_path: Path) -> None:
    write_results(tmp_path, [0.002, 0.003])
    found = {one.name: one for one in results.series(tmp_path)}
    assert set(found) == {
        "times.Op.time_call(cpu, cpu, 32)",
        "counts.Tracked.track_calls(cpu, cpu, 32)",
        "counts.Tracked.track_calls(cuda, cuda, 32)",
    }
    one = found["times.Op.time_call(cpu, cpu, 32)"]
    assert (one.machine, one.unit) == ("m1", "seconds")
    assert one.points == [("00" * 20, 0.002), ("01" * 20, 0.003)]


def test_the_page_shows_the_commits_that_moved_a_case(tmp_path: Path) -> None:
    pytest.importorskip("asv.step_detect", reason="asv is not installed (the extra `bench`)")
    jitter = [1.0, 1.003, 0.998, 1.001, 0.999, 1.002]
    levels = [0.002 * j for j in jitter] + [0.003 * j for j in jitter] + [0.001 * j for j in jitter]
    write_results(tmp_path / "results", levels)
    (one,) = [one for one in results.series(tmp_path / "results") if one.unit == "seconds"]
    first, second = trends.moves_of(one)
    assert (first.place, second.place) == (6, 12)
    assert_close((first.ratio, second.ratio), (1.5, 1 / 3), context="ghn")
    out = tmp_path / "out"
    assert bench.main(["site", "--results", str(tmp_path), "--out", str(out)]) == 0
    text = (out / "index.html").read_text()
    # Nothing is loaded from anywhere.
    assert "http" not in text and "src=" not in text
    assert text.count("<svg ") == 3
    assert '<li class="slower"><code>0606060606</code> +50' in text
    assert '<li class="faster"><code>1212121212</code> -66' in text
    assert bench.main(["site", "--results", str(out), "--out", str(tmp_path / "no")]) == 2


def test_every_change_of_a_count_is_a_move() -> None:
    one = results.Series("calls", "m1", "", [("a", 81.0), ("b", 81.0), ("c", 82.0), ("d", 41.0)])
    assert trends.moves_of(one) == [trends.Move(2, 82 / 81), trends.Move(3, 0.5)]


def report() -> dict[str, Any]:
    times = {"median": 2e-3, "low": 1.9e-3, "high": 2.1e-3, "least": 1e-3, "most": 3e-3}
    ratio = {"median": 40.0, "least": 30.0, "most": 50.0}
    roof = {"bytes": 4e7, "flops": 0, "least_seconds": 1e-3, "bound": "memory", "achieved": 0.5}
    gnn = "gated_gnn.forward(cpu, cpu, hid=32, train x 8, float32)"
    latency = {"p50": 1e-3, "p95": 2e-3, "p99": 4e-3}
    return {
        "machine": "m1",
        "about": {"cpu": "Some CPU x 2", "gpu": "none", "torch": "2.15", "python": "3.11"}
        | {"commit": "abc"},
        "ceilings": {"cpu": {"fill": 3e10, "copy": 4e10, "flops": 1e11}},
        "cases": {
            gnn: {"seconds": times, "roofline": roof}
            | {"peer": {"case": gnn.replace("cpu", "straightforward", 1), "ratio": ratio}},
            "predict_warm.call(auto, cpu, hid=32, resnet50 x 1, float32)": {
                "seconds": times,
                "latency": latency,
            },
            "broken": {"error": "RuntimeError: no"},
        },
    }


def test_the_pages_hold_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(report()))
    assert bench.main(["docs", str(file), "--root", str(tmp_path)]) == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "| 2 ms | 1.9 ms to 2.1 ms | straightforward | 40.0 (30.0 to 50.0) |" in text
    assert "| 40 MB | 0 M | 2 ms | 1 ms | memory | 50 % |" in text
    assert "x 1, float32)` | 1 ms | 2 ms | 4 ms |" in text
    assert "| `broken` | failed: RuntimeError: no |" in text
    assert "a CPU. Percentiles are of" in " ".join(text.split()) and "on a GPU" not in text
    assert "Some CPU x 2, GPU: none, torch 2.15, Python 3.11, commit `abc`" in text
    assert (tmp_path / "docs" / "performance.png").is_file()
    speed = readme.read_text()
    assert speed.startswith("before\n") and speed.endswith("\nafter\n") and "old" not in speed
    assert "| gated GNN | node-by-node loop | forward of 8 training graphs 40 times |" in speed
    assert "known 1 ms, 4 ms" in speed
    assert "meta-training" not in speed
    # Without latencies nothing is said of percentiles, with a GPU something of its clock.
    found = pages.introduction({"op.call(auto, cuda, hid=32, train x 8, float32)": {}})
    assert "events of the stream" in found and "CPU" not in found and "ercentile" not in found
    readme.write_text("no place")
    with pytest.raises(SystemExit):
        bench.main(["docs", str(file), "--root", str(tmp_path)])


def test_the_readme_of_this_checkout_has_a_place_for_the_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count(pages.BEGIN) == text.count(pages.END) == 1


def test_a_case_is_measured_in_turn_with_what_one_would_write_first() -> None:
    known = {case.name: case for case in cases.all_cases()}
    peers = {case.path: measuring.peer_of(case, known) for case in cases.guarded_cases()
             if case.device == "cpu"}  # fmt: skip
    backends = {path: peer and peer.backend for path, peer in peers.items()}
    for path in ("gated_gnn", "predict_cold", "predict_warm", "meta_step"):
        assert backends[path] == "straightforward"
    for path in ("expand_params", "shortest_distances", "collate_edges"):
        assert backends[path] == "reference"
    for path in ("decode", "capture", "compile_plan", "loader", "generator"):
        assert backends[path] is None


def test_asv_has_a_class_for_every_part_of_every_path() -> None:
    from asv_suite import times

    classes = [value for value in vars(times).values()
               if isinstance(value, type) and hasattr(value, "time_call")]  # fmt: skip
    named = {(c.grid.path, c.part, c.cache) for c in classes if hasattr(c, "grid")}
    assert named == {(case.path, case.part, case.cache) for case in cases.all_cases()}
    parameters = math.prod(len(axis) for axis in times.GatedGNNForward.params)
    assert parameters == sum(
        case.path == "gated_gnn" and case.part == "forward" for case in cases.all_cases()
    )


def test_a_results_file_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "measured.json"
    times = {"seconds": {"median": 1.0}}

    def measure(case: cases.Case, peer: cases.Case | None) -> dict[str, Any]:
        if case.part == "build":
            raise RuntimeError("no")
        return dict(times)

    monkeypatch.setattr(measuring, "measure_case", measure)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    measuring.measure_all(out, ["capture."], commit="abc")
    measuring.measure_all(out, ["compile_plan"], commit="def")
    found = json.loads(out.read_text())
    assert {name.split(".")[0] for name in found["cases"]} == {"capture", "compile_plan"}
    assert found["about"]["commit"] == "def"
    errors = [case.get("error") for name, case in found["cases"].items() if ".build" in name]
    assert errors and set(errors) == {"RuntimeError: no"}
    with pytest.raises(ValueError, match="'nothing' are in the name of no case"):
        measuring.measure_all(out, ["nothing"], commit="abc")


def case_of(path: str, part: str) -> cases.Case:
    return next(
        c
        for c in cases.guarded_cases()
        if (c.path, c.part, c.device) == (path, part, "cpu") and "resnet" not in c.graph
    )


def test_the_least_time_is_that_of_the_tighter_ceiling() -> None:
    ceilings = roofline.Ceilings(fill=50.0, copy=100.0, flops=10.0)
    assert roofline.Work(200, 10).seconds(ceilings) == 2.0
    assert roofline.Work(200, 10).bound(ceilings) == "memory"
    assert roofline.Work(200, 50).seconds(ceilings) == 5.0
    assert roofline.Work(200, 50).bound(ceilings) == "arithmetic"


def test_the_work_of_ops_is_what_their_tensors_hold() -> None:
    for path, part in (("collate_edges", "call"), ("shortest_distances", "call")):
        case = case_of(path, part)
        (first, *_) = graphs = setups.graphs_of(case.graph, case.meta_batch)
        rows = sum(len(graph.edges) for graph in graphs)
        work = roofline.work_of(case)
        hops = int((first.edges[:, 2] == 1).sum())
        assert work.bytes == (48 * rows if path == "collate_edges" else 24 * rows + 16 * hops)
    forward = roofline.work_of(case_of("gated_gnn", "forward"))
    backward = roofline.work_of(case_of("gated_gnn", "backward"))
    assert backward.flops == 2 * forward.flops
    decoded = roofline.work_of(case_of("decode", "forward"))
    # The backward pass has two products for every product of the forward pass.
    assert roofline.work_of(case_of("decode", "backward")).flops == 2 * decoded.flops
    with pytest.raises(ValueError, match="path: got 'loader'"):
        roofline.work_of(case_of("loader", "call"))


def test_the_operations_of_message_passing_are_those_of_its_reference() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    import ghn_fast

    case = case_of("gated_gnn", "forward")
    with (
        setups.prepared(case) as run,
        ghn_fast.backend("reference"),
        FlopCounterMode(display=False) as counter,
    ):
        run()
    # The products alone: the reference leaves out perceptrons whose messages nobody receives.
    counted, computed = counter.get_total_flops(), roofline.work_of(case).flops
    assert 0.5 * computed < counted <= computed


def test_too_small_a_ratio_fails_the_quick_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(floors.FLOORS)
    assert {cases.find_case(name).backend for name in names} == {"cpu"}
    monkeypatch.setattr(floors, "ratio", lambda case: 1000.0)
    assert floors.check() == 0
    monkeypatch.setattr(floors, "ratio", lambda case: 1000.0 if case.name != names[1] else 0.9)
    assert floors.check() == 1
    assert f"{names[1]}: 0.9 times as fast as the reference" in capsys.readouterr().out
    assert floors.check(0) == 1

    def skip(case: cases.Case) -> float:
        raise setups.SkippedError("no compiler")

    monkeypatch.setattr(floors, "ratio", skip)
    assert floors.check() == 0
    assert f"{names[0]}: skipped, no compiler" in capsys.readouterr().out


@pytest.mark.extension
def test_the_quick_check_measures_both_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from ghn_fast.ops import backend

    seen: list[str] = []
    requested = backend.requested

    def spy() -> str:
        seen.append(requested())
        return seen[-1]

    def in_turn(runs: dict[str, Any], *_: Any) -> dict[str, list[float]]:
        for run in runs.values():
            run()
        return {"own": [1.0, 1.0], "peer": [3.0, 3.0]}

    monkeypatch.setattr(backend, "requested", spy)
    monkeypatch.setattr(measuring.clock, "in_turn", in_turn)
    assert floors.ratio(case_of("collate_edges", "call")) == 3.0
    assert set(seen) == {"cpu", "reference"}

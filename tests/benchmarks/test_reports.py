"""From results to pages: asv's files, the trends, the performance page, the roofline."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tolerances import assert_close

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import make_performance_page as performance  # noqa: E402
import quick  # noqa: E402
import run_asv  # noqa: E402
from suite import cases, results, roofline, setups, trends  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

COLUMNS = [
    "result",
    "params",
    "version",
    "started_at",
    "duration",
    "stats_q_25",
    "stats_q_75",
]


def result_of(commit: str, date: int, times: list[float | None]) -> dict[str, Any]:
    params = [["'cpu, cpu'", "'cuda, cuda'"], ["32"]]
    low = [None if t is None or math.isnan(t) else 0.9 * t for t in times]
    high = [None if t is None or math.isnan(t) else 1.1 * t for t in times]
    return {
        "commit_hash": commit,
        "date": date,
        "python": "/somewhere/bin/python3.11",
        "env_name": "existing-py_somewhere",
        "params": {"machine": "m1", "python": "/somewhere/bin/python3.11", "cpu": "Some CPU x 2"}
        | {"gpu": "none", "torch": "2.15.0"},
        "result_columns": COLUMNS,
        "results": {
            "ops.Op.time_call": [times, params, "1", 0, 1.0, low, high],
            "ops.Op.peakmem_call": [[7, 8], params, "1", 0, 1.0],
        },
    }


def test_values_failures_and_what_cannot_run_are_told_apart() -> None:
    result = result_of("a" * 40, 1, [0.002, math.nan])
    assert results.failures(result) == []
    (only,) = results.timed(result).values()
    assert (only.benchmark, only.params, only.value) == (
        "ops.Op.time_call",
        ("cpu, cpu", "32"),
        0.002,
    )
    assert_close((only.low, only.high), (0.0018, 0.0022))
    failed = result_of("a" * 40, 1, [None, math.nan])
    assert results.failures(failed) == ["ops.Op.time_call(cpu, cpu, 32)"]
    assert results.timed(failed) == {}
    failed["results"]["ops.Op.time_call"][0] = None
    assert len(results.failures(failed)) == 2


def test_results_are_kept_without_places_on_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "m1"
    folder.mkdir()
    path = folder / "aaaaaaaa-existing-py_somewhere.json"
    path.write_text(json.dumps(result_of("a" * 40, 1, [0.1, math.nan])))
    assert results.file_of(tmp_path, "m1", "a" * 40) == path
    to = results.tidy(path, {"gpu": "none", "python": "3.11.7"})
    assert [p.name for p in folder.iterdir()] == [to.name]
    assert "somewhere" not in to.read_text()
    assert results.file_of(tmp_path, "m1", "a" * 40) == to
    assert results.file_of(tmp_path, "m1", "b" * 40) is None


def test_trends_follow_the_commits(tmp_path: Path) -> None:
    found = [
        result_of("b" * 40, 2, [0.003, math.nan]),
        result_of("a" * 40, 1, [0.002, math.nan]),
    ]
    for result in found:
        folder = tmp_path / "m1"
        folder.mkdir(exist_ok=True)
        (folder / f"{result['commit_hash'][:8]}-x.json").write_text(json.dumps(result))
    (folder / "machine.json").write_text("{}")
    read = results.read_results(tmp_path)
    assert trends.trends(read) == {
        "ops.Op\ncpu, cpu, 32": {"m1": [("aaaaaaa", 0.002), ("bbbbbbb", 0.003)]}
    }
    (page,) = trends.draw_trends(read, tmp_path)
    assert page.read_bytes().startswith(b"\x89PNG")
    text = run_asv.index_page(read, [page])
    assert text.count("<img ") == text.count(f'src="{page.name}"') == 1
    assert "aaaaaaa, bbbbbbb" in text and "machines: m1" in text
    assert "https:" not in text


def test_the_page_holds_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "asv" / "m1"
    folder.mkdir(parents=True)
    for commit, date, time in (("a", 1, 0.002), ("b", 2, 0.00345)):
        result = result_of(commit * 40, date, [time, math.nan])
        (folder / f"{commit * 8}-x.json").write_text(json.dumps(result))
    report = {
        "about": {"cpu": "Some CPU x 2", "gpu": "none", "torch": "2.15.0", "commit": "bbb"},
        "ceilings": {"cpu": {"fill": 3e10, "copy": 4e10, "flops": 1e11}},
        "cases": {
            "op": {"bytes": 4e7, "flops": 0, "seconds": 2e-3, "least_seconds": 1e-3}
            | {"bound": "memory", "achieved": 0.5}
        },
    }
    (tmp_path / "results" / "roofline-m1.json").write_text(json.dumps(report))
    out = tmp_path / "docs"
    arguments = ["--results", str(tmp_path / "results"), "--out", str(out)]
    assert performance.main(arguments) == 0
    text = (out / "performance.md").read_text()
    assert "| Op | cpu, cpu | 32 | 3.45 ms | 3.1 ms to 3.8 ms |" in text
    assert "cuda" not in text
    assert "2 ms to" not in text
    assert "Some CPU x 2, GPU: none, torch 2.15.0" in text
    assert "| `op` | 40 MB | 0 M | 2 ms | 1 ms | memory | 50 % |" in text
    assert "| cpu | 30.0 GB/s | 40.0 GB/s | 100 GFLOP/s |" in text
    assert (out / "performance.png").is_file()
    assert performance.main(["--results", str(out), "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


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
    names = list(quick.FLOORS)
    assert {cases.find_case(name).backend for name in names} == {"cpu"}
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(quick, "ratio", lambda case: 1000.0)
    assert quick.main([]) == 0
    monkeypatch.setattr(quick, "ratio", lambda case: 1000.0 if case.name != names[1] else 0.9)
    assert quick.main([]) == 1
    assert f"{names[1]}: 0.9 times as fast as the reference" in capsys.readouterr().out
    assert quick.main(["--seconds", "0"]) == 1

    def skip(case: cases.Case) -> float:
        raise setups.SkippedError("no compiler")

    monkeypatch.setattr(quick, "ratio", skip)
    assert quick.main([]) == 0
    assert f"{names[0]}: skipped, no compiler" in capsys.readouterr().out


@pytest.mark.extension
def test_the_quick_check_measures_both_back_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(quick, "seconds", lambda run, name: (run(), seen.append(name), 1.0)[2])
    monkeypatch.setattr(quick, "PAIRS", 1)
    assert quick.ratio(case_of("collate_edges", "call")) == 1.0
    assert seen == ["cpu", "reference"] * 2

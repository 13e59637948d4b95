"""What `bench.py prove` keeps of its runs, and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from suite import proof
from suite.decide import Verdict
from suite.rounds import Outcome


def outcome_of(case: Any, verdict: Verdict) -> Outcome:
    return Outcome(case, ratios=[1.2] * 7, verdict=verdict)


def test_runs_are_kept_one_by_one_and_counted_by_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def compare(base: Path, head: Path, cases: Any, **options: Any) -> list[Outcome]:
        planted = "_slower" in (head / "ghn_fast/ops/gated_gnn.py").read_text()
        seen.append(planted)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return [outcome_of(c, Verdict.SLOWER if planted else Verdict.PASSED) for c in cases]

    monkeypatch.setattr(proof, "compare", compare)
    trees = [tmp_path / name for name in ("first", "second")]
    for tree in trees:
        (tree / "ghn_fast/ops").mkdir(parents=True)
        (tree / "ghn_fast/ops/gated_gnn.py").write_text("def gated_gnn(): ...\n")
    results = tmp_path / "results"
    first = proof.Proof(trees[0], {}, results, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        first.planted("gated_gnn", 8, 4)
    # Two runs are known; two are missing. What is there is not run again.
    first = proof.Proof(trees[0], {}, results, lambda line: None)
    first.planted("gated_gnn", 8, 4)
    first.planted("gated_gnn", 8, 4)
    assert len(seen) == 5 and all(seen)
    first.unchanged(1)
    assert not seen[-1]
    lines = first.table()
    assert lines[1].split()[:3] == ["4", "of", "4"] and "gated_gnn + 8 %" in lines[1]
    assert lines[2].split()[:3] == ["0", "of", "1"]
    # Another commit has no runs yet.
    second = proof.Proof(trees[1], {}, results, lambda line: None)
    assert len(second.runs) == 5 and second.table() == lines[:1]
    assert "_slower" not in (trees[0] / "ghn_fast/ops/gated_gnn.py").read_text()
